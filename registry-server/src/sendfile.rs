//! Blobs by `sendfile(2)`, through a hyper that knows nothing of it, and without unsafe code.
//!
//! hyper takes response bodies as memory. So a body that stands for a piece of a file yields a *placeholder*: a
//! slice of one never-touched zero window, of the piece's length, and puts the piece into its connection's
//! queue. hyper frames it (lengths, keep-alive, parts) and hands the slice, by address, to [`Connection`]'s
//! `poll_write_vectored`, which knows the window by its address and lets the kernel send the piece instead.
//!
//! ```text
//! FileBody ── (file, offset, len) ──► SendQueue ─────────────┐
//!    └─ placeholder Bytes ─► hyper ─► poll_write_vectored ───┴─► sendfile(socket, file)
//! ```
//!
//! Two invariants keep zeros from ever being sent for data:
//! - HTTP/1.1 writes frames in the order in which they were polled, so the queue's front is always what the
//!   placeholder stands for. HTTP/2 interleaves streams and TLS needs the bytes: both use blocks read from the
//!   file instead ([`crate::body`]), and never see a placeholder.
//! - A placeholder without a piece in the queue is an error that closes the connection.
//!
//! The window is allocated zeroed and never read or written, so it costs address space, not memory.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

use crate::pace::{Pace, Paced, TooSlow};

/// Length of the window, and so of the longest single placeholder.
const WINDOW_BYTES: usize = 64 * 1024 * 1024;

/// Length of HTTP/2's opening words, which hyper waits for where they may be meant.
pub const PREFACE_BYTES: usize = 24;

/// Most bytes that one `sendfile` call is asked for, so that one fast reader does not keep a thread to itself.
const SEND_BYTES_MAX: usize = 2 * 1024 * 1024;

fn window() -> &'static Bytes {
    static WINDOW: OnceLock<Bytes> = OnceLock::new();
    // A large zeroed allocation is fresh pages from the kernel, which stay unmapped until touched.
    WINDOW.get_or_init(|| Bytes::from(vec![0; WINDOW_BYTES]))
}

fn is_placeholder(slice: &[u8]) -> bool {
    window().as_ptr_range().contains(&slice.as_ptr())
}

/// A piece of a file that waits to be sent.
#[derive(Debug)]
struct Piece {
    file: Arc<File>,
    offset: u64,
    size: usize,
}

/// What a connection's placeholders stand for, oldest first.
#[derive(Clone, Debug, Default)]
pub struct SendQueue(Arc<Mutex<VecDeque<Piece>>>);

impl SendQueue {
    /// Queues up to `size` bytes of `file` from `offset` and returns the placeholder to hand to hyper; its
    /// length says how many bytes it stands for.
    pub fn push(&self, file: &Arc<File>, offset: u64, size: u64) -> Bytes {
        let size = usize::try_from(size).map_or(WINDOW_BYTES, |size| size.min(WINDOW_BYTES));
        self.pieces().push_back(Piece {
            file: Arc::clone(file),
            offset,
            size,
        });
        window().slice(..size)
    }

    fn pieces(&self) -> std::sync::MutexGuard<'_, VecDeque<Piece>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A TCP connection whose placeholders go out by `sendfile`, and which gives up on a peer that stops reading.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    queue: SendQueue,
    stall: Stall,
    /// Bytes still to come before the peer counts as one that speaks.
    preface: usize,
    silence: Stall,
}

impl Connection {
    /// Wraps an accepted connection. Writes fail that the peer does not take at `pace`, and so does the first read unless
    /// [`PREFACE_BYTES`] arrive within `preface_timeout`.
    pub(crate) fn new(stream: TcpStream, pace: Pace, preface_timeout: Duration) -> Connection {
        let silence = Pace {
            window: preface_timeout,
            rate: 0,
        };
        Connection {
            stream,
            queue: SendQueue::default(),
            stall: Stall::new(pace, "the peer stopped reading, or reads too slowly"),
            preface: PREFACE_BYTES,
            silence: Stall::new(silence, "the peer sends no request"),
        }
    }

