//! From a parsed Dockerfile to the build graph of one target, and to the configuration of its image.
//!
//! ```text
//! Dockerfile ─ stages ─► the stages that the target needs, and the images that those need
//!            ─ scope ──► variables: ARG, ENV, build arguments
//!            ─ run, copy, config ─► vertices, configuration, history
//!            ─ sources ─► contexts and remote files as vertices
//! ```
//!
//! Lowering does no I/O. Where it needs an image that it was not given it asks for it, and is called again with the
//! answer. What it cannot do yet is an error at the place where it is asked for: nothing is ever skipped.

mod config;
mod copy;
mod go_format;
pub(crate) mod mounts;
mod platform;
mod ports;
mod remote_sources;
mod run;
mod scope;
mod signals;
mod sources;
mod stages;

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use store::oci::{Descriptor, DiffId, Digest, History, ImageConfig, Platform, Reference};

use crate::checks::values;
use crate::contexts::{FetchedTree, LayoutImage, NamedContexts};
use crate::dockerfile::ast::InstructionKind;
use crate::dockerfile::source::Label;
use crate::dockerfile::words::{self, Expanded};
use crate::dockerfile::{Diagnostic, Dockerfile, SourceFile, Span, Word};
use crate::graph::{Definition, ImageOp, Op, OpMetadata, VertexIndex};
use crate::request::RunSettings;
pub use platform::{PlatformError, parse_platform};
pub(crate) use scope::GlobalArgs;
use scope::Scope;
pub use sources::KEEP_GIT_DIR;
pub(crate) use sources::{context_keeps_git_dir, file_name, is_true};
pub(crate) use stages::reachable;
use stages::{Base, StagePlan, Stages, Step};

/// What the history says made an entry; docker's own builder writes the same, and tools look for it.
const HISTORY_COMMENT: &str = "buildkit.dockerfile.v0";

/// What `PATH` is where the base image sets none.
const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A Dockerfile, and all that decides what it means.
#[derive(Clone, Debug)]
pub struct LowerRequest<'a> {
    /// A Dockerfile that was parsed without errors.
    pub dockerfile: &'a Dockerfile,
    /// Its text.
    pub source: &'a SourceFile,
    /// `--build-arg`: values by name.
    pub build_args: BTreeMap<String, String>,
    /// `--target`: a stage's name or number; absent for the last stage.
    pub target: Option<String>,
    /// The platform that is built for.
    pub platform: Platform,
    /// Whether steps are labelled with their platforms, since there are several.
    pub label_platforms: bool,
    /// The platform that is built on.
    pub build_platform: Platform,
    /// `--no-cache`: every step runs, cached or not.
    pub no_cache: bool,
    /// `--label`: set last, over what the Dockerfile says.
    pub labels: BTreeMap<String, String>,
    /// The patterns of the main context's `.dockerignore`, in order.
    pub ignore: Vec<String>,
    /// The main context, if it was fetched to be looked into; a folder otherwise.
    pub fetched: Option<FetchedTree>,
    /// `--build-context`.
    pub contexts: NamedContexts,
    /// The images that earlier calls asked for.
    pub images: &'a BTreeMap<ImageRequest, ResolvedImage>,
    /// What `RUN` steps are given, and may do.
    pub run: RunSettings,
    /// Nothing is going to be built: every stage is looked at, and these images could not be had.
    pub survey: Option<&'a BTreeSet<ImageRequest>>,
}

impl<'a> LowerRequest<'a> {
    /// A build of the last stage for the platform that is built on, with nothing else asked for.
    pub fn new(
        dockerfile: &'a Dockerfile,
        source: &'a SourceFile,
        platform: &Platform,
        images: &'a BTreeMap<ImageRequest, ResolvedImage>,
    ) -> LowerRequest<'a> {
        LowerRequest {
            dockerfile,
            source,
            build_args: BTreeMap::new(),
            target: None,
            platform: platform.clone(),
            label_platforms: false,
            build_platform: platform.clone(),
            no_cache: false,
            labels: BTreeMap::new(),
            ignore: Vec::new(),
            fetched: None,
            contexts: NamedContexts::new(),
            images,
            run: RunSettings::default(),
            survey: None,
        }
    }
}

/// An image for a platform.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageRequest {
    /// Which image.
    pub reference: Reference,
    /// For which platform.
    pub platform: Platform,
    /// Where it lies, if that is an OCI layout on this disk.
    pub layout: Option<LayoutImage>,
}

