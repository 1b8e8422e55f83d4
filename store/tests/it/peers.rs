//! skopeo and podman read what is saved, and what they write is loaded. Each test says so where the tool is missing.

use std::path::{Path, PathBuf};
use std::process::Command;

use store::content::archive::{ArchiveFormat, SavedImage};
use store::images::ImageId;
use store::oci::{ImageConfig, Platform};
use store::{Store, StoreError};

fn is_missing(tool: &str) -> bool {
    let missing = Command::new(tool).arg("--version").output().is_err();
    if missing {
        println!("SKIPPED: {tool} is not installed");
    }
    missing
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// A store with the image `docker.io/library/app:1` of two layers.
fn store(root: &Path) -> (Store, SavedImage) {
    let store = Store::open(root).unwrap();
    let diff_ids = ["a", "b"].map(|content| {
        let info = store
            .publish_layer(|| {
                let active = store.snapshots().prepare(&[])?;
                std::fs::write(active.upper().join(content), content).unwrap();
                active.commit().map_err(StoreError::from)
            })
            .unwrap();
        store.ensure_diff_id(&info.id).unwrap()
    });
    let mut config = ImageConfig::scratch(&Platform::host());
    config.rootfs.diff_ids = diff_ids.to_vec();
    config.config.cmd = Some(vec!["/a".to_owned()]);
    let config = serde_json::to_vec(&config).unwrap();
    let id = store.images().put_image(&config, None).unwrap();
    let names = vec!["app:1".parse().unwrap()];
    store.images().tag(&names[0], &id).unwrap();
    (store, SavedImage { id, names })
}

fn saved(dir: &Path, format: ArchiveFormat) -> (PathBuf, ImageId) {
    let (store, image) = store(&dir.join("store"));
    let path = dir.join("image.tar");
    let mut file = std::fs::File::create(&path).unwrap();
    let images = std::slice::from_ref(&image);
    store.save(images, format, &mut file).unwrap();
    (path, image.id)
}

fn skopeo(arguments: &[&str]) -> String {
    run(Command::new("skopeo")
        .arg("--insecure-policy")
        .args(arguments))
}

#[test]
fn skopeo_reads_and_writes_archives() {
    if is_missing("skopeo") {
        return;
    }
    for (format, transport, name) in [
        (ArchiveFormat::OCI, "oci-archive", ":1"),
        (ArchiveFormat::Docker, "docker-archive", ":app:1"),
        (ArchiveFormat::Docker, "oci-archive", ":1"),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let (path, id) = saved(dir.path(), format);
        let from = format!("{transport}:{}{name}", path.display());
        let config = skopeo(&["inspect", "--config", "--raw", &from]);
        assert_eq!(store::oci::Digest::of(config.as_bytes()), id.0, "{from}");
        for target in ["oci-archive", "docker-archive", "oci"] {
            let copied = dir.path().join(format!("copied-{target}"));
            let to = format!("{target}:{}:docker.io/library/copy:2", copied.display());
            skopeo(&["copy", "--quiet", &from, &to]);
            let other = Store::open(&dir.path().join(target)).unwrap();
            let loaded = if target == "oci" {
                other.load_directory(&copied)
            } else {
                other.load(std::fs::File::open(&copied).unwrap())
            };
            let loaded = loaded.unwrap();
            assert_eq!(loaded.len(), 1);
            let names: Vec<String> = loaded[0].names.iter().map(ToString::to_string).collect();
            assert_eq!(names, ["docker.io/library/copy:2"], "{to}");
            assert_eq!(loaded[0].id, id, "{to}");
            assert!(other.check().unwrap().is_empty(), "{to}");
        }
    }
}

#[test]
fn podman_reads_and_writes_archives() {
    if is_missing("podman") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let podman = |arguments: &[&str]| {
        let at = |name: &str| dir.path().join(name).display().to_string();
        run(Command::new("podman")
            .args(["--root", &at("podman"), "--runroot", &at("podman-run")])
            .args(["--storage-driver", "vfs"])
            .args(arguments))
    };
    for (from, format) in [
        ("docker", ArchiveFormat::Docker),
        ("oci", ArchiveFormat::OCI),
    ] {
        let (path, id) = saved(dir.path(), format);
        let path = path.display().to_string();
        let loaded = podman(&["load", "--quiet", "--input", &path]);
        if format == ArchiveFormat::Docker {
            assert!(loaded.contains("docker.io/library/app:1"), "{loaded}");
        }
        let listed = podman(&["images", "--all", "--no-trunc", "--quiet"]);
        assert!(listed.contains(&id.to_string()), "{listed}");
        for kind in ["docker-archive", "oci-archive"] {
            let out = dir.path().join(format!("{kind}-{from}"));
            let out_text = out.display().to_string();
            let id = id.0.hex();
            podman(&[
                "save", "--quiet", "--format", kind, "--output", &out_text, &id,
            ]);
            let other = Store::open(&dir.path().join(format!("{kind}-{from}-store"))).unwrap();
            let loaded = other.load(std::fs::File::open(&out).unwrap()).unwrap();
            assert_eq!(loaded.len(), 1);
            assert_eq!(loaded[0].id.0.hex(), id, "{kind}");
            assert!(other.check().unwrap().is_empty(), "{kind}");
        }
        podman(&["rmi", "--all", "--force"]);
        std::fs::remove_dir_all(dir.path().join("store")).unwrap();
    }
}
