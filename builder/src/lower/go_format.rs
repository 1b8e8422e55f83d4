//! Values in the form that Go's `fmt` gives them: the history of an image is written that way.

/// A list of strings, each in quotes: `["a" "b"]` (`%q`).
pub(super) fn quoted_list(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    format!("[{}]", quoted.join(" "))
}

fn quoted(text: &str) -> String {
    let mut result = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => result.push_str("\\\""),
            char => push_escaped(&mut result, char),
        }
    }
    result + "\""
}

/// A number as the character of that number: `'\x03'` (`%q`).
pub(super) fn quoted_char(number: u32) -> String {
    let mut result = String::from("'");
    match char::from_u32(number).unwrap_or(char::REPLACEMENT_CHARACTER) {
        '\'' => result.push_str("\\'"),
        char => push_escaped(&mut result, char),
    }
    result + "'"
}

fn push_escaped(result: &mut String, char: char) {
    let short = match char {
        '\\' => Some("\\\\"),
        '\u{7}' => Some("\\a"),
        '\u{8}' => Some("\\b"),
        '\u{c}' => Some("\\f"),
        '\n' => Some("\\n"),
        '\r' => Some("\\r"),
        '\t' => Some("\\t"),
        '\u{b}' => Some("\\v"),
        _ => None,
    };
    let code = u32::from(char);
    match short {
        Some(short) => result.push_str(short),
        None if code < 0x20 || code == 0x7f => result.push_str(&format!("\\x{code:02x}")),
        None if !is_printable(char) && code < 0x1_0000 => {
            result.push_str(&format!("\\u{code:04x}"));
        }
        None if !is_printable(char) => result.push_str(&format!("\\U{code:08x}")),
        None => result.push(char),
    }
}

/// Letters, marks, digits, punctuation, symbols and the ASCII blank; of the others, those that occur in text.
fn is_printable(char: char) -> bool {
    char == ' '
        || !(char.is_control()
            || char.is_whitespace()
            || matches!(char, '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{e000}'..='\u{f8ff}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}'))
}

/// A duration of nanoseconds: `1m30s`, `500ms`, `0s` (`%s`).
pub(super) fn duration(nanoseconds: u64) -> String {
    const SECOND: u64 = 1_000_000_000;
    if nanoseconds == 0 {
        return "0s".to_owned();
    }
    if nanoseconds < SECOND {
        let (unit, name) = match nanoseconds {
            1_000_000.. => (1_000_000, "ms"),
            1_000.. => (1_000, "µs"),
            _ => (1, "ns"),
        };
        return format!("{}{name}", decimal(nanoseconds, unit));
    }
    let (minutes, rest) = (nanoseconds / (60 * SECOND), nanoseconds % (60 * SECOND));
    let seconds = decimal(rest, SECOND);
    match (minutes / 60, minutes % 60) {
        (0, 0) => format!("{seconds}s"),
        (0, minutes) => format!("{minutes}m{seconds}s"),
        (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// A fraction of a power of ten, without zeros at its end.
fn decimal(value: u64, unit: u64) -> String {
    let whole = value / unit;
    let fraction = value % unit;
    if fraction == 0 {
        return whole.to_string();
    }
    let width = unit.ilog10() as usize;
    let digits = format!("{fraction:0width$}");
    format!("{whole}.{}", digits.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes() {
        let check = |text: &str, expect: &str| assert_eq!(quoted(text), expect);
        check("a b", "\"a b\"");
        check("a\"b\\c\n\t", r#""a\"b\\c\n\t""#);
        check("\u{1}\u{7f}é한", "\"\\x01\\x7fé한\"");
        check("\u{a0}\u{feff}", "\"\\u00a0\\ufeff\"");
        assert_eq!(quoted_char(3), "'\\x03'");
        assert_eq!(quoted_char(10), "'\\n'");
        assert_eq!(quoted_char(50), "'2'");
        assert_eq!(quoted_list(&[]), "[]");
    }

    #[test]
    fn durations() {
        let check = |nanoseconds: u64, expect: &str| assert_eq!(duration(nanoseconds), expect);
        check(0, "0s");
        check(30_000_000_000, "30s");
        check(90_000_000_000, "1m30s");
        check(3_600_000_000_000, "1h0m0s");
        check(500_000_000, "500ms");
        check(1_500_000_000, "1.5s");
        check(1_500_000, "1.5ms");
        check(1_500, "1.5µs");
        check(15, "15ns");
    }
}
