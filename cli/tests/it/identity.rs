//! What is part of a step's key, and what is not.

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, SystemTime};

use crate::support::{Built, Place, Ran};

/// A folder that is built again and again.
struct Series {
    place: Place,
}

impl Series {
    fn new() -> Series {
        Series {
            place: Place::with_busybox(),
        }
    }

    fn write(&self, files: &[(&str, &str)]) -> &Series {
        self.place.context("ctx", files);
        self
    }

    fn remove(&self, file: &str) {
        std::fs::remove_file(self.place.path("ctx").join(file)).unwrap();
    }

    /// Builds; returns the names of the steps that ran, without their numbers.
    fn ran(&self, flags: &[&str]) -> Vec<String> {
        let mut command = self
            .place
            .command(["build", "--progress", "plain", "-t", "img"]);
        command.args(flags).arg(self.place.path("ctx"));
        let ran = Ran::of(&mut command);
        ran.ok();
        let names = Built::of(&ran).ran.into_iter();
        names
            .filter_map(|name| Some(name.split_once("] ")?.1.to_owned()))
            .filter(|name| !name.starts_with("FROM"))
            .collect()
    }

    #[track_caller]
    fn check(&self, flags: &[&str], expected: &[&str]) {
        assert_eq!(self.ran(flags), expected, "{flags:?}");
    }
}

#[test]
fn a_copy_is_keyed_on_exactly_what_it_selects() {
    let series = Series::new();
    series.write(&[
        ("a.txt", "a"),
        ("b.txt", "b"),
        ("other.log", "1"),
        ("Dockerfile", "FROM busybox\nCOPY *.txt /texts/\n"),
    ]);
    let copy = ["COPY *.txt /texts/"];
    series.check(&[], &copy);
    series.check(&[], &[]);
    // What the pattern does not match, its own change and coming, and times.
    series.write(&[("other.log", "2"), ("new.log", "")]);
    let file = std::fs::File::options()
        .write(true)
        .open(series.place.path("ctx").join("a.txt"));
    let long_ago = SystemTime::now() - Duration::from_secs(86_400);
    file.unwrap().set_modified(long_ago).unwrap();
    series.check(&[], &[]);
    // The same bytes under another name.
    series.remove("b.txt");
    series.write(&[("c.txt", "b")]);
    series.check(&[], &copy);
    assert_eq!(series.place.sh("img", "ls /texts"), "a.txt\nc.txt");
    // One that matches is new, or gone again.
    series.write(&[("d.txt", "d")]);
    series.check(&[], &copy);
    series.remove("d.txt");
    series.check(&[], &[]);
    // Its mode, and what it says.
    let path = series.place.path("ctx").join("a.txt");
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o700)).unwrap();
    series.check(&[], &copy);
    series.write(&[("a.txt", "A")]);
    series.check(&[], &copy);
}

#[test]
fn an_owner_by_name_is_keyed_on_who_that_is() {
    let series = Series::new();
    let dockerfile = |id: u32| {
        format!(
            "FROM busybox AS base
RUN echo me:x:{id}:{id}::/:/bin/sh >> /etc/passwd && echo us:x:{id}: >> /etc/group
FROM base
COPY --chown=me:us file /file
RUN stat -c %u:%g /file > /owner
"
        )
    };
    series.write(&[("file", "x"), ("Dockerfile", &dockerfile(101))]);
    assert_eq!(series.ran(&[]).len(), 3);
    assert_eq!(series.place.sh("img", "cat /owner"), "101:101");
    series.write(&[("Dockerfile", &dockerfile(102))]);
    assert_eq!(series.ran(&[]).len(), 3);
    assert_eq!(series.place.sh("img", "cat /owner"), "102:102");
    series.check(&[], &[]);
}

