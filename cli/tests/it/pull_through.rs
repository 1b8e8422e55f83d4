//! Registries read through `registry serve`, by the tools that people pull with.

use std::path::Path;
use std::process::Command;

use crate::docker::Docker;
use crate::support::{Place, Ran, Server, tool};

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

/// What docker's daemon asks, by its `registry-mirrors` and for a build of BuildKit's in it, and containerd by its `hosts.toml`;
/// also when the upstream is gone.
#[test]
fn dockers_daemon_and_containerd_pull_through_a_cache() {
    let place = Place::with_busybox();
    let upstream = Server::registry(&place.path("there"));
    let name = format!("{}/library/app:v1", upstream.host);
    let context = place.context(
        "c",
        &[("Dockerfile", "FROM busybox\nCOPY f /f\n"), ("f", "z\n")],
    );
    place.build(&name, &context);
    place.run(["push", &name]).ok();
    let config = place.path("cache.toml");
    let text = format!(
        "root = \"here\"\naccess_log = \"access\"\n[[upstream]]\nprefix = \"/\"\nurl = \"http://{}\"\nnamespaces = [\"docker.io\"]\ntag_age = \"0s\"\n",
        upstream.host
    );
    std::fs::write(&config, text).unwrap();
    let cache = Server::registry_told(&config);
    let settings = format!("{{\"registry-mirrors\": [\"http://{}\"]}}", cache.host);
    let Some(docker) = Docker::start_with(&settings) else {
        return;
    };
    let base = place.context(
        "d",
        &[("Dockerfile", "FROM app:v1\nCOPY g /g\n"), ("g", "y\n")],
    );
    let hosts = place.path("hosts");
    std::fs::create_dir_all(hosts.join("docker.io")).unwrap();
    let text = format!(
        "server = \"https://registry-1.docker.io\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        cache.host
    );
    std::fs::write(hosts.join("docker.io/hosts.toml"), text).unwrap();
    let pull_all = || {
        // As if for the first time.
        docker.run(&["rmi", "-f", "app:v1", "built"]);
        docker.run(&["pull", "-q", "app:v1"]).ok();
        docker.run(&["rmi", "-f", "app:v1"]).ok();
        let words = ["build", "--no-cache", "--pull", "--network", "host", "-t"];
        let mut build = docker.buildkit(&words);
        Ran::of(build.arg("built").arg(&base)).ok();
        let listed = docker.run(&["images", "-q", "built"]).ok();
        assert!(!listed.is_empty(), "nothing was built");
        let socket = docker.containerd();
        let mut ctr = Command::new("ctr");
        ctr.arg("--address")
            .arg(&socket)
            .args(["--namespace", "test", "content", "fetch", "--hosts-dir"])
            .arg(&hosts)
            .arg("docker.io/library/app:v1");
        Ran::of(&mut ctr).ok();
    };
    pull_all();
    let asked = std::fs::read_to_string(place.path("access")).unwrap();
    for agent in ["docker/", "containerd/"] {
        assert!(
            asked.contains(&format!("\"agent\":\"{agent}")),
            "{agent}: {asked}"
        );
    }
    drop(upstream);
    pull_all();
}
