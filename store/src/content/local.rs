//! Blobs on disk: `blobs/<algorithm>/<hex>`, as an OCI layout has them.
//!
//! ```text
//! ingest() ── write, hash ──► tmp/file-… ── commit: digest and size right? ── rename ──► blobs/sha256/0a1b… ──► row in the index
//! ```
//!
//! What is expected to be large is written to `tmp/part-…`, which a later process goes on with if this one does not come to
//! the end ([`Blobs::resume`]).
//!
//! Until the row stands, a garbage collection leaves the file alone because it is new. One that is old may be moved
//! away in the instant after [`Blobs::has`] saw it, so that looks once more after it has noted the use.

use std::fs::File;
use std::io::{self, Read as _, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::ContentError;
use super::ahead::ReadAhead;
use crate::fs::{self, TempFile};
use crate::index::Index;
use crate::oci::{Digest, DigestAlgorithm, Hasher};

/// Bytes read at once when a blob is hashed again.
const CHUNK: usize = 256 * 1024;

/// Blobs of fewer bytes are begun anew rather than resumed.
const RESUMED_MIN: u64 = 1024 * 1024;

/// The blobs of a store. Cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Blobs {
    root: PathBuf,
    index: Arc<Index>,
}

/// A blob whose bytes are known to have its digest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VerifiedBlob {
    digest: Digest,
    size: u64,
}

impl VerifiedBlob {
    /// The digest.
    pub fn digest(&self) -> Digest {
        self.digest
    }

    /// The size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }
}

impl Blobs {
    pub(crate) fn new(root: &Path, index: Arc<Index>) -> Blobs {
        Blobs {
            root: root.to_owned(),
            index,
        }
    }

    /// Where a blob lies, or would.
    pub fn path(&self, digest: &Digest) -> PathBuf {
        self.root
            .join("blobs")
            .join(digest.algorithm().name())
            .join(digest.hex())
    }

    /// The size of a blob in bytes; `None` where it is not in the store. While this store stays open, no garbage
    /// collection removes a blob that was found.
    pub fn has(&self, digest: &Digest) -> Result<Option<u64>, ContentError> {
        let path = self.path(digest);
        let Some(size) = fs::file_size(&path)? else {
            return Ok(None);
        };
        self.index.use_blob(digest, size)?;
        Ok(fs::file_size(&path)?)
    }

    /// Opens a blob for reading, with its size in bytes. An open blob stays readable whatever happens to its name.
    pub fn open(&self, digest: &Digest) -> Result<(File, u64), ContentError> {
        let path = self.path(digest);
        let file =
            fs::optional(fs::open(&path))?.ok_or(ContentError::Missing { digest: *digest })?;
        let size = fs::attempt("stat", &path, || file.metadata())?.len();
        Ok((file, size))
    }

    /// Reads a blob of at most `bytes_max` bytes into memory, and checks its digest again.
    pub fn read(&self, digest: &Digest, bytes_max: u64) -> Result<Vec<u8>, ContentError> {
        let (file, size) = self.open(digest)?;
        if size > bytes_max {
            return Err(ContentError::TooLarge {
                digest: *digest,
                size,
                max: bytes_max,
            });
        }
        let path = self.path(digest);
        let bytes = fs::attempt("read", &path, || fs::read_bounded(file, bytes_max))?;
        let mut hasher = Hasher::new(digest.algorithm());
        hasher.update(&bytes);
        expect(digest, hasher.finish())?;
        Ok(bytes)
    }

    /// Starts writing a blob that will have a SHA-256 digest. Writes go straight to the file: give it large pieces.
    pub fn ingest(&self) -> Result<Ingest, ContentError> {
        self.ingest_as(DigestAlgorithm::Sha256)
    }

    /// Starts writing a blob that will have a digest of the given algorithm.
    pub fn ingest_as(&self, algorithm: DigestAlgorithm) -> Result<Ingest, ContentError> {
        Ok(Ingest {
            blobs: self.clone(),
            file: TempFile::create(&self.root.join("tmp"))?,
            hasher: Hasher::new(algorithm),
            algorithm,
            size: 0,
            replay: 0,
            ahead: None,
        })
    }

