//! Images as archives: what OCI layouts and Docker's own format share.
//!
//! ```text
//! save: images ─► documents and blobs ─► Output: a tar, or a directory
//! load: stream ─► decompress ─► tar ─► Collected: documents in memory, everything else ingested ─► layout, docker_archive
//! ```
//!
//! A tar comes in any order, so everything in it that is not one of the few small documents is taken in as a blob under the digest it
//! *has*. What the documents then say is only believed of blobs that have the digest they name; an archive that fails
//! leaves blobs that nothing names, which the next collection removes. Paths from an archive are looked up in a map and never reach the
//! file system.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::ContentError;
use super::local::{Blobs, VerifiedBlob};
use crate::fs::{self, TempFile};
use crate::images::ImageId;
use crate::layer::compress::{CompressionChoice, decompressor};
use crate::layer::tar::header::{self, Block};
use crate::layer::tar::read::{Entry, Kind, ReadError, Reader};
use crate::oci::{Digest, DigestError, ManifestError, Reference};
use crate::{Store, StoreError};

/// Longest document (`index.json`, `manifest.json`) that is read, in bytes.
pub(crate) const DOCUMENT_BYTES_MAX: u64 = crate::MANIFEST_BYTES_MAX as u64;

/// Most entries that an archive may have.
const ENTRIES_MAX: usize = 100_000;

/// Longest path in an archive, in bytes.
const PATH_BYTES_MAX: usize = 1024;

/// Symlinks followed from one name.
const LINKS_MAX: usize = 16;

const CHUNK: usize = 256 * 1024;

/// Which archive is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArchiveFormat {
    /// An OCI image layout, as `skopeo`'s `oci-archive:` and `oci:`; and how its layers are compressed.
    Oci(CompressionChoice),
    /// What `docker save` writes and `docker load` reads, and an OCI layout as well.
    Docker,
}

impl ArchiveFormat {
    /// An OCI image layout with layers as they are.
    pub const OCI: ArchiveFormat = ArchiveFormat::Oci(CompressionChoice::AS_THEY_ARE);
}

/// An image to save, with the names it is to have in the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SavedImage {
    /// Which image.
    pub id: ImageId,
    /// Its names; may be empty.
    pub names: Vec<Reference>,
}

/// An image that was loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoadedImage {
    /// Which image.
    pub id: ImageId,
    /// The names it got, sorted; none if the archive has none for it.
    pub names: Vec<Reference>,
}

