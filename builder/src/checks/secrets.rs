//! Secrets in `ARG` and `ENV`.

use super::{Rule, Subject};
use crate::dockerfile::{Diagnostic, Instruction, InstructionKind, Word};

/// Words of a name, between underscores, that speak of a secret.
const SECRET: [&str; 10] = [
    "apikey",
    "auth",
    "credential",
    "credentials",
    "key",
    "password",
    "pword",
    "passwd",
    "secret",
    "token",
];

/// Words that say that it is none after all.
const PUBLIC: [&str; 3] = ["public", "file", "version"];

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    for instruction in subject.bodies() {
        instruction_names(instruction, found);
        if let InstructionKind::Onbuild(trigger) = &instruction.kind {
            instruction_names(trigger, found);
        }
    }
}

fn instruction_names(instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    let names: Vec<&Word> = match &instruction.kind {
        InstructionKind::Arg(declarations) => declarations.iter().map(|arg| &arg.name).collect(),
        InstructionKind::Env(env) => env.pairs.iter().map(|pair| &pair.key).collect(),
        _ => return,
    };
    let keyword = instruction.keyword.text.to_uppercase();
    for name in names.into_iter().filter(|name| is_secret(&name.text)) {
        let message = format!(
            "`{keyword} {}` puts a secret into the image, to judge by its name",
            name.text
        );
        let finding = Rule::SecretsUsedInArgOrEnv.at(name.span, message);
        found.push(finding.help(format!("`RUN --mount=type=secret,id={}`", name.text)));
    }
}

fn is_secret(name: &str) -> bool {
    let lower = name.to_lowercase();
    let has = |words: &[&str]| lower.split('_').any(|word| words.contains(&word));
    has(&SECRET) && !has(&PUBLIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        let check = |name: &str, expect: bool| assert_eq!(is_secret(name), expect, "{name}");
        check("GITHUB_TOKEN", true);
        check("token", true);
        check("Database_Password_2", true);
        check("AUTH", true);
        check("PUBLIC_KEY", false);
        check("SECRET_FILE", false);
        check("TOKEN_VERSION", false);
        check("AUTHOR", false);
        check("MONKEY", false);
        check("KEYCLOAK_URL", false);
    }
}
