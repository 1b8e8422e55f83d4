//! Settings of the kernel that a namespace has for itself.
//!
//! Docker's list: what is set here cannot reach the host. It is written through the host's `/proc`, where a process always
//! sees the settings of its own namespaces.

use std::collections::BTreeMap;
use std::path::Path;

use crate::error::StartError;
use crate::spec::{Namespace, SandboxSpec};

/// Those of the namespace of message queues and shared memory.
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
/// Those of the same namespace that begin so.
const IPC_PREFIX: &str = "fs.mqueue.";
/// Those of the network's.
const NETWORK_PREFIX: &str = "net.";

/// Why a sandbox cannot have settings of its own.
pub(crate) fn check(spec: &SandboxSpec) -> Result<(), String> {
    for name in spec.sysctls.keys() {
        let has_parts = name
            .split('.')
            .all(|part| !part.is_empty() && !part.contains(['/', '\0']));
        let is_ipc = IPC.contains(&name.as_str()) || name.starts_with(IPC_PREFIX);
        let is_network = name.starts_with(NETWORK_PREFIX);
        if !has_parts || !(is_ipc || is_network) {
            return Err(format!(
                "sysctl `{name}` cannot be set for a container alone: net.…, fs.mqueue.… and those of shared memory and messages can"
            ));
        }
        if is_network && !spec.network.is_own() {
            return Err(format!(
                "sysctl `{name}` would not be the container's alone: it shares the host's network, or another's"
            ));
        }
        if is_ipc && (spec.shared.ipc || spec.joins(Namespace::Ipc)) {
            return Err(format!(
                "sysctl `{name}` would not be the container's alone: it shares memory and messages (--ipc)"
            ));
        }
    }
    Ok(())
}

/// The last group that may send ICMP echoes: the last that the kernel takes, that a user namespace of ours has, that an ordinary
/// user's usually has, and the only one where there is one.
const LAST_GROUPS: [&str; 4] = ["2147483647", "2147483645", "65535", "0"];

/// Lets everybody listen on low ports and send ICMP echoes, in the network namespace of this process. What is refused stays root's.
pub(crate) fn open_network() {
    let set = |name: &str, value: &str| {
        std::fs::write(Path::new("/proc/sys/net/ipv4").join(name), value).is_ok()
    };
    set("ip_unprivileged_port_start", "0");
    let _taken = LAST_GROUPS
        .iter()
        .any(|last| set("ping_group_range", &format!("0 {last}")));
}

/// Makes the settings, in the namespaces of this process.
pub(crate) fn apply(sysctls: &BTreeMap<String, String>) -> Result<(), StartError> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        std::fs::write(&path, value).map_err(StartError::step(format!(
            "set sysctl `{name}` to `{value}`"
        )))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spec::{NetworkMode, ProcessSpec, Root};

    #[test]
    fn only_what_is_the_containers_own_can_be_set() {
        let check = |name: &str, network: NetworkMode, expected: Option<&str>| {
            let root = Root::Directory("/".into());
            let spec = SandboxSpec {
                network,
                sysctls: [(name.to_owned(), "1".to_owned())].into(),
                ..SandboxSpec::new(root, ProcessSpec::new(["true"]))
            };
            let told = super::check(&spec).err();
            match expected {
                None => assert_eq!(told, None, "{name}"),
                Some(part) => assert!(told.unwrap().contains(part), "{name}"),
            }
        };
        check("net.ipv4.ip_forward", NetworkMode::None, None);
        check("kernel.shmmax", NetworkMode::Host, None);
        check("fs.mqueue.msg_max", NetworkMode::Host, None);
        check(
            "net.ipv4.ip_forward",
            NetworkMode::Host,
            Some("the host's network"),
        );
        check("kernel.panic", NetworkMode::None, Some("cannot be set"));
        check("net...etc", NetworkMode::None, Some("cannot be set"));
        check(
            "net.x/../../kernel/panic",
            NetworkMode::None,
            Some("cannot be set"),
        );
    }
}
