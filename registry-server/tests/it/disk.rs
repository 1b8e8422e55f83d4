//! Disks that are full, or read-only all of a sudden: what was acknowledged stays, every refusal is told as what it is, and
//! all goes on once there is room. Needs to mount small file systems, so it needs root; without, it says so.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;

use registry_server::collect::verify;
use registry_server::storage::disk::DiskStorage;
use registry_server::{Config, RunningServer};
use store::oci::{Digest, MediaType};

use crate::client::{Client, Reply, noise};
use crate::protocol::{numbered, push_empty_image};

const OCI: &str = MediaType::OCI_MANIFEST;

/// A small file system in memory; `None` where it cannot be mounted.
#[allow(clippy::print_stdout, reason = "a test that is skipped says so")]
fn small_disk(root: &Path) -> Option<Mount<'_>> {
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
        .arg(root)
        .output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        println!("skipped: a file system cannot be mounted here");
        return None;
    }
    Some(Mount(root))
}

/// Takes all the room there is, in a file that is returned.
fn fill(root: &Path) -> std::path::PathBuf {
    let path = root.join("filler");
    let mut file = File::create(&path).unwrap();
    for size in [64 * 1024, 1] {
        while file.write_all(&vec![1; size]).is_ok() {}
    }
    path
}

/// The requests that push something, each on its own connection: a refused body may end it.
fn pushes(
    server: &RunningServer,
    seed: u64,
    existing: &Digest,
    session: &str,
) -> Vec<(&'static str, Reply)> {
    let send = |method: &str, target: &str, headers: &[(&str, &str)], body: &[u8]| {
        Client::new(server.addr).send(method, target, headers, body)
    };
    let bytes = noise(100_000, seed);
    let digest = Digest::of(&bytes);
    let manifest = numbered(existing, usize::try_from(seed).unwrap());
    let kind = [("Content-Type", OCI)];
    vec![
        (
            "blob at once",
            send(
                "POST",
                &format!("/v2/a/blobs/uploads/?digest={digest}"),
                &[],
                &bytes,
            ),
        ),
        ("session", send("POST", "/v2/a/blobs/uploads/", &[], b"")),
        ("piece", send("PATCH", session, &[], &bytes)),
        (
            "mount",
            send(
                "POST",
                &format!("/v2/m{seed}/blobs/uploads/?mount={existing}&from=a"),
                &[],
                b"",
            ),
        ),
        (
            "manifest",
            send("PUT", &format!("/v2/a/manifests/n{seed}"), &kind, &manifest),
        ),
    ]
}

#[test]
fn privileged_full_disks_refuse_on_every_path_and_recover() {
    let root = tempfile::tempdir().unwrap();
    let Some(_mount) = small_disk(root.path()) else {
        return;
    };
    // As it is served, with all its waiting for the disk.
    let server = RunningServer::start_with(Config::new(root.path())).unwrap();
    let mut client = Client::new(server.addr);
    let image = push_empty_image(&mut client, "a", "t");
    let config = Digest::of(b"{}");
    let old = client.push_blob("a", &noise(100_000, 1));
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    let filler = fill(root.path());
    for (what, reply) in pushes(&server, 2, &config, &session) {
        assert_eq!(reply.status, 507, "{what}: {}", reply.text());
        assert_eq!(reply.code(), "UNKNOWN", "{what}");
    }
    // What is there is served, and what is asked to go goes.
    let mut client = Client::new(server.addr);
    client.get("/v2/a/manifests/t").expect(200);
    client.get(&format!("/v2/a/blobs/{old}")).expect(200);
    client.get("/v2/a/tags/list").expect(200);
    assert_eq!(client.get("/v2/a/manifests/n2").status, 404);
    client.delete(&format!("/v2/a/blobs/{old}")).expect(202);
    client.delete(&session).expect(204);
    // No refused push left anything behind.
    let leftovers = fs::read_dir(root.path().join("docker/registry/v2/_tmp")).unwrap();
    assert_eq!(leftovers.count(), 0);
    fs::remove_file(filler).unwrap();
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    for (what, reply) in pushes(&server, 3, &config, &session) {
        assert!(
            matches!(reply.status, 201 | 202),
            "{what}: {}",
            reply.text()
        );
    }
    let mut client = Client::new(server.addr);
    client.get("/v2/a/manifests/n3").expect(200);
    let got = client.get("/v2/a/manifests/t").expect(200);
    assert_eq!(Digest::of(&got.body), image);
    drop(client);
    drop(server);
    let storage = DiskStorage::open(root.path()).unwrap();
    let verified = verify(&storage, false).unwrap();
    assert!(verified.damaged.is_empty(), "{verified:?}");
}

#[test]
fn privileged_uploads_that_fill_a_disk_can_be_given_up() {
    let root = tempfile::tempdir().unwrap();
    let Some(_mount) = small_disk(root.path()) else {
        return;
    };
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let small = client.push_blob("a", &noise(100_000, 1));
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    let large = noise(4_000_000, 2);
    let full = client.send("PATCH", &session, &[], &large);
    full.refused(507, "UNKNOWN");
    // Everything else goes on, and the session can be given up for its space.
    let mut client = Client::new(server.addr);
    client.get(&format!("/v2/a/blobs/{small}")).expect(200);
    client.delete(&session).expect(204);
    client.push_blob("a", &noise(1_000_000, 3));
    drop(client);
    drop(server);
}

#[test]
fn privileged_disks_that_become_read_only_are_read_on() {
    let root = tempfile::tempdir().unwrap();
    let Some(_mount) = small_disk(root.path()) else {
        return;
    };
    let remount = |how: &str| {
        let remounted = Command::new("mount")
            .args(["-o", how])
            .arg(root.path())
            .status();
        assert!(remounted.unwrap().success(), "{how}");
    };
    let server = RunningServer::start_with(Config::new(root.path())).unwrap();
    let mut client = Client::new(server.addr);
    push_empty_image(&mut client, "a", "t");
    let config = Digest::of(b"{}");
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client.send("PATCH", &session, &[], b"half").expect(202);
    remount("remount,ro");
    for (what, reply) in pushes(&server, 2, &config, &session) {
        assert_eq!(reply.status, 500, "{what}: {}", reply.text());
        let told = reply.json()["errors"][0]["message"]
            .as_str()
            .unwrap()
            .to_owned();
        assert_eq!(told, "the registry's storage is read-only", "{what}");
    }
    for (what, target) in [("tag", "/v2/a/manifests/t"), ("session", session.as_str())] {
        let status = Client::new(server.addr).delete(target).status;
        assert_eq!(status, 500, "{what}");
    }
    let mut client = Client::new(server.addr);
    client.get("/v2/a/manifests/t").expect(200);
    client.get(&format!("/v2/a/blobs/{config}")).expect(200);
    // One that begins on such a disk serves what is there, if it is not to write.
    let mut read_only = Config::new(root.path());
    read_only.read_only = true;
    let other = RunningServer::start_with(read_only).unwrap();
    Client::new(other.addr).get("/v2/a/manifests/t").expect(200);
    drop(other);
    remount("remount,rw");
    let digest = Digest::of(b"half and half");
    client
        .put(&format!("{session}?digest={digest}"), b" and half")
        .expect(201);
    client.delete("/v2/a/manifests/t").expect(202);
    drop(client);
    drop(server);
}

/// Unmounted at the end, however the test ends.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
