//! What every [`CacheStore`] owes, asked of a folder, a registry and a bucket.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use registry_client::{Options, Silent};
use registry_server::RunningServer;
use store::Store;
use store::oci::{Descriptor, MediaType};

use super::bucket::Bucket;
use super::folder::Folder;
use super::record::SharedRecord;
use super::record::tests::record;
use super::repository::Repository;
use super::{CacheStore, CacheStoreError, EntryName, hint};
use crate::cache::CacheKey;
use crate::remote::Remote;
use crate::request::SecretText;
use crate::request::cache::BucketSettings;

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
    // Records, mounts and hints are told apart.
    for other in [EntryName::Mount([1; 32]), EntryName::Hint([1; 32])] {
        assert_eq!(cache.entry(&other).unwrap(), None);
    }
    let hint = hint::encode(&[first.key]);
    cache.put_entry(&EntryName::Hint([1; 32]), &hint).unwrap();
    let bytes = cache.entry(&EntryName::Hint([1; 32])).unwrap();
    assert_eq!(hint::decode(bytes.unwrap()), Ok(vec![first.key]));
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

/// A server that speaks Amazon's S3, in memory. It ends with its owner.
struct S3 {
    server: Child,
    host: String,
}

impl S3 {
    fn start() -> S3 {
        let program = std::env::var_os("LONGSHORE_TEST_S3").unwrap_or("moto_server".into());
        let mut server = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", "0"])
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .expect("moto is installed, and LONGSHORE_TEST_S3 names it: `./test` sees to both");
        let mut says = BufReader::new(server.stderr.take().unwrap());
        // It says which port the kernel chose, once it answers there.
        let host = loop {
            let mut line = String::new();
            assert_ne!(says.read_line(&mut line).unwrap(), 0, "it ended");
            if let Some((_, host)) = line.split_once("Running on http://") {
                break host.trim().to_owned();
            }
        };
        // It tells of every request, and waits where nobody listens. Ends with the server.
        std::thread::spawn(move || std::io::copy(&mut says, &mut std::io::sink()));
        S3 { server, host }
    }

    fn make_bucket(&self, name: &str) {
        let mut stream = TcpStream::connect(&self.host).unwrap();
        let host = &self.host;
        let request = format!(
            "PUT /{name} HTTP/1.1\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.contains(" 200 "), "{answer}");
    }
}

impl Drop for S3 {
    fn drop(&mut self) {
        self.server.kill().unwrap();
        self.server.wait().unwrap();
    }
}

#[test]
fn a_bucket_does() {
    let server = S3::start();
    server.make_bucket("cache");
    let remote = Remote::new(Box::new(Options::default));
    let settings = BucketSettings {
        bucket: "cache".to_owned(),
        region: None,
        endpoint_url: Some(format!("http://{}", server.host)),
        access_key_id: Some("a".to_owned()),
        secret_access_key: Some(SecretText(b"b".to_vec())),
        session_token: None,
        prefix: String::new(),
        name: "one".to_owned(),
        use_path_style: true,
    };
    // Caches below different prefixes, or of different names, share nothing.
    for (prefix, name) in [("", "one"), ("deep/er", "one"), ("", "two")] {
        let settings = BucketSettings {
            prefix: prefix.to_owned(),
            name: name.to_owned(),
            ..settings.clone()
        };
        suite(&Bucket::new(&remote, &settings).unwrap());
    }
    // A bucket that is not there has nothing to be read, and cannot be written.
    let nowhere = BucketSettings {
        bucket: "nowhere".to_owned(),
        ..settings
    };
    let nowhere = Bucket::new(&remote, &nowhere).unwrap();
    let record = record(1, b"tar");
    let name = EntryName::Record(record.key);
    assert_eq!(nowhere.entry(&name).unwrap(), None);
    let error = nowhere.put_entry(&name, &record.encode()).unwrap_err();
    assert!(matches!(error, CacheStoreError::Bucket(_)), "{error}");
}
