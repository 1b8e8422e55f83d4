//! Directories that steps keep between builds (`RUN --mount=type=cache`).
//!
//! ```text
//! cache-mounts/<key>.<n>/   locked by who uses it: shared, or alone
//!   info                    JSON: what it is; its time is that of the last use
//!   data/                   what the step sees
//! ```
//!
//! A cache is named by what decides its first content: its id, its owner and mode, and what it was filled from. There is one
//! directory of a name, and more where a step that shares with nobody found it taken; those are used again. A directory
//! appears by rename, filled. What is replaced or pruned is moved to `tmp/` and stays usable for those who have it.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Gid, Mode, RenameFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::clock::stamp_file;
use crate::fs::{self, FsError, Lock, TempDir, attempt};
use crate::index::{epoch, synced_epoch};
use crate::{Store, StoreError};

/// Largest `info` file, in bytes: an id is a line of a Dockerfile.
const INFO_BYTES_MAX: u64 = 1024 * 1024;

const INFO_VERSION: u32 = 1;

const DOMAIN: &[u8] = b"longshore cache mount 1";

/// What a cache is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMountName {
    /// As the Dockerfile calls it, with its namespace.
    pub id: String,
    /// Digest of what it was filled from; none for one that began empty.
    pub from: Option<[u8; 32]>,
    /// Mode bits of its top directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

impl CacheMountName {
    fn key(&self) -> String {
        blake3::Hash::from_bytes(self.digest()).to_hex().to_string()
    }

    /// A digest of all of it.
    pub fn digest(&self) -> [u8; 32] {
        let mut hasher = blake3::Hasher::new();
        hasher.update(DOMAIN);
        hasher.update(&(self.id.len() as u64).to_le_bytes());
        hasher.update(self.id.as_bytes());
        hasher.update(&[u8::from(self.from.is_some())]);
        hasher.update(&self.from.unwrap_or_default());
        for number in [self.mode, self.uid, self.gid] {
            hasher.update(&number.to_le_bytes());
        }
        *hasher.finalize().as_bytes()
    }
}

/// What happens when two steps use one cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheSharing {
    /// Both use one directory.
    Shared,
    /// The second gets another one.
    Private,
    /// The second waits.
    Locked,
}

impl CacheSharing {
    fn operation(self) -> FlockOperation {
        match self {
            CacheSharing::Shared => FlockOperation::NonBlockingLockShared,
            CacheSharing::Private | CacheSharing::Locked => {
                FlockOperation::NonBlockingLockExclusive
            }
        }
    }
}

/// A cache in use, until it is dropped or the process ends.
#[derive(Debug)]
pub struct CacheMount {
    // Held for its `flock`.
    _dir: File,
    path: PathBuf,
}

impl CacheMount {
    /// The directory that a step sees.
    pub fn data(&self) -> PathBuf {
        self.path.join("data")
    }
}

/// What came of asking for a cache.
#[derive(Debug)]
pub enum CacheTaken {
    /// It may be used.
    Taken(CacheMount),
    /// Somebody has it alone, or wants not to be disturbed: ask again later.
    Busy,
    /// There is none that is free: make one.
    Missing,
}

/// A cache that has no name yet: to be filled, and published.
#[derive(Debug)]
pub struct NewCacheMount {
    dir: TempDir,
    name: CacheMountName,
}

impl NewCacheMount {
    /// The directory that a step will see: empty, with its owner and mode.
    pub fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }
}

/// A cache that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheMountRow {
    /// Its directory's name below `cache-mounts/`.
    pub name: String,
    /// What Dockerfiles call it, with its namespace; empty if that cannot be read.
    pub id: String,
    /// When it was made, in microseconds since 1970; not known of those of earlier versions.
    pub created: Option<i64>,
    /// When it was last used, in microseconds since 1970.
    pub last_used: Option<i64>,
    /// How the step that used it last shares it.
    pub sharing: Option<CacheSharing>,
}

/// Who uses a cache now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CacheUse {
    /// Nobody.
    Free,
    /// These processes, as far as the kernel tells.
    By(Vec<u32>),
}