/// An image that lowering has to know, and where the Dockerfile asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NeededImage {
    /// Which image; the key of [`LowerRequest::images`].
    pub request: ImageRequest,
    /// The place to point at if it cannot be had.
    pub span: Span,
}

/// What is known of an image without its layers' content.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedImage {
    /// Where it comes from, with the tag that was asked for.
    pub reference: Reference,
    /// Digest of its manifest; absent for an image that was only ever built here.
    pub manifest: Option<Digest>,
    /// Its layers, oldest first.
    pub diff_ids: Vec<DiffId>,
    /// The compressed layers, oldest first, where a manifest lists them (else empty).
    pub layers: Vec<Descriptor>,
    /// Its configuration.
    pub config: ImageConfig,
}

impl ResolvedImage {
    /// Stands in for an image that could not be had.
    fn unknown(request: &ImageRequest) -> ResolvedImage {
        ResolvedImage {
            reference: request.reference.clone(),
            manifest: None,
            diff_ids: Vec::new(),
            layers: Vec::new(),
            config: ImageConfig::scratch(&request.platform),
        }
    }
}

/// What lowering came to.
#[derive(Clone, Debug)]
pub enum Lowered {
    /// These images have to be known first; none is among those given, and none stands here twice.
    NeedImages(Vec<NeededImage>),
    /// The graph and the image's configuration.
    Done(Box<Plan>),
}

/// How to build one target.
#[derive(Clone, Debug)]
pub struct Plan {
    /// All that the target needs, and nothing else.
    pub definition: Definition,
    /// The target's root file system; absent for `scratch` with nothing in it.
    pub root: Option<VertexIndex>,
    /// The image's configuration, but for `created`, the layers' DiffIDs and the history.
    pub config: ImageConfig,
    /// What the Dockerfile adds to the history, oldest first.
    pub history: Vec<HistoryStep>,
    /// The history of the image that the target stands on, as it was.
    pub base_history: Vec<History>,
    /// What is doubtful about the Dockerfile.
    pub warnings: Vec<Diagnostic>,
    /// The stages that the target needs, itself among them, by index.
    pub stages: BTreeSet<usize>,
    /// How many steps people are told of: the sum of the stages' `n` in `[stage m/n]`.
    pub steps: usize,
}

/// An entry of the history.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HistoryStep {
    /// The entry, with `created` not set; `empty_layer` is set where there is no vertex.
    pub entry: History,
    /// The vertex that adds the layer. Where that turns out to be empty, so is the entry's.
    pub vertex: Option<VertexIndex>,
}

/// Lowers a Dockerfile for one target.
///
/// # Errors
/// All that is wrong, in the order of the text, with the warnings in between.
pub fn lower(request: &LowerRequest<'_>) -> Result<Lowered, Vec<Diagnostic>> {
    let stages = match stages::resolve(request)? {
        stages::Resolved::NeedImages(needed) => return Ok(Lowered::NeedImages(needed)),
        stages::Resolved::Stages(stages) => stages,
    };
    let mut lowering = Lowering {
        request,
        stages: &stages,
        definition: Definition::new(),
        diagnostics: stages.warnings.clone(),
        cost: 0,
        roots: BTreeMap::new(),
        done: BTreeMap::new(),
        heirs: BTreeMap::new(),
    };
    let bases = stages.plans.values().filter_map(|plan| match plan.base {
        Base::Stage(base) => Some(base),
        _ => None,
    });
    // The target is asked for once more, at the end.
    for base in bases.chain([stages.target]) {
        *lowering.heirs.entry(base).or_default() += 1;
    }
    for (&index, plan) in &stages.plans {
        let state = lowering.stage(plan);
        lowering.roots.insert(index, state.root);
        if lowering.heirs.contains_key(&index) {
            lowering.done.insert(index, state);
        }
    }
    let mut diagnostics = lowering.diagnostics;
    let target = &lowering.done[&stages.target];
    if target.runs && !target.scope.is_open() {
        let from = stages.plans[&stages.target].from;
        diagnostics.extend(values::runs_as_root(&target.config.config.user, from));
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.span.start);
    if diagnostics.iter().any(Diagnostic::is_error) {
        return Err(diagnostics);
    }
    let target = lowering
        .done
        .remove(&stages.target)
        .expect("the target is among the stages that it needs");
    let mut config = target.config;
    let variables = target.env.environment();
    config.config.env = variables.iter().map(ToString::to_string).collect();
    if !request.labels.is_empty() {
        let labels = config.config.labels.get_or_insert_default();
        labels.extend(request.labels.clone());
    }
    Ok(Lowered::Done(Box::new(Plan {
        definition: lowering.definition,
        root: target.root,
        config,
        history: target.history,
        base_history: target.base_history,
        warnings: diagnostics,
        stages: stages.plans.keys().copied().collect(),
        steps: stages.plans.values().map(|plan| plan.total).sum(),
    })))
}

