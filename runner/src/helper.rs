//! The sandbox's helper: this program, executed again, between the caller and init.
//!
//! It exists because a threaded caller must not fork, and because someone has to outlive both ends. It
//! forks init into its namespaces, hands the caller a pidfd (and the terminal), waits, and leaves
//! nothing behind: if the caller vanishes, even by `kill -9`, its end of the socket closes, and the helper
//! kills the sandbox and cleans up as always. Then it is ready for the caller's next sandbox ([`pool`]), and ends with the caller
//! at the latest. It costs a megabyte.
//!
//! Its standard input is the socket. It has no other descriptor of the caller but those sent to it.

use std::ffi::CStr;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::ExitStatusExt;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::process::{Signal, pidfd_send_signal};

use serde::de::DeserializeOwned;

use crate::cgroup::{self, Cgroups};
use crate::chroot;
use crate::error::StartError;
use crate::grants::{self, GrantError};
use crate::init::{self, Handed};
use crate::join;
use crate::joined::Joined;
use crate::network::names::{self, NameSockets};
use crate::network::{self, line, relay};
use crate::seccomp;
use crate::spec::{
    Capabilities, ExitStatus, Namespace, NetworkMode, SPEC_BYTES_MAX, SandboxSpec, Shared, Usage,
};
use crate::stubs::{self, Stub};
use crate::sys::{self, Fork};
use crate::userns::{self, Isolation};
use crate::wire::{self, Progress, Report};

pub(crate) mod pool;

/// What a helper is taken for, which its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// One sandbox after the other.
    Sandboxes,
    /// One sandbox, which leaves traces in its helper.
    Sandbox,
    /// One more process of a sandbox, whose namespaces the helper enters.
    Join,
}

/// How a helper has to be taken for `spec`.
pub(crate) fn use_of(spec: &SandboxSpec) -> Use {
    // Without namespaces it adopts orphans, others' namespaces it has to enter, the program at the end of a relay is its child, and
    // who answers questions about names is a thread of its.
    let is_alone = match &spec.network {
        NetworkMode::Relay(_) => true,
        NetworkMode::Line(line) => !line.servers.is_empty(),
        _ => false,
    };
    let is_plain = userns::isolation() == Isolation::Namespaces
        && spec.shared == Shared::default()
        && spec.joined.is_empty()
        && !is_alone;
    match is_plain {
        true => Use::Sandboxes,
        false => Use::Sandbox,
    }
}

impl Use {
    const ALL: [Self; 3] = [Self::Sandboxes, Self::Sandbox, Self::Join];

    /// The program name by which a re-executed process knows what it is.
    fn name(self) -> &'static CStr {
        match self {
            Self::Sandboxes => c"longshore-sandboxes",
            Self::Sandbox => c"longshore-sandbox",
            Self::Join => c"longshore-join",
        }
    }

    fn of_this_process() -> Option<Self> {
        let name = std::env::args_os().next()?;
        Self::ALL
            .into_iter()
            .find(|usage| usage.name().to_bytes() == name.as_bytes())
    }
}

