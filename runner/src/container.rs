//! Containers: sandboxes that outlive the command that started them.
//!
//! There is no daemon. Each container has a folder and, while it lives, a small process of its own that holds it:
//!
//! ```text
//!  a command ── Start, streams ──► supervisor (this program again) ── spawn ──► helper ─► init ─► the process
//!  commands  ── requests ────────► FOLDER/socket                   ◄─ pipes or terminal ─┘
//!                                  writes FOLDER/state.json, FOLDER/log.json
//! ```
//!
//! | module | holds |
//! |---|---|
//! | [`folder`] | the folder, its locks, and whether somebody holds the container |
//! | [`plan`] | what a supervisor is to do, as plain data |
//! | [`state`] | how a container is, on disk |
//! | [`log`] | what it printed, on disk |
//! | [`protocol`] | what commands and supervisors say to each other |
//! | [`client`] | the commands' side |
//! | [`attend`] | a command that stays: bytes between its own streams and the container's |
//! | `supervisor` | the other side |
//!
//! Invariants: whoever holds `alive` is the container's supervisor, and the kernel lets go of it when that dies, whatever
//! kills it; a container whose `alive` nobody holds does not run, whatever its state says, for its processes die with the
//! supervisor. `docs/formats/container.md` has the files.

pub mod attend;
pub mod client;
pub mod folder;
pub mod log;
pub mod plan;
pub mod protocol;
pub mod state;
pub(crate) mod supervisor;
pub mod time;

pub use client::{Client, ClientError};
pub use folder::{Folder, FolderError, Held};
pub use plan::{Health, LogLimits, Plan, Restart};
pub use state::{State, Status};
