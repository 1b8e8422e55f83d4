//! Messages between the caller, the helper and init: JSON and descriptors over a sequenced-packet
//! socket, one message a packet.
//!
//! ```text
//!  caller ──spec, standard streams──► helper ──(inherited)──► init
//!  caller ◄──Started│Failed, Exited── helper ◄──Stub, Terminal, Failed, end of file── init
//! ```

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags,
    SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};
use serde::{Deserialize, Serialize};

use crate::error::StartError;
use crate::spec::{ExitStatus, Usage};
use crate::stubs::Stub;

/// One message; paths and error texts are far smaller.
const MESSAGE_BYTES_MAX: usize = 64 << 10;
/// Spec, three streams and the sandboxes to join or share with, four at most; a process, a terminal and a name server's two sockets; or a container's
/// folder, its lock, three streams and two locks.
const DESCRIPTORS_MAX: usize = 8;

/// What the helper tells the caller.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    /// The process runs. Carries its pidfd and, if asked for, its terminal's master, and the sockets of its name server.
    Started {
        /// What was not possible and is not essential.
        notes: Vec<String>,
        /// Whether the last two descriptors are those of the sandbox's name server.
        names: bool,
    },
    /// It does not, and nothing is left of the sandbox.
    Failed(StartError),
    /// It ended, and nothing is left of the sandbox.
    Exited(ExitStatus, Usage),
}

/// What init tells the helper before it becomes the process.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Progress {
    /// A mount point is about to be made in the root.
    Stub(Stub),
    /// The terminal's master is attached.
    Terminal,
    /// The sockets of its name server are attached.
    Names,
    /// Something non-essential was not possible.
    Note(String),
    /// It will not become the process.
    Failed(StartError),
}

/// A connected pair, closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC,
        None,
    )?)
}

/// Sends `message` with `fds`.
pub(crate) fn send<T: Serialize>(
    socket: impl AsFd,
    message: &T,
    fds: &[BorrowedFd<'_>],
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    rustix::net::sendmsg(
        socket,
        &[IoSlice::new(&bytes)],
        &mut control,
        SendFlags::NOSIGNAL,
    )?;
    Ok(())
}

/// Waits for the next message, and tells its length; `None` at the end.
fn next_length(socket: impl AsFd) -> io::Result<Option<usize>> {
    let look = RecvFlags::PEEK | RecvFlags::TRUNC;
    loop {
        match rustix::net::recv(&socket, &mut [0_u8; 0][..], look) {
            Ok((_, 0)) => return Ok(None),
            Ok((_, length)) if length <= MESSAGE_BYTES_MAX => return Ok(Some(length)),
            Ok(_) => {
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    "message too long",
                ));
            }
            // The other end is gone with something of ours unread, and told once; what it said before is still here.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// The next message with its descriptors (closed on exec); `None` at the end.
pub(crate) fn receive<T: for<'de> Deserialize<'de>>(
    socket: impl AsFd,
) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    // As long as the message, which is far shorter than the longest: memory that is not touched costs nothing.
    let Some(length) = next_length(&socket)? else {
        return Ok(None);
    };
    let mut bytes = vec![0; length];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(&socket, &mut parts, &mut control, RecvFlags::CMSG_CLOEXEC) {
            // As in `next_length`.
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNRESET) => {}
            result => break result?,
        }
    };
    if received.flags.contains(ReturnFlags::TRUNC) {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "message too long",
        ));
    }
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    Ok(Some((
        serde_json::from_slice(&bytes[..received.bytes])?,
        fds,
    )))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_said_before_the_end_is_heard() {
        for unread in [false, true] {
            let (near, far) = pair().unwrap();
            if unread {
                send(&near, &"nobody hears this", &[]).unwrap();
            }
            send(&far, &7, &[]).unwrap();
            drop(far);
            let (said, fds) = receive::<i32>(&near).unwrap().unwrap();
            assert_eq!((said, fds.len()), (7, 0));
            assert!(receive::<i32>(&near).unwrap().is_none());
            let error = send(&near, &8, &[]).unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        }
    }
}
