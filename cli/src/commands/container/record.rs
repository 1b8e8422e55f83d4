//! What a container is: written when it is made, read whenever it is started or looked at (`docs/formats/container.md`).

use std::collections::BTreeMap;
use std::path::PathBuf;

use runner::container::{Health, LogLimits, Restart};
use runner::network::ports::Publish;
use runner::{Confinement, Limits, Namespace, Shared, Ulimit};
use serde::{Deserialize, Serialize};
use store::containers::Container;

use crate::error::{Blame, CliError, Kind};

/// All that was said of a container.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Record {
    /// When it was made, RFC 3339.
    pub created: String,
    /// The image, as it was named.
    pub image_name: String,
    /// The image's id.
    pub image: String,
    /// ENTRYPOINT.
    pub entrypoint: Vec<String>,
    /// CMD, or what was given in its place.
    pub cmd: Vec<String>,
    /// The variables: the image's, then those given.
    pub env: Vec<String>,
    /// `USER[:GROUP]`, verbatim.
    pub user: String,
    /// Further groups of the user, verbatim.
    #[serde(default)]
    pub groups: Vec<String>,
    /// The working directory, absolute.
    pub working_dir: String,
    /// Whether the command has a terminal.
    pub tty: bool,
    /// Whether it has a standard input.
    pub stdin: bool,
    /// Whether that ends with the first who is attached.
    pub stdin_once: bool,
    /// The name that was asked for, if one was.
    pub hostname: Option<String>,
    /// The NIS domain name, if one was asked for.
    #[serde(default)]
    pub domainname: Option<String>,
    /// The image's labels, then those given.
    pub labels: BTreeMap<String, String>,
    /// Ports that the command listens on: `80/tcp`.
    pub exposed: Vec<String>,
    /// Ports of the host that lead to it.
    pub ports: Vec<Publish>,
    /// Whether those are all that the image and `--expose` have.
    pub publish_all: bool,
    /// What is mounted.
    pub mounts: Vec<RecordMount>,
    /// Devices of the host: source and target.
    pub devices: Vec<(PathBuf, String)>,
    /// `host`, `none`, `container:ID`, or the name of a network.
    pub network: String,
    /// The addresses there that were asked for.
    pub addresses: Vec<std::net::IpAddr>,
    /// The names there, beside the container's own.
    pub aliases: Vec<String>,
    /// Whether its ids are the host's.
    pub host_ids: bool,
    /// Lines of `/etc/hosts`: name and address.
    pub hosts: Vec<(String, std::net::IpAddr)>,
    /// `/etc/resolv.conf`; the host's if empty.
    pub resolv_conf: Vec<String>,
    /// What the command may do.
    pub confinement: Confinement,
    /// Whether that is everything.
    pub privileged: bool,
    /// Whether the root is read-only.
    pub read_only: bool,
    /// Limits of the container.
    pub limits: Limits,
    /// Limits of each process.
    pub ulimits: Vec<Ulimit>,
    /// Settings of the kernel in its own namespaces.
    #[serde(default)]
    pub sysctls: BTreeMap<String, String>,
    /// What else it shares with the host.
    #[serde(default)]
    pub shared: Shared,
    /// What it shares with other containers: their ids.
    #[serde(default)]
    pub joined: BTreeMap<Namespace, String>,
    /// How readily it is killed for want of memory.
    #[serde(default)]
    pub oom_score: Option<i16>,
    /// The size of `/dev/shm`.
    pub shm_size: Option<u64>,
    /// Where its control group is made.
    pub cgroup_parent: Option<String>,
    /// Whether process 1 is a small init.
    pub init: bool,
    /// What is done when it ends.
    pub restart: Restart,
    /// Whether it is removed when it has ended.
    pub auto_remove: bool,
    /// How its health is checked.
    pub health: Option<Health>,
    /// What asks it to end.
    pub stop_signal: i32,
    /// How many seconds that may take; for ever if `None`.
    pub stop_timeout_s: Option<u64>,
    /// What is kept of its output.
    pub log: Option<LogLimits>,
}

/// Something that is mounted in a container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RecordMount {
    /// Where, absolute.
    pub target: String,
    /// What.
    pub source: MountSource,
    /// Whether it is read-only.
    pub read_only: bool,
}

/// What is mounted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MountSource {
    /// A file or folder of the host.
    Bind(PathBuf),
    /// A volume.
    Volume {
        /// Its name.
        name: String,
        /// Whether it was made for this container, without a name.
        anonymous: bool,
        /// Whether a new one is filled with what the image has there.
        copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Its size in bytes.
        size: Option<u64>,
        /// The mode of its root.
        mode: u32,
    },
}

impl Record {
    /// Reads a container's.
    pub fn read(container: &Container) -> Result<Record, CliError> {
        let bytes = container.config()?;
        let record = serde_json::from_slice(&bytes).blame(Kind::Environment);
        record.map_err(|error: CliError| {
            let hint = format!(
                "the record of container {} is damaged",
                container.id.short()
            );
            error.hint(hint)
        })
    }

    /// What is kept.
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("a struct of texts and numbers can be encoded")
    }

    /// What is run.
    pub fn argv(&self) -> Vec<String> {
        [&self.entrypoint[..], &self.cmd[..]].concat()
    }

    /// The volumes it uses, by name.
    pub fn volumes(&self) -> impl Iterator<Item = (&str, bool)> {
        self.mounts.iter().filter_map(|mount| match &mount.source {
            MountSource::Volume {
                name, anonymous, ..
            } => Some((name.as_str(), *anonymous)),
            MountSource::Bind(_) | MountSource::Tmpfs { .. } => None,
        })
    }
}
