//! A registry that is given another configuration while it runs: nothing that is under way is cut.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use store::oci::Digest;

use crate::support::{Place, Ran, Server, given, tool};

/// More than the buffers between two processes hold.
const BLOB_BYTES: usize = 32 * 1024 * 1024;

/// A certificate for this machine that vouches for itself, with its key, below a name.
pub fn certificate(folder: &Path, name: &str) -> (PathBuf, PathBuf) {
    let file = |end: &str| folder.join(format!("{name}.{end}"));
    let (cert, key) = (file("pem"), file("key"));
    tool(
        "openssl",
        &[
            "req",
            "-x509",
            "-newkey",
            "ec",
            "-pkeyopt",
            "ec_paramgen_curve:P-256",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=IP:127.0.0.1,DNS:localhost",
            "-keyout",
            key.to_str().unwrap(),
            "-out",
            cert.to_str().unwrap(),
        ],
    );
    (cert, key)
}

/// Waits until something is so.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let start = std::time::Instant::now();
    while !is_so() {
        assert!(start.elapsed().as_secs() < 120, "it never was so: {what}");
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
}

/// curl, trusting this certificate, as this user.
fn curl(trusted: &Path, user: &str, words: &[&str]) -> Command {
    let mut command = Command::new("curl");
    command
        .args(["-sS", "--fail", "--cacert"])
        .arg(trusted)
        .args(["-u", user])
        .args(words);
    command
}

/// Bytes that do not compress, and are the same each time.
fn noise() -> Vec<u8> {
    let mut state = 1_u64;
    let words = (0..BLOB_BYTES / 8).flat_map(|_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    });
    words.collect()
}

fn put_user(place: &Place, password: &str) {
    let file = place.path("users");
    let words = ["registry", "htpasswd", "-iB", "-C4"];
    let mut command = place.command(words);
    given(command.arg(&file).arg("ann"), password).ok();
}

fn configure(place: &Place, warning: &str, policy: &str) {
    let text = format!(
        "root = \"registry\"\nwarning = \"{warning}\"\n[tls]\ncert = \"now.pem\"\nkey = \"now.key\"\n[auth]\nhtpasswd = \"users\"\n[audit]\nfile = \"audit\"\n{policy}"
    );
    // Whole at once, as everything that is read while it changes.
    let aside = place.path("aside");
    std::fs::write(&aside, text).unwrap();
    std::fs::rename(aside, place.path("registry.toml")).unwrap();
}

fn use_certificate(place: &Place, (cert, key): &(PathBuf, PathBuf)) {
    for (from, to) in [(key, "now.key"), (cert, "now.pem")] {
        let aside = place.path("aside");
        std::fs::copy(from, &aside).unwrap();
        std::fs::rename(aside, place.path(to)).unwrap();
    }
}

/// A transfer that has begun and is held up.
struct Download {
    curl: Child,
    pipe: File,
    begun: Vec<u8>,
}

impl Download {
    fn begin(place: &Place, trusted: &Path, user: &str, url: &str) -> Download {
        let path = place.path("pipe");
        if !path.exists() {
            tool("mkfifo", &[path.to_str().unwrap()]);
        }
        let mut command = curl(trusted, user, &["-o", path.to_str().unwrap(), url]);
        let curl = command.spawn().unwrap();
        let mut pipe = File::open(&path).unwrap();
        let mut begun = vec![0; 1024 * 1024];
        pipe.read_exact(&mut begun).unwrap();
        Download { curl, pipe, begun }
    }

    fn finish(mut self) -> Vec<u8> {
        self.pipe.read_to_end(&mut self.begun).unwrap();
        assert!(self.curl.wait().unwrap().success());
        self.begun
    }
}

