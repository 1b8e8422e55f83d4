//! How sandboxes can be made where this program runs, why so, and what would be better: for reports.
//!
//! Nothing is guessed from versions and settings. What can be done is tried, on a process that ends at once; settings only name
//! the reason when it fails.

use std::fs;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{WaitId, WaitIdOptions, waitid};

use crate::cgroup::Cgroups;
use crate::grants::{COUNT, OUTSIDE};
use crate::spec::{Limits, MEMORY_MIN};
use crate::sys::{self, Fork};
use crate::userns::{self, Isolation, Privilege, isolation};

/// Ways to make sandboxes, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// As root, each sandbox in a user namespace of its own: root in it is nobody outside.
    RootWithUserNamespaces,
    /// As root of the host: root in a sandbox is held by everything else only.
    Root,
    /// In a user namespace with subordinate ids.
    RootlessSubordinate,
    /// In a user namespace with a single id.
    RootlessSingleId,
    /// As root of a container that refuses namespaces: in another root directory, and nothing else.
    Chroot,
    /// Not at all: namespaces are refused, and so is everything else.
    Refused,
}

impl Mode {
    /// Its name for programs.
    pub fn name(self) -> &'static str {
        match self {
            Self::RootWithUserNamespaces => "root-with-user-namespaces",
            Self::Root => "root",
            Self::RootlessSubordinate => "rootless-subordinate-ids",
            Self::RootlessSingleId => "rootless-single-id",
            Self::Chroot => "chroot",
            Self::Refused => "refused",
        }
    }
}

/// What was found.
#[derive(Clone, Debug)]
pub struct Survey {
    /// Whose privileges this program has.
    pub privilege: Privilege,
    /// The way that is used.
    pub mode: Mode,
    /// Why this one, in a sentence.
    pub why: String,
    /// What it lacks, and what would give that.
    pub lacks: Vec<Lack>,
    /// What of a sandbox can be limited: the names of fields of [`Limits`], without units.
    pub limits: Vec<&'static str>,
    /// Whether layers are copied, because overlayfs cannot stack them.
    pub copies: bool,
}

/// Something that is missing.
#[derive(Clone, Debug)]
pub struct Lack {
    /// What cannot be done.
    pub what: String,
    /// What somebody may do about it.
    pub better: String,
}

/// Finds out, for sandboxes whose layers lie in `store`, which need not be there. To be called with a single thread.
pub fn survey(store: &Path) -> Survey {
    let mut survey = if userns::may_administer_as_root() {
        as_root(store)
    } else {
        as_user()
    };
    survey.limits = limits();
    survey.copies = survey.mode >= Mode::Chroot || is_on_overlayfs(store);
    if survey.copies {
        survey.lacks.push(Lack {
            what: "layers stacked by overlayfs: they are copied, and there are no containers, only builds"
                .to_owned(),
            better: match survey.mode >= Mode::Chroot {
                true => "namespaces, as above".to_owned(),
                false => "the store on a volume: `-v longshore:/var/lib/longshore`, or `--root` on one"
                    .to_owned(),
            },
        });
    }
    if survey.limits.len() < LIMITS.len() && survey.mode < Mode::Chroot {
        let missing: Vec<&str> = LIMITS
            .into_iter()
            .filter(|name| !survey.limits.contains(name))
            .collect();
        survey.lacks.push(Lack {
            what: format!("limits of {}", missing.join(", ")),
            better: match survey.mode {
                Mode::RootWithUserNamespaces | Mode::Root => {
                    "a kernel with these control group controllers, mounted writable".to_owned()
                }
                _ => "a delegated control group: `systemd-run --user --scope -p Delegate=yes \
                      longshore …`"
                    .to_owned(),
            },
        });
    }
    survey
}

fn as_root(store: &Path) -> Survey {
    let plain = |mode, why: &str, lacks| Survey {
        privilege: userns::privilege(),
        mode,
        why: why.to_owned(),
        lacks,
        limits: Vec::new(),
        copies: false,
    };
    match userns::current() {
        Privilege::Root => match try_mapped_mount(store) {
            Ok(()) => plain(
                Mode::RootWithUserNamespaces,
                "it is root, and the kernel and the store's file system have id-mapped mounts",
                Vec::new(),
            ),
            Err(why) => plain(
                Mode::Root,
                "it is root, but sandboxes cannot have user namespaces of their own",
                vec![Lack {
                    what: format!("root in a sandbox is root of this machine: {why}"),
                    better: "Linux 5.19 or later, `user.max_user_namespaces` above 0, and the \
                             store on a file system with id-mapped mounts, such as ext4, xfs or btrfs; \
                             or longshore as an ordinary user"
                        .to_owned(),
                }],
            ),
        },
        Privilege::RootlessSubordinate => plain(
            Mode::RootlessSubordinate,
            "it is root of a user namespace that has more ids than one",
            Vec::new(),
        ),
        Privilege::RootlessSingleId | Privilege::RootOfContainer | Privilege::Ordinary => plain(
            Mode::RootlessSingleId,
            "it is root of a user namespace that has a single id",
            vec![single_id("a user namespace with more ids")],
        ),
    }
}

