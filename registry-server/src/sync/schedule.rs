//! Runs of syncs while a server serves: each soon after the start, and then as often as it says.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{Mirror, mirror};
use crate::registry::Registry;

/// The longest that the first run waits: servers that start together do not all ask at once.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(60);

/// How long nothing is looked at where nothing is to be done.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Runs what is due, for as long as the future is polled. `current` is the configuration of the moment.
pub(crate) async fn run(current: impl Fn() -> Arc<Registry>) {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut running = JoinSet::new();
    let mut busy: Vec<String> = Vec::new();
    loop {
        let registry = current();
        let now = Instant::now();
        let syncs = || {
            registry
                .syncs
                .iter()
                .filter_map(|one| Some((one, one.every?)))
        };
        due.retain(|name, _| syncs().any(|(sync, _)| sync.name == *name));
        for (sync, every) in syncs() {
            let first = || now + part(every / 10).min(FIRST_WAIT_MAX);
            let at = due.entry(sync.name.clone()).or_insert_with(first);
            if *at > now {
                continue;
            }
            // A tenth more or less.
            *at = now + every - every / 10 + part(every / 5);
            if !busy.contains(&sync.name) {
                busy.push(sync.name.clone());
                let (registry, sync) = (Arc::clone(&registry), Arc::clone(sync));
                running.spawn(async move { one(&registry, &sync).await });
            }
        }
        let next = due.values().min().copied().unwrap_or(now + IDLE);
        // Whoever is told of another configuration must not hold on to this one.
        let changed = Arc::clone(&registry.observer);
        drop(registry);
        tokio::select! {
            () = tokio::time::sleep_until(next) => {}
            () = changed.syncs_changed.notified() => {}
            Some(ended) = running.join_next() => match ended {
                Ok(name) => busy.retain(|other| *other != name),
                Err(error) => {
                    tracing::error!(%error, "a sync panicked");
                    // Which one is not told: those that still run are kept from running twice by their locks.
                    busy.clear();
                }
            },
        }
    }
}

async fn one(registry: &Arc<Registry>, sync: &Mirror) -> String {
    let tell = |line: &super::SyncLine| tracing::debug!(sync = sync.name, ?line, "mirrored");
    let report = mirror::run(registry, sync, false, &tell).await;
    let super::SyncReport {
        repositories,
        same,
        set,
        deleted,
        blobs,
        bytes,
        ..
    } = report;
    let failures = report.failures.len();
    tracing::info!(
        sync = sync.name,
        repositories,
        same,
        set,
        deleted,
        blobs,
        bytes,
        failures,
        "mirrored"
    );
    sync.name.clone()
}

/// A random part of a time.
fn part(time: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness the middle will do.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    time * u32::from(byte[0]) / 255
}