/// Why an archive could not be written or read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ArchiveError {
    /// Neither kind of archive.
    #[error(
        "this is no image archive: expected `index.json` (OCI layout) or `manifest.json` (docker save) in it"
    )]
    NotAnArchive,
    /// A path that would lead out of the archive, or that is too long.
    #[error("bad path `{path}` in the archive: {reason}")]
    BadPath {
        /// The path, clipped.
        path: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// Two entries with one path and different content.
    #[error("the archive has two different entries `{path}`")]
    Twice {
        /// The path.
        path: String,
    },
    /// More entries than are taken.
    #[error("the archive has more than {max} entries")]
    TooManyEntries {
        /// The limit.
        max: usize,
    },
    /// Something that is no file, directory or link.
    #[error("`{path}` in the archive is a device or pipe: expected files and directories")]
    BadEntry {
        /// Its path.
        path: String,
    },
    /// A document that is too long.
    #[error("`{path}` in the archive has {size} bytes: at most {max} are taken")]
    DocumentTooLarge {
        /// Its path.
        path: String,
        /// Its size.
        size: u64,
        /// The limit.
        max: u64,
    },
    /// A document that is not JSON of the right shape.
    #[error("`{path}` in the archive is not valid")]
    BadDocument {
        /// Its path.
        path: String,
        /// Why.
        source: serde_json::Error,
    },
    /// A manifest in the archive that is none.
    #[error("manifest `{digest}` in the archive is not valid")]
    BadManifest {
        /// Its digest.
        digest: crate::oci::Digest,
        /// Why.
        source: ManifestError,
    },
    /// A document names what is not there.
    #[error("`{wanted}` is missing in the archive; `{by}` names it")]
    MissingEntry {
        /// What is missing: a path or a digest.
        wanted: String,
        /// The document that names it.
        by: String,
    },
    /// A layout of a version that is not known.
    #[error("the layout has version `{found}`, expected 1.x")]
    LayoutVersion {
        /// Its version, clipped.
        found: String,
    },
    /// A layout without the image that is asked for.
    #[error("the layout `{}` has no image `{wanted}`: {}", path.display(), known_images(known))]
    NotInLayout {
        /// The layout.
        path: PathBuf,
        /// `:tag` or `@digest`.
        wanted: String,
        /// What it has, in the same form.
        known: Vec<String>,
    },
    /// A document contradicts itself or another.
    #[error("`{path}` in the archive: {reason}")]
    Inconsistent {
        /// The document.
        path: String,
        /// What does not fit.
        reason: String,
    },
    /// A blob's path is no digest.
    #[error("`{path}` in the archive is not a blob's path")]
    BadBlobPath {
        /// The path.
        path: String,
        /// Why.
        source: DigestError,
    },
    /// The tar cannot be read.
    #[error(transparent)]
    Tar(#[from] ReadError),
    /// The stream fails.
    #[error("cannot read the archive")]
    Read {
        /// Why.
        source: io::Error,
    },
    /// The archive cannot be written.
    #[error("cannot write the archive")]
    Write {
        /// Why.
        source: io::Error,
    },
}

impl Store {
    /// Writes images as one tar to `out`. Equal images give equal bytes.
    pub fn save(
        &self,
        images: &[SavedImage],
        format: ArchiveFormat,
        out: &mut dyn Write,
    ) -> Result<(), StoreError> {
        let mut tar = TarOutput::new(out);
        self.save_into(images, format, &mut tar)?;
        tar.finish()?;
        Ok(())
    }

    /// Writes images as a directory, which must be new or empty of the same names; blobs that are there are left.
    pub fn save_directory(
        &self,
        images: &[SavedImage],
        format: ArchiveFormat,
        directory: &Path,
    ) -> Result<(), StoreError> {
        let mut output = DirectoryOutput {
            root: directory.to_owned(),
        };
        fs::create_dir(directory)?;
        self.save_into(images, format, &mut output)
    }

    /// Writes images for several platforms as an OCI layout in one tar; the names are those of the index of them, whose
    /// digest is returned.
    pub fn save_index(
        &self,
        ids: &[ImageId],
        names: &[Reference],
        choice: CompressionChoice,
        out: &mut dyn Write,
    ) -> Result<Digest, StoreError> {
        let mut tar = TarOutput::new(out);
        let index = super::layout::save_index(self, ids, names, choice, &mut tar)?;
        tar.finish()?;
        Ok(index)
    }

    /// Writes the same as [`Store::save_index`] as a directory, under the conditions of [`Store::save_directory`].
    pub fn save_index_directory(
        &self,
        ids: &[ImageId],
        names: &[Reference],
        choice: CompressionChoice,
        directory: &Path,
    ) -> Result<Digest, StoreError> {
        let mut output = DirectoryOutput {
            root: directory.to_owned(),
        };
        fs::create_dir(directory)?;
        super::layout::save_index(self, ids, names, choice, &mut output)
    }

    fn save_into(
        &self,
        images: &[SavedImage],
        format: ArchiveFormat,
        output: &mut dyn Output,
    ) -> Result<(), StoreError> {
        match format {
            ArchiveFormat::Oci(choice) => super::layout::save(self, images, choice, output),
            ArchiveFormat::Docker => super::docker_archive::save(self, images, output),
        }
    }

    /// Loads every image of an archive: an OCI layout or what `docker save` writes, as a tar that may be compressed
    /// with gzip, zstd, bzip2 or xz. Names in the archive move to its images.
    ///
    /// Images are named only after everything in the archive has been checked.
    pub fn load(&self, stream: impl Read) -> Result<Vec<LoadedImage>, StoreError> {
        let tar = decompressor(stream).map_err(|source| ArchiveError::Read { source })?;
        let mut collected = Collected::read(self.blobs(), tar)?;
        let mut found = Vec::new();
        let layout = collected.documents.contains_key("index.json");
        let docker = collected.documents.contains_key("manifest.json");
        if !layout && !docker {
            return Err(ArchiveError::NotAnArchive.into());
        }
        if layout {
            found = super::layout::load(self, &mut collected)?;
        }
        if docker {
            super::docker_archive::load(self, &collected, &mut found)?;
        }
        self.name_loaded(found)
    }

    /// Loads every image of an OCI layout that is a directory.
    pub fn load_directory(&self, directory: &Path) -> Result<Vec<LoadedImage>, StoreError> {
        let mut source = super::layout::Directory::open(self.blobs(), directory)?;
        let found = super::layout::load(self, &mut source)?;
        self.name_loaded(found)
    }

    fn name_loaded(&self, mut found: Vec<LoadedImage>) -> Result<Vec<LoadedImage>, StoreError> {
        for image in &mut found {
            image.names.sort();
            image.names.dedup();
            for name in &image.names {
                self.images().tag(name, &image.id)?;
            }
        }
        Ok(found)
    }
}

fn known_images(known: &[String]) -> String {
    match known {
        [] => "it has none".to_owned(),
        known => format!("it has `{}`", known.join("`, `")),
    }
}

/// Which image of a layout is meant.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LayoutSelector {
    /// The one with this tag.
    Tag(String),
    /// The one whose manifest or index has this digest.
    Digest(crate::oci::Digest),
}

