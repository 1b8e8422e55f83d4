//! People whom others vouch for: jobs with tokens of their CI, bearers of another token server's, clients with certificates;
//! and other people's tools and servers with our tokens.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use registry_server::auth::certificate::{CertificateName, ClientCertificates};
use registry_server::auth::issuers::{ClaimRule, FetchDocument, Fetched, IssuerConfig, KeySource};
use registry_server::auth::jwt::SigningKey;
use registry_server::auth::tokens::TokenConfig;
use registry_server::{Config, RunningServer, TlsFiles};
use serde_json::{Value, json};

use crate::access::certificate;
use crate::client::Client;
use crate::distribution::Distribution;
use crate::policy::{basic, config, rules, send};
use crate::tools::{run, write_layout};

const ISSUER: &str = "https://ci.example";

/// Documents by URL, and how often they were asked for.
#[derive(Debug, Default)]
struct Web {
    pages: Mutex<BTreeMap<String, String>>,
    asked: AtomicUsize,
}

impl FetchDocument for Web {
    fn fetch(&self, url: &str) -> Fetched {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let page = self.pages.lock().unwrap().get(url).cloned();
        Box::pin(async move { page.map(String::into_bytes).ok_or_else(|| "404".to_owned()) })
    }
}

fn key() -> SigningKey {
    SigningKey::from_pkcs8(&SigningKey::generate()).unwrap()
}

fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_secs()
}

fn sign(key: &SigningKey, claims: &Value) -> String {
    key.sign(claims.as_object().unwrap(), &[])
}

fn keys(all: &[&SigningKey]) -> String {
    let all: Vec<Value> = all.iter().map(|key| key.published()).collect();
    json!({"keys": all}).to_string()
}

/// Jobs of `org/…` on the main branch are of the group `team`.
fn ci(root: &tempfile::TempDir, keys: KeySource) -> Config {
    let mut config = config(root);
    config.auth.issuers = vec![IssuerConfig {
        issuer: ISSUER.to_owned(),
        audience: "registry".to_owned(),
        keys,
        access: false,
        rules: vec![ClaimRule {
            claims: BTreeMap::from([
                ("repository".to_owned(), vec!["org/*".to_owned()]),
                ("ref".to_owned(), vec!["main".to_owned()]),
            ]),
            user: "ci:{repository}".to_owned(),
            groups: ["team".to_owned()].into(),
        }],
    }];
    config
}

fn job() -> Value {
    json!({"iss": ISSUER, "aud": ["registry"], "sub": "x", "exp": now() + 600, "repository": "org/app", "ref": "main"})
}

fn with(mut claims: Value, name: &str, value: Value) -> Value {
    claims[name] = value;
    claims
}

const UPLOAD: &str = "/v2/team/a/blobs/uploads/";

