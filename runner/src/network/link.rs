//! Interfaces: the bridge of a network, and the pair that leads from it into a sandbox.

use std::io;
use std::net::{IpAddr, Ipv4Addr};

use rustix::net::netdevice::name_to_index;

use super::netlink::{CREATE, Message, Netlink, attributes};
use super::{Attachment, Bridge, Subnet};

const NEW_LINK: u16 = 16;
const DELETE_LINK: u16 = 17;
const GET_LINK: u16 = 18;
const NEW_ADDRESS: u16 = 20;
const NEW_ROUTE: u16 = 24;
const GET_ROUTE: u16 = 26;

/// Attributes of interfaces, and of those in their `LINK_INFO`.
const LINK_ADDRESS: u16 = 1;
const LINK_NAME: u16 = 3;
const LINK_MTU: u16 = 4;
const LINK_MASTER: u16 = 10;
const LINK_INFO: u16 = 18;
const LINK_NAMESPACE_OF: u16 = 19;
const INFO_KIND: u16 = 1;
const INFO_DATA: u16 = 2;
const VETH_PEER: u16 = 1;

const ADDRESS: u16 = 1;
const ADDRESS_LOCAL: u16 = 2;
const ADDRESS_FLAGS: u16 = 8;
/// An address that is used at once, without asking whether another machine has it.
const NO_DETECTION: u32 = 2;

const ROUTE_TO: u16 = 1;
const ROUTE_INTERFACE: u16 = 4;
const ROUTE_GATEWAY: u16 = 5;
const TABLE_MAIN: u8 = 254;
const TABLE_LOCAL: u8 = 255;
const PROTOCOL_BOOT: u8 = 3;
const PROTOCOL_ADVERTISED: u8 = 9;
const TYPE_UNICAST: u8 = 1;
const ON_LINK: u32 = 4;

const UP: u32 = 1;

/// The name of a sandbox's own interface.
pub(super) const INSIDE: &str = "eth0";

/// Makes the bridge if it is not there, with its addresses, and brings it up. Tells whether it was not.
pub(super) fn ensure_bridge(netlink: &mut Netlink, bridge: &Bridge, mtu: u32) -> io::Result<bool> {
    let mut link = Message::new(NEW_LINK, CREATE, &link_fields(0, 0, 0));
    link.text(LINK_NAME, &bridge.name);
    // A bridge without one takes a port's, and a new one when that goes.
    link.attribute(
        LINK_ADDRESS,
        &mac(bridge.subnets.first().map(|s| s.gateway)),
    );
    link.attribute(LINK_MTU, &mtu.to_ne_bytes());
    link.nest(LINK_INFO, |info| info.text(INFO_KIND, "bridge"));
    let made = unless_exists(netlink.request(link))?;
    let index = name_to_index(netlink.socket(), &bridge.name)?;
    for subnet in &bridge.subnets {
        add_address(netlink, index, subnet.gateway, subnet.prefix)?;
    }
    if made {
        up(netlink, index)?;
    }
    Ok(made)
}

/// Removes a bridge; one that is not there is no error.
pub(super) fn remove_bridge(netlink: &mut Netlink, name: &str) -> io::Result<()> {
    let index = match name_to_index(netlink.socket(), name) {
        Err(rustix::io::Errno::NODEV) => return Ok(()),
        index => index?,
    };
    netlink.request(Message::new(DELETE_LINK, 0, &link_fields(index, 0, 0)))
}

/// Makes a pair of interfaces: one a port of the bridge, the other in the network namespace of process `pid`. Both go with that.
pub(super) fn plug(
    netlink: &mut Netlink,
    attachment: &Attachment,
    mtu: u32,
    pid: i32,
) -> io::Result<()> {
    let bridge = name_to_index(netlink.socket(), &attachment.bridge.name)?;
    let none = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
    let pair = Pair {
        // The kernel finds the number.
        outside: "lsp%d",
        bridge: Some(bridge),
        mtu,
        address: attachment.addresses.first().copied().unwrap_or(none),
        pid,
    };
    pair.make(netlink)
}

