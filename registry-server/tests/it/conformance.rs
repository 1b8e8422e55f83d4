//! What the public conformance suite of distribution-spec does, step by step and in words of our own, for a registry that can be
//! tested without it. `docs/reference/conformance.md` has the suite's cases beside the tests here.
//!
//! ```text
//! Content ─ pushed ─ listed ─ looked at ─ pulled ─ asked for what refers to it ─ deleted
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use registry_server::storage::memory::MemoryStorage;
use registry_server::{Config, RunningServer};
use serde_json::{Value, json};
use store::oci::{Digest, DigestAlgorithm, MediaType};

use crate::client::{Client, Reply, noise};
use crate::protocol::{digest_in, on_all};

const NAME: &str = "conformance/one";
const OTHER: &str = "conformance/two";
const EXAMPLE: &str = "application/vnd.example.one";
const EXAMPLE_2: &str = "application/vnd.example.two";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const FOREIGN: &str = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";

/// A manifest as it is pushed.
struct Manifest {
    digest: Digest,
    kind: String,
    bytes: Vec<u8>,
    tags: Vec<String>,
    subject: Option<String>,
}

/// Content of one kind.
struct Content {
    algorithm: DigestAlgorithm,
    /// Tags go as parameters of the PUT by digest.
    by_parameter: bool,
    blobs: BTreeMap<Digest, Vec<u8>>,
    /// In the order in which they are pushed.
    manifests: Vec<Manifest>,
    /// Descriptors of what refers to each subject.
    referrers: BTreeMap<String, Vec<Value>>,
    seed: u64,
}

impl Content {
    fn new(algorithm: DigestAlgorithm) -> Content {
        Content {
            algorithm,
            by_parameter: false,
            blobs: BTreeMap::new(),
            manifests: Vec::new(),
            referrers: BTreeMap::new(),
            seed: 0,
        }
    }

    fn blob(&mut self, kind: &str, bytes: &[u8]) -> Value {
        let digest = digest_in(self.algorithm, bytes);
        self.blobs.insert(digest, bytes.to_vec());
        json!({"mediaType": kind, "digest": digest, "size": bytes.len()})
    }

    fn noise(&mut self, kind: &str) -> Value {
        self.seed += 1;
        let bytes = noise(1024, self.seed);
        self.blob(kind, &bytes)
    }

    /// An image of so many layers, not yet among what is pushed.
    fn image(&mut self, layers: usize, kind: &str) -> Value {
        self.seed += 1;
        let config = json!({"os": "linux", "architecture": "amd64", "made": self.seed}).to_string();
        let config = self.blob(MediaType::OCI_CONFIG, config.as_bytes());
        let layers: Vec<Value> = (0..layers).map(|_| self.noise(kind)).collect();
        json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": config, "layers": layers})
    }

    /// Something that is no image.
    fn artifact(&mut self, kind: &str) -> Value {
        let config = self.blob(MediaType::OCI_EMPTY, b"{}");
        let layer = self.noise(kind);
        json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": kind,
            "config": config, "layers": [layer]})
    }

    /// An index of images for two platforms, or of what `make` makes.
    fn index(&mut self, make: impl Fn(&mut Content) -> Value) -> Value {
        let entries: Vec<Value> = ["amd64", "arm64"]
            .into_iter()
            .map(|arch| {
                let manifest = make(self);
                let mut entry = self.add(&[], &manifest);
                entry["platform"] = json!({"os": "linux", "architecture": arch});
                entry
            })
            .collect();
        index_of(&entries)
    }

    fn images(&mut self) -> Value {
        self.index(|content| content.image(2, MediaType::OCI_LAYER_GZIP))
    }

    /// Adds a manifest to what is pushed; its descriptor.
    fn add(&mut self, tags: &[&str], manifest: &Value) -> Value {
        let bytes = manifest.to_string().into_bytes();
        let digest = digest_in(self.algorithm, &bytes);
        let kind = manifest["mediaType"].as_str().unwrap().to_owned();
        let descriptor = json!({"mediaType": kind, "digest": digest, "size": bytes.len()});
        let subject = manifest["subject"]["digest"].as_str().map(str::to_owned);
        if let Some(subject) = &subject {
            let mut entry = descriptor.clone();
            let config = match kind.as_str() {
                MediaType::OCI_MANIFEST => &manifest["config"]["mediaType"],
                _ => &Value::Null,
            };
            let told = manifest.get("artifactType").unwrap_or(config);
            if !told.is_null() {
                entry["artifactType"] = told.clone();
            }
            if let Some(annotations) = manifest.get("annotations") {
                entry["annotations"] = annotations.clone();
            }
            let all = self.referrers.entry(subject.clone()).or_default();
            all.push(entry);
        }
        self.manifests.push(Manifest {
            digest,
            kind,
            bytes,
            tags: tags.iter().map(|tag| (*tag).to_owned()).collect(),
            subject,
        });
        descriptor
    }

    fn tags(&self) -> impl Iterator<Item = (&str, &Manifest)> {
        let of = |manifest| move |tag| (String::as_str(tag), manifest);
        let all = self.manifests.iter();
        all.flat_map(move |manifest| manifest.tags.iter().map(of(manifest)))
    }
}

