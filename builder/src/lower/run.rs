//! `RUN`, and commands in general.

use super::stages::{StagePlan, Step};
use super::{Lowering, Outcome, StageState};
use crate::dockerfile::ast::{Command, Heredoc};
use crate::dockerfile::suggest::nearest;
use crate::dockerfile::{Diagnostic, Span};
use crate::graph::exec::{DeviceRequest, Network, SCRIPTS, Security};
use crate::graph::{ExecOp, Op};
use crate::request::Entitlement;

impl Lowering<'_> {
    pub(super) fn run(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        command: &Command,
    ) -> Outcome {
        let (argv, script) = self.argv(state, step, command);
        let mut inputs = Vec::from_iter(state.root);
        let mounts = self.mounts(state, plan, step, &mut inputs);
        let network = self.network(step);
        let security = self.security(step);
        let devices = self.devices(step);
        let created_by = format!(
            "RUN {}{} # buildkit",
            state.scope.history_prefix(),
            argv.join(" ")
        );
        let mut setting = self.request.run.setting.clone();
        if let Some(hostname) = self.request.build_args.get("BUILDKIT_SANDBOX_HOSTNAME") {
            setting.hostname.clone_from(hostname);
        }
        let platform = state.config.platform();
        let foreign = !platform.satisfies(&self.request.build_platform);
        let op = Op::Exec(ExecOp {
            argv,
            env: state.scope.environment(),
            proxy_env: state.scope.proxies(&self.request.build_args),
            cwd: state.cwd().to_owned(),
            user: state.config.config.user.clone(),
            on_base: state.root.is_some(),
            script,
            mounts: mounts?,
            network: network?,
            security: security?,
            devices: devices?,
            setting,
            foreign: foreign.then(|| Box::new(platform)),
        });
        let meta = self.step_metadata(state, plan, step);
        let vertex = self.definition.add(op, inputs, meta);
        state.root = Some(vertex);
        state.record(created_by, Some(vertex));
        Ok(())
    }

    /// `--network`, or what the build says.
    fn network(&mut self, step: &Step<'_>) -> Outcome<Network> {
        let Some(flag) = step.instruction.flag("network") else {
            return Ok(self.request.run.network);
        };
        let span = step.at(flag.span);
        let network = match flag.value.as_deref().unwrap_or_default() {
            // As for the whole build, which may have been told otherwise.
            "default" => return Ok(self.request.run.network),
            "none" => Network::None,
            "host" => Network::Host,
            other => {
                let message = format!("there is no network `{other}` for a step");
                let near = nearest(other, ["default", "none", "host"]);
                return self.refuse(one_of(span, message, near, "`default`, `none` or `host`"));
            }
        };
        if network == Network::Host {
            self.entitled(&Entitlement::NetworkHost, span)?;
        }
        Ok(network)
    }

    /// `--security`
    fn security(&mut self, step: &Step<'_>) -> Outcome<Security> {
        let Some(flag) = step.instruction.flag("security") else {
            return Ok(Security::Sandbox);
        };
        let span = step.at(flag.span);
        match flag.value.as_deref().unwrap_or_default() {
            "sandbox" => Ok(Security::Sandbox),
            "insecure" => {
                self.entitled(&Entitlement::SecurityInsecure, span)?;
                Ok(Security::Insecure)
            }
            other => {
                let message = format!("there is no security mode `{other}`");
                let near = nearest(other, ["sandbox", "insecure"]);
                self.refuse(one_of(span, message, near, "`sandbox` or `insecure`"))
            }
        }
    }

    /// `--device`: `NAME[,required]`, or `name=NAME[,required[=true|false]]`.
    fn devices(&mut self, step: &Step<'_>) -> Outcome<Vec<DeviceRequest>> {
        let mut devices = Vec::new();
        for flag in step.instruction.flags.iter().filter(|f| f.name == "device") {
            let text = flag.value.as_deref().unwrap_or_default();
            match device(text) {
                Ok(device) => devices.push(device),
                Err(why) => {
                    let message = format!("the device `{text}` cannot be used: {why}");
                    return self.refuse(Diagnostic::error(step.at(flag.span), message).help(
                        "a device is `vendor/class=name`, and may be followed by `,required`",
                    ));
                }
            }
        }
        Ok(devices)
    }

    /// Refuses what was not allowed on the command line.
    fn entitled(&mut self, needed: &Entitlement, span: Span) -> Outcome {
        if self.request.run.allow.contains(needed) {
            return Ok(());
        }
        let message = format!("this needs the entitlement `{needed}`, which was not given");
        self.refuse(Diagnostic::error(span, message).help(format!("build with `--allow {needed}`")))
    }

    /// The command, and the script that it runs if that is a here-document with an interpreter line.
    fn argv(
        &self,
        state: &StageState,
        step: &Step<'_>,
        command: &Command,
    ) -> (Vec<String>, Option<(String, String)>) {
        let word = match command {
            Command::Exec(words) => {
                return (words.iter().map(|word| word.text.clone()).collect(), None);
            }
            Command::Shell(word) => word,
        };
        let body = |heredoc: &Heredoc| &step.text[heredoc.body.range()];
        match step.instruction.heredocs.as_slice() {
            // Nothing but a here-document: it is the script, also for shells that know no here-documents.
            [heredoc] if heredoc.word == word.span => {
                let text = match heredoc.strip_tabs {
                    true => strip_tabs(body(heredoc)),
                    false => body(heredoc).to_owned(),
                };
                if !text.starts_with("#!") {
                    return (in_shell(state, text), None);
                }
                let path = format!("{SCRIPTS}/{}", heredoc.name);
                (in_shell(state, path), Some((heredoc.name.clone(), text)))
            }
            // The shell knows here-documents itself.
            heredocs => {
                let mut script = word.text.clone();
                for heredoc in heredocs {
                    script = format!("{script}\n{}{}", body(heredoc), heredoc.name);
                }
                (in_shell(state, script), None)
            }
        }
    }
}

/// An error about a word that is none of a few.
fn one_of(span: Span, message: String, near: Option<&str>, known: &str) -> Diagnostic {
    let diagnostic = Diagnostic::error(span, message);
    match near {
        Some(near) => diagnostic.suggest(Some(near)),
        None => diagnostic.help(format!("it is {known}")),
    }
}

/// Reads the value of `--device`.
fn device(text: &str) -> Result<DeviceRequest, String> {
    let mut device = DeviceRequest {
        name: String::new(),
        required: false,
    };
    for (position, field) in text.split(',').enumerate() {
        match field.split_once('=') {
            _ if field.eq_ignore_ascii_case("required") => device.required = true,
            Some((key, value)) if key.eq_ignore_ascii_case("required") => {
                device.required = match value {
                    "true" | "1" => true,
                    "false" | "0" => false,
                    _ => return Err(format!("`required` is `true` or `false`, not `{value}`")),
                };
            }
            Some((key, value)) if key.eq_ignore_ascii_case("name") => {
                value.clone_into(&mut device.name);
            }
            _ if position == 0 => field.clone_into(&mut device.name),
            _ => return Err(format!("`{field}` is no option of a device")),
        }
    }
    match device.name.is_empty() {
        true => Err("it has no name".to_owned()),
        false => Ok(device),
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
