//! `du` and `prune`: what the store takes, and giving back what nothing needs.

use std::collections::BTreeSet;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use store::content::collect::{CacheKind, Collection, Limits, Rule};
use store::content::gc::Pruned;
use store::content::usage::{UsageItem, UsageKind, UsageRow};

use super::{container, now};
use crate::args::{DuArgs, Filter, ListFormat, PruneArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::human;
use crate::ui::table::table;

/// `longshore du`.
pub fn du(context: &Context, args: &DuArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut usage = store.du()?;
    container::account(&store, &mut usage)?;
    drop(store);
    if !args.filters.is_empty() {
        let wanted = Wanted::new(&args.filters, "du")?;
        usage.items.retain(|item| wanted.fits(item));
        usage.rows = rows(&usage.items);
    }
    if args.verbose {
        return list_items(context, args, usage.items);
    }
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

/// The sums of what fits filters: of kinds that there are.
fn rows(items: &[UsageItem]) -> Vec<UsageRow> {
    let mut rows: Vec<UsageRow> = Vec::new();
    for item in items {
        let at = rows.iter().position(|row| row.kind == item.kind);
        let at = at.unwrap_or_else(|| {
            rows.push(UsageRow {
                kind: item.kind,
                count: 0,
                in_use: 0,
                bytes: 0,
                reclaimable: 0,
            });
            rows.len() - 1
        });
        let row = &mut rows[at];
        row.count += 1;
        row.bytes += item.bytes;
        match item.reclaimable {
            true => row.reclaimable += item.bytes,
            false => row.in_use += 1,
        }
    }
    rows
}

fn list_items(
    context: &Context,
    args: &DuArgs,
    mut items: Vec<UsageItem>,
) -> Result<ExitCode, CliError> {
    items.sort_by(|a, b| (b.bytes, a.kind, &a.name).cmp(&(a.bytes, b.kind, &b.name)));
    let now = now();
    let used = |item: &UsageItem| item.last_used.map(|micros| micros / 1_000_000);
    if args.list.format() == ListFormat::Json {
        for item in &items {
            context.ui.json_line(&json!({
                "Type": name(item.kind),
                "ID": item.name,
                "Name": item.alias,
                "Size": human::size(item.bytes),
                "SizeBytes": item.bytes,
                "LastUsed": used(item).map(store::oci::time::rfc3339),
                "Reclaimable": item.reclaimable,
            }))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let row = |item: &UsageItem| {
        let shown = match item.alias.as_str() {
            "" => item.name.clone(),
            alias => format!("{alias} ({})", item.name),
        };
        vec![
            name(item.kind).to_owned(),
            item.bytes.to_string(),
            item.reclaimable.to_string(),
            used(item).map_or_else(String::new, |used| human::ago(now - used)),
            shown,
        ]
    };
    let rows: Vec<Vec<String>> = items.iter().map(row).collect();
    let headings = ["TYPE", "BYTES", "RECLAIMABLE", "LAST USED", "ID"];
    context.ui.data(table(&headings, &rows))?;
    Ok(ExitCode::SUCCESS)
}

/// A kind of use, in docker's words where it has one.
fn name(kind: UsageKind) -> &'static str {
    match kind {
        UsageKind::Images => "Images",
        UsageKind::Containers => "Containers",
        UsageKind::Volumes => "Local Volumes",
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

/// Filters put together.
#[derive(Default)]
struct Wanted {
    /// All, where there is none.
    kinds: BTreeSet<CacheKind>,
    in_use: Option<bool>,
    rule: Rule,
}

impl Wanted {
    fn new(filters: &[Filter], command: &str) -> Result<Wanted, CliError> {
        let mut wanted = Wanted::default();
        let rule = &mut wanted.rule;
        for filter in filters {
            match filter {
                Filter::Until(until) => {
                    let ago = until.ago(SystemTime::now());
                    rule.unused_for = rule.unused_for.max(ago);
                }
                Filter::Kind(kind) => {
                    wanted.kinds.insert(*kind);
                }
                Filter::Id(id) => rule.ids.push(id.clone()),
                Filter::Label(test) if command == "prune" => rule.labels.push(test.clone()),
                Filter::Label(_) => {
                    let message = "`du` measures layers and blobs, which have no labels";
                    return Err(CliError::new(Kind::Usage, message));
                }
                Filter::InUse(true) if command == "prune" => {
                    let message = "what is in use is never removed: `inuse=true` is for `du`";
                    return Err(CliError::new(Kind::Usage, message));
                }
                Filter::InUse(in_use) => wanted.in_use = Some(*in_use),
            }
        }
        Ok(wanted)
    }

    /// Whether it is to be counted.
    fn fits(&self, item: &UsageItem) -> bool {
        let kind = match item.kind {
            UsageKind::Images => Some(CacheKind::NamelessImages),
            UsageKind::BuildCache | UsageKind::CacheRecords => Some(CacheKind::Records),
            UsageKind::CacheMounts => Some(CacheKind::CacheMounts),
            UsageKind::GitMirrors => Some(CacheKind::GitMirrors),
            UsageKind::StatCaches => Some(CacheKind::StatCaches),
            _ => None,
        };
        let is_kind = self.kinds.is_empty() || kind.is_some_and(|kind| self.kinds.contains(&kind));
        let begins =
            |id: &String| item.name.starts_with(id.as_str()) || item.alias.starts_with(id.as_str());
        let is_named = self.rule.ids.is_empty() || self.rule.ids.iter().any(begins);
        let is_use = self.in_use.is_none_or(|in_use| in_use != item.reclaimable);
        let is_old = self.rule.unused_for == Duration::ZERO
            || item.last_used.is_some_and(|used| {
                let age = now() - used / 1_000_000;
                u64::try_from(age).is_ok_and(|age| age > self.rule.unused_for.as_secs())
            });
        is_kind && is_named && is_use && is_old
    }
}

/// What the flags of `prune` ask for.
fn collection(args: &PruneArgs) -> Result<Collection, CliError> {
    let wanted = Wanted::new(&args.filters, "prune")?;
    let limits = Limits {
        reserved: args.reserved_space.or(args.keep_storage).unwrap_or(0),
        max_used: args.max_used_space.unwrap_or(0),
        min_free: args.min_free_space.unwrap_or(0),
    };
    let mut rule = wanted.rule;
    let of_cache = args.all
        || limits != Limits::default()
        || args.keep_duration.is_some()
        || !rule.ids.is_empty();
    rule.kinds = match (wanted.kinds.is_empty(), of_cache) {
        (false, _) => wanted.kinds,
        (true, true) => CacheKind::CACHE.into(),
        (true, false) => [CacheKind::NamelessImages].into(),
    };
    rule.limits = limits;
    rule.unused_for = rule.unused_for.max(args.keep_duration.unwrap_or_default());
    Ok(Collection {
        garbage_age: rule.unused_for,
        rules: vec![rule],
        dry_run: args.dry_run,
        ..Collection::default()
    })
}

/// `longshore prune`.
pub fn prune(context: &Context, args: &PruneArgs) -> Result<ExitCode, CliError> {
    let collection = collection(args)?;
    let store = context.store()?;
    // First, for it manages on a full disk.
    let report = store.collect(&collection)?;
    let mut builds = Vec::new();
    if args.filters.is_empty() {
        // Builds that were killed count as ended from now on.
        builder::history::list(&store)?;
        builds = store.history().trim(args.dry_run)?;
    }
    let mut printer = Printer {
        context,
        args,
        records: 0,
    };
    for build in builds {
        printer.item("build", &build.to_string(), 0)?;
    }
    for item in &report.items {
        let bytes = item.bytes();
        match item {
            Pruned::Image { id, .. } => printer.item("image", &id.to_string(), bytes)?,
            Pruned::Layer { id, .. } => printer.item("layer", &id.to_string(), bytes)?,
            Pruned::Blob { digest, .. } => printer.item("blob", &digest.to_string(), bytes)?,
            Pruned::CacheMount { id, .. } => printer.item("cache mount", id, bytes)?,
            Pruned::GitMirror { name, .. } => printer.item("git repository", name, bytes)?,
            Pruned::StatCache { name, .. } => printer.item("stat cache", name, bytes)?,
            Pruned::Temporary { name, .. } => printer.item("temporary", name, bytes)?,
            // Of no use to anybody outside, and there are thousands.
            Pruned::Record { .. } => printer.records += 1,
        }
    }
    printer.total(report.bytes)?;
    Ok(ExitCode::SUCCESS)
}

struct Printer<'c> {
    context: &'c Context,
    args: &'c PruneArgs,
    records: u64,
}

impl Printer<'_> {
    fn item(&self, what: &str, name: &str, bytes: u64) -> Result<(), CliError> {
        if self.args.list.format() == ListFormat::Json {
            let value: Value = json!({ "Type": what, "ID": name, "SizeBytes": bytes });
            return self.context.ui.json_line(&value);
        }
        let verb = match self.args.dry_run {
            true => "Would delete",
            false => "Deleted",
        };
        let size = match self.args.verbose {
            true => format!(" ({bytes} bytes)"),
            false => String::new(),
        };
        self.context.ui.line(&format!("{verb} {what} {name}{size}"))
    }

    fn total(&self, bytes: u64) -> Result<(), CliError> {
        let size = human::size(bytes);
        if self.args.list.format() == ListFormat::Json {
            return self.context.ui.json_line(&json!({
                "Type": "total",
                "Records": self.records,
                "Size": size,
                "SizeBytes": bytes,
                "DryRun": self.args.dry_run,
            }));
        }
        let exact = match self.args.verbose || self.args.dry_run {
            true => format!(" ({bytes} bytes)"),
            false => String::new(),
        };
        self.context
            .ui
            .line(&format!("Total reclaimed space: {size}{exact}"))
    }
}