/// Whether the store is, or will be, on overlayfs, which cannot be the upper directory of another.
fn is_on_overlayfs(store: &Path) -> bool {
    const OVERLAYFS_MAGIC: i64 = 0x794c_7630;
    let existing = store.ancestors().find(|path| path.is_dir());
    existing
        .and_then(|path| rustix::fs::statfs(path).ok())
        .is_some_and(|stat| stat.f_type == OVERLAYFS_MAGIC)
}

fn as_user() -> Survey {
    let refused = try_user_namespace();
    if let Err(error) = refused {
        let (setting, better) = refusing_setting();
        let (mode, what) = match isolation() {
            Isolation::None => (Mode::Refused, "processes: `RUN`, and containers"),
            Isolation::Namespaces | Isolation::Chroot => (Mode::Chroot, CHROOT_LACKS),
        };
        return Survey {
            privilege: userns::without(),
            mode,
            why: format!("user namespaces are refused: {error}{setting}"),
            lacks: vec![Lack {
                what: what.to_owned(),
                better,
            }],
            limits: Vec::new(),
            copies: true,
        };
    }
    if userns::is_mirrored() {
        return Survey {
            privilege: Privilege::RootOfContainer,
            mode: Mode::RootlessSubordinate,
            why: "it is root of a container that lets it make a user namespace with all of the container's ids"
                .to_owned(),
            lacks: Vec::new(),
            limits: Vec::new(),
            copies: false,
        };
    }
    let tools = ["newuidmap", "newgidmap"];
    let missing = tools.into_iter().find(|tool| !is_installed(tool));
    let (mode, why, lacks) = match (userns::privilege(), missing) {
        (Privilege::RootlessSubordinate, None) => (
            Mode::RootlessSubordinate,
            "it is no root, and `/etc/subuid` and `/etc/subgid` give its user ids",
            Vec::new(),
        ),
        (Privilege::RootlessSubordinate, Some(tool)) => (
            Mode::Refused,
            "its user has subordinate ids, but not the tools that map them",
            vec![Lack {
                what: format!("`{tool}`"),
                better: "Debian's package `uidmap`, or its like".to_owned(),
            }],
        ),
        _ => (
            Mode::RootlessSingleId,
            "it is no root, and `/etc/subuid` and `/etc/subgid` give its user no ids",
            vec![single_id(
                "`usermod --add-subuids 100000-165535 --add-subgids 100000-165535 USER`, and Debian's \
                 package `uidmap`",
            )],
        ),
    };
    Survey {
        privilege: userns::privilege(),
        mode,
        why: why.to_owned(),
        lacks,
        limits: Vec::new(),
        copies: false,
    }
}

/// What a process without namespaces lacks.
pub const CHROOT_LACKS: &str = "isolation: a `RUN` step sees the network, processes and devices of the container \
     around it, has no /proc of its own, and no limits";

/// What is lacking where there is one user only.
pub const SINGLE_ID_LACKS: &str =
    "other owners: everything belongs to root, `chown` does nothing, and `USER` can only be root";

fn single_id(better: &str) -> Lack {
    Lack {
        what: SINGLE_ID_LACKS.to_owned(),
        better: better.to_owned(),
    }
}

fn is_installed(tool: &str) -> bool {
    let quiet = Command::new(tool)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    !matches!(quiet, Err(error) if error.kind() == io::ErrorKind::NotFound)
}

/// A process that makes a user namespace and ends.
fn try_user_namespace() -> io::Result<()> {
    match sys::fork(0, None)? {
        Fork::Child => {
            let errno = match sys::unshare_user() {
                Ok(()) => 0,
                Err(error) => error.raw_os_error().unwrap_or(libc::EPERM),
            };
            sys::exit_now(errno)
        }
        Fork::Parent { pidfd, .. } => match exit_code(pidfd.as_fd())? {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(errno)),
        },
    }
}

