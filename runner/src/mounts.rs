//! The root as the process sees it, built with the new mount API in init's own mount namespace.
//!
//! ```text
//! /            overlay of the layers, or a directory; never devices
//! /proc        of the new pid namespace; parts hidden or read-only
//! /dev         tmpfs: null zero full random urandom tty, pts/, shm/, mqueue/, console; links
//! /sys         read-only; parts hidden
//! /etc/{hosts,resolv.conf,hostname}, and whatever the spec asks for
//! ```
//!
//! Two rules keep a hostile root from reaching the host. Every target is opened beneath the new root
//! and mounted on by descriptor, so no link leads out of it. And everything writable is mounted
//! `nodev`: root in the sandbox may make device nodes (Docker lets it), but only the six standard ones,
//! each a mount of its own, can be opened; Docker needs the devices control group for this.
//!
//! Nothing is visible outside init's namespace, and all of it goes when the last process does.

use std::ffi::OsStr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Mode, OFlags, ResolveFlags, Uid, chownat};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags,
    OpenTreeFlags, UnmountFlags, fsconfig_create, fsconfig_set_flag, fsconfig_set_string, fsmount,
    fsopen, mount_change, move_mount, open_tree, unmount,
};

use crate::error::StartError;
use crate::grants::Granted;
use crate::spec::{Confinement, ProcessSpec, Root, SandboxSpec};
use crate::stubs::{Stub, Tree, open_in_root, reach};
use crate::sys;

mod devices;
mod points;

pub(crate) use points::{is_directory, open_bind_source, points_of};

const NODEV: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NODEV;
const NOEXEC: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOEXEC;
const NOSUID: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_NOSUID;
const RDONLY: MountAttrFlags = MountAttrFlags::MOUNT_ATTR_RDONLY;

/// The devices every process may expect: name, major, minor.
pub(crate) const DEVICES: [(&str, u32, u32); 6] = [
    ("null", 1, 3),
    ("zero", 1, 5),
    ("full", 1, 7),
    ("random", 1, 8),
    ("urandom", 1, 9),
    ("tty", 5, 0),
];

pub(crate) const DEVICE_LINKS: [(&str, &str); 6] = [
    ("fd", "/proc/self/fd"),
    ("stdin", "/proc/self/fd/0"),
    ("stdout", "/proc/self/fd/1"),
    ("stderr", "/proc/self/fd/2"),
    ("core", "/proc/kcore"),
    ("ptmx", "pts/ptmx"),
];

/// Hidden, as Docker does: they tell about the host, or act on it.
const MASKED: [&str; 12] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Readable but not writable, as Docker does.
const READ_ONLY: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// Docker's size for `/dev` and `/dev/shm`.
const DEV_BYTES: &str = "65536k";

/// The finished root, not yet entered.
#[derive(Debug)]
pub(crate) struct NewRoot {
    root: OwnedFd,
}

/// Where the root is built, in init's own view: every kernel has it, everyone may go there, and nothing in it is needed.
const ANCHOR: &str = "/proc/driver";

