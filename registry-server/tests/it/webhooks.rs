//! Endpoints that are told what happens: those that listen, and those that do anything else.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use futures_util::future::BoxFuture;
use registry_client::post::Endpoint;
use registry_client::{ClientError, Options};
use registry_server::events::event::EventAction;
use registry_server::events::{EventFormat, Message, Secret, SendError, SendEvent, Webhook};
use registry_server::storage::memory::MemoryStorage;
use registry_server::{Config, RunningServer, ServeError};
use ring::hmac;
use serde_json::Value;
use store::oci::Digest;

use crate::client::{Client, noise};
use crate::policy;
use crate::protocol::push_empty_image;
use crate::receiver::{Answer, Received, Receiver};

/// Sends by our client, as the binary does.
#[derive(Debug)]
struct Sender(registry_client::Client, Endpoint);

impl SendEvent for Sender {
    fn send(&self, message: Message) -> BoxFuture<'_, Result<(), SendError>> {
        Box::pin(async move {
            let sent = self.0.post(&self.1, &message.headers, message.body).await;
            sent.map_err(|error| match error {
                ClientError::Refused { refusal, .. } => SendError::Refused {
                    status: refusal.status.as_u16(),
                    retry_after: refusal.retry_after,
                },
                error => SendError::Unreachable {
                    reason: error.to_string(),
                },
            })
        })
    }
}

/// What sends to a URL.
pub(crate) fn sender(url: &str) -> Arc<dyn SendEvent> {
    let client = registry_client::Client::new(Options::default()).unwrap();
    let endpoint = Endpoint::new(url, Vec::new(), false, Vec::new()).unwrap();
    Arc::new(Sender(client, endpoint))
}

/// A webhook that is impatient.
fn hook(name: &str, url: &str) -> Webhook {
    let mut webhook = Webhook::new(name, sender(url));
    webhook.backoff = Duration::from_millis(2);
    webhook.backoff_max = Duration::from_millis(8);
    webhook.timeout = Duration::from_secs(60);
    webhook
}

fn all(mut webhook: Webhook) -> Webhook {
    use EventAction::{Delete, Mount, Pull, Push};
    webhook.actions = [Push, Pull, Delete, Mount].into();
    webhook.blobs = true;
    webhook
}

fn config(root: &Path, webhooks: Vec<Webhook>) -> Config {
    let mut config = Config::new(root);
    config.durable = false;
    config.metrics = true;
    config.webhooks = webhooks;
    config
}

fn in_memory(webhooks: Vec<Webhook>) -> RunningServer {
    let config = config(Path::new(""), webhooks);
    RunningServer::start_on(config, Arc::new(MemoryStorage::default())).unwrap()
}

/// Waits until a line of `/metrics` says so.
fn wait_for(server: &RunningServer, line: &str) {
    let mut client = Client::new(server.addr);
    loop {
        let text = client.get("/metrics").expect(200).text();
        if text
            .lines()
            .any(|found| found.strip_prefix("longshore_registry_") == Some(line))
        {
            return;
        }
        std::thread::yield_now();
    }
}

/// `TYPE SUBJECT` without the digest's digits.
fn shown(received: &Received) -> String {
    let event = received.json();
    let kind = event["type"].as_str().unwrap();
    let kind = kind.strip_prefix("longshore.registry.").unwrap();
    let subject = event["subject"].as_str().unwrap();
    let subject = subject.split(":sha").next().unwrap();
    format!("{kind} {}", subject.split("@sha").next().unwrap())
}

