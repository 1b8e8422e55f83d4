//! What a process is to see in its root, in place of what is there.

use std::fs::{self, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, Timespec, Timestamps, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::error::StartError;
use crate::mounts::{DEVICE_LINKS, DEVICES, is_directory, open_bind_source, points_of};
use crate::spec::{MountKind, MountPoint, SandboxSpec};
use crate::stubs::{Stub, Tree, reach};

/// Files of `/proc` that say something of the machine, not of a process: copied, as they are at the start.
const PROC_FILES: [&str; 7] = [
    "cpuinfo",
    "filesystems",
    "loadavg",
    "meminfo",
    "stat",
    "uptime",
    "version",
];

/// The folder, beside the root, for what is put into it and for what was there.
const FOLDER: &str = "places";

/// Everything that was put into a root.
pub(super) struct Places<'a> {
    root: BorrowedFd<'a>,
    folder: PathBuf,
    made: u32,
    swaps: Vec<Swap>,
}

/// Two names that changed places.
struct Swap {
    /// The directory that the mount point is in.
    parent: OwnedFd,
    name: Vec<u8>,
    /// The other one.
    source: PathBuf,
    /// The directory's time of modification before, and right after.
    before: Timespec,
    after: Timespec,
}

impl<'a> Places<'a> {
    /// Nothing yet, for the root at `path`.
    pub(super) fn new(path: &Path, root: BorrowedFd<'a>) -> Result<Self, StartError> {
        let folder = path.parent().unwrap_or(Path::new("/")).join(FOLDER);
        fs::DirBuilder::new()
            .mode(0o700)
            .create(&folder)
            .map_err(StartError::step(format!("make `{}`", folder.display())))?;
        Ok(Self {
            root,
            folder,
            made: 0,
            swaps: Vec::new(),
        })
    }

    /// Puts everything of `spec` in its place, parents before what lies beneath them.
    pub(super) fn fill(
        &mut self,
        spec: &SandboxSpec,
        tree: Tree<'_>,
        stubs: &mut Vec<Stub>,
        notes: &mut Vec<String>,
    ) -> Result<(), StartError> {
        let proc = self.proc().map_err(StartError::step("make /proc"))?;
        self.put("/proc", &proc, tree, stubs)?;
        let dev = self.dev(notes).map_err(StartError::step("make /dev"))?;
        self.put("/dev", &dev, tree, stubs)?;
        for (_, point) in points_of(spec) {
            let source = self.source(&point, notes)?;
            self.put(&point.target, &source, tree, stubs)?;
        }
        Ok(())
    }

    /// A new name in the folder.
    fn fresh(&mut self) -> PathBuf {
        self.made += 1;
        self.folder.join(self.made.to_string())
    }

    fn directory(&mut self, mode: u32) -> io::Result<PathBuf> {
        let path = self.fresh();
        fs::create_dir(&path)?;
        fs::set_permissions(&path, Permissions::from_mode(mode))?;
        Ok(path)
    }

    fn proc(&mut self) -> io::Result<PathBuf> {
        let proc = self.directory(0o555)?;
        for name in PROC_FILES {
            // What the container hides, the process does not see either.
            if let Ok(content) = fs::read(Path::new("/proc").join(name)) {
                write(&proc.join(name), &content, 0o444)?;
            }
        }
        let mounts = b"longshore / rootfs rw 0 0\n";
        write(&proc.join("mounts"), mounts, 0o444)?;
        Ok(proc)
    }

    fn dev(&mut self, notes: &mut Vec<String>) -> io::Result<PathBuf> {
        let dev = self.directory(0o755)?;
        let mut missing = Vec::new();
        for (name, major, minor) in DEVICES {
            let path = dev.join(name);
            if make_device(&path, rustix::fs::makedev(major, minor), name != "tty").is_err() {
                missing.push(name);
            }
        }
        if missing.contains(&"null") {
            write(&dev.join("null"), b"", 0o666)?;
        }
        if !missing.is_empty() {
            notes.push(format!("no device nodes: {}", missing.join(", ")));
        }
        for (name, to) in DEVICE_LINKS {
            symlink(to, dev.join(name))?;
        }
        for (name, mode) in [("pts", 0o755), ("shm", 0o1777), ("mqueue", 0o1777)] {
            fs::create_dir(dev.join(name))?;
            fs::set_permissions(dev.join(name), Permissions::from_mode(mode))?;
        }
        Ok(dev)
    }

    /// What a mount point shows, in a place from where it can be moved.
    fn source(
        &mut self,
        point: &MountPoint,
        notes: &mut Vec<String>,
    ) -> Result<PathBuf, StartError> {
        let target = point.target.as_str();
        let made = |what: &str| StartError::step(format!("make {what} for `{target}`"));
        let needs = |what: String| StartError::NeedsNamespaces { what };
        match &point.kind {
            MountKind::Bind {
                source, beneath, ..
            } => {
                let found = open_bind_source(source, beneath, target)?;
                real_path(found.as_fd()).map_err(|errno| StartError::MountSource {
                    source_path: source.display().to_string(),
                    target: target.to_owned(),
                    errno: errno.into(),
                })
            }
            MountKind::Tmpfs {
                size,
                mode,
                read_only,
            } => {
                if size.is_some() || *read_only {
                    notes.push(format!("`{target}` has no limit and can be written to"));
                }
                self.directory(*mode).map_err(made("a directory"))
            }
            MountKind::File {
                content,
                mode,
                uid,
                gid,
                ..
            } => {
                let path = self.fresh();
                write(&path, content, *mode)
                    .and_then(|()| match (*uid, *gid) {
                        (0, 0) => Ok(()),
                        (uid, gid) => chown(&path, Some(uid), Some(gid)),
                    })
                    .and_then(|()| fs::set_permissions(&path, Permissions::from_mode(*mode)))
                    .map_err(made("a file"))?;
                Ok(path)
            }
            MountKind::Device { source } => {
                let path = self.fresh();
                let kind = rustix::fs::stat(source).and_then(|stat| {
                    let kind = FileType::from_raw_mode(stat.st_mode);
                    let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
                    rustix::fs::mknodat(CWD, &path, kind, mode, stat.st_rdev)
                });
                kind.map_err(|_| needs(format!("the device `{}`", source.display())))?;
                Ok(path)
            }
            MountKind::Overlay { .. } => Err(needs(format!("layers on `{target}`"))),
        }
    }

