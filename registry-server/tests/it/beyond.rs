//! What distribution-spec says or suggests, and its public conformance suite does not try: `docs/reference/conformance.md`
//! has the table of clauses and the tests that cover them, here and in `protocol`, `faults` and `access`.

use std::sync::atomic::{AtomicUsize, Ordering};

use registry_server::{Config, RunningServer, ServeError};
use serde_json::{Value, json};
use store::oci::{Digest, DigestAlgorithm, MediaType};

use crate::client::{Client, noise};
use crate::protocol::{digest_in, manifest_of, numbered, on_all, pages, push_empty_image};

const OCI: &str = MediaType::OCI_MANIFEST;

fn put_if(
    client: &mut Client,
    target: &str,
    condition: (&str, &str),
    bytes: &[u8],
) -> crate::client::Reply {
    client.send("PUT", target, &[("Content-Type", OCI), condition], bytes)
}

#[test]
fn tags_are_compared_and_swapped() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let (one, two) = (numbered(&config, 1), numbered(&config, 2));
        let etag = |bytes: &[u8]| format!("\"{}\"", Digest::of(bytes));
        let target = "/v2/a/manifests/t";
        // A tag that is not there: nothing matches it.
        for condition in ["*", &etag(&one)] {
            put_if(&mut client, target, ("If-Match", condition), &one)
                .refused(412, "PRECONDITION_FAILED");
        }
        client.get(target).refused(404, "MANIFEST_UNKNOWN");
        // Refused before anything is kept.
        client
            .head_of(&format!("/v2/a/manifests/{}", Digest::of(&one)))
            .expect(404);
        let put = put_if(&mut client, target, ("If-None-Match", "*"), &one).expect(201);
        assert_eq!(put.header("etag"), Some(etag(&one).as_str()));
        // Once.
        for (name, value) in [
            ("If-None-Match", "*".to_owned()),
            ("If-None-Match", etag(&one)),
            ("If-None-Match", format!("\"x\", {}", etag(&one))),
            ("If-Match", etag(&two)),
            ("If-Match", "\"x\"".to_owned()),
            // A weak tag is not what a change can be tied to.
            ("If-Match", format!("W/{}", etag(&one))),
        ] {
            put_if(&mut client, target, (name, &value), &two).refused(412, "PRECONDITION_FAILED");
            client
                .send("DELETE", target, &[(name, &value)], b"")
                .refused(412, "PRECONDITION_FAILED");
        }
        assert_eq!(client.get(target).expect(200).body, one);
        let either = format!("{}, {}", etag(&two), etag(&one));
        put_if(&mut client, target, ("If-Match", &either), &two).expect(201);
        assert_eq!(client.get(target).expect(200).body, two);
        put_if(&mut client, target, ("If-Match", "*"), &one).expect(201);
        // Reading under a condition.
        for (value, status) in [(etag(&one), 200), (etag(&two), 412), ("*".to_owned(), 200)] {
            for method in ["GET", "HEAD"] {
                client
                    .send(method, target, &[("If-Match", &value)], b"")
                    .expect(status);
            }
        }
        // By digest the condition speaks of that manifest.
        let by_digest = format!("/v2/a/manifests/{}", Digest::of(&one));
        put_if(&mut client, &by_digest, ("If-None-Match", "*"), &one)
            .refused(412, "PRECONDITION_FAILED");
        client
            .send("DELETE", &by_digest, &[("If-Match", &etag(&two))], b"")
            .refused(412, "PRECONDITION_FAILED");
        client
            .send("DELETE", target, &[("If-Match", &etag(&one))], b"")
            .expect(202);
        client
            .send("DELETE", target, &[("If-Match", "*")], b"")
            .refused(412, "PRECONDITION_FAILED");
        client.delete(target).refused(404, "MANIFEST_UNKNOWN");
        client
            .send("DELETE", &by_digest, &[("If-Match", &etag(&one))], b"")
            .expect(202);
    });
}

