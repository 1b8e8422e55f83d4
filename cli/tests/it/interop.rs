//! What longshore makes, in the hands of skopeo, umoci, podman and buildah.

use std::process::Command;

use serde_json::Value;

use crate::support::{Place, Ran, Server, tool};

/// An image with everything that a layer can have wrong, pushed to a registry.
fn image(place: &Place, name: &str) {
    place.add_busybox("busybox");
    let dockerfile = "FROM busybox\nCOPY f /f\nRUN mkdir /d && echo kept > /d/kept && echo gone > /d/gone\nRUN rm /d/gone && ln /d/kept /d/hard && ln -s kept /d/soft && chmod 4711 /d/kept\nCMD [\"cat\", \"/f\", \"/d/soft\"]\n";
    let context = place.context("ctx", &[("f", "1\n"), ("Dockerfile", dockerfile)]);
    place.build(name, &context);
}

const EXPECTED: &str = "1\nkept";

#[test]
fn skopeo_and_umoci_read_our_layouts() {
    let place = Place::new();
    image(&place, "app:1");
    let archive = place.path("oci.tar");
    place.ok(["save", "--format", "oci", "app:1", "-o"], [&archive]);
    let layout = place.path("layout");
    let (from, to) = (
        format!("oci-archive:{}", archive.display()),
        format!("oci:{}:app", layout.display()),
    );
    tool("skopeo", &["copy", "--insecure-policy", &from, &to]);
    let bundle = place.path("bundle");
    let layout_image = format!("{}:app", layout.display());
    tool(
        "umoci",
        &["unpack", "--image", &layout_image, bundle.to_str().unwrap()],
    );
    let root = bundle.join("rootfs");
    assert_eq!(
        std::fs::read_to_string(root.join("d/hard")).unwrap(),
        "kept\n"
    );
    assert!(!root.join("d/gone").exists());
    assert!(!root.join("d/.wh.gone").exists());

    let docker = place.path("docker.tar");
    place.ok(["save", "app:1", "-o"], [&docker]);
    let inspected = tool(
        "skopeo",
        &["inspect", &format!("docker-archive:{}", docker.display())],
    );
    assert!(inspected.contains("\"Architecture\""), "{inspected}");
}

#[test]
fn skopeo_pulls_from_our_registry_and_pushes_to_it() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/app:1", registry.host);
    image(&place, &name);
    place.run(["push", &name]).ok();
    let layout = format!("oci:{}:app", place.path("layout").display());
    let source = format!("docker://{name}");
    tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--src-tls-verify=false",
            &source,
            &layout,
        ],
    );
    let copy = format!("{}/copy:1", registry.host);
    let target = format!("docker://{copy}");
    tool(
        "skopeo",
        &[
            "copy",
            "--insecure-policy",
            "--dest-tls-verify=false",
            &layout,
            &target,
        ],
    );
    assert_eq!(Place::new().run(["run", "--rm", &copy]).ok(), EXPECTED);
}

#[test]
fn podman_and_buildah_pull_and_run() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/app:1", registry.host);
    image(&place, &name);
    place.run(["push", &name]).ok();

    let podman = Podman::new(&place);
    podman.ok("podman", &["pull", "--tls-verify=false", &name]);
    assert_eq!(podman.run(&name), EXPECTED);
    let archive = place.path("saved.tar");
    place.ok(["save", &name, "-o"], [&archive]);
    podman.ok("podman", &["rmi", &name]);
    podman.ok("podman", &["load", "-i", archive.to_str().unwrap()]);
    assert_eq!(podman.run(&name), EXPECTED);

    let container = podman.ok("buildah", &["from", "--tls-verify=false", &name]);
    let mut run = podman.command(
        "buildah",
        &["run", "--isolation", "chroot", &container, "cat", "/d/hard"],
    );
    assert_eq!(Ran::of(&mut run).ok(), "kept");

    // And what they make is read here.
    let theirs = place.path("theirs.tar");
    podman.ok("podman", &["save", "-o", theirs.to_str().unwrap(), &name]);
    let other = Place::new();
    other.ok(["load", "-i"], [&theirs]);
    assert_eq!(other.run(["run", "--rm", &name]).ok(), EXPECTED);
}

/// podman and buildah on a storage folder of the test's own.
pub struct Podman {
    root: String,
    runroot: String,
    /// Keeps the folder of `runroot`, which podman refuses when its path has more than 50 characters: the test's own
    /// folder lies below the checkout, however deep that is.
    _state: tempfile::TempDir,
}

