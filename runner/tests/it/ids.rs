//! Whose ids a process has, and whom what it makes belongs to on disk.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};

use runner::{MountKind, MountPoint, Root, User, resolve_user};
use std::os::fd::AsFd;

use crate::Test;
use crate::world::{World, bind, run};

pub(crate) const TESTS: &[Test] = &[
    ("owners_on_disk", owners_on_disk),
    ("nobody_outside", nobody_outside),
    ("owners_in_binds", owners_in_binds),
    ("removed_and_replaced", removed_and_replaced),
    ("set_user_id", set_user_id),
    ("file_capabilities", file_capabilities),
    ("devices_of_owners", devices_of_owners),
    ("sysctls", sysctls),
];

/// `CAP_NET_RAW`, permitted and effective, as `setcap` writes it.
pub(crate) fn file_capability() -> Vec<u8> {
    let words = [0x0200_0001_u32, 1 << 13, 0, 0, 0];
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

fn ordinary() -> User {
    User {
        uid: 1000,
        gid: 1000,
        groups: vec![1000],
        home: "/".into(),
    }
}

fn owners_on_disk(world: &World) -> Result<(), String> {
    if !world.many_ids() {
        // There is no other owner; package managers must not fail for it.
        let out = world.sh("touch /f; chown 5:6 /f; chown -h 0:7 /f; stat -c %u:%g /f");
        assert_eq!(out, "0:0\n");
        return Ok(());
    }
    let dir = world.path("base/given");
    fs::create_dir(&dir).unwrap();
    chown(&dir, Some(33), Some(34)).unwrap();
    let out = world.sh(
        "touch /root; mkdir /d; touch /d/f; chown 5:6 /d/f; chown -h 65534:65534 /d; \
         stat -c %u:%g /given; touch /given/new; stat -c %u:%g /bin/busybox /given/new",
    );
    assert_eq!(out, "33:34\n0:0\n0:0\n");
    let owner = |name: &str| {
        let meta = fs::symlink_metadata(world.path("upper").join(name)).unwrap();
        (meta.uid(), meta.gid())
    };
    assert_eq!(owner("root"), (0, 0));
    assert_eq!(owner("d"), (65534, 65534));
    assert_eq!(owner("d/f"), (5, 6));
    assert_eq!(owner("given"), (33, 34), "copied up");
    assert_eq!(owner("given/new"), (0, 0));
    Ok(())
}

fn nobody_outside(world: &World) -> Result<(), String> {
    if !world.own_ids() {
        return Ok(());
    }
    let map = world.sh("cat /proc/self/uid_map /proc/self/gid_map /proc/self/setgroups; id -u");
    let words: Vec<&str> = map.split_ascii_whitespace().collect();
    let line = ["0", "2147483648", "2147483646"];
    assert_eq!(words, [&line[..], &line, &["allow", "0"]].concat());
    // Seen from outside, with a file that only it could have made there.
    let shared = world.path("shared");
    fs::create_dir(&shared).unwrap();
    let mut sandbox = runner::Sandbox::spawn(
        &{
            let mut spec = world.script("cat > /dev/null");
            spec.mounts.push(bind(&shared, "/shared", false));
            spec
        },
        runner::Stdio {
            stdin: runner::Stream::Pipe,
            ..runner::Stdio::default()
        },
    )
    .unwrap();
    let info = std::os::fd::AsRawFd::as_raw_fd(&sandbox.pidfd());
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{info}")).unwrap();
    let pid = info
        .lines()
        .find_map(|line| line.strip_prefix("Pid:\t"))
        .unwrap();
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    for key in ["Uid:\t", "Gid:\t"] {
        let ids = status
            .lines()
            .find_map(|line| line.strip_prefix(key))
            .unwrap();
        assert_eq!(ids, ["2147483648"; 4].join("\t"), "{key}");
    }
    drop(sandbox.stdin.take());
    assert!(sandbox.wait().unwrap().success());
    Ok(())
}

fn owners_in_binds(world: &World) -> Result<(), String> {
    let shared = world.path("shared");
    fs::create_dir(&shared).unwrap();
    fs::write(shared.join("file"), "content").unwrap();
    fs::set_permissions(shared.join("file"), fs::Permissions::from_mode(0o600)).unwrap();
    let mut spec = world.script("cat /shared/file; stat -c :%u /shared/file; touch /shared/made");
    spec.mounts.push(bind(&shared, "/shared", false));
    assert_eq!(run(&spec).unwrap().stdout, "content:0\n");
    let own = fs::metadata(&shared).unwrap().uid();
    assert_eq!(fs::metadata(shared.join("made")).unwrap().uid(), own);

    let mut spec = world.script("touch /dir/made; stat -c %u /dir");
    spec.root = Root::Directory(world.path("base"));
    fs::create_dir(world.path("base/dir")).unwrap();
    assert_eq!(run(&spec).unwrap().stdout, "0\n");
    assert_eq!(
        fs::metadata(world.path("base/dir/made")).unwrap().uid(),
        own
    );
    let root = fs::File::open(world.path("base")).unwrap();
    assert_eq!(resolve_user(root.as_fd(), "root").unwrap().uid, 0);
    Ok(())
}

fn removed_and_replaced(world: &World) -> Result<(), String> {
    fs::create_dir(world.path("base/old")).unwrap();
    fs::write(world.path("base/old/file"), "").unwrap();
    fs::write(world.path("base/gone"), "").unwrap();
    world.sh("rm /gone; rm -r /old; mkdir /old; touch /old/new; mv /bin/wc /bin/count; ls /old | grep -q new");
    let gone = fs::symlink_metadata(world.path("upper/gone")).unwrap();
    assert_eq!((gone.mode() & 0o170_000, gone.rdev()), (0o020_000, 0));
    let mut value = [0; 4];
    let count = rustix::fs::getxattr(
        world.path("upper/old"),
        "user.overlay.opaque",
        &mut value[..],
    );
    assert_eq!((count, value[0]), (Ok(1), b'y'));
    // What was written is read again as a layer of the next one.
    fs::rename(world.path("upper"), world.path("layer")).unwrap();
    fs::create_dir(world.path("upper")).unwrap();
    let mut spec = world.script("ls /old /bin/count; test ! -e /gone; test ! -e /bin/wc");
    spec.root = world.layers(&["layer", "base", "stubs"]);
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "/bin/count\n\n/old:\nnew\n", "{outcome:?}");
    Ok(())
}

