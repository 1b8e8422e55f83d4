//! URLs of git repositories as contexts and `ADD` take them: `URL[#REF[:SUBDIR]]`, or the same as a query.
//!
//! ```text
//! https://host/path.git  http://…  ssh://…  git://…  user@host:path
//!   #ref:subdir
//!   ?ref=|tag=|branch=&subdir=&checksum=|commit=&keep-git-dir=&submodules=&mtime=&fetch-by-commit=
//! ```
//!
//! An http URL is a repository's only if its path ends with `.git`. Nothing here looks anywhere: text in, value out.

use std::fmt;

/// Schemes that name a repository whatever the path is.
const GIT_SCHEMES: [&str; 2] = ["git://", "ssh://"];

/// Schemes that name a repository if the path says so.
const HTTP_SCHEMES: [&str; 2] = ["https://", "http://"];

/// A repository, and what of it is meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GitUrl {
    /// The repository, without fragment and query: what git is given.
    pub remote: String,
    /// A branch, a tag, a full ref or a commit; the remote's own default where absent.
    pub reference: Option<String>,
    /// The folder that counts as the root.
    pub subdir: Option<String>,
    /// The commit that must be found: its hexadecimal name, or the beginning of one.
    pub checksum: Option<String>,
    /// Whether `.git` stays; what the Dockerfile says where absent.
    pub keep_git_dir: Option<bool>,
    /// Whether submodules are fetched too.
    pub submodules: Option<bool>,
    /// What times files get.
    pub mtime: GitTime,
    /// Whether the commit itself is asked for, rather than the ref.
    pub fetch_by_commit: bool,
}

/// What times the files of a repository get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum GitTime {
    /// That of the checkout.
    #[default]
    Checkout,
    /// That of the commit.
    Commit,
}

/// What is wrong with a repository's URL.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GitUrlError {
    /// A key of the query that means nothing.
    #[error("unexpected query key `{key}`: known are {}", QUERY_KEYS.join(", "))]
    UnknownKey {
        /// The key.
        key: String,
    },
    /// A key without a value.
    #[error("the query key `{key}` has no value")]
    NoValue {
        /// The key.
        key: String,
    },
    /// A key that stands there twice.
    #[error("the query key `{key}` has more than one value")]
    Twice {
        /// The key.
        key: String,
    },
    /// A value that is none of the possible ones.
    #[error("the query key `{key}` has the value `{value}`: expected {expected}")]
    BadValue {
        /// The key.
        key: &'static str,
        /// Its value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// Two different answers to one question.
    #[error("{what} conflicts: `{first}` and `{second}`")]
    Conflict {
        /// `ref`, `subdir` or `checksum`.
        what: &'static str,
        /// One.
        first: String,
        /// The other.
        second: String,
    },
    /// Not the name of a commit.
    #[error("invalid checksum `{checksum}`: expected the hexadecimal name of a commit")]
    BadChecksum {
        /// The text.
        checksum: String,
    },
    /// A text that git would take for an option, or that would end up in its configuration.
    #[error("`{text}` cannot be {what} of a git repository")]
    Unsafe {
        /// What it should be: `the address`, `the ref`, `the folder`.
        what: &'static str,
        /// The text.
        text: String,
    },
}

const QUERY_KEYS: [&str; 10] = [
    "ref",
    "tag",
    "branch",
    "subdir",
    "checksum",
    "commit",
    "keep-git-dir",
    "submodules",
    "mtime",
    "fetch-by-commit",
];

/// Whether a text names a git repository rather than a file.
pub fn is_git_url(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    if GIT_SCHEMES.iter().any(|scheme| lower.starts_with(scheme)) {
        return true;
    }
    if is_http_url(text) {
        let path = lower.split(['#', '?']).next().unwrap_or_default();
        return path.ends_with(".git");
    }
    is_scp_like(text)
}

/// Whether a text is an http(s) URL, of whatever.
pub fn is_http_url(text: &str) -> bool {
    let lower = text.to_ascii_lowercase();
    HTTP_SCHEMES.iter().any(|scheme| lower.starts_with(scheme))
}

