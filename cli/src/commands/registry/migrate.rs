//! `registry migrate`: a registry copied from a folder or bucket to another.

use std::path::Path;
use std::process::ExitCode;

use registry_server::migrate::migrate as copy_all;
use registry_server::storage::collectable::Collectable;
use registry_server::storage::disk::DiskStorage;
use tokio::runtime::Runtime;

use super::bucket;
use super::collection::existing_folder;
use crate::args::MigrateArgs;
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::human;

/// What a bucket's place begins with.
const BUCKET: &str = "s3:";

/// `longshore registry migrate`.
pub fn migrate(context: &Context, args: &MigrateArgs) -> Result<ExitCode, CliError> {
    if args.from == args.to {
        return Err(CliError::new(
            Kind::Usage,
            "a registry cannot be copied to where it is",
        ));
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .blame(Kind::Environment)?;
    let from = open(context, &runtime, &args.from, true)?;
    let to = open(context, &runtime, &args.to, false)?;
    let mut said = |name: &_, so_far: &registry_server::migrate::Migrated| {
        context.ui.note(&format!(
            "{name}: {} blobs ({}), {} manifests and {} tags so far",
            so_far.blobs,
            human::size(so_far.bytes),
            so_far.manifests,
            so_far.tags,
        ));
    };
    let done = copy_all(&*from, &*to, runtime.handle(), args.dry_run, &mut said)
        .blame(Kind::Environment)?;
    for damaged in &done.damaged {
        context.ui.warning(&format!(
            "{damaged} is damaged, or what it needs is: it stays behind"
        ));
    }
    if args.json {
        context.ui.json_document(&done)?;
    } else {
        let verb = if args.dry_run { "would copy" } else { "copied" };
        context.ui.line(&format!(
            "{verb} {} blobs ({}), {} manifests and {} tags of {} repositories; {} were there",
            done.blobs,
            human::size(done.bytes),
            done.manifests,
            done.tags,
            done.repositories,
            done.present,
        ))?;
    }
    Ok(match done.damaged.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(Kind::Input.exit_code()),
    })
}

fn open(
    context: &Context,
    runtime: &Runtime,
    place: &str,
    must_exist: bool,
) -> Result<Box<dyn Collectable>, CliError> {
    if let Some(text) = place.strip_prefix(BUCKET) {
        return Ok(Box::new(bucket::open(context, runtime, text, false)?));
    }
    let folder = Path::new(place);
    if must_exist {
        existing_folder(folder)?;
    }
    Ok(Box::new(
        DiskStorage::open(folder).blame(Kind::Environment)?,
    ))
}
