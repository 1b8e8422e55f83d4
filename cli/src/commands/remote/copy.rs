//! `copy`: an image from one place to another.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use builder::transfer;
use registry_client::copy::{
    self, ArchiveOut, CopyReport, Pick, Place, Source, Target, Tree, Wanted,
};
use registry_client::edit::{self, Recompress};
use registry_client::{Client, ErrorKind};
use serde_json::json;
use store::Store;
use store::layer::compress::Compression;
use store::oci::{Platform, Reference};

use super::{COPYING, Session, named, place};
use crate::args::{CopyArgs, Progress};
use crate::commands::reach::{self, Named};
use crate::commands::transfer::{level, write_digests};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::progress::{Display, Work};

/// `longshore copy`.
pub fn copy(context: &Context, args: &CopyArgs) -> Result<ExitCode, CliError> {
    let (from, to) = (place(&args.source)?, place(&args.target)?);
    let session = Session::with_options(context, |options| {
        let source: Vec<Named> = named(&from).into_iter().collect();
        let target: Vec<Named> = named(&to).into_iter().collect();
        let both = [source.clone(), target.clone()].concat();
        reach::apply(&args.reach, &both, options)?;
        reach::apply_sides(&args.sides, &source, &target, options)
    })?;
    if args.no_clobber
        && let Some(there) = existing(&session, &to)?
    {
        context.ui.note(&format!("{to} is there: {there}"));
        return Ok(ExitCode::SUCCESS);
    }
    let how = match args.quiet || args.json {
        true => Progress::Quiet,
        false => Progress::Auto,
    };
    let display = Display::new(context.ui, how, Work::Copying);
    let copied = run(&session, args, &from, &to, &display);
    display.finish(copied.is_ok());
    let report = copied?;
    if let Some(path) = &args.digestfile {
        write_digests(path, &report.digest.to_string())?;
    }
    tell(context, args, &from, &to, &report)?;
    Ok(ExitCode::SUCCESS)
}

fn run(
    session: &Session<'_>,
    args: &CopyArgs,
    from: &Place,
    to: &Place,
    display: &Display,
) -> Result<CopyReport, CliError> {
    let sink = display.sink();
    let source = session.source(from, &sink)?;
    let mut wanted = Wanted {
        platforms: args.platforms.platforms.clone(),
        referrers: args.referrers,
        foreign: args.foreign,
        lone: false,
    };
    if holds_one_image(to) && wanted.platforms.is_empty() && !args.all {
        wanted.platforms.push(Platform::host());
        wanted.lone = true;
    }
    let reading = &source;
    let tree = session.run(|_| async move { Tree::read(reading, &wanted).await })?;
    let progress = transfer::bridge(COPYING, sink);
    let ToPlace { target, keeper } = target(session, &args.tags, args.force, from, to)?;
    let compression = args.layers.compression();
    let anew = compression.map_err(|error| level(&error))?;
    let anew = anew.or_else(|| usual(args, from, to));
    let anew = anew.map(|compression| Recompress {
        compression,
        force: args.force_compression,
        spool: session.context.temp_dir(),
    });
    if anew.is_some() && args.digest_tags {
        let message = "`--digest-tags` are about digests that `--compression` changes";
        return Err(CliError::new(Kind::Usage, message));
    }
    let remade = match &anew {
        Some(how) => Some(session.run(|client| {
            let (tree, progress) = (&tree, &progress);
            async move {
                let repository = match to {
                    Place::Registry(reference) => Some((&client, reference)),
                    _ => None,
                };
                edit::recompress(tree, how, repository, progress).await
            }
        })?),
        None => None,
    };
    let nothing = edit::Sent::new();
    let (tree, sent) = match &remade {
        Some(remade) => (&remade.tree, &remade.sent),
        None => (&tree, &nothing),
    };
    let report = session.run(|client| {
        let target = target(&client);
        async move { copy::write_rest(tree, &target, sent, progress).await }
    })?;
    if let Some((store, name)) = keeper {
        transfer::adopt(&store, tree.root_manifest(), Some(&name))?;
        super::super::collect::if_due(session.context, &store);
        super::super::sync::soon(&store);
    }
    if args.digest_tags {
        digest_tags(session, &source, tree, to)?;
    }
    Ok(report)
}

