//! Several layers as one tar, without unpacking any: what a container would see, or what one layer instead of them would be.
//!
//! The layers are read twice. The first time only headers are looked at, and it is decided which entry each path comes from: the
//! newest one that no newer whiteout hides. The second time those entries are written, oldest layer first, so that parents come
//! before children and files before their hard links. Where a file was replaced but a hard link to it was not, its content is
//! written under the link's name.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};

use super::compress::decompressor;
use super::compress::estargz::{LANDMARK, LANDMARK_CONTENT, PREFETCH_LANDMARK, TABLE_NAME};
use super::entry::shown;
use super::tar::TarError;
use super::tar::read::{Entry, Kind, ReadError, Reader};
use super::tar::write::Writer;

/// Most entries of all layers, and most bytes of their paths, which are kept in memory.
const ENTRIES_MAX: u64 = 10_000_000;
const PATH_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// Hard links that are followed to one file.
const LINKS_MAX: usize = 16;

/// Beginning of a whiteout's name, and what hides all that older layers have in a directory.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why layers cannot be merged.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// A layer cannot be opened, or is not compressed as it seems.
    #[error("cannot read layer {layer}: {source}")]
    Open {
        /// Its number, from 0.
        layer: usize,
        /// Why.
        source: io::Error,
    },
    /// A layer is no tar.
    #[error("layer {layer}: {source}")]
    Read {
        /// Its number, from 0.
        layer: usize,
        /// Why.
        source: ReadError,
    },
    /// A path with `..` in it.
    #[error(
        "layer {layer} has an entry `{path}`: `..` in a path, expected one that stays below the root"
    )]
    Escape {
        /// Its number, from 0.
        layer: usize,
        /// The path.
        path: String,
    },
    /// A hard link to what is not there.
    #[error("layer {layer} has a hard link `{path}` to `{target}`, which is not there")]
    Dangling {
        /// Its number, from 0.
        layer: usize,
        /// The link.
        path: String,
        /// What it names.
        target: String,
    },
    /// More than is kept in memory.
    #[error("the layers have more than {max} {what}")]
    TooMuch {
        /// Of what.
        what: &'static str,
        /// The limit.
        max: u64,
    },
    /// The result cannot be written.
    #[error(transparent)]
    Write(#[from] TarError),
}

/// What was merged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Merged {
    /// Entries that were written.
    pub entries: u64,
    /// Bytes of files.
    pub bytes: u64,
}

/// Opens a layer by its number, oldest first, each time at its start; compressed or not.
pub type OpenLayer<'a> = dyn FnMut(usize) -> io::Result<Box<dyn Read>> + 'a;

/// Writes what `layers` layers add up to as one tar without whiteouts.
///
/// # Errors
/// A layer's, or `out`'s.
pub fn merge(
    layers: usize,
    open: &mut OpenLayer<'_>,
    out: &mut dyn Write,
) -> Result<Merged, MergeError> {
    let mut plan = Plan::default();
    for layer in 0..layers {
        plan.read(layer, open)?;
    }
    let mut writer = Writer::new(out);
    let mut merged = Merged::default();
    for layer in 0..layers {
        write_layer(&plan, layer, open, &mut writer, &mut merged)?;
    }
    writer.finish()?;
    Ok(merged)
}

/// Which entry each path comes from.
#[derive(Debug, Default)]
struct Plan {
    winners: BTreeMap<Vec<u8>, Winner>,
    /// Of a layer's hard links: where the content is, by the number of the entry.
    links: BTreeMap<(usize, u64), Link>,
    entries: u64,
    path_bytes: u64,
}

#[derive(Debug)]
struct Winner {
    layer: usize,
    entry: u64,
    is_directory: bool,
}

/// A hard link: the entry of the same layer that it leads to, if there is one, and what it names.
#[derive(Debug)]
struct Link {
    entry: Option<u64>,
    target: Vec<u8>,
}

