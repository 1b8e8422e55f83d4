//! Dropping what a check found wrong, so that whoever needs it next makes or fetches it again.
//!
//! Nothing is mended in place: a name goes, rows first, and what depended on it goes with it. An image that lost a layer is
//! removed with its names, a cache record with a layer that is gone is a miss from then on.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::Problem;
use crate::clock::Clock;
use crate::content::gc::Trash;
use crate::fs;
use crate::images::ImageId;
use crate::layer::LayerId;
use crate::session::Sessions;
use crate::{Store, StoreError};

/// Rounds of repairing what earlier rounds uncovered: blob, then layer, then image.
const ROUNDS_MAX: usize = 4;

/// Why a store was not repaired.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RepairError {
    /// Somebody is using what may have to go.
    #[error(
        "the store is in use by {sessions} other processes: wait until they are done, or stop them"
    )]
    InUse {
        /// How many.
        sessions: usize,
    },
    /// A store's operation failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What became of a problem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Repaired {
    /// The problem.
    pub problem: Problem,
    /// Whether it is gone.
    pub gone: bool,
}

/// Moves an index that SQLite cannot read out of the way, so that the next opening makes an empty one; returns where it is
/// now. What it knew is lost: names, cache records, history. Blobs and layers are leftovers from then on.
///
/// # Errors
/// Another process uses the store, or the file cannot be renamed.
pub fn put_index_aside(root: &Path) -> Result<PathBuf, RepairError> {
    let sessions = Sessions::new(root, Duration::ZERO, Clock::default());
    let _beginning = sessions.hold().map_err(StoreError::from)?;
    let others = sessions.others().map_err(StoreError::from)?;
    if others > 0 {
        return Err(RepairError::InUse { sessions: others });
    }
    for name in ["index.db-shm", "index.db-wal", "index.db"] {
        let aside = root.join(name.replace("index.db", "index.db.damaged"));
        fs::optional(fs::rename(&root.join(name), &aside)).map_err(StoreError::from)?;
    }
    Ok(root.join("index.db.damaged"))
}

impl Store {
    /// Drops what `problems` names, and whatever turns out to be wrong for that; nobody else may be using the store.
    ///
    /// # Errors
    /// Another process uses the store, or something cannot be removed.
    pub fn repair(&self, problems: &[Problem]) -> Result<Vec<Repaired>, RepairError> {
        // Ours begins first: nobody does while this goes on.
        self.sessions.current().map_err(StoreError::from)?;
        let _beginning = self.sessions.hold().map_err(StoreError::from)?;
        let sessions = self.sessions.others().map_err(StoreError::from)?;
        if sessions > 0 {
            return Err(RepairError::InUse { sessions });
        }
        let mut repaired: Vec<Repaired> = Vec::new();
        let mut todo = problems.to_vec();
        for _ in 0..ROUNDS_MAX {
            for problem in todo.drain(..) {
                let gone = self.repair_one(&problem)?;
                repaired.push(Repaired { problem, gone });
            }
            let known = |found: &Problem| repaired.iter().any(|done| done.problem == *found);
            let mut found = self.check_images()?;
            found.retain(|problem| !known(problem));
            todo = found;
            if todo.is_empty() {
                break;
            }
        }
        Ok(repaired)
    }

