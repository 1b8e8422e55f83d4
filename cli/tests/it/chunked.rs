//! zstd:chunked and eStargz: what an older version of an image has need not come again, here and with podman.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::interop::Podman;
use crate::support::{Place, Ran, Server, tool};

const FILES: u32 = 60;

/// Bytes that hardly compress, different for each seed.
fn noise(seed: u32) -> Vec<u8> {
    let mut state = u64::from(seed) * 0x9e37_79b9 + 1;
    (0..100_000)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// A context of many files, of which one says which version it is.
fn context(place: &Place, version: &str) -> PathBuf {
    let files = [
        ("data/version", version),
        ("Dockerfile", "FROM busybox\nCOPY data /data\n"),
    ];
    let context = place.context(version, &files);
    for file in 0..FILES {
        std::fs::write(context.join(format!("data/{file}")), noise(file)).unwrap();
    }
    context
}

/// A registry with both versions of an image in a compression, and its log.
fn registry_with_both(place: &Place, compression: &str) -> (Server, PathBuf) {
    let log = place.path("access.log");
    let flags = ["--access-log", log.to_str().unwrap()];
    let registry = Server::registry_with(&place.path("registry"), &flags);
    for version in ["1", "2"] {
        let name = format!("{}/app:{version}", registry.host);
        place.build(&name, &context(place, version));
        place
            .run(["push", "--compression", compression, &name])
            .ok();
    }
    (registry, log)
}

/// Bytes of a layer that a registry sent, by its log.
fn sent(registry: &Server, log: &Path, layer: &Value) -> u64 {
    // Lines are written behind answers: one of our own comes after all that are waited for.
    let marker = "/not-there";
    let count = |text: &str| text.matches(marker).count();
    let before = count(&std::fs::read_to_string(log).unwrap());
    let mut stream = TcpStream::connect(&registry.host).unwrap();
    let request = format!("GET {marker} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).unwrap();
    stream.read_to_end(&mut Vec::new()).unwrap();
    let text = loop {
        let text = std::fs::read_to_string(log).unwrap();
        if count(&text) > before && text.ends_with('\n') {
            break text;
        }
        std::thread::yield_now();
    };
    let digest = layer["digest"].as_str().unwrap();
    let lines = text
        .lines()
        .map(|line| serde_json::from_str::<Value>(line).unwrap());
    lines
        .filter(|line| line["method"] == "GET" && line["path"].as_str().unwrap().ends_with(digest))
        .map(|line| line["sent_bytes"].as_u64().unwrap())
        .sum()
}

/// What skopeo reads of an image in a registry.
fn inspect(name: &str, flags: &[&str]) -> Value {
    let name = format!("docker://{name}");
    let all = [&["inspect", "--tls-verify=false"], flags, &[&name]].concat();
    serde_json::from_str(&tool("skopeo", &all)).unwrap()
}

/// The largest layer of an image in a registry.
fn layer(name: &str) -> Value {
    let manifest = inspect(name, &["--raw"]);
    let layers = manifest["layers"].as_array().unwrap();
    let largest = layers.iter().max_by_key(|layer| layer["size"].as_u64());
    largest.unwrap().clone()
}

/// What all files of an image hash to, by its own tools and in order.
fn sums(place: &Place, image: &str) -> String {
    place.sh(image, "cd /data && cat $(ls) | sha256sum")
}

const CHUNKED_KEYS: [&str; 4] = [
    "io.github.containers.zstd-chunked.manifest-checksum",
    "io.github.containers.zstd-chunked.manifest-position",
    "io.github.containers.zstd-chunked.tarsplit-position",
    "io.containers.zstd-chunked.manifest-position",
];

const ESTARGZ_KEYS: [&str; 2] = [
    "containerd.io/snapshot/stargz/toc.digest",
    "io.containers.estargz.uncompressed-size",
];

#[test]
fn only_what_changed_is_pulled() {
    check_pulls("zstd:chunked", &CHUNKED_KEYS);
}

#[test]
fn only_what_changed_is_pulled_of_estargz() {
    check_pulls("estargz", &ESTARGZ_KEYS);
}

fn check_pulls(compression: &str, keys: &[&str]) {
    let place = Place::with_busybox();
    let (registry, log) = registry_with_both(&place, compression);
    let name = |version: &str| format!("{}/app:{version}", registry.host);
    let layer = layer(&name("2"));
    let size = layer["size"].as_u64().unwrap();
    assert!(size > 5_000_000, "{layer}");
    assert_ne!(self::layer(&name("1"))["digest"], layer["digest"]);
    for key in keys {
        assert!(layer["annotations"][key].is_string(), "{key}: {layer}");
    }

    let other = Place::new();
    other.run(["pull", "-q", &name("1")]).ok();
    other.run(["pull", "-q", &name("2")]).ok();
    let bytes = sent(&registry, &log, &layer);
    assert!(bytes * 50 < size, "{bytes} of {size} bytes came");
    assert_eq!(sums(&other, &name("2")), sums(&place, &name("2")));
    assert_eq!(other.sh(&name("2"), "cat /data/version"), "2");
    // What eStargz adds for readers of the blob is not for containers.
    let root = |place: &Place| place.sh(&name("2"), "ls -a /");
    assert_eq!(root(&other), root(&place));
    // The blob is the same, byte by byte, and goes on from here as it came.
    other.run(["store", "check"]).ok();
    let there = Server::registry(&place.path("there"));
    let moved = format!("{}/moved:2", there.host);
    other.run(["tag", &name("2"), &moved]).ok();
    other.run(["push", &moved]).ok();
    assert_eq!(self::layer(&moved), layer);

    // What an older blob is said to have and does not have is noticed, and all of the layer comes.
    let spoiled = Place::new();
    spoiled.run(["pull", "-q", &name("1")]).ok();
    let old = self::layer(&name("1"));
    let digest = old["digest"].as_str().unwrap().replace(':', "/");
    let blob = spoiled.store().join("blobs").join(digest);
    let mut bytes = std::fs::read(&blob).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&blob, bytes).unwrap();
    spoiled.run(["pull", "-q", &name("2")]).ok();
    let bytes = sent(&registry, &log, &layer);
    assert!(bytes >= size, "{bytes} of {size} bytes came");
    assert_eq!(sums(&spoiled, &name("2")), sums(&place, &name("2")));
}

/// podman with its own storage of overlays, which alone puts layers together from pieces.
struct Partial {
    config: PathBuf,
    storage: PathBuf,
    _state: tempfile::TempDir,
}

impl Partial {
    fn new(place: &Place, name: &str) -> Partial {
        let state = tempfile::Builder::new()
            .prefix("ls-")
            .tempdir_in("/tmp")
            .unwrap();
        // Overlays cannot lie on every file system that tests may be on, but on this one they can.
        let storage = place.path(name);
        std::fs::create_dir(&storage).unwrap();
        tool(
            "mount",
            &["-t", "tmpfs", "tmpfs", storage.to_str().unwrap()],
        );
        let config = place.path(&format!("{name}.conf"));
        let text = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{}\"\ngraphroot = \"{}\"\n[storage.options]\npull_options = {{enable_partial_images = \"true\"}}\n",
            state.path().display(),
            storage.display(),
        );
        std::fs::write(&config, text).unwrap();
        Partial {
            config,
            storage,
            _state: state,
        }
    }

    fn ok(&self, arguments: &[&str]) -> String {
        let mut command = Command::new("podman");
        command
            .env("CONTAINERS_STORAGE_CONF", &self.config)
            .args(arguments);
        Ran::of(&mut command).ok()
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        // With what podman left mounted in it.
        let _unmounted = Command::new("umount")
            .args(["-R", "-l"])
            .arg(&self.storage)
            .status();
    }
}

