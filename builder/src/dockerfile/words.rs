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
//! Patterns know `*`, `?` (neither matches the end of a line) and the escapes `\*`, `\?`, `\\`, `\/` and `\}`, with a
//! backslash whatever the Dockerfile's escape character is. No value is ever expanded a second time.

use std::collections::BTreeSet;

use super::ast::Escape;

/// How deep `${a:-${b:-…}}` may nest: an answer instead of an exhausted stack.
const DEPTH_MAX: usize = 64;

/// What expanding one word may cost, in the unit of [`Expanded::cost`]: variables that double one another, and patterns
/// over long values, get an answer as well.
const COST_MAX: usize = 1 << 27;

/// What a byte of a variable's value costs. With [`COST_MAX`], 16 MiB of text.
const BYTE_COST: usize = 8;

/// What a step of a pattern costs.
const STEP_COST: usize = 16;

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
    /// A pattern with a backslash before a character that needs none.
    #[error("`\\{escaped}` in a pattern is none of `\\*` `\\?` `\\\\` `\\/` `\\}}`")]
    PatternEscape {
        /// What follows the backslash; empty at the pattern's end.
        escaped: String,
    },
    /// The text or the work became too large.
    #[error("it becomes too long, or its patterns take too long to match")]
    TooLarge,
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
    /// What it took: sixteen for each step of a pattern, and eight for each byte of a variable's value.
    pub cost: usize,
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
            ..Expanded::default()
        });
    }
    let mut expander = Expander {
        rest: word,
        escape: escape.0,
        quotes: true,
        lookup,
        unset: Vec::new(),
        depth: 0,
        cost: 0,
    };
    let mut sink = Sink::default();
    expander.run(None, false, &mut sink)?;
    let Sink { text, words, .. } = sink.finish();
    Ok(Expanded {
        text,
        words,
        unset: expander.unset.into_iter().collect(),
        cost: expander.cost,
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
        unset: Vec::new(),
        depth: 0,
        cost: 0,
    };
    let mut sink = Sink::default();
    expander.run(None, false, &mut sink)?;
    Ok(Expanded {
        text: sink.text,
        words: Vec::new(),
        unset: expander.unset.into_iter().collect(),
        cost: expander.cost,
    })
}

