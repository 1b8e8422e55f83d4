//! Signals, ends, and ends that come early: nothing of a sandbox outlives it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio as ProcessStdio};

use runner::{ExitStatus, Sandbox, Stdio, Stream};

use crate::Test;
use crate::world::{World, run};

pub(crate) const TESTS: &[Test] = &[
    ("signals", signals),
    ("killed", killed),
    ("killer_from_another_thread", killer_from_another_thread),
    ("dropped", dropped),
    ("the_caller_dies", the_caller_dies),
    ("helpers_are_kept", helpers_are_kept),
    ("usage_is_its_own", usage_is_its_own),
    ("groups_of_killed_helpers", groups_of_killed_helpers),
    ("init_reaps", init_reaps),
    ("init_forwards", init_forwards),
    ("many_at_once", many_at_once),
    ("a_large_caller", a_large_caller),
];

fn piped() -> Stdio {
    Stdio {
        stdin: Stream::Null,
        stdout: Stream::Pipe,
        stderr: Stream::Null,
    }
}

/// Starts a script and waits for its first line.
fn start(world: &World, script: &str, init: bool) -> (Sandbox, BufReader<fs::File>) {
    let mut spec = world.script(script);
    spec.init = init;
    let mut sandbox = Sandbox::spawn(&spec, piped()).unwrap();
    let mut out = BufReader::new(sandbox.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    (sandbox, out)
}

fn signals(world: &World) -> Result<(), String> {
    let script = "trap 'echo got; exit 42' TERM; echo ready; while :; do sleep 0.1; done";
    let (mut sandbox, mut out) = start(world, script, false);
    assert_eq!(sandbox.try_wait().unwrap(), None);
    assert!(sandbox.kill(-1).is_err());
    sandbox.kill(libc::SIGTERM).unwrap();
    assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(42));
    let mut rest = String::new();
    out.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "got\n");
    sandbox
        .kill(libc::SIGTERM)
        .expect("to an ended process is no error");
    Ok(())
}

fn killed(world: &World) -> Result<(), String> {
    let (mut sandbox, mut out) = start(world, "sleep 1000 & echo ready; wait", false);
    sandbox.kill(libc::SIGKILL).unwrap();
    let status = sandbox.wait().unwrap();
    assert_eq!(
        (status, status.code()),
        (ExitStatus::Signal(libc::SIGKILL), 137)
    );
    // The background process had the pipe too: it is gone with the namespace.
    assert_eq!(out.read_to_string(&mut String::new()).unwrap(), 0);
    Ok(())
}

fn killer_from_another_thread(world: &World) -> Result<(), String> {
    let (mut sandbox, _out) = start(world, "echo ready; sleep 1000", false);
    let killer = sandbox.killer();
    std::thread::scope(|scope| {
        scope.spawn(move || killer.kill(libc::SIGKILL).unwrap());
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Signal(libc::SIGKILL));
    });
    Ok(())
}

fn dropped(world: &World) -> Result<(), String> {
    let (sandbox, mut out) = start(world, "echo ready; sleep 1000", false);
    drop(sandbox);
    assert_eq!(out.read_to_string(&mut String::new()).unwrap(), 0);
    assert_eq!(world.upper().len(), 1);
    Ok(())
}

/// The body of a caller that is about to be killed: starts a sandbox that never ends.
pub(crate) fn victim(args: &[String]) {
    let [base, upper, work] = args else {
        panic!("three directories")
    };
    let root = runner::Root::Overlay {
        lower: vec![base.into()],
        upper: upper.into(),
        work: work.into(),
        volatile: true,
    };
    let process = runner::ProcessSpec::new(["sh", "-c", "sleep 1000 & echo ready; wait"]);
    let spec = runner::SandboxSpec::new(root, process);
    let stdio = Stdio {
        stdin: Stream::Null,
        stdout: Stream::Inherit,
        stderr: Stream::Null,
    };
    // Spawned by a thread that ends: the sandbox belongs to the process, not to it.
    let mut sandbox = std::thread::spawn(move || Sandbox::spawn(&spec, stdio).unwrap())
        .join()
        .unwrap();
    sandbox.wait().unwrap();
}

