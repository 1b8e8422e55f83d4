//! Layers: one directory each, in overlayfs's own form, independent of their parents.
//!
//! A layer directory holds what a step added or changed. A removed path is a character device 0/0, a directory that
//! hides what lies below it carries the xattr `user.overlay.opaque=y`: the form that overlayfs mounts as it stands
//! (option `userxattr`), as root and in a user namespace alike. In a tar the same two are `.wh.NAME` and `.wh..wh..opq`.

pub mod apply;
pub mod compress;
pub mod entry;
pub mod merge;
pub mod scan;
pub mod tar;
pub(crate) mod walk;

use std::fmt;
use std::str::FromStr;

use crate::oci::{DiffId, Digest};

/// Names a layer directory by what it contains.
///
/// A layer that came as a tar is named by its DiffID, one that was built by [`LayerId::Built`], a BLAKE3 digest of its
/// whole tree, modification times included. The text form is the directory's name below `layers/`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LayerId {
    /// `sha256-<hex>`: unpacked from a tar with this DiffID.
    Unpacked(DiffId),
    /// `b3-<hex>`: made by a build step.
    Built([u8; 32]),
}

/// BLAKE3 digest of a tree: paths, types, modes, owners, sizes, link targets, xattrs, devices and bytes, without
/// modification times. Two steps with equal tree digests did the same work.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TreeDigest(pub [u8; 32]);

impl fmt::Display for TreeDigest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b3:{}", blake3::Hash::from_bytes(self.0).to_hex())
    }
}

impl fmt::Display for LayerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            LayerId::Unpacked(DiffId(digest)) => {
                write!(f, "{}-{}", digest.algorithm(), digest.hex())
            }
            LayerId::Built(hash) => write!(f, "b3-{}", blake3::Hash::from_bytes(*hash).to_hex()),
        }
    }
}

/// A text that names no layer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not a layer's name: expected `b3-<hex>` or `sha256-<hex>`")]
pub struct LayerIdError {
    /// The text.
    pub text: String,
}

impl FromStr for LayerId {
    type Err = LayerIdError;

    fn from_str(text: &str) -> Result<LayerId, LayerIdError> {
        let error = || LayerIdError {
            text: text.to_owned(),
        };
        let (algorithm, digits) = text.split_once('-').ok_or_else(error)?;
        if algorithm == "b3" {
            let hash = blake3::Hash::from_hex(digits).map_err(|_| error())?;
            return Ok(LayerId::Built(*hash.as_bytes()));
        }
        let digest: Digest = format!("{algorithm}:{digits}")
            .parse()
            .map_err(|_| error())?;
        Ok(LayerId::Unpacked(DiffId(digest)))
    }
}

/// What is known of a layer once it stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerInfo {
    /// Its name.
    pub id: LayerId,
    /// Identity of its tree; known for built layers, not computed for unpacked ones (their DiffID is identity enough).
    pub tree: Option<TreeDigest>,
    /// Digest of its canonical tar, where somebody already needed it.
    pub diff_id: Option<DiffId>,
    /// Sum of the sizes of its regular files, in bytes.
    pub bytes: u64,
    /// Number of entries, whiteouts included; zero for a step that changed nothing.
    pub entries: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for id in [
            LayerId::Built([7; 32]),
            LayerId::Unpacked(DiffId(Digest::of(b"x"))),
        ] {
            assert_eq!(id.to_string().parse::<LayerId>().unwrap(), id);
        }
        assert!("b3-zz".parse::<LayerId>().is_err());
        assert!("../x".parse::<LayerId>().is_err());
    }
}
