//! A reader of shell scripts, as far as rules need one: which commands are called with which words.
//!
//! ```text
//! script  ─►  lists: pipelines joined by `;` `&` `&&` `||` or a newline
//!             pipeline: commands joined by `|`
//!             command: words, quotes removed, variables as written
//! ```
//!
//! It follows no variables, expands nothing and knows of keywords only that they are no commands. Where a script is
//! stranger than that, rules see less of it than there is.

/// Commands joined by `|`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Pipeline {
    pub(super) commands: Vec<Vec<String>>,
}

/// Words that stand before a command without being one.
const KEYWORDS: [&str; 12] = [
    "if", "then", "else", "elif", "while", "until", "do", "!", "{", "(", "time", "exec",
];

/// The pipelines of a script, in order; those in parentheses and braces are as good as those outside.
pub(super) fn pipelines(script: &str) -> Vec<Pipeline> {
    let mut reader = Reader::default();
    let mut chars = script.chars().peekable();
    let mut quote = None;
    while let Some(char) = chars.next() {
        match (quote, char) {
            (Some(open), _) if open == char => quote = None,
            (Some('"'), '\\') => {
                if let Some(next) = chars.next() {
                    reader.push(next);
                }
            }
            (Some(_), _) => reader.push(char),
            (None, '\'' | '"') => {
                quote = Some(char);
                reader.quoted = true;
            }
            (None, '\\') => match chars.next() {
                Some('\n') | None => {}
                Some(next) => reader.push(next),
            },
            (None, '#') if reader.word.is_empty() && !reader.quoted => {
                while chars.next_if(|&next| next != '\n').is_some() {}
            }
            (None, ' ' | '\t' | '\r') => reader.end_word(),
            // `2>&1` and `&>file` join no commands.
            (None, '&') if reader.word.ends_with('>') || chars.peek() == Some(&'>') => {
                reader.push(char);
            }
            (None, '|') if chars.next_if_eq(&'|').is_none() => {
                chars.next_if_eq(&'&');
                reader.end_command();
            }
            (None, '|' | '&' | ';' | '\n' | '(' | ')') => {
                reader.end_pipeline();
            }
            (None, _) => reader.push(char),
        }
    }
    reader.end_pipeline();
    reader.done
}

#[derive(Default)]
struct Reader {
    word: String,
    quoted: bool,
    command: Vec<String>,
    pipeline: Pipeline,
    done: Vec<Pipeline>,
}

impl Reader {
    fn push(&mut self, char: char) {
        self.word.push(char);
    }

    fn end_word(&mut self) {
        let word = std::mem::take(&mut self.word);
        let quoted = std::mem::take(&mut self.quoted);
        if word.is_empty() && !quoted {
            return;
        }
        let before = self.command.is_empty() && !quoted;
        let is_keyword = KEYWORDS.contains(&word.as_str());
        if !(before && (is_keyword || is_assignment(&word))) {
            self.command.push(word);
        }
    }

    fn end_command(&mut self) {
        self.end_word();
        let command = std::mem::take(&mut self.command);
        if !command.is_empty() {
            self.pipeline.commands.push(command);
        }
    }

    fn end_pipeline(&mut self) {
        self.end_command();
        let pipeline = std::mem::take(&mut self.pipeline);
        if !pipeline.commands.is_empty() {
            self.done.push(pipeline);
        }
    }
}

/// `NAME=value` before a command.
fn is_assignment(word: &str) -> bool {
    word.split_once('=').is_some_and(|(name, _)| {
        !name.is_empty()
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
    })
}

/// The program that a command calls, without its folder; `env`, `sudo` and the like are looked through.
pub(super) fn program(command: &[String]) -> Option<(&str, &[String])> {
    let (first, rest) = command.split_first()?;
    let name = first.rsplit('/').next().unwrap_or(first);
    if matches!(name, "sudo" | "env" | "nice" | "command" | "xargs") {
        let skipped = rest
            .iter()
            .take_while(|word| word.starts_with('-') || is_assignment(word))
            .count();
        return program(&rest[skipped..]);
    }
    Some((name, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_commands() {
        let check = |script: &str, expect: &str| {
            let commands = |pipeline: &Pipeline| {
                let words: Vec<String> = pipeline
                    .commands
                    .iter()
                    .map(|words| words.join(","))
                    .collect();
                words.join(" | ")
            };
            let found: Vec<String> = pipelines(script).iter().map(commands).collect();
            assert_eq!(found.join(" ; "), expect, "{script}");
        };
        check(
            "apt-get update && apt-get install -y a b",
            "apt-get,update ; apt-get,install,-y,a,b",
        );
        check("curl -f u | tar x; rm 'a b'", "curl,-f,u | tar,x ; rm,a b");
        check("A=1 B=2 make || true", "make ; true");
        check("if [ -f a ]; then b; fi", "[,-f,a,] ; b ; fi");
        check("(cd a && b) &", "cd,a ; b");
        check("a \\\n  b # c; d\ne", "a,b ; e");
        check("a 2>&1 | b", "a,2>&1 | b");
        check("a &>log; b", "a,&>log ; b");
        check("echo \"a; b\" 'c | d' e\\;f", "echo,a; b,c | d,e;f");
        check("a '' b", "a,,b");
        check("", "");
        check("'open", "open");
    }

    #[test]
    fn looks_through_wrappers() {
        let check = |script: &str, expect: Option<&str>| {
            let pipelines = pipelines(script);
            let command = pipelines.first().map(|pipeline| &pipeline.commands[0]);
            let found = command
                .and_then(|command| program(command))
                .map(|(name, _)| name);
            assert_eq!(found, expect, "{script}");
        };
        check("/usr/bin/npm ci", Some("npm"));
        check("sudo -E npm ci", Some("npm"));
        check("env A=1 npm ci", Some("npm"));
        check("sudo", None);
    }
}
