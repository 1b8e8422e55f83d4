//! Lines: a pair of interfaces for each sandbox, with the host itself at the other end and a way out through it.
//!
//! ```text
//!  sandbox: eth0 10.207.3.9 ══ lsl-0309 ─┐
//!  sandbox: eth0 10.207.7.1 ══ lsl-0701 ─┴─ 10.207.0.1, filter, masquerade ── the host's interfaces
//! ```
//!
//! Who is on a line reaches the world and the host, and nobody reaches it. There is no bridge and no book of addresses: an
//! interface's name says which address is taken, and the kernel gives a name once. Interfaces go with the
//! sandbox, the filter with the [`Outlet`] or its process, so a `kill -9` leaves nothing.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::net::netdevice::{index_to_name, name_to_index};
use serde::{Deserialize, Serialize};

use super::link::{self, Pair};
use super::netlink::Netlink;
use super::{NAME_MAX, Subnet, filter, forward};

/// What the names of the host's ends begin with; four hexadecimal digits follow, the last half of the address.
pub const PREFIX: &str = "lsl-";

/// Addresses of a line are numbers below this, added to the first of the subnet.
const NUMBERS: u32 = 0x1_0000;
/// Zero is the subnet's own name, one its gateway; the last is left out, being a broadcast's.
const FIRST_NUMBER: u32 = 2;
/// The interface on which routes that refuse lie.
const LOOPBACK: u32 = 1;
/// How many numbers are tried before a machine is taken to be full: there are never nearly as many sandboxes.
const TRIES_MAX: u32 = 4096;

/// A sandbox's way out through the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Where its addresses are from, one for each of these; the gateway's is that of the host's end.
    pub subnets: Vec<Subnet>,
    /// The largest packet, in bytes.
    pub mtu: u32,
    /// Who is asked, from the host's namespace, for what the sandbox asks at [`super::names::ADDRESS`]; nobody listens there if
    /// there are none.
    pub servers: Vec<IpAddr>,
}

/// What lines lead through: it lasts as long as this value, and no longer than this process.
#[derive(Debug)]
pub struct Outlet {
    line: Line,
    /// The kernel removes the filter when it is closed.
    _filter: Netlink,
}

impl Outlet {
    /// Makes ready for lines, with addresses that this machine does not know and that are not `taken`.
    ///
    /// # Errors
    /// This process may not change the host's network, has no packet filter, or a filter drops what would pass.
    pub fn open(taken: &[Subnet]) -> io::Result<Outlet> {
        let outlet = Self::try_here(taken)?;
        forward(&mut Netlink::route()?, &outlet.line.subnets)?;
        Ok(outlet)
    }

    /// As [`Outlet::open`], but changes nothing that would stay: for reports.
    ///
    /// # Errors
    /// As there.
    pub fn try_here(taken: &[Subnet]) -> io::Result<Outlet> {
        let mut netlink = Netlink::route()?;
        if !super::may_change(&mut netlink) {
            let message = "this process may not make network interfaces";
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, message));
        }
        let routes = link::routes(&mut netlink)?;
        let known: Vec<Subnet> = routes
            .iter()
            .filter(|route| !is_of_a_line(&netlink, route.interface))
            .filter_map(|route| route.to)
            .chain(taken.iter().copied())
            .collect();
        let is_free = |subnet: &Subnet| !known.iter().any(|other| other.overlaps(subnet));
        let ways_out = || routes.iter().filter(|route| route.to.is_none());
        let full = || io::Error::other("no subnet is left for network namespaces");
        let mut subnets = vec![candidates_v4().find(is_free).ok_or_else(full)?];
        if let Some(chain) = filter::dropping(libc::NFPROTO_IPV4)? {
            return Err(io::Error::other(format!(
                "the firewall drops what is passed on (chain `{chain}`)"
            )));
        }
        let is_out = |route: &link::Route| route.is_v6 && route.interface != Some(LOOPBACK);
        if ways_out().any(is_out) && filter::dropping(libc::NFPROTO_IPV6)?.is_none() {
            subnets.extend(candidates_v6().find(is_free));
        }
        let way_out = ways_out().find_map(|route| route.interface);
        let mtu = match way_out {
            Some(index) => link::mtu(&mut netlink, index)?,
            None => None,
        };
        let filter = filter::hold(&subnets)?;
        Ok(Outlet {
            line: Line {
                subnets,
                mtu: mtu.unwrap_or(super::MTU),
                servers: Vec::new(),
            },
            _filter: filter,
        })
    }

    /// What sandboxes are given.
    pub fn line(&self) -> &Line {
        &self.line
    }
}

impl Line {
    /// What is wrong with it, if anything is.
    pub(crate) fn check(&self) -> Result<(), String> {
        let has_room = |subnet: &Subnet| match subnet.gateway {
            IpAddr::V4(_) => (8..=16).contains(&subnet.prefix),
            IpAddr::V6(_) => (8..=112).contains(&subnet.prefix),
        };
        match self.subnets.is_empty() || !self.subnets.iter().all(has_room) {
            true => Err("a line without a subnet, or with one that is too small".to_owned()),
            false => Ok(()),
        }
    }

