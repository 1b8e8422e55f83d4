//! What runs in a container, read from the host's `/proc`.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::container::protocol::ProcessRow;

/// How many rows surely go into one message.
pub(super) const ROWS_AT_ONCE: usize = 32;
/// How much of a command line is shown: escaped, so many rows of it go into one message.
const COMMAND_BYTES_MAX: u64 = 256;

/// The process that a descriptor stands for, as this one sees it.
pub(super) fn pid_of(pidfd: BorrowedFd<'_>) -> Option<u32> {
    let path = format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd());
    let text = std::fs::read_to_string(path).ok()?;
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok()
}

/// The root directory that a process sees.
pub(super) fn root_of(pid: u32) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(format!("/proc/{pid}/root"), flags, Mode::empty())
}

/// The ids of the processes in the pid namespace of a container's process 1, in order.
pub(super) fn pids(process_1: u32) -> io::Result<Vec<u32>> {
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
    let own = namespace(process_1)?;
    let mut pids: Vec<u32> = std::fs::read_dir("/proc")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| namespace(*pid).is_ok_and(|namespace: PathBuf| namespace == own))
        .collect();
    pids.sort_unstable();
    Ok(pids)
}

/// Whether a process is in the pid namespace of a container's process 1.
pub(super) fn is_in(process_1: u32, pid: u32) -> bool {
    let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = namespace(process_1);
    own.is_some() && namespace(pid) == own
}

/// The processes in the pid namespace of a container's process 1, by id.
pub(super) fn list(process_1: u32) -> io::Result<Vec<ProcessRow>> {
    Ok(pids(process_1)?.into_iter().filter_map(row).collect())
}

/// Whether a process has neither ended nor been stopped.
pub(super) fn moves(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat
        .rsplit_once(") ")
        .and_then(|(_, fields)| fields.chars().next());
    state.is_some_and(|state| !matches!(state, 'T' | 't' | 'Z' | 'X'))
}

/// What the kernel says of a process; `None` if it is gone.
fn row(pid: u32) -> Option<ProcessRow> {
    let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).ok();
    let stat = read("stat")?;
    // `pid (name) state …`, where the name may be anything.
    let (name, fields) = stat.split_once('(')?.1.rsplit_once(')')?;
    let fields: Vec<&str> = fields.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    let status = read("status")?;
    let line = |key: &str| status.lines().find_map(|line| line.strip_prefix(key));
    let uid = line("Uid:")?;
    // In KiB; a process that is ending has none.
    let resident =
        line("VmRSS:").and_then(|text| text.split_whitespace().next()?.parse::<u64>().ok());
    let mut command = Vec::new();
    std::fs::File::open(format!("/proc/{pid}/cmdline"))
        .ok()?
        .take(COMMAND_BYTES_MAX)
        .read_to_end(&mut command)
        .ok()?;
    let command = String::from_utf8_lossy(&command).replace('\0', " ");
    Some(ProcessRow {
        pid,
        parent: u32::try_from(number(1)?).ok()?,
        uid: uid.split_whitespace().next()?.parse().ok()?,
        terminal: u32::try_from(number(4)?).unwrap_or(0),
        cpu_ticks: number(11)? + number(12)?,
        threads: number(17)?,
        start_ticks: number(19)?,
        resident_bytes: resident.unwrap_or(0) * 1024,
        command: match command.trim_end() {
            "" => format!("[{name}]"),
            command => command.to_owned(),
        },
    })
}
