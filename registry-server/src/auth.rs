//! Who may: anonymous, or the users of an htpasswd file with bcrypt hashes.
//!
//! Checking a password takes bcrypt about 100 ms by design, so a positive verdict is remembered as a keyed hash
//! for as long as the file stays what it is. Verdicts that are not remembered run a few at a time: a flood of
//! wrong passwords delays other logins, and nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use base64::Engine;
use http::header::{self, HeaderMap, HeaderValue};
use ring::hmac;
use tokio::sync::Semaphore;

use crate::error::{ApiError, ErrorCode};

/// Passwords that are checked at once.
const CHECKS_MAX: usize = 2;

/// Verdicts that are remembered; all are dropped beyond.
const VERDICTS_MAX: usize = 10_000;

/// Largest htpasswd file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// What an unknown user's password is checked against, so that the time taken does not tell who exists.
const NOBODY: &str = "$2b$10$N9qo8uLOickgx2ZMRZoMyeIjZAgcfl7p92ldGxad68LJZdL17lhWy";

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
    /// A line is not `user:hash` with a bcrypt hash.
    #[error(
        "line {line} of the users file `{}` is not `user:hash` with a bcrypt hash (`htpasswd -B` makes them)",
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
    modified: Option<SystemTime>,
    users: Arc<BTreeMap<String, String>>,
    verdicts: BTreeSet<Vec<u8>>,
}

impl Htpasswd {
    /// Reads the file. Lines are `user:hash`; empty ones and those that start with `#` are skipped.
    pub fn open(path: &Path) -> Result<Htpasswd, HtpasswdError> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &ring::rand::SystemRandom::new())
            .expect("the kernel gives random bytes");
        let (users, modified) = read(path)?;
        Ok(Htpasswd {
            path: path.to_owned(),
            state: Mutex::new(State {
                modified,
                users: Arc::new(users),
                verdicts: BTreeSet::new(),
            }),
            key,
            checks: Semaphore::new(CHECKS_MAX),
        })
    }

    /// Lets a request with the right `Authorization: Basic` pass; challenges any other.
    pub async fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let (user, password) = headers
            .get(header::AUTHORIZATION)
            .and_then(basic)
            .ok_or_else(challenge)?;
        self.reload().await;
        let (hash, verdict) = {
            let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
            let hash = state.users.get(&user).cloned();
            let verdict = self.verdict(&user, &password, hash.as_deref().unwrap_or_default());
            if state.verdicts.contains(&verdict) {
                return Ok(());
            }
            (hash, verdict)
        };
        let _permit = self.checks.acquire().await;
        let known = hash.is_some();
        let hash = hash.unwrap_or_else(|| NOBODY.to_owned());
        let right = tokio::task::spawn_blocking(move || {
            bcrypt::verify(password.as_bytes(), &hash).unwrap_or(false)
        })
        .await
        .unwrap_or(false);
        if !(right && known) {
            return Err(challenge());
        }
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.verdicts.len() >= VERDICTS_MAX {
            state.verdicts.clear();
        }
        state.verdicts.insert(verdict);
        Ok(())
    }

    /// Names the user, the password and the hash it was checked against, and can be reversed by nobody.
    fn verdict(&self, user: &str, password: &str, hash: &str) -> Vec<u8> {
        let mut context = hmac::Context::with_key(&self.key);
        for part in [user, password, hash] {
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
            state.modified
        };
        let read = tokio::task::spawn_blocking(move || {
            let modified = fs::metadata(&path).and_then(|metadata| metadata.modified());
            (modified.ok() != known).then(|| read(&path))
        });
        match read.await {
            Ok(Some(Ok((users, modified)))) => {
                let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.users = Arc::new(users);
                state.modified = modified;
                state.verdicts.clear();
            }
            Ok(Some(Err(error))) => {
                tracing::warn!(%error, "the users file is not used");
            }
            Ok(None) | Err(_) => {}
        }
    }
}

fn challenge() -> ApiError {
    ApiError::new(ErrorCode::Unauthorized).header(
        header::WWW_AUTHENTICATE,
        HeaderValue::from_static("Basic realm=\"longshore registry\", charset=\"UTF-8\""),
    )
}

fn basic(value: &HeaderValue) -> Option<(String, String)> {
    let (scheme, token) = value.to_str().ok()?.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(token.trim())
        .ok()?;
    let (user, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some((user.to_owned(), password.to_owned()))
}

type Users = BTreeMap<String, String>;

fn read(path: &Path) -> Result<(Users, Option<SystemTime>), HtpasswdError> {
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
    let mut users = BTreeMap::new();
    for (index, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let entry = line
            .split_once(':')
            .filter(|(user, hash)| !user.is_empty() && is_bcrypt(hash));
        let Some((user, hash)) = entry else {
            return Err(HtpasswdError::Line {
                path: path.to_owned(),
                line: index + 1,
            });
        };
        users.insert(user.to_owned(), hash.to_owned());
    }
    Ok((users, metadata.modified().ok()))
}

fn is_bcrypt(hash: &str) -> bool {
    hash.len() == 60
        && ["$2a$", "$2b$", "$2x$", "$2y$"]
            .iter()
            .any(|version| hash.starts_with(version))
}
