//! Spans of requests, as a collector gets them.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::future::BoxFuture;
use registry_server::routes::RepositoryName;
use registry_server::storage::memory::MemoryStorage;
use registry_server::trace::{TraceConfig, outgoing};
use registry_server::upstream::{
    Upstream, UpstreamBlob, UpstreamError, UpstreamManifest, UpstreamResult,
};
use registry_server::{Config, PullThrough, RunningServer};
use serde_json::Value;
use store::oci::{Descriptor, Digest};

use crate::client::Client;
use crate::protocol::push_empty_image;
use crate::receiver::{Answer, Receiver};
use crate::webhooks::sender;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";

fn traced(collector: &Receiver) -> Config {
    let mut traces = TraceConfig::new(sender(&collector.url()));
    traces.service = "a registry".to_owned();
    traces.attributes = vec![("host.name".to_owned(), "x".to_owned())];
    traces.interval = Duration::from_millis(1);
    traces.timeout = Duration::from_secs(60);
    let mut config = Config::new("");
    config.metrics = true;
    config.traces = Some(traces);
    config
}

fn start(config: Config) -> RunningServer {
    RunningServer::start_on(config, Arc::new(MemoryStorage::default())).unwrap()
}

/// Spans that have come, once the server has ended: then all were sent.
fn spans(server: RunningServer, collector: &Receiver) -> Vec<Value> {
    drop(server);
    let mut spans = Vec::new();
    for request in collector.rest() {
        assert_eq!(request.header("content-type"), Some("application/json"));
        let body = request.json();
        let resource = &body["resourceSpans"][0];
        assert_eq!(
            attribute(&resource["resource"], "service.name"),
            "a registry"
        );
        assert_eq!(attribute(&resource["resource"], "host.name"), "x");
        let scope = &resource["scopeSpans"][0];
        spans.extend(scope["spans"].as_array().unwrap().iter().cloned());
    }
    spans
}

fn attribute<'a>(of: &'a Value, key: &str) -> &'a str {
    let all = of["attributes"].as_array().unwrap();
    let found = all.iter().find(|one| one["key"] == key);
    let value = &found.unwrap_or_else(|| panic!("{key} in {of}"))["value"];
    let text = value.get("stringValue").or(value.get("intValue"));
    text.unwrap().as_str().unwrap()
}

fn named<'a>(spans: &'a [Value], name: &str) -> &'a Value {
    let found = spans.iter().find(|span| span["name"] == name);
    found.unwrap_or_else(|| panic!("{name} in {spans:?}"))
}

#[test]
fn a_request_is_a_span_of_its_callers_trace_with_steps_below() {
    let collector = Receiver::that_takes_all();
    let server = start(traced(&collector));
    let mut client = Client::new(server.addr);
    push_empty_image(&mut client, "team/app", "v1");
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("User-Agent", "a test")];
    client
        .send("GET", "/v2/team/app/manifests/v1?secret=x", &headers, b"")
        .expect(200);
    client
        .send("GET", "/v2/team/app/manifests/v2", &headers, b"")
        .expect(404);
    drop(client);
    let spans = spans(server, &collector);
    let pushed = named(&spans, "PUT /v2/{name}/manifests/{reference}");
    assert_ne!(pushed["traceId"], TRACE);
    assert_eq!(pushed.get("parentSpanId"), None);
    assert_eq!(attribute(pushed, "http.response.status_code"), "201");
    let ours: Vec<Value> = spans
        .into_iter()
        .filter(|span| span["traceId"] == TRACE)
        .collect();
    let got = named(&ours, "GET /v2/{name}/manifests/{reference}");
    assert_eq!(
        (&got["kind"], &got["parentSpanId"]),
        (&2.into(), &CALLER.into())
    );
    for (key, value) in [
        ("http.request.method", "GET"),
        ("http.route", "/v2/{name}/manifests/{reference}"),
        ("url.path", "/v2/team/app/manifests/v1"),
        ("url.scheme", "http"),
        ("http.response.status_code", "200"),
        ("client.address", "127.0.0.1"),
        ("user_agent.original", "a test"),
    ] {
        assert_eq!(attribute(got, key), value);
    }
    assert!(!got.to_string().contains("secret"), "{got}");
    let step = named(&ours, "storage manifest");
    assert_eq!(
        (&step["kind"], &step["parentSpanId"]),
        (&1.into(), &got["spanId"])
    );
    let time = |span: &Value, key: &str| span[key].as_str().unwrap().parse::<u64>().unwrap();
    assert!(time(got, "startTimeUnixNano") <= time(step, "startTimeUnixNano"));
    assert!(time(step, "startTimeUnixNano") <= time(step, "endTimeUnixNano"));
}

