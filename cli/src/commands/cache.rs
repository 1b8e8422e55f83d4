//! `cache`: the directories that steps keep between builds.

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use store::Store;
use store::cache_mounts::{CacheMountRow, CacheSharing, CacheUse};

use super::now;
use crate::args::{CacheCommand, CacheLsArgs, CacheRmArgs, ListFormat};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::human;
use crate::ui::table::table;

/// How much of a name is shown in a table.
const NAME_CHARS: usize = 12;

/// How long to wait between two looks at a cache that is in use.
const POLL: Duration = Duration::from_millis(50);

/// `longshore cache …`.
pub fn cache(context: &Context, command: &CacheCommand) -> Result<ExitCode, CliError> {
    match command {
        CacheCommand::Ls(args) => ls(context, args),
        CacheCommand::Rm(args) => rm(context, args),
    }
}

fn ls(context: &Context, args: &CacheLsArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut rows = store.cache_mounts()?;
    if !args.ids.is_empty() {
        rows.retain(|row| args.ids.iter().any(|text| is_meant(row, text)));
    }
    rows.sort_by(|a, b| (id(a), &a.name).cmp(&(id(b), &b.name)));
    if args.quiet {
        let lines = rows.iter().map(|row| format!("{}\n", row.name));
        context.ui.data(lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut listed = Vec::with_capacity(rows.len());
    for row in rows {
        let bytes = store.cache_mount_bytes(&row)?;
        let users = users(&store, &row)?;
        listed.push((row, bytes, users));
    }
    match args.list.format() {
        ListFormat::Json => {
            let time =
                |micros: Option<i64>| micros.map(|m| store::oci::time::rfc3339(m / 1_000_000));
            for (row, bytes, users) in &listed {
                context.ui.json_line(&json!({
                    "Cache": row.name,
                    "ID": id(row),
                    "Sharing": row.sharing.map(sharing),
                    "Size": human::size(*bytes),
                    "SizeBytes": bytes,
                    "Created": time(row.created),
                    "LastUsed": time(row.last_used),
                    "InUse": users.is_some(),
                    "InUseBy": users.clone().unwrap_or_default(),
                }))?;
            }
        }
        ListFormat::Table => {
            let now = now();
            let ago = |micros: Option<i64>| {
                micros.map_or_else(String::new, |micros| human::ago(now - micros / 1_000_000))
            };
            let lines = listed.iter().map(|(row, bytes, users)| {
                vec![
                    row.name.chars().take(NAME_CHARS).collect(),
                    id(row).to_owned(),
                    row.sharing.map_or("", sharing).to_owned(),
                    human::size(*bytes),
                    ago(row.created),
                    ago(row.last_used),
                    users.as_ref().map(|users| by(users)).unwrap_or_default(),
                ]
            });
            let lines: Vec<Vec<String>> = lines.collect();
            let headings = [
                "CACHE",
                "ID",
                "SHARING",
                "SIZE",
                "CREATED",
                "LAST USED",
                "IN USE BY",
            ];
            context.ui.data(table(&headings, &lines))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rm(context: &Context, args: &CacheRmArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let rows = store.cache_mounts()?;
    let mut meant: Vec<&CacheMountRow> = Vec::new();
    for text in &args.ids {
        let found = rows.iter().filter(|row| is_meant(row, text));
        let before = meant.len();
        meant.extend(found);
        if meant.len() == before {
            let message = format!("no such cache mount: `{text}`");
            let error = CliError::new(Kind::Input, message);
            return Err(error.hint("`longshore cache ls` lists those that there are"));
        }
    }
    meant.sort_by(|a, b| a.name.cmp(&b.name));
    meant.dedup();
    let mut bytes = 0;
    let mut in_use = Vec::new();
    for row in meant {
        match remove(context, &store, row, args.force)? {
            Ok(freed) => {
                bytes += freed;
                context
                    .ui
                    .line(&format!("Deleted cache mount {} {}", id(row), row.name))?;
            }
            Err(users) => in_use.push(format!("`{}` is in use by {}", id(row), by(&users))),
        }
    }
    context
        .ui
        .line(&format!("Total reclaimed space: {}", human::size(bytes)))?;
    if in_use.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    let message = format!("the cache mount {}", in_use.join(", "));
    Err(CliError::new(Kind::Input, message).hint("--force waits until it is free"))
}

/// Removes a cache, waiting for it if asked to; tells what that freed, or who uses it.
fn remove(
    context: &Context,
    store: &Store,
    row: &CacheMountRow,
    force: bool,
) -> Result<Result<u64, Vec<String>>, CliError> {
    let mut told = false;
    loop {
        if let Some(bytes) = store.remove_cache_mount(row)? {
            return Ok(Ok(bytes));
        }
        // It may have become free meanwhile.
        let users = users(store, row)?.unwrap_or_default();
        if !force {
            return Ok(Err(users));
        }
        if !told {
            told = true;
            let text = format!("waiting for {}, which uses `{}`", by(&users), id(row));
            context.ui.note(&text);
        }
        std::thread::sleep(POLL);
    }
}

/// Who uses a cache, in words; nothing if nobody does.
fn users(store: &Store, row: &CacheMountRow) -> Result<Option<Vec<String>>, CliError> {
    let CacheUse::By(processes) = store.cache_mount_use(row)? else {
        return Ok(None);
    };
    let mut users = Vec::new();
    for process in processes {
        users.push(match store.history().of_process(process)? {
            Some(build) => format!("build {build}"),
            None => format!("process {process}"),
        });
    }
    Ok(Some(users))
}

fn by(users: &[String]) -> String {
    match users {
        [] => "somebody".to_owned(),
        users => users.join(", "),
    }
}

/// What the Dockerfile calls it. Before it stands the build argument `BUILDKIT_CACHE_MOUNT_NS`, which most builds lack.
fn id(row: &CacheMountRow) -> &str {
    row.id.strip_prefix('/').unwrap_or(&row.id)
}

fn is_meant(row: &CacheMountRow, text: &str) -> bool {
    id(row) == text || row.id == text || (!text.is_empty() && row.name.starts_with(text))
}

fn sharing(sharing: CacheSharing) -> &'static str {
    match sharing {
        CacheSharing::Shared => "shared",
        CacheSharing::Private => "private",
        CacheSharing::Locked => "locked",
    }
}
