//! Limits of containers and of steps, each in the kernel's own file; and limits that change while a container runs.

use std::path::PathBuf;
use std::process::Stdio;

use crate::ship::Ship;
use crate::support::{Ran, signal};

/// Where the control groups of a process are: of each hierarchy its controllers (none for version 2) and the folder.
fn groups(pid: u32) -> Vec<(String, PathBuf)> {
    let read = |path: String| std::fs::read_to_string(path).unwrap();
    let mounts = read("/proc/self/mountinfo".to_owned());
    let memberships = read(format!("/proc/{pid}/cgroup"));
    let mut groups = Vec::new();
    for line in memberships.lines() {
        let fields: Vec<&str> = line.splitn(3, ':').collect();
        let [_, controllers, path] = fields[..] else {
            panic!("{line}");
        };
        let is_it = |mount: &&str| {
            let (_, kind) = mount.split_once(" - ").unwrap();
            match controllers {
                "" => kind.starts_with("cgroup2 "),
                names => {
                    let options = kind.rsplit(' ').next().unwrap();
                    kind.starts_with("cgroup ")
                        && names
                            .split(',')
                            .all(|name| options.split(',').any(|o| o == name))
                }
            }
        };
        let Some(mount) = mounts.lines().find(is_it) else {
            continue;
        };
        let point = mount.split(' ').nth(4).unwrap();
        groups.push((
            controllers.to_owned(),
            PathBuf::from(format!("{point}{path}")),
        ));
    }
    groups
}

/// What is written in the file of a limit, by its name in version 1 or in version 2.
fn limit(pid: u32, controller: &str, legacy: &str, unified: &str) -> String {
    let groups = groups(pid);
    let named = |(names, _): &&(String, PathBuf)| names.split(',').any(|name| name == controller);
    let of_legacy = groups.iter().find(named).map(|(_, path)| path.join(legacy));
    let of_unified = groups.iter().find(|(names, _)| names.is_empty());
    let of_unified = of_unified.map(|(_, path)| path.join(unified));
    let files = [of_unified, of_legacy].into_iter().flatten();
    let found = files.filter_map(|file| std::fs::read_to_string(file).ok());
    let found: Vec<String> = found.map(|text| text.trim().to_owned()).collect();
    assert_eq!(found.len(), 1, "{controller}: {groups:?}");
    found.concat()
}

