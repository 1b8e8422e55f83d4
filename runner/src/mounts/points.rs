//! What a spec asks to be mounted: files, directories, layers, memory, device nodes.
//!
//! Sources are opened first and mounted by descriptor, targets likewise, so that no link on either side leads elsewhere.
//! All are attached writable, and made read-only once the last one stands: a mount may need a mount point inside another.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::mount::{MountAttrFlags, MoveMountFlags, move_mount};

use super::{
    Builder, NODEV, NOEXEC, NOSUID, RDONLY, attach, attach_at, clone_tree, mount_error, overlay,
    tmpfs,
};
use crate::error::StartError;
use crate::spec::{MountKind, MountPoint, SandboxSpec};
use crate::stubs::{open_in_root, reach};
use crate::sys;

/// A mount that is not attached yet.
struct Source {
    /// For messages.
    what: String,
    mount: OwnedFd,
    is_directory: bool,
    /// Made read-only once everything is attached, with what is mounted beneath it.
    read_only: bool,
}

impl Builder<'_> {
    pub(super) fn mount_spec(&mut self, spec: &SandboxSpec) -> Result<(), StartError> {
        let mounts = points_of(spec);
        let mut read_only = Vec::new();
        for (number, point) in &mounts {
            let source = self.source(*number, point)?;
            let target = point.target.as_str();
            let at = reach(self.tree, target, source.is_directory, self.stub).map_err(|errno| {
                StartError::MountTarget {
                    target: target.to_owned(),
                    errno: errno.into(),
                }
            })?;
            if is_directory(&at).is_ok_and(|there| there != source.is_directory) {
                return Err(StartError::UnlikeTarget {
                    what: source.what,
                    target: target.to_owned(),
                    is_directory: source.is_directory,
                });
            }
            attach(source.mount.as_fd(), at.as_fd()).map_err(mount_error(&source.what, target))?;
            if source.read_only {
                read_only.push((target, source.mount));
            }
        }
        for (target, mount) in read_only {
            sys::set_mount_attributes(mount.as_fd(), RDONLY.bits().into(), false)
                .map_err(restrict(target))?;
        }
        Ok(())
    }

    fn source(&mut self, number: Option<usize>, point: &MountPoint) -> Result<Source, StartError> {
        let target = point.target.as_str();
        Ok(match &point.kind {
            MountKind::Bind {
                source,
                beneath,
                read_only,
            } => {
                let what = format!("`{}`", source.display());
                let given = number.and_then(|number| self.granted.points.remove(&number));
                let (mount, is_directory) = match given {
                    Some(given) => given,
                    None => {
                        let found = open_bind_source(source, beneath, target)?;
                        let is_directory =
                            is_directory(&found).map_err(no_source(source, target))?;
                        let mount = clone_tree(found.as_fd(), is_directory)
                            .map_err(no_source(source, target))?;
                        (mount, is_directory)
                    }
                };
                // Here, not later, for only here can it include what is mounted beneath.
                let read_only = match read_only {
                    true => RDONLY,
                    false => MountAttrFlags::empty(),
                };
                self.restrict(&mount, read_only, is_directory, target)?;
                Source {
                    what,
                    mount,
                    is_directory,
                    read_only: false,
                }
            }
            MountKind::Overlay {
                lower,
                upper,
                beneath,
                read_only,
            } => {
                let what = "layers as overlay";
                let dirs = upper
                    .as_ref()
                    .map(|(upper, work)| (self.host.path(upper), self.host.path(work)));
                let dirs = dirs.as_ref().map(|(u, w)| (u.as_path(), w.as_path()));
                let whole = overlay(&self.host.paths(lower), dirs, true, self.nodev)
                    .map_err(mount_error(what, target))?;
                let (mount, is_directory) = match beneath.trim_matches('/') {
                    "" => (whole, true),
                    path => self
                        .part(&whole, path)
                        .map_err(no_source(Path::new(beneath), target))?,
                };
                Source {
                    what: what.to_owned(),
                    mount,
                    is_directory,
                    read_only: *read_only,
                }
            }
            MountKind::Tmpfs {
                size,
                mode,
                read_only,
            } => {
                let mode = format!("{mode:o}");
                let size = size.map(|size| size.to_string());
                let mut options = vec![("mode", mode.as_str())];
                options.extend(size.iter().map(|size| ("size", size.as_str())));
                let mount =
                    tmpfs(&options, NOSUID | NODEV).map_err(mount_error("tmpfs", target))?;
                Source {
                    what: "tmpfs".to_owned(),
                    mount,
                    is_directory: true,
                    read_only: *read_only,
                }
            }
            MountKind::File {
                content,
                mode,
                uid,
                gid,
                read_only,
            } => {
                let mount = self
                    .file(content, *mode, (*uid, *gid))
                    .map_err(mount_error("a file", target))?;
                let exec = match mode & 0o111 {
                    0 => NOEXEC,
                    _ => MountAttrFlags::empty(),
                };
                self.restrict(&mount, exec, false, target)?;
                Source {
                    what: "a file".to_owned(),
                    mount,
                    is_directory: false,
                    read_only: *read_only,
                }
            }
            MountKind::Device { source } => {
                let given = number.and_then(|number| self.granted.devices.remove(&number));
                let mount = match given {
                    Some(nodes) => self.node(&nodes),
                    None => {
                        open_beneath(source, "").and_then(|found| clone_tree(found.as_fd(), false))
                    }
                };
                let mount = mount.map_err(no_source(source, target))?;
                Source {
                    what: format!("the device `{}`", source.display()),
                    mount,
                    is_directory: false,
                    read_only: false,
                }
            }
        })
    }

    /// A mount of the only device in `nodes`.
    fn node(&mut self, nodes: &OwnedFd) -> Result<OwnedFd, Errno> {
        // As in `part`.
        let name = self.scratch_name();
        rustix::fs::mkdirat(self.scratch, &name, Mode::from_raw_mode(0o700))?;
        attach_at(nodes.as_fd(), self.scratch, &name)?;
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let node = rustix::fs::openat(nodes, "node", flags, Mode::empty())?;
        clone_tree(node.as_fd(), false)
    }

    fn restrict(
        &self,
        mount: &OwnedFd,
        attributes: MountAttrFlags,
        recursive: bool,
        target: &str,
    ) -> Result<(), StartError> {
        let attributes = attributes | self.nodev;
        if attributes.is_empty() {
            return Ok(());
        }
        sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), recursive)
            .map_err(restrict(target))
    }

    /// A mount of what is at `path` in `whole`, links taken as if its top were `/`, and whether that is a directory.
    fn part(&mut self, whole: &OwnedFd, path: &str) -> Result<(OwnedFd, bool), Errno> {
        // Only what is attached somewhere can be bound from, before Linux 6.15.
        let name = self.scratch_name();
        rustix::fs::mkdirat(self.scratch, &name, Mode::from_raw_mode(0o700))?;
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(whole, "", self.scratch, &name, flags)?;
        let found = open_in_root(whole.as_fd(), path)?;
        let is_directory = is_directory(&found)?;
        Ok((clone_tree(found.as_fd(), false)?, is_directory))
    }

    /// A mount of a new file in memory.
    fn file(&mut self, content: &[u8], mode: u32, owner: (u32, u32)) -> Result<OwnedFd, Errno> {
        let name = self.scratch_name();
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let file = rustix::fs::openat(self.scratch, &name, flags, Mode::empty())?;
        let mut rest = content;
        while !rest.is_empty() {
            let written = rustix::io::write(&file, rest)?;
            rest = &rest[written..];
        }
        if owner != (0, 0) {
            let uid = rustix::fs::Uid::from_raw(owner.0);
            let gid = rustix::fs::Gid::from_raw(owner.1);
            rustix::fs::fchown(&file, Some(uid), Some(gid))?;
        }
        rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?;
        let path = OFlags::PATH | OFlags::CLOEXEC;
        let node = rustix::fs::openat(self.scratch, &name, path, Mode::empty())?;
        clone_tree(node.as_fd(), false)
    }

    fn scratch_name(&mut self) -> String {
        self.scratch_names += 1;
        format!("mount{}", self.scratch_names)
    }
}

