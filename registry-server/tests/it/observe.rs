//! What is told of the server: numbers, requests, and whether it is well.

use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use registry_server::observe::{AccessLog, AccessRecord};
use registry_server::storage::memory::MemoryStorage;
use registry_server::{Config, RunningServer, Server};
use store::oci::Digest;
use tokio::sync::oneshot;

use crate::client::{Client, noise};
use crate::protocol::{on_all, push_empty_image};

/// Gives records to a test.
#[derive(Debug)]
struct Log(Mutex<Sender<AccessRecord>>);

impl AccessLog for Log {
    fn log(&self, record: AccessRecord) {
        // The test may be over.
        let _ = self.0.lock().unwrap().send(record);
    }
}

fn logged() -> (Config, Receiver<AccessRecord>) {
    let (sender, receiver) = mpsc::channel();
    let mut config = Config::new("");
    config.metrics = true;
    config.access_log = Some(Arc::new(Log(Mutex::new(sender))));
    (config, receiver)
}

fn start(config: Config) -> RunningServer {
    RunningServer::start_on(config, Arc::new(MemoryStorage::default())).unwrap()
}

/// The value of a line of `/metrics`.
fn value(text: &str, name: &str) -> f64 {
    let name = format!("longshore_registry_{name} ");
    let found = text.lines().find_map(|line| line.strip_prefix(&name));
    found
        .unwrap_or_else(|| panic!("{name} in {text}"))
        .parse()
        .unwrap()
}

#[test]
fn requests_are_counted_and_told_when_they_are_over() {
    let (config, log) = logged();
    let server = start(config);
    let mut client = Client::new(server.addr);
    let blob = noise(300_000, 1);
    let digest = client.push_blob("team/app", &blob);
    let posted = log.recv().unwrap();
    assert_eq!((posted.route, posted.status.as_u16()), ("uploads", 202));
    let put = log.recv().unwrap();
    assert_eq!((put.route, put.status.as_u16()), ("upload", 201));
    // The digest is in the query, and queries are not told.
    assert!(
        !put.path.contains('?') && !put.path.contains("sha256"),
        "{}",
        put.path
    );
    let target = format!("/v2/team/app/blobs/{digest}?token=secret");
    let headers = [
        ("User-Agent", "a test/1"),
        ("Authorization", "Basic c2VjcmV0OnNlY3JldA=="),
        (
            "traceparent",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ),
    ];
    client.send("GET", &target, &headers, b"").expect(200);
    let got = log.recv().unwrap();
    assert_eq!(
        (got.route, got.sent_bytes, got.complete),
        ("blob", 300_000, true)
    );
    assert_eq!(got.path, format!("/v2/team/app/blobs/{digest}"));
    assert_eq!(got.agent.as_deref(), Some("a test/1"));
    assert_eq!(
        got.trace.as_deref(),
        Some("4bf92f3577b34da6a3ce929d0e0e4736")
    );
    assert!(got.ended_after >= got.answered_after);
    assert!(!format!("{got:?}").contains("ecret"), "{got:?}");
    client
        .head_of(&format!("/v2/team/app/blobs/{digest}"))
        .expect(200);
    let head = log.recv().unwrap();
    assert_eq!((head.sent_bytes, head.complete), (0, true));
    client.get("/v2/team/app/manifests/none").expect(404);
    log.recv().unwrap();

    let reply = client.get("/metrics").expect(200);
    assert_eq!(
        reply.header("content-type"),
        Some("text/plain; version=0.0.4; charset=utf-8")
    );
    let text = reply.text();
    for (name, expect) in [
        (
            "requests_total{route=\"blob\",method=\"GET\",status=\"200\"}",
            1.0,
        ),
        (
            "requests_total{route=\"blob\",method=\"HEAD\",status=\"200\"}",
            1.0,
        ),
        (
            "requests_total{route=\"manifest\",method=\"GET\",status=\"404\"}",
            1.0,
        ),
        (
            "requests_total{route=\"uploads\",method=\"POST\",status=\"202\"}",
            1.0,
        ),
        ("request_duration_seconds_count{route=\"blob\"}", 2.0),
        ("received_bytes_total", 300_000.0),
        ("requests_in_flight", 1.0),
        ("connections", 1.0),
        ("uploads_in_progress", 0.0),
    ] {
        assert_eq!(value(&text, name), expect, "{name}");
    }
    assert!(value(&text, "sent_bytes_total") >= 300_000.0);
    // Nothing that a client chose is a label.
    assert!(!text.contains("team/app"), "{text}");
}

