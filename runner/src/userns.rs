//! The whole program in a user namespace, when it was not started by root of the host.
//!
//! In it the program is root over the ids that the administrator gave the user (`/etc/subuid`,
//! `/etc/subgid`), so that layers with many owners can be unpacked and written, and sandboxes are made by
//! the same code as for root. Root of a container, which may not mount, is root over all the container's ids in it.
//! What the program cannot do is what its user cannot do. Where no such namespace is to be had the
//! program goes on as it is, and [`isolation`] says what is left.
//!
//! ```text
//!  outer: the user's process, known to the shell ── forks ──► inner: root of the namespace, does the work
//!    passes signals on, exits as the inner does    ◄── dies with it, and it dies with the outer
//! ```

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::Command;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Signal, WaitId, WaitIdOptions, getegid, geteuid, waitid};
use rustix::thread::CapabilitySet;

use crate::sys::{self, Fork};

/// Larger than any id table of a host.
const TABLE_BYTES_MAX: u64 = 16 << 20;

/// What the outer process passes on. Stopping is left to the kernel's default: the terminal stops and
/// continues both.
const FORWARDED: [i32; 8] = [
    libc::SIGHUP,
    libc::SIGINT,
    libc::SIGQUIT,
    libc::SIGTERM,
    libc::SIGUSR1,
    libc::SIGUSR2,
    libc::SIGWINCH,
    libc::SIGALRM,
];

/// With which privileges the program works, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Privilege {
    /// Root of the host (or of the machine that the program takes for it).
    Root,
    /// Root of a user namespace that maps subordinate ids: files of any owner can be made.
    RootlessSubordinate,
    /// Root of a user namespace that knows no other id: everything belongs to one owner.
    RootlessSingleId,
    /// Root of a container that refuses namespaces.
    RootOfContainer,
    /// An ordinary user to whom namespaces are refused.
    Ordinary,
}

/// How a process can be kept apart from this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolation {
    /// By namespaces.
    Namespaces,
    /// By another root directory, and nothing else.
    Chroot,
    /// Not at all.
    None,
}

/// How this process, once it has called [`enter_user_namespace`], can keep others apart.
pub fn isolation() -> Isolation {
    match rustix::thread::capabilities(None) {
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_ADMIN) => Isolation::Namespaces,
        Ok(sets) if sets.effective.contains(CapabilitySet::SYS_CHROOT) => Isolation::Chroot,
        _ => Isolation::None,
    }
}

impl fmt::Display for Privilege {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::RootlessSubordinate => "rootless with subordinate ids",
            Self::RootlessSingleId => "rootless with a single id",
            Self::RootOfContainer => "root of a container",
            Self::Ordinary => "an ordinary user",
        })
    }
}

/// Why the program has no user namespace.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum UserNsError {
    /// The ids could not be mapped.
    #[error("cannot map ids into the user namespace: {what}")]
    Map {
        /// Which program or file, and what it said.
        what: String,
    },
    /// Another step failed.
    #[error("cannot {what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Gets this process the right to make namespaces and mounts, if need be in a user namespace of its
/// own, and says how; or how it goes on without.
///
/// To be called once, while the process has a single thread, before it reads its input or opens anything
/// that should not be shared. When this forks, the old process never returns from it: it passes signals
/// on, and ends as the new one does.
///
/// # Errors
///
/// When a namespace can be made and not used, as when ids are to be mapped and the tools are missing. The process is then
/// as it was.
pub fn enter_user_namespace() -> Result<Privilege, UserNsError> {
    if geteuid().is_root() && may_administer() {
        return Ok(current());
    }
    let (uid, gid) = (geteuid().as_raw(), getegid().as_raw());
    let maps = Maps::find(uid, gid);

    let io = |what| move |source: io::Error| UserNsError::Io { what, source };
    let pipe = || io::pipe().map_err(io("make a pipe"));
    let (mut ready, says_ready) = pipe()?;
    let (goes, mut go) = pipe()?;
    let mask = sys::block_signals(&sys::SignalSet::of(&FORWARDED).with(libc::SIGCHLD));
    let fork = sys::fork(0, None).map_err(io("fork"))?;
    let (pid, pidfd) = match fork {
        Fork::Child => {
            drop((ready, go));
            sys::set_signal_mask(&mask);
            return inner(says_ready, goes, &maps, (uid, gid));
        }
        Fork::Parent { pid, pidfd } => (pid, pidfd),
    };
    drop((says_ready, goes));

    // One byte: its namespace is there. Anything else: the errno of why it is not.
    let mut answer = Vec::new();
    ready
        .read_to_end(&mut answer)
        .map_err(io("hear from the inner process"))?;
    let mapped = match answer.as_slice() {
        [0] => maps.write(pid),
        // The kernel, or the container around us, does not let us make one.
        [_, ..] => {
            drop(go);
            let _ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
            sys::set_signal_mask(&mask);
            return Ok(without());
        }
        [] => Err(UserNsError::Io {
            what: "hear from the inner process",
            source: io::ErrorKind::UnexpectedEof.into(),
        }),
    };
    if let Err(error) = mapped {
        drop(go);
        let _ended = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED);
        sys::set_signal_mask(&mask);
        return Err(error);
    }
    go.write_all(&[1]).map_err(io("tell the inner process"))?;
    drop(go);
    outer(&pidfd)
}

