//! File operations: what `COPY`, `ADD` and `WORKDIR` put into one new layer, in overlayfs's form.
//!
//! ```text
//! FileOp ─ copy, archive, mkdir ─► upper (plan: the new layer over the base) ─ write ─► directory of the layer
//! ```
//!
//! Nothing is written through a mount: the base is only looked at, through the handle of its merged tree, and the layer
//! gets what the operation changed and the directories above it. Every path that the Dockerfile or an archive names is
//! resolved inside the root that it belongs to. The same operation on the same input makes the same layer.

mod archive;
pub mod chown;
mod copy;
mod mkdir;
mod upper;
mod write;

use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use store::layer::scan::Scan;

use super::select::SelectError;
use super::tree::{Time, Tree, TreeError};
use crate::graph::{FileAction, FileOp};
pub use archive::ArchiveError;
pub use chown::{OwnerError, names_accounts};
use upper::Upper;
use write::Writer;

/// A [`FileOp`] and all that it is done with.
#[derive(Clone, Copy, Debug)]
pub struct FileRun<'a> {
    /// What to do.
    pub op: &'a FileOp,
    /// Top of the merged root file system that is changed; none on scratch.
    pub base: Option<BorrowedFd<'a>>,
    /// The vertex's inputs, in its order, the base among them: what [`CopySource::input`](crate::graph::CopySource) counts.
    pub inputs: &'a [Tree<'a>],
    /// The new layer's directory, empty.
    pub upper: &'a Path,
    /// Time of directories that nothing else gives a time, in seconds since 1970.
    pub epoch: Option<i64>,
    /// Stops the work soon after it is set.
    pub cancelled: &'a AtomicBool,
}

/// Why a file operation failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FileOpError {
    /// A source selects nothing, or is missing.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// An input or the base could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// An owner could not be told.
    #[error(transparent)]
    Owner(#[from] OwnerError),
    /// An archive could not be unpacked.
    #[error("cannot unpack `{path}`: {source}")]
    Archive {
        /// The archive.
        path: String,
        /// Why.
        source: ArchiveError,
    },
    /// A parent of the destination exists and is no directory.
    #[error("`{path}` is not a directory in the image, so nothing can be put below it")]
    NotADirectory {
        /// The path that is in the way.
        path: String,
    },
    /// The layer could not be written.
    #[error("cannot {action} `{path}` in the new layer: {source}")]
    Write {
        /// What was tried: `create`, `write`, …
        action: &'static str,
        /// Path in the image.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// The name means something else in a layer.
    #[error(
        "`{path}`: names that begin with `.wh.` mark removals in image layers and cannot be copied"
    )]
    ReservedName {
        /// The path.
        path: String,
    },
    /// The device means something else in a layer.
    #[error("`{path}`: a character device 0/0 marks a removal in a layer and cannot be copied")]
    ReservedDevice {
        /// The path.
        path: String,
    },
    /// The build was cancelled.
    #[error("cancelled")]
    Cancelled,
}

impl FileRun<'_> {
    /// Does it: afterwards `upper` is the layer, and what is returned its identity, without a second look at it.
    ///
    /// # Errors
    /// See [`FileOpError`]; what is then in `upper` is of no use.
    ///
    /// # Panics
    /// If a source counts an input that is not there: lowering made both.
    pub fn run(&self) -> Result<Scan, FileOpError> {
        let mtime = Time {
            seconds: self.epoch.unwrap_or(0),
            nanos: 0,
        };
        let mut plan = Plan {
            run: *self,
            upper: Upper::new(self.base, mtime)?,
            writer: Writer::new(self)?,
        };
        for action in &self.op.actions {
            match action {
                FileAction::Copy(action) => copy::copy(&mut plan, action)?,
                FileAction::Mkdir(action) => mkdir::mkdir(&mut plan, action)?,
            }
        }
        plan.writer.write(&mut plan.upper)?;
        plan.writer.finish(&plan.upper)
    }

    fn check_cancelled(&self) -> Result<(), FileOpError> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Err(FileOpError::Cancelled);
        }
        Ok(())
    }
}

/// A file operation under way.
struct Plan<'a> {
    run: FileRun<'a>,
    upper: Upper<'a>,
    writer: Writer<'a>,
}

#[cfg(test)]
mod tests;
