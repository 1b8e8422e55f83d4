//! Limits in the kernel's own files, and what is told of memory that was wanting.

use std::fs;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use runner::{Limits, OutOfMemory, Sandbox, SandboxError, StartError, Stdio, Stream};

use crate::Test;
use crate::world::World;

pub(crate) const TESTS: &[Test] = &[
    (
        "limits_are_in_the_kernels_files",
        limits_are_in_the_kernels_files,
    ),
    ("memory_that_others_limit", memory_that_others_limit),
];

/// One limit: its name in messages, and its files with what they are to hold, of version 1 and of version 2.
struct Case {
    name: &'static str,
    limits: Limits,
    legacy: &'static [(&'static str, &'static str, &'static str)],
    unified: &'static [(&'static str, &'static str)],
}

fn cases() -> Vec<Case> {
    let none = Limits::default;
    vec![
        Case {
            name: "memory",
            limits: Limits {
                memory: Some(64 << 20),
                ..none()
            },
            legacy: &[("memory", "memory.limit_in_bytes", "67108864")],
            unified: &[("memory.max", "67108864")],
        },
        Case {
            name: "swap",
            limits: Limits {
                memory: Some(64 << 20),
                memory_swap: Some(96 << 20),
                ..none()
            },
            legacy: &[("memory", "memory.memsw.limit_in_bytes", "100663296")],
            unified: &[("memory.max", "67108864"), ("memory.swap.max", "33554432")],
        },
        Case {
            name: "processes",
            limits: Limits {
                pids: Some(50),
                ..none()
            },
            legacy: &[("pids", "pids.max", "50")],
            unified: &[("pids.max", "50")],
        },
        Case {
            name: "processor time",
            limits: Limits {
                cpu_quota_us: Some(25_000),
                cpu_period_us: Some(50_000),
                ..none()
            },
            legacy: &[
                ("cpu", "cpu.cfs_quota_us", "25000"),
                ("cpu", "cpu.cfs_period_us", "50000"),
            ],
            unified: &[("cpu.max", "25000 50000")],
        },
        Case {
            name: "processor weight",
            limits: Limits {
                cpu_shares: Some(512),
                ..none()
            },
            legacy: &[("cpu", "cpu.shares", "512")],
            unified: &[("cpu.weight", "20")],
        },
        Case {
            name: "processors",
            limits: Limits {
                cpuset_cpus: Some("0".into()),
                ..none()
            },
            legacy: &[("cpuset", "cpuset.cpus", "0")],
            unified: &[("cpuset.cpus", "0")],
        },
        Case {
            name: "memory nodes",
            limits: Limits {
                cpuset_mems: Some("0".into()),
                ..none()
            },
            legacy: &[("cpuset", "cpuset.mems", "0")],
            unified: &[("cpuset.mems", "0")],
        },
        Case {
            name: "disk weight",
            limits: Limits {
                io_weight: Some(300),
                ..none()
            },
            legacy: &[("blkio", "blkio.bfq.weight", "300")],
            unified: &[("io.weight", "default 2930")],
        },
    ]
}

/// A sandbox that waits for its standard input to end, then does the rest of `script`.
fn waiting(world: &World, script: &str, limits: Limits) -> Result<Sandbox, SandboxError> {
    let mut spec = world.script(&format!("read x || true; {script}"));
    spec.limits = limits;
    let stdio = Stdio {
        stdin: Stream::Pipe,
        ..Stdio::default()
    };
    Sandbox::spawn(&spec, stdio)
}

/// The process of a sandbox, as this one sees it.
fn pid(sandbox: &Sandbox) -> String {
    let path = format!("/proc/self/fdinfo/{}", sandbox.pidfd().as_raw_fd());
    let text = fs::read_to_string(path).unwrap();
    let pid = text.lines().find_map(|line| line.strip_prefix("Pid:"));
    pid.unwrap().trim().to_owned()
}

/// Where the groups of a process are: by controllers, none for version 2.
fn groups(pid: &str) -> Vec<(String, PathBuf)> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let found = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let groups = found.lines().filter_map(|line| {
        let fields: Vec<&str> = line.splitn(3, ':').collect();
        let mount = mounts.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let right: Vec<&str> = right.split(' ').collect();
            let is_it = match fields[1] {
                "" => right[0] == "cgroup2",
                controllers => {
                    right[0] == "cgroup"
                        && right[2]
                            .split(',')
                            .any(|o| controllers.split(',').any(|c| c == o))
                }
            };
            is_it.then(|| left.split(' ').nth(4))?
        })?;
        Some((
            fields[1].to_owned(),
            PathBuf::from(format!("{mount}{}", fields[2])),
        ))
    });
    groups.collect()
}

