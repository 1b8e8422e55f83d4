//! Builds watched on a terminal: a pseudo-terminal with an emulator behind it says what stands on the screen.

use std::fs::File;
use std::io::{Read, Write};
use std::num::NonZero;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::interop::Podman;
use crate::support::{Place, Ran, Server};

/// A command whose stderr is a terminal.
struct Watched {
    child: Child,
    terminal: File,
    screen: vt100::Parser,
    /// All that was written.
    raw: Vec<u8>,
}

impl Watched {
    /// A command that is typed to on the same terminal.
    fn start_asking(command: &mut Command, columns: u16, rows: u16) -> Watched {
        Watched::begin(command, columns, rows, true)
    }

    fn start(command: &mut Command, columns: u16, rows: u16) -> Watched {
        Watched::begin(command, columns, rows, false)
    }

    fn begin(command: &mut Command, columns: u16, rows: u16, asks: bool) -> Watched {
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        set_size(&terminal, columns, rows);
        let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY;
        let own = ioctl_tiocgptpeer(&terminal, flags).unwrap();
        command.env("TERM", "xterm").env_remove("NO_COLOR");
        if asks {
            command.stdin(Stdio::from(own.try_clone().unwrap()));
        }
        let child = command
            .stdout(Stdio::null())
            .stderr(Stdio::from(own))
            .spawn()
            .unwrap();
        // The command holds the terminal's other side, too, until it has another stderr or is gone.
        command.stdin(Stdio::null()).stderr(Stdio::null());
        let cells = |count| NonZero::new(count).unwrap();
        Watched {
            child,
            terminal: File::from(terminal),
            screen: vt100::Parser::new(cells(rows), cells(columns), 500),
            raw: Vec::new(),
        }
    }

    /// Reads on; false at the end.
    fn read(&mut self) -> bool {
        let mut buffer = [0; 4096];
        // A terminal that nobody else has open any more gives an error.
        let count = self.terminal.read(&mut buffer).unwrap_or(0);
        self.raw.extend_from_slice(&buffer[..count]);
        self.screen.process(&buffer[..count]);
        count > 0
    }

    /// Waits until this stands on the screen.
    fn until(&mut self, text: &str) -> String {
        self.until_all(&[text])
    }

    /// Waits until all of this stands in one line.
    fn until_all(&mut self, parts: &[&str]) -> String {
        loop {
            let shown = self.shown();
            let has_all = |line: &str| parts.iter().all(|part| line.contains(part));
            if shown.lines().any(has_all) {
                return shown;
            }
            assert!(self.read(), "never shown: {parts:?}\n{shown}");
        }
    }

    /// Types a line.
    fn enter(&mut self, text: &str) {
        self.terminal
            .write_all(format!("{text}\n").as_bytes())
            .unwrap();
    }

    /// Waits for the end; the exit code, and what is on the screen then.
    fn end(&mut self) -> (Option<i32>, String) {
        while self.read() {}
        let status = self.child.wait().unwrap();
        (status.code(), self.shown())
    }

    fn shown(&self) -> String {
        let screen = self.screen.screen();
        let columns = screen.size().1.get();
        let lines = screen.rows(0, columns);
        let lines: Vec<String> = lines.map(|line| line.trim_end().to_owned()).collect();
        lines.join("\n").trim_end().to_owned()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        // Only where a test failed does it still run.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn set_size(terminal: &rustix::fd::OwnedFd, columns: u16, rows: u16) {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    tcsetwinsize(terminal, size).unwrap();
}

/// A text without its numbers: times and digests.
fn without_numbers(text: &str) -> String {
    let words = text.split_inclusive([' ', '\n']).map(|word| {
        let is_time = |word: &str| {
            let number = word.strip_suffix("ms").or(word.strip_suffix('s'));
            number.is_some_and(|number| number.parse::<f64>().is_ok())
        };
        match word.trim_end() {
            trimmed if is_time(trimmed) => word.replace(trimmed, "T"),
            trimmed if trimmed.starts_with("sha256:") => word.replace(trimmed, "ID"),
            _ => word.to_owned(),
        }
    });
    words.collect()
}

#[test]
fn a_build_can_be_watched_on_a_terminal() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\n\
        RUN echo before; printf '\\033[2J\\033[Hwide \u{65e5}\u{672c}\\r\\n'; sleep 600\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    let mut command = place.command(["build", "-t", "tty"]);
    let mut watched = Watched::start(command.arg(&context), 60, 14);
    let shown = watched.until("# wide \u{65e5}\u{672c}");
    assert!(shown.contains("[+] Building"), "{shown}");
    assert!(shown.contains(" => => # before\n"), "{shown}");
    assert!(!shown.contains("#1 "), "plain on a terminal: {shown}");
    let id = rustix::process::Pid::from_child(&watched.child);
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let (code, shown) = watched.end();
    assert_eq!(code, Some(130), "{shown}");
    assert!(
        shown.contains(" => CANCELED [2/2] RUN echo before"),
        "{shown}"
    );
    assert!(!shown.contains("# before"), "still there: {shown}");
}

