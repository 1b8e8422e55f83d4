//! `build --on-error=shell`: a shell where a step failed.

use std::io;
use std::sync::Arc;

use builder::debug::{FailureHook, OnFailure, RERUN, StoppedStep};
use builder::error::StepError;
use builder::solve::cancel::Cancel;
use runner::terminal::{self, Signals};
use runner::{ExitStatus, Killer, Sandbox, SandboxError, Stdio};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use crate::args::{BuildArgs, OnError};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::Ui;
use crate::ui::progress::{Display, Screen};

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
            let note =
                format!("{RERUN} runs the command again; the build fails when the shell ends");
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
    let failed = |source| SandboxError::Io {
        what: "watch the terminal",
        source,
    };
    let resizes = Signals::resizes().map_err(failed)?;
    let size = terminal::size(rustix::stdio::stdin());
    let mut sandbox = step.start(argv, Some(size), Stdio::default())?;
    let (stopped, done) = io::pipe().map_err(failed)?;
    let killer = sandbox.killer();
    std::thread::scope(|scope| {
        std::thread::Builder::new()
            .name("debug".to_owned())
            .spawn_scoped(scope, || kill_if_cancelled(&killer, cancel, &stopped))
            .map_err(failed)?;
        let ended = attend(&mut sandbox, &resizes);
        drop(done);
        ended
    })
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
