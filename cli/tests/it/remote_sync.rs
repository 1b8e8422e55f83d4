//! `remote sync`: repositories, registries, layouts and lists, to where they are wanted.

use std::path::PathBuf;

use crate::support::{Place, Server, tool};

/// Two registries, the first with images in several repositories, all of different content.
struct World {
    place: Place,
    from: Server,
    to: Server,
}

impl World {
    fn new(names: &[&str]) -> World {
        let place = Place::new();
        let from = Server::registry(&place.path("from"));
        let to = Server::registry(&place.path("to"));
        for name in names {
            let context = place.context(
                "ctx",
                &[("f", name), ("Dockerfile", "FROM scratch\nCOPY f /f\n")],
            );
            let there = format!("{}/{name}", from.host);
            place.ok(["build", "-q", "-t", &there], [&context]);
            place.run(["push", "-q", &there]).ok();
        }
        World { place, from, to }
    }

    /// What a sync prints: what was done, and the names at the target.
    fn sync(&self, words: &[&str]) -> Vec<String> {
        let ran = self.place.run([&["remote", "sync"], words].concat());
        let without_digest = |line: &str| {
            let mut words = line.split_whitespace();
            let name = words.nth(1).unwrap().replace(&self.to.host, "TO");
            format!("{} {name}", line.split(' ').next().unwrap())
        };
        ran.ok().lines().map(without_digest).collect()
    }

    fn digest(&self, name: &str) -> String {
        self.place.run(["remote", "digest", name]).ok()
    }

    fn layout(&self) -> (PathBuf, String) {
        let path = self.place.path("layout");
        let text = format!("oci:{}", path.display());
        (path, text)
    }
}

#[test]
fn a_repository_keeps_its_tags() {
    let world = World::new(&["app:1", "app:2", "app:pr-1"]);
    let (from, to) = (
        format!("{}/app", world.from.host),
        format!("{}/kept", world.to.host),
    );
    let words = [&from, &to, "--exclude", "pr-*"];
    let dry = [&words[..], &["--dry-run"]].concat();
    let all = ["new TO/kept:1", "new TO/kept:2"];
    assert_eq!(world.sync(&dry), all);
    world
        .place
        .run(["remote", "digest", &format!("{to}:1")])
        .fails(4, "404");
    assert_eq!(world.sync(&words), all);
    assert_eq!(
        world.sync(&words),
        all.map(|line| line.replace("new", "same"))
    );
    for tag in ["1", "2"] {
        let name = |repository: &str| world.digest(&format!("{repository}:{tag}"));
        assert_eq!(name(&from), name(&to));
    }
    // One that names something else is told, and set right.
    let moved = [format!("{from}:pr-1"), format!("{to}:2")];
    world.place.run(["copy", "-q", &moved[0], &moved[1]]).ok();
    let expect = ["same TO/kept:1", "changed TO/kept:2"];
    assert_eq!(world.sync(&words), expect);
    // One tag alone, to the same name at the other registry.
    let (one, host) = (format!("{from}:pr-1"), world.to.host.as_str());
    assert_eq!(world.sync(&[&one, host]), ["new TO/app:pr-1"]);
}

#[test]
fn a_registry_goes_below_a_prefix() {
    let world = World::new(&["app:1", "team/web:1", "team/db:1", "tmp/x:1"]);
    let to = format!("{}/mirror", world.to.host);
    let words = [&world.from.host, &to, "--exclude-repo", "tmp/*"];
    let all = [
        "new TO/mirror/app:1",
        "new TO/mirror/team/db:1",
        "new TO/mirror/team/web:1",
    ];
    assert_eq!(world.sync(&words), all);
    let team = format!("{}/team/*", world.from.host);
    let expect = ["new TO/team/db:1", "new TO/team/web:1"];
    assert_eq!(world.sync(&[&team, &world.to.host]), expect);
    // Under the name of where it came from, which has a port.
    let scoped = format!("TO/{}/team/db:1", world.from.host.replace(':', "-"));
    let words = [&team, &world.to.host, "--scoped", "--repo", "*/db"];
    assert_eq!(world.sync(&words), [format!("new {scoped}")]);
}

