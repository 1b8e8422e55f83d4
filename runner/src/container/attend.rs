//! A command that stays with a container, or with a process in it: bytes between its own streams and that one's, signals,
//! the size of the terminal, and the keys that leave.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

use super::client::{Client, ClientError};
use super::protocol::Request;
use crate::terminal::{RawMode, Signals, size};

/// How one stays.
#[derive(Debug)]
pub struct Attend<'a> {
    /// Signals on their way to the process.
    pub signals: Option<&'a Signals>,
    /// Whether they are passed on. Without, those that ask to end leave the process running; a terminal is sized anyway.
    pub pass_signals: bool,
    /// Whether the process has a terminal.
    pub terminal: bool,
    /// Whether what comes in goes to the process.
    pub stdin: bool,
    /// Whether what it prints to standard output and to standard error is passed on.
    pub outputs: [bool; 2],
    /// The keys that leave it running, such as Ctrl-P Ctrl-Q; none if empty.
    pub detach_keys: &'a [u8],
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attended {
    /// With the process, with this code.
    Exited(i32),
    /// By the keys.
    Detached,
}

/// The two ends of the streams of who attaches.
#[derive(Debug)]
pub struct Pipes {
    near: [OwnedFd; 3],
    far: [OwnedFd; 3],
}

impl Pipes {
    /// Makes them.
    ///
    /// # Errors
    /// There are no descriptors left.
    pub fn new() -> io::Result<Pipes> {
        let (input, output, error) = (io::pipe()?, io::pipe()?, io::pipe()?);
        Ok(Pipes {
            near: [input.1.into(), output.0.into(), error.0.into()],
            far: [input.0.into(), output.1.into(), error.1.into()],
        })
    }

    /// The ends that the supervisor is given.
    pub fn far(&self) -> [BorrowedFd<'_>; 3] {
        [
            self.far[0].as_fd(),
            self.far[1].as_fd(),
            self.far[2].as_fd(),
        ]
    }
}

/// One direction: what is read and not yet written.
struct Flow {
    from: Option<OwnedFd>,
    to: Option<OwnedFd>,
    waiting: Vec<u8>,
}

impl Flow {
    fn is_open(&self) -> bool {
        self.from.is_some() || !self.waiting.is_empty()
    }
}

/// Stays with a container to whose supervisor the far ends of `pipes` went, until its process ends.
///
/// # Errors
/// The supervisor is gone, or a stream fails.
pub fn attend(client: &Client, pipes: Pipes, how: &Attend<'_>) -> Result<Attended, ClientError> {
    let Pipes { near, far } = pipes;
    drop(far);
    let [input, output, error] = near;
    stay(
        client,
        Some(input),
        vec![(output, 1), (error, 2)],
        None,
        how,
    )
}

/// Stays with a process that has this terminal, or whose streams are this command's own, until it ends.
///
/// # Errors
/// As for [`attend`].
pub fn attend_executed(
    client: &Client,
    master: Option<OwnedFd>,
    how: &Attend<'_>,
) -> Result<Attended, ClientError> {
    let Some(master) = master else {
        return stay(client, None, Vec::new(), None, how);
    };
    let input = master.try_clone().map_err(failed)?;
    let sized = master.try_clone().map_err(failed)?;
    stay(client, Some(input), vec![(master, 1)], Some(&sized), how)
}

fn failed(source: io::Error) -> ClientError {
    ClientError::Io {
        what: "serve the streams",
        source,
    }
}

