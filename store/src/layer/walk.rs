//! Walking a directory that nobody else changes, in the order of layers.
//!
//! One directory is open at a time, so depth costs no file handles and no stack.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{
    AtFlags, Dir, FileType, Mode, OFlags, Stat, StatxAttributes, StatxFlags, XattrFlags,
};
use rustix::io::Errno;

use super::entry::{OPAQUE, PATH_BYTES_MAX, WHITEOUT, read_xattr};

/// One entry as it lies on disk.
#[derive(Debug)]
pub(crate) struct Found {
    /// Path below the root, without a leading slash.
    pub path: Vec<u8>,
    pub stat: Stat,
}

impl Found {
    pub(crate) fn file_type(&self) -> FileType {
        FileType::from_raw_mode(self.stat.st_mode)
    }

    /// Whether it says that a path of a lower layer is gone.
    pub(crate) fn is_whiteout(&self) -> bool {
        is_whiteout(&self.stat)
    }
}

/// Whether `stat` is overlayfs's mark for a removed path: a character device 0/0.
pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// What is called `name` in an open directory of a layer. Whiteouts look the same whatever form they have on disk.
pub(crate) fn stat_at(directory: impl AsFd, name: &[u8]) -> Result<Stat, Errno> {
    let mut stat = rustix::fs::statat(&directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
    let may_be_mark = FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
        && stat.st_size == 0
        && stat.st_mode & 0o7777 == MARK_MODE.as_raw_mode();
    if may_be_mark && is_mark(&directory, name)? {
        stat.st_mode = FileType::CharacterDevice.as_raw_mode();
        stat.st_rdev = 0;
    }
    Ok(stat)
}

/// The mode of a file that stands for a whiteout: few other empty files have it.
const MARK_MODE: Mode = Mode::RUSR;

/// Whether an empty file is a whiteout in its second form, which overlayfs knows too.
fn is_mark(directory: impl AsFd, name: &[u8]) -> Result<bool, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
    Ok(read_xattr(file, WHITEOUT.as_bytes())?.is_some())
}

/// Makes a whiteout: a character device 0/0, which everybody may make on file systems of the usual kind. overlayfs itself, as a
/// container's root is, takes none; there it is an empty file with overlayfs's attribute (Linux 6.7).
pub(crate) fn make_whiteout(directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let kind = FileType::CharacterDevice;
    match rustix::fs::mknodat(&directory, name, kind, Mode::empty(), 0) {
        Err(Errno::PERM) => make_mark(&directory, name),
        made => made,
    }
}

fn make_mark(directory: impl AsFd, name: &[u8]) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, name, flags, MARK_MODE)?;
    rustix::fs::fchmod(&file, MARK_MODE)?;
    rustix::fs::fsetxattr(&file, WHITEOUT, b"y", XattrFlags::empty())?;
    // overlayfs looks for such files only where this says that there are some. An opaque directory needs none.
    match rustix::fs::fsetxattr(&directory, OPAQUE, b"x", XattrFlags::CREATE) {
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// What went wrong where.
#[derive(Debug)]
pub(crate) struct WalkError {
    pub path: Vec<u8>,
    pub errno: Errno,
}

/// What of a tree is visited that others have mounted there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mounts {
    /// All of it.
    All,
    /// What lies on disk: not what the kernel shows of itself, such as `/proc`. The directory itself is.
    OnDisk,
    /// Nothing: the directories that something is mounted on, and not the files.
    None,
}

/// Every entry below `root`, parents before children and siblings sorted by their names' bytes.
pub(crate) fn walk(root: BorrowedFd<'_>) -> Result<Vec<Found>, WalkError> {
    walk_with(root, Mounts::All)
}

/// As [`walk`], but for what is mounted.
pub(crate) fn walk_with(root: BorrowedFd<'_>, mounts: Mounts) -> Result<Vec<Found>, WalkError> {
    let mut found = Vec::new();
    // Names still to visit, last first, as (path, stat); a directory's children go on top when it is visited.
    let mut pending: Vec<Found> = children(root, b"", mounts)?;
    pending.reverse();
    while let Some(next) = pending.pop() {
        if next.file_type() == FileType::Directory {
            let from = pending.len();
            pending.extend(children(root, &next.path, mounts)?);
            pending[from..].reverse();
        }
        found.push(next);
    }
    Ok(found)
}

