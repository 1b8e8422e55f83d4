//! Processes that work on one store and are killed at any moment leave it valid.

use std::io::{Read, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use store::content::gc::{PruneImages, PruneOptions};
use store::index::RecordRow;
use store::layer::compress::CompressionChoice;
use store::oci::{DiffId, ImageConfig, Platform, Reference};
use store::{OpenOptions, Store};

/// Numbers that look random and are the same each time.
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        // Xorshift: any spread will do.
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

const EVERYTHING: PruneOptions = PruneOptions {
    until: None,
    cache: true,
    images: PruneImages::Nameless,
    dry_run: false,
};

/// Without the grace, so that collections find something to take beside a process at work.
fn open(root: &Path) -> Result<Store, store::StoreError> {
    let options = OpenOptions {
        boot_id: None,
        grace: Duration::ZERO,
        ..OpenOptions::default()
    };
    Store::open_with(root, &options)
}

fn build_image(store: &Store, random: &mut Random) -> Result<(), store::StoreError> {
    let mut diff_ids: Vec<DiffId> = Vec::new();
    let mut layers = Vec::new();
    for _ in 0..=random.below(2) {
        let content = random.below(20).to_string();
        let info = store.publish_layer(|| {
            let active = store.snapshots().prepare(&[])?;
            std::fs::write(active.upper().join("file"), content).unwrap();
            // Equal content is an equal layer, so publishers meet.
            let file = std::fs::File::options()
                .write(true)
                .open(active.upper().join("file"))
                .unwrap();
            file.set_modified(std::time::UNIX_EPOCH).unwrap();
            active.commit().map_err(store::StoreError::from)
        })?;
        diff_ids.push(store.ensure_diff_id(&info.id)?);
        layers.push(info.id);
    }
    let mut key = [0; 32];
    key[0] = u8::try_from(random.below(20)).unwrap();
    let record = RecordRow {
        op: [0; 32],
        result: Vec::new(),
        layers,
        ingredients: Vec::new(),
        created: 1,
    };
    store.index().record_put(&key, &record)?;
    let mut config = ImageConfig::scratch(&Platform::host());
    config.rootfs.diff_ids = diff_ids;
    let id = store
        .images()
        .put_image(&serde_json::to_vec(&config).unwrap(), None)?;
    let name: Reference = format!("image{}", random.below(5)).parse().unwrap();
    store.images().tag(&name, &id)?;
    if random.below(4) == 0 {
        store.manifest_for(&id, CompressionChoice::AS_THEY_ARE)?;
    }
    Ok(())
}

/// Leaves so much of the index free that the next collection makes it smaller.
fn grow_index(store: &Store) -> Result<(), store::StoreError> {
    let large = vec![7; 1024 * 1024];
    let keys: Vec<String> = (0..6)
        .map(|number| format!("test.{}.{number}", std::process::id()))
        .collect();
    for key in &keys {
        store.index().meta_put(key, &large)?;
    }
    for key in &keys {
        store.index().meta_remove(key)?;
    }
    Ok(())
}

fn work(root: &Path, seed: u64) -> Result<(), store::StoreError> {
    let mut random = Random(seed);
    loop {
        // A new session each time, so that collections find something to take.
        let store = open(root)?;
        for _ in 0..random.below(5) {
            match random.below(6) {
                0..=1 => build_image(&store, &mut random)?,
                2 => {
                    let content = random.below(1000).to_string();
                    store.blobs().put(content.as_bytes())?;
                }
                3 => {
                    let name = format!("image{}", random.below(5));
                    store.images().untag(&name.parse().unwrap())?;
                }
                4 => grow_index(&store)?,
                _ => {
                    store.prune(&EVERYTHING)?;
                }
            }
            // Tells the parent that one more thing is done.
            std::io::stdout().write_all(b".").unwrap();
            std::io::stdout().flush().unwrap();
        }
    }
}

#[test]
#[ignore = "runs in a process of its own, started and killed by the test below"]
fn worker() {
    let value = |name: &str| std::env::var(name).expect("set by the test that starts this");
    let seed = value("STORE_TEST_SEED").parse().unwrap();
    let error = work(Path::new(&value("STORE_TEST_ROOT")), seed).unwrap_err();
    panic!("{error}");
}

#[test]
fn killed_processes_leave_a_valid_store() {
    const ROUNDS: u64 = 10;
    let dir = tempfile::tempdir().unwrap();
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..ROUNDS {
        let mut workers: Vec<_> = (0..2)
            .map(|worker| {
                Command::new(std::env::current_exe().unwrap())
                    .args(["--exact", "killed::worker", "--ignored", "--nocapture"])
                    .env("STORE_TEST_ROOT", dir.path())
                    .env("STORE_TEST_SEED", (round * 2 + worker + 1).to_string())
                    .stdout(Stdio::piped())
                    .spawn()
                    .unwrap()
            })
            .collect();
        for worker in &mut workers {
            // Killed as soon as it has said this much, wherever it is by then.
            let mut said = vec![0; usize::try_from(30 + random.below(40)).unwrap()];
            let stdout = worker.stdout.as_mut().unwrap();
            stdout
                .read_exact(&mut said)
                .expect("the worker goes on until it is killed");
            worker.kill().unwrap();
        }
        for mut worker in workers {
            worker.wait().unwrap();
        }
        let store = open(dir.path()).unwrap();
        let problems = store.check().unwrap();
        assert!(problems.is_empty(), "round {round}: {problems:?}");
        store.prune(&EVERYTHING).unwrap();
        let problems = store.check().unwrap();
        assert!(problems.is_empty(), "round {round}: {problems:?}");
        for (folder, left) in [("tmp", 0), ("locks", 0), ("sessions", 0)] {
            let found = std::fs::read_dir(dir.path().join(folder)).unwrap().count();
            assert_eq!(found, left, "round {round}: {folder}");
        }
    }
}
