//! Clients that lie, dawdle or vanish, and servers that stop: what was acknowledged stays, what was cut goes on.

use std::time::Duration;

use registry_server::{Config, RunningServer};
use store::oci::{Digest, MediaType};

use crate::client::{Client, Reply, noise};

fn location(client: &mut Client) -> String {
    client.post("/v2/a/blobs/uploads/").expect(202).location()
}

/// Waits until the session has `size` bytes: the server learns of a cut when it learns of it.
fn wait_for(client: &mut Client, location: &str, size: usize) {
    let expected = format!("0-{}", size.saturating_sub(1));
    for _ in 0..1000 {
        let status = client.get(location).expect(204);
        if status.header("range") == Some(expected.as_str()) {
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    panic!("the session never had {size} bytes");
}

#[test]
fn bodies_cut_anywhere_can_be_resumed() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let bytes = noise(1_500_000, 11);
    let digest = Digest::of(&bytes);
    for cut in [0, 1, 70_000, 600_000, 1_499_999] {
        for chunked in [false, true] {
            let mut client = Client::new(server.addr);
            let session = location(&mut client);
            let mut doomed = Client::new(server.addr);
            let coding = match chunked {
                true => ("Transfer-Encoding", "chunked"),
                false => ("Content-Length", "1500000"),
            };
            let head = doomed.head("PATCH", &session, &[coding]);
            doomed.raw(head.as_bytes());
            if chunked {
                doomed.raw(format!("{:x}\r\n", bytes.len()).as_bytes());
            }
            doomed.raw(&bytes[..cut]);
            // Half closed, so that everything sent arrives before the end does.
            doomed.finish();
            wait_for(&mut client, &session, cut);
            let range = format!("{cut}-1499999");
            client
                .send(
                    "PUT",
                    &format!("{session}?digest={digest}"),
                    &[("Content-Range", &range)],
                    &bytes[cut..],
                )
                .expect(201);
        }
    }
    let mut client = Client::new(server.addr);
    let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    assert_eq!(got.body, bytes);
}

#[test]
fn a_newer_request_takes_an_upload_over() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let session = location(&mut client);
    let bytes = noise(2_000_000, 2);
    let digest = Digest::of(&bytes);
    // A connection that will never send the rest, and that the server cannot know is dead.
    let mut silent = Client::new(server.addr);
    let head = silent.head("PATCH", &session, &[("Content-Length", "2000000")]);
    silent.raw(head.as_bytes());
    silent.raw(&bytes[..1_000_000]);
    let told = |reply: &Reply| -> usize {
        let range = reply.header("range").unwrap();
        range.strip_prefix("0-").unwrap().parse().unwrap()
    };
    // Its bytes are being stored …
    while told(&client.get(&session).expect(204)) == 0 {
        std::thread::sleep(Duration::from_millis(5));
    }
    // … and the client goes on from where it is told, as often as that has moved.
    let mut at = told(&client.get(&session).expect(204)) + 1;
    loop {
        let range = format!("{at}-1999999");
        let target = format!("{session}?digest={digest}");
        let reply = client.send("PUT", &target, &[("Content-Range", &range)], &bytes[at..]);
        if reply.status != 416 {
            reply.expect(201);
            break;
        }
        assert!(told(&reply) >= at, "{reply:?}");
        at = told(&reply) + 1;
    }
    silent.read("PATCH").refused(400, "BLOB_UPLOAD_INVALID");
    let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    assert_eq!(got.body, bytes);
}

#[test]
fn sessions_survive_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let bytes = noise(1_200_000, 12);
    let digest = Digest::of(&bytes);
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let session = location(&mut client);
    client
        .send(
            "PATCH",
            &session,
            &[("Content-Range", "0-799999")],
            &bytes[..800_000],
        )
        .expect(202);
    drop(client);
    drop(server);
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    assert_eq!(
        client.get(&session).expect(204).header("range"),
        Some("0-799999")
    );
    client
        .send(
            "PUT",
            &format!("{session}?digest={digest}"),
            &[("Content-Range", "800000-1199999")],
            &bytes[800_000..],
        )
        .expect(201);
    let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    assert_eq!(got.body, bytes);
}

#[test]
fn silent_clients_are_let_go_and_hurt_nobody() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.limits.header_timeout = Duration::from_secs(1);
    config.limits.body_timeout = Duration::from_secs(1);
    config.limits.connections_max = 8;
    let server = RunningServer::start_with(config).unwrap();
    let patient = RunningServer::start(root.path()).unwrap();
    let digest = Client::new(patient.addr).push_blob("a", &noise(32_000_000, 5));
    // Nothing, half a word, half a request, half of HTTP/2's opening, and an idle connection.
    let openings = [
        "",
        "P",
        "GET /v2/ HTTP/1.1\r\nHost: x",
        "PRI * HTTP/2.0\r\n",
    ];
    let mut clients = Vec::from(openings.map(|opening| {
        let mut client = Client::new(server.addr);
        client.raw(opening.as_bytes());
        client
    }));
    let mut idle = Client::new(server.addr);
    idle.get("/v2/").expect(200);
    clients.push(idle);
    for client in clients {
        client.until_closed();
    }
    // Half a body: told, and what arrived is kept.
    let mut client = Client::new(server.addr);
    let session = location(&mut client);
    let head = client.head("PATCH", &session, &[("Content-Length", "10")]);
    client.raw(head.as_bytes());
    client.raw(b"12345");
    let reply = client.read("PATCH");
    assert_eq!(reply.status, 408);
    let mut client = Client::new(server.addr);
    assert_eq!(
        client.get(&session).expect(204).header("range"),
        Some("0-4")
    );
    // A reader that stops reading: the connection ends before the blob does.
    let mut stuck = Client::new(server.addr);
    let head = stuck.head("GET", &format!("/v2/a/blobs/{digest}"), &[]);
    stuck.raw(head.as_bytes());
    // More silent ones than there are connections: others are served as soon as those are let go.
    let silent: Vec<Client> = (0..20).map(|_| Client::new(server.addr)).collect();
    let mut other = Client::new(server.addr);
    other.get("/v2/").expect(200);
    drop(silent);
    assert!(stuck.until_closed().len() < 32_000_000);
}

