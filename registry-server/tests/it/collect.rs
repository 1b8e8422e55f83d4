//! Collections of garbage: what goes and what stays, beside pushes, after a kill, and what rot is told.

use std::any::Any;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use http::Method;
use registry_server::collect::{
    CollectError, CollectRules, Collected, Totals, collect, totals, verify,
};
use registry_server::immutable::ImmutableRule;
use registry_server::storage::RegistryStorage;
use registry_server::storage::collectable::{Collectable, Garbage};
use registry_server::storage::disk::DiskStorage;
use registry_server::storage::objects::Pace;
use registry_server::{Config, RunningServer};
use serde_json::{Value, json};
use store::oci::{Digest, MediaType};

use crate::bucket::{Bucket, Fate};
use crate::client::{Client, noise};
use crate::protocol::manifest_of;

const OCI: &str = MediaType::OCI_MANIFEST;

/// Makes everything in a folder look years old, and equally so.
fn age(folder: &Path) {
    let then = SystemTime::UNIX_EPOCH + Duration::from_secs(1_600_000_000);
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            age(&path);
        } else {
            File::open(&path).unwrap().set_modified(then).unwrap();
        }
    }
}

struct Registry {
    server: RunningServer,
    storage: Arc<dyn RegistryStorage>,
    /// Where its files are: a bucket's, too, are files here.
    files: PathBuf,
    /// Whether two digests fit into a name: the small S3 server names files by the whole key.
    long_names: bool,
    /// What has to live as long.
    _keep: Box<dyn Any + Sync>,
}

/// Starts a registry.
type Start = fn() -> Registry;

/// One suite for both.
fn on_both(test: impl Fn(Start)) {
    test(Registry::start);
    test(Registry::in_bucket);
}

/// Of a bucket that nobody pushes to while a collection runs: nothing has to be waited for.
fn alone() -> Pace {
    Pace {
        look: Duration::ZERO,
        wait: Duration::ZERO,
        heartbeat: Duration::from_millis(50),
        // Machines may be slow.
        fence: Duration::from_secs(600),
        dead: Duration::from_millis(500),
        ..Pace::default()
    }
}

impl Registry {
    fn start() -> Registry {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(DiskStorage::open(root.path()).unwrap().durable(false));
        Registry {
            server: RunningServer::start_on(Config::new(""), storage.clone()).unwrap(),
            storage,
            files: root.path().join("docker/registry/v2"),
            long_names: true,
            _keep: Box::new(root),
        }
    }

    fn in_bucket() -> Registry {
        let bucket = Bucket::start();
        let storage = Arc::new(bucket.storage().unwrap().paced(alone()));
        Registry {
            server: RunningServer::start_on(Config::new(""), storage.clone()).unwrap(),
            storage,
            files: bucket.file(""),
            long_names: false,
            _keep: Box::new(bucket),
        }
    }

    fn client(&self) -> Client {
        Client::new(self.server.addr)
    }

    fn collectable(&self) -> &dyn Collectable {
        self.storage.collectable().unwrap()
    }

    fn collect(&self, rules: &CollectRules) -> Collected {
        collect(self.collectable(), rules).unwrap()
    }

    fn totals(&self) -> Totals {
        totals(self.collectable()).unwrap()
    }

    fn data(&self, digest: &Digest) -> PathBuf {
        let hex = digest.hex();
        let place = format!("blobs/{}/{}/{hex}/data", digest.algorithm(), &hex[..2]);
        self.files.join(place)
    }
}

/// The files below a folder.
fn count_files(folder: &Path) -> usize {
    let Ok(entries) = fs::read_dir(folder) else {
        return 0;
    };
    let count = |path: PathBuf| match path.is_dir() {
        true => count_files(&path),
        false => 1,
    };
    entries.map(|entry| count(entry.unwrap().path())).sum()
}

/// An image whose layer holds `text`, under a tag or by its digest only.
fn push(client: &mut Client, name: &str, tag: Option<&str>, text: &str) -> Digest {
    let config = client.push_blob(name, format!("{{\"of\":\"{text}\"}}").as_bytes());
    let layer = client.push_blob(name, text.as_bytes());
    let manifest = manifest_of(&config, &[(&layer, text.len())]);
    let digest = Digest::of(&manifest);
    let reference = tag.map_or_else(|| digest.to_string(), str::to_owned);
    client
        .put_manifest(name, &reference, OCI, &manifest)
        .expect(201);
    digest
}

