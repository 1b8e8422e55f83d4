//! `run`: a container in the foreground.

use std::os::fd::AsFd;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use runner::etc::{hosts_text, outside_resolv_conf_text, resolv_conf_text};
use runner::terminal::{self, Signals};
use runner::{
    DEFAULT_PATH, EtcFiles, MountKind, MountPoint, NetworkMode, ProcessSpec, Root, Sandbox,
    SandboxError, SandboxSpec, Stdio, Stream, UserNamespace,
};
use store::Store;
use store::images::ImageId;
use store::layer::LayerId;
use store::networks::{NetworkMember, NetworkPlace};
use store::oci::{ImageConfig, RunConfig};

use super::transfer::{complete, fetch};
use crate::args::RunArgs;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::networks;

/// `longshore run`: exits as the command does.
pub fn run(context: &Context, args: &RunArgs) -> Result<ExitCode, CliError> {
    let code = run_image(context, args).map_err(|error| match error.kind {
        Kind::RunNotFound | Kind::RunNotExecutable => error,
        _ => error.of_kind(Kind::Run),
    })?;
    Ok(ExitCode::from(code))
}

fn run_image(context: &Context, args: &RunArgs) -> Result<u8, CliError> {
    let mut store = Arc::new(context.store()?);
    let id = match store.images().resolve(&args.image)? {
        Some(image) => image.id,
        None => {
            context
                .ui
                .note(&format!("no image `{}` here: pulling it", args.image));
            let id = fetch(context, &store, &args.image, false)?;
            // The pull's threads end with what they worked for.
            store = Arc::new(context.store()?);
            id
        }
    };
    if complete(context, &store, &id)? {
        // As after a pull.
        store = Arc::new(context.store()?);
    }
    // From here on signals are the container's; until now they ended a pull. No thread may be there yet: it would take
    // them as its own.
    let signals = Signals::collect().blame(Kind::Run)?;
    let config = store.images().config(&id)?;
    let layers = layers(&store, &id, &config)?;
    let user = {
        let text = args.user.as_deref().unwrap_or(&config.config.user);
        let view = store.snapshots().view(&layers)?;
        runner::resolve_user(view.as_fd(), text).blame(Kind::Run)?
    };
    let mut active = store.snapshots().prepare(&layers)?;
    let mount = active.mount()?;
    let mut lower = mount.lower;
    lower.push(builder::ops::exec::stubs(&store)?);
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let process = ProcessSpec {
        env: environment(context, args, &config.config, &user.home),
        cwd: working_dir(args, &config.config),
        make_cwd: true,
        user,
        terminal: args.tty,
        terminal_size: terminal::size(stdin),
        ..ProcessSpec::new(command(args, &config.config)?)
    };
    let root = Root::Overlay {
        lower,
        upper: mount.upper,
        work: mount.work,
        volatile: true,
    };
    let (network, place) = network(&store, args)?;
    let (hostname, resolv_conf) = match network {
        // The network is the host's, so its name is too, as with docker's --network host.
        NetworkMode::Host => {
            let uname = rustix::system::uname();
            let name = uname.nodename().to_string_lossy().into_owned();
            (name, resolv_conf_text())
        }
        NetworkMode::None => ("longshore".to_owned(), outside_resolv_conf_text()),
        NetworkMode::Bridge(_) => {
            let text = resolv_conf_text().map(|host| networks::resolv_conf(&host));
            ("longshore".to_owned(), text)
        }
    };
    let own = place.iter().flat_map(|place| &place.addresses);
    let own: Vec<_> = own.map(|address| (hostname.clone(), *address)).collect();
    let spec = SandboxSpec {
        mounts: args
            .volumes
            .iter()
            .map(|text| volume(text))
            .collect::<Result<_, _>>()?,
        etc: EtcFiles {
            hosts: Some(hosts_text(&hostname, &own)),
            resolv_conf: Some(resolv_conf.blame(Kind::Run)?),
            hostname: Some(format!("{hostname}\n")),
        },
        hostname,
        user_namespace: match args.user_namespace.as_str() {
            "host" => UserNamespace::Host,
            _ => UserNamespace::Own,
        },
        network,
        // A process 1 that reaps orphans, and by which a signal ends a command that does not handle it.
        init: true,
        ..SandboxSpec::new(root, process)
    };
    let stdin_stream = match args.interactive {
        true => Stream::Inherit,
        false => Stream::Null,
    };
    let stdio = Stdio {
        stdin: stdin_stream,
        stdout: Stream::Inherit,
        stderr: Stream::Inherit,
    };
    let mut sandbox = Sandbox::spawn(&spec, stdio)?;
    let names = sandbox.take_names().zip(place.as_ref());
    let end = sandbox.pidfd().try_clone_to_owned().blame(Kind::Run)?;
    let status = std::thread::scope(|scope| {
        if let Some((sockets, place)) = &names {
            scope.spawn(|| networks::serve_names(&store, &place.network, sockets, end.as_fd()));
        }
        terminal::attend(&mut sandbox, &signals, stdin, stdout)
    })?;
    drop(names);
    drop((active, place));
    // The kernel gives no more than eight bits of a code.
    Ok(u8::try_from(status.code() & 0xff).expect("eight bits"))
}

