//! How much, how often, what stays as it is, what is written down, and configurations that change while a server runs.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::Duration;

use registry_server::immutable::ImmutableRule;
use registry_server::quota::QuotaRule;
use registry_server::rate::Rate;
use registry_server::{Config, RunningServer, ServeError, TlsFiles};
use serde_json::{Value, json};
use store::oci::{Digest, MediaType};

use crate::access::certificate;
use crate::client::{Client, noise};
use crate::policy::{basic, config, rules, send};
use crate::protocol::manifest_of;

fn words(text: &str) -> Vec<String> {
    text.split(' ').map(str::to_owned).collect()
}

/// Three manifests of a repository that has what they need.
fn three(client: &mut Client, name: &str) -> [Vec<u8>; 3] {
    let one = client.push_blob(name, b"{}");
    let other = client.push_blob(name, b"{ }");
    [
        manifest_of(&one, &[]),
        manifest_of(&other, &[]),
        manifest_of(&one, &[(&other, 3)]),
    ]
}

#[test]
fn immutable_tags_stay() {
    for on_disk in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new(root.path());
        config.immutable = vec![ImmutableRule {
            repositories: words("release/*"),
            tags: words("v*"),
        }];
        let server = match on_disk {
            true => RunningServer::start_with(config).unwrap(),
            false => {
                let memory = registry_server::storage::memory::MemoryStorage::default();
                RunningServer::start_on(config, std::sync::Arc::new(memory)).unwrap()
            }
        };
        let mut client = Client::new(server.addr);
        let [first, second, third] = three(&mut client, "release/a");
        let digest = Digest::of(&first);
        let kind = MediaType::OCI_MANIFEST;
        let mut put = |tag: &str, bytes: &[u8]| client.put_manifest("release/a", tag, kind, bytes);
        put("v1", &first).expect(201);
        // The same again changes nothing.
        put("v1", &first).expect(201);
        let refused = put("v1", &second).refused(403, "DENIED");
        assert!(refused.text().contains("immutable"), "{}", refused.text());
        put("latest", &second).expect(201);
        put("latest", &first).expect(201);
        // Of several tags at once none is set if one may not be.
        let many = format!("{}?tag=new&tag=v1", Digest::of(&third));
        put(&many, &third).refused(403, "DENIED");
        client
            .get("/v2/release/a/manifests/new")
            .refused(404, "MANIFEST_UNKNOWN");
        client
            .delete("/v2/release/a/manifests/v1")
            .refused(403, "DENIED");
        client
            .delete(&format!("/v2/release/a/manifests/{digest}"))
            .refused(403, "DENIED");
        client
            .delete(&format!("/v2/release/a/blobs/{}", Digest::of(b"{}")))
            .refused(403, "DENIED");
        client.delete("/v2/release/a/manifests/latest").expect(202);
        client
            .delete("/v2/release/a/manifests/v2")
            .refused(404, "MANIFEST_UNKNOWN");
        assert_eq!(
            client.get("/v2/release/a/manifests/v1").expect(200).body,
            first
        );
        // Elsewhere they move.
        let [first, second, _] = three(&mut client, "a");
        client.put_manifest("a", "v1", kind, &first).expect(201);
        client.put_manifest("a", "v1", kind, &second).expect(201);
    }
}

/// Of many who set an immutable tag at once, one does, and it stays.
#[test]
fn one_of_many_sets_an_immutable_tag() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.durable = false;
    config.immutable = vec![ImmutableRule {
        repositories: words("*"),
        tags: words("*"),
    }];
    let server = RunningServer::start_with(config).unwrap();
    let addr = server.addr;
    let mut client = Client::new(addr);
    let manifests: Vec<Vec<u8>> = (0..8)
        .map(|index| manifest_of(&client.push_blob("a", format!("{index}").as_bytes()), &[]))
        .collect();
    let put = |bytes: &Vec<u8>| {
        let reply = Client::new(addr).put_manifest("a", "v1", MediaType::OCI_MANIFEST, bytes);
        (reply.status == 201).then(|| bytes.clone())
    };
    let set: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let tries: Vec<_> = manifests
            .iter()
            .map(|bytes| scope.spawn(move || put(bytes)))
            .collect();
        tries
            .into_iter()
            .filter_map(|one| one.join().unwrap())
            .collect()
    });
    assert_eq!(set.len(), 1);
    assert_eq!(client.get("/v2/a/manifests/v1").expect(200).body, set[0]);
}

