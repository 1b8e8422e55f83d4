//! What every [`CacheStore`] owes, asked of a folder and of a registry; a bucket is asked by the tests of the whole binary,
//! which start a server for it.

use std::sync::Arc;

use registry_client::{Options, Silent};
use registry_server::RunningServer;
use store::Store;
use store::oci::{Descriptor, MediaType};

use super::folder::Folder;
use super::record::SharedRecord;
use super::record::tests::record;
use super::repository::Repository;
use super::{CacheStore, CacheStoreError, EntryName};
use crate::cache::CacheKey;
use crate::remote::Remote;

/// A store to take blobs from and to bring them to.
struct Machine {
    store: Store,
    _root: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let root = tempfile::tempdir().unwrap();
        Machine {
            store: Store::open(root.path()).unwrap(),
            _root: root,
        }
    }

    /// Puts a blob from here there.
    fn send(&self, cache: &dyn CacheStore, bytes: &[u8]) -> Descriptor {
        let blob = self.store.blobs().put(bytes).unwrap();
        let described = Descriptor::new(MediaType::OCI_LAYER, blob.digest(), blob.size());
        let path = self.store.blobs().path(&described.digest);
        cache.put_blob(&described, &path).unwrap();
        described
    }
}

fn suite(cache: &dyn CacheStore) {
    let (sender, receiver) = (Machine::new(), Machine::new());
    cache.prepare().unwrap();

    // Nothing is there before it was put there.
    let first = record(1, b"tar 1");
    let name = EntryName::Record(first.key);
    assert_eq!(cache.entry(&name).unwrap(), None);
    let absent = Descriptor::of(MediaType::OCI_LAYER, b"tar 1");
    assert!(!cache.has_blob(&absent, &[]).unwrap());
    let error = cache.fetch_blob(&absent, receiver.store.blobs());
    assert!(error.unwrap_err().is_damage());

    // What is put there comes back.
    let blob = sender.send(cache, b"tar 1");
    assert!(cache.has_blob(&blob, &[]).unwrap());
    cache.put_entry(&name, &first.encode()).unwrap();
    let bytes = cache.entry(&name).unwrap().unwrap();
    assert_eq!(bytes, first.encode().bytes());
    cache.fetch_blob(&blob, receiver.store.blobs()).unwrap();
    assert_eq!(receiver.store.blobs().has(&blob.digest).unwrap(), Some(5));

    // Twice is as good as once, and an entry is replaced.
    sender.send(cache, b"tar 1");
    let other = SharedRecord {
        created: 17,
        ..record(1, b"tar 1")
    };
    cache.put_entry(&name, &other.encode()).unwrap();
    let bytes = cache.entry(&name).unwrap().unwrap();
    assert_eq!(SharedRecord::decode(bytes, &other.key).unwrap().created, 17);

    // A blob of another size than its record says is not taken.
    let wrong = Descriptor::new(MediaType::OCI_LAYER, blob.digest, 4);
    let elsewhere = Machine::new();
    let error: CacheStoreError = cache
        .fetch_blob(&wrong, elsewhere.store.blobs())
        .unwrap_err();
    assert!(error.is_damage(), "{error}");
    assert!(elsewhere.store.blobs().list().unwrap().is_empty());

    // Many at once lose nothing.
    let keys: Vec<u8> = (10..26).collect();
    std::thread::scope(|scope| {
        for key in &keys {
            let sender = &sender;
            scope.spawn(move || {
                let tar = [*key; 1000];
                sender.send(cache, &tar);
                let record = record(*key, &tar);
                let name = EntryName::Record(record.key);
                cache.put_entry(&name, &record.encode()).unwrap();
            });
        }
    });
    for key in keys {
        let record = record(key, &[key; 1000]);
        let bytes = cache.entry(&EntryName::Record(record.key)).unwrap();
        assert_eq!(
            SharedRecord::decode(bytes.unwrap(), &record.key),
            Ok(record)
        );
    }
    // Records and mounts are told apart.
    let mount = EntryName::Mount(CacheKey([1; 32]).0);
    assert_eq!(cache.entry(&mount).unwrap(), None);
}

#[test]
fn a_folder_does() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a/b");
    // Who only reads needs none.
    let reader = Folder::open(&path).unwrap();
    let name = EntryName::Record(CacheKey([0; 32]));
    assert_eq!(reader.entry(&name).unwrap(), None);
    suite(&Folder::create(&path).unwrap());
    assert!(
        std::fs::read_dir(path.join("tmp"))
            .unwrap()
            .next()
            .is_none()
    );
    // One of a later version is left alone.
    std::fs::write(path.join("longshore-cache"), r#"{"version":2}"#).unwrap();
    let error = Folder::create(&path).unwrap_err();
    assert!(
        matches!(error, CacheStoreError::Version { found: 2, .. }),
        "{error}"
    );
}

#[test]
fn a_repository_does() {
    let server = RunningServer::start_in_memory().unwrap();
    let remote = Remote::new(Box::new(Options::default));
    for name in ["cache", "deep/er/cache:main"] {
        let reference = format!("{}/{name}", server.host()).parse().unwrap();
        suite(&Repository::new(&remote, &reference, Arc::new(Silent)));
    }
    let long = format!("{}/c:{}", server.host(), "t".repeat(80));
    let repository = Repository::new(&remote, &long.parse().unwrap(), Arc::new(Silent));
    let error = repository.entry(&EntryName::Record(CacheKey([0; 32])));
    assert!(matches!(error, Err(CacheStoreError::TagTooLong { .. })));
}
