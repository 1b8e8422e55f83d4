//! The bundled registry, plain and with TLS.

use std::io::Read as _;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry_client::{
    BlobSource, Client, ClientError, ErrorKind, Options, Silent, pull_layers, push_image,
};
use registry_server::{Config, RunningServer, TlsFiles};
use store::Store;
use store::oci::{Descriptor, Digest, DigestAlgorithm, Hasher, MediaType, Reference};

use crate::support::{Counted, amd64, image, noise, options};

fn reference(server: &RunningServer, name: &str) -> Reference {
    format!("{}/{name}", server.host()).parse().unwrap()
}

#[tokio::test]
async fn pushes_mounts_and_pulls() {
    let server = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let layers: Vec<Vec<u8>> = (0..9).map(|seed| noise(seed, 400_000)).collect();
    let mut pushed = image(&layers);
    let first = reference(&server, "team/one:1");
    let report = push_image(&client, &first, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!(
        (report.uploaded, report.mounted, report.existed),
        (10, 0, 0)
    );
    pushed.mount_from = vec!["team/one".to_owned()];
    let second = reference(&server, "team/two:1");
    let report = push_image(&client, &second, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!(
        (report.uploaded, report.mounted, report.existed),
        (0, 10, 0)
    );

    let remote = client.image(&second, &amd64()).await.unwrap();
    assert_eq!(remote.manifest.digest(), report.digest);
    let pulled = pull_layers(
        &client,
        &second,
        remote.layers(),
        Arc::new(Silent),
        |_, _, mut reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        },
    );
    assert!(pulled.await.unwrap() == layers);
    assert_eq!(client.tags(&second).await.unwrap(), ["1"]);
    assert_eq!(
        client.catalog(&server.host()).await.unwrap(),
        ["team/one", "team/two"]
    );
    client.delete_manifest(&second).await.unwrap();
    let error = client.manifest(&second).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
}

/// Counts the connections that are made through it to a server.
fn counted(host: String) -> (String, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let relay = listener.local_addr().unwrap().to_string();
    let count = Arc::<AtomicUsize>::default();
    let counter = Arc::clone(&count);
    std::thread::spawn(move || {
        for client in listener.incoming() {
            counter.fetch_add(1, Ordering::SeqCst);
            let (client, server) = (client.unwrap(), TcpStream::connect(&host).unwrap());
            for (mut from, mut to) in [
                (client.try_clone().unwrap(), server.try_clone().unwrap()),
                (server, client),
            ] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(Shutdown::Write);
                });
            }
        }
    });
    (relay, count)
}

#[tokio::test]
async fn connections_are_used_again() {
    let server = RunningServer::start_in_memory().unwrap();
    let (relay, connections) = counted(server.host());
    let client = Client::new(options()).unwrap();
    let layers: Vec<Vec<u8>> = (0..20).map(|seed| noise(seed, 100_000)).collect();
    let reference: Reference = format!("{relay}/x:1").parse().unwrap();
    let report = push_image(&client, &reference, &image(&layers), Arc::new(Silent))
        .await
        .unwrap();
    assert_eq!(report.uploaded, 21);
    let remote = client.image(&reference, &amd64()).await.unwrap();
    let pulled = pull_layers(
        &client,
        &reference,
        remote.layers(),
        Arc::new(Silent),
        |_, _, mut reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        },
    );
    assert!(pulled.await.unwrap() == layers);
    // Three requests for each blob, and one more to get it back; four blobs at once.
    let made = connections.load(Ordering::SeqCst);
    assert!(made <= 20, "{made} connections for more than 80 requests");
}

#[tokio::test]
async fn blobs_come_into_the_store() {
    let server = RunningServer::start_in_memory().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let client = Client::new(options()).unwrap();
    let reference = reference(&server, "x");
    let bytes = noise(41, 2_000_000);
    let mut hasher = Hasher::new(DigestAlgorithm::Sha512);
    hasher.update(&bytes);
    for digest in [Digest::of(&bytes), hasher.finish()] {
        let descriptor = Descriptor::new(MediaType::OCI_LAYER, digest, bytes.len() as u64);
        let source = BlobSource::Bytes(bytes.clone().into());
        client
            .push_blob(&reference, &descriptor, source, &[], Arc::new(Silent))
            .await
            .unwrap();
        let progress = Arc::new(Counted::default());
        let fetch = || client.fetch_blob(&reference, &descriptor, store.blobs(), progress.clone());
        let fetched = fetch().await.unwrap().unwrap();
        assert_eq!(
            (fetched.digest(), fetched.size()),
            (digest, descriptor.size)
        );
        assert_eq!(
            progress.of(digest),
            Some((descriptor.size, descriptor.size, true))
        );
        assert!(store.blobs().read(&digest, 1 << 30).unwrap() == bytes);
        assert_eq!(fetch().await.unwrap(), None);
    }
    let missing = Descriptor::of(MediaType::OCI_LAYER, b"missing");
    let error = client
        .fetch_blob(&reference, &missing, store.blobs(), Arc::new(Silent))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::NotFound, "{error}");
    assert_eq!(store.blobs().has(&missing.digest).unwrap(), None);
}

