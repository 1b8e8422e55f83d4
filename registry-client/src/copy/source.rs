//! Reading images: from a registry, or from what lies here.

use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Platform, RawManifest, Reference};

use super::local::parse;
use super::{CopyError, Local, Pick, Place};
use crate::blocking::blocking;
use crate::error::ClientError;
use crate::transport::body::RemoteBlob;
use crate::{BlobSource, Client};

/// Most indexes within one another, of which one image is chosen.
const INDEX_DEPTH_MAX: usize = 4;

/// One image somewhere, and whoever can read it.
#[derive(Clone, Debug)]
pub enum Source {
    /// In a registry.
    Registry {
        /// Who reads it.
        client: Client,
        /// Which image.
        reference: Reference,
    },
    /// On this machine.
    Local {
        /// The layout or archive.
        local: Local,
        /// Which of its images.
        pick: Pick,
    },
}

impl Source {
    /// Opens what a place names. The store's images are opened by whoever knows the store.
    pub async fn open(client: &Client, place: &Place) -> Result<Source, CopyError> {
        let at = place.clone();
        match place {
            Place::Registry(reference) => Ok(Source::Registry {
                client: client.clone(),
                reference: reference.clone(),
            }),
            Place::Layout { path, pick } => {
                let path = path.clone();
                let local = blocking(move || Local::layout(&path)).await?;
                let pick = pick.clone();
                Ok(Source::Local { local, pick })
            }
            Place::OciArchive { path, pick } | Place::DockerArchive { path, pick } => {
                let path = path.clone();
                let local = blocking(move || Local::archive(&path)).await?;
                let pick = pick.clone();
                Ok(Source::Local { local, pick })
            }
            Place::Store(_) => Err(CopyError::Place {
                text: at.to_string(),
                reason: "the store's images are opened elsewhere".to_owned(),
            }),
        }
    }

    /// How messages call it.
    pub fn name(&self) -> String {
        match self {
            Source::Registry { reference, .. } => reference.familiar(),
            Source::Local { local, pick } => format!("{}{pick}", local.name()),
        }
    }

    /// The manifest or index that is meant, and the digest that it was asked for by.
    pub async fn root(&self) -> Result<(Digest, RawManifest), CopyError> {
        match self {
            Source::Registry { client, reference } => {
                let raw = client.manifest(reference).await?;
                Ok((reference.digest().unwrap_or(raw.digest()), raw))
            }
            Source::Local { local, pick } => {
                let (local, pick) = (local.clone(), pick.clone());
                blocking(move || {
                    let found = local.find(&pick)?;
                    Ok((found.digest, local.manifest(&found)?))
                })
                .await
            }
        }
    }

    /// The image for a platform; one that stands alone is taken as it is.
    pub async fn image(&self, platform: &Platform) -> Result<(Digest, RawManifest), CopyError> {
        let (mut digest, mut raw) = self.root().await?;
        for _ in 0..INDEX_DEPTH_MAX {
            let ParsedManifest::Index(index) = raw.parsed() else {
                return Ok((digest, raw));
            };
            let chosen = crate::manifest::choose(index, platform);
            let chosen = chosen.ok_or_else(|| CopyError::NoPlatform {
                place: self.name(),
                wanted: platform.to_string(),
                available: crate::manifest::available(index),
            })?;
            let chosen = chosen.clone();
            digest = chosen.digest;
            raw = self.manifest(&chosen).await?;
        }
        Err(CopyError::TooMuch {
            place: self.name(),
            what: "indexes within one another",
            max: INDEX_DEPTH_MAX as u64,
        })
    }

    /// A manifest or index that another one names.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<RawManifest, CopyError> {
        match self {
            Source::Registry { client, reference } => {
                let raw = client
                    .manifest(&reference.with_digest(descriptor.digest))
                    .await?;
                if raw.media_type() == &descriptor.media_type {
                    return Ok(raw);
                }
                // What names it says what it is, as the digest says which.
                let bytes = raw.bytes().to_vec();
                parse(
                    descriptor.digest,
                    bytes,
                    Some(descriptor.media_type.as_str()),
                )
            }
            Source::Local { local, .. } => {
                let (local, descriptor) = (local.clone(), descriptor.clone());
                blocking(move || local.manifest(&descriptor)).await
            }
        }
    }

    /// Where a blob's bytes are. That a registry has it shows when it is read.
    pub fn blob(&self, descriptor: &Descriptor) -> Result<BlobSource, CopyError> {
        match self {
            Source::Registry { client, reference } => {
                Ok(BlobSource::Remote(Box::new(RemoteBlob {
                    client: client.clone(),
                    reference: reference.clone(),
                    descriptor: descriptor.clone(),
                })))
            }
            Source::Local { local, .. } => {
                let missing = || CopyError::Missing {
                    digest: Box::new(descriptor.digest),
                    place: local.name().to_owned(),
                };
                let (source, size) = local.blob(&descriptor.digest)?.ok_or_else(missing)?;
                if size != descriptor.size {
                    return Err(CopyError::BadLayout {
                        path: local.name().into(),
                        reason: format!(
                            "{} has {size} bytes, its descriptor says {}",
                            descriptor.digest, descriptor.size
                        ),
                    });
                }
                Ok(source)
            }
        }
    }

    /// A blob of at most `limit` bytes, verified.
    pub async fn read_small(
        &self,
        descriptor: &Descriptor,
        limit: u64,
    ) -> Result<Vec<u8>, CopyError> {
        match self {
            Source::Registry { client, reference } => {
                Ok(client.read_small(reference, descriptor, limit).await?)
            }
            Source::Local { local, .. } => {
                let (local, descriptor) = (local.clone(), descriptor.clone());
                blocking(move || local.read(&descriptor.digest, descriptor.size, limit)).await
            }
        }
    }

    /// The manifests whose subject is `digest`.
    pub async fn referrers(&self, digest: &Digest) -> Result<Vec<Descriptor>, CopyError> {
        match self {
            Source::Registry { client, reference } => {
                match client.referrers(reference, digest, None).await {
                    Ok(found) => Ok(found),
                    // A registry that knows nothing of referrers may say so in its own way.
                    Err(ClientError::Refused { refusal, .. })
                        if refusal.status.is_client_error() && refusal.status.as_u16() != 429 =>
                    {
                        Ok(Vec::new())
                    }
                    Err(error) => Err(error.into()),
                }
            }
            Source::Local { local, .. } => {
                let (local, digest) = (local.clone(), *digest);
                blocking(move || local.referrers(&digest)).await
            }
        }
    }
}
