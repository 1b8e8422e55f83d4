//! The caller's side: start a sandbox, signal it, wait for it.
//!
//! The caller may have any number of threads. [`Sandbox::spawn`] gives the spec to a helper (an idle one, or a new one
//! whose cost does not depend on the caller's size), and returns when the process has started or could not.
//! Dropping a [`Sandbox`] kills what still runs and waits until nothing is left.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{CWD, MemfdFlags};
use rustix::mount::{MountAttrFlags, OpenTreeFlags, open_tree};

use crate::error::SandboxError;
use crate::helper::pool::Helper;
use crate::helper::{self, Use};
use crate::join::JoinSpec;
use crate::network::names::NameSockets;
use crate::spec::{
    ExitStatus, MountKind, Namespace, NetworkMode, ProcessSpec, Root, SPEC_BYTES_MAX, SandboxSpec,
    Usage,
};
use crate::sys;
use crate::sysctl;
use crate::wire::{self, Report};

/// How many sandboxes one may share with: one for each kind of namespace.
const JOINED_MAX: usize = 4;

/// Where the process's standard streams lead. Ignored for a process with a terminal of its own.
#[derive(Debug, Default)]
pub struct Stdio {
    /// Standard input.
    pub stdin: Stream,
    /// Standard output.
    pub stdout: Stream,
    /// Standard error.
    pub stderr: Stream,
}

/// Where one standard stream leads.
#[derive(Debug, Default)]
pub enum Stream {
    /// Nowhere: `/dev/null`.
    #[default]
    Null,
    /// Where the caller's own leads.
    Inherit,
    /// To this descriptor; the caller's copy is closed.
    Fd(OwnedFd),
    /// To a new pipe, whose other end is in the [`Sandbox`].
    Pipe,
}

/// A running (or ended) sandbox.
#[derive(Debug)]
pub struct Sandbox {
    /// Until the process has ended.
    helper: Option<Helper>,
    process: Arc<OwnedFd>,
    terminal: Option<OwnedFd>,
    names: Option<NameSockets>,
    ended: Option<(ExitStatus, Usage)>,
    /// The write end of the process's standard input, if it is a [`Stream::Pipe`].
    pub stdin: Option<File>,
    /// The read end of its standard output, if it is a [`Stream::Pipe`].
    pub stdout: Option<File>,
    /// The read end of its standard error, if it is a [`Stream::Pipe`].
    pub stderr: Option<File>,
}

/// Signals a sandbox's process from any thread, also while another one waits for it.
#[derive(Clone, Debug)]
pub struct Killer {
    process: Arc<OwnedFd>,
}

impl Killer {
    /// Sends `signal` (a number, such as `libc::SIGTERM`) to the process. SIGKILL ends the sandbox with
    /// all that runs in it. A process that has ended is no error.
    ///
    /// As process 1 of its namespace, a process only gets signals that it handles, and SIGKILL.
    ///
    /// # Errors
    ///
    /// When there is no such signal.
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        match sys::send_signal((*self.process).as_fd(), signal) {
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            result => result,
        }
    }
}

impl Sandbox {
    /// Makes the sandbox and starts its process.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Start`] says why the process could not start; nothing is then left of it.
    pub fn spawn(spec: &SandboxSpec, stdio: Stdio) -> Result<Self, SandboxError> {
        Self::spawn_beside(spec, stdio, &[])
    }

