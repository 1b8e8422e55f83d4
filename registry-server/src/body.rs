//! Response bodies: nothing, bytes, or pieces of a file or of a blob elsewhere with text between them
//! (`multipart/byteranges`).

use std::collections::VecDeque;
use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::task::JoinHandle;

use crate::observe::Watched;
use crate::pace::{Beat, Pulse};
use crate::sendfile::SendQueue;
use crate::storage::{RemoteBlob, RemoteStream};

/// Bytes read from a file at once where it cannot be sent by `sendfile`; at most two blocks wait per response.
const BLOCK_BYTES: u64 = 256 * 1024;

/// One stretch of a response.
#[derive(Clone, Debug)]
pub enum Piece {
    /// These bytes.
    Bytes(Bytes),
    /// `size` bytes of a file from `offset`.
    File {
        /// Open for reading; its content does not change.
        file: Arc<File>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        size: u64,
    },
    /// `size` bytes of a blob elsewhere from `offset`.
    Remote {
        /// The blob.
        blob: Arc<dyn RemoteBlob>,
        /// First byte.
        offset: u64,
        /// Length in bytes.
        size: u64,
    },
}

impl Piece {
    fn size(&self) -> u64 {
        match self {
            Piece::Bytes(bytes) => bytes.len() as u64,
            Piece::File { size, .. } | Piece::Remote { size, .. } => *size,
        }
    }
}

/// The body of a response, with its exact length.
#[derive(Default)]
pub struct Body {
    pieces: VecDeque<Piece>,
    remaining: u64,
    /// Where files go by `sendfile`; `None` reads them block by block.
    queue: Option<SendQueue>,
    block: Option<JoinHandle<io::Result<Bytes>>>,
    /// What comes from elsewhere, and how many bytes of it are still to come.
    stream: Option<(RemoteStream, u64)>,
    watch: Option<Watch>,
    beat: Option<Beat>,
}

/// Tells of a body's end when it is dropped.
struct Watch {
    watched: Option<Watched>,
    size: u64,
    sent: u64,
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(watched) = self.watched.take() {
            watched.ended(self.sent, self.sent == self.size);
        }
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Body")
            .field("pieces", &self.pieces)
            .field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl Body {
    /// No bytes.
    pub fn empty() -> Body {
        Body::default()
    }

    /// These bytes.
    pub fn full(bytes: Bytes) -> Body {
        Body::pieces([Piece::Bytes(bytes)])
    }

    /// These pieces, one after the other.
    pub fn pieces(pieces: impl IntoIterator<Item = Piece>) -> Body {
        let pieces: VecDeque<Piece> = pieces.into_iter().filter(|p| p.size() > 0).collect();
        Body {
            remaining: pieces.iter().map(Piece::size).sum(),
            pieces,
            queue: None,
            block: None,
            stream: None,
            watch: None,
            beat: None,
        }
    }

    /// Tells `pulse` whether its bytes are taken.
    #[must_use]
    pub(crate) fn beating(mut self, pulse: Option<Arc<Pulse>>) -> Body {
        self.beat = pulse.map(Beat::new);
        self
    }

    /// Has its end told.
    pub(crate) fn watch(&mut self, watched: Watched) {
        self.watch = Some(Watch {
            watched: Some(watched),
            size: self.remaining,
            sent: 0,
        });
    }

    /// Lets files go out by `sendfile` on the connection that `queue` belongs to.
    #[must_use]
    pub fn on(mut self, queue: Option<SendQueue>) -> Body {
        self.queue = queue;
        self
    }

    /// Length in bytes.
    pub fn size(&self) -> u64 {
        self.remaining
    }

    fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        if let Some(block) = &mut self.block {
            let read = ready!(Pin::new(block).poll(cx));
            self.block = None;
            return Poll::Ready(Some(
                read.unwrap_or_else(|error| Err(io::Error::other(error))),
            ));
        }
        if self.stream.is_some() {
            return self.poll_stream(cx);
        }
        match self.pieces.pop_front() {
            None => Poll::Ready(None),
            Some(Piece::Remote { blob, offset, size }) => {
                self.stream = Some((blob.stream(offset..offset + size), size));
                self.poll_stream(cx)
            }
            Some(Piece::Bytes(bytes)) => Poll::Ready(Some(Ok(bytes))),
            Some(Piece::File { file, offset, size }) => match &self.queue {
                Some(queue) => {
                    let placeholder = queue.push(&file, offset, size);
                    self.put_back(file, offset, size, placeholder.len() as u64);
                    Poll::Ready(Some(Ok(placeholder)))
                }
                None => {
                    let count = size.min(BLOCK_BYTES);
                    let source = Arc::clone(&file);
                    self.block = Some(tokio::task::spawn_blocking(move || {
                        let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
                        source.read_exact_at(&mut bytes, offset)?;
                        Ok(Bytes::from(bytes))
                    }));
                    self.put_back(file, offset, size, count);
                    self.poll_next(cx)
                }
            },
        }
    }

    fn poll_stream(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let Some((stream, missing)) = &mut self.stream else {
            return Poll::Ready(None);
        };
        let cut = || Err(io::Error::from(io::ErrorKind::UnexpectedEof));
        let mut bytes = match ready!(stream.as_mut().poll_next(cx)) {
            Some(Ok(bytes)) => bytes,
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            None => return Poll::Ready(Some(cut())),
        };
        // More than was asked for would run into the next piece.
        bytes.truncate(usize::try_from(*missing).unwrap_or(usize::MAX));
        *missing -= bytes.len() as u64;
        if *missing == 0 {
            self.stream = None;
        }
        Poll::Ready(Some(Ok(bytes)))
    }

    /// Puts back what `taken` leaves of a file's piece.
    fn put_back(&mut self, file: Arc<File>, offset: u64, size: u64, taken: u64) {
        if size > taken {
            self.pieces.push_front(Piece::File {
                file,
                offset: offset + taken,
                size: size - taken,
            });
        }
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        if let Some(beat) = &mut self.beat {
            beat.taken();
        }
        let next = ready!(self.poll_next(cx));
        if let Some(Ok(bytes)) = &next {
            if let Some(beat) = &mut self.beat {
                beat.offered(bytes.len());
            }
            self.remaining -= bytes.len() as u64;
            if let Some(watch) = &mut self.watch {
                watch.sent += bytes.len() as u64;
            }
        }
        Poll::Ready(next.map(|read| read.map(Frame::data)))
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}
