//! distribution-spec, endpoint by endpoint, over raw connections. The traps are those into which other
//! registries have fallen.

use std::sync::Arc;

use object_store::memory::InMemory;
use registry_server::{Config, RunningServer};
use serde_json::{Value, json};
use store::oci::{Digest, DigestAlgorithm, Hasher, MediaType};

use crate::client::{Client, Reply, noise};
use crate::storage::in_bucket;

/// Runs a test on disk storage, on memory storage, and on a bucket.
pub(crate) fn on_all(test: impl Fn(&RunningServer)) {
    let root = tempfile::tempdir().unwrap();
    test(&RunningServer::start(root.path()).unwrap());
    test(&RunningServer::start_in_memory().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bucket = in_bucket(Arc::new(InMemory::new()), &runtime);
    test(&RunningServer::start_on(Config::new(""), Arc::new(bucket)).unwrap());
}

pub(crate) fn manifest_of(config: &Digest, layers: &[(&Digest, usize)]) -> Vec<u8> {
    let layer = |(digest, size): &(&Digest, usize)| json!({"mediaType": MediaType::OCI_LAYER_GZIP, "digest": digest, "size": size});
    let layers: Vec<_> = layers.iter().map(layer).collect();
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config, "size": 2},
        "layers": layers,
    });
    manifest.to_string().into_bytes()
}

/// A manifest that differs by `number` from others.
pub(crate) fn numbered(config: &Digest, number: usize) -> Vec<u8> {
    json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config, "size": 2}, "layers": [],
        "annotations": {"number": number.to_string()}})
    .to_string()
    .into_bytes()
}

pub(crate) fn sha512(bytes: &[u8]) -> Digest {
    digest_in(DigestAlgorithm::Sha512, bytes)
}

pub(crate) fn digest_in(algorithm: DigestAlgorithm, bytes: &[u8]) -> Digest {
    let mut hasher = Hasher::new(algorithm);
    hasher.update(bytes);
    hasher.finish()
}

/// Pushes an image of no layers under a tag; its digest.
pub(crate) fn push_empty_image(client: &mut Client, name: &str, tag: &str) -> Digest {
    let config = client.push_blob(name, b"{}");
    let manifest = manifest_of(&config, &[]);
    client
        .put_manifest(name, tag, MediaType::OCI_MANIFEST, &manifest)
        .expect(201);
    Digest::of(&manifest)
}

#[test]
fn pushes_and_pulls_an_image() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let base = client.get("/v2/").expect(200);
        assert_eq!(
            base.header("docker-distribution-api-version"),
            Some("registry/2.0")
        );
        let layer = noise(3_000_000, 1);
        let config = client.push_blob("team/app", b"{}");
        let digest = client.push_blob("team/app", &layer);
        let manifest = manifest_of(&config, &[(&digest, layer.len())]);
        let put = client
            .put_manifest("team/app", "v1", MediaType::OCI_MANIFEST, &manifest)
            .expect(201);
        let manifest_digest = Digest::of(&manifest).to_string();
        assert_eq!(
            put.header("docker-content-digest"),
            Some(manifest_digest.as_str())
        );
        for reference in ["v1", &manifest_digest] {
            let target = format!("/v2/team/app/manifests/{reference}");
            let got = client.get(&target).expect(200);
            assert_eq!(got.body, manifest);
            assert_eq!(got.header("content-type"), Some(MediaType::OCI_MANIFEST));
            assert_eq!(
                got.header("docker-content-digest"),
                Some(manifest_digest.as_str())
            );
            let head = client.head_of(&target).expect(200);
            assert_eq!(
                head.header("content-length"),
                Some(manifest.len().to_string().as_str())
            );
        }
        let target = format!("/v2/team/app/blobs/{digest}");
        assert_eq!(client.get(&target).expect(200).body, layer);
        let head = client.head_of(&target).expect(200);
        assert_eq!(head.header("content-length"), Some("3000000"));
        assert_eq!(
            head.header("docker-content-digest"),
            Some(digest.to_string().as_str())
        );
        assert_eq!(
            client.get("/v2/team/app/tags/list").expect(200).json(),
            json!({"name": "team/app", "tags": ["v1"]})
        );
        assert_eq!(
            client.get("/v2/_catalog").expect(200).json(),
            json!({"repositories": ["team/app"]})
        );
    });
}

