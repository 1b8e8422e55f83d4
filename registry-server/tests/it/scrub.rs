//! Scrubbing: everything is hashed again, from where it was left, and what has rotted is told.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use object_store::ObjectStoreExt as _;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use registry_server::scrub::{ScrubRules, Scrubber};
use registry_server::storage::RegistryStorage;
use registry_server::storage::disk::DiskStorage;
use registry_server::{Config, RunningServer};
use store::oci::Digest;

use crate::client::Client;
use crate::storage::in_bucket;

fn rules(quarantine: bool) -> ScrubRules {
    ScrubRules {
        every: Duration::from_secs(3600),
        bytes_per_second: u64::MAX,
        quarantine,
    }
}

/// Storage, and what damages a blob there.
type Damage<'a> = &'a dyn Fn(&Digest);

fn on_both(test: impl Fn(&Arc<dyn RegistryStorage>, Damage<'_>)) {
    let root = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(root.path()).unwrap().durable(false);
    let place = |digest: &Digest| {
        let hex = digest.hex();
        format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])
    };
    let storage: Arc<dyn RegistryStorage> = Arc::new(storage);
    test(&storage, &|digest| {
        fs::write(root.path().join(place(digest)), b"rot").unwrap();
    });
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let store = Arc::new(InMemory::new());
    let storage: Arc<dyn RegistryStorage> = Arc::new(in_bucket(Arc::clone(&store) as _, &runtime));
    test(&storage, &|digest| {
        let key = Key::from(format!("team/images/{}", place(digest)));
        runtime.block_on(store.put(&key, "rot".into())).unwrap();
    });
}

#[test]
fn rot_is_found_and_set_aside() {
    on_both(|storage, damage| {
        let server = RunningServer::start_on(Config::new(""), Arc::clone(storage)).unwrap();
        let mut client = Client::new(server.addr);
        let blobs: Vec<Digest> = (0..20).map(|n| client.push_blob("a", &[n; 100])).collect();
        let pass = |quarantine| {
            let scrubber = Scrubber::new(rules(quarantine), Arc::default());
            let mut told = Vec::new();
            let collectable = storage.collectable().unwrap();
            let found = scrubber.pass(collectable, &mut |digest| told.push(*digest));
            let found = found.unwrap();
            assert_eq!(found.damaged, told);
            assert!(found.whole);
            (found.blobs, told)
        };
        assert_eq!(pass(false), (20, Vec::new()));
        damage(&blobs[7]);
        assert_eq!(pass(false), (20, vec![blobs[7]]));
        client
            .head_of(&format!("/v2/a/blobs/{}", blobs[7]))
            .expect(200);
        assert_eq!(pass(true), (20, vec![blobs[7]]));
        client
            .head_of(&format!("/v2/a/blobs/{}", blobs[7]))
            .expect(404);
        client.push_blob("a", &[7; 100]);
        assert_eq!(pass(true), (20, Vec::new()));
    });
}

/// One that is stopped goes on where it was, with another server, too: everything is hashed once, whatever happens.
#[test]
fn goes_on_where_it_was() {
    on_both(|storage, _| {
        let server = RunningServer::start_on(Config::new(""), Arc::clone(storage)).unwrap();
        let mut client = Client::new(server.addr);
        let mut order: Vec<Digest> = (0..20).map(|n| client.push_blob("a", &[n; 100])).collect();
        let collectable = storage.collectable().unwrap();
        // As they are looked at.
        order.sort_by_key(|digest| (digest.bytes()[0], *digest));
        let stop = Arc::new(AtomicBool::new(false));
        let scrubber = Scrubber::new(rules(false), Arc::clone(&stop));
        stop.store(true, Ordering::SeqCst);
        let none = scrubber.pass(collectable, &mut |_| {}).unwrap();
        assert_eq!((none.blobs, none.whole), (0, false));
        stop.store(false, Ordering::SeqCst);
        // As one that was killed after twelve of them leaves it.
        let note = collectable.scrub_note().unwrap().unwrap();
        let mut note: serde_json::Value = serde_json::from_slice(&note).unwrap();
        note["after"] = serde_json::json!(order[11]);
        note["server"] = serde_json::json!("another");
        let note = serde_json::to_vec(&note).unwrap();
        collectable.set_scrub_note(note).unwrap();
        let rest = scrubber.pass(collectable, &mut |_| {}).unwrap();
        assert_eq!((rest.blobs, rest.whole), (8, true));
        // What is written down and makes no sense is as good as nothing.
        collectable.set_scrub_note(b"{".to_vec()).unwrap();
        let all = scrubber.pass(collectable, &mut |_| {}).unwrap();
        assert_eq!((all.blobs, all.whole), (20, true));
    });
}

/// In a server: told in its numbers and in its audit log.
#[test]
fn a_server_scrubs_by_itself() {
    let root = tempfile::tempdir().unwrap();
    let storage = DiskStorage::open(root.path()).unwrap().durable(false);
    let storage: Arc<dyn RegistryStorage> = Arc::new(storage);
    let bad = {
        let server = RunningServer::start_on(Config::new(""), Arc::clone(&storage)).unwrap();
        Client::new(server.addr).push_blob("a", b"good")
    };
    let hex = bad.hex();
    let place = format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]);
    fs::write(root.path().join(place), b"rot").unwrap();
    let mut config = Config::new("");
    config.scrub = Some(rules(false));
    config.metrics = true;
    let audit = root.path().join("audit");
    config.audit = Some(audit.clone());
    let server = RunningServer::start_on(config, storage).unwrap();
    let mut client = Client::new(server.addr);
    // It begins at once, and is through as soon as it says so.
    while !client
        .get("/metrics")
        .expect(200)
        .text()
        .contains("longshore_registry_scrub_passes_total 1")
    {
        std::thread::yield_now();
    }
    let text = client.get("/metrics").expect(200).text();
    assert!(
        text.contains("longshore_registry_scrub_damaged_total 1"),
        "{text}"
    );
    let line = fs::read_to_string(&audit).unwrap();
    let line: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
    assert_eq!(line["action"], "find-damage");
    assert_eq!(line["digest"], bad.to_string());
}
