//! Repositories of other registries, kept here as they are there: all that is chosen, again and again.
//!
//! ```text
//! Upstream (an HTTP client, not ours) ─ choose ─► tags ─ mirror ─► blobs, manifests, tags ─► storage, events, audit, quotas
//! ```
//!
//! | file | part |
//! |---|---|
//! | this | [`Mirror`], and what came of one run: [`SyncReport`] |
//! | [`choose`] | which repositories and tags; pure |
//! | [`pattern`] | what names look like; pure |
//! | `sync/mirror` | one run |
//! | `sync/blobs` | one blob, fetched, verified and kept |
//! | `sync/schedule` | runs while a server serves |
//! | `sync/lease` | of several servers on a bucket, one runs it |
//!
//! A run writes by the server's own rules: immutable tags stay, quotas and the size of blobs hold, and each change is told
//! as a client's would be. Names appear after what they refer to, so a run may die anywhere; the next one goes on.
//! `docs/reference/sync.md` is the users' page.

mod blobs;
pub mod choose;
mod lease;
mod mirror;
pub mod pattern;
pub(crate) mod schedule;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use store::oci::Platform;

use self::choose::Choice;
use crate::metrics::Text;
use crate::rate::Rate;
use crate::routes::RepositoryName;
use crate::serve::{Config, ServeError, prepare};
use crate::storage::RegistryStorage;
use crate::upstream::Upstream;

/// What is mirrored from where.
#[derive(Clone, Debug)]
pub struct Mirror {
    /// What it is called in logs and metrics: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// Where from. Repositories are named as it names them.
    pub source: Arc<dyn Upstream>,
    /// What goes before the repositories' names here.
    pub prefix: Option<RepositoryName>,
    /// Which repositories and tags.
    pub choice: Choice,
    /// Of indexes, only the entries for these; empty for all.
    pub platforms: Vec<Platform>,
    /// Whether what refers to manifests comes with them.
    pub referrers: bool,
    /// Whether tags go here that are not there any more.
    pub delete: bool,
    /// How often; `None` is only by hand.
    pub every: Option<Duration>,
    /// Blobs that are fetched at once.
    pub transfers_max: usize,
    /// Questions to the source; without, as fast as it answers.
    pub rate: Option<Rate>,
}

impl Mirror {
    /// Everything that `choice` names, with what refers to it, by hand.
    pub fn new(name: impl Into<String>, source: Arc<dyn Upstream>, choice: Choice) -> Mirror {
        Mirror {
            name: name.into(),
            source,
            prefix: None,
            choice,
            platforms: Vec::new(),
            referrers: true,
            delete: false,
            every: None,
            transfers_max: 4,
            rate: None,
        }
    }
}

/// What a run did with a tag, or would.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SyncStep {
    /// It was not here.
    New,
    /// It was on something else.
    Changed,
    /// It was as it is there.
    Same,
    /// It was not there any more.
    Deleted,
}

/// One tag of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyncLine {
    /// The repository here.
    pub repository: String,
    /// The tag.
    pub tag: String,
    /// What was done.
    pub step: SyncStep,
    /// What it is on, as far as that is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub digest: Option<String>,
}

/// What could not be done.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct SyncFailure {
    /// The repository, as the source names it; `None` if not even those are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub repository: Option<String>,
    /// The tag; `None` if it is about the whole repository.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// Why.
    pub reason: String,
}

/// What came of a run.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct SyncReport {
    /// Repositories that were looked at.
    pub repositories: u64,
    /// Tags that were as they are there.
    pub same: u64,
    /// Tags that were set.
    pub set: u64,
    /// Tags that were removed.
    pub deleted: u64,
    /// Manifests that were put.
    pub manifests: u64,
    /// Blobs that were fetched.
    pub blobs: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that another repository here had.
    pub mounted: u64,
    /// What could not be done.
    pub failures: Vec<SyncFailure>,
}

/// Told of each tag when it is done with.
pub type TellLine<'a> = &'a (dyn Fn(&SyncLine) + Send + Sync);