impl Plan {
    /// Takes a layer in, on top of those before it.
    fn read(&mut self, layer: usize, open: &mut OpenLayer<'_>) -> Result<(), MergeError> {
        let mut tar = reader(layer, open)?;
        let (mut hidden, mut opaque) = (Vec::new(), Vec::new());
        let mut fresh: BTreeMap<Vec<u8>, Winner> = BTreeMap::new();
        // Of each path, the last entry; and what hard links name.
        let mut named: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
        // What eStargz adds is no part of the layer, as when it is unpacked.
        let mut landmarks = Vec::new();
        let mut ends_with_table = false;
        let mut number = 0;
        while let Some(entry) = next(layer, &mut tar)? {
            let at = number;
            number += 1;
            self.bound(&entry)?;
            let path = clean(layer, &entry.path)?;
            let (parent, name) = split(&path);
            ends_with_table = entry.kind == Kind::File && path == TABLE_NAME;
            if entry.kind == Kind::File && is_landmark(layer, &path, &mut tar)? {
                landmarks.push(path.clone());
            }
            if name == OPAQUE {
                opaque.push(parent.to_vec());
            } else if let Some(name) = name.strip_prefix(WHITEOUT) {
                hidden.push(join(parent, name));
            } else if !path.is_empty() {
                if entry.kind == Kind::HardLink {
                    named.insert(path.clone(), clean(layer, &entry.link)?);
                } else {
                    named.remove(&path);
                }
                let winner = Winner {
                    layer,
                    entry: at,
                    is_directory: entry.kind == Kind::Directory,
                };
                fresh.insert(path, winner);
            }
        }
        if ends_with_table && !landmarks.is_empty() {
            fresh.remove(TABLE_NAME);
            for landmark in &landmarks {
                fresh.remove(landmark);
            }
        }
        for path in &hidden {
            self.winners.remove(path);
            self.remove_below(path);
        }
        for path in &opaque {
            self.remove_below(path);
        }
        for (path, target) in &named {
            let mut to = target;
            for _ in 0..LINKS_MAX {
                match named.get(to) {
                    Some(further) => to = further,
                    None => break,
                }
            }
            let entry = fresh.get(to).map(|winner| winner.entry);
            let link = Link {
                entry,
                target: to.clone(),
            };
            if let Some(winner) = fresh.get(path) {
                self.links.insert((layer, winner.entry), link);
            }
        }
        for (path, winner) in fresh {
            if !winner.is_directory {
                self.remove_below(&path);
            }
            self.winners.insert(path, winner);
        }
        Ok(())
    }

    fn bound(&mut self, entry: &Entry) -> Result<(), MergeError> {
        self.entries += 1;
        self.path_bytes += (entry.path.len() + entry.link.len()) as u64;
        let over = |what, max| Err(MergeError::TooMuch { what, max });
        if self.entries > ENTRIES_MAX {
            return over("entries", ENTRIES_MAX);
        }
        if self.path_bytes > PATH_BYTES_MAX {
            return over("bytes of paths", PATH_BYTES_MAX);
        }
        Ok(())
    }

    fn remove_below(&mut self, path: &[u8]) {
        let start = match path {
            b"" => Vec::new(),
            path => [path, b"/"].concat(),
        };
        let below = self.winners.range(start.clone()..);
        let below: Vec<Vec<u8>> = below
            .take_while(|(path, _)| path.starts_with(&start))
            .map(|(path, _)| path.clone())
            .collect();
        for path in below {
            self.winners.remove(&path);
        }
    }

    /// Whether a path comes from this entry.
    fn wins(&self, path: &[u8], layer: usize, entry: u64) -> bool {
        let winner = self.winners.get(path);
        winner.is_some_and(|winner| winner.layer == layer && winner.entry == entry)
    }
}

