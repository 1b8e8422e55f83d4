//! What is answered under the names of an upstream: what is here, after it was brought here.

use std::sync::Arc;

use http::header::{self, HeaderValue};
use http::{Method, Response};
use store::oci::Digest;

use super::UpstreamError;
use super::flight::{Arriving, Failure};
use super::tags::{How, Through, of_type};
use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::registry::{Answer, Call, Registry};
use crate::routes::{ManifestReference, RepositoryName, Route};
use crate::storage::{Blob, BlobSource};
use crate::tags::{page_size, referrers_answer, referrers_page, tags_answer, wanted_type};

impl Registry {
    /// Answers a request for a name that is an upstream's.
    pub(crate) async fn pull_through(
        &self,
        through: &Arc<Through>,
        remote: &str,
        route: Route,
        call: &mut Call,
    ) -> Answer {
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        match (route, call.method.as_str()) {
            (Route::Blob(name, digest), _) if reads => {
                self.blob_through(through, remote, name, digest, call).await
            }
            (Route::Manifest(name, reference), _) if reads => {
                self.manifest_through(through, remote, name, reference, call)
                    .await
            }
            (Route::Tags(name), _) => self.tags_through(through, remote, name, call).await,
            (Route::Referrers(name, subject), _) => {
                self.referrers_through(through, remote, name, subject, call)
                    .await
            }
            // What is dropped here comes again when it is asked for.
            (Route::Blob(name, digest), "DELETE") => self.delete_blob(name, digest).await,
            (Route::Manifest(name, reference), "DELETE") => {
                if let ManifestReference::Tag(tag) = &reference {
                    through.forget(&name, tag);
                }
                self.delete_manifest(name, reference, call).await
            }
            (Route::Extensions(name), _) => self.extensions(name).await,
            _ => Err(ApiError::new(ErrorCode::CacheOnly)),
        }
    }

    async fn manifest_through(
        &self,
        through: &Arc<Through>,
        remote: &str,
        name: RepositoryName,
        reference: ManifestReference,
        call: &Call,
    ) -> Answer {
        let counts = &self.observer.metrics.cache;
        let brought = match &reference {
            ManifestReference::Impossible(_) => Ok(How::Here),
            ManifestReference::Tag(tag) => through.bring_tag(&name, remote, tag).await,
            ManifestReference::Digest(digest) => {
                let here = self.manifest(name.clone(), reference.clone(), call).await;
                match here {
                    Err(error) if error.code() == ErrorCode::ManifestUnknown => {
                        through.bring_manifest(&name, remote, *digest).await
                    }
                    answered => {
                        counts.hits.add(u64::from(answered.is_ok()));
                        return answered;
                    }
                }
            }
        };
        let shown = match &reference {
            ManifestReference::Tag(text) | ManifestReference::Impossible(text) => text.clone(),
            ManifestReference::Digest(digest) => digest.to_string(),
        };
        let how = brought.map_err(|failure| {
            counts.failures.add(u64::from(is_failure(&failure)));
            refusal(failure, ErrorCode::ManifestUnknown, &shown)
        })?;
        let mut response = self.manifest(name, reference, call).await?;
        match &how {
            How::Here => counts.hits.add(1),
            How::Fetched => counts.misses.add(1),
            How::Old(why) => {
                counts.stale.add(1);
                warn(&mut response, Some(why));
            }
        }
        Ok(response)
    }

    async fn blob_through(
        &self,
        through: &Arc<Through>,
        remote: &str,
        name: RepositoryName,
        digest: Digest,
        call: &Call,
    ) -> Answer {
        match self.blob(name.clone(), digest, call).await {
            Err(error) if error.code() == ErrorCode::BlobUnknown => {}
            answered => {
                let hits = &self.observer.metrics.cache.hits;
                hits.add(u64::from(answered.is_ok()));
                return answered;
            }
        }
        let counts = &self.observer.metrics.cache;
        let unknown = |failure| {
            counts.failures.add(u64::from(is_failure(&failure)));
            refusal(failure, ErrorCode::BlobUnknown, &digest.to_string())
        };
        let under_way = through.flight(&name, digest);
        let flight = match under_way {
            Some(flight) => flight,
            // Nobody asked for its bytes.
            None if call.method == Method::HEAD => {
                let size = through.blob_size(&name, remote, digest).await;
                let blob = Blob {
                    size: size.map_err(unknown)?,
                    source: BlobSource::Bytes(bytes::Bytes::new()),
                };
                return Registry::present(&blob, &digest, call);
            }
            None => {
                let may = through.may_fetch(&name, digest);
                may.map_err(|error| unknown(error.into()))?;
                through.fetch(&name, remote, digest)
            }
        };
        let size = flight.size().await.map_err(|failure| {
            through.fetch_failed(&name, digest, &failure);
            unknown(failure)
        })?;
        counts.misses.add(1);
        let blob = Blob {
            size,
            source: BlobSource::Remote(Arc::new(Arriving(flight))),
        };
        Registry::present(&blob, &digest, call)
    }

