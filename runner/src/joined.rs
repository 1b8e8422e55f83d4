//! Namespaces of other sandboxes that a new one is in, in place of its own.
//!
//! ```text
//!  helper ── forks ──► a go-between: enters the user namespace of the others, and what of theirs is shared
//!     ▲                  └── forks, as the helper's child ──► init, whose further namespaces are made in there
//!     └──── pidfd ───────┘
//! ```
//!
//! Whatever its namespaces belong to is one user namespace then: its root may do with all of them what the root of the
//! others may.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::thread::ThreadNameSpaceType;

use crate::error::StartError;
use crate::spec::{Namespace, SandboxSpec};
use crate::sys::{self, Fork};
use crate::wire;
use crate::{helper, join};

/// What of which sandboxes is shared.
pub(crate) struct Joined {
    /// Their processes 1, and the namespaces of each that are entered.
    others: Vec<(OwnedFd, ThreadNameSpaceType)>,
    /// Whether they have ids of their own.
    pub(crate) has_own_ids: bool,
    /// Their shared memory, if the messages and memory of one are shared.
    pub(crate) memory: Option<OwnedFd>,
}

fn refused(reason: impl std::fmt::Display) -> StartError {
    StartError::Join {
        reason: reason.to_string(),
    }
}

impl Joined {
    /// What `spec` asks for of `processes`; `None` if that is nothing.
    pub(crate) fn of(
        spec: &SandboxSpec,
        processes: Vec<OwnedFd>,
    ) -> Result<Option<Joined>, StartError> {
        if spec.joined.is_empty() {
            return Ok(None);
        }
        if spec.joined.len() != processes.len() {
            return Err(refused("its process is not known"));
        }
        let mut others = Vec::new();
        let mut ids: Option<PathBuf> = None;
        let mut memory = None;
        for (process, wanted) in processes.into_iter().zip(&spec.joined) {
            let pid = join::pid_of(&process).map_err(refused)?;
            let theirs = join::user_namespace(&pid.to_string()).map_err(refused)?;
            if *ids.get_or_insert_with(|| theirs.clone()) != theirs {
                return Err(refused("they have ids of their own, each other ones"));
            }
            // Only what is not this process's anyway: who may enter it otherwise is its owner alone.
            let differ = join::others(pid);
            let asked = wanted.iter().map(|namespace| kind(*namespace));
            let asked = asked.fold(ThreadNameSpaceType::USER, |all, one| all | one);
            if wanted.contains(&Namespace::Ipc) {
                memory = Some(memory_of(&process, differ)?);
            }
            others.push((process, asked & differ));
        }
        let own = join::user_namespace("self").map_err(refused)?;
        Ok(Some(Joined {
            others,
            has_own_ids: ids.is_some_and(|ids| ids != own),
            memory,
        }))
    }

    /// Forks init, a child of this process, with new `namespaces` beside those that are shared.
    pub(crate) fn fork(
        &self,
        namespaces: u64,
        cgroup: Option<BorrowedFd<'_>>,
    ) -> Result<Fork, StartError> {
        let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
        let between = match sys::fork(0, cgroup).map_err(StartError::step("start a process"))? {
            Fork::Child => {
                drop(ours);
                match self.enter().and_then(|()| {
                    sys::fork_beside(namespaces).map_err(StartError::step("enter new namespaces"))
                }) {
                    Ok(Fork::Child) => return Ok(Fork::Child),
                    Ok(Fork::Parent { pidfd, .. }) => {
                        let sent = wire::send(&theirs, &None::<StartError>, &[pidfd.as_fd()]);
                        sys::exit_now(i32::from(sent.is_err()));
                    }
                    Err(error) => {
                        let _sent = wire::send(&theirs, &Some(error), &[]);
                        sys::exit_now(125);
                    }
                }
            }
            Fork::Parent { pidfd, .. } => pidfd,
        };
        drop(theirs);
        let heard = wire::receive::<Option<StartError>>(&ours);
        helper::reap(&between).map_err(StartError::step("wait for a process"))?;
        match heard.map_err(StartError::step("hear from a process"))? {
            Some((None, mut fds)) => {
                let pidfd = fds.pop().ok_or_else(|| refused("no process"))?;
                let pid = join::pid_of(&pidfd).map_err(refused)?;
                let pid = i32::try_from(pid).map_err(refused)?;
                Ok(Fork::Parent { pid, pidfd })
            }
            Some((Some(error), _)) => Err(error),
            None => Err(refused("the process that entered it is gone")),
        }
    }

    fn enter(&self) -> Result<(), StartError> {
        // Who is in there may not trace this process, which still has the host's binary open.
        rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
            .map_err(StartError::step("make this process undumpable"))?;
        let mut entered = ThreadNameSpaceType::empty();
        for (process, namespaces) in &self.others {
            // A user namespace can be entered once.
            let rest = *namespaces - (entered & ThreadNameSpaceType::USER);
            if !rest.is_empty() {
                enter(process, rest)?;
            }
            entered |= rest;
        }
        Ok(())
    }
}

fn enter(process: &OwnedFd, namespaces: ThreadNameSpaceType) -> Result<(), StartError> {
    rustix::thread::move_into_thread_name_spaces(process.as_fd(), namespaces).map_err(|errno| {
        match errno {
            rustix::io::Errno::PERM => refused("it has other ids, and only root may enter those"),
            errno => refused(std::io::Error::from(errno)),
        }
    })
}

fn kind(namespace: Namespace) -> ThreadNameSpaceType {
    match namespace {
        Namespace::Ipc => ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION,
        Namespace::Network => ThreadNameSpaceType::NETWORK,
        Namespace::Pid => ThreadNameSpaceType::PROCESS_ID,
        Namespace::Uts => ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME,
    }
}

/// A mount of what a sandbox has at `/dev/shm`, taken by a process that goes there for it.
fn memory_of(process: &OwnedFd, differ: ThreadNameSpaceType) -> Result<OwnedFd, StartError> {
    let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
    let child = match sys::fork(0, None).map_err(StartError::step("start a process"))? {
        Fork::Child => {
            drop(ours);
            let places = ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT;
            let taken = rustix::process::set_dumpable_behavior(
                rustix::process::DumpableBehavior::NotDumpable,
            )
            .map_err(StartError::step("make this process undumpable"))
            .and_then(|()| enter(process, places & differ))
            .and_then(|()| clone_memory());
            let code = match taken {
                Ok(mount) => wire::send(&theirs, &None::<StartError>, &[mount.as_fd()]),
                Err(error) => wire::send(&theirs, &Some(error), &[]),
            };
            sys::exit_now(i32::from(code.is_err()));
        }
        Fork::Parent { pidfd, .. } => pidfd,
    };
    drop(theirs);
    let heard = wire::receive::<Option<StartError>>(&ours);
    helper::reap(&child).map_err(StartError::step("wait for a process"))?;
    match heard.map_err(StartError::step("hear from a process"))? {
        Some((None, mut fds)) => fds.pop().ok_or_else(|| refused("no shared memory")),
        Some((Some(error), _)) => Err(error),
        None => Err(refused("the process that entered it is gone")),
    }
}

fn clone_memory() -> Result<OwnedFd, StartError> {
    // Whatever the image or its processes made of the way there: no links.
    let resolve = rustix::fs::ResolveFlags::NO_SYMLINKS;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let found = rustix::fs::openat2(CWD, "/dev/shm", flags, Mode::empty(), resolve);
    let found = found.map_err(StartError::step("open the shared memory"))?;
    let clone = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    open_tree(found, "", clone).map_err(StartError::step("mount the shared memory"))
}
