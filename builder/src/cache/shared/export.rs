//! Putting the results of a build where other machines find them.
//!
//! What is there stays as it is: of two machines that did the same, the first one's result is everybody's, so that what was
//! built upon it still hits. It is replaced where it is damaged, or where the build was told not to use caches.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use serde_json::{Map, Value};
use store::StoreError;
use store::layer::compress::CompressionChoice;
use store::layer::{LayerId, TreeDigest};
use store::oci::{Descriptor, DiffId};

use super::bucket::Bucket;
use super::folder::Folder;
use super::import::{FetchError, Hit, chain};
use super::inline::InlineRecord;
use super::record::{RecordError, SharedLayer, SharedRecord};
use super::repository::Repository;
use super::source::SharedSource;
use super::{CacheStore, CacheStoreError, EntryName, hint, mounts};
use crate::cache::{self, CacheKey, CacheRecord};
use crate::error::BuildError;
use crate::graph::{Op, VertexIndex};
use crate::ops::Operations;
use crate::request::BuildRequest;
use crate::request::cache::{CacheExport, CacheMode, CachePlace};
use crate::solve::{ProgressEvent, TransferKind};
use crate::transfer::{self, Bridge};

/// Records that are written at the same time.
const WRITERS: usize = 8;

/// Why a result could not be exported.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ExportCacheError {
    /// The cache refused.
    #[error(transparent)]
    Cache(#[from] CacheStoreError),
    /// A layer could not be had from where it is.
    #[error("cannot fetch the layer {diff_id}")]
    Fetch {
        /// The layer.
        diff_id: Box<DiffId>,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A cache mount cannot be packed.
    #[error("cannot pack the cache mount `{id}`")]
    Mount {
        /// Its id.
        id: String,
        /// Why.
        source: std::io::Error,
    },
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

/// A step's result, as this build knows it.
struct Finished {
    keys: Vec<CacheKey>,
    op: [u8; 32],
    layer: Option<(LayerId, TreeDigest)>,
    created: i64,
    took: Option<u64>,
    bytes: Option<u64>,
    ingredients: Map<String, Value>,
    /// Whether what the cache has of it is to be replaced.
    replace: bool,
}

/// Puts the results of a solved build into every cache that the request names.
pub(crate) fn export_all(
    operations: &Operations<'_>,
    request: &BuildRequest,
    roots: &[usize],
) -> Result<(), BuildError> {
    for wanted in &request.cache_to {
        let Some(place) = &wanted.place else {
            continue;
        };
        let name = place.to_string();
        let exported = export_to(operations, place, wanted, request, roots);
        match exported {
            Ok(()) => {}
            Err(_) if operations.is_cancelled() => return Err(BuildError::Cancelled),
            Err(error) if wanted.ignore_error => {
                let text = format!("warning: cannot write the cache {name}: {}", chain(&error));
                let vertex = None;
                operations
                    .progress
                    .event(ProgressEvent::Note { vertex, text });
            }
            Err(source) => {
                return Err(BuildError::CacheExport {
                    name,
                    source: Box::new(source),
                });
            }
        }
    }
    Ok(())
}

fn export_to(
    operations: &Operations<'_>,
    place: &CachePlace,
    wanted: &CacheExport,
    request: &BuildRequest,
    roots: &[usize],
) -> Result<(), ExportCacheError> {
    let into: Box<dyn CacheStore> = match place {
        CachePlace::Registry(reference) => {
            let bridge = Bridge::new(TransferKind::Push, Arc::clone(operations.progress));
            Box::new(Repository::new(
                operations.remote,
                reference,
                Arc::new(bridge),
            ))
        }
        CachePlace::Local(path) => Box::new(Folder::create(path)?),
        CachePlace::S3(settings) => Box::new(Bucket::new(operations.remote, settings)?),
    };
    export(
        operations,
        roots,
        into.as_ref(),
        wanted.mode,
        wanted.layers,
        &hint::names(request),
    )?;
    mounts::export(
        operations,
        into.as_ref(),
        &wanted.mounts,
        wanted.layers.compression.of_plain_tar(),
    )
}

/// Puts the results of a solved build into a cache: of the steps whose layers `roots` have, or of all. `hints` are the names
/// under which builds like it look for what they will want.
fn export(
    operations: &Operations<'_>,
    roots: &[usize],
    into: &dyn CacheStore,
    mode: CacheMode,
    layers: CompressionChoice,
    hints: &[EntryName],
) -> Result<(), ExportCacheError> {
    let vertices = match mode {
        CacheMode::Min => operations.chain(roots),
        CacheMode::Max => (0..operations.definition.vertices().len()).collect(),
    };
    let mut work = Vec::new();
    for vertex in vertices {
        if let Some(finished) = finished(operations, vertex)? {
            work.push(finished);
        }
    }
    let export = Export {
        operations,
        into,
        layers,
        blobs: Mutex::default(),
        written: AtomicUsize::new(0),
    };
    into.prepare()?;
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..WRITERS.min(work.len()) {
            scope.spawn(|| {
                while let Some(finished) = work.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(error) = export.put(finished) {
                        // No more are begun.
                        next.store(work.len(), Ordering::Relaxed);
                        let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                        failure.get_or_insert(error);
                    }
                }
            });
        }
    });
    if let Some(error) = failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        return Err(error);
    }
    put_sources(operations, into)?;
    put_hints(operations, into, hints, &work)?;
    let (all, written) = (work.len(), export.written.into_inner());
    operations.progress.event(ProgressEvent::Note {
        vertex: None,
        text: format!(
            "cache {}: {written} results written, {} were there",
            into.name(),
            all - written
        ),
    });
    Ok(())
}