/// Builds the root of `spec`, of what was `granted` if init has ids of its own, and with the `memory` of another sandbox if it shares that. `stub` is told of each mount point made in it, `note` of what is missing.
pub(crate) fn build(
    spec: &SandboxSpec,
    granted: Option<Granted>,
    memory: Option<OwnedFd>,
    stub: &mut dyn FnMut(Stub),
    note: &mut dyn FnMut(String),
) -> Result<NewRoot, StartError> {
    // Nothing mounted here may travel to the host, nor the other way round.
    mount_change(
        "/",
        MountPropagationFlags::PRIVATE | MountPropagationFlags::REC,
    )
    .map_err(StartError::step("make the mounts private"))?;

    let nodev = match spec.confinement.host_devices {
        true => MountAttrFlags::empty(),
        false => NODEV,
    };
    // Sources for single files must be attached somewhere to be bound from; under the root is as good
    // a place as any, and it goes with the old root.
    let scratch = tmpfs(&[("mode", "0700"), ("size", "16m")], NOSUID)
        .map_err(mount_error("a temporary file system", "/"))?;
    let put = |mount: &OwnedFd| {
        let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
        move_mount(mount, "", CWD, ANCHOR, flags).map_err(mount_error("the root", "/"))
    };
    put(&scratch)?;
    let mut granted = granted.unwrap_or_default();
    let host = Host::attach(&granted.trees, scratch.as_fd())
        .map_err(mount_error("the layers' directory", "/"))?;
    let upper = match &spec.root {
        Root::Overlay { upper, .. } => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let found = rustix::fs::open(host.path(upper), flags, Mode::empty());
            Some(found.map_err(|errno| StartError::MountSource {
                source_path: upper.display().to_string(),
                target: "/".into(),
                errno: errno.into(),
            })?)
        }
        Root::Directory(_) => None,
    };
    let root = root_mount(&spec.root, &host, nodev)?;
    put(&root)?;

    let mut builder = Builder {
        tree: Tree {
            root: root.as_fd(),
            upper: upper.as_ref().map(AsFd::as_fd),
        },
        scratch: scratch.as_fd(),
        scratch_names: 0,
        host,
        granted: &mut granted,
        null: None,
        nodev,
        stub,
        note,
    };
    builder.proc()?;
    builder.dev(spec, memory)?;
    builder.sys(spec)?;
    builder.mount_spec(spec)?;
    if spec.confinement.mask_paths {
        builder.mask()?;
    }
    if spec.process.make_cwd {
        make_working_directory(builder.tree, &spec.process)?;
    }
    if spec.read_only {
        sys::set_mount_attributes(root.as_fd(), RDONLY.bits().into(), false)
            .map_err(StartError::step("make the root read-only"))?;
    }
    Ok(NewRoot { root })
}

impl NewRoot {
    /// Makes it this process's root, and lets go of the old one.
    pub(crate) fn enter(self) -> Result<(), StartError> {
        rustix::process::fchdir(&self.root).map_err(StartError::step("enter the new root"))?;
        // With both names the same, the old root ends up mounted over the new one, from where it is
        // taken away: no directory is needed to keep it.
        rustix::process::pivot_root(".", ".").map_err(StartError::step("change the root"))?;
        unmount(".", UnmountFlags::DETACH).map_err(StartError::step("detach the old root"))?;
        rustix::process::chdir("/").map_err(StartError::step("enter the new root"))
    }

    /// Opens a new terminal: its master, and the side for the process.
    pub(crate) fn open_terminal(&self) -> Result<(OwnedFd, OwnedFd), StartError> {
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let step = || StartError::step::<Errno>("open a terminal");
        let master = rustix::fs::openat2(&self.root, "dev/pts/ptmx", flags, Mode::empty(), resolve)
            .map_err(step())?;
        let slave = open_slave(&master).map_err(step())?;
        // The console is the same terminal, by its well-known name. Bound from the path inside.
        let name = rustix::pty::ptsname(&master, Vec::new()).map_err(step())?;
        let name = name.to_str().unwrap_or_default();
        let node = open_in_root(self.root.as_fd(), name).map_err(step())?;
        let console = clone_tree(node.as_fd(), false).map_err(step())?;
        let target = open_in_root(self.root.as_fd(), "/dev/console").map_err(step())?;
        attach(console.as_fd(), target.as_fd()).map_err(step())?;
        Ok((master, slave))
    }
}

/// Opens a new terminal of the host: its master, by the node at `multiplexer`, and the side for the process.
pub(crate) fn open_terminal_of(multiplexer: &Path) -> Result<(OwnedFd, OwnedFd), StartError> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    rustix::fs::open(multiplexer, flags, Mode::empty())
        .and_then(|master| {
            let slave = open_slave(&master)?;
            Ok((master, slave))
        })
        .map_err(StartError::step("open a terminal"))
}

fn open_slave(master: &OwnedFd) -> Result<OwnedFd, Errno> {
    rustix::pty::unlockpt(master)?;
    rustix::pty::ioctl_tiocgptpeer(
        master,
        rustix::pty::OpenptFlags::RDWR
            | rustix::pty::OpenptFlags::NOCTTY
            | rustix::pty::OpenptFlags::CLOEXEC,
    )
}

/// Directories of the host by the paths under which init can open them.
struct Host {
    /// The longest first.
    trees: Vec<(PathBuf, PathBuf)>,
}

