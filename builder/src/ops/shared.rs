//! Results that are elsewhere: taken over from a shared cache, and brought here when something reads them.
//!
//! A layer that is elsewhere is known by its DiffID and its tree, which is all that keys and an image's configuration are
//! made of. It comes from the shared cache that had its record, or from a repository that is known to have its blob.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use store::StoreError;
use store::cache_mounts::CacheMountName;
use store::index::RecordRow;
use store::layer::LayerId;
use store::oci::{Descriptor, DiffId, Reference};

use super::Operations;
use super::exec::mounts::cache_name;
use super::recall::Look;
use super::results::{Outcome, StackLayer, base_of, stack_layer};
use super::source::{Fetching, Found};
use super::{git, http};
use crate::cache::shared::import::{self, FetchError, Hit};
use crate::cache::shared::record::SharedLayer;
use crate::cache::shared::source::SharedSource;
use crate::cache::{CacheKey, CacheRecord, Identity, RecordedLayer};
use crate::error::StepError;
use crate::graph::exec::MountKind;
use crate::graph::{Op, VertexIndex};
use crate::solve::{OfVertex, TransferKind};
use crate::transfer::{self, Bridge};

/// Layers that are fetched at the same time.
const FETCHERS: usize = 8;

/// Where a layer can be had.
enum Home {
    Cache(Arc<Hit>, Box<SharedLayer>),
    Repository(Reference),
}

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

    /// Looks in the shared caches for what something from elsewhere was found to be, and asks its server whether it is that
    /// still. Nothing of it is here then: who reads it has it fetched.
    pub(super) fn find_source(
        &self,
        vertex: usize,
        fetching: &Fetching<'_>,
    ) -> Result<bool, StepError> {
        let step = self.vertex(vertex);
        if self.is_cancelled() || step.meta.no_cache || !self.shared.is_active() {
            return Ok(false);
        }
        let found = match &step.op {
            Op::Http(op) => http::recall_shared(fetching, &self.shared, op)?,
            Op::Git(op) => git::recall_shared(&self.shared, op, &self.commit(fetching, &op.url)?),
            _ => None,
        };
        let Some(found) = found else {
            return Ok(false);
        };
        let layer = found.tree.map(|tree| StackLayer {
            identity: Identity::of_tree(tree),
            id: None,
        });
        let own = layer.into_iter().collect();
        self.set_outcome(vertex, Outcome { own, created: None });
        self.state(vertex).sources = vec![found];
        Ok(true)
    }

    /// Notes what other machines are to be told of something from elsewhere.
    pub(super) fn share_source(
        &self,
        vertex: usize,
        fetching: &Fetching<'_>,
        found: &Found,
    ) -> Result<(), StepError> {
        let sources = match &self.vertex(vertex).op {
            Op::Http(op) => http::to_share(op, found),
            Op::Git(op) => git::to_share(op, &self.commit(fetching, &op.url)?, found),
            _ => Vec::new(),
        };
        self.state(vertex).sources = sources;
        Ok(())
    }

    /// What this build knows of files and repositories from elsewhere.
    pub(crate) fn sources(&self) -> Vec<SharedSource> {
        let vertices = 0..self.definition.vertices().len();
        vertices
            .flat_map(|vertex| self.state(vertex).sources.clone())
            .collect()
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

    /// Brings every layer of a result here that is not, as the blob that it comes as: nothing is unpacked. False if one of
    /// them cannot be had so.
    pub(crate) fn bring_blobs(&self, root: usize) -> Result<bool, StepError> {
        let mut absent = BTreeMap::new();
        for vertex in self.chain(&[root]) {
            match &self.vertex(vertex).op {
                // Its parts are in the chain as well.
                Op::Merge => {}
                Op::Image(image) => {
                    for (position, diff_id) in image.diff_ids.iter().enumerate() {
                        if self.store.has_layer_bytes(diff_id)? {
                            continue;
                        }
                        let Some(blob) = image.layers.get(position) else {
                            return Ok(false);
                        };
                        let home = Home::Repository(image.reference.clone());
                        absent.insert(*diff_id, (home, blob.clone()));
                    }
                }
                _ => {
                    for layer in self.own_layers(vertex) {
                        match layer.id {
                            Some(id) if self.has(&id) => {}
                            Some(LayerId::Unpacked(diff_id)) => {
                                if self.store.has_layer_bytes(&diff_id)? {
                                    continue;
                                }
                                let Some(home) = self.home(vertex, &diff_id)? else {
                                    return Ok(false);
                                };
                                absent.insert(diff_id, home);
                            }
                            _ => return Ok(false),
                        }
                    }
                }
            }
        }
        let absent: Vec<_> = absent.into_iter().collect();
        let next = AtomicUsize::new(0);
        let all_came = AtomicBool::new(true);
        std::thread::scope(|scope| {
            for _ in 0..FETCHERS.min(absent.len()) {
                scope.spawn(|| {
                    while let Some((diff_id, (home, blob))) =
                        absent.get(next.fetch_add(1, Ordering::Relaxed))
                    {
                        if let Err(error) = self.bring_blob(diff_id, home, blob) {
                            // It is brought in the other way, which tells people what is wrong.
                            tracing::debug!(%error, %diff_id, "a layer does not come as a blob");
                            all_came.store(false, Ordering::Relaxed);
                            next.store(absent.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        Ok(all_came.into_inner())
    }

    /// Where a step's layer can be had.
    fn home(
        &self,
        vertex: usize,
        diff_id: &DiffId,
    ) -> Result<Option<(Home, Descriptor)>, StepError> {
        let key = self.state(vertex).found.as_ref().map(|(key, _)| *key);
        if let Some(hit) = key.and_then(|key| self.shared.hit(&key))
            && let Some(layer) = hit.record.layer.clone()
            && layer.diff_id == *diff_id
        {
            let blob = layer.blob.clone();
            return Ok(Some((Home::Cache(hit, Box::new(layer)), blob)));
        }
        let known = transfer::whereabouts(self.store, diff_id)?;
        Ok(known.map(|(reference, blob)| (Home::Repository(reference), blob)))
    }

    /// Brings one blob here and checks that it is the layer's.
    fn bring_blob(
        &self,
        diff_id: &DiffId,
        home: &Home,
        blob: &Descriptor,
    ) -> Result<(), FetchError> {
        let blobs = self.store.blobs();
        let was_here = blobs.has(&blob.digest).map_err(StoreError::from)?;
        match home {
            Home::Cache(hit, layer) => self.shared.fetch_blob(self.store, hit, layer)?,
            Home::Repository(reference) => {
                let progress = Bridge::new(TransferKind::Pull, Arc::clone(self.progress));
                let progress = Arc::new(progress);
                transfer::bring_blob(self.store, self.remote, reference, blob, progress)
                    .map_err(FetchError::Transfer)?;
            }
        }
        let checked = self.store.check_layer_blob(diff_id, &blob.digest);
        if checked.is_err() && was_here.is_none() {
            // It is nobody's.
            blobs.remove(&blob.digest).map_err(StoreError::from)?;
        }
        Ok(checked?)
    }

    /// Whether every layer of a result is here, or can be had where its image is wanted: with nothing but what the store
    /// knows.
    pub(crate) fn can_stay_away(&self, vertex: usize) -> Result<bool, StepError> {
        for layer in self.stack(vertex) {
            let there = match layer.id {
                // Of an image, whose manifest says where its layers are.
                None => true,
                Some(id) if self.has(&id) => true,
                Some(LayerId::Unpacked(diff_id)) => {
                    self.store.has_layer_bytes(&diff_id)? || self.is_elsewhere(&diff_id)?
                }
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