    /// Lets `source` and what is at `target` change places; what is missing is made first.
    fn put(
        &mut self,
        target: &str,
        source: &Path,
        tree: Tree<'_>,
        stubs: &mut Vec<Stub>,
    ) -> Result<(), StartError> {
        let fail = |errno: Errno| StartError::MountTarget {
            target: target.to_owned(),
            errno: errno.into(),
        };
        let is_dir = fs::symlink_metadata(source)
            .map_err(|error| fail(Errno::from_io_error(&error).unwrap_or(Errno::IO)))?
            .is_dir();
        let at = reach(tree, target, is_dir, &mut |stub| stubs.push(stub)).map_err(fail)?;
        if is_directory(&at).map_err(fail)? != is_dir {
            return Err(StartError::UnlikeTarget {
                what: format!("`{}`", source.display()),
                target: target.to_owned(),
                is_directory: is_dir,
            });
        }
        self.swap(at.as_fd(), source).map_err(fail)
    }

    fn swap(&mut self, at: BorrowedFd<'_>, source: &Path) -> Result<(), Errno> {
        let path = real_path(at)?;
        let top = real_path(self.root)?;
        let beneath = path.strip_prefix(&top).map_err(|_| Errno::XDEV)?;
        // The root itself has no name that could be another's.
        let name = beneath.file_name().ok_or(Errno::BUSY)?.to_owned();
        let parent = path.parent().ok_or(Errno::BUSY)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let parent = rustix::fs::open(parent, flags, Mode::empty())?;
        let before = modified(&parent)?;
        rustix::fs::renameat_with(&parent, &name, CWD, source, RenameFlags::EXCHANGE)?;
        let after = modified(&parent)?;
        self.swaps.push(Swap {
            parent,
            name: name.into_encoded_bytes(),
            source: source.to_owned(),
            before,
            after,
        });
        Ok(())
    }

    /// Puts everything back, the last first. The first failure is returned; the rest is still tried.
    pub(super) fn clear(mut self) -> Result<(), StartError> {
        let mut result = Ok(());
        while let Some(swap) = self.swaps.pop() {
            let name = String::from_utf8_lossy(&swap.name).into_owned();
            result = result.and(
                swap.undo()
                    .map_err(StartError::step(format!("take `{name}` out of the root"))),
            );
        }
        result.and(
            fs::remove_dir_all(&self.folder).map_err(StartError::step(format!(
                "remove `{}`",
                self.folder.display()
            ))),
        )
    }
}

impl Swap {
    fn undo(self) -> Result<(), Errno> {
        let now = modified(&self.parent)?;
        // Unless the process itself made or removed something there.
        let restored = match same(now, self.after) {
            true => self.before,
            false => now,
        };
        rustix::fs::renameat_with(
            &self.parent,
            &self.name[..],
            CWD,
            &self.source,
            RenameFlags::EXCHANGE,
        )?;
        let times = Timestamps {
            last_access: Timespec {
                tv_sec: 0,
                tv_nsec: UTIME_OMIT,
            },
            last_modification: restored,
        };
        rustix::fs::futimens(&self.parent, &times)
    }
}

fn modified(directory: &OwnedFd) -> Result<Timespec, Errno> {
    let stat = rustix::fs::fstat(directory)?;
    Ok(Timespec {
        tv_sec: stat.st_mtime,
        tv_nsec: i64::try_from(stat.st_mtime_nsec).unwrap_or(0),
    })
}

fn same(a: Timespec, b: Timespec) -> bool {
    (a.tv_sec, a.tv_nsec) == (b.tv_sec, b.tv_nsec)
}

fn real_path(found: BorrowedFd<'_>) -> Result<PathBuf, Errno> {
    use std::os::unix::ffi::OsStringExt;
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    let path = rustix::fs::readlink(name, Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(
        path.into_bytes(),
    )))
}

fn write(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    use std::io::Write;
    let mut options = fs::OpenOptions::new();
    // Secrets too: nobody else's until its owner is known.
    let mut file = options
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content)?;
    file.set_permissions(Permissions::from_mode(mode))
}

/// A device node that can be opened, which not every file system allows.
fn make_device(path: &Path, device: u64, opens: bool) -> Result<(), Errno> {
    let kind = FileType::CharacterDevice;
    rustix::fs::mknodat(CWD, path, kind, Mode::from_raw_mode(0o666), device)?;
    rustix::fs::chmodat(CWD, path, Mode::from_raw_mode(0o666), AtFlags::empty())?;
    if !opens {
        return Ok(());
    }
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
        .map(drop)
        .or_else(|errno| {
            rustix::fs::unlink(path)?;
            Err(errno)
        })
}
