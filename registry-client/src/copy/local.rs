//! Images that lie here: a layout's directory, an archive, blobs of the store.
//!
//! Whatever it is, it comes down to a list of descriptors (`index.json`) and, of each digest, where its bytes are. An archive is
//! not unpacked: of each entry it is noted where in the file it begins. Paths in an archive are only ever keys of a map.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use store::MANIFEST_BYTES_MAX;
use store::layer::compress::Packing;
use store::layer::tar::read::{Kind, Reader};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Hasher, Index, RawManifest, Reference};

use super::docker_archive;
use super::{CopyError, Pick};
use crate::BlobSource;

/// Annotation with the name or tag (image-spec `annotations.md`).
pub(crate) const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation with the whole name (containerd, BuildKit).
pub(crate) const IMAGE_NAME: &str = "io.containerd.image.name";

/// Most images that a layout may list.
const LISTED_MAX: usize = 10_000;

/// Most entries of an archive, and the longest path in one.
const ENTRIES_MAX: usize = 100_000;
const PATH_BYTES_MAX: usize = 1024;

/// Most links followed from one name in an archive.
const LINKS_MAX: usize = 16;

/// Images and blobs of this machine.
#[derive(Clone, Debug)]
pub struct Local {
    /// How messages call it.
    name: String,
    /// What `index.json` lists.
    listed: Vec<Descriptor>,
    /// Where blobs are that are in no folder.
    held: BTreeMap<Digest, (BlobSource, u64)>,
    /// A folder of `ALGORITHM/HEX`.
    folder: Option<PathBuf>,
}

impl Local {
    /// A layout that is a directory.
    pub fn layout(path: &Path) -> Result<Local, CopyError> {
        let bad = |reason: String| CopyError::BadLayout {
            path: path.to_owned(),
            reason,
        };
        let marker = path.join("oci-layout");
        let marker = read_bounded(&marker, MANIFEST_BYTES_MAX as u64)?;
        check_version(&marker).map_err(bad)?;
        let index = read_bounded(&path.join("index.json"), MANIFEST_BYTES_MAX as u64)?;
        Ok(Local {
            name: path.display().to_string(),
            listed: parse_index(&index).map_err(bad)?,
            held: BTreeMap::new(),
            folder: Some(path.join("blobs")),
        })
    }

    /// A manifest whose blobs are in a folder of `ALGORITHM/HEX`, such as the store's.
    pub fn folder(name: &str, folder: &Path, manifest: &RawManifest) -> Local {
        let bytes = Bytes::copy_from_slice(manifest.bytes());
        let size = bytes.len() as u64;
        Local {
            name: name.to_owned(),
            listed: vec![manifest.descriptor()],
            held: BTreeMap::from([(manifest.digest(), (BlobSource::Bytes(bytes), size))]),
            folder: Some(folder.to_owned()),
        }
    }

    /// An archive: an OCI layout, or what `docker save` writes. It must be a file, and its tar not be compressed: blobs are
    /// read from where they lie.
    pub fn archive(path: &Path) -> Result<Local, CopyError> {
        let entries = Entries::read(path)?;
        let name = path.display().to_string();
        if let Some(index) = entries.document("index.json")? {
            let bad = |reason: String| CopyError::BadLayout {
                path: path.to_owned(),
                reason,
            };
            let mut held = BTreeMap::new();
            for (entry, at) in &entries.files {
                if let Some(digest) = blob_digest(entry) {
                    held.insert(digest, (entries.source(*at), at.1));
                }
            }
            return Ok(Local {
                name,
                listed: parse_index(&index).map_err(bad)?,
                held,
                folder: None,
            });
        }
        let (listed, held) = docker_archive::read(&entries)?;
        Ok(Local {
            name,
            listed,
            held,
            folder: None,
        })
    }

    /// How messages call it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it lists.
    pub fn listed(&self) -> &[Descriptor] {
        &self.listed
    }

