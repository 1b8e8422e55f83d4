//! `commit`, `export` and `import`: containers and images made of each other.

use std::fs::File;
use std::io::{self, Read};
use std::process::ExitCode;
use std::time::SystemTime;

use builder::change::change;
use runner::container::time::rfc3339;
use runner::container::{Client, Status};
use store::layer::LayerInfo;
use store::layer::apply::{Form, UnpackOptions, unpack_into};
use store::layer::compress::decompressor;
use store::oci::{History, ImageConfig, Platform, Reference};
use store::{Store, StoreError};

use super::Known;
use super::copy::Root;
use super::lifecycle::connect;
use crate::args::{CommitArgs, ExportArgs, ImportArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// `longshore commit`.
pub fn commit(context: &Context, args: &CommitArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let known = Known::find(&store, &args.container)?;
    let record = &known.record;
    let name: Option<Reference> = args.image.as_deref().map(str::parse).transpose()?;
    let id = record.image.parse().map(store::images::ImageId);
    let id =
        id.map_err(|_| CliError::new(Kind::Environment, "the container's record names no image"))?;
    let mut config = store.images().config(&id)?;
    let layer = {
        let _stands_still = match args.pause {
            true => StandsStill::hold(&known)?,
            false => None,
        };
        store.commit_container(&known.container)?
    };
    let run = &mut config.config;
    run.entrypoint = (!record.entrypoint.is_empty()).then(|| record.entrypoint.clone());
    run.cmd = (!record.cmd.is_empty()).then(|| record.cmd.clone());
    run.env.clone_from(&record.env);
    run.user.clone_from(&record.user);
    run.working_dir.clone_from(&record.working_dir);
    run.labels = (!record.labels.is_empty()).then(|| record.labels.clone());
    change(&mut config, &args.changes).blame(Kind::Input)?;
    if let Some(author) = &args.author {
        config.author = Some(author.clone());
    }
    finish(
        context,
        &store,
        config,
        &layer,
        name.as_ref(),
        &Said {
            created_by: record.argv().join(" "),
            comment: args.message.clone(),
            author: args.author.clone(),
        },
    )
}

/// A container that stands still while this is held, and goes on then.
struct StandsStill {
    client: Client,
}

impl StandsStill {
    /// `None` for one that does not run, or is paused already.
    fn hold(known: &Known) -> Result<Option<StandsStill>, CliError> {
        if known.state.status != Status::Running {
            return Ok(None);
        }
        let Some(client) = connect(&known.folder)? else {
            return Ok(None);
        };
        match client.pause(true) {
            Ok(()) => Ok(Some(StandsStill { client })),
            // It has ended, or another command has paused it.
            Err(_) if known.folder.state()?.status != Status::Running => Ok(None),
            Err(error) => Err(CliError::from(error).hint("--pause=false leaves it running")),
        }
    }
}

impl Drop for StandsStill {
    fn drop(&mut self) {
        // Who ended it meanwhile let it go on for that.
        let _goes_on = self.client.pause(false);
    }
}

/// `longshore export`.
pub fn export(context: &Context, args: &ExportArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    if args.output.is_none() && context.ui.stdout_is_a_terminal() {
        return Err(
            CliError::new(Kind::Usage, "a tar is nothing for a terminal")
                .hint("name a file with -o, or redirect"),
        );
    }
    let root = Root::open(&store, &args.container)?;
    match &args.output {
        Some(path) => {
            let mut file = File::create(path).map_err(|error| {
                CliError::new(
                    Kind::Input,
                    format!("cannot write `{}`: {error}", path.display()),
                )
            })?;
            root.write(&mut file)?;
        }
        None => context.ui.stream(|out| root.write(out))?,
    }
    Ok(ExitCode::SUCCESS)
}

/// `longshore import`.
pub fn import(context: &Context, args: &ImportArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let name: Option<Reference> = args.image.as_deref().map(str::parse).transpose()?;
    let from = args.file.display().to_string();
    let input: Box<dyn Read> = match from.as_str() {
        "-" => Box::new(io::stdin().lock()),
        path => Box::new(File::open(path).map_err(|error| {
            CliError::new(Kind::Input, format!("cannot read `{path}`: {error}"))
        })?),
    };
    let layer = store.publish_layer(|| -> Result<LayerInfo, CliError> {
        let active = store.snapshots().prepare(&[])?;
        let target = store::fs::open_dir(active.upper()).blame(Kind::Environment)?;
        let mut options = UnpackOptions::new(Form::Tree);
        options.keep_own_if_unmapped = true;
        let tar = decompressor(input).blame(Kind::Input)?;
        unpack_into(&target, tar, &options).blame(Kind::Input)?;
        Ok(active.commit()?)
    })?;
    let platform = args.platform.clone().unwrap_or_else(Platform::host);
    let mut config = ImageConfig::scratch(&platform);
    change(&mut config, &args.changes).blame(Kind::Input)?;
    finish(
        context,
        &store,
        config,
        &layer,
        name.as_ref(),
        &Said {
            created_by: String::new(),
            comment: args
                .message
                .clone()
                .or_else(|| Some(format!("Imported from {from}"))),
            author: None,
        },
    )
}

/// What an image's history says of its last step.
struct Said {
    created_by: String,
    comment: Option<String>,
    author: Option<String>,
}

/// Puts a layer on top of a configuration and keeps the image.
fn finish(
    context: &Context,
    store: &Store,
    mut config: ImageConfig,
    layer: &LayerInfo,
    name: Option<&Reference>,
    said: &Said,
) -> Result<ExitCode, CliError> {
    let created = rfc3339(SystemTime::now());
    config
        .rootfs
        .diff_ids
        .push(store.ensure_diff_id(&layer.id)?);
    config.created = Some(created.clone());
    config.history.push(History {
        created: Some(created),
        created_by: Some(said.created_by.clone()),
        author: said.author.clone(),
        comment: said.comment.clone(),
        ..History::default()
    });
    let bytes = serde_json::to_vec(&config).expect("a configuration can be encoded");
    let id = store
        .images()
        .put_image(&bytes, None)
        .map_err(StoreError::from)?;
    if let Some(name) = name {
        store.images().tag(name, &id).map_err(StoreError::from)?;
    }
    context.ui.line(&id.to_string())?;
    Ok(ExitCode::SUCCESS)
}