/// Pulls both versions with podman, which asks for little of the second one's layer and has its files.
fn podman_pulls_what_is_new(place: &Place, registry: &Server, log: &Path) {
    let name = |version: &str| format!("{}/app:{version}", registry.host);
    let podman = Partial::new(place, "partial");
    for version in ["1", "2"] {
        podman.ok(&["pull", "-q", "--tls-verify=false", &name(version)]);
    }
    let ours = layer(&name("2"));
    let (bytes, size) = (sent(registry, log, &ours), ours["size"].as_u64().unwrap());
    assert!(bytes * 10 < size, "podman read {bytes} of {size} bytes");
    let id = podman.ok(&["image", "mount", &name("2")]);
    let mut command = Command::new("sh");
    command.args(["-c", "cd \"$1\"/data && cat $(ls) | sha256sum", "sh", &id]);
    assert_eq!(Ran::of(&mut command).ok(), sums(place, &name("2")));
    podman.ok(&["image", "unmount", &name("2")]);
}

#[test]
fn podman_and_skopeo_read_estargz() {
    let place = Place::with_busybox();
    let (registry, log) = registry_with_both(&place, "estargz");
    let name = |version: &str| format!("{}/app:{version}", registry.host);
    podman_pulls_what_is_new(&place, &registry, &log);

    // As any gzip: what is unpacked has the DiffIDs that the configuration says, or skopeo and podman refuse it.
    let layout = place.path("copied");
    let from = format!("docker://{}", name("2"));
    let to = format!("oci:{}:2", layout.display());
    tool(
        "skopeo",
        &["copy", "-q", "--src-tls-verify=false", &from, &to],
    );
    let whole = Podman::new(&place);
    whole.ok("podman", &["pull", "-q", "--tls-verify=false", &name("2")]);
    let there = inspect(&name("2"), &["--config"]);
    let here = place.run(["inspect", &name("2")]).ok();
    let here: Value = serde_json::from_str(&here).unwrap();
    let (there, here) = (&there["rootfs"]["diff_ids"], &here[0]["RootFS"]["Layers"]);
    let lengths = [there, here].map(|layers| layers.as_array().unwrap().len());
    assert_eq!(lengths[0], lengths[1]);
    assert_ne!(there, here);
}

