//! What people push and pull with: skopeo and podman.

use std::path::Path;
use std::process::Command;

use registry_server::RunningServer;
use serde_json::json;
use store::oci::{Digest, MediaType};

use crate::client::noise;

/// Runs a tool; it must succeed.
#[track_caller]
pub(crate) fn run(program: &str, args: &[&str]) -> String {
    let out = Command::new(program)
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(out.status.success(), "{program} {args:?}: {said}");
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// An OCI layout with one image of one layer: a tar with one file of noise.
pub(crate) fn write_layout(root: &Path) -> Digest {
    let blobs = root.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let write = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        (digest, bytes.len())
    };
    let mut header = [0u8; 512];
    let body = noise(300 * 512, 31);
    header[..4].copy_from_slice(b"file");
    header[100..107].copy_from_slice(b"0000644");
    header[124..135].copy_from_slice(format!("{:011o}", body.len()).as_bytes());
    header[156] = b'0';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
    header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
    let layer = [&header[..], &body, &[0; 1024]].concat();
    let (layer, layer_size) = write(&layer);
    let config = json!({"architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer]}});
    let (config, config_size) = write(config.to_string().as_bytes());
    let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST,
        "config": {"mediaType": MediaType::OCI_CONFIG, "digest": config, "size": config_size},
        "layers": [{"mediaType": MediaType::OCI_LAYER, "digest": layer, "size": layer_size}]});
    let (manifest, manifest_size) = write(manifest.to_string().as_bytes());
    let index = json!({"schemaVersion": 2, "manifests": [{"mediaType": MediaType::OCI_MANIFEST,
        "digest": manifest, "size": manifest_size, "annotations": {"org.opencontainers.image.ref.name": "t"}}]});
    std::fs::write(root.join("index.json"), index.to_string()).unwrap();
    std::fs::write(root.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    manifest
}

#[test]
fn skopeo_pushes_copies_and_pulls() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    let manifest = write_layout(&root.path().join("in"));
    let server = RunningServer::start(&root.path().join("data")).unwrap();
    let image = |name: &str| format!("docker://{}/{name}", server.host());
    let copy = |flags: &[&str], from: &str, to: &str| {
        let mut args = vec![
            "copy",
            "-q",
            "--insecure-policy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
        ];
        args.extend(flags);
        args.extend([from, to]);
        run("skopeo", &args);
    };
    let local = format!("oci:{}:t", path("in"));
    // Unasked, skopeo compresses layers that are not.
    let same = &["--preserve-digests"];
    copy(same, &local, &image("a/b:one"));
    // Again: everything is there. Elsewhere: its blobs are mounted.
    copy(same, &local, &image("a/b:two"));
    copy(same, &image("a/b:one"), &image("other:one"));
    copy(same, &image("other:one"), &format!("oci:{}:t", path("out")));
    for entry in std::fs::read_dir(root.path().join("in/blobs/sha256")).unwrap() {
        let name = entry.unwrap().file_name();
        let read = |folder: &str| {
            std::fs::read(root.path().join(folder).join("blobs/sha256").join(&name)).unwrap()
        };
        assert_eq!(read("in"), read("out"), "{name:?}");
    }
    // Docker's types, recompressed on the way.
    copy(
        &["--format", "v2s2", "--dest-compress"],
        &local,
        &image("docker:one"),
    );
    copy(&[], &image("docker:one"), &format!("dir:{}", path("dir")));
    let inspected = run(
        "skopeo",
        &[
            "inspect",
            "--tls-verify=false",
            "--raw",
            &image("docker:one"),
        ],
    );
    assert!(
        inspected.contains(MediaType::DOCKER_MANIFEST),
        "{inspected}"
    );
    let listed = run(
        "skopeo",
        &[
            "list-tags",
            "--tls-verify=false",
            &format!("docker://{}/a/b", server.host()),
        ],
    );
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed["Tags"], json!(["one", "two"]));
    let digest = run(
        "skopeo",
        &[
            "inspect",
            "--tls-verify=false",
            "--format",
            "{{.Digest}}",
            &image("other:one"),
        ],
    );
    assert_eq!(digest.trim(), manifest.to_string());
    run(
        "skopeo",
        &["delete", "--tls-verify=false", &image("other:one")],
    );
    let gone = Command::new("skopeo")
        .args(["inspect", "--tls-verify=false", &image("other:one")])
        .output()
        .unwrap();
    assert!(!gone.status.success());
}

#[test]
fn podman_pulls_and_pushes() {
    let root = tempfile::tempdir().unwrap();
    let path = |name: &str| root.path().join(name).to_str().unwrap().to_owned();
    write_layout(&root.path().join("in"));
    let server = RunningServer::start(&root.path().join("data")).unwrap();
    let (storage, state) = (path("storage"), path("state"));
    let podman = |args: &[&str]| {
        // vfs needs no kernel support that a container may lack.
        let mut all = vec![
            "--root",
            &storage,
            "--runroot",
            &state,
            "--storage-driver",
            "vfs",
        ];
        all.extend(args);
        run("podman", &all)
    };
    run(
        "skopeo",
        &[
            "copy",
            "-q",
            "--insecure-policy",
            "--dest-tls-verify=false",
            &format!("oci:{}:t", path("in")),
            &format!("docker://{}/a:one", server.host()),
        ],
    );
    let (first, second) = (
        format!("{}/a:one", server.host()),
        format!("{}/b/c:two", server.host()),
    );
    let id = podman(&["pull", "-q", "--tls-verify=false", &first]);
    podman(&["push", "-q", "--tls-verify=false", &first, &second]);
    podman(&["rmi", "-f", &first]);
    let again = podman(&["pull", "-q", "--tls-verify=false", &second]);
    assert_eq!(id, again);
}
