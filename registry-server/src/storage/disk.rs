//! A folder in CNCF distribution's layout, so that either server can be started on what the other left.
//!
//! ```text
//! <root>/docker/registry/v2/
//!   blobs/<alg>/<hex[0..2]>/<hex>/data                    every blob and manifest, once
//!   repositories/<name>/
//!     _layers/<alg>/<hex>/link                            the repository has this blob
//!     _manifests/revisions/<alg>/<hex>/link               … this manifest
//!     _manifests/revisions/<alg>/<hex>/mediatype          (ours) its type, where the bytes do not tell it
//!     _manifests/tags/<tag>/current/link                  what the tag is on
//!     _manifests/tags/<tag>/index/<alg>/<hex>/link        what it ever was on
//!     _uploads/<uuid>/{startedat,data}                    a session
//!     _referrers/<subject alg>/<hex>/<alg>/<hex>/link     (ours) manifests with this subject
//!   _tmp/                                                 (ours) files before they are published
//!   _locks/<00..3f>                                       (ours) held by `flock` while a tag changes
//!   _gc/, _quarantine/                                    (ours) see `collection`
//!   _notes/<topic>/<note>                                 (ours) what servers on this folder tell each other; empty files
//!   _webhooks/<name>/                                     (ours) events that wait, see `events::queue`
//!   _secrets/<name>                                       (ours) what servers on this folder share; only their user may read it
//! ```
//!
//! A link is a text file with a digest. distribution skips what is marked as ours: other file names beside a
//! link, and folders that start with `_`. `docs/formats/registry-layout.md` is the byte-level description.
//!
//! Invariant: a name appears only after what it refers to, whole, and by rename. So a process killed anywhere
//! leaves at worst bytes that nothing names.
//!
//! With [`DiskStorage::durable`] a crash of the machine loses no acknowledged manifest or tag, nor anything that
//! it refers to, and no blob's data is ever half there. Waiting for the disk is what pushes cost, so it is done
//! where it counts: a blob's data before its name, its names only before a manifest that refers to it.

mod collection;
mod tags;

