//! Writes the plan of a layer: directories first, then files by directory on a few threads, directories' metadata last.
//!
//! A small file is read once into a buffer, hashed, checked against the hash that the step's key was made of, and
//! written. A large one is shared with its source where the file system can (reflink), and hashed from what arrived.
//! Nothing is synced here: what makes a layer known does that once.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, SeekFrom, Timespec, Timestamps, XattrFlags};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use store::layer::entry::{Metadata, Mtime};
use store::layer::scan::{Scan, ScanBuilder, ScanKind};

use super::upper::{Attrs, Body, BodyId, Dir, Node, NodeId, Origin, ROOT, Upper, What, Written};
use super::{FileOpError, FileRun};
use crate::cache::content_hash::{WORKERS, in_parallel};
use crate::ops::tree::{
    Kind, Listing, Meta, Reader, Time, Tree, TreeError, Xattrs, join, read_some, show,
};

/// Entries that a worker takes at once.
const CHUNK_ENTRIES: usize = 64;

/// Bytes read and written at once.
const BUFFER_BYTES: usize = 256 * 1024;

/// From this size on a file is shared with its source if possible, in bytes: below it, copying is as fast.
const REFLINK_BYTES_MIN: u64 = 128 * 1024;

const OPAQUE: &str = "user.overlay.opaque";

#[derive(Debug)]
pub(super) struct Writer<'a> {
    inputs: &'a [Tree<'a>],
    cancelled: &'a AtomicBool,
    root: OwnedFd,
    /// Owner that the kernel gives to what this process creates.
    own: (u32, u32),
    /// There are no other owners: all that is written is root's, whatever was planned.
    has_single_id: bool,
    reflink_refused: AtomicBool,
}

/// A name to create in a directory.
struct Job {
    dir: usize,
    name: Vec<u8>,
    node: NodeId,
}

/// All that one call has to create.
#[derive(Default)]
struct Work {
    dirs: Vec<Vec<u8>>,
    jobs: Vec<Job>,
    /// Further names of a file: its first path, its own.
    links: Vec<(BodyId, Vec<u8>)>,
    first_names: BTreeMap<BodyId, Vec<u8>>,
    nodes: Vec<NodeId>,
}

impl<'a> Writer<'a> {
    pub(super) fn new(run: &FileRun<'a>) -> Result<Writer<'a>, FileOpError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(run.upper, flags, Mode::empty())
            .map_err(|errno| write_error("open", b"", errno))?;
        // Without setgid, or everything below would inherit the store's group.
        rustix::fs::fchmod(&root, Mode::RWXU)
            .map_err(|errno| write_error("prepare", b"", errno))?;
        let has_single_id = store::snapshot::has_single_id();
        Ok(Writer {
            inputs: run.inputs,
            cancelled: run.cancelled,
            root,
            own: match has_single_id {
                true => (0, 0),
                false => (
                    rustix::process::geteuid().as_raw(),
                    rustix::process::getegid().as_raw(),
                ),
            },
            has_single_id,
            reflink_refused: AtomicBool::new(false),
        })
    }

    /// Writes what is planned and not yet on disk.
    pub(super) fn write(&self, upper: &mut Upper<'_>) -> Result<(), FileOpError> {
        if self.has_single_id {
            for node in &mut upper.nodes {
                (node.attrs.uid, node.attrs.gid) = (0, 0);
            }
        }
        self.remove_stale(upper)?;
        let mut work = Work::default();
        self.collect(upper, ROOT, b"", &mut work)?;
        self.create_all(upper, &work)?;
        for (body, path) in &work.links {
            let first = &work.first_names[body];
            self.link(first, path)?;
        }
        for node in work.nodes {
            upper.nodes[node].on_disk = true;
        }
        Ok(())
    }

    /// Makes the missing directories and lists what else is missing, directory by directory.
    fn collect(
        &self,
        upper: &Upper<'_>,
        at: NodeId,
        path: &[u8],
        work: &mut Work,
    ) -> Result<(), FileOpError> {
        let node = &upper.nodes[at];
        let What::Dir(dir) = &node.what else {
            return Ok(());
        };
        if !node.on_disk {
            rustix::fs::mkdirat(&self.root, path, Mode::RWXU)
                .map_err(|errno| write_error("create", path, errno))?;
            work.nodes.push(at);
        }
        let number = work.dirs.len();
        work.dirs.push(path.to_vec());
        for (name, &child) in &dir.children {
            let node = &upper.nodes[child];
            if node.on_disk || matches!(node.what, What::Dir(_)) {
                continue;
            }
            work.nodes.push(child);
            if let What::File(body) = node.what {
                let own = join(path, name);
                if work.first_names.contains_key(&body) {
                    work.links.push((body, own));
                    continue;
                }
                if is_shared(&upper.bodies[body]) {
                    work.first_names.insert(body, own);
                }
            }
            work.jobs.push(Job {
                dir: number,
                name: name.clone(),
                node: child,
            });
        }
        for (name, &child) in &dir.children {
            self.collect(upper, child, &join(path, name), work)?;
        }
        Ok(())
    }

