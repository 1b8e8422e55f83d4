//! The root and what is mounted in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use runner::{EtcFiles, ExitStatus, MountKind, MountPoint, Root, SandboxError, StartError};

use crate::Test;
use crate::world::{World, bind, run};

pub(crate) const TESTS: &[Test] = &[
    ("layers", layers),
    ("volatile_twice", volatile_twice),
    ("many_layers", many_layers),
    ("directory_root", directory_root),
    ("read_only_root", read_only_root),
    ("binds", binds),
    ("tmpfs_and_files", tmpfs_and_files),
    ("order_of_mounts", order_of_mounts),
    ("hostile_links", hostile_links),
    ("hostile_proc", hostile_proc),
    ("missing_sources", missing_sources),
    ("nothing_stays_mounted", nothing_stays_mounted),
];

fn layers(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("base/both/low")).unwrap();
    fs::create_dir_all(world.path("top/both")).unwrap();
    fs::write(world.path("base/both/file"), "base").unwrap();
    fs::write(world.path("top/both/file"), "top").unwrap();
    let mut spec = world.script(
        "cat /both/file; rm -r /both; mkdir /both; echo new > /both/file; ls /both; rm /etc/passwd",
    );
    spec.root = world.layers(&["top", "base", "stubs"]);
    assert_eq!(run(&spec).unwrap().stdout, "topfile\n");
    let upper = world.path("upper");
    assert_eq!(
        fs::read_to_string(upper.join("both/file")).unwrap(),
        "new\n"
    );
    let mut value = [0; 8];
    let len = rustix::fs::getxattr(upper.join("both"), "user.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..len], b"y");
    let deleted = rustix::fs::stat(upper.join("etc/passwd")).unwrap();
    assert_eq!(
        (deleted.st_mode & libc::S_IFMT, deleted.st_rdev),
        (libc::S_IFCHR, 0),
        "a whiteout"
    );
    Ok(())
}

fn volatile_twice(world: &World) -> Result<(), String> {
    assert_eq!(world.sh("echo one > /tmp/file; sync"), "");
    assert_eq!(world.sh("cat /tmp/file"), "one\n");
    let Root::Overlay {
        lower, upper, work, ..
    } = world.overlay()
    else {
        unreachable!()
    };
    let mut spec = world.script("cat /tmp/file");
    spec.root = Root::Overlay {
        lower,
        upper,
        work,
        volatile: false,
    };
    assert_eq!(run(&spec).unwrap().stdout, "one\n");
    Ok(())
}

fn many_layers(world: &World) -> Result<(), String> {
    // More than fit into the page that mount(2) has for options.
    let names: Vec<String> = (0..150)
        .map(|n| format!("layer-with-a-long-name-{n:060}"))
        .collect();
    for (n, name) in names.iter().enumerate() {
        fs::create_dir_all(world.path(name)).unwrap();
        fs::write(world.path(name).join(format!("file{n}")), "").unwrap();
    }
    let mut lower: Vec<&str> = names.iter().map(String::as_str).collect();
    lower.extend(["base", "stubs"]);
    let mut spec = world.script("ls / | grep -c ^file");
    spec.root = world.layers(&lower);
    assert_eq!(run(&spec).unwrap().stdout, "150\n");
    Ok(())
}

fn directory_root(world: &World) -> Result<(), String> {
    let mut spec = world.script("echo x > /tmp/written; ls /proc/self/fd >/dev/null");
    spec.root = Root::Directory(world.path("base"));
    spec.etc.hosts = Some("1.2.3.4 x\n".into());
    assert!(run(&spec).unwrap().status.success());
    assert!(world.path("base/tmp/written").exists());
    for stub in ["proc", "sys", "dev", "etc/hosts"] {
        assert!(!world.path("base").join(stub).exists(), "{stub}");
    }
    Ok(())
}

fn read_only_root(world: &World) -> Result<(), String> {
    let mut spec = world.script("echo x > /dev/shm/ok; echo x > /file");
    spec.read_only = true;
    let outcome = run(&spec).unwrap();
    assert!(
        outcome.stderr.contains("/file: Read-only file system"),
        "{outcome:?}"
    );
    Ok(())
}

fn binds(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("shared/sub")).unwrap();
    fs::write(world.path("shared/file"), "host\n").unwrap();
    let mut spec =
        world.script("cat /data/file /one; echo inside > /data/new; echo more >> /one; ls /data");
    spec.mounts
        .push(bind(&world.path("shared"), "/data", false));
    spec.mounts
        .push(bind(&world.path("shared/file"), "/one", false));
    assert_eq!(run(&spec).unwrap().stdout, "host\nhost\nfile\nnew\nsub\n");
    assert_eq!(
        fs::read_to_string(world.path("shared/new")).unwrap(),
        "inside\n"
    );
    assert_eq!(
        fs::read_to_string(world.path("shared/file")).unwrap(),
        "host\nmore\n"
    );

    let mut spec = world.script("cat /data/new; echo x > /data/new");
    spec.mounts.push(bind(&world.path("shared"), "/data", true));
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "inside\n");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );

    // With everything that the host has mounted beneath; and that is read-only as well.
    let mut spec = world.script("echo x > /host/shm/longshore-must-not-appear");
    spec.mounts
        .push(bind(std::path::Path::new("/dev"), "/host", true));
    let outcome = run(&spec).unwrap();
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    Ok(())
}

