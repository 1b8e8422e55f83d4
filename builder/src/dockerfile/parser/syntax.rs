//! `# syntax=`: which language a Dockerfile is in. There is one, and it is read here, whatever image is named.

use super::super::ast::Word;
use super::super::source::{Diagnostic, Severity};

/// The version of the language that is implemented; later ones may know more.
const VERSION: (u32, u32) = (1, 26);

/// What is to be said of a language that is asked for: an error if it is another one, a note if it is a later version.
pub(crate) fn check(value: &Word) -> Option<Diagnostic> {
    let image = value.text.split_whitespace().next().unwrap_or_default();
    let image = image.split('@').next().unwrap_or_default();
    let (path, last) = image.rsplit_once('/').unwrap_or(("", image));
    let (name, tag) = last.split_once(':').unwrap_or((last, ""));
    let own = matches!(name, "dockerfile" | "dockerfile-upstream") && !path.is_empty()
        || name.starts_with("dockerfile.v0");
    if !own {
        let message = format!("the language of `{}` is not supported", value.text);
        return Some(
            Diagnostic::error(value.span, message)
                .help("longshore reads `docker/dockerfile` itself and runs no other frontend"),
        );
    }
    let (major, minor) = VERSION;
    (version(tag)? > VERSION).then(|| {
        let message = format!("longshore reads version {major}.{minor} of the language");
        let note = Diagnostic::warning(value.span, message);
        Diagnostic {
            severity: Severity::Note,
            ..note
        }
        .help("what came later is an error where it is used")
    })
}

/// `1.7` of the tags `1.7`, `1.7.1` and `1.7-labs`; nothing of those that name no version or leave the minor one open.
fn version(tag: &str) -> Option<(u32, u32)> {
    let numbers = tag.split('-').next()?;
    let mut parts = numbers.split('.').map(|part| part.parse().ok());
    let major = parts.next()??;
    match parts.next() {
        Some(minor) => Some((major, minor?)),
        None => Some((major, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn languages() {
        let check = |text: &str, expect: Option<Severity>| {
            let word = Word {
                text: text.to_owned(),
                ..Word::default()
            };
            let severity = check(&word).map(|said| said.severity);
            assert_eq!(severity, expect, "{text}");
        };
        check("docker/dockerfile", None);
        check("docker/dockerfile:1", None);
        check("docker/dockerfile:1.7-labs", None);
        check("docker/dockerfile:labs", None);
        check("docker.io/docker/dockerfile-upstream:master", None);
        check("mirror.example:5000/docker/dockerfile:1@sha256:0123", None);
        check("dockerfile.v0", None);
        check("docker/dockerfile:1.27", Some(Severity::Note));
        check("docker/dockerfile:2", Some(Severity::Note));
        check("example/frontend:1", Some(Severity::Error));
        check("dockerfile", Some(Severity::Error));
    }
}
