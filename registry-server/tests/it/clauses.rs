//! Sentences of distribution-spec and of the specifications below it that neither the public suite nor the other tests here
//! look at: grammars at their edges, headers of every answer, lengths beyond 32 bits, digests of algorithms that nobody
//! knows. `docs/reference/conformance.md` has them all.

use std::fs;
use std::os::unix::fs::FileExt;

use registry_server::RunningServer;
use serde_json::{Value, json};
use store::oci::{Digest, DigestAlgorithm, MediaType};

use crate::client::{Client, noise};
use crate::protocol::{digest_in, manifest_of, numbered, on_all, push_empty_image};

const OCI: &str = MediaType::OCI_MANIFEST;

#[test]
fn names_at_the_edges_of_the_grammar() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let component = "x".repeat(127);
        let longest = format!("{component}/{component}");
        assert_eq!(longest.len(), 255);
        let mut check = |name: &str, legal: bool| {
            let mut send = |method: &str, place: &str| {
                client.send(method, &format!("/v2/{name}/{place}"), &[], b"")
            };
            if legal {
                let session = send("POST", "blobs/uploads/").expect(202).location();
                let digest = Digest::of(b"x");
                let put = client
                    .put(&format!("{session}?digest={digest}"), b"x")
                    .expect(201);
                assert_eq!(put.location(), format!("/v2/{name}/blobs/{digest}"));
                client.get(&put.location()).expect(200);
            } else {
                for (method, place) in [
                    ("POST", "blobs/uploads/"),
                    ("GET", "tags/list"),
                    ("GET", "manifests/latest"),
                    ("DELETE", "manifests/latest"),
                ] {
                    send(method, place).refused(400, "NAME_INVALID");
                }
            }
        };
        for legal in [
            "a",
            "0",
            "a.b",
            "a_b",
            "a__b",
            "a-b",
            "a---b",
            "a1/2b/c-d",
            &longest,
        ] {
            check(legal, true);
        }
        let too_long = format!("{longest}x");
        for illegal in [
            "A", "a..b", "a___b", "a._b", "a-.b", ".a", "a.", "-a", "a-", "_a", "a_", "a//b",
            "a/-b", "%C3%A4", "a%20b", "a%00b", "a%2Fb", "a@b", "a:b", &too_long,
        ] {
            check(illegal, false);
        }
    });
}

#[test]
fn tags_at_the_edges_of_the_grammar() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let manifest = manifest_of(&config, &[]);
        let longest = "x".repeat(128);
        for legal in ["a", "0", "_", "A", "_.-", "latest", "sha256-0", &longest] {
            client.put_manifest("a", legal, OCI, &manifest).expect(201);
            client.get(&format!("/v2/a/manifests/{legal}")).expect(200);
        }
        let too_long = format!("{longest}x");
        for illegal in [".a", "-a", "a+b", "a%20b", "%C3%A4", "a@b", &too_long] {
            let put = client.put_manifest("a", illegal, OCI, &manifest);
            put.refused(400, "TAG_INVALID");
            // What can be no tag is on nothing.
            for method in ["GET", "DELETE"] {
                client
                    .send(method, &format!("/v2/a/manifests/{illegal}"), &[], b"")
                    .refused(404, "MANIFEST_UNKNOWN");
            }
        }
    });
}