#[test]
fn a_terminal_shows_a_whole_build_and_its_summary() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\nCOPY a /\nRUN echo hidden-when-done\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile), ("a", "1")]);
    let build = || {
        let mut command = place.command(["build", "-t", "tty"]);
        let mut watched = Watched::start(command.arg(&context), 100, 20);
        let (code, shown) = watched.end();
        assert_eq!(code, Some(0), "{shown}");
        without_numbers(&shown)
    };
    let first = build();
    std::fs::write(context.join("a"), "2").unwrap();
    let second = build();
    let third = build();
    let squeezed = |text: &str| -> String {
        let lines = text
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ") + "\n");
        lines.collect()
    };
    expect_test::expect![[r#"
        => CACHED [1/3] FROM docker.io/library/busybox:latest
        => [2/3] COPY a / T
        => [3/3] RUN echo hidden-when-done T
        [+] Building T (2/2) FINISHED: 2 ran, 0 cached
        image ID 1.98MB
        named tty:latest
    "#]]
    .assert_eq(&squeezed(&first));
    expect_test::expect![[r#"
        => CACHED [1/3] FROM docker.io/library/busybox:latest
        => [2/3] COPY a / T
        => => file a: 16858a4baeb3a127 → e40636dc81a43cb3
        => [3/3] RUN echo hidden-when-done T
        => => the step it stands on has another result: [2/3] COPY a /
        => => ran again, same result
        [+] Building T (2/2) FINISHED: 2 ran, 0 cached
        image ID 1.98MB
        named tty:latest
    "#]]
    .assert_eq(&squeezed(&second));
    expect_test::expect![[r#"
        => CACHED [2/3] COPY a /
        => CACHED [3/3] RUN echo hidden-when-done
        [+] Building T (2/2) FINISHED: 0 ran, 2 cached, T saved
        image ID 1.98MB
        named tty:latest
    "#]]
    .assert_eq(&squeezed(&third));
}

#[test]
fn a_terminal_may_change_its_size_while_a_build_runs() {
    let place = Place::with_busybox();
    let script = "for i in 1 2 3 4 5 6 7 8 9; do echo a line of output, number $i; done; sleep 600";
    let dockerfile = format!("FROM busybox\nRUN {script}\n");
    let context = place.context("ctx", &[("Dockerfile", &dockerfile)]);
    let mut command = place.command(["build"]);
    let mut watched = Watched::start(command.arg(&context), 80, 20);
    watched.until("number 9");
    let resized = watched.terminal.try_clone().unwrap();
    set_size(&resized.into(), 30, 6);
    watched
        .screen
        .screen_mut()
        .set_size(NonZero::new(6).unwrap(), NonZero::new(30).unwrap());
    let shown = watched.until_all(&["RUN for i", "…"]);
    assert_eq!(shown.matches("[+]").count(), 1, "{shown}");
    assert!(shown.lines().count() <= 6, "{shown}");
}

/// A command that sees a folder in the place of `/var/cache`.
fn with_cache(command: &Command, cache: &Path) -> Command {
    let mut inside = Command::new("unshare");
    let line = "mount --bind \"$0\" /var/cache && exec \"$@\"";
    inside
        .args(["-m", "sh", "-c", line])
        .arg(cache)
        .arg(command.get_program())
        .args(command.get_args());
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => inside.env(name, value),
            None => inside.env_remove(name),
        };
    }
    inside
}

/// A short name that may be at two registries: who sits at a terminal is asked once, and the answer stays where podman keeps it.
#[test]
fn a_short_name_is_chosen_on_a_terminal() {
    let place = Place::new();
    let registry = Server::registry(&place.path("registry"));
    let context = place.context(
        "ctx",
        &[
            ("Dockerfile", "FROM scratch\nENV A=1\nCOPY f /\n"),
            ("f", "1"),
        ],
    );
    place.ok(["build", "-q", "-t", "made"], [&context]);
    let there = format!("{}/sought:2", registry.host);
    place.run(["tag", "made", &there]).ok();
    place.run(["push", "-q", &there]).ok();
    let settings = place.path("registries.conf");
    let search = format!(
        "unqualified-search-registries = [\"127.0.0.1:1\", \"{}\"]\n",
        registry.host
    );
    let enforcing = format!("{search}short-name-mode = \"enforcing\"\n");
    std::fs::write(&settings, enforcing).unwrap();
    // Root's aliases are in a folder of the system's: in its place stands one of the test's.
    let cache = place.path("cache");
    std::fs::create_dir(&cache).unwrap();
    let fresh = Place::new();
    let pull = |words: &[&str]| {
        let mut command = with_cache(&fresh.command(words), &cache);
        command.env("CONTAINERS_REGISTRIES_CONF", &settings);
        command
    };
    let aliases = cache.join("containers/short-name-aliases.conf");

    // Nothing is chosen: the error is the one of who cannot be asked.
    let mut watched = Watched::start_asking(&mut pull(&["pull", "sought:2"]), 100, 20);
    let shown = watched.until("Which one? [1-2]");
    assert!(
        shown.contains("`sought:2` may be\n  1  127.0.0.1:1/sought:2\n  2  "),
        "{shown}"
    );
    watched.enter("3");
    watched.until("a number from 1 to 2, please:");
    watched.enter("\u{4}");
    let (code, shown) = watched.end();
    assert_eq!(code, Some(1), "{shown}");
    assert!(shown.contains("short-name-mode"), "{shown}");
    assert!(!aliases.exists());

    // Where that is allowed, it leaves all of them to be tried.
    std::fs::write(&settings, search).unwrap();
    let mut watched = Watched::start_asking(&mut pull(&["pull", "sought:2"]), 100, 20);
    watched.until("Which one? [1-2]");
    watched.enter("\u{4}");
    let (code, shown) = watched.end();
    assert_eq!(code, Some(0), "{shown}");
    assert!(!aliases.exists());

    // What is not there is not remembered.
    let mut watched = Watched::start_asking(&mut pull(&["pull", "sought:2"]), 100, 20);
    watched.until("Which one? [1-2]");
    watched.enter("1");
    let (code, shown) = watched.end();
    assert_eq!(code, Some(3), "{shown}");
    assert!(!aliases.exists());

    let mut watched = Watched::start_asking(&mut pull(&["pull", "sought:2"]), 100, 20);
    watched.until("Which one? [1-2]");
    watched.enter("2");
    let (code, shown) = watched.end();
    assert_eq!(code, Some(0), "{shown}");
    let expected = format!("[aliases]\n  \"sought\" = \"{}/sought\"\n", registry.host);
    assert_eq!(std::fs::read_to_string(&aliases).unwrap(), expected);
    assert!(
        fresh
            .run(["images"])
            .ok()
            .contains(&format!("{}/sought", registry.host))
    );

    // From now on nobody is asked, on a terminal or elsewhere; podman knows it as well.
    let ran = Ran::of(&mut pull(&["pull", "-q", "sought:2"]));
    assert_eq!(
        ran.ok(),
        place.run(["images", "-q", "--no-trunc", "made"]).ok()
    );
    let podman = Podman::new(&place);
    let words = ["pull", "-q", "--tls-verify=false", "sought:2"];
    let mut podman = with_cache(&podman.command("podman", &words), &cache);
    podman.env("CONTAINERS_REGISTRIES_CONF", &settings);
    podman.stdin(Stdio::null());
    let pulled = Ran::of(&mut podman);
    assert_eq!(pulled.code, Some(0), "{pulled}");
}
