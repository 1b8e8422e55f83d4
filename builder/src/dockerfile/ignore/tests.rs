//! Pattern by pattern, and whole files on a whole tree.

use super::*;

#[test]
fn go_match_table() {
    let check = |pattern: &str, name: &str, expect: bool| {
        assert_eq!(
            go_match(pattern, name.as_bytes()),
            Ok(expect),
            "{pattern} on {name}"
        );
    };
    check("abc", "abc", true);
    check("abc", "abd", false);
    check("*", "abc", true);
    check("*c", "abc", true);
    check("a*", "a", true);
    check("a*", "ab/c", false);
    check("a*/b", "abc/b", true);
    check("a*/b", "a/c/b", false);
    check("a*b*c*d*e*/f", "axbxcxdxe/f", true);
    check("a*b*c*d*e*/f", "axbxcxdxexxx/f", true);
    check("a*b*c*d*e*/f", "axbxcxdxe/xxx/f", false);
    check("a*b?c*x", "abxbbxdbxebxczzx", true);
    check("a*b?c*x", "abxbbxdbxebxczzy", false);
    check("ab[c]", "abc", true);
    check("ab[b-d]", "abc", true);
    check("ab[e-g]", "abc", false);
    check("ab[^c]", "abc", false);
    check("ab[^e-g]", "abc", true);
    check("a\\*b", "a*b", true);
    check("a\\*b", "ab", false);
    check("a?b", "a☺b", true);
    check("a[^a]b", "a☺b", true);
    check("a???b", "a☺b", false);
    check("[a-ζ]*", "α", true);
    check("*[a-ζ]", "A", false);
    check("a?b", "a/b", false);
    check("a*b", "a/b", false);
    check("[\\]a]", "]", true);
    check("[\\-]", "-", true);
    check("[x\\-]", "x", true);
    check("[\\-x]", "a", false);
    check("*x", "xxx", true);
    check("", "", true);
    check("", "a", false);
    check("*", ".hidden", true);
    check("**", "a/b", false);
    check("arr[[]0].txt", "arr[0].txt", true);
}

#[test]
fn go_match_refuses() {
    for pattern in [
        "[]a]", "[-]", "[x-]", "[-x]", "[", "[^", "[^bc", "a[", "[a-b-c]", "a\\", "x[a",
    ] {
        assert!(go_match(pattern, b"zzz").is_err(), "{pattern}");
    }
}

#[test]
fn bytes_that_are_not_text() {
    assert_eq!(go_match("a?b", b"a\xffb"), Ok(true));
    assert_eq!(go_match("a??b", b"a\xe2\x98b"), Ok(true));
    assert_eq!(go_match("*b", b"a\xffb"), Ok(true));
}

#[test]
fn reads_files() {
    let text = "\u{feff}# comment\n  # not one\n\n /a/b/ \n! ./keep \r\nx/../y\n!\n/\n";
    assert_eq!(
        read_patterns(text),
        ["# not one", "a/b", "!keep", "y", "!", "/"]
    );
}

/// Patterns separated by blanks.
fn ignored(patterns: &str, path: &str) -> bool {
    let patterns: Vec<&str> = patterns.split(' ').collect();
    IgnoreMatcher::new(&patterns)
        .unwrap()
        .matches(path.as_bytes())
}

