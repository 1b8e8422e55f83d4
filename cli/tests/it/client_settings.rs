//! What other tools' files and the environment say of registries: credentials, certificates, proxies.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex};

use crate::support::{Place, Ran, Server, given, tool, workspace};

/// A proxy of which everybody reaches one server, whatever they ask for; and what they asked for.
struct Proxy {
    url: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    fn to(server: &str) -> Proxy {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let (server, told) = (server.to_owned(), Arc::clone(&asked));
        // It ends with the process: nobody connects any more.
        std::thread::spawn(move || {
            for client in listener.incoming() {
                let (client, server, told) = (client.unwrap(), server.clone(), Arc::clone(&told));
                std::thread::spawn(move || carry(client, &server, &told));
            }
        });
        Proxy { url, asked }
    }

    /// The first lines of requests since the last look.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn carry(client: TcpStream, server: &str, told: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(client.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let request = head[0].trim_end_matches(" HTTP/1.1").to_owned();
    let connects = request.starts_with("CONNECT ");
    told.lock().unwrap().push(request);
    let mut client = client;
    if !connects {
        // Plain http is told of, and goes nowhere.
        let _ = client.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n");
        return;
    }
    let mut there = TcpStream::connect(server).unwrap();
    client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
    let (mut back, mut to_client) = (there.try_clone().unwrap(), client);
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut back, &mut to_client);
        let _ = to_client.shutdown(std::net::Shutdown::Both);
    });
    let _ = std::io::copy(&mut reader, &mut there);
    let _ = there.shutdown(std::net::Shutdown::Both);
}

/// A file of the client's tests of TLS: an authority, and a server that it knows as `registry.test`.
fn tls(name: &str) -> PathBuf {
    workspace().join("registry-client/testdata/tls").join(name)
}

/// A registry behind TLS with an image, and the proxy by which `registry.test` is it.
struct Secure {
    place: Place,
    server: Server,
    proxy: Proxy,
    /// `registry.test:PORT`
    host: String,
}

impl Secure {
    fn new() -> Secure {
        let place = Place::new();
        let config = place.path("registry.toml");
        let (cert, key) = (tls("server.crt"), tls("server.key"));
        let text = format!(
            "root = \"registry\"\n[tls]\ncert = \"{}\"\nkey = \"{}\"\n",
            cert.display(),
            key.display()
        );
        std::fs::write(&config, text).unwrap();
        let server = Server::registry_told(&config);
        let context = place.context(
            "ctx",
            &[("f", "1"), ("Dockerfile", "FROM scratch\nCOPY f /f\n")],
        );
        let local = format!("{}/app:1", server.host);
        place.ok(["build", "-q", "-t", &local], [&context]);
        place.run(["push", "-q", &local]).ok();
        let port = server.host.rsplit(':').next().unwrap();
        Secure {
            host: format!("registry.test:{port}"),
            proxy: Proxy::to(&server.host),
            place,
            server,
        }
    }

    fn digest(&self) -> String {
        let local = format!("{}/app:1", self.server.host);
        self.place.run(["remote", "digest", &local]).ok()
    }

    /// The binary, with a home of its own and nothing else of the environment's that speaks of proxies and certificates.
    fn command(&self, words: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = self.place.command(words);
        for name in ["http_proxy", "https_proxy", "no_proxy", "all_proxy"] {
            command.env_remove(name).env_remove(name.to_uppercase());
        }
        command
            .env_remove("SSL_CERT_FILE")
            .env_remove("SSL_CERT_DIR")
            .env("HOME", self.place.path("home"))
            .envs(variables.iter().copied());
        command
    }

    fn ask(&self, flags: &[&str], variables: &[(&str, &str)]) -> Ran {
        let name = format!("{}/app:1", self.host);
        let words = [&["remote", "digest"], flags, &[&name]].concat();
        Ran::of(&mut self.command(&words, variables))
    }
}

