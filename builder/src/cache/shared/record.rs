//! A record as an OCI artifact: what a step came to, and the blob of its layer. `docs/formats/shared-cache.md` has the bytes.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::layer::{LayerId, TreeDigest};
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, DiffId, Manifest, MediaType, RawManifest};

use crate::cache::{CacheKey, CacheRecord, RecordedLayer, hex};

/// Type of the artifact that is a record. The version that counts is in the annotation.
const ARTIFACT_TYPE: &str = "application/vnd.longshore.cache.record.v1+json";

/// The annotation that has the record.
const ANNOTATION: &str = "dev.longshore.cache.record";

const VERSION: u32 = 1;

/// Longer ingredients than this are left out, in bytes: they only explain.
const INGREDIENTS_BYTES_MAX: usize = 256 * 1024;

/// What a step came to, as machines tell each other.
#[derive(Clone, Debug, PartialEq)]
pub struct SharedRecord {
    /// What it is found by.
    pub key: CacheKey,
    /// Digest of the operation without its inputs.
    pub op: [u8; 32],
    /// The layer that it made; none if it changed nothing.
    pub layer: Option<SharedLayer>,
    /// When it ran, in seconds since 1970.
    pub created: i64,
    /// How long that took, in microseconds, where that is known.
    pub took: Option<u64>,
    /// Bytes of the files that it made, where that is known.
    pub bytes: Option<u64>,
    /// What the key was made of, by name.
    pub ingredients: Map<String, Value>,
}

/// The layer of a [`SharedRecord`].
#[derive(Clone, Debug, PartialEq)]
pub struct SharedLayer {
    /// What it is.
    pub tree: TreeDigest,
    /// Digest of its tar.
    pub diff_id: DiffId,
    /// The tar, compressed or not.
    pub blob: Descriptor,
}

/// Why an entry is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RecordError {
    /// A newer longshore wrote it.
    #[error("it has version {found}, this longshore knows version {VERSION}")]
    Newer {
        /// Its version.
        found: u32,
    },
    /// It is something else, or was changed since.
    #[error("it is damaged: {reason}")]
    Damaged {
        /// What is wrong.
        reason: &'static str,
    },
}

pub(super) fn damaged(reason: &'static str) -> RecordError {
    RecordError::Damaged { reason }
}

/// The annotation's text.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    key: String,
    op: String,
    tree: Option<String>,
    diff_id: Option<DiffId>,
    created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    took: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    ingredients: Map<String, Value>,
}

/// The one field that no version may change.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl SharedRecord {
    /// The same as a record of our own. Its layer is `standing` where that has its content, else what it will be once it
    /// is fetched.
    pub fn known(&self, standing: Option<LayerId>) -> CacheRecord {
        let layer = self.layer.as_ref().map(|layer| RecordedLayer {
            id: standing.unwrap_or(LayerId::Unpacked(layer.diff_id)),
            tree: layer.tree,
        });
        CacheRecord {
            layer,
            created: self.created,
            took: self.took,
            bytes: self.bytes,
        }
    }

    /// The artifact. The same record gives the same bytes.
    pub fn encode(&self) -> RawManifest {
        let size = serde_json::to_vec(&self.ingredients).map_or(0, |text| text.len());
        let ingredients = match size {
            ..=INGREDIENTS_BYTES_MAX => self.ingredients.clone(),
            _ => Map::new(),
        };
        let text = Text {
            version: VERSION,
            key: hex(&self.key.0),
            op: hex(&self.op),
            tree: self.layer.as_ref().map(|layer| hex(&layer.tree.0)),
            diff_id: self.layer.as_ref().map(|layer| layer.diff_id),
            created: self.created,
            took: self.took,
            bytes: self.bytes,
            ingredients,
        };
        let text = serde_json::to_string(&text).expect("a record is texts and numbers");
        artifact(
            ARTIFACT_TYPE,
            self.layer.as_ref().map(|layer| layer.blob.clone()),
            (ANNOTATION, text),
        )
    }

    /// Reads the artifact that was found under `key`.
    pub fn decode(bytes: Vec<u8>, key: &CacheKey) -> Result<SharedRecord, RecordError> {
        let (layers, text) = read_artifact(bytes, ANNOTATION)?;
        let text: Text = read_version(&text)?;
        if text.key != hex(&key.0) {
            return Err(damaged("it is the record of another key"));
        }
        let layer = match (text.tree, text.diff_id, &layers[..]) {
            (Some(tree), Some(diff_id), [blob]) => Some(SharedLayer {
                tree: TreeDigest(unhex(&tree)?),
                diff_id,
                blob: blob.clone(),
            }),
            (None, None, [blob]) if blob.media_type.as_str() == MediaType::OCI_EMPTY => None,
            _ => return Err(damaged("its layer and its tree do not belong together")),
        };
        Ok(SharedRecord {
            key: *key,
            op: unhex(&text.op)?,
            layer,
            created: text.created,
            took: text.took,
            bytes: text.bytes,
            ingredients: text.ingredients,
        })
    }
}

/// The empty JSON object, which artifacts name where they have nothing else to name.
pub(crate) const EMPTY: &[u8] = b"{}";

/// Describes [`EMPTY`].
pub(crate) fn empty() -> Descriptor {
    Descriptor::of(MediaType::OCI_EMPTY, EMPTY)
}

