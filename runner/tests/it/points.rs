//! What a spec asks to be mounted: layers, parts of directories, device nodes; and limits of each process.

use std::fs;
use std::os::unix::fs::symlink;

use runner::{Confinement, MountKind, MountPoint, SandboxError, StartError, Ulimit};

use crate::Test;
use crate::world::{World, run};

pub(crate) const TESTS: &[Test] = &[
    ("layers_as_mounts", layers_as_mounts),
    ("parts_of_directories", parts_of_directories),
    ("files_on_directories", files_on_directories),
    (
        "mount_points_in_read_only_mounts",
        mount_points_in_read_only_mounts,
    ),
    ("executable_files", executable_files),
    ("host_device_nodes", host_device_nodes),
    ("limits_of_processes", limits_of_processes),
    ("shared_memory", shared_memory),
    ("confined_by_nothing", confined_by_nothing),
];

fn point(target: &str, kind: MountKind) -> MountPoint {
    MountPoint {
        target: target.to_owned(),
        kind,
    }
}

/// A mount of the directories `low` and `high`, writable if a name for what is written is given.
fn stacked(world: &World, upper: Option<&str>, beneath: &str, read_only: bool) -> MountKind {
    for (dir, file) in [("low", "low/dir"), ("high", "high")] {
        fs::create_dir_all(world.path(file)).unwrap();
        fs::write(world.path(file).join("file"), dir).unwrap();
    }
    let upper = upper.map(|name| {
        let dirs = (world.path(name), world.path(&format!("{name}-work")));
        fs::create_dir_all(&dirs.0).unwrap();
        fs::create_dir_all(&dirs.1).unwrap();
        dirs
    });
    MountKind::Overlay {
        lower: vec![world.path("high"), world.path("low")],
        upper,
        beneath: beneath.to_owned(),
        read_only,
    }
}

fn layers_as_mounts(world: &World) -> Result<(), String> {
    symlink("/dir", world.path("base/away")).unwrap();
    let mut spec = world.script(
        "cat /a/file /a/dir/file /b/file /c; echo new > /w/file; cat /w/file; rm -r /w/dir; ls /w; \
         echo x > /a/x || echo refused",
    );
    let read = |beneath: &str| stacked(world, None, beneath, true);
    spec.mounts = vec![
        point("/a", read("")),
        point("/b", read("dir")),
        point("/c", read("dir/file")),
        point("/w", stacked(world, Some("written"), "", false)),
    ];
    // A link in the layers is taken as if their top were the root.
    fs::create_dir_all(world.path("high")).unwrap();
    symlink("/dir", world.path("high/link")).unwrap();
    spec.mounts.push(point("/l", read("link")));
    let outcome = run(&spec).unwrap();
    assert_eq!(
        outcome.stdout, "highlowlowlownew\nfile\nlink\nrefused\n",
        "{outcome:?}"
    );
    assert_eq!(fs::read_to_string(world.path("high/file")).unwrap(), "high");
    // Nothing but the root itself.
    assert_eq!(world.upper().len(), 1);
    Ok(())
}

fn files_on_directories(world: &World) -> Result<(), String> {
    let (file, folder) = (world.path("file"), world.path("folder"));
    fs::write(&file, "").unwrap();
    fs::create_dir(&folder).unwrap();
    for (source, target, expect) in [
        (&file, "/bin", "it is a file, and a directory is there"),
        (
            &folder,
            "/etc/passwd",
            "it is a directory, and a file is there",
        ),
    ] {
        let mut spec = world.spec(["true"]);
        spec.mounts.push(crate::world::bind(source, target, false));
        let error = run(&spec).unwrap_err();
        let expect = format!(
            "cannot mount `{}` on `{target}`: {expect}",
            source.display()
        );
        assert_eq!((error.to_string(), error.exit_code()), (expect, 125));
    }
    Ok(())
}

fn parts_of_directories(world: &World) -> Result<(), String> {
    let dir = world.path("data");
    fs::create_dir_all(dir.join("part/inner")).unwrap();
    fs::write(dir.join("part/file"), "part").unwrap();
    symlink("part", dir.join("within")).unwrap();
    symlink("/etc", dir.join("absolute")).unwrap();
    symlink("../../..", dir.join("above")).unwrap();
    let mount = |beneath: &str| {
        let kind = MountKind::Bind {
            source: dir.clone(),
            beneath: beneath.to_owned(),
            read_only: false,
        };
        let mut spec = world.script("ls /m");
        spec.mounts.push(point("/m", kind));
        run(&spec)
    };
    assert_eq!(mount("part").unwrap().stdout, "file\ninner\n");
    assert_eq!(mount("within/").unwrap().stdout, "file\ninner\n");
    for outside in ["absolute", "above", "above/etc", "..", "part/../../x"] {
        let error = mount(outside).unwrap_err();
        let SandboxError::Start(StartError::SourceLeadsOut { beneath, .. }) = &error else {
            panic!("{outside}: {error}");
        };
        assert_eq!(beneath, outside);
    }
    assert!(matches!(
        mount("missing").unwrap_err(),
        SandboxError::Start(StartError::MountSource { .. })
    ));
    Ok(())
}

