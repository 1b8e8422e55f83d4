//! Comments that describe a stage or an argument: `# name text`, right above its `FROM` or `ARG`.

use std::collections::BTreeMap;

use super::{Rule, Subject};
use crate::dockerfile::ast::PieceKind;
use crate::dockerfile::{Diagnostic, Dockerfile, Instruction, InstructionKind, SourceFile, Span};

/// What the comment right above an instruction says.
struct Comment {
    /// Without `#`, and without the lines that are settings of checks.
    lines: Vec<String>,
    span: Span,
}

/// The comments right above instructions, by the instruction's index.
pub(crate) struct Comments(BTreeMap<usize, Comment>);

impl Comments {
    pub(crate) fn new(dockerfile: &Dockerfile, source: &SourceFile) -> Comments {
        let mut comments = BTreeMap::new();
        let mut comment: Option<Comment> = None;
        for piece in &dockerfile.pieces {
            match piece.kind {
                PieceKind::Comment => read(source, piece.span, &mut comment),
                PieceKind::Instruction(index) => {
                    comments.extend(comment.take().map(|comment| (index, comment)));
                }
                PieceKind::Blank | PieceKind::Directive(_) | PieceKind::Unread => comment = None,
            }
        }
        Comments(comments)
    }

    /// The description of the stage or argument `name`, if the comment above `instruction` gives one.
    pub(crate) fn description(&self, instruction: usize, name: &str) -> Option<String> {
        let text = self.0.get(&instruction)?.lines.join(" ");
        strip_name(&text, name).map(str::to_owned)
    }
}

/// Adds a line to a comment.
fn read(source: &SourceFile, span: Span, comment: &mut Option<Comment>) {
    let line = source.slice(span).trim_end();
    let text = line.trim_start().trim_start_matches('#').trim();
    let is_setting = text
        .split_once('=')
        .is_some_and(|(key, _)| key.trim().eq_ignore_ascii_case("check"));
    if text.is_empty() || is_setting {
        return;
    }
    let here = Span::new(span.start, span.start + line.len());
    let comment = comment.get_or_insert(Comment {
        lines: Vec::new(),
        span: here,
    });
    comment.lines.push(text.to_owned());
    comment.span = comment.span.to(here);
}

/// `text` out of `name text`.
fn strip_name<'t>(text: &'t str, name: &str) -> Option<&'t str> {
    let (first, rest) = text.split_once(char::is_whitespace)?;
    let rest = rest.trim();
    (first.eq_ignore_ascii_case(name) && !rest.is_empty()).then_some(rest)
}

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    let reachable = |index: usize| {
        let stage = subject
            .dockerfile
            .stages
            .iter()
            .rposition(|stage| stage.from <= index);
        stage.is_none_or(|stage| subject.stages.contains(&stage))
    };
    for (&index, comment) in &Comments::new(subject.dockerfile, subject.source).0 {
        let names = names(&subject.dockerfile.instructions[index]);
        let Some(name) = names.first().filter(|_| reachable(index)) else {
            continue;
        };
        let text = comment.lines.join(" ");
        if names.iter().any(|name| strip_name(&text, name).is_some()) {
            continue;
        }
        let message = format!("the comment above `{name}` does not describe it");
        let finding = Rule::InvalidDefinitionDescription.at(comment.span, message);
        found.push(finding.help(format!(
            "`# {name} text`, or a blank line below the comment"
        )));
    }
}

/// What an instruction defines: a named stage, or arguments.
fn names(instruction: &Instruction) -> Vec<&str> {
    match &instruction.kind {
        InstructionKind::From(from) => from.name.iter().map(|name| name.text.as_str()).collect(),
        InstructionKind::Arg(args) => args.iter().map(|arg| arg.name.text.as_str()).collect(),
        _ => Vec::new(),
    }
}
