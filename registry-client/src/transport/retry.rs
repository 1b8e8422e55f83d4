//! When a request is sent again: backoff with jitter, the server's own wish, and a clock that tests replace.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::time::{Duration, SystemTime};

use reqwest::StatusCode;
use ring::rand::{SecureRandom as _, SystemRandom};

/// How often and how patiently requests are sent again.
#[derive(Clone, Debug)]
pub struct RetryPolicy {
    /// Most times that one request is sent; 1 sends nothing again.
    pub attempts: u32,
    /// Wait before the second attempt; it doubles from there.
    pub base: Duration,
    /// Longest wait of our own choice.
    pub max: Duration,
    /// Longest wait that a server's `Retry-After` is granted; where it asks for more, its answer is the result.
    pub patience: Duration,
}

impl Default for RetryPolicy {
    fn default() -> RetryPolicy {
        RetryPolicy {
            attempts: 5,
            base: Duration::from_millis(250),
            max: Duration::from_secs(10),
            patience: Duration::from_secs(120),
        }
    }
}

impl RetryPolicy {
    /// The wait after `attempt` attempts (from 1), or `None` where there shall be no other. `random` is in 0..=255.
    pub(crate) fn wait(
        &self,
        attempt: u32,
        asked: Option<Duration>,
        random: u8,
    ) -> Option<Duration> {
        if attempt >= self.attempts {
            return None;
        }
        if let Some(asked) = asked {
            return (asked <= self.patience).then_some(asked);
        }
        let factor = 2u32.saturating_pow(attempt - 1);
        let full = self.base.saturating_mul(factor).min(self.max);
        // Half fixed, half random: clients that failed together do not come back together.
        Some(full / 2 + (full / 2) * u32::from(random) / 255)
    }
}

/// Statuses that may change when the same request is sent again.
pub(crate) fn is_transient(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504 | 522)
}

/// The time, and the passing of it.
pub trait Clock: Send + Sync + fmt::Debug {
    /// The time of day, for the lives of tokens and for dates in headers.
    fn now(&self) -> SystemTime;

    /// Waits.
    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>>;

    /// A random byte for jitter.
    fn random(&self) -> u8;
}

/// The system's clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) -> Pin<Box<dyn Future<Output = ()> + Send>> {
        Box::pin(tokio::time::sleep(time))
    }

    fn random(&self) -> u8 {
        let mut byte = [128];
        // Without randomness the middle will do.
        let _ = SystemRandom::new().fill(&mut byte);
        byte[0]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits() {
        let policy = RetryPolicy {
            attempts: 4,
            base: Duration::from_millis(100),
            max: Duration::from_millis(300),
            patience: Duration::from_secs(60),
        };
        let check = |attempt, asked: Option<u64>, random, expect: Option<u64>| {
            let wait = policy.wait(attempt, asked.map(Duration::from_secs), random);
            assert_eq!(wait, expect.map(Duration::from_millis));
        };
        check(1, None, 0, Some(50));
        check(1, None, 255, Some(100));
        check(2, None, 255, Some(200));
        check(3, None, 255, Some(300));
        check(4, None, 255, None);
        check(1, Some(30), 0, Some(30_000));
        check(1, Some(61), 0, None);
        check(4, Some(1), 0, None);
    }
}
