//! The clock is set back and forward, between and during all that goes by it. Each test ends at the machine's own time, from
//! which alone the kernel's stamps come.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::*;
use crate::OpenOptions;
use crate::cache_mounts::{CacheMountName, CacheSharing, CacheTaken};
use crate::content::collect::{Collection, Policy};
use crate::content::gc::{PruneImages, PruneOptions, Pruned};
use crate::history::{BuildRow, BuildStatus, Keep};
use crate::index::RecordRow;
use crate::layer::LayerId;
use crate::tests::{image_of, layer};

const SECOND: i64 = 1_000_000;
const HOUR: i64 = 3_600 * SECOND;
const DAY: i64 = 24 * HOUR;
const YEAR: i64 = 365 * DAY;

const EVERYTHING: PruneOptions = PruneOptions {
    until: None,
    cache: true,
    images: PruneImages::Unused,
    dry_run: false,
};

/// A clock that is so many microseconds ahead of the machine's.
#[derive(Clone, Default)]
struct Hands(Arc<AtomicI64>);

impl Hands {
    fn set(&self, ahead: i64) {
        self.0.store(ahead, Ordering::SeqCst);
    }

    fn open(&self, root: &Path) -> Store {
        self.open_with(root, OpenOptions::default())
    }

    fn open_with(&self, root: &Path, options: OpenOptions) -> Store {
        let ahead = Arc::clone(&self.0);
        let options = OpenOptions {
            clock: Clock::by(move || now_micros() + ahead.load(Ordering::SeqCst)),
            grace: Duration::ZERO,
            ..options
        };
        Store::open_with(root, &options).unwrap()
    }
}

fn put_record(store: &Store, number: u8) -> LayerId {
    let id = layer(store, number).id;
    let row = RecordRow {
        op: [1; 32],
        result: Vec::new(),
        layers: vec![id],
        ingredients: Vec::new(),
        created: 1,
    };
    store.index().record_put(&[number; 32], &row).unwrap();
    id
}

fn has_record(store: &Store, number: u8) -> bool {
    let sql = "SELECT 1 FROM records WHERE key = ?1";
    let found = store
        .index()
        .read(|c| c.prepare(sql)?.exists([[number; 32]]));
    found.unwrap()
}

fn is_there(store: &Store, id: &LayerId) -> bool {
    store.layer_path(id).exists() && store.index().has_layer_row(id).unwrap()
}

#[test]
fn what_a_build_uses_stays_however_the_clock_is_set_meanwhile() {
    for (at_start, meanwhile) in [(DAY, 0), (0, YEAR), (0, -DAY), (YEAR, 0), (HOUR / 60, 0)] {
        let dir = tempfile::tempdir().unwrap();
        let hands = Hands::default();
        hands.set(at_start);
        let before = hands.open(dir.path());
        let old = put_record(&before, 1);
        drop(before);
        let build = hands.open(dir.path());
        assert!(build.index().record_hit(&[1; 32]).unwrap().is_some());
        let of_image = layer(&build, 2);
        hands.set(meanwhile);
        let pruned = || hands.open(dir.path()).prune(&EVERYTHING).unwrap();
        let new = build
            .publish_layer(|| {
                let info = layer(&build, 3);
                build.index().write(|t| {
                    t.execute("DELETE FROM layers WHERE id = ?1", [info.id.to_string()])
                })?;
                // It stands and has no row yet.
                pruned();
                Ok::<_, StoreError>(info)
            })
            .unwrap()
            .id;
        let blob = build.blobs().put(b"blob").unwrap();
        let image = image_of(&build, &[of_image.diff_id.unwrap()]);
        pruned();
        hands.set(0);
        pruned();
        for id in [&old, &of_image.id, &new] {
            assert!(is_there(&build, id), "{at_start} {meanwhile} {id}");
        }
        assert!(build.blobs().path(&blob.digest()).exists());
        assert!(build.images().config(&image).is_ok());
        assert!(has_record(&build, 1));
        drop(build);
        pruned();
        assert_eq!(fs::list(&dir.path().join("layers")).unwrap(), [""; 0]);
        assert_eq!(fs::list(&dir.path().join("blobs/sha256")).unwrap(), [""; 0]);
    }
}

