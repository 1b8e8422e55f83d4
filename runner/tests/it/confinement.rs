//! What the process may not do.

use std::collections::BTreeMap;
use std::fs;

use runner::{Capabilities, ExitStatus, SandboxError, Seccomp, StartError, User};

use crate::Test;
use crate::world::{World, run};

pub(crate) const TESTS: &[Test] = &[
    ("capabilities", capabilities),
    ("system_calls", system_calls),
    ("unfiltered_on_request", unfiltered_on_request),
    ("no_new_privileges", no_new_privileges),
    ("masked_paths", masked_paths),
    ("devices", devices),
    ("resource_limits_are_kept", resource_limits_are_kept),
    ("control_group_limits", control_group_limits),
    ("out_of_memory", out_of_memory),
];

fn status(
    world: &World,
    user: Option<User>,
    change: impl Fn(&mut runner::SandboxSpec),
) -> BTreeMap<String, String> {
    let mut spec = world.script("cat /proc/self/status");
    if let Some(user) = user {
        spec.process.user = user;
    }
    change(&mut spec);
    let outcome = run(&spec).unwrap();
    outcome
        .stdout
        .lines()
        .filter_map(|line| line.split_once(":\t"))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

fn capabilities(world: &World) -> Result<(), String> {
    const NONE: &str = "0000000000000000";
    const DOCKER: &str = "00000000a80425fb";
    let check = |found: &BTreeMap<String, String>, expect: [&str; 5]| {
        let keys = ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"];
        assert_eq!(keys.map(|key| found[key].as_str()), expect);
    };
    check(
        &status(world, None, |_| {}),
        [NONE, DOCKER, DOCKER, DOCKER, NONE],
    );
    if world.many_ids() {
        let user = User {
            uid: 1000,
            gid: 1000,
            groups: vec![1000],
            home: "/".into(),
        };
        check(
            &status(world, Some(user), |_| {}),
            [NONE, NONE, NONE, DOCKER, NONE],
        );
    }
    let few = |spec: &mut runner::SandboxSpec| spec.confinement.capabilities = Capabilities(1);
    let one = "0000000000000001";
    check(&status(world, None, few), [NONE, one, one, one, NONE]);
    let all = |spec: &mut runner::SandboxSpec| spec.confinement.capabilities = Capabilities::ALL;
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find_map(|line| line.strip_prefix("CapPrm:\t"))
        .unwrap();
    let last = fs::read_to_string("/proc/sys/kernel/cap_last_cap").unwrap();
    let every = format!(
        "{:016x}",
        (2_u64 << last.trim().parse::<u32>().unwrap()) - 1
    );
    // In a namespace of its own, all of them, which are worth nothing outside.
    let expect = if world.own_ids() { &every } else { own };
    assert_eq!(status(world, None, all)["CapEff"], expect);
    Ok(())
}

fn system_calls(world: &World) -> Result<(), String> {
    // By name, the answer of the filter; `None` where the kernel answers for itself.
    let table: &[(&str, Option<i32>)] = &[
        ("getpid", Some(0)),
        ("mount", Some(libc::EPERM)),
        ("umount2", Some(libc::EPERM)),
        ("unshare", Some(libc::EPERM)),
        ("unshare_user", Some(libc::EPERM)),
        ("setns", Some(libc::EPERM)),
        ("fsopen", Some(libc::EPERM)),
        ("open_tree", Some(libc::EPERM)),
        ("move_mount", Some(libc::EPERM)),
        ("mount_setattr", Some(libc::EPERM)),
        ("open_tree_attr", Some(libc::EPERM)),
        ("pivot_root", Some(libc::EPERM)),
        ("swapon", Some(libc::EPERM)),
        ("reboot", Some(libc::EPERM)),
        ("kexec_load", Some(libc::EPERM)),
        ("init_module", Some(libc::EPERM)),
        ("finit_module", Some(libc::EPERM)),
        ("bpf", Some(libc::EPERM)),
        ("perf_event_open", Some(libc::EPERM)),
        ("userfaultfd", Some(libc::EPERM)),
        ("io_uring_setup", Some(libc::EPERM)),
        ("keyctl", Some(libc::EPERM)),
        ("add_key", Some(libc::EPERM)),
        ("request_key", Some(libc::EPERM)),
        ("open_by_handle_at", Some(libc::EPERM)),
        ("settimeofday", Some(libc::EPERM)),
        ("clock_settime", Some(libc::EPERM)),
        ("syslog", Some(libc::EPERM)),
        ("acct", Some(libc::EPERM)),
        ("vhangup", Some(libc::EPERM)),
        ("kcmp", Some(libc::EPERM)),
        ("pidfd_getfd", Some(libc::EPERM)),
        ("mbind", Some(libc::EPERM)),
        ("move_pages", Some(libc::EPERM)),
        ("quotactl", Some(libc::EPERM)),
        ("sethostname", Some(libc::EPERM)),
        ("clone_newuser", Some(libc::EPERM)),
        ("clone_newns", Some(libc::EPERM)),
        ("clone_plain", Some(libc::EINVAL)),
        ("clone3", Some(libc::ENOSYS)),
        ("personality_query", Some(0)),
        ("personality_norandom", Some(libc::EPERM)),
        ("socket_inet", Some(0)),
        ("socket_unix", Some(0)),
        ("socket_netlink", Some(0)),
        ("socket_vsock", Some(libc::EPERM)),
        ("socket_alg", Some(libc::EAFNOSUPPORT)),
        ("chroot", Some(libc::EFAULT)),
        ("name_to_handle_at", None),
        ("process_vm_readv", Some(0)),
        ("ptrace", Some(libc::ESRCH)),
        ("openat2", None),
        ("statx", None),
        ("landlock_create_ruleset", None),
        ("memfd_create", None),
        ("seccomp", Some(libc::EINVAL)),
        ("setuid", Some(0)),
        ("close_range", Some(libc::EINVAL)),
        ("from_the_future", Some(libc::ENOSYS)),
        ("from_the_far_future", Some(libc::ENOSYS)),
        #[cfg(target_arch = "x86_64")]
        ("x32_getpid", Some(libc::ENOSYS)),
    ];
    let names: Vec<&str> = table.iter().map(|(name, _)| *name).collect();
    let found = answers(&run(&world.probe(&names)).unwrap());
    for (name, expect) in table {
        match expect {
            Some(errno) => assert_eq!(found[*name], *errno, "{name}"),
            None => assert!(
                ![libc::EPERM, libc::ENOSYS].contains(&found[*name]),
                "{name}"
            ),
        }
    }
    Ok(())
}

fn answers(outcome: &crate::world::Outcome) -> BTreeMap<String, i32> {
    assert!(outcome.status.success(), "{outcome:?}");
    outcome
        .stdout
        .lines()
        .map(|line| line.split_once(' ').unwrap())
        .map(|(name, errno)| (name.to_owned(), errno.parse().unwrap()))
        .collect()
}

fn unfiltered_on_request(world: &World) -> Result<(), String> {
    let mut spec = world.probe(&["fsopen", "clone3", "keyctl", "userfaultfd"]);
    spec.confinement.seccomp = Seccomp::Unconfined;
    spec.confinement.capabilities = Capabilities::ALL;
    let found = answers(&run(&spec).unwrap());
    assert_eq!(found["fsopen"], libc::EFAULT);
    assert_eq!(found["clone3"], libc::E2BIG);
    assert_eq!(found["keyctl"], 0);
    assert_ne!(found["userfaultfd"], libc::ENOSYS);
    let mut spec = world.probe(&["session-keyring"]);
    spec.confinement.seccomp = Seccomp::Unconfined;
    let found = answers(&run(&spec).unwrap());
    let outside = crate::probe::session_keyring();
    assert!(outside > 0, "{outside}");
    assert_ne!(i64::from(found["session-keyring"]), outside);

    // A capability opens the calls that it is for.
    let mut spec = world.probe(&["fsopen", "unshare", "clone_newns", "keyctl", "bpf"]);
    spec.confinement.capabilities = Capabilities(Capabilities::DOCKER.0 | 1 << 21);
    let found = answers(&run(&spec).unwrap());
    assert_eq!((found["fsopen"], found["unshare"]), (libc::EFAULT, 0));
    assert_eq!(found["keyctl"], libc::EPERM);
    Ok(())
}

fn no_new_privileges(world: &World) -> Result<(), String> {
    let set = |spec: &mut runner::SandboxSpec| spec.confinement.no_new_privileges = true;
    assert_eq!(status(world, None, |_| {})["NoNewPrivs"], "0", "as Docker");
    let found = status(world, None, set);
    assert_eq!(
        (found["NoNewPrivs"].as_str(), found["Seccomp"].as_str()),
        ("1", "2")
    );
    Ok(())
}

fn masked_paths(world: &World) -> Result<(), String> {
    let out = world.sh(
        "cat /proc/timer_list /proc/interrupts /proc/keys /proc/kcore | wc -c; \
         ls /sys/firmware /proc/acpi /proc/scsi 2>/dev/null | grep -v : | wc -w",
    );
    assert_eq!(out, "0\n0\n");
    for path in [
        "/proc/sys/kernel/hostname",
        "/proc/sys/vm/swappiness",
        "/proc/sysrq-trigger",
        "/proc/irq/default_smp_affinity",
        "/sys/kernel/mm/ksm/run",
        "/sys/fs/cgroup/cgroup.procs",
    ] {
        let outcome = run(&world.script(&format!("test -e {path} && echo 1 > {path}"))).unwrap();
        if !world.path("base").join(path).exists() && !std::path::Path::new(path).exists() {
            continue;
        }
        assert_ne!(outcome.status, ExitStatus::Code(0), "{path}");
        assert!(
            outcome.stderr.contains("Read-only file system"),
            "{path}: {outcome:?}"
        );
    }
    for applet in [
        "mount -t tmpfs x /tmp",
        "umount /proc/keys",
        "mount -o remount,rw /sys",
    ] {
        assert_ne!(
            run(&world.script(applet)).unwrap().status,
            ExitStatus::Code(0),
            "{applet}"
        );
    }
    Ok(())
}

fn devices(world: &World) -> Result<(), String> {
    let out = world.sh(
        "cd /dev; echo *; ls -l null zero full random urandom tty | while read m l o g a b r; do \
         echo $m $a $b; done; head -c 3 zero | wc -c; head -c 3 urandom | wc -c; echo gone > null; \
         echo x > shm/file; cat shm/file; readlink stdout; readlink fd; readlink ptmx; stat -c %a shm; \
         stat -c %a /dev/pts/ptmx",
    );
    assert_eq!(
        out,
        "core fd full mqueue null ptmx pts random shm stderr stdin stdout tty urandom zero\n\
         crw-rw-rw- 1, 7\ncrw-rw-rw- 1, 3\ncrw-rw-rw- 1, 8\ncrw-rw-rw- 5, 0\ncrw-rw-rw- 1, 9\n\
         crw-rw-rw- 1, 5\n3\n3\nx\n/proc/self/fd/1\n/proc/self/fd\npts/ptmx\n1777\n666\n"
    );
    let outcome = run(&world.script("echo x > /dev/full")).unwrap();
    assert!(outcome.stderr.contains("No space left"), "{outcome:?}");

    // Nodes may be made by root of the host, as in Docker, but not opened; wherever they are made.
    for dir in ["/", "/dev/", "/dev/shm/", "/tmp/"] {
        let script = format!("mknod {dir}disk b 7 0 && cat {dir}disk");
        let outcome = run(&world.script(&script)).unwrap();
        assert_eq!(outcome.status, ExitStatus::Code(1), "{script}");
        let expect = if world.host_ids() {
            "can't open"
        } else {
            "Operation not permitted"
        };
        assert!(outcome.stderr.contains(expect), "{script}: {outcome:?}");
    }
    // What is done to a device's mode stays inside.
    let before = fs::metadata("/dev/null").unwrap();
    run(&world.script("chmod 600 /dev/null; chown 1:1 /dev/null")).unwrap();
    let after = fs::metadata("/dev/null").unwrap();
    assert_eq!(before.permissions(), after.permissions());
    Ok(())
}

fn resource_limits_are_kept(world: &World) -> Result<(), String> {
    let own = rustix::process::getrlimit(rustix::process::Resource::Nofile).current;
    let own = own.map_or("unlimited".into(), |limit| limit.to_string());
    assert_eq!(world.sh("ulimit -n").trim(), own);
    Ok(())
}

fn out_of_memory(world: &World) -> Result<(), String> {
    let ends = |spec: &runner::SandboxSpec| {
        let mut sandbox = runner::Sandbox::spawn(spec, runner::Stdio::default())?;
        let status = sandbox.wait()?;
        Ok::<_, SandboxError>((status, sandbox.usage().unwrap()))
    };
    let mut spec = world.script("a=0123456789; while true; do a=$a$a; done");
    spec.limits.memory = Some(16 << 20);
    spec.limits.memory_swap = Some(16 << 20);
    match ends(&spec) {
        Ok((status, usage)) => {
            assert_eq!(status.code(), 137, "{usage:?}");
            assert!(usage.oom_kills > 0, "{usage:?}");
        }
        Err(SandboxError::Start(StartError::Limit { .. })) if !world.root() => {}
        Err(SandboxError::Start(StartError::Limit { limit, reason })) => {
            return Err(format!("this machine cannot limit {limit}: {reason}"));
        }
        Err(error) => panic!("{error:?}"),
    }
    let (status, usage) =
        ends(&world.script("i=0; while test $i -lt 20000; do i=$((i+1)); done")).unwrap();
    assert_eq!((status, usage.oom_kills), (ExitStatus::Code(0), 0));
    assert!(usage.user_us + usage.system_us > 0, "{usage:?}");
    assert!(usage.memory_peak > 0, "{usage:?}");

    spec.limits.memory = Some(runner::MEMORY_MIN - 1);
    let error = run(&spec).unwrap_err().to_string();
    assert!(error.starts_with("cannot limit memory: "), "{error}");
    Ok(())
}

fn control_group_limits(world: &World) -> Result<(), String> {
    let groups = || -> Vec<String> {
        let mut found = Vec::new();
        let mut todo = vec![std::path::PathBuf::from("/sys/fs/cgroup")];
        while let Some(dir) = todo.pop() {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                if entry.file_type().unwrap().is_dir() {
                    found.push(entry.path().display().to_string());
                    todo.push(entry.path());
                }
            }
        }
        found.retain(|path| path.contains(&format!("runner-it-{}", std::process::id())));
        found
    };
    let mut spec = world.script("for i in 1 2 3 4 5 6 7 8; do sleep 0.2 & done; wait");
    spec.cgroup = Some(format!("runner-it-{}", std::process::id()));
    spec.limits.pids = Some(5);
    spec.limits.memory = Some(256 << 20);
    spec.limits.cpu_quota_us = Some(100_000);
    match run(&spec) {
        Ok(outcome) => {
            assert_ne!(outcome.status, ExitStatus::Code(0), "{outcome:?}");
            assert!(outcome.stderr.contains("fork"), "{outcome:?}");
            spec.limits.pids = Some(50);
            assert!(run(&spec).unwrap().status.success());
        }
        Err(SandboxError::Start(StartError::Limit { .. })) if !world.root() => {}
        Err(SandboxError::Start(StartError::Limit { limit, reason })) => {
            return Err(format!("this machine cannot limit {limit}: {reason}"));
        }
        Err(error) => panic!("{error:?}"),
    }
    assert_eq!(groups(), [""; 0], "nothing is left");

    spec.limits = runner::Limits::default();
    spec.cgroup = Some("../escape".into());
    assert!(
        run(&spec)
            .unwrap_err()
            .to_string()
            .contains("control group name `../escape`")
    );
    Ok(())
}
