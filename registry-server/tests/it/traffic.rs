//! What is asked of a bucket: each of these counts requests, since each is paid for and waited for.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use http::Method;
use registry_server::storage::RegistryStorage as _;
use registry_server::sync::choose::Choice;
use registry_server::sync::{self, Mirror, SyncReport};
use registry_server::{Config, RunningServer};
use serde_json::json;
use store::oci::{Digest, MediaType};

use crate::bucket::{Bucket, Fate};
use crate::client::{Client, noise};
use crate::protocol::numbered;
use crate::through::{Fake, below, image};

const OCI: &str = MediaType::OCI_MANIFEST;

/// A registry on the bucket that reads another below `hub`.
fn reading(bucket: &Bucket, fake: &Arc<Fake>, spool: Option<&Path>) -> RunningServer {
    let mut config = Config::new("");
    config.upstreams = vec![below("hub", fake)];
    config.spool = spool.map(Path::to_owned);
    let storage = Arc::new(bucket.storage().unwrap());
    RunningServer::start_on(config, storage).unwrap()
}

/// Mirrors a repository into the bucket once.
fn mirror(bucket: &Bucket, source: &Arc<Fake>) -> SyncReport {
    let choice = Choice {
        repositories: vec!["team/app".parse().unwrap()],
        ..Choice::default()
    };
    let mut mirror = Mirror::new("s", Arc::<Fake>::clone(source), choice);
    mirror.referrers = false;
    let mut config = Config::new("");
    config.syncs = vec![mirror];
    let storage = Arc::new(bucket.storage().unwrap());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let once = sync::once(config, storage, &[], false, &|_| {});
    let mut reports = runtime.block_on(once).unwrap();
    reports.remove(0).1
}

/// How many of the requests begin with the method and have all of these in them.
fn count(requests: &[String], method: &str, parts: &[&str]) -> usize {
    let fits = |line: &&String| {
        line.starts_with(&format!("{method} ")) && parts.iter().all(|part| line.contains(part))
    };
    requests.iter().filter(fits).count()
}

/// The blob was written once, part by part, and never read.
fn assert_sent_once(requests: &[String], digest: &Digest, parts: usize) {
    let hex = digest.hex();
    let data = format!("{hex}/data");
    assert_eq!(count(requests, "GET", &[&data]), 0, "{requests:#?}");
    assert_eq!(count(requests, "PUT", &[&data]), parts, "{requests:#?}");
    // Begun and completed.
    assert_eq!(count(requests, "POST", &[&data]), 2, "{requests:#?}");
    assert!(!requests.iter().any(|line| line.contains("_uploads")));
}

#[test]
fn what_is_read_through_a_registry_goes_to_its_place_at_once() {
    let (bucket, fake) = (Bucket::start(), Fake::new());
    let spool = tempfile::tempdir().unwrap();
    let server = reading(&bucket, &fake, Some(spool.path()));
    let layer = noise(20_000_000, 1);
    let digest = fake.blob(&layer);
    let target = format!("/v2/hub/app/blobs/{digest}");
    bucket.requests();
    let mut client = Client::new(server.addr);
    assert!(client.get(&target).expect(200).body == layer);
    assert_sent_once(&bucket.requests(), &digest, 3);
    // Nothing is left beside it.
    assert_eq!(std::fs::read_dir(spool.path()).unwrap().count(), 0);
    assert!(client.get(&target).expect(200).body == layer);
}

#[test]
fn what_is_mirrored_goes_to_its_place_at_once() {
    let (bucket, source) = (Bucket::start(), Fake::new());
    let (_, layer) = image(&source, "v1", &noise(20_000_000, 2));
    let report = mirror(&bucket, &source);
    assert_eq!(report.failures, []);
    assert_eq!((report.blobs, report.bytes), (2, 20_000_002));
    assert_sent_once(&bucket.requests(), &layer, 3);
    // What the bucket has still, though no repository, is not sent again.
    let name = registry_server::routes::RepositoryName::parse("team/app").unwrap();
    let storage = bucket.storage().unwrap();
    assert!(storage.remove_blob(&name, &layer).unwrap());
    bucket.requests();
    let (_, again) = image(&source, "v2", &noise(20_000_000, 2));
    assert_eq!((again, mirror(&bucket, &source).failures), (layer, vec![]));
    let (requests, data) = (bucket.requests(), format!("{}/data", layer.hex()));
    for method in ["PUT", "POST"] {
        assert_eq!(count(&requests, method, &[&data]), 0, "{requests:#?}");
    }
}