/// An artifact of one blob or none, and one annotation.
pub(super) fn artifact(
    kind: &str,
    blob: Option<Descriptor>,
    (name, text): (&str, String),
) -> RawManifest {
    let layers = vec![blob.unwrap_or_else(empty)];
    RawManifest::from(Manifest {
        artifact_type: Some(kind.to_owned()),
        annotations: Some([(name.to_owned(), text)].into()),
        ..Manifest::image(empty(), layers)
    })
}

/// The blobs of an artifact, and its annotation.
pub(super) fn read_artifact(
    bytes: Vec<u8>,
    annotation: &str,
) -> Result<(Vec<Descriptor>, String), RecordError> {
    let raw = RawManifest::parse(bytes, None).map_err(|_| damaged("it is no manifest"))?;
    let ParsedManifest::Image(manifest) = raw.parsed() else {
        return Err(damaged("it is an index"));
    };
    let text = manifest
        .annotations
        .as_ref()
        .and_then(|all| all.get(annotation));
    let text = text.ok_or(damaged("it lacks its annotation"))?;
    Ok((manifest.layers.clone(), text.clone()))
}

/// Reads a text of which only [`VERSION`] is known.
pub(super) fn read_version<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, RecordError> {
    let unreadable = |_| damaged("its text cannot be read");
    let Version { version } = serde_json::from_str(text).map_err(unreadable)?;
    if version > VERSION {
        return Err(RecordError::Newer { found: version });
    }
    serde_json::from_str(text).map_err(unreadable)
}

pub(super) fn unhex(text: &str) -> Result<[u8; 32], RecordError> {
    let hash = blake3::Hash::from_hex(text).map_err(|_| damaged("a digest in it is none"))?;
    Ok(*hash.as_bytes())
}

#[cfg(test)]
pub(crate) mod tests {
    use store::oci::Digest;

    use super::*;

    /// A record of a layer whose tar is `tar`, uncompressed.
    pub(crate) fn record(key: u8, tar: &[u8]) -> SharedRecord {
        SharedRecord {
            key: CacheKey([key; 32]),
            op: [9; 32],
            layer: Some(SharedLayer {
                tree: TreeDigest([key; 32]),
                diff_id: DiffId(Digest::of(tar)),
                blob: Descriptor::of(MediaType::OCI_LAYER, tar),
            }),
            created: 1_700_000_000,
            took: Some(5),
            bytes: None,
            ingredients: [("command".to_owned(), "make".into())]
                .into_iter()
                .collect(),
        }
    }

    #[test]
    fn records_read_back() {
        let nothing = SharedRecord {
            layer: None,
            ingredients: Map::new(),
            ..record(1, b"tar")
        };
        for record in [record(1, b"tar"), nothing] {
            let bytes = record.encode().bytes().to_vec();
            assert_eq!(SharedRecord::decode(bytes, &record.key), Ok(record));
        }
    }

    #[test]
    fn the_bytes_are_stable() {
        // What they say must never change under this version.
        let text = String::from_utf8(record(1, b"tar").encode().bytes().to_vec()).unwrap();
        expect_test::expect![[r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.longshore.cache.record.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.image.layer.v1.tar","digest":"sha256:90aebae315675cbf04612de4f7d5874850f48e0b8dd82becbeaa47ca93f5ebfb","size":3}],"annotations":{"dev.longshore.cache.record":"{\"version\":1,\"key\":\"0101010101010101010101010101010101010101010101010101010101010101\",\"op\":\"0909090909090909090909090909090909090909090909090909090909090909\",\"tree\":\"0101010101010101010101010101010101010101010101010101010101010101\",\"diff_id\":\"sha256:90aebae315675cbf04612de4f7d5874850f48e0b8dd82becbeaa47ca93f5ebfb\",\"created\":1700000000,\"took\":5,\"ingredients\":{\"command\":\"make\"}}"}}"#]].assert_eq(&text);
    }

    #[test]
    fn damage_and_newer_versions_are_told_apart() {
        let good = String::from_utf8(record(1, b"tar").encode().bytes().to_vec()).unwrap();
        let check = |text: &str, expected: &str| {
            let error = SharedRecord::decode(text.as_bytes().to_vec(), &CacheKey([1; 32]));
            assert_eq!(error.unwrap_err().to_string(), expected);
        };
        check("{", "it is damaged: it is no manifest");
        check(
            &good.replace(ANNOTATION, "x"),
            "it is damaged: it lacks its annotation",
        );
        let newer = good.replace(r#"\"version\":1"#, r#"\"version\":2"#);
        check(&newer, "it has version 2, this longshore knows version 1");
        let other = good.replace(r#"\"tree\":\"01"#, r#"\"tree\":\"0x"#);
        check(&other, "it is damaged: a digest in it is none");
        let bare = good.replace(r#"\"diff_id\":\"sha256"#, r#"\"other\":\"sha256"#);
        check(
            &bare,
            "it is damaged: its layer and its tree do not belong together",
        );
        let error = SharedRecord::decode(good.into_bytes(), &CacheKey([2; 32])).unwrap_err();
        assert_eq!(
            error.to_string(),
            "it is damaged: it is the record of another key"
        );
    }
}