#[test]
fn authorities_and_proxies_are_the_hosts() {
    let world = Secure::new();
    let expected = world.digest();
    let ca = tls("ca.crt");
    let (ca, proxy) = (ca.to_str().unwrap(), world.proxy.url.as_str());
    let connects = format!("CONNECT {}", world.host);
    let goes_there = |proxies: &[(&str, &str)]| {
        let trusting = [&[("SSL_CERT_FILE", ca)], proxies].concat();
        assert_eq!(world.ask(&[], &trusting).ok(), expected, "{proxies:?}");
        let asked = world.proxy.asked();
        assert!(!asked.is_empty(), "{proxies:?}");
        assert!(asked.iter().all(|line| *line == connects), "{asked:?}");
    };
    goes_there(&[("HTTPS_PROXY", proxy)]);
    goes_there(&[("https_proxy", proxy)]);
    // Who writes it in small letters is believed.
    goes_there(&[
        ("https_proxy", proxy),
        ("HTTPS_PROXY", "http://127.0.0.1:1"),
    ]);
    goes_there(&[
        ("HTTPS_PROXY", proxy),
        ("NO_PROXY", "other.test,10.0.0.0/8"),
    ]);
    let goes_elsewhere = |proxies: &[(&str, &str)]| {
        let trusting = [&[("SSL_CERT_FILE", ca)], proxies].concat();
        world
            .ask(&[], &trusting)
            .fails(3, "cannot reach `registry.test");
        assert_eq!(world.proxy.asked(), [] as [&str; 0], "{proxies:?}");
    };
    goes_elsewhere(&[]);
    goes_elsewhere(&[("HTTP_PROXY", proxy)]);
    for except in ["registry.test", ".test", "*"] {
        goes_elsewhere(&[("HTTPS_PROXY", proxy), ("NO_PROXY", except)]);
        goes_elsewhere(&[("HTTPS_PROXY", proxy), ("no_proxy", except)]);
    }
    // This machine is never looked for there.
    let local = format!("{}/app:1", world.server.host);
    let mut command = world.command(
        &["remote", "digest", &local],
        &[("HTTPS_PROXY", proxy), ("HTTP_PROXY", proxy)],
    );
    assert_eq!(Ran::of(&mut command).ok(), expected);
    assert_eq!(world.proxy.asked(), [] as [&str; 0]);
    // Plain http has a proxy of its own.
    let ran = world.ask(&["--insecure"], &[("HTTP_PROXY", proxy)]);
    assert_ne!(ran.code, Some(0), "{ran}");
    let asked = world.proxy.asked();
    let plain = format!("GET http://{}/v2/", world.host);
    assert!(asked[0].starts_with(&plain), "{asked:?}");
}

