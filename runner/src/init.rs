//! The sandbox's first process: from a fork of the helper, in new namespaces, to the command.
//!
//! It is single-threaded and process 1 of its pid namespace. These are its steps, each numbered where it is taken;
//! the first that fails is reported, and nothing of the sandbox remains.
//!
//! ```text
//!  1. ids            root of its user namespace; undumpable
//!  2. session        its own
//!  3. control groups entered, and hidden
//!  4. names          host name, network, kernel settings
//!  5. root           built
//!  6. streams        or a terminal
//!  7. pivot          the host's files are out of reach
//!  8. descriptors    closed
//!  9. privileges     limits, capabilities, user
//! 10. tie            dies with its helper
//! 11. directory      the working directory
//! 12. command        the filter, and exec
//! ```

use std::fs::File;
use std::io::Write;
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{Signal, WaitOptions, wait};

use crate::error::StartError;
use crate::spec::{Confinement, Namespace, NetworkMode, ProcessSpec, SandboxSpec};
use crate::sys::{self, Fork, SignalSet};
use crate::wire::{self, Progress};
use crate::{command, confine, grants, mounts, network, sysctl, userns};

/// What the helper hands to init.
#[derive(Debug)]
pub(crate) struct Handed {
    pub(crate) spec: SandboxSpec,
    /// Standard input, output and error of the process.
    pub(crate) streams: [OwnedFd; 3],
    /// To the helper.
    pub(crate) report: OwnedFd,
    /// Control groups to enter: their `cgroup.procs`, open for writing.
    pub(crate) cgroups: Vec<File>,
    /// Whether it is in a user namespace of its own, whose ids the helper maps.
    pub(crate) own_ids: bool,
    /// The `/dev/shm` of another sandbox, which this one shares.
    pub(crate) memory: Option<OwnedFd>,
}

/// Runs the steps, ending in the command. Returns only after reporting why they could not be finished: the code to end with, for
/// a filter may have kept that report back.
pub(crate) fn run(handed: Handed) -> i32 {
    let Handed {
        spec,
        streams,
        report,
        cgroups,
        own_ids,
        memory,
    } = handed;
    let error = match prepare(&spec, streams, &report, cgroups, own_ids, memory) {
        Ok(()) if spec.init => match fork_command(&spec) {
            Ok(Side::Init {
                pid,
                child,
                signals,
            }) => {
                match confine::filter_for_good(&spec.confinement, &spec.process.user) {
                    Ok(()) => {
                        // The command holds its own copy until its exec: the helper sees its end then.
                        drop(report);
                        serve(pid, &child, &signals);
                    }
                    Err(error) => error,
                }
            }
            Ok(Side::Command) => become_command(&spec.confinement, &spec.process),
            Err(error) => error,
        },
        Ok(()) => become_command(&spec.confinement, &spec.process),
        Err(error) => error,
    };
    let code = error.exit_code();
    let _sent = wire::send(&report, &Progress::Failed(error), &[]);
    code
}

/// 12. The filter, and the command. Returns only why not.
pub(crate) fn become_command(confinement: &Confinement, process: &ProcessSpec) -> StartError {
    match confine::filter(confinement) {
        Ok(()) => command::execute(process),
        Err(error) => error,
    }
}

