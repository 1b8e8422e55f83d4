//! When manifests were pulled, for rules that keep what is pulled: noted to the hour, so that most pulls write nothing.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use store::oci::Digest;

use crate::routes::RepositoryName;

/// A pull that comes sooner after the last one that was noted is not noted.
const EVERY: Duration = Duration::from_secs(60 * 60);

/// Manifests that are remembered; beyond, some are noted more often.
const REMEMBERED_MAX: usize = 50_000;

/// What this server noted last.
#[derive(Debug, Default)]
pub(crate) struct Pulls(Mutex<BTreeMap<(RepositoryName, Digest), Instant>>);

impl Pulls {
    /// Whether a pull at `now` has to be noted; it counts as noted then.
    pub(crate) fn note(&self, name: &RepositoryName, digest: &Digest, now: Instant) -> bool {
        let mut noted = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (name.clone(), *digest);
        let is_recent = |then: &Instant| now.saturating_duration_since(*then) < EVERY;
        if noted.get(&key).is_some_and(is_recent) {
            return false;
        }
        if noted.len() >= REMEMBERED_MAX {
            noted.retain(|_, then| is_recent(then));
        }
        if noted.len() >= REMEMBERED_MAX {
            noted.clear();
        }
        noted.insert(key, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pull_is_noted_once_an_hour() {
        let (pulls, began) = (Pulls::default(), Instant::now());
        let check = |name: &str, of: &[u8], minutes: u64, expected: bool| {
            let name = RepositoryName::parse(name).unwrap();
            let now = began + Duration::from_secs(minutes * 60);
            assert_eq!(pulls.note(&name, &Digest::of(of), now), expected);
        };
        check("a", b"1", 0, true);
        check("a", b"1", 59, false);
        check("b", b"1", 59, true);
        check("a", b"2", 59, true);
        check("a", b"1", 60, true);
        check("a", b"1", 61, false);
    }
}