#[test]
fn quotas_hold_and_give_back() {
    for on_disk in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let mut config = Config::new(root.path());
        config.durable = false;
        config.quotas = vec![QuotaRule {
            repositories: words("team/*"),
            bytes: 10_000,
        }];
        let server = match on_disk {
            true => RunningServer::start_with(config).unwrap(),
            false => {
                let memory = registry_server::storage::memory::MemoryStorage::default();
                RunningServer::start_on(config, std::sync::Arc::new(memory)).unwrap()
            }
        };
        let mut client = Client::new(server.addr);
        let (six, three, two) = (noise(6_000, 1), noise(3_000, 2), noise(2_000, 3));
        let first = client.push_blob("team/a", &six);
        client.push_blob("team/b", &three);
        // Content that is there already costs nothing, wherever.
        client.push_blob("team/b", &six);
        client
            .post(&format!(
                "/v2/team/c/blobs/uploads/?mount={first}&from=team/a"
            ))
            .expect(201);
        let upload = |client: &mut Client, bytes: &[u8]| {
            let path = format!("/v2/team/d/blobs/uploads/?digest={}", Digest::of(bytes));
            client.send("POST", &path, &[], bytes)
        };
        let refused = upload(&mut client, &two).refused(403, "DENIED");
        assert!(
            refused.text().contains("10000 bytes: 9000 are used"),
            "{}",
            refused.text()
        );
        // In chunks, whose length nobody announces, it is the end that is refused.
        let session = client
            .post("/v2/team/d/blobs/uploads/")
            .expect(202)
            .location();
        let session = client
            .stream("PATCH", &session, &[], &[&two])
            .expect(202)
            .location();
        client
            .put(&format!("{session}?digest={}", Digest::of(&two)), b"")
            .refused(403, "DENIED");
        client.get(&session).refused(404, "BLOB_UPLOAD_UNKNOWN");
        // So is a mount from outside.
        let outside = client.push_blob("other", &two);
        client
            .post(&format!(
                "/v2/team/d/blobs/uploads/?mount={outside}&from=other"
            ))
            .refused(403, "DENIED");
        client
            .get(&format!("/v2/team/d/blobs/{outside}"))
            .refused(404, "BLOB_UNKNOWN");
        // Manifests count; this one is larger than what is left.
        let mut manifest: Value = serde_json::from_slice(&manifest_of(&first, &[])).unwrap();
        manifest["annotations"] = json!({"x": "y".repeat(2_000)});
        let bytes = manifest.to_string().into_bytes();
        client
            .put_manifest("team/a", "t", MediaType::OCI_MANIFEST, &bytes)
            .refused(403, "DENIED");
        // What is deleted everywhere makes room, at once.
        client
            .delete(&format!("/v2/team/b/blobs/{}", Digest::of(&three)))
            .expect(202);
        upload(&mut client, &two).expect(201);
    }
}

/// What was pushed before the server started counts, too.
#[test]
fn quotas_count_what_is_there() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start(root.path()).unwrap();
    Client::new(server.addr).push_blob("team/a", &noise(9_000, 1));
    drop(server);
    let mut config = Config::new(root.path());
    config.quotas = vec![QuotaRule {
        repositories: words("team/*"),
        bytes: 10_000,
    }];
    let server = RunningServer::start_with(config).unwrap();
    let bytes = noise(2_000, 2);
    let path = format!("/v2/team/d/blobs/uploads/?digest={}", Digest::of(&bytes));
    Client::new(server.addr)
        .send("POST", &path, &[], &bytes)
        .refused(403, "DENIED");
}

