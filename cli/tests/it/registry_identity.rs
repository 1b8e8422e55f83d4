//! People whom others vouch for, through the binary: jobs with the tokens of their CI, whose keys are had over HTTP; tokens of another
//! registry, whose keys are had over https; and clients that show certificates.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Value, json};

use crate::interop::Podman;
use crate::registry_reload::{certificate, until};
use crate::support::{Place, Ran, Server, given, tool};

const IMAGE: &str = "example.test/app:1";

/// A CI that issues tokens: pages of its web server, on one port until it is dropped.
struct Issuer {
    port: u16,
    pages: Arc<Mutex<BTreeMap<String, String>>>,
    stopped: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Issuer {
    /// On a port that the kernel chooses, or with `port` on this one again.
    fn start(port: u16) -> Issuer {
        let listener = TcpListener::bind(("127.0.0.1", port)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let pages = Arc::<Mutex<BTreeMap<String, String>>>::default();
        let stopped = Arc::new(AtomicBool::new(false));
        let (shown, ended) = (Arc::clone(&pages), Arc::clone(&stopped));
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if ended.load(Ordering::SeqCst) {
                    return;
                }
                // A client that hangs up is no concern of a server.
                let _ = answer(&stream.unwrap(), &shown);
            }
        });
        Issuer {
            port,
            pages,
            stopped,
            thread: Some(thread),
        }
    }

    fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Publishes these keys, and where they are.
    fn publish(&self, keys: &[&Key]) {
        let url = self.url();
        let keys: Vec<Value> = keys.iter().map(|key| key.published()).collect();
        let mut pages = self.pages.lock().unwrap();
        let discovery = json!({"issuer": url, "jwks_uri": format!("{url}/keys?v=1")});
        pages.insert(
            "/.well-known/openid-configuration".to_owned(),
            discovery.to_string(),
        );
        pages.insert("/keys?v=1".to_owned(), json!({ "keys": keys }).to_string());
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::SeqCst);
        // It waits for somebody to come.
        let _ = TcpStream::connect(("127.0.0.1", self.port));
        self.thread.take().unwrap().join().unwrap();
    }
}

fn answer(mut stream: &TcpStream, pages: &Mutex<BTreeMap<String, String>>) -> std::io::Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let path = first.split(' ').nth(1).unwrap_or_default();
    let page = pages.lock().unwrap().get(path).cloned();
    let status = if page.is_some() {
        "200 OK"
    } else {
        "404 Not Found"
    };
    let page = page.unwrap_or_default();
    let length = page.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{page}"
    )
}

/// An RSA key, as the large CIs have them, in the hands of openssl.
struct Key {
    file: PathBuf,
    name: &'static str,
}

impl Key {
    fn new(folder: &Path, name: &'static str) -> Key {
        let file = folder.join(name);
        let path = file.to_str().unwrap();
        let kind = ["-algorithm", "RSA", "-pkeyopt", "rsa_keygen_bits:2048"];
        tool("openssl", &[&["genpkey", "-out", path], &kind[..]].concat());
        Key { file, name }
    }

    fn published(&self) -> Value {
        let path = self.file.to_str().unwrap();
        let told = tool("openssl", &["rsa", "-in", path, "-noout", "-modulus"]);
        let hex = told.strip_prefix("Modulus=").unwrap();
        let bytes =
            (0..hex.len() / 2).map(|at| u8::from_str_radix(&hex[2 * at..][..2], 16).unwrap());
        let modulus = URL_SAFE_NO_PAD.encode(bytes.collect::<Vec<u8>>());
        json!({"kty": "RSA", "use": "sig", "alg": "RS256", "kid": self.name, "n": modulus, "e": "AQAB"})
    }

