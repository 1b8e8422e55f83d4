//! `COPY` and `ADD` in whole builds: what makes a step run again, and what `--link` makes of its layer.

use std::fs;
use std::path::Path;

use builder::request::Output;

use crate::build::Bench;

/// The DiffIDs of the image that a bench builds, oldest first, and what ran.
fn layers(bench: &Bench) -> (Vec<String>, Vec<String>) {
    let (id, ran) = bench.build();
    let image = bench.store.images().resolve("test").unwrap().unwrap();
    assert_eq!(image.id.to_string(), id);
    let config = bench.store.images().config(&image.id).unwrap();
    let diff_ids = config.rootfs.diff_ids.iter().map(ToString::to_string);
    (diff_ids.collect(), ran)
}

/// The root file system that a bench builds, in a folder.
fn root(bench: &Bench) -> tempfile::TempDir {
    let out = tempfile::tempdir().unwrap();
    let mut request = bench.request();
    request.outputs = vec![Output::Local {
        dest: out.path().join("root"),
    }];
    bench.try_build(&request).0.unwrap();
    out
}

fn read(out: &tempfile::TempDir, path: &str) -> String {
    fs::read_to_string(out.path().join("root").join(path)).unwrap()
}

const LINKED: &str = "\
FROM scratch AS base
COPY base /
FROM base
WORKDIR /w
COPY --link --chown=3:4 app /srv/app/
";

#[test]
fn a_linked_layer_is_the_same_on_any_base() {
    let bench = Bench::new(LINKED, &[("base/etc/x", "1"), ("app/run", "app")]);
    let (first, ran) = layers(&bench);
    assert_eq!(ran.len(), 3, "{ran:?}");
    assert_eq!(first.len(), 3);
    // Another base: what is linked upon it does not run again, and its layer is the same.
    bench.write("base/etc/x", "2");
    let (second, ran) = layers(&bench);
    assert_eq!(ran, ["[base 1/1] COPY base /", "[stage-1 1/2] WORKDIR /w"]);
    assert_ne!(first[0], second[0]);
    assert_eq!(first[2], second[2]);
    let out = root(&bench);
    assert_eq!(read(&out, "etc/x") + &read(&out, "srv/app/run"), "2app");
    // On nothing at all, too.
    bench.write(
        "Dockerfile",
        "FROM scratch\nCOPY --link --chown=3:4 app /srv/app/\n",
    );
    assert_eq!(layers(&bench), (vec![first[2].clone()], Vec::new()));
}

#[test]
fn a_linked_copy_replaces_links_and_resets_directories() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    let bench = Bench::new(
        "FROM scratch AS base\nCOPY base /\nFROM base\nCOPY --link f /to/f\nCOPY --link f /etc/f\nCOPY --link f /dir\n",
        &[
            ("base/real/x", "x"),
            ("base/etc/x", "x"),
            ("base/dir/x", "x"),
            ("f", "f"),
        ],
    );
    let base = bench.context.path().join("base");
    symlink("real", base.join("to")).unwrap();
    fs::set_permissions(base.join("etc"), fs::Permissions::from_mode(0o700)).unwrap();
    let out = root(&bench);
    let at = |path: &str| out.path().join("root").join(path);
    assert!(at("to").symlink_metadata().unwrap().is_dir());
    assert!(!at("real/f").exists());
    assert_eq!(at("etc").metadata().unwrap().mode() & 0o7777, 0o755);
    assert_eq!(
        read(&out, "etc/x") + &read(&out, "etc/f") + &read(&out, "dir"),
        "xff"
    );
}

#[test]
fn the_same_linked_layer_may_lie_twice_in_a_stack() {
    let bench = Bench::new(
        "FROM scratch AS one\nCOPY --link a /f\nCOPY --link b /f\nCOPY --link a /f\nCOPY --link c /c\n\
         FROM one\nCOPY --from=one /f /g\nCOPY a /f\nCOPY b /f\nCOPY a /f\n",
        &[("a", "A"), ("b", "B"), ("c", "C")],
    );
    let (diff_ids, ran) = layers(&bench);
    assert_eq!(diff_ids.len(), 8);
    assert_eq!(diff_ids[0], diff_ids[2]);
    assert_eq!(ran.len(), 7, "{ran:?}");
    let out = root(&bench);
    assert_eq!(read(&out, "f") + &read(&out, "g") + &read(&out, "c"), "AAC");
}