    fn create_all(&self, upper: &Upper<'_>, work: &Work) -> Result<(), FileOpError> {
        let next = AtomicUsize::new(0);
        let failed = AtomicBool::new(false);
        let run = || {
            let mut worker = Worker {
                writer: self,
                readers: self.inputs.iter().map(|tree| Reader::new(*tree)).collect(),
                dir: None,
                buffer: vec![0; BUFFER_BYTES],
            };
            loop {
                let start = next.fetch_add(CHUNK_ENTRIES, Ordering::Relaxed);
                let Some(rest) = work.jobs.get(start..) else {
                    return Ok(());
                };
                for job in &rest[..rest.len().min(CHUNK_ENTRIES)] {
                    if failed.load(Ordering::Relaxed) {
                        return Ok(());
                    }
                    if self.cancelled.load(Ordering::Relaxed) {
                        return Err(FileOpError::Cancelled);
                    }
                    worker
                        .create(upper, &work.dirs, job)
                        .inspect_err(|_| failed.store(true, Ordering::Relaxed))?;
                }
            }
        };
        if work.jobs.len() <= CHUNK_ENTRIES {
            return run();
        }
        in_parallel(WORKERS, run)
    }

    /// Gives the directories their metadata, contents before parents, and says what the layer is.
    pub(super) fn finish(&self, upper: &Upper<'_>) -> Result<Scan, FileOpError> {
        let mut scan = ScanBuilder::new();
        let mut dirs = Vec::new();
        let mut first_names = BTreeMap::new();
        upper.walk(&mut |path, id| {
            let node = &upper.nodes[id];
            if let What::Dir(dir) = &node.what {
                dirs.push((path.to_vec(), node, dir));
            }
            if id != ROOT {
                let (kind, metadata) = identity(upper, path, node, &mut first_names);
                scan.add(path, kind, metadata);
            }
        });
        for (path, node, dir) in dirs.iter().rev() {
            self.finish_dir(path, node, dir)?;
        }
        Ok(scan.finish())
    }