    /// As [`Sandbox::spawn`], for one that shares namespaces of others: for each of `spec.joined`, a pidfd of the process 1 of the
    /// one that it is about.
    ///
    /// # Errors
    ///
    /// As for [`Sandbox::spawn`]; they have ids that cannot be shared, too.
    pub fn spawn_beside(
        spec: &SandboxSpec,
        stdio: Stdio,
        others: &[BorrowedFd<'_>],
    ) -> Result<Self, SandboxError> {
        validate(spec)?;
        if others.len() != spec.joined.len() || others.len() > JOINED_MAX {
            let what = format!(
                "{} processes for {} sandboxes to share with, {JOINED_MAX} at most",
                others.len(),
                spec.joined.len()
            );
            return Err(SandboxError::Invalid { what });
        }
        Self::launch(helper::use_of(spec), spec, stdio, others)
    }

    /// Starts a further process in this sandbox; it ends with it at the latest.
    ///
    /// # Errors
    ///
    /// As for [`Sandbox::spawn`].
    pub fn join(&self, spec: &JoinSpec, stdio: Stdio) -> Result<Self, SandboxError> {
        validate_process(&spec.process)?;
        Self::launch(Use::Join, spec, stdio, &[self.pidfd()])
    }

    fn launch(
        usage: Use,
        spec: &impl serde::Serialize,
        stdio: Stdio,
        more: &[BorrowedFd<'_>],
    ) -> Result<Self, SandboxError> {
        let io = |what| {
            move |error: rustix::io::Errno| SandboxError::Io {
                what,
                source: error.into(),
            }
        };
        // While a new one comes up, there is something to do here.
        let mut helper = Helper::take(usage).map_err(lost_before)?;
        let bytes = serde_json::to_vec(spec).map_err(|error| SandboxError::Invalid {
            what: error.to_string(),
        })?;
        if bytes.len() > SPEC_BYTES_MAX {
            let what = format!(
                "a specification of {} bytes, at most {SPEC_BYTES_MAX}",
                bytes.len()
            );
            return Err(SandboxError::Invalid { what });
        }
        let file = rustix::fs::memfd_create("longshore-sandbox", MemfdFlags::CLOEXEC)
            .map_err(io("make a file in memory"))?;
        write_all(&file, &bytes).map_err(io("write to a file in memory"))?;

        let streams = |error| SandboxError::Io {
            what: "set up the standard streams",
            source: error,
        };
        let (stdin, our_stdin) = stdio
            .stdin
            .open(rustix::stdio::stdin(), Direction::In)
            .map_err(streams)?;
        let (stdout, our_stdout) = stdio
            .stdout
            .open(rustix::stdio::stdout(), Direction::Out)
            .map_err(streams)?;
        let (stderr, our_stderr) = stdio
            .stderr
            .open(rustix::stdio::stderr(), Direction::Out)
            .map_err(streams)?;

        let mut fds = vec![file.as_fd(), stdin.as_fd(), stdout.as_fd(), stderr.as_fd()];
        fds.extend(more);
        if let Err(error) = helper.send(&fds) {
            return Err(match helper.end() {
                // It had no time to read the message: that tells more than the broken pipe.
                Ok(status) if !status.success() => lost(status),
                _ => lost_before(error),
            });
        }
        drop((file, stdin, stdout, stderr));

        match wire::receive::<Report>(helper.socket()) {
            Ok(Some((Report::Started { notes, names }, mut fds)))
                if fds.len() > usize::from(names) * 2 =>
            {
                for note in notes {
                    tracing::debug!(note, "sandbox");
                }
                let names = names.then(|| fds.split_off(fds.len() - 2));
                let names = names.and_then(|fds| <[OwnedFd; 2]>::try_from(fds).ok());
                let names = names.map(|[datagrams, streams]| NameSockets {
                    datagrams: datagrams.into(),
                    streams: streams.into(),
                });
                let terminal = (fds.len() > 1).then(|| fds.remove(1));
                Ok(Self {
                    helper: Some(helper),
                    process: Arc::new(fds.remove(0)),
                    terminal,
                    names,
                    ended: None,
                    stdin: our_stdin.map(File::from),
                    stdout: our_stdout.map(File::from),
                    stderr: our_stderr.map(File::from),
                })
            }
            told => Err(failed(helper, told)),
        }
    }

    /// Waits until the process has ended and nothing is left of the sandbox. May be called again.
    ///
    /// With output going to a pipe, read that first, or in another thread.
    ///
    /// # Errors
    ///
    /// [`SandboxError::Lost`] if the helper was killed; the sandbox is then gone as well.
    pub fn wait(&mut self) -> Result<ExitStatus, SandboxError> {
        if let Some((status, _)) = self.ended {
            return Ok(status);
        }
        let Some(helper) = self.helper.take() else {
            return Err(SandboxError::Protocol {
                what: "the helper has failed before".to_owned(),
            });
        };
        match wire::receive::<Report>(helper.socket()) {
            Ok(Some((Report::Exited(exit, usage), _))) => {
                helper.put_back();
                self.ended = Some((exit, usage));
                Ok(exit)
            }
            told => Err(failed(helper, told)),
        }
    }

    /// As [`Sandbox::wait`] if the process has ended, else `None` at once.
    ///
    /// # Errors
    ///
    /// As for [`Sandbox::wait`].
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>, SandboxError> {
        if let Some(helper) = &self.helper {
            let mut fds = [PollFd::new(helper.socket(), PollFlags::IN)];
            let now = rustix::event::Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            };
            let ready = poll(&mut fds, Some(&now)).map_err(|error| SandboxError::Io {
                what: "poll the helper",
                source: error.into(),
            })?;
            if ready == 0 {
                return Ok(None);
            }
        }
        self.wait().map(Some)
    }

    /// Sends a signal, see [`Killer::kill`].
    ///
    /// # Errors
    ///
    /// As for [`Killer::kill`].
    pub fn kill(&self, signal: i32) -> io::Result<()> {
        self.killer().kill(signal)
    }

    /// A handle for other threads to signal the process with.
    pub fn killer(&self) -> Killer {
        Killer {
            process: Arc::clone(&self.process),
        }
    }

    /// The process's pidfd: becomes readable when it ends (a moment before [`Sandbox::wait`] returns).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        (*self.process).as_fd()
    }

