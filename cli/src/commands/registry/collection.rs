//! `registry gc`, `verify` and `stats`: on the registry's folder or bucket, whether it is served or not.

use std::path::Path;
use std::process::ExitCode;

use registry_server::collect::{CollectRules, collect, totals, verify as verify_all};
use registry_server::storage::collectable::Collectable;
use registry_server::storage::disk::DiskStorage;
use registry_server::storage::objects::ObjectStorage;
use tokio::runtime::Runtime;

use super::bucket;
use crate::args::{CollectArgs, GcArgs, RegistryPlace, RegistryStatsArgs, VerifyArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::human;

/// The rules that flags say.
pub fn rules(args: &CollectArgs, dry_run: bool) -> CollectRules {
    CollectRules {
        grace: args.grace,
        untagged: args.untagged,
        retention: args.retain.clone(),
        dry_run,
        ..CollectRules::default()
    }
}

/// `longshore registry gc`.
pub fn gc(context: &Context, args: &GcArgs) -> Result<ExitCode, CliError> {
    let storage = open(context, &args.registry)?;
    let done = collect(storage.collectable(), &rules(&args.collect, args.dry_run))
        .blame(Kind::Environment)?;
    for manifest in &done.damaged {
        context.ui.warning(&format!(
            "{manifest} is damaged: the blobs of its repository stay"
        ));
    }
    if args.json {
        context.ui.json_document(&done)?;
        return Ok(ExitCode::SUCCESS);
    }
    let verb = if args.dry_run {
        "would remove"
    } else {
        "removed"
    };
    context.ui.line(&format!(
        "{verb} {} tags, {} manifests, {} links, {} uploads and {} blobs: {}",
        done.tags,
        done.manifests,
        done.links,
        done.uploads,
        done.blobs,
        human::size(done.bytes),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore registry verify`.
pub fn verify(context: &Context, args: &VerifyArgs) -> Result<ExitCode, CliError> {
    let storage = open(context, &args.registry)?;
    let found = verify_all(storage.collectable(), args.quarantine).blame(Kind::Environment)?;
    if args.json {
        context.ui.json_document(&found)?;
    } else {
        for digest in &found.damaged {
            context.ui.line(&format!("{digest} is damaged"))?;
        }
        context.ui.line(&format!(
            "{} of {} blobs are good: {}",
            found.good,
            found.good + found.damaged.len() as u64,
            human::size(found.bytes),
        ))?;
    }
    Ok(match found.damaged.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Kind::Input.exit_code()),
    })
}

/// `longshore registry stats`.
pub fn stats(context: &Context, args: &RegistryStatsArgs) -> Result<ExitCode, CliError> {
    let storage = open(context, &args.registry)?;
    let found = totals(storage.collectable()).blame(Kind::Environment)?;
    if args.json {
        context.ui.json_document(&found)?;
        return Ok(ExitCode::SUCCESS);
    }
    context.ui.line(&format!(
        "{} repositories, {} tags, {} manifests, {} links, {} blobs: {}",
        found.repositories,
        found.tags,
        found.manifests,
        found.links,
        found.blobs,
        human::size(found.bytes),
    ))?;
    Ok(ExitCode::SUCCESS)
}

/// A registry that a command works on.
enum Opened {
    Folder(DiskStorage),
    /// With what its requests run on.
    Bucket(
        Box<ObjectStorage>,
        #[expect(dead_code, reason = "it has to live as long")] Runtime,
    ),
}

impl Opened {
    fn collectable(&self) -> &dyn Collectable {
        match self {
            Opened::Folder(storage) => storage,
            Opened::Bucket(storage, _) => &**storage,
        }
    }
}

fn open(context: &Context, place: &RegistryPlace) -> Result<Opened, CliError> {
    if let Some(text) = &place.s3 {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .enable_all()
            .build()
            .blame(Kind::Environment)?;
        let storage = bucket::open(context, &runtime, text, false)?;
        return Ok(Opened::Bucket(Box::new(storage), runtime));
    }
    let folder = match &place.folder {
        Some(folder) => folder.clone(),
        None => context.root()?.join("registry"),
    };
    existing_folder(&folder)?;
    let storage = DiskStorage::open(&folder).blame(Kind::Environment)?;
    Ok(Opened::Folder(storage))
}

/// Refuses a folder that is no registry: a wrong name is not answered with a new, empty one.
pub(super) fn existing_folder(folder: &Path) -> Result<(), CliError> {
    if folder.join("docker/registry/v2").is_dir() {
        return Ok(());
    }
    let message = format!("there is no registry in `{}`", folder.display());
    Err(CliError::new(Kind::Input, message)
        .hint("give the folder that `registry serve` was given with --root"))
}
