//! Manifests and indexes, parsed beside the bytes they came as.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::descriptor::{Annotations, Descriptor, MediaType};
use super::digest::Digest;

/// An image manifest (image-spec `manifest.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// The manifest's own media type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// Type of the artifact, where this is none of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The configuration blob.
    pub config: Descriptor,
    /// The layer blobs, oldest first.
    #[serde(default)]
    pub layers: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
    /// Fields unknown to longshore, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Manifest {
    /// An OCI image manifest of a config and layers.
    pub fn image(config: Descriptor, layers: Vec<Descriptor>) -> Manifest {
        Manifest {
            schema_version: 2,
            media_type: Some(MediaType::from(MediaType::OCI_MANIFEST)),
            artifact_type: None,
            config,
            layers,
            subject: None,
            annotations: None,
            extra: Map::new(),
        }
    }
}

/// An image index or Docker manifest list (image-spec `image-index.md`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// The index's own media type; OCI allows it to be absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<MediaType>,
    /// Type of the artifact, where this is none of an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// What the index lists, in its order.
    #[serde(default)]
    pub manifests: Vec<Descriptor>,
    /// The manifest this one is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Free annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<Annotations>,
    /// Fields unknown to longshore, kept.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Index {
    /// An OCI index of `manifests`.
    pub fn new(manifests: Vec<Descriptor>) -> Index {
        Index {
            schema_version: 2,
            media_type: Some(MediaType::from(MediaType::OCI_INDEX)),
            artifact_type: None,
            manifests,
            subject: None,
            annotations: None,
            extra: Map::new(),
        }
    }
}

/// Either kind, parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParsedManifest {
    /// An image manifest.
    Image(Box<Manifest>),
    /// An index.
    Index(Box<Index>),
}

/// A manifest's bytes as they were received, with what they say.
///
/// The digest of a manifest is one of these bytes, never of a re-encoding.
#[derive(Clone, Debug)]
pub struct RawManifest {
    bytes: Vec<u8>,
    media_type: MediaType,
    digest: Digest,
    parsed: ParsedManifest,
}

/// Why bytes are not a manifest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManifestError {
    /// Longer than [`crate::MANIFEST_BYTES_MAX`].
    #[error("manifest has {size} bytes: at most {max} are taken")]
    TooLarge {
        /// Bytes received.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// Not JSON, or not of the right shape.
    #[error("manifest is not valid")]
    Json(#[from] serde_json::Error),
    /// A media type that is neither a manifest nor an index.
    #[error(
        "unsupported manifest type `{media_type}`: expected an OCI or Docker v2 manifest or index"
    )]
    UnknownType {
        /// What it calls itself.
        media_type: String,
    },
}

impl RawManifest {
    /// Parses `bytes`. The type is `media_type` (a Content-Type or a descriptor's), else the document's own
    /// `mediaType` field, else told from its fields.
    pub fn parse(bytes: Vec<u8>, media_type: Option<&str>) -> Result<RawManifest, ManifestError> {
        if bytes.len() > crate::MANIFEST_BYTES_MAX {
            return Err(ManifestError::TooLarge {
                size: bytes.len(),
                max: crate::MANIFEST_BYTES_MAX,
            });
        }
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Shape {
            media_type: Option<String>,
            manifests: Option<serde::de::IgnoredAny>,
        }
        let shape: Shape = serde_json::from_slice(&bytes)?;
        let guessed = if shape.manifests.is_some() {
            MediaType::OCI_INDEX
        } else {
            MediaType::OCI_MANIFEST
        };
        // Plain registries and layouts label manifests with generic types; believe the document then.
        let outer = media_type.filter(|t| {
            let t = MediaType::from(*t);
            t.is_index() || t.is_manifest()
        });
        let media_type = MediaType::new(
            outer
                .map(str::to_owned)
                .or(shape.media_type)
                .unwrap_or_else(|| guessed.to_owned()),
        );
        let parsed = if media_type.is_index() {
            ParsedManifest::Index(Box::new(serde_json::from_slice(&bytes)?))
        } else if media_type.is_manifest() {
            ParsedManifest::Image(Box::new(serde_json::from_slice(&bytes)?))
        } else {
            return Err(ManifestError::UnknownType {
                media_type: media_type.0,
            });
        };
        let digest = Digest::of(&bytes);
        Ok(RawManifest {
            bytes,
            media_type,
            digest,
            parsed,
        })
    }

    /// The bytes, verbatim.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// What kind of manifest it is.
    pub fn media_type(&self) -> &MediaType {
        &self.media_type
    }

    /// SHA-256 digest of the bytes.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// What the bytes say.
    pub fn parsed(&self) -> &ParsedManifest {
        &self.parsed
    }

    /// A descriptor of this manifest.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(
            self.media_type.0.clone(),
            self.digest,
            self.bytes.len() as u64,
        )
    }
}

impl From<Manifest> for RawManifest {
    /// Writes a manifest of our own as compact JSON.
    fn from(manifest: Manifest) -> RawManifest {
        let bytes = serde_json::to_vec(&manifest).expect("a manifest has only text keys");
        let media_type = manifest
            .media_type
            .clone()
            .unwrap_or_else(|| MediaType::from(MediaType::OCI_MANIFEST));
        let digest = Digest::of(&bytes);
        RawManifest {
            bytes,
            media_type,
            digest,
            parsed: ParsedManifest::Image(Box::new(manifest)),
        }
    }
}

impl From<Index> for RawManifest {
    /// Writes an index of our own as compact JSON.
    fn from(index: Index) -> RawManifest {
        let bytes = serde_json::to_vec(&index).expect("an index has only text keys");
        let media_type = index
            .media_type
            .clone()
            .unwrap_or_else(|| MediaType::from(MediaType::OCI_INDEX));
        let digest = Digest::of(&bytes);
        RawManifest {
            bytes,
            media_type,
            digest,
            parsed: ParsedManifest::Index(Box::new(index)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_manifests_read_back() {
        let config = Descriptor::of(MediaType::OCI_CONFIG, b"{}");
        let raw = RawManifest::from(Manifest::image(config, Vec::new()));
        let again = RawManifest::parse(raw.bytes().to_vec(), None).unwrap();
        assert_eq!(again.digest(), raw.digest());
        assert_eq!(again.parsed(), raw.parsed());
    }

    #[test]
    fn kinds_are_told_apart_without_a_media_type() {
        let raw = RawManifest::parse(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec(), None);
        assert!(raw.unwrap().media_type().is_index());
        let schema1 = br#"{"schemaVersion":1,"mediaType":"application/vnd.docker.distribution.manifest.v1+json"}"#;
        let error = RawManifest::parse(schema1.to_vec(), None).unwrap_err();
        assert!(
            matches!(error, ManifestError::UnknownType { .. }),
            "{error}"
        );
    }
}