#[test]
fn uploads_in_every_way() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let start =
            |client: &mut Client| client.post("/v2/a/blobs/uploads/").expect(202).location();
        let check = |client: &mut Client, bytes: &[u8], put: &Reply, digest: Digest| {
            // Trap 9: a 201 says where the blob is.
            assert_eq!(put.location(), format!("/v2/a/blobs/{digest}"));
            assert_eq!(client.get(&put.location()).expect(200).body, bytes);
        };

        // Monolithic, by POST alone, also of nothing at all (trap 14).
        for bytes in [&b""[..], b"{}", &noise(200_000, 2)] {
            let digest = Digest::of(bytes);
            let put = client
                .send(
                    "POST",
                    &format!("/v2/a/blobs/uploads/?digest={digest}"),
                    &[],
                    bytes,
                )
                .expect(201);
            check(&mut client, bytes, &put, digest);
        }

        // Chunked: ranges are of the whole blob (trap 11), and both ends inclusive.
        let bytes = noise(300_000, 3);
        let digest = Digest::of(&bytes);
        let fresh = client.post("/v2/a/blobs/uploads/").expect(202);
        assert_eq!(fresh.header("range"), Some("0-0")); // trap 16
        let mut location = fresh.location();
        for (start, end) in [(0, 100_000), (100_000, 200_001)] {
            let range = format!("{start}-{}", end - 1);
            let patch = client
                .send(
                    "PATCH",
                    &location,
                    &[("Content-Range", &range)],
                    &bytes[start..end],
                )
                .expect(202);
            assert_eq!(
                patch.header("range"),
                Some(format!("0-{}", end - 1).as_str())
            );
            location = patch.location();
        }
        let status = client.get(&location).expect(204);
        assert_eq!(status.header("range"), Some("0-200000"));
        let put = client
            .send(
                "PUT",
                &format!("{location}?digest={digest}"),
                &[("Content-Range", "200001-299999")],
                &bytes[200_001..],
            )
            .expect(201);
        check(&mut client, &bytes, &put, digest);
        client.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");

        // Streamed: one PATCH of unknown length.
        let bytes = noise(2_000_000, 4);
        let digest = Digest::of(&bytes);
        let location = start(&mut client);
        let pieces: Vec<&[u8]> = bytes.chunks(123_457).collect();
        let patch = client.stream("PATCH", &location, &[], &pieces).expect(202);
        assert_eq!(patch.header("range"), Some("0-1999999"));
        let put = client
            .put(&format!("{}?digest={digest}", patch.location()), b"")
            .expect(201);
        check(&mut client, &bytes, &put, digest);

        // SHA-512, announced at the start, in the POST's digest, or only at the end (traps 1 and 2).
        let bytes = noise(10_000, 5);
        let digest = sha512(&bytes);
        let location = client
            .post("/v2/a/blobs/uploads/?digest-algorithm=sha512")
            .expect(202)
            .location();
        let put = client
            .put(&format!("{location}?digest={digest}"), &bytes)
            .expect(201);
        check(&mut client, &bytes, &put, digest);
        let bytes = noise(10_000, 6);
        let digest = sha512(&bytes);
        let location = start(&mut client);
        let put = client
            .put(&format!("{location}?digest={digest}"), &bytes)
            .expect(201);
        assert_eq!(
            put.header("docker-content-digest"),
            Some(digest.to_string().as_str())
        );
        check(&mut client, &bytes, &put, digest);
        // The same content under its other name is another blob.
        let other = Digest::of(&bytes);
        client.head_of(&format!("/v2/a/blobs/{other}")).expect(404);

        // Cancelled; `delete` need not be allowed for it (trap 13).
        let location = start(&mut client);
        client.delete(&location).expect(204);
        client.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
        client.delete(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
        client
            .send("PATCH", &location, &[], b"x")
            .refused(404, "BLOB_UPLOAD_UNKNOWN");
    });
}

