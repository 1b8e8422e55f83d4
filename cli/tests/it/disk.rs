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
    place.wait_until_unused();
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

/// Sums up a field of JSON lines.
fn sum(lines: &str, field: &str) -> u64 {
    let values = lines.lines().map(|line| {
        let value: serde_json::Value = serde_json::from_str(line).unwrap();
        value[field].as_u64().unwrap()
    });
    values.sum()
}

/// What `du` says of the store's disk, in bytes.
fn measured(place: &Place) -> u64 {
    let text = crate::support::tool("du", &["-s", "-B1", place.store().to_str().unwrap()]);
    text.split_whitespace().next().unwrap().parse().unwrap()
}

/// A store without a session of its own in which a cache is: built and no longer named.
fn cached() -> Place {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nRUN dd if=/dev/zero of=/zeros bs=1M count=3\nRUN --mount=type=cache,target=/c,id=kept echo x > /c/x\n";
    let context = place.context("cached", &[("Dockerfile", dockerfile)]);
    place.build("cached", &context);
    place.run(["rmi", "cached"]).ok();
    // The process that writes the store out may still remove what the build left.
    place.wait_until_unused();
    place
}

#[test]
fn every_byte_is_counted_once() {
    let place = cached();
    let rows = place.run(["du", "--json"]).ok();
    assert_eq!(sum(&rows, "SizeBytes"), measured(&place), "{rows}");
    let items = place.run(["du", "--verbose", "--json"]).ok();
    assert_eq!(sum(&items, "SizeBytes"), measured(&place), "{items}");
    let mounts = place
        .run(["du", "-v", "--filter", "type=exec.cachemount"])
        .ok();
    assert_eq!(mounts.lines().count(), 2, "{mounts}");
    assert!(mounts.contains("kept ("), "{mounts}");
    place
        .run(["du", "--filter", "shared"])
        .fails(2, "no such property as `shared`");
}

#[test]
fn prune_tells_exactly_what_it_then_frees() {
    let place = cached();
    let told = place.run(["prune", "-a", "--dry-run", "--json"]).ok();
    let before = place.run(["du", "--json"]).ok();
    let done = place.run(["prune", "-a", "--json"]).ok();
    let after = place.run(["du", "--json"]).ok();
    let total = |lines: &str| {
        let last: serde_json::Value = serde_json::from_str(lines.lines().last().unwrap()).unwrap();
        last["SizeBytes"].as_u64().unwrap()
    };
    assert_eq!(total(&told), total(&done), "{told}\n{done}");
    assert!(total(&done) > 3_000_000, "{done}");
    // What the index and the folders take changes on the way.
    let data = |lines: &str| -> u64 {
        let kinds = [
            "Images",
            "Build Cache",
            "Cache Mounts",
            "Stat Caches",
            "Blobs",
            "Temporary",
        ];
        let rows = lines.lines().filter(|line| {
            kinds
                .iter()
                .any(|kind| line.contains(&format!("\"{kind}\"")))
        });
        rows.map(|line| sum(line, "SizeBytes")).sum()
    };
    assert_eq!(data(&before) - data(&after), total(&done));
    assert_eq!(place.run(["store", "check"]).ok(), "");
    assert_eq!(place.sh("busybox", "echo here"), "here");
}

#[test]
fn prune_takes_what_sizes_and_filters_choose() {
    let place = cached();
    let prune = |flags: &[&str]| place.run([&["prune"], flags].concat()).ok();
    // What nothing needs goes whatever is asked for.
    prune(&[]);
    let nothing = "Total reclaimed space: 0B";
    assert_eq!(prune(&["--max-used-space", "1GB"]), nothing);
    assert_eq!(prune(&["--all", "--filter", "until=1h"]), nothing);
    assert_eq!(prune(&["--keep-duration", "1h"]), nothing);
    assert_eq!(
        prune(&["--keep-storage", "1GB", "--max-used-space", "1kB"]),
        nothing
    );
    assert_eq!(prune(&["--filter", "type=git"]), nothing);
    let mounts = prune(&["--filter", "type=cache-mounts"]);
    assert!(
        mounts.starts_with("Deleted cache mount /kept\n"),
        "{mounts}"
    );
    let layers = prune(&["--max-used-space", "1MB"]);
    assert!(layers.contains("Deleted layer b3-"), "{layers}");
    for (flags, text) in [
        (
            ["--max-used-space", "lots"],
            "expected a size such as 500MB",
        ),
        (["--filter", "inuse"], "what is in use is never removed"),
        (["--filter", "unil=3h"], "did you mean `until`?"),
    ] {
        place.run([&["prune"][..], &flags].concat()).fails(2, text);
    }
}

