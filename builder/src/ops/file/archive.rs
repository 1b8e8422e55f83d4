//! `ADD` of an archive: its entries, placed in the new layer as if they had been copied one by one.
//!
//! An archive is a regular file that is, once decompressed, a tar whose first header is valid; what it is called does
//! not matter. Links in the way of an entry are followed inside the root, an existing thing of another kind is replaced,
//! directories are merged and take the archive's metadata. `--chown` overrides every owner.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError};

use store::layer::compress::{Decompressor, decompressor};
use store::layer::tar::read::{Entry, Kind as EntryKind, ReadError, Reader};

use super::chown::Owner;
use super::copy::refuse_reserved;
use super::upper::{Attrs, Body, Found, NodeId, Origin, Upper, What, Written};
use super::write::{write_error, write_or_skip};
use super::{FileOpError, Plan};
use crate::ops::tree::{
    Kind, Listing, Time, Tree, TreeError, components, join, open_dir, open_entry, show, travels,
};

const BUFFER_BYTES: usize = 256 * 1024;

/// What is wrong with an archive.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// It is damaged, or its compression is.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry's name leads out of the destination.
    #[error("the entry `{entry}` leads out of the destination")]
    Escapes {
        /// The name as the archive has it.
        entry: String,
    },
    /// A hard link to something that is no file, or not there yet.
    #[error(
        "the entry `{entry}` is a hard link to `{target}`, which neither comes before it nor is a file of the image"
    )]
    LinkTarget {
        /// The link.
        entry: String,
        /// What it should be a name of.
        target: String,
    },
}

/// An archive whose first header was read.
pub(super) struct Archive {
    tar: Reader<Decompressor<Hashing>>,
    first: Entry,
    /// The same open file, to read what comes after the archive.
    rest: Hashing,
    path: Vec<u8>,
    mtime: Time,
}

/// Hashes what is read of a file; copies of it share the position and the hash.
struct Hashing {
    file: File,
    hasher: Arc<Mutex<blake3::Hasher>>,
}

impl Read for Hashing {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.file.read(buffer)?;
        self.hasher
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .update(&buffer[..length]);
        Ok(length)
    }
}

/// Looks into a file; `None` if it is no archive or has no entry.
pub(super) fn open(
    tree: Tree<'_>,
    listing: &Listing,
    index: usize,
) -> Result<Option<Archive>, FileOpError> {
    let path = listing.path_of(index);
    let fail = |source| TreeError::Io {
        action: "open",
        path: show(&path),
        source,
    };
    let dir = open_dir(tree.root(), &listing.path)?;
    let file = File::from(open_entry(&dir, listing, index)?);
    let hashing = Hashing {
        file,
        hasher: Arc::default(),
    };
    let rest = Hashing {
        file: hashing.file.try_clone().map_err(fail)?,
        hasher: Arc::clone(&hashing.hasher),
    };
    let Ok(stream) = decompressor(hashing) else {
        return Ok(None);
    };
    let mut tar = Reader::new(stream);
    match tar.next_entry() {
        Ok(Some(first)) => Ok(Some(Archive {
            tar,
            first,
            rest,
            mtime: listing.entries[index].meta.mtime,
            path,
        })),
        Ok(None) | Err(_) => Ok(None),
    }
}

impl Archive {
    /// Unpacks into the directory `dest`; returns the hash of the whole file.
    pub(super) fn unpack(
        self,
        plan: &mut Plan<'_>,
        dest: &[Vec<u8>],
        owner: Option<Owner>,
    ) -> Result<[u8; 32], FileOpError> {
        let Archive {
            mut tar,
            first,
            mut rest,
            path,
            mtime,
        } = self;
        let epoch = plan.run.epoch;
        plan.writer.write(&mut plan.upper)?;
        let mut unpacking = Unpacking {
            plan,
            dest,
            owner,
            // Parents that the archive does not mention.
            implied: Attrs {
                mode: 0o755,
                uid: owner.unwrap_or_default().uid,
                gid: owner.unwrap_or_default().gid,
                mtime: epoch.map_or(mtime, |seconds| Time { seconds, nanos: 0 }),
                xattrs: Vec::new(),
            },
            path: &path,
            buffer: vec![0; BUFFER_BYTES],
        };
        let mut next = Some(first);
        while let Some(entry) = next {
            unpacking.plan.run.check_cancelled()?;
            unpacking.entry(&mut tar, &entry)?;
            next = tar.next_entry().map_err(|error| unpacking.bad(error))?;
        }
        io::copy(&mut rest, &mut io::sink()).map_err(|source| TreeError::Io {
            action: "read",
            path: show(&path),
            source,
        })?;
        let hasher = rest.hasher.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(*hasher.finalize().as_bytes())
    }
}

struct Unpacking<'p, 'a> {
    plan: &'p mut Plan<'a>,
    dest: &'p [Vec<u8>],
    owner: Option<Owner>,
    implied: Attrs,
    path: &'p [u8],
    buffer: Vec<u8>,
}

