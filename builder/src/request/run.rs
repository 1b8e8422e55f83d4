//! What the command line says of `RUN` steps: secrets, agents, entitlements, network, limits.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

use crate::debug::FailureHook;
use crate::graph::exec::{Network, Setting};
use crate::ops::exec::Confined;

/// What `RUN` steps are given, and what they may do.
#[derive(Clone, Debug, Default)]
pub struct RunSettings {
    /// `--allow`.
    pub allow: BTreeSet<Entitlement>,
    /// `--network`: for steps that do not say.
    pub network: Network,
    /// Whether steps that do not say are on the host's network whatever is possible here. Part of no key, unlike `network`.
    pub on_host_network: bool,
    /// The program that leads out of steps' namespaces where interfaces may not be made, if it is installed.
    pub relay: Option<PathBuf>,
    /// `--userns=host`: steps have the ids of this program. Part of no key: what a step makes does not show them.
    pub host_ids: bool,
    /// `--security-opt`: for steps that are not `--security=insecure`. Part of no key.
    pub confined: Confined,
    /// `--add-host`, `--shm-size`, `--ulimit`, `--cgroup-parent` and limits.
    pub setting: Setting,
    /// `--secret`, by id.
    pub secrets: BTreeMap<String, SecretSource>,
    /// Ids of secrets whose contents are part of the keys of the steps that use them (`key=content`).
    pub secrets_in_key: BTreeSet<String>,
    /// The digests of those, by the key of the store; filled in when the build begins.
    pub secret_digests: BTreeMap<String, [u8; 32]>,
    /// `--ssh`: where the agent listens or the keys are, by id.
    pub ssh: BTreeMap<String, Vec<PathBuf>>,
    /// Where device specifications (CDI) are; in a later one, a file hides a file of the same device.
    pub cdi_dirs: Vec<PathBuf>,
    /// What is done about a step that fails.
    pub on_failure: Option<FailureHook>,
}

/// What has to be allowed explicitly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Entitlement {
    /// `network.host`
    NetworkHost,
    /// `security.insecure`
    SecurityInsecure,
    /// `device`: any, or with `=` the one of this name.
    Device(Option<String>),
}

impl fmt::Display for Entitlement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Entitlement::NetworkHost => f.write_str("network.host"),
            Entitlement::SecurityInsecure => f.write_str("security.insecure"),
            Entitlement::Device(None) => f.write_str("device"),
            Entitlement::Device(Some(name)) => write!(f, "device={name}"),
        }
    }
}

/// Where a secret is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SecretSource {
    /// In a file, read when a step uses it.
    File(PathBuf),
    /// Here.
    Text(SecretText),
}

/// Bytes that are not shown.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretText(pub Vec<u8>);

impl fmt::Debug for SecretText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretText(****)")
    }
}
