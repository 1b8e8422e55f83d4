//! The name server of a sandbox: names of others on its network from a look-up, everything else from the host's own servers.
//!
//! Init binds the sockets in the sandbox's network namespace, at [`ADDRESS`]; the caller answers on them, from the host's. So what the
//! host can resolve the sandbox can, also where the host's server listens on loopback only. One question a message,
//! as every resolver sends it (RFC 1035, section 4; RFC 9619). What is forwarded is forwarded as it came.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Where the server is, inside: docker's address for it.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// The largest message over UDP that anybody sends, by far.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Questions that wait for the host's servers at the same time; the oldest gives way.
const WAITING_MAX: usize = 256;
/// Conversations over TCP at the same time.
const STREAMS_MAX: usize = 8;
/// How long a server of the host's may take before the next one is asked.
const PATIENCE: Duration = Duration::from_secs(3);
/// How long an answer may be remembered, in seconds: containers come and go.
const REMEMBER: u32 = 5;

const KIND_A: u16 = 1;
const KIND_AAAA: u16 = 28;
const CLASS_INTERNET: u16 = 1;
const HEADER: usize = 12;
/// A name has at most 255 bytes (RFC 1035, section 2.3.4).
const NAME_BYTES_MAX: usize = 255;
const SERVER_FAILURE: u8 = 2;

/// The sockets of a sandbox's name server, bound in its network namespace.
#[derive(Debug)]
pub struct NameSockets {
    /// For questions in one packet.
    pub datagrams: UdpSocket,
    /// For answers that do not fit into one.
    pub streams: TcpListener,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    /// The name asked about, without the last dot.
    pub name: String,
    /// What is asked for, by its number (1: IPv4 addresses, 28: IPv6 addresses).
    pub kind: u16,
    /// Where the question ends in the message.
    end: usize,
}

impl Question {
    /// Reads a message that asks one question; `None` if it is anything else.
    pub fn read(message: &[u8]) -> Option<Question> {
        let header = message.get(..HEADER)?;
        let is_question = header[2] & 0xf8 == 0;
        if !is_question || header[4..6] != [0, 1] {
            return None;
        }
        let (mut name, mut at) = (String::new(), HEADER);
        loop {
            let length = usize::from(*message.get(at)?);
            at += 1;
            if length == 0 {
                break;
            }
            // More is a reference to another place in the message, which no question needs.
            if length > 63 {
                return None;
            }
            let label = std::str::from_utf8(message.get(at..at + length)?).ok()?;
            at += length;
            if !name.is_empty() {
                name.push('.');
            }
            name.push_str(label);
            if name.len() > NAME_BYTES_MAX {
                return None;
            }
        }
        let rest = message.get(at..at + 4)?;
        let class = u16::from_be_bytes([rest[2], rest[3]]);
        (class == CLASS_INTERNET).then(|| Question {
            name,
            kind: u16::from_be_bytes([rest[0], rest[1]]),
            end: at + 4,
        })
    }

    /// The message that answers it with those of `addresses` that are of the kind asked for.
    pub fn answer(&self, message: &[u8], addresses: &[IpAddr]) -> Vec<u8> {
        let mut answer = reply(message, self.end, 0);
        let mut count: u16 = 0;
        for address in addresses {
            let octets = match (address, self.kind) {
                (IpAddr::V4(address), KIND_A) => address.octets().to_vec(),
                (IpAddr::V6(address), KIND_AAAA) => address.octets().to_vec(),
                _ => continue,
            };
            // The name is the question's, which begins behind the header.
            answer.extend([0xc0, 0x0c]);
            answer.extend(self.kind.to_be_bytes());
            answer.extend(CLASS_INTERNET.to_be_bytes());
            answer.extend(REMEMBER.to_be_bytes());
            answer.extend(u16::try_from(octets.len()).unwrap_or(0).to_be_bytes());
            answer.extend(octets);
            count += 1;
        }
        answer[6..8].copy_from_slice(&count.to_be_bytes());
        answer
    }
}

