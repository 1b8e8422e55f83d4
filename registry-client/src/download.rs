//! Blobs on their way in (distribution-spec end-2): resumed after a cut, never longer than announced, large ones in several
//! segments at once.
//!
//! ```text
//! first segment ─ 200 ─► the whole blob by this connection
//!       └ 206 ─► given out ◄─ next ◄─ next ◄─ next      read ahead, each by a task of its own ([`span`])
//!                               └──────┴──────┴──────── kept on the disk for the next process ([`spool`]), where somebody wants that
//! ```

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::{Buf as _, Bytes};
use reqwest::{Method, StatusCode};
use store::content::ahead::ReadAhead;
use store::oci::{Descriptor, Digest, MediaType, Reference};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use crate::Client;
use crate::auth::bearer::Scope;
use crate::error::{ClientError, causes};
use crate::pace::Pace;
use crate::progress::Progress;
use crate::registry::Registry;
use crate::transport::Call;

pub(crate) mod span;
mod spool;

use span::Span;
use spool::Spool;

/// Pieces that wait between the network and a blocking reader.
const PIECES_WAITING: usize = 8;

/// Pieces of a segment that wait for their turn: at the size in which TLS gives them out, a whole segment.
const PIECES_AHEAD: usize = 512;

/// How much smaller than those of the options segments become on a slow line.
const SEGMENT_SHRINK: u64 = 16;