/// The privilege of this process where user namespaces are refused.
pub(crate) fn without() -> Privilege {
    match isolation() {
        Isolation::None => Privilege::Ordinary,
        Isolation::Namespaces | Isolation::Chroot => Privilege::RootOfContainer,
    }
}

/// Whether this process is one whose user namespace has all the ids that there are here.
pub(crate) fn is_mirrored() -> bool {
    geteuid().is_root() && may_map()
}

/// Which privileges this process has, without changing them: for reports.
///
/// The answer for a process that has not called [`enter_user_namespace`] and is not root is the one that
/// its tables promise.
pub fn privilege() -> Privilege {
    if geteuid().is_root() && may_administer() {
        return current();
    }
    match Maps::find(geteuid().as_raw(), getegid().as_raw()) {
        Maps::Subordinate { .. } | Maps::Mirror { .. } => Privilege::RootlessSubordinate,
        Maps::Single => Privilege::RootlessSingleId,
    }
}

pub(crate) fn may_administer_as_root() -> bool {
    geteuid().is_root() && may_administer()
}

fn may_administer() -> bool {
    rustix::thread::capabilities(None)
        .is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// What an administrator's privilege is worth, by the ids that exist in this namespace.
pub(crate) fn current() -> Privilege {
    match fs::read_to_string("/proc/self/uid_map") {
        Ok(map) => classify(&map),
        Err(_) => Privilege::Root,
    }
}

/// Whether there is one id only here.
pub(crate) fn has_single_id() -> bool {
    current() == Privilege::RootlessSingleId
}

/// Reads a `uid_map`: lines of `inside outside count`.
fn classify(map: &str) -> Privilege {
    let lines: Vec<[u64; 3]> = map
        .lines()
        .filter_map(|line| {
            let mut numbers = line.split_ascii_whitespace().map(|n| n.parse().ok());
            Some([numbers.next()??, numbers.next()??, numbers.next()??])
        })
        .collect();
    match lines.as_slice() {
        [[0, 0, count]] if *count >= u64::from(u32::MAX) => Privilege::Root,
        [[_, _, 1]] => Privilege::RootlessSingleId,
        _ => Privilege::RootlessSubordinate,
    }
}

/// The child's side: makes the namespace, waits until its ids mean something, becomes root in it.
fn inner(
    mut says_ready: io::PipeWriter,
    mut goes: io::PipeReader,
    maps: &Maps,
    (uid, gid): (u32, u32),
) -> Result<Privilege, UserNsError> {
    let parent = rustix::process::getppid();
    let made = sys::unshare_user().and_then(|()| match maps {
        // With one id only the namespace's own process may write its map.
        Maps::Single => write_single(uid, gid),
        Maps::Subordinate { .. } | Maps::Mirror { .. } => Ok(()),
    });
    let answer = match &made {
        Ok(()) => 0,
        Err(error) => error
            .raw_os_error()
            .and_then(|n| u8::try_from(n).ok())
            .unwrap_or(1)
            .max(1),
    };
    let _told = says_ready.write_all(&[answer]);
    drop(says_ready);
    let mut go = [0];
    if made.is_err() || goes.read_exact(&mut go).is_err() {
        // The outer process knows why, and says it.
        sys::exit_now(1);
    }

    let privilege = match maps {
        Maps::Subordinate { .. } | Maps::Mirror { .. } => Privilege::RootlessSubordinate,
        Maps::Single => Privilege::RootlessSingleId,
    };
    let io = |what| {
        move |error: rustix::io::Errno| UserNsError::Io {
            what,
            source: error.into(),
        }
    };
    let (root, wheel) = (rustix::thread::Uid::ROOT, rustix::thread::Gid::ROOT);
    if privilege == Privilege::RootlessSubordinate {
        rustix::thread::set_thread_groups(&[]).map_err(io("drop the groups"))?;
    }
    rustix::thread::set_thread_res_gid(wheel, wheel, wheel).map_err(io("become root inside"))?;
    rustix::thread::set_thread_res_uid(root, root, root).map_err(io("become root inside"))?;
    // A change of identity makes a process undumpable, whose files in /proc then belong to nobody.
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::Dumpable)
        .map_err(io("own its files in /proc"))?;
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))
        .map_err(io("tie the inner process to the outer one"))?;
    if rustix::process::getppid() != parent {
        sys::exit_now(1);
    }
    Ok(privilege)
}