/// A flood of requests is told to wait; others, from the same address, do not notice.
#[test]
fn floods_hurt_who_sends_them() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(&root);
    config.limits.requests = Some(Rate {
        interval: Duration::from_secs(3600),
        burst: 5,
    });
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    for _ in 0..5 {
        send(&mut client, &ann, "GET", "/v2/", b"").expect(200);
    }
    let refused = send(&mut client, &ann, "GET", "/v2/", b"").refused(429, "TOOMANYREQUESTS");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((3500..=3600).contains(&wait), "{wait}");
    send(&mut client, &bob, "GET", "/v2/", b"").expect(200);
    for _ in 0..5 {
        client.get("/v2/").refused(401, "UNAUTHORIZED");
    }
    client.get("/v2/").refused(429, "TOOMANYREQUESTS");
    client.get("/token").refused(429, "TOOMANYREQUESTS");
    // Another configuration with the same limit does not begin anew.
    config.warning = Some("x".to_owned());
    server.reload(config.clone()).unwrap();
    send(&mut client, &ann, "GET", "/v2/", b"").refused(429, "TOOMANYREQUESTS");
    config.limits.requests = None;
    server.reload(config).unwrap();
    send(&mut client, &ann, "GET", "/v2/", b"").expect(200);
}

/// One address gets so many connections, and one that ends makes room for another.
#[test]
fn connections_of_an_address_are_counted() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.limits.address_connections_max = 3;
    let server = RunningServer::start_with(config).unwrap();
    let mut open: Vec<Client> = (0..3).map(|_| Client::new(server.addr)).collect();
    for client in &mut open {
        client.get("/v2/").expect(200);
    }
    // Closed without a word.
    assert_eq!(Client::new(server.addr).until_closed(), b"");
    open.pop().unwrap().finish();
    let answered = std::iter::repeat_with(|| {
        let mut client = Client::new(server.addr);
        client.try_send("GET", "/v2/", &[], b"")
    });
    // The server sees the end when it sees it.
    let mut answered = answered.flatten();
    answered.next().unwrap().expect(200);
    open[0].get("/v2/").expect(200);
}

#[test]
fn every_change_is_written_down() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(&root);
    let path = root.path().join("audit.jsonl");
    config.audit = Some(path.clone());
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    let digest = Digest::of(b"{}");
    let manifest = manifest_of(&digest, &[]);
    let blob = format!("/v2/team/a/blobs/uploads/?digest={digest}");
    send(&mut client, &ann, "POST", &blob, b"{}").expect(201);
    send(
        &mut client,
        &ann,
        "PUT",
        "/v2/team/a/manifests/t",
        &manifest,
    )
    .expect(201);
    send(
        &mut client,
        &bob,
        "PUT",
        "/v2/team/a/manifests/t",
        &manifest,
    )
    .refused(403, "DENIED");
    client
        .put("/v2/team/a/manifests/t", &manifest)
        .refused(401, "UNAUTHORIZED");
    send(&mut client, &ann, "GET", "/v2/team/a/manifests/t", b"").expect(200);
    let token = |scope: &str| format!("/token?scope={scope}");
    send(
        &mut client,
        &ann,
        "GET",
        &token("repository:team/a:pull"),
        b"",
    )
    .expect(200);
    let given = send(
        &mut client,
        &ann,
        "GET",
        &token("repository:team/a:delete"),
        b"",
    )
    .expect(200);
    let given = given.json()["token"].as_str().unwrap().to_owned();
    send(
        &mut client,
        &format!("Bearer {given}"),
        "DELETE",
        "/v2/team/a/manifests/t",
        b"",
    )
    .expect(202);
    let text = fs::read_to_string(&path).unwrap();
    for secret in ["ann:", &given, ann.as_str()] {
        assert!(!text.contains(secret), "{text}");
    }
    let lines: Vec<Value> = text
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let shown: Vec<String> = lines
        .iter()
        .map(|line| {
            assert_eq!(line["addr"], "127.0.0.1");
            assert!(line["time"].as_str().unwrap().ends_with('Z'));
            let word = |key: &str| line[key].as_str().unwrap_or("-").to_owned();
            let words = [
                "action",
                "user",
                "via",
                "repository",
                "reference",
                "digest",
                "scope",
            ]
            .map(word);
            format!("{} {}", words.join(" "), line["status"])
        })
        .collect();
    let on = Digest::of(&manifest);
    assert_eq!(
        shown,
        [
            format!("put-blob ann password team/a {digest} {digest} - 201"),
            format!("put-manifest ann password team/a t {on} - 201"),
            "put-manifest bob password team/a t - - 403".to_owned(),
            "issue-token ann password - - - repository:team/a:delete 200".to_owned(),
            "delete-tag ann token team/a t - - 202".to_owned(),
        ]
    );
}

