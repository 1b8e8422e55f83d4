//! Where a blob is read while it goes on to a storage that is elsewhere, or that is not kept: a file without a name, with room for
//! all of it.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FallocateFlags, Mode, OFlags};

use crate::storage::UploadData;

/// A blob's bytes, as far as they came. They are gone with the last who reads them.
#[derive(Debug)]
pub(super) struct Spool(Arc<File>);

impl Spool {
    /// A file in `folder` for a blob of `size` bytes; it fails where there is no room for them.
    pub(super) fn open(folder: &Path, size: u64) -> io::Result<Spool> {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        let opened = rustix::fs::open(folder, flags, Mode::RUSR | Mode::WUSR);
        let file = File::from(opened.map_err(|error| refused(folder, error.into()))?);
        if size > 0 {
            match rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size) {
                // Such a file system has nothing to promise.
                Ok(()) | Err(rustix::io::Errno::OPNOTSUPP) => {}
                Err(error) => return Err(refused(folder, error.into())),
            }
        }
        Ok(Spool(Arc::new(file)))
    }

    /// The file.
    pub(super) fn file(&self) -> Arc<File> {
        Arc::clone(&self.0)
    }
}

fn refused(folder: &Path, error: io::Error) -> io::Error {
    tracing::warn!(folder = %folder.display(), %error, "a blob that comes has no room here");
    error
}

impl UploadData for Spool {
    fn size(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn truncate(&self, size: u64) -> io::Result<()> {
        self.0.set_len(size)
    }
}