/// `user@host:path`, as ssh has it; a user is needed, so that no file's name is mistaken for it.
fn is_scp_like(text: &str) -> bool {
    let Some((user, rest)) = text.split_once('@') else {
        return false;
    };
    let word = |text: &str| {
        !text.is_empty()
            && text
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
    };
    let Some((host, path)) = rest.split_once(':') else {
        return false;
    };
    word(user) && word(host) && !path.is_empty()
}

impl GitUrl {
    /// Reads a URL for which [`is_git_url`] holds.
    ///
    /// # Errors
    /// The first thing that is wrong with its query, its fragment or its checksum.
    pub fn parse(text: &str) -> Result<GitUrl, GitUrlError> {
        let (rest, fragment) = match text.split_once('#') {
            Some((rest, fragment)) => (rest, Some(fragment)),
            None => (text, None),
        };
        // A query is one where there is a scheme; in `user@host:path?x` it is part of the path.
        let (remote, query) = match rest.split_once('?') {
            Some((remote, query)) if rest.contains("://") => (remote, Some(query)),
            _ => (rest, None),
        };
        let mut url = GitUrl {
            remote: remote.to_owned(),
            ..GitUrl::default()
        };
        if let Some(fragment) = fragment {
            let (reference, subdir) = match fragment.split_once(':') {
                Some((reference, subdir)) => (reference, subdir),
                None => (fragment, ""),
            };
            let some = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            url.reference = some(reference);
            url.subdir = some(subdir);
        }
        if let Some(query) = query {
            url.read_query(query)?;
        }
        url.check()?;
        Ok(url)
    }

    fn read_query(&mut self, query: &str) -> Result<(), GitUrlError> {
        let mut seen: Vec<String> = Vec::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = match pair.split_once('=') {
                Some((key, value)) => (unescape(key), unescape(value)),
                None => (unescape(pair), String::new()),
            };
            if seen.contains(&key) {
                return Err(GitUrlError::Twice { key });
            }
            seen.push(key.clone());
            let is_flag = matches!(
                key.as_str(),
                "keep-git-dir" | "submodules" | "fetch-by-commit"
            );
            if value.is_empty() && !is_flag && QUERY_KEYS.contains(&key.as_str()) {
                return Err(GitUrlError::NoValue { key });
            }
            match key.as_str() {
                "ref" => set("ref", &mut self.reference, value)?,
                "tag" => set("ref", &mut self.reference, qualified("refs/tags/", &value))?,
                "branch" => set("ref", &mut self.reference, qualified("refs/heads/", &value))?,
                "subdir" => set("subdir", &mut self.subdir, value)?,
                "checksum" | "commit" => set("checksum", &mut self.checksum, value)?,
                "keep-git-dir" => self.keep_git_dir = Some(flag("keep-git-dir", &value)?),
                "submodules" => self.submodules = Some(flag("submodules", &value)?),
                "fetch-by-commit" => self.fetch_by_commit = flag("fetch-by-commit", &value)?,
                "mtime" => {
                    self.mtime = match value.as_str() {
                        "checkout" => GitTime::Checkout,
                        "commit" => GitTime::Commit,
                        _ => {
                            return Err(GitUrlError::BadValue {
                                key: "mtime",
                                value,
                                expected: "`checkout` or `commit`",
                            });
                        }
                    }
                }
                _ => return Err(GitUrlError::UnknownKey { key }),
            }
        }
        Ok(())
    }

    /// Refuses what git would read as something else, and what is no commit.
    fn check(&self) -> Result<(), GitUrlError> {
        let unsafe_text = |what, text: &str| GitUrlError::Unsafe {
            what,
            text: text.to_owned(),
        };
        let host = self.remote.split_once("://").map_or(&*self.remote, |r| r.1);
        let hostile = |text: &str| text.starts_with('-') || text.chars().any(char::is_control);
        if hostile(&self.remote) || hostile(host) || host.is_empty() {
            return Err(unsafe_text("the address", &self.remote));
        }
        if let Some(reference) = &self.reference
            && (hostile(reference)
                || reference.contains("..")
                || reference.contains([' ', '~', '^', ':', '?', '*', '[', '\\']))
        {
            return Err(unsafe_text("the ref", reference));
        }
        if let Some(subdir) = &self.subdir
            && (subdir.split('/').any(|name| name == "..") || subdir.chars().any(char::is_control))
        {
            return Err(unsafe_text("the folder", subdir));
        }
        if let Some(checksum) = &self.checksum {
            check_commit(checksum)?;
            if self.fetch_by_commit && !is_commit(checksum) {
                return Err(GitUrlError::BadValue {
                    key: "fetch-by-commit",
                    value: "true".to_owned(),
                    expected: "the whole name of a commit as `checksum`",
                });
            }
        } else if self.fetch_by_commit && !self.reference.as_deref().is_some_and(is_commit) {
            return Err(GitUrlError::BadValue {
                key: "fetch-by-commit",
                value: "true".to_owned(),
                expected: "the whole name of a commit as `checksum`",
            });
        }
        Ok(())
    }
}

