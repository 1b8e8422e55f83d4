//! Whole trees: removing and measuring them.
//!
//! The trees are image layers: directories that not even their owner may enter, names and depths as hostile as a tar
//! can make them. No path is ever longer than one name here, symlinks are never followed, and descriptors are bounded.

use std::collections::BTreeSet;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, StatxFlags};
use rustix::io::Errno;

use super::{FsError, attempt};

/// Directories held open at once; a subtree deeper than this is first moved up to the top of the tree.
const DEPTH_MAX: u32 = 128;

/// Removes a file or a whole tree; nothing to remove is fine.
pub fn remove_tree(path: &Path) -> Result<(), FsError> {
    attempt("remove", path, || {
        remove_tree_at(CWD, path.as_os_str().as_bytes())
    })
}

/// The same for `name` in an open directory; links on the way to it are the caller's business.
pub(crate) fn remove_tree_at(parent: BorrowedFd<'_>, name: &[u8]) -> Result<(), Errno> {
    match rustix::fs::unlinkat(parent, name, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => return Ok(()),
        Err(Errno::ISDIR | Errno::PERM | Errno::ACCESS) => {}
        Err(errno) => return Err(errno),
    }
    let c_name = CString::new(name).map_err(|_| Errno::INVAL)?;
    let mut removal = Removal {
        top: match open_child(parent, &c_name) {
            Err(Errno::NOENT) => return Ok(()),
            opened => opened?,
        },
        moved: 0,
        progress: 0,
    };
    loop {
        let before = removal.progress;
        let top = rustix::io::fcntl_dupfd_cloexec(&removal.top, 0)?;
        removal.clear(&top, 1)?;
        match rustix::fs::unlinkat(parent, name, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // Deep subtrees were moved up and are left for another pass.
            Err(Errno::NOTEMPTY | Errno::EXIST) if removal.progress > before => {}
            Err(errno) => return Err(errno),
        }
    }
}

struct Removal {
    top: OwnedFd,
    /// Subtrees moved up so far; makes their names.
    moved: u64,
    /// Entries removed or moved.
    progress: u64,
}

impl Removal {
    fn clear(&mut self, dir: &OwnedFd, depth: u32) -> Result<(), Errno> {
        for (name, kind) in entries(dir)? {
            if kind != FileType::Directory {
                match self.unlink(dir, &name, AtFlags::empty()) {
                    Ok(()) => continue,
                    // The listing did not know its type.
                    Err(Errno::ISDIR | Errno::PERM) if kind == FileType::Unknown => {}
                    Err(errno) => return Err(errno),
                }
            }
            match self.unlink(dir, &name, AtFlags::REMOVEDIR) {
                Ok(()) => continue,
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                Err(errno) => return Err(errno),
            }
            let child = match open_child(dir.as_fd(), &name) {
                Err(Errno::NOENT) => continue,
                opened => opened?,
            };
            if depth >= DEPTH_MAX {
                // Changing its parent needs the right to write to it.
                make_writable(&child)?;
                drop(child);
                self.move_up(dir, &name)?;
                continue;
            }
            self.clear(&child, depth + 1)?;
            drop(child);
            match self.unlink(dir, &name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn unlink(&mut self, dir: &OwnedFd, name: &CStr, flags: AtFlags) -> Result<(), Errno> {
        let mut result = rustix::fs::unlinkat(dir, name, flags);
        if result == Err(Errno::ACCESS) {
            make_writable(dir)?;
            result = rustix::fs::unlinkat(dir, name, flags);
        }
        match result {
            Ok(()) => {
                self.progress += 1;
                Ok(())
            }
            // Another sweep is at the same tree.
            Err(Errno::NOENT) => Ok(()),
            Err(errno) => Err(errno),
        }
    }

    fn move_up(&mut self, dir: &OwnedFd, name: &CStr) -> Result<(), Errno> {
        make_writable(&self.top)?;
        loop {
            let to = format!(".longshore-remove-{}", self.moved);
            self.moved += 1;
            let flags = rustix::fs::RenameFlags::NOREPLACE;
            match rustix::fs::renameat_with(dir, name, &self.top, to, flags) {
                Ok(()) => {
                    self.progress += 1;
                    return Ok(());
                }
                Err(Errno::EXIST) => {}
                Err(Errno::NOENT) => return Ok(()),
                Err(Errno::ACCESS) => make_writable(dir)?,
                Err(errno) => return Err(errno),
            }
        }
    }
}

fn make_writable(dir: &OwnedFd) -> Result<(), Errno> {
    rustix::fs::fchmod(dir, Mode::RWXU)
}

/// Opens a directory below another, giving its owner the right to if that is what is missing.
fn open_child(parent: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            rustix::fs::chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags, Mode::empty())
        }
        other => other,
    }
}

