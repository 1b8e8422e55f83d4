//! `remote` and `copy`: images where they lie.
//!
//! | module | commands |
//! |---|---|
//! | [`copy`], [`sync`] | `copy`, `sync` |
//! | [`edit`] | `mutate`, `append`, `rebase`, `flatten`, `export`, `index …` |
//! | [`list`] | `ls`, `tags` |
//! | [`search`] | `search` |
//! | [`look`] | `digest`, `config`, `inspect`, `manifest get`, `referrers` |
//! | [`validate`], [`diff`] | `validate`, `diff` |
//! | [`change`] | `manifest put` and `delete`, `tag`, `rm`, `attach` |
//! | [`blob`] | `blob …` |

pub mod blob;
pub mod change;
pub mod copy;
pub mod diff;
pub mod edit;
pub mod list;
pub mod look;
pub mod search;
pub mod sync;
pub mod validate;

use std::future::Future;
use std::process::ExitCode;
use std::sync::Arc;

use builder::remote::Remote;
use builder::solve::cancel::Cancel;
use builder::solve::{ProgressSink, TransferKind};
use builder::transfer;
use registry_client::copy::{CopyError, Place, Source};
use registry_client::{Client, Options};
use serde_json::Value;
use store::Store;
use store::oci::{Digest, Platform, Reference};

use super::find_image;
use super::interrupt::Watch;
use super::reach::{self, Named};
use crate::args::{BlobCommand, ManifestCommand, ReachArgs, RemoteCommand, TellArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::template::Format;

/// `longshore remote …`.
pub fn run(context: &Context, command: &RemoteCommand) -> Result<ExitCode, CliError> {
    match command {
        RemoteCommand::Copy(args) => copy::copy(context, args),
        RemoteCommand::Sync(args) => sync::sync(context, args),
        RemoteCommand::Mutate(args) => edit::mutate(context, args),
        RemoteCommand::Append(args) => edit::append(context, args),
        RemoteCommand::Rebase(args) => edit::rebase(context, args),
        RemoteCommand::Flatten(args) => edit::flatten(context, args),
        RemoteCommand::Export(args) => edit::export(context, args),
        RemoteCommand::Index(command) => edit::index(context, command),
        RemoteCommand::Ls(args) => list::ls(context, args),
        RemoteCommand::Tags(args) => list::tags(context, args),
        RemoteCommand::Search(args) => search::search(context, args),
        RemoteCommand::Digest(args) => look::digest(context, args),
        RemoteCommand::Config(args) => look::config(context, args),
        RemoteCommand::Inspect(args) => look::inspect(context, args),
        RemoteCommand::Diff(args) => diff::diff(context, args),
        RemoteCommand::Validate(args) => validate::validate(context, args),
        RemoteCommand::Referrers(args) => look::referrers(context, args),
        RemoteCommand::Manifest(ManifestCommand::Get(args)) => look::manifest(context, args),
        RemoteCommand::Manifest(ManifestCommand::Put(args)) => change::put(context, args),
        RemoteCommand::Manifest(ManifestCommand::Delete(args)) => change::delete(context, args),
        RemoteCommand::Tag(args) => change::tag(context, args),
        RemoteCommand::Rm(args) => change::rm(context, args),
        RemoteCommand::Attach(args) => change::attach(context, args),
        RemoteCommand::Blob(BlobCommand::Get(args)) => blob::get(context, args),
        RemoteCommand::Blob(BlobCommand::Put(args)) => blob::put(context, args),
        RemoteCommand::Blob(BlobCommand::Head(args)) => blob::head(context, args),
        RemoteCommand::Blob(BlobCommand::Delete(args)) => blob::delete(context, args),
    }
}

/// One command's way to registries. Ctrl-C ends whatever it does.
struct Session<'a> {
    context: &'a Context,
    remote: Remote,
    watch: Option<Watch>,
}

impl Drop for Session<'_> {
    fn drop(&mut self) {
        if let Some(watch) = self.watch.take() {
            watch.stop();
        }
    }
}