    fn finish_dir(&self, path: &[u8], node: &Node, dir: &Dir) -> Result<(), FileOpError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let start = if path.is_empty() { b"." } else { path };
        let file = rustix::fs::openat(&self.root, start, flags, Mode::empty())
            .map_err(|errno| write_error("open", path, errno))?;
        if dir.opaque {
            rustix::fs::fsetxattr(&file, OPAQUE, b"y", XattrFlags::empty())
                .map_err(|errno| write_error("mark", path, errno))?;
        }
        let attrs = &node.attrs;
        set_xattrs(&file, &attrs.xattrs).map_err(|errno| write_error("describe", path, errno))?;
        self.set_attrs(&file, attrs)
            .map_err(|errno| write_error("describe", path, errno))
    }

    /// Owner, mode and times, in this order: a change of owner clears setuid.
    fn set_attrs(&self, file: &OwnedFd, attrs: &Attrs) -> Result<(), Errno> {
        if (attrs.uid, attrs.gid) != self.own {
            rustix::fs::fchown(file, Some(uid(attrs)), Some(gid(attrs)))?;
        }
        rustix::fs::fchmod(file, Mode::from_raw_mode(attrs.mode))?;
        rustix::fs::futimens(file, &timestamps(attrs.mtime))
    }

    /// Removes what was written at `path`, with all below it.
    fn remove(&self, path: &[u8]) -> Result<(), FileOpError> {
        let fail = |errno| write_error("replace", path, errno);
        let Some(meta) = Meta::read(self.root.as_fd(), path).map_err(fail)? else {
            return Ok(());
        };
        if meta.kind != Kind::Dir {
            return rustix::fs::unlinkat(&self.root, path, AtFlags::empty()).map_err(fail);
        }
        let listing = Listing::read(self.root.as_fd(), path, true)?;
        for index in 0..listing.entries.len() {
            self.remove(&listing.path_of(index))?;
        }
        rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR).map_err(fail)
    }

    fn remove_stale(&self, upper: &mut Upper<'_>) -> Result<(), FileOpError> {
        for path in std::mem::take(&mut upper.stale) {
            self.remove(&path)?;
        }
        Ok(())
    }

    /// Makes way for something that is about to be written at `path`: what it replaces is removed, the directories
    /// above it are made.
    pub(super) fn make_room(&self, upper: &mut Upper<'_>, path: &[u8]) -> Result<(), FileOpError> {
        self.remove_stale(upper)?;
        for (end, _) in path.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let above = &path[..end];
            let Some(node) = upper.node_at(above) else {
                continue;
            };
            if !upper.nodes[node].on_disk {
                rustix::fs::mkdirat(&self.root, above, Mode::RWXU)
                    .map_err(|errno| write_error("create", above, errno))?;
                upper.nodes[node].on_disk = true;
            }
        }
        Ok(())
    }

    /// Gives the file at `first` one more name.
    pub(super) fn link(&self, first: &[u8], path: &[u8]) -> Result<(), FileOpError> {
        rustix::fs::linkat(&self.root, first, &self.root, path, AtFlags::empty())
            .map_err(|errno| write_error("link", path, errno))
    }

    /// Creates a regular file at `path`, for [`super::archive`], which streams its content.
    pub(super) fn create_file(&self, path: &[u8]) -> Result<OwnedFd, FileOpError> {
        rustix::fs::openat(&self.root, path, create_flags(), Mode::RUSR | Mode::WUSR)
            .map_err(|errno| write_error("create", path, errno))
    }

    /// Gives a file that [`Writer::create_file`] made its metadata.
    pub(super) fn finish_file(
        &self,
        path: &[u8],
        file: &OwnedFd,
        attrs: &Attrs,
    ) -> Result<(), FileOpError> {
        let fail = |errno| write_error("describe", path, errno);
        // Attributes after the owner, whose change drops capabilities.
        self.set_attrs(file, attrs).map_err(fail)?;
        set_xattrs(file, &attrs.xattrs).map_err(fail)
    }
}

/// What a node is to the layer's identity. Of a file's names the first one holds the content.
fn identity(
    upper: &Upper<'_>,
    path: &[u8],
    node: &Node,
    first_names: &mut BTreeMap<BodyId, Vec<u8>>,
) -> (ScanKind, Metadata) {
    let attrs = &node.attrs;
    let mut xattrs = &attrs.xattrs;
    let split = |device| (rustix::fs::major(device), rustix::fs::minor(device));
    let kind = match &node.what {
        What::Dir(dir) => ScanKind::Directory { opaque: dir.opaque },
        What::File(body) => {
            if let Some(first) = first_names.get(body) {
                let to = first.clone();
                return (ScanKind::HardLink { to }, Metadata::default());
            }
            first_names.insert(*body, path.to_vec());
            let written = upper.bodies[*body].written.get();
            let written = written.expect("everything planned was written");
            xattrs = &written.xattrs;
            ScanKind::File {
                size: written.size,
                content: written.hash,
            }
        }
        What::Symlink(target) => ScanKind::Symlink {
            target: target.clone(),
        },
        What::CharDevice(device) => {
            let (major, minor) = split(*device);
            ScanKind::Char { major, minor }
        }
        What::BlockDevice(device) => {
            let (major, minor) = split(*device);
            ScanKind::BlockDevice { major, minor }
        }
        What::Fifo => ScanKind::Fifo,
    };
    let metadata = Metadata {
        mode: attrs.mode,
        uid: attrs.uid,
        gid: attrs.gid,
        mtime: Mtime {
            seconds: attrs.mtime.seconds,
            nanos: attrs.mtime.nanos,
        },
        xattrs: xattrs.iter().cloned().collect(),
    };
    (kind, metadata)
}

fn is_shared(body: &Body) -> bool {
    match &body.origin {
        Origin::Copy { listing, index, .. } => listing.entries[*index].meta.nlink > 1,
        Origin::Inline(_) | Origin::Direct => false,
    }
}

struct Worker<'w, 'a> {
    writer: &'w Writer<'a>,
    readers: Vec<Reader<'a>>,
    /// The directory that was written to last.
    dir: Option<(usize, OwnedFd)>,
    buffer: Vec<u8>,
}

