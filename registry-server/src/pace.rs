//! How fast a peer has to be: a client that sends or reads a byte now and then is let go like one that is silent.
//!
//! Only the time counts that the peer was waited for, so that a slow disk is not held against it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

/// What is asked of peers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    /// How long it may do nothing, and after how much waiting it is looked at how much it did.
    pub(crate) window: Duration,
    /// Least bytes per second of waiting, on average of a window.
    pub(crate) rate: u64,
}

/// How much one peer did in a window that is not over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Paced {
    pace: Pace,
    waited: Duration,
    bytes: u64,
}

/// The peer is slower than it has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct TooSlow;

impl Pace {
    /// A first window.
    pub(crate) fn start(self) -> Paced {
        Paced {
            pace: self,
            waited: Duration::ZERO,
            bytes: 0,
        }
    }

    /// Whether so many bytes are too few for the time.
    pub(crate) fn is_slow(self, bytes: u64, waited: Duration) -> bool {
        u128::from(bytes) * 1000 < u128::from(self.rate) * waited.as_millis()
    }
}

impl Paced {
    /// How long the peer may do nothing.
    pub(crate) fn patience(&self) -> Duration {
        self.pace.window
    }

    /// The peer moved so many bytes, after it was waited for so long.
    pub(crate) fn moved(&mut self, bytes: usize, waited: Duration) -> Result<(), TooSlow> {
        self.bytes = self.bytes.saturating_add(bytes as u64);
        self.waited = self.waited.saturating_add(waited);
        if self.waited < self.pace.window {
            return Ok(());
        }
        let slow = self.pace.is_slow(self.bytes, self.waited);
        *self = self.pace.start();
        if slow { Err(TooSlow) } else { Ok(()) }
    }
}

/// Whether anything of an HTTP/2 connection's bodies is read: there the connection goes on while its streams stand still.
#[derive(Debug, Default)]
pub(crate) struct Pulse {
    /// Bodies of which bytes wait for the peer.
    offered: AtomicUsize,
    /// Bytes that were taken, of all of them.
    taken: AtomicU64,
}

impl Pulse {
    /// Ready when for a window bodies waited for the peer and it took too little of all of them together.
    pub(crate) async fn until_stuck(&self, pace: Pace) {
        let mut before = self.now();
        loop {
            tokio::time::sleep(pace.window).await;
            let now = self.now();
            if before.is_stuck(&now, pace) {
                return;
            }
            before = now;
        }
    }

    fn now(&self) -> Moment {
        Moment {
            offered: self.offered.load(Ordering::Relaxed),
            taken: self.taken.load(Ordering::Relaxed),
        }
    }
}

/// What a [`Pulse`] shows.
#[derive(Debug)]
struct Moment {
    offered: usize,
    taken: u64,
}

impl Moment {
    /// Whether too little was taken up to `now`, a window later.
    fn is_stuck(&self, now: &Moment, pace: Pace) -> bool {
        let bytes = now.taken.wrapping_sub(self.taken);
        let waited = self.offered > 0 && now.offered > 0;
        waited && (bytes == 0 || pace.is_slow(bytes, pace.window))
    }
}

/// One body of a connection.
#[derive(Debug)]
pub(crate) struct Beat {
    pulse: Arc<Pulse>,
    /// Bytes that wait for the peer.
    offered: Option<usize>,
}

impl Beat {
    pub(crate) fn new(pulse: Arc<Pulse>) -> Beat {
        Beat {
            pulse,
            offered: None,
        }
    }

    /// So many bytes wait for the peer.
    pub(crate) fn offered(&mut self, bytes: usize) {
        if self.offered.replace(bytes).is_none() {
            self.pulse.offered.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What was offered is taken: more is asked for.
    pub(crate) fn taken(&mut self) {
        if let Some(bytes) = self.offered.take() {
            self.pulse.taken.fetch_add(bytes as u64, Ordering::Relaxed);
            self.pulse.offered.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

impl Drop for Beat {
    fn drop(&mut self) {
        self.taken();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: Duration = Duration::from_secs(60);

    /// The steps that a peer makes (bytes, and milliseconds before them) until it is too slow.
    fn check(rate: u64, steps: &[(usize, u64)], expect: usize) {
        let pace = Pace {
            window: MINUTE,
            rate,
        };
        let mut paced = pace.start();
        let cut = steps.iter().position(|&(bytes, waited)| {
            paced.moved(bytes, Duration::from_millis(waited)) == Err(TooSlow)
        });
        assert_eq!(cut, (expect < steps.len()).then_some(expect), "{steps:?}");
    }

    #[test]
    fn a_byte_now_and_then_is_too_slow() {
        check(500, &[(1, 59_999); 3], 1);
        check(500, &[(1, 1000); 100], 59);
        check(500, &[(499, 1000); 1000], 59);
        check(500, &[(500, 1000); 1000], 1000);
        // Time that the peer was not waited for is none.
        check(500, &[(1, 0); 100_000], 100_000);
        // What was fast once may not be slow for ever.
        let mut steps = vec![(1 << 30, 100)];
        steps.extend([(1, 1000); 200]);
        check(500, &steps, 120);
        // No rate, no bound but the patience.
        check(0, &[(1, 59_999); 100], 100);
    }

    #[test]
    fn streams_that_nobody_reads_are_noticed() {
        let pace = Pace {
            window: MINUTE,
            rate: 500,
        };
        let pulse = Arc::new(Pulse::default());
        let begin = || Beat::new(Arc::clone(&pulse));
        let check = |step: &mut dyn FnMut(), expect: bool, what: &str| {
            let before = pulse.now();
            step();
            assert_eq!(before.is_stuck(&pulse.now(), pace), expect, "{what}");
        };
        check(&mut || {}, false, "nothing to read");
        let (mut read, mut unread) = (begin(), begin());
        unread.offered(1 << 20);
        let mut reads = |bytes: usize, times: usize| {
            for _ in 0..times {
                read.offered(bytes);
                read.taken();
            }
        };
        check(&mut || reads(1000, 30), false, "one of two is read");
        check(&mut || reads(1, 60), true, "a byte now and then");
        check(&mut || {}, true, "none is read");
        let mut late = None;
        check(
            &mut || {
                unread.taken();
                late = Some(begin());
            },
            false,
            "all is read",
        );
        check(
            &mut || late.iter_mut().for_each(|late| late.offered(7)),
            false,
            "one that began just now",
        );
        check(&mut || late = None, false, "one that went away");
        assert_eq!(pulse.now().offered, 0);
    }

    #[test]
    fn no_number_is_too_large() {
        check(u64::MAX, &[(usize::MAX, 60_000), (usize::MAX, 60_000)], 0);
        check(1, &[(usize::MAX, u64::MAX), (usize::MAX, 1)], 2);
    }
}
