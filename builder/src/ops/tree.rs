//! Trees that copies read from: a local folder in place, or the merged root file system of a stage or image.
//!
//! Everything is read by directory: one listing with the metadata of each entry, opened below the root's handle without
//! following links, so that no path, whatever it says, leaves the root. Links in a path that somebody wrote are followed
//! here, in user space, confined to the root ([`Tree::resolve`]). A context keeps its listings for the whole build.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, RawDir, ResolveFlags};
use rustix::io::Errno;

use super::context::Context;
use super::context::layer_hashes::LayerHashes;

/// Links followed while one path is resolved, at most: what Go's `EvalSymlinks` and so BuildKit allow.
pub(crate) const LINKS_MAX: usize = 255;

/// Room for directory entries per `getdents64`, in bytes.
const DIRENT_BUFFER_BYTES: usize = 32 * 1024;

/// Largest value of an extended attribute, in bytes: the kernel's own bound (`XATTR_SIZE_MAX`).
const XATTR_BYTES_MAX: usize = 64 * 1024;

/// Where a copy reads from.
#[derive(Clone, Copy, Debug)]
pub enum Tree<'a> {
    /// A local folder: owners count as 0:0, extended attributes are not copied, digests are remembered.
    Context(&'a Context),
    /// The top directory of a merged, read-only root file system that nobody changes meanwhile.
    RootFs(BorrowedFd<'a>),
    /// The same, made of layers of the store alone: what their files contain is remembered.
    Layers(BorrowedFd<'a>, &'a LayerHashes),
}

/// Why a tree could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TreeError {
    /// A call to the kernel failed.
    #[error("cannot {action} `{path}`: {source}")]
    Io {
        /// What was tried: `read`, `list`, `open`, …
        action: &'static str,
        /// Path below the tree's root.
        path: String,
        /// Why it failed.
        source: std::io::Error,
    },
    /// A path needs more than [`LINKS_MAX`] symbolic links.
    #[error("`{path}`: too many levels of symbolic links")]
    LinkLoop {
        /// Path as it was asked for.
        path: String,
    },
    /// A file is no longer what it was when the build looked at it first.
    #[error("`{path}`: changed while the build read it")]
    Changed {
        /// Path below the tree's root.
        path: String,
    },
}

impl TreeError {
    pub(crate) fn io(action: &'static str, path: &[u8], errno: Errno) -> TreeError {
        TreeError::Io {
            action,
            path: show(path),
            source: errno.into(),
        }
    }
}

/// What kind of thing an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Kind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// A symbolic link.
    Symlink,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A named pipe.
    Fifo,
    /// A socket.
    Socket,
}

/// A point in time: seconds since 1970 and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01, may be negative.
    pub seconds: i64,
    /// Nanoseconds past them.
    pub nanos: u32,
}

/// What the kernel says of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Kind.
    pub kind: Kind,
    /// Permission bits with setuid, setgid and sticky: `0o7777` at most.
    pub mode: u32,
    /// Owner; 0 in a context.
    pub uid: u32,
    /// Group; 0 in a context.
    pub gid: u32,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change of the content.
    pub mtime: Time,
    /// Time of the last change of anything.
    pub ctime: Time,
    /// Device it lies on.
    pub dev: u64,
    /// Number on that device.
    pub ino: u64,
    /// Names it has.
    pub nlink: u64,
    /// Device it stands for, if it is one.
    pub rdev: u64,
}

