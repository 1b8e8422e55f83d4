//! Several replicas on one bucket, over a small S3 server in this process.
//!
//! `s3s-fs` looks at conditions and writes one after the other, but not as one: its front door here lets requests that
//! change something in alone. It keeps a file for each object whose name is the object's in base64, so names are short.

use std::convert::Infallible;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Method, header};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use registry_client::BucketOptions;
use registry_server::quota::QuotaRule;
use registry_server::storage::objects::ObjectStorage;
use registry_server::storage::{RegistryStorage, StorageError};
use registry_server::{Config, RunningServer};
use s3s::service::{S3Service, S3ServiceBuilder};
use serde_json::json;
use store::oci::{Digest, MediaType};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::RwLock;

use crate::client::{Client, noise};
use crate::protocol::{manifest_of, numbered};

const OCI: &str = MediaType::OCI_MANIFEST;

/// What the front door does with conditions.
#[derive(Clone, Copy)]
enum Conditions {
    Kept,
    /// As stores that do not know them.
    Ignored,
}

/// An S3 server on a folder, on loopback; ends with its runtime.
struct Bucket {
    runtime: Runtime,
    endpoint: String,
    folder: tempfile::TempDir,
}

impl Bucket {
    fn start(conditions: Conditions) -> Bucket {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let service = S3ServiceBuilder::new(files).build();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        runtime.spawn(serve(listener, service, conditions));
        Bucket {
            runtime,
            endpoint,
            folder,
        }
    }

    fn storage(&self) -> Result<ObjectStorage, StorageError> {
        let client = registry_client::Client::new(registry_client::Options::default()).unwrap();
        let options = BucketOptions {
            bucket: "images".to_owned(),
            region: None,
            endpoint: Some(self.endpoint.clone()),
            credentials: None,
            path_style: true,
        };
        let bucket = self.runtime.block_on(client.bucket(&options)).unwrap();
        ObjectStorage::open(bucket.store(), "", self.runtime.handle().clone())
    }

    /// A registry of its own on the bucket.
    fn replica(&self) -> RunningServer {
        let storage = Arc::new(self.storage().unwrap());
        RunningServer::start_on(Config::new(""), storage).unwrap()
    }

    fn file(&self, key: &str) -> std::path::PathBuf {
        let base = self.folder.path().join("images/docker/registry/v2");
        base.join(Path::new(key))
    }
}

async fn serve(listener: TcpListener, service: S3Service, conditions: Conditions) {
    let door = Arc::new(RwLock::new(()));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (service, door) = (service.clone(), Arc::clone(&door));
        let handle = service_fn(move |mut request: http::Request<Incoming>| {
            let (service, door) = (service.clone(), Arc::clone(&door));
            async move {
                if matches!(conditions, Conditions::Ignored) {
                    forget_conditions(request.headers_mut());
                }
                let request = request.map(s3s::Body::from);
                let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
                    let _shared = door.read().await;
                    service.call(request).await
                } else {
                    let _alone = door.write().await;
                    service.call(request).await
                };
                Ok::<_, Infallible>(answer.expect("s3s answers whatever it is asked"))
            }
        });
        tokio::spawn(async move {
            let connections = auto::Builder::new(TokioExecutor::new());
            // A client that hangs up is no concern of a server.
            let _ = connections
                .serve_connection(TokioIo::new(stream), handle)
                .await;
        });
    }
}

fn forget_conditions(headers: &mut HeaderMap) {
    headers.remove(header::IF_MATCH);
    headers.remove(header::IF_NONE_MATCH);
}