#[test]
fn chunks_out_of_order_are_refused_and_harm_nothing() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let bytes = noise(10_000, 1);
        let digest = Digest::of(&bytes);
        let location = client.post("/v2/a/blobs/uploads/").expect(202).location();
        let put = format!("{location}?digest={digest}");
        client
            .send(
                "PATCH",
                &location,
                &[("Content-Range", "0-4999")],
                &bytes[..5000],
            )
            .expect(202);
        // Traps 4 and 5: a gap, a repetition, and the same for the closing PUT.
        for range in ["5001-9999", "0-4998"] {
            let (start, end) = range.split_once('-').unwrap();
            let body = &bytes[start.parse().unwrap()..=end.parse::<usize>().unwrap()];
            for (method, target) in [("PATCH", &location), ("PUT", &put)] {
                let reply = client.send(method, target, &[("Content-Range", range)], body);
                assert_eq!(reply.header("range"), Some("0-4999"));
                assert_eq!(reply.header("location"), Some(location.as_str()));
                reply.refused(416, "RANGE_INVALID");
            }
        }
        // Announcements that the body does not keep.
        client
            .send(
                "PATCH",
                &location,
                &[("Content-Range", "5000-5001")],
                b"abc",
            )
            .refused(400, "SIZE_INVALID");
        for pieces in [&[&b"a"[..]][..], &[b"ab", b"c"]] {
            client
                .stream(
                    "PATCH",
                    &location,
                    &[("Content-Range", "5000-5001")],
                    pieces,
                )
                .refused(400, "SIZE_INVALID");
        }
        for range in ["x", "5000-", "7-6", "5000-99999999999999999999"] {
            client
                .send("PATCH", &location, &[("Content-Range", range)], b"x")
                .refused(400, "BLOB_UPLOAD_INVALID");
        }
        assert_eq!(
            client.get(&location).expect(204).header("range"),
            Some("0-4999")
        );
        client
            .send(
                "PUT",
                &put,
                &[("Content-Range", "5000-9999")],
                &bytes[5000..],
            )
            .expect(201);
        let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
        assert_eq!(got.body, bytes);
    });
}

#[test]
fn wrong_digests_are_refused_on_every_path() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let wrong = Digest::of(b"something else");
        let start =
            |client: &mut Client| client.post("/v2/a/blobs/uploads/").expect(202).location();
        // Trap 17.
        client
            .send(
                "POST",
                &format!("/v2/a/blobs/uploads/?digest={wrong}"),
                &[],
                b"x",
            )
            .refused(400, "DIGEST_INVALID");
        let location = start(&mut client);
        client
            .put(&format!("{location}?digest={wrong}"), b"x")
            .refused(400, "DIGEST_INVALID");
        let location = start(&mut client);
        client.stream("PATCH", &location, &[], &[b"x"]).expect(202);
        client
            .put(&format!("{location}?digest={wrong}"), b"")
            .refused(400, "DIGEST_INVALID");
        client.head_of(&format!("/v2/a/blobs/{wrong}")).expect(404);

        // Malformed ones are the client's fault, never ours (trap 3), and cost no session.
        let location = start(&mut client);
        let malformed = [
            "",
            "sha256:00",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            "sha256:..",
            "%ff",
        ];
        for digest in malformed {
            client
                .put(&format!("{location}?digest={digest}"), b"x")
                .refused(400, "DIGEST_INVALID");
            client
                .send(
                    "POST",
                    &format!("/v2/a/blobs/uploads/?mount={digest}"),
                    &[],
                    b"",
                )
                .refused(400, "DIGEST_INVALID");
        }
        client.put(&location, b"x").refused(400, "DIGEST_INVALID");
        client.get(&location).expect(204);
        for target in ["blobs", "manifests", "referrers"] {
            client
                .get(&format!("/v2/a/{target}/sha256:xyz"))
                .refused(400, "DIGEST_INVALID");
        }
        client
            .put_manifest("a", "sha256:xyz", MediaType::OCI_MANIFEST, b"{}")
            .refused(400, "DIGEST_INVALID");
    });
}

#[test]
fn mounts_blobs() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let digest = client.push_blob("from/here", b"layer");
        let mount = |client: &mut Client, to: &str, query: &str| {
            client.post(&format!("/v2/{to}/blobs/uploads/?mount={digest}{query}"))
        };
        let place = |name: &str| format!("/v2/{name}/blobs/{digest}");
        // Trap 10: HEAD and GET agree that it is not there before.
        client.head_of(&place("to/there")).expect(404);
        client.get(&place("to/there")).refused(404, "BLOB_UNKNOWN");
        let reply = mount(&mut client, "to/there", "&from=from%2Fhere").expect(201);
        assert_eq!(reply.location(), place("to/there"));
        assert_eq!(client.get(&place("to/there")).expect(200).body, b"layer");
        // Trap 12: no source named.
        mount(&mut client, "elsewhere", "").expect(201);
        client.head_of(&place("elsewhere")).expect(200);
        // A source without it, or that cannot exist: a session to go on with.
        for from in ["&from=not/here", "&from=NOT..LEGAL", "&from="] {
            let reply = mount(&mut client, "third", from).expect(202);
            client.get(&reply.location()).expect(204);
        }
        client.head_of(&place("third")).expect(404);
    });
}

