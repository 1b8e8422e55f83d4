//! `search` and `remote search`, on our registry and on one that only has a catalog; and docker's search on ours.

use crate::docker::Docker;
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

/// Through docker's daemon, which asks the registry in its own way.
#[test]
fn dockers_daemon_finds_what_is_there() {
    let Some(docker) = Docker::start() else {
        return;
    };
    let place = Place::with_busybox();
    let ours = Server::registry(&place.path("ours"));
    let label = "LABEL org.opencontainers.image.description=\"a shop\"";
    let dockerfile = format!("FROM busybox\n{label}\n");
    let context = place.context("c", &[("Dockerfile", &dockerfile)]);
    for name in ["shop/web:1.0", "shop/website:1.0", "base:latest"] {
        let name = format!("{}/{name}", ours.host);
        place.build(&name, &context);
        place.run(["push", &name]).ok();
    }
    let check = |term: &str, more: &[&str], expect: &[&str]| {
        let term = format!("{}/{term}", ours.host);
        let format = "{{.Name}}|{{.Description}}|{{.StarCount}}|{{.IsOfficial}}";
        let mut words = vec!["search", "--format", format];
        words.extend(more);
        words.push(&term);
        let told = docker.run(&words).ok();
        let expect: Vec<String> = expect
            .iter()
            .map(|name| format!("{name}|a shop|0|"))
            .collect();
        assert_eq!(told.lines().collect::<Vec<_>>(), expect, "{term}");
    };
    check("web", &[], &["shop/web", "shop/website"]);
    check("web", &["--limit", "1"], &["shop/web"]);
    check("website", &["--no-trunc"], &["shop/website"]);
    check("nothing", &[], &[]);
    check("web", &["--filter", "stars=1"], &[]);
}