/// Builds come and go, use records and make them, and collections happen beside, while the clock is set at random.
#[test]
fn nothing_needed_goes_and_nothing_stays_for_ever_by_any_clock() {
    for seed in 1..=12_u64 {
        let dir = tempfile::tempdir().unwrap();
        let hands = Hands::default();
        let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let mut random = |bound: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % bound
        };
        // Of each build, what it uses.
        let mut builds: Vec<(Store, BTreeMap<u8, LayerId>)> = Vec::new();
        for _ in 0..40 {
            match random(6) {
                0 => {
                    let steps = [0, 0, DAY, -DAY, YEAR, -YEAR, HOUR, -SECOND];
                    hands.set(steps[usize::try_from(random(8)).unwrap()]);
                }
                1 if builds.len() < 3 => builds.push((hands.open(dir.path()), BTreeMap::new())),
                2 if !builds.is_empty() => {
                    let build = usize::try_from(random(builds.len() as u64)).unwrap();
                    drop(builds.swap_remove(build));
                }
                3 => {
                    hands.open(dir.path()).prune(&EVERYTHING).unwrap();
                }
                _ => {
                    let number = u8::try_from(random(5)).unwrap();
                    let count = builds.len() as u64;
                    if count == 0 {
                        continue;
                    }
                    let (store, used) = &mut builds[usize::try_from(random(count)).unwrap()];
                    let id = match store.index().record_hit(&[number; 32]).unwrap() {
                        Some(row) => {
                            let id = row.layers[0];
                            assert!(store.index().layer(&id).unwrap().is_some());
                            id
                        }
                        None => put_record(store, number),
                    };
                    used.insert(number, id);
                }
            }
            for (store, used) in &builds {
                for (number, id) in used {
                    assert!(is_there(store, id), "seed {seed}: layer {number}");
                    assert!(has_record(store, *number), "seed {seed}: record {number}");
                }
            }
        }
        builds.clear();
        hands.set(0);
        let store = hands.open(dir.path());
        store.prune(&EVERYTHING).unwrap();
        assert_eq!(store.cache_bytes_at_most().unwrap(), 0, "seed {seed}");
        assert_eq!(fs::list(&dir.path().join("layers")).unwrap(), [""; 0]);
        assert!(fs::list(&dir.path().join("sessions")).unwrap().is_empty());
    }
}

/// A collection of what has not been used for an hour.
fn prune_old(store: &Store) -> Vec<Pruned> {
    let options = PruneOptions {
        until: Some(Duration::from_secs(3_600)),
        ..EVERYTHING
    };
    store.prune(&options).unwrap().items
}

#[test]
fn what_was_used_in_the_future_is_as_old_as_the_next_collection() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    hands.set(YEAR);
    let store = hands.open(dir.path());
    put_record(&store, 1);
    let mirror = store.mirror("abc").unwrap();
    std::fs::create_dir(mirror.path()).unwrap();
    drop(mirror);
    drop(store.mirror("abc").unwrap());
    std::fs::create_dir_all(store.stat_caches_path()).unwrap();
    std::fs::write(store.stat_caches_path().join("0a"), "").unwrap();
    store.note_stat_cache_use("0a").unwrap();
    let name = CacheMountName {
        id: "go".to_owned(),
        from: None,
        mode: 0o755,
        uid: 0,
        gid: 0,
    };
    let new = store.new_cache_mount(&name).unwrap();
    store
        .publish_cache_mount(new, CacheSharing::Shared)
        .unwrap();
    let taken = store.take_cache_mount(&name, CacheSharing::Shared).unwrap();
    assert!(matches!(taken, CacheTaken::Taken(_)));
    drop((taken, store));
    // Left as they are while a build lives that began in that future and may be using them.
    let build = hands.open(dir.path());
    build.index().record_hit(&[1; 32]).unwrap();
    hands.set(0);
    assert_eq!(prune_old(&hands.open(dir.path())), []);
    assert_eq!(hands.open(dir.path()).prune(&EVERYTHING).unwrap().items, []);
    drop(build);
    assert_eq!(prune_old(&hands.open(dir.path())), []);
    let used = |store: &Store| {
        let usage = store.du().unwrap();
        usage.items.iter().filter_map(|item| item.last_used).max()
    };
    assert!(used(&hands.open(dir.path())).unwrap() <= now_micros());
    hands.set(2 * HOUR);
    let gone = prune_old(&hands.open(dir.path()));
    let kinds = ["Record", "Layer", "CacheMount", "GitMirror", "StatCache"];
    for kind in kinds {
        let is_kind = |item: &&Pruned| format!("{item:?}").starts_with(kind);
        assert_eq!(gone.iter().filter(is_kind).count(), 1, "{kind} in {gone:?}");
    }
}

