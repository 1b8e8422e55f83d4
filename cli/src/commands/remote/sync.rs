//! `sync`: many images, copied where the target lacks them or has others under their names.
//!
//! | module | what |
//! |---|---|
//! | this | one image after the other |
//! | [`images`] | which there are, and what each is called at the target |
//! | [`list`] | skopeo's lists of images in YAML |

mod images;
mod list;

use std::process::ExitCode;
use std::sync::Arc;

use registry_client::copy::{self, CopyError, Place, Source, Target, Tree, Wanted};
use registry_client::{Client, ErrorKind, Silent};
use serde_json::json;
use store::oci::Digest;

use self::images::{Goal, Image, Origin, ToPlace};
use super::super::reach::{self, Named};
use super::Session;
use crate::args::SyncArgs;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// `longshore remote sync`. What is the same at the target is not touched.
pub fn sync(context: &Context, args: &SyncArgs) -> Result<ExitCode, CliError> {
    let from = Origin::read(args)?;
    let to = Goal::read(args, from.is_one_repository())?;
    let source: Vec<Named> = from.hosts().into_iter().map(Named::registry).collect();
    let target: Vec<Named> = to.host().into_iter().map(Named::registry).collect();
    let session = Session::with_options(context, |options| {
        let all = [source.clone(), target.clone()].concat();
        reach::apply(&args.reach, &all, options)?;
        reach::apply_sides(&args.sides, &source, &target, options)?;
        from.add_to(options);
        Ok(())
    })?;
    let mut code = ExitCode::SUCCESS;
    let failed = |error: CliError| match args.keep_going && error.kind != Kind::Interrupted {
        true => {
            context.ui.error(&error);
            Ok(ExitCode::from(&error))
        }
        false => Err(error),
    };
    for part in from.parts(&session, args)? {
        let found = part.images(&session, args, &to);
        let images = match found {
            Ok(images) => images,
            Err(error) => {
                code = failed(error)?;
                continue;
            }
        };
        for image in &images {
            let done = session.run(|client| async move { one(&client, image, args).await });
            match done {
                Ok((digest, what)) => tell(context, args, &image.to, &digest, what)?,
                Err(error) => code = failed(error)?,
            }
        }
    }
    Ok(code)
}

/// Copies one image; its digest, and what was done.
async fn one(
    client: &Client,
    image: &Image,
    args: &SyncArgs,
) -> Result<(Digest, &'static str), CopyError> {
    let source = Source::open(client, &image.from).await?;
    let kinds = Wanted {
        platforms: args.platforms.platforms.clone(),
        referrers: args.referrers,
        ..Wanted::default()
    };
    let mut tree = None;
    let wanted = match &image.from {
        Place::Registry(reference) if kinds.platforms.is_empty() => {
            client.resolve(reference).await?.digest
        }
        // What some of the platforms make is another index.
        _ => tree.insert(Tree::read(&source, &kinds).await?).root(),
    };
    let there = existing(client, &image.to).await?;
    let what = match there {
        Some(digest) if digest == wanted => "same",
        Some(_) => "changed",
        None => "new",
    };
    if args.dry_run || (what == "same" && !args.referrers) {
        return Ok((wanted, what));
    }
    let tree = match tree {
        Some(tree) => tree,
        None => Tree::read(&source, &kinds).await?,
    };
    let report = copy::write(&tree, &target(client, &image.to), Arc::new(Silent)).await?;
    Ok((report.digest, what))
}

fn target(client: &Client, place: &ToPlace) -> Target {
    match place.clone() {
        ToPlace::Registry(reference) => Target::Registry {
            client: client.clone(),
            reference,
            tags: Vec::new(),
            force: false,
        },
        ToPlace::Layout { path, name } => Target::Layout { path, name },
    }
}

/// What a name stands for at the target already.
async fn existing(client: &Client, place: &ToPlace) -> Result<Option<Digest>, CopyError> {
    match place {
        ToPlace::Registry(reference) => match client.resolve(reference).await {
            Ok(found) => Ok(Some(found.digest)),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error.into()),
        },
        ToPlace::Layout { path, .. } if !path.join("index.json").exists() => Ok(None),
        ToPlace::Layout { .. } => {
            let source = Source::open(client, &place.place()).await?;
            let found = source.root().await;
            Ok(found.ok().map(|(digest, _)| digest))
        }
    }
}

fn tell(
    context: &Context,
    args: &SyncArgs,
    to: &ToPlace,
    digest: &Digest,
    what: &str,
) -> Result<(), CliError> {
    let to = to.place();
    if args.json {
        return context.ui.json_line(&json!({
            "target": to.to_string(),
            "digest": digest,
            "was": what,
            "dryRun": args.dry_run,
        }));
    }
    context.ui.line(&format!("{what:<8} {to} {digest}"))
}
