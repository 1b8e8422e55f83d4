//! `push` and `pull`.

use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use builder::remote::Remote;
use builder::solve::cancel::Cancel;
use builder::transfer::{self, Pulled};
use registry_client::referrers::is_fallback_tag;
use serde_json::json;
use store::Store;
use store::images::ImageId;
use store::layer::compress::{CompressionChoice, CompressionError};
use store::oci::{Platform, Reference};

use super::interrupt::Watch;
use super::reach::{self, Named};
use super::short_name::Candidates;
use super::{find_image, short_name};
use crate::args::{Progress, PullArgs, PushArgs, ReachArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::progress::{Display, Work};

/// How a command goes about a transfer.
#[derive(Clone, Debug)]
pub struct Manner {
    /// How progress is shown.
    pub progress: Progress,
    /// How the registries that are named are reached.
    pub reach: ReachArgs,
    /// What ends it before its time.
    pub cancel: Option<Cancel>,
}

impl Manner {
    /// With care, and words only where they are wanted.
    pub fn quiet_if(quiet: bool) -> Manner {
        Manner::new(None, quiet, ReachArgs::default())
    }

    fn new(progress: Option<Progress>, quiet: bool, reach: ReachArgs) -> Manner {
        let progress = match quiet {
            true => Progress::Quiet,
            false => progress.unwrap_or(Progress::Auto),
        };
        Manner {
            progress,
            reach,
            cancel: None,
        }
    }

    fn is_quiet(&self) -> bool {
        self.progress == Progress::Quiet
    }
}

/// Runs a command that Ctrl-C and SIGTERM end.
fn interruptible<T>(
    mut manner: Manner,
    command: impl FnOnce(&Manner) -> Result<T, CliError>,
) -> Result<T, CliError> {
    let cancel = Cancel::new().blame(Kind::Environment)?;
    let watch = Watch::start(&cancel)?;
    manner.cancel = Some(cancel);
    let done = command(&manner);
    watch.stop();
    done
}

/// `longshore push`.
pub fn push(context: &Context, args: &PushArgs) -> Result<ExitCode, CliError> {
    let layers = args.layers.choice(args.force_compression);
    let layers = layers.map_err(|error| level(&error))?;
    let manner = Manner::new(args.progress, args.quiet || args.json, args.reach.clone());
    interruptible(manner, |manner| push_all(context, args, layers, manner))
}

fn push_all(
    context: &Context,
    args: &PushArgs,
    layers: CompressionChoice,
    manner: &Manner,
) -> Result<ExitCode, CliError> {
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
    let named: Vec<Named> = images.iter().map(|(name, _)| Named::from(name)).collect();
    let remote = remote_to(context, manner, &named)?;
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
    let manner = Manner::new(args.progress, args.quiet || args.json, args.reach.clone());
    let mut wanted = Vec::new();
    if !args.all_tags {
        for name in &args.names {
            wanted.push(short_name::candidates(context, name)?);
        }
    }
    interruptible(manner, |manner| pull_all(context, args, wanted, manner))
}

fn pull_all(
    context: &Context,
    args: &PullArgs,
    mut wanted: Vec<Candidates>,
    manner: &Manner,
) -> Result<ExitCode, CliError> {
    let store = Arc::new(context.store()?);
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    if args.all_tags {
        for name in &args.names {
            for tagged in tags_there(context, name, manner)? {
                wanted.push(short_name::candidates(context, &tagged)?);
            }
        }
    }
    for wanted in wanted {
        let name = &wanted.text;
        let (reference, pulled) = fetch(context, &store, &wanted, &platform, manner)?;
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
fn tags_there(context: &Context, name: &str, manner: &Manner) -> Result<Vec<String>, CliError> {
    let repository = repository(name)?;
    let remote = remote_to(context, manner, &[Named::from(&repository)])?;
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

/// Pulls an image, for a platform. A short name that several registries may have is asked for at each in turn.
pub fn fetch(
    context: &Context,
    store: &Arc<Store>,
    wanted: &Candidates,
    platform: &Platform,
    manner: &Manner,
) -> Result<(Reference, Pulled), CliError> {
    let mut names = wanted.names.iter().peekable();
    loop {
        let reference = names.next().expect("a name stands for something");
        let pulled = fetch_one(context, store, reference, platform, manner);
        match (pulled, names.peek()) {
            (Ok(pulled), _) => {
                wanted.remember(context, reference)?;
                return Ok((reference.clone(), pulled));
            }
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
    manner: &Manner,
) -> Result<Pulled, CliError> {
    let remote = remote_to(context, manner, &[Named::from(reference)])?;
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

/// The same, to what is named in registries.
fn remote_to(context: &Context, manner: &Manner, named: &[Named]) -> Result<Remote, CliError> {
    let mut options = context.client_options()?;
    reach::apply(&manner.reach, named, &mut options)?;
    let remote = Remote::new(Box::new(move || options.clone()));
    Ok(match &manner.cancel {
        Some(cancel) => remote.with_cancel(cancel),
        None => remote,
    })
}