fn stay(
    client: &Client,
    input: Option<OwnedFd>,
    outputs: Vec<(OwnedFd, u8)>,
    master: Option<&OwnedFd>,
    how: &Attend<'_>,
) -> Result<Attended, ClientError> {
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let raw = match how.terminal && how.stdin && rustix::termios::isatty(stdin) {
        true => Some(RawMode::enter(stdin).map_err(failed)?),
        false => None,
    };
    if how.terminal {
        resize(client, master, stdout)?;
    }
    let own = |number| -> io::Result<OwnedFd> {
        match number {
            1 => rustix::stdio::stdout().try_clone_to_owned(),
            _ => rustix::stdio::stderr().try_clone_to_owned(),
        }
    };
    let mut flows = Vec::new();
    for (from, number) in outputs {
        flows.push(Flow {
            from: Some(from),
            to: match how.outputs[usize::from(number) - 1] {
                true => Some(own(number).map_err(failed)?),
                false => None,
            },
            waiting: Vec::new(),
        });
    }
    let from = match how.stdin && input.is_some() {
        true => Some(stdin.try_clone_to_owned().map_err(failed)?),
        false => None,
    };
    let mut typing = Flow {
        to: input.filter(|_| from.is_some()),
        from,
        waiting: Vec::new(),
    };
    let mut keys = Keys {
        wanted: how.detach_keys,
        seen: 0,
    };
    let mut exited = None;
    loop {
        if exited.is_some() && !flows.iter().any(Flow::is_open) {
            drop(raw);
            return match exited {
                Some(Ok(code)) => Ok(Attended::Exited(code)),
                Some(Err(error)) => Err(error),
                None => Err(ClientError::Lost),
            };
        }
        // What the process left behind in the container may keep its terminal open.
        let until_idle = exited.is_some() && master.is_some();
        let ready = wait(client, &typing, &flows, how, exited.is_some(), until_idle)?;
        if until_idle && !ready.flows.contains(&true) {
            flows.clear();
            continue;
        }
        if ready.signal && pass_on(client, master, how)? {
            client.send(&Request::Detach, &[])?;
            return Ok(Attended::Detached);
        }
        if ready.answer {
            exited = Some(client.exited());
            // Nothing more is wanted.
            typing = Flow {
                from: None,
                to: None,
                waiting: Vec::new(),
            };
        }
        for (flow, ready) in flows.iter_mut().zip(&ready.flows) {
            if *ready {
                copy_out(flow).map_err(failed)?;
            }
        }
        if ready.typed && type_in(&mut typing, &mut keys, how.terminal).map_err(failed)? {
            client.send(&Request::Detach, &[])?;
            return Ok(Attended::Detached);
        }
        if ready.typeable {
            write_some(&mut typing);
        }
        if typing.from.is_none() && typing.waiting.is_empty() {
            typing.to = None;
        }
    }
}

#[derive(Default)]
struct Ready {
    signal: bool,
    answer: bool,
    typed: bool,
    typeable: bool,
    flows: Vec<bool>,
}

fn wait(
    client: &Client,
    typing: &Flow,
    flows: &[Flow],
    how: &Attend<'_>,
    has_exited: bool,
    until_idle: bool,
) -> Result<Ready, ClientError> {
    let signal = how.signals.map(AsFd::as_fd);
    let answer = (!has_exited).then(|| client.as_fd());
    let typed = typing.from.as_ref().filter(|_| typing.waiting.is_empty());
    let typeable = typing.to.as_ref().filter(|_| !typing.waiting.is_empty());
    let mut polled: Vec<PollFd<'_>> = Vec::new();
    let at_signal = add(&mut polled, signal, PollFlags::IN);
    let at_answer = add(&mut polled, answer, PollFlags::IN);
    let at_typed = add(&mut polled, typed.map(AsFd::as_fd), PollFlags::IN);
    let at_typeable = add(&mut polled, typeable.map(AsFd::as_fd), PollFlags::OUT);
    let at_flows: Vec<Option<usize>> = flows
        .iter()
        .map(|flow| {
            add(
                &mut polled,
                flow.from.as_ref().map(AsFd::as_fd),
                PollFlags::IN,
            )
        })
        .collect();
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    match poll(&mut polled, until_idle.then_some(&now)) {
        Ok(_) | Err(Errno::INTR) => {}
        Err(errno) => return Err(failed(errno.into())),
    }
    let is_ready = |at: Option<usize>| at.is_some_and(|at| !polled[at].revents().is_empty());
    Ok(Ready {
        signal: is_ready(at_signal),
        answer: is_ready(at_answer),
        typed: is_ready(at_typed),
        typeable: is_ready(at_typeable),
        flows: at_flows.into_iter().map(is_ready).collect(),
    })
}

/// Watches a descriptor; where it stands in the list.
fn add<'a>(
    polled: &mut Vec<PollFd<'a>>,
    fd: Option<BorrowedFd<'a>>,
    events: PollFlags,
) -> Option<usize> {
    polled.push(PollFd::from_borrowed_fd(fd?, events));
    Some(polled.len() - 1)
}

/// From the process to this command's own stream, which may make it wait.
fn copy_out(flow: &mut Flow) -> io::Result<()> {
    let Some(from) = &flow.from else {
        return Ok(());
    };
    let mut buffer = [0; 16 << 10];
    match rustix::io::read(from, &mut buffer) {
        Ok(count) if count > 0 => {
            if let Some(to) = &flow.to {
                write_all(to, &buffer[..count])?;
            }
        }
        Err(Errno::INTR | Errno::AGAIN) => {}
        // EIO is how a terminal says that no one has its other side open.
        Ok(_) | Err(_) => flow.from = None,
    }
    Ok(())
}

