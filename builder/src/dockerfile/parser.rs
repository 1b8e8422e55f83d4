//! From text to [`Dockerfile`]: what is understood, and a diagnostic for what is not.
//!
//! An instruction that is wrong becomes [`InstructionKind::Invalid`] and parsing goes on with the next one.

mod arguments;
mod json;
pub(crate) mod syntax;

use std::ops::Range;

use super::ast::{
    Command, Directive, Dockerfile, Escape, Flag, Heredoc, Instruction, InstructionKind, Piece,
    PieceKind, Stage, Word,
};
use super::lexer::{self, Lexer, LogicalLine, PhysicalLine};
use super::source::{Diagnostic, Span};
use super::suggest::nearest;
use crate::checks::Rule;

/// The instructions that there are.
pub const KEYWORDS: [&str; 18] = [
    "ADD",
    "ARG",
    "CMD",
    "COPY",
    "ENTRYPOINT",
    "ENV",
    "EXPOSE",
    "FROM",
    "HEALTHCHECK",
    "LABEL",
    "MAINTAINER",
    "ONBUILD",
    "RUN",
    "SHELL",
    "STOPSIGNAL",
    "USER",
    "VOLUME",
    "WORKDIR",
];

/// Instructions that a file may have. An image has room for some hundred layers; this is what fits into memory.
const INSTRUCTIONS_MAX: usize = 100_000;

/// Diagnostics of each severity that are kept: more than anybody reads.
const DIAGNOSTICS_MAX: usize = 1000;

/// Parses a Dockerfile. The diagnostics stand in the order of the text; if one is an error, it cannot be built.
pub fn parse(text: &str) -> (Dockerfile, Vec<Diagnostic>) {
    let mut parser = Parser::new(text);
    parser.head();
    while parser.piece() {}
    parser.lines();
    parser.stages();
    let mut diagnostics = parser.diagnostics;
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    (parser.file, diagnostics)
}

/// Parses one instruction out of a base image's `ONBUILD` triggers; spans are of `text`.
pub fn parse_trigger(text: &str) -> (Option<Instruction>, Vec<Diagnostic>) {
    let mut parser = Parser::new(text);
    while parser.piece() {}
    (
        parser.file.instructions.into_iter().next(),
        parser.diagnostics,
    )
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    text: &'a str,
    file: Dockerfile,
    diagnostics: Vec<Diagnostic>,
    /// How many more errors, warnings and notes are kept.
    room: [usize; 3],
}

