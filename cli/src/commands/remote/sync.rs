//! `sync`: the tags of a repository, copied to another one.

use std::process::ExitCode;
use std::sync::Arc;

use registry_client::copy::{self, CopyError, Place, Source, Target, Tree, Wanted};
use registry_client::{Client, ErrorKind, Silent};
use serde_json::json;
use store::oci::pattern::selected;
use store::oci::{Digest, Reference};

use super::{Session, repository};
use crate::args::SyncArgs;
use crate::context::Context;
use crate::error::CliError;

/// `longshore remote sync`. What is the same at the target is not touched.
pub fn sync(context: &Context, args: &SyncArgs) -> Result<ExitCode, CliError> {
    let (from, to) = (repository(&args.source)?, repository(&args.target)?);
    let places = [Place::Registry(from.clone()), Place::Registry(to.clone())];
    let session = Session::new(context, &args.common.reach, &[&places[0], &places[1]])?;
    let source = &from;
    let mut tags = session.run(|client| async move { client.tags(source).await })?;
    tags.retain(|tag| {
        // Lists of referrers are written by whoever copies what is in them.
        !registry_client::referrers::is_fallback_tag(tag)
            && selected(tag, &args.include, &args.exclude)
    });
    let mut code = ExitCode::SUCCESS;
    for tag in &tags {
        let (from, to) = (from.with_tag(tag)?, to.with_tag(tag)?);
        let (source, target) = (&from, &to);
        let done = session.run(|client| async move { one(&client, source, target, args).await });
        match done {
            Ok((digest, what)) => tell(context, args, &to, &digest, what)?,
            Err(error) if args.keep_going => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
            Err(error) => return Err(error),
        }
    }
    Ok(code)
}

/// Copies one tag; its digest, and what was done.
async fn one(
    client: &Client,
    from: &Reference,
    to: &Reference,
    args: &SyncArgs,
) -> Result<(Digest, &'static str), CopyError> {
    let wanted = client.resolve(from).await?.digest;
    let there = match client.resolve(to).await {
        Ok(found) => Some(found.digest),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(error.into()),
    };
    if there == Some(wanted) && !args.referrers {
        return Ok((wanted, "same"));
    }
    let what = match there {
        Some(digest) if digest == wanted => "same",
        Some(_) => "changed",
        None => "new",
    };
    if args.dry_run {
        return Ok((wanted, what));
    }
    let source = Source::Registry {
        client: client.clone(),
        reference: from.clone(),
    };
    let kinds = Wanted {
        referrers: args.referrers,
        ..Wanted::default()
    };
    let tree = Tree::read(&source, &kinds).await?;
    let target = Target::Registry {
        client: client.clone(),
        reference: to.clone(),
        tags: Vec::new(),
        force: false,
    };
    let report = copy::write(&tree, &target, Arc::new(Silent)).await?;
    Ok((report.digest, what))
}

fn tell(
    context: &Context,
    args: &SyncArgs,
    to: &Reference,
    digest: &Digest,
    what: &str,
) -> Result<(), CliError> {
    if args.common.json {
        return context.ui.json_line(&json!({
            "target": to.familiar(),
            "digest": digest,
            "was": what,
            "dryRun": args.dry_run,
        }));
    }
    context
        .ui
        .line(&format!("{what:<8} {} {digest}", to.familiar()))
}
