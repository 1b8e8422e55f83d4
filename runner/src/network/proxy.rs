//! What is carried through published ports: connections by `splice`, datagrams by a table of who sent them.
//!
//! ```text
//!  client ══ accepted socket ─ pipe ─► connected socket ══ the sandbox        one link: two sockets, two flows
//!  client ── the door's socket ───────► a socket for this client ── the sandbox
//! ```
//!
//! One thread beside the supervisor's own, waiting on one epoll; it enters the sandbox's network namespace where that
//! cannot be reached from the host's, and opens the inner sockets there. The outer ones were bound before, on the host.
//! Nothing is copied into this process: what a connection holds lies in a pipe, which it has only while the other side
//! does not take it. The numbers of links and clients are bounded; more wait in the kernel's queue, or in the case of
//! datagrams push out who has been silent for longest.

use std::collections::BTreeMap;
use std::io::{self, PipeWriter};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, Shutdown, SocketFlags};
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, splice};
use rustix::process::{Resource, getrlimit};
use rustix::thread::{ThreadNameSpaceType, move_into_thread_name_spaces};

use super::ports::{Door, Protocol, settle, socket};

/// How many connections are carried at a time.
const LINKS_MAX: usize = 4096;
/// What a link may have open: two sockets, and two pipes when both sides are slow.
const DESCRIPTORS_PER_LINK: usize = 6;
/// Descriptors that are the supervisor's own.
const DESCRIPTORS_KEPT: usize = 256;
/// How many senders of datagrams are remembered.
const CLIENTS_MAX: usize = 1024;
/// Who has neither sent nor got a datagram for so long is forgotten: docker's number.
const CLIENT_IDLE: Duration = Duration::from_secs(90);
/// How many pieces one flow moves before others have their turn.
const PIECES_AT_ONCE: usize = 16;
/// A pipe's usual size.
const PIECE_BYTES: usize = 64 << 10;
/// How many empty pipes are kept.
const PIPES_KEPT: usize = 8;
/// The largest datagram.
const DATAGRAM_BYTES_MAX: usize = 64 << 10;
/// How many events are taken at a time.
const EVENTS_AT_ONCE: usize = 64;
/// When connections are accepted again after there were no descriptors left.
const RETRY: Duration = Duration::from_millis(100);
/// A thread's stack: a page or two of it are touched.
const STACK_BYTES: usize = 256 << 10;

/// Where connections lead to.
pub(crate) struct Inside<'a> {
    /// The sandbox's process, whose network namespace is entered; `None` if its addresses can be reached from here.
    pub(crate) process: Option<BorrowedFd<'a>>,
    /// The sandbox's addresses, at most one of each family is used.
    pub(crate) addresses: &'a [IpAddr],
}

/// Carries until it is dropped.
pub(crate) struct Proxy {
    end: Option<PipeWriter>,
    thread: Option<JoinHandle<()>>,
}

impl Proxy {
    /// Starts to carry what arrives at the doors.
    ///
    /// # Errors
    /// There is no thread or descriptor to be had, or the sandbox's namespace cannot be entered.
    pub(crate) fn start(doors: Vec<Door>, inside: &Inside<'_>) -> io::Result<Proxy> {
        let (ended, end) = io::pipe()?;
        let process = inside
            .process
            .map(|process| process.try_clone_to_owned())
            .transpose()?;
        let carrier = Carrier::new(doors, inside.addresses, ended.into())?;
        let (tell, told) = sync_channel(1);
        let thread = std::thread::Builder::new()
            .name("ports".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let entered = match &process {
                    Some(process) => {
                        move_into_thread_name_spaces(process.as_fd(), ThreadNameSpaceType::NETWORK)
                    }
                    None => Ok(()),
                };
                drop(process);
                let goes_on = entered.is_ok();
                let _heard = tell.send(entered);
                if goes_on {
                    carrier.run();
                }
            })?;
        let proxy = Proxy {
            end: Some(end),
            thread: Some(thread),
        };
        match told.recv() {
            Ok(Ok(())) => Ok(proxy),
            // The process has ended already: nobody is there to be reached.
            Ok(Err(Errno::SRCH)) => Ok(proxy),
            Ok(Err(errno)) => Err(errno.into()),
            Err(_) => Err(io::Error::other("the thread ended early")),
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.end = None;
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// What a descriptor is: the kernel gives it back with each event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Token {
    End,
    Door(usize),
    Link(usize),
    Client(usize),
}

impl Token {
    fn encode(self) -> EventData {
        let of = |kind: u64, number: usize| {
            EventData::new_u64(u64::try_from(number).unwrap_or(0) << 2 | kind)
        };
        match self {
            Token::End => of(0, 0),
            Token::Door(number) => of(1, number),
            Token::Link(number) => of(2, number),
            Token::Client(number) => of(3, number),
        }
    }

