//! `remote validate`: images that skopeo made, in every place; and each with one fault.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use store::oci::Digest;

use crate::support::{Place, Ran, Server, tool};

/// A layout with one image, made by skopeo.
struct Layout {
    folder: PathBuf,
}

impl Layout {
    /// A copy of this one.
    fn copy(&self, place: &Place, name: &str) -> Layout {
        let folder = place.path(name);
        let (from, to) = (self.folder.to_str().unwrap(), folder.to_str().unwrap());
        tool("cp", &["-r", from, to]);
        Layout { folder }
    }

    fn blob(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").unwrap();
        self.folder.join("blobs/sha256").join(hex)
    }

    fn json(&self, path: &Path) -> Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    }

    fn index(&self) -> Value {
        self.json(&self.folder.join("index.json"))
    }

    fn manifest(&self) -> Value {
        let index = self.index();
        self.json(&self.blob(index["manifests"][0]["digest"].as_str().unwrap()))
    }

    fn layer(&self) -> PathBuf {
        self.blob(self.manifest()["layers"][0]["digest"].as_str().unwrap())
    }

    /// Writes a document, and its digest and size into its descriptor.
    fn put(&self, document: &Value, descriptor: &mut Value) {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(&bytes).to_string();
        std::fs::write(self.blob(&digest), &bytes).unwrap();
        descriptor["digest"] = json!(digest);
        descriptor["size"] = json!(bytes.len());
    }

    /// Changes the configuration, the manifest and the index, and what names them.
    fn edit(&self, change: impl Fn(&mut Value, &mut Value, &mut Value)) {
        let (mut index, mut manifest) = (self.index(), self.manifest());
        let mut config = self.json(&self.blob(manifest["config"]["digest"].as_str().unwrap()));
        let mut entry = index["manifests"][0].clone();
        change(&mut config, &mut manifest, &mut entry);
        self.put(&config, &mut manifest["config"]);
        let said = entry["size"].clone();
        self.put(&manifest, &mut entry);
        if said == json!(1) {
            entry["size"] = said;
        }
        // Within an index, where it is asked for by what names it.
        let mut inner = json!({"mediaType": "application/vnd.oci.image.index.v1+json"});
        let document =
            json!({"schemaVersion": 2, "mediaType": inner["mediaType"], "manifests": [entry]});
        self.put(&document, &mut inner);
        index["manifests"] = json!([inner]);
        std::fs::write(self.folder.join("index.json"), index.to_string()).unwrap();
    }

    fn validate(&self, place: &Place, flags: &[&str]) -> Ran {
        let name = format!("oci:{}", self.folder.display());
        place.run([&["remote", "validate"], flags, &[&name]].concat())
    }
}

fn layout(place: &Place) -> Layout {
    place.add_busybox("app");
    let archive = place.path("app.tar");
    place.ok(["save", "app", "-o"], [&archive]);
    let folder = place.path("layout");
    let from = format!("docker-archive:{}", archive.display());
    let to = format!("oci:{}", folder.display());
    tool("skopeo", &["copy", "-q", "--insecure-policy", &from, &to]);
    Layout { folder }
}

#[test]
fn what_is_right_is_found_right_wherever_it_lies() {
    let place = Place::new();
    let layout = layout(&place);
    let registry = Server::registry(&place.path("registry"));
    let name = format!("{}/app:v1", registry.host);
    let from = format!("oci:{}", layout.folder.display());
    let to = format!("docker://{name}");
    let push = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"];
    tool(
        "skopeo",
        &[&push[..], &["--format", "v2s2", &from, &to]].concat(),
    );
    let zstd = format!("{}/zstd:v1", registry.host);
    let to = format!("docker://{zstd}");
    let packed = [
        "--format",
        "oci",
        "--dest-compress-format",
        "zstd",
        &from,
        &to,
    ];
    tool("skopeo", &[&push[..], &packed].concat());
    let archive = place.path("app.tar");
    let archive = archive.to_str().unwrap();
    let docker_archive = format!("docker-archive:{archive}");
    for words in [
        &[from.as_str()][..],
        &[&name],
        &[&zstd],
        &["--fast", &name],
        &["--remote", &name],
        &["--tarball", archive],
        &[&docker_archive],
        &["store:app"],
        &["--platform", "linux/amd64", &name],
    ] {
        let ran = place.run([&["remote", "validate"], words].concat());
        assert_eq!(ran.ok(), "", "{words:?}");
        assert!(ran.stderr.contains("is what it says"), "{ran}");
    }
    let told = place.run(["remote", "validate", "--json", &name]).ok();
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(
        (&told["valid"], &told["manifests"]),
        (&json!(true), &json!(1))
    );
    assert_eq!((&told["blobs"], &told["findings"]), (&json!(2), &json!([])));

    // What cannot be looked at is no finding.
    let absent = format!("{}/app:v2", registry.host);
    place.run(["remote", "validate", &absent]).fails(4, "");
    place.run(["remote", "validate"]).fails(2, "<IMAGE");
    // A layer that the registry has lost.
    let digest = layout.manifest()["layers"][0]["digest"]
        .as_str()
        .unwrap()
        .to_owned();
    let told = place.run(["remote", "manifest", "get", &name]).ok();
    let manifest: Value = serde_json::from_str(&told).unwrap();
    assert_eq!(manifest["layers"][0]["digest"], digest.as_str());
    let hex = digest.strip_prefix("sha256:").unwrap();
    let data = place.path("registry/docker/registry/v2/blobs/sha256");
    std::fs::remove_dir_all(data.join(&hex[..2]).join(hex)).unwrap();
    for flags in [&["--fast"][..], &[]] {
        let ran = place.run([&["remote", "validate"], flags, &[&name]].concat());
        assert_eq!(ran.code, Some(1), "{ran}");
        assert_eq!(ran.stdout, format!("{digest}: it is missing\n"));
    }
    drop(registry);
    place.run(["remote", "validate", &name]).fails(3, "");
}

