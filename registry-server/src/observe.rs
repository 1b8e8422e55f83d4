//! What is told of each request once it is over, and whether the server is well: `/livez`, `/readyz`, `/metrics`.
//!
//! ```text
//! answer ─► body, watched ─► its end ─► metrics, access log
//! ```

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant, SystemTime};

use bytes::Bytes;
use http::header::{self, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use tokio::sync::Notify;

use crate::auth::{Need, Peer};
use crate::body::Body;
use crate::metrics::{Looked, Metrics, Text};
use crate::registry::{Answer, Call, Registry, answer};
use crate::routes::Route;
use crate::sync::SyncTotals;
use crate::trace::{Attribute, Context, SpanKind, TraceCounts, hex, read_traceparent};

/// How long an answer about readiness is good for: whoever asks needs no login, and looking costs something.
const READY_FOR: Duration = Duration::from_secs(2);

/// Longest text of a client that is logged.
const AGENT_CHARS_MAX: usize = 200;

/// One request that is over. It names no query, header or body: secrets are there.
#[derive(Clone, Debug)]
pub struct AccessRecord {
    /// When it began.
    pub time: SystemTime,
    /// Who sent it, by address.
    pub peer: IpAddr,
    /// Who that is, where it was asked; of nobody known it is `None`.
    pub user: Option<String>,
    /// Its method.
    pub method: Method,
    /// Its path.
    pub path: String,
    /// What it was about, as metrics have it.
    pub route: &'static str,
    /// The answer's status.
    pub status: StatusCode,
    /// Bytes of the answer's body that were sent.
    pub sent_bytes: u64,
    /// Whether that is all of it.
    pub complete: bool,
    /// Until the answer began.
    pub answered_after: Duration,
    /// Until it ended.
    pub ended_after: Duration,
    /// What the client calls itself.
    pub agent: Option<String>,
    /// The trace that it is part of, as `traceparent` has it: 32 hexadecimal digits.
    pub trace: Option<String>,
}

/// Where requests are told. It is called where nothing may wait.
pub trait AccessLog: Send + Sync + fmt::Debug {
    /// One is over.
    fn log(&self, record: AccessRecord);
}

/// What outlives configurations: numbers, and how the server is.
#[derive(Debug, Default)]
pub(crate) struct Observer {
    pub(crate) metrics: Metrics,
    pub(crate) syncs: SyncTotals,
    pub(crate) traces: Arc<TraceCounts>,
    /// There is another configuration.
    pub(crate) syncs_changed: Notify,
    draining: AtomicBool,
    /// When it was last looked whether the storage works, and whether it did.
    ready: tokio::sync::Mutex<Option<(Instant, bool)>>,
}

impl Observer {
    /// The server is about to stop.
    pub(crate) fn drain(&self) {
        self.draining.store(true, Ordering::Relaxed);
    }
}

/// A request while it is answered.
#[derive(Debug)]
pub(crate) struct Watched {
    record: AccessRecord,
    began: Instant,
    observer: Arc<Observer>,
    log: Option<Arc<dyn AccessLog>>,
    /// Whether its client speaks https.
    secure: bool,
    /// Where it is traced.
    context: Option<Context>,
}

impl Watched {
    pub(crate) fn begin(
        registry: &Registry,
        method: &Method,
        path: &str,
        headers: &HeaderMap,
        peer: &Peer,
    ) -> Watched {
        let agent = text_of(headers, header::USER_AGENT.as_str());
        let agent = agent.map(|text| text.chars().take(AGENT_CHARS_MAX).collect());
        let context = registry.tracer.as_ref();
        let context = context.map(|tracer| tracer.request(headers));
        let trace = match &context {
            Some(context) => Some(context.trace_id()),
            None => text_of(headers, "traceparent")
                .and_then(read_traceparent)
                .map(|(trace, ..)| hex(&trace)),
        };
        Watched {
            record: AccessRecord {
                time: SystemTime::now(),
                peer: peer.addr,
                user: None,
                method: method.clone(),
                path: path.to_owned(),
                route: route_name(path),
                status: StatusCode::OK,
                sent_bytes: 0,
                complete: false,
                answered_after: Duration::ZERO,
                ended_after: Duration::ZERO,
                agent,
                trace,
            },
            began: Instant::now(),
            observer: Arc::clone(&registry.observer),
            log: registry.access_log.clone(),
            secure: peer.tls,
            context,
        }
    }

    /// Where the request is traced, for all that is done for it.
    pub(crate) fn context(&self) -> Option<Context> {
        self.context.clone()
    }

    /// The answer begins; the rest is told when its body ends.
    pub(crate) fn answered(mut self, response: &mut Response<Body>, user: Option<String>) {
        let status = response.status();
        self.record.user = user;
        self.record.status = status;
        self.record.answered_after = self.began.elapsed();
        self.observer.metrics.answered(
            self.record.route,
            self.record.method.as_str(),
            status.as_u16(),
            self.record.answered_after,
        );
        response.body_mut().watch(self);
    }

    /// The body is over.
    pub(crate) fn ended(mut self, sent_bytes: u64, complete: bool) {
        self.observer.metrics.sent_bytes.add(sent_bytes);
        if let Some(context) = self.context.take() {
            self.tell_trace(context, sent_bytes);
        }
        if let Some(log) = self.log.take() {
            self.record.sent_bytes = sent_bytes;
            // Of HEAD nothing is to be sent.
            self.record.complete = complete || self.record.method == Method::HEAD;
            self.record.ended_after = self.began.elapsed();
            log.log(self.record);
        }
    }
}

/// What a path is about, as traces have it: a template, of few values.
fn route_template(route: &str) -> Option<&'static str> {
    Some(match route {
        "base" => "/v2/",
        "catalog" => "/v2/_catalog",
        "blob" => "/v2/{name}/blobs/{digest}",
        "uploads" => "/v2/{name}/blobs/uploads/",
        "upload" => "/v2/{name}/blobs/uploads/{id}",
        "manifest" => "/v2/{name}/manifests/{reference}",
        "tags" => "/v2/{name}/tags/list",
        "referrers" => "/v2/{name}/referrers/{digest}",
        _ => return None,
    })
}