/// Every writer reads a counter, and writes the next number if nobody else has: none is lost.
#[test]
fn nobody_overwrites_what_they_have_not_read() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let target = "/v2/a/manifests/counter";
        put_if(
            &mut client,
            target,
            ("If-None-Match", "*"),
            &numbered(&config, 0),
        )
        .expect(201);
        let swapped = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    let mut client = Client::new(server.addr);
                    for _ in 0..10 {
                        let now = client.get(target).expect(200);
                        let number = number_of(&now.json());
                        let etag = now.header("etag").unwrap().to_owned();
                        let next = numbered(&config, number + 1);
                        let put = put_if(&mut client, target, ("If-Match", &etag), &next);
                        match put.status {
                            201 => swapped.fetch_add(1, Ordering::Relaxed),
                            _ => {
                                put.refused(412, "PRECONDITION_FAILED");
                                0
                            }
                        };
                    }
                });
            }
        });
        let last = number_of(&client.get(target).expect(200).json());
        assert_eq!(last, swapped.load(Ordering::Relaxed));
        assert!(last >= 10, "somebody always gets on: {last}");
    });
}

fn number_of(manifest: &Value) -> usize {
    let number = manifest["annotations"]["number"].as_str().unwrap();
    number.parse().unwrap()
}

#[test]
fn deletes_beside_pushes_leave_no_tag_on_nothing() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let manifest = manifest_of(&config, &[]);
        let by_digest = format!("/v2/a/manifests/{}", Digest::of(&manifest));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = Client::new(server.addr);
                for round in 0..50 {
                    let tag = format!("t{}", round % 3);
                    client.put_manifest("a", &tag, OCI, &manifest).expect(201);
                }
            });
            scope.spawn(|| {
                let mut client = Client::new(server.addr);
                for _ in 0..50 {
                    let status = client.delete(&by_digest).status;
                    assert!(matches!(status, 202 | 404), "{status}");
                }
            });
        });
        let list = client.get("/v2/a/tags/list").expect(200).json();
        for tag in list["tags"].as_array().unwrap() {
            let target = format!("/v2/a/manifests/{}", tag.as_str().unwrap());
            assert_eq!(client.get(&target).expect(200).body, manifest);
        }
    });
}

#[test]
fn every_algorithm_names_blobs_manifests_and_subjects() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        for (seed, algorithm) in DigestAlgorithm::ALL.into_iter().enumerate() {
            let bytes = noise(100_000, seed as u64);
            let digest = digest_in(algorithm, &bytes);
            let place = format!("/v2/a/blobs/{digest}");
            let start = |client: &mut Client, query: &str| {
                let target = format!("/v2/a/blobs/uploads/{query}");
                client.post(&target).expect(202).location()
            };
            // Announced or not, in one piece, in two, and by POST alone.
            for query in ["", &format!("?digest-algorithm={algorithm}")] {
                let location = start(&mut client, query);
                client
                    .put(&format!("{location}?digest={digest}"), &bytes)
                    .expect(201);
                assert_eq!(client.get(&place).expect(200).body, bytes);
                client.delete(&place).expect(202);
                let location = start(&mut client, query);
                client
                    .send("PATCH", &location, &[], &bytes[..1234])
                    .expect(202);
                client
                    .put(&format!("{location}?digest={digest}"), &bytes[1234..])
                    .expect(201);
            }
            let single = format!("/v2/b/blobs/uploads/?digest={digest}");
            let put = client.send("POST", &single, &[], &bytes).expect(201);
            for (target, status) in [(place.as_str(), 200), (&put.location(), 200)] {
                let head = client.head_of(target).expect(status);
                let told = head.header("docker-content-digest");
                assert_eq!(told, Some(digest.to_string().as_str()));
            }
            // Wrong in that algorithm.
            let wrong = digest_in(algorithm, b"other");
            let location = start(&mut client, &format!("?digest-algorithm={algorithm}"));
            client
                .put(&format!("{location}?digest={wrong}"), &bytes)
                .refused(400, "DIGEST_INVALID");

            let subject_bytes = numbered(&config, seed);
            let subject = digest_in(algorithm, &subject_bytes);
            client
                .put_manifest("a", &format!("{subject}?tag=s{seed}"), OCI, &subject_bytes)
                .expect(201);
            let referrer = json!({"schemaVersion": 2, "mediaType": OCI, "artifactType": "application/x",
                "config": {"mediaType": MediaType::OCI_EMPTY, "digest": config, "size": 2}, "layers": [],
                "subject": {"mediaType": OCI, "digest": subject, "size": subject_bytes.len()}})
            .to_string();
            let referrer_digest = digest_in(algorithm, referrer.as_bytes());
            let reply = client
                .put_manifest("a", &referrer_digest.to_string(), OCI, referrer.as_bytes())
                .expect(201);
            let told = reply.header("oci-subject");
            assert_eq!(told, Some(subject.to_string().as_str()));
            let list = client
                .get(&format!("/v2/a/referrers/{subject}"))
                .expect(200);
            assert_eq!(
                list.json()["manifests"][0]["digest"],
                json!(referrer_digest)
            );
            let head = client
                .head_of(&format!("/v2/a/manifests/s{seed}"))
                .expect(200);
            let told = head.header("docker-content-digest");
            assert_eq!(told, Some(subject.to_string().as_str()));
        }
        for unknown in ["md5", "sha256:", "SHA256", "..", ""] {
            client
                .post(&format!("/v2/a/blobs/uploads/?digest-algorithm={unknown}"))
                .refused(400, "DIGEST_INVALID");
        }
    });
}

