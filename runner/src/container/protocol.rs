//! What commands and supervisors say to each other: one JSON message a packet, with descriptors, over the folder's socket.
//!
//! | request | descriptors | answers |
//! |---|---|---|
//! | `Start` (over the supervisor's standard input) | folder, `alive`; input, output, error if attached | `Started` or `Failed`, then `Exited` |
//! | `Attach` | input, output, error | `Done`, then `Exited` |
//! | `Exec` | input, output, error | `Started` (with its terminal), or `Failed`; then `Exited` |
//! | `Wait` | | `Exited` |
//! | `Root` | | `Done`, with the container's `/` |
//! | `Processes` | | `Processes`, several times, ended by an empty one |
//! | `Usage` | | `Usage` or `Refused` |
//! | `Signal`, `Resize`, `Detach` | | of who is attached or executes something: none; else `Done` or `Refused` |
//! | `Stop` | | `Exited` |
//! | `Pause`, `Update` | | `Done` or `Refused` |
//!
//! The descriptors of who attaches are the far ends of pipes: the supervisor makes them non-blocking.

use serde::{Deserialize, Serialize};

use super::plan::Restart;
use crate::error::StartError;
use crate::spec::{Limits, ProcessSpec};

/// What is asked of a supervisor.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Request {
    /// Begin: the first message.
    Start {
        /// Whether streams come along.
        attached: bool,
        /// Whether the container is killed if who asks this vanishes.
        owned: bool,
        /// The size of the terminal, as columns and rows.
        terminal_size: Option<(u16, u16)>,
    },
    /// Connect these streams to the container's.
    Attach {
        /// Whether the first is to be read.
        stdin: bool,
    },
    /// Let the container live on when this connection ends.
    Detach,
    /// Run another process in the container.
    Exec {
        /// The process.
        process: Box<ProcessSpec>,
        /// Whether it gets all privileges.
        privileged: bool,
    },
    /// Send a signal to the container's process, or to what this connection executes.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Ask the container's process to end, and kill it after a while.
    Stop {
        /// The signal that asks it; the plan's if `None`.
        signal: Option<i32>,
        /// How long it may take in seconds; the plan's if `None`, for ever if negative.
        timeout_s: Option<i64>,
    },
    /// Change the size of the container's terminal.
    Resize {
        /// Columns.
        columns: u16,
        /// Rows.
        rows: u16,
    },
    /// Say when the container's process has ended.
    Wait,
    /// Hand over the container's root directory.
    Root,
    /// List the container's processes.
    Processes,
    /// Say what the container uses.
    Usage,
    /// Limit it otherwise from now on, and start it again by another policy.
    Update {
        /// The limits that change.
        changed: Box<Limits>,
        /// All of them, for when it is started again.
        limits: Box<Limits>,
        /// The policy.
        restart: Restart,
    },
    /// Let its processes stand still, or go on.
    Pause {
        /// Which.
        paused: bool,
    },
}

/// What a supervisor answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Answer {
    /// The process runs.
    Started {
        /// Its id as the supervisor sees it.
        pid: u32,
    },
    /// It does not.
    Failed {
        /// Why, if the sandbox says so.
        start: Option<StartError>,
        /// Why, in words.
        message: String,
    },
    /// It has ended.
    Exited {
        /// With what.
        code: i32,
    },
    /// Done.
    Done,
    /// Not done.
    Refused {
        /// Why.
        message: String,
    },
    /// Some of the container's processes.
    Processes(Vec<ProcessRow>),
    /// What the container uses.
    Usage(ContainerUsage),
}

/// What a container uses at one moment, all its processes together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    /// Processor time since it started, in microseconds.
    pub cpu_us: u64,
    /// Memory in bytes, without what the kernel remembers of files and could forget.
    pub memory_bytes: u64,
    /// The most that it may be, if that is limited.
    pub memory_limit: Option<u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Bytes received on its own network.
    pub received_bytes: u64,
    /// Bytes sent there.
    pub sent_bytes: u64,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
}

/// A process of a container, as the host sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRow {
    /// Its id on the host.
    pub pid: u32,
    /// Its parent's.
    pub parent: u32,
    /// Its user on the host.
    pub uid: u32,
    /// Its terminal's device number; 0 for none.
    pub terminal: u32,
    /// When it started, in clock ticks since boot.
    pub start_ticks: u64,
    /// The processor time it took, in clock ticks.
    pub cpu_ticks: u64,
    /// The memory it has resident, in bytes.
    pub resident_bytes: u64,
    /// How many threads it has.
    pub threads: u64,
    /// Its command line, clipped.
    pub command: String,
}
