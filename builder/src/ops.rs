//! Doing what vertices say: the solver's [`Work`], joining graph, cache, store, runner and registries.
//!
//! | file | operation |
//! |---|---|
//! | [`image`] | base images: resolved, pulled and unpacked |
//! | [`context`] | local folders, digested in place |
//! | [`http`], [`git`] | files from elsewhere; `source`: what they have in common, `auth`: their credentials |
//! | [`file`] | copies and new directories, straight into a layer |
//! | [`exec`] | processes and their mounts (nothing else sees the runner) |
//!
//! `results` holds what is known of each vertex, `recall` what the cache knows, `shared` what other machines' caches know,
//! `explain` why none does, `estimate` how long steps take; `failure` is what happens when a step fails.

mod auth;
pub mod context;
mod estimate;
pub mod exec;
mod explain;
mod failure;
pub mod file;
pub mod git;
pub(crate) mod http;
pub mod image;
mod recall;
mod results;
pub mod select;
mod shared;
pub(crate) mod source;
pub mod tree;

pub use context::Context;
pub(crate) use explain::Explainer;
pub use file::{FileOpError, FileRun};
pub(crate) use results::base_of;
pub use select::{Selected, select};
pub use tree::Tree;

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, Once, PoisonError, mpsc};
use std::time::{Duration, Instant};

use store::Store;
use store::history::BuildId;
use store::layer::{LayerId, LayerInfo};
use store::snapshot::View;

use crate::cache::Identity;
use crate::cache::content_hash::selected_digest;
use crate::cache::shared::import::SharedCache;
use crate::contexts::git_url::GitUrl;
use crate::dockerfile::{SourceFile, Span};
use crate::error::{BuildError, Place, StepError};
use crate::graph::{Definition, FileAction, FileOp, Op, Vertex, VertexIndex};
use crate::remote::Remote;
use crate::request::RunSettings;
use crate::solve::cancel::Cancel;
use crate::solve::driver::{Executed, Lane, Work};
use crate::solve::scheduler::{Action, VertexShape};
use crate::solve::{OfVertex, ProgressEvent, ProgressSink};
use context::layer_hashes::LayerHashes;
use exec::mounts::{ContextCopies, RenewedCaches};
use exec::network::StepNetwork;
use recall::Look;
use results::{Outcome, StackLayer, VertexState};
use source::Fetching;

/// Everything that operations work with.
pub(crate) struct Operations<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) remote: &'a Remote,
    pub(crate) definition: &'a Definition,
    pub(crate) contexts: BTreeMap<String, Context>,
    pub(crate) layer_hashes: LayerHashes,
    pub(crate) progress: &'a Arc<dyn ProgressSink>,
    /// The caller's flag, and the solve's own.
    pub(crate) cancel: &'a Cancel,
    pub(crate) abort: &'a Cancel,
    pub(crate) run: &'a RunSettings,
    pub(crate) epoch: Option<i64>,
    /// The time of the build, in seconds since 1970.
    pub(crate) now: i64,
    /// Layers that were just made, for whoever prepares their export beside the build.
    pub(crate) finished: Option<mpsc::Sender<LayerId>>,
    /// The build's name in the history, if it has one.
    pub(crate) build: Option<BuildId>,
    /// The commits that URLs of repositories mean in this build.
    commits: Mutex<BTreeMap<GitUrl, git::Resolved>>,
    pub(crate) explainer: Explainer<'a>,
    pub(crate) shared: SharedCache<'a>,
    /// Digests of what names the cache mounts that steps have used.
    used_mounts: Mutex<BTreeSet<[u8; 32]>>,
    /// Bounds what hashes files at the same time, where its threads are those that wait for caches.
    hashing: Gate,
    states: Vec<Mutex<VertexState>>,
    context_copies: Mutex<ContextCopies>,
    renewed_caches: Mutex<RenewedCaches>,
    /// Whether somebody looks at a step that failed.
    looking: AtomicBool,
    /// Whether it was said what steps lack here.
    pub(crate) notice: Once,
    /// How steps reach the world.
    pub(crate) network: StepNetwork,
    turns: recall::Turns,
    ran: AtomicUsize,
    cached: AtomicUsize,
}

