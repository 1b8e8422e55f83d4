//! Files and directories in the making.
//!
//! Each lies in the store's `tmp/` and is held by an exclusive `flock` for as long as its process lives, so that another
//! process can tell those which a killed one left behind ([`sweep`]). What garbage collection moves aside to be removed
//! lies there too, unlocked: if it is interrupted, the next sweep goes on with it. Files that are worth going on with have
//! names of their own, and stay for whoever wants that ([`TempFile::resume`]).

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::OFlags;

use super::lock::{is_named, try_lock};
use super::{FsError, attempt, remove_tree};

/// How the names of files begin that somebody may go on with.
const RESUMABLE: &str = "part-";

/// What a file that is kept for `name` is called.
pub(crate) fn resumable_name(name: &str) -> String {
    format!("{RESUMABLE}{name}")
}

/// A file that has no public name yet; removed when dropped unless it was published, or can be resumed.
#[derive(Debug)]
pub struct TempFile {
    file: File,
    path: PathBuf,
    stays: bool,
}

impl TempFile {
    /// Makes an empty file in `tmp`.
    pub fn create(tmp: &Path) -> Result<TempFile, FsError> {
        loop {
            let path = tmp.join(fresh_name("file"));
            let opened = attempt("create", &path, || {
                std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create_new(true)
                    .mode(0o644)
                    .open(&path)
            });
            let file = match opened {
                Ok(file) => file,
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            };
            let temp = TempFile {
                file,
                path,
                stays: false,
            };
            // A sweep may have come between creation and lock, taken it for stale and removed it.
            if try_lock(&temp.file, &temp.path)? && is_named(&temp.file, &temp.path)? {
                return Ok(temp);
            }
        }
    }

    /// The file in `tmp` that is kept for `name`, with what was written to it before and at its beginning, or a new one;
    /// `None` where somebody writes it now. It stays when dropped, until [`TempFile::discard`] or a sweep.
    pub fn resume(tmp: &Path, name: &str) -> Result<Option<TempFile>, FsError> {
        let path = tmp.join(resumable_name(name));
        loop {
            let file = attempt("open", &path, || {
                std::fs::OpenOptions::new()
                    .read(true)
                    .write(true)
                    .create(true)
                    .truncate(false)
                    .mode(0o644)
                    .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
                    .open(&path)
            })?;
            if !try_lock(&file, &path)? {
                return Ok(None);
            }
            if is_named(&file, &path)? {
                let stays = true;
                return Ok(Some(TempFile { file, path, stays }));
            }
        }
    }

    /// Removes it.
    pub fn discard(mut self) {
        self.stays = false;
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), FsError> {
        attempt("write", &self.path, || self.file.write_all(bytes))
    }

    /// The open file.
    pub fn file(&self) -> &File {
        &self.file
    }

    /// Another handle on the open file, with the same position.
    pub fn reopen(&self) -> Result<File, FsError> {
        attempt("open", &self.path, || self.file.try_clone())
    }

    /// Where it lies for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name, replacing a file that has it.
    pub fn publish(mut self, to: &Path) -> Result<(), FsError> {
        super::rename(&self.path, to)?;
        self.stays = true;
        Ok(())
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.stays
            && let Err(error) = super::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a temporary file stays until the next sweep");
        }
    }
}

/// A directory that has no public name yet; removed with all it holds when dropped unless it was published.
#[derive(Debug)]
pub struct TempDir {
    // Held for its `flock`.
    _dir: File,
    path: PathBuf,
    published: bool,
}

impl TempDir {
    /// Makes an empty directory, mode 0700, in `tmp`.
    pub fn create(tmp: &Path) -> Result<TempDir, FsError> {
        loop {
            let path = tmp.join(fresh_name("dir"));
            let made = attempt("create", &path, || {
                std::fs::DirBuilder::new().mode(0o700).create(&path)
            });
            match made {
                Ok(()) => {}
                Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(error),
            }
            let dir = match super::open_dir(&path) {
                Ok(dir) => File::from(dir),
                Err(error) if error.is_not_found() => continue,
                Err(error) => return Err(error),
            };
            let temp = TempDir {
                _dir: dir,
                path,
                published: false,
            };
            if try_lock(&temp._dir, &temp.path)? && is_named(&temp._dir, &temp.path)? {
                return Ok(temp);
            }
        }
    }

    /// Where it lies for now.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Gives it its name unless that is taken; tells whether it did. If not, the directory is removed.
    pub fn publish(mut self, to: &Path) -> Result<bool, FsError> {
        self.published = super::rename_if_free(&self.path, to)?;
        Ok(self.published)
    }

    /// Lets go of it: what lies at its path now, returned, belongs to nobody.
    pub(crate) fn leave(mut self) -> PathBuf {
        self.published = true;
        self.path.clone()
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        if !self.published
            && let Err(error) = remove_tree(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "a temporary directory stays until the next sweep");
        }
    }
}