impl Meta {
    fn of(stat: &rustix::fs::Stat) -> Meta {
        let kind = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Dir,
            FileType::Symlink => Kind::Symlink,
            FileType::CharacterDevice => Kind::CharDevice,
            FileType::BlockDevice => Kind::BlockDevice,
            FileType::Fifo => Kind::Fifo,
            FileType::Socket => Kind::Socket,
            FileType::RegularFile | FileType::Unknown => Kind::File,
        };
        let (uid, gid) = store::layer::entry::stated_owner(stat.st_uid, stat.st_gid);
        Meta {
            kind,
            mode: stat.st_mode & 0o7777,
            uid,
            gid,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: time(stat.st_mtime, stat.st_mtime_nsec),
            ctime: time(stat.st_ctime, stat.st_ctime_nsec),
            dev: stat.st_dev,
            ino: stat.st_ino,
            nlink: u64::from(u32::try_from(stat.st_nlink).unwrap_or(u32::MAX)),
            rdev: stat.st_rdev,
        }
    }

    /// Metadata of `path` below `root`; the last component is not followed. `None` if there is no such path.
    pub(crate) fn read(root: BorrowedFd<'_>, path: &[u8]) -> Result<Option<Meta>, Errno> {
        let stat = if path.is_empty() {
            rustix::fs::statat(root, c"", AtFlags::EMPTY_PATH)
        } else {
            rustix::fs::statat(root, path, AtFlags::SYMLINK_NOFOLLOW)
        };
        match stat {
            Ok(stat) => Ok(Some(Meta::of(&stat))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(errno) => Err(errno),
        }
    }

    /// Metadata of an open file.
    pub(crate) fn of_file(file: &impl AsFd) -> Result<Meta, Errno> {
        rustix::fs::fstat(file).map(|stat| Meta::of(&stat))
    }
}

// The integer types of `Stat` differ between targets.
#[allow(
    clippy::useless_conversion,
    reason = "the integer types of `Stat` differ between targets"
)]
fn time(seconds: i64, nanos: impl TryInto<u32>) -> Time {
    Time {
        seconds: i64::from(seconds),
        nanos: nanos.try_into().unwrap_or(0),
    }
}

/// Extended attributes that a copy keeps, sorted by name.
pub(crate) type Xattrs = Vec<(Vec<u8>, Vec<u8>)>;

/// One directory: its entries sorted by name.
#[derive(Debug)]
pub(crate) struct Listing {
    /// Path below the root without a leading `/`; empty for the root.
    pub(crate) path: Vec<u8>,
    pub(crate) entries: Vec<Entry>,
}

/// One name in a directory, and what has been learnt of it so far.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) meta: Meta,
    pub(crate) hash: OnceLock<[u8; 32]>,
    /// Whether the file cannot have changed within the clock's tick after it was read.
    pub(crate) settled: AtomicBool,
    link: OnceLock<Vec<u8>>,
    xattrs: OnceLock<Xattrs>,
}

impl Entry {
    /// Where the link points, if it was looked at.
    pub(crate) fn known_link(&self) -> Option<&[u8]> {
        self.link.get().map(Vec::as_slice)
    }
}

impl Listing {
    pub(crate) fn find(&self, name: &[u8]) -> Option<usize> {
        self.entries
            .binary_search_by(|entry| entry.name.as_slice().cmp(name))
            .ok()
    }

    pub(crate) fn path_of(&self, index: usize) -> Vec<u8> {
        join(&self.path, &self.entries[index].name)
    }

    /// Reads the directory `path` below `root`. In a context nobody owns anything.
    pub(crate) fn read(
        root: BorrowedFd<'_>,
        path: &[u8],
        owned: bool,
    ) -> Result<Listing, TreeError> {
        let dir = open_dir(root, path)?;
        let fail = |errno| TreeError::io("list", path, errno);
        let mut buffer = Vec::with_capacity(DIRENT_BUFFER_BYTES);
        let mut entries = Vec::new();
        let mut raw = RawDir::new(&dir, buffer.spare_capacity_mut());
        while let Some(entry) = raw.next() {
            let entry = entry.map_err(fail)?;
            let name = entry.file_name();
            if matches!(name.to_bytes(), b"." | b"..") {
                continue;
            }
            let stat = match rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => stat,
                // Removed between the two calls: as if it had been removed before.
                Err(Errno::NOENT) => continue,
                Err(errno) => {
                    return Err(TreeError::io("stat", &join(path, name.to_bytes()), errno));
                }
            };
            let mut meta = Meta::of(&stat);
            if !owned {
                (meta.uid, meta.gid) = (0, 0);
            }
            entries.push(Entry {
                name: name.to_bytes().to_vec(),
                meta,
                hash: OnceLock::new(),
                settled: AtomicBool::new(false),
                link: OnceLock::new(),
                xattrs: OnceLock::new(),
            });
        }
        entries.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Ok(Listing {
            path: path.to_vec(),
            entries,
        })
    }
}