impl Worker<'_, '_> {
    fn create(
        &mut self,
        upper: &Upper<'_>,
        dirs: &[Vec<u8>],
        job: &Job,
    ) -> Result<(), FileOpError> {
        let path = || join(&dirs[job.dir], &job.name);
        if self
            .dir
            .as_ref()
            .is_none_or(|(number, _)| *number != job.dir)
        {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let start = if dirs[job.dir].is_empty() {
                b"."
            } else {
                dirs[job.dir].as_slice()
            };
            let dir = rustix::fs::openat(&self.writer.root, start, flags, Mode::empty())
                .map_err(|errno| write_error("open", &dirs[job.dir], errno))?;
            self.dir = Some((job.dir, dir));
        }
        let node = &upper.nodes[job.node];
        let What::File(body) = node.what else {
            return self
                .special(node, &job.name)
                .map_err(|errno| write_error("create", &path(), errno));
        };
        let body = &upper.bodies[body];
        let written = match &body.origin {
            Origin::Copy {
                input,
                listing,
                index,
            } => self.copy(*input, listing, *index, node, &job.name, &path)?,
            Origin::Inline(content) => {
                let file = self.open_new(&job.name, &path)?;
                write_all(&file, content).map_err(|errno| write_error("write", &path(), errno))?;
                self.writer.finish_file(&path(), &file, &node.attrs)?;
                Written {
                    size: content.len() as u64,
                    hash: *blake3::hash(content).as_bytes(),
                    xattrs: Xattrs::new(),
                }
            }
            Origin::Direct => unreachable!("written when it was planned"),
        };
        // Each body is created by one job only.
        let _ = body.written.set(written);
        Ok(())
    }

    fn open_new(&self, name: &[u8], path: &dyn Fn() -> Vec<u8>) -> Result<OwnedFd, FileOpError> {
        let Some((_, dir)) = &self.dir else {
            unreachable!("the directory was opened before");
        };
        rustix::fs::openat(dir, name, create_flags(), Mode::RUSR | Mode::WUSR)
            .map_err(|errno| write_error("create", &path(), errno))
    }