impl Host {
    /// Attaches what was granted in `scratch`.
    fn attach(trees: &[(PathBuf, OwnedFd)], scratch: BorrowedFd<'_>) -> Result<Self, Errno> {
        let mut attached = Vec::new();
        for (number, (path, mount)) in trees.iter().enumerate() {
            let name = format!("tree{number}");
            let is_directory = is_directory(mount)?;
            debug_assert!(is_directory, "layers are directories");
            rustix::fs::mkdirat(scratch, &name, Mode::from_raw_mode(0o700))?;
            attach_at(mount.as_fd(), scratch, &name)?;
            let place = format!("/proc/self/fd/{}/{name}", scratch.as_raw_fd());
            attached.push((path.clone(), PathBuf::from(place)));
        }
        Ok(Self { trees: attached })
    }

    /// Where `path` of the host is found.
    fn path(&self, path: &Path) -> PathBuf {
        self.trees
            .iter()
            .find_map(|(top, place)| Some(place.join(path.strip_prefix(top).ok()?)))
            .unwrap_or_else(|| path.to_owned())
    }

    fn paths(&self, paths: &[PathBuf]) -> Vec<PathBuf> {
        paths.iter().map(|path| self.path(path)).collect()
    }
}

fn root_mount(root: &Root, host: &Host, nodev: MountAttrFlags) -> Result<OwnedFd, StartError> {
    match root {
        Root::Overlay {
            lower,
            upper,
            work,
            volatile,
        } => {
            let fail = mount_error("the layers as overlay", "/");
            let (upper, work) = (host.path(upper), host.path(work));
            overlay(&host.paths(lower), Some((&upper, &work)), *volatile, nodev).map_err(fail)
        }
        Root::Directory(directory) => {
            let fail = |errno: Errno| StartError::MountSource {
                source_path: directory.display().to_string(),
                target: "/".into(),
                errno: errno.into(),
            };
            let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
            let mount = open_tree(CWD, host.path(directory), flags).map_err(fail)?;
            sys::set_mount_attributes(mount.as_fd(), nodev.bits().into(), false)
                .map_err(StartError::step("mount the root without devices"))?;
            Ok(mount)
        }
    }
}

fn overlay(
    lower: &[PathBuf],
    upper: Option<(&Path, &Path)>,
    volatile: bool,
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    // The kernel marks a volatile overlay in its work directory and refuses to mount it again, since
    // after a crash its content may be torn. Whether it is, the caller knows; a mark that only means
    // "was not unmounted by us" must not stand in the way.
    if let Some((_, work)) = upper {
        let mark = work.join("work/incompat/volatile");
        if rustix::fs::unlink(mark.join("dirty")).is_ok() {
            // If the rest of the mark stays, the mount says so.
            let _removed = rustix::fs::rmdir(&mark);
            let _removed = rustix::fs::rmdir(work.join("work/incompat"));
        }
    }

    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "overlay")?;
    // They only have to live until the mount is made.
    let mut handles = Vec::new();
    for (position, layer) in lower.iter().enumerate() {
        match fsconfig_set_string(&context, "lowerdir+", layer) {
            Ok(()) => {}
            // Before 6.8 there is one string for all, of at most 255 bytes. Handles are shorter than
            // paths and hold no colon, so about a dozen layers fit.
            Err(Errno::INVAL) if position == 0 => {
                for layer in lower {
                    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
                    handles.push(rustix::fs::open(layer, flags, Mode::empty())?);
                }
                let names: Vec<String> = handles
                    .iter()
                    .map(|handle| format!("/proc/self/fd/{}", handle.as_raw_fd()))
                    .collect();
                fsconfig_set_string(&context, "lowerdir", names.join(":"))?;
                break;
            }
            Err(error) => return Err(error),
        }
    }
    if let Some((upper, work)) = upper {
        fsconfig_set_string(&context, "upperdir", upper)?;
        fsconfig_set_string(&context, "workdir", work)?;
    }
    fsconfig_set_flag(&context, "userxattr")?;
    if volatile && upper.is_some() {
        // Since 5.10; where it is not known, syncing is all that is lost.
        match fsconfig_set_flag(&context, "volatile") {
            Ok(()) | Err(Errno::INVAL) => {}
            Err(error) => return Err(error),
        }
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

struct Builder<'a> {
    tree: Tree<'a>,
    scratch: BorrowedFd<'a>,
    /// Names given in `scratch`.
    scratch_names: u32,
    host: Host,
    granted: &'a mut Granted,
    /// The mount on `/dev/null`, which also hides files.
    null: Option<OwnedFd>,
    /// `nodev`, unless devices are not to be kept away.
    nodev: MountAttrFlags,
    stub: &'a mut dyn FnMut(Stub),
    note: &'a mut dyn FnMut(String),
}

