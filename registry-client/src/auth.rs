//! Who the user is, registry by registry, and which tokens were given for it.
//!
//! | file | part |
//! |---|---|
//! | this | [`Credential`], and the [`Keychain`] that finds one |
//! | [`docker_config`] | docker's `config.json` and containers' `auth.json`, read and written |
//! | [`helper`] | the `docker-credential-*` programs |
//! | [`bearer`] | `WWW-Authenticate` and the token protocol, pure |
//! | [`session`] | one registry's challenge and tokens, kept between requests |

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

pub(crate) mod bearer;
pub mod docker_config;
pub(crate) mod helper;
pub(crate) mod session;

pub use docker_config::{DockerConfig, HUB_KEY};

/// What proves who the user is. Its `Debug` shows no secret.
#[derive(Clone, PartialEq, Eq)]
pub enum Credential {
    /// User and password (or personal access token).
    Basic {
        /// The user.
        username: String,
        /// The password.
        password: String,
    },
    /// A refresh token, given by the token server at an earlier login.
    IdentityToken {
        /// Who logged in, where that is known.
        username: Option<String>,
        /// The token.
        token: String,
    },
    /// A bearer token that is sent as it stands.
    RegistryToken(String),
}

impl Credential {
    /// The user, where that is known.
    pub fn username(&self) -> Option<&str> {
        match self {
            Credential::Basic { username, .. } => Some(username),
            Credential::IdentityToken { username, .. } => username.as_deref(),
            Credential::RegistryToken(_) => None,
        }
    }
}

impl fmt::Debug for Credential {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Credential::Basic { username, .. } => f
                .debug_struct("Basic")
                .field("username", username)
                .finish_non_exhaustive(),
            Credential::IdentityToken { username, .. } => f
                .debug_struct("IdentityToken")
                .field("username", username)
                .finish_non_exhaustive(),
            Credential::RegistryToken(_) => f.write_str("RegistryToken(…)"),
        }
    }
}

/// Why a credential could not be read or written.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A credential file cannot be read or written.
    #[error("cannot {action} the credentials in `{}`: {source}", .path.display())]
    File {
        /// `read` or `write`.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// A credential file is not of docker's form.
    #[error("`{}` is not a credential file: {reason}", .path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// What is wrong; never a secret.
        reason: String,
    },
    /// A credential helper failed.
    #[error("credential helper `{program}` failed to {action}: {reason}")]
    Helper {
        /// The program.
        program: String,
        /// `get`, `store` or `erase`.
        action: &'static str,
        /// Its own words, or the system's.
        reason: String,
    },
}

/// Finds the credential for a repository. Cheap to clone; files are read at each look-up, so that a login in another
/// process counts at once.
#[derive(Clone, Debug, Default)]
pub struct Keychain {
    given: Arc<BTreeMap<String, Credential>>,
    files: Arc<[PathBuf]>,
    lasting: Option<Lasting>,
}

/// Where the identity token goes that a token server gives for a password.
pub(crate) type Lasting = Arc<OnceLock<Credential>>;

impl Keychain {
    /// Knows nobody.
    pub fn anonymous() -> Keychain {
        Keychain::default()
    }

    /// Reads these files, the first that has an entry deciding. Files that do not exist are passed over.
    pub fn files(paths: impl IntoIterator<Item = PathBuf>) -> Keychain {
        Keychain {
            files: paths.into_iter().collect(),
            ..Keychain::default()
        }
    }

    /// The same, with a credential for `key` (`host[:port][/repository-prefix]`) that goes before all files.
    pub fn with(self, key: &str, credential: Credential) -> Keychain {
        let mut given = BTreeMap::clone(&self.given);
        given.insert(normal_key(key), credential);
        Keychain {
            given: Arc::new(given),
            ..self
        }
    }

    /// The same, where a token server that is given a password is asked for what may be kept instead of it.
    pub(crate) fn asking_for(self, lasting: Lasting) -> Keychain {
        Keychain {
            lasting: Some(lasting),
            ..self
        }
    }

    pub(crate) fn lasting(&self) -> Option<&Lasting> {
        self.lasting.as_ref()
    }

    /// The credential for a repository of a registry: an entry for the longest prefix of `registry/repository` wins.
    /// Blocks: it reads files and may run a credential helper.
    pub fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        for key in keys(registry, repository) {
            if let Some(credential) = self.given.get(&key) {
                return Ok(Some(credential.clone()));
            }
        }
        for path in self.files.iter() {
            if let Some(credential) = DockerConfig::read(path)?.lookup(registry, repository)? {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }
}

/// The keys under which a repository's credential may be kept, most specific first.
pub(crate) fn keys(registry: &str, repository: &str) -> Vec<String> {
    let mut key = match repository {
        "" => normal_key(registry),
        repository => format!("{}/{repository}", normal_key(registry)),
    };
    let mut keys = Vec::new();
    loop {
        keys.push(key.clone());
        match key.rfind('/') {
            Some(slash) => key.truncate(slash),
            None => return keys,
        }
    }
}

/// Brings the ways in which tools write a registry to one form: no scheme, no `/v1/` or `/v2/`, Hub as `docker.io`.
pub(crate) fn normal_key(key: &str) -> String {
    let bare = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key)
        .trim_end_matches('/');
    let bare = bare
        .strip_suffix("/v1")
        .or_else(|| bare.strip_suffix("/v2"))
        .unwrap_or(bare);
    let (host, path) = match bare.split_once('/') {
        Some((host, path)) => (host, Some(path)),
        None => (bare, None),
    };
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" => store::oci::reference::DOCKER_HUB,
        host => host,
    };
    match path {
        Some(path) => format!("{host}/{path}"),
        None => host.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(username: &str) -> Credential {
        Credential::Basic {
            username: username.to_owned(),
            password: "hunter2".to_owned(),
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        for credential in [
            basic("me"),
            Credential::IdentityToken {
                username: None,
                token: "hunter2".to_owned(),
            },
            Credential::RegistryToken("hunter2".to_owned()),
        ] {
            let shown = format!("{:?}", Keychain::anonymous().with("r", credential));
            assert!(!shown.contains("hunter2"), "{shown}");
        }
    }

    #[test]
    fn the_longest_prefix_wins() {
        let keychain = Keychain::anonymous()
            .with("r.example:5000", basic("host"))
            .with("r.example:5000/team", basic("team"))
            .with("https://index.docker.io/v1/", basic("hub"));
        let check = |registry: &str, repository: &str, expect: Option<&str>| {
            let found = keychain.lookup(registry, repository).unwrap();
            assert_eq!(found, expect.map(basic), "{registry}/{repository}");
        };
        check("r.example:5000", "team/app", Some("team"));
        check("r.example:5000", "team", Some("team"));
        check("r.example:5000", "teams/app", Some("host"));
        check("r.example:5000", "", Some("host"));
        check("r.example", "team/app", None);
        check("docker.io", "library/alpine", Some("hub"));
    }
}
