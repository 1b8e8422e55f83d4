//! Results found and kept: a step's keys, its record, and the lock under which it runs once among all processes.

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
const LOCK_POLL: Duration = Duration::from_millis(20);

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
    pub(super) fn keys(&self, vertex: usize) -> Vec<CacheKey> {
        self.slow_key(vertex)
            .into_iter()
            .chain(self.fast_key(vertex))
            .collect()
    }

    pub(super) fn look_up(&self, vertex: usize, key: CacheKey) -> Result<bool, StepError> {
        let Some(row) = self
            .store
            .index()
            .record_hit(&key.0)
            .map_err(StoreError::from)?
        else {
            return Ok(false);
        };
        let Some(record) = CacheRecord::decode(&row.result) else {
            self.store
                .index()
                .record_remove(&key.0)
                .map_err(StoreError::from)?;
            return Ok(false);
        };
        self.state(vertex).outcome = Some(Outcome {
            own: record.layer.iter().map(stack_layer).collect(),
            created: Some(record.created),
        });
        self.state(vertex).found = Some((key, record));
        Ok(true)
    }

    /// Takes the lock of `key`, so that of all processes one runs the step; tells people if that means waiting.
    pub(super) fn lock(&self, vertex: usize, key: CacheKey) -> Result<KeyLock, StepError> {
        let mut told = false;
        loop {
            if let Some(lock) = self.store.try_lock_key(&key.0)? {
                return Ok(lock);
            }
            if self.is_cancelled() {
                return Err(StepError::Cancelled);
            }
            if !told {
                told = true;
                let name = &self.vertex(vertex).meta.name;
                self.progress.event(ProgressEvent::Note {
                    vertex: Some(VertexIndex(vertex)),
                    text: format!("waiting for another longshore that runs {name}"),
                });
            }
            std::thread::sleep(LOCK_POLL);
        }
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
        let mut state = self.state(vertex);
        state.outcome = Some(Outcome {
            own: record.layer.iter().map(stack_layer).collect(),
            created: Some(record.created),
        });
        // They were written down.
        state.lists = None;
        Ok(())
    }
}
