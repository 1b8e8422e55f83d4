//! `push` and `pull`.

use std::process::ExitCode;
use std::sync::Arc;

use builder::remote::Remote;
use builder::transfer;
use store::Store;
use store::images::ImageId;
use store::oci::{Platform, Reference};

use super::find_image;
use crate::args::{Progress, PullArgs, PushArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::ui::progress::{Display, Work};

/// `longshore push`.
pub fn push(context: &Context, args: &PushArgs) -> Result<ExitCode, CliError> {
    let reference: Reference = args.name.parse()?;
    let store = Arc::new(context.store()?);
    let image = find_image(&store, &args.name)?;
    let remote = remote(context)?;
    let display = display(context, args.quiet, Work::Pushing);
    let pushed = transfer::push(&store, &remote, &image.id, &reference, None, display.sink());
    display.finish(pushed.is_ok());
    let report = pushed?;
    if args.quiet {
        context.ui.line(&reference.familiar())?;
    } else {
        let (uploaded, there) = (report.uploaded, report.existed + report.mounted);
        context
            .ui
            .note(&format!("{uploaded} blobs sent, {there} were there"));
        let tag = reference.tag().unwrap_or_default();
        context
            .ui
            .line(&format!("{tag}: digest: {}", report.digest))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `longshore pull`.
pub fn pull(context: &Context, args: &PullArgs) -> Result<ExitCode, CliError> {
    let store = Arc::new(context.store()?);
    let id = fetch(context, &store, &args.name, args.quiet)?;
    super::collect::if_due(context, &store);
    super::sync::soon(&store);
    context.ui.line(&id.to_string())?;
    Ok(ExitCode::SUCCESS)
}

/// Pulls an image by name, for this machine.
pub fn fetch(
    context: &Context,
    store: &Arc<Store>,
    name: &str,
    quiet: bool,
) -> Result<ImageId, CliError> {
    fetch_for(context, store, name, &Platform::host(), quiet)
}

/// Pulls an image by name, for a platform.
pub fn fetch_for(
    context: &Context,
    store: &Arc<Store>,
    name: &str,
    platform: &Platform,
    quiet: bool,
) -> Result<ImageId, CliError> {
    let reference: Reference = name.parse()?;
    let display = display(context, quiet, Work::Pulling);
    let pulled = transfer::pull(
        store,
        &remote(context)?,
        &reference,
        platform,
        &display.sink(),
    );
    display.finish(pulled.is_ok());
    let pulled = pulled?;
    if !quiet {
        context.ui.note(&format!("Digest: {}", pulled.manifest));
        let status = match pulled.fetched {
            0 => "Image is up to date for",
            _ => "Downloaded newer image for",
        };
        context
            .ui
            .note(&format!("Status: {status} {}", reference.familiar()));
    }
    Ok(pulled.id)
}

/// Brings the layers of an image here that are only in a registry; tells whether there were any.
pub fn complete(context: &Context, store: &Arc<Store>, id: &ImageId) -> Result<bool, CliError> {
    if transfer::absent_layers(store, id)?.is_empty() {
        return Ok(false);
    }
    let display = display(context, false, Work::Pulling);
    let completed = transfer::complete(store, &remote(context)?, id, &display.sink());
    display.finish(completed.is_ok());
    completed?;
    super::sync::soon(store);
    Ok(true)
}

/// How this command reaches registries, if it has to.
pub fn remote(context: &Context) -> Result<Remote, CliError> {
    let options = context.client_options()?;
    Ok(Remote::new(Box::new(move || options.clone())).with_git(context.git_settings()))
}

fn display(context: &Context, quiet: bool, work: Work) -> Display {
    let how = if quiet {
        Progress::Quiet
    } else {
        Progress::Auto
    };
    Display::new(context.ui, how, work)
}