    fn decode(data: EventData) -> Token {
        let data = data.u64();
        let number = usize::try_from(data >> 2).unwrap_or(0);
        match data & 3 {
            1 => Token::Door(number),
            2 => Token::Link(number),
            3 => Token::Client(number),
            _ => Token::End,
        }
    }
}

/// Things with numbers that are given again.
struct Slots<T> {
    slots: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Slots<T> {
    fn new() -> Slots<T> {
        Slots {
            slots: Vec::new(),
            free: Vec::new(),
        }
    }

    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }

    /// The number that the next one gets.
    fn next(&self) -> usize {
        self.free.last().copied().unwrap_or(self.slots.len())
    }

    fn add(&mut self, value: T) {
        match self.free.pop() {
            Some(number) => self.slots[number] = Some(value),
            None => self.slots.push(Some(value)),
        }
    }

    fn get(&mut self, number: usize) -> Option<&mut T> {
        self.slots.get_mut(number)?.as_mut()
    }

    fn remove(&mut self, number: usize) -> Option<T> {
        let removed = self.slots.get_mut(number)?.take()?;
        self.free.push(number);
        Some(removed)
    }
}

/// A pipe's ends: what is read, what is written.
type Pipe = (OwnedFd, OwnedFd);

/// A connection: the client's socket, and the one into the sandbox.
struct Link {
    sides: [OwnedFd; 2],
    /// From each side to the other.
    flows: [Flow; 2],
}

/// One direction of a connection.
#[derive(Default)]
struct Flow {
    /// What was taken from one side and not yet by the other, and how many bytes that is.
    held: Option<(Pipe, usize)>,
    /// Whether nothing more will come.
    has_ended: bool,
}

/// How far a flow came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Came {
    /// Until there was nothing to do.
    Through,
    /// There may be more.
    Midway,
    /// The connection is broken.
    Broken,
}

/// Somebody who sent datagrams.
struct Client {
    door: usize,
    address: SocketAddr,
    /// Its own into the sandbox, whose answers come back by it.
    socket: OwnedFd,
    last: Instant,
}

struct Carrier {
    epoll: OwnedFd,
    end: OwnedFd,
    doors: Vec<Door>,
    addresses: Vec<IpAddr>,
    links: Slots<Link>,
    links_max: usize,
    clients: Slots<Client>,
    numbers: BTreeMap<(usize, SocketAddr), usize>,
    /// When it was last looked who of them is silent.
    looked: Instant,
    pipes: Vec<Pipe>,
    /// Links that may have more to move.
    midway: Vec<usize>,
    /// Whether connections wait that could not be accepted.
    is_full: bool,
    datagram: Vec<u8>,
}

