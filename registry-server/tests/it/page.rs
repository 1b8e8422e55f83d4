//! The web page, in a real browser: what it shows, that nothing of it is run, and what people can do there.
//!
//! With `LONGSHORE_SCREENSHOTS=<folder>` pictures of every view are left there, to be looked at.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use registry_server::{Config, RunningServer};
use serde_json::{Value, json};
use store::oci::{Digest, MediaType};

use crate::browser::Browser;
use crate::client::Client;
use crate::policy::{basic, config, rules, send};
use crate::protocol::push_empty_image;

/// Markup that would tell if it was ever taken for some.
const HOSTILE: &str = "<script>window.owned=1</script><img src=x onerror=window.owned=1>";

/// A descriptor of what was pushed.
fn part(media_type: &str, digest: &Digest, size: usize) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

fn push_blob(client: &mut Client, name: &str, media_type: &str, bytes: &[u8]) -> Value {
    part(media_type, &client.push_blob(name, bytes), bytes.len())
}

fn put(client: &mut Client, name: &str, reference: &str, manifest: &Value) -> Value {
    let media_type = manifest["mediaType"].as_str().unwrap();
    let bytes = manifest.to_string().into_bytes();
    let digest = Digest::of(&bytes);
    let reference = if reference.is_empty() {
        digest.to_string()
    } else {
        reference.to_owned()
    };
    client
        .put_manifest(name, &reference, media_type, &bytes)
        .expect(201);
    part(media_type, &digest, bytes.len())
}

/// An image for a platform; `version` changes its last layer, environment and labels.
fn image(client: &mut Client, name: &str, arch: &str, version: u32) -> Value {
    let layer = |client: &mut Client, text: String, shown: u64| {
        let mut layer = push_blob(client, name, MediaType::OCI_LAYER_GZIP, text.as_bytes());
        // As large as real ones: what a manifest says of it is shown.
        layer["size"] = json!(shown);
        layer
    };
    let base = layer(client, format!("base {arch}"), 29_126_484);
    let tools = layer(client, format!("tools {arch}"), 8_311_022);
    let app = layer(
        client,
        format!("app {arch} {version}"),
        412_907 + u64::from(version) * 1000,
    );
    let labels = BTreeMap::from([
        (
            "org.opencontainers.image.description",
            "The shop's front: what customers see first".to_owned(),
        ),
        ("org.opencontainers.image.version", format!("{version}.0")),
        ("com.example.note", HOSTILE.to_owned()),
    ]);
    let config = json!({"created": "2026-03-01T12:00:00Z", "os": "linux", "architecture": arch, "author": HOSTILE,
        "config": {"Env": ["PATH=/usr/local/bin:/usr/bin:/bin", format!("VERSION={version}"), "EMPTY="],
            "Entrypoint": ["/usr/bin/web"], "Cmd": ["--listen", "0.0.0.0:8080", "two words"], "WorkingDir": "/srv",
            "User": "web", "ExposedPorts": {"8080/tcp": {}}, "Labels": labels, "StopSignal": "SIGTERM"},
        "rootfs": {"type": "layers", "diff_ids": []},
        "history": [
            {"created": "2026-02-01T12:00:00Z", "created_by": "/bin/sh -c #(nop) ADD file:d13afefcc2b0b02 in / "},
            {"created_by": "ENV VERSION=1", "empty_layer": true},
            {"created_by": "RUN /bin/sh -c apt-get update && apt-get install -y ca-certificates curl # buildkit"},
            {"created_by": format!("COPY web /usr/bin/web {HOSTILE}")}]});
    let config = push_blob(
        client,
        name,
        MediaType::OCI_CONFIG,
        config.to_string().as_bytes(),
    );
    let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "config": config,
        "layers": [base, tools, app], "annotations": {"com.example.hostile": HOSTILE}});
    let mut told = put(client, name, "", &manifest);
    told["platform"] = json!({"os": "linux", "architecture": arch});
    told
}

/// What is about an image: a document of a media type.
fn attach(
    client: &mut Client,
    name: &str,
    subject: &Value,
    kind: &str,
    layer_type: &str,
    document: &Value,
) {
    let empty = push_blob(client, name, "application/vnd.oci.empty.v1+json", b"{}");
    let layer = push_blob(client, name, layer_type, document.to_string().as_bytes());
    let mut about = subject.clone();
    about.as_object_mut().unwrap().remove("platform");
    let manifest = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_MANIFEST, "artifactType": kind, "config": empty,
        "layers": [layer], "subject": about, "annotations": {"org.opencontainers.image.created": "2026-03-02T08:00:00Z", "note": HOSTILE}});
    put(client, name, "", &manifest);
}

