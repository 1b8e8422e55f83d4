//! What is damaged in the store: told of, dropped, and made again.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use builder::solve::{ProgressEvent, ProgressSink};

use crate::build::Bench;

const DOCKERFILE: &str = "FROM scratch\nCOPY a /a\nCOPY b /b\n";

/// Notes, and steps that ran.
#[derive(Default)]
struct Told {
    notes: Mutex<Vec<String>>,
    ran: Mutex<usize>,
}

impl ProgressSink for Told {
    fn event(&self, event: ProgressEvent) {
        match event {
            ProgressEvent::Note { text, .. } => self.notes.lock().unwrap().push(text),
            ProgressEvent::Runs { .. } => *self.ran.lock().unwrap() += 1,
            _ => {}
        }
    }
}

/// Builds; how many steps ran, and what was noted.
fn build(bench: &Bench) -> (usize, Vec<String>) {
    let told = Arc::new(Told::default());
    let sink = Arc::clone(&told) as Arc<dyn ProgressSink>;
    bench.build_telling(&bench.request(), &sink).unwrap();
    let mut notes = told.notes.lock().unwrap().clone();
    notes.sort();
    let ran = *told.ran.lock().unwrap();
    (ran, notes)
}

/// Builds, damages the store, and builds twice more: all is made again, told of once, and then it is as it was.
fn check(damage: impl Fn(&Bench), expected: [&str; 2]) {
    let bench = Bench::new(DOCKERFILE, &[("a", "A"), ("b", "B")]);
    assert_eq!(build(&bench), (2, Vec::new()));
    damage(&bench);
    let (ran, notes) = build(&bench);
    assert_eq!(ran, 2);
    assert_eq!(notes, expected);
    assert_eq!(build(&bench), (0, Vec::new()));
}

fn layers(bench: &Bench) -> Vec<PathBuf> {
    let layers = std::fs::read_dir(bench.store.root().join("layers")).unwrap();
    layers.map(|layer| layer.unwrap().path()).collect()
}

const RECORDS: [&str; 2] = [
    "the cache record of [1/2] COPY a /a is damaged and was dropped",
    "the cache record of [2/2] COPY b /b is damaged and was dropped",
];

const LAYERS: [&str; 2] = [
    "the layer of [1/2] COPY a /a is lost, and is made again",
    "the layer of [2/2] COPY b /b is lost, and is made again",
];

#[test]
fn damaged_records_are_dropped() {
    for value in ["x''", "x'00'", "x'7b7d'"] {
        check(
            |bench| {
                let index = rusqlite::Connection::open(bench.store.root().join("index.db"));
                let set = format!("UPDATE records SET result = {value}");
                assert!(index.unwrap().execute(&set, []).unwrap() >= 2, "{set}");
            },
            RECORDS,
        );
    }
}

#[test]
fn layers_that_are_gone_are_made_again() {
    check(
        |bench| {
            for layer in layers(bench) {
                std::fs::remove_dir_all(layer).unwrap();
            }
        },
        LAYERS,
    );
}

#[test]
fn what_is_left_of_a_layer_is_no_layer() {
    check(
        |bench| {
            for layer in layers(bench) {
                std::fs::remove_dir_all(layer.join("fs")).unwrap();
                std::fs::write(layer.join("fs"), "no directory").unwrap();
            }
        },
        LAYERS,
    );
}
