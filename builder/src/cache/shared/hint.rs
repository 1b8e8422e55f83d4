//! Hints: which records a build of the same kind used, so that the next one can ask for all of them at once.
//!
//! The key of a step depends on what the step before it resulted in, so without a hint the records of a chain are asked for
//! one after the other. A hint decides nothing: a record that it names is looked at only if a step of the build turns out
//! to have that key, and one that it does not name is asked for when it is wanted. So it may be old, absent, of another
//! build altogether or made up, and whoever exports last writes it over.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use store::oci::RawManifest;

use super::EntryName;
use super::record::{RecordError, artifact, read_artifact, read_version, unhex};
use crate::cache::{CacheKey, hex};
use crate::dockerfile::ast::InstructionKind;
use crate::graph::op::Encoder;
use crate::request::BuildRequest;

/// Type of the artifact.
const ARTIFACT_TYPE: &str = "application/vnd.longshore.cache.hint.v1+json";

/// The annotation that has the keys.
const ANNOTATION: &str = "dev.longshore.cache.hint";

/// Version of the names below.
const NAME_DOMAIN: &[u8] = b"longshore hint 1";

const VERSION: u32 = 1;

/// Most keys of a hint that are written or looked at.
pub const KEYS_MAX: usize = 1024;

/// The annotation's text.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    keys: Vec<String>,
}

/// The names of the hints of a build, the better one first: of the same Dockerfile, and of one with the same bases, so that
/// an edited one begins with something.
pub(crate) fn names(request: &BuildRequest) -> [EntryName; 2] {
    let (parsed, _) = crate::dockerfile::parse(&request.dockerfile);
    let bases =
        parsed
            .stages
            .iter()
            .filter_map(|stage| match &parsed.instructions[stage.from].kind {
                InstructionKind::From(from) => Some(from.image.text.as_str()),
                _ => None,
            });
    let name = |kind: &str, texts: &[&str]| {
        let mut sink = Encoder::new(NAME_DOMAIN);
        sink.text(kind);
        sink.list(texts.len());
        for text in texts {
            sink.text(text);
        }
        sink.text(request.target.as_deref().unwrap_or_default());
        sink.text(&request.platform_list());
        EntryName::Hint(sink.finish())
    };
    [
        name("dockerfile", &[&request.dockerfile]),
        name("bases", &bases.collect::<Vec<_>>()),
    ]
}

/// The artifact that names these records; the first [`KEYS_MAX`] of them.
pub fn encode(keys: &[CacheKey]) -> RawManifest {
    let text = Text {
        version: VERSION,
        keys: keys.iter().take(KEYS_MAX).map(|key| hex(&key.0)).collect(),
    };
    let text = serde_json::to_string(&text).expect("texts and a number");
    artifact(ARTIFACT_TYPE, None, (ANNOTATION, text))
}

/// The keys in an artifact, each once, and no more than [`KEYS_MAX`] of them.
pub fn decode(bytes: Vec<u8>) -> Result<Vec<CacheKey>, RecordError> {
    let (_, text) = read_artifact(bytes, ANNOTATION)?;
    let text: Text = read_version(&text)?;
    let mut seen = BTreeSet::new();
    let mut keys = Vec::new();
    for key in text.keys.iter().take(KEYS_MAX) {
        let key = CacheKey(unhex(key)?);
        if seen.insert(key) {
            keys.push(key);
        }
    }
    Ok(keys)
}
