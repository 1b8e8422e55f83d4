//! Who may do what in a registry, through the binary: a policy, users whose lines the binary made, and every tool that people log in
//! with. And what of it is written down: every change, and no secret.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::docker::Docker;
use crate::interop::Podman;
use crate::support::{Place, Ran, Server, given, tool};

/// Passwords that nothing else looks like.
const ANN: (&str, &str) = ("ann", "anns-staple-4711");
const BOB: (&str, &str) = ("bob", "bobs-battery-0815");

/// What ann, of the team, may, and bob, who is not, and everybody.
const POLICY: &str = r#"
access_log = "access.jsonl"
root = "registry"

[auth]
htpasswd = "users"
groups = { team = ["ann"] }

[audit]
file = "audit.jsonl"

[[policy]]
repositories = ["public/*"]
anonymous = true
actions = ["pull"]

[[policy]]
repositories = ["public/*", "team/*"]
groups = ["team"]
actions = ["pull", "push"]

[[policy]]
repositories = ["team/shared"]
users = ["bob"]
actions = ["pull"]
"#;

/// Everything that tools and servers wrote, to look for secrets in.
#[derive(Default)]
struct Heard(Mutex<String>);

impl Heard {
    fn ran(&self, ran: Ran) -> Ran {
        let mut all = self.0.lock().unwrap();
        all.push_str(&ran.stdout);
        all.push_str(&ran.stderr);
        ran
    }
}

/// A tool that logs in, pushes and pulls; what it has to push is the image `example.test/app:1`.
trait Peer {
    fn name(&self) -> &'static str;
    fn login(&self, host: &str, user: (&str, &str)) -> Ran;
    fn logout(&self, host: &str);
    fn push(&self, name: &str) -> Ran;
    fn pull(&self, name: &str) -> Ran;
}

const IMAGE: &str = "example.test/app:1";

struct Longshore<'p>(&'p Place);

impl Peer for Longshore<'_> {
    fn name(&self) -> &'static str {
        "longshore"
    }

    fn login(&self, host: &str, (user, password): (&str, &str)) -> Ran {
        let words = ["login", "--log-level", "trace", "-u", user];
        let words = [&words[..], &["--password-stdin", host]].concat();
        given(&mut self.0.command(words), password)
    }

    fn logout(&self, host: &str) {
        self.0.run(["logout", host]).ok();
    }

    fn push(&self, name: &str) -> Ran {
        self.0.run(["tag", IMAGE, name]).ok();
        self.0.run(["push", "--log-level", "trace", name])
    }

    fn pull(&self, name: &str) -> Ran {
        // Into nothing: what the store has is not asked for.
        let layout = self.0.path("pulled");
        let _ = std::fs::remove_dir_all(&layout);
        let to = format!("oci:{}", layout.display());
        self.0.run(["copy", "--log-level", "trace", name, &to])
    }
}

/// skopeo, and podman and buildah on a storage of theirs: the same flags.
struct Containers<'p> {
    program: &'static str,
    podman: &'p Podman,
    credentials: PathBuf,
    archive: &'p Path,
}

impl Containers<'_> {
    fn run(&self, words: &[&str]) -> Ran {
        Ran::of(&mut self.command(words))
    }

    fn command(&self, words: &[&str]) -> Command {
        let file = self.credentials.to_str().unwrap();
        let mut all = vec![words[0], "--authfile", file];
        all.extend(&words[1..]);
        if self.program == "skopeo" {
            let mut command = Command::new("skopeo");
            command.args(all);
            return command;
        }
        self.podman.command(self.program, &all)
    }
}

impl Peer for Containers<'_> {
    fn name(&self) -> &'static str {
        self.program
    }

    fn login(&self, host: &str, (user, password): (&str, &str)) -> Ran {
        let words = ["login", "--tls-verify=false", "-u", user];
        let words = [&words[..], &["--password-stdin", host]].concat();
        given(&mut self.command(&words), password)
    }

    fn logout(&self, host: &str) {
        // Not from where nobody is logged in.
        let _left = self.run(&["logout", host]);
    }

    fn push(&self, name: &str) -> Ran {
        let to = format!("docker://{name}");
        if self.program == "skopeo" {
            let from = format!("docker-archive:{}", self.archive.display());
            let words = ["copy", "-q", "--insecure-policy", "--dest-tls-verify=false"];
            return self.run(&[&words[..], &[&from, &to]].concat());
        }
        self.run(&["push", "-q", "--tls-verify=false", IMAGE, &to])
    }

    fn pull(&self, name: &str) -> Ran {
        if self.program == "skopeo" {
            let from = format!("docker://{name}");
            return self.run(&["inspect", "--tls-verify=false", &from]);
        }
        let always: &[&str] = match self.program {
            "buildah" => &["--policy", "always"],
            _ => &[],
        };
        let words = [&["pull", "-q", "--tls-verify=false"], always, &[name]].concat();
        self.run(&words)
    }
}