#[test]
fn requests_that_are_no_http() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let check = |bytes: &[u8], statuses: &[&str]| {
        let mut client = Client::new(server.addr);
        client.raw(bytes);
        client.finish_writing();
        let reply = client.until_closed();
        let line = String::from_utf8_lossy(&reply);
        let status = line.split(' ').nth(1).unwrap_or_default();
        assert!(statuses.contains(&status), "{line}");
    };
    check(
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 not here, TLS",
        &["400", ""],
    );
    check(b"GET /v2/\x00 HTTP/1.1\r\nHost: x\r\n\r\n", &["400"]);
    check(b"GET  /v2/ HTTP/1.1\r\n\r\n", &["400"]);
    check(
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
        &["400"],
    );
    check(
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 99999999999999999999999\r\n\r\n",
        &["400"],
    );
    check(
        b"POST /v2/a/blobs/uploads/ HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nx",
        &["400"],
    );
    let mut long = b"GET /v2/ HTTP/1.1\r\nX: ".to_vec();
    long.resize(2_000_000, b'x');
    check(&long, &["431", "400", ""]);
    let many = "X: y\r\n".repeat(1000);
    check(
        format!("GET /v2/ HTTP/1.1\r\n{many}\r\n").as_bytes(),
        &["431", "400"],
    );
    // And the path tricks, which clients never send and attackers do.
    let mut client = Client::new(server.addr);
    for path in [
        "/v2/../../etc/passwd",
        "/v2/a/../../../blobs/uploads/",
        "/v2/..%2f..%2fx/tags/list",
        "/v2/a/blobs/uploads/../../../x",
        "/v2/%2e%2e/%2e%2e/manifests/x",
    ] {
        let status = client.get(path).status;
        assert!(matches!(status, 400 | 404 | 405), "{path}: {status}");
    }
    client
        .post("/v2/a/../b/blobs/uploads/")
        .refused(400, "NAME_INVALID");
    client
        .post(&format!("/v2/{}/blobs/uploads/", "a/".repeat(200)))
        .refused(400, "NAME_INVALID");
}

#[test]
fn blobs_over_the_limit_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.limits.blob_bytes_max = Some(1000);
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    client.push_blob("a", &noise(1000, 1));
    let session = location(&mut client);
    client
        .send("PATCH", &session, &[], &noise(1001, 1))
        .refused(413, "SIZE_INVALID");
    let mut client = Client::new(server.addr);
    client
        .stream("PATCH", &session, &[], &[&noise(600, 1), &noise(401, 1)])
        .refused(413, "SIZE_INVALID");
    let mut client = Client::new(server.addr);
    assert_eq!(
        client.get(&session).expect(204).header("range"),
        Some("0-0")
    );
}

#[test]
fn large_refused_bodies_get_their_answer() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let gone = "/v2/a/blobs/uploads/00000000-0000-4000-8000-000000000000";
    client
        .send("PATCH", gone, &[], &noise(8_000_000, 1))
        .refused(404, "BLOB_UPLOAD_UNKNOWN");
    // The connection is still good.
    client.get("/v2/").expect(200);
}

#[test]
fn many_clients_push_the_same_blob() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let bytes = noise(400_000, 13);
    let digest = Digest::of(&bytes);
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let (server, bytes) = (&server, &bytes);
            scope.spawn(move || {
                let mut client = Client::new(server.addr);
                for _ in 0..4 {
                    let name = format!("r{}", thread % 2);
                    client.push_blob(&name, bytes);
                    let manifest = super::protocol::manifest_of(&digest, &[(&digest, bytes.len())]);
                    client
                        .put_manifest(&name, "t", MediaType::OCI_MANIFEST, &manifest)
                        .expect(201);
                    let got = client
                        .get(&format!("/v2/{name}/blobs/{digest}"))
                        .expect(200);
                    assert_eq!(Digest::of(&got.body), digest);
                }
            });
        }
    });
    let leftovers = std::fs::read_dir(root.path().join("docker/registry/v2/_tmp")).unwrap();
    assert_eq!(leftovers.count(), 0);
}

#[test]
fn tags_move_whole() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let (a, b) = (client.push_blob("a", b"a"), client.push_blob("a", b"b"));
    let manifests = [
        super::protocol::manifest_of(&a, &[]),
        super::protocol::manifest_of(&b, &[]),
    ];
    std::thread::scope(|scope| {
        for manifest in &manifests {
            let server = &server;
            scope.spawn(move || {
                let mut client = Client::new(server.addr);
                for _ in 0..50 {
                    client
                        .put_manifest("a", "t", MediaType::OCI_MANIFEST, manifest)
                        .expect(201);
                }
            });
        }
        scope.spawn(|| {
            let mut client = Client::new(server.addr);
            for _ in 0..50 {
                // It may be gone, but never half there.
                let status = client.delete("/v2/a/manifests/t").status;
                assert!(matches!(status, 202 | 404), "{status}");
                let got = client.get("/v2/a/manifests/t");
                assert!(
                    got.status == 404 || manifests.contains(&got.body),
                    "{got:?}"
                );
            }
        });
    });
}
