//! The image `base` that cases start from, as an archive that every builder loads.
//!
//! Busybox, some users, some files in `/`, and what cases run: every name in `COMMANDS` writes what it was given and what
//! it runs as to `/ran`, which anyone may write to. It says nothing of proxies, which a step that hits need not have had.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::OnceLock;

use serde_json::{Value, json};
use store::oci::Digest;

use crate::support::busybox_rootfs;

/// What `RUN a` runs.
const SCRIPT: &str = "#!/bin/sh\necho \"$(basename $0)\" \"$@\" >>/ran\n{ id -u; id -g; pwd; env | grep -vi proxy | sort; } | sed 's/^/  /' >>/ran\n";

/// The names of images that all cases may use.
const NAMES: [&str; 3] = [
    "docker.io/library/base:latest",
    "docker.io/library/base:1",
    "docker.io/library/other:1",
];

const COMMANDS: &[&str] = &[
    "0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "a", "after", "b", "c", "d", "dir", "last",
    "linux", "once", "other", "own", "x", "y",
];

const PASSWD: &str = "\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/:/bin/false
u:x:1000:1000::/home/u:/bin/sh
app:x:1001:1002::/srv:/bin/sh
nobody:x:65534:65534:nobody:/:/bin/false
";

const GROUP: &str = "\
root:x:0:
daemon:x:1:
g:x:1500:
u:x:1000:
app:x:1002:
more:x:1600:u,app
even-more:x:1700:u
nogroup:x:65534:
";

/// The one layer of every base image, as a tar.
pub fn layer() -> &'static [u8] {
    static MADE: OnceLock<Vec<u8>> = OnceLock::new();
    MADE.get_or_init(|| {
        let busybox = std::fs::read(busybox_rootfs()).unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for entry in tar::Archive::new(busybox.as_slice()).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().into_owned();
            let mut header = entry.header().clone();
            let is_command = COMMANDS
                .iter()
                .any(|name| path.ends_with(format!("bin/{name}")));
            if is_command || path.ends_with("etc/passwd") || path.ends_with("etc/group") {
                continue;
            }
            if let Some(target) = entry.link_name().unwrap() {
                tar.append_link(&mut header, &path, &target).unwrap();
            } else {
                tar.append_data(&mut header, &path, &mut entry).unwrap();
            }
        }
        let mut file = |path: &str, mode: u32, text: &str| {
            let mut header = header(mode, tar::EntryType::Regular);
            header.set_size(text.len() as u64);
            tar.append_data(&mut header, path, text.as_bytes()).unwrap();
        };
        file("bin/command", 0o755, SCRIPT);
        file("etc/group", 0o644, GROUP);
        file("etc/passwd", 0o644, PASSWD);
        file("ran", 0o666, "");
        for name in ["a", "c", "x"] {
            file(name, 0o644, name);
        }
        for command in COMMANDS {
            let mut header = header(0o777, tar::EntryType::Symlink);
            tar.append_link(&mut header, format!("bin/{command}"), "command")
                .unwrap();
        }
        tar.into_inner().unwrap()
    })
}

fn header(mode: u32, kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(0);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

/// The configuration of `base`, unless a case has its own.
fn usual_config() -> Value {
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
        "history": [{"created_by": "base"}],
    })
}

/// The configurations of the usual images, and of those that a case has of its own.
pub fn all(images: &BTreeMap<String, Value>) -> BTreeMap<String, Value> {
    let usual = NAMES.map(|name| (name.to_owned(), usual_config()));
    let own = images.clone();
    usual.into_iter().chain(own).collect()
}

/// Writes an archive of `base` and of the images that a case has of its own, as `docker load` reads it.
pub fn write_archive(file: &Path, images: &BTreeMap<String, Value>) {
    let mut tar = tar::Builder::new(std::fs::File::create(file).unwrap());
    let mut add = |path: &str, bytes: &[u8]| {
        let mut header = header(0o644, tar::EntryType::Regular);
        header.set_size(bytes.len() as u64);
        tar.append_data(&mut header, path, bytes).unwrap();
    };
    let diff_id = Digest::of(layer());
    let layer_path = format!("{}/layer.tar", diff_id.hex());
    add(&layer_path, layer());
    let mut manifest = Vec::new();
    let mut written = BTreeSet::new();
    for (name, mut config) in all(images) {
        config["rootfs"] = json!({"type": "layers", "diff_ids": [diff_id.to_string()]});
        let config = serde_json::to_vec(&config).unwrap();
        let path = format!("{}.json", Digest::of(&config).hex());
        if written.insert(path.clone()) {
            add(&path, &config);
        }
        let familiar = name.trim_start_matches("docker.io/library/");
        manifest.push(json!({"Config": path, "RepoTags": [familiar], "Layers": [layer_path]}));
    }
    add("manifest.json", &serde_json::to_vec(&manifest).unwrap());
    tar.finish().unwrap();
}
