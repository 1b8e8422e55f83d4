//! `debug`, and `build --on-error=shell`: a shell in a step's place.

use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use builder::BuildEnvironment;
use builder::debug::{
    DebugRequest, FailureHook, OnFailure, RERUN, Restored, StepState, StoppedStep,
};
use builder::error::StepError;
use builder::history::{BuildHistory, StepHistory, Verdict};
use builder::solve::cancel::Cancel;
use builder::solve::{ProgressEvent, ProgressSink};
use runner::terminal::{self, Signals};
use runner::{ExitStatus, Killer, Sandbox, SandboxError, Stdio, Stream};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use super::history::{find_build, matching};
use super::interrupt::Watch;
use crate::args::{BuildArgs, DebugArgs, DebugState, OnError};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::Ui;
use crate::ui::progress::{Display, Screen};

/// `longshore debug`: exits as the command does.
pub fn debug(context: &Context, args: &DebugArgs) -> Result<ExitCode, CliError> {
    let terminal = no_terminal();
    if let Some(what) = terminal.filter(|_| args.command.is_empty()) {
        let message = format!("a shell needs a terminal, and {what} is none");
        let error = CliError::new(Kind::Usage, message);
        return Err(error.hint("name a command: `longshore debug BUILD STEP -- COMMAND`"));
    }
    if let Some(text) = args.env.iter().find(|text| !is_variable(text)) {
        let message = format!("invalid variable `{text}`: expected NAME=VALUE");
        return Err(CliError::new(Kind::Usage, message));
    }
    let cancel = Cancel::new().blame(Kind::Environment)?;
    let watch = Watch::start(&cancel)?;
    let store = Arc::new(context.store()?);
    let build = find_build(&store, &args.build)?;
    let step = only(&build, &args.step)?;
    let remote = super::transfer::remote(context)?;
    let environment = BuildEnvironment {
        store: &store,
        remote: &remote,
        cancel: &cancel,
    };
    let request = DebugRequest {
        build: &build,
        step,
        state: args.state.map(|state| match state {
            DebugState::Before => StepState::Before,
            DebugState::Failed => StepState::Failed,
            DebugState::After => StepState::After,
        }),
        run: super::steps::given(context, &args.secrets, &args.ssh)?,
        env: args.env.clone(),
    };
    let progress: Arc<dyn ProgressSink> = Arc::new(Notes(context.ui));
    let ended = builder::debug::with_step(environment, &request, &progress, |stopped, restored| {
        for note in &restored.notes {
            context.ui.warning(note);
        }
        if args.command.is_empty() {
            introduce(context.ui, stopped, Some(&state_text(step, restored)));
            if stopped.command().is_some() {
                context.ui.note(&format!("{RERUN} runs the command"));
            }
            interact(stopped, args.shell.as_deref(), &cancel)
        } else if terminal.is_none() {
            Ok(on_terminal(stopped, &args.command, &cancel)?)
        } else {
            Ok(on_streams(stopped, &args.command, &cancel)?)
        }
    });
    watch.stop();
    let status = ended??;
    if cancel.is_cancelled() {
        return Err(CliError::new(Kind::Interrupted, "interrupted"));
    }
    // The kernel gives no more than eight bits of a code.
    let code = u8::try_from(status.code() & 0xff).expect("eight bits");
    Ok(ExitCode::from(code))
}

fn is_variable(text: &str) -> bool {
    text.split_once('=')
        .is_some_and(|(name, _)| !name.is_empty())
}

/// The one step that a text names.
fn only<'b>(build: &'b BuildHistory, text: &str) -> Result<&'b StepHistory, CliError> {
    match matching(build, Some(text))?[..] {
        [step] => Ok(step),
        ref several => {
            let names = several
                .iter()
                .map(|step| format!("#{} {}", step.number, step.name));
            let names: Vec<String> = names.collect();
            let message = format!("several steps of build {} are `{text}`", build.id);
            Err(CliError::new(Kind::Input, message)
                .hint(format!("say which one:\n{}", names.join("\n"))))
        }
    }
}

fn state_text(step: &StepHistory, restored: &Restored) -> String {
    match restored.state {
        StepState::Before => "files as before the step".to_owned(),
        StepState::After => "files as after the step".to_owned(),
        StepState::Failed => {
            let error = step.error.as_deref().unwrap_or_default();
            let code = error.rsplit_once("exit code: ").map(|(_, code)| code);
            match code {
                Some(code) => format!("files as the step left them: exit code: {code}"),
                None => "files as the step left them when it failed".to_owned(),
            }
        }
    }
}

/// How to look at the RUN that a build failed with, if there is one.
pub fn suggestion(build: &BuildHistory) -> Option<String> {
    let mut steps = build.steps.iter();
    let failed = steps.find(|step| step.verdict == Verdict::Failed && step.kind == "exec")?;
    let (id, number) = (&build.id, failed.number);
    Some(format!(
        "look around in it: `longshore debug {id} {number}`"
    ))
}

/// Shows what a step's mounts have to say, such as what they wait for.
struct Notes(Ui);

impl ProgressSink for Notes {
    fn event(&self, event: ProgressEvent) {
        if let ProgressEvent::Note { text, .. } = event {
            self.0.note(&text);
        }
    }
}

/// Refuses `--on-error=shell` where nobody can type.
pub fn check_terminal(args: &BuildArgs) -> Result<(), CliError> {
    if args.on_error == OnError::Fail {
        return Ok(());
    }
    match no_terminal() {
        None => Ok(()),
        Some(what) => {
            let message = format!("--on-error=shell needs a terminal, and {what} is none");
            let hint = "look later: `longshore debug latest STEP -- COMMAND`";
            Err(CliError::new(Kind::Usage, message).hint(hint))
        }
    }
}

