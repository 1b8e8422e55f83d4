//! From a Dockerfile to an image: parse, lower, solve, cache, export.
//!
//! ```text
//! Dockerfile text ─ dockerfile ─► AST ─ lower ─► Definition ─ solve + cache + ops ─► layers ─ export ─► image
//! ```
//!
//! [`build`] is that path in one function.

#![forbid(unsafe_code)]

pub mod cache;
pub mod change;
pub mod checks;
pub mod contexts;
pub mod debug;
pub mod dockerfile;
pub mod error;
pub mod export;
pub mod graph;
pub mod history;
mod joint;
pub mod lower;
pub mod ops;
pub mod remote;
pub mod request;
pub mod solve;
pub mod subrequests;
pub mod transfer;

use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, mpsc};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use store::Store;
use store::oci::Platform;

use contexts::{MainContext, NamedContext};
use dockerfile::{Diagnostic, Dockerfile, InstructionKind, Problems, SourceFile, Span, Word};
use error::{BuildError, Place, StepError};
use graph::{Definition, Op};
use history::Recording;
use history::record::{Recorder, Subject};
use joint::JointPlan;
use lower::{ImageRequest, LowerRequest, Lowered, Plan, ResolvedImage};
use ops::context::Context;
use ops::{Explainer, Operations};
use remote::Remote;
use request::{BuildOutcome, BuildRequest};
use solve::cancel::Cancel;
use solve::driver::{self, SolveError};
use solve::scheduler::Want;
use solve::{PlannedVertex, ProgressEvent, ProgressSink};

/// What a build works with, beside its request.
#[derive(Clone, Copy, Debug)]
pub struct BuildEnvironment<'a> {
    /// Where everything is kept.
    pub store: &'a Arc<Store>,
    /// How registries are reached.
    pub remote: &'a Remote,
    /// Ends the build when set.
    pub cancel: &'a Cancel,
}

/// Builds an image: the whole path from the Dockerfile's text to the outputs that were asked for.
///
/// Steps of earlier builds are found by content, so that only what changed runs. Nothing is tagged, pushed or written
/// unless every step succeeded.
pub fn build(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    progress: &Arc<dyn ProgressSink>,
) -> Result<BuildOutcome, BuildError> {
    let outline = Subject::of(request).outline;
    let recording = Recording::begin(environment.store, outline, progress);
    build_recording(environment, request, &recording)
}

/// The same for a build that is in the history already: from before its context was fetched, say.
pub fn build_recording(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    recording: &Recording,
) -> Result<BuildOutcome, BuildError> {
    let (subject, recorder) = (Subject::of(request), &recording.0);
    recorder.settle(&subject);
    let result = build_recorded(environment, request, subject.series, recorder);
    // Whatever it was at that was cut short, it was so for one reason.
    let result = result.map_err(|error| match environment.cancel.is_cancelled() {
        true => BuildError::Cancelled,
        false => error,
    });
    recorder.end(result.as_ref().map(|outcome| outcome.image));
    result
}