fn children(root: BorrowedFd<'_>, path: &[u8], mounts: Mounts) -> Result<Vec<Found>, WalkError> {
    let failed = |errno| WalkError {
        path: path.to_vec(),
        errno,
    };
    let directory = open_directory(root, path).map_err(failed)?;
    if !path.is_empty() && is_left_out(&directory, mounts).map_err(failed)? {
        return Ok(Vec::new());
    }
    let mut names = names(&directory).map_err(failed)?;
    names.sort_unstable();
    let mut children = Vec::with_capacity(names.len());
    for name in names {
        if mounts == Mounts::None && is_mounted_file(&directory, &name) {
            continue;
        }
        let stat = stat_at(&directory, &name);
        let path = join(path, &name);
        if path.len() > PATH_BYTES_MAX {
            return Err(WalkError {
                path,
                errno: Errno::NAMETOOLONG,
            });
        }
        match stat {
            Ok(stat) => children.push(Found { path, stat }),
            Err(errno) => return Err(WalkError { path, errno }),
        }
    }
    Ok(children)
}

/// Whether what is in a directory is not visited.
fn is_left_out(directory: &OwnedFd, mounts: Mounts) -> Result<bool, Errno> {
    /// From the kernel's `magic.h`: proc, sysfs, both cgroups, devpts, mqueue.
    const OF_THE_KERNEL: [u64; 6] = [
        0x9fa0,
        0x6265_6572,
        0x27_e0eb,
        0x6367_7270,
        0x1cd1,
        0x1980_0202,
    ];
    match mounts {
        Mounts::All => Ok(false),
        Mounts::OnDisk => {
            let kind = rustix::fs::fstatfs(directory)?.f_type;
            Ok(OF_THE_KERNEL.contains(&kind.cast_unsigned()))
        }
        Mounts::None => Ok(is_mount(directory, b"", AtFlags::EMPTY_PATH)),
    }
}

fn is_mounted_file(directory: &OwnedFd, name: &[u8]) -> bool {
    let flags = AtFlags::SYMLINK_NOFOLLOW;
    is_mount(directory, name, flags)
        && rustix::fs::statat(directory, name, flags)
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
}

fn is_mount(directory: &OwnedFd, name: &[u8], flags: AtFlags) -> bool {
    rustix::fs::statx(directory, name, flags, StatxFlags::TYPE)
        .is_ok_and(|statx| statx.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Opens a directory below `root` for reading; the empty path is the root.
pub(crate) fn open_directory(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat(
        root,
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

/// The names in an open directory, without `.` and `..`, in no order.
pub(crate) fn names(directory: impl AsFd) -> Result<Vec<Vec<u8>>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// `parent/name`, or `name` in the root.
pub(crate) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    if parent.is_empty() {
        return name.to_vec();
    }
    [parent, b"/", name].concat()
}

/// The parent's path and the last name.
pub(crate) fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whiteouts_look_the_same_in_both_forms() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().as_os_str().as_encoded_bytes();
        let fd = open_directory(rustix::fs::CWD, path).unwrap();
        make_whiteout(&fd, b"device").unwrap();
        make_mark(&fd, b"mark").unwrap();
        std::fs::write(root.path().join("empty"), b"").unwrap();
        rustix::fs::chmod(root.path().join("empty"), MARK_MODE).unwrap();
        let found = walk(fd.as_fd()).unwrap();
        let seen: Vec<bool> = found.iter().map(Found::is_whiteout).collect();
        assert_eq!(seen, [true, false, true]);
        let opaque = read_xattr(&fd, OPAQUE.as_bytes()).unwrap();
        assert_eq!(opaque.as_deref(), Some(&b"x"[..]));
    }

    #[test]
    fn visits_parents_first_and_siblings_in_byte_order() {
        let root = tempfile::tempdir().unwrap();
        for path in ["a/x", "a-b", "a.d/é", "b/c/d", "B"] {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, b"").unwrap();
        }
        let fd =
            open_directory(rustix::fs::CWD, root.path().as_os_str().as_encoded_bytes()).unwrap();
        let found = walk(fd.as_fd()).unwrap();
        let paths: Vec<String> = found
            .iter()
            .map(|f| String::from_utf8_lossy(&f.path).into_owned())
            .collect();
        assert_eq!(
            paths,
            ["B", "a", "a/x", "a-b", "a.d", "a.d/é", "b", "b/c", "b/c/d"]
        );
    }
}