fn index_of(entries: &[Value]) -> Value {
    json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": entries})
}

fn with(mut value: Value, key: &str, more: Value) -> Value {
    value[key] = more;
    value
}

fn annotations(number: u32) -> Value {
    json!({"org.example.greeting": "hello", "org.example.number": number.to_string()})
}

/// A manifest of every kind that the suite has, by its name there.
fn kinds() -> Vec<(&'static str, Content)> {
    type Fill = fn(&mut Content);
    let sha256: [(&str, Fill); 16] = [
        ("image", |c| {
            let image = c.image(3, MediaType::OCI_LAYER_GZIP);
            c.add(&["image"], &image);
        }),
        ("image-uncompressed", |c| {
            let image = c.image(3, LAYER);
            c.add(&["image-uncompressed"], &image);
        }),
        ("large-manifest", |c| {
            let many: BTreeMap<String, String> = (0..390)
                .map(|i| (format!("large-{i}"), "A".repeat(10_000)))
                .collect();
            let image = c.image(1, MediaType::OCI_LAYER_GZIP);
            c.add(&["large"], &with(image, "annotations", json!(many)));
        }),
        ("index", |c| {
            let index = c.images();
            c.add(&["index"], &index);
        }),
        ("nested-index", |c| {
            let inner = [(); 2].map(|()| {
                let index = c.images();
                c.add(&[], &index)
            });
            c.add(&["nested"], &index_of(&inner));
        }),
        ("empty-index", |c| {
            c.add(&["empty-index"], &index_of(&[]));
        }),
        ("artifact", |c| {
            let artifact = c.artifact(EXAMPLE);
            c.add(&["artifact"], &artifact);
        }),
        ("artifact-index", |c| {
            let index = c.index(|c| c.artifact(EXAMPLE));
            c.add(
                &["artifact-index"],
                &with(index, "artifactType", json!(EXAMPLE)),
            );
        }),
        ("artifact-without-layers", |c| {
            let nothing = c.blob(MediaType::OCI_EMPTY, b"{}");
            let artifact = c.artifact(EXAMPLE);
            let layers = json!([nothing]);
            c.add(
                &["artifact-without-layers"],
                &with(artifact, "layers", layers),
            );
        }),
        ("artifacts-with-subject", |c| {
            let image = c.image(2, MediaType::OCI_LAYER_GZIP);
            let subject = c.add(&["subject"], &image);
            let image = c.image(1, MediaType::OCI_LAYER_GZIP);
            c.add(&[], &with(image, "subject", subject.clone()));
            for (number, kind) in (1..).zip([EXAMPLE, EXAMPLE_2]) {
                let artifact = with(c.artifact(kind), "annotations", annotations(number));
                let tag = format!("tagged-{number}");
                c.add(&[&tag], &with(artifact, "subject", subject.clone()));
            }
        }),
        ("index-with-subject", |c| {
            let index = c.images();
            let subject = c.add(&["index-subject"], &index);
            let index = c.index(|c| c.artifact(EXAMPLE));
            let index = with(index, "artifactType", json!(EXAMPLE));
            let index = with(index, "annotations", annotations(1));
            c.add(&["tagged-index"], &with(index, "subject", subject));
        }),
        ("missing-subject", |c| {
            let digest = Digest::of(b"missing content");
            let subject =
                json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest, "size": 123});
            let artifact = with(c.artifact(EXAMPLE), "annotations", annotations(1));
            c.add(&["tagged-missing"], &with(artifact, "subject", subject));
        }),
        ("data-field", |c| {
            let mut image = c.image(2, MediaType::OCI_LAYER_GZIP);
            for place in ["/config", "/layers/0", "/layers/1"] {
                let descriptor = image.pointer_mut(place).unwrap();
                let digest: Digest = descriptor["digest"].as_str().unwrap().parse().unwrap();
                descriptor["data"] = json!(STANDARD.encode(&c.blobs[&digest]));
            }
            c.add(&["data-field"], &image);
        }),
        ("non-distributable-layers", |c| {
            let mut image = c.image(3, MediaType::OCI_LAYER_GZIP);
            for (number, kind) in [(0, FOREIGN), (1, FOREIGN.trim_end_matches("+gzip"))] {
                let digest = Digest::of(kind.as_bytes());
                let urls = [format!("https://store.example.com/blobs/{digest}")];
                image["layers"][number] =
                    json!({"mediaType": kind, "digest": digest, "size": 123_456, "urls": urls});
            }
            c.add(&["non-distributable"], &image);
        }),
        ("custom-fields", |c| {
            let index = c.index(|c| {
                let image = c.image(1, MediaType::OCI_LAYER_GZIP);
                with(image, "org.example.more", json!({"a": [1]}))
            });
            c.add(&["custom"], &with(index, "org.example.more", json!("b")));
        }),
        ("no-layers", |c| {
            let image = c.image(0, MediaType::OCI_LAYER_GZIP);
            c.add(&["no-layers"], &image);
        }),
    ];
    let mut all: Vec<(&str, Content)> = sha256
        .into_iter()
        .map(|(name, fill)| {
            let mut content = Content::new(DigestAlgorithm::Sha256);
            fill(&mut content);
            (name, content)
        })
        .collect();
    for (name, algorithm, by_parameter) in [
        ("sha512", DigestAlgorithm::Sha512, false),
        ("blake3", DigestAlgorithm::Blake3, false),
        ("tag-param-sha256", DigestAlgorithm::Sha256, true),
        ("tag-param-sha512", DigestAlgorithm::Sha512, true),
    ] {
        let mut content = Content::new(algorithm);
        content.by_parameter = by_parameter;
        let index = content.images();
        content.add(if by_parameter { &["both", "also"] } else { &[] }, &index);
        if by_parameter {
            // Every manifest has a tag of its own there.
            for (number, manifest) in content.manifests.iter_mut().enumerate() {
                manifest.tags.push(format!("{name}-{number}"));
            }
        }
        all.push((name, content));
    }
    all
}

