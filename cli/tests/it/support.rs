//! Running the binary: stores, contexts and registries that vanish with the test.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;

/// The binary under test.
pub const LONGSHORE: &str = env!("CARGO_BIN_EXE_longshore");

/// The workspace's root.
pub fn workspace() -> PathBuf {
    let cli = Path::new(env!("CARGO_MANIFEST_DIR"));
    cli.parent()
        .expect("`cli` is in the workspace")
        .to_path_buf()
}

/// Runs the binary with arguments alone: no store of its own.
pub fn longshore(arguments: &[&str]) -> Output {
    Command::new(LONGSHORE)
        .args(arguments)
        .output()
        .expect("the binary under test starts")
}

/// What a process wrote to stdout.
pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).expect("our output is UTF-8")
}

/// A folder with a store in it, and whatever else a test needs. On disk, as real stores are: not in memory.
pub struct Place {
    folder: PathBuf,
    /// Removes it at the end.
    _removed: Option<tempfile::TempDir>,
}

impl Place {
    pub fn new() -> Place {
        let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        Place {
            folder: folder.path().to_owned(),
            _removed: Some(folder),
        }
    }

    /// A place with a name of its own, for a test binary's whole life: emptied at the start, for nothing is at the end.
    pub fn at(name: &str) -> Place {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder).unwrap();
        }
        std::fs::create_dir_all(&folder).unwrap();
        Place {
            folder,
            _removed: None,
        }
    }

    /// A place whose store has the image `busybox`.
    pub fn with_busybox() -> Place {
        let place = Place::new();
        place.add_busybox("busybox");
        place
    }

    /// Builds the busybox image under a name.
    pub fn add_busybox(&self, name: &str) {
        let rootfs = busybox_rootfs();
        let dockerfile = workspace().join("testdata/images/busybox/Dockerfile");
        let context = rootfs.parent().unwrap();
        self.ok(["build", "-q", "-t", name, "-f"], [&dockerfile, context]);
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// A build context of these files.
    pub fn context(&self, name: &str, files: &[(&str, &str)]) -> PathBuf {
        let folder = self.path(name);
        std::fs::create_dir_all(&folder).unwrap();
        for (path, text) in files {
            let path = folder.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        folder
    }

    /// The binary on this place's store, knowing nothing of the user's own settings.
    pub fn command<I, A>(&self, arguments: I) -> Command
    where
        I: IntoIterator<Item = A>,
        A: AsRef<std::ffi::OsStr>,
    {
        let mut command = Command::new(LONGSHORE);
        command
            .args(arguments)
            .env("LONGSHORE_ROOT", self.store())
            .env("DOCKER_CONFIG", self.path("docker"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            // Tests leave no bridges behind: those of networks have a host of their own. Steps that fetch something may reach
            // it by the host's network alone.
            .env("LONGSHORE_NETWORK", "host")
            .env_remove("LONGSHORE_CONFIG")
            .env_remove("SOURCE_DATE_EPOCH")
            .env_remove("RUST_BACKTRACE")
            .stdin(Stdio::null());
        command
    }

    pub fn run<I, A>(&self, arguments: I) -> Ran
    where
        I: IntoIterator<Item = A>,
        A: AsRef<std::ffi::OsStr>,
    {
        Ran::of(&mut self.command(arguments))
    }

    /// Runs words, then paths; expects success and returns stdout.
    pub fn ok<'a, P: AsRef<Path>>(
        &self,
        words: impl IntoIterator<Item = &'a str>,
        paths: impl IntoIterator<Item = P>,
    ) -> String {
        self.words(words, paths).ok()
    }

    pub fn words<'a, P: AsRef<Path>>(
        &self,
        words: impl IntoIterator<Item = &'a str>,
        paths: impl IntoIterator<Item = P>,
    ) -> Ran {
        let mut command = self.command(words);
        for path in paths {
            command.arg(path.as_ref());
        }
        Ran::of(&mut command)
    }

    /// Builds `context`, telling what ran.
    pub fn build(&self, tag: &str, context: &Path) -> Built {
        let ran = self.words(["build", "--progress", "plain", "-t", tag], [context]);
        ran.ok();
        Built::of(&ran)
    }

    /// Waits until no process uses the store: those that write it out outlive the command that started them.
    pub fn wait_until_unused(&self) {
        let start = std::time::Instant::now();
        loop {
            let users = users(&self.store());
            if users.is_empty() {
                return;
            }
            assert!(start.elapsed().as_secs() < 60, "still there: {users:?}");
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }

    /// Runs a shell line in a new container of an image; expects success.
    pub fn sh(&self, image: &str, line: &str) -> String {
        self.run(["run", "--rm", "--entrypoint", "sh", image, "-c", line])
            .ok()
    }
}

/// A command that has ended.
pub struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    command: String,
}

impl Ran {
    pub fn of(command: &mut Command) -> Ran {
        let text = format!("{command:?}");
        let output = command.output().unwrap_or_else(|error| {
            panic!("{text}: {error}: `./test` installs what the tests need")
        });
        Ran::from_output(text, &output)
    }

    pub fn from_output(command: String, output: &Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            command,
        }
    }

    /// Expects success; returns stdout without its last newline.
    #[track_caller]
    pub fn ok(&self) -> String {
        self.expect_code(0);
        self.stdout.trim_end().to_owned()
    }

    /// Expects an exit code and, on stderr, a text.
    #[track_caller]
    pub fn fails(&self, code: i32, text: &str) {
        self.expect_code(code);
        assert!(self.stderr.contains(text), "no `{text}` in: {self}");
    }

    #[track_caller]
    fn expect_code(&self, code: i32) {
        assert_eq!(self.code, Some(code), "{self}");
    }
}

