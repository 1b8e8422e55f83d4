//! Snapshots: layers on disk, stacked for reading, and the directory that a step writes to.
//!
//! ```text
//! layers/<LayerId>/fs   a layer, complete and never changed again
//! tmp/dir-…/            one step or one unpacking under way, locked by who does it
//!   fs/  work/          overlayfs's upper and work directory
//!   fs/                 without overlayfs: layers copied on top of one another (`trees`)
//! empty/                a lower directory with nothing in it
//! ```
//!
//! A layer appears by one `rename`, so it is either whole or absent. What a killed process leaves is a folder in `tmp/`
//! that nobody locks; [`Snapshots::sweep`] removes those. Folders in use are locked with `flock`, which ends with the
//! process however it ends.

mod overlay;
mod prune;
mod reaper;
mod trees;

use std::fmt;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};

use rustix::fs::{Gid, Mode, Uid, XattrFlags};
use rustix::io::Errno;

use crate::fs::{self, FsError, Shared, TempDir};
use crate::layer::apply::{ApplyError, Form, UnpackOptions, Unpacked, unpack_into};
use crate::layer::compress::decompressor;
use crate::layer::entry::{Metadata, ROOT_STATED, is_opaque, may_chown, read_xattrs, stored};
use crate::layer::scan::{Scan, ScanError, scan, stated_root};
use crate::layer::tar::{TarError, write_tar};
use crate::layer::walk::open_directory;
use crate::layer::{LayerId, LayerInfo};
use crate::oci::{DiffId, Hasher};
use reaper::{Reaper, Remains};
use trees::{Reading, Tree, Trees, Wanted};

/// Bytes handed between the threads of an unpacking at a time, and how many such pieces may wait.
const PIECE_BYTES: usize = 256 * 1024;
const PIECES: usize = 8;

/// Why a snapshot cannot be made, read or kept.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SnapshotError {
    /// The file system refuses.
    #[error("cannot {action} `{path}`")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        source: Errno,
    },
    /// A layer that is to be stacked is not there.
    #[error("layer `{layer}` is not in the store: it has to be pulled or built first")]
    MissingLayer {
        /// The layer.
        layer: LayerId,
    },
    /// overlayfs does not take the layers.
    #[error("cannot stack {layers} layers with overlayfs")]
    Overlay {
        /// How many.
        layers: usize,
        /// The kernel's answer.
        source: Errno,
    },
    /// What is wanted needs overlayfs.
    #[error(
        "containers need overlayfs, which is refused here: {why}; `longshore info` says what would give it"
    )]
    NoOverlay {
        /// The kernel's answer.
        why: Errno,
    },
    /// A tar cannot be unpacked.
    #[error(transparent)]
    Apply(#[from] ApplyError),
    /// The stream of a layer fails, or is not what its compression says.
    #[error("cannot read layer `{expected}`")]
    Stream {
        /// The layer.
        expected: DiffId,
        /// The cause.
        source: io::Error,
    },
    /// A layer is not the one that was asked for.
    #[error("layer has the DiffID `{actual}`, expected `{expected}`")]
    WrongDiffId {
        /// What its image says.
        expected: DiffId,
        /// What it is.
        actual: DiffId,
    },
    /// A folder of the store fails.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// A copy of a directory cannot be made.
    #[error("cannot copy `{}`", path.display())]
    Copy {
        /// The directory.
        path: PathBuf,
        /// The cause.
        source: Box<TarError>,
    },
    /// A step's result cannot be read.
    #[error(transparent)]
    Scan(#[from] ScanError),
}

/// The layers of one store. Cheap to clone; any number of processes use the same folder at once.
#[derive(Clone, Debug)]
pub struct Snapshots {
    root: Arc<PathBuf>,
    reaper: Arc<Reaper>,
    trees: Arc<Trees>,
    backend: Arc<OnceLock<Backend>>,
    /// This process can act for one user only, so owners cannot be kept.
    has_single_id: bool,
}

/// How layers are stacked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// By overlayfs: nothing is copied.
    Overlay,
    /// In directory trees that they are copied to.
    Copy {
        /// Why not by overlayfs.
        why: Errno,
    },
}