#[test]
fn serves_ranges() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        // Large enough not to be read at once.
        let bytes = noise(500_000, 9);
        let digest = client.push_blob("a", &bytes);
        let target = format!("/v2/a/blobs/{digest}");
        let ask = |client: &mut Client, range: &str| {
            client.send("GET", &target, &[("Range", range)], b"")
        };
        let one = ask(&mut client, "bytes=100-200099").expect(206);
        assert_eq!(one.body, bytes[100..200_100]);
        assert_eq!(one.header("content-range"), Some("bytes 100-200099/500000"));
        assert_eq!(
            ask(&mut client, "bytes=-7").expect(206).body,
            bytes[499_993..]
        );
        assert_eq!(ask(&mut client, "bytes=x").expect(200).body, bytes);
        // Trap 6: beyond the end.
        let beyond = ask(&mut client, "bytes=500000-");
        assert_eq!(beyond.header("content-range"), Some("bytes */500000"));
        beyond.refused(416, "RANGE_INVALID");

        // Trap 15: as many as containers/image asks for, one part for each.
        let wanted: Vec<(usize, usize)> = (0..1024).map(|i| (i * 400, i * 400 + 99)).collect();
        let list: Vec<String> = wanted.iter().map(|(a, b)| format!("{a}-{b}")).collect();
        let many = ask(&mut client, &format!("bytes={}", list.join(","))).expect(206);
        let parts = multipart(&many);
        assert_eq!(parts.len(), 1024);
        for ((start, end), (header, part)) in wanted.iter().zip(&parts) {
            assert_eq!(header, &format!("bytes {start}-{end}/500000"));
            assert_eq!(part, &bytes[*start..=*end]);
        }
        // Overlapping ones come once.
        let reply = ask(&mut client, "bytes=0-9,5-19,300000-499999").expect(206);
        let parts = multipart(&reply);
        assert_eq!(parts[0].1, bytes[..20]);
        assert_eq!(parts[1].1, bytes[300_000..]);
        assert_eq!(parts.len(), 2);

        // Conditions.
        let etag = format!("\"{digest}\"");
        let headers = [("If-None-Match", etag.as_str())];
        let same = client.send("GET", &target, &headers, b"").expect(304);
        assert_eq!(same.header("etag"), Some(etag.as_str()));
        let headers = [("If-None-Match", "\"x\", *")];
        client.send("HEAD", &target, &headers, b"").expect(304);
        let headers = [("Range", "bytes=0-0"), ("If-Range", etag.as_str())];
        client.send("GET", &target, &headers, b"").expect(206);
        let headers = [("Range", "bytes=0-0"), ("If-Range", "\"old\"")];
        client.send("GET", &target, &headers, b"").expect(200);
    });
}

/// The parts of a multipart answer: `Content-Range` and bytes.
fn multipart(reply: &Reply) -> Vec<(String, Vec<u8>)> {
    let kind = reply.header("content-type").unwrap();
    let boundary = kind
        .strip_prefix("multipart/byteranges; boundary=")
        .unwrap();
    let find = |bytes: &[u8], what: &[u8]| bytes.windows(what.len()).position(|w| w == what);
    let opening = format!("--{boundary}\r\n");
    let mut rest = reply.body.strip_prefix(opening.as_bytes()).unwrap();
    let mut parts = Vec::new();
    loop {
        let head_end = find(rest, b"\r\n\r\n").unwrap();
        let head = std::str::from_utf8(&rest[..head_end]).unwrap();
        let range = head
            .lines()
            .find_map(|line| line.strip_prefix("Content-Range: "))
            .unwrap();
        rest = &rest[head_end + 4..];
        let delimiter = format!("\r\n--{boundary}");
        let end = find(rest, delimiter.as_bytes()).unwrap();
        parts.push((range.to_owned(), rest[..end].to_vec()));
        rest = &rest[end + delimiter.len()..];
        match rest.strip_prefix(b"\r\n") {
            Some(next) => rest = next,
            None => {
                assert_eq!(rest, b"--\r\n");
                return parts;
            }
        }
    }
}