#[test]
fn layouts_and_archives_carry_many_images() {
    let world = World::new(&["app:1", "app:2", "team/web:1"]);
    let (path, layout) = world.layout();
    let named =
        |what: &str| ["app:1", "app:2", "team/web:1"].map(|name| format!("{what} {layout}:{name}"));
    assert_eq!(world.sync(&[&world.from.host, &layout]), named("new"));
    assert_eq!(world.sync(&[&world.from.host, &layout]), named("same"));
    // From there to a registry, as if it had never been in between.
    let to = format!("{}/again", world.to.host);
    let expect = [
        "new TO/again/app:1",
        "new TO/again/app:2",
        "new TO/again/team/web:1",
    ];
    assert_eq!(world.sync(&[&layout, &to]), expect);
    let there = world.digest(&format!("{to}/team/web:1"));
    assert_eq!(
        world.digest(&format!("{}/team/web:1", world.from.host)),
        there
    );
    // The same in a tar, and tags alone of a single repository.
    let tar = world.place.path("layout.tar");
    let (tar, folder) = (tar.to_str().unwrap(), path.to_str().unwrap());
    tool("tar", &["-C", folder, "-cf", tar, "."]);
    let archive = format!("oci-archive:{tar}");
    let words = [&archive, &to, "--include", "2"];
    assert_eq!(world.sync(&words), ["same TO/again/app:2"]);
    let single = format!("oci:{}", world.place.path("single").display());
    let app = format!("{}/app", world.from.host);
    let tags = ["1", "2"].map(|tag| format!("new {single}:{tag}"));
    assert_eq!(world.sync(&[&app, &single]), tags);
    let expect = ["new TO/single:1", "new TO/single:2"];
    let to = format!("{}/single", world.to.host);
    assert_eq!(world.sync(&[&single, &to]), expect);
    world
        .place
        .run(["remote", "sync", &single, &world.to.host])
        .fails(2, "what is called `1` alone needs a repository");
}

#[test]
fn lists_are_read_as_skopeo_reads_them() {
    let world = World::new(&[
        "app:1.9",
        "app:1.10",
        "app:2.0",
        "team/web:a1",
        "team/web:b1",
    ]);
    let digest = world.digest(&format!("{}/app:2.0", world.from.host));
    let list = world.place.path("list.yaml");
    let text = format!(
        "{}:\n  tls-verify: false\n  images:\n    app:\n      - \"1.9\"\n      - \"{digest}\"\n  images-by-tag-regex:\n    team/web: ^a\n",
        world.from.host
    );
    std::fs::write(&list, &text).unwrap();
    let list = list.to_str().unwrap();
    // Skopeo puts them where ours finds the same.
    let to = format!("{}/lib", world.to.host);
    let tls = "--dest-tls-verify=false";
    let words = [
        "sync", "-q", "--all", tls, "--src", "yaml", "--dest", "docker", list, &to,
    ];
    let known = std::process::Command::new("skopeo")
        .args(["sync", "--help"])
        .output();
    let is_quiet = String::from_utf8_lossy(&known.unwrap().stdout).contains("--quiet");
    let words: Vec<&str> = words
        .into_iter()
        .filter(|word| *word != "-q" || is_quiet)
        .collect();
    tool("skopeo", &words);
    let same = world.sync(&["--src", "yaml", "--dest", "docker", "--all", list, &to]);
    let by_digest = format!("same TO/lib/app@{digest}");
    assert_eq!(
        same,
        ["same TO/lib/app:1.9", &by_digest, "same TO/lib/web:a1"]
    );

    let whole = format!("yaml:{list}");
    let other = format!("{}/other", world.to.host);
    let told = world.sync(&[&whole, &other, "--repo", "team/*"]);
    assert_eq!(told, ["new TO/other/team/web:a1"]);
    let text = format!(
        "{}:\n  images-by-semver:\n    app: '>= 1.10'\n",
        world.from.host
    );
    std::fs::write(list, text).unwrap();
    let told = world.sync(&[&whole, &other]);
    assert_eq!(told, ["new TO/other/app:1.10", "new TO/other/app:2.0"]);
}

#[test]
fn what_fails_is_told() {
    let world = World::new(&["app:1"]);
    let run = |words: &[&str]| world.place.run([&["remote", "sync"], words].concat());
    let app = format!("{}/app", world.from.host);
    run(&["*/app", &world.to.host]).fails(2, "`*/app` has a pattern and no registry");
    run(&[&app, "oci-archive:x.tar"]).fails(2, "is no target of a sync");
    run(&[&app, &format!("{}/x:1", world.to.host)]).fails(2, "has a tag or a digest");
    run(&["store:app", &world.to.host]).fails(2, "the store is synchronised with nothing");
    run(&["yaml:/no/such/file", &world.to.host]).fails(1, "cannot read `/no/such/file`");
    // One that is not there keeps the others from nothing, if that is wished.
    let list = world.place.path("list.yaml");
    let text = format!("{}:\n  images:\n    app: [\"0\", \"1\"]\n", world.from.host);
    std::fs::write(&list, text).unwrap();
    let list = format!("yaml:{}", list.display());
    let ran = run(&[&list, &world.to.host]);
    ran.fails(4, "app/manifests/0");
    assert_eq!(ran.stdout, "");
    let ran = run(&[&list, &world.to.host, "--keep-going"]);
    ran.fails(4, "app/manifests/0");
    assert!(ran.stdout.starts_with("new "), "{ran}");
}
