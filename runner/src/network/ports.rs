//! Ports of the host that lead into a sandbox: which, and the sockets that take them.
//!
//! A published port is a socket of the host's that is bound here, and so taken in the kernel's own books: whoever else
//! wants it is told, and it is free again when its process is gone, whatever ended that.
//! `proxy` carries what arrives there.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};
use serde::{Deserialize, Serialize};

use crate::error::StartError;

/// How many connections may wait to be accepted: the kernel's own bound is usually 4,096.
const BACKLOG: i32 = 4096;
/// How often the kernel is asked for another port, where one that is free in one family is not in the other.
const TRIES_MAX: usize = 64;

/// What is carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// Connections.
    Tcp,
    /// Datagrams.
    Udp,
}

impl Protocol {
    /// Its name in lower case.
    pub fn word(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        }
    }
}

/// A port of a sandbox that is to be reached from outside.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publish {
    /// The port inside.
    pub port: u16,
    /// What is carried.
    pub protocol: Protocol,
    /// The host's address; all of them if `None`.
    pub host: Option<IpAddr>,
    /// The host's ports, first and last, of which the first that is free is taken; the kernel chooses if `None`.
    pub host_ports: Option<(u16, u16)>,
}

/// A port of the host that leads into a sandbox. There is one for each family of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Published {
    /// The port inside.
    pub port: u16,
    /// What is carried.
    pub protocol: Protocol,
    /// The host's address and port.
    pub host: SocketAddr,
}

impl fmt::Display for Published {
    /// As docker: `0.0.0.0:8080->80/tcp`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}->{}/{}", self.host, self.port, self.protocol.word())
    }
}

/// A published port with the socket that takes it.
#[derive(Debug)]
pub(crate) struct Door {
    pub(crate) published: Published,
    pub(crate) socket: OwnedFd,
}

/// Takes the ports. Those that are named come first, lest the kernel chooses one of them for another.
///
/// # Errors
/// [`StartError::Port`] for the first that cannot be had.
pub(crate) fn bind(wishes: &[Publish]) -> Result<Vec<Door>, StartError> {
    let mut doors = Vec::new();
    let (named, chosen): (Vec<&Publish>, Vec<&Publish>) =
        wishes.iter().partition(|wish| wish.host_ports.is_some());
    for wish in named.into_iter().chain(chosen) {
        doors.extend(bind_one(wish)?);
    }
    doors.sort_by_key(|door: &Door| (door.published.port, door.published));
    Ok(doors)
}

fn bind_one(wish: &Publish) -> Result<Vec<Door>, StartError> {
    let mut refused = None;
    match wish.host_ports {
        Some((first, last)) => {
            for port in first..=last {
                match bind_at(wish, port) {
                    Err((address, Errno::ADDRINUSE)) => {
                        refused = Some((address, Errno::ADDRINUSE));
                    }
                    bound => return bound.map_err(|refused| error(wish, refused)),
                }
            }
        }
        None => {
            for _ in 0..TRIES_MAX {
                match bind_at(wish, 0) {
                    Err((address, Errno::ADDRINUSE)) => {
                        refused = Some((address, Errno::ADDRINUSE));
                    }
                    bound => return bound.map_err(|refused| error(wish, refused)),
                }
            }
        }
    }
    let nothing = (SocketAddr::from(([0, 0, 0, 0], 0)), Errno::ADDRINUSE);
    Err(error(wish, refused.unwrap_or(nothing)))
}

fn error(wish: &Publish, (address, errno): (SocketAddr, Errno)) -> StartError {
    StartError::Port {
        address: address.to_string(),
        family: match address {
            SocketAddr::V4(_) => format!("{}4", wish.protocol.word()),
            SocketAddr::V6(_) => format!("{}6", wish.protocol.word()),
        },
        errno: errno.into(),
    }
}

