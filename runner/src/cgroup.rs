//! The sandbox's control group: limits, and what its processes used. Version 2, and version 1 where
//! that is what the host has.
//!
//! A group is made beneath the caller's own, `longshore-<helper's pid>-<number>` unless the spec names it, and
//! removed when the sandbox has ended; by the next helper if its own was killed ([`stale`]). Init is born in a version 2 group, which costs next to nothing.
//! Entering a version 1 group waits for the whole machine (milliseconds), so those are made only when a
//! limit asks for them. Without a limit, what the host does not permit is done without.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::error::StartError;
use crate::spec::{Limits, MEMORY_MIN, Usage};

mod stale;

/// More than `/proc/self/mountinfo` of the busiest host.
const TABLE_BYTES_MAX: u64 = 16 << 20;
/// The period over which a processor quota is counted, in microseconds: the kernel's default.
const PERIOD_US: u64 = 100_000;

/// The groups of one sandbox; possibly none.
#[derive(Debug, Default)]
pub(crate) struct Cgroups {
    unified: Option<(PathBuf, OwnedFd)>,
    /// Version 1: one directory for each controller in use.
    legacy: Vec<PathBuf>,
    /// Those of version 1 are this helper's as long as they live; that of version 2 has its own.
    claims: Vec<OwnedFd>,
    notes: Vec<String>,
}

