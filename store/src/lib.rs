//! Everything longshore keeps on disk: OCI types, blobs by digest, layers, snapshots, the index and its garbage collection.
//!
//! ```text
//! $ROOT/version          "1": the format, see docs/formats/store-layout.md
//!       index.db         SQLite: layers, images, names, cache records, leases, builds  index.rs, index/
//!       blobs/ALG/HEX    configs, manifests, and layers that were pulled or pushed   content/
//!       layers/ID/fs/    one directory per layer                                     layer/, snapshot/
//!       cache-mounts/    directories that steps keep between builds                  cache_mounts.rs
//!       builds/ID        what a build did: its journal                               history.rs
//!       contexts/        what contexts' files contained the last time                stat_caches.rs
//!       containers/ID/    a container: what it is, how it is, what it wrote            containers.rs
//!       volumes/NAME/     directories that outlive containers                         volumes.rs
//!       git/NAME/        bare repositories that builds fetch into                    mirrors.rs
//!       networks/        networks of containers, and who has which address          networks.rs
//!       tmp/             what is being made, and what is being removed               fs/temp.rs
//!       sessions/        one locked file per process that uses the store             session.rs
//!       locks/           one locked file per step being built                        fs/lock.rs
//!       reserve          room for a collection on a full disk                         reserve.rs
//!       sessions.lock, publishing                    held alone by a collection      content/gc.rs
//! ```
//!
//! [`check`] compares all of it with what it should be.
//!
//! Several processes use one store at once, and each may be killed at any instruction: a name appears by rename, after
//! everything it refers to. A crash of the machine can lose what was written since the last [`Store::sync`], and never
//! leaves half of it: [`recover`].

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;

use crate::clock::Clock;
use crate::content::archive::ArchiveError;
use crate::content::{Blobs, ContentError};
use crate::failed::KeepFailed;
use crate::fs::{FsError, Lock};
use crate::history::Keep;
use crate::images::{ImageError, Images};
use crate::index::{Index, IndexError};
use crate::layers::LayerError;
use crate::layers::watch::Watchers;
use crate::session::Sessions;
use crate::snapshot::{SnapshotError, Snapshots};

pub mod cache_mounts;
pub mod check;
pub mod clock;
pub mod containers;
pub mod content;
pub mod failed;
pub mod fs;
pub mod history;
pub mod images;
pub mod index;
pub mod layer;
pub mod layers;
pub mod mirrors;
pub mod networks;
pub mod oci;
pub mod recover;
mod reserve;
mod secret_key;
pub mod session;
pub mod snapshot;
pub mod stat_caches;
pub mod uploads;
pub mod volumes;

#[cfg(test)]
mod faults;

/// Largest manifest or index that is read, in bytes: the distribution specification asks for at least 4 MiB.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;

/// The format of the folders and files; the index has a version of its own.
const FORMAT: &str = "1";

/// The folders below the root.
const FOLDERS: [&str; 6] = [
    "blobs/sha256",
    "layers",
    "locks",
    "sessions",
    "tmp",
    "blobs",
];

/// Why a store refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Written by a newer longshore, or not a store.
    #[error(
        "the store in `{}` has format `{found}`, this longshore knows {FORMAT}: use a newer longshore or another root",
        root.display()
    )]
    UnknownFormat {
        /// The store.
        root: PathBuf,
        /// Its format, clipped.
        found: String,
    },
    /// On a file system whose locks do not hold between machines.
    #[error("the store `{}` is on {kind}: choose a root on a local file system", root.display())]
    NetworkFileSystem {
        /// The store.
        root: PathBuf,
        /// The file system.
        kind: &'static str,
    },
    /// A file failed.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Blobs failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// Images failed.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// Snapshots failed.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// A layer failed.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// An archive failed.
    #[error(transparent)]
    Archive(#[from] ArchiveError),
}

/// Whether a full disk, or a user's full share of it, is at the bottom of an error: the kernel says so, or SQLite.
pub fn is_disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        let full = |errno: Errno| matches!(errno, Errno::NOSPC | Errno::DQUOT);
        let io = error.downcast_ref::<std::io::Error>();
        let io = io.and_then(Errno::from_io_error).is_some_and(full);
        let kernel = error.downcast_ref().copied().is_some_and(full);
        let sqlite = error.downcast_ref::<rusqlite::Error>();
        let sqlite = sqlite.and_then(rusqlite::Error::sqlite_error);
        let sqlite = sqlite.map(|error| error.extended_code);
        // The second when it cannot make room in the file that processes share.
        let codes = [
            rusqlite::ffi::SQLITE_FULL,
            rusqlite::ffi::SQLITE_IOERR_SHMSIZE,
        ];
        if io || kernel || sqlite.is_some_and(|code| codes.contains(&code)) {
            return true;
        }
        cause = error.source();
    }
    false
}

