//! What to run and in what: plain data, made by the caller, read by init.
//!
//! A [`SandboxSpec`] says everything; nothing is taken from the environment. It crosses to the
//! sandbox's first process as JSON in a memory file, bounded by [`SPEC_BYTES_MAX`].

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::network::Attachment;
use crate::network::line::Line;
use crate::network::relay::{self, Relay};
use crate::seccomp::Filter;

/// The largest encoded spec: the kernel takes about 2 MiB of arguments and environment, and the
/// rest is a few hundred lower directories and mounts.
pub const SPEC_BYTES_MAX: usize = 16 << 20;

/// One process in one sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct SandboxSpec {
    /// The file system that the process sees as `/`.
    pub root: Root,
    /// Whether `/` itself is read-only (other mounts are not affected).
    pub read_only: bool,
    /// The process.
    pub process: ProcessSpec,
    /// The host name inside.
    pub hostname: String,
    /// The NIS domain name inside; none if empty.
    #[serde(default)]
    pub domainname: String,
    /// Files of `/etc` that belong to the sandbox, not to the root.
    pub etc: EtcFiles,
    /// Further mounts; parents are mounted before what lies beneath them, whatever their order here.
    pub mounts: Vec<MountPoint>,
    /// The network that the process sees.
    pub network: NetworkMode,
    /// A name for the control group to make, beneath the caller's own; `None` names it after the
    /// helper process. Absolute: beneath the hierarchy's root.
    pub cgroup: Option<String>,
    /// Limits, enforced or refused with an error.
    pub limits: Limits,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// How readily the kernel kills the process for want of memory: -1,000 to 1,000; as its caller's if `None`.
    #[serde(default)]
    pub oom_score: Option<i16>,
    /// The size of `/dev/shm` in bytes; Docker's 64 MiB if `None`.
    pub shm_size: Option<u64>,
    /// Settings of the kernel in the sandbox's own namespaces: `net.ipv4.ip_forward` to its value.
    pub sysctls: BTreeMap<String, String>,
    /// Whether in a network of its own everybody, not root alone, may listen on ports below 1024 and send ICMP echoes.
    #[serde(default)]
    pub open_network: bool,
    /// What else the process shares with the host.
    pub shared: Shared,
    /// What it shares with other sandboxes: of each whose process 1 is handed over with this, in their order.
    #[serde(default)]
    pub joined: Vec<Vec<Namespace>>,
    /// Whose ids the process has.
    pub user_namespace: UserNamespace,
    /// What the process may do.
    pub confinement: Confinement,
    /// Whether a small init (process 1) reaps orphans and passes signals on to the process, instead
    /// of the process being process 1 itself.
    pub init: bool,
}

impl SandboxSpec {
    /// Whether a namespace is one that another sandbox has.
    pub(crate) fn joins(&self, namespace: Namespace) -> bool {
        self.joined.iter().any(|of| of.contains(&namespace))
    }

    /// Whether its process 1 has a namespace of processes to itself, all of which end with it.
    pub(crate) fn has_own_processes(&self) -> bool {
        !self.shared.pid && !self.joins(Namespace::Pid)
    }

    /// A sandbox with the default confinement, the host's network and no further mounts.
    pub fn new(root: Root, process: ProcessSpec) -> Self {
        Self {
            root,
            read_only: false,
            process,
            hostname: "longshore".into(),
            domainname: String::new(),
            etc: EtcFiles::default(),
            mounts: Vec::new(),
            network: NetworkMode::Host,
            cgroup: None,
            limits: Limits::default(),
            ulimits: Vec::new(),
            oom_score: None,
            shm_size: None,
            sysctls: BTreeMap::new(),
            open_network: false,
            shared: Shared::default(),
            joined: Vec::new(),
            user_namespace: UserNamespace::Own,
            confinement: Confinement::default(),
            init: false,
        }
    }
}