/// What is wrong is given up: no object, no parts that are paid for, and no note of them.
#[test]
fn what_is_not_what_was_asked_for_leaves_nothing_in_the_bucket() {
    let good = noise(20_000_000, 3);
    let digest = Digest::of(&good);
    let mut bad = good.clone();
    bad[19_000_000] ^= 1;
    let lies = [
        (bad, None),
        (good[..17_000_000].to_vec(), Some(20_000_000)),
        ([&good[..], b"more"].concat(), Some(20_000_000)),
    ];
    let (bucket, fake) = (Bucket::start(), Fake::new());
    let spool = tempfile::tempdir().unwrap();
    let server = reading(&bucket, &fake, Some(spool.path()));
    image(&fake, "v1", &good);
    for (bytes, size) in &lies {
        fake.lies(&digest, bytes, *size);
        let mut client = Client::new(server.addr);
        let head = client.head("GET", &format!("/v2/hub/app/blobs/{digest}"), &[]);
        client.raw(head.as_bytes());
        client.read_head().expect(200);
        let came = client.until_closed();
        assert!(came.len() < good.len(), "{} bytes came", came.len());
        let report = mirror(&bucket, &fake);
        assert_eq!(report.failures.len(), 1, "{report:?}");
        let requests = bucket.requests();
        let data = format!("{}/data", digest.hex());
        assert_eq!(count(&requests, "POST", &[&data, "uploads"]), 2);
        assert_eq!(count(&requests, "POST", &[&data, "uploadId"]), 0);
        assert_eq!(count(&requests, "DELETE", &[&data, "uploadId"]), 2);
        let hex = digest.hex();
        let place = format!("blobs/sha256/{}/{hex}", &hex[..2]);
        assert!(!bucket.file(&place).join("data").exists());
        let notes = std::fs::read_dir(bucket.file("_multipart")).unwrap();
        assert_eq!(notes.count(), 0);
    }
    fake.lies(&digest, &good, None);
    let mut client = Client::new(server.addr);
    let reply = client.get(&format!("/v2/hub/app/blobs/{digest}"));
    assert!(reply.expect(200).body == good);
    assert_eq!(mirror(&bucket, &fake).failures, []);
}

/// Where there is no room beside the bucket, the blob goes through it.
#[test]
fn without_a_folder_blobs_go_through_the_bucket() {
    let (bucket, fake) = (Bucket::start(), Fake::new());
    let layer = noise(9_000_000, 4);
    let digest = fake.blob(&layer);
    for spool in [None, Some(Path::new("/nowhere/at/all"))] {
        let server = reading(&bucket, &fake, spool);
        bucket.requests();
        let mut client = Client::new(server.addr);
        let target = format!("/v2/hub/app/blobs/{digest}");
        assert!(client.get(&target).expect(200).body == layer);
        assert!(count(&bucket.requests(), "PUT", &["_uploads"]) > 0);
        let hex = digest.hex();
        let name = registry_server::routes::RepositoryName::parse("hub/app").unwrap();
        let storage = bucket.storage().unwrap();
        assert!(storage.remove_blob(&name, &digest).unwrap());
        let data = bucket.file(&format!("blobs/sha256/{}/{hex}/data", &hex[..2]));
        std::fs::remove_file(data).unwrap();
    }
}

/// Pushes a manifest under many tags; its digest.
fn tagged(client: &mut Client, name: &str, number: usize, tags: &[String]) -> Digest {
    let config = client.push_blob(name, b"{}");
    let manifest = numbered(&config, number);
    for some in tags.chunks(20) {
        let query: Vec<String> = some.iter().map(|tag| format!("tag={tag}")).collect();
        let digest = Digest::of(&manifest);
        let target = format!("/v2/{name}/manifests/{digest}?{}", query.join("&"));
        let kind = [("Content-Type", OCI)];
        client.send("PUT", &target, &kind, &manifest).expect(201);
    }
    Digest::of(&manifest)
}