fn prepare(
    spec: &SandboxSpec,
    streams: [OwnedFd; 3],
    report: &OwnedFd,
    cgroups: Vec<File>,
    own_ids: bool,
    memory: Option<OwnedFd>,
) -> Result<(), StartError> {
    let tell = |message: Progress| wire::send(report, &message, &[]);
    let lost = || StartError::step::<std::io::Error>("report to the helper");

    // 1. Root of its user namespace, if it has one of its own. What is made here has exactly the modes that are asked for; and until the command replaces
    //    this program, no other process may trace it or open the host's binary through it.
    rustix::process::umask(rustix::fs::Mode::empty());
    let has_single_id = !own_ids && userns::has_single_id();
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)
        .map_err(StartError::step("make this process undumpable"))?;
    if let Some(score) = spec.oom_score {
        std::fs::write("/proc/self/oom_score_adj", score.to_string())
            .map_err(StartError::step("set how readily it is killed for memory"))?;
    }
    let granted = match own_ids {
        true => Some(grants::take(report.as_fd())?),
        false => None,
    };
    // 2. A session of its own: the caller's terminal does not signal it, nor can it type into it.
    rustix::process::setsid().map_err(StartError::step("start a session"))?;

    // 3. Into its control groups, then a control group namespace that begins there.
    for mut group in cgroups {
        group
            .write_all(b"0")
            .map_err(StartError::step("enter the control group"))?;
    }
    if let Err(error) = sys::unshare_cgroup() {
        let _sent = tell(Progress::Note(format!(
            "no control group namespace: {error}"
        )));
    }
    // 4. Names, network and settings.
    if !spec.shared.uts && !spec.joins(Namespace::Uts) {
        let named = rustix::system::sethostname(spec.hostname.as_bytes());
        let domain = spec.domainname.as_bytes();
        match named.and_then(|()| match domain {
            [] => Ok(()),
            domain => rustix::system::setdomainname(domain),
        }) {
            Ok(()) => {}
            // The filter of a container around us refuses it, whatever the namespace.
            Err(Errno::PERM) => {
                tell(Progress::Note("the host name stays".to_owned())).map_err(lost())?;
            }
            Err(errno) => return Err(StartError::step("set the host name")(errno)),
        }
    }
    if spec.network.is_own() {
        sys::loopback_up().map_err(StartError::step("bring up the loopback interface"))?;
    }
    let mut addresses: Vec<IpAddr> = Vec::new();
    if spec.network.is_plugged() {
        // The helper has plugged it in when it says so.
        let told = wire::receive(report).map_err(StartError::step("hear from the helper"))?;
        (addresses, _) = told.ok_or_else(|| {
            let gone = std::io::Error::from(std::io::ErrorKind::UnexpectedEof);
            StartError::step("hear from the helper")(gone)
        })?;
    }
    let configured = || StartError::step("configure the network interface");
    let mut has_names = false;
    if let NetworkMode::Line(line) = &spec.network {
        network::line::configure(line, &addresses).map_err(configured())?;
        has_names = !line.servers.is_empty();
    }
    if let NetworkMode::Relay(relay) = &spec.network {
        network::relay::configure(relay).map_err(configured())?;
    }
    if let NetworkMode::Bridge(attachment) = &spec.network {
        network::configure(attachment).map_err(configured())?;
        has_names = attachment.names;
    }
    if has_names {
        let names = network::open_names()
            .map_err(StartError::step("open the sockets of the name server"))?;
        let sockets = [names.datagrams.as_fd(), names.streams.as_fd()];
        wire::send(report, &Progress::Names, &sockets).map_err(lost())?;
    }

    if spec.open_network && spec.network.is_own() {
        sysctl::open_network();
    }
    sysctl::apply(&spec.sysctls)?;

    // 5. The root.
    let mut unsent = Ok(());
    let mut notes = Vec::new();
    let mut stub = |stub| {
        if let Err(error) = tell(Progress::Stub(stub)) {
            unsent = Err(error);
        }
    };
    let root = mounts::build(spec, granted, memory, &mut stub, &mut |note| {
        notes.push(note);
    })?;
    unsent.map_err(lost())?;

    // 6. The streams, or a terminal in their place, which then controls the session.
    let slave = if spec.process.terminal {
        let (master, slave) = root.open_terminal()?;
        control_terminal(&master, &slave, &spec.process, report, &mut notes)?;
        Some(slave)
    } else {
        None
    };
    set_streams(slave.as_ref(), &streams)?;
    // In the way of an end of file, should this process become a small init.
    drop((streams, slave));

    // 7. From here on the host's files are out of reach.
    root.enter()?;
    // 8. No descriptor leads outside any more, by a working directory or a command in `/proc/self/fd`.
    sys::close_all_but(report.as_fd()).map_err(StartError::step("close the descriptors"))?;

    // 9. Limits and privileges; raising a limit is one of them.
    confine::limit(&spec.ulimits)?;
    confine::forgive_owners(has_single_id)?;
    confine::confine(&spec.confinement, &spec.process.user, &mut |note| {
        notes.push(note);
    })?;
    for note in notes {
        tell(Progress::Note(note)).map_err(lost())?;
    }
    settle(&spec.process, report)
}

/// The last steps before the command, with its own rights: it ends with its helper, and begins where and as it is to.
pub(crate) fn settle(process: &ProcessSpec, report: &OwnedFd) -> Result<(), StartError> {
    // 10. Whatever happens to the helper happens to the sandbox. After the change of identity, which
    //     clears it.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(StartError::step("tie the process to its helper"))?;
    if is_gone(report) {
        // It died before that: nobody is left to be told.
        sys::exit_now(125);
    }

    // 11. The working directory, with the process's own rights.
    enter_directory(&process.cwd).map_err(|errno| StartError::WorkingDirectory {
        path: process.cwd.clone(),
        errno: errno.into(),
    })?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));

    sys::end_on_broken_pipes(true);
    Ok(())
}

/// Changes the directory, through no link of `/proc` that leads past all paths.
fn enter_directory(path: &str) -> Result<(), Errno> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_MAGICLINKS;
    let directory = rustix::fs::openat2(CWD, path, flags, Mode::empty(), resolve)?;
    rustix::process::fchdir(directory)
}

