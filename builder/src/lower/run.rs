//! `RUN`, and commands in general.

use super::stages::{StagePlan, Step};
use super::{Lowering, Outcome, StageState};
use crate::dockerfile::Diagnostic;
use crate::dockerfile::ast::{Command, Heredoc};
use crate::graph::{ExecOp, Op};

/// Interpreters whose `-c` does what a file with the same text would.
const SHELLS: [&str; 6] = ["sh", "ash", "bash", "dash", "ksh", "zsh"];

impl Lowering<'_> {
    pub(super) fn run(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        command: &Command,
    ) -> Outcome {
        self.check_run_flags(step)?;
        let argv = self.argv(state, step, command)?;
        let created_by = format!(
            "RUN {}{} # buildkit",
            state.scope.history_prefix(),
            argv.join(" ")
        );
        let op = Op::Exec(ExecOp {
            argv,
            env: state.scope.environment(),
            proxy_env: state.scope.proxies(&self.request.build_args),
            cwd: state.cwd().to_owned(),
            user: state.config.config.user.clone(),
        });
        let meta = self.step_metadata(state, plan, step);
        let vertex = self.definition.add(op, Vec::from_iter(state.root), meta);
        state.root = Some(vertex);
        state.record(created_by, Some(vertex));
        Ok(())
    }

    fn check_run_flags(&mut self, step: &Step<'_>) -> Outcome {
        for flag in &step.instruction.flags {
            let usual = match flag.name.as_str() {
                "network" => flag.value.as_deref() == Some("default"),
                "security" => flag.value.as_deref() == Some("sandbox"),
                _ => false,
            };
            if !usual {
                let message = format!("`RUN --{}` is not supported yet", flag.name);
                return self.refuse(Diagnostic::error(step.at(flag.span), message));
            }
        }
        Ok(())
    }

    fn argv(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        command: &Command,
    ) -> Outcome<Vec<String>> {
        let word = match command {
            Command::Exec(words) => {
                return Ok(words.iter().map(|word| word.text.clone()).collect());
            }
            Command::Shell(word) => word,
        };
        let body = |heredoc: &Heredoc| &step.text[heredoc.body.range()];
        match step.instruction.heredocs.as_slice() {
            // Nothing but a here-document: it is the script, also for shells that know no here-documents.
            [heredoc] if heredoc.word == word.span => {
                let script = match heredoc.strip_tabs {
                    true => strip_tabs(body(heredoc)),
                    false => body(heredoc).to_owned(),
                };
                match script.strip_prefix("#!") {
                    None => Ok(in_shell(state, script)),
                    Some(rest) => {
                        let interpreter = rest.lines().next().unwrap_or_default().trim();
                        self.interpret(step, heredoc, interpreter, &script)
                    }
                }
            }
            // The shell knows here-documents itself.
            heredocs => {
                let mut script = word.text.clone();
                for heredoc in heredocs {
                    script = format!("{script}\n{}{}", body(heredoc), heredoc.name);
                }
                Ok(in_shell(state, script))
            }
        }
    }

    /// The command for a script that names its interpreter.
    fn interpret(
        &mut self,
        step: &Step<'_>,
        heredoc: &Heredoc,
        interpreter: &str,
        script: &str,
    ) -> Outcome<Vec<String>> {
        let mut argv: Vec<String> = interpreter.split_whitespace().map(str::to_owned).collect();
        let base = |path: &String| path.rsplit('/').next().unwrap_or_default().to_owned();
        let program = match argv.as_slice() {
            [env, program, ..] if base(env) == "env" => base(program),
            [program, ..] => base(program),
            [] => String::new(),
        };
        if !SHELLS.contains(&program.as_str()) {
            let message =
                format!("a here-document for the interpreter `{interpreter}` is not supported yet");
            let help = format!(
                "`RUN {} <<{}` lets it read the script",
                program, heredoc.name
            );
            let span = step.at(heredoc.word);
            return self.refuse(Diagnostic::error(span, message).help(help));
        }
        argv.extend(["-c".to_owned(), script.to_owned()]);
        Ok(argv)
    }
}

/// A command in the stage's shell.
pub(super) fn in_shell(state: &StageState, script: String) -> Vec<String> {
    let mut argv = match &state.config.config.shell {
        Some(shell) => shell.clone(),
        None => vec!["/bin/sh".to_owned(), "-c".to_owned()],
    };
    argv.push(script);
    argv
}

/// A command as it stands in the configuration.
pub(super) fn configured(state: &StageState, command: &Command) -> Vec<String> {
    match command {
        Command::Exec(words) => words.iter().map(|word| word.text.clone()).collect(),
        Command::Shell(word) => in_shell(state, word.text.clone()),
    }
}

/// A here-document opened with `<<-`: without the tabs at the start of its lines.
pub(super) fn strip_tabs(text: &str) -> String {
    text.split_inclusive('\n')
        .map(|line| line.trim_start_matches('\t'))
        .collect()
}
