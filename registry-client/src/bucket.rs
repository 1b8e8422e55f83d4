//! Objects in a bucket of an S3-compatible store, over the same transport as everything else: certificates, proxies and
//! patience are those of registries.
//!
//! Signatures and the protocol are `object_store`'s. An object appears whole or not at all. What says nothing is not waited for
//! (`bucket/patient`).

mod patient;

use std::fmt;
use std::future::Future;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::multipart::MultipartStore;
use object_store::path::Path as Key;
use object_store::signer::Signer;
use object_store::{MultipartUpload as _, ObjectStore, ObjectStoreExt as _, RetryConfig};
use reqwest::Url;
use store::content::{Blobs, ContentError};
use store::oci::Descriptor;
use tokio::io::AsyncReadExt as _;

use self::patient::OwnConnections;
use crate::error::ClientError;
use crate::{Client, Timeouts};

/// Objects larger than this are sent in parts of this size, in bytes. Amazon takes none below 5 MiB but the last, and at
/// most 10,000: that is 156 GiB.
const PART_BYTES: usize = 16 * 1024 * 1024;

/// What is done to an object that is not there yet.
const WRITE: &str = "write";

/// Most times that a request is sent again, and for how long it is tried.
const RETRIES: usize = 4;
const RETRY_TIME: Duration = Duration::from_secs(30);

/// A bucket, and the way there.
#[derive(Clone)]
pub struct BucketOptions {
    /// Its name.
    pub bucket: String,
    /// Its region.
    pub region: Option<String>,
    /// The URL of the server, where it is not Amazon's.
    pub endpoint: Option<String>,
    /// Key id, secret key and session token; requests are not signed without.
    pub credentials: Option<(String, String, Option<String>)>,
    /// Whether the bucket is part of the path instead of the host's name.
    pub path_style: bool,
}

impl fmt::Debug for BucketOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BucketOptions")
            .field("bucket", &self.bucket)
            .field("endpoint", &self.endpoint)
            .finish_non_exhaustive()
    }
}

/// Why something with a bucket failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BucketError {
    /// The bucket's address or credentials cannot be used.
    #[error("cannot use the bucket `{bucket}`: {reason}")]
    Setup {
        /// The bucket.
        bucket: String,
        /// Why not.
        reason: String,
    },
    /// No connection can be made ready.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The server refused, or the way there failed.
    #[error("cannot {action} `{key}` in the bucket")]
    Object {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// Why.
        #[source]
        source: Box<object_store::Error>,
    },
    /// The server said nothing for too long.
    #[error("cannot {action} `{key}` in the bucket: nothing came for {} s", .patience.as_secs())]
    Stalled {
        /// What was tried.
        action: &'static str,
        /// The object.
        key: String,
        /// How long it was waited.
        patience: Duration,
    },
    /// There is no such object.
    #[error("`{key}` is not in the bucket")]
    Missing {
        /// The object.
        key: String,
    },
    /// An object is longer than is read.
    #[error("`{key}` in the bucket has more than {limit} bytes")]
    TooLarge {
        /// The object.
        key: String,
        /// The limit.
        limit: u64,
    },
    /// What came is not what was expected, or cannot be kept.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// A file that is to be sent cannot be read.
    #[error("cannot read `{}`", .path.display())]
    File {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

/// A bucket. Clones share connections.
#[derive(Clone)]
pub struct Bucket {
    store: std::sync::Arc<AmazonS3>,
    timeouts: Timeouts,
}

impl fmt::Debug for Bucket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bucket").finish_non_exhaustive()
    }
}

impl Client {
    /// A bucket; nothing is asked of it yet.
    pub async fn bucket(&self, options: &BucketOptions) -> Result<Bucket, BucketError> {
        let setup = |reason: String| BucketError::Setup {
            bucket: options.bucket.clone(),
            reason,
        };
        let mut builder = AmazonS3Builder::new()
            .with_bucket_name(&options.bucket)
            .with_virtual_hosted_style_request(!options.path_style)
            .with_retry(RetryConfig {
                max_retries: RETRIES,
                retry_timeout: RETRY_TIME,
                ..RetryConfig::default()
            });
        if let Some(region) = &options.region {
            builder = builder.with_region(region);
        }
        let text = match (&options.endpoint, &options.region) {
            (Some(endpoint), _) => endpoint.clone(),
            (None, region) => {
                let region = region.as_deref().unwrap_or("us-east-1");
                format!("https://s3.{region}.amazonaws.com")
            }
        };
        let mut url = Url::parse(&text).map_err(|error| setup(format!("`{text}`: {error}")))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(setup(format!("`{text}` is no http or https URL")));
        }
        if options.endpoint.is_some() {
            if !options.path_style {
                let host = format!("{}.{}", options.bucket, url.host_str().unwrap_or_default());
                url.set_host(Some(&host))
                    .map_err(|error| setup(format!("`{host}`: {error}")))?;
            }
            builder = builder
                .with_endpoint(url.as_str().trim_end_matches('/'))
                .with_allow_http(url.scheme() == "http");
        }
        builder = match &options.credentials {
            None => builder.with_skip_signature(true),
            Some((id, secret, token)) => {
                let builder = builder
                    .with_access_key_id(id)
                    .with_secret_access_key(secret);
                match token {
                    Some(token) => builder.with_token(token),
                    None => builder,
                }
            }
        };
        let connections = self.shared.transport.pool(&url, None, false).await?;
        let store = builder
            .with_http_connector(OwnConnections {
                connections,
                timeouts: self.options().timeouts,
            })
            .build()
            .map_err(|error| setup(error.to_string()))?;
        Ok(Bucket {
            store: std::sync::Arc::new(store),
            timeouts: self.options().timeouts,
        })
    }
}