/// One limit: how it is called and where it is written.
struct Setting {
    limit: &'static str,
    controller: &'static str,
    unified: (&'static str, String),
    legacy: Vec<(&'static str, String)>,
}

/// What no kernel could keep, found before anything is made.
fn check(limits: &Limits) -> Result<(), StartError> {
    let refuse = |limit: &str, reason: String| {
        Err(StartError::Limit {
            limit: limit.to_owned(),
            reason,
        })
    };
    if let Some(bytes) = limits.memory.filter(|bytes| *bytes < MEMORY_MIN) {
        let reason = format!("{bytes} bytes are too few for a process: at least {MEMORY_MIN}");
        return refuse("memory", reason);
    }
    if limits.memory_swap.is_some() && limits.memory_swap < limits.memory {
        return refuse(
            "swap",
            "memory and swap together are less than memory".into(),
        );
    }
    if limits.pids == Some(0) {
        return refuse("processes", "none could be started: at least 1".into());
    }
    let is_time = |us: &u64| (1_000..=1_000_000).contains(us);
    if let Some(us) = limits.cpu_period_us.filter(|us| !is_time(us)) {
        let reason = format!("a period of {us} microseconds: 1,000 to 1,000,000 are possible");
        return refuse("processor time", reason);
    }
    if let Some(us) = limits.cpu_quota_us.filter(|us| *us < 1_000) {
        let reason = format!("{us} microseconds are too few: at least 1,000");
        return refuse("processor time", reason);
    }
    if let Some(weight) = limits.io_weight.filter(|w| !(10..=1_000).contains(w)) {
        let reason = format!("a weight of {weight}: 10 to 1,000 are possible");
        return refuse("disk weight", reason);
    }
    Ok(())
}

fn settings(limits: &Limits) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut set = |limit, controller, unified: (&'static str, String), legacy: &[_]| {
        settings.push(Setting {
            limit,
            controller,
            unified,
            legacy: legacy.to_vec(),
        });
    };
    let same = |file: &'static str, value: String| ((file, value.clone()), [(file, value)]);
    if let Some(bytes) = limits.memory {
        let bytes = bytes.to_string();
        let legacy = [("memory.limit_in_bytes", bytes.clone())];
        set("memory", "memory", ("memory.max", bytes), &legacy);
    }
    if let Some(both) = limits.memory_swap {
        // Version 2 counts swap alone, version 1 both together.
        let (swap, both) = match both {
            u64::MAX => ("max".to_owned(), "-1".to_owned()),
            both => {
                let swap = both.saturating_sub(limits.memory.unwrap_or(0));
                (swap.to_string(), both.to_string())
            }
        };
        let legacy = [("memory.memsw.limit_in_bytes", both)];
        set("swap", "memory", ("memory.swap.max", swap), &legacy);
    }
    if let Some(bytes) = limits.memory_reservation {
        let bytes = bytes.to_string();
        let legacy = [("memory.soft_limit_in_bytes", bytes.clone())];
        set(
            "memory for itself",
            "memory",
            ("memory.low", bytes),
            &legacy,
        );
    }
    if let Some(count) = limits.pids {
        let count = match count {
            u64::MAX => "max".to_owned(),
            count => count.to_string(),
        };
        let (unified, legacy) = same("pids.max", count);
        set("processes", "pids", unified, &legacy);
    }
    if limits.cpu_quota_us.is_some() || limits.cpu_period_us.is_some() {
        let period = limits.cpu_period_us.unwrap_or(PERIOD_US).to_string();
        let quota = limits.cpu_quota_us.map(|quota| quota.to_string());
        let unified = format!("{} {period}", quota.as_deref().unwrap_or("max"));
        let legacy = [
            ("cpu.cfs_period_us", period),
            ("cpu.cfs_quota_us", quota.unwrap_or_else(|| "-1".to_owned())),
        ];
        set("processor time", "cpu", ("cpu.max", unified), &legacy);
    }
    if let Some(shares) = limits.cpu_shares {
        // The range of one to that of the other.
        let weight = 1 + shares.clamp(2, 262_144).saturating_sub(2) * 9_999 / 262_142;
        let legacy = [("cpu.shares", shares.to_string())];
        set(
            "processor weight",
            "cpu",
            ("cpu.weight", weight.to_string()),
            &legacy,
        );
    }
    if let Some(cpus) = &limits.cpuset_cpus {
        let (unified, legacy) = same("cpuset.cpus", cpus.clone());
        set("processors", "cpuset", unified, &legacy);
    }
    if let Some(nodes) = &limits.cpuset_mems {
        let (unified, legacy) = same("cpuset.mems", nodes.clone());
        set("memory nodes", "cpuset", unified, &legacy);
    }
    if let Some(weight) = limits.io_weight {
        // The range of one to that of the other.
        let wider = 1 + weight.saturating_sub(10) * 9_999 / 990;
        let unified = ("io.weight", format!("default {wider}"));
        let legacy = [("blkio.weight", weight.to_string())];
        set("disk weight", "io", unified, &legacy);
    }
    settings
}

/// What version 1 calls a controller.
fn legacy_name(controller: &'static str) -> &'static str {
    match controller {
        "io" => "blkio",
        same => same,
    }
}

/// A version 1 group may be entered only if it has processors and memory nodes, and a new one has none: those of the group
/// above are taken.
fn inherit_cpuset(dir: &Path) -> io::Result<()> {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        if !read_bounded(&dir.join(file))?.trim().is_empty() {
            continue;
        }
        let parent = dir.parent().unwrap_or(dir);
        if read_bounded(&parent.join(file))?.trim().is_empty() {
            inherit_cpuset(parent)?;
        }
        write(&dir.join(file), read_bounded(&parent.join(file))?.trim())?;
    }
    Ok(())
}

/// Changes limits of a sandbox that runs, by its process 1: those that `limits` has.
///
/// # Errors
/// [`StartError::Limit`] for one that the kernel refuses, or for which the sandbox has no group.
pub(crate) fn update(process_1: u32, limits: &Limits) -> Result<(), StartError> {
    check(limits)?;
    let refused = |limit: &str, reason: String| StartError::Limit {
        limit: limit.to_owned(),
        reason,
    };
    let groups = groups_of(process_1);
    let mut writes = Vec::new();
    for setting in settings(limits) {
        let unified = groups.iter().filter(|group| group.is_unified());
        let unified = unified.map(|group| group.path.join(setting.unified.0));
        if let Some(path) = unified.into_iter().find(|path| path.exists()) {
            writes.push((setting.limit, path, setting.unified.1));
            continue;
        }
        let name = legacy_name(setting.controller);
        let of_it = |group: &&Group| {
            group
                .controllers
                .iter()
                .any(|controller| controller == name)
        };
        let group = groups.iter().find(of_it).ok_or_else(|| {
            let reason = "it was started without, and has no control group for it: stop it first";
            refused(setting.limit, reason.to_owned())
        })?;
        for (file, value) in setting.legacy {
            writes.push((setting.limit, legacy_file(&group.path, file), value));
        }
    }
    // Memory and swap each refuse what the other does not allow yet: whichever is first, the other may be tried again.
    let mut failed = Vec::new();
    for (limit, path, value) in writes {
        if write(&path, &value).is_err() {
            failed.push((limit, path, value));
        }
    }
    for (limit, path, value) in failed {
        write(&path, &value)
            .map_err(|error| refused(limit, format!("`{}`: {error}", path.display())))?;
    }
    Ok(())
}

/// A file of a version 1 group. Where only one scheduler weighs disks, it has its own.
fn legacy_file(dir: &Path, name: &str) -> PathBuf {
    let file = dir.join(name);
    match name == "blkio.weight" && !file.exists() {
        true => dir.join("blkio.bfq.weight"),
        false => file,
    }
}

impl Cgroups {
    /// Makes the groups, with the limits set.
    ///
    /// # Errors
    ///
    /// [`StartError::Limit`] for a limit that the host cannot enforce or does not let us set; and any
    /// failure for a group that was asked for by name.
    pub(crate) fn make(name: Option<&str>, limits: &Limits) -> Result<Self, StartError> {
        check(limits)?;
        let settings = settings(limits);
        let default_name = stale::name();
        let mut groups = Self::default();
        let result = groups.fill(
            own_hierarchies(),
            name.unwrap_or(&default_name),
            name.is_some(),
            &settings,
        );
        if let Err(error) = result {
            groups.remove();
            return Err(error);
        }
        Ok(groups)
    }

