//! A way out for those who may not make interfaces on the host: `slirp4netns`, a program that takes what a sandbox sends
//! from a tap interface and sends it on from sockets of its own.
//!
//! It belongs to the sandbox's helper, and ends with it: it watches a pipe whose other end the helper has.

use std::fs::File;
use std::io::{self, Read, Seek};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::MemfdFlags;
use rustix::io::FdFlags;
use rustix::net::netdevice::name_to_index;
use serde::{Deserialize, Serialize};

use super::link;
use super::netlink::Netlink;

/// The sandbox's address, in all of them: nobody else sees it.
pub const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 100));
/// What stands for the host.
pub const GATEWAY: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 2));
/// Asks the host's name servers, also those on its loopback.
pub const NAME_SERVER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 0, 2, 3));

/// The program's name.
pub const PROGRAM: &str = "slirp4netns";

/// What the program makes its interface with.
const TUN: &str = "/dev/net/tun";

/// How much of what the program says is told.
const SAID_BYTES_MAX: u64 = 1024;

/// A network namespace that only this sandbox is in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Relay {
    /// The program that leads out of it; nothing does if `None`, though ports of the host may lead in.
    pub program: Option<PathBuf>,
}

impl Relay {
    /// One by `program`, if it can work here.
    ///
    /// # Errors
    /// Why it cannot, as part of a sentence.
    pub fn found(program: Option<&Path>) -> Result<Relay, String> {
        let Some(program) = program else {
            return Err(format!("`{PROGRAM}` is not installed"));
        };
        let opened = File::options().read(true).write(true).open(TUN);
        opened.map_err(|error| format!("`{PROGRAM}` needs `{TUN}`: {error}"))?;
        Ok(Relay {
            program: Some(program.to_owned()),
        })
    }
}

/// Leads out as long as it lives.
#[derive(Debug)]
pub(crate) struct Running {
    _end: io::PipeWriter,
}

/// The helper's part: a tap interface in the namespace of process `pid`, with its address, and somebody at its other end.
pub(crate) fn start(relay: &Relay, pid: i32) -> io::Result<Option<Running>> {
    let Some(program) = &relay.program else {
        return Ok(None);
    };
    let (ended, end) = io::pipe()?;
    let (mut ready, tell) = io::pipe()?;
    let said = rustix::fs::memfd_create("longshore-relay", MemfdFlags::CLOEXEC)?;
    let mut said = File::from(said);
    // This process has one thread and starts one program: nobody else inherits it.
    rustix::io::fcntl_setfd(&tell, FdFlags::empty())?;
    let number = std::os::fd::AsRawFd::as_raw_fd(&tell);
    let spawned = Command::new(program)
        .args(["--configure", "--mtu=65520", "--disable-host-loopback"])
        .arg("--exit-fd=0")
        .arg(format!("--ready-fd={number}"))
        .arg(pid.to_string())
        .arg("tap0")
        .env_clear()
        .stdin(ended)
        .stdout(Stdio::null())
        .stderr(said.try_clone()?)
        .spawn();
    drop(tell);
    let mut child = spawned?;
    // One byte when it is ready, or an end.
    if ready.read(&mut [0])? == 1 {
        return Ok(Some(Running { _end: end }));
    }
    let status = child.wait()?;
    let mut text = Vec::new();
    said.rewind()?;
    said.take(SAID_BYTES_MAX).read_to_end(&mut text)?;
    let text = String::from_utf8_lossy(&text);
    let text = text.trim().replace('\n', ", ");
    Err(io::Error::other(format!(
        "{}: {status}: {text}",
        program.display()
    )))
}

/// Init's part, where no program makes an interface: the address is there nevertheless.
pub(crate) fn configure(relay: &Relay) -> io::Result<()> {
    if relay.program.is_some() {
        return Ok(());
    }
    let mut netlink = Netlink::route()?;
    let loopback = name_to_index(netlink.socket(), "lo")?;
    link::add_address(&mut netlink, loopback, ADDRESS, 32)
}