struct Lowering<'a> {
    request: &'a LowerRequest<'a>,
    stages: &'a Stages<'a>,
    definition: Definition,
    diagnostics: Vec<Diagnostic>,
    /// What was done so far, in the unit of words' costs.
    cost: usize,
    /// The root file systems of the stages that are lowered.
    roots: BTreeMap<usize, Option<VertexIndex>>,
    /// Those of them that others stand on.
    done: BTreeMap<usize, StageState>,
    /// How many still will.
    heirs: BTreeMap<usize, usize>,
}

/// What lowering a Dockerfile may cost, in the unit of words' costs: variables that double one another, and thousands
/// of steps that each repeat thousands of arguments in their history, get an answer instead of all memory there is.
/// It allows for 128 MiB of text.
const COST_MAX: usize = 1 << 30;

/// What a byte of history, or of a step's environment, costs.
const BYTE_COST: usize = 8;

/// More findings than anybody reads, and more suggestions: each is looked for among all that would have been right.
const WARNINGS_MAX: usize = 10_000;
const SUGGESTIONS_MAX: usize = 20;

/// A stage after some of its instructions.
#[derive(Clone)]
struct StageState {
    root: Option<VertexIndex>,
    scope: Scope,
    /// The variables of the image.
    env: Scope,
    /// All else of the image; its variables are those of the base.
    config: ImageConfig,
    base_history: Vec<History>,
    history: Vec<HistoryStep>,
    /// `CMD` was set in this stage, so `ENTRYPOINT` leaves it.
    cmd_set: bool,
    /// `WORKDIR` was set in this stage or one that it stands on.
    workdir_set: bool,
    /// So was `CMD` or `ENTRYPOINT`.
    runs: bool,
    /// Steps named so far.
    step: usize,
}

/// Drops the findings of build checks from a position on.
fn drop_findings(diagnostics: &mut Vec<Diagnostic>, from: usize) {
    let mut position = 0;
    diagnostics.retain(|diagnostic| {
        position += 1;
        position <= from || diagnostic.rule.is_none()
    });
}

/// The instruction was reported as wrong.
struct Refused;

type Outcome<T = ()> = Result<T, Refused>;

