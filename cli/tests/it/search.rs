//! `search` and `remote search`, on our registry and on one that only has a catalog.

use crate::support::{Place, Server};

#[test]
fn images_are_found_in_registries() {
    let place = Place::with_busybox();
    let ours = Server::registry(&place.path("ours"));
    let debian = Server::docker_registry(&place.path("debian"));
    let context = place.context(
        "c",
        &[(
            "Dockerfile",
            "FROM busybox\nLABEL org.opencontainers.image.description=\"Where the customers look, which is much to say about it\"\n",
        )],
    );
    for host in [&ours.host, &debian.host] {
        for name in ["shop/web:1.0", "base:latest"] {
            let name = format!("{host}/{name}");
            place.build(&name, &context);
            place.run(["push", &name]).ok();
        }
        let term = format!("{host}/web");
        let found = place.run(["search", "--format", "{{.Name}}", &term]).ok();
        assert_eq!(found, format!("{host}/shop/web"));
        let tags = place
            .run(["search", "--list-tags", &format!("{host}/shop/web")])
            .ok();
        let last = tags.lines().last().unwrap();
        assert!(last.contains("shop/web") && last.ends_with("1.0"), "{tags}");
    }
    // What only ours knows.
    let term = format!("{}/customers", ours.host);
    let found = place
        .run(["remote", "search", "--json", "--limit", "1", &term])
        .ok();
    let found: serde_json::Value = serde_json::from_str(&found).unwrap();
    assert_eq!(found["name"], format!("{}/base", ours.host));
    assert!(found["description"].as_str().unwrap().ends_with("about it"));
    let shown = place.run(["search", &term]).ok();
    assert!(
        shown.starts_with("NAME") && !shown.contains("about it"),
        "{shown}"
    );
    let shown = place
        .run([
            "search",
            "--no-trunc",
            "--filter",
            "is-official=false",
            &term,
        ])
        .ok();
    assert_eq!(shown.matches("about it").count(), 2, "{shown}");
    place
        .run(["search", "--filter", "stars=many", &term])
        .fails(2, "expected a number");
    place
        .run(["search", &format!("{}/", ours.host)])
        .fails(2, "nothing to look for");
}
