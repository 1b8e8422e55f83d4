//! A diagnostic as people read it: its message, the lines it is about with carets below them, and what would be right.
//!
//! Foreign text never reaches the screen as it is: control characters are shown as pictures or escapes, a long value is
//! shortened in its middle, a long line is cut around what it is about, and of an instruction over many lines the first
//! and last are shown. What that costs depends on what is shown, not on the size of the file.

use std::fmt;
use std::ops::Range;

use annotate_snippets::{Annotation, AnnotationKind, Level, Renderer, Snippet};

use super::source::{Diagnostic, Severity, SourceFile, Span};

/// Diagnostics that are shown of one file; of more, only the number is told.
const SHOWN_MAX: usize = 50;

/// Lines further away from what a diagnostic is about are shown apart from it, or not at all.
const LINES_MAX: usize = 200;

/// Widest line that is shown whole, in characters.
const LINE_CHARS_MAX: usize = 160;

/// Characters kept of a cut line, on both sides of where its caret starts.
const BEFORE_CARET: usize = 40;
const AFTER_CARET: usize = 100;

/// Longest value, in characters, that stands in a message unshortened.
const VALUE_CHARS_MAX: usize = 120;

/// Diagnostics and the file that they are about.
#[derive(Clone, Debug)]
pub struct Problems {
    file: SourceFile,
    list: Vec<Diagnostic>,
}

impl Problems {
    /// What is said about a file, in the order in which it is to be shown.
    pub fn new(file: &SourceFile, list: Vec<Diagnostic>) -> Problems {
        Problems {
            file: file.clone(),
            list,
        }
    }

    /// The file that the diagnostics' spans are of.
    pub fn file(&self) -> &SourceFile {
        &self.file
    }

    /// The diagnostics.
    pub fn list(&self) -> &[Diagnostic] {
        &self.list
    }

    /// What is said here and in none of `others` about the same file; none if nothing is left.
    pub(crate) fn beyond(&self, others: &[Problems]) -> Option<Problems> {
        let is_said = |diagnostic: &&Diagnostic| {
            let mut same = others.iter().filter(|other| {
                other.file.name() == self.file.name() && other.file.text() == self.file.text()
            });
            same.any(|other| other.list.contains(diagnostic))
        };
        let list: Vec<Diagnostic> = self.list.iter().filter(|d| !is_said(d)).cloned().collect();
        (!list.is_empty()).then(|| Problems::new(&self.file, list))
    }

    /// Whether one of them makes the build impossible.
    pub fn has_error(&self) -> bool {
        self.list.iter().any(Diagnostic::is_error)
    }