/// Mounts are made read-only once all stand, so one may have its mount point in another.
fn mount_points_in_read_only_mounts(world: &World) -> Result<(), String> {
    let mut spec =
        world.script("echo x > /m/n/deep/file; ls /m /m/n; echo x > /m/y || echo refused");
    let tmpfs = MountKind::Tmpfs {
        size: None,
        mode: 0o755,
        read_only: false,
    };
    spec.mounts = vec![
        point("/m/n/deep", tmpfs),
        point("/m", stacked(world, Some("written"), "", true)),
    ];
    let outcome = run(&spec).unwrap();
    assert_eq!(
        outcome.stdout, "/m:\ndir\nfile\nn\n\n/m/n:\ndeep\nrefused\n",
        "{outcome:?}"
    );
    let mut spec = world.script("echo x > /t/x || echo refused");
    let read_only = MountKind::Tmpfs {
        size: None,
        mode: 0o755,
        read_only: true,
    };
    spec.mounts = vec![point("/t", read_only)];
    assert_eq!(run(&spec).unwrap().stdout, "refused\n");
    Ok(())
}

fn executable_files(world: &World) -> Result<(), String> {
    let file = |mode: u32| MountKind::File {
        content: b"#!/bin/sh\necho run\n".to_vec(),
        mode,
        uid: 0,
        gid: 0,
        read_only: true,
    };
    let mut spec = world.script("/dev/pipes/EOF; sh /plain; /plain || echo refused");
    spec.mounts = vec![
        point("/dev/pipes/EOF", file(0o755)),
        point("/plain", file(0o644)),
    ];
    assert_eq!(run(&spec).unwrap().stdout, "run\nrun\nrefused\n");
    // Nothing but the root itself.
    assert_eq!(world.upper().len(), 1);
    Ok(())
}

fn host_device_nodes(world: &World) -> Result<(), String> {
    let mut spec = world.script("head -c4 /dev/given/zero | wc -c; ls /dev/given");
    let kind = MountKind::Device {
        source: "/dev/zero".into(),
    };
    spec.mounts = vec![point("/dev/given/zero", kind)];
    assert_eq!(run(&spec).unwrap().stdout, "4\nzero\n");
    Ok(())
}

fn limits_of_processes(world: &World) -> Result<(), String> {
    let limit = |name: &str, soft, hard| Ulimit {
        name: name.to_owned(),
        soft,
        hard,
    };
    let mut spec = world.script("ulimit -n; ulimit -H -n; ulimit -c");
    spec.ulimits = vec![
        limit("nofile", Some(100), Some(200)),
        limit("core", Some(0), Some(0)),
    ];
    assert_eq!(run(&spec).unwrap().stdout, "100\n200\n0\n");
    spec.ulimits = vec![limit("nofiles", None, None)];
    let error = run(&spec).unwrap_err();
    assert!(
        matches!(&error, SandboxError::Start(StartError::Limit { limit, .. }) if limit == "nofiles"),
        "{error}"
    );
    Ok(())
}

fn shared_memory(world: &World) -> Result<(), String> {
    let size = |bytes| {
        let mut spec = world.script("df -k /dev/shm | tail -n1 | awk '{print $2}'");
        spec.shm_size = bytes;
        run(&spec).unwrap().stdout
    };
    assert_eq!(size(None), "65536\n");
    assert_eq!(size(Some(8 << 20)), "8192\n");
    Ok(())
}

fn confined_by_nothing(world: &World) -> Result<(), String> {
    let mut spec = world.script(
        "mkdir /m; mount -t tmpfs none /m; umount /m; rmdir /m; test -c /dev/full; cat /dev/null; \
         grep -c . /proc/interrupts > /dev/null; echo done",
    );
    spec.confinement = Confinement::none();
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "done\n", "{outcome:?}");
    if world.root() {
        let mut spec = world.script("mknod /n c 1 5; head -c3 /n | wc -c; rm /n");
        spec.confinement = Confinement::none();
        assert_eq!(run(&spec).unwrap().stdout, "3\n");
    }
    Ok(())
}
