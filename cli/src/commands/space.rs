//! `du` and `prune`: what the store takes, and giving back what nothing needs.

use std::process::ExitCode;

use serde_json::json;
use store::content::gc::{PruneImages, PruneOptions, Pruned};
use store::content::usage::UsageKind;

use crate::args::{DuArgs, ListFormat, PruneArgs};
use crate::context::Context;
use crate::error::CliError;
use crate::ui::human;
use crate::ui::table::table;

/// `longshore du`.
pub fn du(context: &Context, args: &DuArgs) -> Result<ExitCode, CliError> {
    let usage = context.store()?.du()?;
    match args.list.format() {
        ListFormat::Json => {
            for row in &usage.rows {
                context.ui.json_line(&json!({
                    "Type": name(row.kind),
                    "TotalCount": row.count,
                    "Active": row.in_use,
                    "Size": human::size(row.bytes),
                    "SizeBytes": row.bytes,
                    "Reclaimable": human::size(row.reclaimable),
                    "ReclaimableBytes": row.reclaimable,
                }))?;
            }
        }
        ListFormat::Table => {
            let mut rows: Vec<Vec<String>> = usage
                .rows
                .iter()
                .map(|row| {
                    vec![
                        name(row.kind).to_owned(),
                        row.count.to_string(),
                        row.in_use.to_string(),
                        human::size(row.bytes),
                        human::size(row.reclaimable),
                    ]
                })
                .collect();
            rows.push(vec![
                "Total".to_owned(),
                String::new(),
                String::new(),
                human::size(usage.bytes()),
                human::size(usage.reclaimable()),
            ]);
            let headings = ["TYPE", "TOTAL", "ACTIVE", "SIZE", "RECLAIMABLE"];
            context.ui.data(table(&headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// A kind of use, in docker's words where it has one.
fn name(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Images => "Images",
        UsageKind::BuildCache => "Build Cache",
        UsageKind::CacheRecords => "Cache Records",
        UsageKind::CacheMounts => "Cache Mounts",
        UsageKind::GitMirrors => "Git Repositories",
        UsageKind::StatCaches => "Stat Caches",
        UsageKind::Blobs => "Blobs",
        UsageKind::Temporary => "Temporary",
        UsageKind::History => "Build History",
        UsageKind::Index => "Index",
        UsageKind::Other => "Other",
    }
}

/// `longshore prune`.
pub fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    // Builds that were killed count as ended from now on.
    builder::history::list(&store)?;
    let builds = store.history().trim(args.dry_run)?;
    let report = store.prune(&PruneOptions {
        until: None,
        cache: args.all,
        images: PruneImages::Nameless,
        dry_run: args.dry_run,
    })?;
    let verb = if args.dry_run {
        "Would delete"
    } else {
        "Deleted"
    };
    for build in builds {
        context.ui.line(&format!("{verb} build {build}"))?;
    }
    for item in &report.items {
        let what = match item {
            Pruned::Image { id, .. } => format!("image {id}"),
            Pruned::Layer { id, .. } => format!("layer {id}"),
            Pruned::Blob { digest, .. } => format!("blob {digest}"),
            Pruned::CacheMount { id, .. } => format!("cache mount {id}"),
            Pruned::GitMirror { name, .. } => format!("git repository {name}"),
            Pruned::StatCache { name, .. } => format!("stat cache {name}"),
            Pruned::Temporary { name, .. } => format!("temporary {name}"),
            // Records are of no use to anybody outside, and there are thousands.
            Pruned::Record { .. } => continue,
        };
        context.ui.line(&format!("{verb} {what}"))?;
    }
    let bytes = human::size(report.bytes);
    context
        .ui
        .line(&format!("Total reclaimed space: {bytes}"))?;
    Ok(ExitCode::SUCCESS)
}