/// The root that a step writes to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StepRoot {
    /// To be mounted.
    Overlay(SnapshotMount),
    /// A directory, the step's alone, to be used as it is.
    Tree(PathBuf),
}

/// Where overlayfs finds the parts of a snapshot that is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotMount {
    /// Layers below, topmost first; never empty.
    pub lower: Vec<PathBuf>,
    /// Where changes go.
    pub upper: PathBuf,
    /// overlayfs's scratch directory, on the same file system as `upper`.
    pub work: PathBuf,
}

impl Snapshots {
    /// Opens the layers below `root`, making what is missing.
    ///
    /// # Errors
    /// A folder cannot be made.
    pub fn open(root: &Path) -> Result<Snapshots, SnapshotError> {
        for folder in ["layers", "tmp", "empty"] {
            fs::create_dir(&root.join(folder))?;
        }
        // It is what an image without layers shows as its root.
        let empty = root.join("empty");
        rustix::fs::chmod(&empty, Mode::from_raw_mode(0o755))
            .map_err(failed("set the mode of", &empty))?;
        // The mount needs a path that works from every directory.
        let root = root.canonicalize().map_err(|error| {
            let errno = Errno::from_io_error(&error).unwrap_or(Errno::IO);
            failed("find", root)(errno)
        })?;
        Ok(Snapshots {
            root: Arc::new(root),
            reaper: Arc::default(),
            trees: Arc::default(),
            backend: Arc::default(),
            has_single_id: has_single_id(),
        })
    }

    /// How layers are stacked here: by overlayfs, if a mount that is tried shows that it takes the store's file system and
    /// this process's privilege.
    ///
    /// # Errors
    /// A folder cannot be made to try it on.
    pub fn backend(&self) -> Result<Backend, SnapshotError> {
        if let Some(backend) = self.backend.get() {
            return Ok(*backend);
        }
        let scratch = self.scratch()?;
        let folder = |name| {
            let path = scratch.path().join(name);
            rustix::fs::mkdir(&path, Mode::RWXU).map_err(failed("make", &path))?;
            Ok::<PathBuf, SnapshotError>(path)
        };
        let mount = SnapshotMount {
            lower: vec![self.root.join("empty")],
            upper: folder("fs")?,
            work: folder("work")?,
        };
        let backend = match overlay::mount_writable(&mount) {
            Ok(root) => {
                self.reaper.take(Remains::Mount(root));
                Backend::Overlay
            }
            Err(why) => Backend::Copy { why },
        };
        self.reaper.take(Remains::Folder(scratch));
        Ok(*self.backend.get_or_init(|| backend))
    }

    /// The same layers without overlayfs, even if it is there.
    pub fn copying(self) -> Snapshots {
        let why = Errno::OPNOTSUPP;
        Snapshots {
            backend: Arc::new(OnceLock::from(Backend::Copy { why })),
            ..self
        }
    }

    /// Whether the layer is here.
    pub fn has(&self, layer: &LayerId) -> bool {
        // Through the dot, which only a directory has.
        let inside = self.layer_dir(layer).join(".");
        rustix::fs::access(inside, rustix::fs::Access::EXISTS).is_ok()
    }

    /// The directory of a layer's files, whether or not it exists.
    pub fn layer_dir(&self, layer: &LayerId) -> PathBuf {
        self.root.join("layers").join(layer.to_string()).join("fs")
    }

