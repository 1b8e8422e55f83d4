//! A record makes a plan, and a supervisor carries it out.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use runner::container::client::{self, Client, Start};
use runner::container::{Held, Plan};
use runner::etc::hosts_text;
use runner::{
    DEFAULT_PATH, EtcFiles, MountKind, MountPoint, NetworkMode, ProcessSpec, Root, SandboxSpec,
    UserNamespace,
};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use store::Store;
use store::containers::Container;
use store::networks::NetworkPlace;

use super::beside::Beside;
use super::record::{MountSource, Record, RecordMount};
use super::wiring::Wiring;
use super::{Known, ports};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Starts a container that does not run; whoever calls this holds it.
pub fn launch(
    context: &Context,
    store: &Store,
    known: &Known,
    held: &Held,
    start: &Start<'_>,
) -> Result<Client, CliError> {
    let wiring = Wiring::of(context, store, known)?;
    let plan = plan(context, store, &known.container, &known.record, &wiring)?;
    known.folder.write_plan(&plan)?;
    // The place in the network is the supervisor's from here on.
    let keep = wiring.place.map(NetworkPlace::hand_over).transpose()?;
    let keep: Vec<OwnedFd> = keep.unwrap_or_default();
    let start = Start {
        keep: keep.iter().map(AsFd::as_fd).collect(),
        ..*start
    };
    client::start(&known.folder, held, &start).map_err(|error| ports::refused(store, error))
}

/// What the supervisor is to do.
fn plan(
    context: &Context,
    store: &Store,
    container: &Container,
    record: &Record,
    wiring: &Wiring,
) -> Result<Plan, CliError> {
    let beside = Beside::of(store, record)?;
    let is_host = wiring.mode == NetworkMode::Host;
    let hostname = match (&record.hostname, is_host || record.shared.uts) {
        (Some(name), _) => name.clone(),
        (None, _) if beside.hostname.is_some() => beside.hostname.clone().unwrap_or_default(),
        // The network is the host's, so its name is too, as with docker.
        (None, true) => {
            let uname = rustix::system::uname();
            uname.nodename().to_string_lossy().into_owned()
        }
        (None, false) => container.id.short().to_owned(),
    };
    let root = store.open_container(container)?;
    let user = user(root.as_fd(), record)?;
    let mounts = mounts(store, &root, record)?;
    drop(root);
    let process = ProcessSpec {
        env: environment(record, &user.home, &hostname),
        cwd: record.working_dir.clone(),
        make_cwd: true,
        user,
        terminal: record.tty,
        ..ProcessSpec::new(record.argv())
    };
    let mount = store.mount_container(container)?;
    let mut lower = mount.lower;
    lower.push(builder::ops::exec::stubs(store)?);
    let layers = Root::Overlay {
        lower,
        upper: mount.upper,
        work: mount.work,
        // What is removed when it ends need not survive a crash of the machine.
        volatile: record.auto_remove,
    };
    let mut hosts = wiring.hosts(record);
    let own = wiring.addresses().into_iter();
    hosts.extend(own.map(|address| (hostname.clone(), address)));
    let etc = match &beside.etc {
        Some(etc) => etc.clone(),
        None => EtcFiles {
            hosts: Some(hosts_text(&hostname, &hosts)),
            resolv_conf: Some(wiring.resolv_conf(record)?),
            hostname: Some(format!("{hostname}\n")),
        },
    };
    let sandbox = SandboxSpec {
        mounts,
        etc,
        hostname,
        domainname: record.domainname.clone().unwrap_or_default(),
        oom_score: record.oom_score,
        joined: beside.joined,
        read_only: record.read_only,
        network: wiring.mode.clone(),
        user_namespace: match record.host_ids {
            true => UserNamespace::Host,
            false => UserNamespace::Own,
        },
        cgroup: record.cgroup_parent.as_ref().map(|parent| {
            let parent = parent.trim_end_matches('/');
            format!("{parent}/longshore-{}", container.id)
        }),
        limits: record.limits.clone(),
        ulimits: record.ulimits.clone(),
        shm_size: record.shm_size,
        sysctls: record.sysctls.clone(),
        open_network: true,
        shared: record.shared,
        confinement: record.confinement.clone(),
        init: record.init,
        ..SandboxSpec::new(layers, process)
    };
    Ok(Plan {
        sandbox,
        joined: beside.folders,
        stdin: record.stdin,
        stdin_once: record.stdin_once,
        restart: record.restart,
        health: record.health.clone(),
        log: record.log,
        stop_signal: record.stop_signal,
        stop_timeout_s: record.stop_timeout_s,
        ports: match wiring.has_ports() {
            true => record.ports.clone(),
            false => Vec::new(),
        },
        names: wiring.names(context, record)?,
        afterwards: match record.auto_remove {
            true => {
                let root = context.root()?.to_string_lossy().into_owned();
                let id = container.id.to_string();
                ["--root", &root, "rm", "-fv", &id]
                    .map(str::to_owned)
                    .to_vec()
            }
            false => Vec::new(),
        },
    })
}

