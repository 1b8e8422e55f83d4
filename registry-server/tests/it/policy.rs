//! Rules of who may do what, and tokens: what is refused, how clients are told to do better, and that they then can.

use std::collections::BTreeSet;
use std::fs;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use registry_server::auth::tokens::TokenConfig;
use registry_server::policy::{Action, PolicyRule, Who};
use registry_server::{Config, RunningServer};
use serde_json::{Value, json};
use store::oci::MediaType;

use crate::client::{Client, Reply};
use crate::protocol::manifest_of;

/// Rules as a table: repositories, who (`*` is everybody, `@name` a group), actions.
pub(crate) fn rules(table: &[(&str, &str, &str)]) -> Vec<PolicyRule> {
    let rule = |(repositories, who, actions): &(&str, &str, &str)| {
        let mut whom = Who::default();
        for name in who.split(' ') {
            match name.strip_prefix('@') {
                Some(group) => whom.groups.push(group.to_owned()),
                None if name == "*" => whom.anonymous = true,
                None => whom.users.push(name.to_owned()),
            }
        }
        let actions = actions
            .split(',')
            .map(|name| Action::from_name(name).unwrap());
        PolicyRule {
            repositories: vec![(*repositories).to_owned()],
            who: whom,
            actions: actions.collect(),
        }
    };
    table.iter().map(rule).collect()
}

/// A registry where ann is of the team and bob is not; both with passwords that are their names.
pub(crate) fn config(root: &tempfile::TempDir) -> Config {
    let users = root.path().join("users");
    let line = |name: &str| format!("{name}:{}\n", bcrypt::hash(name, 4).unwrap());
    fs::write(&users, line("ann") + &line("bob")).unwrap();
    let mut config = Config::new(root.path().join("data"));
    config.durable = false;
    config.auth.htpasswd = Some(users);
    config
        .auth
        .groups
        .insert("team".to_owned(), BTreeSet::from(["ann".to_owned()]));
    config.auth.policy = rules(&[
        ("public/*", "*", "pull"),
        ("public/*", "@team", "push"),
        ("team/*", "@team", "pull,push,delete"),
        ("team/shared", "bob", "pull"),
    ]);
    config
}

pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// Sends with this `Authorization`.
pub(crate) fn send(
    client: &mut Client,
    authorization: &str,
    method: &str,
    target: &str,
    body: &[u8],
) -> Reply {
    let headers = [
        ("Authorization", authorization),
        ("Content-Type", MediaType::OCI_MANIFEST),
    ];
    let headers = if authorization.is_empty() {
        &headers[1..]
    } else {
        &headers[..]
    };
    client.send(method, target, headers, body)
}

/// The parameters of a challenge.
pub(crate) fn challenge(reply: &Reply, name: &str) -> Option<String> {
    let header = reply.header("www-authenticate").expect("a challenge");
    let rest = header.strip_prefix("Bearer ").expect("a bearer challenge");
    let (_, value) = rest.split_once(&format!("{name}=\""))?;
    Some(value.split('"').next().unwrap().to_owned())
}

/// What a client does: asks, is challenged, and asks `/token` for what the challenge says.
fn token(client: &mut Client, authorization: &str, reply: &Reply) -> Reply {
    let scope = challenge(reply, "scope").unwrap_or_default();
    let scopes: String = scope
        .split(' ')
        .map(|scope| format!("&scope={scope}"))
        .collect();
    let service = challenge(reply, "service").unwrap().replace(' ', "+");
    send(
        client,
        authorization,
        "GET",
        &format!("/token?service={service}{scopes}"),
        b"",
    )
}

fn text_of(reply: &Reply) -> String {
    format!("Bearer {}", reply.json()["token"].as_str().unwrap())
}

fn claims(token: &str) -> Value {
    let middle = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&URL_SAFE_NO_PAD.decode(middle).unwrap()).unwrap()
}

