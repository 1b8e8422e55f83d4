//! Checking a whole store: every name against what it refers to, and every byte that has a digest against it.
//!
//! ```text
//! index.db ── rows ──► blobs/, layers/, builds/        does what a row names stand?
//! blobs/, layers/ ─── bytes ──► their names            do they hold what they are called?
//! images ─► config, manifest ─► layers                 can an image still be run, saved and pushed?
//! tmp/, sessions/, locks/, leases, mounts              is anything left of processes that died?
//! ```
//!
//! Something *wrong* makes a command fail or, worse, succeed with other bytes. A *leftover* only takes space until the next
//! collection: what a killed process leaves is no damage. A store may be checked while others use it: whatever looks wrong is
//! looked at again before it is told. [`repair`] drops what is wrong, so that the next build or pull makes it again.

use std::path::{Path, PathBuf};

use rusqlite::Connection;

use crate::content::ContentError;
use crate::content::gc::STAMP_SLACK;
use crate::fs;
use crate::history::BuildId;
use crate::images::{ImageError, ImageId};
use crate::index::{Index, IndexError, parse};
use crate::layer::scan::{Scan, scan};
use crate::layer::{LayerId, LayerInfo};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Descriptor, DiffId, Digest, RawManifest};
use crate::{Store, StoreError};

pub mod repair;

/// Where the kernel lists this process's mounts.
const MOUNTS: &str = "/proc/self/mountinfo";

/// Most bytes of that list that are read.
const MOUNTS_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Most bytes of the list of a container's layers that are read.
const LAYERS_BYTES_MAX: u64 = 16 << 20;

/// How much a check reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Names and sizes only.
    Names,
    /// Every byte of every blob and layer too.
    Bytes,
}

