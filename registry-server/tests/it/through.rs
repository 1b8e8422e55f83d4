//! Other registries read through this one. The upstream is a value here, which counts, waits, lies and fails as a test says.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{StreamExt as _, stream};
use object_store::memory::InMemory;
use registry_server::quota::QuotaRule;
use registry_server::routes::RepositoryName;
use registry_server::storage::disk::DiskStorage;
use registry_server::storage::memory::MemoryStorage;
use registry_server::storage::{RegistryStorage, collectable::Collectable};
use registry_server::upstream::{
    Upstream, UpstreamBlob, UpstreamError, UpstreamManifest, UpstreamResult,
};
use registry_server::{Config, PullThrough, RunningServer, ServeError};
use serde_json::json;
use store::oci::{Descriptor, Digest, MediaType};
use tokio::sync::watch;

use crate::client::{Client, noise};
use crate::protocol::{manifest_of, numbered};
use crate::storage::in_bucket;

const OCI: &str = MediaType::OCI_MANIFEST;
const LONG: Duration = Duration::from_secs(24 * 60 * 60);

/// A registry that is read.
#[derive(Debug)]
pub(crate) struct Fake {
    state: Mutex<State>,
    /// How many bytes of blobs it gives out.
    blob_bytes: watch::Sender<u64>,
    /// Whether it answers about manifests.
    pub(crate) answers: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct State {
    manifests: BTreeMap<String, Bytes>,
    tags: BTreeMap<String, Digest>,
    /// By what they are called, which need not be what they are.
    blobs: BTreeMap<String, Bytes>,
    /// What it says their length is, where that is a lie.
    sizes: BTreeMap<String, u64>,
    referrers: Vec<Descriptor>,
    asked: Vec<String>,
    failure: Option<UpstreamError>,
    /// Whether it does not tell what tags are on.
    heads_are_mute: bool,
}

impl Fake {
    pub(crate) fn new() -> Arc<Fake> {
        Arc::new(Fake {
            state: Mutex::default(),
            blob_bytes: watch::Sender::new(u64::MAX),
            answers: watch::Sender::new(true),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Has other bytes under a blob's name, and says that they are of this length.
    pub(crate) fn lies(&self, digest: &Digest, bytes: &[u8], size: Option<u64>) {
        let mut state = self.state();
        let name = digest.to_string();
        state
            .blobs
            .insert(name.clone(), Bytes::copy_from_slice(bytes));
        state.sizes.clear();
        state.sizes.extend(size.map(|size| (name, size)));
    }

    pub(crate) fn blob(&self, bytes: &[u8]) -> Digest {
        let digest = Digest::of(bytes);
        let bytes = Bytes::copy_from_slice(bytes);
        self.state().blobs.insert(digest.to_string(), bytes);
        digest
    }

    fn tag(&self, name: &str, manifest: &[u8]) -> Digest {
        let digest = self.manifest(manifest);
        self.state().tags.insert(name.to_owned(), digest);
        digest
    }

    fn manifest(&self, manifest: &[u8]) -> Digest {
        let digest = Digest::of(manifest);
        let bytes = Bytes::copy_from_slice(manifest);
        self.state().manifests.insert(digest.to_string(), bytes);
        digest
    }

    fn fails(&self, failure: Option<UpstreamError>) {
        self.state().failure = failure;
    }

    fn is_down(&self) {
        let reason = "nobody answers".to_owned();
        self.fails(Some(UpstreamError::Unreachable { reason }));
    }

    /// What it was asked since the last look.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.state().asked)
    }

    fn ask(&self, what: String) -> UpstreamResult<()> {
        let mut state = self.state();
        state.asked.push(what);
        state.failure.clone().map_or(Ok(()), Err)
    }

    /// How often it was asked this.
    pub(crate) fn count(&self, what: &str) -> usize {
        let state = self.state();
        state.asked.iter().filter(|asked| *asked == what).count()
    }

    /// Waits until it has been asked this; how often it was by then.
    pub(crate) fn until_begun(&self, what: &str) -> usize {
        self.until_asked(what);
        self.count(what)
    }

    /// Waits until it has been asked this.
    fn until_asked(&self, what: &str) {
        while !self.state().asked.iter().any(|asked| asked == what) {
            std::thread::yield_now();
        }
    }
}

impl Upstream for Fake {
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a str,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamManifest>> {
        Box::pin(async move {
            let asked = self.ask(format!("manifest {repository} {reference}"));
            let mut answers = self.answers.subscribe();
            answers.wait_for(|answers| *answers).await.unwrap();
            asked?;
            let state = self.state();
            let digest = state.tags.get(reference).map(Digest::to_string);
            let found = state.manifests.get(&digest.unwrap_or(reference.to_owned()));
            let bytes = found.ok_or(UpstreamError::NotFound)?.clone();
            Ok(UpstreamManifest {
                digest: Digest::of(&bytes),
                bytes,
                media_type: Some(OCI.to_owned()),
            })
        })
    }

    fn tag_now<'a>(
        &'a self,
        repository: &'a str,
        tag: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Option<Digest>>> {
        Box::pin(async move {
            self.ask(format!("tag {repository} {tag}"))?;
            let state = self.state();
            let now = state.tags.get(tag).copied();
            let now = now.ok_or(UpstreamError::NotFound)?;
            Ok((!state.heads_are_mute).then_some(now))
        })
    }

    fn blob_size<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<u64>> {
        Box::pin(async move {
            self.ask(format!("size {repository} {digest}"))?;
            let state = self.state();
            let blob = state.blobs.get(&digest.to_string());
            Ok(blob.ok_or(UpstreamError::NotFound)?.len() as u64)
        })
    }

    fn blob<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamBlob>> {
        Box::pin(async move {
            self.ask(format!("blob {repository} {digest}"))?;
            let state = self.state();
            let name = digest.to_string();
            let blob = state
                .blobs
                .get(&name)
                .ok_or(UpstreamError::NotFound)?
                .clone();
            let size = state.sizes.get(&name).copied().unwrap_or(blob.len() as u64);
            let gate = self.blob_bytes.subscribe();
            let bytes = stream::unfold(
                (blob, 0u64, gate),
                |(mut blob, sent, mut gate)| async move {
                    if blob.is_empty() {
                        return None;
                    }
                    let open = *gate.wait_for(|open| *open > sent).await.ok()?;
                    let count = (open - sent).min(60_000).min(blob.len() as u64);
                    let piece = blob.split_to(usize::try_from(count).unwrap());
                    Some((Ok(piece), (blob, sent + count, gate)))
                },
            );
            Ok(UpstreamBlob {
                size,
                bytes: bytes.boxed(),
            })
        })
    }

    fn tags<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, UpstreamResult<Vec<String>>> {
        Box::pin(async move {
            self.ask(format!("tags {repository}"))?;
            Ok(self.state().tags.keys().rev().cloned().collect())
        })
    }

    fn referrers<'a>(
        &'a self,
        repository: &'a str,
        subject: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Vec<Descriptor>>> {
        Box::pin(async move {
            self.ask(format!("referrers {repository} {subject}"))?;
            Ok(self.state().referrers.clone())
        })
    }
}

pub(crate) fn below(prefix: &str, fake: &Arc<Fake>) -> PullThrough {
    let prefix = RepositoryName::parse(prefix).unwrap();
    let upstream: Arc<dyn Upstream> = fake.clone();
    PullThrough {
        tag_age: LONG,
        absent_age: LONG,
        down_age: Duration::ZERO,
        ..PullThrough::new(Some(prefix), upstream)
    }
}

fn serve(through: PullThrough, storage: Arc<dyn RegistryStorage>) -> RunningServer {
    let mut config = Config::new("");
    config.upstreams = vec![through];
    RunningServer::start_on(config, storage).unwrap()
}

/// Below `hub`, in memory.
fn in_memory(through: PullThrough) -> RunningServer {
    serve(through, Arc::new(MemoryStorage::default()))
}

/// Runs a test below `hub`, on disk storage, on memory storage, and on a bucket with and without a folder for what comes.
fn on_all(test: impl Fn(&Arc<Fake>, &RunningServer)) {
    let run = |storage| {
        let fake = Fake::new();
        test(&fake, &serve(below("hub", &fake), storage));
    };
    let root = tempfile::tempdir().unwrap();
    run(Arc::new(
        DiskStorage::open(root.path()).unwrap().durable(false),
    ));
    run(Arc::new(MemoryStorage::default()));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    run(Arc::new(in_bucket(Arc::new(InMemory::new()), &runtime)));
    let fake = Fake::new();
    let mut config = Config::new("");
    config.upstreams = vec![below("hub", &fake)];
    config.spool = Some(root.path().to_owned());
    let storage = Arc::new(in_bucket(Arc::new(InMemory::new()), &runtime));
    test(&fake, &RunningServer::start_on(config, storage).unwrap());
}

/// An image of one layer under a tag; the manifest's digest, and the layer's.
pub(crate) fn image(fake: &Fake, tag: &str, layer: &[u8]) -> (Digest, Digest) {
    let config = fake.blob(b"{}");
    let digest = fake.blob(layer);
    let manifest = manifest_of(&config, &[(&digest, layer.len())]);
    (fake.tag(tag, &manifest), digest)
}

#[test]
fn an_image_is_fetched_once_and_only_what_is_asked_for() {
    on_all(|fake, server| {
        let layer = noise(700_000, 1);
        let (manifest, digest) = image(fake, "v1", &layer);
        fake.blob(b"a layer of another platform");
        let mut client = Client::new(server.addr);
        let pull = |client: &mut Client| {
            let reply = client.get("/v2/hub/team/app/manifests/v1").expect(200);
            assert_eq!(Digest::of(&reply.body), manifest);
            assert_eq!(reply.header("content-type"), Some(OCI));
            assert_eq!(
                reply.header("docker-content-digest"),
                Some(manifest.to_string().as_str())
            );
            client
                .get(&format!("/v2/hub/team/app/manifests/{manifest}"))
                .expect(200);
            let blob = client
                .get(&format!("/v2/hub/team/app/blobs/{digest}"))
                .expect(200);
            assert!(blob.body == layer);
            assert_eq!(
                blob.header("docker-content-digest"),
                Some(digest.to_string().as_str())
            );
        };
        pull(&mut client);
        assert_eq!(
            fake.asked(),
            [
                "manifest team/app v1".to_owned(),
                format!("blob team/app {digest}")
            ]
        );
        fake.is_down();
        pull(&mut client);
        client
            .head_of(&format!("/v2/hub/team/app/blobs/{digest}"))
            .expect(200);
        assert_eq!(fake.asked(), [""; 0]);
        let catalog = client.get("/v2/_catalog").expect(200).json();
        assert_eq!(catalog["repositories"], json!(["hub/team/app"]));
    });
}

#[test]
fn a_blob_goes_out_while_it_comes_to_all_who_ask_and_is_fetched_once() {
    on_all(|fake, server| {
        let layer = noise(3_000_000, 2);
        let digest = fake.blob(&layer);
        let target = format!("/v2/hub/app/blobs/{digest}");
        fake.blob_bytes.send_replace(1_000_000);
        let mut clients: Vec<Client> = (0..4).map(|_| Client::new(server.addr)).collect();
        for client in &mut clients {
            let head = client.head("GET", &target, &[]);
            client.raw(head.as_bytes());
            let reply = client.read_head().expect(200);
            assert_eq!(reply.header("content-length"), Some("3000000"));
        }
        // HEAD and ranges join in.
        let mut head = Client::new(server.addr);
        let reply = head.head_of(&target).expect(200);
        assert_eq!(reply.header("content-length"), Some("3000000"));
        let range = [("Range", "bytes=10-19,500000-500009")];
        let reply = head.send("GET", &target, &range, b"").expect(206);
        assert!(
            reply
                .text()
                .contains("Content-Range: bytes 500000-500009/3000000")
        );
        // The last byte has not come yet: what has is here all the same.
        for client in &mut clients[..3] {
            assert!(client.read_bytes(1_000_000) == layer[..1_000_000]);
        }
        // One goes away, one has read nothing, and neither matters to the others.
        drop(clients.remove(0));
        let slow = clients.remove(2);
        fake.blob_bytes.send_replace(u64::MAX);
        for client in &mut clients {
            assert!(client.read_bytes(2_000_000) == layer[1_000_000..]);
        }
        let mut slow = slow;
        assert!(slow.read_bytes(3_000_000) == layer);
        assert_eq!(fake.asked(), [format!("blob app {digest}")]);
        // What is kept is whole.
        assert!(head.get(&target).expect(200).body == layer);
        assert_eq!(fake.asked(), [""; 0]);
    });
}

#[test]
fn a_fetch_goes_on_when_all_who_asked_have_gone() {
    on_all(|fake, server| {
        let layer = noise(1_000_000, 3);
        let digest = fake.blob(&layer);
        let target = format!("/v2/hub/app/blobs/{digest}");
        fake.blob_bytes.send_replace(10);
        let mut client = Client::new(server.addr);
        let head = client.head("GET", &target, &[]);
        client.raw(head.as_bytes());
        client.read_head().expect(200);
        drop(client);
        fake.blob_bytes.send_replace(u64::MAX);
        let mut client = Client::new(server.addr);
        assert!(client.get(&target).expect(200).body == layer);
        assert_eq!(fake.asked(), [format!("blob app {digest}")]);
    });
}

#[test]
fn wrong_bytes_cut_the_connection_and_are_not_kept() {
    on_all(|fake, server| {
        let good = noise(900_000, 4);
        let digest = fake.blob(&good);
        let target = format!("/v2/hub/app/blobs/{digest}");
        let mut bad = good.clone();
        bad[500_000] ^= 1;
        let lies = [
            (bad.clone(), None),
            (good[..800_000].to_vec(), Some(900_000)),
            ([&good[..], b"more"].concat(), Some(900_000)),
        ];
        for (bytes, size) in lies {
            fake.lies(&digest, &bytes, size);
            // What goes wrong before the first byte went out is a plain refusal.
            fake.blob_bytes.send_replace(100_000);
            let mut client = Client::new(server.addr);
            let head = client.head("GET", &target, &[]);
            client.raw(head.as_bytes());
            client.read_head().expect(200);
            fake.blob_bytes.send_replace(u64::MAX);
            let came = client.until_closed();
            assert!(came.len() < 900_000, "{} bytes came", came.len());
            let catalog = Client::new(server.addr).get("/v2/_catalog").expect(200);
            assert_eq!(catalog.json()["repositories"], json!([]));
        }
        fake.lies(&digest, &good, None);
        let mut client = Client::new(server.addr);
        assert!(client.get(&target).expect(200).body == good);
        assert_eq!(fake.asked().len(), 4);
    });
}

#[test]
fn what_no_quota_has_room_for_is_passed_on_and_not_kept() {
    let (root, spool) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let all: [Arc<dyn RegistryStorage>; 3] = [
        Arc::new(DiskStorage::open(root.path()).unwrap().durable(false)),
        Arc::new(MemoryStorage::default()),
        Arc::new(in_bucket(Arc::new(InMemory::new()), &runtime)),
    ];
    let (small, large) = (noise(200_000, 5), noise(600_000, 6));
    for storage in all {
        let fake = Fake::new();
        let config = |spool| {
            let mut config = Config::new("");
            config.upstreams = vec![below("hub", &fake)];
            config.quotas = vec![QuotaRule {
                repositories: vec!["hub/*".to_owned()],
                bytes: 500_000,
            }];
            config.spool = spool;
            config
        };
        let (_, kept) = image(&fake, "v1", &small);
        let (_, passed) = image(&fake, "v2", &large);
        let target = |digest: &Digest| format!("/v2/hub/app/blobs/{digest}");
        let name = RepositoryName::parse("hub/app").unwrap();
        let with = config(Some(spool.path().to_owned()));
        let server = RunningServer::start_on(with, Arc::clone(&storage)).unwrap();
        let mut client = Client::new(server.addr);
        for tag in ["v1", "v2"] {
            client
                .get(&format!("/v2/hub/app/manifests/{tag}"))
                .expect(200);
        }
        for round in 1..=2 {
            assert!(client.get(&target(&passed)).expect(200).body == large);
            assert!(client.get(&target(&kept)).expect(200).body == small);
            assert_eq!(fake.count(&format!("blob app {passed}")), round);
            assert_eq!(fake.count(&format!("blob app {kept}")), 1);
        }
        let range = [("range", "bytes=7-99")];
        let part = client.send("GET", &target(&passed), &range, b"");
        assert_eq!(part.expect(206).body, large[7..=99]);
        // What is another is given to nobody as a whole, here neither.
        fake.lies(&passed, &noise(600_000, 7), None);
        fake.blob_bytes.send_replace(100_000);
        let mut other = Client::new(server.addr);
        let head = other.head("GET", &target(&passed), &[]);
        other.raw(head.as_bytes());
        other.read_head().expect(200);
        fake.blob_bytes.send_replace(u64::MAX);
        assert!(other.until_closed().len() < 600_000);
        assert_eq!(storage.blob_size(&name, &passed).unwrap(), None);
        assert_eq!(storage.blob_size(&name, &kept).unwrap(), Some(200_000));
        assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
        drop(server);
        // Without a place for what comes it is refused.
        fake.lies(&passed, &large, None);
        let server = RunningServer::start_on(config(None), storage).unwrap();
        let mut client = Client::new(server.addr);
        client.get(&target(&passed)).expect(403);
        assert!(client.get(&target(&kept)).expect(200).body == small);
    }
}

#[test]
fn a_manifest_that_is_another_is_not_kept() {
    let fake = Fake::new();
    let server = in_memory(below("hub", &fake));
    let config = fake.blob(b"{}");
    let (one, other) = (numbered(&config, 1), numbered(&config, 2));
    let digest = Digest::of(&one);
    fake.state()
        .manifests
        .insert(digest.to_string(), other.into());
    let mut client = Client::new(server.addr);
    let target = format!("/v2/hub/app/manifests/{digest}");
    client.get(&target).refused(502, "UNKNOWN");
    fake.state()
        .manifests
        .insert(digest.to_string(), "{".into());
    client.get(&target).refused(502, "UNKNOWN");
    fake.manifest(&one);
    assert!(client.get(&target).expect(200).body == one);
}

#[test]
fn tags_are_asked_about_when_they_are_old() {
    let check = |tag_age, expect: &[&str]| {
        let fake = Fake::new();
        let server = in_memory(PullThrough {
            tag_age,
            ..below("hub", &fake)
        });
        let config = fake.blob(b"{}");
        let (one, two) = (numbered(&config, 1), numbered(&config, 2));
        let mut client = Client::new(server.addr);
        fake.tag("v1", &one);
        for _ in 0..2 {
            let reply = client.get("/v2/hub/app/manifests/v1").expect(200);
            assert!(reply.body == one);
        }
        fake.tag("v1", &two);
        let reply = client.get("/v2/hub/app/manifests/v1").expect(200);
        assert_eq!(reply.body == two, tag_age.is_zero());
        assert_eq!(fake.asked(), expect);
    };
    check(LONG, &["manifest app v1"]);
    let old = [
        "manifest app v1",
        "tag app v1",
        "tag app v1",
        "manifest app v1",
    ];
    check(Duration::ZERO, &old);
}

#[test]
fn a_tag_that_moves_back_is_not_fetched_again_and_mute_heads_are_no_hindrance() {
    let fake = Fake::new();
    let server = in_memory(PullThrough {
        tag_age: Duration::ZERO,
        ..below("hub", &fake)
    });
    let config = fake.blob(b"{}");
    let (one, two) = (numbered(&config, 1), numbered(&config, 2));
    let mut client = Client::new(server.addr);
    let mut is_on = |manifest: &[u8]| {
        fake.tag("v1", manifest);
        let reply = client.get("/v2/hub/app/manifests/v1").expect(200);
        assert!(reply.body == manifest);
        fake.asked()
    };
    is_on(&one);
    is_on(&two);
    assert_eq!(is_on(&one), ["tag app v1"]);
    fake.state().heads_are_mute = true;
    assert_eq!(is_on(&one), ["tag app v1", "manifest app v1"]);
    assert_eq!(is_on(&two), ["tag app v1", "manifest app v1"]);
}

#[test]
fn what_was_asked_about_is_known_after_a_restart() {
    let fake = Fake::new();
    let root = tempfile::tempdir().unwrap();
    let storage = || Arc::new(DiskStorage::open(root.path()).unwrap().durable(false));
    let config = fake.blob(b"{}");
    fake.tag("v1", &numbered(&config, 1));
    for expect in [&["manifest app v1"][..], &[]] {
        let server = serve(below("hub", &fake), storage());
        let mut client = Client::new(server.addr);
        client.get("/v2/hub/app/manifests/v1").expect(200);
        assert_eq!(fake.asked(), expect);
    }
    // Asked about again, it is as if it were new: rules that keep what is young keep what is pulled.
    let name = RepositoryName::parse("hub/app").unwrap();
    let link = root
        .path()
        .join("docker/registry/v2/repositories/hub/app/_manifests/tags/v1/current/link");
    let then = std::time::SystemTime::UNIX_EPOCH + LONG;
    let file = std::fs::File::open(&link).unwrap();
    file.set_modified(then).unwrap();
    assert_eq!(storage().tag_made(&name, "v1").unwrap(), Some(then));
    let server = serve(below("hub", &fake), storage());
    let mut client = Client::new(server.addr);
    client.get("/v2/hub/app/manifests/v1").expect(200);
    assert_eq!(fake.asked(), ["tag app v1"]);
    assert!(storage().tag_made(&name, "v1").unwrap() > Some(then + LONG));
}

#[test]
fn head_and_get_of_a_tag_at_the_same_time_are_one_question() {
    let fake = Fake::new();
    let server = in_memory(PullThrough {
        tag_age: Duration::ZERO,
        ..below("hub", &fake)
    });
    let config = fake.blob(b"{}");
    let manifest = numbered(&config, 1);
    let digest = fake.tag("v1", &manifest);
    fake.answers.send_replace(false);
    let ask = |method: &'static str| {
        let addr = server.addr;
        std::thread::spawn(move || {
            let mut client = Client::new(addr);
            client.send(method, "/v2/hub/app/manifests/v1", &[], b"")
        })
    };
    let first = ask("HEAD");
    fake.until_asked("manifest app v1");
    let others: Vec<_> = ["GET", "HEAD", "GET"].into_iter().map(ask).collect();
    // They may come before the answer or after it, but one that comes after asks only whether it still holds.
    fake.answers.send_replace(true);
    for thread in others.into_iter().chain([first]) {
        let reply = thread.join().unwrap().expect(200);
        let said = reply.header("docker-content-digest").map(str::to_owned);
        assert_eq!(said, Some(digest.to_string()));
    }
    let asked = fake.asked();
    let fetched = asked.iter().filter(|asked| asked.starts_with("manifest"));
    assert_eq!(fetched.count(), 1, "{asked:?}");
}

#[test]
fn an_upstream_that_is_down_is_stood_in_for() {
    let fake = Fake::new();
    let server = in_memory(PullThrough {
        tag_age: Duration::ZERO,
        ..below("hub", &fake)
    });
    let (manifest, layer) = image(&fake, "v1", b"layer");
    let mut client = Client::new(server.addr);
    client.get("/v2/hub/app/manifests/v1").expect(200);
    client
        .get(&format!("/v2/hub/app/blobs/{layer}"))
        .expect(200);
    let failures = [
        (
            UpstreamError::Unreachable {
                reason: "x".to_owned(),
            },
            "cannot be reached",
            (502, "UNKNOWN"),
        ),
        (
            UpstreamError::Wrong {
                reason: "x".to_owned(),
            },
            "gives no answer that can be used",
            (502, "UNKNOWN"),
        ),
        (
            UpstreamError::Busy {
                retry_after: Some(Duration::from_secs(7)),
            },
            "limits requests",
            (429, "TOOMANYREQUESTS"),
        ),
    ];
    for (failure, why, (status, code)) in failures {
        fake.fails(Some(failure));
        for reference in ["v1".to_owned(), manifest.to_string()] {
            let target = format!("/v2/hub/app/manifests/{reference}");
            let reply = client.get(&target).expect(200);
            assert_eq!(Digest::of(&reply.body), manifest);
            let expect =
                format!("299 - \"this may be old: the registry that it is a copy of {why}\"");
            let expect = (reference == "v1").then_some(expect.as_str());
            assert_eq!(reply.header("warning"), expect);
        }
        client
            .get(&format!("/v2/hub/app/blobs/{layer}"))
            .expect(200);
        let tags = client.get("/v2/hub/app/tags/list").expect(200);
        assert_eq!(tags.json()["tags"], json!(["v1"]));
        assert!(tags.header("warning").is_some());
        let subject = format!("/v2/hub/app/referrers/{manifest}");
        let referrers = client.get(&subject).expect(200);
        assert!(referrers.header("warning").is_some());
        // What is not here cannot be had.
        let reply = client.get("/v2/hub/app/manifests/v2").refused(status, code);
        assert_eq!(reply.header("retry-after").is_some(), status == 429);
        let other = Digest::of(b"other");
        let blob = format!("/v2/hub/app/blobs/{other}");
        client.get(&blob).refused(status, code);
        assert_eq!(client.head_of(&blob).status, status);
    }
    // One that limits requests is not asked at all meanwhile.
    fake.asked();
    fake.fails(None);
    client
        .get("/v2/hub/app/manifests/v2")
        .refused(429, "TOOMANYREQUESTS");
    assert_eq!(fake.asked(), [""; 0]);
}

#[test]
fn refusals_are_not_the_clients() {
    let fake = Fake::new();
    let server = in_memory(below("hub", &fake));
    let mut client = Client::new(server.addr);
    fake.fails(Some(UpstreamError::Refused {
        reason: "who are you".to_owned(),
    }));
    let reply = client
        .get("/v2/hub/app/manifests/v1")
        .refused(403, "DENIED");
    assert_eq!(reply.header("www-authenticate"), None);
    let blob = format!("/v2/hub/app/blobs/{}", Digest::of(b"x"));
    client.get(&blob).refused(403, "DENIED");
    client.get("/v2/hub/app/tags/list").refused(403, "DENIED");
}

#[test]
fn what_is_not_there_is_not_asked_for_again_and_again() {
    let check = |absent_age, times: usize| {
        let fake = Fake::new();
        let server = in_memory(PullThrough {
            absent_age,
            tag_age: Duration::ZERO,
            ..below("hub", &fake)
        });
        let mut client = Client::new(server.addr);
        let blob = format!("/v2/hub/app/blobs/{}", Digest::of(b"x"));
        for _ in 0..3 {
            let tag = client.get("/v2/hub/app/manifests/v1");
            tag.refused(404, "MANIFEST_UNKNOWN");
            client.get(&blob).refused(404, "BLOB_UNKNOWN");
        }
        assert_eq!(fake.asked().len(), 2 * times);
        // A tag that is gone is gone here, too.
        let config = fake.blob(b"{}");
        fake.tag("v2", &numbered(&config, 1));
        client.get("/v2/hub/app/manifests/v2").expect(200);
        fake.state().tags.clear();
        client
            .get("/v2/hub/app/manifests/v2")
            .refused(404, "MANIFEST_UNKNOWN");
        fake.is_down();
        let tags = client.get("/v2/hub/app/tags/list").expect(200);
        assert_eq!(tags.json()["tags"], json!([]));
    };
    check(LONG, 1);
    check(Duration::ZERO, 3);
}

#[test]
fn ranges_of_what_is_not_here() {
    on_all(|fake, server| {
        let layer = noise(400_000, 5);
        let digest = fake.blob(&layer);
        let target = format!("/v2/hub/app/blobs/{digest}");
        let mut client = Client::new(server.addr);
        let range = [("Range", "bytes=390000-")];
        let reply = client.send("GET", &target, &range, b"").expect(206);
        assert!(reply.body == layer[390_000..]);
        assert_eq!(
            reply.header("content-range"),
            Some("bytes 390000-399999/400000")
        );
        let range = [("Range", "bytes=400000-")];
        client
            .send("GET", &target, &range, b"")
            .refused(416, "RANGE_INVALID");
        let etag = format!("\"{digest}\"");
        client
            .send("GET", &target, &[("If-None-Match", &etag)], b"")
            .expect(304);
        assert_eq!(fake.asked(), [format!("blob app {digest}")]);
        // Nobody who asks for the size alone wants the bytes.
        let other = fake.blob(b"");
        let target = format!("/v2/hub/app/blobs/{other}");
        let reply = client.head_of(&target).expect(200);
        assert_eq!(reply.header("content-length"), Some("0"));
        assert_eq!(fake.asked(), [format!("size app {other}")]);
        assert!(client.get(&target).expect(200).body.is_empty());
        assert_eq!(fake.asked(), [format!("blob app {other}")]);
    });
}

#[test]
fn nothing_is_pushed_there_but_dropped() {
    let fake = Fake::new();
    let server = in_memory(below("hub", &fake));
    let (manifest, layer) = image(&fake, "v1", b"layer");
    let mut client = Client::new(server.addr);
    client.get("/v2/hub/app/manifests/v1").expect(200);
    let blob = format!("/v2/hub/app/blobs/{layer}");
    client.get(&blob).expect(200);
    client
        .post("/v2/hub/app/blobs/uploads/")
        .refused(405, "UNSUPPORTED");
    client
        .put_manifest("hub/app", "v2", OCI, b"{}")
        .refused(405, "UNSUPPORTED");
    let id = "/v2/hub/app/blobs/uploads/0f9c-12";
    client.put(id, b"x").refused(405, "UNSUPPORTED");
    client.get(id).refused(405, "UNSUPPORTED");
    // Beside it everything is as always, and what is here can be mounted.
    client.push_blob("team/app", b"{}");
    let mount = format!("/v2/team/app/blobs/uploads/?mount={layer}&from=hub/app");
    client.post(&mount).expect(201);
    fake.asked();
    client.delete(&blob).expect(202);
    client.delete("/v2/hub/app/manifests/v1").expect(202);
    client.get(&blob).expect(200);
    client.get("/v2/hub/app/manifests/v1").expect(200);
    assert_eq!(
        fake.asked(),
        [format!("blob app {layer}"), "manifest app v1".to_owned()]
    );
    client
        .delete(&format!("/v2/hub/app/manifests/{manifest}"))
        .expect(202);
    client.get("/v2/hub/app/manifests/v1").expect(200);
}

#[test]
fn names_belong_to_the_longest_prefix_and_namespaces_to_their_registry() {
    let (hub, ghcr, rest) = (Fake::new(), Fake::new(), Fake::new());
    let mut config = Config::new("");
    let root = PullThrough {
        prefix: None,
        namespaces: vec!["docker.io".to_owned()],
        ..below("x", &rest)
    };
    let mut named = below("mirrors/ghcr", &ghcr);
    named.namespaces = vec!["ghcr.io".to_owned(), "ghcr.lan:5000".to_owned()];
    config.upstreams = vec![root, below("mirrors", &hub), named];
    let storage = Arc::new(MemoryStorage::default());
    let server = RunningServer::start_on(config, storage).unwrap();
    let mut client = Client::new(server.addr);
    let mut check = |target: &str, fake: &Fake, asked: &str, namespace: Option<&str>| {
        let manifest = numbered(&fake.blob(b"{}"), 1);
        fake.tag("v1", &manifest);
        let reply = client.get(target).expect(200);
        assert_eq!(fake.asked(), [asked], "{target}");
        assert_eq!(reply.header("oci-namespace"), namespace);
    };
    check(
        "/v2/mirrors/app/manifests/v1",
        &hub,
        "manifest app v1",
        None,
    );
    check(
        "/v2/mirrors/ghcr/a/manifests/v1",
        &ghcr,
        "manifest a v1",
        None,
    );
    check("/v2/app/manifests/v1", &rest, "manifest app v1", None);
    // Not a part of a name, and the prefix alone is no name there.
    check(
        "/v2/mirrorsx/manifests/v1",
        &rest,
        "manifest mirrorsx v1",
        None,
    );
    check(
        "/v2/mirrors/manifests/v1",
        &rest,
        "manifest mirrors v1",
        None,
    );
    check(
        "/v2/b/manifests/v1?ns=ghcr.io",
        &ghcr,
        "manifest b v1",
        Some("ghcr.io"),
    );
    check(
        "/v2/c/manifests/v1?ns=ghcr.lan%3A5000",
        &ghcr,
        "manifest c v1",
        Some("ghcr.lan:5000"),
    );
    check(
        "/v2/d/manifests/v1?ns=docker.io",
        &rest,
        "manifest d v1",
        Some("docker.io"),
    );
    // One registry's names are never another's.
    let mut client = Client::new(server.addr);
    client
        .get("/v2/app/manifests/v1?ns=quay.io")
        .refused(404, "NAME_UNKNOWN");
    client
        .get("/v2/mirrors/d/manifests/v1?ns=docker.io")
        .refused(404, "NAME_UNKNOWN");
    client
        .post("/v2/team/app/blobs/uploads/")
        .refused(405, "UNSUPPORTED");
    assert!(rest.asked().is_empty() && hub.asked().is_empty());
}

#[test]
fn without_an_upstream_for_them_namespaces_select_nothing() {
    let fake = Fake::new();
    let server = in_memory(below("hub", &fake));
    let mut client = Client::new(server.addr);
    let config = client.push_blob("team/app", b"{}");
    let manifest = numbered(&config, 1);
    client
        .put_manifest("team/app", "v1", OCI, &manifest)
        .expect(201);
    let reply = client
        .get("/v2/team/app/manifests/v1?ns=quay.io")
        .expect(200);
    assert_eq!(reply.header("oci-namespace"), None);
}

#[test]
fn lists_are_the_upstreams() {
    let fake = Fake::new();
    let server = in_memory(below("hub", &fake));
    let config = fake.blob(b"{}");
    let subject = fake.tag("a", &numbered(&config, 1));
    for tag in ["b", "c"] {
        fake.tag(tag, &numbered(&config, 2));
    }
    for number in 0..3 {
        let kind = if number == 0 { "sig" } else { "sbom" };
        let bytes = number.to_string();
        let mut descriptor = Descriptor::of(OCI, bytes.as_bytes());
        descriptor.artifact_type = Some(kind.to_owned());
        fake.state().referrers.push(descriptor);
    }
    let mut client = Client::new(server.addr);
    let page = client.get("/v2/hub/app/tags/list?n=2").expect(200);
    assert_eq!(page.json(), json!({"name": "hub/app", "tags": ["a", "b"]}));
    let next = "</v2/hub/app/tags/list?last=b&n=2>; rel=\"next\"";
    assert_eq!(page.header("link"), Some(next));
    let page = client.get("/v2/hub/app/tags/list?last=b&n=2").expect(200);
    assert_eq!(page.json()["tags"], json!(["c"]));
    fake.asked();
    let target = format!("/v2/hub/app/referrers/{subject}");
    let all = client.get(&target).expect(200).json();
    assert_eq!(all["manifests"].as_array().unwrap().len(), 3);
    let some = client
        .get(&format!("{target}?artifactType=sbom"))
        .expect(200);
    assert_eq!(some.header("oci-filters-applied"), Some("artifactType"));
    assert_eq!(some.json()["manifests"].as_array().unwrap().len(), 2);
    // Asked once; what verifies every pull shall not ask each time.
    assert_eq!(fake.asked(), [format!("referrers app {subject}")]);
}

#[test]
fn what_cannot_be_meant_is_refused_at_the_start() {
    let fake = Fake::new();
    let check = |upstreams: Vec<PullThrough>, read_only: bool, expect: &str| {
        let mut config = Config::new("");
        config.upstreams = upstreams;
        config.read_only = read_only;
        let storage = Arc::new(MemoryStorage::default());
        match RunningServer::start_on(config, storage) {
            Err(error @ ServeError::Upstreams { .. }) => {
                assert_eq!(error.to_string(), expect);
            }
            other => panic!("{other:?}"),
        }
    };
    let prefix = "cannot read other registries through this one:";
    check(
        vec![below("a", &fake), below("a", &fake)],
        false,
        &format!("{prefix} `a` is the prefix of two"),
    );
    let mut other = below("b", &fake);
    other.namespaces = vec!["a".to_owned()];
    check(
        vec![below("a", &fake), other],
        false,
        &format!("{prefix} `a` is the namespace of two"),
    );
    check(
        vec![below("a", &fake)],
        true,
        &format!("{prefix} one that is read-only keeps nothing of them"),
    );
}
