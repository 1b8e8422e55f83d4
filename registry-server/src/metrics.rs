//! What is counted, and how Prometheus reads it: `/metrics` in the text format, version 0.0.4.
//!
//! The numbers are plain atomics and the text is written here: there are some twenty of them and no label but those that this
//! page lists, so a library would be longer than what it replaces. No label holds anything that a client chose.
//!
//! | label | values |
//! |---|---|
//! | `route` | [`ROUTES`] |
//! | `method` | [`METHODS`] |
//! | `status` | the status as it was sent |
//!
//! `docs/reference/observing.md` lists the metrics: keep it in step.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use crate::collect::Collected;
use crate::scrub::Scrubbed;

/// What requests are about.
pub(crate) const ROUTES: [&str; 14] = [
    "base",
    "catalog",
    "blob",
    "manifest",
    "tags",
    "referrers",
    "uploads",
    "upload",
    "extensions",
    "search",
    "page",
    "token",
    "observing",
    "other",
];

/// Methods that are told apart.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "other"];

/// Upper bounds of the time to an answer, in seconds.
const BUCKETS: [f64; 12] = [
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0,
];

/// The unit of times in `/proc`: Linux tells it to programs as this, whatever its own clock does.
const TICKS_PER_SECOND: f64 = 100.0;

/// A count that only grows.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, count: u64) {
        self.0.fetch_add(count, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How many there are now.
#[derive(Debug, Default)]
pub(crate) struct Gauge(AtomicI64);

impl Gauge {
    /// One more, until the result is dropped.
    pub(crate) fn one(&self) -> One<'_> {
        self.0.fetch_add(1, Ordering::Relaxed);
        One(self)
    }

    fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Counts in a gauge.
#[derive(Debug)]
pub(crate) struct One<'a>(&'a Gauge);

impl Drop for One<'_> {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Times to answers to one kind of request.
#[derive(Debug, Default)]
struct Times {
    buckets: [Counter; BUCKETS.len()],
    count: Counter,
    micros: Counter,
}

/// What a registry counts, whatever its configuration is just now.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    /// By route, method and status.
    requests: Mutex<BTreeMap<(usize, usize, u16), u64>>,
    times: [Times; ROUTES.len()],
    pub(crate) in_flight: Gauge,
    pub(crate) connections: Gauge,
    /// Of bodies, as far as they went.
    pub(crate) sent_bytes: Counter,
    /// Of blobs and manifests that were pushed.
    pub(crate) received_bytes: Counter,
    pub(crate) cache: CacheCounts,
    collections: Mutex<Collections>,
    scrubs: Scrubs,
}

/// What scrubbing came to.
#[derive(Debug, Default)]
struct Scrubs {
    passes: Counter,
    blobs: Counter,
    bytes: Counter,
    damaged: Counter,
}

/// What requests for names of other registries came to.
#[derive(Debug, Default)]
pub(crate) struct CacheCounts {
    /// It was here.
    pub(crate) hits: Counter,
    /// It had to be asked for.
    pub(crate) misses: Counter,
    /// The upstream gave nothing, and what was here was given.
    pub(crate) stale: Counter,
    /// The upstream gave nothing, and there was nothing to give.
    pub(crate) failures: Counter,
}

#[derive(Debug, Default)]
struct Collections {
    runs: u64,
    failed: u64,
    removed: u64,
    freed_bytes: u64,
    seconds: f64,
    ended: f64,
}

/// Numbers that are looked up when they are asked for.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Looked {
    /// Uploads that a request writes to.
    pub(crate) uploads: usize,
    /// Bytes of the storage's disk, and those that are free, where there is one.
    pub(crate) disk: Option<(u64, u64)>,
}

