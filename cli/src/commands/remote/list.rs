//! `ls` and `tags`: names in registries.

use std::process::ExitCode;

use serde_json::json;
use store::oci::pattern::selected;

use super::{Session, repository, tell};
use crate::args::{LsArgs, TagsArgs};
use crate::commands::reach::Named;
use crate::context::Context;
use crate::error::CliError;

/// `longshore remote ls`.
pub fn ls(context: &Context, args: &LsArgs) -> Result<ExitCode, CliError> {
    let Some(registry) = registry(&args.place) else {
        return tags(
            context,
            &TagsArgs {
                repository: args.place.clone(),
                include: args.include.clone(),
                exclude: args.exclude.clone(),
                omit_digest_tags: false,
                full_ref: args.full_ref,
                common: args.common.clone(),
            },
        );
    };
    let named = [Named::registry(registry)];
    let session = Session::with(context, &args.common.reach, &named)?;
    let mut names = session.run(|client| async move { client.catalog(registry).await })?;
    names.retain(|name| selected(name, &args.include, &args.exclude));
    let value = json!({ "registry": registry, "repositories": names });
    tell(context, &args.common.tell, &value, || match args.full_ref {
        true => lines(&format!("{registry}/"), &names),
        false => lines("", &names),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// The registry, where a text names one and no repository in it.
pub(super) fn registry(text: &str) -> Option<&str> {
    let bare = text.strip_prefix("docker://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let is_host = bare == "localhost" || bare.contains(['.', ':']) || bare.starts_with('[');
    (is_host && !bare.contains('/')).then_some(bare)
}

fn lines(before: &str, names: &[String]) -> String {
    names
        .iter()
        .map(|name| format!("{before}{name}\n"))
        .collect()
}

/// `longshore remote tags`.
pub fn tags(context: &Context, args: &TagsArgs) -> Result<ExitCode, CliError> {
    let name = repository(&args.repository)?;
    let session = Session::with(context, &args.common.reach, &[Named::from(&name)])?;
    let asked = &name;
    let mut tags = session.run(|client| async move { client.tags(asked).await })?;
    tags.retain(|tag| {
        let hidden = args.omit_digest_tags && is_digest_tag(tag);
        !hidden && selected(tag, &args.include, &args.exclude)
    });
    let value = json!({ "name": name.familiar_name(), "tags": tags });
    tell(context, &args.common.tell, &value, || match args.full_ref {
        true => lines(&format!("{}:", name.familiar_name()), &tags),
        false => lines("", &tags),
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a tag is made of a digest: a list of referrers, or cosign's.
fn is_digest_tag(tag: &str) -> bool {
    let stem = tag.split('.').next().unwrap_or(tag);
    registry_client::referrers::is_fallback_tag(stem)
}