/// The file `info`.
#[derive(Serialize, Deserialize)]
struct Info {
    version: u32,
    id: String,
    from: Option<String>,
    mode: u32,
    uid: u32,
    gid: u32,
    /// The epoch of the last use.
    epoch: i64,
    /// Microseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    created: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    sharing: Option<CacheSharing>,
}

impl Store {
    /// Asks for a cache; waits for nobody who uses one.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn take_cache_mount(
        &self,
        name: &CacheMountName,
        sharing: CacheSharing,
    ) -> Result<CacheTaken, StoreError> {
        let key = name.key();
        let _names = self.lock_cache_names(&key)?;
        for number in 0.. {
            let path = self.cache_mounts_path().join(format!("{key}.{number}"));
            match hold(&path, sharing.operation())? {
                Held::Yes(dir) => {
                    self.note_use(&path, name, Some(sharing))?;
                    return Ok(CacheTaken::Taken(CacheMount { _dir: dir, path }));
                }
                Held::Absent => return Ok(CacheTaken::Missing),
                Held::Busy if sharing == CacheSharing::Locked => return Ok(CacheTaken::Busy),
                Held::Busy => {}
            }
        }
        Ok(CacheTaken::Missing)
    }

    /// Begins a cache: empty, to be filled and then published or put in place of another.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new_cache_mount(&self, name: &CacheMountName) -> Result<NewCacheMount, StoreError> {
        let dir = self.temp_dir()?;
        let data = dir.path().join("data");
        attempt("create", &data, || rustix::fs::mkdir(&data, Mode::RWXU))?;
        let (uid, gid) = (Uid::from_raw(name.uid), Gid::from_raw(name.gid));
        attempt("chown", &data, || {
            match rustix::fs::chown(&data, Some(uid), Some(gid)) {
                // Without that id, who owns the store owns the cache.
                Err(Errno::INVAL | Errno::PERM) => Ok(()),
                result => result,
            }
        })?;
        attempt("chmod", &data, || {
            rustix::fs::chmod(&data, Mode::from_raw_mode(name.mode & 0o7777))
        })?;
        self.note_use(dir.path(), name, None)?;
        Ok(NewCacheMount {
            dir,
            name: name.clone(),
        })
    }

    /// Gives a new cache its name, beside those that are taken, unless one of them has become free for `sharing`.
    ///
    /// # Errors
    /// It cannot be renamed.
    pub fn publish_cache_mount(
        &self,
        new: NewCacheMount,
        sharing: CacheSharing,
    ) -> Result<(), StoreError> {
        let key = new.name.key();
        let _names = self.lock_cache_names(&key)?;
        for number in 0.. {
            let path = self.cache_mounts_path().join(format!("{key}.{number}"));
            match hold(&path, sharing.operation())? {
                Held::Yes(_) => break,
                Held::Busy => {}
                Held::Absent => {
                    new.dir.publish(&path)?;
                    break;
                }
            }
        }
        Ok(())
    }

    /// Keeps everybody else from looking which caches of this name are free: who only looks, or makes one, holds it for an
    /// instant, and must not be taken for one who uses it.
    fn lock_cache_names(&self, key: &str) -> Result<Lock, StoreError> {
        Ok(Lock::exclusive(&self.root.join("locks").join(key))?)
    }

    /// The same for a cache by its directory's name.
    fn lock_cache_names_of(&self, name: &str) -> Result<Lock, StoreError> {
        self.lock_cache_names(name.split('.').next().unwrap_or_default())
    }

    /// Puts a new cache in place of all that have its name; who uses one of those keeps it until it is done.
    ///
    /// # Errors
    /// They cannot be renamed.
    pub fn replace_cache_mount(&self, new: NewCacheMount) -> Result<(), StoreError> {
        let key = new.name.key();
        let prefix = format!("{key}.");
        let _names = self.lock_cache_names(&key)?;
        let first = self.cache_mounts_path().join(format!("{key}.0"));
        for name in fs::list(&self.cache_mounts_path())? {
            let path = self.cache_mounts_path().join(&name);
            if name.starts_with(&prefix) && path != first {
                self.discard_cache_mount(&path)?;
            }
        }
        let exchanged = attempt("replace", &first, || {
            let (from, cwd) = (new.dir.path(), rustix::fs::CWD);
            match rustix::fs::renameat_with(cwd, from, cwd, &first, RenameFlags::EXCHANGE) {
                Ok(()) => Ok(true),
                Err(Errno::NOENT) => Ok(false),
                Err(errno) => Err(errno),
            }
        })?;
        if !exchanged {
            new.dir.publish(&first)?;
            return Ok(());
        }
        // What is at its old path now is the one that was replaced, and may still be in use.
        let old = new.dir.leave();
        fs::temp::sweep(&old)?;
        Ok(())
    }

    /// The caches that are kept, by name.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn cache_mounts(&self) -> Result<Vec<CacheMountRow>, StoreError> {
        let mut rows = Vec::new();
        for name in fs::list(&self.cache_mounts_path())? {
            let path = self.cache_mounts_path().join(&name).join("info");
            let last_used = fs::modified_micros(&path)?;
            let info = read_info(&path)?;
            let (created, sharing) = match &info {
                Some(info) => (info.created, info.sharing),
                None => (None, None),
            };
            rows.push(CacheMountRow {
                name,
                id: info.map(|info| info.id).unwrap_or_default(),
                created,
                last_used,
                sharing,
            });
        }
        rows.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(rows)
    }

    /// Bytes that a cache takes on disk.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn cache_mount_bytes(&self, row: &CacheMountRow) -> Result<u64, StoreError> {
        let path = self.cache_mounts_path().join(&row.name);
        Ok(fs::disk_usage(&path, &mut fs::Inodes::new())?)
    }

    /// Who uses a cache now.
    ///
    /// # Errors
    /// It cannot be locked.
    pub fn cache_mount_use(&self, row: &CacheMountRow) -> Result<CacheUse, StoreError> {
        if self.is_cache_mount_free(&row.name)? {
            return Ok(CacheUse::Free);
        }
        let path = self.cache_mounts_path().join(&row.name);
        Ok(CacheUse::By(fs::lock::holders(&path)?))
    }

    /// Removes a cache that nobody uses; tells how many bytes that freed, and nothing if somebody does use it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_cache_mount(&self, row: &CacheMountRow) -> Result<Option<u64>, StoreError> {
        if !fs::exists(&self.cache_mounts_path().join(&row.name))? {
            // Somebody else was quicker.
            return Ok(Some(0));
        }
        let Some(aside) = self.move_cache_mount_aside(row, i64::MAX)? else {
            return Ok(None);
        };
        let bytes = fs::disk_usage(&aside, &mut fs::Inodes::new())?;
        fs::temp::sweep(&aside)?;
        Ok(Some(bytes))
    }

    /// Whether nobody uses a cache now.
    pub(crate) fn is_cache_mount_free(&self, name: &str) -> Result<bool, StoreError> {
        let path = self.cache_mounts_path().join(name);
        let _names = self.lock_cache_names_of(name)?;
        let held = hold(&path, FlockOperation::NonBlockingLockExclusive)?;
        Ok(matches!(held, Held::Yes(_)))
    }

    /// What Dockerfiles call it; empty if that cannot be read.
    pub(crate) fn cache_mount_id(&self, name: &str) -> Result<String, StoreError> {
        let info = read_info(&self.cache_mounts_path().join(name).join("info"))?;
        Ok(info.map(|info| info.id).unwrap_or_default())
    }

    /// Moves a cache that nobody uses into `tmp/`, unless it was used at or after `before`; returns where it is now.
    pub(crate) fn move_cache_mount_aside(
        &self,
        row: &CacheMountRow,
        before: i64,
    ) -> Result<Option<PathBuf>, StoreError> {
        let path = self.cache_mounts_path().join(&row.name);
        let _names = self.lock_cache_names_of(&row.name)?;
        let Held::Yes(_dir) = hold(&path, FlockOperation::NonBlockingLockExclusive)? else {
            return Ok(None);
        };
        let used = fs::modified_micros(&path.join("info"))?;
        if used.is_some_and(|used| used >= before) {
            return Ok(None);
        }
        let aside = self.root.join("tmp").join(fs::temp::fresh_name("trash"));
        let moved = fs::rename_if_free(&path, &aside)?;
        Ok(moved.then_some(aside))
    }

    /// Drops the caches that were used in an epoch which a crash of the machine may have torn.
    pub(crate) fn drop_torn_cache_mounts(&self) -> Result<(), StoreError> {
        let synced = self.index.read(synced_epoch)?;
        for name in fs::list(&self.cache_mounts_path())? {
            let path = self.cache_mounts_path().join(&name);
            let info = read_info(&path.join("info"))?;
            if info.is_none_or(|info| info.epoch > synced) {
                self.discard_cache_mount(&path)?;
            }
        }
        Ok(())
    }

    pub(crate) fn discard_cache_mount(&self, path: &Path) -> Result<(), StoreError> {
        let aside = self.root.join("tmp").join(fs::temp::fresh_name("trash"));
        match fs::rename_if_free(path, &aside) {
            Ok(_) => fs::temp::sweep(&aside)?,
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }

    /// Writes what the cache at `path` is, and that it is used now.
    fn note_use(
        &self,
        path: &Path,
        name: &CacheMountName,
        sharing: Option<CacheSharing>,
    ) -> Result<(), StoreError> {
        let now = self.clock().now_micros();
        let epoch = self.index.write(|t| epoch(t))?;
        let info = path.join("info");
        let known = read_info(&info)?;
        let is_same = |known: &Info| known.epoch == epoch && known.sharing == sharing;
        if known.as_ref().is_some_and(is_same) {
            stamp_file(&info, now)?;
            return Ok(());
        }
        let text = Info {
            version: INFO_VERSION,
            id: name.id.clone(),
            from: name
                .from
                .map(|digest| blake3::Hash::from_bytes(digest).to_hex().to_string()),
            mode: name.mode,
            uid: name.uid,
            gid: name.gid,
            epoch,
            created: match &known {
                Some(known) => known.created,
                None => Some(now),
            },
            sharing,
        };
        let text = serde_json::to_vec(&text).expect("text and numbers");
        fs::write_atomic(&self.root.join("tmp"), &info, &text)?;
        stamp_file(&info, now)?;
        Ok(())
    }

    pub(crate) fn cache_mounts_path(&self) -> PathBuf {
        self.root.join("cache-mounts")
    }
}

