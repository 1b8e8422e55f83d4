//! Letting a container's processes stand still, and go on.
//!
//! By the freezer of its version 2 control group, which they do not notice. Where it has none of its own, by SIGSTOP to each,
//! which a parent in there may see. The freezer of version 1 is not used: SIGKILL waits there until somebody thaws it, so that
//! a container whose supervisor is killed would stay for ever.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::processes;
use crate::cgroup;
use crate::sys;

/// How long it may take until all stand still: a process that waits for a disk does not hear of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often is looked whether processes that were stopped stand still.
const LOOK_NS: i64 = 1_000_000;

/// What keeps a container's processes standing still.
pub(super) enum Frozen {
    /// Their control group.
    Group(PathBuf),
    /// A signal to each, all of them in the pid namespace of this process 1.
    Signals(u32),
}

/// Lets all processes of a container stand still, by its process 1; when this returns, they do.
pub(super) fn freeze(process_1: u32) -> io::Result<Frozen> {
    let deadline = Instant::now() + PATIENCE;
    let (frozen, outcome) = match group(process_1) {
        Some(group) => {
            std::fs::write(group.join("cgroup.freeze"), "1")?;
            let outcome = until_frozen(&group, deadline);
            (Frozen::Group(group), outcome)
        }
        None => (Frozen::Signals(process_1), stop_all(process_1, deadline)),
    };
    match outcome {
        Ok(()) => Ok(frozen),
        Err(error) => {
            let _undone = frozen.thaw();
            Err(error)
        }
    }
}

impl Frozen {
    /// Lets them go on.
    pub(super) fn thaw(&self) -> io::Result<()> {
        match self {
            Frozen::Group(group) => std::fs::write(group.join("cgroup.freeze"), "0"),
            Frozen::Signals(process_1) => {
                for pid in processes::pids(*process_1)? {
                    send(*process_1, pid, libc::SIGCONT);
                }
                Ok(())
            }
        }
    }
}

/// The container's own version 2 group, if it can be frozen.
fn group(process_1: u32) -> Option<PathBuf> {
    let groups = cgroup::groups_of(process_1);
    let unified = groups.into_iter().find(|group| group.is_unified());
    let path = unified?.path;
    path.join("cgroup.freeze").exists().then_some(path)
}

/// Waits until the kernel says so: it tells who polls the file.
fn until_frozen(group: &Path, deadline: Instant) -> io::Result<()> {
    let path = group.join("cgroup.events");
    loop {
        // Opened before it is read: a change after that wakes the poll.
        let file = File::open(&path)?;
        let text = io::read_to_string(&file)?;
        if text.lines().any(|line| line == "frozen 1") {
            return Ok(());
        }
        let mut fds = [PollFd::from_borrowed_fd(file.as_fd(), PollFlags::PRI)];
        poll(&mut fds, Some(&until(deadline)?)).or_else(|errno| match errno {
            rustix::io::Errno::INTR => Ok(0),
            errno => Err(errno),
        })?;
    }
}

/// Stops all, those too that are started meanwhile.
fn stop_all(process_1: u32, deadline: Instant) -> io::Result<()> {
    loop {
        let mut all_stand = true;
        // By id, so that process 1 is the first: it then starts nothing in the place of another.
        for pid in processes::pids(process_1)? {
            if processes::moves(pid) {
                all_stand = false;
                send(process_1, pid, libc::SIGSTOP);
            }
        }
        if all_stand {
            return Ok(());
        }
        until(deadline)?;
        let pause = Timespec {
            tv_sec: 0,
            tv_nsec: LOOK_NS,
        };
        let _woken = poll(&mut [], Some(&pause));
    }
}

/// What is left of the time.
fn until(deadline: Instant) -> io::Result<Timespec> {
    let rest = deadline.saturating_duration_since(Instant::now());
    if rest.is_zero() {
        return Err(io::ErrorKind::TimedOut.into());
    }
    Ok(Timespec {
        tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: rest.subsec_nanos().into(),
    })
}

/// Signals a process that is in the container, and no other that has got its id.
fn send(process_1: u32, pid: u32, signal: i32) {
    let raw = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let Some(raw) = raw else { return };
    let flags = rustix::process::PidfdFlags::empty();
    if let Ok(process) = rustix::process::pidfd_open(raw, flags)
        && processes::is_in(process_1, pid)
    {
        let _sent = sys::send_signal(process.as_fd(), signal);
    }
}