/// Where the parts of an archive come from.
pub(crate) trait Source {
    /// A document at the top; `None` if it is not there.
    fn document(&mut self, path: &str) -> Result<Option<Vec<u8>>, StoreError>;

    /// Takes a blob into the store; `None` if it is not there.
    fn blob(&mut self, digest: &crate::oci::Digest) -> Result<Option<VerifiedBlob>, StoreError>;
}

/// Where the parts of an archive go.
pub(crate) trait Output {
    /// A directory.
    fn directory(&mut self, path: &str) -> Result<(), StoreError>;

    /// A file of `size` bytes.
    fn file(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), StoreError>;
}

/// Writes a document of our own.
pub(crate) fn write_document(
    output: &mut dyn Output,
    path: &str,
    bytes: &[u8],
) -> Result<(), StoreError> {
    output.file(path, bytes.len() as u64, &mut &bytes[..])
}

/// Writes plain files into a tar: owner 0, mode 644, no times, so equal files give equal bytes.
pub struct TarOutput<'a> {
    out: &'a mut dyn Write,
}

impl fmt::Debug for TarOutput<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TarOutput").finish_non_exhaustive()
    }
}

impl<'a> TarOutput<'a> {
    /// A tar that goes to `out`; [`TarOutput::finish`] must be called to complete it.
    pub fn new(out: &'a mut dyn Write) -> TarOutput<'a> {
        TarOutput { out }
    }
}

impl TarOutput<'_> {
    /// Writes a directory.
    pub fn add_directory(&mut self, path: &str) -> Result<(), ArchiveError> {
        self.header(&format!("{path}/"), b'5', 0o755, 0)
    }

    /// Writes a file of exactly `size` bytes.
    ///
    /// # Errors
    /// The stream below, or `content` where it fails or ends early.
    pub fn add_file(
        &mut self,
        path: &str,
        size: u64,
        content: &mut dyn Read,
    ) -> Result<(), ArchiveError> {
        self.header(path, b'0', 0o644, size)?;
        let mut buffer = vec![0; CHUNK];
        let mut left = size;
        while left > 0 {
            let want = usize::try_from(left).map_or(CHUNK, |left| left.min(CHUNK));
            let count = match content.read(&mut buffer[..want]) {
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                result => result,
            };
            let count = count.map_err(|source| ArchiveError::Read { source })?;
            self.write(&buffer[..count])?;
            left -= count as u64;
        }
        self.pad(size)
    }