#[tokio::test]
async fn wrong_bytes_do_not_come_into_the_store() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let wire = crate::wire::Wire::start(|_, line| line.answer(200, &[], b"other"));
    let client = Client::new(options()).unwrap();
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, b"right");
    let error = client
        .fetch_blob(
            &wire.reference("x"),
            &descriptor,
            store.blobs(),
            Arc::new(Silent),
        )
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
    assert_eq!(store.blobs().list().unwrap(), []);
}

#[tokio::test]
async fn what_was_fetched_before_is_not_fetched_again() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path()).unwrap();
    let bytes = noise(43, 3_000_000);
    let descriptor = Descriptor::of(MediaType::OCI_LAYER, &bytes);
    let begin = |bytes: &[u8]| {
        let mut ingest = store.blobs().resume(&descriptor.digest, descriptor.size);
        ingest.as_mut().unwrap().append(bytes).unwrap();
    };
    let whole = bytes.clone();
    let wire = crate::wire::Wire::start(move |seen, line| {
        let first = seen.header("range").strip_prefix("bytes=");
        match first.map(|range| range.trim_end_matches('-').parse::<usize>().unwrap()) {
            Some(first) => {
                let range = format!("bytes {first}-{}/{}", whole.len() - 1, whole.len());
                line.answer(206, &[("content-range", &range)], &whole[first..])
            }
            None => line.answer(200, &[], &whole),
        }
    });
    let client = Client::new(options()).unwrap();
    let fetch = async |ranges: &[&str]| {
        let before = wire.seen().len();
        let progress = Arc::new(Counted::default());
        let name = wire.reference("x");
        let fetched = client.fetch_blob(&name, &descriptor, store.blobs(), progress.clone());
        let fetched = fetched.await.unwrap().unwrap();
        assert_eq!(fetched.digest(), descriptor.digest);
        assert_eq!(
            progress.of(descriptor.digest),
            Some((descriptor.size, descriptor.size, true))
        );
        let seen = wire.seen();
        let asked: Vec<&str> = seen[before..].iter().map(|s| s.header("range")).collect();
        assert_eq!(asked, ranges);
        store.blobs().remove(&descriptor.digest).unwrap();
    };
    fetch(&[""]).await;
    begin(&bytes[..1_234_567]);
    fetch(&["bytes=1234567-"]).await;
    // All of it was there, but for its name.
    begin(&bytes);
    fetch(&[]).await;
    // What was there is wrong: it is fetched once more from the beginning.
    begin(&bytes[1..2_000_001]);
    fetch(&["bytes=2000000-", ""]).await;
}

#[tokio::test]
async fn referrers_are_listed() {
    let server = RunningServer::start_in_memory().unwrap();
    let client = Client::new(options()).unwrap();
    let reference = reference(&server, "x:1");
    let pushed = image(&[]);
    push_image(&client, &reference, &pushed, Arc::new(Silent))
        .await
        .unwrap();
    let subject = pushed.manifest.descriptor();
    let empty = Descriptor::of(MediaType::OCI_EMPTY, b"{}");
    let source = BlobSource::Bytes(b"{}".as_slice().into());
    client
        .push_blob(&reference, &empty, source, &[], Arc::new(Silent))
        .await
        .unwrap();
    let mut manifest = store::oci::Manifest::image(empty, Vec::new());
    manifest.artifact_type = Some("text/x-note".to_owned());
    manifest.subject = Some(subject.clone());
    let note = store::oci::RawManifest::from(manifest);
    client
        .put_manifest(&reference.with_digest(note.digest()), &note)
        .await
        .unwrap();
    let list = async |kind: Option<&str>| -> Vec<Digest> {
        let found = client
            .referrers(&reference, &subject.digest, kind)
            .await
            .unwrap();
        found.iter().map(|entry| entry.digest).collect()
    };
    assert_eq!(list(None).await, [note.digest()]);
    assert_eq!(list(Some("text/x-note")).await, [note.digest()]);
    assert_eq!(list(Some("text/other")).await, []);
}

fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("testdata/tls")
        .join(name)
}

