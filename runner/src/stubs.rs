//! Mount points that the root does not have: made before the process starts, removed without a trace
//! when it has ended.
//!
//! A mount needs something to be mounted on. What a caller can foresee goes into a layer of its own,
//! made by [`make_stubs`] and put beneath all others, where it never reaches the result. What is left
//! (a base that deleted `/etc/hosts`, a link to a file that is not there, bind targets) is made in the
//! root by [`reach`], which reports each [`Stub`] with the times of the directories it touches;
//! [`sweep`] then restores the upper directory to what it would have been: the stub is gone, times are
//! as before, and directories that overlayfs had only copied up for the stub's sake are gone too.
//!
//! Everything is resolved one component at a time on descriptors, beneath the root, with links read
//! as text: no link of a hostile image leads outside.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Stat, Timespec, Timestamps};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::spec::Root;

/// Links followed on the way to one target, as many as the kernel would follow.
const LINKS_MAX: usize = 40;

/// Makes the tree of mount points that every sandbox needs (`/proc`, `/sys`, `/dev`, `/etc/hosts`,
/// `/etc/resolv.conf`) in the existing directory `dir`, for use as the lowest layer of a root.
///
/// What exists already is kept.
///
/// # Errors
///
/// Whatever making a file or directory fails with.
pub fn make_stubs(dir: &Path) -> io::Result<()> {
    let dir = rustix::fs::open(
        dir,
        OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    for name in ["proc", "sys", "dev", "etc"] {
        match rustix::fs::mkdirat(&dir, name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => {}
            result => result?,
        }
        rustix::fs::chmodat(&dir, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
    }
    for name in ["etc/hosts", "etc/resolv.conf"] {
        let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644))?;
        rustix::fs::fchmod(file, Mode::from_raw_mode(0o644))?;
    }
    Ok(())
}

/// A mount point that was made in the root.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Stub {
    /// Its path beneath the root, links resolved, as bytes.
    pub(crate) path: Vec<u8>,
    /// Whether it is a directory.
    directory: bool,
    /// If the upper directory held a whiteout in its place, the time of that.
    whiteout: Option<Time>,
    /// The directories above it, deepest first, the root (an empty path) last.
    parents: Vec<Parent>,
}

/// A directory above a stub.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Parent {
    path: Vec<u8>,
    /// Whether it was in the upper directory before the stub was made.
    in_upper: bool,
    /// Its modification time before.
    modified: Time,
    /// What it looked like afterwards.
    after: Look,
}

/// What tells whether a directory was touched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Look {
    modified: Time,
    changed: Time,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Seconds and nanoseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Time(i64, i64);

impl Look {
    fn of(stat: &Stat) -> Self {
        Self {
            modified: modified(stat),
            changed: Time(
                stat.st_ctime,
                i64::try_from(stat.st_ctime_nsec).unwrap_or(0),
            ),
            mode: stat.st_mode,
            uid: stat.st_uid,
            gid: stat.st_gid,
        }
    }
}

impl Time {
    /// For setting this as modification time, and nothing else.
    fn as_modified(self) -> Timestamps {
        Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: rustix::fs::UTIME_OMIT,
            },
            last_modification: Timespec {
                tv_sec: self.0,
                tv_nsec: self.1,
            },
        }
    }
}

fn modified(stat: &Stat) -> Time {
    Time(
        stat.st_mtime,
        i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    )
}

/// A root in which mount points can be reached or made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tree<'a> {
    /// The root as the process will see it.
    pub(crate) root: BorrowedFd<'a>,
    /// Overlayfs' upper directory, if the root is an overlay.
    pub(crate) upper: Option<BorrowedFd<'a>>,
}

/// One directory on the way from the root.
struct Level {
    name: Vec<u8>,
    dir: OwnedFd,
}

/// Opens `target` beneath the root, making what is missing: directories (0755) on the way and, last,
/// a directory or an empty file (0644). `report` is called for each thing made in the root itself.
pub(crate) fn reach(
    tree: Tree<'_>,
    target: &str,
    directory: bool,
    report: &mut dyn FnMut(Stub),
) -> Result<OwnedFd, Errno> {
    match open_in_root(tree.root, target) {
        Err(Errno::NOENT) => walk(tree, target, directory, report),
        result => result,
    }
}

