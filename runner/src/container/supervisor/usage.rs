//! What a container uses: by its control groups, and where it has none by what `/proc` says of its processes, which does not
//! know what ended ones used.

use std::fs;
use std::path::Path;

use super::processes;
use crate::cgroup::{self, Group};
use crate::container::protocol::ContainerUsage;

/// Clock ticks per second, which Linux shows to programs whatever it counts in.
const TICKS_PER_SECOND: u64 = 100;

/// Measures a container, by its process 1.
pub(super) fn measure(process_1: u32, has_own_network: bool) -> ContainerUsage {
    let groups = cgroup::groups_of(process_1);
    let rows = processes::list(process_1).unwrap_or_default();
    let sum = |of: fn(&crate::container::protocol::ProcessRow) -> u64| rows.iter().map(of).sum();
    let (received_bytes, sent_bytes) = match has_own_network {
        true => network(process_1),
        // As docker: what the host's interfaces carry is not the container's.
        false => (0, 0),
    };
    let (read_bytes, written_bytes) =
        first(&groups, disk).unwrap_or_else(|| disk_of_processes(&rows));
    ContainerUsage {
        cpu_us: first(&groups, processor)
            .unwrap_or_else(|| sum(|row| row.cpu_ticks) * (1_000_000 / TICKS_PER_SECOND)),
        memory_bytes: first(&groups, memory).unwrap_or_else(|| sum(|row| row.resident_bytes)),
        memory_limit: first(&groups, memory_limit),
        pids: first(&groups, pids).unwrap_or_else(|| sum(|row| row.threads)),
        received_bytes,
        sent_bytes,
        read_bytes,
        written_bytes,
    }
}

/// What the first group says that knows.
fn first<T>(groups: &[Group], look: impl Fn(&Group) -> Option<T>) -> Option<T> {
    groups.iter().find_map(look)
}

/// Processor time in microseconds.
fn processor(group: &Group) -> Option<u64> {
    match group.is_unified() {
        true => value(&group.path, "cpu.stat", "usage_usec"),
        false => Some(number(&group.path, "cpuacct.usage")? / 1000),
    }
}

/// Memory that could not be had back by forgetting files, as docker counts it.
fn memory(group: &Group) -> Option<u64> {
    let (used, forgettable) = match group.is_unified() {
        true => ("memory.current", "inactive_file"),
        false => ("memory.usage_in_bytes", "total_inactive_file"),
    };
    let used = number(&group.path, used)?;
    let forgettable = value(&group.path, "memory.stat", forgettable).unwrap_or(0);
    Some(used.saturating_sub(forgettable))
}

fn memory_limit(group: &Group) -> Option<u64> {
    let file = match group.is_unified() {
        true => "memory.max",
        false => "memory.limit_in_bytes",
    };
    // `max` is no number; version 1 says the same by one larger than any machine.
    number(&group.path, file).filter(|bytes| *bytes < 1 << 62)
}

fn pids(group: &Group) -> Option<u64> {
    number(&group.path, "pids.current")
}

/// Bytes read from and written to disks.
fn disk(group: &Group) -> Option<(u64, u64)> {
    if group.is_unified() {
        let text = fs::read_to_string(group.path.join("io.stat")).ok()?;
        let sum = |key: &str| {
            let words = text.split_ascii_whitespace();
            words
                .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
                .sum()
        };
        return Some((sum("rbytes="), sum("wbytes=")));
    }
    let text = fs::read_to_string(group.path.join("blkio.throttle.io_service_bytes")).ok()?;
    let sum = |kind: &str| {
        let lines = text.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        lines
            .filter(|words| words.get(1) == Some(&kind))
            .filter_map(|words| words.get(2)?.parse::<u64>().ok())
            .sum()
    };
    Some((sum("Read"), sum("Write")))
}

fn disk_of_processes(rows: &[crate::container::protocol::ProcessRow]) -> (u64, u64) {
    rows.iter().fold((0, 0), |(read, written), row| {
        let path = format!("/proc/{}", row.pid);
        let of = |key| value(Path::new(&path), "io", key).unwrap_or(0);
        (read + of("read_bytes:"), written + of("write_bytes:"))
    })
}

/// Bytes received and sent on all interfaces but loopback.
fn network(process_1: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{process_1}/net/dev")).unwrap_or_default();
    interfaces(&text)
}

fn interfaces(text: &str) -> (u64, u64) {
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(name, _)| name.trim() != "lo")
        .fold((0, 0), |(received, sent), (_, numbers)| {
            let numbers: Vec<u64> = numbers
                .split_whitespace()
                .map(|number| number.parse().unwrap_or(0))
                .collect();
            let at = |index: usize| numbers.get(index).copied().unwrap_or(0);
            (received + at(0), sent + at(8))
        })
}

/// The only number of a file.
fn number(folder: &Path, file: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.trim().parse().ok()
}

/// The number after `key` in lines of `key value`.
fn value(folder: &Path, file: &str, key: &str) -> Option<u64> {
    let text = fs::read_to_string(folder.join(file)).ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(unified: bool, files: &[(&str, &str)]) -> (tempfile::TempDir, Group) {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        let group = Group {
            path: dir.path().to_owned(),
            controllers: match unified {
                true => Vec::new(),
                false => vec!["memory".to_owned()],
            },
        };
        (dir, group)
    }

    #[test]
    fn groups_of_version_2() {
        let (_dir, group) = group(
            true,
            &[
                ("cpu.stat", "usage_usec 1234\nuser_usec 1000\n"),
                ("memory.current", "5000\n"),
                ("memory.stat", "anon 1000\ninactive_file 2000\n"),
                ("memory.max", "max\n"),
                ("pids.current", "7\n"),
                (
                    "io.stat",
                    "8:0 rbytes=100 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2\n",
                ),
            ],
        );
        assert_eq!(processor(&group), Some(1234));
        assert_eq!(memory(&group), Some(3000));
        assert_eq!(memory_limit(&group), None);
        assert_eq!(pids(&group), Some(7));
        assert_eq!(disk(&group), Some((101, 22)));
    }

    #[test]
    fn groups_of_version_1() {
        let (_dir, group) = group(
            false,
            &[
                ("cpuacct.usage", "1234567\n"),
                ("memory.usage_in_bytes", "5000\n"),
                ("memory.stat", "inactive_file 1\ntotal_inactive_file 2000\n"),
                ("memory.limit_in_bytes", "9223372036854771712\n"),
                (
                    "blkio.throttle.io_service_bytes",
                    "8:0 Read 100\n8:0 Write 20\n8:0 Total 120\nTotal 120\n",
                ),
            ],
        );
        assert_eq!(processor(&group), Some(1234));
        assert_eq!(memory(&group), Some(3000));
        assert_eq!(memory_limit(&group), None);
        assert_eq!(pids(&group), None);
        assert_eq!(disk(&group), Some((100, 20)));
    }

    #[test]
    fn interfaces_but_loopback() {
        let text = "Inter-|   Receive                                                |  Transmit\n face |bytes    packets\n    lo:     500 5 0 0 0 0 0 0 500 5 0 0 0 0 0 0\n  eth0:    1000 9 0 0 0 0 0 0 30 2 0 0 0 0 0 0\n  eth1: 1 1 0 0 0 0 0 0 2 1 0 0 0 0 0 0\n";
        assert_eq!(interfaces(text), (1001, 32));
    }
}
