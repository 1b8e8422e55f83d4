//! Files as an artifact: what is attached to an image, or stands for itself.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use store::oci::{
    Annotations, Descriptor, DigestAlgorithm, Hashing, Manifest, MediaType, RawManifest,
};

use crate::BlobSource;
use crate::blobs::EMPTY;
use crate::copy::CopyError;
use crate::copy::tree::{Blob, Tree};

/// Annotation with a file's name (image-spec `annotations.md`).
const TITLE: &str = "org.opencontainers.image.title";

/// Most files of one artifact.
const FILES_MAX: usize = 1000;

/// What an artifact is made of.
#[derive(Clone, Debug)]
pub struct Attachment {
    /// What it is.
    pub artifact_type: String,
    /// Its files, each with its media type.
    pub files: Vec<(PathBuf, String)>,
    /// What is said of it.
    pub annotations: Annotations,
    /// The manifest that it is about.
    pub subject: Option<Descriptor>,
}

/// An artifact of files. They are read twice: once to be hashed, once to be sent.
pub fn artifact(name: &str, attachment: &Attachment) -> Result<Tree, CopyError> {
    if attachment.files.len() > FILES_MAX {
        return Err(CopyError::TooMuch {
            place: name.to_owned(),
            what: "files",
            max: FILES_MAX as u64,
        });
    }
    let empty = Descriptor::of(MediaType::OCI_EMPTY, EMPTY);
    let mut blobs = BTreeMap::new();
    let mut add = |descriptor: &Descriptor, source: BlobSource| {
        let descriptor = descriptor.clone();
        blobs.insert(descriptor.digest, Blob { descriptor, source });
    };
    add(&empty, BlobSource::Bytes(Bytes::from_static(EMPTY)));
    let mut layers = Vec::new();
    for (path, kind) in &attachment.files {
        let (mut descriptor, source) = file_blob(path, kind)?;
        add(&descriptor, source);
        if let Some(title) = path.file_name().and_then(|name| name.to_str()) {
            let title = (TITLE.to_owned(), title.to_owned());
            descriptor.annotations = Some(Annotations::from([title]));
        }
        layers.push(descriptor);
    }
    // A manifest without layers is not portable: the specification's way out is the empty blob.
    if layers.is_empty() {
        layers.push(empty.clone());
    }
    let mut manifest = Manifest::image(empty, layers);
    manifest.artifact_type = Some(attachment.artifact_type.clone());
    manifest.subject.clone_from(&attachment.subject);
    if !attachment.annotations.is_empty() {
        manifest.annotations = Some(attachment.annotations.clone());
    }
    let raw = RawManifest::from(manifest);
    Ok(Tree {
        name: name.to_owned(),
        root: raw.digest(),
        manifests: vec![(raw.digest(), raw)],
        blobs,
        referrers: Vec::new(),
    })
}

/// A file as a blob: it is hashed now, and must not change until it is sent.
pub fn file_blob(path: &Path, media_type: &str) -> Result<(Descriptor, BlobSource), CopyError> {
    let failed = || CopyError::file("read", path);
    let file = File::open(path).map_err(failed())?;
    let mut hashed = Hashing::new(io::sink(), DigestAlgorithm::Sha256);
    io::copy(&mut BufReader::with_capacity(256 * 1024, file), &mut hashed).map_err(failed())?;
    let (_, digest, size) = hashed.finish();
    let descriptor = Descriptor::new(media_type, digest, size);
    Ok((descriptor, BlobSource::File(path.to_owned())))
}