#[test]
fn a_run_that_leaves_the_same_ends_the_change_whatever_the_times() {
    let series = Series::new();
    let dockerfile = |note: &str| {
        format!(
            "FROM busybox
RUN : {note}; mkdir /d && echo same > /d/file && ln -s file /d/link
RUN cat /d/file > /copy
FROM busybox
COPY --from=0 /d /d
RUN ls /d > /list
"
        )
    };
    series.write(&[("Dockerfile", &dockerfile("one"))]);
    assert_eq!(series.ran(&[]).len(), 4);
    series.write(&[("Dockerfile", &dockerfile("two"))]);
    let first = "RUN : two; mkdir /d && echo same > /d/file && ln -s file /d/link";
    series.check(&[], &[first]);
}

#[test]
fn arguments_count_from_where_they_are_declared() {
    let series = Series::new();
    let dockerfile = "FROM busybox
RUN echo one > /one
ARG V=1
RUN echo two > /two
ARG unset
ENV E=$V
RUN echo $E > /three
";
    series.write(&[("Dockerfile", dockerfile)]);
    let later = ["RUN echo two > /two", "RUN echo $E > /three"];
    assert_eq!(series.ran(&[]).len(), 3);
    // One that is declared is in the environment of what follows, used or not.
    series.check(&["--build-arg", "V=2"], &later);
    series.check(&["--build-arg", "V=1"], &[]);
    series.check(&["--build-arg", "unset=x"], &later[1..]);
    // One that is not declared is nothing to anybody, and neither is a proxy, which steps do get.
    series.check(&["--build-arg", "other=x"], &[]);
    for name in [
        "HTTP_PROXY",
        "https_proxy",
        "NO_PROXY",
        "FTP_PROXY",
        "ALL_PROXY",
    ] {
        let proxy = format!("{name}=http://proxy.example:3128");
        series.check(&["--build-arg", &proxy], &[]);
    }
    // Unless it is declared.
    let declared = dockerfile.replace("ARG V=1", "ARG V=1\nARG HTTP_PROXY");
    series.write(&[("Dockerfile", &declared)]);
    series.ran(&["--build-arg", "HTTP_PROXY=http://one.example"]);
    let again = series.ran(&["--build-arg", "HTTP_PROXY=http://two.example"]);
    assert_eq!(again, later);
}

#[test]
fn what_makes_no_files_makes_no_difference() {
    let series = Series::new();
    let first = "# a note
FROM busybox
ENV A=b
WORKDIR /w
RUN echo x > x && \\
    echo y > y
RUN --mount=type=cache,id=one,target=/c --mount=type=secret,id=s echo z > z
LABEL version=1
CMD [\"true\"]
";
    series.write(&[("Dockerfile", first)]);
    assert_eq!(series.ran(&[]).len(), 3);
    let changes = [
        ("# a note\n", "# another note\n\n"),
        ("version=1", "version=2\nEXPOSE 80"),
        ("CMD [\"true\"]", "ENTRYPOINT [\"sh\"]\nUSER daemon"),
        ("id=one", "id=two,sharing=locked"),
    ];
    let mut text = first.to_owned();
    for (from, to) in changes {
        text = text.replace(from, to);
        series.write(&[("Dockerfile", &text)]);
        series.check(&[], &[]);
    }
    let secret = series.place.path("secret");
    for content in ["1", "2"] {
        std::fs::write(&secret, content).unwrap();
        let flag = format!("id=s,src={}", secret.display());
        series.check(&["--secret", &flag], &[]);
    }
    // A host's name is part of the key, its address is not.
    assert_eq!(series.ran(&["--add-host", "h:10.0.0.1"]).len(), 2);
    series.check(&["--add-host", "h:10.0.0.2"], &[]);
    // Variables, commands and mounts are.
    for (from, to, count) in [
        ("A=b", "A=c", 2),
        ("echo y > y", "echo Y > y", 2),
        ("target=/c", "target=/d", 1),
    ] {
        text = text.replace(from, to);
        series.write(&[("Dockerfile", &text)]);
        assert_eq!(series.ran(&[]).len(), count, "{to}");
    }
}
