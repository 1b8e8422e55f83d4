//! Room for a collection on a disk that is full to the last byte.
//!
//! Removing something takes rows out of the index first, and SQLite writes that into its log before anything becomes free. So a
//! store keeps a file of a megabyte that nobody needs; a collection for which there is no room removes it, works in small
//! steps, and makes it again.

use std::path::PathBuf;

use rustix::fs::FallocateFlags;

use crate::content::collect::{Candidate, Collection};
use crate::content::gc::PruneReport;
use crate::fs::{self, TempFile, attempt};
use crate::{Store, StoreError};

/// Bytes kept. One step's pages in SQLite's log are far fewer.
const RESERVE_BYTES: u64 = 1024 * 1024;

/// A disk with less free space than this gets none: it would be the first thing to fill it.
const ROOM_MIN: u64 = 8 * RESERVE_BYTES;

/// Things given up in one step.
const STEP: usize = 32;

impl Store {
    fn reserve_path(&self) -> PathBuf {
        self.root.join("reserve")
    }

    /// Makes the file where there is none and room enough; without it, only a full disk is harder to empty.
    pub(crate) fn keep_reserve(&self) {
        let made = || -> Result<(), StoreError> {
            let path = self.reserve_path();
            if fs::exists(&path)? || self.disk()?.free < ROOM_MIN {
                return Ok(());
            }
            let file = TempFile::create(&self.root.join("tmp"))?;
            attempt("reserve room for", &path, || {
                let flags = FallocateFlags::empty();
                rustix::fs::fallocate(file.file(), flags, 0, RESERVE_BYTES)
            })?;
            Ok(file.publish(&path)?)
        };
        if let Err(error) = made() {
            tracing::debug!(%error, "no room is reserved");
        }
    }

    /// Removes what was chosen as [`Store::remove`] does, when that has failed for lack of room.
    pub(crate) fn remove_on_full_disk(
        &self,
        chosen: &[Candidate],
        collection: &Collection,
    ) -> Result<PruneReport, StoreError> {
        // None of the two needs a row.
        fs::remove_file(&self.reserve_path())?;
        self.snapshots.sweep()?;
        let mut report = PruneReport::default();
        let mut steps = chosen.chunks(STEP);
        loop {
            // What the log holds already goes to where it belongs, so that its room is used again.
            if let Err(error) = self.index.shorten_log() {
                tracing::debug!(%error, "the index's log stays as it is");
            }
            let step = steps.next();
            let part = self.remove(step.unwrap_or_default(), collection)?;
            report.items.extend(part.items);
            report.bytes += part.bytes;
            if step.is_none() {
                break;
            }
        }
        report.items.sort();
        self.keep_reserve();
        Ok(report)
    }
}
