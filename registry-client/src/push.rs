//! A whole image on its way out: blobs in parallel, some while others are still being made, then the manifest under its tag, so
//! that a tag never names what is not there.

use std::collections::BTreeSet;
use std::sync::Arc;

use store::oci::{Descriptor, Digest, RawManifest, Reference};
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
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

/// A blob that is ready to be sent.
#[derive(Clone, Debug)]
pub struct ReadyBlob {
    /// What it is.
    pub descriptor: Descriptor,
    /// Where its bytes are.
    pub source: BlobSource,
    /// Repositories on the same registry that may have it, likeliest first.
    pub mount_from: Arc<[String]>,
}

/// What became of blobs that were sent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PushedBlobs {
    /// Which ones are in the repository now.
    pub digests: BTreeSet<Digest>,
    /// Those whose bytes were sent.
    pub uploaded: usize,
    /// Those that the registry linked from another repository.
    pub mounted: usize,
    /// Those that were there.
    pub existed: usize,
}

impl PushedBlobs {
    fn count(&mut self, pushed: Pushed) {
        match pushed {
            Pushed::Uploaded => self.uploaded += 1,
            Pushed::Mounted => self.mounted += 1,
            Pushed::Existed => self.existed += 1,
        }
    }
}

/// Pushes an image to a repository, at most [`crate::Options::parallel`] blobs at once, and tags it with the
/// reference's tag if it has one. Where a blob fails, the transfers under way are given up and nothing is tagged.
pub async fn push_image(
    client: &Client,
    reference: &Reference,
    image: &PushImage,
    progress: Arc<dyn Progress>,
) -> Result<PushReport, ClientError> {
    let mount_from: Arc<[String]> = image.mount_from.clone().into();
    let (ready, blobs) = unbounded_channel();
    for (descriptor, source) in &image.blobs {
        let blob = ReadyBlob {
            descriptor: descriptor.clone(),
            source: source.clone(),
            mount_from: Arc::clone(&mount_from),
        };
        ready.send(blob).expect("the receiver is here");
    }
    drop(ready);
    let pushed = push_blobs(client, reference, blobs, progress).await?;
    let digest = client.put_manifest(reference, &image.manifest).await?;
    Ok(PushReport {
        digest,
        uploaded: pushed.uploaded,
        mounted: pushed.mounted,
        existed: pushed.existed,
    })
}

/// Pushes blobs to a repository as they come, at most [`crate::Options::parallel`] at once, each once, until there are no more.
/// Where one fails, the transfers under way are given up.
pub async fn push_blobs(
    client: &Client,
    reference: &Reference,
    mut blobs: UnboundedReceiver<ReadyBlob>,
    progress: Arc<dyn Progress>,
) -> Result<PushedBlobs, ClientError> {
    let parallel = client.options().parallel.max(1);
    let mut done = PushedBlobs::default();
    let mut is_open = true;
    // Dropping the set on an error ends the other transfers.
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            blob = blobs.recv(), if is_open && tasks.len() < parallel => {
                let Some(blob) = blob else {
                    is_open = false;
                    continue;
                };
                if !done.digests.insert(blob.descriptor.digest) {
                    continue;
                }
                let (client, reference) = (client.clone(), reference.clone());
                let progress = Arc::clone(&progress);
                tasks.spawn(async move {
                    let ReadyBlob { descriptor, source, mount_from } = blob;
                    client
                        .push_blob(&reference, &descriptor, source, &mount_from, progress)
                        .await
                });
            }
            Some(joined) = tasks.join_next() => done.count(match joined {
                Ok(result) => result?,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            }),
            else => return Ok(done),
        }
    }
}
