//! Mount points leave nothing behind in what the process wrote.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use runner::SandboxSpec;
use rustix::fs::{CWD, FileType, Mode};

use crate::Test;
use crate::world::{World, bind, run};

pub(crate) const TESTS: &[Test] = &[
    (
        "stub_layer_keeps_the_upper_clean",
        stub_layer_keeps_the_upper_clean,
    ),
    ("no_stub_layer", no_stub_layer),
    ("linked_resolv_conf", linked_resolv_conf),
    ("whiteout_in_a_layer", whiteout_in_a_layer),
    ("whiteout_in_the_upper", whiteout_in_the_upper),
    ("written_files_do_not_leak", written_files_do_not_leak),
    ("what_the_process_did_stays", what_the_process_did_stays),
    ("mounts_within_binds", mounts_within_binds),
];

/// A sandbox with the files that a build step has.
fn step(world: &World, lower: &[&str], script: &str) -> SandboxSpec {
    let mut spec = world.script(script);
    spec.root = world.layers(lower);
    spec.etc.hosts = Some("127.0.0.1 localhost\n".into());
    spec.etc.resolv_conf = Some("nameserver 192.0.2.1\n".into());
    spec
}

/// Runs, and compares the upper directory with what it was; times included.
fn check_unchanged(world: &World, spec: &SandboxSpec) {
    let before = world.upper();
    let outcome = run(spec).unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(world.upper(), before);
}

const READ: &str = "grep -q 127 /etc/hosts; grep -q 192 /etc/resolv.conf";

fn stub_layer_keeps_the_upper_clean(world: &World) -> Result<(), String> {
    check_unchanged(world, &step(world, &["base", "stubs"], READ));
    Ok(())
}

fn no_stub_layer(world: &World) -> Result<(), String> {
    check_unchanged(world, &step(world, &["base"], READ));
    // Not even with nothing to start from.
    fs::remove_dir_all(world.path("base/etc")).unwrap();
    let mut spec = step(world, &["base"], READ);
    spec.mounts
        .push(bind(&world.path("base/bin"), "/a/b/c", true));
    spec.mounts
        .push(bind(&world.path("base/bin"), "/a/b/d", true));
    spec.mounts
        .push(bind(&world.path("base/bin"), "/tmp/e", true));
    check_unchanged(world, &spec);
    Ok(())
}

fn linked_resolv_conf(world: &World) -> Result<(), String> {
    for to in [
        "../run/systemd/resolve/stub-resolv.conf",
        "/run/resolv.conf",
        "hosts",
    ] {
        let link = world.path("base/etc/resolv.conf");
        let _missing = fs::remove_file(&link);
        symlink(to, &link).unwrap();
        check_unchanged(
            world,
            &step(world, &["base", "stubs"], "grep -q 192 /etc/resolv.conf"),
        );
        check_unchanged(
            world,
            &step(world, &["base"], "grep -q 192 /etc/resolv.conf"),
        );
    }
    Ok(())
}

fn whiteout(path: &Path) -> Result<(), String> {
    rustix::fs::mknodat(CWD, path, FileType::CharacterDevice, Mode::empty(), 0)
        .map_err(|error| format!("this kernel makes no whiteouts here: {error}"))
}

fn whiteout_in_a_layer(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("top/etc")).unwrap();
    whiteout(&world.path("top/etc/hosts"))?;
    whiteout(&world.path("top/etc/resolv.conf"))?;
    check_unchanged(world, &step(world, &["top", "base", "stubs"], READ));
    Ok(())
}

fn whiteout_in_the_upper(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("upper/etc")).unwrap();
    whiteout(&world.path("upper/etc/hosts"))?;
    check_unchanged(world, &step(world, &["base", "stubs"], READ));
    let kind = fs::symlink_metadata(world.path("upper/etc/hosts")).unwrap();
    assert!(!kind.is_file());
    Ok(())
}

fn written_files_do_not_leak(world: &World) -> Result<(), String> {
    let script = "echo x >> /etc/hosts; echo y > /etc/resolv.conf; cat /etc/resolv.conf; \
                  ! rm /etc/hosts 2>/dev/null; ! mv /etc/hosts /etc/other 2>/dev/null";
    for lower in [&["base", "stubs"][..], &["base"]] {
        check_unchanged(world, &step(world, lower, script));
    }
    Ok(())
}

fn what_the_process_did_stays(world: &World) -> Result<(), String> {
    for (script, left) in [
        ("touch /etc/new", "/etc/new 100644"),
        ("chmod 700 /etc", "/etc 40700"),
        ("mkdir -p /proc /etc/a/b", "/etc/a/b 40755"),
    ] {
        let out = run(&step(world, &["base"], script)).unwrap();
        assert!(out.status.success(), "{out:?}");
        let upper = world.upper();
        assert!(
            upper.iter().any(|entry| entry.starts_with(left)),
            "{script}: {upper:?}"
        );
        for stub in ["/etc/hosts", "/etc/resolv.conf", "/proc", "/sys", "/dev"] {
            assert!(
                !upper.iter().any(|entry| entry.starts_with(stub)),
                "{script}: {upper:?}"
            );
        }
        fs::remove_dir_all(world.path("upper")).unwrap();
        fs::create_dir(world.path("upper")).unwrap();
        fs::remove_dir_all(world.path("work")).unwrap();
        fs::create_dir(world.path("work")).unwrap();
    }
    Ok(())
}

fn mounts_within_binds(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("volume")).unwrap();
    let mut spec = step(world, &["base", "stubs"], "ls /volume/inner/busybox");
    spec.mounts
        .push(bind(&world.path("volume"), "/volume", false));
    spec.mounts
        .push(bind(&world.path("base/bin"), "/volume/inner", true));
    check_unchanged(world, &spec);
    Ok(())
}
