//! Networks that sandboxes share: a bridge each, with a way out.
//!
//! ```text
//!  sandbox: eth0 ══ lspN ─┐
//!  sandbox: eth0 ══ lspM ─┴─ bridge (gateway's address) ── filter, masquerade ── the host's interfaces
//! ```
//!
//! - `netlink`: requests to the kernel. `link`: bridges, pairs, addresses, routes. `filter`: nf_tables. [`names`]: a name server.
//! - [`line`]: a way out for sandboxes that are on no network.
//! - [`relay`]: one without any interface of the host's, for those who may not make one.
//! - [`ports`]: the host's ports that lead into a sandbox. `proxy`: what is carried through them.
//!
//! The helper plugs a sandbox in from outside, init configures its end inside. A bridge and its filter are made when they
//! are first needed and left in place, so that a reboot or a `flush ruleset` is mended by the next sandbox; a
//! sandbox's pair goes with its namespace, so nothing has to be cleaned up after a `kill -9`.
//! Needs `CAP_NET_ADMIN` in the host's network namespace: see [`can_bridge`].

mod filter;
pub mod line;
mod link;
pub mod names;
mod netlink;
pub mod ports;
pub(crate) mod proxy;
pub mod relay;

use std::io;
use std::net::{IpAddr, TcpListener, UdpSocket};

use serde::{Deserialize, Serialize};

use names::NameSockets;
use netlink::Netlink;

/// What the names of all bridges begin with: by it the networks are kept from one another.
pub const BRIDGE_PREFIX: &str = "lsb-";

/// The longest name of an interface.
const NAME_MAX: usize = 15;

/// Ethernet's, where nothing tells.
const MTU: u32 = 1500;

/// A network: a bridge in the host's network namespace.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bridge {
    /// The interface's name: [`BRIDGE_PREFIX`] and up to 11 bytes more.
    pub name: String,
    /// Its subnets, at least one.
    pub subnets: Vec<Subnet>,
    /// Whether nothing leads out of it.
    pub internal: bool,
}

/// Addresses that belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Subnet {
    /// The address of the bridge itself.
    pub gateway: IpAddr,
    /// How many leading bits all of them share.
    pub prefix: u8,
}

/// A sandbox's place in a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// The network.
    pub bridge: Bridge,
    /// The sandbox's address in each of its subnets, in their order.
    pub addresses: Vec<IpAddr>,
    /// Whether the sandbox has a name server at [`names::ADDRESS`], which the caller has to be: [`crate::Sandbox::take_names`].
    pub names: bool,
}

impl Subnet {
    /// Whether `address` lies in it.
    pub fn contains(&self, address: IpAddr) -> bool {
        let other = Self {
            gateway: address,
            prefix: u8::MAX,
        };
        self.overlaps(&other)
    }

    /// Whether some address lies in both.
    pub fn overlaps(&self, other: &Self) -> bool {
        let prefix = u32::from(self.prefix.min(other.prefix));
        match (self.gateway, other.gateway) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.leading_zeros() >= prefix.min(32)
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let differ = a.to_bits() ^ b.to_bits();
                differ.leading_zeros() >= prefix.min(128)
            }
            _ => false,
        }
    }
}

impl Attachment {
    /// What is wrong with it, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let Bridge { name, subnets, .. } = &self.bridge;
        let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if !name.starts_with(BRIDGE_PREFIX) || name.len() > NAME_MAX || !name.bytes().all(is_plain)
        {
            return Err(format!(
                "bridge `{name}`: its name is `{BRIDGE_PREFIX}` and at most {} letters and digits",
                NAME_MAX - BRIDGE_PREFIX.len()
            ));
        }
        if subnets.is_empty() || subnets.len() != self.addresses.len() {
            return Err(format!(
                "bridge `{name}`: one address for each of its subnets"
            ));
        }
        for (subnet, address) in subnets.iter().zip(&self.addresses) {
            let bits = if subnet.gateway.is_ipv4() { 32 } else { 128 };
            if subnet.prefix == 0 || subnet.prefix > bits || !subnet.contains(*address) {
                let Subnet { gateway, prefix } = subnet;
                return Err(format!(
                    "address `{address}` does not lie in the network of `{gateway}/{prefix}`"
                ));
            }
        }
        Ok(())
    }
}

/// Whether this process may make bridges where it is.
pub fn can_bridge() -> bool {
    Netlink::route().is_ok_and(|mut netlink| may_change(&mut netlink))
}