#[test]
fn ignore_table() {
    let check = |patterns: &str, path: &str, expect: bool| {
        assert_eq!(ignored(patterns, path), expect, "{patterns} on {path}");
    };
    check("**", "file", true);
    check("**", "dir/file", true);
    check("**/", "file", true);
    check("**/**", "dir/file", true);
    check("dir/**", "dir/file", true);
    check("dir/**", "dir", false);
    check("dir/**", "dir/dir2/file", true);
    check("**/dir", "dir", true);
    check("**/dir", "a/b/dir/file", true);
    check("**/dir2/*", "dir/dir2/file", true);
    check("**/dir2/*", "dir/dir2/dir2/file", true);
    check("**/dir2/**", "dir/dir2/dir2/file", true);
    check("**file", "file", true);
    check("**file", "dir/file", true);
    check("**/file", "dir/file", true);
    check("**/file", "dirfile", false);
    check("**file", "dirfile", true);
    check("**/file*", "dir/file.txt", true);
    check("**/file*txt", "dir/dir/file.txt", true);
    check("**/file*.txt", "dir/dir/file.txt", true);
    check("**/file*.txt*", "dir/dir/file.txt", true);
    check("**/**/*.txt", "dir/dir/file.txt", true);
    check("**/**/*.txt2", "dir/dir/file.txt", false);
    check("**/*.txt", "file.txt", true);
    check("a**/*.txt", "a/file.txt", true);
    check("a**/*.txt", "a/dir/dir/file.txt", true);
    check("a/*.txt", "a/dir/file.txt", false);
    check("a/*.txt", "a/file.txt", true);
    check("a[b-d]e", "ae", false);
    check("a[b-d]e", "ace", true);
    check("a[^b-d]e", "aze", true);
    check(".*", ".foo", true);
    check(".*", "foo", false);
    check("abc.def", "abcdef", false);
    check("abc.def", "abcZdef", false);
    check("a\\*b", "a*b", true);
    check("foo", "foo/bar/x", true);
    check("foo/", "foo/bar", true);
    check("foo/*", "foo", false);
    check("foo/*", "foo/bar/x", true);
    check("*", "foo/bar", true);
    check("* !foo", "foo", false);
    check("* !foo", "foo/bar", false);
    check("* !foo", "bar", true);
    check("* !foo foo/x", "foo/x", true);
    check("* !foo foo/x", "foo/y", false);
    check("dir !dir/keep", "dir/keep", false);
    check("dir !dir/keep", "dir/other", true);
    check("!dir/keep dir", "dir/keep", true);
    check("**/x !**/y/x", "a/x", true);
    check("**/x !**/y/x", "a/y/x", false);
    check("docs !docs/*.md docs/a.md", "docs/a.md", true);
    check("docs !docs/*.md docs/a.md", "docs/b.md", false);
    check("!a", "a", false);
    check("(x)+", "(x)+", true);
    check("\\!x", "!x", true);
}

#[test]
fn refuses_bad_patterns() {
    for pattern in ["!", "[", "a[", "a\\", "![z"] {
        let error = IgnoreMatcher::new(&[pattern]).unwrap_err();
        assert_eq!(error.pattern, pattern);
    }
    assert!(IgnoreMatcher::new(&["", "  "]).unwrap().is_empty());
}

#[test]
fn skips_directories_only_when_nothing_below_can_return() {
    let check = |patterns: &str, directory: &str, expect: bool| {
        let patterns: Vec<&str> = patterns.split(' ').collect();
        let matcher = IgnoreMatcher::new(&patterns).unwrap();
        assert_eq!(
            matcher.can_skip_dir(directory.as_bytes()),
            expect,
            "{patterns:?} on {directory}"
        );
    };
    check("node_modules", "node_modules", true);
    check("node_modules", "src", false);
    check("* !src", "target", true);
    check("* !src", "src", false);
    check("* !src/main.rs", "src", false);
    check("* !src/main.rs", "srcs", true);
    check("* !src/*/x", "src/a", false);
    check("* !src/*/x", "src/a/b", true);
    check("* !**/keep", "any/where", false);
    check("!a/keep a", "a", true);
}

#[test]
fn takes_no_exponential_time() {
    let pattern = "**/a*".repeat(60);
    let path = "a/".repeat(400);
    assert!(!ignored(&format!("{pattern}z"), &path));
}

#[test]
fn cleans() {
    for (path, expect) in [
        ("", "."),
        ("a//b/./c/", "a/b/c"),
        ("../a", "../a"),
        ("/../a", "/a"),
        ("a/../..", ".."),
        ("/", "/"),
    ] {
        assert_eq!(clean(path), expect);
    }
}

