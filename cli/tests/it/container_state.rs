//! What is seen of containers and done to them while they run: paused, measured, committed, counted, kept from collection.

use std::process::Stdio;

use crate::ship::{Ship, lines};

#[test]
fn what_is_paused_stands_still() {
    let ship = Ship::new();
    let script = "while read line; do echo got $line; done";
    ship.detached("box", &["-i"], &["sh", "-c", script]);
    assert_eq!(ship.ok(&["pause", "box"]), "box");
    ship.until("box", "paused");
    assert_eq!(ship.known("box", "/State/Paused"), true);
    let shown = ship.ok(&["ps", "--format", "{{.State}} {{.Status}}"]);
    assert!(
        shown.starts_with("paused Up ") && shown.ends_with("(Paused)"),
        "{shown}"
    );
    assert_eq!(ship.ok(&["ps", "-q", "--filter", "status=running"]), "");
    ship.run(&["pause", "box"]).fails(1, "is already paused");
    ship.run(&["exec", "box", "true"]).fails(1, "is paused");
    ship.run(&["attach", "box"]).fails(1, "is paused");
    ship.run(&["start", "box"]).fails(1, "is paused");
    ship.run(&["rm", "box"]).fails(1, "is paused");
    assert!(ship.ok(&["top", "box"]).contains(script), "it is there");
    // Its control group says so, or each process does.
    let stands = |yes: bool| {
        let pid = ship.process_1("box");
        let stat = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let group = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
        let group = group.lines().find_map(|line| line.strip_prefix("0::"));
        let is_stopped = stat.contains("State:\tT");
        let is_frozen = std::fs::read_to_string("/proc/self/mountinfo")
            .unwrap()
            .lines()
            .filter(|line| line.contains(" - cgroup2 "))
            .filter_map(|line| line.split(' ').nth(4))
            .any(|top| {
                let events = format!("{top}{}/cgroup.events", group.unwrap_or_default());
                std::fs::read_to_string(events).is_ok_and(|text| text.contains("frozen 1"))
            });
        assert_eq!(is_stopped || is_frozen, yes, "{stat}");
    };
    stands(true);
    assert_eq!(ship.ok(&["unpause", "box"]), "box");
    ship.until("box", "running");
    stands(false);
    ship.run(&["unpause", "box"]).fails(1, "is not paused");
    ship.ok(&["exec", "box", "true"]);
    // Asked to end, it moves for that.
    ship.ok(&["pause", "box"]);
    ship.ok(&["stop", "box"]);
    assert_eq!(ship.known("box", "/State/Status"), "exited");
    ship.run(&["pause", "box"]).fails(1, "is not running");
    ship.ok(&["start", "box"]);
    ship.ok(&["pause", "box"]);
    ship.ok(&["kill", "box"]);
    assert_eq!(ship.known("box", "/State/ExitCode"), 137);
    ship.ok(&["start", "box"]);
    ship.ok(&["pause", "box"]);
    ship.ok(&["rm", "-f", "box"]);
}

#[test]
fn what_is_waited_for_comes_or_can_come_no_more() {
    let ship = Ship::new();
    ship.ok(&["create", "--name", "box", "busybox", "sh", "-c", "exit 3"]);
    let waiting = |condition: &str| {
        let child = ship
            .0
            .command(["wait", "--condition", condition, "box"])
            .stdout(Stdio::piped())
            .spawn();
        child.unwrap()
    };
    let mut running = waiting("running");
    assert_eq!(ship.until("box", "exited"), "0", "it does not run");
    let ended = ship.run(&["start", "-a", "box"]);
    assert_eq!(ended.code, Some(3), "{ended}");
    // It ran, or it had run already when that was looked at.
    running.wait().unwrap();
    ship.run(&["wait", "--condition", "running", "box"])
        .fails(1, "has ended with 3");
    let mut gone = waiting("removed");
    ship.ok(&["rm", "box"]);
    let said = lines(&mut gone).next();
    let code = gone.wait().unwrap().code();
    // Or it was gone before.
    assert!(code == Some(1) || said.unwrap().unwrap() == "3", "{code:?}");
    ship.run(&["wait", "--condition", "removed", "box"])
        .fails(1, "no such container");
}