    /// The master of the process's terminal, if it was asked for. `None` the second time.
    pub fn take_terminal(&mut self) -> Option<OwnedFd> {
        self.terminal.take()
    }

    /// The sockets of its name server, if it has one: the caller is to [`serve`](crate::network::names::serve) on them. `None` the
    /// second time.
    pub fn take_names(&mut self) -> Option<NameSockets> {
        self.names.take()
    }

    /// What the sandbox used, once it has ended.
    pub fn usage(&self) -> Option<Usage> {
        self.ended.map(|(_, usage)| usage)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        if self.helper.is_some() {
            let _killed = self.kill(libc::SIGKILL);
            let _status = self.wait();
        }
    }
}

/// This program, for the helper and so for init: by a mount of it that is read-only and that nobody can reach, so that what
/// runs in a sandbox cannot write to it through `/proc/<pid>/exe` or as its own interpreter.
pub(crate) fn own_program() -> &'static Path {
    static PROGRAM: OnceLock<(PathBuf, Option<OwnedFd>)> = OnceLock::new();
    let (path, _) = PROGRAM.get_or_init(|| match read_only_program() {
        Ok(mount) => (
            format!("/proc/self/fd/{}", mount.as_raw_fd()).into(),
            Some(mount),
        ),
        Err(error) => {
            tracing::debug!(%error, "this program cannot be mounted read-only for sandboxes");
            ("/proc/self/exe".into(), None)
        }
    });
    path
}

fn read_only_program() -> io::Result<OwnedFd> {
    let path = std::fs::read_link("/proc/self/exe")?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(CWD, &path, flags)?;
    // A path is only a name: it may have another program by now.
    let (own, found) = (
        rustix::fs::stat("/proc/self/exe")?,
        rustix::fs::fstat(&mount)?,
    );
    if (own.st_dev, own.st_ino) != (found.st_dev, found.st_ino) {
        return Err(io::ErrorKind::NotFound.into());
    }
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY | MountAttrFlags::MOUNT_ATTR_NOSUID;
    sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), false)?;
    Ok(mount)
}

fn lost(status: std::process::ExitStatus) -> SandboxError {
    SandboxError::Lost {
        status: status.to_string(),
    }
}

fn lost_before(source: io::Error) -> SandboxError {
    SandboxError::Io {
        what: "start the sandbox's helper",
        source,
    }
}

/// What an answer means that is not the one hoped for; a helper that makes no sense is ended.
fn failed(helper: Helper, told: io::Result<Option<(Report, Vec<OwnedFd>)>>) -> SandboxError {
    match told {
        Ok(Some((Report::Failed(error), _))) => {
            helper.put_back();
            error.into()
        }
        Ok(None) => match helper.end() {
            Ok(status) => lost(status),
            Err(error) => lost_before(error),
        },
        Ok(Some((report, _))) => unexpected(helper, &format!("{report:?}")),
        Err(error) => unexpected(helper, &error.to_string()),
    }
}

