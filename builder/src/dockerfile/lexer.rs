//! From text to logical lines: line ends, continuations, comments, here-documents.
//!
//! A logical line is an instruction with its continuation lines joined. It remembers where each part of it came from,
//! so that a range of it becomes a [`Span`] of the file again.

use std::ops::Range;

use super::source::Span;

/// A line as it stands in the file.
#[derive(Clone, Copy, Debug)]
pub(super) struct PhysicalLine {
    pub(super) start: usize,
    /// Where its content ends and its line end begins.
    pub(super) content_end: usize,
}

/// Physical lines, one after the other.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    text: &'a str,
    position: usize,
    /// Lines that were read and are longer than allowed.
    long_lines: Vec<Span>,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str, position: usize) -> Lexer<'a> {
        Lexer {
            text,
            position,
            long_lines: Vec::new(),
        }
    }

    pub(super) fn long_lines(&self) -> &[Span] {
        &self.long_lines
    }

    pub(super) fn position(&self) -> usize {
        self.position
    }

    pub(super) fn next_line(&mut self) -> Option<PhysicalLine> {
        let start = self.position;
        let rest = &self.text[start..];
        if rest.is_empty() {
            return None;
        }
        let length = rest.find('\n').map_or(rest.len(), |newline| newline + 1);
        let content = rest[..length].trim_end_matches(['\r', '\n']);
        self.position = start + length;
        let content_end = start + content.len();
        if rest[..length].trim_end_matches('\n').len() > LINE_BYTES_MAX {
            self.long_lines.push(Span::new(start, content_end));
        }
        Some(PhysicalLine { start, content_end })
    }

    pub(super) fn content(&self, line: PhysicalLine) -> &'a str {
        &self.text[line.start..line.content_end]
    }

    /// Reads the instruction that begins on `first`, with its continuation lines.
    pub(super) fn logical_line(&mut self, first: PhysicalLine, escape: char) -> LogicalLine {
        let content = self.content(first);
        let start = first.start + (content.len() - content.trim_start().len());
        let mut joined = LogicalLine {
            text: String::new(),
            parts: Vec::new(),
            span: Span::new(start, start),
            too_long: false,
            blank_line: None,
        };
        // The first line has been read already.
        let long = self.long_lines.len();
        joined.too_long = self
            .long_lines
            .last()
            .is_some_and(|span| span.start == first.start);
        let mut continued = joined.add(self.text, start, first, escape);
        while continued {
            let Some(line) = self.next_line() else { break };
            let content = self.content(line);
            if content.trim_start().starts_with('#') {
                continue;
            }
            if content.trim().is_empty() {
                let blank = Span::new(line.start, line.content_end);
                joined.blank_line.get_or_insert(blank);
                continue;
            }
            continued = joined.add(self.text, line.start, line, escape);
        }
        joined.too_long |= self.long_lines.len() > long;
        joined
    }

    /// Reads lines up to the one that ends a here-document. The body is returned even if nothing ends it.
    pub(super) fn heredoc_body(&mut self, name: &str, strip_tabs: bool) -> (Span, bool) {
        let start = self.position;
        while let Some(line) = self.next_line() {
            let content = self.content(line);
            let content = if strip_tabs {
                content.trim_start_matches('\t')
            } else {
                content
            };
            if content == name {
                return (Span::new(start, line.start), true);
            }
        }
        (Span::new(start, self.position), false)
    }
}

/// The longest physical line, without its newline; BuildKit's line scanner has the same bound.
pub(super) const LINE_BYTES_MAX: usize = 65_535;

/// An instruction with its continuation lines joined.
#[derive(Clone, Debug)]
pub(super) struct LogicalLine {
    pub(super) text: String,
    /// Offsets where a part of `text` begins, and where that part stands in the file; ascending.
    parts: Vec<(usize, usize)>,
    /// From its first letter to the end of its last line that counts.
    pub(super) span: Span,
    /// One of its lines is longer than allowed, so that it need not be read.
    pub(super) too_long: bool,
    /// The first line with nothing in it between its lines.
    pub(super) blank_line: Option<Span>,
}

impl LogicalLine {
    /// Adds a line from `start` on; true if the next line continues it.
    fn add(&mut self, text: &str, start: usize, line: PhysicalLine, escape: char) -> bool {
        let content = &text[start..line.content_end];
        let (kept, continued) = match continuation(content, escape) {
            Some(kept) => (kept, true),
            None => (content, false),
        };
        if !kept.is_empty() {
            self.parts.push((self.text.len(), start));
            self.text.push_str(kept);
        }
        self.span.end = line.content_end;
        continued
    }

    /// Where a range of the joined text stands in the file.
    pub(super) fn span_of(&self, range: Range<usize>) -> Span {
        let start = self.offset(range.start);
        match range.end.checked_sub(1) {
            Some(last) if range.end > range.start => Span::new(start, self.offset(last) + 1),
            _ => Span::new(start, start),
        }
    }

    fn offset(&self, joined: usize) -> usize {
        let part = self.parts.partition_point(|&(start, _)| start <= joined);
        match self.parts.get(part.wrapping_sub(1)) {
            Some(&(start, origin)) => origin + (joined - start),
            None => self.span.start,
        }
    }
}

/// What stands before the escape character that ends a line, if one does: blanks may follow it, another escape
/// character may not precede it.
fn continuation(content: &str, escape: char) -> Option<&str> {
    let kept = content.trim_end_matches([' ', '\t']).strip_suffix(escape)?;
    (!kept.ends_with(escape)).then_some(kept)
}