/// Something that a check found.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// SQLite finds its file inconsistent.
    #[error("the index is damaged: {what}")]
    IndexDamaged {
        /// In SQLite's words.
        what: String,
    },
    /// A blob's bytes do not have its digest.
    #[error("blob `{digest}` is damaged: its content has digest `{found}`")]
    BlobDamaged {
        /// Its name.
        digest: Digest,
        /// The digest of what it holds.
        found: Digest,
    },
    /// The index lists a blob that has no file.
    #[error("the index lists the blob `{digest}`, which has no file")]
    BlobFileMissing {
        /// Which blob.
        digest: Digest,
    },
    /// The index lists a layer that has no directory.
    #[error("the index lists the layer `{id}`, which has no directory")]
    LayerDirectoryMissing {
        /// Which layer.
        id: LayerId,
    },
    /// A layer's files are not those that it had.
    #[error("layer `{id}` is damaged: {reason}")]
    LayerDamaged {
        /// Which layer.
        id: LayerId,
        /// What is not as it was.
        reason: String,
    },
    /// A blob is noted as a layer's compressed form and holds something else.
    #[error("blob `{digest}` is noted as a form of the layer `{diff_id}` and is none")]
    FormWrong {
        /// The layer.
        diff_id: DiffId,
        /// The blob.
        digest: Digest,
    },
    /// An image's config or manifest is missing.
    #[error("image `{image}` needs the blob `{digest}`, which is missing")]
    BlobMissing {
        /// Which image.
        image: ImageId,
        /// The blob.
        digest: Digest,
    },
    /// An image's manifest does not belong to it.
    #[error("image `{image}` has the manifest `{digest}`, which does not fit it: {reason}")]
    ManifestWrong {
        /// Which image.
        image: ImageId,
        /// The manifest.
        digest: Digest,
        /// Why not.
        reason: String,
    },
    /// An image's layer is there neither unpacked nor compressed, and no registry is known to have it.
    #[error("image `{image}` needs the layer `{diff_id}`, which is missing")]
    LayerMissing {
        /// Which image.
        image: ImageId,
        /// The layer.
        diff_id: DiffId,
    },
    /// Of a layer that came as a tar only the directory is there: the image can be run, not pushed or saved.
    #[error(
        "image `{image}` needs the tar of the layer `{diff_id}`, of which only the files are here"
    )]
    TarMissing {
        /// Which image.
        image: ImageId,
        /// The layer.
        diff_id: DiffId,
    },
    /// A cache mount that no step could use.
    #[error("cache mount `{name}` has no {missing}")]
    CacheMountBroken {
        /// Its directory's name.
        name: String,
        /// What it lacks: `data` or `info`.
        missing: &'static str,
    },
    /// A container that cannot be started.
    #[error("container `{id}` {reason}")]
    ContainerBroken {
        /// Its id.
        id: String,
        /// What is wrong with it.
        reason: String,
    },
    /// A volume that no container could use.
    #[error("volume `{name}` has no {missing}")]
    VolumeBroken {
        /// Its name.
        name: String,
        /// What it lacks.
        missing: &'static str,
    },
    /// A git repository that is none.
    #[error("git repository `{name}` has no HEAD")]
    GitMirrorBroken {
        /// Its directory's name.
        name: String,
    },
    /// The index lists a build that has no journal.
    #[error("the index lists the build `{id}`, which has no journal")]
    JournalMissing {
        /// Which build.
        id: BuildId,
    },
    /// A mount below the store, where there is never one: sandboxes have their mounts to themselves.
    #[error("a mount was left at `{}`", path.display())]
    MountLeft {
        /// Where.
        path: PathBuf,
    },
    /// A layer without a row: published by a process that was killed at once.
    #[error("layer `{id}` is not in the index")]
    LayerUnlisted {
        /// Which layer.
        id: LayerId,
    },
    /// A blob without a row.
    #[error("blob `{digest}` is not in the index")]
    BlobUnlisted {
        /// Which blob.
        digest: Digest,
    },
    /// Something in `tmp/` that no live process holds.
    #[error("temporary `{name}` belongs to no process")]
    TemporaryLeft {
        /// Its name there.
        name: String,
    },
    /// The file of a session whose process is gone.
    #[error("session `{name}` belongs to no process")]
    SessionLeft {
        /// Its name.
        name: String,
    },
    /// The file of a lock that nobody holds.
    #[error("lock `{name}` is held by no process")]
    LockLeft {
        /// Its name.
        name: String,
    },
    /// A lease whose time is over.
    #[error("lease `{id}` has ended")]
    LeaseOver {
        /// Its name.
        id: String,
    },
    /// A file that no store put there.
    #[error("`{}` is not longshore's", path.display())]
    Foreign {
        /// Where, below the root.
        path: PathBuf,
    },
}

impl Problem {
    /// Whether it only takes space until the next collection; everything else is wrong.
    pub fn is_leftover(&self) -> bool {
        matches!(
            self,
            Problem::LayerUnlisted { .. }
                | Problem::BlobUnlisted { .. }
                | Problem::TemporaryLeft { .. }
                | Problem::SessionLeft { .. }
                | Problem::LockLeft { .. }
                | Problem::LeaseOver { .. }
                | Problem::Foreign { .. }
        )
    }