impl Lowering<'_> {
    fn stage(&mut self, plan: &StagePlan<'_>) -> StageState {
        let mut state = self.base(plan);
        for step in &plan.steps {
            let said = self.diagnostics.len();
            let recorded = state.history.len();
            // What was refused is reported; the rest is looked at for more.
            let _: Outcome = self.instruction(&mut state, plan, step);
            if self.account(&state, recorded, step).is_err() {
                break;
            }
            if let Some(from) = step.origin {
                // Whoever builds upon an image cannot change its triggers.
                drop_findings(&mut self.diagnostics, said);
                let trigger = format!("this image triggers `{}`", step.instruction.line);
                for diagnostic in &mut self.diagnostics[said..] {
                    diagnostic.labels.push(Label {
                        span: from,
                        text: trigger.clone(),
                    });
                }
            }
        }
        state
    }

    /// The state that `FROM` begins with.
    fn base(&mut self, plan: &StagePlan<'_>) -> StageState {
        match &plan.base {
            Base::Stage(index) => {
                let mut state = self.inherit(*index);
                state.cmd_set = false;
                state.step = 0;
                state.config.config.on_build = None;
                state
            }
            Base::Scratch => StageState::scratch(&plan.platform),
            Base::Context(key) => self.context_base(plan, key),
            Base::Image(request) => {
                let known = self.request.images.get(request.as_ref());
                let image = &known.map_or_else(
                    || Cow::Owned(ResolvedImage::unknown(request)),
                    Cow::Borrowed,
                );
                let (found, wanted) = (image.config.platform(), &plan.platform);
                let name = image.reference.familiar();
                self.diagnostics
                    .extend(values::base_platform(&name, &found, wanted, plan.from));
                let mut config = ImageConfig::clone(&image.config);
                let base_history = std::mem::take(&mut config.history);
                config.rootfs.diff_ids.clear();
                config.created = None;
                config.config.on_build = None;
                if !config
                    .config
                    .env
                    .iter()
                    .any(|variable| variable.starts_with("PATH="))
                {
                    config.config.env.push(DEFAULT_PATH.to_owned());
                }
                let scope = Scope::new(&config.config.env);
                let mut state = StageState {
                    root: None,
                    env: scope.clone(),
                    scope,
                    config,
                    base_history,
                    history: Vec::new(),
                    cmd_set: false,
                    workdir_set: false,
                    runs: false,
                    step: 0,
                };
                if known.is_none() {
                    state.scope.leave_open();
                }
                let name = format!("FROM {}", full_name(image));
                let mut meta = self.metadata(plan.from, name, &mut state, Some(plan));
                // An image is what it is: there is nothing to run again.
                meta.no_cache = false;
                state.root = Some(self.image(image, meta));
                state
            }
        }
    }

    /// The state that another stage ended with; the last to ask gets it without a copy.
    fn inherit(&mut self, index: usize) -> StageState {
        let heirs = self.heirs.entry(index).or_default();
        *heirs = heirs.saturating_sub(1);
        let state = match heirs {
            0 => self.done.remove(&index),
            _ => self.done.get(&index).cloned(),
        };
        state.expect("a stage stands on one before it")
    }

    fn image(&mut self, image: &ResolvedImage, meta: OpMetadata) -> VertexIndex {
        let op = Op::Image(ImageOp {
            reference: image.reference.clone(),
            manifest: image.manifest,
            diff_ids: image.diff_ids.clone(),
            layers: image.layers.clone(),
            config: Box::new(image.config.clone()),
        });
        self.definition.add(op, Vec::new(), meta)
    }

    fn instruction(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
    ) -> Outcome {
        match &step.instruction.kind {
            InstructionKind::Run(command) => self.run(state, plan, step, command),
            InstructionKind::Copy(copy) => self.copy(state, plan, step, copy, false),
            InstructionKind::Add(copy) => self.copy(state, plan, step, copy, true),
            InstructionKind::Env(env) => self.env(state, step, env),
            InstructionKind::Label(labels) => self.label(state, step, labels),
            InstructionKind::Arg(declarations) => self.arg(state, step, declarations),
            InstructionKind::Workdir(path) => self.workdir(state, plan, step, path),
            InstructionKind::User(user) => self.user(state, step, user),
            InstructionKind::Cmd(command) => {
                self.cmd(state, step, command);
                Ok(())
            }
            InstructionKind::Entrypoint(command) => {
                self.entrypoint(state, step, command);
                Ok(())
            }
            InstructionKind::Expose(words) => self.expose(state, step, words),
            InstructionKind::Volume(words) => self.volume(state, step, words),
            InstructionKind::StopSignal(signal) => self.stop_signal(state, step, signal),
            InstructionKind::Shell(words) => {
                self.shell(state, words);
                Ok(())
            }
            InstructionKind::Healthcheck(check) => {
                self.healthcheck(state, check);
                Ok(())
            }
            InstructionKind::Maintainer(name) => {
                self.maintainer(state, name);
                Ok(())
            }
            InstructionKind::Onbuild(trigger) => {
                self.onbuild(state, step, trigger);
                Ok(())
            }
            InstructionKind::From(_) | InstructionKind::Invalid => {
                let span = step.at(step.instruction.head);
                self.refuse(Diagnostic::error(span, "the instruction cannot be read"))
            }
        }
    }

    /// Reports an error.
    fn refuse<T>(&mut self, diagnostic: Diagnostic) -> Outcome<T> {
        self.diagnostics.push(diagnostic);
        Err(Refused)
    }

    /// Expands a word with the variables as they are, and warns of those that are not set.
    fn expand(&mut self, state: &StageState, step: &Step<'_>, word: &Word) -> Outcome<Expanded> {
        self.expand_text(state, step, &word.text, word.span)
    }

    fn expand_text(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        text: &str,
        span: Span,
    ) -> Outcome<Expanded> {
        let span = step.at(span);
        match words::expand(text, step.escape, &|name| state.scope.value(name)) {
            Ok(expanded) => {
                self.check_unset(&state.scope, &expanded, span);
                self.spend(step, expanded.cost)?;
                Ok(expanded)
            }
            Err(error) => self.refuse(scope::cannot_expand(text, &error, span)),
        }
    }

    /// Counts what an instruction costs; the one that costs too much is refused.
    fn spend(&mut self, step: &Step<'_>, cost: usize) -> Outcome {
        let before = self.cost;
        self.cost = before.saturating_add(cost);
        if self.cost <= COST_MAX {
            return Ok(());
        }
        if before > COST_MAX {
            // It was said where it happened.
            return Err(Refused);
        }
        let span = step.at(step.instruction.head);
        let message = "the Dockerfile becomes too large once its variables are expanded";
        self.refuse(Diagnostic::error(span, message).help(
            "each `RUN` repeats every `ARG` before it in the image's history, and `ENV A=$A$A` doubles `A`",
        ))
    }

    /// Counts what an instruction left behind.
    fn account(&mut self, state: &StageState, recorded: usize, step: &Step<'_>) -> Outcome {
        let entries = state.history[recorded..].iter();
        let history: usize = entries
            .filter_map(|step| step.entry.created_by.as_ref())
            .map(String::len)
            .sum();
        let environment = match step.instruction.kind {
            InstructionKind::Run(_) => state.scope.bytes(),
            _ => 0,
        };
        self.spend(step, BYTE_COST * (history + environment))
    }

    /// Warns of variables that a text uses and that are not set.
    fn check_unset(&mut self, scope: &Scope, expanded: &Expanded, span: Span) {
        for name in expanded.unset.iter().filter(|name| scope.misses(name)) {
            let said = self.diagnostics.len();
            if said >= WARNINGS_MAX {
                return;
            }
            let known = scope.names().filter(|_| said < SUGGESTIONS_MAX);
            self.diagnostics.push(values::undefined(name, span, known));
        }
    }

    /// A flag's value, expanded.
    fn expand_flag(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        name: &str,
    ) -> Outcome<Option<String>> {
        let Some(flag) = step.instruction.flag(name) else {
            return Ok(None);
        };
        let value = flag.value.as_deref().unwrap_or_default();
        let expanded = self.expand_text(state, step, value, flag.span)?;
        Ok(Some(expanded.text))
    }

    /// Labels a vertex; with a plan, as that stage's next step.
    fn metadata(
        &self,
        span: Span,
        name: String,
        state: &mut StageState,
        plan: Option<&StagePlan<'_>>,
    ) -> OpMetadata {
        let name = match plan {
            Some(plan) if plan.total > 0 => {
                state.step += 1;
                let width = plan.total.to_string().len();
                let stage = match plan.label.as_str() {
                    "" => String::new(),
                    label => format!("{label} "),
                };
                format!("[{stage}{:>width$}/{}] {name}", state.step, plan.total)
            }
            _ => name,
        };
        OpMetadata {
            name,
            line: self.request.source.line(span.start),
            span: span.range(),
            no_cache: self.request.no_cache,
        }
    }

    fn step_metadata(
        &self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
    ) -> OpMetadata {
        let instruction = &step.instruction;
        let rest = &instruction.line[instruction.keyword.text.len()..];
        let mut name = format!("{}{rest}", instruction.keyword.text.to_uppercase());
        if let Some(heredoc) = instruction.heredocs.first() {
            let body = step.text[heredoc.body.range()].trim();
            let (first, more) = match body.split_once('\n') {
                Some((first, _)) => (first.trim_end(), "..."),
                None => (body, ""),
            };
            name = format!("{name} ({first}{more})");
        }
        self.metadata(step.at(instruction.head), name, state, Some(plan))
    }
}

