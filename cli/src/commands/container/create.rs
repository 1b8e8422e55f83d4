//! `create`, and the first half of `run`: an image and flags make a container.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::SystemTime;

use runner::container::time::rfc3339;
use runner::signal;
use store::Store;
use store::containers::{Container, ContainerId, NewContainer};
use store::images::ImageId;
use store::layer::LayerId;
use store::oci::{ImageConfig, Platform, RunConfig};
use store::volumes::{Filling, VolumeAbout};

use super::given::Given;
use super::record::{MountSource, Record, RecordMount};
use super::{flags, ports};
use crate::args::{ContainerCreateArgs, CreateArgs, PullWhen};
use crate::commands::{short_name, transfer};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Docker's time for `stop`.
const STOP_TIMEOUT_S: u64 = 10;

/// `longshore create`.
pub fn create(context: &Context, args: &ContainerCreateArgs) -> Result<ExitCode, CliError> {
    let (store, container) = make(context, &args.create, false)?;
    context.ui.line(&container.id.to_string())?;
    drop(store);
    Ok(ExitCode::SUCCESS)
}

/// Makes a container; `detached` says that nobody will be attached when it starts.
pub fn make(
    context: &Context,
    args: &CreateArgs,
    detached: bool,
) -> Result<(Arc<Store>, Container), CliError> {
    if let Some(path) = &args.cidfile
        && path.exists()
    {
        let message = format!(
            "the container id file `{}` is there: another container may be running, or remove it",
            path.display()
        );
        return Err(CliError::new(Kind::Run, message));
    }
    let mut store = Arc::new(context.store()?);
    let given = Given::read(context, &store, args)?;
    let image = image(context, &mut store, args)?;
    let config = store.images().config(&image)?;
    let layers = layers(&store, &image, &config)?;
    let id = ContainerId::random()?;
    check_platform(args, &config)?;
    let mut record = record(context, args, given, &image, &config, detached)?;
    fill_volumes(&store, &layers, &mut record)?;
    let made_up;
    let name = match &args.name {
        Some(name) => name.strip_prefix('/').unwrap_or(name),
        None => {
            made_up = made_up_name(&store, &id)?;
            &made_up
        }
    };
    let new = NewContainer {
        id,
        name,
        image,
        layers: &layers,
        config: &record.encode(),
    };
    let container = store.create_container(&new)?;
    if let Some(path) = &args.cidfile {
        write_new(path, &container.id.to_string())?;
    }
    Ok((store, container))
}

fn write_new(path: &Path, text: &str) -> Result<(), CliError> {
    let written =
        std::fs::File::create_new(path).and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|error| {
        CliError::new(
            Kind::Run,
            format!("cannot write `{}`: {error}", path.display()),
        )
    })
}

/// The image, pulled if it has to be.
fn image(
    context: &Context,
    store: &mut Arc<Store>,
    args: &CreateArgs,
) -> Result<ImageId, CliError> {
    let here = short_name::find(context, store, args.image())?;
    let id = match (here, args.pull) {
        (Some(image), PullWhen::Missing | PullWhen::Never) => image.id,
        (None, PullWhen::Never) => {
            let message = format!("no such image: `{}`, and --pull is never", args.image());
            return Err(CliError::new(Kind::Run, message));
        }
        (found, _) => {
            if found.is_none() && !args.quiet {
                let note = format!("no image `{}` here: pulling it", args.image());
                context.ui.note(&note);
            }
            let platform = args.platform.clone().unwrap_or_else(Platform::host);
            let manner = transfer::Manner::quiet_if(args.quiet);
            let wanted = short_name::candidates(context, args.image())?;
            let (_, pulled) = transfer::fetch(context, store, &wanted, &platform, &manner)?;
            // The pull's threads end with what they worked for.
            *store = Arc::new(context.store()?);
            pulled.id
        }
    };
    if transfer::complete(context, store, &id)? {
        // As after a pull.
        *store = Arc::new(context.store()?);
    }
    Ok(id)
}

/// The layers of an image, oldest first, unpacked where they were not.
fn layers(store: &Store, id: &ImageId, config: &ImageConfig) -> Result<Vec<LayerId>, CliError> {
    let diff_ids = config.rootfs.diff_ids.iter();
    let unpacked = diff_ids.map(|diff_id| store.ensure_unpacked(diff_id));
    unpacked.collect::<Result<_, _>>().map_err(|error| {
        CliError::from(error).hint(format!("image {}: pull it again", id.0.short()))
    })
}