/// Whether this process was started as a helper: by its name, and with a socket as standard input.
pub(crate) fn is_helper() -> bool {
    Use::of_this_process().is_some()
        && fstat(rustix::stdio::stdin())
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

/// Does the helper's whole work; the process ends with what this returns.
pub(crate) fn run() -> i32 {
    let caller = rustix::stdio::stdin();
    // Once, for all processes that it is to start; they see to this one.
    sys::reset_signals();
    sys::end_on_broken_pipes(false);
    let _silenced = sys::redirect_to_null(rustix::stdio::stdout());
    // Out of the caller's session, so that its terminal's signals go to the caller alone; and out of its
    // directory, so that it can be unmounted.
    let _session = rustix::process::setsid();
    let _moved = rustix::process::chdir("/");
    let usage = Use::of_this_process();
    if usage != Some(Use::Join) {
        // While the caller writes down what it wants.
        cgroup::prepare();
        let _made = seccomp::program(Capabilities::DOCKER);
    }
    let mut has_swept = false;
    loop {
        let done = match usage {
            Some(Use::Join) => next_job(caller, join::attempt),
            _ => next_job(caller, attempt),
        };
        let report = match done {
            None => return 0,
            Some(Ok((status, usage))) => Report::Exited(status, usage),
            Some(Err(error)) => Report::Failed(error),
        };
        match wire::send(caller, &report, &[]) {
            Ok(()) if usage == Some(Use::Sandboxes) => {
                // Nobody waits for this one now.
                if !std::mem::replace(&mut has_swept, true) {
                    cgroup::sweep();
                }
            }
            Ok(()) => return 0,
            Err(_) => return 1,
        }
    }
}

/// What comes of the caller's next job; `None` if there is none.
fn next_job<T: DeserializeOwned>(
    caller: BorrowedFd<'_>,
    attempt: impl FnOnce(BorrowedFd<'_>, Job<T>) -> Result<(ExitStatus, Usage), StartError>,
) -> Option<Result<(ExitStatus, Usage), StartError>> {
    let job = receive_job(caller).transpose()?;
    Some(job.and_then(|job| attempt(caller, job)))
}

fn attempt(
    caller: BorrowedFd<'_>,
    job: Job<SandboxSpec>,
) -> Result<(ExitStatus, Usage), StartError> {
    let Job {
        spec,
        streams,
        more,
    } = job;
    let cgroups = Cgroups::make(spec.cgroup.as_deref(), &spec.limits)?;
    let oom_kills_before = match cgroups.counts_memory() {
        true => None,
        false => Some(cgroup::machine_oom_kills()),
    };
    let root = spec.root.clone();
    let has_own_processes = spec.has_own_processes();
    if !has_own_processes && !cgroups.is_made() {
        cgroups.remove();
        let reason = "no control group can be made, by which its processes would be known";
        return Err(StartError::Join {
            reason: reason.to_owned(),
        });
    }

    let mut stubs = Vec::new();
    let result = match userns::isolation() {
        Isolation::Namespaces => Joined::of(&spec, more)
            .and_then(|joined| supervise(caller, spec, streams, joined, &cgroups, &mut stubs)),
        Isolation::Chroot => chroot::supervise(caller, &spec, streams, &cgroups, &mut stubs)
            // Of its orphans too, which are this process's children.
            .map(|status| (status, sys::children_usage())),
        Isolation::None => Err(StartError::NeedsNamespaces {
            what: "a process in the image".to_owned(),
        }),
    };
    // Nothing of init is left now, mounts included: it was alone in its namespaces with its children,
    // and they end with it, or by this.
    if !has_own_processes {
        cgroups.end_all();
    }
    let swept = stubs::sweep(&root, &stubs).map_err(StartError::step("remove mount points"));
    let result = result.map(|(status, usage)| (status, cgroups.usage(usage)));
    cgroups.remove();
    let (status, mut usage) = result?;
    swept?;
    // By a signal of its own, or a shell's that tells of its child.
    if let Some(before) = oom_kills_before
        && status.code() == ExitStatus::Signal(Signal::KILL.as_raw()).code()
    {
        usage.oom_kills_around = cgroup::machine_oom_kills().saturating_sub(before);
    }
    Ok((status, usage))
}

/// What a helper is given to do.
pub(crate) struct Job<T> {
    pub(crate) spec: T,
    /// Standard input, output and error.
    pub(crate) streams: [OwnedFd; 3],
    /// Further descriptors.
    pub(crate) more: Vec<OwnedFd>,
}

/// The next job; `None` if there is none any more.
fn receive_job<T: DeserializeOwned>(caller: BorrowedFd<'_>) -> Result<Option<Job<T>>, StartError> {
    let unreadable = |what: &str| StartError::Spec {
        what: what.to_owned(),
    };
    let received = wire::receive::<()>(caller).map_err(|e| unreadable(&e.to_string()))?;
    let Some(((), mut fds)) = received else {
        return Ok(None);
    };
    let mut streams = fds.split_off(1.min(fds.len()));
    let more = streams.split_off(3.min(streams.len()));
    let streams = <[OwnedFd; 3]>::try_from(streams).map_err(|_| unreadable("no streams"))?;
    let file = fds.pop().ok_or_else(|| unreadable("no file"))?;

    let len = usize::try_from(
        fstat(&file)
            .map_err(|e| unreadable(&e.to_string()))?
            .st_size,
    )
    .ok()
    .filter(|len| *len <= SPEC_BYTES_MAX)
    .ok_or_else(|| unreadable("too large"))?;
    let mut bytes = vec![0; len];
    let mut filled = 0;
    while filled < len {
        let at = u64::try_from(filled).unwrap_or(u64::MAX);
        match rustix::io::pread(&file, &mut bytes[filled..], at) {
            Ok(0) => return Err(unreadable("too short")),
            Ok(n) => filled += n,
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(unreadable(&error.to_string())),
        }
    }
    let spec = serde_json::from_slice(&bytes).map_err(|e| unreadable(&e.to_string()))?;
    Ok(Some(Job {
        spec,
        streams,
        more,
    }))
}

fn supervise(
    caller: BorrowedFd<'_>,
    spec: SandboxSpec,
    streams: [OwnedFd; 3],
    joined: Option<Joined>,
    cgroups: &Cgroups,
    stubs: &mut Vec<Stub>,
) -> Result<(ExitStatus, Usage), StartError> {
    let mut namespaces = libc::CLONE_NEWNS;
    if spec.has_own_processes() {
        namespaces |= libc::CLONE_NEWPID;
    }
    if !spec.shared.ipc && !spec.joins(Namespace::Ipc) {
        namespaces |= libc::CLONE_NEWIPC;
    }
    if !spec.shared.uts && !spec.joins(Namespace::Uts) {
        namespaces |= libc::CLONE_NEWUTS;
    }
    if spec.network.is_own() {
        namespaces |= libc::CLONE_NEWNET;
    }
    let entries = cgroups.entries()?;
    let servers = match &spec.network {
        NetworkMode::Line(line) => line.servers.clone(),
        _ => Vec::new(),
    };
    let mut notes = cgroups.notes().to_vec();
    let mut own_ids = match &joined {
        Some(joined) => joined.has_own_ids,
        None => grants::wanted(&spec),
    };
    // What leads out of its network ends with this.
    let (ours, pidfd, _relay) = loop {
        let (ours, theirs) = wire::pair().map_err(StartError::step("make a socket"))?;
        let user = match own_ids && joined.is_none() {
            true => libc::CLONE_NEWUSER,
            false => 0,
        };
        let flags = u64::from((namespaces | user).unsigned_abs());
        let forked = match &joined {
            Some(joined) => Ok(joined.fork(flags, cgroups.unified())?),
            None => sys::fork(flags, cgroups.unified()),
        };
        let (pid, pidfd) = match forked {
            Ok(Fork::Child) => {
                // Its copy of this end: without it init sees the helper's death, whatever it waits for.
                drop(ours);
                let code = init::run(Handed {
                    spec,
                    streams,
                    report: theirs,
                    cgroups: entries,
                    own_ids,
                    memory: joined.and_then(|joined| joined.memory),
                });
                sys::exit_now(code);
            }
            Ok(Fork::Parent { pid, pidfd }) => (pid, pidfd),
            Err(error) if own_ids && joined.is_none() => {
                notes.push(format!("no user namespace of its own: {error}"));
                own_ids = false;
                continue;
            }
            Err(error) => return Err(StartError::step("enter new namespaces")(error)),
        };
        drop(theirs);
        let given = match own_ids {
            true => grants::give(pid, ours.as_fd(), &spec, joined.is_none()),
            false => Ok(()),
        };
        let Err(refused) = given else {
            let running = plug(&spec.network, pid, &ours, &pidfd)?;
            break (ours, pidfd, running);
        };
        let _killed = pidfd_send_signal(&pidfd, Signal::KILL);
        reap(&pidfd).map_err(StartError::step("wait for init"))?;
        match refused {
            GrantError::Refused(reason) if joined.is_some() => {
                return Err(StartError::Join { reason });
            }
            GrantError::Refused(why) => notes.push(format!("no user namespace of its own: {why}")),
            GrantError::Start(error) => return Err(error),
        }
        own_ids = false;
    };
    // From now on only the process holds its streams: who reads them sees their end when it ends.
    drop((streams, entries));

    follow(caller, &ours, &pidfd, stubs, notes, servers)
}

/// Stays with a process from its fork to its end: hears of its preparation, tells the caller, waits. If there are `servers` it
/// asks them what the process asks its name server; otherwise that is the caller's.
pub(crate) fn follow(
    caller: BorrowedFd<'_>,
    ours: &OwnedFd,
    pidfd: &OwnedFd,
    stubs: &mut Vec<Stub>,
    mut notes: Vec<String>,
    servers: Vec<IpAddr>,
) -> Result<(ExitStatus, Usage), StartError> {
    let mut terminal = None;
    let mut names = Vec::new();
    let mut failure = None;
    loop {
        match wire::receive(ours) {
            Ok(Some((Progress::Stub(stub), _))) => stubs.push(stub),
            Ok(Some((Progress::Terminal, mut fds))) => terminal = fds.pop(),
            Ok(Some((Progress::Names, fds))) => names = fds,
            Ok(Some((Progress::Note(note), _))) => notes.push(note),
            Ok(Some((Progress::Failed(error), _))) => failure = Some(error),
            // Init's end closed with its exec, or with its life.
            Ok(None) => break,
            Err(error) => {
                failure = Some(StartError::step("hear from init")(error));
                let _killed = pidfd_send_signal(pidfd, Signal::KILL);
                break;
            }
        }
    }
    if let Some(error) = failure {
        reap(pidfd).map_err(StartError::step("wait for init"))?;
        return Err(error);
    }

    if !servers.is_empty() {
        serve_names(&mut names, servers, pidfd).map_err(StartError::step("serve names"))?;
    }
    let mut fds = vec![pidfd.as_fd()];
    fds.extend(terminal.iter().chain(&names).map(AsFd::as_fd));
    let started = Report::Started {
        notes,
        names: !names.is_empty(),
    };
    if wire::send(caller, &started, &fds).is_err() {
        let _killed = pidfd_send_signal(pidfd, Signal::KILL);
    }
    drop((terminal, names));
    watch(caller, pidfd);
    reap(pidfd).map_err(StartError::step("wait for the process"))
}

/// Answers on the sandbox's sockets until its process ends, in a thread: this helper forks no more, having one sandbox only.
fn serve_names(
    sockets: &mut Vec<OwnedFd>,
    servers: Vec<IpAddr>,
    pidfd: &OwnedFd,
) -> io::Result<()> {
    let Ok([datagrams, streams]) = <[OwnedFd; 2]>::try_from(std::mem::take(sockets)) else {
        return Ok(());
    };
    let sockets = NameSockets {
        datagrams: datagrams.into(),
        streams: streams.into(),
    };
    let ended = pidfd.try_clone()?;
    let serve = move || names::serve(&sockets, &servers, &|_| None, ended.as_fd());
    std::thread::Builder::new().spawn(serve).map(drop)
}

/// Plugs init's namespace into a network, if it is to be in one, and lets init go on, which waits for that.
fn plug(
    network: &NetworkMode,
    pid: i32,
    init: &OwnedFd,
    pidfd: &OwnedFd,
) -> Result<Option<relay::Running>, StartError> {
    let step = || StartError::step("plug the sandbox into its network");
    let mut addresses = Vec::new();
    let plugged = match network {
        NetworkMode::Host | NetworkMode::None | NetworkMode::Joined => return Ok(None),
        NetworkMode::Bridge(attachment) => network::plug(attachment, pid)
            .map(|()| None)
            .map_err(step()),
        NetworkMode::Line(line) => line::plug(line, pid)
            .map(|given| addresses = given)
            .map(|()| None)
            .map_err(step()),
        NetworkMode::Relay(relay) => relay::start(relay, pid).map_err(|error| StartError::Relay {
            reason: error.to_string(),
        }),
    };
    let told = plugged.and_then(|running| {
        wire::send(init, &addresses, &[]).map_err(StartError::step("tell init of its network"))?;
        Ok(running)
    });
    if told.is_err() {
        let _killed = pidfd_send_signal(pidfd, Signal::KILL);
        reap(pidfd).map_err(StartError::step("wait for init"))?;
    }
    told
}

/// Waits until the process has ended; ends it when the caller is gone.
fn watch(caller: BorrowedFd<'_>, pidfd: &OwnedFd) {
    let mut caller_gone = false;
    loop {
        let mut fds = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(&caller, PollFlags::empty()),
        ];
        let watched = if caller_gone {
            &mut fds[..1]
        } else {
            &mut fds[..]
        };
        match poll(watched, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(_) => return,
        }
        if !fds[0].revents().is_empty() {
            return;
        }
        if !caller_gone && fds[1].revents().intersects(PollFlags::HUP | PollFlags::ERR) {
            caller_gone = true;
            let _killed = pidfd_send_signal(pidfd, Signal::KILL);
        }
    }
}

pub(crate) fn reap(pidfd: &OwnedFd) -> io::Result<(ExitStatus, Usage)> {
    let (status, usage) = sys::wait_for(pidfd.as_fd())?;
    let status = std::process::ExitStatus::from_raw(status);
    let status = match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Code(255),
    };
    Ok((status, usage))
}