fn untagged_too() -> CollectRules {
    CollectRules {
        untagged: true,
        ..CollectRules::default()
    }
}

#[test]
fn only_what_nothing_needs_goes() {
    on_both(|start| {
        // What is pushed, by which rules, and the numbers of tags, manifests, links and blobs that go.
        let check = |push: &dyn Fn(&mut Client), rules: CollectRules, expected: [u64; 4]| {
            let registry = start();
            let mut client = registry.client();
            push(&mut client);
            let young = registry.collect(&rules);
            assert_eq!(young, Collected::default(), "all of it is young");
            age(&registry.files);
            let before = registry.totals();
            let dry = registry.collect(&CollectRules {
                dry_run: true,
                ..rules.clone()
            });
            assert_eq!(registry.totals(), before);
            let found = registry.collect(&rules);
            assert_eq!(found, dry);
            let counts = [found.tags, found.manifests, found.links, found.blobs];
            assert_eq!(counts, expected);
            let after = registry.totals();
            assert_eq!(before.bytes - after.bytes, found.bytes);
            assert_eq!(
                registry.collect(&rules),
                Collected::default(),
                "once is enough"
            );
            // What stays is whole.
            for name in ["a", "b"] {
                let tags = client.get(&format!("/v2/{name}/tags/list"));
                if tags.status != 200 {
                    continue;
                }
                for tag in tags.json()["tags"].as_array().unwrap() {
                    pull(&mut client, name, tag.as_str().unwrap());
                }
            }
        };
        let default = CollectRules::default;
        check(&|_| {}, default(), [0, 0, 0, 0]);
        let one = |client: &mut Client| {
            push(client, "a", Some("t"), "one");
        };
        check(&one, untagged_too(), [0, 0, 0, 0]);
        // A blob that no manifest names: its link and its data.
        let lone = |client: &mut Client| {
            push(client, "a", Some("t"), "one");
            client.push_blob("a", b"lone");
        };
        check(&lone, default(), [0, 0, 1, 1]);
        // … that another repository's names.
        let shared = |client: &mut Client| {
            push(client, "a", Some("t"), "one");
            client.push_blob("b", b"one");
        };
        check(&shared, default(), [0, 0, 1, 0]);
        // A manifest without a tag keeps what it names, unless it goes itself.
        let untagged = |client: &mut Client| {
            push(client, "a", Some("t"), "one");
            push(client, "a", None, "two");
        };
        check(&untagged, default(), [0, 0, 0, 0]);
        check(&untagged, untagged_too(), [0, 1, 2, 3]);
        // A tag that moved on.
        let moved = |client: &mut Client| {
            push(client, "a", Some("t"), "one");
            push(client, "a", Some("t"), "two");
        };
        check(&moved, untagged_too(), [0, 1, 2, 3]);
        // An index keeps its manifests, a subject what refers to it, and both the other way round do not.
        let family = |client: &mut Client| {
            let child = push(client, "a", None, "child");
            let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": [{"mediaType": OCI, "digest": child, "size": 1}]})
            .to_string();
            client
                .put_manifest("a", "index", MediaType::OCI_INDEX, index.as_bytes())
                .expect(201);
            for (subject, text) in [(child, "of child"), (Digest::of(b"nobody"), "of nobody")] {
                let config = client.push_blob("a", text.as_bytes());
                let referrer = json!({"schemaVersion": 2, "mediaType": OCI, "layers": [],
                "config": {"mediaType": "application/x", "digest": config, "size": text.len()},
                "subject": {"mediaType": OCI, "digest": subject, "size": 1}})
                .to_string();
                let digest = Digest::of(referrer.as_bytes()).to_string();
                client
                    .put_manifest("a", &digest, OCI, referrer.as_bytes())
                    .expect(201);
            }
        };
        if start().long_names {
            check(&family, default(), [0, 0, 0, 0]);
            check(&family, untagged_too(), [0, 1, 1, 2]);
        }
        // Tags by rules.
        let many = |client: &mut Client| {
            for tag in ["v1", "pr-1", "pr-2", "pr-3"] {
                push(client, "a", Some(tag), tag);
            }
            push(client, "b", Some("pr-1"), "of b");
        };
        let rule = |text: &str| CollectRules {
            retention: vec![text.parse().unwrap()],
            ..untagged_too()
        };
        let registry = start();
        many(&mut registry.client());
        age(&registry.files);
        let found = registry.collect(&rule("repository=a,tag=pr-*,last=1"));
        assert_eq!((found.tags, found.manifests, found.blobs), (2, 2, 6));
        let list = registry.client().get("/v2/a/tags/list").expect(200).json();
        // Of equally old ones the last by name stays.
        assert_eq!(list["tags"], json!(["pr-3", "v1"]));
        registry.client().get("/v2/b/manifests/pr-1").expect(200);
    });
}

