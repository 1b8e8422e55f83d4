//! What `fuzz/targets` reaches of this crate's own parsers of foreign bytes. For nobody else.

use bytes::Bytes;
use store::oci::Digest;

use crate::auth::htpasswd;
use crate::manifests;

/// The type of a pushed manifest, and the content that has to be there before it is taken; `None` if it is refused.
pub fn manifest(bytes: &[u8], sent_as: Option<&str>) -> Option<(String, Vec<Digest>)> {
    let bytes = Bytes::copy_from_slice(bytes);
    let (media_type, needs) = manifests::examine(&bytes, sent_as).ok()?;
    let mut needed = needs.blobs;
    needed.extend(needs.manifests);
    Some((media_type, needed))
}

/// The users of an htpasswd file with their hashes, or the number of a line that is none.
pub fn users(text: &str) -> Result<Vec<(String, String)>, usize> {
    let users = htpasswd::parse(text)?;
    let texts = users.into_iter();
    Ok(texts
        .map(|(user, hash)| (user, hash.as_str().to_owned()))
        .collect())
}