    /// Its kind as one lower-case word, for programs.
    pub fn kind(&self) -> &'static str {
        match self {
            Problem::IndexDamaged { .. } => "index-damaged",
            Problem::BlobDamaged { .. } => "blob-damaged",
            Problem::BlobFileMissing { .. } => "blob-file-missing",
            Problem::LayerDirectoryMissing { .. } => "layer-directory-missing",
            Problem::LayerDamaged { .. } => "layer-damaged",
            Problem::FormWrong { .. } => "form-wrong",
            Problem::BlobMissing { .. } => "blob-missing",
            Problem::ManifestWrong { .. } => "manifest-wrong",
            Problem::LayerMissing { .. } => "layer-missing",
            Problem::TarMissing { .. } => "tar-missing",
            Problem::CacheMountBroken { .. } => "cache-mount-broken",
            Problem::ContainerBroken { .. } => "container-broken",
            Problem::VolumeBroken { .. } => "volume-broken",
            Problem::GitMirrorBroken { .. } => "git-mirror-broken",
            Problem::JournalMissing { .. } => "journal-missing",
            Problem::MountLeft { .. } => "mount-left",
            Problem::LayerUnlisted { .. } => "layer-unlisted",
            Problem::BlobUnlisted { .. } => "blob-unlisted",
            Problem::TemporaryLeft { .. } => "temporary-left",
            Problem::SessionLeft { .. } => "session-left",
            Problem::LockLeft { .. } => "lock-left",
            Problem::LeaseOver { .. } => "lease-over",
            Problem::Foreign { .. } => "foreign",
        }
    }

    /// The path that it is about, below the store's root (a mount's is absolute).
    pub fn path(&self) -> PathBuf {
        let blob = |digest: &Digest| {
            Path::new("blobs")
                .join(digest.algorithm().name())
                .join(digest.hex())
        };
        let layer = |id: &LayerId| Path::new("layers").join(id.to_string());
        match self {
            Problem::BlobDamaged { digest, .. }
            | Problem::BlobFileMissing { digest }
            | Problem::BlobMissing { digest, .. }
            | Problem::ManifestWrong { digest, .. }
            | Problem::FormWrong { digest, .. }
            | Problem::BlobUnlisted { digest } => blob(digest),
            Problem::LayerDirectoryMissing { id }
            | Problem::LayerDamaged { id, .. }
            | Problem::LayerUnlisted { id } => layer(id),
            Problem::LayerMissing { diff_id, .. } | Problem::TarMissing { diff_id, .. } => {
                layer(&LayerId::Unpacked(*diff_id))
            }
            Problem::CacheMountBroken { name, .. } => Path::new("cache-mounts").join(name),
            Problem::ContainerBroken { id, .. } => Path::new("containers").join(id),
            Problem::VolumeBroken { name, .. } => Path::new("volumes").join(name),
            Problem::GitMirrorBroken { name } => Path::new("git").join(name),
            Problem::JournalMissing { id } => Path::new("builds").join(id.as_str()),
            Problem::TemporaryLeft { name } => Path::new("tmp").join(name),
            Problem::SessionLeft { name } => Path::new("sessions").join(name),
            Problem::LockLeft { name } => Path::new("locks").join(name),
            Problem::MountLeft { path } | Problem::Foreign { path } => path.clone(),
            Problem::IndexDamaged { .. } | Problem::LeaseOver { .. } => PathBuf::from("index.db"),
        }
    }
}

/// What a check looked at, and found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// Blobs, with their bytes where these were read.
    pub blobs: u64,
    /// Layers.
    pub layers: u64,
    /// Images.
    pub images: u64,
    /// Bytes of blobs and of layers' files that were read.
    pub bytes: u64,
    /// What was found, in order of kinds.
    pub problems: Vec<Problem>,
}

impl Store {
    /// Everything that is wrong, bytes included; no leftovers.
    pub fn check(&self) -> Result<Vec<Problem>, StoreError> {
        let mut problems = self.examine(Depth::Bytes)?.problems;
        problems.retain(|problem| !problem.is_leftover());
        Ok(problems)
    }

    /// Looks at everything, beside whoever uses the store.
    pub fn examine(&self, depth: Depth) -> Result<Checked, StoreError> {
        let mut checked = Checked::default();
        self.check_index(&mut checked)?;
        self.check_blobs(depth, &mut checked)?;
        self.check_layers(depth, &mut checked)?;
        checked.images = self.index.read(count_images)?;
        checked.problems.extend(self.check_images()?);
        self.check_folders(&mut checked.problems)?;
        self.check_leftovers(&mut checked.problems)?;
        checked.problems.sort();
        checked.problems.dedup();
        Ok(checked)
    }