#[test]
fn manifests_of_every_kind_are_kept_verbatim() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let spaced = |value: &Value| format!("{value:#}\n ").into_bytes();
        let image = |media_type: &str, config_type: &str| {
            json!({"schemaVersion": 2, "mediaType": media_type,
                "config": {"mediaType": config_type, "digest": config, "size": 2},
                "layers": [], "unknown": {"kept": [1, 2]}})
        };
        let foreign = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config, "size": 2, "data": "e30="},
            "layers": [{"mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "digest": Digest::of(b"elsewhere"), "size": 9, "urls": ["https://example.com/x"]}]});
        let child = spaced(&image(MediaType::OCI_MANIFEST, MediaType::OCI_CONFIG));
        let index = |media_type: &str| {
            json!({"schemaVersion": 2, "mediaType": media_type, "manifests": [
                {"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(&child), "size": child.len()}]})
        };
        let mut untyped = image("x", MediaType::OCI_CONFIG);
        untyped.as_object_mut().unwrap().shift_remove("mediaType");
        let mut large = image(MediaType::OCI_MANIFEST, MediaType::OCI_CONFIG);
        large["annotations"] = json!({"filler": "x".repeat(3_900_000)});
        // Traps 14 and 19.
        let cases = [
            (MediaType::OCI_MANIFEST, child.clone()),
            (
                MediaType::DOCKER_MANIFEST,
                spaced(&image(MediaType::DOCKER_MANIFEST, MediaType::DOCKER_CONFIG)),
            ),
            (MediaType::OCI_MANIFEST, spaced(&untyped)),
            (MediaType::OCI_MANIFEST, spaced(&foreign)),
            (MediaType::OCI_MANIFEST, spaced(&large)),
            (MediaType::OCI_INDEX, spaced(&index(MediaType::OCI_INDEX))),
            (
                MediaType::DOCKER_INDEX,
                spaced(&index(MediaType::DOCKER_INDEX)),
            ),
            (
                MediaType::OCI_INDEX,
                spaced(&json!({"schemaVersion": 2, "manifests": []})),
            ),
            (
                "application/vnd.example.thing+json",
                spaced(
                    &json!({"anything": true, "config": "of another shape", "annotations": [1]}),
                ),
            ),
        ];
        for (number, (media_type, bytes)) in cases.iter().enumerate() {
            for (digest, reference) in [
                (Digest::of(bytes), format!("tag{number}")),
                (Digest::of(bytes), Digest::of(bytes).to_string()),
                (sha512(bytes), sha512(bytes).to_string()),
            ] {
                let put = client
                    .put_manifest("a", &reference, media_type, bytes)
                    .expect(201);
                assert_eq!(
                    put.header("docker-content-digest"),
                    Some(digest.to_string().as_str())
                );
                assert_eq!(put.location(), format!("/v2/a/manifests/{reference}"));
                let accept = [(
                    "Accept",
                    "application/vnd.docker.distribution.manifest.v1+json",
                )];
                let got = client
                    .send("GET", &put.location(), &accept, b"")
                    .expect(200);
                assert_eq!(got.body, *bytes);
                assert_eq!(got.header("content-type"), Some(*media_type));
                assert_eq!(
                    got.header("docker-content-digest"),
                    Some(digest.to_string().as_str())
                );
            }
        }
        let etag = format!("\"{}\"", Digest::of(&child));
        client
            .send(
                "GET",
                "/v2/a/manifests/tag0",
                &[("If-None-Match", &etag)],
                b"",
            )
            .expect(304);
    });
}

#[test]
fn manifests_that_are_none_are_refused() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let good = manifest_of(&config, &[]);
        let missing = Digest::of(b"never pushed");
        let mut put = |reference: &str, media_type: &str, bytes: &[u8], status, code: &str| {
            client
                .put_manifest("a", reference, media_type, bytes)
                .refused(status, code);
        };
        let oci = MediaType::OCI_MANIFEST;
        for broken in ["", "{", "[]", "null", "7", "{}", r#"{"schemaVersion":1}"#] {
            put("t", oci, broken.as_bytes(), 400, "MANIFEST_INVALID");
        }
        for untold in ["", "application/json", "application/octet-stream"] {
            put("t", untold, b"{}", 400, "MANIFEST_INVALID");
        }
        put("t", "application/a\tb", b"{}", 400, "MANIFEST_INVALID");
        let deep = "[".repeat(100_000);
        put("t", oci, deep.as_bytes(), 400, "MANIFEST_INVALID");
        put("t", MediaType::OCI_INDEX, &good, 400, "MANIFEST_INVALID");
        put(
            "t",
            MediaType::DOCKER_MANIFEST,
            &good,
            400,
            "MANIFEST_INVALID",
        );
        // Two readers might take such for different images.
        let image = String::from_utf8(good.clone()).unwrap();
        let both = image.replacen('{', r#"{"manifests":[],"#, 1);
        put("t", oci, both.as_bytes(), 400, "MANIFEST_INVALID");
        for field in [
            r#""layers":[]"#,
            &format!(r#""config":{{"digest":"{config}"}}"#),
        ] {
            let both = format!(r#"{{"schemaVersion":2,"manifests":[],{field}}}"#);
            let index = MediaType::OCI_INDEX;
            put("t", index, both.as_bytes(), 400, "MANIFEST_INVALID");
        }
        let bad_digest = String::from_utf8(good.clone())
            .unwrap()
            .replace(&config.to_string(), "sha256:../../etc/passwd");
        put("t", oci, bad_digest.as_bytes(), 400, "MANIFEST_INVALID");
        let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
        put(
            "t",
            schema1,
            br#"{"schemaVersion":1}"#,
            400,
            "MANIFEST_INVALID",
        );
        let lacks = manifest_of(&config, &[(&missing, 9)]);
        put("t", oci, &lacks, 404, "MANIFEST_BLOB_UNKNOWN");
        put(
            "t",
            oci,
            &manifest_of(&missing, &[]),
            404,
            "MANIFEST_BLOB_UNKNOWN",
        );
        let sparse = json!({"schemaVersion": 2, "manifests": [{"mediaType": oci, "digest": missing, "size": 9}]});
        let sparse = sparse.to_string();
        put(
            "t",
            MediaType::OCI_INDEX,
            sparse.as_bytes(),
            404,
            "MANIFEST_BLOB_UNKNOWN",
        );
        put(&missing.to_string(), oci, &good, 400, "DIGEST_INVALID");
        put(".x", oci, &good, 400, "TAG_INVALID");
        put(&"x".repeat(129), oci, &good, 400, "TAG_INVALID");
        let large = vec![b' '; 4 * 1024 * 1024 + 1];
        put("t", oci, &large, 413, "SIZE_INVALID");
        // The same without a Content-Length.
        let streamed = client.stream("PUT", "/v2/a/manifests/t", &[], &[&large]);
        streamed.refused(413, "SIZE_INVALID");
        let mut client = Client::new(server.addr);
        client
            .get("/v2/a/manifests/t")
            .refused(404, "MANIFEST_UNKNOWN");
        client
            .get("/v2/a/manifests/.x")
            .refused(404, "MANIFEST_UNKNOWN");
    });
}

#[test]
fn deletes_are_seen_at_once() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let digest = push_empty_image(&mut client, "a", "one");
        let by_digest = format!("/v2/a/manifests/{digest}");
        client
            .put_manifest(
                "a",
                "two",
                MediaType::OCI_MANIFEST,
                &manifest_of(&Digest::of(b"{}"), &[]),
            )
            .expect(201);
        // Trap 8: a tag alone.
        client.delete("/v2/a/manifests/one").expect(202);
        client.head_of("/v2/a/manifests/one").expect(404);
        client
            .delete("/v2/a/manifests/one")
            .refused(404, "MANIFEST_UNKNOWN");
        client.head_of("/v2/a/manifests/two").expect(200);
        // Trap 18: a manifest with its tags.
        client.delete(&by_digest).expect(202);
        for target in ["/v2/a/manifests/two", &by_digest] {
            client.head_of(target).expect(404);
        }
        client.delete(&by_digest).refused(404, "MANIFEST_UNKNOWN");
        assert_eq!(
            client.get("/v2/a/tags/list").expect(200).json()["tags"],
            json!([])
        );
        let blob = format!("/v2/a/blobs/{}", Digest::of(b"{}"));
        client.delete(&blob).expect(202);
        client.head_of(&blob).expect(404);
        client.get(&blob).refused(404, "BLOB_UNKNOWN");
        client.delete(&blob).refused(404, "BLOB_UNKNOWN");
        // And all of it can come back.
        assert_eq!(push_empty_image(&mut client, "a", "one"), digest);
        client.head_of(&by_digest).expect(200);
        client.head_of(&blob).expect(200);
    });
}