/// What the flags and the image add up to.
fn record(
    context: &Context,
    args: &CreateArgs,
    given: Given,
    image: &ImageId,
    config: &ImageConfig,
    detached: bool,
) -> Result<Record, CliError> {
    let config = &config.config;
    let (entrypoint, cmd) = command(args, config)?;
    let mut exposed = given.exposed;
    let of_image = config.exposed_ports.iter();
    exposed.extend(of_image.flat_map(|ports| ports.keys().cloned()));
    exposed.sort();
    exposed.dedup();
    if args.publish_all {
        for port in exposed.iter().filter(|port| !ports::is_carried(port)) {
            let message = format!("port {port} is not published: only tcp and udp can be carried");
            context.ui.warning(&message);
        }
    }
    let ports = ports::all(&args.publish, args.publish_all, &exposed)?;
    let published = ports.iter();
    exposed.extend(published.map(|port| format!("{}/{}", port.port, port.protocol.word())));
    exposed.sort();
    exposed.dedup();
    if given.network == "host" && !ports.is_empty() {
        let message = "Published ports are discarded when using host network mode";
        context.ui.warning(message);
    }
    let mut env = config.env.clone();
    for variable in given.env {
        flags::set(&mut env, variable);
    }
    let mut labels = config.labels.clone().unwrap_or_default();
    labels.extend(given.labels);
    let stop_signal = args.stop_signal.as_ref().or(config.stop_signal.as_ref());
    Ok(Record {
        created: rfc3339(SystemTime::now()),
        image_name: args.image().to_owned(),
        image: image.to_string(),
        entrypoint,
        cmd,
        env,
        user: args.user.clone().unwrap_or_else(|| config.user.clone()),
        groups: args.groups.clone(),
        working_dir: working_dir(args, config),
        tty: args.tty,
        stdin: args.interactive,
        stdin_once: args.interactive && !detached,
        hostname: args.hostname.clone(),
        domainname: args.domainname.clone(),
        labels,
        exposed,
        ports,
        publish_all: args.publish_all,
        mounts: mounts(config, given.mounts),
        devices: given.devices,
        host_ids: given.host_ids,
        network: given.network,
        joined: given.joined,
        addresses: args.addresses.clone(),
        aliases: args.aliases.clone(),
        hosts: given.hosts,
        resolv_conf: resolv_conf(args),
        confinement: given.confinement,
        privileged: args.privileged,
        read_only: args.read_only,
        limits: given.limits,
        ulimits: given.ulimits,
        sysctls: given.sysctls,
        shared: given.shared,
        oom_score: args.oom_score_adj,
        shm_size: given.shm_size,
        cgroup_parent: args.cgroup_parent.clone(),
        init: args.init,
        restart: given.restart,
        auto_remove: args.rm,
        health: flags::health(args, config.healthcheck.as_ref())?,
        stop_signal: stop_signal.map_or(Ok(signal::TERM), |text| flags::signal(text))?,
        stop_timeout_s: match args.stop_timeout {
            None => Some(STOP_TIMEOUT_S),
            Some(seconds) => u64::try_from(seconds).ok(),
        },
        log: given.log,
    })
}

/// ENTRYPOINT and CMD, either replaced by the command line. A new entry point makes the image's CMD void.
fn command(args: &CreateArgs, config: &RunConfig) -> Result<(Vec<String>, Vec<String>), CliError> {
    let entrypoint = match args.entrypoint.as_deref() {
        Some("") => Vec::new(),
        Some(entrypoint) => vec![entrypoint.to_owned()],
        None => config.entrypoint.clone().unwrap_or_default(),
    };
    let arguments = match (args.command(), &args.entrypoint) {
        ([], None) => config.cmd.clone().unwrap_or_default(),
        (given, _) => given.to_vec(),
    };
    if entrypoint.is_empty() && arguments.is_empty() {
        let message = "the image has neither ENTRYPOINT nor CMD, and no command was given";
        return Err(CliError::new(Kind::Run, message).hint("name one after the image"));
    }
    Ok((entrypoint, arguments))
}

fn working_dir(args: &CreateArgs, config: &RunConfig) -> String {
    match (&args.workdir, config.working_dir.as_str()) {
        (Some(given), _) => given.clone(),
        (None, "") => "/".to_owned(),
        (None, base) => base.to_owned(),
    }
}

fn resolv_conf(args: &CreateArgs) -> Vec<String> {
    let servers = args
        .dns
        .iter()
        .map(|address| format!("nameserver {address}"));
    let search = match args.dns_search.is_empty() {
        true => None,
        false => Some(format!("search {}", args.dns_search.join(" "))),
    };
    let options = match args.dns_options.is_empty() {
        true => None,
        false => Some(format!("options {}", args.dns_options.join(" "))),
    };
    servers.chain(search).chain(options).collect()
}

/// What was asked for, what other containers have mounted, and volumes where the image has VOLUME and nothing else is mounted.
fn mounts(
    config: &RunConfig,
    (mut mounts, others): (Vec<RecordMount>, Vec<RecordMount>),
) -> Vec<RecordMount> {
    for mount in others {
        if !mounts.iter().any(|other| other.target == mount.target) {
            mounts.push(mount);
        }
    }
    let of_image = config.volumes.iter().flat_map(|volumes| volumes.keys());
    for target in of_image {
        let target = format!("/{}", target.trim_matches('/'));
        if target != "/" && !mounts.iter().any(|mount| mount.target == target) {
            mounts.push(RecordMount {
                target,
                source: MountSource::Volume {
                    name: String::new(),
                    anonymous: true,
                    copy: true,
                },
                read_only: false,
            });
        }
    }
    mounts
}