    /// The addresses that belong to a number.
    fn addresses(&self, number: u32) -> Vec<IpAddr> {
        let of = |subnet: &Subnet| match subnet.gateway {
            IpAddr::V4(gateway) => {
                let network = gateway.to_bits() & !(NUMBERS - 1);
                IpAddr::V4((network | number).into())
            }
            IpAddr::V6(gateway) => {
                let network = gateway.to_bits() & !u128::from(NUMBERS - 1);
                IpAddr::V6((network | u128::from(number)).into())
            }
        };
        self.subnets.iter().map(of).collect()
    }
}

/// The helper's part: a pair that leads into the namespace of process `pid`. Returns the addresses that the sandbox has.
pub(crate) fn plug(line: &Line, pid: i32) -> io::Result<Vec<IpAddr>> {
    let mut netlink = Netlink::route()?;
    let (number, name) = pair(&mut netlink, line, pid)?;
    let addresses = line.addresses(number);
    let index = name_to_index(netlink.socket(), &name)?;
    for (subnet, address) in line.subnets.iter().zip(&addresses) {
        link::add_peer(&mut netlink, index, subnet.gateway, *address)?;
    }
    Ok(addresses)
}

/// Makes the pair under the first name that nobody has.
fn pair(netlink: &mut Netlink, line: &Line, pid: i32) -> io::Result<(u32, String)> {
    // Helpers that run at the same time begin at places far from one another; and one helper goes on where it was, for interfaces go
    // some time after their sandbox.
    static TRIED: AtomicU32 = AtomicU32::new(0);
    let start = std::process::id().wrapping_mul(40_503);
    for _ in 0..TRIES_MAX {
        let offset = TRIED.fetch_add(1, Ordering::Relaxed);
        let span = NUMBERS - 1 - FIRST_NUMBER;
        let number = FIRST_NUMBER + start.wrapping_add(offset) % span;
        let name = format!("{PREFIX}{number:04x}");
        debug_assert!(name.len() <= NAME_MAX);
        let pair = Pair {
            outside: &name,
            bridge: None,
            mtu: line.mtu,
            address: line.addresses(number)[0],
            pid,
        };
        match pair.make(netlink) {
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => {}
            made => return made.map(|()| (number, name)),
        }
    }
    Err(io::Error::other("no address is left"))
}

/// Init's part: addresses and routes.
pub(crate) fn configure(line: &Line, addresses: &[IpAddr]) -> io::Result<()> {
    let mut netlink = Netlink::route()?;
    let index = name_to_index(netlink.socket(), link::INSIDE)?;
    link::up(&mut netlink, index)?;
    for (subnet, address) in line.subnets.iter().zip(addresses) {
        link::add_peer(&mut netlink, index, *address, subnet.gateway)?;
        link::lead_out(&mut netlink, index, subnet.gateway)?;
    }
    Ok(())
}

/// Whether an interface is an end of a line, or was until a moment ago.
fn is_of_a_line(netlink: &Netlink, interface: Option<u32>) -> bool {
    let Some(index) = interface else {
        return false;
    };
    match index_to_name(netlink.socket(), index) {
        Ok(name) => name.starts_with(PREFIX),
        Err(errno) => errno == rustix::io::Errno::NODEV,
    }
}

/// Below those of networks.
fn candidates_v4() -> impl Iterator<Item = Subnet> {
    (192..208).rev().map(|second| Subnet {
        gateway: IpAddr::from([10, second, 0, 1]),
        prefix: 16,
    })
}

/// Local addresses (RFC 4193), above those of networks.
fn candidates_v6() -> impl Iterator<Item = Subnet> {
    (0..=u16::MAX).rev().map(|number| Subnet {
        gateway: IpAddr::from([0xfd6c, 0x6f6e, 0x6774, number, 0, 0, 0, 1]),
        prefix: 64,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_addresses() {
        let line = Line {
            subnets: [candidates_v4().next(), candidates_v6().next()]
                .into_iter()
                .flatten()
                .collect(),
            mtu: 1500,
            servers: Vec::new(),
        };
        assert_eq!(line.check(), Ok(()));
        let check = |number, v4: &str, v6: &str| {
            let found: Vec<String> = line
                .addresses(number)
                .iter()
                .map(ToString::to_string)
                .collect();
            assert_eq!(found, [v4, v6]);
        };
        check(2, "10.207.0.2", "fd6c:6f6e:6774:ffff::2");
        check(0xabcd, "10.207.171.205", "fd6c:6f6e:6774:ffff::abcd");
        for subnet in ["10.0.0.1/24", "fd00::1/120"] {
            let (gateway, prefix) = subnet.split_once('/').unwrap();
            let subnet = Subnet {
                gateway: gateway.parse().unwrap(),
                prefix: prefix.parse().unwrap(),
            };
            let small = Line {
                subnets: vec![subnet],
                ..line.clone()
            };
            assert!(small.check().is_err(), "{subnet:?}");
        }
    }
}
