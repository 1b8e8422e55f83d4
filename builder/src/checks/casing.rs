//! Rules about upper and lower case.

use super::{Rule, Subject};
use crate::dockerfile::{Diagnostic, Instruction};

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    for (_, instruction, from) in subject.froms() {
        let Some(name) = &from.name else { continue };
        if name.text.chars().any(char::is_uppercase) {
            let message = format!("the name of the stage `{}` is not in lower case", name.text);
            let lower = name.text.to_lowercase();
            found.push(
                Rule::StageNameCasing
                    .at(name.span, message)
                    .help(format!("`{lower}`")),
            );
        }
        found.extend(from_as(subject, instruction));
    }
    instructions(subject, found);
}

/// `FROM … as …`, where both are in one case each: a mixed one is for [`Rule::ConsistentInstructionCasing`].
fn from_as(subject: &Subject<'_>, instruction: &Instruction) -> Option<Diagnostic> {
    let keyword = case_of(&instruction.keyword.text)?;
    let (image, name) = match &instruction.kind {
        crate::dockerfile::InstructionKind::From(from) => (&from.image, from.name.as_ref()?),
        _ => return None,
    };
    // Between the image and the name stands nothing but the word, blanks and continuations.
    let between = &subject.source.text()[image.span.end..name.span.start];
    let is_edge = |char: Option<char>| char.is_none_or(char::is_whitespace);
    let lower = between.to_ascii_lowercase();
    // From behind: a comment between continuation lines may have the word, too.
    let (at, _) = lower.rmatch_indices("as").find(|&(at, _)| {
        is_edge(lower[..at].chars().next_back()) && is_edge(lower[at + 2..].chars().next())
    })?;
    let word = &between[at..at + 2];
    let start = image.span.end + at;
    let span = crate::dockerfile::Span::new(start, start + 2);
    (case_of(word) != Some(keyword)).then(|| {
        let message = format!("`{word}` and `{}` differ in case", instruction.keyword.text);
        Rule::FromAsCasing
            .at(span, message)
            .label(instruction.keyword.span, "as written here")
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Case {
    Lower,
    Upper,
}

/// The case of a word, unless it is mixed.
fn case_of(word: &str) -> Option<Case> {
    let lower = word.bytes().any(|byte| byte.is_ascii_lowercase());
    let upper = word.bytes().any(|byte| byte.is_ascii_uppercase());
    match (lower, upper) {
        (true, false) => Some(Case::Lower),
        (false, true) => Some(Case::Upper),
        _ => None,
    }
}

/// The majority is counted over the whole file; where it is a tie, upper case is.
fn instructions(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    let all = &subject.dockerfile.instructions;
    let count = |case| {
        let has = |instruction: &&Instruction| case_of(&instruction.keyword.text) == Some(case);
        all.iter().filter(has).count()
    };
    let (majority, name) = match count(Case::Lower) > count(Case::Upper) {
        true => (Case::Lower, "lower"),
        false => (Case::Upper, "upper"),
    };
    let globals = subject.dockerfile.globals().iter();
    let froms = subject.froms().map(|(_, instruction, _)| instruction);
    for instruction in globals.chain(froms).chain(subject.bodies()) {
        let word = &instruction.keyword.text;
        if case_of(word) != Some(majority) {
            let right = match majority {
                Case::Lower => word.to_lowercase(),
                Case::Upper => word.to_uppercase(),
            };
            let message = format!("`{word}` is not in {name} case like most instructions here");
            let finding = Rule::ConsistentInstructionCasing.at(instruction.keyword.span, message);
            found.push(finding.help(format!("`{right}`")));
        }
    }
}
