//! Snapshots without overlayfs: layers copied on top of one another to a real directory tree.
//!
//! ```text
//! tmp/dir-…/fs/    what overlayfs would show of some layers, as plain files
//! ```
//!
//! Making one costs what its layers hold, so they are kept as long as the process lives: a step gets the one that the step
//! before it left, and pays for what it changes. What that is, is found by comparing listings (`listing`), which needs no
//! file to be read; `diff` makes a layer of it in the same form as overlayfs would, and `stack` puts layers on a tree.
//! No file of a tree is a link to one of a layer: a step may write into it.
//!
//! While a step has a tree, nobody else does. Any number may read one meanwhile nobody writes to.

mod copy;
mod diff;
mod listing;
mod stack;

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::Mode;
use rustix::io::Errno;

use super::{SnapshotError, failed, open};
use crate::fs::TempDir;
use crate::layer::LayerId;
use crate::layer::entry::Metadata;
use crate::layer::walk::{WalkError, walk};
use copy::{Side, Target};
use diff::Step;
use listing::Listing;

/// Trees kept although nobody uses them: as many stages can be worked on in turn without starting over.
const IDLE_MAX: usize = 4;

/// A tree of its own.
pub(super) struct Tree {
    folder: TempDir,
    /// What it shows, oldest first.
    layers: Vec<LayerId>,
    listing: Listing,
}

impl fmt::Debug for Tree {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tree")
            .field("path", &self.path())
            .field("layers", &self.layers.len())
            .finish_non_exhaustive()
    }
}

impl Tree {
    /// Its root directory.
    pub(super) fn path(&self) -> PathBuf {
        self.folder.path().join("fs")
    }

    /// The folder it lies in.
    pub(super) fn folder(&self) -> &TempDir {
        &self.folder
    }
}

/// The trees of one process.
#[derive(Debug, Default)]
pub(super) struct Trees {
    idle: Mutex<Vec<Slot>>,
}

/// A tree that nobody writes to.
#[derive(Debug)]
struct Slot {
    tree: Tree,
    readers: usize,
}

/// A tree that is read, until this is dropped.
#[derive(Debug)]
pub(super) struct Reading {
    trees: Arc<Trees>,
    path: PathBuf,
}

impl Reading {
    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let mut idle = self.trees.idle();
        if let Some(slot) = idle.iter_mut().find(|slot| slot.tree.path() == self.path) {
            slot.readers -= 1;
        }
    }
}

/// What is to be made of layers, and where.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted<'a> {
    /// Their names, oldest first.
    pub(super) layers: &'a [LayerId],
    /// Their directories, oldest first.
    pub(super) directories: &'a [PathBuf],
    /// Owners that do not exist are left out.
    pub(super) keep_own: bool,
}

impl Trees {
    fn idle(&self) -> MutexGuard<'_, Vec<Slot>> {
        // Nothing is half done while it is held.
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A tree of these layers to write to. `scratch` makes the folder for a new one.
    pub(super) fn take(
        &self,
        wanted: Wanted<'_>,
        scratch: impl FnOnce() -> Result<TempDir, SnapshotError>,
    ) -> Result<Tree, SnapshotError> {
        match self.take_nearest(wanted.layers) {
            Some(tree) => advance(tree, wanted),
            None => advance(new(scratch()?)?, wanted),
        }
    }

    /// The idle tree to which the least has to be added.
    fn take_nearest(&self, layers: &[LayerId]) -> Option<Tree> {
        let mut idle = self.idle();
        let (index, _) = idle
            .iter()
            .enumerate()
            .filter(|(_, slot)| slot.readers == 0 && layers.starts_with(&slot.tree.layers))
            .max_by_key(|(_, slot)| slot.tree.layers.len())?;
        Some(idle.remove(index).tree)
    }

    /// A tree of these layers to read.
    pub(super) fn read(
        self: &Arc<Self>,
        wanted: Wanted<'_>,
        scratch: impl FnOnce() -> Result<TempDir, SnapshotError>,
    ) -> Result<Reading, SnapshotError> {
        {
            let mut idle = self.idle();
            if let Some(slot) = idle
                .iter_mut()
                .find(|slot| slot.tree.layers == wanted.layers)
            {
                slot.readers += 1;
                return Ok(self.reading(&slot.tree));
            }
        }
        let tree = self.take(wanted, scratch)?;
        let reading = self.reading(&tree);
        let surplus = self.keep(Slot { tree, readers: 1 });
        drop(surplus);
        Ok(reading)
    }

    fn reading(self: &Arc<Self>, tree: &Tree) -> Reading {
        Reading {
            trees: Arc::clone(self),
            path: tree.path(),
        }
    }

    /// Keeps a tree that shows `layers` now, which is as `listing` says, for the next one who wants it. What is returned is
    /// too much to keep.
    pub(super) fn give(&self, mut tree: Tree, layers: Vec<LayerId>, listing: Kept) -> Vec<TempDir> {
        tree.layers = layers;
        tree.listing = listing.0;
        self.keep(Slot { tree, readers: 0 })
    }

    /// Keeps nothing any more but what is read.
    pub(super) fn forget(&self) -> Vec<TempDir> {
        let mut idle = self.idle();
        let (read, unread) = std::mem::take(&mut *idle)
            .into_iter()
            .partition(|slot| slot.readers > 0);
        *idle = read;
        unread
            .into_iter()
            .map(|slot: Slot| slot.tree.folder)
            .collect()
    }

