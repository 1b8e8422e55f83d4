//! The same layers in other hands: GNU tar, the `tar` crate, umoci.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use store::layer::scan::scan;

use crate::support::{OPAQUE, Random, Tree, run, unpack};

/// A tree without what only layers have.
fn plain() -> Tree {
    let tree = Tree::with_everything();
    for path in ["etc/removed", "gone", "latin\u{fffd}"] {
        let _ = std::fs::remove_file(tree.at(path));
    }
    rustix::fs::removexattr(tree.at("opaque"), OPAQUE).unwrap();
    tree
}

fn tar_command(arguments: &[&str]) -> Command {
    let mut command = Command::new("tar");
    command.args(["--numeric-owner", "-S"]).args(arguments);
    command
}

#[test]
fn gnu_tar_reads_ours() {
    let tree = plain();
    let folder = Tree::new();
    folder.file("layer.tar", tree.tar()).dir("out");
    run(tar_command(&[
        "-xpf",
        "layer.tar",
        "-C",
        "out",
        "--xattrs",
        "--xattrs-include=*",
    ])
    .current_dir(folder.path()));
    assert_eq!(crate::support::listing(&folder.at("out")), tree.listing());
    assert_eq!(scan(&folder.at("out")).unwrap(), tree.scan());
}

#[test]
fn we_read_gnu_tars() {
    let tree = plain();
    let archive = Tree::new();
    let path = archive.at("gnu.tar");
    for format in ["gnu", "pax"] {
        let format = format!("--format={format}");
        let arguments = [
            "-cf",
            path.to_str().unwrap(),
            &format,
            "-C",
            tree.path().to_str().unwrap(),
        ];
        let attributes = ["--xattrs", "--xattrs-include=*"];
        let attributes = if format.ends_with("pax") {
            &attributes[..]
        } else {
            &[]
        };
        run(tar_command(&arguments)
            .args(attributes)
            .args(["--sort=name", "."]));
        let (copy, _) = unpack(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(copy.listing(), tree.listing(), "{format}");
        if format.ends_with("pax") {
            let without_root = |scan: store::layer::scan::Scan| (scan.bytes, scan.entries);
            let (entries, bytes) = (tree.scan().entries + 1, tree.scan().bytes);
            assert_eq!(without_root(copy.scan()), (bytes, entries));
            run(Command::new("diff")
                .arg("-r")
                .arg("--no-dereference")
                .args([tree.at("usr"), copy.at("usr")]));
        }
    }
}

#[test]
fn we_read_sparse_files_of_every_form() {
    let tree = Tree::new();
    let file = std::fs::File::create(tree.at("sparse")).unwrap();
    let mut random = Random::new(3);
    for piece in 0..60u64 {
        std::os::unix::fs::FileExt::write_all_at(&file, &random.bytes(4096), piece * 65_536)
            .unwrap();
    }
    file.set_len(10_000_000).unwrap();
    tree.file("after", "x");
    let archive = Tree::new();
    let path = archive.at("sparse.tar");
    for form in [
        &["--format=gnu"][..],
        &["--format=pax", "--sparse-version=0.0"],
        &["--format=pax", "--sparse-version=0.1"],
        &["--format=pax", "--sparse-version=1.0"],
    ] {
        run(tar_command(&[
            "-cf",
            path.to_str().unwrap(),
            "-C",
            tree.path().to_str().unwrap(),
        ])
        .args(form)
        .args(["sparse", "after"]));
        let tar = std::fs::read(&path).unwrap();
        assert!(tar.len() < 1_000_000, "{form:?} is not sparse");
        let (copy, unpacked) = unpack(&tar).unwrap_or_else(|error| panic!("{form:?}: {error:?}"));
        assert_eq!(copy.listing(), tree.listing(), "{form:?}");
        assert_eq!(unpacked.bytes, 10_000_001, "{form:?}");
        assert!(
            std::fs::read(copy.at("sparse")).unwrap() == std::fs::read(tree.at("sparse")).unwrap(),
            "{form:?}"
        );
        let blocks =
            std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(copy.at("sparse")).unwrap());
        assert!(blocks * 512 < 2_000_000, "{form:?}: holes were filled");
    }
}

