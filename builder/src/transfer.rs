//! Images between the store and registries: whole pulls and pushes, used by builds and by commands alike.
//!
//! A layer on its way in is one pipeline: network, digest of the blob, file, decompression, DiffID, files. All layers of
//! an image go through it side by side, and nothing is visible before its digests were right.

mod absent;
mod patch;
mod places;
mod push;

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

pub use absent::{absent_layers, complete};
pub(crate) use absent::{bring_blob, whereabouts};
pub use places::{AdoptError, adopt, bridge, stored};
pub use push::{push, push_index, push_untagged};
pub use registry_client::RemoteImage;
use registry_client::{BlobReader, ClientError, Progress, PullError};
use store::content::{ContentError, Ingest};
use store::images::ImageId;
use store::layer::compress::Compression;
use store::layers::watch::Watch;
use store::oci::{Descriptor, DiffId, Digest, Platform, Reference};
use store::snapshot::SnapshotError;
use store::{Store, StoreError};

use self::patch::Patched;
use crate::remote::{Remote, RemoteError};
use crate::solve::{ProgressEvent, ProgressSink, TransferKind};

/// Why an image could not be moved.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// The registry, or the way there.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A layer's bytes could not be kept.
    #[error("cannot unpack the layer {digest}")]
    Layer {
        /// The blob.
        digest: Box<Digest>,
        /// Why.
        #[source]
        source: LayerError,
    },
    /// The image has no id of that kind in the store.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Why a layer's bytes could not be kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The tar is not what the configuration says, or cannot be unpacked.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The blob is not what the manifest says, or cannot be written.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The rest of the blob could not be read.
    #[error("cannot read the rest of the layer")]
    Read(#[source] io::Error),
    /// The index failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl From<ClientError> for TransferError {
    fn from(error: ClientError) -> TransferError {
        TransferError::Remote(RemoteError::Client(error))
    }
}

/// An image that was pulled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pulled {
    /// Its id in the store.
    pub id: ImageId,
    /// Digest of its manifest.
    pub manifest: Digest,
    /// Layers whose bytes had to be fetched.
    pub fetched: usize,
}

/// Pulls an image with all its layers and names it as `reference` says.
pub fn pull(
    store: &Arc<Store>,
    remote: &Remote,
    reference: &Reference,
    platform: &Platform,
    progress: &Arc<dyn ProgressSink>,
) -> Result<Pulled, TransferError> {
    let image = inspect(remote, reference, platform)?;
    let pairs: Vec<_> = layer_pairs(&image);
    let missing = missing(store, &pairs, progress)?;
    fetch(store, remote, reference, &missing, progress)?;
    let id = keep(store, &image)?;
    if reference.tag().is_some() {
        store
            .images()
            .tag(reference, &id)
            .map_err(StoreError::from)?;
    }
    Ok(Pulled {
        id,
        manifest: image.manifest.digest(),
        fetched: missing.len(),
    })
}

/// Reads an image's manifest and configuration from its registry.
pub fn inspect(
    remote: &Remote,
    reference: &Reference,
    platform: &Platform,
) -> Result<RemoteImage, TransferError> {
    let (reference, platform) = (reference.clone(), platform.clone());
    Ok(remote.run(|client| async move { client.image(&reference, &platform).await })?)
}

/// Keeps an image's configuration and manifest, and where its layers can be had.
pub fn keep(store: &Store, image: &RemoteImage) -> Result<ImageId, TransferError> {
    for (diff_id, layer) in layer_pairs(image) {
        note(store, &image.reference, &diff_id, &layer)?;
    }
    let id = store
        .images()
        .put_image(&image.config_bytes, Some(&image.manifest))
        .map_err(StoreError::from)?;
    Ok(id)
}

/// An image's layers: what each unpacks to, and the blob it comes as; oldest first.
pub fn layer_pairs(image: &RemoteImage) -> Vec<(DiffId, Descriptor)> {
    let diff_ids = image.config.rootfs.diff_ids.iter().copied();
    diff_ids.zip(image.layers().iter().cloned()).collect()
}

/// Notes what a blob is, and which repository has it.
pub(crate) fn note(
    store: &Store,
    reference: &Reference,
    diff_id: &DiffId,
    layer: &Descriptor,
) -> Result<(), StoreError> {
    let compression = Compression::of(layer);
    store.index().remember(diff_id, compression.name(), layer)?;
    store
        .index()
        .note_source(&layer.digest, reference.registry(), reference.repository())?;
    Ok(())
}

/// Those of an image's layers that are not unpacked here, and that no blob here can be unpacked to; each once.
fn missing(
    store: &Store,
    layers: &[(DiffId, Descriptor)],
    progress: &Arc<dyn ProgressSink>,
) -> Result<Vec<(DiffId, Descriptor)>, TransferError> {
    let mut missing = BTreeMap::new();
    for (diff_id, layer) in layers {
        if !unpack_here(store, diff_id, progress)? {
            missing.insert(*diff_id, layer.clone());
        }
    }
    Ok(missing.into_iter().collect())
}

