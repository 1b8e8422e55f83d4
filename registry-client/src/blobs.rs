//! Single blobs and tags of a repository, as commands ask for them.

use std::sync::Arc;

use bytes::Bytes;
use reqwest::{Method, StatusCode};
use store::oci::{Descriptor, Digest, Manifest, MediaType, RawManifest, Reference};

use crate::auth::bearer::Scope;
use crate::error::ClientError;
use crate::progress::Silent;
use crate::transport::Call;
use crate::{BlobSource, Client};

/// The content of an empty blob of OCI's own type.
pub(crate) const EMPTY: &[u8] = b"{}";

impl Client {
    /// Removes a blob from a repository.
    pub async fn delete_blob(
        &self,
        reference: &Reference,
        digest: &Digest,
    ) -> Result<(), ClientError> {
        let (registry, there) = self.home(reference, true).await?;
        let path = crate::download::blob_path(there.repository(), digest);
        let call = Call::new(Method::DELETE, registry.url(&path).await?);
        let scopes = [Scope::delete(there.repository())];
        let answer = registry.send(&scopes, &call).await?;
        let gone = [StatusCode::ACCEPTED, StatusCode::OK, StatusCode::NO_CONTENT];
        answer.expect(&gone).await.map(drop)
    }

    /// Removes a tag and leaves what it names. A registry that only removes manifests (distribution 2) is given a manifest of no
    /// use under that tag, which is then removed.
    pub async fn remove_tag(&self, reference: &Reference) -> Result<(), ClientError> {
        let refused = match self.delete_manifest(reference).await {
            Err(ClientError::Refused { request, refusal })
                if matches!(
                    refusal.status,
                    StatusCode::BAD_REQUEST | StatusCode::METHOD_NOT_ALLOWED
                ) =>
            {
                ClientError::Refused { request, refusal }
            }
            done => return done,
        };
        // Whether the registry removes anything at all is not known before; the tag must not be lost to a manifest that stays.
        let before = self.manifest(reference).await?;
        let stand_in = self.push_stand_in(reference).await?;
        match self.delete_manifest(&reference.with_digest(stand_in)).await {
            Ok(()) => Ok(()),
            Err(_) => {
                self.put_manifest(reference, &before).await?;
                Err(refused)
            }
        }
    }

    /// A manifest that is like no other, under a tag.
    async fn push_stand_in(&self, reference: &Reference) -> Result<Digest, ClientError> {
        let empty = Descriptor::of(MediaType::OCI_EMPTY, EMPTY);
        let source = BlobSource::Bytes(Bytes::from_static(EMPTY));
        self.push_blob(reference, &empty, source, &[], Arc::new(Silent))
            .await?;
        let mut manifest = Manifest::image(empty.clone(), vec![empty]);
        let since = self.options().clock.now();
        let since = since.duration_since(std::time::UNIX_EPOCH);
        let stamp = format!(
            "{}-{}-{}",
            std::process::id(),
            since.map_or(0, |since| since.as_nanos()),
            reference
        );
        manifest.artifact_type = Some("application/vnd.longshore.untagged".to_owned());
        manifest.annotations = Some([("longshore.untagged".to_owned(), stamp)].into());
        let raw = RawManifest::from(manifest);
        self.put_manifest(reference, &raw).await
    }
}