    fn fill(
        &mut self,
        hierarchies: &[Hierarchy],
        name: &str,
        named: bool,
        settings: &[Setting],
    ) -> Result<(), StartError> {
        if !valid_name(name) {
            return Err(StartError::Spec {
                what: format!("control group name `{name}`"),
            });
        }
        let unified = hierarchies
            .iter()
            .find(|hierarchy| hierarchy.controllers.is_empty());
        let mut left: Vec<&Setting> = settings.iter().collect();
        if let Some(unified) = unified {
            let mut result = self.make_unified(&unified.top, &unified.group(name), &mut left);
            if !left.is_empty() && !named {
                // Our own group holds processes, and so cannot pass controllers on. One above may: the one that was
                // delegated to an ordinary user, and for root any, as Docker does.
                for above in unified.above() {
                    let mut rest: Vec<&Setting> = settings.iter().collect();
                    let first = self.unified.take();
                    let place = above.join("longshore").join(name);
                    let attempt = self.make_unified(&unified.top, &place, &mut rest);
                    let better = attempt.is_ok() && rest.len() < left.len();
                    let other = match better {
                        true => first,
                        false => std::mem::replace(&mut self.unified, first),
                    };
                    if let Some((dir, _)) = other {
                        let _removed = fs::remove_dir(dir);
                    }
                    if better {
                        (left, result) = (rest, Ok(()));
                    }
                    if left.is_empty() {
                        break;
                    }
                }
            }
            match result {
                Ok(()) => {}
                Err(error) if named && settings.is_empty() => {
                    return Err(
                        StartError::step(format!("make the control group `{name}`"))(error),
                    );
                }
                Err(error) => self
                    .notes
                    .push(format!("no version 2 control group: {error}")),
            }
        }
        for setting in left {
            let refused = |reason: String| StartError::Limit {
                limit: setting.limit.into(),
                reason,
            };
            let hierarchy = hierarchies
                .iter()
                .find(|hierarchy| {
                    hierarchy
                        .controllers
                        .iter()
                        .any(|c| c == legacy_name(setting.controller))
                })
                .ok_or_else(|| {
                    let controller = setting.controller;
                    refused(format!(
                        "no `{controller}` control group controller may be used here"
                    ))
                })?;
            let dir = hierarchy.group(name);
            let fail = |error: io::Error| refused(format!("`{}`: {error}", dir.display()));
            if !self.legacy.contains(&dir) {
                let claim = stale::claim(&dir).map_err(fail)?;
                self.claims.push(claim);
                self.legacy.push(dir.clone());
            }
            if setting.controller == "cpuset" {
                inherit_cpuset(&dir).map_err(fail)?;
            }
            for (file, value) in &setting.legacy {
                write(&legacy_file(&dir, file), value).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Makes the version 2 group and sets what it can of `left`, which keeps the rest.
    fn make_unified(&mut self, top: &Path, dir: &Path, left: &mut Vec<&Setting>) -> io::Result<()> {
        let parent = dir.parent().unwrap_or(top);
        if let Ok(beyond) = parent.strip_prefix(top) {
            // Controllers must be passed on at each level on the way down. Where a level has processes
            // of its own the kernel refuses; the limit then fails below, by name.
            let mut at = top.to_owned();
            for step in std::iter::once(Path::new("")).chain(beyond.iter().map(Path::new)) {
                at.push(step);
                if at != *top {
                    // The last but one is ours to make; those above are there.
                    let _made = fs::create_dir(&at);
                }
                for setting in left.iter() {
                    let _enabled = write(
                        &at.join("cgroup.subtree_control"),
                        &format!("+{}", setting.controller),
                    );
                }
            }
        }
        let handle = stale::claim(dir)?;
        self.unified = Some((dir.to_owned(), handle));
        // Entering needs the right to move processes out of where we are.
        OpenOptions::new()
            .write(true)
            .open(dir.join("cgroup.procs"))
            .inspect_err(|_| {
                self.unified = None;
                let _removed = fs::remove_dir(dir);
            })?;
        left.retain(|setting| write(&dir.join(setting.unified.0), &setting.unified.1).is_err());
        Ok(())
    }

    /// The version 2 group, for a process to be born in.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, handle)| handle.as_fd())
    }

    /// Whether there is one at all.
    pub(crate) fn is_made(&self) -> bool {
        self.unified.is_some() || !self.legacy.is_empty()
    }

    /// Ends whatever is in them, and waits until nothing is.
    pub(crate) fn end_all(&self) {
        let unified = self.unified.iter().map(|(dir, _)| dir);
        for dir in self.legacy.iter().chain(unified) {
            end_processes(dir);
        }
    }

    /// The version 1 groups, for a process to enter by writing `0`.
    pub(crate) fn entries(&self) -> Result<Vec<File>, StartError> {
        self.legacy
            .iter()
            .map(|dir| {
                OpenOptions::new()
                    .write(true)
                    .open(dir.join("cgroup.procs"))
            })
            .collect::<Result<_, _>>()
            .map_err(StartError::step("open the control group"))
    }

    /// What was not possible and was not asked for.
    pub(crate) fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Replaces in `usage` what the groups know better: of all processes, waited for or not.
    pub(crate) fn usage(&self, mut usage: Usage) -> Usage {
        for dir in &self.legacy {
            if let Ok(peak) = read_bounded(&dir.join("memory.max_usage_in_bytes")) {
                usage.memory_peak = peak.trim().parse().unwrap_or(usage.memory_peak);
            }
            if let Ok(text) = read_bounded(&dir.join("memory.oom_control")) {
                usage.oom_kills += value(&text, "oom_kill").unwrap_or(0);
            }
        }
        let Some((dir, _)) = &self.unified else {
            return usage;
        };
        if let Ok(stat) = read_bounded(&dir.join("cpu.stat")) {
            usage.user_us = value(&stat, "user_usec").unwrap_or(usage.user_us);
            usage.system_us = value(&stat, "system_usec").unwrap_or(usage.system_us);
        }
        if let Ok(peak) = read_bounded(&dir.join("memory.peak")) {
            usage.memory_peak = peak.trim().parse().unwrap_or(usage.memory_peak);
        }
        if let Ok(events) = read_bounded(&dir.join("memory.events")) {
            usage.oom_kills += value(&events, "oom_kill").unwrap_or(0);
        }
        if let Ok(stat) = read_bounded(&dir.join("io.stat")) {
            let sum = |key: &str| {
                let words = stat.split_ascii_whitespace();
                words
                    .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
                    .sum()
            };
            (usage.read_bytes, usage.written_bytes) = (sum("rbytes="), sum("wbytes="));
        }
        usage
    }

    /// Whether the groups tell of processes that were killed for want of memory.
    pub(crate) fn counts_memory(&self) -> bool {
        let legacy = |dir: &PathBuf| dir.join("memory.oom_control").exists();
        let unified = |dir: &Path| dir.join("memory.events").exists();
        self.legacy.iter().any(legacy)
            || self.unified.as_ref().is_some_and(|group| unified(&group.0))
    }

    /// Removes the groups; all processes in them have ended.
    pub(crate) fn remove(self) {
        let unified = self.unified.into_iter().map(|(dir, _)| dir);
        for dir in self.legacy.into_iter().chain(unified) {
            let _removed = fs::remove_dir(dir);
        }
    }
}

/// Ends the processes of a group. Those that started meanwhile too, so it goes on until there is none.
fn end_processes(dir: &Path) {
    loop {
        let pids = members(dir);
        for pid in &pids {
            let Ok(process) = rustix::process::pidfd_open(*pid, PidfdFlags::empty()) else {
                continue;
            };
            // If it is in there now that it is held, it is the one that was meant.
            if members(dir).contains(pid) {
                let _killed = rustix::process::pidfd_send_signal(&process, Signal::KILL);
                let _ended = poll(&mut [PollFd::new(&process, PollFlags::IN)], None);
            }
        }
        if pids.is_empty() {
            return;
        }
    }
}

/// The processes of a group that are not outside of what this process sees.
fn members(dir: &Path) -> Vec<Pid> {
    let text = read_bounded(&dir.join("cgroup.procs")).unwrap_or_default();
    let numbers = text.lines().filter_map(|line| line.parse().ok());
    numbers.filter_map(Pid::from_raw).collect()
}

/// How many processes the kernel has killed for want of memory since it began, whoever's limit was reached.
pub(crate) fn machine_oom_kills() -> u64 {
    let text = read_bounded(Path::new("/proc/vmstat")).unwrap_or_default();
    value(&text, "oom_kill").unwrap_or(0)
}

/// A group that another process is in, and this one is not.
#[derive(Debug)]
pub(crate) struct Group {
    /// Its folder.
    pub(crate) path: PathBuf,
    /// The controllers of its hierarchy; none for version 2.
    pub(crate) controllers: Vec<String>,
}

impl Group {
    pub(crate) fn is_unified(&self) -> bool {
        self.controllers.is_empty()
    }
}

/// The groups of another process that this one does not share.
pub(crate) fn groups_of(pid: u32) -> Vec<Group> {
    let (Ok(memberships), Ok(mounts)) = (
        read_bounded(&PathBuf::from(format!("/proc/{pid}/cgroup"))),
        read_bounded(Path::new("/proc/self/mountinfo")),
    ) else {
        return Vec::new();
    };
    let own = hierarchies().unwrap_or_default();
    parse(&memberships, &mounts)
        .into_iter()
        .filter(|hierarchy| !own.contains(hierarchy))
        .map(|hierarchy| Group {
            path: hierarchy.own,
            controllers: hierarchy.controllers,
        })
        .collect()
}

/// The groups of another process, open for this one to enter by writing `0`. Those that cannot be opened are left out:
/// the process has its limits from those that can.
pub(crate) fn entries_of(pid: u32) -> Vec<File> {
    // Entering a group costs; most are this process's already.
    groups_of(pid)
        .into_iter()
        .filter_map(|group| {
            let path = group.path.join("cgroup.procs");
            OpenOptions::new().write(true).open(path).ok()
        })
        .collect()
}

/// A mounted hierarchy.
#[derive(Debug, PartialEq, Eq)]
struct Hierarchy {
    /// Where it is mounted.
    top: PathBuf,
    /// The group that this process is in, beneath `top`.
    own: PathBuf,
    /// Its controllers; none for version 2.
    controllers: Vec<String>,
}

impl Hierarchy {
    /// The groups above our own, the nearest first.
    fn above(&self) -> Vec<PathBuf> {
        let own: PathBuf = self.own.components().collect();
        own.ancestors()
            .skip(usize::from(own != self.top))
            .take_while(|path| path.starts_with(&self.top))
            .map(Path::to_owned)
            .collect()
    }

    fn group(&self, name: &str) -> PathBuf {
        match name.strip_prefix('/') {
            Some(absolute) => self.top.join(absolute),
            None => self.own.join(name),
        }
    }
}

/// Those of a helper, which stays where it is: read once.
fn own_hierarchies() -> &'static [Hierarchy] {
    static OWN: OnceLock<Vec<Hierarchy>> = OnceLock::new();
    OWN.get_or_init(|| hierarchies().unwrap_or_default())
}

/// Reads ahead of its use what [`Cgroups::make`] needs to know.
pub(crate) fn prepare() {
    let _read = own_hierarchies();
}

/// Removes what helpers left behind that were killed.
pub(crate) fn sweep() {
    for hierarchy in own_hierarchies() {
        stale::sweep(&hierarchy.own);
        if hierarchy.controllers.is_empty() {
            // Where `fill` goes for limits.
            for above in hierarchy.above() {
                stale::sweep(&above.join("longshore"));
            }
        }
    }
}

fn hierarchies() -> io::Result<Vec<Hierarchy>> {
    let memberships = read_bounded(Path::new("/proc/self/cgroup"))?;
    let mounts = read_bounded(Path::new("/proc/self/mountinfo"))?;
    Ok(parse(&memberships, &mounts))
}

/// Joins `/proc/self/cgroup` (`id:controllers:path`) with the mounts that show those hierarchies.
fn parse(memberships: &str, mounts: &str) -> Vec<Hierarchy> {
    let memberships: Vec<(Vec<String>, &str)> = memberships
        .lines()
        .filter_map(|line| {
            let mut fields = line.splitn(3, ':').skip(1);
            let controllers = fields.next()?;
            let controllers = controllers
                .split(',')
                .filter(|c| !c.is_empty())
                .map(str::to_owned)
                .collect();
            Some((controllers, fields.next()?))
        })
        .collect();
    mounts
        .lines()
        .filter_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mut left = left.split(' ').skip(3);
            let (root, point) = (left.next()?, left.next()?);
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1)?);
            let (controllers, path) = memberships.iter().find(|(controllers, _)| match kind {
                "cgroup2" => controllers.is_empty(),
                "cgroup" => controllers
                    .first()
                    .is_some_and(|first| options.split(',').any(|o| o == first)),
                _ => false,
            })?;
            // A mount may show only a part of the hierarchy, which we may not even be in.
            let beneath = match root {
                "/" => path.strip_prefix('/')?,
                root => path.strip_prefix(root)?.trim_start_matches('/'),
            };
            let top = PathBuf::from(point);
            Some(Hierarchy {
                own: top.join(beneath),
                top,
                controllers: controllers.clone(),
            })
        })
        .collect()
}

