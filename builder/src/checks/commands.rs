//! Rules about instructions that are outdated, or there more than once.

use super::{Rule, Subject};
use crate::dockerfile::ast::KeyValues;
use crate::dockerfile::{Diagnostic, Instruction, InstructionKind};

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    for instruction in subject.bodies() {
        outdated(instruction, found);
        if let InstructionKind::Onbuild(trigger) = &instruction.kind {
            outdated(trigger, found);
        }
    }
    for (stage, _, _) in subject.froms() {
        overruled(subject.body(stage), found);
    }
}

fn outdated(instruction: &Instruction, found: &mut Vec<Diagnostic>) {
    match &instruction.kind {
        InstructionKind::Maintainer(name) => {
            let help = format!(
                "`LABEL org.opencontainers.image.authors=\"{}\"`",
                name.text.trim_matches('"')
            );
            let finding =
                Rule::MaintainerDeprecated.at(instruction.head, "`MAINTAINER` is deprecated");
            found.push(finding.help(help));
        }
        InstructionKind::Env(KeyValues {
            legacy: true,
            pairs,
        })
        | InstructionKind::Label(KeyValues {
            legacy: true,
            pairs,
        }) => {
            let keyword = instruction.keyword.text.to_uppercase();
            let message = format!("`{keyword} key value` is outdated, and takes one pair only");
            let finding = Rule::LegacyKeyValueFormat.at(instruction.head, message);
            found.push(match pairs.first() {
                Some(pair) => finding.help(assignment(&keyword, &pair.key.text, &pair.value.text)),
                None => finding,
            });
        }
        _ => {}
    }
}

/// The pair as it should be written.
fn assignment(keyword: &str, key: &str, value: &str) -> String {
    let quoted = value.starts_with(['"', '\'']);
    let blank = value.contains(char::is_whitespace);
    match blank && !quoted {
        true => format!("`{keyword} {key}=\"{value}\"`"),
        false => format!("`{keyword} {key}={value}`"),
    }
}

type IsKind = fn(&InstructionKind) -> bool;

/// Instructions of which a stage has only the last; the earlier ones are reported, since they are without effect.
fn overruled(body: &[Instruction], found: &mut Vec<Diagnostic>) {
    let kinds: [(&str, IsKind); 3] = [
        ("CMD", |kind| matches!(kind, InstructionKind::Cmd(_))),
        ("ENTRYPOINT", |kind| {
            matches!(kind, InstructionKind::Entrypoint(_))
        }),
        ("HEALTHCHECK", |kind| {
            matches!(kind, InstructionKind::Healthcheck(_))
        }),
    ];
    for (name, is_kind) in kinds {
        let all: Vec<&Instruction> = body.iter().filter(|other| is_kind(&other.kind)).collect();
        for pair in all.windows(2) {
            let message =
                format!("this `{name}` has no effect: only the last one of a stage counts");
            let finding = Rule::MultipleInstructionsDisallowed.at(pair[0].head, message);
            found.push(finding.label(pair[1].keyword.span, "overruled here"));
        }
    }
}
