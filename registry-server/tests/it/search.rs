//! Searching: what is found, by whom, and that docker's and podman's ways lead to the same.

use std::fs::File;
use std::time::{Duration, UNIX_EPOCH};

use registry_server::RunningServer;
use serde_json::{Value, json};
use store::oci::{Digest, MediaType};

use crate::client::Client;
use crate::policy::{basic, config, rules, send};
use crate::protocol::{manifest_of, on_all, push_empty_image};
use crate::tools::run;

/// Pushes an image for a platform, with labels; returns its digest and the manifest's length.
fn push_image(
    client: &mut Client,
    name: &str,
    tag: &str,
    arch: &str,
    labels: &Value,
) -> (Digest, usize) {
    let config = json!({"os": "linux", "architecture": arch, "config": {"Labels": labels},
        "rootfs": {"type": "layers", "diff_ids": []}});
    let config = client.push_blob(name, config.to_string().as_bytes());
    let layer = client.push_blob(name, format!("layer for {arch}").as_bytes());
    let manifest = manifest_of(&config, &[(&layer, 15)]);
    client
        .put_manifest(name, tag, MediaType::OCI_MANIFEST, &manifest)
        .expect(201);
    (Digest::of(&manifest), manifest.len())
}

fn names(told: &Value) -> Vec<&str> {
    let results = told["results"].as_array().unwrap();
    results
        .iter()
        .map(|one| one["name"].as_str().unwrap())
        .collect()
}

#[test]
fn repositories_are_found_by_name_tag_and_description() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let labels = json!({"org.opencontainers.image.description": "Where the  Customers\nlook"});
        push_image(&mut client, "shop/web", "latest", "amd64", &labels);
        push_empty_image(&mut client, "shop/website", "2.0");
        push_empty_image(&mut client, "tools/web", "2.0-rc1");
        let mut check = |query: &str, expect: &[&str]| {
            let told = client
                .get(&format!("/v2/_longshore/search?{query}"))
                .expect(200)
                .json();
            assert_eq!(names(&told), expect, "{query}");
            told
        };
        // The name itself first, then what begins so.
        let told = check("q=web", &["shop/web", "tools/web", "shop/website"]);
        assert_eq!(told["total"], 3);
        assert_eq!(told["complete"], true);
        assert_eq!(
            told["results"][0]["description"],
            "Where the Customers look"
        );
        check("q=customers", &["shop/web"]);
        check("q=shop%20customers", &["shop/web"]);
        let told = check("q=RC1", &["tools/web"]);
        assert_eq!(told["results"][0]["found_tags"], json!(["2.0-rc1"]));
        check("q=web:2", &["tools/web"]);
        check("q=nothing", &[]);
        check("sort=-name", &["tools/web", "shop/website", "shop/web"]);
        let told = check("n=1&offset=1", &["shop/website"]);
        assert_eq!((&told["total"], &told["offset"]), (&json!(3), &json!(1)));
        check("offset=18446744073709551615", &[]);

        // Changes are seen by the next question.
        client.delete("/v2/tools/web/manifests/2.0-rc1").expect(202);
        push_empty_image(&mut client, "new/web", "1");
        let told = client.get("/v2/_longshore/search?q=rc1").expect(200).json();
        assert_eq!(names(&told), [""; 0]);
        let told = client.get("/v2/_longshore/search?q=new").expect(200).json();
        assert_eq!(names(&told), ["new/web"]);

        for wrong in ["n=x", "offset=-1", "sort=size"] {
            client
                .get(&format!("/v2/_longshore/search?{wrong}"))
                .refused(400, "PAGINATION_NUMBER_INVALID");
        }
        let long = format!("/v2/_longshore/search?q={}", "x".repeat(300));
        client.get(&long).expect(413);
        client
            .post("/v2/_longshore/search")
            .refused(405, "UNSUPPORTED");
    });
}