/// A reply to `message` that repeats its question, which ends at `end`, and has nothing else.
fn reply(message: &[u8], end: usize, code: u8) -> Vec<u8> {
    let mut reply = message[..end].to_vec();
    // It is a reply, recursion is to be had; whether it was wanted stays.
    reply[2] = 0x80 | (message[2] & 0x79);
    reply[3] = 0x80 | code;
    reply[4..HEADER].fill(0);
    reply[5] = 1;
    reply
}

/// That nobody knows, if `message` is a question.
fn failure(message: &[u8]) -> Option<Vec<u8>> {
    Question::read(message).map(|question| reply(message, question.end, SERVER_FAILURE))
}

/// Answers until `end` can be read, as the descriptor of a process can when it has ended.
///
/// `look_up` has the addresses of a name on the sandbox's networks, or none if it is not one of theirs; `servers` are asked about
/// the others, in order, as seen from this process.
///
/// # Errors
///
/// The sockets cannot be watched.
pub fn serve(
    sockets: &NameSockets,
    servers: &[IpAddr],
    look_up: &LookUp<'_>,
    end: BorrowedFd<'_>,
) -> io::Result<()> {
    sockets.datagrams.set_nonblocking(true)?;
    sockets.streams.set_nonblocking(true)?;
    let servers: Vec<SocketAddr> = servers.iter().map(|ip| SocketAddr::new(*ip, 53)).collect();
    let conversations = AtomicUsize::new(0);
    let mut server = Server {
        datagrams: &sockets.datagrams,
        servers: &servers,
        look_up,
        waiting: Vec::new(),
        buffer: vec![0; MESSAGE_BYTES_MAX],
    };
    std::thread::scope(|scope| {
        loop {
            let ready = server.watch(&sockets.streams, end)?;
            if ready.ended {
                return Ok(());
            }
            server.take_answers(&ready.answered);
            if ready.asked {
                server.take_questions();
            }
            if !ready.connected {
                continue;
            }
            while let Ok((stream, _)) = sockets.streams.accept() {
                if conversations.fetch_add(1, Ordering::Relaxed) >= STREAMS_MAX {
                    conversations.fetch_sub(1, Ordering::Relaxed);
                    continue;
                }
                let (servers, conversations) = (&servers, &conversations);
                scope.spawn(move || {
                    let _ended = converse(stream, servers, look_up);
                    conversations.fetch_sub(1, Ordering::Relaxed);
                });
            }
        }
    })
}

/// The addresses of a name in lower case, if it is one of the sandbox's networks.
pub type LookUp<'l> = dyn Fn(&str) -> Option<Vec<IpAddr>> + Sync + 'l;

/// Questions in packets.
struct Server<'s> {
    datagrams: &'s UdpSocket,
    servers: &'s [SocketAddr],
    look_up: &'s LookUp<'s>,
    waiting: Vec<Waiting>,
    buffer: Vec<u8>,
}

/// A question that was passed on.
struct Waiting {
    from: SocketAddr,
    message: Vec<u8>,
    socket: UdpSocket,
    /// Which server has it.
    server: usize,
    until: Instant,
}

/// What can be read.
struct Ready {
    ended: bool,
    asked: bool,
    connected: bool,
    /// By position among those that wait.
    answered: Vec<bool>,
}