    /// Starts writing a blob whose digest and size are known, or goes on where a process stopped that wrote it before: what
    /// that left must be read again first, by [`Ingest::replay`].
    pub fn resume(&self, digest: &Digest, size: u64) -> Result<Ingest, ContentError> {
        let tmp = self.root.join("tmp");
        let name = format!("{}-{}", digest.algorithm(), digest.hex());
        let file = match size >= RESUMED_MIN {
            true => TempFile::resume(&tmp, &name)?,
            false => None,
        };
        let Some(file) = file else {
            return self.ingest_as(digest.algorithm());
        };
        let replay = fs::attempt("stat", file.path(), || file.file().metadata())?.len();
        let ahead = ReadAhead::of(&tmp, &name)?;
        if replay > size {
            ahead.discard();
            file.discard();
            return self.resume(digest, size);
        }
        Ok(Ingest {
            blobs: self.clone(),
            file,
            hasher: Hasher::new(digest.algorithm()),
            algorithm: digest.algorithm(),
            size: 0,
            replay,
            ahead: Some(Arc::new(ahead)),
        })
    }

    /// Stores bytes under their SHA-256 digest.
    pub fn put(&self, bytes: &[u8]) -> Result<VerifiedBlob, ContentError> {
        let digest = Digest::of(bytes);
        let size = bytes.len() as u64;
        if self.has(&digest)? == Some(size) {
            return Ok(VerifiedBlob { digest, size });
        }
        let mut ingest = self.ingest()?;
        ingest.append(bytes)?;
        ingest.commit(None)
    }

    /// Removes a blob whatever names it; tells whether it was there.
    pub fn remove(&self, digest: &Digest) -> Result<bool, ContentError> {
        self.index.forget_blob(digest)?;
        Ok(fs::remove_file(&self.path(digest))?)
    }

    /// All blobs, sorted.
    pub fn list(&self) -> Result<Vec<Digest>, ContentError> {
        let mut found = Vec::new();
        for algorithm in DigestAlgorithm::ALL {
            for name in fs::list(&self.root.join("blobs").join(algorithm.name()))? {
                // What is no digest was not put there by a store.
                found.extend(format!("{algorithm}:{name}").parse::<Digest>());
            }
        }
        Ok(found)
    }

    /// Reads a blob to its end and checks its digest; [`ContentError::DigestMismatch`] if it is damaged.
    pub fn verify(&self, digest: &Digest) -> Result<VerifiedBlob, ContentError> {
        let (file, _) = self.open(digest)?;
        let path = self.path(digest);
        let (found, size) = fs::attempt("read", &path, || hash(file, digest.algorithm()))?;
        expect(digest, found)?;
        Ok(VerifiedBlob {
            digest: *digest,
            size,
        })
    }
}

fn expect(expected: &Digest, found: Digest) -> Result<(), ContentError> {
    if *expected == found {
        return Ok(());
    }
    Err(ContentError::DigestMismatch {
        expected: *expected,
        found,
    })
}

fn hash(mut from: impl io::Read, algorithm: DigestAlgorithm) -> io::Result<(Digest, u64)> {
    let mut hasher = Hasher::new(algorithm);
    let mut buffer = vec![0; CHUNK];
    let mut size = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok((hasher.finish(), size)),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        hasher.update(&buffer[..count]);
        size += count as u64;
    }
}

/// A blob being written: hashed on the way, invisible until [`Ingest::commit`], gone if dropped before unless it can be
/// resumed.
#[derive(Debug)]
pub struct Ingest {
    blobs: Blobs,
    file: TempFile,
    hasher: Hasher,
    algorithm: DigestAlgorithm,
    size: u64,
    /// Bytes of an earlier process that were not read yet.
    replay: u64,
    /// What came before it was its turn, if that is kept.
    ahead: Option<Arc<ReadAhead>>,
}

impl Ingest {
    /// Bytes written so far, and read again of what was there.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Bytes that were there and were not read again yet.
    pub fn left(&self) -> u64 {
        self.replay
    }