impl<'a> Session<'a> {
    /// A session with the registries of `places`.
    fn new(
        context: &'a Context,
        reach: &ReachArgs,
        places: &[&Place],
    ) -> Result<Session<'a>, CliError> {
        let named: Vec<Named> = places.iter().filter_map(|place| named(place)).collect();
        Session::with(context, reach, &named)
    }

    /// A session with what is named in registries.
    fn with(
        context: &'a Context,
        reach: &ReachArgs,
        named: &[Named],
    ) -> Result<Session<'a>, CliError> {
        Session::with_options(context, |options| reach::apply(reach, named, options))
    }

    /// A session with registries that are reached as `change` has it.
    fn with_options(
        context: &'a Context,
        change: impl FnOnce(&mut Options) -> Result<(), CliError>,
    ) -> Result<Session<'a>, CliError> {
        let cancel = Cancel::new().blame(Kind::Environment)?;
        let watch = Watch::start(&cancel)?;
        let mut options = context.client_options()?;
        change(&mut options)?;
        let remote = Remote::new(Box::new(move || options.clone()));
        Ok(Session {
            context,
            remote: remote.with_cancel(&cancel),
            watch: Some(watch),
        })
    }

    /// Runs `job` with the client.
    fn run<T, E, F>(&self, job: impl FnOnce(Client) -> F) -> Result<T, CliError>
    where
        E: Into<CliError>,
        F: Future<Output = Result<T, E>>,
    {
        self.remote.wait(job)?.map_err(Into::into)
    }

    /// Opens a place to read from.
    fn source(&self, place: &Place, progress: &Arc<dyn ProgressSink>) -> Result<Source, CliError> {
        let Place::Store(name) = place else {
            return self.run(|client| async move { Source::open(&client, place).await });
        };
        let store = Arc::new(self.context.store()?);
        let image = find_image(self.context, &store, name)?;
        super::transfer::complete(self.context, &store, &image.id)?;
        Ok(transfer::stored(&store, name, &image.id, progress)?)
    }

    /// Opens a place to look at.
    fn look(&self, place: &Place) -> Result<Source, CliError> {
        let nobody: Arc<dyn ProgressSink> = Arc::new(builder::solve::NoProgress);
        self.source(place, &nobody)
    }

    /// The store, which is opened where it is needed.
    fn store(&self) -> Result<Arc<Store>, CliError> {
        Ok(Arc::new(self.context.store()?))
    }
}

/// What a place names in a registry.
fn named(place: &Place) -> Option<Named> {
    match place {
        Place::Registry(reference) => Some(Named::from(reference)),
        _ => None,
    }
}

/// Prints what a command has to tell: its fields for programs, what a template makes of them, or else the words of `plain`, whole
/// lines.
fn tell(
    context: &Context,
    how: &TellArgs,
    fields: &Value,
    plain: impl FnOnce() -> String,
) -> Result<(), CliError> {
    match &how.format {
        Some(Format::Template(template)) => {
            let text = template.render(std::slice::from_ref(fields))?;
            context.ui.data(text)
        }
        Some(Format::Json) => context.ui.json_line(fields),
        _ if how.json => context.ui.json_line(fields),
        _ => context.ui.data(plain()),
    }
}

/// A place on the command line.
fn place(text: &str) -> Result<Place, CliError> {
    Ok(text.parse::<Place>()?)
}

/// A name of something in a registry.
fn reference(text: &str) -> Result<Reference, CliError> {
    match place(text)? {
        Place::Registry(reference) => Ok(reference),
        other => {
            let message = format!("`{other}` is not in a registry");
            Err(CliError::new(Kind::Input, message).hint("give NAME[:TAG|@DIGEST]"))
        }
    }
}

/// A repository, from whatever names something in it.
fn repository(text: &str) -> Result<Reference, CliError> {
    reference(text)
}

/// A reference with a digest.
fn with_digest(text: &str, what: &str) -> Result<(Reference, Digest), CliError> {
    let reference = reference(text)?;
    match reference.digest() {
        Some(digest) => Ok((reference, digest)),
        None => {
            let message = format!("`{text}` has no digest: {what} is named by one");
            Err(CliError::new(Kind::Usage, message).hint("give NAME@sha256:…"))
        }
    }
}

/// The image for a platform below what a source names, or what it names.
async fn image_for(
    source: &Source,
    platform: Option<&Platform>,
) -> Result<(Digest, store::oci::RawManifest), CopyError> {
    match platform {
        None => source.root().await,
        Some(platform) => source.image(platform).await,
    }
}

/// `KEY=VALUE` pairs.
fn pairs(texts: &[String], what: &str) -> Result<Vec<(String, String)>, CliError> {
    let pair = |text: &String| match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => {
            let message = format!("{what} `{text}`: expected KEY=VALUE");
            Err(CliError::new(Kind::Usage, message))
        }
    };
    texts.iter().map(pair).collect()
}

/// What a command that wrote something prints of it: the name by its digest in a registry, else the digest.
fn written(to: &Place, digest: &Digest) -> String {
    match to {
        Place::Registry(reference) => reference.with_digest(*digest).familiar(),
        _ => digest.to_string(),
    }
}

/// What kind of transfer the display tells of.
const COPYING: TransferKind = TransferKind::Push;