fn the_caller_dies(world: &World) -> Result<(), String> {
    let before = world.upper();
    let mut caller = Command::new("/proc/self/exe")
        .arg("--victim")
        .args(["base", "upper", "work"].map(|name| world.path(name)))
        .stdin(ProcessStdio::null())
        .stdout(ProcessStdio::piped())
        // Held by the caller and the helper.
        .stderr(ProcessStdio::piped())
        .spawn()
        .unwrap();
    let mut out = BufReader::new(caller.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n");
    assert_ne!(
        world.upper(),
        before,
        "without a stub layer, there are mount points now"
    );
    caller.kill().unwrap();
    caller.wait().unwrap();
    // The ends come when the last holder is gone: the process, its background child, the helper.
    assert_eq!(out.read_to_string(&mut String::new()).unwrap(), 0);
    let mut err = String::new();
    caller
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut err)
        .unwrap();
    assert_eq!(err, "");
    assert_eq!(world.upper(), before, "the helper cleaned up");
    Ok(())
}

/// The helpers of this process: their ids, and how many descriptors each has open.
fn helpers() -> Vec<(i32, usize)> {
    let children = fs::read_dir("/proc/self/task")
        .unwrap()
        .filter_map(|task| fs::read_to_string(task.ok()?.path().join("children")).ok());
    let pids: Vec<i32> = children
        .flat_map(|text| {
            text.split_ascii_whitespace()
                .filter_map(|pid| pid.parse().ok())
                .collect::<Vec<_>>()
        })
        .collect();
    let of = |pid: i32| {
        let name = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let open = fs::read_dir(format!("/proc/{pid}/fd")).ok()?.count();
        (name == b"longshore-sandboxes\0").then_some((pid, open))
    };
    pids.into_iter().filter_map(of).collect()
}

/// Kills them, and waits until they have ended.
fn end_helpers() {
    for (pid, _) in helpers() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let process =
            rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
        rustix::process::pidfd_send_signal(&process, rustix::process::Signal::KILL).unwrap();
        let mut ended = [rustix::event::PollFd::new(
            &process,
            rustix::event::PollFlags::IN,
        )];
        rustix::event::poll(&mut ended, None).unwrap();
    }
}

/// The version 2 control groups of helper `pid`.
fn groups_of(pid: i32, dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            continue;
        }
        let name = entry.file_name().into_string().unwrap_or_default();
        if name.starts_with(&format!("longshore-{pid}-")) && path.join("cgroup.events").exists() {
            found.push(path.clone());
        }
        groups_of(pid, &path, found);
    }
}

fn groups_of_killed_helpers(world: &World) -> Result<(), String> {
    end_helpers();
    let (mut sandbox, _out) = start(world, "echo ready; sleep 1000", false);
    let helper = helpers().pop().unwrap();
    let mut groups = Vec::new();
    groups_of(helper.0, Path::new("/sys/fs/cgroup"), &mut groups);
    let Some(group) = groups.pop() else {
        return Err("version 2 control groups cannot be made here".to_owned());
    };
    end_helpers();
    let error = sandbox.wait().unwrap_err();
    assert!(
        matches!(error, runner::SandboxError::Lost { .. }),
        "{error}"
    );
    assert!(group.exists());
    while fs::read_to_string(group.join("cgroup.events"))
        .is_ok_and(|events| events.contains("populated 1"))
    {
        std::thread::yield_now();
    }
    // A new helper sweeps when it has its first sandbox behind it, before it takes the second one.
    for _ in 0..2 {
        assert!(run(&world.script("true")).unwrap().status.success());
    }
    assert!(!group.exists(), "{group:?}");
    Ok(())
}

fn helpers_are_kept(world: &World) -> Result<(), String> {
    let run_one = |expect: &str| {
        let outcome = run(&world.script(&format!("echo {expect}"))).unwrap();
        assert_eq!(outcome.stdout, format!("{expect}\n"));
    };
    run_one("first");
    let before = helpers();
    assert!(!before.is_empty());
    run_one("second");
    // One that could not start its process serves as well.
    assert_eq!(run(&world.spec(["nope"])).unwrap_err().exit_code(), 127);
    assert_eq!(
        helpers(),
        before,
        "the same ones, and nothing was left open"
    );

    // Whatever ends them while they wait ends no sandbox.
    end_helpers();
    run_one("third");
    let now = helpers();
    assert_eq!(now.len(), 1, "{now:?}");
    assert!(!before.iter().any(|(pid, _)| *pid == now[0].0), "{now:?}");
    Ok(())
}

