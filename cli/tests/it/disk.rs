//! What is on disk: checked, repaired, measured, given back.

use std::path::PathBuf;

use crate::support::{Place, Ran};

/// The only blob, layer or other entry of a folder of the store.
fn entries(place: &Place, folder: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(place.store().join(folder)).unwrap();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn built() -> (Place, PathBuf) {
    let place = Place::new();
    let context = place.context(
        "app",
        &[
            ("Dockerfile", "FROM scratch\nCOPY file /\n"),
            ("file", "text"),
        ],
    );
    place.build("app", &context);
    (place, context)
}

fn check(place: &Place, flags: &[&str]) -> Ran {
    place.run([&["store", "check"], flags].concat())
}

#[test]
fn a_whole_store_has_nothing_wrong() {
    let (place, _) = built();
    let ran = check(&place, &[]);
    assert_eq!(ran.ok(), "");
    assert!(ran.stderr.contains("0 wrong, 0 left over"), "{ran}");
}

#[test]
fn damage_is_told_repaired_and_built_again() {
    let (place, context) = built();
    let layer = entries(&place, "layers").remove(0);
    std::fs::write(layer.join("fs/file"), "TEXT").unwrap();
    let told = check(&place, &[]);
    told.fails(1, "1 wrong, 0 left over");
    let line = format!("wrong: {}: layer `", layer.display());
    assert!(told.stdout.starts_with(&line), "{told}");
    assert_eq!(check(&place, &["--quick"]).ok(), "");

    let told = check(&place, &["--format", "json"]);
    let value: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert_eq!(value["Kind"], "layer-damaged");
    assert_eq!(value["Severity"], "wrong");
    assert_eq!(value["Path"], layer.to_str().unwrap());
    assert_eq!(value["Repaired"], serde_json::Value::Null);

    // The image cannot be without the layer.
    let repaired = check(&place, &["--repair"]).ok();
    assert_eq!(repaired.matches("(dropped)").count(), 2, "{repaired}");
    assert_eq!(check(&place, &[]).ok(), "");
    assert_eq!(place.ok(["images", "-q"], [""; 0]), "");
    assert_eq!(place.build("app", &context).ran.len(), 1);
    assert_eq!(check(&place, &[]).ok(), "");
}

#[test]
fn an_index_that_cannot_be_read_is_put_aside() {
    let (place, context) = built();
    for name in ["index.db-wal", "index.db-shm"] {
        std::fs::remove_file(place.store().join(name)).unwrap();
    }
    std::fs::write(place.store().join("index.db"), "no database".repeat(1000)).unwrap();
    let told = check(&place, &[]);
    told.fails(1, "");
    assert!(told.stdout.contains("index.db: cannot use"), "{told}");
    check(&place, &["--repair"]).ok();
    place.build("app", &context);
    assert_eq!(check(&place, &["--quick"]).code, Some(0));
}