    /// The names of all layers that are here, sorted.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn list(&self) -> Result<Vec<LayerId>, SnapshotError> {
        let names = fs::list(&self.root.join("layers"))?;
        let mut layers: Vec<LayerId> = names.iter().filter_map(|name| name.parse().ok()).collect();
        layers.sort_unstable();
        Ok(layers)
    }

    /// Removes a layer. It disappears at once; its files go one by one. No error if it is not there.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove(&self, layer: &LayerId) -> Result<(), SnapshotError> {
        let path = self.root.join("layers").join(layer.to_string());
        let scratch = self.scratch()?;
        // Dropping the scratch directory removes what was moved into it.
        fs::optional(fs::rename(&path, &scratch.path().join("removed")))?;
        Ok(())
    }

    /// A directory for a step to write to, on top of `parents` (oldest first).
    ///
    /// # Errors
    /// A parent is not here, or the folder cannot be made.
    pub fn prepare(&self, parents: &[LayerId]) -> Result<ActiveSnapshot, SnapshotError> {
        let lower = self.stack(parents)?;
        let scratch = self.scratch()?;
        let (upper, root) = self.make_upper(scratch.path(), &lower)?;
        Ok(ActiveSnapshot {
            snapshots: self.clone(),
            scratch,
            work: None,
            tree: None,
            parents: parents.to_vec(),
            upper,
            lower,
            root,
        })
    }

    /// Makes `fs/` in a folder, as the root of these layers is.
    fn make_upper(
        &self,
        folder: &Path,
        lower: &[PathBuf],
    ) -> Result<(PathBuf, Metadata), SnapshotError> {
        let upper = folder.join("fs");
        rustix::fs::mkdir(&upper, Mode::RWXU).map_err(failed("make", &upper))?;
        // overlayfs shows the upper directory's own metadata as those of the root.
        let root = self.root_below(lower)?;
        let directory = open(&upper)?;
        set_root(directory.as_fd(), &root).map_err(failed("set the metadata of", &upper))?;
        Ok((upper, root))
    }

    /// Makes `fs/` in a folder that outlives this process: what is written on top of `parents` (oldest first).
    ///
    /// # Errors
    /// As for [`Snapshots::prepare`].
    pub fn prepare_in(&self, folder: &Path, parents: &[LayerId]) -> Result<(), SnapshotError> {
        self.make_upper(folder, &self.stack(parents)?)?;
        Ok(())
    }

    /// What overlayfs needs to show what lies in such a folder, with a new `work/` beside `fs/`: what the last mount left
    /// there, after a crash for instance, is gone.
    ///
    /// # Errors
    /// A parent is not here, or the folder cannot be made.
    pub fn writable(
        &self,
        folder: &Path,
        parents: &[LayerId],
    ) -> Result<SnapshotMount, SnapshotError> {
        let work = folder.join("work");
        fs::remove_tree(&work)?;
        rustix::fs::mkdir(&work, Mode::RWXU).map_err(failed("make", &work))?;
        Ok(SnapshotMount {
            lower: self.stack(parents)?,
            upper: folder.join("fs"),
            work,
        })
    }

    /// The merged tree of a mount, to read and to write, that has no place in any directory tree and ends with the handle.
    ///
    /// # Errors
    /// overlayfs refuses, as it may while another mount has the same upper directory.
    pub fn open_writable(&self, mount: &SnapshotMount) -> Result<OwnedFd, SnapshotError> {
        self.need_overlay()?;
        overlay::mount_writable(mount).map_err(|source| SnapshotError::Overlay {
            layers: mount.lower.len(),
            source,
        })
    }

    /// A layer of what lies in an upper directory on top of `parents` (oldest first); the directory stays as it is.
    ///
    /// # Errors
    /// It cannot be read, or changes meanwhile.
    pub fn commit_copy(
        &self,
        parents: &[LayerId],
        upper: &Path,
    ) -> Result<LayerInfo, SnapshotError> {
        let active = self.prepare(parents)?;
        let target = open(active.upper())?;
        let mut options = UnpackOptions::new(Form::Layer);
        options.keep_own_if_unmapped = self.has_single_id;
        // The tar of a layer says nothing of a root that the layer does not change.
        options.keep_root = true;
        let (reading, mut writing) = io::pipe().map_err(|error| {
            failed("copy", upper)(Errno::from_io_error(&error).unwrap_or(Errno::IO))
        })?;
        std::thread::scope(|scope| {
            let writer = scope.spawn(move || write_tar(upper, &mut writing));
            let unpacked = unpack_into(&target, io::BufReader::new(reading), &options);
            let written = writer.join().expect("writing a tar does not panic");
            // A tar that ends early is the writer's fault.
            written.map_err(|source| SnapshotError::Copy {
                path: upper.to_owned(),
                source: Box::new(source),
            })?;
            unpacked?;
            Ok::<(), SnapshotError>(())
        })?;
        active.commit()
    }

    /// An error unless overlayfs stacks layers here.
    ///
    /// # Errors
    /// It does not.
    pub fn need_overlay(&self) -> Result<(), SnapshotError> {
        match self.backend()? {
            Backend::Overlay => Ok(()),
            Backend::Copy { why } => Err(SnapshotError::NoOverlay { why }),
        }
    }

    /// The layers (oldest first) merged, to read only: a mount that has no place in any directory tree and ends with the
    /// returned handle, also when the process is killed.
    ///
    /// # Errors
    /// A layer is not here, or overlayfs refuses.
    pub fn view(&self, layers: &[LayerId]) -> Result<View, SnapshotError> {
        let lower = self.stack(layers)?;
        let empty = self.root.join("empty");
        if lower == [empty.clone()] {
            return self.viewing_directory(empty);
        }
        if self.backend()? != Backend::Overlay {
            return self.view_tree(layers, &lower);
        }
        let source = |source| SnapshotError::Overlay {
            layers: layers.len(),
            source,
        };
        let mut lower = lower;
        if lower.len() == 1 {
            // overlayfs wants two; alone, a layer would show its whiteouts.
            lower.push(empty);
        }
        let root = overlay::mount_read_only(&lower).map_err(source)?;
        Ok(self.viewing(root))
    }

    /// What overlayfs needs to show these layers (oldest first) read-only, with the option `userxattr`: directories, topmost
    /// first. Two at least, unless there are no layers: then the one is empty.
    ///
    /// # Errors
    /// A layer is not here.
    pub fn lower(&self, layers: &[LayerId]) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut lower = self.stack(layers)?;
        if lower.len() == 1 && !layers.is_empty() {
            // Alone, a layer would show its whiteouts.
            lower.push(self.root.join("empty"));
        }
        Ok(lower)
    }

    fn viewing(&self, root: OwnedFd) -> View {
        View {
            root: Some(root),
            shows: Shows::Mount(Arc::clone(&self.reaper)),
        }
    }

    fn viewing_directory(&self, path: PathBuf) -> Result<View, SnapshotError> {
        Ok(View {
            root: Some(open(&path)?),
            shows: Shows::Directory(path),
        })
    }

    /// The layers without overlayfs: as they lie if that is what they show, else a tree.
    fn view_tree(&self, layers: &[LayerId], lower: &[PathBuf]) -> Result<View, SnapshotError> {
        if let [layer] = lower
            && trees::is_plain(layer)?
        {
            return self.viewing_directory(layer.clone());
        }
        let directories = self.directories(layers);
        let tree = self
            .trees
            .read(self.wanted(layers, &directories), || self.scratch())?;
        Ok(View {
            root: Some(open(tree.path())?),
            shows: Shows::Tree(tree),
        })
    }

    fn directories(&self, layers: &[LayerId]) -> Vec<PathBuf> {
        layers.iter().map(|layer| self.layer_dir(layer)).collect()
    }

    fn wanted<'a>(&self, layers: &'a [LayerId], directories: &'a [PathBuf]) -> Wanted<'a> {
        Wanted {
            layers,
            directories,
            keep_own: self.has_single_id,
        }
    }

    /// A copy of what is at `path` in the directory `root`, links taken as if that were `/`: to be written to and dropped.
    ///
    /// # Errors
    /// There is nothing, or it cannot be copied.
    pub fn copy_part(&self, root: &Path, path: &Path) -> Result<Part, SnapshotError> {
        let part = Part {
            folder: self.scratch()?,
        };
        let directory = open(root)?;
        trees::copy_part(directory.as_fd(), path, &part.path(), self.has_single_id)?;
        Ok(part)
    }

    /// Where what is at `path` in the directory `root` really is, links taken as if that were `/`.
    ///
    /// # Errors
    /// There is nothing.
    pub fn locate(&self, root: &Path, path: &Path) -> Result<PathBuf, SnapshotError> {
        trees::locate(open(root)?.as_fd(), path).map_err(failed("find", &root.join(path)))
    }

    /// Unpacks a layer's tar (gzip, zstd, bzip2, xz or plain, told by its first bytes) under the name of its DiffID.
    ///
    /// Decompressing, hashing and writing run beside one another in bounded memory. The layer appears only if the
    /// stream's SHA-256 is `expected`; if it is there already, ours is dropped.
    ///
    /// # Errors
    /// The stream fails, is a hostile or broken archive, has another DiffID, or cannot be written.
    pub fn unpack(&self, expected: DiffId, tar: &mut dyn Read) -> Result<LayerInfo, SnapshotError> {
        let (scratch, unpacked, actual) = self.unpack_scratch(expected, tar)?;
        if actual != expected {
            return Err(SnapshotError::WrongDiffId { expected, actual });
        }
        let id = LayerId::Unpacked(expected);
        self.publish(scratch, &id)?;
        Ok(LayerInfo {
            id,
            tree: None,
            diff_id: Some(expected),
            bytes: unpacked.bytes,
            entries: unpacked.entries,
        })
    }

    /// Unpacks a layer's tar to a directory (`fs/` in what is returned) that goes when it is dropped; returns the DiffID
    /// that the tar has.
    pub(crate) fn unpack_aside(
        &self,
        expected: DiffId,
        tar: &mut dyn Read,
    ) -> Result<(TempDir, DiffId), SnapshotError> {
        let (scratch, _, actual) = self.unpack_scratch(expected, tar)?;
        Ok((scratch, actual))
    }

    fn unpack_scratch(
        &self,
        expected: DiffId,
        tar: &mut dyn Read,
    ) -> Result<(TempDir, Unpacked, DiffId), SnapshotError> {
        let scratch = self.scratch()?;
        let layer = scratch.path().join("fs");
        rustix::fs::mkdir(&layer, Mode::RWXU).map_err(failed("make", &layer))?;
        let directory = open(&layer)?;
        set_root(directory.as_fd(), &default_root())
            .map_err(failed("set the metadata of", &layer))?;
        let mut options = UnpackOptions::new(Form::Layer);
        options.keep_own_if_unmapped = self.has_single_id;
        let (unpacked, actual) = unpack_hashed(&directory, expected, tar, &options)?;
        Ok((scratch, unpacked, actual))
    }

    /// Waits until what this process's finished snapshots and views left behind is gone: it ends beside other work. What was
    /// kept for later steps goes too.
    pub fn settle(&self) {
        drop(self.trees.forget());
        self.reaper.settle();
    }

    /// Removes what killed processes left in `tmp/`; what is in use stays. Returns how many folders went.
    ///
    /// # Errors
    /// A folder cannot be read or removed.
    pub fn sweep(&self) -> Result<usize, SnapshotError> {
        let stale = fs::temp::stale(&self.root.join("tmp"))?;
        for path in &stale {
            fs::temp::sweep(path)?;
        }
        Ok(stale.len())
    }

    /// The directories of `layers` (oldest first), topmost first. Below a layer whose root is opaque nothing is seen.
    ///
    /// Of a layer that is there several times only the topmost counts: it decides every path that the others do, and
    /// overlayfs takes no directory twice.
    fn stack(&self, layers: &[LayerId]) -> Result<Vec<PathBuf>, SnapshotError> {
        let mut stack = Vec::with_capacity(layers.len().max(1));
        for layer in layers.iter().rev() {
            let path = self.layer_dir(layer);
            let directory = match open_directory(rustix::fs::CWD, path.as_os_str().as_bytes()) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => return Err(SnapshotError::MissingLayer { layer: *layer }),
                Err(errno) => return Err(failed("open", &path)(errno)),
            };
            let hides = is_opaque(&directory).map_err(failed("read the attributes of", &path))?;
            if !stack.contains(&path) {
                stack.push(path);
            }
            if hides {
                break;
            }
        }
        if stack.is_empty() {
            stack.push(self.root.join("empty"));
        }
        Ok(stack)
    }

    /// The root's metadata as the topmost layer has them that states them.
    fn root_below(&self, lower: &[PathBuf]) -> Result<Metadata, SnapshotError> {
        for path in lower {
            let stated =
                stated_root(open(path)?.as_fd()).map_err(failed("read the attributes of", path))?;
            if let Some(metadata) = stated {
                return Ok(metadata);
            }
        }
        Ok(default_root())
    }

    fn scratch(&self) -> Result<TempDir, SnapshotError> {
        Ok(TempDir::create(&self.root.join("tmp"))?)
    }

    /// Gives `scratch/fs` its name, unless that is taken: then the one there is the same, and ours goes.
    fn publish(&self, scratch: TempDir, id: &LayerId) -> Result<(), SnapshotError> {
        let path = self.root.join("layers").join(id.to_string());
        // A collection holds this alone, and takes only what is old: so what stands when it is released stays.
        let shared = Shared::lock(&self.root.join("publishing"))?;
        // Changes nothing but the time of its last change: to a collection it is new again.
        match rustix::fs::chmod(&path, Mode::RWXU) {
            Ok(()) => {}
            // If somebody else publishes it this instant, it is new as well.
            Err(Errno::NOENT) => {
                scratch.publish(&path)?;
                return Ok(());
            }
            Err(errno) => return Err(failed("renew", &path)(errno)),
        }
        drop(shared);
        self.reaper.take(Remains::Folder(scratch));
        Ok(())
    }
}