/// The parent's side, for the rest of its life.
fn outer(inner: &OwnedFd) -> ! {
    let mask = sys::SignalSet::of(&FORWARDED);
    let Ok(signals) = sys::signal_fd(&mask) else {
        sys::exit_now(125)
    };
    loop {
        let mut fds = [
            PollFd::new(inner, PollFlags::IN),
            PollFd::new(&signals, PollFlags::IN),
        ];
        let _ready = poll(&mut fds, None);
        if !fds[0].revents().is_empty() {
            break;
        }
        while let Ok(Some(arrived)) = sys::read_signal(signals.as_fd()) {
            // What a terminal sends reaches the inner process too: same process group.
            if !arrived.by_kernel {
                let _sent = sys::send_signal(inner.as_fd(), arrived.signal);
            }
        }
    }
    match waitid(WaitId::PidFd(inner.as_fd()), WaitIdOptions::EXITED) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => sys::exit_now(code),
            (None, Some(signal)) => {
                // As it ended, so do we, for whoever started us; by its number if that fails.
                if signal != libc::SIGKILL {
                    let _limit = rustix::process::setrlimit(
                        rustix::process::Resource::Core,
                        rustix::process::Rlimit {
                            current: Some(0),
                            maximum: Some(0),
                        },
                    );
                    sys::reset_signals();
                    if let Some(signal) = Signal::from_named_raw(signal) {
                        let own = rustix::process::getpid();
                        let _killed = rustix::process::kill_process(own, signal);
                    }
                }
                sys::exit_now(128 + signal)
            }
            (None, None) => sys::exit_now(125),
        },
        _ => sys::exit_now(125),
    }
}

/// A range of ids that the user may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    start: u64,
    count: u64,
}

/// How ids inside are to be mapped.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Maps {
    /// The user as root, then the subordinate ids from 1 on.
    Subordinate {
        uid: u32,
        gid: u32,
        uids: Vec<Range>,
        gids: Vec<Range>,
    },
    /// Every id that there is, as itself: for root of a container.
    Mirror { uids: Vec<Range>, gids: Vec<Range> },
    /// The user as root, and nothing else.
    Single,
}

/// One more than the last id of a mirrored map, which so is never mistaken for that of the host: one less than there are.
const MIRROR_END: u64 = u32::MAX as u64 - 1;

impl Maps {
    fn find(uid: u32, gid: u32) -> Self {
        let name = read_table("/etc/passwd").and_then(|table| name_of(&table, uid));
        let find = |path| {
            read_table(path)
                .map(|t| ranges(&t, name.as_deref(), uid))
                .unwrap_or_default()
        };
        if uid == 0 && may_map() {
            let own = |map: &str| mirrored(&fs::read_to_string(map).unwrap_or_default());
            return Self::Mirror {
                uids: own("/proc/self/uid_map"),
                gids: own("/proc/self/gid_map"),
            };
        }
        let (uids, gids) = (find("/etc/subuid"), find("/etc/subgid"));
        if uids.is_empty() || gids.is_empty() {
            return Self::Single;
        }
        Self::Subordinate {
            uid,
            gid,
            uids,
            gids,
        }
    }

    /// Writes the maps of process `pid` with the set-user-id tools that check them against the tables.
    fn write(&self, pid: i32) -> Result<(), UserNsError> {
        let (uid, gid, uids, gids) = match self {
            Self::Subordinate {
                uid,
                gid,
                uids,
                gids,
            } => (uid, gid, uids, gids),
            Self::Mirror { uids, gids } => return write_mirror(pid, uids, gids),
            Self::Single => return Ok(()),
        };
        for (tool, own, ranges) in [("newuidmap", uid, uids), ("newgidmap", gid, gids)] {
            let output = Command::new(tool)
                .arg(pid.to_string())
                .args(map_lines(*own, ranges).iter().map(u64::to_string))
                .output()
                .map_err(|error| UserNsError::Map {
                    what: format!("`{tool}`: {error} (Debian's package `uidmap` has it)"),
                })?;
            if !output.status.success() {
                let said = String::from_utf8_lossy(&output.stderr);
                let what = format!("`{tool}` ended with {}: {}", output.status, said.trim());
                return Err(UserNsError::Map { what });
            }
        }
        Ok(())
    }
}

