//! Files behind URLs and git repositories, as contexts and in `ADD`: what is asked of their servers, and what comes out.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use crate::contexts::files;
use crate::support::{Built, Place, free_port};

/// A web server that counts what it is asked, and answers as a test wants.
struct Web {
    host: String,
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    pages: BTreeMap<String, Page>,
    requests: Vec<String>,
}

#[derive(Clone, Default)]
struct Page {
    status: &'static str,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Web {
    fn new() -> Web {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(Mutex::new(Shared::default()));
        let serving = Arc::clone(&shared);
        // It ends with the process: nobody connects any more.
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let serving = Arc::clone(&serving);
                std::thread::spawn(move || serve(&stream.unwrap(), &serving));
            }
        });
        Web { host, shared }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.host)
    }

    fn put(&self, path: &str, body: &[u8], headers: &[(&'static str, &str)]) {
        self.answer(path, "200 OK", body, headers);
    }

    fn answer(
        &self,
        path: &str,
        status: &'static str,
        body: &[u8],
        headers: &[(&'static str, &str)],
    ) {
        let page = Page {
            status,
            headers: headers
                .iter()
                .map(|(name, value)| (*name, (*value).to_owned()))
                .collect(),
            body: body.to_vec(),
        };
        self.shared
            .lock()
            .unwrap()
            .pages
            .insert(path.to_owned(), page);
    }

    /// What was asked since the last call: method, path, and an `Authorization` if there was one.
    fn asked(&self) -> Vec<String> {
        std::mem::take(&mut self.shared.lock().unwrap().requests)
    }
}

fn serve(stream: &TcpStream, shared: &Mutex<Shared>) {
    let mut reader = BufReader::new(stream);
    loop {
        let mut lines = Vec::new();
        loop {
            let mut line = String::new();
            if reader.read_line(&mut line).unwrap_or(0) == 0 {
                return;
            }
            if line.trim().is_empty() {
                break;
            }
            lines.push(line.trim().to_owned());
        }
        let header = |name: &str| {
            lines.iter().find_map(|line| {
                let (found, value) = line.split_once(": ")?;
                found.eq_ignore_ascii_case(name).then(|| value.to_owned())
            })
        };
        let mut words = lines[0].split(' ');
        let (method, path) = (words.next().unwrap(), words.next().unwrap());
        let mut said = format!("{method} {path}");
        if let Some(authorization) = header("authorization") {
            said += &format!(" {authorization}");
        }
        let page = {
            let mut shared = shared.lock().unwrap();
            shared.requests.push(said);
            shared.pages.get(path).cloned().unwrap_or(Page {
                status: "404 Not Found",
                ..Page::default()
            })
        };
        let own = |name: &str| {
            let mut headers = page.headers.iter();
            headers
                .find(|(found, _)| *found == name)
                .map(|(_, value)| value.clone())
        };
        let same =
            |asked: &str, has: &str| header(asked).is_some_and(|value| Some(value) == own(has));
        let unchanged = same("if-none-match", "ETag") || same("if-modified-since", "Last-Modified");
        let (status, body) = match unchanged {
            true => ("304 Not Modified", &[][..]),
            false => (page.status, &page.body[..]),
        };
        let mut answer = format!("HTTP/1.1 {status}\r\n");
        for (name, value) in &page.headers {
            answer += &format!("{name}: {value}\r\n");
        }
        if !unchanged {
            answer += &format!("Content-Length: {}\r\n", body.len());
        }
        answer += "\r\n";
        let mut stream = stream;
        let sent = stream.write_all(answer.as_bytes());
        let body = if method == "HEAD" { &[][..] } else { body };
        if sent.and_then(|()| stream.write_all(body)).is_err() {
            return;
        }
    }
}

const DATE: &str = "Tue, 02 Jan 2024 03:04:05 GMT";
const DATE_SECONDS: i64 = 1_704_164_645;

/// Writes a Dockerfile that begins `FROM scratch`, and builds it; returns what ran.
fn build(place: &Place, lines: &str) -> Built {
    let context = place.context(
        "context",
        &[("Dockerfile", &format!("FROM scratch\n{lines}"))],
    );
    place.build("test", &context)
}

#[track_caller]
fn refused(place: &Place, lines: &str, why: &str) {
    let context = place.context(
        "context",
        &[("Dockerfile", &format!("FROM scratch\n{lines}"))],
    );
    place.words(["build"], [context]).fails(1, why);
}

/// The result of the same, as a folder.
fn result(place: &Place, lines: &str) -> PathBuf {
    let context = place.context(
        "context",
        &[("Dockerfile", &format!("FROM scratch\n{lines}"))],
    );
    files(place, &[context.to_str().unwrap()]);
    place.path("out")
}

#[test]
fn a_file_is_downloaded_once() {
    let place = Place::new();
    let web = Web::new();
    web.put(
        "/d/one",
        b"1",
        &[("ETag", "\"1\""), ("Last-Modified", DATE)],
    );
    web.put("/", b"root", &[]);
    let line = format!("ADD {} /\nADD {} /x/\n", web.url("/d/one?q"), web.url("/"));
    web.put(
        "/d/one?q",
        b"1",
        &[("ETag", "\"1\""), ("Last-Modified", DATE)],
    );
    let out = result(&place, &line);
    let one = std::fs::metadata(out.join("one")).unwrap();
    assert_eq!(
        (one.mode() & 0o7777, one.mtime(), one.uid()),
        (0o600, DATE_SECONDS, 0)
    );
    let unnamed = std::fs::metadata(out.join("x/__unnamed__")).unwrap();
    assert_eq!((unnamed.mode() & 0o7777, unnamed.mtime()), (0o600, 0));
    let mut asked = web.asked();
    asked.sort();
    assert_eq!(asked, ["GET /", "GET /d/one?q"]);
    // With a tag it is asked for its state, without anything it is downloaded; nothing runs.
    let built = build(&place, &line);
    assert_eq!(
        built
            .ran
            .iter()
            .filter(|name| name.contains("] ADD"))
            .count(),
        0,
        "{built:?}"
    );
    let mut asked = web.asked();
    asked.sort();
    assert_eq!(asked, ["GET /", "HEAD /d/one?q"]);
    // Another tag: downloaded; the same bytes: nothing runs. Other bytes: what copies them runs.
    let first = format!("ADD {} /\n", web.url("/d/one?q"));
    web.put("/d/one?q", b"1", &[("ETag", "\"2\"")]);
    let built = build(&place, &first);
    assert_eq!(web.asked(), ["HEAD /d/one?q", "GET /d/one?q"]);
    assert!(
        !built.ran.iter().any(|name| name.contains("] ADD")),
        "{built:?}"
    );
    web.put("/d/one?q", b"2", &[("Last-Modified", DATE)]);
    let built = build(&place, &first);
    assert!(
        built.ran.iter().any(|name| name.contains("] ADD")),
        "{built:?}"
    );
    web.asked();
    build(&place, &first);
    assert_eq!(
        web.asked(),
        ["HEAD /d/one?q"],
        "by the time of its last change"
    );
    // Another name of the same bytes; mode and owner.
    let out = result(
        &place,
        &format!("ADD --chmod=741 --chown=3:4 {} /d/n\n", web.url("/d/one?q")),
    );
    let file = std::fs::metadata(out.join("d/n")).unwrap();
    assert_eq!(
        (file.mode() & 0o7777, file.uid(), file.gid()),
        (0o741, 3, 4)
    );
}

#[test]
fn a_checksum_is_enough() {
    let place = Place::new();
    let web = Web::new();
    web.put("/f", b"content", &[]);
    let right = "ed7002b439e9ac845f22357d822bac1444730fbdb6016d3ec9432297b9ec9f73";
    let line = |sum: &str| format!("ADD --checksum=sha256:{sum} {} /f\n", web.url("/f"));
    build(&place, &line(right));
    assert_eq!(web.asked(), ["GET /f"]);
    build(&place, &line(right));
    assert!(web.asked().is_empty());
    let wrong = right.replace('e', "f");
    refused(
        &place,
        &line(&wrong),
        &format!("expected sha256:{wrong}, found sha256:{right}"),
    );
    refused(
        &place,
        &format!("ADD {} /f\n", web.url("/missing")),
        "404 Not Found",
    );
    let nobody = format!("FROM scratch\nADD http://127.0.0.1:{}/ /f\n", free_port());
    let context = place.context("context", &[("Dockerfile", &nobody)]);
    place.words(["build"], [context]).fails(3, "cannot reach");
}

/// Builds with a cache in a folder, to read and to write; what ran.
#[track_caller]
fn build_sharing(place: &Place, lines: &str, cache: &Path) -> Built {
    let dockerfile = format!("FROM scratch\n{lines}");
    let context = place.context("context", &[("Dockerfile", &dockerfile)]);
    let from = format!("type=local,src={}", cache.display());
    let to = format!("type=local,dest={}", cache.display());
    let flags = ["build", "--progress", "plain", "-t", "test"];
    let ran = place.words(
        flags
            .into_iter()
            .chain(["--cache-from", &from, "--cache-to", &to]),
        [context],
    );
    ran.ok();
    Built::of(&ran)
}

#[test]
fn what_a_cache_knows_of_a_source_is_not_fetched() {
    let owner = Place::new();
    let cache = owner.path("cache");
    let web = Web::new();
    web.put("/tagged", b"1", &[("ETag", "\"1\"")]);
    web.put("/dated", b"1", &[("Last-Modified", DATE)]);
    web.put("/bare", b"1", &[]);
    web.put("/any", b"1", &[("ETag", "*")]);
    web.put("/summed", b"s", &[]);
    let repositories = Repositories::new(&owner);
    repositories.init("r", "sha1");
    repositories.commit("r", &[("f", "one")]);
    let lines = format!(
        "ADD {} {} {} {} /\nADD --checksum={} {} /\nADD {} /r\n",
        web.url("/tagged"),
        web.url("/dated"),
        web.url("/bare"),
        web.url("/any"),
        store_digest(b"s"),
        web.url("/summed"),
        repositories.url("r"),
    );
    let asked = || {
        let mut asked = web.asked();
        asked.sort();
        asked
    };
    let mirrors = |place: &Place| {
        let folder = std::fs::read_dir(place.store().join("git"));
        folder.map_or(0, Iterator::count)
    };
    let adds = |built: &Built| {
        let ran = built.ran.iter().filter(|name| name.contains("] ADD"));
        ran.count()
    };
    let first = Place::new();
    assert_eq!(adds(&build_sharing(&first, &lines, &cache)), 3);
    let all = [
        "GET /any",
        "GET /bare",
        "GET /dated",
        "GET /summed",
        "GET /tagged",
    ];
    assert_eq!(asked(), all);
    assert_eq!(mirrors(&first), 1);

    // Elsewhere nothing is fetched that is known to be as it was: what no server tells apart has to be.
    let second = Place::new();
    let built = build_sharing(&second, &lines, &cache);
    assert_eq!(adds(&built), 0, "{built:?}");
    let expected = ["GET /any", "GET /bare", "HEAD /dated", "HEAD /tagged"];
    assert_eq!(asked(), expected);
    assert_eq!(mirrors(&second), 0);
    let out = second.path("tree");
    let copy = |place: &Place, path: &str| {
        let archive = place.path("image.tar");
        place
            .run(["save", "test", "-o", archive.to_str().unwrap()])
            .ok();
        let _ = std::fs::remove_dir_all(&out);
        let from = format!("FROM test\nCOPY --from=test /{path} /copied\n");
        let context = place.context("look", &[("Dockerfile", &from)]);
        let to = format!("type=local,dest={}", out.display());
        place.words(["build", "-q", "-o", &to], [context]).ok();
        std::fs::read_to_string(out.join("copied")).unwrap()
    };
    assert_eq!(copy(&second, "r/f"), "one");

    // A step that reads one of them has it fetched; the others stay where they are.
    let third = Place::new();
    let line = format!("{lines}ADD {} /again\n", web.url("/tagged"));
    let built = build_sharing(&third, &line, &cache);
    assert_eq!(adds(&built), 1, "{built:?}");
    let expected = [
        "GET /any",
        "GET /bare",
        "GET /tagged",
        "HEAD /dated",
        "HEAD /tagged",
    ];
    assert_eq!(asked(), expected);
    assert_eq!(copy(&third, "again"), "1");

    // What changed is fetched, by everybody, and what stands on it runs.
    web.put("/tagged", b"2", &[("ETag", "\"2\"")]);
    repositories.commit("r", &[("f", "two")]);
    for (place, ran) in [(Place::new(), 3), (Place::new(), 0)] {
        let built = build_sharing(&place, &lines, &cache);
        assert_eq!(adds(&built), ran, "{built:?}");
        let tagged = if ran == 0 {
            "HEAD /tagged"
        } else {
            "GET /tagged"
        };
        assert!(asked().contains(&tagged.to_owned()));
        assert_eq!(copy(&place, "tagged"), "2");
        assert_eq!(copy(&place, "r/f"), "two");
    }

    // Records that are wrong are told of, and everything is fetched.
    for entry in std::fs::read_dir(cache.join("entries")).unwrap() {
        let path = entry.unwrap().path();
        if path.to_str().unwrap().contains("/src-") {
            std::fs::write(path, "{").unwrap();
        }
    }
    asked();
    let fourth = Place::new();
    let built = build_sharing(&fourth, &lines, &cache);
    assert_eq!(adds(&built), 0, "{built:?}");
    assert_eq!(asked(), all);
    assert_eq!(mirrors(&fourth), 1);
}

#[test]
fn urls_that_are_archives_or_lead_elsewhere() {
    let place = Place::new();
    let web = Web::new();
    let folder = place.context(
        "packed",
        &[("Dockerfile", "FROM scratch\nCOPY d /\n"), ("d/f", "F")],
    );
    let archive = Command::new("tar")
        .arg("-C")
        .arg(&folder)
        .args(["-cz", "."])
        .output()
        .unwrap()
        .stdout;
    web.put("/a.tgz", &archive, &[("ETag", "\"a\"")]);
    web.answer("/to", "302 Found", b"", &[("Location", "/a.tgz")]);
    web.answer("/loop", "302 Found", b"", &[("Location", "/loop")]);
    web.answer(
        "/file",
        "302 Found",
        b"",
        &[("Location", "file:///etc/passwd")],
    );
    let out = result(&place, &format!("ADD {} /x/\n", web.url("/a.tgz")));
    assert_eq!(std::fs::read(out.join("x/a.tgz")).unwrap(), archive);
    let out = result(
        &place,
        &format!("ADD --unpack=true {} /x/\n", web.url("/to")),
    );
    assert_eq!(std::fs::read(out.join("x/d/f")).unwrap(), b"F");
    refused(
        &place,
        &format!("ADD {} /\n", web.url("/loop")),
        "redirects",
    );
    refused(
        &place,
        &format!("ADD {} /\n", web.url("/file")),
        "neither http nor https",
    );
    // The same archive as the main context, and as a named one, which is not unpacked.
    web.asked();
    assert_eq!(files(&place, &[&web.url("/a.tgz")])["f"], "F");
    assert_eq!(files(&place, &[&web.url("/a.tgz")])["f"], "F");
    assert_eq!(web.asked(), ["GET /a.tgz", "HEAD /a.tgz"]);
    web.put("/df", b"FROM src\nCOPY --from=src a.tgz /copied\n", &[]);
    let named = format!("src={}", web.url("/a.tgz"));
    let found = files(&place, &[&web.url("/df"), "--build-context", &named]);
    assert_eq!(found.keys().collect::<Vec<_>>(), ["a.tgz", "copied"]);
    let context = place.context("local", &[("l", "L")]);
    web.put("/df", b"FROM scratch\nCOPY l /\n", &[]);
    let found = files(&place, &["-f", &web.url("/df"), context.to_str().unwrap()]);
    assert_eq!(found["l"], "L");
    let answer = place.run(["build", &web.url("/df")]);
    answer.fails(1, "it came without one");
    place
        .run(["build", &web.url("/no.tgz")])
        .fails(1, "404 Not Found");
}

#[test]
fn secrets_are_sent_to_their_hosts() {
    let place = Place::new();
    let web = Web::new();
    let other = Web::new();
    web.answer("/f", "302 Found", b"", &[("Location", &other.url("/f"))]);
    other.put("/f", b"f", &[]);
    let text = format!("FROM scratch\nADD {} /\n", web.url("/f"));
    let context = place.context("context", &[("Dockerfile", &text)]);
    let context = context.to_str().unwrap();
    let token = place
        .context("secrets", &[("token", "t0ken\n")])
        .join("token");
    let id = format!("id=HTTP_AUTH_TOKEN_{},src={}", web.host, token.display());
    place.run(["build", "--secret", &id, context]).ok();
    assert_eq!(web.asked(), ["GET /f Bearer t0ken"]);
    assert_eq!(
        other.asked(),
        ["GET /f"],
        "the secret is not for whoever it leads to"
    );
    // git, by http: the server knows no repository, but was asked with the token.
    let git = format!("id=GIT_AUTH_TOKEN,src={}", token.display());
    let url = web.url("/r.git");
    place
        .run(["build", "--secret", &git, &url])
        .fails(1, "`git ls-remote` of");
    let asked = web.asked();
    let sent = "GET /r.git/info/refs?service=git-upload-pack Basic eC1hY2Nlc3MtdG9rZW46dDBrZW4=";
    assert!(asked.contains(&sent.to_owned()), "{asked:?}");
    // A password in a URL is sent, and not shown.
    let url = web
        .url("/p.git")
        .replace("http://", "http://user:passw0rd@");
    let refused = place.run(["build", &url]);
    refused.fails(1, "http://xxxxx@127.0.0.1");
    assert!(!refused.stderr.contains("passw0rd"), "{refused}");
}

#[test]
fn the_epoch_may_be_a_sources_time() {
    let place = Place::new();
    let web = Web::new();
    web.put("/f", b"f", &[("Last-Modified", DATE)]);
    web.put("/g", b"g", &[]);
    let text = format!(
        "ARG SOURCE_DATE_EPOCH=1600000000\n\
         FROM scratch AS dated\nADD {} /\n\
         FROM scratch AS undated\nADD {} /\n\
         FROM scratch AS other\nWORKDIR /x\n\
         FROM scratch\nCOPY a /d/\nARG SOURCE_DATE_EPOCH\nENV EPOCH=$SOURCE_DATE_EPOCH\n",
        web.url("/f"),
        web.url("/g"),
    );
    let context = place.context("context", &[("Dockerfile", &text), ("a", "A")]);
    let repositories = Repositories::new(&place);
    repositories.init("r.git", "sha1");
    repositories.commit("r.git", &[("a", "A"), ("Dockerfile", &text)]);
    let folder = context.to_str().unwrap();
    let (git, file) = (repositories.url("r.git"), web.url("/f"));
    let check = |context: &str, arguments: &[&str], expect: &str| {
        let words = [&["build", "-q", "-t", "x", context], arguments].concat();
        place.run(words).ok();
        let inspected = place.run(["inspect", "x"]).ok();
        let created = match expect {
            "" => String::new(),
            seconds => {
                let date = format!("--date=@{seconds}");
                crate::support::tool("date", &["-u", &date, "+\"%Y-%m-%dT%H:%M:%SZ\""])
            }
        };
        let env = format!("\"EPOCH={expect}\"");
        assert!(
            inspected.contains(&env) && inspected.contains(&created),
            "{arguments:?}: {inspected}"
        );
    };
    let arg = |value: &str| format!("SOURCE_DATE_EPOCH={value}");
    check(folder, &[], "1600000000");
    check(folder, &["--build-arg", &arg("1650000000")], "1650000000");
    check(folder, &["--build-arg", &arg("")], "");
    check(folder, &["--build-arg", &arg("context")], "");
    check(&git, &["--build-arg", &arg("context")], "1700000000");
    check(
        folder,
        &["--build-arg", &arg("dated")],
        &DATE_SECONDS.to_string(),
    );
    let named = [format!("r={git}"), format!("f={file}")];
    let named = ["--build-context", &named[0], "--build-context", &named[1]];
    check(
        folder,
        &[&named[..], &["--build-arg", &arg("r")]].concat(),
        "1700000000",
    );
    check(
        folder,
        &[&named[..], &["--build-arg", &arg("f")]].concat(),
        &DATE_SECONDS.to_string(),
    );
    for (value, why) in [
        (
            "yesterday",
            "SOURCE_DATE_EPOCH is `yesterday`: expected seconds since 1970",
        ),
        ("other", "SOURCE_DATE_EPOCH is `other`: expected"),
        ("undated", "does not say when it was changed last"),
    ] {
        place
            .run(["build", folder, "--build-arg", &arg(value)])
            .fails(1, why);
    }
}

/// Repositories on loopback, as `git daemon` serves them.
struct Repositories {
    folder: PathBuf,
    host: String,
    daemon: Child,
}

impl Drop for Repositories {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

impl Repositories {
    fn new(place: &Place) -> Repositories {
        let folder = place.path("repositories");
        std::fs::create_dir(&folder).unwrap();
        let port = free_port();
        // `git daemon` would leave the one that listens behind when it is killed.
        let exec_path = Command::new("git")
            .arg("--exec-path")
            .output()
            .unwrap()
            .stdout;
        let program =
            PathBuf::from(String::from_utf8(exec_path).unwrap().trim()).join("git-daemon");
        let daemon = Command::new(program)
            .args(["--export-all", "--reuseaddr", "--listen=127.0.0.1"])
            .arg(format!("--port={port}"))
            .arg(format!("--base-path={}", folder.display()))
            .env("GIT_CONFIG_COUNT", "1")
            .env("GIT_CONFIG_KEY_0", "safe.directory")
            .env("GIT_CONFIG_VALUE_0", "*")
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let host = format!("127.0.0.1:{port}");
        for _ in 0..400 {
            if TcpStream::connect(&host).is_ok() {
                break;
            }
            std::thread::sleep(std::time::Duration::from_millis(25));
        }
        Repositories {
            folder,
            host,
            daemon,
        }
    }

    fn url(&self, name: &str) -> String {
        format!("git://{}/{name}", self.host)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Runs git in a repository.
    #[track_caller]
    fn git(&self, name: &str, arguments: &[&str]) -> String {
        git(&self.path(name), arguments)
    }

    fn init(&self, name: &str, format: &str) {
        std::fs::create_dir(self.path(name)).unwrap();
        self.git(
            name,
            &[
                "init",
                "-q",
                "-b",
                "main",
                &format!("--object-format={format}"),
            ],
        );
    }

    /// Writes files and commits everything; returns the commit.
    fn commit(&self, name: &str, files: &[(&str, &str)]) -> String {
        for (path, text) in files {
            let path = self.path(name).join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        self.git(name, &["add", "-A"]);
        self.git(name, &["commit", "-q", "--allow-empty", "-m", "change"]);
        self.git(name, &["rev-parse", "HEAD"])
    }
}

#[track_caller]
fn git(folder: &Path, arguments: &[&str]) -> String {
    let output = Command::new("git")
        .args([
            "-c",
            "protocol.file.allow=always",
            "-c",
            "safe.directory=*",
            "-C",
        ])
        .arg(folder)
        .args(arguments)
        .env("GIT_CONFIG_GLOBAL", "/dev/null")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .envs(["GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"].map(|name| (name, "tester")))
        .envs(["GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"].map(|name| (name, "t@example.com")))
        .envs(["GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"].map(|name| (name, "1700000000 +0000")))
        .output()
        .unwrap();
    assert!(output.status.success(), "git {arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

#[test]
fn repositories_in_add() {
    let place = Place::new();
    let repositories = Repositories::new(&place);
    repositories.init("r.git", "sha1");
    let folder = repositories.path("r.git");
    symlink("f", folder.join("link")).unwrap();
    symlink("/etc", folder.join("out")).unwrap();
    std::fs::write(folder.join("program"), "#!/bin/sh\n").unwrap();
    git(&folder, &["add", "program"]);
    git(&folder, &["update-index", "--chmod=+x", "program"]);
    git(&folder, &["config", "core.fileMode", "false"]);
    let first = repositories.commit("r.git", &[("f", "one"), ("d/g", "G")]);
    repositories.git("r.git", &["tag", "v1"]);
    let second = repositories.commit("r.git", &[("f", "two")]);
    repositories.git("r.git", &["tag", "-a", "-m", "second", "v2"]);
    repositories.commit("r.git", &[("f", "three")]);
    let url = repositories.url("r.git");
    let content = |source: &str| {
        let out = result(&place, &format!("ADD {source} /r\n"));
        std::fs::read_to_string(out.join("r/f")).unwrap()
    };
    assert_eq!(content(&url), "three");
    assert_eq!(content(&format!("{url}#v1")), "one");
    assert_eq!(content(&format!("{url}#v2")), "two");
    assert_eq!(content(&format!("{url}?tag=v2")), "two");
    assert_eq!(content(&format!("{url}#refs/heads/main")), "three");
    assert_eq!(content(&format!("{url}#{first}")), "one");
    assert_eq!(
        content(&format!("--checksum={} {url}#v2", &second[..10])),
        "two"
    );
    assert_eq!(
        content(&format!("{url}?checksum={second}&fetch-by-commit=1")),
        "two"
    );
    // Times are no part of what a tree is: where the commit was checked out before, its copy stays as it is.
    let fresh = Place::new();
    let out = result(&fresh, &format!("ADD {url}?mtime=commit /r\n"));
    let mode = |path: &str| {
        let metadata = std::fs::symlink_metadata(out.join(path)).unwrap();
        (metadata.mode() & 0o7777, metadata.uid(), metadata.gid())
    };
    assert_eq!(mode("r/f"), (0o644, 0, 0));
    assert_eq!(mode("r/program"), (0o755, 0, 0));
    assert_eq!(mode("r/d"), (0o755, 0, 0));
    assert_eq!(
        std::fs::read_link(out.join("r/link")).unwrap(),
        Path::new("f")
    );
    assert_eq!(
        std::fs::metadata(out.join("r/f")).unwrap().mtime(),
        1_700_000_000
    );
    assert!(!out.join("r/.git").exists());
    let out = result(&place, &format!("ADD {url}#main:d /r/\n"));
    assert_eq!(std::fs::read_to_string(out.join("r/g")).unwrap(), "G");
    // A commit that is known is not fetched again, and what is built of it is not built again.
    let line = format!("ADD {url} /r\n");
    build(&place, &line);
    let built = build(&place, &line);
    assert!(built.ran.is_empty(), "{built:?}");
    repositories.commit("r.git", &[("f", "four")]);
    let built = build(&place, &line);
    assert!(
        built.ran.iter().any(|name| name.contains("] ADD")),
        "{built:?}"
    );
    for (source, why) in [
        (
            format!("{url}#v3"),
            "has no branch or tag `v3`, did you mean `v1`?",
        ),
        (format!("{url}#main:nothing"), "has no folder `nothing`"),
        (format!("{url}#main:out"), "has no folder `out`"),
        (format!("{url}#{}", "0".repeat(40)), "has no commit `0000"),
        (repositories.url("none.git"), "`git ls-remote` of"),
        (format!("--checksum={first} {url}#v2"), "digest mismatch"),
    ] {
        refused(&place, &format!("ADD {source} /r\n"), why);
    }
    let context = place.path("context");
    let path = Command::new(crate::support::LONGSHORE)
        .arg("build")
        .arg(&context)
        .env("LONGSHORE_ROOT", place.store())
        .env("PATH", "/nonexistent")
        .output()
        .unwrap();
    assert_eq!(path.status.code(), Some(3), "{path:?}");
    assert!(
        String::from_utf8_lossy(&path.stderr).contains("`git` is not installed"),
        "{path:?}"
    );
}

#[test]
fn repositories_that_are_kept_have_submodules_or_sha256() {
    let place = Place::new();
    let repositories = Repositories::new(&place);
    repositories.init("sub.git", "sha1");
    repositories.commit("sub.git", &[("s", "S")]);
    repositories.init("r.git", "sha1");
    repositories.commit("r.git", &[("f", "F")]);
    let sub = repositories.url("sub.git");
    repositories.git("r.git", &["submodule", "add", "-q", &sub, "m"]);
    let commit = repositories.commit("r.git", &[]);
    let url = repositories.url("r.git");
    let out = result(&place, &format!("ADD {url} /r\n"));
    assert_eq!(std::fs::read_to_string(out.join("r/m/s")).unwrap(), "S");
    assert!(!out.join("r/m/.git").exists() && !out.join("r/.git").exists());
    let out = result(&place, &format!("ADD {url}?submodules=false /r\n"));
    assert!(!out.join("r/m/s").exists());
    let out = result(&place, &format!("ADD --keep-git-dir=true {url}#main /r\n"));
    assert_eq!(git(&out.join("r"), &["rev-parse", "HEAD"]), commit);
    assert_eq!(git(&out.join("r"), &["status", "--porcelain"]), "");
    assert_eq!(git(&out.join("r"), &["remote", "get-url", "origin"]), url);
    // A submodule on this machine's disk is none of a repository's business.
    repositories.init("bad.git", "sha1");
    let local = repositories.path("sub.git");
    repositories.git(
        "bad.git",
        &["submodule", "add", "-q", local.to_str().unwrap(), "m"],
    );
    repositories.commit("bad.git", &[]);
    refused(
        &place,
        &format!("ADD {} /r\n", repositories.url("bad.git")),
        "transport 'file' not allowed",
    );
    repositories.init("new.git", "sha256");
    let commit = repositories.commit("new.git", &[("f", "F")]);
    assert_eq!(commit.len(), 64);
    for source in [
        repositories.url("new.git"),
        format!("{}#{commit}", repositories.url("new.git")),
    ] {
        let out = result(&place, &format!("ADD --keep-git-dir {source} /r\n"));
        assert_eq!(git(&out.join("r"), &["rev-parse", "HEAD"]), commit);
        assert_eq!(git(&out.join("r"), &["status", "--porcelain"]), "");
    }
}

#[test]
fn repositories_as_contexts() {
    let place = Place::new();
    let repositories = Repositories::new(&place);
    repositories.init("r.git", "sha1");
    // An ignore file counts for folders only.
    repositories.commit(
        "r.git",
        &[
            ("Dockerfile", "FROM scratch\nCOPY . /\n"),
            (".dockerignore", "f"),
            ("f", "F"),
            ("sub/other.df", "FROM scratch\nCOPY s /\n"),
            ("sub/s", "S"),
        ],
    );
    symlink("sub", repositories.path("r.git").join("by-link")).unwrap();
    repositories.commit("r.git", &[]);
    let url = repositories.url("r.git");
    let found = files(&place, &[&url]);
    assert_eq!(found["f"], "F");
    assert!(!found.contains_key(".git/HEAD"), "{found:?}");
    let kept = files(
        &place,
        &[&url, "--build-arg", "BUILDKIT_CONTEXT_KEEP_GIT_DIR=1"],
    );
    assert!(kept.contains_key(".git/HEAD"), "{kept:?}");
    for source in [
        format!("{url}#main:sub"),
        format!("{url}?branch=main&subdir=by-link"),
    ] {
        let found = files(&place, &[&source, "-f", "other.df"]);
        assert_eq!(
            found.into_iter().collect::<Vec<_>>(),
            [("s".to_owned(), "S".to_owned())]
        );
    }
    let context = place.context(
        "context",
        &[("Dockerfile", "FROM scratch\nCOPY --from=r sub/s /\n")],
    );
    let named = format!("r={url}");
    let found = files(
        &place,
        &[context.to_str().unwrap(), "--build-context", &named],
    );
    assert_eq!(found["s"], "S");
    place
        .run(["build", &format!("{url}#nope")])
        .fails(1, "has no branch or tag `nope`");
    place
        .run(["build", &format!("{url}#main:sub")])
        .fails(1, "cannot find a Dockerfile in git://");
    place
        .run(["build", &format!("{url}?x=y")])
        .fails(1, "unexpected query key `x`");
    // Two processes fetch one repository at once.
    let fresh = Place::new();
    let children: Vec<Child> = (0..2)
        .map(|_| {
            let mut command = fresh.command(["build", "-q", &url]);
            command
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        })
        .collect();
    for mut child in children {
        let mut said = String::new();
        child
            .stderr
            .take()
            .unwrap()
            .read_to_string(&mut said)
            .unwrap();
        assert!(child.wait().unwrap().success(), "{said}");
    }
}

/// The reasons of the last build's steps that fetched something: `kind old new`.
fn fetched(place: &Place) -> Vec<String> {
    let text = place.run(["explain", "--format", "json"]).ok();
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    let mut found = Vec::new();
    for step in value["steps"].as_array().unwrap() {
        if !matches!(step["kind"].as_str(), Some("http" | "git")) {
            continue;
        }
        for reason in step["reasons"].as_array().unwrap() {
            let text = |name: &str| reason[name].as_str().unwrap_or("-").to_owned();
            found.push(format!(
                "{} {} {}",
                text("ingredient"),
                text("old"),
                text("new")
            ));
        }
    }
    found
}

#[test]
fn what_changed_elsewhere_is_explained() {
    let place = Place::new();
    let web = Web::new();
    let sum = |text: &str| store_digest(text.as_bytes());
    let line = format!("ADD {} /f\n", web.url("/f"));
    let check = |line: &str, expected: &[String]| {
        build(&place, line);
        assert_eq!(fetched(&place), expected);
    };
    web.put("/f", b"one", &[("ETag", "\"1\"")]);
    check(&line, &["no-record - -".to_owned()]);
    check(&line, &[]);
    web.put("/f", b"two", &[("ETag", "\"2\"")]);
    check(&line, &[format!("remote {} {}", sum("one"), sum("two"))]);
    // The same bytes, though the server says otherwise.
    web.put("/f", b"two", &[("ETag", "\"3\"")]);
    check(&line, &["remote \"2\" \"3\"".to_owned()]);

    let repositories = Repositories::new(&place);
    repositories.init("r", "sha1");
    let first = repositories.commit("r", &[("a", "1")]);
    let line = format!("ADD {} /r\n", repositories.url("r"));
    check(&line, &["no-record - -".to_owned()]);
    let second = repositories.commit("r", &[("a", "2")]);
    check(&line, &[format!("remote {first} {second}")]);
}

fn store_digest(bytes: &[u8]) -> String {
    store::oci::Digest::of(bytes).to_string()
}
