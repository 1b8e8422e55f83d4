//! Bytes that come in a task, handed to a thread that blocks while it stores them.

use std::io;

use bytes::Bytes;
use tokio::sync::mpsc;

/// Pieces that wait to be taken; the source is not read on meanwhile.
const PIECES: usize = 16;

/// Nobody takes any more; the other side knows why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Unwanted;

/// Gives the pieces of one blob, in order.
#[derive(Clone, Debug)]
pub(crate) struct Giver(mpsc::Sender<Option<Bytes>>);

/// The pieces as a storage takes them; an error where they end without the giver's word that these were all.
#[derive(Debug)]
pub(crate) struct Taker {
    pieces: mpsc::Receiver<Option<Bytes>>,
    ended: bool,
    cut: bool,
}

/// Both ends.
pub(crate) fn handover() -> (Giver, Taker) {
    let (giver, pieces) = mpsc::channel(PIECES);
    let taker = Taker {
        pieces,
        ended: false,
        cut: false,
    };
    (Giver(giver), taker)
}

impl Giver {
    /// Gives the next piece.
    pub(crate) async fn give(&self, piece: Bytes) -> Result<(), Unwanted> {
        self.0.send(Some(piece)).await.map_err(|_| Unwanted)
    }

    /// The same where blocking harms nobody.
    pub(crate) fn give_blocking(&self, piece: Bytes) -> Result<(), Unwanted> {
        self.0.blocking_send(Some(piece)).map_err(|_| Unwanted)
    }

    /// Says that these were all.
    pub(crate) async fn finish(self) -> Result<(), Unwanted> {
        self.0.send(None).await.map_err(|_| Unwanted)
    }
}

impl Taker {
    /// Whether the pieces ended before they were all.
    pub(crate) fn was_cut(&self) -> bool {
        self.cut
    }
}

impl Iterator for Taker {
    type Item = io::Result<Bytes>;

    /// Blocks.
    fn next(&mut self) -> Option<io::Result<Bytes>> {
        if self.ended {
            return None;
        }
        match self.pieces.blocking_recv() {
            Some(Some(piece)) => Some(Ok(piece)),
            Some(None) => {
                self.ended = true;
                None
            }
            None => {
                (self.ended, self.cut) = (true, true);
                Some(Err(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_all_or_cut() {
        let piece = || Bytes::from_static(b"piece");
        let (giver, mut taker) = handover();
        giver.give_blocking(piece()).unwrap();
        let finished = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build();
            runtime.unwrap().block_on(giver.finish())
        });
        assert_eq!(taker.next().unwrap().unwrap(), piece());
        assert!(taker.next().is_none() && taker.next().is_none() && !taker.was_cut());
        finished.join().unwrap().unwrap();

        let (giver, mut taker) = handover();
        giver.give_blocking(piece()).unwrap();
        drop(giver);
        assert_eq!(taker.next().unwrap().unwrap(), piece());
        let cut = taker.next().unwrap().unwrap_err();
        assert_eq!(cut.kind(), io::ErrorKind::UnexpectedEof);
        assert!(taker.next().is_none() && taker.was_cut());

        let (giver, taker) = handover();
        drop(taker);
        assert_eq!(giver.give_blocking(piece()), Err(Unwanted));
    }
}
