//! `registry gc`, `verify` and `stats`, beside a server on the same folder.

use std::path::Path;

use serde_json::Value;

use crate::support::{Place, Server};

/// What a command prints with `--json`.
fn json(place: &Place, folder: &Path, words: &[&str]) -> Value {
    let mut all = vec!["registry", words[0], "--json", "--root"];
    all.push(folder.to_str().unwrap());
    all.extend(&words[1..]);
    serde_json::from_str(&place.run(all).ok()).unwrap()
}

#[test]
fn garbage_is_collected_beside_the_server() {
    let place = Place::with_busybox();
    let folder = place.path("registry");
    let registry = Server::registry(&folder);
    let mut names = Vec::new();
    for tag in ["pr-1", "pr-2"] {
        let name = format!("{}/team/app:{tag}", registry.host);
        let dockerfile = format!("FROM busybox\nLABEL tag={tag}\n");
        let context = place.context(tag, &[("Dockerfile", dockerfile.as_str())]);
        place.build(&name, &context);
        place.run(["push", &name]).ok();
        names.push(name);
    }
    let before = json(&place, &folder, &["stats"]);
    assert_eq!(
        (&before["tags"], &before["manifests"]),
        (&2.into(), &2.into())
    );
    let rule = ["gc", "--untagged", "--retain", "tag=pr-*,last=1", "--grace"];
    // Both are young.
    let young = json(&place, &folder, &[&rule[..], &["1h"]].concat());
    assert_eq!(young["manifests"], 0);
    let dry = json(&place, &folder, &[&rule[..], &["0", "--dry-run"]].concat());
    let done = json(&place, &folder, &[&rule[..], &["0"]].concat());
    // The tag went with the first, whatever was young.
    assert_eq!((&young["tags"], &dry["tags"]), (&1.into(), &0.into()));
    assert_eq!(dry, done);
    // Its manifest and configuration; the layer is the other's, too.
    assert_eq!((&done["manifests"], &done["blobs"]), (&1.into(), &2.into()));
    let fresh = Place::new();
    fresh.run(["pull", &names[1]]).ok();
    fresh.run(["pull", &names[0]]).fails(4, "pr-1");

    let root = folder.to_str().unwrap();
    let good = json(&place, &folder, &["verify"]);
    assert_eq!(good["damaged"], Value::Array(Vec::new()));
    let blobs = folder.join("docker/registry/v2/blobs/sha256");
    // Prefixes of what was collected may be left, with nothing in them.
    let prefixes = std::fs::read_dir(blobs).unwrap();
    let mut left = prefixes.flat_map(|prefix| std::fs::read_dir(prefix.unwrap().path()).unwrap());
    let blob = left.next().unwrap().unwrap();
    std::fs::write(blob.path().join("data"), "rot").unwrap();
    let digest = blob.file_name().into_string().unwrap();
    place
        .run(["registry", "verify", "--root", root, "--quarantine"])
        .fails(1, "");
    let good = json(&place, &folder, &["verify"]);
    assert_eq!(good["damaged"], Value::Array(Vec::new()));
    assert!(
        folder
            .join("docker/registry/v2/_quarantine/sha256")
            .join(digest)
            .is_file()
    );
    place
        .run(["registry", "gc", "--root", &format!("{root}/nowhere")])
        .fails(1, "there is no registry in");
    place
        .run(["registry", "gc", "--root", root, "--retain", "tag=x"])
        .fails(2, "the rule keeps nothing");
}

#[test]
fn requests_are_logged_as_lines_of_json() {
    use std::io::{Read as _, Write as _};

    let place = Place::new();
    let file = place.path("access.log");
    let flags = ["--metrics", "--access-log", file.to_str().unwrap()];
    let registry = Server::registry_with(&place.path("registry"), &flags);
    let mut stream = std::net::TcpStream::connect(&registry.host).unwrap();
    let request =
        "GET /metrics?secret HTTP/1.1\r\nHost: x\r\nConnection: close\r\nUser-Agent: me\r\n\r\n";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(
        answer.contains("longshore_registry_disk_free_bytes "),
        "{answer}"
    );
    // Another thread writes it.
    let line = loop {
        let text = std::fs::read_to_string(&file).unwrap();
        match text.split_once('\n') {
            Some((line, _)) => break line.to_owned(),
            None => std::thread::yield_now(),
        }
    };
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(line["path"], "/metrics");
    assert_eq!(
        (&line["route"], &line["status"]),
        (&"observing".into(), &200.into())
    );
    assert_eq!(
        (&line["agent"], &line["complete"]),
        (&"me".into(), &true.into())
    );
    assert_eq!(line["peer"], "127.0.0.1");
}