/// Everything of an image is there, byte by byte.
fn pull(client: &mut Client, name: &str, reference: &str) {
    let manifest = client
        .get(&format!("/v2/{name}/manifests/{reference}"))
        .expect(200)
        .json();
    if let Some(children) = manifest["manifests"].as_array() {
        for child in children {
            pull(client, name, child["digest"].as_str().unwrap());
        }
        return;
    }
    let layers = manifest["layers"].as_array().unwrap();
    for link in layers.iter().chain([&manifest["config"]]) {
        let digest = link["digest"].as_str().unwrap();
        let blob = client
            .get(&format!("/v2/{name}/blobs/{digest}"))
            .expect(200);
        assert_eq!(Digest::of(&blob.body).to_string(), digest);
    }
}

/// Collections that spare nothing run one after the other beside pushes: a push may be told that a blob is gone, and
/// tries again; what was acknowledged is whole, at once and at the end.
#[test]
fn acknowledged_pushes_survive_collections_beside_them() {
    const THREADS: usize = 3;
    const IMAGES: usize = 12;
    const COLLECTIONS: usize = 30;
    let registry = Registry::start();
    let rules = CollectRules {
        grace: Duration::ZERO,
        ..untagged_too()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for _ in 0..COLLECTIONS {
                registry.collect(&rules);
            }
        });
        for thread in 0..THREADS {
            let registry = &registry;
            scope.spawn(move || {
                let mut client = registry.client();
                let name = format!("r{}", thread % 2);
                for image in 0..IMAGES {
                    let tag = format!("t{thread}-{image}");
                    push_until_taken(&mut client, &name, &tag, image, COLLECTIONS);
                    pull(&mut client, &name, &tag);
                }
            });
        }
    });
    let mut client = registry.client();
    for thread in 0..THREADS {
        for image in 0..IMAGES {
            pull(
                &mut client,
                &format!("r{}", thread % 2),
                &format!("t{thread}-{image}"),
            );
        }
    }
    assert_eq!(
        count_files(&registry.files.join("_gc")),
        0,
        "no notes are left"
    );
}

/// As clients do: look whether a blob is there, push it if not, and begin again if the manifest is refused, or something
/// took longer than collections wait.
fn push_until_taken(client: &mut Client, name: &str, tag: &str, image: usize, refusals: usize) {
    let config = format!("{{\"tag\":\"{tag}\"}}").into_bytes();
    // Shared by many.
    let layer = noise(3000, (image % 4) as u64);
    let manifest = manifest_of(&Digest::of(&config), &[(&Digest::of(&layer), layer.len())]);
    // Its two blobs may each be taken away twice: the link, then the data.
    let mut refused = 0;
    while refused <= 4 * refusals {
        for bytes in [&config, &layer] {
            let digest = Digest::of(bytes);
            if client.head_of(&format!("/v2/{name}/blobs/{digest}")).status == 404 {
                let target = format!("/v2/{name}/blobs/uploads/?digest={digest}");
                while client.send("POST", &target, &[], bytes).status == 503 {}
            }
        }
        let put = client.put_manifest(name, tag, OCI, &manifest);
        match put.status {
            201 => return,
            503 => {}
            _ => {
                put.refused(404, "MANIFEST_BLOB_UNKNOWN");
                refused += 1;
            }
        }
    }
    panic!("{tag} was refused more often than anything was collected");
}