/// Makes a layer's directory of a blob that is here, unless it stands; tells whether there is either.
pub(crate) fn unpack_here(
    store: &Store,
    diff_id: &DiffId,
    progress: &Arc<dyn ProgressSink>,
) -> Result<bool, StoreError> {
    let mut told = None;
    let unpacked = store.ensure_unpacked_telling(diff_id, &mut |digest, done, total| {
        let extract = told.get_or_insert_with(|| {
            let sink = Arc::clone(progress);
            Steps::new(TransferKind::Extract, *digest, sink)
        });
        extract.tell(done, total);
    });
    match unpacked {
        Ok(_) => Ok(true),
        Err(StoreError::Layer(store::layers::LayerError::Missing { .. })) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Fetches layers and unpacks them, side by side.
pub fn fetch(
    store: &Arc<Store>,
    remote: &Remote,
    reference: &Reference,
    layers: &[(DiffId, Descriptor)],
    progress: &Arc<dyn ProgressSink>,
) -> Result<(), TransferError> {
    let spoiled = Arc::new(AtomicBool::new(false));
    let result = fetch_once(store, remote, reference, layers, progress, &spoiled, true);
    if result.is_ok() || !spoiled.load(Ordering::Relaxed) {
        return result;
    }
    tracing::debug!("what was here of a layer was wrong: once more, and all of it");
    let layers = missing(store, layers, progress)?;
    fetch_once(store, remote, reference, &layers, progress, &spoiled, false)
}

/// Sets `spoiled` where a layer failed because of what was there of it. With `may_patch`, what other layers have of one need
/// not come.
fn fetch_once(
    store: &Arc<Store>,
    remote: &Remote,
    reference: &Reference,
    layers: &[(DiffId, Descriptor)],
    progress: &Arc<dyn ProgressSink>,
    spoiled: &Arc<AtomicBool>,
    may_patch: bool,
) -> Result<(), TransferError> {
    if layers.is_empty() {
        return Ok(());
    }
    let (diff_ids, descriptors): (Vec<DiffId>, Vec<Descriptor>) = layers.iter().cloned().unzip();
    let into = Arc::clone(store);
    let repository = reference.clone();
    let (sink, spoiled) = (Arc::clone(progress), Arc::clone(spoiled));
    let consume = move |index: usize, descriptor: &Descriptor, mut reader: BlobReader| {
        let extract = Steps::new(TransferKind::Extract, descriptor.digest, Arc::clone(&sink));
        let ingest = into.blobs().resume(&descriptor.digest, descriptor.size)?;
        let from = ingest.left();
        let ahead = ingest.read_ahead();
        let here = match may_patch {
            true => patch::find(&into, &repository, descriptor, &mut reader, ahead.as_ref()),
            false => Vec::new(),
        };
        if let Some(ahead) = ahead {
            reader.keep_ahead(ahead);
        }
        // Whether something of it did not come from the registry just now.
        let resumed = ingest.left() > 0 || !here.is_empty();
        let mut tee = Tee {
            reader: Patched::new(reader, here, from, descriptor.size),
            extract,
            total: descriptor.size,
            ingest,
        };
        let unpacked = unpack(&into, diff_ids[index], &mut tee);
        if let Err(error) = unpacked {
            // After a cut it can be gone on with; what is wrong cannot. A registry may not answer ranges as they are asked for
            // here: the rest is asked for otherwise.
            let is_cut = BlobReader::client_error(&error).is_some();
            if !is_cut || tee.reader.is_patched() {
                spoiled.fetch_or(resumed, Ordering::Relaxed);
            }
            if !is_cut {
                tee.ingest.discard();
            }
            return Err(error);
        }
        let expected = (descriptor.digest, Some(descriptor.size));
        if let Err(error) = tee.ingest.commit(Some(expected)) {
            spoiled.fetch_or(resumed, Ordering::Relaxed);
            return Err(error.into());
        }
        tee.extract.end(descriptor.size);
        note(&into, &repository, &diff_ids[index], descriptor)?;
        Ok(())
    };
    let bridge: Arc<dyn Progress> = Arc::new(Bridge::new(TransferKind::Pull, Arc::clone(progress)));
    for descriptor in &descriptors {
        // All of them, before the first comes: how much there is in all.
        let (digest, size) = (&descriptor.digest, descriptor.size);
        progress.event(transfer(TransferKind::Pull, digest, 0, size));
    }
    let descriptors = &descriptors;
    let pulled = remote.wait(|client| async move {
        registry_client::pull_layers(&client, reference, descriptors, bridge, consume).await
    });
    match pulled? {
        Ok(_) => Ok(()),
        Err(PullError::Client(error)) => Err(error.into()),
        Err(PullError::Layer {
            descriptor, source, ..
        }) => Err(TransferError::Layer {
            digest: Box::new(descriptor.digest),
            source,
        }),
        Err(_) => unreachable!("a pull fails by the network or by a layer"),
    }
}

/// Reads a layer's blob to its end and makes a directory of it.
fn unpack(store: &Store, diff_id: DiffId, blob: &mut Tee) -> Result<(), LayerError> {
    store.publish_layer(|| {
        store
            .snapshots()
            .unpack(diff_id, &mut *blob)
            .map_err(LayerError::from)
    })?;
    // A tar may end before its blob does.
    io::copy(blob, &mut io::sink()).map_err(LayerError::Read)?;
    Ok(())
}

/// A reader whose bytes are kept on their way, after those that were kept before.
struct Tee {
    reader: Patched,
    ingest: Ingest,
    extract: Steps,
    total: u64,
}

impl Read for Tee {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = if self.ingest.left() > 0 {
            self.ingest.replay(buffer).map_err(io::Error::other)?
        } else {
            self.reader.start_at(self.ingest.size());
            let count = self.reader.read(buffer)?;
            self.ingest
                .append(&buffer[..count])
                .map_err(io::Error::other)?;
            count
        };
        self.extract.advance(count as u64, self.total);
        Ok(count)
    }
}

/// Tells `progress` of the layers that are compressed, as long as the watch lives.
pub fn watch_compression<'a>(store: &'a Store, progress: &Arc<dyn ProgressSink>) -> Watch<'a> {
    let progress = Arc::clone(progress);
    store.watch_compression(Arc::new(move |diff_id, done, total| {
        let digest = &diff_id.0;
        progress.event(ProgressEvent::Transfer {
            vertex: None,
            kind: TransferKind::Compress,
            id: digest.to_string(),
            name: format!("{}:{}", digest.algorithm(), digest.short()),
            done,
            total,
        });
    }))
}