use std::collections::BTreeSet;
use std::fs::{self, DirEntry, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustix::fs::FlockOperation;
use store::oci::{Digest, DigestAlgorithm, time};

use self::tags::TagNames;
use super::collectable::Collectable;
use super::walk::{Walker, walk};
use super::{
    Blob, BlobSource, LINK_BYTES_MAX, ListedTag, MountSource, RegistryStorage, Reliance,
    StorageError, StorageResult, TagCondition, TagRemoval, UploadData, VerifiedManifest,
    VerifiedUpload, media_type_of, now_seconds, remove_tags_on,
};
use crate::routes::{RepositoryName, UploadId};

/// Temporary files older than this belong to no living process.
const TEMPORARY_AGE: Duration = Duration::from_secs(24 * 60 * 60);

/// Tries of a rename whose folder vanishes.
const RENAME_TRIES: usize = 8;

/// In a manifest's folder: empty, and as old as the last pull.
const PULLED: &str = "pulled";

/// A link that is younger than this is not made young again.
const FRESH: Duration = Duration::from_secs(60 * 60);

/// Blobs that are remembered as not synced; beyond, everything is synced at once.
const UNSETTLED_MAX: usize = 100_000;

/// Lock files; tags whose names fall on the same one wait for each other.
const LOCKS: u8 = 64;

/// A registry in a folder.
#[derive(Debug)]
pub struct DiskStorage {
    /// `<root>/docker/registry/v2`
    base: PathBuf,
    durable: bool,
    unsettled: Mutex<Unsettled>,
    tag_names: TagNames,
}

/// Blobs whose names may not be on the disk yet.
#[derive(Debug)]
enum Unsettled {
    /// Any may be: an earlier process left them.
    Unknown,
    /// These.
    Known(BTreeSet<(RepositoryName, Digest)>),
}

impl DiskStorage {
    /// Opens or makes the layout below `root`.
    pub fn open(root: &Path) -> StorageResult<DiskStorage> {
        let base = root.join("docker/registry/v2");
        let storage = DiskStorage {
            base,
            durable: true,
            unsettled: Mutex::new(Unsettled::Unknown),
            tag_names: TagNames::default(),
        };
        for folder in ["blobs", "repositories", "_tmp", "_locks"] {
            make_folder(&storage.base.join(folder))?;
        }
        storage.sweep_temporary()?;
        Ok(storage)
    }

    /// Whether to wait for the disk before answering (the default). Without, a crash of the machine, but not
    /// of the process, may lose what was pushed last.
    #[must_use]
    pub fn durable(mut self, durable: bool) -> DiskStorage {
        self.durable = durable;
        self
    }

    fn sweep_temporary(&self) -> StorageResult<()> {
        for entry in entries(&self.base.join("_tmp"))? {
            let path = entry.path();
            let modified = entry.metadata().and_then(|metadata| metadata.modified());
            let age = modified.ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > TEMPORARY_AGE) {
                remove_tree(&path)?;
            }
        }
        Ok(())
    }

    fn temporary(&self) -> PathBuf {
        self.base.join("_tmp").join(UploadId::random().as_str())
    }

    /// Makes something aside, to be renamed to its place; what could not be finished takes no room.
    fn aside<T>(&self, make: impl FnOnce(&Path) -> StorageResult<T>) -> StorageResult<T> {
        let path = self.temporary();
        let made = make(&path);
        if made.is_err() && fs::remove_file(&path).is_err() {
            // Best effort: the next server to start sweeps.
            let _ = remove_tree(&path);
        }
        made
    }

    fn blob_data(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let mut path = self.base.join("blobs");
        path.extend([digest.algorithm().name(), &hex[..2], &hex, "data"]);
        path
    }

    fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.base.join("repositories").join(name.as_str())
    }

    fn layer_link(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        below(self.repository(name).join("_layers"), digest).join("link")
    }

    fn revision(&self, name: &RepositoryName, digest: &Digest) -> PathBuf {
        below(self.repository(name).join("_manifests/revisions"), digest)
    }

    fn tag_folder(&self, name: &RepositoryName, tag: &str) -> PathBuf {
        self.repository(name).join("_manifests/tags").join(tag)
    }

    fn referrers_folder(&self, name: &RepositoryName, subject: &Digest) -> PathBuf {
        below(self.repository(name).join("_referrers"), subject)
    }

    fn upload_folder(&self, name: &RepositoryName, id: &UploadId) -> PathBuf {
        self.repository(name).join("_uploads").join(id.as_str())
    }

    /// Keeps others, also of other processes, from changing a tag until the file is dropped.
    fn lock_tag(&self, name: &RepositoryName, tag: &str) -> StorageResult<File> {
        let slot = Digest::of(format!("{name}:{tag}").as_bytes()).bytes()[0] % LOCKS;
        self.lock(&format!("{slot:02x}"), FlockOperation::LockExclusive)
    }

    /// The digest whose data `link` stands for. distribution stores SHA-512 uploads as SHA-256 blobs, and
    /// says so only in the link; SHA-256 links always name themselves, so they need not be read.
    fn resolve(&self, link: &Path, digest: &Digest) -> StorageResult<Option<Digest>> {
        if digest.algorithm() == DigestAlgorithm::Sha256 {
            return Ok(exists(link)?.then_some(*digest));
        }
        read_link(link)
    }

    /// Writes `bytes` aside and renames them to `path`; durably.
    fn publish(&self, path: &Path, bytes: &[u8]) -> StorageResult<()> {
        self.aside(|temporary| {
            self.write_file(temporary, bytes)?;
            rename_into(temporary, path)
        })?;
        self.sync(parent(path))
    }

    fn write_file(&self, path: &Path, bytes: &[u8]) -> StorageResult<()> {
        let write = || {
            let mut file = File::create_new(path)?;
            file.write_all(bytes)?;
            if self.durable {
                file.sync_data()?;
            }
            Ok(())
        };
        write().map_err(failed("write", path))
    }

    fn unsettled(&self) -> MutexGuard<'_, Unsettled> {
        self.unsettled
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that the blob's names are not synced.
    fn unsettle(&self, name: &RepositoryName, digest: &Digest) {
        if !self.durable {
            return;
        }
        let mut unsettled = self.unsettled();
        if let Unsettled::Known(blobs) = &mut *unsettled {
            blobs.insert((name.clone(), *digest));
            if blobs.len() > UNSETTLED_MAX {
                *unsettled = Unsettled::Unknown;
            }
        }
    }

    /// Syncs what leads to a blob: its link, and both folders that were renamed into.
    fn sync_names(&self, name: &RepositoryName, digest: &Digest) -> StorageResult<()> {
        let link = self.layer_link(name, digest);
        // A blob may have been deleted since; then there is nothing to keep.
        let Some(stored) = read_link(&link)? else {
            return Ok(());
        };
        self.sync(&link)?;
        self.sync(parent(&link))?;
        self.sync(parent(&self.blob_data(&stored)))
    }

    /// Waits until a file or folder is on the disk; one that is gone need not be.
    fn sync(&self, path: &Path) -> StorageResult<()> {
        if !self.durable {
            return Ok(());
        }
        match File::open(path).and_then(|file| file.sync_all()) {
            Err(error) if is_absent(&error) => Ok(()),
            synced => synced.map_err(failed("sync", path)),
        }
    }

    /// Writes a link unless it is there; durably.
    fn publish_link(&self, path: &Path, digest: &Digest) -> StorageResult<()> {
        if is_link_to(path, digest) {
            freshen(path);
            return Ok(());
        }
        self.publish(path, digest.to_string().as_bytes())
    }

    /// Gives the repository a blob whose data is there; its names are synced when a manifest needs them.
    fn link_blob(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        stored: &Digest,
    ) -> StorageResult<()> {
        let link = self.layer_link(name, digest);
        if !is_link_to(&link, stored) {
            self.aside(|temporary| {
                fs::write(temporary, stored.to_string()).map_err(failed("write", temporary))?;
                rename_into(temporary, &link)
            })?;
        } else {
            freshen(&link);
        }
        self.unsettle(name, digest);
        Ok(())
    }

    /// Removes a link and, if nothing else is in it, its folder.
    fn remove_link(&self, link: &Path) -> StorageResult<bool> {
        match fs::remove_file(link) {
            Err(error) if is_absent(&error) => return Ok(false),
            removed => removed.map_err(failed("remove", link))?,
        }
        let folder = parent(link);
        for beside in ["mediatype", PULLED] {
            match fs::remove_file(folder.join(beside)) {
                Err(error) if !is_absent(&error) => return Err(failed("remove", folder)(error)),
                _ => {}
            }
        }
        // Best effort: a concurrent put may just have filled it again.
        let _ = fs::remove_dir(folder);
        self.sync(parent(folder))?;
        Ok(true)
    }

    /// Makes a folder vanish at once, whatever is in it.
    fn remove_folder(&self, folder: &Path) -> StorageResult<bool> {
        let aside = self.temporary();
        match fs::rename(folder, &aside) {
            Err(error) if is_absent(&error) => return Ok(false),
            renamed => renamed.map_err(failed("remove", folder))?,
        }
        remove_tree(&aside)?;
        Ok(true)
    }

    /// A new tag appears with all its files at once; false if the tag is there already.
    fn create_tag(&self, folder: &Path, digest: &Digest) -> StorageResult<bool> {
        let text = digest.to_string();
        let made = self.aside(|aside| {
            let index = below(aside.join("index"), digest);
            let current = aside.join("current");
            make_folder(&index)?;
            make_folder(&current)?;
            self.write_file(&index.join("link"), text.as_bytes())?;
            self.write_file(&current.join("link"), text.as_bytes())?;
            rename_into(aside, folder)
        });
        match made {
            Ok(()) => {
                self.sync(parent(folder))?;
                Ok(true)
            }
            Err(StorageError::Io { source, .. })
                if matches!(
                    source.kind(),
                    io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::AlreadyExists
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }
}

impl Walker for DiskStorage {
    fn folders(&self, path: &str) -> StorageResult<Vec<String>> {
        let folder = self.base.join("repositories").join(path);
        let folders = entries(&folder)?
            .into_iter()
            .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        Ok(folders
            .filter_map(|entry| entry.file_name().into_string().ok())
            .collect())
    }
}

impl RegistryStorage for DiskStorage {
    fn blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<Option<Blob>> {
        let Some(digest) = self.resolve(&self.layer_link(repository, digest), digest)? else {
            return Ok(None);
        };
        let path = self.blob_data(&digest);
        let file = match File::open(&path) {
            Err(error) if is_absent(&error) => return Ok(None),
            file => file.map_err(failed("open", &path))?,
        };
        let size = file.metadata().map_err(failed("examine", &path))?.len();
        Ok(Some(Blob {
            size,
            source: BlobSource::File(Arc::new(file)),
        }))
    }

    fn blob_size(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<u64>> {
        let link = self.layer_link(repository, digest);
        match self.resolve(&link, digest)? {
            Some(digest) => {
                freshen(&link);
                file_size(&self.blob_data(&digest))
            }
            None => Ok(None),
        }
    }

    fn probe(&self, writes: bool) -> StorageResult<()> {
        // The folder may be of a file system that is not mounted any more.
        let folder = self.base.join("repositories");
        if !exists(&folder)? {
            return Err(StorageError::Damaged {
                path: folder,
                reason: "it is not there".to_owned(),
            });
        }
        if writes {
            self.aside(|temporary| {
                self.write_file(temporary, b"probe")?;
                fs::remove_file(temporary).map_err(failed("remove", temporary))
            })?;
        }
        Ok(())
    }

    fn disk(&self) -> StorageResult<Option<(u64, u64)>> {
        let found = rustix::fs::statvfs(&self.base);
        let found = found.map_err(|error| failed("examine", &self.base)(error.into()))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Some((bytes(found.f_blocks), bytes(found.f_bavail))))
    }

    fn tags_stamp(&self, repository: &RepositoryName) -> StorageResult<Option<SystemTime>> {
        let folder = self.repository(repository).join("_manifests/tags");
        match fs::metadata(&folder).and_then(|metadata| metadata.modified()) {
            Err(error) if is_absent(&error) => Ok(None),
            time => time.map(Some).map_err(failed("examine", &folder)),
        }
    }

    fn mount_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        from: MountSource<'_>,
    ) -> StorageResult<bool> {
        let found = match from {
            MountSource::Repository(from) => {
                self.resolve(&self.layer_link(from, digest), digest)?
            }
            MountSource::Any(admits) => {
                let mut found = None;
                // Content that no repository has any more is nobody's to give.
                walk(self, None, &mut |name, _| {
                    if admits(name) {
                        found = self.resolve(&self.layer_link(name, digest), digest)?;
                    }
                    Ok(found.is_none())
                })?;
                found
            }
        };
        let Some(found) = found else {
            return Ok(false);
        };
        let _kept = self.rely(&[*digest, found])?;
        if !exists(&self.blob_data(&found))? {
            return Ok(false);
        }
        self.link_blob(repository, digest, &found)?;
        Ok(true)
    }

    fn remove_blob(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        self.remove_link(&self.layer_link(repository, digest))
    }

    fn create_upload(&self, repository: &RepositoryName) -> StorageResult<UploadId> {
        let id = UploadId::random();
        let started = time::rfc3339(now_seconds());
        let folder = self.upload_folder(repository, &id);
        self.aside(|aside| {
            make_folder(aside)?;
            for (name, text) in [("startedat", started.as_str()), ("data", "")] {
                let path = aside.join(name);
                fs::write(&path, text).map_err(failed("write", &path))?;
            }
            make_folder(parent(&folder))?;
            fs::rename(aside, &folder).map_err(failed("publish", &folder))
        })?;
        Ok(id)
    }

    fn upload(
        &self,
        repository: &RepositoryName,
        id: &UploadId,
    ) -> StorageResult<Option<Arc<dyn UploadData>>> {
        let folder = self.upload_folder(repository, id);
        if !exists(&folder.join("startedat"))? {
            return Ok(None);
        }
        // distribution makes the data file only at the first byte.
        let path = folder.join("data");
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path);
        match file {
            Err(error) if is_absent(&error) => Ok(None),
            file => Ok(Some(Arc::new(UploadFile(
                file.map_err(failed("open", &path))?,
            )))),
        }
    }

    fn commit_upload(
        &self,
        repository: &RepositoryName,
        upload: &VerifiedUpload,
    ) -> StorageResult<()> {
        let folder = self.upload_folder(repository, upload.id());
        let from = folder.join("data");
        let to = self.blob_data(upload.digest());
        // A blob of the right length is the same one: only whole files are ever renamed to this place.
        let is_there = || Ok::<_, StorageError>(file_size(&to)? == Some(upload.size()));
        let ready = || {
            let file = File::open(&from).map_err(failed("open", &from))?;
            let size = file.metadata().map_err(failed("examine", &from))?.len();
            if size != upload.size() {
                return Err(StorageError::Damaged {
                    path: from.clone(),
                    reason: format!("it has {size} bytes where {} were hashed", upload.size()),
                });
            }
            if self.durable {
                file.sync_data().map_err(failed("sync", &from))?;
            }
            Ok(())
        };
        // The disk is waited for before anybody has to wait for us.
        let was_there = is_there()?;
        if !was_there {
            ready()?;
        }
        let kept = self.rely(&[*upload.digest()])?;
        if !is_there()? {
            if was_there {
                ready()?;
            }
            rename_into(&from, &to)?;
        }
        self.link_blob(repository, upload.digest(), upload.digest())?;
        drop(kept);
        self.remove_folder(&folder)?;
        Ok(())
    }

    fn cancel_upload(&self, repository: &RepositoryName, id: &UploadId) -> StorageResult<bool> {
        self.remove_folder(&self.upload_folder(repository, id))
    }

    fn purge_uploads(&self, age: Duration) -> StorageResult<u64> {
        let mut purged = 0;
        walk(self, None, &mut |name, folders| {
            if !folders.iter().any(|folder| folder == "_uploads") {
                return Ok(true);
            }
            for entry in entries(&self.repository(name).join("_uploads"))? {
                let folder = entry.path();
                let modified = |name: &str| fs::metadata(folder.join(name))?.modified();
                // The last byte counts, not the first: a long upload is not an abandoned one.
                let last = modified("data").or_else(|_| modified("startedat"));
                let idle = last.ok().and_then(|time| time.elapsed().ok());
                if idle.is_some_and(|idle| idle > age) && self.remove_folder(&folder)? {
                    purged += 1;
                }
            }
            Ok(true)
        })?;
        Ok(purged)
    }

    fn settle_blobs(&self, repository: &RepositoryName, blobs: &[Digest]) -> StorageResult<()> {
        if !self.durable || blobs.is_empty() {
            return Ok(());
        }
        let mut unsettled = self.unsettled();
        if matches!(*unsettled, Unsettled::Unknown) {
            // Once after a start. The lock keeps others from believing it done before it is.
            File::open(&self.base)
                .and_then(|base| Ok(rustix::fs::syncfs(base)?))
                .map_err(failed("sync", &self.base))?;
            *unsettled = Unsettled::Known(BTreeSet::new());
            return Ok(());
        }
        drop(unsettled);
        for digest in blobs {
            let key = (repository.clone(), *digest);
            if !matches!(&*self.unsettled(), Unsettled::Known(known) if !known.contains(&key)) {
                self.sync_names(repository, digest)?;
                if let Unsettled::Known(known) = &mut *self.unsettled() {
                    known.remove(&key);
                }
            }
        }
        Ok(())
    }

    fn put_manifest(
        &self,
        repository: &RepositoryName,
        manifest: &VerifiedManifest,
        subject: Option<&Digest>,
    ) -> StorageResult<()> {
        let digest = manifest.digest();
        let data = self.blob_data(digest);
        if file_size(&data)? != Some(manifest.bytes().len() as u64) {
            self.publish(&data, manifest.bytes())?;
        }
        let revision = self.revision(repository, digest);
        let media_type = revision.join("mediatype");
        if media_type_of(manifest.bytes()) != manifest.media_type() {
            self.publish(&media_type, manifest.media_type().as_bytes())?;
        } else if exists(&media_type)? {
            fs::remove_file(&media_type).map_err(failed("remove", &media_type))?;
        }
        if let Some(subject) = subject {
            let folder = self.referrers_folder(repository, subject);
            self.publish_link(&below(folder, digest).join("link"), digest)?;
        }
        self.publish_link(&revision.join("link"), digest)
    }

    fn manifest(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Option<VerifiedManifest>> {
        let revision = self.revision(repository, digest);
        let Some(stored) = self.resolve(&revision.join("link"), digest)? else {
            return Ok(None);
        };
        let path = self.blob_data(&stored);
        if file_size(&path)?.is_some_and(|size| size > store::MANIFEST_BYTES_MAX as u64) {
            return Err(StorageError::Damaged {
                path,
                reason: "it is larger than a manifest can be".to_owned(),
            });
        }
        let Some(bytes) = read_if_there(&path)? else {
            return Ok(None);
        };
        let media_type = match read_if_there(&revision.join("mediatype"))? {
            Some(text) => String::from_utf8_lossy(&text).into_owned(),
            None => media_type_of(&bytes),
        };
        match VerifiedManifest::check(Bytes::from(bytes), media_type, *digest) {
            Some(manifest) => Ok(Some(manifest)),
            None => Err(StorageError::Damaged {
                path,
                reason: format!("its content is not that of {digest}"),
            }),
        }
    }

    fn has_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        let link = self.revision(repository, digest).join("link");
        match self.resolve(&link, digest)? {
            Some(stored) => exists(&self.blob_data(&stored)),
            None => Ok(false),
        }
    }

    fn remove_manifest(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<bool> {
        if !self.has_manifest(repository, digest)? {
            return Ok(false);
        }
        remove_tags_on(
            self,
            repository,
            digest,
            &self.tags_that_named(repository, digest)?,
        )?;
        let removed = self.remove_link(&self.revision(repository, digest).join("link"))?;
        // A push that put another one on it meanwhile may have seen the manifest for the last time.
        remove_tags_on(
            self,
            repository,
            digest,
            &self.tags_that_named(repository, digest)?,
        )?;
        Ok(removed)
    }

    fn tag(&self, repository: &RepositoryName, tag: &str) -> StorageResult<Option<Digest>> {
        read_link(&self.tag_folder(repository, tag).join("current/link"))
    }

    fn set_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
        condition: &TagCondition,
    ) -> StorageResult<bool> {
        let _lock = self.lock_tag(repository, tag)?;
        // What a damaged tag is on cannot be read, but it can be put right.
        if *condition != TagCondition::default()
            && !condition.holds(self.tag(repository, tag)?.as_ref())
        {
            return Ok(false);
        }
        let folder = self.tag_folder(repository, tag);
        if !exists(&folder)? && self.create_tag(&folder, digest)? {
            return Ok(true);
        }
        self.publish_link(&below(folder.join("index"), digest).join("link"), digest)?;
        self.publish_link(&folder.join("current/link"), digest)?;
        Ok(true)
    }

    fn date_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        digest: &Digest,
        made: SystemTime,
    ) -> StorageResult<()> {
        let _lock = self.lock_tag(repository, tag)?;
        if self.tag(repository, tag)?.as_ref() != Some(digest) {
            return Ok(());
        }
        let link = self.tag_folder(repository, tag).join("current/link");
        let dated = File::options().write(true).open(&link);
        let dated = dated.and_then(|file| file.set_modified(made));
        dated.map_err(failed("date", &link))
    }

    fn remove_tag(
        &self,
        repository: &RepositoryName,
        tag: &str,
        condition: &TagCondition,
    ) -> StorageResult<TagRemoval> {
        let _lock = self.lock_tag(repository, tag)?;
        let folder = self.tag_folder(repository, tag);
        let was_there = exists(&folder.join("current/link"))?;
        // What a damaged tag is on cannot be read, but it can be removed.
        if *condition != TagCondition::default()
            && !condition.holds(self.tag(repository, tag)?.as_ref())
        {
            return Ok(TagRemoval::Refused);
        }
        let removed = self.remove_folder(&folder)?;
        if removed {
            self.sync(parent(&folder))?;
        }
        Ok(match removed && was_there {
            true => TagRemoval::Removed,
            false => TagRemoval::Absent,
        })
    }

    fn tags_after(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Option<Vec<String>>> {
        self.list_tags(repository, last, limit)
    }

    fn tags_made(&self, repository: &RepositoryName) -> StorageResult<Option<Vec<ListedTag>>> {
        self.list_tags_made(repository)
    }

    fn repositories(&self, last: Option<&str>, limit: usize) -> StorageResult<Vec<RepositoryName>> {
        super::walk::repositories(self, last, limit)
    }

    fn rely_on(&self, digests: &[Digest]) -> StorageResult<Reliance> {
        self.rely(digests)
    }

    fn mark_pulled(&self, repository: &RepositoryName, digest: &Digest) -> StorageResult<()> {
        let path = self.revision(repository, digest).join(PULLED);
        let mark = || {
            let mut options = OpenOptions::new();
            let file = options
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)?;
            file.set_modified(SystemTime::now())
        };
        match mark() {
            // The manifest is gone.
            Err(error) if is_absent(&error) => Ok(()),
            marked => marked.map_err(failed("write", &path)),
        }
    }

    fn collectable(&self) -> Option<&dyn Collectable> {
        Some(self)
    }

    fn contents(&self, repository: &RepositoryName) -> StorageResult<Vec<Digest>> {
        let mut links = self.blob_links(repository)?;
        links.extend(self.manifest_links(repository)?);
        Ok(links.into_iter().map(|link| link.stored).collect())
    }

    fn data_size(&self, digest: &Digest) -> StorageResult<Option<u64>> {
        file_size(&self.blob_data(digest))
    }

    fn local_folder(&self, name: &'static str) -> Option<PathBuf> {
        Some(self.base.join(name))
    }

    fn secret(&self, name: &'static str, fresh: &[u8]) -> StorageResult<Vec<u8>> {
        let path = self.base.join("_secrets").join(name);
        if let Some(kept) = read_if_there(&path)? {
            return Ok(kept);
        }
        make_folder(parent(&path))?;
        let temporary = self.temporary();
        let write = || {
            let mut options = File::options();
            let mut file = options
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(fresh)?;
            file.sync_data()
        };
        write().map_err(failed("write", &temporary))?;
        // Of two servers that start at once one is first.
        let linked = fs::hard_link(&temporary, &path);
        fs::remove_file(&temporary).map_err(failed("remove", &temporary))?;
        match linked {
            Ok(()) => self.sync(parent(&path))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(source) => return Err(failed("write", &path)(source)),
        }
        fs::read(&path).map_err(failed("read", &path))
    }

    fn leave_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        let path = self.base.join("_notes").join(topic).join(note);
        let create = || File::create(&path).map(drop);
        let created = match create() {
            Err(error) if is_absent(&error) => {
                make_folder(parent(&path))?;
                create()
            }
            created => created,
        };
        created.map_err(failed("write", &path))
    }

    fn notes(&self, topic: &str, after: &str) -> StorageResult<Vec<String>> {
        let entries = entries(&self.base.join("_notes").join(topic))?.into_iter();
        let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
        let mut notes: Vec<String> = names.filter(|name| name.as_str() > after).collect();
        notes.sort_unstable();
        Ok(notes)
    }

    fn drop_note(&self, topic: &str, note: &str) -> StorageResult<()> {
        let path = self.base.join("_notes").join(topic).join(note);
        match fs::remove_file(&path) {
            Err(error) if is_absent(&error) => Ok(()),
            removed => removed.map_err(failed("remove", &path)),
        }
    }

    fn referrers(
        &self,
        repository: &RepositoryName,
        subject: &Digest,
    ) -> StorageResult<Vec<Digest>> {
        let folder = self.referrers_folder(repository, subject);
        let mut digests = Vec::new();
        for algorithm in entries(&folder)? {
            for entry in entries(&algorithm.path())? {
                digests.extend(read_link(&entry.path().join("link"))?);
            }
        }
        digests.sort_unstable();
        Ok(digests)
    }
}

