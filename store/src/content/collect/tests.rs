//! What goes, in which order, and how much that frees.

use std::path::Path;

use super::super::gc::{Pruned, STAMP_SLACK};
use super::*;
use crate::cache_mounts::CacheMountName;
use crate::clock::now_micros;
use crate::index::{Lease, LeaseItem, RecordRow};
use crate::oci::{Descriptor, ImageConfig, MediaType, Platform};

const KB: usize = 1024;

/// A layer of one file of so many bytes, which its first bytes tell from others.
fn layer(store: &Store, name: &str, bytes: usize) -> LayerId {
    let commit = || {
        let active = store.snapshots().prepare(&[])?;
        let mut content = name.as_bytes().to_vec();
        content.resize(bytes, 7);
        std::fs::write(active.upper().join("file"), content).unwrap();
        active.commit().map_err(StoreError::from)
    };
    store.publish_layer(commit).unwrap().id
}

fn record(store: &Store, key: u8, layers: &[LayerId]) {
    let row = RecordRow {
        op: [1; 32],
        result: Vec::new(),
        layers: layers.to_vec(),
        ingredients: Vec::new(),
        created: 1,
    };
    store.index().record_put(&[key; 32], &row).unwrap();
}

/// Says when something was used last, in seconds ago.
fn used(store: &Store, table: &str, condition: &str, ago: i64) {
    let time = now_micros() - ago * 1_000_000;
    let sql = format!("UPDATE {table} SET last_used = {time} WHERE {condition}");
    store.index().write(|t| t.execute_batch(&sql)).unwrap();
}

fn record_used(store: &Store, key: u8, ago: i64) {
    used(
        store,
        "records",
        &format!("hex(key) LIKE '{key:02x}%'"),
        ago,
    );
}

fn image(store: &Store, layers: &[LayerId], labels: &[(&str, &str)]) -> ImageId {
    let mut config = ImageConfig::scratch(&Platform::host());
    for id in layers {
        let diff_id = store.ensure_diff_id(id).unwrap();
        config.rootfs.diff_ids.push(diff_id);
    }
    let pairs = labels
        .iter()
        .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()));
    config.config.labels = Some(pairs.collect());
    let config = serde_json::to_vec(&config).unwrap();
    store.images().put_image(&config, None).unwrap()
}

/// Opens the store as another process would, once time stamps of what was made before have passed.
fn reopen(root: &Path) -> Store {
    let start = now_micros();
    while now_micros() < start + 2 * STAMP_SLACK {
        std::thread::yield_now();
    }
    Store::open(root).unwrap()
}

fn rule(kinds: &[CacheKind]) -> Rule {
    Rule {
        kinds: kinds.iter().copied().collect(),
        ..Rule::default()
    }
}

fn at_most(bytes: u64) -> Rule {
    Rule {
        limits: Limits {
            max_used: bytes,
            ..Limits::default()
        },
        ..rule(&CacheKind::CACHE)
    }
}

/// Tells first, then does it: both have to say the same, and the disk as well.
#[track_caller]
fn collect(store: &Store, rules: &[Rule]) -> PruneReport {
    let mut collection = Collection {
        rules: rules.to_vec(),
        dry_run: true,
        ..Collection::default()
    };
    let told = store.collect(&collection).unwrap();
    let before = fs::disk_usage(&store.root().join("layers"), &mut Inodes::new()).unwrap();
    collection.dry_run = false;
    let done = store.collect(&collection).unwrap();
    assert_eq!(told, done);
    assert_eq!(
        done.bytes,
        done.items.iter().map(Pruned::bytes).sum::<u64>()
    );
    let after = fs::disk_usage(&store.root().join("layers"), &mut Inodes::new()).unwrap();
    let layers = done
        .items
        .iter()
        .filter(|item| matches!(item, Pruned::Layer { .. }));
    // The folder of the layers itself may shrink as well.
    let freed = before - after;
    let told = layers.map(Pruned::bytes).sum::<u64>();
    assert!(freed >= told && freed < told + 64 * 1024, "{freed} {told}");
    assert_eq!(store.check().unwrap(), []);
    done
}

fn records(report: &PruneReport) -> Vec<u8> {
    let keys = report.items.iter().filter_map(|item| match item {
        Pruned::Record { key } => Some(key[0]),
        _ => None,
    });
    keys.collect()
}

