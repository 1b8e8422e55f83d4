//! The arguments of each instruction.

use std::ops::Range;

use super::super::ast::{
    ArgDeclaration, Command, Copy, Flag, From, Healthcheck, InstructionKind, KeyValue, KeyValues,
    Word,
};
use super::super::lexer::is_heredoc_word;
use super::super::source::{Diagnostic, Span};
use super::super::suggest::nearest;
use super::json::{self, JsonForm};
use super::{Scope, is_blank};

/// Wrong flags of one instruction that are told.
const FLAG_ERRORS_MAX: usize = 20;

/// How a flag is written.
#[derive(Clone, Copy, PartialEq)]
enum FlagForm {
    /// `--name` or `--name=true|false`
    Switch,
    /// `--name=value`, once
    Value,
    /// `--name=value`, any number of times
    Values,
}

use FlagForm::{Switch, Value, Values};

/// The flags of an instruction; absent where none is looked at.
fn known_flags(keyword: &str) -> Option<&'static [(&'static str, FlagForm)]> {
    Some(match keyword {
        "FROM" => &[("platform", Value)],
        "RUN" => &[
            ("mount", Values),
            ("network", Value),
            ("security", Value),
            ("device", Values),
        ],
        "COPY" => &[
            ("from", Value),
            ("chown", Value),
            ("chmod", Value),
            ("link", Switch),
            ("parents", Switch),
            ("exclude", Values),
        ],
        "ADD" => &[
            ("chown", Value),
            ("chmod", Value),
            ("link", Switch),
            ("keep-git-dir", Switch),
            ("checksum", Value),
            ("unpack", Switch),
            ("exclude", Values),
        ],
        "HEALTHCHECK" => &[
            ("interval", Value),
            ("timeout", Value),
            ("start-period", Value),
            ("start-interval", Value),
            ("retries", Value),
        ],
        "ARG" | "STOPSIGNAL" => return None,
        _ => &[],
    })
}

