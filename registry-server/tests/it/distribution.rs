//! Debian's docker-registry (CNCF distribution 2.8) and this server on one folder, in turns.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use registry_server::RunningServer;
use serde_json::json;
use store::oci::{Digest, MediaType};

use crate::client::{Client, noise};
use crate::protocol::manifest_of;

/// docker-registry on a folder; killed when dropped.
pub(crate) struct Distribution {
    child: Child,
    pub(crate) addr: SocketAddr,
    _config: tempfile::TempDir,
}

impl Distribution {
    fn start(root: &Path) -> Distribution {
        Distribution::start_with(root, &json!({}))
    }

    /// One with this configuration of `auth`.
    pub(crate) fn start_with(root: &Path, auth: &serde_json::Value) -> Distribution {
        // It cannot be told to choose a port and say which; one that was free a moment ago does.
        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let addr = free.local_addr().unwrap();
        drop(free);
        let config = tempfile::tempdir().unwrap();
        let path = config.path().join("config.yml");
        let text = json!({
            "version": "0.1",
            "log": {"level": "error", "accesslog": {"disabled": true}},
            "storage": {"filesystem": {"rootdirectory": root}, "delete": {"enabled": true}},
            "http": {"addr": addr.to_string(), "secret": "only of this test"},
            "auth": auth,
        });
        fs::write(&path, text.to_string()).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&path)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed (Debian package docker-registry)");
        let server = Distribution {
            child,
            addr,
            _config: config,
        };
        for _ in 0..1000 {
            if TcpStream::connect(addr).is_ok() {
                return server;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        panic!("docker-registry does not listen on {addr}");
    }
}

impl Drop for Distribution {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

const NAME: &str = "team/app";

/// Pushes a blob the way both servers take it: the location may have a query already.
fn push(client: &mut Client, bytes: &[u8]) -> Digest {
    let digest = Digest::of(bytes);
    let start = client
        .post(&format!("/v2/{NAME}/blobs/uploads/"))
        .expect(202);
    let location = with_digest(&start.location(), &digest);
    let kind = [("Content-Type", "application/octet-stream")];
    client.send("PUT", &location, &kind, bytes).expect(201);
    digest
}

fn with_digest(location: &str, digest: &Digest) -> String {
    let path = match location.find("/v2/") {
        Some(start) => &location[start..],
        None => location,
    };
    let separator = if path.contains('?') { '&' } else { '?' };
    format!("{path}{separator}digest={digest}")
}

/// An image with one layer of noise, under a tag.
fn push_image(client: &mut Client, seed: u64, tag: &str) -> Digest {
    let layer = noise(200_000, seed);
    let config = push(client, format!("{{\"seed\":{seed}}}").as_bytes());
    let digest = push(client, &layer);
    let manifest = manifest_of(&config, &[(&digest, layer.len())]);
    client
        .put_manifest(NAME, tag, MediaType::OCI_MANIFEST, &manifest)
        .expect(201);
    Digest::of(&manifest)
}

/// Everything of the image is there, byte by byte.
fn check_image(client: &mut Client, seed: u64, reference: &str) {
    let accept = [("Accept", MediaType::OCI_MANIFEST)];
    let target = format!("/v2/{NAME}/manifests/{reference}");
    let manifest = client.send("GET", &target, &accept, b"").expect(200);
    assert_eq!(
        manifest.header("content-type"),
        Some(MediaType::OCI_MANIFEST)
    );
    let layer = noise(200_000, seed);
    let parsed = manifest.json();
    assert_eq!(parsed["layers"][0]["digest"], json!(Digest::of(&layer)));
    for (digest, bytes) in [
        (&parsed["layers"][0]["digest"], layer),
        (
            &parsed["config"]["digest"],
            format!("{{\"seed\":{seed}}}").into_bytes(),
        ),
    ] {
        let target = format!("/v2/{NAME}/blobs/{}", digest.as_str().unwrap());
        assert_eq!(client.get(&target).expect(200).body, bytes);
    }
}

fn tags(client: &mut Client) -> Vec<String> {
    let list = client
        .get(&format!("/v2/{NAME}/tags/list"))
        .expect(200)
        .json();
    let mut tags: Vec<String> = serde_json::from_value(list["tags"].clone()).unwrap_or_default();
    tags.sort();
    tags
}

#[test]
fn takes_turns_on_one_folder() {
    let root = tempfile::tempdir().unwrap();

    // distribution begins.
    let theirs = Distribution::start(root.path());
    let mut client = Client::new(theirs.addr);
    push_image(&mut client, 1, "one");
    let gone = push_image(&mut client, 2, "gone");
    push_image(&mut client, 3, "moved");
    let half = noise(300_000, 9);
    let kind = [("Content-Type", "application/octet-stream")];
    let start = client
        .post(&format!("/v2/{NAME}/blobs/uploads/"))
        .expect(202);
    let session = start.location();
    let path = &session[session.find("/v2/").unwrap()..];
    let patched = client
        .send("PATCH", path, &kind, &half[..100_000])
        .expect(202);
    let fresh = client
        .post(&format!("/v2/{NAME}/blobs/uploads/"))
        .expect(202)
        .location();
    drop(theirs);

    // We go on: read everything, finish the upload, change things.
    let ours = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(ours.addr);
    assert_eq!(tags(&mut client), ["gone", "moved", "one"]);
    check_image(&mut client, 1, "one");
    check_image(&mut client, 2, &gone.to_string());
    let session = patched.location();
    let session = &session[session.find("/v2/").unwrap()..];
    assert_eq!(
        client.get(session).expect(204).header("range"),
        Some("0-99999")
    );
    let digest = Digest::of(&half);
    client
        .send(
            "PUT",
            &with_digest(session, &digest),
            &kind,
            &half[100_000..],
        )
        .expect(201);
    let fresh = &fresh[fresh.find("/v2/").unwrap()..];
    client
        .send(
            "PUT",
            &with_digest(fresh, &Digest::of(b"late")),
            &kind,
            b"late",
        )
        .expect(201);
    client
        .delete(&format!("/v2/{NAME}/manifests/{gone}"))
        .expect(202);
    push_image(&mut client, 4, "moved");
    push_image(&mut client, 5, "ours");
    push_image(&mut client, 6, "brief");
    client
        .delete(&format!("/v2/{NAME}/manifests/brief"))
        .expect(202);
    let config = push(&mut client, b"{}");
    let referrer = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": "application/x", "digest": config, "size": 2}, "layers": [],
        "subject": {"mediaType": MediaType::OCI_MANIFEST, "digest": gone, "size": 1}})
    .to_string();
    let referrer_digest = Digest::of(referrer.as_bytes());
    client
        .put_manifest(
            NAME,
            &referrer_digest.to_string(),
            MediaType::OCI_MANIFEST,
            referrer.as_bytes(),
        )
        .expect(201);
    // Of no type that distribution knows, and a session for it to find.
    client
        .put_manifest("other", "odd", "application/vnd.example+json", b"{}")
        .expect(201);
    let left = client
        .post(&format!("/v2/{NAME}/blobs/uploads/"))
        .expect(202)
        .location();
    client
        .send("PATCH", &left, &kind, b"left by us")
        .expect(202);
    drop(client);
    drop(ours);