/// Where `/` comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum Root {
    /// Layers stacked by overlayfs, with its marks in `user.overlay.*` attributes, so that the same
    /// directories serve with and without privilege.
    Overlay {
        /// Read-only layers, topmost first; at least one.
        lower: Vec<PathBuf>,
        /// The directory that takes what the process writes.
        upper: PathBuf,
        /// Overlayfs' own work directory: on the same file system as `upper`, and its alone.
        work: PathBuf,
        /// Whether the process's `fsync` may do nothing, and unmounting does not sync: much faster,
        /// for results that are thrown away when the machine crashes.
        volatile: bool,
    },
    /// A directory as it is; what the process writes lands in it.
    Directory(PathBuf),
}

/// The process itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProcessSpec {
    /// The command and its arguments; a command without a `/` is looked for in `PATH` of `env`.
    pub argv: Vec<String>,
    /// The whole environment, as `KEY=value`.
    pub env: Vec<String>,
    /// The working directory, absolute inside the sandbox.
    pub cwd: String,
    /// Whether a missing working directory is made (0755, owned by the sandbox's root).
    pub make_cwd: bool,
    /// Whether what is made of it belongs to the user, and not to root.
    pub own_cwd: bool,
    /// Who the process runs as.
    pub user: User,
    /// Whether the process gets a terminal of its own; its standard streams are then that terminal.
    pub terminal: bool,
    /// The terminal's first size, as columns and rows.
    pub terminal_size: Option<(u16, u16)>,
}

impl ProcessSpec {
    /// A command run by root in `/`, with nothing but Docker's default `PATH` in its environment.
    pub fn new<S: Into<String>>(argv: impl IntoIterator<Item = S>) -> Self {
        Self {
            argv: argv.into_iter().map(Into::into).collect(),
            env: vec![format!("PATH={DEFAULT_PATH}")],
            cwd: "/".into(),
            make_cwd: false,
            own_cwd: false,
            user: User::root(),
            terminal: false,
            terminal_size: None,
        }
    }
}

/// The search path that Docker gives a process whose image names none.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A user, resolved to numbers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// All groups, the primary one included.
    pub groups: Vec<u32>,
    /// The home directory by `/etc/passwd`, else `/`. For the caller's `HOME`; init ignores it.
    pub home: String,
}

impl User {
    /// Root, with no supplementary group and the home of an image without `/etc/passwd`.
    pub fn root() -> Self {
        Self {
            uid: 0,
            gid: 0,
            groups: vec![0],
            home: "/".into(),
        }
    }
}

/// Contents of files that are mounted over the root's own. What the process writes to them is lost.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct EtcFiles {
    /// `/etc/hosts`.
    pub hosts: Option<String>,
    /// `/etc/resolv.conf`.
    pub resolv_conf: Option<String>,
    /// `/etc/hostname`.
    pub hostname: Option<String>,
}

/// Something mounted into the sandbox.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountPoint {
    /// Where, absolute inside the sandbox; made if missing, and removed again afterwards.
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub enum MountKind {
    /// A file or directory of the host, with what is mounted beneath it.
    Bind {
        /// Its path on the host.
        source: PathBuf,
        /// What beneath it is mounted, as a relative path that no link may lead out of; empty for itself.
        beneath: String,
        /// Whether it is read-only, with everything mounted beneath it.
        read_only: bool,
    },
    /// Layers stacked by overlayfs, as [`Root::Overlay`] has them.
    Overlay {
        /// Read-only layers, topmost first; two at least if there is no upper.
        lower: Vec<PathBuf>,
        /// The directory that takes what the process writes, and overlayfs' own; read-only if there is none.
        upper: Option<(PathBuf, PathBuf)>,
        /// What of it is mounted, links taken as if its top were `/`; empty for all of it.
        beneath: String,
        /// Whether it is read-only although it has an upper: that is for mount points in it.
        read_only: bool,
    },
    /// An empty file system in memory.
    Tmpfs {
        /// Its size in bytes; the kernel's default (half of the memory) if `None`.
        size: Option<u64>,
        /// The mode of its root directory.
        mode: u32,
        /// Whether it is read-only.
        read_only: bool,
    },
    /// A device node of the host, which can be opened as one.
    Device {
        /// Its path on the host.
        source: PathBuf,
    },
    /// A file with this content, which is gone afterwards. It can be executed if its mode says so.
    File {
        /// Its bytes.
        content: Vec<u8>,
        /// Its permissions.
        mode: u32,
        /// Its owner.
        uid: u32,
        /// Its group.
        gid: u32,
        /// Whether it is read-only.
        read_only: bool,
    },
}