/// Blobs of at least so many segments are read several segments at a time.
const SEGMENTS_MIN: u64 = 4;

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
        let span = self.span(reference, descriptor).await?;
        BlobStream::open(span, self, None).await
    }

    /// A blob from `offset` on; nothing is asked for before the first piece is.
    pub(crate) async fn blob_from(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        offset: u64,
    ) -> Result<BlobStream, ClientError> {
        let span = self.span(reference, descriptor).await?;
        let rest = span.from(offset, descriptor.size);
        Ok(BlobStream::one(rest, self))
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
        let descriptor = descriptor.clone();
        let (requests, mut asked) = mpsc::unbounded_channel::<Request>();
        tokio::spawn(async move {
            let feeding = async {
                // The channel closes where nobody reads any more, which `closed` tells as well.
                while let Some(request) = asked.recv().await {
                    let is_peek = matches!(request.parts, Parts::Peek(_));
                    let feeding =
                        client.feed(&reference, &descriptor, request, &sender, &*progress);
                    match feeding.await {
                        // The blob may be read all the same.
                        Err(error) if is_peek => {
                            let _ = sender.send(Err(error)).await;
                        }
                        fed => fed?,
                    }
                }
                Ok(())
            };
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
            requests,
            receiver,
            piece: Bytes::new(),
            keep: None,
            state: ReaderState::Fresh,
        }
    }

    /// Sends what was asked for, and an empty piece behind it.
    async fn feed(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        request: Request,
        sender: &mpsc::Sender<Result<Bytes, ClientError>>,
        progress: &dyn Progress,
    ) -> Result<(), ClientError> {
        let (digest, size) = (&descriptor.digest, descriptor.size);
        let span = self.span(reference, descriptor).await?;
        let keep = request.keep;
        match request.parts {
            Parts::Peek(part) => {
                let mut span = span.range(part.start, part.end);
                while let Some(piece) = span.next().await? {
                    if sender.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                }
            }
            Parts::From(offset) => {
                progress.started(digest, size);
                progress.rewound(digest, offset);
                let mut stream = BlobStream::open(span.from(offset, size), self, keep).await?;
                while let Some(piece) = stream.next().await? {
                    let length = piece.len() as u64;
                    if sender.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                    progress.advanced(digest, length);
                }
                progress.finished(digest);
            }
            Parts::Only(parts) => {
                progress.started(digest, size);
                let mut parts = Scattered::new(self, span, parts, keep);
                while let Some((offset, piece)) = parts.next().await? {
                    let length = piece.len() as u64;
                    if sender.send(Ok(piece)).await.is_err() {
                        return Ok(());
                    }
                    // What is between two parts need not come.
                    progress.rewound(digest, offset);
                    progress.advanced(digest, length);
                }
                progress.rewound(digest, size);
                progress.finished(digest);
            }
        }
        // Nobody may read any more.
        let _ = sender.send(Ok(Bytes::new())).await;
        Ok(())
    }

    /// A blob whose size its first answer tells.
    pub(crate) async fn span_of(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Span, ClientError> {
        let descriptor = Descriptor::new(MediaType::OCI_LAYER, digest, u64::MAX);
        let mut span = self.span(reference, &descriptor).await?;
        span.has_size = false;
        Ok(span)
    }

    async fn span(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
    ) -> Result<Span, ClientError> {
        let mut places: VecDeque<_> = self.to_read(reference).await?.into();
        let (registry, there) = places.pop_front().expect("every reference has a home");
        Ok(Span::whole(descriptor, registry, &there, places))
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
///
/// Of a large blob several segments are under way at once where the registry answers ranges. That only saves time: whatever
/// goes wrong with those ahead, the blob is read on by one connection from where it stands.
pub struct BlobStream {
    now: Now,
    /// Segments that come after it, in order.
    ahead: VecDeque<Ahead>,
    /// Where what nobody reads yet begins.
    next: u64,
    /// Where what was given out ends.
    offset: u64,
    segments: Arc<Semaphore>,
    /// How large segments are.
    pace: Arc<Mutex<Pace>>,
    segments_max: usize,
    /// To begin another segment with.
    template: Span,
    /// Where what is read ahead is kept.
    keep: Option<Arc<ReadAhead>>,
}

/// What is given out at the moment.
enum Now {
    Span(Box<Span>),
    Ahead(Ahead),
}

/// A segment that a task reads.
struct Ahead {
    pieces: mpsc::Receiver<Result<Bytes, ClientError>>,
    /// Bytes of it that did not come yet.
    remaining: u64,
    _slot: OwnedSemaphorePermit,
}

impl std::fmt::Debug for BlobStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlobStream")
            .field("digest", &self.template.digest)
            .field("offset", &self.offset)
            .field("size", &self.template.size)
            .finish_non_exhaustive()
    }
}

impl BlobStream {
    /// What a span reads, connected or not; more only where it is not the end of the blob.
    pub(crate) fn one(span: Span, client: &Client) -> BlobStream {
        BlobStream {
            next: span.end,
            offset: span.offset,
            template: span.from(span.offset, span.size),
            now: Now::Span(Box::new(span)),
            ahead: VecDeque::new(),
            segments: Arc::clone(&client.shared.segments),
            pace: paced(client),
            segments_max: client.options().segments,
            keep: None,
        }
    }

    /// Connects: the first answer tells whether there are ranges.
    async fn open(
        mut span: Span,
        client: &Client,
        keep: Option<Arc<ReadAhead>>,
    ) -> Result<BlobStream, ClientError> {
        let options = client.options();
        let (size, segment_bytes) = (span.size, options.segment_bytes.max(1));
        let left = size - span.offset;
        if left == 0 && size > 0 {
            return Ok(BlobStream::one(span, client));
        }
        let is_large = options.segments > 1 && left / segment_bytes >= SEGMENTS_MIN;
        if is_large {
            span.end = span.offset + segment_bytes;
        }
        span.connect().await?;
        if !span.is_range() {
            span.end = size;
        }
        let mut stream = BlobStream {
            keep,
            ..BlobStream::one(span, client)
        };
        stream.look_ahead();
        Ok(stream)
    }

    /// The next piece; `None` after exactly the descriptor's size.
    pub async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            let came = match &mut self.now {
                Now::Span(span) => span.next().await?,
                Now::Ahead(ahead) => match ahead.next().await {
                    Ok(piece) => piece,
                    Err(error) => {
                        tracing::debug!(%error, "no more segments at once");
                        self.ahead.clear();
                        self.next = self.template.size;
                        let rest = self.template.from(self.offset, self.template.size);
                        self.now = Now::Span(Box::new(rest));
                        continue;
                    }
                },
            };
            if let Some(piece) = came {
                self.offset += piece.len() as u64;
                return Ok(Some(piece));
            }
            self.now = match self.ahead.pop_front() {
                Some(ahead) => Now::Ahead(ahead),
                None if self.next == self.template.size => return Ok(None),
                // Other blobs have all the slots.
                None => {
                    let first = self.next;
                    self.next = self.segment_end(first);
                    Now::Span(Box::new(self.template.from(first, self.next)))
                }
            };
            self.look_ahead();
        }
    }

    /// Begins segments, as many as may be under way.
    fn look_ahead(&mut self) {
        while self.next < self.template.size && self.ahead.len() + 1 < self.segments_max {
            let Ok(slot) = Arc::clone(&self.segments).try_acquire_owned() else {
                return;
            };
            let first = self.next;
            self.next = self.segment_end(first);
            let span = self.template.range(first, self.next);
            let pace = Arc::clone(&self.pace);
            let keep = self.keep.clone();
            self.ahead.push_back(Ahead::start(span, slot, pace, keep));
        }
    }

    fn segment_end(&self, first: u64) -> u64 {
        let pace = self.pace.lock().unwrap_or_else(PoisonError::into_inner);
        let end = first.saturating_add(pace.bytes());
        end.min(self.template.size)
    }
}