impl Peer for Docker {
    fn name(&self) -> &'static str {
        "docker"
    }

    fn login(&self, host: &str, (user, password): (&str, &str)) -> Ran {
        let words = ["login", "-u", user, "--password-stdin", host];
        given(&mut self.command(&words), password)
    }

    fn logout(&self, host: &str) {
        self.run(&["logout", host]).ok();
    }

    fn push(&self, name: &str) -> Ran {
        self.run(&["tag", IMAGE, name]).ok();
        self.run(&["push", name])
    }

    fn pull(&self, name: &str) -> Ran {
        self.run(&["pull", "-q", name])
    }
}

/// A users file, made by the binary: ann's hash is Argon2's, bob's bcrypt's.
fn users(place: &Place) {
    let file = place.path("users");
    let file = file.to_str().unwrap();
    let add = |words: &[&str], (user, password): (&str, &str)| {
        let words = [&["registry", "htpasswd", "-i"], words, &[file, user]].concat();
        given(&mut place.command(words), password).ok();
    };
    add(&[], ANN);
    add(&["-B", "-C", "5"], BOB);
    let text = std::fs::read_to_string(file).unwrap();
    assert!(
        text.contains("ann:$argon2id$") && text.contains("bob:$2y$05$"),
        "{text}"
    );
}

fn serve(place: &Place) -> Server {
    users(place);
    let config = place.path("registry.toml");
    std::fs::write(&config, POLICY).unwrap();
    Server::registry_told(&config)
}

/// That nothing of what was said or written down is a secret.
fn no_secrets(place: &Place, heard: &Heard) {
    let mut all = std::mem::take(&mut *heard.0.lock().unwrap());
    for file in ["registry.log", "access.jsonl", "audit.jsonl"] {
        let text = std::fs::read_to_string(place.path(file)).unwrap();
        assert!(!text.is_empty(), "{file}");
        all.push_str(&text);
    }
    for (user, password) in [ANN, BOB] {
        let pair = STANDARD.encode(format!("{user}:{password}"));
        for secret in [password, &pair, &STANDARD.encode(password)] {
            assert!(!all.contains(secret), "`{secret}` of {user} is in\n{all}");
        }
    }
    // What every signed token begins with: `{"` in base64.
    for line in all.lines() {
        assert!(!line.contains("eyJ"), "a token is in {line}");
    }
}

fn lines(place: &Place, file: &str) -> Vec<Value> {
    let text = std::fs::read_to_string(place.path(file)).unwrap();
    let lines = text.lines().map(|line| serde_json::from_str(line).unwrap());
    lines.collect()
}

