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
use store::layer::compress::CompressionError;
use store::oci::{Platform, Reference};

use super::{find_image, short_name};
use crate::args::{Progress, PullArgs, PushArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::progress::{Display, Work};

/// How a command goes about a transfer.
#[derive(Clone, Copy, Debug)]
pub struct Manner {
    /// How progress is shown.
    pub progress: Progress,
    /// Whether the registries that are named need not prove who they are.
    pub insecure: bool,
}

impl Manner {
    /// With care, and words only where they are wanted.
    pub fn quiet_if(quiet: bool) -> Manner {
        Manner::new(None, quiet, false)
    }

    fn new(progress: Option<Progress>, quiet: bool, insecure: bool) -> Manner {
        let progress = match quiet {
            true => Progress::Quiet,
            false => progress.unwrap_or(Progress::Auto),
        };
        Manner { progress, insecure }
    }

    fn is_quiet(self) -> bool {
        self.progress == Progress::Quiet
    }
}

/// `longshore push`.
pub fn push(context: &Context, args: &PushArgs) -> Result<ExitCode, CliError> {
    let layers = args.layers.choice(args.force_compression);
    let layers = layers.map_err(|error| level(&error))?;
    let store = Arc::new(context.store()?);
    let mut images = Vec::new();
    for name in &args.names {
        match args.all_tags {
            true => images.extend(tags_here(&store, name)?),
            false => {
                let image = find_image(context, &store, name)?;
                images.push((short_name::called(context, &image, name)?, image.id));
            }
        }
    }
    let manner = Manner::new(
        args.progress,
        args.quiet || args.json,
        args.reach.is_insecure(),
    );
    let hosts = images.iter().map(|(name, _)| name.registry().to_owned());
    let remote = remote_to(context, manner, hosts.collect())?;
    let mut digests = String::new();
    for (reference, id) in images {
        let display = Display::new(context.ui, manner.progress, Work::Pushing);
        let sink = display.sink();
        let pushed = transfer::push(&store, &remote, &id, &reference, layers, &sink);
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

/// A level that a compression does not have.
pub fn level(error: &CompressionError) -> CliError {
    CliError::new(Kind::Usage, format!("`--compression-level`: {error}"))
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
    let manner = Manner::new(
        args.progress,
        args.quiet || args.json,
        args.reach.is_insecure(),
    );
    let mut names = args.names.clone();
    if args.all_tags {
        names.clear();
        for name in &args.names {
            names.extend(tags_there(context, name, manner)?);
        }
    }
    for name in names {
        let (reference, pulled) = fetch(context, &store, &name, &platform, manner)?;
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
fn tags_there(context: &Context, name: &str, manner: Manner) -> Result<Vec<String>, CliError> {
    let repository = repository(name)?;
    let remote = remote_to(context, manner, vec![repository.registry().to_owned()])?;
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

/// Pulls an image by name, for a platform. A short name that several registries may have is asked for at each in turn.
pub fn fetch(
    context: &Context,
    store: &Arc<Store>,
    name: &str,
    platform: &Platform,
    manner: Manner,
) -> Result<(Reference, Pulled), CliError> {
    let mut candidates = short_name::candidates(context, name)?
        .into_iter()
        .peekable();
    loop {
        let reference = candidates.next().expect("a name stands for something");
        let pulled = fetch_one(context, store, &reference, platform, manner);
        match (pulled, candidates.peek()) {
            (Ok(pulled), _) => return Ok((reference, pulled)),
            (Err(error), Some(next)) if error.kind != Kind::Interrupted => {
                let text = format!("{error}; trying `{next}`");
                context.ui.warning(&text);
            }
            (Err(error), _) => return Err(error),
        }
    }
}

fn fetch_one(
    context: &Context,
    store: &Arc<Store>,
    reference: &Reference,
    platform: &Platform,
    manner: Manner,
) -> Result<Pulled, CliError> {
    let remote = remote_to(context, manner, vec![reference.registry().to_owned()])?;
    let display = Display::new(context.ui, manner.progress, Work::Pulling);
    let pulled = transfer::pull(store, &remote, reference, platform, &display.sink());
    display.finish(pulled.is_ok());
    let pulled = pulled?;
    if !manner.is_quiet() {
        context.ui.note(&format!("Digest: {}", pulled.manifest));
        let status = match pulled.fetched {
            0 => "Image is up to date for",
            _ => "Downloaded newer image for",
        };
        context
            .ui
            .note(&format!("Status: {status} {}", reference.familiar()));
    }
    Ok(pulled)
}

/// Brings the layers of an image here that are only in a registry; tells whether there were any.
pub fn complete(context: &Context, store: &Arc<Store>, id: &ImageId) -> Result<bool, CliError> {
    if transfer::absent_layers(store, id)?.is_empty() {
        return Ok(false);
    }
    let display = Display::new(context.ui, Progress::Auto, Work::Pulling);
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

/// The same, to registries of which those in `hosts` may need no proof.
fn remote_to(context: &Context, manner: Manner, hosts: Vec<String>) -> Result<Remote, CliError> {
    let mut options = context.client_options()?;
    if manner.insecure {
        options.insecure.extend(hosts);
    }
    Ok(Remote::new(Box::new(move || options.clone())))
}
