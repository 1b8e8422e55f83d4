//! Writing a layer directory as a tar, always the same bytes for the same tree; reading is in [`read`],
//! writing what was read in [`write`](mod@write).
//!
//! Canonical form: entries sorted, parents first; numeric owners without names; plain POSIX headers, with PAX records only
//! for what they cannot say (long or non-ASCII names, large numbers, fractions of seconds, attributes); one entry with
//! content per inode, further names as hard links; directories end in `/`; no leading `./`; two blocks of zeros at the
//! end. Whiteouts are empty files of mode 0 and of 1970. Sockets, which no tar can hold, are left out.

pub(crate) mod header;
pub mod read;
pub mod write;

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::buffer::spare_capacity;
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::entry::{Metadata, Mtime, ROOT_STATED, is_opaque, read_xattr, read_xattrs, shown};
use super::scan::{Scan, ScanBuilder, ScanKind};
pub use super::walk::Mounts;
use super::walk::{Found, WalkError, open_directory, split, walk, walk_with};
use crate::oci::{DiffId, DigestAlgorithm, Hashing};
use header::{BLOCK, Block, OCTAL_8_MAX, OCTAL_12_MAX, padding, put_octal, seal};

/// Bytes handed from the reading thread to the writing one at a time.
const PIECE_BYTES: usize = 512 * 1024;

/// Pieces between the two threads.
const PIECES: usize = 4;

/// What was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TarSummary {
    /// Entries, whiteouts included.
    pub entries: u64,
    /// Bytes of the tar.
    pub bytes: u64,
}

/// Why a layer cannot be written as a tar.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TarError {
    /// The layer cannot be read.
    #[error("cannot {action} `{path}` in the layer")]
    Layer {
        /// Path in the layer.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
    /// A file changed while it was read, so nobody knows what the layer is.
    #[error("`{path}` changed while the layer was read, expected {expected} bytes")]
    Changed {
        /// Path in the layer.
        path: String,
        /// Its size before.
        expected: u64,
    },
    /// A name that means something else in a layer's tar.
    #[error(
        "`{path}` cannot be part of a layer: names that start with `.wh.` stand for removed files"
    )]
    ReservedName {
        /// Path in the layer.
        path: String,
    },
    /// An attribute's name cannot be written.
    #[error("the attribute `{name}` of `{path}` cannot be part of a layer: its name holds `=`")]
    AttributeName {
        /// Path in the layer.
        path: String,
        /// Name of the attribute.
        name: String,
    },
    /// The writer failed.
    #[error("cannot write the tar")]
    Output {
        /// The cause.
        source: io::Error,
    },
}

impl From<WalkError> for TarError {
    fn from(error: WalkError) -> TarError {
        TarError::Layer {
            path: shown(&error.path),
            action: "look up",
            source: error.errno,
        }
    }
}

/// Writes the layer directory `dir` to `out` in canonical form. Files are read on one thread of its own.
///
/// # Errors
/// The layer cannot be read or changes meanwhile, or `out` fails.
pub fn write_tar(dir: &Path, out: &mut dyn Write) -> Result<TarSummary, TarError> {
    let (mut summary, _) = write_entries(dir, None, None, out)?;
    end(&mut summary, out)?;
    Ok(summary)
}

/// As [`write_tar`], with the identity of what was written: as [`scan`](super::scan::scan) tells it, which would read all once more.
///
/// # Errors
/// As for [`write_tar`].
pub fn write_scanned(dir: &Path, out: &mut dyn Write) -> Result<(TarSummary, Scan), TarError> {
    let (mut summary, scan) = write_entries(dir, None, Some(ScanBuilder::new()), out)?;
    end(&mut summary, out)?;
    let scan = scan.expect("a builder was given").finish();
    Ok((summary, scan))
}

