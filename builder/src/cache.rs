//! Cache keys: the identity of a step across builds, and the record kept under it.
//!
//! A key is a BLAKE3 hash of the operation and of what its inputs *are*, whatever they came from:
//!
//! * the *fast key* covers each input's whole identity, and can be derived with nothing on this disk;
//! * the *slow key* covers, for inputs that are only copied from, a digest of exactly the paths that the operation
//!   selects. It exists for [`Op::File`] and needs those inputs at hand.
//!
//! The identity of a root file system is the list of its layers' identities. A layer that a step made is identified by
//! its tree digest, without modification times, so a step that ran again and did the same keeps its identity, and all
//! after it still hits (early cutoff). A layer of an image is identified by its DiffID, which is known before it is pulled.

pub mod content_hash;
pub mod explain;
pub mod ingredients;
pub mod shared;

pub use ingredients::Ingredients;

use serde::{Deserialize, Serialize};
use store::layer::{LayerId, TreeDigest};
use store::oci::DiffId;

use crate::graph::op::Encoder;
use crate::graph::{FileAction, Op};

/// Versions of the derivations below. What a key means must never change under one of these.
const FAST_DOMAIN: &[u8] = b"longshore fast key 1";
const SLOW_DOMAIN: &[u8] = b"longshore slow key 1";
const OP_DOMAIN: &[u8] = b"longshore op 1";
const ROOT_DOMAIN: &[u8] = b"longshore root 2";
const DIFF_ID_DOMAIN: &[u8] = b"longshore layer by diff id 1";

/// A digest in hexadecimal.
pub(crate) fn hex(digest: &[u8; 32]) -> String {
    blake3::Hash::from_bytes(*digest).to_hex().to_string()
}

/// Names a cache record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CacheKey(pub [u8; 32]);

/// What a layer or a root file system is, wherever it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Identity(pub [u8; 32]);

impl Identity {
    /// The identity of a layer that a step made.
    pub fn of_tree(tree: TreeDigest) -> Identity {
        Identity(tree.0)
    }

    /// The identity of a layer that came with an image.
    pub fn of_diff_id(diff_id: &DiffId) -> Identity {
        let mut sink = Encoder::new(DIFF_ID_DOMAIN);
        sink.text(&diff_id.to_string());
        Identity(sink.finish())
    }

    /// The identity of a stack without a layer.
    pub fn of_nothing() -> Identity {
        Identity(*blake3::hash(ROOT_DOMAIN).as_bytes())
    }

    /// The identity of this stack with one more layer: a stack costs the same to name however high it is.
    #[must_use]
    pub fn with_layer(self, layer: Identity) -> Identity {
        let mut hasher = blake3::Hasher::new();
        hasher.update(ROOT_DOMAIN);
        hasher.update(&self.0);
        hasher.update(&layer.0);
        Identity(*hasher.finalize().as_bytes())
    }
}

/// The fast key of `op` on `inputs`; `None` if an input has no identity of its own (a local folder).
pub fn fast_key(op: &Op, inputs: &[Option<Identity>]) -> Option<CacheKey> {
    let mut sink = Encoder::new(FAST_DOMAIN);
    op.encode(&mut sink);
    sink.list(inputs.len());
    for input in inputs {
        sink.bytes(&input.as_ref()?.0);
    }
    Some(CacheKey(sink.finish()))
}

/// The slow key of a file operation: `base` is what it changes, `selected` the digest of what each of its copies'
/// sources selects, in order. Patterns and ignore rules are not part of it: what they select is.
pub fn slow_key(op: &Op, base: Option<Identity>, selected: &[[u8; 32]]) -> CacheKey {
    let mut sink = Encoder::new(SLOW_DOMAIN);
    if let Op::Exec(exec) = op {
        exec.encode(&mut sink, false);
    } else if let Op::File(file) = op {
        sink.list(file.actions.len());
        for action in &file.actions {
            match action {
                FileAction::Copy(copy) => {
                    sink.text("copy");
                    sink.list(copy.sources.len());
                    for source in &copy.sources {
                        sink.number(u64::from(source.parents));
                        sink.number(u64::from(source.unpack));
                    }
                    copy.encode_target(&mut sink);
                }
                FileAction::Mkdir(_) => {
                    sink.text("other");
                    action.encode(&mut sink);
                }
            }
        }
    } else {
        op.encode(&mut sink);
    }
    sink.bytes(base.as_ref().map_or(&[], |base| &base.0));
    sink.list(selected.len());
    for digest in selected {
        sink.bytes(digest);
    }
    CacheKey(sink.finish())
}

/// Digest of an operation without its inputs: what "the same step, run on something else" means.
pub fn op_digest(op: &Op) -> [u8; 32] {
    let mut sink = Encoder::new(OP_DOMAIN);
    op.encode(&mut sink);
    sink.finish()
}

/// What a step resulted in, as a record keeps it (JSON; see `docs/formats/cache-record.md`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheRecord {
    /// The layer it made; none if it changed nothing.
    pub layer: Option<RecordedLayer>,
    /// When it ran, in seconds since 1970.
    pub created: i64,
    /// How long that took, in microseconds, where that is known.
    pub took: Option<u64>,
    /// Bytes of the files that it made, where that is known.
    pub bytes: Option<u64>,
}

/// The layer of a [`CacheRecord`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordedLayer {
    /// Its directory.
    pub id: LayerId,
    /// What it is.
    pub tree: TreeDigest,
}

