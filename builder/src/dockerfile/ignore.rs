//! Patterns over paths: `.dockerignore` with moby's semantics, and Go's `filepath.Match` for COPY's wildcards.
//!
//! Both compile to one small automaton, run over a path once without backtracking, so that no pattern takes exponential
//! time. A pattern of `.dockerignore` also excludes everything below what it matches; the automaton is asked at every
//! `/`, so one pass over a path answers for its parents as well.
//!
//! ```text
//! *        anything but `/`           [a-z] [^a]   one character of (not of) the set
//! ?        one character but `/`      \x           the character x
//! **       (ignore files) anything, `/` included; `**/` also nothing
//! ```
//!
//! Paths are bytes as the kernel has them; bytes that are not UTF-8 count as one character each.

/// Why a pattern cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid pattern `{pattern}`: {reason}")]
#[non_exhaustive]
pub struct PatternError {
    /// The pattern as it was written.
    pub pattern: String,
    /// What is wrong.
    pub reason: &'static str,
}

/// Whether `name` as a whole matches `pattern` by the rules of Go's `filepath.Match`, as COPY's wildcards do.
///
/// To match many names, compile a [`Glob`] once.
///
/// # Errors
/// If the pattern is malformed, whether or not the name got that far.
pub fn go_match(pattern: &str, name: &[u8]) -> Result<bool, PatternError> {
    Ok(Glob::new(pattern)?.matches(name))
}

/// Reads the text of a `.dockerignore` into patterns in file order: comments and blank lines dropped, paths cleaned,
/// a leading `/` removed, `!` kept in front.
pub fn read_patterns(text: &str) -> Vec<String> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    text.lines()
        .filter(|line| !line.starts_with('#'))
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .map(read_pattern)
        .collect()
}

/// One pattern as it is compiled: blanks around it gone, the path cleaned, a leading `/` removed, `!` kept in front.
pub fn read_pattern(line: &str) -> String {
    let line = line.trim();
    let (bang, path) = match line.strip_prefix('!') {
        Some(path) => ("!", path.trim()),
        None => ("", line),
    };
    if path.is_empty() {
        return bang.to_owned();
    }
    let path = clean(path);
    let path = match path.strip_prefix('/') {
        Some(relative) if !relative.is_empty() => relative,
        _ => &path,
    };
    format!("{bang}{path}")
}

/// The patterns of one `.dockerignore`, compiled.
#[derive(Clone, Debug, Default)]
pub struct IgnoreMatcher {
    patterns: Vec<IgnorePattern>,
    /// States of the largest automaton, to size the scratch space once.
    states_max: usize,
}

#[derive(Clone, Debug)]
struct IgnorePattern {
    written: String,
    glob: Glob,
    /// Begins with `!`: takes back what earlier patterns excluded.
    exception: bool,
}

impl IgnoreMatcher {
    /// Compiles patterns as [`read_patterns`] returns them; blank ones are skipped.
    ///
    /// # Errors
    /// For a lone `!` and for a malformed pattern (an open `[`, a `\` at the end).
    pub fn new<S: AsRef<str>>(patterns: &[S]) -> Result<IgnoreMatcher, PatternError> {
        let mut matcher = IgnoreMatcher::default();
        for written in patterns {
            let pattern = written.as_ref().trim();
            if pattern.is_empty() {
                continue;
            }
            let (exception, path) = match pattern.strip_prefix('!') {
                Some(path) => (true, path),
                None => (false, pattern),
            };
            if path.is_empty() {
                return Err(PatternError {
                    pattern: pattern.to_owned(),
                    reason: "`!` must be followed by what to keep",
                });
            }
            let glob = Glob::recursive(&clean(path)).map_err(|error| PatternError {
                pattern: pattern.to_owned(),
                ..error
            })?;
            matcher.states_max = matcher.states_max.max(glob.tokens.len() + 1);
            matcher.patterns.push(IgnorePattern {
                written: pattern.to_owned(),
                glob,
                exception,
            });
        }
        Ok(matcher)
    }

    /// Whether there is nothing to ignore.
    pub fn is_empty(&self) -> bool {
        self.patterns.is_empty()
    }

    /// Whether `path` (relative, cleaned, separated by `/`) is excluded: the last pattern that matches it or one of its
    /// parents decides.
    pub fn matches(&self, path: &[u8]) -> bool {
        self.verdict(path).is_some()
    }

    /// The pattern that excludes `path`, as it was written, if one does.
    pub fn excluded_by(&self, path: &[u8]) -> Option<&str> {
        let decisive = self.verdict(path)?;
        Some(&self.patterns[decisive].written)
    }

    /// Whether the directory `path` is excluded and no later `!` pattern can match anything below it, so that a walk
    /// need not enter it.
    pub fn can_skip_dir(&self, path: &[u8]) -> bool {
        let Some(decisive) = self.verdict(path) else {
            return false;
        };
        let mut scratch = Scratch::new(self.states_max);
        !self.patterns[decisive + 1..]
            .iter()
            .any(|pattern| pattern.exception && pattern.glob.can_match_below(path, &mut scratch))
    }

