//! Webhooks through the binary: its configuration, `kill -9`, another configuration while it runs.

use std::path::PathBuf;

use crate::receiver::{Answer, Receiver};
use crate::support::{Place, Server};

/// A configuration with one webhook, and where it is.
fn write(place: &Place, url: &str, more: &str) -> PathBuf {
    std::fs::write(place.path("secret"), "hidden\n").unwrap();
    let file = place.path("registry.toml");
    let text = format!("[[webhook]]\nname = \"ci\"\nurl = \"{url}\"\n{more}");
    std::fs::write(&file, text).unwrap();
    file
}

/// Puts an index of nothing under a tag.
fn push(place: &Place, host: &str, tag: &str) {
    let index = place.path("index.json");
    let kind = "application/vnd.oci.image.index.v1+json";
    let text = format!(r#"{{"schemaVersion":2,"mediaType":"{kind}","manifests":[]}}"#);
    std::fs::write(&index, text).unwrap();
    let body = format!("@{}", index.display());
    let header = format!("Content-Type: {kind}");
    let url = format!("http://{host}/v2/a/b/manifests/{tag}");
    crate::support::tool(
        "curl",
        &[
            "-sSf",
            "-X",
            "PUT",
            "-H",
            &header,
            "--data-binary",
            &body,
            &url,
        ],
    );
}

fn tag(body: &serde_json::Value) -> &str {
    body["data"]["tags"][0].as_str().unwrap()
}

#[test]
fn events_survive_kill_9_and_another_configuration() {
    let place = Place::new();
    let fails = Receiver::start(|_, _| Answer::Status(500));
    let slow = "backoff = \"1h\"\nbackoff_max = \"1h\"\nsecret_file = \"secret\"\n";
    let file = write(&place, &fails.url(), slow);
    let flags = ["--config", file.to_str().unwrap()];
    let root = place.path("registry");
    let server = Server::registry_with(&root, &flags);
    push(&place, &server.host, "v1");
    push(&place, &server.host, "v2");
    let first = fails.next();
    assert!(first.header("x-hub-signature-256").is_some());
    // It is killed, not stopped.
    drop(server);
    let server = Server::registry_with(&root, &flags);
    let again = fails.next();
    assert_eq!(again.header("webhook-id"), first.header("webhook-id"));
    // Another endpoint in the same file is taken up while the server waits to try again.
    let takes = Receiver::that_takes_all();
    write(&place, &takes.url(), "token_file = \"secret\"\n");
    let told = [takes.next(), takes.next()];
    assert_eq!(told[0].header("webhook-id"), first.header("webhook-id"));
    assert_eq!(told[0].header("authorization"), Some("Bearer hidden"));
    assert_eq!(told[0].header("x-hub-signature-256"), None);
    assert_eq!(tag(&told[0].json()), "v1");
    assert_eq!(tag(&told[1].json()), "v2");
    push(&place, &server.host, "v3");
    assert_eq!(tag(&takes.next().json()), "v3");
}

#[test]
fn wrong_webhooks_are_told() {
    let place = Place::new();
    let check = |url: &str, more: &str, code: i32, expect: &str| {
        let file = write(&place, url, more);
        let root = place.path("registry");
        let arguments = ["registry", "serve", "--config", file.to_str().unwrap()];
        let rest = ["--addr", "127.0.0.1:0", "--root", root.to_str().unwrap()];
        place
            .run(arguments.into_iter().chain(rest))
            .fails(code, expect);
    };
    check("ftp://x.example/", "", 2, "expected http or https");
    check(
        "http://x.example/",
        "token_file = \"secret\"\n",
        2,
        "its headers would cross the network in the clear",
    );
    check(
        "https://x.example/",
        "secret_file = \"absent\"\n",
        2,
        "cannot read the secret in `",
    );
}