/// What each may do, with a password at once and with a token for what the challenge says: the same.
#[test]
fn everybody_may_what_the_rules_give() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    let ann = basic("ann", "ann");
    let digest = store::oci::Digest::of(b"{}");
    let manifest = manifest_of(&digest, &[]);
    for name in ["public/app", "team/app", "team/shared"] {
        let blob = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        send(&mut client, &ann, "POST", &blob, b"{}").expect(201);
        let path = format!("/v2/{name}/manifests/t");
        send(&mut client, &ann, "PUT", &path, &manifest).expect(201);
    }
    let mut check = |who: &str, name: &str, expected: &str| {
        let password = if who.is_empty() {
            String::new()
        } else {
            basic(who, who)
        };
        for with_token in [false, true] {
            let mut may = String::new();
            for (letter, method, path) in [
                ('r', "GET", format!("/v2/{name}/manifests/t")),
                ('l', "GET", format!("/v2/{name}/tags/list")),
                ('b', "HEAD", format!("/v2/{name}/blobs/{digest}")),
                ('w', "POST", format!("/v2/{name}/blobs/uploads/")),
                ('p', "PUT", format!("/v2/{name}/manifests/other")),
                ('d', "DELETE", format!("/v2/{name}/manifests/none")),
            ] {
                let body = if method == "PUT" {
                    manifest.as_slice()
                } else {
                    b""
                };
                let mut used = password.clone();
                if with_token {
                    // Without anything, to be told.
                    let reply = send(&mut client, "", method, &path, body);
                    if reply.status == 401 {
                        let given = token(&mut client, &password, &reply);
                        used = text_of(&given.expect(200));
                    }
                }
                let reply = send(&mut client, &used, method, &path, body);
                match reply.status {
                    200 | 201 | 202 | 404 => may.push(letter),
                    401 => assert!(who.is_empty(), "{who} {method} {path} {reply:?}"),
                    403 => assert!(!who.is_empty(), "{who} {method} {path} {reply:?}"),
                    _ => panic!("{who} {method} {path} {reply:?}"),
                }
            }
            assert_eq!(may, expected, "{who} in {name}, with a token: {with_token}");
        }
    };
    check("", "public/app", "rlb");
    check("bob", "public/app", "rlb");
    check("ann", "public/app", "rlbwp");
    check("", "team/app", "");
    check("bob", "team/app", "");
    check("bob", "team/shared", "rlb");
    check("ann", "team/app", "rlbwpd");
    check("bob", "elsewhere", "");
    check("ann", "elsewhere", "");
}

#[test]
fn the_catalog_has_what_may_be_pulled() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    let digest = store::oci::Digest::of(b"{}");
    for name in ["public/a", "public/b", "team/a", "team/shared"] {
        let blob = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        send(&mut client, &basic("ann", "ann"), "POST", &blob, b"{}").expect(201);
    }
    let mut check = |authorization: &str, query: &str, expected: &[&str], more: bool| {
        let reply = send(
            &mut client,
            authorization,
            "GET",
            &format!("/v2/_catalog{query}"),
            b"",
        );
        let reply = reply.expect(200);
        assert_eq!(reply.json(), json!({"repositories": expected}));
        assert_eq!(reply.header("link").is_some(), more, "{reply:?}");
    };
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    check("", "", &["public/a", "public/b"], false);
    check(&bob, "", &["public/a", "public/b", "team/shared"], false);
    check(
        &ann,
        "",
        &["public/a", "public/b", "team/a", "team/shared"],
        false,
    );
    // Pages are of what is shown.
    check(&bob, "?n=2", &["public/a", "public/b"], true);
    check(&bob, "?n=1&last=public/b", &["team/shared"], false);
    let mut get = |scope: &str| {
        let given = send(
            &mut client,
            &bob,
            "GET",
            &format!("/token?scope={scope}"),
            b"",
        );
        let given = text_of(&given.expect(200));
        send(&mut client, &given, "GET", "/v2/_catalog", b"")
    };
    let without = get("repository:public/a:pull");
    assert_eq!(challenge(&without, "scope").unwrap(), "registry:catalog:*");
    assert_eq!(challenge(&without, "error").unwrap(), "insufficient_scope");
    without.refused(401, "UNAUTHORIZED");
    let with = get("registry:catalog:*").expect(200);
    assert_eq!(
        with.json(),
        json!({"repositories": ["public/a", "public/b", "team/shared"]})
    );
}

