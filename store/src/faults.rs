//! Every operation of a store's life fails once, and from then on, with a full disk and a broken one: whatever happens,
//! the store opens again, nothing named is missing or torn, and the same work then succeeds.

use std::path::Path;

use rustix::io::Errno;

use crate::content::gc::{PruneImages, PruneOptions};
use crate::fs::fault::{Plan, with_plan};
use crate::index::RecordRow;
use crate::oci::{ImageConfig, Platform};
use crate::tests::try_layer;
use crate::{Store, StoreError};

/// Puts, commits, tags, hits, untags, syncs and prunes, in two sessions.
fn life(root: &Path) -> Result<(), StoreError> {
    let store = Store::open(root)?;
    store.blobs().put(b"loose")?;
    let layers = [try_layer(&store, 1)?, try_layer(&store, 2)?];
    let mut config = ImageConfig::scratch(&Platform::host());
    config.rootfs.diff_ids = layers.iter().filter_map(|layer| layer.diff_id).collect();
    let config = serde_json::to_vec(&config).expect("it has only text keys");
    let id = store.images().put_image(&config, None)?;
    for name in ["one", "two"] {
        store.images().tag(&name.parse().unwrap(), &id)?;
    }
    let record = RecordRow {
        op: [1; 32],
        result: Vec::new(),
        layers: vec![try_layer(&store, 3)?.id],
        ingredients: Vec::new(),
        created: 1,
    };
    store.index().record_put(&[1; 32], &record)?;
    store.sync()?;
    drop(store);

    let store = Store::open(root)?;
    let _key = store.lock_key(&[1; 32])?;
    store.index().record_hit(&[1; 32])?;
    store.images().resolve("one")?;
    store.images().untag(&"one".parse().unwrap())?;
    for images in [PruneImages::Keep, PruneImages::Unused] {
        store.prune(&PruneOptions {
            until: None,
            cache: true,
            images,
            dry_run: false,
        })?;
    }
    store.du()?;
    Ok(())
}

/// Fails one operation after another until one run meets no failure; returns how many there were.
fn fail_each(errno: Errno, once: bool) -> u64 {
    for after in 0.. {
        // In memory where that can be: hundreds of syncs would wait for whatever else writes to the disk.
        let dir = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir());
        let dir = dir.unwrap();
        let plan = Plan { after, errno, once };
        let (struck, result) = with_plan(plan, || life(dir.path()));
        if !struck {
            result.unwrap();
            return after;
        }
        let text = format!("{errno} at operation {after}, once: {once}");
        let store = Store::open(dir.path()).unwrap_or_else(|error| panic!("{text}: {error}"));
        let problems = store.check().unwrap();
        assert!(problems.is_empty(), "{text}: {problems:?}");
        drop(store);
        life(dir.path()).unwrap_or_else(|error| panic!("{text}: {error}"));
        let store = Store::open(dir.path()).unwrap();
        let problems = store.check().unwrap();
        assert!(problems.is_empty(), "{text}: {problems:?}");
    }
    unreachable!("a life ends")
}

#[test]
fn a_disk_that_fills_up_breaks_nothing() {
    let operations = fail_each(Errno::NOSPC, false);
    // Else the seam has come loose.
    assert!(operations > 100, "{operations}");
}

#[test]
fn one_failed_operation_breaks_nothing() {
    fail_each(Errno::IO, true);
}
