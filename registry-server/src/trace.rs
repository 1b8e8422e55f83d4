//! Traces: what a request took, as spans of OpenTelemetry, sent to a collector.
//!
//! ```text
//! traceparent ─► Context (of this task) ─► spans: the request, its storage calls, its questions to upstreams ─► bounded queue
//!   ─► batches ─► SendEvent (an HTTP client, not ours)
//! ```
//!
//! | file | part |
//! |---|---|
//! | this | [`TraceConfig`]; contexts and spans |
//! | `trace/export` | batches on their way to the collector |
//! | `trace/otlp` | a batch as OTLP in JSON; pure |
//!
//! Nothing waits for a collector: spans that do not fit are left out and counted. `docs/reference/observing.md` is the users' page.

mod export;
mod otlp;

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures_util::future::Either;
use http::HeaderMap;
use tokio::sync::mpsc;

use self::export::{Export, Job};
use crate::events::SendEvent;
use crate::metrics::{Counter, Text};

/// Spans that wait to be sent; more are left out.
const WAITING_MAX: usize = 8192;

/// Longest `tracestate` that is passed on, in bytes (W3C Trace Context has 512 as the least).
const STATE_BYTES_MAX: usize = 512;

/// Where traces go, and how many there are.
#[derive(Clone, Debug)]
pub struct TraceConfig {
    /// What sends OTLP.
    pub exporter: Arc<dyn SendEvent>,
    /// What this registry is called, as `service.name`.
    pub service: String,
    /// Further attributes of it.
    pub attributes: Vec<(String, String)>,
    /// The part of requests that are traced, 0 to 1, of those that come without a trace; others are as their trace says.
    pub ratio: f64,
    /// How long spans are gathered.
    pub interval: Duration,
    /// How long one attempt to send them may take.
    pub timeout: Duration,
}

impl TraceConfig {
    /// Everything is traced.
    pub fn new(exporter: Arc<dyn SendEvent>) -> TraceConfig {
        TraceConfig {
            exporter,
            service: "longshore-registry".to_owned(),
            attributes: Vec::new(),
            ratio: 1.0,
            interval: Duration::from_secs(5),
            timeout: Duration::from_secs(10),
        }
    }
}

/// What became of spans, whatever the configuration.
#[derive(Debug, Default)]
pub(crate) struct TraceCounts {
    exported: Counter,
    left_out: Counter,
    failed: Counter,
}

impl TraceCounts {
    pub(crate) fn write_metrics(&self, text: &mut Text) {
        let counts = [
            ("exported", self.exported.get()),
            ("left_out", self.left_out.get()),
            ("failed", self.failed.get()),
        ];
        if counts.iter().all(|(_, count)| *count == 0) {
            return;
        }
        let name = "trace_spans_total";
        text.head(name, "counter", "spans of traces, by what became of them");
        for (result, count) in counts {
            text.line(name, &format!("{{result=\"{result}\"}}"), &count);
        }
    }
}

/// Makes spans, by one configuration.
pub(crate) struct Tracer {
    ratio: f64,
    jobs: mpsc::Sender<Job>,
    counts: Arc<TraceCounts>,
    /// Until it was started.
    export: Mutex<Option<Export>>,
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tracer")
            .field("ratio", &self.ratio)
            .finish_non_exhaustive()
    }
}

/// What a span is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum SpanKind {
    Internal,
    Server,
    Client,
}

/// A value of an attribute.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Attribute {
    Text(String),
    Number(i64),
}

/// What took a time.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Span {
    trace: [u8; 16],
    id: [u8; 8],
    parent: Option<[u8; 8]>,
    name: String,
    kind: SpanKind,
    /// Nanoseconds since 1970.
    start: u64,
    end: u64,
    attributes: Vec<(&'static str, Attribute)>,
    /// What went wrong.
    error: Option<String>,
}

/// Where in which trace a task is.
#[derive(Clone, Debug)]
pub(crate) struct Context {
    tracer: Arc<Tracer>,
    trace: [u8; 16],
    span: [u8; 8],
    parent: Option<[u8; 8]>,
    sampled: bool,
    /// `tracestate`, as it came.
    state: Option<Arc<str>>,
    start: u64,
}