/// A directory that a step writes to, and what lies below it. Dropped without [`commit`](ActiveSnapshot::commit), it is gone.
pub struct ActiveSnapshot {
    snapshots: Snapshots,
    scratch: TempDir,
    /// overlayfs's scratch directory, once it was asked for.
    work: Option<TempDir>,
    /// The root without overlayfs, once it was asked for.
    tree: Option<Tree>,
    /// Layers below, oldest first.
    parents: Vec<LayerId>,
    upper: PathBuf,
    /// Layers below, topmost first.
    lower: Vec<PathBuf>,
    /// The root's metadata as they were at the start.
    root: Metadata,
}

impl ActiveSnapshot {
    /// The directory that becomes the layer. Who writes here directly does so in overlayfs's form.
    pub fn upper(&self) -> &Path {
        &self.upper
    }

    /// The root for a step.
    ///
    /// # Errors
    /// A folder cannot be made, or the layers cannot be copied.
    pub fn root(&mut self) -> Result<StepRoot, SnapshotError> {
        if self.snapshots.backend()? == Backend::Overlay {
            return Ok(StepRoot::Overlay(self.mount()?));
        }
        let tree = match &self.tree {
            Some(tree) => tree,
            None => {
                let (snapshots, layers) = (&self.snapshots, &self.parents);
                let directories = snapshots.directories(layers);
                let wanted = snapshots.wanted(layers, &directories);
                let tree = snapshots.trees.take(wanted, || snapshots.scratch())?;
                trees::hand_over(&tree, &self.root, snapshots.has_single_id)?;
                self.tree.insert(tree)
            }
        };
        Ok(StepRoot::Tree(tree.path()))
    }

