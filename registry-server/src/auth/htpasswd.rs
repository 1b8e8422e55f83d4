//! The users of an htpasswd file, with bcrypt or Argon2 hashes.
//!
//! Checking a password takes 100 ms by design, so a positive verdict is remembered as a keyed hash
//! for as long as the file stays what it is. Verdicts that are not remembered run a few at a time: a flood of
//! wrong passwords delays other logins, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use tokio::sync::Semaphore;

use super::password::PasswordHash;

/// Passwords that are checked at once.
const CHECKS_MAX: usize = 2;

/// Verdicts that are remembered; all are dropped beyond.
const VERDICTS_MAX: usize = 10_000;

/// Largest htpasswd file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Why an htpasswd file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HtpasswdError {
    /// It cannot be read.
    #[error("cannot read the users file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The refusal.
        source: std::io::Error,
    },
    /// It is too large.
    #[error("the users file `{}` has more than {FILE_BYTES_MAX} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
    /// A line is not `user:hash` with a bcrypt or Argon2 hash.
    #[error(
        "line {line} of the users file `{}` is not `user:hash` with a bcrypt or Argon2 hash (`longshore registry htpasswd` makes them)",
        path.display()
    )]
    Line {
        /// The file.
        path: PathBuf,
        /// Counted from 1.
        line: usize,
    },
}

/// The users of an htpasswd file, which is read again when it changes.
#[derive(Debug)]
pub struct Htpasswd {
    path: PathBuf,
    state: Mutex<State>,
    key: hmac::Key,
    checks: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    stamp: Option<Stamp>,
    users: Arc<Users>,
    verdicts: BTreeSet<Vec<u8>>,
}

/// What tells whether a file is still the same: its number, size and times. Clocks of files are too coarse to do it alone.
type Stamp = (u64, u64, i64, i64, i64, i64);

pub(crate) type Users = BTreeMap<String, PasswordHash>;

/// What became of a name and a password.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// They are right.
    Right,
    /// They are not.
    Wrong,
    /// Nobody looked: there was no leave to.
    Unchecked,
}

impl Htpasswd {
    /// Reads the file. Lines are `user:hash`; empty ones and those that start with `#` are skipped.
    pub fn open(path: &Path) -> Result<Htpasswd, HtpasswdError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .expect("the kernel gives random bytes");
        let (users, stamp) = read(path)?;
        Ok(Htpasswd {
            path: path.to_owned(),
            state: Mutex::new(State {
                stamp: Some(stamp),
                users: Arc::new(users),
                verdicts: BTreeSet::new(),
            }),
            key,
            checks: Semaphore::new(CHECKS_MAX),
        })
    }

    /// Whether this is a user's password. One that is not known to be is looked at with the leave of `may_check` only: that
    /// is what costs.
    pub(crate) async fn check(
        &self,
        user: &str,
        password: &str,
        may_check: impl FnOnce() -> bool,
    ) -> Verdict {
        self.reload().await;
        let (hash, any, verdict) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let hash = state.users.get(user).cloned();
            let text = hash.as_ref().map_or("", PasswordHash::as_str);
            let verdict = self.keyed(&[user, password, text]);
            if state.verdicts.contains(&verdict) {
                return Verdict::Right;
            }
            // An unknown user's is checked against somebody's: the time taken does not tell who exists.
            let any = state.users.values().next().cloned();
            (hash, any, verdict)
        };
        if !may_check() {
            return Verdict::Unchecked;
        }
        let known = hash.is_some();
        let Some(hash) = hash.or(any) else {
            return Verdict::Wrong;
        };
        let _permit = self.checks.acquire().await;
        let password = password.to_owned();
        let checked = tokio::task::spawn_blocking(move || hash.verify(password.as_bytes()));
        if !(checked.await.unwrap_or(false) && known) {
            return Verdict::Wrong;
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.verdicts.len() >= VERDICTS_MAX {
            state.verdicts.clear();
        }
        state.verdicts.insert(verdict);
        Verdict::Right
    }

    /// Something that changes when the user's password does, and tells nothing of it; `None` if there is no such user.
    pub(crate) async fn stamp(&self, user: &str) -> Option<String> {
        self.reload().await;
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let hash = state.users.get(user)?.as_str();
        let digest = ring::digest::digest(&ring::digest::SHA256, hash.as_bytes());
        Some(URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))
    }

    /// Names these texts, and can be reversed by nobody.
    fn keyed(&self, parts: &[&str]) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in parts {
            context.update(&(part.len() as u64).to_le_bytes());
            context.update(part.as_bytes());
        }
        context.sign().as_ref().to_vec()
    }

    /// Reads the file again if it changed; one that cannot be read leaves the users as they were.
    async fn reload(&self) {
        let path = self.path.clone();
        let known = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            state.stamp
        };
        let read = tokio::task::spawn_blocking(move || {
            let stamp = fs::metadata(&path).map(|metadata| stamp_of(&metadata));
            (stamp.ok() != known).then(|| read(&path))
        });
        match read.await {
            Ok(Some(Ok((users, stamp)))) => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.users = Arc::new(users);
                state.stamp = Some(stamp);
                state.verdicts.clear();
            }
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "the users file is not used");
            }
            Ok(None) | Err(_) => {}
        }
    }
}

fn stamp_of(metadata: &fs::Metadata) -> Stamp {
    (
        metadata.ino(),
        metadata.len(),
        metadata.mtime(),
        metadata.mtime_nsec(),
        metadata.ctime(),
        metadata.ctime_nsec(),
    )
}

fn read(path: &Path) -> Result<(Users, Stamp), HtpasswdError> {
    let failed = |source| HtpasswdError::Read {
        path: path.to_owned(),
        source,
    };
    let metadata = fs::metadata(path).map_err(failed)?;
    if metadata.len() > FILE_BYTES_MAX {
        return Err(HtpasswdError::TooLarge {
            path: path.to_owned(),
        });
    }
    let text = fs::read_to_string(path).map_err(failed)?;
    let users = parse(&text).map_err(|line| HtpasswdError::Line {
        path: path.to_owned(),
        line,
    })?;
    Ok((users, stamp_of(&metadata)))
}

/// Reads the file's text; the error is the number of a line that is none, counted from 1.
pub(crate) fn parse(text: &str) -> Result<Users, usize> {
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line
            .split_once(':')
            .filter(|(user, _)| !user.is_empty())
            .and_then(|(user, hash)| Some((user, PasswordHash::parse(hash)?)));
        let (user, hash) = entry.ok_or(index + 1)?;
        users.insert(user.to_owned(), hash);
    }
    Ok(users)
}