impl Podman {
    pub fn new(place: &Place) -> Podman {
        let state = tempfile::Builder::new()
            .prefix("ls-")
            .tempdir_in("/tmp")
            .unwrap();
        Podman {
            root: place.path("containers").to_str().unwrap().to_owned(),
            runroot: state.path().to_str().unwrap().to_owned(),
            _state: state,
        }
    }

    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program);
        command
            .args([
                "--root",
                &self.root,
                "--runroot",
                &self.runroot,
                "--storage-driver",
                "vfs",
            ])
            .args(arguments);
        command
    }

    pub fn ok(&self, program: &str, arguments: &[&str]) -> String {
        Ran::of(&mut self.command(program, arguments)).ok()
    }

    /// Runs an image with as little of podman as there is: its networks, limits and control groups are not what is
    /// tested, and crun refuses hosts that have both kinds of control groups, so one kind is hidden from it.
    pub fn run(&self, image: &str) -> String {
        let mut command = Command::new("unshare");
        command
            .args([
                "-m",
                "sh",
                "-c",
                "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"",
                "sh",
            ])
            .args(["podman", "--root", &self.root, "--runroot", &self.runroot])
            .args([
                "--storage-driver",
                "vfs",
                "--runtime",
                "crun",
                "run",
                "--rm",
                "--net=host",
            ])
            .args(["--cgroups=disabled", "--security-opt=seccomp=unconfined"])
            .args([
                "--ulimit",
                "nofile=1024:1024",
                "--ulimit",
                "nproc=1024:1024",
                image,
            ]);
        Ran::of(&mut command).ok()
    }
}

impl Podman {
    /// Runs a command in an image with podman's own default profile of system calls and capabilities, on the host's network.
    pub fn confined(&self, flags: &[&str], image: &str, command: &[&str]) -> Ran {
        let script = "umount /sys/fs/cgroup/unified 2>/dev/null; exec \"$@\"";
        let mut run = Command::new("unshare");
        run.args(["-m", "sh", "-c", script, "sh"])
            .args(["podman", "--root", &self.root, "--runroot", &self.runroot])
            .args(["--storage-driver", "vfs", "--runtime", "crun"])
            .args(["run", "--rm", "--net=host", "--cgroups=disabled"])
            .args(["--ulimit", "nofile=1024:1024"])
            .args(["--ulimit", "nproc=1024:1024"])
            .args(flags)
            .arg(image)
            .args(command);
        Ran::of(&mut run)
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        // Mounts below the folder would keep it from being removed.
        let _ = self.command("podman", &["rm", "-af"]).output();
    }
}

/// What docker saves is plain, and goes on as what registries have: with us as with skopeo. Nothing else is compressed unasked.
#[test]
fn dockers_archives_are_compressed_where_they_go() {
    let place = Place::new();
    place.add_busybox("busybox");
    let archive = place.path("saved.tar");
    place.ok(["save", "--format", "docker", "busybox", "-o"], [&archive]);
    let from = format!("docker-archive:{}", archive.display());
    let (ours, theirs) = (
        Server::registry(&place.path("ours")),
        Server::docker_registry(&place.path("theirs")),
    );
    let layout = format!("oci:{}", place.path("layout").display());
    let again = format!("docker-archive:{}", place.path("again.tar").display());
    let name = |server: &Server, tag: &str| format!("{}/app:{tag}", server.host);
    let manifest = |of: &str| -> Value {
        let raw = place.run(["remote", "manifest", "get", of]).ok();
        serde_json::from_str(&raw).unwrap()
    };
    let plain = manifest(&from);
    let check = |words: &[&str], to: &str, ending: &str| {
        place
            .run([&["copy", "-q"], words, &[&from, to]].concat())
            .ok();
        let made = manifest(to);
        let kinds = made["layers"].as_array().unwrap().iter();
        let kinds: Vec<&str> = kinds
            .map(|layer| layer["mediaType"].as_str().unwrap())
            .collect();
        assert!(
            !kinds.is_empty() && kinds.iter().all(|kind| kind.ends_with(ending)),
            "{to}: {made}"
        );
        assert_eq!(made["config"]["digest"], plain["config"]["digest"], "{to}");
        assert_eq!(place.run(["remote", "validate", to]).ok(), "");
    };
    check(&[], &name(&ours, "1"), "+gzip");
    check(&[], &name(&theirs, "1"), "+gzip");
    check(&[], &layout, "+gzip");
    check(&["--compression", "none"], &name(&ours, "2"), ".tar");
    check(&["--compression", "zstd"], &name(&ours, "3"), "+zstd");
    check(&[], &again, ".tar");
    // What is plain elsewhere has digests that people know.
    let (known, copied) = (name(&ours, "2"), name(&theirs, "2"));
    place.run(["copy", "-q", &known, &copied]).ok();
    assert_eq!(manifest(&copied), manifest(&known));
    let to = format!("docker://{}", name(&theirs, "3"));
    let words = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"];
    tool("skopeo", &[&words[..], &[&from, &to]].concat());
    let kind = manifest(&name(&theirs, "3"))["layers"][0]["mediaType"].clone();
    assert!(kind.as_str().unwrap().ends_with("gzip"), "{kind}");
}
