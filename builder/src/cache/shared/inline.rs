//! Records in an image's configuration (`type=inline`): of the steps whose layers the image has, so that the image alone is
//! cache enough for the next build of it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use store::layer::TreeDigest;
use store::oci::{Descriptor, DiffId, ImageConfig};

use super::record::{RecordError, SharedLayer, SharedRecord, read_version, unhex};
use crate::cache::{CacheKey, hex};

/// The configuration's field.
pub(crate) const FIELD: &str = "dev.longshore.cache";

const VERSION: u32 = 1;

#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    records: Vec<RecordText>,
}

#[derive(Serialize, Deserialize)]
struct RecordText {
    keys: Vec<String>,
    op: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tree: Option<String>,
    /// Digest of the layer's tar, one of the image's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    diff_id: Option<DiffId>,
    created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    took: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

/// A result with all the keys that it is found by.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct InlineRecord {
    /// Its keys.
    pub(crate) keys: Vec<CacheKey>,
    /// Digest of the operation without its inputs.
    pub(crate) op: [u8; 32],
    /// Its layer: what it is, and the digest of its tar.
    pub(crate) layer: Option<(TreeDigest, DiffId)>,
    /// When it ran, in seconds since 1970.
    pub(crate) created: i64,
    /// How long that took, in microseconds, where that is known.
    pub(crate) took: Option<u64>,
    /// Bytes of the files that it made, where that is known.
    pub(crate) bytes: Option<u64>,
}

/// The field's value.
pub(crate) fn encode(records: &[InlineRecord]) -> Value {
    let records = records.iter().map(|record| RecordText {
        keys: record.keys.iter().map(|key| hex(&key.0)).collect(),
        op: hex(&record.op),
        tree: record.layer.map(|(tree, _)| hex(&tree.0)),
        diff_id: record.layer.map(|(_, diff_id)| diff_id),
        created: record.created,
        took: record.took,
        bytes: record.bytes,
    });
    let text = Text {
        version: VERSION,
        records: records.collect(),
    };
    serde_json::to_value(&text).expect("texts and numbers")
}

/// The records of an image, whose layers come as the blobs `layers`, oldest first; none where it has none.
pub fn decode(
    config: &ImageConfig,
    layers: &[Descriptor],
) -> Result<Vec<SharedRecord>, RecordError> {
    let Some(value) = config.extra.get(FIELD) else {
        return Ok(Vec::new());
    };
    let text: Text = read_version(&value.to_string())?;
    let blob = |diff_id: &DiffId| {
        let position = config.rootfs.diff_ids.iter().position(|id| id == diff_id);
        position.and_then(|position| layers.get(position)).cloned()
    };
    let mut records = Vec::new();
    for record in text.records {
        let damaged = RecordError::Damaged {
            reason: "a record in it is of no layer of the image",
        };
        let layer = match (&record.tree, &record.diff_id) {
            (Some(tree), Some(diff_id)) => Some(SharedLayer {
                tree: TreeDigest(unhex(tree)?),
                diff_id: *diff_id,
                blob: blob(diff_id).ok_or(damaged)?,
            }),
            (None, None) => None,
            _ => return Err(damaged),
        };
        for key in &record.keys {
            records.push(SharedRecord {
                key: CacheKey(unhex(key)?),
                op: unhex(&record.op)?,
                layer: layer.clone(),
                created: record.created,
                took: record.took,
                bytes: record.bytes,
                ingredients: Map::new(),
            });
        }
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use store::oci::{Digest, MediaType, Platform};

    use super::*;

    fn image(records: &[InlineRecord]) -> (ImageConfig, Vec<Descriptor>) {
        let mut config = ImageConfig::scratch(&Platform::host());
        config.rootfs.diff_ids = vec![DiffId(Digest::of(b"base")), DiffId(Digest::of(b"own"))];
        config.extra.insert(FIELD.to_owned(), encode(records));
        let layer = |bytes: &[u8]| Descriptor::of(MediaType::OCI_LAYER_GZIP, bytes);
        (config, vec![layer(b"base gz"), layer(b"own gz")])
    }

    #[test]
    fn every_key_finds_the_layer_of_the_image() {
        let record = InlineRecord {
            keys: vec![CacheKey([1; 32]), CacheKey([2; 32])],
            op: [3; 32],
            layer: Some((TreeDigest([4; 32]), DiffId(Digest::of(b"own")))),
            created: 17,
            took: Some(1),
            bytes: Some(2),
        };
        let first = record.clone();
        let nothing = InlineRecord {
            keys: vec![CacheKey([5; 32])],
            layer: None,
            ..record
        };
        let (config, layers) = image(&[first, nothing]);
        // As it comes from a registry.
        let text = serde_json::to_vec(&config).unwrap();
        let config: ImageConfig = serde_json::from_slice(&text).unwrap();
        let found = decode(&config, &layers).unwrap();
        let keys: Vec<u8> = found.iter().map(|record| record.key.0[0]).collect();
        assert_eq!(keys, [1, 2, 5]);
        assert_eq!(found[0].layer.as_ref().unwrap().blob, layers[1]);
        assert_eq!(found[2].layer, None);
    }

    #[test]
    fn what_cannot_be_used_is_said() {
        let record = InlineRecord {
            keys: vec![CacheKey([1; 32])],
            op: [3; 32],
            layer: Some((TreeDigest([4; 32]), DiffId(Digest::of(b"another image's")))),
            created: 17,
            took: None,
            bytes: None,
        };
        let (mut config, layers) = image(&[record]);
        let error = decode(&config, &layers).unwrap_err().to_string();
        assert_eq!(
            error,
            "it is damaged: a record in it is of no layer of the image"
        );
        config.extra[FIELD]["version"] = 2.into();
        let error = decode(&config, &layers).unwrap_err();
        assert_eq!(error, RecordError::Newer { found: 2 });
        config.extra.remove(FIELD);
        assert_eq!(decode(&config, &layers), Ok(Vec::new()));
    }
}