enum Held {
    Yes(File),
    Busy,
    Absent,
}

/// Locks the directory at `path`, if it is there and nobody has it in a way that forbids it.
fn hold(path: &Path, operation: FlockOperation) -> Result<Held, FsError> {
    loop {
        let dir = match fs::open_dir(path) {
            Ok(dir) => File::from(dir),
            Err(error) if error.is_not_found() => return Ok(Held::Absent),
            Err(error) => return Err(error),
        };
        let locked = attempt("lock", path, || {
            match rustix::fs::flock(dir.as_fd(), operation) {
                Ok(()) => Ok(true),
                Err(Errno::WOULDBLOCK) => Ok(false),
                Err(errno) => Err(errno),
            }
        })?;
        // It may have been replaced since it was opened.
        if fs::lock::is_named(&dir, path)? {
            return Ok(match locked {
                true => Held::Yes(dir),
                false => Held::Busy,
            });
        }
    }
}

/// Reads an `info` file; one that is missing, damaged or of another version tells nothing.
fn read_info(path: &Path) -> Result<Option<Info>, FsError> {
    let bytes = fs::optional(fs::read(path, INFO_BYTES_MAX))?;
    let info = bytes.and_then(|bytes| serde_json::from_slice::<Info>(&bytes).ok());
    Ok(info.filter(|info| info.version == INFO_VERSION))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::store;

    fn name(id: &str) -> CacheMountName {
        CacheMountName {
            id: id.to_owned(),
            from: None,
            mode: 0o755,
            uid: 0,
            gid: 0,
        }
    }

    /// Takes a cache, made if it is not there.
    fn take(store: &Store, name: &CacheMountName, sharing: CacheSharing) -> Option<CacheMount> {
        loop {
            match store.take_cache_mount(name, sharing).unwrap() {
                CacheTaken::Taken(cache) => return Some(cache),
                CacheTaken::Busy => return None,
                CacheTaken::Missing => {
                    let new = store.new_cache_mount(name).unwrap();
                    store.publish_cache_mount(new, sharing).unwrap();
                }
            }
        }
    }

    #[test]
    fn those_who_share_a_new_cache_get_one_directory() {
        let (_dir, store) = store();
        let start = std::sync::Barrier::new(8);
        for round in 0..20 {
            let name = name(&format!("cache {round}"));
            std::thread::scope(|scope| {
                for looks in [false, true, false, false, true, false, false, false] {
                    let (store, start, name) = (&store, &start, &name);
                    scope.spawn(move || {
                        start.wait();
                        if looks {
                            for row in store.cache_mounts().unwrap() {
                                store.is_cache_mount_free(&row.name).unwrap();
                            }
                        } else {
                            let taken = take(store, name, CacheSharing::Shared);
                            assert!(taken.is_some());
                        }
                    });
                }
            });
            assert_eq!(store.cache_mounts().unwrap().len(), round + 1);
        }
    }

    #[test]
    fn caches_are_listed_and_removed_when_nobody_uses_them() {
        let (_dir, store) = store();
        let used = take(&store, &name("a"), CacheSharing::Locked).unwrap();
        std::fs::write(used.data().join("file"), vec![1; 10_000]).unwrap();
        let row = store.cache_mounts().unwrap().remove(0);
        assert_eq!(row.sharing, Some(CacheSharing::Locked));
        assert!(row.created.unwrap() <= row.last_used.unwrap());
        assert!(store.cache_mount_bytes(&row).unwrap() >= 10_000);
        let users = store.cache_mount_use(&row).unwrap();
        assert_eq!(users, CacheUse::By(vec![std::process::id()]));
        assert_eq!(store.remove_cache_mount(&row).unwrap(), None);
        drop(used);
        assert_eq!(store.cache_mount_use(&row).unwrap(), CacheUse::Free);
        drop(take(&store, &name("a"), CacheSharing::Shared));
        let again = store.cache_mounts().unwrap().remove(0);
        assert_eq!(again.sharing, Some(CacheSharing::Shared));
        assert_eq!(again.created, row.created);
        let bytes = store.cache_mount_bytes(&again).unwrap();
        assert_eq!(store.remove_cache_mount(&again).unwrap(), Some(bytes));
        assert_eq!(store.remove_cache_mount(&again).unwrap(), Some(0));
        assert!(store.cache_mounts().unwrap().is_empty());
    }

    #[test]
    fn content_stays_and_names_differ() {
        let (dir, store) = store();
        let first = take(&store, &name("a"), CacheSharing::Shared).unwrap();
        std::fs::write(first.data().join("file"), "x").unwrap();
        drop(first);
        let other = Store::open(dir.path()).unwrap();
        let again = take(&other, &name("a"), CacheSharing::Locked).unwrap();
        assert!(again.data().join("file").exists());
        let changed = [
            name("b"),
            CacheMountName {
                mode: 0o700,
                ..name("a")
            },
            CacheMountName {
                uid: 1,
                ..name("a")
            },
            CacheMountName {
                gid: 1,
                ..name("a")
            },
            CacheMountName {
                from: Some([0; 32]),
                ..name("a")
            },
        ];
        for changed in changed {
            let cache = take(&other, &changed, CacheSharing::Shared).unwrap();
            assert!(!cache.data().join("file").exists(), "{changed:?}");
        }
        assert_eq!(store.cache_mounts().unwrap().len(), 6);
    }

    #[test]
    fn sharing() {
        use CacheSharing::{Locked, Private, Shared};
        let (dir, store) = store();
        let other = Store::open(dir.path()).unwrap();
        let one = take(&store, &name("a"), Shared).unwrap();
        let two = take(&other, &name("a"), Shared).unwrap();
        assert_eq!(one.data(), two.data());
        assert!(take(&other, &name("a"), Locked).is_none());
        let own = take(&other, &name("a"), Private).unwrap();
        assert_ne!(own.data(), one.data());
        let third = take(&store, &name("a"), Private).unwrap();
        assert_ne!(third.data(), own.data());
        let data = own.data();
        drop((one, two, own, third));
        // Nothing leaks: the same directories serve again.
        let first = take(&other, &name("a"), Private).unwrap();
        assert_eq!(take(&store, &name("a"), Private).unwrap().data(), data);
        drop(first);
        assert_eq!(store.cache_mounts().unwrap().len(), 3);
        assert!(take(&other, &name("a"), Locked).is_some());
    }

    #[test]
    fn a_replacement_is_empty_and_the_old_one_stays_for_who_has_it() {
        let (_dir, store) = store();
        let old = take(&store, &name("a"), CacheSharing::Shared).unwrap();
        let second = take(&store, &name("a"), CacheSharing::Private).unwrap();
        drop(second);
        std::fs::write(old.data().join("file"), "x").unwrap();
        let mut handle = std::fs::File::open(old.data().join("file")).unwrap();
        let new = store.new_cache_mount(&name("a")).unwrap();
        std::fs::write(new.data().join("fresh"), "y").unwrap();
        store.replace_cache_mount(new).unwrap();
        let now = take(&store, &name("a"), CacheSharing::Locked).unwrap();
        assert!(now.data().join("fresh").exists());
        assert!(!now.data().join("file").exists());
        assert_eq!(store.cache_mounts().unwrap().len(), 1);
        let mut text = String::new();
        std::io::Read::read_to_string(&mut handle, &mut text).unwrap();
        assert_eq!(text, "x");
        // And one that was not there before.
        let new = store.new_cache_mount(&name("b")).unwrap();
        store.replace_cache_mount(new).unwrap();
        assert!(take(&store, &name("b"), CacheSharing::Shared).is_some());
    }

    #[test]
    fn a_collection_takes_what_nobody_holds() {
        use crate::content::gc::{PruneImages, PruneOptions, Pruned};
        let (dir, store) = store();
        let held = take(&store, &name("held"), CacheSharing::Shared).unwrap();
        drop(take(&store, &name("free"), CacheSharing::Shared).unwrap());
        let everything = PruneOptions {
            until: None,
            cache: true,
            images: PruneImages::Keep,
            dry_run: true,
        };
        let collect = |options: &PruneOptions| -> Vec<String> {
            let report = Store::open(dir.path()).unwrap().prune(options).unwrap();
            let items = report.items.into_iter().filter_map(|item| match item {
                Pruned::CacheMount { id, .. } => Some(id),
                _ => None,
            });
            items.collect()
        };
        assert_eq!(collect(&everything), ["free"]);
        let images_only = PruneOptions {
            cache: false,
            dry_run: false,
            ..everything
        };
        assert!(collect(&images_only).is_empty());
        let for_good = PruneOptions {
            dry_run: false,
            ..everything
        };
        assert_eq!(collect(&for_good), ["free"]);
        assert!(held.data().exists());
        drop(held);
        let young = PruneOptions {
            until: Some(std::time::Duration::from_secs(3_600)),
            ..for_good
        };
        assert!(collect(&young).is_empty());
        assert_eq!(collect(&for_good), ["held"]);
        assert!(store.cache_mounts().unwrap().is_empty());
    }

    #[test]
    fn a_crash_of_the_machine_drops_what_it_may_have_torn() {
        use crate::OpenOptions;
        let dir = tempfile::tempdir().unwrap();
        let boot = |id: &str| {
            let options = OpenOptions {
                boot_id: Some(id.to_owned()),
                ..OpenOptions::default()
            };
            Store::open_with(dir.path(), &options).unwrap()
        };
        let store = boot("one");
        for id in ["old", "used-again"] {
            drop(take(&store, &name(id), CacheSharing::Shared).unwrap());
        }
        store.sync().unwrap();
        for id in ["used-again", "new"] {
            drop(take(&store, &name(id), CacheSharing::Shared).unwrap());
        }
        assert!(store.needs_sync().unwrap());
        drop(store);
        assert_eq!(boot("one").cache_mounts().unwrap().len(), 3);
        let left = boot("two").cache_mounts().unwrap();
        assert_eq!(left.len(), 1);
        assert_eq!(left[0].id, "old");
    }
}