impl StageState {
    fn scratch(platform: &Platform) -> StageState {
        let mut config = ImageConfig::scratch(platform);
        config.config.env = vec![DEFAULT_PATH.to_owned()];
        config.config.working_dir = "/".to_owned();
        let scope = Scope::new(&config.config.env);
        StageState {
            root: None,
            env: scope.clone(),
            scope,
            config,
            base_history: Vec::new(),
            history: Vec::new(),
            cmd_set: false,
            workdir_set: false,
            runs: false,
            step: 0,
        }
    }

    /// Adds a history entry; with a vertex, one that has a layer.
    fn record(&mut self, created_by: String, vertex: Option<VertexIndex>) {
        self.history.push(HistoryStep {
            entry: History {
                created_by: Some(created_by),
                comment: Some(HISTORY_COMMENT.to_owned()),
                empty_layer: vertex.is_none(),
                ..History::default()
            },
            vertex,
        });
    }

    /// The working directory; `/` where none is set.
    fn cwd(&self) -> &str {
        match self.config.config.working_dir.as_str() {
            "" => "/",
            path => path,
        }
    }
}

/// The reference with the digest that it was resolved to.
fn full_name(image: &ResolvedImage) -> String {
    match (image.manifest, image.reference.digest()) {
        (Some(digest), None) => format!("{}@{digest}", image.reference),
        _ => image.reference.to_string(),
    }
}
