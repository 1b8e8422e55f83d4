//! What the flags of `run` and `create` say whatever the image is: what of it makes no sense is refused before an image is
//! pulled for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;

use runner::container::{LogLimits, Restart};
use runner::{Confinement, Limits, Namespace, Shared, Ulimit};
use store::Store;

use super::record::{MountSource, Record, RecordMount};
use super::{flags, ports, wiring};
use crate::args::CreateArgs;
use crate::commands::steps;
use crate::context::Context;
use crate::error::{CliError, Kind};

/// The prefix of docker's modes that name another container.
pub const OF_CONTAINER: &str = "container:";

/// What the flags say.
pub struct Given {
    pub network: String,
    pub shared: Shared,
    pub joined: BTreeMap<Namespace, String>,
    pub host_ids: bool,
    pub hosts: Vec<(String, IpAddr)>,
    pub exposed: Vec<String>,
    /// Those that flags ask for, then those of other containers.
    pub mounts: (Vec<RecordMount>, Vec<RecordMount>),
    pub devices: Vec<(PathBuf, String)>,
    pub env: Vec<String>,
    pub labels: BTreeMap<String, String>,
    pub confinement: Confinement,
    pub limits: Limits,
    pub ulimits: Vec<Ulimit>,
    pub sysctls: BTreeMap<String, String>,
    pub shm_size: Option<u64>,
    pub restart: Restart,
    pub log: Option<LogLimits>,
}

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Kind::Usage, message.into())
}

impl Given {
    /// Reads the flags.
    pub fn read(context: &Context, store: &Store, args: &CreateArgs) -> Result<Given, CliError> {
        check(store, args)?;
        let network = network(store, wiring::wanted(context, args)?, args)?;
        let (shared, mut joined) = shared(store, args)?;
        if let Some(id) = network.strip_prefix(OF_CONTAINER) {
            joined.insert(Namespace::Network, id.to_owned());
        }
        let host_ids = host_ids(store, args, &network, shared, &joined)?;
        let mut exposed = Vec::new();
        for text in &args.expose {
            exposed.extend(ports::expose(text)?);
        }
        let others = args.volumes_from.iter().map(|text| mounts_of(store, text));
        let ulimits = args.ulimits.iter().map(|text| steps::ulimit(text));
        let ulimits =
            ulimits.map(|read| read.map(|(name, (soft, hard))| Ulimit { name, soft, hard }));
        let devices = args.devices.iter().map(|text| flags::device(text));
        let hosts = args.hosts.iter().map(|text| steps::host(text));
        Ok(Given {
            shared,
            joined,
            host_ids,
            network,
            exposed,
            hosts: hosts.collect::<Result<_, _>>()?,
            mounts: (
                mounts(args)?,
                others.collect::<Result<Vec<_>, _>>()?.concat(),
            ),
            devices: devices.collect::<Result<_, _>>()?,
            env: flags::environment(context, &args.env_files, &args.env)?,
            labels: flags::labels(&args.label_files, &args.labels)?,
            confinement: flags::confinement(args)?,
            limits: flags::limits(&args.limits, Limits::default())?,
            ulimits: ulimits.collect::<Result<_, _>>()?,
            sysctls: flags::sysctls(&args.sysctls)?,
            shm_size: flags::size("shm-size", args.shm_size.as_deref())?,
            restart: restart(args)?,
            log: flags::log(args)?,
        })
    }
}

/// What is read again with what the image says, and what is read nowhere else.
fn check(store: &Store, args: &CreateArgs) -> Result<(), CliError> {
    if let Some(name) = &args.name {
        let name = name.strip_prefix('/').unwrap_or(name);
        store.check_free(name)?;
    }
    if let Some(path) = &args.workdir
        && !path.starts_with('/')
    {
        let message =
            format!("the working directory `{path}` is invalid, it needs to be an absolute path");
        return Err(usage(message));
    }
    ports::all(&args.publish, false, &[])?;
    flags::health(args, None)?;
    if let Some(text) = &args.stop_signal {
        flags::signal(text)?;
    }
    Ok(())
}

fn restart(args: &CreateArgs) -> Result<Restart, CliError> {
    let restart = flags::restart(&args.restart)?;
    if args.rm && restart != Restart::No {
        return Err(usage(
            "--rm and --restart are at odds: a container that is removed cannot be restarted",
        ));
    }
    Ok(restart)
}

/// The network, with another container's by its whole id.
fn network(store: &Store, wanted: String, args: &CreateArgs) -> Result<String, CliError> {
    let Some(name) = wanted.strip_prefix(OF_CONTAINER) else {
        return Ok(wanted);
    };
    let id = store.find_container(name)?.id;
    let of_network = [
        ("--publish", !args.publish.is_empty() || args.publish_all),
        ("--expose", !args.expose.is_empty()),
        ("--hostname", args.hostname.is_some()),
        ("--add-host", !args.hosts.is_empty()),
        ("--dns", !args.dns.is_empty()),
        ("--dns-search", !args.dns_search.is_empty()),
        ("--dns-option", !args.dns_options.is_empty()),
    ];
    match of_network.iter().find(|(_, is_given)| *is_given) {
        Some((flag, _)) => Err(usage(format!(
            "conflicting options: {flag} and the container type network mode: container `{name}` has that already"
        ))),
        None => Ok(format!("{OF_CONTAINER}{id}")),
    }
}

