//! Single entries copied between layers and trees, with all that belongs to them.
//!
//! In a tree attributes have the names that processes see; in a layer overlayfs's own names are escaped. Here they are always
//! as [`read_xattrs`](crate::layer::entry::read_xattrs) states them.

use std::os::fd::{AsFd, BorrowedFd};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use crate::layer::entry::{Metadata, Xattrs, list_xattrs, read_xattr, read_xattrs, stored};
use crate::layer::tar::open_file;

/// Content read at a time where the kernel does not copy by itself.
const BUFFER_BYTES: usize = 256 * 1024;

/// Bytes that the kernel is asked to copy at a time.
const KERNEL_BYTES: usize = 1 << 30;

/// What a directory is: that decides how attributes are named in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    /// A tree for processes.
    Tree,
    /// A layer.
    Layer,
}

impl Side {
    /// The attributes of an open file or directory.
    pub(super) fn xattrs(self, file: impl AsFd) -> Result<Xattrs, Errno> {
        match self {
            Self::Layer => read_xattrs(file),
            Self::Tree => {
                let mut xattrs = Xattrs::new();
                for name in list_xattrs(&file)? {
                    if stored(&name).is_some()
                        && let Some(value) = read_xattr(&file, &name)?
                    {
                        xattrs.insert(name, value);
                    }
                }
                Ok(xattrs)
            }
        }
    }

    /// The name of an attribute on disk.
    fn name(self, stated: &[u8]) -> Option<Vec<u8>> {
        match self {
            Self::Layer => stored(stated),
            Self::Tree => stored(stated).map(|_| stated.to_vec()),
        }
    }
}

/// Where to and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) root: BorrowedFd<'a>,
    pub(super) side: Side,
    /// Owners that cannot be given are left out: this process may act for one user only.
    pub(super) keep_own: bool,
}

impl Target<'_> {
    /// Copies `path`, which is no directory, from `root` to `to`, where there is nothing.
    pub(super) fn copy(
        &self,
        (root, side): (BorrowedFd<'_>, Side),
        path: &[u8],
        to: &[u8],
        stat: &Stat,
    ) -> Result<(), Errno> {
        let metadata = Metadata::of(stat);
        let kind = FileType::from_raw_mode(stat.st_mode);
        match kind {
            FileType::RegularFile => {
                let source = open_file(root, path)?;
                let flags = OFlags::WRONLY
                    | OFlags::CREATE
                    | OFlags::EXCL
                    | OFlags::NOFOLLOW
                    | OFlags::CLOEXEC;
                let mode = Mode::RUSR | Mode::WUSR;
                let copy = rustix::fs::openat(self.root, to, flags, mode)?;
                if stat.st_size > 0 {
                    copy_content(source.as_fd(), copy.as_fd())?;
                }
                let metadata = Metadata {
                    xattrs: side.xattrs(&source)?,
                    ..metadata
                };
                return self.set(copy.as_fd(), &metadata);
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(root, path, Vec::new())?;
                rustix::fs::symlinkat(&target, self.root, to)?;
            }
            kind => {
                let mode = Mode::RUSR | Mode::WUSR;
                rustix::fs::mknodat(self.root, to, kind, mode, stat.st_rdev)?;
            }
        }
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        self.owned(rustix::fs::chownat(
            self.root,
            to,
            Some(uid),
            Some(gid),
            nofollow,
        ))?;
        if kind != FileType::Symlink {
            let mode = Mode::from_raw_mode(metadata.mode);
            rustix::fs::chmodat(self.root, to, mode, AtFlags::empty())?;
        }
        rustix::fs::utimensat(self.root, to, &metadata.mtime.timestamps(), nofollow)
    }

    /// Gives an open file or directory these metadata, in place of all it has.
    pub(super) fn set(&self, file: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), Errno> {
        let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
        self.owned(rustix::fs::fchown(file, Some(uid), Some(gid)))?;
        let there = self.side.xattrs(file)?;
        for name in there.keys() {
            if !metadata.xattrs.contains_key(name)
                && let Some(name) = self.side.name(name)
            {
                rustix::fs::fremovexattr(file, &name[..])?;
            }
        }
        for (name, value) in &metadata.xattrs {
            if there.get(name) == Some(value) {
                continue;
            }
            let Some(stored) = self.side.name(name) else {
                continue;
            };
            match rustix::fs::fsetxattr(file, &stored[..], value, XattrFlags::empty()) {
                // As when a layer is unpacked where they cannot be kept.
                Ok(()) | Err(Errno::OPNOTSUPP | Errno::PERM) => {}
                Err(errno) => return Err(errno),
            }
        }
        // A new owner may have cleared setuid bits.
        rustix::fs::fchmod(file, Mode::from_raw_mode(metadata.mode))?;
        rustix::fs::futimens(file, &metadata.mtime.timestamps())
    }

    fn owned(&self, chowned: Result<(), Errno>) -> Result<(), Errno> {
        match chowned {
            Err(Errno::PERM | Errno::INVAL) if self.keep_own => Ok(()),
            chowned => chowned,
        }
    }
}

/// Copies all bytes: shares blocks where the file system can, else in the kernel, else by hand.
fn copy_content(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> Result<(), Errno> {
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut copied = false;
    loop {
        match rustix::fs::copy_file_range(from, None, to, None, KERNEL_BYTES) {
            Ok(0) if copied => return Ok(()),
            // Some file systems say so of files that they cannot copy.
            Ok(0) => break,
            Ok(_) => copied = true,
            Err(Errno::INTR) => {}
            Err(Errno::NOSPC | Errno::DQUOT | Errno::IO) => break,
            Err(errno) if copied => return Err(errno),
            Err(_) => break,
        }
    }
    // Both stand where the copying ended; if that was a real error it comes again.
    let mut buffer = vec![0; BUFFER_BYTES];
    loop {
        let count = match rustix::io::read(from, &mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(errno),
        };
        let mut rest = &buffer[..count];
        while !rest.is_empty() {
            match rustix::io::write(to, rest) {
                Ok(count) => rest = &rest[count..],
                Err(Errno::INTR) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
}