fn parent(path: &Path) -> &Path {
    path.parent()
        .expect("every path of the layout has a parent")
}

/// Makes a link young again: who asks for a blob is about to need it, and a collection keeps what is young.
fn freshen(link: &Path) {
    let freshen = || {
        let file = File::open(link)?;
        if file
            .metadata()?
            .modified()?
            .elapsed()
            .is_ok_and(|age| age > FRESH)
        {
            file.set_modified(SystemTime::now())?;
        }
        Ok::<_, io::Error>(())
    };
    // A read-only folder has no collections.
    let _ = freshen();
}

/// Renames, making the folder if it is not there.
fn rename_into(from: &Path, to: &Path) -> StorageResult<()> {
    // A concurrent delete may take the empty folder away between the two calls.
    for _ in 0..RENAME_TRIES {
        make_folder(parent(to))?;
        match fs::rename(from, to) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => return renamed.map_err(failed("publish", to)),
        }
    }
    Err(failed("publish", to)(io::ErrorKind::NotFound.into()))
}

/// Whether the link is there and whole. An empty one is what a crash of the machine may leave.
fn is_link_to(path: &Path, digest: &Digest) -> bool {
    matches!(read_link(path), Ok(Some(found)) if found == *digest)
}

/// `folder/<alg>/<hex>`
fn below(folder: PathBuf, digest: &Digest) -> PathBuf {
    let mut path = folder;
    path.extend([digest.algorithm().name(), &digest.hex()]);
    path
}

