//! HEAD, GET, PUT and DELETE of manifests, by tag or digest. Bytes are kept and answered verbatim, whatever the
//! client says it accepts.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Response, StatusCode};
use serde::Deserialize;
use serde_json::{Map, Value};
use store::oci::{Annotations, Digest, DigestAlgorithm, MediaType};

use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::events::event::Content;
use crate::immutable::{self, ImmutableRule};
use crate::quota::OverQuota;
use crate::registry::{Answer, CONTENT_DIGEST, Call, Registry, answer, set};
use crate::routes::{ManifestReference, RepositoryName, percent_encode};
use crate::storage::collectable::tag_note;
use crate::storage::{
    RegistryStorage, StorageResult, TagCondition, TagMatch, TagRemoval, UNTOLD, VerifiedManifest,
    media_type_of,
};

/// Most tags that one PUT sets.
const TAGS_PER_PUT_MAX: usize = 32;

/// Longest media type that is kept; HTTP headers of clients carry no longer ones.
const MEDIA_TYPE_BYTES_MAX: usize = 255;

/// What the server needs to know of a manifest, whatever its type.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Outline {
    pub(crate) schema_version: Option<serde_json::Number>,
    pub(crate) media_type: Option<String>,
    pub(crate) artifact_type: Option<String>,
    pub(crate) config: Option<Link>,
    #[serde(default)]
    pub(crate) layers: Option<Vec<Link>>,
    #[serde(default)]
    pub(crate) manifests: Option<Vec<Link>>,
    pub(crate) subject: Option<Link>,
    pub(crate) annotations: Option<Annotations>,
}

impl Outline {
    /// Reads `bytes`. Of a type that this server does not know only the fields are kept that have the shape
    /// they have in the types it knows.
    pub(crate) fn read(bytes: &[u8], known: bool) -> Result<Outline, serde_json::Error> {
        let strict = serde_json::from_slice(bytes);
        if known || strict.is_ok() {
            return strict;
        }
        let mut fields: Map<String, Value> = serde_json::from_slice(bytes)?;
        Ok(Outline {
            schema_version: None,
            media_type: field(&mut fields, "mediaType"),
            artifact_type: field(&mut fields, "artifactType"),
            config: field(&mut fields, "config"),
            layers: None,
            manifests: None,
            subject: field(&mut fields, "subject"),
            annotations: field(&mut fields, "annotations"),
        })
    }
}

fn field<T: serde::de::DeserializeOwned>(fields: &mut Map<String, Value>, key: &str) -> Option<T> {
    serde_json::from_value(fields.remove(key)?).ok()
}

/// A descriptor, as far as the server looks into it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Link {
    #[serde(default)]
    pub(crate) media_type: String,
    pub(crate) digest: String,
    #[serde(default)]
    urls: Option<Vec<String>>,
}

impl Link {
    /// Whether the content need not be here: the descriptor says where else it is, or must not be pushed.
    fn is_foreign(&self) -> bool {
        self.urls.as_ref().is_some_and(|urls| !urls.is_empty())
            || self.media_type.contains("nondistributable")
            || self.media_type.contains(".foreign.")
    }

    fn digest(&self) -> Result<Digest, ApiError> {
        self.digest
            .parse()
            .map_err(|error| ApiError::with(ErrorCode::ManifestInvalid, format!("{error}")))
    }

    /// What has to be here of it. The digest of what lies elsewhere may be of an algorithm that nobody knows here.
    fn needed(&self) -> Result<Option<Digest>, ApiError> {
        match self.digest() {
            Ok(digest) => Ok((!self.is_foreign()).then_some(digest)),
            Err(_) if self.is_foreign() && is_of_another_algorithm(&self.digest) => Ok(None),
            Err(error) => Err(error),
        }
    }
}

/// Whether a text obeys image-spec's grammar of digests, with an algorithm that is none of ours.
fn is_of_another_algorithm(text: &str) -> bool {
    let Some((algorithm, encoded)) = text.split_once(':') else {
        return false;
    };
    let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let part = |part: &str| !part.is_empty() && part.bytes().all(lower);
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-');
    algorithm.parse::<DigestAlgorithm>().is_err()
        && algorithm.split(['+', '.', '_', '-']).all(part)
        && !encoded.is_empty()
        && encoded.bytes().all(legal)
}