impl Ahead {
    /// Reads a span; `pace` is told how long it took.
    fn start(
        mut span: Span,
        slot: OwnedSemaphorePermit,
        pace: Arc<Mutex<Pace>>,
        keep: Option<Arc<ReadAhead>>,
    ) -> Ahead {
        let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
        let remaining = span.end - span.offset;
        let started = Instant::now();
        tokio::spawn(async move {
            let reading = async {
                let mut spool = Spool::start(keep, span.offset).await;
                loop {
                    let came = span.next().await.transpose();
                    let Some(came) = came else {
                        let elapsed = started.elapsed();
                        spool.write().await;
                        let mut pace = pace.lock().unwrap_or_else(PoisonError::into_inner);
                        pace.took(remaining, elapsed);
                        return;
                    };
                    let piece = came.as_ref().ok().cloned();
                    if sender.send(came).await.is_err() {
                        return;
                    }
                    match piece {
                        Some(piece) => spool.add(piece).await,
                        None => return spool.write().await,
                    }
                }
            };
            tokio::select! {
                () = reading => {}
                // Nobody reads any more.
                () = sender.closed() => {}
            }
        });
        Ahead {
            pieces,
            remaining,
            _slot: slot,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, ClientError> {
        match self.pieces.recv().await.transpose()? {
            Some(piece) => {
                self.remaining = self.remaining.saturating_sub(piece.len() as u64);
                Ok(Some(piece))
            }
            None if self.remaining == 0 => Ok(None),
            None => Err(ClientError::Setup {
                what: "a segment".to_owned(),
                reason: "its task has ended".to_owned(),
            }),
        }
    }
}

/// Several parts of a blob in order, some of which are asked for before they are needed; long ones as segments.
struct Scattered<'a> {
    client: &'a Client,
    template: Span,
    parts: VecDeque<Range<u64>>,
    /// Parts under way, the first of which is given out; each with where it stands.
    ahead: VecDeque<(u64, Now)>,
    /// How large segments are.
    pace: Arc<Mutex<Pace>>,
    keep: Option<Arc<ReadAhead>>,
}

impl<'a> Scattered<'a> {
    fn new(
        client: &'a Client,
        template: Span,
        parts: Vec<Range<u64>>,
        keep: Option<Arc<ReadAhead>>,
    ) -> Scattered<'a> {
        Scattered {
            client,
            template,
            parts: parts.into(),
            ahead: VecDeque::new(),
            pace: paced(client),
            keep,
        }
    }

    /// The next piece, and its offset in the blob; `None` after the last part.
    async fn next(&mut self) -> Result<Option<(u64, Bytes)>, ClientError> {
        loop {
            self.look_ahead();
            let Some((offset, now)) = self.ahead.front_mut() else {
                return Ok(None);
            };
            let came = match now {
                Now::Span(span) => span.next().await?,
                Now::Ahead(ahead) => ahead.next().await?,
            };
            match came {
                Some(piece) => {
                    let at = *offset;
                    *offset += piece.len() as u64;
                    return Ok(Some((at, piece)));
                }
                None => self.ahead.pop_front(),
            };
        }
    }

    /// Begins parts, as many as may be under way; one at least.
    fn look_ahead(&mut self) {
        while self.ahead.len() < self.client.options().segments.max(1) {
            let slot = Arc::clone(&self.client.shared.segments).try_acquire_owned();
            if slot.is_err() && !self.ahead.is_empty() {
                return;
            }
            let Some(part) = self.next_part() else {
                return;
            };
            let span = self.template.range(part.start, part.end);
            let now = match slot {
                Ok(slot) => {
                    let pace = Arc::clone(&self.pace);
                    Now::Ahead(Ahead::start(span, slot, pace, self.keep.clone()))
                }
                Err(_) => Now::Span(Box::new(span)),
            };
            self.ahead.push_back((part.start, now));
        }
    }