fn exit_code(pidfd: std::os::fd::BorrowedFd<'_>) -> io::Result<i32> {
    let status = waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED)?;
    Ok(status
        .and_then(|status| status.exit_status())
        .unwrap_or(libc::EPERM))
}

/// As for a sandbox: a process in a user namespace, its ids mapped, and a mount that is mapped by them.
fn try_mapped_mount(store: &Path) -> Result<(), String> {
    let (mut waits, holds) = io::pipe().map_err(|error| error.to_string())?;
    let flags = u64::from((libc::CLONE_NEWUSER | libc::CLONE_NEWNS).unsigned_abs());
    let (pid, pidfd) = match sys::fork(flags, None) {
        Ok(Fork::Child) => {
            drop(holds);
            let _end = io::Read::read(&mut waits, &mut [0]);
            sys::exit_now(0)
        }
        Ok(Fork::Parent { pid, pidfd }) => (pid, pidfd),
        Err(error) => return Err(format!("user namespaces are refused: {error}")),
    };
    let result = try_mapped_mount_in(pid, store);
    drop(holds);
    let _ended = exit_code(pidfd.as_fd());
    result
}

fn try_mapped_mount_in(pid: i32, store: &Path) -> Result<(), String> {
    for map in ["uid_map", "gid_map"] {
        let path = format!("/proc/{pid}/{map}");
        fs::OpenOptions::new()
            .write(true)
            .open(path)
            .and_then(|mut file| file.write_all(format!("0 {OUTSIDE} {COUNT}").as_bytes()))
            .map_err(|error| format!("ids cannot be mapped: {error}"))?;
    }
    let namespace = fs::File::open(format!("/proc/{pid}/ns/user")).map_err(|e| e.to_string())?;
    let existing: PathBuf = store
        .ancestors()
        .find(|path| path.is_dir())
        .unwrap_or(Path::new("/"))
        .to_owned();
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let mount = open_tree(rustix::fs::CWD, &existing, flags)
        .map_err(|errno| format!("`{}` cannot be mounted: {errno}", existing.display()))?;
    sys::map_mount_ids(mount.as_fd(), namespace.as_fd(), false).map_err(|error| {
        let path = existing.display();
        format!("the file system of `{path}` has no id-mapped mounts: {error}")
    })
}

/// The setting that refuses user namespaces, if one is known to, and what to do about it.
fn refusing_setting() -> (String, String) {
    for (path, refuses, better) in [
        (
            "/proc/sys/user/max_user_namespaces",
            "0",
            "`sysctl user.max_user_namespaces=10000`",
        ),
        (
            "/proc/sys/kernel/unprivileged_userns_clone",
            "0",
            "`sysctl kernel.unprivileged_userns_clone=1`",
        ),
        (
            "/proc/sys/kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "an AppArmor profile for longshore that has `userns,`, or \
             `sysctl kernel.apparmor_restrict_unprivileged_userns=0`",
        ),
    ] {
        if fs::read_to_string(path).is_ok_and(|text| text.trim() == refuses) {
            return (format!(" (`{path}` is {refuses})"), better.to_owned());
        }
    }
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let filtered = status.lines().any(|line| line == "Seccomp:\t2");
    match filtered {
        true => (
            " (by a filter of system calls: this is a container)".to_owned(),
            "the container with `--security-opt seccomp=unconfined --security-opt \
             apparmor=unconfined`, or `--privileged`"
                .to_owned(),
        ),
        false => (
            String::new(),
            "a kernel and a container that let ordinary users make user namespaces".to_owned(),
        ),
    }
}

/// What can be limited.
const LIMITS: [&str; 5] = ["memory", "pids", "cpu", "cpuset", "io"];

/// A limit to try it with.
fn limit_of(name: &str) -> Limits {
    let of = |applies: &str| applies == name;
    Limits {
        memory: of("memory").then_some(MEMORY_MIN),
        pids: of("pids").then_some(1),
        cpu_quota_us: of("cpu").then_some(100_000),
        cpuset_cpus: of("cpuset").then(|| "0".to_owned()),
        io_weight: of("io").then_some(500),
        ..Limits::default()
    }
}

fn limits() -> Vec<&'static str> {
    let is_possible = |name: &&str| {
        Cgroups::make(None, &limit_of(name)).is_ok_and(|groups| {
            groups.remove();
            true
        })
    };
    LIMITS.into_iter().filter(is_possible).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_limit_is_tried_with_something() {
        for name in LIMITS {
            assert!(!limit_of(name).is_empty(), "{name}");
        }
        assert!(limit_of("").is_empty());
    }
}