#[test]
fn podman_reads_ours_and_we_read_podmans() {
    let place = Place::with_busybox();
    let (registry, log) = registry_with_both(&place, "zstd:chunked");
    let name = |version: &str| format!("{}/app:{version}", registry.host);
    let expected = sums(&place, &name("2"));
    podman_pulls_what_is_new(&place, &registry, &log);

    // podman writes the older dialect, but not what it has in pieces.
    let writer = Podman::new(&place);
    let theirs = |version: &str| format!("{}/theirs:{version}", registry.host);
    for version in ["1", "2"] {
        let archive = place.path(&format!("{version}.tar"));
        place.ok(["save", &name(version), "-o"], [&archive]);
        writer.ok("podman", &["load", "-q", "-i", archive.to_str().unwrap()]);
        let flags = ["push", "-q", "--tls-verify=false", "--compression-format"];
        let more = ["zstd:chunked", &name(version), &theirs(version)];
        writer.ok("podman", &[&flags[..], &more].concat());
    }
    let other = Place::new();
    for version in ["1", "2"] {
        other.run(["pull", "-q", &theirs(version)]).ok();
    }
    let made = layer(&theirs("2"));
    let (bytes, size) = (sent(&registry, &log, &made), made["size"].as_u64().unwrap());
    assert!(bytes * 50 < size, "{bytes} of {size} bytes came");
    assert_eq!(sums(&other, &theirs("2")), expected);
}