    /// The last pattern that excludes `path`, if it is excluded in the end.
    fn verdict(&self, path: &[u8]) -> Option<usize> {
        let mut scratch = Scratch::new(self.states_max);
        let mut excluded_by = None;
        for (index, pattern) in self.patterns.iter().enumerate() {
            // A pattern that cannot change the outcome need not be tried, except to know the last one that excludes.
            if pattern.exception && excluded_by.is_none() {
                continue;
            }
            if pattern.glob.matches_path_or_parent(path, &mut scratch) {
                excluded_by = (!pattern.exception).then_some(index);
            }
        }
        excluded_by
    }
}

/// A compiled pattern.
#[derive(Clone, Debug)]
pub struct Glob {
    tokens: Vec<Token>,
}

/// One state of the automaton; the state after the last token accepts.
#[derive(Clone, Debug)]
enum Token {
    /// This character.
    Char(char),
    /// Any character but `/`.
    One,
    /// Any number of characters but `/`.
    Star,
    /// Any number of any characters.
    Anything,
    /// Nothing, or what the following [`Token::Directories`] matches.
    Optional,
    /// Anything that ends in `/`.
    Directories,
    /// One character inside (or outside, if negated) of the ranges.
    Class {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
}

impl Glob {
    /// Compiles a pattern of Go's `filepath.Match`.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn new(pattern: &str) -> Result<Glob, PatternError> {
        Compiler::new(pattern).run(false)
    }

    /// Compiles a pattern of an ignore file, where `**` crosses directories.
    ///
    /// # Errors
    /// If it is malformed.
    pub fn recursive(pattern: &str) -> Result<Glob, PatternError> {
        Compiler::new(pattern).run(true)
    }

    /// Whether `text` has a character that means more than itself.
    pub fn has_wildcards(text: &str) -> bool {
        text.contains(['*', '?', '[', '\\'])
    }

    /// Whether the whole of `name` matches.
    pub fn matches(&self, name: &[u8]) -> bool {
        let mut scratch = Scratch::new(self.tokens.len() + 1);
        self.start(&mut scratch);
        for char in chars(name) {
            if !self.step(char, &mut scratch) {
                return false;
            }
        }
        self.accepts(&scratch)
    }

    /// Whether `path` or a directory above it matches.
    pub fn covers(&self, path: &[u8]) -> bool {
        self.matches_path_or_parent(path, &mut Scratch::new(self.tokens.len() + 1))
    }

    /// Whether something below `directory` can match.
    pub fn reaches_below(&self, directory: &[u8]) -> bool {
        self.can_match_below(directory, &mut Scratch::new(self.tokens.len() + 1))
    }

    fn matches_path_or_parent(&self, path: &[u8], scratch: &mut Scratch) -> bool {
        self.start(scratch);
        for char in chars(path) {
            if char == '/' && self.accepts(scratch) {
                return true;
            }
            if !self.step(char, scratch) {
                return false;
            }
        }
        self.accepts(scratch)
    }

    fn can_match_below(&self, directory: &[u8], scratch: &mut Scratch) -> bool {
        self.start(scratch);
        chars(directory).all(|char| self.step(char, scratch)) && self.step('/', scratch)
    }

    fn start(&self, scratch: &mut Scratch) {
        scratch.clear();
        self.enter(0, scratch);
        scratch.swap();
    }

    /// Consumes one character; false if nothing can match any more.
    fn step(&self, char: char, scratch: &mut Scratch) -> bool {
        for index in 0..scratch.current.len() {
            let state = scratch.current[index];
            match self.tokens.get(state) {
                Some(Token::Char(wanted)) if *wanted == char => self.enter(state + 1, scratch),
                Some(Token::One) if char != '/' => self.enter(state + 1, scratch),
                Some(Token::Star) if char != '/' => self.enter(state, scratch),
                Some(Token::Anything) => self.enter(state, scratch),
                Some(Token::Directories) => {
                    self.enter(state, scratch);
                    if char == '/' {
                        self.enter(state + 1, scratch);
                    }
                }
                Some(Token::Class { negated, ranges }) => {
                    let inside = ranges
                        .iter()
                        .any(|(low, high)| (*low..=*high).contains(&char));
                    if inside != *negated {
                        self.enter(state + 1, scratch);
                    }
                }
                _ => {}
            }
        }
        scratch.swap();
        !scratch.current.is_empty()
    }

    /// Adds a state to the next set, and those that are reached from it without a character.
    fn enter(&self, first: usize, scratch: &mut Scratch) {
        let mut state = first;
        while scratch.add(state) {
            match self.tokens.get(state) {
                Some(Token::Star | Token::Anything) => state += 1,
                Some(Token::Optional) => {
                    scratch.add(state + 1);
                    state += 2;
                }
                _ => return,
            }
        }
    }

    fn accepts(&self, scratch: &Scratch) -> bool {
        scratch.current.contains(&self.tokens.len())
    }
}

/// The sets of states of one run; reused from run to run.
struct Scratch {
    current: Vec<usize>,
    next: Vec<usize>,
    /// The round in which a state was last added.
    added_in: Vec<u64>,
    round: u64,
}