    fn header(&mut self, path: &str, kind: u8, mode: u64, size: u64) -> Result<(), ArchiveError> {
        let mut block: Block = [0; header::BLOCK];
        let (prefix, name) = if path.len() <= header::NAME.len() {
            ("", path)
        } else {
            path.rsplit_once('/').unwrap_or(("", path))
        };
        if name.len() > header::NAME.len() || prefix.len() > header::PREFIX.len() {
            // A SHA-512 blob's name. POSIX's own way: a record with the path in an entry before this one.
            self.path_record(path)?;
            block[header::NAME].copy_from_slice(&path.as_bytes()[..header::NAME.len()]);
        } else {
            block[..name.len()].copy_from_slice(name.as_bytes());
            block[header::PREFIX][..prefix.len()].copy_from_slice(prefix.as_bytes());
        }
        header::put_octal(&mut block, header::MODE, mode);
        header::put_octal(&mut block, header::UID, 0);
        header::put_octal(&mut block, header::GID, 0);
        put_size(&mut block, size);
        header::put_octal(&mut block, header::MTIME, 0);
        block[header::TYPE] = kind;
        block[header::MAGIC].copy_from_slice(header::USTAR);
        header::put_octal(&mut block, header::MAJOR, 0);
        header::put_octal(&mut block, header::MINOR, 0);
        header::seal(&mut block);
        self.write(&block)
    }

    fn path_record(&mut self, path: &str) -> Result<(), ArchiveError> {
        // "LENGTH path=PATH\n", where LENGTH counts its own digits: three of them for the paths that come here.
        let length = 3 + " path=\n".len() + path.len();
        let record = format!("{length:03} path={path}\n");
        self.header("paxheader", b'x', 0o644, record.len() as u64)?;
        self.write(record.as_bytes())?;
        self.pad(record.len() as u64)
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), ArchiveError> {
        let written = self.out.write_all(bytes);
        written.map_err(|source| ArchiveError::Write { source })
    }

    fn pad(&mut self, size: u64) -> Result<(), ArchiveError> {
        self.write(&[0; header::BLOCK][..header::padding(size)])
    }

    /// Writes the end of the tar.
    pub fn finish(mut self) -> Result<(), ArchiveError> {
        self.write(&[0; 2 * header::BLOCK])?;
        let flushed = self.out.flush();
        flushed.map_err(|source| ArchiveError::Write { source })
    }
}

/// A size in octal, or in base 256 where it has no room.
fn put_size(block: &mut Block, size: u64) {
    if size <= header::OCTAL_12_MAX {
        return header::put_octal(block, header::SIZE, size);
    }
    let field = &mut block[header::SIZE];
    field.fill(0);
    field[0] = 0x80;
    field[4..].copy_from_slice(&size.to_be_bytes());
}

impl Output for TarOutput<'_> {
    fn directory(&mut self, path: &str) -> Result<(), StoreError> {
        Ok(self.add_directory(path)?)
    }

    fn file(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), StoreError> {
        Ok(self.add_file(path, size, content)?)
    }
}

struct DirectoryOutput {
    root: PathBuf,
}

impl Output for DirectoryOutput {
    fn directory(&mut self, path: &str) -> Result<(), StoreError> {
        Ok(fs::create_shared_dir(&self.root.join(path))?)
    }

    fn file(&mut self, path: &str, size: u64, content: &mut dyn Read) -> Result<(), StoreError> {
        let to = self.root.join(path);
        // A blob that is there is right by its name.
        if path.starts_with("blobs/") && fs::file_size(&to)? == Some(size) {
            return Ok(());
        }
        let mut file = TempFile::create(&self.root)?;
        let mut buffer = vec![0; CHUNK];
        loop {
            let count = match content.read(&mut buffer) {
                Ok(0) => break,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                other => other.map_err(|source| ArchiveError::Read { source })?,
            };
            file.append(&buffer[..count])?;
        }
        Ok(file.publish(&to)?)
    }
}

/// A tar that was read: documents in memory, all other files in the store as blobs.
pub(crate) struct Collected {
    /// The documents at the top, by name.
    pub(crate) documents: BTreeMap<String, Vec<u8>>,
    files: BTreeMap<String, VerifiedBlob>,
    links: BTreeMap<String, String>,
}