impl Builder<'_> {
    fn proc(&mut self) -> Result<(), StartError> {
        let target = self.own_directory("proc")?;
        let fail = || mount_error("proc", "/proc");
        let mount = match filesystem("proc", &[], NOSUID | NODEV | NOEXEC) {
            Ok(mount) => mount,
            // In a container that hides some of its own, none may be made that shows it.
            Err(Errno::PERM) => {
                (self.note)("/proc is that of the container around".to_owned());
                let around = open_directory("/proc").map_err(fail())?;
                clone_tree(around.as_fd(), true).map_err(fail())?
            }
            Err(errno) => return Err(fail()(errno)),
        };
        attach(mount.as_fd(), target.as_fd()).map_err(fail())
    }

    fn dev(&mut self, spec: &SandboxSpec, memory: Option<OwnedFd>) -> Result<(), StartError> {
        let target = self.own_directory("dev")?;
        let fail = || mount_error("devices", "/dev");
        let dev = tmpfs(
            &[("mode", "0755"), ("size", DEV_BYTES)],
            NOSUID | self.nodev | NOEXEC,
        )
        .map_err(fail())?;
        attach(dev.as_fd(), target.as_fd()).map_err(fail())?;

        for (name, major, minor) in DEVICES {
            let node = self.device(name, major, minor).map_err(fail())?;
            let file = empty_file(dev.as_fd(), name).map_err(fail())?;
            attach(node.as_fd(), file.as_fd()).map_err(fail())?;
            if name == "null" {
                self.null = Some(node);
            }
        }
        for (name, to) in DEVICE_LINKS {
            rustix::fs::symlinkat(to, &dev, name).map_err(fail())?;
        }
        for name in ["pts", "shm", "mqueue"] {
            rustix::fs::mkdirat(&dev, name, Mode::from_raw_mode(0o755)).map_err(fail())?;
        }
        if spec.confinement.host_devices {
            self.host_devices(dev.as_fd())?;
        }
        if spec.process.terminal {
            empty_file(dev.as_fd(), "console").map_err(fail())?;
        }

        let pts = devpts().map_err(mount_error("devpts", "/dev/pts"))?;
        attach_at(pts.as_fd(), dev.as_fd(), "pts").map_err(mount_error("devpts", "/dev/pts"))?;
        let shm_size = spec.shm_size.map(|bytes| bytes.to_string());
        let shm_size = shm_size.as_deref().unwrap_or(DEV_BYTES);
        let shm = match (memory, spec.shared.ipc) {
            (Some(of_another), _) => Ok(of_another),
            (None, true) => {
                open_directory("/dev/shm").and_then(|host| clone_tree(host.as_fd(), false))
            }
            (None, false) => tmpfs(
                &[("mode", "1777"), ("size", shm_size)],
                NOSUID | NODEV | NOEXEC,
            ),
        }
        .map_err(mount_error("shared memory", "/dev/shm"))?;
        attach_at(shm.as_fd(), dev.as_fd(), "shm")
            .map_err(mount_error("shared memory", "/dev/shm"))?;
        match filesystem("mqueue", &[], NOSUID | NODEV | NOEXEC) {
            Ok(queue) => attach_at(queue.as_fd(), dev.as_fd(), "mqueue")
                .map_err(mount_error("message queues", "/dev/mqueue")),
            Err(Errno::NODEV) => {
                (self.note)("the kernel has no message queues: /dev/mqueue is a directory".into());
                Ok(())
            }
            Err(errno) => Err(mount_error("message queues", "/dev/mqueue")(errno)),
        }
    }

    /// A mount of one device node. Its own node where nodes may be made, so that a chmod inside does
    /// not reach the host's; the host's in a user namespace, where a chmod is refused anyway.
    fn device(&self, name: &str, major: u32, minor: u32) -> Result<OwnedFd, Errno> {
        let mode = Mode::from_raw_mode(0o666);
        let device = rustix::fs::makedev(major, minor);
        match rustix::fs::mknodat(self.scratch, name, FileType::CharacterDevice, mode, device) {
            Ok(()) => {
                let node = rustix::fs::openat(
                    self.scratch,
                    name,
                    OFlags::PATH | OFlags::CLOEXEC,
                    Mode::empty(),
                )?;
                clone_tree(node.as_fd(), false)
            }
            Err(Errno::PERM) => {
                let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
                open_tree(CWD, format!("/dev/{name}"), flags)
            }
            Err(error) => Err(error),
        }
    }

    fn sys(&mut self, spec: &SandboxSpec) -> Result<(), StartError> {
        let target = self.own_directory("sys")?;
        let fail = || mount_error("sysfs", "/sys");
        let attributes = sysfs_attributes(&spec.confinement);
        let mounted = match self.granted.sysfs.take() {
            Some(mount) => Ok(mount),
            None => sysfs(&spec.confinement),
        };
        match mounted {
            Ok(mount) => attach(mount.as_fd(), target.as_fd()).map_err(fail())?,
            // Only the owner of the network namespace may; the host's own view is then the same.
            Err(Errno::PERM) if !spec.network.is_own() => {
                let host = open_directory("/sys").map_err(fail())?;
                let mount = clone_tree(host.as_fd(), true).map_err(fail())?;
                sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), true)
                    .map_err(StartError::step("make /sys read-only"))?;
                return attach(mount.as_fd(), target.as_fd()).map_err(fail());
            }
            Err(errno) => return Err(fail()(errno)),
        }
        // Programs read their limits from here. Version 1 has one hierarchy for each controller, and
        // programs that look for those also take their absence.
        if let Ok(mount) = filesystem("cgroup2", &[], attributes)
            && let Ok(at) = open_in_root(self.tree.root, "/sys/fs/cgroup")
        {
            attach(mount.as_fd(), at.as_fd()).map_err(mount_error("cgroup2", "/sys/fs/cgroup"))?;
        }
        Ok(())
    }

    fn mask(&mut self) -> Result<(), StartError> {
        // Ours, not what a mount of the spec may have put on its path since.
        let null = self.null.take();
        let mut empty: Option<OwnedFd> = None;
        let throttle = thermal_throttle_paths();
        for path in MASKED
            .into_iter()
            .chain(throttle.iter().map(String::as_str))
        {
            let Some(target) = self.find(path)? else {
                continue;
            };
            let fail = || mount_error("a mask", path);
            let stat = rustix::fs::fstat(&target).map_err(fail())?;
            let mask = if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                let null = null.as_ref().ok_or(Errno::NOENT).map_err(fail())?;
                clone_tree(null.as_fd(), false).map_err(fail())?
            } else if let Some(empty) = &empty {
                clone_tree(empty.as_fd(), false).map_err(fail())?
            } else {
                tmpfs(
                    &[("mode", "0755"), ("size", "0")],
                    NOSUID | NODEV | NOEXEC | RDONLY,
                )
                .map_err(fail())?
            };
            attach(mask.as_fd(), target.as_fd()).map_err(fail())?;
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory && empty.is_none() {
                empty = Some(mask);
            }
        }
        let attributes = NOSUID | NODEV | NOEXEC | RDONLY;
        for path in READ_ONLY {
            let Some(target) = self.find(path)? else {
                continue;
            };
            let fail = || mount_error("itself read-only", path);
            let mount = clone_tree(target.as_fd(), false).map_err(fail())?;
            sys::set_mount_attributes(mount.as_fd(), attributes.bits().into(), false)
                .map_err(StartError::step(format!("make `{path}` read-only")))?;
            attach(mount.as_fd(), target.as_fd()).map_err(fail())?;
        }
        Ok(())
    }

    /// Opens a path of ours (beneath `/proc`, `/sys` or `/dev`), if it is there.
    fn find(&self, path: &str) -> Result<Option<OwnedFd>, StartError> {
        match open_in_root(self.tree.root, path) {
            Ok(found) => Ok(Some(found)),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::ACCESS) => Ok(None),
            Err(errno) => Err(StartError::MountTarget {
                target: path.to_owned(),
                errno: errno.into(),
            }),
        }
    }

    /// Opens `/proc`, `/sys` or `/dev` of the root, which must be a real directory: where a link led,
    /// a later mount or mask could be made to miss.
    fn own_directory(&mut self, name: &str) -> Result<OwnedFd, StartError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match rustix::fs::openat(self.tree.root, name, flags, Mode::empty()) {
            Ok(found) => Ok(found),
            Err(Errno::NOENT) => {
                reach(self.tree, name, true, self.stub).map_err(|errno| StartError::MountTarget {
                    target: format!("/{name}"),
                    errno: errno.into(),
                })
            }
            Err(Errno::NOTDIR | Errno::LOOP) => Err(StartError::NotADirectory {
                target: format!("/{name}"),
            }),
            Err(errno) => Err(StartError::MountTarget {
                target: format!("/{name}"),
                errno: errno.into(),
            }),
        }
    }
}

