//! Clients that are sent to the bucket for blobs: raw HTTP, skopeo.

use std::net::SocketAddr;

use store::oci::Digest;

use crate::bucket::Bucket;
use crate::client::{Client, noise};
use crate::tools::{run, write_layout};

/// Where a URL leads: whom to ask, and for what.
fn parts(url: &str) -> (SocketAddr, String) {
    let rest = url.strip_prefix("http://").unwrap();
    let (host, path) = rest.split_once('/').unwrap();
    (host.parse().unwrap(), format!("/{path}"))
}

#[test]
fn large_blobs_come_from_the_bucket() {
    let bucket = Bucket::with_keys();
    let server = bucket.redirecting_replica();
    let mut client = Client::new(server.addr);
    let bytes = noise(200_000, 1);
    let large = client.push_blob("a", &bytes);
    let small = client.push_blob("a", b"small");
    let place = format!("/v2/a/blobs/{large}");
    let range = [
        ("Range", "bytes=100000-100009"),
        ("Authorization", "Bearer secret"),
    ];
    let sent = client.send("GET", &place, &range, b"").expect(307);
    assert!(sent.body.is_empty());
    assert_eq!(
        sent.header("docker-content-digest"),
        Some(large.to_string().as_str())
    );
    assert_eq!(sent.header("cache-control"), Some("no-store"));
    let url = sent.location();
    assert!(!url.contains("Bearer") && !url.contains("=secret"), "{url}");
    // As clients do: the range again, the credentials not.
    let (addr, target) = parts(&url);
    assert_eq!(format!("http://{addr}"), bucket.endpoint);
    let mut there = Client::new(addr);
    let part = there.send("GET", &target, &range[..1], b"").expect(206);
    assert_eq!(part.body, bytes[100_000..100_010]);
    let whole = there.get(&target).expect(200);
    assert_eq!(Digest::of(&whole.body), large);
    // For another object the signature is none.
    let other = target.replace(&large.hex(), &small.hex());
    assert_ne!(Client::new(addr).get(&other).status, 200);
    // Everything else is answered here.
    let head = client.head_of(&place).expect(200);
    assert_eq!(head.header("content-length"), Some("200000"));
    let tag = format!("\"{large}\"");
    let known = client.send("GET", &place, &[("If-None-Match", &tag)], b"");
    known.expect(304);
    let got = client.get(&format!("/v2/a/blobs/{small}")).expect(200);
    assert_eq!(got.body, b"small");
    let unknown = format!("/v2/b/blobs/{large}");
    client.get(&unknown).refused(404, "BLOB_UNKNOWN");
}

#[test]
fn skopeo_pulls_from_the_bucket() {
    let bucket = Bucket::with_keys();
    let server = bucket.redirecting_replica();
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let manifest = write_layout(&root.path().join("in"));
    let image = format!("docker://{}/a:t", server.host());
    let copy = |from: &str, to: &str| {
        let flags = ["copy", "-q", "--insecure-policy", "--preserve-digests"];
        let open = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        run("skopeo", &[&flags[..], &open, &[from, to]].concat());
    };
    copy(&format!("oci:{}:t", path("in")), &image);
    bucket.requests();
    copy(&image, &format!("oci:{}:t", path("out")));
    let copied = root.path().join("out/blobs/sha256").join(manifest.hex());
    assert_eq!(Digest::of(&std::fs::read(copied).unwrap()), manifest);
    let signed = |line: &&String| line.contains("X-Amz-Signature");
    assert_eq!(
        bucket.requests().iter().filter(signed).count(),
        1,
        "one layer"
    );
}
