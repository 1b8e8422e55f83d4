//! One step, wanted by several at once: by two stages of a build, and by two builds.
//!
//! A step here connects to the test and waits for its word, so that the test knows when it runs, and how often it did.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, ChildStderr, Command, Stdio};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::support::{Built, Place, Ran};

/// Where steps report, and wait to be let go.
pub struct Gate {
    listener: TcpListener,
}

/// A step that runs.
pub struct Waiting(TcpStream);

/// The command of a step that writes what the gate says into a file. The port is a secret: no part of its key.
pub fn step(file: &str) -> String {
    format!("RUN --mount=type=secret,id=port nc 127.0.0.1 $(cat /run/secrets/port) > {file}\n")
}

impl Gate {
    pub fn new() -> Gate {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Gate { listener }
    }

    /// A build whose steps report here: on the host's network, for the gate is on its loopback.
    pub fn build(&self, place: &Place, context: &Path, flags: &[&str]) -> Command {
        let port = place.path("port");
        let number = self.listener.local_addr().unwrap().port();
        std::fs::write(&port, number.to_string()).unwrap();
        let mut command = place.command(["build", "--network", "host", "--secret"]);
        command.arg(format!("id=port,src={}", port.display()));
        command.args(flags).arg(context);
        command
    }

    /// Waits for a step to begin.
    pub fn begun(&self) -> Waiting {
        Waiting(self.listener.accept().unwrap().0)
    }

    /// Whether another step began and was not asked about.
    pub fn is_quiet(&self) -> bool {
        self.listener.set_nonblocking(true).unwrap();
        let more = self.listener.accept();
        self.listener.set_nonblocking(false).unwrap();
        more.is_err()
    }
}

impl Waiting {
    /// Lets the step end.
    pub fn go(mut self, word: &str) {
        self.0.write_all(word.as_bytes()).unwrap();
    }

    /// Waits until the step is dead.
    pub fn wait_until_dead(mut self) {
        // Whatever it is that ends the connection: nothing is ever sent.
        let mut nothing = Vec::new();
        let _reset = self.0.read_to_end(&mut nothing);
        assert!(nothing.is_empty());
    }
}

/// A build that goes on, and what it says meanwhile.
pub struct Running {
    pub child: Child,
    lines: BufReader<ChildStderr>,
    said: String,
}

impl Running {
    pub fn start(command: &mut Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap());
        let said = String::new();
        Running { child, lines, said }
    }

    /// Reads until a line has this text.
    pub fn until(&mut self, text: &str) {
        self.until_with(text, str::to_owned);
    }

    /// Reads until a line, decoded, has this text.
    fn until_with(&mut self, text: &str, decode: impl Fn(&str) -> String) {
        loop {
            let from = self.said.len();
            let read = self.lines.read_line(&mut self.said).unwrap();
            assert!(read > 0, "`{text}` was not said: {}", self.said);
            if decode(&self.said[from..]).contains(text) {
                return;
            }
        }
    }

    /// Waits for its end.
    pub fn end(mut self) -> Ran {
        self.lines.read_to_string(&mut self.said).unwrap();
        let output = std::process::Output {
            status: self.child.wait().unwrap(),
            stdout: Vec::new(),
            stderr: self.said.into_bytes(),
        };
        Ran::from_output("build".to_owned(), &output)
    }
}

/// The same command on a terminal, whose lines come out where the command's errors did.
fn on_a_terminal(command: &Command) -> Command {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<&str> = words.map(|word| word.to_str().unwrap()).collect();
    let line = format!("stty cols 250; {}", words.join(" "));
    let mut terminal = Command::new("sh");
    terminal.args(["-c", "exec script -qec \"$0\" /dev/null >&2", &line]);
    for (name, value) in command.get_envs() {
        match value {
            Some(value) => terminal.env(name, value),
            None => terminal.env_remove(name),
        };
    }
    terminal.stdin(Stdio::null());
    terminal
}

const PLAIN: &[&str] = &["--progress", "plain"];

fn place_with(name: &str, dockerfile: &str) -> (Place, std::path::PathBuf) {
    let place = Place::with_busybox();
    let context = place.context(name, &[("Dockerfile", dockerfile), ("one", "x")]);
    (place, context)
}

#[test]
fn a_second_build_waits_for_the_first_and_says_so() {
    let (place, context) = place_with("ctx", &format!("FROM busybox\n{}", step("/got")));
    let gate = Gate::new();
    let mut first = Running::start(&mut gate.build(&place, &context, &["-t", "one"]));
    let id = first.child.id();
    let waiting = gate.begun();
    let said = format!("waiting for another longshore, process {id},");
    let others: Vec<Running> = ["plain", "rawjson", "tty"]
        .into_iter()
        .map(|how| {
            let flags = ["--progress", how, "-t", how];
            let mut command = gate.build(&place, &context, &flags);
            if how == "tty" {
                command = on_a_terminal(&command);
            }
            let mut other = Running::start(&mut command);
            match how {
                // Lines of logs are in base64.
                "rawjson" => other.until_with(&said, |line| {
                    let line: serde_json::Value = serde_json::from_str(line).unwrap();
                    let data = line["logs"][0]["data"].as_str().unwrap_or_default();
                    String::from_utf8(BASE64.decode(data).unwrap()).unwrap()
                }),
                _ => other.until(&said),
            }
            other
        })
        .collect();
    assert!(first.child.try_wait().unwrap().is_none());
    waiting.go("once");
    first.end().ok();
    for (number, other) in others.into_iter().enumerate() {
        let ran = other.end();
        ran.ok();
        if number == 0 {
            let built = Built::of(&ran);
            assert!(built.ran.is_empty(), "{ran}");
            let is_step = |name: &String| name.starts_with("[2/2] RUN");
            assert!(built.cached.iter().any(is_step), "{ran}");
        }
    }
    assert!(gate.is_quiet(), "the step ran again");
    for tag in ["one", "plain", "rawjson", "tty"] {
        assert_eq!(place.sh(tag, "cat /got"), "once");
    }
}

