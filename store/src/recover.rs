//! After a crash of the machine: what may be torn goes.
//!
//! Nothing is `fsync`ed when it is published. Rows carry the epoch they were written in; [`Store::sync`] ends the epoch,
//! writes the file system out and then notes that the epoch is on disk. The index also keeps the boot id of the kernel under which
//! it was written. When the kernel has another one, whatever belongs to a later epoch than the one noted may be torn:
//! records and layers go, blobs stay if they still have their digest, and images stay if all they need does.
//! A killed process is no crash: what it wrote is in the kernel's hands.

use std::path::Path;

use rusqlite::Transaction;

use crate::check::{Problem, blob_row, layer_row};
use crate::content::ContentError;
use crate::fs::{self, Lock};
use crate::images::ImageId;
use crate::index::{Index, synced_epoch};
use crate::layer::LayerId;
use crate::oci::Digest;
use crate::{Store, StoreError};

const BOOT_ID: &str = "/proc/sys/kernel/random/boot_id";

impl Store {
    /// Whether something was published that a crash of the machine could still take.
    pub fn needs_sync(&self) -> Result<bool, StoreError> {
        Ok(self.index.has_unsynced()?)
    }

    /// Writes everything published until now to disk, so that even a crash of the machine loses none of it. Processes that
    /// want it at the same time take turns, and those for whom another did it do nothing.
    pub fn sync(&self) -> Result<(), StoreError> {
        let _turn = self.lock_key(blake3::hash(b"longshore sync").as_bytes())?;
        if !self.needs_sync()? {
            return Ok(());
        }
        let epoch = self.index.next_epoch()?;
        fs::syncfs(&self.root)?;
        self.index.set_synced_epoch(epoch)?;
        Ok(())
    }

    /// Compares the boot id with the one the index was last written under, and drops what a crash may have torn.
    pub(crate) fn recover(&self, boot_id: &str) -> Result<(), StoreError> {
        if self.index.meta("boot_id")?.as_deref() == Some(boot_id.as_bytes()) {
            return Ok(());
        }
        let _lock = Lock::exclusive(&self.root.join("locks/recovery"))?;
        match self.index.meta("boot_id")? {
            Some(known) if known == boot_id.as_bytes() => return Ok(()),
            Some(_) => {
                // Half blobs that somebody would go on with, among others.
                self.snapshots.sweep()?;
                self.drop_torn_cache_mounts()?;
                self.drop_mirrors()?;
                self.drop_unsynced()?;
            }
            None => {}
        }
        self.index.meta_put("boot_id", boot_id.as_bytes())?;
        Ok(())
    }

    fn drop_unsynced(&self) -> Result<(), StoreError> {
        self.index.write(|t| {
            let synced = synced_epoch(t)?;
            t.execute("DELETE FROM records WHERE epoch > ?1", [synced])?;
            t.execute("DELETE FROM layers WHERE epoch > ?1", [synced])?;
            Ok(())
        })?;
        for name in fs::list(&self.root.join("layers"))? {
            if let Ok(id) = name.parse::<LayerId>()
                && !self.index.has_layer_row(&id)?
            {
                tracing::info!(layer = %id, "dropped after a crash: it may be torn");
                let aside = self.root.join("tmp").join(fs::temp::fresh_name("trash"));
                fs::rename(&self.layer_path(&id), &aside)?;
                fs::remove_tree(&aside)?;
            }
        }
        for digest in self.blobs.list()? {
            if self.index.is_blob_synced(&digest)? {
                continue;
            }
            match self.blobs.verify(&digest) {
                Ok(_) => self.index.set_blob_synced(&digest)?,
                Err(ContentError::DigestMismatch { .. }) => {
                    tracing::info!(blob = %digest, "dropped after a crash: it is torn");
                    self.blobs.remove(&digest)?;
                }
                Err(error) => return Err(error.into()),
            }
        }
        let missing = |problems: Vec<Problem>| -> Vec<ImageId> {
            let image = |problem| match problem {
                Problem::BlobMissing { image, .. }
                | Problem::LayerMissing { image, .. }
                | Problem::TarMissing { image, .. } => Some(image),
                _ => None,
            };
            problems.into_iter().filter_map(image).collect()
        };
        let incomplete = missing(self.check_images()?);
        self.index.write(|t| {
            let synced = synced_epoch(t)?;
            for image in incomplete {
                t.execute(
                    "DELETE FROM images WHERE id = ?1 AND epoch > ?2",
                    (image.to_string(), synced),
                )?;
            }
            t.execute("UPDATE images SET epoch = ?1 WHERE epoch > ?1", [synced])?;
            Ok(())
        })?;
        Ok(())
    }
}

/// The running kernel's boot id, or a constant where it has none: then crashes go unnoticed.
pub(crate) fn boot_id() -> Result<String, StoreError> {
    let read = fs::optional(fs::read(Path::new(BOOT_ID), 64))?;
    Ok(read.map_or_else(
        || "unknown".to_owned(),
        |bytes| String::from_utf8_lossy(&bytes).trim().to_owned(),
    ))
}