/// A registry as a team has it: `shop/web` with two versions for two platforms and everything about them, and others.
fn fill(server: &RunningServer) {
    let mut client = Client::new(server.addr);
    let name = "shop/web";
    for version in [1, 2] {
        let images = ["amd64", "arm64"].map(|arch| image(&mut client, name, arch, version));
        let index = json!({"schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": images,
            "annotations": {"com.example.index": HOSTILE}});
        let index = put(&mut client, name, &format!("{version}.0"), &index);
        if version == 2 {
            let packages: Vec<Value> = (0..140)
                .map(|number| json!({"name": format!("lib{number}"), "versionInfo": format!("1.{number}"), "licenseDeclared": "MIT"}))
                .chain([json!({"name": HOSTILE, "versionInfo": "0"})])
                .collect();
            let spdx = json!({"spdxVersion": "SPDX-2.3", "name": "web", "packages": packages});
            attach(
                &mut client,
                name,
                &images[0],
                "application/spdx+json",
                "application/spdx+json",
                &spdx,
            );
            let provenance = json!({"_type": "https://in-toto.io/Statement/v1", "predicateType": "https://slsa.dev/provenance/v1",
                "subject": [{"name": "web", "digest": {"sha256": "00"}}],
                "predicate": {"buildDefinition": {"buildType": "https://example.com/build", "resolvedDependencies": [{"uri": "pkg:docker/debian", "digest": {"sha256": "11"}}]},
                    "runDetails": {"builder": {"id": "https://example.com/ci"}}}});
            let envelope = json!({"payloadType": "application/vnd.in-toto+json", "payload": STANDARD.encode(provenance.to_string()),
                "signatures": [{"keyid": "key-7", "sig": "AA=="}]});
            attach(
                &mut client,
                name,
                &index,
                "application/vnd.in-toto+dsse",
                "application/vnd.dsse.envelope.v1+json",
                &envelope,
            );
            attach(
                &mut client,
                name,
                &index,
                "application/x<script>",
                "text/plain",
                &json!("anything"),
            );
        }
    }
    for other in [
        "base/debian",
        "base/alpine",
        "tools/lint",
        "tools/release-notes",
        "playground",
    ] {
        push_empty_image(&mut client, other, "latest");
    }
}

/// Nothing that the registry said was taken for more than text, and the browser had nothing to complain of.
#[track_caller]
fn is_sound(browser: &Browser) {
    assert_eq!(
        browser.run(
            "return window.owned === undefined && !document.querySelector('main script, main img');"
        ),
        true
    );
    assert_eq!(browser.complaints(), [""; 0]);
}

/// Everything that has text stands out enough from what is behind it (WCAG AA), nothing is wider than the window, and what can
/// be pressed or filled has a name.
#[track_caller]
fn is_readable(browser: &Browser, what: &str) {
    let found = browser.run(
        r##"
        const light = (colour) => {
          const parts = colour.match(/[\d.]+/g).map(Number);
          const [r, g, b] = parts.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
          return { alpha: parts[3] ?? 1, value: 0.2126 * r + 0.7152 * g + 0.0722 * b };
        };
        const behind = (element) => {
          for (let one = element; one; one = one.parentElement) {
            const back = light(getComputedStyle(one).backgroundColor);
            if (back.alpha === 1) return back.value;
          }
          return 1;
        };
        const wrong = [];
        const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
        while (texts.nextNode()) {
          const [text, element] = [texts.currentNode.textContent.trim(), texts.currentNode.parentElement];
          if (!text || !element.checkVisibility() || element.closest(".hidden, .skip, :disabled, script, noscript, caption")) continue;
          const [one, other] = [light(getComputedStyle(element).color).value, behind(element)];
          const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
          if (ratio < 4.5) wrong.push(`${ratio.toFixed(2)}: ${text.slice(0, 40)}`);
        }
        for (const one of document.querySelectorAll("button, a[href], input, select")) {
          const name = one.getAttribute("aria-label") || one.textContent.trim() || one.labels?.[0]?.textContent;
          if (!name) wrong.push(`no name: ${one.outerHTML}`);
        }
        const width = document.documentElement.scrollWidth;
        if (width > innerWidth) wrong.push(`${width} wide of ${innerWidth}`);
        if (document.querySelectorAll("h1").length !== 1) wrong.push("not one h1");
        return wrong.slice(0, 5);
        "##,
    );
    assert_eq!(found, json!([]), "{what}");
}

