//! What is known of each vertex's result: its layers, and the identity that keys are made of.

use std::sync::{MutexGuard, PoisonError};

use store::layer::LayerId;
use store::oci::DiffId;

use super::Operations;
use crate::cache::shared::source::SharedSource;
use crate::cache::{CacheKey, CacheRecord, Identity, RecordedLayer};
use crate::contexts::FetchedTree;
use crate::error::StepError;
use crate::graph::{Op, Vertex, VertexIndex};
use crate::ops::Selected;

/// A layer in a stack.
#[derive(Clone, Copy, Debug)]
pub(crate) struct StackLayer {
    /// What it is, for keys.
    pub(super) identity: Identity,
    /// Its directory; not known for a layer of an image until that was fetched.
    pub(crate) id: Option<LayerId>,
}

/// What is known of a vertex's result.
#[derive(Clone, Debug, Default)]
pub(super) struct Outcome {
    /// The layers that this vertex adds to its base's: an image's all, a step's one or none.
    pub(super) own: Vec<StackLayer>,
    /// When it ran, in seconds since 1970.
    pub(super) created: Option<i64>,
}

#[derive(Debug, Default)]
pub(super) struct VertexState {
    pub(super) outcome: Option<Outcome>,
    /// What the result is with all that it stands on; none for a folder.
    pub(super) identity: Option<Identity>,
    /// The digests of what its copies select, once they were computed.
    pub(super) selected: Option<Vec<[u8; 32]>>,
    /// What those are, file by file.
    pub(super) lists: Option<Vec<Selected>>,
    /// The record that its outcome was found in.
    pub(super) found: Option<(CacheKey, CacheRecord)>,
    /// What other machines are told of what was fetched from elsewhere.
    pub(super) sources: Vec<SharedSource>,
    /// Whether people were told of it already.
    pub(super) told: bool,
    /// Whether somebody else was found to be running it.
    pub(super) waited: bool,
}