impl Server<'_> {
    /// Waits until something can be read, or who waits may have waited long enough.
    fn watch(&self, streams: &TcpListener, end: BorrowedFd<'_>) -> io::Result<Ready> {
        let mut watched = vec![
            PollFd::from_borrowed_fd(end, PollFlags::IN),
            PollFd::new(self.datagrams, PollFlags::IN),
            PollFd::new(streams, PollFlags::IN),
        ];
        let waiting = self.waiting.iter();
        watched.extend(waiting.map(|one| PollFd::new(&one.socket, PollFlags::IN)));
        let second = Timespec {
            tv_sec: 1,
            tv_nsec: 0,
        };
        let limit = (!self.waiting.is_empty()).then_some(&second);
        match poll(&mut watched, limit) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let mut ready = watched.iter().map(|fd| !fd.revents().is_empty());
        let mut next = || ready.next().unwrap_or_default();
        Ok(Ready {
            ended: next(),
            asked: next(),
            connected: next(),
            answered: ready.collect(),
        })
    }

    /// Hands answers on to who asked, and asks the next server where one is silent.
    fn take_answers(&mut self, answered: &[bool]) {
        let now = Instant::now();
        let waiting = std::mem::take(&mut self.waiting);
        for (one, is_answered) in waiting.into_iter().zip(answered) {
            let still = self.go_on(one, *is_answered, now);
            self.waiting.extend(still);
        }
    }

    /// What becomes of a question that waits: itself if it is to wait on.
    fn go_on(&mut self, mut one: Waiting, is_answered: bool, now: Instant) -> Option<Waiting> {
        if is_answered {
            match one.socket.recv(&mut self.buffer) {
                // Not to the question that was asked: somebody guesses.
                Ok(length) if self.buffer[..length].get(..2) != one.message.get(..2) => {
                    return Some(one);
                }
                Ok(length) => {
                    let _sent = self.datagrams.send_to(&self.buffer[..length], one.from);
                    return None;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Some(one),
                // Nobody is there: the next one.
                Err(_) => {}
            }
        } else if now < one.until {
            return Some(one);
        }
        let next = one.server + 1;
        let others = self.servers.get(next..).unwrap_or_default();
        let Some((socket, skipped)) = pass_on(&one.message, others) else {
            self.fail(&one.message, one.from);
            return None;
        };
        one.socket = socket;
        one.server = next + skipped;
        one.until = now + PATIENCE;
        Some(one)
    }

    fn take_questions(&mut self) {
        loop {
            let (length, from) = match self.datagrams.recv_from(&mut self.buffer) {
                Ok(received) => received,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            let message = self.buffer[..length].to_vec();
            if let Some(answer) = own_answer(&message, self.look_up) {
                let _sent = self.datagrams.send_to(&answer, from);
                continue;
            }
            let Some((socket, server)) = pass_on(&message, self.servers) else {
                self.fail(&message, from);
                continue;
            };
            if self.waiting.len() == WAITING_MAX {
                self.waiting.remove(0);
            }
            self.waiting.push(Waiting {
                from,
                message,
                socket,
                server,
                until: Instant::now() + PATIENCE,
            });
        }
    }

    fn fail(&self, message: &[u8], to: SocketAddr) {
        if let Some(failure) = failure(message) {
            let _sent = self.datagrams.send_to(&failure, to);
        }
    }
}

fn own_answer(message: &[u8], look_up: &dyn Fn(&str) -> Option<Vec<IpAddr>>) -> Option<Vec<u8>> {
    let question = Question::read(message)?;
    let addresses = look_up(&question.name.to_ascii_lowercase())?;
    Some(question.answer(message, &addresses))
}

/// Sends a question to the first of the servers that takes it; with how many were left out.
fn pass_on(message: &[u8], servers: &[SocketAddr]) -> Option<(UdpSocket, usize)> {
    let attempt = |server: &SocketAddr| -> io::Result<UdpSocket> {
        let any: IpAddr = match server {
            SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            SocketAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.connect(server)?;
        socket.send(message)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let mut attempts = servers.iter().enumerate();
    attempts.find_map(|(skipped, server)| Some((attempt(server).ok()?, skipped)))
}

/// One question over TCP, each message with its length before it.
fn converse(mut client: TcpStream, servers: &[SocketAddr], look_up: &LookUp<'_>) -> io::Result<()> {
    client.set_nonblocking(false)?;
    client.set_read_timeout(Some(PATIENCE))?;
    client.set_write_timeout(Some(PATIENCE))?;
    let message = read_message(&mut client)?;
    if let Some(answer) = own_answer(&message, look_up) {
        return write_message(&mut client, &answer);
    }
    for server in servers {
        let ask = || -> io::Result<Vec<u8>> {
            let mut stream = TcpStream::connect_timeout(server, PATIENCE)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.set_write_timeout(Some(PATIENCE))?;
            write_message(&mut stream, &message)?;
            read_message(&mut stream)
        };
        if let Ok(answer) = ask() {
            return write_message(&mut client, &answer);
        }
    }
    match failure(&message) {
        Some(failure) => write_message(&mut client, &failure),
        None => Ok(()),
    }
}

fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut message = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut message)?;
    Ok(message)
}

fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), message].concat())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    /// A question as resolvers send it, with the recursion bit set.
    fn question(name: &str, kind: u16) -> Vec<u8> {
        let mut message = vec![0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
        for label in name.split('.').filter(|label| !label.is_empty()) {
            message.push(u8::try_from(label.len()).unwrap());
            message.extend(label.as_bytes());
        }
        message.push(0);
        message.extend(kind.to_be_bytes());
        message.extend([0, 1]);
        message
    }

    #[test]
    fn questions_are_read() {
        let read = Question::read(&question("a.Example", 28)).unwrap();
        assert_eq!((read.name.as_str(), read.kind), ("a.Example", 28));
        assert_eq!(Question::read(&question("", 2)).unwrap().name, "");
        let good = question("till", 1);
        for length in 0..good.len() {
            assert_eq!(Question::read(&good[..length]), None, "{length} bytes");
        }
        // More behind it, as EDNS has, is no matter.
        assert!(Question::read(&[&good[..], &[1; 20]].concat()).is_some());
        let change = |at: usize, to: u8| {
            let mut message = good.clone();
            message[at] = to;
            Question::read(&message)
        };
        assert_eq!(change(2, 0x81), None, "an answer");
        assert_eq!(change(2, 0x29), None, "another operation");
        assert_eq!(change(5, 2), None, "two questions");
        assert_eq!(change(12, 0xc0), None, "a reference");
        assert_eq!(change(13, 0xff), None, "no text");
        assert_eq!(change(good.len() - 1, 3), None, "another class");
        assert_eq!(
            Question::read(&question(&"abcd.".repeat(60), 1)),
            None,
            "too long"
        );
    }

    #[test]
    fn answers_have_the_addresses_of_the_kind_asked_for() {
        let addresses: Vec<IpAddr> = vec!["10.1.0.2".parse().unwrap(), "fd00::2".parse().unwrap()];
        let answer = |kind: u16| {
            let message = question("till", kind);
            Question::read(&message)
                .unwrap()
                .answer(&message, &addresses)
        };
        let found = answer(1);
        assert_eq!(
            found[..12],
            [0xab, 0xcd, 0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]
        );
        assert_eq!(found[12..22], question("till", 1)[12..]);
        assert_eq!(
            found[22..],
            [0xc0, 0x0c, 0, 1, 0, 1, 0, 0, 0, 5, 0, 4, 10, 1, 0, 2]
        );
        assert_eq!(answer(28)[22 + 10..][..2], [0, 16]);
        let none = answer(15);
        assert_eq!((none[7], none.len()), (0, 22));
    }

    #[test]
    fn names_are_answered_here_or_by_the_hosts_servers() {
        let sockets = NameSockets {
            datagrams: UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
            streams: TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap(),
        };
        let (udp, tcp) = (
            sockets.datagrams.local_addr().unwrap(),
            sockets.streams.local_addr().unwrap(),
        );
        let (end, ended) = io::pipe().unwrap();
        let look_up = |name: &str| (name == "till").then(|| vec!["10.1.0.2".parse().unwrap()]);
        std::thread::scope(|scope| {
            scope.spawn(|| serve(&sockets, &[], &look_up, end.as_fd()).unwrap());
            let client = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
            client.connect(udp).unwrap();
            let mut buffer = [0; 512];
            client.send(&question("TILL", 1)).unwrap();
            let length = client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[length - 4..length], [10, 1, 0, 2]);
            // There are no servers to ask.
            client.send(&question("example.org", 1)).unwrap();
            client.recv(&mut buffer).unwrap();
            assert_eq!(buffer[3] & 0xf, SERVER_FAILURE);
            let mut stream = TcpStream::connect(tcp).unwrap();
            write_message(&mut stream, &question("till", 1)).unwrap();
            assert_eq!(read_message(&mut stream).unwrap()[34..], [10, 1, 0, 2]);
            drop(ended);
        });
    }
}
