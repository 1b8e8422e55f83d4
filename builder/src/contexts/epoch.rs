//! `SOURCE_DATE_EPOCH`: the one time that a build gives everything in the image.
//!
//! A build argument, else the default of a global `ARG`. Beside seconds it may be `context` (when the main context was
//! made), the name of a context, or that of a stage which is one remote `ADD` on scratch: the time is then the source's.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::git_url::GitUrl;
use super::{NamedContext, context_name};
use crate::dockerfile::{Dockerfile, SourceFile, parse};
use crate::error::{BuildError, StepError};
use crate::graph::{FileAction, FileOp, GitOp, HttpOp, Op};
use crate::lower::{self, GlobalArgs, Lowered, context_keeps_git_dir, file_name};
use crate::ops::source::Fetching;
use crate::ops::{git, http};
use crate::request::BuildRequest;
use crate::solve::ProgressSink;
use crate::{BuildEnvironment, now};

/// Its name.
const NAME: &str = "SOURCE_DATE_EPOCH";

/// The request with its epoch as a number, if it has one in whatever form.
///
/// # Errors
/// The value means nothing, or the source that it names cannot be had.
pub(crate) fn settle(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    source: &SourceFile,
    progress: &Arc<dyn ProgressSink>,
) -> Result<BuildRequest, BuildError> {
    let mut settled = request.clone();
    let given = request.build_args.get(NAME);
    if given.is_none() && !source.text().contains(NAME) {
        return Ok(settled);
    }
    let (parsed, _) = parse(source.text());
    let default = || GlobalArgs::new(&parsed, &request.build_args).value(NAME);
    let Some(value) = given.cloned().or_else(default) else {
        return Ok(settled);
    };
    settled.epoch = match (value.as_str(), value.parse()) {
        ("", _) => None,
        (_, Ok(seconds)) => Some(seconds),
        ("context", _) => request.made,
        (name, Err(_)) => {
            let cancelled = || environment.cancel.is_cancelled();
            let fetching = Fetching {
                store: environment.store,
                remote: environment.remote,
                progress,
                settings: &request.run,
                cancelled: &cancelled,
                now: now(),
            };
            let unknown = || BuildError::Epoch {
                value: name.to_owned(),
            };
            match named(request, &parsed, source, name).ok_or_else(unknown)? {
                Named::Folder => None,
                Named::Source(op) => {
                    let time = made(&fetching, &op).map_err(|error| match error {
                        StepError::Cancelled => BuildError::Cancelled,
                        error => BuildError::EpochSource {
                            value: name.to_owned(),
                            source: Box::new(error),
                        },
                    })?;
                    Some(time.ok_or_else(|| BuildError::EpochUnknown {
                        value: name.to_owned(),
                    })?)
                }
            }
        }
    };
    // Steps see the number, whatever it was written as.
    let number = settled.epoch.map(|seconds| seconds.to_string());
    settled
        .build_args
        .insert(NAME.to_owned(), number.unwrap_or_default());
    Ok(settled)
}

enum Named {
    /// It has no time of its own.
    Folder,
    Source(Box<Op>),
}

/// What a name stands for: a context, or a stage with a single remote source.
fn named(
    request: &BuildRequest,
    parsed: &Dockerfile,
    source: &SourceFile,
    name: &str,
) -> Option<Named> {
    let key = context_name(name)?;
    match request.contexts.get(&key) {
        Some(NamedContext::Folder { .. }) => return Some(Named::Folder),
        Some(NamedContext::Git(url)) => {
            return Some(Named::Source(Box::new(Op::Git(git_op(
                request,
                url.clone(),
            )))));
        }
        Some(NamedContext::Http(url)) => {
            let op = HttpOp {
                url: url.clone(),
                name: file_name(url),
                checksum: None,
            };
            return Some(Named::Source(Box::new(Op::Http(op))));
        }
        Some(NamedContext::Stage(stage)) => return stage_source(request, parsed, source, stage),
        Some(_) => return None,
        None => {}
    }
    stage_source(request, parsed, source, name)
}

fn git_op(request: &BuildRequest, url: GitUrl) -> GitOp {
    let asked = request.build_args.get(lower::KEEP_GIT_DIR);
    GitOp {
        keep_git_dir: context_keeps_git_dir(&url, asked.map(String::as_str)),
        submodules: url.submodules.unwrap_or(true),
        url,
    }
}

/// What a stage fetches, if that is all it does.
fn stage_source(
    request: &BuildRequest,
    parsed: &Dockerfile,
    source: &SourceFile,
    name: &str,
) -> Option<Named> {
    let mut request = request.clone();
    request.target = Some(name.to_owned());
    let images = BTreeMap::new();
    let lowered = lower::lower(&crate::lower_request(
        &request,
        source,
        parsed,
        &request.platforms[0],
        &images,
    ));
    let Ok(Lowered::Done(plan)) = lowered else {
        return None;
    };
    let is_add =
        |file: &FileOp| !file.on_base && matches!(file.actions.as_slice(), [FileAction::Copy(_)]);
    match plan.definition.vertices() {
        [fetched, added] => match (&fetched.op, &added.op) {
            (Op::Http(_) | Op::Git(_), Op::File(file)) if is_add(file) => {
                Some(Named::Source(Box::new(fetched.op.clone())))
            }
            _ => None,
        },
        _ => None,
    }
}

/// When a source was made: a file by its server, a repository by its commit.
fn made(fetching: &Fetching<'_>, op: &Op) -> Result<Option<i64>, StepError> {
    let found = match op {
        Op::Http(op) => match http::recall(fetching, op)? {
            Some(found) => found,
            None => http::fetch(fetching, op)?,
        },
        Op::Git(op) => {
            let resolved = git::resolve(fetching, &op.url)?;
            match git::recall(fetching, op, &resolved)? {
                Some(found) => found,
                None => git::fetch(fetching, op, &resolved)?,
            }
        }
        _ => return Ok(None),
    };
    Ok(found.modified)
}
