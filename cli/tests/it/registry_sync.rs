//! Mirroring through the binary: from longshore's own registry and from CNCF distribution's, by hand and by itself.

use std::path::Path;

use serde_json::Value;

use crate::receiver::Receiver;
use crate::support::{Place, Ran, Server, tool};

/// A source with images: an index for two platforms, tags, and what refers to them.
pub(crate) fn fill(place: &Place, host: &str) {
    for (platform, tag) in [("linux/amd64", "a"), ("linux/arm64", "b")] {
        let name = format!("{host}/team/app:{tag}");
        let files = [("Dockerfile", "FROM scratch\nCOPY . /\n"), ("x", tag)];
        let context = place.context(tag, &files);
        let context = context.to_str().unwrap();
        place
            .run(["build", "-q", "--platform", platform, "-t", &name, context])
            .ok();
        place.run(["push", "-q", &name]).ok();
    }
    let (a, b) = (format!("{host}/team/app:a"), format!("{host}/team/app:b"));
    let all = format!("{host}/team/app:v1.0");
    place.run(["remote", "index", "create", &all, &a, &b]).ok();
    for tag in ["v1.1", "v2.0"] {
        place.run(["remote", "tag", &a, tag]).ok();
    }
    let sbom = place.path("sbom.json");
    std::fs::write(&sbom, "{}").unwrap();
    for name in [&a, &all] {
        let attach = [
            "remote",
            "attach",
            "--artifact-type",
            "application/x-sbom",
            name,
        ];
        place
            .run(attach.into_iter().chain([sbom.to_str().unwrap()]))
            .ok();
    }
    // As cosign 2 does.
    let digest = place.run(["remote", "digest", &all]).ok();
    let signature = format!("{}.sig", digest.trim().replacen(':', "-", 1));
    place.run(["remote", "tag", &b, &signature]).ok();
}

/// A configuration with one sync, named `s`.
fn configure(place: &Place, source: &str, more: &str) -> String {
    let file = place.path("registry.toml");
    let text =
        format!("[[sync]]\nname = \"s\"\nurl = \"http://{source}\"\nprefix = \"hub\"\n{more}\n");
    std::fs::write(&file, text).unwrap();
    file.to_str().unwrap().to_owned()
}

fn sync(place: &Place, config: &str, root: &Path, more: &[&str]) -> Ran {
    let root = root.to_str().unwrap();
    let words = ["registry", "sync", "--config", config, "--root", root];
    place.run(words.iter().chain(more))
}

/// What is told in JSON of each tag: `STEP TAG`; and the report.
fn told(ran: &Ran) -> (Vec<String>, Value) {
    let lines: Vec<Value> = ran
        .stdout
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let (report, tags) = lines.split_last().unwrap();
    let shown = |line: &Value| {
        let text = |key: &str| line[key].as_str().unwrap().to_owned();
        format!("{} {}", text("step"), text("tag"))
    };
    (tags.iter().map(shown).collect(), report["report"].clone())
}

fn tags(host: &str) -> Vec<String> {
    let url = format!("http://{host}/v2/hub/team/app/tags/list");
    let listed: Value = serde_json::from_str(&tool("curl", &["-sS", &url])).unwrap();
    let tags = listed["tags"].as_array().cloned().unwrap_or_default();
    tags.iter()
        .map(|tag| tag.as_str().unwrap().to_owned())
        .collect()
}

fn referrers(host: &str, place: &Place, tag: &str) -> usize {
    let name = format!("{host}/hub/team/app");
    let digest = place
        .run(["remote", "digest", &format!("{name}:{tag}")])
        .ok();
    let url = format!("http://{host}/v2/hub/team/app/referrers/{}", digest.trim());
    let listed: Value = serde_json::from_str(&tool("curl", &["-sSf", &url])).unwrap();
    listed["manifests"].as_array().unwrap().len()
}

