//! What can be asked of a Dockerfile instead of a build: its checks, its outline, its targets.
//!
//! The values have the field names of BuildKit's sub-requests, so that tools which read those read these.
//!
//! | module | answers |
//! |---|---|
//! | [`lint`] | what the checks find |
//! | [`outline`] | what a target can be given: arguments, secrets, agents, caches |
//! | [`targets`] | which stages can be built |

pub mod lint;
pub mod outline;
pub mod targets;

use std::collections::{BTreeMap, BTreeSet};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Serialize;

use crate::dockerfile::{Diagnostic, SourceFile, Span, parse};
use crate::error::BuildError;
use crate::lower::LowerRequest;
use crate::request::BuildRequest;

/// Parses a request's Dockerfile and asks something of it.
///
/// # Errors
/// What is wrong with the Dockerfile, rendered.
fn ask<T>(
    request: &BuildRequest,
    answer: impl FnOnce(&LowerRequest<'_>) -> Result<T, Vec<Diagnostic>>,
) -> Result<T, BuildError> {
    let source = SourceFile::new(request.dockerfile_name.clone(), request.dockerfile.clone());
    let (parsed, problems) = parse(source.text());
    if problems.iter().any(Diagnostic::is_error) {
        return Err(crate::refused(&source, problems));
    }
    let (images, unknown) = (BTreeMap::new(), BTreeSet::new());
    let mut lowering =
        crate::lower_request(request, &source, &parsed, &request.platforms[0], &images);
    lowering.survey = Some(&unknown);
    answer(&lowering).map_err(|problems| crate::refused(&source, problems))
}

/// Lists the stages of a request's Dockerfile.
///
/// # Errors
/// What is wrong with the Dockerfile.
pub fn targets(request: &BuildRequest) -> Result<targets::List, BuildError> {
    ask(request, |lowering| {
        Ok(targets::targets(lowering.dockerfile, lowering.source))
    })
}

/// Outlines a request's target.
///
/// # Errors
/// What is wrong with the Dockerfile, or if there is no such target.
pub fn outline(request: &BuildRequest) -> Result<outline::Outline, BuildError> {
    ask(request, outline::outline)
}

/// A place in a source.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Location {
    /// Index among the sources of the answer.
    pub source_index: usize,
    /// One range for each line.
    pub ranges: Vec<Range>,
}

/// A part of one line.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Range {
    /// Its first character.
    pub start: Position,
    /// The character after its last one.
    pub end: Position,
}

/// A character in a text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Position {
    /// The line, from 1.
    pub line: usize,
    /// Characters before it on the line.
    pub character: usize,
}

impl Location {
    /// Where a span is of the only source.
    pub(crate) fn new(source: &SourceFile, span: Span) -> Location {
        let (first, column) = source.position(span.start);
        let ranges = source
            .slice(span)
            .split('\n')
            .enumerate()
            .map(|(index, text)| {
                let line = first + index;
                let start = if index == 0 { column - 1 } else { 0 };
                let end = start + text.trim_end_matches('\r').chars().count();
                Range {
                    start: Position {
                        line,
                        character: start,
                    },
                    end: Position {
                        line,
                        character: end,
                    },
                }
            })
            .collect();
        Location {
            source_index: 0,
            ranges,
        }
    }
}

/// The text of a source, in base64.
pub(crate) fn encoded(source: &SourceFile) -> String {
    STANDARD.encode(source.text())
}

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Description {
    /// The request's name.
    pub name: &'static str,
    /// The version of its answer.
    pub version: &'static str,
    /// How it is asked.
    pub r#type: &'static str,
    /// What it answers.
    pub description: &'static str,
    /// What it may be given.
    pub opts: Vec<Named>,
    /// The parts of its answer.
    pub metadata: Vec<Named>,
}

/// An option or a part of an answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Named {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub description: &'static str,
}

/// All that can be asked.
pub fn describe() -> Vec<Description> {
    let named = |name: &'static str, description: &'static str| Named { name, description };
    let results = || vec![named("result.json", ""), named("result.txt", "")];
    let request = |name, description, opts, metadata| Description {
        name,
        version: "1.0.0",
        r#type: "rpc",
        description,
        opts,
        metadata,
    };
    vec![
        request(
            "frontend.outline",
            "Lists all parameters that the build takes",
            vec![named("target", "Stage to be built")],
            results(),
        ),
        request(
            "frontend.targets",
            "Lists all targets that the build has",
            Vec::new(),
            results(),
        ),
        request(
            "frontend.lint",
            "Checks the Dockerfile",
            Vec::new(),
            [results(), vec![named("result.statuscode", "")]].concat(),
        ),
        request(
            "frontend.subrequests.describe",
            "Lists the requests that can be made",
            Vec::new(),
            results(),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_range_for_each_line() {
        let source = SourceFile::new("Dockerfile", "FROM a\nRUN b \\\n  cé \\\n  d\n");
        let location = Location::new(&source, Span::new(11, 26));
        let ranges: Vec<_> = location
            .ranges
            .iter()
            .map(|range| {
                (
                    range.start.line,
                    range.start.character,
                    range.end.line,
                    range.end.character,
                )
            })
            .collect();
        assert_eq!(ranges, [(2, 4, 2, 7), (3, 0, 3, 6), (4, 0, 4, 3)]);
    }
}
