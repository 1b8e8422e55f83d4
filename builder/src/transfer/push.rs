//! Pushes: layers that have to be compressed first are sent one by one as soon as they are, while others are compressed.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use registry_client::{
    BlobSource, Progress, PushImage, PushReport, PushedBlobs, ReadyBlob, push_blobs,
};
use store::images::ImageId;
use store::layer::compress::{CompressionChoice, side_by_side};
use store::layers::Making;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, DiffId, Digest, RawManifest, Reference};
use store::{Store, StoreError};
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::{Bridge, TransferError, absent, transfer, watch_compression};
use crate::remote::Remote;
use crate::solve::{ProgressSink, TransferKind};

/// Pushes an image of the store to `reference`, its layers compressed as chosen. A layer that is only in a registry stays there
/// if that is the one that is pushed to.
pub fn push(
    store: &Arc<Store>,
    remote: &Remote,
    id: &ImageId,
    reference: &Reference,
    choice: CompressionChoice,
    progress: &Arc<dyn ProgressSink>,
) -> Result<PushReport, TransferError> {
    push_as(store, remote, id, reference, choice, progress, true)
}

/// The same without a tag: into the repository of `reference`, under the manifest's digest.
pub fn push_untagged(
    store: &Arc<Store>,
    remote: &Remote,
    id: &ImageId,
    reference: &Reference,
    choice: CompressionChoice,
    progress: &Arc<dyn ProgressSink>,
) -> Result<PushReport, TransferError> {
    push_as(store, remote, id, reference, choice, progress, false)
}

fn push_as(
    store: &Arc<Store>,
    remote: &Remote,
    id: &ImageId,
    reference: &Reference,
    choice: CompressionChoice,
    progress: &Arc<dyn ProgressSink>,
    tagged: bool,
) -> Result<PushReport, TransferError> {
    let bridge: Arc<dyn Progress> = Arc::new(Bridge::new(TransferKind::Push, Arc::clone(progress)));
    let watch = watch_compression(store, progress);
    let early = push_while_made(store, remote, id, reference, choice, &bridge)?;
    let manifest = store.manifest_to_push(id, choice)?;
    drop(watch);
    let named = referenced(&manifest);
    let (mut here, mut absent) = (Vec::new(), Vec::new());
    for descriptor in &named {
        if early.digests.contains(&descriptor.digest) {
            continue;
        }
        let found = store.blobs().has(&descriptor.digest);
        match found.map_err(StoreError::from)? == Some(descriptor.size) {
            true => here.push(descriptor.clone()),
            false => absent.push(descriptor.clone()),
        }
    }
    let (linked, brought) = absent::link(store, remote, reference, absent, progress)?;
    here.extend(brought);
    let mut blobs = Vec::new();
    let mut mount_from = Vec::new();
    for descriptor in here {
        for repository in neighbours(store, &descriptor, reference)? {
            if !mount_from.contains(&repository) {
                mount_from.push(repository);
            }
        }
        // All of them, before the first goes: how much there is in all.
        let (digest, size) = (&descriptor.digest, descriptor.size);
        progress.event(transfer(TransferKind::Push, digest, 0, size));
        let source = BlobSource::File(store.blobs().path(&descriptor.digest));
        blobs.push((descriptor, source));
    }
    let by_digest = reference.with_digest(manifest.digest());
    let reference = if tagged { reference } else { &by_digest };
    let image = PushImage {
        manifest,
        blobs,
        mount_from,
    };
    let pushed = &image;
    let mut report = remote.run(|client| async move {
        registry_client::push_image(&client, reference, pushed, bridge).await
    })?;
    report.uploaded += early.uploaded;
    report.existed += early.existed + linked.existed;
    report.mounted += early.mounted + linked.mounted;
    for descriptor in &named {
        store
            .index()
            .note_source(
                &descriptor.digest,
                reference.registry(),
                reference.repository(),
            )
            .map_err(StoreError::from)?;
    }
    Ok(report)
}

