//! Lists: the tags of a repository, the catalog, extensions, and what refers to a manifest.

use std::sync::Arc;

use http::Response;
use http::header::{self, HeaderName, HeaderValue};
use serde::Serialize;
use serde_json::{Value, json};
use store::oci::{Annotations, Digest, MediaType};

use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::manifests::Outline;
use crate::registry::{Answer, Call, Registry, json_answer, set};
use crate::routes::{Query, RepositoryName, percent_encode};
use crate::storage::{RegistryStorage, StorageResult};

/// Repositories in one answer where the client names no number, and the most it can ask for.
const CATALOG_ENTRIES: usize = 1000;

/// A page of referrers ends before this many bytes, because clients read no larger manifests.
const REFERRERS_BYTES: usize = 3 * 1024 * 1024;

impl Registry {
    pub(crate) async fn list_tags(&self, name: RepositoryName, call: &Call) -> Answer {
        let wanted = page_size(&call.query)?;
        let repository = name.clone();
        let last = call.query.first("last").map(str::to_owned);
        // One more than wanted tells whether there is a next page.
        let limit = wanted.map_or(usize::MAX, |wanted| wanted.saturating_add(1));
        let Some(tags) = self
            .blocking(move |storage| storage.tags_after(&repository, last.as_deref(), limit))
            .await?
        else {
            return Err(ApiError::with(ErrorCode::NameUnknown, name.to_string()));
        };
        Ok(tags_answer(&name, tags, wanted, call.query.first("last")))
    }

    pub(crate) async fn extensions(&self, name: Option<RepositoryName>) -> Answer {
        let in_repository = name.is_some();
        if let Some(name) = name {
            let repository = name.clone();
            let there = self.blocking(move |storage| storage.tags_after(&repository, None, 0));
            if there.await?.is_none() {
                return Err(ApiError::with(ErrorCode::NameUnknown, name.to_string()));
            }
        }
        let discovery = json!({
            "name": "_oci",
            "url": "https://github.com/opencontainers/distribution-spec/blob/main/extensions/_oci.md",
            "description": "lists the extensions",
            "endpoints": ["_oci/ext/discover"],
        });
        let ours = json!({
            "name": "_longshore",
            "url": "docs/reference/page.md",
            "description": "repositories by terms, tags with what they are, and who asks",
            "endpoints": match in_repository {
                true => vec!["_longshore/tags"],
                false => vec!["_longshore/about", "_longshore/search"],
            },
        });
        Ok(json_answer(
            json!({"extensions": [discovery, ours]}).to_string(),
        ))
    }

    pub(crate) async fn catalog(&self, call: &Call) -> Answer {
        let wanted = page_size(&call.query)?
            .unwrap_or(CATALOG_ENTRIES)
            .min(CATALOG_ENTRIES);
        let last = call.query.first("last").map(str::to_owned);
        let (gate, visitor) = (Arc::clone(&self.gate), call.visitor.clone());
        // One more than wanted tells whether there is a next page.
        let mut names = self
            .blocking(move |storage| {
                let may_list = |name: &RepositoryName| gate.may_list(&visitor, name);
                listed(storage, last, wanted + 1, &may_list)
            })
            .await?;
        let more = names.len() > wanted;
        names.truncate(wanted);
        let list: Vec<&str> = names.iter().map(RepositoryName::as_str).collect();
        let mut response = json_answer(json!({"repositories": list}).to_string());
        if let (true, Some(last)) = (more, list.last()) {
            let last = percent_encode(last);
            let next = format!("</v2/_catalog?last={last}&n={wanted}>; rel=\"next\"");
            set(&mut response, header::LINK, &next);
        }
        Ok(response)
    }