#[test]
fn a_page_of_tags_asks_for_no_more_than_the_page() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    // Two objects each: four lists of 40.
    bucket.lists_in_pages_of(40);
    let mut tags: Vec<String> = (95..160).map(|number| format!("t{number:04}")).collect();
    // Their keys come in another order than they do.
    let odd = [
        "t0100-rc1",
        "t0100.1",
        "t0100-",
        "u-1.0-rc1",
        "u-1.0",
        "u-1",
        "u",
        "u.1",
        "u_1",
    ];
    tags.extend(odd.map(str::to_owned));
    let digest = tagged(&mut client, "a", 1, &tags[..1]);
    for tag in &tags[1..] {
        let folder = bucket.file(&format!("repositories/a/_manifests/tags/{tag}"));
        for place in [
            "current".to_owned(),
            format!("index/sha256/{}", digest.hex()),
        ] {
            std::fs::create_dir_all(folder.join(&place)).unwrap();
            std::fs::write(folder.join(place).join("link"), digest.to_string()).unwrap();
        }
    }
    client.delete("/v2/a/manifests/t0105").expect(202);
    tags.retain(|tag| tag != "t0105");
    tags.sort_unstable();

    bucket.requests();
    let page = client.get("/v2/a/tags/list?n=10&last=t0099").expect(200);
    let first = tags.iter().position(|tag| *tag == "t0100").unwrap();
    assert_eq!(page.json()["tags"], json!(tags[first..first + 10]));
    let requests = bucket.requests();
    assert_eq!(
        count(&requests, "GET", &["list-type=2"]),
        1,
        "{requests:#?}"
    );
    assert_eq!(
        count(&requests, "GET", &["start-after=", "tags%2Ft0099"]),
        1
    );
    assert_eq!(requests.len(), 1, "{requests:#?}");

    // Page after page, whatever their size, they are all there, in order, and once.
    for size in [1, 2, 3, 30, 5000] {
        let (mut found, mut last) = (Vec::new(), String::new());
        let from = if size < 10 { "t0150" } else { "" };
        let mut next = Some(format!("/v2/a/tags/list?n={size}&last={from}"));
        while let Some(target) = next {
            let page = client.get(&target).expect(200);
            for tag in page.json()["tags"].as_array().unwrap() {
                let tag = tag.as_str().unwrap().to_owned();
                assert!(tag > last, "{tag} after {last}");
                last.clone_from(&tag);
                found.push(tag);
            }
            next = page.header("link").map(|link| {
                let end = link.find('>').unwrap();
                link[1..end].to_owned()
            });
        }
        let expect: Vec<_> = tags.iter().filter(|tag| tag.as_str() > from).collect();
        assert_eq!(found.iter().collect::<Vec<_>>(), expect, "pages of {size}");
    }
    // Whatever it is to come after.
    for last in [
        "t0099%2Fx",
        "%C3%BC",
        "..",
        "t0099-",
        "t0099%00",
        "u-1.0-rc0",
    ] {
        let target = format!("/v2/a/tags/list?n=3&last={last}");
        let page = client.get(&target).expect(200).json();
        let after = match last {
            "t0099%2Fx" => "t0099/x",
            "%C3%BC" => "\u{fc}",
            "t0099%00" => "t0099\0",
            other => other,
        };
        let expect: Vec<_> = tags.iter().filter(|tag| tag.as_str() > after).collect();
        assert_eq!(page["tags"], json!(expect[..3.min(expect.len())]), "{last}");
    }
    client
        .get("/v2/b/tags/list?n=3&last=x")
        .refused(404, "NAME_UNKNOWN");
}

/// A delete by digest reads the tags that were ever on it, and no others.
#[test]
fn a_delete_by_digest_reads_only_tags_that_named_it() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let others: Vec<String> = (0..40).map(|number| format!("t{number}")).collect();
    let second = tagged(&mut client, "a", 2, &others);
    let ours = ["x", "y", "t7"].map(str::to_owned);
    let first = tagged(&mut client, "a", 1, &ours);
    // This one has gone on since.
    tagged(&mut client, "a", 2, &ours[1..2]);
    // One that another registry wrote without saying what it was on before, and one that was removed.
    let tag = |tag: &str| bucket.file(&format!("repositories/a/_manifests/tags/{tag}"));
    std::fs::create_dir_all(tag("bare").join("current")).unwrap();
    std::fs::write(tag("bare").join("current/link"), first.to_string()).unwrap();
    client.delete("/v2/a/manifests/t3").expect(202);

    bucket.requests();
    client
        .delete(&format!("/v2/a/manifests/{first}"))
        .expect(202);
    let requests = bucket.requests();
    let mut read: Vec<&str> = Vec::new();
    for line in requests.iter().filter(|line| line.starts_with("GET ")) {
        if let Some((before, _)) = line.split_once("/current/link") {
            read.extend(before.rsplit('/').next());
        }
    }
    read.sort_unstable();
    read.dedup();
    assert_eq!(read, ["bare", "t7", "x", "y"]);
    let left = client.get("/v2/a/tags/list").expect(200).json();
    let mut expect: Vec<&str> = others.iter().map(String::as_str).collect();
    expect.retain(|tag| !["t7", "t3"].contains(tag));
    expect.push("y");
    expect.sort_unstable();
    assert_eq!(left["tags"], json!(expect));
    let moved = client.get("/v2/a/manifests/y").expect(200);
    assert_eq!(Digest::of(&moved.body), second);
}

