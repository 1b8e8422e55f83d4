//! Collections of garbage: what goes and what stays, beside pushes, after a kill, and what rot is told.

use std::fs::{self, File};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use registry_server::collect::{
    CollectError, CollectRules, Collected, Totals, collect, totals, verify,
};
use registry_server::storage::collectable::{Collectable, Garbage};
use registry_server::storage::disk::DiskStorage;
use registry_server::{Config, RunningServer};
use serde_json::json;
use store::oci::{Digest, MediaType};

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
    root: tempfile::TempDir,
    storage: Arc<DiskStorage>,
    server: RunningServer,
}

impl Registry {
    fn start() -> Registry {
        let root = tempfile::tempdir().unwrap();
        let storage = Arc::new(DiskStorage::open(root.path()).unwrap().durable(false));
        let server = RunningServer::start_on(Config::new(""), storage.clone()).unwrap();
        Registry {
            root,
            storage,
            server,
        }
    }

    fn client(&self) -> Client {
        Client::new(self.server.addr)
    }

    fn collect(&self, rules: &CollectRules) -> Collected {
        collect(&*self.storage, rules).unwrap()
    }

    fn data(&self, digest: &Digest) -> std::path::PathBuf {
        let hex = digest.hex();
        let blobs = self.root.path().join("docker/registry/v2/blobs");
        blobs.join(format!("{}/{}/{hex}/data", digest.algorithm(), &hex[..2]))
    }
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
    // What is pushed, by which rules, and the numbers of tags, manifests, links and blobs that go.
    let check = |push: &dyn Fn(&mut Client), rules: CollectRules, expected: [u64; 4]| {
        let registry = Registry::start();
        let mut client = registry.client();
        push(&mut client);
        let young = registry.collect(&rules);
        assert_eq!(young, Collected::default(), "all of it is young");
        age(registry.root.path());
        let before = totals(&*registry.storage).unwrap();
        let dry = registry.collect(&CollectRules {
            dry_run: true,
            ..rules.clone()
        });
        assert_eq!(totals(&*registry.storage).unwrap(), before);
        let found = registry.collect(&rules);
        assert_eq!(found, dry);
        let counts = [found.tags, found.manifests, found.links, found.blobs];
        assert_eq!(counts, expected);
        let after = totals(&*registry.storage).unwrap();
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
    check(&family, default(), [0, 0, 0, 0]);
    check(&family, untagged_too(), [0, 1, 1, 2]);
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
    let registry = Registry::start();
    many(&mut registry.client());
    age(registry.root.path());
    let found = registry.collect(&rule("repository=a,tag=pr-*,last=1"));
    assert_eq!((found.tags, found.manifests, found.blobs), (2, 2, 6));
    let list = registry.client().get("/v2/a/tags/list").expect(200).json();
    // Of equally old ones the last by name stays.
    assert_eq!(list["tags"], json!(["pr-3", "v1"]));
    registry.client().get("/v2/b/manifests/pr-1").expect(200);
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
    let gc = registry.root.path().join("docker/registry/v2/_gc");
    assert_eq!(fs::read_dir(gc).unwrap().count(), 0, "no notes are left");
}

/// As clients do: look whether a blob is there, push it if not, and begin again if the manifest is refused.
fn push_until_taken(client: &mut Client, name: &str, tag: &str, image: usize, refusals: usize) {
    let config = format!("{{\"tag\":\"{tag}\"}}").into_bytes();
    // Shared by many.
    let layer = noise(3000, (image % 4) as u64);
    let manifest = manifest_of(&Digest::of(&config), &[(&Digest::of(&layer), layer.len())]);
    // Its two blobs may each be taken away twice: the link, then the data.
    for _ in 0..=4 * refusals {
        for bytes in [&config, &layer] {
            let place = format!("/v2/{name}/blobs/{}", Digest::of(bytes));
            if client.head_of(&place).status == 404 {
                client.push_blob(name, bytes);
            }
        }
        let put = client.put_manifest(name, tag, OCI, &manifest);
        if put.status == 201 {
            return;
        }
        put.refused(404, "MANIFEST_BLOB_UNKNOWN");
    }
    panic!("{tag} was refused more often than anything was collected");
}

#[test]
fn what_is_relied_on_since_the_announcement_stays() {
    let registry = Registry::start();
    let mut client = registry.client();
    let old = push(&mut client, "a", None, "old");
    let lone = client.push_blob("a", b"lone");
    age(registry.root.path());
    let announced = registry.storage.announce().unwrap().unwrap();
    // Only one at a time.
    assert!(matches!(
        collect(&*registry.storage, &untagged_too()),
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
        Garbage::Manifest(name.clone(), old, None),
        Garbage::Link(name, lone),
        Garbage::Data(lone),
        Garbage::Data(Digest::of(b"old")),
    ];
    let removed = registry.storage.remove_garbage(&stays).unwrap();
    assert_eq!(removed, [false; 4]);
    drop(announced);
    pull(&mut client, "a", "new");
    pull(&mut client, "a", &old.to_string());
}

#[test]
fn a_killed_collection_is_taken_over() {
    let registry = Registry::start();
    let mut client = registry.client();
    push(&mut client, "a", Some("t"), "one");
    client.push_blob("a", b"lone");
    age(registry.root.path());
    // What one leaves that ends at any point: its announcement, and notes.
    let gc = registry.root.path().join("docker/registry/v2/_gc");
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
    let registry = Registry::start();
    let mut client = registry.client();
    let location = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client.send("PATCH", &location, &[], b"half").expect(202);
    let blob = client.push_blob("a", b"no manifest yet");
    assert_eq!(registry.collect(&untagged_too()), Collected::default());
    client.get(&location).expect(204);
    client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
    // Asked for by a push, an old blob is young again.
    age(registry.root.path());
    client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
    let found = registry.collect(&untagged_too());
    assert_eq!((found.links, found.blobs, found.uploads), (0, 0, 1));
    client.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
    client.head_of(&format!("/v2/a/blobs/{blob}")).expect(200);
}

#[test]
fn rot_is_found_set_aside_and_pushed_again() {
    let registry = Registry::start();
    let mut client = registry.client();
    push(&mut client, "a", Some("t"), "layer");
    let layer = Digest::of(b"layer");
    let all = verify(&*registry.storage, false).unwrap();
    assert_eq!((all.good, all.damaged.len()), (3, 0));
    fs::write(registry.data(&layer), b"lbyer").unwrap();
    let found = verify(&*registry.storage, false).unwrap();
    assert_eq!((found.good, found.damaged.as_slice()), (2, &[layer][..]));
    let place = format!("/v2/a/blobs/{layer}");
    client.head_of(&place).expect(200);
    verify(&*registry.storage, true).unwrap();
    client.head_of(&place).expect(404);
    client.push_blob("a", b"layer");
    pull(&mut client, "a", "t");
    let again = verify(&*registry.storage, true).unwrap();
    assert_eq!((again.good, again.damaged.len()), (3, 0));
}

#[test]
fn a_manifest_that_cannot_be_read_keeps_the_blobs_of_its_repository() {
    let registry = Registry::start();
    let mut client = registry.client();
    let damaged = push(&mut client, "a", Some("t"), "one");
    client.push_blob("a", b"perhaps its own");
    push(&mut client, "b", Some("t"), "two");
    client.push_blob("b", b"lone");
    fs::write(registry.data(&damaged), b"{").unwrap();
    age(registry.root.path());
    let found = registry.collect(&untagged_too());
    assert_eq!(found.damaged, [format!("a@{damaged}")]);
    assert_eq!((found.manifests, found.links, found.blobs), (0, 1, 1));
    client
        .head_of(&format!("/v2/a/blobs/{}", Digest::of(b"perhaps its own")))
        .expect(200);
    client
        .head_of(&format!("/v2/b/blobs/{}", Digest::of(b"lone")))
        .expect(404);
}

#[test]
fn counts_what_there_is() {
    let registry = Registry::start();
    assert_eq!(totals(&*registry.storage).unwrap(), Totals::default());
    let mut client = registry.client();
    push(&mut client, "a", Some("t"), "one");
    push(&mut client, "a", Some("u"), "two");
    push(&mut client, "b/c", Some("t"), "one");
    let found = totals(&*registry.storage).unwrap();
    let expected = Totals {
        repositories: 2,
        tags: 3,
        manifests: 3,
        links: 6,
        blobs: 6,
        bytes: found.bytes,
    };
    assert_eq!(found, expected);
}
