//! `history`: what builds did. `history IMAGE` is in `inspect`; `logs` has what steps wrote.

mod logs;

use std::path::Path;
use std::process::ExitCode;

use builder::history::{BuildHistory, ListedBuild, StepHistory, list};
use serde_json::json;
use store::Store;
use store::history::BuildId;

use super::now;
use crate::args::{
    HistoryArgs, HistoryCommand, HistoryGraphArgs, HistoryLsArgs, HistoryRmArgs, HistoryShowArgs,
    ListFormat, LogFormat,
};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::table::table;
use crate::ui::{graph_page, human, verdict};
use logs::How;

/// `longshore history …`.
pub fn history(context: &Context, args: &HistoryArgs) -> Result<ExitCode, CliError> {
    match &args.command {
        None => super::inspect::history(context, &args.image),
        Some(HistoryCommand::Image(args)) => super::inspect::history(context, args),
        Some(HistoryCommand::Ls(args)) => ls(context, args),
        Some(HistoryCommand::Show(args)) => show(context, args),
        Some(HistoryCommand::Logs(args)) => logs::logs(context, args),
        Some(HistoryCommand::Rm(args)) => rm(context, args),
        Some(HistoryCommand::Graph(args)) => graph(context, args),
    }
}

/// The build that a text names: `latest`, `last` for short, or the start of its id.
pub fn find_build(store: &Store, text: &str) -> Result<BuildHistory, CliError> {
    let id = match text {
        "latest" | "last" => list(store)?.into_iter().next().map(|build| build.row.id),
        text => Some(find_id(store, text)?),
    };
    let found = match id {
        Some(id) => BuildHistory::read(store, &id)?,
        None => None,
    };
    found.ok_or_else(|| no_such_build(text))
}

fn find_id(store: &Store, text: &str) -> Result<BuildId, CliError> {
    let found = store.history().find(text)?;
    match found.as_slice() {
        [id] if !text.is_empty() => Ok(id.clone()),
        [_, _, ..] if !text.is_empty() => {
            let ids: Vec<&str> = found.iter().map(BuildId::as_str).collect();
            let message = format!("several builds begin with `{text}`: {}", ids.join(", "));
            Err(CliError::new(Kind::Input, message))
        }
        _ => Err(no_such_build(text)),
    }
}

fn no_such_build(text: &str) -> CliError {
    CliError::new(Kind::Input, format!("no such build: `{text}`"))
        .hint("`longshore history ls` lists those that are kept")
}

/// The steps that a text names: by their number, or by a part of their name; all without one.
pub fn matching<'a>(
    build: &'a BuildHistory,
    text: Option<&str>,
) -> Result<Vec<&'a StepHistory>, CliError> {
    let Some(text) = text else {
        return Ok(build.steps.iter().collect());
    };
    let number = text.trim_start_matches('#').parse::<usize>();
    let is_meant = |step: &&StepHistory| match number {
        Ok(number) => step.number == number,
        Err(_) => step.name.contains(text),
    };
    let found: Vec<_> = build.steps.iter().filter(is_meant).collect();
    if found.is_empty() {
        let message = format!("build {} has no step `{text}`", build.id);
        let hint = format!("`longshore history show {}` lists its steps", build.id);
        return Err(CliError::new(Kind::Input, message).hint(hint));
    }
    Ok(found)
}

fn status(build: &ListedBuild) -> &'static str {
    match build.running {
        true => "running",
        false => build.row.status.as_str(),
    }
}

