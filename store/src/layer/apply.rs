//! A tar becomes a directory, and nothing outside it is ever touched.
//!
//! Every name is looked up below one open root by the kernel itself (`openat2` with `RESOLVE_IN_ROOT`), so neither `..`
//! nor a symbolic link leads out, absolute links included. As a layer, `.wh.NAME` and `.wh..wh..opq` become overlayfs's
//! whiteouts and opaque directories; as a plain tree they are ordinary names.
//!
//! A layer is unpacked alone, without the layers below it. Two things that a tar may leave unsaid therefore get fixed
//! values: a directory that is only implied by its children is 0755, owned by root and of 1970; a hard link to a file of
//! a lower layer is an error. Neither occurs in layers written by the engines in use.
//!
//! What eStargz adds to a tar for its readers is no part of the layer (`apply/estargz.rs`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid, XattrFlags};
use rustix::io::Errno;

use super::entry::{Metadata, Mtime, OPAQUE, ROOT_STATED, read_xattrs, shown, stored};
use super::tar::read::{Entry, Kind, ReadError, Reader};
use super::walk::{is_whiteout, join, make_whiteout, open_directory, split, stat_at};
use crate::fs::remove_tree_at;

mod estargz;

const WHITEOUT: &[u8] = b".wh.";
const WHITEOUT_META: &[u8] = b".wh..wh.";
const WHITEOUT_OPAQUE: &[u8] = b".wh..wh..opq";

/// Symbolic links followed in one path, as in the kernel.
const LINKS_MAX: usize = 40;

/// Content read at a time.
const COPY_BYTES: usize = 128 * 1024;

/// What the tar stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// A layer: whiteouts have their meaning and the result is in overlayfs's form.
    Layer,
    /// An archive: every name is just a name.
    Tree,
}

/// How to unpack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnpackOptions {
    /// What the tar stands for.
    pub form: Form,
    /// Gives every entry this user and group instead of the stated ones.
    pub owner: Option<(u32, u32)>,
    /// Keeps our own user and group where the stated ones do not exist in this user namespace, instead of failing.
    pub keep_own_if_unmapped: bool,
    /// Leaves the root directory's own metadata as they are, whatever the tar says of `./`.
    pub keep_root: bool,
    /// Most entries.
    pub entries_max: u64,
    /// Most bytes of files, once unpacked.
    pub bytes_max: u64,
    /// Most bytes of directory names, which are kept in memory until the end.
    pub names_max: u64,
}

impl UnpackOptions {
    /// Everything as the tar says, with limits that no honest archive meets.
    pub fn new(form: Form) -> UnpackOptions {
        UnpackOptions {
            form,
            owner: None,
            keep_own_if_unmapped: false,
            keep_root: false,
            entries_max: 10_000_000,
            bytes_max: 1 << 40,
            names_max: 256 * 1024 * 1024,
        }
    }
}

/// What was unpacked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unpacked {
    /// Entries of the tar.
    pub entries: u64,
    /// Bytes of regular files.
    pub bytes: u64,
}