/// Makes a working directory; unlike a stub it is meant to stay.
pub(crate) fn make_working_directory(
    tree: Tree<'_>,
    process: &ProcessSpec,
) -> Result<(), StartError> {
    let mut made = Vec::new();
    reach(tree, &process.cwd, true, &mut |stub| made.push(stub.path))
        .and_then(|_| {
            let owned = made.iter().filter(|_| process.own_cwd);
            let owner = (
                Some(Uid::from_raw(process.user.uid)),
                Some(Gid::from_raw(process.user.gid)),
            );
            owned.into_iter().try_for_each(|path| {
                let path = OsStr::from_bytes(path);
                chownat(tree.root, path, owner.0, owner.1, AtFlags::SYMLINK_NOFOLLOW)
            })
        })
        .map_err(|errno| StartError::WorkingDirectory {
            path: process.cwd.clone(),
            errno: errno.into(),
        })
}

/// Docker hides these too: they tell of other loads on the processor.
fn thermal_throttle_paths() -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/sys/devices/system/cpu") else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| {
            name.strip_prefix("cpu")
                .is_some_and(|n| n.parse::<u32>().is_ok())
        })
        .map(|name| format!("/sys/devices/system/cpu/{name}/thermal_throttle"))
        .collect()
}

fn devpts() -> Result<OwnedFd, Errno> {
    let options = [("ptmxmode", "0666"), ("mode", "0620")];
    let with_group = [options[0], options[1], ("gid", "5")];
    match filesystem("devpts", &with_group, NOSUID | NOEXEC) {
        // Group 5, `tty` everywhere, may have no meaning in this user namespace.
        Err(Errno::INVAL) => filesystem("devpts", &options, NOSUID | NOEXEC),
        result => result,
    }
}