impl<'a> Parser<'a> {
    fn new(text: &'a str) -> Parser<'a> {
        let mut file = Dockerfile::default();
        let mark = text.len() - text.trim_start_matches('\u{feff}').len();
        let mark = mark.min('\u{feff}'.len_utf8());
        if mark > 0 {
            file.pieces.push(Piece {
                span: Span::new(0, mark),
                kind: PieceKind::Blank,
            });
        }
        Parser {
            lexer: Lexer::new(text, mark),
            text,
            file,
            diagnostics: Vec::new(),
            room: [DIAGNOSTICS_MAX; 3],
        }
    }

    fn error(&mut self, span: Span, message: impl Into<String>) {
        self.diagnostics.push(Diagnostic::error(span, message));
    }

    fn push_piece(&mut self, start: usize, kind: PieceKind) {
        self.file.pieces.push(Piece {
            span: Span::new(start, self.lexer.position()),
            kind,
        });
    }

    /// Reads the directives: the lines up to the first that is none.
    fn head(&mut self) {
        loop {
            let before = self.lexer.clone();
            let Some(line) = self.lexer.next_line() else {
                return;
            };
            let Some(directive) = directive(self.text, line) else {
                self.lexer = before;
                return;
            };
            self.check_directive(&directive);
            self.push_piece(line.start, PieceKind::Directive(self.file.directives.len()));
            self.file.directives.push(directive);
        }
    }

    fn check_directive(&mut self, directive: &Directive) {
        let Directive { name, value, .. } = directive;
        let mut others = self.file.directives.iter();
        if let Some(first) = others.find(|other| other.name == *name) {
            let message = format!("the directive `{name}` is given twice");
            let problem = Diagnostic::error(directive.span, message);
            self.diagnostics
                .push(problem.label(first.span, "first here"));
        }
        match name.as_str() {
            "escape" => match value.text.as_str() {
                "\\" => self.file.escape = Escape('\\'),
                "`" => self.file.escape = Escape('`'),
                other => {
                    let message = format!("`{other}` cannot be the escape character");
                    self.diagnostics
                        .push(Diagnostic::error(value.span, message).help("it is `\\` or `` ` ``"));
                }
            },
            "syntax" => self.diagnostics.extend(syntax::check(value)),
            _ => {}
        }
    }

    /// Reads blank lines, a comment or an instruction; false at the end.
    fn piece(&mut self) -> bool {
        let Some(line) = self.lexer.next_line() else {
            return false;
        };
        let content = self.lexer.content(line).trim_start();
        if content.is_empty() {
            self.push_piece(line.start, PieceKind::Blank);
        } else if content.starts_with('#') {
            self.push_piece(line.start, PieceKind::Comment);
        } else {
            let logical = self.lexer.logical_line(line, self.file.escape.0);
            if logical.text.trim().is_empty() {
                self.push_piece(line.start, PieceKind::Blank);
                return true;
            }
            if self.file.instructions.len() == INSTRUCTIONS_MAX {
                let message = format!("there are more than {INSTRUCTIONS_MAX} instructions");
                self.error(logical.span, message);
                while self.lexer.next_line().is_some() {}
                self.push_piece(line.start, PieceKind::Unread);
                return false;
            }
            let said = self.diagnostics.len();
            let instruction = self.instruction(&logical);
            self.keep_some(said);
            self.push_piece(
                line.start,
                PieceKind::Instruction(self.file.instructions.len()),
            );
            self.file.instructions.push(instruction);
        }
        true
    }

    /// Drops diagnostics from a position on that nobody would read.
    fn keep_some(&mut self, from: usize) {
        let room = &mut self.room;
        let has_room = |diagnostic: &Diagnostic| {
            let room = &mut room[diagnostic.severity as usize];
            *room = room.saturating_sub(1);
            *room > 0
        };
        let mut new = self.diagnostics.split_off(from);
        new.retain(has_room);
        self.diagnostics.append(&mut new);
    }

    /// Says which lines are too long; it is asked once all are read.
    fn lines(&mut self) {
        let long = self.lexer.long_lines().iter().take(DIAGNOSTICS_MAX);
        let message = format!("a line has more than {} bytes", lexer::LINE_BYTES_MAX);
        let errors = long.map(|&span| {
            Diagnostic::error(span, &*message)
                .help("an instruction may go on in the next line, after a `\\`; long data goes into a file")
        });
        self.diagnostics.extend(errors);
    }

    fn instruction(&mut self, logical: &LogicalLine) -> Instruction {
        if let Some(blank) = logical.blank_line {
            let warning =
                Rule::NoEmptyContinuation.at(blank, "a blank line inside a continued instruction");
            self.diagnostics
                .push(warning.label(logical.span, "the instruction").help(
                "it will become an error: remove the line, or end the line above without an escape",
            ));
        }
        if let Some(at) = logical.text.find('\0') {
            self.error(
                logical.span_of(at..at + 1),
                "a NUL byte cannot be part of an instruction",
            );
        }
        let mut scope = Scope {
            logical,
            escape: self.file.escape.0,
            diagnostics: &mut self.diagnostics,
        };
        let start = logical.text.len() - logical.text.trim_start().len();
        if logical.too_long {
            return scope.unread(start);
        }
        let mut instruction = scope.instruction(start..logical.text.len(), None);
        self.was_it_to_be_continued(&instruction);
        let heredocs = self.heredocs(logical, &instruction);
        let end = match heredocs.last() {
            Some(_) => trim_line_end(self.text, self.lexer.position()),
            None => logical.span.end,
        };
        instruction.span.end = end;
        instruction.heredocs = heredocs;
        if let InstructionKind::Onbuild(trigger) = &mut instruction.kind {
            trigger.span.end = end;
            trigger.heredocs.clone_from(&instruction.heredocs);
        }
        instruction
    }

    /// The commonest cause of an unknown instruction: the line above was to be continued, and has no escape at its end.
    fn was_it_to_be_continued(&mut self, instruction: &Instruction) {
        let keyword = instruction.keyword.text.to_ascii_uppercase();
        if KEYWORDS.contains(&keyword.as_str()) {
            return;
        }
        let above = self.text[..instruction.head.start].trim_end();
        let open = ["&&", "||", "|", ";", ","];
        let continued = open.iter().any(|end| above.ends_with(end))
            || open.iter().any(|start| keyword.starts_with(start))
            || keyword.starts_with('-');
        let escape = self.file.escape.0;
        if let Some(diagnostic) = self.diagnostics.last_mut()
            && diagnostic.span == instruction.keyword.span
            && continued
        {
            let above = above.len() - above.chars().next_back().map_or(0, char::len_utf8);
            let end = Span::new(above, self.text[..instruction.head.start].trim_end().len());
            let place = "this line is not continued";
            *diagnostic = diagnostic.clone().label(end, place).help(format!(
                "if it belongs to the instruction above, end that line with `{escape}`"
            ));
        }
    }

    fn heredocs(&mut self, logical: &LogicalLine, instruction: &Instruction) -> Vec<Heredoc> {
        let kind = match &instruction.kind {
            InstructionKind::Onbuild(trigger) => &trigger.kind,
            kind => kind,
        };
        let command = matches!(
            kind,
            InstructionKind::Run(Command::Shell(_))
                | InstructionKind::Copy(_)
                | InstructionKind::Add(_)
        );
        if !command || !logical.text.contains("<<") {
            return Vec::new();
        }
        let mut heredocs = Vec::new();
        for word in lexer::heredoc_words(&logical.text) {
            let span = logical.span_of(word.range.clone());
            let (body, ended) = self.lexer.heredoc_body(&word.name, word.strip_tabs);
            let text = &self.text[body.range()];
            if let (InstructionKind::Run(_), Some(at)) = (kind, text.find('\0')) {
                let nul = Span::new(body.start + at, body.start + at + 1);
                self.diagnostics.push(Diagnostic::error(
                    nul,
                    "a NUL byte cannot be part of a command",
                ));
            }
            if !ended {
                let message = format!("the here-document `{}` is never ended", word.name);
                self.diagnostics.push(
                    Diagnostic::error(span, message)
                        .help(format!("a line with nothing but `{}` ends it", word.name)),
                );
            }
            heredocs.push(Heredoc {
                fd: word.fd,
                name: word.name,
                expand: word.expand,
                strip_tabs: word.strip_tabs,
                word: span,
                body,
            });
        }
        heredocs
    }

    /// Groups the instructions into stages, and says what is wrong with the file as a whole.
    fn stages(&mut self) {
        let is_from =
            |instruction: &Instruction| instruction.keyword.text.eq_ignore_ascii_case("FROM");
        let instructions = &self.file.instructions;
        let froms: Vec<usize> = (0..instructions.len())
            .filter(|&index| is_from(&instructions[index]))
            .collect();
        let ends = froms.iter().skip(1).copied().chain([instructions.len()]);
        self.file.stages = froms
            .iter()
            .zip(ends)
            .map(|(&from, end)| Stage {
                from,
                body: from + 1..end,
            })
            .collect();
        // Not all of it: a file of two hundred comments need not be seen to be believed.
        let begin = self.text.len() - self.text.trim_start().len();
        let first_line = self.text[begin..].lines().next().unwrap_or_default();
        let everything = Span::new(begin, begin + first_line.trim_end().len());
        if self.text.trim().is_empty() {
            let problem = Diagnostic::error(Span::default(), "the Dockerfile is empty");
            let help = "the least there can be is `FROM` and an image";
            self.diagnostics.push(problem.help(help));
        } else if self.file.instructions.is_empty() {
            self.error(
                everything,
                "the Dockerfile has no instructions, only comments",
            );
        } else if froms.is_empty()
            && self
                .file
                .globals()
                .iter()
                .all(|instruction| matches!(instruction.kind, InstructionKind::Arg(_)))
        {
            self.error(everything, "the Dockerfile has no stage: `FROM` is missing");
        }
        let misplaced: Vec<(Span, String)> = self
            .file
            .globals()
            .iter()
            .filter(|instruction| {
                !matches!(
                    instruction.kind,
                    InstructionKind::Arg(_) | InstructionKind::Invalid
                )
            })
            .map(|instruction| (instruction.head, instruction.keyword.text.to_uppercase()))
            .collect();
        for (span, keyword) in misplaced {
            let message =
                format!("`{keyword}` has no stage to build: it stands before the first `FROM`");
            self.diagnostics
                .push(Diagnostic::error(span, message).help("only `ARG` may stand there"));
        }
    }
}

/// Where the line before `offset` ends, without its line end.
fn trim_line_end(text: &str, offset: usize) -> usize {
    text[..offset].trim_end_matches(['\r', '\n']).len()
}

/// `# name=value`, if the line is a known directive.
fn directive(text: &str, line: PhysicalLine) -> Option<Directive> {
    let content = &text[line.start..line.content_end];
    let (key, value) = content.trim_start().strip_prefix('#')?.split_once('=')?;
    let name = key.trim().to_ascii_lowercase();
    let value = value.trim();
    if !matches!(name.as_str(), "syntax" | "escape" | "check") || value.is_empty() {
        return None;
    }
    let end = line.start + content.trim_end().len();
    Some(Directive {
        name,
        value: Word {
            text: value.to_owned(),
            span: Span::new(end - value.len(), end),
        },
        span: Span::new(line.start, line.content_end),
    })
}

/// A character that separates words where quotes mean nothing; others that look like blanks do not.
fn is_blank(char: char) -> bool {
    matches!(char, ' ' | '\t' | '\u{b}' | '\u{c}' | '\r')
}

/// One logical line and where to report about it.
struct Scope<'a> {
    logical: &'a LogicalLine,
    escape: char,
    diagnostics: &'a mut Vec<Diagnostic>,
}

