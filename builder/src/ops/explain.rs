//! Why a step is about to run: its key's ingredients, compared with those of the run that comes nearest.
//!
//! What is near is told by the history: the step that it was in the last build of the same context, Dockerfile and target.
//! Without one, any record of the same operation will do. A build in which everything hits never comes here.

use std::collections::BTreeSet;
use std::sync::OnceLock;
use std::time::Duration;

use store::history::BuildId;

use super::{Operations, base_of};
use crate::cache::explain::{Ingredient, Known, Reason, compare, pair};
use crate::cache::ingredients::{Base, FileLists, SelectedSource, ingredients};
use crate::cache::{CacheKey, CacheRecord, hex};
use crate::dockerfile::ast::InstructionKind;
use crate::graph::{FileAction, Op, VertexIndex};
use crate::history::{BuildHistory, StepHistory, Verdict};
use crate::ops::Selected;
use crate::solve::ProgressEvent;

/// Builds of the same series that are looked at, so that one that failed early hides no other.
const FORMER_BUILDS_MAX: u32 = 5;

/// Name of the ingredient that says under which key the lists of files are kept.
const FILES_KEY: &str = "files in";

/// What a build is compared with.
pub(crate) struct Explainer<'a> {
    /// Builds of the same thing.
    series: [u8; 32],
    dockerfile: &'a str,
    former: OnceLock<Vec<Former>>,
    arguments: OnceLock<BTreeSet<String>>,
}

/// An earlier build, with the position in it of each of this build's steps.
pub(super) struct Former {
    pub(super) build: BuildHistory,
    pub(super) pairs: Vec<Option<usize>>,
}

impl<'a> Explainer<'a> {
    pub(crate) fn new(series: [u8; 32], dockerfile: &'a str) -> Explainer<'a> {
        Explainer {
            series,
            dockerfile,
            former: OnceLock::new(),
            arguments: OnceLock::new(),
        }
    }

    /// The names that the Dockerfile declares with ARG.
    fn arguments(&self) -> &BTreeSet<String> {
        self.arguments.get_or_init(|| {
            let (parsed, _) = crate::dockerfile::parse(self.dockerfile);
            let mut names = BTreeSet::new();
            for instruction in &parsed.instructions {
                if let InstructionKind::Arg(args) = &instruction.kind {
                    names.extend(args.iter().map(|arg| arg.name.text.clone()));
                }
            }
            names
        })
    }
}

impl Operations<'_> {
    /// What the step's key is made of.
    pub(super) fn known(&self, vertex: usize) -> Known {
        let step = self.vertex(vertex);
        let base = base_of(step).and_then(|base| {
            let identity = self.identity(base)?;
            let name = self.origin(base);
            Some(Base { identity, name })
        });
        let (digests, listed) = {
            let state = self.state(vertex);
            let lists = state.lists.as_deref().map(FileLists::of);
            (state.selected.clone().unwrap_or_default(), lists)
        };
        let sources = self.copied(vertex);
        let selected: Vec<SelectedSource> = sources
            .into_iter()
            .zip(digests)
            .map(|((pattern, from), digest)| SelectedSource {
                pattern,
                from,
                digest,
            })
            .collect();
        Known {
            ingredients: ingredients(&step.op, base.as_ref(), &selected),
            files: listed,
        }
    }

    /// What the step selects, in order: the pattern or path, and of what.
    fn copied(&self, vertex: usize) -> Vec<(String, String)> {
        let step = self.vertex(vertex);
        if let Op::Exec(exec) = &step.op {
            let mounted = exec.selections();
            let named = mounted
                .map(|(input, path, _)| (path.to_owned(), self.origin(step.inputs[input].0)));
            return named.collect();
        }
        let Op::File(file) = &step.op else {
            return Vec::new();
        };
        let mut sources = Vec::new();
        for action in &file.actions {
            if let FileAction::Copy(copy) = action {
                sources.extend(copy.sources.iter().map(|source| {
                    let from = self.origin(step.inputs[source.input].0);
                    (source.pattern.clone(), from)
                }));
            }
        }
        sources
    }

    /// What a vertex is, in the words of an ingredient.
    fn origin(&self, vertex: usize) -> String {
        let step = self.vertex(vertex);
        match &step.op {
            Op::Image(image) => {
                let digest = match (&image.manifest, image.diff_ids.last()) {
                    (Some(manifest), _) => manifest.to_string(),
                    // Built here and never pushed: its last layer is as good a name as any.
                    (None, Some(layer)) => layer.to_string(),
                    (None, None) => String::new(),
                };
                format!("image {} {digest}", image.reference.familiar())
            }
            Op::Context(context) => context.name.clone(),
            _ => format!("step {}", step.meta.name),
        }
    }

    /// Why the step runs, now that no record of `keys` was found, or none that is of use. `known` is what they are made of.
    pub(super) fn why(&self, vertex: usize, keys: &[CacheKey], known: &Known) -> Vec<Reason> {
        if self.vertex(vertex).meta.no_cache {
            return vec![Reason::bare(Ingredient::NoCache)];
        }
        if let Some(lost) = self.lost_layer(vertex) {
            return vec![Reason::about(Ingredient::LayerMissing, lost)];
        }
        for former in self.former() {
            let Some(step) = former.pairs[vertex].map(|at| &former.build.steps[at]) else {
                continue;
            };
            if let Some(reasons) = self.compare_with(&former.build, step, keys, known) {
                return reasons;
            }
        }
        let op = crate::cache::op_digest(&self.vertex(vertex).op);
        let records = self.store.index().records_by_op(&op).unwrap_or_default();
        for (_, row) in records {
            if let Some(old) = self.read_known(&row.ingredients) {
                let reasons = compare(&old, known, self.explainer.arguments());
                if !reasons.is_empty() {
                    return reasons;
                }
            }
        }
        vec![Reason::bare(Ingredient::NoRecord)]
    }