    /// What overlayfs needs to show the step its root, with the option `userxattr`.
    ///
    /// # Errors
    /// overlayfs's scratch directory cannot be made.
    pub fn mount(&mut self) -> Result<SnapshotMount, SnapshotError> {
        let work = match &self.work {
            Some(work) => work,
            None => self.work.insert(self.snapshots.scratch()?),
        };
        Ok(SnapshotMount {
            lower: self.lower.clone(),
            upper: self.upper.clone(),
            work: work.path().to_owned(),
        })
    }

    /// Makes a layer of what was written. Every mount of it must have ended.
    ///
    /// Files and directories that overlayfs copied up but that are as they were below are no change and left out.
    ///
    /// # Errors
    /// It cannot be read, or changes meanwhile.
    pub fn commit(mut self) -> Result<LayerInfo, SnapshotError> {
        let upper = open(self.upper())?;
        let kept = match self.tree.take() {
            Some(tree) => {
                let keep_own = self.snapshots.has_single_id;
                let kept = trees::write_changes(&tree, &self.lower, upper.as_fd(), keep_own)?;
                Some((tree, kept))
            }
            None => None,
        };
        self.state_root(upper.as_fd())
            .map_err(failed("read", self.upper()))?;
        prune::prune(upper.as_fd(), &self.lower).map_err(|error| {
            failed(
                "compare with the layers below",
                &self.upper().join(std::ffi::OsStr::from_bytes(&error.path)),
            )(error.errno)
        })?;
        let scan = scan(self.upper())?;
        let (snapshots, mut layers) = (self.snapshots.clone(), self.parents.clone());
        let layer = self.commit_scanned(scan)?;
        if let Some((tree, kept)) = kept {
            layers.push(layer.id);
            for folder in snapshots.trees.give(tree, layers, kept) {
                snapshots.reaper.take(Remains::Folder(folder));
            }
        }
        Ok(layer)
    }