    /// The next part that nobody reads yet, at most a segment of it.
    fn next_part(&mut self) -> Option<Range<u64>> {
        let most = self
            .pace
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .bytes();
        let part = self.parts.front_mut()?;
        if part.end - part.start <= most {
            return self.parts.pop_front();
        }
        let first = part.start..part.start + most;
        part.start = first.end;
        Some(first)
    }
}

/// How large segments are to begin with, and may become: no larger than what memory is counted with.
fn paced(client: &Client) -> Arc<Mutex<Pace>> {
    let most = client.options().segment_bytes.max(1);
    Arc::new(Mutex::new(Pace::new(most, most / SEGMENT_SHRINK, most)))
}

/// What a reader asks its task for.
#[derive(Debug)]
struct Request {
    parts: Parts,
    /// Where what is read ahead is kept.
    keep: Option<Arc<ReadAhead>>,
}

/// What of a blob is asked for.
#[derive(Debug)]
enum Parts {
    /// From an offset to its end.
    From(u64),
    /// Some parts of it, ascending.
    Only(Vec<Range<u64>>),
    /// A part, to look at before it is decided what to ask for: progress does not tell of it.
    Peek(Range<u64>),
}

/// A blob as a blocking [`Read`]. Dropping it ends the transfer, and the first read begins it.
#[derive(Debug)]
pub struct BlobReader {
    /// Tells the task what to read.
    requests: mpsc::UnboundedSender<Request>,
    /// What was asked for, and an empty piece behind it.
    receiver: mpsc::Receiver<Result<Bytes, ClientError>>,
    piece: Bytes,
    keep: Option<Arc<ReadAhead>>,
    state: ReaderState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ReaderState {
    /// Nothing was asked for but to look at.
    Fresh,
    Reading,
    Ended,
}

impl BlobReader {
    /// Has what comes before what is in front of it kept there, in a transfer that is begun after this.
    pub fn keep_ahead(&mut self, keep: Arc<ReadAhead>) {
        self.keep = Some(keep);
    }

    /// Begins the transfer at an offset within the blob, unless it was begun: whoever reads has what comes before.
    pub fn start_at(&mut self, offset: u64) {
        self.begin(Parts::From(offset));
    }

    /// Begins the transfer of some parts of the blob, ascending, unless it was begun: whoever reads has all others. It fails
    /// where a registry answers no ranges.
    pub fn start_with(&mut self, parts: Vec<Range<u64>>) {
        self.begin(Parts::Only(parts));
    }

    fn begin(&mut self, parts: Parts) {
        if self.state == ReaderState::Fresh {
            self.state = ReaderState::Reading;
            let keep = self.keep.take();
            // Where the task has ended, reading tells why.
            let _ = self.requests.send(Request { parts, keep });
        }
    }

    /// A part of the blob, read before the transfer is begun; at most `u32::MAX` bytes. Blocks.
    pub fn peek(&mut self, part: Range<u64>) -> io::Result<Vec<u8>> {
        if self.state != ReaderState::Fresh {
            return Err(io::Error::other("the transfer was begun"));
        }
        let length = part.end.saturating_sub(part.start);
        let length = u32::try_from(length).map_err(io::Error::other)?;
        let _ = self.requests.send(Request {
            parts: Parts::Peek(part),
            keep: None,
        });
        let mut bytes = Vec::with_capacity(length as usize);
        while let Some(piece) = self.receive()? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// What comes next, without a copy; `None` at the end. Blocks.
    pub fn next_piece(&mut self) -> io::Result<Option<Bytes>> {
        self.start_at(0);
        if !self.piece.is_empty() {
            return Ok(Some(std::mem::take(&mut self.piece)));
        }
        if self.state == ReaderState::Ended {
            return Ok(None);
        }
        let piece = self.receive()?;
        if piece.is_none() {
            self.state = ReaderState::Ended;
        }
        Ok(piece)
    }

    /// The next piece that the task sends; `None` behind what was asked for.
    fn receive(&mut self) -> io::Result<Option<Bytes>> {
        match self.receiver.blocking_recv() {
            Some(Ok(piece)) => Ok((!piece.is_empty()).then_some(piece)),
            Some(Err(error)) => Err(io::Error::other(error)),
            // Where its runtime ends.
            None => Err(io::Error::other(ClientError::Setup {
                what: "the rest of a blob".to_owned(),
                reason: "its transfer was given up".to_owned(),
            })),
        }
    }

    /// The network's error inside an error of this reader, also where something that read from it wrapped it.
    pub fn client_error<'a>(
        error: &'a (dyn std::error::Error + 'static),
    ) -> Option<&'a ClientError> {
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