/// `Docker-Content-Digest`, in the algorithm that was asked for, with every answer about content.
#[test]
fn every_answer_about_content_names_its_digest() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        for (number, algorithm) in DigestAlgorithm::ALL.into_iter().enumerate() {
            let bytes = noise(300, number as u64);
            let digest = digest_in(algorithm, &bytes);
            let target = format!("/v2/a/blobs/{digest}");
            let single = format!("/v2/a/blobs/uploads/?digest={digest}");
            let put = client.send("POST", &single, &[], &bytes).expect(201);
            let manifest = numbered(&config, number);
            let of_manifest = digest_in(algorithm, &manifest);
            let by_digest = format!("/v2/a/manifests/{of_manifest}");
            let pushed = client
                .put_manifest("a", &of_manifest.to_string(), OCI, &manifest)
                .expect(201);
            let mut check =
                |method: &str, target: &str, header: (&str, &str), status, expected: &Digest| {
                    let reply = client.send(method, target, &[header], b"").expect(status);
                    let told = reply.header("docker-content-digest");
                    assert_eq!(
                        told,
                        Some(expected.to_string().as_str()),
                        "{method} {header:?}"
                    );
                };
            let (etag, etag_of_manifest) = (format!("\"{digest}\""), format!("\"{of_manifest}\""));
            for (header, status) in [
                (("Accept", "*/*"), 200),
                (("Range", "bytes=1-5"), 206),
                (("Range", "bytes=1-5,9-9"), 206),
                (("If-None-Match", etag.as_str()), 304),
            ] {
                check("GET", &target, header, status, &digest);
            }
            check("HEAD", &target, ("Accept", "*/*"), 200, &digest);
            let unchanged = ("If-None-Match", etag_of_manifest.as_str());
            for method in ["HEAD", "GET"] {
                check(method, &by_digest, ("Accept", "*/*"), 200, &of_manifest);
                check(method, &by_digest, unchanged, 304, &of_manifest);
            }
            let mount = format!("/v2/b/blobs/uploads/?mount={digest}&from=a");
            check("POST", &mount, ("Accept", "*/*"), 201, &digest);
            check("DELETE", &target, ("Accept", "*/*"), 202, &digest);
            for (reply, expected) in [(&put, digest), (&pushed, of_manifest)] {
                let told = reply.header("docker-content-digest");
                assert_eq!(told, Some(expected.to_string().as_str()));
            }
        }
    });
}

/// Every refusal has the shape of the specification, is JSON, and says which API it is of.
#[test]
fn refusals_are_all_of_one_shape() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        push_empty_image(&mut client, "a", "t");
        let missing = Digest::of(b"missing");
        for (method, target, status) in [
            ("GET", "/v2/a/blobs/sha256:x".to_owned(), 400),
            ("GET", format!("/v2/a/blobs/{missing}"), 404),
            ("DELETE", format!("/v2/a/blobs/{missing}"), 404),
            ("GET", "/v2/a/manifests/none".to_owned(), 404),
            ("PUT", "/v2/a/manifests/t".to_owned(), 400),
            ("PUT", format!("/v2/a/manifests/{missing}"), 400),
            ("GET", "/v2/none/tags/list".to_owned(), 404),
            ("GET", "/v2/a/tags/list?n=x".to_owned(), 400),
            ("GET", "/v2/a/referrers/x".to_owned(), 400),
            ("PATCH", "/v2/a/blobs/uploads/0".to_owned(), 404),
            ("PUT", "/v2/a/blobs/uploads/0".to_owned(), 400),
            ("POST", "/v2/A/blobs/uploads/".to_owned(), 400),
            (
                "POST",
                "/v2/a/blobs/uploads/?digest-algorithm=x".to_owned(),
                400,
            ),
            ("POST", "/v2/_catalog".to_owned(), 405),
            ("GET", "/nothing".to_owned(), 404),
        ] {
            let reply = client.send(method, &target, &[], b"").expect(status);
            let header = |name: &str| reply.header(name).map(str::to_owned);
            assert_eq!(header("content-type").as_deref(), Some("application/json"));
            let version = header("docker-distribution-api-version");
            assert_eq!(version.as_deref(), Some("registry/2.0"), "{target}");
            let told = reply.json();
            for error in told["errors"].as_array().unwrap() {
                let code = error["code"].as_str().unwrap();
                let legal = |c: char| c.is_ascii_uppercase() || c == '_';
                assert!(!code.is_empty() && code.chars().all(legal), "{error}");
                assert!(error["message"].as_str().is_some_and(|m| !m.is_empty()));
            }
            assert_eq!(told.as_object().unwrap().len(), 1, "{told}");
            if method == "GET" {
                // The same without the body, also in what it says of its length.
                let head = client.head_of(&target).expect(status);
                assert_eq!(
                    head.header("content-length"),
                    reply.header("content-length")
                );
            }
        }
    });
}

