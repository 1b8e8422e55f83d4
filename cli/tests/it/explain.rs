//! Why steps ran, what builds are remembered, and the page that shows one.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::support::{Place, Ran};

/// Each line changes by something of its own.
const DOCKERFILE: &str = "FROM busybox
ARG VERSION=1
ENV MODE=fast
WORKDIR /src
COPY src .
RUN cat a > /out
USER 1000
RUN id > /tmp/id
";

struct Case {
    place: Place,
    context: PathBuf,
}

impl Case {
    /// A build that was done once.
    fn built() -> Case {
        let place = Place::with_busybox();
        let files = [
            ("Dockerfile", DOCKERFILE),
            ("src/a", "1"),
            ("src/dir/b", "2"),
        ];
        let context = place.context("ctx", &files);
        let case = Case { place, context };
        case.build(&[]).ok();
        case
    }

    fn build(&self, flags: &[&str]) -> Ran {
        let words = ["build", "--progress", "plain", "-t", "app"];
        let words = words.into_iter().chain(flags.iter().copied());
        self.place.words(words, [&self.context])
    }

    fn write(&self, file: &str, text: &str) {
        std::fs::write(self.context.join(file), text).unwrap();
    }

    fn dockerfile(&self, from: &str, to: &str) {
        assert!(DOCKERFILE.contains(from));
        self.write("Dockerfile", &DOCKERFILE.replace(from, to));
    }

    /// What the last build says of its steps.
    fn explained(&self) -> Vec<Value> {
        let text = self.place.run(["explain", "--format", "json"]).ok();
        let value: Value = serde_json::from_str(&text).unwrap();
        value["steps"].as_array().unwrap().clone()
    }

    /// Each step that ran, by its instruction's line in the Dockerfile, and the reasons: `4 file a old new`.
    fn reasons(&self) -> Vec<String> {
        let mut found = Vec::new();
        for step in self.explained() {
            for reason in step["reasons"].as_array().unwrap() {
                let text = |name: &str| match &reason[name] {
                    Value::String(text) => text.clone(),
                    _ => "-".to_owned(),
                };
                let line = step["line"].as_u64().unwrap();
                let kind = text("ingredient");
                let (name, old, new) = (text("name"), text("old"), text("new"));
                found.push(format!("{line} {kind} {name} {old} {new}"));
            }
        }
        found
    }

    /// Builds again; what the steps that ran say.
    #[track_caller]
    fn check(&self, flags: &[&str], expected: &[impl AsRef<str>]) {
        self.build(flags).ok();
        let reasons: Vec<String> = self.reasons().iter().map(|r| without_digests(r)).collect();
        let expected: Vec<&str> = expected.iter().map(AsRef::as_ref).collect();
        assert_eq!(reasons, expected);
    }
}

