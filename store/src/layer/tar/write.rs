//! Writing entries that were read from other tars, in the same canonical headers as layers.

use std::io::Write;

use super::header::{BLOCK, padding};
use super::read::{Entry, Kind};
use super::{Head, TarError, head_bytes};

/// Writes a tar, entry by entry.
#[derive(Debug)]
pub struct Writer<W> {
    out: W,
    /// Content of the current entry that is still to come, and its padding.
    left: u64,
    padding: usize,
}

impl<W: Write> Writer<W> {
    /// A tar that goes to `out`; [`Writer::finish`] must be called to complete it.
    pub fn new(out: W) -> Writer<W> {
        Writer {
            out,
            left: 0,
            padding: 0,
        }
    }

    /// Begins an entry under a path of its own; `size` bytes of content must follow. A sparse file is written in full.
    ///
    /// # Errors
    /// The stream below, or an attribute's name that no tar can hold.
    pub fn entry(&mut self, path: &[u8], entry: &Entry, size: u64) -> Result<(), TarError> {
        debug_assert_eq!(self.left, 0, "the last entry is not complete");
        let kind = match entry.kind {
            Kind::File => b'0',
            Kind::HardLink => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::BlockDevice => b'4',
            Kind::Directory => b'5',
            Kind::Fifo => b'6',
        };
        let head = Head {
            kind,
            size,
            link: &entry.link,
            device: entry.device,
        };
        let bytes = head_bytes(path, &head, &entry.metadata)?;
        self.put(&bytes)?;
        self.left = size;
        self.padding = padding(size);
        self.end_content()
    }

    /// Adds content to the current entry.
    ///
    /// # Errors
    /// The stream below.
    pub fn content(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        debug_assert!(bytes.len() as u64 <= self.left, "more than was announced");
        self.put(bytes)?;
        self.left -= bytes.len() as u64;
        self.end_content()
    }

    /// Writes the end of the tar.
    ///
    /// # Errors
    /// The stream below.
    pub fn finish(mut self) -> Result<(), TarError> {
        self.put(&[0; 2 * BLOCK])?;
        let flushed = self.out.flush();
        flushed.map_err(|source| TarError::Output { source })
    }

    fn end_content(&mut self) -> Result<(), TarError> {
        if self.left == 0 {
            let padding = std::mem::take(&mut self.padding);
            self.put(&[0; BLOCK][..padding])?;
        }
        Ok(())
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), TarError> {
        let written = self.out.write_all(bytes);
        written.map_err(|source| TarError::Output { source })
    }
}