/// The same on a bucket: pushes by two replicas, collections by a third.
#[test]
fn acknowledged_pushes_survive_collections_by_another_replica() {
    const IMAGES: usize = 12;
    const COLLECTIONS: usize = 3;
    let bucket = Bucket::start();
    let pace = Pace {
        look: Duration::from_millis(100),
        request: Duration::from_secs(3),
        wait: Duration::from_millis(3200),
        ..Pace::default()
    };
    let replicas = [bucket.paced_replica(pace), bucket.paced_replica(pace)];
    let collector = bucket.storage().unwrap().paced(pace);
    let rules = CollectRules {
        grace: Duration::ZERO,
        ..untagged_too()
    };
    let mut removed = 0_u64;
    let collected = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (thread, replica) in replicas.iter().enumerate() {
            let collected = &collected;
            scope.spawn(move || {
                let mut client = Client::new(replica.addr);
                let name = format!("r{}", thread % 2);
                // As long as anything is collected, and a few more.
                for image in 0.. {
                    let tag = format!("t{thread}-{image}");
                    // Tagged, and then not any more: garbage for the next collection.
                    push_until_taken(&mut client, &name, "moves", image, COLLECTIONS);
                    push_until_taken(&mut client, &name, &tag, image, COLLECTIONS);
                    pull(&mut client, &name, &tag);
                    if image >= IMAGES && collected.load(Ordering::SeqCst) == COLLECTIONS {
                        return;
                    }
                    let gone = format!("/v2/{name}/manifests/{tag}");
                    if image % 3 == 0 {
                        client.delete(&gone).expect(202);
                    }
                }
            });
        }
        let all = (0..COLLECTIONS).map(|_| collect(&collector, &rules));
        let all: Result<Vec<Collected>, CollectError> = all.collect();
        // Also if one failed: nobody is to wait for it.
        collected.store(COLLECTIONS, Ordering::SeqCst);
        let all = all.unwrap().into_iter();
        removed = all
            .map(|done| done.manifests + done.links + done.blobs)
            .sum();
    });
    assert!(removed > 0, "there was garbage");
    for (thread, replica) in replicas.iter().enumerate() {
        let mut client = Client::new(replica.addr);
        let name = format!("r{thread}");
        let list = client.get(&format!("/v2/{name}/tags/list")).expect(200);
        let list = list.json();
        let tags = list["tags"].as_array().unwrap();
        assert!(tags.len() > IMAGES / 2);
        for tag in tags {
            pull(&mut client, &name, tag.as_str().unwrap());
        }
    }
    // A note may have come after the end; the next one sweeps it away.
    collect(&collector, &rules).unwrap();
    for left in ["running", "used", "condemned"] {
        assert_eq!(count_files(&bucket.file("_gc").join(left)), 0, "{left}");
    }
}

