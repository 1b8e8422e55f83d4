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
fn a_copy_that_fails_opens_a_shell_in_what_it_began_with() {
    let place = Place::with_busybox();
    let context = context(
        &place,
        "FROM busybox\nRUN echo before > /made\nCOPY Dockerfile /made/copy\n",
    );
    let mut session = Session::start(&place, &format!("build --on-error=shell {context}"));
    session.read_until("> [3/3] COPY Dockerfile /made/copy");
    session.read_until("files as before the step; the build fails when the shell ends");
    session.send("pwd; cat /made; ls /dev/rerun; touch /made-here; exit 0");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    let output = seen.replace('\r', "");
    assert!(output.contains("/\nbefore\n"), "{output}");
    assert!(output.contains("ls: /dev/rerun: No such file"), "{output}");
    // What is to be copied is not there: that is found before the step begins.
    let missing = "FROM busybox AS base\nFROM base\nCOPY --from=base /no-such /\n";
    let missing = self::context(&place, missing);
    let mut session = Session::start(&place, &format!("build --on-error=shell {missing}"));
    session.read_until("the build fails when the shell ends");
    session.send("echo $((40 + 2)); exit");
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    assert!(seen.contains("42"), "{seen}");
    // On scratch there is no shell to be had, and none is looked for.
    let scratch = self::context(&place, "FROM scratch\nCOPY no-such-file /\n");
    let session = Session::start(&place, &format!("build --on-error=shell {scratch}"));
    let (code, seen) = session.end();
    assert_eq!(code, Some(1), "{seen}");
    assert!(!seen.contains("shell"), "{seen}");
}

