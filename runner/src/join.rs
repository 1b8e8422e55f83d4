//! Another process in a sandbox that runs: the helper enters its namespaces, forks, and the child becomes the process.
//!
//! It is confined as the sandbox's own process is, and counted in its control groups.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::StartError;
use crate::helper::{self, Job};
use crate::spec::{Confinement, ExitStatus, ProcessSpec, Ulimit, Usage};
use crate::sys::{self, Fork};
use crate::wire::{self, Progress};
use crate::{confine, init, userns};

/// A further process of a sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct JoinSpec {
    /// The process.
    pub process: ProcessSpec,
    /// What it may do.
    pub confinement: Confinement,
    /// Its limits.
    pub ulimits: Vec<Ulimit>,
}

/// Puts this process, which has a single thread, where the files of a sandbox are what its root sees: into the user and mount
/// namespaces of its process 1. `namespace` is what the caller saw of the former, so that no other process is meant.
///
/// # Errors
/// There is no such process any more, or the kernel refuses.
pub fn enter_files(pid: u32, namespace: &Path) -> Result<(), StartError> {
    let gone = || StartError::step::<std::io::Error>("find the container");
    let raw = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw);
    let raw = raw.ok_or_else(|| gone()(std::io::ErrorKind::NotFound.into()))?;
    let process_1 = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())
        .map_err(|errno| gone()(errno.into()))?;
    let seen = user_namespace(&pid.to_string()).map_err(gone())?;
    // If it lives now, it has had this id all the time.
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [rustix::event::PollFd::new(
        &process_1,
        rustix::event::PollFlags::IN,
    )];
    let ended = rustix::event::poll(&mut fds, Some(&now)).map_err(|errno| gone()(errno.into()))?;
    if ended > 0 || seen != namespace {
        return Err(gone()(std::io::ErrorKind::NotFound.into()));
    }
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::step("make this process undumpable"))?;
    enter(
        &process_1,
        ThreadNameSpaceType::USER | ThreadNameSpaceType::MOUNT,
    )?;
    become_root().map_err(StartError::step("become root of the container"))
}

/// Does the helper's work.
pub(crate) fn attempt(
    caller: BorrowedFd<'_>,
    job: Job<JoinSpec>,
) -> Result<(ExitStatus, Usage), StartError> {
    let Job {
        spec,
        streams,
        mut more,
    } = job;
    let process_1 = more.pop().ok_or_else(|| StartError::Spec {
        what: "no sandbox to join".to_owned(),
    })?;
    let pid = pid_of(&process_1).map_err(StartError::step("find the container"))?;
    let cgroups = cgroup::entries_of(pid);
    // Until the command replaces this program, nobody in there may trace it or open the host's binary through it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::step("make this process undumpable"))?;
    // That of processes counts for children alone; the others are the child's business, so that this process keeps its
    // view of the host.
    enter(&process_1, ThreadNameSpaceType::PROCESS_ID)?;

    let others = others(pid) - ThreadNameSpaceType::PROCESS_ID;
    let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
    match sys::fork(0, None).map_err(StartError::step("fork in the container"))? {
        Fork::Child => {
            let error = become_process(&spec, &process_1, others, streams, &theirs, cgroups);
            let code = error.exit_code();
            let _sent = wire::send(&theirs, &Progress::Failed(error), &[]);
            sys::exit_now(code);
        }
        Fork::Parent { pidfd, .. } => {
            drop((theirs, streams, cgroups, process_1));
            helper::follow(
                caller,
                &ours,
                &pidfd,
                &mut Vec::new(),
                Vec::new(),
                Vec::new(),
            )
        }
    }
}

/// Returns only why it could not.
fn become_process(
    spec: &JoinSpec,
    process_1: &OwnedFd,
    others: ThreadNameSpaceType,
    streams: [OwnedFd; 3],
    report: &OwnedFd,
    cgroups: Vec<File>,
) -> StartError {
    match prepare(spec, process_1, others, streams, report, cgroups) {
        Ok(()) => init::become_command(&spec.confinement, &spec.process),
        Err(error) => error,
    }
}

