//! `testdata/hostile/`: Dockerfiles and archives that try to get out, each with what has to come of it. `docs/security.md` says what each
//! of them is about.
//!
//! ```text
//! dockerfiles/<case>/Dockerfile   CANARY is a folder of the host with a file `secret`; `way` in the context is a link to it
//! dockerfiles/<case>/expect.txt   `built: TEXT` or `refused: TEXT`: what is said then
//! tars/<name>.tar                 unpacked by ADD; those that write outside want to make `/tmp/longshore-hostile`
//! ```
//!
//! Whatever comes of a case, the secret is shown nowhere, nothing is made beside it, and no step says that it ESCAPED.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::support::{Place, Ran, workspace};

/// How many there are at least: those that vanish are missed.
const DOCKERFILES_MIN: usize = 24;
const TARS_MIN: usize = 21;

/// What nobody in a sandbox may see.
const SECRET: &str = "the canary sings of 5f0c1d";

/// What the archives want to make.
const OUTSIDE: &str = "/tmp/longshore-hostile";

fn entries(folder: &str) -> Vec<PathBuf> {
    let folder = workspace().join("testdata/hostile").join(folder);
    let entries = fs::read_dir(folder).unwrap();
    let mut entries: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    entries.sort();
    entries
}

/// A folder of the host with something to be found, and everything that is in it.
fn canary(place: &Place) -> PathBuf {
    let folder = place.path("canary");
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("secret"), SECRET).unwrap();
    folder
}

fn build(place: &Place, context: &Path, canary: &Path, flags: &[&str]) -> Ran {
    let canary = format!("CANARY={}", canary.display());
    let mut command = place.command(["build", "--progress", "plain", "--build-arg", &canary]);
    Ran::of(
        command
            .args(flags)
            .arg(context)
            .env("LONGSHORE_CANARY", SECRET),
    )
}

/// What went wrong, if anything did.
fn harm(ran: &Ran, canary: &Path) -> Option<&'static str> {
    let escaped = |line: &str| {
        // Behind a step's number and the time, or alone.
        let mut words = line.splitn(3, ' ');
        let text = match words.next() {
            Some(word) if word.starts_with('#') => words.nth(1).unwrap_or_default(),
            _ => line,
        };
        text.starts_with("ESCAPED")
    };
    let left: Vec<_> = fs::read_dir(canary).unwrap().collect();
    let untouched = fs::read_to_string(canary.join("secret")).is_ok_and(|text| text == SECRET);
    if ran.stdout.contains(SECRET) || ran.stderr.contains(SECRET) {
        Some("it shows the secret")
    } else if ran.stdout.lines().chain(ran.stderr.lines()).any(escaped) {
        Some("it got out")
    } else if left.len() != 1 || !untouched {
        Some("it wrote on the host")
    } else if Path::new(OUTSIDE).symlink_metadata().is_ok() {
        Some("it wrote to the host's /tmp")
    } else {
        None
    }
}

fn differs(case: &Path, ran: &Ran) -> Option<String> {
    let expect = fs::read_to_string(case.join("expect.txt")).unwrap();
    let (verdict, text) = expect.trim_end().split_once(':').unwrap();
    let as_expected = match verdict {
        "built" => ran.code == Some(0),
        "refused" => ran.code.is_some_and(|code| code != 0),
        other => panic!("{}: {other}", case.display()),
    };
    let said = ran.stderr.contains(text.trim()) || ran.stdout.contains(text.trim());
    (!as_expected || !said).then(|| format!("expected {expect}"))
}

fn dockerfiles_stay_inside(flags: &[&str]) {
    let place = Place::with_busybox();
    let canary = canary(&place);
    let cases = entries("dockerfiles");
    assert!(cases.len() >= DOCKERFILES_MIN);
    let mut wrong = Vec::new();
    for case in &cases {
        let name = case.file_name().unwrap().to_str().unwrap();
        let context = place.context(name, &[]);
        fs::copy(case.join("Dockerfile"), context.join("Dockerfile")).unwrap();
        for tar in entries("tars") {
            fs::copy(&tar, context.join(tar.file_name().unwrap())).unwrap();
        }
        symlink(&canary, context.join("way")).unwrap();
        let ran = build(&place, &context, &canary, flags);
        let found = harm(&ran, &canary).map(str::to_owned);
        wrong.extend(
            found
                .or_else(|| differs(case, &ran))
                .map(|what| format!("=== {name}: {what}\n{ran}")),
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn hostile_dockerfiles_stay_inside() {
    dockerfiles_stay_inside(&[]);
}

/// With the host's ids only the sandbox itself is in the way.
#[test]
fn hostile_dockerfiles_stay_inside_with_the_hosts_ids() {
    dockerfiles_stay_inside(&["--userns=host"]);
}

#[test]
fn hostile_tars_stay_inside() {
    let place = Place::with_busybox();
    let canary = canary(&place);
    // Its beginning: other tests make users meanwhile.
    let root = || {
        let text = fs::read_to_string("/etc/passwd").unwrap();
        text.lines().next().map(str::to_owned)
    };
    let passwd = root();
    let modes = || ["/etc", "/etc/passwd"].map(|path| fs::metadata(path).unwrap().mode());
    let before = modes();
    let tars = entries("tars");
    assert!(tars.len() >= TARS_MIN);
    for tar in &tars {
        let name = tar.file_stem().unwrap().to_str().unwrap();
        let context = place.context(
            name,
            &[(
                "Dockerfile",
                "FROM busybox\nADD it.tar /a/\nRUN ls -laR /a\n",
            )],
        );
        fs::copy(tar, context.join("it.tar")).unwrap();
        let ran = build(&place, &context, &canary, &[]);
        // Refused, or inside: both are right. Nothing else is.
        assert!(matches!(ran.code, Some(0 | 1)), "{name}: {ran}");
        assert_eq!(harm(&ran, &canary), None, "{name}: {ran}");
    }
    assert_eq!(root(), passwd);
    assert_eq!(modes(), before);
}