impl fmt::Display for GitUrl {
    /// As it is shown: without a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&without_password(&self.remote))?;
        match (&self.reference, &self.subdir) {
            (None, None) => Ok(()),
            (reference, None) => write!(f, "#{}", reference.as_deref().unwrap_or_default()),
            (reference, Some(subdir)) => {
                write!(f, "#{}:{subdir}", reference.as_deref().unwrap_or_default())
            }
        }
    }
}

/// A URL whose `user:password@` says only that there is one.
pub fn without_password(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..end].rsplit_once('@') {
        Some((user, host)) if user.contains(':') => {
            format!("{scheme}://xxxxx@{host}{}", &rest[end..])
        }
        _ => url.to_owned(),
    }
}

/// Whether a text is the whole name of a commit (SHA-1 or SHA-256).
pub fn is_commit(text: &str) -> bool {
    matches!(text.len(), 40 | 64) && is_hex(text)
}

fn is_hex(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_hexdigit())
}

/// Checks the name of a commit, or the beginning of one.
pub fn check_commit(checksum: &str) -> Result<(), GitUrlError> {
    if (7..=64).contains(&checksum.len()) && is_hex(checksum) {
        return Ok(());
    }
    Err(GitUrlError::BadChecksum {
        checksum: checksum.to_owned(),
    })
}

fn set(what: &'static str, field: &mut Option<String>, value: String) -> Result<(), GitUrlError> {
    match field {
        Some(first) if *first != value => Err(GitUrlError::Conflict {
            what,
            first: first.clone(),
            second: value,
        }),
        _ => {
            *field = Some(value);
            Ok(())
        }
    }
}

fn qualified(prefix: &str, name: &str) -> String {
    match name.starts_with(prefix) {
        true => name.to_owned(),
        false => format!("{prefix}{name}"),
    }
}

fn flag(key: &'static str, value: &str) -> Result<bool, GitUrlError> {
    match value {
        "" | "1" | "true" => Ok(true),
        "0" | "false" => Ok(false),
        _ => Err(GitUrlError::BadValue {
            key,
            value: value.to_owned(),
            expected: "`true` or `false`",
        }),
    }
}

/// A key or value of a query: percent escapes, and `+` for a blank.
fn unescape(text: &str) -> String {
    percent_decoded(&text.replace('+', " "))
}

