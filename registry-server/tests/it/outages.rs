//! What a bucket's failures leave: uploads that nobody completed, silence, and answers that are lost.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::Method;
use registry_server::storage::RegistryStorage;
use store::oci::Digest;

use crate::bucket::{Bucket, Fate};
use crate::client::{Client, noise};

/// More than one part.
const LARGE: usize = 17_000_000;

/// How long a replica waits that is impatient; everything but silence takes far less.
const PATIENCE: Duration = Duration::from_secs(4);

/// What the server of the bucket keeps of multipart uploads.
fn parts(bucket: &Bucket) -> usize {
    let entries = std::fs::read_dir(bucket.root().parent().unwrap()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.contains(".part-")).count()
}

fn notes(bucket: &Bucket) -> usize {
    let folder = std::fs::read_dir(bucket.file("_multipart"));
    folder.map_or(0, Iterator::count)
}

/// A replica that dies while it makes one object of the parts of a blob leaves an upload to the bucket that no list shows. It is
/// given up with the session.
#[test]
fn multipart_uploads_that_nobody_completes_are_given_up() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let storage = bucket.storage().unwrap();
    let mut client = Client::new(server.addr);
    let bytes = noise(LARGE, 1);
    let digest = Digest::of(&bytes);
    // Neither completed nor given up: as if it had died.
    bucket.decide(
        |method, path| match path.contains("uploadId=") && *method != Method::PUT {
            true => Fate::Refused(403),
            false => Fate::Pass,
        },
    );
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client.send("PATCH", &session, &[], &bytes).expect(202);
    let target = format!("{session}?digest={digest}");
    client.put(&target, b"").refused(503, "UNKNOWN");
    bucket.decide(|_, _| Fate::Pass);
    assert_eq!((parts(&bucket), notes(&bucket)), (3, 1));
    // It could be going on.
    let day = Duration::from_secs(24 * 60 * 60);
    assert_eq!(storage.purge_uploads(day).unwrap(), 0);
    assert_eq!((parts(&bucket), notes(&bucket)), (3, 1));
    bucket.requests();
    assert_eq!(storage.purge_uploads(Duration::ZERO).unwrap(), 1);
    assert_eq!((parts(&bucket), notes(&bucket)), (0, 0));
    let aborts = |line: &String| line.starts_with("DELETE ") && line.contains("uploadId=");
    assert_eq!(bucket.requests().into_iter().filter(aborts).count(), 1);
    client.get(&session).refused(404, "BLOB_UPLOAD_UNKNOWN");
    // One that is completed leaves nothing to give up.
    client.push_blob("a", &bytes);
    assert_eq!((parts(&bucket), notes(&bucket)), (0, 0));
    // Nor does a note of what is gone, or of something else, stay.
    let folder = bucket.file("_multipart");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("x"), "../../secret\nid").unwrap();
    storage.purge_uploads(Duration::ZERO).unwrap();
    assert_eq!(notes(&bucket), 0);
    let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    assert_eq!(Digest::of(&got.body), digest);
}

/// A request whose part the bucket swallows without a word is told so, and what was acknowledged is there.
#[test]
fn silence_of_the_bucket_ends_the_request_and_not_the_session() {
    let bucket = Bucket::start();
    let server = bucket.impatient_replica(PATIENCE);
    let mut client = Client::new(server.addr);
    let bytes = noise(60_000, 2);
    let digest = Digest::of(&bytes);
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client
        .send("PATCH", &session, &[], &bytes[..20_000])
        .expect(202);
    bucket.decide(
        |method, path| match *method == Method::PUT && path.contains("_parts/") {
            true => Fate::Silence,
            false => Fate::Pass,
        },
    );
    client
        .send("PATCH", &session, &[], &bytes[20_000..40_000])
        .refused(503, "UNKNOWN");
    bucket.decide(|_, _| Fate::Pass);
    let mut client = Client::new(server.addr);
    let status = client.get(&session).expect(204);
    assert_eq!(status.header("range"), Some("0-19999"));
    client
        .put(&format!("{session}?digest={digest}"), &bytes[20_000..])
        .expect(201);
    let got = client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
    assert_eq!(got.body, bytes);
}

/// What was written is found again when it is written a second time, because the answer to the first was lost.
#[test]
fn parts_whose_answer_was_lost_are_no_others() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    let lost = AtomicBool::new(false);
    bucket.decide(move |method, path| {
        let is_part = *method == Method::PUT && path.contains("_parts/");
        match is_part && !lost.swap(true, Ordering::SeqCst) {
            true => Fate::Busy,
            false => Fate::Pass,
        }
    });
    client
        .send("PATCH", &session, &[], b"all of it")
        .expect(202);
    let digest = Digest::of(b"all of it");
    client
        .put(&format!("{session}?digest={digest}"), b"")
        .expect(201);
    client.get(&format!("/v2/a/blobs/{digest}")).expect(200);
}
