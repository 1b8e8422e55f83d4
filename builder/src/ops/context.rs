//! The local build context: a folder that is read in place, never copied or sent.
//!
//! Each directory is listed once per build, and only if some operation selects something below it; what the files
//! contain is remembered between builds by [`stat_cache`]. So a rebuild costs one `getdents64` per directory and one
//! `fstatat` per file. Errors in keeping that memory only cost time and are logged.

pub(crate) mod layer_hashes;
pub(crate) mod stat_cache;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use rustix::fs::{Mode, OFlags};

use super::tree::{Entry, Kind, Listing, Time, TreeError};
use stat_cache::{Location, Records, Stamp, StatCache};

/// A file that changed less than this before it was read may change again without its stamp showing it, on file systems
/// with coarse clocks (FAT: two seconds).
const RACY_WINDOW: Duration = Duration::from_secs(2);

/// A local folder that copies read from; see [`Tree::Context`](super::tree::Tree::Context).
#[derive(Debug)]
pub struct Context {
    root: OwnedFd,
    listings: Mutex<BTreeMap<Vec<u8>, Arc<Listing>>>,
    cache: StatCache,
    location: Location,
    /// What the kernel's clock says: it stamps files by it, whether it is right or not.
    clock: fn() -> SystemTime,
    /// Records of files that changed at or after this are not believed: the clock was set back, and may come to the same tick
    /// once more.
    believed_before: Time,
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
    /// Opens the folder `dir`; what its files contained the last time is kept in the store below `root`.
    ///
    /// # Errors
    /// If `dir` is not a directory that can be read.
    pub fn open(dir: &Path, root: &Path) -> Result<Context, ContextError> {
        Context::open_at(dir, root, SystemTime::now)
    }

