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
    /// Of one type by its name and of another by what it says, so that two readers may take it for different images.
    #[error("manifest is called `{media_type}`, but {contradiction}")]
    Ambiguous {
        /// What it is called.
        media_type: String,
        /// What speaks against that.
        contradiction: String,
    },
}

impl RawManifest {
    /// Parses `bytes`. The type is `media_type` (a Content-Type or a descriptor's), else the document's own
    /// `mediaType` field, else told from its fields. An index has no fields of an image manifest, nor the other way round
    /// (image-spec `manifest.md` and `image-index.md`, after CVE-2021-41190).
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
            config: Option<serde::de::IgnoredAny>,
            layers: Option<serde::de::IgnoredAny>,
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
                .or(shape.media_type.clone())
                .unwrap_or_else(|| guessed.to_owned()),
        );
        let (is_index, is_manifest) = (media_type.is_index(), media_type.is_manifest());
        let inner = shape.media_type.map(MediaType::new);
        let is_other =
            |inner: &MediaType| is_index && inner.is_manifest() || is_manifest && inner.is_index();
        let field = [
            ("config", is_index && shape.config.is_some()),
            ("layers", is_index && shape.layers.is_some()),
            ("manifests", is_manifest && shape.manifests.is_some()),
        ];
        let field = field.iter().find(|(_, is_there)| *is_there);
        let contradiction = match (inner.filter(is_other), field) {
            (Some(inner), _) => Some(format!("calls itself `{inner}`")),
            (None, Some((field, _))) => Some(format!("has `{field}`")),
            (None, None) => None,
        };
        if let Some(contradiction) = contradiction {
            return Err(ManifestError::Ambiguous {
                media_type: media_type.0,
                contradiction,
            });
        }
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
    fn what_may_mean_two_things_means_nothing() {
        let check = |body: &str, media_type: Option<&str>, expect: &str| {
            let error = RawManifest::parse(body.as_bytes().to_vec(), media_type).unwrap_err();
            assert_eq!(error.to_string(), expect, "{body}");
        };
        let (index, manifest) = (MediaType::OCI_INDEX, MediaType::OCI_MANIFEST);
        let called = |name: &str, what: &str| format!("manifest is called `{name}`, but {what}");
        let image = RawManifest::from(Manifest::image(
            Descriptor::of(MediaType::OCI_CONFIG, b"{}"),
            Vec::new(),
        ));
        let image = std::str::from_utf8(image.bytes()).unwrap();
        let named = format!("calls itself `{manifest}`");
        check(image, Some(index), &called(index, &named));
        check(
            image,
            Some(MediaType::DOCKER_INDEX),
            &called(MediaType::DOCKER_INDEX, &named),
        );
        let list = format!(r#"{{"schemaVersion":2,"mediaType":"{index}","manifests":[]}}"#);
        let named = format!("calls itself `{index}`");
        check(&list, Some(manifest), &called(manifest, &named));
        let bare = r#"{"schemaVersion":2,"manifests":[]}"#;
        check(bare, Some(manifest), &called(manifest, "has `manifests`"));
        let bare = r#"{"schemaVersion":2,"layers":[]}"#;
        check(bare, Some(index), &called(index, "has `layers`"));
        // Both at once, whatever it is called.
        let both = image.replacen('{', r#"{"manifests":[],"#, 1);
        check(&both, None, &called(manifest, "has `manifests`"));
        let both = list.replacen('{', r#"{"config":{},"#, 1);
        check(&both, None, &called(index, "has `config`"));
        // What is said twice is no contradiction, and null is nothing.
        let docker = image.replace(manifest, MediaType::DOCKER_MANIFEST);
        assert!(RawManifest::parse(docker.into_bytes(), Some(manifest)).is_ok());
        let null = image.replacen('{', r#"{"manifests":null,"#, 1);
        assert!(RawManifest::parse(null.into_bytes(), Some(manifest)).is_ok());
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