/// The network that was asked for, and the place in it that is the container's while it runs.
fn network(store: &Store, args: &RunArgs) -> Result<(NetworkMode, Option<NetworkPlace>), CliError> {
    let mode = match args.network.as_str() {
        "host" => NetworkMode::Host,
        "none" => NetworkMode::None,
        name => {
            let member = NetworkMember {
                names: args.aliases.clone(),
                ..NetworkMember::default()
            };
            let (mode, place) = networks::join(store, name, member, &args.addresses)?;
            return Ok((mode, Some(place)));
        }
    };
    if !args.addresses.is_empty() || !args.aliases.is_empty() {
        let message = format!(
            "--ip and --network-alias mean nothing with --network {}",
            args.network
        );
        return Err(CliError::new(Kind::Usage, message));
    }
    Ok((mode, None))
}

/// The layers of an image, oldest first, unpacked where they were not.
fn layers(store: &Store, id: &ImageId, config: &ImageConfig) -> Result<Vec<LayerId>, CliError> {
    let diff_ids = config.rootfs.diff_ids.iter();
    let unpacked = diff_ids.map(|diff_id| store.ensure_unpacked(diff_id));
    unpacked.collect::<Result<_, _>>().map_err(|error| {
        CliError::from(error).hint(format!("image {}: pull it again", id.0.short()))
    })
}

