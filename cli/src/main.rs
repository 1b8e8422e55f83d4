//! The `longshore` binary: flags in, a command run, an exit code out.
//!
//! | module | holds |
//! |---|---|
//! | [`args`] | the command line, as types |
//! | [`config`] | the configuration file |
//! | [`context`] | flags and environment put together; the only reader of the environment |
//! | [`commands`] | one function per command |
//! | [`networks`] | places in networks, as the store keeps them and the runner needs them |
//! | [`quantity`] | sizes and durations |
//! | [`template`] | `--format`: templates over what is printed |
//! | [`error`] | whose fault an error is, and the exit code for it |
//! | [`ui`] | everything that is printed |

#![forbid(unsafe_code)]
#![expect(
    unreachable_pub,
    reason = "a binary exports nothing: `pub` marks what a module is there for"
)]

mod args;
mod commands;
mod config;
mod context;
mod error;
mod networks;
mod quantity;
mod template;
mod ui;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use crate::args::{Cli, LogLevel, unbuilt, words};
use crate::context::Context;
use crate::error::{CliError, Kind};

fn main() -> ExitCode {
    // A sandbox's helper is this program again: nothing may come before this line.
    runner::reexec_if_child();
    let arguments = words::in_own_words(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return misread(&error, &arguments),
    };
    exit_with_a_code_of_our_own_on_panic();
    let is_root = rustix::process::geteuid().is_root();
    let context = Context::new(&cli.global, is_root);
    // Forks when not root: no thread, no file of ours and no logging may be there yet.
    if cli.command.uses_the_store()
        && let Err(error) = runner::enter_user_namespace()
    {
        let error = CliError::from(error);
        context.ui.error(&error);
        return ExitCode::from(&error);
    }
    start_logging(cli.global.log_level);
    match commands::run(&context, cli.command) {
        Ok(code) => code,
        Err(error) => {
            if error.kind != Kind::OutputClosed {
                context.ui.error(&error);
            }
            ExitCode::from(&error)
        }
    }
}

/// Prints why the command line makes no sense, or the help that was asked for. As docker's, `run` ends with 125 whatever keeps
/// it from starting a container: its other codes are the container's.
fn misread(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    let command = words::command_at(arguments).map(|at| &arguments[at]);
    let word = command.and_then(|word| word.to_str()).unwrap_or_default();
    let _printed = match unbuilt_flag(error, word) {
        Some((flag, (whose, advice))) => {
            let text = format!("error: {whose} flag `{flag}` is not built\n  tip: {advice}\n");
            std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes())
        }
        None => error.print(),
    };
    match error.exit_code() {
        0 => ExitCode::SUCCESS,
        _ if command.is_some_and(|word| word == "run") => ExitCode::from(Kind::Run.exit_code()),
        code => ExitCode::from(u8::try_from(code).unwrap_or(1)),
    }
}

/// The flag that is not known, if another tool has it; whose it is, and what to do without it.
fn unbuilt_flag(
    error: &clap::Error,
    command: &str,
) -> Option<(String, (&'static str, &'static str))> {
    use clap::error::{ContextKind, ContextValue, ErrorKind};
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(flag)) = error.get(ContextKind::InvalidArg) else {
        return None;
    };
    Some((flag.clone(), unbuilt::instead_of(command, flag)?))
}

/// A panic is a bug in longshore, on whatever thread it happens: tell where, and end at once with one code in every
/// build profile, where `panic = "abort"` would end with a signal.
fn exit_with_a_code_of_our_own_on_panic() {
    let tell = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        tell(panic);
        let _ = std::io::Write::write_all(
            &mut std::io::stderr(),
            b"error: this is a bug in longshore: please report it with the lines above\n",
        );
        #[expect(clippy::exit, reason = "the one place where nothing can be returned")]
        std::process::exit(error::BUG_EXIT_CODE);
    }));
}

fn start_logging(level: LogLevel) {
    let filter = match level {
        LogLevel::Off => LevelFilter::OFF,
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
        LogLevel::Trace => LevelFilter::TRACE,
    };
    // Only ours: what hyper or rustls have to say at `debug` drowns it, and may hold credentials.
    let ours = [
        "builder",
        "longshore",
        // Requests and logins, in the words of the server.
        "registry::access",
        "registry_client",
        "registry_server",
        "runner",
        "store",
    ];
    let targets = Targets::new().with_targets(ours.map(|target| (target, filter)));
    let printer = tracing_subscriber::fmt::layer()
        .with_writer(|| ui::progress::LogWriter)
        .without_time();
    tracing_subscriber::registry()
        .with(printer.with_target(false))
        .with(targets)
        .init();
}