#[test]
fn the_longest_unused_goes_first_and_no_more_than_must() {
    let (dir, store) = crate::tests::store();
    for key in 1..=4 {
        let id = layer(&store, &format!("layer {key}"), 100 * KB);
        record(&store, key, &[id]);
    }
    for (key, ago) in [(1, 300), (2, 100), (3, 400), (4, 200)] {
        record_used(&store, key, ago);
    }
    used(&store, "layers", "1", 50);
    drop(store);
    let store = reopen(dir.path());
    assert_eq!(records(&collect(&store, &[at_most(1 << 30)])), [0_u8; 0]);
    // Room for two and a bit.
    assert_eq!(records(&collect(&store, &[at_most(250 * 1024)])), [1, 3]);
    assert_eq!(records(&collect(&store, &[at_most(250 * 1024)])), [0_u8; 0]);
    assert_eq!(records(&collect(&store, &[at_most(1)])), [2, 4]);
}

#[test]
fn a_layer_that_another_needs_frees_nothing() {
    let (dir, store) = crate::tests::store();
    let shared = layer(&store, "shared", 100 * KB);
    let alone = layer(&store, "alone", 100 * KB);
    record(&store, 1, &[shared]);
    record(&store, 2, &[shared, alone]);
    record_used(&store, 1, 300);
    record_used(&store, 2, 200);
    used(&store, "layers", "1", 100);
    drop(store);
    let store = reopen(dir.path());
    // Giving up the first one frees nothing, so the second has to go as well.
    let report = collect(&store, &[at_most(150 * 1024)]);
    assert_eq!(records(&report), [1, 2]);
    assert_eq!(report.items.len(), 4, "{report:?}");
}

#[test]
fn what_a_named_image_needs_is_no_part_of_the_cache() {
    let (dir, store) = crate::tests::store();
    let named = layer(&store, "named", 500 * KB);
    let cached = layer(&store, "cached", 100 * KB);
    record(&store, 1, &[named]);
    record(&store, 2, &[cached]);
    let id = image(&store, &[named], &[]);
    store.images().tag(&"app".parse().unwrap(), &id).unwrap();
    for table in ["records", "layers", "images", "blobs"] {
        used(&store, table, "1", 100);
    }
    drop(store);
    let store = reopen(dir.path());
    assert_eq!(records(&collect(&store, &[at_most(150 * 1024)])), [0_u8; 0]);
    assert_eq!(records(&collect(&store, &[at_most(50 * 1024)])), [1, 2]);
    assert!(store.images().resolve("app").unwrap().is_some());
    assert!(store.snapshots().has(&named) && !store.snapshots().has(&cached));
}

#[test]
fn nameless_images_go_with_their_blobs() {
    let (dir, store) = crate::tests::store();
    let id = layer(&store, "layer", 100 * KB);
    let diff_id = store.ensure_diff_id(&id).unwrap();
    let blob = store.blobs().put(&[3; 200 * KB]).unwrap();
    let form = Descriptor::new(MediaType::OCI_LAYER_GZIP, blob.digest(), blob.size());
    store.index().remember(&diff_id, "gzip", &form).unwrap();
    image(&store, &[id], &[("stage", "test"), ("keep", "no")]);
    let other = layer(&store, "other", 10 * KB);
    image(&store, &[other], &[("stage", "prod")]);
    for table in ["layers", "images", "blobs"] {
        used(&store, table, "1", 100);
    }
    // Not its turn.
    used(
        &store,
        "images",
        "id IN (SELECT image FROM image_layers WHERE diff_id = '-')",
        1,
    );
    drop(store);
    let store = reopen(dir.path());
    let labelled = |key: &str, value: Option<&str>, absent| Rule {
        labels: vec![LabelTest {
            key: key.to_owned(),
            value: value.map(str::to_owned),
            absent,
        }],
        ..rule(&CacheKind::CACHE)
    };
    assert_eq!(
        collect(&store, &[labelled("stage", Some("none"), false)]).items,
        []
    );
    assert_eq!(collect(&store, &[labelled("stage", None, true)]).items, []);
    let report = collect(&store, &[labelled("keep", None, false)]);
    // The image, its layer, its config, and the compressed form.
    assert_eq!(report.items.len(), 4, "{report:?}");
    assert!(report.bytes >= 300 * 1024);
    let report = collect(&store, &[labelled("keep", Some("no"), true)]);
    assert_eq!(report.items.len(), 3, "{report:?}");
}

#[test]
fn leases_and_live_processes_hold_what_they_need() {
    let (dir, store) = crate::tests::store();
    let leased = layer(&store, "leased", 100 * KB);
    let hit = layer(&store, "hit", 100 * KB);
    record(&store, 1, &[leased]);
    record(&store, 2, &[hit]);
    let lease = Lease {
        id: "container:x".to_owned(),
        expires: None,
        items: vec![LeaseItem::Layer(leased)],
    };
    store.index().lease_put(&lease).unwrap();
    record_used(&store, 1, 5_000);
    record_used(&store, 2, 4_000);
    used(&store, "layers", "1", 5_000);
    drop(store);
    let store = reopen(dir.path());
    let user = reopen(dir.path());
    assert!(user.index().record_hit(&[2; 32]).unwrap().is_some());
    // The record goes, its layer stays.
    let report = collect(&store, &[at_most(1)]);
    assert_eq!(records(&report), [1]);
    assert_eq!(report.bytes, 0);
    assert!(store.snapshots().has(&leased) && store.snapshots().has(&hit));
    // What this process has used is spared where it is asked for.
    drop(user);
    assert!(store.index().record_hit(&[2; 32]).unwrap().is_some());
    let mut sparing = Collection {
        rules: vec![at_most(1)],
        spare_own: true,
        ..Collection::default()
    };
    assert_eq!(store.collect(&sparing).unwrap().items, []);
    sparing.spare_own = false;
    assert_eq!(records(&store.collect(&sparing).unwrap()), [2]);
}

