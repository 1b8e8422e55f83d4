//! The process that holds a container: one thread, one `poll`, no heap to speak of.
//!
//! It is this program again, started by [`super::client::start`] with a socket as its standard input and standing in the
//! container's folder. It starts the sandbox, copies what that prints to the log and to whoever is attached, answers
//! requests, checks health, restarts, and writes down how it all ended. Killed, it takes the container along: the
//! sandbox's helper sees its end of the socket close.
//!
//! | module | holds |
//! |---|---|
//! | `connection` | one command that is connected |
//! | `health` | whether the container is well |
//! | `processes`, `usage` | what runs in it, and what that uses |
//! | `freezer` | letting it stand still |

mod connection;
mod freezer;
mod health;
mod processes;
mod usage;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, PipeWriter};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command};
use std::time::{Duration, Instant, SystemTime};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, fstat};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use self::connection::{Attachment, Connection, Role};
use self::freezer::Frozen;
use self::health::Checker;
use super::folder::Folder;
use super::log::{Source, Writer};
use super::plan::{Plan, Restart};
use super::protocol::{Answer, Request};
use super::state::{State, Status, boot_id};
use super::time::rfc3339;
use crate::cgroup;
use crate::error::{SandboxError, StartError};
use crate::join::JoinSpec;
use crate::network::names::NameSockets;
use crate::network::ports;
use crate::network::proxy::{Inside, Proxy};
use crate::sandbox::{Sandbox, Stdio, Stream};
use crate::spec::{Confinement, Limits, ProcessSpec, Ulimit};
use crate::sys::{FilePages, trim_heap};
use crate::terminal::Signals;
use crate::wire;

/// The program name by which a re-executed process knows what it is.
pub(crate) const NAME: &str = "longshore-supervisor";

/// How much is read at a time, and how much may wait for a stream that is not read.
const PIECE_BYTES: usize = 16 << 10;
/// How many descriptors a supervisor has use for.
const DESCRIPTORS_MAX: u64 = 32 << 10;
/// How many commands may be connected; more wait.
const CONNECTIONS_MAX: usize = 128;
/// After a first failure; doubled with each further one.
const BACK_OFF_MIN: Duration = Duration::from_millis(100);
/// The most that doubling leads to.
const BACK_OFF_MAX: Duration = Duration::from_secs(60);
/// A process that ran so long was not a failed start.
const BACK_OFF_RESET: Duration = Duration::from_secs(10);

/// Whether this process was started as a supervisor: by its name, and with a socket as standard input.
pub(crate) fn is_supervisor() -> bool {
    std::env::args_os().next().is_some_and(|name| name == NAME)
        && fstat(rustix::stdio::stdin())
            .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Socket)
}

/// Does the supervisor's whole work; the process ends with what this returns.
pub(crate) fn run() -> i32 {
    let Ok(starter) = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3) else {
        return 1;
    };
    match begin(&starter) {
        Ok(supervisor) => supervisor.serve(starter),
        Err(error) => {
            let failed = Answer::Failed {
                start: None,
                message: error.to_string(),
            };
            let _told = wire::send(&starter, &failed, &[]);
            1
        }
    }
}

/// What is to be done, before anything is started.
fn begin(starter: &OwnedFd) -> io::Result<Supervisor> {
    let lacking = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let message = wire::receive::<Request>(starter)?.ok_or_else(|| lacking("nothing to start"))?;
    let (
        Request::Start {
            attached,
            owned,
            terminal_size,
        },
        fds,
    ) = message
    else {
        return Err(lacking("the first request is another"));
    };
    let mut fds = fds.into_iter();
    let (Some(directory), Some(alive)) = (fds.next(), fds.next()) else {
        return Err(lacking("no folder"));
    };
    rustix::process::fchdir(&directory)?;
    // Nothing but this program's own session signals it.
    let _session = rustix::process::setsid();
    release_streams()?;
    let folder = Folder::standing_in(directory);
    let plan = folder.plan().map_err(|error| error.source)?;
    let mut plan = plan.ok_or_else(|| lacking("no plan"))?;
    if terminal_size.is_some() {
        plan.sandbox.process.terminal_size = terminal_size;
    }
    let attachment = match attached {
        true => Some(Attachment::of(fds.by_ref(), plan.stdin)?),
        false => None,
    };
    let log = match plan.log {
        Some(limits) => Some(Writer::open(&folder, limits).map_err(|error| error.source)?),
        None => None,
    };
    if !plan.ports.is_empty() {
        make_room(&mut plan);
    }
    // Those that ask a program to end ask the container; the kernel's default would kill it.
    let signals = Signals::collect()?;
    Ok(Supervisor {
        listener: listen()?,
        checker: plan.health.clone().map(Checker::new),
        state: State {
            boot_id: boot_id(),
            ..State::default()
        },
        folder,
        alive: File::from(alive),
        plan,
        log,
        signals,
        connections: BTreeMap::new(),
        next_connection: 0,
        running: None,
        restart_at: None,
        back_off: BACK_OFF_MIN,
        kill_at: None,
        first: attachment,
        owner: owned.then_some(0),
        adrift: Vec::new(),
        pages: FilePages::all(),
        has_worked: true,
        kept: fds.collect(),
    })
}

