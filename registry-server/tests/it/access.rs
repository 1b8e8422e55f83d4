//! Who may do what: users, TLS, and registries that are read-only or keep everything.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine;
use registry_server::{Config, RunningServer, ServeError, Server, TlsFiles};
use store::oci::MediaType;

use crate::client::Client;
use crate::protocol::manifest_of;

fn basic(user: &str, password: &str) -> String {
    let token = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {token}")
}

#[test]
fn users_of_an_htpasswd_file() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path().join("users");
    let hash = |password: &str| bcrypt::hash(password, 4).unwrap();
    fs::write(&path, format!("# people\n\nann:{}\n", hash("s3cret:x"))).unwrap();
    let mut config = Config::new(root.path().join("data"));
    config.auth.htpasswd = Some(path.clone());
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let mut ask = |authorization: Option<&str>| {
        let headers: Vec<_> = authorization
            .iter()
            .map(|value| ("Authorization", *value))
            .collect();
        client.send("GET", "/v2/", &headers, b"")
    };
    let challenge = ask(None);
    let header = challenge.header("www-authenticate").unwrap();
    assert!(header.starts_with("Basic realm="), "{header}");
    challenge.refused(401, "UNAUTHORIZED");
    let right = basic("ann", "s3cret:x");
    // The second is answered from memory.
    ask(Some(&right)).expect(200);
    ask(Some(&right)).expect(200);
    for wrong in [
        basic("ann", "wrong"),
        basic("ann", ""),
        basic("bob", "s3cret:x"),
        basic("", ""),
        "Basic !!!".to_owned(),
        "Basic".to_owned(),
        "Bearer x".to_owned(),
        right.replace("Basic", "Bearer"),
    ] {
        ask(Some(&wrong)).refused(401, "UNAUTHORIZED");
    }
    // Another password takes effect at once, and the old one loses it, remembered or not.
    let aside = root.path().join("users.new");
    fs::write(
        &aside,
        format!("ann:{}\nbob:{}\n", hash("other"), hash("b")),
    )
    .unwrap();
    fs::rename(&aside, &path).unwrap();
    ask(Some(&right)).refused(401, "UNAUTHORIZED");
    ask(Some(&basic("ann", "other"))).expect(200);
    ask(Some(&basic("bob", "b"))).expect(200);
}

#[test]
fn files_that_cannot_be_used_are_told() {
    let root = tempfile::tempdir().unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let bind = |config: Config| {
        let addr = "127.0.0.1:0".parse().unwrap();
        let error = runtime.block_on(Server::bind(addr, config)).unwrap_err();
        let mut text = error.to_string();
        let mut source = std::error::Error::source(&error);
        while let Some(error) = source {
            text = format!("{text}: {error}");
            source = error.source();
        }
        (error, text.replace(root.path().to_str().unwrap(), "ROOT"))
    };
    let users = root.path().join("users");
    fs::write(&users, "ann:$2y$05$x\n").unwrap();
    let mut config = Config::new(root.path().join("data"));
    config.auth.htpasswd = Some(users);
    let (_, text) = bind(config);
    assert!(
        text.contains("line 1 of the users file `ROOT/users`"),
        "{text}"
    );
    let mut config = Config::new(root.path().join("data"));
    config.tls = Some(TlsFiles {
        cert: root.path().join("none.pem"),
        key: root.path().join("none.key"),
    });
    let (error, text) = bind(config);
    assert!(matches!(error, ServeError::Pem { .. }), "{text}");
    assert!(
        text.contains("cannot read `ROOT/none.pem` as PEM"),
        "{text}"
    );
    fs::write(root.path().join("file"), "").unwrap();
    let (error, text) = bind(Config::new(root.path().join("file")));
    assert!(matches!(error, ServeError::Storage(_)), "{text}");
    assert!(text.contains("ROOT/file/docker/registry/v2"), "{text}");
}