fn entries(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut found = Vec::new();
    // Not `read_from`, which opens `.` again and so needs the right to search; the shared offset is rewound.
    let mut listing = Dir::new(rustix::io::fcntl_dupfd_cloexec(dir, 0)?)?;
    listing.rewind();
    for entry in listing {
        let entry = entry?;
        let name = entry.file_name();
        if name != c"." && name != c".." {
            found.push((name.to_owned(), entry.file_type()));
        }
    }
    Ok(found)
}

fn c_string(path: &Path) -> Result<CString, Errno> {
    CString::new(path.as_os_str().as_encoded_bytes()).map_err(|_| Errno::INVAL)
}

/// Inodes already counted, so that hard links cost once.
#[derive(Debug, Default)]
pub struct Inodes(BTreeSet<(u32, u32, u64)>);

impl Inodes {
    /// Nothing counted yet.
    pub fn new() -> Inodes {
        Inodes::default()
    }
}

/// Bytes that a file or tree takes on disk (512 bytes times `st_blocks`), each inode once over all calls with the same
/// `seen`; zero for what is not there.
pub fn disk_usage(path: &Path, seen: &mut Inodes) -> Result<u64, FsError> {
    attempt("measure", path, || {
        let name = c_string(path)?;
        usage(CWD, &name, seen)
    })
}

fn usage(parent: BorrowedFd<'_>, name: &CStr, seen: &mut Inodes) -> Result<u64, Errno> {
    let wanted = StatxFlags::BASIC_STATS;
    let status = match rustix::fs::statx(parent, name, AtFlags::SYMLINK_NOFOLLOW, wanted) {
        Err(Errno::NOENT) => return Ok(0),
        other => other?,
    };
    let is_dir = FileType::from_raw_mode(status.stx_mode.into()) == FileType::Directory;
    if !is_dir && status.stx_nlink > 1 {
        let inode = (status.stx_dev_major, status.stx_dev_minor, status.stx_ino);
        if !seen.0.insert(inode) {
            return Ok(0);
        }
    }
    let mut bytes = status.stx_blocks * 512;
    if is_dir {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
            // Measuring changes no mode; what may not be looked into counts as the directory alone.
            Err(Errno::ACCESS | Errno::NOENT) => return Ok(bytes),
            opened => opened?,
        };
        for (child, _) in entries(&dir)? {
            bytes += usage(dir.as_fd(), &child, seen)?;
        }
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn removes_what_may_not_be_entered() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir_all(top.join("a/b")).unwrap();
        std::fs::write(top.join("a/b/file"), "x").unwrap();
        std::os::unix::fs::symlink("/etc", top.join("a/link")).unwrap();
        for closed in ["a/b", "a", ""] {
            let mode = std::fs::Permissions::from_mode(0o000);
            std::fs::set_permissions(top.join(closed), mode).unwrap();
        }
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert!(Path::new("/etc").exists());
        remove_tree(&top).unwrap();
    }

    #[test]
    fn removes_trees_deeper_than_any_path() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let name = "d".repeat(200);
        let mut current = super::super::open_dir(&top).unwrap();
        for _ in 0..700 {
            rustix::fs::mkdirat(&current, name.as_str(), Mode::RWXU).unwrap();
            current = open_child(current.as_fd(), &CString::new(name.as_str()).unwrap()).unwrap();
        }
        drop(current);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
    }

    #[test]
    fn measures_hard_links_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("d")).unwrap();
        std::fs::write(path("d/a"), vec![1; 64 * 1024]).unwrap();
        let mut seen = Inodes::new();
        let once = disk_usage(&path("d"), &mut seen).unwrap();
        assert!(once >= 64 * 1024, "{once}");
        std::fs::hard_link(path("d/a"), path("d/b")).unwrap();
        assert_eq!(disk_usage(&path("d"), &mut Inodes::new()).unwrap(), once);
        assert_eq!(disk_usage(&path("nothing"), &mut Inodes::new()).unwrap(), 0);
    }
}