impl Scratch {
    fn new(states: usize) -> Scratch {
        Scratch {
            current: Vec::with_capacity(4),
            next: Vec::with_capacity(4),
            added_in: vec![0; states],
            round: 1,
        }
    }

    fn clear(&mut self) {
        self.current.clear();
        self.next.clear();
        self.round += 1;
    }

    /// Adds to the next set; false if the state was there.
    fn add(&mut self, state: usize) -> bool {
        let new = self.added_in[state] != self.round;
        if new {
            self.added_in[state] = self.round;
            self.next.push(state);
        }
        new
    }

    fn swap(&mut self) {
        std::mem::swap(&mut self.current, &mut self.next);
        self.next.clear();
        self.round += 1;
    }
}

struct Compiler<'a> {
    pattern: &'a str,
    rest: std::iter::Peekable<std::str::Chars<'a>>,
    tokens: Vec<Token>,
}

impl<'a> Compiler<'a> {
    fn new(pattern: &'a str) -> Compiler<'a> {
        Compiler {
            pattern,
            rest: pattern.chars().peekable(),
            tokens: Vec::new(),
        }
    }

    fn run(mut self, recursive: bool) -> Result<Glob, PatternError> {
        while let Some(char) = self.rest.next() {
            let token = match char {
                '*' if recursive && self.rest.peek() == Some(&'*') => {
                    self.double_star();
                    continue;
                }
                '*' => Token::Star,
                '?' => Token::One,
                '[' => self.class()?,
                '\\' => match self.rest.next() {
                    Some(escaped) => Token::Char(escaped),
                    None => return Err(self.error("nothing follows the last `\\`")),
                },
                char => Token::Char(char),
            };
            self.tokens.push(token);
        }
        Ok(Glob {
            tokens: self.tokens,
        })
    }

    /// `**`, whose second star is still to be read.
    fn double_star(&mut self) {
        self.rest.next();
        let at_start = self.tokens.is_empty();
        let slash = self.rest.next_if_eq(&'/').is_some();
        if self.rest.peek().is_none() || (at_start && !slash && self.only_literals_follow()) {
            // moby compares ends of paths where a pattern is `**` and plain text: `**x` matches `ax`.
            self.tokens.push(Token::Anything);
        } else {
            self.tokens.push(Token::Optional);
            self.tokens.push(Token::Directories);
        }
    }

    fn only_literals_follow(&self) -> bool {
        !self
            .rest
            .clone()
            .any(|char| matches!(char, '*' | '?' | '[' | ']' | '\\'))
    }

    /// A set, after its `[`.
    fn class(&mut self) -> Result<Token, PatternError> {
        const OPEN: &str = "`[` is not closed by `]`";
        let negated = self.rest.next_if_eq(&'^').is_some();
        let mut ranges = Vec::new();
        loop {
            if !ranges.is_empty() && self.rest.next_if_eq(&']').is_some() {
                return Ok(Token::Class { negated, ranges });
            }
            let low = self.class_char()?;
            let high = match self.rest.next_if_eq(&'-') {
                Some(_) => self.class_char()?,
                None => low,
            };
            if self.rest.peek().is_none() {
                return Err(self.error(OPEN));
            }
            ranges.push((low, high));
        }
    }

    fn class_char(&mut self) -> Result<char, PatternError> {
        match self.rest.next() {
            None => Err(self.error("`[` is not closed by `]`")),
            Some('-' | ']') => {
                Err(self.error("`-` and `]` in `[…]` stand for themselves only after `\\`"))
            }
            Some('\\') => match self.rest.next() {
                Some(escaped) => Ok(escaped),
                None => Err(self.error("nothing follows the last `\\`")),
            },
            Some(char) => Ok(char),
        }
    }

    fn error(&self, reason: &'static str) -> PatternError {
        PatternError {
            pattern: self.pattern.to_owned(),
            reason,
        }
    }
}

/// The characters of a path; each byte that is not UTF-8 becomes U+FFFD.
fn chars(mut bytes: &[u8]) -> impl Iterator<Item = char> {
    std::iter::from_fn(move || {
        let &first = bytes.first()?;
        if first.is_ascii() {
            bytes = &bytes[1..];
            return Some(char::from(first));
        }
        let window = &bytes[..bytes.len().min(4)];
        let valid = match std::str::from_utf8(window) {
            Ok(text) => Some(text),
            Err(error) => std::str::from_utf8(&window[..error.valid_up_to()]).ok(),
        };
        let (char, length) = match valid.and_then(|text| text.chars().next()) {
            Some(char) => (char, char.len_utf8()),
            None => (char::REPLACEMENT_CHARACTER, 1),
        };
        bytes = &bytes[length..];
        Some(char)
    })
}

/// The shortest path that means the same, as Go's `path.Clean` has it; `.` for an empty one.
pub fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => match parts.last() {
                Some(&last) if last != ".." => {
                    parts.pop();
                }
                _ if rooted => {}
                _ => parts.push(".."),
            },
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}

#[cfg(test)]
mod tests;
