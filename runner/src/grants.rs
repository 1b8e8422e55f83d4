//! What a sandbox in a user namespace of its own gets of the host, which its root has no right to open.
//!
//! Started by root, the helper maps the ids of the sandbox to ids of the host that belong to nobody (from
//! [`OUTSIDE`] on), so that whoever breaks out of it is nobody. Files must not show that: the helper makes
//! the mounts of the host's directories itself, with ids mapped the other way, and hands them over as
//! descriptors. What is 0 on disk is 0 inside, and what 0 inside makes is 0 on disk.
//!
//! ```text
//!  helper, root: maps ids ── Tree, Point, Device, Sysfs … Done ──► init: attaches them where it builds the root
//! ```
//!
//! Where the kernel or a file system knows no id-mapped mounts, [`GrantError::Refused`] says so, and the
//! sandbox does without a user namespace of its own.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Mode, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use serde::{Deserialize, Serialize};

use crate::error::StartError;
use crate::mounts::{clone_tree, is_directory, open_bind_source, sysfs, tmpfs_of_devices};
use crate::spec::{MountKind, NetworkMode, Root, SandboxSpec, Shared, UserNamespace};
use crate::userns::{self, Privilege};
use crate::{confine, sys, wire};

/// The first id of the host that an id inside is mapped to: more than any system gives out.
pub(crate) const OUTSIDE: u32 = 1 << 31;
/// How many are mapped: all that there are, but for those that mean "none".
pub(crate) const COUNT: u32 = (1 << 31) - 2;

/// Why nothing was given.
#[derive(Debug)]
pub(crate) enum GrantError {
    /// The host cannot do it; the sandbox can do without.
    Refused(String),
    /// The sandbox cannot be made in any way.
    Start(StartError),
}

/// One thing given, with its descriptor.
#[derive(Debug, Serialize, Deserialize)]
enum Grant {
    /// A mount of this directory of the host, in which overlayfs finds its layers.
    Tree(PathBuf),
    /// The mount that the spec's mount of this number asks for, and whether it is a directory.
    Point(usize, bool),
    /// A file system with one device node, `node`, for the spec's mount of this number.
    Device(usize),
    /// A sysfs that shows the host's network.
    Sysfs,
    /// That was all. No descriptor.
    Done,
}

/// What init was given.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    /// Directories of the host, and mounts of them.
    pub(crate) trees: Vec<(PathBuf, OwnedFd)>,
    /// By number of the spec's mount: the mount, and whether it is a directory.
    pub(crate) points: BTreeMap<usize, (OwnedFd, bool)>,
    /// By number of the spec's mount: a file system with its node.
    pub(crate) devices: BTreeMap<usize, OwnedFd>,
    pub(crate) sysfs: Option<OwnedFd>,
}

/// Whether the sandbox is to have a user namespace of its own.
pub(crate) fn wanted(spec: &SandboxSpec) -> bool {
    spec.user_namespace == UserNamespace::Own
        // What is the host's own is its root's alone.
        && spec.shared == Shared::default()
        && !spec.confinement.host_devices
        && userns::current() == Privilege::Root
}

/// The helper's side: maps the ids of init, process `pid`, unless they `are_new` no more, and gives it what `spec` needs.
pub(crate) fn give(
    pid: i32,
    init: BorrowedFd<'_>,
    spec: &SandboxSpec,
    are_new: bool,
) -> Result<(), GrantError> {
    let refused = |what: &str| {
        let what = what.to_owned();
        move |error: io::Error| GrantError::Refused(format!("{what}: {error}"))
    };
    for map in ["uid_map", "gid_map"].into_iter().filter(|_| are_new) {
        fs::write(format!("/proc/{pid}/{map}"), format!("0 {OUTSIDE} {COUNT}"))
            .map_err(refused("ids cannot be mapped"))?;
    }
    let namespace = File::open(format!("/proc/{pid}/ns/user"))
        .map_err(refused("its user namespace cannot be opened"))?;
    confine::raise_limits(pid, &spec.ulimits);
    let send = |grant: Grant, fd: BorrowedFd<'_>| {
        wire::send(init, &grant, &[fd])
            .map_err(|error| GrantError::Start(StartError::step("hand a mount to init")(error)))
    };

    for top in tops(spec).map_err(GrantError::Start)? {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, &top, flags).map_err(|errno| {
            GrantError::Start(StartError::MountSource {
                source_path: top.display().to_string(),
                target: "/".into(),
                errno: errno.into(),
            })
        })?;
        sys::map_mount_ids(mount.as_fd(), namespace.as_fd(), false).map_err(unmappable(&top))?;
        send(Grant::Tree(top), mount.as_fd())?;
    }
    for (number, point) in spec.mounts.iter().enumerate() {
        match &point.kind {
            MountKind::Bind {
                source, beneath, ..
            } => {
                let found =
                    open_bind_source(source, beneath, &point.target).map_err(GrantError::Start)?;
                let fail = |errno: Errno| {
                    GrantError::Start(StartError::MountSource {
                        source_path: source.display().to_string(),
                        target: point.target.clone(),
                        errno: errno.into(),
                    })
                };
                let directory = is_directory(&found).map_err(fail)?;
                let mount = clone_tree(found.as_fd(), directory).map_err(fail)?;
                sys::map_mount_ids(mount.as_fd(), namespace.as_fd(), directory)
                    .map_err(unmappable(source))?;
                send(Grant::Point(number, directory), mount.as_fd())?;
            }
            MountKind::Device { source } => {
                let node = device(source).map_err(|errno| {
                    GrantError::Start(StartError::MountSource {
                        source_path: source.display().to_string(),
                        target: point.target.clone(),
                        errno: errno.into(),
                    })
                })?;
                send(Grant::Device(number), node.as_fd())?;
            }
            MountKind::Overlay { .. } | MountKind::Tmpfs { .. } | MountKind::File { .. } => {}
        }
    }
    if spec.network == NetworkMode::Host {
        // Only who owns the network namespace may mount it.
        let mount = sysfs(&spec.confinement)
            .map_err(|errno| GrantError::Refused(format!("sysfs cannot be mounted: {errno}")))?;
        send(Grant::Sysfs, mount.as_fd())?;
    }
    wire::send(init, &Grant::Done, &[])
        .map_err(|error| GrantError::Start(StartError::step("hand a mount to init")(error)))
}