impl Scope<'_> {
    pub(super) fn kind(
        &mut self,
        upper: &str,
        keyword: &Word,
        flags: &[Flag],
        rest: Range<usize>,
        inside: Option<Span>,
    ) -> InstructionKind {
        if !super::KEYWORDS.contains(&upper) {
            return self.unknown(keyword);
        }
        if inside.is_some() && matches!(upper, "ONBUILD" | "FROM" | "MAINTAINER") {
            let message = format!("`ONBUILD` cannot trigger `{upper}`");
            return self.report(Diagnostic::error(keyword.span, message));
        }
        if !self.check_flags(upper, flags) {
            return InstructionKind::Invalid;
        }
        let missing = rest.is_empty() && !matches!(upper, "CMD" | "ENTRYPOINT");
        if missing {
            let needs = match upper {
                "FROM" => "an image",
                "RUN" => "a command",
                "COPY" | "ADD" => "at least one source and a destination",
                "ENV" | "LABEL" => "at least one `key=value`",
                "ARG" => "at least one name",
                "EXPOSE" => "at least one port",
                "VOLUME" => "at least one path",
                "SHELL" => "a JSON array of strings",
                "HEALTHCHECK" => "`NONE`, or `CMD` and a command",
                "ONBUILD" => "an instruction",
                _ => "exactly one argument",
            };
            let diagnostic = Diagnostic::error(keyword.span, format!("`{upper}` needs {needs}"));
            return self.report(match example(upper) {
                Some(example) => diagnostic.help(format!("as in `{example}`")),
                None => diagnostic,
            });
        }
        match upper {
            "FROM" => self.from(rest),
            "RUN" => self.run(rest),
            "CMD" => self
                .command(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Cmd),
            "ENTRYPOINT" => self
                .command(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Entrypoint),
            "COPY" => self
                .copy(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Copy),
            "ADD" => self
                .copy(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Add),
            "ENV" => self
                .key_values(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Env),
            "LABEL" => self
                .key_values(upper, rest)
                .map_or(InstructionKind::Invalid, InstructionKind::Label),
            "ARG" => self.arg(rest),
            "WORKDIR" => InstructionKind::Workdir(self.word(rest)),
            "USER" => InstructionKind::User(self.word(rest)),
            "STOPSIGNAL" => InstructionKind::StopSignal(self.word(rest)),
            "MAINTAINER" => InstructionKind::Maintainer(self.word(rest)),
            "EXPOSE" => InstructionKind::Expose(self.blank_separated(rest)),
            "VOLUME" => self.volume(rest),
            "SHELL" => self.shell(rest),
            "HEALTHCHECK" => self.healthcheck(flags, rest),
            "ONBUILD" => {
                let outer = self.logical.span_of(rest.clone());
                InstructionKind::Onbuild(Box::new(self.instruction(rest, Some(outer))))
            }
            _ => self.unknown(keyword),
        }
    }

    /// Reports unknown, repeated and badly valued flags; false if there are any.
    fn check_flags(&mut self, upper: &str, flags: &[Flag]) -> bool {
        let Some(known) = known_flags(upper) else {
            return true;
        };
        let reported = self.diagnostics.len();
        let mut firsts = vec![None; known.len()];
        for Flag { name, value, span } in flags {
            if self.diagnostics.len() - reported > FLAG_ERRORS_MAX {
                break;
            }
            let Some(index) = known.iter().position(|(known, _)| known == name) else {
                let message = format!("`{upper}` has no flag `--{name}`");
                let near = nearest(name, known.iter().map(|&(name, _)| name));
                let diagnostic = Diagnostic::error(*span, message);
                self.report(match near {
                    Some(near) => diagnostic.suggest(Some(&format!("--{near}"))),
                    None => diagnostic.help(flags_help(upper, known, name)),
                });
                continue;
            };
            let form = known[index].1;
            if let (Some(first), Switch | Value) = (firsts[index], form) {
                let message = format!("`--{name}` is given twice");
                self.report(Diagnostic::error(*span, message).label(first, "first here"));
            }
            firsts[index].get_or_insert(*span);
            match (form, value.as_deref()) {
                (Value | Values, None) => {
                    let message = format!("`--{name}` needs a value: `--{name}=…`");
                    self.report(Diagnostic::error(*span, message));
                }
                (Switch, Some(text)) if !is_boolean(text) => {
                    let message = format!("`--{name}` is `true` or `false`, not `{text}`");
                    self.report(Diagnostic::error(*span, message));
                }
                _ => {}
            }
        }
        self.diagnostics.len() == reported
    }

    /// Words between blanks, quotes not looked at.
    fn blank_separated(&self, range: Range<usize>) -> Vec<Word> {
        let mut words = Vec::new();
        let mut position = range.start;
        for part in self.text()[range].split(is_blank) {
            if !part.is_empty() {
                words.push(self.word(position..position + part.len()));
            }
            // What separates is one byte.
            position += part.len() + 1;
        }
        words
    }

    /// Words between blanks; quotes and escapes hold blanks together and stay in the words.
    fn quoted_words(&self, range: Range<usize>) -> Vec<Range<usize>> {
        let mut words = Vec::new();
        let mut start = None;
        let mut quote = None;
        let mut chars = self.text()[range.clone()].char_indices();
        while let Some((at, char)) = chars.next() {
            let at = range.start + at;
            if quote.is_none() && char.is_whitespace() {
                words.extend(start.take().map(|start| start..at));
                continue;
            }
            start.get_or_insert(at);
            match (quote, char) {
                (Some(open), _) if open == char => quote = None,
                (None, '\'' | '"') => quote = Some(char),
                (None | Some('"'), _) if char == self.escape => {
                    chars.next();
                }
                _ => {}
            }
        }
        words.extend(start.map(|start| start..range.end));
        words
    }

    /// The strings of a JSON array, or nothing if the text is to be taken as it stands.
    fn json(&mut self, upper: &str, rest: Range<usize>) -> Result<Option<Vec<Word>>, ()> {
        match json::parse(&self.text()[rest.clone()]) {
            JsonForm::Plain => Ok(None),
            JsonForm::Strings(strings) => Ok(Some(
                strings
                    .into_iter()
                    .map(|(text, range)| Word {
                        text,
                        span: self
                            .logical
                            .span_of(rest.start + range.start..rest.start + range.end),
                    })
                    .collect(),
            )),
            JsonForm::NotStrings => {
                let message =
                    format!("the JSON array of `{upper}` has something other than strings");
                let span = self.logical.span_of(rest);
                self.report(
                    Diagnostic::error(span, message)
                        .help("each item stands in double quotes, numbers and `true` too"),
                );
                Err(())
            }
        }
    }

    fn command(&mut self, upper: &str, rest: Range<usize>) -> Option<Command> {
        match self.json(upper, rest.clone()).ok()? {
            Some(words) => Some(Command::Exec(words)),
            None => Some(Command::Shell(self.word(rest))),
        }
    }

    fn from(&mut self, rest: Range<usize>) -> InstructionKind {
        let words = self.blank_separated(rest.clone());
        match words.as_slice() {
            [image] => InstructionKind::From(From {
                image: image.clone(),
                name: None,
            }),
            [image, r#as, name] if r#as.text.eq_ignore_ascii_case("as") => {
                if !is_stage_name(&name.text.to_lowercase()) {
                    let message = format!("`{}` cannot name a stage", name.text);
                    return self
                        .report(Diagnostic::error(name.span, message).help(
                            "a name is a letter, and then letters, digits, `-`, `_` and `.`",
                        ));
                }
                InstructionKind::From(From {
                    image: image.clone(),
                    name: Some(name.clone()),
                })
            }
            words => {
                let help = match words {
                    [image, r#as] if r#as.text.eq_ignore_ascii_case("as") => {
                        format!("a name is missing: `FROM {} AS name`", image.text)
                    }
                    [image, name] => format!("`FROM {} AS {}`", image.text, name.text),
                    _ => "`FROM image` or `FROM image AS name`".to_owned(),
                };
                let span = self.logical.span_of(rest);
                self.report(
                    Diagnostic::error(span, "`FROM` takes one image, and perhaps a name")
                        .help(help),
                )
            }
        }
    }

    fn run(&mut self, rest: Range<usize>) -> InstructionKind {
        match self.command("RUN", rest.clone()) {
            Some(Command::Exec(words)) if words.is_empty() => {
                let span = self.logical.span_of(rest);
                self.report(Diagnostic::error(span, "`RUN` needs a command"))
            }
            Some(command) => InstructionKind::Run(command),
            None => InstructionKind::Invalid,
        }
    }

    fn copy(&mut self, upper: &str, rest: Range<usize>) -> Option<Copy> {
        let (mut words, json) = match self.json(upper, rest.clone()).ok()? {
            Some(words) => (words, true),
            None => (self.blank_separated(rest.clone()), false),
        };
        let given = words.len();
        let dest = words.pop();
        let (Some(dest), 2..) = (dest, given) else {
            let message = format!("`{upper}` needs at least one source and a destination");
            let text = &self.text()[rest.clone()];
            let help = format!("where to is missing: `{upper} {text} /path/in/the/image`");
            let diagnostic = Diagnostic::error(self.logical.span_of(rest), message);
            self.report(if json {
                diagnostic
            } else {
                diagnostic.help(help)
            });
            return None;
        };
        if !json {
            words.retain(|word| !is_heredoc_word(&word.text));
            if is_heredoc_word(&dest.text) {
                let message = "a here-document cannot be a destination";
                self.report(Diagnostic::error(dest.span, message));
                return None;
            }
        }
        Some(Copy {
            sources: words,
            dest,
        })
    }

    fn key_values(&mut self, upper: &str, rest: Range<usize>) -> Option<KeyValues> {
        let words = self.quoted_words(rest.clone());
        let first = words.first()?.clone();
        let legacy = !self.text()[first].contains('=');
        let pairs = if legacy {
            let text = &self.text()[rest.clone()];
            let end = text.find(is_blank).map_or(rest.end, |at| rest.start + at);
            let value = self.trim(end..rest.end);
            if value.is_empty() {
                let message = format!("`{upper}` needs a key and a value");
                let span = self.logical.span_of(rest);
                self.report(Diagnostic::error(span, message).help(format!("`{upper} key=value`")));
                return None;
            }
            vec![(rest.start..end, value)]
        } else {
            let mut pairs = Vec::new();
            for word in words {
                let Some(equals) = self.text()[word.clone()].find('=') else {
                    let text = &self.text()[word.clone()];
                    let message = format!("`{text}` has no `=`");
                    let before = pairs
                        .last()
                        .map(|(key, value): &(Range<usize>, Range<usize>)| {
                            (&self.text()[key.clone()], &self.text()[value.clone()])
                        });
                    let rule = "every item is `key=value`; a value with blanks stands in quotes";
                    // Quotes inside would need care that a hint cannot take.
                    let plain = |text: &str| !text.contains(['"', '\'', '\\']);
                    let help = match before {
                        _ if text.starts_with('#') => {
                            "a comment stands on a line of its own".to_owned()
                        }
                        Some((key, value)) if plain(value) && plain(text) => {
                            format!("{rule}: `{upper} {key}=\"{value} {text}\"`")
                        }
                        _ => rule.to_owned(),
                    };
                    let span = self.logical.span_of(word);
                    self.report(Diagnostic::error(span, message).help(help));
                    return None;
                };
                let equals = word.start + equals;
                pairs.push((word.start..equals, equals + 1..word.end));
            }
            pairs
        };
        let mut result = Vec::new();
        for (key, value) in pairs {
            if key.is_empty() {
                let span = self.logical.span_of(key.start..value.end);
                self.report(Diagnostic::error(
                    span,
                    format!("a key of `{upper}` is empty"),
                ));
                return None;
            }
            result.push(KeyValue {
                key: self.word(key),
                value: self.word(value),
            });
        }
        Some(KeyValues {
            pairs: result,
            legacy,
        })
    }

    fn arg(&mut self, rest: Range<usize>) -> InstructionKind {
        let mut declarations = Vec::new();
        for word in self.quoted_words(rest) {
            let equals = self.text()[word.clone()].find('=');
            let (name, default) = match equals {
                Some(at) => (
                    word.start..word.start + at,
                    Some(word.start + at + 1..word.end),
                ),
                None => (word.clone(), None),
            };
            if name.is_empty() {
                let span = self.logical.span_of(word);
                return self.report(Diagnostic::error(span, "a name of `ARG` is empty"));
            }
            declarations.push(ArgDeclaration {
                name: self.word(name),
                default: default.map(|range| self.word(range)),
            });
        }
        InstructionKind::Arg(declarations)
    }

    fn volume(&mut self, rest: Range<usize>) -> InstructionKind {
        let words = match self.json("VOLUME", rest.clone()) {
            Ok(Some(words)) => words,
            Ok(None) => self.blank_separated(rest.clone()),
            Err(()) => return InstructionKind::Invalid,
        };
        let blank = words.iter().find(|word| word.text.trim().is_empty());
        if let Some(span) = blank.map(|word| word.span) {
            return self.report(Diagnostic::error(span, "a path of `VOLUME` is empty"));
        }
        if words.is_empty() {
            let span = self.logical.span_of(rest);
            return self.report(Diagnostic::error(span, "`VOLUME` needs at least one path"));
        }
        InstructionKind::Volume(words)
    }

    fn shell(&mut self, rest: Range<usize>) -> InstructionKind {
        match self.json("SHELL", rest.clone()) {
            Ok(Some(words)) if !words.is_empty() => InstructionKind::Shell(words),
            Ok(_) => {
                let words = self.blank_separated(rest.clone());
                let plain = |word: &Word| !word.text.contains(['"', '\'', '\\', '[', ']', ',']);
                let help = if words.iter().all(plain) {
                    let words = words.iter().map(|word| format!("\"{}\"", word.text));
                    format!("`SHELL [{}]`", words.collect::<Vec<_>>().join(", "))
                } else {
                    "`SHELL [\"/bin/bash\", \"-c\"]`".to_owned()
                };
                let span = self.logical.span_of(rest);
                self.report(
                    Diagnostic::error(span, "`SHELL` needs a JSON array of strings").help(help),
                )
            }
            Err(()) => InstructionKind::Invalid,
        }
    }

    fn healthcheck(&mut self, flags: &[Flag], rest: Range<usize>) -> InstructionKind {
        let text = &self.text()[rest.clone()];
        let length = text.find(char::is_whitespace).unwrap_or(text.len());
        let kind = self.word(rest.start..rest.start + length);
        let command = self.trim(rest.start + length..rest.end);
        match kind.text.to_ascii_uppercase().as_str() {
            "NONE" if command.is_empty() => InstructionKind::Healthcheck(Healthcheck::None),
            "NONE" => {
                let span = self.logical.span_of(command);
                self.report(Diagnostic::error(
                    span,
                    "`HEALTHCHECK NONE` takes no arguments",
                ))
            }
            "CMD" if command.is_empty() => {
                let message = "`HEALTHCHECK CMD` needs a command";
                self.report(Diagnostic::error(kind.span, message))
            }
            "CMD" => self
                .health_command(flags, command)
                .map_or(InstructionKind::Invalid, InstructionKind::Healthcheck),
            _ => {
                let message = format!("`HEALTHCHECK` is `NONE` or `CMD`, not `{}`", kind.text);
                self.report(Diagnostic::error(kind.span, message).help("`HEALTHCHECK CMD command`"))
            }
        }
    }

    fn health_command(&mut self, flags: &[Flag], command: Range<usize>) -> Option<Healthcheck> {
        let reported = self.diagnostics.len();
        let check = Healthcheck::Check {
            command: self.command("HEALTHCHECK", command)?,
            interval: self.duration(flags, "interval"),
            timeout: self.duration(flags, "timeout"),
            start_period: self.duration(flags, "start-period"),
            start_interval: self.duration(flags, "start-interval"),
            retries: self.retries(flags),
        };
        (self.diagnostics.len() == reported).then_some(check)
    }

    /// A flag's duration; reports one that is none, or shorter than a container engine can measure.
    fn duration(&mut self, flags: &[Flag], name: &str) -> Option<u64> {
        const MILLISECOND: u64 = 1_000_000;
        let flag = flags.iter().find(|flag| flag.name == name)?;
        let text = flag.value.as_deref()?;
        match parse_duration(text) {
            Some(nanoseconds) if nanoseconds == 0 || nanoseconds >= MILLISECOND => {
                Some(nanoseconds)
            }
            Some(_) => {
                let message = format!("`--{name}` is shorter than `1ms`");
                self.report(Diagnostic::error(flag.span, message).help("`0` takes the default"));
                None
            }
            None => {
                let message = format!("`{text}` is not a duration");
                let diagnostic = Diagnostic::error(flag.span, message);
                self.report(if text.parse::<u32>().is_ok() {
                    diagnostic.help(format!("a unit is missing: `--{name}={text}s`"))
                } else {
                    diagnostic.help("`30s`, `1m30s`, `500ms`")
                });
                None
            }
        }
    }

    fn retries(&mut self, flags: &[Flag]) -> Option<u32> {
        let flag = flags.iter().find(|flag| flag.name == "retries")?;
        let text = flag.value.as_deref()?;
        let retries = text.parse().ok();
        if retries.is_none() {
            let message = format!("`--retries` is a whole number from 0 on, not `{text}`");
            self.report(Diagnostic::error(flag.span, message));
        }
        retries
    }
}

