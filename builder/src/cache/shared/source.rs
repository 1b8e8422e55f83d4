//! What files and repositories from elsewhere were, so that other machines know without fetching them what stands on them.
//!
//! An entry names the tree and nothing that holds it: what has to be read comes from its own server. It is found by what cannot
//! change (a checksum, a commit), or by a URL; then its server is asked whether the file is still the one that it is about.

use serde::{Deserialize, Serialize};
use store::layer::TreeDigest;
use store::oci::RawManifest;

use super::record::{RecordError, artifact, damaged, read_artifact, read_version, unhex};
use crate::cache::hex;
use crate::remote::Validators;

/// Type of the artifact.
const ARTIFACT_TYPE: &str = "application/vnd.longshore.cache.source.v1+json";

/// The annotation that says what it is.
const ANNOTATION: &str = "dev.longshore.cache.source";

const VERSION: u32 = 1;

/// Longest text of a server's that is kept, in bytes.
const TEXT_BYTES_MAX: usize = 1024;

/// What a source was.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSource {
    /// What it is found by.
    pub key: [u8; 32],
    /// What its files are; none where it has no files.
    pub tree: Option<TreeDigest>,
    /// What the server said of its state, where it is found by its URL.
    pub validators: Option<Validators>,
}

/// The annotation's text.
#[derive(Serialize, Deserialize)]
struct Text {
    version: u32,
    key: String,
    tree: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    validators: Option<ValidatorsText>,
}

#[derive(Serialize, Deserialize)]
struct ValidatorsText {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    last_modified: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
}

impl SharedSource {
    /// The artifact. The same source gives the same bytes.
    pub fn encode(&self) -> RawManifest {
        let validators = self.validators.as_ref().map(|known| ValidatorsText {
            etag: known.etag.clone(),
            last_modified: known.last_modified.clone(),
            size: known.size,
        });
        let text = Text {
            version: VERSION,
            key: hex(&self.key),
            tree: self.tree.map(|tree| hex(&tree.0)),
            validators,
        };
        let text = serde_json::to_string(&text).expect("texts and numbers");
        artifact(ARTIFACT_TYPE, None, (ANNOTATION, text))
    }

    /// Reads the artifact that was found under `key`.
    pub fn decode(bytes: Vec<u8>, key: &[u8; 32]) -> Result<SharedSource, RecordError> {
        let (_, text) = read_artifact(bytes, ANNOTATION)?;
        let text: Text = read_version(&text)?;
        if text.key != hex(key) {
            return Err(damaged("it is the record of another key"));
        }
        let validators = text.validators.map(|known| Validators {
            etag: known.etag,
            last_modified: known.last_modified,
            size: known.size,
        });
        if !validators.as_ref().is_none_or(are_sound) {
            return Err(damaged("no server says of a file what it says"));
        }
        Ok(SharedSource {
            key: *key,
            tree: text.tree.as_deref().map(unhex).transpose()?.map(TreeDigest),
            validators,
        })
    }
}

/// Whether validators are of one state of a file: a `*`, or a list of tags, would fit any.
pub(crate) fn are_sound(known: &Validators) -> bool {
    let is_text = |text: &str| {
        let mut bytes = text.bytes();
        text.len() <= TEXT_BYTES_MAX && bytes.all(|byte| byte == b' ' || byte.is_ascii_graphic())
    };
    let is_tag = |tag: &str| {
        let tag = tag.strip_prefix("W/").unwrap_or(tag);
        let inner = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        inner.is_some_and(|inner| is_text(inner) && !inner.contains(['"', ' ']))
    };
    let one_at_least = known.etag.is_some() || known.last_modified.is_some();
    one_at_least
        && known.etag.as_deref().is_none_or(is_tag)
        && known.last_modified.as_deref().is_none_or(is_text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(etag: &str) -> SharedSource {
        SharedSource {
            key: [1; 32],
            tree: Some(TreeDigest([2; 32])),
            validators: Some(Validators {
                etag: Some(etag.to_owned()),
                last_modified: None,
                size: Some(3),
            }),
        }
    }

    #[test]
    fn sources_read_back() {
        let nothing = SharedSource {
            tree: None,
            validators: None,
            ..source("")
        };
        for source in [source("W/\"a,b\""), nothing] {
            let bytes = source.encode().bytes().to_vec();
            assert_eq!(SharedSource::decode(bytes, &[1; 32]), Ok(source));
        }
    }

    #[test]
    fn the_bytes_are_stable() {
        let bytes = source("\"x\"").encode().bytes().to_vec();
        expect_test::expect![[r#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","artifactType":"application/vnd.longshore.cache.source.v1+json","config":{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2},"layers":[{"mediaType":"application/vnd.oci.empty.v1+json","digest":"sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a","size":2}],"annotations":{"dev.longshore.cache.source":"{\"version\":1,\"key\":\"0101010101010101010101010101010101010101010101010101010101010101\",\"tree\":\"0202020202020202020202020202020202020202020202020202020202020202\",\"validators\":{\"etag\":\"\\\"x\\\"\",\"size\":3}}"}}"#]].assert_eq(&String::from_utf8(bytes).unwrap());
    }

    #[test]
    fn what_fits_any_state_of_a_file_is_no_record() {
        for etag in [
            "*",
            "\"a\", \"b\"",
            "a",
            "",
            "W/*",
            "\"a\nb\"",
            &"x".repeat(2000),
        ] {
            let bytes = source(etag).encode().bytes().to_vec();
            let error = SharedSource::decode(bytes, &[1; 32]).unwrap_err();
            assert_eq!(
                error.to_string(),
                "it is damaged: no server says of a file what it says",
                "{etag}"
            );
        }
        let nothing = SharedSource {
            validators: Some(Validators::default()),
            ..source("")
        };
        let bytes = nothing.encode().bytes().to_vec();
        assert!(SharedSource::decode(bytes, &[1; 32]).is_err());
        let bytes = source("\"x\"").encode().bytes().to_vec();
        assert!(SharedSource::decode(bytes, &[2; 32]).is_err());
    }
}