/// A blob is mounted from where it may be pulled; elsewhere it might as well not be.
#[test]
fn mounts_obey_the_rules() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(&root);
    config
        .auth
        .policy
        .extend(rules(&[("bobs", "bob", "pull,push")]));
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    let mut push = |name: &str, bytes: &[u8]| {
        let digest = store::oci::Digest::of(bytes);
        let blob = format!("/v2/{name}/blobs/uploads/?digest={digest}");
        send(&mut client, &ann, "POST", &blob, bytes).expect(201);
        digest
    };
    let (secret, shared) = (push("team/app", b"secret"), push("team/shared", b"shared"));
    let (open, public) = (push("public/a", b"open"), push("public/b", b"public"));
    let mut mount = |authorization: &str, query: String| {
        let path = format!("/v2/bobs/blobs/uploads/?mount={query}");
        send(&mut client, authorization, "POST", &path, b"")
    };
    mount(&bob, format!("{secret}&from=team/app")).expect(202);
    mount(&bob, secret.to_string()).expect(202);
    let asked = mount("", format!("{shared}&from=team/shared"));
    assert_eq!(
        challenge(&asked, "scope").unwrap(),
        "repository:bobs:pull,push repository:team/shared:pull"
    );
    let mut get = |scopes: &str| {
        let given = send(&mut client, &bob, "GET", &format!("/token?{scopes}"), b"");
        text_of(&given.expect(200))
    };
    let half = get("scope=repository:bobs:pull,push");
    let whole = get("scope=repository:bobs:pull,push+repository:team/shared:pull");
    let mut mount = |authorization: &str, query: String| {
        let path = format!("/v2/bobs/blobs/uploads/?mount={query}");
        send(&mut client, authorization, "POST", &path, b"")
    };
    // A token without the second scope is good for uploading, and bob for another one that has it.
    let narrow = mount(&half, format!("{shared}&from=team/shared"));
    assert_eq!(narrow.status, 401);
    assert_eq!(challenge(&narrow, "error").unwrap(), "insufficient_scope");
    assert_eq!(
        challenge(&narrow, "scope").unwrap(),
        "repository:bobs:pull,push repository:team/shared:pull"
    );
    mount(&half, shared.to_string()).expect(202);
    mount(&whole, format!("{shared}&from=team/shared")).expect(201);
    mount(&bob, shared.to_string()).expect(201);
    // What no token would give him is not asked for, whatever is there.
    mount(&half, format!("{secret}&from=team/app")).expect(202);
    mount(&half, format!("{secret}&from=team/none")).expect(202);
    // What everybody may read is nobody's secret: tokens need not say it.
    mount(&half, format!("{open}&from=public/a")).expect(201);
    mount(&half, public.to_string()).expect(201);
}

#[test]
fn tokens_say_what_was_asked_for_and_is_allowed() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    let (ann, bob) = (basic("ann", "ann"), basic("bob", "bob"));
    // Anonymous rules beside users: so there are tokens, though nobody said so.
    let first = client.get("/v2/");
    let realm = format!("http://{}/token", server.addr);
    assert_eq!(challenge(&first, "realm").unwrap(), realm);
    assert_eq!(challenge(&first, "scope"), None);
    let proxied = client.send("GET", "/v2/", &[("X-Forwarded-Proto", "https")], b"");
    assert_eq!(
        challenge(&proxied, "realm").unwrap(),
        realm.replace("http:", "https:")
    );
    let mut get = |authorization: &str, query: &str| {
        send(
            &mut client,
            authorization,
            "GET",
            &format!("/token?{query}"),
            b"",
        )
    };
    let given = get(
        &bob,
        "scope=repository:public/a:pull,push,delete&scope=repository:team/a:pull",
    )
    .expect(200);
    assert_eq!(given.header("cache-control"), Some("no-store"));
    let json = given.json();
    assert_eq!(json["expires_in"], 300);
    assert_eq!(json["token"], json["access_token"]);
    assert_eq!(json.get("refresh_token"), None);
    let said = claims(json["token"].as_str().unwrap());
    assert_eq!(said["sub"], "bob");
    assert_eq!(
        said["access"],
        json!([{"type": "repository", "name": "public/a", "actions": ["pull"]}])
    );
    let anonymous = get("", "scope=repository:public/a:pull").expect(200).json();
    assert_eq!(claims(anonymous["token"].as_str().unwrap())["sub"], "");
    let all = get(&ann, "scope=repository:team/a:*").expect(200).json();
    assert_eq!(
        claims(all["token"].as_str().unwrap())["access"][0]["actions"],
        json!(["*", "delete", "pull", "push"])
    );
    for wrong in [
        basic("ann", "bob"),
        basic("cy", "cy"),
        "Bearer x".to_owned(),
        "Basic !".to_owned(),
    ] {
        let refused = get(&wrong, "scope=repository:public/a:pull");
        assert!(
            refused
                .header("www-authenticate")
                .unwrap()
                .starts_with("Basic ")
        );
        refused.refused(401, "UNAUTHORIZED");
    }
    client.delete("/token").refused(405, "UNSUPPORTED");
    // What was tampered with is no token.
    let token = text_of(&given);
    for wrong in [
        format!("{token}x"),
        token.replace("eyJ", "eyK"),
        "Bearer".to_owned(),
        "Bearer a.b.c".to_owned(),
    ] {
        send(&mut client, &wrong, "GET", "/v2/public/a/tags/list", b"")
            .refused(401, "UNAUTHORIZED");
    }
    let keys = client.get("/.well-known/jwks.json").expect(200).json();
    assert_eq!(keys["keys"][0]["crv"], "Ed25519");
}