    fn sign(&self, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let header = json!({"alg": "RS256", "typ": "JWT", "kid": self.name});
        let signed = format!("{}.{}", part(&header), part(claims));
        let (input, output) = (
            self.file.with_extension("in"),
            self.file.with_extension("out"),
        );
        std::fs::write(&input, &signed).unwrap();
        let [key, from, to] = [&self.file, &input, &output].map(|path| path.to_str().unwrap());
        tool(
            "openssl",
            &["dgst", "-sha256", "-sign", key, "-out", to, from],
        );
        let signature = URL_SAFE_NO_PAD.encode(std::fs::read(output).unwrap());
        format!("{signed}.{signature}")
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.unwrap().as_secs()
}

/// What a job of GitHub's says of itself.
fn github(issuer: &Issuer, repository: &str, branch: &str) -> Value {
    let now = now();
    let (owner, _) = repository.split_once('/').unwrap();
    json!({
        "iss": issuer.url(), "aud": "registry.example",
        "sub": format!("repo:{repository}:ref:refs/heads/{branch}"),
        "repository": repository, "repository_owner": owner, "repository_visibility": "private",
        "ref": format!("refs/heads/{branch}"), "ref_type": "branch", "sha": "d3b07384", "actor": "ann",
        "workflow": "build", "event_name": "push", "job_workflow_ref": format!("{repository}/.github/workflows/build.yml@refs/heads/{branch}"),
        "run_id": "4711", "run_attempt": "1", "runner_environment": "github-hosted",
        "iat": now, "nbf": now - 300, "exp": now + 300, "jti": "one",
    })
}

/// What a job of GitLab's says of itself.
fn gitlab(issuer: &Issuer, project: &str, protected: bool) -> Value {
    let now = now();
    let (namespace, _) = project.split_once('/').unwrap();
    json!({
        "iss": issuer.url(), "aud": ["other.example", "registry.example"],
        "sub": format!("project_path:{project}:ref_type:branch:ref:main"),
        "project_id": "22", "project_path": project, "namespace_id": "72", "namespace_path": namespace,
        "user_id": "1", "user_login": "ann", "pipeline_id": "574", "pipeline_source": "push", "job_id": "302",
        "ref": "main", "ref_type": "branch", "ref_protected": protected.to_string(), "runner_id": 1,
        "iat": now, "nbf": now - 5, "exp": now + 300, "jti": "two",
    })
}

/// Jobs push with nothing but their CI's token: as a password, and exchanged for one of ours. Keys are had where the issuer says,
/// again when it has new ones, and stay while it is down.
#[test]
fn jobs_push_with_tokens_of_their_ci() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let folder = place.path("");
    let (first, second, strange) = (
        Key::new(&folder, "first"),
        Key::new(&folder, "second"),
        Key::new(&folder, "strange"),
    );
    let hub = Issuer::start(0);
    let lab = Issuer::start(0);
    hub.publish(&[&first]);
    lab.publish(&[&second]);
    let config = place.path("registry.toml");
    let text = format!(
        r#"
root = "registry"
access_log = "access"
[audit]
file = "audit"
[auth.token]
[[auth.issuer]]
issuer = "{}"
audience = "registry.example"
[[auth.issuer.rule]]
claims = {{ repository_owner = ["org"], ref = ["refs/heads/main", "refs/tags/*"] }}
user = "github:{{repository}}"
[[auth.issuer]]
issuer = "{}"
audience = "registry.example"
keys = "{}/keys?v=1"
[[auth.issuer.rule]]
claims = {{ namespace_path = ["org"], ref_protected = ["true"] }}
user = "gitlab:{{project_path}}"
groups = ["protected"]
[[policy]]
repositories = ["hub/*"]
users = ["github:org/*"]
actions = ["pull", "push"]
[[policy]]
repositories = ["lab/*"]
groups = ["protected"]
actions = ["pull", "push"]
"#,
        hub.url(),
        lab.url(),
        lab.url(),
    );
    std::fs::write(&config, text).unwrap();
    let registry = Server::registry_told(&config);
    let login = |token: &str| {
        let words = ["login", "-u", "job", "--password-stdin", &registry.host];
        given(&mut place.command(words), token)
    };
    let push = |name: &str| {
        let name = format!("{}/{name}", registry.host);
        place.run(["tag", IMAGE, &name]).ok();
        place.run(["push", &name])
    };
    let tokens = [
        first.sign(&github(&hub, "org/app", "main")),
        second.sign(&gitlab(&lab, "org/app", true)),
    ];
    login(&tokens[0]).ok();
    push("hub/app:v1").ok();
    push("lab/app:v1").fails(4, "`github:org/app` may not push `lab/app`");
    login(&tokens[1]).ok();
    push("lab/app:v1").ok();
    push("hub/app:v2").fails(4, "");
    let wrong = [
        strange.sign(&github(&hub, "org/app", "main")),
        first.sign(&github(&hub, "other/app", "main")),
        first.sign(&github(&hub, "org/app", "feature")),
        // Each signs for itself.
        first.sign(&gitlab(&lab, "org/app", true)),
        second.sign(&gitlab(&lab, "org/app", false)),
    ];
    for token in &wrong {
        login(token).fails(4, "");
    }