#[test]
fn what_a_killed_process_published_in_the_future_is_seen_to_be_old_one_day() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let store = hands.open(dir.path());
    let id = layer(&store, 1).id;
    store
        .index()
        .write(|t| t.execute("DELETE FROM layers", []))
        .unwrap();
    let path = store.layer_path(&id);
    drop(store);
    let changed = || fs::changed_micros(&path).unwrap();
    let first = changed();
    hands.set(-DAY);
    hands.open(dir.path()).prune(&EVERYTHING).unwrap();
    assert!(changed() > first || now_micros() < first.unwrap() + SECOND);
    hands.set(0);
    hands.open(dir.path()).prune(&EVERYTHING).unwrap();
    assert_eq!(changed(), None);
}

#[test]
fn collections_by_themselves_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let store = hands.open(dir.path());
    let policy = Policy {
        rules: Vec::new(),
        interval: Duration::from_secs(3_600),
    };
    // What the clock says, and whether there is a collection then.
    let days = [
        (0, true),
        (0, false),
        (YEAR, true),
        (YEAR, false),
        (0, true),
        (-DAY, true),
        (-DAY, false),
        (2 * HOUR - DAY, true),
    ];
    for (ahead, is_due) in days {
        hands.set(ahead);
        let collected = store.collect_if_due(&policy).unwrap();
        assert_eq!(collected.is_some(), is_due, "{ahead}");
    }
}

#[test]
fn leases_and_failed_steps_end() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    hands.set(YEAR);
    let store = hands.open(dir.path());
    let left = layer(&store, 1);
    let build = "0000000a".parse().unwrap();
    assert!(store.keep_failed(&build, 0, &left, &[]).unwrap());
    drop(store);
    hands.set(0);
    let store = hands.open(dir.path());
    assert_eq!(prune_old(&store), []);
    assert_eq!(store.failed_steps().unwrap().len(), 1);
    hands.set(4 * DAY);
    assert_eq!(store.failed_steps().unwrap().len(), 0);
    store.collect(&Collection::default()).unwrap();
    hands.set(0);
    assert_eq!(store.failed_steps().unwrap().len(), 0);
    assert!(!is_there(&store, &left.id));
}

fn build_at(store: &Store) -> BuildRow {
    let journal = store.history().begin().unwrap();
    let row = BuildRow {
        id: journal.id().clone(),
        series: [1; 32],
        started: journal.started(),
        took: SECOND,
        status: BuildStatus::Done,
        context: ".".to_owned(),
        dockerfile: "Dockerfile".to_owned(),
        target: None,
        tags: Vec::new(),
        error: None,
        steps: 1,
        ran: 1,
        cached: 0,
        saved: 0,
        warnings: 0,
    };
    store.history().finish(journal, &row).unwrap();
    row
}

#[test]
fn the_latest_builds_are_those_that_ended_last() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    let options = OpenOptions {
        history: Keep {
            builds: 3,
            ..Keep::default()
        },
        ..OpenOptions::default()
    };
    let store = hands.open_with(dir.path(), options);
    let history = store.history();
    hands.set(YEAR);
    let mut ids: Vec<_> = (0..3).map(|_| build_at(&store).id).collect();
    // One that the clock is set back under.
    let journal = history.begin().unwrap();
    hands.set(0);
    let row = BuildRow {
        id: journal.id().clone(),
        started: journal.started(),
        ..build_at(&store)
    };
    history.finish(journal, &row).unwrap();
    let rows = history.rows().unwrap();
    assert!(
        rows.iter().all(|row| row.started <= now_micros()),
        "{rows:?}"
    );
    assert_eq!(rows.len(), 3);
    assert!(rows.iter().any(|row| row.id == ids[2]), "{rows:?}");
    ids.clear();
    hands.set(DAY);
    ids.extend((0..3).map(|_| build_at(&store).id));
    ids.reverse();
    assert_eq!(history.latest(&[1; 32], 3).unwrap(), ids);
    hands.set(40 * DAY);
    assert_eq!(history.trim(false).unwrap().len(), 3);
}

#[test]
fn who_keeps_others_from_beginning_does_not_wait_for_itself() {
    let dir = tempfile::tempdir().unwrap();
    let hands = Hands::default();
    hands.set(DAY);
    let store = hands.open(dir.path());
    let began = store.sessions.current().unwrap().started();
    let hold = store.sessions.hold().unwrap();
    hands.set(0);
    assert!(store.sessions.current().unwrap().started() < began);
    drop(hold);
    assert_eq!(fs::list(&dir.path().join("sessions")).unwrap().len(), 1);
    assert!(store.repair(&[]).unwrap().is_empty());
    drop(store);
    assert_eq!(fs::list(&dir.path().join("sessions")).unwrap(), [""; 0]);
}
