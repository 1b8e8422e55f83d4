//! Blobs on their way in (distribution-spec end-2): resumed after a cut, never longer than announced.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf as _, Bytes};
use reqwest::header::RANGE;
use reqwest::{Method, StatusCode};
use store::oci::{Descriptor, Digest, Reference};
use tokio::sync::mpsc;

use crate::Client;
use crate::auth::bearer::Scope;
use crate::error::{ClientError, causes};
use crate::headers;
use crate::progress::Progress;
use crate::registry::{Attempts, Registry};
use crate::transport::{Answer, Call};

/// After this much progress a cut counts as the first again, so that attempts stay bounded by the blob's size.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// Pieces that wait between the network and a blocking reader.
const PIECES_WAITING: usize = 8;

impl Client {
    /// The size of a blob that a repository has; `None` where it has none.
    pub async fn blob_exists(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Option<u64>, ClientError> {
        let (registry, there) = self.home(reference, false).await?;
        let scopes = [Scope::pull(there.repository())];
        blob_size(&registry, &scopes, there.repository(), digest).await
    }

    /// Opens a blob for reading. Its bytes are not verified: whoever takes them hashes them.
    pub async fn open_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<BlobStream, ClientError> {
        let mut stream = self.blob_stream(reference, descriptor).await?;
        stream.connect().await?;
        Ok(stream)
    }

    /// A blob from `offset` on; nothing is asked for before the first piece is.
    pub(crate) async fn blob_from(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, ClientError> {
        let mut stream = self.blob_stream(reference, descriptor).await?;
        stream.offset = offset;
        stream.counted_from = offset;
        Ok(stream)
    }

    /// A blob as a blocking reader, fed by a task of the current runtime; at most a few pieces wait in memory. Errors of
    /// the network come out of the reader as [`io::Error`]s that wrap a [`ClientError`].
    pub fn read_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        progress: Arc<dyn Progress>,
    ) -> BlobReader {
        self.read_blob_until(reference, descriptor, progress, std::future::pending())
    }

    /// The same, given up when `stop` is ready: the reader then ends in an error.
    pub(crate) fn read_blob_until(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        progress: Arc<dyn Progress>,
        stop: impl Future<Output = ()> + Send + 'static,
    ) -> BlobReader {
        let (sender, receiver) = mpsc::channel(PIECES_WAITING);
        let (client, reference) = (self.clone(), reference.clone());
        let (descriptor, remaining) = (descriptor.clone(), descriptor.size);
        tokio::spawn(async move {
            let feeding = client.feed(&reference, &descriptor, &sender, progress.as_ref());
            let fed = tokio::select! {
                fed = feeding => fed,
                // Nobody reads any more.
                () = sender.closed() => return,
                () = stop => return,
            };
            if let Err(error) = fed {
                // The reader may have lost interest just now.
                let _ = sender.send(Err(error)).await;
            }
        });
        BlobReader {
            receiver,
            piece: Bytes::new(),
            remaining,
        }
    }

    async fn feed(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        sender: &mpsc::Sender<Result<Bytes, ClientError>>,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        progress.started(&descriptor.digest, descriptor.size);
        let mut stream = self.open_blob(reference, descriptor).await?;
        while let Some(piece) = stream.next().await? {
            let length = piece.len() as u64;
            if sender.send(Ok(piece)).await.is_err() {
                return Ok(());
            }
            progress.advanced(&descriptor.digest, length);
        }
        progress.finished(&descriptor.digest);
        Ok(())
    }

    async fn blob_stream(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<BlobStream, ClientError> {
        let mut places: VecDeque<_> = self.to_read(reference).await?.into();
        let (registry, there) = places.pop_front().expect("every reference has a home");
        Ok(BlobStream {
            digest: descriptor.digest,
            size: descriptor.size,
            attempts: registry.attempts(),
            registry,
            repository: there.repository().to_owned(),
            places,
            offset: 0,
            counted_from: 0,
            skip: 0,
            answer: None,
        })
    }
}

pub(crate) fn blob_path(repository: &str, digest: &Digest) -> String {
    format!("{repository}/blobs/{digest}")
}

/// HEAD on a blob, with the scopes of the work that it is part of.
pub(crate) async fn blob_size(
    registry: &Registry,
    scopes: &[Scope],
    repository: &str,
    digest: &Digest,
) -> Result<Option<u64>, ClientError> {
    let mut attempts = registry.attempts();
    loop {
        let result = blob_size_once(registry, scopes, repository, digest).await;
        match result {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

async fn blob_size_once(
    registry: &Registry,
    scopes: &[Scope],
    repository: &str,
    digest: &Digest,
) -> Result<Option<u64>, ClientError> {
    let url = registry.url(&blob_path(repository, digest)).await?;
    let answer = registry.send(scopes, &Call::new(Method::HEAD, url)).await?;
    match answer.status() {
        StatusCode::NOT_FOUND => Ok(None),
        StatusCode::OK => match answer.content_length() {
            Some(size) => Ok(Some(size)),
            None => Err(ClientError::bad_answer(
                &answer.line,
                "the answer has no Content-Length",
            )),
        },
        _ => Err(answer.refused().await),
    }
}

/// A blob's bytes as they come, whatever connections they take.
pub struct BlobStream {
    digest: Digest,
    size: u64,
    registry: Arc<Registry>,
    repository: String,
    attempts: Attempts,
    /// Where else it can be had.
    places: VecDeque<(Arc<Registry>, Reference)>,
    /// Bytes given out.
    offset: u64,
    /// What `offset` was when attempts were last counted anew.
    counted_from: u64,
    /// Bytes of the current answer that were given out before: the server took no notice of Range.
    skip: u64,
    answer: Option<Answer>,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("digest", &self.digest)
            .field("offset", &self.offset)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl BlobStream {
    /// The next piece; `None` after exactly the descriptor's size.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        while self.offset < self.size {
            let answer = match self.answer.as_mut() {
                Some(answer) => answer,
                None => self.connect().await?,
            };
            let line = answer.line.clone();
            let error = match answer.chunk().await {
                Ok(Some(piece)) => match self.take(piece) {
                    Some(piece) => return Ok(Some(piece)),
                    None => continue,
                },
                Ok(None) => ClientError::Cut {
                    request: line,
                    reason: format!("it ended after {} of {} bytes", self.offset, self.size),
                },
                Err(error) => error,
            };
            self.answer = None;
            if self.offset - self.counted_from >= PROGRESS_BYTES {
                self.counted_from = self.offset;
                self.attempts.reset();
            }
            self.go_on(error).await?;
        }
        Ok(None)
    }

    /// After a failure: whether there is another attempt here, or another place.
    async fn go_on(&mut self, error: ClientError) -> Result<(), ClientError> {
        if self.attempts.again(&error).await {
            return Ok(());
        }
        let Some((registry, there)) = self.places.pop_front() else {
            return Err(error);
        };
        self.registry.passed_over(&error);
        self.attempts = registry.attempts();
        self.registry = registry;
        self.repository = there.repository().to_owned();
        Ok(())
    }

    /// The new part of a piece, within the size.
    fn take(&mut self, mut piece: Bytes) -> Option<Bytes> {
        let old = usize::try_from(self.skip).map_or(piece.len(), |skip| skip.min(piece.len()));
        piece.advance(old);
        self.skip -= old as u64;
        let room = usize::try_from(self.size - self.offset).unwrap_or(usize::MAX);
        piece.truncate(room);
        self.offset += piece.len() as u64;
        (!piece.is_empty()).then_some(piece)
    }

    /// Asks for what is left, as often as the policy allows.
    async fn connect(&mut self) -> Result<&mut Answer, ClientError> {
        loop {
            match self.connect_once().await {
                Ok(answer) => return Ok(self.answer.insert(answer)),
                Err(error) => self.go_on(error).await?,
            }
        }
    }

    async fn connect_once(&mut self) -> Result<Answer, ClientError> {
        let path = blob_path(&self.repository, &self.digest);
        let mut call = Call::get(self.registry.url(&path).await?);
        if self.offset > 0 {
            call = call.header(RANGE, &format!("bytes={}-", self.offset));
        }
        let scopes = [Scope::pull(&self.repository)];
        let answer = self.registry.send(&scopes, &call).await?;
        match answer.status() {
            StatusCode::OK => {
                self.skip = self.offset;
                match answer.content_length() {
                    Some(length) if length != self.size => Err(ClientError::SizeMismatch {
                        request: answer.line.clone(),
                        expected: self.size,
                        actual: length,
                    }),
                    _ => Ok(answer),
                }
            }
            StatusCode::PARTIAL_CONTENT if self.offset > 0 => {
                self.skip = 0;
                let range = answer
                    .header("content-range")
                    .and_then(headers::content_range);
                let right = range.is_some_and(|range| {
                    range.first == self.offset
                        && range.last < self.size
                        && range.total.is_none_or(|total| total == self.size)
                });
                if right {
                    return Ok(answer);
                }
                Err(ClientError::bad_answer(
                    &answer.line,
                    format!("the answer is not the range from byte {}", self.offset),
                ))
            }
            _ => {
                let answer = answer.expect(&[]).await;
                Err(answer.expect_err("no status is expected"))
            }
        }
    }
}

/// A blob as a blocking [`Read`]. Dropping it ends the transfer.
#[derive(Debug)]
pub struct BlobReader {
    receiver: mpsc::Receiver<Result<Bytes, ClientError>>,
    piece: Bytes,
    /// Bytes that did not come out of the channel yet.
    remaining: u64,
}

impl BlobReader {
    /// What comes next, without a copy; `None` at the end. Blocks.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        if !self.piece.is_empty() {
            return Ok(Some(std::mem::take(&mut self.piece)));
        }
        match self.receiver.blocking_recv() {
            Some(Ok(piece)) => {
                self.remaining = self.remaining.saturating_sub(piece.len() as u64);
                Ok(Some(piece))
            }
            Some(Err(error)) => Err(io::Error::other(error)),
            // The feeding task closes the channel after the last byte, and where its runtime ends.
            None if self.remaining == 0 => Ok(None),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }

    /// The network's error inside an error of this reader, also where something that read from it wrapped it.
    pub fn client_error(error: &io::Error) -> Option<&ClientError> {
        causes(error).find_map(|cause| cause.downcast_ref())
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() {
            match self.next_piece()? {
                Some(piece) => self.piece = piece,
                None => return Ok(0),
            }
        }
        let length = buffer.len().min(self.piece.len());
        buffer[..length].copy_from_slice(&self.piece[..length]);
        self.piece.advance(length);
        Ok(length)
    }
}