fn mirrors_from(source: &Server, place: &Place) {
    fill(place, &source.host);
    let root = place.path("mirror");
    let all = "repositories = ['/team/.+/']\ntags = [\"a\", '/v[0-9.]+/']\n";
    let config = configure(place, &source.host, all);
    let dry = sync(place, &config, &root, &["--dry-run", "--json"]);
    dry.ok();
    let (steps, report) = told(&dry);
    assert!(steps.contains(&"new v1.0".to_owned()), "{steps:?}");
    assert_eq!(
        (&report["manifests"], &report["blobs"]),
        (&0.into(), &0.into())
    );
    let first = sync(place, &config, &root, &["--json"]);
    first.ok();
    let (steps, report) = told(&first);
    assert_eq!(steps[..4], ["new a", "new v1.0", "new v1.1", "new v2.0"]);
    assert!(steps[4].ends_with(".sig"), "{steps:?}");
    assert!(report["blobs"].as_u64().unwrap() > 3, "{report}");
    assert_eq!(report["failures"], Value::Array(Vec::new()));
    // The second time there is nothing to do, and less to ask.
    let second = sync(place, &config, &root, &["--json", "s"]);
    second.ok();
    let (steps, report) = told(&second);
    assert!(
        steps.iter().all(|step| step.starts_with("same ")),
        "{steps:?}"
    );
    assert_eq!(
        (&report["manifests"], &report["blobs"]),
        (&0.into(), &0.into())
    );
    let mirror = Server::registry(&root);
    let here = tags(&mirror.host);
    assert_eq!(here.len(), 5, "{here:?}");
    assert_eq!(referrers(&mirror.host, place, "a"), 1);
    assert_eq!(referrers(&mirror.host, place, "v1.0"), 1);
    // All of it can be pulled, byte by byte.
    for tag in ["a", "v1.0"] {
        let (there, here) = (
            format!("{}/team/app:{tag}", source.host),
            format!("{}/hub/team/app:{tag}", mirror.host),
        );
        let out = place.path(&format!("out-{tag}"));
        let out = format!("oci:{}:x", out.display());
        place
            .run(["remote", "copy", "--referrers", &here, &out])
            .ok();
        let digests = [&there, &here].map(|name| place.run(["remote", "digest", name]).ok());
        assert_eq!(digests[0], digests[1]);
    }
}

#[test]
fn mirrors_longshore() {
    let place = Place::new();
    let source = Server::registry(&place.path("source"));
    mirrors_from(&source, &place);
}

/// It has no list of referrers: they are under a tag, which the client reads and writes.
#[test]
fn mirrors_distribution() {
    let place = Place::new();
    let source = Server::docker_registry(&place.path("source"));
    mirrors_from(&source, &place);
}