#[test]
fn certificates_are_believed_where_somebody_says_so() {
    let world = Secure::new();
    let expected = world.digest();
    let proxy = [("HTTPS_PROXY", world.proxy.url.as_str())];
    let ca = tls("ca.crt");
    let ca = ca.to_str().unwrap();
    let refused = |flags: &[&str]| {
        let ran = world.ask(flags, &proxy);
        ran.fails(3, "certs.d");
        assert!(ran.stderr.contains("certificate"), "{ran}");
    };
    refused(&[]);
    let directory = world.place.path("hashed");
    std::fs::create_dir(&directory).unwrap();
    tool("cp", &[ca, directory.to_str().unwrap()]);
    tool("openssl", &["rehash", directory.to_str().unwrap()]);
    for (name, value) in [
        ("SSL_CERT_FILE", ca),
        ("SSL_CERT_DIR", directory.to_str().unwrap()),
    ] {
        let ran = world.ask(&[], &[proxy[0], (name, value)]);
        assert_eq!(ran.ok(), expected, "{name}");
    }
    let folder = world.place.path("certs");
    std::fs::create_dir(&folder).unwrap();
    std::fs::copy(ca, folder.join("ca.crt")).unwrap();
    let empty = world.place.path("empty");
    std::fs::create_dir(&empty).unwrap();
    let (folder, empty) = (folder.to_str().unwrap(), empty.to_str().unwrap());
    for flags in [
        &["--cert-dir", folder][..],
        &["--insecure"],
        &["--tls-verify=false"],
    ] {
        assert_eq!(world.ask(flags, &proxy).ok(), expected, "{flags:?}");
    }
    refused(&["--tls-verify=true"]);
    refused(&["--cert-dir", empty]);
    world
        .ask(&["--cert-dir", "/nowhere"], &proxy)
        .fails(3, "/nowhere");
    // Docker's folder and containers', and the flag in their place.
    for kind in ["docker", "containers"] {
        let below = format!("home/.config/{kind}/certs.d");
        let known = world.place.path(&below).join(&world.host);
        std::fs::create_dir_all(&known).unwrap();
        std::fs::copy(ca, known.join("ca.crt")).unwrap();
        assert_eq!(world.ask(&[], &proxy).ok(), expected, "{kind}");
        refused(&["--cert-dir", empty]);
        std::fs::remove_dir_all(known).unwrap();
    }
    // Our own configuration, and containerd's words in a file.
    let own = world.place.path("own.toml");
    let text = format!("[registry.\"{}\"]\nca = [\"{ca}\"]\n", world.host);
    std::fs::write(&own, text).unwrap();
    let flags = ["--config", own.to_str().unwrap()];
    assert_eq!(world.ask(&flags, &proxy).ok(), expected);
    refused(&[]);

    // A list of skopeo's, which may say it of each registry; a login, and both sides of a copy.
    let list = world.place.path("list.yaml");
    let to = format!("oci:{}", world.place.path("layout").display());
    let yaml = format!("yaml:{}", list.display());
    let sync = |key: &str| {
        let text = format!("{}:\n  images:\n    app: [\"1\"]\n{key}", world.host);
        std::fs::write(&list, text).unwrap();
        Ran::of(&mut world.command(&["remote", "sync", &yaml, &to], &proxy))
    };
    sync("").fails(3, "certs.d");
    let done = sync(&format!("  cert-dir: {folder}\n")).ok();
    assert!(done.ends_with(&expected), "{done}");
    let login = ["login", "-u", "u", "--password-stdin", "--cert-dir", folder];
    let mut login = world.command(&[&login[..], &[&world.host]].concat(), &proxy);
    assert_eq!(given(&mut login, "p").ok(), "Login Succeeded");
    let name = format!("{}/app:1", world.host);
    let copy = ["copy", "-q", "--src-cert-dir", folder, &name, &to];
    Ran::of(&mut world.command(&copy, &proxy)).ok();
    let copy = ["copy", "-q", "--dest-cert-dir", folder, &name, &to];
    Ran::of(&mut world.command(&copy, &proxy)).fails(3, "certs.d");
}

/// A registry that knows `user` with the password `secret`, with an image.
fn locked(place: &Place) -> Server {
    let users = place.path("users");
    let line = place
        .run(["registry", "htpasswd", "-nbB", "user", "secret"])
        .ok();
    std::fs::write(&users, line).unwrap();
    let flags = ["--htpasswd", users.to_str().unwrap()];
    let registry = Server::registry_with(&place.path("registry"), &flags);
    let context = place.context(
        "ctx",
        &[("f", "1"), ("Dockerfile", "FROM scratch\nCOPY f /f\n")],
    );
    let name = format!("{}/app:1", registry.host);
    place.ok(["build", "-q", "-t", &name], [&context]);
    place
        .run(["push", "-q", "--creds", "user:secret", &name])
        .ok();
    registry
}

/// What a file says of a registry: `user` with a password.
fn entry(host: &str, password: &str) -> String {
    use base64::Engine as _;
    let pair = format!("user:{password}");
    let auth = base64::engine::general_purpose::STANDARD.encode(pair);
    serde_json::json!({"auths": {host: {"auth": auth}}}).to_string()
}

fn put(path: &Path, text: &str) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
}

/// Docker's file goes before podman's, and of those the one that is named before the session's before the home's.
#[test]
fn files_of_credentials_are_asked_in_their_order() {
    let place = Place::new();
    let registry = locked(&place);
    let files = [
        place.path("docker/config.json"),
        place.path("named.json"),
        place.path("run/containers/auth.json"),
        place.path("home/.config/containers/auth.json"),
    ];
    let ask = || {
        let mut command = place.command(["remote", "digest", &format!("{}/app:1", registry.host)]);
        command
            .env("REGISTRY_AUTH_FILE", &files[1])
            .env("XDG_RUNTIME_DIR", place.path("run"))
            .env("HOME", place.path("home"));
        Ran::of(&mut command)
    };
    ask().fails(4, "longshore login");
    // From the last to the first: the one that has just been written decides.
    for (number, file) in files.iter().enumerate().rev() {
        put(file, &entry(&registry.host, "wrong"));
        ask().fails(4, "refused the credentials");
        put(file, &entry(&registry.host, "secret"));
        let ran = ask();
        assert_eq!(ran.code, Some(0), "{number}: {ran}");
        // Who is not in one file is looked for in the next.
        put(file, &entry("other.example", "wrong"));
        if number < 3 {
            ask().ok();
        }
        put(file, &entry(&registry.host, "secret"));
    }
}

