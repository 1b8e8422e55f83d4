//! What network a container is on, and how names are looked up there.

use std::net::IpAddr;
use std::os::fd::BorrowedFd;
use std::process::ExitCode;

use builder::graph::exec::HOST_GATEWAY;
use runner::NetworkMode;
use runner::etc::{asking, outside_resolv_conf_text, resolv_conf_text};
use runner::network::names::{self, NameSockets};
use runner::network::relay::{self, Relay};
use store::Store;
use store::networks::{NetworkMember, NetworkPlace};

use super::Known;
use super::given::OF_CONTAINER;
use super::record::Record;
use crate::args::{ContainerNamesArgs, CreateArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::networks;

/// The network that was asked for, or is used where none was.
pub fn wanted(context: &Context, args: &CreateArgs) -> Result<String, CliError> {
    let default = || networks::by_default(context);
    let name = match args.network.as_deref() {
        Some("default") | None => default().unwrap_or_else(|| networks::DEFAULT.to_owned()),
        Some(name) => name.to_owned(),
    };
    let has_place = args.addresses.is_empty() && args.aliases.is_empty();
    let has_none = matches!(name.as_str(), "host" | "none") || name.starts_with(OF_CONTAINER);
    if has_none && !has_place {
        let message = format!("--ip and --network-alias mean nothing with --network {name}");
        return Err(CliError::new(Kind::Usage, message));
    }
    Ok(name)
}

/// A container's network, and the place in it that is the container's.
pub struct Wiring {
    pub mode: NetworkMode,
    pub place: Option<NetworkPlace>,
}

impl Wiring {
    /// Takes the place that a container is to have.
    pub fn of(context: &Context, store: &Store, known: &Known) -> Result<Wiring, CliError> {
        let record = &known.record;
        let alone = |mode| Wiring { mode, place: None };
        match record.network.as_str() {
            "host" => Ok(alone(NetworkMode::Host)),
            "none" => Ok(alone(NetworkMode::None)),
            name if name.starts_with(OF_CONTAINER) => Ok(alone(NetworkMode::Joined)),
            networks::DEFAULT if !runner::network::can_bridge() => {
                if !record.addresses.is_empty() {
                    let message = "--ip needs a bridge, which this process may not make";
                    return Err(CliError::new(Kind::Environment, message).hint("run as root"));
                }
                Ok(alone(without_bridge(context, record)))
            }
            name => {
                let own = [known.container.name.clone()];
                let member = NetworkMember {
                    id: known.container.id.to_string(),
                    names: own
                        .into_iter()
                        .chain(record.aliases.iter().cloned())
                        .collect(),
                    ..NetworkMember::default()
                };
                let (mode, place) = networks::join(store, name, member, &record.addresses)?;
                Ok(Wiring {
                    mode,
                    place: Some(place),
                })
            }
        }
    }

    /// Whether ports of the host may lead into it.
    pub fn has_ports(&self) -> bool {
        matches!(self.mode, NetworkMode::Bridge(_) | NetworkMode::Relay(_))
    }

    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        match &self.mode {
            NetworkMode::Bridge(attachment) => attachment.addresses.clone(),
            NetworkMode::Relay(_) => vec![relay::ADDRESS],
            _ => Vec::new(),
        }
    }

    /// The lines of `/etc/hosts` that were asked for.
    pub fn hosts(&self, record: &Record) -> Vec<(String, IpAddr)> {
        let gateway = match &self.mode {
            NetworkMode::Bridge(attachment) => attachment.bridge.subnets[0].gateway,
            NetworkMode::Relay(_) => relay::GATEWAY,
            _ => IpAddr::from([127, 0, 0, 1]),
        };
        let hosts = record.hosts.iter().map(|(name, address)| match *address {
            HOST_GATEWAY => (name.clone(), gateway),
            address => (name.clone(), address),
        });
        hosts.collect()
    }

    /// `/etc/resolv.conf`: what was asked for, and for the rest what the network has.
    pub fn resolv_conf(&self, record: &Record) -> Result<String, CliError> {
        let base = match &self.mode {
            NetworkMode::Host | NetworkMode::Joined => resolv_conf_text().blame(Kind::Run)?,
            NetworkMode::Bridge(_) => {
                let text = resolv_conf_text().blame(Kind::Run)?;
                asking(&text, names::ADDRESS.into())
            }
            NetworkMode::Relay(Relay { program: Some(_) }) => {
                let text = resolv_conf_text().blame(Kind::Run)?;
                asking(&text, relay::NAME_SERVER)
            }
            NetworkMode::Relay(_) | NetworkMode::Line(_) | NetworkMode::None => {
                outside_resolv_conf_text().blame(Kind::Run)?
            }
        };
        Ok(merged(&base, &record.resolv_conf, self.has_names()))
    }

    /// Whether its names are looked up in the store.
    fn has_names(&self) -> bool {
        matches!(self.mode, NetworkMode::Bridge(_))
    }

    /// The command that answers its questions about names, if there is one.
    pub fn names(&self, context: &Context, record: &Record) -> Result<Vec<String>, CliError> {
        if !self.has_names() {
            return Ok(Vec::new());
        }
        let root = context.root()?.to_string_lossy().into_owned();
        let mut words: Vec<String> = ["--root", &root, "container-names", &record.network]
            .map(str::to_owned)
            .to_vec();
        let given = record.resolv_conf.iter();
        for server in given.filter_map(|line| line.strip_prefix("nameserver ")) {
            words.extend(["--dns".to_owned(), server.to_owned()]);
        }
        Ok(words)
    }
}

