//! What a collection remembers of a repository for the next one: what its manifests name, and what its tags were on.
//!
//! What a digest names never changes, and a tag is where it was while its mark is the same. So a memory is never wrong,
//! only incomplete. Its first line is the digest of the rest: one that was damaged is no memory.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use store::oci::Digest;

use crate::storage::collectable::KnownTags;

/// Raised when the form changes.
const VERSION: u32 = 1;

/// What is remembered of a repository.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Memory {
    version: u32,
    pub(super) tags: KnownTags,
    pub(super) manifests: BTreeMap<Digest, Named>,
}

/// What a manifest names.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Named {
    /// Every digest in it.
    pub(super) names: BTreeSet<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) subject: Option<Digest>,
}

impl Memory {
    /// One with nothing in it yet.
    pub(super) fn new() -> Memory {
        Memory {
            version: VERSION,
            ..Memory::default()
        }
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Memory> {
        let split = bytes.iter().position(|byte| *byte == b'\n')?;
        let (digest, rest) = (&bytes[..split], &bytes[split + 1..]);
        let digest: Digest = std::str::from_utf8(digest).ok()?.parse().ok()?;
        if Digest::of(rest) != digest {
            return None;
        }
        let memory: Memory = serde_json::from_slice(rest).ok()?;
        (memory.version == VERSION).then_some(memory)
    }

    pub(super) fn write(&self) -> Vec<u8> {
        let rest = serde_json::to_vec(self).expect("maps of digests are JSON");
        let mut bytes = format!("{}\n", Digest::of(&rest)).into_bytes();
        bytes.extend(rest);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_read_as_it_was_written_or_not_at_all() {
        let mut memory = Memory::new();
        let digest = Digest::of(b"a");
        memory
            .tags
            .insert("t".to_owned(), ("mark".to_owned(), digest));
        let named = Named {
            names: BTreeSet::from([Digest::of(b"b")]),
            subject: Some(digest),
        };
        memory.manifests.insert(digest, named);
        let bytes = memory.write();
        assert_eq!(Memory::read(&bytes), Some(memory));
        for at in 0..bytes.len() {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Memory::read(&damaged), None, "at {at}");
            assert_eq!(Memory::read(&bytes[..at]), None, "cut at {at}");
        }
        let later = Memory {
            version: VERSION + 1,
            ..Memory::new()
        };
        assert_eq!(Memory::read(&later.write()), None);
    }
}