/// The number after `key` in lines of `key value`.
fn value(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
}

/// Writes to a file that the kernel made; anything else is an error.
fn write(path: &Path, text: &str) -> io::Result<()> {
    use std::io::Write;
    let mut file = OpenOptions::new().write(true).open(path)?;
    file.write_all(text.as_bytes())
}

fn valid_name(name: &str) -> bool {
    let name = name.strip_prefix('/').unwrap_or(name);
    !name.is_empty() && name.split('/').all(|part| !matches!(part, "" | "." | ".."))
}

fn make_dir(dir: &Path) -> io::Result<()> {
    match fs::create_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => fs::create_dir_all(dir),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        result => result,
    }
}

fn read_bounded(path: &Path) -> io::Result<String> {
    // Most are read in one go: the kernel makes up the whole again for each part.
    let mut text = String::with_capacity(8 << 10);
    File::open(path)?
        .take(TABLE_BYTES_MAX)
        .read_to_string(&mut text)?;
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_hosts() {
        let check = |memberships: &str, mounts: &str, expect: &[(&str, &str, &str)]| {
            let found: Vec<(String, String, String)> = parse(memberships, mounts)
                .into_iter()
                .map(|h| {
                    let text = |path: PathBuf| path.to_str().unwrap().to_owned();
                    (text(h.top), text(h.own), h.controllers.join(","))
                })
                .collect();
            let found: Vec<_> = found
                .iter()
                .map(|(t, o, c)| (t.as_str(), o.as_str(), c.as_str()))
                .collect();
            assert_eq!(found, expect);
        };
        check(
            "0::/user.slice/session-1.scope\n",
            "35 24 0:30 / /sys/fs/cgroup rw,nosuid shared:9 - cgroup2 cgroup2 rw,nsdelegate\n",
            &[(
                "/sys/fs/cgroup",
                "/sys/fs/cgroup/user.slice/session-1.scope",
                "",
            )],
        );
        check(
            "4:memory:/a/b\n2:cpu,cpuacct:/\n0::/\n",
            "34 31 0:32 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu,cpuacct\n\
             35 31 0:33 /a /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
             36 31 0:34 / /proc rw - proc proc rw\n",
            &[
                ("/sys/fs/cgroup/cpu", "/sys/fs/cgroup/cpu/", "cpu,cpuacct"),
                ("/sys/fs/cgroup/memory", "/sys/fs/cgroup/memory/b", "memory"),
            ],
        );
        check("nonsense\n::\n", "nonsense - \n1 2 - cgroup2\n", &[]);
    }

    /// Files of a tree that looks like the kernel's, empty unless it is said what they hold.
    fn tree(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (path, text) in files {
            let path = dir.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    fn limits() -> Limits {
        Limits {
            memory: Some(64 << 20),
            memory_swap: Some(96 << 20),
            pids: Some(7),
            io_weight: Some(1_000),
            ..Limits::default()
        }
    }

    /// An ordinary user's group holds processes, the one above it is not delegated but the one above that is.
    #[test]
    fn delegated_groups_are_found_above() {
        let group = "user@1/longshore/g";
        let files = [
            "user@1/app/x.scope/g/cgroup.procs",
            "user@1/app/longshore/g/cgroup.procs",
            "user@1/longshore/g/cgroup.procs",
            "user@1/longshore/g/memory.max",
            "user@1/longshore/g/memory.swap.max",
            "user@1/longshore/g/pids.max",
            "user@1/longshore/g/io.weight",
            "user@1/longshore/cgroup.subtree_control",
            "user@1/cgroup.subtree_control",
            "longshore/g/cgroup.procs",
        ];
        let top = tree(&files.map(|file| (file, "")));
        let top = top.path();
        let hierarchy = Hierarchy {
            top: top.to_owned(),
            own: top.join("user@1/app/x.scope"),
            controllers: Vec::new(),
        };
        let mut groups = Cgroups::default();
        groups
            .fill(&[hierarchy], "g", false, &settings(&limits()))
            .unwrap();
        assert_eq!(groups.unified.as_ref().unwrap().0, top.join(group));
        assert!(groups.legacy.is_empty());
        for (file, expect) in [
            ("memory.max", "67108864"),
            ("memory.swap.max", "33554432"),
            ("pids.max", "7"),
            ("io.weight", "default 10000"),
        ] {
            let found = fs::read_to_string(top.join(group).join(file)).unwrap();
            assert_eq!(found, expect, "{file}");
        }
        for above in ["user@1/longshore", "user@1"] {
            let file = top.join(above).join("cgroup.subtree_control");
            assert!(fs::read_to_string(&file).unwrap().starts_with('+'));
        }
    }

    #[test]
    fn version_1_has_a_group_for_each_controller() {
        let files = [
            ("memory/a/g/memory.limit_in_bytes", ""),
            ("memory/a/g/memory.memsw.limit_in_bytes", ""),
            ("pids/g/pids.max", ""),
            ("blkio/g/blkio.bfq.weight", ""),
        ];
        let top = tree(&files);
        let hierarchy = |name: &str, own: &str| Hierarchy {
            top: top.path().join(name),
            own: top.path().join(name).join(own),
            controllers: vec![name.to_owned()],
        };
        let hierarchies = [
            hierarchy("memory", "a"),
            hierarchy("pids", ""),
            hierarchy("blkio", ""),
        ];
        let mut groups = Cgroups::default();
        groups
            .fill(&hierarchies, "g", false, &settings(&limits()))
            .unwrap();
        assert!(groups.unified.is_none());
        let found = files.map(|(file, _)| fs::read_to_string(top.path().join(file)).unwrap());
        assert_eq!(found, ["67108864", "100663296", "7", "1000"]);

        let missing = Cgroups::default().fill(&[], "g", false, &settings(&limits()));
        assert_eq!(
            missing.unwrap_err().to_string(),
            "cannot limit memory: no `memory` control group controller may be used here"
        );
    }

    #[test]
    fn what_groups_count() {
        let both = tree(&[
            ("2/cpu.stat", "usage_usec 9\nuser_usec 5\nsystem_usec 4\n"),
            ("2/memory.peak", "4096\n"),
            (
                "2/memory.events",
                "low 0\noom 1\noom_kill 2\noom_group_kill 0\n",
            ),
            (
                "2/io.stat",
                "8:0 rbytes=10 wbytes=1 rios=3\n8:16 rbytes=5 wbytes=2\n",
            ),
            ("1/memory.max_usage_in_bytes", "8192\n"),
            ("1/memory.oom_control", "oom_kill_disable 0\noom_kill 3\n"),
        ]);
        let unified = both.path().join("2");
        let handle = File::open(&unified).unwrap().into();
        let groups = Cgroups {
            unified: Some((unified, handle)),
            ..Cgroups::default()
        };
        let expect = Usage {
            user_us: 5,
            system_us: 4,
            memory_peak: 4096,
            read_bytes: 15,
            written_bytes: 3,
            oom_kills: 2,
            ..Usage::default()
        };
        assert_eq!(groups.usage(Usage::default()), expect);
        let groups = Cgroups {
            legacy: vec![both.path().join("1")],
            ..Cgroups::default()
        };
        let expect = Usage {
            memory_peak: 8192,
            oom_kills: 3,
            ..Usage::default()
        };
        assert_eq!(groups.usage(Usage::default()), expect);
    }

    #[test]
    fn limits_that_no_kernel_keeps() {
        let check = |limits: Limits, expect: &str| {
            let error = super::check(&limits).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        let none = Limits::default;
        let memory = |memory| Limits {
            memory: Some(memory),
            ..none()
        };
        check(memory(1), "cannot limit memory: 1 bytes are too few");
        check(memory(MEMORY_MIN - 1), "at least 6291456");
        super::check(&memory(MEMORY_MIN)).unwrap();
        let swap = Limits {
            memory_swap: Some(MEMORY_MIN),
            ..memory(2 * MEMORY_MIN)
        };
        check(swap, "less than memory");
        check(
            Limits {
                pids: Some(0),
                ..none()
            },
            "at least 1",
        );
        let period = |us| Limits {
            cpu_period_us: Some(us),
            ..none()
        };
        check(period(999), "1,000 to 1,000,000");
        check(period(1_000_001), "1,000 to 1,000,000");
        let quota = Limits {
            cpu_quota_us: Some(1),
            ..none()
        };
        check(quota, "at least 1,000");
        check(
            Limits {
                io_weight: Some(9),
                ..none()
            },
            "10 to 1,000",
        );
    }

    #[test]
    fn names_stay_beneath() {
        for name in ["a", "a/b", "/a"] {
            assert!(valid_name(name), "{name}");
        }
        for name in ["", "/", "..", "a/../b", "a//b", "./a"] {
            assert!(!valid_name(name), "{name}");
        }
    }
}