/// Takes one port: at one address, or in all families that this machine has.
fn bind_at(wish: &Publish, port: u16) -> Result<Vec<Door>, (SocketAddr, Errno)> {
    let door = |address: SocketAddr| -> Result<Door, (SocketAddr, Errno)> {
        let refused = |errno| (address, errno);
        let socket = open(address, wish.protocol).map_err(refused)?;
        let bound = rustix::net::getsockname(&socket).map_err(refused)?;
        let host = SocketAddr::try_from(bound).map_err(|_| refused(Errno::AFNOSUPPORT))?;
        Ok(Door {
            published: Published {
                port: wish.port,
                protocol: wish.protocol,
                host,
            },
            socket,
        })
    };
    if let Some(host) = wish.host {
        return Ok(vec![door(SocketAddr::new(host, port))?]);
    }
    let first = door(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port))?;
    let port = first.published.host.port();
    match door(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)) {
        Ok(second) => Ok(vec![first, second]),
        // A machine without IPv6.
        Err((_, Errno::AFNOSUPPORT | Errno::ADDRNOTAVAIL)) => Ok(vec![first]),
        Err(refused) => Err(refused),
    }
}

fn open(address: SocketAddr, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let socket = socket(address, protocol)?;
    if address.is_ipv6() {
        // Each family has a socket of its own.
        sockopt::set_ipv6_v6only(&socket, true)?;
    }
    if protocol == Protocol::Tcp {
        // A port whose last connections are still fading away is free.
        sockopt::set_socket_reuseaddr(&socket, true)?;
    }
    rustix::net::bind(&socket, &address)?;
    if protocol == Protocol::Tcp {
        rustix::net::listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// A socket of the address's family, in the network namespace of this thread.
pub(super) fn socket(address: SocketAddr, protocol: Protocol) -> Result<OwnedFd, Errno> {
    let family = match address {
        SocketAddr::V4(_) => AddressFamily::INET,
        SocketAddr::V6(_) => AddressFamily::INET6,
    };
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(family, kind, flags, None)?;
    if protocol == Protocol::Tcp {
        settle(socket.as_fd())?;
    }
    Ok(socket)
}

/// What both halves of a connection have: nothing waits for more, and who is gone without a word is noticed.
pub(super) fn settle(socket: std::os::fd::BorrowedFd<'_>) -> Result<(), Errno> {
    sockopt::set_tcp_nodelay(socket, true)?;
    sockopt::set_socket_keepalive(socket, true)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An address of loopback that no other process of this machine thinks of.
    fn own_address() -> IpAddr {
        let [.., high, low] = std::process::id().to_be_bytes();
        IpAddr::V4(Ipv4Addr::new(127, 66, high, low))
    }

    fn wish(host: Option<IpAddr>, host_ports: Option<(u16, u16)>) -> Publish {
        Publish {
            port: 80,
            protocol: Protocol::Tcp,
            host,
            host_ports,
        }
    }

    #[test]
    fn a_port_is_taken_while_its_socket_lives() {
        let host = own_address();
        let doors = bind(&[wish(Some(host), None)]).unwrap();
        let [door] = &doors[..] else {
            panic!("{doors:?}");
        };
        let port = door.published.host.port();
        assert_eq!(door.published.to_string(), format!("{host}:{port}->80/tcp"));
        let again = [wish(Some(host), Some((port, port)))];
        let error = bind(&again).unwrap_err().to_string();
        let expected = format!("listen tcp4 {host}:{port}: bind: address already in use");
        assert_eq!(error, expected);
        // Of a range the first that is free is taken.
        let next = bind(&[wish(Some(host), Some((port, u16::MAX)))]).unwrap();
        assert!(next[0].published.host.port() > port, "{next:?}");
        drop(doors);
        assert_eq!(bind(&again).unwrap().len(), 1);
    }

    #[test]
    fn all_addresses_are_one_of_each_family_with_the_same_port() {
        let doors = bind(&[wish(None, None)]).unwrap();
        let ports: Vec<u16> = doors
            .iter()
            .map(|door| door.published.host.port())
            .collect();
        assert!(ports.iter().all(|port| *port == ports[0] && *port != 0));
        assert!(doors[0].published.host.is_ipv4());
    }
}
