//! Traces through the binary: its configuration, the environment of OpenTelemetry, what a collector gets.

use std::path::PathBuf;

use serde_json::Value;

use crate::receiver::{Received, Receiver};
use crate::support::{Place, Server, tool};

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

/// A configuration with `[traces]`, and where it is.
fn configure(place: &Place, collector: &Receiver, more: &str) -> PathBuf {
    let file = place.path("registry.toml");
    std::fs::write(place.path("token"), "hidden\n").unwrap();
    let endpoint = format!("http://127.0.0.1:{}/otlp", collector.port);
    let text = format!(
        "root = \"registry\"\n[traces]\nendpoint = \"{endpoint}\"\ninterval = \"10ms\"\n{more}"
    );
    std::fs::write(&file, text).unwrap();
    file
}

/// Asks for something as part of a trace whose caller wants it to be followed, or not.
fn ask(server: &Server, path: &str, sampled: bool) {
    let parent = format!(
        "traceparent: 00-{TRACE}-00f067aa0ba902b7-0{}",
        u8::from(sampled)
    );
    let url = format!("http://{}{path}", server.host);
    tool("curl", &["-sS", "-o", "/dev/null", "-H", &parent, &url]);
}

/// The next request of the collector's that has a span of this name; the span.
fn until(collector: &Receiver, name: &str) -> (Received, Value) {
    loop {
        let received = collector.next();
        let body = received.json();
        let spans = body["resourceSpans"][0]["scopeSpans"][0]["spans"].clone();
        let found = spans
            .as_array()
            .unwrap()
            .iter()
            .find(|span| span["name"] == name);
        if let Some(found) = found.cloned() {
            return (received, found);
        }
    }
}

fn attributes(of: &Value) -> Vec<(String, String)> {
    let text = |value: &Value| {
        let told = value.get("stringValue").or(value.get("intValue"));
        told.and_then(Value::as_str).unwrap_or_default().to_owned()
    };
    let pair = |one: &Value| (one["key"].as_str().unwrap().to_owned(), text(&one["value"]));
    of["attributes"]
        .as_array()
        .unwrap()
        .iter()
        .map(pair)
        .collect()
}

#[test]
fn a_server_sends_spans_as_its_configuration_says() {
    let place = Place::new();
    let collector = Receiver::that_takes_all();
    let more = "service = \"shop\"\nsample = \"0\"\ntoken_file = \"token\"\nheaders = { x-team = \"a\" }\n";
    let config = configure(&place, &collector, more);
    let server = Server::registry_told(&config);
    // Nobody asked for it to be followed, and the part of others is none.
    ask(&server, "/v2/unseen/tags/list", false);
    ask(&server, "/v2/team/app/manifests/v1?secret", true);
    let name = "GET /v2/{name}/manifests/{reference}";
    let (received, span) = until(&collector, name);
    assert_eq!(received.path, "/otlp/v1/traces");
    assert_eq!(received.header("authorization"), Some("Bearer hidden"));
    assert_eq!(received.header("x-team"), Some("a"));
    assert_eq!(span["traceId"], TRACE);
    assert_eq!(span["parentSpanId"], "00f067aa0ba902b7");
    let told = attributes(&span);
    for (key, value) in [
        ("http.response.status_code", "404"),
        ("url.path", "/v2/team/app/manifests/v1"),
    ] {
        assert!(
            told.contains(&(key.to_owned(), value.to_owned())),
            "{told:?}"
        );
    }
    let body = received.json();
    assert!(!body.to_string().contains("secret"), "{body}");
    assert!(!body.to_string().contains("unseen"), "{body}");
    let resource = attributes(&body["resourceSpans"][0]["resource"]);
    let service = ("service.name".to_owned(), "shop".to_owned());
    assert!(resource.contains(&service), "{resource:?}");
    // Another configuration is used without a restart, and what waits is sent before the end.
    configure(&place, &collector, "service = \"other\"\nsample = \"0\"\n");
    server.signal("HUP");
    for tries in 0.. {
        assert!(tries < 2000, "the configuration is not read again");
        ask(&server, "/v2/team/app/tags/list", true);
        let (received, _) = until(&collector, "GET /v2/{name}/tags/list");
        let body = received.json();
        let resource = attributes(&body["resourceSpans"][0]["resource"]);
        if resource.contains(&("service.name".to_owned(), "other".to_owned())) {
            break;
        }
    }
}

#[test]
fn wrong_traces_are_told() {
    let place = Place::new();
    let collector = Receiver::that_takes_all();
    let config = configure(&place, &collector, "sample = \"2\"\n");
    place
        .run(["registry", "serve", "--config", config.to_str().unwrap()])
        .fails(2, "5:1: `2` is no part");
}
