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
fn only_the_streams_that_are_asked_for() {
    let ship = Ship::new();
    let line = "cat; echo out; echo err >&2";
    let check = |flags: &[&str], expected: (&str, &str)| {
        let all = [&["run", "--rm"], flags, &["busybox", "sh", "-c", line]].concat();
        let ran = ship.run(&all);
        assert_eq!(
            (ran.stdout.as_str(), ran.stderr.as_str()),
            expected,
            "{flags:?}"
        );
    };
    check(&[], ("out\n", "err\n"));
    check(&["-a", "stdout"], ("out\n", ""));
    check(&["-a", "STDERR"], ("", "err\n"));
    check(&["-a", "stdout", "-a", "stderr"], ("out\n", "err\n"));
    // Nothing of it is seen: as with docker, its id is.
    let ran = ship.run(&[
        "run", "-a", "stdin", "-i", "--name", "quiet", "busybox", "sh", "-c", line,
    ]);
    let id = ship.known("quiet", "/Id");
    assert_eq!(
        (ran.stdout.trim(), ran.stderr.as_str()),
        (id.as_str().unwrap(), "")
    );
    assert_eq!(
        ship.ok(&["logs", "quiet"]),
        "out",
        "it is kept all the same"
    );
}

#[test]
fn nothing_is_pulled_for_flags_that_make_no_sense() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "taken", "busybox"]);
    let check = |flags: &[&str], expected: &str| {
        for first in [&["run", "--rm"][..], &["create"]] {
            // Nobody is there to pull from: who tried would say so.
            let image = ["--pull", "always", "localhost:1/none", "true"];
            let ran = ship.run(&[first, flags, &image].concat());
            assert_ne!(ran.code, Some(0));
            assert!(ran.stderr.contains(expected), "{flags:?}: {}", ran.stderr);
            assert!(
                !ran.stderr.contains("localhost:1"),
                "{flags:?}: {}",
                ran.stderr
            );
        }
    };
    check(&["--name", "taken"], "already in use");
    check(&["--name", "a/b"], "no container name");
    check(&["-m", "1m"], "Minimum memory limit allowed is 6MB");
    check(&["-m", "much"], "cannot read --memory `much`");
    check(&["--memory-swap", "64m"], "it needs --memory");
    check(&["-p", "80:many"], "invalid containerPort");
    check(&["-p", "99999:80"], "invalid hostPort");
    check(&["-p", "300.0.0.1:80:80"], "invalid ip address");
    check(&["-p", "80/sctp"], "tcp and udp are carried");
    check(&["-w", "here"], "needs to be an absolute path");
    check(&["-v", "a:b:c:d"], "more than three");
    check(&["-v", "/x", "--tmpfs", "/x"], "duplicate mount point");
    check(&["--mount", "type=bind,target=/x"], "it names no source");
    check(&["--security-opt", "magic"], "`magic` is not supported");
    check(&["--cap-add", "NET_ADMlN"], "did you mean `NET_ADMIN`");
    check(&["--restart", "sometimes"], "no restart policy");
    check(&["--stop-signal", "NONE"], "no signal");
    check(
        &["--health-cmd", "true", "--health-interval", "often"],
        "expected a duration",
    );
    check(&["--ulimit", "nofile=9:8"], "nofile");
    check(&["--device", "/etc/passwd"], "it is no device");
    check(&["--env-file", "/no/such"], "/no/such");
    check(
        &["--log-opt", "colour=red"],
        "`colour=red` is not supported",
    );
    check(&["--network", "container:nobody"], "no such container");
    check(&["--volumes-from", "nobody"], "no such container");
    check(&["--add-host", "name"], "name");
}

#[test]
fn flags_that_are_at_odds() {
    let ship = Ship::new();
    let check = |flags: &[&str], expected: &str| {
        let all = [&["run", "--rm"], flags, &["busybox", "true"]].concat();
        ship.run(&all).fails(125, expected);
    };
    check(
        &["--sysctl", "net.core.somaxconn=77"],
        "shares the host's network",
    );
    check(
        &["--sysctl", "kernel.panic=1"],
        "cannot be set for a container alone",
    );
    check(&["--sysctl", "kernel"], "expected NAME=VALUE");
    check(
        &["--uts", "host", "-h", "boat"],
        "conflicting options: hostname",
    );
    check(&["--ipc", "host", "--userns", "private"], "at odds");
    check(
        &["--ipc", "container:nobody"],
        "no such container: `nobody`",
    );
    check(&["--ipc", "mine"], "--ipc: invalid mode `mine`");
    check(&["--group-add", "nobody-knows"], "nobody-knows");
    check(&["--platform", "linux/s390x"], "not for linux/s390x");
    check(&["--gpus", "all"], "docker's flag `--gpus` is not built");
    check(&["-a", "stdout", "-d"], "Conflicting options: -a and -d");
    check(&["-a", "all"], "invalid value 'all'");
    check(&["-p", "80/sctp"], "tcp and udp are carried");
    check(&["-w", "here"], "needs to be an absolute path");
}