    pub(crate) async fn list_referrers(
        &self,
        name: RepositoryName,
        subject: Digest,
        call: &Call,
    ) -> Answer {
        let artifact_type = wanted_type(&call.query);
        let last = call.query.first("last").map(str::to_owned);
        let (repository, filter) = (name.clone(), artifact_type.clone());
        let (manifests, more) = self
            .blocking(move |storage| {
                let mut digests = storage.referrers(&repository, &subject)?;
                digests.extend(from_fallback_tag(storage, &repository, &subject)?);
                digests.sort_unstable();
                digests.dedup();
                page(
                    storage,
                    &repository,
                    &subject,
                    digests,
                    filter.as_deref(),
                    last.as_deref(),
                )
            })
            .await?;
        let artifact_type = artifact_type.as_deref();
        let manifests: Vec<Value> = manifests
            .iter()
            .map(serde_json::to_value)
            .filter_map(Result::ok)
            .collect();
        Ok(referrers_answer(
            &name,
            &subject,
            &manifests,
            more,
            artifact_type,
        ))
    }
}

/// Up to `wanted` repositories after `last` that `may_list` admits.
fn listed(
    storage: &dyn RegistryStorage,
    mut last: Option<String>,
    wanted: usize,
    may_list: &dyn Fn(&RepositoryName) -> bool,
) -> StorageResult<Vec<RepositoryName>> {
    let mut names = Vec::new();
    loop {
        let found = storage.repositories(last.as_deref(), wanted)?;
        let whole = found.len() < wanted;
        last = found.last().map(RepositoryName::to_string);
        names.extend(found.into_iter().filter(|name| may_list(name)));
        if whole || names.len() >= wanted {
            names.truncate(wanted);
            return Ok(names);
        }
    }
}

/// A page of tags, which are given in ASCII order.
pub(crate) fn tags_answer(
    name: &RepositoryName,
    mut tags: Vec<String>,
    wanted: Option<usize>,
    last: Option<&str>,
) -> Response<Body> {
    if let Some(last) = last {
        tags.retain(|tag| tag.as_str() > last);
    }
    let more = wanted.is_some_and(|wanted| tags.len() > wanted);
    tags.truncate(wanted.unwrap_or(usize::MAX));
    let mut response = json_answer(json!({"name": name.as_str(), "tags": tags}).to_string());
    if let (true, Some(last), Some(wanted)) = (more, tags.last(), wanted) {
        let last = percent_encode(last);
        let next = format!("</v2/{name}/tags/list?last={last}&n={wanted}>; rel=\"next\"");
        set(&mut response, header::LINK, &next);
    }
    response
}

/// A page of referrers as an index.
pub(crate) fn referrers_answer(
    name: &RepositoryName,
    subject: &Digest,
    manifests: &[Value],
    more: bool,
    artifact_type: Option<&str>,
) -> Response<Body> {
    let last = manifests.last().and_then(|last| last["digest"].as_str());
    let index = json!({
        "schemaVersion": 2,
        "mediaType": MediaType::OCI_INDEX,
        "manifests": manifests,
    });
    let mut response = json_answer(index.to_string());
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static(MediaType::OCI_INDEX),
    );
    let mut filter = String::new();
    if let Some(artifact_type) = artifact_type {
        set(
            &mut response,
            HeaderName::from_static("oci-filters-applied"),
            "artifactType",
        );
        filter = format!("&artifactType={}", percent_encode(artifact_type));
    }
    if let (true, Some(last)) = (more, last) {
        let next = format!("</v2/{name}/referrers/{subject}?last={last}{filter}>; rel=\"next\"");
        set(&mut response, header::LINK, &next);
    }
    response
}

/// Of descriptors in the order of their digests, those after `last` until the page is full; and whether there are more.
pub(crate) fn referrers_page(all: Vec<Value>, last: Option<&str>) -> (Vec<Value>, bool) {
    let last = last.and_then(|text| text.parse::<Digest>().ok());
    let digest = |value: &Value| value["digest"].as_str()?.parse::<Digest>().ok();
    let (mut page, mut bytes) = (Vec::new(), 0);
    for value in all {
        if last.is_some() && digest(&value) <= last {
            continue;
        }
        bytes += value.to_string().len();
        if bytes > REFERRERS_BYTES && !page.is_empty() {
            return (page, true);
        }
        page.push(value);
    }
    (page, false)
}