#[test]
fn kinds_ages_and_names_choose() {
    let (dir, store) = crate::tests::store();
    for key in [0xaa, 0xab] {
        record(&store, key, &[]);
        record_used(&store, key, 1_000);
    }
    record_used(&store, 0xab, 10);
    let name = CacheMountName {
        id: "/go".to_owned(),
        from: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let mount = store.new_cache_mount(&name).unwrap();
    store
        .publish_cache_mount(mount, crate::cache_mounts::CacheSharing::Shared)
        .unwrap();
    let mirror = store.mirror("mirror").unwrap();
    std::fs::create_dir(mirror.path()).unwrap();
    std::fs::write(mirror.path().join("HEAD"), "").unwrap();
    drop(mirror);
    fs::create_dir(&store.stat_caches_path()).unwrap();
    std::fs::write(store.stat_caches_path().join("00"), "x").unwrap();
    drop(store);
    let store = reopen(dir.path());
    let old = Rule {
        unused_for: Duration::from_secs(100),
        ..rule(&CacheKind::CACHE)
    };
    assert_eq!(records(&collect(&store, &[old])), [0xaa]);
    let named = |kind: CacheKind, id: &str| Rule {
        ids: vec![id.to_owned()],
        ..rule(&[kind])
    };
    assert_eq!(
        collect(&store, &[named(CacheKind::Records, "aa")]).items,
        []
    );
    assert_eq!(
        collect(&store, &[named(CacheKind::CacheMounts, "/rust")]).items,
        []
    );
    for wanted in [
        named(CacheKind::Records, "ab"),
        named(CacheKind::CacheMounts, "/go"),
        rule(&[CacheKind::GitMirrors]),
        rule(&[CacheKind::StatCaches]),
    ] {
        assert_eq!(collect(&store, &[wanted]).items.len(), 1);
    }
}

#[test]
fn limits_add_up_as_buildkits_do() {
    let disk = DiskSpace {
        total: 1000,
        free: 100,
    };
    let check = |reserved, max_used, min_free, keep| {
        let limits = Limits {
            reserved,
            max_used,
            min_free,
        };
        assert_eq!(limits.keep(500, disk), keep, "{limits:?}");
    };
    check(0, 0, 0, None);
    check(0, 300, 0, Some(300));
    check(400, 300, 0, Some(400));
    check(200, 0, 0, Some(200));
    // There is room enough.
    check(0, 0, 50, Some(500));
    // Sixty more have to become free.
    check(0, 0, 160, Some(440));
    check(0, 300, 160, Some(300));
    check(450, 0, 160, Some(450));
    check(0, 0, 5_000, Some(0));
}

#[test]
fn a_policy_is_followed_once_in_its_interval_by_one_process() {
    let (dir, store) = crate::tests::store();
    let id = layer(&store, "layer", 100 * KB);
    record(&store, 1, &[id]);
    record_used(&store, 1, 5_000);
    used(&store, "layers", "1", 5_000);
    drop(store);
    let store = reopen(dir.path());
    let policy = |bytes, interval| Policy {
        rules: vec![at_most(bytes)],
        interval: Duration::from_secs(interval),
    };
    // Below the limit nothing is measured, and nothing goes.
    assert_eq!(
        store.collect_if_due(&policy(1 << 30, 60)).unwrap(),
        Some(PruneReport::default())
    );
    assert_eq!(store.collect_if_due(&policy(1, 60)).unwrap(), None);
    let lock = Lock::exclusive(&dir.path().join("locks/collection")).unwrap();
    assert_eq!(store.collect_if_due(&policy(1, 0)).unwrap(), None);
    drop(lock);
    // A clock that was set back does not put it off.
    let stamp = std::fs::File::open(dir.path().join("collected")).unwrap();
    let later = std::time::SystemTime::now() + Duration::from_secs(3_600);
    stamp.set_modified(later).unwrap();
    let report = store.collect_if_due(&policy(1, 60)).unwrap().unwrap();
    assert_eq!(records(&report), [1]);
    assert_eq!(fs::list(&dir.path().join("locks")).unwrap(), [""; 0]);
}