#[test]
fn people_find_their_way_through_images() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    fill(&server);
    let browser = Browser::start();
    browser.open(&format!("http://{}/", server.host()));
    browser.sees("6 repositories");

    // A search, by what an image says of itself.
    browser.type_into("#find-text", "customers\u{e007}");
    browser.sees("1 repository");
    browser.sees("The shop's front: what customers see first");
    browser.press("a.repository[href='#/r/shop/web']");
    browser.sees("2 tags");
    browser.sees("linux/arm64");
    browser.sees("37.9 MB");
    browser.type_into("[aria-label='Filter tags']", "2.");
    browser.sees("1 tag found");
    browser.type_into("[aria-label='Filter tags']", "nothing");
    browser.sees("No such tag");
    browser.open(&format!("http://{}/#/r/shop/web", server.host()));
    browser.sees("2 tags");

    // An image: what pulls it, its layers, its platforms.
    browser.press("a.tag[href='#/r/shop/web:2.0']");
    browser.sees(&format!("podman pull {}/shop/web:2.0", server.host()));
    browser.sees("RUN apt-get update && apt-get install -y ca-certificates curl");
    browser.sees("29.1 MB");
    browser.wait("document.querySelectorAll('main tbody tr').length === 4");
    browser.run("const box = document.querySelector('[aria-label=Platform]'); box.value = 'linux/arm64'; box.dispatchEvent(new Event('change'));");
    browser.wait("location.hash.includes('platform=linux%2Farm64') && document.querySelector('[aria-label=Platform]').value === 'linux/arm64'");
    browser.click("nav.tabs a", "Configuration");
    browser.sees("/usr/bin/web");
    browser.sees("8080/tcp");
    browser.sees("--listen 0.0.0.0:8080 \"two words\"");
    browser.sees("com.example.index");
    // Where it is stays in the address.
    browser.reload();
    browser.sees("Annotations of the index");
    assert_eq!(
        browser.text().matches(HOSTILE).count(),
        4,
        "author, label, two annotations"
    );
    is_sound(&browser);

    // What is attached to it.
    browser.open(&format!(
        "http://{}/#/r/shop/web:2.0?tab=attached",
        server.host()
    ));
    browser.sees("application/spdx+json");
    browser.press("[aria-label='application/spdx+json'] button[aria-expanded]");
    browser.sees("Packages (141)");
    browser.sees("lib99");
    browser.type_into("[aria-label='Filter packages']", "LIB139");
    browser.sees("lib139");
    browser.wait(
        "document.querySelectorAll('[aria-label=\"application/spdx+json\"] tbody tr').length === 1",
    );
    browser.press("[aria-label='application/vnd.in-toto+dsse'] button[aria-expanded]");
    browser.sees("https://example.com/ci");
    browser.sees("pkg:docker/debian");
    browser.sees("does not check signatures");
    browser.press("[aria-label='application/x<script>'] button[aria-expanded]");
    browser.sees("Download 10 B");
    is_sound(&browser);

    // The manifest as it is.
    browser.click("nav.tabs a", "Manifest");
    browser.sees("\"schemaVersion\": 2");
    is_sound(&browser);

    // What differs between two.
    browser.open(&format!("http://{}/#/r/shop/web", server.host()));
    browser.press("[aria-label='Choose 1.0 to compare']");
    browser.press("[aria-label='Choose 2.0 to compare']");
    browser.click("button", "Compare two");
    browser.sees("2 layers, 37.4 MB");
    browser.sees("VERSION");
    browser.sees("org.opencontainers.image.version");
    browser.wait("document.querySelectorAll('tr.added').length === 1 && document.querySelectorAll('tr.removed').length === 1");
    is_sound(&browser);

    // What is not there is said so.
    browser.open(&format!("http://{}/#/r/shop/web:none", server.host()));
    browser.sees("Not found");
    browser.open(&format!("http://{}/#/r/none", server.host()));
    browser.sees("Not found");
    browser.open(&format!("http://{}/#/nonsense", server.host()));
    browser.sees("There is no such page");
    is_sound(&browser);
}

