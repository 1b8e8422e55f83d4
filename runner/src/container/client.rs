//! The commands' side: starting a container, and asking those who hold one.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::folder::{Folder, FolderError, Held};
use super::plan::Restart;
use super::protocol::{Answer, ContainerUsage, ProcessRow, Request};
use super::supervisor;
use crate::error::StartError;
use crate::sandbox;
use crate::spec::{Limits, ProcessSpec};
use crate::wire;

/// Why a container does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Its folder fails.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Nobody holds it.
    #[error("the container is not running")]
    NotRunning,
    /// Its process, or another one in it, cannot be started.
    #[error(transparent)]
    Start(StartError),
    /// The same, for a reason that is none of the sandbox's.
    #[error("{message}")]
    Failed {
        /// Why.
        message: String,
    },
    /// Its supervisor says no.
    #[error("{message}")]
    Refused {
        /// Why.
        message: String,
    },
    /// Its supervisor ended without an answer, as when it is killed.
    #[error("the container's supervisor ended without an answer")]
    Lost,
    /// A call failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

impl ClientError {
    /// The exit code that docker gives for this: 127 for a command that is not there, 126 for one that cannot be executed,
    /// 125 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start(error) => error.exit_code(),
            _ => 125,
        }
    }
}

/// A connection to the supervisor of a container.
#[derive(Debug)]
pub struct Client {
    socket: OwnedFd,
}

/// How a container is started.
#[derive(Debug, Default)]
pub struct Start<'a> {
    /// The far ends of pipes for input, output and error, for who stays.
    pub streams: Option<[BorrowedFd<'a>; 3]>,
    /// Whether the container is killed if who starts it vanishes.
    pub owned: bool,
    /// The size of the terminal, as columns and rows.
    pub terminal_size: Option<(u16, u16)>,
    /// What the supervisor keeps open for as long as it lives: locks, two at most.
    pub keep: Vec<BorrowedFd<'a>>,
}

/// Starts a container as its `plan.json` says. Whoever calls this holds it, and has seen that it does not run.
///
/// # Errors
/// It cannot be started; its state says so, too.
pub fn start(folder: &Folder, held: &Held, start: &Start<'_>) -> Result<Client, ClientError> {
    let io = |what| move |source: io::Error| ClientError::Io { what, source };
    let alive = folder.take_alive(held)?;
    let (socket, theirs) = wire::pair().map_err(io("make a socket"))?;
    let mut supervisor = Command::new(sandbox::own_program())
        .arg0(supervisor::NAME)
        // For who looks at a list of processes.
        .arg(folder.path().file_name().unwrap_or_default())
        .env_clear()
        .stdin(theirs)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .map_err(io("start the container's supervisor"))?;
    let request = Request::Start {
        attached: start.streams.is_some(),
        owned: start.owned,
        terminal_size: start.terminal_size,
    };
    let mut fds = vec![folder.as_fd(), alive.as_fd()];
    fds.extend(start.streams.iter().flatten());
    fds.extend(&start.keep);
    let client = Client { socket };
    client.send(&request, &fds)?;
    drop(alive);
    match client.started() {
        Ok(_) => Ok(client),
        Err(error) => {
            let _status = supervisor.wait();
            Err(error)
        }
    }
}

impl Client {
    /// Connects to who holds the container.
    ///
    /// # Errors
    /// [`ClientError::NotRunning`] if nobody does.
    pub fn connect(folder: &Folder) -> Result<Client, ClientError> {
        let io = |source: rustix::io::Errno| ClientError::Io {
            what: "connect to the container's supervisor",
            source: source.into(),
        };
        let socket = rustix::net::socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .map_err(io)?;
        // Short, wherever the folder is: the kernel takes 108 bytes.
        let path = format!("/proc/self/fd/{}/socket", folder.as_fd().as_raw_fd());
        let address = SocketAddrUnix::new(path).map_err(io)?;
        match rustix::net::connect(&socket, &address) {
            Ok(()) => Ok(Client { socket }),
            Err(rustix::io::Errno::NOENT | rustix::io::Errno::CONNREFUSED) => {
                Err(ClientError::NotRunning)
            }
            Err(errno) => Err(io(errno)),
        }
    }

