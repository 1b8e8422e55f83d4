//! Names without a registry, where `registries.conf` says what they stand for.

use crate::support::{Place, Ran, Server};

/// A place whose registry has a small image, by two names.
fn with_image() -> (Place, Server, String) {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let context = place.context(
        "ctx",
        &[("f", "1"), ("Dockerfile", "FROM scratch\nCOPY f /f\n")],
    );
    place.ok(["build", "-q", "-t", "made"], [&context]);
    for name in ["team/tool:1", "sought:latest"] {
        let there = format!("{}/{name}", registry.host);
        place.run(["tag", "made", &there]).ok();
        place.run(["push", "-q", &there]).ok();
    }
    let id = place.run(["images", "-q", "--no-trunc", "made"]).ok();
    (place, registry, id)
}

/// A store of its own under settings of a test's.
struct User {
    place: Place,
}

impl User {
    fn new(settings: &str) -> User {
        let place = Place::new();
        std::fs::write(place.path("registries.conf"), settings).unwrap();
        User { place }
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let mut command = self.place.command(arguments);
        let settings = self.place.path("registries.conf");
        Ran::of(command.env("CONTAINERS_REGISTRIES_CONF", settings))
    }
}

#[test]
fn an_alias_is_pulled_and_found_again() {
    let (place, registry, id) = with_image();
    let whole = format!("{}/team/tool:1", registry.host);
    let user = User::new(&format!(
        "[aliases]\ntool = \"{}/team/tool\"\n",
        registry.host
    ));
    assert_eq!(user.run(&["pull", "-q", "tool:1"]).ok(), id);
    // It is kept under what it is, and the short name finds it.
    let listed = user.run(&["images"]).ok();
    assert!(listed.contains(&format!("{}/team/tool", registry.host)));
    assert_eq!(user.run(&["images", "-q", "--no-trunc", "tool:1"]).ok(), id);
    let told: serde_json::Value =
        serde_json::from_str(&user.run(&["inspect", "tool:1"]).ok()).unwrap();
    assert_eq!(told[0]["RepoTags"], serde_json::json!([whole]));
    let created = user.run(&["create", "--pull", "never", "tool:1", "/f"]);
    let container = created.ok();
    user.run(&["rm", &container]).ok();
    // So does what is sent and saved.
    place.run(["remote", "rm", &whole]).ok();
    assert_eq!(user.run(&["push", "-q", "tool:1"]).ok(), whole);
    assert_eq!(Place::new().run(["pull", "-q", &whole]).ok(), id);
    let archive = user.place.path("saved.tar");
    user.run(&["save", "-o", archive.to_str().unwrap(), "tool:1"])
        .ok();
    let other = Place::new();
    other.ok(["load", "-q", "-i"], [&archive]);
    assert_eq!(other.run(["images", "-q", "--no-trunc", &whole]).ok(), id);
    let removed = user.run(&["rmi", "tool:1"]).ok();
    assert!(
        removed.starts_with(&format!("Untagged: {whole}")),
        "{removed}"
    );
    assert_eq!(user.run(&["images", "-q"]).ok(), "");
}

#[test]
fn other_registries_are_searched() {
    let (_place, registry, id) = with_image();
    // Nobody listens at the first one.
    let settings = format!(
        "unqualified-search-registries = [\"127.0.0.1:1\", \"{}\"]\n",
        registry.host
    );
    let user = User::new(&settings);
    let ran = user.run(&["pull", "-q", "sought"]);
    assert_eq!(ran.ok(), id);
    let passed = format!("trying `{}/sought:latest`", registry.host);
    assert!(ran.stderr.contains(&passed), "{ran}");
    let listed = user.run(&["images"]).ok();
    assert!(listed.contains(&format!("{}/sought", registry.host)));
    // A name in the store is what docker takes it for first.
    user.run(&["tag", "sought", "sought:latest"]).ok();
    user.run(&["pull", "-q", "sought:other"])
        .fails(4, "sought/manifests/other");

    let user = User::new(&format!("{settings}short-name-mode = \"enforcing\"\n"));
    let ran = user.run(&["pull", "-q", "sought"]);
    ran.fails(1, "`sought` may be `127.0.0.1:1/sought:latest` or `");
    assert!(ran.stderr.contains("hint: "), "{ran}");
    let whole = format!("{}/sought", registry.host);
    assert_eq!(user.run(&["pull", "-q", &whole]).ok(), id);
}

#[test]
fn mistakes_are_told_where_something_is_pulled() {
    let user = User::new("unqualified-search-registries = []\n");
    user.run(&["pull", "no-such-image"])
        .fails(3, "`no-such-image` has no registry, it has no alias");
    let user = User::new("short-name-mode = \"strict\"\n");
    user.run(&["pull", "no-such-image"])
        .fails(3, "`short-name-mode` is `strict`");
    // What lies here is found whatever is wrong there.
    user.run(&["inspect", "no-such-image"])
        .fails(1, "no-such-image");
    assert_eq!(user.run(&["images", "-q", "no-such-image"]).ok(), "");
}
