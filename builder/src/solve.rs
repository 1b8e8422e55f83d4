//! Solving: from a [`Definition`] to results, running only what no cache has.
//!
//! ```text
//! Definition ─► scheduler (pure: Event -> Vec<Action>) ◄─► driver (threads, locks, cache) ─► ops
//! ```
//!
//! [`scheduler`] decides, [`driver`] does, [`ready`] says what first. What is asked of a vertex comes in two strengths: its *identity* (what its
//! result is, which a cache record can tell) and its *content* (its layers are on this disk).

pub mod cancel;
pub mod driver;
pub mod ready;
pub mod scheduler;
#[cfg(test)]
mod simulation;
mod transfers;

use std::time::Duration;

use serde::{Deserialize, Serialize};
use store::history::BuildId;

use crate::cache::CacheKey;
use crate::cache::explain::Reason;
use crate::dockerfile::Problems;
use crate::graph::{VertexDigest, VertexIndex};

pub(crate) use transfers::OfVertex;
pub use transfers::TransferKind;

/// What a step's processes used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Used {
    /// Processor time, in microseconds.
    pub cpu: u64,
    /// The most memory at a time, in bytes; of one process where nothing counts all of them.
    pub memory: u64,
    /// Bytes read from disks.
    pub read: u64,
    /// Bytes written to disks.
    pub written: u64,
}

/// What a build reports while it goes on, in the order in which it happens.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub enum ProgressEvent {
    /// What may have to be done. Comes before any event of a vertex.
    Planned {
        /// By index, inputs before users.
        vertices: Vec<PlannedVertex>,
    },
    /// What is doubtful about the Dockerfile; repeated in the build's outcome.
    Warnings(Problems),
    /// A vertex has begun to do something worth showing.
    Started {
        /// Which one.
        vertex: VertexIndex,
        /// Its label: `[stage 2/5] RUN make`.
        name: String,
        /// First line in the Dockerfile, from 1; 0 where there is none.
        line: usize,
    },
    /// The build is written into the history.
    Begun {
        /// Under this name.
        build: BuildId,
    },
    /// A vertex's result is known; before [`ProgressEvent::Cached`], or alone where nothing needs it.
    Known {
        /// Which one.
        vertex: VertexIndex,
        /// Key of its record.
        key: Option<CacheKey>,
        /// How long it took when it ran.
        took: Option<Duration>,
        /// Bytes of the files that it made then.
        bytes: Option<u64>,
        /// Nothing asks for its files.
        unneeded: bool,
    },
    /// A step runs; before [`ProgressEvent::Started`], or before [`ProgressEvent::Done`] where only what was fetched tells why.
    Runs {
        /// Which one.
        vertex: VertexIndex,
        /// Why, the most telling first.
        reasons: Vec<Reason>,
    },
    /// A step's result is kept; before [`ProgressEvent::Done`].
    Recorded {
        /// Which one.
        vertex: VertexIndex,
        /// Key of its record.
        key: CacheKey,
        /// Bytes of the files that it made.
        bytes: u64,
        /// An earlier run gave the same files, so what reads them need not run again for it.
        unchanged: bool,
    },
    /// A process wrote something.
    Output {
        /// Which vertex's.
        vertex: VertexIndex,
        /// Where to.
        stream: OutputStream,
        /// The bytes as they came, not cut at lines.
        bytes: Vec<u8>,
    },
    /// A process has ended, and what it and its children used.
    Used {
        /// Which vertex's.
        vertex: VertexIndex,
        /// How much.
        used: Used,
    },
    /// The cache had the result. Comes without a [`ProgressEvent::Started`].
    Cached {
        /// Which vertex's.
        vertex: VertexIndex,
        /// Its label.
        name: String,
    },
    /// A vertex is done.
    Done {
        /// Which one.
        vertex: VertexIndex,
        /// Since it started.
        elapsed: Duration,
    },
    /// A vertex failed; the build's error says how.
    Failed {
        /// Which one.
        vertex: VertexIndex,
        /// One line.
        message: String,
    },
    /// Something that a person may want to know: waiting for another process, say.
    Note {
        /// The vertex it is about.
        vertex: Option<VertexIndex>,
        /// One line.
        text: String,
    },
    /// Bytes are on their way: from or to another machine, or out of a blob into a layer.
    Transfer {
        /// Who waits for them; absent for what no vertex asked for.
        vertex: Option<VertexIndex>,
        /// What happens to them.
        kind: TransferKind,
        /// What they are: a digest or a URL. Kind and id tell a transfer from any other.
        id: String,
        /// The same for people: `sha256:0123…`, or a file's name.
        name: String,
        /// Bytes so far.
        done: u64,
        /// Bytes in all, as far as that is known; at the end, and only then, as many as are done.
        total: Option<u64>,
    },
}

/// A vertex before it is known whether anything has to be done for it.
#[derive(Clone, Debug)]
pub struct PlannedVertex {
    /// What tells it from others.
    pub digest: VertexDigest,
    /// What it reads.
    pub inputs: Vec<VertexIndex>,
    /// Its label.
    pub name: String,
    /// Whether it is counted: images and folders are not.
    pub is_step: bool,
}

/// The two streams of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutputStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// Takes [`ProgressEvent`]s; called from several threads.
pub trait ProgressSink: Send + Sync {
    /// Takes one event.
    fn event(&self, event: ProgressEvent);
}

/// Drops every event.
#[derive(Clone, Copy, Debug)]
pub struct NoProgress;

impl ProgressSink for NoProgress {
    fn event(&self, _event: ProgressEvent) {}
}