fn end(summary: &mut TarSummary, out: &mut dyn Write) -> Result<(), TarError> {
    summary.bytes += END.len() as u64;
    out.write_all(&END)
        .map_err(|source| TarError::Output { source })
}

/// Writes several directories to `out` as one tar, each in a folder of its own: by the folders' names, which are plain.
///
/// # Errors
/// As for [`write_tar`].
pub fn write_folders(dirs: &[(String, PathBuf)], out: &mut dyn Write) -> Result<(), TarError> {
    for (folder, dir) in dirs {
        write_entries(dir, Some(folder), None, out)?;
    }
    out.write_all(&END)
        .map_err(|source| TarError::Output { source })
}

/// What a tar ends with.
const END: [u8; BLOCK * 2] = [0; BLOCK * 2];

/// Permissions of a folder that [`write_folders`] makes.
const FOLDER_MODE: u32 = 0o755;

fn write_entries(
    dir: &Path,
    folder: Option<&str>,
    scan: Option<ScanBuilder>,
    out: &mut dyn Write,
) -> Result<(TarSummary, Option<ScanBuilder>), TarError> {
    let root = open_directory(rustix::fs::CWD, dir.as_os_str().as_bytes()).map_err(|source| {
        TarError::Layer {
            path: dir.display().to_string(),
            action: "open",
            source,
        }
    })?;
    packed(out, |pieces| {
        let mut packer = Packer::new(root.as_fd(), folder, pieces);
        packer.scan = scan;
        packer.pack()
    })
}

/// Writes all that is in a directory as a tar in which every name is just a name: no root, no whiteouts.
///
/// # Errors
/// As for [`write_tar`].
pub fn write_tree(root: BorrowedFd<'_>, out: &mut dyn Write) -> Result<TarSummary, TarError> {
    write_tree_with(root, Mounts::OnDisk, out)
}

/// As [`write_tree`], but for what is mounted in there.
///
/// # Errors
/// As for [`write_tar`].
pub fn write_tree_with(
    root: BorrowedFd<'_>,
    mounts: Mounts,
    out: &mut dyn Write,
) -> Result<TarSummary, TarError> {
    packed(out, |pieces| {
        let packer = Packer::new(root, None, pieces);
        packer.pack_tree(None, mounts)
    })
}

/// Writes what has a name in a directory, with all beneath it, under another name, as [`write_tree`] does. A link is
/// written as such.
///
/// # Errors
/// As for [`write_tar`].
pub fn write_named(
    parent: BorrowedFd<'_>,
    name: &[u8],
    written_as: &[u8],
    out: &mut dyn Write,
) -> Result<TarSummary, TarError> {
    let stat = rustix::fs::statat(parent, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW);
    let stat = stat.map_err(failed(name, "look up"))?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
        return packed(out, |pieces| {
            let mut packer = Packer::new(parent, None, pieces);
            packer.renamed = (name.len(), written_as.to_vec());
            packer.pack_one(&Found {
                path: name.to_vec(),
                stat,
            })
        });
    }
    let directory = open_directory(parent, name).map_err(failed(name, "open"))?;
    packed(out, |pieces| {
        let mut packer = Packer::new(directory.as_fd(), None, pieces);
        packer.renamed.1 = written_as.to_vec();
        packer.pack_tree(Some(&stat), Mounts::OnDisk)
    })
}

/// Runs a packer on a thread of its own and writes what it packs.
fn packed<T: Send>(
    out: &mut dyn Write,
    pack: impl FnOnce(SyncSender<Vec<u8>>) -> Result<T, TarError> + Send,
) -> Result<T, TarError> {
    std::thread::scope(|scope| {
        let (pieces, incoming) = sync_channel::<Vec<u8>>(PIECES);
        let packer = std::thread::Builder::new()
            .name("tar-read".to_owned())
            .spawn_scoped(scope, || pack(pieces))
            .map_err(|source| TarError::Output { source })?;
        let mut written = Ok(());
        for piece in incoming {
            written = out.write_all(&piece);
            if written.is_err() {
                // Dropping the receiver, as the loop's end does, stops the packer.
                break;
            }
        }
        let packed = packer.join().expect("the packer does not panic");
        written.map_err(|source| TarError::Output { source })?;
        packed
    })
}