/// A registry behind TLS, and options under which `registry.test` and `other.test` are it.
fn secure() -> (RunningServer, Options, tempfile::TempDir) {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path());
    config.durable = false;
    config.tls = Some(TlsFiles {
        cert: testdata("server.crt"),
        key: testdata("server.key"),
    });
    let server = RunningServer::start_with(config).unwrap();
    let mut options = options();
    for host in ["registry.test", "other.test"] {
        options
            .addresses
            .insert(host.to_owned(), SocketAddr::from(([127, 0, 0, 1], 0)));
    }
    (server, options, folder)
}

#[tokio::test]
async fn certificates_are_verified() {
    let (server, options, folder) = secure();
    let port = server.addr.port();
    let ping = async |host: &str, change: &dyn Fn(&mut Options)| -> Result<(), ClientError> {
        let mut options = options.clone();
        change(&mut options);
        Client::new(options)
            .unwrap()
            .ping(&format!("{host}:{port}"))
            .await
    };
    let error = ping("registry.test", &|_| {}).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    assert!(error.hint().unwrap().contains("registry.test"), "{error}");
    let trusting = |options: &mut Options| options.ca_files.push(testdata("ca.crt"));
    ping("registry.test", &trusting).await.unwrap();
    let error = ping("other.test", &trusting).await.unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");

    // Docker's folder of certificates, by host and port.
    let certs = folder.path().join("certs.d");
    let own = certs.join(format!("registry.test:{port}"));
    std::fs::create_dir_all(&own).unwrap();
    std::fs::copy(testdata("ca.crt"), own.join("ca.crt")).unwrap();
    let by_folder = |options: &mut Options| options.certs_dirs.push(certs.clone());
    ping("registry.test", &by_folder).await.unwrap();
    assert_eq!(
        ping("other.test", &by_folder).await.unwrap_err().kind(),
        ErrorKind::Tls
    );
    std::fs::write(own.join("broken.crt"), "-----BEGIN CERTIFICATE-----\n!\n").unwrap();
    let error = ping("registry.test", &by_folder).await.unwrap_err();
    assert!(error.to_string().contains("broken.crt"), "{error}");

    // A host named as insecure, with or without its port.
    for listed in ["other.test".to_owned(), format!("other.test:{port}")] {
        ping("other.test", &|options: &mut Options| {
            options.insecure.push(listed.clone());
        })
        .await
        .unwrap();
    }
    // Loopback finds out by itself.
    ping("127.0.0.1", &|_| {}).await.unwrap();
    ping("localhost", &|_| {}).await.unwrap();
}

#[tokio::test]
async fn images_travel_over_http_2() {
    let (server, mut options, _folder) = secure();
    options.ca_files.push(testdata("ca.crt"));
    let client = Client::new(options).unwrap();
    let reference: Reference = format!("registry.test:{}/x:1", server.addr.port())
        .parse()
        .unwrap();
    let layers: Vec<Vec<u8>> = (50..56).map(|seed| noise(seed, 1_500_000)).collect();
    push_image(&client, &reference, &image(&layers), Arc::new(Silent))
        .await
        .unwrap();
    let remote = client.image(&reference, &amd64()).await.unwrap();
    let pulled = pull_layers(
        &client,
        &reference,
        remote.layers(),
        Arc::new(Silent),
        |_, _, mut reader| {
            let mut bytes = Vec::new();
            reader.read_to_end(&mut bytes).map(|_| bytes)
        },
    );
    assert!(pulled.await.unwrap() == layers);
}

#[tokio::test]
async fn plain_http_is_for_listed_hosts_only() {
    let server = RunningServer::start_in_memory().unwrap();
    let mut options = options();
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    options
        .addresses
        .insert("registry.test".to_owned(), address);
    let host = format!("registry.test:{}", server.addr.port());
    let error = Client::new(options.clone())
        .unwrap()
        .ping(&host)
        .await
        .unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Tls, "{error}");
    options.insecure.push("registry.test".to_owned());
    Client::new(options).unwrap().ping(&host).await.unwrap();
}

#[tokio::test]
async fn proxies_are_for_other_machines() {
    let server = RunningServer::start_in_memory().unwrap();
    let wire = crate::wire::Wire::bare(|_, line| line.answer(200, &[], b"{}"));
    let mut options = options();
    options.proxies.http = Some(format!("http://{}", wire.host));
    options.proxies.https = Some(String::new());
    // Nothing listens for https there, so that http is tried, which goes through the proxy.
    let nobody = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    options.addresses.insert("registry.test".to_owned(), nobody);
    options.insecure.push("registry.test".to_owned());
    let client = Client::new(options).unwrap();
    client.ping(&server.host()).await.unwrap();
    assert!(wire.lines().is_empty(), "{:?}", wire.lines());
    client.ping("registry.test").await.unwrap();
    assert_eq!(wire.lines()[0], "GET http://registry.test/v2/");
}