    // Exchanged, as a step of a job does it, for a token that a client takes as it is.
    let exchange = |token: &str| {
        let url = format!("http://{}/token", registry.host);
        let fields = [
            "grant_type=urn:ietf:params:oauth:grant-type:token-exchange",
            "subject_token_type=urn:ietf:params:oauth:token-type:jwt",
            "service=registry.example",
            "scope=repository:hub/job:pull,push",
            &format!("subject_token={token}"),
        ];
        let mut command = Command::new("curl");
        command.args(["-sS", "--fail", &url]);
        for field in fields {
            command.args(["--data-urlencode", field]);
        }
        Ran::of(&mut command)
    };
    let given: Value = serde_json::from_str(&exchange(&tokens[0]).ok()).unwrap();
    assert_eq!(given["token_type"], "Bearer");
    assert_eq!(exchange(&wrong[0]).code, Some(22));
    let settings = json!({"auths": {&registry.host: {"registrytoken": given["access_token"]}}});
    let docker = place.path("docker/config.json");
    std::fs::write(&docker, settings.to_string()).unwrap();
    push("hub/job:v1").ok();
    // It is good for that alone, though the job may more.
    push("hub/app:v3").fails(4, "");
    std::fs::write(&docker, "{}").unwrap();

    // Another key: it is asked for, though not at once after the last time.
    hub.publish(&[&strange]);
    let renewed = strange.sign(&github(&hub, "org/app", "main"));
    until("the new key is known", || login(&renewed).code == Some(0));
    login(&tokens[0]).fails(4, "");
    push("hub/app:v4").ok();

    // The issuer is down: what is known still counts, also after the configuration was read again.
    let port = hub.port;
    drop(hub);
    login(&renewed).ok();
    let log = || std::fs::read_to_string(place.path("registry.log")).unwrap();
    let read = || log().matches("the configuration was read again").count();
    registry.signal("HUP");
    until("the configuration was read again", || read() == 1);
    login(&renewed).ok();
    push("hub/app:v5").ok();
    login(&tokens[1]).ok();
    let hub = Issuer::start(port);
    hub.publish(&[&first]);
    until("the first key is back", || {
        login(&tokens[0]).code == Some(0)
    });

    drop(registry);
    let audit = std::fs::read_to_string(place.path("audit")).unwrap();
    for user in ["github:org/app", "gitlab:org/app"] {
        assert!(audit.contains(&format!("\"user\":\"{user}\"")), "{audit}");
    }
    for file in ["registry.log", "access", "audit"] {
        let text = std::fs::read_to_string(place.path(file)).unwrap();
        assert!(!text.contains("eyJ"), "{file} has a token: {text}");
    }
}

