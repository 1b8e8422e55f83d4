//! How often something may be done, by whom: a bucket for each, refilled steadily; pure but for a lock.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Those that are remembered apart; beyond, newcomers share one bucket.
const KEYS_MAX: usize = 100_000;

/// So many at once, and one in a time in the long run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// How long it is between two, in the long run.
    pub interval: Duration,
    /// How many may come at once after a rest.
    pub burst: u32,
}

impl Rate {
    /// So many in a second, and as many at once.
    pub fn per_second(count: u32) -> Rate {
        Rate {
            interval: Duration::from_secs(1) / count.max(1),
            burst: count.max(1),
        }
    }
}

/// Buckets by key.
#[derive(Debug)]
pub(crate) struct RateLimit {
    rate: Rate,
    /// When each will be full again.
    full_at: Mutex<BTreeMap<String, Instant>>,
}

impl RateLimit {
    pub(crate) fn new(rate: Rate) -> RateLimit {
        RateLimit {
            rate,
            full_at: Mutex::default(),
        }
    }

    pub(crate) fn rate(&self) -> Rate {
        self.rate
    }

    /// Takes one out of the bucket; when there is none, how long until there is.
    pub(crate) fn take(&self, key: &str, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.full_at.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= KEYS_MAX && !buckets.contains_key(key) {
            buckets.retain(|_, full_at| *full_at > now);
        }
        let key = if buckets.len() >= KEYS_MAX && !buckets.contains_key(key) {
            ""
        } else {
            key
        };
        let full_at = buckets.get(key).copied().unwrap_or(now).max(now);
        let Rate { interval, burst } = self.rate;
        let depth = interval.saturating_mul(burst.max(1));
        let after = full_at.checked_add(interval);
        let Some(after) = after.filter(|after| after.duration_since(now) <= depth) else {
            let missing = full_at.duration_since(now).saturating_add(interval);
            return Err(missing.saturating_sub(depth));
        };
        buckets.insert(key.to_owned(), after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_a_trickle() {
        let limit = RateLimit::new(Rate {
            interval: Duration::from_millis(500),
            burst: 3,
        });
        let start = Instant::now();
        let at = |ms: u64| start + Duration::from_millis(ms);
        for _ in 0..3 {
            assert_eq!(limit.take("a", at(0)), Ok(()));
        }
        assert_eq!(limit.take("a", at(0)), Err(Duration::from_millis(500)));
        assert_eq!(limit.take("b", at(0)), Ok(()));
        assert_eq!(limit.take("a", at(400)), Err(Duration::from_millis(100)));
        assert_eq!(limit.take("a", at(500)), Ok(()));
        assert_eq!(limit.take("a", at(500)), Err(Duration::from_millis(500)));
        // A long rest fills it, and no more than that.
        for _ in 0..3 {
            assert_eq!(limit.take("a", at(60_000)), Ok(()));
        }
        assert!(limit.take("a", at(60_000)).is_err());
    }

    #[test]
    fn newcomers_beyond_the_bound_share_a_bucket() {
        let limit = RateLimit::new(Rate {
            interval: Duration::from_secs(1000),
            burst: 1,
        });
        let now = Instant::now();
        for index in 0..KEYS_MAX {
            assert_eq!(limit.take(&index.to_string(), now), Ok(()));
        }
        // The shared one makes one more.
        assert_eq!(limit.take("x", now), Ok(()));
        assert!(limit.take("y", now).is_err());
        assert!(limit.take("3", now).is_err());
        // Once they are full again the old ones are forgotten.
        let later = now + Duration::from_secs(1001);
        assert_eq!(limit.take("y", later), Ok(()));
        let buckets = limit.full_at.lock().unwrap();
        assert_eq!(buckets.len(), 1);
    }
}
