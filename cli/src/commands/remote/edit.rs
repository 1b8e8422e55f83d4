//! `mutate`, `append`, `rebase`, `flatten`, `export` and `index …`: new images of old ones, written like any copy.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use registry_client::Silent;
use registry_client::copy::{self, Place, Tree, Wanted};
use registry_client::edit::index::{Description, Entry, describe_entry, merge};
use registry_client::edit::layers::{self, NewLayer};
use registry_client::edit::{Mutation, mutate as change};
use serde_json::json;
use store::layer::compress::Compression;
use store::oci::{Annotations, Digest, Platform};

use super::copy::{ToPlace, to_place};
use super::{Session, pairs, place, tell, written};
use crate::args::{
    AppendArgs, FlattenArgs, IndexAnnotateArgs, IndexAppendArgs, IndexCommand, IndexCreateArgs,
    MutateArgs, ReachArgs, RebaseArgs, RemoteExportArgs, ResultArgs, TellArgs,
};
use crate::commands::transfer::{level, write_digests};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// What a command works on, and where its result goes.
struct Work<'a> {
    session: Session<'a>,
    from: Option<Place>,
    to: Place,
}

impl<'a> Work<'a> {
    /// With the places of a command: its image, where the result goes, and others that it reads.
    fn new(
        context: &'a Context,
        reach: &ReachArgs,
        image: Option<&str>,
        target: Option<&str>,
        others: &[&Place],
    ) -> Result<Work<'a>, CliError> {
        let from = image.map(place).transpose()?;
        let to = match (target, &from) {
            (Some(target), _) => place(target)?,
            (None, Some(from)) => own_name(from)?,
            (None, None) => {
                let message = "the result has no name";
                return Err(CliError::new(Kind::Usage, message).hint("give one with --tag"));
            }
        };
        let places: Vec<&Place> = from
            .iter()
            .chain([&to])
            .chain(others.iter().copied())
            .collect();
        let session = Session::new(context, reach, &places)?;
        Ok(Work { session, from, to })
    }

    fn read(&self, place: &Place, platforms: &[Platform]) -> Result<Tree, CliError> {
        let wanted = Wanted {
            platforms: platforms.to_vec(),
            ..Wanted::default()
        };
        let source = self.session.look(place)?;
        self.session
            .run(|_| async move { Tree::read(&source, &wanted).await })
    }

    /// The image that the command is about.
    fn image(&self, platforms: &[Platform]) -> Result<Tree, CliError> {
        let from = self.from.as_ref().expect("the command names an image");
        self.read(from, platforms)
    }

    /// Writes the result and tells of it.
    fn write(
        &self,
        tree: &Tree,
        digestfile: Option<&PathBuf>,
        how: &TellArgs,
    ) -> Result<ExitCode, CliError> {
        let from = self.from.as_ref().unwrap_or(&self.to);
        let ToPlace { target, keeper } = to_place(&self.session, from, &self.to)?;
        let report = self.session.run(|client| {
            let target = target(&client);
            async move { copy::write(tree, &target, Arc::new(Silent)).await }
        })?;
        if let Some((store, name)) = keeper {
            builder::transfer::adopt(&store, tree.root_manifest(), Some(&name))?;
        }
        let context = self.session.context;
        if let Some(path) = digestfile {
            write_digests(path, &report.digest.to_string())?;
        }
        let value = json!({ "target": self.to.to_string(), "digest": report.digest });
        tell(context, how, &value, || {
            format!("{}\n", written(&self.to, &report.digest))
        })?;
        Ok(ExitCode::SUCCESS)
    }

    fn finish(&self, tree: &Tree, result: &ResultArgs) -> Result<ExitCode, CliError> {
        self.write(tree, result.digestfile.as_ref(), &result.common.tell)
    }
}

/// The name under which a result takes the place of what it was made of.
fn own_name(from: &Place) -> Result<Place, CliError> {
    let named = match from {
        Place::Registry(reference) => reference.digest().is_none(),
        Place::Layout { .. } => true,
        _ => false,
    };
    if named {
        return Ok(from.clone());
    }
    let message = format!("what is made of `{from}` has no name");
    Err(CliError::new(Kind::Usage, message).hint("give one with --tag"))
}