fn build_recorded(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    series: [u8; 32],
    recorder: &Arc<Recorder>,
) -> Result<BuildOutcome, BuildError> {
    let progress = &(Arc::clone(recorder) as Arc<dyn ProgressSink>);
    let source = SourceFile::new(request.dockerfile_name.clone(), request.dockerfile.clone());
    let mut settled = contexts::epoch::settle(environment, request, &source, progress)?;
    ops::exec::settle_secrets(environment.store, &mut settled.run)
        .map_err(|error| BuildError::Secret(Box::new(error)))?;
    let request = &settled;
    let (plan, warnings) = plan(environment, request, &source, progress.as_ref())?;
    announce(&plan.definition, &warnings, progress.as_ref());
    recorder.planned(&plan.definition, |name| {
        folder(request, name).map(PathBuf::as_path)
    });
    let contexts = open_contexts(environment.store, request, &plan.definition)?;
    let abort = Cancel::new().map_err(BuildError::Setup)?;
    let prepare = export::wants_layers(request);
    let _watch = transfer::watch_compression(environment.store, progress);
    let (finished, inbox) = mpsc::channel();
    let mut operations = Operations::new(
        environment.store,
        environment.remote,
        &plan.definition,
        contexts,
        progress,
        environment.cancel,
        &abort,
        &request.run,
        request.epoch,
        now(),
        Some(finished),
        Explainer::new(series, &request.dockerfile),
        cache::shared::import::open(environment.store, environment.remote, request, progress),
        request.jobs,
    );
    operations.build = recorder.build();
    // While later steps still run, the layers of earlier ones are made ready for export.
    let solved = std::thread::scope(|scope| {
        if prepare != export::Prepare::Nothing {
            let store = environment.store;
            let worker = std::thread::Builder::new().name("prepare".to_owned());
            let spawned = worker.spawn_scoped(scope, move || {
                for layer in inbox {
                    export::prepare_layer(store, &layer, prepare);
                }
            });
            // Without the thread, export does it all.
            drop(spawned);
        }
        let solved = solve_plan(&operations, &plan, request);
        operations.finished = None;
        solved
    });
    recorder.layers(&operations.results());
    solved.map_err(|error| match error {
        SolveError::Failed { vertex, error } => operations.step_failed(vertex, error, &source),
        SolveError::Cancelled => BuildError::Cancelled,
    })?;
    operations.save_contexts();
    operations.tell_unneeded();
    let (ran, cached) = operations.counts();
    let mut outcome = BuildOutcome {
        warnings,
        image: None,
        pushed: Vec::new(),
        ran,
        cached,
    };
    export::export(environment, request, &plan, &operations, &mut outcome)?;
    cache::shared::export::export_all(&operations, request, &plan.roots())?;
    Ok(outcome)
}

/// Looks at the plan as the build checks do. What they find is left in its warnings.
fn check(
    request: &BuildRequest,
    source: &SourceFile,
    parsed: &Dockerfile,
    plan: &mut Plan,
) -> Result<Vec<Problems>, BuildError> {
    let subject = checks::Subject {
        dockerfile: parsed,
        source,
        stages: &plan.stages,
        build_args: &request.build_args,
    };
    let said = std::mem::take(&mut plan.warnings);
    let report = checks::report(&subject, said)
        .map_err(|problems| BuildError::Dockerfile(Box::new(problems)))?;
    let found = report.problems(source);
    match report.error {
        true => Err(BuildError::Checks {
            rules: report.rules().join(", "),
            found,
        }),
        false => Ok(found),
    }
}

/// Parses and lowers for every platform, resolving the base images that lowering asks for; with what is doubtful.
fn plan(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    source: &SourceFile,
    progress: &dyn ProgressSink,
) -> Result<(JointPlan, Vec<Problems>), BuildError> {
    check_syntax(request)?;
    let (parsed, problems) = dockerfile::parse(source.text());
    if problems.iter().any(Diagnostic::is_error) {
        return Err(refused(source, problems));
    }
    let mut images = BTreeMap::new();
    let mut joint = JointPlan::default();
    let mut warnings: Vec<Problems> = Vec::new();
    for platform in &request.platforms {
        let (plan, found) = plan_for(
            environment,
            request,
            source,
            (&parsed, &problems),
            platform,
            &mut images,
            progress,
        )?;
        joint.add(plan);
        // Mostly the same for each.
        let more: Vec<Problems> = found
            .iter()
            .filter_map(|found| found.beyond(&warnings))
            .collect();
        warnings.extend(more);
    }
    Ok((joint, warnings))
}