/// From any of its requests on a collector gets no answer any more, as if it were killed there.
#[test]
fn a_collector_that_ends_anywhere_leaves_a_registry() {
    let image = |client: &mut Client, tag: Option<&str>, text: &str| push(client, "a", tag, text);
    let mut last = 0;
    // Each round gets further; one of them gets to the end. Every third, or it takes a minute.
    for round in (0..).step_by(3) {
        let bucket = Bucket::start();
        let pace = Pace {
            dead: Duration::from_millis(100),
            ..alone()
        };
        let storage = Arc::new(bucket.storage().unwrap().paced(pace));
        let server = RunningServer::start_on(Config::new(""), storage.clone()).unwrap();
        let mut client = Client::new(server.addr);
        image(&mut client, Some("kept"), "one");
        image(&mut client, None, "two");
        image(&mut client, Some("old-1"), "three");
        client.push_blob("a", b"lone");
        age(&bucket.file(""));
        let rules = CollectRules {
            retention: vec!["tag=old-*,last=0".parse().unwrap()],
            ..untagged_too()
        };
        // Requests that change something are where it matters.
        let (changes, left) = (AtomicUsize::new(0), round);
        bucket.decide(move |method, _| {
            let looks = matches!(*method, Method::GET | Method::HEAD);
            let count = match looks {
                true => changes.load(Ordering::SeqCst),
                false => changes.fetch_add(1, Ordering::SeqCst) + 1,
            };
            match count.cmp(&(left + 1)) {
                std::cmp::Ordering::Less => Fate::Pass,
                // The last one may have been carried out, or not.
                std::cmp::Ordering::Equal if !looks && left % 2 == 0 => Fate::Lost,
                _ => Fate::Refused(403),
            }
        });
        let ended = collect(&*storage, &rules);
        bucket.decide(|_, _| Fate::Pass);
        let tags = client.get("/v2/a/tags/list").expect(200).json();
        let tags: Vec<&str> = tags["tags"]
            .as_array()
            .unwrap()
            .iter()
            .map(|tag| tag.as_str().unwrap())
            .collect();
        assert!(tags.contains(&"kept"), "round {round}");
        for tag in tags {
            pull(&mut client, "a", tag);
        }
        // The next one takes over, and nothing is left of either.
        collect(&*storage, &rules).unwrap();
        let left = totals(&*storage).unwrap();
        assert_eq!(
            (left.tags, left.manifests, left.links, left.blobs),
            (1, 1, 2, 3),
            "round {round}"
        );
        for left in ["running", "used", "condemned"] {
            assert_eq!(
                count_files(&bucket.file("_gc").join(left)),
                0,
                "{left}, round {round}"
            );
        }
        pull(&mut client, "a", "kept");
        last = round;
        if ended.is_ok() {
            break;
        }
    }
    assert!(last > 10, "only {last} places to end at were tried");
}

/// A list that fails, or of which only a part comes, ends a collection before anything is taken for garbage.
#[test]
fn lists_that_are_cut_cost_nothing() {
    let bucket = Bucket::start();
    let storage = Arc::new(bucket.storage().unwrap().paced(alone()));
    let server = RunningServer::start_on(Config::new(""), storage.clone()).unwrap();
    let mut client = Client::new(server.addr);
    push(&mut client, "a", Some("t"), "one");
    push(&mut client, "a", Some("u"), "two");
    push(&mut client, "b/c", Some("t"), "one");
    age(&bucket.file(""));
    let before = totals(&*storage).unwrap();
    for fate in [Fate::Refused(403), Fate::Half] {
        // The list that fares so, until there are no more.
        for wrong in 0.. {
            let lists = Arc::new(AtomicUsize::new(0));
            let counted = Arc::clone(&lists);
            bucket.decide(move |_, path| {
                let is_list = path.contains("list-type=2");
                match is_list && counted.fetch_add(1, Ordering::SeqCst) == wrong {
                    true => fate,
                    false => Fate::Pass,
                }
            });
            let collected = collect(&*storage, &untagged_too());
            bucket.decide(|_, _| Fate::Pass);
            assert_eq!(totals(&*storage).unwrap(), before, "{fate:?} {wrong}");
            if lists.load(Ordering::SeqCst) <= wrong {
                assert!(wrong > 8, "only {wrong} lists");
                assert_eq!(collected.unwrap(), Collected::default());
                break;
            }
        }
    }
    // The first connection may have been idle for longer than one may be.
    let mut client = Client::new(server.addr);
    for (name, tag) in [("a", "t"), ("a", "u"), ("b/c", "t")] {
        pull(&mut client, name, tag);
    }
}

