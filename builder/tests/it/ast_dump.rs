//! The tree as text: one line per part, with `line:column` of its first and behind its last byte.

use builder::dockerfile::ast::{
    Command, Copy, Dockerfile, Healthcheck, Instruction, InstructionKind, KeyValues,
};
use builder::dockerfile::{SourceFile, Span, Word};

pub(crate) fn dump(file: &Dockerfile, source: &SourceFile) -> String {
    let mut dump = Dump {
        source,
        text: String::new(),
    };
    for directive in &file.directives {
        dump.word(0, &format!("# {}", directive.name), &directive.value);
    }
    let mut stage = 0;
    for (index, instruction) in file.instructions.iter().enumerate() {
        if file
            .stages
            .get(stage)
            .is_some_and(|stage| stage.from == index)
        {
            dump.text += &format!("stage {stage}\n");
            stage += 1;
        }
        dump.instruction(0, instruction);
    }
    dump.text
}

struct Dump<'a> {
    source: &'a SourceFile,
    text: String,
}

impl Dump<'_> {
    fn line(&mut self, depth: usize, text: &str, span: Span) {
        let (line, column) = self.source.position(span.start);
        let (end_line, end_column) = self.source.position(span.end);
        let indent = "  ".repeat(depth);
        self.text += &format!("{indent}{text} @{line}:{column}-{end_line}:{end_column}\n");
    }

    fn word(&mut self, depth: usize, name: &str, word: &Word) {
        self.line(depth, &format!("{name} {:?}", word.text), word.span);
    }

    fn words(&mut self, name: &str, words: &[Word]) {
        for word in words {
            self.word(2, name, word);
        }
    }

    fn instruction(&mut self, depth: usize, instruction: &Instruction) {
        let name = instruction.keyword.text.clone();
        self.line(depth, &name, instruction.span);
        for flag in &instruction.flags {
            let text = match &flag.value {
                Some(value) => format!("--{} {value:?}", flag.name),
                None => format!("--{}", flag.name),
            };
            self.line(2, &text, flag.span);
        }
        self.kind(&instruction.kind);
        if depth > 0 {
            return;
        }
        for heredoc in &instruction.heredocs {
            let mut text = format!("heredoc {} {:?}", heredoc.fd, heredoc.name);
            if heredoc.expand {
                text += " expand";
            }
            if heredoc.strip_tabs {
                text += " strip-tabs";
            }
            self.line(2, &text, heredoc.word);
            let body = self.source.slice(heredoc.body).to_owned();
            self.line(3, &format!("{body:?}"), heredoc.body);
        }
    }

    fn kind(&mut self, kind: &InstructionKind) {
        match kind {
            InstructionKind::From(from) => {
                self.word(2, "image", &from.image);
                if let Some(name) = &from.name {
                    self.word(2, "name", name);
                }
            }
            InstructionKind::Run(command)
            | InstructionKind::Cmd(command)
            | InstructionKind::Entrypoint(command) => self.command(command),
            InstructionKind::Copy(copy) | InstructionKind::Add(copy) => {
                let Copy { sources, dest } = copy;
                self.words("source", sources);
                self.word(2, "dest", dest);
            }
            InstructionKind::Env(pairs) | InstructionKind::Label(pairs) => {
                let KeyValues { pairs, legacy } = pairs;
                for pair in pairs {
                    let key = if *legacy { "legacy key" } else { "key" };
                    self.word(2, key, &pair.key);
                    self.word(3, "value", &pair.value);
                }
            }
            InstructionKind::Arg(declarations) => {
                for declaration in declarations {
                    self.word(2, "name", &declaration.name);
                    if let Some(default) = &declaration.default {
                        self.word(3, "default", default);
                    }
                }
            }
            InstructionKind::Workdir(word)
            | InstructionKind::User(word)
            | InstructionKind::StopSignal(word)
            | InstructionKind::Maintainer(word) => self.word(2, "argument", word),
            InstructionKind::Expose(words)
            | InstructionKind::Volume(words)
            | InstructionKind::Shell(words) => self.words("argument", words),
            InstructionKind::Healthcheck(Healthcheck::None) => self.text += "    none\n",
            InstructionKind::Healthcheck(Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            }) => {
                self.command(command);
                self.text += &format!(
                    "    interval {interval:?} timeout {timeout:?} start period {start_period:?} \
                     start interval {start_interval:?} retries {retries:?}\n"
                );
            }
            InstructionKind::Onbuild(trigger) => self.instruction(1, trigger),
            InstructionKind::Invalid => self.text += "    invalid\n",
        }
    }

    fn command(&mut self, command: &Command) {
        match command {
            Command::Shell(word) => self.word(2, "shell", word),
            Command::Exec(words) => {
                self.text += "    exec\n";
                self.words("argument", words);
            }
        }
    }
}