    /// Whether the step that this one was in the last build made the same files: what reads them need not run again then.
    pub(super) fn gave_the_same(&self, vertex: usize, record: &CacheRecord) -> bool {
        let former = self.former().iter();
        let mut steps = former.filter_map(|former| {
            let at = former.pairs[vertex]?;
            former.build.steps[at].cache_key()
        });
        let row = steps
            .next()
            .and_then(|key| self.store.index().record_peek(&key.0).ok()?);
        let before = row.and_then(|row| CacheRecord::decode(&row.result));
        let tree = |record: &CacheRecord| record.layer.map(|layer| layer.tree);
        before.is_some_and(|before| tree(&before) == tree(record))
    }

    /// The layer of the record that was found, if it is nowhere.
    fn lost_layer(&self, vertex: usize) -> Option<String> {
        let state = self.state(vertex);
        let mut own = state.outcome.iter().flat_map(|outcome| &outcome.own);
        let lost = own.find_map(|layer| layer.id.filter(|id| !self.store.snapshots().has(id)));
        lost.map(|id| id.to_string())
    }

    /// Why the step runs, though it was `step` in the earlier build; `None` if that says nothing.
    fn compare_with(
        &self,
        build: &BuildHistory,
        step: &StepHistory,
        keys: &[CacheKey],
        known: &Known,
    ) -> Option<Vec<Reason>> {
        if matches!(step.verdict, Verdict::Failed | Verdict::Unfinished) {
            let id = build.id.parse::<BuildId>().ok()?;
            return Some(vec![Reason::about(Ingredient::FailedBefore, id.as_str())]);
        }
        let key = step.cache_key()?;
        if keys.contains(&key) {
            return Some(vec![Reason::bare(Ingredient::RecordRemoved)]);
        }
        let record = self.store.index().record_peek(&key.0).ok()?;
        let Some(old) = record.and_then(|record| self.read_known(&record.ingredients)) else {
            return Some(vec![Reason::bare(Ingredient::RecordRemoved)]);
        };
        let reasons = compare(&old, known, self.explainer.arguments());
        (!reasons.is_empty()).then_some(reasons)
    }

    fn read_known(&self, ingredients: &[u8]) -> Option<Known> {
        let ingredients: crate::cache::Ingredients = serde_json::from_slice(ingredients).ok()?;
        let files = ingredients.get(FILES_KEY).and_then(|key| {
            let key = blake3::Hash::from_hex(key).ok()?;
            let bytes = self.store.index().record_files(key.as_bytes()).ok()??;
            FileLists::decode(&bytes)
        });
        Some(Known { ingredients, files })
    }

    /// What is kept of `known` with the records of `keys`: the ingredients, and the first key's files.
    pub(super) fn encode_known(&self, known: &Known, keys: &[CacheKey]) -> (Vec<u8>, Vec<u8>) {
        let mut ingredients = known.ingredients.clone();
        let mut files = Vec::new();
        if let (Some(lists), Some(first)) = (&known.files, keys.first()) {
            files = lists.encode();
            let key = hex(&first.0);
            ingredients.insert(FILES_KEY.to_owned(), key);
        }
        let ingredients = serde_json::to_vec(&ingredients).expect("texts are JSON");
        (ingredients, files)
    }

    /// The latest builds of the same thing, latest first.
    pub(super) fn former(&self) -> &[Former] {
        self.explainer.former.get_or_init(|| {
            let history = self.store.history();
            let ids = history.latest(&self.explainer.series, FORMER_BUILDS_MAX);
            let names: Vec<&str> = self
                .definition
                .vertices()
                .iter()
                .map(|vertex| vertex.meta.name.as_str())
                .collect();
            let mut former = Vec::new();
            for id in ids.unwrap_or_default() {
                // A history that cannot be read explains nothing, and is no reason to stop.
                let Ok(Some(build)) = BuildHistory::read(self.store, &id) else {
                    continue;
                };
                let old: Vec<&str> = build.steps.iter().map(|step| step.name.as_str()).collect();
                let pairs = pair(&old, &names);
                former.push(Former { build, pairs });
            }
            former
        })
    }

    /// Keeps what a step's copies select until it is known whether it has to run.
    pub(crate) fn keep_lists(&self, vertex: usize, lists: Vec<Selected>) {
        self.state(vertex).lists = Some(lists);
    }

    /// Tells what the cache knew of a vertex.
    pub(super) fn tell_known(&self, vertex: usize, unneeded: bool) {
        let found = self.state(vertex).found.clone();
        let record = found.as_ref().map(|(_, record)| record);
        self.progress.event(ProgressEvent::Known {
            vertex: VertexIndex(vertex),
            key: found.as_ref().map(|(key, _)| *key),
            took: record
                .and_then(|record| record.took)
                .map(Duration::from_micros),
            bytes: record.and_then(|record| record.bytes),
            unneeded,
        });
    }

    /// Tells of the steps whose results are known and were never asked for.
    pub(crate) fn tell_unneeded(&self) {
        for vertex in 0..self.states.len() {
            let state = self.state(vertex);
            let known = !state.told && state.outcome.is_some();
            drop(state);
            if known {
                self.tell_known(vertex, true);
            }
        }
    }
}
