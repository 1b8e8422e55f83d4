//! Requests to the kernel over netlink sockets: a header, fields, attributes that may hold attributes.
//!
//! Every request is acknowledged before the next one is sent, so an error belongs to what was asked.
//! Integers are the machine's, but for netfilter's attributes, which are big-endian.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::netlink::{NETFILTER, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with,
    sockopt,
};

/// Whether a message asks for something.
const REQUEST: u16 = 1;
/// Whether it is to be acknowledged.
const ACKNOWLEDGE: u16 = 4;
/// Whether everything there is of a kind is asked for.
const DUMP: u16 = 0x300;
/// Make it; an error if it exists.
pub(super) const CREATE: u16 = 0x400 | 0x200;

/// Types that the protocol itself uses.
const ERROR: u16 = 2;
const DONE: u16 = 3;

const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
/// The kernel's answers come in pieces of at most 32 KiB.
const ANSWER_BYTES_MAX: usize = 64 << 10;

/// A message on its way to the kernel.
#[derive(Clone, Debug)]
pub(super) struct Message {
    bytes: Vec<u8>,
}

impl Message {
    /// A message of type `kind` with its fixed fields.
    pub(super) fn new(kind: u16, flags: u16, fields: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | REQUEST).to_ne_bytes());
        let mut message = Self { bytes };
        message.raw(fields);
        message
    }

    /// Adds bytes, padded to a multiple of four.
    pub(super) fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }

    /// Adds an attribute.
    pub(super) fn attribute(&mut self, kind: u16, value: &[u8]) {
        let length = u16::try_from(4 + value.len()).expect("attributes of ours are short");
        self.bytes.extend_from_slice(&length.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.raw(value);
    }

    /// Adds a text with its terminator.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.attribute(kind, &[text.as_bytes(), b"\0"].concat());
    }

    /// Adds an attribute of which `fill` adds the content.
    pub(super) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) {
        let start = self.bytes.len();
        self.attribute(kind | NESTED, &[]);
        fill(self);
        let length = u16::try_from(self.bytes.len() - start).expect("messages of ours are short");
        self.bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    }

    fn finish(&mut self, sequence: u32, flags: u16) -> &[u8] {
        let length = u32::try_from(self.bytes.len()).expect("messages of ours are short");
        self.bytes[..4].copy_from_slice(&length.to_ne_bytes());
        let flags = u16::from_ne_bytes([self.bytes[6], self.bytes[7]]) | flags;
        self.bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        self.bytes[8..12].copy_from_slice(&sequence.to_ne_bytes());
        &self.bytes
    }
}

/// A connection to one of the kernel's families.
#[derive(Debug)]
pub(super) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
}

impl Netlink {
    /// Interfaces, addresses, routes.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(None)
    }

    /// Packet filters.
    pub(super) fn netfilter() -> io::Result<Self> {
        Self::open(Some(NETFILTER))
    }

    fn open(protocol: Option<rustix::net::Protocol>) -> io::Result<Self> {
        let socket = socket_with(
            AddressFamily::NETLINK,
            SocketType::RAW,
            SocketFlags::CLOEXEC,
            protocol,
        )?;
        // The kernel answers before the request's send returns; a limit all the same, for whoever waits.
        let limit = Some(std::time::Duration::from_secs(10));
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, limit)?;
        connect(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// The socket, for calls that want any.
    pub(super) fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Sends a request and waits for its acknowledgement.
    pub(super) fn request(&mut self, mut message: Message) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence, ACKNOWLEDGE).to_vec();
        self.send(&bytes)?;
        self.answers(self.sequence, |_, _| ())
    }

    /// Sends messages that take effect together or not at all, between the two that begin and end a batch.
    pub(super) fn batch(
        &mut self,
        mut begin: Message,
        messages: Vec<Message>,
        mut end: Message,
    ) -> io::Result<()> {
        let first = self.sequence + 1;
        // Only a refusal of the whole batch is said of what begins it, which has no answer otherwise.
        let mut bytes = begin.finish(first, 0).to_vec();
        for mut message in messages {
            self.sequence += 1;
            bytes.extend_from_slice(message.finish(self.sequence, ACKNOWLEDGE));
        }
        let last = self.sequence;
        self.sequence += 1;
        bytes.extend_from_slice(end.finish(self.sequence, 0));
        self.send(&bytes)?;
        // Of a batch that failed every message may be answered; the first error is what was wrong.
        let mut result = Ok(());
        for sequence in first..=last {
            result = result.and(self.answers(sequence, |_, _| ()));
            if result.is_err() {
                break;
            }
        }
        result
    }

    /// Asks for everything of a kind; `each` gets the type and the content of what comes.
    pub(super) fn dump(
        &mut self,
        mut message: Message,
        each: impl FnMut(u16, &[u8]),
    ) -> io::Result<()> {
        self.sequence += 1;
        let bytes = message.finish(self.sequence, DUMP).to_vec();
        self.send(&bytes)?;
        self.answers(self.sequence, each)
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = send(&self.socket, bytes, SendFlags::empty())?;
        if sent == bytes.len() {
            Ok(())
        } else {
            Err(io::ErrorKind::WriteZero.into())
        }
    }

    /// Reads until the acknowledgement of `sequence`, or the end of what it asked for.
    fn answers(&self, sequence: u32, mut each: impl FnMut(u16, &[u8])) -> io::Result<()> {
        let mut buffer = vec![0; ANSWER_BYTES_MAX];
        loop {
            let (length, whole) = match recv(&self.socket, &mut buffer, RecvFlags::TRUNC) {
                Err(rustix::io::Errno::INTR) => continue,
                received => received?,
            };
            if whole > length {
                return Err(malformed());
            }
            let mut rest = &buffer[..length];
            while !rest.is_empty() {
                let (header, content, next) = split(rest)?;
                rest = next;
                if header.sequence != sequence {
                    continue;
                }
                match header.kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = content.get(..4).ok_or_else(malformed)?;
                        let code = i32::from_ne_bytes(code.try_into().map_err(|_| malformed())?);
                        return match code.checked_neg() {
                            Some(0) => Ok(()),
                            Some(errno) => Err(io::Error::from_raw_os_error(errno)),
                            None => Err(malformed()),
                        };
                    }
                    kind => each(kind, content),
                }
            }
        }
    }
}

