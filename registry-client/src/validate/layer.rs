//! One blob, read once: its digest, how it is packed, its DiffID, and whether it is a tar.

use std::cell::RefCell;
use std::io::{self, ErrorKind, Read};
use std::rc::Rc;
use std::sync::Arc;

use store::layer::compress::{Packing, decompressor};
use store::layer::tar::read::Reader;
use store::oci::{Descriptor, DiffId, Hasher};

use super::Problem;
use crate::blocking::blocking;
use crate::copy::target::{Verifying, open, read_error};
use crate::copy::tree::Blob;
use crate::copy::{CopyError, Source};
use crate::{Progress, Silent};

/// Reads a blob to its end.
pub(super) async fn read(
    source: &Source,
    blob: &Descriptor,
    diff_id: Option<DiffId>,
) -> Result<Vec<Problem>, CopyError> {
    let blob = Blob {
        descriptor: blob.clone(),
        source: source.blob(blob)?,
    };
    let place = source.name();
    blocking(move || {
        let nobody: Arc<dyn Progress> = Arc::new(Silent);
        look(open(&blob, &nobody)?, &blob.descriptor, diff_id, &place)
    })
    .await
}

/// The blob's own bytes, of which something else reads the beginning.
#[derive(Clone)]
struct Shared(Rc<RefCell<Raw>>);

struct Raw {
    bytes: Verifying,
    /// Why they ended, if they were to go on.
    failed: Option<io::Error>,
}

impl Read for Shared {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut raw = self.0.borrow_mut();
        if raw.failed.is_some() {
            return Err(io::Error::other("the blob cannot be read further"));
        }
        raw.bytes.read(buffer).map_err(|error| {
            let told = io::Error::other(error.to_string());
            raw.failed = Some(error);
            told
        })
    }
}

/// Hashes what goes through.
struct Hashing<R> {
    reader: R,
    hasher: Hasher,
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.reader.read(buffer)?;
        self.hasher.update(&buffer[..count]);
        Ok(count)
    }
}

fn look(
    bytes: Verifying,
    blob: &Descriptor,
    diff_id: Option<DiffId>,
    place: &str,
) -> Result<Vec<Problem>, CopyError> {
    let raw = Raw {
        bytes,
        failed: None,
    };
    let mut bytes = Shared(Rc::new(RefCell::new(raw)));
    let mut problems = Vec::new();
    let kind = blob.media_type.as_str();
    // Nobody can look into what is encrypted.
    if kind.contains(".tar") && !kind.ends_with("+encrypted") {
        problems = unpack(bytes.clone(), kind, diff_id);
    } else if let Some(expected) = diff_id.filter(|id| id.0 != blob.digest)
        && !kind.ends_with("+encrypted")
    {
        let actual = DiffId(blob.digest);
        problems.push(Problem::DiffId { expected, actual });
    }
    // If the bytes are others, what came of unpacking them says nothing.
    let drained = io::copy(&mut bytes, &mut io::sink());
    let failed = bytes.0.borrow_mut().failed.take();
    match failed.or(drained.err()) {
        None => Ok(problems),
        Some(error) => match error.kind() {
            ErrorKind::UnexpectedEof => Ok(vec![Problem::Short {
                expected: blob.size,
            }]),
            ErrorKind::InvalidData => Ok(vec![Problem::Digest]),
            _ => Err(read_error(error, blob, place)),
        },
    }
}

/// What a layer is, unpacked.
fn unpack(bytes: Shared, kind: &str, diff_id: Option<DiffId>) -> Vec<Problem> {
    let unreadable = |error: &dyn std::error::Error| {
        let cause = error.source().map(|cause| format!(": {cause}"));
        let reason = format!(
            "it cannot be unpacked: {error}{}",
            cause.unwrap_or_default()
        );
        vec![Problem::Unreadable { reason }]
    };
    let unpacked = match decompressor(bytes) {
        Ok(unpacked) => unpacked,
        Err(error) => return unreadable(&error),
    };
    let mut problems = Vec::new();
    let actual = unpacked.packing();
    if packing_of(kind).is_some_and(|expected| expected != actual) {
        let media_type = kind.to_owned();
        problems.push(Problem::Packing { media_type, actual });
    }
    let algorithm = diff_id.map_or(store::oci::DigestAlgorithm::Sha256, |id| id.0.algorithm());
    let mut hashing = Hashing {
        reader: unpacked,
        hasher: Hasher::new(algorithm),
    };
    let mut tar = Reader::new(&mut hashing);
    loop {
        match tar.next_entry() {
            Ok(Some(_)) => {}
            Ok(None) => break,
            Err(error) => {
                problems.extend(unreadable(&error));
                return problems;
            }
        }
    }
    // Behind its end may be anything, and belongs to the DiffID.
    if let Err(error) = io::copy(&mut hashing, &mut io::sink()) {
        problems.extend(unreadable(&error));
        return problems;
    }
    let actual = DiffId(hashing.hasher.finish());
    if let Some(expected) = diff_id.filter(|expected| *expected != actual) {
        problems.push(Problem::DiffId { expected, actual });
    }
    problems
}

/// How a layer of this type is packed; `None` of types that are not known.
fn packing_of(kind: &str) -> Option<Packing> {
    if kind.ends_with("tar+gzip") || kind.ends_with("tar.gzip") {
        Some(Packing::Gzip)
    } else if kind.ends_with("tar+zstd") || kind.ends_with("tar.zstd") {
        Some(Packing::Zstd)
    } else if kind.ends_with(".tar") {
        Some(Packing::Plain)
    } else {
        None
    }
}