#[test]
fn images_without_a_name_are_chosen_by_their_labels() {
    let place = Place::new();
    for stage in ["test", "prod"] {
        let dockerfile = format!("FROM scratch\nLABEL stage={stage}\nCOPY Dockerfile /\n");
        let context = place.context(stage, &[("Dockerfile", &dockerfile)]);
        place.ok(["build", "-q"], [&context]);
    }
    let ids = |place: &Place| place.run(["images", "-q", "-a"]).ok().lines().count();
    assert_eq!(ids(&place), 2);
    place.run(["prune", "--filter", "label=stage=test"]).ok();
    assert_eq!(ids(&place), 1);
    place.run(["prune", "--filter", "label!=stage=prod"]).ok();
    assert_eq!(ids(&place), 1);
    place.run(["prune", "--filter", "label=stage"]).ok();
    assert_eq!(ids(&place), 0);
}

#[test]
fn the_configuration_is_checked_whatever_the_command() {
    let place = Place::new();
    let file = place.path("config.toml");
    std::fs::write(&file, "[gc]\nmax_usd = \"1GB\"\n").unwrap();
    let config = file.to_str().unwrap();
    let ran = place.run(["--config", config, "images"]);
    ran.fails(
        2,
        "config.toml:2:1: unknown key `gc.max_usd`: did you mean `max_used`?",
    );
    let ran = Ran::of(
        place
            .command(["images"])
            .env("LONGSHORE_CONFIG", "/no/such.toml"),
    );
    ran.fails(3, "cannot read the configuration `/no/such.toml`");
    std::fs::write(&file, "[history]\nbuilds = 1\n").unwrap();
    for n in ["1", "2"] {
        let context = place.context(
            "app",
            &[("Dockerfile", "FROM scratch\nCOPY Dockerfile /\n")],
        );
        place.ok(["--config", config, "build", "-q", "-t", n], [&context]);
    }
    assert_eq!(
        place
            .run(["history", "ls", "--format", "json"])
            .ok()
            .lines()
            .count(),
        1
    );
}

#[test]
fn builds_collect_by_the_policy_of_the_configuration() {
    let place = cached();
    let file = place.path("config.toml");
    let config = file.to_str().unwrap();
    let context = place.context(
        "next",
        &[("Dockerfile", "FROM busybox\nRUN echo next > /next\n")],
    );
    let build = |policy: &str| {
        std::fs::write(&file, policy).unwrap();
        place.ok(
            ["--config", config, "build", "-q", "-t", "next"],
            [&context],
        );
    };
    let mounts = || entries(&place, "cache-mounts");
    build("[gc]\nmax_used = 1\nreserved = 0\ninterval = \"0\"\n");
    // Everything is younger than ten minutes, which protects it as if a build still used it.
    let mount = mounts().remove(0);
    let hour_ago = std::time::SystemTime::now() - std::time::Duration::from_secs(3_600);
    let info = std::fs::File::open(mount.join("info")).unwrap();
    info.set_modified(hour_ago).unwrap();
    build("[gc]\nenabled = false\nmax_used = 1\nreserved = 0\ninterval = \"0\"\n");
    build("[gc]\nmax_used = 1\nreserved = 0\ninterval = \"1h\"\n");
    assert_eq!(mounts().len(), 1, "the last collection was a moment ago");
    build("[gc]\ninterval = \"0\"\n[[gc.policy]]\nkeep_duration = \"2h\"\nmax_used = 1\n");
    build("[gc]\ninterval = \"0\"\n[[gc.policy]]\nkinds = [\"git\"]\nmax_used = 1\n");
    assert_eq!(mounts().len(), 1);
    build("[gc]\nmax_used = 1\nreserved = 0\ninterval = \"0\"\n");
    assert!(mounts().is_empty());
    assert_eq!(place.run(["store", "check"]).code, Some(0));
    assert_eq!(place.sh("next", "cat /next"), "next");
}
