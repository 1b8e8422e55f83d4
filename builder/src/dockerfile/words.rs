//! Expansion of variables, quotes and escapes in a word, as BuildKit's Dockerfile shell words have them.
//!
//! ```text
//! $name ${name}                      value, or nothing if unset; $1, $@ and the like are always unset
//! ${name:-word} ${name-word}         word if unset (with `:`, or empty)
//! ${name:+word} ${name+word}         word if set (with `:`, and not empty)
//! ${name:?message} ${name?message}   error if unset (with `:`, or empty)
//! ${name#p} ${name##p}               without the shortest (longest) start that matches p
//! ${name%p} ${name%%p}               the same at the end
//! ${name/p/text} ${name//p/text}     first (every) match of p replaced
//! 'text' "text" \c                   literal; escapes only `"`, `$` and itself; literal character
//! ```
//!
//! Patterns know `*`, `?` and backslash escapes. No value is ever expanded a second time.

use std::collections::BTreeSet;

use super::ast::Escape;

/// How deep `${a:-${b:-…}}` may nest: an answer instead of an exhausted stack.
const DEPTH_MAX: usize = 64;

/// Why a word cannot be expanded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum WordError {
    /// A quote has no partner.
    #[error("`{quote}` is never closed")]
    UnclosedQuote {
        /// The quote.
        quote: char,
    },
    /// `${` without `}`.
    #[error("`${{` is never closed by `}}`")]
    UnclosedBrace,
    /// `${}`, `${:…`, `${{`.
    #[error("`${{` must be followed by the name of a variable")]
    BadSubstitution,
    /// Something else than the modifiers above.
    #[error(
        "`{modifier}` in `${{{name}{modifier}…}}` is not one of `:-` `-` `:+` `+` `:?` `?` `#` `##` `%` `%%` `/` `//`"
    )]
    UnknownModifier {
        /// The variable.
        name: String,
        /// What follows it.
        modifier: String,
    },
    /// `${name?message}` with the variable unset, or `:?` with it empty.
    #[error("{name}: {message}")]
    Required {
        /// The variable.
        name: String,
        /// The message given, or that it must be set.
        message: String,
    },
    /// More than 64 `${…}` inside one another.
    #[error("`${{…}}` is nested more than {DEPTH_MAX} deep")]
    TooDeep,
}

/// What a word became.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Expanded {
    /// The text, quotes and escapes removed.
    pub text: String,
    /// The text split at blanks that are neither quoted nor escaped, variables' values included.
    pub words: Vec<String>,
    /// Variables that were used and are not set, without those given a default.
    pub unset: BTreeSet<String>,
}

/// Expands one word; `lookup` returns a variable's value, if it is set.
///
/// # Errors
/// See [`WordError`]; the whole word is refused.
pub fn expand<'w, 'v>(
    word: &'w str,
    escape: Escape,
    lookup: &'w dyn Fn(&str) -> Option<&'v str>,
) -> Result<Expanded, WordError> {
    // Most words have nothing in them to expand.
    let plain = |char: char| !matches!(char, '$' | '\'' | '"') && char != escape.0;
    if word
        .chars()
        .all(|char| plain(char) && !char.is_whitespace())
    {
        return Ok(Expanded {
            text: word.to_owned(),
            words: Vec::from_iter((!word.is_empty()).then(|| word.to_owned())),
            unset: BTreeSet::new(),
        });
    }
    let mut expander = Expander {
        rest: word,
        escape: escape.0,
        quotes: true,
        lookup,
        unset: BTreeSet::new(),
        depth: 0,
    };
    let mut sink = Sink::default();
    expander.run(None, false, &mut sink)?;
    let Sink { text, words, .. } = sink.finish();
    Ok(Expanded {
        text,
        words,
        unset: expander.unset,
    })
}