#[test]
fn who_is_traced_is_said_by_the_caller_else_by_the_part() {
    let collector = Receiver::that_takes_all();
    let mut config = traced(&collector);
    config.traces.as_mut().unwrap().ratio = 0.0;
    let server = start(config);
    let mut client = Client::new(server.addr);
    let sampled = format!("00-{TRACE}-{CALLER}-01");
    client.get("/v2/").expect(200);
    client
        .send("GET", "/v2/", &[("traceparent", &sampled)], b"")
        .expect(200);
    drop(client);
    let found = spans(server, &collector);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_eq!(found[0]["traceId"], TRACE);
    // And the other way round.
    let server = start(traced(&collector));
    let mut client = Client::new(server.addr);
    let unsampled = format!("00-{TRACE}-{CALLER}-00");
    client
        .send("GET", "/v2/", &[("traceparent", &unsampled)], b"")
        .expect(200);
    client
        .send("GET", "/v2/", &[("traceparent", "nonsense")], b"")
        .expect(200);
    drop(client);
    let found = spans(server, &collector);
    assert_eq!(found.len(), 1, "{found:?}");
    assert_ne!(found[0]["traceId"], TRACE);
}

/// An upstream that has nothing, and remembers with which headers it would have been asked.
#[derive(Debug, Default)]
struct Empty(Mutex<Vec<(&'static str, String)>>);

impl Empty {
    fn asked<T: Send + 'static>(&self) -> BoxFuture<'_, UpstreamResult<T>> {
        Box::pin(async {
            self.0.lock().unwrap().extend(outgoing());
            Err(UpstreamError::NotFound)
        })
    }
}

impl Upstream for Empty {
    fn manifest<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamManifest>> {
        self.asked()
    }

    fn tag_now<'a>(
        &'a self,
        _: &'a str,
        _: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Option<Digest>>> {
        self.asked()
    }

    fn blob_size<'a>(&'a self, _: &'a str, _: Digest) -> BoxFuture<'a, UpstreamResult<u64>> {
        self.asked()
    }

    fn blob<'a>(&'a self, _: &'a str, _: Digest) -> BoxFuture<'a, UpstreamResult<UpstreamBlob>> {
        self.asked()
    }

    fn tags<'a>(&'a self, _: &'a str) -> BoxFuture<'a, UpstreamResult<Vec<String>>> {
        self.asked()
    }

    fn referrers<'a>(
        &'a self,
        _: &'a str,
        _: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Vec<Descriptor>>> {
        self.asked()
    }
}

#[test]
fn upstreams_are_asked_in_the_same_trace() {
    let collector = Receiver::that_takes_all();
    let upstream = Arc::new(Empty::default());
    let mut config = traced(&collector);
    let prefix = RepositoryName::parse("hub").unwrap();
    config.upstreams = vec![PullThrough::new(
        Some(prefix),
        Arc::<Empty>::clone(&upstream),
    )];
    let server = start(config);
    let mut client = Client::new(server.addr);
    let parent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", parent.as_str()), ("tracestate", "a=b")];
    client
        .send("GET", "/v2/hub/x/manifests/v1", &headers, b"")
        .expect(404);
    drop(client);
    let spans = spans(server, &collector);
    let asked = named(&spans, "upstream manifest");
    assert_eq!(
        (&asked["traceId"], &asked["kind"]),
        (&TRACE.into(), &3.into())
    );
    assert_eq!(attribute(asked, "registry.repository"), "x");
    assert_eq!(asked["status"]["code"], 2);
    let sent = upstream.0.lock().unwrap();
    let expected = format!("00-{TRACE}-{}-01", asked["spanId"].as_str().unwrap());
    assert!(sent.contains(&("traceparent", expected)), "{sent:?}");
    assert!(sent.contains(&("tracestate", "a=b".to_owned())));
}

#[test]
fn a_collector_that_is_busy_or_gone_keeps_nobody_waiting() {
    let collector = Receiver::start(|number, _| match number {
        0 => Answer::With(503, "retry-after: 0"),
        1 => Answer::Status(200),
        _ => Answer::Status(400),
    });
    let server = start(traced(&collector));
    let mut client = Client::new(server.addr);
    client.get("/v2/").expect(200);
    let first = collector.next().body;
    assert_eq!(collector.next().body, first, "it is sent again");
    client.get("/v2/").expect(200);
    collector.next();
    loop {
        let text = client.get("/metrics").expect(200).text();
        let failed = text.lines().find_map(|line| {
            line.strip_prefix("longshore_registry_trace_spans_total{result=\"failed\"} ")
        });
        if failed.is_some_and(|count| count != "0") {
            break;
        }
        std::thread::yield_now();
    }
}
