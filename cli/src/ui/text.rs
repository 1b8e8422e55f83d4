//! Foreign text on a terminal: how wide it is, cut to fit, and without what would move the cursor.

use unicode_width::UnicodeWidthChar;

/// Columns between the stops of a tab.
const TAB_COLUMNS: usize = 8;

/// Makes an emoji of the character before it, which many terminals then draw in two columns.
const EMOJI_SELECTOR: char = '\u{fe0f}';

/// Columns that a text takes, at most: what terminals disagree about is counted in full.
pub fn width(text: &str) -> usize {
    text.chars().map(char_width).sum()
}

fn char_width(c: char) -> usize {
    match c {
        EMOJI_SELECTOR => 1,
        c => c.width().unwrap_or(0),
    }
}

/// As much of a text as fits in `columns`; where something is left out, `…` ends it.
pub fn clip(text: &str, columns: usize) -> String {
    if width(text) <= columns {
        return text.to_owned();
    }
    let room = columns.saturating_sub(1);
    let mut used = 0;
    let mut clipped = String::new();
    for c in text.chars() {
        used += char_width(c);
        if used > room {
            break;
        }
        clipped.push(c);
    }
    if columns > 0 {
        clipped.push('…');
    }
    clipped
}

/// Cuts `left` and pads it so that the line ends with `right` in the last column but one: some terminals wrap when the last
/// is written. Where there is no room for both, `right` goes.
pub fn fit(left: &str, right: &str, columns: usize) -> String {
    /// What is left of `left` at least, beside a `right`.
    const LEFT_MIN: usize = 12;
    let columns = columns.saturating_sub(1);
    let taken = width(right) + 1;
    if right.is_empty() || columns < taken + LEFT_MIN {
        return clip(left, columns);
    }
    let mut line = clip(left, columns - taken);
    let missing = columns - width(&line) - width(right);
    line.extend(std::iter::repeat_n(' ', missing));
    line.push_str(right);
    line
}

/// What a terminal would show of a line: neither escape sequences nor control characters, tabs as spaces, and of what was
/// written over itself the last. With `colours`, those stay and are ended.
pub fn printable(line: &[u8], colours: bool) -> String {
    let text = String::from_utf8_lossy(line);
    let text = text.trim_end_matches('\r');
    let visible = text.rsplit('\r').next().unwrap_or_default();
    let mut clean = String::with_capacity(visible.len());
    let mut column = 0;
    let mut coloured = false;
    let mut rest = visible.chars();
    while let Some(c) = rest.next() {
        match c {
            '\x1b' => {
                let (sequence, after) = escape_sequence(rest.as_str());
                rest = after.chars();
                if colours && is_colour(sequence) {
                    coloured = true;
                    clean.push('\x1b');
                    clean.push_str(sequence);
                }
            }
            '\t' => {
                let stop = (column / TAB_COLUMNS + 1) * TAB_COLUMNS;
                clean.extend(std::iter::repeat_n(' ', stop - column));
                column = stop;
            }
            c if is_dangerous(c) => {}
            c => {
                clean.push(c);
                column += char_width(c);
            }
        }
    }
    if coloured {
        clean.push_str("\x1b[0m");
    }
    clean
}

/// A name on one line, without control characters.
pub fn one_line(text: &str) -> String {
    let clean = text.chars().map(|c| match c {
        c if c.is_whitespace() || is_dangerous(c) => ' ',
        c => c,
    });
    clean.collect()
}

/// Control characters, and those that turn around the direction of what follows.
fn is_dangerous(c: char) -> bool {
    c.is_control() || matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Takes apart what follows an escape character: the rest of its sequence, and the text behind it.
fn escape_sequence(text: &str) -> (&str, &str) {
    let end = match text.chars().next() {
        // A control sequence ends with a byte from `@` to `~`.
        Some('[') => text[1..]
            .find(|c: char| !(' '..='?').contains(&c))
            .map(|at| at + 1)
            .map(|at| at + text[at..].chars().next().map_or(0, char::len_utf8)),
        // A string (a title, a link, a picture) ends with a bell or with `ESC \`.
        Some(']' | 'P' | '^' | '_' | 'X') => {
            let bell = text.find('\x07').map(|at| at + 1);
            let escape = text.find("\x1b\\").map(|at| at + 2);
            bell.into_iter().chain(escape).min()
        }
        // Anything else: some bytes from space to `/`, and one more.
        Some(_) => text
            .find(|c: char| !(' '..='/').contains(&c))
            .map(|at| at + text[at..].chars().next().map_or(0, char::len_utf8)),
        None => None,
    };
    text.split_at(end.unwrap_or(text.len()))
}

/// Whether a sequence only sets colours and the like: `[`, numbers, `m`.
fn is_colour(sequence: &str) -> bool {
    let numbers = sequence
        .strip_prefix('[')
        .and_then(|rest| rest.strip_suffix('m'));
    numbers.is_some_and(|numbers| {
        numbers
            .bytes()
            .all(|b| b.is_ascii_digit() || b == b';' || b == b':')
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_cannot_move_the_cursor() {
        let check = |line: &[u8], expect: &str| assert_eq!(printable(line, false), expect);
        check(b"50%\r100%", "100%");
        check(b"done\r", "done");
        check(b"\x1b[2J\x1b[1;31mred\x07\x1b[0m\tx", "red     x");
        check(b"\x1b", "");
        check(b"\x1b[", "");
        check(b"\x1b[12;", "");
        check(b"a\x1b[31\xffb", "ab");
        check(b"\x1b]0;a title\x07text", "text");
        check(b"\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link");
        check(b"\x1bPq#0\x1b\\after", "after");
        check(b"\x1b(Bplain\x1bc", "plain");
        check(b"\x1b]never ends", "");
        check("\u{9b}2Jc1".as_bytes(), "2Jc1");
        check("a\u{202e}b".as_bytes(), "ab");
        check(b"a\xff\xfeb", "a\u{fffd}\u{fffd}b");
        check(b"ab\tc", "ab      c");
        check("\x1b日本".as_bytes(), "本");
    }

    #[test]
    fn colours_stay_where_they_are_wanted() {
        let line = b"\x1b[1;31merror\x1b[K\x1b[2A";
        assert_eq!(printable(line, true), "\x1b[1;31merror\x1b[0m");
        assert_eq!(printable(b"none", true), "none");
        assert_eq!(printable(b"\x1b[?25m", true), "");
    }

    #[test]
    fn lines_fit() {
        let check = |left: &str, right: &str, columns, expect: &str| {
            let line = fit(left, right, columns);
            assert_eq!(line, expect);
            assert!(width(&line) < columns.max(1), "{line}");
        };
        check("left", "1.0s", 30, "left                     1.0s");
        check(
            "a name that is too long",
            "1.0s",
            24,
            "a name that is to… 1.0s",
        );
        check("narrow", "1.0s", 12, "narrow");
        check("日本語日本語", "", 8, "日本語…");
        check("x", "", 1, "");
        check("x", "y", 0, "");
    }

    #[test]
    fn widths_are_never_too_small() {
        assert_eq!(width("abc"), 3);
        assert_eq!(width("日本"), 4);
        assert_eq!(width("e\u{301}"), 1);
        assert_eq!(width("👍"), 2);
        assert_eq!(width("❤\u{fe0f}"), 2);
    }
}
