//! Known ways out of other people's tools that go through what containers are made and asked with: `docs/security.md` says which.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

use crate::ship::Ship;

/// A folder of the host that nobody in a container may read or change, with a file in it.
fn canary(ship: &Ship) -> std::path::PathBuf {
    let folder = ship.0.context("canary", &[("file", "of the host")]);
    let mode = std::fs::Permissions::from_mode(0o700);
    std::fs::set_permissions(&folder, mode).unwrap();
    folder
}

/// Everything of a file or folder that a container could have changed.
fn look(path: &Path) -> (u32, u32, u32, i64, u64) {
    let found = std::fs::symlink_metadata(path).unwrap();
    (
        found.mode(),
        found.uid(),
        found.gid(),
        found.mtime_nsec(),
        found.len(),
    )
}

#[test]
fn nothing_is_mounted_on_proc() {
    let ship = Ship::new();
    let dockerfile = "FROM busybox\nVOLUME /proc\n";
    let folder = ship.0.context("image", &[("Dockerfile", dockerfile)]);
    ship.ok(&["build", "-q", "-t", "volume", folder.to_str().unwrap()]);
    let shared = folder.to_str().unwrap();
    for (flags, image) in [
        (&[][..], "volume"),
        (&["-v", "named:/proc"], "busybox"),
        (&["-v", &format!("{shared}:/proc/")], "busybox"),
        (&["--tmpfs", "/./proc"], "busybox"),
        (&["--privileged", "--tmpfs", "/proc"], "busybox"),
    ] {
        let words = [&["run", "--rm"], flags, &[image, "true"]].concat();
        ship.run(&words).fails(125, "`/proc` is the kernel's");
    }
}

#[test]
fn lists_of_processors_cost_nothing() {
    let ship = Ship::new();
    for flags in [
        ["--cpuset-cpus", "0-99999999999"],
        ["--cpuset-cpus", "0-2147483647,1-2147483646"],
        ["--cpuset-mems", "0-2147483647"],
    ] {
        let words = [&["run", "--rm"][..], &flags, &["busybox", "true"]].concat();
        ship.run(&words).fails(125, "cannot limit");
    }
}

#[test]
fn users_have_no_capabilities() {
    let ship = Ship::new();
    let line = "grep -E 'Cap(Inh|Prm|Eff|Amb)' /proc/self/status | cut -f2 | uniq";
    for ids in ["private", "host"] {
        let flags = ["run", "--rm", "--userns", ids, "-u", "1000"];
        let found = ship.ok(&[&flags[..], &["busybox", "sh", "-c", line]].concat());
        assert_eq!(found, "0000000000000000", "{ids}");
    }
    // Nor has what is executed by another user later, nor more than was given by root.
    ship.detached("box", &["--cap-drop", "ALL"], &["sleep", "1000"]);
    let found = ship.ok(&["exec", "-u", "1000", "box", "sh", "-c", line]);
    assert_eq!(found, "0000000000000000");
    assert_eq!(
        ship.ok(&["exec", "box", "sh", "-c", line]),
        "0000000000000000"
    );
}

#[test]
fn control_groups_are_read_only() {
    let ship = Ship::new();
    let line = "cd /sys/fs/cgroup && ! mkdir new 2>&1 && for f in $(find . -type f); do \
                (echo 0 > $f) 2>/dev/null && echo \"written: $f\"; done; true";
    for ids in ["private", "host"] {
        let words = ["run", "--rm", "--userns", ids, "busybox", "sh", "-c", line];
        let found = ship.ok(&words);
        assert!(found.contains("Read-only file system"), "{ids}: {found}");
        assert!(!found.contains("written"), "{ids}: {found}");
    }
}