#[test]
fn tags_are_told_with_what_they_are() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let name = "shop/web";
        let labels = json!({});
        let (amd, amd_size) = push_image(&mut client, name, "amd", "amd64", &labels);
        let (arm, arm_size) = push_image(&mut client, name, "arm", "arm64", &labels);
        let entry = |digest: &Digest, size: usize, arch: &str| {
            json!({"mediaType": MediaType::OCI_MANIFEST, "digest": digest, "size": size,
                "platform": {"os": "linux", "architecture": arch}})
        };
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX,
            "manifests": [entry(&amd, amd_size, "amd64"), entry(&arm, arm_size, "arm64"),
                entry(&amd, amd_size, "unknown")]});
        let index = index.to_string();
        client
            .put_manifest(name, "all", MediaType::OCI_INDEX, index.as_bytes())
            .expect(201);
        let mut get = |query: &str| {
            client
                .get(&format!("/v2/{name}/_longshore/tags?{query}"))
                .expect(200)
                .json()
        };

        let told = get("sort=name");
        let tags = told["tags"].as_array().unwrap();
        let listed: Vec<&str> = tags
            .iter()
            .map(|tag| tag["tag"].as_str().unwrap())
            .collect();
        assert_eq!(listed, ["all", "amd", "arm"]);
        assert_eq!(told["total"], 3);
        assert_eq!(told["may"], json!(["pull", "push", "delete"]));
        assert_eq!(tags[0]["digest"], json!(Digest::of(index.as_bytes())));
        assert_eq!(tags[0]["mediaType"], MediaType::OCI_INDEX);
        // An image's size is that of its configuration (2, as its manifest says) and layers.
        let platforms = json!([{"platform": "linux/amd64", "digest": amd, "size": 17},
            {"platform": "linux/arm64", "digest": arm, "size": 17}]);
        assert_eq!(tags[0]["platforms"], platforms);
        assert_eq!(tags[1]["size"], 17);
        assert_eq!(tags[1]["platforms"][0]["platform"], "linux/amd64");

        assert_eq!(get("q=M&sort=-name&n=1")["tags"][0]["tag"], "arm");
        assert_eq!(get("q=M&sort=-name&n=1&offset=1")["tags"][0]["tag"], "amd");
        assert_eq!(get("n=0")["tags"], json!([]));

        client
            .delete(&format!("/v2/{name}/manifests/{amd}"))
            .expect(202);
        let told = client
            .get(&format!("/v2/{name}/_longshore/tags?sort=name"))
            .expect(200)
            .json();
        assert_eq!(told["total"], 2);
        client
            .get("/v2/none/_longshore/tags")
            .refused(404, "NAME_UNKNOWN");
    });
}

/// Of what somebody may not pull they learn nothing, by whichever way they ask.
#[test]
fn nobody_finds_what_they_may_not_pull() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    let empty = client.push_as("ann", "public/tool");
    for name in ["team/shared", "team/secret"] {
        assert_eq!(client.push_as("ann", name), empty);
    }
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    let mut check = |who: &str, query: &str, expect: &[&str]| {
        for path in ["/v2/_longshore/search", "/v1/search"] {
            let target = format!("{path}?q={query}");
            let told = send(&mut client, who, "GET", &target, b"");
            if who.is_empty() && expect.is_empty() && path == "/v1/search" {
                // podman then asks again with what it knows.
                told.refused(401, "UNAUTHORIZED");
                continue;
            }
            let told = told.expect(200).json();
            assert_eq!(names(&told), expect, "{who} {target}");
            let total = told.get("total").unwrap_or(&told["num_results"]);
            assert_eq!(*total, expect.len(), "{who} {target}");
        }
    };
    check(&ann, "", &["public/tool", "team/secret", "team/shared"]);
    check(&bob, "", &["public/tool", "team/shared"]);
    check("", "", &["public/tool"]);
    check(&bob, "secret", &[]);
    check("", "team", &[]);
    check("", "team/secret:t", &[]);

    let tags = |name: &str| format!("/v2/{name}/_longshore/tags");
    send(&mut client, &bob, "GET", &tags("team/secret"), b"").refused(403, "DENIED");
    send(&mut client, "", "GET", &tags("team/shared"), b"").refused(401, "UNAUTHORIZED");
    let told = send(&mut client, &bob, "GET", &tags("team/shared"), b"")
        .expect(200)
        .json();
    assert_eq!(told["may"], json!(["pull"]));
    send(
        &mut client,
        &basic("ann", "wrong"),
        "GET",
        "/v2/_longshore/search",
        b"",
    )
    .refused(401, "UNAUTHORIZED");

    let mut about = |who: &str| send(&mut client, who, "GET", "/v2/_longshore/about", b"");
    let told = about("").expect(200).json();
    assert_eq!(
        (&told["user"], &told["login"], &told["anonymous"]),
        (&Value::Null, &json!(true), &json!(true))
    );
    let told = about(&bob).expect(200).json();
    assert_eq!(
        (&told["user"], &told["via"]),
        (&json!("bob"), &json!("password"))
    );
    about(&basic("bob", "wrong")).refused(401, "UNAUTHORIZED");
}

/// Where nobody is let in who is not known, strangers learn nothing at all.
#[test]
fn strangers_search_nothing() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(&root);
    config.auth.policy = rules(&[("*", "ann", "pull,push,delete")]);
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    client.push_as("ann", "a");
    for target in [
        "/v2/_longshore/search",
        "/v1/search?q=a",
        "/v2/a/_longshore/tags",
    ] {
        client.get(target).refused(401, "UNAUTHORIZED");
    }
    let told = client.get("/v2/_longshore/about").expect(200).json();
    assert_eq!(told["anonymous"], false);
}

/// Two servers on one folder: what one is told, the other finds.
#[test]
fn changes_by_a_peer_are_found() {
    let root = tempfile::tempdir().unwrap();
    let (one, other) = (
        RunningServer::start(root.path()).unwrap(),
        RunningServer::start(root.path()).unwrap(),
    );
    let (mut one, mut other) = (Client::new(one.addr), Client::new(other.addr));
    push_empty_image(&mut one, "a", "1");
    let mut asked = || other.get("/v2/a/_longshore/tags").expect(200).json();
    assert_eq!(asked()["total"], 1);
    push_empty_image(&mut one, "a", "2");
    // A look at a repository rests in proportion to what the last one took.
    while asked()["total"] != 2 {
        std::thread::yield_now();
    }
}