/// Lowers for one platform.
fn plan_for(
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    source: &SourceFile,
    (parsed, problems): (&Dockerfile, &[Diagnostic]),
    platform: &Platform,
    images: &mut BTreeMap<ImageRequest, ResolvedImage>,
    progress: &dyn ProgressSink,
) -> Result<(Plan, Vec<Problems>), BuildError> {
    loop {
        let lowered = lower::lower(&lower_request(request, source, parsed, platform, images));
        let needed = match lowered {
            Ok(Lowered::Done(mut plan)) => {
                plan.warnings.splice(0..0, problems.iter().cloned());
                let warnings = check(request, source, parsed, &mut plan)?;
                return Ok((*plan, warnings));
            }
            Ok(Lowered::NeedImages(needed)) => needed,
            Err(problems) => return Err(refused(source, problems)),
        };
        for image in needed {
            if environment.cancel.is_cancelled() {
                return Err(BuildError::Cancelled);
            }
            let number = images.len();
            let resolved = resolve(environment, &image.request, request.pull, number, progress)
                .map_err(|error| BuildError::Base {
                    reference: Box::new(image.request.reference.clone()),
                    place: Box::new(Place {
                        file: source.clone(),
                        span: image.span,
                    }),
                    stage: stage_meant(parsed, &image.request.reference),
                    source: Box::new(error),
                })?;
            images.insert(image.request, resolved);
        }
    }
}

/// Finds a base image, and tells of it where its registry has to be asked.
fn resolve(
    environment: BuildEnvironment<'_>,
    image: &ImageRequest,
    pull: bool,
    number: usize,
    progress: &dyn ProgressSink,
) -> Result<ResolvedImage, StepError> {
    let vertex = contexts::main_context::before_the_steps(number);
    let since = OnceCell::new();
    let asking = || {
        since.get_or_init(|| {
            progress.event(ProgressEvent::Started {
                vertex,
                name: format!("[internal] load metadata for {}", image.reference),
                line: 0,
            });
            Instant::now()
        });
    };
    let (store, remote) = (environment.store, environment.remote);
    let resolved = ops::image::resolve(store, remote, image, pull, &asking);
    if let Some(since) = since.get() {
        progress.event(match &resolved {
            Ok(_) => ProgressEvent::Done {
                vertex,
                elapsed: since.elapsed(),
            },
            Err(error) => ProgressEvent::Failed {
                vertex,
                message: error.to_string(),
            },
        });
    }
    resolved
}

/// What lowering is asked for.
fn lower_request<'a>(
    request: &BuildRequest,
    source: &'a SourceFile,
    dockerfile: &'a Dockerfile,
    platform: &Platform,
    images: &'a BTreeMap<ImageRequest, ResolvedImage>,
) -> LowerRequest<'a> {
    LowerRequest {
        dockerfile,
        source,
        build_args: request.build_args.clone(),
        target: request.target.clone(),
        platform: platform.clone(),
        label_platforms: request.platforms.len() > 1,
        build_platform: Platform::host(),
        no_cache: request.no_cache,
        labels: request.labels.clone(),
        ignore: request.ignore.clone(),
        fetched: match &request.context {
            Some(MainContext::Tree(tree)) => Some(tree.clone()),
            Some(MainContext::Folder(_)) | None => None,
        },
        contexts: request.contexts.clone(),
        images,
        run: request.run.clone(),
        survey: None,
    }
}

/// The build argument that asks for a language, as `# syntax=` does.
const SYNTAX_ARG: &str = "BUILDKIT_SYNTAX";

/// Refuses the language that a build argument asks for, if it is another one.
fn check_syntax(request: &BuildRequest) -> Result<(), BuildError> {
    let Some(text) = request.build_args.get(SYNTAX_ARG) else {
        return Ok(());
    };
    let argument = SourceFile::new(format!("--build-arg {SYNTAX_ARG}"), text.as_str());
    let value = Word {
        text: text.clone(),
        span: Span::new(0, text.len()),
    };
    match dockerfile::parser::syntax::check(&value) {
        Some(problem) if problem.is_error() => Err(refused(&argument, vec![problem])),
        _ => Ok(()),
    }
}

