//! A foreground process on the caller's terminal: raw mode, bytes both ways, size and signals.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::error::SandboxError;
use crate::sandbox::Sandbox;
use crate::spec::ExitStatus;
use crate::sys::{self, SignalSet};

/// Signals that are meant for the process in the foreground.
const FORWARDED: [i32; 6] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
];

/// A terminal in raw mode; it is put back when this is dropped.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts `terminal` into raw mode: every byte goes to the process at once, echo and signals included.
    ///
    /// # Errors
    ///
    /// When it is not a terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let before = tcgetattr(terminal)?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(terminal, OptionalActions::Drain, &raw)?;
        Ok(Self {
            terminal: terminal.try_clone_to_owned()?,
            before,
        })
    }
}

impl Drop for RawMode {
    fn drop(&mut self) {
        let _restored = tcsetattr(&self.terminal, OptionalActions::Flush, &self.before);
    }
}

/// The size of a terminal as columns and rows; `None` if `fd` is not one or does not know.
pub fn size(fd: BorrowedFd<'_>) -> Option<(u16, u16)> {
    let size = tcgetwinsize(fd).ok()?;
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

/// Signals on their way to the foreground process: blocked from when this is made, so that none is lost
/// and none ends the caller.
///
/// To be made before other threads are, which then block the same; put back when dropped.
#[derive(Debug)]
pub struct Signals {
    fd: OwnedFd,
    before: SignalSet,
}

impl Signals {
    /// Begins to collect SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2 and SIGWINCH.
    ///
    /// # Errors
    ///
    /// When there are no descriptors left.
    pub fn collect() -> io::Result<Self> {
        let all = SignalSet::of(&FORWARDED).with(libc::SIGWINCH);
        Self::take_from(&all, &all)
    }

    /// As [`Signals::collect`], but leaves SIGWINCH to a [`Signals::resizes`] made later, on whatever thread.
    ///
    /// # Errors
    ///
    /// As for [`Signals::collect`].
    pub fn collect_all_but_resizes() -> io::Result<Self> {
        let set = SignalSet::of(&FORWARDED);
        Self::take_from(&set.with(libc::SIGWINCH), &set)
    }

    /// Begins to collect SIGWINCH alone.
    ///
    /// # Errors
    ///
    /// As for [`Signals::collect`].
    pub fn resizes() -> io::Result<Self> {
        let set = SignalSet::of(&[libc::SIGWINCH]);
        Self::take_from(&set, &set)
    }

    /// Blocks one set and collects another.
    fn take_from(blocked: &SignalSet, taken: &SignalSet) -> io::Result<Self> {
        let before = sys::block_signals(blocked);
        match sys::signal_fd(taken) {
            Ok(fd) => Ok(Self { fd, before }),
            Err(error) => {
                sys::set_signal_mask(&before);
                Err(error)
            }
        }
    }
}

impl Signals {
    /// The number of a signal that has arrived since; `None` if none has. Poll the descriptor to wait for one.
    ///
    /// # Errors
    ///
    /// When the descriptor cannot be read.
    pub fn take(&self) -> io::Result<Option<i32>> {
        Ok(sys::read_signal(self.fd.as_fd())?.map(|arrived| arrived.signal))
    }
}

impl AsFd for Signals {
    /// Readable while a signal waits to be taken.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        sys::set_signal_mask(&self.before);
    }
}

/// Stays with a sandbox's process until it ends: passes on signals and, if the process has a terminal,
/// what is typed on `input`, what it prints to `output`, and `output`'s size.
///
/// `input` is put into raw mode for the time if it is a terminal. Without a terminal of its own the
/// process has its streams already.
///
/// # Errors
///
/// As for [`Sandbox::wait`], and when `input` or `output` fails.
pub fn attend(
    sandbox: &mut Sandbox,
    signals: &Signals,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> Result<ExitStatus, SandboxError> {
    let fail = |source: io::Error| SandboxError::Io {
        what: "serve the terminal",
        source,
    };
    let master = sandbox.take_terminal();
    let raw = match &master {
        Some(_) if rustix::termios::isatty(input) => Some(RawMode::enter(input).map_err(fail)?),
        _ => None,
    };
    if let Some(master) = &master {
        resize(master.as_fd(), output);
        copy(sandbox, signals, master.as_fd(), input, output).map_err(fail)?;
    } else {
        forward(sandbox, signals).map_err(fail)?;
    }
    drop(raw);
    sandbox.wait()
}

/// Passes signals on until the process has ended.
fn forward(sandbox: &Sandbox, signals: &Signals) -> io::Result<()> {
    loop {
        let process = sandbox.pidfd();
        let mut fds = [
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&signals.fd, PollFlags::IN),
        ];
        wait_for(&mut fds)?;
        if !fds[0].revents().is_empty() {
            return Ok(());
        }
        deliver(sandbox, signals, None)?;
    }
}