    async fn tags_through(
        &self,
        through: &Arc<Through>,
        remote: &str,
        name: RepositoryName,
        call: &Call,
    ) -> Answer {
        let wanted = page_size(&call.query)?;
        match through.tags(&name, remote).await {
            Ok(tags) => Ok(tags_answer(
                &name,
                tags.to_vec(),
                wanted,
                call.query.first("last"),
            )),
            Err(error) if error.says_nothing() => {
                let here = self.list_tags(name.clone(), call).await;
                let unknown = |_| refusal(error.clone().into(), ErrorCode::NameUnknown, remote);
                let mut response = here.map_err(unknown)?;
                warn(&mut response, Some(&error));
                Ok(response)
            }
            Err(error) => Err(refusal(error.into(), ErrorCode::NameUnknown, remote)),
        }
    }

    async fn referrers_through(
        &self,
        through: &Arc<Through>,
        remote: &str,
        name: RepositoryName,
        subject: Digest,
        call: &Call,
    ) -> Answer {
        let (listed, old) = match through.referrers(&name, remote, subject).await {
            Ok(found) => found,
            Err(error) if error.says_nothing() => {
                let mut response = self.list_referrers(name, subject, call).await?;
                warn(&mut response, Some(&error));
                return Ok(response);
            }
            Err(error) => return Err(refusal(error.into(), ErrorCode::NameUnknown, remote)),
        };
        let artifact_type = wanted_type(&call.query);
        let artifact_type = artifact_type.as_deref();
        let all = of_type(&listed, artifact_type);
        let (page, more) = referrers_page(all, call.query.first("last"));
        let mut response = referrers_answer(&name, &subject, &page, more, artifact_type);
        warn(&mut response, old.as_ref());
        Ok(response)
    }
}

/// Whether the upstream should have had an answer.
fn is_failure(failure: &Failure) -> bool {
    *failure != Failure::Upstream(UpstreamError::NotFound)
}

/// Tells that an answer may be old, and why.
fn warn(response: &mut Response<Body>, old: Option<&UpstreamError>) {
    let why = match old {
        None => return,
        Some(UpstreamError::Busy { .. }) => "limits requests",
        Some(UpstreamError::Unreachable { .. }) => "cannot be reached",
        Some(_) => "gives no answer that can be used",
    };
    let text = format!("299 - \"this may be old: the registry that it is a copy of {why}\"");
    if let Ok(value) = HeaderValue::from_str(&text) {
        response.headers_mut().append(header::WARNING, value);
    }
}

/// What a client is told of an upstream's answer. It has no business with our credentials there, so it is never asked for
/// its own.
fn refusal(failure: Failure, absent: ErrorCode, what: &str) -> ApiError {
    let error = match failure {
        Failure::Storage(code) => return ApiError::new(code),
        Failure::Upstream(error) => error,
    };
    let detail = format!("{what}: of the registry that this is a cache of: {error}");
    match error {
        UpstreamError::NotFound => ApiError::with(absent, what),
        UpstreamError::Refused { .. } => ApiError::with(ErrorCode::Denied, detail),
        UpstreamError::Busy { retry_after } => {
            let seconds = retry_after.map_or(30, |wait| wait.as_secs().max(1));
            ApiError::with(ErrorCode::TooManyRequests, detail)
                .header(header::RETRY_AFTER, HeaderValue::from(seconds))
        }
        UpstreamError::Unreachable { .. } | UpstreamError::Wrong { .. } => {
            ApiError::with(ErrorCode::Upstream, detail)
        }
    }
}
