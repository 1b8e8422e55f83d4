//! Manifests: read, written, removed, and an image chosen from an index (distribution-spec end-3, end-7, end-9).

use std::str::FromStr as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use reqwest::header::{ACCEPT, CONTENT_TYPE};
use reqwest::{Method, StatusCode};
use store::MANIFEST_BYTES_MAX;
use store::oci::manifest::ParsedManifest;
use store::oci::{
    Descriptor, Digest, Hasher, ImageConfig, Index, MediaType, Platform, RawManifest, Reference,
};

use crate::Client;
use crate::auth::bearer::Scope;
use crate::error::{ClientError, RequestLine};
use crate::registry::Registry;
use crate::transport::{Answer, Call, Payload};

/// Largest image configuration that is read, in bytes. Builders put their inline caches there.
const CONFIG_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most indexes below one another.
const INDEX_DEPTH_MAX: usize = 4;

const DIGEST_HEADER: &str = "docker-content-digest";

pub(crate) const MANIFEST_TYPES: [&str; 4] = [
    MediaType::OCI_INDEX,
    MediaType::OCI_MANIFEST,
    MediaType::DOCKER_INDEX,
    MediaType::DOCKER_MANIFEST,
];

/// An image as a registry has it, all but its layers.
#[derive(Clone, Debug)]
pub struct RemoteImage {
    /// What was asked for.
    pub reference: Reference,
    /// The image's manifest.
    pub manifest: RawManifest,
    /// The configuration's bytes.
    pub config_bytes: Vec<u8>,
    /// What they say.
    pub config: ImageConfig,
    /// The index that the reference names, if it names one.
    pub index: Option<RawManifest>,
}

impl RemoteImage {
    /// The layers' descriptors, oldest first.
    pub fn layers(&self) -> &[Descriptor] {
        match self.manifest.parsed() {
            ParsedManifest::Image(manifest) => &manifest.layers,
            ParsedManifest::Index(_) => &[],
        }
    }
}

impl Client {
    /// Reads a manifest or index by digest, or by tag where there is no digest.
    pub async fn manifest(&self, reference: &Reference) -> Result<RawManifest, ClientError> {
        self.first(reference, |registry, there| async move {
            read(&registry, &there).await
        })
        .await
    }

    /// What a tag or digest names, without reading it where the registry answers HEAD in full.
    pub async fn resolve(&self, reference: &Reference) -> Result<Descriptor, ClientError> {
        self.first(reference, |registry, there| async move {
            let mut attempts = registry.attempts();
            let found = loop {
                match head_once(&registry, &there).await {
                    Err(error) if attempts.again(&error).await => {}
                    result => break result?,
                }
            };
            match found {
                Some(descriptor) => Ok(descriptor),
                None => Ok(read(&registry, &there).await?.descriptor()),
            }
        })
        .await
    }

    /// Writes a manifest or index under the reference's tag, or else under its own digest.
    pub async fn put_manifest(
        &self,
        reference: &Reference,
        manifest: &RawManifest,
    ) -> Result<Digest, ClientError> {
        let (registry, there) = self.home(reference, true).await?;
        let mut attempts = registry.attempts();
        loop {
            let result = write_once(&registry, &there, manifest).await;
            match result {
                Err(error) if attempts.again(&error).await => {}
                result => return result,
            }
        }
    }

    /// Removes a tag, or with a digest the manifest and all tags to it.
    pub async fn delete_manifest(&self, reference: &Reference) -> Result<(), ClientError> {
        let (registry, there) = self.home(reference, true).await?;
        let url = registry.url(&path(&there)).await?;
        let call = Call::new(Method::DELETE, url);
        let scopes = [Scope::delete(there.repository())];
        let answer = registry.send(&scopes, &call).await?;
        let gone = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        answer.expect(&gone).await.map(drop)
    }

