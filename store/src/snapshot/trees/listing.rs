//! What a tree looked like at some time: enough to tell, without reading a file, whether it was changed since.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Stat, StatxFlags, StatxTimestamp};
use rustix::io::Errno;
use rustix::time::{ClockId, clock_gettime};

use crate::layer::entry::PATH_BYTES_MAX;
use crate::layer::walk::{WalkError, join, names, open_directory};

/// Seconds and nanoseconds.
type Time = (i64, u32);

/// Longest wait for the clock; one that was set back by more would be waited for in vain.
const TICK_NS_MAX: i128 = 100_000_000;

/// How often the clock is looked at meanwhile.
const TICK_POLL: std::time::Duration = std::time::Duration::from_millis(1);

/// An entry as it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) inode: u64,
    /// When the inode was made, so that one that was freed and taken again is another; zero where that is not known.
    pub(super) born: Time,
    /// The kernel's own time of the last change of any kind, which nobody can set.
    pub(super) changed: Time,
    pub(super) modified: Time,
    /// Type and permissions.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) links: u32,
    pub(super) size: u64,
    pub(super) device: u64,
}

impl Seen {
    pub(super) fn kind(&self) -> FileType {
        FileType::from_raw_mode(self.mode)
    }

    /// Whether it is the same inode, whatever happened to it.
    pub(super) fn is_same_inode(&self, other: &Seen) -> bool {
        (self.inode, self.born, self.kind()) == (other.inode, other.born, other.kind())
    }
}

/// Every entry, parents before children and siblings sorted by their names' bytes, as in a layer.
///
/// Left out is what no layer can hold: sockets, and devices 0/0, which would be whiteouts there.
#[derive(Clone, Debug, Default)]
pub(super) struct Listing {
    pub(super) entries: Vec<(Vec<u8>, Seen)>,
}

impl Listing {
    /// Lists the tree below `root`.
    pub(super) fn of(root: BorrowedFd<'_>) -> Result<Listing, WalkError> {
        let mut entries = Vec::new();
        let mut pending = children(root, b"")?;
        while let Some((path, seen)) = pending.pop() {
            if seen.kind() == FileType::Directory {
                pending.extend(children(root, &path)?);
            }
            entries.push((path, seen));
        }
        Ok(Listing { entries })
    }

    /// Waits until whatever is changed from now on is stamped later than everything listed: the kernel's stamps are as
    /// coarse as its ticks.
    pub(super) fn wait_for_tick(&self) {
        let nanos =
            |(seconds, nanos): Time| i128::from(seconds) * 1_000_000_000 + i128::from(nanos);
        let Some(newest) = self.entries.iter().map(|(_, seen)| seen.changed).max() else {
            return;
        };
        loop {
            let now = clock_gettime(ClockId::RealtimeCoarse);
            let now = (now.tv_sec, u32::try_from(now.tv_nsec).unwrap_or(0));
            let ahead = nanos(newest) - nanos(now);
            if !(0..=TICK_NS_MAX).contains(&ahead) {
                return;
            }
            std::thread::sleep(TICK_POLL);
        }
    }
}

/// The entries of a directory, the last first.
fn children(root: BorrowedFd<'_>, path: &[u8]) -> Result<Vec<(Vec<u8>, Seen)>, WalkError> {
    let failed = |path: &[u8]| {
        let path = path.to_vec();
        move |errno| WalkError { path, errno }
    };
    let directory = open_directory(root, path).map_err(failed(path))?;
    let mut names = names(&directory).map_err(failed(path))?;
    names.sort_unstable_by(|a, b| b.cmp(a));
    let mut children = Vec::with_capacity(names.len());
    for name in names {
        let path = join(path, &name);
        if path.len() > PATH_BYTES_MAX {
            return Err(failed(&path)(Errno::NAMETOOLONG));
        }
        let seen = look(directory.as_fd(), &name).map_err(failed(&path))?;
        let is_null_device = seen.kind() == FileType::CharacterDevice && seen.device == 0;
        if seen.kind() != FileType::Socket && !is_null_device {
            children.push((path, seen));
        }
    }
    Ok(children)
}

fn look(directory: BorrowedFd<'_>, name: &[u8]) -> Result<Seen, Errno> {
    let flags = StatxFlags::BASIC_STATS | StatxFlags::BTIME;
    let stat = rustix::fs::statx(directory, name, AtFlags::SYMLINK_NOFOLLOW, flags)?;
    let time = |time: StatxTimestamp| (time.tv_sec, time.tv_nsec);
    let has_birth = StatxFlags::from_bits_retain(stat.stx_mask).contains(StatxFlags::BTIME);
    Ok(Seen {
        inode: stat.stx_ino,
        born: match has_birth {
            true => time(stat.stx_btime),
            false => (0, 0),
        },
        changed: time(stat.stx_ctime),
        modified: time(stat.stx_mtime),
        mode: stat.stx_mode.into(),
        uid: stat.stx_uid,
        gid: stat.stx_gid,
        links: stat.stx_nlink,
        size: stat.stx_size,
        device: rustix::fs::makedev(stat.stx_rdev_major, stat.stx_rdev_minor),
    })
}

/// What [`Target::copy`](super::copy::Target::copy) wants to know, from a fresh look.
pub(super) fn stat(root: BorrowedFd<'_>, path: &[u8]) -> Result<Stat, Errno> {
    rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)
}