fn sysfs_attributes(confinement: &Confinement) -> MountAttrFlags {
    // Whoever is confined by nothing may also set things there.
    let read_only = match confinement.mask_paths {
        true => RDONLY,
        false => MountAttrFlags::empty(),
    };
    NOSUID | NODEV | NOEXEC | read_only
}

/// A sysfs that shows this process's network.
pub(crate) fn sysfs(confinement: &Confinement) -> Result<OwnedFd, Errno> {
    filesystem("sysfs", &[], sysfs_attributes(confinement))
}

/// A file system in memory whose device nodes can be opened.
pub(crate) fn tmpfs_of_devices() -> Result<OwnedFd, Errno> {
    tmpfs(&[("mode", "0755"), ("size", "64k")], NOSUID | NOEXEC)
}

fn tmpfs(options: &[(&str, &str)], attributes: MountAttrFlags) -> Result<OwnedFd, Errno> {
    filesystem("tmpfs", options, attributes)
}

fn filesystem(
    kind: &str,
    options: &[(&str, &str)],
    attributes: MountAttrFlags,
) -> Result<OwnedFd, Errno> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", kind)?;
    for (key, value) in options {
        fsconfig_set_string(&context, *key, *value)?;
    }
    fsconfig_create(&context)?;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// A detached copy of the mount that `node` is in, from `node` downwards.
pub(crate) fn clone_tree(node: BorrowedFd<'_>, recursive: bool) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE
        | OpenTreeFlags::OPEN_TREE_CLOEXEC
        | OpenTreeFlags::AT_EMPTY_PATH;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(node, "", flags)
}

fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> Result<(), Errno> {
    attach_at(mount, target, "")
}

/// Attaches at `name` in `dir`, a directory that only we have written to.
fn attach_at(mount: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &str) -> Result<(), Errno> {
    let mut flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH;
    if name.is_empty() {
        flags |= MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    }
    debug_assert!(
        mount.as_raw_fd() != dir.as_raw_fd(),
        "a mount cannot be put on itself"
    );
    move_mount(mount, "", dir, name, flags)
}

fn empty_file(dir: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
    rustix::fs::openat(dir, name, flags, Mode::from_raw_mode(0o666))
}

fn open_directory(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(
        path,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
}

fn mount_error(what: &str, target: &str) -> impl FnOnce(Errno) -> StartError {
    move |errno| StartError::Mount {
        what: what.to_owned(),
        target: target.to_owned(),
        errno: errno.into(),
    }
}
