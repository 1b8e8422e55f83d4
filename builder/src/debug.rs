//! Steps to look around in: when one has failed, or later.
//!
//! [`OnFailure`] is called while all that a failed step was given is still in place. [`with_step`] makes the sandbox of a step of
//! an earlier build again, from what its journal says and the layers that are kept.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use store::history::BuildId;
use store::layer::LayerId;
use store::oci::DiffId;
use store::{Store, StoreError};

pub use crate::ops::exec::stopped::{RERUN, StoppedStep};

use crate::BuildEnvironment;
use crate::cache::CacheRecord;
use crate::cache::shared::import::{Notes, SharedCache};
use crate::error::StepError;
use crate::graph::exec::{ExecOp, MountKind};
use crate::graph::{ContextOp, Definition, FileAction, FileOp, MkdirAction, Op, OpMetadata};
use crate::graph::{VertexIndex, exec};
use crate::history::detail::Detail;
use crate::history::{BuildHistory, StepHistory};
use crate::ops::exec::{Prepared, bystander};
use crate::ops::{Context, Explainer, Operations};
use crate::request::RunSettings;
use crate::solve::ProgressSink;
use crate::solve::cancel::Cancel;

/// What is to be done about a step that failed, before what it was given is taken away.
pub trait OnFailure: Send + Sync {
    /// Takes the step, on the thread that ran it. Steps that run go on meanwhile, and no further one starts. Of several that
    /// fail only the first is told of.
    fn failed(&self, step: &StoppedStep<'_>, error: &StepError);
}

/// An [`OnFailure`] that is carried along with other settings.
#[derive(Clone)]
pub struct FailureHook(pub Arc<dyn OnFailure>);

impl fmt::Debug for FailureHook {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("FailureHook")
    }
}

/// Which files a step of an earlier build is looked at with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StepState {
    /// Those that it began with.
    Before,
    /// Those that it left when it failed.
    Failed,
    /// Those that it ended with.
    After,
}

