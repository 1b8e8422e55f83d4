//! `run` and `start`: who starts a container, and may stay with it.

use std::process::ExitCode;
use std::sync::Arc;

use runner::container::Status;
use runner::container::attend::{Attend, Attended, Pipes, attend};
use runner::container::client::{Client, Start};
use runner::terminal::{self, Signals};
use store::Store;

use super::{Known, create, each, flags, launch, lifecycle};
use crate::args::{RunArgs, StartArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// `longshore run`: exits as the command does.
pub fn run(context: &Context, args: &RunArgs) -> Result<ExitCode, CliError> {
    run_image(context, args).map_err(|error| match error.kind {
        Kind::RunNotFound | Kind::RunNotExecutable | Kind::OutputClosed => error,
        _ => error.of_kind(Kind::Run),
    })
}

fn run_image(context: &Context, args: &RunArgs) -> Result<ExitCode, CliError> {
    let detach_keys = flags::detach_keys(args.detach_keys.as_deref())?;
    let asked = &args.create.attach;
    if args.detach && !asked.is_empty() {
        return Err(CliError::new(Kind::Usage, "Conflicting options: -a and -d"));
    }
    let is_attached =
        |name: &str| asked.is_empty() || asked.iter().any(|asked| asked.eq_ignore_ascii_case(name));
    let outputs = ["stdout", "stderr"].map(is_attached);
    if args.create.tty && args.create.interactive && !args.detach {
        check_terminal()?;
    }
    let (store, container) = create::make(context, &args.create, args.detach)?;
    let known = Known::of(container)?;
    let outcome = match args.detach {
        true => detached(context, &store, &known),
        false => {
            let stay = Stay {
                stdin: args.create.interactive && is_attached("stdin"),
                outputs,
                sig_proxy: args.sig_proxy,
                detach_keys: &detach_keys,
                owned: true,
            };
            if outputs == [false; 2] {
                // As docker: nothing else tells which it is.
                context.ui.line(&known.container.id.to_string())?;
            }
            attached(context, &store, &known, &stay)
        }
    };
    let is_over = match &outcome {
        Ok(Ended::Exited(_)) | Err(_) => true,
        Ok(Ended::LeftRunning) => false,
    };
    if known.record.auto_remove && is_over {
        lifecycle::remove(&store, &known.container, true)?;
    }
    match outcome? {
        Ended::Exited(code) => Ok(exit_code(code)),
        Ended::LeftRunning => {
            if args.detach {
                context.ui.line(&known.container.id.to_string())?;
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

/// As docker: what is typed cannot go to a terminal if it does not come from one.
fn check_terminal() -> Result<(), CliError> {
    match rustix::termios::isatty(rustix::stdio::stdin()) {
        true => Ok(()),
        false => Err(CliError::new(Kind::Run, "the input device is not a TTY")
            .hint("leave out -t to pass a file or pipe to the command")),
    }
}

/// How a command's time with a container ended.
pub enum Ended {
    /// The process has ended.
    Exited(i32),
    /// It runs on.
    LeftRunning,
}

/// How one stays with a container.
pub struct Stay<'a> {
    /// Whether it is given what comes in.
    pub stdin: bool,
    /// Whether its standard output and its standard error are shown.
    pub outputs: [bool; 2],
    /// Whether it is given signals.
    pub sig_proxy: bool,
    /// The keys that leave it running.
    pub detach_keys: &'a [u8],
    /// Whether it ends with this command.
    pub owned: bool,
}

/// The exit code of a process: the kernel gives no more than eight bits of one.
pub fn exit_code(code: i32) -> ExitCode {
    ExitCode::from(u8::try_from(code & 0xff).expect("eight bits"))
}

fn detached(context: &Context, store: &Store, known: &Known) -> Result<Ended, CliError> {
    let held = known.folder.hold()?;
    launch::launch(context, store, known, &held, &Start::default())?;
    Ok(Ended::LeftRunning)
}

/// Starts a container with this command's streams, and stays until it ends.
fn attached(
    context: &Context,
    store: &Arc<Store>,
    known: &Known,
    stay: &Stay<'_>,
) -> Result<Ended, CliError> {
    // From here on signals are the container's; until now they ended a pull. No thread may be there yet: it would take
    // them as its own.
    let signals = Signals::collect().blame(Kind::Run)?;
    let pipes = Pipes::new().blame(Kind::Run)?;
    let held = known.folder.hold()?;
    let start = Start {
        streams: Some(pipes.far()),
        owned: stay.owned,
        terminal_size: terminal::size(rustix::stdio::stdout()),
        ..Start::default()
    };
    let client = launch::launch(context, store, known, &held, &start)?;
    drop(held);
    stay_with(context, &client, pipes, known, stay, &signals)
}

/// Stays with a container to which `pipes` are connected.
pub fn stay_with(
    context: &Context,
    client: &Client,
    pipes: Pipes,
    known: &Known,
    stay: &Stay<'_>,
    signals: &Signals,
) -> Result<Ended, CliError> {
    let how = Attend {
        signals: Some(signals),
        pass_signals: stay.sig_proxy,
        terminal: known.record.tty,
        stdin: stay.stdin,
        outputs: stay.outputs,
        detach_keys: match known.record.tty {
            true => stay.detach_keys,
            false => &[],
        },
    };
    match attend(client, pipes, &how) {
        Ok(Attended::Exited(code)) => {
            // Until the supervisor is through with what comes after an end.
            client.closed();
            let state = known.folder.state();
            if state.is_ok_and(|state| state.oom_killed) {
                context
                    .ui
                    .note("The container reached its memory limit (-m), and the kernel killed a process of it.");
            }
            Ok(Ended::Exited(code))
        }
        Ok(Attended::Detached) => Ok(Ended::LeftRunning),
        Err(error) => Err(error.into()),
    }
}

/// `longshore start`.
pub fn start(context: &Context, args: &StartArgs) -> Result<ExitCode, CliError> {
    let store = Arc::new(context.store()?);
    if args.attach || args.interactive {
        let [name] = &args.containers[..] else {
            let message = "only one container can be started with --attach or --interactive";
            return Err(CliError::new(Kind::Usage, message));
        };
        let detach_keys = flags::detach_keys(args.detach_keys.as_deref())?;
        let known = Known::find(&store, name)?;
        if known.state.status.is_live() {
            let message = format!("container `{name}` is already running");
            return Err(
                CliError::new(Kind::Input, message).hint("`longshore attach` shows what it prints")
            );
        }
        let stay = Stay {
            stdin: args.interactive && known.record.stdin,
            outputs: [true; 2],
            sig_proxy: true,
            detach_keys: &detach_keys,
            owned: false,
        };
        let ended = attached(context, &store, &known, &stay)?;
        return Ok(match ended {
            Ended::Exited(code) => {
                if known.record.auto_remove {
                    lifecycle::remove(&store, &known.container, true)?;
                }
                exit_code(code)
            }
            Ended::LeftRunning => ExitCode::SUCCESS,
        });
    }
    each(context, &args.containers, |name| {
        let known = Known::find(&store, name)?;
        start_one(context, &store, &known)?;
        Ok(Some(name.to_owned()))
    })
}

/// Starts a container, unless it runs.
pub fn start_one(context: &Context, store: &Store, known: &Known) -> Result<(), CliError> {
    let held = known.folder.hold()?;
    match known.folder.state()?.status {
        Status::Paused => {
            let message = format!("container `{}` is paused", known.container.name);
            return Err(
                CliError::new(Kind::Input, message).hint("`longshore unpause` lets it go on")
            );
        }
        status if status.is_live() => return Ok(()),
        _ => {}
    }
    launch::launch(context, store, known, &held, &Start::default())
        .map_err(|error| error.of_kind(Kind::Input))?;
    Ok(())
}
