//! Blobs that are not here: where they can be had, linked where they are, and brought here when nothing else will do.
//!
//! An image may be kept, named and pushed while its layers are only in a registry: they follow when it is run or saved, or
//! pushed to where they cannot be linked.

use std::collections::BTreeMap;
use std::sync::Arc;

use registry_client::{Client, ClientError, Progress, Pushed};
use store::images::ImageId;
use store::oci::{Descriptor, DiffId, Digest, Reference};
use store::{Store, StoreError};
use tokio::task::JoinSet;

use super::{Bridge, TransferError};
use crate::remote::Remote;
use crate::solve::{ProgressSink, TransferKind};

/// A repository that is known to have a blob of a layer, and that blob.
pub(crate) fn whereabouts(
    store: &Store,
    diff_id: &DiffId,
) -> Result<Option<(Reference, Descriptor)>, StoreError> {
    for (_, blob) in store.index().compressed(diff_id)? {
        if let Some(reference) = repositories(store, &blob.digest)?.into_iter().next() {
            return Ok(Some((reference, blob)));
        }
    }
    Ok(None)
}

/// The repositories that are known to have a blob, latest first.
fn repositories(store: &Store, digest: &Digest) -> Result<Vec<Reference>, StoreError> {
    let known = store.index().sources(digest)?;
    let names = known
        .iter()
        .map(|(registry, repository)| format!("{registry}/{repository}"));
    // What cannot be read back was not written by us.
    Ok(names.filter_map(|name| name.parse().ok()).collect())
}

/// The layers of an image that are neither unpacked here nor have a blob here.
pub fn absent_layers(store: &Store, id: &ImageId) -> Result<Vec<DiffId>, StoreError> {
    let mut absent = Vec::new();
    for diff_id in store.images().config(id)?.rootfs.diff_ids {
        if !store.has_layer_bytes(&diff_id)? && !absent.contains(&diff_id) {
            absent.push(diff_id);
        }
    }
    Ok(absent)
}

/// Brings the layers of an image here that are not, from the registries that are known to have them; what no registry is
/// known to have is left to whoever needs it to complain of.
pub fn complete(
    store: &Arc<Store>,
    remote: &Remote,
    id: &ImageId,
    progress: &Arc<dyn ProgressSink>,
) -> Result<(), TransferError> {
    let mut wanted: BTreeMap<String, (Reference, Vec<(DiffId, Descriptor)>)> = BTreeMap::new();
    for diff_id in absent_layers(store, id)? {
        if let Some((reference, blob)) = whereabouts(store, &diff_id)? {
            let entry = wanted.entry(reference.name());
            let (_, layers) = entry.or_insert_with(|| (reference, Vec::new()));
            layers.push((diff_id, blob));
        }
    }
    for (reference, layers) in wanted.into_values() {
        super::fetch(store, remote, &reference, &layers, progress)?;
    }
    Ok(())
}

/// Brings one blob here, as it is.
pub(crate) fn bring_blob(
    store: &Store,
    remote: &Remote,
    reference: &Reference,
    blob: &Descriptor,
    progress: Arc<dyn Progress>,
) -> Result<(), TransferError> {
    let blobs = store.blobs();
    remote
        .run(|client| async move { client.fetch_blob(reference, blob, blobs, progress).await })?;
    Ok(())
}

/// How many blobs were found in a repository, or linked from another.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Linked {
    pub(super) existed: usize,
    pub(super) mounted: usize,
}

/// Sees to it that a repository has blobs that are not here: finds or links them there, or brings them here to be sent.
/// Returns those that were brought.
pub(super) fn link(
    store: &Arc<Store>,
    remote: &Remote,
    reference: &Reference,
    absent: Vec<Descriptor>,
    progress: &Arc<dyn ProgressSink>,
) -> Result<(Linked, Vec<Descriptor>), TransferError> {
    let mut linked = Linked::default();
    let mut brought = Vec::new();
    if absent.is_empty() {
        return Ok((linked, brought));
    }
    let bridge: Arc<dyn Progress> = Arc::new(Bridge::new(TransferKind::Pull, Arc::clone(progress)));
    let mut homes = Vec::with_capacity(absent.len());
    for blob in &absent {
        homes.push(repositories(store, &blob.digest)?);
    }
    let done = remote.run(|client| async move {
        // Dropping the set on an error ends the other transfers.
        let mut tasks = JoinSet::new();
        for (blob, homes) in absent.into_iter().zip(homes) {
            let task = LinkTask {
                client: client.clone(),
                store: Arc::clone(store),
                reference: reference.clone(),
                blob,
                homes,
                progress: Arc::clone(&bridge),
            };
            tasks.spawn(task.run());
        }
        let mut done = Vec::new();
        while let Some(joined) = tasks.join_next().await {
            done.push(match joined {
                Ok(result) => result?,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            });
        }
        Ok(done)
    })?;
    for (blob, pushed) in done {
        match pushed {
            Some(Pushed::Mounted) => linked.mounted += 1,
            Some(_) => linked.existed += 1,
            None => brought.push(blob),
        }
    }
    Ok((linked, brought))
}

struct LinkTask {
    client: Client,
    store: Arc<Store>,
    reference: Reference,
    blob: Descriptor,
    homes: Vec<Reference>,
    progress: Arc<dyn Progress>,
}

impl LinkTask {
    async fn run(self) -> Result<(Descriptor, Option<Pushed>), ClientError> {
        let near = self.homes.iter().filter(|home| {
            home.registry() == self.reference.registry()
                && home.repository() != self.reference.repository()
        });
        let mount_from: Vec<String> = near.map(|home| home.repository().to_owned()).collect();
        let linked = self
            .client
            .link_blob(&self.reference, &self.blob, &mount_from)
            .await?;
        if linked.is_some() {
            return Ok((self.blob, linked));
        }
        let mut last = None;
        for home in &self.homes {
            let progress = Arc::clone(&self.progress);
            let fetched = self
                .client
                .fetch_blob(home, &self.blob, self.store.blobs(), progress)
                .await;
            match fetched {
                Ok(_) => return Ok((self.blob, None)),
                Err(error) => last = Some(error),
            }
        }
        Err(last.expect("a manifest names no absent blob that has no home"))
    }
}