/// A tag that was written under a condition, and the answer to that was lost: its client learns that it was.
#[test]
fn tags_that_were_written_though_the_answer_was_lost_are_set() {
    for lost in [Fate::Busy, Fate::Lost] {
        let bucket = Bucket::start();
        let server = bucket.replica();
        let mut client = Client::new(server.addr);
        let config = client.push_blob("a", b"{}");
        let target = "/v2/a/manifests/t";
        let lose_one = || {
            let was_lost = AtomicBool::new(false);
            bucket.decide(move |method, path| {
                let is_tag = *method == Method::PUT && path.ends_with("/current/link");
                match is_tag && !was_lost.swap(true, Ordering::SeqCst) {
                    true => lost,
                    false => Fate::Pass,
                }
            });
        };
        let put = |client: &mut Client, number, condition: (&str, &str)| {
            let headers = [("Content-Type", OCI), condition];
            client.send("PUT", target, &headers, &numbered(&config, number))
        };
        lose_one();
        put(&mut client, 1, ("If-None-Match", "*")).expect(201);
        let etag = |number| format!("\"{}\"", Digest::of(&numbered(&config, number)));
        lose_one();
        put(&mut client, 2, ("If-Match", &etag(1))).expect(201);
        // Twice the same is not twice ours.
        put(&mut client, 2, ("If-Match", &etag(1))).refused(412, "PRECONDITION_FAILED");
        put(&mut client, 2, ("If-None-Match", "*")).refused(412, "PRECONDITION_FAILED");
        // A delete that its answer was lost of.
        lose_one();
        let delete = [("If-Match", etag(2))];
        let delete = delete
            .each_ref()
            .map(|(name, value)| (*name, value.as_str()));
        client.send("DELETE", target, &delete, b"").expect(202);
        client.get(target).refused(404, "MANIFEST_UNKNOWN");
    }
}

/// Two that write the same on the same condition, and both more than once: one of them did.
#[test]
fn what_another_wrote_meanwhile_is_not_taken_for_ours() {
    let bucket = Bucket::start();
    let (one, two) = (bucket.replica(), bucket.replica());
    let mut client = Client::new(one.addr);
    let config = client.push_blob("a", b"{}");
    let target = "/v2/a/manifests/t";
    client
        .put_manifest("a", "t", OCI, &numbered(&config, 1))
        .expect(201);
    let etag = format!("\"{}\"", Digest::of(&numbered(&config, 1)));
    let headers = [("Content-Type", OCI), ("If-Match", etag.as_str())];
    // Both are refused until both have come; one of them goes first then.
    let waiting = Arc::new(AtomicUsize::new(0));
    let waits = Arc::clone(&waiting);
    bucket.decide(move |method, path| {
        let is_tag = *method == Method::PUT && path.ends_with("/current/link");
        match is_tag && waits.fetch_add(1, Ordering::SeqCst) < 2 {
            true => Fate::Refused(503),
            false => Fate::Pass,
        }
    });
    let next = numbered(&config, 2);
    let put = |server: &RunningServer| {
        let mut client = Client::new(server.addr);
        client.send("PUT", target, &headers, &next).status
    };
    let mut found = std::thread::scope(|scope| {
        let first = scope.spawn(|| put(&one));
        [put(&two), first.join().unwrap()]
    });
    found.sort_unstable();
    assert_eq!(found, [201, 412]);
    assert_eq!(client.get(target).expect(200).body, next);
}
