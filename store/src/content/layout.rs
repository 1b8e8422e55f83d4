//! OCI image layouts (image-spec `image-layout.md`), as a directory or a tar.
//!
//! ```text
//! oci-layout        {"imageLayoutVersion":"1.0.0"}
//! index.json        manifests, each with a name in its annotations
//! blobs/ALG/HEX     manifests, configs, layers
//! ```
//!
//! A name is written twice, as BuildKit does: `io.containerd.image.name` has it whole,
//! `org.opencontainers.image.ref.name` has the tag. When reading, the second counts as a name only if it is one, since a
//! tag alone does not say of what.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use serde::Deserialize;

use super::archive::{
    ArchiveError, DOCUMENT_BYTES_MAX, LayoutSelector, LoadedImage, Output, SavedImage, Source,
    parse_document, write_document,
};
use super::local::{Blobs, VerifiedBlob};
use crate::fs::{self, FsError};
use crate::images::ImageId;
use crate::layer::compress::CompressionChoice;
use crate::layers::LayerError;
use crate::oci::manifest::ParsedManifest;
use crate::oci::{
    Annotations, Descriptor, DiffId, Digest, Hasher, Index, Manifest, MediaType, Platform,
    RawManifest, Reference,
};
use crate::{Store, StoreError};

/// Annotation with the whole name (containerd, BuildKit).
const NAME: &str = "io.containerd.image.name";
/// Annotation with the name or tag (image-spec `annotations.md`).
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// Annotation on what describes another manifest rather than being an image (BuildKit's attestations).
const REFERENCE_TYPE: &str = "vnd.docker.reference.type";

/// Indexes within indexes.
const NESTING_MAX: u32 = 4;

/// Manifests that one layout may list.
const MANIFESTS_MAX: usize = 10_000;

/// The content of `oci-layout`.
const LAYOUT: &[u8] = br#"{"imageLayoutVersion":"1.0.0"}"#;

/// Writes images as a layout with compressed layers.
pub(crate) fn save(
    store: &Store,
    images: &[SavedImage],
    choice: CompressionChoice,
    output: &mut dyn Output,
) -> Result<(), StoreError> {
    let mut blobs = BTreeSet::new();
    let mut listed = Vec::new();
    for image in images {
        let manifest = add_image(store, &image.id, choice, &mut blobs)?;
        let mut described = manifest.descriptor();
        described.platform = Some(store.images().config(&image.id)?.platform());
        listed.extend(describe(&described, &image.names));
    }
    write(store, output, listed, &blobs)
}

/// Writes an index of images as a layout; the names are the index's, as is the digest that is returned.
pub(crate) fn save_index(
    store: &Store,
    ids: &[ImageId],
    names: &[Reference],
    choice: CompressionChoice,
    output: &mut dyn Output,
) -> Result<Digest, StoreError> {
    let mut blobs = BTreeSet::new();
    for id in ids {
        add_image(store, id, choice, &mut blobs)?;
    }
    let index = store.index_for(ids, choice)?;
    store.blobs().put(index.bytes())?;
    blobs.insert(index.digest());
    write(store, output, describe(&index.descriptor(), names), &blobs)?;
    Ok(index.digest())
}

/// Adds what an image consists of to the blobs to be written.
fn add_image(
    store: &Store,
    id: &ImageId,
    choice: CompressionChoice,
    blobs: &mut BTreeSet<Digest>,
) -> Result<RawManifest, StoreError> {
    let manifest = store.manifest_for(id, choice)?;
    store.blobs().put(manifest.bytes())?;
    blobs.insert(manifest.digest());
    if let ParsedManifest::Image(parsed) = manifest.parsed() {
        blobs.insert(parsed.config.digest);
        blobs.extend(parsed.layers.iter().map(|layer| layer.digest));
    }
    Ok(manifest)
}

