//! Everything that can be wrong with what is given, and with the machine: a clear error, and nothing left behind.

use std::path::Path;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use crate::support::{Built, Place, Ran, mounts_below, signal, tool};

/// Builds a Dockerfile in a context of its own.
fn build(place: &Place, dockerfile: &str) -> Ran {
    let context = place.context("ctx", &[("present", "1"), ("Dockerfile", dockerfile)]);
    place.words(["build", "--progress", "plain"], [&context])
}

#[test]
fn what_is_missing_is_named() {
    let place = Place::with_busybox();
    let empty = place.context("empty", &[]);
    std::fs::create_dir_all(&empty).unwrap();
    let ran = place.words(["build"], [&empty]);
    ran.fails(1, "there is no `Dockerfile`, `Containerfile`");
    assert!(
        ran.stderr.contains("hint: name another file with -f"),
        "{ran}"
    );
    place
        .run(["build", "/no/such/folder"])
        .fails(1, "/no/such/folder");

    build(&place, "FROM busybox\nCOPY absent /x\n").fails(1, "absent");
    let ran = build(&place, "FROM busybox\nCOPY absent /x\n");
    assert!(ran.stderr.contains("Dockerfile:2"), "{ran}");
    let ran = build(&place, "FROM busybox\n\nCOPY --from=nowhere /a /b\n");
    assert!(
        ran.code != Some(0) && ran.stderr.contains("nowhere"),
        "{ran}"
    );
    let context = place.context("ctx", &[("Dockerfile", "FROM busybox\n")]);
    place
        .words(["build", "--target", "nowhere"], [&context])
        .fails(1, "nowhere");
    build(&place, "FROM busybox\nRNU true\n").fails(1, "RUN");
    build(&place, "").fails(1, "the Dockerfile is empty");
}

#[test]
fn a_registry_that_is_not_there_is_the_environments_fault() {
    let place = Place::with_busybox();
    let host = format!("127.0.0.1:{}", crate::support::free_port());
    let ran = build(&place, &format!("FROM {host}/x:1\n"));
    ran.fails(3, &host);
    assert!(ran.stderr.contains("hint: "), "{ran}");
    place
        .run(["pull", &format!("{host}/x")])
        .fails(3, "cannot reach");
    place.run(["tag", "busybox", &format!("{host}/x")]).ok();
    place
        .run(["push", &format!("{host}/x")])
        .fails(3, "cannot reach");
}

#[test]
fn an_image_that_a_registry_does_not_have_is_its_word() {
    let place = Place::with_busybox();
    let registry = crate::support::Server::registry(&place.path("registry"));
    let name = format!("{}/absent:1", registry.host);
    place.run(["pull", &name]).fails(4, "absent");
    build(&place, &format!("FROM {name}\n")).fails(4, "absent");
}

#[test]
fn a_step_that_fails_shows_its_output_its_code_and_its_line() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\n\nRUN i=0; while [ $i -lt 2000 ]; do echo line-$i; i=$((i+1)); done; echo to-stderr >&2; exit 42\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    for progress in ["plain", "quiet"] {
        let ran = place.words(["build", "--progress", progress], [&context]);
        ran.fails(1, "exit code: 42");
        assert!(ran.stderr.contains("Dockerfile:3"), "{ran}");
        assert!(ran.stderr.contains("to-stderr"), "{ran}");
        for index in [0, 1, 999, 1999] {
            let line = format!("line-{index}\n");
            assert!(ran.stderr.contains(&line), "{progress}: {line}");
        }
        assert!(ran.stdout.is_empty(), "{ran}");
    }
    // A failed step is no result: it runs again.
    let ran = place.words(["build", "--progress", "plain"], [&context]);
    assert!(!ran.stderr.contains("CACHED\n#"), "{ran}");
    ran.fails(1, "exit code: 42");
}

#[test]
fn what_is_no_plain_file_in_a_context_never_blocks_a_build() {
    let place = Place::with_busybox();
    let copies_all = place.context(
        "all",
        &[("ok", "1"), ("Dockerfile", "FROM busybox\nCOPY . /all\n")],
    );
    let copies_one = place.context(
        "one",
        &[("ok", "1"), ("Dockerfile", "FROM busybox\nCOPY ok /ok\n")],
    );
    for context in [&copies_all, &copies_one] {
        tool("mkfifo", &[context.join("pipe").to_str().unwrap()]);
        let socket = context.join("socket");
        drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    }
    place.words(["build", "-t", "one"], [&copies_one]).ok();
    assert_eq!(place.sh("one", "cat /ok"), "1");
    // As with BuildKit: a FIFO is copied as one and never waited on, a socket becomes an empty file.
    place.words(["build", "-t", "all"], [&copies_all]).ok();
    let kinds = "cat /all/ok; stat -c '%F' /all/pipe /all/socket";
    assert_eq!(place.sh("all", kinds), "1fifo\nregular empty file");
}