/// Whole ignore files on a whole tree, with what `docker build` sends of it: `-` and what is left out, or `+` and all that
/// is not. Four are BuildKit's answers, where the older builder stops before an exception with a wildcard. In one both
/// forget that the last line which matches counts: a directory that is excluded twice comes back by an exception in
/// between.
#[test]
fn ignore_files() {
    check("", "-");
    check("# only a comment\n", "-");
    check("\u{feff}a.txt\n", "- a.txt");
    check("*.md", "- README-secret.md, README.md, b.md");
    check(
        "*.txt\r\n*.md\r\n",
        "- README-secret.md, README.md, a.txt, b.md, br[ack].txt, with space.txt, ä.txt",
    );
    check("**/*.md", "- README-secret.md, README.md, b.md, docs/a.md");
    check("/a.txt", "- a.txt");
    check("./a.txt", "- a.txt");
    check("a.txt/", "- a.txt");
    check("  a.txt  ", "- a.txt");
    check("dir", "- dir/file, dir/keep/file, dir/keep/more");
    check("dir/", "- dir/file, dir/keep/file, dir/keep/more");
    check("dir/*", "- dir/file, dir/keep/file, dir/keep/more");
    check("dir/**", "- dir/file, dir/keep/file, dir/keep/more");
    check("**/dir", "- dir/file, dir/keep/file, dir/keep/more");
    check("dir/keep", "- dir/keep/file, dir/keep/more");
    check("*/keep", "- dir/keep/file, dir/keep/more");
    check(
        "*/*",
        "+ .env, README-secret.md, README.md, a.txt, b.md, back\\slash, br[ack].txt, with space.txt, ä.txt",
    );
    check(
        "*/*/*",
        "- dir/keep/file, dir/keep/more, docs/img/a.png, docs/img/b.PNG, node_modules/p/index.js, pkg/node_modules/q/index.js, src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs",
    );
    check("**/file", "- dir/file, dir/keep/file, dir2/file");
    check("**file", "- dir/file, dir/keep/file, dir2/file");
    check("**/keep/**", "- dir/keep/file, dir/keep/more");
    check("*", "+");
    check("**", "+");
    check(".", "-");
    check("./", "-");
    check("..", "-");
    check("/", "-");
    check("*\n!a.txt", "+ a.txt");
    check("*\n!dir", "+ dir/file, dir/keep/file, dir/keep/more");
    check("*\n!dir/keep", "+ dir/keep/file, dir/keep/more");
    check("*\n!dir/file\n", "+ dir/file");
    check(
        "*\n!src/lib",
        "+ src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs",
    );
    check("dir\n!dir/keep", "- dir/file");
    check("dir\n!dir/keep/file", "- dir/file, dir/keep/more");
    check("dir\n!dir/keep\ndir/keep/more", "- dir/file, dir/keep/more");
    check(
        "!a.txt\n*.txt",
        "- a.txt, br[ack].txt, with space.txt, ä.txt",
    );
    check(
        "*.md\n!README*.md\nREADME-secret.md",
        "- README-secret.md, b.md",
    );
    check("*.md\nREADME-secret.md\n!README*.md", "- b.md");
    check(
        "**/node_modules",
        "- node_modules/p/index.js, pkg/node_modules/q/index.js",
    );
    check("node_modules", "- node_modules/p/index.js");
    check(".*", "- .env, .git/config");
    check(".git", "- .git/config");
    check(".env*\n!.env", "-");
    check("docs/img/*.png", "- docs/img/a.png");
    check(
        "docs/img/*.[pP][nN][gG]",
        "- docs/img/a.png, docs/img/b.PNG",
    );
    check("docs/??g/a.png", "- docs/img/a.png");
    check("docs/[a-h]*", "- docs/a.md");
    check("docs/[^i]*", "- docs/a.md");
    check("with space.txt", "- with space.txt");
    check("br\\[ack\\].txt", "- br[ack].txt");
    check("br*", "- br[ack].txt");
    check("ä.txt", "- ä.txt");
    check("?.txt", "- a.txt, ä.txt");
    check("back\\\\slash", "- back\\slash");
    check("src/**/x.rs", "- src/lib/deep/x.rs");
    check(
        "src/**/*.rs\n!src/main.rs",
        "- src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs",
    );
    check("src/lib/../main.rs", "- src/main.rs");
    check("src//lib/./deep", "- src/lib/deep/x.rs");
    check(
        "**/deep/../*.rs",
        "- src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs, src/main.rs",
    );
    check(
        "! a.txt\n*.txt",
        "- a.txt, br[ack].txt, with space.txt, ä.txt",
    );
    check(
        "*\n!*.txt\n!docs/a.md\ndocs",
        "+ a.txt, br[ack].txt, with space.txt, ä.txt",
    );
    check("#a.txt", "-");
    check(" #a.txt", "-");
    check("a.txt\n#!a.txt", "- a.txt");
    check("*.TXT", "-");
    check(
        "dir*",
        "- dir/file, dir/keep/file, dir/keep/more, dir2/file",
    );
    check("dir?", "- dir2/file");
    check("d*r", "- dir/file, dir/keep/file, dir/keep/more");
    check("**/*", "+");
    check(
        "*\n!**/*.rs",
        "+ src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs, src/main.rs",
    );
    check("*\n!**/keep", "+ dir/keep/file, dir/keep/more");
    check(
        "src\n!src/*.rs",
        "- src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs",
    );
    check(
        "src\n!**/main.rs",
        "- src/lib/deep/x.rs, src/lib/test.rs, src/lib/util.rs",
    );
    check("*.png", "-");
    check("/docs/*.md", "- docs/a.md");
    check("//docs", "- docs/a.md, docs/img/a.png, docs/img/b.PNG");
    check("!docs\n*/a.md", "- docs/a.md");
    check("*\n!*/\n", "-");
    check("*\n!*/file", "+ dir/file, dir2/file");
}