/// Layers that `remote append` and `remote flatten` make are found again piece by piece, and read by others.
#[test]
fn appended_and_flattened_layers_are_found_again() {
    let place = Place::with_busybox();
    let log = place.path("access.log");
    let flags = ["--access-log", log.to_str().unwrap()];
    let registry = Server::registry_with(&place.path("registry"), &flags);
    let name = |text: &str| format!("{}/{text}", registry.host);
    let base = name("base:1");
    place.run(["tag", "busybox", &base]).ok();
    place.run(["push", "-q", &base]).ok();
    for version in ["1", "2"] {
        let (folder, tar) = (context(&place, version), place.path(version));
        let tar = tar.with_extension("tar");
        let (folder, tar) = (folder.to_str().unwrap(), tar.to_str().unwrap());
        tool("tar", &["-C", folder, "-cf", tar, "data"]);
    }
    let podman = Podman::new(&place);
    for (compression, keys) in [
        ("estargz", &ESTARGZ_KEYS[..]),
        ("zstd:chunked", &CHUNKED_KEYS[..]),
    ] {
        let words = ["--compression", compression, "-t"];
        let short = compression.replace(':', "-");
        let made = |version: &str| name(&format!("{short}:{version}"));
        let flat = |version: &str| name(&format!("{short}-flat:{version}"));
        for version in ["1", "2"] {
            let tar = place.path(version).with_extension("tar");
            let tar = tar.to_str().unwrap();
            let (made, flat) = (made(version), flat(version));
            let append = ["remote", "append", "-b", &base, "-f", tar];
            place.run([&append[..], &words, &[&made]].concat()).ok();
            let flatten = ["remote", "flatten", &made];
            place.run([&flatten[..], &words, &[&flat]].concat()).ok();
        }
        for name in [&made as &dyn Fn(&str) -> String, &flat] {
            let layer = layer(&name("2"));
            for key in keys {
                assert!(layer["annotations"][key].is_string(), "{key}: {layer}");
            }
            // What is made of one is read from there, too.
            let before = sent(&registry, &log, &layer);
            let other = Place::new();
            other.run(["pull", "-q", &name("1")]).ok();
            other.run(["pull", "-q", &name("2")]).ok();
            let (bytes, size) = (
                sent(&registry, &log, &layer) - before,
                layer["size"].as_u64().unwrap(),
            );
            assert!(bytes * 20 < size, "{bytes} of {size} bytes came");
            assert_eq!(other.sh(&name("2"), "cat /data/version"), "2");
            let root = other.sh(&name("2"), "ls -a /");
            assert!(
                !root.contains("landmark") && !root.contains("stargz"),
                "{root}"
            );
            let whole = other.run(["remote", "validate", &name("2")]);
            assert_eq!(whole.ok(), "");
            podman.ok("podman", &["pull", "-q", "--tls-verify=false", &name("2")]);
        }
    }
    // A layer that is a file in that form already is taken as it is, and what it says of itself is kept.
    let again = name("again:1");
    let blob = place.path("blob");
    let layer = layer(&name("estargz:1"));
    let digest = layer["digest"].as_str().unwrap();
    let from = name(&format!("estargz@{digest}"));
    let blob = blob.to_str().unwrap();
    place.run(["remote", "blob", "get", "-o", blob, &from]).ok();
    let words = ["remote", "append", "-f", blob, "-t", &again];
    place
        .run([&words[..], &["--compression", "estargz"]].concat())
        .ok();
    let taken = self::layer(&again);
    assert_eq!(taken["digest"], layer["digest"]);
    assert_eq!(
        taken["annotations"][ESTARGZ_KEYS[0]],
        layer["annotations"][ESTARGZ_KEYS[0]]
    );
    // Docker's manifests know gzip alone.
    let docker = place.path("docker.tar");
    let docker = format!("docker-archive:{}", docker.display());
    let mixed = name("mixed:1");
    place.run(["copy", "store:busybox", &docker]).ok();
    let tar = place.path("1").with_extension("tar");
    let tar = tar.to_str().unwrap();
    let words = ["remote", "append", "-b", &docker, "-f", tar, "-t", &mixed];
    place
        .run([&words[..], &["--compression", "zstd"]].concat())
        .ok();
    let kind = |name: &str| inspect(name, &["--raw"])["mediaType"].clone();
    assert_eq!(kind(&mixed), "application/vnd.oci.image.manifest.v1+json");
    assert_eq!(place.run(["remote", "validate", &mixed]).ok(), "");
    place
        .run(
            [
                &words[..],
                &["--compression", "gzip", "--compression-level", "99"],
            ]
            .concat(),
        )
        .fails(2, "expected 1 to 12");
}
