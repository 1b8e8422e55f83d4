//! One command that is connected to a supervisor, and its streams.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::sandbox::Sandbox;

/// A connected command.
pub(super) struct Connection {
    pub(super) socket: OwnedFd,
    pub(super) role: Role,
}

/// What a connected command is there for.
pub(super) enum Role {
    /// To ask something.
    Asking,
    /// To hear of the end of the process.
    Waiting,
    /// For its streams.
    Attached(Attachment),
    /// For another process in the container.
    Executing(Sandbox),
}

/// The streams of who is attached.
pub(super) struct Attachment {
    pub(super) stdin: Option<OwnedFd>,
    /// For standard output and standard error.
    pub(super) outlets: [Option<Outlet>; 2],
}

/// Where output goes.
pub(super) struct Outlet {
    pub(super) fd: OwnedFd,
    waiting: Vec<u8>,
}

impl Outlet {
    pub(super) fn is_behind(&self) -> bool {
        !self.waiting.is_empty()
    }
}

impl Attachment {
    /// From three descriptors: input, output, error.
    pub(super) fn of(
        mut fds: impl Iterator<Item = OwnedFd>,
        stdin: bool,
    ) -> io::Result<Attachment> {
        let mut next = || {
            let fd = fds.next().ok_or(io::ErrorKind::InvalidInput)?;
            unblock(std::os::fd::AsFd::as_fd(&fd))?;
            Ok::<OwnedFd, io::Error>(fd)
        };
        let input = next()?;
        let mut outlet = || {
            Ok::<_, io::Error>(Some(Outlet {
                fd: next()?,
                waiting: Vec::new(),
            }))
        };
        Ok(Attachment {
            outlets: [outlet()?, outlet()?],
            stdin: stdin.then_some(input),
        })
    }
}

impl Connection {
    pub(super) fn new(socket: OwnedFd) -> Connection {
        Connection {
            socket,
            role: Role::Asking,
        }
    }

    /// Whether it is to be told when the process ends.
    pub(super) fn waits_for_end(&self) -> bool {
        matches!(self.role, Role::Waiting | Role::Attached(_))
    }

    /// Whether it has not read what it was given.
    pub(super) fn is_behind(&self) -> bool {
        match &self.role {
            Role::Attached(attachment) => {
                let mut outlets = attachment.outlets.iter().flatten();
                outlets.any(Outlet::is_behind)
            }
            _ => false,
        }
    }

    /// Gives it what was printed.
    pub(super) fn print(&mut self, number: usize, printed: &[u8]) {
        if let Role::Attached(attachment) = &mut self.role
            && let Some(outlet) = &mut attachment.outlets[number]
        {
            outlet.waiting.extend_from_slice(printed);
            self.flush(number);
        }
    }

    /// Gives it what it takes of what waits.
    pub(super) fn flush(&mut self, number: usize) {
        let Role::Attached(attachment) = &mut self.role else {
            return;
        };
        let Some(outlet) = &mut attachment.outlets[number] else {
            return;
        };
        match rustix::io::write(&outlet.fd, &outlet.waiting) {
            Ok(count) => drop(outlet.waiting.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            // Nobody reads it any more.
            Err(_) => attachment.outlets[number] = None,
        }
    }
}

/// Makes reading and writing return at once.
pub(super) fn unblock(fd: BorrowedFd<'_>) -> io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    Ok(rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)?)
}