/// What to say where the name of an image that cannot be had is, or is like, the name of a stage.
fn stage_meant(dockerfile: &Dockerfile, reference: &store::oci::Reference) -> Option<String> {
    let name = reference.familiar_name();
    let stages = dockerfile.stages.iter().filter_map(|stage| {
        match &dockerfile.instructions[stage.from].kind {
            InstructionKind::From(from) => from.name.as_ref(),
            _ => None,
        }
    });
    let names: Vec<String> = stages.map(|name| name.text.to_lowercase()).collect();
    if names.contains(&name) {
        return Some(format!(
            "the stage `{name}` stands below: only stages above can be used"
        ));
    }
    let near = dockerfile::suggest::nearest(&name, names.iter().map(String::as_str))?;
    Some(format!("did you mean the stage `{near}`?"))
}

/// Tells what lies ahead.
fn announce(definition: &Definition, warnings: &[Problems], progress: &dyn ProgressSink) {
    let vertices = definition.vertices().iter().map(|step| PlannedVertex {
        digest: step.digest,
        inputs: step.inputs.clone(),
        name: step.meta.name.clone(),
        is_step: history::record::is_step(&step.op),
    });
    progress.event(ProgressEvent::Planned {
        vertices: vertices.collect(),
    });
    for problems in warnings {
        progress.event(ProgressEvent::Warnings(problems.clone()));
    }
}

fn refused(source: &SourceFile, problems: Vec<Diagnostic>) -> BuildError {
    BuildError::Dockerfile(Box::new(Problems::new(source, problems)))
}

/// Opens the folders that the definition reads.
fn open_contexts(
    store: &Store,
    request: &BuildRequest,
    definition: &Definition,
) -> Result<BTreeMap<String, Context>, BuildError> {
    let mut contexts = BTreeMap::new();
    for vertex in definition.vertices() {
        if let Op::Context(op) = &vertex.op {
            let path = folder(request, &op.name).ok_or(BuildError::NoContext)?;
            let context =
                Context::open(path, store.root()).map_err(|source| BuildError::Context {
                    path: path.clone(),
                    source: Box::new(source),
                })?;
            contexts.insert(op.name.clone(), context);
        }
    }
    Ok(contexts)
}

/// The folder of a context: the main one, or one that was given a name.
fn folder<'r>(request: &'r BuildRequest, name: &str) -> Option<&'r PathBuf> {
    if let Some(NamedContext::Folder { path, .. }) = request.contexts.get(name) {
        return Some(path);
    }
    match &request.context {
        Some(MainContext::Folder(path)) => Some(path),
        Some(MainContext::Tree(_)) | None => None,
    }
}

fn solve_plan(
    operations: &Operations<'_>,
    plan: &JointPlan,
    request: &BuildRequest,
) -> Result<(), SolveError<StepError>> {
    let roots = plan.roots();
    if roots.is_empty() {
        return Ok(());
    }
    let (cancel, abort) = (operations.cancel, operations.abort);
    let solve = |want| {
        let asked = (&roots[..], want);
        let shapes = operations.shapes();
        driver::solve(operations, shapes, asked, request.jobs, cancel, abort)
    };
    if export::reads_files(request) {
        return solve(Want::Content);
    }
    solve(Want::Identity)?;
    let wants_blobs = export::reads_layers(request);
    for &root in &roots {
        let failed = |error| SolveError::Failed {
            vertex: root,
            error,
        };
        // What is known may be nowhere: a record outlives a layer that somebody removed.
        let is_had = match wants_blobs {
            true => operations.bring_blobs(root),
            false => operations.can_stay_away(root),
        };
        if !is_had.map_err(failed)? {
            return solve(Want::Content);
        }
    }
    operations.tell_chain(&roots);
    Ok(())
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
