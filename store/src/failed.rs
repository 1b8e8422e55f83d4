//! What failed steps left behind, kept for a while so that somebody can look at it.
//!
//! It is a layer like any other, under a lease `failed:<build>:<step>:<layer>` that holds it and the layers below. The lease
//! ends by itself after a while, or before that when newer ones take its room: [`KeepFailed`]. To a collection it is a part of
//! the build cache, as old as its failure.

use std::time::Duration;

use rusqlite::Transaction;

use crate::history::BuildId;
use crate::index::{Lease, LeaseItem};
use crate::layer::{LayerId, LayerInfo};
use crate::{Store, StoreError};

/// How much of what failed steps left is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepFailed {
    /// At most this many steps, the latest; 0 keeps none.
    pub steps: u64,
    /// At most this many bytes of their files together, what lies below not counted.
    pub bytes: u64,
    /// How long.
    pub age: Duration,
}

impl Default for KeepFailed {
    fn default() -> KeepFailed {
        KeepFailed {
            steps: 10,
            bytes: 2 * 1024 * 1024 * 1024,
            age: Duration::from_secs(3 * 24 * 60 * 60),
        }
    }
}

impl KeepFailed {
    fn age_seconds(&self) -> i64 {
        i64::try_from(self.age.as_secs()).unwrap_or(i64::MAX)
    }
}

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
    /// When it failed, in microseconds since 1970, if it is kept as long as `keep` says.
    pub(crate) fn failed(&self, keep: &KeepFailed) -> i64 {
        let failed = self.expires.saturating_sub(keep.age_seconds());
        failed.saturating_mul(1_000_000)
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
    /// One that is larger than all may be is not kept. Tells whether it is.
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
        let keep = self.failed_keep();
        if layer.bytes > keep.bytes || keep.steps == 0 {
            return Ok(false);
        }
        let now = self.clock().now_micros() / 1_000_000;
        let mut items: Vec<LeaseItem> = below.iter().copied().map(LeaseItem::Layer).collect();
        items.push(LeaseItem::Layer(layer.id));
        let new = format!("{PREFIX}{build}:{step}:{}", layer.id);
        self.index().lease_put(&Lease {
            id: new.clone(),
            expires: Some(now.saturating_add(keep.age_seconds())),
            items,
        })?;
        let mut steps = self.failed_steps()?;
        // Times are whole seconds: of several that failed in one, this is the latest.
        steps.sort_by_key(|kept| kept.lease != new);
        let mut bytes = 0;
        for (position, kept) in (0..).zip(steps) {
            bytes += self
                .index()
                .layer(&kept.layer)?
                .map_or(0, |info| info.bytes);
            if position >= keep.steps || bytes > keep.bytes {
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

/// Lets none be kept beyond `latest`, in seconds since 1970: one that would be was kept by a clock that was ahead, or when
/// they were kept for longer.
pub(crate) fn bound_expiry(t: &Transaction<'_>, latest: i64) -> rusqlite::Result<()> {
    t.prepare_cached("UPDATE leases SET expires = ?1 WHERE expires > ?1 AND id GLOB ?2")?
        .execute((latest, format!("{PREFIX}*")))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEPT: KeepFailed = KeepFailed {
        steps: 10,
        bytes: 2 * 1024 * 1024 * 1024,
        age: Duration::from_secs(3 * 24 * 60 * 60),
    };
    use crate::tests::{layer, store};

    fn build(number: usize) -> BuildId {
        format!("{number:08x}").parse().unwrap()
    }

    #[test]
    fn the_latest_are_kept_and_found_again() {
        let (_dir, store) = store();
        let below = layer(&store, 100);
        let mut ids = Vec::new();
        for number in 0..13 {
            let left = layer(&store, u8::try_from(number).unwrap());
            store
                .keep_failed(&build(number), number, &left, &[below.id])
                .unwrap();
            ids.push(left.id);
        }
        let kept = store.failed_steps().unwrap();
        assert_eq!(kept.len(), 10);
        let lease = &store.index().leases().unwrap()[0];
        assert!(lease.items.contains(&LeaseItem::Layer(below.id)));
        let one = &kept[0];
        assert_eq!(one.layer, ids[one.step]);
        store.index().write(|t| forget(t, &one.build)).unwrap();
        assert_eq!(store.failed_steps().unwrap().len(), 9);
    }

    #[test]
    fn large_ones_leave_no_room_for_others() {
        let (_dir, store) = store();
        let small = layer(&store, 1);
        store.keep_failed(&build(1), 0, &small, &[]).unwrap();
        let mut large = layer(&store, 2);
        large.bytes = KEPT.bytes;
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
