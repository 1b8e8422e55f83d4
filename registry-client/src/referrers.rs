//! What is about a manifest, where the registry does not keep that list: the client's part of the fallback tag
//! (distribution-spec, "Referrers Tag Schema").
//!
//! The list is an index under a tag made of the subject's digest, read and written back whole. Two clients at once may lose
//! an entry of one another; the specification has no way around that.

use reqwest::StatusCode;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Index, MediaType, RawManifest, Reference};

use crate::Client;
use crate::error::{ClientError, ErrorKind};

/// Most entries of a list that is written back.
const LISTED_MAX: usize = 10_000;

/// The tag that stands for the list of what is about `subject`.
pub fn fallback_tag(subject: &Digest) -> String {
    let hex = subject.hex();
    format!("{}-{}", subject.algorithm(), &hex[..hex.len().min(64)])
}

/// Whether a tag is such a list's.
pub fn is_fallback_tag(tag: &str) -> bool {
    let hex = tag
        .strip_prefix("sha256-")
        .or_else(|| tag.strip_prefix("sha512-"));
    hex.is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
    })
}

/// How a list names a manifest: with its artifact type and annotations.
pub fn descriptor_of(raw: &RawManifest) -> Descriptor {
    let mut descriptor = raw.descriptor();
    match raw.parsed() {
        ParsedManifest::Image(image) => {
            let own = image.artifact_type.clone();
            let config = || Some(image.config.media_type.0.clone());
            descriptor.artifact_type = own.filter(|own| !own.is_empty()).or_else(config);
            descriptor.annotations.clone_from(&image.annotations);
        }
        ParsedManifest::Index(index) => {
            descriptor.artifact_type.clone_from(&index.artifact_type);
            descriptor.annotations.clone_from(&index.annotations);
        }
    }
    descriptor
}

impl Client {
    /// Whether a registry keeps the lists of referrers by itself.
    pub async fn lists_referrers(&self, reference: &Reference) -> Result<bool, ClientError> {
        let nobody = Digest::of(b"");
        match self.referrers_listed(reference, &nobody).await {
            Ok(_) => Ok(true),
            Err(ClientError::Refused { refusal, .. })
                if matches!(
                    refusal.status,
                    StatusCode::NOT_FOUND
                        | StatusCode::METHOD_NOT_ALLOWED
                        | StatusCode::BAD_REQUEST
                ) =>
            {
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    /// Adds manifests to the list under the fallback tag of `subject`, unless they are there; for registries that do not keep
    /// it.
    pub async fn add_fallback_referrers(
        &self,
        reference: &Reference,
        subject: &Digest,
        referrers: &[Descriptor],
    ) -> Result<(), ClientError> {
        self.edit_fallback(reference, subject, |listed| {
            for referrer in referrers {
                listed.retain(|known| known.digest != referrer.digest);
                listed.push(referrer.clone());
            }
        })
        .await
    }

    /// Takes a manifest from the list under the fallback tag of `subject`.
    pub async fn remove_fallback_referrer(
        &self,
        reference: &Reference,
        subject: &Digest,
        referrer: &Digest,
    ) -> Result<(), ClientError> {
        self.edit_fallback(reference, subject, |listed| {
            listed.retain(|known| known.digest != *referrer);
        })
        .await
    }

    /// The fallback tag of `subject`, and what is under it, if anything.
    pub(crate) async fn fallback_list(
        &self,
        reference: &Reference,
        subject: &Digest,
    ) -> Result<(Reference, Option<RawManifest>), ClientError> {
        let tag = fallback_tag(subject);
        let tagged = reference
            .with_tag(&tag)
            .map_err(|error| ClientError::Setup {
                what: tag,
                reason: error.reason,
            })?;
        match self.manifest(&tagged).await {
            Ok(raw) => Ok((tagged, Some(raw))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok((tagged, None)),
            Err(error) => Err(error),
        }
    }

    async fn edit_fallback(
        &self,
        reference: &Reference,
        subject: &Digest,
        edit: impl FnOnce(&mut Vec<Descriptor>),
    ) -> Result<(), ClientError> {
        let (tagged, listed) = self.fallback_list(reference, subject).await?;
        let mut index = match listed.as_ref().map(RawManifest::parsed) {
            Some(ParsedManifest::Index(index)) => (**index).clone(),
            Some(ParsedManifest::Image(_)) => {
                return Err(ClientError::NotAnImage {
                    reference: tagged.familiar(),
                    reason: "the tag is that of a list of referrers, but it names an image"
                        .to_owned(),
                });
            }
            None => Index::new(Vec::new()),
        };
        let before = index.manifests.clone();
        edit(&mut index.manifests);
        if index.manifests == before || index.manifests.len() > LISTED_MAX {
            return Ok(());
        }
        index.media_type = Some(MediaType::from(MediaType::OCI_INDEX));
        self.put_manifest(&tagged, &RawManifest::from(index))
            .await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_stand_for_digests() {
        let digest = Digest::of(b"x");
        let tag = fallback_tag(&digest);
        assert_eq!(tag, format!("sha256-{}", digest.hex()));
        assert!(is_fallback_tag(&tag));
        for other in ["latest", "sha256-12", "sha256-", "md5-0"] {
            assert!(!is_fallback_tag(other), "{other}");
        }
    }
}
