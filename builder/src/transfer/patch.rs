//! Layers of which much is here: zstd:chunked and eStargz blobs are put together from what older versions of them have, any blob
//! from what an earlier pull had read ahead of where it was stopped, and only the rest is asked for, by ranges.

use std::collections::VecDeque;
use std::io::{self, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use registry_client::BlobReader;
use store::Store;
use store::content::ahead::ReadAhead;
use store::layer::compress::estargz;
use store::layer::compress::table::{Format, Position};
use store::layers::pieces::LocalPiece;
use store::oci::{Annotations, Descriptor, Digest, Reference};

/// Smallest blob that is worth a request for its table.
const BLOB_BYTES_MIN: u64 = 256 * 1024;

/// Most parts of a blob that are asked for.
const PARTS_MAX: usize = 512;

/// A part that is here and not longer than this comes with its neighbours: a request of its own costs more.
const RUN_BYTES_MIN: u64 = 8 * 1024;

/// What of a layer's blob is here and need not come, ascending: what is in `ahead`, and what other blobs have of it where that
/// saves much. What is read of the blob to know that is kept in `ahead`.
pub(super) fn find(
    store: &Store,
    reference: &Reference,
    layer: &Descriptor,
    reader: &mut BlobReader,
    ahead: Option<&Arc<ReadAhead>>,
) -> Vec<LocalPiece> {
    let kept = || match ahead.map(|ahead| ahead.pieces(layer.size)) {
        Some(Ok(kept)) => kept,
        Some(Err(error)) => given_up(layer, &error),
        None => Vec::new(),
    };
    let mut look = Look {
        reader,
        size: layer.size,
        kept: kept(),
        ahead,
    };
    let elsewhere = elsewhere(store, reference, layer, &mut look);
    // What was looked at is among them by now.
    let kept = match elsewhere.is_empty() {
        true => look.kept,
        false => kept(),
    };
    joined(kept, elsewhere)
}

/// What other blobs have of a layer's; nothing where it would not save much, or cannot be known.
fn elsewhere(
    store: &Store,
    reference: &Reference,
    layer: &Descriptor,
    look: &mut Look<'_>,
) -> Vec<LocalPiece> {
    let annotations = layer.annotations.as_ref();
    let Some(told) = annotations.and_then(|told| Told::of(told, layer.size)) else {
        return Vec::new();
    };
    if layer.size < BLOB_BYTES_MIN {
        return Vec::new();
    }
    // Nothing is asked of the registry where there is nothing to compare with.
    match store.has_blobs_with_tables(told.format()) {
        Ok(true) => {}
        Ok(false) => return Vec::new(),
        Err(error) => return given_up(layer, &error),
    }
    let (position, bytes) = match told.read(look) {
        Ok(read) => read,
        Err(error) => return given_up(layer, &error),
    };
    let repository = (reference.registry(), reference.repository());
    let here = match store.local_pieces(&bytes, &position, repository) {
        Ok(here) => worthwhile(here, layer.size),
        Err(error) => return given_up(layer, &error),
    };
    let saved: u64 = here.iter().map(|piece| piece.length).sum();
    tracing::debug!(digest = %layer.digest, size = layer.size, saved, "parts of a layer are here");
    here
}

/// A look at parts of a blob before its transfer.
struct Look<'a> {
    reader: &'a mut BlobReader,
    /// Of the blob.
    size: u64,
    /// What need not be asked for.
    kept: Vec<LocalPiece>,
    /// Where to keep what was.
    ahead: Option<&'a Arc<ReadAhead>>,
}

impl Look<'_> {
    fn at(&mut self, part: Range<u64>) -> io::Result<Vec<u8>> {
        let has = |piece: &&LocalPiece| {
            piece.at <= part.start && part.end <= piece.at + piece.length && !part.is_empty()
        };
        if let Some(piece) = self.kept.iter().find(has) {
            let length = usize::try_from(part.end - part.start).map_err(io::Error::other)?;
            let mut bytes = vec![0; length];
            let offset = piece.offset + (part.start - piece.at);
            piece.file.read_exact_at(&mut bytes, offset)?;
            return Ok(bytes);
        }
        let bytes = self.reader.peek(part.clone())?;
        if let Some(ahead) = self.ahead {
            let keep = || match ahead.part(part.start)? {
                Some(mut kept) => kept.append(&bytes),
                None => Ok(false),
            };
            if let Err(error) = keep() {
                tracing::debug!(%error, "what was looked at is asked for again");
            }
        }
        Ok(bytes)
    }
}

/// What annotations say of a layer's table.
enum Told {
    /// Where it is, and what it hashes to.
    At(Position),
    /// What it hashes to; the blob's end says where it is.
    Estargz(Digest),
}

impl Told {
    fn of(annotations: &Annotations, size: u64) -> Option<Told> {
        let at = Position::from_annotations(annotations, size).map(Told::At);
        at.or_else(|| estargz::table_digest(annotations).map(Told::Estargz))
    }

    fn format(&self) -> Format {
        match self {
            Told::At(position) => position.format,
            Told::Estargz(_) => Format::Estargz,
        }
    }