/// The default network of who may make no bridge.
fn without_bridge(context: &Context, record: &Record) -> NetworkMode {
    let program = networks::relay_program(context);
    let lacking = match Relay::found(program.as_deref()) {
        Ok(relay) => return NetworkMode::Relay(relay),
        Err(why) => format!("this user may not make network interfaces, and {why}"),
    };
    if record.ports.is_empty() {
        context.ui.note(&format!(
            "the container is on the host's network: {lacking}"
        ));
        return NetworkMode::Host;
    }
    let note =
        format!("the container's ports are published, but nothing leads out of it: {lacking}");
    context.ui.note(&note);
    NetworkMode::Relay(Relay { program: None })
}

/// The lines given, and of the kinds that are not among them those of `base`. Whose names are looked up by ourselves asks no
/// other server: it is us who do.
fn merged(base: &str, given: &[String], keeps_servers: bool) -> String {
    let kind = |line: &str| match line.split_whitespace().next() {
        Some("domain") => "search".to_owned(),
        word => word.unwrap_or_default().to_owned(),
    };
    let is_kept = |line: &&str| {
        let kind = kind(line);
        let is_given = given
            .iter()
            .any(|other| other.split(' ').next() == Some(&kind));
        !is_given || (keeps_servers && kind == "nameserver")
    };
    let kept = base.lines().filter(is_kept).map(str::to_owned);
    let given = given
        .iter()
        .filter(|line| !(keeps_servers && line.starts_with("nameserver ")));
    let lines = kept.chain(given.cloned());
    lines.map(|line| line + "\n").collect()
}

/// `longshore container-names`: the sockets are standard input and output, and what says the end is standard error.
pub fn names(context: &Context, args: &ContainerNamesArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let network = store.network(&args.network)?;
    let copy = |fd: BorrowedFd<'_>| fd.try_clone_to_owned().blame(Kind::Environment);
    let sockets = NameSockets {
        datagrams: copy(rustix::stdio::stdin())?.into(),
        streams: copy(rustix::stdio::stdout())?.into(),
    };
    let end = rustix::stdio::stderr();
    networks::serve_names(&store, &network, &args.dns, &sockets, end);
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_takes_the_place_of_its_kind() {
        let check = |given: &[&str], keeps: bool, expect: &str| {
            let given: Vec<String> = given.iter().map(|&line| line.to_owned()).collect();
            let base = "nameserver 127.0.0.11\nsearch a\noptions edns0\n";
            assert_eq!(merged(base, &given, keeps).replace('\n', ";"), expect);
        };
        let all = "nameserver 127.0.0.11;search a;options edns0;";
        check(&[], false, all);
        check(
            &["search b"],
            false,
            "nameserver 127.0.0.11;options edns0;search b;",
        );
        check(
            &["nameserver 9.9.9.9"],
            false,
            "search a;options edns0;nameserver 9.9.9.9;",
        );
        check(&["nameserver 9.9.9.9"], true, all);
    }
}