/// New connections get the new certificate, old ones go on, and everybody the new rules.
#[test]
fn configurations_change_while_it_runs() {
    let root = tempfile::tempdir().unwrap();
    let (old, old_key) = certificate(root.path(), "old");
    let (new, new_key) = certificate(root.path(), "new");
    let mut config = config(&root);
    config.tls = Some(TlsFiles {
        cert: old.clone(),
        key: old_key.clone(),
    });
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut connection = Command::new("openssl")
        .args(["s_client", "-quiet", "-verify_return_error", "-CAfile"])
        .arg(&old)
        .args(["-connect", &server.host()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut answers = BufReader::new(connection.stdout.take().unwrap());
    let mut requests = connection.stdin.take().unwrap();
    let mut ask = || {
        let head = "HEAD /v2/public/a/tags/list HTTP/1.1\r\nHost: r\r\n\r\n";
        requests.write_all(head.as_bytes()).unwrap();
        let mut status = String::new();
        answers.read_line(&mut status).unwrap();
        let mut line = "-".to_owned();
        while !line.trim().is_empty() {
            line.clear();
            answers.read_line(&mut line).unwrap();
        }
        status.split(' ').nth(1).unwrap().to_owned()
    };
    assert_eq!(ask(), "404");
    let fetch = |ca: &std::path::Path| {
        let mut curl = Command::new("curl");
        curl.args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
            .arg(ca);
        let out = curl
            .arg(format!("https://{}/v2/public/a/tags/list", server.addr))
            .output();
        String::from_utf8(out.unwrap().stdout).unwrap()
    };
    assert_eq!((fetch(&old).as_str(), fetch(&new).as_str()), ("404", "000"));
    // A key of another certificate: told, and nothing changes.
    config.tls = Some(TlsFiles {
        cert: new.clone(),
        key: old_key,
    });
    config.auth.policy = rules(&[("x", "*", "pull")]);
    let refused = server.reload(config.clone()).unwrap_err();
    assert!(matches!(refused, ServeError::Tls { .. }), "{refused}");
    assert_eq!((fetch(&old).as_str(), ask().as_str()), ("404", "404"));
    config.tls = Some(TlsFiles {
        cert: new.clone(),
        key: new_key,
    });
    server.reload(config).unwrap();
    // The policy takes away what it gave.
    assert_eq!((fetch(&old).as_str(), fetch(&new).as_str()), ("000", "401"));
    assert_eq!(ask(), "401");
    connection.kill().unwrap();
    connection.wait().unwrap();
}

/// A request that runs while the configuration changes ends as it began.
#[test]
fn uploads_outlive_a_change() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.durable = false;
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let bytes = noise(100_000, 4);
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    let length = bytes.len().to_string();
    let head = client.head("PATCH", &session, &[("Content-Length", &length)]);
    client.raw(head.as_bytes());
    client.raw(&bytes[..50_000]);
    config.delete = false;
    server.reload(config.clone()).unwrap();
    client.raw(&bytes[50_000..]);
    let session = client.read("PATCH").expect(202).location();
    config.read_only = true;
    server.reload(config).unwrap();
    client
        .put(&format!("{session}?digest={}", Digest::of(&bytes)), b"")
        .refused(405, "UNSUPPORTED");
}

/// Several servers on one storage keep a quota together: what one took the others know at once, and of those who take
/// the last room at the same time nobody exceeds it.
#[test]
fn quotas_hold_across_servers() {
    for on_disk in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let memory =
            std::sync::Arc::new(registry_server::storage::memory::MemoryStorage::default());
        let mut config = Config::new(root.path());
        config.durable = false;
        config.quotas = vec![QuotaRule {
            repositories: words("team/*"),
            bytes: 10_000,
        }];
        let start = || match on_disk {
            true => RunningServer::start_with(config.clone()).unwrap(),
            false => {
                let memory: std::sync::Arc<registry_server::storage::memory::MemoryStorage> =
                    std::sync::Arc::clone(&memory);
                RunningServer::start_on(config.clone(), memory).unwrap()
            }
        };
        keep_a_quota_together(&[start(), start(), start()]);
    }
}