impl Collected {
    fn read(blobs: &Blobs, tar: impl Read) -> Result<Collected, StoreError> {
        let mut collected = Collected {
            documents: BTreeMap::new(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let mut reader = Reader::new(tar);
        let mut entries = 0;
        while let Some(entry) = reader.next_entry().map_err(ArchiveError::from)? {
            entries += 1;
            if entries > ENTRIES_MAX {
                return Err(ArchiveError::TooManyEntries { max: ENTRIES_MAX }.into());
            }
            collected.add(blobs, &entry, &mut reader)?;
        }
        reader.drain().map_err(ArchiveError::from)?;
        Ok(collected)
    }

    fn add<R: Read>(
        &mut self,
        blobs: &Blobs,
        entry: &Entry,
        reader: &mut Reader<R>,
    ) -> Result<(), StoreError> {
        let path = clean_path("", &entry.path)?;
        match entry.kind {
            Kind::Directory => return Ok(()),
            Kind::Symlink | Kind::HardLink => {
                let base = match entry.kind {
                    Kind::Symlink => path.rsplit_once('/').map_or("", |(parent, _)| parent),
                    _ => "",
                };
                let target = clean_path(base, &entry.link)?;
                self.links.insert(path, target);
                return Ok(());
            }
            Kind::File => {}
            _ => return Err(ArchiveError::BadEntry { path }.into()),
        }
        if is_document(&path) {
            if entry.size > DOCUMENT_BYTES_MAX {
                return Err(ArchiveError::DocumentTooLarge {
                    path,
                    size: entry.size,
                    max: DOCUMENT_BYTES_MAX,
                }
                .into());
            }
            let mut bytes = Vec::new();
            pump(reader, |piece| {
                bytes.extend_from_slice(piece);
                Ok(())
            })?;
            return match self.documents.insert(path.clone(), bytes) {
                Some(before) if before != self.documents[&path] => {
                    Err(ArchiveError::Twice { path }.into())
                }
                _ => Ok(()),
            };
        }
        // Docker's oldest format has two small files beside each layer that nobody reads any more.
        if path.ends_with("/VERSION") || path.ends_with("/json") {
            return Ok(());
        }
        let expected = blob_path(&path)?;
        let algorithm = expected.map_or(crate::oci::DigestAlgorithm::Sha256, |d| d.algorithm());
        let mut ingest = blobs.ingest_as(algorithm)?;
        pump(reader, |piece| ingest.append(piece))?;
        let blob = ingest.commit(expected.map(|digest| (digest, None)))?;
        match self.files.insert(path.clone(), blob) {
            Some(before) if before != blob => Err(ArchiveError::Twice { path }.into()),
            _ => Ok(()),
        }
    }

    /// The file at a path that a document names, through links.
    pub(crate) fn file(&self, path: &str, by: &str) -> Result<VerifiedBlob, ArchiveError> {
        let missing = || ArchiveError::MissingEntry {
            wanted: path.to_owned(),
            by: by.to_owned(),
        };
        let mut current = clean_path("", path.as_bytes())?;
        for _ in 0..LINKS_MAX {
            if let Some(blob) = self.files.get(&current) {
                return Ok(*blob);
            }
            current.clone_from(self.links.get(&current).ok_or_else(missing)?);
        }
        Err(missing())
    }
}

impl Source for Collected {
    fn document(&mut self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        Ok(self.documents.get(path).cloned())
    }

    fn blob(&mut self, digest: &crate::oci::Digest) -> Result<Option<VerifiedBlob>, StoreError> {
        let path = format!("blobs/{}/{}", digest.algorithm(), digest.hex());
        Ok(self.files.get(&path).copied())
    }
}

fn pump<R: Read>(
    reader: &mut Reader<R>,
    mut take: impl FnMut(&[u8]) -> Result<(), ContentError>,
) -> Result<(), StoreError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = reader
            .read_content(&mut buffer)
            .map_err(ArchiveError::from)?;
        if count == 0 {
            return Ok(());
        }
        take(&buffer[..count])?;
    }
}