/// Who the command runs as.
pub fn user(root: BorrowedFd<'_>, record: &Record) -> Result<runner::User, CliError> {
    let mut user = runner::resolve_user(root, &record.user).blame(Kind::Run)?;
    runner::add_groups(root, &mut user, &record.groups).blame(Kind::Run)?;
    Ok(user)
}

/// The variables: HOME, HOSTNAME and PATH, where nobody has set them, and TERM for a terminal.
fn environment(record: &Record, home: &str, hostname: &str) -> Vec<String> {
    let mut env = record.env.clone();
    let terminal = record.tty.then_some(("TERM", "xterm"));
    let defaults = [
        ("PATH", DEFAULT_PATH),
        ("HOSTNAME", hostname),
        ("HOME", home),
    ];
    for (name, value) in defaults.into_iter().chain(terminal) {
        let has = |known: &String| known.split('=').next() == Some(name);
        if !env.iter().any(has) {
            env.push(format!("{name}={value}"));
        }
    }
    env
}

fn mounts(store: &Store, root: &OwnedFd, record: &Record) -> Result<Vec<MountPoint>, CliError> {
    let mut mounts = Vec::new();
    for mount in &record.mounts {
        let kind = match &mount.source {
            MountSource::Bind(source) => {
                check_bind(root, mount, source)?;
                MountKind::Bind {
                    source: source.clone(),
                    beneath: String::new(),
                    read_only: mount.read_only,
                }
            }
            MountSource::Volume { name, .. } => {
                let volume = store.volume(name)?.ok_or_else(|| {
                    let message = format!("volume `{name}` of the container is gone");
                    CliError::new(Kind::Run, message)
                        .hint("`longshore volume create` makes an empty one")
                })?;
                check_bind(root, mount, &volume.data)?;
                MountKind::Bind {
                    source: volume.data,
                    beneath: String::new(),
                    read_only: mount.read_only,
                }
            }
            MountSource::Tmpfs { size, mode } => MountKind::Tmpfs {
                size: *size,
                mode: *mode,
                read_only: mount.read_only,
            },
        };
        mounts.push(MountPoint {
            target: mount.target.clone(),
            kind,
        });
    }
    for (source, target) in &record.devices {
        mounts.push(MountPoint {
            target: target.clone(),
            kind: MountKind::Device {
                source: source.clone(),
            },
        });
    }
    Ok(mounts)
}

/// A folder cannot be mounted on a file, nor a file on a folder: said in words that name both.
fn check_bind(
    root: &OwnedFd,
    mount: &RecordMount,
    source: &std::path::Path,
) -> Result<(), CliError> {
    let kind = |is_directory| match is_directory {
        true => "a folder",
        false => "a file",
    };
    let metadata = std::fs::metadata(source).map_err(|error| {
        let message = format!(
            "cannot mount `{}` at `{}`: {error}",
            source.display(),
            mount.target
        );
        CliError::new(Kind::Run, message)
    })?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let target = rustix::fs::openat2(root, &mount.target, flags, Mode::empty(), resolve);
    // One that is not there is made.
    let Ok(stat) = target.and_then(|target| rustix::fs::fstat(&target)) else {
        return Ok(());
    };
    let is_directory =
        rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    if is_directory == metadata.is_dir() {
        return Ok(());
    }
    let message = format!(
        "cannot mount `{}` at `{}`: it is {}, and what the image has there is {}",
        source.display(),
        mount.target,
        kind(metadata.is_dir()),
        kind(is_directory)
    );
    Err(CliError::new(Kind::Run, message))
}
