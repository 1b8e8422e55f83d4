//! Spans as OTLP has them in JSON (opentelemetry-proto, "JSON Protobuf Encoding"): ids in hex, 64-bit numbers as texts.

use serde_json::{Value, json};

use super::{Attribute, Span, SpanKind, TraceConfig, hex};

/// The body of a request to `/v1/traces`.
pub(super) fn encode(spans: &[Span], config: &TraceConfig) -> Vec<u8> {
    let mut resource = vec![text("service.name", &config.service)];
    resource.extend(
        config
            .attributes
            .iter()
            .map(|(key, value)| text(key, value)),
    );
    let body = json!({
        "resourceSpans": [{
            "resource": { "attributes": resource },
            "scopeSpans": [{
                "scope": { "name": "longshore.registry" },
                "spans": spans.iter().map(span).collect::<Vec<Value>>(),
            }],
        }],
    });
    body.to_string().into_bytes()
}

fn span(span: &Span) -> Value {
    let kind = match span.kind {
        SpanKind::Internal => 1,
        SpanKind::Server => 2,
        SpanKind::Client => 3,
    };
    let attributes = span.attributes.iter().map(|(key, value)| match value {
        Attribute::Text(value) => text(key, value),
        Attribute::Number(value) => json!({"key": key, "value": {"intValue": value.to_string()}}),
    });
    let mut told = json!({
        "traceId": hex(&span.trace),
        "spanId": hex(&span.id),
        "name": span.name,
        "kind": kind,
        "startTimeUnixNano": span.start.to_string(),
        // A clock that was set back makes no span shorter than nothing.
        "endTimeUnixNano": span.end.max(span.start).to_string(),
        "attributes": attributes.collect::<Vec<Value>>(),
    });
    if let Some(parent) = &span.parent {
        told["parentSpanId"] = json!(hex(parent));
    }
    if let Some(error) = &span.error {
        told["status"] = json!({"code": 2, "message": error});
    }
    told
}

fn text(key: &str, value: &str) -> Value {
    json!({"key": key, "value": {"stringValue": value}})
}
