//! The same tests as an ordinary user, with and without subordinate ids; and the way into the namespace.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};

use runner::Privilege;

use crate::Count;

/// An ordinary user that the tests make, with subordinate ids.
const USER: &str = "longshore-test";
/// A user that every system has, and whom none gives subordinate ids.
const SINGLE: &str = "nobody";

/// Runs everything again as these users, with a copy of this program that they may read.
pub(crate) fn run_rootless(filter: &str) -> Count {
    let dir = tempfile::Builder::new()
        .prefix("runner-it-exe-")
        .tempdir()
        .unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = dir.path().join("it");
    fs::copy("/proc/self/exe", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let program = program.to_str().unwrap();
    let scratch = dir.path().join("tmp");
    fs::create_dir(&scratch).unwrap();
    fs::set_permissions(&scratch, fs::Permissions::from_mode(0o1777)).unwrap();

    let made = make_user();
    let mut count = Count::default();
    for user in [USER, SINGLE] {
        let failed_before = count.failed;
        let mut child = as_user(user, program, &["--rootless", filter])
            .env("TMPDIR", &scratch)
            .stdout(Stdio::piped())
            .spawn()
            .expect("setpriv is installed");
        for line in BufReader::new(child.stdout.take().unwrap()).lines() {
            let line = line.unwrap();
            if !line.starts_with("test ") || line.starts_with("test result:") {
                continue;
            }
            println!("{line}");
            if line.ends_with("... ok") {
                count.passed += 1;
            } else if line.contains("... ignored") {
                count.ignored += 1;
            } else {
                count.failed += 1;
            }
        }
        let status = child.wait().unwrap();
        // Its own verdict must be the one that its lines add up to.
        if status.code() != Some(if count.failed > failed_before { 101 } else { 0 }) {
            println!("test {user} ... FAILED, the run ended with {status}");
            count.failed += 1;
        }
    }
    for (name, result) in [
        (
            "entered_as_told",
            std::panic::catch_unwind(|| entered_as_told(program)),
        ),
        (
            "outer_ends_as_inner",
            std::panic::catch_unwind(|| outer_ends_as_inner(program)),
        ),
        (
            "outer_forwards_signals",
            std::panic::catch_unwind(|| outer_forwards_signals(program)),
        ),
        (
            "inner_dies_with_outer",
            std::panic::catch_unwind(|| inner_dies_with_outer(program)),
        ),
    ] {
        let name = format!("users::{name}");
        if name.contains(filter) {
            println!(
                "test {name} ... {}",
                if result.is_ok() { "ok" } else { "FAILED" }
            );
            if result.is_ok() {
                count.passed += 1;
            } else {
                count.failed += 1;
            }
        }
    }
    if made {
        let _removed = Command::new("userdel").arg(USER).status();
    }
    count
}

/// Makes the user, unless it is there; says whether it did.
fn make_user() -> bool {
    let has = |table: &str| {
        let text = fs::read_to_string(table).unwrap_or_default();
        text.lines()
            .any(|line| line.starts_with(&format!("{USER}:")))
    };
    let run = |program: &str, args: &[&str]| {
        let status = Command::new(program)
            .args(args)
            .status()
            .expect("shadow's tools are installed");
        assert!(status.success(), "{program} {args:?}: {status}");
    };
    let made = !has("/etc/passwd");
    if made {
        run("useradd", &["--no-create-home", "--shell", "/bin/sh", USER]);
    }
    if !has("/etc/subuid") {
        run("usermod", &["--add-subuids", "720000-785535", USER]);
    }
    if !has("/etc/subgid") {
        run("usermod", &["--add-subgids", "720000-785535", USER]);
    }
    made
}

fn as_user(user: &str, program: &str, args: &[&str]) -> Command {
    let table = fs::read_to_string("/etc/passwd").unwrap();
    let line = table
        .lines()
        .find(|line| line.starts_with(&format!("{user}:")))
        .unwrap();
    let gid = line.split(':').nth(3).unwrap();
    // Whoever started the tests may ignore signals, as a shell does for what it starts in the background.
    let mut command = Command::new("env");
    command
        .args(["--default-signal", "setpriv"])
        .args(["--reuid", user, "--regid", gid, "--clear-groups", program])
        .args(args)
        .current_dir("/")
        .stdin(Stdio::null());
    command
}

/// What the tests below run as an ordinary user: enters the namespace, then does as told.
pub(crate) fn enter(args: &[String]) {
    let privilege = runner::enter_user_namespace().unwrap();
    match args[0].as_str() {
        "tell" => {
            let ids = |path| fs::read_to_string(path).unwrap().lines().count();
            println!(
                "{privilege:?} {} {}",
                ids("/proc/self/uid_map"),
                ids("/proc/self/gid_map")
            );
            assert_eq!(
                runner::enter_user_namespace().unwrap(),
                privilege,
                "already there"
            );
        }
        "exit" => std::process::exit(args[1].parse().unwrap()),
        "signal" => {
            let own = rustix::process::getpid();
            rustix::process::kill_process(own, rustix::process::Signal::TERM).unwrap();
        }
        "wait" => {
            println!("{} ready", std::process::id());
            std::io::stdout().flush().unwrap();
            std::thread::sleep(std::time::Duration::from_secs(1000));
        }
        other => panic!("{other}"),
    }
}

fn entered_as_told(program: &str) {
    for (user, expect) in [
        (USER, format!("{:?} 2 2\n", Privilege::RootlessSubordinate)),
        (SINGLE, format!("{:?} 1 1\n", Privilege::RootlessSingleId)),
    ] {
        let output = as_user(user, program, &["--enter", "tell"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(String::from_utf8(output.stdout).unwrap(), expect);
    }
}

fn outer_ends_as_inner(program: &str) {
    for code in [0, 7, 255] {
        let args = ["--enter", "exit", &code.to_string()];
        let status = as_user(USER, program, &args).status().unwrap();
        assert_eq!(status.code(), Some(code));
    }
    let status = as_user(USER, program, &["--enter", "signal"])
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(libc::SIGTERM));
}

/// Starts one that waits; returns it with the end of its output, which comes when both are gone.
fn waiting(program: &str) -> (std::process::Child, BufReader<std::process::ChildStdout>) {
    let mut outer = as_user(USER, program, &["--enter", "wait"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(outer.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert!(line.ends_with(" ready\n"), "{line}");
    assert_ne!(
        line,
        format!("{} ready\n", outer.id()),
        "the inner one is another process"
    );
    (outer, out)
}

fn outer_forwards_signals(program: &str) {
    for signal in [rustix::process::Signal::TERM, rustix::process::Signal::INT] {
        let (mut outer, mut out) = waiting(program);
        let pid = rustix::process::Pid::from_child(&outer);
        rustix::process::kill_process(pid, signal).unwrap();
        assert_eq!(outer.wait().unwrap().signal(), Some(signal.as_raw()));
        assert_eq!(out.read_line(&mut String::new()).unwrap(), 0);
    }
}

fn inner_dies_with_outer(program: &str) {
    let (mut outer, mut out) = waiting(program);
    outer.kill().unwrap();
    assert_eq!(outer.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert_eq!(out.read_line(&mut String::new()).unwrap(), 0);
}