tokio::task_local! {
    static CURRENT: Context;
}

impl Tracer {
    pub(crate) fn new(config: &TraceConfig, counts: &Arc<TraceCounts>) -> Arc<Tracer> {
        let (jobs, waiting) = mpsc::channel(WAITING_MAX);
        let export = Export {
            config: config.clone(),
            waiting,
            counts: Arc::clone(counts),
        };
        Arc::new(Tracer {
            ratio: config.ratio,
            jobs,
            counts: Arc::clone(counts),
            export: Mutex::new(Some(export)),
        })
    }

    /// Sends from now on, until this is dropped and nothing waits any more.
    pub(crate) fn start(&self) {
        let export = self.export.lock();
        if let Some(export) = export.unwrap_or_else(PoisonError::into_inner).take() {
            tokio::spawn(export.run());
        }
    }

    /// Waits until what was recorded is sent, or for so long.
    pub(crate) async fn finish(&self, patience: Duration) {
        let (done, is_done) = tokio::sync::oneshot::channel();
        let sent = async {
            if self.jobs.send(Job::Flush(done)).await.is_ok() {
                // An error is the end of the task that sends.
                let _ = is_done.await;
            }
        };
        if tokio::time::timeout(patience, sent).await.is_err() {
            tracing::warn!("the last spans could not be sent in time");
        }
    }

    /// The context of a request that comes with these headers.
    pub(crate) fn request(self: &Arc<Tracer>, headers: &HeaderMap) -> Context {
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let caller = text("traceparent").and_then(read_traceparent);
        let state = caller.and_then(|_| text("tracestate"));
        let state = state.filter(|state| state.len() <= STATE_BYTES_MAX);
        let (trace, parent, sampled) = match caller {
            Some((trace, parent, sampled)) => (trace, Some(parent), sampled),
            None => {
                let trace = random();
                (trace, None, chosen(&trace, self.ratio))
            }
        };
        Context {
            tracer: Arc::clone(self),
            trace,
            span: random(),
            parent,
            sampled,
            state: state.map(Arc::from),
            start: now(),
        }
    }
}

impl Context {
    /// The trace, as `traceparent` has it.
    pub(crate) fn trace_id(&self) -> String {
        hex(&self.trace)
    }

    /// Runs a future in this context.
    pub(crate) async fn scope<F: Future>(self, future: F) -> F::Output {
        CURRENT.scope(self, future).await
    }