/// How layers are compressed where nobody says it: those of docker's archives, which are plain and go by no digests that anybody
/// knows, as skopeo and crane do it; others stay what they are.
fn usual(args: &CopyArgs, from: &Place, to: &Place) -> Option<Compression> {
    let takes = match to {
        Place::Registry(reference) => reference.digest().is_none(),
        Place::Layout { .. } | Place::OciArchive { .. } => true,
        Place::Store(_) | Place::DockerArchive { .. } => false,
    };
    let is_plain = matches!(from, Place::DockerArchive { .. });
    (takes && is_plain && !args.digest_tags && !args.referrers).then_some(Compression::GZIP)
}

/// Whether a place takes images, and no indexes of them.
fn holds_one_image(place: &Place) -> bool {
    matches!(place, Place::Store(_) | Place::DockerArchive { .. })
}

pub(super) type MakeTarget = Box<dyn FnOnce(&Client) -> Target>;

/// The store that is to keep what was copied, and under which name.
pub(super) type Keeper = (Arc<Store>, Reference);

/// Where something goes; and who is to keep it, if it is the store.
pub(super) struct ToPlace {
    pub(super) target: MakeTarget,
    pub(super) keeper: Option<Keeper>,
}

/// Opens a place to write what came from another one, or was made of it.
pub(super) fn to_place(
    session: &Session<'_>,
    from: &Place,
    to: &Place,
) -> Result<ToPlace, CliError> {
    target(session, &[], false, from, to)
}

fn target(
    session: &Session<'_>,
    tags: &[String],
    force: bool,
    from: &Place,
    to: &Place,
) -> Result<ToPlace, CliError> {
    if !tags.is_empty() && !matches!(to, Place::Registry(_) | Place::DockerArchive { .. }) {
        let message = "further tags are for registries and docker archives";
        return Err(CliError::new(Kind::Usage, message));
    }
    let made: MakeTarget = match to.clone() {
        Place::Registry(reference) => {
            let tags = tags.to_owned();
            Box::new(move |client| Target::Registry {
                client: client.clone(),
                reference,
                tags,
                force,
            })
        }
        Place::Layout { path, pick } => {
            let name = name(to, from, pick)?;
            Box::new(move |_| Target::Layout { path, name })
        }
        Place::OciArchive { path, pick } => {
            let names = name(to, from, pick)?.into_iter().collect();
            let to = archive(session.context, path)?;
            Box::new(move |_| Target::Archive {
                to,
                names,
                docker: false,
            })
        }
        Place::DockerArchive { path, pick } => {
            let names = docker_names(to, from, pick, tags)?;
            let to = archive(session.context, path)?;
            Box::new(move |_| Target::Archive {
                to,
                names,
                docker: true,
            })
        }
        Place::Store(name) => {
            let name: Reference = name.parse()?;
            let store = session.store()?;
            let blobs = store.blobs().clone();
            return Ok(ToPlace {
                target: Box::new(move |_| Target::Blobs(blobs)),
                keeper: Some((store, name)),
            });
        }
    };
    Ok(ToPlace {
        target: made,
        keeper: None,
    })
}

/// An archive's file; `-` is stdout.
fn archive(context: &Context, path: PathBuf) -> Result<ArchiveOut, CliError> {
    if path.as_os_str() != "-" {
        return Ok(ArchiveOut::File(path));
    }
    if context.ui.stdout_is_a_terminal() {
        let message = "an archive is nothing to look at on a terminal";
        return Err(CliError::new(Kind::Usage, message).hint("give a file instead of `-`"));
    }
    let stream = context.ui.stdout_file().blame(Kind::Environment)?;
    Ok(ArchiveOut::Stream(Arc::new(stream)))
}

fn by_digest(to: &Place) -> CliError {
    let message = format!("`{to}`: a copy is named by a tag, its digest is what it is");
    CliError::new(Kind::Usage, message)
}

/// What an image is called in a layout: what is asked for, else its tag where it came from.
fn name(to: &Place, from: &Place, pick: Pick) -> Result<Option<String>, CliError> {
    match pick {
        Pick::Name(name) => Ok(Some(name)),
        Pick::Digest(_) => Err(by_digest(to)),
        Pick::Only => Ok(match from {
            Place::Registry(reference) => reference.tag().map(str::to_owned),
            Place::Layout { pick, .. } | Place::OciArchive { pick, .. } => match pick {
                Pick::Name(name) => Some(name.clone()),
                _ => None,
            },
            _ => None,
        }),
    }
}

