//! Flags of `run` and `create`, each by what a command in the container sees of it.

use crate::ship::Ship;

/// What a shell line in a container that was started with these flags prints.
fn check(ship: &Ship, flags: &[&str], line: &str, expected: &str) {
    let all = [&["run", "--rm"], flags, &["busybox", "sh", "-c", line]].concat();
    assert_eq!(ship.ok(&all), expected, "{flags:?}");
}

#[test]
fn identity_and_surroundings() {
    let ship = Ship::new();
    check(&ship, &["-w", "/made/here"], "pwd", "/made/here");
    check(&ship, &["-u", "daemon"], "id -un", "daemon");
    check(&ship, &["-u", "12:34"], "id", "uid=12 gid=34 groups=34");
    check(
        &ship,
        &["-u", "12:34", "--group-add", "daemon", "--group-add", "77"],
        "id -G | tr ' ' '\\n' | sort -n | xargs",
        "1 34 77",
    );
    check(
        &ship,
        &["-h", "boat", "--network", "none"],
        "hostname; cat /etc/hostname",
        "boat\nboat",
    );
    check(
        &ship,
        &["-e", "A=1", "-e", "B="],
        "echo $A-$B-${C-none}",
        "1--none",
    );
    let file = ship.0.path("env");
    std::fs::write(&file, "# not this\nA=from the file\nB=2\n").unwrap();
    check(
        &ship,
        &["--env-file", file.to_str().unwrap(), "-e", "B=3"],
        "echo $A $B",
        "from the file 3",
    );
    check(&ship, &["--label", "a=b", "--label", "c"], "true", "");
    check(&ship, &["--entrypoint", "echo"], "x", "sh -c x");
    check(&ship, &["--init=false"], "echo $$", "1");
    check(
        &ship,
        &["--add-host", "there:192.0.2.7"],
        "grep there /etc/hosts | xargs",
        "192.0.2.7 there",
    );
    let cid = ship.0.path("cid");
    let id = ship.ok(&["create", "--cidfile", cid.to_str().unwrap(), "busybox"]);
    assert_eq!(std::fs::read_to_string(&cid).unwrap(), id);
}

#[test]
fn files_and_memory() {
    let ship = Ship::new();
    let folder = ship.0.context("site", &[("a", "one")]);
    let folder = folder.to_str().unwrap();
    check(
        &ship,
        &["-v", &format!("{folder}:/site:ro")],
        "cat /site/a; ! touch /site/b 2>&1",
        "onetouch: /site/b: Read-only file system",
    );
}

#[test]
fn limits_and_settings() {
    let ship = Ship::new();
    check(
        &ship,
        &["--ulimit", "nofile=100:200"],
        "ulimit -n; ulimit -Hn",
        "100\n200",
    );
    check(
        &ship,
        &["--shm-size", "1m"],
        "df -k /dev/shm | awk 'END { print $2 }'",
        "1024",
    );
    check(
        &ship,
        &["--network", "none", "--sysctl", "net.core.somaxconn=77"],
        "cat /proc/sys/net/core/somaxconn",
        "77",
    );
    check(
        &ship,
        &["--sysctl", "kernel.shmmax=70000"],
        "cat /proc/sys/kernel/shmmax",
        "70000",
    );
    let host = rustix::system::uname();
    let host = host.nodename().to_str().unwrap().to_owned();
    check(
        &ship,
        &["--uts", "host", "--network", "none"],
        "hostname",
        &host,
    );
    let own = |kind: &str| {
        let link = std::fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
        link.to_str().unwrap().to_owned()
    };
    check(
        &ship,
        &["--ipc", "host"],
        "readlink /proc/self/ns/ipc",
        &own("ipc"),
    );
    check(
        &ship,
        &["--cap-drop", "ALL", "--cap-add", "chown"],
        "grep CapEff /proc/self/status | cut -f2",
        "0000000000000001",
    );
    check(
        &ship,
        &["--security-opt", "no-new-privileges"],
        "grep NoNewPrivs /proc/self/status | cut -f2",
        "1",
    );
    check(
        &ship,
        &["--read-only", "--tmpfs", "/tmp:size=1m"],
        "touch /tmp/a && ls /tmp; ! touch /a 2>&1",
        "a\ntouch: /a: Read-only file system",
    );
}

#[test]
fn what_another_container_has_mounted() {
    let ship = Ship::new();
    let folder = ship.0.context("site", &[("a", "one")]);
    let bind = format!("{}:/site", folder.to_str().unwrap());
    ship.ok(&[
        "run",
        "--name",
        "first",
        "-v",
        &bind,
        "-v",
        "kept:/kept",
        "-v",
        "/nameless",
        "--tmpfs",
        "/memory",
        "busybox",
        "sh",
        "-c",
        "echo two > /kept/b; echo three > /nameless/c",
    ]);
    let from = ["--volumes-from", "first"];
    check(
        &ship,
        &from,
        "cat /site/a /kept/b /nameless/c; ! ls -d /memory 2>/dev/null",
        "onetwo\nthree",
    );
    check(
        &ship,
        &["--volumes-from", "first:ro"],
        "! touch /kept/d 2>&1",
        "touch: /kept/d: Read-only file system",
    );
    check(
        &ship,
        &["--volumes-from", "first", "-v", "other:/kept"],
        "ls /kept",
        "",
    );
    // The one without a name is kept by whoever still uses it.
    ship.ok(&[
        "create",
        "--name",
        "second",
        "--volumes-from",
        "first",
        "busybox",
    ]);
    ship.ok(&["rm", "-v", "first"]);
    assert_eq!(ship.run(&["start", "-a", "second"]).code, Some(0));
    assert_eq!(ship.ok(&["volume", "ls", "-q"]).lines().count(), 3);
    ship.ok(&["rm", "-v", "second"]);
    assert_eq!(ship.ok(&["volume", "ls", "-q"]), "kept\nother");
    ship.run(&["run", "--volumes-from", "nobody", "busybox"])
        .fails(125, "no such container: `nobody`");
}

#[test]
fn flags_that_are_at_odds() {
    let ship = Ship::new();
    let check = |flags: &[&str], expected: &str| {
        let all = [&["run", "--rm"], flags, &["busybox", "true"]].concat();
        ship.run(&all).fails(125, expected);
    };
    check(&["--sysctl", "net.core.somaxconn=77"], "shares its network");
    check(
        &["--sysctl", "kernel.panic=1"],
        "cannot be set for a container alone",
    );
    check(&["--sysctl", "kernel"], "expected NAME=VALUE");
    check(
        &["--uts", "host", "-h", "boat"],
        "--hostname would name the host",
    );
    check(&["--ipc", "host", "--userns", "private"], "at odds");
    check(&["--ipc", "container:x"], "invalid value");
    check(&["--group-add", "nobody-knows"], "nobody-knows");
    check(&["--platform", "linux/s390x"], "not for linux/s390x");
    check(&["--pid", "host"], "unexpected argument");
}