fn place(reference: impl std::fmt::Display) -> String {
    format!("/v2/{NAME}/manifests/{reference}")
}

fn blob_place(name: &str, digest: &Digest) -> String {
    format!("/v2/{name}/blobs/{digest}")
}

/// What is told in a header of a push that was taken.
#[track_caller]
fn told(reply: &Reply, digest: &Digest) {
    let header = reply.header("docker-content-digest");
    assert_eq!(header, Some(digest.to_string().as_str()));
}

/// A 201 that says where the content is, which is there.
#[track_caller]
fn created(client: &mut Client, reply: Reply, digest: &Digest, bytes: &[u8]) {
    let reply = reply.expect(201);
    told(&reply, digest);
    let got = client.get(&reply.location()).expect(200);
    assert_eq!(got.body, bytes);
}

fn push(client: &mut Client, content: &Content) {
    for (number, (digest, bytes)) in content.blobs.iter().enumerate() {
        let way = Way::ALL[number % Way::ALL.len()];
        let reply = way.push(client, NAME, digest, bytes);
        created(client, reply, digest, bytes);
    }
    let check = |client: &mut Client, reference: &str, manifest: &Manifest| {
        let reply = client.put_manifest(NAME, reference, &manifest.kind, &manifest.bytes);
        assert_eq!(reply.header("oci-subject"), manifest.subject.as_deref());
        let tags: Option<BTreeSet<String>> = reply
            .header("oci-tag")
            .map(|list| list.split(',').map(|tag| tag.trim().to_owned()).collect());
        created(client, reply, &manifest.digest, &manifest.bytes);
        tags
    };
    for manifest in &content.manifests {
        let mut reference = manifest.digest.to_string();
        let mut expected = None;
        if content.by_parameter {
            let query: Vec<String> = manifest.tags.iter().map(|t| format!("tag={t}")).collect();
            reference = format!("{reference}?{}", query.join("&"));
            expected = Some(manifest.tags.iter().cloned().collect());
        }
        assert_eq!(check(client, &reference, manifest), expected);
    }
    for (tag, manifest) in content.tags().filter(|_| !content.by_parameter) {
        assert_eq!(check(client, tag, manifest), None);
    }
}