const TREE: [&str; 23] = [
    ".env",
    ".git/config",
    "README-secret.md",
    "README.md",
    "a.txt",
    "b.md",
    "back\\slash",
    "br[ack].txt",
    "dir/file",
    "dir/keep/file",
    "dir/keep/more",
    "dir2/file",
    "docs/a.md",
    "docs/img/a.png",
    "docs/img/b.PNG",
    "node_modules/p/index.js",
    "pkg/node_modules/q/index.js",
    "src/lib/deep/x.rs",
    "src/lib/test.rs",
    "src/lib/util.rs",
    "src/main.rs",
    "with space.txt",
    "ä.txt",
];

#[track_caller]
fn check(text: &str, expect: &str) {
    let matcher = IgnoreMatcher::new(&read_patterns(text)).unwrap();
    let is_ignored = |path: &&str| matcher.matches(path.as_bytes());
    let (ignored, kept): (Vec<_>, Vec<_>) = TREE.into_iter().partition(is_ignored);
    let names = |names: &str| -> Vec<String> {
        let names = names.split(", ").filter(|name| !name.is_empty());
        names.map(str::to_owned).collect()
    };
    match expect.split_at(1) {
        ("-", rest) => assert_eq!(ignored, names(rest.trim_start()), "{text:?} leaves out"),
        (_, rest) => assert_eq!(kept, names(rest.trim_start()), "{text:?} keeps"),
    }
    // A walk that skips what may be skipped comes to the same.
    for path in kept {
        for (end, _) in path.match_indices('/') {
            assert!(
                !matcher.can_skip_dir(&path.as_bytes()[..end]),
                "{text:?}: {path}"
            );
        }
    }
}

#[test]
fn ignore_files_that_are_refused() {
    for text in ["!", "! ", "a.txt\n![a", "[", "\\", "br[[]ack[]].txt"] {
        assert!(
            IgnoreMatcher::new(&read_patterns(text)).is_err(),
            "{text:?}"
        );
    }
}