    fn keep(&self, slot: Slot) -> Vec<TempDir> {
        let mut idle = self.idle();
        idle.push(slot);
        let mut surplus = Vec::new();
        while idle.len() - surplus.len() > IDLE_MAX {
            // The oldest first; those that are read stay.
            let Some(index) = idle.iter().position(|slot| slot.readers == 0) else {
                break;
            };
            surplus.push(idle.remove(index).tree.folder);
        }
        surplus
    }
}

fn new(folder: TempDir) -> Result<Tree, SnapshotError> {
    let tree = Tree {
        folder,
        layers: Vec::new(),
        listing: Listing::default(),
    };
    let path = tree.path();
    rustix::fs::mkdir(&path, Mode::RWXU).map_err(failed("make", &path))?;
    Ok(tree)
}

/// Puts the layers on a tree that it does not have yet.
fn advance(mut tree: Tree, wanted: Wanted<'_>) -> Result<Tree, SnapshotError> {
    let from = tree.layers.len();
    if from == wanted.layers.len() {
        return Ok(tree);
    }
    let path = tree.path();
    let root = open(&path)?;
    let target = Target {
        root: root.as_fd(),
        side: Side::Tree,
        keep_own: wanted.keep_own,
    };
    for directory in &wanted.directories[from..] {
        let layer = open(directory)?;
        stack::put(layer.as_fd(), &target).map_err(copying(directory))?;
    }
    tree.layers = wanted.layers.to_vec();
    tree.listing = Listing::of(root.as_fd()).map_err(copying(&path))?;
    Ok(tree)
}

/// Makes a tree ready for a step: its root has these metadata, and what the step changes is stamped later than all there is.
pub(super) fn hand_over(tree: &Tree, root: &Metadata, keep_own: bool) -> Result<(), SnapshotError> {
    let path = tree.path();
    let directory = open(&path)?;
    let target = Target {
        root: directory.as_fd(),
        side: Side::Tree,
        keep_own,
    };
    target
        .set(directory.as_fd(), root)
        .map_err(failed("set the metadata of", &path))?;
    tree.listing.wait_for_tick();
    Ok(())
}

/// The state of a tree whose changes are written.
#[derive(Debug)]
pub(super) struct Kept(Listing);

/// Writes what a step changed in its tree to the empty directory of a layer, the root's metadata too.
pub(super) fn write_changes(
    tree: &Tree,
    lower: &[PathBuf],
    upper: BorrowedFd<'_>,
    keep_own: bool,
) -> Result<Kept, SnapshotError> {
    let path = tree.path();
    let root = open(&path)?;
    let listing = Listing::of(root.as_fd()).map_err(copying(&path))?;
    let lower: Vec<OwnedFd> = lower
        .iter()
        .map(|path| open(path))
        .collect::<Result<_, _>>()?;
    let changes = diff::compare(&tree.listing, &listing);
    let target = Target {
        root: upper,
        side: Side::Layer,
        keep_own,
    };
    let step = Step {
        tree: root.as_fd(),
        listing: &listing,
        lower: &lower,
    };
    diff::write(step, &changes, &target).map_err(copying(&path))?;
    let state = |errno: Errno| failed("set the root's metadata as in", &path)(errno);
    let mut metadata = Metadata::of(&rustix::fs::fstat(&root).map_err(state)?);
    metadata.xattrs = Side::Tree.xattrs(&root).map_err(state)?;
    target.set(upper, &metadata).map_err(state)?;
    Ok(Kept(listing))
}

/// Whether a layer can be shown as it lies, with nothing below it.
pub(super) fn is_plain(layer: &Path) -> Result<bool, SnapshotError> {
    let found = walk(open(layer)?.as_fd()).map_err(copying(layer))?;
    Ok(!found.iter().any(|found| found.is_whiteout()))
}

/// Copies what is at `path` of a merged tree to `to`, a name that is free: owners, times, attributes and links as they are.
pub(super) fn copy_part(
    root: BorrowedFd<'_>,
    path: &Path,
    to: &Path,
    keep_own: bool,
) -> Result<(), SnapshotError> {
    let parent = to.parent().unwrap_or(Path::new("/"));
    let name = to.file_name().unwrap_or_default().as_bytes();
    let directory = open(parent)?;
    let target = Target {
        root: directory.as_fd(),
        side: Side::Tree,
        keep_own,
    };
    let from = path.as_os_str().as_bytes();
    stack::copy_part(root, from, &target, name).map_err(failed("copy", path))
}

/// Where what is at `path` in `root` really is, through links as if that were `/`.
pub(super) fn locate(root: BorrowedFd<'_>, path: &Path) -> Result<PathBuf, Errno> {
    let found = stack::find(root, path.as_os_str().as_bytes())?;
    let name = format!("/proc/self/fd/{}", found.as_raw_fd());
    let real = rustix::fs::readlink(name, Vec::new())?;
    Ok(PathBuf::from(std::ffi::OsString::from_vec(
        real.into_bytes(),
    )))
}

fn copying(path: &Path) -> impl Fn(WalkError) -> SnapshotError {
    let path = path.to_owned();
    move |error| {
        let path = path.join(std::ffi::OsStr::from_bytes(&error.path));
        failed("copy", &path)(error.errno)
    }
}