fn tmpfs_and_files(world: &World) -> Result<(), String> {
    let mut spec = world.script(
        "stat -c %a /scratch; dd if=/dev/zero of=/scratch/big bs=1k count=100 2>/dev/null || echo full; \
         cat /run/secrets/token; stat -c '%a %u' /run/secrets/token; echo y > /run/secrets/token",
    );
    spec.mounts.push(MountPoint {
        target: "/scratch".into(),
        kind: MountKind::Tmpfs {
            size: Some(64 << 10),
            mode: 0o1750,
            read_only: false,
        },
    });
    spec.mounts.push(MountPoint {
        target: "/run/secrets/token".into(),
        kind: MountKind::File {
            content: b"hush\n".to_vec(),
            mode: 0o400,
            uid: 0,
            gid: 0,
            read_only: true,
        },
    });
    let outcome = run(&spec).unwrap();
    assert_eq!(outcome.stdout, "1750\nfull\nhush\n400 0\n");
    assert!(
        outcome.stderr.contains("Read-only file system"),
        "{outcome:?}"
    );
    assert_eq!(world.upper().len(), 1, "{:?}", world.upper());
    Ok(())
}

fn order_of_mounts(world: &World) -> Result<(), String> {
    fs::create_dir_all(world.path("a/etc/deep")).unwrap();
    fs::create_dir_all(world.path("b")).unwrap();
    fs::write(world.path("b/file"), "b").unwrap();
    let mut spec = world.script("cat /etc/deep/file; cat /etc/hosts");
    // The parent comes last in the list, and neither hides what is mounted beneath it, nor hosts.
    spec.mounts.push(bind(&world.path("b"), "/etc/deep", false));
    spec.mounts.push(bind(&world.path("a/etc"), "/etc", false));
    spec.etc = EtcFiles {
        hosts: Some("hosts\n".into()),
        ..EtcFiles::default()
    };
    assert_eq!(run(&spec).unwrap().stdout, "bhosts\n");
    Ok(())
}

fn hostile_links(world: &World) -> Result<(), String> {
    let outside = world.path("outside");
    fs::create_dir(&outside).unwrap();
    fs::create_dir(world.path("source")).unwrap();
    fs::write(world.path("source/file"), "mounted").unwrap();
    let base = world.path("base");
    // Upwards, absolute, through each other, through /proc, and dangling.
    let up = format!(
        "{}{}",
        "../".repeat(30),
        outside.strip_prefix("/").unwrap().display()
    );
    for (name, to) in [
        ("up", up.as_str()),
        ("absolute", outside.to_str().unwrap()),
        ("chain", "up/../up/.."),
        ("magic", "/proc/1/root/tmp"),
        ("dangling", "/nowhere/../../../deep/er"),
    ] {
        symlink(to, base.join(name)).unwrap();
        let mut spec = world.script(&format!("cat /{name}/new/file"));
        spec.mounts
            .push(bind(&world.path("source"), &format!("/{name}/new"), false));
        match run(&spec) {
            Ok(outcome) => assert_eq!(outcome.stdout, "mounted", "{name}"),
            Err(SandboxError::Start(StartError::MountTarget { .. })) if name == "magic" => {}
            Err(error) => panic!("{name}: {error:?}"),
        }
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0, "{name}");
        assert_eq!(world.upper().len(), 1, "{name}: {:?}", world.upper());
    }
    symlink("loop", base.join("loop")).unwrap();
    let mut spec = world.script("true");
    spec.mounts
        .push(bind(&world.path("source"), "/loop/new", false));
    let error = run(&spec).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("cannot reach the mount point `/loop/new`"),
        "{error}"
    );
    Ok(())
}

fn hostile_proc(world: &World) -> Result<(), String> {
    for name in ["proc", "sys", "dev"] {
        let base = world.path("base").join(name);
        symlink("/tmp", &base).unwrap();
        let error = run(&world.spec(["true"])).unwrap_err();
        let expect = format!("`/{name}` of the image must be a directory, not a link or file");
        assert_eq!(error.to_string(), expect);
        fs::remove_file(&base).unwrap();
        fs::write(&base, "").unwrap();
        assert_eq!(run(&world.spec(["true"])).unwrap_err().to_string(), expect);
        fs::remove_file(&base).unwrap();
    }
    Ok(())
}

fn missing_sources(world: &World) -> Result<(), String> {
    let missing = world.path("missing");
    let mut spec = world.spec(["true"]);
    spec.mounts.push(bind(&missing, "/data", false));
    assert_eq!(
        run(&spec).unwrap_err().to_string(),
        format!(
            "cannot use `{}` for `/data`: no such file or directory",
            missing.display()
        )
    );
    let mut spec = world.spec(["true"]);
    spec.root = Root::Directory(missing.clone());
    let error = run(&spec).unwrap_err().to_string();
    assert!(error.contains(missing.to_str().unwrap()), "{error}");
    let mut spec = world.spec(["true"]);
    spec.root = world.layers(&["missing"]);
    let error = run(&spec).unwrap_err().to_string();
    let expect = match world.own_ids() {
        true => format!("cannot use `{}` for `/`", missing.display()),
        false => "cannot mount the layers as overlay on `/`".to_owned(),
    };
    assert_eq!(error, format!("{expect}: no such file or directory"));
    Ok(())
}

fn nothing_stays_mounted(world: &World) -> Result<(), String> {
    let table = || fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = table();
    fs::create_dir(world.path("shared")).unwrap();
    fs::set_permissions(world.path("shared"), fs::Permissions::from_mode(0o755)).unwrap();
    for script in ["true", "exit 3", "sleep 1000 & exit 0"] {
        let mut spec = world.script(script);
        spec.mounts
            .push(bind(&world.path("shared"), "/data", false));
        run(&spec).unwrap();
        assert_eq!(table(), before);
    }
    run(&world.spec(["nope"])).unwrap_err();
    assert_eq!(table(), before);
    fs::remove_dir_all(world.path("upper")).unwrap();
    fs::remove_dir_all(world.path("work")).unwrap();
    assert_eq!(ExitStatus::Signal(15).code(), 143);
    Ok(())
}