#[test]
fn lists_in_pages() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for name in ["b", "a/b", "a", "a-b", "a/b/c"] {
            push_empty_image(&mut client, name, "t");
        }
        // Sessions alone make no repository.
        client.post("/v2/only/an-upload/blobs/uploads/").expect(202);
        for tag in ["v10", "v9", "V1", "latest"] {
            push_empty_image(&mut client, "b", tag);
        }
        let tags = json!(["V1", "latest", "t", "v10", "v9"]);
        assert_eq!(
            client.get("/v2/b/tags/list").expect(200).json()["tags"],
            tags
        );
        assert_eq!(pages(&mut client, "/v2/b/tags/list?n=2", "tags"), (tags, 3));
        // Trap 7: `last` itself is not repeated, need not exist, and works alone.
        let after = client.get("/v2/b/tags/list?last=t").expect(200);
        assert_eq!(after.json()["tags"], json!(["v10", "v9"]));
        assert_eq!(
            client.get("/v2/b/tags/list?last=u").expect(200).json()["tags"],
            json!(["v10", "v9"])
        );
        let none = client.get("/v2/b/tags/list?n=0").expect(200);
        assert_eq!(
            (none.json()["tags"].clone(), none.header("link")),
            (json!([]), None)
        );
        let exact = client.get("/v2/b/tags/list?n=5").expect(200);
        assert_eq!(exact.header("link"), None);
        let names = json!(["a", "a/b", "a/b/c", "a-b", "b"]);
        assert_eq!(
            client.get("/v2/_catalog").expect(200).json()["repositories"],
            names
        );
        assert_eq!(
            pages(&mut client, "/v2/_catalog?n=2", "repositories"),
            (names.clone(), 3)
        );
        assert_eq!(
            pages(&mut client, "/v2/_catalog?n=1", "repositories"),
            (names, 5)
        );
        // Trap 16.
        for list in ["/v2/_catalog", "/v2/b/tags/list"] {
            for n in ["-1", "x", "", "99999999999999999999999"] {
                client
                    .get(&format!("{list}?n={n}"))
                    .refused(400, "PAGINATION_NUMBER_INVALID");
            }
        }
        client
            .get("/v2/nothing/here/tags/list")
            .refused(404, "NAME_UNKNOWN");
        client
            .get("/v2/only/an-upload/tags/list")
            .refused(404, "NAME_UNKNOWN");
    });
}

