//! What came out of a build, as text: from an archive as `docker save` writes it, whoever wrote it.
//!
//! ```text
//! config
//! { the part `config` and the author, without what is empty }
//! history
//! layer RUN /bin/sh -c x # buildkit      or `empty`; ⏎ is a line's end
//! files
//! f 0644 0:0 /a "text\n" @1000000000     what differs from `base`
//! ```
//!
//! Files are those of the whole root, with `base` taken away: how they are spread over layers is not compared, but the
//! history says which steps have one. A time is printed when it is before 2020, so that it cannot be that of the build; and for
//! folders when it is neither 0 nor that of everything in a context, for builders make folders at any of these times.
//! A folder of `base` of which only the time is new is left out where names in it came or went.
//! A file's content is printed when it is short, and otherwise its size and digest. `= /b` is a hard link to `/b`.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};
use store::oci::Digest;

use super::base;
use super::setup::TIME;

/// Times from here on are those of builds.
const NOW_MIN: i64 = 1_577_836_800;

/// The longest content that is printed, in bytes.
const SHOWN_BYTES_MAX: usize = 400;

/// Reads an archive and prints its one image.
pub fn describe(archive: &Path) -> String {
    let archive = Archive::open(archive);
    let manifest: Value = serde_json::from_slice(&archive.entry("manifest.json")).unwrap();
    let config = archive.entry(manifest[0]["Config"].as_str().unwrap());
    let config: Value = serde_json::from_slice(&config).unwrap();
    let mut before = Tree::default();
    let mut after = Tree::default();
    let paths = manifest[0]["Layers"].as_array().unwrap();
    let diff_ids = config["rootfs"]["diff_ids"].as_array();
    assert_eq!(
        diff_ids.map_or(0, Vec::len),
        paths.len(),
        "a DiffID for each layer"
    );
    for (index, path) in paths.iter().enumerate() {
        let layer = archive.entry(path.as_str().unwrap());
        let diff_id = config["rootfs"]["diff_ids"][index].as_str();
        assert_eq!(diff_id, Some(Digest::of(&layer).to_string().as_str()));
        after.apply(&layer);
        if index == 0 && layer == base::layer() {
            before.apply(&layer);
        }
    }
    let mut out = String::from("config\n");
    print_config(&mut out, &config);
    out += "history\n";
    print_history(&mut out, &config, paths.len());
    out += "files\n";
    print_files(&mut out, &before, &after);
    out
}

/// A tar's files by path.
struct Archive(BTreeMap<String, Vec<u8>>);

impl Archive {
    fn open(path: &Path) -> Archive {
        let mut files = BTreeMap::new();
        let mut links = Vec::new();
        let mut tar = tar::Archive::new(File::open(path).unwrap());
        for entry in tar.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_str().unwrap().to_owned();
            if let Some(target) = entry.link_name().unwrap() {
                // Layers that occur in several images of an archive are links to the first.
                let target = target.to_str().unwrap();
                links.push((path, target.trim_start_matches("../").to_owned()));
                continue;
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).unwrap();
            files.insert(path, bytes);
        }
        for (path, target) in links {
            let bytes = files[&target].clone();
            files.insert(path, bytes);
        }
        Archive(files)
    }

    fn entry(&self, path: &str) -> Vec<u8> {
        self.0[path].clone()
    }
}

fn print_config(out: &mut String, config: &Value) {
    let mut shown = Map::new();
    for (name, value) in config["config"].as_object().into_iter().flatten() {
        shown.insert(name.clone(), value.clone());
    }
    shown.insert("Author".to_owned(), config["author"].clone());
    shown.retain(|_, value| !is_nothing(value));
    shown.sort_keys();
    let text = serde_json::to_string_pretty(&Value::Object(shown)).unwrap();
    writeln!(out, "{text}").unwrap();
}