#[test]
fn copies_follow_no_link_out() {
    let ship = Ship::new();
    let canary = canary(&ship);
    let before = (look(&canary), look(&canary.join("file")));
    let source = ship
        .0
        .context("source", &[("file", "copied"), ("below/file", "copied")]);
    std::fs::set_permissions(&source, std::fs::Permissions::from_mode(0o777)).unwrap();
    let (source, outside) = (source.to_str().unwrap(), canary.to_str().unwrap());
    let taken = ship.0.path("taken");
    let script = format!(
        "ln -s {outside} /way; ln -s {outside}/file /leaf; ln -s /proc/1/root /up; ln -s {outside} /below; exec sleep 1000"
    );
    ship.detached("box", &["--init=false"], &["sh", "-c", &script]);
    let looks = ["exec", "box", "readlink", "/below"];
    while ship.run(&looks).code != Some(0) {}
    let both = |state: &str| {
        // What comes of each is the container's affair: made in there, or refused. Nothing of it is the host's.
        for target in [
            "box:/way",
            "box:/way/",
            "box:/leaf",
            "box:/way/new",
            "box:/up/way",
            "box:/",
        ] {
            for flags in [&["cp"][..], &["cp", "-a"]] {
                for from in [source, &format!("{source}/."), &format!("{source}/file")] {
                    let _any = ship.run(&[flags, &[from, target]].concat());
                }
            }
        }
        for from in [
            "box:/way/file",
            "box:/leaf",
            "box:/up/way/file",
            "box:/way/.",
        ] {
            for flags in [&["cp"][..], &["cp", "-L"]] {
                let target = taken.to_str().unwrap();
                let ran = ship.run(&[flags, &[from, target]].concat());
                assert!(!ran.stdout.contains("of the host"), "{state}: {from}");
                let found = std::fs::read_to_string(&taken).unwrap_or_default();
                assert_ne!(found, "of the host", "{state}: {from}");
                let _gone = std::fs::remove_file(&taken);
                let _gone = std::fs::remove_dir_all(&taken);
            }
        }
        let exported = ship.0.path("exported.tar");
        ship.ok(&["export", "-o", exported.to_str().unwrap(), "box"]);
        let bytes = std::fs::read(&exported).unwrap();
        let text = b"of the host";
        assert!(
            !bytes.windows(text.len()).any(|part| part == text),
            "{state}"
        );
        let left = std::fs::read_dir(&canary).unwrap().count();
        assert_eq!(left, 1, "{state}");
        assert_eq!(
            std::fs::read_to_string(canary.join("file")).unwrap(),
            "of the host"
        );
        assert_eq!(
            (look(&canary), look(&canary.join("file"))),
            before,
            "{state}"
        );
    };
    both("running");
    ship.ok(&["stop", "-t", "0", "box"]);
    both("stopped");
}

#[test]
fn links_in_a_volume_lead_to_nothing_of_the_hosts() {
    let ship = Ship::new();
    let canary = canary(&ship);
    let before = look(&canary);
    // One container plants them, another mounts beneath and on them.
    let plant = format!(
        "ln -s {} /v/way; ln -s /proc/1/root /v/up",
        canary.display()
    );
    ship.ok(&[
        "run",
        "--rm",
        "-v",
        "planted:/v",
        "busybox",
        "sh",
        "-c",
        &plant,
    ]);
    for target in [
        "/v/way/deep/mount",
        "/v/way",
        "/v/up/etc/mount",
        "/v/up/../v/way/x",
    ] {
        let mount = format!("other:{target}");
        let line = "cat /v/way/file /v/up/way/file 2>&1; true";
        let words = [
            "run",
            "--rm",
            "-v",
            "planted:/v",
            "-v",
            &mount,
            "busybox",
            "sh",
            "-c",
            line,
        ];
        let ran = ship.run(&words);
        assert!(!ran.stdout.contains("of the host"), "{target}: {ran}");
        assert_eq!(std::fs::read_dir(&canary).unwrap().count(), 1, "{target}");
    }
    assert_eq!(look(&canary), before);
}

#[test]
fn names_are_no_paths() {
    let ship = Ship::new();
    let outside = ship.0.path("outside");
    for name in [
        "../outside",
        "../../outside",
        "/etc/x",
        "a/../../outside",
        "..",
    ] {
        ship.run(&["network", "create", name]).fails(1, "network");
        ship.run(&["volume", "create", name]).fails(1, "volume");
        ship.run(&["run", "--rm", "--network", name, "busybox"])
            .fails(125, "network");
        ship.run(&["run", "--rm", "--name", name, "busybox"])
            .fails(125, "container name");
        assert_ne!(ship.run(&["inspect", name]).code, Some(0));
        assert_ne!(ship.run(&["rm", name]).code, Some(0));
        assert!(!outside.exists(), "{name}");
    }
}

/// An archive whose file claims to be a tebibyte is refused for what it says, or for what it is: cut off.
#[test]
fn archives_that_claim_much_cost_little() {
    let ship = Ship::new();
    for name in ["manifest.json", "index.json", "oci-layout"] {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000644");
        // Base 256: a tebibyte.
        header[124] = 0x80;
        header[135 - 5] = 1;
        header[156] = b'0';
        header[257..263].copy_from_slice(b"ustar\0");
        header[263..265].copy_from_slice(b"00");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        let archive = ship.0.path("claims.tar");
        std::fs::write(&archive, [&header[..], &[0; 4096]].concat()).unwrap();
        let mut command = std::process::Command::new("prlimit");
        // Whoever allocates by a claim ends here.
        command.args(["--as=4294967296", crate::support::LONGSHORE]);
        command.args(["load", "-i"]).arg(&archive);
        command.env("LONGSHORE_ROOT", ship.0.store());
        let ran = crate::support::Ran::of(&mut command);
        assert!(matches!(ran.code, Some(1..=4)), "{name}: {ran}");
    }
}
