//! What came of a blob before what is in front of it: kept for the next process, as the blob's beginning is.
//!
//! ```text
//! tmp/part-<algorithm>-<hex>            the beginning, by Ingest
//! tmp/part-<algorithm>-<hex>-<offset>   what came from an offset on
//! ```
//!
//! A part's length says how much of it came, so that nothing has to be noted. It goes once the beginning reaches its end, mostly
//! before the kernel has written it to the disk. Only who writes the beginning touches them. Nothing in them was checked: who puts a blob
//! together of them hashes it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ContentError;
use crate::fs::{self, TempFile};
use crate::layers::pieces::LocalPiece;

/// Most parts that are looked at when a blob is gone on with.
const PARTS_MAX: usize = 4096;

/// The parts of a blob that came before what is in front of them.
#[derive(Debug)]
pub struct ReadAhead {
    tmp: PathBuf,
    /// What the blob's beginning is called there.
    name: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// Where the blob's beginning ends.
    kept: u64,
    /// Where each part begins and ends.
    parts: BTreeMap<u64, u64>,
}

/// A part that is being written.
#[derive(Debug)]
pub struct AheadPart {
    ahead: Arc<ReadAhead>,
    file: TempFile,
    start: u64,
    end: u64,
}

impl ReadAhead {
    /// What is in `tmp` of a blob whose beginning is called `part-NAME` there.
    pub(super) fn of(tmp: &Path, name: &str) -> Result<ReadAhead, ContentError> {
        let prefix = format!("{}-", fs::resumable_name(name));
        let mut parts = BTreeMap::new();
        for found in fs::list(tmp)? {
            let offset = found
                .strip_prefix(&prefix)
                .and_then(|text| text.parse().ok());
            let Some(start) = offset else {
                continue;
            };
            let size = fs::file_size(&tmp.join(&found))?.unwrap_or(0);
            parts.insert(start, size.saturating_add(start));
        }
        let state = State { kept: 0, parts };
        Ok(ReadAhead {
            tmp: tmp.to_owned(),
            name: name.to_owned(),
            state: Mutex::new(state),
        })
    }

    /// The parts that an earlier process left of a blob of `size` bytes, ascending; none has what another has.
    pub fn pieces(&self, size: u64) -> Result<Vec<LocalPiece>, ContentError> {
        let parts = self.state().parts.clone();
        let mut pieces = Vec::new();
        let mut reached = 0;
        for (start, end) in parts.into_iter().take(PARTS_MAX) {
            let known = reached.max(start);
            if known >= end || end > size {
                continue;
            }
            if let Some(file) = fs::optional(fs::open(&self.path(start)))? {
                pieces.push(LocalPiece {
                    at: known,
                    length: end - known,
                    file: Arc::new(file),
                    offset: known - start,
                });
                reached = end;
            }
        }
        Ok(pieces)
    }

    /// A part that begins at an offset; `None` where it is there already, or no longer needed.
    pub fn part(self: &Arc<Self>, start: u64) -> Result<Option<AheadPart>, ContentError> {
        let name = format!("{}-{start}", self.name);
        let mut state = self.state();
        if start < state.kept || state.parts.contains_key(&start) {
            return Ok(None);
        }
        let Some(file) = TempFile::resume(&self.tmp, &name)? else {
            return Ok(None);
        };
        state.parts.insert(start, start);
        drop(state);
        fs::attempt("empty", file.path(), || file.file().set_len(0))?;
        Ok(Some(AheadPart {
            ahead: Arc::clone(self),
            file,
            start,
            end: start,
        }))
    }

    /// Removes what the blob's beginning has by now.
    pub(super) fn reached(&self, kept: u64) -> Result<(), ContentError> {
        let mut state = self.state();
        state.kept = kept;
        while let Some((start, end)) = state.parts.first_key_value().map(|(s, e)| (*s, *e)) {
            // One that is still empty may be about to get what comes next.
            if end > kept || start >= kept {
                break;
            }
            state.parts.remove(&start);
            fs::remove_file(&self.path(start))?;
        }
        Ok(())
    }

