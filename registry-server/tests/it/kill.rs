//! `kill -9` at any moment of pushes, moves and deletes of tags, and uploads in pieces: what was acknowledged stays, what was
//! not does no harm. On a folder, and on a bucket.
//!
//! A few kills by default; `LONGSHORE_TEST_KILLS=200` asks for as many, `LONGSHORE_TEST_SEED` for another course of events.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use registry_server::RunningServer;
use registry_server::collect::{Verified, verify};
use registry_server::storage::disk::DiskStorage;
use store::oci::{Digest, MediaType};
use tempfile::TempDir;

use crate::bucket::Bucket;
use crate::client::{Client, noise};
use crate::protocol::{manifest_of, numbered};

/// Kills in an ordinary run, on a folder and on a bucket.
const KILLS: (u64, u64) = (6, 3);

/// The tag that one worker moves on and on.
const MOVING: &str = "moving";

/// Bytes of an upload that is sent in pieces, and of a piece.
const PIECES: (usize, usize) = (600_000, 50_000);

/// What a registry lies on, and servers on it.
trait Ground: Sync {
    /// What the example program is told of it.
    fn place(&self) -> OsString;

    /// Another server on it.
    fn server(&self) -> RunningServer;

    /// Returns when nothing more happens that a killed process asked for.
    fn settle(&self) {}

    fn verify(&self) -> Verified;
}

impl Ground for TempDir {
    fn place(&self) -> OsString {
        self.path().into()
    }

    fn server(&self) -> RunningServer {
        RunningServer::start(self.path()).unwrap()
    }

    fn verify(&self) -> Verified {
        verify(&DiskStorage::open(self.path()).unwrap(), false).unwrap()
    }
}

impl Ground for Bucket {
    fn place(&self) -> OsString {
        format!("s3:{}", self.endpoint).into()
    }

    fn server(&self) -> RunningServer {
        self.replica()
    }

    fn settle(&self) {
        self.until_nobody_is_connected();
    }

    fn verify(&self) -> Verified {
        verify(&self.storage().unwrap(), false).unwrap()
    }
}

/// The example program.
struct Process {
    child: Child,
    addr: SocketAddr,
}

impl Process {
    fn start(place: &OsStr) -> Process {
        // cargo builds examples beside the tests: target/debug/{deps/it-…,examples/serve}.
        let tests = std::env::current_exe().unwrap();
        let program = tests
            .parent()
            .unwrap()
            .with_file_name("examples")
            .join("serve");
        let mut child = Command::new(&program)
            .arg(place)
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

fn number(name: &str, default: u64) -> u64 {
    let given = std::env::var(name).ok();
    given.map_or(default, |text| text.parse().expect("a number"))
}

/// What the server has said it did.
#[derive(Default)]
struct Told {
    /// What each tag is on; nothing if its delete was acknowledged. Tags of which it is not known are not in here.
    tags: Mutex<BTreeMap<String, Option<Digest>>>,
    /// What the moving tag was put on last: acknowledged, and asked for.
    moving: Mutex<[Option<Digest>; 2]>,
    /// Pushes, moves, deletes and pieces.
    count: AtomicU64,
}

impl Told {
    fn tags(&self) -> MutexGuard<'_, BTreeMap<String, Option<Digest>>> {
        self.tags.lock().unwrap()
    }

    fn one(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }
}

/// A worker of one round. Every step is nothing if the server died meanwhile.
struct Worker<'a> {
    client: Client,
    name: &'a str,
    told: &'a Told,
}