fn is_document(path: &str) -> bool {
    matches!(
        path,
        "index.json" | "oci-layout" | "manifest.json" | "repositories"
    )
}

/// The digest that a path below `blobs/` must have; `None` for other paths.
fn blob_path(path: &str) -> Result<Option<crate::oci::Digest>, ArchiveError> {
    let Some((algorithm, hex)) = path.strip_prefix("blobs/").and_then(|p| p.split_once('/')) else {
        return Ok(None);
    };
    let digest = format!("{algorithm}:{hex}").parse();
    digest
        .map(Some)
        .map_err(|source| ArchiveError::BadBlobPath {
            path: path.to_owned(),
            source,
        })
}

/// A path as the archive's map has it: relative, without `.` and `..`, which may not lead out.
fn clean_path(base: &str, path: &[u8]) -> Result<String, ArchiveError> {
    let shown = || {
        let clipped = &path[..path.len().min(100)];
        String::from_utf8_lossy(clipped).into_owned()
    };
    let bad = |reason| ArchiveError::BadPath {
        path: shown(),
        reason,
    };
    if path.len() > PATH_BYTES_MAX {
        return Err(bad("it is too long"));
    }
    let text = std::str::from_utf8(path).map_err(|_| bad("it is not UTF-8"))?;
    if text.starts_with('/') {
        return Err(bad("it is absolute"));
    }
    if text.contains('\0') {
        return Err(bad("it has a NUL in it"));
    }
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                parts
                    .pop()
                    .ok_or_else(|| bad("it leads out of the archive"))?;
            }
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}

