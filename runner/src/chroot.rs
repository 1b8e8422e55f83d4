//! A process without namespaces: where this program is root of a container that refuses them.
//!
//! ```text
//!  helper: moves what is to be mounted into the root ── forks ──► the process: chroot, limits, privileges, exec
//!          waits, ends what is left of its children, moves everything back
//! ```
//!
//! Nothing can be mounted, so files and directories change places: what is at a mount point goes to a folder beside the root, and what
//! is to be seen there comes in its place, by one rename. Afterwards they change back, and directories get their times back,
//! so that the root shows nothing of it. `/proc` has copies of a few files that programs read.
//!
//! This holds no hostile process: it sees the network, the processes and the devices of the container around it. It is a
//! stage for the tools of a build, and what it lacks is told.

mod places;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};

use crate::cgroup::Cgroups;
use crate::error::StartError;
use crate::init;
use crate::spec::{ExitStatus, Root, SandboxSpec};
use crate::stubs::{Stub, Tree};
use crate::sys::{self, Fork};
use crate::wire::{self, Progress};
use crate::{confine, helper, mounts};
use places::Places;

/// Runs the process of `spec` to its end; `stubs` are told of mount points made in the root.
pub(crate) fn supervise(
    caller: BorrowedFd<'_>,
    spec: &SandboxSpec,
    streams: [OwnedFd; 3],
    cgroups: &Cgroups,
    stubs: &mut Vec<Stub>,
) -> Result<ExitStatus, StartError> {
    let root = root_of(spec)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = rustix::fs::openat(CWD, &root, flags, Mode::empty()).map_err(|errno| {
        StartError::MountSource {
            source_path: root.display().to_string(),
            target: "/".into(),
            errno: errno.into(),
        }
    })?;
    // Orphans of the process become children of this one, which ends them.
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(StartError::step("adopt orphans"))?;
    let mut notes = cgroups.notes().to_vec();
    let mut places = Places::new(&root, directory.as_fd())?;
    let tree = Tree {
        root: directory.as_fd(),
        upper: None,
    };
    let placed =
        places
            .fill(spec, tree, stubs, &mut notes)
            .and_then(|()| match spec.process.make_cwd {
                true => mounts::make_working_directory(tree, &spec.process),
                false => Ok(()),
            });
    let result =
        placed.and_then(|()| run(caller, spec, streams, cgroups, &directory, (stubs, notes)));
    end_children();
    // Nobody uses any of it now.
    let cleared = places.clear();
    let status = result?;
    cleared?;
    Ok(status)
}

/// The root, if the rest of `spec` is possible.
fn root_of(spec: &SandboxSpec) -> Result<PathBuf, StartError> {
    let needs = |what: &str| StartError::NeedsNamespaces { what: what.into() };
    if spec.network.is_own() {
        return Err(needs("a network of its own, or none"));
    }
    if !spec.joined.is_empty() {
        return Err(needs("what another container has"));
    }
    if spec.read_only {
        return Err(needs("a read-only root"));
    }
    if let Some(name) = spec.sysctls.keys().next() {
        return Err(needs(&format!("the setting `{name}`")));
    }
    match &spec.root {
        Root::Directory(path) => Ok(path.clone()),
        Root::Overlay { .. } => Err(needs("layers stacked by overlayfs")),
    }
}

fn run(
    caller: BorrowedFd<'_>,
    spec: &SandboxSpec,
    streams: [OwnedFd; 3],
    cgroups: &Cgroups,
    root: &OwnedFd,
    (stubs, notes): (&mut Vec<Stub>, Vec<String>),
) -> Result<ExitStatus, StartError> {
    let entries = cgroups.entries()?;
    let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
    match sys::fork(0, cgroups.unified()).map_err(StartError::step("start a process"))? {
        Fork::Child => {
            drop(ours);
            let error = match prepare(spec, &streams, &theirs, entries, root) {
                Ok(()) => init::become_command(&spec.confinement, &spec.process),
                Err(error) => error,
            };
            let code = error.exit_code();
            let _sent = wire::send(&theirs, &Progress::Failed(error), &[]);
            sys::exit_now(code)
        }
        Fork::Parent { pidfd, .. } => {
            drop((theirs, streams, entries));
            let (status, _) = helper::follow(caller, &ours, &pidfd, stubs, notes, Vec::new())?;
            Ok(status)
        }
    }
}

/// The child's side, up to the command.
fn prepare(
    spec: &SandboxSpec,
    streams: &[OwnedFd; 3],
    report: &OwnedFd,
    cgroups: Vec<fs::File>,
    root: &OwnedFd,
) -> Result<(), StartError> {
    use std::io::Write;
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::step("make this process undumpable"))?;
    rustix::process::setsid().map_err(StartError::step("start a session"))?;
    for mut group in cgroups {
        group
            .write_all(b"0")
            .map_err(StartError::step("enter the control group"))?;
    }
    let mut notes = Vec::new();
    let slave = if spec.process.terminal {
        let (master, slave) = mounts::open_terminal_of("/dev/ptmx".as_ref())?;
        init::control_terminal(&master, &slave, &spec.process, report, &mut notes)?;
        Some(slave)
    } else {
        None
    };
    init::set_streams(slave.as_ref(), streams)?;
    drop(slave);

    rustix::process::fchdir(root).map_err(StartError::step("enter the root"))?;
    rustix::process::chroot(".").map_err(StartError::step("change the root"))?;
    rustix::process::chdir("/").map_err(StartError::step("enter the root"))?;
    // No descriptor leads outside any more.
    sys::close_all_but(report.as_fd()).map_err(StartError::step("close the descriptors"))?;

    confine::limit(&spec.ulimits)?;
    confine::confine(&spec.confinement, &spec.process.user, &mut |note| {
        notes.push(note);
    })?;
    for note in notes {
        wire::send(report, &Progress::Note(note), &[])
            .map_err(StartError::step("report to the helper"))?;
    }
    init::settle(&spec.process, report)
}

/// Ends every process that came of this one. Their own children become ours, so it goes on until there are none.
fn end_children() {
    loop {
        for pid in children() {
            // It may just have ended by itself.
            let _killed = kill_process(pid, Signal::KILL);
        }
        match wait(WaitOptions::empty()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
    }
}

/// The processes whose parent is this one.
fn children() -> Vec<Pid> {
    let own = rustix::process::getpid().as_raw_nonzero().get().to_string();
    let Ok(entries) = fs::read_dir("/proc") else {
        return Vec::new();
    };
    let numbers = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    numbers
        .filter(|pid: &i32| {
            // After the name, which is in parentheses and may have any: state, then parent.
            let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields = stat.rsplit_once(") ").map_or("", |(_, fields)| fields);
            fields.split(' ').nth(1) == Some(&own)
        })
        .filter_map(Pid::from_raw)
        .collect()
}