/// What one sandbox used is not counted to the next one of the same helper.
fn usage_is_its_own(world: &World) -> Result<(), String> {
    let peak = |script: &str| {
        let mut sandbox = Sandbox::spawn(&world.script(script), Stdio::default()).unwrap();
        assert_eq!(sandbox.wait().unwrap(), ExitStatus::Code(0));
        sandbox.usage().unwrap().memory_peak
    };
    let large = peak("dd if=/dev/zero of=/dev/null bs=48M count=1 2> /dev/null");
    let small = peak("true");
    assert!(large >= 48 << 20, "{large}");
    assert!(0 < small && small < 24 << 20, "{small}");
    Ok(())
}

fn init_reaps(world: &World) -> Result<(), String> {
    let mut spec = world.script(
        "echo $$; (sh -c 'sleep 0.05' &) ; sleep 0.3; ps -o stat | grep -c Z; readlink /proc/1/exe; exit 9",
    );
    spec.init = true;
    let outcome = run(&spec).unwrap();
    assert_eq!(
        outcome.status,
        ExitStatus::Code(1),
        "grep finds none: {outcome:?}"
    );
    assert_eq!(outcome.stdout, "2\n0\n");
    for (script, code) in [("exit 9", 9), ("kill -9 $$", 137), ("kill -TERM $$", 143)] {
        let mut spec = world.script(script);
        spec.init = true;
        assert_eq!(
            run(&spec).unwrap().status,
            ExitStatus::Code(code),
            "{script}"
        );
    }
    // The host's program must not be within reach through init.
    let mut spec = world.script("! readlink /proc/1/exe; ! cat /proc/1/environ");
    spec.init = true;
    assert!(run(&spec).unwrap().status.success());

    let mut spec = world.spec(["nope"]);
    spec.init = true;
    assert_eq!(run(&spec).unwrap_err().exit_code(), 127);
    Ok(())
}

fn init_forwards(world: &World) -> Result<(), String> {
    // Without a handler: as process 1 it would ignore this, as init's child it does not.
    let (mut sandbox, _out) = start(world, "echo ready; exec sleep 1000", true);
    sandbox.kill(libc::SIGTERM).unwrap();
    assert_eq!(sandbox.wait().unwrap().code(), 143);
    Ok(())
}

fn many_at_once(world: &World) -> Result<(), String> {
    std::thread::scope(|scope| {
        for thread in 0..4 {
            scope.spawn(move || {
                for n in 0..5 {
                    let name = format!("{thread}-{n}");
                    let dirs = [format!("upper{name}"), format!("work{name}")];
                    dirs.iter()
                        .for_each(|dir| fs::create_dir(world.path(dir)).unwrap());
                    let mut spec = world.script(&format!("echo {name}"));
                    spec.root = runner::Root::Overlay {
                        lower: vec![world.path("base"), world.path("stubs")],
                        upper: world.path(&dirs[0]),
                        work: world.path(&dirs[1]),
                        volatile: true,
                    };
                    assert_eq!(run(&spec).unwrap().stdout, format!("{name}\n"));
                }
            });
        }
    });
    Ok(())
}

fn a_large_caller(world: &World) -> Result<(), String> {
    let mut spec = world.spec(["sh", "-c", "echo ${#LARGE}; echo $#", "sh"]);
    spec.process
        .env
        .push(format!("LARGE={}", "x".repeat(100_000)));
    spec.process.argv.extend((0..10_000).map(|n| n.to_string()));
    assert_eq!(run(&spec).unwrap().stdout, "100000\n10000\n");
    spec.process.argv.push("x".repeat(3 << 20));
    let error = run(&spec).unwrap_err();
    assert_eq!(
        error.to_string(),
        "the command's arguments and environment are too large for the kernel"
    );
    Ok(())
}
