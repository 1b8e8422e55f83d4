//! The JSON form of arguments: an array of strings.

use std::ops::Range;

/// What a text that begins with `[` is.
pub(super) enum JsonForm {
    /// An array of strings: each with its range, quotes included.
    Strings(Vec<(String, Range<usize>)>),
    /// An array with something else than strings in it, which is an error.
    NotStrings,
    /// Not JSON: the text is taken as it stands.
    Plain,
}

/// Reads a whole text as a JSON array.
pub(super) fn parse(text: &str) -> JsonForm {
    if !text.starts_with('[') {
        return JsonForm::Plain;
    }
    let Ok(values) = serde_json::from_str::<Vec<serde_json::Value>>(text) else {
        return JsonForm::Plain;
    };
    let mut strings = Vec::with_capacity(values.len());
    let mut position = 0;
    for value in values {
        let serde_json::Value::String(string) = value else {
            return JsonForm::NotStrings;
        };
        let range = next_string(text, position);
        position = range.end;
        strings.push((string, range));
    }
    JsonForm::Strings(strings)
}

/// The range of the next string of a text that is known to be an array of strings.
fn next_string(text: &str, from: usize) -> Range<usize> {
    let start = text[from..].find('"').map_or(text.len(), |at| from + at);
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(start + 1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return start..at + 1,
            _ => {}
        }
    }
    start..text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms() {
        let check = |text: &str, expect: &str| {
            let found = match parse(text) {
                JsonForm::Strings(strings) => strings
                    .iter()
                    .map(|(string, range)| format!("{string}={}", &text[range.clone()]))
                    .collect::<Vec<_>>()
                    .join(" "),
                JsonForm::NotStrings => "not strings".to_owned(),
                JsonForm::Plain => "plain".to_owned(),
            };
            assert_eq!(found, expect, "{text}");
        };
        check(r#"["a","b\"c\u0041"]"#, r#"a="a" b"cA="b\"c\u0041""#);
        check("[]", "");
        check("[ -f x ]", "plain");
        check("['a']", "plain");
        check(r#"["a"]x"#, "plain");
        check(r#"["a",]"#, "plain");
        check(r#"["a\x"]"#, "plain");
        check(r#"["a""#, "plain");
        check(r#"["a",1]"#, "not strings");
        check(r#"[["a"]]"#, "not strings");
    }
}