fn list(client: &mut Client, content: &Content) {
    let mut listed = |query: &str| -> Vec<String> {
        let target = format!("/v2/{NAME}/tags/list{query}");
        let told = client.get(&target).expect(200).json();
        assert_eq!(told["name"], NAME);
        serde_json::from_value(told["tags"].clone()).unwrap()
    };
    let all = listed("");
    for (tag, _) in content.tags() {
        assert!(all.iter().any(|listed| listed == tag), "{tag} in {all:?}");
    }
    for (place, last) in all.iter().enumerate() {
        assert_eq!(listed(&format!("?last={last}")), all[place + 1..]);
    }
}

fn look_and_pull(client: &mut Client, content: &Content) {
    let by_tag = content.tags().map(|(tag, m)| (tag.to_owned(), m));
    let by_digest = content.manifests.iter().map(|m| (m.digest.to_string(), m));
    for (reference, manifest) in by_tag.chain(by_digest) {
        let accept = [
            ("Accept", MediaType::OCI_INDEX),
            ("Accept", MediaType::OCI_MANIFEST),
        ];
        for method in ["HEAD", "GET"] {
            let reply = client
                .send(method, &place(&reference), &accept, b"")
                .expect(200);
            told(&reply, &manifest.digest);
            assert_eq!(reply.header("content-type"), Some(manifest.kind.as_str()));
            let length = manifest.bytes.len().to_string();
            assert_eq!(reply.header("content-length"), Some(length.as_str()));
            assert!(
                method == "HEAD" || reply.body == manifest.bytes,
                "{reference}"
            );
        }
    }
    for (digest, bytes) in &content.blobs {
        look_and_pull_blob(client, digest, bytes);
    }
}

fn look_and_pull_blob(client: &mut Client, digest: &Digest, bytes: &[u8]) {
    let target = blob_place(NAME, digest);
    let head = client.head_of(&target).expect(200);
    told(&head, digest);
    let length = bytes.len().to_string();
    assert_eq!(head.header("content-length"), Some(length.as_str()));
    let got = client.get(&target).expect(200);
    told(&got, digest);
    assert!(got.body == bytes, "{digest}");
}

fn referrers(client: &mut Client, content: &Content) {
    for (subject, expected) in &content.referrers {
        let kinds: BTreeSet<Option<&str>> = expected
            .iter()
            .map(|entry| entry["artifactType"].as_str())
            .chain([None])
            .collect();
        for kind in kinds {
            let filter = kind.map(|kind| format!("?artifactType={kind}"));
            let target = format!(
                "/v2/{NAME}/referrers/{subject}{}",
                filter.unwrap_or_default()
            );
            let reply = client.get(&target).expect(200);
            assert_eq!(reply.header("content-type"), Some(MediaType::OCI_INDEX));
            let applied = reply.header("oci-filters-applied");
            assert_eq!(applied, kind.map(|_| "artifactType"));
            let index = reply.json();
            // A `+` means itself, however it is written.
            let encoded = client.get(&target.replace('+', "%2B")).expect(200);
            assert_eq!(encoded.body, reply.body);
            assert_eq!(index["schemaVersion"], 2);
            assert_eq!(index["mediaType"], MediaType::OCI_INDEX);
            let by_digest = |entry: &&Value| entry["digest"].as_str().unwrap().to_owned();
            let mut expected: Vec<&Value> = expected
                .iter()
                .filter(|entry| kind.is_none() || entry["artifactType"].as_str() == kind)
                .collect();
            let mut listed: Vec<&Value> = index["manifests"].as_array().unwrap().iter().collect();
            expected.sort_by_key(by_digest);
            listed.sort_by_key(by_digest);
            assert_eq!(listed, expected, "{target}");
        }
    }
}