/// Passes on what waits: window sizes to `resize`, everything else to the process.
fn deliver(
    sandbox: &Sandbox,
    signals: &Signals,
    terminal: Option<(BorrowedFd<'_>, BorrowedFd<'_>)>,
) -> io::Result<()> {
    while let Some(arrived) = sys::read_signal(signals.fd.as_fd())? {
        match terminal {
            Some((master, output)) if arrived.signal == libc::SIGWINCH => resize(master, output),
            _ => sandbox.kill(arrived.signal)?,
        }
    }
    Ok(())
}

fn resize(master: BorrowedFd<'_>, output: BorrowedFd<'_>) {
    if let Ok(size) = tcgetwinsize(output) {
        let _resized = tcsetwinsize(master, size);
    }
}

/// Copies both ways until the terminal's other side is closed and read empty.
fn copy(
    sandbox: &Sandbox,
    signals: &Signals,
    master: BorrowedFd<'_>,
    input: BorrowedFd<'_>,
    output: BorrowedFd<'_>,
) -> io::Result<()> {
    let mut buffer = vec![0; 64 << 10];
    // What was typed and not yet taken: a program that does not read must not stop its own output.
    let mut typed: Vec<u8> = Vec::new();
    let mut input_open = true;
    loop {
        let process = sandbox.pidfd();
        let nothing = PollFlags::empty();
        let to_master = if typed.is_empty() {
            nothing
        } else {
            PollFlags::OUT
        };
        let from_input = if input_open && typed.is_empty() {
            PollFlags::IN
        } else {
            nothing
        };
        let mut fds = [
            PollFd::new(&signals.fd, PollFlags::IN),
            PollFd::new(&master, PollFlags::IN | to_master),
            PollFd::new(&process, PollFlags::IN),
            PollFd::new(&input, from_input),
        ];
        // A hung-up input is always "ready": leave it out while nothing is wanted from it.
        let used = if from_input == nothing { 3 } else { 4 };
        wait_for(&mut fds[..used])?;
        let [signalled, terminal, ended, typing] = fds.map(|fd| fd.revents());

        if !signalled.is_empty() {
            deliver(sandbox, signals, Some((master, output)))?;
        }
        if terminal.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            match rustix::io::read(master, &mut buffer) {
                // EIO is how a terminal says that no one has its other side open.
                Ok(0) | Err(Errno::IO) => return Ok(()),
                Ok(n) => write_all(output, &buffer[..n])?,
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        } else if !ended.is_empty() {
            // All it wrote has been read.
            return Ok(());
        }
        if used == 4 && !typing.is_empty() {
            match rustix::io::read(input, &mut buffer) {
                Ok(0) => {
                    // End of a file or pipe: what a user would type to say so.
                    typed.push(END_OF_TRANSMISSION);
                    input_open = false;
                }
                Ok(n) => typed.extend_from_slice(&buffer[..n]),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(Errno::IO) => input_open = false,
                Err(error) => return Err(error.into()),
            }
        }
        if terminal.contains(PollFlags::OUT) && !typed.is_empty() {
            // A terminal takes 4095 bytes at most without blocking; poll said there is room for some.
            let some = typed.len().min(TYPED_AT_ONCE);
            match rustix::io::write(master, &typed[..some]) {
                Ok(n) => drop(typed.drain(..n)),
                Err(Errno::INTR | Errno::AGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

/// Ctrl-D.
const END_OF_TRANSMISSION: u8 = 4;
/// Small enough never to block on a terminal that poll calls writable.
const TYPED_AT_ONCE: usize = 256;

fn wait_for(fds: &mut [PollFd<'_>]) -> io::Result<()> {
    loop {
        match poll(fds, None) {
            Err(Errno::INTR) => {}
            result => return result.map(drop).map_err(io::Error::from),
        }
    }
}

fn write_all(output: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match rustix::io::write(output, bytes) {
            Ok(n) => bytes = &bytes[n..],
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => wait_for(&mut [PollFd::new(&output, PollFlags::OUT)])?,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