fn write(
    store: &Store,
    output: &mut dyn Output,
    listed: Vec<Descriptor>,
    blobs: &BTreeSet<Digest>,
) -> Result<(), StoreError> {
    write_index(output, listed)?;
    write_blob_directories(output, blobs.iter())?;
    for digest in blobs {
        let (mut file, size) = store.blobs().open(digest)?;
        output.file(&blob_path(digest), size, &mut file)?;
    }
    Ok(())
}

/// One descriptor per name, or one without.
pub(crate) fn describe(plain: &Descriptor, names: &[Reference]) -> Vec<Descriptor> {
    if names.is_empty() {
        return vec![plain.clone()];
    }
    let named = |name: &Reference| {
        let mut annotations = Annotations::new();
        annotations.insert(NAME.to_owned(), name.to_string());
        if let Some(tag) = name.tag() {
            annotations.insert(REF_NAME.to_owned(), tag.to_owned());
        }
        Descriptor {
            annotations: Some(annotations),
            ..plain.clone()
        }
    };
    names.iter().map(named).collect()
}

pub(crate) fn write_index(
    output: &mut dyn Output,
    listed: Vec<Descriptor>,
) -> Result<(), StoreError> {
    write_document(output, "oci-layout", LAYOUT)?;
    write_document(
        output,
        "index.json",
        RawManifest::from(Index::new(listed)).bytes(),
    )
}

pub(crate) fn write_blob_directories<'a>(
    output: &mut dyn Output,
    blobs: impl Iterator<Item = &'a Digest>,
) -> Result<(), StoreError> {
    let algorithms: BTreeSet<&str> = blobs.map(|digest| digest.algorithm().name()).collect();
    output.directory("blobs")?;
    for algorithm in algorithms {
        output.directory(&format!("blobs/{algorithm}"))?;
    }
    Ok(())
}

pub(crate) fn blob_path(digest: &Digest) -> String {
    format!("blobs/{}/{}", digest.algorithm(), digest.hex())
}

/// Takes every image of a layout into the store, and tells which names it gives them.
pub(crate) fn load(store: &Store, source: &mut dyn Source) -> Result<Vec<LoadedImage>, StoreError> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Version {
        image_layout_version: String,
    }
    // Absent in what some tools write; a wrong one means another format.
    if let Some(bytes) = source.document("oci-layout")? {
        let version: Version = parse_document("oci-layout", &bytes)?;
        if !version.image_layout_version.starts_with("1.") {
            return Err(ArchiveError::LayoutVersion {
                found: version.image_layout_version.chars().take(40).collect(),
            }
            .into());
        }
    }
    let bytes = source
        .document("index.json")?
        .ok_or(ArchiveError::NotAnArchive)?;
    let index: Index = parse_document("index.json", &bytes)?;
    let mut images: Vec<LoadedImage> = Vec::new();
    let mut left = MANIFESTS_MAX;
    for listed in &index.manifests {
        let names: Vec<Reference> = name_of(listed).into_iter().collect();
        let mut found = Vec::new();
        load_manifest(
            store,
            source,
            listed,
            "index.json",
            NESTING_MAX,
            &mut left,
            &mut found,
        )?;
        // Of an image for several platforms, the name means the one that runs here, else the first.
        let host = Platform::host();
        let chosen = found
            .iter()
            .position(|(_, platform)| platform.satisfies(&host))
            .unwrap_or(0);
        for (position, (id, _)) in found.into_iter().enumerate() {
            let names = if position == chosen { &names[..] } else { &[] };
            match images.iter_mut().find(|image| image.id == id) {
                Some(image) => image.names.extend_from_slice(names),
                None => images.push(LoadedImage {
                    id,
                    names: names.to_vec(),
                }),
            }
        }
    }
    Ok(images)
}

