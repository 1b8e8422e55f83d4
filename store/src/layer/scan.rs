//! Identity of a layer: a digest of its whole tree, with and without modification times.
//!
//! Every entry is hashed field by field, in path order, each variable part after its length. The times are hashed apart,
//! so that one walk gives both: the [`TreeDigest`], which says whether two steps did the same, and the name of the layer,
//! which also tells times apart. A file's bytes enter by their own BLAKE3 digest, so whoever has read the bytes already
//! (a copy) can state it and need not read them again.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering as MemoryOrdering};

use rustix::fs::FileType;
use rustix::io::Errno;

use super::TreeDigest;
use super::entry::{Metadata, ROOT_STATED, Xattrs, is_opaque, read_xattr, read_xattrs, shown};
use super::tar::open_file;
use super::walk::{Found, open_directory, walk};

/// Starts the digest of a tree. Part of the format.
const TREE_DOMAIN: &[u8] = b"longshore layer tree v1\0";
/// Starts the digest of the times.
const TIMES_DOMAIN: &[u8] = b"longshore layer times v1\0";
/// Starts the digest that names a layer.
const LAYER_DOMAIN: &[u8] = b"longshore layer v1\0";

/// Work below which a second thread costs more than it gains: files, and bytes.
const ALONE_FILES: usize = 64;
const ALONE_BYTES: u64 = 4 * 1024 * 1024;

/// Most threads that read files: beyond a few, the file system is what is waited for.
const THREADS_MAX: usize = 8;

/// What a walk over a layer found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Digest of everything, times included: names the layer.
    pub id: [u8; 32],
    /// Digest of everything but times.
    pub tree: TreeDigest,
    /// Sum of the sizes of regular files, each inode once, in bytes.
    pub bytes: u64,
    /// Number of entries, whiteouts included.
    pub entries: u64,
}