#[test]
fn a_jobs_token_is_exchanged_or_used_as_it_is() {
    let root = tempfile::tempdir().unwrap();
    let (theirs, strange) = (key(), key());
    let path = root.path().join("jwks.json");
    fs::write(&path, keys(&[&theirs])).unwrap();
    let server = RunningServer::start_with(ci(&root, KeySource::File(path))).unwrap();
    let mut client = Client::new(server.addr);
    let token = sign(&theirs, &job());
    // As a bearer token, as a password, and exchanged in both ways.
    send(&mut client, &format!("Bearer {token}"), "POST", UPLOAD, b"").expect(202);
    send(&mut client, &basic("job", &token), "POST", UPLOAD, b"").expect(202);
    let scope = "repository:team/a:pull,push";
    let path = format!("/token?scope={scope}&offline_token=true");
    let given = send(&mut client, &basic("job", &token), "GET", &path, b"")
        .expect(200)
        .json();
    // No longer than what it was had for: there is nothing to have it again with.
    assert_eq!(given.get("refresh_token"), None);
    let given = format!("Bearer {}", given["token"].as_str().unwrap());
    send(&mut client, &given, "POST", UPLOAD, b"").expect(202);
    let exchange = |client: &mut Client, token: &str| {
        let form = format!(
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange&scope={scope}&subject_token={token}\
             &subject_token_type=urn:ietf:params:oauth:token-type:id_token"
        );
        client.send("POST", "/token", &[], form.as_bytes())
    };
    let given = exchange(&mut client, &token).expect(200).json();
    let given = format!("Bearer {}", given["access_token"].as_str().unwrap());
    send(&mut client, &given, "POST", UPLOAD, b"").expect(202);
    send(&mut client, &given, "POST", "/v2/other/blobs/uploads/", b"").refused(403, "DENIED");
    let wrong = [
        sign(&strange, &job()),
        sign(&theirs, &with(job(), "aud", json!("other"))),
        sign(&theirs, &with(job(), "iss", json!("https://evil.example"))),
        sign(&theirs, &with(job(), "exp", json!(now() - 600))),
        sign(&theirs, &with(job(), "exp", Value::Null)),
        sign(&theirs, &with(job(), "nbf", json!(now() + 600))),
        sign(&theirs, &with(job(), "ref", json!("other"))),
        sign(&theirs, &with(job(), "repository", json!("organ/app"))),
    ];
    for wrong in wrong {
        send(&mut client, &format!("Bearer {wrong}"), "POST", UPLOAD, b"")
            .refused(401, "UNAUTHORIZED");
        send(&mut client, &basic("job", &wrong), "GET", "/token", b"").refused(401, "UNAUTHORIZED");
        exchange(&mut client, &wrong).refused(401, "UNAUTHORIZED");
    }
    // People still have passwords.
    send(&mut client, &basic("ann", "ann"), "POST", UPLOAD, b"").expect(202);
}

/// Keys are where the issuer says, are had once, and are asked for once more when a token names another.
#[test]
fn keys_are_found_and_remembered() {
    let root = tempfile::tempdir().unwrap();
    let (first, second) = (key(), key());
    let web = Arc::new(Web::default());
    let put = |url: &str, text: String| {
        web.pages.lock().unwrap().insert(url.to_owned(), text);
    };
    let place = "https://keys.example/jwks";
    put(
        &format!("{ISSUER}/.well-known/openid-configuration"),
        json!({"issuer": ISSUER, "jwks_uri": place}).to_string(),
    );
    put(place, keys(&[&first]));
    let mut config = ci(&root, KeySource::Discovery);
    let fetch: Arc<dyn FetchDocument> = Arc::<Web>::clone(&web);
    config.fetch = Some(fetch);
    let server = RunningServer::start_with(config.clone()).unwrap();
    let mut client = Client::new(server.addr);
    let bearer = |key: &SigningKey| format!("Bearer {}", sign(key, &job()));
    for _ in 0..3 {
        send(&mut client, &bearer(&first), "POST", UPLOAD, b"").expect(202);
    }
    assert_eq!(web.asked.load(Ordering::Relaxed), 2);
    // Tokens that anybody makes up are not worth a request each.
    for _ in 0..50 {
        send(&mut client, &bearer(&key()), "POST", UPLOAD, b"").refused(401, "UNAUTHORIZED");
    }
    assert!(web.asked.load(Ordering::Relaxed) < 50);
    // An issuer that is another's, and one whose keys are gone.
    put(
        &format!("{ISSUER}/.well-known/openid-configuration"),
        json!({"issuer": "https://evil.example", "jwks_uri": place}).to_string(),
    );
    put(place, keys(&[&first, &second]));
    server.reload(config.clone()).unwrap();
    send(&mut client, &bearer(&second), "POST", UPLOAD, b"").refused(401, "UNAUTHORIZED");
    config.auth.issuers[0].keys = KeySource::Url(place.to_owned());
    server.reload(config.clone()).unwrap();
    send(&mut client, &bearer(&second), "POST", UPLOAD, b"").expect(202);
    // While there are none to be had, those from before count; not for another configuration.
    put(place, "{".to_owned());
    server.reload(config.clone()).unwrap();
    send(&mut client, &bearer(&second), "POST", UPLOAD, b"").expect(202);
    config.auth.issuers[0].rules[0]
        .groups
        .insert("x".to_owned());
    server.reload(config).unwrap();
    send(&mut client, &bearer(&second), "POST", UPLOAD, b"").refused(401, "UNAUTHORIZED");
}