/// What is told of a helper that does not answer as it should, and is therefore ended.
fn unexpected(helper: Helper, what: &str) -> SandboxError {
    helper.kill();
    let _status = helper.end();
    SandboxError::Protocol {
        what: what.to_owned(),
    }
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> rustix::io::Result<()> {
    while !bytes.is_empty() {
        let written = rustix::io::write(file, bytes)?;
        bytes = &bytes[written..];
    }
    Ok(())
}

#[derive(Clone, Copy)]
enum Direction {
    In,
    Out,
}

impl Stream {
    /// The process's end, and ours if it is a pipe.
    fn open(
        self,
        own: BorrowedFd<'_>,
        direction: Direction,
    ) -> io::Result<(OwnedFd, Option<OwnedFd>)> {
        Ok(match self {
            Self::Null => (
                File::options()
                    .read(true)
                    .write(true)
                    .open("/dev/null")?
                    .into(),
                None,
            ),
            Self::Inherit => (own.try_clone_to_owned()?, None),
            Self::Fd(fd) => (fd, None),
            Self::Pipe => {
                let (read, write) = io::pipe()?;
                match direction {
                    Direction::In => (read.into(), Some(write.into())),
                    Direction::Out => (write.into(), Some(read.into())),
                }
            }
        })
    }
}

/// What no host could carry out, found before anything is started.
fn validate(spec: &SandboxSpec) -> Result<(), SandboxError> {
    validate_process(&spec.process)?;
    let invalid = |what: String| Err(SandboxError::Invalid { what });
    let checked = match &spec.network {
        NetworkMode::Bridge(attachment) => attachment.check(),
        NetworkMode::Line(line) => line.check(),
        _ => Ok(()),
    };
    if let Err(what) = checked {
        return invalid(what);
    }
    if let Err(what) = sysctl::check(spec) {
        return invalid(what);
    }
    if spec.joins(Namespace::Network) != (spec.network == NetworkMode::Joined) {
        return invalid("another sandbox's network, and no sandbox to share it with".into());
    }
    if let Root::Overlay { lower, .. } = &spec.root
        && lower.is_empty()
    {
        return invalid("an overlay without a lower layer".into());
    }
    for mount in &spec.mounts {
        if !mount.target.starts_with('/') || mount.target.trim_matches('/').is_empty() {
            return invalid(format!(
                "mount target `{}` is not absolute, or is `/`",
                mount.target
            ));
        }
        let mut parts = mount
            .target
            .split('/')
            .filter(|part| !matches!(*part, "" | "."));
        if (parts.next(), parts.next()) == (Some("proc"), None) {
            return invalid(format!(
                "`{}`: `/proc` is the kernel's, and nothing is mounted on it",
                mount.target
            ));
        }
        let sources: Vec<&Path> = match &mount.kind {
            MountKind::Bind { source, .. } | MountKind::Device { source } => vec![source],
            MountKind::Overlay { lower, upper, .. } => {
                let upper = upper.iter().flat_map(|(upper, work)| [upper, work]);
                lower.iter().chain(upper).map(PathBuf::as_path).collect()
            }
            MountKind::Tmpfs { .. } | MountKind::File { .. } => Vec::new(),
        };
        if let Some(source) = sources.iter().find(|source| !source.is_absolute()) {
            return invalid(format!(
                "mount source `{}` is not absolute",
                source.display()
            ));
        }
    }
    Ok(())
}

fn validate_process(process: &ProcessSpec) -> Result<(), SandboxError> {
    let invalid = |what: String| Err(SandboxError::Invalid { what });
    if process.argv.first().is_none_or(String::is_empty) {
        return invalid("no command".into());
    }
    for text in process.argv.iter().chain(&process.env) {
        if text.contains('\0') {
            return invalid(format!("a zero byte in `{}`", text.escape_debug()));
        }
    }
    if let Some(entry) = process.env.iter().find(|entry| !entry.contains('=')) {
        return invalid(format!("environment entry `{entry}` without `=`"));
    }
    if !process.cwd.starts_with('/') {
        return invalid(format!(
            "working directory `{}` is not absolute",
            process.cwd
        ));
    }
    Ok(())
}