/// Users, policy, certificate and warning change by changed files and by SIGHUP, while a download and an upload are half done.
#[test]
fn running_transfers_outlive_another_configuration() {
    let place = Place::new();
    let folder = place.path("");
    let (old, new) = (certificate(&folder, "old"), certificate(&folder, "new"));
    use_certificate(&place, &old);
    put_user(&place, "one");
    configure(&place, "first", "");
    let registry = Server::registry_told(&place.path("registry.toml"));
    let url = |path: &str| format!("https://{}{path}", registry.host);
    let bytes = noise();
    let digest = Digest::of(&bytes);
    let file = place.path("blob");
    std::fs::write(&file, &bytes).unwrap();
    let sent = format!("@{}", file.display());
    let octets = "Content-Type: application/octet-stream";
    let whole = url(&format!("/v2/a/blobs/uploads/?digest={digest}"));
    let put = ["-X", "POST", "-H", octets, "--data-binary", &sent, &whole];
    Ran::of(&mut curl(&old.0, "ann:one", &put)).ok();

    let blob = url(&format!("/v2/a/blobs/{digest}"));
    let download = Download::begin(&place, &old.0, "ann:one", &blob);
    let session = url("/v2/b/blobs/uploads/");
    let mut opened = curl(&old.0, "ann:one", &["-X", "POST", "-D", "-", &session]);
    let opened = Ran::of(&mut opened).ok();
    let mut lines = opened.lines().filter_map(|line| line.split_once(": "));
    let location = lines.find(|(name, _)| name.eq_ignore_ascii_case("location"));
    let location = url(location.expect("a location").1.trim());
    let patch = ["-X", "PATCH", "-H", octets, "-T", "-", &location];
    let mut patch = curl(&old.0, "ann:one", &patch);
    let mut upload = patch.stdin(Stdio::piped()).spawn().unwrap();
    let mut pipe = upload.stdin.take().unwrap();
    let (half, rest) = bytes.split_at(BLOB_BYTES / 2);
    pipe.write_all(half).unwrap();

    // By changed files.
    put_user(&place, "two");
    use_certificate(&place, &new);
    let rule =
        "[[policy]]\nrepositories = [\"b\"]\nusers = [\"ann\"]\nactions = [\"pull\", \"push\"]\n";
    configure(&place, "second", rule);
    let base = url("/v2/");
    let says = |warning: &str| {
        let mut asked = curl(&new.0, "ann:two", &["-D", "-", &base]);
        Ran::of(&mut asked)
            .stdout
            .contains(&format!("299 - \"{warning}\""))
    };
    until("the second configuration is used", || says("second"));
    let code = |trusted: &Path, user: &str, url: &str| {
        Ran::of(&mut curl(trusted, user, &["-o", "/dev/null", url])).code
    };
    // 22: refused; 60: the certificate is not trusted.
    assert_eq!(code(&new.0, "ann:one", &base), Some(22));
    assert_eq!(code(&old.0, "ann:two", &base), Some(60));
    assert_eq!(code(&new.0, "ann:two", &blob), Some(22));

    // By SIGHUP, which also opens the logs again.
    std::fs::rename(place.path("audit"), place.path("audit.1")).unwrap();
    configure(&place, "third", rule);
    registry.signal("HUP");
    until("the third configuration is used", || says("third"));
    until("there is a new audit log", || place.path("audit").exists());

    // One that cannot be used changes nothing and is told.
    std::fs::write(place.path("registry.toml"), "rot = 1\n").unwrap();
    registry.signal("HUP");
    let log = || std::fs::read_to_string(place.path("registry.log")).unwrap();
    until("it was told", || log().contains("did you mean `root`?"));
    assert!(log().contains("the configuration is not used"), "{}", log());
    assert!(says("third"));
    // Nor does a certificate without its key.
    configure(&place, "fourth", rule);
    std::fs::copy(&old.1, place.path("now.key")).unwrap();
    registry.signal("HUP");
    until("it was told", || log().contains("now.key` cannot be used"));
    assert!(says("third"));

    // What had begun before all of it ends well.
    assert_eq!(Digest::of(&download.finish()), digest);
    pipe.write_all(rest).unwrap();
    drop(pipe);
    assert!(upload.wait().unwrap().success());
    let done = format!("{location}?digest={digest}");
    Ran::of(&mut curl(&new.0, "ann:two", &["-X", "PUT", &done])).ok();
    let put = std::fs::read_to_string(place.path("audit")).unwrap();
    assert!(
        put.contains("\"repository\":\"b\"") && put.contains("\"status\":201"),
        "{put}"
    );
}
