//! `explain`, and `build --explain`: why the steps of a build ran.

use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use builder::history::{BuildHistory, StepHistory};
use builder::solve::{ProgressEvent, ProgressSink};
use serde_json::json;
use store::history::BuildId;
use store::{Store, StoreError};

use super::history::{find_build, matching};
use crate::args::{ExplainArgs, ListFormat};
use crate::context::Context;
use crate::error::CliError;
use crate::ui::verdict;

/// `longshore explain`.
pub fn explain(context: &Context, args: &ExplainArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let build = find_build(&store, &args.build)?;
    let steps = matching(&build, args.step.as_deref())?;
    match args.list.format() {
        ListFormat::Json => {
            let steps: Vec<_> = steps.into_iter().map(explained).collect();
            context.ui.json_document(&json!({
                "build": build.id,
                "status": build.status,
                "steps": steps,
            }))?;
        }
        ListFormat::Table => {
            let text = format!("{}\n", verdict::headline(&build));
            let steps = verdict::explain(steps.into_iter());
            context.ui.data(text + &steps)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What `--format json` says of a step; `docs/reference/explain.md` promises it.
fn explained(step: &StepHistory) -> serde_json::Value {
    json!({
        "number": step.number,
        "name": step.name,
        "kind": step.kind,
        "line": step.line,
        "verdict": step.verdict,
        "reasons": step.reasons,
        "unchanged": step.unchanged,
        "saved": step.saved,
    })
}

/// Remembers under which name a build is written down.
pub struct Named {
    inner: Arc<dyn ProgressSink>,
    build: Mutex<Option<BuildId>>,
}

impl Named {
    /// Puts itself before a sink.
    pub fn before(inner: Arc<dyn ProgressSink>) -> (Arc<Named>, Arc<dyn ProgressSink>) {
        let build = Mutex::default();
        let named = Arc::new(Named { inner, build });
        let sink = Arc::clone(&named) as Arc<dyn ProgressSink>;
        (named, sink)
    }

    /// What is written down of it; nothing where no history is kept.
    pub fn read(&self, store: &Store) -> Result<Option<BuildHistory>, StoreError> {
        let build = self.build.lock().unwrap_or_else(PoisonError::into_inner);
        match &*build {
            Some(build) => BuildHistory::read(store, build),
            None => Ok(None),
        }
    }

    /// Tells people why the build's steps ran.
    pub fn explain(&self, context: &Context, store: &Store) -> Result<(), CliError> {
        let Some(read) = self.read(store)? else {
            let why = "no history is kept, so this build cannot be explained";
            context.ui.warning(why);
            return Ok(());
        };
        let steps = verdict::explain(read.steps.iter());
        context
            .ui
            .note(&format!("\n{}\n{steps}", verdict::headline(&read)));
        Ok(())
    }
}

impl ProgressSink for Named {
    fn event(&self, event: ProgressEvent) {
        if let ProgressEvent::Begun { build } = &event {
            let mut known = self.build.lock().unwrap_or_else(PoisonError::into_inner);
            *known = Some(build.clone());
        }
        self.inner.event(event);
    }
}
