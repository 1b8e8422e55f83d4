//! A layer put on top of a tree: afterwards the tree is what overlayfs would show.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::copy::{Side, Target};
use crate::fs::remove_tree_at;
use crate::layer::entry::{Metadata, is_opaque};
use crate::layer::walk::{Found, WalkError, names, open_directory, split, walk};

/// Files below which a second thread costs more than it gains.
const ALONE_FILES: usize = 64;

/// Most threads that copy.
const THREADS_MAX: usize = 8;

/// Puts `layer` on top of the tree at `target`.
pub(super) fn put(layer: BorrowedFd<'_>, target: &Target<'_>) -> Result<(), WalkError> {
    let failed = |path: &[u8]| {
        let path = path.to_vec();
        move |errno| WalkError { path, errno }
    };
    if is_opaque(layer).map_err(failed(b""))? {
        // Nothing below it is seen.
        let names = names(target.root).map_err(failed(b""))?;
        for name in names {
            remove_tree_at(target.root, &name).map_err(failed(&name))?;
        }
    }
    let found = walk(layer)?;
    let mut directories = Vec::new();
    let mut copies = Vec::new();
    let mut links = Vec::new();
    let mut firsts: HashMap<(u64, u64), usize> = HashMap::new();
    for (index, entry) in found.iter().enumerate() {
        let path = &entry.path[..];
        make_way(layer, target, entry).map_err(failed(path))?;
        match entry.file_type() {
            _ if entry.is_whiteout() => {}
            FileType::Socket => {}
            FileType::Directory => directories.push(path),
            _ => {
                let first = match entry.stat.st_nlink {
                    1 => index,
                    _ => *firsts
                        .entry((entry.stat.st_dev, entry.stat.st_ino))
                        .or_insert(index),
                };
                match first == index {
                    true => copies.push(index),
                    false => links.push((index, first)),
                }
            }
        }
    }
    copy_all(layer, target, &found, &copies)?;
    for (index, first) in links {
        let (to, name) = (&found[first].path[..], &found[index].path[..]);
        rustix::fs::linkat(target.root, to, target.root, name, AtFlags::empty())
            .map_err(failed(name))?;
    }
    // Their times, after all that was made in them; and what may be read-only, after all that is below.
    for path in directories.into_iter().rev() {
        set_directory(layer, target, path).map_err(failed(path))?;
    }
    set_directory(layer, target, b"").map_err(failed(b""))
}

/// Opens what is at `path`, through links as if `root` were `/`; the empty path is the root.
pub(super) fn find(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let path = if path.is_empty() { b"." } else { path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(root, path, flags, Mode::empty(), resolve)
}

/// Copies what is at `path` in `root`, through links as if that were `/`, to the new name `to`.
pub(super) fn copy_part(
    root: BorrowedFd<'_>,
    path: &[u8],
    target: &Target<'_>,
    to: &[u8],
) -> Result<(), Errno> {
    let found = find(root, path)?;
    let stat = rustix::fs::fstat(&found)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        // Opened again by the descriptor: its name may be a link's.
        let found = format!("/proc/self/fd/{}", found.as_raw_fd());
        let real = rustix::fs::readlink(found, Vec::new())?;
        let (parent, name) = split(real.to_bytes());
        let parent = open_directory(rustix::fs::CWD, parent)?;
        return target.copy((parent.as_fd(), Side::Layer), name, to, &stat);
    }
    rustix::fs::mkdirat(target.root, to, Mode::RWXU)?;
    let copy = open_directory(target.root, to)?;
    let below = Target {
        root: copy.as_fd(),
        ..*target
    };
    let found = open_directory(found.as_fd(), b"")?;
    put(found.as_fd(), &below).map_err(|error| error.errno)
}

/// Removes what an entry hides, and makes it if it is a directory.
fn make_way(layer: BorrowedFd<'_>, target: &Target<'_>, entry: &Found) -> Result<(), Errno> {
    let path = &entry.path[..];
    let there = match rustix::fs::statat(target.root, path, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Some(stat),
        Err(Errno::NOENT) => None,
        Err(errno) => return Err(errno),
    };
    let is_directory = !entry.is_whiteout() && entry.file_type() == FileType::Directory;
    let is_merged = match (is_directory, &there) {
        (true, Some(there)) => {
            FileType::from_raw_mode(there.st_mode) == FileType::Directory
                && !is_opaque(open_directory(layer, path)?)?
        }
        _ => false,
    };
    if is_merged {
        return Ok(());
    }
    if there.is_some() {
        let (parent, name) = split(path);
        remove_tree_at(open_directory(target.root, parent)?.as_fd(), name)?;
    }
    if is_directory {
        rustix::fs::mkdirat(target.root, path, Mode::RWXU)?;
    }
    Ok(())
}

fn set_directory(layer: BorrowedFd<'_>, target: &Target<'_>, path: &[u8]) -> Result<(), Errno> {
    let source = open_directory(layer, path)?;
    let mut metadata = Metadata::of(&rustix::fs::fstat(&source)?);
    metadata.xattrs = Side::Layer.xattrs(&source)?;
    let directory = open_directory(target.root, path)?;
    target.set(directory.as_fd(), &metadata)
}

fn copy_all(
    layer: BorrowedFd<'_>,
    target: &Target<'_>,
    found: &[Found],
    indexes: &[usize],
) -> Result<(), WalkError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<(), WalkError> {
        while let Some(&index) = indexes.get(next.fetch_add(1, Ordering::Relaxed)) {
            let Found { path, stat } = &found[index];
            copy(layer, target, path, stat).map_err(|errno| WalkError {
                path: path.clone(),
                errno,
            })?;
        }
        Ok(())
    };
    if indexes.len() < ALONE_FILES {
        return work();
    }
    let threads =
        std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .filter_map(|index| {
                let thread = std::thread::Builder::new().name(format!("copy-{index}"));
                // Fewer threads are slower, nothing else.
                thread.spawn_scoped(scope, work).ok()
            })
            .collect();
        let mut result = work();
        for other in others {
            result = result.and(other.join().expect("copying does not panic"));
        }
        result
    })
}

fn copy(layer: BorrowedFd<'_>, target: &Target<'_>, path: &[u8], stat: &Stat) -> Result<(), Errno> {
    target.copy((layer, Side::Layer), path, path, stat)
}