/// Why a tar cannot be unpacked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApplyError {
    /// The tar cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// An entry's path or link target has `..` in it.
    #[error("tar entry `{path}` refused: `..` in a path, expected one that stays below the root")]
    Escape {
        /// The path as written.
        path: String,
    },
    /// A parent of an entry is something other than a directory.
    #[error("cannot unpack `{path}`: `{parent}` is not a directory")]
    NotADirectory {
        /// The entry.
        path: String,
        /// The parent.
        parent: String,
    },
    /// A path goes through too many symbolic links.
    #[error("cannot unpack `{path}`: more than {LINKS_MAX} symbolic links on the way")]
    Links {
        /// The entry.
        path: String,
    },
    /// A hard link names nothing that came before it.
    #[error(
        "cannot unpack hard link `{path}`: its target `{target}` is not an earlier file of this archive"
    )]
    LinkTarget {
        /// The entry.
        path: String,
        /// Its target.
        target: String,
    },
    /// A whiteout does not name a file.
    #[error("tar entry `{path}` refused: a whiteout that names no file")]
    Whiteout {
        /// The entry.
        path: String,
    },
    /// The root is stated to be something other than a directory.
    #[error("tar entry `{path}` refused: the root can only be a directory")]
    Root {
        /// The entry.
        path: String,
    },
    /// A device cannot be made in a user namespace.
    #[error(
        "cannot make the device `{path}` ({major}:{minor}) in a user namespace; run as root to unpack it"
    )]
    Device {
        /// The entry.
        path: String,
        /// Major number.
        major: u32,
        /// Minor number.
        minor: u32,
    },
    /// The owner does not exist in this user namespace.
    #[error(
        "cannot give `{path}` to {uid}:{gid}: no such id in this user namespace; more subordinate ids are needed in /etc/subuid and /etc/subgid"
    )]
    Owner {
        /// The entry.
        path: String,
        /// User.
        uid: u32,
        /// Group.
        gid: u32,
    },
    /// More than the limits grant.
    #[error("tar refused at `{path}`: more than {limit} {what}")]
    Limit {
        /// The entry.
        path: String,
        /// Of what.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The file system refuses.
    #[error("cannot unpack `{path}`: cannot {action}")]
    Io {
        /// The entry.
        path: String,
        /// What was tried.
        action: &'static str,
        /// The kernel's answer.
        source: Errno,
    },
}

/// Unpacks a tar (not compressed) into the directory `root`, and reads the stream to its end.
///
/// The directory belongs to this call alone while it runs. After an error it holds what was unpacked until then.
///
/// # Errors
/// The stream's, a hostile or broken archive, or the file system's.
pub fn unpack_into(
    root: impl AsFd,
    tar: impl Read,
    options: &UnpackOptions,
) -> Result<Unpacked, ApplyError> {
    let mut unpacker = Unpacker {
        root: root.as_fd(),
        options,
        parent: None,
        directories: BTreeMap::new(),
        names: 0,
        unpacked: Unpacked::default(),
        buffer: vec![0; COPY_BYTES],
    };
    let mut reader = Reader::new(tar);
    let mut ends_with_table = false;
    while let Some(entry) = reader.next_entry()? {
        unpacker.unpack(&entry, &mut reader)?;
        ends_with_table = estargz::is_table(&entry);
    }
    reader.drain()?;
    if ends_with_table && options.form == Form::Layer {
        unpacker.remove_estargz()?;
    }
    unpacker.set_directory_times()?;
    Ok(unpacker.unpacked)
}

struct Unpacker<'a> {
    root: BorrowedFd<'a>,
    options: &'a UnpackOptions,
    /// The last parent looked up. Forgotten when anything that a path may lead through changes.
    parent: Option<(Vec<u8>, Rc<OwnedFd>)>,
    /// Directories seen, by device and inode: their times come last, since every new child changes them.
    directories: BTreeMap<(u64, u64), (Vec<u8>, Mtime)>,
    names: u64,
    unpacked: Unpacked,
    buffer: Vec<u8>,
}

impl Unpacker<'_> {
    /// Removes what eStargz adds, if all of it is there.
    fn remove_estargz(&mut self) -> Result<(), ApplyError> {
        let removed = estargz::remove(self.root).map_err(|source| ApplyError::Io {
            path: "stargz.index.json".to_owned(),
            action: "remove the table of eStargz",
            source,
        })?;
        self.unpacked.entries = self.unpacked.entries.saturating_sub(removed.entries);
        self.unpacked.bytes = self.unpacked.bytes.saturating_sub(removed.bytes);
        Ok(())
    }
}

/// An entry about to be made: where, and how messages call it.
struct Place<'e> {
    entry: &'e Entry,
    path: &'e [u8],
    parent: Rc<OwnedFd>,
    name: &'e [u8],
}

impl Place<'_> {
    fn failed(&self, action: &'static str) -> impl FnOnce(Errno) -> ApplyError {
        let path = shown(self.path);
        move |source| ApplyError::Io {
            path,
            action,
            source,
        }
    }

    fn stat(&self) -> Result<Option<Stat>, ApplyError> {
        match stat_at(&*self.parent, self.name) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::NOENT) => Ok(None),
            Err(errno) => Err(self.failed("look it up")(errno)),
        }
    }
}