impl Carrier {
    fn new(doors: Vec<Door>, addresses: &[IpAddr], end: OwnedFd) -> io::Result<Carrier> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &end, Token::End.encode(), EventFlags::IN)?;
        for (number, door) in doors.iter().enumerate() {
            let events = match door.published.protocol {
                // Told once: who cannot be accepted now is when there is room.
                Protocol::Tcp => EventFlags::IN | EventFlags::ET,
                Protocol::Udp => EventFlags::IN,
            };
            epoll::add(&epoll, &door.socket, Token::Door(number).encode(), events)?;
        }
        let descriptors = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
        let descriptors = usize::try_from(descriptors).unwrap_or(usize::MAX);
        let links_max = descriptors.saturating_sub(DESCRIPTORS_KEPT) / DESCRIPTORS_PER_LINK;
        Ok(Carrier {
            epoll,
            end,
            doors,
            addresses: addresses.to_vec(),
            links: Slots::new(),
            links_max: links_max.clamp(1, LINKS_MAX),
            clients: Slots::new(),
            numbers: BTreeMap::new(),
            looked: Instant::now(),
            pipes: Vec::new(),
            midway: Vec::new(),
            is_full: false,
            datagram: Vec::new(),
        })
    }

    fn run(mut self) {
        let mut events: Vec<Event> = Vec::with_capacity(EVENTS_AT_ONCE);
        while !self.has_ended() {
            events.clear();
            let timeout = self.timeout();
            match epoll::wait(&self.epoll, spare_capacity(&mut events), timeout.as_ref()) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(_) => return,
            }
            let rest = std::mem::take(&mut self.midway);
            for event in &events {
                match Token::decode(event.data) {
                    Token::End => return,
                    Token::Door(number) => self.open_door(number),
                    Token::Link(number) => self.carry(number),
                    Token::Client(number) => self.carry_back(number),
                }
            }
            for number in rest {
                self.carry(number);
            }
            if self.is_full && self.links.len() < self.links_max {
                self.is_full = false;
                (0..self.doors.len()).for_each(|number| self.open_door(number));
            }
            self.forget_clients();
        }
    }

    /// Whether who started this wants it to end: also looked at between two rounds that never wait.
    fn has_ended(&self) -> bool {
        let mut ended = [rustix::event::PollFd::new(
            &self.end,
            rustix::event::PollFlags::IN,
        )];
        let now = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        !matches!(rustix::event::poll(&mut ended, Some(&now)), Ok(0))
    }

    fn timeout(&self) -> Option<Timespec> {
        let wait = if !self.midway.is_empty() {
            Duration::ZERO
        } else if self.is_full {
            RETRY
        } else if self.clients.len() > 0 {
            CLIENT_IDLE / 3
        } else {
            return None;
        };
        Timespec::try_from(wait).ok()
    }

    /// Where a door leads to: the address of its own family, if the sandbox has one.
    fn target(&self, door: usize) -> Option<SocketAddr> {
        let published = self.doors[door].published;
        let is_like = |address: &&IpAddr| address.is_ipv6() == published.host.is_ipv6();
        let mut addresses = self.addresses.iter();
        let address = addresses.find(is_like).or_else(|| self.addresses.first())?;
        Some(SocketAddr::new(*address, published.port))
    }

    fn open_door(&mut self, number: usize) {
        match self.doors[number].published.protocol {
            Protocol::Tcp => self.accept(number),
            Protocol::Udp => self.receive(number),
        }
    }

    /// Accepts all who wait.
    fn accept(&mut self, door: usize) {
        let Some(target) = self.target(door) else {
            return;
        };
        loop {
            if self.links.len() >= self.links_max {
                self.is_full = true;
                return;
            }
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            match rustix::net::accept_with(&self.doors[door].socket, flags) {
                Ok(client) => {
                    // A client that cannot be led on sees its connection end.
                    let _linked = self.link(client, target);
                }
                Err(Errno::AGAIN) => return,
                Err(Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM) => {
                    self.is_full = true;
                    return;
                }
                // That one is gone already.
                Err(_) => {}
            }
        }
    }

    fn link(&mut self, client: OwnedFd, target: SocketAddr) -> Result<(), Errno> {
        settle(client.as_fd())?;
        let inner = socket(target, Protocol::Tcp)?;
        match rustix::net::connect(&inner, &target) {
            Ok(()) | Err(Errno::INPROGRESS) => {}
            Err(errno) => return Err(errno),
        }
        let number = self.links.next();
        let events = EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::ET;
        for side in [&client, &inner] {
            epoll::add(&self.epoll, side, Token::Link(number).encode(), events)?;
        }
        self.links.add(Link {
            sides: [client, inner],
            flows: [Flow::default(), Flow::default()],
        });
        Ok(())
    }

    /// Moves what there is, in both directions.
    fn carry(&mut self, number: usize) {
        let Some(link) = self.links.get(number) else {
            return;
        };
        let [client, inner] = &link.sides;
        let [there, back] = &mut link.flows;
        let came = [
            flow_on(there, client.as_fd(), inner.as_fd(), &mut self.pipes),
            flow_on(back, inner.as_fd(), client.as_fd(), &mut self.pipes),
        ];
        let is_over = link.flows.iter().all(|flow| flow.has_ended);
        if is_over || came.contains(&Came::Broken) {
            self.links.remove(number);
        } else if came.contains(&Came::Midway) && !self.midway.contains(&number) {
            self.midway.push(number);
        }
    }

    /// Datagrams from outside.
    fn receive(&mut self, door: usize) {
        let Some(target) = self.target(door) else {
            return;
        };
        self.datagram.reserve(DATAGRAM_BYTES_MAX);
        for _ in 0..PIECES_AT_ONCE {
            self.datagram.clear();
            let room = spare_capacity(&mut self.datagram);
            let flags = RecvFlags::empty();
            let from = match rustix::net::recvfrom(&self.doors[door].socket, room, flags) {
                Ok((_, _, from)) => from,
                Err(Errno::AGAIN) => return,
                // What a datagram sent earlier met, or a signal.
                Err(_) => continue,
            };
            let Some(Ok(from)) = from.map(SocketAddr::try_from) else {
                continue;
            };
            let Some(number) = self.client(door, from, target) else {
                continue;
            };
            if let Some(client) = self.clients.get(number) {
                client.last = Instant::now();
                // What cannot be sent is lost, as datagrams are.
                let _sent = rustix::net::send(&client.socket, &self.datagram, SendFlags::NOSIGNAL);
            }
        }
    }

    /// The number of a client; `None` if there is no socket to be had for it.
    fn client(&mut self, door: usize, address: SocketAddr, target: SocketAddr) -> Option<usize> {
        if let Some(number) = self.numbers.get(&(door, address)) {
            return Some(*number);
        }
        if self.clients.len() >= CLIENTS_MAX {
            let all = self.clients.slots.iter().enumerate();
            let all = all.filter_map(|(number, client)| Some((client.as_ref()?.last, number)));
            let (_, silent) = all.min()?;
            self.forget(silent);
        }
        let socket = socket(target, Protocol::Udp).ok()?;
        rustix::net::connect(&socket, &target).ok()?;
        let number = self.clients.next();
        let token = Token::Client(number).encode();
        epoll::add(&self.epoll, &socket, token, EventFlags::IN).ok()?;
        self.clients.add(Client {
            door,
            address,
            socket,
            last: Instant::now(),
        });
        self.numbers.insert((door, address), number);
        Some(number)
    }

    fn forget(&mut self, number: usize) {
        if let Some(client) = self.clients.remove(number) {
            self.numbers.remove(&(client.door, client.address));
        }
    }

    fn forget_clients(&mut self) {
        let now = Instant::now();
        if now.duration_since(self.looked) < CLIENT_IDLE / 3 {
            return;
        }
        self.looked = now;
        for number in 0..self.clients.slots.len() {
            if let Some(client) = self.clients.get(number)
                && now.duration_since(client.last) > CLIENT_IDLE
            {
                self.forget(number);
            }
        }
    }

    /// Datagrams from the sandbox.
    fn carry_back(&mut self, number: usize) {
        let Some(client) = self.clients.get(number) else {
            return;
        };
        self.datagram.reserve(DATAGRAM_BYTES_MAX);
        for _ in 0..PIECES_AT_ONCE {
            self.datagram.clear();
            let room = spare_capacity(&mut self.datagram);
            match rustix::net::recv(&client.socket, room, RecvFlags::empty()) {
                Ok(_) => {
                    client.last = Instant::now();
                    let door = &self.doors[client.door].socket;
                    let flags = SendFlags::NOSIGNAL;
                    let _sent = rustix::net::sendto(door, &self.datagram, flags, &client.address);
                }
                Err(Errno::AGAIN) => return,
                // Nobody listens there: the client's next datagram may find somebody.
                Err(_) => {}
            }
        }
    }
}