/// `--ipc`, `--pid` and `--uts`: what is shared with the host, and what with which other container.
fn shared(
    store: &Store,
    args: &CreateArgs,
) -> Result<(Shared, BTreeMap<Namespace, String>), CliError> {
    let mut shared = Shared::default();
    let mut joined = BTreeMap::new();
    let kinds = [
        ("ipc", &args.ipc, &mut shared.ipc, Namespace::Ipc),
        ("pid", &args.pid, &mut shared.pid, Namespace::Pid),
        ("uts", &args.uts, &mut shared.uts, Namespace::Uts),
    ];
    for (flag, mode, of_host, namespace) in kinds {
        match mode.as_str() {
            "" | "private" => {}
            // Whatever of a container's is asked for, others may share it.
            "shareable" if flag == "ipc" => {}
            "host" => *of_host = true,
            mode => {
                let Some(name) = mode.strip_prefix(OF_CONTAINER) else {
                    let message = format!("--{flag}: invalid mode `{mode}`");
                    return Err(usage(message).hint("it is private, host or container:NAME"));
                };
                let id = store.find_container(name)?.id;
                joined.insert(namespace, id.to_string());
            }
        }
    }
    if args.hostname.is_some() && (shared.uts || joined.contains_key(&Namespace::Uts)) {
        return Err(usage(
            "conflicting options: hostname and the UTS mode: --hostname would name the host, or the other container",
        ));
    }
    Ok((shared, joined))
}

/// Whether its ids are the host's: what is the host's needs them, and what is another container's needs that one's.
fn host_ids(
    store: &Store,
    args: &CreateArgs,
    network: &str,
    shared: Shared,
    joined: &BTreeMap<Namespace, String>,
) -> Result<bool, CliError> {
    let asked = args.user_namespace.as_deref();
    if shared != Shared::default() && asked == Some("private") {
        return Err(usage(
            "what is the host's cannot be used with ids of its own: --userns private is at odds with --ipc, --pid and --uts host",
        ));
    }
    let ids: BTreeSet<&String> = joined.values().collect();
    let mut theirs = None;
    for id in ids {
        let other = Record::read(&store.find_container(id)?)?;
        let has_host_ids = other.host_ids || other.privileged;
        if theirs.is_some_and(|theirs| theirs != has_host_ids) {
            return Err(usage(
                "the containers to share with have different ids: one has the host's (--userns host)",
            ));
        }
        theirs = Some(has_host_ids);
    }
    let needs_host_ids = shared != Shared::default() || args.privileged;
    match theirs {
        Some(false) if needs_host_ids || asked == Some("host") => Err(usage(
            "the container to share with has ids of its own, and this one would have the host's",
        )
        .hint("start the other one with --userns host")),
        Some(true) if asked == Some("private") => Err(usage(
            "the container to share with has the host's ids: --userns private is at odds with that",
        )),
        Some(theirs) => Ok(theirs),
        None => Ok(match asked {
            Some(mode) => mode == "host",
            None => network == "host" || shared != Shared::default(),
        }),
    }
}

/// What was asked to be mounted.
fn mounts(args: &CreateArgs) -> Result<Vec<RecordMount>, CliError> {
    let mut mounts: Vec<RecordMount> = Vec::new();
    let given = args.volumes.iter().map(|text| flags::volume(text));
    let given = given.chain(args.mounts.iter().map(|text| flags::mount(text)));
    for mount in given.chain(args.tmpfs.iter().map(|text| flags::tmpfs(text))) {
        let mount = mount?;
        if mounts.iter().any(|other| other.target == mount.target) {
            return Err(usage(format!("duplicate mount point: `{}`", mount.target)));
        }
        mounts.push(mount);
    }
    Ok(mounts)
}

/// `--volumes-from`: what another container has mounted, but memory, which is its own.
fn mounts_of(store: &Store, text: &str) -> Result<Vec<RecordMount>, CliError> {
    let (name, read_only) = match text.split_once(':') {
        None | Some((_, "" | "rw" | "z" | "Z")) => (text.split(':').next().unwrap_or(text), false),
        Some((name, "ro")) => (name, true),
        Some((_, mode)) => {
            let message = format!("cannot mount what `{text}` says: `{mode}` is not ro or rw");
            return Err(usage(message));
        }
    };
    let other = Record::read(&store.find_container(name)?)?;
    let mounts = other.mounts.into_iter();
    let mounts = mounts.filter(|mount| !matches!(mount.source, MountSource::Tmpfs { .. }));
    Ok(mounts
        .map(|mount| RecordMount {
            read_only: mount.read_only || read_only,
            ..mount
        })
        .collect())
}