fn is_directory(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// A path without empty and `.` components; refuses `..`.
fn clean(path: &[u8]) -> Result<Vec<u8>, ApplyError> {
    let mut clean = Vec::with_capacity(path.len());
    for component in path.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => return Err(ApplyError::Escape { path: shown(path) }),
            name => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(name);
            }
        }
    }
    Ok(clean)
}

impl Unpacker<'_> {
    fn unpack<R: Read>(&mut self, entry: &Entry, reader: &mut Reader<R>) -> Result<(), ApplyError> {
        let path = clean(&entry.path)?;
        self.count(entry, &path)?;
        if path.is_empty() {
            return self.unpack_root(entry);
        }
        let (parent, name) = split(&path);
        let place = Place {
            entry,
            path: &path,
            parent: self.parent(&path, parent)?,
            name,
        };
        if self.options.form == Form::Layer && name.starts_with(WHITEOUT) {
            return self.whiteout(&place);
        }
        match entry.kind {
            Kind::File => self.file(&place, reader),
            Kind::Directory => self.directory(&place),
            Kind::Symlink => self.symlink(&place),
            Kind::HardLink => self.hard_link(&place),
            Kind::Char | Kind::BlockDevice | Kind::Fifo => self.node(&place),
        }
    }

    fn count(&mut self, entry: &Entry, path: &[u8]) -> Result<(), ApplyError> {
        let over = |what, limit| {
            Err(ApplyError::Limit {
                path: shown(path),
                what,
                limit,
            })
        };
        self.unpacked.entries += 1;
        if self.unpacked.entries > self.options.entries_max {
            return over("entries", self.options.entries_max);
        }
        if entry.kind == Kind::File {
            self.unpacked.bytes = self.unpacked.bytes.saturating_add(entry.size);
            if self.unpacked.bytes > self.options.bytes_max {
                return over("bytes in all", self.options.bytes_max);
            }
        }
        Ok(())
    }

    fn unpack_root(&mut self, entry: &Entry) -> Result<(), ApplyError> {
        let path = shown(&entry.path);
        if entry.kind != Kind::Directory {
            return Err(ApplyError::Root { path });
        }
        if self.options.keep_root {
            return Ok(());
        }
        let failed = |action| {
            let path = path.clone();
            move |source| ApplyError::Io {
                path,
                action,
                source,
            }
        };
        let root = open_directory(self.root, b"").map_err(failed("open it"))?;
        remove_xattrs(&root).map_err(failed("remove its attributes"))?;
        self.set_metadata(&entry.path, &root, &entry.metadata)?;
        if self.options.form == Form::Layer {
            rustix::fs::fsetxattr(&root, ROOT_STATED, b"y", XattrFlags::empty())
                .map_err(failed("mark the root as stated"))?;
        }
        self.remember(b"", &root, entry.metadata.mtime, true)
    }

    /// The directory `parent`, made if nothing is there, following links inside the root.
    fn parent(&mut self, path: &[u8], parent: &[u8]) -> Result<Rc<OwnedFd>, ApplyError> {
        if let Some((cached, directory)) = &self.parent
            && cached == parent
        {
            return Ok(Rc::clone(directory));
        }
        let directory = match open_in_root(self.root, parent) {
            Ok(directory) => Rc::new(directory),
            // Missing, or a link to something missing, or a whiteout or file in the way.
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_parents(path, parent)?,
            Err(Errno::LOOP) => return Err(ApplyError::Links { path: shown(path) }),
            Err(source) => {
                return Err(ApplyError::Io {
                    path: shown(path),
                    action: "open its parent",
                    source,
                });
            }
        };
        self.parent = Some((parent.to_vec(), Rc::clone(&directory)));
        Ok(directory)
    }

    /// Goes down `parent` name by name, in the way of `RESOLVE_IN_ROOT`, and makes what is missing.
    fn make_parents(&mut self, path: &[u8], parent: &[u8]) -> Result<Rc<OwnedFd>, ApplyError> {
        let failed = |action| {
            move |source| ApplyError::Io {
                path: shown(path),
                action,
                source,
            }
        };
        let root = Rc::new(open_directory(self.root, b"").map_err(failed("open the root"))?);
        // Where we are: names from the root, each with its directory.
        let mut here: Vec<(Vec<u8>, Rc<OwnedFd>)> = Vec::new();
        let components = |path: &[u8]| -> Vec<Vec<u8>> {
            let names = path.split(|byte| *byte == b'/');
            names.rev().map(<[u8]>::to_vec).collect()
        };
        let mut ahead = components(parent);
        let mut links = 0;
        while let Some(name) = ahead.pop() {
            match &name[..] {
                b"" | b"." => continue,
                b".." => {
                    here.pop();
                    continue;
                }
                _ => {}
            }
            let above = Rc::clone(here.last().map_or(&root, |(_, directory)| directory));
            let so_far = here
                .iter()
                .fold(Vec::new(), |path, (name, _)| join(&path, name));
            let so_far = join(&so_far, &name);
            let stat = stat_at(&*above, &name);
            let hides = match stat {
                Ok(stat) => match FileType::from_raw_mode(stat.st_mode) {
                    FileType::Directory => {
                        let directory = open_directory(above.as_fd(), &name);
                        here.push((name, Rc::new(directory.map_err(failed("open its parent"))?)));
                        continue;
                    }
                    FileType::Symlink => {
                        links += 1;
                        if links > LINKS_MAX {
                            return Err(ApplyError::Links { path: shown(path) });
                        }
                        let target = rustix::fs::readlinkat(&*above, &name[..], Vec::new());
                        let target = target.map_err(failed("read a link on the way"))?;
                        if target.to_bytes().starts_with(b"/") {
                            here.clear();
                        }
                        ahead.extend(components(target.to_bytes()));
                        continue;
                    }
                    _ if self.options.form == Form::Layer && is_whiteout(&stat) => {
                        rustix::fs::unlinkat(&*above, &name[..], AtFlags::empty())
                            .map_err(failed("replace a whiteout on the way"))?;
                        true
                    }
                    _ => {
                        return Err(ApplyError::NotADirectory {
                            path: shown(path),
                            parent: shown(&so_far),
                        });
                    }
                },
                Err(Errno::NOENT) => false,
                Err(errno) => return Err(failed("look up its parent")(errno)),
            };
            rustix::fs::mkdirat(&*above, &name[..], Mode::RWXU)
                .map_err(failed("make its parent"))?;
            let directory =
                open_directory(above.as_fd(), &name).map_err(failed("open its parent"))?;
            let implied = Metadata {
                mode: 0o755,
                ..Metadata::default()
            };
            self.set_metadata(&so_far, &directory, &implied)?;
            if hides {
                set_opaque(&directory).map_err(failed("make its parent opaque"))?;
            }
            self.remember(&so_far, &directory, implied.mtime, false)?;
            here.push((name, Rc::new(directory)));
        }
        Ok(here.pop().map_or(root, |(_, directory)| directory))
    }

    fn whiteout(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        if place.name == WHITEOUT_OPAQUE {
            let parent = open_directory(place.parent.as_fd(), b"");
            let parent = parent.map_err(place.failed("open its parent"))?;
            return set_opaque(&parent).map_err(place.failed("make its parent opaque"));
        }
        // Bookkeeping of aufs, which some old layers carry.
        if place.name.starts_with(WHITEOUT_META) {
            return Ok(());
        }
        let target = &place.name[WHITEOUT.len()..];
        if matches!(target, b"" | b"." | b"..") {
            return Err(ApplyError::Whiteout {
                path: shown(place.path),
            });
        }
        let place = Place {
            entry: place.entry,
            path: place.path,
            parent: Rc::clone(&place.parent),
            name: target,
        };
        match place.stat()? {
            // A whiteout speaks of the layers below only: what this layer itself puts there stays, and hides them.
            Some(stat) if is_directory(&stat) => {
                let directory = open_directory(place.parent.as_fd(), target);
                let directory =
                    directory.map_err(place.failed("open the directory it replaces"))?;
                set_opaque(&directory).map_err(place.failed("make a directory opaque"))
            }
            Some(_) => Ok(()),
            None => put_whiteout(&place),
        }
    }

    fn file<R: Read>(
        &mut self,
        place: &Place<'_>,
        reader: &mut Reader<R>,
    ) -> Result<(), ApplyError> {
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        // Mostly its mode already, and never more than that before its owner is known.
        let mode = Mode::from_raw_mode(place.entry.metadata.mode & 0o777);
        let create = || rustix::fs::openat(&*place.parent, place.name, flags, mode);
        let file = self.replacing(place, "create it", create)?;
        let mut file = File::from(file);
        let written = |error: std::io::Error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            place.failed("write it")(errno)
        };
        if let Some(extents) = &place.entry.sparse {
            for (start, length) in extents {
                let mut at = *start;
                let end = start + length;
                while at < end {
                    let most =
                        usize::try_from(end - at).map_or(COPY_BYTES, |left| left.min(COPY_BYTES));
                    let count = reader.read_content(&mut self.buffer[..most])?;
                    if count == 0 {
                        // The map's lengths add up to the content's: the reader has checked.
                        break;
                    }
                    file.write_all_at(&self.buffer[..count], at)
                        .map_err(written)?;
                    at += count as u64;
                }
            }
            file.set_len(place.entry.size).map_err(written)?;
        } else {
            loop {
                let count = reader.read_content(&mut self.buffer)?;
                if count == 0 {
                    break;
                }
                file.write_all(&self.buffer[..count]).map_err(written)?;
            }
        }
        self.set_metadata(place.path, &file, &place.entry.metadata)?;
        rustix::fs::futimens(&file, &place.entry.metadata.mtime.timestamps())
            .map_err(place.failed("set its time"))
    }

    fn directory(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        let mut hides = false;
        let mut again = false;
        loop {
            match rustix::fs::mkdirat(&*place.parent, place.name, Mode::RWXU) {
                Ok(()) => break,
                Err(Errno::EXIST) => {}
                Err(errno) => return Err(place.failed("create it")(errno)),
            }
            match place.stat()? {
                Some(stat) if is_directory(&stat) => {
                    again = true;
                    break;
                }
                // What stood there hid the layers below, so what takes its place has to as well.
                Some(_) => {
                    self.remove(place)?;
                    hides = self.options.form == Form::Layer;
                }
                None => {}
            }
        }
        let directory = open_directory(place.parent.as_fd(), place.name);
        let directory = directory.map_err(place.failed("open it"))?;
        if again {
            // What is stated twice has only the attributes of the second time.
            remove_xattrs(&directory).map_err(place.failed("remove its attributes"))?;
        }
        self.set_metadata(place.path, &directory, &place.entry.metadata)?;
        if hides {
            set_opaque(&directory).map_err(place.failed("make it opaque"))?;
        }
        self.remember(place.path, &directory, place.entry.metadata.mtime, true)
    }

    fn symlink(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        let target = &place.entry.link[..];
        let create = || rustix::fs::symlinkat(target, &*place.parent, place.name);
        self.replacing(place, "create the symbolic link", create)?;
        self.set_node_metadata(place, false)
    }

    fn hard_link(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        let missing = || ApplyError::LinkTarget {
            path: shown(place.path),
            target: shown(&place.entry.link),
        };
        let target = clean(&place.entry.link)?;
        let (target_parent, target_name) = split(&target);
        if target_name.is_empty() {
            return Err(missing());
        }
        let target_parent = match open_in_root(self.root, target_parent) {
            Ok(directory) => directory,
            Err(Errno::NOENT | Errno::NOTDIR) => return Err(missing()),
            Err(errno) => return Err(place.failed("look up its target")(errno)),
        };
        let stat = match stat_at(&target_parent, target_name) {
            Ok(stat) => stat,
            Err(Errno::NOENT) => return Err(missing()),
            Err(errno) => return Err(place.failed("look up its target")(errno)),
        };
        if is_directory(&stat) || (self.options.form == Form::Layer && is_whiteout(&stat)) {
            return Err(missing());
        }
        if let Some(there) = place.stat()?
            && (there.st_dev, there.st_ino) == (stat.st_dev, stat.st_ino)
        {
            return Ok(());
        }
        // Without AT_SYMLINK_FOLLOW a link to a symbolic link is to the link itself.
        let create = || {
            let (parent, flags) = (&*place.parent, AtFlags::empty());
            rustix::fs::linkat(&target_parent, target_name, parent, place.name, flags)
        };
        self.replacing(place, "create the hard link", create)
    }

    fn node(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        let (major, minor) = place.entry.device;
        let kind = match place.entry.kind {
            Kind::Char => FileType::CharacterDevice,
            Kind::BlockDevice => FileType::BlockDevice,
            _ => FileType::Fifo,
        };
        if self.options.form == Form::Layer
            && kind == FileType::CharacterDevice
            && (major, minor) == (0, 0)
        {
            // An upper directory that was packed as it stood. Every engine ends up with a whiteout here.
            if place.stat()?.is_some() {
                self.remove(place)?;
            }
            return put_whiteout(place);
        }
        let device = match kind {
            FileType::Fifo => 0,
            _ => rustix::fs::makedev(major, minor),
        };
        let mode = Mode::RUSR | Mode::WUSR;
        let create = || rustix::fs::mknodat(&*place.parent, place.name, kind, mode, device);
        match self.replacing(place, "create it", create) {
            Err(ApplyError::Io {
                path,
                source: Errno::PERM,
                ..
            }) if kind != FileType::Fifo => {
                // Every sandbox has its own /dev on top: devices there are never seen.
                if self.options.form == Form::Layer && place.path.starts_with(b"dev/") {
                    tracing::debug!(
                        path,
                        major,
                        minor,
                        "device left out: not permitted in a user namespace"
                    );
                    return Ok(());
                }
                return Err(ApplyError::Device { path, major, minor });
            }
            outcome => outcome?,
        }
        self.set_node_metadata(place, true)
    }

    /// Runs `create`; if the name is taken, removes what has it and runs `create` again.
    fn replacing<T>(
        &mut self,
        place: &Place<'_>,
        action: &'static str,
        create: impl Fn() -> Result<T, Errno>,
    ) -> Result<T, ApplyError> {
        match create() {
            Ok(made) => Ok(made),
            Err(Errno::EXIST) => {
                self.remove(place)?;
                create().map_err(place.failed(action))
            }
            Err(errno) => Err(place.failed(action)(errno)),
        }
    }

    fn remove(&mut self, place: &Place<'_>) -> Result<(), ApplyError> {
        self.parent = None;
        remove_tree_at(place.parent.as_fd(), place.name)
            .map_err(place.failed("replace what came before it"))
    }

    /// Owner, then mode, then attributes: each clears what the next one sets.
    fn set_metadata(
        &self,
        path: &[u8],
        file: impl AsFd,
        metadata: &Metadata,
    ) -> Result<(), ApplyError> {
        let failed = |action| {
            move |source| ApplyError::Io {
                path: shown(path),
                action,
                source,
            }
        };
        let (uid, gid) = self.options.owner.unwrap_or((metadata.uid, metadata.gid));
        // Looking costs less than setting, which a journal has to record, and mostly nothing has to be set.
        let now = rustix::fs::fstat(&file).map_err(failed("look it up"))?;
        let is_owned = (now.st_uid, now.st_gid) == (uid, gid);
        if !is_owned {
            let (user, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
            self.owned(path, uid, gid, rustix::fs::fchown(&file, user, group))?;
        }
        // A new owner may have cleared setuid bits.
        if !is_owned || now.st_mode & 0o7777 != metadata.mode {
            rustix::fs::fchmod(&file, Mode::from_raw_mode(metadata.mode))
                .map_err(failed("set its mode"))?;
        }
        for (name, value) in &metadata.xattrs {
            let Some(name) = stored(name) else {
                continue;
            };
            match rustix::fs::fsetxattr(&file, &name[..], value, XattrFlags::empty()) {
                Ok(()) => {}
                Err(errno @ (Errno::OPNOTSUPP | Errno::PERM)) => {
                    let (path, name) = (shown(path), shown(&name));
                    tracing::debug!(path, name, %errno, "attribute left out");
                }
                Err(errno) => return Err(failed("set an attribute")(errno)),
            }
        }
        Ok(())
    }

    /// The same for what cannot be opened without side effects: links and special files.
    fn set_node_metadata(&self, place: &Place<'_>, has_mode: bool) -> Result<(), ApplyError> {
        let metadata = &place.entry.metadata;
        let (uid, gid) = self.options.owner.unwrap_or((metadata.uid, metadata.gid));
        let nofollow = AtFlags::SYMLINK_NOFOLLOW;
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        let chowned = rustix::fs::chownat(&*place.parent, place.name, owner.0, owner.1, nofollow);
        self.owned(place.path, uid, gid, chowned)?;
        if has_mode {
            // Follows links, but this is the special file that we have just made.
            let mode = Mode::from_raw_mode(metadata.mode);
            rustix::fs::chmodat(&*place.parent, place.name, mode, AtFlags::empty())
                .map_err(place.failed("set its mode"))?;
        }
        rustix::fs::utimensat(
            &*place.parent,
            place.name,
            &metadata.mtime.timestamps(),
            nofollow,
        )
        .map_err(place.failed("set its time"))
    }

    fn owned(
        &self,
        path: &[u8],
        uid: u32,
        gid: u32,
        outcome: Result<(), Errno>,
    ) -> Result<(), ApplyError> {
        match outcome {
            Ok(()) => Ok(()),
            // EINVAL: not mapped. EPERM: mapped to nobody we may act for.
            Err(Errno::INVAL | Errno::PERM) if self.options.keep_own_if_unmapped => Ok(()),
            Err(Errno::INVAL) => Err(ApplyError::Owner {
                path: shown(path),
                uid,
                gid,
            }),
            Err(source) => Err(ApplyError::Io {
                path: shown(path),
                action: "set its owner",
                source,
            }),
        }
    }

    /// Notes the time a directory shall have in the end; an implied one does not override a stated one.
    fn remember(
        &mut self,
        path: &[u8],
        directory: impl AsFd,
        mtime: Mtime,
        stated: bool,
    ) -> Result<(), ApplyError> {
        let stat = rustix::fs::fstat(directory).map_err(|source| ApplyError::Io {
            path: shown(path),
            action: "look it up",
            source,
        })?;
        let key = (stat.st_dev, stat.st_ino);
        if !stated && self.directories.contains_key(&key) {
            return Ok(());
        }
        self.names += path.len() as u64;
        if self.names > self.options.names_max {
            return Err(ApplyError::Limit {
                path: shown(path),
                what: "bytes of directory names",
                limit: self.options.names_max,
            });
        }
        self.directories.insert(key, (path.to_vec(), mtime));
        Ok(())
    }

    fn set_directory_times(&self) -> Result<(), ApplyError> {
        for (key, (path, mtime)) in &self.directories {
            let failed = |source| ApplyError::Io {
                path: shown(path),
                action: "set its time",
                source,
            };
            // Gone again or replaced since: then its time is not wanted either.
            let directory = match open_in_root(self.root, path) {
                Ok(directory) => directory,
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(errno) => return Err(failed(errno)),
            };
            let stat = rustix::fs::fstat(&directory).map_err(failed)?;
            if (stat.st_dev, stat.st_ino) == *key {
                let readable = open_directory(directory.as_fd(), b"").map_err(failed)?;
                rustix::fs::futimens(&readable, &mtime.timestamps()).map_err(failed)?;
            }
        }
        Ok(())
    }
}

/// Opens a directory below `root`; links are followed as if `root` were `/`.
fn open_in_root(root: BorrowedFd<'_>, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    loop {
        match rustix::fs::openat2(
            root,
            path,
            OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
        ) {
            // Somebody renamed something somewhere: the kernel asks to look again.
            Err(Errno::AGAIN | Errno::INTR) => {}
            outcome => return outcome,
        }
    }
}

fn set_opaque(directory: impl AsFd) -> Result<(), Errno> {
    rustix::fs::fsetxattr(directory, OPAQUE, b"y", XattrFlags::empty())
}

/// Removes the attributes that are part of the layer; overlayfs's own stay.
fn remove_xattrs(file: impl AsFd) -> Result<(), Errno> {
    for name in read_xattrs(&file)?.keys() {
        if let Some(name) = stored(name) {
            rustix::fs::fremovexattr(&file, &name[..])?;
        }
    }
    Ok(())
}

fn put_whiteout(place: &Place<'_>) -> Result<(), ApplyError> {
    make_whiteout(&*place.parent, place.name).map_err(place.failed("make a whiteout"))
}
