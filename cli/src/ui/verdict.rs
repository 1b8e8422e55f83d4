//! Why a step ran, in words.

use builder::cache::explain::{Ingredient, Reason};
use builder::history::{BuildHistory, StepHistory, Verdict};

use super::human;

/// Longest text that stands on the line of its reason, in characters.
const INLINE_CHARS_MAX: usize = 60;

/// Lines of a long text that are shown.
const LINES_MAX: usize = 12;

/// Lines that progress has room for below a step.
const TELLING_MAX: usize = 3;

/// What is said of a step that ran, and whose files are those of an earlier run.
pub const UNCHANGED: &str = "ran again, same result";

/// One word for how it went with a step, as progress shows it.
pub fn verdict(step: &StepHistory) -> String {
    let took = step.took.map(human::micros);
    let in_time = |word: &str| match &took {
        Some(took) => format!("{word} {took}"),
        None => word.to_owned(),
    };
    match step.verdict {
        Verdict::Cached => "CACHED".to_owned(),
        Verdict::Unneeded => "CACHED, not needed".to_owned(),
        Verdict::Ran => in_time("ran"),
        Verdict::Failed => in_time("failed"),
        Verdict::Unfinished => "unfinished".to_owned(),
        Verdict::Waiting => "not reached".to_owned(),
        Verdict::Nothing => match step.kind.as_str() {
            "merge" => "put together".to_owned(),
            _ => "read in place".to_owned(),
        },
    }
}

/// What a step's processes used, in one line.
pub fn used(step: &StepHistory) -> Option<String> {
    let used = step.used?;
    let mut text = format!(
        "{} of processor, {} of memory",
        human::micros(used.cpu),
        human::size(used.memory)
    );
    for (bytes, what) in [(used.read, "read"), (used.written, "written")] {
        if bytes > 0 {
            text.push_str(&format!(", {} {what}", human::size(bytes)));
        }
    }
    Some(text)
}

/// What a build was of, and how it went, in one line.
pub fn headline(build: &BuildHistory) -> String {
    let (ran, cached) = build.counts();
    let saved = match build.saved().as_micros() {
        0 => String::new(),
        saved => format!(
            ", {} saved",
            human::micros(u64::try_from(saved).unwrap_or(u64::MAX))
        ),
    };
    format!(
        "build {} {}: {ran} ran, {cached} cached{saved}, {}",
        build.id,
        build.status,
        human::micros(build.took)
    )
}

/// Every step with its verdict, and below it why it ran.
pub fn explain<'a>(steps: impl Iterator<Item = &'a StepHistory>) -> String {
    let mut text = String::new();
    for step in steps {
        text.push_str(&format!(
            "#{} {}\n    {}\n",
            step.number,
            step.name,
            verdict(step)
        ));
        for line in reasons(step) {
            text.push_str(&format!("    {line}\n"));
        }
    }
    text
}

/// Why a step ran: one or more lines for each reason.
pub fn reasons(step: &StepHistory) -> Vec<String> {
    if step.kind == "image" && matches!(step.verdict, Verdict::Ran | Verdict::Failed) {
        return vec!["its layers were not here".to_owned()];
    }
    let mut lines: Vec<String> = step.reasons.iter().flat_map(reason).collect();
    if step.unchanged {
        lines.push(UNCHANGED.to_owned());
    }
    lines
}

/// The reasons that tell something, in a few lines: that a step is new needs no words.
pub fn telling(reasons: &[Reason]) -> Vec<String> {
    let telling = reasons
        .iter()
        .filter(|reason| reason.ingredient != Ingredient::NoRecord);
    let mut lines: Vec<String> = telling.flat_map(reason).collect();
    if lines.len() > TELLING_MAX {
        let more = lines.len() - (TELLING_MAX - 1);
        lines.truncate(TELLING_MAX - 1);
        lines.push(format!("… and {more} more: `longshore explain` has them"));
    }
    lines
}