#[test]
fn a_failed_build_says_how_to_look_around() {
    let place = Place::with_busybox();
    let failing = context(&place, "FROM busybox\nRUN echo left > /left; exit 3\n");
    let ran = place.run(["build", "--progress", "plain", &failing]);
    ran.fails(1, "hint: look around in it: `longshore debug ");
    let hint = ran.stderr.lines().find(|line| line.starts_with("hint: "));
    let command = hint.unwrap().split('`').nth(1).unwrap();
    let words: Vec<&str> = command.split(' ').skip(1).collect();
    let left = place.run([&words[..], &["--", "cat", "/left"]].concat());
    assert_eq!(left.stdout, "left\n", "{left}");

    let ran = place.run(["build", "--progress", "rawjson", &failing]);
    let last: serde_json::Value = serde_json::from_str(ran.stderr.lines().last().unwrap()).unwrap();
    let hint = last["error"]["hint"].as_str().unwrap();
    assert!(hint.contains("`longshore debug "), "{ran}");

    let none = place
        .command(["build", &failing])
        .env("LONGSHORE_HISTORY_BUILDS", "0")
        .output();
    let said = String::from_utf8(none.unwrap().stderr).unwrap();
    assert!(!said.contains("longshore debug"), "{said}");
    let missing = context(&place, "FROM busybox\nCOPY no-such-file /\n");
    let ran = place.run(["build", &missing]);
    assert!(!ran.stderr.contains("longshore debug"), "{ran}");
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

/// Builds what fails; the build's own error is as it should be.
fn fail(place: &Place, dockerfile: &str, flags: &[&str]) -> Ran {
    let context = context(place, dockerfile);
    let mut command = place.command(["build", "--progress", "plain"]);
    command.args(flags).arg(context);
    let ran = Ran::of(&mut command);
    assert_eq!(ran.code, Some(1), "{ran}");
    ran
}

/// Runs a shell line in a step of the latest build.
fn look(place: &Place, step: &str, flags: &[&str], line: &str) -> Ran {
    let mut command = place.command(["debug", "latest", step]);
    command.args(flags).args(["--", "sh", "-c", line]);
    Ran::of(&mut command)
}

#[test]
fn a_failed_step_is_looked_at_later() {
    let place = Place::with_busybox();
    let secret = place.path("token");
    std::fs::write(&secret, "hush-hush-hush").unwrap();
    let secret = format!("id=token,src={}", secret.display());
    fail(&place, FAILING, &["--secret", &secret]);
    let step = "echo partial";
    let line = "pwd; echo $COLOUR; ls -A; cat /tmp/partial /cache/file /tools/tool; head -1 /Dockerfile; \
                ls /sys/class/net; ls /run/secrets/token; exit 7";
    let ran = look(&place, step, &[], line);
    ran.fails(7, "warning: the secret token is not there");
    assert_eq!(
        ran.stdout,
        "/work\nred\npartial\nkept\ntool\nFROM busybox AS tools\nlo\n"
    );
    let ran = look(
        &place,
        step,
        &["--secret", &secret],
        "echo $TOKEN; cat /run/secrets/token; /dev/rerun",
    );
    assert_eq!(ran.code, Some(3), "{ran}");
    assert_eq!(ran.stdout, "hush-hush-hush\nhush-hush-hush");
    assert!(!ran.stderr.contains("warning"), "{ran}");
    // What is done there is lost, but for the cache.
    look(&place, step, &[], "echo lost > lost; echo new > /cache/new").ok();
    let ran = look(&place, step, &[], "ls /work /cache");
    assert_eq!(ran.ok(), "/cache:\nfile\nnew\n\n/work:");
    let before = look(&place, step, &["--state", "before"], "cat base; ls /tmp");
    assert_eq!(before.ok(), "before");
    look(&place, step, &["--state", "after"], "true").fails(1, "has no result in build");

    // In no file of the store, wherever: what is mounted is in no layer.
    let found = Command::new("grep")
        .args(["-rlaF", "hush-hush-hush"])
        .arg(place.store())
        .output()
        .unwrap();
    assert_eq!(String::from_utf8_lossy(&found.stdout), "");
    assert_eq!(found.status.code(), Some(1));
}

#[test]
fn steps_that_succeeded_or_were_cached_are_looked_at_too() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox AS tools
RUN mkdir /out && echo tool > /out/tool
FROM busybox
ARG API_TOKEN=hush
ENV NAME=value
USER daemon
WORKDIR /work
COPY --chown=daemon Dockerfile copied
RUN --mount=type=cache,target=/filled,from=tools,source=/out,uid=1 \\
    --mount=from=tools,source=/out,target=/tools \\
    echo one > one && cat /filled/tool /tools/tool
RUN echo two > two && rm one
";
    let context = context(&place, dockerfile);
    let check = |step: &str, state: &str, line: &str, expected: &str| {
        let ran = look(&place, step, &["--state", state], line);
        assert_eq!(ran.ok(), expected, "{step} {state}");
    };
    for _ in 0..2 {
        place.build("img", Path::new(&context));
        check(
            "echo two",
            "before",
            "ls; id -u; echo $NAME",
            "copied\none\n1\nvalue",
        );
        check("echo two", "after", "ls", "copied\ntwo");
        let line = "ls; cat /filled/tool /tools/tool";
        check("echo one", "before", line, "copied\ntool\ntool");
        check("COPY", "before", "ls /work; pwd", "/");
        check("COPY", "after", "ls /work", "copied");
        check(
            "mkdir /out",
            "before",
            "ls -d /out 2>&1; true",
            "ls: /out: No such file or directory",
        );
        check("[tools 1/2]", "after", "ls -d /bin", "/bin");
    }
    // The second time nothing was even unpacked: all of it was known.
    let shown = place.run(["history", "show"]).ok();
    assert!(shown.contains("cached"), "{shown}");

    let ran = look(&place, "echo two", &[], "echo $API_TOKEN.");
    ran.fails(0, "warning: the variable API_TOKEN is not set");
    assert_eq!(ran.stdout, ".\n");
    let ran = look(
        &place,
        "echo two",
        &["-e", "API_TOKEN=given"],
        "echo $API_TOKEN",
    );
    assert_eq!(ran.ok(), "given");
    assert!(!ran.stderr.contains("warning"), "{ran}");
}