/// Transfers are told of in steps of at least this many bytes.
const STEP_BYTES: u64 = 256 * 1024;

/// One transfer, told of at its beginning and end, and in steps between them.
struct Steps {
    kind: TransferKind,
    digest: Digest,
    sink: Arc<dyn ProgressSink>,
    done: u64,
    told: Option<u64>,
}

impl Steps {
    fn new(kind: TransferKind, digest: Digest, sink: Arc<dyn ProgressSink>) -> Steps {
        Steps {
            kind,
            digest,
            sink,
            done: 0,
            told: None,
        }
    }

    /// `bytes` more of `total`; that it was the last of them is told by [`Steps::end`].
    fn advance(&mut self, bytes: u64, total: u64) {
        let done = (self.done + bytes).min(total.saturating_sub(1));
        self.tell(done, total);
    }

    /// All of it is done.
    fn end(&mut self, total: u64) {
        self.tell(total, total);
    }

    fn tell(&mut self, done: u64, total: u64) {
        self.done = done;
        let step = done / STEP_BYTES;
        if done != total && self.told == Some(step) {
            return;
        }
        self.told = Some(step);
        self.sink
            .event(transfer(self.kind, &self.digest, done, total));
    }
}

fn transfer(kind: TransferKind, digest: &Digest, done: u64, total: u64) -> ProgressEvent {
    ProgressEvent::Transfer {
        vertex: None,
        kind,
        id: digest.to_string(),
        name: format!("{}:{}", digest.algorithm(), digest.short()),
        done,
        total: Some(total),
    }
}

/// Passes the client's progress on as events.
pub(crate) struct Bridge {
    kind: TransferKind,
    sink: Arc<dyn ProgressSink>,
    counts: Mutex<BTreeMap<Digest, (u64, u64)>>,
}

impl Bridge {
    /// Tells `sink`; `kind` says what is done.
    pub(crate) fn new(kind: TransferKind, sink: Arc<dyn ProgressSink>) -> Bridge {
        Bridge {
            kind,
            sink,
            counts: Mutex::default(),
        }
    }

    fn update(&self, digest: &Digest, change: impl FnOnce(&mut (u64, u64))) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = counts.entry(*digest).or_default();
        let before = entry.0;
        change(entry);
        let (done, total) = *entry;
        drop(counts);
        let told = done == total || done == 0 || before / STEP_BYTES != done / STEP_BYTES;
        if told {
            self.sink.event(transfer(self.kind, digest, done, total));
        }
    }
}

impl Progress for Bridge {
    fn started(&self, digest: &Digest, total: u64) {
        self.update(digest, |entry| *entry = (0, total));
    }

    fn advanced(&self, digest: &Digest, bytes: u64) {
        self.update(digest, |entry| entry.0 += bytes);
    }

    fn rewound(&self, digest: &Digest, offset: u64) {
        self.update(digest, |entry| entry.0 = offset);
    }

    fn finished(&self, digest: &Digest) {
        self.update(digest, |entry| entry.0 = entry.1);
    }
}