/// Two interfaces that are one line: one here, the other in a sandbox.
pub(super) struct Pair<'p> {
    /// The name of the end that is here.
    pub(super) outside: &'p str,
    /// What that is a port of.
    pub(super) bridge: Option<u32>,
    pub(super) mtu: u32,
    /// That of the sandbox's end, which is not given to it here.
    pub(super) address: IpAddr,
    /// A process in the sandbox's namespace.
    pub(super) pid: i32,
}

impl Pair<'_> {
    /// Makes it; the end that is here is up.
    pub(super) fn make(&self, netlink: &mut Netlink) -> io::Result<()> {
        let mut link = Message::new(NEW_LINK, CREATE, &link_fields(0, UP, UP));
        link.text(LINK_NAME, self.outside);
        link.attribute(LINK_MTU, &self.mtu.to_ne_bytes());
        if let Some(bridge) = self.bridge {
            link.attribute(LINK_MASTER, &bridge.to_ne_bytes());
        }
        link.nest(LINK_INFO, |info| {
            info.text(INFO_KIND, "veth");
            info.nest(INFO_DATA, |data| {
                data.nest(VETH_PEER, |peer| {
                    peer.raw(&link_fields(0, 0, 0));
                    peer.text(LINK_NAME, INSIDE);
                    peer.attribute(LINK_MTU, &self.mtu.to_ne_bytes());
                    peer.attribute(LINK_ADDRESS, &mac(Some(self.address)));
                    peer.attribute(LINK_NAMESPACE_OF, &self.pid.to_ne_bytes());
                });
            });
        });
        netlink.request(link)
    }
}

/// Gives this namespace's end of the pair its addresses and the routes through the bridge.
pub(super) fn configure(netlink: &mut Netlink, attachment: &Attachment) -> io::Result<()> {
    let index = name_to_index(netlink.socket(), INSIDE)?;
    let subnets = attachment.bridge.subnets.iter();
    for (subnet, address) in subnets.clone().zip(&attachment.addresses) {
        add_address(netlink, index, *address, subnet.prefix)?;
    }
    up(netlink, index)?;
    if attachment.bridge.internal {
        return Ok(());
    }
    for subnet in subnets {
        lead_out(netlink, index, subnet.gateway)?;
    }
    Ok(())
}

/// Adds the route to everywhere. The gateway is taken to be there: until the line's other end is known to be up, which is found out in the
/// background, IPv6 has no route to it.
pub(super) fn lead_out(netlink: &mut Netlink, index: u32, gateway: IpAddr) -> io::Result<()> {
    let mut fields = [0; 12];
    fields[0] = family(gateway);
    fields[4] = TABLE_MAIN;
    fields[5] = PROTOCOL_BOOT;
    fields[7] = TYPE_UNICAST;
    fields[8..].copy_from_slice(&ON_LINK.to_ne_bytes());
    let mut route = Message::new(NEW_ROUTE, CREATE, &fields);
    route.attribute(ROUTE_GATEWAY, &octets(gateway));
    route.attribute(ROUTE_INTERFACE, &index.to_ne_bytes());
    netlink.request(route)
}

/// The largest packet that an interface takes, if there is such an interface.
pub(super) fn mtu(netlink: &mut Netlink, index: u32) -> io::Result<Option<u32>> {
    let mut found = None;
    netlink.dump(
        Message::new(GET_LINK, 0, &link_fields(0, 0, 0)),
        |kind, content| {
            let Some((fields, rest)) = content.split_at_checked(16) else {
                return;
            };
            if kind == NEW_LINK && fields[4..8] == index.to_ne_bytes() {
                let value = attributes(rest).find(|(kind, _)| *kind == LINK_MTU);
                let value = value.and_then(|(_, value)| value.try_into().ok());
                found = value.map(u32::from_ne_bytes);
            }
        },
    )?;
    Ok(found)
}

/// Whether changes are allowed here: asks for one of an interface that does not exist.
pub(super) fn may_change(netlink: &mut Netlink) -> io::Result<bool> {
    let nobody = Message::new(DELETE_LINK, 0, &link_fields(u32::MAX >> 1, 0, 0));
    match netlink.request(nobody) {
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(false),
        result => result.map(|()| true),
    }
}

/// A route of this namespace: where it leads to (`None`: everywhere), and through which interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) to: Option<Subnet>,
    pub(super) interface: Option<u32>,
    /// Whether it is one of IPv6.
    pub(super) is_v6: bool,
    /// Whether a router has told it.
    pub(super) is_advertised: bool,
}

