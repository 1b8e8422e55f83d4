//! The URL grammar of distribution-spec, pure: a request's path becomes a [`Route`] or a refusal.
//!
//! ```text
//! /v2/                                   Base
//! /v2/_catalog                           Catalog
//! /v2/[<name>/]_oci/ext/discover         Extensions
//! /v2/_longshore/search                  Search
//! /v2/<name>/_longshore/tags             TagTable
//! /v1/search                             DockerSearch
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
    /// What is offered beyond the specification, by the registry or in one repository.
    Extensions(Option<RepositoryName>),
    /// Repositories by terms.
    Search,
    /// The same to docker.
    DockerSearch,
    /// The tags of a repository with what they are.
    TagTable(RepositoryName),
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
    /// The repository that it is about.
    pub fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Route::Base | Route::Catalog | Route::Search | Route::DockerSearch => None,
            Route::Extensions(name) => name.as_ref(),
            Route::Blob(name, _)
            | Route::Uploads(name)
            | Route::Upload(name, _)
            | Route::Manifest(name, _)
            | Route::Tags(name)
            | Route::TagTable(name)
            | Route::Referrers(name, _) => Some(name),
        }
    }

    /// The same in another repository.
    #[must_use]
    pub fn with_repository(mut self, other: RepositoryName) -> Route {
        match &mut self {
            Route::Base | Route::Catalog | Route::Search | Route::DockerSearch => {}
            Route::Extensions(name) => *name = Some(other),
            Route::Blob(name, _)
            | Route::Uploads(name)
            | Route::Upload(name, _)
            | Route::Manifest(name, _)
            | Route::Tags(name)
            | Route::TagTable(name)
            | Route::Referrers(name, _) => *name = other,
        }
        self
    }

    /// Parses the path of a URL, as it was sent (percent-encoded).
    pub fn parse(path: &str) -> Result<Route, ApiError> {
        let unknown = || ApiError::new(ErrorCode::NotFound);
        if path == "/v1/search" {
            return Ok(Route::DockerSearch);
        }
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
            ["_longshore", "search"] => Ok(Route::Search),
            [name @ .., "_longshore", "tags"] => Ok(Route::TagTable(repository(name)?)),
            ["_oci", "ext", "discover"] => Ok(Route::Extensions(None)),
            [name @ .., "_oci", "ext", "discover"] => {
                Ok(Route::Extensions(Some(repository(name)?)))
            }
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
    let decoded = String::from_utf8(percent_decode(text, false))
        .map_err(|_| ApiError::with(ErrorCode::NameInvalid, "the path is not UTF-8"))?;
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
    /// Parses what follows `?`; bytes that are not UTF-8 become U+FFFD, which no name or digest has.
    pub fn parse(text: Option<&str>) -> Query {
        let decoded =
            |part: &str| String::from_utf8_lossy(&percent_decode(part, true)).into_owned();
        let pairs = text.unwrap_or_default().split('&').map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decoded(key), decoded(value))
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

/// Decodes `%xx` (and `+` in queries). A stray `%` stands for itself.
fn percent_decode(text: &str, plus_is_space: bool) -> Vec<u8> {
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
    decoded
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

#[cfg(test)]
mod tests {
    use super::*;

    const HEX: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[allow(clippy::needless_pass_by_value, reason = "a table of literals")]
    fn check(path: &str, expected: Result<Route, ErrorCode>) {
        let found = Route::parse(path).map_err(|error| error.code());
        assert_eq!(found, expected, "{path}");
    }

    fn name(text: &str) -> RepositoryName {
        RepositoryName::parse(text).unwrap()
    }

    #[test]
    fn parses_every_endpoint() {
        let digest: Digest = format!("sha256:{HEX}").parse().unwrap();
        let tag = |text: &str| ManifestReference::Tag(text.to_owned());
        check("/v2", Ok(Route::Base));
        check("/v2/", Ok(Route::Base));
        check("/v2/_catalog", Ok(Route::Catalog));
        check("/v2/_oci/ext/discover", Ok(Route::Extensions(None)));
        check(
            "/v2/a/b/_oci/ext/discover",
            Ok(Route::Extensions(Some(name("a/b")))),
        );
        check("/v2/_longshore/search", Ok(Route::Search));
        check("/v1/search", Ok(Route::DockerSearch));
        check("/v2/a/b/_longshore/tags", Ok(Route::TagTable(name("a/b"))));
        check("/v2/a/tags/list", Ok(Route::Tags(name("a"))));
        check("/v2/a/b/c/tags/list", Ok(Route::Tags(name("a/b/c"))));
        check("/v2/a/blobs/uploads/", Ok(Route::Uploads(name("a"))));
        check("/v2/a/blobs/uploads", Ok(Route::Uploads(name("a"))));
        let id = UploadId::random();
        check(
            &format!("/v2/a/blobs/uploads/{id}"),
            Ok(Route::Upload(name("a"), id)),
        );
        check(
            &format!("/v2/a/blobs/sha256:{HEX}"),
            Ok(Route::Blob(name("a"), digest)),
        );
        check(
            &format!("/v2/a/blobs/sha256%3A{HEX}"),
            Ok(Route::Blob(name("a"), digest)),
        );
        check(
            &format!("/v2/a/referrers/sha256:{HEX}"),
            Ok(Route::Referrers(name("a"), digest)),
        );
        check(
            "/v2/a/manifests/v1.0-x_y",
            Ok(Route::Manifest(name("a"), tag("v1.0-x_y"))),
        );
        check(
            &format!("/v2/a/manifests/sha256:{HEX}"),
            Ok(Route::Manifest(
                name("a"),
                ManifestReference::Digest(digest),
            )),
        );
    }

    #[test]
    fn names_may_hold_the_words_of_the_grammar() {
        let tag = |text: &str| ManifestReference::Tag(text.to_owned());
        check(
            "/v2/blobs/uploads/manifests/tags",
            Ok(Route::Manifest(name("blobs/uploads"), tag("tags"))),
        );
        check(
            "/v2/tags/list/tags/list",
            Ok(Route::Tags(name("tags/list"))),
        );
        check(
            "/v2/manifests/blobs/uploads/",
            Ok(Route::Uploads(name("manifests"))),
        );
        check(
            "/v2/list/manifests/list",
            Ok(Route::Manifest(name("list"), tag("list"))),
        );
    }

    #[test]
    fn refuses_what_is_no_route() {
        use ErrorCode as E;
        check("/", Err(E::NotFound));
        check("/v1/", Err(E::NotFound));
        check("/v1/search/x", Err(E::NotFound));
        check("/v2/_longshore/tags", Err(E::NameInvalid));
        check("/v2x/", Err(E::NotFound));
        check("/v2/a", Err(E::NotFound));
        check("/v2/a/tags", Err(E::NotFound));
        check("/v2/tags/list", Err(E::NameInvalid));
        check("/v2/A/tags/list", Err(E::NameInvalid));
        check("/v2/../tags/list", Err(E::NameInvalid));
        check("/v2/a/../b/tags/list", Err(E::NameInvalid));
        check("/v2/a//b/tags/list", Err(E::NameInvalid));
        check("/v2/a/./tags/list", Err(E::NameInvalid));
        check("/v2/%2e%2e/tags/list", Err(E::NameInvalid));
        check("/v2/a%2Fb/tags/list", Err(E::NameInvalid));
        check("/v2/a%00/tags/list", Err(E::NameInvalid));
        check("/v2/a%5cb/tags/list", Err(E::NameInvalid));
        check("/v2/a%ff/tags/list", Err(E::NameInvalid));
        check("/v2/_layers/tags/list", Err(E::NameInvalid));
        check(
            &format!("/v2/{}/tags/list", "a".repeat(256)),
            Err(E::NameInvalid),
        );
        check("/v2/a/blobs/sha256:00", Err(E::DigestInvalid));
        check("/v2/a/blobs/md5:00", Err(E::DigestInvalid));
        check("/v2/a/blobs/..", Err(E::DigestInvalid));
        check("/v2/a/manifests/sha256:zz", Err(E::DigestInvalid));
        check("/v2/a/referrers/x", Err(E::DigestInvalid));
        check("/v2/a/blobs/uploads/..", Err(E::BlobUploadUnknown));
        check("/v2/a/blobs/uploads/%2e%2e", Err(E::BlobUploadUnknown));
        check("/v2/a/blobs/uploads/ABC", Err(E::BlobUploadUnknown));
        check(
            "/v2/a/manifests/.x",
            Ok(Route::Manifest(
                name("a"),
                ManifestReference::Impossible(".x".to_owned()),
            )),
        );
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("a=1&b=x%2Fy+z&a=2&c&=d&e=%zz&f=%ff"));
        assert_eq!(query.first("a"), Some("1"));
        assert_eq!(query.all("a").collect::<Vec<_>>(), ["1", "2"]);
        assert_eq!(query.first("b"), Some("x/y z"));
        assert_eq!(query.first("c"), Some(""));
        assert_eq!(query.first(""), None);
        assert_eq!(query.first("e"), Some("%zz"));
        assert_eq!(query.first("f"), Some("\u{fffd}"));
        assert_eq!(percent_encode("a+b c/ü"), "a%2Bb%20c/%C3%BC");
    }

    /// Whatever is thrown at the grammar, it answers, and nothing it accepts can leave a folder.
    #[test]
    fn mutated_paths_never_escape() {
        let seeds = [
            "/v2/library/app/manifests/latest".to_owned(),
            format!("/v2/a/b/blobs/sha256:{HEX}"),
            "/v2/a/blobs/uploads/0f9c-12".to_owned(),
            "/v2/a/tags/list".to_owned(),
        ];
        let splices = [
            "/", "..", "%2f", "%2e%2e", "%00", ":", "//", "_layers", "\u{e9}", "%", "@",
        ];
        let mut random = crate::testing::Random(7);
        for round in 0..20_000 {
            let mut path = seeds[round % seeds.len()].clone();
            for _ in 0..=random.below(3) {
                let mut at = random.below(path.len() + 1);
                while !path.is_char_boundary(at) {
                    at -= 1;
                }
                match random.below(3) {
                    0 => path.insert_str(at, splices[random.below(splices.len())]),
                    1 => path.truncate(at),
                    _ => path.insert(at, char::from(u8::try_from(random.below(128)).unwrap())),
                }
            }
            let (name, last) = match Route::parse(&path) {
                Ok(Route::Manifest(name, ManifestReference::Tag(tag))) => (name, tag),
                Ok(Route::Upload(name, id)) => (name, id.to_string()),
                Ok(Route::Blob(name, digest)) => (name, digest.hex()),
                Ok(Route::Tags(name) | Route::Uploads(name)) => (name, "x".to_owned()),
                _ => continue,
            };
            assert!(
                !name
                    .as_str()
                    .split('/')
                    .any(|part| part.is_empty() || part.starts_with('.') || part.starts_with('_'))
            );
            assert!(!last.contains('/') && last != ".." && last != "." && !last.contains('\0'));
        }
    }
}