/// The digest of [`write_tar`]'s bytes, without writing them anywhere. Reads on one thread and hashes on another.
///
/// # Errors
/// The layer cannot be read or changes meanwhile.
pub fn diff_id(dir: &Path) -> Result<DiffId, TarError> {
    let mut hash = Hashing::new(io::sink(), DigestAlgorithm::Sha256);
    write_tar(dir, &mut hash)?;
    Ok(DiffId(hash.finish().1))
}

struct Packer<'a> {
    root: BorrowedFd<'a>,
    /// What goes before each path: nothing, or a folder with its slash.
    folder: Vec<u8>,
    pieces: SyncSender<Vec<u8>>,
    piece: Vec<u8>,
    summary: TarSummary,
    /// First path of each inode that has several.
    links: HashMap<(u64, u64), Vec<u8>>,
    /// How much of each path is left out at its beginning, and what is written there.
    renamed: (usize, Vec<u8>),
    /// Whether names and marks have the meaning that they have in layers.
    is_layer: bool,
    /// Where the identity of the layer is wanted, too.
    scan: Option<ScanBuilder>,
}

/// What a header says beside [`Metadata`].
struct Head<'h> {
    kind: u8,
    size: u64,
    link: &'h [u8],
    device: (u32, u32),
}

impl Head<'_> {
    fn new(kind: u8) -> Head<'static> {
        Head {
            kind,
            size: 0,
            link: b"",
            device: (0, 0),
        }
    }
}