    fn check_index(&self, checked: &mut Checked) -> Result<(), StoreError> {
        let said = self.index.read(|c| {
            let mut said: Vec<String> = Vec::new();
            let mut statement = c.prepare("PRAGMA integrity_check(10)")?;
            for line in statement.query_map([], |row| row.get::<_, String>(0))? {
                said.extend(Some(line?).filter(|line| line != "ok"));
            }
            let mut statement = c.prepare("PRAGMA foreign_key_check")?;
            let mut rows = statement.query([])?;
            while let Some(row) = rows.next()? {
                let (table, parent): (String, String) = (row.get(0)?, row.get(2)?);
                said.push(format!("a row of {table} belongs to none of {parent}"));
            }
            Ok(said)
        })?;
        let damaged = said.into_iter().map(|what| Problem::IndexDamaged { what });
        checked.problems.extend(damaged);
        Ok(())
    }

    fn check_blobs(&self, depth: Depth, checked: &mut Checked) -> Result<(), StoreError> {
        for digest in self.blobs.list()? {
            checked.blobs += 1;
            if depth == Depth::Names {
                continue;
            }
            match self.blobs.verify(&digest) {
                Ok(blob) => checked.bytes += blob.size(),
                // A collection took it meanwhile.
                Err(ContentError::Missing { .. }) => {}
                Err(ContentError::DigestMismatch { found, .. }) => {
                    let damaged = Problem::BlobDamaged { digest, found };
                    checked.problems.push(damaged);
                }
                Err(error) => return Err(error.into()),
            }
        }
        for digest in self.index.read(|c| texts(c, "SELECT digest FROM blobs"))? {
            if fs::file_size(&self.blobs.path(&digest))?.is_none()
                && self.index.has_blob_row(&digest)?
                && fs::file_size(&self.blobs.path(&digest))?.is_none()
            {
                checked.problems.push(Problem::BlobFileMissing { digest });
            }
        }
        Ok(())
    }

    fn check_layers(&self, depth: Depth, checked: &mut Checked) -> Result<(), StoreError> {
        for layer in self.index.layers()? {
            checked.layers += 1;
            let problem = match depth {
                _ if !fs::is_dir(&self.layer_path(&layer.id))? => {
                    Some(Problem::LayerDirectoryMissing { id: layer.id })
                }
                Depth::Names => None,
                Depth::Bytes => {
                    checked.bytes += layer.bytes;
                    self.check_layer(&layer)?
                }
            };
            // The row is looked for again: a collection may have taken both meanwhile.
            if let Some(problem) = problem
                && self.index.has_layer_row(&layer.id)?
            {
                checked.problems.push(problem);
            }
        }
        Ok(())
    }

    /// Reads a layer's files and compares them with its name, or with the tar that it came as.
    pub(crate) fn check_layer(&self, layer: &LayerInfo) -> Result<Option<Problem>, StoreError> {
        let id = layer.id;
        let damaged = |reason: String| Ok(Some(Problem::LayerDamaged { id, reason }));
        let found = match scan(&self.snapshots.layer_dir(&id)) {
            Ok(found) => found,
            Err(error) => {
                let source = &error.source;
                return damaged(format!(
                    "cannot {} `{}`: {source}",
                    error.action, error.path
                ));
            }
        };
        match id {
            LayerId::Built(name) if name != found.id => {
                let found = LayerId::Built(found.id);
                return damaged(format!("its files make `{found}`"));
            }
            LayerId::Built(_) => {}
            LayerId::Unpacked(diff_id) => {
                if let Some(problem) = self.check_against_tar(&diff_id, &found)? {
                    return Ok(Some(problem));
                }
            }
        }
        if layer.tree.is_some_and(|tree| tree != found.tree) {
            return damaged(format!("its tree has digest `{}`", found.tree));
        }
        if (found.bytes, found.entries) != (layer.bytes, layer.entries) {
            return damaged(format!(
                "it has {} bytes in {} entries, the index says {} in {}",
                found.bytes, found.entries, layer.bytes, layer.entries
            ));
        }
        Ok(None)
    }

