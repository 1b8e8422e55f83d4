//! How large the pieces are in which something is moved, learned from how long pieces took: a line that breaks costs the time of one
//! at most, and a fast line is not asked more often than it needs.

use std::time::Duration;

/// How long one piece should take.
const WANTED: Duration = Duration::from_secs(2);

/// The size of the next piece. It changes by a factor of two at most with each piece that came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Pace {
    bytes: u64,
    least: u64,
    most: u64,
}

impl Pace {
    /// Begins with pieces of `first` bytes, and stays between `least` and `most`.
    pub(crate) fn new(first: u64, least: u64, most: u64) -> Pace {
        let (least, most) = (least.max(1), most.max(least.max(1)));
        let bytes = first.clamp(least, most);
        Pace { bytes, least, most }
    }

    /// Bytes of the next piece.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Takes note that a piece of `bytes` took `time`. What is less than half a piece, such as the last, tells nothing.
    pub(crate) fn took(&mut self, bytes: u64, time: Duration) {
        if bytes < self.bytes / 2 {
            return;
        }
        let millis = u64::try_from(time.as_millis()).unwrap_or(u64::MAX).max(1);
        let wanted = u64::try_from(WANTED.as_millis()).unwrap_or(u64::MAX);
        let in_time = bytes.saturating_mul(wanted) / millis;
        let near = in_time.clamp(self.bytes / 2, self.bytes.saturating_mul(2));
        self.bytes = near.clamp(self.least, self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_follow_the_line() {
        const MIB: u64 = 1 << 20;
        let mut pace = Pace::new(4 * MIB, MIB, 64 * MIB);
        let mut check = |took: u64, millis: u64, expect: u64| {
            pace.took(took, Duration::from_millis(millis));
            assert_eq!(pace.bytes(), expect, "{took} bytes in {millis} ms");
        };
        // Twice as much at most, up to a bound.
        check(4 * MIB, 10, 8 * MIB);
        check(8 * MIB, 0, 16 * MIB);
        check(16 * MIB, 20, 32 * MIB);
        check(32 * MIB, 20, 64 * MIB);
        check(64 * MIB, 20, 64 * MIB);
        // As much as comes in two seconds, half of it at least.
        check(64 * MIB, 4000, 32 * MIB);
        check(32 * MIB, 60_000, 16 * MIB);
        check(16 * MIB, 2000, 16 * MIB);
        // A last piece tells nothing.
        check(MIB, 60_000, 16 * MIB);
        for _ in 0..10 {
            pace.took(pace.bytes(), Duration::from_secs(3600));
        }
        assert_eq!(pace.bytes(), MIB);
    }

    #[test]
    fn bounds_that_cross_are_none() {
        let pace = Pace::new(10, 100, 50);
        assert_eq!(pace.bytes(), 100);
        assert_eq!(Pace::new(0, 0, 0).bytes(), 1);
    }
}