impl Index {
    /// Runs `work` under the writer's lock if a layer has no row.
    pub(crate) fn unless_layer_row(
        &self,
        id: &LayerId,
        work: impl FnOnce() -> Result<bool, fs::FsError>,
    ) -> Result<bool, crate::index::IndexError> {
        self.unless(|t| layer_row(t, id), work)
    }

    /// Runs `work` under the writer's lock if a blob has no row.
    pub(crate) fn unless_blob_row(
        &self,
        digest: &Digest,
        work: impl FnOnce() -> Result<bool, fs::FsError>,
    ) -> Result<bool, crate::index::IndexError> {
        self.unless(|t| blob_row(t, digest), work)
    }

    fn unless(
        &self,
        row: impl FnOnce(&Transaction<'_>) -> rusqlite::Result<bool>,
        work: impl FnOnce() -> Result<bool, fs::FsError>,
    ) -> Result<bool, crate::index::IndexError> {
        let done = self.rehearse(|t| Ok(if row(t)? { Ok(false) } else { work() }))?;
        Ok(done?)
    }

    fn is_blob_synced(&self, digest: &Digest) -> Result<bool, crate::index::IndexError> {
        self.read(|c| {
            c.prepare_cached(
                "SELECT 1 FROM blobs WHERE digest = ?1
                 AND epoch <= (SELECT value FROM meta WHERE key = 'synced_epoch')",
            )?
            .exists([digest.to_string()])
        })
    }

    fn set_blob_synced(&self, digest: &Digest) -> Result<(), crate::index::IndexError> {
        self.write(|t| {
            t.execute(
                "UPDATE blobs SET epoch = ?2 WHERE digest = ?1",
                (digest.to_string(), synced_epoch(t)?),
            )?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::index::RecordRow;
    use crate::tests::{image_of, layer};

    fn open_under(root: &Path, boot_id: &str) -> Store {
        let options = crate::OpenOptions {
            boot_id: Some(boot_id.to_owned()),
            ..crate::OpenOptions::default()
        };
        Store::open_with(root, &options).unwrap()
    }

    fn reboot(root: &Path) -> Store {
        open_under(root, "another boot")
    }

    #[test]
    fn what_was_synced_survives_and_what_may_be_torn_goes() {
        let (dir, store) = crate::tests::store();
        let record = |id| RecordRow {
            op: [1; 32],
            result: Vec::new(),
            layers: vec![id],
            ingredients: Vec::new(),
            created: 1,
        };
        let kept = layer(&store, 1);
        let kept_image = image_of(&store, &[kept.diff_id.unwrap()]);
        store
            .index()
            .record_put(&[1; 32], &record(kept.id))
            .unwrap();
        store.sync().unwrap();
        let late = layer(&store, 2);
        let late_image = image_of(&store, &[late.diff_id.unwrap()]);
        // A later image that needs nothing late but its config.
        let fine_image = image_of(&store, &[kept.diff_id.unwrap(), kept.diff_id.unwrap()]);
        store
            .index()
            .record_put(&[2; 32], &record(late.id))
            .unwrap();
        let torn = store.blobs().put(b"written late").unwrap();
        let fine = store.blobs().put(b"written out in time").unwrap();
        std::fs::write(store.blobs().path(&torn.digest()), "").unwrap();
        for (name, id) in [
            ("kept", kept_image),
            ("late", late_image),
            ("fine", fine_image),
        ] {
            store.images().tag(&name.parse().unwrap(), &id).unwrap();
        }
        drop(store);

        let store = reboot(dir.path());
        assert!(store.check().unwrap().is_empty());
        assert!(store.index().record_hit(&[1; 32]).unwrap().is_some());
        assert!(store.index().record_hit(&[2; 32]).unwrap().is_none());
        assert!(store.index().layer(&kept.id).unwrap().is_some());
        assert!(store.index().layer(&late.id).unwrap().is_none());
        assert!(!store.layer_path(&late.id).exists());
        assert!(store.blobs().has(&fine.digest()).unwrap().is_some());
        assert!(store.blobs().has(&torn.digest()).unwrap().is_none());
        let images = store.images();
        assert!(images.resolve("kept").unwrap().is_some());
        assert!(images.resolve("fine").unwrap().is_some());
        assert!(images.resolve("late").unwrap().is_none());
        // What survived one crash without a sync of its own survives the next.
        drop(store);
        let store = open_under(dir.path(), "a third");
        assert!(store.images().resolve("fine").unwrap().is_some());
        assert!(store.blobs().has(&fine.digest()).unwrap().is_some());
    }

    #[test]
    fn nothing_is_dropped_within_one_boot() {
        let (dir, store) = crate::tests::store();
        let late = layer(&store, 1);
        drop(store);
        let store = Store::open(dir.path()).unwrap();
        assert!(store.index().layer(&late.id).unwrap().is_some());
    }
}