/// The text so far, as a whole and in words.
#[derive(Default)]
struct Sink {
    text: String,
    words: Vec<String>,
    word: String,
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
    }

    /// Words of nothing but quotes do not count.
    fn end_word(&mut self) {
        if !self.word.is_empty() {
            self.words.push(std::mem::take(&mut self.word));
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
    /// In the order of use; what is not used after all is cut off again.
    unset: Vec<String>,
    depth: usize,
    cost: usize,
}

impl Expander<'_, '_> {
    fn spend(&mut self, cost: usize) -> Result<(), WordError> {
        self.cost = self.cost.saturating_add(cost);
        match self.cost {
            ..=COST_MAX => Ok(()),
            _ => Err(WordError::TooLarge),
        }
    }

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
                        Some(_) => {
                            if keep_escapes {
                                text.push(char);
                            }
                            text.push(char);
                        }
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
                name => self.value_or_unset(name)?,
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
            '}' => self.value_or_unset(&name),
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
                let pattern = Pattern::new(&self.operand('}', true)?)?;
                let value = self.value_or_unset(&name)?;
                self.spend(pattern.cost(&value))?;
                Ok(match first {
                    '#' => pattern.without_prefix(&value, longest),
                    _ => pattern.without_suffix(&value, longest),
                })
            }
            '/' => {
                let every = self.next_if('/');
                let pattern = Pattern::new(&self.operand('/', true)?)?;
                let replacement = self.operand('}', true)?;
                let value = self.value_or_unset(&name)?;
                self.replace(&pattern, &value, &replacement, every)
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
        let missed = self.unset.len();
        let word = self.operand('}', false)?;
        let value = (self.lookup)(name);
        self.spend(BYTE_COST * value.map_or(0, str::len))?;
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
            self.unset.truncate(missed);
        }
        Ok(text)
    }

    fn value_or_unset(&mut self, name: &str) -> Result<String, WordError> {
        let Some(value) = (self.lookup)(name) else {
            self.unset.push(name.to_owned());
            return Ok(String::new());
        };
        self.spend(BYTE_COST * value.len())?;
        Ok(value.to_owned())
    }

    /// The leftmost longest match of a pattern replaced, or each of them. As in Go, a match of nothing counts unless it
    /// touches the match before it.
    fn replace(
        &mut self,
        pattern: &Pattern,
        value: &str,
        replacement: &str,
        every: bool,
    ) -> Result<String, WordError> {
        self.spend(pattern.cost(value))?;
        let ends = pattern.longest_matches(value);
        let mut result = String::new();
        let mut position = 0;
        let mut last_match = None;
        loop {
            if let Some(end) = ends[position]
                && !(end == position && last_match == Some(position))
            {
                self.spend(BYTE_COST * replacement.len())?;
                result.push_str(replacement);
                if !every {
                    return Ok(result + &value[end..]);
                }
                last_match = Some(end);
                if end > position {
                    position = end;
                    continue;
                }
            }
            let Some(char) = value[position..].chars().next() else {
                return Ok(result);
            };
            result.push(char);
            position += char.len_utf8();
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
    fn new(text: &str) -> Result<Pattern, WordError> {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(char) = chars.next() {
            tokens.push(match char {
                '*' => PatternToken::Any,
                '?' => PatternToken::One,
                '\\' => match chars.next() {
                    Some(escaped @ ('*' | '?' | '\\' | '/' | '}')) => PatternToken::Char(escaped),
                    escaped => {
                        let escaped = escaped.map(String::from).unwrap_or_default();
                        return Err(WordError::PatternEscape { escaped });
                    }
                },
                char => PatternToken::Char(char),
            });
        }
        Ok(Pattern(tokens))
    }

    /// What matching it against a value costs at most.
    fn cost(&self, value: &str) -> usize {
        let steps = (self.0.len() + 1).saturating_mul(value.len() + 1);
        steps.saturating_mul(STEP_COST)
    }

    /// Where the longest match ends that begins at each byte of a value; the last entry is for the value's end.
    fn longest_matches(&self, value: &str) -> Vec<Option<usize>> {
        let mut found = vec![None; value.len() + 1];
        // ends[i]: where the longest match of the tokens from i on ends, if it begins where the loop is.
        let mut ends = vec![None; self.0.len() + 1];
        let boundaries = value.char_indices().map(|(at, char)| (at, Some(char)));
        let mut chars: Vec<(usize, Option<char>)> = boundaries.collect();
        chars.push((value.len(), None));
        for (at, char) in chars.into_iter().rev() {
            // The entries of the next character's turn, which this one's overwrite one by one.
            let mut after_next = ends[self.0.len()];
            ends[self.0.len()] = Some(at);
            for index in (0..self.0.len()).rev() {
                let after_this = ends[index];
                ends[index] = match (self.0[index], char) {
                    (PatternToken::Any, Some('\n') | None) => ends[index + 1],
                    (PatternToken::Any, Some(_)) => ends[index + 1].max(after_this),
                    (PatternToken::One, Some(char)) if char != '\n' => after_next,
                    (PatternToken::Char(wanted), Some(char)) if wanted == char => after_next,
                    _ => None,
                };
                after_next = after_this;
            }
            found[at] = ends[0];
        }
        found
    }

    /// How many of `chars` the shortest or longest match takes, from the first one on.
    fn match_length(&self, chars: impl Iterator<Item = char>, longest: bool) -> Option<usize> {
        // states[i]: the first i tokens have matched.
        let mut states = vec![false; self.0.len() + 1];
        let mut next = states.clone();
        states[0] = true;
        self.skip_any(&mut states);
        let mut found = states[self.0.len()].then_some(0);
        for (length, char) in chars.enumerate() {
            if found.is_some() && !longest {
                break;
            }
            next.fill(false);
            for (index, token) in self.0.iter().enumerate() {
                if !states[index] {
                    continue;
                }
                match token {
                    PatternToken::Char(wanted) if *wanted == char => next[index + 1] = true,
                    PatternToken::One if char != '\n' => next[index + 1] = true,
                    PatternToken::Any if char != '\n' => next[index] = true,
                    _ => {}
                }
            }
            self.skip_any(&mut next);
            std::mem::swap(&mut states, &mut next);
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const VARIABLES: [(&str, &str); 13] = [
        ("LINES", "a\nb"),
        ("SLASHES", "a\\b"),
        ("SLASH", "/"),
        ("MONEY", "$1x"),
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
        // An escape in the replacement stays, as BuildKit has it.
        check("${V//x/\\}}", "\\}");
        check("${FILE//*/x}", "x");
        check("${NULL//*/x}", "x");
        check("${NULL/?/x}", "");
        check("${V///-}", "-x-");
        check("${KOREAN//?/x}", "xxx");
        check("${FILE/.*./-}", "a-gz");
        check("${FILE//?./-}", "--ta-gz");
        check("${LINES#*}", "a\nb");
        check("${LINES##*}", "\nb");
        check("${LINES%%*}", "a\n");
        check("${LINES//*/x}", "x\nx");
        check("${SLASHES//\"\\\\\"/-}", "a-b");
        check("${PWD#$SLASH}", "home");
        check("${MONEY//x/$MONEY}", "$1$1x");
        check("${V//x/$MONEY}", "$1x");
        check(
            "${V#\\x}",
            r"error: `\x` in a pattern is none of `\*` `\?` `\\` `\/` `\}`",
        );
        check(
            "${V%x\\\\\\a}",
            r"error: `\a` in a pattern is none of `\*` `\?` `\\` `\/` `\}`",
        );
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
        check("'' a", &["a"]);
        check("\"$UNSET\"", &[]);
        check("''a''", &["a"]);
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