/// What a manifest refers to.
#[derive(Debug, Default)]
pub(crate) struct Needs {
    pub(crate) blobs: Vec<Digest>,
    pub(crate) manifests: Vec<Digest>,
    pub(crate) subject: Option<Digest>,
}

impl Needs {
    /// Everything that has to stay for the manifest, and itself.
    fn all(&self, manifest: &Digest) -> Vec<Digest> {
        let mut all = vec![*manifest];
        all.extend(&self.blobs);
        all.extend(&self.manifests);
        all.extend(&self.subject);
        all
    }
}

impl Registry {
    pub(crate) async fn manifest(
        &self,
        name: RepositoryName,
        reference: ManifestReference,
        call: &Call,
    ) -> Answer {
        let shown = shown(&reference);
        let pulls = match call.method {
            Method::GET if !self.rules.read_only => Some(Arc::clone(&self.pulls)),
            // Who only looks pulls nothing.
            _ => None,
        };
        let found = self
            .blocking(move |storage| {
                let digest = match reference {
                    ManifestReference::Digest(digest) => Some(digest),
                    ManifestReference::Tag(tag) => storage.tag(&name, &tag)?,
                    ManifestReference::Impossible(_) => None,
                };
                let Some(digest) = digest else {
                    return Ok(None);
                };
                let found = storage.manifest(&name, &digest)?;
                if found.is_some()
                    && pulls.is_some_and(|pulls| pulls.note(&name, &digest, Instant::now()))
                    && let Err(error) = storage.mark_pulled(&name, &digest)
                {
                    tracing::warn!(%error, "a pull is not noted");
                }
                Ok(found)
            })
            .await?;
        let manifest =
            found.ok_or_else(|| ApiError::with(ErrorCode::ManifestUnknown, shown.clone()))?;
        let etag = format!("\"{}\"", manifest.digest());
        let wanted = TagCondition {
            not_on: None,
            ..call.condition()
        };
        if !wanted.holds(Some(manifest.digest())) {
            return Err(ApiError::with(ErrorCode::PreconditionFailed, shown));
        }
        let mut response = if call.has_already(&etag) {
            answer(StatusCode::NOT_MODIFIED)
        } else {
            let bytes = manifest.bytes().clone();
            let length = bytes.len().to_string();
            let body = match call.method {
                Method::HEAD => Body::empty(),
                _ => Body::full(bytes),
            };
            let mut response = Response::new(body);
            set(&mut response, header::CONTENT_LENGTH, &length);
            response
        };
        let content_type = HeaderValue::from_str(manifest.media_type())
            .unwrap_or(HeaderValue::from_static("application/octet-stream"));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, content_type);
        set(
            &mut response,
            CONTENT_DIGEST,
            &manifest.digest().to_string(),
        );
        set(&mut response, header::ETAG, &etag);
        Ok(response)
    }

    pub(crate) async fn put_manifest(
        &self,
        name: RepositoryName,
        reference: ManifestReference,
        call: &mut Call,
    ) -> Answer {
        let mut tags: Vec<String> = call.query.all("tag").map(str::to_owned).collect();
        let expected = match &reference {
            ManifestReference::Digest(digest) => Some(*digest),
            ManifestReference::Tag(tag) => {
                tags = vec![tag.clone()];
                None
            }
            ManifestReference::Impossible(text) => {
                return Err(ApiError::with(ErrorCode::TagInvalid, text.clone()));
            }
        };
        if tags.len() > TAGS_PER_PUT_MAX {
            return Err(ApiError::with(
                ErrorCode::TooManyTags,
                format!("at most {TAGS_PER_PUT_MAX} tags are set at once"),
            ));
        }
        for tag in &tags {
            store::oci::reference::check_tag(tag)
                .map_err(|why| ApiError::with(ErrorCode::TagInvalid, why))?;
        }
        let bytes = call
            .collect(store::MANIFEST_BYTES_MAX, self.rules.pace)
            .await?;
        self.observer.metrics.received_bytes.add(bytes.len() as u64);
        let sent_as = call.header(header::CONTENT_TYPE).map(str::to_owned);
        let (media_type, needs) = examine(&bytes, sent_as.as_deref())?;
        let digest = expected.unwrap_or_else(|| Digest::of(&bytes));
        let content = Content {
            media_type: Some(media_type.clone()),
            size: bytes.len() as u64,
        };
        let Some(manifest) = VerifiedManifest::check(bytes, media_type, digest) else {
            return Err(ApiError::with(
                ErrorCode::DigestInvalid,
                format!("the content is not that of {digest}"),
            ));
        };
        let subject = needs.subject;
        let condition = call.condition();
        self.keep_manifest(&name, &reference, &tags, manifest, needs, condition)
            .await?;
        let mut response = answer(StatusCode::CREATED);
        response.extensions_mut().insert(content);
        let location = format!(
            "/v2/{name}/manifests/{}",
            percent_encode(&shown(&reference))
        );
        set(&mut response, header::LOCATION, &location);
        set(&mut response, CONTENT_DIGEST, &digest.to_string());
        set(&mut response, header::ETAG, &format!("\"{digest}\""));
        if let Some(subject) = subject {
            let header = HeaderName::from_static("oci-subject");
            set(&mut response, header, &subject.to_string());
        }
        if expected.is_some() && !tags.is_empty() {
            let header = HeaderName::from_static("oci-tag");
            set(&mut response, header, &tags.join(", "));
        }
        Ok(response)
    }

    /// Keeps a manifest, and sets tags on it; by the rules, whoever asks. `place` is by what it was put, which the condition is about.
    pub(crate) async fn keep_manifest(
        &self,
        name: &RepositoryName,
        place: &ManifestReference,
        tags: &[String],
        manifest: VerifiedManifest,
        needs: Needs,
        condition: TagCondition,
    ) -> Result<(), ApiError> {
        let sparse = self.rules.sparse;
        let (target, set_tags) = (name.clone(), tags.to_vec());
        let by_tag = matches!(place, ManifestReference::Tag(_));
        let place = place.clone();
        let (rules, quotas) = (Arc::clone(&self.rules.immutable), Arc::clone(&self.quotas));
        let outcome = self
            .blocking(move |storage| {
                let is_immutable = |tag: &str| immutable::is_immutable(&rules, &target, tag);
                let elsewhere = |tag: &String| {
                    let on = storage.tag(&target, tag)?;
                    let on = on.filter(|on| on != manifest.digest());
                    StorageResult::Ok(on.map(|on| Outcome::Immutable(tag.clone(), on)))
                };
                for tag in set_tags.iter().filter(|tag| is_immutable(tag)) {
                    if let Some(refused) = elsewhere(tag)? {
                        return Ok(refused);
                    }
                }
                // Again when the tag is set: this look only spares work and litter.
                if !holds(storage, &target, &place, &condition)? {
                    return Ok(Outcome::Refused);
                }
                storage.settle_blobs(&target, &needs.blobs)?;
                // From here on nothing of it is collected.
                let mut relied = needs.all(manifest.digest());
                relied.extend(set_tags.iter().map(|tag| tag_note(&target, tag)));
                let kept = storage.rely_on(&relied)?;
                if !sparse && let Some(missing) = missing(storage, &target, &needs)? {
                    return Ok(Outcome::Missing(missing));
                }
                let bytes = manifest.bytes().len() as u64;
                if let Err(over) = quotas.add(storage, &target, manifest.digest(), bytes)? {
                    return Ok(Outcome::OverQuota(over));
                }
                storage.put_manifest(&target, &manifest, needs.subject.as_ref())?;
                // Of one that is put by its digest the condition speaks, not of its tags.
                let of_tag = if by_tag {
                    condition
                } else {
                    TagCondition::default()
                };
                for tag in &set_tags {
                    let mut condition = of_tag.clone();
                    if is_immutable(tag) {
                        if storage.tag(&target, tag)?.as_ref() == Some(manifest.digest()) {
                            continue;
                        }
                        // Of two that set it at once, one does.
                        condition.not_on = Some(TagMatch::Anything);
                    }
                    if !storage.set_tag(&target, tag, manifest.digest(), &condition)? {
                        match storage.tag(&target, tag)? {
                            Some(on) if is_immutable(tag) && on == *manifest.digest() => continue,
                            Some(on) if is_immutable(tag) => {
                                return Ok(Outcome::Immutable(tag.clone(), on));
                            }
                            _ => return Ok(Outcome::Refused),
                        }
                    }
                }
                // A delete of the same manifest that came between would leave tags on nothing.
                if !storage.has_manifest(&target, manifest.digest())? {
                    storage.put_manifest(&target, &manifest, needs.subject.as_ref())?;
                }
                kept.confirm()?;
                Ok(Outcome::Put)
            })
            .await?;
        self.index.note(name, tags);
        match outcome {
            Outcome::Put => Ok(()),
            Outcome::Refused => Err(ApiError::new(ErrorCode::PreconditionFailed)),
            Outcome::Immutable(tag, on) => Err(immutable::refusal(&tag, &on)),
            Outcome::OverQuota(over) => Err(over.into()),
            Outcome::Missing(missing) => Err(ApiError::with(
                ErrorCode::ManifestBlobUnknown,
                missing.to_string(),
            )),
        }
    }

    pub(crate) async fn delete_manifest(
        &self,
        name: RepositoryName,
        reference: ManifestReference,
        call: &Call,
    ) -> Answer {
        let shown = shown(&reference);
        let condition = call.condition();
        let (rules, target) = (Arc::clone(&self.rules.immutable), reference.clone());
        let repository = name.clone();
        let kept = self.blocking(move |storage| kept_by(storage, &rules, &repository, &target));
        if let Some((tag, on)) = kept.await? {
            return Err(immutable::refusal(&tag, &on));
        }
        let quotas = Arc::clone(&self.quotas);
        let (index, noted) = (Arc::clone(&self.index), name.clone());
        let removed = self
            .blocking(move |storage| {
                if let ManifestReference::Tag(tag) = &reference {
                    return storage.remove_tag(&name, tag, &condition);
                }
                if !holds(storage, &name, &reference, &condition)? {
                    return Ok(TagRemoval::Refused);
                }
                let removed = match &reference {
                    ManifestReference::Digest(digest) => {
                        let removed = storage.remove_manifest(&name, digest)?;
                        quotas.removed(storage, &name, Some(digest))?;
                        removed
                    }
                    _ => false,
                };
                Ok(match removed {
                    true => TagRemoval::Removed,
                    false => TagRemoval::Absent,
                })
            })
            .await;
        index.note(&noted, &[]);
        match removed? {
            TagRemoval::Removed => Ok(answer(StatusCode::ACCEPTED)),
            TagRemoval::Absent => Err(ApiError::with(ErrorCode::ManifestUnknown, shown)),
            TagRemoval::Refused => Err(ApiError::with(ErrorCode::PreconditionFailed, shown)),
        }
    }
}