/// Names in a docker archive are whole ones: `repository:tag`.
fn docker_names(
    to: &Place,
    from: &Place,
    pick: Pick,
    tags: &[String],
) -> Result<Vec<String>, CliError> {
    let whole = |reference: &Reference| {
        let tag = reference.tag()?;
        Some(format!("{}:{tag}", reference.familiar_name()))
    };
    let first: Option<Reference> = match pick {
        Pick::Name(name) => Some(name.parse()?),
        Pick::Digest(_) => return Err(by_digest(to)),
        Pick::Only => match from {
            Place::Registry(reference) => Some(reference.clone()),
            Place::Store(name) => name.parse().ok(),
            _ => None,
        },
    };
    let mut names: Vec<String> = first.iter().filter_map(whole).collect();
    for tag in tags {
        let further: Reference = match (&first, tag.contains(['/', ':'])) {
            (Some(first), false) => first.with_tag(tag)?,
            _ => tag.parse()?,
        };
        names.extend(whole(&further));
    }
    names.dedup();
    Ok(names)
}

/// What a target's name stands for already.
fn existing(session: &Session<'_>, to: &Place) -> Result<Option<String>, CliError> {
    match to {
        Place::Registry(reference) => session.run(|client| async move {
            match client.resolve(reference).await {
                Ok(descriptor) => Ok(Some(descriptor.digest.to_string())),
                Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
                Err(error) => Err(error),
            }
        }),
        Place::OciArchive { path, .. } | Place::DockerArchive { path, .. } => {
            Ok(path.exists().then(|| path.display().to_string()))
        }
        Place::Layout { path, .. } if !path.join("index.json").exists() => Ok(None),
        place => match session.look(place) {
            Ok(source) => {
                let found = session.run(|_| async move { source.root().await });
                Ok(found.ok().map(|(digest, _)| digest.to_string()))
            }
            Err(error) if error.kind == Kind::Input => Ok(None),
            Err(error) => Err(error),
        },
    }
}

/// Copies the tags that cosign makes of the digests of what was copied.
fn digest_tags(
    session: &Session<'_>,
    source: &Source,
    tree: &Tree,
    to: &Place,
) -> Result<(), CliError> {
    let (Source::Registry { client, reference }, Place::Registry(target)) = (source, to) else {
        let message = "digest tags are copied between registries only";
        return Err(CliError::new(Kind::Usage, message));
    };
    let found = session.run(|_| async move { client.tags(reference).await })?;
    let prefixes: Vec<String> = tree
        .manifests()
        .map(|(digest, _)| registry_client::referrers::fallback_tag(&digest))
        .collect();
    let belongs = |tag: &&String| {
        let mut all = prefixes.iter();
        all.any(|prefix| {
            tag.strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.starts_with('.'))
        })
    };
    for tag in found.iter().filter(belongs) {
        let (from, to) = (reference.with_tag(tag)?, target.with_tag(tag)?);
        session.run(|client| async move {
            let place = Place::Registry(from);
            let source = Source::open(&client, &place).await?;
            let tree = Tree::read(&source, &Wanted::default()).await?;
            let target = Target::Registry {
                client,
                reference: to,
                tags: Vec::new(),
                force: false,
            };
            copy::write(&tree, &target, Arc::new(registry_client::Silent)).await
        })?;
    }
    Ok(())
}

fn tell(
    context: &Context,
    args: &CopyArgs,
    from: &Place,
    to: &Place,
    report: &CopyReport,
) -> Result<(), CliError> {
    let to_stdout = matches!(to, Place::OciArchive { path, .. } | Place::DockerArchive { path, .. }
        if path.as_os_str() == "-");
    if args.quiet || to_stdout {
        return Ok(());
    }
    if args.json {
        return context.ui.json_line(&json!({
            "source": from.to_string(),
            "target": to.to_string(),
            "digest": report.digest,
            "manifests": report.manifests,
            "blobs": {
                "copied": report.copied,
                "mounted": report.mounted,
                "existed": report.existed,
            },
            "bytes": report.bytes,
            "referrers": report.referrers,
        }));
    }
    let mut said = format!(
        "{} blobs copied, {} were there",
        report.copied, report.existed
    );
    if report.mounted > 0 {
        said += &format!(", {} were mounted", report.mounted);
    }
    context.ui.note(&said);
    context.ui.line(&super::written(to, &report.digest))
}