    /// Reads an image's manifest and configuration, choosing by platform where the reference names an index.
    pub async fn image(
        &self,
        reference: &Reference,
        platform: &Platform,
    ) -> Result<RemoteImage, ClientError> {
        let mut raw = self.manifest(reference).await?;
        let mut index = None;
        for _ in 0..INDEX_DEPTH_MAX {
            let ParsedManifest::Index(list) = raw.parsed() else {
                break;
            };
            let chosen = choose(list, platform).ok_or_else(|| ClientError::NoPlatform {
                reference: reference.familiar(),
                wanted: platform.to_string(),
                available: available(list),
            })?;
            let inner = self.manifest(&reference.with_digest(chosen.digest)).await?;
            let outer = std::mem::replace(&mut raw, inner);
            index.get_or_insert(outer);
        }
        let not_an_image = |reason: String| ClientError::NotAnImage {
            reference: reference.familiar(),
            reason,
        };
        let ParsedManifest::Image(manifest) = raw.parsed() else {
            let reason = format!("more than {INDEX_DEPTH_MAX} indexes lie within one another");
            return Err(not_an_image(reason));
        };
        let kind = manifest.config.media_type.as_str();
        if !matches!(kind, MediaType::OCI_CONFIG | MediaType::DOCKER_CONFIG) {
            return Err(not_an_image(format!(
                "its configuration is of type `{kind}`"
            )));
        }
        let config_bytes = self
            .read_small(reference, &manifest.config, CONFIG_BYTES_MAX)
            .await?;
        let config: ImageConfig = serde_json::from_slice(&config_bytes)
            .map_err(|error| not_an_image(format!("its configuration is not valid: {error}")))?;
        let (layers, diff_ids) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != diff_ids {
            let reason = format!("it has {layers} layers but {diff_ids} DiffIDs");
            return Err(not_an_image(reason));
        }
        Ok(RemoteImage {
            reference: reference.clone(),
            manifest: raw,
            config_bytes,
            config,
            index,
        })
    }