/// The standard streams of whoever started this are none of a supervisor's.
fn release_streams() -> io::Result<()> {
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    Ok(())
}

/// Lets this process have as many descriptors as it may: each connection through a port needs a few. The container gets
/// what it would have got.
fn make_room(plan: &mut Plan) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Nofile);
    let wanted = Rlimit {
        current: limit.maximum.map_or(Some(DESCRIPTORS_MAX), |maximum| {
            Some(maximum.min(DESCRIPTORS_MAX))
        }),
        ..limit
    };
    let is_less = limit.current.is_some_and(|now| Some(now) < wanted.current);
    if !is_less || setrlimit(Resource::Nofile, wanted).is_err() {
        return;
    }
    let name = "nofile".to_owned();
    let ulimits = &mut plan.sandbox.ulimits;
    if !ulimits.iter().any(|ulimit| ulimit.name == name) {
        ulimits.push(Ulimit {
            name,
            soft: limit.current,
            hard: limit.maximum,
        });
    }
}

/// A socket in the folder, in which this process stands: so its name is short enough for the kernel wherever that is.
fn listen() -> io::Result<OwnedFd> {
    match std::fs::remove_file("socket") {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    let bound = rustix::net::bind(&socket, &SocketAddrUnix::new("socket")?);
    rustix::process::umask(old);
    bound?;
    rustix::net::listen(&socket, 128)?;
    Ok(socket)
}

/// A container that is held.
struct Supervisor {
    folder: Folder,
    alive: File,
    plan: Plan,
    state: State,
    log: Option<Writer>,
    listener: OwnedFd,
    signals: Signals,
    connections: BTreeMap<u64, Connection>,
    next_connection: u64,
    running: Option<Running>,
    checker: Option<Checker>,
    /// When the process is to be started again.
    restart_at: Option<Instant>,
    back_off: Duration,
    /// When a process that was asked to end is killed.
    kill_at: Option<Instant>,
    /// The streams that came with the first request.
    first: Option<Attachment>,
    /// The connection with which the container ends.
    owner: Option<u64>,
    /// Processes in the container whose commands have gone.
    adrift: Vec<Sandbox>,
    /// What of this program is not needed while nothing happens.
    pages: Vec<FilePages>,
    /// Whether more of it may be in memory than the copying of streams takes.
    has_worked: bool,
    /// Locks of who started it, which end with this process.
    kept: Vec<OwnedFd>,
}

/// The container's process.
struct Running {
    sandbox: Sandbox,
    since: Instant,
    /// What it prints: standard output or the terminal, and standard error.
    outputs: [Option<OwnedFd>; 2],
    /// What it reads: a pipe, or the terminal again.
    input: Option<OwnedFd>,
    /// What it has not taken of that.
    typed: Vec<u8>,
    has_ended: bool,
    /// Where it asks about names, until it does for the first time.
    questions: Option<NameSockets>,
    /// Who answers that.
    names: Option<NameServer>,
    /// What carries through its ports.
    proxy: Option<Proxy>,
    /// What keeps it standing still.
    frozen: Option<Frozen>,
}

/// A process that answers on a sandbox's sockets, until the pipe that it looks at closes.
struct NameServer {
    process: Child,
    end: Option<PipeWriter>,
}

impl NameServer {
    fn start(arguments: &[String], sockets: NameSockets) -> io::Result<NameServer> {
        let (looked_at, end) = io::pipe()?;
        let process = Command::new(crate::sandbox::own_program())
            .args(arguments)
            .stdin(OwnedFd::from(sockets.datagrams))
            .stdout(OwnedFd::from(sockets.streams))
            .stderr(OwnedFd::from(looked_at))
            .spawn()?;
        Ok(NameServer {
            process,
            end: Some(end),
        })
    }
}

impl Drop for NameServer {
    fn drop(&mut self) {
        self.end = None;
        let _status = self.process.wait();
    }
}

/// What a descriptor that is ready is for.
#[derive(Clone, Copy, Debug)]
enum Ready {
    Listener,
    Signals,
    Process,
    Output(usize),
    Input,
    Connection(u64),
    ConnectionInput(u64),
    ConnectionOutput(u64, usize),
    Executed(u64),
    Adrift,
    Question,
    Check,
    CheckOutput,
}

impl Ready {
    /// Whether bytes have to be copied, which may be so very often.
    fn is_copying(self) -> bool {
        matches!(
            self,
            Ready::Output(_)
                | Ready::Input
                | Ready::ConnectionInput(_)
                | Ready::ConnectionOutput(..)
        )
    }
}

impl Supervisor {
    fn serve(mut self, starter: OwnedFd) -> i32 {
        let mut connection = Connection::new(starter);
        if let Some(attachment) = self.first.take() {
            connection.role = Role::Attached(attachment);
        }
        self.connections.insert(0, connection);
        self.next_connection = 1;
        if let Err(error) = self.start() {
            // As docker: it never ran.
            self.state.status = Status::Created;
            self.state.ports.clear();
            self.state.error = chain(&error);
            self.state.exit_code = error.exit_code();
            self.state.finished_at = rfc3339(SystemTime::now());
            self.end_holding();
            let start = match &error {
                SandboxError::Start(error) => Some(error.clone()),
                _ => None,
            };
            let failed = Answer::Failed {
                start,
                message: chain(&error),
            };
            self.answer(0, &failed, &[]);
            return 0;
        }
        let pid = self.state.pid;
        if !self.answer(0, &Answer::Started { pid }, &[]) {
            self.lose(0);
        }
        if let Some(first) = self.connections.get_mut(&0)
            && matches!(first.role, Role::Asking)
        {
            first.role = Role::Waiting;
        }
        while self.turn() {}
        let is_owned = self
            .owner
            .is_some_and(|owner| self.connections.contains_key(&owner));
        self.end_holding();
        self.tell_end();
        if is_owned || self.plan.afterwards.is_empty() {
            return 0;
        }
        let _error = Command::new("/proc/self/exe")
            .args(&self.plan.afterwards)
            .exec();
        1
    }

    /// Starts the process.
    fn start(&mut self) -> Result<(), SandboxError> {
        let stdin = match self.plan.stdin && !self.plan.sandbox.process.terminal {
            true => Stream::Pipe,
            false => Stream::Null,
        };
        let stdio = match self.plan.sandbox.process.terminal {
            true => Stdio::default(),
            false => Stdio {
                stdin,
                stdout: Stream::Pipe,
                stderr: Stream::Pipe,
            },
        };
        // First of all: without its ports it is not started.
        let doors = ports::bind(&self.plan.ports)?;
        let others = self.plan.joined.iter().map(|folder| process_of(folder));
        let others = others.collect::<Result<Vec<OwnedFd>, _>>()?;
        let others: Vec<BorrowedFd<'_>> = others.iter().map(AsFd::as_fd).collect();
        let mut sandbox = Sandbox::spawn_beside(&self.plan.sandbox, stdio, &others)?;
        let io = |source: io::Error| SandboxError::Io {
            what: "set up the container's streams",
            source,
        };
        let (outputs, input) = match sandbox.take_terminal() {
            Some(master) => {
                let input = match self.plan.stdin {
                    true => Some(master.try_clone().map_err(io)?),
                    false => None,
                };
                ([Some(master), None], input)
            }
            None => {
                let outputs = [sandbox.stdout.take(), sandbox.stderr.take()];
                let input = sandbox.stdin.take().map(OwnedFd::from);
                (outputs.map(|file| file.map(OwnedFd::from)), input)
            }
        };
        for fd in outputs.iter().chain([&input]).flatten() {
            connection::unblock(fd.as_fd()).map_err(io)?;
        }
        self.state.status = Status::Running;
        self.state.pid = processes::pid_of(sandbox.pidfd()).unwrap_or(0);
        self.state.started_at = rfc3339(SystemTime::now());
        self.state.error.clear();
        self.state.oom_killed = false;
        let questions = sandbox.take_names().filter(|_| !self.plan.names.is_empty());
        self.state.ports = doors.iter().map(|door| door.published).collect();
        let (addresses, needs_entering) = self.plan.sandbox.network.reached_at();
        let proxy = match doors.is_empty() {
            true => None,
            false => {
                let inside = Inside {
                    process: needs_entering.then(|| sandbox.pidfd()),
                    addresses,
                };
                let proxy = Proxy::start(doors, &inside);
                Some(proxy.map_err(|source| SandboxError::Io {
                    what: "carry what arrives at the container's ports",
                    source,
                })?)
            }
        };
        self.running = Some(Running {
            sandbox,
            proxy,
            questions,
            names: None,
            since: Instant::now(),
            outputs,
            input,
            typed: Vec::new(),
            has_ended: false,
            frozen: None,
        });
        if let Some(checker) = &mut self.checker {
            self.state.health = Some(checker.begin());
        }
        self.keep_state();
        Ok(())
    }

    /// Waits for something, does what is to be done; false when the container has ended for good.
    fn turn(&mut self) -> bool {
        if std::mem::take(&mut self.has_worked) {
            // It may be weeks until anything happens.
            trim_heap();
            self.pages.iter().for_each(FilePages::let_go);
        }
        let ready = self.wait();
        for (what, events) in ready {
            self.has_worked |= !what.is_copying();
            self.react(what, events);
        }
        self.on_time();
        let is_over = self.running.as_ref().is_some_and(|running| {
            running.has_ended && running.outputs.iter().all(Option::is_none)
        });
        match is_over && !self.connections.values().any(Connection::is_behind) {
            true => self.ended(),
            false => self.running.is_some() || self.restart_at.is_some(),
        }
    }

    /// The descriptors that are ready.
    fn wait(&self) -> Vec<(Ready, PollFlags)> {
        let (input, output) = (PollFlags::IN, PollFlags::OUT);
        let mut watched: Vec<(Ready, BorrowedFd<'_>, PollFlags)> =
            vec![(Ready::Signals, self.signals.as_fd(), input)];
        if self.connections.len() < CONNECTIONS_MAX {
            watched.push((Ready::Listener, self.listener.as_fd(), input));
        }
        let is_behind = self.connections.values().any(Connection::is_behind);
        let mut has_room = false;
        if let Some(running) = &self.running {
            if !running.has_ended {
                watched.push((Ready::Process, running.sandbox.pidfd(), input));
            }
            for (number, fd) in running.outputs.iter().enumerate() {
                // Who is attached and does not read makes the container wait, as a terminal would.
                if let Some(fd) = fd.as_ref().filter(|_| !is_behind) {
                    watched.push((Ready::Output(number), fd.as_fd(), input));
                }
            }
            if let Some(sockets) = &running.questions {
                watched.push((Ready::Question, sockets.datagrams.as_fd(), input));
                watched.push((Ready::Question, sockets.streams.as_fd(), input));
            }
            if let Some(fd) = &running.input {
                has_room = running.typed.is_empty();
                if !has_room {
                    watched.push((Ready::Input, fd.as_fd(), output));
                }
            }
        }
        for (id, connection) in &self.connections {
            watched.push((Ready::Connection(*id), connection.socket.as_fd(), input));
            match &connection.role {
                Role::Attached(attachment) => {
                    if let Some(fd) = attachment.stdin.as_ref().filter(|_| has_room) {
                        watched.push((Ready::ConnectionInput(*id), fd.as_fd(), input));
                    }
                    for (number, outlet) in attachment.outlets.iter().enumerate() {
                        if let Some(outlet) = outlet.as_ref().filter(|o| o.is_behind()) {
                            let ready = Ready::ConnectionOutput(*id, number);
                            watched.push((ready, outlet.fd.as_fd(), output));
                        }
                    }
                }
                Role::Executing(sandbox) => {
                    watched.push((Ready::Executed(*id), sandbox.pidfd(), input));
                }
                Role::Asking | Role::Waiting => {}
            }
        }
        for sandbox in &self.adrift {
            watched.push((Ready::Adrift, sandbox.pidfd(), input));
        }
        if let Some(checker) = &self.checker {
            if let Some(process) = checker.process() {
                watched.push((Ready::Check, process, input));
            }
            if let Some(printed) = checker.printed() {
                watched.push((Ready::CheckOutput, printed, input));
            }
        }
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .map(|(_, fd, events)| PollFd::from_borrowed_fd(*fd, *events))
            .collect();
        let timeout = self.next_time().map(|at| {
            let rest = at.saturating_duration_since(Instant::now());
            // Rounded up: not to come a little too early, again and again.
            let rest = rest + Duration::from_micros(999);
            rustix::event::Timespec {
                tv_sec: i64::try_from(rest.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: rest.subsec_nanos().into(),
            }
        });
        if poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = watched.iter().zip(&fds);
        ready
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((what, _, _), fd)| (*what, fd.revents()))
            .collect()
    }

    fn next_time(&self) -> Option<Instant> {
        let check = match &self.running {
            Some(_) if self.state.status == Status::Running => {
                self.checker.as_ref().and_then(Checker::next_time)
            }
            _ => None,
        };
        [self.restart_at, self.kill_at, check]
            .into_iter()
            .flatten()
            .min()
    }

    fn react(&mut self, what: Ready, events: PollFlags) {
        match what {
            Ready::Listener => self.accept(),
            Ready::Signals => {
                while let Ok(Some(signal)) = self.signals.take() {
                    let asks_to_end =
                        [libc::SIGTERM, libc::SIGINT, libc::SIGQUIT].contains(&signal);
                    if asks_to_end {
                        self.stop(None, None);
                    }
                }
            }
            Ready::Process => {
                if let Some(running) = &mut self.running {
                    running.has_ended = true;
                    running.input = None;
                    running.typed.clear();
                }
            }
            Ready::Output(number) => self.copy_output(number),
            Ready::Input => self.type_on(),
            Ready::Connection(id) => self.hear(id, events),
            Ready::ConnectionInput(id) => self.copy_input(id),
            Ready::ConnectionOutput(id, number) => {
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.flush(number);
                }
            }
            Ready::Executed(id) => {
                let Some(connection) = self.connections.get_mut(&id) else {
                    return;
                };
                let Role::Executing(sandbox) = &mut connection.role else {
                    return;
                };
                let code = sandbox.wait().map_or(255, |status| status.code() & 0xff);
                connection.role = Role::Asking;
                self.answer(id, &Answer::Exited { code }, &[]);
            }
            Ready::Adrift => {
                let still_runs = |sandbox: &mut Sandbox| matches!(sandbox.try_wait(), Ok(None));
                self.adrift.retain_mut(still_runs);
            }
            // Many containers never ask: only now is there a process that answers. Without one they hear nothing, as when no
            // server can be reached.
            Ready::Question => {
                if let Some(running) = &mut self.running
                    && let Some(sockets) = running.questions.take()
                {
                    running.names = NameServer::start(&self.plan.names, sockets).ok();
                }
            }
            Ready::Check | Ready::CheckOutput => {
                if let Some(checker) = &mut self.checker
                    && let Some(health) = &mut self.state.health
                    && checker.react(matches!(what, Ready::Check), health)
                {
                    self.keep_state();
                }
            }
        }
    }

    /// Does what is due.
    fn on_time(&mut self) {
        let now = Instant::now();
        if self.kill_at.is_some_and(|at| at <= now) {
            self.kill_at = None;
            self.signal(libc::SIGKILL);
        }
        if self.restart_at.is_some_and(|at| at <= now) {
            self.restart_at = None;
            if let Err(error) = self.start() {
                self.state.error = chain(&error);
                self.state.exit_code = error.exit_code();
                self.after_end(Duration::ZERO);
            }
        }
        let join = self.join_spec(None, false);
        if let Some(running) = self.running.as_ref().filter(|running| !running.has_ended)
            && self.state.status == Status::Running
            && let Some(checker) = &mut self.checker
            && let Some(health) = &mut self.state.health
            && checker.on_time(now, &running.sandbox, join, health)
        {
            self.keep_state();
        }
    }

    /// The process has ended and all that it printed was copied; false when that was the end of the container.
    fn ended(&mut self) -> bool {
        let Some(mut running) = self.running.take() else {
            return false;
        };
        running.names = None;
        running.proxy = None;
        self.kill_at = None;
        self.state.error.clear();
        self.state.exit_code = match running.sandbox.wait() {
            Ok(status) => status.code() & 0xff,
            Err(error) => {
                self.state.error = chain(&error);
                // The helper was killed, and the kernel killed the container with it.
                128 + libc::SIGKILL
            }
        };
        let usage = running.sandbox.usage().unwrap_or_default();
        self.state.oom_killed = usage.oom_kills > 0;
        if let Some(checker) = &mut self.checker {
            checker.stop();
        }
        if let Some(log) = &mut self.log {
            let _kept = log.finish(&self.folder);
        }
        self.after_end(running.since.elapsed())
    }

    /// Decides what comes after an end; whether the process is started again.
    fn after_end(&mut self, ran: Duration) -> bool {
        self.state.finished_at = rfc3339(SystemTime::now());
        self.state.pid = 0;
        self.state.ports.clear();
        let applies = self
            .plan
            .restart
            .applies(self.state.exit_code, self.state.restarts);
        if self.state.stopped || !applies {
            self.state.status = Status::Exited;
            return false;
        }
        if ran >= BACK_OFF_RESET {
            self.back_off = BACK_OFF_MIN;
        }
        self.restart_at = Some(Instant::now() + self.back_off);
        self.back_off = (self.back_off * 2).min(BACK_OFF_MAX);
        self.state.restarts += 1;
        self.state.status = Status::Restarting;
        self.keep_state();
        self.tell_end();
        true
    }

    /// Lets go of the container: from here on anyone may start or remove it.
    fn end_holding(&mut self) {
        let _removed = std::fs::remove_file("socket");
        self.keep_state();
        self.kept.clear();
        let _freed = rustix::fs::flock(&self.alive, rustix::fs::FlockOperation::Unlock);
    }

    /// Tells all who wait for the process that it has ended.
    fn tell_end(&mut self) {
        let code = self.state.exit_code;
        let waiting: Vec<u64> = self
            .connections
            .iter()
            .filter(|(_, connection)| connection.waits_for_end())
            .map(|(id, _)| *id)
            .collect();
        for id in waiting {
            if let Some(connection) = self.connections.get_mut(&id) {
                // Closes the streams first: who is attached reads them to their ends.
                connection.role = Role::Asking;
            }
            self.answer(id, &Answer::Exited { code }, &[]);
        }
    }

    /// A state that cannot be written is one that the next write puts right; nobody is there to be told.
    fn keep_state(&self) {
        let _kept = self.folder.write_state(&self.state);
    }

    fn accept(&mut self) {
        let flags = SocketFlags::CLOEXEC;
        if let Ok(socket) = rustix::net::accept_with(&self.listener, flags) {
            self.connections
                .insert(self.next_connection, Connection::new(socket));
            self.next_connection += 1;
        }
    }

    /// Whether it was heard.
    fn answer(&mut self, id: u64, answer: &Answer, fds: &[BorrowedFd<'_>]) -> bool {
        let Some(connection) = self.connections.get(&id) else {
            return false;
        };
        wire::send(&connection.socket, answer, fds).is_ok()
    }

    /// A connection has ended.
    fn lose(&mut self, id: u64) {
        let lost = self.connections.remove(&id);
        if let Some(Connection {
            role: Role::Executing(sandbox),
            ..
        }) = lost
        {
            // As docker: what was executed lives on.
            self.adrift.push(sandbox);
        }
        if self.owner == Some(id) {
            self.state.stopped = true;
            self.restart_at = None;
            self.signal(libc::SIGKILL);
        }
    }

    fn hear(&mut self, id: u64, events: PollFlags) {
        let Some(connection) = self.connections.get(&id) else {
            return;
        };
        if !events.contains(PollFlags::IN) {
            return self.lose(id);
        }
        match wire::receive::<Request>(&connection.socket) {
            Ok(Some((request, fds))) => self.obey(id, request, fds),
            Ok(None) | Err(_) => self.lose(id),
        }
    }

    fn obey(&mut self, id: u64, request: Request, fds: Vec<OwnedFd>) {
        let refuse = |message: &str| Answer::Refused {
            message: message.to_owned(),
        };
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        match request {
            Request::Start { .. } => {
                self.answer(id, &refuse("it was started before"), &[]);
            }
            Request::Attach { stdin } => {
                let answer = match Attachment::of(fds.into_iter(), stdin && self.plan.stdin) {
                    Ok(attachment) => {
                        connection.role = Role::Attached(attachment);
                        Answer::Done
                    }
                    Err(error) => refuse(&error.to_string()),
                };
                self.answer(id, &answer, &[]);
            }
            Request::Detach => {
                connection.role = Role::Asking;
                if self.owner == Some(id) {
                    self.owner = None;
                }
            }
            Request::Signal { signal } => match &connection.role {
                Role::Executing(sandbox) => drop(sandbox.kill(signal)),
                Role::Attached(_) | Role::Waiting => self.signal(signal),
                Role::Asking => {
                    let answer = match self.running.is_some() {
                        true => {
                            // As docker: who kills a container does not want it back.
                            self.state.stopped |=
                                signal == libc::SIGKILL || signal == self.plan.stop_signal;
                            self.signal(signal);
                            Answer::Done
                        }
                        false => refuse("it is not running"),
                    };
                    self.answer(id, &answer, &[]);
                }
            },
            Request::Resize { columns, rows } => {
                let master = self
                    .running
                    .as_ref()
                    .and_then(|running| running.outputs[0].as_ref());
                if let Some(master) = master.filter(|_| self.plan.sandbox.process.terminal) {
                    let size = rustix::termios::Winsize {
                        ws_col: columns,
                        ws_row: rows,
                        ws_xpixel: 0,
                        ws_ypixel: 0,
                    };
                    let _resized = rustix::termios::tcsetwinsize(master, size);
                }
            }
            Request::Wait => connection.role = Role::Waiting,
            Request::Stop { signal, timeout_s } => {
                connection.role = Role::Waiting;
                self.stop(signal, timeout_s);
            }
            Request::Exec {
                process,
                privileged,
            } => self.execute(id, *process, privileged, fds),
            Request::Root => {
                let root = match self.state.pid {
                    0 => Err(Errno::SRCH),
                    pid => processes::root_of(pid),
                };
                match root {
                    Ok(root) => self.answer(id, &Answer::Done, &[root.as_fd()]),
                    Err(errno) => {
                        self.answer(id, &refuse(&io::Error::from(errno).to_string()), &[])
                    }
                };
            }
            Request::Processes => {
                let rows = processes::list(self.state.pid).unwrap_or_default();
                for some in rows.chunks(processes::ROWS_AT_ONCE) {
                    self.answer(id, &Answer::Processes(some.to_vec()), &[]);
                }
                self.answer(id, &Answer::Processes(Vec::new()), &[]);
            }
            Request::Usage => {
                let answer = match self.state.pid {
                    0 => refuse("it is not running"),
                    pid => {
                        let has_own_network = self.plan.sandbox.network.is_own();
                        Answer::Usage(usage::measure(pid, has_own_network))
                    }
                };
                self.answer(id, &answer, &[]);
            }
            Request::Update {
                changed,
                limits,
                restart,
            } => {
                let answer = match self.update(&changed, *limits, restart) {
                    Ok(()) => Answer::Done,
                    Err(error) => refuse(&chain(&error)),
                };
                self.answer(id, &answer, &[]);
            }
            Request::Pause { paused } => {
                let answer = match self.pause(paused) {
                    Ok(()) => Answer::Done,
                    Err(why) => refuse(&why),
                };
                self.answer(id, &answer, &[]);
            }
        }
    }

    fn signal(&mut self, signal: i32) {
        if let Some(running) = &self.running {
            let _sent = running.sandbox.kill(signal);
        }
        // As docker: what is asked to end has to move for that.
        if signal == libc::SIGKILL || signal == self.plan.stop_signal {
            self.go_on();
        }
    }

    fn update(
        &mut self,
        changed: &Limits,
        limits: Limits,
        restart: Restart,
    ) -> Result<(), StartError> {
        if self.state.pid != 0 && !changed.is_empty() {
            cgroup::update(self.state.pid, changed)?;
        }
        self.plan.sandbox.limits = limits;
        self.plan.restart = restart;
        Ok(())
    }

    fn pause(&mut self, paused: bool) -> Result<(), String> {
        match (paused, self.state.status) {
            (true, Status::Running) => {
                let frozen = freezer::freeze(self.state.pid).map_err(|error| error.to_string())?;
                if let Some(running) = &mut self.running {
                    running.frozen = Some(frozen);
                }
                self.state.status = Status::Paused;
                self.keep_state();
            }
            (true, Status::Paused) => return Err("the container is already paused".to_owned()),
            (false, Status::Paused) => self.go_on(),
            (false, _) => return Err("the container is not paused".to_owned()),
            (true, _) => return Err("the container is not running".to_owned()),
        }
        Ok(())
    }

    /// What was paused moves on.
    fn go_on(&mut self) {
        let frozen = self
            .running
            .as_mut()
            .and_then(|running| running.frozen.take());
        if let Some(frozen) = frozen {
            let _gone_on = frozen.thaw();
            self.state.status = Status::Running;
            self.keep_state();
        }
    }

    /// Asks the process to end, for good.
    fn stop(&mut self, signal: Option<i32>, timeout_s: Option<i64>) {
        self.state.stopped = true;
        if self.running.is_none() {
            // It would have been started again.
            self.restart_at = None;
            self.state.status = Status::Exited;
            return;
        }
        let timeout = match timeout_s {
            None => self.plan.stop_timeout_s,
            Some(seconds) => u64::try_from(seconds).ok(),
        };
        self.signal(signal.unwrap_or(self.plan.stop_signal));
        self.go_on();
        self.kill_at = timeout.map(|seconds| Instant::now() + Duration::from_secs(seconds));
        self.keep_state();
    }

    fn join_spec(&self, process: Option<ProcessSpec>, privileged: bool) -> JoinSpec {
        let sandbox = &self.plan.sandbox;
        JoinSpec {
            process: process.unwrap_or_else(|| sandbox.process.clone()),
            confinement: match privileged {
                true => Confinement::none(),
                false => sandbox.confinement.clone(),
            },
            ulimits: sandbox.ulimits.clone(),
        }
    }

    fn execute(&mut self, id: u64, process: ProcessSpec, privileged: bool, fds: Vec<OwnedFd>) {
        let failed = |start, message: &str| Answer::Failed {
            start,
            message: message.to_owned(),
        };
        let is_terminal = process.terminal;
        let spec = self.join_spec(Some(process), privileged);
        let Some(running) = self.running.as_ref().filter(|running| !running.has_ended) else {
            self.answer(id, &failed(None, "the container is not running"), &[]);
            return;
        };
        if running.frozen.is_some() {
            let message = "the container is paused: unpause it first";
            self.answer(id, &failed(None, message), &[]);
            return;
        }
        let mut fds = fds.into_iter();
        let mut stream = || match (fds.next(), is_terminal) {
            (Some(fd), false) => Stream::Fd(fd),
            _ => Stream::Null,
        };
        let stdio = Stdio {
            stdin: stream(),
            stdout: stream(),
            stderr: stream(),
        };
        match running.sandbox.join(&spec, stdio) {
            Ok(mut sandbox) => {
                let terminal = sandbox.take_terminal();
                let pid = processes::pid_of(sandbox.pidfd()).unwrap_or(0);
                if let Some(connection) = self.connections.get_mut(&id) {
                    connection.role = Role::Executing(sandbox);
                }
                let fds: Vec<BorrowedFd<'_>> = terminal.iter().map(AsFd::as_fd).collect();
                self.answer(id, &Answer::Started { pid }, &fds);
            }
            Err(error) => {
                let message = chain(&error);
                let start = match error {
                    SandboxError::Start(start) => Some(start),
                    _ => None,
                };
                self.answer(id, &failed(start, &message), &[]);
            }
        }
    }

    /// From the process to the log and to who is attached.
    fn copy_output(&mut self, number: usize) {
        let Some(output) = self
            .running
            .as_mut()
            .map(|running| &mut running.outputs[number])
        else {
            return;
        };
        let Some(fd) = output else {
            return;
        };
        let mut buffer = [0; PIECE_BYTES];
        match rustix::io::read(&*fd, &mut buffer) {
            Ok(count) if count > 0 => {
                let printed = &buffer[..count];
                let source = match number {
                    0 => Source::Stdout,
                    _ => Source::Stderr,
                };
                if let Some(log) = &mut self.log {
                    // A full disk must not stop the container.
                    let _kept = log.write(&self.folder, source, printed);
                }
                for connection in self.connections.values_mut() {
                    connection.print(number, printed);
                }
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // EIO is how a terminal says that no one has its other side open.
            Ok(_) | Err(_) => *output = None,
        }
    }

    /// From who is attached to the process.
    fn copy_input(&mut self, id: u64) {
        let Some(connection) = self.connections.get_mut(&id) else {
            return;
        };
        let Role::Attached(attachment) = &mut connection.role else {
            return;
        };
        let (Some(fd), Some(running)) = (&attachment.stdin, &mut self.running) else {
            return;
        };
        let mut buffer = [0; 4096];
        match rustix::io::read(fd, &mut buffer) {
            Ok(count) if count > 0 => {
                running.typed.extend_from_slice(&buffer[..count]);
                self.type_on();
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Ok(_) | Err(_) => {
                attachment.stdin = None;
                if self.plan.stdin_once && !self.plan.sandbox.process.terminal {
                    running.input = None;
                }
            }
        }
    }

    /// Gives the process what it takes of its input.
    fn type_on(&mut self) {
        let Some(running) = &mut self.running else {
            return;
        };
        let Some(fd) = &running.input else {
            return running.typed.clear();
        };
        // A terminal takes few bytes at a time.
        match rustix::io::write(fd, &running.typed) {
            Ok(count) => drop(running.typed.drain(..count)),
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => {
                running.typed.clear();
                running.input = None;
            }
        }
    }
}

/// Process 1 of another container.
fn process_of(folder: &Path) -> Result<OwnedFd, SandboxError> {
    let process = Folder::open(folder).and_then(|folder| folder.process_1());
    let reason = match process {
        Ok(Some(process)) => return Ok(process),
        Ok(None) => "it does not run".to_owned(),
        Err(error) => chain(&error),
    };
    Err(StartError::Join { reason }.into())
}

/// An error with its causes.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !text.ends_with(&said) {
            text = format!("{text}: {said}");
        }
        cause = error.source();
    }
    text
}
