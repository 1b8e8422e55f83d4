//! Which rules speak: `# check=` at the head of the file, the build argument that replaces it, and comments above single
//! instructions.
//!
//! ```text
//! settings = part [";" part]…      at most one of each
//! part     = "skip=" names | "experimental=" names | "error=" boolean
//! names    = "all" | rule ["," rule]…
//! ```
//!
//! What follows ` // ` is for people.

use std::collections::{BTreeMap, BTreeSet};

use super::Rule;
use crate::dockerfile::ast::PieceKind;
use crate::dockerfile::suggest::nearest;
use crate::dockerfile::{Diagnostic, Dockerfile, Problems, SourceFile, Span};

/// The build argument that replaces the directive.
pub const BUILD_ARG: &str = "BUILDKIT_DOCKERFILE_CHECK";

/// Rules by name, or all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Names {
    all: bool,
    rules: BTreeSet<Rule>,
}

/// Which rules speak in a file, and what becomes of a violation.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Settings {
    skip: Names,
    experimental: Names,
    /// `error=true`: a violation ends the build.
    pub error: bool,
}

impl Settings {
    /// Whether a rule speaks. `skip=all` leaves the experimental rules that are asked for, as BuildKit does.
    pub fn wants(&self, rule: Rule) -> bool {
        if self.skip.rules.contains(&rule) {
            return false;
        }
        match rule.is_experimental() {
            true => self.experimental.all || self.experimental.rules.contains(&rule),
            false => !self.skip.all,
        }
    }

    /// Whether any experimental rule may speak.
    pub(super) fn wants_experimental(&self) -> bool {
        self.experimental != Names::default()
    }

    /// Reads settings; `origin` is where `text` begins in its file. The diagnostics are errors for what cannot be read,
    /// and warnings for rules that there are not.
    pub fn parse(text: &str, origin: usize) -> (Settings, Vec<Diagnostic>) {
        let mut settings = Settings::default();
        let mut problems = Vec::new();
        let mut seen = BTreeSet::new();
        let said = text.split(" // ").next().unwrap_or_default();
        if said.trim().is_empty() {
            return (settings, problems);
        }
        for (span, part) in items(said, origin, ';') {
            let Some((key, value)) = part.split_once('=') else {
                let message = format!("`{part}` is no setting of `check`");
                problems.push(Diagnostic::error(span, message).help(FORM));
                continue;
            };
            let values = (value, span.end - value.len());
            let (key, value) = (key.trim(), value.trim());
            if !seen.insert(key) {
                let message = format!("`{key}` is given twice");
                problems.push(Diagnostic::error(span, message));
                continue;
            }
            let mut unknown = |span: Span, name: &str| {
                let warning = Diagnostic::warning(span, format!("there is no rule `{name}`"));
                let names = Rule::all().map(Rule::name).chain(["all"]);
                let same = Rule::all().find(|rule| rule.name().eq_ignore_ascii_case(name));
                let near = same.map(Rule::name).or_else(|| nearest(name, names));
                problems.push(warning.suggest(near));
            };
            match key {
                "skip" => settings.skip = Names::parse(values, &mut unknown),
                "experimental" => settings.experimental = Names::parse(values, &mut unknown),
                "error" => match boolean(value) {
                    Some(error) => settings.error = error,
                    None => {
                        let message = format!("`error` is `true` or `false`, not `{value}`");
                        problems.push(Diagnostic::error(span, message));
                    }
                },
                _ => {
                    let message = format!("`check` has no setting `{key}`");
                    let near = nearest(key, ["skip", "error", "experimental"]);
                    let problem = Diagnostic::error(span, message);
                    problems.push(match near {
                        Some(_) => problem.suggest(near),
                        None => problem.help(FORM),
                    });
                }
            }
        }
        (settings, problems)
    }
}

/// What is right, for those who wrote something else.
const FORM: &str =
    "`skip=RULE,RULE`, `error=true` and `experimental=RULE,RULE`, with `;` between them";

impl Names {
    fn parse((text, origin): (&str, usize), unknown: &mut impl FnMut(Span, &str)) -> Names {
        let mut names = Names::default();
        for (span, name) in items(text, origin, ',') {
            match Rule::named(name) {
                Some(rule) => drop(names.rules.insert(rule)),
                None if name == "all" => names.all = true,
                None if name.is_empty() => {}
                None => unknown(span, name),
            }
        }
        names
    }
}

/// The parts of a text between separators, without the blanks around them, and where they stand.
fn items(text: &str, origin: usize, separator: char) -> impl Iterator<Item = (Span, &str)> {
    text.split(separator).scan(origin, move |position, part| {
        let blank = part.len() - part.trim_start().len();
        let start = *position + blank;
        *position += part.len() + separator.len_utf8();
        let part = part.trim();
        Some((Span::new(start, start + part.len()), part))
    })
}

/// The words that Go reads as a truth value; BuildKit takes them all.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// The settings of a build, and what is doubtful about them.
///
/// # Errors
/// What cannot be read.
pub(crate) fn of_file(
    dockerfile: &Dockerfile,
    source: &SourceFile,
    build_args: &BTreeMap<String, String>,
) -> Result<(Settings, Problems), Problems> {
    let argument;
    let (source, (settings, problems)) = match build_args.get(BUILD_ARG) {
        Some(text) => {
            argument = SourceFile::new(format!("--build-arg {BUILD_ARG}"), text.as_str());
            (&argument, Settings::parse(text, 0))
        }
        None => {
            let directive = dockerfile
                .directives
                .iter()
                .find(|directive| directive.name == "check");
            let parsed = directive.map(|directive| {
                Settings::parse(&directive.value.text, directive.value.span.start)
            });
            (source, parsed.unwrap_or_default())
        }
    };
    let fatal = problems.iter().any(Diagnostic::is_error);
    let problems = Problems::new(source, problems);
    if fatal {
        Err(problems)
    } else {
        Ok((settings, problems))
    }
}

