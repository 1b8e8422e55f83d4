//! The system call filter as the kernel applies it, call by call, with none of them carried out.
//!
//! A thread of the probe, inside a sandbox, puts a filter of its own in front that leaves every call to another thread, which
//! answers [`LET_THROUGH`]. The kernel takes the strictest of all filters: a call that the sandbox's refuses never gets there.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, Ordering};

use runner::{Capabilities, Profile, Seccomp};

use crate::Test;
use crate::probe::refused as calls;
use crate::world::{World, run};

pub(crate) const TESTS: &[Test] = &[
    ("every_system_call", every_system_call),
    (
        "every_system_call_by_argument",
        every_system_call_by_argument,
    ),
    ("profiles_of_the_users", profiles_of_the_users),
    (
        "profiles_mean_what_they_mean_to_podman",
        profiles_mean_what_they_mean_to_podman,
    ),
];

/// No error that there is: what a call answers that the sandbox lets through.
const LET_THROUGH: i64 = 4000;

/// The first number that was no call when the table was made.
const FUTURE: u32 = 470;
/// How many are asked for.
const NUMBERS: u32 = 480;

/// The first call that libseccomp 2.5.4 does not know by name (Linux 5.17).
const NEW_TO_LIBSECCOMP: u32 = 450;
/// `uretprobe` and `uprobe` of x86_64: since Linux 6.14 filters are not asked, and who calls them is killed.
const NEVER_ASKED: [u32; 2] = [335, 336];

/// What the probe is asked for, as its arguments: an interface, a number, a first argument.
type Question = (&'static str, u32, u64);

/// The answers of the filter in a sandbox like `spec`, in order.
fn ask(
    world: &World,
    questions: &[Question],
    change: impl Fn(&mut runner::SandboxSpec),
) -> Vec<i64> {
    let mut text = String::new();
    for (interface, number, argument) in questions {
        writeln!(text, "{interface} {number} {argument}").unwrap();
    }
    fs::write(world.path("base/questions"), text).unwrap();
    let mut spec = world.probe(&["filter=/questions"]);
    change(&mut spec);
    let outcome = run(&spec).unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    let answers: Vec<i64> = outcome
        .stdout
        .lines()
        .map(|line| line.parse().unwrap())
        .collect();
    assert_eq!(answers.len(), questions.len(), "{outcome:?}");
    answers
}

/// Every number of an interface, with an argument that has all bits.
fn numbers(interface: &'static str) -> Vec<Question> {
    let asked = |number: &u32| interface != "native" || !NEVER_ASKED.contains(number);
    (0..NUMBERS)
        .filter(asked)
        .map(|number| (interface, number, u64::MAX))
        .collect()
}

/// The interfaces that this processor and kernel have, which programs may use side by side.
fn interfaces() -> Vec<&'static str> {
    match (
        cfg!(target_arch = "x86_64"),
        fs::exists("/proc/sys/abi/vsyscall32"),
    ) {
        (true, Ok(true)) => vec!["native", "i386"],
        _ => vec!["native"],
    }
}

/// What the filter is to answer on an interface, by number: those calls that it refuses with an argument of ones.
fn expected(interface: &str) -> BTreeMap<u32, i64> {
    let table = match (interface, std::env::consts::ARCH) {
        ("i386", _) => include_str!("../../../testdata/seccomp/i386.txt"),
        (_, "aarch64") => include_str!("../../../testdata/seccomp/aarch64.txt"),
        _ => include_str!("../../../testdata/seccomp/x86_64.txt"),
    };
    let lines = table.lines().filter(|line| !line.starts_with('#'));
    let errno = |name: &str| match name {
        "EPERM" => libc::EPERM,
        "ENOSYS" => libc::ENOSYS,
        "EAFNOSUPPORT" => libc::EAFNOSUPPORT,
        other => panic!("{other}"),
    };
    lines
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            (words[0].parse().unwrap(), errno(words[2]).into())
        })
        .collect()
}

/// Every number of each interface, as `testdata/seccomp/<interface>.txt` says: refused ones with the error, all others let through.
fn every_system_call(world: &World) -> Result<(), String> {
    for interface in interfaces() {
        let mut expected = expected(interface);
        if !world.many_ids() && interface == "native" {
            // With a single id it succeeds without effect: see `owners`.
            expected.insert(u32::try_from(libc::SYS_setgroups).unwrap(), 0);
        }
        let questions = numbers(interface);
        for ((_, number, _), answer) in questions.iter().zip(ask(world, &questions, |_| {})) {
            let expect = match number {
                FUTURE.. => libc::ENOSYS.into(),
                known => expected.get(known).copied().unwrap_or(LET_THROUGH),
            };
            assert_eq!(answer, expect, "{interface} {number}");
        }
    }
    Ok(())
}

