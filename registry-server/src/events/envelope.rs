//! Events as they are sent: CloudEvents 1.0 or CNCF distribution's envelope, and the headers that prove where they come from.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use ring::hmac;
use serde_json::{Map, Value, json};
use store::oci::time::rfc3339;

use super::event::{EventObject, RegistryEvent};
use super::{EventFormat, Message, Secret, Webhook};

/// Before a secret that is Base64 (Standard Webhooks).
const SECRET_PREFIX: &[u8] = b"whsec_";

/// An event for an endpoint, sent at `now` (seconds since 1970).
pub(super) fn message(event: &RegistryEvent, webhook: &Webhook, now: i64) -> Message {
    let (content_type, body) = match webhook.format {
        EventFormat::CloudEvents => (
            "application/cloudevents+json; charset=utf-8",
            cloud_event(event, &webhook.source),
        ),
        EventFormat::Docker => (
            "application/vnd.docker.distribution.events.v1+json",
            docker_envelope(event, &webhook.source),
        ),
    };
    let body = Bytes::from(body.to_string());
    let mut headers = vec![
        ("content-type", content_type.to_owned()),
        ("webhook-id", event.id.clone()),
        ("webhook-timestamp", now.to_string()),
    ];
    if let Some(secret) = &webhook.secret {
        headers.extend(signatures(secret, &event.id, now, &body));
    }
    Message { headers, body }
}

/// As Standard Webhooks has it, over id, time and body; and as GitHub does, over the body alone.
fn signatures(secret: &Secret, id: &str, now: i64, body: &[u8]) -> [(&'static str, String); 2] {
    let decoded = secret
        .0
        .strip_prefix(SECRET_PREFIX)
        .and_then(|text| STANDARD.decode(text).ok());
    let key = hmac::Key::new(hmac::HMAC_SHA256, decoded.as_deref().unwrap_or(&secret.0));
    let mut timed = hmac::Context::with_key(&key);
    timed.update(format!("{id}.{now}.").as_bytes());
    timed.update(body);
    let timed = STANDARD.encode(timed.sign());
    let plain = hmac::sign(&key, body);
    let hex: String = plain.as_ref().iter().map(|b| format!("{b:02x}")).collect();
    [
        ("webhook-signature", format!("v1,{timed}")),
        ("x-hub-signature-256", format!("sha256={hex}")),
    ]
}

/// RFC 3339 with milliseconds.
fn time(event: &RegistryEvent) -> String {
    let seconds = i64::try_from(event.millis / 1000).unwrap_or(i64::MAX);
    let whole = rfc3339(seconds);
    format!(
        "{}.{:03}Z",
        whole.trim_end_matches('Z'),
        event.millis % 1000
    )
}

/// `REPOSITORY[:TAG][@DIGEST]`, with the first tag.
fn subject(event: &RegistryEvent) -> String {
    let tag = event.tags.first().map(|tag| format!(":{tag}"));
    let digest = event.digest.as_ref().map(|digest| format!("@{digest}"));
    format!(
        "{}{}{}",
        event.repository,
        tag.unwrap_or_default(),
        digest.unwrap_or_default()
    )
}

/// An object of what is known.
fn object(fields: impl IntoIterator<Item = (&'static str, Option<Value>)>) -> Value {
    let known = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)));
    Value::Object(known.collect::<Map<String, Value>>())
}

fn cloud_event(event: &RegistryEvent, source: &str) -> Value {
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let data = object([
        ("action", Some(json!(event.action))),
        ("object", Some(json!(event.object))),
        ("repository", Some(json!(event.repository))),
        ("digest", text(&event.digest)),
        ("tags", (!event.tags.is_empty()).then(|| json!(event.tags))),
        ("mediaType", text(&event.media_type)),
        ("size", event.size.map(|size| json!(size))),
        ("from", text(&event.from)),
        ("user", text(&event.user)),
        ("via", Some(json!(event.via))),
        ("addr", text(&event.request.addr)),
        ("host", text(&event.request.host)),
        ("userAgent", text(&event.request.agent)),
    ]);
    let (what, done) = (event.object.name(), event.action.name());
    json!({
        "specversion": "1.0",
        "id": event.id,
        "source": source,
        "type": format!("longshore.registry.{what}.{done}"),
        "subject": subject(event),
        "time": time(event),
        "datacontenttype": "application/json",
        "data": data,
    })
}

fn docker_envelope(event: &RegistryEvent, source: &str) -> Value {
    // An event has one tag there.
    let tags: Vec<Option<&String>> = match event.tags.as_slice() {
        [] => vec![None],
        tags => tags.iter().map(Some).collect(),
    };
    let events: Vec<Value> = tags
        .into_iter()
        .enumerate()
        .map(|(index, tag)| docker_event(event, index, tag, source))
        .collect();
    json!({ "events": events })
}

fn docker_event(event: &RegistryEvent, index: usize, tag: Option<&String>, source: &str) -> Value {
    let text = |text: &Option<String>| text.as_ref().map(|text| json!(text));
    let request = &event.request;
    let url = match (&request.scheme, &request.host, &event.digest) {
        (Some(scheme), Some(host), Some(digest)) => {
            let kind = match event.object {
                EventObject::Blob => "blobs",
                EventObject::Manifest | EventObject::Tag => "manifests",
            };
            let name = &event.repository;
            Some(json!(format!(
                "{scheme}://{host}/v2/{name}/{kind}/{digest}"
            )))
        }
        _ => None,
    };
    let size = event.size.map(|size| json!(size));
    let target = object([
        ("mediaType", text(&event.media_type)),
        ("size", size.clone()),
        ("length", size),
        ("digest", text(&event.digest)),
        ("repository", Some(json!(event.repository))),
        ("fromRepository", text(&event.from)),
        ("url", url),
        ("tag", tag.map(|tag| json!(tag))),
    ]);
    let id = match index {
        0 => event.id.clone(),
        // Each of them has its own.
        _ => format!("{}-{index}", event.id),
    };
    json!({
        "id": id,
        "timestamp": time(event),
        "action": event.action,
        "target": target,
        "request": object([
            ("id", Some(json!(event.id))),
            ("addr", text(&request.addr)),
            ("host", text(&request.host)),
            ("method", text(&request.method)),
            ("useragent", text(&request.agent)),
        ]),
        "actor": object([("name", text(&event.user))]),
        "source": { "addr": source },
    })
}
