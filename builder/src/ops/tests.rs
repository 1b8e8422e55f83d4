//! Large graphs of which everything is cached: what is asked of the store, and nothing more.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use store::Store;
use store::index::RecordRow;
use store::layer::{LayerInfo, TreeDigest};

use super::{Explainer, Operations};
use crate::cache::shared::import::{Notes, SharedCache};
use crate::cache::{self, CacheRecord, Identity, RecordedLayer};
use crate::error::StepError;
use crate::graph::{
    CopyAction, CopySource, Definition, ExecOp, FileAction, FileOp, Op, OpMetadata, VertexIndex,
};
use crate::remote::Remote;
use crate::request::RunSettings;
use crate::solve::cancel::Cancel;
use crate::solve::driver::{self, Executed, Lane, Work};
use crate::solve::scheduler::{Action, Want};
use crate::solve::{ProgressEvent, ProgressSink};

fn command(number: usize, on_base: bool) -> Op {
    Op::Exec(ExecOp {
        argv: vec![format!("step {number}")],
        cwd: "/".to_owned(),
        on_base,
        ..ExecOp::default()
    })
}

/// Stages of so many steps each, one on the other; the last step copies from all stages.
fn stages(stages: usize, steps: usize) -> Definition {
    let mut definition = Definition::new();
    let meta = |number: usize| OpMetadata {
        name: format!("[{number}]"),
        ..OpMetadata::default()
    };
    let mut ends = Vec::new();
    for stage in 0..stages {
        let mut last = None;
        for step in 0..steps {
            let number = stage * steps + step;
            let inputs: Vec<VertexIndex> = last.into_iter().collect();
            let op = command(number, !inputs.is_empty());
            last = Some(definition.add(op, inputs, meta(number)));
        }
        ends.extend(last);
    }
    let source = |input| CopySource {
        input,
        pattern: "/".to_owned(),
        ..CopySource::default()
    };
    let action = FileAction::Copy(CopyAction {
        sources: (0..stages).map(source).collect(),
        dest: "/".to_owned(),
        ..CopyAction::default()
    });
    let op = Op::File(FileOp {
        on_base: false,
        actions: vec![action],
    });
    definition.add(op, ends, meta(stages * steps));
    definition
}

/// A layer, whatever is in it.
fn layer(store: &Store) -> LayerInfo {
    let active = store.snapshots().prepare(&[]).unwrap();
    std::fs::create_dir(active.upper().join("made")).unwrap();
    let commit = || Ok(active.commit()?);
    store.publish_layer::<store::StoreError>(commit).unwrap()
}

/// Writes records as if all of it had run.
fn record_all(store: &Store, definition: &Definition) {
    let id = layer(store).id;
    let mut identities: Vec<Identity> = Vec::new();
    for (number, vertex) in definition.vertices().iter().enumerate() {
        let inputs = vertex.inputs.iter().map(|input| Some(identities[input.0]));
        let inputs: Vec<_> = inputs.collect();
        let key = cache::fast_key(&vertex.op, &inputs).unwrap();
        let tree = TreeDigest(*blake3::hash(&number.to_le_bytes()).as_bytes());
        let record = CacheRecord {
            layer: Some(RecordedLayer { id, tree }),
            created: 0,
            took: Some(1),
            bytes: Some(1),
        };
        let row = RecordRow {
            op: cache::op_digest(&vertex.op),
            result: record.encode(),
            layers: vec![id],
            ingredients: b"{}".to_vec(),
            created: 0,
        };
        store.index().record_put(&key.0, &row).unwrap();
        let on_base = matches!(&vertex.op, Op::Exec(exec) if exec.on_base);
        let base = match (on_base, inputs.first()) {
            (true, Some(Some(base))) => *base,
            _ => Identity::of_nothing(),
        };
        identities.push(base.with_layer(Identity::of_tree(tree)));
    }
}

/// Counts what is asked for.
struct Counted<'a> {
    operations: &'a Operations<'a>,
    identified: AtomicUsize,
    fetched: AtomicUsize,
}

impl Work for Counted<'_> {
    type Error = StepError;

    fn identify(&self, vertex: usize) -> Result<bool, StepError> {
        self.identified.fetch_add(1, Ordering::Relaxed);
        self.operations.identify(vertex)
    }

    fn digest(&self, vertex: usize) -> Result<bool, StepError> {
        panic!("vertex {vertex} is digested, though its fast key hits")
    }

    fn fetch(&self, vertex: usize) -> Result<bool, StepError> {
        self.fetched.fetch_add(1, Ordering::Relaxed);
        self.operations.fetch(vertex)
    }

    fn execute(&self, vertex: usize) -> Result<Executed, StepError> {
        panic!("vertex {vertex} runs, though all is cached")
    }

    fn wait(&self, vertex: usize) -> Result<(), StepError> {
        panic!("vertex {vertex} is waited for, though nobody runs anything")
    }

    fn costs(&self) -> Vec<Duration> {
        panic!("nothing is to be ordered")
    }

    fn lane(&self, action: Action) -> Lane {
        assert_eq!(self.operations.lane(action), Lane::Here, "{action:?}");
        Lane::Here
    }
}

