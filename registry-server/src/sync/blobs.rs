//! One blob: from another repository here, or fetched, verified and kept.

use std::sync::Arc;

use futures_util::StreamExt as _;
use store::oci::Digest;

use super::mirror::{Problem, Run};
use crate::error::{ApiError, ErrorCode};
use crate::events::event::{EventAction, EventObject, RegistryEvent};
use crate::handover::{Giver, Taker, Unwanted, handover};
use crate::routes::RepositoryName;
use crate::storage::MountSource;
use crate::upstream::{UpstreamBlob, UpstreamError};

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
        let (giver, taker) = handover();
        let (came, kept) = tokio::join!(
            give(blob, digest, giver),
            self.store(name, digest, size, taker)
        );
        let came = came?;
        if !kept? {
            let reason = format!("the content is not that of {digest}");
            return Err(Problem::Source(UpstreamError::Wrong { reason }));
        }
        self.registry.observer.metrics.received_bytes.add(came);
        self.count(|report| {
            report.blobs += 1;
            report.bytes += came;
        });
        self.told_of_blob(EventAction::Push, name, digest, Some(size))
            .await;
        Ok(())
    }

    /// Stores a blob as it comes, if there is room for it; false if its bytes are not what the digest says.
    async fn store(
        &self,
        name: &RepositoryName,
        digest: Digest,
        size: u64,
        mut pieces: Taker,
    ) -> Result<bool, Problem> {
        let (quotas, name) = (Arc::clone(&self.registry.quotas), name.clone());
        let kept = self.registry.blocking(move |storage| {
            if let Err(over) = quotas.add(storage, &name, &digest, size)? {
                return Ok(Err(over));
            }
            let kept = storage.keep_blob(&name, &digest, size, &mut pieces);
            if !matches!(kept, Ok(true)) {
                quotas.removed(storage, &name, Some(&digest))?;
            }
            // Why it was is known elsewhere.
            match pieces.was_cut() {
                true => Ok(Ok(false)),
                false => kept.map(Ok),
            }
        });
        let kept = kept.await?;
        Ok(kept.map_err(ApiError::from)?)
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

/// Hands a blob over; how many bytes came. It ends early where no more are wanted.
async fn give(mut blob: UpstreamBlob, digest: Digest, giver: Giver) -> Result<u64, Problem> {
    let wrong = |reason: String| Problem::Source(UpstreamError::Wrong { reason });
    let mut came = 0u64;
    while let Some(piece) = blob.bytes.next().await {
        let piece = piece.map_err(Problem::Source)?;
        came += piece.len() as u64;
        if came > blob.size {
            let reason = format!("more than {} bytes of {digest} came", blob.size);
            return Err(wrong(reason));
        }
        if giver.give(piece).await == Err(Unwanted) {
            return Ok(came);
        }
    }
    if came != blob.size {
        let reason = format!("{came} of {} bytes of {digest} came", blob.size);
        return Err(wrong(reason));
    }
    let _ = giver.finish().await;
    Ok(came)
}