/// What to say of a flag that an instruction does not have, nor one like it.
fn flags_help(upper: &str, known: &[(&str, FlagForm)], name: &str) -> String {
    let others = super::KEYWORDS.iter().filter(|other| {
        let flags = known_flags(other).unwrap_or_default();
        flags.iter().any(|(flag, _)| *flag == name)
    });
    let others: Vec<String> = others.map(|other| format!("`{other}`")).collect();
    let flags: Vec<String> = known
        .iter()
        .map(|(flag, _)| format!("`--{flag}`"))
        .collect();
    let mut help = match flags.as_slice() {
        [] => format!("`{upper}` has no flags"),
        flags => format!("`{upper}` has {}", flags.join(", ")),
    };
    if !others.is_empty() {
        help.push_str(&format!("; `--{name}` is a flag of {}", others.join(", ")));
    }
    help
}

/// An instruction as it may look, of those that need arguments.
fn example(upper: &str) -> Option<&'static str> {
    Some(match upper {
        "FROM" => "FROM debian:bookworm",
        "RUN" => "RUN make install",
        "COPY" => "COPY src /app/src",
        "ADD" => "ADD src.tar.gz /app",
        "ENV" => "ENV MODE=production",
        "LABEL" => "LABEL version=1.0",
        "ARG" => "ARG VERSION=1.0",
        "EXPOSE" => "EXPOSE 8080/tcp",
        "VOLUME" => "VOLUME /data",
        "SHELL" => "SHELL [\"/bin/bash\", \"-c\"]",
        "HEALTHCHECK" => "HEALTHCHECK CMD wget -q localhost",
        "ONBUILD" => "ONBUILD RUN make",
        "WORKDIR" => "WORKDIR /app",
        "USER" => "USER 1000:1000",
        "STOPSIGNAL" => "STOPSIGNAL SIGTERM",
        _ => return None,
    })
}