fn limits_are_in_the_kernels_files(world: &World) -> Result<(), String> {
    for case in cases() {
        let mut sandbox = match waiting(world, "true", case.limits.clone()) {
            Ok(sandbox) => sandbox,
            // One that cannot be kept is an error, which says of what. Root can keep all, but for weights of disks, where no
            // scheduler of this machine weighs.
            Err(SandboxError::Start(StartError::Limit { limit, reason })) => {
                assert!(
                    !world.root() || case.name == "disk weight",
                    "{limit}: {reason}"
                );
                assert!(
                    case.name == limit || case.limits.memory.is_some(),
                    "{}: {limit}",
                    case.name
                );
                assert!(!reason.is_empty());
                continue;
            }
            Err(error) => panic!("{}: {error:?}", case.name),
        };
        let groups = groups(&pid(&sandbox));
        let read = |path: &Path| fs::read_to_string(path).map(|text| text.trim().to_owned());
        let unified = groups.iter().find(|group| group.0.is_empty());
        let in_unified = unified.is_some_and(|group| {
            let found = case
                .unified
                .iter()
                .map(|(file, _)| read(&group.1.join(file)).ok());
            found.eq(case
                .unified
                .iter()
                .map(|(_, value)| Some((*value).to_owned())))
        });
        if !in_unified {
            for (controller, file, expect) in case.legacy {
                let group = groups
                    .iter()
                    .find(|group| group.0.split(',').any(|c| c == *controller));
                let path = group
                    .unwrap_or_else(|| panic!("{}: {groups:?}", case.name))
                    .1
                    .join(file);
                assert_eq!(
                    read(&path).as_deref().ok(),
                    Some(*expect),
                    "{}",
                    path.display()
                );
            }
        }
        drop(sandbox.stdin.take());
        assert!(sandbox.wait().unwrap().success(), "{}", case.name);
        for (_, group) in groups.iter().filter(|group| group.1.ends_with("longshore")) {
            assert!(!group.exists(), "{}", group.display());
        }
    }
    Ok(())
}

/// A group around the sandbox's, as a container's or a job's on a build machine.
struct Outer(PathBuf);

impl Outer {
    /// One of so much memory; `None` if this machine lets nobody make one.
    fn new(name: &str, bytes: u64) -> Option<Outer> {
        let (_, own) = groups("self")
            .into_iter()
            .find(|group| group.0.split(',').any(|c| c == "memory"))?;
        let outer = Outer(own.join(format!("{name}-{}", std::process::id())));
        fs::create_dir(&outer.0).ok()?;
        fs::write(outer.0.join("memory.limit_in_bytes"), bytes.to_string()).ok()?;
        Some(outer)
    }
}

impl Drop for Outer {
    fn drop(&mut self) {
        let _removed = fs::remove_dir(&self.0);
    }
}

/// The sandbox has no limit of its own, and so no group that counts: what the machine says has to do, with care.
fn memory_that_others_limit(world: &World) -> Result<(), String> {
    if !world.root() {
        // A group around it is made by root.
        return Ok(());
    }
    let Some(outer) = Outer::new("runner-it-outer", 16 << 20) else {
        return Err("nobody can limit the memory of a version 1 group here".into());
    };
    let eat = "a=0123456789; while true; do a=$a$a; done";
    let mut sandbox = waiting(world, eat, Limits::default()).unwrap();
    let mut procs = fs::File::options()
        .write(true)
        .open(outer.0.join("cgroup.procs"))
        .unwrap();
    procs.write_all(pid(&sandbox).as_bytes()).unwrap();
    drop(sandbox.stdin.take());
    assert_eq!(sandbox.wait().unwrap().code(), 137);
    let usage = sandbox.usage().unwrap();
    assert_eq!(usage.oom_kills, 0, "{usage:?}");
    assert_eq!(
        usage.out_of_memory(),
        Some(OutOfMemory::Likely),
        "{usage:?}"
    );

    // One with a limit of its own, which is not the one that is reached: its group counts.
    let own = Limits {
        memory: Some(1 << 30),
        ..Limits::default()
    };
    let mut sandbox = waiting(world, &format!("({eat}); echo"), own).unwrap();
    let inner = groups(&pid(&sandbox))
        .into_iter()
        .find(|group| group.0.split(',').any(|c| c == "memory"))
        .unwrap()
        .1;
    fs::write(inner.join("memory.limit_in_bytes"), (16 << 20).to_string()).unwrap();
    drop(sandbox.stdin.take());
    sandbox.wait().unwrap();
    let usage = sandbox.usage().unwrap();
    assert_eq!(
        usage.out_of_memory(),
        Some(OutOfMemory::Certain),
        "{usage:?}"
    );

    // Killed by somebody, with memory to spare: nothing is said of memory, unless the kernel ran out of it elsewhere.
    let mut sandbox = waiting(world, "kill -9 $$; sleep 1000", Limits::default()).unwrap();
    sandbox.kill(libc::SIGKILL).unwrap();
    assert_eq!(sandbox.wait().unwrap().code(), 137);
    assert_ne!(
        sandbox.usage().unwrap().out_of_memory(),
        Some(OutOfMemory::Certain)
    );
    Ok(())
}
