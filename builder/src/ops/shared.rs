//! Results that are elsewhere: taken over from a shared cache, and brought here when something reads them.
//!
//! A layer that is elsewhere is known by its DiffID and its tree, which is all that keys and an image's configuration are
//! made of. It comes from the shared cache that had its record, or from a repository that is known to have its blob.

use store::StoreError;
use store::cache_mounts::CacheMountName;
use store::index::RecordRow;
use store::layer::LayerId;
use store::oci::{DiffId, Reference};

use super::Operations;
use super::exec::mounts::cache_name;
use super::recall::Look;
use super::results::{Outcome, base_of, stack_layer};
use crate::cache::shared::import::{self, FetchError, Hit};
use crate::cache::shared::record::SharedLayer;
use crate::cache::{CacheKey, CacheRecord, RecordedLayer};
use crate::error::StepError;
use crate::graph::exec::MountKind;
use crate::graph::{Op, VertexIndex};
use crate::solve::OfVertex;
use crate::transfer;

impl Operations<'_> {
    /// Looks a result up, here and then in the shared caches.
    pub(super) fn find(&self, vertex: usize, key: CacheKey) -> Result<bool, StepError> {
        if self.look_up(vertex, key, Look::Soon)? {
            return Ok(true);
        }
        if self.is_cancelled() || self.vertex(vertex).op.is_private() {
            return Ok(false);
        }
        match self.shared.look_up(&key) {
            None => Ok(false),
            Some(hit) => self.adopt(vertex, key, &hit).map(|()| true),
        }
    }

    /// Takes a record over. A layer of the same content that is here already stands for its own.
    fn adopt(&self, vertex: usize, key: CacheKey, hit: &Hit) -> Result<(), StepError> {
        let record = &hit.record;
        let standing = match &record.layer {
            None => None,
            Some(layer) => self.standing(layer)?,
        };
        let known = record.known(standing);
        // What can be had again without this cache's being named is worth a record of our own.
        let kept = match (&record.layer, self.shared.repository(hit)) {
            (None, _) => true,
            (Some(layer), Some(repository)) => {
                transfer::note(self.store, repository, &layer.diff_id, &layer.blob)?;
                true
            }
            (Some(_), None) => known.layer.is_some_and(|layer| self.has(&layer.id)),
        };
        if kept {
            self.keep_record(key, hit, &known)?;
        }
        let outcome = Outcome {
            own: known.layer.iter().map(stack_layer).collect(),
            created: Some(known.created),
        };
        self.set_outcome(vertex, outcome);
        self.state(vertex).found = Some((key, known));
        Ok(())
    }

    fn keep_record(&self, key: CacheKey, hit: &Hit, known: &CacheRecord) -> Result<(), StepError> {
        let ingredients = serde_json::to_vec(&hit.record.ingredients);
        let row = RecordRow {
            op: hit.record.op,
            result: known.encode(),
            layers: known.layer.iter().map(|layer| layer.id).collect(),
            ingredients: ingredients.expect("texts"),
            created: known.created,
        };
        let put = self.store.index().record_put(&key.0, &row);
        Ok(put.map_err(StoreError::from)?)
    }

    /// A layer on this disk that is the one of a record.
    fn standing(&self, layer: &SharedLayer) -> Result<Option<LayerId>, StepError> {
        let index = self.store.index();
        let same = index.layer_by_diff_id(&layer.diff_id);
        let alike = index.layers_by_tree(&layer.tree);
        let alike = alike.map_err(StoreError::from)?;
        let all = same.map_err(StoreError::from)?.into_iter().chain(alike);
        let mut ids = all.map(|info| info.id);
        Ok(ids.find(|id| self.has(id)))
    }

    fn has(&self, id: &LayerId) -> bool {
        self.store.snapshots().has(id)
    }

    /// Brings the layer of a step's recorded result here; false if it is nowhere, so that the step has to run.
    pub(super) fn bring(&self, vertex: usize) -> Result<bool, StepError> {
        let found = self.state(vertex).found.clone();
        let Some((key, record)) = found else {
            return Ok(false);
        };
        let Some(recorded) = record.layer else {
            return Ok(true);
        };
        match self.bring_layer(vertex, key, &recorded) {
            Ok(Some(id)) => {
                let layer = RecordedLayer { id, ..recorded };
                let known = CacheRecord {
                    layer: Some(layer),
                    ..record
                };
                if let Some(hit) = self.shared.hit(&key) {
                    self.keep_record(key, &hit, &known)?;
                }
                let outcome = Outcome {
                    own: vec![stack_layer(&layer)],
                    created: Some(known.created),
                };
                self.set_outcome(vertex, outcome);
                self.state(vertex).found = Some((key, known));
                Ok(true)
            }
            Ok(None) => Ok(false),
            Err(error) if error.is_local() => Err(StepError::SharedCache(Box::new(error))),
            Err(error) => {
                let name = &self.vertex(vertex).meta.name;
                self.shared.give_up(&key, name, &error);
                let removed = self.store.index().record_remove(&key.0);
                removed.map_err(StoreError::from)?;
                Ok(false)
            }
        }
    }

    fn bring_layer(
        &self,
        vertex: usize,
        key: CacheKey,
        recorded: &RecordedLayer,
    ) -> Result<Option<LayerId>, FetchError> {
        let progress = OfVertex::before(VertexIndex(vertex), self.progress);
        // A record of our own may outlive its layer, which a shared cache may still have.
        if !self.vertex(vertex).op.is_private()
            && let Some(hit) = self.shared.look_up(&key)
            && let Some(layer) = &hit.record.layer
            && layer.tree == recorded.tree
        {
            let fetched = self
                .shared
                .fetch(self.store, self.remote, &hit, layer, &progress);
            return fetched.map(Some);
        }
        let LayerId::Unpacked(diff_id) = recorded.id else {
            return Ok(None);
        };
        let Some((reference, blob)) = transfer::whereabouts(self.store, &diff_id)? else {
            return Ok(None);
        };
        let layer = SharedLayer {
            tree: recorded.tree,
            diff_id,
            blob,
        };
        import::fetch_from(self.store, self.remote, &reference, &layer, &progress)?;
        import::verify_tree(self.store, &layer).map(Some)
    }

    /// Whether every layer of a result is here, or can be had where its image is wanted: with nothing but what the store
    /// knows.
    pub(crate) fn can_stay_away(&self, vertex: usize) -> Result<bool, StepError> {
        for layer in self.stack(vertex) {
            let there = match layer.id {
                // Of an image, whose manifest says where its layers are.
                None => true,
                Some(id) if self.has(&id) => true,
                Some(LayerId::Unpacked(diff_id)) => self.is_elsewhere(&diff_id)?,
                Some(LayerId::Built(_)) => false,
            };
            if !there {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn is_elsewhere(&self, diff_id: &DiffId) -> Result<bool, StepError> {
        let found: Option<(Reference, _)> = transfer::whereabouts(self.store, diff_id)?;
        Ok(found.is_some())
    }

    /// What names the cache mounts of all steps that this build has looked at.
    pub(crate) fn cache_mount_names(&self) -> Vec<CacheMountName> {
        let mut names = Vec::new();
        for vertex in 0..self.definition.vertices().len() {
            let Op::Exec(exec) = &self.vertex(vertex).op else {
                continue;
            };
            for (position, mount) in exec.mounts.iter().enumerate() {
                let MountKind::Cache(cache) = &mount.kind else {
                    continue;
                };
                let name = cache_name(self, vertex, exec, position, cache);
                // One that is filled from something is not known where its step was not needed.
                if cache.input.is_none() || name.from.is_some() {
                    names.push(name);
                }
            }
        }
        names
    }

    /// Notes that a step of this build mounts a cache.
    pub(super) fn use_mount(&self, name: &CacheMountName) {
        super::lock(&self.used_mounts).insert(name.digest());
    }

    /// Whether a step of this build has mounted a cache.
    pub(crate) fn has_used(&self, name: &CacheMountName) -> bool {
        super::lock(&self.used_mounts).contains(&name.digest())
    }

    /// Whether a vertex's result is known.
    pub(crate) fn is_known(&self, vertex: usize) -> bool {
        self.state(vertex).outcome.is_some()
    }

    /// Tells of the steps whose layers are results' that they were found, where nothing had to be brought here.
    pub(crate) fn tell_chain(&self, roots: &[usize]) {
        for vertex in self.chain(roots) {
            if matches!(self.vertex(vertex).op, Op::Exec(_) | Op::File(_)) {
                self.tell_cached(vertex);
            }
        }
    }

    /// The vertices whose layers any of the results has, inputs before users.
    pub(crate) fn chain(&self, roots: &[usize]) -> Vec<usize> {
        let mut chain = Vec::new();
        let mut todo = roots.to_vec();
        while let Some(vertex) = todo.pop() {
            if chain.contains(&vertex) {
                continue;
            }
            chain.push(vertex);
            match self.vertex(vertex).op {
                Op::Merge => todo.extend(self.vertex(vertex).inputs.iter().map(|input| input.0)),
                _ => todo.extend(base_of(self.vertex(vertex))),
            }
        }
        chain.sort_unstable();
        chain
    }
}