fn name_of(listed: &Descriptor) -> Option<Reference> {
    let annotations = listed.annotations.as_ref()?;
    let whole = annotations.get(NAME);
    let is_name = |text: &&String| text.contains(['/', ':']);
    let text = whole.or_else(|| annotations.get(REF_NAME).filter(is_name))?;
    text.parse().ok()
}

type Found = Vec<(crate::images::ImageId, Platform)>;

fn load_manifest(
    store: &Store,
    source: &mut dyn Source,
    listed: &Descriptor,
    by: &str,
    nesting: u32,
    left: &mut usize,
    found: &mut Found,
) -> Result<(), StoreError> {
    let is_attestation = listed
        .annotations
        .as_ref()
        .is_some_and(|annotations| annotations.contains_key(REFERENCE_TYPE));
    if is_attestation {
        return Ok(());
    }
    let inconsistent = |reason: String| ArchiveError::Inconsistent {
        path: by.to_owned(),
        reason,
    };
    *left = left
        .checked_sub(1)
        .ok_or_else(|| inconsistent(format!("it lists more than {MANIFESTS_MAX} manifests")))?;
    take(source, listed, by)?;
    let bytes = store.blobs().read(&listed.digest, DOCUMENT_BYTES_MAX)?;
    let manifest =
        RawManifest::parse(bytes, Some(listed.media_type.as_str())).map_err(|source| {
            ArchiveError::BadManifest {
                digest: listed.digest,
                source,
            }
        })?;
    let by = listed.digest.to_string();
    match manifest.parsed() {
        ParsedManifest::Index(index) => {
            if nesting == 0 {
                return Err(inconsistent("its indexes are nested too deeply".to_owned()).into());
            }
            for listed in &index.manifests {
                load_manifest(store, source, listed, &by, nesting - 1, left, found)?;
            }
            Ok(())
        }
        ParsedManifest::Image(parsed) => {
            let id = load_image(store, source, &manifest, parsed, &by)?;
            found.extend(id);
            Ok(())
        }
    }
}

fn load_image(
    store: &Store,
    source: &mut dyn Source,
    manifest: &RawManifest,
    parsed: &Manifest,
    by: &str,
) -> Result<Option<(crate::images::ImageId, Platform)>, StoreError> {
    let is_image = parsed.config.media_type.as_str() == MediaType::OCI_CONFIG
        || parsed.config.media_type.as_str() == MediaType::DOCKER_CONFIG;
    if !is_image {
        // An artifact, such as a signature: nothing that runs.
        return Ok(None);
    }
    take(source, &parsed.config, by)?;
    let config_max = crate::images::CONFIG_BYTES_MAX as u64;
    let config = store.blobs().read(&parsed.config.digest, config_max)?;
    let image: crate::oci::ImageConfig =
        parse_document(&parsed.config.digest.to_string(), &config)?;
    if image.rootfs.diff_ids.len() != parsed.layers.len() {
        return Err(ArchiveError::Inconsistent {
            path: by.to_owned(),
            reason: format!(
                "it has {} layers, its config {}",
                parsed.layers.len(),
                image.rootfs.diff_ids.len()
            ),
        }
        .into());
    }
    for layer in &parsed.layers {
        take(source, layer, by)?;
    }
    let pairs: BTreeMap<DiffId, Digest> = image
        .rootfs
        .diff_ids
        .iter()
        .copied()
        .zip(parsed.layers.iter().map(|layer| layer.digest))
        .collect();
    super::add_layers(store, &pairs)?;
    let id = store.images().put_image(&config, Some(manifest))?;
    Ok(Some((id, image.platform())))
}

/// Takes a blob that a document names, if it is there and has the size that the document says.
fn take(source: &mut dyn Source, listed: &Descriptor, by: &str) -> Result<(), StoreError> {
    let blob = source
        .blob(&listed.digest)?
        .ok_or_else(|| ArchiveError::MissingEntry {
            wanted: listed.digest.to_string(),
            by: by.to_owned(),
        })?;
    if blob.size() != listed.size {
        return Err(ArchiveError::Inconsistent {
            path: by.to_owned(),
            reason: format!(
                "it gives `{}` {} bytes, it has {}",
                listed.digest,
                listed.size,
                blob.size()
            ),
        }
        .into());
    }
    Ok(())
}