    /// The span of this context is over.
    pub(crate) fn ended(
        self,
        name: String,
        kind: SpanKind,
        attributes: Vec<(&'static str, Attribute)>,
        error: Option<String>,
    ) {
        if !self.sampled {
            return;
        }
        let span = Span {
            trace: self.trace,
            id: self.span,
            parent: self.parent,
            name,
            kind,
            start: self.start,
            end: now(),
            attributes,
            error,
        };
        if self
            .tracer
            .jobs
            .try_send(Job::Span(Box::new(span)))
            .is_err()
        {
            self.tracer.counts.left_out.add(1);
        }
    }

    fn child(&self) -> Context {
        Context {
            span: random(),
            parent: Some(self.span),
            start: now(),
            ..self.clone()
        }
    }

    fn traceparent(&self) -> String {
        let flags = if self.sampled { "01" } else { "00" };
        format!("00-{}-{}-{flags}", hex(&self.trace), hex(&self.span))
    }
}

/// Runs a future in a context, if there is one.
pub(crate) async fn within<F: Future>(context: Option<Context>, future: F) -> F::Output {
    match context {
        Some(context) => context.scope(future).await,
        None => future.await,
    }
}

/// A step of what the task does, as a span of its own if the task is traced. `failed` tells what went wrong.
pub(crate) async fn step<T>(
    kind: SpanKind,
    what: impl FnOnce() -> (String, Vec<(&'static str, Attribute)>),
    failed: impl FnOnce(&T) -> Option<String>,
    future: impl Future<Output = T>,
) -> T {
    let parent = CURRENT.try_with(Clone::clone).ok();
    let Some(parent) = parent.filter(|parent| parent.sampled) else {
        return future.await;
    };
    let context = parent.child();
    let output = context.clone().scope(future).await;
    let (name, attributes) = what();
    let error = failed(&output);
    context.ended(name, kind, attributes, error);
    output
}

/// A future that is about to be given to another task, in the context of this one.
pub(crate) fn carried<F: Future>(future: F) -> impl Future<Output = F::Output> {
    match CURRENT.try_with(Clone::clone) {
        Ok(context) => Either::Left(CURRENT.scope(context, future)),
        Err(_) => Either::Right(future),
    }
}

/// `traceparent` and `tracestate` for what the current task asks others, by name; empty if it is in no trace.
pub fn outgoing() -> Vec<(&'static str, String)> {
    let headers = CURRENT.try_with(|context| {
        let mut headers = vec![("traceparent", context.traceparent())];
        if let Some(state) = &context.state {
            headers.push(("tracestate", state.to_string()));
        }
        headers
    });
    headers.unwrap_or_default()
}

/// Trace, span and whether it is recorded, of a `traceparent` (W3C Trace Context): `00-<32 hex>-<16 hex>-<2 hex>`.
pub(crate) fn read_traceparent(text: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let parts: Vec<&str> = text.trim().split('-').collect();
    let &["00", trace, span, flags] = parts.as_slice() else {
        return None;
    };
    let (trace, span, [flags]) = (unhex(trace)?, unhex(span)?, unhex::<1>(flags)?);
    let named = trace != [0; 16] && span != [0; 8];
    named.then_some((trace, span, flags & 1 == 1))
}

fn unhex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let lower = |b: u8| matches!(b, b'0'..=b'9' | b'a'..=b'f');
    if text.len() != 2 * N || !text.bytes().all(lower) {
        return None;
    }
    let mut bytes = [0; N];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(text.get(2 * index..2 * index + 2)?, 16).ok()?;
    }
    Some(bytes)
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    ring::rand::SecureRandom::fill(&ring::rand::SystemRandom::new(), &mut bytes)
        .expect("the kernel gives random bytes");
    bytes
}

/// Whether a trace is among those that are recorded: by its last 7 bytes, so that all who take the same part take the same ones.
fn chosen(trace: &[u8; 16], ratio: f64) -> bool {
    let last = trace[9..]
        .iter()
        .fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    #[expect(
        clippy::cast_precision_loss,
        reason = "56 bits are more than a ratio has"
    )]
    let place = last as f64 / (1u64 << 56) as f64;
    place < ratio
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traces_are_taken_as_the_specification_writes_them() {
        let check = |text: &str, expect: Option<(&str, bool)>| {
            let read = read_traceparent(text);
            let read = read.map(|(trace, _, sampled)| (hex(&trace), sampled));
            let expect = expect.map(|(trace, sampled)| (trace.to_owned(), sampled));
            assert_eq!(read, expect, "{text}");
        };
        let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
        check(
            &format!("00-{trace}-00f067aa0ba902b7-01"),
            Some((trace, true)),
        );
        check(
            &format!("00-{trace}-00f067aa0ba902b7-00"),
            Some((trace, false)),
        );
        check(
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            None,
        );
        check(
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            None,
        );
        check(&format!("00-{trace}-0000000000000000-01"), None);
        check(&format!("00-{trace}-00f067aa0ba902b7"), None);
        check("01-x", None);
        check("00-€-€-€", None);
        check("", None);
    }

    #[test]
    fn a_part_of_traces_is_chosen_by_their_ids() {
        let check = |last: u8, ratio: f64, expect: bool| {
            let mut trace = [7; 16];
            trace[9] = last;
            assert_eq!(chosen(&trace, ratio), expect, "{last} {ratio}");
        };
        check(0xff, 1.0, true);
        check(0, 0.0, false);
        check(0x3f, 0.25, true);
        check(0x40, 0.25, false);
    }
}