impl Metrics {
    /// An answer was begun.
    pub(crate) fn answered(&self, route: &'static str, method: &str, status: u16, time: Duration) {
        let place = |names: &[&str], name: &str| {
            let found = names.iter().position(|known| *known == name);
            found.unwrap_or(names.len() - 1)
        };
        let (route, method) = (place(&ROUTES, route), place(&METHODS, method));
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        *requests.entry((route, method, status)).or_default() += 1;
        drop(requests);
        let times = &self.times[route];
        times.count.add(1);
        times
            .micros
            .add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX));
        let seconds = time.as_secs_f64();
        if let Some(bucket) = BUCKETS.iter().position(|bound| seconds <= *bound) {
            times.buckets[bucket].add(1);
        }
    }

    /// A collection of garbage ended.
    pub(crate) fn collected(&self, done: Option<&Collected>, time: Duration) {
        let all = self.collections.lock();
        let mut all = all.unwrap_or_else(PoisonError::into_inner);
        all.runs += 1;
        all.seconds = time.as_secs_f64();
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        all.ended = now.map_or(0.0, |now| now.as_secs_f64());
        match done {
            None => all.failed += 1,
            Some(done) => {
                all.removed += done.manifests + done.links + done.blobs;
                all.freed_bytes += done.bytes;
            }
        }
    }

    /// Counts a pass of scrubbing, or a part of one.
    pub(crate) fn scrubbed(&self, found: &Scrubbed) {
        let scrubs = &self.scrubs;
        scrubs.passes.add(u64::from(found.whole));
        scrubs.blobs.add(found.blobs);
        scrubs.bytes.add(found.bytes);
        scrubs.damaged.add(found.damaged.len() as u64);
    }

    /// All of them, as Prometheus reads them.
    pub(crate) fn text(&self, looked: Looked) -> String {
        let mut text = Text(String::new());
        self.write_requests(&mut text);
        let mut single = |name: &str, kind: &str, help: &str, value: &dyn std::fmt::Display| {
            text.head(name, kind, help);
            text.line(name, "", value);
        };
        let (counter, gauge) = ("counter", "gauge");
        single(
            "requests_in_flight",
            gauge,
            "requests that wait for their answer to begin",
            &self.in_flight.get(),
        );
        single(
            "connections",
            gauge,
            "open connections",
            &self.connections.get(),
        );
        single(
            "sent_bytes_total",
            counter,
            "bytes of bodies that were sent",
            &self.sent_bytes.get(),
        );
        single(
            "received_bytes_total",
            counter,
            "bytes of blobs and manifests that were pushed",
            &self.received_bytes.get(),
        );
        single(
            "uploads_in_progress",
            gauge,
            "uploads that a request writes to",
            &looked.uploads,
        );
        if let Some((total, free)) = looked.disk {
            single("disk_bytes", gauge, "size of the storage's disk", &total);
            single("disk_free_bytes", gauge, "what is free there", &free);
        }
        let scrubs = &self.scrubs;
        for (name, help, count) in [
            (
                "scrub_passes_total",
                "times that everything was hashed again",
                &scrubs.passes,
            ),
            (
                "scrub_blobs_total",
                "blobs and manifests that were hashed again",
                &scrubs.blobs,
            ),
            ("scrub_bytes_total", "bytes of them", &scrubs.bytes),
            (
                "scrub_damaged_total",
                "of them found damaged",
                &scrubs.damaged,
            ),
        ] {
            single(name, counter, help, &count.get());
        }
        let all = self.collections.lock();
        let all = all.unwrap_or_else(PoisonError::into_inner);
        single("gc_runs_total", counter, "collections", &all.runs);
        single(
            "gc_failures_total",
            counter,
            "collections that failed",
            &all.failed,
        );
        single(
            "gc_removed_total",
            counter,
            "manifests, links and blobs that were collected",
            &all.removed,
        );
        single(
            "gc_freed_bytes_total",
            counter,
            "bytes that were collected",
            &all.freed_bytes,
        );
        if all.runs > 0 {
            single(
                "gc_last_seconds",
                gauge,
                "how long the last collection took",
                &all.seconds,
            );
            single(
                "gc_last_end_timestamp_seconds",
                gauge,
                "when the last collection ended",
                &all.ended,
            );
        }
        drop(all);
        let name = "cache_requests_total";
        text.head(
            name,
            counter,
            "requests for names of other registries, by what they came to",
        );
        for (result, count) in [
            ("hit", &self.cache.hits),
            ("miss", &self.cache.misses),
            ("stale", &self.cache.stale),
            ("failure", &self.cache.failures),
        ] {
            text.line(name, &format!("{{result=\"{result}\"}}"), &count.get());
        }
        text.0.push_str(&process());
        text.0
    }

    fn write_requests(&self, text: &mut Text) {
        let name = "requests_total";
        text.head(name, "counter", "answers that were begun");
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        for ((route, method, status), count) in requests.iter() {
            let (route, method) = (ROUTES[*route], METHODS[*method]);
            let labels = format!("{{route=\"{route}\",method=\"{method}\",status=\"{status}\"}}");
            text.line(name, &labels, count);
        }
        drop(requests);
        let name = "request_duration_seconds";
        text.head(name, "histogram", "time until an answer begins");
        for (route, times) in ROUTES.iter().zip(&self.times) {
            let count = times.count.get();
            if count == 0 {
                continue;
            }
            let mut below = 0;
            for (bound, bucket) in BUCKETS.iter().zip(&times.buckets) {
                below += bucket.get();
                let labels = format!("{{route=\"{route}\",le=\"{bound}\"}}");
                text.line("request_duration_seconds_bucket", &labels, &below);
            }
            // One that was counted between the two reads must not make a bucket larger than all.
            let count = count.max(below);
            let labels = format!("{{route=\"{route}\",le=\"+Inf\"}}");
            text.line("request_duration_seconds_bucket", &labels, &count);
            let labels = format!("{{route=\"{route}\"}}");
            let seconds = Duration::from_micros(times.micros.get()).as_secs_f64();
            text.line("request_duration_seconds_sum", &labels, &seconds);
            text.line("request_duration_seconds_count", &labels, &count);
        }
    }
}