#[test]
fn manifests_up_to_four_mebibytes_and_types_without_parameters() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let mut manifest = manifest_of(&config, &[]);
        let kind = format!("{OCI}; charset=utf-8");
        let put = client.put_manifest("a", "t", &kind, &manifest).expect(201);
        assert_eq!(put.location(), "/v2/a/manifests/t");
        let got = client.get("/v2/a/manifests/t").expect(200);
        assert_eq!(got.header("content-type"), Some(OCI));
        // White space is part of it like any byte.
        manifest.resize(4 * 1024 * 1024, b' ');
        client
            .put_manifest("a", "large", OCI, &manifest)
            .expect(201);
        let got = client.get("/v2/a/manifests/large").expect(200);
        assert!(got.body == manifest);
        manifest.push(b' ');
        client
            .put_manifest("a", "larger", OCI, &manifest)
            .refused(413, "SIZE_INVALID");
    });
}

#[test]
fn sessions_are_their_repositorys_and_chunks_of_any_length() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let begun = client.post("/v2/a/blobs/uploads/").expect(202);
        // No least length is asked for.
        assert_eq!(begun.header("oci-chunk-min-length"), None);
        let location = begun.location();
        let other = client.post("/v2/a/blobs/uploads/").expect(202).location();
        assert_ne!(location, other);
        // On this host, whatever name clients know it by.
        assert!(location.starts_with("/v2/a/blobs/uploads/"), "{location}");
        let elsewhere = location.replacen("/v2/a/", "/v2/b/", 1);
        for method in ["GET", "PATCH", "DELETE"] {
            client
                .send(method, &elsewhere, &[], b"")
                .refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
        let bytes = b"abc";
        for (at, byte) in bytes.iter().enumerate() {
            let range = format!("{at}-{at}");
            client
                .send("PATCH", &location, &[("Content-Range", &range)], &[*byte])
                .expect(202);
        }
        // Nothing more is no chunk, and harms nothing.
        client.send("PATCH", &location, &[], b"").expect(202);
        let status = client.get(&location).expect(204);
        assert_eq!(status.header("range"), Some("0-2"));
        client
            .put(&format!("{location}?digest={}", Digest::of(bytes)), b"")
            .expect(201);
        client.get(&other).expect(204);
    });
}

/// An algorithm that is announced and not kept to costs time, not the upload.
#[test]
fn announced_algorithms_are_hints() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for announced in DigestAlgorithm::ALL {
            for used in DigestAlgorithm::ALL {
                let bytes = noise(2000, 5);
                let digest = digest_in(used, &bytes);
                let uploads = format!("/v2/a/blobs/uploads/?digest-algorithm={announced}");
                let location = client.post(&uploads).expect(202).location();
                client
                    .send("PATCH", &location, &[], &bytes[..700])
                    .expect(202);
                client
                    .put(&format!("{location}?digest={digest}"), &bytes[700..])
                    .expect(201);
                client.delete(&format!("/v2/a/blobs/{digest}")).expect(202);
            }
        }
    });
}

/// What lies elsewhere may be named by an algorithm that this registry cannot compute; what has to be here may not.
#[test]
fn digests_of_unregistered_algorithms() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar";
        let manifest = |digest: &str, urls: &Value| {
            json!({"schemaVersion": 2, "mediaType": OCI,
                "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config, "size": 2},
                "layers": [{"mediaType": kind, "digest": digest, "size": 9, "urls": urls}]})
            .to_string()
            .into_bytes()
        };
        let elsewhere = json!(["https://example.com/x"]);
        for (number, legal) in [
            "sha384:00ff",
            "multihash+base58:QmRZxt2b1FVZPNqd8hsiykDL3TdBDeTSPX9Kv46HmX4Gx8",
        ]
        .into_iter()
        .enumerate()
        {
            let tag = format!("t{number}");
            let bytes = manifest(legal, &elsewhere);
            client.put_manifest("a", &tag, OCI, &bytes).expect(201);
            let got = client.get(&format!("/v2/a/manifests/{tag}")).expect(200);
            assert_eq!(got.body, bytes);
            // Here it is not even a name.
            let target = format!("/v2/a/blobs/{}", legal.replace('+', "%2B"));
            client.get(&target).refused(400, "DIGEST_INVALID");
        }
        for broken in [
            "sha384",
            "sha384:",
            ":00",
            "SHA384:00",
            "sha++x:00",
            "sha384:/..",
            "sha256:00",
        ] {
            client
                .put_manifest("a", "x", OCI, &manifest(broken, &elsewhere))
                .refused(400, "MANIFEST_INVALID");
        }
        let here = String::from_utf8(manifest("sha384:00ff", &json!([]))).unwrap();
        let here = here.replace(kind, MediaType::OCI_LAYER_GZIP);
        client
            .put_manifest("a", "x", OCI, here.as_bytes())
            .refused(400, "MANIFEST_INVALID");
    });
}

