//! What builds share: layers, records and locks; and what steps do.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use super::case::{Case, Kind, Paths, Step};
use super::naive;

/// A layer's files.
pub(super) type Files = BTreeMap<u8, u64>;
/// A layer is named by what is in it.
pub(super) type Layer = u64;
pub(super) type Key = u64;
/// What an operation is, whatever it is done on.
pub(super) type Operation = u64;

/// A step that was run to its end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Run {
    pub(super) vertex: usize,
    pub(super) key: Key,
}

#[derive(Clone, Debug, Default)]
pub(super) struct World {
    /// What is in each layer that ever was.
    pub(super) content: BTreeMap<Layer, Files>,
    /// The layers that are here.
    pub(super) disk: BTreeSet<Layer>,
    pub(super) records: BTreeMap<Key, Option<Layer>>,
    /// Held by a build.
    pub(super) locks: BTreeMap<Key, usize>,
    pub(super) runs: Vec<Run>,
    /// All that operations ever gave on what they read.
    pub(super) given: BTreeMap<(Operation, u64), BTreeSet<Option<Layer>>>,
    nonce: u64,
}

pub(super) fn digest(value: impl Hash) -> u64 {
    // Its keys are fixed.
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What a step knows of an input: the layers of its result, or the files of a folder.
#[derive(Clone, Debug)]
pub(super) enum Input {
    Stack(Vec<Layer>),
    Folder(Files),
}

impl Step {
    pub(super) fn op(&self) -> Operation {
        digest((
            self.kind,
            self.salt,
            &self.reads,
            self.variety,
            self.on_base,
        ))
    }

    /// Covers all of all inputs; none where one is a folder.
    pub(super) fn fast_key(&self, inputs: &[Input]) -> Option<Key> {
        let mut stacks = Vec::new();
        for input in inputs {
            match input {
                Input::Stack(layers) => stacks.push(layers),
                Input::Folder(_) => return None,
            }
        }
        Some(digest(("fast", self.op(), &self.selects, stacks)))
    }

    /// Covers the base, and what is selected of the others.
    pub(super) fn slow_key(&self, base: Option<&[Layer]>, selected: &[u64]) -> Key {
        digest(("slow", self.op(), base, selected))
    }

    /// The files of an image or a folder.
    pub(super) fn source(&self) -> Files {
        let count = u8::try_from(self.salt % 3 + 1).expect("small");
        let files = (0..count).map(|path| (path, digest((self.salt, path)) % 5));
        files.collect()
    }
}

fn restricted(files: &Files, paths: &Paths) -> Files {
    let files = files.iter().filter(|(path, _)| paths.contains(path));
    files.map(|(&path, &value)| (path, value)).collect()
}

impl World {
    /// What the case's earlier builds left.
    pub(super) fn of(case: &Case) -> World {
        let mut world = World::default();
        for step in &case.steps {
            if step.kind == Kind::Image {
                world.layer(step.source());
            }
        }
        for left in &case.left {
            naive::earlier(case, left, &mut world);
        }
        world
    }

    /// Names a layer of these files; it is not here by that.
    pub(super) fn layer(&mut self, files: Files) -> Layer {
        let layer = digest(&files);
        self.content.insert(layer, files);
        layer
    }

    pub(super) fn files(&self, input: &Input) -> Files {
        match input {
            Input::Folder(files) => files.clone(),
            Input::Stack(layers) => {
                let mut files = Files::new();
                for layer in layers {
                    files.extend(&self.content[layer]);
                }
                files
            }
        }
    }

    /// The digests of what a step selects.
    pub(super) fn selected(&self, step: &Step, inputs: &[Input]) -> Vec<u64> {
        let selects = step.selects.iter();
        selects
            .map(|(at, paths)| digest(restricted(&self.files(&inputs[*at]), paths)))
            .collect()
    }

    /// The keys of a step's record, the one that says most first.
    pub(super) fn keys(&self, step: &Step, inputs: &[Input]) -> Vec<Key> {
        let slow = (!step.selects.is_empty()).then(|| {
            let base = match inputs.first() {
                Some(Input::Stack(layers)) if step.on_base => Some(&layers[..]),
                _ => None,
            };
            step.slow_key(base, &self.selected(step, inputs))
        });
        slow.into_iter().chain(step.fast_key(inputs)).collect()
    }

    /// A digest of all that a step's result depends on.
    pub(super) fn reads(&self, step: &Step, inputs: &[Input]) -> u64 {
        let base = step.on_base.then(|| {
            let files = self.files(&inputs[0]);
            match (&step.reads, step.kind) {
                (Some(paths), Kind::Exec) => restricted(&files, paths),
                (None, Kind::Exec) => files,
                _ => Files::new(),
            }
        });
        digest((base, self.selected(step, inputs)))
    }

    /// Does what the step does; the layer it makes is here then.
    pub(super) fn give(&mut self, step: &Step, inputs: &[Input]) -> Option<Layer> {
        let reads = self.reads(step, inputs);
        let files = match step.kind {
            Kind::Copy => {
                let mut files = Files::new();
                for (at, paths) in &step.selects {
                    files.extend(restricted(&self.files(&inputs[*at]), paths));
                }
                files
            }
            _ => {
                let mut value = digest((step.op(), reads)) % step.variety;
                if step.volatile {
                    self.nonce += 1;
                    value = self.nonce;
                }
                let path = u8::try_from(step.salt % 4).expect("small");
                // One of few results is to change nothing.
                match value == 0 && step.variety < 4 {
                    true => Files::new(),
                    false => Files::from([(path, value)]),
                }
            }
        };
        let layer = (!files.is_empty()).then(|| self.layer(files));
        self.disk.extend(layer);
        self.given
            .entry((step.op(), reads))
            .or_default()
            .insert(layer);
        layer
    }
}