/// What an entry is, for its identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ScanKind {
    /// A regular file with the BLAKE3 digest of its bytes.
    File {
        /// Size in bytes.
        size: u64,
        /// Digest of the content.
        content: [u8; 32],
    },
    /// A directory.
    Directory {
        /// Whether it hides what lies below it.
        opaque: bool,
    },
    /// A symbolic link.
    Symlink {
        /// Its target.
        target: Vec<u8>,
    },
    /// One more name of a file that is added under another path, in either order.
    HardLink {
        /// That path; not itself a `HardLink`.
        to: Vec<u8>,
    },
    /// A character device.
    Char {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A block device.
    BlockDevice {
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// A named pipe.
    Fifo,
    /// A path of a lower layer that is gone. Has no metadata.
    Whiteout,
}

/// Why a layer cannot be scanned.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{path}` in the layer")]
pub struct ScanError {
    /// Path in the layer.
    pub path: String,
    /// What was tried.
    pub action: &'static str,
    /// The kernel's answer.
    pub source: Errno,
}

/// Computes a [`Scan`] from entries as they become known, in any order.
#[derive(Debug, Default)]
pub struct ScanBuilder {
    entries: Vec<(Vec<u8>, ScanKind, Metadata)>,
}

impl ScanBuilder {
    /// A builder with no entries: the layer of a step that changed nothing.
    pub fn new() -> ScanBuilder {
        ScanBuilder::default()
    }

    /// Adds the entry at `path` (relative, no `.` or `..`, no slash at either end; the empty path states the root itself).
    ///
    /// A path added twice counts as it was added last. The mode of a symbolic link and all metadata of whiteouts and hard
    /// links are ignored.
    pub fn add(&mut self, path: &[u8], kind: ScanKind, metadata: Metadata) {
        self.entries.push((path.to_vec(), kind, metadata));
    }

    /// The identity of what was added.
    pub fn finish(mut self) -> Scan {
        self.entries.sort_by(|a, b| path_order(&a.0, &b.0));
        // Of equal paths the sort keeps the order, so the last one wins.
        let mut entries: Vec<(Vec<u8>, ScanKind, Metadata)> =
            Vec::with_capacity(self.entries.len());
        for entry in self.entries {
            match entries.last_mut() {
                Some(last) if last.0 == entry.0 => *last = entry,
                _ => entries.push(entry),
            }
        }
        first_names_hold_content(&mut entries);

        let mut tree = blake3::Hasher::new();
        tree.update(TREE_DOMAIN);
        let mut times = blake3::Hasher::new();
        times.update(TIMES_DOMAIN);
        let mut bytes = 0u64;
        let mut record = Vec::new();
        for (path, kind, metadata) in &entries {
            if let ScanKind::File { size, .. } = kind {
                bytes = bytes.saturating_add(*size);
            }
            record.clear();
            encode(&mut record, path, kind, metadata);
            tree.update(&record);
            if !matches!(kind, ScanKind::HardLink { .. } | ScanKind::Whiteout) {
                times.update(&metadata.mtime.seconds.to_le_bytes());
                times.update(&metadata.mtime.nanos.to_le_bytes());
            }
        }
        let tree = *tree.finalize().as_bytes();
        let mut id = blake3::Hasher::new();
        id.update(LAYER_DOMAIN);
        id.update(&tree);
        id.update(times.finalize().as_bytes());
        Scan {
            id: *id.finalize().as_bytes(),
            tree: TreeDigest(tree),
            bytes,
            entries: entries.len() as u64,
        }
    }
}

/// Moves the content of hard-linked files to their first name in path order, so that the order of adding does not show.
fn first_names_hold_content(entries: &mut [(Vec<u8>, ScanKind, Metadata)]) {
    let mut firsts: HashMap<Vec<u8>, usize> = HashMap::new();
    for (index, (path, kind, _)) in entries.iter().enumerate() {
        if let ScanKind::HardLink { to } = kind {
            // Entries are sorted: the first link seen is the first link.
            let is_before = path_order(path, to) == Ordering::Less;
            if is_before && !firsts.contains_key(to) {
                firsts.insert(to.clone(), index);
            }
        }
    }
    if firsts.is_empty() {
        return;
    }
    for index in 0..entries.len() {
        if let Some(&first) = firsts.get(&entries[index].0) {
            let to = entries[first].0.clone();
            let kind = std::mem::replace(&mut entries[index].1, ScanKind::HardLink { to });
            let metadata = std::mem::take(&mut entries[index].2);
            entries[first].1 = kind;
            entries[first].2 = metadata;
        }
    }
    for index in 0..entries.len() {
        let renamed = match &entries[index].1 {
            ScanKind::HardLink { to } => firsts.get(to).filter(|first| **first != index),
            _ => None,
        };
        if let Some(&first) = renamed {
            let to = entries[first].0.clone();
            entries[index].1 = ScanKind::HardLink { to };
        }
    }
}

/// The order of a walk: a directory's entries follow it, before its next sibling.
pub(crate) fn path_order(a: &[u8], b: &[u8]) -> Ordering {
    let low = |byte: &u8| if *byte == b'/' { 0 } else { *byte };
    a.iter().map(low).cmp(b.iter().map(low))
}

fn encode(record: &mut Vec<u8>, path: &[u8], kind: &ScanKind, metadata: &Metadata) {
    put(record, path);
    let (tag, has_metadata) = match kind {
        ScanKind::File { .. } => (1u8, true),
        ScanKind::Directory { .. } => (2, true),
        ScanKind::Symlink { .. } => (3, true),
        ScanKind::HardLink { .. } => (4, false),
        ScanKind::Char { .. } => (5, true),
        ScanKind::BlockDevice { .. } => (6, true),
        ScanKind::Fifo => (7, true),
        ScanKind::Whiteout => (8, false),
    };
    record.push(tag);
    match kind {
        ScanKind::File { size, content } => {
            record.extend_from_slice(&size.to_le_bytes());
            record.extend_from_slice(content);
        }
        ScanKind::Directory { opaque } => record.push(u8::from(*opaque)),
        ScanKind::Symlink { target: text } | ScanKind::HardLink { to: text } => put(record, text),
        ScanKind::Char { major, minor } | ScanKind::BlockDevice { major, minor } => {
            record.extend_from_slice(&major.to_le_bytes());
            record.extend_from_slice(&minor.to_le_bytes());
        }
        ScanKind::Fifo | ScanKind::Whiteout => {}
    }
    if !has_metadata {
        return;
    }
    let mode = match kind {
        ScanKind::Symlink { .. } => 0o777,
        _ => metadata.mode,
    };
    for number in [mode, metadata.uid, metadata.gid] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(&(metadata.xattrs.len() as u64).to_le_bytes());
    for (name, value) in &metadata.xattrs {
        put(record, name);
        put(record, value);
    }
}

fn put(record: &mut Vec<u8>, bytes: &[u8]) {
    record.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    record.extend_from_slice(bytes);
}

/// Scans the layer directory `dir`; large and many files are read by several threads.
///
/// # Errors
/// Something in it cannot be read, or it changes meanwhile.
pub fn scan(dir: &Path) -> Result<Scan, ScanError> {
    let root = open_directory(rustix::fs::CWD, dir.as_os_str().as_bytes()).map_err(|source| {
        ScanError {
            path: dir.display().to_string(),
            action: "open",
            source,
        }
    })?;
    let mut builder = ScanBuilder::new();
    let rooted = failed(b"/", "read");
    if let Some(metadata) = stated_root(root.as_fd()).map_err(rooted)? {
        let opaque = is_opaque(&root).map_err(failed(b"/", "read"))?;
        builder.add(b"", ScanKind::Directory { opaque }, metadata);
    }
    let found = walk(root.as_fd()).map_err(|error| failed(&error.path, "look up")(error.errno))?;

    let mut links: HashMap<(u64, u64), usize> = HashMap::new();
    let mut files = Vec::new();
    let mut bytes = 0u64;
    let mut pending = Vec::with_capacity(found.len());
    for (index, entry) in found.iter().enumerate() {
        let kind = entry.file_type();
        if kind == FileType::Socket {
            continue;
        }
        let stat = &entry.stat;
        let is_linked = kind != FileType::Directory && !entry.is_whiteout() && stat.st_nlink > 1;
        let first = if is_linked {
            *links.entry((stat.st_dev, stat.st_ino)).or_insert(index)
        } else {
            index
        };
        if first == index && kind == FileType::RegularFile {
            files.push(index);
            bytes = bytes.saturating_add(u64::try_from(stat.st_size).unwrap_or(0));
        }
        pending.push((index, first));
    }
    let mut contents = read_files(root.as_fd(), &found, &files, bytes)?;
    for (index, first) in pending {
        let entry = &found[index];
        let path = &entry.path[..];
        let mut metadata = Metadata::of(&entry.stat);
        let kind = if first != index {
            ScanKind::HardLink {
                to: found[first].path.clone(),
            }
        } else if entry.is_whiteout() {
            ScanKind::Whiteout
        } else {
            let device = (
                rustix::fs::major(entry.stat.st_rdev),
                rustix::fs::minor(entry.stat.st_rdev),
            );
            match entry.file_type() {
                FileType::RegularFile => {
                    let (content, xattrs) = contents.remove(&index).expect("every file was read");
                    metadata.xattrs = xattrs;
                    let size = u64::try_from(entry.stat.st_size).unwrap_or(0);
                    ScanKind::File { size, content }
                }
                FileType::Directory => {
                    let directory =
                        open_directory(root.as_fd(), path).map_err(failed(path, "open"))?;
                    metadata.xattrs = read_xattrs(&directory).map_err(failed(path, "read"))?;
                    let opaque = is_opaque(&directory).map_err(failed(path, "read"))?;
                    ScanKind::Directory { opaque }
                }
                FileType::Symlink => {
                    let target = rustix::fs::readlinkat(&root, path, Vec::new());
                    let target = target.map_err(failed(path, "read"))?.into_bytes();
                    ScanKind::Symlink { target }
                }
                FileType::CharacterDevice => ScanKind::Char {
                    major: device.0,
                    minor: device.1,
                },
                FileType::BlockDevice => ScanKind::BlockDevice {
                    major: device.0,
                    minor: device.1,
                },
                FileType::Fifo => ScanKind::Fifo,
                _ => return Err(failed(path, "make sense of")(Errno::INVAL)),
            }
        };
        builder.add(path, kind, metadata);
    }
    Ok(builder.finish())
}

/// The root's own metadata, where the layer states them.
pub(crate) fn stated_root(root: BorrowedFd<'_>) -> Result<Option<Metadata>, Errno> {
    if read_xattr(root, ROOT_STATED.as_bytes())?.is_none() {
        return Ok(None);
    }
    let mut metadata = Metadata::of(&rustix::fs::fstat(root)?);
    metadata.xattrs = read_xattrs(root)?;
    Ok(Some(metadata))
}

/// What is inside a file and not in its inode: digest of its bytes, and attributes.
type Content = ([u8; 32], Xattrs);

type Contents = HashMap<usize, Content>;

/// Digests and attributes of the files at `indexes` in `found`.
fn read_files(
    root: BorrowedFd<'_>,
    found: &[Found],
    indexes: &[usize],
    bytes: u64,
) -> Result<Contents, ScanError> {
    let next = AtomicUsize::new(0);
    let work = || -> Result<Vec<(usize, Content)>, ScanError> {
        let mut read = Vec::new();
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let Some(&index) = indexes.get(next.fetch_add(1, MemoryOrdering::Relaxed)) else {
                return Ok(read);
            };
            read.push((index, read_file(root, &found[index], &mut buffer)?));
        }
    };
    let is_small = indexes.len() < ALONE_FILES && bytes < ALONE_BYTES;
    if is_small {
        return Ok(work()?.into_iter().collect());
    }
    let threads =
        std::thread::available_parallelism().map_or(1, |count| count.get().min(THREADS_MAX));
    std::thread::scope(|scope| {
        let others: Vec<_> = (1..threads)
            .filter_map(|index| {
                let name = format!("scan-{index}");
                // Fewer threads are slower, nothing else.
                std::thread::Builder::new()
                    .name(name)
                    .spawn_scoped(scope, work)
                    .ok()
            })
            .collect();
        let mut all: Contents = work()?.into_iter().collect();
        for other in others {
            all.extend(other.join().expect("scanning does not panic")?);
        }
        Ok(all)
    })
}

