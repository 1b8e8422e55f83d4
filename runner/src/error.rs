//! Why a sandbox did not start.
//!
//! [`StartError`] is found inside the sandbox and crosses back as data; [`SandboxError`] is what the
//! caller gets.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// Why a sandbox could not be made, watched or waited for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SandboxError {
    /// The spec cannot be carried out whatever the host.
    #[error("invalid sandbox: {what}")]
    Invalid {
        /// What is wrong with it.
        what: String,
    },
    /// A call on this side failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The sandbox was made, or the attempt was, but the process did not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The helper process ended without a word, as when it is killed from outside.
    #[error("the sandbox's helper process ended early ({status})")]
    Lost {
        /// How it ended.
        status: String,
    },
    /// The helper said something that this side does not understand.
    #[error("unexpected message from the sandbox's helper process: {what}")]
    Protocol {
        /// What was wrong.
        what: String,
    },
}

impl SandboxError {
    /// The exit code that docker gives for this: 127 for a command that is not there, 126 for one that
    /// cannot be executed, 125 for everything else.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::Start(error) => error.exit_code(),
            _ => 125,
        }
    }
}

/// Why the process did not start, found inside the sandbox.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// No such command.
    #[error("command `{command}` not found in the image{}", searched(.path))]
    CommandNotFound {
        /// The command as given.
        command: String,
        /// The `PATH` that was searched, if it was.
        path: Option<String>,
    },
    /// The command is there but may not be executed, or is a directory.
    #[error("`{path}` is not executable: {errno}")]
    NotExecutable {
        /// Its path inside the sandbox.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The command's interpreter (of a script's first line, or a program's dynamic loader) is missing.
    #[error("`{path}` needs `{interpreter}`, which is not in the image")]
    InterpreterMissing {
        /// The command's path inside the sandbox.
        path: String,
        /// The interpreter's.
        interpreter: String,
    },
    /// A program for another processor.
    #[error(
        "`{path}` is a program for {machine}, which this machine cannot run: it needs an emulator, such as qemu-user, registered with the kernel (binfmt_misc)"
    )]
    WrongMachine {
        /// Its path inside the sandbox.
        path: String,
        /// The processor it is for.
        machine: String,
    },
    /// Neither a program nor a script with an interpreter line.
    #[error("`{path}` is neither a program nor a script that begins with `#!`")]
    UnknownFormat {
        /// Its path inside the sandbox.
        path: String,
    },
    /// The command's file is open for writing.
    #[error("`{path}` is being written to, and cannot be executed meanwhile")]
    TextBusy {
        /// Its path inside the sandbox.
        path: String,
    },
    /// The arguments and the environment are more than the kernel takes.
    #[error("the command's arguments and environment are too large for the kernel")]
    ArgumentsTooLarge,
    /// Namespaces of another sandbox cannot be shared.
    #[error("cannot share what another container has: {reason}")]
    Join {
        /// Why.
        reason: String,
    },
    /// The working directory is not there, or cannot be entered.
    #[error("working directory `{path}`: {errno}")]
    WorkingDirectory {
        /// Its path inside the sandbox.
        path: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The user's ids do not exist in this user namespace.
    #[error("user {uid}:{gid} cannot be used here: the user namespace has no such id")]
    UserUnmapped {
        /// The user id.
        uid: u32,
        /// The group id.
        gid: u32,
    },
    /// A mount failed.
    #[error("cannot mount {what} on `{target}`: {errno}")]
    Mount {
        /// What was mounted.
        what: String,
        /// Where, inside the sandbox.
        target: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A file cannot be mounted on a directory, nor a directory on a file.
    #[error(
        "cannot mount {what} on `{target}`: {}",
        if *.is_directory { "it is a directory, and a file is there" } else { "it is a file, and a directory is there" }
    )]
    UnlikeTarget {
        /// What was to be mounted.
        what: String,
        /// Where, inside the sandbox.
        target: String,
        /// Whether what was to be mounted is a directory.
        is_directory: bool,
    },
    /// A source to be bound is missing or cannot be opened.
    #[error("cannot use `{source_path}` for `{target}`: {errno}")]
    MountSource {
        /// Its path on the host.
        source_path: String,
        /// Where it was to appear.
        target: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// A mount's target cannot be reached or made inside the root.
    #[error("cannot reach the mount point `{target}` in the image: {errno}")]
    MountTarget {
        /// The target inside the sandbox.
        target: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// `/proc`, `/sys` or `/dev` of the image is not a plain directory.
    #[error("`{target}` of the image must be a directory, not a link or file")]
    NotADirectory {
        /// Which.
        target: String,
    },
    /// A limit was asked for which the host cannot enforce.
    #[error("cannot limit {limit}: {reason}")]
    Limit {
        /// Which.
        limit: String,
        /// Why.
        reason: String,
    },
    /// A source is named beneath a directory, but a link on the way leads out of it.
    #[error("cannot use `{beneath}` of `{source_path}` for `{target}`: a link leads out of it")]
    SourceLeadsOut {
        /// The directory.
        source_path: String,
        /// The path beneath it.
        beneath: String,
        /// Where it was to be mounted.
        target: String,
    },
    /// The program that leads out of a sandbox's network does not start.
    #[error("no way out of the container's network: {reason}")]
    Relay {
        /// What it said.
        reason: String,
    },
    /// A port of the host cannot be had, in docker's words.
    #[error("listen {family} {address}: bind: {errno}")]
    Port {
        /// The host's address and port.
        address: String,
        /// `tcp4`, `tcp6`, `udp4` or `udp6`.
        family: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// Without namespaces there is no way to give the process this.
    #[error(
        "{what}: that needs namespaces, which are refused here; `longshore info` says what would give them"
    )]
    NeedsNamespaces {
        /// What.
        what: String,
    },
    /// Another step failed.
    #[error("cannot {step}: {errno}")]
    Step {
        /// What was tried.
        step: String,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The spec did not arrive whole.
    #[error("the sandbox's specification is not readable: {what}")]
    Spec {
        /// What was wrong.
        what: String,
    },
}

impl StartError {
    /// The exit code that docker gives for this, see [`SandboxError::exit_code`].
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::NotExecutable { .. }
            | Self::InterpreterMissing { .. }
            | Self::WrongMachine { .. }
            | Self::UnknownFormat { .. }
            | Self::TextBusy { .. }
            | Self::ArgumentsTooLarge => 126,
            _ => 125,
        }
    }

    /// For `map_err`: the step `step` failed.
    pub(crate) fn step<E: Into<Errno>>(step: impl Into<String>) -> impl FnOnce(E) -> Self {
        move |errno| Self::Step {
            step: step.into(),
            errno: errno.into(),
        }
    }
}

/// A kernel error number, which reads as its text.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = io::Error::from_raw_os_error(self.0).to_string();
        let text = text.split(" (os error").next().unwrap_or_default();
        f.write_str(&text.to_lowercase())
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Errno({}: {self})", self.0)
    }
}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<io::Error> for Errno {
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

fn searched(path: &Option<String>) -> String {
    path.as_ref()
        .map(|path| format!(" (searched `{path}`)"))
        .unwrap_or_default()
}
