//! A folder as a shared cache, on a disk or a network's file system, written by any number of processes at once.
//!
//! ```text
//! longshore-cache          {"version":1}
//! entries/<name>           the bytes of an artifact
//! blobs/<algorithm>/<hex>  what artifacts name
//! tmp/                     what is being written; everything else appears by rename
//! ```

use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use store::content::Blobs;
use store::fs::{self, temp::TempFile};
use store::oci::{Descriptor, Digest, RawManifest};

use super::{CacheStore, CacheStoreError, EntryName};

/// Version of the layout.
const VERSION: u32 = 1;

/// Largest file that says the version, in bytes.
const MARKER_BYTES_MAX: u64 = 4096;

/// Bytes copied at once.
const CHUNK: usize = 256 * 1024;

/// A folder.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    name: String,
}

#[derive(Serialize, Deserialize)]
struct Marker {
    version: u32,
}

impl Folder {
    /// A folder to read from, which need not exist yet.
    pub(crate) fn open(path: &Path) -> Result<Folder, CacheStoreError> {
        let folder = Folder {
            path: path.to_owned(),
            name: path.display().to_string(),
        };
        folder.check_version()?;
        Ok(folder)
    }

    /// A folder to write to, made where it is missing.
    pub(crate) fn create(path: &Path) -> Result<Folder, CacheStoreError> {
        let folder = Folder::open(path)?;
        for name in ["entries", "blobs/sha256", "tmp"] {
            fs::create_shared_dir(&path.join(name))?;
        }
        let text = serde_json::to_vec(&Marker { version: VERSION }).expect("a number");
        fs::write_atomic(&folder.tmp(), &folder.marker(), &text)?;
        // What killed writers left; those that live hold locks.
        for stale in fs::temp::stale(&folder.tmp())? {
            fs::temp::sweep(&stale)?;
        }
        Ok(folder)
    }

    fn check_version(&self) -> Result<(), CacheStoreError> {
        let Some(bytes) = read(&self.marker(), MARKER_BYTES_MAX)? else {
            return Ok(());
        };
        match serde_json::from_slice::<Marker>(&bytes) {
            Ok(marker) if marker.version > VERSION => Err(CacheStoreError::Version {
                path: self.path.clone(),
                found: marker.version,
                known: VERSION,
            }),
            // A damaged one is written anew by whoever writes next.
            _ => Ok(()),
        }
    }

    fn marker(&self) -> PathBuf {
        self.path.join("longshore-cache")
    }

    fn tmp(&self) -> PathBuf {
        self.path.join("tmp")
    }

    fn entry_path(&self, name: &EntryName) -> PathBuf {
        self.path.join("entries").join(name.to_string())
    }

    fn blob_path(&self, digest: &Digest) -> PathBuf {
        let text = digest.to_string();
        let (algorithm, hex) = text.split_once(':').unwrap_or(("sha256", &text));
        self.path.join("blobs").join(algorithm).join(hex)
    }
}

impl CacheStore for Folder {
    fn name(&self) -> &str {
        &self.name
    }

    fn entry(&self, name: &EntryName) -> Result<Option<Vec<u8>>, CacheStoreError> {
        read(&self.entry_path(name), store::MANIFEST_BYTES_MAX as u64)
    }

    fn put_entry(&self, name: &EntryName, manifest: &RawManifest) -> Result<(), CacheStoreError> {
        Ok(fs::write_atomic(
            &self.tmp(),
            &self.entry_path(name),
            manifest.bytes(),
        )?)
    }

    fn has_blob(&self, blob: &Descriptor, _elsewhere: &[String]) -> Result<bool, CacheStoreError> {
        Ok(fs::file_size(&self.blob_path(&blob.digest))? == Some(blob.size))
    }

    fn fetch_blob(&self, blob: &Descriptor, into: &Blobs) -> Result<(), CacheStoreError> {
        let path = self.blob_path(&blob.digest);
        let mut file = match fs::open(&path) {
            Ok(file) => file,
            Err(error) if error.is_not_found() => {
                let digest = Box::new(blob.digest);
                return Err(CacheStoreError::Missing { digest });
            }
            Err(error) => return Err(error.into()),
        };
        let mut ingest = into.ingest_as(blob.digest.algorithm())?;
        // One more byte than there should be is enough to know that it is wrong.
        let limit = blob.size.saturating_add(1);
        copy(&path, &mut (&mut file).take(limit), |bytes| {
            Ok(ingest.append(bytes)?)
        })?;
        ingest.commit(Some((blob.digest, Some(blob.size))))?;
        Ok(())
    }

    fn put_blob(&self, blob: &Descriptor, from: &Path) -> Result<(), CacheStoreError> {
        let path = self.blob_path(&blob.digest);
        if let Some(parent) = path.parent() {
            fs::create_shared_dir(parent)?;
        }
        let mut file = fs::open(from)?;
        let mut temporary = TempFile::create(&self.tmp())?;
        copy(from, &mut file, |bytes| Ok(temporary.append(bytes)?))?;
        Ok(temporary.publish(&path)?)
    }
}

fn copy(
    path: &Path,
    from: &mut dyn Read,
    mut to: impl FnMut(&[u8]) -> Result<(), CacheStoreError>,
) -> Result<(), CacheStoreError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => to(&buffer[..count])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(source) => {
                let path = path.to_owned();
                return Err(CacheStoreError::Read { path, source });
            }
        }
    }
}

/// A file's bytes; `None` where there is none.
fn read(path: &Path, bytes_max: u64) -> Result<Option<Vec<u8>>, CacheStoreError> {
    match fs::read(path, bytes_max) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error.into()),
    }
}
