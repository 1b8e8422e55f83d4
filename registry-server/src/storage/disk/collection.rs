//! The folder's side of a collection: the announcement, notes, and removal in between.
//!
//! ```text
//! _gc/running             a collection is announced
//! _gc/used/<alg>-<hex>    somebody relies on this digest since
//! _locks/collector        held by the collection
//! _locks/gc               shared while something is relied on, exclusive while a batch is removed
//! _locks/gate             taken before `gc`, so that the one who removes gets its turn
//! ```

use std::fs::{self, File, OpenOptions};
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rustix::fs::FlockOperation;
use store::oci::{Digest, Hasher};

use super::{
    DiskStorage, PULLED, below, entries, exists, failed, is_absent, make_folder, parent,
    read_if_there, read_link,
};
use crate::routes::RepositoryName;
use crate::storage::collectable::{
    Announcement, Collectable, FoundData, FoundLink, FoundTag, Garbage, KnownTags,
};
use crate::storage::{RegistryStorage as _, Reliance, StorageResult, TagCondition, TagRemoval};

/// Things that are removed under one lock.
const BATCH: usize = 64;

/// How far a scrubbing is.
const SCRUB: &str = "_scrub";

/// Bytes that are read at once.
const BLOCK_BYTES: usize = 1024 * 1024;

impl DiskStorage {
    pub(super) fn rely(&self, digests: &[Digest]) -> StorageResult<Reliance> {
        let gate = self.lock("gate", FlockOperation::LockShared)?;
        let lock = self.lock("gc", FlockOperation::LockShared)?;
        drop(gate);
        let folder = self.base.join("_gc");
        if exists(&folder.join("running"))? {
            for digest in digests {
                let note = note(&folder, digest);
                File::create(&note).map_err(failed("write", &note))?;
            }
        }
        Ok(Reliance::holding(lock))
    }

    /// Waits for a lock, which ends with the file.
    pub(super) fn lock(&self, name: &str, how: FlockOperation) -> StorageResult<File> {
        let path = self.base.join("_locks").join(name);
        let lock = || {
            let file = OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            loop {
                match rustix::fs::flock(&file, how) {
                    Err(rustix::io::Errno::INTR) => {}
                    locked => break locked?,
                }
            }
            Ok(file)
        };
        lock().map_err(failed("lock", &path))
    }

    /// Nobody relies on anything while this is held.
    fn alone(&self) -> StorageResult<(File, File)> {
        let gate = self.lock("gate", FlockOperation::LockExclusive)?;
        let lock = self.lock("gc", FlockOperation::LockExclusive)?;
        Ok((gate, lock))
    }

    /// Removes one piece of garbage; the lock is held.
    fn remove_one(&self, garbage: &Garbage) -> StorageResult<bool> {
        if exists(&note(&self.base.join("_gc"), &garbage.note()))? {
            return Ok(false);
        }
        match garbage {
            Garbage::Tag(name, tag, on) => {
                let condition = on.map_or_else(TagCondition::default, TagCondition::on);
                // One that was moved meanwhile stays.
                Ok(self.remove_tag(name, tag, &condition)? == TagRemoval::Removed)
            }
            Garbage::Manifest(name, digest, subject) => {
                if let Some(subject) = subject {
                    let listed = below(self.referrers_folder(name, subject), digest).join("link");
                    self.remove_link(&listed)?;
                }
                self.remove_link(&self.revision(name, digest).join("link"))
            }
            Garbage::Link(name, digest) => self.remove_link(&self.layer_link(name, digest)),
            Garbage::Data(digest) => {
                let data = self.blob_data(digest);
                match fs::remove_file(&data) {
                    Err(error) if is_absent(&error) => return Ok(false),
                    removed => removed.map_err(failed("remove", &data))?,
                }
                // Best effort: it may hold what somebody put there by hand.
                let _ = fs::remove_dir(parent(&data));
                Ok(true)
            }
        }
    }
}

fn note(folder: &Path, digest: &Digest) -> PathBuf {
    let name = format!("{}-{}", digest.algorithm(), digest.hex());
    folder.join("used").join(name)
}

/// Ends the announcement when it is dropped.
#[derive(Debug)]
struct Announced<'a> {
    storage: &'a DiskStorage,
    folder: PathBuf,
    /// Only one collection at a time.
    _collector: File,
}

impl Announcement for Announced<'_> {
    fn remove(&self, batch: &[Garbage]) -> StorageResult<Vec<bool>> {
        let _alone = self.storage.alone()?;
        batch
            .iter()
            .map(|garbage| self.storage.remove_one(garbage))
            .collect()
    }

    fn batch(&self) -> usize {
        BATCH
    }
}

impl Drop for Announced<'_> {
    fn drop(&mut self) {
        // Nobody is between seeing the announcement and leaving a note.
        let _alone = self.storage.alone();
        // What cannot be removed is taken over by the next collection.
        let _ = fs::remove_file(self.folder.join("running"));
        let _ = fs::remove_dir_all(self.folder.join("used"));
    }
}