/// Moves bytes from one socket to another until one of them has had enough.
fn flow_on(
    flow: &mut Flow,
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    pipes: &mut Vec<Pipe>,
) -> Came {
    let flags = SpliceFlags::MOVE | SpliceFlags::NONBLOCK;
    for _ in 0..PIECES_AT_ONCE {
        if flow.has_ended {
            return Came::Through;
        }
        let (pipe, bytes) = match flow.held.take() {
            Some(held) => held,
            None => {
                let flags = PipeFlags::CLOEXEC | PipeFlags::NONBLOCK;
                let pipe = match pipes.pop() {
                    Some(pipe) => pipe,
                    None => match pipe_with(flags) {
                        Ok(pipe) => pipe,
                        Err(_) => return Came::Broken,
                    },
                };
                (pipe, 0)
            }
        };
        let mut give_back = |pipe: Pipe| {
            if pipes.len() < PIPES_KEPT {
                pipes.push(pipe);
            }
        };
        let bytes = match bytes {
            0 => match splice(from, None, &pipe.1, None, PIECE_BYTES, flags) {
                Ok(0) => {
                    give_back(pipe);
                    flow.has_ended = true;
                    let _told = rustix::net::shutdown(to, Shutdown::Write);
                    return Came::Through;
                }
                Ok(bytes) => bytes,
                // Not connected yet, or nothing there.
                Err(Errno::AGAIN) => {
                    give_back(pipe);
                    return Came::Through;
                }
                Err(Errno::INTR) => {
                    give_back(pipe);
                    continue;
                }
                Err(_) => return Came::Broken,
            },
            bytes => bytes,
        };
        match splice(&pipe.0, None, to, None, bytes, flags) {
            Ok(moved) if moved == bytes => give_back(pipe),
            Ok(moved) => flow.held = Some((pipe, bytes - moved)),
            Err(Errno::INTR) => flow.held = Some((pipe, bytes)),
            Err(Errno::AGAIN) => {
                flow.held = Some((pipe, bytes));
                return Came::Through;
            }
            // The other side takes no more; what it still says is carried to its end.
            Err(Errno::PIPE) => {
                flow.has_ended = true;
                let _told = rustix::net::shutdown(from, Shutdown::Read);
                return Came::Through;
            }
            Err(_) => return Came::Broken,
        }
    }
    Came::Midway
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket};

    use super::super::ports::{Publish, bind};
    use super::*;

    const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

    /// A proxy from a port that the kernel chooses to one that is there already, both on loopback.
    fn proxy(port: u16, protocol: Protocol) -> (Proxy, SocketAddr) {
        let wish = Publish {
            port,
            protocol,
            host: Some(LOOPBACK),
            host_ports: None,
        };
        let doors = bind(&[wish]).unwrap();
        let address = doors[0].published.host;
        let inside = Inside {
            process: None,
            addresses: &[LOOPBACK],
        };
        (Proxy::start(doors, &inside).unwrap(), address)
    }

    /// So many bytes that no socket's buffer holds them.
    fn much(seed: u8) -> Vec<u8> {
        let line: Vec<u8> = (0..251).map(|number| seed ^ number).collect();
        line.repeat(100_000)
    }

    #[test]
    fn each_direction_is_carried_whole_and_ends_on_its_own() {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let (_proxy, address) = proxy(listener.local_addr().unwrap().port(), Protocol::Tcp);
        let server = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut got = Vec::new();
            // Its end is heard while the other direction is open.
            stream.read_to_end(&mut got).unwrap();
            assert!(got == much(1));
            stream.write_all(&much(2)).unwrap();
        });
        let mut stream = TcpStream::connect(address).unwrap();
        stream.write_all(&much(1)).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut got = Vec::new();
        stream.read_to_end(&mut got).unwrap();
        assert!(got == much(2));
        server.join().unwrap();
    }

    #[test]
    fn slow_connections_do_not_hold_up_others() {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let (_proxy, address) = proxy(listener.local_addr().unwrap().port(), Protocol::Tcp);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                std::thread::spawn(move || stream.unwrap().write_all(&much(3)));
            }
        });
        // Nobody reads these until later.
        let mut slow: Vec<TcpStream> = (0..20)
            .map(|_| TcpStream::connect(address).unwrap())
            .collect();
        let mut got = Vec::new();
        let mut fast = TcpStream::connect(address).unwrap();
        fast.read_to_end(&mut got).unwrap();
        assert!(got == much(3));
        got.clear();
        slow[7].read_to_end(&mut got).unwrap();
        assert!(got == much(3));
    }

    #[test]
    fn who_is_not_there_is_a_connection_that_ends() {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_proxy, address) = proxy(port, Protocol::Tcp);
        drop(listener);
        let mut stream = TcpStream::connect(address).unwrap();
        // Reset, or a plain end: no answer and no waiting.
        assert!(!matches!(stream.read(&mut [0; 9]), Ok(1..)));
    }

    #[test]
    fn datagrams_find_their_way_back() {
        let server = UdpSocket::bind((LOOPBACK, 0)).unwrap();
        let (_proxy, address) = proxy(server.local_addr().unwrap().port(), Protocol::Udp);
        let clients: Vec<UdpSocket> = (0..5)
            .map(|_| UdpSocket::bind((LOOPBACK, 0)).unwrap())
            .collect();
        for (number, client) in clients.iter().enumerate() {
            let text = format!("client {number}");
            client.send_to(text.as_bytes(), address).unwrap();
        }
        let mut buffer = [0; 100];
        for _ in &clients {
            let (bytes, from) = server.recv_from(&mut buffer).unwrap();
            server.send_to(&buffer[..bytes], from).unwrap();
        }
        for (number, client) in clients.iter().enumerate() {
            let (bytes, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!(buffer[..bytes], *format!("client {number}").as_bytes());
            assert_eq!(from, address);
        }
    }

    #[test]
    fn it_ends_when_it_is_dropped() {
        let listener = TcpListener::bind((LOOPBACK, 0)).unwrap();
        let (proxy, address) = proxy(listener.local_addr().unwrap().port(), Protocol::Tcp);
        let mut stream = TcpStream::connect(address).unwrap();
        let (inner, _) = listener.accept().unwrap();
        drop(proxy);
        assert!(!matches!(stream.read(&mut [0; 9]), Ok(1..)));
        assert!(TcpStream::connect(address).is_err());
        drop(inner);
    }
}