/// What the kernel has for each flag: the controller, its files by version, and the values by version.
type Expected = (&'static str, [&'static str; 2], [&'static str; 2]);

fn check(pid: u32, expected: &[Expected]) {
    for (controller, [legacy, unified], values) in expected {
        let legacy = match *legacy {
            // Where only one scheduler weighs, it has its own.
            "blkio.weight" => "blkio.bfq.weight",
            legacy => legacy,
        };
        let found = limit(pid, controller, legacy, unified);
        assert!(
            values.contains(&found.as_str()),
            "{controller}: {found}, {values:?}"
        );
    }
}

const FLAGS: [&str; 18] = [
    "-m",
    "64m",
    "--memory-swap",
    "96m",
    "--memory-reservation",
    "32m",
    "--pids-limit",
    "50",
    "--cpus",
    "0.5",
    "--cpu-shares",
    "512",
    "--cpuset-cpus",
    "0",
    "--cpuset-mems",
    "0",
    "--blkio-weight",
    "300",
];

const KEPT: [Expected; 9] = [
    (
        "memory",
        ["memory.limit_in_bytes", "memory.max"],
        ["67108864"; 2],
    ),
    (
        "memory",
        ["memory.memsw.limit_in_bytes", "memory.swap.max"],
        ["100663296", "33554432"],
    ),
    (
        "memory",
        ["memory.soft_limit_in_bytes", "memory.low"],
        ["33554432"; 2],
    ),
    ("pids", ["pids.max", "pids.max"], ["50"; 2]),
    (
        "cpu",
        ["cpu.cfs_quota_us", "cpu.max"],
        ["50000", "50000 100000"],
    ),
    ("cpu", ["cpu.shares", "cpu.weight"], ["512", "20"]),
    ("cpuset", ["cpuset.cpus", "cpuset.cpus"], ["0"; 2]),
    ("cpuset", ["cpuset.mems", "cpuset.mems"], ["0"; 2]),
    (
        "blkio",
        ["blkio.weight", "io.weight"],
        ["300", "default 2930"],
    ),
];

#[test]
fn limits_of_containers_reach_the_kernel() {
    let ship = Ship::new();
    ship.detached("box", &FLAGS, &["sleep", "1000"]);
    check(ship.process_1("box"), &KEPT);
    // Started again, it has them again.
    ship.ok(&["restart", "-t", "0", "box"]);
    check(ship.process_1("box"), &KEPT);
    let period = ["--cpu-quota", "20000", "--cpu-period", "40000"];
    ship.detached("period", &period, &["sleep", "1000"]);
    let pid = ship.process_1("period");
    check(
        pid,
        &[(
            "cpu",
            ["cpu.cfs_quota_us", "cpu.max"],
            ["20000", "20000 40000"],
        )],
    );
    let score = ["--oom-score-adj", "321"];
    ship.detached("score", &score, &["sleep", "1000"]);
    let pid = ship.process_1("score");
    let found = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
    assert_eq!(found.trim(), "321");
}

#[test]
fn limits_of_a_container_that_runs_change() {
    let ship = Ship::new();
    ship.detached("box", &FLAGS, &["sleep", "1000"]);
    let pid = ship.process_1("box");
    // Past what memory and swap together were: one alone could not.
    let flags = [
        "update",
        "-m",
        "128m",
        "--memory-swap",
        "256m",
        "--cpus",
        "1.5",
        "box",
    ];
    assert_eq!(ship.ok(&flags), "box");
    let after: [Expected; 3] = [
        (
            "memory",
            ["memory.limit_in_bytes", "memory.max"],
            ["134217728"; 2],
        ),
        (
            "memory",
            ["memory.memsw.limit_in_bytes", "memory.swap.max"],
            ["268435456", "134217728"],
        ),
        (
            "cpu",
            ["cpu.cfs_quota_us", "cpu.max"],
            ["150000", "150000 100000"],
        ),
    ];
    check(pid, &after);
    check(pid, &KEPT[5..]);
    ship.ok(&[
        "update",
        "--pids-limit",
        "-1",
        "--blkio-weight",
        "500",
        "box",
    ]);
    check(
        pid,
        &[
            ("pids", ["pids.max", "pids.max"], ["max"; 2]),
            (
                "blkio",
                ["blkio.weight", "io.weight"],
                ["500", "default 4950"],
            ),
        ],
    );
    assert_eq!(ship.process_1("box"), pid, "it went on");
    assert_eq!(ship.known("box", "/HostConfig/Memory"), 134_217_728);
    ship.ok(&["restart", "-t", "0", "box"]);
    check(ship.process_1("box"), &after);
    // The policy counts at the next end.
    ship.ok(&["update", "--restart", "on-failure:3", "box"]);
    assert_eq!(
        ship.known("box", "/HostConfig/RestartPolicy/Name"),
        "on-failure"
    );
    // One that does not run has them when it does.
    ship.ok(&["create", "--name", "idle", "busybox", "sleep", "1000"]);
    ship.ok(&["update", "--pids-limit", "77", "idle"]);
    ship.ok(&["start", "idle"]);
    let pids: Expected = ("pids", ["pids.max", "pids.max"], ["77"; 2]);
    check(ship.process_1("idle"), &[pids]);
}

#[test]
fn limits_that_cannot_be_changed() {
    let ship = Ship::new();
    ship.detached(
        "box",
        &["-m", "64m", "--memory-swap", "96m"],
        &["sleep", "1000"],
    );
    let fails = |flags: &[&str], code: i32, expected: &str| {
        let ran: Ran = ship.run(&[&["update"], flags, &["box"]].concat());
        ran.fails(code, expected);
    };
    fails(&[], 2, "nothing is to be changed");
    fails(&["-m", "1m"], 2, "Minimum memory limit allowed is 6MB");
    fails(&["--restart", "sometimes"], 2, "no restart policy");
    fails(&["--memory-swap", "32m"], 1, "less than --memory");
    fails(&["--memory-reservation", "80m"], 1, "--memory-reservation");
    fails(&["--cpuset-cpus", "4000"], 1, "processors");
    fails(&["--gpus", "all"], 2, "docker's flag `--gpus` is not built");
    ship.run(&["update", "-m", "64m", "nobody"])
        .fails(1, "no such container: `nobody`");
    // Nothing of it was kept.
    assert_eq!(ship.known("box", "/HostConfig/CpusetCpus"), "");
    assert_eq!(ship.known("box", "/HostConfig/Memory"), 67_108_864);
    ship.ok(&["create", "--rm", "--name", "gone", "busybox"]);
    ship.run(&["update", "--restart", "always", "gone"])
        .fails(1, "is removed when it ends");
}

#[test]
fn limits_of_steps_reach_the_kernel() {
    let ship = Ship::new();
    // Found by what nobody else sleeps for.
    let line = format!("sleep 9{:09}", std::process::id());
    let dockerfile = format!("FROM busybox\nRUN exec {line}\n");
    let folder = ship.0.context("step", &[("Dockerfile", &dockerfile)]);
    let flags = ["build", "--memory", "64m", "--memory-swap", "96m"];
    let more = [
        "--cpu-quota",
        "20000",
        "--cpu-period",
        "40000",
        "--cpu-shares",
        "512",
    ];
    let sets = [
        "--cpuset-cpus",
        "0",
        "--cpuset-mems",
        "0",
        folder.to_str().unwrap(),
    ];
    let mut build = ship
        .0
        .command([&flags[..], &more, &sets].concat())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = loop {
        if let Some(pid) = process_of(&line) {
            break pid;
        }
        let ended = build.try_wait().unwrap();
        assert_eq!(ended, None, "the step did not run");
        std::thread::yield_now();
    };
    let mut expected = [&KEPT[..2], &KEPT[5..8]].concat();
    expected.push((
        "cpu",
        ["cpu.cfs_quota_us", "cpu.max"],
        ["20000", "20000 40000"],
    ));
    check(pid, &expected);
    signal(&build, "INT");
    assert_eq!(build.wait().unwrap().code(), Some(130));
}

/// The process with this command line.
fn process_of(line: &str) -> Option<u32> {
    let wanted = line.replace(' ', "\0") + "\0";
    std::fs::read_dir("/proc").unwrap().find_map(|entry| {
        let pid: u32 = entry.ok()?.file_name().to_str()?.parse().ok()?;
        let found = std::fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
        (found == wanted).then_some(pid)
    })
}
