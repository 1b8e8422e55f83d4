//! What the keys in a bucket's lists say: the bucket's text, which may be anything; pure.
//!
//! Whatever is not exactly a key that is written here is nobody's, and left alone.

use object_store::path::Path as Key;
use store::oci::Digest;
use store::oci::reference::check_tag;

use crate::routes::UploadId;

/// The names below a folder, if the key is in it.
fn below<'a>(key: &'a Key, folder: &Key) -> Option<Vec<&'a str>> {
    let rest = key.as_ref().strip_prefix(folder.as_ref())?;
    Some(rest.strip_prefix('/')?.split('/').collect())
}

/// The digest of `<alg>/<hex>/<file>` below a folder, and the file.
pub(super) fn link<'a>(key: &'a Key, folder: &Key) -> Option<(Digest, &'a str)> {
    match below(key, folder)?.as_slice() {
        [algorithm, hex, file] => Some((digest(algorithm, hex)?, file)),
        _ => None,
    }
}

/// The digest of `<alg>/<first two digits>/<hex>/data` below a folder.
pub(super) fn data(key: &Key, folder: &Key) -> Option<Digest> {
    match below(key, folder)?.as_slice() {
        [algorithm, first, hex, "data"] if hex.starts_with(first) && first.len() == 2 => {
            digest(algorithm, hex)
        }
        _ => None,
    }
}

/// The tag of `<tag>/current/link` below a folder.
pub(super) fn tag<'a>(key: &'a Key, folder: &Key) -> Option<&'a str> {
    match below(key, folder)?.as_slice() {
        [tag, "current", "link"] if check_tag(tag).is_ok() => Some(tag),
        _ => None,
    }
}

/// The tag and the digest of `<tag>/index/<alg>/<hex>/link` below a folder.
pub(super) fn history<'a>(key: &'a Key, folder: &Key) -> Option<(&'a str, Digest)> {
    match below(key, folder)?.as_slice() {
        [tag, "index", algorithm, hex, "link"] if check_tag(tag).is_ok() => {
            Some((tag, digest(algorithm, hex)?))
        }
        _ => None,
    }
}

/// The session of `<id>/…` below a folder.
pub(super) fn upload(key: &Key, folder: &Key) -> Option<UploadId> {
    match below(key, folder)?.as_slice() {
        [id, _, ..] => UploadId::parse(id),
        _ => None,
    }
}

/// The offset that a part's name says: digits, and nothing else.
pub(super) fn part(key: &Key) -> Option<u64> {
    let name = key.filename()?;
    let is_number = name.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| name.parse().ok()).flatten()
}

/// Only as it is written: digests have one form.
fn digest(algorithm: &str, hex: &str) -> Option<Digest> {
    let text = format!("{algorithm}:{hex}");
    let digest: Digest = text.parse().ok()?;
    (digest.to_string() == text).then_some(digest)
}

/// What a key below `blobs`, a folder of links, of tags or of uploads is taken for, each as the key that would be written for it.
pub(crate) fn taken_for(text: &str) -> Vec<String> {
    let Ok(key) = Key::parse(text) else {
        return Vec::new();
    };
    let mut found = Vec::new();
    let (blobs, links, tags) = (Key::from("blobs"), Key::from("links"), Key::from("tags"));
    let uploads = Key::from("uploads");
    if let Some(digest) = data(&key, &blobs) {
        let (algorithm, hex) = (digest.algorithm(), digest.hex());
        found.push(format!("blobs/{algorithm}/{}/{hex}/data", &hex[..2]));
    }
    if let Some((digest, file)) = link(&key, &links) {
        found.push(format!("links/{}/{file}", super::below(&digest)));
    }
    if let Some(tag) = tag(&key, &tags) {
        found.push(format!("tags/{tag}/current/link"));
    }
    if let Some((tag, digest)) = history(&key, &tags) {
        found.push(format!("tags/{tag}/index/{}/link", super::below(&digest)));
    }
    if let Some(id) = upload(&key, &uploads) {
        let rest = key.as_ref().splitn(3, '/').nth(2).unwrap_or_default();
        found.push(format!("uploads/{id}/{rest}"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(keys: &[String], expect: bool) {
        for text in keys {
            let found = taken_for(text);
            let expected: &[&String] = if expect { &[text] } else { &[] };
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{text}");
        }
    }

    #[test]
    fn only_what_would_be_written_is_taken() {
        let hex = Digest::of(b"x").hex();
        let first = &hex[..2];
        check(
            &[
                format!("blobs/sha256/{first}/{hex}/data"),
                format!("links/sha256/{hex}/link"),
                format!("links/sha256/{hex}/pulled"),
                "tags/v1.0/current/link".to_owned(),
                "uploads/12-ab/startedat".to_owned(),
                "uploads/12-ab/_parts/00000000000000000000".to_owned(),
            ],
            true,
        );
        check(
            &[
                format!("blobs/sha256/zz/{hex}/data"),
                format!("blobs/sha256//{hex}/data"),
                format!("blobs/sha256/{hex}/data"),
                format!("blobs/sha256/{first}/{}/data", hex.to_uppercase()),
                format!("links/md5/{hex}/link"),
                format!("links/sha256/{hex}/x/link"),
                format!("links/sha256/{}/link", &hex[1..]),
                "tags/../current/link".to_owned(),
                "tags/a/b/current/link".to_owned(),
                "tags/a b/current/link".to_owned(),
                "uploads/X/startedat".to_owned(),
                "uploads/12".to_owned(),
                "elsewhere/v1.0/current/link".to_owned(),
                String::new(),
            ],
            false,
        );
    }

    #[test]
    fn parts_are_numbers() {
        let check = |name: &str, expect| assert_eq!(part(&Key::from(name)), expect, "{name}");
        check("a/_parts/00000000000008388608", Some(8_388_608));
        check("a/_parts/18446744073709551615", Some(u64::MAX));
        check("a/_parts/18446744073709551616", None);
        check("a/_parts/+1", None);
        check("a/_parts/-1", None);
        check("a/_parts/1.tmp", None);
    }
}