type Tar = Reader<Decompressor<Hashing>>;

/// A directory, as names without links, and a name in it.
type Place = (Vec<Vec<u8>>, Vec<u8>);

impl Unpacking<'_, '_> {
    fn entry(&mut self, tar: &mut Tar, entry: &Entry) -> Result<(), FileOpError> {
        let Some((parents, name)) = self.place(&entry.path)? else {
            // `./`: the destination itself, whose metadata is not the archive's to say.
            return Ok(());
        };
        let parent = self.plan.upper.ensure_dirs(&parents, &self.implied)?;
        let path = join(&parents.join(&b'/'), &name);
        refuse_reserved(&name, &path)?;
        let attrs = self.attrs(entry);
        let (major, minor) = entry.device;
        let device = rustix::fs::makedev(major, minor);
        let what = match entry.kind {
            EntryKind::File => return self.file(tar, entry, parent, &path, attrs),
            EntryKind::HardLink => return self.hard_link(entry, parent, &path),
            EntryKind::Directory => {
                let mtime = attrs.mtime;
                let node = self.plan.upper.merge_dir(parent, &path, attrs)?;
                self.plan.upper.nodes[node].attrs.mtime = mtime;
                return Ok(());
            }
            EntryKind::Symlink => What::Symlink(entry.link.clone()),
            EntryKind::Char if device == 0 => {
                return Err(FileOpError::ReservedDevice { path: show(&path) });
            }
            EntryKind::Char => What::CharDevice(device),
            EntryKind::BlockDevice => What::BlockDevice(device),
            EntryKind::Fifo => What::Fifo,
        };
        let xattrs = Vec::new();
        self.plan
            .upper
            .put(parent, &path, what, Attrs { xattrs, ..attrs });
        Ok(())
    }

    /// The directory and the name that a path of the archive stands for, links on the way followed; `None` for the
    /// destination itself.
    fn place(&self, path: &[u8]) -> Result<Option<Place>, FileOpError> {
        let mut names: Vec<&[u8]> = Vec::new();
        for name in components(path) {
            if name != b".." {
                names.push(name);
            } else if names.pop().is_none() {
                return Err(self.bad(ArchiveError::Escapes {
                    entry: String::from_utf8_lossy(path).into_owned(),
                }));
            }
        }
        let Some((name, parents)) = names.split_last() else {
            return Ok(None);
        };
        let mut whole = self.dest.join(&b'/');
        for parent in parents {
            whole = join(&whole, parent);
        }
        Ok(Some((self.plan.upper.resolve(&whole)?, name.to_vec())))
    }

    fn attrs(&self, entry: &Entry) -> Attrs {
        let metadata = &entry.metadata;
        let xattrs = metadata.xattrs.iter();
        Attrs {
            mode: metadata.mode & 0o7777,
            uid: self.owner.map_or(metadata.uid, |owner| owner.uid),
            gid: self.owner.map_or(metadata.gid, |owner| owner.gid),
            mtime: Time {
                seconds: metadata.mtime.seconds,
                nanos: metadata.mtime.nanos,
            },
            xattrs: xattrs
                .filter(|(name, _)| travels(name))
                .map(|(name, value)| (name.clone(), value.clone()))
                .collect(),
        }
    }

    fn file(
        &mut self,
        tar: &mut Tar,
        entry: &Entry,
        parent: NodeId,
        path: &[u8],
        attrs: Attrs,
    ) -> Result<(), FileOpError> {
        let upper = &mut self.plan.upper;
        let body = upper.body(Origin::Direct);
        let node = upper.put(parent, path, What::File(body), attrs.clone());
        self.plan.writer.make_room(upper, path)?;
        let file = self.plan.writer.create_file(path)?;
        let hash = self.content(tar, entry, &file, path)?;
        self.plan.writer.finish_file(path, &file, &attrs)?;
        let upper = &mut self.plan.upper;
        upper.nodes[node].on_disk = true;
        upper.bodies[body] = Body {
            origin: Origin::Direct,
            written: Written {
                size: entry.size,
                hash,
                xattrs: attrs.xattrs,
            }
            .into(),
        };
        Ok(())
    }

    /// Writes an entry's content, the holes of a sparse one left out, and hashes it with them.
    fn content(
        &mut self,
        tar: &mut Tar,
        entry: &Entry,
        file: &OwnedFd,
        path: &[u8],
    ) -> Result<[u8; 32], FileOpError> {
        let whole = [(0, entry.size)];
        let pieces = entry.sparse.as_deref().unwrap_or(&whole);
        let mut hasher = blake3::Hasher::new();
        let mut at = 0;
        for &(start, length) in pieces {
            self.skip(&mut hasher, start.saturating_sub(at))?;
            rustix::fs::seek(file, rustix::fs::SeekFrom::Start(start))
                .map_err(|errno| write_error("write", path, errno))?;
            let mut left = length;
            while left > 0 {
                self.plan.run.check_cancelled()?;
                let want =
                    usize::try_from(left).map_or(BUFFER_BYTES, |left| left.min(BUFFER_BYTES));
                let got = tar
                    .read_content(&mut self.buffer[..want])
                    .map_err(|error| self.bad(error))?;
                if got == 0 {
                    break;
                }
                let content = &self.buffer[..got];
                hasher.update(content);
                write_or_skip(file, content).map_err(|errno| write_error("write", path, errno))?;
                left -= got as u64;
            }
            at = start + length - left;
        }
        self.skip(&mut hasher, entry.size.saturating_sub(at))?;
        rustix::fs::ftruncate(file, entry.size)
            .map_err(|errno| write_error("write", path, errno))?;
        Ok(*hasher.finalize().as_bytes())
    }