fn ls(context: &Context, args: &HistoryLsArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut builds = list(&store)?;
    builds.truncate(args.limit.unwrap_or(usize::MAX));
    if args.quiet {
        let lines = builds.iter().map(|build| format!("{}\n", build.row.id));
        context.ui.data(lines.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    match args.list.format() {
        ListFormat::Json => {
            for build in &builds {
                let row = &build.row;
                context.ui.json_line(&json!({
                    "id": row.id.as_str(),
                    "status": status(build),
                    "started": row.started,
                    "took": row.took,
                    "context": row.context,
                    "dockerfile": row.dockerfile,
                    "target": row.target,
                    "tags": row.tags,
                    "steps": row.steps,
                    "ran": row.ran,
                    "cached": row.cached,
                    "saved": row.saved,
                    "warnings": row.warnings,
                    "error": row.error,
                }))?;
            }
        }
        ListFormat::Table => {
            let now = now();
            let rows: Vec<Vec<String>> = builds.iter().map(|build| columns(build, now)).collect();
            let headings = [
                "BUILD", "STARTED", "TOOK", "STATUS", "STEPS", "CACHED", "SAVED", "WARNINGS", "OF",
            ];
            context.ui.data(table(&headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn columns(build: &ListedBuild, now: i64) -> Vec<String> {
    let row = &build.row;
    let micros = |micros: i64| human::micros(u64::try_from(micros).unwrap_or(0));
    let mut of = match row.tags.first() {
        Some(tag) => tag.clone(),
        None => row.context.clone(),
    };
    if let Some(target) = &row.target {
        of.push_str(&format!(" ({target})"));
    }
    vec![
        row.id.to_string(),
        human::ago(now - row.started / 1_000_000),
        micros(row.took),
        status(build).to_owned(),
        row.steps.to_string(),
        row.cached.to_string(),
        micros(row.saved),
        row.warnings.to_string(),
        of,
    ]
}

fn show(context: &Context, args: &HistoryShowArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let build = find_build(&store, &args.build)?;
    let steps = matching(&build, args.step.as_deref())?;
    if args.logs {
        return logs::print(
            context,
            &store,
            &build,
            &steps,
            How::Shown(LogFormat::Plain),
        );
    }
    if args.list.format() == ListFormat::Json {
        let mut value = serde_json::to_value(&build).expect("our own types have text keys");
        value["steps"] = serde_json::to_value(&steps).expect("our own types have text keys");
        context.ui.json_document(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut text = format!("{}\n", verdict::headline(&build));
    let mut line = |name: &str, value: &str| {
        if !value.is_empty() {
            text.push_str(&format!("{name:<11} {value}\n"));
        }
    };
    line("context", &build.context);
    line("dockerfile", &build.dockerfile);
    line("target", build.target.as_deref().unwrap_or_default());
    line("platform", &build.platform);
    line("tags", &build.tags.join(", "));
    line("image", build.image.as_deref().unwrap_or_default());
    if build.incomplete {
        line(
            "journal",
            "full: what its steps wrote at the end is missing",
        );
    }
    text.push('\n');
    let rows: Vec<Vec<String>> = steps.iter().map(|step| step_columns(step)).collect();
    text.push_str(&table(
        &[
            "STEP", "VERDICT", "STARTED", "SAVED", "SIZE", "CPU", "MEMORY", "NAME",
        ],
        &rows,
    ));
    for step in &steps {
        if let Some(error) = &step.error {
            text.push_str(&format!("\n#{} {}\n{error}\n", step.number, step.name));
        }
    }
    for warning in build.warnings.iter().chain(&build.notes) {
        text.push_str(&format!("\n{warning}\n"));
    }
    if let Some(error) = &build.error {
        text.push_str(&format!("\nerror: {error}\n"));
    }
    context.ui.data(text)?;
    Ok(ExitCode::SUCCESS)
}

fn step_columns(step: &StepHistory) -> Vec<String> {
    let dash = || "-".to_owned();
    vec![
        format!("#{}", step.number),
        verdict::verdict(step),
        step.started.map_or_else(dash, human::micros),
        step.saved.map_or_else(dash, human::micros),
        step.bytes.map_or_else(dash, human::size),
        step.used.map_or_else(dash, |used| human::micros(used.cpu)),
        step.used.map_or_else(dash, |used| human::size(used.memory)),
        step.name.clone(),
    ]
}

fn rm(context: &Context, args: &HistoryRmArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    // Those that were killed have rows from now on, and can be removed.
    let builds = list(&store)?;
    let mut ids = Vec::new();
    if args.all {
        let ended = builds.into_iter().filter(|build| !build.running);
        ids.extend(ended.map(|build| build.row.id));
    } else {
        for text in &args.builds {
            let id = find_id(&store, text)?;
            if builds
                .iter()
                .any(|build| build.running && build.row.id == id)
            {
                let message = format!("build {id} is running");
                return Err(CliError::new(Kind::Input, message));
            }
            ids.push(id);
        }
    }
    for id in store.history().remove(&ids)? {
        context.ui.line(id.as_str())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn graph(context: &Context, args: &HistoryGraphArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let build = find_build(&store, &args.build)?;
    let page = graph_page::page(&build);
    match &args.output {
        Some(file) if file != Path::new("-") => std::fs::write(file, page).map_err(|source| {
            let message = format!("cannot write `{}`: {source}", file.display());
            CliError::new(Kind::Input, message)
        })?,
        None if context.ui.stdout_is_a_terminal() => {
            let message = "a page is not for the terminal";
            return Err(CliError::new(Kind::Usage, message).hint("name a file with -o"));
        }
        _ => context.ui.data(page)?,
    }
    Ok(ExitCode::SUCCESS)
}