#[test]
fn referrers_come_in_pages_that_clients_can_read() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let subject = Digest::of(b"of many");
        let mut expected = Vec::new();
        for number in 0..6 {
            let kind = ["application/even", "application/odd"][number % 2];
            let text = json!({"schemaVersion": 2, "mediaType": OCI, "artifactType": kind,
                "config": {"mediaType": MediaType::OCI_EMPTY, "digest": config, "size": 2}, "layers": [],
                "subject": {"mediaType": OCI, "digest": subject, "size": 7},
                "annotations": {"filler": "x".repeat(1_200_000), "number": number.to_string()}})
            .to_string();
            let digest = Digest::of(text.as_bytes());
            client
                .put_manifest("a", &digest.to_string(), OCI, text.as_bytes())
                .expect(201);
            expected.push((digest, kind));
        }
        expected.sort_unstable();
        let list = format!("/v2/a/referrers/{subject}");
        for filter in [None, Some("application/even"), Some("application/none")] {
            let target = match filter {
                Some(kind) => format!("{list}?artifactType={kind}"),
                None => list.clone(),
            };
            let (all, count) = pages(&mut client, &target, "manifests");
            let found: Vec<&Value> = all
                .as_array()
                .unwrap()
                .iter()
                .map(|m| &m["digest"])
                .collect();
            let wanted: Vec<Value> = expected
                .iter()
                .filter(|(_, kind)| filter.is_none_or(|filter| filter == *kind))
                .map(|(digest, _)| json!(digest))
                .collect();
            assert_eq!(found, wanted.iter().collect::<Vec<_>>(), "{filter:?}");
            // Two of them fit into what clients read of a manifest.
            assert_eq!(count, wanted.len().div_ceil(2).max(1), "{filter:?}");
            let page = client.get(&target).expect(200);
            assert!(page.body.len() < 4 * 1024 * 1024);
            let applied = page.header("oci-filters-applied");
            assert_eq!(applied, filter.map(|_| "artifactType"));
        }
    });
}

