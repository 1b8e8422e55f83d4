//! A bucket of an S3-compatible store as a shared cache.
//!
//! ```text
//! <prefix>/<name>/entries/<entry>        the bytes of an artifact
//! <prefix>/<name>/blobs/<algorithm>/<hex>  what artifacts name
//! ```

use std::path::Path;

use registry_client::{Bucket as Client, BucketError, BucketOptions};
use store::content::Blobs;
use store::oci::{Descriptor, Digest, RawManifest};

use super::{CacheStore, CacheStoreError, EntryName};
use crate::remote::Remote;
use crate::request::SecretText;
use crate::request::cache::{BucketSettings, CachePlace};

/// A bucket.
#[derive(Debug)]
pub(crate) struct Bucket<'a> {
    remote: &'a Remote,
    client: Client,
    /// What names of objects begin with, with a slash at the end.
    prefix: String,
    name: String,
}

impl<'a> Bucket<'a> {
    /// The bucket of `settings`. Nothing is asked of it yet.
    pub(crate) fn new(
        remote: &'a Remote,
        settings: &BucketSettings,
    ) -> Result<Bucket<'a>, CacheStoreError> {
        let text = |secret: &SecretText| String::from_utf8_lossy(&secret.0).into_owned();
        let credentials = match (&settings.access_key_id, &settings.secret_access_key) {
            (Some(id), Some(key)) => {
                let token = settings.session_token.as_ref().map(text);
                Some((id.clone(), text(key), token))
            }
            _ => None,
        };
        let options = BucketOptions {
            bucket: settings.bucket.clone(),
            region: settings.region.clone(),
            endpoint: settings.endpoint_url.clone(),
            credentials,
            path_style: settings.use_path_style,
        };
        let client = remote.wait(|client| async move { client.bucket(&options).await })??;
        let mut prefix = String::new();
        for part in [&settings.prefix, &settings.name] {
            if !part.is_empty() {
                prefix.push_str(part);
                prefix.push('/');
            }
        }
        Ok(Bucket {
            remote,
            client,
            prefix,
            name: CachePlace::S3(Box::new(settings.clone())).to_string(),
        })
    }

    fn entry_key(&self, name: &EntryName) -> String {
        format!("{}entries/{name}", self.prefix)
    }

    fn blob_key(&self, digest: &Digest) -> String {
        format!(
            "{}blobs/{}",
            self.prefix,
            digest.to_string().replace(':', "/")
        )
    }
}

impl CacheStore for Bucket<'_> {
    fn name(&self) -> &str {
        &self.name
    }

    fn entry(&self, name: &EntryName) -> Result<Option<Vec<u8>>, CacheStoreError> {
        let key = self.entry_key(name);
        let limit = store::MANIFEST_BYTES_MAX as u64;
        Ok(self.remote.wait(|_| self.client.get(&key, limit))??)
    }

    fn put_entry(&self, name: &EntryName, manifest: &RawManifest) -> Result<(), CacheStoreError> {
        let key = self.entry_key(name);
        let bytes = manifest.bytes().to_vec();
        Ok(self.remote.wait(|_| self.client.put(&key, bytes))??)
    }

    fn has_blob(&self, blob: &Descriptor, _elsewhere: &[String]) -> Result<bool, CacheStoreError> {
        let key = self.blob_key(&blob.digest);
        let found = self.remote.wait(|_| self.client.size(&key))??;
        Ok(found == Some(blob.size))
    }

    fn fetch_blob(&self, blob: &Descriptor, into: &Blobs) -> Result<(), CacheStoreError> {
        let key = self.blob_key(&blob.digest);
        let fetched = self.remote.wait(|_| self.client.fetch(&key, blob, into))?;
        match fetched {
            Err(BucketError::Missing { .. }) => {
                let digest = Box::new(blob.digest);
                Err(CacheStoreError::Missing { digest })
            }
            Err(BucketError::Content(error)) => Err(error.into()),
            fetched => Ok(fetched?),
        }
    }

    fn put_blob(&self, blob: &Descriptor, from: &Path) -> Result<(), CacheStoreError> {
        let key = self.blob_key(&blob.digest);
        Ok(self.remote.wait(|_| self.client.put_file(&key, from))??)
    }
}
