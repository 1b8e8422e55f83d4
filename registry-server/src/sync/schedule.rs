//! Runs of syncs while a server serves: each soon after the start, and then as often as it says. Where several servers share a
//! bucket, what another has run is not due here.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::Instant;

use super::lease::Due;
use super::mirror::Skipped;
use super::{Mirror, mirror};
use crate::registry::Registry;

/// The longest that the first run waits: servers that start together do not all ask at once.
const FIRST_WAIT_MAX: Duration = Duration::from_secs(60);

/// The longest until it is looked again whether another server is still at it.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// How long nothing is looked at where nothing is to be done.
const IDLE: Duration = Duration::from_secs(60 * 60);

/// Runs what is due, for as long as the future is polled. `current` is the configuration of the moment.
pub(crate) async fn run(current: impl Fn() -> Arc<Registry>) {
    let mut due: BTreeMap<String, Instant> = BTreeMap::new();
    let mut running = JoinSet::new();
    let mut busy: Vec<String> = Vec::new();
    // The last run of each, as far as this server knows of those that others see.
    let mut seen: BTreeMap<String, i64> = BTreeMap::new();
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
                let seen = seen.get(&sync.name).copied();
                running.spawn(async move { one(&registry, &sync, Due { every, seen }).await });
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
                Ok(ended) => {
                    busy.retain(|other| *other != ended.name);
                    if let Some(wait) = ended.again {
                        due.insert(ended.name.clone(), Instant::now() + wait);
                    }
                    seen.extend(ended.seen.map(|run| (ended.name, run)));
                }
                Err(error) => {
                    tracing::error!(%error, "a sync panicked");
                    // Which one is not told: those that still run are kept from running twice by their locks.
                    busy.clear();
                }
            },
        }
    }
}

/// What came of a run.
struct Ended {
    name: String,
    /// When to try again, if not as often as it says.
    again: Option<Duration>,
    /// When the last run began that others see, too.
    seen: Option<i64>,
}

async fn one(registry: &Arc<Registry>, sync: &Mirror, due: Due) -> Ended {
    let mut ended = Ended {
        name: sync.name.clone(),
        again: None,
        seen: None,
    };
    let tell = |line: &super::SyncLine| tracing::debug!(sync = sync.name, ?line, "mirrored");
    let report = match mirror::run_if_due(registry, sync, due, &tell).await {
        Ok((report, began)) => {
            ended.seen = began;
            report
        }
        Err(Skipped::Others) => {
            tracing::debug!(sync = sync.name, "another server runs it");
            ended.again = Some(due.every.min(LOOK_AGAIN));
            return ended;
        }
        Err(Skipped::NotDue(wait, run)) => {
            tracing::debug!(sync = sync.name, ?wait, "another server has run it");
            (ended.again, ended.seen) = (Some(wait + part(due.every / 10)), Some(run));
            return ended;
        }
    };
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
    ended
}

/// A random part of a time.
pub(super) fn part(time: Duration) -> Duration {
    let mut byte = [128];
    // Without randomness the middle will do.
    let _ = ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut byte);
    time * u32::from(byte[0]) / 255
}
