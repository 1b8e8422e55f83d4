//! `RUN`: the process, what is mounted for it, and what it may do.
//!
//! Two encodings: the whole one, for a vertex and its fast key; and one without what its mounts select, for the slow key, to
//! which the digests of what they selected are added. Neither covers what must not decide a result: the contents of
//! secrets, caches and agents, the name and sharing of a cache, proxies, addresses of hosts, limits.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use store::oci::Platform;

use super::op::Encoder;

/// A process to run. Written into journals as JSON, field by field (`docs/formats/build-journal.md`).
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ExecOp {
    /// Program and arguments.
    pub argv: Vec<String>,
    /// `NAME=value`, in order, no name twice: ENV and declared ARGs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<Arc<str>>,
    /// `NAME=value` that the process gets but the digest does not cover: predefined proxy arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub proxy_env: Vec<String>,
    /// Working directory, absolute.
    pub cwd: String,
    /// `USER`, verbatim; empty for root.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Whether input 0 is the root file system (false on scratch); the inputs of mounts follow.
    pub on_base: bool,
    /// A here-document with an interpreter line: a file's name below [`SCRIPTS`], and its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub script: Option<(String, String)>,
    /// `--mount`, in the order written.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    /// `--network`.
    #[serde(skip_serializing_if = "is_default")]
    pub network: Network,
    /// `--security`.
    #[serde(skip_serializing_if = "is_default")]
    pub security: Security,
    /// `--device`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceRequest>,
    /// What the build says of all its processes.
    #[serde(skip_serializing_if = "is_default")]
    pub setting: Setting,
    /// What the programs are for, where that is not the machine: the kernel then needs an emulator.
    pub foreign: Option<Box<Platform>>,
}

/// Where here-documents with an interpreter line are, inside the sandbox.
pub const SCRIPTS: &str = "/dev/pipes";

/// Something mounted for one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// Where, absolute; empty for what is not mounted at all (a secret that is only a variable).
    pub target: String,
    /// What.
    pub kind: MountKind,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MountKind {
    /// `type=bind`
    Bind(BindMount),
    /// `type=cache`
    Cache(CacheMount),
    /// `type=tmpfs`
    Tmpfs {
        /// Bytes, if limited.
        size: Option<u64>,
        /// Whether it cannot be written to.
        read_only: bool,
    },
    /// `type=secret`
    Secret(SecretMount),
    /// `type=ssh`
    Ssh(SshMount),
}

/// Files of a stage, an image or a context.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct BindMount {
    /// Which input of the vertex, counted from 0; absent for a stage without files.
    pub input: Option<usize>,
    /// Path below the input's root; `/` for all of it.
    pub source: String,
    /// What may not be seen: patterns of `.dockerignore`. Empty for anything but a context.
    pub ignore: Vec<String>,
    /// Whether it cannot be written to. What is written is lost.
    pub read_only: bool,
}

/// A directory that outlives the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheMount {
    /// Its name, with its namespace.
    pub id: String,
    /// Which input gives its first content; absent for an empty directory.
    pub input: Option<usize>,
    /// Path below that input's root, or below the cache's own; `/` for all of it.
    pub source: String,
    /// What happens if another step uses it.
    pub sharing: Sharing,
    /// Mode bits of the empty directory.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Whether it cannot be written to.
    pub read_only: bool,
}

/// What happens when two steps use one cache at the same time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sharing {
    /// Both write to one directory.
    #[default]
    Shared,
    /// The second gets a directory of its own.
    Private,
    /// The second waits.
    Locked,
}

/// A secret, as a file, a variable or both.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SecretMount {
    /// What `--secret` calls it.
    pub id: String,
    /// The variable that holds it.
    pub env: Option<String>,
    /// Whether the step fails without it.
    pub required: bool,
    /// Mode bits of the file.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// Digest of its content by a key that only this store has, if the content is to decide whether the step runs.
    #[serde(skip)]
    pub content: Option<[u8; 32]>,
}

/// The socket of an SSH agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SshMount {
    /// What `--ssh` calls it.
    pub id: String,
    /// Whether the step fails without it.
    pub required: bool,
    /// Mode bits of the socket.
    pub mode: u32,
    /// Its owner.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
}

/// Stands for the address of this machine as a process sees it, which depends on where that runs; nobody else writes it so.
pub const HOST_GATEWAY: IpAddr = IpAddr::V6(Ipv6Addr::new(0, 0, 0, 0, 0, 0xffff, 0, 0));

/// `--network`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Network {
    /// What steps get unless they say otherwise.
    #[default]
    Default,
    /// Loopback only.
    None,
    /// The host's.
    Host,
}

/// `--security`
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Security {
    /// Confined.
    #[default]
    Sandbox,
    /// All capabilities, no filter of system calls, the host's devices.
    Insecure,
}

/// `--device`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceRequest {
    /// `vendor/class=name`, `vendor/class=*` or `vendor/class`.
    pub name: String,
    /// Whether the step fails without it.
    pub required: bool,
}

/// What the build says of all its processes.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Setting {
    /// The host name inside; empty for the usual one.
    pub hostname: String,
    /// `--add-host`: names and addresses, for `/etc/hosts`. The digest covers the names.
    pub hosts: Vec<(String, IpAddr)>,
    /// `--shm-size`, in bytes.
    pub shm_size: Option<u64>,
    /// `--ulimit`, by name without `RLIMIT_`, in lower case: soft and hard limit; absent is unlimited.
    pub ulimits: BTreeMap<String, (Option<u64>, Option<u64>)>,
    /// `--cgroup-parent`. Not part of the digest.
    pub cgroup_parent: Option<String>,
    /// `--memory` and the like. Not part of the digest.
    pub limits: Box<Limits>,
}

