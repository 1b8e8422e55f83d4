//! Another process in a sandbox that runs: the helper enters its namespaces, forks, and the child becomes the process.
//!
//! It is confined as the sandbox's own process is, and counted in its control groups.

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::process::Signal;
use rustix::thread::ThreadNameSpaceType;
use serde::{Deserialize, Serialize};

use crate::cgroup;
use crate::error::StartError;
use crate::helper::{self, Job};
use crate::spec::{Confinement, ExitStatus, ProcessSpec, Ulimit, Usage};
use crate::sys::{self, Fork};
use crate::wire::{self, Progress};
use crate::{command, confine, init};

/// The program name by which a re-executed process knows what it is.
pub(crate) const NAME: &str = "longshore-join";

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

/// Does the helper's work.
pub(crate) fn attempt(caller: BorrowedFd<'_>) -> Result<(ExitStatus, Usage), StartError> {
    let Job {
        spec,
        streams,
        mut more,
    } = helper::receive_job::<JoinSpec>(caller)?;
    let process_1 = more.pop().ok_or_else(|| StartError::Spec {
        what: "no sandbox to join".to_owned(),
    })?;
    let pid = pid_of(&process_1).map_err(StartError::step("find the container"))?;
    let cgroups = cgroup::entries_of(pid);
    // Until the command replaces this program, nobody in there may trace it or open the host's binary through it.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::step("make this process undumpable"))?;
    let namespaces = ThreadNameSpaceType::MOUNT
        | ThreadNameSpaceType::PROCESS_ID
        | ThreadNameSpaceType::INTER_PROCESS_COMMUNICATION
        | ThreadNameSpaceType::HOST_NAME_AND_NIS_DOMAIN_NAME
        | ThreadNameSpaceType::NETWORK
        | ThreadNameSpaceType::CONTROL_GROUP;
    rustix::thread::move_into_thread_name_spaces(process_1.as_fd(), namespaces)
        .map_err(StartError::step("enter the container"))?;

    let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
    match sys::fork(0, None).map_err(StartError::step("fork in the container"))? {
        Fork::Child => {
            let error = become_process(&spec, streams, &theirs, cgroups);
            let _sent = wire::send(&theirs, &Progress::Failed(error), &[]);
            sys::exit_now(125);
        }
        Fork::Parent { pidfd, .. } => {
            drop((theirs, streams, cgroups, process_1));
            let status = helper::follow(caller, &ours, &pidfd, &mut Vec::new(), Vec::new())?;
            Ok((status, sys::children_usage()))
        }
    }
}

/// Returns only why it could not.
fn become_process(
    spec: &JoinSpec,
    streams: [OwnedFd; 3],
    report: &OwnedFd,
    cgroups: Vec<File>,
) -> StartError {
    match prepare(spec, streams, report, cgroups) {
        Ok(()) => command::execute(&spec.process),
        Err(error) => error,
    }
}

fn prepare(
    spec: &JoinSpec,
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
    let mut notes = Vec::new();
    let slave = match spec.process.terminal {
        true => Some(terminal(spec, report, &mut notes)?),
        false => None,
    };
    init::set_streams(slave.as_ref(), &streams)?;
    drop((streams, slave));
    sys::close_on_exec_from(3).map_err(StartError::step("close the descriptors"))?;
    confine::limit(&spec.ulimits)?;
    confine::confine(&spec.confinement, &spec.process.user, &mut |note| {
        notes.push(note);
    })?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(StartError::step("tie the process to its helper"))?;
    rustix::process::chdir(spec.process.cwd.as_str()).map_err(|errno| {
        StartError::WorkingDirectory {
            path: spec.process.cwd.clone(),
            errno: errno.into(),
        }
    })?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::reset_signals();
    Ok(())
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

/// The process that a descriptor stands for, as this one sees it.
fn pid_of(pidfd: &OwnedFd) -> std::io::Result<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path)?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.and_then(|pid| pid.trim().parse().ok())
        .ok_or_else(|| std::io::ErrorKind::NotFound.into())
}