/// Reads a JSON document.
pub(crate) fn parse_document<'a, T: serde::Deserialize<'a>>(
    path: &str,
    bytes: &'a [u8],
) -> Result<T, ArchiveError> {
    serde_json::from_slice(bytes).map_err(|source| ArchiveError::BadDocument {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layer::LayerInfo;
    use crate::oci::{DiffId, Digest, ImageConfig, Platform};
    use crate::tests::image_of;

    /// A store with one image of two layers, one of them twice, named `app:1` and `r.example/app:2`.
    fn saved() -> (tempfile::TempDir, Store, SavedImage) {
        let (dir, store) = crate::tests::store();
        let layer = |content: &str| -> DiffId {
            let info: LayerInfo = store
                .publish_layer(|| {
                    let active = store.snapshots().prepare(&[])?;
                    std::fs::write(active.upper().join("file"), content).unwrap();
                    active.commit().map_err(StoreError::from)
                })
                .unwrap();
            store.ensure_diff_id(&info.id).unwrap()
        };
        let (a, b) = (layer("a"), layer("b"));
        let id = image_of(&store, &[a, b, a]);
        let names = ["app:1", "r.example/app:2"].map(|name| name.parse().unwrap());
        for name in &names {
            store.images().tag(name, &id).unwrap();
        }
        let names = names.to_vec();
        (dir, store, SavedImage { id, names })
    }

    fn save(store: &Store, image: &SavedImage, format: ArchiveFormat) -> Vec<u8> {
        let mut bytes = Vec::new();
        let images = std::slice::from_ref(image);
        store.save(images, format, &mut bytes).unwrap();
        bytes
    }

    fn check_loaded(target: &Store, loaded: &[LoadedImage], image: &SavedImage) {
        assert_eq!(
            loaded,
            [LoadedImage {
                id: image.id,
                names: image.names.clone(),
            }]
        );
        let row = target.images().resolve("app:1").unwrap().unwrap();
        assert_eq!(row.id, image.id);
        assert_eq!(row.names, image.names);
        assert_eq!(row.size, 3);
        assert!(target.check().unwrap().is_empty());
        assert!(fs::list(&target.root().join("tmp")).unwrap().is_empty());
    }

    #[test]
    fn both_formats_come_back() {
        let (_dir, store, image) = saved();
        for format in [ArchiveFormat::OCI, ArchiveFormat::Docker] {
            let bytes = save(&store, &image, format);
            assert_eq!(save(&store, &image, format), bytes, "{format:?}");
            let (_other, target) = crate::tests::store();
            check_loaded(&target, &target.load(&bytes[..]).unwrap(), &image);
            // And on, from what is only loaded.
            let again = save(&target, &image, format);
            assert_eq!(again, bytes, "{format:?}");
            let (_other, target) = crate::tests::store();
            let zstd = zstd::encode_all(&bytes[..], 1).unwrap();
            check_loaded(&target, &target.load(&zstd[..]).unwrap(), &image);
        }
    }

    #[test]
    fn directories_come_back() {
        let (_dir, store, image) = saved();
        let out = tempfile::tempdir().unwrap();
        let at = out.path().join("layout");
        let images = std::slice::from_ref(&image);
        for _ in 0..2 {
            store
                .save_directory(images, ArchiveFormat::OCI, &at)
                .unwrap();
        }
        let (_other, target) = crate::tests::store();
        check_loaded(&target, &target.load_directory(&at).unwrap(), &image);
        // A blob that is a link to elsewhere is not followed.
        let blobs = at.join("blobs/sha256");
        let config = blobs.join(image.id.0.hex());
        std::fs::rename(&config, at.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../../elsewhere", &config).unwrap();
        let (_other, target) = crate::tests::store();
        let error = target.load_directory(&at).unwrap_err();
        assert!(matches!(error, StoreError::Fs(_)), "{error}");
        assert!(target.images().images().unwrap().is_empty());
    }

    /// Builds a tar of links and files.
    fn tar(entries: &[(&str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (path, content) in entries {
            let mut header = tar::Header::new_ustar();
            header.set_mode(0o644);
            // Past the checks of the builder, which hostile archives do not have.
            header.as_old_mut().name[..path.len()].copy_from_slice(path.as_bytes());
            if let Some(target) = content.strip_prefix(b"->") {
                header.set_entry_type(tar::EntryType::Symlink);
                header
                    .set_link_name(std::str::from_utf8(target).unwrap())
                    .unwrap();
                header.set_size(0);
                header.set_cksum();
                builder.append(&header, &b""[..]).unwrap();
                continue;
            }
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn config_of(diff_ids: &[DiffId]) -> Vec<u8> {
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = diff_ids.to_vec();
        serde_json::to_vec(&config).unwrap()
    }

    #[test]
    fn the_oldest_docker_format_is_read() {
        let layer = tar(&[("file", b"x")]);
        let diff_id = DiffId(Digest::of(&layer));
        let config = config_of(&[diff_id, diff_id]);
        let manifest =
            br#"[{"Config":"c.json","RepoTags":["old:1"],"Layers":["a/layer.tar","b/layer.tar"]}]"#;
        let archive = tar(&[
            ("a/VERSION", b"1.0"),
            ("a/json", b"{}"),
            ("a/layer.tar", &layer),
            ("b/layer.tar", b"->../a/layer.tar"),
            ("./c.json", &config),
            ("manifest.json", manifest),
            ("repositories", b"{}"),
        ]);
        let (_dir, store) = crate::tests::store();
        let loaded = store.load(&archive[..]).unwrap();
        assert_eq!(loaded[0].id.0, Digest::of(&config));
        assert!(store.images().resolve("old:1").unwrap().is_some());
        assert!(store.check().unwrap().is_empty());
    }

    #[test]
    fn hostile_archives_name_what_is_wrong() {
        let layer = tar(&[("file", b"x")]);
        let config = config_of(&[DiffId(Digest::of(&layer))]);
        let manifest = br#"[{"Config":"c","RepoTags":["x"],"Layers":["l"]}]"#;
        let other = tar(&[("file", b"y")]);
        let wrong = format!("blobs/sha256/{}", Digest::of(b"x").hex());
        let long = vec![b' '; 5 * 1024 * 1024];
        let index = |digest: &str, size: usize| {
            format!(
                r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"application/vnd.oci.image.manifest.v1+json","digest":"{digest}","size":{size}}}]}}"#
            )
        };
        let absent = index(&Digest::of(b"z").to_string(), 1);
        let zeros = [0; 3];
        let there = index(&Digest::of(&zeros).to_string(), 2);
        let zeros_at = format!("blobs/sha256/{}", Digest::of(&zeros).hex());
        let check = |entries: &[(&str, &[u8])], expected: &str| {
            let (_dir, store) = crate::tests::store();
            let error = store.load(&tar(entries)[..]).unwrap_err();
            let mut text = error.to_string();
            let mut cause = std::error::Error::source(&error);
            while let Some(next) = cause {
                text = format!("{text}: {next}");
                cause = next.source();
            }
            assert!(text.contains(expected), "{expected}: {text}");
            assert!(store.images().images().unwrap().is_empty(), "{expected}");
            assert!(store.check().unwrap().is_empty(), "{expected}");
        };
        check(&[("x", b"1")], "no image archive");
        check(&[("../x", b"1")], "leads out");
        check(&[("/x", b"1")], "is absolute");
        check(&[("x", b"->../../etc/passwd")], "leads out");
        check(&[("index.json", &long)], "at most 4194304");
        check(
            &[("index.json", b"{")],
            "`index.json` in the archive is not valid",
        );
        check(
            &[("manifest.json", b"[1]")],
            "`manifest.json` in the archive is not valid",
        );
        check(&[(&wrong, b"y")], "expected `sha256:");
        check(&[("blobs/md5/00", b"y")], "not a blob's path");
        check(&[("x", b"1"), ("x", b"2")], "two different entries `x`");
        check(
            &[("index.json", absent.as_bytes())],
            "is missing in the archive",
        );
        check(
            &[("index.json", there.as_bytes()), (&zeros_at, &zeros)],
            "2 bytes, it has 3",
        );
        check(
            &[
                ("oci-layout", br#"{"imageLayoutVersion":"2.0"}"#),
                ("index.json", b"{}"),
            ],
            "version `2.0`",
        );
        check(&[("manifest.json", manifest)], "`c` is missing");
        check(
            &[("manifest.json", manifest), ("c", &config)],
            "`l` is missing",
        );
        check(
            &[("manifest.json", manifest), ("c", &config), ("l", b"->l")],
            "`l` is missing",
        );
        check(
            &[("manifest.json", manifest), ("c", &config), ("l", &other)],
            "DiffID",
        );
        let mut two: Vec<u8> = manifest.to_vec();
        two.splice(manifest.len() - 4..manifest.len() - 3, *br#"","l""#);
        check(
            &[("manifest.json", &two), ("c", &config), ("l", &layer)],
            "2 layers, its config has 1",
        );
        let bad_name = br#"[{"Config":"c","RepoTags":["UPPER"],"Layers":["l"]}]"#;
        check(
            &[("manifest.json", bad_name), ("c", &config), ("l", &layer)],
            "invalid image reference `UPPER`",
        );
        let truncated = {
            let (_dir, store, image) = saved();
            let whole = save(&store, &image, ArchiveFormat::Docker);
            whole[..whole.len() / 2].to_vec()
        };
        let (_dir, store) = crate::tests::store();
        assert!(store.load(&truncated[..]).is_err());
        assert!(store.images().images().unwrap().is_empty());
    }

    #[test]
    fn long_paths_and_sizes_are_written_as_posix_says() {
        let path = format!("blobs/sha512/{}", "0".repeat(128));
        let mut bytes = Vec::new();
        let mut output = TarOutput { out: &mut bytes };
        write_document(&mut output, &path, b"x").unwrap();
        output.finish().unwrap();
        let mut archive = tar::Archive::new(&bytes[..]);
        let found: Vec<String> = archive
            .entries()
            .unwrap()
            .map(|entry| entry.unwrap().path().unwrap().display().to_string())
            .collect();
        assert_eq!(found, [path]);
        let mut block: Block = [0; header::BLOCK];
        for size in [0, header::OCTAL_12_MAX, header::OCTAL_12_MAX + 1, 1 << 50] {
            put_size(&mut block, size);
            assert_eq!(
                header::number(&block[header::SIZE]),
                Some(size.cast_signed())
            );
        }
    }
}