impl Store {
    /// Takes one image of an OCI layout that is a folder, for a platform, and gives it no name. What the store has
    /// already is not read again.
    ///
    /// # Errors
    /// There is no such image, or the layout is not what it says.
    pub fn load_layout_image(
        &self,
        folder: &Path,
        selector: Option<&LayoutSelector>,
        platform: &Platform,
    ) -> Result<ImageId, StoreError> {
        let mut source = Directory::open(self.blobs(), folder)?;
        let bytes = source
            .document("index.json")?
            .ok_or(ArchiveError::NotAnArchive)?;
        let index: Index = parse_document("index.json", &bytes)?;
        let mut listed = select(&index, selector, folder)?.clone();
        for _ in 0..=NESTING_MAX {
            let path = blob_path(&listed.digest);
            let by = listed.digest.to_string();
            let bytes = source
                .document(&path)?
                .ok_or_else(|| ArchiveError::MissingEntry {
                    wanted: by.clone(),
                    by: "index.json".to_owned(),
                })?;
            let mut hasher = Hasher::new(listed.digest.algorithm());
            hasher.update(&bytes);
            if hasher.finish() != listed.digest {
                return Err(ArchiveError::Inconsistent {
                    path,
                    reason: "its content has another digest".to_owned(),
                }
                .into());
            }
            let manifest =
                RawManifest::parse(bytes, Some(listed.media_type.as_str())).map_err(|source| {
                    ArchiveError::BadManifest {
                        digest: listed.digest,
                        source,
                    }
                })?;
            match manifest.parsed() {
                ParsedManifest::Image(parsed) => {
                    return self.take_layout_image(&mut source, &manifest, parsed, &by);
                }
                ParsedManifest::Index(index) => {
                    listed = for_platform(index, platform, &by)?.clone();
                }
            }
        }
        Err(ArchiveError::Inconsistent {
            path: "index.json".to_owned(),
            reason: "its indexes are nested too deeply".to_owned(),
        }
        .into())
    }

    fn take_layout_image(
        &self,
        source: &mut Directory<'_>,
        manifest: &RawManifest,
        parsed: &Manifest,
        by: &str,
    ) -> Result<ImageId, StoreError> {
        let id = ImageId(parsed.config.digest);
        if self.images().image(&id)?.is_some() && self.has_layers(&id)? {
            return Ok(id);
        }
        match load_image(self, source, manifest, parsed, by)? {
            Some((id, _)) => Ok(id),
            None => Err(ArchiveError::Inconsistent {
                path: by.to_owned(),
                reason: "it is an artifact, not an image".to_owned(),
            }
            .into()),
        }
    }

    /// Whether every layer of an image is here, unpacked or as a blob.
    fn has_layers(&self, id: &ImageId) -> Result<bool, StoreError> {
        for diff_id in &self.images().config(id)?.rootfs.diff_ids {
            match self.ensure_unpacked(diff_id) {
                Ok(_) => {}
                Err(StoreError::Layer(LayerError::Missing { .. })) => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        Ok(true)
    }
}

/// The image of an index that a selector means.
fn select<'i>(
    index: &'i Index,
    selector: Option<&LayoutSelector>,
    folder: &Path,
) -> Result<&'i Descriptor, ArchiveError> {
    let with_tag = |tag: &str| {
        let mut manifests = index.manifests.iter();
        manifests.find(|listed| tag_of(listed).as_deref() == Some(tag))
    };
    let found = match selector {
        Some(LayoutSelector::Digest(digest)) => {
            let mut manifests = index.manifests.iter();
            manifests.find(|listed| listed.digest == *digest)
        }
        Some(LayoutSelector::Tag(tag)) => with_tag(tag),
        None => with_tag("latest").or(match index.manifests.as_slice() {
            [only] => Some(only),
            _ => None,
        }),
    };
    found.ok_or_else(|| ArchiveError::NotInLayout {
        path: folder.to_owned(),
        wanted: match selector {
            Some(LayoutSelector::Digest(digest)) => format!("@{digest}"),
            Some(LayoutSelector::Tag(tag)) => format!(":{tag}"),
            None => ":latest".to_owned(),
        },
        known: index
            .manifests
            .iter()
            .map(|listed| match tag_of(listed) {
                Some(tag) => format!(":{tag}"),
                None => format!("@{}", listed.digest),
            })
            .collect(),
    })
}