impl Collectable for DiskStorage {
    fn announce(&self) -> StorageResult<Option<Box<dyn Announcement + '_>>> {
        let collector = match self.lock("collector", FlockOperation::NonBlockingLockExclusive) {
            Ok(file) => file,
            Err(super::StorageError::Io { source, .. })
                if source.kind() == io::ErrorKind::WouldBlock =>
            {
                return Ok(None);
            }
            Err(error) => return Err(error),
        };
        let folder = self.base.join("_gc");
        // Notes of a collection that was killed only keep more; they are not worth a race.
        make_folder(&folder.join("used"))?;
        let running = folder.join("running");
        File::create(&running).map_err(failed("write", &running))?;
        // Who has not seen the announcement is through once this is.
        drop(self.alone()?);
        Ok(Some(Box::new(Announced {
            storage: self,
            folder,
            _collector: collector,
        })))
    }

    fn tag_links(
        &self,
        repository: &RepositoryName,
        _: &KnownTags,
    ) -> StorageResult<Vec<FoundTag>> {
        let mut tags = Vec::new();
        for tag in self.tags(repository)?.unwrap_or_default() {
            let made = self.tag_made(repository, &tag)?;
            if let (Some(made), Some(digest)) = (made, self.tag(repository, &tag)?) {
                tags.push(FoundTag {
                    tag,
                    digest: Some(digest),
                    made,
                    mark: None,
                });
            }
        }
        Ok(tags)
    }

    fn manifest_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>> {
        links(&self.repository(repository).join("_manifests/revisions"))
    }

    fn blob_links(&self, repository: &RepositoryName) -> StorageResult<Vec<FoundLink>> {
        links(&self.repository(repository).join("_layers"))
    }

    fn tag_made(
        &self,
        repository: &RepositoryName,
        tag: &str,
    ) -> StorageResult<Option<SystemTime>> {
        modified(&self.tag_folder(repository, tag).join("current/link"))
    }

    fn each_data(
        &self,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()> {
        for algorithm in entries(&self.base.join("blobs"))? {
            for prefix in entries(&algorithm.path())? {
                data_in(&algorithm.file_name(), &prefix.path(), found)?;
            }
        }
        Ok(())
    }

    fn data_beginning(
        &self,
        byte: u8,
        found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
    ) -> StorageResult<()> {
        for algorithm in entries(&self.base.join("blobs"))? {
            let prefix = algorithm.path().join(format!("{byte:02x}"));
            data_in(&algorithm.file_name(), &prefix, found)?;
        }
        Ok(())
    }

    fn scrub_note(&self) -> StorageResult<Option<Vec<u8>>> {
        read_if_there(&self.base.join(SCRUB))
    }

    fn set_scrub_note(&self, note: Vec<u8>) -> StorageResult<()> {
        self.publish(&self.base.join(SCRUB), &note)
    }

    fn rehash(
        &self,
        digest: &Digest,
        go_on: &mut dyn FnMut(u64) -> bool,
    ) -> StorageResult<Option<Digest>> {
        let path = self.blob_data(digest);
        let mut file = match File::open(&path) {
            Err(error) if is_absent(&error) => return Ok(None),
            file => file.map_err(failed("open", &path))?,
        };
        let mut hasher = Hasher::new(digest.algorithm());
        let mut block = vec![0; BLOCK_BYTES];
        loop {
            match io::Read::read(&mut file, &mut block) {
                Ok(0) => return Ok(Some(hasher.finish())),
                Ok(count) => {
                    hasher.update(&block[..count]);
                    if !go_on(count as u64) {
                        return Ok(None);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(failed("read", &path)(error)),
            }
        }
    }

    fn quarantine(&self, digest: &Digest) -> StorageResult<()> {
        let aside = below(self.base.join("_quarantine"), digest);
        make_folder(parent(&aside))?;
        let data = self.blob_data(digest);
        match fs::rename(&data, &aside) {
            Err(error) if is_absent(&error) => Ok(()),
            renamed => renamed.map_err(failed("set aside", &data)),
        }
    }
}

/// The data in one folder of blobs.
fn data_in(
    algorithm: &std::ffi::OsStr,
    prefix: &Path,
    found: &mut dyn FnMut(FoundData) -> StorageResult<()>,
) -> StorageResult<()> {
    for blob in entries(prefix)? {
        let named = digest_of(algorithm, &blob.file_name());
        let data = blob.path().join("data");
        let metadata = match fs::metadata(&data) {
            Err(error) if is_absent(&error) => continue,
            metadata => metadata.map_err(failed("examine", &data))?,
        };
        if let Some(digest) = named {
            found(FoundData {
                digest,
                size: metadata.len(),
                made: metadata.modified().map_err(failed("examine", &data))?,
            })?;
        }
    }
    Ok(())
}

fn digest_of(algorithm: &std::ffi::OsStr, hex: &std::ffi::OsStr) -> Option<Digest> {
    let text = format!("{}:{}", algorithm.to_str()?, hex.to_str()?);
    text.parse().ok()
}

/// The links below a folder: `<alg>/<hex>/link`.
fn links(folder: &Path) -> StorageResult<Vec<FoundLink>> {
    let mut found = Vec::new();
    for algorithm in entries(folder)? {
        for entry in entries(&algorithm.path())? {
            let Some(digest) = digest_of(&algorithm.file_name(), &entry.file_name()) else {
                continue;
            };
            let link = entry.path().join("link");
            let Some(made) = modified(&link)? else {
                continue;
            };
            // A damaged one still says where it is.
            let stored = read_link(&link).ok().flatten().unwrap_or(digest);
            found.push(FoundLink {
                digest,
                stored,
                made,
                pulled: modified(&entry.path().join(PULLED))?,
            });
        }
    }
    Ok(found)
}

fn modified(path: &Path) -> StorageResult<Option<SystemTime>> {
    match fs::metadata(path).and_then(|metadata| metadata.modified()) {
        Err(error) if is_absent(&error) => Ok(None),
        made => made.map(Some).map_err(failed("examine", path)),
    }
}
