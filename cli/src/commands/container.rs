//! Commands on containers.
//!
//! | module | holds |
//! |---|---|
//! | [`record`] | what a container is, as it is kept |
//! | [`flags`] | docker's flags, read |
//! | [`given`] | what those say whatever the image is |
//! | [`create`] | `create`, and the first half of `run`: an image and flags make a record |
//! | [`beside`] | what a container shares with others |
//! | [`launch`] | a record makes a plan, which a supervisor carries out |
//! | [`run`] | `run` and `start`: who starts a container and may stay with it |
//! | [`lifecycle`] | `stop`, `kill`, `restart`, `wait`, `rm`, `rename`, `container prune` |
//! | [`update`] | `update`: other limits, another restart policy |
//! | [`ports`] | `-p`, `-P`, `port`: ports of the host that lead to containers |
//! | [`ps`], [`logs`], [`look`] | what containers there are, what they print, what they do |
//! | [`host_config`] | what `inspect` says of how a container was made |
//! | [`exec`] | `exec` and `attach` |
//! | [`copy`] | `cp` |
//! | [`image`] | `commit`, `export`, `import` |
//! | [`volume`] | `volume` |
//! | [`wiring`] | which network a container is on, and how it looks up names |
//! | [`watch`] | waiting until something happens to a container |

mod beside;
pub mod copy;
pub mod create;
pub mod exec;
mod flags;
mod given;
mod host_config;
pub mod image;
pub mod launch;
pub mod lifecycle;
pub mod logs;
pub mod look;
pub mod ports;
pub mod ps;
mod record;
pub mod run;
pub mod update;
pub mod volume;
mod watch;
pub mod wiring;

use std::process::ExitCode;

use runner::SandboxError;
use runner::container::{ClientError, Folder, FolderError, State};
use store::Store;
use store::containers::{Container, ContainerError};
use store::content::usage::{Usage, UsageKind};
use store::images::ImageId;
use store::volumes::VolumeError;

use self::record::Record;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// A container with all that is known of it.
pub struct Known {
    container: Container,
    folder: Folder,
    record: Record,
    state: State,
}

impl Known {
    fn of(container: Container) -> Result<Known, CliError> {
        let folder = Folder::open(container.path())?;
        Ok(Known {
            record: Record::read(&container)?,
            state: folder.state()?,
            folder,
            container,
        })
    }

    fn find(store: &Store, text: &str) -> Result<Known, CliError> {
        Known::of(store.find_container(text)?)
    }

    /// All containers, newest first. One that is removed this moment is left out.
    fn all(store: &Store) -> Result<Vec<Known>, CliError> {
        let mut all: Vec<Known> = store
            .containers()?
            .into_iter()
            .filter(|container| container.path().exists())
            .map(Known::of)
            .collect::<Result<_, _>>()?;
        all.sort_by(|a, b| b.record.created.cmp(&a.record.created));
        Ok(all)
    }
}

/// A container that uses an image.
pub struct ImageUser {
    /// The container's id, shortened.
    pub id: String,
    /// Whether it runs.
    pub runs: bool,
}

/// A container that uses an image, one that runs if there is one.
pub fn user_of(store: &Store, image: &ImageId) -> Result<Option<ImageUser>, CliError> {
    let image = image.to_string();
    let all = Known::all(store)?.into_iter();
    let users = all.filter(|known| known.record.image == image);
    let users = users.map(|known| ImageUser {
        id: known.container.id.short().to_owned(),
        runs: known.state.status.is_live(),
    });
    Ok(users.max_by_key(|user| user.runs))
}

/// What `container prune` and `volume prune --all` would free is known here, and not in the store.
pub fn account(store: &Store, usage: &mut Usage) -> Result<(), CliError> {
    let all = Known::all(store)?;
    for item in &mut usage.items {
        item.reclaimable = match item.kind {
            UsageKind::Containers => all
                .iter()
                .filter(|known| known.container.id.to_string() == item.name)
                .all(|known| !known.state.status.is_live()),
            UsageKind::Volumes => !all
                .iter()
                .any(|known| known.record.volumes().any(|(name, _)| name == item.name)),
            _ => continue,
        };
    }
    for row in &mut usage.rows {
        if !matches!(row.kind, UsageKind::Containers | UsageKind::Volumes) {
            continue;
        }
        let items = usage.items.iter().filter(|item| item.kind == row.kind);
        let free = items.clone().filter(|item| item.reclaimable);
        row.in_use = row.count - free.clone().count() as u64;
        row.reclaimable = free.map(|item| item.bytes).sum();
        debug_assert_eq!(row.count, items.count() as u64);
    }
    Ok(())
}

/// Does something to each of several containers, says which it was done to, and fails if one failed.
fn each(
    context: &Context,
    names: &[String],
    mut act: impl FnMut(&str) -> Result<Option<String>, CliError>,
) -> Result<ExitCode, CliError> {
    let mut code = ExitCode::SUCCESS;
    for name in names {
        match act(name) {
            Ok(Some(said)) => context.ui.line(&said)?,
            Ok(None) => {}
            Err(error) => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
        }
    }
    Ok(code)
}

impl From<ContainerError> for CliError {
    fn from(error: ContainerError) -> CliError {
        match error {
            ContainerError::Unknown { .. } => CliError::new(Kind::Input, error)
                .hint("`longshore ps -a` lists the containers that there are"),
            ContainerError::Ambiguous { .. }
            | ContainerError::NameTaken { .. }
            | ContainerError::BadName { .. } => CliError::new(Kind::Input, error),
            ContainerError::Store(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<VolumeError> for CliError {
    fn from(error: VolumeError) -> CliError {
        match error {
            VolumeError::Unknown { .. } => CliError::new(Kind::Input, error)
                .hint("`longshore volume ls` lists the volumes that there are"),
            VolumeError::BadName { .. } => CliError::new(Kind::Input, error),
            VolumeError::Store(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}

impl From<FolderError> for CliError {
    fn from(error: FolderError) -> CliError {
        CliError::new(Kind::Environment, error)
    }
}

impl From<ClientError> for CliError {
    fn from(error: ClientError) -> CliError {
        let kind = match error.exit_code() {
            126 => Kind::RunNotExecutable,
            127 => Kind::RunNotFound,
            _ => match error {
                ClientError::NotRunning
                | ClientError::Refused { .. }
                | ClientError::Start(_)
                | ClientError::Failed { .. } => Kind::Input,
                _ => Kind::Environment,
            },
        };
        CliError::new(kind, error)
    }
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