impl<'a> Operations<'a> {
    #[expect(
        clippy::too_many_arguments,
        reason = "one per field; the caller names each"
    )]
    pub(crate) fn new(
        store: &'a Arc<Store>,
        remote: &'a Remote,
        definition: &'a Definition,
        contexts: BTreeMap<String, Context>,
        progress: &'a Arc<dyn ProgressSink>,
        cancel: &'a Cancel,
        abort: &'a Cancel,
        run: &'a RunSettings,
        epoch: Option<i64>,
        now: i64,
        finished: Option<mpsc::Sender<LayerId>>,
        explainer: Explainer<'a>,
        shared: SharedCache<'a>,
        jobs: usize,
    ) -> Operations<'a> {
        let states = definition
            .vertices()
            .iter()
            .map(|_| Mutex::default())
            .collect();
        let (ran, cached) = Default::default();
        Operations {
            store,
            remote,
            definition,
            layer_hashes: LayerHashes::new(store.root()),
            contexts,
            progress,
            cancel,
            abort,
            run,
            epoch,
            now,
            finished,
            build: None,
            commits: Mutex::default(),
            explainer,
            shared,
            used_mounts: Mutex::default(),
            hashing: Gate::new(jobs),
            states,
            context_copies: Mutex::default(),
            renewed_caches: Mutex::default(),
            notice: Once::new(),
            network: StepNetwork::default(),
            looking: AtomicBool::new(false),
            turns: Mutex::default(),
            ran,
            cached,
        }
    }

    /// How many steps ran, and how many the cache had.
    pub(crate) fn counts(&self) -> (usize, usize) {
        (
            self.ran.load(Ordering::Relaxed),
            self.cached.load(Ordering::Relaxed),
        )
    }

    /// Whether somebody wants the build to end.
    pub(crate) fn is_cancelled(&self) -> bool {
        self.cancel.is_cancelled() || self.abort.is_cancelled()
    }

    /// What steps of this build mount of contexts.
    pub(crate) fn context_copies(&self) -> MutexGuard<'_, ContextCopies> {
        lock(&self.context_copies)
    }

    /// The caches that this build has emptied.
    pub(crate) fn renewed_caches(&self) -> MutexGuard<'_, RenewedCaches> {
        lock(&self.renewed_caches)
    }

    fn vertex(&self, vertex: usize) -> &'a Vertex {
        self.definition.vertex(VertexIndex(vertex))
    }

    fn tell_cached(&self, vertex: usize) {
        let told = std::mem::replace(&mut self.state(vertex).told, true);
        if !told {
            let step = self.vertex(vertex);
            if matches!(step.op, Op::Exec(_) | Op::File(_)) {
                self.cached.fetch_add(1, Ordering::Relaxed);
            }
            self.tell_known(vertex, false);
            let name = step.meta.name.clone();
            self.progress.event(ProgressEvent::Cached {
                vertex: VertexIndex(vertex),
                name,
            });
        }
    }

    /// Looks for what an earlier build fetched, if it is what would be fetched now.
    fn recall_source(&self, vertex: usize) -> Result<bool, StepError> {
        // Servers are asked once in a build, also where it is solved twice: for what things are, then for all of them.
        if self.is_known(vertex) {
            return Ok(true);
        }
        let cancelled = || self.is_cancelled();
        let fetching = self.fetching(&cancelled);
        let found = match &self.vertex(vertex).op {
            Op::Http(op) => http::recall(&fetching, op)?,
            Op::Git(op) => git::recall(&fetching, op, &self.commit(&fetching, &op.url)?)?,
            _ => None,
        };
        let Some(found) = found else {
            return self.find_source(vertex, &fetching);
        };
        self.set_tree(vertex, &found.tree(&self.vertex(vertex).meta.name));
        self.share_source(vertex, &fetching, &found)?;
        Ok(true)
    }

    fn fetch_source(&self, vertex: usize) -> Result<(), StepError> {
        let cancelled = || self.is_cancelled();
        let progress = OfVertex::before(VertexIndex(vertex), self.progress);
        let fetching = Fetching {
            progress: &progress,
            ..self.fetching(&cancelled)
        };
        let (url, last) = match &self.vertex(vertex).op {
            Op::Http(op) => (op.url.clone(), http::last(&fetching, op)),
            Op::Git(op) => (op.url.to_string(), git::last(&fetching, op)),
            _ => (String::new(), None),
        };
        let found = self.telling(vertex, || {
            let found = match &self.vertex(vertex).op {
                Op::Http(op) => http::fetch(&fetching, op),
                Op::Git(op) => git::fetch(&fetching, op, &self.commit(&fetching, &op.url)?),
                _ => Err(StepError::NoKey),
            }?;
            self.progress.event(ProgressEvent::Runs {
                vertex: VertexIndex(vertex),
                reasons: source::why(&url, last.as_ref(), &found),
            });
            Ok(found)
        })?;
        self.set_tree(vertex, &found.tree(&self.vertex(vertex).meta.name));
        self.share_source(vertex, &fetching, &found)
    }

    /// The commit that a URL means, asked for once in a build.
    fn commit(&self, fetching: &Fetching<'_>, url: &GitUrl) -> Result<git::Resolved, StepError> {
        let mut known = self.commits.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(resolved) = known.get(url) {
            return Ok(resolved.clone());
        }
        let resolved = git::resolve(fetching, url)?;
        known.insert(url.clone(), resolved.clone());
        Ok(resolved)
    }

    fn fetching<'f>(&'f self, cancelled: &'f dyn Fn() -> bool) -> Fetching<'f> {
        Fetching {
            store: self.store,
            remote: self.remote,
            progress: self.progress,
            cancelled,
            settings: self.run,
            now: self.now,
        }
    }

    /// Runs `work` between the events that say that it started and how it ended.
    fn telling<T>(
        &self,
        vertex: usize,
        work: impl FnOnce() -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let meta = &self.vertex(vertex).meta;
        self.state(vertex).told = true;
        self.progress.event(ProgressEvent::Started {
            vertex: VertexIndex(vertex),
            name: meta.name.clone(),
            line: meta.line,
        });
        let started = Instant::now();
        let result = work();
        let vertex = VertexIndex(vertex);
        self.progress.event(match &result {
            Ok(_) => ProgressEvent::Done {
                vertex,
                elapsed: started.elapsed(),
            },
            Err(error) => ProgressEvent::Failed {
                vertex,
                message: error.to_string(),
            },
        });
        result
    }

    /// A merged view of an input's layers.
    fn view(&self, vertex: usize) -> Result<View, StepError> {
        Ok(self.store.snapshots().view(&self.layers(vertex))?)
    }

    /// Calls `work` with the vertex's inputs as trees, in their order.
    fn with_trees<T>(
        &self,
        vertex: usize,
        work: impl FnOnce(&[Tree<'_>]) -> Result<T, StepError>,
    ) -> Result<T, StepError> {
        let inputs = &self.vertex(vertex).inputs;
        let mut views = Vec::with_capacity(inputs.len());
        for input in inputs {
            views.push(match self.vertex(input.0).op {
                Op::Context(_) => None,
                _ => Some(self.view(input.0)?),
            });
        }
        let trees: Vec<Tree<'_>> = inputs
            .iter()
            .zip(&views)
            .map(|(input, view)| match (&self.vertex(input.0).op, view) {
                (_, Some(view)) => Tree::Layers(view.as_fd(), &self.layer_hashes),
                (Op::Context(context), None) => Tree::Context(&self.contexts[&context.name]),
                (_, None) => unreachable!("everything but a context has a view"),
            })
            .collect();
        work(&trees)
    }

    /// The digests of what a step selects of its inputs, in the step's own order.
    fn digest_selected(&self, vertex: usize) -> Result<Vec<[u8; 32]>, StepError> {
        match &self.vertex(vertex).op {
            Op::File(file) => self.digest_sources(vertex, file),
            Op::Exec(exec) => exec::digest::digest_mounted(self, vertex, exec),
            _ => Ok(Vec::new()),
        }
    }

    fn digest_sources(&self, vertex: usize, file: &FileOp) -> Result<Vec<[u8; 32]>, StepError> {
        // The base is not among what is copied from, and need not be here.
        let inputs = &self.vertex(vertex).inputs;
        let mut views = BTreeMap::new();
        for input in copied_inputs(file) {
            let source = inputs[input].0;
            if !matches!(self.vertex(source).op, Op::Context(_)) {
                views.insert(input, self.view(source)?);
            }
        }
        let mut selected = Vec::new();
        let mut lists = Vec::new();
        for action in &file.actions {
            let FileAction::Copy(copy) = action else {
                continue;
            };
            for source in &copy.sources {
                let tree = match (
                    &self.vertex(inputs[source.input].0).op,
                    views.get(&source.input),
                ) {
                    (Op::Context(context), _) => Tree::Context(&self.contexts[&context.name]),
                    (_, Some(view)) => Tree::Layers(view.as_fd(), &self.layer_hashes),
                    (_, None) => unreachable!("everything but a context has a view"),
                };
                let (digest, list) = selected_digest(tree, source, self.abort.flag())?;
                selected.push(digest);
                lists.push(list);
            }
        }
        self.keep_lists(vertex, lists);
        Ok(selected)
    }

    fn run_step(&self, vertex: usize) -> Result<Executed, StepError> {
        let before = self.identity(vertex);
        let step = self.vertex(vertex);
        // The record is kept under keys of the inputs as they are now: one of them may have had to run again.
        let is_wanted = match &step.op {
            Op::File(file) => !copied_inputs(file).is_empty(),
            Op::Exec(exec) => exec.selections().next().is_some(),
            _ => false,
        };
        if is_wanted && self.state(vertex).selected.is_none() {
            let selected = self.digest_selected(vertex)?;
            self.state(vertex).selected = Some(selected);
        }
        let keys = self.keys(vertex);
        let Some(&first) = keys.first() else {
            return Err(StepError::NoKey);
        };
        let Some(_turn) = self.try_lock(vertex, first)? else {
            return Ok(Executed::Busy);
        };
        let done = || {
            let changed = before.is_some_and(|before| self.identity(vertex) != Some(before));
            Executed::Done { changed }
        };
        if !step.meta.no_cache && self.look_up(vertex, first, Look::Anew)? && self.is_here(vertex) {
            self.tell_cached(vertex);
            return Ok(done());
        }
        self.drop_lost(vertex)?;
        if self.state(vertex).waited && !step.meta.no_cache {
            let text = format!(
                "not finished elsewhere, so it runs here: {}",
                step.meta.name
            );
            self.note(vertex, text);
        }
        let known = self.known(vertex);
        self.progress.event(ProgressEvent::Runs {
            vertex: VertexIndex(vertex),
            reasons: self.why(vertex, &keys, &known),
        });
        let mut failed = None;
        let ran = self.telling(vertex, || {
            let started = Instant::now();
            let info = match &step.op {
                Op::Exec(exec) => exec::execute(self, vertex, exec, &mut failed),
                Op::File(file) => self.run_file(vertex, file),
                _ => Err(StepError::NoKey),
            }?;
            self.ran.fetch_add(1, Ordering::Relaxed);
            self.record(vertex, &keys, &info, &known, started.elapsed())
        });
        if let Err(error) = ran {
            match (failed, &step.op) {
                (Some(prepared), _) => self.look_at_failure(vertex, prepared, &error),
                (None, Op::File(_)) => self.look_before(vertex, &error),
                (None, _) => {}
            }
            return Err(error);
        }
        Ok(done())
    }

    fn run_file(&self, vertex: usize, file: &FileOp) -> Result<LayerInfo, StepError> {
        let base = base_of(self.vertex(vertex));
        let parents = base.map(|base| self.layers(base)).unwrap_or_default();
        let active = self.store.snapshots().prepare(&parents)?;
        let scan = self.with_trees(vertex, |trees| {
            let base = match trees.first() {
                Some(Tree::RootFs(root) | Tree::Layers(root, _)) if file.on_base => Some(*root),
                _ => None,
            };
            let run = file::FileRun {
                op: file,
                base,
                inputs: trees,
                upper: active.upper(),
                epoch: self.epoch,
                cancelled: self.abort.flag(),
            };
            Ok(run.run()?)
        })?;
        self.store
            .publish_layer(|| Ok(active.commit_scanned(scan)?))
    }

    /// The scheduler's view of the graph.
    pub(crate) fn shapes(&self) -> Vec<VertexShape> {
        let shape = |step: &Vertex| {
            let inputs: Vec<_> = step.inputs.iter().map(|input| input.0).collect();
            let bases = match step.op {
                Op::Merge => inputs.clone(),
                _ => base_of(step).into_iter().collect(),
            };
            let selected = match &step.op {
                Op::File(file) => copied_inputs(file),
                Op::Exec(exec) => exec.selections().map(|(input, ..)| input).collect(),
                _ => Vec::new(),
            };
            let mut selected: Vec<_> = selected.into_iter().map(|i| step.inputs[i].0).collect();
            selected.sort_unstable();
            selected.dedup();
            let digest_inputs = (!selected.is_empty()).then_some(selected);
            VertexShape {
                inputs,
                bases,
                digest_inputs,
            }
        };
        self.definition.vertices().iter().map(shape).collect()
    }
}

impl Work for Operations<'_> {
    type Error = StepError;

    fn identify(&self, vertex: usize) -> Result<bool, StepError> {
        let step = self.vertex(vertex);
        match &step.op {
            Op::Image(image) => {
                let own = image
                    .diff_ids
                    .iter()
                    .map(|diff_id| StackLayer {
                        identity: Identity::of_diff_id(diff_id),
                        id: None,
                    })
                    .collect();
                self.set_outcome(vertex, Outcome { own, created: None });
                Ok(true)
            }
            Op::Context(_) => Ok(true),
            Op::Tree(tree) => {
                self.set_tree(vertex, tree);
                Ok(true)
            }
            Op::Http(_) | Op::Git(_) => self.recall_source(vertex),
            Op::Merge => {
                self.merge(vertex);
                Ok(true)
            }
            Op::Exec(_) | Op::File(_) if step.meta.no_cache => Ok(false),
            Op::Exec(_) | Op::File(_) => match self.fast_key(vertex) {
                Some(key) => self.find(vertex, key),
                None => Ok(false),
            },
        }
    }

    fn digest(&self, vertex: usize) -> Result<bool, StepError> {
        let step = self.vertex(vertex);
        let selected = self.hashing.pass(|| self.digest_selected(vertex));
        let selected = selected.inspect_err(|error| {
            // What is to be copied is not there.
            if matches!(step.op, Op::File(_)) {
                self.look_before(vertex, error);
            }
        })?;
        self.state(vertex).selected = Some(selected);
        if step.meta.no_cache {
            return Ok(false);
        }
        let Some(key) = self.slow_key(vertex) else {
            return Ok(false);
        };
        let found = self.find(vertex, key)?;
        if found {
            self.find_sooner(vertex, key);
        }
        Ok(found)
    }

    fn fetch(&self, vertex: usize) -> Result<bool, StepError> {
        match &self.vertex(vertex).op {
            Op::Context(_) => Ok(true),
            // Both are here by now, and one of them may have run again since.
            Op::Merge => {
                self.merge(vertex);
                Ok(true)
            }
            Op::Image(op) => {
                if let Some(ids) = image::present(self.store, op)? {
                    self.tell_cached(vertex);
                    self.set_image_layers(vertex, &ids);
                    return Ok(true);
                }
                let ids = self.telling(vertex, || image::materialise(self, vertex, op))?;
                self.set_image_layers(vertex, &ids);
                Ok(true)
            }
            Op::Tree(_) => match self.is_here(vertex) {
                true => Ok(true),
                false => Err(StepError::TreeLost),
            },
            Op::Http(_) | Op::Git(_) | Op::Exec(_) | Op::File(_) => {
                let here = self.is_here(vertex) || self.bring(vertex)?;
                if here {
                    self.tell_cached(vertex);
                }
                Ok(here)
            }
        }
    }

    fn execute(&self, vertex: usize) -> Result<Executed, StepError> {
        if self.looking.load(Ordering::SeqCst) {
            self.wait_for_the_end();
        }
        if self.is_cancelled() {
            return Err(StepError::Cancelled);
        }
        match &self.vertex(vertex).op {
            Op::Http(_) | Op::Git(_) => {
                let before = self.identity(vertex);
                self.fetch_source(vertex)?;
                let changed = before.is_some_and(|before| self.identity(vertex) != Some(before));
                Ok(Executed::Done { changed })
            }
            _ => self.run_step(vertex),
        }
    }

    fn wait(&self, vertex: usize) -> Result<(), StepError> {
        self.wait_turn(vertex)
    }

    fn begin_hurry(&self) {
        self.store.index().begin_burst();
    }

    fn end_hurry(&self) {
        if let Err(error) = self.store.index().end_burst() {
            // What was found may be collected once nobody uses it; nothing of this build is.
            tracing::warn!(%error, "the index could not be told what was used");
        }
    }

    fn costs(&self) -> Vec<Duration> {
        self.estimates()
    }

    fn lane(&self, action: Action) -> Lane {
        let step = &self.vertex(action.vertex());
        let may_ask = || !step.meta.no_cache && self.shared.is_active();
        match (action, &step.op) {
            // A server is asked whether its file is as it was.
            (Action::Identify(_), Op::Http(_) | Op::Git(_)) => Lane::Working,
            (Action::Identify(_), Op::Exec(_) | Op::File(_)) if may_ask() => Lane::Waiting,
            (Action::Identify(_), _) => Lane::Here,
            (Action::Digest(_), _) if may_ask() => Lane::Waiting,
            (Action::Await(_), _) => Lane::Waiting,
            (Action::Digest(_) | Action::Execute(_), _) => Lane::Working,
            (Action::Fetch(_), Op::Image(op)) => {
                match image::present(self.store, op).is_ok_and(|ids| ids.is_some()) {
                    true => Lane::Here,
                    false => Lane::Working,
                }
            }
            (Action::Fetch(vertex), Op::Exec(_) | Op::File(_)) if !self.is_here(vertex) => {
                Lane::Working
            }
            (Action::Fetch(_), _) => Lane::Here,
        }
    }
}