#[test]
fn images_are_deleted_only_after_a_question() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    fill(&server);
    let mut client = Client::new(server.addr);
    let browser = Browser::start();
    let open = || {
        browser.open(&format!("http://{}/#/r/shop/web:1.0", server.host()));
        browser.click("button", "Delete…");
        browser.sees("Delete shop/web:1.0?");
    };
    open();
    browser.click("dialog button", "Cancel");
    browser.wait("!document.querySelector('dialog')");
    client.get("/v2/shop/web/manifests/1.0").expect(200);

    // What was changed since it was looked at is not deleted.
    open();
    let other = client.get("/v2/shop/web/manifests/2.0").expect(200);
    client
        .put_manifest("shop/web", "1.0", MediaType::OCI_INDEX, &other.body)
        .expect(201);
    browser.click("dialog button", "Delete the tag");
    browser.sees("It was changed meanwhile");
    client.get("/v2/shop/web/manifests/1.0").expect(200);

    browser.reload();
    open();
    browser.click("dialog button", "Delete the tag");
    browser.sees("1 tag");
    browser.wait("location.hash === '#/r/shop/web'");
    client.get("/v2/shop/web/manifests/1.0").expect(404);
    client.get("/v2/shop/web/manifests/2.0").expect(200);

    // Where deleting is off there is nothing to press.
    let mut config = Config::new(root.path());
    config.delete = false;
    server.reload(config).unwrap();
    browser.open(&format!("http://{}/#/r/shop/web:2.0", server.host()));
    browser.reload();
    browser.sees("podman pull");
    assert!(!browser.text().contains("Delete"));
    is_sound(&browser);
}

#[test]
fn people_sign_in_and_see_what_they_may() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    for name in ["public/tool", "team/shared", "team/secret"] {
        client.push_as("ann", name);
    }
    let browser = Browser::start();
    // A link to what only some may see leads there once they have said who they are.
    browser.open(&format!("http://{}/#/r/team/shared:t", server.host()));
    browser.sees("This registry wants to know who you are.");
    let sign_in = |user: &str, password: &str| {
        browser.type_into("#user", user);
        browser.type_into("#password", password);
        browser.click("form button", "Sign in");
    };
    sign_in("bob", "wrong");
    browser.sees("Name or password is wrong.");
    sign_in("bob", "bob");
    browser.sees("docker pull");
    assert!(!browser.text().contains("Delete"), "bob may only pull");
    browser.reload();
    browser.sees("docker pull");
    browser.open(&format!("http://{}/#/", server.host()));
    browser.sees("2 repositories");
    assert!(!browser.text().contains("secret"));
    browser.open(&format!("http://{}/#/r/team/secret", server.host()));
    browser.sees("Not allowed");

    browser.open(&format!("http://{}/#/", server.host()));
    browser.click("button", "Sign out");
    browser.sees("1 repository");
    assert_eq!(
        browser.run("return sessionStorage.length + localStorage.length + document.cookie.length;"),
        0
    );
    browser.click("button", "Sign in");
    sign_in("ann", "ann");
    browser.sees("3 repositories");
    browser.open(&format!("http://{}/#/r/team/secret:t", server.host()));
    browser.sees("Delete…");

    // A password that was changed since: the page asks again.
    let users = root.path().join("users");
    std::fs::write(&users, format!("ann:{}\n", bcrypt::hash("new", 4).unwrap())).unwrap();
    let mut config = config_again(&root);
    config.auth.policy = rules(&[("*", "ann", "pull")]);
    server.reload(config).unwrap();
    browser.reload();
    browser.sees("This registry wants to know who you are.");
    sign_in("ann", "new");
    browser.sees("docker pull");
    is_sound(&browser);
}

/// The same registry with the users file as it is now.
fn config_again(root: &tempfile::TempDir) -> Config {
    let mut config = Config::new(root.path().join("data"));
    config.durable = false;
    config.auth.htpasswd = Some(root.path().join("users"));
    config
}