#[test]
fn who_waits_takes_over_when_the_first_is_killed() {
    let (place, context) = place_with("ctx", &format!("FROM busybox\n{}", step("/got")));
    let gate = Gate::new();
    let mut first = Running::start(&mut gate.build(&place, &context, PLAIN));
    let lost = gate.begun();
    let mut second = Running::start(&mut gate.build(&place, &context, PLAIN));
    second.until("waiting for another longshore");
    let mut third = Running::start(&mut gate.build(&place, &context, PLAIN));
    third.until("waiting for another longshore");
    first.child.kill().unwrap();
    first.child.wait().unwrap();
    lost.wait_until_dead();
    let taken_over = gate.begun();
    taken_over.go("twice");
    let ends = [second.end(), third.end()];
    let took_over = |ran: &Ran| {
        ran.stderr
            .contains("not finished elsewhere, so it runs here: [2/2] RUN")
    };
    assert_eq!(ends.iter().filter(|ran| took_over(ran)).count(), 1);
    let mut runs = 0;
    for ran in &ends {
        ran.ok();
        runs += Built::of(ran).runs().len();
    }
    assert_eq!(runs, 1, "{}\n{}", ends[0], ends[1]);
    assert!(gate.is_quiet(), "the step ran once more");
}

#[test]
fn a_step_that_failed_elsewhere_is_tried_here() {
    let dockerfile = format!(
        "FROM busybox\n{} && grep good /got\n",
        step("/got").trim_end()
    );
    let (place, context) = place_with("ctx", &dockerfile);
    let gate = Gate::new();
    let first = Running::start(&mut gate.build(&place, &context, PLAIN));
    let bad = gate.begun();
    let mut second = Running::start(&mut gate.build(&place, &context, PLAIN));
    second.until("waiting for another longshore");
    bad.go("bad");
    first.end().fails(1, "did not complete successfully");
    gate.begun().go("good");
    second.end().ok();
}

#[test]
fn two_stages_that_come_to_the_same_run_a_step_once() {
    // Other instructions, the same tree: only the layers tell that what follows is the same.
    let dockerfile = format!(
        "FROM busybox AS a\nRUN echo same > /f\n{step}FROM busybox AS b\nRUN printf 'same\\n' > /f\n{step}\
         FROM scratch\nCOPY --from=a /got /a\nCOPY --from=b /got /b\n",
        step = step("/got")
    );
    let (place, context) = place_with("ctx", &dockerfile);
    let gate = Gate::new();
    let flags = ["--progress", "plain", "--jobs", "2", "-t", "both"];
    let mut build = Running::start(&mut gate.build(&place, &context, &flags));
    let waiting = gate.begun();
    build.until("which does the same");
    waiting.go("once");
    build.end().ok();
    assert!(gate.is_quiet(), "the step ran again");
    let image = place.path("both.tar");
    place.ok(["save", "both", "-o"], [&image]);
}

#[test]
fn a_step_that_is_waited_for_keeps_no_job() {
    let shared = step("/got");
    let (place, context) = place_with("ctx", &format!("FROM busybox\n{shared}"));
    let other = format!(
        "FROM busybox AS shared\n{shared}FROM busybox AS own\n{}FROM scratch\n\
         COPY --from=shared /got /a\nCOPY --from=own /own /b\n",
        step("/own")
    );
    let other = place.context("other", &[("Dockerfile", &other)]);
    let gate = Gate::new();
    let first = Running::start(&mut gate.build(&place, &context, PLAIN));
    let held = gate.begun();
    let flags = ["--progress", "plain", "--jobs", "1"];
    let mut second = Running::start(&mut gate.build(&place, &other, &flags));
    second.until("waiting for another longshore");
    // Its only job is free for its own step, while the other build still runs the shared one.
    gate.begun().go("own");
    second.until("DONE");
    held.go("shared");
    first.end().ok();
    second.end().ok();
    assert!(gate.is_quiet(), "the shared step ran again");
}

#[test]
fn the_longest_path_begins_first() {
    // What the steps took the last time is read from the history; `slow` stands last and is waited for.
    let dockerfile = "FROM busybox AS quick\nCOPY one /one\nRUN cat /one > /q\n\
         FROM busybox AS short\nCOPY one /one\nRUN cat /one > /s\n\
         FROM busybox AS slow\nCOPY one /one\nRUN sleep 1 && cat /one > /l\n\
         FROM scratch\nCOPY --from=quick /q /\nCOPY --from=short /s /\nCOPY --from=slow /l /\n";
    let (place, context) = place_with("ctx", dockerfile);
    let order = || {
        let flags = ["build", "--progress", "plain", "--jobs", "1"];
        let ran = place.words(flags, [&context]);
        ran.ok();
        let runs = Built::of(&ran);
        let runs = runs.runs().into_iter();
        runs.map(str::to_owned).collect::<Vec<_>>()
    };
    let file_order = ["cat /one > /q", "cat /one > /s", "sleep 1 && cat /one > /l"];
    assert_eq!(order(), file_order);
    std::fs::write(context.join("one"), "changed").unwrap();
    // The other two took as good as the same.
    assert_eq!(order()[0], "sleep 1 && cat /one > /l");
}
