//! What cannot be run: each is told in words that name it, with docker's exit code, and leaves nothing behind.

use std::os::unix::fs::PermissionsExt;

use crate::ship::{Ship, parent, until_ended, watched};

/// An image of busybox with files, each with its mode.
fn image(ship: &Ship, files: &[(&str, &[u8], u32)]) {
    let folder = ship
        .0
        .context("image", &[("Dockerfile", "FROM busybox\nCOPY . /\n")]);
    for (name, bytes, mode) in files {
        let path = folder.join(name);
        std::fs::write(&path, bytes).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(*mode)).unwrap();
    }
    ship.ok(&["build", "-q", "-t", "image", folder.to_str().unwrap()]);
}

/// The first 64 bytes of a program for a processor, by its number in ELF headers.
fn program_for(machine: u8) -> Vec<u8> {
    let mut header = vec![0; 64];
    header[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    header[16] = 2;
    header[18] = machine;
    header[20] = 1;
    header
}

#[test]
fn commands_that_cannot_run() {
    let ship = Ship::new();
    // 183 is AArch64, wherever this test runs but there.
    let foreign = match std::env::consts::ARCH {
        "aarch64" => (program_for(62), "amd64"),
        _ => (program_for(183), "arm64"),
    };
    image(
        &ship,
        &[
            ("script", b"#!/no/such/shell\n", 0o755),
            ("foreign", &foreign.0, 0o755),
            ("text", b"just text\n", 0o755),
            ("plain", b"#!/bin/sh\n", 0o644),
        ],
    );
    let check = |command: &str, code: i32, expected: &str| {
        ship.run(&["run", "--rm", "image", command])
            .fails(code, expected);
        // The same in one that runs, and detached.
        ship.run(&["run", "-d", "--rm", "image", command])
            .fails(code, expected);
        ship.run(&["exec", "box", command]).fails(code, expected);
    };
    ship.ok(&["run", "-d", "--name", "box", "image", "sleep", "1000"]);
    check(
        "/script",
        126,
        "needs `/no/such/shell`, which is not in the image",
    );
    check("/foreign", 126, foreign.1);
    check("/foreign", 126, "binfmt_misc");
    check("/foreign", 126, "qemu");
    check("/text", 126, "neither a program nor a script");
    check("/plain", 126, "`/plain` is not executable");
    check("/etc", 126, "`/etc` is not executable");
    check("no-such", 127, "command `no-such` not found");
    check("/no/such", 127, "command `/no/such` not found");
    assert_eq!(ship.ok(&["ps", "-a", "--format", "{{.Names}}"]), "box");
}

#[test]
fn flags_that_cannot_be_carried_out() {
    let ship = Ship::new();
    let file = ship.0.path("file");
    std::fs::write(&file, "text").unwrap();
    let file = file.to_str().unwrap();
    let check = |flags: &[&str], code: i32, expected: &str| {
        for first in [["run", "--rm"], ["run", "-d"]] {
            ship.run(&[&first[..], flags, &["busybox", "true"]].concat())
                .fails(code, expected);
        }
        let left = ship.ok(&["ps", "-aq"]);
        for id in left.lines() {
            // As with docker one that cannot be started is there all the same, unless it is to be removed.
            assert_eq!(ship.known(id, "/State/Status"), "created");
            ship.ok(&["rm", id]);
        }
    };
    check(
        &["-u", "nobody-knows"],
        125,
        "user `nobody-knows` is not in the image's `/etc/passwd`",
    );
    check(
        &["-u", "0:nobody-knows"],
        125,
        "group `nobody-knows` is not in the image's `/etc/group`",
    );
    check(&["-u", "4294967296"], 125, "out of range");
    check(
        &["-v", &format!("{file}:/etc")],
        125,
        &format!("`{file}` at `/etc`: it is a file"),
    );
    check(
        &["-v", "/etc:/etc/passwd"],
        125,
        "`/etc` at `/etc/passwd`: it is a folder",
    );
    check(&["-v", &format!("{file}/below:/x")], 125, "Not a directory");
    check(
        &["-v", "named:/etc/passwd"],
        125,
        "`/etc/passwd`: it is a folder",
    );
    check(
        &["--mount", "type=bind,src=/no/such,dst=/x"],
        125,
        "`/no/such`: No such file",
    );
    check(&["-m", "1m"], 125, "Minimum memory limit allowed is 6MB");
    check(
        &["-m", "6m", "--memory-swap", "1m"],
        125,
        "--memory-swap is memory and swap together",
    );
    check(&["-w", "/etc/passwd"], 125, "`/etc/passwd`");
    check(&["--device", "/dev/no-such"], 125, "/dev/no-such");
    check(&["--device", "/etc/passwd"], 125, "it is no device");
    check(&["--ulimit", "nofile=9:8"], 125, "nofile");
    check(&["--no-such-flag"], 125, "--no-such-flag");
    assert_eq!(ship.ok(&["ps", "-aq"]), "");
}

#[test]
fn stale_states_name_nobody() {
    let ship = Ship::new();
    let id = ship.ok(&["create", "--name", "box", "busybox", "true"]);
    let state = ship.state_file(&id);
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let own = std::process::id();
    let check = |boot: &str, code: i32| {
        // Written by a supervisor that is gone; its process's id is another's now: this test's.
        let stale = format!(
            r#"{{"status":"running","pid":{own},"boot_id":"{boot}","started_at":"2024-01-01T00:00:00Z"}}"#
        );
        std::fs::write(&state, stale).unwrap();
        assert_eq!(ship.ok(&["ps", "-q"]), "");
        assert_eq!(ship.known("box", "/State/ExitCode"), code);
        assert_eq!(ship.known("box", "/State/Pid"), 0);
        assert_eq!(ship.ok(&["wait", "box"]), code.to_string());
        ship.run(&["kill", "box"]).fails(1, "is not running");
        ship.run(&["pause", "box"]).fails(1, "is not running");
        ship.run(&["top", "box"]).fails(1, "is not running");
        ship.run(&["exec", "box", "true"])
            .fails(1, "is not running");
        assert_eq!(ship.ok(&["stop", "box"]), "box");
        let rows = ship.ok(&["stats", "-a", "--no-stream", "--format", "{{.PIDs}}"]);
        assert_eq!(rows, "0");
    };
    check(boot.trim(), 137);
    check("of the past", 255);
    ship.ok(&["rm", "-f", "box"]);
    assert_eq!(ship.ok(&["ps", "-aq"]), "");
}

#[test]
fn a_killed_supervisor_frees_its_place_in_a_network() {
    let ship = Ship::new();
    ship.ok(&["network", "create", "--subnet", "10.211.77.0/24", "sea"]);
    ship.detached("box", &["--network", "sea"], &["sleep", "1000"]);
    let holder = ship.supervisor("box");
    let helper = watched(parent(ship.process_1("box")));
    let pid = rustix::process::Pid::from_raw(i32::try_from(holder).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    until_ended(&helper);
    assert_eq!(ship.until("box", "exited"), "137");
    // Nobody is on it any more.
    ship.ok(&["network", "rm", "sea"]);
    ship.ok(&["rm", "box"]);
}