/// What became of a PUT.
enum Outcome {
    Put,
    /// The request's condition does not hold.
    Refused,
    /// The repository lacks this.
    Missing(Digest),
    /// A tag stays on what it is on.
    Immutable(String, Digest),
    /// There is no room for it.
    OverQuota(OverQuota),
}

/// A tag that may not be taken away by what is to be deleted, and what it is on.
fn kept_by(
    storage: &dyn RegistryStorage,
    rules: &[ImmutableRule],
    name: &RepositoryName,
    reference: &ManifestReference,
) -> StorageResult<Option<(String, Digest)>> {
    if !immutable::any(rules, name) {
        return Ok(None);
    }
    let tags = match reference {
        ManifestReference::Tag(tag) => vec![tag.clone()],
        _ => storage.tags(name)?.unwrap_or_default(),
    };
    for tag in tags {
        let on = storage.tag(name, &tag)?;
        let is_meant = |on: &Digest| match reference {
            ManifestReference::Digest(digest) => digest == on,
            _ => true,
        };
        if let Some(on) = on.filter(is_meant)
            && immutable::is_immutable(rules, name, &tag)
        {
            return Ok(Some((tag, on)));
        }
    }
    Ok(None)
}

/// Whether the condition holds of what `reference` is on now.
fn holds(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    reference: &ManifestReference,
    condition: &TagCondition,
) -> StorageResult<bool> {
    if *condition == TagCondition::default() {
        return Ok(true);
    }
    let current = match reference {
        ManifestReference::Tag(tag) => storage.tag(name, tag)?,
        ManifestReference::Digest(digest) => storage.has_manifest(name, digest)?.then_some(*digest),
        ManifestReference::Impossible(_) => None,
    };
    Ok(condition.holds(current.as_ref()))
}