#[test]
fn each_fault_is_told() {
    let place = Place::new();
    let good = layout(&place);
    let check = |name: &str, flags: &[&str], damage: &dyn Fn(&Layout), expect: &[&str]| {
        let layout = good.copy(&place, name);
        damage(&layout);
        let ran = layout.validate(&place, flags);
        assert_eq!(ran.code, Some(1), "{name}: {ran}");
        assert_eq!(ran.stdout.lines().count(), expect.len(), "{name}: {ran}");
        for (line, expect) in ran.stdout.lines().zip(expect) {
            assert!(
                line.starts_with("sha256:") && line.contains(expect),
                "{name}: {ran}"
            );
        }
    };
    let rewrite = |layout: &Layout, change: &dyn Fn(&mut Vec<u8>)| {
        let path = layout.layer();
        let mut bytes = std::fs::read(&path).unwrap();
        change(&mut bytes);
        std::fs::write(&path, bytes).unwrap();
    };
    let flip = |layout: &Layout| rewrite(layout, &|bytes| bytes[500] ^= 1);
    check("flipped", &[], &flip, &["its content has another digest"]);
    let longer = |layout: &Layout| rewrite(layout, &|bytes| bytes.push(0));
    check("longer", &[], &longer, &["its descriptor says"]);
    check(
        "longer-fast",
        &["--fast"],
        &longer,
        &["its descriptor says"],
    );
    let shorter = |layout: &Layout| rewrite(layout, &|bytes| bytes.truncate(700));
    check(
        "shorter",
        &[],
        &shorter,
        &["has 700 bytes, its descriptor says"],
    );
    let gone = |layout: &Layout| std::fs::remove_file(layout.layer()).unwrap();
    check("gone", &[], &gone, &["it is missing"]);

    let edited =
        |name: &str, change: &dyn Fn(&mut Value, &mut Value, &mut Value), expect: &[&str]| {
            check(name, &[], &|layout| layout.edit(change), expect);
        };
    let other = Digest::of(b"").to_string();
    edited(
        "diff-id",
        &|config, _, _| config["rootfs"]["diff_ids"][0] = json!(other),
        &["its DiffID is sha256:"],
    );
    edited(
        "diff-ids",
        &|config, _, _| {
            let ids = config["rootfs"]["diff_ids"].as_array_mut().unwrap();
            ids.push(json!(other));
        },
        &["it has 1 layers, its configuration 2 DiffIDs"],
    );
    edited(
        "history",
        &|config, _, _| config["history"] = json!([{"created_by": "a"}, {"created_by": "b"}]),
        &["it has 1 layers, its history 2 steps that made one"],
    );
    edited(
        "packing",
        &|_, manifest, _| {
            manifest["layers"][0]["mediaType"] =
                json!("application/vnd.oci.image.layer.v1.tar+zstd");
        },
        &["tar+zstd`, but it is gzip"],
    );
    edited(
        "platform",
        &|_, _, entry| entry["platform"] = json!({"os": "linux", "architecture": "arm64"}),
        &["it is for linux/amd64, its descriptor says linux/arm64"],
    );
    edited(
        "size",
        &|_, _, entry| entry["size"] = json!(1),
        &["bytes, its descriptor says 1"],
    );
    edited(
        "config",
        &|config, _, _| *config = json!([]),
        &["it is no configuration"],
    );
    // Not a tar, though its digest is right and the DiffID that of its bytes.
    let text = |layout: &Layout| {
        layout.edit(|config: &mut Value, manifest: &mut Value, _: &mut Value| {
            let bytes = b"no tar at all, but a text".repeat(100);
            let digest = Digest::of(&bytes).to_string();
            std::fs::write(layout.blob(&digest), &bytes).unwrap();
            config["rootfs"]["diff_ids"][0] = json!(digest);
            manifest["layers"][0] = json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": bytes.len()});
        });
    };
    check(
        "text",
        &[],
        &text,
        &["it cannot be unpacked: bad tar header"],
    );
    // Several at once are all told.
    let lost = |layout: &Layout| {
        gone(layout);
        layout.edit(|config: &mut Value, _: &mut Value, _: &mut Value| {
            config["history"] = json!([{"created_by": "a"}, {"created_by": "b"}]);
        });
    };
    check(
        "both",
        &[],
        &lost,
        &["its history 2 steps", "it is missing"],
    );
    let ran = good.validate(&place, &["--json"]);
    let told: Value = serde_json::from_str(&ran.ok()).unwrap();
    assert_eq!(told["valid"], true);
}