#[test]
fn who_goes_away_is_told_with_what_they_got() {
    let (config, log) = logged();
    let server = start(config);
    let blob = noise(30_000_000, 2);
    let digest = Client::new(server.addr).push_blob("app", &blob);
    let mut client = Client::new(server.addr);
    let head = client.head("GET", &format!("/v2/app/blobs/{digest}"), &[]);
    client.raw(head.as_bytes());
    client.read_head().expect(200);
    drop(client);
    let record = log.iter().find(|record| record.route == "blob").unwrap();
    // All of it was handed to the connection at once, or not: what was sent of it is not more than there is.
    assert!(record.sent_bytes <= 30_000_000);
    assert_eq!(record.complete, record.sent_bytes == 30_000_000);
}

#[test]
fn numbers_are_for_those_who_may_log_in_and_only_if_they_are_wanted() {
    let server = start(Config::new(""));
    Client::new(server.addr)
        .get("/metrics")
        .refused(404, "UNSUPPORTED");
    let folder = tempfile::tempdir().unwrap();
    let users = folder.path().join("users");
    // bcrypt of `secret`.
    let line = "me:$2y$05$c4WoMPo3SXsafkva.HHa6u7b1XOWKqA7XZANDrnv4IVny/8ABNR66\n";
    std::fs::write(&users, line).unwrap();
    let (mut config, log) = logged();
    config.auth.htpasswd = Some(users);
    let server = start(config);
    let mut client = Client::new(server.addr);
    client.get("/metrics").expect(401);
    assert_eq!(log.recv().unwrap().user, None);
    let who = [("Authorization", "Basic bWU6c2VjcmV0")];
    client.send("GET", "/metrics", &who, b"").expect(200);
    assert_eq!(log.recv().unwrap().user.as_deref(), Some("me"));
    // Whether it is well, everybody may know.
    for path in ["/livez", "/readyz"] {
        assert_eq!(client.get(path).expect(200).text(), "ok\n");
    }
}

#[test]
fn a_server_is_ready_while_its_storage_works() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        client.get("/readyz").expect(200);
        client.head_of("/livez").expect(200);
        client.post("/livez").expect(404);
        push_empty_image(&mut client, "app", "v1");
    });
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    std::fs::remove_dir_all(root.path().join("docker")).unwrap();
    let mut client = Client::new(server.addr);
    let reply = client.get("/readyz").expect(503);
    assert_eq!(reply.text(), "the storage does not work\n");
    client.get("/livez").expect(200);
}

#[test]
fn a_server_that_is_to_stop_says_so_and_serves_on_for_a_while() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut config = Config::new("");
    // Longer than any test: it is ended, not waited for.
    config.limits.drain_delay = Duration::from_secs(60 * 60);
    let storage = Arc::new(MemoryStorage::default());
    let addr = "127.0.0.1:0".parse().unwrap();
    let server = runtime.block_on(Server::bind_with(addr, config, storage));
    let server = server.unwrap();
    let addr = server.local_addr();
    let (stop, stopped) = oneshot::channel::<()>();
    runtime.spawn(server.run(async {
        stopped.await.unwrap();
    }));
    let mut client = Client::new(addr);
    client.get("/readyz").expect(200);
    stop.send(()).unwrap();
    let reply = loop {
        let reply = client.get("/readyz");
        if reply.status != 200 {
            break reply;
        }
    };
    assert_eq!(reply.expect(503).text(), "the server is about to stop\n");
    // New connections, too.
    let mut client = Client::new(addr);
    client.get("/livez").expect(200);
    client.push_blob("app", b"late");
    let target = format!("/v2/app/blobs/{}", Digest::of(b"late"));
    client.get(&target).expect(200);
    runtime.shutdown_background();
}