#[test]
fn what_cannot_be_looked_at_is_said() {
    let place = Place::with_busybox();
    fail(
        &place,
        "FROM busybox\nCOPY Dockerfile /\nRUN echo left > /left; false\nRUN never\n",
        &[],
    );
    let check = |arguments: &[&str], code: i32, expected: &str| {
        place
            .run([&["debug"], arguments].concat())
            .fails(code, expected);
    };
    let sh = |line: &'static str| ["latest", "false", "--", "sh", "-c", line];
    check(
        &["latest", "false"],
        2,
        "a shell needs a terminal, and stdin is none",
    );
    check(
        &["nothing", "false", "--", "true"],
        1,
        "no such build: `nothing`",
    );
    check(
        &["latest", "absent", "--", "true"],
        1,
        "has no step `absent`",
    );
    check(
        &["latest", "RUN", "--", "true"],
        1,
        "several steps of build",
    );
    check(
        &["latest", "never", "--", "true"],
        1,
        "has no result in build",
    );
    check(
        &["latest", "false", "--", "no-such-command"],
        127,
        "not found in the image",
    );
    check(
        &["latest", "COPY", "--state", "failed", "--", "true"],
        1,
        "it did not fail in build",
    );
    check(
        &["latest", "load build context", "--", "true"],
        1,
        "it is a folder",
    );
    check(
        &["latest", "FROM", "--state", "before", "--", "true"],
        1,
        "nothing before",
    );
    check(
        &["latest", "false", "-e", "=x", "--", "true"],
        2,
        "expected NAME=VALUE",
    );
    assert_eq!(
        place.run([&["debug"], &sh("cat /left")[..]].concat()).ok(),
        "left"
    );

    // What goes in and comes out is not changed on the way.
    let mut child = place
        .command(["debug", "last", "false", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child
        .stdin
        .take()
        .unwrap()
        .write_all(b"\xff\0\r\n")
        .unwrap();
    assert_eq!(child.wait_with_output().unwrap().stdout, b"\xff\0\r\n");

    let layers = || {
        std::fs::read_dir(place.store().join("layers"))
            .unwrap()
            .count()
    };
    let before = layers();
    place.run(["prune"]).ok();
    assert_eq!(layers(), before, "what failed is kept");
    place.run(["prune", "--all"]).ok();
    assert!(layers() < before);
    check(&sh("true"), 1, "was pruned, so build again");
    place.run(["rmi", "busybox"]).ok();
    place.run(["prune", "--all"]).ok();
    check(
        &["latest", "FROM", "--", "true"],
        1,
        "is not in the store: pull the image",
    );
}

#[test]
fn forgetting_a_build_forgets_what_failed_in_it() {
    let place = Place::with_busybox();
    fail(&place, "FROM busybox\nRUN echo left > /left; false\n", &[]);
    let layers = || {
        std::fs::read_dir(place.store().join("layers"))
            .unwrap()
            .count()
    };
    let before = layers();
    let id = place.run(["history", "ls", "-q", "-n", "1"]).ok();
    place.run(["history", "rm", &id]).ok();
    place.run(["prune"]).ok();
    assert_eq!(layers(), before - 1);
}

#[test]
fn a_shell_opens_in_a_step_later() {
    let place = Place::with_busybox();
    fail(&place, "FROM busybox\nRUN echo left > /left; exit 4\n", &[]);
    let mut session = Session::start(&place, "debug latest 2");
    session.read_until("> /bin/sh -c 'echo left > /left; exit 4'");
    session.read_until("> files as the step left them: exit code: 4");
    session.send("cat /left; /dev/rerun; echo code-$?; exit 5");
    let (code, seen) = session.end();
    assert_eq!(code, Some(5), "{seen}");
    assert!(seen.contains("\nleft\n"), "{seen}");
    assert!(seen.contains("code-4"), "{seen}");
    // A command on a terminal has one too.
    let session = Session::start(&place, "debug latest 2 -- tty");
    let (code, seen) = session.end();
    assert_eq!(code, Some(0), "{seen}");
    assert!(seen.contains("/dev/pts/0"), "{seen}");
    let session = Session::start(&place, "debug latest 2 --shell /no/shell");
    let (code, seen) = session.end();
    assert_eq!(code, Some(127), "{seen}");
}
