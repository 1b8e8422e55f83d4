//! Registries read through `registry serve`, by the tools that people pull with.

use std::path::Path;

use crate::support::{Place, Server, tool};

/// bcrypt of `secret`, as `htpasswd -nbB me secret` prints it.
const USERS: &str = "me:$2y$05$c4WoMPo3SXsafkva.HHa6u7b1XOWKqA7XZANDrnv4IVny/8ABNR66\n";

/// A configuration of the cache: Debian's registry, which wants a password, below `hub`.
fn config(folder: &Path, upstream: &str, more: &str) -> String {
    std::fs::write(folder.join("password"), "secret\n").unwrap();
    let file = folder.join("cache.toml");
    let text = format!(
        "[[upstream]]\nprefix = \"hub\"\nurl = \"http://{upstream}\"\nusername = \"me\"\npassword_file = \"password\"\n{more}"
    );
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

/// Every tool pulls through it, with its own way to name a mirror, and goes on when the upstream is gone.
#[test]
fn tools_pull_through_a_cache() {
    let place = Place::with_busybox();
    let (there, here) = (place.path("there"), place.path("here"));
    let users = place.path("users");
    std::fs::write(&users, USERS).unwrap();
    let auth = format!(
        "auth: {{htpasswd: {{realm: x, path: {}}}}}",
        users.display()
    );
    let upstream = Server::docker_registry_with(&there, &auth);
    let config = config(&place.path(""), &upstream.host, "tag_age = \"0s\"\n");
    let cache = Server::registry_with(&here, &["--config", &config]);
    let context = place.context("c", &[("Dockerfile", "FROM busybox\nRUN echo x > /x\n")]);
    let name = format!("{}/team/app:v1", upstream.host);
    place.build(&name, &context);
    let login = ["login", "-u", "me", "-p", "secret", &upstream.host];
    place.run(login).ok();
    place.run(["push", &name]).ok();

    let home = upstream.host.clone();
    let pull_all = |cache: &Server| {
        let through = format!("{}/hub/team/app:v1", cache.host);
        // By its own name.
        let fresh = Place::new();
        fresh.run(["pull", &through]).ok();
        // As longshore's mirror for the upstream.
        let fresh = Place::new();
        let own = fresh.path("config.toml");
        let text = format!(
            "[registry.\"{}\"]\nmirrors = [\"{}/hub\"]\n",
            home, cache.host
        );
        std::fs::write(&own, text).unwrap();
        let pulled = ["--config", own.to_str().unwrap(), "pull", &name];
        fresh.run(pulled).ok();
        // As skopeo and podman read `registries.conf`.
        let conf = fresh.path("registries.conf");
        let text = format!(
            "[[registry]]\nlocation = \"{}\"\ninsecure = true\n[[registry.mirror]]\nlocation = \"{}/hub\"\ninsecure = true\n",
            home, cache.host
        );
        std::fs::write(&conf, text).unwrap();
        let out = format!("oci:{}:x", fresh.path("out").display());
        let conf = conf.to_str().unwrap();
        let source = format!("docker://{name}");
        tool(
            "skopeo",
            &["--registries-conf", conf, "copy", "-q", &source, &out],
        );
    };
    pull_all(&cache);
    // Nothing is pushed there, and what is wrong is told.
    let pushed = format!("{}/hub/team/app:v1", cache.host);
    place.run(["tag", &name, &pushed]).ok();
    place
        .run(["push", &pushed])
        .fails(4, "these names are a cache of another registry");
    drop(upstream);
    pull_all(&cache);
    let missing = format!("{}/hub/team/app:v2", cache.host);
    place
        .run(["pull", &missing])
        .fails(4, "gives no usable answer");
}

/// All of a registry is another's mirror: what docker's `registry-mirrors` asks for.
#[test]
fn a_cache_of_everything() {
    let place = Place::with_busybox();
    let upstream = Server::registry(&place.path("there"));
    let name = format!("{}/library/app:v1", upstream.host);
    let context = place.context("c", &[("Dockerfile", "FROM busybox\nRUN echo y > /y\n")]);
    place.build(&name, &context);
    place.run(["push", &name]).ok();
    let said = format!("/=http://{}", upstream.host);
    let cache = Server::registry_with(&place.path("here"), &["--upstream", &said]);
    let through = format!("{}/library/app:v1", cache.host);
    place.run(["remote", "digest", &through]).ok();
    drop(upstream);
    // Only the manifest was asked for so far.
    place.run(["remote", "digest", &through]).ok();
    Place::new()
        .run(["pull", &through])
        .fails(4, "gives no usable answer");
}