/// Whether a field says no more than its absence does.
fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn print_history(out: &mut String, config: &Value, layers: usize) {
    let mut filled = 0;
    for entry in config["history"].as_array().into_iter().flatten() {
        let empty = entry["empty_layer"].as_bool().unwrap_or(false);
        filled += usize::from(!empty);
        let kind = if empty { "empty" } else { "layer" };
        let command = entry["created_by"].as_str().unwrap_or_default();
        let command = command.replace('\n', "⏎").replace('\t', "\\t");
        write!(out, "{kind} {command}").unwrap();
        match entry["comment"].as_str() {
            Some("buildkit.dockerfile.v0") => {}
            Some(comment) => write!(out, " ({comment})").unwrap(),
            None => *out += " (no comment)",
        }
        out.push('\n');
    }
    assert_eq!(filled, layers, "each layer has its entry:\n{out}");
}

/// One thing in a file system.
#[derive(Clone, PartialEq)]
struct Node {
    /// `f`, `d`, `l`, `p`, `c` or `b`.
    kind: char,
    mode: u32,
    owner: (u64, u64),
    time: i64,
    /// A file's content.
    content: Vec<u8>,
    /// A link's target, a device's numbers.
    detail: String,
    xattrs: BTreeMap<String, Vec<u8>>,
}

/// A file system: names, and what they name, so that hard links name one thing.
#[derive(Default)]
struct Tree {
    names: BTreeMap<String, usize>,
    nodes: Vec<Node>,
}

impl Tree {
    /// Lays a layer over what is there.
    fn apply(&mut self, layer: &[u8]) {
        let mut added = Vec::new();
        for entry in tar::Archive::new(layer).entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
            let path = absolute(&path);
            let (parent, name) = path.rsplit_once('/').unwrap();
            if name == ".wh..wh..opq" {
                let below = format!("{parent}/");
                self.names
                    .retain(|name, _| !name.starts_with(&below) || added.contains(name));
                continue;
            }
            if let Some(hidden) = name.strip_prefix(".wh.") {
                self.remove(&format!("{parent}/{hidden}"));
                continue;
            }
            added.push(path.clone());
            if entry.header().entry_type() == tar::EntryType::Link {
                let target = entry.link_name_bytes().unwrap().into_owned();
                let target = absolute(&String::from_utf8_lossy(&target));
                self.remove(&path);
                self.names.insert(path, self.names[&target]);
                continue;
            }
            let node = node(&mut entry);
            if node.kind != 'd' || !self.is_folder(&path) {
                self.remove(&path);
            }
            self.names.insert(path, self.nodes.len());
            self.nodes.push(node);
        }
    }

    fn is_folder(&self, path: &str) -> bool {
        self.names
            .get(path)
            .is_some_and(|index| self.nodes[*index].kind == 'd')
    }

    fn remove(&mut self, path: &str) {
        let below = format!("{path}/");
        self.names
            .retain(|name, _| name != path && !name.starts_with(&below));
    }

    /// The names right below a folder.
    fn children(&self, path: &str) -> Vec<&str> {
        let below = format!("{}/", path.trim_end_matches('/'));
        let names = self.names.keys();
        names
            .filter_map(|name| name.strip_prefix(&below))
            .filter(|name| !name.is_empty() && !name.contains('/'))
            .collect()
    }

    /// The first of the names of what a name names.
    fn first_name(&self, index: usize) -> &str {
        let mut names = self.names.iter();
        names.find(|(_, found)| **found == index).unwrap().0
    }
}

/// `./a/b/` and `a/b` as `/a/b`; the root as `/`.
fn absolute(path: &str) -> String {
    let parts: Vec<&str> = path
        .split('/')
        .filter(|part| !matches!(*part, "" | "."))
        .collect();
    format!("/{}", parts.join("/"))
}