/// Who logs in with one tool is known to the others.
#[test]
fn logins_of_all_tools_are_known_to_all() {
    let place = Place::new();
    let registry = locked(&place);
    let host = registry.host.as_str();
    let (ours, theirs) = (place.path("ours.json"), place.path("theirs.json"));
    let (ours, theirs) = (ours.to_str().unwrap(), theirs.to_str().unwrap());
    let team = format!("{host}/app");
    let login = ["login", "-u", "user", "-p", "secret", "--authfile"];
    place.run([&login[..], &[ours, &team]].concat()).ok();
    let skopeo = ["login", "--tls-verify=false", "-u", "user", "-p", "secret"];
    tool(
        "skopeo",
        &[&skopeo[..], &["--authfile", theirs, &team]].concat(),
    );
    let read = |file: &str| -> serde_json::Value {
        serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap()
    };
    assert_eq!(read(ours), read(theirs));
    let mode = std::fs::metadata(ours).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let name = format!("{team}:1");
    for file in [ours, theirs] {
        place
            .run(["remote", "digest", "--authfile", file, &name])
            .ok();
        let theirs = format!("docker://{name}");
        let inspect = ["inspect", "--tls-verify=false", "--authfile", file];
        tool("skopeo", &[&inspect[..], &[&theirs]].concat());
        let shown = place.run(["login", "--get-login", "--authfile", file, &team]);
        assert_eq!(shown.ok(), "user");
        // It is for what is below that path alone.
        let whole = place.run(["login", "--get-login", "--authfile", file, host]);
        whole.fails(1, "not logged in");
    }
    let logout = ["logout", "--authfile", theirs, &team];
    place.run(logout).ok();
    assert_eq!(read(theirs), serde_json::json!({"auths": {}}));
    let none = place.run(["remote", "digest", "--authfile", theirs, &name]);
    none.fails(4, "longshore login");
}

/// A credential helper that keeps what it is given in a file beside it.
const HELPER: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
case "$1" in
    store) cat > kept ;;
    get) cat kept 2>/dev/null || { echo "credentials not found in native keychain"; exit 1; } ;;
    erase) rm -f kept ;;
esac
"#;

#[test]
fn helpers_keep_what_a_login_gives_them() {
    let place = Place::new();
    let registry = locked(&place);
    let host = registry.host.as_str();
    let helper = place.path("bin/docker-credential-kept");
    put(&helper, HELPER);
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&helper, executable).unwrap();
    let path = std::env::var("PATH").unwrap();
    let path = format!("{}:{path}", place.path("bin").display());
    let run = |words: &[&str]| Ran::of(place.command(words).env("PATH", &path));
    let config = place.path("docker/config.json");
    let name = format!("{host}/app:1");
    for settings in [
        serde_json::json!({"credsStore": "kept"}),
        serde_json::json!({"credHelpers": {host: "kept"}, "credsStore": "is-not-asked"}),
    ] {
        put(&config, &settings.to_string());
        run(&["remote", "digest", &name]).fails(4, "longshore login");
        run(&["login", "-u", "user", "-p", "secret", host]).ok();
        let written = std::fs::read_to_string(&config).unwrap();
        assert!(!written.contains("\"auth\""), "{written}");
        assert!(place.path("bin/kept").exists());
        run(&["remote", "digest", &name]).ok();
        assert_eq!(run(&["login", "--get-login", host]).ok(), "user");
        run(&["logout", host]).ok();
        assert!(!place.path("bin/kept").exists());
        run(&["remote", "digest", &name]).fails(4, "longshore login");
    }
}