fn enter(process_1: &OwnedFd, namespaces: ThreadNameSpaceType) -> Result<(), StartError> {
    rustix::thread::move_into_thread_name_spaces(process_1.as_fd(), namespaces)
        .map_err(StartError::step("enter the container"))
}

fn prepare(
    spec: &JoinSpec,
    process_1: &OwnedFd,
    others: ThreadNameSpaceType,
    streams: [OwnedFd; 3],
    report: &OwnedFd,
    cgroups: Vec<File>,
) -> Result<(), StartError> {
    rustix::process::setsid().map_err(StartError::step("start a session"))?;
    for mut group in cgroups {
        group
            .write_all(b"0")
            .map_err(StartError::step("enter the control group"))?;
    }
    // All at once: its user namespace, if it has one of its own, is what gives the right to the others.
    enter(process_1, others)?;
    if others.contains(ThreadNameSpaceType::USER) {
        // Until now it is nobody in there, though with all rights.
        become_root().map_err(StartError::step("become root of the container"))?;
    }
    let mut notes = Vec::new();
    let slave = match spec.process.terminal {
        true => Some(terminal(spec, report, &mut notes)?),
        false => None,
    };
    init::set_streams(slave.as_ref(), &streams)?;
    drop((streams, slave));
    sys::close_all_but(report.as_fd()).map_err(StartError::step("close the descriptors"))?;
    confine::limit(&spec.ulimits)?;
    confine::forgive_owners(userns::has_single_id())?;
    confine::confine(&spec.confinement, &spec.process.user, &mut |note| {
        notes.push(note);
    })?;
    init::settle(&spec.process, report)
}

/// A terminal of the container's: its master goes to the helper, its slave becomes the controlling terminal.
fn terminal(
    spec: &JoinSpec,
    report: &OwnedFd,
    notes: &mut Vec<String>,
) -> Result<OwnedFd, StartError> {
    let step = || StartError::step::<rustix::io::Errno>("open a terminal");
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    let master = rustix::fs::open("/dev/pts/ptmx", flags, Mode::empty()).map_err(step())?;
    // Whatever else the container put there knows neither of these.
    rustix::pty::unlockpt(&master).map_err(step())?;
    let slave = rustix::pty::ioctl_tiocgptpeer(
        &master,
        rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC,
    )
    .map_err(step())?;
    init::control_terminal(&master, &slave, &spec.process, report, notes)?;
    Ok(slave)
}

fn become_root() -> rustix::io::Result<()> {
    use rustix::thread::{Gid, Uid};
    rustix::thread::set_thread_groups(&[])?;
    rustix::thread::set_thread_res_gid(Gid::ROOT, Gid::ROOT, Gid::ROOT)?;
    rustix::thread::set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT)
}

/// The namespaces of a process that are not this one's. Who is in one already need not enter it, and an
/// ordinary user may not: the host's network belongs to the host.
pub(crate) fn others(pid: u32) -> ThreadNameSpaceType {
    const NAMES: [(&str, ThreadNameSpaceType); 7] = [
        ("user", ThreadNameSpaceType::USER),
        ("pid", ThreadNameSpaceType::PROCESS_ID),
        ("mnt", ThreadNameSpaceType::MOUNT),
        ("ipc", ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION),
        ("uts", ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME),
        ("net", ThreadNameSpaceType::NETWORK),
        ("cgroup", ThreadNameSpaceType::CONTROL_GROUP),
    ];
    let is_other = |name: &str| {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}")).ok();
        of("self") != of(&pid.to_string())
    };
    NAMES
        .into_iter()
        .filter(|(name, _)| is_other(name))
        .fold(ThreadNameSpaceType::empty(), |all, (_, one)| all | one)
}

/// Which user namespace a process is in.
pub(crate) fn user_namespace(pid: &str) -> std::io::Result<std::path::PathBuf> {
    std::fs::read_link(format!("/proc/{pid}/ns/user"))
}

/// The process that a descriptor stands for, as this one sees it.
pub(crate) fn pid_of(pidfd: &OwnedFd) -> std::io::Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}