    /// Hashes `length` zeros.
    fn skip(&self, hasher: &mut blake3::Hasher, mut length: u64) -> Result<(), FileOpError> {
        const ZEROS: [u8; 16 * 1024] = [0; 16 * 1024];
        while length > 0 {
            self.plan.run.check_cancelled()?;
            let count = usize::try_from(length).map_or(ZEROS.len(), |left| left.min(ZEROS.len()));
            hasher.update(&ZEROS[..count]);
            length -= count as u64;
        }
        Ok(())
    }

    fn hard_link(&mut self, entry: &Entry, parent: NodeId, path: &[u8]) -> Result<(), FileOpError> {
        let missing = || ArchiveError::LinkTarget {
            entry: show(&entry.path),
            target: show(&entry.link),
        };
        let Some((parents, name)) = self.place(&entry.link)? else {
            return Err(self.bad(missing()));
        };
        let target = join(&parents.join(&b'/'), &name);
        let known = match self.plan.upper.node_at(&target) {
            Some(node) => Some(node),
            None => self.take_over(&parents, &target)?,
        };
        let Some(found) = known else {
            return Err(self.bad(missing()));
        };
        if target == path {
            return Ok(());
        }
        let attrs = self.plan.upper.nodes[found].attrs.clone();
        let what = match &self.plan.upper.nodes[found].what {
            What::File(body) => What::File(*body),
            What::Symlink(target) => What::Symlink(target.clone()),
            What::CharDevice(device) => What::CharDevice(*device),
            What::BlockDevice(device) => What::BlockDevice(*device),
            What::Fifo => What::Fifo,
            What::Dir(_) => return Err(self.bad(missing())),
        };
        let is_file = matches!(what, What::File(_));
        let upper: &mut Upper<'_> = &mut self.plan.upper;
        let node = upper.put(parent, path, what, attrs);
        if is_file {
            self.plan.writer.make_room(upper, path)?;
            self.plan.writer.link(&target, path)?;
            self.plan.upper.nodes[node].on_disk = true;
        }
        Ok(())
    }

    /// Brings the file at `path` of the base into the layer, so that it can get another name; `None` if there is none.
    fn take_over(
        &mut self,
        parents: &[Vec<u8>],
        path: &[u8],
    ) -> Result<Option<NodeId>, FileOpError> {
        let names: Vec<Vec<u8>> = components(path).map(<[u8]>::to_vec).collect();
        if self.plan.upper.peek(&names)? != Found::Other {
            return Ok(None);
        }
        // What the upper directory shows and does not have is the base's.
        let Some(&base) = self.plan.run.inputs.first() else {
            return Ok(None);
        };
        let listing = base.list(&parents.join(&b'/'))?;
        let Some(index) = names.last().and_then(|name| listing.find(name)) else {
            return Ok(None);
        };
        let meta = &listing.entries[index].meta;
        if meta.kind != Kind::File {
            return Ok(None);
        }
        let attrs = Attrs {
            mode: meta.mode,
            uid: self.owner.map_or(meta.uid, |owner| owner.uid),
            gid: self.owner.map_or(meta.gid, |owner| owner.gid),
            mtime: meta.mtime,
            xattrs: Vec::new(),
        };
        let parent = self.plan.upper.ensure_dirs(parents, &self.implied)?;
        let body = self.plan.upper.body(Origin::Copy {
            input: 0,
            listing,
            index,
        });
        let node = self.plan.upper.put(parent, path, What::File(body), attrs);
        self.plan.writer.write(&mut self.plan.upper)?;
        Ok(Some(node))
    }

    fn bad(&self, error: impl Into<ArchiveError>) -> FileOpError {
        FileOpError::Archive {
            path: show(self.path),
            source: error.into(),
        }
    }
}

impl Plan<'_> {
    /// Unpacks `archive`, an entry of `listing`, and checks that it is what the step's key was made of.
    pub(super) fn unpack(
        &mut self,
        archive: Archive,
        tree: Tree<'_>,
        source: (&Listing, usize),
        dest: &[Vec<u8>],
        owner: Option<Owner>,
    ) -> Result<(), FileOpError> {
        let hash = archive.unpack(self, dest, owner)?;
        Ok(tree.learn_hash(source.0, source.1, hash)?)
    }
}