#[test]
fn everything_that_happens_is_told_in_order() {
    let receiver = Receiver::that_takes_all();
    let server = in_memory(vec![all(hook("x", &receiver.url()))]);
    let mut client = Client::new(server.addr);
    let digest = push_empty_image(&mut client, "team/app", "v1");
    client.get("/v2/team/app/manifests/v1").expect(200);
    client.head_of("/v2/team/app/manifests/v1").expect(200);
    client.get("/v2/team/app/manifests/v2").expect(404);
    let blob = Digest::of(b"{}");
    let target = format!("/v2/team/app/blobs/{blob}");
    client.get(&target).expect(200);
    client
        .send("GET", &target, &[("Range", "bytes=0-0")], b"")
        .expect(206);
    client
        .send("GET", &target, &[("Range", "bytes=1-1")], b"")
        .expect(206);
    let mount = format!("/v2/team/other/blobs/uploads/?mount={blob}&from=team/app");
    client.post(&mount).expect(201);
    client.delete("/v2/team/app/manifests/v1").expect(202);
    client
        .delete(&format!("/v2/team/app/manifests/{digest}"))
        .expect(202);
    client.delete(&target).expect(202);
    client.delete(&target).expect(404);
    let told: Vec<Received> = (0..9).map(|_| receiver.next()).collect();
    let shown: Vec<String> = told.iter().map(shown).collect();
    assert_eq!(
        shown,
        [
            "blob.push team/app",
            "manifest.push team/app:v1",
            "manifest.pull team/app:v1",
            "blob.pull team/app",
            "blob.pull team/app",
            "blob.mount team/other",
            "tag.delete team/app:v1",
            "manifest.delete team/app",
            "blob.delete team/app",
        ]
    );
    let push = &told[1];
    assert_eq!(
        push.header("content-type"),
        Some("application/cloudevents+json; charset=utf-8")
    );
    assert_eq!(push.header("webhook-signature"), None);
    let event = push.json();
    assert_eq!(event["specversion"], "1.0");
    assert_eq!(push.header("webhook-id"), event["id"].as_str());
    let data = &event["data"];
    assert_eq!(data["digest"], digest.to_string());
    assert_eq!(data["tags"], serde_json::json!(["v1"]));
    assert_eq!(
        data["mediaType"],
        "application/vnd.oci.image.manifest.v1+json"
    );
    assert_eq!(
        (&data["via"], &data["addr"]),
        (&"nothing".into(), &"127.0.0.1".into())
    );
    let pulled = told[2].json()["data"].clone();
    assert_eq!(
        (&pulled["size"], &pulled["digest"]),
        (&data["size"], &data["digest"])
    );
    assert_eq!(told[3].json()["data"]["size"], 2);
    assert_eq!(told[4].json()["data"]["size"], 2);
    assert_eq!(told[5].json()["data"]["from"], "team/app");
    let ids: std::collections::BTreeSet<String> = told
        .iter()
        .map(|one| one.json()["id"].to_string())
        .collect();
    assert_eq!(ids.len(), told.len());
    wait_for(
        &server,
        "webhook_events_total{webhook=\"x\",result=\"delivered\"} 9",
    );
    wait_for(&server, "webhook_waiting{webhook=\"x\"} 0");
}

#[test]
fn endpoints_are_told_only_what_they_want() {
    let root = tempfile::tempdir().unwrap();
    let receiver = Receiver::that_takes_all();
    let mut one = hook("one", &receiver.url());
    one.repositories = vec!["team/*".to_owned()];
    let mut config = policy::config(&root);
    config.webhooks = vec![one];
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let auth = policy::basic("ann", "ann");
    let headers = [("Authorization", auth.as_str())];
    let manifest = br#"{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[]}"#;
    for name in ["public/a", "team/a"] {
        let target = format!("/v2/{name}/manifests/v1");
        client
            .send(
                "PUT",
                &target,
                &[("Content-Type", "application/vnd.oci.image.index.v1+json")],
                manifest,
            )
            .refused(401, "UNAUTHORIZED");
    }
    let put = client.send("PUT", "/v2/team/a/manifests/v1", &headers, manifest);
    assert_eq!(put.status, 201, "{}", put.text());
    let told = receiver.next().json();
    assert_eq!(told["data"]["repository"], "team/a");
    assert_eq!(
        (&told["data"]["user"], &told["data"]["via"]),
        (&"ann".into(), &"password".into())
    );
    client
        .send("GET", "/v2/team/a/manifests/v1", &headers, b"")
        .expect(200);
    client.send("DELETE", "/v2/team/a/manifests/v1", &headers, b"");
    assert!(
        receiver
            .rest()
            .iter()
            .all(|one| one.json()["data"]["action"] == "delete")
    );
}