/// Whether the last step runs again after a file was written.
#[track_caller]
fn check(copy: &str, path: &str, runs: bool) {
    let files = [
        ("src/a.rs", "a"),
        ("src/a.txt", "t"),
        ("src/deep/b.rs", "b"),
        ("src/deep/b.txt", "t"),
        ("other/c.rs", "c"),
    ];
    let bench = Bench::new(&format!("FROM scratch\n{copy}\n"), &files);
    bench.build();
    bench.write(path, "changed");
    assert_eq!(!bench.build().1.is_empty(), runs, "{copy} after {path}");
}

#[test]
fn only_what_is_selected_counts() {
    check("COPY --exclude=**/*.txt src /d", "src/deep/b.txt", false);
    check("COPY --exclude=**/*.txt src /d", "src/new.txt", false);
    check("COPY --exclude=**/*.txt src /d", "src/deep/b.rs", true);
    check("COPY --exclude=**/*.txt src /d", "src/new.rs", true);
    check("COPY --parents **/*.rs /d", "src/a.txt", false);
    check("COPY --parents **/*.rs /d", "other/c.rs", true);
    check("COPY --parents src/./deep /d", "src/a.rs", false);
    check("COPY --parents src/./deep /d", "src/deep/b.rs", true);
    check("COPY --link src/*.txt /d/", "src/a.rs", false);
    check("COPY --link src/*.txt /d/", "src/a.txt", true);
}

#[test]
fn parents_are_part_of_what_is_selected() {
    use std::os::unix::fs::PermissionsExt;
    let bench = Bench::new(
        "FROM scratch\nCOPY --parents src/deep/f /d\n",
        &[("src/deep/f", "f")],
    );
    let (_, ran) = bench.build();
    assert_eq!(ran.len(), 1);
    let src = bench.context.path().join("src");
    fs::set_permissions(&src, fs::Permissions::from_mode(0o711)).unwrap();
    assert_eq!(bench.build().1.len(), 1);
    // The same files elsewhere are something else.
    fs::rename(&src, bench.context.path().join("srv")).unwrap();
    bench.write("Dockerfile", "FROM scratch\nCOPY --parents srv/deep/f /d\n");
    assert_eq!(bench.build().1.len(), 1);
}

#[test]
fn the_instruction_counts() {
    let bench = Bench::new("FROM scratch\n", &[("f", "f")]);
    let mut last = String::new();
    for copy in [
        "COPY f /f",
        "COPY --chmod=600 f /f",
        "COPY --chmod=u=rw f /f",
        "COPY --chown=1 f /f",
        "COPY f <<EOF /d/\none\nEOF",
        "COPY f <<EOF /d/\ntwo\nEOF",
        "COPY f <<EOT /d/\ntwo\nEOT",
        "COPY --chmod=a+x f <<EOT /d/\ntwo\nEOT",
    ] {
        bench.write("Dockerfile", &format!("FROM scratch\n{copy}\n"));
        let (id, ran) = bench.build();
        assert_eq!(ran.len(), 1, "{copy}");
        assert_ne!(id, last, "{copy}");
        assert_eq!(bench.build(), (id.clone(), Vec::new()), "{copy}");
        last = id;
    }
}

#[test]
fn triggers_bring_their_here_documents() {
    let bench = Bench::new(
        "FROM scratch AS base\nONBUILD ARG WHO=you\nONBUILD COPY <<EOF /hello\nhello $WHO\nEOF\nFROM base\n",
        &[],
    );
    let out = root(&bench);
    assert_eq!(read(&out, "hello"), "hello you\n");
    assert!(Path::new(&out.path().join("root/hello")).is_file());
}