#[test]
fn long_lists_come_in_pages() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let mut client = Client::new(server.addr);
    push_empty_image(&mut client, "many", "v0");
    let manifest = client.get("/v2/many/manifests/v0").expect(200).body;
    for number in 1..60 {
        let tag = format!("v{number}");
        client
            .put_manifest("many", &tag, MediaType::OCI_MANIFEST, &manifest)
            .expect(201);
    }
    for number in 0..30 {
        push_empty_image(&mut client, &format!("r{number:02}"), "t");
    }
    let browser = Browser::start();
    browser.open(&format!("http://{}/", server.host()));
    browser.sees("1–25 of 31");
    assert_eq!(
        browser.run("return document.querySelectorAll('.list li').length;"),
        25
    );
    browser.click("nav a", "Next");
    browser.sees("26–31 of 31");
    browser.sees("r29");
    browser.open(&format!("http://{}/#/r/many?sort=name", server.host()));
    browser.sees("1–25 of 60");
    assert_eq!(
        browser.run("return document.querySelectorAll('tbody tr').length;"),
        25
    );
    browser.click("nav a", "Next");
    browser.sees("26–50 of 60");
    is_sound(&browser);
}

/// In the light and in the dark, on a phone and on a desk.
#[test]
fn every_view_can_be_read() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    let browser = Browser::start();
    browser.open(&format!("http://{}/", server.host()));
    browser.sees("No repositories yet");
    let views = [
        ("empty", "#/", ""),
        ("repositories", "#/", "6 repositories"),
        ("search", "#/?q=customers", "1 repository"),
        ("tags", "#/r/shop/web", "2 tags"),
        ("layers", "#/r/shop/web:2.0", "podman pull"),
        ("config", "#/r/shop/web:2.0?tab=config", "How it runs"),
        (
            "attached",
            "#/r/shop/web:2.0?tab=attached",
            "application/spdx+json",
        ),
        ("compare", "#/compare/shop/web?a=1.0&b=2.0", "Difference"),
        ("missing", "#/r/none", "Not found"),
    ];
    for (name, place, text) in views {
        if name == "repositories" {
            fill(&server);
        }
        browser.open(&format!("http://{}/{place}", server.host()));
        browser.reload();
        browser.sees(if text.is_empty() {
            "No repositories yet"
        } else {
            text
        });
        if name == "attached" {
            browser.press("[aria-label='application/spdx+json'] button[aria-expanded]");
            browser.sees("Packages (141)");
        }
        for (width, on) in [(1280, "desk"), (360, "phone")] {
            for scheme in ["light", "dark"] {
                browser.width(width);
                browser.colours(scheme);
                browser.wait(&format!("innerWidth === {width} && matchMedia('(prefers-color-scheme: {scheme})').matches"));
                browser.picture(&format!("{name}-{on}-{scheme}"));
                if name != "missing" && name != "empty" {
                    is_readable(&browser, &format!("{name} {on} {scheme}"));
                }
            }
        }
    }
    is_sound(&browser);
}

/// Files are there without a login, tell nothing, and are not sent again to who has them.
#[test]
fn the_page_disturbs_nobody() {
    let root = tempfile::tempdir().unwrap();
    let mut strict = config(&root);
    strict.auth.policy = rules(&[("*", "ann", "pull")]);
    let server = RunningServer::start_with(strict.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let page = client.get("/").expect(200);
    assert_eq!(
        page.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = page.header("content-security-policy").unwrap();
    assert!(
        policy.starts_with("default-src 'none'; script-src 'self';") && !policy.contains("unsafe"),
        "{policy}"
    );
    let tag = page.header("etag").unwrap().to_owned();
    let again = client
        .send("GET", "/", &[("If-None-Match", &tag)], b"")
        .expect(304);
    assert_eq!(again.body, b"");
    assert_eq!(client.head_of("/-/app.js").expect(200).body, b"");
    client.post("/").refused(405, "UNSUPPORTED");
    client.get("/-/none.js").refused(401, "UNAUTHORIZED");
    client.get("/v2/").refused(401, "UNAUTHORIZED");
    send(&mut client, &basic("ann", "ann"), "GET", "/nothing", b"").refused(404, "UNSUPPORTED");

    strict.page = false;
    server.reload(strict).unwrap();
    let mut client = Client::new(server.addr);
    client.get("/").refused(401, "UNAUTHORIZED");
    send(&mut client, &basic("ann", "ann"), "GET", "/", b"").refused(404, "UNSUPPORTED");
}
