//! `--check`: every stage is looked at, nothing is built, and no base image has to be reachable.

use std::collections::{BTreeMap, BTreeSet};

use super::{Report, Subject, report};
use crate::dockerfile::{Diagnostic, SourceFile, parse};
use crate::error::BuildError;
use crate::lower::{self, Lowered};
use crate::request::BuildRequest;
use crate::{BuildEnvironment, ops};

/// What a survey of a Dockerfile found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// The Dockerfile.
    pub source: SourceFile,
    /// What is doubtful.
    pub report: Report,
    /// What makes it impossible to build, in the order of the text.
    pub errors: Vec<Diagnostic>,
    /// The base images that could not be had, and why: variables that they may set are not known.
    pub unknown: Vec<String>,
}

impl Survey {
    /// Whether there is anything to mend.
    pub fn is_clean(&self) -> bool {
        self.errors.is_empty() && self.report.findings.is_empty()
    }
}

/// Looks at all stages of a Dockerfile. Base images are looked up here, then in their registries; those that are nowhere
/// are assumed to set any variable.
///
/// # Errors
/// Only if nothing can be said: settings of the checks that cannot be read, or an interruption.
pub fn survey(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
) -> Result<Survey, BuildError> {
    let source = SourceFile::new(request.dockerfile_name.clone(), request.dockerfile.clone());
    let (parsed, mut said) = parse(source.text());
    let mut unknown = Vec::new();
    if !said.iter().any(Diagnostic::is_error) {
        let mut images = BTreeMap::new();
        let mut missing = BTreeSet::new();
        loop {
            let mut lowering =
                crate::lower_request(request, &source, &parsed, &request.platforms[0], &images);
            lowering.survey = Some(&missing);
            let needed = match lower::lower(&lowering) {
                Ok(Lowered::NeedImages(needed)) => needed,
                Ok(Lowered::Done(plan)) => {
                    said.extend(plan.warnings);
                    break;
                }
                Err(problems) => {
                    said.extend(problems);
                    break;
                }
            };
            for image in needed {
                if environment.cancel.is_cancelled() {
                    return Err(BuildError::Cancelled);
                }
                let (store, remote) = (environment.store, environment.remote);
                match ops::image::resolve(store, remote, &image.request, request.pull, &|| ()) {
                    Ok(resolved) => drop(images.insert(image.request, resolved)),
                    Err(error) => {
                        let name = image.request.reference.familiar();
                        unknown.push(format!("{name}: {error}"));
                        missing.insert(image.request);
                    }
                }
            }
        }
    }
    let stages = (0..parsed.stages.len()).collect();
    let errors: Vec<Diagnostic> = said
        .iter()
        .filter(|said| said.is_error())
        .cloned()
        .collect();
    let subject = Subject {
        dockerfile: &parsed,
        source: &source,
        stages: &stages,
        build_args: &request.build_args,
    };
    let report =
        report(&subject, said).map_err(|problems| BuildError::Dockerfile(Box::new(problems)))?;
    Ok(Survey {
        source,
        report,
        errors,
        unknown,
    })
}