#[test]
fn three_replicas_are_one_registry() {
    let bucket = Bucket::start(Conditions::Kept);
    let replicas: Vec<RunningServer> = (0..3).map(|_| bucket.replica()).collect();
    let mut clients: Vec<Client> = replicas.iter().map(|r| Client::new(r.addr)).collect();

    // Each request of an upload goes to another replica, and parts are longer and shorter than the bucket's.
    let bytes = noise(19_000_000, 1);
    let digest = Digest::of(&bytes);
    let location = clients[0]
        .post("/v2/a/blobs/uploads/")
        .expect(202)
        .location();
    for (index, (start, end)) in [
        (0, 9_000_000),
        (9_000_000, 9_000_001),
        (9_000_001, 12_345_678),
    ]
    .into_iter()
    .enumerate()
    {
        let range = format!("{start}-{}", end - 1);
        let client = &mut clients[(index + 1) % 3];
        let patched = client
            .send(
                "PATCH",
                &location,
                &[("Content-Range", &range)],
                &bytes[start..end],
            )
            .expect(202);
        let told = format!("0-{}", end - 1);
        assert_eq!(patched.header("range"), Some(told.as_str()));
        for client in &mut clients {
            let status = client.get(&location).expect(204);
            assert_eq!(status.header("range"), Some(told.as_str()));
        }
    }
    clients[2]
        .send("PATCH", &location, &[("Content-Range", "0-3")], b"late")
        .refused(416, "RANGE_INVALID");
    clients[1]
        .put(&format!("{location}?digest={digest}"), &bytes[12_345_678..])
        .expect(201);

    let config = clients[2].push_blob("a", b"{}");
    let manifest = manifest_of(&config, &[(&digest, bytes.len())]);
    clients[0]
        .put_manifest("a", "t", OCI, &manifest)
        .expect(201);
    for client in &mut clients {
        client.get(&location).refused(404, "BLOB_UPLOAD_UNKNOWN");
        assert_eq!(client.get("/v2/a/manifests/t").expect(200).body, manifest);
        let place = format!("/v2/a/blobs/{digest}");
        assert_eq!(client.get(&place).expect(200).body, bytes);
        let part = client
            .send("GET", &place, &[("Range", "bytes=8388600-8388615")], b"")
            .expect(206);
        assert_eq!(part.body, bytes[8_388_600..=8_388_615]);
        let tags = client.get("/v2/a/tags/list").expect(200).json();
        assert_eq!(tags["tags"], json!(["t"]));
        let names = client.get("/v2/_catalog").expect(200).json();
        assert_eq!(names["repositories"], json!(["a"]));
    }
    // Seen at once by all.
    clients[1].delete("/v2/a/manifests/t").expect(202);
    for client in &mut clients {
        client
            .get("/v2/a/manifests/t")
            .refused(404, "MANIFEST_UNKNOWN");
        let tags = client.get("/v2/a/tags/list").expect(200).json();
        assert_eq!(tags["tags"], json!([]));
    }
    // Nothing of the sessions is left.
    assert!(
        !bucket
            .file(&format!("repositories/a/_uploads/{location}"))
            .exists()
    );
}

/// Each replica's clients read a counter, and write the next number if no other has: none is lost.
#[test]
fn tags_are_swapped_across_replicas() {
    let bucket = Bucket::start(Conditions::Kept);
    let replicas: Vec<RunningServer> = (0..3).map(|_| bucket.replica()).collect();
    let mut client = Client::new(replicas[0].addr);
    let config = client.push_blob("a", b"{}");
    let target = "/v2/a/manifests/n";
    let kind = ("Content-Type", OCI);
    client
        .send(
            "PUT",
            target,
            &[kind, ("If-None-Match", "*")],
            &numbered(&config, 0),
        )
        .expect(201);
    let swapped = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for replica in &replicas {
            let (swapped, config) = (&swapped, &config);
            scope.spawn(move || {
                let mut client = Client::new(replica.addr);
                for _ in 0..8 {
                    let now = client.get(target).expect(200);
                    let number = now.json()["annotations"]["number"]
                        .as_str()
                        .unwrap()
                        .to_owned();
                    let etag = now.header("etag").unwrap().to_owned();
                    let next = numbered(config, number.parse::<usize>().unwrap() + 1);
                    let put = client.send("PUT", target, &[kind, ("If-Match", &etag)], &next);
                    if put.status == 201 {
                        swapped.fetch_add(1, Ordering::Relaxed);
                    } else {
                        put.refused(412, "PRECONDITION_FAILED");
                    }
                }
            });
        }
    });
    let last = client.get(target).expect(200).json();
    let last: usize = last["annotations"]["number"]
        .as_str()
        .unwrap()
        .parse()
        .unwrap();
    assert_eq!(last, swapped.load(Ordering::Relaxed));
    assert!(last >= 8, "somebody always gets on: {last}");
}

/// One replica deletes what a tag was on by digest, while another moves the tag on: the new one stays.
#[test]
fn deletes_never_take_what_another_replica_just_pushed() {
    const ROUNDS: usize = 12;
    let bucket = Bucket::start(Conditions::Kept);
    let replicas: Vec<RunningServer> = (0..3).map(|_| bucket.replica()).collect();
    let mut client = Client::new(replicas[0].addr);
    let config = client.push_blob("a", b"{}");
    client
        .put_manifest("a", "t", OCI, &numbered(&config, 0))
        .expect(201);
    for round in 1..ROUNDS {
        let (old, new) = (numbered(&config, round - 1), numbered(&config, round));
        std::thread::scope(|scope| {
            scope.spawn(|| {
                let mut client = Client::new(replicas[1].addr);
                let target = format!("/v2/a/manifests/{}", Digest::of(&old));
                client.delete(&target).expect(202);
            });
            client.put_manifest("a", "t", OCI, &new).expect(201);
        });
        let mut third = Client::new(replicas[2].addr);
        assert_eq!(third.get("/v2/a/manifests/t").expect(200).body, new);
    }
}