/// Whether the entry that was just read is a landmark of eStargz; reads its content if it may be.
fn is_landmark(
    layer: usize,
    path: &[u8],
    tar: &mut Reader<Box<dyn Read>>,
) -> Result<bool, MergeError> {
    let size = LANDMARK_CONTENT.len();
    if ![LANDMARK, PREFETCH_LANDMARK].contains(&path) || tar.content_left() != size as u64 {
        return Ok(false);
    }
    let mut content = [0; LANDMARK_CONTENT.len()];
    let count = tar
        .read_content(&mut content)
        .map_err(|source| MergeError::Read { layer, source })?;
    Ok(content[..count] == *LANDMARK_CONTENT)
}

/// Writes the entries of a layer that are part of the result.
fn write_layer(
    plan: &Plan,
    layer: usize,
    open: &mut OpenLayer<'_>,
    writer: &mut Writer<&mut dyn Write>,
    merged: &mut Merged,
) -> Result<(), MergeError> {
    let heirs = heirs(plan, layer);
    let inherited: BTreeSet<&[u8]> = heirs.values().map(|path| &path[..]).collect();
    let mut tar = reader(layer, open)?;
    let mut number = 0;
    while let Some(mut entry) = next(layer, &mut tar)? {
        let at = number;
        number += 1;
        let path = clean(layer, &entry.path)?;
        if let Some(heir) = heirs.get(&at) {
            copy(heir, &entry, &mut tar, layer, writer, merged)?;
            continue;
        }
        if !plan.wins(&path, layer, at) || inherited.contains(&path[..]) {
            continue;
        }
        if let Some(link) = plan.links.get(&(layer, at)) {
            let there = match link.entry.and_then(|to| heirs.get(&to)) {
                Some(heir) => heir.clone(),
                None => link.target.clone(),
            };
            let kept = match link.entry {
                Some(_) => true,
                // To a file of an older layer, which must not have been replaced by this one or a newer one.
                None => plan
                    .winners
                    .get(&there)
                    .is_some_and(|winner| winner.layer < layer),
            };
            if !kept {
                return Err(MergeError::Dangling {
                    layer,
                    path: shown(&path),
                    target: shown(&link.target),
                });
            }
            entry.link = there;
        }
        copy(&path, &entry, &mut tar, layer, writer, merged)?;
    }
    Ok(())
}

/// Of files that do not stay under their own name, but under that of a hard link: which one, by the number of the entry.
fn heirs(plan: &Plan, layer: usize) -> BTreeMap<u64, Vec<u8>> {
    let mut heirs = BTreeMap::new();
    for (path, winner) in &plan.winners {
        let Some(link) = plan.links.get(&(winner.layer, winner.entry)) else {
            continue;
        };
        if winner.layer == layer
            && let Some(entry) = link.entry
            && !plan.wins(&link.target, layer, entry)
        {
            heirs.entry(entry).or_insert_with(|| path.clone());
        }
    }
    heirs
}

/// Writes an entry under a path, with its content.
fn copy(
    path: &[u8],
    entry: &Entry,
    tar: &mut Reader<Box<dyn Read>>,
    layer: usize,
    writer: &mut Writer<&mut dyn Write>,
    merged: &mut Merged,
) -> Result<(), MergeError> {
    let failed = |source| MergeError::Read { layer, source };
    let path = match entry.kind {
        Kind::Directory => [path, b"/"].concat(),
        _ => path.to_vec(),
    };
    let is_file = entry.kind == Kind::File;
    let size = if is_file { entry.size } else { 0 };
    writer.entry(&path, entry, size)?;
    merged.entries += 1;
    merged.bytes += size;
    if !is_file {
        return Ok(());
    }
    let whole = [(0, entry.size)];
    let pieces = entry.sparse.as_deref().unwrap_or(&whole);
    let mut buffer = vec![0; 128 * 1024];
    let mut done = 0;
    for (offset, length) in pieces {
        zeros(writer, offset.saturating_sub(done))?;
        let mut left = *length;
        while left > 0 {
            let want = usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
            let count = tar.read_content(&mut buffer[..want]).map_err(failed)?;
            if count == 0 {
                let place = "within a sparse file".to_owned();
                return Err(failed(ReadError::Truncated { place }));
            }
            writer.content(&buffer[..count])?;
            left -= count as u64;
        }
        done = offset + length;
    }
    zeros(writer, entry.size.saturating_sub(done))
}

