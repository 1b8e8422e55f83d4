//! The same tests as an ordinary user's root: in a user namespace with subordinate ids.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use crate::support::{Raw, Tree, archive, run, unpack};

/// Says that we are the second run.
const INSIDE: &str = "STORE_TEST_IN_USER_NAMESPACE";

#[test]
fn layers_and_snapshots_work_in_a_user_namespace() {
    if std::env::var_os(INSIDE).is_some() {
        return;
    }
    // A process that holds a namespace whose ids 0 to 65535 are ours from 100000; only its parent may map them.
    let mut holder = Command::new("unshare")
        .args(["--user", "--mount", "sh", "-c", "echo ready; read -r end"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "ready\n");
    let pid = holder.id();
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), "0 100000 65536").unwrap();
    }
    let folder = Tree::new();
    std::fs::copy(std::env::current_exe().unwrap(), folder.at("tests")).unwrap();
    folder
        .mode("tests", 0o755)
        .dir("tmp")
        .owner("tmp", 100_000, 100_000);
    let target = pid.to_string();
    let printed = run(Command::new("nsenter")
        .args([
            "--target", &target, "--user", "--mount", "--setuid", "0", "--setgid", "0",
        ])
        .arg(folder.at("tests"))
        .args([
            "--test-threads",
            "2",
            "snapshots::",
            "layers::what",
            "layers::paths",
            "layers::whiteouts",
            "namespaces::what",
            "hostile::",
        ])
        .args([
            "--skip",
            "everything",
            "--skip",
            "random",
            "--skip",
            "compression",
            "--skip",
            "mutated",
            "--skip",
            "state_its_own",
        ])
        .args(["--skip", "packed_again"])
        .env("TMPDIR", folder.at("tmp"))
        .env(INSIDE, "1"));
    assert!(printed.contains(" 0 failed"), "{printed}");
    assert!(!printed.contains(" 0 passed"), "{printed}");
    holder.stdin.take().unwrap().write_all(b"\n").unwrap();
    holder.wait().unwrap();
}

/// Runs twice: as the machine's root, and in the namespace that the test above makes.
#[test]
fn what_a_namespace_cannot_hold_is_named() {
    let is_inside = std::env::var_os(INSIDE).is_some();
    let device = |path: &str| {
        let mut raw = Raw::new(b'3', path);
        raw.device = (b"0000001".to_vec(), b"0000003".to_vec());
        archive(&[raw])
    };
    // Every sandbox has a /dev of its own, so nothing is missed there.
    let (tree, _) = unpack(&device("dev/null")).unwrap();
    assert_eq!(tree.at("dev/null").exists(), !is_inside);
    let owned = archive(&[Raw::file("far", "x").with(|raw| raw.uid = b"0300000".to_vec())]);
    let outcomes = [device("null"), owned]
        .map(|tar| unpack(&tar).map(|_| ()).map_err(|error| error.to_string()));
    if !is_inside {
        assert_eq!(outcomes, [Ok(()), Ok(())]);
        return;
    }
    let [device, owner] = outcomes.map(Result::unwrap_err);
    assert_eq!(
        device,
        "cannot make the device `null` (1:3) in a user namespace; run as root to unpack it"
    );
    assert!(
        owner.starts_with("cannot give `far` to 98304:0: no such id in this user namespace"),
        "{owner}"
    );
}
