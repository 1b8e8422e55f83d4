//! `flock` guards. The lock dies with its process, whatever kills it.
//!
//! A lock file is removed by its last holder, so `locks/` does not fill up. Whoever gets the lock therefore checks that the
//! file it locked is still the one that has the name, and begins again if not.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};
use rustix::io::Errno;

use super::{FsError, attempt};

/// An exclusive lock on a file of its own; the file goes when the guard does.
#[derive(Debug)]
pub struct Lock {
    // Held for its `flock`.
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Waits for the lock.
    pub fn exclusive(path: &Path) -> Result<Lock, FsError> {
        loop {
            let file = open(path)?;
            attempt("lock", path, || {
                rustix::io::retry_on_intr(|| {
                    rustix::fs::flock(&file, FlockOperation::LockExclusive)
                })
            })?;
            if is_named(&file, path)? {
                return Ok(Lock {
                    file,
                    path: path.to_owned(),
                });
            }
        }
    }

    /// Takes the lock if it is free.
    pub fn try_exclusive(path: &Path) -> Result<Option<Lock>, FsError> {
        loop {
            let file = open(path)?;
            if !try_lock(&file, path)? {
                return Ok(None);
            }
            if is_named(&file, path)? {
                return Ok(Some(Lock {
                    file,
                    path: path.to_owned(),
                }));
            }
        }
    }
}

impl Lock {
    /// Writes this process's id into the file, for others to name whom they wait for.
    pub fn sign(&self) -> Result<(), FsError> {
        self.write(std::process::id().to_string().as_bytes())
    }

    /// Replaces what the file holds, for others to read.
    pub fn write(&self, bytes: &[u8]) -> Result<(), FsError> {
        attempt("write", &self.path, || {
            self.file.set_len(0)?;
            self.file.write_all_at(bytes, 0)
        })
    }
}

impl Lock {
    /// Gives the lock to whoever holds what is returned: it ends with the last copy, and its file stays then.
    pub(crate) fn hand_over(self) -> Result<OwnedFd, FsError> {
        let file = attempt("copy the handle of", &self.path, || self.file.try_clone())?;
        // Dropping it would unlock it for all.
        std::mem::forget(self);
        Ok(file.into())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // While the lock is held: whoever waits on this file finds it nameless and begins again.
        if let Err(error) = super::remove_file(&self.path) {
            tracing::debug!(path = %self.path.display(), %error, "a lock file stays");
        }
        let _ = rustix::fs::flock(&self.file, FlockOperation::Unlock);
    }
}

/// A lock that many may hold at once, or one alone; its file stays.
#[derive(Debug)]
pub struct Shared {
    // Held for its `flock`.
    _file: File,
}

impl Shared {
    /// Waits until nobody holds it alone.
    pub fn lock(path: &Path) -> Result<Shared, FsError> {
        Shared::wait(path, FlockOperation::LockShared)
    }

    /// Waits until nobody else holds it.
    pub fn lock_alone(path: &Path) -> Result<Shared, FsError> {
        Shared::wait(path, FlockOperation::LockExclusive)
    }

    fn wait(path: &Path, operation: FlockOperation) -> Result<Shared, FsError> {
        let file = open(path)?;
        attempt("lock", path, || {
            rustix::io::retry_on_intr(|| rustix::fs::flock(&file, operation))
        })?;
        Ok(Shared { _file: file })
    }
}

/// The processes that hold a `flock` on a file or folder, in order, as far as the kernel shows them.
pub(crate) fn holders(path: &Path) -> Result<Vec<u32>, FsError> {
    let status = attempt("look at", path, || rustix::fs::stat(path))?;
    let (major, minor) = (
        rustix::fs::major(status.st_dev),
        rustix::fs::minor(status.st_dev),
    );
    let file = format!("{major:02x}:{minor:02x}:{}", status.st_ino);
    let table = Path::new("/proc/locks");
    let text = attempt("read", table, || std::fs::read_to_string(table))?;
    let mut holders: Vec<u32> = text
        .lines()
        .filter_map(|line| {
            // `1: FLOCK  ADVISORY  WRITE 1234 08:01:131 0 EOF`; who waits has `->` before the kind.
            let mut fields = line.split_whitespace().skip(1);
            let kind = fields.next()?;
            let pid = fields.nth(2)?;
            let is_it = kind == "FLOCK" && fields.next()? == file;
            is_it.then(|| pid.parse().ok())?
        })
        .collect();
    holders.sort_unstable();
    holders.dedup();
    Ok(holders)
}

fn open(path: &Path) -> Result<File, FsError> {
    attempt("open", path, || {
        std::fs::OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
    })
}

/// Locks a file that is open, once nobody else holds it.
pub(crate) fn lock(file: &File, path: &Path) -> Result<(), FsError> {
    attempt("lock", path, || {
        rustix::io::retry_on_intr(|| rustix::fs::flock(file, FlockOperation::LockExclusive))
    })
}

/// Locks a file or directory that is open, unless somebody else holds it.
pub(super) fn try_lock(file: &File, path: &Path) -> Result<bool, FsError> {
    attempt("lock", path, || {
        match rustix::fs::flock(file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(true),
            Err(Errno::WOULDBLOCK) => Ok(false),
            Err(errno) => Err(errno),
        }
    })
}

/// Whether `path` names the file that is open.
pub(crate) fn is_named(file: &File, path: &Path) -> Result<bool, FsError> {
    attempt("stat", path, || {
        let open = file.metadata()?;
        match std::fs::symlink_metadata(path) {
            Ok(named) => Ok(named.ino() == open.ino() && named.dev() == open.dev()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn excludes_and_cleans_up() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let lock = Lock::try_exclusive(&path).unwrap().unwrap();
        assert!(Lock::try_exclusive(&path).unwrap().is_none());
        drop(lock);
        assert!(!path.exists());
        drop(Lock::try_exclusive(&path).unwrap().unwrap());
    }

    #[test]
    fn one_at_a_time_although_the_file_comes_and_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("key");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let _lock = Lock::exclusive(&path).unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        inside.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(!path.exists());
    }
}
