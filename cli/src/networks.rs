//! A container's place in a network: what the store knows of it, as the runner needs it.
//!
//! `host` and `none` are no networks of ours. `bridge` is one like any other, made when it is first needed.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};

use runner::NetworkMode;
use runner::etc::{nameservers, resolv_conf_text};
use runner::network::line::Outlet;
use runner::network::names::{self, NameSockets};
use runner::network::relay::{self, Relay};
use runner::network::{Attachment, BRIDGE_PREFIX, Bridge, Subnet, first_free};
use store::Store;
use store::networks::{NetworkError, NetworkInfo, NetworkMember, NetworkPlace, NetworkSubnet};

use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// The network of containers that name none.
pub const DEFAULT: &str = "bridge";

/// The variable that names the network where no `--network` is given.
const VARIABLE: &str = "LONGSHORE_NETWORK";

/// How much of a container's id is its host name.
const ID_CHARS: usize = 12;

/// How much of an id the name of a bridge has: what is left of an interface's name.
const BRIDGE_DIGITS: usize = 11;

impl From<NetworkError> for CliError {
    fn from(error: NetworkError) -> CliError {
        let hint = match error {
            NetworkError::Store(error) => return CliError::from(error),
            NetworkError::Unknown { .. } => {
                Some("`longshore network ls` lists those that there are")
            }
            NetworkError::Exists { .. } => {
                Some("choose another name, or remove it: `longshore network rm`")
            }
            NetworkError::Overlaps { .. } => Some("without --subnet a free one is chosen"),
            NetworkError::HasMembers { .. } => Some("stop them first"),
            _ => None,
        };
        let error = CliError::new(Kind::Input, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}

/// The network that the user wants where none is given, if they said.
pub fn by_default(context: &Context) -> Option<String> {
    let name = context.text_variable(VARIABLE);
    name.filter(|name| !name.is_empty())
}

/// Makes a network with the subnets given, or with one of `chosen` in each family that is wanted.
pub fn create(
    store: &Store,
    name: &str,
    internal: bool,
    labels: BTreeMap<String, String>,
    given: Vec<NetworkSubnet>,
    ipv6: bool,
) -> Result<NetworkInfo, CliError> {
    store.create_network(name, internal, labels, |taken| {
        let mut subnets = given;
        if !subnets.iter().any(|subnet| subnet.first.is_ipv4()) {
            subnets.insert(0, choose(name, taken, candidates_v4(name))?);
        }
        if ipv6 && !subnets.iter().any(|subnet| subnet.first.is_ipv6()) {
            subnets.push(choose(name, taken, candidates_v6())?);
        }
        Ok::<_, CliError>(subnets)
    })
}

fn choose(
    name: &str,
    taken: &[NetworkSubnet],
    candidates: impl Iterator<Item = NetworkSubnet>,
) -> Result<NetworkSubnet, CliError> {
    let taken: Vec<Subnet> = taken.iter().map(subnet).collect();
    let found = first_free(candidates.map(|candidate| subnet(&candidate)), &taken);
    let found = found.blame(Kind::Environment)?;
    let found = found.ok_or_else(|| {
        let message = format!("no subnet is left that network `{name}` could have");
        CliError::new(Kind::Environment, message)
            .hint("name one with --subnet, or remove networks: `longshore network prune`")
    })?;
    Ok(NetworkSubnet::around(found.gateway, found.prefix))
}

/// Room for many in the default network, and for a few hundred in each of the others.
fn candidates_v4(name: &str) -> Box<dyn Iterator<Item = NetworkSubnet>> {
    let around =
        |octets: [u8; 4], prefix| NetworkSubnet::around(Ipv4Addr::from(octets).into(), prefix);
    match name == DEFAULT {
        true => Box::new(
            (224..240)
                .rev()
                .map(move |second| around([10, second, 0, 0], 16)),
        ),
        false => Box::new((208..224).rev().flat_map(move |second| {
            (0..=255).map(move |third| around([10, second, third, 0], 24))
        })),
    }
}

/// Local addresses (RFC 4193), of which nobody hands out any.
fn candidates_v6() -> impl Iterator<Item = NetworkSubnet> {
    (0..=u16::MAX).map(|number| {
        let address = Ipv6Addr::new(0xfd6c, 0x6f6e, 0x6773, number, 0, 0, 0, 0);
        NetworkSubnet::around(address.into(), 64)
    })
}

fn subnet(of: &NetworkSubnet) -> Subnet {
    Subnet {
        gateway: of.gateway,
        prefix: of.prefix,
    }
}

/// The name of a network's bridge on this machine.
pub fn bridge_name(network: &NetworkInfo) -> String {
    let digits = network.id.get(..BRIDGE_DIGITS).unwrap_or(&network.id);
    format!("{BRIDGE_PREFIX}{digits}")
}

/// Takes a place in a network for as long as what is returned lives.
pub fn join(
    store: &Store,
    name: &str,
    member: NetworkMember,
    wanted: &[IpAddr],
) -> Result<(NetworkMode, NetworkPlace), CliError> {
    if !runner::network::can_bridge() {
        let message = format!("network `{name}`: this process may not make network interfaces");
        return Err(CliError::new(Kind::Environment, message)
            .hint("run as root, or use --network host or --network none"));
    }
    if name == DEFAULT && matches!(store.network(name), Err(NetworkError::Unknown { .. })) {
        match create(store, name, false, BTreeMap::new(), Vec::new(), false) {
            Ok(_) => {}
            // Somebody else has made it meanwhile.
            Err(_) if store.network(name).is_ok() => {}
            Err(error) => return Err(error),
        }
    }
    let place = store.join_network(name, member, wanted)?;
    let network = &place.network;
    let bridge = Bridge {
        name: bridge_name(network),
        subnets: network.subnets.iter().map(subnet).collect(),
        internal: network.internal,
    };
    let addresses = place.addresses.clone();
    let attachment = Attachment {
        bridge,
        addresses,
        names: true,
    };
    Ok((NetworkMode::Bridge(attachment), place))
}

/// Answers what a container asks about names, until `end` can be read; what it does not know itself is asked of the servers given, or of
/// the host's.
pub fn serve_names(
    store: &Store,
    network: &NetworkInfo,
    given: &[IpAddr],
    sockets: &NameSockets,
    end: BorrowedFd<'_>,
) {
    let servers: Vec<IpAddr> = match network.internal {
        // Not even a question leaves it.
        true => Vec::new(),
        false if !given.is_empty() => given.to_vec(),
        false => nameservers(&resolv_conf_text().unwrap_or_default()).collect(),
    };
    let look_up = |name: &str| addresses_of(store, &network.name, name);
    if let Err(error) = names::serve(sockets, &servers, &look_up, end) {
        tracing::warn!(%error, "names are no longer resolved");
    }
}

/// The addresses of those in a network who go by `name`.
fn addresses_of(store: &Store, network: &str, name: &str) -> Option<Vec<IpAddr>> {
    let members = store.network_members(network).ok()?;
    let goes_by_it = |member: &NetworkMember| {
        let mut own = member.names.iter();
        own.any(|own| own.eq_ignore_ascii_case(name)) || member.id.get(..ID_CHARS) == Some(name)
    };
    let found: Vec<IpAddr> = members
        .into_iter()
        .filter(goes_by_it)
        .flat_map(|member| member.addresses)
        .collect();
    (!found.is_empty()).then_some(found)
}

/// The program that leads out of a namespace for who may make no interfaces on the host, where it is installed.
pub fn relay_program(context: &Context) -> Option<PathBuf> {
    let path = context.text_variable("PATH")?;
    let folders = path.split(':').filter(|folder| folder.starts_with('/'));
    let mut programs = folders.map(|folder| Path::new(folder).join(relay::PROGRAM));
    programs.find(|program| program.is_file())
}

/// How steps of builds have a network of their own here, by its name for programs; or why they are on the host's.
pub fn of_steps(context: &Context) -> Result<&'static str, String> {
    let Err(why) = Outlet::try_here(&[]) else {
        return Ok("interfaces");
    };
    match Relay::found(relay_program(context).as_deref()) {
        Ok(_) => Ok(relay::PROGRAM),
        Err(relay) => Err(format!("{why}, and {relay}")),
    }
}

/// Removes a network with its bridge.
pub fn remove(store: &Store, name: &str) -> Result<NetworkInfo, CliError> {
    store.remove_network(name, |network| {
        // Who cannot make one has none.
        if !runner::network::can_bridge() {
            return Ok(());
        }
        runner::network::remove(&bridge_name(network)).blame(Kind::Environment)
    })
}