/// Three servers with a quota of 10,000 bytes of `team/*`.
pub(crate) fn keep_a_quota_together(servers: &[RunningServer; 3]) {
    let upload = |server: &RunningServer, name: &str, bytes: &[u8]| {
        let path = format!("/v2/{name}/blobs/uploads/?digest={}", Digest::of(bytes));
        Client::new(server.addr).send("POST", &path, &[], bytes)
    };
    let [first, second, third] = servers;
    // Each has counted when there is nothing.
    for (seed, server) in (1..).zip(servers) {
        upload(server, "team/a", &noise(1_000, seed)).expect(201);
    }
    upload(second, "team/b", &noise(5_000, 4)).expect(201);
    let refused = upload(first, "team/c", &noise(3_000, 5)).refused(403, "DENIED");
    assert!(
        refused.text().contains("10000 bytes: 8000 are used"),
        "{}",
        refused.text()
    );
    // The same content costs nothing, whoever has it.
    upload(third, "team/d", &noise(5_000, 4)).expect(201);
    // All at once, of which one more than one can fit is too much.
    let fitted = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6)
            .map(|number: u64| {
                let server = &servers[usize::try_from(number).unwrap() % servers.len()];
                let bytes = noise(1_500, 10 + number);
                scope.spawn(move || upload(server, "team/e", &bytes).status)
            })
            .collect();
        let all = threads.into_iter().map(|thread| thread.join().unwrap());
        all.filter(|status| *status == 201).count()
    });
    assert!(fitted <= 1, "{fitted}");
    // What is deleted makes room at the server that did it, also if another had it pushed.
    let path = format!("/v2/team/a/blobs/{}", Digest::of(&noise(1_000, 2)));
    Client::new(first.addr).delete(&path).expect(202);
    let path = format!("/v2/team/a/blobs/{}", Digest::of(&noise(1_000, 3)));
    Client::new(first.addr).delete(&path).expect(202);
    upload(first, "team/f", &noise(2_000, 20)).expect(201);
}

/// Of whom a trusted proxy speaks for counts; what others say does not.
#[test]
fn clients_behind_a_trusted_proxy_are_told_apart() {
    let root = tempfile::tempdir().unwrap();
    let audit = root.path().join("audit");
    let mut config = config(&root);
    config.limits.requests = Some(Rate {
        interval: Duration::from_secs(3600),
        burst: 2,
    });
    config.audit = Some(audit.clone());
    config.auth.policy.extend(rules(&[("open/*", "*", "push")]));
    let server = RunningServer::start_with(config.clone()).unwrap();
    let ask = |from: &str| {
        let headers = [
            ("X-Forwarded-For", from),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "r.example"),
        ];
        Client::new(server.addr).send("GET", "/v2/", &headers, b"")
    };
    let realm = |reply: &crate::client::Reply| crate::policy::challenge(reply, "realm").unwrap();
    // Nobody is trusted: it is one client, whatever it says.
    assert_eq!(
        realm(&ask("192.0.2.1")),
        format!("https://{}/token", server.addr)
    );
    ask("192.0.2.2").expect(401);
    ask("192.0.2.3").refused(429, "TOOMANYREQUESTS");
    config.proxies.trusted = vec!["127.0.0.0/8".parse().unwrap()];
    config.limits.requests = Some(Rate {
        interval: Duration::from_secs(7200),
        burst: 2,
    });
    config.limits.address_connections_max = 1;
    server.reload(config).unwrap();
    // One proxy may have any number of connections.
    let _open = Client::new(server.addr);
    for _ in 0..2 {
        let reply = ask("192.0.2.1");
        assert_eq!(realm(&reply), "https://r.example/token");
    }
    ask("1.1.1.1, 192.0.2.1").refused(429, "TOOMANYREQUESTS");
    ask("192.0.2.2").expect(401);
    let digest = Digest::of(b"{}");
    let path = format!("/v2/open/a/blobs/uploads/?digest={digest}");
    let headers = [
        ("X-Forwarded-For", "192.0.2.9"),
        ("X-Forwarded-Host", "r.example"),
    ];
    let put = Client::new(server.addr).send("POST", &path, &headers, b"{}");
    // Without a host it is right behind any proxy.
    assert_eq!(
        put.expect(201).location(),
        format!("/v2/open/a/blobs/{digest}")
    );
    let written = fs::read_to_string(audit).unwrap();
    assert!(written.contains("\"addr\":\"192.0.2.9\""), "{written}");
}