/// Another token server says what its bearers may do; what the policy does not give they still may not.
#[test]
fn another_servers_tokens_say_what_they_give() {
    let root = tempfile::tempdir().unwrap();
    let theirs = key();
    let path = root.path().join("jwks.json");
    fs::write(&path, keys(&[&theirs])).unwrap();
    let mut config = ci(&root, KeySource::File(path));
    config.auth.issuers[0].access = true;
    config.auth.issuers[0].rules.clear();
    config
        .auth
        .policy
        .extend(rules(&[("team/*", "robot", "pull,push")]));
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let mut check = |sub: &str, actions: &[&str], name: &str, expected: u16| {
        let access = json!([{"type": "repository", "name": name, "actions": actions}]);
        let claims = with(with(job(), "sub", json!(sub)), "access", access);
        let bearer = format!("Bearer {}", sign(&theirs, &claims));
        send(&mut client, &bearer, "POST", UPLOAD, b"").expect(expected);
    };
    check("robot", &["pull", "push"], "team/a", 202);
    check("robot", &["*"], "team/a", 202);
    check("robot", &["pull"], "team/a", 401);
    check("robot", &["push"], "team/b", 401);
    check("stranger", &["push"], "team/a", 403);
}

/// A certificate of a client, signed by the authority.
fn signed(folder: &Path, name: &str, subject: &str, alternative: &str) -> (PathBuf, PathBuf) {
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    let run = |arguments: &[&str]| {
        let out = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
    };
    let extension = folder.join(format!("{name}.ext"));
    fs::write(
        &extension,
        format!("subjectAltName={alternative}\nextendedKeyUsage=clientAuth\n"),
    )
    .unwrap();
    let (key, csr, cert) = (
        format!("{name}.key"),
        format!("{name}.csr"),
        format!("{name}.pem"),
    );
    run(&[
        "req",
        "-new",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
        "-subj",
        subject,
        "-keyout",
        &key,
        "-out",
        &csr,
    ]);
    run(&[
        "x509",
        "-req",
        "-in",
        &csr,
        "-CA",
        "ca.pem",
        "-CAkey",
        "ca.key",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        extension.to_str().unwrap(),
        "-out",
        &cert,
    ]);
    (file("pem"), file("key"))
}