    /// Reads a blob of at most `limit` bytes into memory, and verifies it.
    pub async fn read_small(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, ClientError> {
        if let Some(bytes) = embedded(descriptor) {
            return Ok(bytes);
        }
        let request = RequestLine::of_blob(reference, &descriptor.digest);
        if descriptor.size > limit {
            return Err(ClientError::TooLarge { request, limit });
        }
        let mut stream = self.open_blob(reference, descriptor).await?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await? {
            bytes.extend_from_slice(&piece);
        }
        verify(&request, &bytes, descriptor.digest)?;
        Ok(bytes)
    }
}

/// The blob itself, where its descriptor carries it.
fn embedded(descriptor: &Descriptor) -> Option<Vec<u8>> {
    let bytes = STANDARD.decode(descriptor.data.as_ref()?).ok()?;
    let right = bytes.len() as u64 == descriptor.size
        && digest_as(&bytes, descriptor.digest) == descriptor.digest;
    right.then_some(bytes)
}

async fn read(registry: &Registry, reference: &Reference) -> Result<RawManifest, ClientError> {
    let mut attempts = registry.attempts();
    loop {
        match read_once(registry, reference).await {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

/// What `asking` for a manifest gives: its bytes, what the registry calls them, and the digest that they were found to have: the one asked for, or else
/// the one that the registry told.
pub(crate) async fn verified(
    registry: &Registry,
    reference: &Reference,
    asking: &Call,
) -> Result<(Vec<u8>, Option<String>, Option<Digest>), ClientError> {
    let scopes = [Scope::pull(reference.repository())];
    let answer = registry.send(&scopes, asking).await?;
    let answer = answer.expect(&[StatusCode::OK]).await?;
    let line = answer.line.clone();
    let said = said_digest(&answer);
    let media_type = media_type(&answer);
    let bytes = answer.bytes(MANIFEST_BYTES_MAX as u64).await?;
    // A tag's answer may name its digest in any algorithm; what cannot be verified proves nothing.
    let expected = reference.digest().or(said);
    if let Some(expected) = expected {
        verify(&line, &bytes, expected)?;
    }
    Ok((bytes, media_type, expected))
}

async fn read_once(registry: &Registry, reference: &Reference) -> Result<RawManifest, ClientError> {
    let asking = call(registry, Method::GET, reference).await?;
    let (bytes, media_type, _) = verified(registry, reference, &asking).await?;
    RawManifest::parse(bytes, media_type.as_deref()).map_err(|source| ClientError::Manifest {
        reference: reference.familiar(),
        source,
    })
}

async fn head_once(
    registry: &Registry,
    reference: &Reference,
) -> Result<Option<Descriptor>, ClientError> {
    let scopes = [Scope::pull(reference.repository())];
    let call = call(registry, Method::HEAD, reference).await?;
    let answer = registry.send(&scopes, &call).await?;
    match answer.status() {
        StatusCode::OK => {}
        // Some servers refuse HEAD where they allow GET; and its answer says nothing about why.
        _ => return Ok(None),
    }
    if let Some(expected) = reference.digest()
        && let Some(actual) = said_digest(&answer)
        && actual.algorithm() == expected.algorithm()
        && actual != expected
    {
        return Err(ClientError::mismatch(&answer.line, expected, actual));
    }
    let digest = reference.digest().or(said_digest(&answer));
    let (digest, size, kind) = (digest, answer.content_length(), media_type(&answer));
    Ok(match (digest, size, kind) {
        (Some(digest), Some(size), Some(kind)) => Some(Descriptor::new(kind, digest, size)),
        _ => None,
    })
}

async fn write_once(
    registry: &Registry,
    reference: &Reference,
    manifest: &RawManifest,
) -> Result<Digest, ClientError> {
    let name = match reference.tag() {
        Some(tag) => tag.to_owned(),
        None => reference.digest().unwrap_or(manifest.digest()).to_string(),
    };
    let url = registry
        .url(&format!("{}/manifests/{name}", reference.repository()))
        .await?;
    let call = Call::new(Method::PUT, url)
        .header(CONTENT_TYPE, manifest.media_type().as_str())
        .body(Payload::Bytes(Bytes::copy_from_slice(manifest.bytes())));
    let scopes = [Scope::push(reference.repository())];
    let answer = registry.send(&scopes, &call).await?;
    let answer = answer
        .expect(&[StatusCode::CREATED, StatusCode::OK])
        .await?;
    if let Some(actual) = said_digest(&answer)
        && actual != digest_as(manifest.bytes(), actual)
    {
        let expected = manifest.digest();
        return Err(ClientError::mismatch(&answer.line, expected, actual));
    }
    if answer.status() == StatusCode::CREATED {
        return Ok(manifest.digest());
    }
    // Not in the protocol's words: whoever stands between may have answered.
    match read_once(registry, reference).await {
        Ok(there) if there.bytes() == manifest.bytes() => Ok(manifest.digest()),
        _ => Err(ClientError::Cut {
            request: answer.line.clone(),
            reason: format!("the answer was {}, and nothing came of it", answer.status()),
        }),
    }
}

/// The request for a manifest, which takes any type that we know.
pub(crate) async fn call(
    registry: &Registry,
    method: Method,
    reference: &Reference,
) -> Result<Call, ClientError> {
    let url = registry.url(&path(reference)).await?;
    Ok(Call::new(method, url).header(ACCEPT, &MANIFEST_TYPES.join(", ")))
}

fn path(reference: &Reference) -> String {
    let name = match (reference.digest(), reference.tag()) {
        (Some(digest), _) => digest.to_string(),
        (None, tag) => tag.unwrap_or("latest").to_owned(),
    };
    format!("{}/manifests/{name}", reference.repository())
}

pub(crate) fn said_digest(answer: &Answer) -> Option<Digest> {
    Digest::from_str(answer.header(DIGEST_HEADER)?).ok()
}

/// The Content-Type without parameters.
fn media_type(answer: &Answer) -> Option<String> {
    let value = answer.header("content-type")?;
    let bare = value.split(';').next().unwrap_or(value).trim();
    Some(bare.to_ascii_lowercase())
}

/// The digest of bytes in the algorithm of `like`.
fn digest_as(bytes: &[u8], like: Digest) -> Digest {
    let mut hasher = Hasher::new(like.algorithm());
    hasher.update(bytes);
    hasher.finish()
}

fn verify(request: &RequestLine, bytes: &[u8], expected: Digest) -> Result<(), ClientError> {
    let actual = digest_as(bytes, expected);
    if actual == expected {
        return Ok(());
    }
    Err(ClientError::mismatch(request, expected, actual))
}

/// The index's entry for a platform: one of exactly its variant before one that merely runs there, the first of equals.
pub(crate) fn choose<'a>(index: &'a Index, wanted: &Platform) -> Option<&'a Descriptor> {
    let usable = |entry: &&Descriptor| {
        let kind = &entry.media_type;
        kind.is_manifest() || kind.is_index()
    };
    let entries = || index.manifests.iter().filter(usable);
    let fits = |entry: &&Descriptor, exact: bool| {
        entry.platform.as_ref().is_some_and(|platform| {
            platform.satisfies(wanted) && (!exact || platform.variant == wanted.variant)
        })
    };
    let found = entries()
        .find(|entry| fits(entry, true))
        .or_else(|| entries().find(|entry| fits(entry, false)));
    // A lone entry of no stated platform is what there is.
    let lone = || {
        let mut all = entries();
        match (all.next(), all.next()) {
            (Some(only), None) if only.platform.is_none() => Some(only),
            _ => None,
        }
    };
    found.or_else(lone)
}

pub(crate) fn available(index: &Index) -> String {
    let mut platforms: Vec<String> = Vec::new();
    for entry in index.manifests.iter().take(64) {
        let text = match &entry.platform {
            // Attestations hide behind this platform.
            Some(platform) if platform.os == "unknown" => continue,
            Some(platform) => crate::error::printable(&platform.to_string()),
            None => "an image of no stated platform".to_owned(),
        };
        if !platforms.contains(&text) {
            platforms.push(text);
        }
    }
    match platforms.is_empty() {
        true => "no image at all".to_owned(),
        false => platforms.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn platform(text: &str) -> Platform {
        let mut parts = text.split('/').map(str::to_owned);
        Platform {
            os: parts.next().unwrap(),
            architecture: parts.next().unwrap(),
            variant: parts.next(),
            os_version: None,
            os_features: Vec::new(),
        }
    }

    fn index(entries: &[&str]) -> Index {
        let entries = entries.iter().enumerate().map(|(at, text)| {
            let mut entry = Descriptor::new(MediaType::OCI_MANIFEST, Digest::of(b""), at as u64);
            entry.platform = (!text.is_empty()).then(|| platform(text));
            entry
        });
        Index::new(entries.collect())
    }

    #[test]
    fn platforms_are_chosen() {
        let check = |entries: &[&str], wanted: &str, expect: Option<u64>| {
            let index = index(entries);
            let chosen = choose(&index, &platform(wanted));
            assert_eq!(
                chosen.map(|entry| entry.size),
                expect,
                "{entries:?} {wanted}"
            );
        };
        check(&["linux/arm64", "linux/amd64"], "linux/amd64", Some(1));
        check(&["linux/arm/v6", "linux/arm/v7"], "linux/arm/v7", Some(1));
        check(&["linux/arm/v7", "linux/arm"], "linux/arm", Some(1));
        check(&["linux/arm64/v8"], "linux/arm64", Some(0));
        check(&["windows/amd64"], "linux/amd64", None);
        check(&["unknown/unknown", "linux/amd64"], "linux/amd64", Some(1));
        check(&[""], "linux/amd64", Some(0));
        check(&["", ""], "linux/amd64", None);
        check(&[], "linux/amd64", None);
    }

    #[test]
    fn what_there_is_is_listed_once() {
        let index = index(&[
            "linux/amd64",
            "linux/amd64",
            "unknown/unknown",
            "linux/arm/v7",
            "",
        ]);
        assert_eq!(
            available(&index),
            "linux/amd64, linux/arm/v7, an image of no stated platform"
        );
    }

    #[test]
    fn embedded_blobs_are_verified() {
        let mut descriptor = Descriptor::of(MediaType::OCI_CONFIG, b"{}");
        assert_eq!(embedded(&descriptor), None);
        descriptor.data = Some("e30=".to_owned());
        assert_eq!(embedded(&descriptor).as_deref(), Some(&b"{}"[..]));
        descriptor.data = Some("e31=".to_owned());
        assert_eq!(embedded(&descriptor), None);
    }
}
