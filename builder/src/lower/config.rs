//! The instructions that only change the image's configuration.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::run::configured;
use super::stages::Step;
use super::{Lowering, Outcome, StageState, go_format, ports, signals};
use crate::checks::values;
use crate::dockerfile::ast::{
    ArgDeclaration, Command, Healthcheck, Instruction, KeyValue, KeyValues,
};
use crate::dockerfile::{Diagnostic, Word};

/// What a port costs of what lowering may, in the unit of words' costs: it stands in the history, a list and a map.
const COST_OF_PORT: usize = 800;

impl Lowering<'_> {
    pub(super) fn env(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        env: &KeyValues,
    ) -> Outcome {
        let pairs = self.pairs(state, step, env, "ENV")?;
        for (name, value) in &pairs {
            state.scope.set(name, value);
            state.env.set(name, value);
        }
        state.record(format!("ENV {}", joined(&pairs)), None);
        Ok(())
    }

    pub(super) fn label(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        labels: &KeyValues,
    ) -> Outcome {
        let pairs = self.pairs(state, step, labels, "LABEL")?;
        state.record(format!("LABEL {}", joined(&pairs)), None);
        let known = state.config.config.labels.get_or_insert_default();
        known.extend(pairs);
        Ok(())
    }

    /// The pairs, expanded with the variables as they were before the instruction.
    fn pairs(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        written: &KeyValues,
        keyword: &str,
    ) -> Outcome<Vec<(String, String)>> {
        let mut pairs = Vec::new();
        for KeyValue { key, value } in &written.pairs {
            let name = self.expand(state, step, key)?.text;
            if name.is_empty() {
                let message = format!("a key of `{keyword}` is empty once it is expanded");
                return self.refuse(Diagnostic::error(step.at(key.span), message));
            }
            pairs.push((name, self.expand(state, step, value)?.text));
        }
        Ok(pairs)
    }

    pub(super) fn arg(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        declarations: &[ArgDeclaration],
    ) -> Outcome {
        let mut shown = Vec::new();
        // One after the other: a default may use the names before it.
        for declaration in declarations {
            let name = self.expand(state, step, &declaration.name)?.text;
            let value = match (self.request.build_args.get(&name), &declaration.default) {
                (Some(given), _) => Some(given.clone()),
                (None, Some(default)) => Some(self.expand(state, step, default)?.text),
                (None, None) => self.stages.globals.value(&name).map(str::to_owned),
            };
            state.scope.declare(&name, value.as_deref());
            shown.push(match value {
                Some(value) => format!("{name}={value}"),
                None => name,
            });
        }
        state.record(format!("ARG {}", shown.join(" ")), None);
        Ok(())
    }

    pub(super) fn user(&mut self, state: &mut StageState, step: &Step<'_>, user: &Word) -> Outcome {
        let user = self.expand(state, step, user)?.text;
        state.record(format!("USER {user}"), None);
        state.config.config.user = user;
        Ok(())
    }

    /// Warns of a command that a shell will run, unless the shell was chosen.
    fn check_form(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        keyword: &str,
        command: &Command,
    ) {
        if let Command::Shell(_) = command {
            let span = step.at(step.instruction.head);
            let chosen = state.config.config.shell.is_some();
            self.diagnostics
                .extend(values::shell_form(keyword, span, chosen));
        }
    }

    pub(super) fn cmd(&mut self, state: &mut StageState, step: &Step<'_>, command: &Command) {
        self.check_form(state, step, "CMD", command);
        let argv = configured(state, command);
        state.record(format!("CMD {}", go_format::quoted_list(&argv)), None);
        let config = &mut state.config.config;
        config.cmd = Some(argv);
        state.runs = true;
        // As BuildKit has it on every platform, whatever the command's form.
        let escaped = ("ArgsEscaped".to_owned(), true.into());
        config.extra.extend([escaped]);
        state.cmd_set = true;
    }

    pub(super) fn entrypoint(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        command: &Command,
    ) {
        self.check_form(state, step, "ENTRYPOINT", command);
        let argv = configured(state, command);
        let list = go_format::quoted_list(&argv);
        state.record(format!("ENTRYPOINT {list}"), None);
        state.config.config.entrypoint = Some(argv);
        state.runs = true;
        if !state.cmd_set {
            state.config.config.cmd = None;
        }
    }

    pub(super) fn expose(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        words: &[Word],
    ) -> Outcome {
        let mut exposed = BTreeSet::new();
        for word in words {
            for text in self.expand(state, step, word)?.words {
                self.diagnostics
                    .extend(values::port(&text, step.at(word.span)));
                match ports::parse(&text) {
                    Ok(ports) => {
                        self.spend(step, COST_OF_PORT * ports.len())?;
                        exposed.extend(ports);
                    }
                    Err(error) => {
                        let span = step.at(word.span);
                        return self.refuse(Diagnostic::error(span, error.to_string()));
                    }
                }
            }
        }
        let shown: Vec<&str> = exposed.iter().map(String::as_str).collect();
        state.record(format!("EXPOSE [{}]", shown.join(" ")), None);
        let known = state.config.config.exposed_ports.get_or_insert_default();
        known.extend(exposed.into_iter().map(|port| (port, Map::new())));
        Ok(())
    }

    pub(super) fn volume(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        words: &[Word],
    ) -> Outcome {
        let mut paths = Vec::new();
        for word in words {
            let path = self.expand(state, step, word)?.text;
            if path.trim().is_empty() {
                let message = format!("the path `{}` is empty once it is expanded", word.text);
                return self.refuse(Diagnostic::error(step.at(word.span), message));
            }
            paths.push(path);
        }
        state.record(format!("VOLUME [{}]", paths.join(" ")), None);
        let known = state.config.config.volumes.get_or_insert_default();
        known.extend(paths.into_iter().map(|path| (path, Map::new())));
        Ok(())
    }

    pub(super) fn stop_signal(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        word: &Word,
    ) -> Outcome {
        let signal = self.expand(state, step, word)?.text;
        if !signals::is_signal(&signal) {
            let message = format!("`{signal}` is not a signal");
            let near = signals::nearest_name(&signal);
            let diagnostic = Diagnostic::error(step.at(word.span), message);
            return self.refuse(diagnostic.suggest(near.as_deref()));
        }
        state.record(format!("STOPSIGNAL {signal}"), None);
        state.config.config.stop_signal = Some(signal);
        Ok(())
    }

    pub(super) fn shell(&mut self, state: &mut StageState, words: &[Word]) {
        let argv: Vec<String> = words.iter().map(|word| word.text.clone()).collect();
        state.record(format!("SHELL [{}]", argv.join(" ")), None);
        state.config.config.shell = Some(argv);
    }

    pub(super) fn healthcheck(&mut self, state: &mut StageState, check: &Healthcheck) {
        let (test, durations, retries) = match check {
            Healthcheck::None => (vec!["NONE".to_owned()], [0; 4], 0),
            Healthcheck::Check {
                command,
                interval,
                timeout,
                start_period,
                start_interval,
                retries,
            } => {
                let test = match command {
                    Command::Exec(words) => std::iter::once("CMD".to_owned())
                        .chain(words.iter().map(|word| word.text.clone()))
                        .collect(),
                    Command::Shell(word) => vec!["CMD-SHELL".to_owned(), word.text.clone()],
                };
                let durations = [interval, timeout, start_period, start_interval]
                    .map(|duration| duration.unwrap_or_default());
                (test, durations, retries.unwrap_or_default())
            }
        };
        // The Go value in the form that its formatter gives it.
        let shown = durations.map(|duration| format!("\"{}\"", go_format::duration(duration)));
        state.record(
            format!(
                "HEALTHCHECK &{{{} {} {}}}",
                go_format::quoted_list(&test),
                shown.join(" "),
                go_format::quoted_char(retries)
            ),
            None,
        );
        let mut value = Map::new();
        value.insert("Test".to_owned(), json!(test));
        let names = ["Interval", "Timeout", "StartPeriod", "StartInterval"];
        for (name, duration) in names.into_iter().zip(durations) {
            if duration > 0 {
                value.insert(name.to_owned(), json!(duration));
            }
        }
        if retries > 0 {
            value.insert("Retries".to_owned(), json!(retries));
        }
        state.config.config.healthcheck = Some(Value::Object(value));
    }

    pub(super) fn maintainer(&mut self, state: &mut StageState, name: &Word) {
        state.record(format!("MAINTAINER {}", name.text), None);
        state.config.author = Some(name.text.clone());
    }

    /// Stores the trigger's text; it makes no entry in the history.
    pub(super) fn onbuild(
        &mut self,
        state: &mut StageState,
        step: &Step<'_>,
        trigger: &Instruction,
    ) {
        let mut text = trigger.line.clone();
        for heredoc in &trigger.heredocs {
            let body = &step.text[heredoc.body.range()];
            text = format!("{text}\n{body}{}", heredoc.name);
        }
        let triggers = state.config.config.on_build.get_or_insert_default();
        triggers.push(text);
    }
}

fn joined(pairs: &[(String, String)]) -> String {
    let pair = |(key, value): &(String, String)| format!("{key}={value}");
    pairs.iter().map(pair).collect::<Vec<_>>().join(" ")
}
