//! What cannot be run: each is told in words that name it, with docker's exit code, and leaves nothing behind.

use std::os::unix::fs::PermissionsExt;

use crate::ship::Ship;

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