fn every_system_call_by_argument(world: &World) -> Result<(), String> {
    let number = |number: libc::c_long| u32::try_from(number).unwrap();
    let (clone, personality, socket) = (
        number(libc::SYS_clone),
        number(libc::SYS_personality),
        number(libc::SYS_socket),
    );
    let eperm = i64::from(libc::EPERM);
    let unknown = i64::from(libc::EAFNOSUPPORT);
    // What is above the lower 32 bits does not count for the kernel, and so not here.
    let above = 1 << 32;
    let table: &[(u32, u64, i64)] = &[
        (clone, 0, LET_THROUGH),
        (clone, 0x11, LET_THROUGH),
        (clone, 0x0002_0000, eperm),
        (clone, 0x0200_0000, eperm),
        (clone, 0x0400_0000, eperm),
        (clone, 0x0800_0000, eperm),
        (clone, 0x1000_0000, eperm),
        (clone, 0x2000_0000, eperm),
        (clone, 0x4000_0000, eperm),
        (clone, 0x7d_0f00, LET_THROUGH),
        (clone, 0x1000_0000 | above, eperm),
        (personality, 0, LET_THROUGH),
        (personality, 8, LET_THROUGH),
        (personality, 0x2_0000, LET_THROUGH),
        (personality, 0x2_0008, LET_THROUGH),
        (personality, 0xffff_ffff, LET_THROUGH),
        (personality, 0x4_0000, eperm),
        (personality, 0x40_0000 | above, eperm),
        (socket, 1, LET_THROUGH),
        (socket, 2, LET_THROUGH),
        (socket, 10, LET_THROUGH),
        (socket, 16, LET_THROUGH),
        (socket, 17, LET_THROUGH),
        (socket, 38, unknown),
        (socket, 40, eperm),
        (socket, 40 | above, eperm),
        (socket, 46, unknown),
    ];
    let questions: Vec<Question> = table.iter().map(|row| ("native", row.0, row.1)).collect();
    for (row, answer) in table.iter().zip(ask(world, &questions, |_| {})) {
        assert_eq!(answer, row.2, "{row:?}");
    }
    // Each capability that opens calls opens its own, and no others.
    let questions = numbers("native");
    let closed = ask(world, &questions, |_| {});
    for (capability, opens) in [
        (2, &[libc::SYS_open_by_handle_at][..]),
        (
            16,
            &[
                libc::SYS_init_module,
                libc::SYS_finit_module,
                libc::SYS_delete_module,
            ],
        ),
        (
            19,
            &[
                libc::SYS_kcmp,
                libc::SYS_pidfd_getfd,
                libc::SYS_process_madvise,
            ],
        ),
        (20, &[libc::SYS_acct]),
        (
            22,
            &[
                libc::SYS_reboot,
                libc::SYS_kexec_load,
                libc::SYS_kexec_file_load,
            ],
        ),
        (25, &[libc::SYS_settimeofday, libc::SYS_clock_settime]),
        (26, &[libc::SYS_vhangup]),
        (34, &[libc::SYS_syslog]),
        (38, &[libc::SYS_perf_event_open]),
        (39, &[libc::SYS_bpf]),
        // Alone: nothing.
        (12, &[]),
        (24, &[]),
    ] {
        let answers = ask(world, &questions, |spec| {
            spec.confinement.capabilities = Capabilities(Capabilities::DOCKER.0 | 1 << capability);
        });
        let answers = closed.iter().zip(answers).zip(&questions);
        let opened: Vec<libc::c_long> = answers
            .filter(|((before, now), _)| *before != now)
            .map(|((_, now), (_, number, _))| {
                assert_eq!(now, LET_THROUGH, "{number} with capability {capability}");
                (*number).into()
            })
            .collect();
        let mut expect = opens.to_vec();
        expect.sort_unstable();
        assert_eq!(opened, expect, "capability {capability}");
    }
    Ok(())
}

fn profiles_of_the_users(world: &World) -> Result<(), String> {
    let json = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[
        {"names":["mkdir","mkdirat"],"action":"SCMP_ACT_ERRNO","errnoRet":28},
        {"names":["uname"],"action":"SCMP_ACT_ERRNO","excludes":{"caps":["CAP_CHOWN"]}},
        {"names":["kill"],"action":"SCMP_ACT_KILL_PROCESS","args":[{"index":1,"value":9,"op":"SCMP_CMP_EQ"}]},
        {"names":["dup3"],"action":"SCMP_ACT_LOG"}]}"#;
    let filtered = |mut spec: runner::SandboxSpec| {
        let capabilities = spec.confinement.capabilities;
        let profile = Profile::parse(json.as_bytes()).unwrap();
        let (filter, _) = profile.filter(capabilities).unwrap();
        spec.confinement.seccomp = Seccomp::Profile(filter);
        run(&spec).unwrap()
    };
    let outcome = filtered(world.script("mkdir /made; true"));
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");
    let outcome = filtered(
        world.script("uname >/dev/null; sleep 100 & kill -15 $!; kill -9 $!; echo unreached"),
    );
    assert_eq!(outcome.status.code(), 128 + libc::SIGSYS, "{outcome:?}");
    // Everything else is let through, by the kernel's own rules.
    let found = ask(
        world,
        &[("native", u32::try_from(libc::SYS_mount).unwrap(), 0)],
        |spec| {
            let profile = Profile::parse(json.as_bytes()).unwrap();
            spec.confinement.seccomp =
                Seccomp::Profile(profile.filter(spec.confinement.capabilities).unwrap().0);
        },
    );
    assert_eq!(found, [LET_THROUGH]);
    Ok(())
}

