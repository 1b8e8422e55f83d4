//! What a cache in front of a registry asks: manifests as they are, whether a tag has moved, and blobs of which only the
//! digest is known.

use bytes::Bytes;
use reqwest::header::{ACCEPT, IF_NONE_MATCH};
use reqwest::{Method, StatusCode};
use store::oci::{Digest, Reference};

use crate::Client;
use crate::auth::bearer::Scope;
use crate::download::BlobStream;
use crate::error::ClientError;
use crate::manifest::{self, MANIFEST_TYPES, said_digest, verified};
use crate::registry::Registry;
use crate::transport::Call;

/// A manifest's bytes, whatever they are: not parsed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawAnswer {
    /// As they came.
    pub bytes: Bytes,
    /// What the registry calls them, in lower case and without parameters.
    pub media_type: Option<String>,
    /// Their digest: the one asked for, else in the algorithm that the registry names them in, else SHA-256.
    pub digest: Digest,
}

impl Client {
    /// Reads a manifest of any type, and checks its bytes against the digest that was asked for or told.
    ///
    /// # Errors
    /// The registry has none, refuses, cannot be reached, or sends other bytes.
    pub async fn raw_manifest(&self, reference: &Reference) -> Result<RawAnswer, ClientError> {
        self.first(reference, |registry, there| async move {
            let mut attempts = registry.attempts();
            loop {
                match raw_once(&registry, &there).await {
                    Err(error) if attempts.again(&error).await => {}
                    result => return result,
                }
            }
        })
        .await
    }

    /// What a tag is on now, without reading it; `None` where the registry does not tell. One that it is still on `known`
    /// may be told by 304.
    ///
    /// # Errors
    /// The registry has no such tag, refuses, or cannot be reached.
    pub async fn tag_now(
        &self,
        reference: &Reference,
        known: Digest,
    ) -> Result<Option<Digest>, ClientError> {
        self.first(reference, |registry, there| async move {
            let mut attempts = registry.attempts();
            loop {
                match tag_once(&registry, &there, known).await {
                    Err(error) if attempts.again(&error).await => {}
                    result => return result,
                }
            }
        })
        .await
    }

    /// Opens a blob of which nothing but its digest is known, and tells its size. Its bytes are not verified.
    ///
    /// # Errors
    /// The registry has none, refuses, cannot be reached, or tells no size.
    pub async fn open_blob_by_digest(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<(u64, BlobStream), ClientError> {
        let mut span = self.span_of(reference, digest).await?;
        span.connect().await?;
        let size = span.size;
        Ok((size, BlobStream::one(span, self)))
    }

    /// The size of a blob, asked for where reads go: mirrors first; `None` where nobody has it.
    ///
    /// # Errors
    /// The registry refuses or cannot be reached.
    pub async fn blob_size_to_read(
        &self,
        reference: &Reference,
        digest: Digest,
    ) -> Result<Option<u64>, ClientError> {
        self.first(reference, |registry, there| async move {
            let scopes = [Scope::pull(there.repository())];
            crate::download::blob_size(&registry, &scopes, there.repository(), &digest).await
        })
        .await
    }
}

async fn raw_once(registry: &Registry, there: &Reference) -> Result<RawAnswer, ClientError> {
    let asking = call(registry, Method::GET, there).await?;
    let (bytes, media_type, digest) = verified(registry, there, &asking).await?;
    Ok(RawAnswer {
        digest: digest.unwrap_or_else(|| Digest::of(&bytes)),
        bytes: bytes.into(),
        media_type,
    })
}

async fn tag_once(
    registry: &Registry,
    there: &Reference,
    known: Digest,
) -> Result<Option<Digest>, ClientError> {
    let call = call(registry, Method::HEAD, there).await?;
    let call = call.header(IF_NONE_MATCH, &format!("\"{known}\""));
    let answer = registry
        .send(&[Scope::pull(there.repository())], &call)
        .await?;
    match answer.status() {
        StatusCode::NOT_MODIFIED => Ok(Some(known)),
        StatusCode::OK => Ok(said_digest(&answer)),
        // Some servers refuse HEAD where they allow GET.
        StatusCode::METHOD_NOT_ALLOWED | StatusCode::BAD_REQUEST | StatusCode::NOT_IMPLEMENTED => {
            Ok(None)
        }
        _ => Err(answer.refused().await),
    }
}

async fn call(
    registry: &Registry,
    method: Method,
    reference: &Reference,
) -> Result<Call, ClientError> {
    let call = manifest::call(registry, method, reference).await?;
    // Whatever there is, but of what is known the newest form.
    let accept = format!("{}, */*;q=0.1", MANIFEST_TYPES.join(", "));
    Ok(call.header(ACCEPT, &accept))
}