    /// Where to keep what comes before what is in front of it; `None` of a blob that is not resumed.
    pub fn read_ahead(&self) -> Option<Arc<ReadAhead>> {
        self.ahead.clone()
    }

    /// Reads on in what an earlier process left, at most to its end; nothing else may be written before that.
    pub fn replay(&mut self, buffer: &mut [u8]) -> Result<usize, ContentError> {
        let length =
            usize::try_from(self.replay).map_or(buffer.len(), |left| left.min(buffer.len()));
        let (mut file, buffer) = (self.file.file(), &mut buffer[..length]);
        let count = fs::attempt("read", self.file.path(), || match file.read(buffer)? {
            0 if length > 0 => Err(io::ErrorKind::UnexpectedEof.into()),
            count => Ok::<_, io::Error>(count),
        })?;
        self.hasher.update(&buffer[..count]);
        self.size += count as u64;
        self.replay -= count as u64;
        self.reached()?;
        Ok(count)
    }

    /// Reads all that an earlier process left.
    pub fn catch_up(&mut self) -> Result<(), ContentError> {
        let mut buffer = vec![0; CHUNK];
        while self.replay > 0 {
            self.replay(&mut buffer)?;
        }
        Ok(())
    }

    /// Drops it, and nobody goes on with it.
    pub fn discard(self) {
        if let Some(ahead) = &self.ahead {
            ahead.discard();
        }
        self.file.discard();
    }

    /// Adds bytes at the end.
    pub fn append(&mut self, bytes: &[u8]) -> Result<(), ContentError> {
        assert_eq!(
            self.replay, 0,
            "what was there is read before more is written"
        );
        self.file.append(bytes)?;
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.reached()
    }

    /// What was kept of the blob up to here came in its turn.
    fn reached(&self) -> Result<(), ContentError> {
        match &self.ahead {
            Some(ahead) => ahead.reached(self.size),
            None => Ok(()),
        }
    }

    /// Makes the blob visible if it is what was expected: a digest, and a size in bytes where that is known. On an
    /// error nothing is visible. A blob that is there already is fine.
    pub fn commit(
        self,
        expected: Option<(Digest, Option<u64>)>,
    ) -> Result<VerifiedBlob, ContentError> {
        let Ingest {
            blobs,
            file,
            hasher,
            algorithm,
            size,
            replay: _,
            ahead,
        } = self;
        // All of it came, or something of it is wrong.
        if let Some(ahead) = ahead {
            ahead.discard();
        }
        let mut digest = hasher.finish();
        if let Some((wanted, wanted_size)) = expected {
            if let Some(expected) = wanted_size
                && expected != size
            {
                file.discard();
                return Err(ContentError::SizeMismatch {
                    digest: wanted,
                    expected,
                    found: size,
                });
            }
            if wanted.algorithm() != algorithm {
                digest = fs::attempt("read", file.path(), || {
                    let mut from = file.file();
                    from.rewind()?;
                    hash(from, wanted.algorithm()).map(|(digest, _)| digest)
                })?;
            }
            if let Err(error) = expect(&wanted, digest) {
                file.discard();
                return Err(error);
            }
        }
        let path = blobs.path(&digest);
        if digest.algorithm() != DigestAlgorithm::Sha256
            && let Some(parent) = path.parent()
        {
            fs::create_dir(parent)?;
        }
        // A session that is older than the file, by whatever the clock says now, keeps a collection from it.
        blobs.index.use_time()?;
        file.publish(&path)?;
        blobs.index.put_blob(&digest, size)?;
        Ok(VerifiedBlob { digest, size })
    }
}