/// What refers to a manifest is found in a bucket, too; nothing ages in memory, so nothing is young.
#[test]
fn referrers_in_a_bucket_stay_with_their_subject() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(object_store::memory::InMemory::new());
    let storage = crate::storage::in_bucket(store, &runtime).paced(alone());
    let storage = Arc::new(storage);
    let server = RunningServer::start_on(Config::new(""), storage.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let subject = push(&mut client, "a", Some("t"), "subject");
    for (of, text) in [(subject, "of it"), (Digest::of(b"nobody"), "of nobody")] {
        let config = client.push_blob("a", text.as_bytes());
        let referrer = json!({"schemaVersion": 2, "mediaType": OCI, "layers": [],
            "config": {"mediaType": "application/x", "digest": config, "size": text.len()},
            "subject": {"mediaType": OCI, "digest": of, "size": 1}})
        .to_string();
        let digest = Digest::of(referrer.as_bytes()).to_string();
        let put = client.put_manifest("a", &digest, OCI, referrer.as_bytes());
        put.expect(201);
    }
    let rules = CollectRules {
        grace: Duration::ZERO,
        ..untagged_too()
    };
    // The second one reads from memory what the first one read.
    for expected in [(1, 1, 2), (0, 0, 0)] {
        let found = collect(&*storage, &rules).unwrap();
        assert_eq!((found.manifests, found.links, found.blobs), expected);
    }
    let list = client
        .get(&format!("/v2/a/referrers/{subject}"))
        .expect(200);
    assert_eq!(list.json()["manifests"].as_array().unwrap().len(), 1);
    pull(&mut client, "a", "t");
}

/// What did not change is not read again.
#[test]
fn a_collection_of_a_bucket_reads_only_what_is_new() {
    let bucket = Bucket::start();
    let storage = Arc::new(bucket.storage().unwrap().paced(alone()));
    let server = RunningServer::start_on(Config::new(""), storage.clone()).unwrap();
    let mut client = Client::new(server.addr);
    for number in 0..5 {
        push(
            &mut client,
            "a",
            Some(&format!("t{number}")),
            &number.to_string(),
        );
    }
    let reads = || {
        bucket.requests();
        collect(&*storage, &untagged_too()).unwrap();
        let requests = bucket.requests();
        let count = |part: &str| requests.iter().filter(|line| line.contains(part)).count();
        (count("/data"), count("/current/link"), requests.len())
    };
    let (manifests, tags, all) = reads();
    assert_eq!((manifests, tags), (5, 5));
    let (manifests, _, fewer) = reads();
    assert_eq!(manifests, 0);
    // For each a link and its data were read.
    assert!(fewer <= all - 2 * 5, "{fewer} of {all}");
    push(&mut client, "a", Some("t0"), "new");
    assert_eq!(reads().0, 1);
}

/// The rule by the last pull, as it is known to both.
#[test]
fn tags_that_are_pulled_stay() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        for tag in ["by-tag", "by-digest", "looked-at", "never"] {
            push(&mut client, "a", Some(tag), tag);
        }
        age(&registry.files);
        let target = |reference: &str| format!("/v2/a/manifests/{reference}");
        client.get(&target("by-tag")).expect(200);
        let digest = client.head_of(&target("by-digest")).expect(200);
        let digest = digest.header("docker-content-digest").unwrap().to_owned();
        client.get(&target(&digest)).expect(200);
        client.head_of(&target("looked-at")).expect(200);
        let rules = CollectRules {
            retention: vec!["pulled=30d".parse().unwrap()],
            ..untagged_too()
        };
        let found = registry.collect(&rules);
        assert_eq!((found.tags, found.manifests), (2, 2));
        let list = client.get("/v2/a/tags/list").expect(200).json();
        assert_eq!(list["tags"], json!(["by-digest", "by-tag"]));
        // A pull is as old as any other file.
        age(&registry.files);
        assert_eq!(registry.collect(&rules).tags, 2);
        let left = registry.totals();
        assert_eq!((left.manifests, left.blobs), (0, 0));
    });
}

/// What a removed tag leaves in a bucket goes too, once it is old.
#[test]
fn nothing_is_left_of_removed_tags() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        push(&mut client, "a", Some("t"), "one");
        push(&mut client, "a", Some("gone"), "one");
        client.delete("/v2/a/manifests/gone").expect(202);
        registry.collect(&untagged_too());
        age(&registry.files);
        assert_eq!(registry.collect(&untagged_too()), Collected::default());
        let tags = registry.files.join("repositories/a/_manifests/tags");
        assert_eq!(count_files(&tags.join("gone")), 0);
        pull(&mut client, "a", "t");
    });
}