/// Which of the two streams that a shell needs is no terminal.
fn no_terminal() -> Option<&'static str> {
    if !rustix::termios::isatty(rustix::stdio::stdin()) {
        return Some("stdin");
    }
    (!rustix::termios::isatty(rustix::stdio::stdout())).then_some("stdout")
}

/// What a build does about a step that fails.
pub fn on_failure(
    context: &Context,
    args: &BuildArgs,
    display: &Display,
    cancel: &Cancel,
) -> Option<FailureHook> {
    let OnError::Shell(shell) = &args.on_error else {
        return None;
    };
    Some(FailureHook(Arc::new(ShellOnFailure {
        ui: context.ui,
        screen: display.screen(),
        cancel: cancel.clone(),
        shell: shell.clone(),
    })))
}

struct ShellOnFailure {
    ui: Ui,
    screen: Screen,
    cancel: Cancel,
    shell: Option<String>,
}

impl OnFailure for ShellOnFailure {
    fn failed(&self, step: &StoppedStep<'_>, error: &StepError) {
        self.screen.lend(|| {
            let code = match error {
                StepError::Process { status, .. } => format!("exit code: {status}"),
                error => error.to_string(),
            };
            introduce(self.ui, step, Some(&code));
            let what = match step.command() {
                Some(_) => format!("{RERUN} runs the command again"),
                None => "files as before the step".to_owned(),
            };
            let note = format!("{what}; the build fails when the shell ends");
            self.ui.note(&note);
            // The build's own error follows whatever comes of it.
            if let Err(error) = interact(step, self.shell.as_deref(), &self.cancel) {
                self.ui.error(&error);
            }
        });
    }
}

/// Says where the shell is.
fn introduce(ui: Ui, step: &StoppedStep<'_>, ended: Option<&str>) {
    ui.note(&format!("\n> {}", step.name()));
    if let Some(command) = step.command() {
        ui.note(&format!("> {command}"));
    }
    if let Some(ended) = ended {
        ui.note(&format!("> {ended}"));
    }
}

/// Opens a shell on the terminal and stays until it ends.
fn interact(
    step: &StoppedStep<'_>,
    shell: Option<&str>,
    cancel: &Cancel,
) -> Result<ExitStatus, CliError> {
    if let Some(shell) = shell {
        return Ok(on_terminal(step, &[shell.to_owned()], cancel)?);
    }
    let shells = step.shells();
    for shell in &shells {
        match on_terminal(step, std::slice::from_ref(shell), cancel) {
            // Neither here nor runnable: the next one.
            Err(error) if matches!(error.exit_code(), 126 | 127) => {}
            ended => return Ok(ended?),
        }
    }
    let message = format!(
        "there is no shell in the image: tried {}",
        shells.join(", ")
    );
    Err(CliError::new(Kind::Input, message).hint("name another one: shell=PATH"))
}

/// Runs a command on the terminal, until it ends or the build is cancelled.
fn on_terminal(
    step: &StoppedStep<'_>,
    argv: &[String],
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let resizes = Signals::resizes().map_err(failed)?;
    let size = terminal::size(rustix::stdio::stdin());
    let mut sandbox = step.start(argv, Some(size), Stdio::default())?;
    until_cancelled(&mut sandbox, cancel, |sandbox| attend(sandbox, &resizes))
}

/// Runs a command with the streams that this one has.
fn on_streams(
    step: &StoppedStep<'_>,
    argv: &[String],
    cancel: &Cancel,
) -> Result<ExitStatus, SandboxError> {
    let stdio = Stdio {
        stdin: Stream::Inherit,
        stdout: Stream::Inherit,
        stderr: Stream::Inherit,
    };
    let mut sandbox = step.start(argv, None, stdio)?;
    until_cancelled(&mut sandbox, cancel, Sandbox::wait)
}

/// Waits in the way that `wait` does, and kills the process if the flag is set meanwhile.
fn until_cancelled(
    sandbox: &mut Sandbox,
    cancel: &Cancel,
    wait: impl FnOnce(&mut Sandbox) -> Result<ExitStatus, SandboxError>,
) -> Result<ExitStatus, SandboxError> {
    let (stopped, done) = io::pipe().map_err(failed)?;
    let killer = sandbox.killer();
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("debug".to_owned())
            .spawn_scoped(scope, || kill_if_cancelled(&killer, cancel, &stopped))
            .map_err(failed)?;
        let ended = wait(sandbox);
        drop(done);
        ended
    })
}

fn failed(source: io::Error) -> SandboxError {
    SandboxError::Io {
        what: "watch the terminal",
        source,
    }
}

fn attend(sandbox: &mut Sandbox, signals: &Signals) -> Result<ExitStatus, SandboxError> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    terminal::attend(sandbox, signals, stdin, stdout)
}

/// Waits until the build is cancelled, and ends the process then; or until nobody waits for that any more.
fn kill_if_cancelled(killer: &Killer, cancel: &Cancel, stopped: &io::PipeReader) {
    let mut fds = [
        PollFd::new(cancel, PollFlags::IN),
        PollFd::new(stopped, PollFlags::IN),
    ];
    while let Err(rustix::io::Errno::INTR) = poll(&mut fds, None) {}
    if cancel.is_cancelled() {
        // It may have ended by itself.
        let _ended = killer.kill(Signal::KILL.as_raw());
    }
}