/// The digest of a file's content in a list is short, and its value nobody's business.
fn without_digests(text: &str) -> String {
    let words = text.split(' ').map(|word| {
        let digits = word.len() == 16 && word.bytes().all(|byte| byte.is_ascii_hexdigit());
        if digits { "D" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_first_build_has_no_record_and_the_second_is_cached() {
    let case = Case::built();
    let lines = |reasons: Vec<String>| -> Vec<String> {
        reasons
            .iter()
            .map(|r| r.split(' ').take(2).collect::<Vec<_>>().join(" "))
            .collect()
    };
    assert_eq!(
        lines(case.reasons()),
        ["4 no-record", "5 no-record", "6 no-record", "8 no-record"]
    );
    let ran = case.build(&["--explain"]);
    ran.ok();
    assert!(ran.stderr.contains("0 ran, 4 cached"), "{ran}");
    assert!(ran.stderr.contains("CACHED"), "{ran}");
    assert_eq!(case.reasons(), Vec::<String>::new());
}

#[test]
fn changed_files_are_named_one_by_one() {
    let case = Case::built();
    case.write("src/a", "changed");
    case.write("src/new", "");
    std::fs::remove_file(case.context.join("src/dir/b")).unwrap();
    case.check(
        &[],
        &[
            "5 file src/a D D",
            "5 file src/dir/b D -",
            "5 file src/new - D",
            "6 parent [3/5] COPY src . D D",
            "8 parent [4/5] RUN cat a > /out D D",
        ],
    );
    let text = case.place.run(["explain", "latest", "COPY"]).ok();
    assert!(text.contains("file src/new is new"), "{text}");
    assert!(!text.contains("RUN id"), "{text}");
}

#[test]
fn a_mode_is_no_content() {
    use std::os::unix::fs::PermissionsExt;
    let case = Case::built();
    let file = case.context.join("src/a");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
    case.check(
        &[],
        &[
            "5 file src/a mode 0644 mode 0600",
            "6 parent [3/5] COPY src . D D",
            "8 parent [4/5] RUN cat a > /out D D",
        ],
    );
}

#[test]
fn arguments_and_variables_are_told_apart() {
    let case = Case::built();
    case.check(
        &["--build-arg", "VERSION=2"],
        &["6 argument VERSION 1 2", "8 argument VERSION 1 2"],
    );
    case.dockerfile("MODE=fast", "MODE=slow");
    case.build(&[]).ok();
    let reasons = case.reasons();
    assert!(
        reasons.contains(&"6 variable MODE fast slow".to_owned()),
        "{reasons:?}"
    );
}

#[test]
fn a_secret_is_not_written_down() {
    let case = Case::built();
    case.dockerfile("ARG VERSION=1", "ARG API_TOKEN");
    case.build(&["--build-arg", "API_TOKEN=hunter1"]).ok();
    case.build(&["--build-arg", "API_TOKEN=hunter2"]).ok();
    let reasons = case.reasons();
    assert!(
        reasons[0].starts_with("6 argument API_TOKEN #"),
        "{reasons:?}"
    );
    let store = case.place.store();
    for entry in std::fs::read_dir(store.join("builds")).unwrap() {
        let text = std::fs::read_to_string(entry.unwrap().path()).unwrap();
        assert!(!text.contains("hunter"), "{text}");
    }
}

#[test]
fn commands_users_and_directories_are_named() {
    let case = Case::built();
    case.dockerfile("cat a > /out", "cat a a > /out");
    case.check(
        &[],
        &[
            "6 command - /bin/sh -c cat a > /out /bin/sh -c cat a a > /out",
            "8 parent [4/5] RUN cat a a > /out [4/5] RUN cat a > /out [4/5] RUN cat a a > /out",
        ],
    );
    let case = Case::built();
    case.dockerfile("USER 1000", "USER 1001");
    case.check(&[], &["8 user - 1000 1001"]);
    let case = Case::built();
    case.dockerfile(
        "RUN cat a > /out\n",
        "WORKDIR /src/dir\nRUN cat ../a > /out\n",
    );
    case.build(&[]).ok();
    let reasons = case.reasons();
    let moved = "7 directory - /src /src/dir".to_owned();
    assert!(reasons.contains(&moved), "{reasons:?}");
}

#[test]
fn another_base_image_is_named_with_both_digests() {
    let case = Case::built();
    let other = case.place.context(
        "other",
        &[("Dockerfile", "FROM busybox\nRUN echo > /other\n")],
    );
    case.place.build("busybox", &other);
    case.build(&[]).ok();
    let reasons = case.reasons();
    let words: Vec<&str> = reasons[0].split(' ').collect();
    assert_eq!(
        words[..3],
        ["4", "base-image", "busybox:latest"],
        "{reasons:?}"
    );
    assert!(
        words[3] != words[4] && words[4].starts_with("sha256:"),
        "{reasons:?}"
    );
}

#[test]
fn no_cache_and_pruned_records_are_reasons() {
    let case = Case::built();
    case.build(&["--no-cache"]).ok();
    for reason in case.reasons() {
        assert!(reason.contains(" no-cache "), "{reason}");
    }
    case.place.run(["rmi", "app"]).ok();
    case.place.run(["prune", "--all"]).ok();
    case.check(
        &[],
        &[4, 5, 6, 8].map(|line| format!("{line} record-removed - - -")),
    );
}

#[test]
fn a_layer_that_is_gone_is_a_reason() {
    let case = Case::built();
    for entry in std::fs::read_dir(case.place.store().join("layers")).unwrap() {
        let path = entry.unwrap().path();
        if path.join("fs/out").exists() {
            std::fs::remove_dir_all(path).unwrap();
        }
    }
    case.build(&[]).ok();
    let reasons = case.reasons();
    assert!(reasons[0].starts_with("6 layer-missing b3-"), "{reasons:?}");
}

#[test]
fn a_step_that_failed_before_says_so_and_its_build_is_kept() {
    let case = Case::built();
    case.dockerfile("cat a > /out", "echo words; test -e /elsewhere/x");
    case.build(&[]).fails(1, "did not complete successfully");
    let builds = case.place.run(["history", "ls", "--json"]).ok();
    let last: Value = serde_json::from_str(builds.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&last["status"], &last["ran"]),
        (&"failed".into(), &1.into()),
        "{last}"
    );
    assert!(
        last["error"].as_str().unwrap().contains("exit code: 1"),
        "{last}"
    );
    let id = last["id"].as_str().unwrap();
    let logs = case.place.run(["history", "show", "--logs", id]).ok();
    assert!(logs.contains("words"), "{logs}");
    case.build(&[]).fails(1, "did not complete successfully");
    assert_eq!(case.reasons(), [format!("6 failed-before {id} - -")]);
}

#[test]
fn a_killed_build_is_shown_as_such() {
    let case = Case::built();
    case.dockerfile("cat a > /out", "echo before; sleep 600");
    let mut command = case.place.command(["build", "--progress", "plain"]);
    command
        .arg(&case.context)
        .stderr(std::process::Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut stderr = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.ends_with(" before\n") {
        line.clear();
        assert!(std::io::BufRead::read_line(&mut stderr, &mut line).unwrap() > 0);
    }
    let status = |case: &Case| -> (String, Value) {
        let text = case.place.run(["history", "ls", "-n", "1", "--json"]).ok();
        let row: Value = serde_json::from_str(&text).unwrap();
        (row["status"].as_str().unwrap().to_owned(), row)
    };
    assert_eq!(status(&case).0, "running");
    child.kill().unwrap();
    child.wait().unwrap();
    let (killed, row) = status(&case);
    assert_eq!(killed, "killed", "{row}");
    assert_eq!(
        (&row["ran"], &row["cached"]),
        (&1.into(), &2.into()),
        "{row}"
    );
    let logs = case.place.run(["history", "show", "--logs"]).ok();
    assert!(logs.contains("before"), "{logs}");
}

#[test]
fn old_builds_make_room_and_can_be_removed() {
    let case = Case::built();
    let mut build = case.place.command(["build", "-q"]);
    build
        .arg(&case.context)
        .env("LONGSHORE_HISTORY_BUILDS", "2");
    Ran::of(&mut build).ok();
    let ids = |case: &Case| -> Vec<String> {
        let text = case.place.run(["history", "ls", "-q"]).ok();
        text.lines().map(str::to_owned).collect()
    };
    let kept = ids(&case);
    assert_eq!(kept.len(), 2);
    let removed = case.place.run(["history", "rm", &kept[1]]).ok();
    assert_eq!(removed, kept[1]);
    assert_eq!(ids(&case), kept[..1]);
    case.place
        .run(["history", "show", &kept[1]])
        .fails(1, "no such build");
    case.place.run(["history", "rm", "--all"]).ok();
    assert_eq!(ids(&case), Vec::<String>::new());
    case.place
        .run(["explain"])
        .fails(1, "no such build: `latest`");
    // Without a history nothing is written, and nothing is explained.
    let mut build = case.place.command(["build", "--explain"]);
    build
        .arg(&case.context)
        .env("LONGSHORE_HISTORY_BUILDS", "0");
    let ran = Ran::of(&mut build);
    ran.ok();
    assert!(ran.stderr.contains("no history is kept"), "{ran}");
    assert_eq!(ids(&case), Vec::<String>::new());
}

#[test]
fn an_image_may_be_named_like_a_command() {
    let place = Place::with_busybox();
    place.run(["tag", "busybox", "ls"]).ok();
    let image = place.run(["history", "-q", "busybox"]).ok();
    assert_eq!(place.run(["history", "-q", "--", "ls"]).ok(), image);
    assert_eq!(place.run(["history", "image", "-q", "ls"]).ok(), image);
    assert!(place.run(["history", "ls"]).ok().starts_with("BUILD"));
}

#[test]
fn the_page_shows_the_build_in_a_browser() {
    let case = Case::built();
    case.write("src/a", "<b>&");
    case.build(&[]).ok();
    let page = case.place.path("build.html");
    case.place.ok(["history", "graph", "-o"], [&page]);
    let dom = dump_dom(&case.place, &page);
    // Its script ran, and found every step.
    let steps = case.explained().len();
    assert!(dom.contains(&format!("data-steps=\"{steps}\"")), "{dom}");
    assert_eq!(dom.matches("<a class=\"step ").count(), steps, "{dom}");
    assert_eq!(dom.matches("<a class=\"row\"").count(), 3, "{dom}");
    assert!(dom.contains("<dd id=\"steps-ran\">3</dd>"), "{dom}");
    assert!(dom.contains("<dd id=\"steps-cached\">1</dd>"), "{dom}");
    assert!(dom.contains("file src/a: "), "{dom}");
    assert!(dom.contains("edge path"), "{dom}");
}

/// What a browser makes of a page.
fn dump_dom(place: &Place, page: &Path) -> String {
    let mut browser = Command::new("chromium");
    browser
        .args([
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
        ])
        .args([
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
        ])
        .arg(format!(
            "--user-data-dir={}",
            place.path("browser").display()
        ))
        .arg("--dump-dom")
        .arg(format!("file://{}", page.display()));
    Ran::of(&mut browser).ok()
}

#[test]
fn builds_that_fail_before_their_first_step_are_kept() {
    let place = Place::new();
    let check = |context: &Path, error: &str| {
        let ran = place.words(["build", "-q", "-t", "app"], [context]);
        assert_ne!(ran.code, Some(0), "{ran}");
        let text = place.run(["history", "ls", "-n", "1", "--json"]).ok();
        let row: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(row["status"], "failed", "{row}");
        assert_eq!(row["tags"][0], "app:latest", "{row}");
        let said = row["error"].as_str().unwrap();
        assert!(said.contains(error), "{row}");
        let shown = place.run(["history", "show"]).ok();
        assert!(shown.contains("error: "), "{shown}");
        assert!(!said.contains(" |"), "one line: {said}");
    };
    check(Path::new("not-there"), "not-there");
    let mistake = place.context("mistake", &[("Dockerfile", "FROM scratch\nRUNN x\n")]);
    check(&mistake, "Dockerfile:2: unknown instruction `RUNN`");
    let base = "FROM localhost:1/no/such:image\n";
    let missing = place.context("missing", &[("Dockerfile", base)]);
    check(&missing, "localhost:1/no/such:image");
    let empty = place.context("empty", &[]);
    check(&empty, "Dockerfile");
    // They are listed, and nothing is left of the questions that only look.
    let ran = place.words(["build", "--check"], [mistake.as_path()]);
    assert_ne!(ran.code, Some(0), "{ran}");
    let ids = place.run(["history", "ls", "-q"]).ok();
    assert_eq!(ids.lines().count(), 4, "{ids}");
}

#[test]
fn flags_are_named_with_what_they_were() {
    let case = Case::built();
    let run = "RUN cat a > /out";
    case.dockerfile(
        run,
        "RUN --network=none --mount=type=tmpfs,target=/t cat a > /out",
    );
    let parent = "8 parent [4/5] RUN --network=none --mount=type=tmpfs,target=/t cat a > /out";
    case.build(&[]).ok();
    let reasons = case.reasons();
    assert_eq!(
        reasons[..2],
        [
            "6 options --mount /t - type=tmpfs,rw",
            "6 options --network default none"
        ],
        "{reasons:?}"
    );
    // What it made is what it had made, so nothing below it runs.
    assert_eq!(reasons.len(), 2, "{parent}: {reasons:?}");
    let step = case
        .explained()
        .into_iter()
        .find(|step| step["line"] == 6)
        .unwrap();
    assert_eq!(step["unchanged"], true, "{step}");
    let text = case.place.run(["explain", "latest", "cat a"]).ok();
    assert!(text.contains("--network: default → none"), "{text}");
    assert!(text.contains("ran again, same result"), "{text}");
    case.dockerfile("COPY src .", "COPY --chmod=0700 --exclude=dir src .");
    case.build(&[]).ok();
    let reasons = case.reasons();
    let action = "5 action - copy to /src/ copy to /src/ --chmod=0700 --exclude=dir";
    assert!(reasons.contains(&action.to_owned()), "{reasons:?}");
}

/// Lines without what differs from one telling to the next: times.
fn without_times(text: &str) -> Vec<String> {
    let is_time =
        |word: &str| word.trim_end_matches('s').parse::<f64>().is_ok() && word.contains('.');
    let words = |line: &str| -> String {
        let words = line.split(' ').filter(|word| !is_time(word));
        words.collect::<Vec<_>>().join(" ")
    };
    text.lines().map(words).collect()
}

#[test]
fn logs_are_told_again_as_they_were_told() {
    let place = Place::with_busybox();
    let dockerfile = "FROM busybox\n\
        RUN echo out; echo err >&2; printf 'a\\rb\\377\\n'; printf 'no end'\n\
        RUN echo second; exit 3\n";
    let context = place.context("ctx", &[("Dockerfile", dockerfile)]);
    // Nothing is shown, and all is kept.
    let quiet = place.words(["build", "-q"], [&context]);
    assert_eq!(quiet.code, Some(1), "{quiet}");
    let all = place.run(["history", "logs"]).ok();
    let plain = place.words(["build", "--progress", "plain"], [&context]);
    let again = place.run(["history", "logs"]).ok();
    let shown = without_times(&plain.stderr);
    let told = without_times(&again);
    // What the command says of the error comes after the build's own words.
    assert_eq!(told, shown[..told.len()], "{plain}");
    assert!(
        all.contains("second\n") && all.contains("no end\n"),
        "{all}"
    );
    let raw = |step: &str| {
        let mut command = place.command(["history", "logs", "--raw", "latest", step]);
        command.output().unwrap().stdout
    };
    assert_eq!(raw("exit 3"), b"second\n");
    assert_eq!(raw("#1"), b"");
    let first = place.run(["history", "ls", "-q"]).ok();
    let first = first.lines().nth(1).unwrap().to_owned();
    let mut command = place.command(["history", "logs", "--raw", &first, "no end"]);
    let bytes = command.output().unwrap().stdout;
    for part in [&b"out\n"[..], b"err\n", b"a\rb\xff\nno end"] {
        assert!(bytes.windows(part.len()).any(|window| window == part));
    }
    let json = place.run(["history", "logs", "--progress", "rawjson"]).ok();
    let lines = json.lines().map(|line| serde_json::from_str(line).unwrap());
    let lines: Vec<Value> = lines.collect();
    assert!(
        lines
            .iter()
            .any(|line| line["logs"][0]["data"] == "c2Vjb25kCg==")
    );
}