/// Every tool may what its user may, and no more; nothing that anybody writes down is a secret.
#[test]
fn every_tool_may_what_its_user_may() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let registry = serve(&place);
    let host = registry.host.as_str();
    let heard = Heard::default();
    let archive = place.path("app.tar");
    place.ok(["save", IMAGE, "-o"], [&archive]);
    let podman = Podman::new(&place);
    podman.ok("podman", &["load", "-q", "-i", archive.to_str().unwrap()]);
    let containers = |program: &'static str| {
        let credentials = place.path(program).with_extension("json");
        std::fs::write(&credentials, "{}").unwrap();
        Box::new(Containers {
            program,
            podman: &podman,
            credentials,
            archive: &archive,
        })
    };
    let mut peers: Vec<Box<dyn Peer + '_>> = vec![
        Box::new(Longshore(&place)),
        containers("skopeo"),
        containers("podman"),
        containers("buildah"),
    ];
    if let Some(docker) = Docker::start() {
        docker.load(&archive);
        peers.push(Box::new(docker));
    }
    let first = &peers[0];
    heard.ran(first.login(host, ANN)).ok();
    for name in ["public/app", "team/app", "team/shared"] {
        heard.ran(first.push(&format!("{host}/{name}:v1"))).ok();
    }
    first.logout(host);
    for peer in &peers {
        let tool = peer.name();
        let check = |ran: Ran, expect: bool, what: &str| {
            let ran = heard.ran(ran);
            assert_eq!(ran.code == Some(0), expect, "{tool}, {what}: {ran}");
        };
        let pull =
            |name: &str, expect| check(peer.pull(&format!("{host}/{name}:v1")), expect, name);
        let push = |name: &str, expect| {
            let name = format!("{host}/{name}:{tool}");
            check(peer.push(&name), expect, &name);
        };
        pull("public/app", true);
        pull("team/app", false);
        push("public/app", false);
        check(peer.login(host, (ANN.0, BOB.1)), false, "a wrong password");
        check(peer.login(host, ANN), true, "ann's password");
        pull("team/app", true);
        push("team/app", true);
        push("public/app", true);
        push("other/app", false);
        peer.logout(host);
        check(peer.login(host, BOB), true, "bob's password");
        pull("team/shared", true);
        pull("public/app", true);
        pull("team/app", false);
        push("team/shared", false);
        peer.logout(host);
        pull("team/app", false);
    }
    drop(peers);
    drop(registry);
    let audit = lines(&place, "audit.jsonl");
    for tool in ["longshore", "skopeo", "podman", "buildah"] {
        let put = |user: &str, name: &str, status: u16| {
            audit.iter().any(|line| {
                line["action"] == "put-manifest"
                    && line["user"] == user
                    && line["repository"] == name
                    && line["reference"] == tool
                    && line["status"] == status
                    && line["via"] == "token"
                    && line["addr"] == "127.0.0.1"
            })
        };
        assert!(put("ann", "team/app", 201), "{tool}: {audit:?}");
        assert!(!put("ann", "other/app", 201), "{tool}: {audit:?}");
        assert!(!put("bob", "team/shared", 201), "{tool}: {audit:?}");
    }
    no_secrets(&place, &heard);
}

/// Where a registry gives tokens, no password is kept; and the other tools know what is.
#[test]
fn a_login_keeps_an_identity_token() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let registry = serve(&place);
    let host = registry.host.as_str();
    let own = Longshore(&place);
    own.login(host, ANN).ok();
    let file = place.path("docker/config.json");
    let kept: Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    let entry = &kept["auths"][host];
    let nobody = STANDARD.encode(format!("{}:", ANN.0));
    assert_eq!(entry["auth"].as_str(), Some(&*nobody), "{kept}");
    assert!(entry["identitytoken"].is_string(), "{kept}");
    assert_eq!(place.run(["login", "--get-login", host]).ok(), ANN.0);
    let name = format!("{host}/team/app:v1");
    own.push(&name).ok();
    own.pull(&name).ok();
    let file = file.to_str().unwrap();
    let words = ["inspect", "--tls-verify=false", "--authfile", file];
    let skopeo = |name: &str| {
        let name = format!("docker://{name}");
        Ran::of(Command::new("skopeo").args(words).arg(name))
    };
    skopeo(&name).ok();
    own.logout(host);
    own.pull(&name).fails(4, "longshore login");
    assert_ne!(skopeo(&name).code, Some(0));
}

/// Blobs are mounted from where one may pull, and lists tell what one may see.
#[test]
fn mounts_and_lists_keep_to_the_policy() {
    let place = Place::new();
    place.add_busybox(IMAGE);
    let registry = serve(&place);
    let host = registry.host.as_str();
    let heard = Heard::default();
    let own = Longshore(&place);
    own.login(host, ANN).ok();
    let name = |name: &str| format!("{host}/{name}:v1");
    own.push(&name("team/app")).ok();
    let credentials = place.path("docker/config.json");
    let credentials = credentials.to_str().unwrap();
    place
        .run(["copy", &name("team/app"), &name("public/app")])
        .ok();
    // skopeo mounts, too, what it has seen elsewhere on the same server.
    for to in ["public/other", "public/third"] {
        let (from, to) = (name("team/app"), name(to));
        let (from, to) = (format!("docker://{from}"), format!("docker://{to}"));
        let words = ["copy", "-q", "--insecure-policy", "--authfile", credentials];
        let open = ["--src-tls-verify=false", "--dest-tls-verify=false"];
        tool("skopeo", &[&words[..], &open, &[&from, &to]].concat());
    }
    let mounted = lines(&place, "audit.jsonl");
    for repository in ["public/app", "public/third"] {
        let is = |line: &Value| {
            line["action"] == "mount-blob"
                && line["repository"] == repository
                && line["status"] == 201
        };
        assert!(mounted.iter().any(is), "{repository}: {mounted:?}");
    }
    let listed = |place: &Place| heard.ran(place.run(["remote", "ls", host]));
    assert_eq!(
        listed(&place).ok(),
        "public/app\npublic/other\npublic/third\nteam/app"
    );
    let tags = |place: &Place, name: &str| {
        heard.ran(place.run(["remote", "tags", &format!("{host}/{name}")]))
    };
    assert_eq!(tags(&place, "team/app").ok(), "v1");
    let bob = Place::new();
    Longshore(&bob).login(host, BOB).ok();
    assert_eq!(listed(&bob).ok(), "public/app\npublic/other\npublic/third");
    tags(&bob, "team/app").fails(4, "");
    let anonymous = Place::new();
    assert_eq!(tags(&anonymous, "public/app").ok(), "v1");
    tags(&anonymous, "team/app").fails(4, "");
    drop(registry);
    no_secrets(&place, &heard);
}