/// What a path leads to once all links are followed.
#[derive(Clone, Debug)]
pub(crate) enum Place {
    Root,
    Entry(Arc<Listing>, usize),
}

impl<'a> Tree<'a> {
    pub(crate) fn root(self) -> BorrowedFd<'a> {
        match self {
            Tree::Context(context) => context.root(),
            Tree::RootFs(fd) | Tree::Layers(fd, _) => fd,
        }
    }

    pub(crate) fn is_context(self) -> bool {
        matches!(self, Tree::Context(_))
    }

    /// The listing of a directory, by its path without links.
    pub(crate) fn list(self, path: &[u8]) -> Result<Arc<Listing>, TreeError> {
        match self {
            Tree::Context(context) => context.list(path),
            Tree::RootFs(root) | Tree::Layers(root, _) => {
                Listing::read(root, path, true).map(Arc::new)
            }
        }
    }

    /// Follows `path` and every link in it, the last component included, without leaving the root. `None` if it leads
    /// nowhere.
    pub(crate) fn resolve(self, path: &[u8]) -> Result<Option<Place>, TreeError> {
        let mut todo: Vec<Vec<u8>> = components(path).rev().map(<[u8]>::to_vec).collect();
        let mut done: Vec<(Arc<Listing>, usize)> = Vec::new();
        let mut links = 0;
        while let Some(name) = todo.pop() {
            if name == b".." {
                done.pop();
                continue;
            }
            let at = done
                .last()
                .map_or(Vec::new(), |(listing, index)| listing.path_of(*index));
            let listing = self.list(&at)?;
            let Some(index) = listing.find(&name) else {
                return Ok(None);
            };
            match listing.entries[index].meta.kind {
                Kind::Symlink => {
                    links += 1;
                    if links > LINKS_MAX {
                        return Err(TreeError::LinkLoop { path: show(path) });
                    }
                    let target = self.link_target(&listing, index)?;
                    if target.starts_with(b"/") {
                        done.clear();
                    }
                    todo.extend(components(&target).rev().map(<[u8]>::to_vec));
                }
                Kind::Dir => done.push((listing, index)),
                _ if todo.is_empty() => return Ok(Some(Place::Entry(listing, index))),
                _ => return Ok(None),
            }
        }
        Ok(Some(match done.pop() {
            Some((listing, index)) => Place::Entry(listing, index),
            None => Place::Root,
        }))
    }

    /// Where the symbolic link at `listing[index]` points.
    pub(crate) fn link_target(self, listing: &Listing, index: usize) -> Result<Vec<u8>, TreeError> {
        let entry = &listing.entries[index];
        if let Some(target) = entry.link.get() {
            return Ok(target.clone());
        }
        let path = listing.path_of(index);
        let dir = open_dir(self.root(), &listing.path)?;
        let target = rustix::fs::readlinkat(&dir, entry.name.as_slice(), Vec::new())
            .map_err(|errno| gone_or("read", &path, errno))?
            .into_bytes();
        Ok(entry.link.get_or_init(|| target).clone())
    }

    /// The extended attributes of `listing[index]` that a copy keeps: none in a context, and none of what is neither
    /// a file nor a directory.
    pub(crate) fn xattrs(self, listing: &Listing, index: usize) -> Result<&Xattrs, TreeError> {
        static NONE: Xattrs = Vec::new();
        let entry = &listing.entries[index];
        if self.is_context() || !matches!(entry.meta.kind, Kind::File | Kind::Dir) {
            return Ok(&NONE);
        }
        if let Some(xattrs) = entry.xattrs.get() {
            return Ok(xattrs);
        }
        let dir = open_dir(self.root(), &listing.path)?;
        let file = open_entry(&dir, listing, index)?;
        self.xattrs_of(&file, listing, index)
    }

    /// The same of a file that is already open.
    pub(crate) fn xattrs_of<'l>(
        self,
        file: &OwnedFd,
        listing: &'l Listing,
        index: usize,
    ) -> Result<&'l Xattrs, TreeError> {
        let entry = &listing.entries[index];
        if entry.xattrs.get().is_none() {
            let xattrs = if self.is_context() {
                Vec::new()
            } else {
                read_xattrs(file, travels).map_err(|errno| {
                    TreeError::io("read the attributes of", &listing.path_of(index), errno)
                })?
            };
            return Ok(entry.xattrs.get_or_init(|| xattrs));
        }
        Ok(entry.xattrs.get_or_init(Vec::new))
    }
}

