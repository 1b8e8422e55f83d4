//! Removes from a step's upper directory what overlayfs copied up although it did not change.
//!
//! Opening a file for writing, or setting an owner it already has, copies it up; so does touching anything in a directory.
//! An exact diff has only what differs. Cheap, because only names that exist below are looked at, and bytes only where
//! owner, mode, size and time are equal to the nanosecond.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use crate::layer::entry::{Metadata, is_opaque, read_xattrs};
use crate::layer::walk::{WalkError, is_whiteout, join, names, open_directory, stat_at};
use std::os::unix::ffi::OsStrExt;

/// A directory of the upper whose names exist below too.
struct Level {
    path: Vec<u8>,
    /// The directories below that are merged with it, topmost first.
    lowers: Vec<OwnedFd>,
    /// Whether its merged names have been put on the stack already.
    is_open: bool,
    /// Its time before anything was removed from it.
    stat: Stat,
}

/// Prunes the directory `upper` by what is seen through the layers `lower`, topmost first.
pub(super) fn prune(upper: BorrowedFd<'_>, lower: &[PathBuf]) -> Result<(), WalkError> {
    let failed = |path: &[u8]| {
        let path = path.to_vec();
        move |errno| WalkError { path, errno }
    };
    let lowers = lower
        .iter()
        .map(|path| open_directory(rustix::fs::CWD, path.as_os_str().as_bytes()))
        .collect::<Result<Vec<OwnedFd>, Errno>>()
        .map_err(failed(b""))?;
    let mut levels = vec![Level {
        path: Vec::new(),
        lowers,
        is_open: false,
        stat: rustix::fs::fstat(upper).map_err(failed(b""))?,
    }];
    while let Some(level) = levels.last_mut() {
        let directory = open_directory(upper, &level.path).map_err(failed(&level.path))?;
        if !level.is_open {
            level.is_open = true;
            let path = level.path.clone();
            let mut below = Vec::new();
            let names = names(&directory).map_err(failed(&path))?;
            for name in names {
                let path = join(&path, &name);
                let merged =
                    visit(&directory, &level.lowers, &name, path.clone()).map_err(failed(&path))?;
                below.extend(merged);
            }
            levels.extend(below);
            continue;
        }
        let level = levels.pop().expect("the loop has seen it");
        finish(upper, &directory, &level).map_err(failed(&level.path))?;
    }
    Ok(())
}

/// Removes `name` if it is a file equal to the one below; returns it if it is a directory merged with others below.
fn visit(
    directory: &OwnedFd,
    lowers: &[OwnedFd],
    name: &[u8],
    path: Vec<u8>,
) -> Result<Option<Level>, Errno> {
    let stat = stat_at(directory, name)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile if stat.st_nlink == 1 => {
            let Some((lower, below)) = seen_below(lowers, name)? else {
                return Ok(None);
            };
            let is_same_inode_kind =
                FileType::from_raw_mode(below.st_mode) == FileType::RegularFile;
            if is_same_inode_kind
                && below.st_nlink == 1
                && below.st_size == stat.st_size
                && Metadata::of(&below) == Metadata::of(&stat)
                && files_equal(directory, lower, name)?
            {
                rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
            }
            Ok(None)
        }
        FileType::Directory => {
            let here = open_directory(directory.as_fd(), name)?;
            if is_opaque(&here)? {
                return Ok(None);
            }
            let mut merged = Vec::new();
            for lower in lowers {
                match stat_at(lower, name) {
                    Ok(below) if FileType::from_raw_mode(below.st_mode) == FileType::Directory => {
                        let below = open_directory(lower.as_fd(), name)?;
                        let hides = is_opaque(&below)?;
                        merged.push(below);
                        if hides {
                            break;
                        }
                    }
                    Ok(_) => break,
                    Err(Errno::NOENT) => {}
                    Err(errno) => return Err(errno),
                }
            }
            if merged.is_empty() {
                return Ok(None);
            }
            Ok(Some(Level {
                path,
                lowers: merged,
                is_open: false,
                stat,
            }))
        }
        _ => Ok(None),
    }
}

/// The topmost entry called `name`, with the directory it is in; `None` if there is none or it is whited out.
fn seen_below<'l>(
    lowers: &'l [OwnedFd],
    name: &[u8],
) -> Result<Option<(&'l OwnedFd, Stat)>, Errno> {
    for lower in lowers {
        match stat_at(lower, name) {
            Ok(stat) if is_whiteout(&stat) => return Ok(None),
            Ok(stat) => return Ok(Some((lower, stat))),
            Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(None)
}

/// Gives a directory its time back, or removes it if it is empty and equal to the one below.
fn finish(upper: BorrowedFd<'_>, directory: &OwnedFd, level: &Level) -> Result<(), Errno> {
    let metadata = Metadata::of(&level.stat);
    let now = Metadata::of(&rustix::fs::fstat(directory)?);
    if now.mtime != metadata.mtime {
        rustix::fs::futimens(directory, &metadata.mtime.timestamps())?;
    }
    let Some(below) = level.lowers.first().filter(|_| !level.path.is_empty()) else {
        return Ok(());
    };
    if Metadata::of(&rustix::fs::fstat(below)?) == metadata
        && names(directory)?.is_empty()
        && read_xattrs(directory)? == read_xattrs(below)?
    {
        rustix::fs::unlinkat(upper, &level.path[..], AtFlags::REMOVEDIR)?;
    }
    Ok(())
}

fn files_equal(a: &OwnedFd, b: &OwnedFd, name: &[u8]) -> Result<bool, Errno> {
    let open = |directory: &OwnedFd| {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        rustix::fs::openat(directory, name, flags, Mode::empty())
    };
    let (a, b) = (open(a)?, open(b)?);
    if read_xattrs(&a)? != read_xattrs(&b)? {
        return Ok(false);
    }
    contents_equal(&a, &b)
}

/// Whether two files, open and not yet read from, have the same bytes.
pub(super) fn contents_equal(a: &OwnedFd, b: &OwnedFd) -> Result<bool, Errno> {
    let mut buffers = [vec![0; 64 * 1024], vec![0; 64 * 1024]];
    loop {
        let [left, right] = &mut buffers;
        let (left, right) = (fill(a, left)?, fill(b, right)?);
        if left != right {
            return Ok(false);
        }
        if left.is_empty() {
            return Ok(true);
        }
    }
}

/// Reads until the buffer is full or the file ends.
fn fill<'b>(file: &OwnedFd, buffer: &'b mut [u8]) -> Result<&'b [u8], Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        match rustix::io::read(file, &mut buffer[filled..]) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(&buffer[..filled])
}