#[derive(Serialize, Deserialize)]
struct RecordText {
    version: u32,
    layer: Option<String>,
    tree: Option<String>,
    created: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    took: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    bytes: Option<u64>,
}

const RECORD_VERSION: u32 = 1;

impl CacheRecord {
    /// The bytes that are kept.
    pub fn encode(&self) -> Vec<u8> {
        let text = RecordText {
            version: RECORD_VERSION,
            layer: self.layer.map(|layer| layer.id.to_string()),
            tree: self.layer.map(|layer| hex(&layer.tree.0)),
            created: self.created,
            took: self.took,
            bytes: self.bytes,
        };
        serde_json::to_vec(&text).expect("a record is plain text and numbers")
    }

    /// Reads a record back; `None` for one that is damaged or of another version, which counts as a miss.
    pub fn decode(bytes: &[u8]) -> Option<CacheRecord> {
        let text: RecordText = serde_json::from_slice(bytes).ok()?;
        if text.version != RECORD_VERSION {
            return None;
        }
        let layer = match (text.layer, text.tree) {
            (Some(id), Some(tree)) => Some(RecordedLayer {
                id: id.parse().ok()?,
                tree: TreeDigest(*blake3::Hash::from_hex(tree).ok()?.as_bytes()),
            }),
            (None, None) => None,
            _ => return None,
        };
        Some(CacheRecord {
            layer,
            created: text.created,
            took: text.took,
            bytes: text.bytes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::graph::{CopyAction, CopySource, ExecOp, FileOp, MkdirAction};

    fn exec(command: &str) -> Op {
        Op::Exec(ExecOp {
            argv: vec![command.to_owned()],
            cwd: "/".to_owned(),
            ..ExecOp::default()
        })
    }

    fn copy(pattern: &str, ignore: &[&str], dest: &str) -> Op {
        let source = CopySource {
            input: 1,
            pattern: pattern.to_owned(),
            ignore: ignore.iter().map(|&pattern| pattern.to_owned()).collect(),
            ..CopySource::default()
        };
        Op::File(FileOp {
            on_base: true,
            actions: vec![FileAction::Copy(CopyAction {
                sources: vec![source],
                dest: dest.to_owned(),
                ..CopyAction::default()
            })],
        })
    }

    #[test]
    fn fast_keys_need_every_identity() {
        let one = Some(Identity([1; 32]));
        let two = Some(Identity([2; 32]));
        assert_ne!(fast_key(&exec("a"), &[one]), fast_key(&exec("b"), &[one]));
        assert_ne!(fast_key(&exec("a"), &[one]), fast_key(&exec("a"), &[two]));
        assert_eq!(fast_key(&exec("a"), &[one]), fast_key(&exec("a"), &[one]));
        assert_eq!(fast_key(&exec("a"), &[None]), None);
    }

    #[test]
    fn slow_keys_cover_what_was_selected_not_how() {
        let base = Some(Identity([1; 32]));
        let key = |op: &Op, digest: u8| slow_key(op, base, &[[digest; 32]]);
        assert_eq!(
            key(&copy("a*", &[], "/d/"), 7),
            key(&copy("ab", &["x"], "/d/"), 7)
        );
        assert_ne!(
            key(&copy("a", &[], "/d/"), 7),
            key(&copy("a", &[], "/d/"), 8)
        );
        assert_ne!(
            key(&copy("a", &[], "/d/"), 7),
            key(&copy("a", &[], "/e/"), 7)
        );
        assert_ne!(
            key(&copy("a", &[], "/d/"), 7),
            slow_key(&copy("a", &[], "/d/"), None, &[[7; 32]])
        );
    }

    #[test]
    fn keys_are_stable() {
        // A change here means that every cache in the world misses: give the domain a new version then.
        let key = fast_key(&exec("make"), &[Some(Identity([0; 32]))]).unwrap();
        expect_test::expect!["047061cdb9cd6023040df3ddd7ae3d742ae81d868c7ead452d3101fb70807eb2"]
            .assert_eq(blake3::Hash::from_bytes(key.0).to_hex().as_str());
        let op = Op::File(FileOp {
            on_base: false,
            actions: vec![FileAction::Mkdir(MkdirAction {
                path: "/w".to_owned(),
                mode: 0o755,
                owner: String::new(),
            })],
        });
        let key = slow_key(&op, None, &[]);
        expect_test::expect!["1fabdb668e6563466967c101cf51c10d23443a4780c3d5f7e9f587cb0d07434f"]
            .assert_eq(blake3::Hash::from_bytes(key.0).to_hex().as_str());
    }

    #[test]
    fn records_read_back_and_damage_is_a_miss() {
        let layer = RecordedLayer {
            id: LayerId::Built([3; 32]),
            tree: TreeDigest([4; 32]),
        };
        for record in [
            CacheRecord {
                layer: Some(layer),
                created: 17,
                took: Some(5),
                bytes: Some(0),
            },
            CacheRecord {
                layer: None,
                created: -1,
                took: None,
                bytes: None,
            },
        ] {
            assert_eq!(CacheRecord::decode(&record.encode()), Some(record));
        }
        assert_eq!(CacheRecord::decode(b"{}"), None);
        assert_eq!(
            CacheRecord::decode(br#"{"version":2,"layer":null,"tree":null,"created":0}"#),
            None
        );
        assert_eq!(
            CacheRecord::decode(br#"{"version":1,"layer":"b3-x","tree":"y","created":0}"#),
            None
        );
    }
}