/// Tells other machines what the files and repositories from elsewhere were that this build used.
fn put_sources(operations: &Operations<'_>, into: &dyn CacheStore) -> Result<(), ExportCacheError> {
    for known in operations.sources() {
        if operations.is_cancelled() {
            return Err(ExportCacheError::Cancelled);
        }
        if operations.shared.knows(into.name(), &known) {
            continue;
        }
        let name = EntryName::Source(known.key);
        let found = into.entry(&name)?;
        let stays = match found.map(|bytes| SharedSource::decode(bytes, &known.key)) {
            // What cannot change is everybody's as the first one found it; what a URL gives is what it gives now.
            Some(Ok(found)) => found == known || known.validators.is_none(),
            Some(Err(RecordError::Newer { .. })) => true,
            Some(Err(_)) | None => false,
        };
        if !stays {
            into.put_entry(&name, &known.encode())?;
        }
    }
    Ok(())
}

/// Tells builds like this one what to ask for: of each step the key that is asked for first.
fn put_hints(
    operations: &Operations<'_>,
    into: &dyn CacheStore,
    hints: &[EntryName],
    work: &[Finished],
) -> Result<(), CacheStoreError> {
    let mut seen = BTreeSet::new();
    let keys = work.iter().filter_map(|finished| finished.keys.last());
    let keys: Vec<CacheKey> = keys.copied().filter(|key| seen.insert(*key)).collect();
    let keys = &keys[..keys.len().min(hint::KEYS_MAX)];
    if keys.is_empty() {
        return Ok(());
    }
    for (position, name) in hints.iter().enumerate() {
        if operations.shared.hinted(into.name(), position) != Some(keys) {
            into.put_entry(name, &hint::encode(keys))?;
        }
    }
    Ok(())
}

/// What an image's own records say: of the steps whose layers it has.
pub(crate) fn inline(
    operations: &Operations<'_>,
    roots: &[usize],
) -> Result<Vec<InlineRecord>, StoreError> {
    let mut records = Vec::new();
    for vertex in operations.chain(roots) {
        let Some(finished) = finished(operations, vertex)? else {
            continue;
        };
        let layer = match finished.layer {
            None => None,
            Some((id, tree)) => Some((tree, operations.store.ensure_diff_id(&id)?)),
        };
        records.push(InlineRecord {
            keys: finished.keys,
            op: finished.op,
            layer,
            created: finished.created,
            took: finished.took,
            bytes: finished.bytes,
        });
    }
    Ok(records)
}