impl Write for Ingest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.append(bytes).map_err(io::Error::other)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blobs_come_back() {
        let (_dir, store) = crate::tests::store();
        let blobs = store.blobs();
        let blob = blobs.put(b"hello").unwrap();
        assert_eq!(blob.digest(), Digest::of(b"hello"));
        assert_eq!(blobs.put(b"hello").unwrap(), blob);
        assert_eq!(blobs.has(&blob.digest()).unwrap(), Some(5));
        assert_eq!(blobs.read(&blob.digest(), 5).unwrap(), b"hello");
        let error = blobs.read(&blob.digest(), 4).unwrap_err();
        assert!(matches!(error, ContentError::TooLarge { size: 5, .. }));
        assert_eq!(blobs.list().unwrap(), [blob.digest()]);
        assert!(blobs.remove(&blob.digest()).unwrap());
        assert_eq!(blobs.has(&blob.digest()).unwrap(), None);
        let error = blobs.open(&blob.digest()).unwrap_err();
        assert!(matches!(error, ContentError::Missing { .. }));
    }

    #[test]
    fn a_wrong_blob_is_never_visible() {
        let (_dir, store) = crate::tests::store();
        let check = |expected: (Digest, Option<u64>), fits: bool| {
            let mut ingest = store.blobs().ingest().unwrap();
            ingest.write_all(b"he").unwrap();
            ingest.write_all(b"llo").unwrap();
            let result = ingest.commit(Some(expected));
            assert_eq!(result.is_ok(), fits, "{result:?}");
            assert_eq!(store.blobs().list().unwrap().is_empty(), !fits);
            assert!(fs::list(&store.root().join("tmp")).unwrap().is_empty());
        };
        let right = Digest::of(b"hello");
        check((Digest::of(b"other"), None), false);
        check((right, Some(4)), false);
        check((right, Some(5)), true);
    }

    #[test]
    fn what_a_process_left_is_gone_on_with() {
        let (_dir, store) = crate::tests::store();
        let bytes = vec![7; 3 << 20];
        let (first, second) = bytes.split_at(1 << 20);
        let (digest, size) = (Digest::of(&bytes), bytes.len() as u64);
        let resume = || store.blobs().resume(&digest, size).unwrap();
        let mut ingest = resume();
        assert_eq!(ingest.left(), 0);
        ingest.append(first).unwrap();
        // Another one at the same time begins at the beginning.
        assert_eq!(resume().left(), 0);
        drop(ingest);

        let mut ingest = resume();
        assert_eq!((ingest.left(), ingest.size()), (1 << 20, 0));
        ingest.catch_up().unwrap();
        ingest.append(second).unwrap();
        let blob = ingest.commit(Some((digest, Some(size)))).unwrap();
        assert_eq!((blob.digest(), blob.size()), (digest, size));
        assert!(fs::list(&store.root().join("tmp")).unwrap().is_empty());

        // Wrong bytes are not kept.
        store.blobs().remove(&digest).unwrap();
        let mut ingest = resume();
        ingest.append(&vec![8; 3 << 20]).unwrap();
        drop(ingest);
        let mut ingest = resume();
        ingest.catch_up().unwrap();
        ingest.commit(Some((digest, Some(size)))).unwrap_err();
        assert_eq!(resume().left(), 0);

        // Nor is what is too much.
        let mut ingest = resume();
        ingest.append(&vec![8; 4 << 20]).unwrap();
        drop(ingest);
        assert_eq!(resume().left(), 0);
    }

    #[test]
    fn other_algorithms_are_hashed_again() {
        let (_dir, store) = crate::tests::store();
        let mut hasher = Hasher::new(DigestAlgorithm::Sha512);
        hasher.update(b"hello");
        let digest = hasher.finish();
        let mut ingest = store.blobs().ingest().unwrap();
        ingest.append(b"hello").unwrap();
        let blob = ingest.commit(Some((digest, None))).unwrap();
        assert_eq!(blob.digest(), digest);
        assert_eq!(store.blobs().list().unwrap(), [digest]);
        assert_eq!(store.blobs().verify(&digest).unwrap(), blob);
    }

    #[test]
    fn damage_is_noticed() {
        let (_dir, store) = crate::tests::store();
        let blob = store.blobs().put(b"hello").unwrap();
        std::fs::write(store.blobs().path(&blob.digest()), "hellO").unwrap();
        for error in [
            store.blobs().read(&blob.digest(), 10).unwrap_err(),
            store.blobs().verify(&blob.digest()).unwrap_err(),
        ] {
            assert!(matches!(error, ContentError::DigestMismatch { .. }));
        }
    }
}