#[test]
fn the_tar_crate_agrees() {
    let tree = Tree::with_everything();
    // That crate takes records apart at newlines, wherever they are.
    tree.xattr("zero", "user.binary", b"\0=\xff");
    let bytes = tree.tar();
    let mut archive = tar::Archive::new(&bytes[..]);
    let mut seen = BTreeMap::new();
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let extensions: Vec<(String, Vec<u8>)> = match entry.pax_extensions().unwrap() {
            Some(extensions) => extensions
                .map(|extension| {
                    extension
                        .map(|e| (e.key().unwrap().to_owned(), e.value_bytes().to_vec()))
                        .unwrap()
                })
                .collect(),
            None => Vec::new(),
        };
        let header = entry.header();
        let (size, uid) = (entry.size(), header.uid().unwrap());
        seen.insert(
            entry.path_bytes().into_owned(),
            (header.entry_type(), size, uid, extensions),
        );
    }
    let get = |path: &str| {
        seen.get(path.as_bytes())
            .unwrap_or_else(|| panic!("{path} is missing"))
    };
    assert_eq!(get("large").1, 3_000_000);
    assert_eq!(get("bin/su").2, 7);
    assert_eq!(get("usr/lib/b").0, tar::EntryType::Link);
    assert_eq!(get("a-first").0, tar::EntryType::Regular);
    assert_eq!(get("etc/.wh.removed").1, 0);
    assert!(get("opaque/.wh..wh..opq").0.is_file());
    assert!(
        get("null")
            .3
            .contains(&("gid".to_owned(), b"4000000000".to_vec()))
    );
    assert!(
        get("block")
            .3
            .contains(&("mtime".to_owned(), b"1700000000.5".to_vec()))
    );
    assert!(
        get("block")
            .3
            .iter()
            .any(|(key, _)| key == "SCHILY.xattr.security.capability")
    );
    assert_eq!(seen.len() as u64, tree.scan().entries + 1);
}

/// An OCI layout of two layers, as umoci wants it.
fn layout(path: &Path, layers: &[Vec<u8>]) {
    use store::oci::Digest;
    let blobs = path.join("blobs/sha256");
    std::fs::create_dir_all(&blobs).unwrap();
    let put = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        std::fs::write(blobs.join(digest.hex()), bytes).unwrap();
        format!(r#""digest":"{digest}","size":{}"#, bytes.len())
    };
    let ids: Vec<String> = layers
        .iter()
        .map(|layer| format!("\"{}\"", Digest::of(layer)))
        .collect();
    let descriptors: Vec<String> = layers
        .iter()
        .map(|layer| {
            format!(
                r#"{{"mediaType":"application/vnd.oci.image.layer.v1.tar",{}}}"#,
                put(layer)
            )
        })
        .collect();
    let config = put(
        format!(r#"{{"architecture":"amd64","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#, ids.join(",")).as_bytes(),
    );
    let manifest = put(
        format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{{"mediaType":"application/vnd.oci.image.config.v1+json",{config}}},"layers":[{}]}}"#,
            descriptors.join(",")
        )
        .as_bytes(),
    );
    std::fs::write(path.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    let index = format!(
        r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json",{manifest},"annotations":{{"org.opencontainers.image.ref.name":"x"}}}}]}}"#
    );
    std::fs::write(path.join("index.json"), index).unwrap();
}

#[test]
fn umoci_applies_our_layers() {
    let base = Tree::new();
    base.file("keep/a", "1")
        .file("keep/b", "2")
        .file("replaced/old", "3")
        .file("gone", "4")
        .dir("dir")
        .file("dir/x", "5");
    let step = Tree::new();
    step.dir("keep")
        .whiteout("keep/b")
        .dir("replaced")
        .xattr("replaced", OPAQUE, b"y")
        .file("replaced/new", "6");
    step.whiteout("gone")
        .whiteout("dir")
        .file("suid", "7")
        .owner("suid", 3, 4)
        .mode("suid", 0o4755);
    step.link("suid2", "suid")
        .file("päth", "8")
        .xattr("suid", "user.a", b"b")
        .mtime("päth", 1_700_000_000, 5);
    for tree in [&base, &step] {
        tree.mtime("keep", 10, 0).mtime("replaced", 11, 0);
    }
    let folder = Tree::new();
    layout(&folder.at("image"), &[base.tar(), step.tar()]);
    run(Command::new("umoci")
        .args(["raw", "unpack", "--image", "image:x", "root"])
        .current_dir(folder.path()));
    assert_eq!(
        crate::support::listing(&folder.at("root")),
        "d 755 0:0 keep\nf 644 0:0 1 keep/a\nf 644 0:0 1 p\u{e4}th\nd 755 0:0 replaced\nf 644 0:0 1 replaced/new\nf 4755 3:4 1 suid\nf 4755 3:4 1 suid2"
    );
    let stat = rustix::fs::stat(folder.at("root/päth")).unwrap();
    assert_eq!((stat.st_mtime, stat.st_mtime_nsec), (1_700_000_000, 5));
}