/// The network that a process sees.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NetworkMode {
    /// The host's.
    Host,
    /// Its own, with nothing but loopback.
    None,
    /// Its own, plugged into a bridge of the host's.
    Bridge(Attachment),
    /// Its own, with a line to the host and through it out.
    Line(Line),
    /// That of a sandbox whose process is handed over: [`SandboxSpec::joined`] names it.
    Joined,
    /// Its own, with an address at [`crate::network::relay::ADDRESS`], and a way out by a program that needs no privileges.
    Relay(Relay),
}

impl NetworkMode {
    /// Whether it is made for the process.
    pub(crate) fn is_own(&self) -> bool {
        !matches!(self, NetworkMode::Host | NetworkMode::Joined)
    }

    /// Whether the helper has something to do for it.
    pub(crate) fn is_plugged(&self) -> bool {
        matches!(self, Self::Bridge(_) | Self::Line(_) | Self::Relay(_))
    }

    /// The addresses by which it is reached, and whether its namespace has to be entered for that; none if it cannot be.
    pub(crate) fn reached_at(&self) -> (&[std::net::IpAddr], bool) {
        match self {
            NetworkMode::Host | NetworkMode::None | NetworkMode::Joined | NetworkMode::Line(_) => {
                (&[], false)
            }
            NetworkMode::Bridge(attachment) => (&attachment.addresses, false),
            NetworkMode::Relay(_) => (&[relay::ADDRESS], true),
        }
    }
}

/// Namespaces of the host's that a process stays in, beside that of the network.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shared {
    /// Shared memory, semaphores and message queues, with `/dev/shm`.
    pub ipc: bool,
    /// The host name.
    pub uts: bool,
    /// Processes: it sees all of the host's. What is left of it when it ends is ended by its control group.
    #[serde(default)]
    pub pid: bool,
}

/// A namespace of a sandbox that another may share.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Namespace {
    /// Shared memory, semaphores and message queues, with `/dev/shm`.
    Ipc,
    /// Interfaces, addresses and ports.
    Network,
    /// Processes.
    Pid,
    /// The host name.
    Uts,
}

/// Whose ids a process has, when this program is root of the host. Otherwise it is in a user namespace already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum UserNamespace {
    /// Its own: root inside is nobody outside, while files keep their owners. The host's where the kernel or a file
    /// system refuses, and for what is given the host's devices.
    #[default]
    Own,
    /// The host's.
    Host,
}

/// Limits of the whole sandbox; `None` is no limit. Each needs a control group: one that cannot be
/// set is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Memory in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together in bytes, at least `memory`, which must be given too; [`u64::MAX`] for as much swap as there is.
    pub memory_swap: Option<u64>,
    /// Memory in bytes that others are to leave it where the machine is short of it.
    #[serde(default)]
    pub memory_reservation: Option<u64>,
    /// Processes and threads; [`u64::MAX`] takes a limit away from a sandbox that runs.
    pub pids: Option<u64>,
    /// Processor time per period, in microseconds (150,000 is one and a half processors if the period is as usual).
    pub cpu_quota_us: Option<u64>,
    /// The period, in microseconds; 100,000 if `None`.
    pub cpu_period_us: Option<u64>,
    /// Weight among others that want a processor: 2 to 262,144; 1,024 is usual.
    pub cpu_shares: Option<u64>,
    /// Processors that may be used: `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used: `0,1`.
    pub cpuset_mems: Option<String>,
    /// Weight among others that read and write disks: 10 to 1,000; 500 is usual.
    pub io_weight: Option<u64>,
}

/// The least memory that a sandbox may be limited to: what its first process needs before it is the command, and docker's
/// least too.
pub const MEMORY_MIN: u64 = 6 << 20;

