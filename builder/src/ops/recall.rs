//! Results found and kept: a step's keys, its record, and the lock under which it runs once among all processes.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use store::index::RecordRow;
use store::layer::LayerInfo;
use store::{KeyLock, StoreError};

use super::Operations;
use super::results::{Outcome, stack_layer};
use crate::cache::explain::Known;
use crate::cache::{self, CacheKey, CacheRecord, RecordedLayer};
use crate::error::StepError;
use crate::graph::VertexIndex;
use crate::solve::ProgressEvent;

/// How long to wait between two looks at a lock that another process holds.
const LOCK_POLL: Duration = Duration::from_millis(10);

/// How old the answer to a look-up may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Look {
    /// A moment: many such are cheaper together.
    Soon,
    /// Nothing that anybody else has done may be missed.
    Anew,
}

/// The right to run what a key stands for, among all processes.
pub(super) struct Turn<'a> {
    running: &'a Turns,
    key: CacheKey,
    _lock: KeyLock,
}

/// What this build runs now: vertices by the keys that they hold.
pub(super) type Turns = Mutex<BTreeMap<CacheKey, usize>>;

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        super::lock(self.running).remove(&self.key);
    }
}

impl Operations<'_> {
    pub(super) fn fast_key(&self, vertex: usize) -> Option<CacheKey> {
        let step = self.vertex(vertex);
        let inputs: Vec<_> = step
            .inputs
            .iter()
            .map(|input| self.identity(input.0))
            .collect();
        cache::fast_key(&step.op, &inputs)
    }

    /// The slow key, once the digests are known.
    pub(super) fn slow_key(&self, vertex: usize) -> Option<CacheKey> {
        let selected = self.state(vertex).selected.clone()?;
        Some(cache::slow_key(
            &self.vertex(vertex).op,
            self.base_identity(vertex),
            &selected,
        ))
    }

    /// The keys that a result is found by, the one that says most first.
    pub(crate) fn keys(&self, vertex: usize) -> Vec<CacheKey> {
        self.slow_key(vertex)
            .into_iter()
            .chain(self.fast_key(vertex))
            .collect()
    }

    /// Looks for the record of `key`. One that is damaged is dropped, and told of: the step runs again.
    pub(super) fn look_up(
        &self,
        vertex: usize,
        key: CacheKey,
        look: Look,
    ) -> Result<bool, StepError> {
        let index = self.store.index();
        let found = match look {
            Look::Soon => index.record_hit_soon(&key.0),
            Look::Anew => index
                .record_hit(&key.0)
                .map(|row| row.map(|row| row.result)),
        };
        let Some(result) = found.map_err(StoreError::from)? else {
            return Ok(false);
        };
        let Some(record) = CacheRecord::decode(&result) else {
            let removed = index.record_remove(&key.0).map_err(StoreError::from)?;
            if removed {
                let name = &self.vertex(vertex).meta.name;
                self.note(
                    vertex,
                    format!("the cache record of {name} is damaged and was dropped"),
                );
            }
            return Ok(false);
        };
        let outcome = Outcome {
            own: record.layer.iter().map(stack_layer).collect(),
            created: Some(record.created),
        };
        self.set_outcome(vertex, outcome);
        self.state(vertex).found = Some((key, record));
        Ok(true)
    }

    /// Lets what was found by its content be found by its inputs the next time: then nothing of them is looked at.
    pub(super) fn find_sooner(&self, vertex: usize, slow: CacheKey) {
        let Some(fast) = self.fast_key(vertex) else {
            return;
        };
        let index = self.store.index();
        let kept = index.record_peek(&slow.0).and_then(|row| match row {
            Some(row) => index.record_put(&fast.0, &row),
            None => Ok(()),
        });
        // It is here already: that it takes as long the next time is no reason to fail.
        if let Err(error) = kept {
            tracing::debug!(%error, "a result is not kept under another key");
        }
    }

    /// Takes the lock of `key`, so that of all processes one runs the step; none, and people told, if somebody else has it.
    pub(super) fn try_lock(
        &self,
        vertex: usize,
        key: CacheKey,
    ) -> Result<Option<Turn<'_>>, StepError> {
        if let Some(lock) = self.store.try_lock_key(&key.0)? {
            self.turns().insert(key, vertex);
            return Ok(Some(Turn {
                running: &self.turns,
                key,
                _lock: lock,
            }));
        }
        if !std::mem::replace(&mut self.state(vertex).waited, true) {
            let own = self.turns().get(&key).copied();
            let name = &self.vertex(vertex).meta.name;
            let holder = self.store.key_holder(&key.0);
            let text = match (own, holder.filter(|id| *id != std::process::id())) {
                (Some(other), _) => {
                    let other = &self.vertex(other).meta.name;
                    format!("waiting for {other}, which does the same as {name}")
                }
                (None, Some(id)) => {
                    format!("waiting for another longshore, process {id}, which runs {name}")
                }
                (None, None) => format!("waiting for somebody else who runs {name}"),
            };
            self.note(vertex, text);
        }
        Ok(None)
    }

    /// Waits until nobody else holds the lock of the step's key.
    pub(super) fn wait_turn(&self, vertex: usize) -> Result<(), StepError> {
        let Some(&key) = self.keys(vertex).first() else {
            return Err(StepError::NoKey);
        };
        while self.store.try_lock_key(&key.0)?.is_none() {
            if self.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            std::thread::sleep(LOCK_POLL);
        }
        Ok(())
    }

    /// Tells that a known result's layer is not there any more, and removes what may be left of it: what stands in its place
    /// would be taken for the layer that the step makes again.
    pub(super) fn drop_lost(&self, vertex: usize) -> Result<(), StepError> {
        let state = self.state(vertex);
        let own = state.outcome.iter().flat_map(|outcome| &outcome.own);
        let own: Vec<_> = own.filter_map(|layer| layer.id).collect();
        drop(state);
        for id in own {
            if !self.store.snapshots().has(&id) {
                self.store.snapshots().remove(&id)?;
                let name = &self.vertex(vertex).meta.name;
                self.note(
                    vertex,
                    format!("the layer of {name} is lost, and is made again"),
                );
            }
        }
        Ok(())
    }

    pub(super) fn note(&self, vertex: usize, text: String) {
        self.progress.event(ProgressEvent::Note {
            vertex: Some(VertexIndex(vertex)),
            text,
        });
    }

    fn turns(&self) -> MutexGuard<'_, BTreeMap<CacheKey, usize>> {
        super::lock(&self.turns)
    }

    pub(super) fn record(
        &self,
        vertex: usize,
        keys: &[CacheKey],
        info: &LayerInfo,
        known: &Known,
        took: Duration,
    ) -> Result<(), StepError> {
        let step = self.vertex(vertex);
        let op = cache::op_digest(&step.op);
        let created = self.epoch.unwrap_or(self.now);
        let mut record = CacheRecord {
            layer: None,
            created,
            took: Some(u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
            bytes: Some(info.bytes),
        };
        let mut unchanged = false;
        if info.entries > 0 {
            let tree = info.tree.ok_or(StepError::NoKey)?;
            record.layer = Some(RecordedLayer { id: info.id, tree });
            // Early cutoff: the step did what it did before, so the layer that everybody knows stays.
            let history = self
                .store
                .index()
                .records_by_op(&op)
                .map_err(StoreError::from)?;
            for (_, row) in history {
                let same = CacheRecord::decode(&row.result)
                    .filter(|known| known.layer.is_some_and(|layer| layer.tree == tree));
                if let Some(known) = same
                    && known
                        .layer
                        .is_some_and(|layer| self.store.snapshots().has(&layer.id))
                {
                    unchanged = true;
                    record.layer = known.layer;
                    record.created = known.created;
                    break;
                }
            }
        }
        let unchanged = unchanged || self.gave_the_same(vertex, &record);
        let (ingredients, files) = self.encode_known(known, keys);
        let row = RecordRow {
            op,
            result: record.encode(),
            layers: record.layer.iter().map(|layer| layer.id).collect(),
            ingredients,
            created: record.created,
        };
        for key in keys {
            self.store
                .index()
                .record_put(&key.0, &row)
                .map_err(StoreError::from)?;
        }
        if let Some(&key) = keys.first() {
            if !files.is_empty() {
                let kept = self.store.index().record_files_put(&key.0, &files);
                kept.map_err(StoreError::from)?;
            }
            self.progress.event(ProgressEvent::Recorded {
                vertex: VertexIndex(vertex),
                key,
                bytes: info.bytes,
                unchanged,
            });
        }
        if let (Some(layer), Some(finished)) = (record.layer, &self.finished) {
            // Nobody listening only means that the layer is prepared later.
            let _sent = finished.send(layer.id);
        }
        let outcome = Outcome {
            own: record.layer.iter().map(stack_layer).collect(),
            created: Some(record.created),
        };
        self.set_outcome(vertex, outcome);
        // They were written down.
        self.state(vertex).lists = None;
        Ok(())
    }
}
