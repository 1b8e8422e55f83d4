//! Containers that outlive the command that made them: what runs, what is left, and what becomes of it.

use std::io::{Read, Write};
use std::process::{Command, Stdio};

use crate::ship::{Ship, first_line, lines, parent, until_ended, watched};
use crate::support::{LONGSHORE, Ran, signal};

#[test]
fn a_detached_container_lives_until_it_is_stopped() {
    let ship = Ship::new();
    let script = "echo out; echo err >&2; exec sleep 1000";
    let id = ship.ok(&["run", "-d", "--name", "web", "busybox", "sh", "-c", script]);
    assert_eq!(id.len(), 64, "{id}");
    assert_eq!(ship.ok(&["ps", "-q"]), id[..12]);
    assert_eq!(
        ship.ok(&["ps", "--format", "{{.Names}} {{.State}} {{.Image}}"]),
        "web running busybox"
    );
    let mut follower = ship
        .0
        .command(["logs", "-f", &id[..12]])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut follower), "out\n");
    assert_eq!(ship.ok(&["stop", "web"]), "web");
    let mut error = String::new();
    follower
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut error)
        .unwrap();
    assert_eq!(error, "err\n");
    assert!(
        follower.wait().unwrap().success(),
        "who follows ends with the container"
    );
    assert_eq!(ship.ok(&["ps", "-q"]), "");
    assert_eq!(ship.ok(&["ps", "-a", "--format", "{{.State}}"]), "exited");
    assert_eq!(ship.known("web", "/State/ExitCode"), 143);
    assert_eq!(ship.ok(&["logs", "web"]), "out", "what it printed stays");
    ship.ok(&["start", "web"]);
    ship.run(&["rm", "web"]).fails(1, "is running");
    assert_eq!(ship.ok(&["rm", "-f", "web"]), "web");
    ship.run(&["logs", "web"])
        .fails(1, "no such container: `web`");
    assert_eq!(ship.ok(&["ps", "-aq"]), "");
}

#[test]
fn exit_codes_stay() {
    let ship = Ship::new();
    assert_eq!(
        ship.run(&["run", "--name", "seven", "busybox", "sh", "-c", "exit 7"])
            .code,
        Some(7)
    );
    assert_eq!(ship.ok(&["wait", "seven"]), "7");
    assert_eq!(ship.run(&["start", "-a", "seven"]).code, Some(7));
    let missing = ship.run(&["run", "--name", "none", "busybox", "no-such-command"]);
    missing.fails(127, "not found in the image");
    assert_eq!(ship.known("none", "/State/Status"), "created");
    assert_eq!(ship.known("none", "/State/ExitCode"), 127);
    ship.run(&["start", "none"])
        .fails(1, "not found in the image");
    ship.run(&["run", "--name", "dir", "busybox", "/etc"])
        .fails(126, "not executable");
    let text = ship.ok(&["ps", "-a", "--filter", "exited=7", "--format", "{{.Names}}"]);
    assert_eq!(text, "seven");
    ship.ok(&["container", "prune", "-f"]);
    assert_eq!(ship.ok(&["ps", "-aq"]), "");
}

#[test]
fn bad_input_is_told() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "taken", "busybox"]);
    let check = |arguments: &[&str], code, expected: &str| {
        ship.run(&[&["run", "--rm"], arguments].concat())
            .fails(code, expected);
    };
    check(&["--name", "taken", "busybox"], 125, "already in use");
    check(&["--name", "a/b", "busybox"], 125, "no container name");
    check(
        &["-u", "nobody-knows", "busybox", "true"],
        125,
        "nobody-knows",
    );
    check(
        &["-v", "/etc/passwd:/etc", "busybox", "true"],
        125,
        "it is a file",
    );
    check(
        &["-v", "/etc:/etc/passwd", "busybox", "true"],
        125,
        "it is a folder",
    );
    check(
        &["-m", "1m", "busybox", "true"],
        125,
        "Minimum memory limit allowed is 6MB",
    );
    check(
        &["--network", "mine", "busybox"],
        125,
        "no network `mine` here",
    );
    check(
        &["--cap-add", "NET_ADMlN", "busybox"],
        125,
        "did you mean `NET_ADMIN`",
    );
    check(
        &["--security-opt", "magic", "busybox"],
        125,
        "`magic` is not supported",
    );
    check(&["--restart", "always", "busybox"], 125, "at odds");
    check(
        &["--pull", "never", "no-such-image"],
        125,
        "--pull is never",
    );
    check(&["-it", "busybox", "true"], 125, "not a TTY");
    check(&["--stop-signal", "NONE", "busybox"], 125, "no signal");
    for command in [
        "stop", "start", "logs", "wait", "kill", "top", "diff", "attach",
    ] {
        ship.run(&[command, "nobody"])
            .fails(1, "no such container: `nobody`");
    }
    ship.run(&["exec", "taken", "true"])
        .fails(1, "is not running");
    ship.run(&["kill", "taken"]).fails(1, "is not running");
    // What failed left nothing behind.
    assert_eq!(ship.ok(&["ps", "-a", "--format", "{{.Names}}"]), "taken");
}