impl StoreError {
    /// Whether the disk, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        is_disk_full(self)
    }

    /// Whether SQLite cannot make sense of the index's file: `store check --repair` puts it aside.
    pub fn is_index_damaged(&self) -> bool {
        let StoreError::Index(IndexError::Sqlite { source, .. }) = self else {
            return false;
        };
        let code = source.sqlite_error_code();
        matches!(
            code,
            Some(rusqlite::ErrorCode::DatabaseCorrupt | rusqlite::ErrorCode::NotADatabase)
        )
    }
}

/// A store, open. Safe to share between threads; several processes may have the same one open.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    index: Arc<Index>,
    blobs: Blobs,
    images: Images,
    snapshots: Snapshots,
    sessions: Arc<Sessions>,
    history: Keep,
    failed: KeepFailed,
    watchers: Watchers,
}

/// What a store takes as given.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Identifies the running kernel, so that a crash of the machine is noticed; read from `/proc` where absent.
    pub boot_id: Option<String>,
    /// How long before a session's start a use still protects: the same in all processes that use the store.
    pub grace: Duration,
    /// How much build history is kept.
    pub history: Keep,
    /// How much of what failed steps left is kept.
    pub failed: KeepFailed,
    /// What time it is.
    pub clock: Clock,
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions {
            boot_id: None,
            grace: GRACE,
            history: Keep::default(),
            failed: KeepFailed::default(),
            clock: Clock::default(),
        }
    }
}

/// Builds follow one another within minutes, and then write no stamps.
const GRACE: Duration = Duration::from_secs(600);

/// Holds the only right to build one step, among all processes that use the store.
#[derive(Debug)]
pub struct KeyLock {
    _lock: Lock,
}

impl Store {
    /// Opens the store in `root`, creating what is missing with mode 0700.
    pub fn open(root: &Path) -> Result<Store, StoreError> {
        Store::open_with(root, &OpenOptions::default())
    }

    /// Opens a store as [`Store::open`] does, with what is otherwise a given.
    pub fn open_with(root: &Path, options: &OpenOptions) -> Result<Store, StoreError> {
        check_format(root)?;
        let boot_id = match &options.boot_id {
            Some(boot_id) => boot_id.clone(),
            None => recover::boot_id()?,
        };
        let sessions = Arc::new(Sessions::new(root, options.grace, options.clock.clone()));
        let index = Arc::new(Index::open(root, Arc::clone(&sessions))?);
        let blobs = Blobs::new(root, Arc::clone(&index));
        let images = Images::new(blobs.clone(), Arc::clone(&index));
        let store = Store {
            root: root.to_owned(),
            index,
            blobs,
            images,
            snapshots: Snapshots::open(root)?,
            sessions,
            history: options.history,
            failed: options.failed,
            watchers: Watchers::default(),
        };
        // Stores of earlier versions lack it.
        fs::create_dir(&store.cache_mounts_path())?;
        store.recover(&boot_id)?;
        store.keep_reserve();
        Ok(store)
    }

    /// The folder everything is in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The blobs.
    pub fn blobs(&self) -> &Blobs {
        &self.blobs
    }

    /// The index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    pub(crate) fn index_handle(&self) -> &Arc<Index> {
        &self.index
    }

    pub(crate) fn history_keep(&self) -> Keep {
        self.history
    }

    /// How much of what failed steps left is kept.
    pub fn failed_keep(&self) -> KeepFailed {
        self.failed
    }

    /// The images.
    pub fn images(&self) -> &Images {
        &self.images
    }

    /// The layers' directories. Publish through [`Store::publish_layer`].
    pub fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Makes a directory in `tmp/` that is removed when dropped and swept if the process is killed.
    pub fn temp_dir(&self) -> Result<fs::TempDir, StoreError> {
        Ok(fs::TempDir::create(&self.root.join("tmp"))?)
    }

    /// Waits until no other build, in whatever process, holds this step's key.
    pub fn lock_key(&self, key: &[u8; 32]) -> Result<KeyLock, StoreError> {
        let lock = Lock::exclusive(&self.key_path(key))?;
        sign(&lock);
        Ok(KeyLock { _lock: lock })
    }

    /// Takes a step's key if it is free. `None` says that somebody builds the step: tell the user, then [`Store::lock_key`].
    pub fn try_lock_key(&self, key: &[u8; 32]) -> Result<Option<KeyLock>, StoreError> {
        let Some(lock) = Lock::try_exclusive(&self.key_path(key))? else {
            return Ok(None);
        };
        sign(&lock);
        Ok(Some(KeyLock { _lock: lock }))
    }

    /// The process that holds a step's key, by its own word; none where nobody does, or nobody said so.
    pub fn key_holder(&self, key: &[u8; 32]) -> Option<u32> {
        let text = fs::optional(fs::read(&self.key_path(key), 16)).ok()??;
        std::str::from_utf8(&text).ok()?.trim().parse().ok()
    }

    fn key_path(&self, key: &[u8; 32]) -> PathBuf {
        let hex = blake3::Hash::from_bytes(*key).to_hex();
        self.root.join("locks").join(hex.as_str())
    }
}