/// One reason, in one or more lines.
pub fn reason(reason: &Reason) -> Vec<String> {
    let name = reason.name.as_deref().unwrap_or_default();
    let old = reason.old.as_deref();
    let new = reason.new.as_deref();
    let changed = |what: String| change(&what, old, new);
    match reason.ingredient {
        Ingredient::File => match (old, new) {
            (None, None) => vec![format!("{name} files differ")],
            (None, Some(_)) => vec![format!("file {name} is new")],
            (Some(_), None) => vec![format!("file {name} is gone")],
            _ => changed(format!("file {name}")),
        },
        Ingredient::Command => changed("command".to_owned()),
        Ingredient::Argument => changed(format!("build argument {name}")),
        Ingredient::Variable => changed(format!("variable {name}")),
        Ingredient::User => changed("user".to_owned()),
        Ingredient::Directory => changed("working directory".to_owned()),
        Ingredient::Action => changed("what it does".to_owned()),
        Ingredient::Secret => vec![format!("secret {name} changed")],
        Ingredient::Options if reason.name.is_some() => changed(name.to_owned()),
        Ingredient::Options => vec!["its mounts, network or other flags changed".to_owned()],
        Ingredient::Remote => changed(format!("what is at {name}")),
        Ingredient::BaseImage => changed(format!("base image {name}")),
        Ingredient::Parent if new == reason.name.as_deref() => {
            changed("it stands on another step".to_owned())
        }
        Ingredient::Parent => vec![format!("the step it stands on has another result: {name}")],
        Ingredient::Source => changed(format!("where it copies {name} from")),
        Ingredient::NoRecord => vec!["no record of it: built for the first time".to_owned()],
        Ingredient::RecordRemoved => {
            vec!["its record was removed: pruned since it was built last".to_owned()]
        }
        Ingredient::LayerMissing => vec![format!("the layer of its record is gone: {name}")],
        Ingredient::FailedBefore => vec![format!("it did not succeed in build {name}")],
        Ingredient::NoCache => vec!["--no-cache".to_owned()],
    }
}

fn change(what: &str, old: Option<&str>, new: Option<&str>) -> Vec<String> {
    let (Some(old), Some(new)) = (old, new) else {
        return match (old, new) {
            (None, Some(new)) => side_by_side(&format!("{what} is new"), &[('+', new)]),
            (Some(old), None) => side_by_side(&format!("{what} is gone"), &[('-', old)]),
            _ => vec![what.to_owned()],
        };
    };
    let is_short = |text: &str| !text.contains('\n') && text.chars().count() <= INLINE_CHARS_MAX;
    if is_short(old) && is_short(new) {
        return vec![format!("{what}: {} → {}", quoted(old), quoted(new))];
    }
    side_by_side(&format!("{what} changed"), &[('-', old), ('+', new)])
}

/// A text that could be mistaken for none is quoted.
fn quoted(text: &str) -> String {
    match text {
        "" => "\"\"".to_owned(),
        text => text.to_owned(),
    }
}

fn side_by_side(what: &str, texts: &[(char, &str)]) -> Vec<String> {
    if let [(_, text)] = texts
        && !text.contains('\n')
        && text.chars().count() <= INLINE_CHARS_MAX
    {
        return vec![format!("{what}: {}", quoted(text))];
    }
    let mut found = vec![what.to_owned()];
    for (mark, text) in texts {
        let count = text.lines().count();
        found.extend(
            text.lines()
                .take(LINES_MAX)
                .map(|line| format!("  {mark} {line}")),
        );
        if count > LINES_MAX {
            found.push(format!("  {mark} … {} more lines", count - LINES_MAX));
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(
        ingredient: Ingredient,
        name: &str,
        old: Option<&str>,
        new: Option<&str>,
        expected: &[&str],
    ) {
        let found = Reason {
            ingredient,
            name: Some(name.to_owned()),
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
        };
        assert_eq!(reason(&found), expected);
    }

    #[test]
    fn reasons_are_sentences() {
        check(
            Ingredient::File,
            "a.rs",
            Some("00"),
            Some("01"),
            &["file a.rs: 00 → 01"],
        );
        check(
            Ingredient::File,
            "a.rs",
            None,
            Some("01"),
            &["file a.rs is new"],
        );
        check(
            Ingredient::File,
            "a.rs",
            Some("00"),
            None,
            &["file a.rs is gone"],
        );
        check(
            Ingredient::File,
            "12 more",
            None,
            None,
            &["12 more files differ"],
        );
        check(
            Ingredient::Argument,
            "V",
            Some("1"),
            Some("2"),
            &["build argument V: 1 → 2"],
        );
        check(
            Ingredient::Variable,
            "V",
            None,
            Some("2"),
            &["variable V is new: 2"],
        );
        check(
            Ingredient::Options,
            "--network",
            Some("default"),
            Some("none"),
            &["--network: default → none"],
        );
        check(
            Ingredient::User,
            "",
            Some(""),
            Some("me"),
            &["user: \"\" → me"],
        );
        check(
            Ingredient::Command,
            "",
            Some("a\nb"),
            Some("a"),
            &["command changed", "  - a", "  - b", "  + a"],
        );
        let long = "x\n".repeat(20);
        let reason = change("command", Some(&long), Some("y"));
        assert_eq!(reason.len(), 1 + LINES_MAX + 1 + 1);
    }
}
