//! One function per command. Each takes the context and its flags, and returns the exit code.

mod system;

use std::process::ExitCode;

use crate::args::Command;
use crate::context::Context;
use crate::error::CliError;

/// Runs a command.
pub fn run(context: &Context, command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::Version(args) => system::version(context, &args),
        Command::Info(args) => system::info(context, &args),
        _ => Err(CliError::new(
            crate::error::Kind::Environment,
            "this command has not landed yet",
        )),
    }
}
