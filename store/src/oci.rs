//! The OCI wire types, each mirroring one section of the specifications.
//!
//! | file | specification |
//! |---|---|
//! | [`digest`] | image-spec `descriptor.md`, "Digests" |
//! | [`descriptor`] | image-spec `descriptor.md`, `image-index.md` (platform), `media-types.md` |
//! | [`manifest`] | image-spec `manifest.md`, `image-index.md` |
//! | [`config`] | image-spec `config.md`, and Docker's additions to it |
//! | [`reference`] | distribution-spec "Pulling manifests", and Docker Hub's defaults |
//! | [`pattern`] | names and tags by pattern, which no specification has |
//! | [`time`] | RFC 3339, as image-spec `config.md` asks for |
//!
//! The structs keep fields that they do not know, in order, and no map in them has a random order: what
//! was read can be written again. A digest is nevertheless always one of bytes received, never of a
//! re-encoding; [`manifest::RawManifest`] carries both.

pub mod config;
pub mod descriptor;
pub mod digest;
pub mod manifest;
pub mod pattern;
pub mod reference;
pub mod time;

pub use config::{History, ImageConfig, RootFs, RunConfig};
pub use descriptor::{Annotations, Descriptor, MediaType, Platform};
pub use digest::{ChainId, DiffId, Digest, DigestAlgorithm, DigestError, Hasher, Hashing};
pub use manifest::{Index, Manifest, ManifestError, RawManifest};
pub use reference::{Reference, ReferenceError};