/// Expands the body of a here-document that becomes a file: quotes mean nothing in it, and whatever the Dockerfile's own
/// escape character is, `\` makes the next character literal and goes away. There are no words.
///
/// # Errors
/// See [`WordError`]; the whole body is refused.
pub fn expand_document<'w, 'v>(
    body: &'w str,
    lookup: &'w dyn Fn(&str) -> Option<&'v str>,
) -> Result<Expanded, WordError> {
    let mut expander = Expander {
        rest: body,
        escape: '\\',
        quotes: false,
        lookup,
        unset: BTreeSet::new(),
        depth: 0,
    };
    let mut sink = Sink::default();
    expander.run(None, false, &mut sink)?;
    Ok(Expanded {
        text: sink.text,
        words: Vec::new(),
        unset: expander.unset,
    })
}

/// The text so far, as a whole and in words.
#[derive(Default)]
struct Sink {
    text: String,
    words: Vec<String>,
    word: String,
    /// The word exists even if it is empty: it was quoted.
    quoted: bool,
}

impl Sink {
    /// A character that separates words if it is blank.
    fn push(&mut self, char: char) {
        if char.is_whitespace() {
            self.end_word();
        } else {
            self.word.push(char);
        }
        self.text.push(char);
    }

    fn push_literal(&mut self, text: &str) {
        self.word.push_str(text);
        self.text.push_str(text);
        self.quoted = true;
    }

    fn end_word(&mut self) {
        if self.quoted || !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
            self.quoted = false;
        }
    }

    fn finish(mut self) -> Sink {
        self.end_word();
        self
    }
}

struct Expander<'w, 'v> {
    rest: &'w str,
    escape: char,
    /// Whether quotes are more than characters.
    quotes: bool,
    lookup: &'w dyn Fn(&str) -> Option<&'v str>,
    unset: BTreeSet<String>,
    depth: usize,
}

impl Expander<'_, '_> {
    fn peek(&self) -> Option<char> {
        self.rest.chars().next()
    }

    fn next(&mut self) -> Option<char> {
        let char = self.peek()?;
        self.rest = &self.rest[char.len_utf8()..];
        Some(char)
    }

    fn next_if(&mut self, wanted: char) -> bool {
        let is = self.peek() == Some(wanted);
        if is {
            self.next();
        }
        is
    }

    /// Expands up to `stop`, which is consumed, or to the end. With `keep_escapes`, escapes stay (for patterns).
    fn run(
        &mut self,
        stop: Option<char>,
        keep_escapes: bool,
        sink: &mut Sink,
    ) -> Result<(), WordError> {
        while let Some(char) = self.next() {
            match char {
                _ if Some(char) == stop => return Ok(()),
                '\'' if self.quotes => self.single_quoted(sink)?,
                '"' if self.quotes => self.double_quoted(keep_escapes, sink)?,
                '$' => {
                    for char in self.dollar()?.chars() {
                        sink.push(char);
                    }
                }
                _ if char == self.escape => {
                    if keep_escapes {
                        sink.push_literal(char.encode_utf8(&mut [0; 4]));
                    }
                    if let Some(escaped) = self.next() {
                        sink.push_literal(escaped.encode_utf8(&mut [0; 4]));
                    }
                }
                _ => sink.push(char),
            }
        }
        match stop {
            Some(_) => Err(WordError::UnclosedBrace),
            None => Ok(()),
        }
    }

    fn single_quoted(&mut self, sink: &mut Sink) -> Result<(), WordError> {
        let Some(end) = self.rest.find('\'') else {
            return Err(WordError::UnclosedQuote { quote: '\'' });
        };
        sink.push_literal(&self.rest[..end]);
        self.rest = &self.rest[end + 1..];
        Ok(())
    }

