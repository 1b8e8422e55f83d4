//! `stop`, `kill`, `restart`, `wait`, `rm`, `rename` and `container prune`.

use std::process::ExitCode;

use runner::container::{Client, ClientError, Folder, Status};
use runner::signal;
use store::Store;
use store::containers::Container;
use store::oci::time::unix_time;

use super::{Known, each, flags, run, watch};
use crate::args::{
    Condition, ContainerPruneArgs, ContainersArgs, KillArgs, RenameArgs, RmArgs, StopArgs, WaitArgs,
};
use crate::commands::now;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::quantity;
use crate::ui::{ask, human};

/// The supervisor of a container; `None` if nobody holds it.
pub fn connect(folder: &Folder) -> Result<Option<Client>, CliError> {
    match Client::connect(folder) {
        Ok(client) => Ok(Some(client)),
        Err(ClientError::NotRunning) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// `longshore stop`.
pub fn stop(context: &Context, args: &StopArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let signal = args.signal.as_deref().map(flags::signal).transpose()?;
    each(context, &args.containers, |name| {
        let known = Known::find(&store, name)?;
        stop_one(&known, signal, args.time)?;
        Ok(Some(name.to_owned()))
    })
}

/// Stops a container, if it runs, and waits until that is done.
fn stop_one(known: &Known, signal: Option<i32>, time: Option<i64>) -> Result<(), CliError> {
    let Some(client) = connect(&known.folder)? else {
        return Ok(());
    };
    match client.stop(signal, time) {
        // It ended at this moment.
        Ok(_) | Err(ClientError::Lost) => {
            client.closed();
            Ok(())
        }
        Err(error) => Err(error.into()),
    }
}

/// `longshore restart`.
pub fn restart(context: &Context, args: &StopArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let signal = args.signal.as_deref().map(flags::signal).transpose()?;
    each(context, &args.containers, |name| {
        let known = Known::find(&store, name)?;
        if known.record.auto_remove && known.state.status.is_live() {
            let message = format!(
                "container `{name}` is removed when it ends (--rm), and cannot be restarted"
            );
            return Err(CliError::new(Kind::Input, message));
        }
        stop_one(&known, signal, args.time)?;
        run::start_one(context, &store, &known)?;
        Ok(Some(name.to_owned()))
    })
}

/// `longshore kill`.
pub fn kill(context: &Context, args: &KillArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let signal = flags::signal(&args.signal)?;
    each(context, &args.containers, |name| {
        let known = Known::find(&store, name)?;
        let Some(client) = connect(&known.folder)? else {
            return Err(not_running(name));
        };
        client.signal(signal)?;
        if signal == signal::KILL {
            // Who kills a container wants it to be gone afterwards.
            let _code = client.wait();
        }
        Ok(Some(name.to_owned()))
    })
}

/// What is said of a container that should run.
pub fn not_running(name: &str) -> CliError {
    CliError::new(Kind::Input, format!("container `{name}` is not running"))
        .hint("`longshore start` starts it")
}

/// `longshore wait`.
pub fn wait(context: &Context, args: &WaitArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    each(context, &args.containers, |name| {
        if args.condition != Condition::NotRunning {
            let code = watch::until(&store, name, args.condition)?;
            return Ok(code.map(|code| code.to_string()));
        }
        let known = Known::find(&store, name)?;
        let code = match connect(&known.folder)? {
            Some(client) => match client.wait() {
                Err(ClientError::Lost) => known.folder.state()?.exit_code,
                code => code?,
            },
            None => known.folder.state()?.exit_code,
        };
        Ok(Some(code.to_string()))
    })
}

/// `longshore pause` and `unpause`.
pub fn pause(context: &Context, args: &ContainersArgs, paused: bool) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    each(context, &args.containers, |name| {
        let known = Known::find(&store, name)?;
        let client = connect(&known.folder)?.ok_or_else(|| not_running(name))?;
        client.pause(paused).map_err(|error| match error {
            ClientError::Refused { message } => {
                let message = message.replacen("the container", &format!("container `{name}`"), 1);
                CliError::new(Kind::Input, message)
            }
            error => error.into(),
        })?;
        Ok(Some(name.to_owned()))
    })
}

/// `longshore rm`.
pub fn rm(context: &Context, args: &RmArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    each(context, &args.containers, |name| {
        let container = match store.find_container(name) {
            Err(store::containers::ContainerError::Unknown { .. }) if args.force => {
                return Ok(None);
            }
            found => found?,
        };
        let folder = Folder::open(container.path())?;
        if args.force {
            kill_for_good(&folder)?;
        } else if folder.state()?.status.is_live() {
            let how = match folder.state()?.status {
                Status::Paused => "paused",
                _ => "running",
            };
            let message = format!("container `{name}` is {how}");
            return Err(CliError::new(Kind::Input, message)
                .hint("stop it before it is removed, or use --force"));
        }
        remove(&store, &container, args.volumes)?;
        Ok(Some(name.to_owned()))
    })
}

/// Ends a container whatever it does, and waits until nobody holds it.
fn kill_for_good(folder: &Folder) -> Result<(), CliError> {
    if let Some(client) = connect(folder)? {
        match client.stop(Some(signal::KILL), Some(0)) {
            Ok(_) | Err(ClientError::Lost) => client.closed(),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Removes a container that does not run; no error if somebody else has.
pub fn remove(store: &Store, container: &Container, volumes: bool) -> Result<(), CliError> {
    let folder = match Folder::open(container.path()) {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        folder => folder?,
    };
    let held = match folder.hold() {
        Err(error) if error.source.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        held => held?,
    };
    if folder.state().is_ok_and(|state| state.status.is_live()) {
        let message = format!("container `{}` was started again", container.name);
        return Err(CliError::new(Kind::Input, message));
    }
    let record = super::Record::read(container);
    store.remove_container(container)?;
    drop(held);
    // One whose record is damaged can be removed, too.
    if let Ok(record) = record.as_ref()
        && volumes
    {
        for (name, anonymous) in record.volumes() {
            if anonymous && !is_used(store, name)? {
                store.remove_volume(name)?;
            }
        }
    }
    Ok(())
}

/// Whether a container uses a volume.
pub fn is_used(store: &Store, volume: &str) -> Result<bool, CliError> {
    let all = Known::all(store)?;
    Ok(all
        .iter()
        .any(|known| known.record.volumes().any(|(name, _)| name == volume)))
}

/// `longshore rename`.
pub fn rename(context: &Context, args: &RenameArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let container = store.find_container(&args.container)?;
    let folder = Folder::open(container.path())?;
    let _held = folder.hold()?;
    store.rename_container(&container, &args.name)?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore container prune`.
pub fn prune(context: &Context, args: &ContainerPruneArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let wanted = PruneFilter::read(&args.filters)?;
    if !args.force {
        context
            .ui
            .note("This removes all containers that do not run.");
        let answer =
            ask("Go on? [y/N] ").map_err(|error| CliError::new(Kind::Environment, error))?;
        if !answer.eq_ignore_ascii_case("y") {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let mut freed = 0;
    let mut removed = Vec::new();
    for known in Known::all(&store)? {
        let ended = matches!(known.state.status, Status::Created | Status::Exited);
        if !ended || !wanted.matches(&known) {
            continue;
        }
        let mut seen = store::fs::Inodes::new();
        let bytes = store::fs::disk_usage(&known.container.upper(), &mut seen).unwrap_or(0);
        remove(&store, &known.container, false)?;
        freed += bytes;
        removed.push(known.container.id.to_string());
    }
    if !removed.is_empty() {
        context.ui.line("Deleted Containers:")?;
        for id in removed {
            context.ui.line(&id)?;
        }
        context.ui.line("")?;
    }
    context
        .ui
        .line(&format!("Total reclaimed space: {}", human::size(freed)))?;
    Ok(ExitCode::SUCCESS)
}

/// `--filter` of `container prune`.
#[derive(Default)]
struct PruneFilter {
    before: Option<i64>,
    labels: Vec<(bool, String)>,
}

impl PruneFilter {
    fn read(texts: &[String]) -> Result<PruneFilter, CliError> {
        let mut filter = PruneFilter::default();
        for text in texts {
            let bad = || {
                CliError::new(Kind::Usage, format!("the filter `{text}` is not supported"))
                    .hint("there are until=, label= and label!=")
            };
            match text.split_once('=').ok_or_else(bad)? {
                ("until", when) => filter.before = Some(moment(when)?),
                ("label", label) => filter.labels.push((true, label.to_owned())),
                ("label!", label) => filter.labels.push((false, label.to_owned())),
                _ => return Err(bad()),
            }
        }
        Ok(filter)
    }

    fn matches(&self, known: &Known) -> bool {
        let created = unix_time(&known.record.created).unwrap_or(0);
        self.before.is_none_or(|before| created < before)
            && self
                .labels
                .iter()
                .all(|(wanted, label)| has_label(known, label) == *wanted)
    }
}

/// Whether a container has a label: `KEY` or `KEY=VALUE`.
pub fn has_label(known: &Known, label: &str) -> bool {
    match label.split_once('=') {
        Some((key, value)) => known.record.labels.get(key).is_some_and(|has| has == value),
        None => known.record.labels.contains_key(label),
    }
}

/// A time, as seconds since 1970: RFC 3339, seconds, or a duration before now.
pub fn moment(text: &str) -> Result<i64, CliError> {
    let bad = || {
        CliError::new(Kind::Usage, format!("cannot read the time `{text}`")).hint(
            "expected a duration before now such as 10m, or a time such as 2024-02-29T12:00:00Z",
        )
    };
    if let Some(seconds) = unix_time(text) {
        return Ok(seconds);
    }
    let whole = text.split('.').next().unwrap_or(text);
    if let Ok(seconds) = whole.parse::<i64>() {
        return Ok(seconds);
    }
    let ago = quantity::duration(text).map_err(|_| bad())?;
    Ok(now() - i64::try_from(ago.as_secs()).map_err(|_| bad())?)
}
