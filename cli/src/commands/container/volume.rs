//! `volume`: directories that outlive containers.

use std::process::ExitCode;
use std::time::SystemTime;

use runner::container::time::rfc3339;
use serde_json::{Value, json};
use store::Store;
use store::volumes::{Volume, VolumeAbout, VolumeError};

use super::lifecycle::is_used;
use super::{each, flags};
use crate::args::{
    VolumeCommand, VolumeCreateArgs, VolumeLsArgs, VolumePruneArgs, VolumeRmArgs, VolumesArgs,
};
use crate::commands::inspect;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::template::Format;
use crate::ui::table::table;
use crate::ui::{ask, human};

/// `longshore volume`.
pub fn volume(context: &Context, command: &VolumeCommand) -> Result<ExitCode, CliError> {
    match command {
        VolumeCommand::Create(args) => create(context, args),
        VolumeCommand::Ls(args) => ls(context, args),
        VolumeCommand::Inspect(args) => inspect(context, args),
        VolumeCommand::Rm(args) => rm(context, args),
        VolumeCommand::Prune(args) => prune(context, args),
    }
}

fn create(context: &Context, args: &VolumeCreateArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let name = match &args.name {
        Some(name) => name.clone(),
        None => store.anonymous_volume_name()?,
    };
    let about = VolumeAbout {
        created: rfc3339(SystemTime::now()),
        labels: flags::labels(&[], &args.labels)?,
        anonymous: args.name.is_none(),
    };
    let volume = store.ensure_volume(&name, &about, None)?;
    context.ui.line(&volume.name)?;
    Ok(ExitCode::SUCCESS)
}

fn ls(context: &Context, args: &VolumeLsArgs) -> Result<ExitCode, CliError> {
    let format = Format::parse(&args.format)?;
    let store = context.store()?;
    let mut shown = Vec::new();
    for volume in store.volumes()? {
        let mut matches = true;
        for filter in &args.filters {
            matches &= test(&store, &volume, filter)?;
        }
        if matches {
            shown.push(volume);
        }
    }
    if args.quiet {
        let names = shown.iter().map(|volume| format!("{}\n", volume.name));
        context.ui.data(names.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Value> = shown.iter().map(row).collect();
    match format {
        Format::Json => rows.iter().try_for_each(|row| context.ui.json_line(row))?,
        Format::Template(template) => context.ui.data(template.render(&rows)?)?,
        Format::Table => {
            let cells = |volume: &Volume| vec!["local".to_owned(), volume.name.clone()];
            let rows: Vec<Vec<String>> = shown.iter().map(cells).collect();
            context.ui.data(table(&["DRIVER", "VOLUME NAME"], &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn row(volume: &Volume) -> Value {
    let labels = volume
        .about
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    json!({
        "Driver": "local",
        "Labels": labels.collect::<Vec<_>>().join(","),
        "Mountpoint": volume.data,
        "Name": volume.name,
        "Scope": "local",
    })
}

fn test(store: &Store, volume: &Volume, filter: &str) -> Result<bool, CliError> {
    let labels = &volume.about.labels;
    match filter.split_once('=') {
        Some(("name", part)) => Ok(volume.name.contains(part)),
        Some(("label", label)) => Ok(match label.split_once('=') {
            Some((key, value)) => labels.get(key).is_some_and(|has| has == value),
            None => labels.contains_key(label),
        }),
        Some(("dangling", wanted @ ("true" | "false"))) => {
            Ok(is_used(store, &volume.name)? != (wanted == "true"))
        }
        _ => Err(CliError::new(
            Kind::Usage,
            format!("the filter `{filter}` is not supported"),
        )
        .hint("there are name=, label= and dangling=true|false")),
    }
}

fn inspect(context: &Context, args: &VolumesArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let describe = |name: &str| describe(&store, name);
    inspect::show(context, &args.volumes, args.format.as_deref(), describe)
}

/// A volume in the shape of `docker volume inspect`.
pub fn describe(store: &Store, name: &str) -> Result<Value, CliError> {
    let volume = store.volume(name)?.ok_or_else(|| unknown(name))?;
    Ok(json!({
        "CreatedAt": volume.about.created,
        "Driver": "local",
        "Labels": volume.about.labels,
        "Mountpoint": volume.data,
        "Name": volume.name,
        "Options": {},
        "Scope": "local",
    }))
}

fn unknown(name: &str) -> CliError {
    let name = name.to_owned();
    VolumeError::Unknown { name }.into()
}

fn rm(context: &Context, args: &VolumeRmArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    each(context, &args.volumes, |name| {
        if is_used(&store, name)? {
            let message = format!("volume `{name}` is in use");
            return Err(CliError::new(Kind::Input, message)
                .hint("`longshore ps -a --filter volume=NAME` tells by which containers"));
        }
        match store.remove_volume(name)? {
            true => Ok(Some(name.to_owned())),
            false if args.force => Ok(None),
            false => Err(unknown(name)),
        }
    })
}

fn prune(context: &Context, args: &VolumePruneArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    if !args.force {
        let which = match args.all {
            true => "all volumes",
            false => "all volumes without a name",
        };
        context
            .ui
            .note(&format!("This removes {which} that no container uses."));
        let answer =
            ask("Go on? [y/N] ").map_err(|error| CliError::new(Kind::Environment, error))?;
        if !answer.eq_ignore_ascii_case("y") {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let (mut removed, mut freed) = (Vec::new(), 0);
    for volume in store.volumes()? {
        if !(args.all || volume.about.anonymous) || is_used(&store, &volume.name)? {
            continue;
        }
        let mut seen = store::fs::Inodes::new();
        freed += store::fs::disk_usage(&volume.data, &mut seen).unwrap_or(0);
        store.remove_volume(&volume.name)?;
        removed.push(volume.name);
    }
    if !removed.is_empty() {
        context.ui.line("Deleted Volumes:")?;
        for name in removed {
            context.ui.line(&name)?;
        }
        context.ui.line("")?;
    }
    context
        .ui
        .line(&format!("Total reclaimed space: {}", human::size(freed)))?;
    Ok(ExitCode::SUCCESS)
}