/// The text while it is written; names get the registry's prefix.
#[derive(Default)]
pub(crate) struct Text(String);

impl Text {
    pub(crate) fn into_string(self) -> String {
        self.0
    }

    pub(crate) fn head(&mut self, name: &str, kind: &str, help: &str) {
        self.0.push_str(&format!(
            "# HELP longshore_registry_{name} {help}\n# TYPE longshore_registry_{name} {kind}\n"
        ));
    }

    pub(crate) fn line(&mut self, name: &str, labels: &str, value: &dyn std::fmt::Display) {
        // Writing to a text cannot fail.
        let _ = writeln!(self.0, "longshore_registry_{name}{labels} {value}");
    }
}

/// What Prometheus' own clients tell of a process, where the system tells it.
fn process() -> String {
    let mut text = String::new();
    let mut tell = |name: &str, kind: &str, help: &str, value: f64| {
        text.push_str(&format!(
            "# HELP process_{name} {help}\n# TYPE process_{name} {kind}\nprocess_{name} {value}\n"
        ));
    };
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The program's name is in brackets, and may hold anything.
    let fields: Vec<&str> = stat
        .rsplit_once(") ")
        .map(|(_, rest)| rest.split(' ').collect())
        .unwrap_or_default();
    let field = |index: usize| fields.get(index)?.parse::<f64>().ok();
    if let (Some(user), Some(system)) = (field(11), field(12)) {
        tell(
            "cpu_seconds_total",
            "counter",
            "processor time, of user and system",
            (user + system) / TICKS_PER_SECOND,
        );
    }
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let resident = resident.and_then(|text| text.trim().strip_suffix(" kB"));
    if let Some(kib) = resident.and_then(|text| text.trim().parse::<f64>().ok()) {
        tell(
            "resident_memory_bytes",
            "gauge",
            "memory in use",
            kib * 1024.0,
        );
    }
    if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
        // Reading the folder takes one.
        let count = u32::try_from(open.count().saturating_sub(1)).unwrap_or(u32::MAX);
        tell("open_fds", "gauge", "open files", f64::from(count));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_written_as_prometheus_reads_them() {
        let metrics = Metrics::default();
        metrics.answered("blob", "GET", 200, Duration::from_micros(1500));
        metrics.answered("blob", "GET", 200, Duration::from_secs(90));
        metrics.answered("blob", "BREW", 405, Duration::ZERO);
        metrics.sent_bytes.add(7);
        let open = metrics.connections.one();
        let collected = Collected {
            blobs: 2,
            links: 1,
            bytes: 9,
            ..Collected::default()
        };
        metrics.collected(Some(&collected), Duration::from_millis(250));
        metrics.collected(None, Duration::ZERO);
        let looked = Looked {
            uploads: 3,
            disk: Some((10, 4)),
        };
        let text = metrics.text(looked);
        for line in [
            "longshore_registry_requests_total{route=\"blob\",method=\"GET\",status=\"200\"} 2",
            "longshore_registry_requests_total{route=\"blob\",method=\"other\",status=\"405\"} 1",
            "longshore_registry_request_duration_seconds_bucket{route=\"blob\",le=\"0.001\"} 1",
            "longshore_registry_request_duration_seconds_bucket{route=\"blob\",le=\"0.0025\"} 2",
            "longshore_registry_request_duration_seconds_bucket{route=\"blob\",le=\"30\"} 2",
            "longshore_registry_request_duration_seconds_bucket{route=\"blob\",le=\"+Inf\"} 3",
            "longshore_registry_request_duration_seconds_sum{route=\"blob\"} 90.0015",
            "longshore_registry_request_duration_seconds_count{route=\"blob\"} 3",
            "longshore_registry_sent_bytes_total 7",
            "longshore_registry_connections 1",
            "longshore_registry_uploads_in_progress 3",
            "longshore_registry_disk_free_bytes 4",
            "longshore_registry_gc_runs_total 2",
            "longshore_registry_gc_failures_total 1",
            "longshore_registry_gc_removed_total 3",
            "longshore_registry_gc_freed_bytes_total 9",
            "longshore_registry_cache_requests_total{result=\"hit\"} 0",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}\n{text}");
        }
        for name in ["cpu_seconds_total", "resident_memory_bytes", "open_fds"] {
            assert!(text.contains(&format!("\nprocess_{name} ")), "{text}");
        }
        drop(open);
        assert_eq!(metrics.connections.get(), 0);
        // Each name is told about once.
        let mut names: Vec<&str> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let all = names.len();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all);
    }
}