/// Everything that a list has, following its links, and the number of pages.
pub(crate) fn pages(client: &mut Client, first: &str, key: &str) -> (Value, usize) {
    let (mut all, mut count, mut next) = (Vec::new(), 0, Some(first.to_owned()));
    while let Some(target) = next {
        let page = client.get(&target).expect(200);
        all.extend(page.json()[key].as_array().unwrap().clone());
        count += 1;
        next = page.header("link").map(|link| {
            let (target, rel) = link.split_once('>').unwrap();
            assert_eq!(rel, "; rel=\"next\"");
            target.strip_prefix('<').unwrap().to_owned()
        });
    }
    (Value::Array(all), count)
}

#[test]
fn tells_what_refers_to_a_manifest() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let subject_bytes = manifest_of(&config, &[]);
        let subject = Digest::of(&subject_bytes);
        let about = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": subject, "size": subject_bytes.len()});
        let list = format!("/v2/a/referrers/{subject}");
        let empty = client.get(&list).expect(200);
        assert_eq!(empty.header("content-type"), Some(MediaType::OCI_INDEX));
        assert_eq!(empty.json()["manifests"], json!([]));

        // Before the subject itself, as specified.
        let sbom = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": "application/x.sbom",
            "config": {"mediaType": MediaType::OCI_EMPTY, "digest": config, "size": 2}, "layers": [],
            "subject": about, "annotations": {"k": "v"}}).to_string();
        let signature = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": "application/x.signature", "digest": config, "size": 2}, "layers": [],
            "subject": about}).to_string();
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": [], "subject": about}).to_string();
        let mut expected = Vec::new();
        for (media_type, text, artifact_type) in [
            (MediaType::OCI_MANIFEST, &sbom, Some("application/x.sbom")),
            (
                MediaType::OCI_MANIFEST,
                &signature,
                Some("application/x.signature"),
            ),
            (MediaType::OCI_INDEX, &index, None),
        ] {
            let digest = Digest::of(text.as_bytes());
            let put = client
                .put_manifest("a", &digest.to_string(), media_type, text.as_bytes())
                .expect(201);
            assert_eq!(
                put.header("oci-subject"),
                Some(subject.to_string().as_str())
            );
            let mut entry = json!({"mediaType": media_type, "digest": digest, "size": text.len()});
            if let Some(artifact_type) = artifact_type {
                entry["artifactType"] = json!(artifact_type);
            }
            expected.push((digest, entry));
        }
        expected[0].1["annotations"] = json!({"k": "v"});
        client
            .put_manifest("a", "subject", MediaType::OCI_MANIFEST, &subject_bytes)
            .expect(201);
        expected.sort_by_key(|(digest, _)| *digest);
        let entries: Vec<Value> = expected.iter().map(|(_, entry)| entry.clone()).collect();
        assert_eq!(
            client.get(&list).expect(200).json()["manifests"],
            json!(entries)
        );

        let filtered = client
            .get(&format!("{list}?artifactType=application/x.sbom"))
            .expect(200);
        assert_eq!(filtered.header("oci-filters-applied"), Some("artifactType"));
        let found = filtered.json()["manifests"].as_array().unwrap().clone();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0]["digest"], json!(Digest::of(sbom.as_bytes())));

        // Gone with the manifest.
        client
            .delete(&format!("/v2/a/manifests/{}", Digest::of(sbom.as_bytes())))
            .expect(202);
        let rest = client.get(&list).expect(200).json();
        assert_eq!(rest["manifests"].as_array().unwrap().len(), 2);
    });
}