impl Operations<'_> {
    /// The error of a vertex, with the place in the Dockerfile that it comes from.
    pub(crate) fn step_failed(
        &self,
        vertex: usize,
        error: StepError,
        source: &SourceFile,
    ) -> BuildError {
        let meta = &self.vertex(vertex).meta;
        BuildError::Step {
            name: meta.name.clone(),
            place: Some(Box::new(Place {
                file: source.clone(),
                span: Span::new(meta.span.start, meta.span.end),
            })),
            source: Box::new(error),
        }
    }

    /// Keeps what was learnt of the folders' files for the next build.
    pub(crate) fn save_contexts(&self) {
        for context in self.contexts.values() {
            context.save();
        }
        self.layer_hashes.save();
    }
}

/// Lets so many threads pass at a time.
struct Gate {
    free: Mutex<usize>,
    freed: Condvar,
}

impl Gate {
    fn new(places: usize) -> Gate {
        Gate {
            free: Mutex::new(places.max(1)),
            freed: Condvar::new(),
        }
    }

    fn pass<T>(&self, work: impl FnOnce() -> T) -> T {
        let free = self.freed.wait_while(lock(&self.free), |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        let result = work();
        *lock(&self.free) += 1;
        self.freed.notify_one();
        result
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is in it is whole after every statement.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The inputs that a file operation copies from, in order, once each.
fn copied_inputs(file: &FileOp) -> Vec<usize> {
    let mut inputs: Vec<usize> = file
        .actions
        .iter()
        .filter_map(|action| match action {
            FileAction::Copy(copy) => Some(copy.sources.iter().map(|source| source.input)),
            FileAction::Mkdir(_) => None,
        })
        .flatten()
        .collect();
    inputs.sort_unstable();
    inputs.dedup();
    inputs
}

#[cfg(test)]
mod tests;
