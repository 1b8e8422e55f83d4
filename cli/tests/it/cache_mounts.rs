//! `longshore cache`: what steps keep between builds.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use crate::support::Place;

fn build(place: &Place, dockerfile: &str, flags: &[&str]) {
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut command = place.command(["build", "-q"]);
    command.args(flags).arg(context);
    crate::support::Ran::of(&mut command).ok();
}

fn listed(place: &Place) -> Vec<serde_json::Value> {
    let text = place.run(["cache", "ls", "--format", "json"]).ok();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

const TWO: &str = "FROM busybox
RUN --mount=type=cache,target=/root/.npm head -c 100000 /dev/zero > /root/.npm/data
RUN --mount=type=cache,id=apt,target=/a,sharing=locked echo x > /a/x
";

#[test]
fn caches_are_listed_with_exact_sizes_as_du_and_prune_see_them() {
    let place = Place::with_busybox();
    assert!(listed(&place).is_empty());
    build(&place, TWO, &[]);
    let all = listed(&place);
    let field =
        |name: &str| -> Vec<&serde_json::Value> { all.iter().map(|one| &one[name]).collect() };
    assert_eq!(field("ID"), ["/root/.npm", "apt"]);
    assert_eq!(field("Sharing"), ["shared", "locked"]);
    assert_eq!(field("InUse"), [false, false]);
    let sizes: Vec<u64> = all
        .iter()
        .map(|one| one["SizeBytes"].as_u64().unwrap())
        .collect();
    assert!(sizes[0] >= 100_000 && sizes[0] < 200_000, "{sizes:?}");
    for one in &all {
        assert!(one["Created"].as_str() <= one["LastUsed"].as_str(), "{one}");
        let name = one["Cache"].as_str().unwrap();
        let path = place.store().join("cache-mounts").join(name);
        assert!(path.is_dir());
        let du = crate::support::tool("du", &["-s", "-B1", path.to_str().unwrap()]);
        let bytes = one["SizeBytes"].as_u64().unwrap();
        assert_eq!(du.split_whitespace().next().unwrap(), bytes.to_string());
    }
    let du = place
        .run(["du", "--format", "json", "--filter", "type=cache-mounts"])
        .ok();
    let du: serde_json::Value = serde_json::from_str(&du).unwrap();
    assert_eq!(du["SizeBytes"].as_u64().unwrap(), sizes.iter().sum::<u64>());
    let table = place.run(["cache", "ls", "apt"]).ok();
    let lines: Vec<&str> = table.lines().collect();
    assert!(lines[0].starts_with("CACHE"), "{table}");
    assert!(lines.len() == 2 && lines[1].contains("locked"), "{table}");
    assert_eq!(place.run(["cache", "ls", "-q"]).ok().lines().count(), 2);
    let pruned = place
        .run(["prune", "--filter", "type=cache-mounts", "--format", "json"])
        .ok();
    let total: serde_json::Value = serde_json::from_str(pruned.lines().last().unwrap()).unwrap();
    assert!(
        total["SizeBytes"].as_u64().unwrap() >= sizes.iter().sum::<u64>(),
        "{pruned}"
    );
    assert!(listed(&place).is_empty());
}

#[test]
fn caches_are_removed_by_id_and_by_name() {
    let place = Place::with_busybox();
    build(&place, TWO, &[]);
    build(
        &place,
        TWO,
        &["--no-cache", "--build-arg", "BUILDKIT_CACHE_MOUNT_NS=team"],
    );
    assert_eq!(listed(&place).len(), 4);
    place
        .run(["cache", "rm", "absent"])
        .fails(1, "no such cache mount: `absent`");
    let ran = place.run(["cache", "rm", "apt", "apt"]);
    assert!(ran.ok().starts_with("Deleted cache mount apt "), "{ran}");
    let all = listed(&place);
    let ids: Vec<&str> = all.iter().map(|one| one["ID"].as_str().unwrap()).collect();
    assert_eq!(ids, ["/root/.npm", "team//root/.npm", "team/apt"]);
    let name = all[1]["Cache"].as_str().unwrap();
    place.run(["cache", "rm", &name[..12], "team/apt"]).ok();
    assert_eq!(listed(&place).len(), 1);
    let dockerfile = "FROM busybox\nRUN --mount=type=cache,target=/root/.npm ls /root/.npm > /ls\n";
    build(&place, dockerfile, &["-t", "img"]);
    assert_eq!(place.sh("img", "cat /ls"), "data");
}

#[test]
fn a_cache_in_use_stays_until_it_is_free() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox
RUN --mount=type=cache,id=used,target=/c echo started; while [ ! -e /c/go ]; do sleep 0.05; done
";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut child = place
        .command(["build", "--progress", "plain"])
        .arg(&context)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    lines
        .find(|line| line.as_ref().unwrap().ends_with(" started"))
        .unwrap()
        .unwrap();
    let build = place.run(["history", "ls", "-q", "-n", "1"]).ok();
    let one = &listed(&place)[0];
    assert_eq!(one["InUse"], true);
    assert_eq!(
        one["InUseBy"],
        serde_json::json!([format!("build {build}")])
    );
    let table = place.run(["cache", "ls"]).ok();
    assert!(table.contains(&format!("build {build}")), "{table}");
    let message = format!("the cache mount `used` is in use by build {build}");
    place.run(["cache", "rm", "used"]).fails(1, &message);
    assert_eq!(listed(&place).len(), 1);
    let mut waiting = place
        .command(["cache", "rm", "--force", "used"])
        .stderr(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    let mut stderr = BufReader::new(waiting.stderr.take().unwrap());
    stderr.read_line(&mut said).unwrap();
    assert_eq!(
        said,
        format!("waiting for build {build}, which uses `used`\n")
    );
    let name = one["Cache"].as_str().unwrap();
    let data = place.store().join("cache-mounts").join(name).join("data");
    std::fs::write(data.join("go"), "").unwrap();
    for line in lines {
        line.unwrap();
    }
    assert!(child.wait().unwrap().success());
    assert!(waiting.wait().unwrap().success());
    assert!(listed(&place).is_empty());
}