#[test]
fn chooses_platforms_and_versions_and_deletes_what_vanished() {
    let place = Place::new();
    let source = Server::registry(&place.path("source"));
    fill(&place, &source.host);
    let root = place.path("mirror");
    let chosen = "repositories = [\"team/app\"]\nversions = \">=1 <2\"\nplatforms = [\"linux/arm64\"]\nreferrers = false\ndelete = true\n";
    let config = configure(&place, &source.host, chosen);
    let ran = sync(&place, &config, &root, &[]);
    // v1.1 is an image for amd64 alone: there is nothing to leave out.
    ran.ok();
    assert!(
        ran.stdout.contains("new      hub/team/app:v1.0 sha256:"),
        "{ran}"
    );
    let mirror = Server::registry(&root);
    assert_eq!(tags(&mirror.host), ["v1.0", "v1.1"]);
    let url = format!("http://{}/v2/hub/team/app/manifests/v1.0", mirror.host);
    let index: Value = serde_json::from_str(&tool("curl", &["-sSf", &url])).unwrap();
    let entries = index["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 1, "{index}");
    assert_eq!(entries[0]["platform"]["architecture"], "arm64");
    // It is the same the next time, though the digest there is another one.
    let again = sync(&place, &config, &root, &["--json"]);
    again.ok();
    assert_eq!(told(&again).0, ["same v1.0", "same v1.1"]);
    place
        .run(["remote", "rm", &format!("{}/team/app:v1.1", source.host)])
        .ok();
    let dry = sync(&place, &config, &root, &["--json", "--dry-run"]);
    dry.ok();
    assert_eq!(told(&dry).0, ["same v1.0", "deleted v1.1"]);
    assert_eq!(tags(&mirror.host), ["v1.0", "v1.1"]);
    sync(&place, &config, &root, &[]).ok();
    assert_eq!(tags(&mirror.host), ["v1.0"]);
}

#[test]
fn what_fails_keeps_nothing_else_from_being_done() {
    let place = Place::new();
    let source = Server::registry(&place.path("source"));
    fill(&place, &source.host);
    let root = place.path("mirror");
    let audit = place.path("audit.jsonl");
    let more = format!(
        "repositories = [\"nowhere\", \"team/app\"]\ntags = [\"a\", \"v*\"]\n[[immutable]]\ntags = [\"v1.1\"]\n[audit]\nfile = \"{}\"\n",
        audit.display()
    );
    let config = configure(&place, &source.host, &more);
    let ran = sync(&place, &config, &root, &["--json"]);
    ran.fails(4, "nowhere: the source: it has none");
    assert_eq!(told(&ran).1["set"], 5);
    // One that is immutable stays, and is told.
    let (b, name) = (
        format!("{}/team/app:b", source.host),
        format!("{}/team/app", source.host),
    );
    place.run(["remote", "tag", &b, "v1.1"]).ok();
    place.run(["remote", "tag", &b, "a"]).ok();
    let ran = sync(&place, &config, &root, &["--json"]);
    ran.fails(4, "s: team/app:v1.1: ");
    let (steps, report) = told(&ran);
    assert_eq!(steps[..3], ["changed a", "same v1.0", "same v2.0"]);
    assert_eq!(report["failures"].as_array().unwrap().len(), 2, "{name}");
    let lines = std::fs::read_to_string(&audit).unwrap();
    let puts: Vec<Value> = lines
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|line: &Value| line["action"] == "put-manifest")
        .collect();
    assert!(
        puts.iter()
            .all(|line| line["user"] == "sync:s" && line["via"] == "sync")
    );
    assert!(puts.iter().any(|line| line["tags"][0] == "a"));
    sync(&place, &config, &root, &["other"]).fails(2, "there is no sync `other`");
}

/// The server does it by itself, tells of it, and goes on after it was killed in the middle.
#[test]
fn servers_mirror_by_themselves_and_go_on_after_kill_9() {
    let place = Place::new();
    let source = Server::registry(&place.path("source"));
    fill(&place, &source.host);
    let root = place.path("mirror");
    let receiver = Receiver::that_takes_all();
    let more = format!(
        "repositories = [\"team/app\"]\nevery = \"100ms\"\ntransfers = 1\n[[webhook]]\nname = \"w\"\nurl = \"{}\"\nblobs = true\n",
        receiver.url()
    );
    let config = configure(&place, &source.host, &more);
    let flags = ["--config", config.as_str(), "--metrics"];
    // Killed as soon as the first blob is there.
    let server = Server::registry_with(&root, &flags);
    let first = receiver.next().json();
    assert_eq!(first["type"], "longshore.registry.blob.push");
    assert_eq!(first["data"]["user"], "sync:s");
    drop(server);
    let server = Server::registry_with(&root, &flags);
    loop {
        let event = receiver.next().json();
        let tag = event["data"]["tags"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        if tag == "v2.0" {
            break;
        }
    }
    assert!(tags(&server.host).contains(&"v1.0".to_owned()));
    // What is pushed there later comes, too.
    let (a, new) = (format!("{}/team/app:a", source.host), "v3.0");
    place.run(["remote", "tag", &a, new]).ok();
    loop {
        let event = receiver.next().json();
        if event["data"]["tags"][0] == new {
            break;
        }
    }
    let metrics = tool(
        "curl",
        &["-sSf", &format!("http://{}/metrics", server.host)],
    );
    let runs = metrics.lines().find_map(|line| {
        line.strip_prefix("longshore_registry_sync_runs_total{sync=\"s\",result=\"ok\"} ")
    });
    assert!(runs.unwrap().parse::<u64>().unwrap() > 0, "{metrics}");
}