/// `longshore remote mutate`.
pub fn mutate(context: &Context, args: &MutateArgs) -> Result<ExitCode, CliError> {
    let (index, images): (Vec<String>, Vec<String>) = args
        .annotations
        .iter()
        .cloned()
        .partition(|text| text.starts_with("index:"));
    let index: Vec<String> = index
        .iter()
        .filter_map(|text| text.strip_prefix("index:").map(str::to_owned))
        .collect();
    // An empty word stands for no words at all.
    let words = |words: &Option<Vec<String>>| {
        let words = words.clone()?;
        Some(if words == [String::new()] {
            Vec::new()
        } else {
            words
        })
    };
    let port = |port: &String| match port.contains('/') {
        true => port.clone(),
        false => format!("{port}/tcp"),
    };
    let mutation = Mutation {
        env: pairs(&args.env, "variable")?,
        unset_env: args.unset_env.clone(),
        labels: pairs(&args.labels, "label")?,
        entrypoint: words(&args.entrypoint),
        cmd: words(&args.cmd),
        user: args.user.clone(),
        workdir: args.workdir.clone(),
        ports: args.ports.iter().map(port).collect(),
        volumes: args.volumes.clone(),
        stop_signal: args.stop_signal.clone(),
        author: args.author.clone(),
        created: args.created.clone(),
        platform: args.set_platform.clone(),
        annotations: pairs(&images, "annotation")?,
        index_annotations: pairs(&index, "annotation")?,
    };
    let result = &args.result;
    let target = result.target.as_deref();
    let work = Work::new(
        context,
        &result.common.reach,
        Some(&args.image),
        target,
        &[],
    )?;
    let tree = work.image(&result.platforms.platforms)?;
    let (tree, mutation) = (&tree, &mutation);
    let changed = work
        .session
        .run(|_| async move { change(tree, mutation).await })?;
    work.finish(&changed, result)
}

/// `longshore remote append`.
pub fn append(context: &Context, args: &AppendArgs) -> Result<ExitCode, CliError> {
    let result = &args.result;
    let compression = args.compression.compression();
    let compression = compression.map_err(|error| level(&error))?;
    let (base, target) = (args.base.as_deref(), result.target.as_deref());
    let work = Work::new(context, &result.common.reach, base, target, &[])?;
    let spool = context.temp_dir();
    let new: Vec<NewLayer> = args
        .layers
        .iter()
        .map(|path| NewLayer::of_tar(path, compression, &spool))
        .collect::<Result<_, _>>()?;
    let platforms = &result.platforms.platforms;
    let tree = match base {
        Some(_) => {
            let (tree, new) = (&work.image(platforms)?, &new[..]);
            work.session
                .run(|_| async move { layers::append(tree, new).await })?
        }
        None => {
            let platform = match &platforms[..] {
                [] => Platform::host(),
                [one] => one.clone(),
                _ => {
                    let message = "an image of layers alone is for one platform";
                    return Err(CliError::new(Kind::Usage, message));
                }
            };
            layers::from_scratch(&work.to.to_string(), &platform, &new)
        }
    };
    work.finish(&tree, result)
}

/// `longshore remote rebase`.
pub fn rebase(context: &Context, args: &RebaseArgs) -> Result<ExitCode, CliError> {
    let (old, new) = (place(&args.old_base)?, place(&args.new_base)?);
    let result = &args.result;
    let target = result.target.as_deref();
    let work = Work::new(
        context,
        &result.common.reach,
        Some(&args.image),
        target,
        &[&old, &new],
    )?;
    let platforms = &result.platforms.platforms;
    let tree = work.image(platforms)?;
    let (old, new) = (work.read(&old, &[])?, work.read(&new, &[])?);
    let (tree, old, new) = (&tree, &old, &new);
    let rebased = work
        .session
        .run(|_| async move { layers::rebase(tree, old, new).await })?;
    work.finish(&rebased, result)
}