    /// Tells whether it is gone.
    fn repair_one(&self, problem: &Problem) -> Result<bool, StoreError> {
        match problem {
            Problem::IndexDamaged { .. } => return self.reindex(),
            Problem::BlobDamaged { digest, .. } | Problem::BlobFileMissing { digest } => {
                self.blobs.remove(digest)?;
            }
            Problem::LayerDirectoryMissing { id } | Problem::LayerDamaged { id, .. } => {
                self.drop_layer(id)?;
            }
            Problem::FormWrong { diff_id, digest } => {
                self.index.write(|t| {
                    t.execute(
                        "DELETE FROM compressed WHERE diff_id = ?1 AND digest = ?2",
                        (diff_id.to_string(), digest.to_string()),
                    )
                })?;
            }
            Problem::BlobMissing { image, digest } if image.0 != *digest => {
                self.forget_manifest(image)?;
            }
            Problem::ManifestWrong { image, .. } => self.forget_manifest(image)?,
            Problem::BlobMissing { image, .. } | Problem::LayerMissing { image, .. } => {
                self.drop_image(image)?;
            }
            Problem::TarMissing { image, diff_id } => {
                self.drop_image(image)?;
                self.drop_layer(&LayerId::Unpacked(*diff_id))?;
            }
            Problem::CacheMountBroken { name, .. } => {
                self.discard_cache_mount(&self.cache_mounts_path().join(name))?;
            }
            // What somebody keeps there is theirs to give up: `rm` and `volume rm` do.
            Problem::ContainerBroken { .. } | Problem::VolumeBroken { .. } => return Ok(false),
            Problem::GitMirrorBroken { name } => self.discard_mirror(name)?,
            Problem::JournalMissing { id } => {
                self.history().remove(std::slice::from_ref(id))?;
            }
            Problem::MountLeft { path } => {
                let detach = rustix::mount::UnmountFlags::DETACH;
                let detach = detach | rustix::mount::UnmountFlags::NOFOLLOW;
                return Ok(rustix::mount::unmount(path, detach).is_ok());
            }
            Problem::LayerUnlisted { .. } | Problem::BlobUnlisted { .. } => {
                let before = self.sessions.oldest_live()?;
                let mut trash: Vec<(PathBuf, Trash)> = Vec::new();
                self.move_aside(before, &mut trash)?;
                for (path, _) in trash {
                    fs::temp::sweep(&path)?;
                }
            }
            Problem::TemporaryLeft { name } => {
                fs::temp::sweep(&self.root.join("tmp").join(name))?;
            }
            Problem::SessionLeft { .. } => {
                self.sessions.unused_since()?;
            }
            Problem::LockLeft { .. } => self.remove_free_locks()?,
            Problem::LeaseOver { id } => {
                self.index.lease_remove(id)?;
            }
            // Whoever put it there may want it.
            Problem::Foreign { .. } => return Ok(false),
        }
        Ok(true)
    }

    /// Lets SQLite make its search trees again; tells whether that was all that was wrong.
    fn reindex(&self) -> Result<bool, StoreError> {
        let done = self.index.write(|t| {
            t.execute_batch("REINDEX")?;
            let said: String = t.query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))?;
            let orphans = t.prepare("PRAGMA foreign_key_check")?.exists([])?;
            Ok(said == "ok" && !orphans)
        });
        Ok(done.unwrap_or(false))
    }

    /// Drops a layer's row, the records that would lead to it, and its directory.
    pub(crate) fn drop_layer(&self, id: &LayerId) -> Result<(), StoreError> {
        self.index.write(|t| {
            let name = id.to_string();
            t.execute("DELETE FROM layers WHERE id = ?1", [&name])?;
            t.execute(
                "DELETE FROM records WHERE key IN (SELECT key FROM record_layers WHERE layer = ?1)",
                [&name],
            )
        })?;
        self.snapshots.remove(id)?;
        Ok(())
    }

    fn drop_image(&self, image: &ImageId) -> Result<(), StoreError> {
        self.index
            .write(|t| t.execute("DELETE FROM images WHERE id = ?1", [image.to_string()]))?;
        Ok(())
    }

    /// The image stays: a new manifest is made when one is needed.
    fn forget_manifest(&self, image: &ImageId) -> Result<(), StoreError> {
        self.index.write(|t| {
            let id = image.to_string();
            t.execute(
                "DELETE FROM image_blobs WHERE image = ?1 AND digest = (SELECT manifest FROM images WHERE id = ?1)",
                [&id],
            )?;
            t.execute("UPDATE images SET manifest = NULL WHERE id = ?1", [&id])
        })?;
        Ok(())
    }
}
