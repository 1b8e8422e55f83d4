//! The one door to the file system: what the store writes, renames, locks and removes goes through here.
//!
//! | file | what |
//! |---|---|
//! | this one | reading with a bound, publishing by rename, opening beneath a directory, `syncfs` |
//! | [`lock`] | `flock` guards whose file may be removed by its last holder |
//! | [`temp`] | files and directories in the making, held by a lock so that a stale one can be told |
//! | [`tree`] | removing and measuring whole trees, whatever their modes and depth |
//!
//! Nothing is written in place. A file or directory is made in the store's `tmp/` and renamed to its name, which appears
//! only after everything it refers to. Nothing here calls `fsync`: see [`crate::Store::sync`].
//!
//! In tests every operation passes the `fault` seam, which can make the Nth one fail.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags, RenameFlags, ResolveFlags};

pub mod lock;
pub mod temp;
pub mod tree;

pub use lock::{Lock, Shared};
pub(crate) use temp::resumable_name;
pub use temp::{TempDir, TempFile};
pub(crate) use tree::remove_tree_at;
pub use tree::{Inodes, disk_usage, remove_tree};

/// A file-system operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} `{}`", path.display())]
#[non_exhaustive]
pub struct FsError {
    /// What was tried: `create`, `read`, `rename`, …
    pub operation: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

impl FsError {
    /// Whether the path was not there.
    pub fn is_not_found(&self) -> bool {
        self.source.kind() == io::ErrorKind::NotFound
    }

    /// Whether the disk, or the user's share of it, is full.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

/// Does one operation and says on what it failed.
pub(crate) fn attempt<T, E: Into<io::Error>>(
    operation: &'static str,
    path: &Path,
    run: impl FnOnce() -> Result<T, E>,
) -> Result<T, FsError> {
    fault::point()
        .and_then(|()| run().map_err(Into::into))
        .map_err(|source| FsError {
            operation,
            path: path.to_owned(),
            source,
        })
}

/// Turns "it is not there" into `None`.
pub(crate) fn optional<T>(result: Result<T, FsError>) -> Result<Option<T>, FsError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

/// Makes a directory and its missing parents, each with mode 0700; one that exists is left as it is.
pub fn create_dir(path: &Path) -> Result<(), FsError> {
    attempt("create", path, || {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
    })
}

/// Makes a directory and its missing parents with the mode that the user's mask leaves: for what is not the store's.
pub fn create_shared_dir(path: &Path) -> Result<(), FsError> {
    attempt("create", path, || std::fs::create_dir_all(path))
}

/// Opens a file for reading.
pub fn open(path: &Path) -> Result<File, FsError> {
    attempt("open", path, || {
        std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NOFOLLOW.bits().cast_signed())
            .open(path)
    })
}

/// Reads a file of at most `bytes_max` bytes; a longer one is an error.
pub fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, FsError> {
    let file = open(path)?;
    attempt("read", path, || read_bounded(file, bytes_max))
}

/// Reads to the end, which must come within `bytes_max` bytes.
pub(crate) fn read_bounded(from: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max.saturating_add(1))
        .read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}

/// Size in bytes of a regular file; `None` where there is none.
pub fn file_size(path: &Path) -> Result<Option<u64>, FsError> {
    let metadata = optional(attempt("stat", path, || std::fs::symlink_metadata(path)))?;
    Ok(metadata.filter(|m| m.is_file()).map(|m| m.size()))
}

/// Whether anything has the name `path`.
pub fn exists(path: &Path) -> Result<bool, FsError> {
    let metadata = attempt("stat", path, || std::fs::symlink_metadata(path));
    Ok(optional(metadata)?.is_some())
}

/// Whether a directory stands at `path`.
pub fn is_dir(path: &Path) -> Result<bool, FsError> {
    let metadata = optional(attempt("stat", path, || std::fs::symlink_metadata(path)))?;
    Ok(metadata.is_some_and(|m| m.is_dir()))
}

/// When the inode at `path` last changed (a rename changes it too), in microseconds since 1970; `None` where there is
/// nothing.
pub(crate) fn changed_micros(path: &Path) -> Result<Option<i64>, FsError> {
    let metadata = optional(attempt("stat", path, || std::fs::symlink_metadata(path)))?;
    Ok(metadata.map(|m| m.ctime() * 1_000_000 + m.ctime_nsec() / 1_000))
}

/// When the content of `path` last changed, in microseconds since 1970; `None` where there is nothing.
pub(crate) fn modified_micros(path: &Path) -> Result<Option<i64>, FsError> {
    let metadata = optional(attempt("stat", path, || std::fs::symlink_metadata(path)))?;
    Ok(metadata.map(|m| m.mtime() * 1_000_000 + m.mtime_nsec() / 1_000))
}