/// As `docker login` does it: a token for tokens, which a new password takes away.
#[test]
fn tokens_are_had_again_until_the_password_changes() {
    let root = tempfile::tempdir().unwrap();
    let mut config = config(&root);
    config.auth.tokens = Some(TokenConfig {
        service: "r.example".to_owned(),
        ..TokenConfig::default()
    });
    let users = config.auth.htpasswd.clone().unwrap();
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let form = |fields: &[(&str, &str)]| {
        let fields = fields.iter().map(|(name, value)| format!("{name}={value}"));
        fields.collect::<Vec<_>>().join("&")
    };
    let mut post = |fields: &[(&str, &str)]| {
        let headers = [("Content-Type", "application/x-www-form-urlencoded")];
        client.send("POST", "/token", &headers, form(fields).as_bytes())
    };
    let password = [
        ("grant_type", "password"),
        ("username", "ann"),
        ("service", "r.example"),
    ];
    post(&[&password[..], &[("password", "wrong")]].concat()).refused(401, "UNAUTHORIZED");
    post(&[("grant_type", "magic")]).refused(405, "UNSUPPORTED");
    post(&[]).refused(405, "UNSUPPORTED");
    let right = [
        &password[..],
        &[("password", "ann"), ("access_type", "offline")],
    ]
    .concat();
    let refresh = post(&right).expect(200).json()["refresh_token"]
        .as_str()
        .unwrap()
        .to_owned();
    let again = [
        ("grant_type", "refresh_token"),
        ("refresh_token", refresh.as_str()),
        ("scope", "repository:team/a:pull,push"),
    ];
    let given = post(&again).expect(200);
    let said = claims(given.json()["token"].as_str().unwrap());
    assert_eq!(
        (&said["sub"], &said["aud"]),
        (&json!("ann"), &json!("r.example"))
    );
    assert_eq!(said["access"][0]["actions"], json!(["pull", "push"]));
    // One is no substitute for the other.
    let access = given.json()["token"].as_str().unwrap().to_owned();
    post(&[("grant_type", "refresh_token"), ("refresh_token", &access)])
        .refused(401, "UNAUTHORIZED");
    let bearer = format!("Bearer {refresh}");
    send(&mut client, &bearer, "GET", "/v2/team/a/tags/list", b"").refused(401, "UNAUTHORIZED");
    // And with docker's GET.
    let offline = send(
        &mut client,
        &basic("ann", "ann"),
        "GET",
        "/token?offline_token=true",
        b"",
    );
    assert!(offline.expect(200).json()["refresh_token"].is_string());
    let aside = root.path().join("users.new");
    let line = format!("ann:{}\n", bcrypt::hash("other", 4).unwrap());
    fs::write(&aside, line).unwrap();
    fs::rename(&aside, &users).unwrap();
    let headers = [("Content-Type", "application/x-www-form-urlencoded")];
    client
        .send("POST", "/token", &headers, form(&again).as_bytes())
        .refused(401, "UNAUTHORIZED");
}

/// A restart, and another server on the same folder, take the tokens of the first.
#[test]
fn the_key_is_kept_with_the_images() {
    let root = tempfile::tempdir().unwrap();
    let config = config(&root);
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let given = send(
        &mut client,
        &basic("ann", "ann"),
        "GET",
        "/token?scope=repository:team/a:pull",
        b"",
    );
    let token = text_of(&given.expect(200));
    drop(client);
    drop(server);
    let servers = [(); 2].map(|()| RunningServer::start_with(config.clone()).unwrap());
    for server in servers {
        let mut client = Client::new(server.addr);
        send(&mut client, &token, "GET", "/v2/team/a/tags/list", b"").refused(404, "NAME_UNKNOWN");
    }
    use std::os::unix::fs::PermissionsExt;
    let key = root
        .path()
        .join("data/docker/registry/v2/_secrets/token-key");
    assert_eq!(
        fs::metadata(key).unwrap().permissions().mode() & 0o777,
        0o600
    );
}

/// Guessing passwords is slow for who guesses, and for nobody else: those who were let in before still are.
#[test]
fn guessing_is_slowed_down() {
    let root = tempfile::tempdir().unwrap();
    let server = RunningServer::start_with(config(&root)).unwrap();
    let mut client = Client::new(server.addr);
    let ann = basic("ann", "ann");
    send(&mut client, &ann, "GET", "/v2/", b"").expect(200);
    let refused = (0..200).find_map(|index| {
        let guess = basic("ann", &index.to_string());
        let reply = send(&mut client, &guess, "GET", "/v2/", b"");
        (reply.status != 401).then_some(reply)
    });
    let refused = refused
        .expect("two hundred guesses are too many")
        .refused(429, "TOOMANYREQUESTS");
    let wait: u64 = refused.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=60).contains(&wait), "{wait}");
    send(&mut client, &ann, "GET", "/v2/", b"").expect(200);
}
