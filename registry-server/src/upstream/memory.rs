//! What was found out about names, for a while and within bounds.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// A bounded map whose entries grow old.
#[derive(Debug)]
pub(super) struct Memory<K, V> {
    entries: Mutex<BTreeMap<K, (Instant, V)>>,
    entries_max: usize,
}

impl<K: Ord + Clone, V: Clone> Memory<K, V> {
    pub(super) fn new(entries_max: usize) -> Memory<K, V> {
        Memory {
            entries: Mutex::default(),
            entries_max,
        }
    }

    /// Remembers something as of now. Where there is no room, the older half goes.
    pub(super) fn put(&self, key: K, value: V) {
        let mut entries = self.entries();
        if entries.len() >= self.entries_max && !entries.contains_key(&key) {
            let mut times: Vec<Instant> = entries.values().map(|(at, _)| *at).collect();
            let middle = times.len() / 2;
            let (_, median, _) = times.select_nth_unstable(middle);
            let median = *median;
            entries.retain(|_, (at, _)| *at > median);
        }
        entries.insert(key, (Instant::now(), value));
    }

    /// What is remembered, if it is younger than `age`.
    pub(super) fn younger(&self, key: &K, age: Duration) -> Option<V> {
        let (elapsed, value) = self.any(key)?;
        (elapsed < age).then_some(value)
    }

    /// What is remembered, and for how long.
    pub(super) fn any(&self, key: &K) -> Option<(Duration, V)> {
        let entries = self.entries();
        let (at, value) = entries.get(key)?;
        Some((at.elapsed(), value.clone()))
    }

    pub(super) fn forget(&self, key: &K) {
        self.entries().remove(key);
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<K, (Instant, V)>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn remembers_for_a_while_and_not_too_much() {
        let memory = Memory::new(4);
        memory.put(1, 'a');
        assert_eq!(memory.younger(&1, LONG), Some('a'));
        assert_eq!(memory.younger(&1, Duration::ZERO), None);
        assert_eq!(memory.any(&1).map(|(_, value)| value), Some('a'));
        for key in 2..100 {
            memory.put(key, 'b');
            assert_eq!(memory.younger(&key, LONG), Some('b'));
            assert!(memory.entries().len() <= 4);
        }
        memory.forget(&99);
        assert_eq!(memory.any(&99), None);
    }
}
