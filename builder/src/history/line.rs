//! The lines of a journal: one JSON object each, described in `docs/formats/build-journal.md`.

use serde::{Deserialize, Serialize};

use super::detail::Detail;
use crate::cache::explain::Reason;
use crate::solve::Used;

/// Version of the lines; the first line says it.
pub(super) const VERSION: u32 = 1;

/// One line. Times (`at`) are microseconds since the build began; steps are counted from 0.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
pub(super) enum Line {
    /// The first: what is built. A second one says it anew, once more is known.
    Build {
        version: u32,
        /// Microseconds since 1970.
        started: i64,
        /// Hexadecimal.
        series: String,
        context: String,
        dockerfile: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        target: Option<String>,
        platform: String,
        #[serde(default)]
        tags: Vec<String>,
    },
    /// The steps, once the Dockerfile is understood.
    Steps { at: u64, steps: Vec<Planned> },
    /// Something that went before the steps has ended: the context was fetched, say.
    Before {
        at: u64,
        name: String,
        /// Microseconds.
        took: u64,
    },
    /// A step's result is known.
    Cached {
        at: u64,
        step: usize,
        /// The record's key, hexadecimal; none for an image.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        key: Option<String>,
        /// What it took when it ran, in microseconds.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        took: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        bytes: Option<u64>,
        /// Nothing asked for the files of its result.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unneeded: bool,
    },
    /// A step is about to run, and why.
    Runs {
        at: u64,
        step: usize,
        reasons: Vec<Reason>,
    },
    /// A step began.
    Started { at: u64, step: usize },
    /// A step's process wrote something: `text`, or `hex` where it is no UTF-8.
    Output {
        at: u64,
        step: usize,
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        stderr: bool,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        text: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        hex: Option<String>,
    },
    /// A step's process has ended, and used this much.
    Used { at: u64, step: usize, used: Used },
    /// A step has done its work.
    Done { at: u64, step: usize },
    /// A step's result is kept.
    Recorded {
        at: u64,
        step: usize,
        key: String,
        bytes: u64,
        /// An earlier run gave the same files.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        unchanged: bool,
    },
    /// A step failed.
    Failed {
        at: u64,
        step: usize,
        message: String,
    },
    /// Something worth knowing.
    Note {
        at: u64,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<usize>,
        text: String,
    },
    /// Something doubtful about the Dockerfile, with its lines.
    Warning { at: u64, text: String },
    /// Bytes were moved from or to another machine, or unpacked.
    Moved {
        at: u64,
        /// The step that waited for them.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        step: Option<usize>,
        label: String,
        bytes: u64,
    },
    /// The layers that the steps made, step by step, as far as they are known: a LayerId, or nothing for none.
    Layers {
        at: u64,
        layers: Vec<Option<String>>,
    },
    /// The journal is full: what follows, but for the end, is missing.
    Full { at: u64 },
    /// The last.
    End {
        at: u64,
        /// `done`, `failed` or `cancelled`.
        status: String,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
    },
}

/// A step as the Dockerfile has it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Planned {
    /// Its label.
    pub(super) name: String,
    /// `image`, `context`, `exec`, `file`, …
    pub(super) kind: String,
    /// First line in the Dockerfile, from 1; 0 where there is none.
    #[serde(default)]
    pub(super) line: usize,
    /// The steps that it reads.
    #[serde(default)]
    pub(super) inputs: Vec<usize>,
    /// How it is made.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) detail: Option<Detail>,
}
