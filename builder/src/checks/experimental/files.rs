//! Rules about what `COPY` and `ADD` take.

use super::super::{Rule, Subject};
use crate::dockerfile::{Diagnostic, InstructionKind, Word};

/// Endings of the names of archives that `ADD` unpacks.
const ARCHIVES: [&str; 12] = [
    ".tar",
    ".tar.gz",
    ".tgz",
    ".tar.bz2",
    ".tbz2",
    ".tbz",
    ".tar.xz",
    ".txz",
    ".tar.zst",
    ".tzst",
    ".tar.lzma",
    ".gz",
];

/// Files that hold secrets by their whole name.
const SECRET_NAMES: [&str; 15] = [
    ".env",
    ".npmrc",
    ".netrc",
    ".pypirc",
    ".pgpass",
    ".git-credentials",
    ".htpasswd",
    ".vault-token",
    "id_rsa",
    "id_dsa",
    "id_ecdsa",
    "id_ed25519",
    "credentials.json",
    "secrets.yaml",
    "secrets.yml",
];

/// Endings of names of private keys.
const SECRET_ENDINGS: [&str; 5] = [".pem", ".key", ".p12", ".pfx", ".jks"];

/// Folders that hold them.
const SECRET_FOLDERS: [&str; 5] = [".ssh", ".aws", ".kube", ".gnupg", ".docker"];

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    for instruction in subject.bodies() {
        let (copy, is_add) = match &instruction.kind {
            InstructionKind::Copy(copy) => (copy, false),
            InstructionKind::Add(copy) => (copy, true),
            _ => continue,
        };
        if instruction.flag("from").is_some() {
            continue;
        }
        for source in &copy.sources {
            if let Some(name) = secret(&source.text) {
                let message = format!("`{name}` usually holds a secret, which the image then has");
                let finding = Rule::SecretsInCopiedFiles.at(source.span, message);
                found.push(finding.help("`RUN --mount=type=secret`, where a step needs it"));
            }
        }
        let plain = |source: &&Word| is_plain(&source.text);
        let all_plain =
            !copy.sources.is_empty() && copy.sources.iter().all(|source| plain(&source));
        if is_add && all_plain && instruction.flags.iter().all(|flag| shared(&flag.name)) {
            let message = "`COPY` does the same, and unpacks and downloads nothing by surprise";
            found.push(
                Rule::AddInsteadOfCopy
                    .at(instruction.keyword.span, message)
                    .help("`COPY`"),
            );
        }
    }
}

/// Whether `COPY` has a flag of `ADD`, too.
fn shared(flag: &str) -> bool {
    matches!(flag, "chown" | "chmod" | "link" | "exclude")
}

/// Whether a source is a file or folder of the context that `ADD` does not unpack, for all that its name tells.
fn is_plain(source: &str) -> bool {
    let lower = source.to_ascii_lowercase();
    let remote = lower.contains("://") || lower.starts_with("git@");
    let archive = ARCHIVES.iter().any(|ending| lower.ends_with(ending));
    // A variable may be anything.
    !remote && !archive && !source.contains('$') && !lower.ends_with('*')
}

/// The part of a path that tells of a secret.
fn secret(source: &str) -> Option<&str> {
    let mut parts = source.split('/').filter(|part| !part.is_empty());
    let name = source.split('/').rfind(|part| !part.is_empty())?;
    let folder = parts.find(|part| SECRET_FOLDERS.contains(part));
    let lower = name.to_ascii_lowercase();
    let example = ["example", "sample", "template", "dist"];
    let env = lower
        .strip_prefix(".env.")
        .is_some_and(|kind| !example.contains(&kind));
    let secret = env
        || SECRET_NAMES.contains(&lower.as_str())
        || SECRET_ENDINGS.iter().any(|ending| lower.ends_with(ending));
    // The certificates that everybody trusts are in such files, too.
    let public = ["ca", "cert", "chain", "public", "pub"]
        .iter()
        .any(|word| lower.contains(word));
    match (secret && !(public && lower.ends_with(".pem")), folder) {
        (true, _) => Some(name),
        (false, folder) => folder,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets() {
        let check =
            |source: &str, expect: Option<&str>| assert_eq!(secret(source), expect, "{source}");
        check(".env", Some(".env"));
        check("config/.env.production", Some(".env.production"));
        check(".env.example", None);
        check("./.ssh/known_hosts", Some(".ssh"));
        check("keys/id_ed25519", Some("id_ed25519"));
        check("keys/id_ed25519.pub", None);
        check("tls/server.KEY", Some("server.KEY"));
        check("tls/server.pem", Some("server.pem"));
        check("ca-bundle.pem", None);
        check("src/env", None);
        check("monkey.txt", None);
        check("", None);
    }

    #[test]
    fn plain_sources() {
        let check = |source: &str, expect: bool| assert_eq!(is_plain(source), expect, "{source}");
        check("src", true);
        check("a.txt", true);
        check("rootfs.tar.xz", false);
        check("https://h.example/x", false);
        check("git@h.example:x", false);
        check("$FILE", false);
        check("dist/*", false);
    }
}
