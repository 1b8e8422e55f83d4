//! A registry in a bucket, by the binary: copied there from Debian's docker-registry and back, looked after, and pulled from by
//! signed URLs.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use crate::registry_sync::fill;
use crate::shared_cache::wire::Wire;
use crate::support::{Place, Server, bucket_at, tool};

/// What a `registry` command prints with `--json` of a place.
#[track_caller]
fn json(place: &Place, words: &[&str]) -> Value {
    let all = [&["registry", words[0], "--json"], &words[1..]].concat();
    serde_json::from_str(&place.run(all).ok()).unwrap()
}

fn tag_link(folder: &Path, tag: &str) -> PathBuf {
    let tags = "docker/registry/v2/repositories/team/app/_manifests/tags";
    folder.join(tags).join(tag).join("current/link")
}

fn made(folder: &Path, tag: &str) -> SystemTime {
    let link = tag_link(folder, tag).metadata().unwrap();
    link.modified().unwrap()
}

fn digest(place: &Place, host: &str, tag: &str) -> String {
    place
        .run(["remote", "digest", &format!("{host}/team/app:{tag}")])
        .ok()
}

#[test]
fn what_docker_registry_wrote_goes_to_a_bucket_and_back() {
    let place = Place::new();
    let text = |name: &str| place.path(name).to_str().unwrap().to_owned();
    let (first, back, again) = (text("first"), text("back"), text("again"));
    let server = Server::docker_registry(Path::new(&first));
    // An index for two platforms, tags, what refers to them, a blob of more than a part, and an upload that is not finished.
    fill(&place, &server.host);
    let large = format!("{}/team/large:v1", server.host);
    let noise: Vec<u8> = (0..9_000_000_u32)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let context = place.context("large", &[("Dockerfile", "FROM scratch\nCOPY noise /\n")]);
    std::fs::write(context.join("noise"), &noise).unwrap();
    place.ok(["build", "-q", "-t", &large], [&context]);
    place.run(["push", "-q", &large]).ok();
    let uploads = format!("http://{}/v2/team/app/blobs/uploads/", server.host);
    tool("curl", &["-sSf", "-X", "POST", &uploads]);
    let tags = ["a", "b", "v1.0", "v1.1", "v2.0"];
    let digests = tags.map(|tag| digest(&place, &server.host, tag));
    drop(server);
    // One tag is old.
    let old = SystemTime::UNIX_EPOCH + Duration::from_secs(1_500_000_000);
    let link = std::fs::File::options()
        .write(true)
        .open(tag_link(Path::new(&first), "b"));
    link.unwrap().set_modified(old).unwrap();

    let s3 = Server::s3();
    let wire = Wire::to(&s3.host);
    let bucket = bucket_at(&wire.host);
    let in_bucket = format!("s3:{bucket}");
    let planned = json(&place, &["migrate", "--dry-run", &first, &in_bucket]);
    let copied = json(&place, &["migrate", &first, &in_bucket]);
    assert_eq!(planned, copied);
    assert_eq!(
        (&copied["repositories"], &copied["damaged"]),
        (&2.into(), &Value::Array(vec![]))
    );
    // Nothing is stored in between, and the large blob goes over once, in parts.
    assert_eq!(wire.count("PUT", "_uploads"), 0);
    assert!(
        wire.count("PUT", "partNumber=") > 1,
        "{:#?}",
        wire.requests()
    );
    assert_eq!(wire.count("POST", "uploads"), 1, "{:#?}", wire.requests());
    assert_eq!(wire.count("GET", "/blobs/"), 0, "{:#?}", wire.requests());
    let stats = json(&place, &["stats", "--s3", &bucket]);
    assert_eq!(stats, json(&place, &["stats", "--root", &first]));
    let verified = json(&place, &["verify", "--s3", &bucket]);
    assert_eq!(verified["damaged"], Value::Array(vec![]));
    // All of it is needed by something.
    let garbage = json(
        &place,
        &["gc", "--s3", &bucket, "--dry-run", "--grace", "0"],
    );
    assert_eq!(
        (&garbage["blobs"], &garbage["manifests"]),
        (&0.into(), &0.into())
    );
    let twice = json(&place, &["migrate", &first, &in_bucket]);
    let new = ["blobs", "manifests", "tags"].map(|kind| &twice[kind]);
    assert_eq!(new, [&Value::from(0); 3]);

    // A server on the bucket, and what it scrubs.
    let server = Server::registry_in_bucket(&wire.host, &["--scrub-every", "1h", "--metrics"]);
    for (tag, expected) in tags.iter().zip(&digests) {
        assert_eq!(digest(&place, &server.host, tag), *expected, "{tag}");
    }
    let metrics = format!("http://{}/metrics", server.host);
    let scrubbed = |text: String| {
        let mut lines = text.lines();
        let line = lines.find(|line| line.starts_with("longshore_registry_scrub_damaged_total"));
        line.map(str::to_owned)
    };
    let damaged = loop {
        match scrubbed(tool("curl", &["-sSf", &metrics])) {
            Some(line) => break line,
            None => std::thread::yield_now(),
        }
    };
    assert!(damaged.ends_with(" 0"), "{damaged}");
    drop(server);

    // Back, to one that distribution serves.
    let returned = json(&place, &["migrate", &in_bucket, &back]);
    assert_eq!(
        (&returned["tags"], &returned["blobs"]),
        (&copied["tags"], &copied["blobs"])
    );
    json(&place, &["migrate", &back, &again]);
    assert_eq!(json(&place, &["stats", "--root", &back]), stats);
    let server = Server::docker_registry(Path::new(&back));
    for (tag, expected) in tags.iter().zip(&digests) {
        assert_eq!(digest(&place, &server.host, tag), *expected, "{tag}");
    }
    let out = format!("oci:{}:x", text("out"));
    let all = format!("{}/team/app:v1.0", server.host);
    place.run(["remote", "copy", &all, &out]).ok();
    // Of folders the times are kept.
    let direct = text("direct");
    json(&place, &["migrate", &first, &direct]);
    assert_eq!(made(Path::new(&direct), "b"), old);
    assert_eq!(made(Path::new(&again), "b"), made(Path::new(&back), "b"));
    assert!(made(Path::new(&back), "b") > old);
}

/// As clients do that were written for other registries: the URL is followed, the credentials stay.
#[test]
fn blobs_are_pulled_from_the_bucket_itself() {
    let place = Place::new();
    let s3 = Server::s3();
    let wire = Wire::to(&s3.host);
    let server = Server::registry_in_bucket(&wire.host, &["--redirect"]);
    let name = format!("{}/team/tools", server.host);
    place.add_busybox(&name);
    place.run(["push", "-q", &name]).ok();
    let signed = || wire.count("GET", "X-Amz-Signature=");
    assert_eq!(signed(), 0);
    let fresh = Place::new();
    fresh.run(["pull", "-q", &name]).ok();
    assert_eq!(signed(), 1, "{:#?}", wire.requests());
    assert_eq!(fresh.sh(&name, "echo works"), "works");
    wire.clear();
    let (root, state) = (place.path("podman"), place.path("state"));
    let storage = [
        "--root",
        root.to_str().unwrap(),
        "--runroot",
        state.to_str().unwrap(),
    ];
    let pull = [
        "--storage-driver",
        "vfs",
        "pull",
        "-q",
        "--tls-verify=false",
        &name,
    ];
    tool("podman", &[&storage[..], &pull].concat());
    assert_eq!(signed(), 1, "{:#?}", wire.requests());
}