/// A name in `tmp` that nobody has used: `KIND-PID-START-COUNT`.
pub(crate) fn fresh_name(kind: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let now = crate::clock::now_micros();
    format!("{kind}-{}-{now:x}-{count}", std::process::id())
}

/// Names in `tmp` that no live process holds.
pub fn stale(tmp: &Path) -> Result<Vec<PathBuf>, FsError> {
    let mut found = Vec::new();
    for name in super::list(tmp)? {
        let path = tmp.join(name);
        if hold_if_stale(&path)?.is_some() {
            found.push(path);
        }
    }
    Ok(found)
}

/// The same without files that somebody may go on with, unless those were last written before `before`, in microseconds
/// since 1970.
pub(crate) fn stale_before(tmp: &Path, before: i64) -> Result<Vec<PathBuf>, FsError> {
    let mut found = Vec::new();
    for path in stale(tmp)? {
        let name = path.file_name().and_then(|name| name.to_str());
        let is_resumable = name.is_some_and(|name| name.starts_with(RESUMABLE));
        if !is_resumable || super::modified_micros(&path)?.is_none_or(|when| when < before) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether nobody holds what lies at `path`, or nothing lies there.
pub(crate) fn is_stale(path: &Path) -> Result<bool, FsError> {
    Ok(hold_if_stale(path)?.is_some() || !super::exists(path)?)
}

/// Removes one of [`stale`]'s finds, unless somebody took it since.
pub fn sweep(path: &Path) -> Result<(), FsError> {
    match hold_if_stale(path)? {
        Some(_held) => remove_tree(path),
        None => Ok(()),
    }
}

pub(crate) fn hold_if_stale(path: &Path) -> Result<Option<File>, FsError> {
    let open = || {
        attempt("open", path, || {
            std::fs::OpenOptions::new()
                .read(true)
                .custom_flags((OFlags::NOFOLLOW | OFlags::NONBLOCK).bits().cast_signed())
                .open(path)
        })
    };
    let file = match open() {
        // What was moved aside has the mode that an image gave it.
        Err(error) if error.source.kind() == io::ErrorKind::PermissionDenied => {
            let mode = std::fs::Permissions::from_mode(0o700);
            super::optional(attempt("chmod", path, || {
                std::fs::set_permissions(path, mode)
            }))?;
            open()
        }
        other => other,
    };
    let Some(file) = super::optional(file)? else {
        return Ok(None);
    };
    Ok(try_lock(&file, path)?.then_some(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn live_ones_are_kept_and_stale_ones_swept() {
        let tmp = tempfile::tempdir().unwrap();
        let file = TempFile::create(tmp.path()).unwrap();
        let dir = TempDir::create(tmp.path()).unwrap();
        let dead = tmp.path().join("file-1-0-0");
        std::fs::write(&dead, "x").unwrap();
        let closed = tmp.path().join("dir-1-0-0");
        std::fs::create_dir(&closed).unwrap();
        std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o000)).unwrap();
        assert_eq!(stale(tmp.path()).unwrap(), [closed, dead]);
        for path in stale(tmp.path()).unwrap() {
            sweep(&path).unwrap();
        }
        assert!(file.path().exists() && dir.path().exists());
        drop((file, dir));
        assert!(super::super::list(tmp.path()).unwrap().is_empty());
    }

    #[test]
    fn some_can_be_resumed() {
        let tmp = tempfile::tempdir().unwrap();
        let resume = || TempFile::resume(tmp.path(), "x").unwrap();
        let mut file = resume().unwrap();
        file.append(b"half").unwrap();
        assert!(resume().is_none(), "somebody writes it");
        let path = file.path().to_owned();
        drop(file);
        assert_eq!(stale(tmp.path()).unwrap(), std::slice::from_ref(&path));
        assert!(stale_before(tmp.path(), 0).unwrap().is_empty());
        assert_eq!(stale_before(tmp.path(), i64::MAX).unwrap(), [path]);
        let file = resume().unwrap();
        assert_eq!(file.file().metadata().unwrap().len(), 4);
        file.discard();
        assert!(super::super::list(tmp.path()).unwrap().is_empty());
    }

    #[test]
    fn publishing_keeps() {
        let tmp = tempfile::tempdir().unwrap();
        let mut file = TempFile::create(tmp.path()).unwrap();
        file.append(b"hello").unwrap();
        file.publish(&tmp.path().join("a")).unwrap();
        let dir = TempDir::create(tmp.path()).unwrap();
        std::fs::write(dir.path().join("x"), "1").unwrap();
        assert!(dir.publish(&tmp.path().join("d")).unwrap());
        let again = TempDir::create(tmp.path()).unwrap();
        assert!(!again.publish(&tmp.path().join("d")).unwrap());
        assert_eq!(super::super::list(tmp.path()).unwrap(), ["a", "d"]);
    }
}
