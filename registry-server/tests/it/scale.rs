//! Registries with many tags and many repositories: everything is listed, in pages of any length, and found.
//!
//! So many that every bound of an answer is passed; `LONGSHORE_TEST_TAGS=100000` and `LONGSHORE_TEST_REPOSITORIES=10000` make it
//! as many as people have. How long that takes is measured by `./bench listing`.

use std::fs;
use std::path::{Path, PathBuf};

use registry_server::RunningServer;
use serde_json::{Value, json};

use crate::client::Client;
use crate::protocol::{pages, push_empty_image};

fn number(variable: &str, usual: usize) -> usize {
    let text = std::env::var(variable).ok();
    text.map_or(usual, |text| text.parse().unwrap())
}

fn repositories(root: &Path) -> PathBuf {
    root.join("docker/registry/v2/repositories")
}

fn names(list: &Value) -> Vec<&str> {
    let all = list.as_array().unwrap().iter();
    all.map(|one| one.as_str().unwrap()).collect()
}

fn told_names(told: &Value, list: &str, key: &str) -> Vec<String> {
    let all = told[list].as_array().unwrap().iter();
    all.map(|one| one[key].as_str().unwrap().to_owned())
        .collect()
}

/// Waits until everything was looked at once: the first question does not.
fn search(client: &mut Client, query: &str) -> Value {
    loop {
        let target = format!("/v2/_longshore/search?{query}");
        let told = client.get(&target).expect(200).json();
        if told["complete"] == true {
            return told;
        }
    }
}

#[test]
fn many_tags_are_listed_in_pages() {
    let count = number("LONGSHORE_TEST_TAGS", 1200);
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let digest = push_empty_image(&mut client, "a", "t0");
    let folder = repositories(root.path()).join("a/_manifests/tags");
    for number in 1..count {
        let current = folder.join(format!("t{number}/current"));
        fs::create_dir_all(&current).unwrap();
        fs::write(current.join("link"), digest.to_string()).unwrap();
    }
    // A folder of nothing is no tag.
    fs::create_dir_all(folder.join("t0-half/current")).unwrap();
    let mut expect: Vec<String> = (0..count).map(|number| format!("t{number}")).collect();
    expect.sort_unstable();

    let whole = client.get("/v2/a/tags/list").expect(200);
    assert_eq!(whole.header("link"), None);
    assert_eq!(names(&whole.json()["tags"]), expect);
    let (all, turned) = pages(&mut client, "/v2/a/tags/list?n=397", "tags");
    assert_eq!(names(&all), expect);
    assert_eq!(turned, count.div_ceil(397));
    let middle = &expect[count / 2];
    let page = client.get(&format!("/v2/a/tags/list?last={middle}&n=3"));
    let page = page.expect(200);
    assert_eq!(names(&page.json()["tags"]), expect[count / 2 + 1..][..3]);
    let end = client.get(&format!("/v2/a/tags/list?last={}&n=3", expect[count - 1]));
    assert_eq!(end.expect(200).json()["tags"], json!([]));

    // What the web page asks for.
    let table = |client: &mut Client, query: &str| {
        let target = format!("/v2/a/_longshore/tags?{query}");
        client.get(&target).expect(200).json()
    };
    let told = table(&mut client, "sort=name&n=100&offset=1000");
    assert_eq!(told["total"], count);
    assert_eq!(told_names(&told, "tags", "tag"), expect[1000..1100]);
    let told = table(&mut client, &format!("q=t{}", count - 1));
    assert_eq!(told["total"], 1);
    let told = search(&mut client, &format!("q=a:t{}", count - 1));
    assert_eq!(told["results"][0]["tags"], count);

    // One that is pushed, moved or removed is seen by the next question.
    push_empty_image(&mut client, "a", "u");
    let told = table(&mut client, "q=u");
    assert_eq!(told_names(&told, "tags", "tag"), ["u"]);
    client.delete("/v2/a/manifests/u").expect(202);
    assert_eq!(table(&mut client, "q=u")["total"], 0);
    assert_eq!(table(&mut client, "n=1")["total"], count);
}

#[test]
fn many_repositories_are_listed_and_found() {
    // More than the catalog tells at once.
    let count = number("LONGSHORE_TEST_REPOSITORIES", 1050);
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let digest = push_empty_image(&mut client, "r0/app", "t");
    let base = repositories(root.path());
    for number in 1..count {
        let manifests = base.join(format!("r{number}/app/_manifests"));
        let revision = manifests.join(format!("revisions/sha256/{}", digest.hex()));
        for folder in [revision, manifests.join("tags/t/current")] {
            fs::create_dir_all(&folder).unwrap();
            fs::write(folder.join("link"), digest.to_string()).unwrap();
        }
    }
    let mut expect: Vec<String> = (0..count).map(|number| format!("r{number}/app")).collect();
    expect.sort_by(|one, other| one.split('/').cmp(other.split('/')));
    for (query, each) in [("", 1000), ("?n=5000", 1000), ("?n=333", 333)] {
        let first = format!("/v2/_catalog{query}");
        let (all, turned) = pages(&mut client, &first, "repositories");
        assert_eq!(names(&all), expect, "{query}");
        assert_eq!(turned, count.div_ceil(each), "{query}");
    }
    let told = search(&mut client, "sort=name&n=100&offset=900");
    assert_eq!(told["total"], count);
    // Here names are ordered as texts.
    expect.sort_unstable();
    assert_eq!(told_names(&told, "results", "name"), expect[900..1000]);
    let last = format!("r{}", count - 1);
    let told = search(&mut client, &format!("q={last}/app"));
    assert_eq!(
        told_names(&told, "results", "name")[0],
        format!("{last}/app")
    );
    let told = client
        .get("/v1/search?q=app&n=100&page=2")
        .expect(200)
        .json();
    assert_eq!(told["num_results"], count);
    assert_eq!(told["results"].as_array().unwrap().len(), 100);
}
