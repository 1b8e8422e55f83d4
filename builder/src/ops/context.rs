//! The local build context: a folder that is read in place, never copied or sent.
//!
//! Each directory is listed once per build, and only if some operation selects something below it; what the files
//! contain is remembered between builds by [`stat_cache`]. So a rebuild costs one `getdents64` per directory and one
//! `fstatat` per file. Errors in keeping that memory only cost time and are logged.

pub(crate) mod stat_cache;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::tree::{Kind, Listing, Time, TreeError};
use stat_cache::{Record, Stamp, StatCache};

/// A file that changed less than this before it was read may change again without its stamp showing it, on file systems
/// with coarse clocks (FAT: two seconds).
const RACY_WINDOW: Duration = Duration::from_secs(2);

/// A local folder that copies read from; see [`Tree::Context`](super::tree::Tree::Context).
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    listings: Mutex<BTreeMap<Vec<u8>, Arc<Listing>>>,
    cache: StatCache,
    cache_file: PathBuf,
    /// Files whose status changed at or after this are not remembered.
    settled_before: Time,
    /// Whether something was read that the cache does not know.
    dirty: AtomicBool,
}

/// Why a context could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot open the build context `{}`: {source}", path.display())]
pub struct ContextError {
    /// The folder.
    pub path: PathBuf,
    /// Why.
    pub source: std::io::Error,
}