impl Tree<'_> {
    /// The hash of a file's content, if it is known without reading it.
    pub(crate) fn known_hash(self, listing: &Listing, index: usize) -> Option<[u8; 32]> {
        let entry = &listing.entries[index];
        if let Some(hash) = entry.hash.get() {
            return Some(*hash);
        }
        let hash = match self {
            Tree::Context(context) => context.recall(listing, index)?,
            Tree::Layers(_, hashes) => hashes.recall(&entry.meta)?,
            Tree::RootFs(_) => return None,
        };
        Some(*entry.hash.get_or_init(|| hash))
    }

    /// Notes the hash of a file that was read just now.
    ///
    /// # Errors
    /// If it was read before and contained something else then.
    pub(crate) fn learn_hash(
        self,
        listing: &Listing,
        index: usize,
        hash: [u8; 32],
    ) -> Result<(), TreeError> {
        let entry = &listing.entries[index];
        if entry.hash.get().is_none() {
            match self {
                Tree::Context(context) => context.learnt(entry),
                Tree::Layers(_, hashes) => hashes.learn(&entry.meta, hash),
                Tree::RootFs(_) => {}
            }
        }
        if *entry.hash.get_or_init(|| hash) == hash {
            return Ok(());
        }
        Err(TreeError::Changed {
            path: show(&listing.path_of(index)),
        })
    }
}

/// Opens files of one tree, keeping the directory of the last one open.
pub(crate) struct Reader<'a> {
    tree: Tree<'a>,
    dir: Option<(Arc<Listing>, OwnedFd)>,
}

impl<'a> Reader<'a> {
    pub(crate) fn new(tree: Tree<'a>) -> Reader<'a> {
        Reader { tree, dir: None }
    }

    pub(crate) fn tree(&self) -> Tree<'a> {
        self.tree
    }

    pub(crate) fn open(
        &mut self,
        listing: &Arc<Listing>,
        index: usize,
    ) -> Result<OwnedFd, TreeError> {
        let dir = match &self.dir {
            Some((known, dir)) if Arc::ptr_eq(known, listing) => dir,
            _ => {
                let dir = open_dir(self.tree.root(), &listing.path)?;
                &self.dir.insert((Arc::clone(listing), dir)).1
            }
        };
        open_entry(dir, listing, index)
    }
}

/// One `read`, repeated if a signal came.
pub(crate) fn read_some(file: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    loop {
        match rustix::io::read(file, &mut *buffer) {
            Err(Errno::INTR) => {}
            other => return other,
        }
    }
}

/// Opens an entry of `dir` for reading. Never waits, whatever has been put in its place, and follows no link.
pub(crate) fn open_entry(
    dir: &OwnedFd,
    listing: &Listing,
    index: usize,
) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = listing.entries[index].name.as_slice();
    rustix::fs::openat(dir, name, flags, Mode::empty())
        .map_err(|errno| gone_or("open", &listing.path_of(index), errno))
}