/// Names in a directory, sorted; empty where there is no such directory.
pub fn list(path: &Path) -> Result<Vec<String>, FsError> {
    let listed = optional(attempt("list", path, || {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.file_name()))
            .collect::<io::Result<Vec<_>>>()
    }))?;
    let mut names: Vec<String> = listed
        .unwrap_or_default()
        .into_iter()
        // The store writes ASCII names only; another's file is not its business.
        .filter_map(|name| name.into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// What is in a directory, whatever it is called, by name; nothing where there is no such directory.
pub(crate) fn entries(path: &Path) -> Result<Vec<PathBuf>, FsError> {
    let listed = optional(attempt("list", path, || {
        std::fs::read_dir(path)?
            .map(|entry| Ok(entry?.path()))
            .collect::<io::Result<Vec<_>>>()
    }))?;
    let mut paths = listed.unwrap_or_default();
    paths.sort_unstable();
    Ok(paths)
}

/// Bytes that a directory itself takes on disk, without what is in it.
pub(crate) fn own_usage(path: &Path) -> Result<u64, FsError> {
    let metadata = optional(attempt("measure", path, || std::fs::symlink_metadata(path)))?;
    Ok(metadata.map_or(0, |metadata| metadata.blocks() * 512))
}

/// Renames, replacing a file that has the new name.
pub fn rename(from: &Path, to: &Path) -> Result<(), FsError> {
    attempt("rename", from, || rustix::fs::rename(from, to))
}

/// Renames unless the new name is taken; tells whether it did.
pub fn rename_if_free(from: &Path, to: &Path) -> Result<bool, FsError> {
    let renamed = attempt("rename", from, || {
        match rustix::fs::renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
            // The file system does not know the flag. A directory never replaces one that is not empty, and a file
            // here is only ever replaced by its equal.
            Err(rustix::io::Errno::INVAL) => rustix::fs::rename(from, to),
            other => other,
        }
    });
    match renamed {
        Ok(()) => Ok(true),
        Err(error)
            if matches!(
                error.source.kind(),
                io::ErrorKind::AlreadyExists | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}

/// Gives a file a second name unless that is taken; tells whether it did.
pub(crate) fn link_if_free(from: &Path, to: &Path) -> Result<bool, FsError> {
    match attempt("link", to, || std::fs::hard_link(from, to)) {
        Ok(()) => Ok(true),
        Err(error) if error.source.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes a file; tells whether there was one.
pub fn remove_file(path: &Path) -> Result<bool, FsError> {
    Ok(optional(attempt("remove", path, || std::fs::remove_file(path)))?.is_some())
}

/// Writes a file aside in `tmp` and renames it to `path`.
pub fn write_atomic(tmp: &Path, path: &Path, bytes: &[u8]) -> Result<(), FsError> {
    let mut file = TempFile::create(tmp)?;
    file.append(bytes)?;
    file.publish(path)
}

/// Writes out everything that was written to the file system holding `path`.
pub fn syncfs(path: &Path) -> Result<(), FsError> {
    let dir = open_dir(path)?;
    attempt("sync", path, || rustix::fs::syncfs(&dir))
}

/// Opens a directory, for use as the root of [`open_beneath`].
pub fn open_dir(path: &Path) -> Result<OwnedFd, FsError> {
    attempt("open", path, || {
        rustix::fs::open(
            path,
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )
    })
}

/// Opens `path` below `dir`, which no `..` and no symlink can leave; symlinks are refused wherever they are.
pub fn open_beneath(
    dir: impl AsFd,
    path: impl AsRef<OsStr>,
    flags: OFlags,
    mode: Mode,
) -> Result<OwnedFd, FsError> {
    let path = Path::new(path.as_ref());
    attempt("open", path, || {
        rustix::fs::openat2(
            dir,
            path,
            flags | OFlags::CLOEXEC,
            mode,
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS,
        )
    })
}

/// Size of a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiskSpace {
    /// Bytes in all.
    pub total: u64,
    /// Bytes that are free for whoever is not root.
    pub free: u64,
}

/// The size of the disk that `path` is on.
pub(crate) fn disk_space(path: &Path) -> Result<DiskSpace, FsError> {
    let status = attempt("measure the disk of", path, || rustix::fs::statvfs(path))?;
    Ok(DiskSpace {
        total: status.f_blocks.saturating_mul(status.f_frsize),
        free: status.f_bavail.saturating_mul(status.f_frsize),
    })
}

/// Names the file system at `path` if it is one on which several machines' locks cannot be trusted.
pub(crate) fn network_kind(path: &Path) -> Result<Option<&'static str>, FsError> {
    let status = attempt("stat", path, || rustix::fs::statfs(path))?;
    // Magic numbers of linux/magic.h; the type's width and sign differ between architectures.
    Ok(match i128::from(status.f_type) & 0xffff_ffff {
        0x6969 => Some("NFS"),
        0xff53_4d42 | 0xfe53_4d42 | 0x517b => Some("SMB"),
        0x0102_1997 => Some("9p"),
        _ => None,
    })
}

/// Fault injection: in tests the Nth operation of a thread can be made to fail.
pub(crate) mod fault {
    #[cfg(not(test))]
    #[inline]
    pub(crate) fn point() -> std::io::Result<()> {
        Ok(())
    }

    #[cfg(test)]
    pub(crate) use plan::{Plan, point, with_plan};

    #[cfg(test)]
    mod plan {
        use std::cell::Cell;
        use std::io;

        /// What is to fail.
        #[derive(Clone, Copy)]
        pub(crate) struct Plan {
            /// Operations that still succeed.
            pub(crate) after: u64,
            /// What the others fail with.
            pub(crate) errno: rustix::io::Errno,
            /// Whether only one fails, or all from then on (a full disk).
            pub(crate) once: bool,
        }

        thread_local! {
            static PLAN: Cell<Option<Plan>> = const { Cell::new(None) };
        }

        pub(crate) fn point() -> io::Result<()> {
            PLAN.with(|cell| {
                let Some(mut plan) = cell.get() else {
                    return Ok(());
                };
                if plan.after > 0 {
                    plan.after -= 1;
                    cell.set(Some(plan));
                    return Ok(());
                }
                if plan.once {
                    cell.set(None);
                }
                Err(plan.errno.into())
            })
        }

        /// Runs `work` on this thread under a plan; tells whether the plan struck, beside what `work` returned.
        pub(crate) fn with_plan<T>(plan: Plan, work: impl FnOnce() -> T) -> (bool, T) {
            PLAN.with(|cell| cell.set(Some(plan)));
            let result = work();
            let left = PLAN.with(Cell::take);
            let struck = left.is_none_or(|plan| plan.after == 0);
            (struck, result)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_with_a_bound() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        write_atomic(dir.path(), &path, b"12345").unwrap();
        assert_eq!(read(&path, 5).unwrap(), b"12345");
        let error = read(&path, 4).unwrap_err();
        assert_eq!(error.source.kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(list(dir.path()).unwrap(), ["a"]);
    }

    #[test]
    fn opens_only_beneath() {
        let dir = tempfile::tempdir().unwrap();
        write_atomic(dir.path(), &dir.path().join("inside"), b"x").unwrap();
        create_dir(&dir.path().join("root")).unwrap();
        std::os::unix::fs::symlink("../inside", dir.path().join("root/link")).unwrap();
        let root = open_dir(&dir.path().join("root")).unwrap();
        for path in ["../inside", "link", "/etc/passwd", "missing"] {
            assert!(
                open_beneath(&root, path, OFlags::RDONLY, Mode::empty()).is_err(),
                "{path}"
            );
        }
        let above = open_dir(dir.path()).unwrap();
        open_beneath(&above, "inside", OFlags::RDONLY, Mode::empty()).unwrap();
        assert!(open_beneath(&above, "root/link", OFlags::RDONLY, Mode::empty()).is_err());
    }

    #[test]
    fn renames_only_to_free_names() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        for name in ["a/x", "b/x"] {
            create_dir(&at(name)).unwrap();
        }
        assert!(!rename_if_free(&at("a"), &at("b")).unwrap());
        assert!(rename_if_free(&at("a"), &at("c")).unwrap());
        assert!(
            rename_if_free(&at("a"), &at("d"))
                .unwrap_err()
                .is_not_found()
        );
    }

    #[test]
    fn faults_strike_once_or_for_good() {
        let dir = tempfile::tempdir().unwrap();
        let write = || create_dir(&dir.path().join("x"));
        let plan = |once| fault::Plan {
            after: 1,
            errno: rustix::io::Errno::NOSPC,
            once,
        };
        let three = || [write().is_ok(), write().is_ok(), write().is_ok()];
        assert_eq!(
            fault::with_plan(plan(true), three),
            (true, [true, false, true])
        );
        assert_eq!(
            fault::with_plan(plan(false), three),
            (true, [true, false, false])
        );
        let error = fault::with_plan(
            fault::Plan {
                after: 0,
                ..plan(true)
            },
            write,
        )
        .1;
        assert!(error.unwrap_err().is_full());
    }
}