#[test]
fn tells_its_extensions() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        push_empty_image(&mut client, "a/b", "t");
        for target in ["/v2/_oci/ext/discover", "/v2/a/b/_oci/ext/discover"] {
            let told = client.get(target).expect(200).json();
            assert_eq!(told["extensions"][0]["name"], "_oci");
            let endpoints = &told["extensions"][0]["endpoints"];
            assert_eq!(*endpoints, json!(["_oci/ext/discover"]));
            client.head_of(target).expect(200);
            client.post(target).refused(405, "UNSUPPORTED");
        }
        client
            .get("/v2/nothing/_oci/ext/discover")
            .refused(404, "NAME_UNKNOWN");
    });
}

/// A registry that is no proxy answers from what it has, and does not claim to speak for another.
#[test]
fn namespaces_of_other_registries_select_nothing() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        push_empty_image(&mut client, "a", "t");
        for target in [
            "/v2/a/manifests/t?ns=docker.io".to_owned(),
            format!("/v2/a/blobs/{}?ns=ghcr.io", Digest::of(b"{}")),
            "/v2/a/tags/list?ns=".to_owned(),
        ] {
            let reply = client.get(&target).expect(200);
            assert_eq!(reply.header("oci-namespace"), None);
        }
        client
            .get("/v2/library/x/manifests/t?ns=docker.io")
            .refused(404, "MANIFEST_UNKNOWN");
    });
}

#[test]
fn at_least_ten_tags_at_once_and_not_too_many() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let bytes = manifest_of(&config, &[]);
        let query = |count: usize| {
            let tags: Vec<String> = (0..count).map(|i| format!("tag=t{i}")).collect();
            format!("{}?{}", Digest::of(&bytes), tags.join("&"))
        };
        client
            .put_manifest("a", &query(33), OCI, &bytes)
            .refused(414, "TAG_INVALID");
        let none = client.get("/v2/a/tags/list").expect(200).json();
        assert_eq!(none["tags"], json!([]));
        let put = client
            .put_manifest("a", &query(32), OCI, &bytes)
            .expect(201);
        assert_eq!(put.header("oci-tag").unwrap().split(", ").count(), 32);
    });
}

#[test]
fn warnings_are_sent_with_every_answer() {
    let root = tempfile::tempdir().unwrap();
    let start = |text: &str| {
        let mut config = Config::new(root.path());
        config.warning = Some(text.to_owned());
        RunningServer::start_with(config)
    };
    let server = start(r#"moves to "new\host""#).unwrap();
    let mut client = Client::new(server.addr);
    for target in ["/v2/", "/v2/a/tags/list", "/nothing"] {
        let reply = client.get(target);
        let expected = r#"299 - "moves to \"new\\host\"""#;
        assert_eq!(reply.header("warning"), Some(expected), "{target}");
    }
    drop(client);
    drop(server);
    for text in ["two\nlines", &"x".repeat(4001)] {
        assert!(matches!(start(text), Err(ServeError::Warning)), "{text}");
    }
}

#[test]
fn ten_thousand_uploads_left_half_open() {
    const COUNT: usize = 10_000;
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let open = client.head("POST", "/v2/a/blobs/uploads/", &[("Content-Length", "0")]);
        let mut locations = Vec::with_capacity(COUNT);
        for _ in 0..COUNT / 100 {
            client.raw(open.repeat(100).as_bytes());
            locations.extend((0..100).map(|_| client.read("POST").expect(202).location()));
        }
        // Each of them goes on, in whatever order, also those whose hash was forgotten meanwhile.
        for at in [0, COUNT / 2, COUNT - 1] {
            client
                .send("PATCH", &locations[at], &[], b"half")
                .expect(202);
        }
        for location in locations.iter().step_by(100) {
            client.send("PATCH", location, &[], b"").expect(202);
        }
        let digest = Digest::of(b"half and half");
        for at in [0, COUNT / 2, COUNT - 1] {
            client
                .put(&format!("{}?digest={digest}", locations[at]), b" and half")
                .expect(201);
        }
        push_empty_image(&mut client, "a", "t");
        let tags = client.get("/v2/a/tags/list").expect(200).json();
        assert_eq!(tags["tags"], json!(["t"]));
    });
}
