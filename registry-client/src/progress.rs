//! Who wants to know how far transfers are.

use store::oci::Digest;

/// Told of each blob's transfer, from several tasks at once; it must not block.
pub trait Progress: Send + Sync {
    /// A transfer of `total` bytes begins.
    fn started(&self, digest: &Digest, total: u64);

    /// `bytes` more were transferred.
    fn advanced(&self, digest: &Digest, bytes: u64);

    /// The transfer goes on at `offset` after a cut: what was counted beyond it did not count.
    fn rewound(&self, _digest: &Digest, _offset: u64) {}

    /// The transfer is complete, or was not needed.
    fn finished(&self, digest: &Digest);
}

/// Tells nobody.
#[derive(Clone, Copy, Debug, Default)]
pub struct Silent;

impl Progress for Silent {
    fn started(&self, _digest: &Digest, _total: u64) {}
    fn advanced(&self, _digest: &Digest, _bytes: u64) {}
    fn finished(&self, _digest: &Digest) {}
}
