//! The caller's helpers: one for each sandbox that runs, and those that wait for the next one.
//!
//! To start this program again costs about as much as the sandbox itself, so a helper that has done its work is kept. It holds
//! nothing of the sandbox that it had, and ends when the caller does, since it then has the only end of its socket.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::sync::{Mutex, PoisonError};

use rustix::process::{Signal, pidfd_send_signal};

use super::Use;
use crate::{sandbox, sys, wire};

/// So many may wait: more than a build has steps at work at a time on most machines.
const IDLE_MAX: usize = 8;

static IDLE: Mutex<Vec<Helper>> = Mutex::new(Vec::new());

/// A helper that nobody else in this process uses.
#[derive(Debug)]
pub(crate) struct Helper {
    usage: Use,
    /// Whether it has had a sandbox before.
    is_used: bool,
    process: OwnedFd,
    socket: OwnedFd,
}

impl Helper {
    /// One that has nothing to do; a new one if there is none.
    pub(crate) fn take(usage: Use) -> io::Result<Self> {
        let idle = match usage {
            Use::Sandboxes => IDLE.lock().unwrap_or_else(PoisonError::into_inner).pop(),
            Use::Sandbox | Use::Join => None,
        };
        match idle {
            Some(helper) => Ok(helper),
            None => Self::start(usage),
        }
    }

    fn start(usage: Use) -> io::Result<Self> {
        let (socket, theirs) = wire::pair()?;
        let program = CString::new(sandbox::own_program().as_os_str().as_bytes())?;
        let process = sys::spawn(&program, usage.name(), theirs.as_fd())?;
        Ok(Self {
            usage,
            is_used: false,
            process,
            socket,
        })
    }

    /// Gives it a job: a file with the spec, and what else belongs to it.
    ///
    /// # Errors
    ///
    /// No helper takes it.
    pub(crate) fn send(&mut self, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        loop {
            match wire::send(&self.socket, &(), fds) {
                // It was killed while it waited: the next one is as good.
                Err(error) if self.is_used && error.kind() == io::ErrorKind::BrokenPipe => {
                    let _status = wait(&self.process);
                    *self = Self::take(self.usage)?;
                }
                result => return result,
            }
        }
    }

    /// Its end of the conversation.
    pub(crate) fn socket(&self) -> &OwnedFd {
        &self.socket
    }

    /// Keeps it for the next sandbox, after it has said that it is done with this one.
    pub(crate) fn put_back(mut self) {
        self.is_used = true;
        if self.usage == Use::Sandboxes {
            let mut idle = IDLE.lock().unwrap_or_else(PoisonError::into_inner);
            if idle.len() < IDLE_MAX {
                idle.push(self);
                return;
            }
        }
        let _status = self.end();
    }

    /// Ends it, and with it its sandbox.
    pub(crate) fn kill(&self) {
        let _ended = pidfd_send_signal(&self.process, Signal::KILL);
    }

    /// Lets it go, and waits until it is gone.
    pub(crate) fn end(self) -> io::Result<ExitStatus> {
        drop(self.socket);
        wait(&self.process)
    }
}

fn wait(process: &OwnedFd) -> io::Result<ExitStatus> {
    let (status, _) = sys::wait_for(process.as_fd())?;
    Ok(ExitStatus::from_raw(status))
}
