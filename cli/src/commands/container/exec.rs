//! `exec` and `attach`: a command that goes to a container which runs.

use std::os::fd::{AsFd, BorrowedFd};
use std::process::ExitCode;

use runner::ProcessSpec;
use runner::container::Status;
use runner::container::attend::{Attend, Attended, Pipes, attend_executed};
use runner::terminal::{self, Signals};

use super::lifecycle::{connect, not_running};
use super::run::{Ended, Stay, exit_code, stay_with};
use super::{Known, flags};
use crate::args::{AttachArgs, ExecArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// `longshore exec`: exits as the command does.
pub fn exec(context: &Context, args: &ExecArgs) -> Result<ExitCode, CliError> {
    if args.command().is_empty() {
        return Err(
            CliError::new(Kind::Usage, "no command was given").hint("name one after the container")
        );
    }
    let store = context.store()?;
    let known = Known::find(&store, args.container())?;
    let client = connect(&known.folder)?.ok_or_else(|| not_running(args.container()))?;
    if args.tty
        && args.interactive
        && !args.detach
        && !rustix::termios::isatty(rustix::stdio::stdin())
    {
        return Err(CliError::new(Kind::Input, "the input device is not a TTY")
            .hint("leave out -t to pass a file or pipe to the command"));
    }
    let detach_keys = flags::detach_keys(args.detach_keys.as_deref())?;
    let record = &known.record;
    let user = {
        let root = client.root()?;
        let text = args.user.as_deref().unwrap_or(&record.user);
        runner::resolve_user(root.as_fd(), text).blame(Kind::Input)?
    };
    let mut env = record.env.clone();
    for variable in flags::environment(context, &args.env_files, &args.env)? {
        flags::set(&mut env, variable);
    }
    let terminal = args.tty.then_some(("TERM", "xterm"));
    let defaults = [("PATH", runner::DEFAULT_PATH), ("HOME", user.home.as_str())];
    for (name, value) in defaults.into_iter().chain(terminal) {
        let has = |known: &String| known.split('=').next() == Some(name);
        if !env.iter().any(has) {
            env.push(format!("{name}={value}"));
        }
    }
    let cwd = match &args.workdir {
        Some(given) if given.starts_with('/') => given.clone(),
        Some(given) => {
            let message = format!(
                "the working directory `{given}` is invalid, it needs to be an absolute path"
            );
            return Err(CliError::new(Kind::Usage, message));
        }
        None => record.working_dir.clone(),
    };
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let process = ProcessSpec {
        env,
        cwd,
        user,
        terminal: args.tty,
        terminal_size: terminal::size(stdout),
        ..ProcessSpec::new(args.command().to_vec())
    };
    let null = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/null");
    let null = null.blame(Kind::Environment)?;
    let null: BorrowedFd<'_> = null.as_fd();
    let streams = match (args.detach, args.interactive) {
        (true, _) => [null; 3],
        (false, true) => [stdin, stdout, rustix::stdio::stderr()],
        (false, false) => [null, stdout, rustix::stdio::stderr()],
    };
    drop(store);
    let signals = Signals::collect().blame(Kind::Environment)?;
    let master = client.execute(process, args.privileged || record.privileged, streams)?;
    if args.detach {
        return Ok(ExitCode::SUCCESS);
    }
    let how = Attend {
        signals: Some(&signals),
        pass_signals: true,
        terminal: args.tty,
        stdin: args.interactive,
        outputs: [true; 2],
        detach_keys: &detach_keys,
    };
    Ok(match attend_executed(&client, master, &how)? {
        Attended::Exited(code) => exit_code(code),
        Attended::Detached => ExitCode::SUCCESS,
    })
}

/// `longshore attach`: exits as the container's command does.
pub fn attach(context: &Context, args: &AttachArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let known = Known::find(&store, &args.container)?;
    let client = connect(&known.folder)?.ok_or_else(|| not_running(&args.container))?;
    if known.state.status == Status::Paused {
        let message = format!("container `{}` is paused", args.container);
        return Err(CliError::new(Kind::Input, message).hint("`longshore unpause` lets it go on"));
    }
    let detach_keys = flags::detach_keys(args.detach_keys.as_deref())?;
    drop(store);
    let signals = Signals::collect().blame(Kind::Environment)?;
    let pipes = Pipes::new().blame(Kind::Environment)?;
    let stdin = !args.no_stdin && known.record.stdin;
    client.attach(stdin, pipes.far())?;
    let stay = Stay {
        stdin,
        outputs: [true; 2],
        sig_proxy: args.sig_proxy,
        detach_keys: &detach_keys,
        owned: false,
    };
    Ok(
        match stay_with(context, &client, pipes, &known, &stay, &signals)? {
            Ended::Exited(code) => exit_code(code),
            Ended::LeftRunning => ExitCode::SUCCESS,
        },
    )
}