impl std::fmt::Display for Ran {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Ran {
            code,
            stdout,
            stderr,
            command,
        } = self;
        write!(f, "{command}: {code:?}\n{stdout}\n{stderr}")
    }
}

/// What a build said of its steps.
#[derive(Debug)]
pub struct Built {
    /// Names of the steps that ran, in order of their ends.
    pub ran: Vec<String>,
    /// Names of the steps that the cache had.
    pub cached: Vec<String>,
}

impl Built {
    pub fn of(ran: &Ran) -> Built {
        let mut names = std::collections::BTreeMap::new();
        let mut built = Built {
            ran: Vec::new(),
            cached: Vec::new(),
        };
        for line in ran.stderr.lines() {
            let Some((number, rest)) = line.strip_prefix('#').and_then(|l| l.split_once(' '))
            else {
                continue;
            };
            if rest.starts_with('[') {
                names.insert(number, rest);
            } else if rest.starts_with("DONE ") {
                // A question to a registry is no step.
                let name = names[number];
                if !name.starts_with("[internal] load metadata for ") {
                    built.ran.push(name.to_owned());
                }
            } else if rest == "CACHED" {
                built.cached.push(names[number].to_owned());
            }
        }
        built
    }

    /// The commands of the RUN steps that ran.
    pub fn runs(&self) -> Vec<&str> {
        let runs = self.ran.iter().filter_map(|name| name.split_once("] RUN "));
        runs.map(|(_, command)| command).collect()
    }
}

/// A server on loopback that ends with the test.
pub struct Server {
    child: Child,
    /// `host:port`
    pub host: String,
}

impl Server {
    /// The bundled registry on a folder.
    pub fn registry(folder: &Path) -> Server {
        Server::registry_with(folder, &[])
    }

    /// The bundled registry with further flags.
    pub fn registry_with(folder: &Path, flags: &[&str]) -> Server {
        let mut command = Command::new(LONGSHORE);
        command
            .args(["registry", "serve", "--addr", "127.0.0.1:0", "--root"])
            .arg(folder)
            .args(flags);
        Server::listening(&mut command)
    }

    /// The bundled registry in the bucket of [`Server::s3`], found at `endpoint`, with further flags.
    pub fn registry_in_bucket(endpoint: &str, flags: &[&str]) -> Server {
        let mut command = Command::new(LONGSHORE);
        command
            .args(["registry", "serve", "--addr", "127.0.0.1:0", "--s3"])
            .arg(bucket_at(endpoint))
            .args(flags);
        Server::listening(&mut command)
    }

    /// The bundled registry by its configuration file, telling all that it can in `<file>.log`.
    pub fn registry_told(config: &Path) -> Server {
        let log = std::fs::File::create(config.with_extension("log")).unwrap();
        let mut command = Command::new(LONGSHORE);
        command
            .args(["registry", "serve", "--addr", "127.0.0.1:0", "--log-level"])
            .args(["trace", "--config"])
            .arg(config)
            .stderr(log);
        Server::listening(&mut command)
    }

    /// A server that prints where it listens.
    fn listening(command: &mut Command) -> Server {
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let host = line.trim().rsplit('/').next().unwrap().to_owned();
        assert!(host.contains(':'), "the registry did not start: {line:?}");
        Server { child, host }
    }

    /// Debian's docker-registry on a folder.
    pub fn docker_registry(folder: &Path) -> Server {
        Server::docker_registry_with(folder, "")
    }