fn delete(client: &mut Client, content: &Content) {
    for (tag, manifest) in content.tags() {
        client.delete(&place(tag)).expect(202);
        client.head_of(&place(tag)).expect(404);
        // The tag alone.
        client.head_of(&place(manifest.digest)).expect(200);
    }
    for manifest in content.manifests.iter().rev() {
        client.delete(&place(manifest.digest)).expect(202);
        client.head_of(&place(manifest.digest)).expect(404);
    }
    for digest in content.blobs.keys() {
        delete_blob(client, NAME, digest);
    }
}

fn delete_blob(client: &mut Client, name: &str, digest: &Digest) {
    client.delete(&blob_place(name, digest)).expect(202);
    client.head_of(&blob_place(name, digest)).expect(404);
    client
        .get(&blob_place(name, digest))
        .refused(404, "BLOB_UNKNOWN");
}

fn goes_through(client: &mut Client, content: &Content) {
    push(client, content);
    list(client, content);
    look_and_pull(client, content);
    referrers(client, content);
    delete(client, content);
}

#[test]
fn content_of_every_kind_is_pushed_listed_pulled_and_deleted() {
    let kinds = kinds();
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (name, content) in &kinds {
            println!("{name}");
            goes_through(&mut client, content);
        }
        let left = client.get(&format!("/v2/{NAME}/tags/list")).expect(200);
        assert_eq!(left.json()["tags"], json!([]));
    });
}

/// What a registry that takes them has to take: manifests of which something is not there.
#[test]
fn sparse_content_is_taken_where_that_is_wanted() {
    let mut content = Content::new(DigestAlgorithm::Sha256);
    let image = content.image(3, MediaType::OCI_LAYER_GZIP);
    content.add(&["sparse-image"], &image);
    let layer: Digest = image["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    content.blobs.remove(&layer);
    let image = content.image(1, MediaType::OCI_LAYER_GZIP);
    let here = content.add(&[], &image);
    let digest = Digest::of(b"an image that is elsewhere");
    let elsewhere = json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest, "size": 1024});
    content.add(&["sparse-index"], &index_of(&[here, elsewhere]));

    let start = |sparse: bool| {
        let mut config = Config::new("");
        config.sparse = sparse;
        RunningServer::start_on(config, Arc::new(MemoryStorage::default())).unwrap()
    };
    let (sparse, usual) = (start(true), start(false));
    goes_through(&mut Client::new(sparse.addr), &content);
    let mut client = Client::new(usual.addr);
    for (digest, bytes) in &content.blobs {
        Way::PostPut
            .push(&mut client, NAME, digest, bytes)
            .expect(201);
    }
    for manifest in &content.manifests {
        let reference = manifest.digest.to_string();
        let reply = client.put_manifest(NAME, &reference, &manifest.kind, &manifest.bytes);
        match manifest.tags.is_empty() {
            true => reply.expect(201),
            false => reply.refused(404, "MANIFEST_BLOB_UNKNOWN"),
        };
    }
}

/// How a blob is pushed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    PostOnly,
    PostPut,
    /// PATCHes of so many bytes; where the last goes with the PUT, the flag is set.
    Chunked(usize, bool),
    Stream,
}

impl Way {
    const ALL: [Way; 7] = [
        Way::PostOnly,
        Way::PostPut,
        Way::Chunked(usize::MAX, false),
        Way::Chunked(300, false),
        Way::Chunked(usize::MAX, true),
        Way::Chunked(300, true),
        Way::Stream,
    ];