    /// Makes a layer of what was written, for a writer that computed its identity while it wrote.
    ///
    /// `scan` must be what [`scan`] would say of the directory as it is.
    ///
    /// # Errors
    /// It cannot be published.
    pub fn commit_scanned(self, scan: Scan) -> Result<LayerInfo, SnapshotError> {
        let id = LayerId::Built(scan.id);
        if let Some(work) = self.work {
            self.snapshots.reaper.take(Remains::Folder(work));
        }
        self.snapshots.publish(self.scratch, &id)?;
        Ok(LayerInfo {
            id,
            tree: Some(scan.tree),
            diff_id: None,
            bytes: scan.bytes,
            entries: scan.entries,
        })
    }

    /// Drops what was written, and says if it cannot be removed, as a mere drop does not.
    ///
    /// # Errors
    /// It cannot be removed: a mount of it is still there, or the disk fails.
    pub fn discard(self) -> Result<(), SnapshotError> {
        let tree = self.tree.as_ref().map(Tree::folder);
        for folder in self.work.iter().chain([&self.scratch]).chain(tree) {
            fs::remove_tree(folder.path())?;
        }
        Ok(())
    }

    /// Marks the root as part of the layer if the step changed more of it than its time.
    fn state_root(&self, upper: BorrowedFd<'_>) -> Result<(), Errno> {
        let mut now = Metadata::of(&rustix::fs::fstat(upper)?);
        now.xattrs = read_xattrs(upper)?;
        now.mtime = self.root.mtime;
        if now != self.root {
            rustix::fs::fsetxattr(upper, ROOT_STATED, b"y", XattrFlags::empty())?;
        }
        Ok(())
    }
}