fn unmappable(path: &Path) -> impl FnOnce(io::Error) -> GrantError {
    let path = path.display().to_string();
    move |error| {
        GrantError::Refused(format!(
            "the kernel or the file system of `{path}` has no id-mapped mounts: {error}"
        ))
    }
}

/// Init's side: takes what is given, then becomes root of its user namespace.
pub(crate) fn take(helper: BorrowedFd<'_>) -> Result<Granted, StartError> {
    let mut granted = Granted::default();
    let incomplete = || StartError::Spec {
        what: "a mount did not arrive".into(),
    };
    loop {
        let (grant, mut fds) = wire::receive::<Grant>(helper)
            .map_err(StartError::step("hear from the helper"))?
            .ok_or_else(incomplete)?;
        if matches!(grant, Grant::Done) {
            break;
        }
        let fd = fds.pop().ok_or_else(incomplete)?;
        match grant {
            Grant::Tree(path) => granted.trees.push((path, fd)),
            Grant::Point(number, directory) => {
                granted.points.insert(number, (fd, directory));
            }
            Grant::Device(number) => {
                granted.devices.insert(number, fd);
            }
            Grant::Sysfs => granted.sysfs = Some(fd),
            Grant::Done => {}
        }
    }
    // The longest first: what is mounted below another tree is found in its own.
    granted
        .trees
        .sort_by_key(|(path, _)| std::cmp::Reverse(path.as_os_str().len()));
    let (root, wheel) = (rustix::thread::Uid::ROOT, rustix::thread::Gid::ROOT);
    rustix::thread::set_thread_groups(&[])
        .and_then(|()| rustix::thread::set_thread_res_gid(wheel, wheel, wheel))
        .and_then(|()| rustix::thread::set_thread_res_uid(root, root, root))
        .map_err(StartError::step("become root of the user namespace"))?;
    Ok(granted)
}

/// For each mount of the host in which there are directories that overlayfs is to stack: the deepest directory that
/// holds them all. One mount for all of them, since upper and work directory must be of one.
fn tops(spec: &SandboxSpec) -> Result<Vec<PathBuf>, StartError> {
    let mut paths: Vec<(&Path, &str)> = Vec::new();
    match &spec.root {
        Root::Overlay {
            lower, upper, work, ..
        } => paths.extend(
            lower
                .iter()
                .chain([upper, work])
                .map(|p| (p.as_path(), "/")),
        ),
        Root::Directory(directory) => paths.push((directory, "/")),
    }
    for point in &spec.mounts {
        if let MountKind::Overlay { lower, upper, .. } = &point.kind {
            let upper = upper.iter().flat_map(|(upper, work)| [upper, work]);
            let all = lower.iter().chain(upper);
            paths.extend(all.map(|path| (path.as_path(), point.target.as_str())));
        }
    }
    let mut tops: BTreeMap<u64, PathBuf> = BTreeMap::new();
    for (path, target) in paths {
        let found = rustix::fs::statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID);
        let mount = found
            .map_err(|errno| StartError::MountSource {
                source_path: path.display().to_string(),
                target: target.to_owned(),
                errno: errno.into(),
            })?
            .stx_mnt_id;
        tops.entry(mount)
            .and_modify(|top| while !path.starts_with(&*top) && top.pop() {})
            .or_insert_with(|| path.to_owned());
    }
    Ok(tops.into_values().collect())
}

/// A file system in memory with a node for the device that `source` is, whose owner inside is the one that it has
/// outside: the kernel lets nobody open one that was made in a user namespace.
fn device(source: &Path) -> Result<OwnedFd, Errno> {
    let stat = rustix::fs::stat(source)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
        return Err(Errno::NODEV);
    }
    let mount = tmpfs_of_devices()?;
    let mode = Mode::from_raw_mode(stat.st_mode & 0o777);
    rustix::fs::mknodat(&mount, "node", kind, mode, stat.st_rdev)?;
    let inside = |id: u32| OUTSIDE.saturating_add(id.min(COUNT - 1));
    rustix::fs::chownat(
        &mount,
        "node",
        Some(rustix::fs::Uid::from_raw(inside(stat.st_uid))),
        Some(rustix::fs::Gid::from_raw(inside(stat.st_gid))),
        AtFlags::empty(),
    )?;
    Ok(mount)
}
