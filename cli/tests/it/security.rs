//! What processes may do, as the command line says it: `--security-opt` of `run`, `exec` and `build`.

use std::fs;

use crate::support::Place;

/// No folder is made, and nothing else is refused.
const NO_FOLDERS: &str = r#"{
  "defaultAction": "SCMP_ACT_ALLOW",
  "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28 }]
}"#;

/// A place with this profile; the flag that names it.
fn place_with(profile: &str) -> (Place, String) {
    let place = Place::with_busybox();
    let file = place.path("profile.json");
    fs::write(&file, profile).unwrap();
    (place, format!("--security-opt=seccomp={}", file.display()))
}

#[test]
fn profiles_of_system_calls() {
    let (place, flag) = place_with(NO_FOLDERS);
    let script =
        "mkdir /a 2>&1; mount -t tmpfs x /tmp 2>&1 | tail -n1; grep Seccomp: /proc/self/status";
    let shown = place
        .run(["run", "--rm", &flag, "busybox", "sh", "-c", script])
        .ok();
    assert!(
        shown.contains("mkdir: can't create directory '/a': No space left"),
        "{shown}"
    );
    // That the profile allows mount does not give the right to it.
    assert!(shown.contains("permission denied"), "{shown}");
    assert!(shown.contains("Seccomp:\t2"), "{shown}");

    // A container keeps what the file said when it was made, and `exec` has it too.
    let id = place
        .run([
            "run",
            "-d",
            "--init",
            "--name=kept",
            &flag,
            "busybox",
            "sleep",
            "1000",
        ])
        .ok();
    fs::remove_file(place.path("profile.json")).unwrap();
    let refused = place.run(["exec", "kept", "mkdir", "/b"]);
    refused.fails(1, "No space left");
    place
        .run(["exec", "--privileged", "kept", "mkdir", "/c"])
        .ok();
    place.run(["restart", "-t=0", "kept"]).ok();
    place
        .run(["exec", "kept", "mkdir", "/d"])
        .fails(1, "No space left");
    place.run(["rm", "-f", id.trim()]).ok();

    let off = [
        "run",
        "--rm",
        "--security-opt",
        "seccomp=unconfined",
        "busybox",
        "grep",
        "Seccomp:",
        "/proc/self/status",
    ];
    assert_eq!(place.run(off).ok(), "Seccomp:\t0");
    let set = [
        "run",
        "--rm",
        "--security-opt",
        "no-new-privileges",
        "busybox",
        "grep",
        "NoNewPrivs",
        "/proc/self/status",
    ];
    assert_eq!(place.run(set).ok(), "NoNewPrivs:\t1");
}

#[test]
fn profiles_for_steps() {
    let (place, flag) = place_with(NO_FOLDERS);
    let context = place.context("c", &[("Dockerfile", "FROM busybox\nRUN mkdir /a 2>&1; grep -E 'Seccomp:|NoNew' /proc/self/status; echo done > /out\n")]);
    let build = |flags: &[&str]| {
        let mut command = place.command(["build", "--progress=plain", "--no-cache", "-t", "made"]);
        crate::support::Ran::of(command.args(flags).arg(&context))
    };
    let ran = build(&[&flag, "--security-opt=no-new-privileges"]);
    ran.ok();
    for expect in ["No space left", "NoNewPrivs:\t1", "Seccomp:\t2"] {
        assert!(ran.stderr.contains(expect), "{expect}: {ran}");
    }
    let ran = build(&["--security-opt=seccomp=unconfined"]);
    ran.ok();
    assert!(ran.stderr.contains("Seccomp:\t0"), "{ran}");
    // No part of the key: what a step makes is the same.
    let mut again = place.command(["build", "--progress=plain", "-t", "made", &flag]);
    let again = crate::support::Ran::of(again.arg(&context));
    again.ok();
    assert!(again.stderr.contains("CACHED"), "{again}");
    build(&["--security-opt=magic"]).fails(2, "`magic` is not supported");
}

#[test]
fn bad_profiles_are_told() {
    let (place, flag) = place_with("");
    let check = |profile: &str, expect: &str| {
        fs::write(place.path("profile.json"), profile).unwrap();
        let shown = format!("profile.json`: {expect}");
        place
            .run(["run", "--rm", &flag, "busybox", "true"])
            .fails(125, &shown);
        place
            .run(["build", &flag, "/no-such-folder"])
            .fails(1, &shown);
    };
    check("", "EOF while parsing a value at line 1 column 0");
    check(
        "{\n  \"defaultAction\": \"ALLOW\"\n}",
        "unknown variant `ALLOW`, expected one of",
    );
    check(
        "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\",\n  \"sycalls\": []\n}",
        "unknown field `sycalls`",
    );
    let misspelt = NO_FOLDERS.replace("mkdirat", "mkdirta");
    check(
        &misspelt,
        "syscalls[0]: there is no system call `mkdirta` that could be refused",
    );
    place
        .run(["run", "--rm", &flag, "busybox", "true"])
        .fails(125, "did you mean `mkdirat`?");
    let missing = [
        "run",
        "--rm",
        "--security-opt=seccomp=/no/such.json",
        "busybox",
        "true",
    ];
    place.run(missing).fails(
        125,
        "cannot read the seccomp profile `/no/such.json`: No such file",
    );
}