fn is_boolean(text: &str) -> bool {
    text.eq_ignore_ascii_case("true") || text.eq_ignore_ascii_case("false")
}

/// Whether a lower-case text is a letter and then letters, digits, `-`, `_` and `.`.
fn is_stage_name(name: &str) -> bool {
    let rest = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'_' | b'.')
    };
    name.bytes()
        .next()
        .is_some_and(|first| first.is_ascii_lowercase())
        && name.bytes().all(rest)
}

/// A duration as Go writes it (`1h2m3.5s`, `0`), in nanoseconds; negative ones are refused.
fn parse_duration(text: &str) -> Option<u64> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Some(0);
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: u64 = 0;
    while !rest.is_empty() {
        let number_end = rest.find(|char: char| !char.is_ascii_digit() && char != '.')?;
        let (number, after) = rest.split_at(number_end);
        let unit_end = after
            .find(|char: char| char.is_ascii_digit() || char == '.')
            .unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_end);
        let unit: u64 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: u64 = match whole {
            "" => 0,
            digits => digits.parse().ok()?,
        };
        total = total.checked_add(whole.checked_mul(unit)?)?;
        let mut scale = unit;
        for digit in fraction.chars() {
            scale /= 10;
            total = total.checked_add(u64::from(digit.to_digit(10)?) * scale)?;
        }
        rest = after;
    }
    i64::try_from(total).is_ok().then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        let check = |text: &str, expect: Option<u64>| {
            assert_eq!(parse_duration(text), expect, "{text}");
        };
        check("0", Some(0));
        check("30s", Some(30_000_000_000));
        check("1m30s", Some(90_000_000_000));
        check("1.5s", Some(1_500_000_000));
        check(".5s", Some(500_000_000));
        check("500ms", Some(500_000_000));
        check("10µs", Some(10_000));
        check("", None);
        check("3", None);
        check("s", None);
        check(".s", None);
        check("-1s", None);
        check("1d", None);
        check("9999999h", None);
    }
}
