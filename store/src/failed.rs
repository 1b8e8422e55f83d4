//! What failed steps left behind, kept for a while so that somebody can look at it.
//!
//! It is a layer like any other, under a lease `failed:<build>:<step>:<layer>` that holds it and the layers below. The lease
//! ends by itself after [`FAILED_AGE`], or before that when newer ones take its room: [`FAILED_MAX`] and [`FAILED_BYTES_MAX`]. To
//! a collection it is a part of the build cache, as old as its failure.

use std::time::Duration;

use rusqlite::Transaction;

use crate::history::BuildId;
use crate::index::{Lease, LeaseItem, now_micros};
use crate::layer::{LayerId, LayerInfo};
use crate::{Store, StoreError};

/// Most failed steps that are kept, the latest.
pub const FAILED_MAX: usize = 10;

/// Most bytes that their files take together, what lies below not counted.
pub const FAILED_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// How long one is kept.
pub const FAILED_AGE: Duration = Duration::from_secs(3 * 24 * 60 * 60);

const PREFIX: &str = "failed:";

/// A failed step that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FailedStep {
    /// Its build.
    pub build: BuildId,
    /// Its number in the build, from 0.
    pub step: usize,
    /// What it wrote until it failed.
    pub layer: LayerId,
    /// When it is forgotten, in seconds since 1970.
    pub expires: i64,
    pub(crate) lease: String,
}

impl FailedStep {
    /// When it failed, in microseconds since 1970.
    pub(crate) fn failed(&self) -> i64 {
        let age = i64::try_from(FAILED_AGE.as_micros()).unwrap_or(i64::MAX);
        self.expires.saturating_mul(1_000_000).saturating_sub(age)
    }

    fn of(lease: &Lease) -> Option<FailedStep> {
        let mut parts = lease.id.strip_prefix(PREFIX)?.splitn(3, ':');
        Some(FailedStep {
            build: parts.next()?.parse().ok()?,
            step: parts.next()?.parse().ok()?,
            layer: parts.next()?.parse().ok()?,
            expires: lease.expires?,
            lease: lease.id.clone(),
        })
    }
}

impl Store {
    /// Keeps what a failed step left, `below` being the layers it stood on, oldest first; older ones go where there is no room.
    /// One that is larger than [`FAILED_BYTES_MAX`] is not kept. Tells whether it is.
    ///
    /// # Errors
    /// The index cannot be written.
    pub fn keep_failed(
        &self,
        build: &BuildId,
        step: usize,
        layer: &LayerInfo,
        below: &[LayerId],
    ) -> Result<bool, StoreError> {
        if layer.bytes > FAILED_BYTES_MAX {
            return Ok(false);
        }
        let age = i64::try_from(FAILED_AGE.as_secs()).unwrap_or(i64::MAX);
        let mut items: Vec<LeaseItem> = below.iter().copied().map(LeaseItem::Layer).collect();
        items.push(LeaseItem::Layer(layer.id));
        let new = format!("{PREFIX}{build}:{step}:{}", layer.id);
        self.index().lease_put(&Lease {
            id: new.clone(),
            expires: Some(now_micros() / 1_000_000 + age),
            items,
        })?;
        let mut steps = self.failed_steps()?;
        // Times are whole seconds: of several that failed in one, this is the latest.
        steps.sort_by_key(|kept| kept.lease != new);
        let mut bytes = 0;
        for (position, kept) in steps.into_iter().enumerate() {
            bytes += self
                .index()
                .layer(&kept.layer)?
                .map_or(0, |info| info.bytes);
            if position >= FAILED_MAX || bytes > FAILED_BYTES_MAX {
                self.index().lease_remove(&kept.lease)?;
            }
        }
        Ok(true)
    }

    /// The failed steps that are kept, latest first.
    ///
    /// # Errors
    /// The index cannot be read.
    pub fn failed_steps(&self) -> Result<Vec<FailedStep>, StoreError> {
        let leases = self.index().leases()?;
        let mut steps: Vec<FailedStep> = leases.iter().filter_map(FailedStep::of).collect();
        steps.sort_by(|a, b| (b.expires, &a.lease).cmp(&(a.expires, &b.lease)));
        Ok(steps)
    }
}

/// Forgets what failed steps of a build left.
pub(crate) fn forget(t: &Transaction<'_>, build: &BuildId) -> rusqlite::Result<()> {
    // The digits of an id mean nothing to GLOB.
    t.prepare_cached("DELETE FROM leases WHERE id GLOB ?1")?
        .execute([format!("{PREFIX}{build}:*")])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tests::{layer, store};

    fn build(number: usize) -> BuildId {
        format!("{number:08x}").parse().unwrap()
    }

    #[test]
    fn the_latest_are_kept_and_found_again() {
        let (_dir, store) = store();
        let below = layer(&store, 100);
        let mut ids = Vec::new();
        for number in 0..FAILED_MAX + 3 {
            let left = layer(&store, u8::try_from(number).unwrap());
            store
                .keep_failed(&build(number), number, &left, &[below.id])
                .unwrap();
            ids.push(left.id);
        }
        let kept = store.failed_steps().unwrap();
        assert_eq!(kept.len(), FAILED_MAX);
        let lease = &store.index().leases().unwrap()[0];
        assert!(lease.items.contains(&LeaseItem::Layer(below.id)));
        let one = &kept[0];
        assert_eq!(one.layer, ids[one.step]);
        store.index().write(|t| forget(t, &one.build)).unwrap();
        assert_eq!(store.failed_steps().unwrap().len(), FAILED_MAX - 1);
    }

    #[test]
    fn large_ones_leave_no_room_for_others() {
        let (_dir, store) = store();
        let small = layer(&store, 1);
        store.keep_failed(&build(1), 0, &small, &[]).unwrap();
        let mut large = layer(&store, 2);
        large.bytes = FAILED_BYTES_MAX;
        store.index().put_layer(&large).unwrap();
        store.keep_failed(&build(2), 0, &large, &[]).unwrap();
        let kept = store.failed_steps().unwrap();
        assert_eq!(kept.len(), 1);
        assert_eq!(kept[0].layer, large.id);
        large.id = LayerId::Built([3; 32]);
        large.bytes += 1;
        assert!(!store.keep_failed(&build(3), 0, &large, &[]).unwrap());
        assert_eq!(store.failed_steps().unwrap(), kept);
    }

    #[test]
    fn other_leases_are_none_of_ours() {
        let (_dir, store) = store();
        let lease = |id: &str| Lease {
            id: id.to_owned(),
            expires: Some(i64::MAX),
            items: Vec::new(),
        };
        for id in [
            "container:1",
            "failed:",
            "failed:0000000a:x:y",
            "failed:zz:1:b3-00",
        ] {
            store.index().lease_put(&lease(id)).unwrap();
        }
        assert!(store.failed_steps().unwrap().is_empty());
    }
}
