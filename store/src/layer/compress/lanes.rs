//! Pieces of work given to threads in turn, whose results come back in the order in which the pieces went.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;

/// Threads that each turn pieces `I` into a `T`.
pub(super) struct Lanes<I, T> {
    lanes: Vec<Lane<I, T>>,
    /// Lanes with a piece under way, oldest first.
    busy: VecDeque<usize>,
    next: usize,
    /// Pieces that may be under way at once: what bounds memory, without bounded channels.
    most: usize,
}

struct Lane<I, T> {
    input: Option<Sender<I>>,
    output: Receiver<(I, T)>,
    thread: Option<JoinHandle<()>>,
}

impl<I: Send + 'static, T: Send + 'static> Lanes<I, T> {
    /// Starts `threads` threads named after `name`, each with the function that `make` gives it; `depth` pieces may wait in
    /// each.
    ///
    /// # Errors
    /// A thread that cannot be started.
    pub(super) fn start<F>(
        name: &str,
        threads: usize,
        depth: usize,
        mut make: impl FnMut() -> io::Result<F>,
    ) -> io::Result<Lanes<I, T>>
    where
        F: FnMut(&I) -> T + Send + 'static,
    {
        let lanes = (0..threads.max(1))
            .map(|index| Lane::start(format!("{name}-{index}"), make()?))
            .collect::<io::Result<Vec<Lane<I, T>>>>()?;
        Ok(Lanes {
            most: lanes.len() * depth,
            lanes,
            busy: VecDeque::new(),
            next: 0,
        })
    }

    /// Whether a result has to be received before the next piece is sent.
    pub(super) fn is_full(&self) -> bool {
        self.busy.len() >= self.most
    }

    /// Gives a piece to the next thread.
    ///
    /// # Errors
    /// The thread is gone.
    pub(super) fn send(&mut self, piece: I) -> io::Result<()> {
        let lane = &self.lanes[self.next];
        let input = lane.input.as_ref().ok_or_else(died)?;
        input.send(piece).map_err(|_| died())?;
        self.busy.push_back(self.next);
        self.next = (self.next + 1) % self.lanes.len();
        Ok(())
    }

    /// The oldest piece under way and what became of it; `None` if there is none.
    ///
    /// # Errors
    /// The thread is gone.
    pub(super) fn receive(&mut self) -> io::Result<Option<(I, T)>> {
        let Some(lane) = self.busy.pop_front() else {
            return Ok(None);
        };
        let done = self.lanes[lane].output.recv().map_err(|_| died())?;
        Ok(Some(done))
    }
}

fn died() -> io::Error {
    io::Error::other("a compression thread stopped")
}

impl<I: Send + 'static, T: Send + 'static> Lane<I, T> {
    fn start(name: String, mut work: impl FnMut(&I) -> T + Send + 'static) -> io::Result<Self> {
        let (input, pieces) = channel::<I>();
        let (results, output) = channel();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            for piece in pieces {
                let result = work(&piece);
                if results.send((piece, result)).is_err() {
                    return;
                }
            }
        })?;
        Ok(Lane {
            input: Some(input),
            output,
            thread: Some(thread),
        })
    }
}

impl<I, T> Drop for Lane<I, T> {
    fn drop(&mut self) {
        // Closing the channel is what ends the thread.
        self.input = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has already shown itself as a closed channel.
            let _ = thread.join();
        }
    }
}
