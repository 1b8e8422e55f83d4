//! The examples, on a Debian made from its packages: built, pushed, removed, pulled by two tools, and run.
//!
//! They need the network: Debian's packages and the Python package index, as this machine reaches them.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;

use registry_server::RunningServer;

use crate::interop::Podman;
use crate::support::{LONGSHORE, Place, Ran, fetch, free_port, signal, tool, workspace};

/// A registry with the Debian base image, and a store, for all examples; in this process, so that it ends with it.
pub struct Base {
    pub registry: RunningServer,
    pub place: Place,
}

pub fn base() -> &'static Base {
    static BASE: OnceLock<Base> = OnceLock::new();
    BASE.get_or_init(|| {
        let place = Place::at("examples");
        let registry = RunningServer::start(&place.path("registry")).unwrap();
        let mut command = Command::new(workspace().join("testdata/images/make-bases"));
        command
            .args([&registry.host(), "debian"])
            .env("LONGSHORE", LONGSHORE)
            .env("LONGSHORE_ROOT", place.store())
            .env(
                "CARGO_TARGET_DIR",
                Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap(),
            );
        Ran::of(&mut command).ok();
        Base { registry, place }
    })
}

/// Builds an example, pushes it, removes it, and pulls it again: with longshore and with skopeo.
fn ship(example: &str) -> String {
    let Base { registry, place } = base();
    let name = format!("{}/{example}:1", registry.host());
    let context = workspace().join("examples").join(example);
    let argument = format!("REGISTRY={}", registry.host());
    place.ok(["build", "--build-arg", &argument, "-t", &name], [&context]);
    place.run(["push", &name]).ok();
    place.run(["rmi", &name]).ok();
    place.run(["pull", &name]).ok();
    // Every blob goes through skopeo's own checks.
    let copy = place.path(&format!("{example}-by-skopeo"));
    tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            &format!("docker://{name}"),
            &format!("oci:{}:latest", copy.display()),
        ],
    );
    assert!(copy.join("index.json").exists());
    name
}

fn start(name: &str, port: u16) -> Child {
    let port = format!("PORT={port}");
    base()
        .place
        .command(["run", "--rm", "-e", &port, name])
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// The name of the example with nginx, shipped once.
pub fn nginx() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| ship("nginx"))
}

#[test]
fn nginx_serves_a_copied_page() {
    let name = nginx();
    let port = free_port();
    let mut container = start(name, port);
    let page = fetch(port, &mut container);
    assert!(
        page.contains("Built, shipped and served by longshore."),
        "{page}"
    );
    // The image's own way of saying goodbye.
    signal(&container, "QUIT");
    assert_eq!(container.wait().unwrap().code(), Some(0));
}

#[test]
fn compiled_programs_run_on_nothing() {
    let name = ship("native");
    let place = &base().place;
    let run = |command: &str| place.run(["run", "--rm", &name, command]).ok();
    assert_eq!(run("/hello-c"), "hello from C");
    assert_eq!(run("/hello-rust"), "hello from Rust");
    let podman = Podman::new(&Place::new());
    podman.ok("podman", &["pull", "--tls-verify=false", &name]);
    assert_eq!(podman.run(&name), "hello from C");
}

#[test]
fn a_python_service_has_its_requirements() {
    let name = ship("python");
    let port = free_port();
    let mut container = start(&name, port);
    let page = fetch(port, &mut container);
    assert!(page.contains("\"served_by\": \"bottle 0.12.25\""), "{page}");
    assert!(page.contains("\"uid\": 33"), "{page}");
    signal(&container, "TERM");
    assert_eq!(container.wait().unwrap().code(), Some(143));
}