    /// Removes all of it.
    pub(super) fn discard(&self) {
        let parts = std::mem::take(&mut self.state().parts);
        for start in parts.into_keys() {
            if let Err(error) = fs::remove_file(&self.path(start)) {
                tracing::debug!(%error, "a part of a blob stays until the next sweep");
            }
        }
    }

    fn path(&self, start: u64) -> PathBuf {
        let name = fs::resumable_name(&format!("{}-{start}", self.name));
        self.tmp.join(name)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AheadPart {
    /// Adds bytes at its end. Tells whether it is still needed: not once the blob's beginning has what comes next, because then
    /// whatever comes goes there at once.
    pub fn append(&mut self, bytes: &[u8]) -> Result<bool, ContentError> {
        if !self.is_needed() {
            return Ok(false);
        }
        self.file.append(bytes)?;
        self.end += bytes.len() as u64;
        if let Some(end) = self.ahead.state().parts.get_mut(&self.start) {
            *end = self.end;
        }
        Ok(true)
    }

    fn is_needed(&self) -> bool {
        let state = self.ahead.state();
        let is_behind = state.kept > self.start && state.kept >= self.end;
        !is_behind && state.parts.contains_key(&self.start)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    fn of(tmp: &Path) -> Arc<ReadAhead> {
        Arc::new(ReadAhead::of(tmp, "sha256-00").unwrap())
    }

    fn write(ahead: &Arc<ReadAhead>, start: u64, bytes: &[u8]) {
        let mut part = ahead.part(start).unwrap().unwrap();
        assert!(part.append(bytes).unwrap());
    }

    fn kept(ahead: &ReadAhead, size: u64) -> Vec<(u64, Vec<u8>)> {
        let pieces = ahead.pieces(size).unwrap().into_iter();
        let bytes = pieces.map(|piece| {
            let mut bytes = vec![0; usize::try_from(piece.length).unwrap()];
            piece.file.read_exact_at(&mut bytes, piece.offset).unwrap();
            (piece.at, bytes)
        });
        bytes.collect()
    }

    #[test]
    fn the_next_process_finds_the_parts() {
        let tmp = tempfile::tempdir().unwrap();
        let ahead = of(tmp.path());
        write(&ahead, 10, b"0123456789");
        write(&ahead, 9, b"x01");
        write(&ahead, 40, b"end");
        assert!(ahead.part(40).unwrap().is_none(), "it is there");
        std::fs::write(tmp.path().join("part-sha256-00"), "beginning").unwrap();
        std::fs::write(tmp.path().join("part-sha256-00-x"), "no offset").unwrap();
        std::fs::write(tmp.path().join("part-sha256-01-5"), "another blob").unwrap();
        drop(ahead);

        let ahead = of(tmp.path());
        let all = [
            (9, b"x01".to_vec()),
            (12, b"23456789".to_vec()),
            (40, b"end".to_vec()),
        ];
        assert_eq!(kept(&ahead, 43), all);
        // What is longer than the blob is not of it.
        assert_eq!(kept(&ahead, 42), all[..2]);
        ahead.discard();
        assert_eq!(kept(&of(tmp.path()), 43), []);
        assert_eq!(fs::list(tmp.path()).unwrap().len(), 3);
    }

    #[test]
    fn what_the_beginning_has_goes() {
        let tmp = tempfile::tempdir().unwrap();
        let ahead = of(tmp.path());
        write(&ahead, 10, b"0123456789");
        let mut next = ahead.part(20).unwrap().unwrap();
        let mut later = ahead.part(30).unwrap().unwrap();
        ahead.reached(15).unwrap();
        assert_eq!(kept(&ahead, 100), [(10, b"0123456789".to_vec())]);
        ahead.reached(20).unwrap();
        assert_eq!(kept(&ahead, 100), []);
        assert!(ahead.part(19).unwrap().is_none(), "it is not needed");
        // What comes next is still ahead of the beginning; then it is not.
        assert!(next.append(b"abc").unwrap());
        ahead.reached(23).unwrap();
        assert!(!next.append(b"def").unwrap());
        assert!(later.append(b"ghi").unwrap());
        assert_eq!(kept(&ahead, 100), [(30, b"ghi".to_vec())]);
        ahead.reached(33).unwrap();
        assert!(fs::list(tmp.path()).unwrap().is_empty());
    }
}