    fn copy(
        &mut self,
        input: usize,
        listing: &Arc<Listing>,
        index: usize,
        node: &Node,
        name: &[u8],
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<Written, FileOpError> {
        let tree = self.readers[input].tree();
        let source = self.readers[input].open(listing, index)?;
        let size = listing.entries[index].meta.size;
        let xattrs = tree.xattrs_of(&source, listing, index)?.clone();
        let read_error = |errno| TreeError::io("read", &listing.path_of(index), errno);
        let file;
        let hash = if size < BUFFER_BYTES as u64 {
            let length = read_full(&source, &mut self.buffer, size).map_err(read_error)?;
            if length as u64 != size {
                return Err(changed(listing, index));
            }
            let content = &self.buffer[..length];
            let hash = *blake3::hash(content).as_bytes();
            tree.learn_hash(listing, index, hash)?;
            file = self.open_new(name, path)?;
            write_all(&file, content).map_err(|errno| write_error("write", &path(), errno))?;
            hash
        } else {
            file = self.open_new(name, path)?;
            let hash = self.copy_large(&source, &file, size, listing, index, path)?;
            tree.learn_hash(listing, index, hash)?;
            hash
        };
        let attrs = Attrs {
            xattrs,
            ..node.attrs.clone()
        };
        self.writer.finish_file(&path(), &file, &attrs)?;
        Ok(Written {
            size,
            hash,
            xattrs: attrs.xattrs,
        })
    }

    fn copy_large(
        &mut self,
        source: &OwnedFd,
        file: &OwnedFd,
        size: u64,
        listing: &Listing,
        index: usize,
        path: &dyn Fn() -> Vec<u8>,
    ) -> Result<[u8; 32], FileOpError> {
        let shared = self.reflink(source, file, size);
        // What arrived is what counts; a source that is written meanwhile does not change it any more.
        let from = if shared { file } else { source };
        let mut hasher = blake3::Hasher::new();
        let mut total = 0;
        loop {
            if self.writer.cancelled.load(Ordering::Relaxed) {
                return Err(FileOpError::Cancelled);
            }
            let length = read_some(from, &mut self.buffer)
                .map_err(|errno| TreeError::io("read", &listing.path_of(index), errno))?;
            let content = &self.buffer[..length];
            hasher.update(content);
            total += length as u64;
            if length == 0 || total > size {
                break;
            }
            if !shared {
                write_or_skip(file, content)
                    .map_err(|errno| write_error("write", &path(), errno))?;
            }
        }
        if total != size {
            return Err(changed(listing, index));
        }
        rustix::fs::ftruncate(file, size).map_err(|errno| write_error("write", &path(), errno))?;
        Ok(*hasher.finalize().as_bytes())
    }

    fn reflink(&self, source: &OwnedFd, file: &OwnedFd, size: u64) -> bool {
        let refused = &self.writer.reflink_refused;
        if size < REFLINK_BYTES_MIN || refused.load(Ordering::Relaxed) {
            return false;
        }
        let done = rustix::fs::ioctl_ficlone(file, source).is_ok();
        if !done {
            refused.store(true, Ordering::Relaxed);
        }
        done
    }

    fn special(&self, node: &Node, name: &[u8]) -> Result<(), Errno> {
        let Some((_, dir)) = &self.dir else {
            unreachable!("the directory was opened before");
        };
        let attrs = &node.attrs;
        let mode = Mode::from_raw_mode(attrs.mode);
        let is_link = match &node.what {
            What::Symlink(target) => {
                rustix::fs::symlinkat(target.as_slice(), dir, name)?;
                true
            }
            What::CharDevice(device) => {
                rustix::fs::mknodat(dir, name, FileType::CharacterDevice, mode, *device)?;
                false
            }
            What::BlockDevice(device) => {
                rustix::fs::mknodat(dir, name, FileType::BlockDevice, mode, *device)?;
                false
            }
            What::Fifo => {
                rustix::fs::mknodat(dir, name, FileType::Fifo, mode, 0)?;
                false
            }
            What::File(_) | What::Dir(_) => unreachable!("created elsewhere"),
        };
        if (attrs.uid, attrs.gid) != self.writer.own {
            let flags = AtFlags::SYMLINK_NOFOLLOW;
            rustix::fs::chownat(dir, name, Some(uid(attrs)), Some(gid(attrs)), flags)?;
        }
        if !is_link {
            rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
        }
        let times = timestamps(attrs.mtime);
        rustix::fs::utimensat(dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)
    }
}

fn create_flags() -> OFlags {
    OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

fn changed(listing: &Listing, index: usize) -> FileOpError {
    FileOpError::Tree(TreeError::Changed {
        path: show(&listing.path_of(index)),
    })
}

/// Reads until `size` bytes are there or the file ends; one byte more than `size` tells that it grew.
fn read_full(file: &OwnedFd, buffer: &mut [u8], size: u64) -> Result<usize, Errno> {
    let mut filled = 0;
    while filled < buffer.len() {
        let length = read_some(file, &mut buffer[filled..])?;
        filled += length;
        if length == 0 || filled as u64 >= size {
            break;
        }
    }
    Ok(filled)
}

fn write_all(file: &OwnedFd, mut content: &[u8]) -> Result<(), Errno> {
    while !content.is_empty() {
        match rustix::io::write(file, content) {
            Ok(length) => content = &content[length..],
            Err(Errno::INTR) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Writes, or leaves a hole where there are only zeros: sparse files stay sparse.
pub(super) fn write_or_skip(file: &OwnedFd, content: &[u8]) -> Result<(), Errno> {
    if content.iter().all(|&byte| byte == 0) {
        let skip = i64::try_from(content.len()).map_err(|_| Errno::FBIG)?;
        return rustix::fs::seek(file, SeekFrom::Current(skip)).map(drop);
    }
    write_all(file, content)
}

fn set_xattrs(file: &OwnedFd, xattrs: &Xattrs) -> Result<(), Errno> {
    for (name, value) in xattrs {
        rustix::fs::fsetxattr(file, name.as_slice(), value, XattrFlags::empty())?;
    }
    Ok(())
}

fn uid(attrs: &Attrs) -> Uid {
    Uid::from_raw(attrs.uid)
}

fn gid(attrs: &Attrs) -> Gid {
    Gid::from_raw(attrs.gid)
}

fn timestamps(time: Time) -> Timestamps {
    let time = Timespec {
        tv_sec: time.seconds,
        tv_nsec: time.nanos.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

pub(super) fn write_error(action: &'static str, path: &[u8], errno: Errno) -> FileOpError {
    FileOpError::Write {
        action,
        path: show(path),
        source: errno.into(),
    }
}