/// What a step came to; none for what is no step, or was never needed.
fn finished(operations: &Operations<'_>, vertex: usize) -> Result<Option<Finished>, StoreError> {
    let step = operations.definition.vertex(VertexIndex(vertex));
    if step.op.is_private() {
        return Ok(None);
    }
    if !matches!(step.op, Op::Exec(_) | Op::File(_)) || !operations.is_known(vertex) {
        return Ok(None);
    }
    let mut known = None;
    let mut replace = step.meta.no_cache;
    let keys = operations.keys(vertex);
    for key in &keys {
        replace |= operations.shared.is_bad(key);
        if known.is_none() {
            known = recorded(operations, key)?;
        }
    }
    let Some((record, ingredients)) = known else {
        return Ok(None);
    };
    Ok(Some(Finished {
        keys,
        op: cache::op_digest(&step.op),
        layer: record.layer.map(|layer| (layer.id, layer.tree)),
        created: record.created,
        took: record.took,
        bytes: record.bytes,
        ingredients,
        replace,
    }))
}

type Recorded = (CacheRecord, Map<String, Value>);

/// The record of a key: ours, or else the one that was found elsewhere.
fn recorded(operations: &Operations<'_>, key: &CacheKey) -> Result<Option<Recorded>, StoreError> {
    if let Some(row) = operations.store.index().record_peek(&key.0)?
        && let Some(record) = CacheRecord::decode(&row.result)
    {
        // They only explain: what cannot be read is left out.
        let ingredients = serde_json::from_slice(&row.ingredients).unwrap_or_default();
        return Ok(Some((record, ingredients)));
    }
    let Some(hit) = operations.shared.hit(key) else {
        return Ok(None);
    };
    let record = &hit.record;
    Ok(Some((record.known(None), record.ingredients.clone())))
}

struct Export<'a> {
    operations: &'a Operations<'a>,
    into: &'a dyn CacheStore,
    layers: CompressionChoice,
    /// Layers whose blobs are there by now: two records may name one.
    blobs: Mutex<BTreeMap<LayerId, (DiffId, Descriptor)>>,
    written: AtomicUsize,
}