/// Of what was pushed within one second the newest comes first.
#[test]
fn tags_are_ordered_by_the_finest_time_there_is() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let second = UNIX_EPOCH + Duration::from_secs(1_700_000_000);
    for (name, milliseconds) in [("a/b", 200), ("a/a", 100), ("a/c", 300)] {
        for (tag, later) in [("1", 20), ("2", 40), ("0", 0)] {
            push_empty_image(&mut client, name, tag);
            let place = format!("docker/registry/v2/repositories/{name}/_manifests/tags/{tag}");
            let link = root.path().join(place).join("current/link");
            let link = File::options().write(true).open(link).unwrap();
            let time = second + Duration::from_millis(milliseconds + later);
            link.set_modified(time).unwrap();
        }
    }
    let mut check = |target: &str, key: &str, expect: [&str; 3]| {
        let (list, _) = target.split_once('?').unwrap();
        let list = if list.ends_with("tags") {
            "tags"
        } else {
            "results"
        };
        let told = client.get(target).expect(200).json();
        let told: Vec<&Value> = told[list]
            .as_array()
            .unwrap()
            .iter()
            .map(|one| &one[key])
            .collect();
        assert_eq!(told, expect, "{target}");
    };
    check("/v2/a/b/_longshore/tags?sort=-date", "tag", ["2", "1", "0"]);
    check("/v2/a/b/_longshore/tags?sort=date", "tag", ["0", "1", "2"]);
    check(
        "/v2/_longshore/search?sort=-date",
        "name",
        ["a/c", "a/b", "a/a"],
    );
}

#[test]
fn dockers_search_comes_in_pages() {
    on_all(|server| {
        let mut client = Client::new(server.addr);
        let mut all: Vec<String> = (0..7).map(|number| format!("shop/web-{number}")).collect();
        for name in &all {
            push_empty_image(&mut client, name, "1");
        }
        push_empty_image(&mut client, "other", "1");
        let mut check = |query: &str, expect: &[String], pages: usize| {
            let told = client
                .get(&format!("/v1/search?{query}"))
                .expect(200)
                .json();
            assert_eq!(names(&told), expect, "{query}");
            let length = told["page_size"].as_u64().unwrap();
            assert!(expect.len() as u64 <= length, "{told}");
            let numbers = (&told["num_results"], &told["num_pages"]);
            assert_eq!(numbers, (&json!(7), &json!(pages)), "{query}");
        };
        check("q=web", &all, 1);
        check("q=web&n=3", &all[..3], 3);
        check("q=web&n=3&page=1", &all[..3], 3);
        check("q=web&n=3&page=2", &all[3..6], 3);
        check("q=web&n=3&page=3", &all[6..], 3);
        for beyond in ["4", "18446744073709551615"] {
            check(&format!("q=web&n=3&page={beyond}"), &[], 3);
        }
        // Pages are counted from 1, and have something in them.
        check("q=web&n=0&page=0", &all[..1], 7);
        check("q=web&n=1000", &all, 1);
        check("q=library/web", &all, 1);
        for wrong in ["n=x", "page=-1"] {
            client
                .get(&format!("/v1/search?q=web&{wrong}"))
                .refused(400, "PAGINATION_NUMBER_INVALID");
        }
        all.push("other".to_owned());
        all.sort_unstable();
        let told = client.get("/v1/search?q=").expect(200).json();
        assert_eq!(names(&told), all);
        client.get("/v1/_ping").expect(200);
    });
}

#[test]
fn podman_and_skopeo_find_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    let labels = json!({"org.opencontainers.image.description": "a shop"});
    push_image(&mut client, "shop/web", "latest", "amd64", &labels);
    push_empty_image(&mut client, "shop/web", "1.1");
    push_empty_image(&mut client, "base", "1");
    let host = server.host();
    let search = |term: &str, more: &[&str]| {
        let place = format!("{host}/{term}");
        let args = [
            &["search", "--tls-verify=false", "--format"],
            more,
            &[place.as_str()],
        ];
        run("podman", &args.concat())
    };
    let told = search("web", &["{{.Name}} {{.Description}}"]);
    assert_eq!(told.trim(), format!("{host}/shop/web a shop"));
    // Without a term it asks for the catalog.
    let all = search("", &["{{.Name}}"]);
    assert_eq!(all.lines().count(), 2, "{all}");
    let tags = search("shop/web", &["{{.Tag}}", "--list-tags"]);
    assert!(tags.contains("1.1") && tags.contains("latest"), "{tags}");
    let listed = run(
        "skopeo",
        &[
            "list-tags",
            "--tls-verify=false",
            &format!("docker://{host}/shop/web"),
        ],
    );
    assert!(listed.contains("\"1.1\""), "{listed}");
}