#[test]
fn commands_run_in_a_container_that_runs() {
    let ship = Ship::new();
    let flags = [
        "run",
        "-d",
        "--name",
        "box",
        "-e",
        "A=of the container",
        "-w",
        "/tmp",
    ];
    ship.ok(&[&flags[..], &["busybox", "sleep", "1000"]].concat());
    let exec = |arguments: &[&str]| ship.run(&[&["exec"], arguments].concat());
    assert_eq!(
        exec(&["box", "sh", "-c", "echo $A; pwd"]).ok(),
        "of the container\n/tmp"
    );
    assert_eq!(
        exec(&["-e", "A=b", "-w", "/etc", "box", "sh", "-c", "echo $A; pwd"]).ok(),
        "b\n/etc"
    );
    assert_eq!(exec(&["-u", "daemon", "box", "id", "-u"]).ok(), "1");
    assert_eq!(exec(&["box", "sh", "-c", "exit 5"]).code, Some(5));
    exec(&["box", "no-such-command"]).fails(127, "not found");
    exec(&["-u", "nobody-knows", "box", "true"]).fails(1, "nobody-knows");
    let confined = exec(&["box", "grep", "CapEff", "/proc/self/status"]).ok();
    assert!(confined.ends_with("00000000a80425fb"), "{confined}");
    assert_eq!(
        exec(&[
            "box",
            "sh",
            "-c",
            "grep Seccomp: /proc/self/status | cut -f2"
        ])
        .ok(),
        "2"
    );
    // It sees the container's processes and no others.
    let seen = exec(&["box", "sh", "-c", "ls -d /proc/[0-9]* | wc -l"]).ok();
    assert!(seen.parse::<u32>().unwrap() < 8, "{seen}");
    let mut cat = ship
        .0
        .command(["exec", "-i", "box", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(b"typed").unwrap();
    assert_eq!(cat.wait_with_output().unwrap().stdout, b"typed");
    // What is left running lives on when its command has gone.
    exec(&["-d", "box", "sh", "-c", "sleep 1000 & echo $! > /pid; wait"]).ok();
    assert!(ship.ok(&["top", "box"]).contains("sleep 1000"));
    let line =
        format!("stty rows 30 cols 91; {LONGSHORE} exec -it box sh -c 'tty; stty size; exit 7'");
    let mut command = Command::new("script");
    command
        .args(["-qec", &line, "/dev/null"])
        .env("LONGSHORE_ROOT", ship.0.store());
    let ran = Ran::of(&mut command);
    assert_eq!(ran.code, Some(7), "{ran}");
    assert!(
        ran.stdout.contains("/dev/pts/") && ran.stdout.contains("30 91"),
        "{ran}"
    );
}

#[test]
fn a_supervisor_that_is_killed_leaves_nothing_running() {
    let ship = Ship::new();
    ship.detached("box", &["-m", "64m"], &["sh", "-c", "sleep 1000 & wait"]);
    ship.ok(&["exec", "-d", "box", "sleep", "1000"]);
    let (process_1, holder) = (ship.process_1("box"), ship.supervisor("box"));
    let name = std::fs::read_to_string(format!("/proc/{holder}/cmdline")).unwrap();
    assert!(name.starts_with("longshore-supervisor"), "{name}");
    let groups = control_groups(process_1);
    assert!(!groups.is_empty(), "its limit needs one");
    let (process, helper) = (watched(process_1), watched(parent(process_1)));
    kill(holder);
    // When process 1 has ended the kernel has ended all that was in there, and when its helper has, nothing is left of it.
    until_ended(&process);
    until_ended(&helper);
    for group in groups {
        assert!(!group.exists(), "{}", group.display());
    }
    assert_eq!(ship.until("box", "exited"), "137");
    let state = ship.known("box", "/State");
    assert_eq!(state["ExitCode"], 137);
    assert!(
        state["Error"]
            .as_str()
            .unwrap()
            .contains("supervisor was killed"),
        "{state}"
    );
    assert_eq!(ship.ok(&["wait", "box"]), "137");
    let shown = ship.ok(&["ps", "-a", "--format", "{{.Status}}"]);
    assert!(shown.starts_with("Exited (137)"), "{shown}");
    ship.run(&["exec", "box", "true"])
        .fails(1, "is not running");
    // And it can be started again.
    ship.ok(&["start", "box"]);
    assert_eq!(ship.known("box", "/State/Status"), "running");
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

/// The control groups of a process that are not this one's.
fn control_groups(pid: u32) -> Vec<std::path::PathBuf> {
    let read = |pid: &str| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let (own, its) = (read("self"), read(&pid.to_string()));
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let lines = its
        .lines()
        .filter(|line| !own.lines().any(|own| own == *line));
    let groups = lines.filter_map(|line| {
        let [_, controllers, path] = line.splitn(3, ':').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let mount = mounts.lines().find(|mount| {
            let (_, kind) = mount.split_once(" - ").unwrap();
            match controllers {
                "" => kind.starts_with("cgroup2 "),
                some => {
                    kind.starts_with("cgroup ")
                        && kind
                            .rsplit([' ', ','])
                            .any(|o| some.split(',').any(|c| c == o))
                }
            }
        })?;
        let fields: Vec<&str> = mount.split(' ').collect();
        let beneath = path.strip_prefix(fields[3].trim_end_matches('/'))?;
        Some(std::path::Path::new(fields[4]).join(beneath.trim_start_matches('/')))
    });
    groups.filter(|group| group.exists()).collect()
}

#[test]
fn what_ran_when_the_machine_went_down_is_seen_to_have_ended() {
    let ship = Ship::new();
    let id = ship.ok(&["create", "--name", "box", "busybox", "true"]);
    let state = ship.state_file(&id);
    // As a supervisor wrote it under another boot, when nobody could say that it has ended.
    let stale = r#"{"status":"running","pid":1,"boot_id":"of the past","started_at":"2024-01-01T00:00:00Z"}"#;
    std::fs::write(&state, stale).unwrap();
    assert_eq!(ship.known("box", "/State/ExitCode"), 255);
    assert_eq!(ship.known("box", "/State/Running"), false);
    assert_eq!(ship.ok(&["ps", "-q"]), "");
    ship.run(&["exec", "box", "true"])
        .fails(1, "is not running");
    assert_eq!(ship.run(&["start", "-a", "box"]).code, Some(0));
    assert_eq!(ship.known("box", "/State/ExitCode"), 0);
}

#[test]
fn a_container_in_the_foreground_ends_with_its_command() {
    let ship = Ship::new();
    let mut run = ship
        .0
        .command([
            "run",
            "--name",
            "box",
            "busybox",
            "sh",
            "-c",
            "echo ready; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut run), "ready\n");
    run.kill().unwrap();
    run.wait().unwrap();
    assert_eq!(ship.until("box", "exited"), "137");
    // With --rm nothing is left of it, though nobody is there to remove it.
    let mut run = ship
        .0
        .command([
            "run",
            "--rm",
            "--name",
            "gone",
            "busybox",
            "sh",
            "-c",
            "echo ready; exec sleep 1000",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(first_line(&mut run), "ready\n");
    run.kill().unwrap();
    run.wait().unwrap();
    // It may be gone before anybody waits for that.
    let waited = ship.run(&["wait", "--condition", "removed", "gone"]);
    assert!(
        waited.code == Some(0) || waited.stderr.contains("no such container"),
        "{waited}"
    );
    assert_eq!(ship.ok(&["ps", "-aq", "--filter", "name=gone"]), "");
}

#[test]
fn containers_are_restarted_by_their_policy() {
    let ship = Ship::new();
    let script = "echo run; exit 4";
    ship.ok(&[
        "run",
        "-d",
        "--restart",
        "on-failure:2",
        "--name",
        "again",
        "busybox",
        "sh",
        "-c",
        script,
    ]);
    assert_eq!(ship.until("again", "exited"), "4");
    assert_eq!(ship.known("again", "/RestartCount"), 2);
    assert_eq!(ship.known("again", "/State/ExitCode"), 4);
    assert_eq!(ship.ok(&["logs", "again"]), "run\nrun\nrun");
    ship.detached("ever", &["--restart", "always"], &["echo", "run"]);
    let mut follower = ship
        .0
        .command(["logs", "-f", "ever"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut printed = lines(&mut follower);
    assert_eq!(printed.next().unwrap().unwrap(), "run");
    assert_eq!(printed.next().unwrap().unwrap(), "run", "it was restarted");
    assert!(ship.known("ever", "/RestartCount").as_u64() >= Some(1));
    ship.ok(&["stop", "ever"]);
    assert_eq!(
        ship.known("ever", "/State/Status"),
        "exited",
        "who stops it wants it stopped"
    );
    drop(printed);
    // Without anybody to read, its next line would have ended it.
    assert!(follower.wait().unwrap().success());
}

#[test]
fn health_is_checked() {
    let ship = Ship::new();
    let flags = [
        "--health-cmd",
        "test -e /well && echo fine",
        "--health-interval",
        "50ms",
        "--health-retries",
        "2",
    ];
    let all = [
        &["run", "-d", "--name", "box"],
        &flags[..],
        &["busybox", "sleep", "1000"],
    ]
    .concat();
    ship.ok(&all);
    ship.until("box", "unhealthy");
    ship.ok(&["exec", "box", "touch", "/well"]);
    ship.until("box", "healthy");
    let state = ship.known("box", "/State");
    assert_eq!(state["Health"]["FailingStreak"], 0);
    let last = state["Health"]["Log"]
        .as_array()
        .unwrap()
        .last()
        .unwrap()
        .clone();
    assert_eq!(last["Output"], "fine\n");
    let shown = ship.ok(&[
        "ps",
        "--filter",
        "health=healthy",
        "--format",
        "{{.Status}}",
    ]);
    assert!(shown.ends_with("(healthy)"), "{shown}");
}

#[test]
fn files_are_copied_both_ways() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "box", "busybox"]);
    let folder = ship.0.context("site", &[("a", "one"), ("deep/b", "two")]);
    let out = ship.0.path("out");
    let (folder, out) = (folder.to_str().unwrap(), out.to_str().unwrap());
    let both = |running: &str| {
        ship.ok(&["cp", folder, &format!("box:/{running}")]);
        ship.ok(&[
            "cp",
            &format!("{folder}/."),
            &format!("box:/{running}/deep"),
        ]);
        let file = format!("{out}-{running}");
        ship.ok(&["cp", &format!("box:/{running}/deep/a"), &file]);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "one", "{running}");
        let tree = format!("{out}-tree-{running}");
        ship.ok(&["cp", &format!("box:/{running}"), &tree]);
        assert_eq!(
            std::fs::read_to_string(format!("{tree}/deep/deep/b")).unwrap(),
            "two"
        );
        let tar = ship.ok(&["cp", &format!("box:/{running}/a"), "-"]);
        assert!(tar.contains("\0a\0") && tar.contains("\0one\0"), "{tar:?}");
        ship.run(&["cp", folder, &format!("box:/{running}/a")])
            .fails(1, "which is a file");
        ship.run(&["cp", "box:/no/such", out])
            .fails(1, "No such file");
    };
    both("stopped");
    ship.ok(&["rm", "box"]);
    ship.ok(&["run", "-d", "--name", "box", "busybox", "sleep", "1000"]);
    both("running");
    assert_eq!(ship.ok(&["exec", "box", "cat", "/running/deep/b"]), "two");
    // A link of the container leads nowhere but into the container.
    ship.ok(&["exec", "box", "ln", "-s", "/", "/link"]);
    ship.ok(&[
        "exec",
        "box",
        "ln",
        "-s",
        "/etc/secret-of-the-host",
        "/file",
    ]);
    ship.ok(&["cp", &format!("{folder}/a"), "box:/link/through"]);
    assert_eq!(ship.ok(&["exec", "box", "cat", "/through"]), "one");
    ship.run(&["cp", "-L", "box:/file", out])
        .fails(1, "No such file");
    ship.run(&["cp", "box:/../../../etc/hostname-of-the-host", out])
        .fails(1, "No such file");
}

#[test]
fn containers_become_images() {
    let ship = Ship::new();
    let script = "echo new > /new; rm /etc/group; mkdir /etc/made";
    ship.ok(&[
        "run", "--name", "box", "-e", "A=kept", "busybox", "sh", "-c", script,
    ]);
    assert_eq!(
        ship.ok(&["diff", "box"]),
        "C /etc\nD /etc/group\nA /etc/made\nA /new"
    );
    ship.ok(&["commit", "-m", "by hand", "box", "made"]);
    let look = [
        "run",
        "--rm",
        "made",
        "sh",
        "-c",
        "cat /new; echo $A; ls /etc/group",
    ];
    let ran = ship.run(&look);
    assert_eq!(
        (ran.stdout.as_str(), ran.code),
        ("new\nkept\n", Some(1)),
        "{ran}"
    );
    let tar = ship.0.path("box.tar");
    let tar = tar.to_str().unwrap();
    ship.ok(&["export", "-o", tar, "box"]);
    ship.ok(&["import", tar, "flat"]);
    assert_eq!(ship.ok(&["run", "--rm", "flat", "cat", "/new"]), "new");
    // The container is as it was.
    assert_eq!(
        ship.run(&["start", "-a", "box"]).code,
        Some(1),
        "/etc/group is gone already"
    );
}

#[test]
fn volumes_outlive_containers() {
    let ship = Ship::new();
    let context = ship.0.context(
        "vol",
        &[(
            "Dockerfile",
            "FROM busybox\nRUN mkdir /data && echo first > /data/file\nVOLUME /data\n",
        )],
    );
    ship.ok(&["build", "-q", "-t", "vol", context.to_str().unwrap()]);
    let write = [
        "run",
        "--rm",
        "-v",
        "kept:/data",
        "vol",
        "sh",
        "-c",
        "cat /data/file; echo second > /data/file",
    ];
    assert_eq!(
        ship.ok(&write),
        "first",
        "a new volume has what the image has there"
    );
    assert_eq!(
        ship.ok(&["run", "--rm", "-v", "kept:/d", "busybox", "cat", "/d/file"]),
        "second"
    );
    ship.ok(&[
        "create",
        "--name",
        "user",
        "-v",
        "kept:/data:ro",
        "vol",
        "true",
    ]);
    ship.run(&["volume", "rm", "kept"]).fails(1, "is in use");
    // One without a name is gone with a container of --rm, and stays with others until they are removed with -v.
    ship.ok(&["run", "--rm", "vol", "true"]);
    assert_eq!(ship.ok(&["volume", "ls", "-q"]), "kept");
    ship.ok(&["run", "--name", "other", "vol", "true"]);
    assert_eq!(ship.ok(&["volume", "ls", "-q"]).lines().count(), 2);
    ship.ok(&["rm", "-v", "other", "user"]);
    assert_eq!(ship.ok(&["volume", "ls", "-q"]), "kept");
    assert_eq!(ship.ok(&["volume", "rm", "kept"]), "kept");
    ship.run(&["volume", "inspect", "kept"])
        .fails(1, "no such volume");
}

#[test]
fn collections_keep_what_containers_need() {
    let ship = Ship::new();
    ship.ok(&["run", "--name", "box", "busybox", "touch", "/made"]);
    ship.ok(&["rmi", "-f", "busybox"]);
    ship.ok(&["prune", "--all", "-f"]);
    assert_eq!(ship.run(&["start", "-a", "box"]).code, Some(0));
    assert_eq!(ship.ok(&["diff", "box"]), "A /made");
}

#[test]
fn what_is_attached_gets_what_is_printed_and_gives_what_is_typed() {
    let ship = Ship::new();
    ship.ok(&[
        "run",
        "-di",
        "--name",
        "box",
        "busybox",
        "sh",
        "-c",
        "while read line; do echo got $line; done; exit 3",
    ]);
    let attach = || {
        ship.0
            .command(["attach", "box"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let mut one = attach();
    let mut typed = one.stdin.take().unwrap();
    typed.write_all(b"first\n").unwrap();
    assert_eq!(first_line(&mut one), "got first\n");
    // By a signal that it keeps to itself the container would not end: this one it passes on.
    signal(&one, "TERM");
    assert_eq!(one.wait().unwrap().code(), Some(143));
    assert_eq!(ship.ok(&["logs", "box"]), "got first");
}

#[test]
fn names_change_and_are_free_again() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "one", "busybox"]);
    ship.ok(&["rename", "one", "two"]);
    ship.run(&["inspect", "one"])
        .fails(1, "no such image: `one`");
    ship.ok(&["create", "--name", "one", "busybox"]);
    ship.run(&["rename", "one", "two"])
        .fails(1, "already in use");
    let names = ship.ok(&["ps", "-a", "--format", "{{.Names}}"]);
    let mut names: Vec<&str> = names.lines().collect();
    names.sort_unstable();
    assert_eq!(names, ["one", "two"]);
}