    /// The last answer of the push.
    fn push(self, client: &mut Client, name: &str, digest: &Digest, bytes: &[u8]) -> Reply {
        let uploads = format!("/v2/{name}/blobs/uploads/");
        let kind = ("Content-Type", "application/octet-stream");
        if self == Way::PostOnly {
            return client.send(
                "POST",
                &format!("{uploads}?digest={digest}"),
                &[kind],
                bytes,
            );
        }
        let mut location = client.post(&uploads).expect(202).location();
        let close = |location: &str| format!("{location}?digest={digest}");
        match self {
            Way::PostOnly => unreachable!("answered above"),
            Way::PostPut => client.send("PUT", &close(&location), &[kind], bytes),
            Way::Stream => {
                let pieces: Vec<&[u8]> = bytes.chunks(100).collect();
                let patched = client.stream("PATCH", &location, &[kind], &pieces);
                location = patched.expect(202).location();
                client.send("PUT", &close(&location), &[kind], b"")
            }
            Way::Chunked(size, put_last) => {
                let size = size.min(bytes.len()).max(1);
                let mut chunks: Vec<&[u8]> = bytes.chunks(size).collect();
                let last = if put_last { chunks.pop() } else { None };
                let mut at = 0;
                for chunk in chunks {
                    let range = chunk_range(at, chunk);
                    let headers = [kind, ("Content-Range", range.as_str())];
                    let reply = client.send("PATCH", &location, &headers, chunk).expect(202);
                    at += chunk.len();
                    assert_eq!(reply.header("range"), Some(&*format!("0-{}", at - 1)));
                    location = reply.location();
                }
                match last {
                    Some(chunk) => {
                        let range = chunk_range(at, chunk);
                        let headers = [kind, ("Content-Range", range.as_str())];
                        client.send("PUT", &close(&location), &headers, chunk)
                    }
                    None => client.send("PUT", &close(&location), &[kind], b""),
                }
            }
        }
    }
}

fn chunk_range(at: usize, chunk: &[u8]) -> String {
    format!("{at}-{}", at + chunk.len() - 1)
}

#[test]
fn blobs_are_pushed_in_every_way_with_every_algorithm() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (number, algorithm) in (0..).zip(DigestAlgorithm::ALL) {
            for way in Way::ALL {
                for bytes in [noise(895, number), Vec::new(), b"{}".to_vec()] {
                    // There is no range of nothing.
                    if bytes.is_empty() && matches!(way, Way::Chunked(_, true)) {
                        continue;
                    }
                    let digest = digest_in(algorithm, &bytes);
                    client.head_of(&blob_place(NAME, &digest)).expect(404);
                    let reply = way.push(&mut client, NAME, &digest, &bytes);
                    created(&mut client, reply, &digest, &bytes);
                    look_and_pull_blob(&mut client, &digest, &bytes);
                    delete_blob(&mut client, NAME, &digest);
                    // Of the content that it is not.
                    let mut wrong = bytes;
                    wrong.extend(b"oh no");
                    way.push(&mut client, NAME, &digest, &wrong)
                        .refused(400, "DIGEST_INVALID");
                    client.head_of(&blob_place(NAME, &digest)).expect(404);
                }
            }
        }
    });
}

#[test]
fn chunks_out_of_order_are_told_where_to_go_on() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (algorithm, put_last) in [
            (DigestAlgorithm::Sha256, false),
            (DigestAlgorithm::Sha512, true),
        ] {
            let bytes = noise(895, 7);
            let digest = digest_in(algorithm, &bytes);
            let uploads = format!("/v2/{NAME}/blobs/uploads/");
            let mut location = client.post(&uploads).expect(202).location();
            let chunks: Vec<&[u8]> = bytes.chunks(300).collect();
            for (number, chunk) in chunks.iter().enumerate() {
                // The one after, or the first again.
                let wrong = if number + 1 < chunks.len() {
                    number + 1
                } else {
                    0
                };
                let closes = put_last && wrong == chunks.len() - 1;
                let target = match closes {
                    true => format!("{location}?digest={digest}"),
                    false => location.clone(),
                };
                let range = chunk_range(wrong * 300, chunks[wrong]);
                let method = if closes { "PUT" } else { "PATCH" };
                let headers = [("Content-Range", range.as_str())];
                client
                    .send(method, &target, &headers, chunks[wrong])
                    .refused(416, "RANGE_INVALID");
                let status = client.get(&location).expect(204);
                let arrived = (number * 300).max(1) - 1;
                assert_eq!(status.header("range"), Some(&*format!("0-{arrived}")));
                let range = chunk_range(number * 300, chunk);
                let headers = [("Content-Range", range.as_str())];
                let target = status.location();
                if put_last && number + 1 == chunks.len() {
                    let target = format!("{target}?digest={digest}");
                    let reply = client.send("PUT", &target, &headers, chunk);
                    created(&mut client, reply, &digest, &bytes);
                } else {
                    let reply = client.send("PATCH", &target, &headers, chunk);
                    location = reply.expect(202).location();
                }
            }
            if !put_last {
                let reply = client.put(&format!("{location}?digest={digest}"), b"");
                created(&mut client, reply, &digest, &bytes);
            }
        }
    });
}