    /// The names of its images, each once, in order: the whole name where one is told, else the tag.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for listed in self.listed.iter().filter(|listed| !is_referrer(listed)) {
            let annotations = listed.annotations.iter();
            let name = [IMAGE_NAME, REF_NAME].iter().find_map(|key| {
                let mut all = annotations.clone();
                all.find_map(|all| all.get(*key).cloned())
            });
            if let Some(name) = name.filter(|name| !names.contains(name)) {
                names.push(name);
            }
        }
        names
    }

    /// The one that is meant.
    pub fn find(&self, pick: &Pick) -> Result<Descriptor, CopyError> {
        let unfit = |reason: String| CopyError::Unfit {
            place: self.name.clone(),
            reason,
        };
        let known = || {
            let names: Vec<String> = self.listed.iter().take(32).filter_map(names).collect();
            match names.is_empty() {
                true => "none of its images has a name".to_owned(),
                false => format!("it has {}", names.join(", ")),
            }
        };
        match pick {
            Pick::Only => {
                let mut images: Vec<&Descriptor> =
                    self.listed.iter().filter(|d| !is_referrer(d)).collect();
                if images.is_empty() {
                    images.extend(&self.listed);
                }
                match images[..] {
                    [only] => Ok(only.clone()),
                    [] => Err(unfit("it lists no image".to_owned())),
                    _ => Err(unfit(format!(
                        "it has {} images: say which with `:NAME` or `@DIGEST` ({})",
                        images.len(),
                        known()
                    ))),
                }
            }
            Pick::Digest(digest) => {
                if let Some(found) = self.listed.iter().find(|d| d.digest == *digest) {
                    return Ok(found.clone());
                }
                let missing = || unfit(format!("it has no image `{digest}`"));
                let (_, size) = self.blob(digest)?.ok_or_else(missing)?;
                let bytes = self.read(digest, size, MANIFEST_BYTES_MAX as u64)?;
                let raw = parse(*digest, bytes, None)?;
                Ok(Descriptor::new(raw.media_type().as_str(), *digest, size))
            }
            Pick::Name(name) => {
                let annotated = |d: &Descriptor, key: &str| -> Option<String> {
                    d.annotations.as_ref()?.get(key).cloned()
                };
                let reference: Option<Reference> = name.parse().ok();
                let whole = |text: String| match text.parse::<Reference>() {
                    Ok(found) => Some(found) == reference,
                    Err(_) => false,
                };
                // The last one written counts, as with a tag that moved.
                let newest_first = || self.listed.iter().rev();
                let mut by_tag =
                    newest_first().filter(|d| annotated(d, REF_NAME).as_ref() == Some(name));
                let mut by_name =
                    newest_first().filter(|d| annotated(d, IMAGE_NAME).is_some_and(whole));
                let found = by_tag.next().or_else(|| by_name.next()).cloned();
                found.ok_or_else(|| unfit(format!("it has no image `{name}`: {}", known())))
            }
        }
    }

    /// Where a blob's bytes are, and how many; `None` where it is not here.
    pub fn blob(&self, digest: &Digest) -> Result<Option<(BlobSource, u64)>, CopyError> {
        if let Some(found) = self.held.get(digest) {
            return Ok(Some(found.clone()));
        }
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let path = folder.join(digest.algorithm().name()).join(digest.hex());
        // Not through a link: what lies elsewhere on this machine is nobody's image.
        match std::fs::symlink_metadata(&path) {
            Ok(metadata) if metadata.is_file() => {
                Ok(Some((BlobSource::File(path), metadata.len())))
            }
            Ok(_) => Err(CopyError::BadLayout {
                path,
                reason: "it is no plain file".to_owned(),
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(CopyError::file("read", path)(error)),
        }
    }

    /// A manifest or index.
    pub fn manifest(&self, descriptor: &Descriptor) -> Result<RawManifest, CopyError> {
        let bytes = self.read(
            &descriptor.digest,
            descriptor.size,
            MANIFEST_BYTES_MAX as u64,
        )?;
        parse(
            descriptor.digest,
            bytes,
            Some(descriptor.media_type.as_str()),
        )
    }

    /// A whole blob, verified.
    pub fn read(&self, digest: &Digest, size: u64, limit: u64) -> Result<Vec<u8>, CopyError> {
        if size > limit {
            return Err(CopyError::TooMuch {
                place: self.name.clone(),
                what: "bytes in a document",
                max: limit,
            });
        }
        let missing = || CopyError::Missing {
            digest: Box::new(*digest),
            place: self.name.clone(),
        };
        let (source, there) = self.blob(digest)?.ok_or_else(missing)?;
        if there > limit {
            return Err(CopyError::TooMuch {
                place: self.name.clone(),
                what: "bytes in a document",
                max: limit,
            });
        }
        let bytes = read_source(&source, there)?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        let actual = hasher.finish();
        if actual != *digest {
            return Err(CopyError::Corrupt {
                expected: Box::new(*digest),
                actual: Box::new(actual),
                place: self.name.clone(),
            });
        }
        Ok(bytes)
    }

    /// What is about a manifest: entries of `index.json` that name it as their subject, and the list under its fallback tag.
    pub fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>, CopyError> {
        let tag = crate::referrers::fallback_tag(subject);
        let mut found: Vec<Descriptor> = Vec::new();
        for listed in &self.listed {
            let name = listed
                .annotations
                .as_ref()
                .and_then(|all| all.get(REF_NAME));
            if name == Some(&tag) {
                if let ParsedManifest::Index(index) = self.manifest(listed)?.parsed() {
                    found.extend(index.manifests.iter().cloned());
                }
                continue;
            }
            let kind = &listed.media_type;
            if !(kind.is_manifest() || kind.is_index()) || name.is_some() {
                continue;
            }
            let raw = self.manifest(listed)?;
            if subject_of(&raw).is_some_and(|about| about.digest == *subject) {
                found.push(crate::referrers::descriptor_of(&raw));
            }
        }
        let mut seen = std::collections::BTreeSet::new();
        found.retain(|entry| seen.insert(entry.digest));
        Ok(found)
    }
}

/// The manifest that this one is about.
pub(crate) fn subject_of(raw: &RawManifest) -> Option<&Descriptor> {
    match raw.parsed() {
        ParsedManifest::Image(image) => image.subject.as_ref(),
        ParsedManifest::Index(index) => index.subject.as_ref(),
    }
}

/// Whether a layout's entry is there for another one's sake: our own mark on what has a subject.
fn is_referrer(descriptor: &Descriptor) -> bool {
    let name = descriptor
        .annotations
        .as_ref()
        .and_then(|all| all.get(REF_NAME));
    match name {
        Some(name) => crate::referrers::is_fallback_tag(name),
        None => descriptor.artifact_type.is_some(),
    }
}

fn names(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations.as_ref()?;
    let name = annotations
        .get(REF_NAME)
        .or_else(|| annotations.get(IMAGE_NAME))?;
    Some(format!("`{}`", crate::error::printable(name)))
}

pub(crate) fn parse(
    digest: Digest,
    bytes: Vec<u8>,
    media_type: Option<&str>,
) -> Result<RawManifest, CopyError> {
    RawManifest::parse(bytes, media_type).map_err(|source| CopyError::Manifest {
        digest: Box::new(digest),
        source,
    })
}

fn parse_index(bytes: &[u8]) -> Result<Vec<Descriptor>, String> {
    let index: Index =
        serde_json::from_slice(bytes).map_err(|error| format!("`index.json`: {error}"))?;
    if index.manifests.len() > LISTED_MAX {
        return Err(format!("`index.json` lists more than {LISTED_MAX} images"));
    }
    Ok(index.manifests)
}

fn check_version(marker: &[u8]) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Marker {
        image_layout_version: String,
    }
    let marker: Marker =
        serde_json::from_slice(marker).map_err(|error| format!("`oci-layout`: {error}"))?;
    let version = &marker.image_layout_version;
    match version.starts_with("1.") {
        true => Ok(()),
        false => Err(format!(
            "the layout has version `{}`, expected 1.x",
            crate::error::printable(version)
        )),
    }
}