    /// Where the blob's table is, and its bytes there.
    fn read(self, look: &mut Look<'_>) -> io::Result<(Position, Vec<u8>)> {
        let size = look.size;
        let (position, until) = match self {
            Told::At(position) => (position, size),
            Told::Estargz(digest) => {
                let start = size.saturating_sub(estargz::FOOTER_BYTES);
                let footer = look.at(start..size)?;
                let found = estargz::position(&footer, size)
                    .ok_or_else(|| io::Error::other("it has no footer of eStargz"))?;
                let digest = Some(digest);
                (Position { digest, ..found }, start)
            }
        };
        let table = position.table;
        let end = table.offset + table.length;
        // What is behind it would be a request of its own.
        let end = match until.checked_sub(end) {
            Some(behind) if behind <= table.length.max(RUN_BYTES_MIN) => until,
            _ => end,
        };
        let mut bytes = look.at(table.offset..end)?;
        bytes.truncate(usize::try_from(table.length).map_err(io::Error::other)?);
        Ok((position, bytes))
    }
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

/// Pieces that were kept and others, ascending and each byte once.
fn joined(kept: Vec<LocalPiece>, others: Vec<LocalPiece>) -> Vec<LocalPiece> {
    let mut all = [kept, others].concat();
    all.sort_by_key(|piece| piece.at);
    let mut joined: Vec<LocalPiece> = Vec::with_capacity(all.len());
    let mut end = 0;
    for piece in all {
        let piece = behind(vec![piece], end).pop_front();
        if let Some(piece) = piece {
            end = piece.at + piece.length;
            joined.push(piece);
        }
    }
    joined
}

/// What of the pieces is behind the first `from` bytes of the blob, which an earlier pull has put together.
fn behind(here: Vec<LocalPiece>, from: u64) -> VecDeque<LocalPiece> {
    let pieces = here.into_iter().filter_map(|mut piece| {
        let known = from.saturating_sub(piece.at);
        piece.length = piece.length.checked_sub(known).filter(|left| *left > 0)?;
        piece.at += known;
        piece.offset += known;
        Some(piece)
    });
    pieces.collect()
}

/// The parts of a blob of `size` bytes that are not `here`, behind the first `from`.
fn rest(here: &VecDeque<LocalPiece>, from: u64, size: u64) -> Vec<Range<u64>> {
    let mut rest = Vec::new();
    let mut at = from;
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
    /// Begins the transfer of what is missing behind the first `from` of its `size` bytes, if something else is `here`.
    pub(super) fn new(
        mut reader: BlobReader,
        here: Vec<LocalPiece>,
        from: u64,
        size: u64,
    ) -> Patched {
        let here = behind(here, from);
        if !here.is_empty() {
            reader.start_with(rest(&here, from, size));
        }
        Patched {
            reader,
            is_patched: !here.is_empty(),
            here,
            at: from,
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
    fn what_was_kept_and_what_is_elsewhere() {
        let check = |kept: &[(u64, u64)], others: &[(u64, u64)], expect: &[(u64, u64)]| {
            let joined = joined(pieces(kept), pieces(others));
            let found: Vec<_> = joined
                .iter()
                .map(|piece| (piece.at, piece.length))
                .collect();
            assert_eq!(found, expect);
        };
        check(&[], &[], &[]);
        check(&[(5, 5)], &[], &[(5, 5)]);
        check(&[], &[(5, 5), (10, 1)], &[(5, 5), (10, 1)]);
        check(
            &[(20, 10)],
            &[(0, 10), (15, 10)],
            &[(0, 10), (15, 10), (25, 5)],
        );
        check(&[(20, 10)], &[(22, 3), (25, 10)], &[(20, 10), (30, 5)]);
    }

    #[test]
    fn the_rest_is_what_is_not_here() {
        for (here, expect) in [
            (&[][..], &[(0, 100)][..]),
            (&[(0, 100)], &[]),
            (&[(0, 10), (10, 20), (50, 10)], &[(30, 50), (60, 100)]),
            (&[(5, 95)], &[(0, 5)]),
        ] {
            let rest = rest(&pieces(here).into(), 0, 100);
            let rest: Vec<_> = rest.iter().map(|part| (part.start, part.end)).collect();
            assert_eq!(rest, expect);
        }
    }

    #[test]
    fn what_an_earlier_pull_has_is_left_out() {
        let all = [(0, 10), (10, 20), (50, 10)];
        for (from, here, expect) in [
            (
                0,
                &[(0, 10, 0), (10, 20, 0), (50, 10, 0)][..],
                &[(30, 50), (60, 100)][..],
            ),
            (10, &[(10, 20, 0), (50, 10, 0)], &[(30, 50), (60, 100)]),
            (15, &[(15, 15, 5), (50, 10, 0)], &[(30, 50), (60, 100)]),
            (40, &[(50, 10, 0)], &[(40, 50), (60, 100)]),
            (55, &[(55, 5, 5)], &[(60, 100)]),
            (70, &[], &[(70, 100)]),
        ] {
            let left = behind(pieces(&all), from);
            let found: Vec<_> = left
                .iter()
                .map(|piece| (piece.at, piece.length, piece.offset))
                .collect();
            assert_eq!(found, here, "{from}");
            let rest = rest(&left, from, 100);
            let rest: Vec<_> = rest.iter().map(|part| (part.start, part.end)).collect();
            assert_eq!(rest, expect, "{from}");
        }
    }
}