/// All that is mounted, parents before what lies beneath them: files of `/etc`, then what is asked for, with its number.
pub(crate) fn points_of(spec: &SandboxSpec) -> Vec<(Option<usize>, MountPoint)> {
    let etc = [
        ("/etc/hosts", &spec.etc.hosts),
        ("/etc/resolv.conf", &spec.etc.resolv_conf),
        ("/etc/hostname", &spec.etc.hostname),
    ];
    let etc = etc.into_iter().filter_map(|(target, content)| {
        let kind = MountKind::File {
            content: content.as_ref()?.clone().into_bytes(),
            mode: 0o644,
            uid: 0,
            gid: 0,
            read_only: false,
        };
        Some(MountPoint {
            target: target.into(),
            kind,
        })
    });
    let asked = spec.mounts.iter().cloned().enumerate();
    let mut mounts: Vec<(Option<usize>, MountPoint)> = etc
        .map(|point| (None, point))
        .chain(asked.map(|(number, point)| (Some(number), point)))
        .collect();
    mounts.sort_by_key(|(_, mount)| Path::new(&mount.target).components().count());
    mounts
}

/// Opens what a [`MountKind::Bind`] for `target` shows.
pub(crate) fn open_bind_source(
    source: &Path,
    beneath: &str,
    target: &str,
) -> Result<OwnedFd, StartError> {
    open_beneath(source, beneath).map_err(|errno| match errno {
        Errno::XDEV => StartError::SourceLeadsOut {
            source_path: source.display().to_string(),
            beneath: beneath.to_owned(),
            target: target.to_owned(),
        },
        errno => {
            let shown = match beneath {
                "" => source.to_owned(),
                beneath => source.join(beneath),
            };
            no_source(&shown, target)(errno)
        }
    })
}

/// Opens `beneath` in `source`, which no link may lead out of, or `source` itself.
fn open_beneath(source: &Path, beneath: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let top = rustix::fs::openat(CWD, source, flags, Mode::empty())?;
    let path = beneath.trim_matches('/');
    if path.is_empty() {
        return Ok(top);
    }
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    // A rename anywhere on the machine makes the kernel give up on `..`: it asks to be tried again.
    for _ in 0..100 {
        match rustix::fs::openat2(&top, path, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN) => {}
            result => return result,
        }
    }
    Err(Errno::AGAIN)
}

pub(crate) fn is_directory(found: impl AsFd) -> Result<bool, Errno> {
    let found: BorrowedFd<'_> = found.as_fd();
    let mode = rustix::fs::fstat(found)?.st_mode;
    Ok(FileType::from_raw_mode(mode) == FileType::Directory)
}

fn no_source(source: &Path, target: &str) -> impl Fn(Errno) -> StartError {
    let (source, target): (PathBuf, String) = (source.to_owned(), target.to_owned());
    move |errno| StartError::MountSource {
        source_path: source.display().to_string(),
        target: target.clone(),
        errno: errno.into(),
    }
}

fn restrict(target: &str) -> impl Fn(std::io::Error) -> StartError {
    let target = target.to_owned();
    move |error| StartError::step(format!("restrict the mount on `{target}`"))(error)
}
