//! `ls`, `tags` and `search`: names in registries.

use std::process::ExitCode;

use serde_json::json;
use store::oci::pattern::selected;
use store::oci::reference::DOCKER_HUB;

use super::{Session, repository};
use crate::args::{LsArgs, SearchArgs, TagsArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::table::table;

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
                common: args.common.clone(),
            },
        );
    };
    let session = Session::with_hosts(context, &args.common.reach, vec![registry.to_owned()])?;
    let mut names = session.run(|client| async move { client.catalog(registry).await })?;
    names.retain(|name| selected(name, &args.include, &args.exclude));
    if args.common.json {
        let value = json!({ "registry": registry, "repositories": names });
        context.ui.json_line(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    context.ui.data(lines(&names))?;
    Ok(ExitCode::SUCCESS)
}

/// The registry, where a text names one and no repository in it.
fn registry(text: &str) -> Option<&str> {
    let bare = text.strip_prefix("docker://").unwrap_or(text);
    let bare = bare.strip_suffix('/').unwrap_or(bare);
    let is_host = bare == "localhost" || bare.contains(['.', ':']) || bare.starts_with('[');
    (is_host && !bare.contains('/')).then_some(bare)
}

fn lines(names: &[String]) -> String {
    names.iter().map(|name| format!("{name}\n")).collect()
}

/// `longshore remote tags`.
pub fn tags(context: &Context, args: &TagsArgs) -> Result<ExitCode, CliError> {
    let name = repository(&args.repository)?;
    let hosts = vec![name.registry().to_owned()];
    let session = Session::with_hosts(context, &args.common.reach, hosts)?;
    let asked = &name;
    let mut tags = session.run(|client| async move { client.tags(asked).await })?;
    tags.retain(|tag| {
        let hidden = args.omit_digest_tags && is_digest_tag(tag);
        !hidden && selected(tag, &args.include, &args.exclude)
    });
    if args.common.json {
        let value = json!({ "name": name.familiar_name(), "tags": tags });
        context.ui.json_line(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    context.ui.data(lines(&tags))?;
    Ok(ExitCode::SUCCESS)
}

/// Whether a tag is made of a digest: a list of referrers, or cosign's.
fn is_digest_tag(tag: &str) -> bool {
    let stem = tag.split('.').next().unwrap_or(tag);
    registry_client::referrers::is_fallback_tag(stem)
}

/// `longshore remote search`.
pub fn search(context: &Context, args: &SearchArgs) -> Result<ExitCode, CliError> {
    let (host, term) = match args.term.split_once('/') {
        Some((host, term)) if registry(host).is_some() => (host, term),
        _ => (DOCKER_HUB, args.term.as_str()),
    };
    if term.is_empty() {
        let message = format!("nothing to look for: `{}`", args.term);
        return Err(CliError::new(Kind::Usage, message).hint("`longshore remote ls` lists all"));
    }
    let session = Session::with_hosts(context, &args.common.reach, vec![host.to_owned()])?;
    let found = session.run(|client| async move { client.search(host, term, args.limit).await })?;
    if args.common.json {
        for one in &found {
            context.ui.json_line(&json!({
                "name": one.name,
                "description": one.description,
                "stars": one.stars,
                "official": one.official,
            }))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|one| {
            vec![
                one.name.clone(),
                crate::ui::text::one_line(&one.description),
                one.stars.to_string(),
                if one.official { "[OK]" } else { "" }.to_owned(),
            ]
        })
        .collect();
    let headings = ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"];
    context.ui.data(table(&headings, &rows))?;
    Ok(ExitCode::SUCCESS)
}