impl Bucket {
    /// The store behind it, for what keeps more than single objects there.
    pub fn store(&self) -> std::sync::Arc<impl ObjectStore + MultipartStore + use<>> {
        std::sync::Arc::<AmazonS3>::clone(&self.store)
    }

    /// What makes URLs with which others can read single objects for a while; they need credentials to be made of.
    pub fn signer(&self) -> std::sync::Arc<dyn Signer> {
        std::sync::Arc::<AmazonS3>::clone(&self.store)
    }

    /// An object's bytes, at most `limit`; `None` where there is none.
    pub async fn get(&self, key: &str, limit: u64) -> Result<Option<Vec<u8>>, BucketError> {
        let path = Key::from(key);
        let found = match self.patient("read", key, self.store.get(&path)).await {
            Ok(found) => found,
            Err(BucketError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error),
        };
        let too_large = || BucketError::TooLarge {
            key: key.to_owned(),
            limit,
        };
        if found.meta.size > limit {
            return Err(too_large());
        }
        let mut stream = found.into_stream();
        let mut bytes = Vec::new();
        while let Some(piece) = self.next(key, &mut stream).await? {
            if (bytes.len() + piece.len()) as u64 > limit {
                return Err(too_large());
            }
            bytes.extend_from_slice(&piece);
        }
        Ok(Some(bytes))
    }

    /// An object's size in bytes; `None` where there is none.
    pub async fn size(&self, key: &str) -> Result<Option<u64>, BucketError> {
        let path = Key::from(key);
        match self.patient("look for", key, self.store.head(&path)).await {
            Ok(found) => Ok(Some(found.size)),
            Err(BucketError::Missing { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Writes an object, in place of one that is there.
    pub async fn put(&self, key: &str, bytes: Vec<u8>) -> Result<(), BucketError> {
        let path = Key::from(key);
        let put = self.store.put(&path, bytes.into());
        self.patient(WRITE, key, put).await.map(drop)
    }

    /// Writes a file's bytes as an object.
    pub async fn put_file(&self, key: &str, from: &Path) -> Result<(), BucketError> {
        let read = |source| BucketError::File {
            path: from.to_owned(),
            source,
        };
        let mut file = tokio::fs::File::open(from).await.map_err(read)?;
        let mut part = read_part(&mut file).await.map_err(read)?;
        if part.len() < PART_BYTES {
            return self.put(key, part).await;
        }
        let path = Key::from(key);
        let begun = self.store.put_multipart(&path);
        let mut upload = self.patient(WRITE, key, begun).await?;
        let sent = async {
            while !part.is_empty() {
                let sending = upload.put_part(part.into());
                self.patient(WRITE, key, sending).await?;
                part = read_part(&mut file).await.map_err(read)?;
            }
            self.patient(WRITE, key, upload.complete()).await
        };
        match sent.await {
            Ok(_) => Ok(()),
            Err(error) => {
                // What was sent is paid for until somebody says that it is not wanted.
                if let Err(error) = self.patient("give up", key, upload.abort()).await {
                    tracing::debug!(%error, "parts of an object stay");
                }
                Err(error)
            }
        }
    }

    /// Fetches an object into a store; nothing is visible there before its digest and size were right.
    pub async fn fetch(
        &self,
        key: &str,
        descriptor: &Descriptor,
        blobs: &Blobs,
    ) -> Result<(), BucketError> {
        let path = Key::from(key);
        let found = self.patient("read", key, self.store.get(&path)).await?;
        let mut stream = found.into_stream();
        let mut ingest = blobs.ingest_as(descriptor.digest.algorithm())?;
        while let Some(piece) = self.next(key, &mut stream).await? {
            // Disks are faster than networks: a thread of its own for this gains nothing.
            ingest.append(&piece)?;
            if ingest.size() > descriptor.size {
                break;
            }
        }
        ingest.commit(Some((descriptor.digest, Some(descriptor.size))))?;
        Ok(())
    }

    async fn next<S>(&self, key: &str, stream: &mut S) -> Result<Option<Bytes>, BucketError>
    where
        S: futures_util::Stream<Item = object_store::Result<Bytes>> + Unpin,
    {
        let next = async { stream.next().await.transpose() };
        let patience = self.timeouts.idle;
        within("read", key, patience, next).await
    }

    /// Waits for one request with its repetitions.
    async fn patient<T>(
        &self,
        action: &'static str,
        key: &str,
        request: impl Future<Output = object_store::Result<T>>,
    ) -> Result<T, BucketError> {
        within(action, key, self.timeouts.answer, request).await
    }
}

async fn within<T>(
    action: &'static str,
    key: &str,
    patience: Duration,
    work: impl Future<Output = object_store::Result<T>>,
) -> Result<T, BucketError> {
    let key = || key.to_owned();
    match tokio::time::timeout(patience, work).await {
        Ok(Ok(value)) => Ok(value),
        // Where something is written, it is the bucket that is not there.
        Ok(Err(object_store::Error::NotFound { .. })) if action != WRITE => {
            Err(BucketError::Missing { key: key() })
        }
        Ok(Err(error)) => Err(BucketError::Object {
            action,
            key: key(),
            source: Box::new(error),
        }),
        Err(_) => Err(BucketError::Stalled {
            action,
            key: key(),
            patience,
        }),
    }
}

/// As many bytes as make a part; fewer at the end of the file.
async fn read_part(file: &mut tokio::fs::File) -> std::io::Result<Vec<u8>> {
    let mut part = Vec::new();
    file.take(PART_BYTES as u64).read_to_end(&mut part).await?;
    Ok(part)
}
