//! The overlayfs mounts that the store itself makes: never attached anywhere.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen,
};

use super::SnapshotMount;

/// How layers are named to the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lower {
    /// One parameter each (Linux 6.8 and later): as many as overlayfs takes, which is 500.
    Each,
    /// One string of at most 255 bytes for all.
    Joined,
}

/// Merges the layers, topmost first and at least two, into a tree that is gone when the handle is closed.
pub(super) fn mount_read_only(lower: &[PathBuf]) -> Result<OwnedFd, Errno> {
    match mount(lower, None, Lower::Each) {
        // The parameter is unknown: an older kernel.
        Err(Errno::INVAL) => mount(lower, None, Lower::Joined),
        outcome => outcome,
    }
}

/// Merges a directory that takes changes with the layers below it, until the handle is closed.
pub(super) fn mount_writable(snapshot: &SnapshotMount) -> Result<OwnedFd, Errno> {
    let upper = Some((&snapshot.upper, &snapshot.work));
    match mount(&snapshot.lower, upper, Lower::Each) {
        Err(Errno::INVAL) => mount(&snapshot.lower, upper, Lower::Joined),
        outcome => outcome,
    }
}

fn mount(
    lower: &[PathBuf],
    upper: Option<(&PathBuf, &PathBuf)>,
    form: Lower,
) -> Result<OwnedFd, Errno> {
    let filesystem = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(filesystem.as_fd(), "source", "longshore")?;
    // Whiteouts and opaque marks in `user.` attributes, the form that layers have.
    fsconfig_set_flag(filesystem.as_fd(), "userxattr")?;
    let mut attributes = MountAttrFlags::MOUNT_ATTR_NODEV | MountAttrFlags::MOUNT_ATTR_NOSUID;
    match upper {
        Some((upper, work)) => {
            fsconfig_set_string(filesystem.as_fd(), "upperdir", upper)?;
            fsconfig_set_string(filesystem.as_fd(), "workdir", work)?;
        }
        None => attributes |= MountAttrFlags::MOUNT_ATTR_RDONLY,
    }
    match form {
        Lower::Each => {
            for path in lower {
                fsconfig_set_string(filesystem.as_fd(), "lowerdir+", path)?;
            }
            fsconfig_create(filesystem.as_fd())?;
        }
        Lower::Joined => {
            // Handles are shorter than paths and hold no colon; they only have to live until the mount is made.
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let handles = lower
                .iter()
                .map(|path| rustix::fs::open(path, flags, Mode::empty()))
                .collect::<Result<Vec<OwnedFd>, Errno>>()?;
            let names: Vec<String> = handles
                .iter()
                .map(|handle| format!("/proc/self/fd/{}", handle.as_raw_fd()))
                .collect();
            fsconfig_set_string(filesystem.as_fd(), "lowerdir", names.join(":"))?;
            fsconfig_create(filesystem.as_fd())?;
        }
    }
    fsmount(
        filesystem.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;

    #[test]
    fn both_ways_of_naming_layers_work() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: mounting needs root");
            return;
        }
        let root = tempfile::tempdir().unwrap();
        let layers: Vec<PathBuf> = ["top", "middle", "bottom"]
            .iter()
            .map(|name| {
                let path = root.path().join(name);
                std::fs::create_dir(&path).unwrap();
                std::fs::write(path.join("file"), name).unwrap();
                std::fs::write(path.join(name), name).unwrap();
                path
            })
            .collect();
        for form in [Lower::Each, Lower::Joined] {
            let view =
                mount(&layers, None, form).unwrap_or_else(|errno| panic!("{form:?}: {errno}"));
            let read = |name: &str| {
                let file = rustix::fs::openat(&view, name, OFlags::RDONLY, Mode::empty()).unwrap();
                let mut text = String::new();
                std::fs::File::from(file).read_to_string(&mut text).unwrap();
                text
            };
            assert_eq!(
                ["file", "middle", "bottom"].map(read),
                ["top", "middle", "bottom"],
                "{form:?}"
            );
        }
    }
}