/// An image for another platform than was asked for is not what was asked for.
fn check_platform(args: &CreateArgs, config: &ImageConfig) -> Result<(), CliError> {
    let Some(wanted) = &args.platform else {
        return Ok(());
    };
    let has_variant = wanted.variant.is_none() || wanted.variant == config.variant;
    if wanted.os == config.os && wanted.architecture == config.architecture && has_variant {
        return Ok(());
    }
    let message = format!(
        "image `{}` was found, but is for {}/{}, not for {wanted}",
        args.image(),
        config.os,
        config.architecture
    );
    Err(CliError::new(Kind::Run, message).hint("--pull always fetches the one for the platform"))
}

/// Makes the volumes that are not there, with what the image has in their places.
fn fill_volumes(store: &Store, layers: &[LayerId], record: &mut Record) -> Result<(), CliError> {
    let mut view = None;
    for mount in &mut record.mounts {
        let MountSource::Volume {
            name,
            anonymous,
            copy,
        } = &mut mount.source
        else {
            continue;
        };
        if *anonymous && name.is_empty() {
            *name = store.anonymous_volume_name()?;
        }
        if store.volume(name)?.is_some() {
            continue;
        }
        if view.is_none() {
            view = Some(store.snapshots().view(layers)?);
        }
        let root = view.as_ref().map(std::os::fd::AsFd::as_fd);
        let filling = root.filter(|_| *copy).map(|root| Filling {
            root,
            path: &mount.target,
        });
        let about = VolumeAbout {
            created: rfc3339(SystemTime::now()),
            anonymous: *anonymous,
            ..VolumeAbout::default()
        };
        store.ensure_volume(name, &about, filling)?;
    }
    Ok(())
}

/// Two words by the id; its beginning too where another container has them.
fn made_up_name(store: &Store, id: &ContainerId) -> Result<String, CliError> {
    const MOODS: [&str; 32] = [
        "able", "bold", "brisk", "calm", "clear", "deft", "eager", "early", "fair", "fleet",
        "fond", "glad", "grand", "hardy", "keen", "kind", "late", "lucid", "merry", "mild", "neat",
        "noble", "plain", "proud", "quick", "quiet", "ready", "sharp", "steady", "stout", "sure",
        "swift",
    ];
    const THINGS: [&str; 32] = [
        "anchor", "barge", "beacon", "berth", "bollard", "boom", "bow", "bridge", "buoy",
        "capstan", "crane", "deck", "derrick", "dock", "ferry", "hawser", "helm", "hoist", "hull",
        "jetty", "keel", "ketch", "mast", "mooring", "pier", "pilot", "quay", "rudder", "sail",
        "tide", "tug", "wharf",
    ];
    let digits = id.to_string();
    let word = |words: [&'static str; 32], from: usize| {
        let number = usize::from_str_radix(&digits[from..from + 2], 16).unwrap_or(0);
        words[number % words.len()]
    };
    let name = format!("{}_{}", word(MOODS, 0), word(THINGS, 2));
    let is_taken = store
        .containers()
        .blame(Kind::Run)?
        .iter()
        .any(|other| other.name == name);
    Ok(match is_taken {
        true => format!("{name}_{}", id.short()),
        false => name,
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::args::{Cli, Command};

    fn args(line: &str) -> CreateArgs {
        let words = ["longshore", "run"].into_iter().chain(line.split(' '));
        match Cli::try_parse_from(words).unwrap().command {
            Command::Run(args) => args.create,
            _ => panic!("not run"),
        }
    }

    #[test]
    fn commands_add_up_as_with_docker() {
        let config = RunConfig {
            entrypoint: Some(vec!["e".to_owned()]),
            cmd: Some(vec!["c".to_owned()]),
            ..RunConfig::default()
        };
        let check = |line: &str, expected: &[&str]| {
            let (entrypoint, cmd) = command(&args(line), &config).unwrap();
            assert_eq!([entrypoint, cmd].concat(), expected);
        };
        check("img", &["e", "c"]);
        check("img x y", &["e", "x", "y"]);
        check("--entrypoint z img", &["z"]);
        check("--entrypoint z img x", &["z", "x"]);
        check("--entrypoint= img x", &["x"]);
        assert!(command(&args("img"), &RunConfig::default()).is_err());
    }

    #[test]
    fn volumes_of_the_image_are_mounted_where_nothing_else_is() {
        let mut config = RunConfig::default();
        let volumes = ["/a", "/b/"].map(|path| (path.to_owned(), serde_json::Map::new()));
        config.volumes = Some(volumes.into());
        let given = [flags::volume("data:/b"), flags::tmpfs("/t")].map(Result::unwrap);
        let mounts = mounts(&config, (given.to_vec(), Vec::new()));
        let targets: Vec<&str> = mounts.iter().map(|mount| mount.target.as_str()).collect();
        assert_eq!(targets, ["/b", "/t", "/a"]);
    }
}
