//! Registries copied from folder to bucket and back: whole, verified, again and again.

use std::fs;
use std::sync::Arc;

use object_store::memory::InMemory;
use registry_server::collect::totals;
use registry_server::migrate::{Migrated, migrate};
use registry_server::storage::collectable::Collectable;
use registry_server::storage::disk::DiskStorage;
use registry_server::storage::{RegistryStorage, TagCondition};
use registry_server::{Config, RunningServer};
use serde_json::json;
use store::oci::{Digest, MediaType};

use crate::client::{Client, noise};
use crate::protocol::manifest_of;
use crate::storage::in_bucket;

const OCI: &str = MediaType::OCI_MANIFEST;

fn serve(storage: &Arc<impl RegistryStorage>) -> (RunningServer, Client) {
    let server = RunningServer::start_on(Config::new(""), Arc::clone(storage) as _).unwrap();
    let client = Client::new(server.addr);
    (server, client)
}

fn push(client: &mut Client, name: &str, tag: &str, layer: &[u8]) -> Digest {
    let config = client.push_blob(name, format!("{{\"of\":\"{tag}\"}}").as_bytes());
    let digest = client.push_blob(name, layer);
    let manifest = manifest_of(&config, &[(&digest, layer.len())]);
    client.put_manifest(name, tag, OCI, &manifest).expect(201);
    Digest::of(&manifest)
}

#[test]
fn a_registry_goes_to_a_bucket_and_back() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let first = Arc::new(DiskStorage::open(one.path()).unwrap().durable(false));
    let bucket = Arc::new(in_bucket(Arc::new(InMemory::new()), &runtime));
    let second = Arc::new(DiskStorage::open(two.path()).unwrap().durable(false));
    let copy = |from: &dyn Collectable, to: &dyn RegistryStorage, dry_run| {
        let mut names = Vec::new();
        let mut done = |name: &_, _: &Migrated| names.push(format!("{name}"));
        let migrated = migrate(from, to, runtime.handle(), dry_run, &mut done).unwrap();
        assert_eq!(names, ["a", "b/c"]);
        migrated
    };
    let (_serving, mut client) = serve(&first);
    // Longer than a part of an upload; shared; of another algorithm; a subject; a type that nothing tells; a removed tag.
    let large = noise(9_000_000, 1);
    let image = push(&mut client, "a", "old", &large);
    push(&mut client, "b/c", "t", &large);
    let mut hasher = store::oci::Hasher::new(store::oci::DigestAlgorithm::Sha512);
    hasher.update(b"another");
    let sha512 = hasher.finish();
    let target = format!("/v2/a/blobs/uploads/?digest={sha512}");
    client.send("POST", &target, &[], b"another").expect(201);
    let config = client.push_blob("a", b"signature");
    let referrer = json!({"schemaVersion": 2, "mediaType": OCI, "layers": [],
        "config": {"mediaType": "application/x", "digest": config, "size": 9},
        "subject": {"mediaType": OCI, "digest": image, "size": 1}})
    .to_string();
    client
        .put_manifest("a", "signature", OCI, referrer.as_bytes())
        .expect(201);
    push(&mut client, "a", "gone", b"gone");
    client.delete("/v2/a/manifests/gone").expect(202);
    client.post("/v2/a/blobs/uploads/").expect(202);

    let told = copy(&*first, &*bucket, true);
    let before = totals(&*bucket).unwrap();
    assert_eq!(before.blobs, 0, "nothing was copied");
    let done = copy(&*first, &*bucket, false);
    assert_eq!(done, told);
    assert_eq!((done.tags, done.manifests, done.damaged.len()), (3, 4, 0));
    let expected = totals(&*first).unwrap();
    assert_eq!(totals(&*bucket).unwrap(), expected);
    // Once is enough; what came since comes with the next.
    let again = copy(&*first, &*bucket, false);
    assert_eq!((again.blobs, again.manifests, again.tags), (0, 0, 0));
    push(&mut client, "a", "old", b"newer");
    let since = copy(&*first, &*bucket, false);
    assert_eq!((since.blobs, since.manifests, since.tags), (1, 1, 1));

    copy(&*bucket, &*second, false);
    assert_eq!(totals(&*second).unwrap(), totals(&*first).unwrap());
    let (_other, mut copied) = serve(&second);
    for place in [
        "/v2/a/manifests/old".to_owned(),
        "/v2/b/c/manifests/t".to_owned(),
        format!("/v2/a/blobs/{sha512}"),
        format!("/v2/a/blobs/{}", Digest::of(&large)),
        format!("/v2/a/referrers/{image}"),
    ] {
        let (here, there) = (
            client.get(&place).expect(200),
            copied.get(&place).expect(200),
        );
        assert_eq!(here.body, there.body, "{place}");
        assert_eq!(here.header("content-type"), there.header("content-type"));
    }
    let tags = copied.get("/v2/a/tags/list").expect(200).json();
    assert_eq!(tags["tags"], json!(["old", "signature"]));
    let uploads = two
        .path()
        .join("docker/registry/v2/repositories/a/_uploads");
    assert!(!uploads.exists() || fs::read_dir(uploads).unwrap().next().is_none());
}

/// What is damaged is not copied, nor is what needs it; everything else is.
#[test]
fn what_is_damaged_stays_behind() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let root = tempfile::tempdir().unwrap();
    let from = Arc::new(DiskStorage::open(root.path()).unwrap().durable(false));
    let (_serving, mut client) = serve(&from);
    push(&mut client, "a", "good", b"good");
    let bad = push(&mut client, "a", "bad", b"rotten");
    let hex = Digest::of(b"rotten").hex();
    let data = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    fs::write(root.path().join(data), b"rotton").unwrap();
    let to = in_bucket(Arc::new(InMemory::new()), &runtime);
    let done = migrate(&*from, &to, runtime.handle(), false, &mut |_, _| {}).unwrap();
    assert_eq!((done.blobs, done.manifests, done.tags), (3, 1, 1));
    let rotten = Digest::of(b"rotten");
    let expected = [
        format!("a@{rotten}"),
        format!("a@{bad}"),
        "a:bad".to_owned(),
    ];
    assert_eq!(done.damaged, expected);
    // Put right, it comes with the next.
    let name = registry_server::routes::RepositoryName::parse("a").unwrap();
    from.remove_blob(&name, &rotten).unwrap();
    let data = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    fs::remove_file(root.path().join(data)).unwrap();
    client.push_blob("a", b"rotten");
    let done = migrate(&*from, &to, runtime.handle(), false, &mut |_, _| {}).unwrap();
    assert_eq!(
        (done.blobs, done.manifests, done.tags, done.damaged.len()),
        (1, 1, 1, 0)
    );
    assert!(
        to.set_tag(&name, "bad", &bad, &TagCondition::on(bad))
            .unwrap()
    );
}
