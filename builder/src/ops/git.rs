//! Commits of git repositories, checked out into layers by the `git` program.
//!
//! ```text
//! $ROOT/git/NAME/   a bare repository per address, with the commits that builds asked for and no history
//! resolve           the ref's commit, asked of the remote (nothing is asked for a commit's whole name)
//! recall            the layer that an earlier build made of that commit
//! fetch             that commit into the bare repository, checked out from there
//! ```
//!
//! git runs in an environment of its own: no configuration of the user's or the machine's, no prompts, no hooks, no
//! protocols but http, https, ssh and git. What it checks out is confined before it becomes a layer.

mod checkout;
mod command;

use super::source::{Fetching, Found, key};
use crate::cache::shared::import::SharedCache;
use crate::cache::shared::source::SharedSource;
use crate::contexts::git_url::{GitTime, GitUrl, is_commit};
use crate::dockerfile::suggest::nearest;
use crate::error::StepError;
use crate::graph::GitOp;
use command::Git;
pub use command::{GitError, GitSettings};

/// What a URL's ref stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Resolved {
    /// The commit's whole name.
    pub(crate) commit: String,
    /// The ref in full, where one was found by asking.
    pub(crate) name: Option<String>,
}

/// Finds the commit that a URL means, and checks it against the one that must be found.
pub(crate) fn resolve(fetching: &Fetching<'_>, url: &GitUrl) -> Result<Resolved, StepError> {
    let resolved = match &url.reference {
        Some(reference) if is_commit(reference) => Resolved {
            commit: reference.to_ascii_lowercase(),
            name: None,
        },
        None if url.checksum.as_deref().is_some_and(is_commit) => by_checksum(url),
        _ if url.fetch_by_commit => by_checksum(url),
        reference => {
            let git = Git::new(fetching, &url.remote)?;
            let wanted = reference.as_deref().unwrap_or("HEAD");
            let patterns = [wanted.to_owned(), format!("{wanted}^{{}}")];
            let mut arguments = vec!["ls-remote", "--", &url.remote];
            arguments.extend(patterns.iter().map(String::as_str));
            let listed = git.run(&arguments)?;
            match choose(&String::from_utf8_lossy(&listed), wanted) {
                Some(resolved) => resolved,
                None => return Err(no_ref(&git, url, wanted)?.into()),
            }
        }
    };
    match &url.checksum {
        Some(checksum) if !starts_with(&resolved.commit, checksum) => Err(StepError::Checksum {
            what: url.to_string(),
            expected: checksum.clone(),
            actual: resolved.commit,
        }),
        _ => Ok(resolved),
    }
}

fn by_checksum(url: &GitUrl) -> Resolved {
    Resolved {
        commit: url
            .checksum
            .clone()
            .unwrap_or_default()
            .to_ascii_lowercase(),
        name: None,
    }
}

fn starts_with(commit: &str, checksum: &str) -> bool {
    commit.starts_with(&checksum.to_ascii_lowercase())
}

/// Which of the refs that `ls-remote` lists is meant: the full one, else a branch, else a tag; a tag's commit rather than
/// the tag itself.
fn choose(listed: &str, wanted: &str) -> Option<Resolved> {
    let find = |name: &str| {
        let mut lines = listed.lines().filter_map(|line| line.split_once('\t'));
        let commit = lines.find(|(_, found)| *found == name).map(|found| found.0);
        commit.filter(|commit| is_commit(commit))
    };
    let candidates = [
        wanted.to_owned(),
        format!("refs/heads/{wanted}"),
        format!("refs/tags/{wanted}"),
        format!("refs/{wanted}"),
    ];
    candidates.into_iter().find_map(|name| {
        let commit = find(&format!("{name}^{{}}")).or_else(|| find(&name))?;
        Some(Resolved {
            commit: commit.to_owned(),
            name: name.starts_with("refs/").then_some(name),
        })
    })
}

/// The error for a ref that is not there, with the nearest one that is.
fn no_ref(git: &Git<'_>, url: &GitUrl, wanted: &str) -> Result<GitError, StepError> {
    let listed = git.run(&[
        "ls-remote",
        "--heads",
        "--tags",
        "--refs",
        "--",
        &url.remote,
    ])?;
    let listed = String::from_utf8_lossy(&listed);
    let names = listed.lines().filter_map(|line| line.split_once('\t'));
    let short = |name: &'_ str| -> String {
        let name = name.strip_prefix("refs/heads/").unwrap_or(name);
        name.strip_prefix("refs/tags/").unwrap_or(name).to_owned()
    };
    let names: Vec<String> = names.map(|(_, name)| short(name)).collect();
    let near = nearest(&short(wanted), names.iter().map(String::as_str));
    Ok(GitError::NoRef {
        url: url.to_string(),
        reference: wanted.to_owned(),
        near: near.map(str::to_owned),
    })
}