/// The digest in `blobs/ALGORITHM/HEX`.
fn blob_digest(path: &str) -> Option<Digest> {
    let (algorithm, hex) = path.strip_prefix("blobs/")?.split_once('/')?;
    format!("{algorithm}:{hex}").parse().ok()
}

fn read_bounded(path: &Path, limit: u64) -> Result<Vec<u8>, CopyError> {
    let failed = |error| CopyError::file("read", path)(error);
    let file = File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    let failed = |error| CopyError::file("read", path)(error);
    file.take(limit + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(CopyError::TooMuch {
            place: path.display().to_string(),
            what: "bytes",
            max: limit,
        });
    }
    Ok(bytes)
}

/// All of a blob that lies here; the caller knows that it is small.
pub(crate) fn read_source(source: &BlobSource, size: u64) -> Result<Vec<u8>, CopyError> {
    let (path, offset) = match source {
        BlobSource::Bytes(bytes) => return Ok(bytes.to_vec()),
        BlobSource::File(path) => (path, 0),
        BlobSource::Range { path, offset, .. } => (path, *offset),
        BlobSource::Remote(remote) => {
            return Err(CopyError::Missing {
                digest: Box::new(remote.descriptor.digest),
                place: "this machine".to_owned(),
            });
        }
    };
    let read = || {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::new();
        file.take(size).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().map_err(CopyError::file("read", path))
}

/// The files of a tar: where each begins, and how long it is.
#[derive(Debug)]
pub(crate) struct Entries {
    pub(crate) path: PathBuf,
    pub(crate) files: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
}

impl Entries {
    fn read(path: &Path) -> Result<Entries, CopyError> {
        let bad = |reason: String| CopyError::BadLayout {
            path: path.to_owned(),
            reason,
        };
        let mut file = File::open(path).map_err(CopyError::file("read", path))?;
        let mut start = Vec::new();
        (&mut file)
            .take(6)
            .read_to_end(&mut start)
            .map_err(CopyError::file("read", path))?;
        if Packing::of(&start) != Packing::Plain {
            let reason = "the archive is compressed: unpack it first, or bring it into the store with `longshore load`";
            return Err(bad(reason.to_owned()));
        }
        let rewound = file.seek(SeekFrom::Start(0));
        rewound.map_err(CopyError::file("read", path))?;
        let length = file
            .metadata()
            .map_err(CopyError::file("read", path))?
            .len();
        let mut tar = Reader::new(file);
        let mut entries = Entries {
            path: path.to_owned(),
            files: BTreeMap::new(),
            links: BTreeMap::new(),
        };
        let mut count = 0;
        while let Some(entry) = tar.next_entry().map_err(ArchiveTar::of)? {
            count += 1;
            if count > ENTRIES_MAX {
                return Err(bad(format!("it has more than {ENTRIES_MAX} entries")));
            }
            let name = clean(&entry.path).map_err(bad)?;
            match entry.kind {
                Kind::File if entry.sparse.is_none() => {
                    let at = (tar.position(), entry.size);
                    if at.0.checked_add(at.1).is_none_or(|end| end > length) {
                        return Err(bad(format!("it ends within `{name}`")));
                    }
                    if entries.files.insert(name.clone(), at).is_some() {
                        return Err(bad(format!("it has two entries `{name}`")));
                    }
                }
                Kind::Symlink => {
                    let parent = name.rsplit_once('/').map_or("", |(parent, _)| parent);
                    let target = [parent.as_bytes(), b"/", &entry.link].concat();
                    if let Ok(target) = resolve(&target) {
                        entries.links.insert(name, target);
                    }
                }
                Kind::HardLink => {
                    let target = clean(&entry.link).map_err(bad)?;
                    entries.links.insert(name, target);
                }
                _ => {}
            }
            tar.seek_past().map_err(ArchiveTar::of)?;
        }
        Ok(entries)
    }

    /// Where a file is, whatever links lead to it.
    pub(crate) fn find(&self, path: &str) -> Option<(u64, u64)> {
        let mut path = resolve(path.as_bytes()).ok()?;
        for _ in 0..LINKS_MAX {
            if let Some(at) = self.files.get(&path) {
                return Some(*at);
            }
            path.clone_from(self.links.get(&path)?);
        }
        None
    }

    pub(crate) fn source(&self, (offset, len): (u64, u64)) -> BlobSource {
        BlobSource::Range {
            path: self.path.clone(),
            offset,
            len,
        }
    }

    /// A small document.
    pub(crate) fn document(&self, path: &str) -> Result<Option<Vec<u8>>, CopyError> {
        let Some(at) = self.find(path) else {
            return Ok(None);
        };
        self.read_at(path, at, MANIFEST_BYTES_MAX as u64).map(Some)
    }

    pub(crate) fn read_at(
        &self,
        path: &str,
        at: (u64, u64),
        limit: u64,
    ) -> Result<Vec<u8>, CopyError> {
        if at.1 > limit {
            return Err(CopyError::TooMuch {
                place: format!("{}/{}", self.path.display(), crate::error::printable(path)),
                what: "bytes",
                max: limit,
            });
        }
        read_source(&self.source(at), at.1)
    }

    pub(crate) fn bad(&self, reason: impl Into<String>) -> CopyError {
        CopyError::BadLayout {
            path: self.path.clone(),
            reason: reason.into(),
        }
    }
}

/// A tar's error as an archive's.
struct ArchiveTar;

impl ArchiveTar {
    fn of(error: store::layer::tar::read::ReadError) -> CopyError {
        CopyError::Archive(store::content::archive::ArchiveError::Tar(error))
    }
}

/// A path in an archive without `./` and doubled slashes; one that would lead out is refused.
fn clean(path: &[u8]) -> Result<String, String> {
    let shown = || crate::error::printable(&String::from_utf8_lossy(path));
    if path.len() > PATH_BYTES_MAX {
        return Err(format!(
            "an entry's path is longer than {PATH_BYTES_MAX} bytes"
        ));
    }
    let text = std::str::from_utf8(path).map_err(|_| format!("`{}` is not UTF-8", shown()))?;
    let parts: Vec<&str> = text
        .split('/')
        .filter(|p| !matches!(*p, "" | "."))
        .collect();
    if text.starts_with('/') || parts.contains(&"..") {
        return Err(format!("the path `{}` leads out of it", shown()));
    }
    Ok(parts.join("/"))
}

/// A path with `..` taken away, as a symlink within an archive may have it.
fn resolve(path: &[u8]) -> Result<String, ()> {
    let text = std::str::from_utf8(path).map_err(|_| ())?;
    let mut parts: Vec<&str> = Vec::new();
    for part in text.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop().ok_or(())?),
            part => parts.push(part),
        }
    }
    Ok(parts.join("/"))
}