/// A descriptor in the list of referrers.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Referrer {
    media_type: String,
    digest: Digest,
    size: usize,
    #[serde(skip_serializing_if = "Option::is_none")]
    artifact_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    annotations: Option<Annotations>,
}

/// The manifests listed by the index that clients keep under a tag where a registry has no referrers API:
/// `<algorithm>-<hex>`, both clipped so that it is a tag.
fn from_fallback_tag(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    subject: &Digest,
) -> StorageResult<Vec<Digest>> {
    let hex = subject.hex();
    let tag = format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)]);
    let Some(digest) = storage.tag(name, &tag)? else {
        return Ok(Vec::new());
    };
    let Some(index) = storage.manifest(name, &digest)? else {
        return Ok(Vec::new());
    };
    let listed = serde_json::from_slice::<Outline>(index.bytes())
        .ok()
        .and_then(|outline| outline.manifests);
    Ok(listed
        .into_iter()
        .flatten()
        .filter_map(|link| link.digest.parse().ok())
        .collect())
}

/// Describes `digests` after `last`, in order, until the page is full; and whether there are more.
fn page(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    subject: &Digest,
    digests: Vec<Digest>,
    artifact_type: Option<&str>,
    last: Option<&str>,
) -> StorageResult<(Vec<Referrer>, bool)> {
    let last = last.and_then(|text| text.parse::<Digest>().ok());
    let mut found = Vec::new();
    let mut bytes = 0;
    for digest in digests {
        if last.is_some_and(|last| digest <= last) {
            continue;
        }
        let Some(referrer) = describe(storage, name, subject, digest)? else {
            continue;
        };
        if artifact_type.is_some_and(|wanted| referrer.artifact_type.as_deref() != Some(wanted)) {
            continue;
        }
        bytes += serde_json::to_vec(&referrer).map_or(0, |text| text.len());
        if bytes > REFERRERS_BYTES && !found.is_empty() {
            return Ok((found, true));
        }
        found.push(referrer);
    }
    Ok((found, false))
}

/// The descriptor of a manifest, if it is (still) there and has this subject.
fn describe(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    subject: &Digest,
    digest: Digest,
) -> StorageResult<Option<Referrer>> {
    let Some(manifest) = storage.manifest(name, &digest)? else {
        return Ok(None);
    };
    let kind = MediaType::new(manifest.media_type());
    let known = kind.is_manifest() || kind.is_index();
    let Ok(outline) = Outline::read(manifest.bytes(), known) else {
        return Ok(None);
    };
    let about = outline.subject.map(|link| link.digest);
    if about.as_deref() != Some(&subject.to_string()) {
        return Ok(None);
    }
    let config_type = outline
        .config
        .map(|config| config.media_type)
        .filter(|_| !kind.is_index());
    Ok(Some(Referrer {
        media_type: manifest.media_type().to_owned(),
        digest,
        size: manifest.bytes().len(),
        artifact_type: outline
            .artifact_type
            .or(config_type)
            .filter(|text| !text.is_empty()),
        annotations: outline.annotations,
    }))
}

/// `artifactType`. Types have no blanks, but many a `+`, and not everybody who types a URL knows how to write that.
pub(crate) fn wanted_type(query: &Query) -> Option<String> {
    let text = query.first("artifactType")?;
    Some(text.replace(' ', "+"))
}

/// `n`: a number that is not negative, or nothing.
pub(crate) fn page_size(query: &Query) -> Result<Option<usize>, ApiError> {
    let Some(text) = query.first("n") else {
        return Ok(None);
    };
    text.parse()
        .map(Some)
        .map_err(|_| ApiError::with(ErrorCode::PaginationNumberInvalid, text))
}
