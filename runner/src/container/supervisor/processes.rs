//! What runs in a container, read from the host's `/proc`.

use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

use crate::cgroup;
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

/// The ids of a container's processes, by its process 1, in order: those in its pid namespace, and where others are there too
/// those in its control group.
pub(super) fn pids(process_1: u32) -> io::Result<Vec<u32>> {
    let mut pids: Vec<u32> = match has_own_namespace(process_1)? {
        true => {
            let namespace = |pid: u32| std::fs::read_link(format!("/proc/{pid}/ns/pid"));
            let own = namespace(process_1)?;
            std::fs::read_dir("/proc")?
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .filter(|pid| namespace(*pid).is_ok_and(|namespace: PathBuf| namespace == own))
                .collect()
        }
        false => {
            let group = cgroup::groups_of(process_1).into_iter().next();
            let group = group.ok_or(io::ErrorKind::NotFound)?;
            let text = std::fs::read_to_string(group.path.join("cgroup.procs"))?;
            text.lines().filter_map(|line| line.parse().ok()).collect()
        }
    };
    pids.sort_unstable();
    Ok(pids)
}

/// Whether a process is the first of its pid namespace, which is then its container's alone.
fn has_own_namespace(process_1: u32) -> io::Result<bool> {
    let status = std::fs::read_to_string(format!("/proc/{process_1}/status"))?;
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    Ok(ids.is_some_and(|ids| ids.split_whitespace().next_back() == Some("1")))
}

/// Whether a process is one of a container's, by its process 1.
pub(super) fn is_in(process_1: u32, pid: u32) -> bool {
    pids(process_1).is_ok_and(|pids| pids.contains(&pid))
}

/// A container's processes, by its process 1, by id.
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
