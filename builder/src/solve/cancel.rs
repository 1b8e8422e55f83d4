//! Cancellation: one flag that threads can look at and file descriptors can be waited on with.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::pipe::{PipeFlags, pipe_with};

/// Set once, never cleared; clones share it.
#[derive(Clone, Debug)]
pub struct Cancel {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    cancelled: AtomicBool,
    /// Readable (at its end) once cancelled.
    reader: OwnedFd,
    writer: OwnedFd,
}

impl Cancel {
    /// A flag that is not set. Fails if no pipe can be made.
    pub fn new() -> io::Result<Cancel> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        let shared = Shared {
            cancelled: AtomicBool::new(false),
            reader,
            writer,
        };
        Ok(Cancel {
            shared: Arc::new(shared),
        })
    }

    /// Sets the flag and wakes whoever polls [`Cancel::as_fd`].
    pub fn cancel(&self) {
        if !self.shared.cancelled.swap(true, Ordering::SeqCst) {
            // The pipe is empty, so one byte always fits.
            let _written = rustix::io::write(&self.shared.writer, b"x");
        }
    }

    /// Whether the flag is set.
    pub fn is_cancelled(&self) -> bool {
        self.shared.cancelled.load(Ordering::SeqCst)
    }

    /// The flag itself, for loops that look at it often.
    pub fn flag(&self) -> &AtomicBool {
        &self.shared.cancelled
    }
}

impl AsFd for Cancel {
    /// Readable once the flag is set.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.reader.as_fd()
    }
}
