//! Looking around in steps: when they fail, and later.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};

use crate::support::{Built, LONGSHORE, Place, Ran, tool};

/// A build on a terminal, whose shells are typed into.
struct Session {
    child: Child,
    typing: Option<ChildStdin>,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
    seen: String,
    pid: std::path::PathBuf,
}

impl Session {
    fn start(place: &Place, arguments: &str) -> Session {
        let pid = place.path("pid");
        let line = format!("echo $$ > {}; exec {LONGSHORE} {arguments}", pid.display());
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .env("LONGSHORE_ROOT", place.store())
            .env("NO_COLOR", "1")
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        Session {
            typing: child.stdin.take(),
            lines: BufReader::new(child.stdout.take().unwrap()).lines(),
            child,
            seen: String::new(),
            pid,
        }
    }

    /// Reads on until a line holds `text`.
    #[track_caller]
    fn read_until(&mut self, text: &str) {
        for line in self.lines.by_ref() {
            let line = line.unwrap();
            self.seen.push_str(&line);
            self.seen.push('\n');
            if line.contains(text) {
                return;
            }
        }
        panic!("no `{text}` in: {}", self.seen);
    }

    fn send(&mut self, line: &str) {
        let typing = self.typing.as_mut().unwrap();
        writeln!(typing, "{line}").unwrap();
        typing.flush().unwrap();
    }

    /// Reads on to the end; returns the exit code and everything that was shown.
    fn end(mut self) -> (Option<i32>, String) {
        drop(self.typing.take());
        for line in self.lines.by_ref() {
            self.seen.push_str(&line.unwrap());
            self.seen.push('\n');
        }
        (self.child.wait().unwrap().code(), self.seen)
    }
}

fn context(place: &Place, dockerfile: &str) -> String {
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    context.to_str().unwrap().to_owned()
}

const FAILING: &str = "FROM busybox AS tools
RUN echo tool > /tool
FROM busybox
ENV COLOUR=red
WORKDIR /work
RUN echo before > base
RUN --mount=type=secret,id=token --mount=type=secret,id=token,env=TOKEN \\
    --mount=type=cache,target=/cache --mount=type=tmpfs,target=/scratch \\
    --mount=from=tools,target=/tools,rw --mount=source=Dockerfile,target=/Dockerfile --network=none \\
    echo partial > /tmp/partial; echo kept > /cache/file; echo more >> /tools/tool; rm base; exit 3
";

#[test]
fn a_shell_opens_in_the_state_of_a_failed_step() {
    let place = Place::with_busybox();
    let context = context(&place, FAILING);
    let secret = place.path("token");
    std::fs::write(&secret, "hush").unwrap();
    let secret = format!("--secret id=token,src={}", secret.display());
    let mut session = Session::start(
        &place,
        &format!("build --on-error=shell {secret} {context}"),
    );
    session.read_until("> exit code: 3");
    session.read_until("/dev/rerun runs the command again");
    session.send("pwd; echo $COLOUR $TOKEN; ls -A; cat /tmp/partial /cache/file /tools/tool /run/secrets/token");
    session.send("head -1 /Dockerfile; mount | grep -c ' /scratch '; ls /sys/class/net; /dev/rerun; echo rerun $?");
    session.send("cat /tools/tool; exit 9");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    let expected = "/work\nred hush\npartial\nkept\ntool\nmore\nhush";
    let output = seen.replace('\r', "");
    assert!(output.contains(expected), "{output}");
    assert!(
        output.contains("FROM busybox AS tools\n1\nlo\n"),
        "{output}"
    );
    // `rm` finds nothing any more; the command goes on, and ends as it did.
    assert!(output.contains("rerun 3\n"), "{output}");
    assert!(output.contains("\ntool\nmore\nmore\n"), "{output}");
    let error = "did not complete successfully: exit code: 3";
    assert!(output.contains(error), "{output}");
}