#[test]
fn blobs_are_mounted_named_or_not_and_sessions_given_up() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for (number, algorithm) in (0..).zip(DigestAlgorithm::ALL) {
            let bytes = noise(512, 100 + number);
            let digest = digest_in(algorithm, &bytes);
            let uploads = format!("/v2/{NAME}/blobs/uploads/");
            let mount = format!("{uploads}?mount={digest}");
            let named = format!("{mount}&from={OTHER}");
            // What is nowhere: a session, in which it can be pushed.
            let session = client.post(&named).expect(202).location();
            let reply = client.put(&format!("{session}?digest={digest}"), &bytes);
            created(&mut client, reply, &digest, &bytes);
            delete_blob(&mut client, NAME, &digest);
            let reply = Way::PostPut.push(&mut client, OTHER, &digest, &bytes);
            created(&mut client, reply, &digest, &bytes);
            for target in [&named, &mount] {
                let reply = client.post(target);
                created(&mut client, reply, &digest, &bytes);
                look_and_pull_blob(&mut client, &digest, &bytes);
                delete_blob(&mut client, NAME, &digest);
                // Of that repository only.
                client.head_of(&blob_place(OTHER, &digest)).expect(200);
            }
            delete_blob(&mut client, OTHER, &digest);
            let session = client.post(&uploads).expect(202).location();
            client.delete(&session).expect(204);
            client.get(&session).refused(404, "BLOB_UPLOAD_UNKNOWN");
        }
    });
}

#[test]
fn ranges_of_blobs() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        for algorithm in DigestAlgorithm::ALL {
            let bytes = noise(2048, 11);
            let digest = digest_in(algorithm, &bytes);
            Way::PostPut
                .push(&mut client, NAME, &digest, &bytes)
                .expect(201);
            for (range, expected) in [
                ("500-1499", Some(500..1500)),
                ("500-", Some(500..2048)),
                ("-500", Some(1548..2048)),
                ("2000-5000", Some(2000..2048)),
                ("500-0", None),
                ("5000-10000", None),
            ] {
                let wanted = format!("bytes={range}");
                let headers = [("Range", wanted.as_str())];
                let reply = client.send("GET", &blob_place(NAME, &digest), &headers, b"");
                let Some(expected) = expected else {
                    reply.refused(416, "RANGE_INVALID");
                    continue;
                };
                let reply = reply.expect(206);
                told(&reply, &digest);
                let told = format!("bytes {}-{}/2048", expected.start, expected.end - 1);
                assert_eq!(reply.header("content-range"), Some(told.as_str()));
                assert_eq!(reply.body, bytes[expected]);
            }
        }
    });
}

#[test]
fn what_is_not_there_and_what_is_no_digest() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        client.get("/v2/").expect(200);
        // Of a repository that nobody ever pushed to.
        let list = format!("/v2/{NAME}/tags/list");
        client.get(&list).refused(404, "NAME_UNKNOWN");
        let missing = Digest::of(b"missing");
        let nothing = client
            .get(&format!("/v2/{NAME}/referrers/{missing}"))
            .expect(200);
        assert_eq!(nothing.header("content-type"), Some(MediaType::OCI_INDEX));
        assert_eq!(nothing.json()["manifests"], json!([]));
        for reference in [missing.to_string(), "missing-tag".to_owned()] {
            client
                .get(&place(&reference))
                .refused(404, "MANIFEST_UNKNOWN");
            client.head_of(&place(&reference)).expect(404);
        }
        let mut content = Content::new(DigestAlgorithm::Sha256);
        let image = content.image(1, LAYER);
        content.add(&[], &image);
        for (digest, bytes) in &content.blobs {
            Way::Stream
                .push(&mut client, NAME, digest, bytes)
                .expect(201);
        }
        let manifest = &content.manifests[0];
        let mut put = |reference: &str, bytes: &[u8]| {
            client
                .put_manifest(NAME, reference, &manifest.kind, bytes)
                .refused(400, "DIGEST_INVALID");
        };
        put("sha256:baddigeststring", &manifest.bytes);
        let mut longer = manifest.bytes.clone();
        longer.extend(b"  ");
        put(&manifest.digest.to_string(), &longer);
        client
            .get(&place("sha256:baddigeststring"))
            .refused(400, "DIGEST_INVALID");
        client.head_of(&place(manifest.digest)).expect(404);
    });
}