fn result_key(op: &GitOp, resolved: &Resolved) -> [u8; 32] {
    let GitUrl {
        remote,
        subdir,
        mtime,
        ..
    } = &op.url;
    let keeps = op.keep_git_dir && subdir.is_none();
    key(&[
        "git",
        remote,
        &resolved.commit,
        subdir.as_deref().unwrap_or_default(),
        match mtime {
            GitTime::Checkout => "checkout",
            GitTime::Commit => "commit",
        },
        if op.submodules { "submodules" } else { "" },
        if keeps { "git-dir" } else { "" },
        // The kept repository has the ref in it.
        match &resolved.name {
            Some(name) if keeps => name,
            _ => "",
        },
    ])
}

/// Names what a URL means, whatever commit that is.
fn url_key(op: &GitOp) -> [u8; 32] {
    let GitUrl {
        remote,
        reference,
        subdir,
        ..
    } = &op.url;
    let parts = [reference, subdir].map(|part| part.as_deref().unwrap_or_default());
    key(&["git url", remote, parts[0], parts[1]])
}

/// What was fetched last of this URL.
pub(crate) fn last(fetching: &Fetching<'_>, op: &GitOp) -> Option<Found> {
    fetching.last(&url_key(op))
}

/// The layer that an earlier build made of this commit.
pub(crate) fn recall(
    fetching: &Fetching<'_>,
    op: &GitOp,
    resolved: &Resolved,
) -> Result<Option<Found>, StepError> {
    fetching.recall(&result_key(op, resolved))
}

/// What other machines' builds found this commit to be.
pub(crate) fn recall_shared(
    shared: &SharedCache<'_>,
    op: &GitOp,
    resolved: &Resolved,
) -> Option<SharedSource> {
    let mut found = shared.sources(&result_key(op, resolved)).into_iter();
    found.find(|found| found.validators.is_none())
}

/// What other machines are told of a commit that is here.
pub(crate) fn to_share(op: &GitOp, resolved: &Resolved, found: &Found) -> Vec<SharedSource> {
    found.shared(result_key(op, resolved), None)
}

/// Fetches a commit and makes a layer of it.
pub(crate) fn fetch(
    fetching: &Fetching<'_>,
    op: &GitOp,
    resolved: &Resolved,
) -> Result<Found, StepError> {
    let git = Git::new(fetching, &op.url.remote)?;
    // One process at a time uses an address's repository.
    let mirror = fetching
        .store
        .mirror(&checkout::mirror_name(op, resolved))?;
    if let Some(found) = recall(fetching, op, resolved)? {
        return Ok(found);
    }
    checkout::bring(fetching, &git, mirror.path(), op, resolved)?;
    let work = fetching.store.temp_dir()?;
    let tree = checkout::check_out(&git, mirror.path(), op, resolved, work.path())?;
    let time = checkout::commit_time(&git, mirror.path(), resolved)?;
    let files_time = (op.url.mtime == GitTime::Commit).then_some(time);
    let mut found = fetching.layer(|active| {
        let keep = op.keep_git_dir && op.url.subdir.is_none();
        let subdir = op.url.subdir.as_deref();
        checkout::settle(&tree, subdir, keep, files_time, active.upper())
    })?;
    found.modified = Some(time);
    found.commit = Some(resolved.commit.clone());
    fetching.remember(&[result_key(op, resolved), url_key(op)], &found)?;
    Ok(found)
}

impl From<GitError> for StepError {
    fn from(error: GitError) -> StepError {
        match error {
            GitError::Cancelled => StepError::Cancelled,
            error => StepError::Git(Box::new(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refs_in_the_order_in_which_git_takes_them() {
        let commit = |digit: char| digit.to_string().repeat(40);
        let listed = [
            ("a", "HEAD"),
            ("b", "refs/heads/v1"),
            ("c", "refs/tags/v1"),
            ("d", "refs/tags/v1^{}"),
            ("e", "refs/tags/v2"),
            ("f", "refs/tags/v2^{}"),
            ("1", "refs/heads/x/v3"),
        ];
        let listed: String = listed
            .iter()
            .map(|(digit, name)| format!("{}\t{name}\n", digit.repeat(40)))
            .collect();
        let check = |wanted: &str, expect: Option<(char, Option<&str>)>| {
            let expect = expect.map(|(digit, name)| Resolved {
                commit: commit(digit),
                name: name.map(str::to_owned),
            });
            assert_eq!(choose(&listed, wanted), expect, "{wanted}");
        };
        check("HEAD", Some(('a', None)));
        check("v1", Some(('b', Some("refs/heads/v1"))));
        check("refs/tags/v1", Some(('d', Some("refs/tags/v1"))));
        check("v2", Some(('f', Some("refs/tags/v2"))));
        check("tags/v2", Some(('f', Some("refs/tags/v2"))));
        check("v3", None);
    }
}