    // distribution again: our tags, blobs and deletes; its own garbage collector sees nothing odd.
    let theirs = Distribution::start(root.path());
    let mut client = Client::new(theirs.addr);
    assert_eq!(tags(&mut client), ["moved", "one", "ours"]);
    check_image(&mut client, 1, "one");
    check_image(&mut client, 4, "moved");
    check_image(&mut client, 5, "ours");
    let got = client
        .get(&format!("/v2/{NAME}/blobs/{digest}"))
        .expect(200);
    assert_eq!(got.body, half);
    let gone_now = client.get(&format!("/v2/{NAME}/manifests/{gone}"));
    assert_eq!(gone_now.status, 404);
    let catalog = client.get("/v2/_catalog").expect(200).json();
    assert_eq!(catalog["repositories"], json!([NAME]));
    let ours_digest = client.head_of(&format!("/v2/{NAME}/manifests/ours"));
    assert_eq!(ours_digest.status, 404); // 2.8 hides OCI manifests from who does not accept them …
    let accept = [("Accept", MediaType::OCI_MANIFEST)];
    let head = client
        .send("HEAD", &format!("/v2/{NAME}/manifests/ours"), &accept, b"")
        .expect(200);
    let digest_of_ours = head.header("docker-content-digest").unwrap().to_owned();
    client
        .delete(&format!("/v2/{NAME}/manifests/{digest_of_ours}"))
        .expect(202);
    push_image(&mut client, 7, "theirs");
    drop(client);
    drop(theirs);
    let collect = garbage_collect(root.path());
    assert!(
        collect.contains(&format!("{}", Digest::of(&noise(200_000, 5)))),
        "{collect}"
    );

    // And we once more, after its deletes and its garbage collection.
    let ours = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(ours.addr);
    assert_eq!(tags(&mut client), ["moved", "one", "theirs"]);
    check_image(&mut client, 1, "one");
    check_image(&mut client, 4, "moved");
    check_image(&mut client, 7, "theirs");
    client
        .get(&format!("/v2/{NAME}/manifests/{digest_of_ours}"))
        .refused(404, "MANIFEST_UNKNOWN");
    let list = client
        .get(&format!("/v2/{NAME}/referrers/{gone}"))
        .expect(200)
        .json();
    assert_eq!(list["manifests"][0]["digest"], json!(referrer_digest));
    let odd = client.get("/v2/other/manifests/odd").expect(200);
    assert_eq!(
        (odd.header("content-type"), odd.body.as_slice()),
        (Some("application/vnd.example+json"), &b"{}"[..])
    );
    assert_eq!(client.get(&left).expect(204).header("range"), Some("0-9"));
    // A blob that distribution collected is missing, not a fault.
    let collected = format!("/v2/{NAME}/blobs/{}", Digest::of(&noise(200_000, 5)));
    client.get(&collected).refused(404, "BLOB_UNKNOWN");
}

/// distribution's own collector, on the folder alone; what it says.
fn garbage_collect(root: &Path) -> String {
    let config = tempfile::tempdir().unwrap();
    let path = config.path().join("config.yml");
    let text = json!({"version": "0.1", "storage": {"filesystem": {"rootdirectory": root}, "delete": {"enabled": true}}});
    fs::write(&path, text.to_string()).unwrap();
    let out = Command::new("docker-registry")
        .arg("garbage-collect")
        .arg(&path)
        .output()
        .unwrap();
    let said =
        String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{said}");
    said
}