struct Header {
    kind: u16,
    sequence: u32,
}

/// The first message of `bytes`, and what follows it.
fn split(bytes: &[u8]) -> io::Result<(Header, &[u8], &[u8])> {
    let header = bytes.get(..HEADER).ok_or_else(malformed)?;
    let number = |at: usize| {
        let four = [header[at], header[at + 1], header[at + 2], header[at + 3]];
        u32::from_ne_bytes(four)
    };
    let length = usize::try_from(number(0)).map_err(|_| malformed())?;
    let content = bytes.get(HEADER..length).ok_or_else(malformed)?;
    let next = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    let kind = u16::from_ne_bytes([header[4], header[5]]);
    let sequence = number(8);
    Ok((Header { kind, sequence }, content, next))
}

/// The attributes that `bytes` consist of, as pairs of type and value, until one that is malformed.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & !NESTED;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

fn malformed() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "malformed answer of netlink")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_padded_and_nested() {
        let mut message = Message::new(16, CREATE, &[1, 2, 3]);
        message.text(3, "ab");
        message.nest(18, |inner| inner.attribute(1, b"veth"));
        let bytes = message.finish(7, ACKNOWLEDGE);
        let mut expect = Vec::new();
        expect.extend(40_u32.to_ne_bytes());
        expect.extend(16_u16.to_ne_bytes());
        expect.extend((CREATE | REQUEST | ACKNOWLEDGE).to_ne_bytes());
        expect.extend(7_u32.to_ne_bytes());
        expect.extend(0_u32.to_ne_bytes());
        expect.extend([1, 2, 3, 0]);
        expect.extend(7_u16.to_ne_bytes());
        expect.extend(3_u16.to_ne_bytes());
        expect.extend(b"ab\0\0");
        expect.extend(12_u16.to_ne_bytes());
        expect.extend((18 | NESTED).to_ne_bytes());
        expect.extend(8_u16.to_ne_bytes());
        expect.extend(1_u16.to_ne_bytes());
        expect.extend(b"veth");
        assert_eq!(bytes, expect);
        let (header, content, next) = split(bytes).unwrap();
        assert_eq!((header.kind, header.sequence, next.len()), (16, 7, 0));
        let found: Vec<(u16, &[u8])> = attributes(&content[4..]).collect();
        assert_eq!(found[0], (3, b"ab\0".as_slice()));
        let inner: Vec<(u16, &[u8])> = attributes(found[1].1).collect();
        assert_eq!(inner, [(1, b"veth".as_slice())]);
    }

    #[test]
    fn broken_answers_are_refused() {
        for bytes in [
            &[0_u8; 3][..],
            &[0; 16],
            &[255; 20],
            &17_u32.to_ne_bytes()[..],
        ] {
            assert!(split(bytes).is_err(), "{bytes:?}");
        }
        for bytes in [&[0_u8; 4][..], &[3, 0, 1, 0], &[200, 0, 1, 0, 1], &[8, 0]] {
            assert_eq!(attributes(bytes).count(), 0, "{bytes:?}");
        }
    }

    #[test]
    fn the_kernel_answers() {
        let mut netlink = Netlink::route().unwrap();
        let mut names = Vec::new();
        netlink
            .dump(Message::new(18, 0, &[0; 16]), |kind, content| {
                assert_eq!(kind, 16);
                let found = attributes(&content[16..]).find(|(kind, _)| *kind == 3);
                names.push(found.unwrap().1.to_vec());
            })
            .unwrap();
        assert!(names.contains(&b"lo\0".to_vec()));
        let missing = Message::new(
            17,
            0,
            &[[0; 4], 0x7fff_fff0_u32.to_ne_bytes(), [0; 4], [0; 4]].concat(),
        );
        let error = netlink.request(missing).unwrap_err();
        assert!(matches!(
            error.raw_os_error(),
            Some(libc::ENODEV | libc::EPERM)
        ));
    }
}