#[test]
fn certificates_say_who_somebody_is() {
    let root = tempfile::tempdir().unwrap();
    let (server_cert, server_key) = certificate(root.path(), "server");
    certificate(root.path(), "ca");
    let ann = signed(
        root.path(),
        "client",
        "/O=org/CN=ann",
        "critical,email:bob,DNS:host.example,URI:spiffe://x/ann",
    );
    let strange = certificate(root.path(), "strange");
    let mut config = config(&root);
    config.auth.policy.extend(rules(&[
        ("dns", "host.example", "push"),
        ("uri", "spiffe://x/*", "push"),
        ("mail", "bob", "push"),
    ]));
    config.tls = Some(TlsFiles {
        cert: server_cert.clone(),
        key: server_key,
    });
    config.auth.certificates = Some(ClientCertificates {
        ca: root.path().join("ca.pem"),
        required: false,
        user: CertificateName::CommonName,
    });
    let server = RunningServer::start_with(config.clone()).unwrap();
    let ask = |identity: Option<&(PathBuf, PathBuf)>, name: &str| {
        let mut curl = Command::new("curl");
        curl.args([
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{http_code}",
            "-X",
            "POST",
            "--cacert",
        ])
        .arg(&server_cert);
        if let Some((cert, key)) = identity {
            curl.arg("--cert").arg(cert).arg("--key").arg(key);
        }
        let out = curl
            .arg(format!("https://{}/v2/{name}/blobs/uploads/", server.addr))
            .output()
            .unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    assert_eq!(ask(Some(&ann), "team/a"), "202");
    assert_eq!(ask(Some(&ann), "dns"), "403");
    assert_eq!(ask(None, "team/a"), "401");
    assert_eq!(ask(Some(&strange), "team/a"), "000");
    for (wanted, name) in [
        (CertificateName::Dns, "dns"),
        (CertificateName::Uri, "uri"),
        (CertificateName::Email, "mail"),
    ] {
        config.auth.certificates.as_mut().unwrap().user = wanted;
        server.reload(config.clone()).unwrap();
        assert_eq!(ask(Some(&ann), name), "202", "{name}");
        assert_eq!(ask(Some(&ann), "team/a"), "403", "{name}");
    }
    config.auth.certificates.as_mut().unwrap().required = true;
    server.reload(config.clone()).unwrap();
    assert_eq!(ask(None, "team/a"), "000");
    config.tls = None;
    assert!(
        server
            .reload(config)
            .unwrap_err()
            .to_string()
            .contains("need TLS")
    );
}

/// skopeo logs in, is sent for tokens, pushes, mounts and deletes with them, and pulls without any.
#[test]
fn skopeo_gets_tokens() {
    let root = tempfile::tempdir().unwrap();
    let layout = root.path().join("layout");
    let manifest = write_layout(&layout);
    let server = RunningServer::start_with(config(&root)).unwrap();
    let host = server.host();
    let source = format!("oci:{}:t", layout.display());
    let public = format!("docker://{host}/public/app:t");
    let push = [
        "copy",
        "--insecure-policy",
        "--preserve-digests",
        "--dest-tls-verify=false",
        "--dest-creds",
    ];
    run(
        "skopeo",
        &[&push[..], &["ann:ann", &source, &public]].concat(),
    );
    run(
        "skopeo",
        &[
            &push[..],
            &["ann:ann", &source, &format!("docker://{host}/team/app:t")],
        ]
        .concat(),
    );
    let refused = Command::new("skopeo")
        .args(push)
        .args(["bob:bob", &source, &public])
        .output()
        .unwrap();
    assert!(!refused.status.success());
    let pulled = run(
        "skopeo",
        &["inspect", "--tls-verify=false", "--no-creds", &public],
    );
    let pulled: Value = serde_json::from_str(&pulled).unwrap();
    assert_eq!(pulled["Digest"], manifest.to_string());
    let delete = ["delete", "--tls-verify=false", "--creds", "ann:ann"];
    let team = format!("docker://{host}/team/app:t");
    run("skopeo", &[&delete[..], &[&team]].concat());
}

/// CNCF distribution 2.8 takes tokens of a P-256 key that its certificates name, and does not know Ed25519.
#[test]
fn distribution_takes_our_tokens() {
    let root = tempfile::tempdir().unwrap();
    let (cert, private) = certificate(root.path(), "token");
    let mut config = config(&root);
    config.auth.tokens = Some(TokenConfig {
        service: "r.example".to_owned(),
        key: Some(private),
        ..TokenConfig::default()
    });
    let ours = RunningServer::start_with(config.clone()).unwrap();
    let auth = json!({"token": {
        "realm": format!("http://{}/token", ours.addr),
        "service": "r.example",
        "issuer": "r.example",
        "rootcertbundle": cert,
    }});
    let theirs = Distribution::start_with(&root.path().join("theirs"), &auth);
    let ask = |ours: &RunningServer, scope: &str| {
        let path = format!("/token?service=r.example&scope={scope}");
        let given = send(
            &mut Client::new(ours.addr),
            &basic("ann", "ann"),
            "GET",
            &path,
            b"",
        );
        let given = given.expect(200).json();
        let token = format!("Bearer {}", given["token"].as_str().unwrap());
        send(&mut Client::new(theirs.addr), &token, "POST", UPLOAD, b"").status
    };
    assert_eq!(ask(&ours, "repository:team/a:pull,push"), 202);
    assert_eq!(ask(&ours, "repository:team/a:pull"), 401);
    config.auth.tokens.as_mut().unwrap().key = None;
    let ours = RunningServer::start_with(config).unwrap();
    assert_eq!(ask(&ours, "repository:team/a:pull,push"), 401);
}
