//! One blob: from another repository here, or fetched, verified and kept.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::StreamExt as _;
use store::oci::{Digest, Hasher};

use super::mirror::{Problem, Run};
use crate::error::{ApiError, ErrorCode};
use crate::events::event::{EventAction, EventObject, RegistryEvent};
use crate::routes::RepositoryName;
use crate::storage::{MountSource, UploadData, VerifiedUpload};
use crate::upstream::{UpstreamBlob, UpstreamError};

/// Bytes that are gathered before they are hashed and written.
const BATCH_BYTES: usize = 512 * 1024;

impl Run<'_> {
    /// Makes sure that a repository has a blob.
    pub(super) async fn bring_blob(
        &self,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
    ) -> Result<(), Problem> {
        let target = name.clone();
        let found = self
            .registry
            .blocking(move |storage| {
                if storage.blob_size(&target, &digest)?.is_some() {
                    return Ok((true, false));
                }
                let from = MountSource::Any(&|_| true);
                let mounted = storage.mount_blob(&target, &digest, from)?;
                Ok((mounted, mounted))
            })
            .await?;
        match found {
            (true, mounted) => {
                if mounted {
                    self.registry.count_mounted(name, digest).await?;
                    self.count(|report| report.mounted += 1);
                    self.told_of_blob(EventAction::Mount, name, digest, None)
                        .await;
                }
                Ok(())
            }
            _ => self.fetch(name, remote, digest).await,
        }
    }

    async fn fetch(
        &self,
        name: &RepositoryName,
        remote: &str,
        digest: Digest,
    ) -> Result<(), Problem> {
        let _slot = self.slots.acquire().await;
        let source = &self.sync.source;
        let blob = self.ask(|| source.blob(remote, digest)).await?;
        let size = blob.size;
        let most = self.registry.rules.blob_bytes_max.unwrap_or(u64::MAX);
        if size > most {
            let detail = format!("{digest} has {size} bytes: at most {most} are taken");
            return Err(ApiError::with(ErrorCode::TooLarge, detail).into());
        }
        self.registry.check_quota(name, Some(digest), size).await?;
        let target = name.clone();
        let opened = self.registry.blocking(move |storage| {
            let id = storage.create_upload(&target)?;
            let data = storage.upload(&target, &id)?;
            Ok((id, data))
        });
        let (id, data) = opened.await?;
        let data = data.ok_or_else(|| ApiError::new(ErrorCode::BlobUploadUnknown))?;
        let kept = match receive(blob, digest, &data).await {
            Ok(computed) => match VerifiedUpload::check(id.clone(), size, computed, digest) {
                Some(upload) => {
                    let upload = upload.with_tail(data.take_tail());
                    self.registry
                        .commit(name.clone(), upload)
                        .await
                        .map_err(Problem::from)
                }
                None => Err(Problem::Source(UpstreamError::Wrong {
                    reason: format!("the content of {digest} is {computed}"),
                })),
            },
            Err(problem) => Err(problem),
        };
        if kept.is_err() {
            let target = name.clone();
            let dropped = self
                .registry
                .blocking(move |storage| storage.cancel_upload(&target, &id));
            // It is dropped with other abandoned ones otherwise.
            let _ = dropped.await;
        }
        kept?;
        self.registry.observer.metrics.received_bytes.add(size);
        self.count(|report| {
            report.blobs += 1;
            report.bytes += size;
        });
        self.told_of_blob(EventAction::Push, name, digest, Some(size))
            .await;
        Ok(())
    }

    async fn told_of_blob(
        &self,
        action: EventAction,
        name: &RepositoryName,
        digest: Digest,
        size: Option<u64>,
    ) {
        let audit = match action {
            EventAction::Mount => "mount-blob",
            _ => "put-blob",
        };
        let mut event = RegistryEvent::new(action, EventObject::Blob, name.as_str());
        event.digest = Some(digest.to_string());
        event.media_type = Some("application/octet-stream".to_owned());
        event.size = size;
        self.told(audit, event).await;
    }
}

/// Writes a blob into a session; what it hashes to.
async fn receive(
    mut blob: UpstreamBlob,
    digest: Digest,
    data: &Arc<dyn UploadData>,
) -> Result<Digest, Problem> {
    let wrong = |reason: String| Problem::Source(UpstreamError::Wrong { reason });
    let mut hasher = Hasher::new(digest.algorithm());
    let (mut received, mut written) = (0u64, 0u64);
    let mut ended = false;
    while !ended {
        let (mut batch, mut batch_bytes): (Vec<Bytes>, usize) = (Vec::new(), 0);
        while batch_bytes < BATCH_BYTES {
            let Some(piece) = blob.bytes.next().await else {
                ended = true;
                break;
            };
            let piece = piece.map_err(Problem::Source)?;
            received += piece.len() as u64;
            if received > blob.size {
                return Err(wrong(format!(
                    "more than {} bytes of {digest} came",
                    blob.size
                )));
            }
            batch_bytes += piece.len();
            batch.push(piece);
        }
        let data = Arc::clone(data);
        let writing = tokio::task::spawn_blocking(move || {
            for piece in batch {
                data.write_at(&piece, written)?;
                hasher.update(&piece);
                written += piece.len() as u64;
            }
            std::io::Result::Ok((hasher, written))
        });
        let done = writing
            .await
            .unwrap_or_else(|error| Err(std::io::Error::other(error)));
        (hasher, written) = done.map_err(ApiError::from)?;
    }
    if received != blob.size {
        return Err(wrong(format!(
            "{received} of {} bytes of {digest} came",
            blob.size
        )));
    }
    Ok(hasher.finish())
}