impl<'a> Packer<'a> {
    fn new(root: BorrowedFd<'a>, folder: Option<&str>, pieces: SyncSender<Vec<u8>>) -> Packer<'a> {
        Packer {
            root,
            folder: folder.map_or_else(Vec::new, |folder| format!("{folder}/").into_bytes()),
            pieces,
            piece: Vec::with_capacity(PIECE_BYTES),
            summary: TarSummary::default(),
            links: HashMap::new(),
            renamed: (0, Vec::new()),
            is_layer: true,
            scan: None,
        }
    }

    /// All beneath the root, and that itself if its `stat` is given.
    fn pack_tree(mut self, root: Option<&Stat>, mounts: Mounts) -> Result<TarSummary, TarError> {
        self.is_layer = false;
        if let Some(stat) = root {
            let directory = open_directory(self.root, b"").map_err(failed(b"/", "open"))?;
            self.directory(b"", &directory, stat)?;
            self.renamed.1.push(b'/');
        }
        for found in walk_with(self.root, mounts)? {
            self.entry(&found)?;
        }
        self.end()
    }

    /// One entry that is no directory.
    fn pack_one(mut self, found: &Found) -> Result<TarSummary, TarError> {
        self.is_layer = false;
        self.entry(found)?;
        self.end()
    }

    fn end(mut self) -> Result<TarSummary, TarError> {
        self.put(&END)?;
        self.flush()?;
        Ok(self.summary)
    }

    fn pack(mut self) -> Result<(TarSummary, Option<ScanBuilder>), TarError> {
        let layer = |action| {
            move |source| TarError::Layer {
                path: "/".to_owned(),
                action,
                source,
            }
        };
        let root = open_directory(self.root, b"").map_err(layer("open"))?;
        let stated =
            read_xattr(&root, ROOT_STATED.as_bytes()).map_err(layer("read the attributes of"))?;
        if !self.folder.is_empty() {
            let metadata = Metadata {
                mode: FOLDER_MODE,
                ..Metadata::default()
            };
            self.head(b"", &Head::new(b'5'), &metadata)?;
        }
        let opaque = is_opaque(&root).map_err(layer("read the attributes of"))?;
        if self.folder.is_empty() && stated.is_some() {
            let stat = rustix::fs::fstat(&root).map_err(layer("look up"))?;
            let metadata = self.directory(b".", &root, &stat)?;
            self.scanned(b"", ScanKind::Directory { opaque }, metadata);
        }
        if opaque {
            self.whiteout(b".wh..wh..opq")?;
        }
        for found in walk(self.root)? {
            self.entry(&found)?;
        }
        self.flush()?;
        Ok((self.summary, self.scan))
    }

    fn entry(&mut self, found: &Found) -> Result<(), TarError> {
        let path = &found.path[..];
        let (parent, name) = split(path);
        if self.is_layer && name.starts_with(b".wh.") {
            return Err(TarError::ReservedName { path: shown(path) });
        }
        if self.is_layer && found.is_whiteout() {
            let name = [b".wh.", name].concat();
            self.scanned(path, ScanKind::Whiteout, Metadata::default());
            return self.whiteout(&super::walk::join(parent, &name));
        }
        let stat = &found.stat;
        let kind = found.file_type();
        if kind != FileType::Directory && kind != FileType::Socket && stat.st_nlink > 1 {
            let key = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.links.get(&key) {
                let to = first.clone();
                let first = [&self.folder[..], first].concat();
                self.scanned(path, ScanKind::HardLink { to }, Metadata::default());
                let mut head = Head::new(b'1');
                head.link = &first;
                // The first name has said the attributes.
                return self.head(path, &head, &Metadata::of(stat));
            }
            let written = self.written_as(path);
            self.links.insert(key, written);
        }
        let failed = |action| failed(path, action);
        match kind {
            FileType::RegularFile => self.file(path, stat),
            FileType::Directory => {
                let directory = open_directory(self.root, path).map_err(failed("open"))?;
                let metadata = self.directory(path, &directory, stat)?;
                let opaque = self.is_layer
                    && is_opaque(&directory).map_err(failed("read the attributes of"))?;
                self.scanned(path, ScanKind::Directory { opaque }, metadata);
                if opaque {
                    self.whiteout(&super::walk::join(path, b".wh..wh..opq"))?;
                }
                Ok(())
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(self.root, path, Vec::new());
                let target = target.map_err(failed("read the link"))?;
                let mut head = Head::new(b'2');
                head.link = target.as_bytes();
                // All links have the same mode, whatever the file system says.
                let metadata = Metadata {
                    mode: 0o777,
                    ..Metadata::of(stat)
                };
                self.head(path, &head, &metadata)?;
                let target = target.into_bytes();
                self.scanned(path, ScanKind::Symlink { target }, metadata);
                Ok(())
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                let major = rustix::fs::major(stat.st_rdev);
                let minor = rustix::fs::minor(stat.st_rdev);
                let (type_flag, scanned) = match kind {
                    FileType::CharacterDevice => (b'3', ScanKind::Char { major, minor }),
                    _ => (b'4', ScanKind::BlockDevice { major, minor }),
                };
                let mut head = Head::new(type_flag);
                head.device = (major, minor);
                self.scanned(path, scanned, Metadata::of(stat));
                self.head(path, &head, &Metadata::of(stat))
            }
            FileType::Fifo => {
                self.scanned(path, ScanKind::Fifo, Metadata::of(stat));
                self.head(path, &Head::new(b'6'), &Metadata::of(stat))
            }
            _ => Ok(()),
        }
    }

    fn written_as(&self, path: &[u8]) -> Vec<u8> {
        let (left_out, prefix) = &self.renamed;
        [prefix, &path[*left_out..]].concat()
    }

    /// Notes an entry for the identity of the layer.
    fn scanned(&mut self, path: &[u8], kind: ScanKind, metadata: Metadata) {
        if let Some(scan) = &mut self.scan {
            scan.add(path, kind, metadata);
        }
    }

    /// The directory itself; what it says of itself.
    fn directory(
        &mut self,
        path: &[u8],
        directory: &OwnedFd,
        stat: &Stat,
    ) -> Result<Metadata, TarError> {
        let mut metadata = Metadata::of(stat);
        metadata.xattrs = read_xattrs(directory).map_err(failed(path, "read the attributes of"))?;
        self.head(&[path, b"/"].concat(), &Head::new(b'5'), &metadata)?;
        Ok(metadata)
    }

    fn whiteout(&mut self, path: &[u8]) -> Result<(), TarError> {
        self.head(path, &Head::new(b'0'), &Metadata::default())
    }

    fn file(&mut self, path: &[u8], stat: &Stat) -> Result<(), TarError> {
        let file = open_file(self.root, path).map_err(failed(path, "open"))?;
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        let mut metadata = Metadata::of(stat);
        metadata.xattrs = read_xattrs(&file).map_err(failed(path, "read the attributes of"))?;
        let mut head = Head::new(b'0');
        head.size = size;
        self.head(path, &head, &metadata)?;
        let changed = || TarError::Changed {
            path: shown(path),
            expected: size,
        };
        let mut content = self.scan.as_ref().map(|_| blake3::Hasher::new());
        let mut left = size;
        loop {
            // Room for one byte more than is left, so that one read tells both the content and its end.
            if self.piece.capacity() - self.piece.len()
                < BLOCK.max(
                    usize::try_from(left).map_or(BLOCK, |left| (left + 1).min(PIECE_BYTES / 2)),
                )
            {
                self.flush()?;
            }
            let before = self.piece.len();
            match rustix::io::read(&file, spare_capacity(&mut self.piece)) {
                Ok(_) => {}
                Err(Errno::INTR) => continue,
                Err(errno) => return Err(failed(path, "read")(errno)),
            }
            if let Some(content) = &mut content {
                content.update(&self.piece[before..]);
            }
            let count = (self.piece.len() - before) as u64;
            let at_end = self.piece.len() < self.piece.capacity();
            left = left.checked_sub(count).ok_or_else(changed)?;
            if count == 0 && left > 0 {
                return Err(changed());
            }
            // A read that does not fill its buffer has met the end of a regular file.
            if left == 0 && (at_end || count == 0) {
                break;
            }
        }
        if let Some(content) = content {
            let content = *content.finalize().as_bytes();
            self.scanned(path, ScanKind::File { size, content }, metadata);
        }
        self.put(&[0; BLOCK][..padding(size)])
    }

    fn head(&mut self, path: &[u8], head: &Head<'_>, metadata: &Metadata) -> Result<(), TarError> {
        self.summary.entries += 1;
        let path = &[&self.folder[..], &self.written_as(path)].concat()[..];
        let bytes = head_bytes(path, head, metadata)?;
        self.put(&bytes)
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), TarError> {
        while !bytes.is_empty() {
            let room = self.piece.capacity() - self.piece.len();
            let (now, later) = bytes.split_at(bytes.len().min(room));
            self.piece.extend_from_slice(now);
            bytes = later;
            if self.piece.len() == self.piece.capacity() {
                self.flush()?;
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<(), TarError> {
        if self.piece.is_empty() {
            return Ok(());
        }
        let piece = std::mem::replace(&mut self.piece, Vec::with_capacity(PIECE_BYTES));
        self.summary.bytes += piece.len() as u64;
        // The other side has failed and says why itself.
        self.pieces.send(piece).map_err(|_| TarError::Output {
            source: io::Error::from(io::ErrorKind::BrokenPipe),
        })
    }
}

/// A header in canonical form, with a PAX header before it where it needs one.
fn head_bytes(path: &[u8], head: &Head<'_>, metadata: &Metadata) -> Result<Vec<u8>, TarError> {
    let mut pax: BTreeMap<Vec<u8>, Vec<u8>> = BTreeMap::new();
    let mut block: Block = [0; BLOCK];
    match ustar_name(path) {
        Some((prefix, name)) => {
            block[header::PREFIX][..prefix.len()].copy_from_slice(prefix);
            block[header::NAME][..name.len()].copy_from_slice(name);
        }
        None => {
            pax.insert(b"path".to_vec(), path.to_vec());
            put_ascii(&mut block[header::NAME], path);
        }
    }
    if head.link.len() <= header::LINK.len() && head.link.is_ascii() {
        block[header::LINK][..head.link.len()].copy_from_slice(head.link);
    } else {
        pax.insert(b"linkpath".to_vec(), head.link.to_vec());
        put_ascii(&mut block[header::LINK], head.link);
    }
    put_octal(&mut block, header::MODE, metadata.mode.into());
    let mut number = |field: header::Field, key: &str, value: u64| {
        let most = if field.len() == 8 {
            OCTAL_8_MAX
        } else {
            OCTAL_12_MAX
        };
        if value <= most {
            put_octal(&mut block, field, value);
        } else {
            put_octal(&mut block, field, 0);
            pax.insert(key.into(), value.to_string().into_bytes());
        }
    };
    number(header::UID, "uid", metadata.uid.into());
    number(header::GID, "gid", metadata.gid.into());
    number(header::SIZE, "size", head.size);
    number(header::MAJOR, "SCHILY.devmajor", head.device.0.into());
    number(header::MINOR, "SCHILY.devminor", head.device.1.into());
    let mtime = metadata.mtime;
    let seconds = u64::try_from(mtime.seconds)
        .ok()
        .filter(|s| *s <= OCTAL_12_MAX);
    put_octal(&mut block, header::MTIME, seconds.unwrap_or(0));
    if seconds.is_none() || mtime.nanos != 0 {
        pax.insert(b"mtime".to_vec(), pax_time(mtime).into_bytes());
    }
    for (name, value) in &metadata.xattrs {
        if name.contains(&b'=') {
            return Err(TarError::AttributeName {
                path: shown(path),
                name: shown(name),
            });
        }
        pax.insert([b"SCHILY.xattr.", &name[..]].concat(), value.clone());
    }
    block[header::TYPE] = head.kind;
    block[header::MAGIC].copy_from_slice(header::USTAR);
    seal(&mut block);
    let mut bytes = match pax.is_empty() {
        true => Vec::with_capacity(BLOCK),
        false => pax_bytes(path, &pax),
    };
    bytes.extend_from_slice(&block);
    Ok(bytes)
}

fn pax_bytes(path: &[u8], records: &BTreeMap<Vec<u8>, Vec<u8>>) -> Vec<u8> {
    let mut body = Vec::new();
    for (key, value) in records {
        put_record(&mut body, key, value);
    }
    let mut block: Block = [0; BLOCK];
    let (_, name) = split(path.strip_suffix(b"/").unwrap_or(path));
    put_ascii(&mut block[header::NAME], &[b"PaxHeaders.0/", name].concat());
    for field in [
        header::MODE,
        header::UID,
        header::GID,
        header::MTIME,
        header::MAJOR,
        header::MINOR,
    ] {
        put_octal(&mut block, field, 0);
    }
    put_octal(&mut block, header::SIZE, body.len() as u64);
    block[header::TYPE] = b'x';
    block[header::MAGIC].copy_from_slice(header::USTAR);
    seal(&mut block);
    let padding = padding(body.len() as u64);
    [&block[..], &body, &[0; BLOCK][..padding]].concat()
}

fn failed(path: &[u8], action: &'static str) -> impl FnOnce(Errno) -> TarError {
    move |source| TarError::Layer {
        path: shown(path),
        action,
        source,
    }
}

/// Opens a regular file of a layer; never waits, whatever stands there by now.
pub(crate) fn open_file(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(root, path, flags, Mode::empty())
}

/// Splits a path over the two name fields of a POSIX header, as late as possible; `None` if it does not fit.
fn ustar_name(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if !path.is_ascii() {
        return None;
    }
    if path.len() <= header::NAME.len() {
        return Some((b"", path));
    }
    let inner = path.strip_suffix(b"/").unwrap_or(path);
    let reach = inner.len().min(header::PREFIX.len() + 1);
    let slash = inner[..reach].iter().rposition(|byte| *byte == b'/')?;
    let (prefix, name) = (&path[..slash], &path[slash + 1..]);
    (!prefix.is_empty() && name.len() <= header::NAME.len()).then_some((prefix, name))
}

/// The ASCII part of a name, as far as it fits: only for readers that do not know PAX.
fn put_ascii(field: &mut [u8], name: &[u8]) {
    for (slot, byte) in field
        .iter_mut()
        .zip(name.iter().filter(|byte| byte.is_ascii()))
    {
        *slot = *byte;
    }
}

fn put_record(body: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    // A blank, an equals sign and a newline; then the length counts its own digits.
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    body.extend_from_slice(length.to_string().as_bytes());
    body.push(b' ');
    body.extend_from_slice(key);
    body.push(b'=');
    body.extend_from_slice(value);
    body.push(b'\n');
}

fn pax_time(mtime: Mtime) -> String {
    let (sign, seconds, nanos) = match (mtime.seconds < 0, mtime.nanos) {
        (false, nanos) => ("", mtime.seconds.unsigned_abs(), nanos),
        (true, 0) => ("-", mtime.seconds.unsigned_abs(), 0),
        (true, nanos) => ("-", mtime.seconds.unsigned_abs() - 1, 1_000_000_000 - nanos),
    };
    if nanos == 0 {
        return format!("{sign}{seconds}");
    }
    let fraction = format!("{nanos:09}");
    format!("{sign}{seconds}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fill_both_fields_before_pax() {
        let long = |first: usize, second: usize| {
            [vec![b'a'; first], vec![b'/'], vec![b'b'; second]].concat()
        };
        let check = |path: &[u8], expected: Option<(usize, usize)>| {
            let split = ustar_name(path).map(|(prefix, name)| (prefix.len(), name.len()));
            assert_eq!(split, expected, "{}", path.escape_ascii());
        };
        check(b"etc/passwd", Some((0, 10)));
        check(&[b'a'; 100], Some((0, 100)));
        check(&[b'a'; 101], None);
        check(&long(155, 100), Some((155, 100)));
        check(&long(156, 100), None);
        check(&long(155, 101), None);
        check(&[&long(120, 99)[..], b"/"].concat(), Some((120, 100)));
        check("é".as_bytes(), None);
        check(&[b"/".as_slice(), &[b'a'; 100]].concat(), None);
    }

    #[test]
    fn record_lengths_count_themselves() {
        for length in [1, 4, 5, 6, 89, 90, 91, 92, 980, 990, 991, 992, 993, 9990] {
            let mut body = Vec::new();
            put_record(&mut body, b"k", &vec![b'v'; length]);
            let stated: usize = std::str::from_utf8(&body)
                .unwrap()
                .split_once(' ')
                .unwrap()
                .0
                .parse()
                .unwrap();
            assert_eq!(stated, body.len());
        }
    }

    #[test]
    fn times_print_as_pax_has_them() {
        let check = |seconds, nanos, expected: &str| {
            assert_eq!(pax_time(Mtime { seconds, nanos }), expected);
        };
        check(0, 0, "0");
        check(5, 500_000_000, "5.5");
        check(5, 1, "5.000000001");
        check(-5, 0, "-5");
        check(-2, 750_000_000, "-1.25");
        check(-1, 500_000_000, "-0.5");
        check(i64::MIN, 0, "-9223372036854775808");
    }
}