impl fmt::Debug for ActiveSnapshot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ActiveSnapshot")
            .field("upper", &self.upper)
            .field("lower", &self.lower)
            .finish_non_exhaustive()
    }
}

/// A merged tree to read, as a handle on its root directory.
#[derive(Debug)]
pub struct View {
    /// Only absent while it is dropped.
    root: Option<OwnedFd>,
    shows: Shows,
}

/// What a view is of.
#[derive(Debug)]
enum Shows {
    /// A mount of its own, which the reaper ends.
    Mount(Arc<Reaper>),
    /// A tree, kept while it is read.
    Tree(Reading),
    /// A directory that nobody changes.
    Directory(PathBuf),
}

impl View {
    /// Where it lies, if it is no mount: not to be written to.
    pub fn path(&self) -> Option<&Path> {
        match &self.shows {
            Shows::Mount(_) => None,
            Shows::Tree(tree) => Some(tree.path()),
            Shows::Directory(path) => Some(path),
        }
    }
}

impl AsFd for View {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_ref().expect("only drop takes it").as_fd()
    }
}

impl Drop for View {
    fn drop(&mut self) {
        if let (Some(root), Shows::Mount(reaper)) = (self.root.take(), &self.shows) {
            reaper.take(Remains::Mount(root));
        }
    }
}

/// A copy of some of a view; gone when it is dropped.
#[derive(Debug)]
pub struct Part {
    folder: TempDir,
}

