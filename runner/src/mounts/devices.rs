//! The host's devices, for a sandbox that is confined by nothing.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};

use super::{Builder, attach, empty_file, mount_error};
use crate::error::StartError;

/// What `/dev` has anyway, or has no nodes in it.
const LEFT_OUT: [&str; 6] = ["pts", "shm", "mqueue", "console", "hugepages", "fd"];

/// Directories below `/dev` are few and shallow.
const DEPTH_MAX: usize = 4;

impl Builder<'_> {
    /// Puts every device node of the host into `dev`, beside those that are there.
    pub(super) fn host_devices(&self, dev: BorrowedFd<'_>) -> Result<(), StartError> {
        copy_nodes(Path::new("/dev"), dev, 0).map_err(mount_error("the host's devices", "/dev"))
    }
}

fn copy_nodes(from: &Path, to: BorrowedFd<'_>, depth: usize) -> Result<(), Errno> {
    let Ok(entries) = fs::read_dir(from) else {
        return Ok(());
    };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if depth == 0 && LEFT_OUT.iter().any(|left_out| name == *left_out) {
            continue;
        }
        // It may just have been unplugged.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_dir() && depth < DEPTH_MAX {
            let made = rustix::fs::mkdirat(to, &name, Mode::from_raw_mode(0o755));
            if !matches!(made, Ok(()) | Err(Errno::EXIST)) {
                return made;
            }
            let flags = rustix::fs::OFlags::DIRECTORY
                | rustix::fs::OFlags::NOFOLLOW
                | rustix::fs::OFlags::CLOEXEC;
            let below = rustix::fs::openat(to, &name, flags, Mode::empty())?;
            copy_nodes(&entry.path(), below.as_fd(), depth + 1)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let node = match kind.is_char_device() {
                true => FileType::CharacterDevice,
                false => FileType::BlockDevice,
            };
            let mode = Mode::from_raw_mode(metadata.mode() & 0o777);
            match rustix::fs::mknodat(to, &name, node, mode, metadata.rdev()) {
                Ok(()) | Err(Errno::EXIST) => {}
                // In a user namespace: the host's own node, with what rights that leaves.
                Err(Errno::PERM) => {
                    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                    let Ok(mount) = open_tree(CWD, entry.path(), flags) else {
                        continue;
                    };
                    let file = empty_file(to, &name.to_string_lossy())?;
                    attach(mount.as_fd(), file.as_fd())?;
                }
                Err(errno) => return Err(errno),
            }
        }
    }
    Ok(())
}
