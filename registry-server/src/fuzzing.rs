//! What `fuzz/targets` reaches of this crate's own parsers of foreign bytes. For nobody else.

use bytes::Bytes;
use store::oci::Digest;

use crate::auth::htpasswd;
use crate::manifests;
use crate::storage::objects::{keys, link, whole};

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

/// What a key of a bucket's list is taken for, below `blobs`, `links`, `tags` or `uploads`: the key that would be written for it.
pub fn bucket_key(text: &str) -> Vec<String> {
    keys::taken_for(text)
}

/// The key and the multipart upload that a note in a bucket tells of.
pub fn bucket_note(bytes: &[u8]) -> Option<(String, String)> {
    let (key, id) = whole::read_note(bytes, &"blobs".into())?;
    Some((key.into(), id))
}

/// What a tag's link in a bucket leads to.
pub fn bucket_link(bytes: &[u8]) -> Option<Digest> {
    link::parse(&"link".into(), &Bytes::copy_from_slice(bytes)).ok()
}
