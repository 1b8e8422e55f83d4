//! Syncs of several replicas on one bucket: one runs at a time, and what it brings is everybody's.

use std::sync::Arc;
use std::time::Duration;

use registry_server::sync::Mirror;
use registry_server::sync::choose::Choice;
use registry_server::upstream::Upstream;
use registry_server::{Config, RunningServer};
use store::oci::Digest;

use crate::bucket::Bucket;
use crate::client::Client;
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