/// Why a step cannot be looked at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DebugError {
    /// The build ended before it was known what there is to do, or an older longshore wrote its journal.
    #[error("the history of build {build} does not say how its steps are made: build again")]
    NotRecorded {
        /// The build.
        build: String,
    },
    /// A folder is no root file system.
    #[error("`{name}` has no root file system: it is a folder that steps read from")]
    NoRoot {
        /// The step.
        name: String,
    },
    /// There is nothing before an image.
    #[error("there is nothing before `{name}`: look at it with the state `after`")]
    NothingBefore {
        /// The step.
        name: String,
    },
    /// It did not fail, or that is forgotten.
    #[error(
        "what `{name}` left when it failed is not kept: it did not fail in build {build}, or that was too long ago or too large"
    )]
    NoFailure {
        /// The step.
        name: String,
        /// The build.
        build: String,
    },
    /// The build ended before it had a result.
    #[error("`{name}` has no result in build {build}: the build ended before")]
    NoResult {
        /// The step that is needed.
        name: String,
        /// The build.
        build: String,
    },
    /// A layer is gone.
    #[error(
        "layer {layer} of `{name}` is not in the store any more: it was pruned, so build again"
    )]
    Pruned {
        /// The step that made it.
        name: String,
        /// The layer.
        layer: LayerId,
    },
    /// An image is not here, or not whole.
    #[error("`{name}` is not in the store: pull the image, or build again")]
    ImageMissing {
        /// The step.
        name: String,
        /// Why it cannot be unpacked.
        source: StoreError,
    },
    /// A folder that is mounted is gone.
    #[error("the context `{name}` cannot be read, so it cannot be mounted")]
    Context {
        /// The step.
        name: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The sandbox could not be made ready.
    #[error(transparent)]
    Step(#[from] StepError),
    /// No pipe to be had.
    #[error("cannot make a pipe")]
    Setup(#[source] std::io::Error),
}

/// A step of an earlier build.
#[derive(Debug)]
pub struct DebugRequest<'a> {
    /// The build.
    pub build: &'a BuildHistory,
    /// The step.
    pub step: &'a StepHistory,
    /// With which files; none for those that it left when it failed, if they are kept, else those before it.
    pub state: Option<StepState>,
    /// Secrets and agents, which no history keeps.
    pub run: RunSettings,
    /// `NAME=value`, over the step's own.
    pub env: Vec<String>,
}

/// What is worth knowing of a sandbox that was made again.
#[derive(Debug)]
pub struct Restored {
    /// Its files.
    pub state: StepState,
    /// What of the step's surroundings could not be had.
    pub notes: Vec<String>,
}

/// Makes the sandbox of a step again and calls `look` with it; everything is gone afterwards, what is in cache mounts excepted.
///
/// # Errors
/// Files or mounts of the step are not here any more, or were never made.
pub fn with_step<T>(
    environment: BuildEnvironment<'_>,
    request: &DebugRequest<'_>,
    progress: &Arc<dyn ProgressSink>,
    look: impl FnOnce(&StoppedStep<'_>, &Restored) -> T,
) -> Result<T, DebugError> {
    let history = History {
        store: environment.store,
        build: request.build,
    };
    let step = request.step.number - 1;
    let detail = history.detail(step)?;
    let (state, left) = choose(&history, request)?;
    let (base, above) = match state {
        StepState::Before => (history.below(step)?, None),
        StepState::Failed => (history.below(step)?, left),
        StepState::After => match detail.base {
            Some(_) if request.step.kind != "merge" => {
                (history.below(step)?, history.own(step)?.pop())
            }
            _ => (history.stack(step)?, None),
        },
    };
    let mut notes = Vec::new();
    let exec = exec_of(detail, request, &mut notes);
    let plan = plan(&history, &exec, request.step, &base)?;
    let abort = Cancel::new().map_err(DebugError::Setup)?;
    let operations = Operations::new(
        environment.store,
        environment.remote,
        &plan.definition,
        plan.contexts,
        progress,
        environment.cancel,
        &abort,
        &request.run,
        None,
        crate::now(),
        None,
        Explainer::new([0; 32], ""),
        SharedCache::new(Vec::new(), Notes::new(progress)),
        1,
    );
    for (vertex, layers) in &plan.layers {
        operations.set_layers(*vertex, layers);
    }
    // A cache is named by what it was filled from.
    if exec.mounts.iter().any(is_filled) {
        operations.select(plan.step)?;
    }
    let prepared = Prepared::new(&operations, plan.step.0, &exec, above)?;
    let looked = look(
        &StoppedStep {
            name: &request.step.name,
            argv: &exec.argv,
            spec: &prepared.spec,
        },
        &Restored { state, notes },
    );
    prepared.finish()?.discard().map_err(StepError::from)?;
    Ok(looked)
}

fn is_filled(mount: &exec::Mount) -> bool {
    matches!(&mount.kind, MountKind::Cache(cache) if cache.input.is_some())
}

/// The state to show, and what the step left if it is that of its failure.
fn choose(
    history: &History<'_>,
    request: &DebugRequest<'_>,
) -> Result<(StepState, Option<LayerId>), DebugError> {
    let step = request.step;
    let number = step.number - 1;
    if matches!(step.kind.as_str(), "context") {
        let name = step.name.clone();
        return Err(DebugError::NoRoot { name });
    }
    let is_source = matches!(step.kind.as_str(), "image" | "tree" | "http" | "git");
    let failed = |state| matches!(state, None | Some(StepState::Failed));
    if failed(request.state)
        && let Some(left) = history.left(number)?
    {
        return Ok((StepState::Failed, Some(left)));
    }
    match request.state {
        Some(StepState::Failed) => Err(DebugError::NoFailure {
            name: step.name.clone(),
            build: request.build.id.clone(),
        }),
        Some(StepState::Before) if is_source => Err(DebugError::NothingBefore {
            name: step.name.clone(),
        }),
        None if is_source => Ok((StepState::After, None)),
        None => Ok((StepState::Before, None)),
        Some(state) => Ok((state, None)),
    }
}

/// What the step runs and in what, as far as it can be had now.
fn exec_of(detail: &Detail, request: &DebugRequest<'_>, notes: &mut Vec<String>) -> ExecOp {
    let Some(run) = &detail.run else {
        return bystander();
    };
    let mut exec = (**run).clone();
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    let given: BTreeSet<String> = request.env.iter().map(|variable| name(variable)).collect();
    exec.env.retain(|known| !given.contains(&name(known)));
    exec.proxy_env.retain(|known| !given.contains(&name(known)));
    let more = request.env.iter().map(|text| Arc::from(text.as_str()));
    exec.env.extend(more);
    for hidden in detail.hidden.iter().filter(|name| !given.contains(*name)) {
        notes.push(format!(
            "the variable {hidden} is not set: its value may be a secret and was not kept (give it with --env {hidden}=…)"
        ));
    }
    for mount in &mut exec.mounts {
        match &mut mount.kind {
            MountKind::Secret(secret) => {
                secret.required = false;
                if !request.run.secrets.contains_key(&secret.id) {
                    let id = &secret.id;
                    notes.push(format!(
                        "the secret {id} is not there (give it with --secret id={id},…)"
                    ));
                }
            }
            MountKind::Ssh(agent) => {
                agent.required = false;
                if !request.run.ssh.contains_key(&agent.id) {
                    let id = &agent.id;
                    notes.push(format!(
                        "the SSH agent {id} is not there (give it with --ssh {id})"
                    ));
                }
            }
            MountKind::Bind(_) | MountKind::Cache(_) | MountKind::Tmpfs { .. } => {}
        }
    }
    exec
}

/// A graph of the step and what it reads, all of it solved.
struct Plan {
    definition: Definition,
    step: VertexIndex,
    /// What stands for the step's inputs results in.
    layers: Vec<(VertexIndex, Vec<LayerId>)>,
    contexts: BTreeMap<String, Context>,
}

fn plan(
    history: &History<'_>,
    exec: &ExecOp,
    step: &StepHistory,
    base: &[LayerId],
) -> Result<Plan, DebugError> {
    let mut definition = Definition::new();
    let mut layers = Vec::new();
    let mut contexts = BTreeMap::new();
    let is_run = step.kind == "exec";
    let mut inputs = Vec::new();
    if exec.on_base {
        let vertex = definition.add(stand_in(0), Vec::new(), OpMetadata::default());
        layers.push((vertex, base.to_vec()));
        inputs.push(vertex);
    }
    let others = step.inputs.iter().skip(usize::from(exec.on_base));
    for &number in others.filter(|_| is_run) {
        let input = number - 1;
        let detail = history.detail(input)?;
        let vertex = if let Some(folder) = &detail.folder {
            let name = format!("{number}");
            let op = Op::Context(ContextOp { name: name.clone() });
            contexts.insert(name, open(history, input, folder)?);
            definition.add(op, Vec::new(), OpMetadata::default())
        } else {
            let vertex = definition.add(stand_in(number), Vec::new(), OpMetadata::default());
            layers.push((vertex, history.stack(input)?));
            vertex
        };
        inputs.push(vertex);
    }
    let meta = OpMetadata {
        name: step.name.clone(),
        ..OpMetadata::default()
    };
    let step = definition.add(Op::Exec(exec.clone()), inputs, meta);
    Ok(Plan {
        definition,
        step,
        layers,
        contexts,
    })
}

/// An operation that does nothing and is like no other.
fn stand_in(number: usize) -> Op {
    Op::File(FileOp {
        on_base: false,
        actions: vec![FileAction::Mkdir(MkdirAction {
            path: format!("/{number}"),
            mode: 0o755,
            owner: String::new(),
        })],
    })
}

fn open(history: &History<'_>, step: usize, folder: &str) -> Result<Context, DebugError> {
    let stat_caches = history.store.root().join("contexts");
    Context::open(&PathBuf::from(folder), &stat_caches).map_err(|source| DebugError::Context {
        name: history.name(step),
        source: Box::new(source),
    })
}

/// What a build's journal says of layers. Steps are counted from 0.
struct History<'a> {
    store: &'a Store,
    build: &'a BuildHistory,
}

impl<'a> History<'a> {
    fn detail(&self, step: usize) -> Result<&'a Detail, DebugError> {
        let detail = self.build.details.get(step).and_then(Option::as_ref);
        detail.ok_or_else(|| self.not_recorded())
    }

    fn not_recorded(&self) -> DebugError {
        DebugError::NotRecorded {
            build: self.build.id.clone(),
        }
    }

    fn name(&self, step: usize) -> String {
        let step = self.build.steps.get(step);
        step.map(|step| step.name.clone()).unwrap_or_default()
    }

    /// What a failed step left, if it is kept.
    fn left(&self, step: usize) -> Result<Option<LayerId>, DebugError> {
        let Ok(build) = self.build.id.parse::<BuildId>() else {
            return Ok(None);
        };
        let mut kept = self.store.failed_steps()?.into_iter();
        let Some(kept) = kept.find(|kept| kept.build == build && kept.step == step) else {
            return Ok(None);
        };
        self.stands(step, kept.layer).map(Some)
    }

    /// The layers that a step stands on, oldest first.
    fn below(&self, step: usize) -> Result<Vec<LayerId>, DebugError> {
        match self.detail(step)?.base {
            Some(base) => self.stack(base),
            None => Ok(Vec::new()),
        }
    }

    /// The layers of a step's whole result, oldest first.
    fn stack(&self, step: usize) -> Result<Vec<LayerId>, DebugError> {
        let mut parts = Vec::new();
        let mut next = Some(step);
        while let Some(step) = next {
            parts.push(self.own(step)?);
            // Inputs come before users, whatever a damaged journal says.
            next = self.detail(step)?.base.filter(|base| *base < step);
        }
        Ok(parts.into_iter().rev().flatten().collect())
    }

    /// The layers that a step adds to what it stands on.
    fn own(&self, step: usize) -> Result<Vec<LayerId>, DebugError> {
        let detail = self.detail(step)?;
        let kind = self.build.steps.get(step).map(|step| step.kind.as_str());
        match kind {
            Some("image") => self.image(step, detail),
            Some("tree") => {
                let layers = detail.layers.iter();
                let layers = layers.map(|layer| {
                    let layer = layer.parse().map_err(|_| self.not_recorded())?;
                    self.stands(step, layer)
                });
                layers.collect()
            }
            Some("merge") => {
                let inputs = &self.build.steps[step].inputs;
                match inputs.get(1).filter(|upper| **upper <= step) {
                    Some(upper) => self.stack(upper - 1),
                    None => Ok(Vec::new()),
                }
            }
            _ => {
                let layer = self.made(step)?;
                let layer = layer.map(|layer| self.stands(step, layer));
                layer.into_iter().collect()
            }
        }
    }

    fn image(&self, step: usize, detail: &Detail) -> Result<Vec<LayerId>, DebugError> {
        let unpacked = detail.layers.iter().map(|text| {
            let digest = text.parse().map_err(|_| self.not_recorded())?;
            let unpacked = self.store.ensure_unpacked(&DiffId(digest));
            unpacked.map_err(|source| DebugError::ImageMissing {
                name: self.name(step),
                source,
            })
        });
        unpacked.collect()
    }

    /// The layer that a step made, if it changed anything.
    fn made(&self, step: usize) -> Result<Option<LayerId>, DebugError> {
        let text = self.build.layers.get(step).and_then(Option::as_ref);
        match text.map(|text| (text.is_empty(), text.parse::<LayerId>())) {
            Some((true, _)) => return Ok(None),
            Some((false, Ok(layer))) => return Ok(Some(layer)),
            Some((false, Err(_))) | None => {}
        }
        // A build that was killed did not write them all down, but it wrote keys.
        let key = self.build.steps.get(step).and_then(StepHistory::cache_key);
        let row = match key {
            Some(key) => self.store.index().record_peek(&key.0),
            None => Ok(None),
        };
        let row = row.map_err(StoreError::from)?;
        match row.and_then(|row| CacheRecord::decode(&row.result)) {
            Some(record) => Ok(record.layer.map(|layer| layer.id)),
            None => Err(DebugError::NoResult {
                name: self.name(step),
                build: self.build.id.clone(),
            }),
        }
    }

    /// The layer, if it is here; nobody removes it from now on.
    fn stands(&self, step: usize, layer: LayerId) -> Result<LayerId, DebugError> {
        let known = self.store.index().layer(&layer).map_err(StoreError::from)?;
        if known.is_some() && self.store.snapshots().has(&layer) {
            return Ok(layer);
        }
        Err(DebugError::Pruned {
            name: self.name(step),
            layer,
        })
    }
}
