//! What runs, and what does not have to.

use std::time::{Duration, SystemTime};

use crate::support::{Built, Place};

const DOCKERFILE: &str = "FROM busybox
COPY one /one
RUN cat /one > /got-one
FROM busybox
COPY two /two
RUN cat /two > /got-two
COPY --from=0 /got-one /got-one
RUN cat /got-one /got-two > /both
";

#[test]
fn a_second_build_of_an_unchanged_tree_runs_nothing() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[("one", "1"), ("two", "2"), ("Dockerfile", DOCKERFILE)],
    );
    assert_eq!(place.build("img", &context).runs().len(), 3);
    let id = place.run(["images", "-q", "--no-trunc", "img"]).ok();
    let again = place.build("img", &context);
    assert!(again.ran.is_empty(), "{again:?}");
    assert_eq!(place.run(["images", "-q", "--no-trunc", "img"]).ok(), id);
}

#[test]
fn touching_and_moving_a_tree_reruns_nothing() {
    let place = Place::with_busybox();
    let files = [("one", "1"), ("two", "2"), ("Dockerfile", DOCKERFILE)];
    let context = place.context("ctx", &files);
    place.build("img", &context);
    for (name, _) in files {
        let file = std::fs::File::options()
            .write(true)
            .open(context.join(name))
            .unwrap();
        file.set_modified(SystemTime::now() - Duration::from_secs(86_400))
            .unwrap();
    }
    let touched = place.build("img", &context);
    assert!(touched.ran.is_empty(), "{touched:?}");
    let elsewhere = place.context("elsewhere", &files);
    let moved = place.build("img", &elsewhere);
    assert!(moved.ran.is_empty(), "{moved:?}");
}

#[test]
fn a_changed_file_reruns_what_depends_on_it_and_nothing_else() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[("one", "1"), ("two", "2"), ("Dockerfile", DOCKERFILE)],
    );
    place.build("img", &context);
    std::fs::write(context.join("two"), "changed").unwrap();
    let built = place.build("img", &context);
    assert_eq!(
        built.runs(),
        ["cat /two > /got-two", "cat /got-one /got-two > /both"]
    );
    assert_eq!(place.sh("img", "cat /both"), "1changed");
}

#[test]
fn a_step_that_gives_the_same_tree_again_stops_the_change() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nCOPY in /in\nRUN wc -c < /in > /count && rm /in\nFROM busybox\nCOPY --from=0 /count /count\nRUN echo after > /after\n";
    let context = place.context("ctx", &[("in", "aaa"), ("Dockerfile", dockerfile)]);
    place.build("img", &context);
    std::fs::write(context.join("in"), "bbb").unwrap();
    let built = place.build("img", &context);
    assert_eq!(built.runs(), ["wc -c < /in > /count && rm /in"]);
}

#[test]
fn no_cache_runs_everything() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[("one", "1"), ("two", "2"), ("Dockerfile", DOCKERFILE)],
    );
    place.build("img", &context);
    let ran = place.words(["build", "--progress", "plain", "--no-cache"], [&context]);
    ran.ok();
    assert_eq!(Built::of(&ran).runs().len(), 3);
}

#[test]
fn pruning_frees_what_nothing_uses_and_keeps_the_rest() {
    let place = Place::with_busybox();
    let context = place.context(
        "ctx",
        &[("one", "1"), ("two", "2"), ("Dockerfile", DOCKERFILE)],
    );
    place.build("img", &context);
    place.run(["prune"]).ok();
    let again = place.build("img", &context);
    assert!(again.ran.is_empty(), "prune took a cached step: {again:?}");
    place.run(["rmi", "img"]).ok();
    let before = bytes(&place);
    place.run(["prune", "--all"]).ok();
    assert!(bytes(&place) < before);
    assert_eq!(place.sh("busybox", "echo here"), "here");
    assert_eq!(place.build("img", &context).runs().len(), 3);
}

/// What `du` says that the store takes.
fn bytes(place: &Place) -> u64 {
    let lines = place.run(["du", "--json"]).ok();
    let sizes = lines.lines().map(|line| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["SizeBytes"].as_u64().unwrap()
    });
    sizes.sum()
}
