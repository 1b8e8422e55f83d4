//! The sandbox's control group: limits, and what its processes used. Version 2, and version 1 where
//! that is what the host has.
//!
//! A group is made beneath the caller's own, `longshore-<helper's pid>` unless the spec names it, and
//! removed when the sandbox has ended. Init is born in a version 2 group, which costs next to nothing.
//! Entering a version 1 group waits for the whole machine (milliseconds), so those are made only when a
//! limit asks for them. Without a limit, what the host does not permit is done without.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use crate::error::StartError;
use crate::spec::{Limits, Usage};

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
    notes: Vec<String>,
}

/// One limit: how it is called and where it is written.
struct Setting {
    limit: &'static str,
    controller: &'static str,
    unified: (&'static str, String),
    legacy: Vec<(&'static str, String)>,
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
    if let Some(count) = limits.pids {
        let (unified, legacy) = same("pids.max", count.to_string());
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
    settings
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
        fs::write(dir.join(file), read_bounded(&parent.join(file))?.trim())?;
    }
    Ok(())
}

impl Cgroups {
    /// Makes the groups, with the limits set.
    ///
    /// # Errors
    ///
    /// [`StartError::Limit`] for a limit that the host cannot enforce or does not let us set; and any
    /// failure for a group that was asked for by name.
    pub(crate) fn make(name: Option<&str>, limits: &Limits) -> Result<Self, StartError> {
        let settings = settings(limits);
        let default_name = format!("longshore-{}", std::process::id());
        let mut groups = Self::default();
        let result = groups.fill(name.unwrap_or(&default_name), name.is_some(), &settings);
        if let Err(error) = result {
            groups.remove();
            return Err(error);
        }
        Ok(groups)
    }

    fn fill(&mut self, name: &str, named: bool, settings: &[Setting]) -> Result<(), StartError> {
        if !valid_name(name) {
            return Err(StartError::Spec {
                what: format!("control group name `{name}`"),
            });
        }
        let hierarchies = hierarchies().unwrap_or_default();
        let unified = hierarchies
            .iter()
            .find(|hierarchy| hierarchy.controllers.is_empty());
        let mut left: Vec<&Setting> = settings.iter().collect();
        if let Some(unified) = unified {
            let mut result = self.make_unified(unified, name, &mut left);
            if !left.is_empty() && !named {
                // Our own group holds processes, and so cannot pass controllers on. Root may use a
                // group of its own at the top, as Docker does.
                if let Some((dir, _)) = self.unified.take() {
                    let _removed = fs::remove_dir(dir);
                }
                left = settings.iter().collect();
                result = self.make_unified(unified, &format!("/longshore/{name}"), &mut left);
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
                        .any(|c| c == setting.controller)
                })
                .ok_or_else(|| {
                    let controller = setting.controller;
                    refused(format!(
                        "no `{controller}` control group controller may be used here"
                    ))
                })?;
            let dir = hierarchy.group(name);
            let fail = |error: io::Error| refused(format!("`{}`: {error}", dir.display()));
            make_dir(&dir).map_err(fail)?;
            if !self.legacy.contains(&dir) {
                self.legacy.push(dir.clone());
            }
            if setting.controller == "cpuset" {
                inherit_cpuset(&dir).map_err(fail)?;
            }
            for (file, value) in &setting.legacy {
                fs::write(dir.join(file), value).map_err(fail)?;
            }
        }
        Ok(())
    }

    /// Makes the version 2 group and sets what it can of `left`, which keeps the rest.
    fn make_unified(
        &mut self,
        unified: &Hierarchy,
        name: &str,
        left: &mut Vec<&Setting>,
    ) -> io::Result<()> {
        let dir = unified.group(name);
        let parent = dir.parent().unwrap_or(&unified.top);
        if let Ok(beyond) = parent.strip_prefix(&unified.top) {
            // Controllers must be passed on at each level on the way down. Where a level has processes
            // of its own the kernel refuses; the limit then fails below, by name.
            let mut at = unified.top.clone();
            for step in std::iter::once(Path::new("")).chain(beyond.iter().map(Path::new)) {
                at.push(step);
                for setting in left.iter() {
                    let _enabled = fs::write(
                        at.join("cgroup.subtree_control"),
                        format!("+{}", setting.controller),
                    );
                }
            }
        }
        make_dir(&dir)?;
        let handle = File::open(&dir)?;
        self.unified = Some((dir.clone(), handle.into()));
        // Entering needs the right to move processes out of where we are.
        OpenOptions::new()
            .write(true)
            .open(dir.join("cgroup.procs"))
            .inspect_err(|_| {
                self.unified = None;
                let _removed = fs::remove_dir(&dir);
            })?;
        left.retain(|setting| fs::write(dir.join(setting.unified.0), &setting.unified.1).is_err());
        Ok(())
    }

    /// The version 2 group, for a process to be born in.
    pub(crate) fn unified(&self) -> Option<BorrowedFd<'_>> {
        self.unified.as_ref().map(|(_, handle)| handle.as_fd())
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

    /// Replaces in `usage` what the group knows better: of all processes, waited for or not.
    pub(crate) fn usage(&self, mut usage: Usage) -> Usage {
        let Some((dir, _)) = &self.unified else {
            return usage;
        };
        if let Ok(stat) = read_bounded(&dir.join("cpu.stat")) {
            let value = |key: &str| {
                stat.lines()
                    .find_map(|l| l.strip_prefix(key)?.strip_prefix(' ')?.parse().ok())
            };
            usage.user_us = value("user_usec").unwrap_or(usage.user_us);
            usage.system_us = value("system_usec").unwrap_or(usage.system_us);
        }
        if let Ok(peak) = read_bounded(&dir.join("memory.peak")) {
            usage.memory_peak = peak.trim().parse().unwrap_or(usage.memory_peak);
        }
        usage
    }

    /// Removes the groups; all processes in them have ended.
    pub(crate) fn remove(self) {
        let unified = self.unified.into_iter().map(|(dir, _)| dir);
        for dir in self.legacy.into_iter().chain(unified) {
            let _removed = fs::remove_dir(dir);
        }
    }
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
    fn group(&self, name: &str) -> PathBuf {
        match name.strip_prefix('/') {
            Some(absolute) => self.top.join(absolute),
            None => self.own.join(name),
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
    let mut text = String::new();
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