#[derive(Default)]
struct Told(Mutex<BTreeMap<&'static str, usize>>);

impl ProgressSink for Told {
    fn event(&self, event: ProgressEvent) {
        let kind = match event {
            ProgressEvent::Known { .. } => "known",
            ProgressEvent::Cached { .. } => "cached",
            _ => "other",
        };
        *self.0.lock().unwrap().entry(kind).or_default() += 1;
    }
}

/// Calls `with` with the operations of one solve, and what cancels and aborts it.
fn with_operations<T>(
    store: &Arc<Store>,
    definition: &Definition,
    progress: &Arc<dyn ProgressSink>,
    with: impl FnOnce(&Operations<'_>, &Cancel, &Cancel) -> T,
) -> T {
    let remote = Remote::new(Box::new(Default::default));
    let (cancel, abort) = (Cancel::new().unwrap(), Cancel::new().unwrap());
    let settings = RunSettings::default();
    let operations = Operations::new(
        store,
        &remote,
        definition,
        BTreeMap::new(),
        progress,
        &cancel,
        &abort,
        &settings,
        None,
        0,
        None,
        Explainer::new([0; 32], ""),
        SharedCache::new(Vec::new(), Notes::new(progress)),
        1,
    );
    with(&operations, &cancel, &abort)
}

/// Solves a graph of which everything is cached: how much was identified, fetched and told.
fn solve_cached(definition: &Definition) -> (usize, usize, BTreeMap<&'static str, usize>) {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path()).unwrap());
    record_all(&store, definition);
    let told = Arc::new(Told::default());
    let progress = Arc::clone(&told) as Arc<dyn ProgressSink>;
    let counts = with_operations(
        &store,
        definition,
        &progress,
        |operations, cancel, abort| {
            let counted = Counted {
                operations,
                identified: AtomicUsize::new(0),
                fetched: AtomicUsize::new(0),
            };
            let root = definition.vertices().len() - 1;
            let asked = (&[root][..], Want::Content);
            driver::solve(&counted, operations.shapes(), asked, 1, cancel, abort).unwrap();
            let count = AtomicUsize::into_inner;
            (count(counted.identified), count(counted.fetched))
        },
    );
    let told = told.0.lock().unwrap().clone();
    (counts.0, counts.1, told)
}

#[test]
fn what_was_found_by_its_content_is_found_without_looking_the_next_time() {
    let root = tempfile::tempdir().unwrap();
    let store = Arc::new(Store::open(root.path()).unwrap());
    let definition = stages(1, 2);
    let copy = definition.vertices().len() - 1;
    record_all(&store, &definition);
    let progress: Arc<dyn ProgressSink> = Arc::new(Told::default());
    // As if all of it had run on another stage, whose files were the same.
    with_operations(&store, &definition, &progress, |operations, _, _| {
        for vertex in 0..=copy {
            assert!(operations.identify(vertex).unwrap());
        }
        let fast = operations.fast_key(copy).unwrap();
        let row = store.index().record_peek(&fast.0).unwrap().unwrap();
        assert!(store.index().record_remove(&fast.0).unwrap());
        assert!(!operations.digest(copy).unwrap());
        let slow = operations.slow_key(copy).unwrap();
        store.index().record_put(&slow.0, &row).unwrap();
    });
    let found = |by_inputs: bool| {
        with_operations(&store, &definition, &progress, |operations, _, _| {
            for vertex in 0..copy {
                assert!(operations.identify(vertex).unwrap());
            }
            assert_eq!(operations.identify(copy).unwrap(), by_inputs);
            assert!(by_inputs || operations.digest(copy).unwrap());
        });
    };
    found(false);
    found(true);
}

#[test]
fn of_a_hundred_stages_of_a_hundred_steps_only_the_end_is_fetched() {
    let (identified, fetched, told) = solve_cached(&stages(100, 100));
    assert_eq!((identified, fetched), (10_001, 1));
    assert_eq!(told, BTreeMap::from([("known", 1), ("cached", 1)]));
}

#[test]
fn ten_thousand_steps_one_on_the_other_are_looked_up_once_each() {
    let mut definition = stages(1, 10_000);
    // Stands on the last of them, so that all are part of it.
    let last = VertexIndex(9_999);
    let end = command(10_000, true);
    definition.add(end, vec![last], OpMetadata::default());
    let (identified, fetched, told) = solve_cached(&definition);
    assert_eq!((identified, fetched), (10_001, 10_001));
    assert_eq!(
        told,
        BTreeMap::from([("known", 10_001), ("cached", 10_001)])
    );
}
