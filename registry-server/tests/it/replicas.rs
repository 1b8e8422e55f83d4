//! Several replicas on one bucket.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use registry_server::quota::QuotaRule;
use registry_server::storage::RegistryStorage;
use registry_server::{Config, RunningServer};
use serde_json::json;
use store::oci::{Digest, MediaType};

use crate::bucket::{Bucket, Door, Fate};
use crate::client::{Client, noise};
use crate::protocol::{manifest_of, numbered};

const OCI: &str = MediaType::OCI_MANIFEST;

#[test]
fn three_replicas_are_one_registry() {
    let bucket = Bucket::start();
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
    let bucket = Bucket::start();
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
    let bucket = Bucket::start();
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
    let bucket = Bucket::start();
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
    let bucket = Bucket::behind(Door::ignoring_conditions());
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
    let bucket = Bucket::start();
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
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    client.push_blob("a", b"{}");
    // The folder stays; what is asked of it fails.
    std::fs::remove_dir_all(bucket.root()).unwrap();
    std::fs::write(bucket.root(), "no folder").unwrap();
    let refused = client.post("/v2/a/blobs/uploads/");
    assert_eq!(refused.header("retry-after"), Some("2"));
    refused.refused(503, "UNKNOWN");
}

/// A bucket that says nothing keeps the request that needs it, and no other.
#[test]
fn a_bucket_that_is_silent_hurts_only_who_needs_it() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let config = client.push_blob("a", b"{}");
    client
        .put_manifest("a", "t", OCI, &numbered(&config, 1))
        .expect(201);
    let slow = format!("{}/data", config.hex());
    bucket.decide(move |_, path| match path.contains(&slow) {
        true => Fate::Silence,
        false => Fate::Pass,
    });
    let waiting = client.head("GET", &format!("/v2/a/blobs/{config}"), &[]);
    client.raw(waiting.as_bytes());
    let mut other = Client::new(server.addr);
    other.get("/v2/a/manifests/t").expect(200);
    other.push_blob("a", b"another");
    bucket.decide(|_, _| Fate::Pass);
    drop(client);
}

/// A refusal now and then is asked again; one that stays is a 503 and changes nothing that anybody sees.
#[test]
fn errors_of_the_bucket_are_outlasted_or_told() {
    let bucket = Bucket::start();
    let server = bucket.replica();
    let mut client = Client::new(server.addr);
    let config = client.push_blob("a", b"{}");
    let first = numbered(&config, 1);
    client.put_manifest("a", "t", OCI, &first).expect(201);
    // Every third request fails once: servers of buckets say so when they are busy.
    let count = AtomicUsize::new(0);
    bucket.decide(move |_, _| match count.fetch_add(1, Ordering::SeqCst) % 3 {
        2 => Fate::Refused(500),
        _ => Fate::Pass,
    });
    let second = numbered(&config, 2);
    client.put_manifest("a", "t", OCI, &second).expect(201);
    assert_eq!(client.get("/v2/a/manifests/t").expect(200).body, second);
    client.get("/v2/a/tags/list").expect(200);
    // What is not asked again, at each request of a push in turn, until none fails.
    for wrong in 0.. {
        let seen = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&seen);
        bucket.decide(
            move |_, _| match counted.fetch_add(1, Ordering::SeqCst) == wrong {
                true => Fate::Refused(403),
                false => Fate::Pass,
            },
        );
        let put = client.put_manifest("a", "t", OCI, &first);
        let failed = seen.load(Ordering::SeqCst) > wrong;
        bucket.decide(|_, _| Fate::Pass);
        assert_eq!(
            put.status,
            if failed { 503 } else { 201 },
            "request {wrong}"
        );
        let on = client.get("/v2/a/manifests/t").expect(200).body;
        assert!(on == first || on == second);
        if !failed {
            assert!(wrong > 5, "only {wrong} requests");
            return;
        }
        client.put_manifest("a", "t", OCI, &second).expect(201);
    }
}

/// One replica pushes a tag again and again, another deletes it: it is on the last push, or not there, on all of them.
#[test]
fn two_replicas_push_and_delete_the_same_tag() {
    let bucket = Bucket::start();
    let replicas = [bucket.replica(), bucket.replica(), bucket.replica()];
    let mut third = Client::new(replicas[2].addr);
    let config = third.push_blob("a", b"{}");
    let target = "/v2/a/manifests/t";
    for round in 0..8 {
        let next = numbered(&config, round);
        let deleted = std::thread::scope(|scope| {
            let delete = scope.spawn(|| Client::new(replicas[1].addr).delete(target).status);
            let mut client = Client::new(replicas[0].addr);
            client.put_manifest("a", "t", OCI, &next).expect(201);
            delete.join().unwrap()
        });
        assert!(matches!(deleted, 202 | 404), "{deleted}");
        let found: Vec<_> = replicas
            .iter()
            .map(|replica| Client::new(replica.addr).get(target))
            .map(|reply| (reply.status == 200).then_some(reply.body))
            .collect();
        assert!(found.iter().all(|one| *one == found[0]), "all see the same");
        match &found[0] {
            Some(body) => assert_eq!(*body, next),
            // A delete that found it may have come last.
            None => assert_eq!(deleted, 202),
        }
        // By its digest it is there in any case.
        third
            .get(&format!("/v2/a/manifests/{}", Digest::of(&next)))
            .expect(200);
    }
}

/// A quota is kept by all replicas together.
#[test]
fn replicas_keep_a_quota_together() {
    let bucket = Bucket::start();
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
