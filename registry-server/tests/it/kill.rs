//! `kill -9` under load, and a disk that is full: what was acknowledged stays, what was not does no harm.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use registry_server::RunningServer;
use store::oci::{Digest, MediaType};

use crate::client::{Client, noise};
use crate::protocol::manifest_of;

/// The example program, on a folder.
struct Process {
    child: Child,
    addr: SocketAddr,
}

impl Process {
    fn start(root: &Path) -> Process {
        // cargo builds examples beside the tests: target/debug/{deps/it-…,examples/serve}.
        let tests = std::env::current_exe().unwrap();
        let program = tests
            .parent()
            .unwrap()
            .with_file_name("examples")
            .join("serve");
        let mut child = Command::new(&program)
            .arg(root)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{}: {error}", program.display()));
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let addr = line.trim().parse().unwrap();
        Process { child, addr }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// One image, or nothing if the server died meanwhile.
fn push(addr: SocketAddr, name: &str, tag: &str, layer: &[u8]) -> Option<Digest> {
    let mut client = Client::try_new(addr)?;
    let mut blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        let target = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        let reply = client.try_send("POST", &target, &[], bytes)?;
        assert_eq!(reply.status, 201, "{reply:?}");
        Some(digest)
    };
    let (config, digest) = (blob(tag.as_bytes())?, blob(layer)?);
    let manifest = manifest_of(&config, &[(&digest, layer.len())]);
    let target = format!("/v2/{name}/manifests/{tag}");
    let kind = [("Content-Type", MediaType::OCI_MANIFEST)];
    let reply = client.try_send("PUT", &target, &kind, &manifest)?;
    assert_eq!(reply.status, 201, "{reply:?}");
    Some(Digest::of(&manifest))
}

#[test]
fn acknowledged_pushes_survive_kill_9() {
    let root = tempfile::tempdir().unwrap();
    let layers: Vec<Vec<u8>> = (0..4).map(|seed| noise(150_000, seed)).collect();
    let acknowledged = Mutex::new(Vec::new());
    for round in 0..6 {
        let server = Process::start(root.path());
        let addr = server.addr;
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for thread in 0..3 {
                let (acknowledged, layers, stop) = (&acknowledged, &layers, &stop);
                scope.spawn(move || {
                    for number in 0.. {
                        if stop.load(Ordering::Relaxed) {
                            return;
                        }
                        let tag = format!("t{round}-{thread}-{number}");
                        let layer = &layers[(thread + number) % layers.len()];
                        let Some(digest) = push(addr, "a/b", &tag, layer) else {
                            return;
                        };
                        acknowledged.lock().unwrap().push((tag, digest));
                    }
                });
            }
            // Some pushes are done, others are anywhere at all.
            let enough = acknowledged.lock().unwrap().len() + 3 + round;
            while acknowledged.lock().unwrap().len() < enough {
                std::thread::yield_now();
            }
            drop(server);
            stop.store(true, Ordering::Relaxed);
        });
        let server = RunningServer::start(root.path()).unwrap();
        let mut client = Client::new(server.addr);
        for (tag, digest) in acknowledged.lock().unwrap().iter() {
            let got = client.get(&format!("/v2/a/b/manifests/{tag}")).expect(200);
            assert_eq!(Digest::of(&got.body), *digest);
        }
        // Whatever is listed is whole.
        let listed = client.get("/v2/a/b/tags/list").expect(200).json();
        for tag in listed["tags"].as_array().unwrap() {
            let target = format!("/v2/a/b/manifests/{}", tag.as_str().unwrap());
            let manifest = client.get(&target).expect(200).json();
            for blob in [&manifest["config"], &manifest["layers"][0]] {
                let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
                let got = client.get(&format!("/v2/a/b/blobs/{digest}")).expect(200);
                assert_eq!(Digest::of(&got.body), digest);
            }
        }
    }
}

/// Needs to mount a small file system, so it needs root; without, it says so.
#[test]
fn privileged_full_disks_refuse_and_recover() {
    let root = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=3m", "tmpfs"])
        .arg(root.path())
        .output();
    if !mounted.is_ok_and(|out| out.status.success()) {
        println!("skipped: a file system cannot be mounted here");
        return;
    }
    let _mount = Mount(root.path());
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

/// Unmounted at the end, however the test ends.
struct Mount<'a>(&'a Path);

impl Drop for Mount<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg("-l").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()));
    }
}