impl Export<'_> {
    fn put(&self, finished: &Finished) -> Result<(), ExportCacheError> {
        let mut missing = Vec::new();
        for key in &finished.keys {
            if self.operations.is_cancelled() {
                return Err(ExportCacheError::Cancelled);
            }
            if !self.has(key, finished.replace)? {
                missing.push(*key);
            }
        }
        if missing.is_empty() {
            return Ok(());
        }
        let layer = match finished.layer {
            None => None,
            Some((id, tree)) => {
                let (diff_id, blob) = self.put_layer(&id, finished)?;
                Some(SharedLayer {
                    tree,
                    diff_id,
                    blob,
                })
            }
        };
        for key in missing {
            let record = SharedRecord {
                key,
                op: finished.op,
                layer: layer.clone(),
                created: finished.created,
                took: finished.took,
                bytes: finished.bytes,
                ingredients: finished.ingredients.clone(),
            };
            let name = EntryName::Record(key);
            self.into.put_entry(&name, &record.encode())?;
        }
        self.written.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// Whether the cache has a record that may stay.
    fn has(&self, key: &CacheKey, replace: bool) -> Result<bool, ExportCacheError> {
        if replace {
            return Ok(false);
        }
        if self.operations.shared.is_from(key, self.into.name()) {
            return Ok(true);
        }
        let Some(bytes) = self.into.entry(&EntryName::Record(*key))? else {
            return Ok(false);
        };
        Ok(match SharedRecord::decode(bytes, key) {
            Ok(record) => match &record.layer {
                // A registry keeps what a manifest names; a folder or bucket may have been thinned out.
                Some(layer) if self.into.repository().is_none() => {
                    self.into.has_blob(&layer.blob, &[])?
                }
                _ => true,
            },
            // A newer longshore's is not ours to take away.
            Err(RecordError::Newer { .. }) => true,
            Err(_) => false,
        })
    }

    /// Sees to it that the cache has a blob of the layer.
    fn put_layer(
        &self,
        id: &LayerId,
        finished: &Finished,
    ) -> Result<(DiffId, Descriptor), ExportCacheError> {
        let known = || self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known().get(id) {
            return Ok(found.clone());
        }
        let store = self.operations.store;
        let mut diff_id = store.ensure_diff_id(id)?;
        let blob = match store.has_layer_bytes(&diff_id)? {
            true => {
                let made = store.layer_as(&diff_id, self.layers)?;
                // Others get the layer that it is in this compression.
                diff_id = made.diff_id;
                let blob = made.descriptor;
                let elsewhere = self.neighbours(&blob)?;
                if finished.replace && self.into.repository().is_none()
                    || !self.into.has_blob(&blob, &elsewhere)?
                {
                    self.send(&blob)?;
                }
                blob
            }
            false => self.pass_on(&diff_id, finished)?,
        };
        if let Some(reference) = self.into.repository() {
            transfer::note(store, reference, &diff_id, &blob)?;
        }
        known().insert(*id, (diff_id, blob.clone()));
        Ok((diff_id, blob))
    }

    /// Passes a layer on that is not here: it is linked where it can be, else fetched and sent.
    fn pass_on(
        &self,
        diff_id: &DiffId,
        finished: &Finished,
    ) -> Result<Descriptor, ExportCacheError> {
        let operations = self.operations;
        let lost = || StoreError::from(store::layers::LayerError::Missing { diff_id: *diff_id });
        let fetch = |error: FetchError| ExportCacheError::Fetch {
            diff_id: Box::new(*diff_id),
            source: Box::new(error),
        };
        let hits = finished.keys.iter().find_map(|key| {
            let hit = operations.shared.hit(key)?;
            let layer = hit.record.layer.clone()?;
            (layer.diff_id == *diff_id).then_some((hit, layer))
        });
        if let Some((hit, layer)) = hits {
            let hit: &Hit = &hit;
            let near = match (operations.shared.repository(hit), self.into.repository()) {
                (Some(from), Some(to)) if from.registry() == to.registry() => {
                    vec![from.repository().to_owned()]
                }
                _ => self.neighbours(&layer.blob)?,
            };
            if !self.into.has_blob(&layer.blob, &near)? {
                operations
                    .shared
                    .fetch_blob(operations.store, hit, &layer)
                    .map_err(fetch)?;
                self.send(&layer.blob)?;
            }
            return Ok(layer.blob);
        }
        let (reference, blob) =
            transfer::whereabouts(operations.store, diff_id)?.ok_or_else(lost)?;
        let near = self.neighbours(&blob)?;
        if !self.into.has_blob(&blob, &near)? {
            let silent = Arc::new(registry_client::Silent);
            transfer::bring_blob(
                operations.store,
                operations.remote,
                &reference,
                &blob,
                silent,
            )
            .map_err(|error| fetch(FetchError::Transfer(error)))?;
            self.send(&blob)?;
        }
        Ok(blob)
    }

    /// Repositories beside the one that is written to that are known to have a blob.
    fn neighbours(&self, blob: &Descriptor) -> Result<Vec<String>, StoreError> {
        let Some(reference) = self.into.repository() else {
            return Ok(Vec::new());
        };
        let sources = self.operations.store.index().sources(&blob.digest)?;
        let near = sources.into_iter().filter(|(registry, repository)| {
            registry == reference.registry() && repository != reference.repository()
        });
        Ok(near.map(|(_, repository)| repository).collect())
    }

    fn send(&self, blob: &Descriptor) -> Result<(), ExportCacheError> {
        let path = self.operations.store.blobs().path(&blob.digest);
        Ok(self.into.put_blob(blob, &path)?)
    }
}