impl Watched {
    /// By OpenTelemetry's semantic conventions for HTTP servers.
    fn tell_trace(&self, context: Context, sent_bytes: u64) {
        let AccessRecord {
            method,
            path,
            status,
            ..
        } = &self.record;
        let text = |text: &str| Attribute::Text(text.to_owned());
        let number = |number: u64| Attribute::Number(i64::try_from(number).unwrap_or(i64::MAX));
        let scheme = if self.secure { "https" } else { "http" };
        let mut attributes = vec![
            ("http.request.method", text(method.as_str())),
            ("url.path", text(path)),
            ("url.scheme", text(scheme)),
            ("http.response.status_code", number(status.as_u16().into())),
            ("http.response.body.size", number(sent_bytes)),
            (
                "client.address",
                Attribute::Text(self.record.peer.to_canonical().to_string()),
            ),
        ];
        let route = route_template(self.record.route);
        if let Some(route) = route {
            attributes.push(("http.route", text(route)));
        }
        if let Some(agent) = &self.record.agent {
            attributes.push(("user_agent.original", text(agent)));
        }
        let failed = status.is_server_error().then(|| status.to_string());
        if failed.is_some() {
            attributes.push(("error.type", text(status.as_str())));
        }
        let name = match route {
            Some(route) => format!("{method} {route}"),
            None => method.to_string(),
        };
        context.ended(name, SpanKind::Server, attributes, failed);
    }
}

fn text_of<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

/// What a path is about, as [`crate::metrics::ROUTES`] has it.
fn route_name(path: &str) -> &'static str {
    match path {
        "/livez" | "/readyz" | "/metrics" => return "observing",
        "/token" | "/.well-known/jwks.json" => return "token",
        "/" => return "page",
        path if path.starts_with("/-/") => return "page",
        "/v1/_ping" | "/v2/_longshore/about" => return "search",
        _ => {}
    }
    match Route::parse(path) {
        Ok(Route::Base) => "base",
        Ok(Route::Catalog) => "catalog",
        Ok(Route::Extensions(_)) => "extensions",
        Ok(Route::Blob(..)) => "blob",
        Ok(Route::Uploads(_)) => "uploads",
        Ok(Route::Upload(..)) => "upload",
        Ok(Route::Manifest(..)) => "manifest",
        Ok(Route::Tags(_)) => "tags",
        Ok(Route::Search | Route::DockerSearch | Route::TagTable(_)) => "search",
        Ok(Route::Referrers(..)) => "referrers",
        Err(_) => "other",
    }
}

impl Registry {
    /// `/livez`, `/readyz` and `/metrics`; `None` for other paths. The first two need no login: they tell nothing but yes or
    /// no.
    pub(crate) async fn observing(&self, path: &str, call: &mut Call) -> Option<Answer> {
        let reads = matches!(call.method, Method::GET | Method::HEAD);
        match path {
            "/livez" if reads => Some(Ok(plain(StatusCode::OK, "ok\n"))),
            "/readyz" if reads => Some(Ok(match self.is_ready().await {
                Ok(()) => plain(StatusCode::OK, "ok\n"),
                Err(why) => plain(StatusCode::SERVICE_UNAVAILABLE, why),
            })),
            "/metrics" if reads && self.rules.metrics => Some(self.metrics(call).await),
            _ => None,
        }
    }

    async fn is_ready(&self) -> Result<(), &'static str> {
        if self.observer.draining.load(Ordering::Relaxed) {
            return Err("the server is about to stop\n");
        }
        // Whoever asks meanwhile waits for the same answer.
        let mut last = self.observer.ready.lock().await;
        let works = match *last {
            Some((at, works)) if at.elapsed() < READY_FOR => works,
            _ => {
                let writes = !self.rules.read_only;
                let works = self.blocking(move |storage| storage.probe(writes)).await;
                *last = Some((Instant::now(), works.is_ok()));
                works.is_ok()
            }
        };
        match works {
            true => Ok(()),
            false => Err("the storage does not work\n"),
        }
    }

    async fn metrics(&self, call: &mut Call) -> Answer {
        call.visitor = self
            .gate
            .visitor(&call.headers, &call.peer, &Need::Login)
            .await?;
        self.gate
            .admit(&call.visitor, &call.headers, &call.peer, &Need::Login)?;
        let disk = self.blocking(|storage| storage.disk()).await?;
        let mut text = self.observer.metrics.text(Looked {
            uploads: self.sessions.in_progress(),
            disk,
        });
        let mut features = Text::default();
        self.events.write_metrics(&mut features);
        self.observer.syncs.write_metrics(&mut features);
        self.observer.traces.write_metrics(&mut features);
        text.push_str(&features.into_string());
        let mut response = Response::new(Body::full(Bytes::from(text)));
        response.headers_mut().insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8"),
        );
        Ok(response)
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Body> {
    let mut response = answer(status);
    *response.body_mut() = Body::full(Bytes::from_static(text.as_bytes()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_has_a_route_that_is_known() {
        for path in [
            "/v2/",
            "/v2/_catalog",
            "/v2/a/tags/list",
            "/v1/search",
            "/livez",
            "/token",
            "/x",
            "/v2/A/b",
        ] {
            assert!(crate::metrics::ROUTES.contains(&route_name(path)), "{path}");
        }
    }
}
