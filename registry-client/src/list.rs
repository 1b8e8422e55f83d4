//! Listings: tags, catalog, referrers; pages are followed within limits (distribution-spec end-8, end-12).

use reqwest::header::{ACCEPT, LINK};
use reqwest::{StatusCode, Url};
use serde::Deserialize;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Index, MediaType, RawManifest, Reference};

use crate::Client;
use crate::auth::bearer::Scope;
use crate::error::ClientError;
use crate::headers;
use crate::registry::Registry;
use crate::transport::{Answer, Call, target};

/// Largest page, in bytes, and most pages of one listing.
const PAGE_BYTES_MAX: u64 = 8 * 1024 * 1024;
const PAGES_MAX: usize = 10_000;

/// Entries that are asked for at once.
const PAGE_ENTRIES: usize = 1000;

#[derive(Deserialize)]
struct TagPage {
    // Some servers write null for none.
    tags: Option<Vec<String>>,
}

#[derive(Deserialize)]
struct CatalogPage {
    repositories: Option<Vec<String>>,
}

impl Client {
    /// The tags of the reference's repository, in the registry's order.
    pub async fn tags(&self, reference: &Reference) -> Result<Vec<String>, ClientError> {
        let (registry, there) = self.home(reference, false).await?;
        let path = format!("{}/tags/list?n={PAGE_ENTRIES}", there.repository());
        let scopes = [Scope::pull(there.repository())];
        let pages = self.pages::<TagPage>(&registry, &path, &scopes).await?;
        Ok(pages
            .into_iter()
            .filter_map(|page| page.tags)
            .flatten()
            .collect())
    }

    /// The repositories of a registry, where it lists them.
    pub async fn catalog(&self, registry: &str) -> Result<Vec<String>, ClientError> {
        let host = self.options().hosts.server(registry)?;
        let path = format!("_catalog?n={PAGE_ENTRIES}");
        let pages = self
            .pages::<CatalogPage>(&self.registry(&host, false), &path, &[Scope::Catalog])
            .await?;
        let names = pages.into_iter().filter_map(|page| page.repositories);
        Ok(names.flatten().collect())
    }

    /// The manifests whose subject is `digest`, of one artifact type if it is given. Registries without the endpoint
    /// are asked for the fallback tag.
    pub async fn referrers(
        &self,
        reference: &Reference,
        digest: &Digest,
        artifact_type: Option<&str>,
    ) -> Result<Vec<Descriptor>, ClientError> {
        let listed = self.referrers_listed(reference, digest).await;
        let mut found = match listed {
            Ok(found) => found,
            Err(ClientError::Refused { refusal, .. })
                if refusal.status == StatusCode::NOT_FOUND =>
            {
                self.fallback_referrers(reference, digest).await?
            }
            Err(error) => return Err(error),
        };
        // Filtering on the server's side is optional, so it is done here alone.
        if let Some(wanted) = artifact_type {
            found.retain(|entry: &Descriptor| entry.artifact_type.as_deref() == Some(wanted));
        }
        Ok(found)
    }

    /// What the registry's own list has.
    pub(crate) async fn referrers_listed(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, ClientError> {
        let (registry, there) = self.home(reference, false).await?;
        let path = format!("{}/referrers/{digest}", there.repository());
        let scopes = [Scope::pull(there.repository())];
        let pages = self.pages::<Index>(&registry, &path, &scopes).await?;
        Ok(pages.into_iter().flat_map(|page| page.manifests).collect())
    }

    async fn fallback_referrers(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<Vec<Descriptor>, ClientError> {
        let (_, listed) = self.fallback_list(reference, digest).await?;
        Ok(match listed.as_ref().map(RawManifest::parsed) {
            Some(ParsedManifest::Index(index)) => index.manifests.clone(),
            Some(ParsedManifest::Image(_)) | None => Vec::new(),
        })
    }

    async fn pages<T: for<'de> Deserialize<'de>>(
        &self,
        registry: &Registry,
        path: &str,
        scopes: &[Scope],
    ) -> Result<Vec<T>, ClientError> {
        let mut pages = Vec::new();
        let mut next: Option<Url> = None;
        loop {
            let (page, link) = page(registry, next, path, scopes).await?;
            let bytes = page.bytes;
            let parsed = serde_json::from_slice(&bytes);
            pages.push(parsed.map_err(|error| {
                ClientError::bad_answer(&page.line, format!("the page is not valid: {error}"))
            })?);
            match link {
                None => return Ok(pages),
                Some(_) if pages.len() == PAGES_MAX => {
                    return Err(ClientError::bad_answer(
                        &page.line,
                        format!("more than {PAGES_MAX} pages"),
                    ));
                }
                link => next = link,
            }
        }
    }
}

struct Page {
    line: crate::error::RequestLine,
    bytes: Vec<u8>,
}

/// One page, and where the next one is.
async fn page(
    registry: &Registry,
    url: Option<Url>,
    path: &str,
    scopes: &[Scope],
) -> Result<(Page, Option<Url>), ClientError> {
    let mut attempts = registry.attempts();
    loop {
        let result = async {
            let url = match &url {
                Some(url) => url.clone(),
                None => registry.url(path).await?,
            };
            let call = Call::get(url.clone()).header(
                ACCEPT,
                &format!("application/json, {}", MediaType::OCI_INDEX),
            );
            let answer = registry.send(scopes, &call).await?;
            let answer = answer.expect(&[StatusCode::OK]).await?;
            let link = next(&url, &answer)?;
            let line = answer.line.clone();
            let bytes = answer.bytes(PAGE_BYTES_MAX).await?;
            Ok((Page { line, bytes }, link))
        };
        match result.await {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

/// The next page, which is on the same registry and not the same page.
fn next(url: &Url, answer: &Answer) -> Result<Option<Url>, ClientError> {
    let link = answer
        .headers()
        .get(LINK)
        .and_then(|link| link.to_str().ok());
    let Some(link) = link.and_then(headers::next_link) else {
        return Ok(None);
    };
    let next = target::next_page(url, link).ok_or_else(|| {
        ClientError::bad_answer(
            &answer.line,
            "the next page is not on this registry, or the same",
        )
    })?;
    Ok(Some(next))
}