    /// Unpacks the layer's tar once more, if that is here, and compares.
    fn check_against_tar(
        &self,
        diff_id: &DiffId,
        found: &Scan,
    ) -> Result<Option<Problem>, StoreError> {
        for form in self.whole_forms(diff_id)? {
            let digest = form.digest;
            let (mut file, _) = match self.blobs.open(&digest) {
                Err(ContentError::Missing { .. }) => continue,
                opened => opened?,
            };
            let Ok((dir, actual)) = self.snapshots.unpack_aside(*diff_id, &mut file) else {
                // What is wrong with the blob is told of the blob, unless it has its digest.
                if self.blobs.verify(&digest).is_ok() {
                    return Ok(Some(Problem::FormWrong {
                        diff_id: *diff_id,
                        digest,
                    }));
                }
                continue;
            };
            if actual != *diff_id {
                if self.blobs.verify(&digest).is_ok() {
                    return Ok(Some(Problem::FormWrong {
                        diff_id: *diff_id,
                        digest,
                    }));
                }
                continue;
            }
            let fresh =
                scan(&dir.path().join("fs")).map_err(crate::snapshot::SnapshotError::from)?;
            let same = fresh == *found;
            return Ok((!same).then(|| Problem::LayerDamaged {
                id: LayerId::Unpacked(*diff_id),
                reason: "its files are not those of its tar".to_owned(),
            }));
        }
        Ok(None)
    }

    /// The blobs noted for a DiffID whose file stands, the cheapest to read first. Marks none as used.
    fn whole_forms(&self, diff_id: &DiffId) -> Result<Vec<Descriptor>, StoreError> {
        let mut found = Vec::new();
        for (_, form) in self.index.compressed(diff_id)? {
            if fs::file_size(&self.blobs.path(&form.digest))?.is_some() {
                found.push(form);
            }
        }
        found.sort_by_key(|form| form.size);
        Ok(found)
    }

    /// Whether every image has its config, the manifest it was given and its layers.
    pub(crate) fn check_images(&self) -> Result<Vec<Problem>, StoreError> {
        let mut problems = Vec::new();
        for (image, manifest) in self.index.read(image_documents)? {
            for digest in [Some(image.0), manifest].into_iter().flatten() {
                if fs::file_size(&self.blobs.path(&digest))?.is_none() {
                    problems.push(Problem::BlobMissing { image, digest });
                }
            }
            if let Some(digest) = manifest
                && let Some(reason) = self.misfit(image, &digest)?
            {
                problems.push(Problem::ManifestWrong {
                    image,
                    digest,
                    reason,
                });
            }
        }
        for (image, diff_id) in self.index.read(image_layers)? {
            match self.whereabouts(&diff_id)? {
                Whereabouts::Whole => {}
                Whereabouts::FilesOnly => problems.push(Problem::TarMissing { image, diff_id }),
                Whereabouts::Nowhere => problems.push(Problem::LayerMissing { image, diff_id }),
            }
        }
        // Of an image that was removed meanwhile nothing is wrong.
        let images = self.index.read(image_documents)?;
        let stands = |image: &ImageId| images.iter().any(|(known, _)| known == image);
        problems.retain(|problem| match problem {
            Problem::BlobMissing { image, .. }
            | Problem::ManifestWrong { image, .. }
            | Problem::LayerMissing { image, .. }
            | Problem::TarMissing { image, .. } => stands(image),
            _ => true,
        });
        problems.sort();
        problems.dedup();
        Ok(problems)
    }