/// What comments right above instructions skip: by index of the instruction. What cannot be read is a warning: a comment
/// must not end a build.
pub(super) fn inline(
    dockerfile: &Dockerfile,
    source: &SourceFile,
) -> (BTreeMap<usize, Settings>, Vec<Diagnostic>) {
    let mut by_instruction = BTreeMap::new();
    let mut remarks = Vec::new();
    let mut pending: Option<Settings> = None;
    for piece in &dockerfile.pieces {
        match piece.kind {
            PieceKind::Comment => {
                let line = source.slice(piece.span);
                let Some((offset, value)) = comment_setting(line) else {
                    continue;
                };
                let origin = piece.span.start + offset;
                let (settings, problems) = Settings::parse(value, origin);
                for mut problem in problems {
                    problem.severity = crate::dockerfile::Severity::Warning;
                    remarks.push(problem);
                }
                if settings.error || settings.experimental != Names::default() {
                    let message = "a comment above an instruction can only `skip` rules";
                    let span = Span::new(origin, origin + value.len());
                    remarks.push(Diagnostic::warning(span, message));
                }
                let pending = pending.get_or_insert_default();
                pending.skip.all |= settings.skip.all;
                pending.skip.rules.extend(settings.skip.rules);
            }
            PieceKind::Instruction(index) => {
                if let Some(settings) = pending.take() {
                    by_instruction.insert(index, settings);
                }
            }
            PieceKind::Blank | PieceKind::Directive(_) | PieceKind::Unread => pending = None,
        }
    }
    (by_instruction, remarks)
}

/// Where in a line the value of `# check=value` begins, and the value.
fn comment_setting(line: &str) -> Option<(usize, &str)> {
    let (key, value) = line.trim_start().strip_prefix('#')?.split_once('=')?;
    let offset = line.len() - value.trim_start().len();
    let value = value.trim();
    // Words with `=` in them are not rare in comments; these settings always have a second `=`.
    (key.trim().eq_ignore_ascii_case("check") && value.contains('=')).then_some((offset, value))
}

impl Settings {
    /// Whether a comment above its instruction silences a rule.
    pub(super) fn silences(&self, rule: Rule) -> bool {
        self.skip.all || self.skip.rules.contains(&rule)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<String> {
        let (_, problems) = Settings::parse(text, 0);
        let said = |problem: Diagnostic| match problem.help {
            Some(help) => format!("{:?}: {}; {help}", problem.severity, problem.message),
            None => format!("{:?}: {}", problem.severity, problem.message),
        };
        problems.into_iter().map(said).collect()
    }

    #[test]
    fn which_rules_speak() {
        let check = |text: &str, rule: Rule, expect: bool| {
            let (settings, problems) = Settings::parse(text, 0);
            assert_eq!(problems, [], "{text}");
            assert_eq!(settings.wants(rule), expect, "{text} {rule:?}");
        };
        check("", Rule::UndefinedVar, true);
        check("", Rule::SudoInRun, false);
        check(
            "skip=UndefinedVar, StageNameCasing",
            Rule::UndefinedVar,
            false,
        );
        check(
            "skip=UndefinedVar, StageNameCasing",
            Rule::FromAsCasing,
            true,
        );
        check("skip=all", Rule::FromAsCasing, false);
        check("skip=all;experimental=all", Rule::FromAsCasing, false);
        check("skip=all; experimental = all", Rule::SudoInRun, true);
        check("experimental=SudoInRun", Rule::SudoInRun, true);
        check("experimental=SudoInRun", Rule::AptListsKept, false);
        check("experimental=all;skip=SudoInRun", Rule::SudoInRun, false);
        check(
            "skip=UndefinedVar // it comes from the CI",
            Rule::UndefinedVar,
            false,
        );
    }

    #[test]
    fn errors() {
        assert!(Settings::parse("error=true;skip=all", 0).0.error);
        assert!(!Settings::parse("error=F", 0).0.error);
        let check = |text: &str, expect: &[&str]| assert_eq!(said(text), expect, "{text}");
        check(
            "error=yes",
            &["Error: `error` is `true` or `false`, not `yes`"],
        );
        check(
            "skipp=all",
            &["Error: `check` has no setting `skipp`; did you mean `skip`?"],
        );
        check(
            "all",
            &[
                "Error: `all` is no setting of `check`; `skip=RULE,RULE`, `error=true` and `experimental=RULE,RULE`, with `;` between them",
            ],
        );
        check("skip=all;skip=all", &["Error: `skip` is given twice"]);
        check(
            "skip=StageNameCasng",
            &["Warning: there is no rule `StageNameCasng`; did you mean `StageNameCasing`?"],
        );
        check(
            "skip=undefinedvar",
            &["Warning: there is no rule `undefinedvar`; did you mean `UndefinedVar`?"],
        );
    }

    #[test]
    fn comments_above_instructions() {
        let text = "FROM a\n# check=skip=UndefinedVar // later\n# more\nRUN b\n# check=skip=all\n\nRUN c\n# check=error=true\nRUN d\n";
        let source = SourceFile::new("Dockerfile", text);
        let (dockerfile, _) = crate::dockerfile::parse(text);
        let (by_instruction, remarks) = inline(&dockerfile, &source);
        assert_eq!(by_instruction.keys().collect::<Vec<_>>(), [&1, &3]);
        assert!(by_instruction[&1].silences(Rule::UndefinedVar));
        assert!(!by_instruction[&1].silences(Rule::FromAsCasing));
        assert_eq!(remarks.len(), 1);
        assert_eq!(source.slice(remarks[0].span), "error=true");
    }
}
