//! `--exclude`, `--parents`, symbolic `--chmod`, here-documents, and what is said about a path that is missing.

use super::*;

const PROJECT: &str = "README.md=r
app.py=a
app.txt=t
src/ 700
src/lib.rs=l
src/lib.txt=n
src/deep/ 711
src/deep/keep.txt=k
src/deep/x.rs=x 755
src/link->deep
empty/
data|fifo";

fn project(ops: &'static str) -> Case {
    Case {
        context: PROJECT,
        ops,
        ..Case::default()
    }
}

#[track_caller]
fn on_project(ops: &'static str, expect: &Expect) {
    check(&project(ops), expect);
}

#[test]
fn exclude_is_relative_to_each_directory_that_is_copied() {
    on_project(
        "COPY --exclude=*.txt --exclude=deep/*.txt src /d",
        &expect![[r#"
            d/ 755 0:0 @1003
            d/deep/ 711 0:0 @1006
            d/deep/x.rs 755 0:0 @1008 "x"
            d/lib.rs 644 0:0 @1004 "l"
            d/link 0:0 @1009 -> deep
        "#]],
    );
    on_project(
        "COPY --exclude=deep src /d/",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/lib.rs 644 0:0 @1004 "l"
        d/lib.txt 644 0:0 @1005 "n"
        d/link 0:0 @1009 -> deep
    "#]],
    );
    on_project(
        "COPY --exclude=src/deep src /d/",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/deep/ 711 0:0 @1006
        d/deep/keep.txt 644 0:0 @1007 "k"
        d/deep/x.rs 755 0:0 @1008 "x"
        d/lib.rs 644 0:0 @1004 "l"
        d/lib.txt 644 0:0 @1005 "n"
        d/link 0:0 @1009 -> deep
    "#]],
    );
    on_project(
        "COPY --exclude=**/*.txt --exclude=data . /d",
        &expect![[r#"
            d/ 755 0:0 @1000
            d/README.md 644 0:0 @1000 "r"
            d/app.py 644 0:0 @1001 "a"
            d/empty/ 755 0:0 @1010
            d/src/ 700 0:0 @1003
            d/src/deep/ 711 0:0 @1006
            d/src/deep/x.rs 755 0:0 @1008 "x"
            d/src/lib.rs 644 0:0 @1004 "l"
            d/src/link 0:0 @1009 -> deep
        "#]],
    );
    // A file that is named or matched has its own name.
    on_project(
        "COPY --exclude=*.txt app* README.md /d/",
        &expect![[r#"
        d/ 755 0:0 @1001
        d/README.md 644 0:0 @1000 "r"
        d/app.py 644 0:0 @1001 "a"
    "#]],
    );
    on_project("COPY --exclude=app.py app.py /d/", &expect![[""]]);
}

#[test]
fn exclude_knows_exceptions_and_may_leave_nothing() {
    on_project(
        "COPY --exclude=* --exclude=!deep/keep.txt src /d",
        &expect![[r#"
            d/ 755 0:0 @1003
            d/deep/ 711 0:0 @1006
            d/deep/keep.txt 644 0:0 @1007 "k"
        "#]],
    );
    on_project(
        "COPY --exclude=** src /d",
        &expect![[r#"
        d/ 755 0:0 @1003
    "#]],
    );
    on_project(
        "COPY --exclude=** src/deep app.py /d/",
        &expect![[r#"
        d/ 755 0:0 @1006
    "#]],
    );
    check(
        &Case {
            other: PROJECT,
            ..project("COPY --from --exclude=deep --exclude=*.txt src /d")
        },
        &expect![[r#"
            d/ 755 0:0 @1003
            d/lib.rs 644 0:0 @1004 "l"
            d/link 0:0 @1009 -> deep
        "#]],
    );
    on_project(
        "ADD --exclude=deep --exclude=lib.* src /d",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/link 0:0 @1009 -> deep
    "#]],
    );
}

#[test]
fn exclude_comes_on_top_of_dockerignore() {
    check(
        &Case {
            ignore: &["**/*.rs", "!src/lib.rs"],
            ..project("COPY --exclude=*.txt src /d")
        },
        &expect![[r#"
            d/ 755 0:0 @1003
            d/deep/ 711 0:0 @1006
            d/deep/keep.txt 644 0:0 @1007 "k"
            d/lib.rs 644 0:0 @1004 "l"
            d/link 0:0 @1009 -> deep
        "#]],
    );
}

#[test]
fn parents_keep_the_path() {
    on_project(
        "COPY --parents src/deep/keep.txt /d",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/src/ 700 0:0 @1003
        d/src/deep/ 711 0:0 @1006
        d/src/deep/keep.txt 644 0:0 @1007 "k"
    "#]],
    );
    on_project(
        "COPY --parents ./src/deep/ ./app.py /d/",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/app.py 644 0:0 @1001 "a"
        d/src/ 700 0:0 @1003
        d/src/deep/ 711 0:0 @1006
        d/src/deep/keep.txt 644 0:0 @1007 "k"
        d/src/deep/x.rs 755 0:0 @1008 "x"
    "#]],
    );
    on_project(
        "COPY --parents src/deep/. /",
        &expect![[r#"
        src/ 700 0:0 @1003
        src/deep/ 711 0:0 @1006
        src/deep/keep.txt 644 0:0 @1007 "k"
        src/deep/x.rs 755 0:0 @1008 "x"
    "#]],
    );
    // Nothing above `/./`; the first one counts.
    on_project(
        "COPY --parents src/./deep/x.rs /d",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/deep/ 711 0:0 @1006
        d/deep/x.rs 755 0:0 @1008 "x"
    "#]],
    );
    on_project(
        "COPY --parents ./src/./deep/./x.rs /d",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/deep/ 711 0:0 @1006
        d/deep/x.rs 755 0:0 @1008 "x"
    "#]],
    );
    on_project(
        "COPY --parents src/./ /d",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/deep/ 711 0:0 @1006
        d/deep/keep.txt 644 0:0 @1007 "k"
        d/deep/x.rs 755 0:0 @1008 "x"
        d/lib.rs 644 0:0 @1004 "l"
        d/lib.txt 644 0:0 @1005 "n"
        d/link 0:0 @1009 -> deep
    "#]],
    );
    on_project(
        "COPY --parents src/link/./x.rs /d",
        &expect![[r#"
        d/ 755 0:0 @1006
        d/x.rs 755 0:0 @1008 "x"
    "#]],
    );
}

#[test]
fn parents_with_wildcards() {
    on_project(
        "COPY --parents **/*.txt /d",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/app.txt 644 0:0 @1002 "t"
        d/src/ 700 0:0 @1003
        d/src/deep/ 711 0:0 @1006
        d/src/deep/keep.txt 644 0:0 @1007 "k"
        d/src/lib.txt 644 0:0 @1005 "n"
    "#]],
    );
    on_project(
        "COPY --parents */*.txt /d",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/src/ 700 0:0 @1003
        d/src/lib.txt 644 0:0 @1005 "n"
    "#]],
    );
    on_project(
        "COPY --parents s*/d* /d",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/src/ 700 0:0 @1003
        d/src/deep/ 711 0:0 @1006
        d/src/deep/keep.txt 644 0:0 @1007 "k"
        d/src/deep/x.rs 755 0:0 @1008 "x"
    "#]],
    );
    on_project(
        "COPY --parents s*/./**/*.rs /d",
        &expect![[r#"
        d/ 755 0:0 @1003
        d/deep/ 711 0:0 @1006
        d/deep/x.rs 755 0:0 @1008 "x"
        d/lib.rs 644 0:0 @1004 "l"
    "#]],
    );
    // No match leaves a directory.
    on_project(
        "COPY --parents *.none /d",
        &expect![[r#"
        d/ 755 0:0 @1000
    "#]],
    );
    on_project(
        "COPY --parents --exclude=**/deep src/**/*.txt /d",
        &expect![[r#"
            d/ 755 0:0 @1000
            d/src/ 700 0:0 @1003
            d/src/lib.txt 644 0:0 @1005 "n"
        "#]],
    );
}

#[test]
fn parents_take_the_sources_metadata() {
    check(
        &Case {
            base: Some("d/ 750 3:4\nd/src/ 700 5:6\nd/src/old=o"),
            ..project("COPY --parents src/lib.rs /d")
        },
        &expect![[r#"
            d/ 750 3:4 @1000
            d/src/ 700 0:0 @1001
            d/src/lib.rs 644 0:0 @1004 "l"
        "#]],
    );
    on_project(
        "COPY --parents --chown=7:8 --chmod=750 src/lib.rs /d",
        &expect![[r#"
            d/ 750 7:8 @1000
            d/src/ 750 7:8 @1003
            d/src/lib.rs 750 7:8 @1004 "l"
        "#]],
    );
    check(
        &Case {
            other: "a/ 711 5:6\na/b/ 700 7:8\na/b/f=F 600 1:2",
            ..project("COPY --from --parents a/b/f /")
        },
        &expect![[r#"
            a/ 711 5:6 @1000
            a/b/ 700 7:8 @1001
            a/b/f 600 1:2 @1002 "F"
        "#]],
    );
}

#[test]
fn parents_miss_what_is_not_there() {
    on_project(
        "COPY --parents src/lib.rsx /d",
        &expect![[r#"
        error: `/src/lib.rsx`: not found, did you mean `/src/lib.rs`?
    "#]],
    );
    on_project(
        "COPY --parents src/./lib.rsx /d",
        &expect![[r#"
        error: `/src/lib.rsx`: not found, did you mean `/src/lib.rs`?
    "#]],
    );
    on_project(
        "COPY --parents sr/./lib.rs /d",
        &expect![[r#"
        error: `/sr`: not found, did you mean `/src`?
    "#]],
    );
    on_project(
        "COPY --parents app.py/./lib.rs /d",
        &expect![[r#"
        error: `/app.py`: not a directory, so it cannot be what `--parents` keeps the paths below
    "#]],
    );
    on_project(
        "COPY --parents src/link/x.rs /d",
        &expect![[r#"
        error: `/src/link/x.rs`: `--parents` does not follow the symbolic link `/src/link`
    "#]],
    );
    // The link itself is something.
    on_project(
        "COPY --parents src/link /d",
        &expect![[r#"
        d/ 755 0:0 @1000
        d/src/ 700 0:0 @1003
        d/src/link 0:0 @1009 -> deep
    "#]],
    );
    on_project(
        "COPY --parents a[ /d",
        &expect![[r#"
        error: invalid pattern `a[`: `[` is not closed by `]`
    "#]],
    );
    check(
        &Case {
            ignore: &["src/deep"],
            ..project("COPY --parents src/deep/x.rs /d")
        },
        &expect![[r#"
            error: `/src/deep/x.rs`: not found: it exists, but `src/deep` in `.dockerignore` excludes it
        "#]],
    );
}

#[test]
fn modes_in_words() {
    on_project(
        "COPY --chmod=u=rwX,go=rX src /n/d",
        &expect![[r#"
        n/ 755 0:0 @1003
        n/d/ 755 0:0 @1003
        n/d/deep/ 755 0:0 @1006
        n/d/deep/keep.txt 644 0:0 @1007 "k"
        n/d/deep/x.rs 755 0:0 @1008 "x"
        n/d/lib.rs 644 0:0 @1004 "l"
        n/d/lib.txt 644 0:0 @1005 "n"
        n/d/link 0:0 @1009 -> deep
    "#]],
    );
    on_project(
        "COPY --chmod=go-rwx,u+s app.py /n/",
        &expect![[r#"
        n/ 4700 0:0 @1001
        n/app.py 4600 0:0 @1001 "a"
    "#]],
    );
    on_project(
        "COPY --chmod=+t,a-x src/deep /d",
        &expect![[r#"
        d/ 1644 0:0 @1006
        d/keep.txt 1644 0:0 @1007 "k"
        d/x.rs 1644 0:0 @1008 "x"
    "#]],
    );
}

#[test]
fn here_documents_are_files() {
    on_project(
        "COPY <<EOF=text /d/",
        &expect![[r#"
        d/ 755 0:0 @0
        d/EOF 644 0:0 @0 "text"
    "#]],
    );
    on_project(
        "COPY <<EOF=text /etc/name",
        &expect![[r#"
        etc/ 755 0:0 @0
        etc/name 644 0:0 @0 "text"
    "#]],
    );
    on_project(
        "COPY <<EOF= /empty",
        &expect![[r#"
        empty 644 0:0 @0 ""
    "#]],
    );
    on_project(
        "COPY --chown=3:4 --chmod=o+w <<one=1 app.py <<two=2 /n/d/",
        &expect![[r#"
            n/ 757 3:4 @1001
            n/d/ 757 3:4 @1001
            n/d/app.py 646 3:4 @1001 "a"
            n/d/one 646 3:4 @0 "1"
            n/d/two 646 3:4 @0 "2"
        "#]],
    );
    check(
        &Case {
            base: Some("old=o 600 9:9\ndir/\nto->dir/new"),
            ..project("COPY <<EOF=text /old\nCOPY <<EOF=text /dir\nCOPY <<EOF=link /to")
        },
        &expect![[r#"
            dir/ 755 0:0 @1001
            dir/EOF 644 0:0 @0 "text"
            dir/new 644 0:0 @0 "link"
            old 644 0:0 @0 "text"
        "#]],
    );
    // The last one stays, and none is an archive.
    on_project(
        "ADD <<a=1 <<b=2 /same",
        &expect![[r#"
        same 644 0:0 @0 "2"
    "#]],
    );
    on_project(
        "COPY <<.wh.x=1 /",
        &expect![[r#"
        error: `/.wh.x`: names that begin with `.wh.` mark removals in image layers and cannot be copied
    "#]],
    );
}

#[test]
fn a_missing_path_gets_a_hint() {
    on_project(
        "COPY ap.py /",
        &expect![[r#"
        error: `/ap.py`: not found, did you mean `/app.py`?
    "#]],
    );
    on_project(
        "COPY src/deep/none /",
        &expect![[r#"
        error: `/src/deep/none`: not found: `/src/deep` has `keep.txt`, `x.rs`
    "#]],
    );
    // It is elsewhere.
    on_project(
        "COPY keep.txt /",
        &expect![[r#"
        error: `/keep.txt`: not found, did you mean `/src/deep/keep.txt`?
    "#]],
    );
    on_project(
        "COPY empty/lib.rs /",
        &expect![[r#"
        error: `/empty/lib.rs`: not found, did you mean `/src/lib.rs`?
    "#]],
    );
    on_project(
        "COPY unrelated /",
        &expect![[r#"
        error: `/unrelated`: not found: `/` has `README.md`, `app.py`, `app.txt`, `data`, `empty` and 1 more
    "#]],
    );
    on_project(
        "COPY empty/x /",
        &expect![[r#"
        error: `/empty/x`: not found: `/empty` is empty
    "#]],
    );
    on_project(
        "COPY sirc/lib.rs /",
        &expect![[r#"
        error: `/sirc/lib.rs`: not found, did you mean `/src`?
    "#]],
    );
    check(
        &Case {
            ignore: &["*", "!src", "src/*.txt"],
            ..project("COPY src/lib.txt /")
        },
        &expect![[r#"
            error: `/src/lib.txt`: not found: it exists, but `src/*.txt` in `.dockerignore` excludes it
        "#]],
    );
    check(
        &Case {
            ignore: &["*", "!src"],
            ..project("COPY missing /")
        },
        &expect![[r#"
            error: `/missing`: not found: `/` has `src`
        "#]],
    );
}