    fn double_quoted(&mut self, keep_escapes: bool, sink: &mut Sink) -> Result<(), WordError> {
        let mut text = String::new();
        loop {
            match self.next() {
                None => return Err(WordError::UnclosedQuote { quote: '"' }),
                Some('"') => break,
                Some('$') => text.push_str(&self.dollar()?),
                Some(char) if char == self.escape => {
                    let escapes = |next: char| matches!(next, '"' | '$') || next == self.escape;
                    match self.peek() {
                        None => {}
                        Some(next) if escapes(next) => {
                            if keep_escapes {
                                text.push(char);
                            }
                            text.push(next);
                            self.next();
                        }
                        Some(_) => text.push(char),
                    }
                }
                Some(char) => text.push(char),
            }
        }
        sink.push_literal(&text);
        Ok(())
    }

    /// What follows a `$`.
    fn dollar(&mut self) -> Result<String, WordError> {
        if !self.next_if('{') {
            let name = self.name();
            return Ok(match name {
                "" => "$".to_owned(),
                name => self.value_or_unset(name),
            });
        }
        if self.depth == DEPTH_MAX {
            return Err(WordError::TooDeep);
        }
        self.depth += 1;
        let text = self.braced();
        self.depth -= 1;
        text
    }

    /// The inside of `${…}`, up to and with `}`.
    fn braced(&mut self) -> Result<String, WordError> {
        let name = self.name().to_owned();
        if name.is_empty() {
            return Err(match self.peek() {
                None => WordError::UnclosedBrace,
                Some(_) => WordError::BadSubstitution,
            });
        }
        let Some(first) = self.next() else {
            return Err(WordError::UnclosedBrace);
        };
        match first {
            '}' => Ok(self.value_or_unset(&name)),
            '-' | '+' | '?' => self.conditional(&name, first, false),
            ':' => match self.next() {
                Some(modifier @ ('-' | '+' | '?')) => self.conditional(&name, modifier, true),
                None => Err(WordError::UnclosedBrace),
                Some(other) => Err(WordError::UnknownModifier {
                    name,
                    modifier: format!(":{other}"),
                }),
            },
            '#' | '%' => {
                let longest = self.next_if(first);
                let pattern = Pattern::new(&self.operand('}', true)?, self.escape);
                let value = self.value_or_unset(&name);
                Ok(match first {
                    '#' => pattern.without_prefix(&value, longest),
                    _ => pattern.without_suffix(&value, longest),
                })
            }
            '/' => {
                let every = self.next_if('/');
                let pattern = Pattern::new(&self.operand('/', true)?, self.escape);
                let replacement = self.operand('}', false)?;
                let value = self.value_or_unset(&name);
                Ok(pattern.replace(&value, &replacement, every))
            }
            other => Err(WordError::UnknownModifier {
                name,
                modifier: other.to_string(),
            }),
        }
    }

    fn operand(&mut self, stop: char, keep_escapes: bool) -> Result<String, WordError> {
        let mut sink = Sink::default();
        self.run(Some(stop), keep_escapes, &mut sink)?;
        Ok(sink.text)
    }

    fn conditional(
        &mut self,
        name: &str,
        modifier: char,
        empty_is_unset: bool,
    ) -> Result<String, WordError> {
        // What is not used as a default is not missed either.
        let missed = self.unset.clone();
        let word = self.operand('}', false)?;
        let value = (self.lookup)(name);
        let usable = value.filter(|value| !(empty_is_unset && value.is_empty()));
        let (text, uses_word) = match (modifier, usable) {
            ('-', Some(value)) => (value.to_owned(), false),
            ('-', None) => (word, true),
            ('+', Some(_)) => (word, true),
            ('+', None) => (String::new(), false),
            (_, Some(value)) => (value.to_owned(), false),
            (_, None) => {
                let message = match (word.is_empty(), value) {
                    (false, _) => word,
                    (true, None) => "not allowed to be unset".to_owned(),
                    (true, Some(_)) => "not allowed to be empty".to_owned(),
                };
                return Err(WordError::Required {
                    name: name.to_owned(),
                    message,
                });
            }
        };
        if !uses_word {
            self.unset = missed;
        }
        Ok(text)
    }