    /// Why a manifest that is here is not the image's.
    fn misfit(&self, image: ImageId, digest: &Digest) -> Result<Option<String>, StoreError> {
        let bytes = match self.blobs.read(digest, crate::MANIFEST_BYTES_MAX as u64) {
            // Told of the blob.
            Err(ContentError::Missing { .. } | ContentError::DigestMismatch { .. }) => {
                return Ok(None);
            }
            read => read?,
        };
        let manifest = match RawManifest::parse(bytes, None) {
            Ok(manifest) => manifest,
            Err(error) => return Ok(Some(error.to_string())),
        };
        let ParsedManifest::Image(parsed) = manifest.parsed() else {
            return Ok(Some("it is an index".to_owned()));
        };
        if parsed.config.digest != image.0 {
            let config = parsed.config.digest;
            return Ok(Some(format!("its config is `{config}`")));
        }
        let layers = match self.images.config(&image) {
            Ok(config) => config.rootfs.diff_ids.len(),
            Err(ImageError::Missing { .. } | ImageError::Content(_)) => return Ok(None),
            Err(error) => return Ok(Some(error.to_string())),
        };
        Ok((parsed.layers.len() != layers).then(|| {
            let found = parsed.layers.len();
            format!("it has {found} layers, the config {layers}")
        }))
    }

    fn whereabouts(&self, diff_id: &DiffId) -> Result<Whereabouts, StoreError> {
        let forms = self.index.compressed(diff_id)?;
        for (_, form) in &forms {
            if fs::file_size(&self.blobs.path(&form.digest))?.is_some()
                || !self.index.sources(&form.digest)?.is_empty()
            {
                return Ok(Whereabouts::Whole);
            }
        }
        Ok(match self.index.read(|c| layer_names(c, diff_id))? {
            ids if ids.iter().any(|id| matches!(id, LayerId::Built(_))) => Whereabouts::Whole,
            ids if ids.is_empty() => Whereabouts::Nowhere,
            _ => Whereabouts::FilesOnly,
        })
    }

    /// What is in the folders whose content has no rows.
    fn check_folders(&self, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
        for row in self.cache_mounts()? {
            let path = self.cache_mounts_path().join(&row.name);
            let missing = if !fs::is_dir(&path.join("data"))? {
                Some("data")
            } else if row.id.is_empty() {
                Some("info")
            } else {
                None
            };
            if let Some(missing) = missing
                && fs::is_dir(&path)?
            {
                let name = row.name;
                problems.push(Problem::CacheMountBroken { name, missing });
            }
        }
        for (id, folder) in self.container_folders()? {
            if let Some(reason) = self.container_fault(&folder)?
                && fs::is_dir(&folder)?
            {
                problems.push(Problem::ContainerBroken { id, reason });
            }
        }
        for (name, folder) in self.volume_folders()? {
            let parts = [
                ("files", fs::is_dir(&folder.join("_data"))?),
                ("record", fs::exists(&folder.join("about"))?),
            ];
            if let Some((missing, _)) = parts.into_iter().find(|(_, is_there)| !is_there)
                && fs::is_dir(&folder)?
            {
                problems.push(Problem::VolumeBroken { name, missing });
            }
        }
        for row in self.mirrors()? {
            let path = self.mirrors_path().join(&row.name);
            if !fs::exists(&path.join("HEAD"))? && fs::is_dir(&path)? {
                problems.push(Problem::GitMirrorBroken { name: row.name });
            }
        }
        let history = self.history();
        for row in history.rows()? {
            // The row goes first.
            if history.open(&row.id)?.is_none() && history.row(&row.id)?.is_some() {
                problems.push(Problem::JournalMissing { id: row.id });
            }
        }
        let mounts = fs::optional(fs::read(Path::new(MOUNTS), MOUNTS_BYTES_MAX))?;
        let mounts = mounts.unwrap_or_default();
        let root = self
            .root
            .canonicalize()
            .unwrap_or_else(|_| self.root.clone());
        let left = mounts_below(&String::from_utf8_lossy(&mounts), &root);
        problems.extend(left.into_iter().map(|path| Problem::MountLeft { path }));
        Ok(())
    }