    /// All of them with the lines they are about, a blank line between each two; ends without a newline.
    pub fn render(&self, color: bool) -> String {
        let shown = self.list.iter().take(SHOWN_MAX);
        let mut texts: Vec<String> = shown
            .map(|problem| problem.render(&self.file, color))
            .collect();
        let rest = self.list.len().saturating_sub(SHOWN_MAX);
        if rest > 0 {
            texts.push(format!("… and {rest} more"));
        }
        texts.join("\n\n")
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// See [`Diagnostic::render`].
pub(super) fn render(diagnostic: &Diagnostic, file: &SourceFile, color: bool) -> String {
    let level = match diagnostic.severity {
        Severity::Error => Level::ERROR,
        Severity::Warning => Level::WARNING,
        Severity::Note => Level::NOTE,
    };
    let primary = file.lines_of(diagnostic.span);
    let near = |span: Span| {
        let lines = file.lines_of(span);
        lines.start + LINES_MAX > primary.start && lines.start < primary.start + LINES_MAX
    };
    let mut marks = vec![Mark {
        kind: AnnotationKind::Primary,
        span: head_of(file, diagnostic.span),
        label: None,
    }];
    for label in diagnostic.labels.iter().filter(|label| near(label.span)) {
        marks.push(Mark::of_label(file, label.span, &label.text));
    }
    let mut excerpts = vec![Excerpt::new(file, &marks)];
    for label in diagnostic.labels.iter().filter(|label| !near(label.span)) {
        let mark = Mark::of_label(file, label.span, &label.text);
        excerpts.push(Excerpt::new(file, &[mark]));
    }
    let title = level.primary_title(shorten(&diagnostic.message));
    let title = match diagnostic.rule {
        Some(rule) => title.id(rule.name()),
        None => title,
    };
    let mut group = title.elements(excerpts.iter().map(|excerpt| excerpt.snippet.clone()));
    for note in &diagnostic.notes {
        group = group.element(Level::NOTE.message(shorten(note)));
    }
    if let Some(help) = &diagnostic.help {
        group = group.element(Level::HELP.message(shorten(help)));
    }
    if let Some(rule) = diagnostic.rule {
        group = group.element(Level::NOTE.message(format!("see {}", rule.page())));
    }
    let renderer = if color {
        Renderer::styled()
    } else {
        Renderer::plain()
    };
    // Lines are cut here, not by the renderer, which would do it without regard to carets.
    let text = renderer.term_width(8 * LINE_CHARS_MAX).render(&[group]);
    let moved = excerpts
        .iter()
        .filter(|excerpt| excerpt.place != excerpt.shown_place);
    let (title, mut rest) = match text.split_once('\n') {
        Some((title, rest)) => (title, rest.to_owned()),
        None => return text,
    };
    for excerpt in moved {
        rest = rest.replacen(&excerpt.shown_place, &excerpt.place, 1);
    }
    format!("{title}\n{rest}")
}

/// What is underlined of a span: all of it, or its first line where it has very many.
fn head_of(file: &SourceFile, span: Span) -> Span {
    let lines = file.lines_of(span);
    if lines.len() <= LINES_MAX {
        return span;
    }
    Span::new(span.start, file.line_span(lines.start).end)
}

/// A place to underline.
struct Mark {
    kind: AnnotationKind,
    span: Span,
    label: Option<String>,
}

impl Mark {
    fn of_label(file: &SourceFile, span: Span, text: &str) -> Mark {
        Mark {
            kind: AnnotationKind::Context,
            span: head_of(file, span),
            label: Some(shorten(text)),
        }
    }
}

/// Some lines of the file and what is underlined on them.
struct Excerpt {
    snippet: Snippet<'static, Annotation<'static>>,
    /// `file:line:column` of the first mark.
    place: String,
    /// The same as the renderer counts it, which does not know what was cut off before it.
    shown_place: String,
}

impl Excerpt {
    /// The lines from the first to the last that a mark touches, long ones cut. There is at least one mark.
    fn new(file: &SourceFile, marks: &[Mark]) -> Excerpt {
        let lines = marks
            .iter()
            .map(|mark| file.lines_of(mark.span))
            .reduce(|all, lines| all.start.min(lines.start)..all.end.max(lines.end))
            .unwrap_or(1..2);
        let spans: Vec<Span> = marks.iter().map(|mark| mark.span).collect();
        let mut text = String::new();
        let mut moved: Vec<Range<usize>> = vec![0..0; marks.len()];
        let mut shown_column = 1;
        for line in lines.clone() {
            let whole = file.line_span(line);
            let cut = Cut::around(file, whole, &spans);
            for (index, span) in spans.iter().enumerate() {
                if (whole.start..=whole.end).contains(&span.start) {
                    let at = cut.place(span.start);
                    moved[index].start = text.len() + at;
                    if index == 0 {
                        shown_column = cut.text[..at].chars().count() + 1;
                    }
                }
                if (whole.start..=whole.end).contains(&span.end) {
                    moved[index].end = text.len() + cut.place(span.end);
                }
            }
            text.push_str(&cut.text);
            text.push('\n');
        }
        text.pop();
        let annotations = marks.iter().zip(moved).map(|(mark, range)| {
            let end = range.end.max(range.start);
            mark.kind.span(range.start..end).label(mark.label.clone())
        });
        let name = visible(file.name());
        let (line, column) = file.position(spans.first().map_or(0, |span| span.start));
        Excerpt {
            snippet: Snippet::source(text)
                .line_start(lines.start)
                .path(name.clone())
                .annotations(annotations.collect::<Vec<_>>()),
            place: format!("{name}:{line}:{column}"),
            shown_place: format!("{name}:{line}:{shown_column}"),
        }
    }
}

/// A line as it is shown: `…` where something was left out, nothing in it that a terminal could take for a command.
struct Cut {
    text: String,
    /// Bytes of the file that are shown.
    kept: Span,
    /// Of each character kept: where it starts in the file, and in `text`.
    places: Vec<(usize, usize)>,
}

impl Cut {
    fn around(file: &SourceFile, line: Span, spans: &[Span]) -> Cut {
        let text = file.slice(line);
        // All that could be shown fits into four bytes for each character.
        let kept = if text.len() > LINE_CHARS_MAX && text.chars().nth(LINE_CHARS_MAX).is_some() {
            let starts = spans.iter().map(|span| span.start);
            let caret = starts
                .filter(|start| (line.start..=line.end).contains(start))
                .min();
            let caret = caret.unwrap_or(line.start) - line.start;
            let (before, after) = text.split_at(caret);
            let from = before.char_indices().rev().take(BEFORE_CARET).last();
            let to = after.char_indices().nth(AFTER_CARET);
            Span::new(
                line.start + from.map_or(caret, |(at, _)| at),
                line.start + to.map_or(text.len(), |(at, _)| caret + at),
            )
        } else {
            line
        };
        let mut cut = Cut {
            text: String::new(),
            kept,
            places: Vec::new(),
        };
        if kept.start > line.start {
            cut.text.push('…');
        }
        for (at, char) in file.slice(kept).char_indices() {
            cut.places.push((kept.start + at, cut.text.len()));
            cut.text.push(safe(char));
        }
        cut.places.push((kept.end, cut.text.len()));
        if kept.end < line.end {
            cut.text.push('…');
        }
        cut
    }

    /// Where an offset of the file is in `text`, or the nearest that is shown.
    fn place(&self, offset: usize) -> usize {
        let offset = offset.clamp(self.kept.start, self.kept.end);
        let index = self.places.partition_point(|&(at, _)| at < offset);
        self.places[index].1
    }
}

/// What is shown for a character of a source line. The renderer has pictures for ASCII's own control characters.
fn safe(char: char) -> char {
    match char {
        '\t' => char,
        '\u{80}'..='\u{9f}' | '\u{2028}' | '\u{2029}' => char::REPLACEMENT_CHARACTER,
        _ => char,
    }
}

/// A text of somebody else's on one line, with control characters escaped.
pub fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for char in text.chars() {
        match char {
            _ if char.is_control() || matches!(char, '\u{2028}' | '\u{2029}') => {
                shown.extend(char.escape_default());
            }
            // What turns the direction of text around: a reader would see another text than there is.
            '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' | '\u{200e}' | '\u{200f}' => {
                shown.extend(char.escape_unicode());
            }
            _ => shown.push(char),
        }
    }
    shown
}

/// A message with each long value in backticks shortened in its middle, and nothing but visible characters.
pub fn shorten(message: &str) -> String {
    let parts = message.split('`').enumerate().map(|(index, part)| {
        // Every second part is a value; what stands between them is ours, or an error's of somebody else.
        let most = if index % 2 == 1 {
            VALUE_CHARS_MAX
        } else {
            5 * VALUE_CHARS_MAX
        };
        let count = part.chars().count();
        if count <= most {
            return visible(part);
        }
        let head: String = part.chars().take(most * 2 / 3).collect();
        let tail: String = part.chars().skip(count - most / 3).collect();
        format!("{}…{}", visible(&head), visible(&tail))
    });
    let shown = parts.collect::<Vec<_>>().join("`");
    match shown.char_indices().nth(16 * VALUE_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &shown[..end]),
        None => shown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The text with the part between `«` and `»` underlined.
    fn shown(marked: &str) -> String {
        let start = marked.find('«').unwrap();
        let text = marked.replacen('«', "", 1);
        let end = text.find('»').unwrap();
        let text = text.replacen('»', "", 1);
        let file = SourceFile::new("Dockerfile", text);
        let problem = Diagnostic::error(Span::new(start, end), "wrong");
        problem.render(&file, false)
    }

    #[test]
    fn tabs_wide_characters_and_line_ends() {
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:2:5
              |
            2 | RUN    x \
              |        ^"#]]
        .assert_eq(&shown("FROM a\r\nRUN\t«x» \\\r\n y\r\n"));
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:11
              |
            1 | LABEL 名前=「値」
              |              ^^"#]]
        .assert_eq(&shown("LABEL 名前=「«値»」"));
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:14
              |
            1 | RUN ␛[31m�2J�x␇
              |              ^"#]]
        .assert_eq(&shown("RUN \u{1b}[31m\u{9b}2J\u{202e}«x»\u{7}"));
    }

    #[test]
    fn long_lines_are_cut_around_the_caret() {
        let words = "word ".repeat(20_000);
        let text = shown(&format!("RUN {words}«here» {words}"));
        assert!(text.len() < 1000, "{text}");
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:100005
              |
            1 | …word word word word word word word word here word word word word word word word word word word word word word word word word word word word …
              |                                          ^^^^"#]].assert_eq(&text);
        let text = shown(&format!("RUN «{words}»"));
        assert!(text.len() < 1000, "{text}");
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:5
              |
            1 | RUN word word word word word word word word word word word word word word word word word word word word …
              |     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^"#]].assert_eq(&text);
    }

    #[test]
    fn of_many_lines_some_are_shown() {
        let lines =
            |count: usize| -> String { (0..count).map(|n| format!(" step{n} && \\\n")).collect() };
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:1
              |
            1 | / RUN x\
            2 | |  step0 && \
            3 | |  step1 && \
            4 | |  step2 && \
            5 | | done
              | |____^"#]]
        .assert_eq(&shown(&format!("«RUN x\\\n{}done»\nUSER x\n", lines(3))));
        expect_test::expect![[r#"
            error: wrong
              --> Dockerfile:1:1
               |
             1 | / RUN x\
             2 | |  step0 && \
             3 | |  step1 && \
             4 | |  step2 && \
            ...  |
            31 | |  step29 && \
            32 | | done
               | |____^"#]]
        .assert_eq(&shown(&format!("«RUN x\\\n{}done»\nUSER x\n", lines(30))));
        expect_test::expect![[r#"
            error: wrong
             --> Dockerfile:1:1
              |
            1 | RUN x\
              | ^^^^^^"#]]
        .assert_eq(&shown(&format!("«RUN x\\\n{}done»\nUSER x\n", lines(3000))));
    }

    #[test]
    fn distant_labels_are_shown_apart() {
        let text = format!("FROM a AS one\n{}FROM b AS one\n", "RUN x\n".repeat(500));
        let file = SourceFile::new("Dockerfile", text.as_str());
        let last = text.rfind("one").unwrap();
        let problem = Diagnostic::error(Span::new(last, last + 3), "`one` is there twice")
            .label(Span::new(10, 13), "first here")
            .note("a note")
            .help("another name");
        expect_test::expect![[r#"
            error: `one` is there twice
               --> Dockerfile:502:11
                |
            502 | FROM b AS one
                |           ^^^
                |
               ::: Dockerfile:1:11
                |
              1 | FROM a AS one
                |           --- first here
                |
                = note: a note
                = help: another name"#]]
        .assert_eq(&problem.render(&file, false));
    }

    #[test]
    fn messages_are_one_visible_line() {
        let check = |text: &str, expect: &str| assert_eq!(shorten(text), expect);
        check("`a` is `b`", "`a` is `b`");
        check("`a\nb\u{1b}` is\u{202e}", "`a\\nb\\u{1b}` is\\u{202e}");
        let long = format!("`{}{}` is long", "x".repeat(500), "y".repeat(500));
        let cut = format!("`{}…{}` is long", "x".repeat(80), "y".repeat(40));
        check(&long, &cut);
        let ticks = "`".repeat(100_000);
        assert!(shorten(&ticks).len() < 2000);
    }

    #[test]
    fn of_many_problems_some_are_shown() {
        let file = SourceFile::new("Dockerfile", "x\n".repeat(1000));
        let problems =
            (0..1000).map(|line| Diagnostic::error(Span::new(2 * line, 2 * line + 1), "no"));
        let text = Problems::new(&file, problems.collect()).render(false);
        assert!(text.ends_with("\n\n… and 950 more"), "{text}");
    }
}