/// Compresses what has to be compressed of an image, several layers at once, and sends each when it is ready. What cannot be
/// compressed is left to whoever makes the manifest, who knows what else may do.
fn push_while_made(
    store: &Arc<Store>,
    remote: &Remote,
    id: &ImageId,
    reference: &Reference,
    choice: CompressionChoice,
    bridge: &Arc<dyn Progress>,
) -> Result<PushedBlobs, TransferError> {
    let layers = store.layers_to_make(id, choice)?;
    if layers.is_empty() {
        return Ok(PushedBlobs::default());
    }
    let (workers, threads) = side_by_side(layers.len());
    let (ready, blobs) = unbounded_channel();
    let stop = AtomicBool::new(false);
    let making = Makers {
        store,
        reference,
        choice,
        layers: &layers,
        next: AtomicUsize::new(0),
        making: Making {
            threads,
            stop: &stop,
        },
        failed: Mutex::new(None),
    };
    let pushed = std::thread::scope(|scope| {
        for _ in 0..workers {
            let ready = ready.clone();
            let making = &making;
            scope.spawn(move || making.run(&ready));
        }
        drop(ready);
        let progress = Arc::clone(bridge);
        let pushed = remote
            .run(|client| async move { push_blobs(&client, reference, blobs, progress).await });
        if pushed.is_err() {
            // Nobody wants the rest.
            stop.store(true, Ordering::Relaxed);
        }
        pushed
    });
    let pushed = pushed?;
    let failed = making.failed.into_inner();
    match failed.unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error.into()),
        None => Ok(pushed),
    }
}

/// Threads that compress the layers of an image.
struct Makers<'a> {
    store: &'a Store,
    reference: &'a Reference,
    choice: CompressionChoice,
    layers: &'a [DiffId],
    next: AtomicUsize,
    making: Making<'a>,
    failed: Mutex<Option<StoreError>>,
}

impl Makers<'_> {
    fn run(&self, ready: &UnboundedSender<ReadyBlob>) {
        while !self.making.is_stopped()
            && let Some(diff_id) = self.layers.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            let made = self
                .store
                .make_layer(diff_id, self.choice, self.making)
                .and_then(|made| {
                    let near = neighbours(self.store, &made.descriptor, self.reference)?;
                    Ok((made.descriptor, near))
                });
            match made {
                Ok((descriptor, near)) => {
                    let blob = ReadyBlob {
                        source: BlobSource::File(self.store.blobs().path(&descriptor.digest)),
                        descriptor,
                        mount_from: near.into(),
                    };
                    if ready.send(blob).is_err() {
                        return;
                    }
                }
                // Whoever makes the manifest comes upon it again, and may know another way.
                Err(StoreError::Layer(_)) => {}
                Err(error) => {
                    let mut failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
                    failed.get_or_insert(error);
                    return;
                }
            }
        }
    }
}

/// Writes an index under a name, whose images are in that repository by now; its digest.
pub fn push_index(
    remote: &Remote,
    reference: &Reference,
    index: &RawManifest,
) -> Result<Digest, TransferError> {
    Ok(remote.run(|client| async move { client.put_manifest(reference, index).await })?)
}

/// Other repositories on the registry that is pushed to that are known to have a blob, latest first.
fn neighbours(
    store: &Store,
    blob: &Descriptor,
    reference: &Reference,
) -> Result<Vec<String>, StoreError> {
    let sources = store.index().sources(&blob.digest)?.into_iter();
    let near = sources.filter(|(registry, repository)| {
        registry == reference.registry() && repository != reference.repository()
    });
    Ok(near.map(|(_, repository)| repository).collect())
}

/// The blobs that a manifest names: its configuration, then its layers; each once.
fn referenced(manifest: &RawManifest) -> Vec<Descriptor> {
    let ParsedManifest::Image(image) = manifest.parsed() else {
        return Vec::new();
    };
    let mut seen = BTreeSet::new();
    let all = std::iter::once(&image.config).chain(&image.layers);
    all.filter(|blob| seen.insert(blob.digest))
        .cloned()
        .collect()
}