/// Opens `target` as a path only, as if the root were `/`.
pub(crate) fn open_in_root(root: BorrowedFd<'_>, target: &str) -> Result<OwnedFd, Errno> {
    // A rename anywhere on the machine makes the kernel give up on `..`: it asks to be tried again.
    for _ in 0..100 {
        match rustix::fs::openat2(
            root,
            target,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

fn walk(
    tree: Tree<'_>,
    target: &str,
    directory: bool,
    report: &mut dyn FnMut(Stub),
) -> Result<OwnedFd, Errno> {
    let mut todo: VecDeque<Vec<u8>> = components(target.as_bytes()).collect();
    let mut levels: Vec<Level> = Vec::new();
    let mut links = 0;
    while let Some(name) = todo.pop_front() {
        if name == b".." {
            levels.pop();
            continue;
        }
        let here = levels.last().map_or(tree.root, |level| level.dir.as_fd());
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let name_os = OsStr::from_bytes(&name);
        let found = match rustix::fs::openat(here, name_os, flags, Mode::empty()) {
            Ok(found) => found,
            Err(Errno::NOENT) => {
                let directory = directory || !todo.is_empty();
                make(tree, &levels, &name, directory, report)?;
                rustix::fs::openat(here, name_os, flags, Mode::empty())?
            }
            Err(error) => return Err(error),
        };
        if FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode) == FileType::Symlink {
            links += 1;
            if links > LINKS_MAX {
                return Err(Errno::LOOP);
            }
            let link = rustix::fs::readlinkat(&found, "", Vec::new())?;
            if link.to_bytes().starts_with(b"/") {
                levels.clear();
            }
            for (at, part) in components(link.to_bytes()).enumerate() {
                todo.insert(at, part);
            }
        } else {
            levels.push(Level { name, dir: found });
        }
    }
    match levels.pop() {
        Some(level) => Ok(level.dir),
        None => rustix::io::fcntl_dupfd_cloexec(tree.root, 3),
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = Vec<u8>> {
    path.split(|byte| *byte == b'/')
        .filter(|part| !part.is_empty() && *part != b".")
        .map(<[u8]>::to_vec)
}

/// Makes `name` in the last of `levels` and reports it, if that directory is the root's own and not
/// something mounted on it.
fn make(
    tree: Tree<'_>,
    levels: &[Level],
    name: &[u8],
    directory: bool,
    report: &mut dyn FnMut(Stub),
) -> Result<(), Errno> {
    let here = levels.last().map_or(tree.root, |level| level.dir.as_fd());
    let of_root = mount_id(here)? == mount_id(tree.root)?;
    let path_of = |depth: usize| {
        levels[..depth]
            .iter()
            .map(|l| l.name.as_slice())
            .collect::<Vec<_>>()
            .join(&b'/')
    };
    let dir_of = |depth: usize| match depth {
        0 => tree.root,
        _ => levels[depth - 1].dir.as_fd(),
    };

    let mut parents = Vec::new();
    let mut whiteout = None;
    if of_root {
        for depth in (0..=levels.len()).rev() {
            let path = path_of(depth);
            let in_upper = match tree.upper {
                Some(upper) => stat_beneath(upper, &path).is_ok(),
                None => true,
            };
            let stat = rustix::fs::fstat(dir_of(depth))?;
            parents.push(Parent {
                path,
                in_upper,
                modified: modified(&stat),
                after: Look::of(&stat),
            });
        }
        if let Some(upper) = tree.upper {
            let path = join(&path_of(levels.len()), name);
            whiteout = stat_beneath(upper, &path)
                .ok()
                .filter(is_whiteout)
                .map(|stat| modified(&stat));
        }
    }

    let name_os = OsStr::from_bytes(name);
    let made = match directory {
        true => rustix::fs::mkdirat(here, name_os, Mode::from_raw_mode(0o755)),
        false => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
            rustix::fs::openat(here, name_os, flags, Mode::from_raw_mode(0o644)).map(drop)
        }
    };
    match made {
        // In what is mounted, another sandbox may have been quicker.
        Err(Errno::EXIST) if !of_root => {}
        result => result?,
    }

    if of_root {
        for (depth, parent) in (0..=levels.len()).rev().zip(&mut parents) {
            parent.after = Look::of(&rustix::fs::fstat(dir_of(depth))?);
        }
        let path = join(&path_of(levels.len()), name);
        report(Stub {
            path,
            directory,
            whiteout,
            parents,
        });
    }
    Ok(())
}

fn mount_id(fd: BorrowedFd<'_>) -> Result<u64, Errno> {
    let flags = rustix::fs::StatxFlags::MNT_ID;
    Ok(rustix::fs::statx(fd, "", AtFlags::EMPTY_PATH, flags)?.stx_mnt_id)
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        name.to_vec()
    } else {
        [dir, name].join(&b'/')
    }
}

fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

/// Removes `stubs` from the root again, once nothing is mounted any more.
///
/// What the process itself changed stays: a directory it also wrote to keeps its new time, and a stub
/// that is no longer an empty file or directory is left alone.
///
/// # Errors
///
/// The first failure; the rest is still tried.
pub(crate) fn sweep(root: &Root, stubs: &[Stub]) -> io::Result<()> {
    if stubs.is_empty() {
        return Ok(());
    }
    let top: &PathBuf = match root {
        Root::Overlay { upper, .. } => upper,
        Root::Directory(directory) => directory,
    };
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, top, flags, Mode::empty())?;

    // Several stubs share directories: the first one knows how a directory was before, the last one
    // how we left it. Sorted by path, so that reversed, the deepest comes first.
    let mut parents: BTreeMap<&[u8], (Parent, Look)> = BTreeMap::new();
    for parent in stubs.iter().flat_map(|stub| &stub.parents) {
        parents
            .entry(&parent.path)
            .and_modify(|(_, after)| *after = parent.after)
            .or_insert_with(|| (parent.clone(), parent.after));
    }
    let before: Vec<(Parent, Look, Look)> = parents
        .into_values()
        .rev()
        .filter_map(|(parent, after)| {
            let now = Look::of(&stat_beneath(top.as_fd(), &parent.path).ok()?);
            Some((parent, after, now))
        })
        .collect();

    let mut result = Ok(());
    let mut note = |outcome: Result<(), Errno>| {
        if let (Err(error), Ok(())) = (outcome, &result) {
            result = Err(io::Error::from(error));
        }
    };
    for stub in stubs.iter().rev() {
        note(remove(top.as_fd(), stub));
    }
    for (parent, after, now) in before {
        let untouched = now == after;
        if untouched && !parent.in_upper && remove_empty(top.as_fd(), &parent.path) {
            continue;
        }
        let modified = if now.modified == after.modified {
            parent.modified
        } else {
            now.modified
        };
        note(set_modified(top.as_fd(), &parent.path, modified));
    }
    result
}

fn remove(top: BorrowedFd<'_>, stub: &Stub) -> Result<(), Errno> {
    let (dir, name) = split(&stub.path);
    let dir = match open_beneath(top, dir) {
        Ok(dir) => dir,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    let name = OsStr::from_bytes(name);
    let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => stat,
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory if stub.directory => {
            match rustix::fs::unlinkat(&dir, name, AtFlags::REMOVEDIR) {
                Err(Errno::NOTEMPTY | Errno::EXIST) => return Ok(()),
                result => result?,
            }
        }
        FileType::RegularFile if !stub.directory && stat.st_size == 0 => {
            rustix::fs::unlinkat(&dir, name, AtFlags::empty())?;
        }
        _ => return Ok(()),
    }
    if let Some(time) = stub.whiteout {
        rustix::fs::mknodat(&dir, name, FileType::CharacterDevice, Mode::empty(), 0)?;
        rustix::fs::utimensat(&dir, name, &time.as_modified(), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn remove_empty(top: BorrowedFd<'_>, path: &[u8]) -> bool {
    let (dir, name) = split(path);
    open_beneath(top, dir).is_ok_and(|dir| {
        rustix::fs::unlinkat(dir, OsStr::from_bytes(name), AtFlags::REMOVEDIR).is_ok()
    })
}

fn set_modified(top: BorrowedFd<'_>, path: &[u8], time: Time) -> Result<(), Errno> {
    let dir = match open_beneath(top, path) {
        Ok(dir) => File::from(dir),
        Err(Errno::NOENT) => return Ok(()),
        Err(error) => return Err(error),
    };
    rustix::fs::futimens(dir, &time.as_modified())
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (b"", path),
    }
}

fn open_beneath(top: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    rustix::fs::openat2(
        top,
        OsStr::from_bytes(path),
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )
}

fn stat_beneath(top: BorrowedFd<'_>, path: &[u8]) -> Result<Stat, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    let found = rustix::fs::openat2(
        top,
        OsStr::from_bytes(path),
        OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS,
    )?;
    rustix::fs::fstat(found)
}