fn is_repository(folder: &Path) -> StorageResult<bool> {
    Ok(exists(&folder.join("_layers"))? || exists(&folder.join("_manifests"))?)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
    )
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StorageError {
    let path = path.to_owned();
    move |source| StorageError::Io {
        action,
        path,
        source,
    }
}

fn make_folder(path: &Path) -> StorageResult<()> {
    fs::create_dir_all(path).map_err(failed("make", path))
}

fn remove_tree(path: &Path) -> StorageResult<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotADirectory => fs::remove_file(path),
        removed => removed,
    }
    .map_err(failed("remove", path))
}

fn file_size(path: &Path) -> StorageResult<Option<u64>> {
    match fs::metadata(path) {
        Err(error) if is_absent(&error) => Ok(None),
        metadata => Ok(Some(metadata.map_err(failed("examine", path))?.len())),
    }
}

fn exists(path: &Path) -> StorageResult<bool> {
    Ok(file_size(path)?.is_some())
}

fn read_if_there(path: &Path) -> StorageResult<Option<Vec<u8>>> {
    match fs::read(path) {
        Err(error) if is_absent(&error) => Ok(None),
        bytes => Ok(Some(bytes.map_err(failed("read", path))?)),
    }
}

fn read_link(path: &Path) -> StorageResult<Option<Digest>> {
    if file_size(path)?.is_some_and(|size| size > LINK_BYTES_MAX) {
        return Err(StorageError::Damaged {
            path: path.to_owned(),
            reason: "it is too long for a link".to_owned(),
        });
    }
    let Some(bytes) = read_if_there(path)? else {
        return Ok(None);
    };
    let text = String::from_utf8_lossy(&bytes);
    match text.trim().parse() {
        Ok(digest) => Ok(Some(digest)),
        Err(error) => Err(StorageError::Damaged {
            path: path.to_owned(),
            reason: format!("{error}"),
        }),
    }
}

/// The entries of a folder, in no order; none if there is no such folder.
fn entries(folder: &Path) -> StorageResult<Vec<DirEntry>> {
    match fs::read_dir(folder) {
        Err(error) if is_absent(&error) => Ok(Vec::new()),
        read => read
            .and_then(Iterator::collect)
            .map_err(failed("list", folder)),
    }
}

/// A session's `data` file.
#[derive(Debug)]
struct UploadFile(File);

impl UploadData for UploadFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }
}
