//! `push` and `pull`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use builder::remote::Remote;
use builder::transfer::{self, Pulled};
use registry_client::referrers::is_fallback_tag;
use serde_json::json;
use store::Store;
use store::images::ImageId;
use store::layer::compress::Compression;
use store::oci::{Platform, Reference};

use super::find_image;
use crate::args::{Progress, PullArgs, PushArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::progress::{Display, Work};

/// `longshore push`.
pub fn push(context: &Context, args: &PushArgs) -> Result<ExitCode, CliError> {
    let compression = compression(args)?;
    let store = Arc::new(context.store()?);
    let mut images = Vec::new();
    for name in &args.names {
        match args.all_tags {
            true => images.extend(tags_here(&store, name)?),
            false => images.push((name.parse()?, find_image(&store, name)?.id)),
        }
    }
    let remote = remote(context)?;
    let mut digests = String::new();
    for (reference, id) in images {
        let display = display(context, args.quiet || args.json, Work::Pushing);
        let sink = display.sink();
        let pushed = transfer::push(&store, &remote, &id, &reference, compression, sink);
        display.finish(pushed.is_ok());
        let report = pushed?;
        digests += &format!("{}\n", report.digest);
        if args.json {
            context.ui.json_line(&json!({
                "name": reference.familiar(),
                "digest": report.digest,
                "uploaded": report.uploaded,
                "mounted": report.mounted,
                "existed": report.existed,
            }))?;
        } else if args.quiet {
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
    }
    if let Some(path) = &args.digestfile {
        // One digest alone is written as other tools write it.
        let text = match digests.lines().count() {
            1 => digests.trim_end(),
            _ => &digests,
        };
        write_digests(path, text)?;
    }
    Ok(ExitCode::SUCCESS)
}

/// `--compression` with its level.
fn compression(args: &PushArgs) -> Result<Option<Compression>, CliError> {
    let (Some(compression), Some(level)) = (args.compression, args.compression_level) else {
        return Ok(args.compression);
    };
    let at_level = compression.at_level(level);
    at_level
        .map(Some)
        .map_err(|error| CliError::new(Kind::Usage, format!("`--compression-level`: {error}")))
}

/// What the store has of a repository: names with tags, in order, and the images.
fn tags_here(store: &Store, name: &str) -> Result<Vec<(Reference, ImageId)>, CliError> {
    let repository = repository(name)?;
    let mut found = Vec::new();
    for image in store.images().images()? {
        let names = image.names.into_iter().filter(|name| {
            (name.registry(), name.repository()) == (repository.registry(), repository.repository())
                && name.tag().is_some()
        });
        found.extend(names.map(|name| (name, image.id)));
    }
    if found.is_empty() {
        let message = format!("no image in the store has a tag of `{name}`");
        return Err(CliError::new(Kind::Input, message));
    }
    found.sort();
    Ok(found)
}

/// A name that stands for all of its tags.
fn repository(name: &str) -> Result<Reference, CliError> {
    let last = name.rsplit('/').next().unwrap_or_default();
    if last.contains([':', '@']) {
        let message =
            format!("`{name}` has a tag or a digest: with `--all-tags`, name a repository");
        return Err(CliError::new(Kind::Usage, message));
    }
    Ok(name.parse()?)
}

/// Writes digests for other programs to read.
pub fn write_digests(path: &Path, text: &str) -> Result<(), CliError> {
    std::fs::write(path, text).map_err(|error| {
        let message = format!("cannot write `{}`: {error}", path.display());
        CliError::new(Kind::Environment, message)
    })
}

/// `longshore pull`.
pub fn pull(context: &Context, args: &PullArgs) -> Result<ExitCode, CliError> {
    let store = Arc::new(context.store()?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let mut names = args.names.clone();
    if args.all_tags {
        names.clear();
        for name in &args.names {
            names.extend(tags_there(context, name)?);
        }
    }
    for name in names {
        let (reference, pulled) =
            fetch(context, &store, &name, &platform, args.quiet || args.json)?;
        let is_for = store.images().config(&pulled.id)?.platform();
        if args.platform.is_some() && !is_for.satisfies(&platform) {
            let text = format!("`{name}` is for {is_for} alone, not for {platform}");
            context.ui.warning(&text);
        }
        if args.json {
            context.ui.json_line(&json!({
                "name": reference.familiar(),
                "id": pulled.id.to_string(),
                "digest": pulled.manifest,
                "fetched": pulled.fetched,
            }))?;
        } else {
            context.ui.line(&pulled.id.to_string())?;
        }
    }
    super::collect::if_due(context, &store);
    super::sync::soon(&store);
    Ok(ExitCode::SUCCESS)
}

/// The names of a repository's tags, as the registry lists them.
fn tags_there(context: &Context, name: &str) -> Result<Vec<String>, CliError> {
    let repository = repository(name)?;
    let remote = remote(context)?;
    let tags = remote.run(|client| {
        let repository = &repository;
        async move { client.tags(repository).await }
    })?;
    let mut names = Vec::new();
    for tag in tags {
        // What others say of images has tags of its own, and is no image.
        if !is_fallback_tag(&tag) {
            names.push(repository.with_tag(&tag)?.familiar());
        }
    }
    Ok(names)
}

/// Pulls an image by name, for a platform.
pub fn fetch(
    context: &Context,
    store: &Arc<Store>,
    name: &str,
    platform: &Platform,
    quiet: bool,
) -> Result<(Reference, Pulled), CliError> {
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
    Ok((reference, pulled))
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