impl Context {
    /// Opens the folder `dir`; what its files contained the last time is kept in a file of the folder `stat_cache`.
    ///
    /// # Errors
    /// If `dir` is not a directory that can be read.
    pub fn open(dir: &Path, stat_cache: &Path) -> Result<Context, ContextError> {
        let fail = |source| ContextError {
            path: dir.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let canonical = dir.canonicalize().map_err(fail)?;
        let name = blake3::hash(canonical.as_os_str().as_encoded_bytes());
        let cache_file = stat_cache.join(name.to_hex().as_str());
        Ok(Context {
            root,
            listings: Mutex::default(),
            cache: StatCache::load(&cache_file),
            cache_file,
            settled_before: settled_before(SystemTime::now()),
            dirty: AtomicBool::new(false),
        })
    }

    /// The folder's handle.
    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// Keeps for the next build what was learnt in this one. Does nothing if that is nothing; also done on drop.
    pub fn save(&self) {
        if !self.dirty.swap(false, Ordering::AcqRel) {
            return;
        }
        let listings = self.lock();
        let records = self.merged_records(&listings);
        let records: Vec<_> = records
            .iter()
            .map(|(path, (stamp, hash))| Record {
                path,
                stamp: *stamp,
                hash: *hash,
            })
            .collect();
        if let Err(error) = stat_cache::save(&self.cache_file, &records) {
            tracing::debug!(file = %self.cache_file.display(), %error, "stat cache not saved");
        }
    }

    pub(crate) fn list(&self, path: &[u8]) -> Result<Arc<Listing>, TreeError> {
        if let Some(known) = self.lock().get(path) {
            return Ok(Arc::clone(known));
        }
        let listing = Arc::new(Listing::read(self.root(), path, false)?);
        // If two threads read it, all use the first: what is learnt of the entries is kept in it.
        Ok(Arc::clone(
            self.lock().entry(path.to_vec()).or_insert(listing),
        ))
    }

    /// The content's hash from an earlier build, if the file has not been touched since.
    pub(crate) fn recall(&self, listing: &Listing, index: usize) -> Option<[u8; 32]> {
        let stamp = Stamp::of(&listing.entries[index].meta);
        self.cache.recall(&listing.path_of(index), &stamp)
    }

    /// Notes that a file was read which the cache does not know.
    pub(crate) fn learnt(&self) {
        self.dirty.store(true, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Arc<Listing>>> {
        // Listings are inserted whole: a panic elsewhere leaves nothing half done.
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What this build learnt, and of the earlier records those that this build did not see disproved.
    fn merged_records(
        &self,
        listings: &BTreeMap<Vec<u8>, Arc<Listing>>,
    ) -> BTreeMap<Vec<u8>, (Stamp, [u8; 32])> {
        let mut records = BTreeMap::new();
        for old in self.cache.records() {
            if still_possible(listings, old.path, &old.stamp) {
                records.insert(old.path.to_vec(), (old.stamp, old.hash));
            }
        }
        for listing in listings.values() {
            for (index, entry) in listing.entries.iter().enumerate() {
                if let Some(hash) = entry.hash.get()
                    && entry.meta.ctime < self.settled_before
                {
                    records.insert(listing.path_of(index), (Stamp::of(&entry.meta), *hash));
                }
            }
        }
        records
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.save();
    }
}

/// Whether a record may still be true: no directory that this build listed says otherwise.
fn still_possible(listings: &BTreeMap<Vec<u8>, Arc<Listing>>, path: &[u8], stamp: &Stamp) -> bool {
    let mut dir: &[u8] = b"";
    let mut rest = path;
    loop {
        let (name, below) = match rest.iter().position(|&byte| byte == b'/') {
            Some(at) => (&rest[..at], Some(&rest[at + 1..])),
            None => (rest, None),
        };
        if let Some(listing) = listings.get(dir) {
            let Some(entry) = listing.find(name).map(|index| &listing.entries[index]) else {
                return false;
            };
            match below {
                Some(_) if entry.meta.kind != Kind::Dir => return false,
                None => return Stamp::of(&entry.meta) == *stamp,
                Some(_) => {}
            }
        }
        let Some(below) = below else {
            return true;
        };
        dir = &path[..path.len() - below.len() - 1];
        rest = below;
    }
}

fn settled_before(now: SystemTime) -> Time {
    let since = now
        .checked_sub(RACY_WINDOW)
        .and_then(|then| then.duration_since(SystemTime::UNIX_EPOCH).ok())
        .unwrap_or_default();
    Time {
        seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
        nanos: since.subsec_nanos(),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::fd::AsRawFd;
    use std::sync::atomic::AtomicBool;

    use super::*;
    use crate::cache::content_hash::content_digest;
    use crate::graph::CopySource;
    use crate::ops::Tree;

    static NOT_CANCELLED: AtomicBool = AtomicBool::new(false);

    struct Place {
        dir: tempfile::TempDir,
    }

    impl Place {
        fn new() -> Place {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("context/sub")).unwrap();
            fs::write(dir.path().join("context/a"), "A").unwrap();
            fs::write(dir.path().join("context/sub/b"), "B").unwrap();
            Place { dir }
        }

        fn path(&self, name: &str) -> PathBuf {
            self.dir.path().join(name)
        }

        /// A context for which everything that was written until now is settled, or nothing is.
        fn open(&self, settled: bool) -> Context {
            let mut context = Context::open(&self.path("context"), &self.path("cache")).unwrap();
            let seconds = if settled { i64::MAX } else { i64::MIN };
            context.settled_before = Time { seconds, nanos: 0 };
            context
        }

        fn cache_file(&self) -> Option<PathBuf> {
            let mut files = fs::read_dir(self.path("cache")).ok()?;
            files.next().map(|file| file.unwrap().path())
        }
    }

    fn digest(context: &Context, pattern: &str) -> [u8; 32] {
        let source = CopySource {
            input: 0,
            pattern: pattern.to_owned(),
            ..CopySource::default()
        };
        content_digest(Tree::Context(context), &source, &NOT_CANCELLED).unwrap()
    }

    fn remembered(place: &Place) -> Vec<String> {
        let cache = place.cache_file().map(|file| StatCache::load(&file));
        let cache = cache.unwrap_or_default();
        let paths = cache.records().map(|record| record.path);
        paths
            .map(|path| String::from_utf8_lossy(path).into_owned())
            .collect()
    }

    #[test]
    fn an_unchanged_file_is_not_read_again() {
        let place = Place::new();
        let first = digest(&place.open(true), ".");
        assert_eq!(remembered(&place), ["a", "sub/b"]);
        // Changed behind the kernel's back, as it were: the memory is made to say something else.
        let file = place.cache_file().unwrap();
        let cache = StatCache::load(&file);
        let mut records: Vec<_> = cache.records().collect();
        records[0].hash = [9; 32];
        stat_cache::save(&file, &records).unwrap();
        let context = place.open(true);
        assert_ne!(digest(&context, "."), first);
        assert!(!context.dirty.load(Ordering::Relaxed));
    }

    #[test]
    fn a_changed_file_is_read_again() {
        let place = Place::new();
        let first = digest(&place.open(true), ".");
        // The same size and time of modification; the kernel still moves the time of change.
        let path = place.path("context/a");
        let before = fs::metadata(&path).unwrap().modified().unwrap();
        fs::write(&path, "X").unwrap();
        fs::File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_modified(before)
            .unwrap();
        assert_ne!(digest(&place.open(true), "."), first);
        assert_eq!(remembered(&place), ["a", "sub/b"]);
    }

    #[test]
    fn a_file_that_may_still_change_unseen_is_not_remembered() {
        let place = Place::new();
        let first = digest(&place.open(false), ".");
        assert_eq!(remembered(&place), Vec::<String>::new());
        assert_eq!(digest(&place.open(true), "."), first);
        assert_eq!(remembered(&place), ["a", "sub/b"]);
        // Fresh files are racy by the clock, too.
        let context = Context::open(&place.path("context"), &place.path("cache")).unwrap();
        let listing = context.list(b"").unwrap();
        assert!(listing.entries[0].meta.ctime >= context.settled_before);
    }

    #[test]
    fn what_this_build_did_not_look_at_is_kept_and_what_is_gone_dropped() {
        let place = Place::new();
        digest(&place.open(true), ".");
        fs::write(place.path("context/c"), "C").unwrap();
        fs::remove_file(place.path("context/a")).unwrap();
        digest(&place.open(true), "c");
        assert_eq!(remembered(&place), ["c", "sub/b"]);
        fs::remove_dir_all(place.path("context/sub")).unwrap();
        fs::write(place.path("context/sub"), "file").unwrap();
        digest(&place.open(true), ".");
        assert_eq!(remembered(&place), ["c", "sub"]);
    }

    #[test]
    fn a_damaged_memory_is_made_anew() {
        let place = Place::new();
        let first = digest(&place.open(true), ".");
        fs::write(place.cache_file().unwrap(), "not ours").unwrap();
        assert_eq!(digest(&place.open(true), "."), first);
        assert_eq!(remembered(&place), ["a", "sub/b"]);
    }

    #[test]
    fn one_build_lists_a_directory_once() {
        let place = Place::new();
        let context = place.open(true);
        let first = digest(&context, ".");
        fs::write(place.path("context/new"), "N").unwrap();
        assert_eq!(digest(&context, "."), first, "a build sees one state");
        let one = context.list(b"sub").unwrap();
        assert!(Arc::ptr_eq(&one, &context.list(b"sub").unwrap()));
        assert!(context.root().as_raw_fd() >= 0);
    }

    #[test]
    fn what_is_no_folder_is_no_context() {
        let place = Place::new();
        for name in ["context/a", "nothing"] {
            let error = Context::open(&place.path(name), &place.path("cache")).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("cannot open the build context `"),
                "{text}"
            );
            assert_eq!(error.path, place.path(name));
        }
    }
}