    pub(super) fn send(
        &self,
        request: &Request,
        fds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        match wire::send(&self.socket, request, fds) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Err(ClientError::Lost),
            Err(source) => Err(ClientError::Io {
                what: "ask the container's supervisor",
                source,
            }),
            Ok(()) => Ok(()),
        }
    }

    fn answer(&self) -> Result<(Answer, Vec<OwnedFd>), ClientError> {
        match wire::receive::<Answer>(&self.socket) {
            Ok(Some(answer)) => Ok(answer),
            Ok(None) => Err(ClientError::Lost),
            Err(source) => Err(ClientError::Io {
                what: "hear from the container's supervisor",
                source,
            }),
        }
    }

    /// What was started: its terminal, if it has one that is not the supervisor's.
    fn started(&self) -> Result<Option<OwnedFd>, ClientError> {
        match self.answer()? {
            (Answer::Started { .. }, mut fds) => Ok(fds.pop()),
            (
                Answer::Failed {
                    start: Some(error), ..
                },
                _,
            ) => Err(ClientError::Start(error)),
            (Answer::Failed { message, .. }, _) => Err(ClientError::Failed { message }),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    fn done(&self) -> Result<Vec<OwnedFd>, ClientError> {
        match self.answer()? {
            (Answer::Done, fds) => Ok(fds),
            (Answer::Refused { message }, _) => Err(ClientError::Refused { message }),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    /// Waits until the process has ended, and what this is connected for with it; its exit code.
    ///
    /// # Errors
    /// [`ClientError::Lost`] if the supervisor was killed.
    pub fn exited(&self) -> Result<i32, ClientError> {
        match self.answer()? {
            (Answer::Exited { code }, _) => Ok(code),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    /// Waits until the supervisor itself is gone, or has let go of this connection.
    pub fn closed(&self) {
        while matches!(wire::receive::<Answer>(&self.socket), Ok(Some(_))) {}
    }

    /// Waits until the container's process ends.
    ///
    /// # Errors
    /// As for [`Client::exited`].
    pub fn wait(&self) -> Result<i32, ClientError> {
        self.send(&Request::Wait, &[])?;
        self.exited()
    }

    /// Asks the process to end, waits until it has.
    ///
    /// # Errors
    /// As for [`Client::exited`].
    pub fn stop(&self, signal: Option<i32>, timeout_s: Option<i64>) -> Result<i32, ClientError> {
        self.send(&Request::Stop { signal, timeout_s }, &[])?;
        self.exited()
    }

    /// Sends a signal to the container's process.
    ///
    /// # Errors
    /// It is not running at this moment.
    pub fn signal(&self, signal: i32) -> Result<(), ClientError> {
        self.send(&Request::Signal { signal }, &[])?;
        self.done().map(drop)
    }

    /// Connects the far ends of pipes, for input, output and error.
    ///
    /// # Errors
    /// The supervisor refuses.
    pub fn attach(&self, stdin: bool, streams: [BorrowedFd<'_>; 3]) -> Result<(), ClientError> {
        self.send(&Request::Attach { stdin }, &streams)?;
        self.done().map(drop)
    }

    /// Starts another process with these as its streams, unless it has a terminal: that is returned.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn execute(
        &self,
        process: ProcessSpec,
        privileged: bool,
        streams: [BorrowedFd<'_>; 3],
    ) -> Result<Option<OwnedFd>, ClientError> {
        let request = Request::Exec {
            process: Box::new(process),
            privileged,
        };
        self.send(&request, &streams)?;
        self.started()
    }

    /// The container's root directory, as its process sees it.
    ///
    /// # Errors
    /// It is not running at this moment.
    pub fn root(&self) -> Result<OwnedFd, ClientError> {
        self.send(&Request::Root, &[])?;
        self.done()?.pop().ok_or(ClientError::Lost)
    }

    /// The container's processes, by id.
    ///
    /// # Errors
    /// The supervisor is gone.
    pub fn processes(&self) -> Result<Vec<ProcessRow>, ClientError> {
        self.send(&Request::Processes, &[])?;
        let mut all = Vec::new();
        loop {
            match self.answer()? {
                (Answer::Processes(rows), _) if rows.is_empty() => return Ok(all),
                (Answer::Processes(rows), _) => all.extend(rows),
                (answer, _) => return Err(unexpected(&answer)),
            }
        }
    }
}

impl Client {
    /// What the container uses.
    ///
    /// # Errors
    /// It is not running at this moment.
    pub fn usage(&self) -> Result<ContainerUsage, ClientError> {
        self.send(&Request::Usage, &[])?;
        match self.answer()? {
            (Answer::Usage(usage), _) => Ok(usage),
            (Answer::Refused { message }, _) => Err(ClientError::Refused { message }),
            (answer, _) => Err(unexpected(&answer)),
        }
    }

    /// Limits the container otherwise: `changed` now, all of `limits` when it is started again, by this policy.
    ///
    /// # Errors
    /// The kernel refuses one, or the container has no control group for it.
    pub fn update(
        &self,
        changed: &Limits,
        limits: &Limits,
        restart: Restart,
    ) -> Result<(), ClientError> {
        let request = Request::Update {
            changed: Box::new(changed.clone()),
            limits: Box::new(limits.clone()),
            restart,
        };
        self.send(&request, &[])?;
        self.done().map(drop)
    }

    /// Lets the container's processes stand still, or go on.
    ///
    /// # Errors
    /// They do so already, none is there, or they cannot be held.
    pub fn pause(&self, paused: bool) -> Result<(), ClientError> {
        self.send(&Request::Pause { paused }, &[])?;
        self.done().map(drop)
    }
}

impl AsFd for Client {
    /// Readable when there is an answer.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

fn unexpected(answer: &Answer) -> ClientError {
    ClientError::Failed {
        message: format!("unexpected answer of the container's supervisor: {answer:?}"),
    }
}
