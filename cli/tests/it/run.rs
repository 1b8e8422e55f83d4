//! `run`: what goes into a container, and what comes out.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::{LONGSHORE, Place, Ran, signal};

#[test]
fn exit_codes_are_passed_through() {
    let place = Place::with_busybox();
    let code = |arguments: &[&str]| {
        let all = [&["run", "--rm", "busybox"], arguments].concat();
        place.run(all).code
    };
    assert_eq!(code(&["true"]), Some(0));
    assert_eq!(code(&["sh", "-c", "exit 42"]), Some(42));
    assert_eq!(code(&["sh", "-c", "kill -9 $$"]), Some(137));
    assert_eq!(code(&["no-such-command"]), Some(127));
    assert_eq!(code(&["/etc/passwd"]), Some(126));
    assert_eq!(
        place.run(["run", "--rm", "-v", "x:/y", "busybox"]).code,
        Some(125)
    );
}

#[test]
fn flags_do_what_dockers_do() {
    let place = Place::with_busybox();
    let folder = place.context("shared", &[("file", "from the host")]);
    let run = |arguments: &[&str]| {
        let all = [&["run", "--rm"], arguments].concat();
        place.run(all).ok()
    };
    assert_eq!(
        run(&["-e", "A=b c", "busybox", "sh", "-c", "echo $A $HOME"]),
        "b c /root"
    );
    assert_eq!(run(&["-w", "/made/here", "busybox", "pwd"]), "/made/here");
    assert_eq!(run(&["-u", "daemon", "busybox", "id", "-u"]), "1");
    assert_eq!(
        run(&["-u", "1234:5678", "busybox", "sh", "-c", "id -u; id -g"]),
        "1234\n5678"
    );
    let mount = format!("{}:/mnt:ro", folder.display());
    assert_eq!(
        run(&["-v", &mount, "busybox", "cat", "/mnt/file"]),
        "from the host"
    );
    let written = place.run(["run", "--rm", "-v", &mount, "busybox", "touch", "/mnt/x"]);
    written.fails(1, "Read-only file system");
    assert_eq!(run(&["--entrypoint", "echo", "busybox", "hi"]), "hi");
}

#[test]
fn containers_share_nothing_but_the_image() {
    let place = Place::with_busybox();
    place.sh("busybox", "echo x > /etc/written");
    let gone = place.run(["run", "--rm", "busybox", "cat", "/etc/written"]);
    gone.fails(1, "No such file");
    let processes = place.sh("busybox", "ls -d /proc/[0-9]* | wc -l");
    assert!(processes.parse::<u32>().unwrap() < 8, "{processes}");
    let capabilities = place.sh("busybox", "grep CapEff /proc/self/status");
    assert!(capabilities.ends_with("00000000a80425fb"), "{capabilities}");
    assert_eq!(
        place.sh("busybox", "grep Seccomp: /proc/self/status | cut -f2"),
        "2"
    );
}

#[test]
fn stdin_is_the_callers_with_i_and_empty_without() {
    let place = Place::with_busybox();
    let cat = |flags: &[&str]| {
        let all = [&["run", "--rm"], flags, &["busybox", "cat"]].concat();
        let mut child = place
            .command(all)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Without `-i` nobody reads it.
        let _ = child.stdin.take().unwrap().write_all(b"typed");
        String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
    };
    assert_eq!(cat(&["-i"]), "typed");
    assert_eq!(cat(&[]), "");
}

#[test]
fn a_terminal_is_passed_through() {
    let place = Place::with_busybox();
    let line = format!(
        "stty rows 30 cols 91; {LONGSHORE} run --rm -it busybox sh -c 'tty; stty size; exit 7'"
    );
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("LONGSHORE_ROOT", place.store());
    let ran = Ran::of(&mut command);
    assert_eq!(ran.code, Some(7), "{ran}");
    assert!(ran.stdout.contains("/dev/"), "{ran}");
    assert!(ran.stdout.contains("30 91"), "{ran}");
}

#[test]
fn signals_reach_the_command() {
    let place = Place::with_busybox();
    let start = |script: &str| {
        let mut child = place
            .command(["run", "--rm", "busybox", "sh", "-c", script])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        child
    };
    let mut handled = start("trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done");
    signal(&handled, "TERM");
    assert_eq!(handled.wait().unwrap().code(), Some(9));
    let mut unhandled = start("echo ready; exec sleep 1000");
    signal(&unhandled, "INT");
    assert_eq!(unhandled.wait().unwrap().code(), Some(130));
}