    /// Why the container in a folder could not be started, as far as the store knows.
    fn container_fault(&self, folder: &Path) -> Result<Option<String>, StoreError> {
        for name in ["config", "name", "image"] {
            if !fs::exists(&folder.join(name))? {
                return Ok(Some(format!("has no {name}")));
            }
        }
        if !fs::is_dir(&folder.join("fs"))? {
            return Ok(Some("has no files".to_owned()));
        }
        let layers = fs::optional(fs::read(&folder.join("image"), LAYERS_BYTES_MAX))?;
        let text = String::from_utf8(layers.unwrap_or_default()).unwrap_or_default();
        for line in text.lines() {
            let Ok(layer) = line.parse::<LayerId>() else {
                return Ok(Some(format!("names `{line}`, which is no layer")));
            };
            if !fs::is_dir(&self.root.join("layers").join(layer.to_string()))? {
                return Ok(Some(format!("needs the layer `{layer}`, which is missing")));
            }
        }
        Ok(None)
    }

    fn check_leftovers(&self, problems: &mut Vec<Problem>) -> Result<(), StoreError> {
        let before = self.sessions.oldest_live()?;
        let is_old = |path: &Path| -> Result<bool, fs::FsError> {
            Ok(fs::changed_micros(path)?.is_some_and(|changed| changed < before - STAMP_SLACK))
        };
        for name in fs::list(&self.root.join("layers"))? {
            let path = Path::new("layers").join(&name);
            match name.parse::<LayerId>() {
                Ok(id) => {
                    if !self.index.has_layer_row(&id)? && is_old(&self.root.join(&path))? {
                        problems.push(Problem::LayerUnlisted { id });
                    }
                }
                Err(_) => problems.push(Problem::Foreign { path }),
            }
        }
        for digest in self.blobs.list()? {
            if !self.index.has_blob_row(&digest)? && is_old(&self.blobs.path(&digest))? {
                problems.push(Problem::BlobUnlisted { digest });
            }
        }
        for algorithm in fs::list(&self.root.join("blobs"))? {
            let folder = Path::new("blobs").join(&algorithm);
            for name in fs::list(&self.root.join(&folder))? {
                if format!("{algorithm}:{name}").parse::<Digest>().is_err() {
                    let path = folder.join(name);
                    problems.push(Problem::Foreign { path });
                }
            }
        }
        let left = |folder: &str| -> Result<Vec<String>, StoreError> {
            let folder = self.root.join(folder);
            let stale = fs::temp::stale_before(&folder, 0)?;
            let names = stale.iter().filter_map(|path| path.file_name()?.to_str());
            Ok(names.map(str::to_owned).collect())
        };
        let names = left("tmp")?.into_iter();
        problems.extend(names.map(|name| Problem::TemporaryLeft { name }));
        let names = left("sessions")?.into_iter();
        problems.extend(names.map(|name| Problem::SessionLeft { name }));
        let names = left("locks")?.into_iter();
        problems.extend(names.map(|name| Problem::LockLeft { name }));
        let now = self.clock().now_micros() / 1_000_000;
        // Those of failed steps end by themselves, and the next collection removes them.
        let over =
            format!("SELECT id FROM leases WHERE expires <= {now} AND id NOT GLOB 'failed:*'");
        let over: Vec<String> = self.index.read(|c| texts(c, &over))?;
        problems.extend(over.into_iter().map(|id| Problem::LeaseOver { id }));
        Ok(())
    }
}

/// Where an image's layer is.
enum Whereabouts {
    /// Here in a form from which every other can be made, or in a registry that is known.
    Whole,
    /// Unpacked, from a tar that is gone.
    FilesOnly,
    Nowhere,
}