    fn open_at(
        dir: &Path,
        root: &Path,
        clock: fn() -> SystemTime,
    ) -> Result<Context, ContextError> {
        let fail = |source| ContextError {
            path: dir.to_owned(),
            source,
        };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(dir, flags, Mode::empty()).map_err(|e| fail(e.into()))?;
        let canonical = dir.canonicalize().map_err(fail)?;
        let name = blake3::hash(canonical.as_os_str().as_encoded_bytes());
        let location = Location::new(root, name.to_hex().as_str());
        Ok(Context {
            root: folder,
            listings: Mutex::default(),
            cache: location.load(),
            location,
            clock,
            believed_before: settled_before(clock()),
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
        let saved = self
            .location
            .update(|current| merged_records(current, &listings));
        if let Err(error) = saved {
            tracing::debug!(location = ?self.location, %error, "stat cache not saved");
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
        let entry = &listing.entries[index];
        let stamp = Stamp::of(&entry.meta);
        if stamp.changed() >= self.believed_before {
            return None;
        }
        let hash = self.cache.recall(&listing.path_of(index), &stamp)?;
        entry.settled.store(true, Ordering::Release);
        Some(hash)
    }

    /// Notes that a file was read just now which the cache does not know.
    ///
    /// It can be remembered if the tick in which it last changed was over when it was read: then no later change has the same
    /// stamp. The clock is asked now, not when the build began, for it may have been set meanwhile.
    pub(crate) fn learnt(&self, entry: &Entry) {
        let is_settled = entry.meta.ctime < settled_before((self.clock)());
        entry.settled.store(is_settled, Ordering::Release);
        self.dirty.store(true, Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<Vec<u8>, Arc<Listing>>> {
        // Listings are inserted whole: a panic elsewhere leaves nothing half done.
        self.listings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What this build learnt, and of the records of earlier ones, and of others meanwhile, those that it did not see disproved.
fn merged_records(current: &StatCache, listings: &BTreeMap<Vec<u8>, Arc<Listing>>) -> Records {
    let mut records = Records::new();
    for old in current.records() {
        if still_possible(listings, old.path, &old.stamp) {
            records.insert(old.path.to_vec(), (old.stamp, old.hash));
        }
    }
    for listing in listings.values() {
        for (index, entry) in listing.entries.iter().enumerate() {
            let path = || listing.path_of(index);
            match entry.hash.get() {
                Some(hash) if entry.settled.load(Ordering::Acquire) => {
                    records.insert(path(), (Stamp::of(&entry.meta), *hash));
                }
                // It may be what somebody else remembers, or not: it was read too early to tell.
                Some(_) => {
                    records.remove(&path());
                }
                None => {}
            }
        }
    }
    records
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

    fn far() -> SystemTime {
        SystemTime::now() + Duration::from_secs(3_600)
    }

    fn long_ago() -> SystemTime {
        SystemTime::now() - Duration::from_secs(3_600)
    }

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
            let clock = if settled { far } else { long_ago };
            self.open_at(clock)
        }

        fn open_at(&self, clock: fn() -> SystemTime) -> Context {
            Context::open_at(&self.path("context"), &self.path("store"), clock).unwrap()
        }

        fn cache_file(&self) -> Option<PathBuf> {
            let mut files = fs::read_dir(self.path("store/contexts")).ok()?;
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
        let cache = StatCache::parse(fs::read(place.cache_file().unwrap()).unwrap());
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
        let context = place.open(true);
        let other = |current: &StatCache| {
            let known = current.records();
            known
                .map(|r| (r.path.to_vec(), (r.stamp, [9; 32])))
                .collect()
        };
        context.location.update(other).unwrap();
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
        // Fresh files are racy by the real clock, too: neither is believed nor remembered.
        fs::write(place.path("context/a"), "A").unwrap();
        digest(&place.open_at(SystemTime::now), ".");
        assert_eq!(remembered(&place), Vec::<String>::new());
    }

    #[test]
    fn a_second_write_of_the_same_size_within_one_tick_is_seen() {
        let place = Place::new();
        let path = place.path("context/a");
        let mut digests = Vec::new();
        // Without a pause: several fall into one tick of the kernel's clock.
        for n in 0..50 {
            fs::write(&path, if n % 2 == 0 { "X" } else { "Y" }).unwrap();
            let first = fs::metadata(&path).unwrap();
            digests.push(digest(&place.open_at(SystemTime::now), "."));
            let unchanged = fs::metadata(&path).unwrap();
            assert_eq!(first.len(), unchanged.len());
        }
        for (n, digest) in digests.iter().enumerate() {
            assert_eq!(digest, &digests[n % 2], "write {n}");
        }
        assert_ne!(digests[0], digests[1]);
    }

    #[test]
    fn a_file_that_was_replaced_by_rename_is_read_again() {
        let place = Place::new();
        let first = digest(&place.open(true), ".");
        let (path, aside) = (place.path("context/a"), place.path("aside"));
        // The same name, size, mode and time of modification.
        let old = fs::metadata(&path).unwrap();
        fs::write(&aside, "X").unwrap();
        fs::set_permissions(&aside, old.permissions()).unwrap();
        let file = fs::File::options().write(true).open(&aside).unwrap();
        file.set_modified(old.modified().unwrap()).unwrap();
        fs::rename(&aside, &path).unwrap();
        assert_ne!(digest(&place.open(true), "."), first);
        // The same for a whole folder.
        let second = digest(&place.open(true), ".");
        fs::create_dir(place.path("other")).unwrap();
        fs::write(place.path("other/b"), "Z").unwrap();
        fs::rename(place.path("context/sub"), place.path("gone")).unwrap();
        fs::rename(place.path("other"), place.path("context/sub")).unwrap();
        assert_ne!(digest(&place.open(true), "."), second);
    }

    #[test]
    fn a_clock_that_steps_makes_nothing_stale_believed() {
        let place = Place::new();
        let change = |text: &str| fs::write(place.path("context/a"), text).unwrap();
        digest(&place.open(true), ".");
        assert_eq!(remembered(&place), ["a", "sub/b"]);
        // Set back to before the files changed: that time may come again, so what is known is not believed, nor kept.
        let context = place.open(false);
        let listing = context.list(b"").unwrap();
        assert_eq!(context.recall(&listing, listing.find(b"a").unwrap()), None);
        digest(&context, ".");
        drop(context);
        assert_eq!(remembered(&place), Vec::<String>::new());
        // Set back between the opening and the reading: the clock of the reading counts.
        let mut context = place.open(true);
        context.clock = long_ago;
        digest(&context, ".");
        drop(context);
        assert_eq!(remembered(&place), Vec::<String>::new());
        // Set forward: what was written before has a stamp that no later write gets.
        let first = digest(&place.open(true), ".");
        change("X");
        assert_ne!(digest(&place.open(true), "."), first);
        change("A");
        assert_eq!(digest(&place.open(true), "."), first);
    }

    #[test]
    fn what_others_learnt_meanwhile_is_kept() {
        let place = Place::new();
        let (one, other) = (place.open(true), place.open(true));
        digest(&one, "a");
        digest(&other, "sub/b");
        drop(one);
        drop(other);
        assert_eq!(remembered(&place), ["a", "sub/b"]);
        // Many at once, each with a file of its own.
        for n in 0..8 {
            fs::write(place.path(&format!("context/f{n}")), n.to_string()).unwrap();
        }
        std::thread::scope(|scope| {
            for n in 0..8 {
                let place = &place;
                scope.spawn(move || digest(&place.open(true), &format!("f{n}")));
            }
        });
        assert_eq!(remembered(&place).len(), 10);
        let left = |name: &str| {
            fs::read_dir(place.path("store").join(name))
                .unwrap()
                .count()
        };
        assert_eq!((left("tmp"), left("locks"), left("contexts")), (0, 0, 1));
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
            let error = Context::open(&place.path(name), &place.path("store")).unwrap_err();
            let text = error.to_string();
            assert!(
                text.starts_with("cannot open the build context `"),
                "{text}"
            );
            assert_eq!(error.path, place.path(name));
        }
    }
}
