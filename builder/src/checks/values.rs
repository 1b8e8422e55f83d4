//! Rules that only lowering can decide, since they are about values: it asks here while it expands.

use store::oci::Platform;

use super::Rule;
use crate::dockerfile::ignore::IgnoreMatcher;
use crate::dockerfile::suggest::nearest;
use crate::dockerfile::{Diagnostic, Span};

/// A variable that is used in a stage and not set.
pub(crate) fn undefined<'n>(
    name: &str,
    span: Span,
    known: impl Iterator<Item = &'n str>,
) -> Diagnostic {
    let finding = Rule::UndefinedVar.at(span, format!("the variable `{name}` is not set"));
    finding.suggest(nearest(name, known))
}

/// A variable that is used in `FROM` and declared nowhere before.
pub(crate) fn undefined_in_from<'n>(
    name: &str,
    span: Span,
    known: impl Iterator<Item = &'n str>,
) -> Diagnostic {
    let message = format!("no `ARG` before the first `FROM` declares `{name}`");
    let finding = Rule::UndefinedArgInFrom.at(span, message);
    match nearest(name, known) {
        Some(near) => finding.suggest(Some(near)),
        None => finding.help("`FROM` sees only an `ARG` before the first `FROM`"),
    }
}

/// `CMD` or `ENTRYPOINT` as a text for the shell; `shell` says whether one was chosen with `SHELL`.
pub(crate) fn shell_form(keyword: &str, span: Span, shell: bool) -> Option<Diagnostic> {
    (!shell).then(|| {
        let message = format!("`{keyword}` runs a shell, which does not pass signals on");
        let finding = Rule::JSONArgsRecommended.at(span, message);
        finding.help(format!("`{keyword} [\"program\", \"argument\"]`"))
    })
}

/// The first `WORKDIR` of a chain of stages.
pub(crate) fn relative_workdir(path: &str, span: Span) -> Option<Diagnostic> {
    (!path.starts_with('/')).then(|| {
        let message = format!("`WORKDIR {path}` depends on the base image's working directory");
        Rule::WorkdirRelativePath
            .at(span, message)
            .help("begin with an absolute path")
    })
}

/// A port as it is written, once expanded.
pub(crate) fn port(text: &str, span: Span) -> Vec<Diagnostic> {
    let mut found = Vec::new();
    let (address, protocol) = match text.split_once('/') {
        Some((address, protocol)) => (address, Some(protocol)),
        None => (text, None),
    };
    if let Some(protocol) = protocol
        && protocol.chars().any(char::is_uppercase)
    {
        let lower = protocol.to_lowercase();
        let message = format!("the protocol `{protocol}` is not in lower case");
        found.push(
            Rule::ExposeProtoCasing
                .at(span, message)
                .help(format!("`{address}/{lower}`")),
        );
    }
    if let Some((_, container)) = address.rsplit_once(':') {
        let message =
            format!("`{text}` says something of the host, which is decided when the image is run");
        let right = protocol.map_or(container.to_owned(), |protocol| {
            format!("{container}/{protocol}")
        });
        let help = format!("`EXPOSE {right}`, and `run -p {address}`");
        found.push(Rule::ExposeInvalidFormat.at(span, message).help(help));
    }
    found
}

/// A source of a copy out of the main context, once expanded; `ignore` are the patterns of the ignore file.
pub(crate) fn ignored_source(
    keyword: &str,
    path: &str,
    ignore: &[String],
    span: Span,
) -> Option<Diagnostic> {
    if ignore.iter().any(|pattern| pattern.starts_with('!')) || path.contains(['*', '?', '[']) {
        return None;
    }
    let path = crate::dockerfile::ignore::clean(path);
    let path = path.trim_start_matches('/');
    let excluded = match path {
        "" | "." => ignore
            .iter()
            .any(|pattern| matches!(pattern.as_str(), "*" | "**" | "**/*")),
        // An ignore file that cannot be read is an error of the build's own.
        path => IgnoreMatcher::new(ignore).is_ok_and(|matcher| matcher.matches(path.as_bytes())),
    };
    excluded.then(|| {
        let shown = if path.is_empty() { "." } else { path };
        let message = format!("`{keyword} {shown}` copies what the ignore file excludes");
        Rule::CopyIgnoredFile.at(span, message)
    })
}

/// A target whose Dockerfile gives it a command, and the user that runs it.
pub(crate) fn runs_as_root(user: &str, span: Span) -> Option<Diagnostic> {
    let name = user.split(':').next().unwrap_or_default();
    matches!(name, "" | "0" | "root").then(|| {
        let message = "the image runs its command as root";
        let finding = Rule::LastUserIsRoot.at(span, message);
        finding.help("end with `USER` and an ordinary user")
    })
}

/// A base image of another platform than the one asked for.
pub(crate) fn base_platform(
    image: &str,
    found: &Platform,
    wanted: &Platform,
    span: Span,
) -> Option<Diagnostic> {
    (!found.satisfies(wanted)).then(|| {
        let message =
            format!("the image `{image}` is for `{found}`, but the build is for `{wanted}`");
        Rule::InvalidBaseImagePlatform.at(span, message)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(found: impl IntoIterator<Item = Diagnostic>) -> Vec<Rule> {
        found
            .into_iter()
            .filter_map(|finding| finding.rule)
            .collect()
    }

    #[test]
    fn ports() {
        let check = |text: &str, expect: &[Rule]| {
            assert_eq!(rules(port(text, Span::default())), expect, "{text}");
        };
        check("80", &[]);
        check("80-90/udp", &[]);
        check("80/TcP", &[Rule::ExposeProtoCasing]);
        check("127.0.0.1:80:80/tcp", &[Rule::ExposeInvalidFormat]);
        check(
            "8080:80/TCP",
            &[Rule::ExposeProtoCasing, Rule::ExposeInvalidFormat],
        );
    }

    #[test]
    fn ignored_sources() {
        let check = |path: &str, ignore: &[&str], expect: bool| {
            let ignore: Vec<String> = ignore.iter().map(|&pattern| pattern.to_owned()).collect();
            let found = ignored_source("COPY", path, &ignore, Span::default());
            assert_eq!(found.is_some(), expect, "{path} {ignore:?}");
        };
        check("a", &["a"], true);
        check("./a/b", &["a"], true);
        check("/a", &["a"], true);
        check("a", &["b"], false);
        check("a", &["*", "!a"], false);
        check("a", &["a", "!b"], false);
        check("a*", &["a*"], false);
        check(".", &["*"], true);
        check("/", &["**/*"], true);
        check(".", &["a"], false);
        check("./", &["**"], true);
    }
}