impl Scope<'_> {
    fn text(&self) -> &str {
        &self.logical.text
    }

    fn word(&self, range: Range<usize>) -> Word {
        Word {
            text: self.text()[range.clone()].to_owned(),
            span: self.logical.span_of(range),
        }
    }

    fn report(&mut self, diagnostic: Diagnostic) -> InstructionKind {
        self.diagnostics.push(diagnostic);
        InstructionKind::Invalid
    }

    fn trim(&self, range: Range<usize>) -> Range<usize> {
        let text = &self.text()[range.clone()];
        let start = range.start + (text.len() - text.trim_start().len());
        start..start + text.trim().len()
    }

    /// Parses the instruction in a range of the line; `inside` is the range of an `ONBUILD` around it.
    fn instruction(&mut self, range: Range<usize>, inside: Option<Span>) -> Instruction {
        let range = self.trim(range);
        let text = &self.text()[range.clone()];
        let length = text.find(is_blank).unwrap_or(text.len());
        let keyword = self.word(range.start..range.start + length);
        let line = text.to_owned();
        let head = self.logical.span_of(range.clone());
        let arguments = self.trim(range.start + length..range.end);
        let (flags, rest) = self.flags(arguments);
        let rest = self.trim(rest);
        let upper = keyword.text.to_ascii_uppercase();
        let kind = self.kind(&upper, &keyword, &flags, rest, inside);
        Instruction {
            span: head,
            head,
            keyword,
            line,
            flags,
            kind,
            heredocs: Vec::new(),
        }
    }

    /// Stands for an instruction that is not read since it is too long.
    fn unread(&self, start: usize) -> Instruction {
        let length = KEYWORDS.iter().map(|keyword| keyword.len()).max();
        let head: String = self.text()[start..]
            .chars()
            .take(length.unwrap_or(0))
            .collect();
        let length = head.find(is_blank).unwrap_or(head.len());
        let span = self.logical.span_of(start..self.text().len());
        Instruction {
            span,
            head: span,
            keyword: self.word(start..start + length),
            line: head,
            flags: Vec::new(),
            kind: InstructionKind::Invalid,
            heredocs: Vec::new(),
        }
    }

    /// Splits leading `--flag` words off; a bare `--` ends them.
    fn flags(&mut self, range: Range<usize>) -> (Vec<Flag>, Range<usize>) {
        let mut flags = Vec::new();
        let mut position = range.start;
        loop {
            let text = &self.text()[position..range.end];
            let start = position + (text.len() - text.trim_start().len());
            if !self.text()[start..range.end].starts_with("--") {
                return (flags, start..range.end);
            }
            let (text, end) = self.flag_word(start..range.end);
            position = end;
            if text == "--" {
                return (flags, position..range.end);
            }
            let (name, value) = match text[2.min(text.len())..].split_once('=') {
                Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
                None => (text[2.min(text.len())..].to_owned(), None),
            };
            flags.push(Flag {
                name,
                value,
                span: self.logical.span_of(start..end),
            });
        }
    }

    /// A word with quotes and escapes removed, and where it ends.
    fn flag_word(&self, range: Range<usize>) -> (String, usize) {
        let mut word = String::new();
        let mut quote = None;
        let mut chars = self.text()[range.clone()].char_indices();
        while let Some((at, char)) = chars.next() {
            match (quote, char) {
                (Some(open), _) if open == char => quote = None,
                (None, '\'' | '"') => quote = Some(char),
                (_, _) if char == self.escape => word.extend(chars.next().map(|(_, next)| next)),
                (None, _) if char.is_whitespace() => return (word, range.start + at),
                _ => word.push(char),
            }
        }
        (word, range.end)
    }

    fn unknown(&mut self, keyword: &Word) -> InstructionKind {
        let message = format!("unknown instruction `{}`", keyword.text);
        let near = nearest(&keyword.text, KEYWORDS);
        self.report(Diagnostic::error(keyword.span, message).suggest(near))
    }
}

#[cfg(test)]
mod tests;
