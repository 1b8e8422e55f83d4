//! The URL grammar of distribution-spec, pure: a request's path becomes a [`Route`] or a refusal.
//!
//! ```text
//! /v2/                                   Base
//! /v2/_catalog                           Catalog
//! /v2/<name>/blobs/<digest>              Blob
//! /v2/<name>/blobs/uploads[/]            Uploads
//! /v2/<name>/blobs/uploads/<id>          Upload
//! /v2/<name>/manifests/<tag|digest>      Manifest
//! /v2/<name>/tags/list                   Tags
//! /v2/<name>/referrers/<digest>          Referrers
//! ```
//!
//! Names contain slashes, and `blobs`, `manifests`, … are legal parts of them: so a path is read from its end.
//! Handlers never look at URLs, and nothing of a path reaches the disk unless it is one of the types here.

use std::fmt;

use store::oci::Digest;
use store::oci::reference::{check_repository, check_tag};

use crate::error::{ApiError, ErrorCode};

/// Longest repository name: clients cap `host/name` at 255 characters.
pub const NAME_BYTES_MAX: usize = 255;

/// A repository's name that obeys the specification's grammar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RepositoryName(String);

impl RepositoryName {
    /// Checks `text`; the error says what is wrong.
    pub fn parse(text: &str) -> Result<RepositoryName, String> {
        if text.len() > NAME_BYTES_MAX {
            return Err(format!(
                "the name has {} characters: at most {NAME_BYTES_MAX} are taken",
                text.len()
            ));
        }
        check_repository(text)?;
        Ok(RepositoryName(text.to_owned()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of an upload session: hexadecimal digits and dashes, as UUIDs have.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UploadId(String);

impl UploadId {
    /// Checks `text`: 1 to 64 lower-case hexadecimal digits and dashes.
    pub fn parse(text: &str) -> Option<UploadId> {
        let legal = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f' | b'-');
        ((1..=64).contains(&text.len()) && text.bytes().all(legal))
            .then(|| UploadId(text.to_owned()))
    }

    /// A random (version 4) UUID.
    pub fn random() -> UploadId {
        let mut bytes = [0u8; 16];
        ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
            .expect("the kernel gives random bytes");
        bytes[6] = bytes[6] & 0x0f | 0x40;
        bytes[8] = bytes[8] & 0x3f | 0x80;
        let mut text = String::with_capacity(36);
        for (index, byte) in bytes.iter().enumerate() {
            if matches!(index, 4 | 6 | 8 | 10) {
                text.push('-');
            }
            text.push_str(&format!("{byte:02x}"));
        }
        UploadId(text)
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for UploadId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What a manifest is asked for by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ManifestReference {
    /// By tag, which obeys the grammar.
    Tag(String),
    /// By digest.
    Digest(Digest),
    /// By something that can be no tag: it cannot be put, and is never found.
    Impossible(String),
}

/// A parsed path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Route {
    /// `/v2/`
    Base,
    /// `/v2/_catalog`
    Catalog,
    /// One blob of a repository.
    Blob(RepositoryName, Digest),
    /// Where uploads start.
    Uploads(RepositoryName),
    /// One upload session.
    Upload(RepositoryName, UploadId),
    /// One manifest.
    Manifest(RepositoryName, ManifestReference),
    /// The tags of a repository.
    Tags(RepositoryName),
    /// What refers to a manifest.
    Referrers(RepositoryName, Digest),
}

impl Route {
    /// Parses the path of a URL, as it was sent (percent-encoded).
    pub fn parse(path: &str) -> Result<Route, ApiError> {
        let unknown = || ApiError::new(ErrorCode::NotFound);
        let rest = match path.strip_prefix("/v2") {
            Some("" | "/") => return Ok(Route::Base),
            Some(rest) => rest.strip_prefix('/').ok_or_else(unknown)?,
            None => return Err(unknown()),
        };
        let segments: Vec<String> = rest.split('/').map(segment).collect::<Result<_, _>>()?;
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        let digest = |text: &str| {
            text.parse::<Digest>()
                .map_err(|error| ApiError::with(ErrorCode::DigestInvalid, error.to_string()))
        };
        match segments.as_slice() {
            ["_catalog"] => Ok(Route::Catalog),
            [name @ .., "tags", "list"] => Ok(Route::Tags(repository(name)?)),
            [name @ .., "blobs", "uploads", ""] | [name @ .., "blobs", "uploads"] => {
                Ok(Route::Uploads(repository(name)?))
            }
            [name @ .., "blobs", "uploads", id] => {
                let name = repository(name)?;
                // A session that cannot exist is an unknown session, not a malformed request.
                let id = UploadId::parse(id)
                    .ok_or_else(|| ApiError::new(ErrorCode::BlobUploadUnknown))?;
                Ok(Route::Upload(name, id))
            }
            [name @ .., "blobs", text] => Ok(Route::Blob(repository(name)?, digest(text)?)),
            [name @ .., "referrers", text] => {
                Ok(Route::Referrers(repository(name)?, digest(text)?))
            }
            [name @ .., "manifests", text] => {
                let name = repository(name)?;
                let reference = if text.contains(':') {
                    ManifestReference::Digest(digest(text)?)
                } else if check_tag(text).is_ok() {
                    ManifestReference::Tag((*text).to_owned())
                } else {
                    ManifestReference::Impossible((*text).to_owned())
                };
                Ok(Route::Manifest(name, reference))
            }
            _ => Err(unknown()),
        }
    }
}

fn repository(segments: &[&str]) -> Result<RepositoryName, ApiError> {
    RepositoryName::parse(&segments.join("/"))
        .map_err(|detail| ApiError::with(ErrorCode::NameInvalid, detail))
}

/// One path segment, decoded. An encoded slash would change what the path means, so it is refused.
fn segment(text: &str) -> Result<String, ApiError> {
    let decoded = percent_decode(text, false)
        .ok_or_else(|| ApiError::with(ErrorCode::NameInvalid, "the path is not UTF-8"))?;
    if decoded.contains(['/', '\\', '\0']) {
        return Err(ApiError::with(
            ErrorCode::NameInvalid,
            "the path has an encoded slash or NUL",
        ));
    }
    Ok(decoded)
}

/// The parameters of a query string, decoded, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    /// Parses what follows `?`; pairs that are not UTF-8 are dropped.
    pub fn parse(text: Option<&str>) -> Query {
        let pairs = text.unwrap_or_default().split('&').filter_map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            Some((percent_decode(key, true)?, percent_decode(value, true)?))
        });
        Query(pairs.filter(|(key, _)| !key.is_empty()).collect())
    }

    /// The first value of `key`.
    pub fn first(&self, key: &str) -> Option<&str> {
        let mut pairs = self.0.iter();
        let (_, value) = pairs.find(|(name, _)| name == key)?;
        Some(value)
    }

    /// Every value of `key`, in order.
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(name, _)| name == key)
            .map(|(_, value)| value.as_str())
    }
}

/// Decodes `%xx` (and `+` in queries); `None` if the result is not UTF-8. A stray `%` stands for itself.
fn percent_decode(text: &str, plus_is_space: bool) -> Option<String> {
    if !text.contains(['%', '+']) {
        return Some(text.to_owned());
    }
    let digit = |b: Option<&u8>| b.and_then(|&b| char::from(b).to_digit(16));
    let bytes = text.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        match (byte, digit(bytes.get(at + 1)), digit(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                decoded.push(u8::try_from(high * 16 + low).expect("two hex digits fit a byte"));
                at += 3;
                continue;
            }
            (b'+', ..) if plus_is_space => decoded.push(b' '),
            _ => decoded.push(byte),
        }
        at += 1;
    }
    String::from_utf8(decoded).ok()
}

/// `text` with everything but unreserved characters encoded, for use in a query.
pub fn percent_encode(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/' | b':') {
            encoded.push(char::from(byte));
        } else {
            encoded.push_str(&format!("%{byte:02X}"));
        }
    }
    encoded
}