impl Operations<'_> {
    /// The layer that a step added, once it is known; none for a step that changed nothing.
    pub(crate) fn layer(&self, vertex: VertexIndex) -> Option<LayerId> {
        match self.definition.vertex(vertex).op {
            Op::Exec(_) | Op::File(_) | Op::Tree(_) | Op::Http(_) | Op::Git(_) => self
                .state(vertex.0)
                .outcome
                .as_ref()?
                .own
                .first()
                .and_then(|layer| layer.id),
            Op::Image(_) | Op::Context(_) | Op::Merge => None,
        }
    }

    /// The layer that each vertex added, where that is known: none for one that changed nothing. Of images it is not told.
    pub(crate) fn results(&self) -> Vec<Option<Option<LayerId>>> {
        let result = |vertex: usize| match self.vertex(vertex).op {
            Op::Exec(_) | Op::File(_) | Op::Http(_) | Op::Git(_) => {
                let state = self.state(vertex);
                match state.outcome.as_ref()?.own.first() {
                    None => Some(None),
                    Some(layer) => layer.id.map(Some),
                }
            }
            Op::Image(_) | Op::Context(_) | Op::Tree(_) | Op::Merge => None,
        };
        (0..self.states.len()).map(result).collect()
    }

    /// Says what the whole result of a vertex is, which nothing will be done for.
    pub(crate) fn set_layers(&self, vertex: VertexIndex, layers: &[LayerId]) {
        let known = |id: &LayerId| StackLayer {
            // Nothing is looked for: no key is made of it.
            identity: Identity([0; 32]),
            id: Some(*id),
        };
        self.state(vertex.0).outcome = Some(Outcome {
            own: layers.iter().map(known).collect(),
            created: None,
        });
    }

    /// Digests what a vertex's mounts show, where its inputs are here.
    pub(crate) fn select(&self, vertex: VertexIndex) -> Result<(), StepError> {
        let selected = self.digest_selected(vertex.0)?;
        self.state(vertex.0).selected = Some(selected);
        Ok(())
    }

    /// When a step ran, in seconds since 1970.
    pub(crate) fn created(&self, vertex: VertexIndex) -> Option<i64> {
        self.state(vertex.0).outcome.as_ref()?.created
    }

    /// The directories of a vertex's whole result, oldest first. The vertex is complete.
    pub(crate) fn layers(&self, vertex: usize) -> Vec<LayerId> {
        self.stack(vertex)
            .iter()
            .filter_map(|layer| layer.id)
            .collect()
    }

    pub(super) fn state(&self, vertex: usize) -> MutexGuard<'_, VertexState> {
        self.states[vertex]
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The vertex's result as a stack, oldest layer first.
    pub(super) fn stack(&self, vertex: usize) -> Vec<StackLayer> {
        let mut parts = Vec::new();
        let mut next = Some(vertex);
        while let Some(vertex) = next {
            if let Some(outcome) = &self.state(vertex).outcome {
                parts.push(outcome.own.clone());
            }
            next = base_of(self.vertex(vertex));
        }
        parts.into_iter().rev().flatten().collect()
    }

    /// The layers that a vertex adds to its base's.
    pub(super) fn own_layers(&self, vertex: usize) -> Vec<StackLayer> {
        let outcome = &self.state(vertex).outcome;
        outcome
            .as_ref()
            .map_or_else(Vec::new, |outcome| outcome.own.clone())
    }

    /// What a vertex's result is; none for a folder.
    pub(super) fn identity(&self, vertex: usize) -> Option<Identity> {
        self.state(vertex).identity
    }

    /// Sets what a vertex's result is. What it stands on is known.
    pub(super) fn set_outcome(&self, vertex: usize, outcome: Outcome) {
        let base = self.base_identity(vertex);
        let layers = outcome.own.iter().map(|layer| layer.identity);
        let identity = layers.fold(
            base.unwrap_or_else(Identity::of_nothing),
            Identity::with_layer,
        );
        let mut state = self.state(vertex);
        state.identity = Some(identity);
        state.outcome = Some(outcome);
    }

    pub(super) fn base_identity(&self, vertex: usize) -> Option<Identity> {
        base_of(self.vertex(vertex)).and_then(|base| self.identity(base))
    }

    /// Whether the vertex's own layer stands on this disk.
    pub(super) fn is_here(&self, vertex: usize) -> bool {
        let state = self.state(vertex);
        let own = state
            .outcome
            .as_ref()
            .map(|outcome| outcome.own.as_slice())
            .unwrap_or_default();
        own.iter()
            .all(|layer| layer.id.is_some_and(|id| self.store.snapshots().has(&id)))
    }

    pub(super) fn set_tree(&self, vertex: usize, tree: &FetchedTree) {
        let layer = tree.layer.as_ref().map(|layer| StackLayer {
            identity: Identity::of_tree(layer.tree),
            id: Some(layer.id),
        });
        let own = layer.into_iter().collect();
        self.set_outcome(vertex, Outcome { own, created: None });
    }

    /// What a merge adds to its base: all that its upper input is.
    pub(super) fn merge(&self, vertex: usize) {
        if let [_, upper] = self.vertex(vertex).inputs[..] {
            let own = self.stack(upper.0);
            self.set_outcome(vertex, Outcome { own, created: None });
        }
    }

    pub(super) fn set_image_layers(&self, vertex: usize, ids: &[LayerId]) {
        let mut state = self.state(vertex);
        if let Some(outcome) = &mut state.outcome {
            for (layer, id) in outcome.own.iter_mut().zip(ids) {
                layer.id = Some(*id);
            }
        }
    }

    /// The DiffIDs of the image that a result stands on, oldest first.
    pub(crate) fn base_diff_ids(&self, vertex: VertexIndex) -> Vec<DiffId> {
        let mut next = Some(vertex.0);
        while let Some(vertex) = next {
            if let Op::Image(image) = &self.vertex(vertex).op {
                return image.diff_ids.clone();
            }
            next = base_of(self.vertex(vertex));
        }
        Vec::new()
    }
}

/// The input that a vertex's result is stacked on.
pub(crate) fn base_of(vertex: &Vertex) -> Option<usize> {
    match &vertex.op {
        Op::Merge => vertex.inputs.first().map(|input| input.0),
        Op::Exec(exec) if exec.on_base => vertex.inputs.first().map(|input| input.0),
        Op::File(file) if file.on_base => vertex.inputs.first().map(|input| input.0),
        _ => None,
    }
}

pub(super) fn stack_layer(layer: &RecordedLayer) -> StackLayer {
    StackLayer {
        identity: Identity::of_tree(layer.tree),
        id: Some(layer.id),
    }
}
