//! Layers of which much is here: zstd:chunked blobs are put together from what older versions of them have, and only the
//! rest is asked for, by ranges.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use registry_client::BlobReader;
use store::Store;
use store::layer::compress::table::Position;
use store::layers::pieces::LocalPiece;
use store::oci::{Descriptor, Digest, Reference};

/// Smallest blob that is worth a request for its table.
const BLOB_BYTES_MIN: u64 = 256 * 1024;

/// Most parts of a blob that are asked for.
const PARTS_MAX: usize = 512;

/// A part that is here and not longer than this comes with its neighbours: a request of its own costs more.
const RUN_BYTES_MIN: u64 = 8 * 1024;

/// What of a layer's blob is here and need not come, ascending; nothing where it would not save much, or cannot be known.
pub(super) fn find(
    store: &Store,
    reference: &Reference,
    layer: &Descriptor,
    reader: &mut BlobReader,
) -> Vec<LocalPiece> {
    let position = layer.annotations.as_ref();
    let position = position.and_then(|told| Position::from_annotations(told, layer.size));
    let Some(position) = position.filter(|_| layer.size >= BLOB_BYTES_MIN) else {
        return Vec::new();
    };
    // Nothing is asked of the registry where there is nothing to compare with.
    match store.has_chunked_blobs().map_err(io::Error::other) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(error) => return given_up(layer, &error),
    }
    let table = position.table;
    let bytes = match reader.peek(table.offset..table.offset + table.length) {
        Ok(bytes) => bytes,
        Err(error) => return given_up(layer, &error),
    };
    if position.digest != Some(Digest::of(&bytes)) {
        return given_up(layer, &"its table is not what its annotations say");
    }
    let repository = (reference.registry(), reference.repository());
    let here = match store.local_pieces(&bytes, table.offset, repository) {
        Ok(here) => worthwhile(here, layer.size),
        Err(error) => return given_up(layer, &error),
    };
    let saved: u64 = here.iter().map(|piece| piece.length).sum();
    tracing::debug!(digest = %layer.digest, size = layer.size, saved, "parts of a layer are here");
    here
}

fn given_up(layer: &Descriptor, why: &dyn std::fmt::Display) -> Vec<LocalPiece> {
    tracing::debug!(digest = %layer.digest, %why, "all of a layer is read");
    Vec::new()
}

/// Leaves out what is not worth a request: short runs between parts that have to come anyway.
fn worthwhile(here: Vec<LocalPiece>, size: u64) -> Vec<LocalPiece> {
    // Pieces of several files next to each other are one run.
    let mut runs: Vec<Vec<LocalPiece>> = Vec::new();
    let mut end = None;
    for piece in here {
        let is_next = end == Some(piece.at);
        end = Some(piece.at + piece.length);
        match runs.last_mut().filter(|_| is_next) {
            Some(run) => run.push(piece),
            None => runs.push(vec![piece]),
        }
    }
    let bytes = |run: &[LocalPiece]| run.iter().map(|piece| piece.length).sum::<u64>();
    let mut least = RUN_BYTES_MIN;
    loop {
        runs.retain(|run| bytes(run) >= least);
        if runs.len() < PARTS_MAX {
            break;
        }
        least *= 2;
    }
    let saved: u64 = runs.iter().map(|run| bytes(run)).sum();
    match saved >= size / 10 {
        true => runs.into_iter().flatten().collect(),
        false => Vec::new(),
    }
}

/// The parts of a blob of `size` bytes that are not `here`.
fn rest(here: &[LocalPiece], size: u64) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut at = 0;
    for piece in here {
        if at < piece.at {
            rest.push(at..piece.at);
        }
        at = piece.at + piece.length;
    }
    if at < size {
        rest.push(at..size);
    }
    rest
}

/// A blob, of which some pieces are here.
pub(super) struct Patched {
    reader: BlobReader,
    here: VecDeque<LocalPiece>,
    is_patched: bool,
    /// Where in the blob the next byte is.
    at: u64,
}

impl Patched {
    /// Begins the transfer of the rest of its `size` bytes, if something is `here`.
    pub(super) fn new(mut reader: BlobReader, here: Vec<LocalPiece>, size: u64) -> Patched {
        if !here.is_empty() {
            reader.start_with(rest(&here, size));
        }
        Patched {
            reader,
            is_patched: !here.is_empty(),
            here: here.into(),
            at: 0,
        }
    }

    pub(super) fn is_patched(&self) -> bool {
        self.is_patched
    }

    /// As [`BlobReader::start_at`].
    pub(super) fn start_at(&mut self, offset: u64) {
        self.reader.start_at(offset);
    }
}

impl Read for Patched {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match self.here.front_mut() {
            Some(piece) if piece.at == self.at => {
                let most = usize::try_from(piece.length)
                    .map_or(buffer.len(), |left| left.min(buffer.len()));
                let count = piece.file.read_at(&mut buffer[..most], piece.offset)?;
                if count == 0 && most > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                piece.at += count as u64;
                piece.offset += count as u64;
                piece.length -= count as u64;
                if piece.length == 0 {
                    self.here.pop_front();
                }
                count
            }
            Some(piece) => {
                let left = piece.at - self.at;
                let most =
                    usize::try_from(left).map_or(buffer.len(), |left| left.min(buffer.len()));
                let count = self.reader.read(&mut buffer[..most])?;
                if count == 0 && most > 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                count
            }
            None => self.reader.read(buffer)?,
        };
        self.at += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn pieces(list: &[(u64, u64)]) -> Vec<LocalPiece> {
        let file = Arc::new(tempfile::tempfile().unwrap());
        let piece = |(at, length): &(u64, u64)| LocalPiece {
            at: *at,
            length: *length,
            file: Arc::clone(&file),
            offset: 0,
        };
        list.iter().map(piece).collect()
    }

    fn kept(list: &[(u64, u64)], size: u64) -> Vec<(u64, u64)> {
        let kept = worthwhile(pieces(list), size);
        kept.iter().map(|piece| (piece.at, piece.length)).collect()
    }

    #[test]
    fn short_runs_come_with_their_neighbours() {
        let run = RUN_BYTES_MIN;
        assert_eq!(kept(&[(0, run), (2 * run, run - 1)], 4 * run), [(0, run)]);
        // Two halves next to each other are a whole.
        let halves = [(run, run / 2), (run + run / 2, run / 2)];
        assert_eq!(kept(&halves, 4 * run), halves);
        // Too little to be worth it.
        assert_eq!(kept(&[(0, run)], 11 * run), []);
        // Many runs: the longer ones.
        let many: Vec<(u64, u64)> = (0..2000)
            .map(|at| (at * 10 * run, run + at % 4 * run))
            .collect();
        let kept = kept(&many, 10_000 * run / 4);
        assert!(kept.len() < PARTS_MAX && kept.len() > 100, "{}", kept.len());
        assert!(kept.iter().all(|(_, length)| *length == 4 * run));
    }

    #[test]
    fn the_rest_is_what_is_not_here() {
        for (here, expect) in [
            (&[][..], &[(0, 100)][..]),
            (&[(0, 100)], &[]),
            (&[(0, 10), (10, 20), (50, 10)], &[(30, 50), (60, 100)]),
            (&[(5, 95)], &[(0, 5)]),
        ] {
            let rest = rest(&pieces(here), 100);
            let rest: Vec<_> = rest.iter().map(|part| (part.start, part.end)).collect();
            assert_eq!(rest, expect);
        }
    }
}