/// The mount points below `root` in a `mountinfo`, and those of overlays whose directories are there.
fn mounts_below(text: &str, root: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = Vec::new();
    let root_text = format!("{}/", root.display());
    for line in text.lines() {
        let Some((fields, options)) = line.split_once(" - ") else {
            continue;
        };
        let Some(place) = fields.split(' ').nth(4) else {
            continue;
        };
        let place = PathBuf::from(unescape(place));
        let is_below = place.starts_with(root) && place != *root;
        // Lower directories are listed one after the other, each after a `=` or a `:`.
        let options = unescape(options);
        let is_ours = options.starts_with("overlay ")
            && ["=", ":"]
                .iter()
                .any(|before| options.contains(&format!("{before}{root_text}")));
        if is_below || is_ours {
            found.push(place);
        }
    }
    found.sort();
    found
}

/// Undoes the octal escapes (`\040` is a blank) of `mountinfo`.
fn unescape(text: &str) -> String {
    let mut plain = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let byte = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match byte.filter(u8::is_ascii) {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain.push_str(rest);
    plain
}

fn count_images(c: &Connection) -> rusqlite::Result<u64> {
    let count = c.query_row("SELECT count(*) FROM images", [], |row| {
        row.get::<_, i64>(0)
    })?;
    Ok(count.cast_unsigned())
}

/// Each image with its manifest.
fn image_documents(c: &Connection) -> rusqlite::Result<Vec<(ImageId, Option<Digest>)>> {
    let mut statement = c.prepare("SELECT id, manifest FROM images ORDER BY id")?;
    let rows = statement.query_map([], |row| {
        let manifest: Option<String> = row.get(1)?;
        let manifest = manifest.map(|text| parse("images.manifest", &text));
        Ok((
            parse("images.id", row.get_ref(0)?.as_str()?)?,
            manifest.transpose()?,
        ))
    })?;
    rows.collect()
}

fn image_layers(c: &Connection) -> rusqlite::Result<Vec<(ImageId, DiffId)>> {
    let mut statement =
        c.prepare("SELECT DISTINCT image, diff_id FROM image_layers ORDER BY image, position")?;
    let rows = statement.query_map([], |row| {
        Ok((
            parse("image_layers.image", row.get_ref(0)?.as_str()?)?,
            DiffId(parse("image_layers.diff_id", row.get_ref(1)?.as_str()?)?),
        ))
    })?;
    rows.collect()
}

/// The layers that are a DiffID's, by either of their names.
fn layer_names(c: &Connection, diff_id: &DiffId) -> rusqlite::Result<Vec<LayerId>> {
    let mut statement = c.prepare_cached("SELECT id FROM layers WHERE diff_id = ?1 OR id = ?2")?;
    let names = (diff_id.to_string(), LayerId::Unpacked(*diff_id).to_string());
    let rows = statement.query_map(names, |row| parse("layers.id", row.get_ref(0)?.as_str()?))?;
    rows.collect()
}

fn texts<T: std::str::FromStr>(c: &Connection, sql: &str) -> rusqlite::Result<Vec<T>> {
    let mut statement = c.prepare(sql)?;
    let rows = statement.query_map([], |row| parse("index", row.get_ref(0)?.as_str()?))?;
    rows.collect()
}

impl Index {
    pub(crate) fn has_layer_row(&self, id: &LayerId) -> Result<bool, IndexError> {
        self.read(|c| layer_row(c, id))
    }

    pub(crate) fn has_blob_row(&self, digest: &Digest) -> Result<bool, IndexError> {
        self.read(|c| blob_row(c, digest))
    }
}

pub(crate) fn layer_row(c: &Connection, id: &LayerId) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT 1 FROM layers WHERE id = ?1")?
        .exists([id.to_string()])
}

pub(crate) fn blob_row(c: &Connection, digest: &Digest) -> rusqlite::Result<bool> {
    c.prepare_cached("SELECT 1 FROM blobs WHERE digest = ?1")?
        .exists([digest.to_string()])
}

#[cfg(test)]
mod tests;