/// `registry htpasswd` writes what servers read, ours at once and Debian's, and changes nothing else.
#[test]
fn users_are_written_for_both_registries() {
    let place = Place::new();
    let file = place.path("users");
    let path = file.to_str().unwrap();
    let run = |words: &[&str], password: &str| {
        let words = [&["registry", "htpasswd"], words].concat();
        given(&mut place.command(words), password)
    };
    std::fs::write(&file, "# ours\nold:$apr1$x$y\n").unwrap();
    run(&["-iB", "-C", "4", path, "ann"], "first\n").ok();
    run(&["-c", "-i", path, "ann"], "x").fails(2, "is there already");
    // The owner may have let others read it.
    tool("chmod", &["640", path]);
    let link = place.path("link");
    std::os::unix::fs::symlink(&file, &link).unwrap();
    run(
        &["-B", "-C4", "-b", link.to_str().unwrap(), "bob", "bobs"],
        "",
    )
    .ok();
    assert!(link.is_symlink());
    assert_eq!(tool("stat", &["-c", "%a", path]), "640");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(
        text.starts_with("# ours\nold:$apr1$x$y\nann:$2y$04$"),
        "{text}"
    );
    run(&["-D", path, "old"], "").ok();
    run(&["-D", path, "old"], "").fails(1, "there is no user `old`");
    run(&["-vi", path, "ann"], "first").ok();
    run(&["-vi", path, "ann"], "second").fails(1, "the password is wrong");
    run(&["-i", path, "a:b"], "x").fails(2, "is no user name");
    run(&["-i", path], "x").fails(2, "expected FILE USER");
    run(&["-i", path, "ann"], "\n").fails(2, "the password may not be empty");
    run(&["-iB", path, "ann"], &"x".repeat(73)).fails(2, "at most 72 bytes");
    run(&[path, "ann"], "").fails(2, "--password-stdin");
    run(&["-iD", path, "ann"], "").fails(2, "cannot be used with");
    run(&["-i", "/nowhere/users", "ann"], "x").fails(3, "/nowhere");
    let line = run(&["-nbB", "cy", "secret"], "").ok();
    assert!(line.starts_with("cy:$2y$10$"), "{line}");
    assert!(
        run(&["-ni", "cy"], "s")
            .ok()
            .starts_with("cy:$argon2id$v=19$")
    );

    let auth = format!("auth: {{htpasswd: {{realm: x, path: {path}}}}}");
    let theirs = Server::docker_registry_with(&place.path("theirs"), &auth);
    let ours = Server::registry_with(&place.path("ours"), &["--htpasswd", path]);
    let login = |server: &Server, user: &str, password: &str| {
        let words = ["login", "-u", user, "-p", password, &server.host];
        place.run(words).code
    };
    for server in [&theirs, &ours] {
        assert_eq!(login(server, "ann", "first"), Some(0));
        assert_eq!(login(server, "bob", "bobs"), Some(0));
        assert_eq!(login(server, "bob", "first"), Some(4));
    }
    run(&["-i", path, "ann"], "second").ok();
    assert_eq!(login(&ours, "ann", "first"), Some(4));
    assert_eq!(login(&ours, "ann", "second"), Some(0));
    // Many at once: none is lost.
    std::thread::scope(|scope| {
        for number in 0..8 {
            let run = &run;
            scope.spawn(move || run(&["-iBC4", path, &format!("u{number}")], "x").ok());
        }
    });
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        text.lines().filter(|line| line.starts_with('u')).count(),
        8,
        "{text}"
    );
}
