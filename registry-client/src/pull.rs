//! Blobs on their way in: one into the store as it is, or an image's layers, several at once, each straight from the
//! network into whatever unpacks it.

use std::io;
use std::sync::Arc;

use store::content::{Blobs, ContentError, VerifiedBlob};
use store::oci::{Descriptor, Reference};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use crate::error::{ClientError, RequestLine};
use crate::progress::Progress;
use crate::{BlobReader, Client};

impl Client {
    /// Fetches a blob into a store; `None` where the store had it. Nothing is visible there before its digest and size
    /// were right.
    pub async fn fetch_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        blobs: &Blobs,
        progress: Arc<dyn Progress>,
    ) -> Result<Option<VerifiedBlob>, ClientError> {
        let (store, wanted) = (blobs.clone(), descriptor.clone());
        let had = blocking(move || Ok(store.has(&wanted.digest)? == Some(wanted.size)));
        let failed = |error: KeepError| error.of(reference, descriptor);
        if had.await.map_err(failed)? {
            progress.started(&descriptor.digest, descriptor.size);
            progress.finished(&descriptor.digest);
            return Ok(None);
        }
        loop {
            let mut reader = self.read_blob(reference, descriptor, Arc::clone(&progress));
            let (store, wanted) = (blobs.clone(), descriptor.clone());
            let (resumed, kept) = blocking(move || {
                let mut ingest = store.resume(&wanted.digest, wanted.size)?;
                ingest.catch_up()?;
                let resumed = ingest.size() > 0;
                reader.start_at(ingest.size());
                while let Some(piece) = reader.next_piece()? {
                    ingest.append(&piece)?;
                }
                Ok((
                    resumed,
                    ingest.commit(Some((wanted.digest, Some(wanted.size)))),
                ))
            })
            .await
            .map_err(failed)?;
            match kept {
                // What was there before may be what is wrong: it is gone now.
                Err(ContentError::DigestMismatch { .. }) if resumed => {}
                kept => return kept.map(Some).map_err(|error| failed(error.into())),
            }
        }
    }
}

/// Why a blob could not be kept.
#[derive(Debug, thiserror::Error)]
enum KeepError {
    #[error(transparent)]
    Read(#[from] io::Error),
    #[error(transparent)]
    Content(#[from] ContentError),
}

impl KeepError {
    fn of(self, reference: &Reference, descriptor: &Descriptor) -> ClientError {
        let request = RequestLine::of_blob(reference, &descriptor.digest);
        let store = |reason: String| ClientError::Store {
            digest: Box::new(descriptor.digest),
            reason,
        };
        match self {
            KeepError::Content(ContentError::DigestMismatch { expected, found }) => {
                ClientError::mismatch(&request, expected, found)
            }
            KeepError::Content(error) => store(error.to_string()),
            KeepError::Read(error) => {
                let text = error.to_string();
                let inner = error
                    .into_inner()
                    .map(|inner| inner.downcast::<ClientError>());
                match inner {
                    Some(Ok(error)) => *error,
                    _ => store(text),
                }
            }
        }
    }
}

/// Runs what blocks on a thread that may.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, KeepError> + Send + 'static,
) -> Result<T, KeepError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic.into_panic()),
    }
}

/// Why layers could not be pulled: the network's fault or the consumer's.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PullError<E: std::error::Error + 'static> {
    /// The registry, or the way to it.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Whatever took the layer's bytes; errors of the network that it passed on are inside
    /// ([`BlobReader::client_error`]).
    #[error("layer {index} ({}): {source}", .descriptor.digest)]
    Layer {
        /// Position among the descriptors given.
        index: usize,
        /// The layer.
        descriptor: Box<Descriptor>,
        /// What went wrong.
        source: E,
    },
}

/// Reads `layers` of a repository, at most [`crate::Options::parallel`] at once, giving each to `consume` on a thread
/// that may block: position, descriptor, bytes. `consume` verifies the digest. The results come in the layers' order.
/// After a failure no other layer is begun, those under way lose their connections, and all have ended when this returns;
/// the first failure is the result. Where the future is dropped, the connections end too.
pub async fn pull_layers<T, E, F>(
    client: &Client,
    reference: &Reference,
    layers: &[Descriptor],
    progress: Arc<dyn Progress>,
    consume: F,
) -> Result<Vec<T>, PullError<E>>
where
    T: Send + 'static,
    E: std::error::Error + Send + 'static,
    F: Fn(usize, &Descriptor, BlobReader) -> Result<T, E> + Send + Sync + 'static,
{
    let consume = Arc::new(consume);
    let slots = Arc::new(Semaphore::new(client.options().parallel.max(1)));
    // Dropped with this future, which the readers take for a failure as well.
    // Holds the layer that failed first: those that lose their connections for it fail as well.
    let (failed, failing) = watch::channel(None::<usize>);
    let failed = Arc::new(failed);
    let mut tasks = JoinSet::new();
    for (index, descriptor) in layers.iter().enumerate() {
        let (client, reference, descriptor) =
            (client.clone(), reference.clone(), descriptor.clone());
        let (progress, consume, slots) = (
            Arc::clone(&progress),
            Arc::clone(&consume),
            Arc::clone(&slots),
        );
        let (failed, mut failing) = (Arc::downgrade(&failed), failing.clone());
        let stop = async move {
            // An error means that nobody waits for the result any more.
            let _ = failing.wait_for(Option::is_some).await;
        };
        tasks.spawn(async move {
            // A closed semaphore means that another layer failed.
            let Ok(slot) = slots.acquire().await else {
                return None;
            };
            let reader = client.read_blob_until(&reference, &descriptor, progress, stop);
            let working = tokio::task::spawn_blocking(move || {
                let result = consume(index, &descriptor, reader);
                (descriptor, result)
            });
            let (descriptor, result) = match working.await {
                Ok(done) => done,
                Err(panic) => std::panic::resume_unwind(panic.into_panic()),
            };
            drop(slot);
            if result.is_err() {
                if let Some(failed) = failed.upgrade() {
                    failed.send_if_modified(|first| {
                        let is_first = first.is_none();
                        first.get_or_insert(index);
                        is_first
                    });
                }
                slots.close();
            }
            Some((index, descriptor, result))
        });
    }
    let mut results: Vec<Option<T>> = layers.iter().map(|_| None).collect();
    let mut failure = None;
    while let Some(joined) = tasks.join_next().await {
        match joined {
            Ok(Some((index, _, Ok(result)))) => results[index] = Some(result),
            Ok(Some((index, descriptor, Err(source)))) if *failing.borrow() == Some(index) => {
                failure = Some(PullError::Layer {
                    index,
                    descriptor: Box::new(descriptor),
                    source,
                });
            }
            // Its connection was taken away.
            Ok(Some((_, _, Err(_)))) => {}
            Ok(None) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(results.into_iter().flatten().collect()),
    }
}