/// Runs the syncs of a configuration once, one after the other, without serving; `wanted` are names, none for all. With
/// `dry_run` nothing is written.
///
/// # Errors
/// The configuration cannot be used. What a source does not give is in the reports.
pub async fn once(
    config: Config,
    storage: Arc<dyn RegistryStorage>,
    wanted: &[String],
    dry_run: bool,
    tell: TellLine<'_>,
) -> Result<Vec<(String, SyncReport)>, ServeError> {
    let syncs = config.syncs.clone();
    let patience = config.limits.drain_timeout;
    let registry = prepare(config, storage).await?;
    registry.events.start();
    let mut reports = Vec::new();
    for sync in &syncs {
        if wanted.is_empty() || wanted.contains(&sync.name) {
            let report = mirror::run(&registry, sync, dry_run, tell).await;
            reports.push((sync.name.clone(), report));
        }
    }
    registry.events.finish(patience).await;
    Ok(reports)
}

/// What runs came to, by the names of their syncs.
#[derive(Debug, Default)]
pub(crate) struct SyncTotals(Mutex<BTreeMap<String, Totals>>);

#[derive(Debug, Default)]
struct Totals {
    good_runs: u64,
    failed_runs: u64,
    tags: [u64; 4],
    blobs: u64,
    bytes: u64,
    seconds: f64,
    ended: f64,
}

impl SyncTotals {
    /// A run is over.
    pub(crate) fn ran(&self, name: &str, report: &SyncReport, time: Duration) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let totals = all.entry(name.to_owned()).or_default();
        match report.failures.is_empty() {
            true => totals.good_runs += 1,
            false => totals.failed_runs += 1,
        }
        let failed = report.failures.len() as u64;
        let counts = [report.same, report.set, report.deleted, failed];
        for (total, count) in totals.tags.iter_mut().zip(counts) {
            *total += count;
        }
        totals.blobs += report.blobs;
        totals.bytes += report.bytes;
        totals.seconds = time.as_secs_f64();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        totals.ended = now.map_or(0.0, |now| now.as_secs_f64());
    }

    /// As Prometheus reads them.
    pub(crate) fn write_metrics(&self, text: &mut Text) {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if all.is_empty() {
            return;
        }
        type Row<'a> = (
            &'a str,
            &'a str,
            &'a str,
            fn(&Totals) -> Vec<(&'static str, f64)>,
        );
        #[expect(clippy::cast_precision_loss, reason = "numbers there are floats")]
        let rows: [Row<'_>; 6] = [
            (
                "sync_runs_total",
                "counter",
                "runs of a sync, by whether all of it was done",
                |t| vec![("ok", t.good_runs as f64), ("failed", t.failed_runs as f64)],
            ),
            (
                "sync_tags_total",
                "counter",
                "tags, by what was done with them",
                |t| {
                    let names = ["same", "set", "deleted", "failed"];
                    names
                        .into_iter()
                        .zip(t.tags.map(|count| count as f64))
                        .collect()
                },
            ),
            (
                "sync_blobs_total",
                "counter",
                "blobs that were fetched",
                |t| vec![("", t.blobs as f64)],
            ),
            ("sync_bytes_total", "counter", "their bytes", |t| {
                vec![("", t.bytes as f64)]
            }),
            (
                "sync_last_seconds",
                "gauge",
                "how long the last run took",
                |t| vec![("", t.seconds)],
            ),
            (
                "sync_last_end_timestamp_seconds",
                "gauge",
                "when it ended",
                |t| vec![("", t.ended)],
            ),
        ];
        for (name, kind, help, values) in rows {
            text.head(name, kind, help);
            for (sync, totals) in all.iter() {
                for (result, value) in values(totals) {
                    let result = match result {
                        "" => String::new(),
                        result => format!(",result=\"{result}\""),
                    };
                    text.line(name, &format!("{{sync=\"{sync}\"{result}}}"), &value);
                }
            }
        }
    }
}