#[test]
fn referrers_kept_by_clients_under_a_tag_are_taken_over() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let subject = Digest::of(b"anything");
        let about = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": subject, "size": 8});
        let referrer = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
            "config": {"mediaType": "application/x", "digest": config, "size": 2}, "layers": [], "subject": about}).to_string();
        let stranger = manifest_of(&config, &[]);
        for bytes in [referrer.as_bytes(), &stranger] {
            let digest = Digest::of(bytes);
            client
                .put_manifest("a", &digest.to_string(), MediaType::OCI_MANIFEST, bytes)
                .expect(201);
        }
        let entry = |bytes: &[u8]| json!({"mediaType": MediaType::OCI_MANIFEST, "digest": Digest::of(bytes), "size": bytes.len()});
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": [entry(referrer.as_bytes()), entry(&stranger)]})
        .to_string();
        let tag = format!("sha256-{}", subject.hex());
        client
            .put_manifest("a", &tag, MediaType::OCI_INDEX, index.as_bytes())
            .expect(201);
        let list = client
            .get(&format!("/v2/a/referrers/{subject}"))
            .expect(200)
            .json();
        let digests: Vec<_> = list["manifests"]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| m["digest"].clone())
            .collect();
        assert_eq!(digests, [json!(Digest::of(referrer.as_bytes()))]);
    });
}

#[test]
fn many_tags_in_one_put() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let bytes = manifest_of(&config, &[]);
        let digest = sha512(&bytes);
        let tags: Vec<String> = (0..10).map(|i| format!("t{i}")).collect();
        let query: Vec<String> = tags.iter().map(|tag| format!("tag={tag}")).collect();
        let put = client
            .put_manifest(
                "a",
                &format!("{digest}?{}", query.join("&")),
                MediaType::OCI_MANIFEST,
                &bytes,
            )
            .expect(201);
        assert_eq!(put.header("oci-tag"), Some(tags.join(", ").as_str()));
        for tag in &tags {
            let head = client
                .head_of(&format!("/v2/a/manifests/{tag}"))
                .expect(200);
            assert_eq!(
                head.header("docker-content-digest"),
                Some(digest.to_string().as_str())
            );
        }
        client
            .put_manifest(
                "a",
                &format!("{digest}?tag=-bad"),
                MediaType::OCI_MANIFEST,
                &bytes,
            )
            .refused(400, "TAG_INVALID");
    });
}

#[test]
fn methods_that_are_not_offered() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (method, target, allow) in [
            ("POST", "/v2/", "GET, HEAD"),
            ("DELETE", "/v2/_catalog", "GET, HEAD"),
            ("PUT", "/v2/a/tags/list", "GET, HEAD"),
            ("GET", "/v2/a/blobs/uploads/", "POST"),
            ("POST", "/v2/a/manifests/x", "GET, HEAD, PUT, DELETE"),
            ("BREW", "/v2/a/manifests/x", "GET, HEAD, PUT, DELETE"),
        ] {
            let reply = client.send(method, target, &[], b"");
            assert_eq!(reply.header("allow"), Some(allow));
            reply.refused(405, "UNSUPPORTED");
        }
        client.get("/v3/").refused(404, "UNSUPPORTED");
        client.get("/v2/a/nothing").refused(404, "UNSUPPORTED");
    });
}