/// Sizes a terminal, hands its master to the helper, and makes its slave the one that controls this session.
pub(crate) fn control_terminal(
    master: &OwnedFd,
    slave: &OwnedFd,
    process: &ProcessSpec,
    report: &OwnedFd,
    notes: &mut Vec<String>,
) -> Result<(), StartError> {
    if let Some((columns, rows)) = process.terminal_size {
        let size = rustix::termios::Winsize {
            ws_col: columns,
            ws_row: rows,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        rustix::termios::tcsetwinsize(master, size)
            .map_err(StartError::step("size the terminal"))?;
    }
    own_terminal(slave, process.user.uid, notes);
    wire::send(report, &Progress::Terminal, &[master.as_fd()])
        .map_err(StartError::step("report to the helper"))?;
    rustix::process::ioctl_tiocsctty(slave)
        .map_err(StartError::step("make the terminal the controlling one"))
}

/// Makes a terminal, or these, the standard streams.
pub(crate) fn set_streams(
    slave: Option<&OwnedFd>,
    streams: &[OwnedFd; 3],
) -> Result<(), StartError> {
    let [input, output, error] = streams;
    rustix::stdio::dup2_stdin(slave.unwrap_or(input))
        .and_then(|()| rustix::stdio::dup2_stdout(slave.unwrap_or(output)))
        .and_then(|()| rustix::stdio::dup2_stderr(slave.unwrap_or(error)))
        .map_err(StartError::step("set the standard streams"))
}

/// Whether nobody has the other end of `socket` any more.
fn is_gone(socket: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(socket, PollFlags::empty())];
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    poll(&mut watched, Some(&now)).is_ok() && watched[0].revents().contains(PollFlags::HUP)
}

/// The process may open its terminal again by name, so it has to own it.
fn own_terminal(slave: &OwnedFd, uid: u32, notes: &mut Vec<String>) {
    let owner = Some(rustix::fs::Uid::from_raw(uid));
    if let Err(error) = rustix::fs::fchown(slave, owner, None) {
        notes.push(format!("the terminal stays root's: {error}"));
    }
}

/// The two processes of a sandbox with a small init.
enum Side {
    /// Process 1: its child is the command.
    Init {
        pid: i32,
        child: OwnedFd,
        signals: OwnedFd,
    },
    /// The child.
    Command,
}

fn fork_command(spec: &SandboxSpec) -> Result<Side, StartError> {
    let mask = sys::block_signals(&SignalSet::ALL);
    let signals = sys::signal_fd(&SignalSet::ALL).map_err(StartError::step("watch signals"))?;
    match sys::fork(0, None).map_err(StartError::step("start the command"))? {
        Fork::Parent { pid, pidfd } => {
            for stream in [
                rustix::stdio::stdin(),
                rustix::stdio::stdout(),
                rustix::stdio::stderr(),
            ] {
                // Only the command holds its streams: who reads a pipe sees its end.
                sys::redirect_to_null(stream).map_err(StartError::step("let go of the streams"))?;
            }
            Ok(Side::Init {
                pid,
                child: pidfd,
                signals,
            })
        }
        Fork::Child => {
            // A group of its own, in the foreground of its terminal: that signals the command, not init.
            rustix::process::setpgid(None, None).map_err(StartError::step("make a group"))?;
            if spec.process.terminal {
                let own = rustix::process::getpid();
                rustix::termios::tcsetpgrp(rustix::stdio::stdin(), own)
                    .map_err(StartError::step("put the command in the foreground"))?;
            }
            sys::set_signal_mask(&mask);
            Ok(Side::Command)
        }
    }
}

/// Process 1 as a small init: passes signals on to the command, waits for every orphan, and ends as the
/// command ended.
fn serve(pid: i32, child: &OwnedFd, signals: &OwnedFd) -> ! {
    loop {
        let mut fds = [PollFd::new(signals, PollFlags::IN)];
        let _ready = poll(&mut fds, None);
        while let Ok(Some(arrived)) = sys::read_signal(signals.as_fd()) {
            if arrived.signal != libc::SIGCHLD {
                let _sent = sys::send_signal(child.as_fd(), arrived.signal);
            }
        }
        while let Ok(Some((ended, status))) = wait(WaitOptions::NOHANG) {
            if ended.as_raw_nonzero().get() == pid {
                let signal = status.terminating_signal().map(|signal| 128 + signal);
                sys::exit_now(status.exit_status().or(signal).unwrap_or(1));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    /// The numbers at the start of what follows `comment`, as in `// 3. Into its control groups`.
    fn numbers(comments: &[&str]) -> Vec<u32> {
        let number = |line: &str| {
            let line = line.trim_start();
            let text = comments.iter().find_map(|mark| line.strip_prefix(mark))?;
            text.trim_start().split_once(". ")?.0.parse().ok()
        };
        include_str!("init.rs").lines().filter_map(number).collect()
    }

    #[test]
    fn all_steps_are_told_and_taken() {
        let told = numbers(&["//! "]);
        assert_eq!(told, (1..=12).collect::<Vec<u32>>());
        // The last one is a function of its own.
        let mut taken = numbers(&["// ", "/// "]);
        taken.rotate_left(1);
        assert_eq!(taken, told);
    }
}
