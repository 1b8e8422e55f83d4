//! `history logs`: a build told again, as it was told while it ran.

use std::collections::BTreeSet;
use std::io;
use std::process::ExitCode;
use std::time::{Duration, UNIX_EPOCH};

use builder::history::{BuildHistory, StepHistory, for_each_output, replay};
use builder::solve::ProgressEvent;
use store::Store;
use store::history::BuildId;

use super::{find_build, matching};
use crate::args::{HistoryLogsArgs, LogFormat};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::plain::Plain;
use crate::ui::progress::Renderer;
use crate::ui::rawjson::RawJson;

/// How a log is printed.
#[derive(Clone, Copy, Debug)]
pub(super) enum How {
    /// Byte by byte.
    Raw,
    /// As progress.
    Shown(LogFormat),
}

/// `longshore history logs`.
pub(super) fn logs(context: &Context, args: &HistoryLogsArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let build = find_build(&store, &args.build)?;
    let steps = matching(&build, args.step.as_deref())?;
    let how = match args.raw {
        true => How::Raw,
        false => How::Shown(args.progress),
    };
    print(context, &store, &build, &steps, how)
}

/// Prints what was told of these steps; of the build as a whole, where they are all that it has.
pub(super) fn print(
    context: &Context,
    store: &Store,
    build: &BuildHistory,
    steps: &[&StepHistory],
    how: How,
) -> Result<ExitCode, CliError> {
    let id: BuildId = build
        .id
        .parse()
        .map_err(|error| CliError::new(Kind::Input, error))?;
    let shown: BTreeSet<usize> = steps.iter().map(|step| step.number - 1).collect();
    let all = shown.len() == build.steps.len();
    context.ui.stream(|out| {
        let mut failed: Option<io::Error> = None;
        let mut write = |text: &[u8]| {
            if failed.is_none() {
                failed = out.write_all(text).err();
            }
        };
        match how {
            How::Raw => {
                for_each_output(store, &id, |output| {
                    if shown.contains(&output.step.0) {
                        write(&output.bytes);
                    }
                })?;
            }
            How::Shown(format) => {
                let began = u64::try_from(build.started).unwrap_or(0);
                let mut renderer: Box<dyn Renderer> = match format {
                    LogFormat::Plain => Box::new(Plain::default()),
                    LogFormat::Rawjson => {
                        Box::new(RawJson::new(UNIX_EPOCH + Duration::from_micros(began)))
                    }
                };
                replay(store, &id, |at, event| {
                    if is_about(&event, &shown, all) {
                        write(&renderer.event(at, &event));
                        write(&renderer.tick(at));
                    }
                })?;
                let ended = all && build.status == "done";
                write(&renderer.finish(Duration::from_micros(build.took), ended));
            }
        }
        match failed {
            Some(error) => Err(CliError::new(Kind::Environment, error)),
            None => Ok(()),
        }
    })?;
    if all && let Some(error) = &build.error {
        context.ui.note(&format!("error: {error}"));
    }
    if build.incomplete {
        let why = "the journal of this build is full: what its steps wrote at the end is missing";
        context.ui.warning(why);
    }
    Ok(ExitCode::SUCCESS)
}

/// Whether an event is about one of these steps.
fn is_about(event: &ProgressEvent, shown: &BTreeSet<usize>, all: bool) -> bool {
    let vertex = match event {
        ProgressEvent::Planned { .. } => return true,
        ProgressEvent::Started { vertex, .. }
        | ProgressEvent::Known { vertex, .. }
        | ProgressEvent::Runs { vertex, .. }
        | ProgressEvent::Recorded { vertex, .. }
        | ProgressEvent::Output { vertex, .. }
        | ProgressEvent::Cached { vertex, .. }
        | ProgressEvent::Done { vertex, .. }
        | ProgressEvent::Failed { vertex, .. } => Some(*vertex),
        ProgressEvent::Note { vertex, .. } | ProgressEvent::Transfer { vertex, .. } => *vertex,
        _ => None,
    };
    vertex.map_or(all, |vertex| shown.contains(&vertex.0))
}