fn write_all(to: &OwnedFd, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(to, bytes) {
            Ok(count) => bytes = &bytes[count..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                let _ready = poll(&mut [PollFd::new(to, PollFlags::OUT)], None);
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;
/// Small enough never to block on a terminal that poll calls writable.
const TYPED_AT_ONCE: usize = 256;

/// From this command's input towards the process; whether the keys that leave were among it.
fn type_in(typing: &mut Flow, keys: &mut Keys<'_>, terminal: bool) -> io::Result<bool> {
    let Some(from) = &typing.from else {
        return Ok(false);
    };
    let mut buffer = [0; 4096];
    match rustix::io::read(from, &mut buffer) {
        Ok(count) if count > 0 => match terminal {
            true => return Ok(keys.take(&buffer[..count], &mut typing.waiting)),
            false => typing.waiting.extend_from_slice(&buffer[..count]),
        },
        Err(Errno::INTR | Errno::AGAIN) => {}
        Ok(_) => {
            typing.from = None;
            if terminal {
                // End of a file or pipe: what a user would type to say so.
                typing.waiting.push(END_OF_TRANSMISSION);
            }
        }
        Err(Errno::IO) => typing.from = None,
        Err(errno) => return Err(errno.into()),
    }
    Ok(false)
}

fn write_some(typing: &mut Flow) {
    let Some(to) = &typing.to else {
        return typing.waiting.clear();
    };
    let some = typing.waiting.len().min(TYPED_AT_ONCE);
    match rustix::io::write(to, &typing.waiting[..some]) {
        Ok(count) => drop(typing.waiting.drain(..count)),
        Err(Errno::INTR | Errno::AGAIN) => {}
        // The process takes no more.
        Err(_) => {
            typing.waiting.clear();
            typing.from = None;
        }
    }
}

/// Looks for the keys that leave.
struct Keys<'a> {
    wanted: &'a [u8],
    seen: usize,
}

impl Keys<'_> {
    /// Passes on what was typed but for the keys, which are held back until it is clear that they are others; whether
    /// they were all there.
    fn take(&mut self, typed: &[u8], passed: &mut Vec<u8>) -> bool {
        for byte in typed {
            if self.wanted.get(self.seen) == Some(byte) {
                self.seen += 1;
                if self.seen == self.wanted.len() {
                    return true;
                }
                continue;
            }
            passed.extend_from_slice(&self.wanted[..self.seen]);
            self.seen = 0;
            if self.wanted.first() == Some(byte) {
                self.seen = 1;
            } else {
                passed.push(*byte);
            }
        }
        false
    }
}

/// Passes signals on; whether one came that this command itself obeys.
fn pass_on(
    client: &Client,
    master: Option<&OwnedFd>,
    how: &Attend<'_>,
) -> Result<bool, ClientError> {
    let Some(signals) = how.signals else {
        return Ok(false);
    };
    while let Some(signal) = signals.take().map_err(failed)? {
        match signal {
            libc::SIGWINCH if how.terminal => resize(client, master, rustix::stdio::stdout())?,
            libc::SIGWINCH => {}
            _ if !how.pass_signals => return Ok(true),
            signal => tell(client, &Request::Signal { signal })?,
        }
    }
    Ok(false)
}

/// Tells the supervisor something that does not matter any more where it has ended: then its last answer is waiting.
fn tell(client: &Client, request: &Request) -> Result<(), ClientError> {
    match client.send(request, &[]) {
        Err(ClientError::Lost) => Ok(()),
        sent => sent,
    }
}

/// Makes the process's terminal as large as this command's.
fn resize(
    client: &Client,
    master: Option<&OwnedFd>,
    output: BorrowedFd<'_>,
) -> Result<(), ClientError> {
    let Some((columns, rows)) = size(output) else {
        return Ok(());
    };
    match master {
        None => tell(client, &Request::Resize { columns, rows }),
        Some(master) => {
            let size = rustix::termios::Winsize {
                ws_col: columns,
                ws_row: rows,
                ws_xpixel: 0,
                ws_ypixel: 0,
            };
            let _resized = rustix::termios::tcsetwinsize(master, size);
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_leave() {
        let check = |typed: &[&[u8]], passed: &[u8], leaves: bool| {
            let mut keys = Keys {
                wanted: &[16, 17],
                seen: 0,
            };
            let mut out = Vec::new();
            let left = typed.iter().any(|typed| keys.take(typed, &mut out));
            assert_eq!((out.as_slice(), left), (passed, leaves), "{typed:?}");
        };
        check(&[b"abc"], b"abc", false);
        check(&[b"a\x10\x11b"], b"a", true);
        check(&[b"a\x10", b"\x11"], b"a", true);
        check(&[b"\x10a"], b"\x10a", false);
        check(&[b"\x10\x10\x11"], b"\x10", true);
        check(&[b"\x11\x10"], b"\x11", false);
    }
}