/// Whether this process may map any of the ids that it has in a namespace that it makes.
fn may_map() -> bool {
    let needed = CapabilitySet::SETUID | CapabilitySet::SETGID | CapabilitySet::SETFCAP;
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(needed))
}

/// The ids of this namespace, by its map.
fn mirrored(map: &str) -> Vec<Range> {
    map.lines()
        .filter_map(|line| {
            let mut numbers = line
                .split_ascii_whitespace()
                .map(|number| number.parse().ok());
            let (start, _, count): (u64, Option<u64>, u64) =
                (numbers.next()??, numbers.next()?, numbers.next()??);
            let end = start.checked_add(count)?.min(MIRROR_END);
            Some(Range {
                start,
                count: end.checked_sub(start).filter(|count| *count > 0)?,
            })
        })
        .collect()
}

fn write_mirror(pid: i32, uids: &[Range], gids: &[Range]) -> Result<(), UserNsError> {
    for (map, ranges) in [("uid_map", uids), ("gid_map", gids)] {
        let lines: Vec<String> = ranges
            .iter()
            .map(|Range { start, count }| format!("{start} {start} {count}\n"))
            .collect();
        fs::write(format!("/proc/{pid}/{map}"), lines.concat()).map_err(|error| {
            UserNsError::Map {
                what: format!("`{map}`: {error}"),
            }
        })?;
    }
    Ok(())
}

fn write_single(uid: u32, gid: u32) -> io::Result<()> {
    // An ordinary user may map a group only after giving up on changing groups.
    fs::write("/proc/self/setgroups", "deny")?;
    fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
    fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
}

/// Triples of inside, outside, count.
fn map_lines(own: u32, ranges: &[Range]) -> Vec<u64> {
    let mut lines = vec![0, u64::from(own), 1];
    let mut next = 1;
    for range in ranges {
        lines.extend([next, range.start, range.count]);
        next += range.count;
    }
    lines
}

/// The name of `uid` in `/etc/passwd`'s text.
fn name_of(table: &str, uid: u32) -> Option<String> {
    table.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(uid)).then(|| name.to_owned())
    })
}

/// The ranges of a user in a table of `name or uid:start:count`, in order.
fn ranges(table: &str, name: Option<&str>, uid: u32) -> Vec<Range> {
    let id = uid.to_string();
    table
        .lines()
        .filter_map(|line| {
            let mut fields = line.trim().split(':');
            let owner = fields.next()?;
            if Some(owner) != name && owner != id {
                return None;
            }
            let start: u64 = fields.next()?.parse().ok()?;
            let count: u64 = fields.next()?.parse().ok()?;
            let end = start.checked_add(count)?;
            (count > 0 && end <= u64::from(u32::MAX)).then_some(Range { start, count })
        })
        .collect()
}

fn read_table(path: &str) -> Option<String> {
    let mut bytes = Vec::new();
    File::open(path)
        .ok()?
        .take(TABLE_BYTES_MAX)
        .read_to_end(&mut bytes)
        .ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn privileges_by_map() {
        for (map, expect) in [
            ("         0          0 4294967295\n", Privilege::Root),
            (
                "         0       1000          1\n",
                Privilege::RootlessSingleId,
            ),
            ("0 1000 1\n1 100000 65536\n", Privilege::RootlessSubordinate),
            ("0 100000 65536\n", Privilege::RootlessSubordinate),
        ] {
            assert_eq!(classify(map), expect, "{map}");
        }
    }

    #[test]
    fn tables_of_subordinate_ids() {
        let table = "other:1:1\n\
            me:100000:65536\n\
            1000:300000:10\n\
            me:broken:1\n\
            me:4294967000:1000\n\
            me:5:0\n";
        let found = ranges(table, Some("me"), 1000);
        assert_eq!(
            found,
            [
                Range {
                    start: 100_000,
                    count: 65536
                },
                Range {
                    start: 300_000,
                    count: 10
                }
            ]
        );
        assert_eq!(
            map_lines(1000, &found),
            [0, 1000, 1, 1, 100_000, 65536, 65537, 300_000, 10]
        );
        assert_eq!(ranges(table, None, 7), []);
        assert_eq!(
            name_of("root:x:0:0\nme:x:1000:1000\n", 1000).as_deref(),
            Some("me")
        );
        assert_eq!(name_of("root:x:0:0\n", 1000), None);
    }
}
