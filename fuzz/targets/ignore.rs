//! Patterns of ignore files and of COPY: the automaton says what a plain, slow matcher says.
#![no_main]

use builder::dockerfile::ignore::{IgnoreMatcher, go_match, read_patterns};

/// Longest pattern and path that the slow matcher sees: it takes time exponential in the stars.
const SLOW_BYTES_MAX: usize = 20;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    // The path, a NUL, the patterns.
    let end = data
        .iter()
        .position(|&byte| byte == 0)
        .unwrap_or(data.len());
    let (path, patterns) = (&data[..end], data.get(end + 1..).unwrap_or_default());
    let text = String::from_utf8_lossy(patterns);
    let patterns = read_patterns(&text);
    if let Ok(matcher) = IgnoreMatcher::new(&patterns) {
        for (at, _) in path.iter().enumerate().filter(|&(_, &byte)| byte == b'/') {
            if matcher.can_skip_dir(&path[..at]) {
                assert!(matcher.matches(path), "skipped, but it is kept");
            }
        }
        let _ = matcher.matches(path);
    }
    if text.len() <= SLOW_BYTES_MAX && path.len() <= SLOW_BYTES_MAX && path.is_ascii() {
        let pattern: Vec<char> = text.chars().collect();
        let name: Vec<char> = path.iter().map(|&byte| char::from(byte)).collect();
        if let Ok(found) = go_match(&text, path) {
            assert_eq!(found, slow(&pattern, &name), "{text:?} on {name:?}");
        }
    }
});

/// Go's `filepath.Match` for a well-formed pattern, by trying everything.
fn slow(pattern: &[char], name: &[char]) -> bool {
    match (pattern, name) {
        ([], name) => name.is_empty(),
        (['*', '*', ..], _) => slow(&pattern[1..], name),
        (['*', rest @ ..], _) => {
            slow(rest, name)
                || matches!(name, [first, after @ ..] if *first != '/' && slow(pattern, after))
        }
        (['?', rest @ ..], [first, after @ ..]) => *first != '/' && slow(rest, after),
        (['[', rest @ ..], [first, after @ ..]) => {
            let (inside, rest) = class(rest, *first);
            inside && slow(rest, after)
        }
        (['\\', wanted, rest @ ..], [first, after @ ..])
        | ([wanted, rest @ ..], [first, after @ ..]) => wanted == first && slow(rest, after),
        _ => false,
    }
}

/// Whether a set after its `[` has a character, and what follows the set.
fn class(mut pattern: &[char], char: char) -> (bool, &[char]) {
    let negated = pattern.first() == Some(&'^');
    pattern = &pattern[usize::from(negated)..];
    let mut inside = false;
    let mut first = true;
    while first || pattern.first() != Some(&']') {
        first = false;
        let low = one(&mut pattern);
        let high = match pattern.first() {
            Some('-') => {
                pattern = &pattern[1..];
                one(&mut pattern)
            }
            _ => low,
        };
        inside |= (low..=high).contains(&char);
    }
    (inside != negated, &pattern[1..])
}

fn one(pattern: &mut &[char]) -> char {
    let taken = if pattern[0] == '\\' { 2 } else { 1 };
    let char = pattern[taken - 1];
    *pattern = &pattern[taken..];
    char
}