fn shown(reference: &ManifestReference) -> String {
    match reference {
        ManifestReference::Tag(text) | ManifestReference::Impossible(text) => text.clone(),
        ManifestReference::Digest(digest) => digest.to_string(),
    }
}

/// The type and references of a manifest's bytes, or why it is none.
pub(crate) fn examine(bytes: &Bytes, sent_as: Option<&str>) -> Result<(String, Needs), ApiError> {
    let invalid = |detail: String| ApiError::with(ErrorCode::ManifestInvalid, detail);
    let sent_as = sent_as
        .map(|text| text.split(';').next().unwrap_or_default().trim())
        // What HTTP tools send where nobody said anything.
        .filter(|text| {
            !matches!(
                *text,
                "" | UNTOLD | "application/json" | "application/x-www-form-urlencoded"
            )
        });
    let media_type = sent_as.map_or_else(|| media_type_of(bytes), str::to_owned);
    let kind = MediaType::new(media_type.clone());
    let known = kind.is_manifest() || kind.is_index();
    let outline = Outline::read(bytes, known).map_err(|error| invalid(format!("{error}")))?;
    if let (Some(sent_as), Some(inside)) = (sent_as, outline.media_type.as_deref())
        && !inside.is_empty()
        && sent_as != inside
    {
        return Err(invalid(format!(
            "Content-Type is `{sent_as}` but mediaType is `{inside}`"
        )));
    }
    let is_printable = media_type.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    if media_type.len() > MEDIA_TYPE_BYTES_MAX || !is_printable {
        return Err(invalid(format!(
            "the media type is no printable ASCII of at most {MEDIA_TYPE_BYTES_MAX} bytes"
        )));
    }
    let mut needs = Needs {
        subject: outline.subject.as_ref().map(Link::digest).transpose()?,
        ..Needs::default()
    };
    if media_type.starts_with("application/vnd.docker.distribution.manifest.v1") {
        return Err(invalid("schema 1 manifests are not taken".to_owned()));
    }
    if media_type == UNTOLD {
        return Err(invalid(
            "neither Content-Type nor mediaType nor its fields tell what it is".to_owned(),
        ));
    }
    let version = outline.schema_version.as_ref();
    let version = version.and_then(serde_json::Number::as_u64);
    if known && version != Some(2) {
        return Err(invalid("schemaVersion is not 2".to_owned()));
    }
    if kind.is_manifest() {
        let config = outline
            .config
            .as_ref()
            .ok_or_else(|| invalid("there is no config".to_owned()))?;
        if outline.manifests.is_some() {
            return Err(invalid(
                "an image manifest has no `manifests`: is it an index?".to_owned(),
            ));
        }
        for link in std::iter::once(config).chain(outline.layers.iter().flatten()) {
            needs.blobs.extend(link.needed()?);
        }
    } else if kind.is_index() {
        let manifests = outline
            .manifests
            .as_ref()
            .ok_or_else(|| invalid("there is no `manifests`".to_owned()))?;
        if outline.config.is_some() || outline.layers.is_some() {
            return Err(invalid(
                "an index has no `config` and no `layers`: is it an image manifest?".to_owned(),
            ));
        }
        for link in manifests {
            needs.manifests.push(link.digest()?);
        }
    }
    Ok((media_type, needs))
}

/// The first reference that the repository lacks.
fn missing(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    needs: &Needs,
) -> StorageResult<Option<Digest>> {
    for digest in &needs.blobs {
        if storage.blob_size(name, digest)?.is_none() {
            return Ok(Some(*digest));
        }
    }
    for digest in &needs.manifests {
        // Some artifacts' indexes list blobs.
        if !storage.has_manifest(name, digest)? && storage.blob_size(name, digest)?.is_none() {
            return Ok(Some(*digest));
        }
    }
    Ok(None)
}