/// Two replicas that were given the same upload at once: what one wrote, the other does not write over.
#[test]
fn uploads_do_not_mix() {
    let bucket = Bucket::start(Conditions::Kept);
    let (one, two) = (bucket.storage().unwrap(), bucket.storage().unwrap());
    let name = registry_server::routes::RepositoryName::parse("a").unwrap();
    let id = one.create_upload(&name).unwrap();
    let first = one.upload(&name, &id).unwrap().unwrap();
    let second = two.upload(&name, &id).unwrap().unwrap();
    first.write_at(b"first", 0).unwrap();
    second.write_at(b"second one", 0).unwrap();
    first.flush().unwrap();
    second.flush().unwrap_err();
    let found = two.upload(&name, &id).unwrap().unwrap();
    let mut buffer = [0; 16];
    assert_eq!(
        (
            found.size().unwrap(),
            found.read_at(&mut buffer, 0).unwrap()
        ),
        (5, 5)
    );
    assert_eq!(&buffer[..5], b"first");
}

#[test]
fn buckets_that_ignore_conditions_are_found_out() {
    let bucket = Bucket::start(Conditions::Ignored);
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let config = client.push_blob("a", b"{}");
    let target = "/v2/a/manifests/t";
    let condition = [("Content-Type", OCI), ("If-None-Match", "*")];
    client
        .send("PUT", target, &condition, &numbered(&config, 1))
        .refused(405, "UNSUPPORTED");
    client.get(target).refused(404, "MANIFEST_UNKNOWN");
    let one = numbered(&config, 1);
    client.put_manifest("a", "t", OCI, &one).expect(201);
    client
        .delete(&format!("/v2/a/manifests/{}", Digest::of(&one)))
        .expect(202);
    client.get(target).refused(404, "MANIFEST_UNKNOWN");
}

#[test]
fn damage_in_the_bucket_is_told_and_never_served() {
    let bucket = Bucket::start(Conditions::Kept);
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let config = client.push_blob("a", b"{}");
    let manifest = numbered(&config, 1);
    client.put_manifest("a", "t", OCI, &manifest).expect(201);
    let hex = Digest::of(&manifest).hex();
    let data = bucket.file(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]));
    let mut damaged = manifest.clone();
    damaged[20] ^= 1;
    std::fs::write(&data, &damaged).unwrap();
    client.get("/v2/a/manifests/t").refused(500, "UNKNOWN");
    std::fs::write(&data, vec![b' '; 5_000_000]).unwrap();
    client.get("/v2/a/manifests/t").refused(500, "UNKNOWN");
    std::fs::write(&data, &manifest).unwrap();
    assert_eq!(client.get("/v2/a/manifests/t").expect(200).body, manifest);
    let link = bucket.file("repositories/a/_manifests/tags/t/current/link");
    for text in ["../../../x", "sha256:00", &"x".repeat(10_000)] {
        std::fs::write(&link, text).unwrap();
        client.get("/v2/a/manifests/t").refused(500, "UNKNOWN");
    }
}

#[test]
fn a_bucket_that_is_gone_is_a_503() {
    let bucket = Bucket::start(Conditions::Kept);
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    client.push_blob("a", b"{}");
    // The folder stays; what is asked of it fails.
    std::fs::remove_dir_all(bucket.folder.path().join("images")).unwrap();
    std::fs::write(bucket.folder.path().join("images"), "no folder").unwrap();
    let refused = client.post("/v2/a/blobs/uploads/");
    assert_eq!(refused.header("retry-after"), Some("2"));
    refused.refused(503, "UNKNOWN");
}

/// A quota is kept by all replicas together.
#[test]
fn replicas_keep_a_quota_together() {
    let bucket = Bucket::start(Conditions::Kept);
    let start = || {
        let mut config = Config::new("");
        config.quotas = vec![QuotaRule {
            repositories: vec!["team/*".to_owned()],
            bytes: 10_000,
        }];
        let storage = Arc::new(bucket.storage().unwrap());
        RunningServer::start_on(config, storage).unwrap()
    };
    crate::limits::keep_a_quota_together(&[start(), start(), start()]);
}
