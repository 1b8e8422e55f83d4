//! What a task reads ahead, kept on the disk as well: a process that is killed leaves it to the next one.

use std::sync::Arc;

use bytes::Bytes;
use store::content::ContentError;
use store::content::ahead::{AheadPart, ReadAhead};

use crate::blocking::blocking;

/// Bytes that are written at once: what one task may lose.
const WRITE_BYTES: usize = 128 * 1024;

/// The way of one task's bytes to the disk. It only saves time later: where it fails, they are not kept.
pub(super) struct Spool {
    part: Option<AheadPart>,
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
}

impl Spool {
    /// Begins to keep what comes from `offset` on, if there is where.
    pub(super) async fn start(keep: Option<Arc<ReadAhead>>, offset: u64) -> Spool {
        let part = match keep {
            Some(keep) => taken(blocking(move || keep.part(offset)).await).flatten(),
            None => None,
        };
        Spool {
            part,
            waiting: Vec::new(),
            waiting_bytes: 0,
        }
    }

    /// Takes the next bytes.
    pub(super) async fn add(&mut self, piece: Bytes) {
        if self.part.is_none() {
            return;
        }
        self.waiting_bytes += piece.len();
        self.waiting.push(piece);
        if self.waiting_bytes >= WRITE_BYTES {
            self.write().await;
        }
    }

    /// Writes what waits.
    pub(super) async fn write(&mut self) {
        let (waiting, part) = (std::mem::take(&mut self.waiting), self.part.take());
        self.waiting_bytes = 0;
        let Some(mut part) = part else {
            return;
        };
        let written = blocking(move || {
            for piece in &waiting {
                if !part.append(piece)? {
                    return Ok(None);
                }
            }
            Ok(Some(part))
        });
        self.part = taken(written.await).flatten();
    }
}

fn taken<T>(result: Result<T, ContentError>) -> Option<T> {
    result
        .inspect_err(|error| tracing::debug!(%error, "what is read ahead is not kept"))
        .ok()
}
