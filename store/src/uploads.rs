//! Where registries told to send the rest of large blobs: a push that was killed is gone on with by the next one.
//!
//! One small file in `tmp/` for each upload, `part-upload-<hex>`, named by what is sent where, held by a `flock` while a process
//! sends, and gone when all of it was sent. A location may hold secrets of the registry's: the store is its owner's alone.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use crate::fs::{FsError, TempFile, attempt};
use crate::oci::Digest;

/// Longest location that is noted, in bytes.
const LOCATION_BYTES_MAX: u64 = 16 * 1024;

/// The uploads of a store. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Uploads {
    tmp: PathBuf,
}

/// One upload, which this process alone goes on with.
#[derive(Debug)]
pub struct Upload {
    file: TempFile,
}

impl Uploads {
    /// Those of the store at `root`, which need not be open.
    pub fn at(root: &Path) -> Uploads {
        Uploads {
            tmp: root.join("tmp"),
        }
    }

    /// The upload of a blob to a repository; `None` where another process is about it.
    pub fn hold(
        &self,
        registry: &str,
        repository: &str,
        digest: &Digest,
    ) -> Result<Option<Upload>, FsError> {
        let what = format!("{registry}\n{repository}\n{digest}");
        let name = format!("upload-{}", blake3::hash(what.as_bytes()).to_hex());
        let file = TempFile::resume(&self.tmp, &name)?;
        Ok(file.map(|file| Upload { file }))
    }
}

impl Upload {
    /// Where the registry wants what is missing, as it said last.
    pub fn location(&self) -> Result<Option<String>, FsError> {
        let bytes = attempt("read", self.file.path(), || {
            let length = self.file.file().metadata()?.len().min(LOCATION_BYTES_MAX);
            let mut bytes = vec![0; usize::try_from(length).unwrap_or(0)];
            self.file.file().read_exact_at(&mut bytes, 0)?;
            Ok::<_, std::io::Error>(bytes)
        })?;
        // Its end says that all of it was written.
        let text = String::from_utf8(bytes).ok();
        let line = text.and_then(|text| text.strip_suffix('\n').map(str::to_owned));
        Ok(line.filter(|line| !line.is_empty()))
    }

    /// Notes what the registry said.
    pub fn note(&self, location: &str) -> Result<(), FsError> {
        attempt("write", self.file.path(), || {
            self.file.file().set_len(0)?;
            self.file
                .file()
                .write_all_at(format!("{location}\n").as_bytes(), 0)
        })
    }

    /// There is nothing to go on with any more.
    pub fn end(self) {
        self.file.discard();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_outlive_processes() {
        let (_dir, store) = crate::tests::store();
        let uploads = Uploads::at(store.root());
        let digest = Digest::of(b"x");
        let hold = |repository: &str| uploads.hold("r.example", repository, &digest).unwrap();
        let upload = hold("a").unwrap();
        assert_eq!(upload.location().unwrap(), None);
        upload.note("http://r.example/1?state=long").unwrap();
        upload.note("http://r.example/2").unwrap();
        assert!(hold("a").is_none(), "somebody is about it");
        assert_eq!(hold("b").unwrap().location().unwrap(), None);
        drop(upload);
        let upload = hold("a").unwrap();
        assert_eq!(
            upload.location().unwrap().as_deref(),
            Some("http://r.example/2")
        );
        // A process may die while it writes.
        upload.file.file().set_len(10).unwrap();
        assert_eq!(upload.location().unwrap(), None);
        upload.end();
        assert_eq!(hold("a").unwrap().location().unwrap(), None);
    }
}