/// The same files there (by runc and libseccomp) and here, call by call, and by the arguments that rules look at.
fn profiles_mean_what_they_mean_to_podman(world: &World) -> Result<(), String> {
    if !world.host_ids() {
        // Once is enough: the program is the same in every privilege, which other tests show.
        return Ok(());
    }
    if Command::new("podman").arg("--version").output().is_err() {
        return Err("podman is not installed".into());
    }
    let files = [
        concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../testdata/seccomp/profile.json"
        ),
        "/usr/share/containers/seccomp.json",
    ];
    for file in files {
        let json = fs::read(file).map_err(|error| format!("{file}: {error}"))?;
        let mut questions: Vec<Question> = interfaces().into_iter().flat_map(numbers).collect();
        // What is newer than libseccomp's table is a matter of taste: refused with one error or another.
        questions.retain(|(_, number, _)| *number < NEW_TO_LIBSECCOMP);
        for number in [libc::SYS_socket, libc::SYS_personality, libc::SYS_clone] {
            let number = u32::try_from(number).unwrap();
            let values =
                (0..50).chain([0x2_0000, 0x2_0008, 0x1000_0000, 0xffff_ffff, 40 | 1 << 32]);
            questions.extend(values.map(|value| ("native", number, value)));
        }
        let ours = ask(world, &questions, |spec| {
            let profile = Profile::parse(&json).unwrap();
            let (filter, _) = profile.filter(spec.confinement.capabilities).unwrap();
            spec.confinement.seccomp = Seccomp::Profile(filter);
        });
        let theirs = podman(world, file);
        for ((question, ours), theirs) in questions.iter().zip(ours).zip(theirs) {
            assert_eq!(ours, theirs, "{file}: {question:?}");
        }
    }
    Ok(())
}

/// The answers to the questions asked last, in a container of podman's with this profile.
fn podman(world: &World, profile: &str) -> Vec<i64> {
    let root = world.path("base");
    let own = std::env::current_exe().unwrap();
    let mut command = Command::new("podman");
    command
        .args(["--runtime=runc", "--cgroup-manager=cgroupfs"])
        .arg(format!("--root={}", world.path("podman").display()))
        .arg(format!("--runroot={}", world.path("podman-run").display()))
        .args([
            "run",
            "--rm",
            "--network=host",
            "--ulimit=nofile=1024:1024",
            "--ulimit=nproc=1024:1024",
        ])
        // Docker's, and so longshore's: podman gives fewer.
        .args(["--cap-add=MKNOD,AUDIT_WRITE,NET_RAW"])
        .arg(format!("--security-opt=seccomp={profile}"))
        .arg(format!("--volume={}:/probe:ro", own.display()));
    for library in ["/lib", "/lib64", "/usr/lib"] {
        if fs::exists(library).unwrap() {
            command.arg(format!("--volume={library}:{library}:ro"));
        }
    }
    command
        .arg("--rootfs")
        .arg(&root)
        .args(["/probe", "--probe", "filter=/questions"]);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let answers = String::from_utf8(output.stdout).unwrap();
    answers.lines().map(|line| line.parse().unwrap()).collect()
}

/// The probe's side: answers the questions in the file.
pub(crate) fn answer(path: &str) {
    static LISTENER: AtomicI32 = AtomicI32::new(-1);
    static DONE: AtomicBool = AtomicBool::new(false);
    let text = fs::read_to_string(path).unwrap();
    let questions: Vec<(bool, i64, i64)> = text
        .lines()
        .map(|line| {
            let words: Vec<&str> = line.split(' ').collect();
            let argument: u64 = words[2].parse().unwrap();
            (
                words[0] == "i386",
                words[1].parse().unwrap(),
                argument.cast_signed(),
            )
        })
        .collect();
    let answers: Arc<[AtomicI64]> = questions.iter().map(|_| AtomicI64::new(0)).collect();
    let filled = Arc::clone(&answers);
    // Never ends by itself: that would need a call.
    std::thread::spawn(move || {
        LISTENER.store(calls::listen(), Ordering::Release);
        // From here on every call of this thread is answered by the other one: none may be needed.
        for (answer, (i386, number, argument)) in filled.iter().zip(&questions) {
            let found = match i386 {
                true => calls::i386(*number, *argument),
                false => calls::native(*number, *argument),
            };
            answer.store(found, Ordering::Relaxed);
        }
        DONE.store(true, Ordering::Release);
        loop {
            std::hint::spin_loop();
        }
    });
    let listener = loop {
        match LISTENER.load(Ordering::Acquire) {
            -1 => std::thread::yield_now(),
            fd => break fd,
        }
    };
    assert!(listener >= 0, "no listener");
    while !DONE.load(Ordering::Acquire) {
        calls::refuse_next(listener, LET_THROUGH);
    }
    for answer in answers.iter() {
        println!("{}", answer.load(Ordering::Relaxed));
    }
}
