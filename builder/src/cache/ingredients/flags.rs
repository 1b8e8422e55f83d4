//! The flags of a process, one ingredient each: as much of them as is part of its key.

use super::Ingredients;
use crate::graph::exec::{ExecOp, Mount, MountKind, Network, Security};

/// What the names of these ingredients begin with.
pub(crate) const PREFIX: &str = "flag ";

/// One that every process has: where it is missing, the record is from before flags were kept.
pub(crate) const ALWAYS: &str = "flag --network";

/// Adds the flags of a process.
pub(super) fn put(exec: &ExecOp, named: &mut Ingredients) {
    let mut add = |name: String, value: String| {
        let mut key = format!("{PREFIX}{name}");
        while named.contains_key(&key) {
            // A second mount in the same place.
            key.push('+');
        }
        named.insert(key, value);
    };
    let network = match exec.network {
        Network::Default => "default",
        Network::None => "none",
        Network::Host => "host",
    };
    add("--network".to_owned(), network.to_owned());
    let security = match exec.security {
        Security::Sandbox => "sandbox",
        Security::Insecure => "insecure",
    };
    add("--security".to_owned(), security.to_owned());
    for mount in &exec.mounts {
        add(format!("--mount {}", place(mount)), mount_text(&mount.kind));
    }
    for device in &exec.devices {
        let text = required(device.required);
        add(format!("--device {}", device.name), text.to_owned());
    }
    let setting = &exec.setting;
    if !setting.hostname.is_empty() {
        add("hostname".to_owned(), setting.hostname.clone());
    }
    if !setting.hosts.is_empty() {
        let names = setting.hosts.iter().map(|(name, _)| name.as_str());
        add("--add-host".to_owned(), names.collect::<Vec<_>>().join(" "));
    }
    if let Some(bytes) = setting.shm_size {
        add("--shm-size".to_owned(), format!("{bytes} bytes"));
    }
    for (name, (soft, hard)) in &setting.ulimits {
        let text = |limit: &Option<u64>| limit.map_or("unlimited".to_owned(), |n| n.to_string());
        let limits = format!("{}:{}", text(soft), text(hard));
        add(format!("--ulimit {name}"), limits);
    }
}

fn required(required: bool) -> &'static str {
    match required {
        true => "required",
        false => "optional",
    }
}

/// Where a mount is; a secret that is only a variable is called by that.
fn place(mount: &Mount) -> String {
    match &mount.kind {
        MountKind::Secret(secret) if mount.target.is_empty() => {
            format!("${}", secret.env.as_deref().unwrap_or_default())
        }
        _ => mount.target.clone(),
    }
}

/// A mount as it would be written, without what its files are named by elsewhere.
fn mount_text(kind: &MountKind) -> String {
    let owned = |mode: u32, uid: u32, gid: u32| format!(",mode={mode:04o},uid={uid},gid={gid}");
    let access = |read_only: bool| if read_only { ",ro" } else { ",rw" };
    match kind {
        MountKind::Bind(bind) => format!("type=bind{}", access(bind.read_only)),
        MountKind::Cache(cache) => {
            let owner = owned(cache.mode, cache.uid, cache.gid);
            format!("type=cache{owner}{}", access(cache.read_only))
        }
        MountKind::Tmpfs { size, read_only } => {
            let size = size.map_or(String::new(), |size| format!(",size={size}"));
            format!("type=tmpfs{size}{}", access(*read_only))
        }
        MountKind::Secret(secret) => {
            let env = secret.env.as_ref();
            let env = env.map_or(String::new(), |env| format!(",env={env}"));
            let owner = owned(secret.mode, secret.uid, secret.gid);
            let needed = required(secret.required);
            format!("type=secret,id={}{env}{owner},{needed}", secret.id)
        }
        MountKind::Ssh(ssh) => {
            let owner = owned(ssh.mode, ssh.uid, ssh.gid);
            let needed = required(ssh.required);
            format!("type=ssh,id={}{owner},{needed}", ssh.id)
        }
    }
}