#[test]
fn receivers_of_distribution_read_its_envelope() {
    let receiver = Receiver::that_takes_all();
    let mut webhook = all(hook("docker", &receiver.url()));
    webhook.format = EventFormat::Docker;
    webhook.source = "registry.example".to_owned();
    let server = in_memory(vec![webhook]);
    let mut client = Client::new(server.addr);
    let config = client.push_blob("a/b", b"{}");
    let blob = receiver.next();
    assert_eq!(
        blob.header("content-type"),
        Some("application/vnd.docker.distribution.events.v1+json")
    );
    let event = blob.json()["events"][0].clone();
    assert_eq!(event["action"], "push");
    assert_eq!(event["target"]["mediaType"], "application/octet-stream");
    assert_eq!(event["target"]["size"], 2);
    let manifest = crate::protocol::manifest_of(&config, &[]);
    let digest = Digest::of(&manifest);
    let target = format!("/v2/a/b/manifests/{digest}?tag=v1&tag=v2");
    let kind = "application/vnd.oci.image.manifest.v1+json";
    let headers = [("Content-Type", kind), ("User-Agent", "a test")];
    client.send("PUT", &target, &headers, &manifest).expect(201);
    let told = receiver.next().json();
    let events = told["events"].as_array().unwrap();
    let tags: Vec<&Value> = events.iter().map(|event| &event["target"]["tag"]).collect();
    assert_eq!(tags, ["v1", "v2"]);
    assert_ne!(events[0]["id"], events[1]["id"]);
    let event = &events[0];
    assert_eq!(event["target"]["digest"], digest.to_string());
    assert_eq!(event["target"]["length"], manifest.len());
    assert_eq!(event["target"]["repository"], "a/b");
    let url = event["target"]["url"].as_str().unwrap();
    assert!(
        url.starts_with("http://") && url.ends_with(&format!("/v2/a/b/manifests/{digest}")),
        "{url}"
    );
    assert_eq!(event["request"]["method"], "PUT");
    assert_eq!(event["request"]["useragent"], "a test");
    assert_eq!(event["source"]["addr"], "registry.example");
    assert!(event["timestamp"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn events_are_signed_in_both_ways() {
    let receiver = Receiver::that_takes_all();
    let key = b"0123456789abcdef";
    let base64 = base64::engine::general_purpose::STANDARD;
    let with = |name: &str, secret: String| {
        let mut webhook = hook(name, &receiver.url());
        webhook.secret = Some(Secret::new(secret));
        webhook
    };
    assert_eq!(format!("{:?}", Secret::new("hidden")), "Secret");
    let server = in_memory(vec![
        with("plain", "0123456789abcdef".to_owned()),
        with("encoded", format!("whsec_{}", base64.encode(key))),
    ]);
    push_empty_image(&mut Client::new(server.addr), "a/b", "v1");
    for _ in 0..2 {
        let told = receiver.next();
        let key = hmac::Key::new(hmac::HMAC_SHA256, key);
        let signed = told.header("x-hub-signature-256").unwrap();
        let signed = signed.strip_prefix("sha256=").unwrap();
        let bytes: Vec<u8> = (0..signed.len() / 2)
            .map(|at| u8::from_str_radix(&signed[2 * at..2 * at + 2], 16).unwrap())
            .collect();
        hmac::verify(&key, &told.body, &bytes).unwrap();
        let mut content = format!(
            "{}.{}.",
            told.header("webhook-id").unwrap(),
            told.header("webhook-timestamp").unwrap()
        )
        .into_bytes();
        content.extend(&told.body);
        let signed = told.header("webhook-signature").unwrap();
        let signed = base64.decode(signed.strip_prefix("v1,").unwrap()).unwrap();
        hmac::verify(&key, &content, &signed).unwrap();
    }
}

#[test]
fn what_was_not_taken_is_sent_again_in_order_with_the_same_id() {
    // Every way to fail; a redirect is one, and leads nowhere.
    let receiver = Receiver::start(|number, _| match number {
        0 => Answer::Status(500),
        1 => Answer::Cut,
        2 => Answer::With(307, "location: /elsewhere"),
        3 => Answer::With(429, "retry-after: 0"),
        4 => Answer::Status(404),
        6 => Answer::Flood,
        _ => Answer::Status(200),
    });
    let server = in_memory(vec![hook("x", &receiver.url())]);
    let mut client = Client::new(server.addr);
    for tag in ["v1", "v2", "v3"] {
        push_empty_image(&mut client, "a/b", tag);
    }
    let told: Vec<Received> = (0..8).map(|_| receiver.next()).collect();
    let ids: Vec<Option<&str>> = told.iter().map(|one| one.header("webhook-id")).collect();
    assert!(ids[..6].iter().all(|id| *id == ids[0]), "{ids:?}");
    assert!(told.iter().all(|one| one.path == "/hook"));
    let tags: Vec<String> = told.iter().map(shown).collect();
    assert!(tags[..6].iter().all(|one| one.ends_with(":v1")), "{tags:?}");
    // What answers 200 has taken it, whatever else it says.
    assert!(
        tags[6].ends_with(":v2") && tags[7].ends_with(":v3"),
        "{tags:?}"
    );
    wait_for(&server, "webhook_failed_attempts_total{webhook=\"x\"} 5");
    wait_for(
        &server,
        "webhook_events_total{webhook=\"x\",result=\"delivered\"} 3",
    );
}

#[test]
fn what_is_never_taken_is_given_up() {
    // One event is not liked; the next one meets an endpoint that is not there for longer than it is waited for.
    let receiver = Receiver::start(|number, _| match number {
        0 => Answer::Status(422),
        1 => Answer::Status(200),
        _ => Answer::Status(503),
    });
    let mut webhook = hook("x", &receiver.url());
    webhook.give_up = Duration::from_secs(3600);
    let mut impatient = webhook.clone();
    impatient.give_up = Duration::ZERO;
    let server = in_memory(vec![webhook]);
    let mut client = Client::new(server.addr);
    for tag in ["v1", "v2", "v3"] {
        push_empty_image(&mut client, "a/b", tag);
    }
    wait_for(
        &server,
        "webhook_events_total{webhook=\"x\",result=\"given_up\"} 1",
    );
    wait_for(
        &server,
        "webhook_events_total{webhook=\"x\",result=\"delivered\"} 1",
    );
    // Another configuration is taken up at once, whatever it was waited for.
    server
        .reload(config(Path::new(""), vec![impatient]))
        .unwrap();
    wait_for(
        &server,
        "webhook_events_total{webhook=\"x\",result=\"given_up\"} 2",
    );
    wait_for(&server, "webhook_waiting{webhook=\"x\"} 0");
}

#[test]
fn an_endpoint_that_hangs_delays_nobody() {
    let hangs = Receiver::start(|_, _| Answer::Never);
    let listens = Receiver::that_takes_all();
    let mut silent = hook("silent", &hangs.url());
    silent.waiting_max = 5;
    let server = in_memory(vec![silent, hook("x", &listens.url())]);
    let mut client = Client::new(server.addr);
    hangs_after(&mut client, &hangs);
    for number in 0..20 {
        push_empty_image(&mut client, "a/b", &format!("t{number}"));
        let told = listens.next();
        let tag = if number == 0 {
            "first".to_owned()
        } else {
            format!("t{}", number - 1)
        };
        assert!(
            shown(&told).ends_with(&format!(":{tag}")),
            "{}",
            shown(&told)
        );
    }
    // Its queue is full; what does not fit is told.
    wait_for(&server, "webhook_waiting{webhook=\"silent\"} 5");
    wait_for(
        &server,
        "webhook_events_total{webhook=\"silent\",result=\"left_out\"} 16",
    );
    assert!(hangs.rest().is_empty(), "one after the other");
    // In the end it is there no more.
    server
        .reload(config(Path::new(""), vec![hook("x", &listens.url())]))
        .unwrap();
    push_empty_image(&mut client, "a/b", "last");
    let told: Vec<String> = (0..2).map(|_| shown(&listens.next())).collect();
    assert_eq!(told[1], "manifest.push a/b:last");
    let text = client.get("/metrics").expect(200).text();
    assert!(!text.contains("silent"), "{text}");
}

/// The first event is on its way, and not answered.
fn hangs_after(client: &mut Client, hangs: &Receiver) {
    push_empty_image(client, "a/b", "first");
    hangs.next();
}

#[test]
fn a_timeout_ends_an_attempt() {
    let receiver = Receiver::start(|number, _| match number {
        0 | 1 => Answer::Never,
        _ => Answer::Status(200),
    });
    let mut webhook = hook("x", &receiver.url());
    webhook.timeout = Duration::from_millis(20);
    let server = in_memory(vec![webhook]);
    push_empty_image(&mut Client::new(server.addr), "a/b", "v1");
    let ids: Vec<String> = (0..3)
        .map(|_| receiver.next().header("webhook-id").unwrap().to_owned())
        .collect();
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn what_waits_in_a_folder_is_sent_by_the_next_server() {
    let root = tempfile::tempdir().unwrap();
    let down = Receiver::start(|_, _| Answer::Status(500));
    let mut webhook = hook("x", &down.url());
    webhook.backoff = Duration::from_secs(3600);
    webhook.backoff_max = webhook.backoff;
    let server = RunningServer::start_with(config(root.path(), vec![webhook])).unwrap();
    let mut client = Client::new(server.addr);
    push_empty_image(&mut client, "a/b", "v1");
    push_empty_image(&mut client, "a/b", "v2");
    let first = down.next();
    drop(server);
    let up = Receiver::that_takes_all();
    let server =
        RunningServer::start_with(config(root.path(), vec![hook("x", &up.url())])).unwrap();
    let told = [up.next(), up.next()];
    assert_eq!(told[0].header("webhook-id"), first.header("webhook-id"));
    assert_eq!(shown(&told[1]), "manifest.push a/b:v2");
    drop(server);
    let left = root.path().join("docker/registry/v2/_webhooks/x");
    assert_eq!(std::fs::read_dir(left).unwrap().count(), 0);
}

/// Where nothing outlives the process, it tries once more before it ends.
#[test]
fn what_waits_in_memory_is_sent_before_the_end() {
    let receiver = Receiver::start(|number, _| match number {
        0 => Answer::Status(500),
        _ => Answer::Status(200),
    });
    let mut webhook = hook("x", &receiver.url());
    webhook.backoff = Duration::from_secs(3600);
    webhook.backoff_max = webhook.backoff;
    let server = in_memory(vec![webhook]);
    let mut client = Client::new(server.addr);
    push_empty_image(&mut client, "a/b", "v1");
    push_empty_image(&mut client, "a/b", "v2");
    receiver.next();
    drop((client, server));
    let told: Vec<String> = receiver.rest().iter().map(shown).collect();
    assert_eq!(told, ["manifest.push a/b:v1", "manifest.push a/b:v2"]);
}

#[test]
fn webhooks_that_cannot_be_are_refused() {
    let check = |names: &[&str], expect: &str| {
        let webhooks = names.iter().map(|name| hook(name, "http://127.0.0.1:1/"));
        let config = config(Path::new(""), webhooks.collect());
        let error = RunningServer::start_on(config, Arc::new(MemoryStorage::default()));
        let error = error.unwrap_err();
        assert!(matches!(error, ServeError::Events(_)));
        assert_eq!(error.to_string(), expect);
    };
    check(&["a", "a"], "`a` is the name of two webhooks");
    for name in ["", "../x", ".", "a b"] {
        check(
            &[name],
            &format!(
                "`{name}` cannot be a webhook's name: give letters, digits, `.`, `_` and `-`, at most 64"
            ),
        );
    }
}

/// More than fits into one file of a queue, from many clients.
#[test]
fn many_events_at_once_are_all_told_once() {
    let root = tempfile::tempdir().unwrap();
    let receiver = Receiver::that_takes_all();
    let config = config(root.path(), vec![all(hook("x", &receiver.url()))]);
    let server = RunningServer::start_with(config).unwrap();
    let (threads, each) = (4, 60);
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let server = &server;
            scope.spawn(move || {
                let mut client = Client::new(server.addr);
                for number in 0..each {
                    client.push_blob(&format!("r{thread}"), &noise(10, thread * 1000 + number));
                }
            });
        }
    });
    let count = usize::try_from(threads * each).unwrap();
    let told: std::collections::BTreeSet<String> = (0..count)
        .map(|_| receiver.next().json()["data"]["digest"].to_string())
        .collect();
    assert_eq!(told.len(), count);
}
