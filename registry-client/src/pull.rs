//! Layers on their way in, several at once, each straight from the network into whatever unpacks it.

use std::sync::Arc;

use store::oci::{Descriptor, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use crate::error::ClientError;
use crate::progress::Progress;
use crate::{BlobReader, Client};

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
/// that may block: position, descriptor, bytes. `consume` verifies the digest. The results come in the layers' order;
/// after a failure no other layer is begun, and those under way end before this returns.
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
    let mut tasks = JoinSet::new();
    for (index, descriptor) in layers.iter().enumerate() {
        let (client, reference, descriptor) =
            (client.clone(), reference.clone(), descriptor.clone());
        let (progress, consume, slots) = (
            Arc::clone(&progress),
            Arc::clone(&consume),
            Arc::clone(&slots),
        );
        tasks.spawn(async move {
            // A closed semaphore means that another layer failed.
            let Ok(slot) = slots.acquire().await else {
                return None;
            };
            let reader = client.read_blob(&reference, &descriptor, progress);
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
            Ok(Some((index, descriptor, Err(source)))) => {
                failure.get_or_insert(PullError::Layer {
                    index,
                    descriptor: Box::new(descriptor),
                    source,
                });
            }
            Ok(None) => {}
            Err(error) => std::panic::resume_unwind(error.into_panic()),
        }
    }
    match failure {
        Some(failure) => Err(failure),
        None => Ok(results.into_iter().flatten().collect()),
    }
}