impl Worker<'_> {
    fn blob(&mut self, bytes: &[u8]) -> Option<Digest> {
        let digest = Digest::of(bytes);
        let target = format!("/v2/{}/blobs/uploads/?digest={digest}", self.name);
        let reply = self.client.try_send("POST", &target, &[], bytes)?;
        assert_eq!(reply.status, 201, "{reply:?}");
        Some(digest)
    }

    fn manifest(&mut self, tag: &str, bytes: &[u8]) -> Option<Digest> {
        let target = format!("/v2/{}/manifests/{tag}", self.name);
        let kind = [("Content-Type", MediaType::OCI_MANIFEST)];
        let reply = self.client.try_send("PUT", &target, &kind, bytes)?;
        assert_eq!(reply.status, 201, "{reply:?}");
        Some(Digest::of(bytes))
    }

    fn push(&mut self, tag: &str, layer: &[u8]) -> Option<()> {
        let (config, digest) = (self.blob(tag.as_bytes())?, self.blob(layer)?);
        let manifest = manifest_of(&config, &[(&digest, layer.len())]);
        let digest = self.manifest(tag, &manifest)?;
        self.told.tags().insert(tag.to_owned(), Some(digest));
        self.told.one();
        Some(())
    }

    /// Forgets the tag first: until the delete is acknowledged it may be there or not.
    fn delete(&mut self, tag: &str) -> Option<()> {
        self.told.tags().remove(tag);
        let target = format!("/v2/{}/manifests/{tag}", self.name);
        let reply = self.client.try_send("DELETE", &target, &[], b"")?;
        assert_eq!(reply.status, 202, "{reply:?}");
        self.told.tags().insert(tag.to_owned(), None);
        self.told.one();
        Some(())
    }

    fn move_on(&mut self, number: usize) -> Option<()> {
        let config = self.blob(b"{}")?;
        let bytes = numbered(&config, number);
        self.told.moving.lock().unwrap()[1] = Some(Digest::of(&bytes));
        let digest = self.manifest(MOVING, &bytes)?;
        self.told.moving.lock().unwrap()[0] = Some(digest);
        self.told.one();
        Some(())
    }

    /// Sends pieces until all is sent or the server is gone; the session, and how much of it was acknowledged.
    fn pieces(&mut self, bytes: &[u8]) -> Option<(String, usize)> {
        let target = format!("/v2/{}/blobs/uploads/", self.name);
        let reply = self.client.try_send("POST", &target, &[], b"")?;
        let session = reply.expect(202).location();
        let mut done = 0;
        for piece in bytes.chunks(PIECES.1) {
            let Some(reply) = self.client.try_send("PATCH", &session, &[], piece) else {
                break;
            };
            reply.expect(202);
            done += piece.len();
            self.told.one();
        }
        Some((session, done))
    }
}

/// Ends the round if its thread fails.
struct Watch<'a>(&'a AtomicBool);

impl Drop for Watch<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.0.store(true, Ordering::Relaxed);
        }
    }
}

/// Works on the server until it is killed; the upload that is not finished.
fn load(
    addr: SocketAddr,
    round: u64,
    name: &str,
    told: &Told,
    stop: &AtomicBool,
) -> Vec<(String, usize, Vec<u8>)> {
    let worker = || {
        let client = Client::try_new(addr)?;
        Some(Worker { client, name, told })
    };
    let steps = |step: &dyn Fn(&mut Worker<'_>, usize) -> Option<()>| {
        let _watch = Watch(stop);
        let Some(mut worker) = worker() else { return };
        for number in 0.. {
            if stop.load(Ordering::Relaxed) || step(&mut worker, number).is_none() {
                return;
            }
        }
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                steps(&|worker, number| {
                    let tag = format!("t{round}-{thread}-{number}");
                    worker.push(&tag, &noise(150_000, number as u64 % 4))?;
                    // Every third goes again.
                    if number % 3 == 0 {
                        worker.delete(&tag)
                    } else {
                        Some(())
                    }
                });
            });
        }
        scope.spawn(|| {
            let first = usize::try_from(round).unwrap() * 1_000_000;
            steps(&|worker, number| worker.move_on(first + number));
        });
        let sent = scope.spawn(|| {
            let _watch = Watch(stop);
            let bytes = noise(PIECES.0, round + 100);
            let (session, done) = worker()?.pieces(&bytes)?;
            Some((session, done, bytes))
        });
        sent.join().unwrap().into_iter().collect()
    })
}