fn node(entry: &mut tar::Entry<'_, &[u8]>) -> Node {
    let mut xattrs = BTreeMap::new();
    if let Some(extensions) = entry.pax_extensions().unwrap() {
        for extension in extensions {
            let extension = extension.unwrap();
            if let Some(name) = extension.key().unwrap().strip_prefix("SCHILY.xattr.") {
                xattrs.insert(name.to_owned(), extension.value_bytes().to_vec());
            }
        }
    }
    let header = entry.header();
    let kind = match header.entry_type() {
        tar::EntryType::Regular => 'f',
        tar::EntryType::Directory => 'd',
        tar::EntryType::Symlink => 'l',
        tar::EntryType::Fifo => 'p',
        tar::EntryType::Char => 'c',
        tar::EntryType::Block => 'b',
        other => panic!("{other:?} in a layer"),
    };
    let mut node = Node {
        kind,
        mode: header.mode().unwrap() & 0o7777,
        owner: (header.uid().unwrap(), header.gid().unwrap()),
        time: i64::try_from(header.mtime().unwrap()).unwrap(),
        content: Vec::new(),
        detail: String::new(),
        xattrs,
    };
    if matches!(kind, 'c' | 'b') {
        let number = |found: std::io::Result<Option<u32>>| found.unwrap().unwrap_or_default();
        let (major, minor) = (header.device_major(), header.device_minor());
        node.detail = format!("{}:{}", number(major), number(minor));
    }
    if let Some(target) = entry.link_name_bytes() {
        node.detail = format!("-> {}", String::from_utf8_lossy(&target));
    }
    entry.read_to_end(&mut node.content).unwrap();
    node
}

fn print_files(out: &mut String, before: &Tree, after: &Tree) {
    let mut lines = BTreeMap::new();
    for path in before.names.keys() {
        let parent = path.rsplit_once('/').map_or("/", |(parent, _)| parent);
        if !after.names.contains_key(path) && (parent.is_empty() || after.is_folder(parent)) {
            lines.insert(path.clone(), format!("- {path}"));
        }
    }
    for (path, index) in &after.names {
        let node = &after.nodes[*index];
        let was = before.names.get(path).map(|index| &before.nodes[*index]);
        if was == Some(node) || was.is_some_and(|was| is_touched(path, was, node, before, after)) {
            continue;
        }
        let first = after.first_name(*index);
        let mut line = format!(
            "{} {:04o} {}:{} {}",
            node.kind,
            node.mode,
            node.owner.0,
            node.owner.1,
            shown_path(path)
        );
        if first != path {
            write!(line, " = {}", shown_path(first)).unwrap();
        } else if node.kind == 'f' {
            write!(line, " {}", shown(&node.content)).unwrap();
        } else if !node.detail.is_empty() {
            write!(line, " {}", node.detail).unwrap();
        }
        for (name, value) in &node.xattrs {
            write!(line, " {name}={}", shown(value)).unwrap();
        }
        let usual = node.kind == 'd' && matches!(node.time, 0 | TIME);
        if node.time < NOW_MIN && !usual {
            write!(line, " @{}", node.time).unwrap();
        }
        lines.insert(path.clone(), line);
    }
    for line in lines.values() {
        writeln!(out, "{line}").unwrap();
    }
}

/// Whether nothing is new of a folder but its time, because names in it came or went.
fn is_touched(path: &str, was: &Node, node: &Node, before: &Tree, after: &Tree) -> bool {
    let timeless = Node {
        time: was.time,
        ..node.clone()
    };
    node.kind == 'd' && timeless == *was && before.children(path) != after.children(path)
}

/// A path, quoted where it could be misread.
fn shown_path(path: &str) -> String {
    if path.contains(|c: char| c.is_whitespace() || c.is_control() || c == '"') {
        return format!("{path:?}");
    }
    path.to_owned()
}

/// Bytes as a string, or their number and digest.
fn shown(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) if bytes.len() <= SHOWN_BYTES_MAX && !text.contains('\0') => {
            serde_json::to_string(text).unwrap()
        }
        _ => format!("{} bytes {}", bytes.len(), Digest::of(bytes).short()),
    }
}