/// `longshore remote flatten`.
pub fn flatten(context: &Context, args: &FlattenArgs) -> Result<ExitCode, CliError> {
    let result = &args.result;
    let compression = args.compression.compression();
    let compression = compression.map_err(|error| level(&error))?;
    let compression = compression.unwrap_or(Compression::GZIP);
    let target = result.target.as_deref();
    let work = Work::new(
        context,
        &result.common.reach,
        Some(&args.image),
        target,
        &[],
    )?;
    let tree = work.image(&result.platforms.platforms)?;
    let (tree, spool) = (&tree, &context.temp_dir());
    let flat = work
        .session
        .run(|_| async move { layers::flatten(tree, compression, spool).await })?;
    // The files that hold the new layers live until they are written.
    let (tree, _held) = &flat;
    work.finish(tree, result)
}

/// `longshore remote export`. A file appears under its name when it is whole.
pub fn export(context: &Context, args: &RemoteExportArgs) -> Result<ExitCode, CliError> {
    let from = place(&args.image)?;
    let session = Session::new(context, &args.reach, &[&from])?;
    let source = session.look(&from)?;
    let wanted = Wanted {
        platforms: vec![args.platform.clone().unwrap_or_else(Platform::host)],
        lone: args.platform.is_none(),
        ..Wanted::default()
    };
    let output = args.output.clone().filter(|path| path.as_os_str() != "-");
    if output.is_none() && context.ui.stdout_is_a_terminal() {
        let message = "a tar is nothing to look at on a terminal";
        return Err(CliError::new(Kind::Usage, message).hint("give a file"));
    }
    let stdout = context.ui.stdout_file().blame(Kind::Environment)?;
    let spool = context.temp_dir();
    session.run(|_| async move {
        let tree = Tree::read(&source, &wanted).await?;
        layers::export_to(&tree, output.as_deref(), stdout, &spool).await
    })?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore remote index …`.
pub fn index(context: &Context, command: &IndexCommand) -> Result<ExitCode, CliError> {
    match command {
        IndexCommand::Create(args) => create(context, args),
        IndexCommand::Append(args) => add(context, args),
        IndexCommand::Annotate(args) => annotate(context, args),
    }
}

fn places(texts: &[String]) -> Result<Vec<Place>, CliError> {
    texts.iter().map(|text| place(text)).collect()
}

/// The images as entries of an index.
fn entries(work: &Work<'_>, images: &[Place]) -> Result<Vec<Entry>, CliError> {
    let entry = |image: &Place| {
        Ok(Entry {
            tree: work.read(image, &[])?,
            platform: None,
            annotations: Annotations::new(),
        })
    };
    images.iter().map(entry).collect()
}

fn create(context: &Context, args: &IndexCreateArgs) -> Result<ExitCode, CliError> {
    let images = places(&args.images)?;
    let others: Vec<&Place> = images.iter().collect();
    let work = Work::new(
        context,
        &args.common.reach,
        None,
        Some(&args.target),
        &others,
    )?;
    let annotations = pairs(&args.annotations, "annotation")?;
    let (entries, annotations) = (&entries(&work, &images)?, &annotations);
    let tree = work
        .session
        .run(|_| async move { merge(&args.target, None, entries, annotations).await })?;
    work.write(&tree, None, &args.common.tell)
}

fn add(context: &Context, args: &IndexAppendArgs) -> Result<ExitCode, CliError> {
    let images = places(&args.images)?;
    let others: Vec<&Place> = images.iter().collect();
    let target = args.target.as_deref();
    let work = Work::new(
        context,
        &args.common.reach,
        Some(&args.index),
        target,
        &others,
    )?;
    let annotations = pairs(&args.annotations, "annotation")?;
    let base = work.image(&[])?;
    let (base, entries, annotations) = (&base, &entries(&work, &images)?, &annotations);
    let tree = work
        .session
        .run(|_| async move { merge(&args.index, Some(base), entries, annotations).await })?;
    work.write(&tree, None, &args.common.tell)
}

fn annotate(context: &Context, args: &IndexAnnotateArgs) -> Result<ExitCode, CliError> {
    let entry = args.entry.as_deref().map(str::parse::<Digest>).transpose();
    let entry = entry.blame(Kind::Input)?;
    let target = args.target.as_deref();
    let work = Work::new(context, &args.common.reach, Some(&args.index), target, &[])?;
    let description = Description {
        platform: args.platform.clone(),
        annotations: pairs(&args.annotations, "annotation")?,
    };
    let tree = describe_entry(&work.image(&[])?, entry, &description)?;
    work.write(&tree, None, &args.common.tell)
}
