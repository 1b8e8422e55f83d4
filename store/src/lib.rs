//! Everything longshore keeps on disk: OCI types, blobs by digest, layers, snapshots, the index and its garbage collection.

#![forbid(unsafe_code)]

pub mod layer;
pub mod oci;

/// Largest manifest or index that is read, in bytes: the distribution specification asks for at least 4 MiB.
pub const MANIFEST_BYTES_MAX: usize = 4 * 1024 * 1024;