#[test]
fn what_is_relied_on_since_the_announcement_stays() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        let old = push(&mut client, "a", None, "old");
        let lone = client.push_blob("a", b"lone");
        age(&registry.files);
        let announced = registry.collectable().announce().unwrap().unwrap();
        // Only one at a time.
        assert!(matches!(
            collect(registry.collectable(), &untagged_too()),
            Err(CollectError::Running)
        ));
        // Pushed again by digest, and named by a new manifest, while a collection has made up its mind.
        let manifest = manifest_of(&lone, &[]);
        client.put_manifest("a", "new", OCI, &manifest).expect(201);
        let bytes = client
            .get(&format!("/v2/a/manifests/{old}"))
            .expect(200)
            .body;
        client
            .put_manifest("a", &old.to_string(), OCI, &bytes)
            .expect(201);
        let name = registry_server::routes::RepositoryName::parse("a").unwrap();
        let stays = [
            Garbage::Tag(name.clone(), "new".to_owned(), Some(Digest::of(&manifest))),
            Garbage::Manifest(name.clone(), old, None),
            Garbage::Link(name, lone),
            Garbage::Data(lone),
            Garbage::Data(Digest::of(b"old")),
        ];
        let removed = announced.remove(&stays).unwrap();
        assert_eq!(removed, [false; 5]);
        drop(announced);
        pull(&mut client, "a", "new");
        pull(&mut client, "a", &old.to_string());
    });
}

#[test]
fn a_killed_collection_is_taken_over() {
    let registry = Registry::start();
    let mut client = registry.client();
    push(&mut client, "a", Some("t"), "one");
    client.push_blob("a", b"lone");
    age(&registry.files);
    // What one leaves that ends at any point: its announcement, and notes.
    let gc = registry.files.join("_gc");
    fs::create_dir_all(gc.join("used")).unwrap();
    fs::write(gc.join("running"), "").unwrap();
    let note = format!("sha256-{}", Digest::of(b"lone").hex());
    fs::write(gc.join("used").join(note), "").unwrap();
    // A note keeps what it names once more; then it is gone with the rest.
    assert_eq!(registry.collect(&untagged_too()), Collected::default());
    assert_eq!(registry.collect(&untagged_too()).blobs, 1);
    pull(&mut client, "a", "t");
}

#[test]
fn uploads_and_half_pushes_are_spared_while_young() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        let location = client.post("/v2/a/blobs/uploads/").expect(202).location();
        client.send("PATCH", &location, &[], b"half").expect(202);
        let blob = client.push_blob("a", b"no manifest yet");
        assert_eq!(registry.collect(&untagged_too()), Collected::default());
        client.get(&location).expect(204);
        client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
        // Asked for by a push, an old blob is young again.
        age(&registry.files);
        client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
        let found = registry.collect(&untagged_too());
        assert_eq!((found.links, found.blobs, found.uploads), (0, 0, 1));
        client.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
        client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
    });
}

#[test]
fn rot_is_found_set_aside_and_pushed_again() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        push(&mut client, "a", Some("t"), "layer");
        let layer = Digest::of(b"layer");
        let all = verify(registry.collectable(), false).unwrap();
        assert_eq!((all.good, all.damaged.len()), (3, 0));
        fs::write(registry.data(&layer), b"lbyer").unwrap();
        let found = verify(registry.collectable(), false).unwrap();
        assert_eq!((found.good, found.damaged.as_slice()), (2, &[layer][..]));
        let place = format!("/v2/a/blobs/{layer}");
        client.head_of(&place).expect(200);
        verify(registry.collectable(), true).unwrap();
        client.head_of(&place).expect(404);
        client.push_blob("a", b"layer");
        pull(&mut client, "a", "t");
        let again = verify(registry.collectable(), true).unwrap();
        assert_eq!((again.good, again.damaged.len()), (3, 0));
    });
}

#[test]
fn a_manifest_that_cannot_be_read_keeps_the_blobs_of_its_repository() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        let damaged = push(&mut client, "a", Some("t"), "one");
        client.push_blob("a", b"perhaps its own");
        push(&mut client, "b", Some("t"), "two");
        client.push_blob("b", b"lone");
        fs::write(registry.data(&damaged), b"{").unwrap();
        age(&registry.files);
        let found = registry.collect(&untagged_too());
        assert_eq!(found.damaged, [format!("a@{damaged}")]);
        assert_eq!((found.manifests, found.links, found.blobs), (0, 1, 1));
        client
            .head_of(&format!("/v2/a/blobs/{}", Digest::of(b"perhaps its own")))
            .expect(200);
        client
            .head_of(&format!("/v2/b/blobs/{}", Digest::of(b"lone")))
            .expect(404);
    });
}