fn may_change(netlink: &mut Netlink) -> bool {
    use rustix::thread::CapabilitySet;
    // In a user namespace the capability is one over that namespace's own networks only: ask the kernel, changing nothing.
    let held = rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::NET_ADMIN));
    held && link::may_change(netlink).unwrap_or(false)
}

/// The first of the subnets `from` that neither overlaps another one of them that is taken, nor any net that this machine knows.
///
/// # Errors
/// The kernel does not tell its routes.
pub fn first_free(
    from: impl IntoIterator<Item = Subnet>,
    taken: &[Subnet],
) -> io::Result<Option<Subnet>> {
    let routes = link::routes(&mut Netlink::route()?)?;
    let known: Vec<Subnet> = routes.into_iter().filter_map(|route| route.to).collect();
    let is_free = |subnet: &Subnet| {
        let mut others = known.iter().chain(taken);
        !others.any(|other| other.overlaps(subnet))
    };
    Ok(from.into_iter().find(is_free))
}

/// Removes a network's bridge and its filter; sandboxes that are still plugged in lose their connection.
///
/// # Errors
/// The kernel's.
pub fn remove(bridge: &str) -> io::Result<()> {
    link::remove_bridge(&mut Netlink::route()?, bridge)?;
    filter::remove(bridge)
}

/// The helper's part: the bridge and its filter, and a pair that leads into the namespace of process `pid`.
pub(crate) fn plug(attachment: &Attachment, pid: i32) -> io::Result<()> {
    let mut netlink = Netlink::route()?;
    let mtu = mtu(&mut netlink)?;
    link::ensure_bridge(&mut netlink, &attachment.bridge, mtu)?;
    // Before anything is plugged in: what is not filtered yet may not pass.
    filter::ensure(&attachment.bridge)?;
    if !attachment.bridge.internal {
        forward(&mut netlink, &attachment.bridge.subnets)?;
    }
    link::plug(&mut netlink, attachment, mtu, pid)
}

/// Init's part: addresses and routes.
pub(crate) fn configure(attachment: &Attachment) -> io::Result<()> {
    link::configure(&mut Netlink::route()?, attachment)
}

/// Init's part, too: the sockets of the name server, which are reached at port 53 of its address.
pub(crate) fn open_names() -> io::Result<NameSockets> {
    let datagrams = UdpSocket::bind((names::ADDRESS, 0))?;
    let streams = TcpListener::bind((names::ADDRESS, 0))?;
    let (udp, tcp) = (datagrams.local_addr()?.port(), streams.local_addr()?.port());
    filter::redirect_names(names::ADDRESS, udp, tcp)?;
    Ok(NameSockets { datagrams, streams })
}

/// Packets as large as the way out takes: larger ones would be cut up, or lost.
fn mtu(netlink: &mut Netlink) -> io::Result<u32> {
    let routes = link::routes(netlink)?;
    let way_out = routes.iter().find(|route| route.to.is_none());
    let Some(index) = way_out.and_then(|route| route.interface) else {
        return Ok(MTU);
    };
    Ok(link::mtu(netlink, index)?.unwrap_or(MTU))
}

/// Lets this machine pass packets on between its interfaces, which is off by default.
fn forward(netlink: &mut Netlink, subnets: &[Subnet]) -> io::Result<()> {
    let is_off = |path: &str| Ok::<_, io::Error>(std::fs::read_to_string(path)?.trim() == "0");
    for subnet in subnets {
        let path = match subnet.gateway {
            IpAddr::V4(_) => "/proc/sys/net/ipv4/ip_forward",
            IpAddr::V6(_) => "/proc/sys/net/ipv6/conf/all/forwarding",
        };
        if !is_off(path)? {
            continue;
        }
        if subnet.gateway.is_ipv6() {
            keep_advertised_routes(netlink)?;
        }
        std::fs::write(path, "1")?;
    }
    Ok(())
}

/// A machine that passes packets on no longer listens to other routers, unless it is told to: it would lose its own way out.
fn keep_advertised_routes(netlink: &mut Netlink) -> io::Result<()> {
    let routes = link::routes(netlink)?;
    let told = routes
        .iter()
        .filter(|route| route.is_v6 && route.is_advertised);
    for index in told.filter_map(|route| route.interface) {
        let name = rustix::net::netdevice::index_to_name(netlink.socket(), index)?;
        let path = format!("/proc/sys/net/ipv6/conf/{name}/accept_ra");
        if std::fs::read_to_string(&path)?.trim() == "1" {
            std::fs::write(&path, "2")?;
        }
    }
    Ok(())
}