fn zeros(writer: &mut Writer<&mut dyn Write>, mut count: u64) -> Result<(), MergeError> {
    let block = [0; 64 * 1024];
    while count > 0 {
        let now = usize::try_from(count).map_or(block.len(), |count| count.min(block.len()));
        writer.content(&block[..now])?;
        count -= now as u64;
    }
    Ok(())
}

fn reader(layer: usize, open: &mut OpenLayer<'_>) -> Result<Reader<Box<dyn Read>>, MergeError> {
    let failed = |source| MergeError::Open { layer, source };
    let stream = decompressor(open(layer).map_err(failed)?).map_err(failed)?;
    Ok(Reader::new(Box::new(stream)))
}

fn next(layer: usize, tar: &mut Reader<Box<dyn Read>>) -> Result<Option<Entry>, MergeError> {
    tar.next_entry()
        .map_err(|source| MergeError::Read { layer, source })
}

/// A path without a leading `/` or `./`; the root is empty.
fn clean(layer: usize, path: &[u8]) -> Result<Vec<u8>, MergeError> {
    let parts = path.split(|byte| *byte == b'/');
    let parts: Vec<&[u8]> = parts.filter(|part| !matches!(*part, b"" | b".")).collect();
    if parts.contains(&&b".."[..]) {
        return Err(MergeError::Escape {
            layer,
            path: shown(path),
        });
    }
    Ok(parts.join(&b'/'))
}

fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    match parent {
        b"" => name.to_vec(),
        parent => [parent, b"/", name].concat(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::entry::Metadata;

    /// A layer of `path content`, `path -> symlink`, `path = hard link` and `path/`.
    fn layer(lines: &[&str]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut tar = Writer::new(&mut bytes as &mut dyn Write);
        for line in lines {
            let mut words = line.split(' ');
            let (path, how, rest) = (words.next().unwrap(), words.next(), words.next());
            let (kind, link, content) = match (how, rest) {
                (None, _) if path.ends_with('/') => (Kind::Directory, "", ""),
                (None, _) => (Kind::File, "", ""),
                (Some("->"), Some(to)) => (Kind::Symlink, to, ""),
                (Some("="), Some(to)) => (Kind::HardLink, to, ""),
                (Some(content), _) => (Kind::File, "", content),
            };
            let entry = Entry {
                offset: 0,
                path: path.into(),
                kind,
                link: link.into(),
                metadata: Metadata::default(),
                device: (0, 0),
                size: content.len() as u64,
                sparse: None,
            };
            tar.entry(path.as_bytes(), &entry, entry.size).unwrap();
            if !content.is_empty() {
                tar.content(content.as_bytes()).unwrap();
            }
        }
        tar.finish().unwrap();
        bytes
    }

    fn lines(tar: &[u8]) -> Vec<String> {
        let mut reader = Reader::new(tar);
        let mut lines = Vec::new();
        while let Some(entry) = reader.next_entry().unwrap() {
            let mut line = String::from_utf8(entry.path.clone()).unwrap();
            let link = String::from_utf8(entry.link.clone()).unwrap();
            match entry.kind {
                Kind::Symlink => line += &format!(" -> {link}"),
                Kind::HardLink => line += &format!(" = {link}"),
                _ => {}
            }
            let mut content = vec![0; 100];
            let count = reader.read_content(&mut content).unwrap();
            if count > 0 {
                line += &format!(" {}", String::from_utf8_lossy(&content[..count]));
            }
            lines.push(line);
        }
        lines
    }

    fn merged(layers: &[&[&str]]) -> Result<Vec<String>, MergeError> {
        let tars: Vec<Vec<u8>> = layers.iter().map(|lines| layer(lines)).collect();
        let mut open = |at: usize| Ok(Box::new(io::Cursor::new(tars[at].clone())) as Box<dyn Read>);
        let mut out = Vec::new();
        merge(tars.len(), &mut open, &mut out)?;
        Ok(lines(&out))
    }

    #[test]
    fn layers_add_up() {
        let check = |layers: &[&[&str]], expected: &[&str]| {
            assert_eq!(merged(layers).unwrap(), expected, "{layers:?}");
        };
        check(&[], &[]);
        // What eStargz adds, and what only has its names.
        check(
            &[
                &[".no.prefetch.landmark \x0f", "a 1", "stargz.index.json {}"],
                &["b 1", "stargz.index.json {}"],
                &["c 1", ".no.prefetch.landmark \x0f"],
            ],
            &[
                "a 1",
                "b 1",
                "stargz.index.json {}",
                "c 1",
                ".no.prefetch.landmark \x0f",
            ],
        );
        check(
            &[&["./", "./a/", "./a/b 1"], &["a/c 2"]],
            &["a/", "a/b 1", "a/c 2"],
        );
        // Newer entries, whiteouts, opaque directories, and a directory that a file takes the place of.
        check(&[&["a 1", "b 1"], &["a 2"]], &["b 1", "a 2"]);
        check(
            &[&["a/", "a/b 1", "a/c/", "a/c/d 1"], &["a/.wh.c"]],
            &["a/", "a/b 1"],
        );
        check(
            &[&["a/", "a/b 1"], &["a/", "a/.wh..wh..opq", "a/c 2"]],
            &["a/", "a/c 2"],
        );
        check(&[&["a/", "a/b 1"], &["a 2"]], &["a 2"]);
        check(&[&["a 1"], &[".wh.a"], &["a 3"]], &["a 3"]);
        check(&[&["ab 1", "a/", "a/x 1"], &[".wh.a"]], &["ab 1"]);
        // A whiteout hides what is older, also where it stands after what is new.
        check(
            &[&["d/", "d/a 1"], &["d/new 2", "d/.wh.new", "d/.wh.a"]],
            &["d/", "d/new 2"],
        );
        check(&[&["l -> a/b"], &["x 1"]], &["l -> a/b", "x 1"]);
    }

    #[test]
    fn hard_links_keep_what_they_name() {
        let check = |layers: &[&[&str]], expected: &[&str]| {
            assert_eq!(merged(layers).unwrap(), expected, "{layers:?}");
        };
        check(&[&["a 1", "b = a"]], &["a 1", "b = a"]);
        // The file is replaced, or removed, and its links are not.
        check(
            &[&["a 1", "b = a", "c = a"], &["a 2"]],
            &["b 1", "c = b", "a 2"],
        );
        check(&[&["a 1", "b = a", "c = b"], &[".wh.a"]], &["b 1", "c = b"]);
        check(&[&["a 1", "b = a"], &[".wh.b"]], &["a 1"]);
        // To a file of an older layer.
        check(&[&["a 1"], &["b = a"]], &["a 1", "b = a"]);
        let error = merged(&[&["a 1"], &["b = a"], &["a 2"]]).unwrap_err();
        assert!(matches!(error, MergeError::Dangling { .. }), "{error}");
    }

    #[test]
    fn what_leads_out_is_refused() {
        for bad in ["../a 1", "a/../../b 1", "a = ../../etc/passwd"] {
            let error = merged(&[&[bad]]).unwrap_err();
            assert!(matches!(error, MergeError::Escape { .. }), "{bad}: {error}");
        }
        let mut open = |_| {
            Ok(Box::new(&b"no tar at all, but long enough to be read as one"[..]) as Box<dyn Read>)
        };
        assert!(merge(1, &mut open, &mut io::sink()).is_err());
    }
}