/// A limit of each process, which its children inherit.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    /// Its name without `RLIMIT_`, in lower case: one of [`ULIMITS`].
    pub name: String,
    /// What counts; `None` is no limit.
    pub soft: Option<u64>,
    /// Up to where the process may raise it.
    pub hard: Option<u64>,
}

/// The names of limits.
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

impl Limits {
    /// Whether nothing is limited.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// What a process may do. The default is Docker's.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Confinement {
    /// The capabilities of the sandbox: its bounding set, and root's permitted and effective sets.
    pub capabilities: Capabilities,
    /// Which system calls are made.
    pub seccomp: Seccomp,
    /// Whether set-user-id programs gain nothing.
    pub no_new_privileges: bool,
    /// Whether kernel interfaces in `/proc` and `/sys` are hidden or read-only.
    pub mask_paths: bool,
    /// Whether devices can be opened wherever their nodes are, and `/dev` has all of the host's.
    pub host_devices: bool,
}

impl Confinement {
    /// None: all that the caller itself may do.
    pub fn none() -> Self {
        Self {
            capabilities: Capabilities::ALL,
            seccomp: Seccomp::Unconfined,
            no_new_privileges: false,
            mask_paths: false,
            host_devices: true,
        }
    }
}

impl Default for Confinement {
    fn default() -> Self {
        Self {
            capabilities: Capabilities::DOCKER,
            seccomp: Seccomp::Default,
            no_new_privileges: false,
            mask_paths: true,
            host_devices: false,
        }
    }
}

/// Which system calls are made.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Seccomp {
    /// Those that Docker's default profile lets through.
    #[default]
    Default,
    /// All.
    Unconfined,
    /// Those that a profile of the user's lets through.
    Profile(Filter),
}

/// A set of Linux capabilities: bit `n` is capability number `n`.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Docker's default set: chown, dac_override, fowner, fsetid, kill, setgid, setuid, setpcap,
    /// net_bind_service, net_raw, sys_chroot, mknod, audit_write, setfcap.
    pub const DOCKER: Self = Self(0xa804_25fb);
    /// Every capability that the caller itself may hand on.
    pub const ALL: Self = Self(u64::MAX);

    /// Whether capability number `capability` is in the set.
    pub fn contains(self, capability: u32) -> bool {
        self.0 >> capability & 1 == 1
    }
}

/// The names of the capabilities, by number, without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({:#x})", self.0)
    }
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It exited with this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// The exit code by the convention of shells and docker: 128 + the signal's number for a killed
    /// process.
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }

    /// Whether it exited with 0.
    pub fn success(self) -> bool {
        self == Self::Code(0)
    }
}

/// What the sandbox's processes used: all of them where a control group counts, else those that were waited for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Processor time in user mode, in microseconds.
    pub user_us: u64,
    /// Processor time in the kernel, in microseconds.
    pub system_us: u64,
    /// The most memory that was in use, in bytes; the largest resident set of one process where no group counts.
    pub memory_peak: u64,
    /// Bytes read from disks.
    pub read_bytes: u64,
    /// Bytes written to disks.
    pub written_bytes: u64,
    /// Processes of the sandbox that the kernel killed for want of memory: its own limit's, an outer one's, or the machine's.
    pub oom_kills: u64,
    /// Where no group counts those: processes of the whole machine that the kernel killed meanwhile for want of memory, if
    /// the sandbox's process ended by SIGKILL.
    pub oom_kills_around: u64,
}

impl Usage {
    /// Whether the sandbox ended for want of memory, as far as can be told.
    pub fn out_of_memory(&self) -> Option<OutOfMemory> {
        match (self.oom_kills, self.oom_kills_around) {
            (0, 0) => None,
            (0, _) => Some(OutOfMemory::Likely),
            _ => Some(OutOfMemory::Certain),
        }
    }
}

/// How sure it is that memory was wanting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OutOfMemory {
    /// The kernel killed some of the sandbox for it.
    Certain,
    /// It was killed by nobody known, and the kernel killed something for it meanwhile.
    Likely,
}
