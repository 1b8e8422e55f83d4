//! A whole image on its way out: blobs in parallel, then the manifest under its tag, so that a tag never names what is
//! not there.

use std::collections::BTreeSet;
use std::sync::Arc;

use store::oci::{Descriptor, Digest, RawManifest, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::ClientError;
use crate::progress::Progress;
use crate::upload::Pushed;
use crate::{BlobSource, Client};

/// What is pushed.
#[derive(Clone, Debug)]
pub struct PushImage {
    /// The manifest.
    pub manifest: RawManifest,
    /// Its configuration and layers, with where their bytes are. One that is named twice is sent once.
    pub blobs: Vec<(Descriptor, BlobSource)>,
    /// Repositories on the same registry that may have some of the blobs, likeliest first.
    pub mount_from: Vec<String>,
}

/// What a push did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushReport {
    /// Digest of the manifest.
    pub digest: Digest,
    /// Blobs whose bytes were sent.
    pub uploaded: usize,
    /// Blobs that the registry linked from another repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub existed: usize,
}

/// Pushes an image to a repository, at most [`crate::Options::parallel`] blobs at once, and tags it with the
/// reference's tag if it has one. Where a blob fails, the transfers under way are given up and nothing is tagged.
pub async fn push_image(
    client: &Client,
    reference: &Reference,
    image: &PushImage,
    progress: Arc<dyn Progress>,
) -> Result<PushReport, ClientError> {
    let slots = Arc::new(Semaphore::new(client.options().parallel.max(1)));
    let mount_from: Arc<[String]> = image.mount_from.clone().into();
    let mut seen = BTreeSet::new();
    let mut tasks = JoinSet::new();
    for (descriptor, source) in &image.blobs {
        if !seen.insert(descriptor.digest) {
            continue;
        }
        let (client, reference) = (client.clone(), reference.clone());
        let (descriptor, source) = (descriptor.clone(), source.clone());
        let (mount_from, slots) = (Arc::clone(&mount_from), Arc::clone(&slots));
        let progress = Arc::clone(&progress);
        tasks.spawn(async move {
            let _slot = slots.acquire().await.expect("it is never closed");
            client
                .push_blob(&reference, &descriptor, source, &mount_from, progress)
                .await
        });
    }
    let (mut uploaded, mut mounted, mut existed) = (0, 0, 0);
    // Dropping the set on an error ends the other transfers.
    while let Some(joined) = tasks.join_next().await {
        let pushed = match joined {
            Ok(result) => result?,
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        };
        match pushed {
            Pushed::Uploaded => uploaded += 1,
            Pushed::Mounted => mounted += 1,
            Pushed::Existed => existed += 1,
        }
    }
    let digest = client.put_manifest(reference, &image.manifest).await?;
    Ok(PushReport {
        digest,
        uploaded,
        mounted,
        existed,
    })
}