/// All that was acknowledged is there, and whatever is listed is whole.
fn check(client: &mut Client, name: &str, told: &Told) {
    for (tag, expected) in told.tags().iter() {
        let got = client.get(&format!("/v2/{name}/manifests/{tag}"));
        match expected {
            Some(digest) => assert_eq!(Digest::of(&got.expect(200).body), *digest, "{tag}"),
            None => assert_eq!(got.status, 404, "{tag} was deleted"),
        }
    }
    let [acknowledged, asked] = *told.moving.lock().unwrap();
    let got = client.get(&format!("/v2/{name}/manifests/{MOVING}"));
    let on = (got.status == 200).then(|| Digest::of(&got.body));
    assert!(
        on == acknowledged || on == asked,
        "{on:?} is neither {acknowledged:?} nor {asked:?}"
    );
    let list = client.get(&format!("/v2/{name}/tags/list"));
    if list.status == 404 {
        return;
    }
    for tag in list.json()["tags"].as_array().unwrap() {
        let target = format!("/v2/{name}/manifests/{}", tag.as_str().unwrap());
        let manifest = client.get(&target).expect(200).json();
        let layers = manifest["layers"].as_array().unwrap();
        for blob in layers.iter().chain([&manifest["config"]]) {
            let digest: Digest = blob["digest"].as_str().unwrap().parse().unwrap();
            let got = client
                .get(&format!("/v2/{name}/blobs/{digest}"))
                .expect(200);
            assert_eq!(Digest::of(&got.body), digest);
        }
    }
}

#[test]
fn what_was_acknowledged_survives_kill_9() {
    println!("{}", survive(&tempfile::tempdir().unwrap(), KILLS.0));
}

#[test]
fn what_a_replica_acknowledged_survives_its_kill_9() {
    println!("{}", survive(&Bucket::start(), KILLS.1));
}

/// Kills so often; what came of it.
fn survive(ground: &dyn Ground, kills: u64) -> String {
    let kills = number("LONGSHORE_TEST_KILLS", kills);
    let mut random = number("LONGSHORE_TEST_SEED", 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut below = |end: u64| {
        // Xorshift: any spread will do.
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random % end
    };
    // Kept from round to round, in few repositories, so that old and new work meets.
    let repositories: Vec<(String, Told)> = (0..3)
        .map(|n| (format!("a/b{n}"), Told::default()))
        .collect();
    let mut acknowledged = 0;
    for round in 0..kills {
        let (name, told) = &repositories[usize::try_from(below(3)).unwrap()];
        let before = told.count.load(Ordering::Relaxed);
        let server = Process::start(&ground.place());
        let addr = server.addr;
        let stop = AtomicBool::new(false);
        let enough = before + below(40);
        let moment = Duration::from_micros(below(20_000));
        let sent = std::thread::scope(|scope| {
            let working = scope.spawn(|| load(addr, round, name, told, &stop));
            // Some of it is done, and the rest is anywhere at all.
            while told.count.load(Ordering::Relaxed) < enough && !stop.load(Ordering::Relaxed) {
                std::thread::yield_now();
            }
            std::thread::sleep(moment);
            drop(server);
            stop.store(true, Ordering::Relaxed);
            working.join().unwrap()
        });
        acknowledged += told.count.load(Ordering::Relaxed) - before;
        // What is asked of a tag by now is what it is on, or nobody knows.
        ground.settle();
        let server = ground.server();
        let mut client = Client::new(server.addr);
        check(&mut client, name, told);
        for (session, done, bytes) in sent {
            let status = client.get(&session).expect(204);
            let last: usize = status.header("range").unwrap()[2..].parse().unwrap();
            let has = if last == 0 { 0 } else { last + 1 };
            assert!(
                has >= done && has <= bytes.len(),
                "{has} of {done} acknowledged bytes"
            );
            let digest = Digest::of(&bytes);
            let target = format!("{session}?digest={digest}");
            client.put(&target, &bytes[has..]).expect(201);
            let got = client
                .get(&format!("/v2/{name}/blobs/{digest}"))
                .expect(200);
            assert_eq!(got.body, bytes);
        }
        let mut moving = told.moving.lock().unwrap();
        let got = client.get(&format!("/v2/{name}/manifests/{MOVING}"));
        moving[0] = (got.status == 200).then(|| Digest::of(&got.body));
        moving[1] = moving[0];
    }
    let server = ground.server();
    let mut client = Client::new(server.addr);
    for (name, told) in &repositories {
        check(&mut client, name, told);
    }
    drop(client);
    drop(server);
    let verified = ground.verify();
    assert_eq!(verified.damaged, [], "{verified:?}");
    format!(
        "{kills} kills, {acknowledged} acknowledged changes, {} blobs whole",
        verified.good
    )
}