#[test]
fn counts_what_there_is() {
    on_both(|start| {
        let registry = start();
        assert_eq!(registry.totals(), Totals::default());
        let mut client = registry.client();
        push(&mut client, "a", Some("t"), "one");
        push(&mut client, "a", Some("u"), "two");
        push(&mut client, "b/c", Some("t"), "one");
        let found = registry.totals();
        let expected = Totals {
            repositories: 2,
            tags: 3,
            manifests: 3,
            links: 6,
            blobs: 6,
            bytes: found.bytes,
        };
        assert_eq!(found, expected);
    });
}

/// Rules of a server remove tags, but none that is immutable, and whoever looks later finds which, and that it was they.
#[test]
fn what_a_server_collects_is_written_down() {
    let root = tempfile::tempdir().unwrap();
    let log = root.path().join("audit");
    let mut config = Config::new(root.path().join("data"));
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut client = Client::new(server.addr);
    for tag in ["pr-1", "pr-kept", "v1"] {
        push(&mut client, "a", Some(tag), tag);
    }
    let digest = client.head_of("/v2/a/manifests/pr-1").expect(200);
    let digest = digest.header("docker-content-digest").unwrap().to_owned();
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client.send("PATCH", &session, &[], b"half").expect(202);
    drop((client, server));
    age(root.path());
    config.limits.upload_age_max = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    config.audit = Some(log.clone());
    config.immutable = vec![ImmutableRule {
        repositories: vec!["*".to_owned()],
        tags: vec!["*-kept".to_owned()],
    }];
    let rules = CollectRules {
        retention: vec!["tag=pr-*,within=1h".parse().unwrap()],
        ..untagged_too()
    };
    config.collect = Some((Duration::from_millis(10), rules));
    let server = RunningServer::start_with(config).unwrap();
    let written = || fs::read_to_string(&log).unwrap();
    while written().lines().count() < 2 {
        std::thread::yield_now();
    }
    let lines: Vec<Value> = written()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let told: Vec<_> = lines
        .iter()
        .map(|line| ["action", "repository", "reference", "digest", "via"].map(|key| &line[key]))
        .collect();
    let (tag, manifest) = (("delete-tag", "pr-1"), ("delete-manifest", digest.as_str()));
    let expect =
        [tag, manifest].map(|(action, reference)| [action, "a", reference, digest.as_str(), "gc"]);
    assert_eq!(told, expect);
    let mut client = Client::new(server.addr);
    for tag in ["v1", "pr-kept"] {
        client.get(&format!("/v2/a/manifests/{tag}")).expect(200);
    }
    client
        .get("/v2/a/manifests/pr-1")
        .refused(404, "MANIFEST_UNKNOWN");
    // The next collection begins when this one is over, which keeps uploads as long as the server does.
    push(&mut client, "a", Some("pr-2"), "pr-2");
    age(&root.path().join("data"));
    while written().lines().count() < 4 {
        std::thread::yield_now();
    }
    client.get(&session).expect(204);
}

/// Nobody has to ask for it: a server drops uploads that nobody goes on with, in a folder and in a bucket.
#[test]
fn servers_drop_abandoned_uploads_by_themselves() {
    on_both(|start| {
        let registry = start();
        let mut client = registry.client();
        let location = client.post("/v2/a/blobs/uploads/").expect(202).location();
        client.send("PATCH", &location, &[], b"half").expect(202);
        let young = RunningServer::start_on(Config::new(""), Arc::clone(&registry.storage));
        drop(young.unwrap());
        client.get(&location).expect(204);
        let mut config = Config::new("");
        config.limits.upload_age_max = Duration::ZERO;
        let server = RunningServer::start_on(config, Arc::clone(&registry.storage)).unwrap();
        while client.get(&location).status != 404 {
            std::thread::yield_now();
        }
        drop(server);
    });
}
