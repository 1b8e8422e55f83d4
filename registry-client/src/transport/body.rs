//! What a request sends: nothing, bytes, or a part of something that can be opened again for another attempt.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use store::oci::Digest;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::error::ClientError;
use crate::progress::Progress;

/// How much of a file is read at once, in bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Where a blob's bytes are, readable from any offset and as often as the network needs.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// A file, which does not change meanwhile.
    File(PathBuf),
    /// Bytes at hand.
    Bytes(Bytes),
}

impl BlobSource {
    /// Checks that there are `expected` bytes, before anything is sent.
    pub(crate) async fn check_len(&self, expected: u64) -> Result<(), ClientError> {
        let (path, actual) = match self {
            BlobSource::File(path) => {
                let metadata = tokio::fs::metadata(path).await;
                let metadata = metadata.map_err(|error| source_error(path, &error))?;
                (path.clone(), metadata.len())
            }
            BlobSource::Bytes(bytes) => (PathBuf::from("(bytes)"), bytes.len() as u64),
        };
        if actual == expected {
            return Ok(());
        }
        Err(ClientError::Source {
            path,
            reason: format!("it has {actual} bytes, its descriptor says {expected}"),
        })
    }
}

/// A part of a source, and who is told of its progress.
#[derive(Clone)]
pub(crate) struct Part {
    pub(crate) source: BlobSource,
    pub(crate) offset: u64,
    pub(crate) len: u64,
    pub(crate) digest: Digest,
    pub(crate) progress: Arc<dyn Progress>,
}

/// A request's body.
#[derive(Clone, Default)]
pub(crate) enum Payload {
    #[default]
    Empty,
    Bytes(Bytes),
    Part(Part),
}

impl Payload {
    /// The body's length; `None` where the request has no body at all.
    pub(crate) fn len(&self) -> Option<u64> {
        match self {
            Payload::Empty => None,
            Payload::Bytes(bytes) => Some(bytes.len() as u64),
            Payload::Part(part) => Some(part.len),
        }
    }

    /// Opens the body for one attempt. `activity` counts what the connection took.
    pub(crate) async fn open(
        &self,
        activity: &Arc<AtomicU64>,
    ) -> Result<Option<reqwest::Body>, ClientError> {
        let part = match self {
            Payload::Empty => return Ok(None),
            Payload::Bytes(bytes) => return Ok(Some(bytes.clone().into())),
            Payload::Part(part) => part,
        };
        let (digest, progress) = (part.digest, Arc::clone(&part.progress));
        let activity = Arc::clone(activity);
        let told = move |bytes: &Bytes| {
            let length = bytes.len() as u64;
            activity.fetch_add(length, Ordering::Relaxed);
            progress.advanced(&digest, length);
        };
        let body = match &part.source {
            BlobSource::Bytes(bytes) => {
                let outside = || ClientError::Source {
                    path: PathBuf::from("(bytes)"),
                    reason: "it is shorter than its descriptor says".to_owned(),
                };
                let start = usize::try_from(part.offset).map_err(|_| outside())?;
                let len = usize::try_from(part.len).map_err(|_| outside())?;
                let end = start.checked_add(len).filter(|end| *end <= bytes.len());
                let mut rest = bytes.slice(start..end.ok_or_else(outside)?);
                let pieces = std::iter::from_fn(move || {
                    let piece = rest.split_to(rest.len().min(READ_BYTES));
                    (!piece.is_empty()).then(|| Ok::<_, std::io::Error>(piece))
                });
                let stream = futures_util::stream::iter(pieces);
                reqwest::Body::wrap_stream(stream.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        told(piece);
                    }
                }))
            }
            BlobSource::File(path) => {
                let failed = |error| source_error(path, &error);
                let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
                file.set_max_buf_size(READ_BYTES);
                let seek = std::io::SeekFrom::Start(part.offset);
                file.seek(seek).await.map_err(failed)?;
                let stream = ReaderStream::with_capacity(file.take(part.len), READ_BYTES);
                reqwest::Body::wrap_stream(stream.inspect(move |piece| {
                    if let Ok(piece) = piece {
                        told(piece);
                    }
                }))
            }
        };
        Ok(Some(body))
    }
}

fn source_error(path: &std::path::Path, error: &std::io::Error) -> ClientError {
    ClientError::Source {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