/// A here-document's opening in a line: where it stands, and what it says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct HeredocWord {
    pub(super) range: Range<usize>,
    pub(super) fd: u32,
    pub(super) name: String,
    pub(super) expand: bool,
    pub(super) strip_tabs: bool,
}

/// The here-documents that a line opens: each is a shell word `[fd]<<[-]NAME` of its own; blanks may stand before the
/// name. Quoted text, `<<<` and arithmetic (`$((1 << 2))`) open none.
pub(super) fn heredoc_words(line: &str) -> Vec<HeredocWord> {
    let mut found = Vec::new();
    let mut position = 0;
    let last_close = line.rfind("))").unwrap_or(0);
    while let Some(range) = next_shell_word(line, position, last_close) {
        position = range.end;
        let word = &line[range.clone()];
        let Some(opening) = opening_length(word) else {
            continue;
        };
        let mut name = range.start + opening..range.end;
        if name.is_empty() {
            match next_shell_word(line, position, last_close) {
                Some(next) => name = next,
                None => break,
            }
        }
        if line[name.clone()].contains('<') {
            continue;
        }
        let (text, quoted) = unquote(&line[name.clone()]);
        position = name.end;
        if text.is_empty() {
            continue;
        }
        let opening = &line[range.start..range.start + opening];
        let digits = opening.trim_end_matches(['<', '-']);
        found.push(HeredocWord {
            range: range.start..name.end,
            fd: digits.parse().unwrap_or_default(),
            name: text,
            expand: !quoted,
            strip_tabs: opening.ends_with('-'),
        });
    }
    found
}

/// Whether a word of its own opens a here-document.
pub(super) fn is_heredoc_word(word: &str) -> bool {
    heredoc_words(word).len() == 1
}

/// The length of `[fd]<<[-]` at the start of a word.
fn opening_length(word: &str) -> Option<usize> {
    let digits = word.bytes().take_while(u8::is_ascii_digit).count();
    let rest = word[digits..].strip_prefix("<<")?;
    Some(digits + 2 + usize::from(rest.starts_with('-')))
}

/// The next word of a shell line: quotes, escapes and `$((…))` hold blanks together. `last_close` is where the line's
/// last `))` stands.
fn next_shell_word(line: &str, from: usize, last_close: usize) -> Option<Range<usize>> {
    let start = from + line[from..].find(|char: char| !char.is_whitespace())?;
    let mut quote = None;
    let mut chars = line[start..].char_indices();
    while let Some((at, char)) = chars.next() {
        match (quote, char) {
            (Some(open), _) if char == open => quote = None,
            (Some('"') | None, '\\') => {
                chars.next();
            }
            (Some(_), _) => {}
            (None, '\'' | '"') => quote = Some(char),
            (None, '$') if start + at < last_close && line[start + at..].starts_with("$((") => {
                if let Some(length) = line[start + at..].find("))") {
                    let end = start + at + length + 2;
                    while chars.as_str().len() > line.len() - end {
                        chars.next();
                    }
                }
            }
            (None, _) if char.is_whitespace() => return Some(start..start + at),
            (None, _) => {}
        }
    }
    Some(start..line.len())
}

/// Removes quotes and escapes; true if there were any.
fn unquote(word: &str) -> (String, bool) {
    let mut text = String::with_capacity(word.len());
    let mut quoted = false;
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), _) if char == open => quote = None,
            (None, '\'' | '"') => {
                quote = Some(char);
                quoted = true;
            }
            (Some('"') | None, '\\') => {
                quoted = true;
                text.extend(chars.next());
            }
            _ => text.push(char),
        }
    }
    (text, quoted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn continuations() {
        let check = |line: &str, expect: Option<&str>| {
            assert_eq!(continuation(line, '\\'), expect, "{line}");
        };
        check("RUN x \\", Some("RUN x "));
        check("RUN x \\ \t", Some("RUN x "));
        check("RUN x \\\\", None);
        check("\\", Some(""));
        check("RUN x", None);
        assert_eq!(continuation("a `", '`'), Some("a "));
        assert_eq!(continuation("c:\\", '`'), None);
    }

    #[test]
    fn finds_heredocs() {
        let check = |line: &str, expect: &[&str]| {
            let found: Vec<String> = heredoc_words(line)
                .into_iter()
                .map(|word| {
                    format!(
                        "{}{}{}{}@{}",
                        word.fd,
                        if word.strip_tabs { "-" } else { "" },
                        if word.expand { "$" } else { "'" },
                        word.name,
                        &line[word.range]
                    )
                })
                .collect();
            assert_eq!(found, expect, "{line}");
        };
        check("RUN <<EOF", &["0$EOF@<<EOF"]);
        check("RUN cat <<EOF > /etc/x", &["0$EOF@<<EOF"]);
        check("RUN cat <<A && cat <<-B", &["0$A@<<A", "0-$B@<<-B"]);
        check("RUN 3<<IN cat", &["3$IN@3<<IN"]);
        check("RUN <<  EOF", &["0$EOF@<<  EOF"]);
        check("RUN <<- EOF", &["0-$EOF@<<- EOF"]);
        check("RUN <<'one two'", &["0'one two@<<'one two'"]);
        check("RUN <<E\"O\"F", &["0'EOF@<<E\"O\"F"]);
        check("RUN <<E\\OF", &["0'EOF@<<E\\OF"]);
        check("RUN <<$EOF", &["0$$EOF@<<$EOF"]);
        check("RUN echo \"a <<EOF b\"", &[]);
        check("RUN echo $((1<<2))", &[]);
        check("RUN echo $((1 << 4)) done", &[]);
        check("RUN cat <<<here", &[]);
        check("RUN a<<EOF", &[]);
        check("RUN cat <<", &[]);
        check("RUN cat <<''", &[]);
    }
}