/// Limits of each process's control group; `None` is no limit.
#[derive(Clone, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Memory, in bytes.
    pub memory: Option<u64>,
    /// Memory and swap together, in bytes; [`u64::MAX`] for unlimited swap.
    pub memory_swap: Option<u64>,
    /// Weight among others that want a processor; 1024 is usual.
    pub cpu_shares: Option<u64>,
    /// Processor time per period, in microseconds.
    pub cpu_quota_us: Option<u64>,
    /// The period, in microseconds.
    pub cpu_period_us: Option<u64>,
    /// Processors that may be used: `0-2,4`.
    pub cpuset_cpus: Option<String>,
    /// Memory nodes that may be used.
    pub cpuset_mems: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Weight among others that read and write disks: 10 to 1,000; 500 is usual.
    pub io_weight: Option<u64>,
}

impl ExecOp {
    /// The inputs that mounts read, in order of the mounts: input, path below its root, and what may not be seen of it.
    pub fn selections(&self) -> impl Iterator<Item = (usize, &str, &[String])> {
        self.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Bind(bind) => Some((bind.input?, bind.source.as_str(), &bind.ignore[..])),
            MountKind::Cache(cache) => Some((cache.input?, cache.source.as_str(), &[][..])),
            MountKind::Tmpfs { .. } | MountKind::Secret(_) | MountKind::Ssh(_) => None,
        })
    }

    /// The secrets whose contents are part of the key, with their digests.
    pub fn keyed_secrets(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.mounts.iter().filter_map(|mount| match &mount.kind {
            MountKind::Secret(secret) => Some((secret.id.as_str(), secret.content.as_ref()?)),
            _ => None,
        })
    }

    /// Encodes all that decides the result; `selecting` says whether which input and which of its paths a mount shows are
    /// among it.
    pub(crate) fn encode(&self, sink: &mut Encoder, selecting: bool) {
        match &self.foreign {
            None => sink.text("exec"),
            Some(platform) => sink.text(&format!("exec for {platform}")),
        }
        sink.texts(&self.argv);
        sink.texts(&self.env);
        sink.text(&self.cwd);
        sink.text(&self.user);
        sink.number(u64::from(self.on_base));
        sink.number(u64::from(self.script.is_some()));
        if let Some((name, text)) = &self.script {
            sink.text(name);
            sink.text(text);
        }
        sink.list(self.mounts.len());
        for mount in &self.mounts {
            sink.text(&mount.target);
            mount.kind.encode(sink, selecting);
        }
        sink.text(match self.network {
            Network::Default => "default",
            Network::None => "none",
            Network::Host => "host",
        });
        sink.text(match self.security {
            Security::Sandbox => "sandbox",
            Security::Insecure => "insecure",
        });
        sink.list(self.devices.len());
        for device in &self.devices {
            sink.text(&device.name);
            sink.number(u64::from(device.required));
        }
        let setting = &self.setting;
        sink.text(&setting.hostname);
        sink.list(setting.hosts.len());
        for (name, _) in &setting.hosts {
            sink.text(name);
        }
        optional(sink, setting.shm_size);
        sink.list(setting.ulimits.len());
        for (name, (soft, hard)) in &setting.ulimits {
            sink.text(name);
            optional(sink, *soft);
            optional(sink, *hard);
        }
    }
}

impl MountKind {
    fn encode(&self, sink: &mut Encoder, selecting: bool) {
        let mut select = |input: Option<usize>, source: &str, ignore: &[String]| {
            sink.text(match self {
                MountKind::Bind(_) => "bind",
                _ => "cache",
            });
            sink.number(u64::from(input.is_some()));
            if selecting {
                sink.number(input.map_or(0, |input| input as u64));
                sink.text(source);
                sink.texts(ignore);
            }
        };
        match self {
            MountKind::Bind(bind) => {
                select(bind.input, &bind.source, &bind.ignore);
                sink.number(u64::from(bind.read_only));
            }
            MountKind::Cache(cache) => {
                select(cache.input, &cache.source, &[]);
                sink.number(u64::from(cache.mode));
                sink.number(u64::from(cache.uid));
                sink.number(u64::from(cache.gid));
                sink.number(u64::from(cache.read_only));
            }
            MountKind::Tmpfs { size, read_only } => {
                sink.text("tmpfs");
                optional(sink, *size);
                sink.number(u64::from(*read_only));
            }
            MountKind::Secret(secret) => {
                sink.text("secret");
                sink.text(&secret.id);
                sink.number(u64::from(secret.env.is_some()));
                sink.text(secret.env.as_deref().unwrap_or_default());
                sink.number(u64::from(secret.required));
                sink.number(u64::from(secret.mode));
                sink.number(u64::from(secret.uid));
                sink.number(u64::from(secret.gid));
                if let Some(content) = &secret.content {
                    // No target and no network is called so: what follows without it begins with one of them.
                    sink.text("content");
                    sink.bytes(content);
                }
            }
            MountKind::Ssh(ssh) => {
                sink.text("ssh");
                sink.text(&ssh.id);
                sink.number(u64::from(ssh.required));
                sink.number(u64::from(ssh.mode));
                sink.number(u64::from(ssh.uid));
                sink.number(u64::from(ssh.gid));
            }
        }
    }
}

/// Whether a journal need not say it.
fn is_default<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

fn optional(sink: &mut Encoder, value: Option<u64>) {
    sink.number(u64::from(value.is_some()));
    sink.number(value.unwrap_or(0));
}