    fn value_or_unset(&mut self, name: &str) -> String {
        match (self.lookup)(name) {
            Some(value) => value.to_owned(),
            None => {
                self.unset.insert(name.to_owned());
                String::new()
            }
        }
    }
}

impl<'w> Expander<'w, '_> {
    /// A name, all digits of a positional parameter, or one special character; empty if none follows.
    fn name(&mut self) -> &'w str {
        let is_word = |char: char| char.is_alphanumeric() || char == '_';
        let length = match self.peek() {
            Some(first) if first.is_ascii_digit() => self
                .rest
                .find(|char: char| !char.is_ascii_digit())
                .unwrap_or(self.rest.len()),
            Some('@' | '*' | '#' | '?' | '-' | '$' | '!') => 1,
            _ => self
                .rest
                .find(|char| !is_word(char))
                .unwrap_or(self.rest.len()),
        };
        let (name, rest) = self.rest.split_at(length);
        self.rest = rest;
        name
    }
}

/// A pattern of `#`, `%` and `/`.
struct Pattern(Vec<PatternToken>);

#[derive(Clone, Copy)]
enum PatternToken {
    Char(char),
    One,
    Any,
}

impl Pattern {
    fn new(text: &str, escape: char) -> Pattern {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' => PatternToken::Any,
                '?' => PatternToken::One,
                _ if char == escape => PatternToken::Char(chars.next().unwrap_or(char)),
                char => PatternToken::Char(char),
            });
        }
        Pattern(tokens)
    }

    /// How many of `chars` the shortest or longest match takes, from the first one on.
    fn match_length(&self, chars: impl Iterator<Item = char>, longest: bool) -> Option<usize> {
        // states[i]: the first i tokens have matched.
        let mut states = vec![false; self.0.len() + 1];
        states[0] = true;
        self.skip_any(&mut states);
        let mut found = states[self.0.len()].then_some(0);
        for (length, char) in chars.enumerate() {
            if found.is_some() && !longest {
                break;
            }
            let mut next = vec![false; self.0.len() + 1];
            for (index, token) in self.0.iter().enumerate() {
                if !states[index] {
                    continue;
                }
                match token {
                    PatternToken::Char(wanted) if *wanted == char => next[index + 1] = true,
                    PatternToken::One => next[index + 1] = true,
                    PatternToken::Any => next[index] = true,
                    PatternToken::Char(_) => {}
                }
            }
            self.skip_any(&mut next);
            states = next;
            if states[self.0.len()] {
                found = Some(length + 1);
            }
            if !states.contains(&true) {
                break;
            }
        }
        found
    }

    fn skip_any(&self, states: &mut [bool]) {
        for (index, token) in self.0.iter().enumerate() {
            if states[index] && matches!(token, PatternToken::Any) {
                states[index + 1] = true;
            }
        }
    }

    fn without_prefix(&self, value: &str, longest: bool) -> String {
        let cut = self.match_length(value.chars(), longest).unwrap_or(0);
        value.chars().skip(cut).collect()
    }

    fn without_suffix(&self, value: &str, longest: bool) -> String {
        let reversed = Pattern(self.0.iter().rev().copied().collect());
        let cut = reversed
            .match_length(value.chars().rev(), longest)
            .unwrap_or(0);
        value.chars().take(value.chars().count() - cut).collect()
    }

    fn replace(&self, value: &str, replacement: &str, every: bool) -> String {
        let mut result = String::new();
        let mut rest = value;
        while let Some(first) = rest.chars().next() {
            match self.match_length(rest.chars(), true) {
                Some(length) if length > 0 => {
                    result.push_str(replacement);
                    let end = rest.char_indices().nth(length);
                    rest = end.map_or("", |(at, _)| &rest[at..]);
                    if !every {
                        break;
                    }
                }
                _ => {
                    result.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
        }
        result + rest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: [(&str, &str); 9] = [
        ("PWD", "/home"),
        ("SHELL", "bash"),
        ("KOREAN", "한국어"),
        ("NULL", ""),
        ("FILE", "a.b.tar.gz"),
        ("PATHS", "/x/y/z"),
        ("TWO", "one  two"),
        ("STAR", "a*b"),
        ("V", "x"),
    ];

    fn lookup(name: &str) -> Option<&'static str> {
        let found = VARIABLES.iter().find(|(known, _)| *known == name);
        found.map(|&(_, value)| value)
    }

    fn text(word: &str) -> String {
        match expand(word, Escape::default(), &lookup) {
            Ok(expanded) => expanded.text,
            Err(error) => format!("error: {error}"),
        }
    }

    #[test]
    fn expansion_table() {
        let check = |word: &str, expect: &str| assert_eq!(text(word), expect, "{word}");
        check("hello", "hello");
        check("he'll'o", "hello");
        check(r"he'll\'o", r"hell\o");
        check("\\'", "'");
        check("\\\"", "\"");
        check("\\", "");
        check("a\\", "a");
        check("'a\\b'", "a\\b");
        check("\"a\\b\"", "a\\b");
        check("\"a\\\\b\"", "a\\b");
        check("\"a\\\"b\"", "a\"b");
        check("\"\\$PWD\"", "$PWD");
        check("'$PWD'", "$PWD");
        check("\"$PWD\"", "/home");
        check("$PWD", "/home");
        check("${PWD}x", "/homex");
        check("$PWDx", "");
        check("a$", "a$");
        check("$", "$");
        check("$%", "$%");
        check("\\$PWD", "$PWD");
        check("$KOREAN", "한국어");
        check("$1", "");
        check("$999x", "x");
        check("$@x", "x");
        check("$$x", "x");
        check("${1}", "");
        check("한글", "한글");
        check("''", "");
        check("\"\"", "");
    }

    #[test]
    fn conditions() {
        let check = |word: &str, expect: &str| assert_eq!(text(word), expect, "{word}");
        check("${UNSET:-d}", "d");
        check("${UNSET-d}", "d");
        check("${NULL:-d}", "d");
        check("${NULL-d}", "");
        check("${PWD:-d}", "/home");
        check("${UNSET:+d}", "");
        check("${NULL:+d}", "");
        check("${NULL+d}", "d");
        check("${PWD:+d}", "d");
        check("${UNSET:-$PWD}", "/home");
        check("${UNSET:-${NULL:-${SHELL}}}", "bash");
        check("${UNSET:-'a b'}", "a b");
        check("${UNSET:-\"$PWD\"}", "/home");
        check("${UNSET:-\\}}", "}");
        check("${UNSET:-}", "");
        check("${PWD:?x}", "/home");
        check("${UNSET:?must be set}", "error: UNSET: must be set");
        check("${UNSET?}", "error: UNSET: not allowed to be unset");
        check("${NULL:?}", "error: NULL: not allowed to be empty");
        check("${NULL?}", "");
    }

    #[test]
    fn patterns() {
        let check = |word: &str, expect: &str| assert_eq!(text(word), expect, "{word}");
        check("${FILE#*.}", "b.tar.gz");
        check("${FILE##*.}", "gz");
        check("${FILE%.*}", "a.b.tar");
        check("${FILE%%.*}", "a");
        check("${FILE#?.}", "b.tar.gz");
        check("${FILE#x}", "a.b.tar.gz");
        check("${FILE##*}", "");
        check("${FILE#*}", "a.b.tar.gz");
        check("${PATHS##*/}", "z");
        check("${PATHS%/*}", "/x/y");
        check("${STAR#a\\*}", "b");
        check("${STAR%\\*b}", "a");
        check("${KOREAN%?}", "한국");
        check("${FILE/./-}", "a-b.tar.gz");
        check("${FILE//./-}", "a-b-tar-gz");
        check("${FILE//.}", "error: `${` is never closed by `}`");
        check("${FILE//a*z/x}", "x");
        check("${PATHS//\\//-}", "-x-y-z");
        check("${PATHS/\\/x/}", "/y/z");
        check("${FILE//./$PWD}", "a/homeb/hometar/homegz");
        check("${UNSET#x}", "");
        check("${V//x/\\}}", "}");
        check("${FILE//\\?/x}", "a.b.tar.gz");
    }

    #[test]
    fn refuses() {
        let check = |word: &str, expect: &str| assert_eq!(text(word), format!("error: {expect}"));
        check("'a", "`'` is never closed");
        check("\"a", "`\"` is never closed");
        check("${", "`${` is never closed by `}`");
        check("${a", "`${` is never closed by `}`");
        check("${a:-b", "`${` is never closed by `}`");
        check("${}", "`${` must be followed by the name of a variable");
        check("${:x}", "`${` must be followed by the name of a variable");
        check("${{x}}", "`${` must be followed by the name of a variable");
        let modifiers = "is not one of `:-` `-` `:+` `+` `:?` `?` `#` `##` `%` `%%` `/` `//`";
        check("${a:=b}", &format!("`:=` in `${{a:=…}}` {modifiers}"));
        check("${a:#b}", &format!("`:#` in `${{a:#…}}` {modifiers}"));
        check("${a b}", &format!("` ` in `${{a …}}` {modifiers}"));
        let deep = "${a:-".repeat(1000) + &"}".repeat(1000);
        check(&deep, "`${…}` is nested more than 64 deep");
    }

    #[test]
    fn splits_words() {
        let check = |word: &str, expect: &[&str]| {
            let expanded = expand(word, Escape::default(), &lookup).unwrap();
            assert_eq!(expanded.words, expect, "{word}");
        };
        check("a b", &["a", "b"]);
        check("'a b' c", &["a b", "c"]);
        check("\"a b\"c d", &["a bc", "d"]);
        check("a\\ b", &["a b"]);
        check("$TWO", &["one", "two"]);
        check("x$TWO", &["xone", "two"]);
        check("\"$TWO\"", &["one  two"]);
        check("'' a", &["", "a"]);
        check("$UNSET", &[]);
        check("", &[]);
        check("80", &["80"]);
    }

    #[test]
    fn tells_what_is_unset() {
        let check = |word: &str, expect: &[&str]| {
            let expanded = expand(word, Escape::default(), &lookup).unwrap();
            assert_eq!(Vec::from_iter(expanded.unset), expect, "{word}");
        };
        check("$A$PWD${B}", &["A", "B"]);
        check("${A:-x}", &[]);
        check("${A:-$B}", &["B"]);
        check("${PWD:-$B}", &[]);
        check("${A#x}", &["A"]);
    }

    #[test]
    fn the_escape_character_is_chosen() {
        let check = |word: &str, expect: &str| {
            let expanded = expand(word, Escape('`'), &lookup).unwrap();
            assert_eq!(expanded.text, expect, "{word}");
        };
        check("C:\\x\\", "C:\\x\\");
        check("a`$PWD", "a$PWD");
        check("\"`\"\"", "\"");
    }

    /// Every word of some pieces that mean something, up to a length: none panics, in either escape.
    #[test]
    fn odd_words_do_not_panic() {
        const PIECES: [&str; 14] = [
            "$", "{", "}", "V", ":", "-", "#", "%", "/", "'", "\"", "\\", "*", "ä",
        ];
        let mut state: u64 = 1;
        for _ in 0..20_000 {
            let mut word = String::from("${V");
            for _ in 0..8 {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let index = usize::try_from(state >> 33).unwrap() % PIECES.len();
                word.push_str(PIECES[index]);
            }
            for escape in [Escape('\\'), Escape('`')] {
                if let Ok(expanded) = expand(&word, escape, &lookup) {
                    // The words are the text without the blanks between them.
                    assert!(
                        expanded.words.concat().len() <= expanded.text.len(),
                        "{word}"
                    );
                }
            }
        }
    }
}
