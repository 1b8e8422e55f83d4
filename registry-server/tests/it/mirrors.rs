//! Syncs: of several replicas on one bucket one runs at a time; quotas hold.

use std::sync::Arc;
use std::time::Duration;

use registry_server::quota::QuotaRule;
use registry_server::routes::RepositoryName;
use registry_server::storage::RegistryStorage;
use registry_server::storage::disk::DiskStorage;
use registry_server::sync::choose::Choice;
use registry_server::sync::{self, Mirror, SyncReport};
use registry_server::upstream::Upstream;
use registry_server::{Config, RunningServer};
use store::oci::Digest;

use crate::bucket::Bucket;
use crate::client::{Client, noise};
use crate::through::{Fake, image};

/// The question that each run begins with.
const BEGINS: &str = "tags team/app";

fn replica(bucket: &Bucket, source: &Arc<Fake>) -> RunningServer {
    let choice = Choice {
        repositories: vec!["team/app".parse().unwrap()],
        ..Choice::default()
    };
    let upstream: Arc<dyn Upstream> = Arc::<Fake>::clone(source);
    let mut sync = Mirror::new("s", upstream, choice);
    sync.referrers = false;
    sync.every = Some(Duration::from_millis(100));
    let mut config = Config::new("");
    config.syncs = vec![sync];
    let storage = Arc::new(bucket.storage().unwrap());
    RunningServer::start_on(config, storage).unwrap()
}

#[test]
fn one_of_three_replicas_runs_a_sync_at_a_time() {
    let bucket = Bucket::start();
    let source = Fake::new();
    image(&source, "v1", b"layer");
    // The first run is held up where it has begun.
    source.answers.send_replace(false);
    let replicas: Vec<RunningServer> = (0..3).map(|_| replica(&bucket, &source)).collect();
    let first = source.until_begun(BEGINS);
    // Meanwhile the others look whether anybody runs it, again and again.
    bucket.requests();
    let mut looks = 0;
    while looks < 2 {
        let is_look = |line: &String| line.contains("list-type=2") && line.contains("sync-s");
        looks += bucket.requests().into_iter().filter(is_look).count();
        std::thread::yield_now();
    }
    assert_eq!(source.count(BEGINS), first, "another replica runs it, too");
    source.answers.send_replace(true);
    // Then it is whosever turn it is.
    while source.count(BEGINS) < first + 2 {
        std::thread::yield_now();
    }
    let (manifest, layer) = image(&source, "v2", b"another layer");
    for server in &replicas {
        let mut client = Client::new(server.addr);
        while client.get("/v2/team/app/manifests/v2").status != 200 {
            std::thread::yield_now();
        }
        let got = client.get("/v2/team/app/manifests/v2").expect(200);
        assert_eq!(Digest::of(&got.body), manifest);
        let got = client.get(&format!("/v2/team/app/blobs/{layer}"));
        assert_eq!(got.expect(200).body, b"another layer");
    }
}

/// Runs a sync of the source once, with a quota of so many bytes.
fn run_once(storage: &Arc<dyn RegistryStorage>, source: &Arc<Fake>, bytes: u64) -> SyncReport {
    let choice = Choice {
        repositories: vec!["team/app".parse().unwrap()],
        ..Choice::default()
    };
    let mut mirror = Mirror::new("s", Arc::<Fake>::clone(source), choice);
    mirror.referrers = false;
    let mut config = Config::new("");
    config.syncs = vec![mirror];
    config.quotas = vec![QuotaRule {
        repositories: vec!["team/*".to_owned()],
        bytes,
    }];
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let once = sync::once(config, Arc::clone(storage), &[], false, &|_| {});
    runtime.block_on(once).unwrap().remove(0).1
}

/// What is mirrored keeps to quotas, and what came to nothing takes no room.
#[test]
fn what_is_mirrored_keeps_to_quotas() {
    let (folder, bucket) = (tempfile::tempdir().unwrap(), Bucket::start());
    let on_disk: Arc<dyn RegistryStorage> = Arc::new(DiskStorage::open(folder.path()).unwrap());
    let in_bucket: Arc<dyn RegistryStorage> = Arc::new(bucket.storage().unwrap());
    for storage in [on_disk, in_bucket] {
        let source = Fake::new();
        let layer = noise(5000, 1);
        let (_, digest) = image(&source, "v1", &layer);
        let name = RepositoryName::parse("team/app").unwrap();
        let size = |digest: &Digest| storage.blob_size(&name, digest).unwrap();
        let refused = run_once(&storage, &source, 4000);
        assert_eq!(refused.failures.len(), 1, "{refused:?}");
        let reason = &refused.failures[0].reason;
        assert!(reason.contains("quota"), "{reason}");
        assert_eq!((size(&digest), refused.set), (None, 0));
        // Bytes that are not what they are called take nobody's room, however often they come.
        let mut bad = layer.clone();
        bad[7] ^= 1;
        source.lies(&digest, &bad, None);
        for _ in 0..3 {
            let wrong = run_once(&storage, &source, 8000);
            assert!(wrong.failures[0].reason.contains("content"), "{wrong:?}");
            assert_eq!(size(&digest), None);
        }
        source.lies(&digest, &layer, None);
        let done = run_once(&storage, &source, 8000);
        assert_eq!((done.failures, size(&digest)), (vec![], Some(5000)));
    }
}