/// The tag that a layout gives an image, alone or at the end of its whole name.
fn tag_of(listed: &Descriptor) -> Option<String> {
    if let Some(name) = name_of(listed) {
        return name.tag().map(str::to_owned);
    }
    listed.annotations.as_ref()?.get(REF_NAME).cloned()
}

/// The manifest of an index for a platform, or one that says nothing of its platform.
fn for_platform<'i>(
    index: &'i Index,
    platform: &Platform,
    by: &str,
) -> Result<&'i Descriptor, ArchiveError> {
    let is_image = |listed: &&Descriptor| {
        let annotations = listed.annotations.as_ref();
        !annotations.is_some_and(|annotations| annotations.contains_key(REFERENCE_TYPE))
    };
    let fits = |listed: &&Descriptor| {
        let own = listed.platform.as_ref();
        own.is_some_and(|own| own.satisfies(platform))
    };
    let manifests = || index.manifests.iter().filter(is_image);
    manifests()
        .find(fits)
        .or_else(|| manifests().find(|listed| listed.platform.is_none()))
        .ok_or_else(|| ArchiveError::Inconsistent {
            path: by.to_owned(),
            reason: format!("it has no image for {platform}"),
        })
}

/// A layout that is a directory.
pub(crate) struct Directory<'a> {
    blobs: &'a Blobs,
    root: OwnedFd,
    path: PathBuf,
}

impl Directory<'_> {
    pub(crate) fn open<'a>(blobs: &'a Blobs, path: &Path) -> Result<Directory<'a>, FsError> {
        Ok(Directory {
            blobs,
            root: fs::open_dir(path)?,
            path: path.to_owned(),
        })
    }

    fn file(&self, path: &str) -> Result<Option<(File, PathBuf)>, StoreError> {
        // A FIFO must not keep us waiting.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let opened = fs::optional(fs::open_beneath(&self.root, path, flags, Mode::empty()))?;
        let full = self.path.join(path);
        let Some(file) = opened.map(File::from) else {
            return Ok(None);
        };
        if !fs::attempt("stat", &full, || file.metadata())?.is_file() {
            return Err(ArchiveError::BadEntry {
                path: path.to_owned(),
            }
            .into());
        }
        Ok(Some((file, full)))
    }
}

impl Source for Directory<'_> {
    fn document(&mut self, path: &str) -> Result<Option<Vec<u8>>, StoreError> {
        let Some((file, full)) = self.file(path)? else {
            return Ok(None);
        };
        let bytes = fs::attempt("read", &full, || fs::read_bounded(file, DOCUMENT_BYTES_MAX))?;
        Ok(Some(bytes))
    }

    fn blob(&mut self, digest: &Digest) -> Result<Option<VerifiedBlob>, StoreError> {
        let Some((mut file, full)) = self.file(&blob_path(digest))? else {
            return Ok(None);
        };
        let mut ingest = self.blobs.ingest_as(digest.algorithm())?;
        fs::attempt("read", &full, || std::io::copy(&mut file, &mut ingest))?;
        Ok(Some(ingest.commit(Some((*digest, None)))?))
    }
}