    /// The same with further lines of its configuration.
    pub fn docker_registry_with(folder: &Path, more: &str) -> Server {
        // It cannot say which port the kernel chose, so one is chosen for it.
        let host = format!("127.0.0.1:{}", free_port());
        let config = folder.with_extension("yml");
        let text = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n  delete: {{enabled: true}}\nhttp: {{addr: {host}}}\n{more}\n",
            folder.display()
        );
        std::fs::write(&config, text).unwrap();
        let child = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed: `./test` installs it");
        let server = Server { child, host };
        server.wait_until_it_answers();
        server
    }

    /// A server that speaks Amazon's S3, with the bucket `cache`. It keeps it in memory.
    pub fn s3() -> Server {
        let port = free_port();
        let program = std::env::var_os("LONGSHORE_TEST_S3").unwrap_or("moto_server".into());
        let child = Command::new(program)
            .args(["-H", "127.0.0.1", "-p", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("moto is installed, and LONGSHORE_TEST_S3 names it: `./test` sees to both");
        let host = format!("127.0.0.1:{port}");
        let server = Server { child, host };
        server.wait_until_it_answers();
        let url = format!("http://{}/cache", server.host);
        tool("curl", &["-sSf", "-X", "PUT", &url]);
        server
    }

    /// Sends it a signal, by its name without `SIG`.
    pub fn signal(&self, name: &str) {
        signal(&self.child, name);
    }

    fn wait_until_it_answers(&self) {
        for _ in 0..200 {
            if std::net::TcpStream::connect(&self.host).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        panic!("nothing answers at {}", self.host);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What names the bucket of [`Server::s3`] to `--s3`.
pub fn bucket_at(endpoint: &str) -> String {
    format!(
        "bucket=cache,region=us-east-1,endpoint_url=http://{endpoint},use_path_style=true,access_key_id=a,secret_access_key=b,prefix=team"
    )
}

/// A port that was free a moment ago, for servers that cannot say which one the kernel chose for them.
pub fn free_port() -> u16 {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Runs a command that is given a text on stdin.
pub fn given(command: &mut Command, text: &str) -> Ran {
    let shown = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // One that does not want it has closed its end.
    let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
    Ran::from_output(shown, &child.wait_with_output().unwrap())
}

/// Runs another tool; expects success and returns its stdout.
#[track_caller]
pub fn tool(program: &str, arguments: &[&str]) -> String {
    Ran::of(Command::new(program).args(arguments)).ok()
}

/// The root file system of busybox, made once for all tests.
pub fn busybox_rootfs() -> &'static Path {
    static MADE: OnceLock<PathBuf> = OnceLock::new();
    MADE.get_or_init(|| {
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("busybox");
        std::fs::create_dir_all(&folder).unwrap();
        let file = folder.join("rootfs.tar");
        let recipe = workspace().join("testdata/images/busybox/make-rootfs");
        Ran::of(Command::new(recipe).arg(&file)).ok();
        file
    })
}

/// Fetches a page from a server on loopback, waiting until it answers; for as long as `alive` is.
pub fn fetch(port: u16, alive: &mut Child) -> String {
    for _ in 0..400 {
        if let Some(status) = alive.try_wait().unwrap() {
            panic!("the server ended: {status}");
        }
        if let Ok(page) = get(port) {
            return page;
        }
        std::thread::sleep(std::time::Duration::from_millis(50));
    }
    panic!("nothing answers on port {port}");
}

fn get(port: u16) -> std::io::Result<String> {
    let mut stream = std::net::TcpStream::connect(("127.0.0.1", port))?;
    stream.write_all(b"GET / HTTP/1.0\r\nHost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    std::io::Read::read_to_string(&mut stream, &mut answer)?;
    if !answer.starts_with("HTTP/1.") || !answer.contains(" 200 ") {
        return Err(std::io::Error::other(answer));
    }
    Ok(answer)
}

/// Sends a signal, by its name without `SIG`.
pub fn signal(child: &Child, name: &str) {
    // The shell's own: the program is in a package that a bare machine lacks.
    tool("sh", &["-c", &format!("kill -s {name} {}", child.id())]);
}

/// What is mounted below a folder, in any namespace that this process sees.
pub fn mounts_below(folder: &Path) -> Vec<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let folder = folder.to_str().unwrap();
    text.lines()
        .filter(|line| line.contains(folder))
        .map(str::to_owned)
        .collect()
}

/// Processes that run on a store, or see mounts of it in a namespace of their own.
fn users(store: &Path) -> Vec<String> {
    let store = store.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap() {
        let folder = entry.unwrap().path();
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_default();
        if !folder.join("mountinfo").exists() {
            continue;
        }
        let mentions = |name: &str| {
            let text = String::from_utf8_lossy(&read(name)).into_owned();
            text.contains(&format!("{store}/")) || text.contains(&format!("LONGSHORE_ROOT={store}"))
        };
        // A process that has ended but whose parent has not looked has neither.
        if mentions("mountinfo") || mentions("environ") {
            let line = String::from_utf8_lossy(&read("cmdline")).replace('\0', " ");
            found.push(format!("{}: {line}", folder.display()));
        }
    }
    found
}

/// `longshore debug 0123abcd 2` as `longshore debug BUILD 2`: builds' names differ from run to run.
pub fn without_build(text: &str) -> String {
    const BEFORE: &str = "`longshore debug ";
    let mut parts = text.split(BEFORE);
    let mut said = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let rest = part.split_once(' ').map_or(part, |(_, rest)| rest);
        said.push_str(&format!("{BEFORE}BUILD {rest}"));
    }
    said
}