impl Part {
    /// The file or directory.
    pub fn path(&self) -> PathBuf {
        self.folder.path().join("part")
    }
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(Errno) -> SnapshotError {
    let path = path.to_owned();
    move |source| SnapshotError::Io {
        action,
        path,
        source,
    }
}

fn open(path: &Path) -> Result<OwnedFd, SnapshotError> {
    open_directory(rustix::fs::CWD, path.as_os_str().as_bytes()).map_err(failed("open", path))
}

/// The root of an image that says nothing of it.
fn default_root() -> Metadata {
    Metadata {
        mode: 0o755,
        ..Metadata::default()
    }
}

fn set_root(directory: BorrowedFd<'_>, metadata: &Metadata) -> Result<(), Errno> {
    let (uid, gid) = (Uid::from_raw(metadata.uid), Gid::from_raw(metadata.gid));
    match rustix::fs::fchown(directory, Some(uid), Some(gid)) {
        // Without that id, who owns the store owns the root.
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(errno),
    }
    rustix::fs::fchmod(directory, Mode::from_raw_mode(metadata.mode))?;
    for (name, value) in &metadata.xattrs {
        if let Some(name) = stored(name) {
            rustix::fs::fsetxattr(directory, &name[..], value, XattrFlags::empty())?;
        }
    }
    rustix::fs::futimens(directory, &metadata.mtime.timestamps())
}

/// Whether this process can act for one user only, so that chown to others is impossible.
pub fn has_single_id() -> bool {
    if !may_chown() {
        return true;
    }
    let mut map = String::new();
    let read = std::fs::File::open("/proc/self/uid_map")
        .and_then(|mut file| file.read_to_string(&mut map));
    if read.is_err() {
        return false;
    }
    let mut counts = map
        .lines()
        .filter_map(|line| line.split_whitespace().nth(2));
    counts.next() == Some("1") && counts.next().is_none()
}

/// Decompresses on this thread, hashes on a second and writes on a third.
fn unpack_hashed(
    directory: &OwnedFd,
    expected: DiffId,
    tar: &mut dyn Read,
    options: &UnpackOptions,
) -> Result<(Unpacked, DiffId), SnapshotError> {
    let stream = |source| SnapshotError::Stream { expected, source };
    std::thread::scope(|scope| {
        let (to_hash, pieces) = sync_channel::<Arc<Vec<u8>>>(PIECES);
        let hasher = std::thread::Builder::new()
            .name("layer-hash".to_owned())
            .spawn_scoped(scope, move || {
                let mut hasher = Hasher::new(expected.0.algorithm());
                for piece in pieces {
                    hasher.update(&piece);
                }
                DiffId(hasher.finish())
            })
            .map_err(stream)?;
        let (to_write, pieces) = sync_channel::<io::Result<Arc<Vec<u8>>>>(PIECES);
        let writer = std::thread::Builder::new()
            .name("layer-unpack".to_owned())
            .spawn_scoped(scope, move || {
                unpack_into(directory, PieceReader::new(pieces), options)
            })
            .map_err(stream)?;
        let read = feed(tar, &to_hash, &to_write);
        let failure = match &read {
            Ok(()) => None,
            Err(error) => Some(io::Error::new(error.kind(), error.to_string())),
        };
        if let Some(failure) = failure {
            // Without this the writer would take a broken stream for one that has ended.
            let _ = to_write.send(Err(failure));
        }
        drop((to_hash, to_write));
        let unpacked = writer.join().expect("unpacking does not panic");
        let actual = hasher.join().expect("hashing does not panic");
        // The stream's own error is the cause of the writer's.
        read.map_err(stream)?;
        Ok((unpacked?, actual))
    })
}

/// Passes the decompressed stream on; stops quietly when the writer has.
fn feed(
    tar: &mut dyn Read,
    to_hash: &SyncSender<Arc<Vec<u8>>>,
    to_write: &SyncSender<io::Result<Arc<Vec<u8>>>>,
) -> io::Result<()> {
    let mut tar = decompressor(tar)?;
    loop {
        let mut piece = Vec::with_capacity(PIECE_BYTES);
        (&mut tar)
            .take(PIECE_BYTES as u64)
            .read_to_end(&mut piece)?;
        if piece.is_empty() {
            return Ok(());
        }
        let piece = Arc::new(piece);
        if to_hash.send(Arc::clone(&piece)).is_err() || to_write.send(Ok(piece)).is_err() {
            return Ok(());
        }
    }
}

/// Reads the pieces that another thread sends.
struct PieceReader {
    pieces: Receiver<io::Result<Arc<Vec<u8>>>>,
    piece: Arc<Vec<u8>>,
    at: usize,
}

impl PieceReader {
    fn new(pieces: Receiver<io::Result<Arc<Vec<u8>>>>) -> PieceReader {
        PieceReader {
            pieces,
            piece: Arc::new(Vec::new()),
            at: 0,
        }
    }
}

impl Read for PieceReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.piece.len() {
            match self.pieces.recv() {
                Ok(piece) => {
                    self.piece = piece?;
                    self.at = 0;
                }
                // The sender is done.
                Err(_) => return Ok(0),
            }
        }
        let rest = &self.piece[self.at..];
        let count = rest.len().min(buffer.len());
        buffer[..count].copy_from_slice(&rest[..count]);
        self.at += count;
        Ok(count)
    }
}