/// One registry takes the tokens that another issues, whose keys it is told over https.
#[test]
fn a_registry_takes_the_tokens_of_another() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let (cert, key) = certificate(&place.path(""), "issuer");
    let users = place.path("users");
    let line = place
        .run(["registry", "htpasswd", "-nbB", "ann", "secret"])
        .ok();
    std::fs::write(&users, line).unwrap();
    let issuing = place.path("issuing.toml");
    let rule = "[[policy]]\nrepositories = [\"team/*\"]\nusers = [\"ann\"]\nactions = [\"pull\", \"push\"]\n";
    let text = format!(
        "root = \"one\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n[auth]\nhtpasswd = \"users\"\n[auth.token]\nservice = \"tokens.example\"\n{rule}",
        cert.display(),
        key.display()
    );
    std::fs::write(&issuing, text).unwrap();
    let issuing = Server::registry_told(&issuing);
    let taking = place.path("taking.toml");
    let text = format!(
        "root = \"other\"\n[[auth.issuer]]\nissuer = \"tokens.example\"\naudience = \"tokens.example\"\nkeys = \"https://{}/.well-known/jwks.json\"\naccess = true\n{rule}",
        issuing.host
    );
    std::fs::write(&taking, text).unwrap();
    let taking = Server::registry_told(&taking);
    let url = format!(
        "https://{}/token?scope=repository:team/app:pull,push&scope=repository:other/app:push",
        issuing.host
    );
    let cert = cert.to_str().unwrap();
    let words = [
        "-sS",
        "--fail",
        "-g",
        "--cacert",
        cert,
        "-u",
        "ann:secret",
        &url,
    ];
    let given: Value = serde_json::from_str(&tool("curl", &words)).unwrap();
    let settings = json!({"auths": {&taking.host: {"registrytoken": given["token"]}}});
    std::fs::create_dir_all(place.path("docker")).unwrap();
    std::fs::write(place.path("docker/config.json"), settings.to_string()).unwrap();
    let push = |name: &str| {
        let name = format!("{}/{name}", taking.host);
        place.run(["tag", IMAGE, &name]).ok();
        place.run(["push", &name])
    };
    push("team/app:v1").ok();
    push("team/other:v1").fails(4, "");
    push("other/app:v1").fails(4, "");
}

/// A certificate of a client, signed by the authority, as `client.cert` and `client.key` of a folder beside its `ca.crt`.
fn certificates_of(place: &Place, user: &str, trusted: &Path) -> PathBuf {
    let folder = place.path(&format!("{user}.d"));
    std::fs::create_dir_all(&folder).unwrap();
    let file = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    let subject = format!("/O=org/CN={user}");
    let kind = [
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-nodes",
    ];
    let (key, request, cert) = (file("client.key"), file("client.csr"), file("client.cert"));
    let ask = [
        "req", "-new", "-subj", &subject, "-keyout", &key, "-out", &request,
    ];
    tool("openssl", &[&ask[..], &kind].concat());
    std::fs::write(file("ext"), "extendedKeyUsage=clientAuth\n").unwrap();
    let authority = |end: &str| {
        place
            .path(&format!("ca.{end}"))
            .to_str()
            .unwrap()
            .to_owned()
    };
    let (ca, ca_key, extensions) = (authority("pem"), authority("key"), file("ext"));
    tool(
        "openssl",
        &[
            "x509",
            "-req",
            "-in",
            &request,
            "-CA",
            &ca,
            "-CAkey",
            &ca_key,
            "-CAcreateserial",
            "-days",
            "2",
            "-extfile",
            &extensions,
            "-out",
            &cert,
        ],
    );
    std::fs::copy(trusted, file("ca.crt")).unwrap();
    // podman reads all that ends so.
    for name in ["client.csr", "ext"] {
        std::fs::remove_file(file(name)).unwrap();
    }
    folder
}