/// What is run: ENTRYPOINT and CMD, either replaced by the command line. A new entry point makes the image's CMD void.
fn command(args: &RunArgs, config: &RunConfig) -> Result<Vec<String>, CliError> {
    let entrypoint = match &args.entrypoint {
        Some(entrypoint) => vec![entrypoint.clone()],
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    let arguments = match (&args.command[..], &args.entrypoint) {
        ([], None) => config.cmd.clone().unwrap_or_default(),
        (given, _) => given.to_vec(),
    };
    let command = [entrypoint, arguments].concat();
    if command.is_empty() {
        let message = "the image has neither ENTRYPOINT nor CMD, and no command was given";
        return Err(CliError::new(Kind::Run, message).hint("name one after the image"));
    }
    Ok(command)
}

/// The image's variables, then those of the command line; PATH and HOME where neither has them.
fn environment(context: &Context, args: &RunArgs, config: &RunConfig, home: &str) -> Vec<String> {
    let mut env = config.env.clone();
    let mut set = |name: &str, value: &str| {
        env.retain(|known| known.split('=').next() != Some(name));
        env.push(format!("{name}={value}"));
    };
    for text in &args.env {
        match text.split_once('=') {
            Some((name, value)) => set(name, value),
            // As docker: a variable that is not set here is not set there.
            None => {
                if let Some(value) = context.text_variable(text) {
                    set(text, &value);
                }
            }
        }
    }
    let terminal = args.tty.then_some(("TERM", "xterm"));
    let defaults = [("PATH", DEFAULT_PATH), ("HOME", home)];
    for (name, value) in defaults.into_iter().chain(terminal) {
        let has = |known: &String| known.split('=').next() == Some(name);
        if !env.iter().any(has) {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

fn working_dir(args: &RunArgs, config: &RunConfig) -> String {
    match (&args.workdir, config.working_dir.as_str()) {
        (Some(given), _) if given.starts_with('/') => given.clone(),
        (Some(given), base) => format!("{}/{given}", base.trim_end_matches('/')),
        (None, "") => "/".to_owned(),
        (None, base) => base.to_owned(),
    }
}

/// `SOURCE:TARGET[:ro]`.
fn volume(text: &str) -> Result<MountPoint, CliError> {
    let bad = |reason: &str| {
        let message = format!("cannot mount `{text}`: {reason}");
        CliError::new(Kind::Usage, message)
            .hint("expected SOURCE:TARGET[:ro], such as -v \"$PWD\":/src")
    };
    let mut fields = text.split(':');
    let (Some(source), Some(target)) = (fields.next(), fields.next()) else {
        return Err(bad("it names no target"));
    };
    let read_only = match fields.next() {
        None | Some("rw") => false,
        Some("ro") => true,
        Some(_) => return Err(bad("its options are neither `ro` nor `rw`")),
    };
    if fields.next().is_some() {
        return Err(bad("it has more than three fields"));
    }
    if !target.starts_with('/') {
        return Err(bad("the target is not absolute"));
    }
    // Docker reads a bare word as the name of a volume.
    if !source.starts_with(['/', '.']) {
        return Err(bad(
            "the source is no path: named volumes are not supported",
        ));
    }
    let source = std::fs::canonicalize(Path::new(source))
        .map_err(|error| bad(&format!("`{source}`: {error}")))?;
    Ok(MountPoint {
        target: target.to_owned(),
        kind: MountKind::Bind {
            source,
            beneath: String::new(),
            read_only,
        },
    })
}

impl From<SandboxError> for CliError {
    fn from(error: SandboxError) -> CliError {
        let kind = match error.exit_code() {
            126 => Kind::RunNotExecutable,
            127 => Kind::RunNotFound,
            _ => Kind::Run,
        };
        CliError::new(kind, error)
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> RunArgs {
        let words = ["longshore", "run"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args,
            _ => panic!("not run"),
        }
    }

    #[test]
    fn commands_add_up_as_with_docker() {
        let config = RunConfig {
            entrypoint: Some(vec!["e".to_owned()]),
            cmd: Some(vec!["c".to_owned()]),
            ..RunConfig::default()
        };
        let check = |line: &str, expected: &[&str]| {
            assert_eq!(command(&args(line), &config).unwrap(), expected);
        };
        check("img", &["e", "c"]);
        check("img x y", &["e", "x", "y"]);
        check("--entrypoint z img", &["z"]);
        check("--entrypoint z img x", &["z", "x"]);
        assert!(command(&args("img"), &RunConfig::default()).is_err());
    }

    #[test]
    fn volumes() {
        let check = |text: &str, expected: &str| {
            let error = volume(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        };
        check("/etc", "names no target");
        check("data:/d", "named volumes are not supported");
        check("/etc:d", "the target is not absolute");
        check("/etc:/d:rx", "neither `ro` nor `rw`");
        check("/no/such:/d", "No such file");
        let mount = volume("/etc/../etc:/d:ro").unwrap();
        let MountKind::Bind {
            source, read_only, ..
        } = mount.kind
        else {
            panic!("not a bind mount");
        };
        assert_eq!((source.to_str(), read_only), (Some("/etc"), true));
    }
}
