//! `store check`.

use std::process::ExitCode;

use serde_json::json;
use store::Store;
use store::check::repair::{RepairError, put_index_aside};
use store::check::{Checked, Depth, Problem};

use crate::args::{ListFormat, StoreCheckArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::human;

/// The exit code when something is wrong.
const WRONG: u8 = 1;

/// `longshore store check`.
pub fn check(context: &Context, args: &StoreCheckArgs) -> Result<ExitCode, CliError> {
    let depth = if args.quick {
        Depth::Names
    } else {
        Depth::Bytes
    };
    let examined = context.store().and_then(|store| {
        let checked = store.examine(depth)?;
        Ok((store, checked))
    });
    let (store, checked) = match examined {
        Ok(examined) => examined,
        Err(error) if error.is_index_damaged() => return unreadable(context, args, &error),
        Err(error) => return Err(error),
    };
    let mut wrong = checked.problems.iter().filter(|p| !p.is_leftover()).count();
    if args.repair {
        let repaired = store.repair(&checked.problems)?;
        wrong = 0;
        for done in repaired {
            let is_wrong = !done.problem.is_leftover();
            wrong += usize::from(is_wrong && !done.gone);
            tell(context, args, &store, &done.problem, Some(done.gone))?;
        }
    } else {
        for problem in &checked.problems {
            tell(context, args, &store, problem, None)?;
        }
    }
    context.ui.note(&summary(&checked, depth));
    Ok(exit_code(wrong == 0))
}

fn exit_code(is_fine: bool) -> ExitCode {
    if is_fine {
        ExitCode::SUCCESS
    } else {
        ExitCode::from(WRONG)
    }
}

/// One line for each: how bad, where, what, and what became of it.
fn tell(
    context: &Context,
    args: &StoreCheckArgs,
    store: &Store,
    problem: &Problem,
    gone: Option<bool>,
) -> Result<(), CliError> {
    let path = store.root().join(problem.path());
    let how = if problem.is_leftover() {
        "leftover"
    } else {
        "wrong"
    };
    if args.list.format() == ListFormat::Json {
        return context.ui.json_line(&json!({
            "Kind": problem.kind(),
            "Severity": how,
            "Path": path,
            "Message": problem.to_string(),
            "Repaired": gone,
        }));
    }
    let end = match gone {
        None => "",
        Some(true) => " (dropped)",
        Some(false) => " (still there)",
    };
    let path = path.display();
    context.ui.line(&format!("{how}: {path}: {problem}{end}"))
}

fn summary(checked: &Checked, depth: Depth) -> String {
    let leftovers = checked.problems.iter().filter(|p| p.is_leftover()).count();
    let wrong = checked.problems.len() - leftovers;
    let Checked {
        blobs,
        layers,
        images,
        ..
    } = checked;
    let read = match depth {
        Depth::Names => "names only".to_owned(),
        Depth::Bytes => format!("{} read", human::size(checked.bytes)),
    };
    format!(
        "{blobs} blobs, {layers} layers, {images} images, {read}: {wrong} wrong, {leftovers} left over"
    )
}

/// Of an index that SQLite cannot read nothing else can be told.
fn unreadable(
    context: &Context,
    args: &StoreCheckArgs,
    error: &CliError,
) -> Result<ExitCode, CliError> {
    let root = context.root()?;
    let aside = match args.repair {
        true => Some(put_index_aside(&root)?),
        false => None,
    };
    let path = root.join("index.db");
    if args.list.format() == ListFormat::Json {
        context.ui.json_line(&json!({
            "Kind": "index-unreadable",
            "Severity": "wrong",
            "Path": path,
            "Message": error.to_string(),
            "Repaired": args.repair.then_some(true),
        }))?;
    } else {
        let end = aside
            .as_ref()
            .map(|aside| format!(" (moved to `{}`)", aside.display()));
        let end = end.unwrap_or_default();
        context
            .ui
            .line(&format!("wrong: {}: {error}{end}", path.display()))?;
    }
    if aside.is_some() {
        let hint =
            "names, cache records and build history are lost; the next check drops what they named";
        context.ui.note(hint);
    }
    Ok(exit_code(aside.is_some()))
}

impl From<RepairError> for CliError {
    fn from(error: RepairError) -> CliError {
        match error {
            RepairError::Store(error) => error.into(),
            error => CliError::new(Kind::Environment, error),
        }
    }
}