    /// The queue that this connection's bodies push to.
    pub fn queue(&self) -> SendQueue {
        self.queue.clone()
    }

    /// Sends from the front of the queue, at most `limit` bytes.
    fn poll_send_piece(&mut self, cx: &mut Context<'_>, limit: usize) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let sent = {
                let mut pieces = self.queue.pieces();
                let Some(piece) = pieces.front_mut() else {
                    return Poll::Ready(Err(io::Error::other("a placeholder stands for nothing")));
                };
                let count = limit.min(piece.size).min(SEND_BYTES_MAX);
                let stream = &self.stream;
                let sent = stream.try_io(Interest::WRITABLE, || {
                    let mut offset = piece.offset;
                    Ok(rustix::fs::sendfile(
                        stream,
                        &piece.file,
                        Some(&mut offset),
                        count,
                    )?)
                });
                if let Ok(sent) = sent {
                    piece.offset += sent as u64;
                    piece.size -= sent;
                    if piece.size == 0 {
                        pieces.pop_front();
                    }
                }
                sent
            };
            match sent {
                Ok(0) => {
                    return Poll::Ready(Err(io::Error::new(
                        io::ErrorKind::UnexpectedEof,
                        "a blob became shorter while it was sent",
                    )));
                }
                Ok(sent) => return Poll::Ready(Ok(sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    /// Sends plain bytes that a placeholder follows: `MSG_MORE` lets the kernel join them in one segment.
    fn poll_send_more(&mut self, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(cx))?;
            let stream = &self.stream;
            let sent = stream.try_io(Interest::WRITABLE, || {
                Ok(rustix::net::send(
                    stream,
                    bytes,
                    SendFlags::MORE | SendFlags::NOSIGNAL,
                )?)
            });
            match sent {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                sent => return Poll::Ready(sent),
            }
        }
    }

    fn poll_write_any(
        &mut self,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let plain = slices
            .iter()
            .position(|slice| !slice.is_empty() && is_placeholder(slice));
        match plain {
            None => Pin::new(&mut self.stream).poll_write_vectored(cx, slices),
            Some(first) => match slices[..first].iter().find(|slice| !slice.is_empty()) {
                Some(_) if first > 1 => {
                    Pin::new(&mut self.stream).poll_write_vectored(cx, &slices[..first])
                }
                Some(head) => self.poll_send_more(cx, head),
                None => self.poll_send_piece(cx, slices[first].len()),
            },
        }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        if self.preface == 0 {
            return read;
        }
        self.preface = self.preface.saturating_sub(buf.filled().len() - before);
        if read.is_ready() {
            return read;
        }
        self.silence.poll(cx)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_write_any(cx, &[IoSlice::new(buf)]);
        self.stall.check(cx, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = self.poll_write_any(cx, bufs);
        self.stall.check(cx, written)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Turns an operation that stays pending for too long into an error, and one that goes on too slowly.
#[derive(Debug)]
struct Stall {
    paced: Paced,
    message: &'static str,
    since: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Stall {
    fn new(pace: Pace, message: &'static str) -> Stall {
        Stall {
            paced: pace.start(),
            message,
            since: None,
        }
    }

    fn check(
        &mut self,
        cx: &mut Context<'_>,
        written: Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        let Poll::Ready(written) = written else {
            return self.poll(cx).map_ok(|()| 0);
        };
        let since = self.since.take();
        let waited = since.map_or(Duration::ZERO, |(since, _)| since.elapsed());
        let count = written?;
        let moved = self.paced.moved(count, waited);
        Poll::Ready(moved.map(|()| count).map_err(|TooSlow| self.error()))
    }

    /// Pending until the patience since the first call is over; then the error.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let patience = self.paced.patience();
        let (_, sleep) = self.since.get_or_insert_with(|| {
            let now = Instant::now();
            (now, Box::pin(tokio::time::sleep_until(now + patience)))
        });
        ready!(sleep.as_mut().poll(cx));
        Poll::Ready(Err(self.error()))
    }

    fn error(&self) -> io::Error {
        io::Error::new(io::ErrorKind::TimedOut, self.message)
    }
}