/// The routes of the main and the local table: every address and every net that this machine knows.
pub(super) fn routes(netlink: &mut Netlink) -> io::Result<Vec<Route>> {
    let mut routes = Vec::new();
    for family in [libc::AF_INET, libc::AF_INET6] {
        let family = u8::try_from(family).expect("a small number");
        let mut fields = [0; 12];
        fields[0] = family;
        netlink.dump(Message::new(GET_ROUTE, 0, &fields), |kind, content| {
            if kind == NEW_ROUTE {
                routes.extend(route(content));
            }
        })?;
    }
    Ok(routes)
}

fn route(content: &[u8]) -> Option<Route> {
    let (fields, rest) = content.split_at_checked(12)?;
    let (prefix, table) = (fields[1], fields[4]);
    if table != TABLE_MAIN && table != TABLE_LOCAL {
        return None;
    }
    let mut found = Route {
        to: None,
        interface: None,
        is_v6: i32::from(fields[0]) == libc::AF_INET6,
        is_advertised: fields[5] == PROTOCOL_ADVERTISED,
    };
    for (kind, value) in attributes(rest) {
        match kind {
            ROUTE_TO => {
                let address = match value.len() {
                    4 => IpAddr::from(<[u8; 4]>::try_from(value).ok()?),
                    16 => IpAddr::from(<[u8; 16]>::try_from(value).ok()?),
                    _ => return None,
                };
                found.to = Some(Subnet {
                    gateway: address,
                    prefix,
                });
            }
            ROUTE_INTERFACE => found.interface = Some(u32::from_ne_bytes(value.try_into().ok()?)),
            _ => {}
        }
    }
    Some(found)
}

pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    prefix: u8,
) -> io::Result<()> {
    give(netlink, index, (address, prefix), address)
}

/// Gives an interface an address, and the route to the one at its other end.
pub(super) fn add_peer(
    netlink: &mut Netlink,
    index: u32,
    address: IpAddr,
    peer: IpAddr,
) -> io::Result<()> {
    let bits = if address.is_ipv4() { 32 } else { 128 };
    give(netlink, index, (address, bits), peer)
}

fn give(
    netlink: &mut Netlink,
    index: u32,
    (address, prefix): (IpAddr, u8),
    reaches: IpAddr,
) -> io::Result<()> {
    let mut fields = vec![family(address), prefix, 0, 0];
    fields.extend(index.to_ne_bytes());
    let mut message = Message::new(NEW_ADDRESS, CREATE, &fields);
    message.attribute(ADDRESS_LOCAL, &octets(address));
    message.attribute(ADDRESS, &octets(reaches));
    if address.is_ipv6() {
        message.attribute(ADDRESS_FLAGS, &NO_DETECTION.to_ne_bytes());
    }
    unless_exists(netlink.request(message)).map(|_| ())
}

/// Brings an interface up.
pub(super) fn up(netlink: &mut Netlink, index: u32) -> io::Result<()> {
    netlink.request(Message::new(NEW_LINK, 0, &link_fields(index, UP, UP)))
}

/// An interface's fixed fields.
fn link_fields(index: u32, flags: u32, mask: u32) -> Vec<u8> {
    [
        [0; 4],
        index.to_ne_bytes(),
        flags.to_ne_bytes(),
        mask.to_ne_bytes(),
    ]
    .concat()
}

fn family(address: IpAddr) -> u8 {
    let family = match address {
        IpAddr::V4(_) => libc::AF_INET,
        IpAddr::V6(_) => libc::AF_INET6,
    };
    u8::try_from(family).expect("a small number")
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// A hardware address of our own making, the same for the same address: neighbours need not learn a new one.
fn mac(address: Option<IpAddr>) -> [u8; 6] {
    let octets = octets(address.unwrap_or(Ipv4Addr::UNSPECIFIED.into()));
    let last = &octets[octets.len() - 4..];
    [0x02, 0x4c, last[0], last[1], last[2], last[3]]
}

/// Whether something was made; that it is there already is no error.
fn unless_exists(result: io::Result<()>) -> io::Result<bool> {
    match result {
        Ok(()) => Ok(true),
        Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
        Err(error) => Err(error),
    }
}