/// Says who holds a lock. It is held all the same where there is no room to say so.
fn sign(lock: &Lock) {
    if let Err(error) = lock.sign() {
        tracing::debug!(%error, "a lock is not signed");
    }
}

/// Checks the format of what is there, or lays out a new store; the file `version` comes last.
fn check_format(root: &Path) -> Result<(), StoreError> {
    let version = root.join("version");
    if let Some(found) = fs::optional(fs::read(&version, 64))? {
        let found = String::from_utf8_lossy(&found).trim().to_owned();
        if found == FORMAT {
            return Ok(());
        }
        return Err(StoreError::UnknownFormat {
            root: root.to_owned(),
            found,
        });
    }
    fs::create_dir(root)?;
    if let Some(kind) = fs::network_kind(root)? {
        return Err(StoreError::NetworkFileSystem {
            root: root.to_owned(),
            kind,
        });
    }
    for folder in FOLDERS {
        fs::create_dir(&root.join(folder))?;
    }
    fs::write_atomic(
        &root.join("tmp"),
        &version,
        format!("{FORMAT}\n").as_bytes(),
    )?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    use crate::images::ImageId;
    use crate::layer::{LayerId, LayerInfo};
    use crate::oci::{DiffId, Digest, ImageConfig, Platform};

    /// Publishes a layer with one file, named by a number.
    pub(crate) fn layer(store: &Store, number: u8) -> LayerInfo {
        try_layer(store, number).unwrap()
    }

    pub(crate) fn try_layer(store: &Store, number: u8) -> Result<LayerInfo, StoreError> {
        store.publish_layer(|| {
            let dir = store.temp_dir()?;
            let layer = dir.path().join("fs");
            std::fs::create_dir(&layer).unwrap();
            let mut file = std::fs::File::create(layer.join("file")).unwrap();
            std::io::Write::write_all(&mut file, &[number]).unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            let scan = crate::layer::scan::scan(&layer).unwrap();
            let info = LayerInfo {
                id: LayerId::Built(scan.id),
                tree: Some(scan.tree),
                // Not that of its tar: no test makes one.
                diff_id: Some(DiffId(Digest::of(&[number]))),
                bytes: scan.bytes,
                entries: scan.entries,
            };
            dir.publish(&store.layer_path(&info.id))?;
            Ok(info)
        })
    }

    /// Keeps an image of these layers.
    pub(crate) fn image_of(store: &Store, diff_ids: &[DiffId]) -> ImageId {
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = diff_ids.to_vec();
        let bytes = serde_json::to_vec(&config).unwrap();
        store.images().put_image(&bytes, None).unwrap()
    }

    /// A store in a folder of its own.
    pub(crate) fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    #[test]
    fn opens_what_it_made_and_nothing_newer() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("deep/root");
        drop(Store::open(&root).unwrap());
        let mode = std::fs::metadata(&root).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o700);
        drop(Store::open(&root).unwrap());
        std::fs::write(root.join("version"), "2\n").unwrap();
        let error = Store::open(&root).unwrap_err();
        assert!(error.to_string().contains("has format `2`"), "{error}");
    }

    #[test]
    fn a_key_has_one_holder() {
        let (dir, store) = store();
        let other = Store::open(dir.path()).unwrap();
        let held = store.lock_key(&[1; 32]).unwrap();
        assert!(other.try_lock_key(&[1; 32]).unwrap().is_none());
        assert_eq!(other.key_holder(&[1; 32]), Some(std::process::id()));
        assert_eq!(other.key_holder(&[2; 32]), None);
        assert!(other.try_lock_key(&[2; 32]).unwrap().is_some());
        drop(held);
        assert!(other.try_lock_key(&[1; 32]).unwrap().is_some());
    }
}