/// The tags under which clients list what refers to a manifest, for each algorithm: at most 64 digits of the digest.
#[test]
fn fallback_tags_of_every_algorithm_are_taken_over() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        for algorithm in DigestAlgorithm::ALL {
            let subject = digest_in(algorithm, b"a subject that is nowhere");
            let referrer = json!({"schemaVersion": 2, "mediaType": OCI,
                "config": {"mediaType": "application/x", "digest": config, "size": 2}, "layers": [],
                "subject": {"mediaType": OCI, "digest": subject, "size": 8}})
            .to_string();
            // As if it had been pushed to a registry that knows no referrers, whose folder this is now.
            let digest = Digest::of(referrer.as_bytes());
            client
                .put_manifest("a", &digest.to_string(), OCI, referrer.as_bytes())
                .expect(201);
            let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
                "manifests": [{"mediaType": OCI, "digest": digest, "size": referrer.len()}]})
            .to_string();
            let hex = subject.hex();
            let tag = format!("{algorithm}-{}", &hex[..64]);
            client
                .put_manifest("a", &tag, MediaType::OCI_INDEX, index.as_bytes())
                .expect(201);
            let list = format!("/v2/a/referrers/{subject}");
            // Once, though it is listed in two ways.
            let told = client.get(&list).expect(200).json();
            let listed = told["manifests"].as_array().unwrap();
            assert_eq!(listed.len(), 1, "{told}");
            assert_eq!(listed[0]["digest"], json!(digest));
            assert_eq!(listed[0]["artifactType"], "application/x");
        }
    });
}

/// Lengths and places that 32 bits do not hold.
#[test]
fn blobs_beyond_four_gibibytes() {
    const SIZE: u64 = 5 << 30;
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    // A file of which only the end is written; nobody hashes what is only read.
    let digest = client.push_blob("a", b"large");
    let hex = digest.hex();
    let base = root.path().join("docker/registry/v2/blobs/sha256");
    let data = base.join(&hex[..2]).join(&hex).join("data");
    let file = fs::OpenOptions::new().write(true).open(data).unwrap();
    file.set_len(SIZE).unwrap();
    file.write_all_at(b"the end", SIZE - 7).unwrap();
    let target = format!("/v2/a/blobs/{digest}");
    let head = client.head_of(&target).expect(200);
    assert_eq!(head.header("content-length"), Some(&*SIZE.to_string()));
    let first = SIZE - 7;
    for range in [
        format!("{first}-"),
        "-7".to_owned(),
        format!("{first}-{}", u64::MAX),
    ] {
        let range = format!("bytes={range}");
        let reply = client.send("GET", &target, &[("Range", &range)], b"");
        let reply = reply.expect(206);
        assert_eq!(reply.body, b"the end");
        let told = format!("bytes {first}-{}/{SIZE}", SIZE - 1);
        assert_eq!(reply.header("content-range"), Some(told.as_str()));
    }
    let range = format!("bytes=0-0,{first}-");
    let reply = client.send("GET", &target, &[("Range", &range)], b"");
    let text = reply.expect(206).text();
    assert!(text.contains("\r\n\r\nthe end\r\n--"), "{text}");
    let range = format!("bytes={SIZE}-");
    client
        .send("GET", &target, &[("Range", &range)], b"")
        .refused(416, "RANGE_INVALID");
}