#[test]
fn without_a_terminal_or_a_shell_there_is_a_clear_error() {
    let place = Place::with_busybox();
    let failing = context(&place, "FROM busybox\nRUN false\n");
    let ran = place.run(["build", "--on-error=shell", &failing]);
    ran.fails(2, "--on-error=shell needs a terminal, and stdin is none");
    let store = tool("ls", &[place.store().join("builds").to_str().unwrap()]);
    assert_eq!(store.lines().count(), 1, "no build began: {store}");
    let ran = place.run(["build", "--on-error=sh", &failing]);
    ran.fails(2, "expected fail, shell or shell=PATH");

    let scratch = "FROM busybox AS tools
FROM scratch
COPY --from=tools /bin/busybox /only/false
RUN [\"/only/false\"]
";
    let scratch = context(&place, scratch);
    let session = Session::start(&place, &format!("build --on-error=shell {scratch}"));
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    let error = "there is no shell in the image: tried /bin/sh, /bin/bash, /busybox/sh, sh";
    assert!(seen.contains(error), "{seen}");
    let path = place.path("ctx").join("Dockerfile");
    let text = std::fs::read_to_string(&path).unwrap();
    let text = text.replace(
        "/only/false\nRUN",
        "/only/false\nCOPY --from=tools /bin/busybox /only/sh\nRUN",
    );
    std::fs::write(&path, text).unwrap();
    let mut session = Session::start(
        &place,
        &format!("build --on-error=shell=/only/sh {scratch}"),
    );
    session.read_until("runs the command again");
    session.send("echo /only/*; exit");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("/only/false /only/sh"), "{seen}");
}

#[test]
fn a_command_that_is_not_there_opens_a_shell_too() {
    let place = Place::with_busybox();
    let context = context(&place, "FROM busybox\nRUN [\"no-such\", \"command\"]\n");
    let mut session = Session::start(&place, &format!("build --on-error=shell {context}"));
    session.read_until("> no-such command");
    session.read_until("runs the command again");
    session.send("echo $((40 + 2)); exit");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("42"), "{seen}");
}

#[test]
fn other_steps_end_while_a_shell_is_open_and_no_further_one_starts() {
    let place = Place::with_busybox();
    let cache = "--mount=type=cache,target=/c";
    let wait = "while [ ! -e /c/$f ]; do sleep 0.05; done";
    let dockerfile = format!(
        "FROM busybox AS good
RUN {cache} touch /c/started; f=go; {wait}; echo finished; touch /c/done
RUN {cache} touch /c/next
FROM busybox AS bad
RUN {cache} f=started; {wait}; exit 1
FROM scratch
COPY --from=good /bin/sh /one
COPY --from=bad /bin/sh /two
"
    );
    let context = context(&place, &dockerfile);
    let mut session = Session::start(
        &place,
        &format!("build --progress plain --jobs 4 --on-error=shell {context}"),
    );
    session.read_until("runs the command again");
    session.send(&format!(
        "touch /c/go; f=done; {wait}; echo here-$((1 + 1)); exit"
    ));
    session.read_until("here-2");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    // What it wrote meanwhile is shown afterwards.
    assert!(seen.contains("finished"), "{seen}");
    let words = [
        "build",
        "--progress",
        "plain",
        "--target",
        "good",
        "-t",
        "good",
    ];
    let ran = place.words(words, [Path::new(&context)]);
    ran.ok();
    let built = Built::of(&ran);
    assert_eq!(built.runs(), [format!("{cache} touch /c/next")], "{ran}");
}

#[test]
fn a_signal_ends_shell_and_build() {
    let place = Place::with_busybox();
    let context = context(&place, "FROM busybox\nRUN false\n");
    let mut session = Session::start(&place, &format!("build --on-error=shell {context}"));
    session.read_until("runs the command again");
    session.send("echo here-$((1 + 1))");
    session.read_until("here-2");
    let pid = std::fs::read_to_string(&session.pid).unwrap();
    Ran::of(Command::new("sh").args(["-c", &format!("kill -s TERM {pid}")])).ok();
    let (code, seen) = session.end();
    assert_eq!(code, Some(130), "{seen}");
}
