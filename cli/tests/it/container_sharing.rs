//! What containers share with each other, and with the host: `--pid`, `--ipc`, `--uts` and `--network`.

use crate::ship::Ship;
use crate::support::Ran;

const EVERYTHING: [&str; 8] = [
    "--pid",
    "container:first",
    "--ipc",
    "container:first",
    "--uts",
    "container:first",
    "--network",
    "container:first",
];

/// The namespaces of a container's process.
fn namespaces(ship: &Ship, flags: &[&str]) -> Vec<String> {
    let line = "for n in ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
    let words = [&["run", "--rm"], flags, &["busybox", "sh", "-c", line]].concat();
    ship.ok(&words).lines().map(str::to_owned).collect()
}

fn everything_of_another(flags: &[&str]) {
    let ship = Ship::new();
    let script = "echo shared > /dev/shm/note; hostname -F /etc/hostname; exec sleep 1000";
    ship.detached(
        "first",
        &[flags, &["--hostname", "boat", "--network", "none"]].concat(),
        &["sh", "-c", script],
    );
    let line = "for n in ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
    let theirs = ship.ok(&["exec", "first", "sh", "-c", line]);
    let ours = namespaces(&ship, &EVERYTHING);
    for (own, other) in ours.iter().zip(theirs.lines()) {
        // Files are a container's own, whatever else it shares.
        assert_eq!(own != other, own.starts_with("mnt"), "{own}");
    }
    let second = [&["run", "--rm"], &EVERYTHING[..], &["busybox", "sh", "-c"]].concat();
    let check = |line: &str, expected: &str| {
        assert_eq!(
            ship.ok(&[&second[..], &[line]].concat()),
            expected,
            "{line}"
        );
    };
    check("hostname; cat /etc/hostname", "boat\nboat");
    check("cat /dev/shm/note; echo back > /dev/shm/answer", "shared");
    assert_eq!(
        ship.ok(&["exec", "first", "cat", "/dev/shm/answer"]),
        "back"
    );
    check("ps -o args | grep -c '^sleep 1000'", "1");
    check("mount | grep -c '^proc on /proc type proc'", "1");
    // What the other listens on is at hand; ports below 1024 too, for who is root of both.
    check(
        "nc -l -p 80 -e echo heard & until netstat -ltn | grep -q ':80 '; do :; done; nc 127.0.0.1 80 </dev/null; wait",
        "heard",
    );
    // What it leaves running ends with it, although the namespace of processes lives on.
    check("sleep 2000 & echo left", "left");
    let left = ship.ok(&["exec", "first", "ps", "-o", "args"]);
    assert!(!left.contains("sleep 2000"), "{left}");
    // It can be executed in, looked at and stopped, without anything becoming of the other.
    ship.detached("second", &EVERYTHING, &["sleep", "3000"]);
    let seen = ship.ok(&["exec", "second", "ps", "-o", "args"]);
    assert!(
        seen.contains("sleep 1000") && seen.contains("sleep 3000"),
        "{seen}"
    );
    let top = ship.ok(&["top", "second"]);
    assert!(
        top.contains("sleep 3000") && !top.contains("sleep 1000"),
        "{top}"
    );
    ship.ok(&["pause", "second"]);
    assert_eq!(ship.ok(&["exec", "first", "echo", "moves"]), "moves");
    ship.ok(&["unpause", "second"]);
    ship.ok(&["stop", "-t", "0", "second"]);
    assert_eq!(ship.known("first", "/State/Status"), "running");
    ship.ok(&["stop", "-t", "0", "first"]);
    ship.run(&["start", "second"]).fails(
        1,
        "cannot join the IPC and network and PID and UTS of container `first`, which does not run",
    );
    let id = ship.known("first", "/Id");
    let mode = ship.known("second", "/HostConfig/PidMode");
    assert_eq!(mode, format!("container:{}", id.as_str().unwrap()));
}

#[test]
fn everything_of_another_with_ids_of_its_own() {
    everything_of_another(&["--userns", "private"]);
}

#[test]
fn everything_of_another_with_the_hosts_ids() {
    everything_of_another(&["--userns", "host"]);
}

#[test]
fn one_thing_of_another() {
    let ship = Ship::new();
    ship.detached("first", &["--network", "none"], &["sleep", "1000"]);
    let line = "for n in ipc mnt net pid user uts; do readlink /proc/self/ns/$n; done";
    let theirs = ship.ok(&["exec", "first", "sh", "-c", line]);
    let theirs: Vec<&str> = theirs.lines().collect();
    for (flag, kind) in [("--pid", "pid"), ("--ipc", "ipc"), ("--uts", "uts")] {
        let flags = [flag, "container:first", "--network", "none"];
        let ours = namespaces(&ship, &flags);
        for (own, other) in ours.iter().zip(&theirs) {
            let is_shared = own.starts_with(kind) || own.starts_with("user");
            assert_eq!(own == other, is_shared, "{flag}: {own}, {other}");
        }
    }
}

#[test]
fn processes_of_the_host() {
    let ship = Ship::new();
    let own = std::process::id();
    let seen = ["run", "--rm", "--pid", "host", "busybox", "sh", "-c"];
    let see = |line: &str| ship.ok(&[&seen[..], &[line]].concat());
    let name = std::fs::read_to_string(format!("/proc/{own}/comm")).unwrap();
    assert_eq!(see(&format!("cat /proc/{own}/comm")), name.trim());
    let pid = see("sleep 1000 & echo $!");
    let path = format!("/proc/{pid}/cmdline");
    let text = std::fs::read_to_string(path).unwrap_or_default();
    assert!(!text.contains("sleep"), "it lives on: {text}");
    ship.detached("box", &["--pid", "host"], &["sleep", "1000"]);
    let top = ship.ok(&["top", "box"]);
    // Its init, the command, and nothing of the host's.
    assert_eq!(top.lines().count(), 3, "{top}");
    assert_eq!(
        ship.ok(&["exec", "box", "cat", &format!("/proc/{own}/comm")]),
        name.trim()
    );
    ship.ok(&["rm", "-f", "box"]);
}

#[test]
fn what_cannot_be_shared() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "idle", "busybox"]);
    ship.detached("private", &["--userns", "private"], &["sleep", "1000"]);
    ship.detached("plain", &["--userns", "host"], &["sleep", "1000"]);
    let check = |flags: &[&str], expected: &str| {
        let words = [&["run", "--rm"], flags, &["busybox", "true"]].concat();
        let ran: Ran = ship.run(&words);
        ran.fails(125, expected);
    };
    check(
        &["--pid", "container:idle"],
        "cannot join the PID of container `idle`",
    );
    check(
        &["--pid", "container:none-such"],
        "no such container: `none-such`",
    );
    check(&["--pid", "elsewhere"], "--pid: invalid mode `elsewhere`");
    check(
        &["--network", "container:idle", "-p", "80"],
        "conflicting options: --publish",
    );
    check(
        &["--network", "container:idle", "-h", "name"],
        "conflicting options: --hostname",
    );
    check(
        &["--uts", "container:idle", "-h", "name"],
        "conflicting options: hostname",
    );
    check(
        &["--uts", "host", "-h", "name"],
        "conflicting options: hostname",
    );
    check(
        &["--ipc", "container:private", "--pid", "container:plain"],
        "different ids",
    );
    check(
        &["--pid", "container:private", "--privileged"],
        "ids of its own",
    );
    check(
        &["--pid", "container:plain", "--userns", "private"],
        "has the host's ids",
    );
    check(&["--pid", "host", "--userns", "private"], "at odds");
}