#[test]
fn a_file_that_only_root_can_read_is_read_by_root() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[
            ("locked", "1"),
            ("Dockerfile", "FROM busybox\nCOPY locked /x\n"),
        ],
    );
    // Root reads everything; what an ordinary user is told stands in `rootless.rs`.
    tool("chmod", &["0", context.join("locked").to_str().unwrap()]);
    let ran = place.words(["build", "-t", "locked"], [&context]);
    ran.ok();
    assert_eq!(place.sh("locked", "stat -c %a /x"), "0");
}

#[test]
fn interrupting_a_step_ends_it_and_leaves_nothing_mounted() {
    let place = Place::with_busybox();
    let marker = format!("31{}", std::process::id());
    let dockerfile = format!("FROM busybox\nRUN echo started; sleep {marker}\n");
    let context = place.context("ctx", &[("Dockerfile", &dockerfile)]);
    for name in ["INT", "TERM"] {
        let mut command = place.command(["build", "--progress", "plain"]);
        let mut child = command
            .arg(&context)
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
        read_until(&mut stderr, "started");
        signal(&child, name);
        assert_eq!(child.wait().unwrap().code(), Some(130), "SIG{name}");
        assert!(!is_running(&marker), "the step runs on after SIG{name}");
        assert!(mounts_below(&place.store()).is_empty());
    }
    let left = std::fs::read_dir(place.store().join("tmp"))
        .unwrap()
        .count();
    assert_eq!(left, 0, "temporary folders are left");
}

#[test]
fn a_killed_build_leaves_nothing_that_the_next_one_trips_over() {
    let place = Place::with_busybox();
    let marker = format!("32{}", std::process::id());
    let dockerfile = format!(
        "FROM busybox\nCOPY many /many\nRUN cp -r /many /again && echo x > /x\nRUN sleep 0.{marker} && cat /x > /y\n"
    );
    let files: Vec<(String, String)> = (0..300)
        .map(|i| (format!("many/{i}"), format!("content {i}")))
        .collect();
    let mut files: Vec<(&str, &str)> = files
        .iter()
        .map(|(a, b)| (a.as_str(), b.as_str()))
        .collect();
    files.push(("Dockerfile", &dockerfile));
    let context = place.context("ctx", &files);
    // Moments from before the first step to beyond the last; the numbers are arbitrary, but the same every time.
    for milliseconds in [3, 9, 17, 31, 47, 73, 110, 190, 300] {
        let mut command = place.command(["build", "-t", "killed"]);
        let mut child = command.arg(&context).stderr(Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(milliseconds));
        child.kill().unwrap();
        child.wait().unwrap();
        wait_until(
            || !is_running(&format!("0.{marker}")),
            "a sandbox outlives its build",
        );
    }
    place.build("killed", &context);
    assert_eq!(
        place.sh(
            "killed",
            "ls /many | wc -l; ls /again | wc -l; cat /many/299 /y"
        ),
        "300\n300\ncontent 299x"
    );
    assert!(mounts_below(&place.store()).is_empty());
    // What the killed ones left is swept, and the image still stands.
    place.run(["prune"]).ok();
    assert_eq!(place.sh("killed", "cat /y"), "x");
}

#[test]
fn two_builds_at_once_run_a_step_once() {
    let place = Place::with_busybox();
    let log = place.context("log", &[("empty", "")]);
    let dockerfile = "FROM busybox\nRUN sleep 1; cat /proc/sys/kernel/random/uuid > /token\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let start = |tag: &str| {
        let mut command = place.command(["build", "--progress", "plain", "-t", tag]);
        command.arg(&context).stderr(Stdio::piped());
        command.spawn().unwrap()
    };
    let (first, second) = (start("first"), start("second"));
    let both: Vec<Ran> = [first, second]
        .into_iter()
        .map(|child| Ran::from_output("build".to_owned(), &child.wait_with_output().unwrap()))
        .collect();
    for ran in &both {
        ran.ok();
    }
    let runs: usize = both.iter().map(|ran| Built::of(ran).runs().len()).sum();
    assert_eq!(runs, 1, "{}\n{}", both[0], both[1]);
    assert_eq!(
        place.sh("first", "cat /token"),
        place.sh("second", "cat /token")
    );
    assert!(log.exists());
}

