//! Known ways out of containers, tried: `docs/security.md` goes through them one by one.

use std::fs;
use std::os::unix::fs::symlink;

use runner::{ExitStatus, SandboxError, StartError};

use crate::Test;
use crate::world::{World, bind, run, write_executable};

pub(crate) const TESTS: &[Test] = &[
    (
        "working_directory_in_a_descriptor",
        working_directory_in_a_descriptor,
    ),
    ("command_in_a_descriptor", command_in_a_descriptor),
    ("no_descriptor_is_left", no_descriptor_is_left),
    ("own_program_is_read_only", own_program_is_read_only),
    ("masks_are_our_own", masks_are_our_own),
    ("no_terminal_of_the_callers", no_terminal_of_the_callers),
    (
        "processes_outside_do_not_exist",
        processes_outside_do_not_exist,
    ),
    ("links_in_binds", links_in_binds),
];

/// More than any process of ours has open.
const DESCRIPTORS: std::ops::Range<u32> = 3..40;

fn working_directory_in_a_descriptor(world: &World) -> Result<(), String> {
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("canary"), "").unwrap();
    for number in DESCRIPTORS {
        for up in ["", "/..", "/../../../../../.."] {
            let mut spec = world.script("pwd; ls");
            spec.process.cwd = format!("/proc/self/fd/{number}{up}");
            let error = run(&spec).unwrap_err();
            assert!(
                matches!(
                    error,
                    SandboxError::Start(StartError::WorkingDirectory { .. })
                ),
                "{number}{up}: {error:?}"
            );
            // Where it is to be made, it may only be made inside.
            spec.process.make_cwd = true;
            if let Ok(outcome) = run(&spec) {
                assert!(outcome.stdout.starts_with('/'), "{number}{up}: {outcome:?}");
                assert!(
                    !outcome.stdout.contains("canary"),
                    "{number}{up}: {outcome:?}"
                );
            }
        }
    }
    for path in ["/proc/self/cwd", "/proc/self/root/tmp", "/proc/1/cwd/tmp"] {
        let mut spec = world.script("true");
        spec.process.cwd = path.into();
        assert!(run(&spec).is_err(), "{path}");
    }
    Ok(())
}

fn command_in_a_descriptor(world: &World) -> Result<(), String> {
    for number in DESCRIPTORS {
        for below in ["", "/../bin/busybox", "/../../../../bin/busybox"] {
            let path = format!("/proc/self/fd/{number}{below}");
            let error = run(&world.spec([path.as_str()])).unwrap_err();
            assert!(matches!(error.exit_code(), 126 | 127), "{path}: {error:?}");
        }
    }
    Ok(())
}

fn no_descriptor_is_left(world: &World) -> Result<(), String> {
    let mut spec = world.script("cd /proc/self/fd; echo *; cd /proc/1/fd; echo *");
    for init in [false, true] {
        spec.init = init;
        let out = run(&spec).unwrap().stdout;
        let mut lines = out.lines();
        let own: Vec<&str> = lines.next().unwrap().split(' ').collect();
        assert_eq!(own[..3], ["0", "1", "2"], "{out}");
        // The shell's own, of the directory that it reads.
        assert!(own.len() <= 4, "{out}");
    }
    Ok(())
}

/// Also where the image makes this program its own interpreter, or its command.
fn own_program_is_read_only(world: &World) -> Result<(), String> {
    let mut spec = world.probe(&["own-program"]);
    spec.process.argv[0] = "/proc/self/exe".into();
    let outcome = run(&spec).unwrap();
    let expect = format!("chmod {}\n", libc::EROFS);
    assert_eq!(outcome.stdout, expect, "{outcome:?}");
    assert_eq!(outcome.status, ExitStatus::Code(0));
    write_executable(&world.path("base/script"), b"#!/proc/self/exe --probe\n");
    let mut spec = world.probe(&["own-program"]);
    spec.process.argv = vec!["/script".into()];
    // As a script, its path comes as an argument, for which there is no probe: that this program runs is what counts.
    let outcome = run(&spec).unwrap();
    assert!(
        outcome.stderr.contains("no probe for /script"),
        "{outcome:?}"
    );
    Ok(())
}

fn masks_are_our_own(world: &World) -> Result<(), String> {
    // What hides files in /proc must not be what the image says is /dev/null.
    let dev = world.path("dev");
    fs::create_dir(&dev).unwrap();
    symlink("/proc/sysrq-trigger", dev.join("null")).unwrap();
    let mut spec =
        world.script("stat -c '%t,%T' /proc/keys /proc/timer_list; cat /proc/keys | wc -c");
    spec.mounts.push(bind(&dev, "/dev", false));
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "1,3\n1,3\n0\n", "{outcome:?}");
    // Nor does a mount elsewhere uncover what is hidden.
    let mut spec =
        world.script("cat /proc/keys /proc/timer_list | wc -c; echo x > /proc/sysrq-trigger");
    spec.mounts.push(bind(&dev, "/proc/scsi", false));
    if let Ok(outcome) = run(&spec) {
        assert!(outcome.stdout.starts_with("0\n"), "{outcome:?}");
        assert_ne!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
    }
    Ok(())
}

fn no_terminal_of_the_callers(world: &World) -> Result<(), String> {
    let outcome = run(&world.script(": < /dev/tty")).unwrap();
    assert!(outcome.stderr.contains("/dev/tty"), "{outcome:?}");
    assert_ne!(outcome.status, ExitStatus::Code(0));
    Ok(())
}

fn processes_outside_do_not_exist(world: &World) -> Result<(), String> {
    let own = std::process::id();
    let script = format!("kill -0 {own}; ls -d /proc/{own}; ls /proc/1/root/ /proc/self/root/");
    let outcome = run(&world.script(&script)).unwrap();
    let inside = world.sh("ls /");
    // Whatever names a process of the host: ours is not among those that can be named.
    assert!(
        !outcome.stdout.contains(&format!("/proc/{own}\n")),
        "{outcome:?}"
    );
    for line in outcome
        .stdout
        .lines()
        .filter(|line| !line.is_empty() && !line.ends_with(':'))
    {
        assert!(
            inside.lines().any(|known| known == line),
            "{line}: {outcome:?}"
        );
    }
    Ok(())
}

/// Links that a container leaves in a directory that it shares with the host, for the next one's mounts.
fn links_in_binds(world: &World) -> Result<(), String> {
    let (shared, outside) = (world.path("shared"), world.path("outside"));
    fs::create_dir(&shared).unwrap();
    fs::create_dir(&outside).unwrap();
    let mut plant = world.script(&format!("ln -s {} /shared/way", outside.display()));
    plant.mounts.push(bind(&shared, "/shared", false));
    assert!(run(&plant).unwrap().status.success());
    // As a target below the shared directory.
    let mut spec = world.script("echo > /shared/way/file; true");
    spec.mounts = vec![
        bind(&shared, "/shared", false),
        bind(&world.path("base"), "/shared/way/deeper", true),
    ];
    let _either = run(&spec);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
    // As a part of it.
    let mut spec = world.script("true");
    let mut part = bind(&shared, "/part", false);
    if let runner::MountKind::Bind { beneath, .. } = &mut part.kind {
        "way".clone_into(beneath);
    }
    spec.mounts = vec![part];
    let error = run(&spec).unwrap_err();
    assert!(
        matches!(
            error,
            SandboxError::Start(StartError::SourceLeadsOut { .. })
        ),
        "{error:?}"
    );
    Ok(())
}