#[test]
fn what_containers_use_is_shown() {
    let ship = Ship::new();
    // So much that it shows: 16 MiB that were written to.
    let script = "x=$(head -c 16777216 /dev/zero | tr '\\0' x); echo ready; read line";
    ship.detached("box", &["-i", "-m", "256m"], &["sh", "-c", script]);
    let mut follower = ship
        .0
        .command(["logs", "-f", "box"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(lines(&mut follower).next().unwrap().unwrap(), "ready");
    ship.ok(&["create", "--name", "idle", "busybox"]);
    let text = ship.ok(&["stats", "--no-stream", "-a"]);
    let heading = "CONTAINER ID   NAME      CPU %     MEM USAGE / LIMIT";
    assert!(text.starts_with(heading), "{text}");
    let rows = ship.ok(&["stats", "--no-stream", "-a", "--format", "json"]);
    let rows: Vec<serde_json::Value> = rows
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let row = |name: &str| rows.iter().find(|row| row["Name"] == name).unwrap();
    let memory = row("box")["MemUsage"].as_str().unwrap();
    let (used, limit) = memory.split_once(" / ").unwrap();
    assert_eq!(limit, "256MiB");
    let used: f64 = used.strip_suffix("MiB").unwrap().parse().unwrap();
    assert!((16.0..256.0).contains(&used), "{memory}");
    let pids: u32 = row("box")["PIDs"].as_str().unwrap().parse().unwrap();
    assert!((1..=3).contains(&pids), "{pids}");
    assert_eq!(row("idle")["MemUsage"], "0B / 0B");
    assert_eq!(row("idle")["PIDs"], "0");
    ship.ok(&["rm", "-f", "box"]);
    let _ended = follower.wait();
}

#[test]
fn running_out_of_memory_is_told() {
    let ship = Ship::new();
    let script = "x=a; while :; do x=$x$x; done";
    let ran = ship.run(&[
        "run", "--name", "box", "-m", "16m", "busybox", "sh", "-c", script,
    ]);
    assert_eq!(ran.code, Some(137), "{ran}");
    assert!(ran.stderr.contains("memory limit"), "{ran}");
    assert_eq!(ship.known("box", "/State/OOMKilled"), true);
    assert_eq!(ship.known("box", "/State/ExitCode"), 137);
    ship.run(&["run", "--name", "fine", "-m", "16m", "busybox", "true"])
        .ok();
    assert_eq!(ship.known("fine", "/State/OOMKilled"), false);
}

#[test]
fn images_that_containers_use_are_not_removed_by_mistake() {
    let ship = Ship::new();
    let id = ship.ok(&["create", "--name", "box", "busybox", "sleep", "1000"]);
    let image = ship.ok(&["images", "-q"]);
    let words = |text: &str| text.replace("ID", &image).replace("BOX", &id[..12]);
    let by_name = words(
        "unable to remove repository reference \"busybox\" (must force) - container BOX is using its referenced image ID",
    );
    ship.run(&["rmi", "busybox"]).fails(1, &by_name);
    ship.run(&["rmi", &image]).fails(
        1,
        &words(
            "unable to delete ID (must be forced) - image is being used by stopped container BOX",
        ),
    );
    ship.ok(&["tag", "busybox", "other"]);
    assert_eq!(
        ship.ok(&["rmi", "other"]),
        "Untagged: other:latest",
        "a name that is not the last one is no image"
    );
    ship.ok(&["start", "box"]);
    let runs = words(
        "unable to delete ID (cannot be forced) - image is being used by running container BOX",
    );
    ship.run(&["rmi", &image]).fails(1, &runs);
    ship.run(&["rmi", "-f", &image]).fails(1, &runs);
    assert_eq!(
        ship.ok(&["rmi", "-f", "busybox"]),
        "Untagged: busybox:latest"
    );
    assert_eq!(
        ship.ok(&["images", "-q"]),
        image,
        "it has no name, and is there"
    );
    ship.ok(&["rm", "-f", "box"]);
    assert!(ship.ok(&["rmi", &image]).starts_with("Deleted: sha256:"));
}

#[test]
fn space_of_containers_and_volumes_is_counted() {
    let ship = Ship::new();
    let write = "head -c 1000000 /dev/zero > /big; head -c 2000000 /dev/zero > /data/big; sync";
    let flags = ["-v", "kept:/data"];
    ship.ok(&[
        &["run", "--name", "box"],
        &flags[..],
        &["busybox", "sh", "-c", write],
    ]
    .concat());
    let row = |kind: &str| {
        let text = ship.ok(&["du", "--json"]);
        let rows = text.lines().map(|line| serde_json::from_str(line).unwrap());
        let row = rows
            .into_iter()
            .find(|row: &serde_json::Value| row["Type"] == kind);
        let row = row.unwrap();
        let number = |key: &str| row[key].as_u64().unwrap();
        (
            number("TotalCount"),
            number("Active"),
            number("SizeBytes") / 1_000_000,
            number("ReclaimableBytes") / 1_000_000,
        )
    };
    assert_eq!(row("Containers"), (1, 0, 1, 1));
    assert_eq!(row("Local Volumes"), (1, 1, 2, 0));
    ship.detached("runs", &[], &["sleep", "1000"]);
    assert_eq!(row("Containers").1, 1);
    ship.ok(&["rm", "-f", "runs"]);
    // Neither is a collection's business.
    ship.ok(&["prune", "--all", "-f"]);
    assert_eq!(row("Containers").0, 1);
    let pruned = ship.ok(&["container", "prune", "-f"]);
    assert!(pruned.contains("Total reclaimed space: 1"), "{pruned}");
    assert_eq!(row("Local Volumes"), (1, 0, 2, 2));
    assert!(
        ship.ok(&["volume", "prune", "-f"]).contains("space: 0B"),
        "it has a name"
    );
    let pruned = ship.ok(&["volume", "prune", "-f", "--all"]);
    assert!(
        pruned.contains("kept\n\nTotal reclaimed space: 2"),
        "{pruned}"
    );
    assert_eq!(row("Local Volumes"), (0, 0, 0, 0));
    ship.ok(&["store", "check"]);
}

#[test]
fn images_are_changed_on_the_way() {
    let ship = Ship::new();
    ship.detached("box", &[], &["sh", "-c", "echo made > /made; sleep 1000"]);
    let changes = [
        "-c",
        "CMD [\"cat\", \"/made\"]",
        "-c",
        "ENV A=b",
        "-c",
        "EXPOSE 80",
    ];
    let commit = [
        &["commit", "-a", "me", "-m", "why"],
        &changes[..],
        &["box", "made"],
    ]
    .concat();
    ship.ok(&commit);
    assert_eq!(ship.known("box", "/State/Status"), "running", "it goes on");
    assert_eq!(ship.ok(&["run", "--rm", "made"]), "made");
    assert_eq!(
        ship.ok(&["run", "--rm", "made", "sh", "-c", "echo $A"]),
        "b"
    );
    let image = ship.known("made", "");
    assert_eq!(image["Author"], "me");
    assert!(
        image["Config"]["ExposedPorts"]["80/tcp"].is_object(),
        "{image}"
    );
    ship.run(&["commit", "-c", "RUN true", "box", "no"])
        .fails(1, "`RUN true` cannot change an image");
    let tar = ship.0.path("box.tar");
    let tar = tar.to_str().unwrap();
    ship.ok(&["export", "-o", tar, "box"]);
    ship.ok(&[
        &["import"],
        &changes[..],
        &["--platform", "linux/arm64", tar, "flat"],
    ]
    .concat());
    let image = ship.known("flat", "");
    assert_eq!(image["Architecture"], "arm64");
    assert_eq!(image["Config"]["Env"], serde_json::json!(["A=b"]));
    ship.run(&["run", "--rm", "--platform", "linux/amd64", "flat"])
        .fails(125, "is for linux/arm64, not for linux/amd64");
}

/// What is resident of a process, in KiB.
fn resident(pid: u32) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
    let number = line.and_then(|text| text.split_whitespace().next());
    number.unwrap().parse().unwrap()
}

#[test]
fn a_supervisor_is_small() {
    // As it is delivered; a program with its checks and without optimisations has more to relocate.
    let kib_max = match cfg!(debug_assertions) {
        false => 3 << 10,
        true => 5 << 10,
    };
    let ship = Ship::new();
    let script = "head -c 5000000 /dev/zero | tr '\\0' x; exec sleep 1000";
    let health = ["--health-cmd", "true", "--health-interval", "1h"];
    ship.detached("box", &health, &["sh", "-c", script]);
    let supervisor = ship.supervisor("box");
    // It answers, and has printed much; a moment after each answer it lets go of what that took.
    for _ in 0..100 {
        ship.ok(&["exec", "box", "true"]);
        ship.ok(&["top", "box"]);
        if resident(supervisor) <= kib_max {
            return;
        }
    }
    let text = std::fs::read_to_string(format!("/proc/{supervisor}/status")).unwrap();
    panic!(
        "{} KiB are more than {kib_max}: {text}",
        resident(supervisor)
    );
}

#[test]
fn many_containers_come_up_together() {
    // All 200 that there are to be are tried by hand: `LONGSHORE_TEST_CONTAINERS=200`.
    let count = std::env::var("LONGSHORE_TEST_CONTAINERS");
    let count: usize = count.map_or(16, |text| text.parse().unwrap());
    let ship = Ship::new();
    let start = |number: usize| {
        let name = format!("box{number}");
        let arguments = ["run", "-d", "--name", &name, "busybox", "sleep", "1000"];
        let mut command = ship.0.command(arguments);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let started: Vec<_> = (0..count).map(start).collect();
    for child in started {
        let output = child.wait_with_output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{error}");
    }
    let running = ship.ok(&["ps", "-q", "--filter", "status=running"]);
    assert_eq!(running.lines().count(), count);
    for number in [0, count / 2, count - 1] {
        ship.ok(&["exec", &format!("box{number}"), "true"]);
    }
    let all: Vec<&str> = running.lines().collect();
    ship.ok(&[&["rm", "-f"], &all[..]].concat());
    assert_eq!(ship.ok(&["ps", "-aq"]), "");
}

#[test]
fn what_inspect_shows_can_be_chosen() {
    let ship = Ship::new();
    let flags = ["-e", "A=b", "--label", "x.y=z", "-v", "kept:/kept"];
    ship.detached("box", &flags, &["sleep", "1000"]);
    let check = |template: &str, expected: &str| {
        assert_eq!(
            ship.ok(&["inspect", "-f", template, "box"]),
            expected,
            "{template}"
        );
    };
    check("{{.State.Running}} {{.Name}}", "true /box");
    check("{{index .Config.Labels \"x.y\"}}", "z");
    check(
        "{{range .Mounts}}{{.Type}}:{{.Destination}}{{end}}",
        "volume:/kept",
    );
    check("{{if .State.Paused}}still{{else}}moves{{end}}", "moves");
    check("{{json .Config.Cmd}}", "[\"sleep\",\"1000\"]");
    check("{{.Path}} {{.Args}}", "sleep [1000]");
    check("{{len .Config.Env}}", "2");
    ship.run(&["inspect", "-f", "{{.No}}", "box"])
        .fails(2, "no field `No`");
    ship.run(&["inspect", "-f", "{{template \"x\"}}", "box"])
        .fails(2, "`template` is not supported");
    assert_eq!(ship.ok(&["inspect", "-f", "{{.Os}}", "busybox"]), "linux");
    // Which of several is told by a type.
    ship.ok(&["tag", "busybox", "box"]);
    check("{{.Name}}", "/box");
    let image = [
        "inspect",
        "--type",
        "image",
        "-f",
        "{{index .RepoTags 0}}",
        "box",
    ];
    assert_eq!(ship.ok(&image), "box:latest");
    ship.run(&["inspect", "--type", "container", "busybox"])
        .fails(1, "no such container: `busybox`");
    let volume = ["inspect", "--type", "volume", "-f", "{{.Name}}", "kept"];
    assert_eq!(ship.ok(&volume), "kept");
    assert_eq!(
        ship.ok(&["container", "inspect", "-f", "{{.Name}}", "box"]),
        "/box"
    );
    assert_eq!(
        ship.ok(&["container", "ls", "--format", "{{.Names}}"]),
        "box"
    );
    assert_eq!(ship.ok(&["container", "exec", "box", "echo", "x"]), "x");
    ship.run(&["container", "build", "."])
        .fails(2, "unrecognized subcommand 'build'");
    let sized = ship.ok(&["inspect", "-s", "-f", "{{gt .SizeRootFs 0}}", "box"]);
    assert_eq!(sized, "true");
}
