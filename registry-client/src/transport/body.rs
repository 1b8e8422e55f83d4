//! What a request sends: nothing, bytes, or a part of something that can be opened again for another attempt.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use futures_util::StreamExt as _;
use store::oci::{Descriptor, Digest, Hasher, Reference};
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use crate::Client;
use crate::download::BlobStream;
use crate::error::{ClientError, RequestLine};
use crate::progress::Progress;

/// How much of a file is read at once, in bytes.
const READ_BYTES: usize = 1024 * 1024;

/// Where a blob's bytes are, readable from any offset and as often as the network needs.
#[derive(Clone, Debug)]
pub enum BlobSource {
    /// A file, which does not change meanwhile.
    File(PathBuf),
    /// A part of a file, which does not change meanwhile: an entry of an archive.
    Range {
        /// The file.
        path: PathBuf,
        /// Where in it the blob begins.
        offset: u64,
        /// The blob's size in bytes.
        len: u64,
    },
    /// Bytes at hand.
    Bytes(Bytes),
    /// A blob of a registry, which is read while it is sent.
    Remote(Box<RemoteBlob>),
}

/// A blob that lies in a registry.
#[derive(Clone, Debug)]
pub struct RemoteBlob {
    /// Who reads it.
    pub client: Client,
    /// Its repository.
    pub reference: Reference,
    /// Which blob.
    pub descriptor: Descriptor,
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
            BlobSource::Range { path, len, .. } => (path.clone(), *len),
            BlobSource::Bytes(bytes) => (PathBuf::from("(bytes)"), bytes.len() as u64),
            BlobSource::Remote(remote) => {
                let name = format!("{}@{}", remote.reference.name(), remote.descriptor.digest);
                (PathBuf::from(name), remote.descriptor.size)
            }
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
            BlobSource::File(path) => file_body(path, part.offset, part.len, told).await?,
            BlobSource::Range { path, offset, .. } => {
                file_body(path, offset.saturating_add(part.offset), part.len, told).await?
            }
            BlobSource::Remote(remote) => {
                let relay = start_relay(remote, part.offset, part.len).await?;
                let stream = futures_util::stream::try_unfold(relay, next_piece);
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

async fn file_body(
    path: &Path,
    offset: u64,
    len: u64,
    told: impl Fn(&Bytes) + Send + 'static,
) -> Result<reqwest::Body, ClientError> {
    let failed = |error| source_error(path, &error);
    let mut file = tokio::fs::File::open(path).await.map_err(failed)?;
    file.set_max_buf_size(READ_BYTES);
    let seek = std::io::SeekFrom::Start(offset);
    file.seek(seek).await.map_err(failed)?;
    let stream = ReaderStream::with_capacity(file.take(len), READ_BYTES);
    Ok(reqwest::Body::wrap_stream(stream.inspect(move |piece| {
        if let Ok(piece) = piece {
            told(piece);
        }
    })))
}

/// Part of a remote blob on its way through. A whole one is hashed, and its last piece held back until it proved right.
struct Relay {
    stream: BlobStream,
    line: RequestLine,
    digest: Digest,
    left: u64,
    hasher: Option<Hasher>,
}

/// A future whose type does not tell what is in it: a request whose body is another request would be a type within itself.
type Opaque<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

fn start_relay(
    remote: &RemoteBlob,
    offset: u64,
    len: u64,
) -> Opaque<'_, Result<Relay, ClientError>> {
    Box::pin(async move {
        let descriptor = &remote.descriptor;
        let whole = offset == 0 && len == descriptor.size;
        let opening = remote
            .client
            .blob_from(&remote.reference, descriptor, offset);
        Ok(Relay {
            stream: opening.await?,
            line: RequestLine::of_blob(&remote.reference, &descriptor.digest),
            digest: descriptor.digest,
            left: len,
            hasher: whole.then(|| Hasher::new(descriptor.digest.algorithm())),
        })
    })
}

fn next_piece(mut relay: Relay) -> Opaque<'static, std::io::Result<Option<(Bytes, Relay)>>> {
    Box::pin(async move {
        let piece = relay.next().await.map_err(std::io::Error::other)?;
        Ok(piece.map(|piece| (piece, relay)))
    })
}

impl Relay {
    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        if self.left == 0 {
            return Ok(None);
        }
        let Some(mut piece) = self.stream.next().await? else {
            return Ok(None);
        };
        piece.truncate(usize::try_from(self.left).unwrap_or(usize::MAX));
        self.left -= piece.len() as u64;
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&piece);
        }
        if self.left == 0
            && let Some(hasher) = self.hasher.take()
        {
            let actual = hasher.finish();
            if actual != self.digest {
                return Err(ClientError::mismatch(&self.line, self.digest, actual));
            }
        }
        Ok(Some(piece))
    }
}

fn source_error(path: &Path, error: &std::io::Error) -> ClientError {
    ClientError::Source {
        path: path.to_owned(),
        reason: error.to_string(),
    }
}