/// A text without its percent escapes; what is no escape stays.
pub(crate) fn percent_decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let escaped = bytes
            .get(at + 1..at + 3)
            .filter(|digits| bytes[at] == b'%' && digits.iter().all(u8::is_ascii_hexdigit))
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 16).ok());
        plain.push(escaped.unwrap_or(bytes[at]));
        at += if escaped.is_some() { 3 } else { 1 };
    }
    String::from_utf8_lossy(&plain).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_a_repository() {
        let check = |text: &str, expect: bool| assert_eq!(is_git_url(text), expect, "{text}");
        check("a/b.git", false);
        check("./x@y:z", false);
        check("name@domain", false);
        check("https://e.example/x.tar", false);
        check("https://e.example/x.git", true);
        check("https://e.example/x.git#v1", true);
        check("HTTP://e.example/x.git?ref=v1", true);
        check("https://e.example/x?y=z.git", false);
        check("git@e.example:x", true);
        check("ssh://git@e.example/x", true);
        check("git://e.example/x", true);
    }

    #[test]
    fn urls() {
        let check = |text: &str, expect: &str| {
            let found = match GitUrl::parse(text) {
                Err(error) => format!("error: {error}"),
                Ok(url) => {
                    let mut said = url.remote.clone();
                    for (name, value) in [
                        ("ref", &url.reference),
                        ("in", &url.subdir),
                        ("sum", &url.checksum),
                    ] {
                        if let Some(value) = value {
                            said += &format!(" {name}={value}");
                        }
                    }
                    for (name, value) in [("keep", url.keep_git_dir), ("subs", url.submodules)] {
                        if let Some(value) = value {
                            said += &format!(" {name}={value}");
                        }
                    }
                    if url.mtime == GitTime::Commit {
                        said += " commit times";
                    }
                    if url.fetch_by_commit {
                        said += " by commit";
                    }
                    said
                }
            };
            assert_eq!(found, expect, "{text}");
        };
        let base = "https://e.example/x.git";
        let with = |rest: &str| format!("{base}{rest}");
        check(base, base);
        check(&with("#v1"), &with(" ref=v1"));
        check(&with("#v1:a/b"), &with(" ref=v1 in=a/b"));
        check(&with("#:a"), &with(" in=a"));
        check(&with("#"), base);
        check("git@e.example:x?y#v1", "git@e.example:x?y ref=v1");
        check(&with("?ref=v1&subdir=a%2Fb"), &with(" ref=v1 in=a/b"));
        check(&with("?tag=v1"), &with(" ref=refs/tags/v1"));
        check(&with("?branch=refs/heads/m"), &with(" ref=refs/heads/m"));
        check(&with("?ref=v1#v1:a"), &with(" ref=v1 in=a"));
        check(
            &with("?commit=0123456&keep-git-dir"),
            &with(" sum=0123456 keep=true"),
        );
        check(
            &with("?submodules=0&mtime=commit"),
            &with(" subs=false commit times"),
        );
        let commit = "0123456789012345678901234567890123456789";
        check(
            &with(&format!("?checksum={commit}&fetch-by-commit=1")),
            &with(&format!(" sum={commit} by commit")),
        );
        check(&with("?ref=a#b"), "error: ref conflicts: `b` and `a`");
        check(
            &with("?tag=a&branch=a"),
            "error: ref conflicts: `refs/tags/a` and `refs/heads/a`",
        );
        check(
            &with("?subdir=a#:b"),
            "error: subdir conflicts: `b` and `a`",
        );
        check(
            &with("?ref=a&ref=a"),
            "error: the query key `ref` has more than one value",
        );
        check(&with("?ref"), "error: the query key `ref` has no value");
        check(
            &with("?depth=1"),
            "error: unexpected query key `depth`: known are ref, tag, branch, subdir, checksum, commit, \
             keep-git-dir, submodules, mtime, fetch-by-commit",
        );
        check(
            &with("?mtime=now"),
            "error: the query key `mtime` has the value `now`: expected `checkout` or `commit`",
        );
        check(
            &with("?checksum=zz"),
            "error: invalid checksum `zz`: expected the hexadecimal name of a commit",
        );
        check(
            &with("?fetch-by-commit=1&ref=main"),
            "error: the query key `fetch-by-commit` has the value `true`: expected the whole name of a commit as `checksum`",
        );
        check(
            &with("#-x"),
            "error: `-x` cannot be the ref of a git repository",
        );
        check(
            &with("#a b"),
            "error: `a b` cannot be the ref of a git repository",
        );
        check(
            &with("#m:../../e"),
            "error: `../../e` cannot be the folder of a git repository",
        );
        check(
            "ssh://-oProxyCommand=x/y",
            "error: `ssh://-oProxyCommand=x/y` cannot be the address of a git repository",
        );
    }

    #[test]
    fn passwords_are_not_shown() {
        let check = |url: &str, expect: &str| assert_eq!(without_password(url), expect);
        check("https://u:p@h/x.git", "https://xxxxx@h/x.git");
        check("ssh://git@h/x", "ssh://git@h/x");
        check("https://h/x@y:z", "https://h/x@y:z");
        check("git@h:x", "git@h:x");
    }
}