/// A copy of busybox, which does as its name says, at `/own/busybox`.
fn own_busybox(world: &World) -> std::path::PathBuf {
    let program = world.path("base/own/busybox");
    fs::create_dir(world.path("base/own")).unwrap();
    fs::copy("/bin/busybox", &program).unwrap();
    program
}

fn set_user_id(world: &World) -> Result<(), String> {
    if !world.many_ids() {
        return Ok(());
    }
    fs::create_dir(world.path("base/own")).unwrap();
    let program = world.path("base/own/probe");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    let mut spec = world.probe(&["ids"]);
    spec.process.argv[0] = "/own/probe".into();
    spec.process.user = ordinary();
    assert_eq!(run(&spec).unwrap().stdout, "1000 0\n");
    spec.confinement.no_new_privileges = true;
    assert_eq!(run(&spec).unwrap().stdout, "1000 1000\n");

    world.sh("cp /bin/busybox /mine; chmod 6755 /mine");
    let made = fs::metadata(world.path("upper/mine")).unwrap();
    assert_eq!(made.mode() & 0o7777, 0o6755);
    Ok(())
}

fn file_capabilities(world: &World) -> Result<(), String> {
    if !world.many_ids() {
        return Ok(());
    }
    let none = rustix::fs::XattrFlags::empty();
    let given = own_busybox(world);
    rustix::fs::setxattr(&given, "security.capability", &file_capability(), none).unwrap();
    let effective = |program: &str| {
        let mut spec = world.script(&format!("{program} grep CapEff: /proc/self/status"));
        spec.process.user = ordinary();
        run(&spec).unwrap().stdout
    };
    assert_eq!(effective("/own/busybox"), "CapEff:\t0000000000002000\n");

    // Given inside, it counts inside, and in the layer it has the form that any other builder would write.
    world.sh("mkdir /made; cp /bin/busybox /made");
    let outcome = run(&world.probe(&["capability=/made/busybox"])).unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(effective("/made/busybox"), "CapEff:\t0000000000002000\n");
    let mut value = [0; 64];
    let path = world.path("upper/made/busybox");
    let count = rustix::fs::getxattr(path, "security.capability", &mut value[..]).unwrap();
    assert_eq!(value[..count], file_capability());
    Ok(())
}

fn devices_of_owners(world: &World) -> Result<(), String> {
    use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};
    if !world.root() {
        return Ok(());
    }
    let node = world.path("node");
    let (kind, mode) = (FileType::CharacterDevice, Mode::from_raw_mode(0o600));
    mknodat(CWD, &node, kind, mode, makedev(1, 5)).unwrap();
    chown(&node, Some(1000), Some(6)).unwrap();
    let mut spec = world.script("stat -c %a:%u:%g /dev/given; head -c 3 /dev/given | wc -c");
    spec.mounts.push(MountPoint {
        target: "/dev/given".into(),
        kind: MountKind::Device { source: node },
    });
    for (uid, read) in [(1000, "3"), (1001, "0")] {
        spec.process.user = User { uid, ..ordinary() };
        let outcome = run(&spec).unwrap();
        assert_eq!(
            outcome.stdout,
            format!("600:1000:6\n{read}\n"),
            "{outcome:?}"
        );
    }
    Ok(())
}

/// With nothing masked, the kernel itself refuses who is nobody.
fn sysctls(world: &World) -> Result<(), String> {
    if world.host_ids() {
        return Ok(());
    }
    let before = fs::read("/proc/sys/kernel/core_pattern").unwrap();
    let mut spec = world.script(
        "for f in /proc/sys/kernel/core_pattern /proc/sys/kernel/modprobe /proc/sysrq-trigger; do \
         if echo '|/x' > $f; then echo $f is open; fi; done",
    );
    spec.confinement.mask_paths = false;
    spec.confinement.seccomp = runner::Seccomp::Unconfined;
    spec.confinement.capabilities = runner::Capabilities::ALL;
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "", "{outcome:?}");
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").unwrap(), before);
    Ok(())
}