#[test]
fn read_only_and_undeletable() {
    let root = tempfile::tempdir().unwrap();
    let mut config = Config::new(root.path());
    config.delete = false;
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    let digest = client.push_blob("a", b"{}");
    let manifest = manifest_of(&digest, &[]);
    client
        .put_manifest("a", "t", MediaType::OCI_MANIFEST, &manifest)
        .expect(201);
    let blob = format!("/v2/a/blobs/{digest}");
    client.delete(&blob).refused(405, "UNSUPPORTED");
    client
        .delete("/v2/a/manifests/t")
        .refused(405, "UNSUPPORTED");
    // An upload can be cancelled all the same.
    let session = client.post("/v2/a/blobs/uploads/").expect(202).location();
    client.delete(&session).expect(204);
    drop(client);
    drop(server);

    let mut config = Config::new(root.path());
    config.read_only = true;
    let server = RunningServer::start_with(config).unwrap();
    let mut client = Client::new(server.addr);
    client.get(&blob).expect(200);
    client.get("/v2/a/manifests/t").expect(200);
    client
        .post("/v2/a/blobs/uploads/")
        .refused(405, "UNSUPPORTED");
    client
        .delete("/v2/a/manifests/t")
        .refused(405, "UNSUPPORTED");
    client
        .put_manifest("a", "u", MediaType::OCI_MANIFEST, &manifest)
        .refused(405, "UNSUPPORTED");
}

/// A new certificate for this machine, and its key.
pub(crate) fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let (cert, key) = (
        folder.join(format!("{name}.pem")),
        folder.join(format!("{name}.key")),
    );
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
        ])
        .args(["-nodes", "-days", "2", "-subj", "/CN=localhost"])
        .args(["-addext", "subjectAltName=IP:127.0.0.1", "-keyout"])
        .arg(&key)
        .arg("-out")
        .arg(&cert)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    (cert, key)
}

/// Over TLS, in both versions of HTTP, bytes are the same as without.
#[test]
fn serves_tls_and_http2() {
    let root = tempfile::tempdir().unwrap();
    let (cert, key) = certificate(root.path(), "cert");
    let bytes = crate::client::noise(2_000_000, 21);
    let plain = RunningServer::start(&root.path().join("data")).unwrap();
    let digest = Client::new(plain.addr).push_blob("a", &bytes);
    let mut config = Config::new(root.path().join("data"));
    config.tls = Some(TlsFiles {
        cert: cert.clone(),
        key,
    });
    let tls = RunningServer::start_with(config).unwrap();
    let fetch = |base: String, flags: &[&str]| {
        let out = Command::new("curl")
            .args([
                "-sS",
                "--fail",
                "-w",
                "%{stderr}%{http_version}",
                "--cacert",
            ])
            .arg(&cert)
            .args(flags)
            .arg(format!("{base}/v2/a/blobs/{digest}"))
            .output()
            .unwrap();
        assert!(
            out.status.success(),
            "{}",
            String::from_utf8_lossy(&out.stderr)
        );
        assert_eq!(out.stdout, bytes);
        String::from_utf8(out.stderr).unwrap()
    };
    let (https, http) = (
        format!("https://{}", tls.addr),
        format!("http://{}", plain.addr),
    );
    assert_eq!(fetch(https.clone(), &["--http1.1"]), "1.1");
    assert_eq!(fetch(https.clone(), &["--http2"]), "2");
    assert_eq!(fetch(http.clone(), &["--http2-prior-knowledge"]), "2");
    assert_eq!(fetch(http, &["--http1.1"]), "1.1");
    // Where tokens are had is told in either.
    let mut config = Config::new(root.path().join("data"));
    config.auth.tokens = Some(registry_server::auth::tokens::TokenConfig::default());
    config.tls = Some(TlsFiles {
        cert: cert.clone(),
        key: root.path().join("cert.key"),
    });
    tls.reload(config.clone()).unwrap();
    for version in ["--http1.1", "--http2"] {
        let out = Command::new("curl")
            .args(["-sSi", version, "--cacert"])
            .arg(&cert)
            .arg(format!("{https}/v2/"))
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout);
        let realm = format!("Bearer realm=\"{https}/token\"");
        assert!(text.contains(&realm), "{version}: {text}");
    }
    config.auth.tokens = None;
    tls.reload(config).unwrap();
    // And up again, over HTTP/2.
    let mut curl = Command::new("curl")
        .args(["-sS", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"])
        .arg(&cert)
        .args([
            "-X",
            "POST",
            "--data-binary",
            "@-",
            "-H",
            "Content-Type: application/octet-stream",
        ])
        .arg(format!("{https}/v2/b/blobs/uploads/?digest={digest}"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    curl.stdin.take().unwrap().write_all(&bytes).unwrap();
    let out = curl.wait_with_output().unwrap();
    assert_eq!(String::from_utf8(out.stdout).unwrap(), "201");
}