#[test]
fn a_full_disk_is_told_and_is_no_harm_once_there_is_room() {
    let place = Place::new();
    let disk = place.path("disk");
    std::fs::create_dir(&disk).unwrap();
    let _mounted = Mounted::tmpfs(&disk, "12m");
    let store = disk.join("store");
    let on_disk = |words: &[&str], path: Option<&Path>| {
        let mut command = place.command(words);
        command.args(path).env("LONGSHORE_ROOT", &store);
        Ran::of(&mut command)
    };
    let rootfs = crate::support::busybox_rootfs();
    let recipe = crate::support::workspace().join("testdata/images/busybox/Dockerfile");
    on_disk(
        &["build", "-t", "busybox", "-f", recipe.to_str().unwrap()],
        rootfs.parent(),
    )
    .ok();
    let dockerfile = "FROM busybox\nRUN dd if=/dev/zero of=/large bs=1000000 count=30\n";
    let large = place.context("large", &[("Dockerfile", dockerfile)]);
    let ran = on_disk(&["build"], Some(&large));
    assert!(ran.code == Some(1) || ran.code == Some(3), "{ran}");
    assert!(ran.stderr.contains("No space left on device"), "{ran}");

    let copied = place.context(
        "copied",
        &[("Dockerfile", "FROM busybox\nCOPY large /large\n")],
    );
    std::fs::write(copied.join("large"), vec![1; 30_000_000]).unwrap();
    let ran = on_disk(&["build"], Some(&copied));
    ran.fails(3, "No space left on device");

    let small = place.context(
        "small",
        &[("Dockerfile", "FROM busybox\nRUN echo fits > /small\n")],
    );
    on_disk(&["build", "-t", "small"], Some(&small)).ok();
    let ran = on_disk(&["run", "--rm", "small", "cat", "/small"], None);
    assert_eq!(ran.ok(), "fits");
}

#[test]
fn a_hostile_archive_stays_inside() {
    let place = Place::with_busybox();
    let outside = place.path("outside");
    let context = place.context(
        "ctx",
        &[("Dockerfile", "FROM busybox\nADD bad.tar /into/\n")],
    );
    let victim = outside.to_str().unwrap();
    // A link out of the root, and a file through it.
    let script = format!(
        "cd '{0}' && mkdir x && ln -s '{1}' x/link && tar -cf bad.tar -C x link && rm x/link && mkdir x/link && echo pwned > x/link/file && tar -rf bad.tar -C x link/file && rm -r x",
        context.display(),
        victim
    );
    std::fs::create_dir(&outside).unwrap();
    tool("sh", &["-c", &script]);
    let _either_way = place.words(["build"], [&context]);
    assert_eq!(
        std::fs::read_dir(&outside).unwrap().count(),
        0,
        "a file was written outside"
    );
}

/// A file system that is unmounted when dropped.
struct Mounted<'a>(&'a Path);

impl<'a> Mounted<'a> {
    fn tmpfs(folder: &'a Path, size: &str) -> Mounted<'a> {
        let options = format!("size={size}");
        tool(
            "mount",
            &[
                "-t",
                "tmpfs",
                "-o",
                &options,
                "tmpfs",
                folder.to_str().unwrap(),
            ],
        );
        Mounted(folder)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        // Lazily: the process that writes the store out may still have it open.
        tool("umount", &["-l", self.0.to_str().unwrap()]);
    }
}

/// Reads lines until one has `word`.
fn read_until(lines: &mut impl std::io::BufRead, word: &str) {
    let mut line = String::new();
    while lines.read_line(&mut line).unwrap() > 0 {
        if line.contains(word) && !line.contains("RUN") {
            return;
        }
        line.clear();
    }
    panic!("`{word}` never came");
}

/// Whether any process of this machine has an argument.
fn is_running(argument: &str) -> bool {
    std::fs::read_dir("/proc").unwrap().any(|entry| {
        let path = entry.unwrap().path().join("cmdline");
        let arguments = std::fs::read(path).unwrap_or_default();
        arguments
            .split(|&byte| byte == 0)
            .any(|a| a == argument.as_bytes())
    })
}

fn wait_until(done: impl Fn() -> bool, otherwise: &str) {
    let started = Instant::now();
    while !done() {
        assert!(started.elapsed() < Duration::from_secs(20), "{otherwise}");
        sleep(Duration::from_millis(20));
    }
}