/// Who shows a certificate needs no password: with skopeo's, podman's and buildah's `certs.d`, and with longshore's own settings.
#[test]
fn tools_show_certificates() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let folder = place.path("");
    let (cert, key) = certificate(&folder, "server");
    certificate(&folder, "ca");
    let config = place.path("registry.toml");
    let text = format!(
        "root = \"registry\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n[auth.certificates]\nca = \"ca.pem\"\n[audit]\nfile = \"audit\"\n\
         [[policy]]\nrepositories = [\"team/*\"]\nusers = [\"ann\"]\nactions = [\"pull\", \"push\"]\n\
         [[policy]]\nrepositories = [\"team/shared\"]\nusers = [\"*\"]\nactions = [\"pull\"]\n",
        cert.display(),
        key.display()
    );
    std::fs::write(&config, text).unwrap();
    let registry = Server::registry_told(&config);
    let host = registry.host.as_str();
    let (ann, bob) = (
        certificates_of(&place, "ann", &cert),
        certificates_of(&place, "bob", &cert),
    );
    let archive = place.path("app.tar");
    place.ok(["save", IMAGE, "-o"], [&archive]);
    let from = format!("docker-archive:{}", archive.display());
    let skopeo = |certs: &Path, name: &str| {
        let to = format!("docker://{host}/{name}");
        let certs = certs.to_str().unwrap();
        let words = [
            "copy",
            "-q",
            "--insecure-policy",
            "--dest-cert-dir",
            certs,
            &from,
            &to,
        ];
        Ran::of(Command::new("skopeo").args(words)).code
    };
    assert_eq!(skopeo(&ann, "team/shared:v1"), Some(0));
    assert_ne!(skopeo(&bob, "team/shared:v2"), Some(0));
    assert_ne!(skopeo(&ann, "other:v1"), Some(0));
    let podman = Podman::new(&place);
    let name = format!("{host}/team/shared:v1");
    for (program, words) in [
        ("podman", &["pull", "-q", "--cert-dir"][..]),
        ("buildah", &["pull", "-q", "--cert-dir"][..]),
    ] {
        let pull = |certs: &Path, name: &str| {
            let words = [words, &[certs.to_str().unwrap(), name]].concat();
            Ran::of(&mut podman.command(program, &words)).code
        };
        assert_eq!(pull(&ann, &name), Some(0), "{program}");
        assert_eq!(pull(&bob, &name), Some(0), "{program}");
        podman.ok("podman", &["rmi", "-f", &name]);
        // Without one there is no user.
        let nothing = place.path("nothing.d");
        std::fs::create_dir_all(&nothing).unwrap();
        std::fs::copy(&cert, nothing.join("ca.crt")).unwrap();
        assert_ne!(pull(&nothing, &name), Some(0), "{program}");
    }
    // longshore: by its own settings, and by docker's folder.
    let own = place.path("own.toml");
    let text = format!(
        "[registry.\"{host}\"]\nca = [\"{}\"]\n[[registry.\"{host}\".keypair]]\ncert = \"{dir}/client.cert\"\nkey = \"{dir}/client.key\"\n",
        cert.display(),
        dir = ann.display()
    );
    std::fs::write(&own, text).unwrap();
    let pushed = format!("{host}/team/own:v1");
    place.run(["tag", IMAGE, &pushed]).ok();
    place
        .run(["--config", own.to_str().unwrap(), "push", &pushed])
        .ok();
    let home = place.path("home");
    let known = home.join(".config/docker/certs.d").join(host);
    std::fs::create_dir_all(known.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(&bob, &known).unwrap();
    let mut command = place.command(["remote", "digest", &name]);
    Ran::of(command.env("HOME", &home)).ok();
    let mut command = place.command(["push", &pushed]);
    Ran::of(command.env("HOME", &home)).fails(4, "`bob` may not push `team/own`");
    place.run(["remote", "digest", &name]).fails(4, "");
    let audit = std::fs::read_to_string(place.path("audit")).unwrap();
    assert!(
        audit.contains("\"user\":\"ann\",\"via\":\"certificate\""),
        "{audit}"
    );
}