/// The error for a path that was listed a moment ago: if it is gone or has become a link, it changed under us.
fn gone_or(action: &'static str, path: &[u8], errno: Errno) -> TreeError {
    match errno {
        Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::INVAL | Errno::NXIO => {
            TreeError::Changed { path: show(path) }
        }
        errno => TreeError::io(action, path, errno),
    }
}

/// Opens the directory at `path` below `root`; no component may be a link.
pub(crate) fn open_dir(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, TreeError> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let start = if path.is_empty() { b"." } else { path };
    match rustix::fs::openat2(root, start, flags, Mode::empty(), resolve) {
        // A seccomp filter that does not know the call: the same, one component at a time.
        Err(Errno::NOSYS | Errno::PERM) => open_dir_stepwise(root, path, flags),
        other => other,
    }
    .map_err(|errno| gone_or("open", path, errno))
}

fn open_dir_stepwise(root: BorrowedFd<'_>, path: &[u8], flags: OFlags) -> Result<OwnedFd, Errno> {
    let mut dir = rustix::fs::openat(root, c".", flags, Mode::empty())?;
    for name in components(path) {
        dir = rustix::fs::openat(&dir, name, flags, Mode::empty())?;
    }
    Ok(dir)
}

/// Reads the attributes of an open file whose names `keep` accepts.
pub(crate) fn read_xattrs(file: impl AsFd, keep: fn(&[u8]) -> bool) -> Result<Xattrs, Errno> {
    let mut names = vec![0; 1024];
    let length = loop {
        match rustix::fs::flistxattr(&file, &mut names[..]) {
            Ok(length) => break length,
            Err(Errno::OPNOTSUPP) => return Ok(Vec::new()),
            Err(Errno::RANGE) if names.len() < XATTR_BYTES_MAX => names.resize(XATTR_BYTES_MAX, 0),
            Err(errno) => return Err(errno),
        }
    };
    let mut xattrs = Xattrs::new();
    for name in names[..length].split(|&byte| byte == 0) {
        if name.is_empty() || !keep(name) {
            continue;
        }
        let mut value = vec![0; XATTR_BYTES_MAX];
        match rustix::fs::fgetxattr(&file, name, &mut value[..]) {
            Ok(length) => value.truncate(length),
            Err(Errno::NODATA) => continue,
            Err(errno) => return Err(errno),
        }
        value.shrink_to_fit();
        xattrs.push((name.to_vec(), value));
    }
    xattrs.sort_unstable();
    Ok(xattrs)
}

/// The attributes that travel with a copied file: capabilities and the user's own, without overlayfs's bookkeeping.
pub(crate) fn travels(name: &[u8]) -> bool {
    name == b"security.capability"
        || (name.starts_with(b"user.") && !name.starts_with(b"user.overlay."))
}

/// The attributes that stay on a directory when a layer takes it over: all but overlayfs's and the host's.
pub(crate) fn stays(name: &[u8]) -> bool {
    const HOST: [&[u8]; 4] = [
        b"security.selinux",
        b"security.ima",
        b"security.evm",
        b"security.SMACK64",
    ];
    !name.starts_with(b"trusted.") && !name.starts_with(b"user.overlay.") && !HOST.contains(&name)
}

/// The components of a path; `.` and empty ones are dropped, `..` is kept.
pub(crate) fn components(path: &[u8]) -> impl DoubleEndedIterator<Item = &[u8]> {
    path.split(|&byte| byte == b'/')
        .filter(|name| !name.is_empty() && *name != b".")
}

pub(crate) fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() {
        return name.to_vec();
    }
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    path.push(b'/');
    path.extend_from_slice(name);
    path
}

/// A path below a root as people read it: with a leading `/`.
pub(crate) fn show(path: &[u8]) -> String {
    let text = String::from_utf8_lossy(path);
    if text.starts_with('/') {
        text.into_owned()
    } else {
        format!("/{text}")
    }
}
