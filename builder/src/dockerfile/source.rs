//! Source text with positions, and what is said about it.
//!
//! A [`Span`] is a byte range of one [`SourceFile`]; a [`Diagnostic`] points at spans and is shown with the lines that
//! they touch (`render.rs`). Nothing here prints: [`Diagnostic::render`] returns text.

use std::ops::Range;

use crate::checks::Rule;

/// A range of bytes of a source file, on character boundaries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Span {
    /// First byte.
    pub start: usize,
    /// One past the last byte.
    pub end: usize,
}

impl Span {
    /// A span from one offset to another.
    pub fn new(start: usize, end: usize) -> Span {
        Span { start, end }
    }

    /// As a range, for slicing.
    pub fn range(self) -> Range<usize> {
        self.start..self.end
    }

    /// The smallest span that covers both.
    pub fn to(self, other: Span) -> Span {
        Span::new(self.start.min(other.start), self.end.max(other.end))
    }
}

/// A text and its name, with an index of its lines.
#[derive(Clone, Debug)]
pub struct SourceFile {
    name: String,
    text: String,
    line_starts: Vec<usize>,
}

impl SourceFile {
    /// Wraps a text; `name` is what people are shown, usually its path.
    pub fn new(name: impl Into<String>, text: impl Into<String>) -> SourceFile {
        let text = text.into();
        let line_starts = std::iter::once(0)
            .chain(text.match_indices('\n').map(|(at, _)| at + 1))
            .collect();
        SourceFile {
            name: name.into(),
            text,
            line_starts,
        }
    }

    /// What people are shown as its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The whole text.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The text of a span.
    ///
    /// # Panics
    /// If the span is of another file and out of range here.
    pub fn slice(&self, span: Span) -> &str {
        &self.text[span.range()]
    }

    /// The line of an offset, from 1.
    pub fn line(&self, offset: usize) -> usize {
        self.line_starts.partition_point(|&start| start <= offset)
    }

    /// Line and column of an offset, both from 1; the column counts characters.
    pub fn position(&self, offset: usize) -> (usize, usize) {
        let line = self.line(offset);
        let start = self.line_starts[line - 1];
        let before = self.text.get(start..offset).unwrap_or_default();
        (line, before.chars().count() + 1)
    }

    /// A line by its number, from 1, without its end.
    pub(super) fn line_span(&self, line: usize) -> Span {
        let start = self.line_starts[line - 1];
        let end = self.line_starts.get(line).copied();
        let end = end.map_or(self.text.len(), |next| next - 1);
        let kept = self.text[start..end].trim_end_matches('\r').len();
        Span::new(start, start + kept)
    }

    /// The lines that a span touches, from 1; the end is one past the last.
    pub(super) fn lines_of(&self, span: Span) -> Range<usize> {
        let first = self.line(span.start);
        let last = self.line(span.end.max(span.start + 1) - 1);
        first..last.max(first) + 1
    }
}

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    /// The build cannot be done.
    Error,
    /// The build is done, but probably not what was meant.
    Warning,
    /// Worth knowing.
    Note,
}

/// Something else to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Label {
    /// Where.
    pub span: Span,
    /// What about it.
    pub text: String,
}

/// One thing said about a source file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    /// How bad it is.
    pub severity: Severity,
    /// The rule of the build checks that is broken, if it is one.
    pub rule: Option<Rule>,
    /// One sentence: lower case, no full stop, values in backticks.
    pub message: String,
    /// What it is about.
    pub span: Span,
    /// Other places that explain it.
    pub labels: Vec<Label>,
    /// What led to it, outermost first.
    pub notes: Vec<String>,
    /// What would be right.
    pub help: Option<String>,
}

impl Diagnostic {
    /// Something that makes the build impossible.
    pub fn error(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            rule: None,
            message: message.into(),
            span,
            labels: Vec::new(),
            notes: Vec::new(),
            help: None,
        }
    }

    /// Something doubtful.
    pub fn warning(span: Span, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Warning,
            ..Diagnostic::error(span, message)
        }
    }

    /// Adds a place that explains it.
    #[must_use]
    pub fn label(mut self, span: Span, text: impl Into<String>) -> Diagnostic {
        self.labels.push(Label {
            span,
            text: text.into(),
        });
        self
    }

    /// Adds what led to it.
    #[must_use]
    pub fn note(mut self, text: impl Into<String>) -> Diagnostic {
        self.notes.push(text.into());
        self
    }

    /// Adds what would be right.
    #[must_use]
    pub fn help(mut self, text: impl Into<String>) -> Diagnostic {
        self.help = Some(text.into());
        self
    }

    /// Adds “did you mean”, if there is something near.
    #[must_use]
    pub fn suggest(self, suggestion: Option<&str>) -> Diagnostic {
        match suggestion {
            Some(near) => self.help(format!("did you mean `{near}`?")),
            None => self,
        }
    }

    /// Whether it makes the build impossible.
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The message with `file:line`, the lines it is about and carets below them; ends without a newline.
    pub fn render(&self, source: &SourceFile, color: bool) -> String {
        super::render::render(self, source, color)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions() {
        let source = SourceFile::new("x", "a\näb\n");
        assert_eq!(source.position(0), (1, 1));
        assert_eq!(source.position(2), (2, 1));
        assert_eq!(source.position(4), (2, 2));
        assert_eq!(source.position(6), (3, 1));
        assert_eq!(source.line(1), 1);
    }

    #[test]
    fn renders_file_line_and_caret() {
        let source = SourceFile::new("Dockerfile", "FROM scratch\nRUNN x\n");
        let text = Diagnostic::error(Span::new(13, 17), "unknown instruction `RUNN`")
            .suggest(Some("RUN"))
            .render(&source, false);
        expect_test::expect![[r"
            error: unknown instruction `RUNN`
             --> Dockerfile:2:1
              |
            2 | RUNN x
              | ^^^^
              |
              = help: did you mean `RUN`?"]]
        .assert_eq(&text);
    }

    #[test]
    fn renders_at_the_end_of_an_empty_file() {
        let source = SourceFile::new("Dockerfile", "");
        let text = Diagnostic::error(Span::new(0, 0), "the file is empty").render(&source, false);
        assert!(text.contains("Dockerfile:1:1"), "{text}");
    }
}