fn read_file(
    root: BorrowedFd<'_>,
    found: &Found,
    buffer: &mut [u8],
) -> Result<([u8; 32], Xattrs), ScanError> {
    let path = &found.path[..];
    let file = open_file(root, path).map_err(failed(path, "open"))?;
    let xattrs = read_xattrs(&file).map_err(failed(path, "read the attributes of"))?;
    let mut hasher = blake3::Hasher::new();
    let mut left = u64::try_from(found.stat.st_size).unwrap_or(0);
    loop {
        let count = match rustix::io::read(&file, &mut *buffer) {
            Ok(count) => count,
            Err(Errno::INTR) => continue,
            Err(errno) => return Err(failed(path, "read")(errno)),
        };
        hasher.update(&buffer[..count]);
        left = match left.checked_sub(count as u64) {
            Some(left) if left == 0 || count > 0 => left,
            _ => {
                return Err(failed(path, "trust (it changes while it is read)")(
                    Errno::STALE,
                ));
            }
        };
        // A read that does not fill the buffer has met the end of a regular file.
        if left == 0 && count < buffer.len() {
            return Ok((*hasher.finalize().as_bytes(), xattrs));
        }
    }
}

fn failed(path: &[u8], action: &'static str) -> impl FnOnce(Errno) -> ScanError {
    move |source| ScanError {
        path: shown(path),
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[u8]) -> ScanKind {
        ScanKind::File {
            size: content.len() as u64,
            content: *blake3::hash(content).as_bytes(),
        }
    }

    #[test]
    fn the_order_of_adding_does_not_show() {
        let link = |to: &[u8]| ScanKind::HardLink { to: to.to_vec() };
        let mode = |mode| Metadata {
            mode,
            ..Metadata::default()
        };
        let mut first = ScanBuilder::new();
        first.add(b"a", file(b"x"), mode(0o644));
        first.add(b"b", link(b"a"), mode(0));
        first.add(b"c", link(b"a"), mode(0));
        first.add(b"d", ScanKind::Whiteout, mode(0));
        let mut second = ScanBuilder::new();
        second.add(b"d", ScanKind::Whiteout, mode(0o600));
        second.add(b"c", link(b"b"), mode(1));
        second.add(b"b", ScanKind::Fifo, mode(2));
        second.add(b"b", file(b"x"), mode(0o644));
        second.add(b"a", link(b"b"), mode(3));
        let (first, second) = (first.finish(), second.finish());
        assert_eq!(first, second);
        assert_eq!((first.entries, first.bytes), (4, 1));
    }

    #[test]
    fn every_field_counts() {
        let base = Metadata {
            mode: 0o644,
            ..Metadata::default()
        };
        let one = |path: &[u8], kind: ScanKind, metadata: &Metadata| {
            let mut builder = ScanBuilder::new();
            builder.add(path, kind, metadata.clone());
            builder.finish()
        };
        let mut seen = vec![ScanBuilder::new().finish().tree];
        let mut check = |scan: Scan| {
            assert!(!seen.contains(&scan.tree));
            seen.push(scan.tree);
        };
        check(one(b"a", file(b"x"), &base));
        check(one(b"b", file(b"x"), &base));
        check(one(b"", ScanKind::Directory { opaque: false }, &base));
        check(one(b"a", file(b"y"), &base));
        check(one(b"a", ScanKind::Directory { opaque: false }, &base));
        check(one(b"a", ScanKind::Directory { opaque: true }, &base));
        check(one(b"a", ScanKind::Whiteout, &base));
        check(one(b"a", ScanKind::Fifo, &base));
        check(one(b"a", ScanKind::Char { major: 1, minor: 3 }, &base));
        check(one(
            b"a",
            ScanKind::BlockDevice { major: 1, minor: 3 },
            &base,
        ));
        check(one(
            b"a",
            ScanKind::Symlink {
                target: b"x".to_vec(),
            },
            &base,
        ));
        check(one(b"a", ScanKind::HardLink { to: b"x".to_vec() }, &base));
        check(one(
            b"a",
            file(b"x"),
            &Metadata {
                mode: 0o4644,
                ..base.clone()
            },
        ));
        check(one(
            b"a",
            file(b"x"),
            &Metadata {
                uid: 1,
                ..base.clone()
            },
        ));
        check(one(
            b"a",
            file(b"x"),
            &Metadata {
                gid: 1,
                ..base.clone()
            },
        ));
        let mut marked = base.clone();
        marked.xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
        check(one(b"a", file(b"x"), &marked));

        let mut later = base.clone();
        later.mtime.nanos = 1;
        let (now, then) = (one(b"a", file(b"x"), &base), one(b"a", file(b"x"), &later));
        assert_eq!(now.tree, then.tree);
        assert_ne!(now.id, then.id);
    }

    #[test]
    fn the_format_is_pinned() {
        let mut metadata = Metadata {
            mode: 0o755,
            uid: 1,
            gid: 2,
            ..Metadata::default()
        };
        metadata.mtime.seconds = 3;
        metadata.mtime.nanos = 4;
        metadata.xattrs.insert(b"user.a".to_vec(), b"b".to_vec());
        let mut builder = ScanBuilder::new();
        builder.add(b"d", ScanKind::Directory { opaque: true }, metadata.clone());
        builder.add(b"d/f", file(b"hello"), metadata);
        let scan = builder.finish();
        let text = format!("{} {}", scan.tree, blake3::Hash::from_bytes(scan.id));
        expect_test::expect!["b3:82ac17988c30e960e15fd6865376ad1304224e93259c9ed2b9d26a70bea9f8e5 a030d34e536673af5e5ce884c3035a69335f38e1c4c4dac15b87d26a6a958780"].assert_eq(&text);
    }
}
