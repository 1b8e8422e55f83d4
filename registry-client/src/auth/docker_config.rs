//! Docker's `config.json`, and containers' `auth.json` which has the same form: read, and rewritten with every field
//! that is not longshore's kept.
//!
//! ```text
//! { "auths": { KEY: { "auth": base64(user:password) | "username", "password" | "identitytoken" | "registrytoken" } },
//!   "credHelpers": { KEY: NAME }, "credsStore": NAME, … }
//! ```
//!
//! `KEY` is a host, a host with a repository prefix (containers), or a URL (docker). A helper answers before the file.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};
use store::oci::reference::DOCKER_HUB;

use super::{Credential, CredentialError, helper, keys, normal_key};

/// The key under which every tool keeps Docker Hub's credential.
pub const HUB_KEY: &str = "https://index.docker.io/v1/";

/// Largest credential file that is read, in bytes.
const FILE_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// A credential file, parsed.
#[derive(Clone)]
pub struct DockerConfig {
    path: PathBuf,
    document: Map<String, Value>,
}

impl std::fmt::Debug for DockerConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DockerConfig")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl DockerConfig {
    /// Reads a file; one that does not exist or is empty has no entries.
    pub fn read(path: &Path) -> Result<DockerConfig, CredentialError> {
        let failed = |source| CredentialError::File {
            action: "read",
            path: path.to_owned(),
            source,
        };
        let text = match fs::metadata(path) {
            Ok(metadata) if metadata.len() > FILE_BYTES_MAX => {
                return Err(failed(io::Error::from(io::ErrorKind::FileTooLarge)));
            }
            Ok(_) => fs::read(path).map_err(failed)?,
            // `NotADirectory`: `~/.docker` itself is a file.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::NotADirectory
                ) =>
            {
                Vec::new()
            }
            Err(error) => return Err(failed(error)),
        };
        Self::parse(path, &text)
    }

    /// Parses a file's text; `path` is what errors name and where [`DockerConfig::write`] writes.
    pub fn parse(path: &Path, text: &[u8]) -> Result<DockerConfig, CredentialError> {
        let document = if text.trim_ascii().is_empty() {
            Map::new()
        } else {
            // Not serde's own message: it may quote the file.
            serde_json::from_slice(text).map_err(|error| CredentialError::Malformed {
                path: path.to_owned(),
                reason: format!(
                    "it is not a JSON object (line {}, column {})",
                    error.line(),
                    error.column()
                ),
            })?
        };
        Ok(DockerConfig {
            path: path.to_owned(),
            document,
        })
    }

    /// The credential for a repository: the helper or entry of the longest prefix of `registry/repository`. Blocks: it
    /// may run a helper.
    pub fn lookup(
        &self,
        registry: &str,
        repository: &str,
    ) -> Result<Option<Credential>, CredentialError> {
        let keys = keys(registry, repository);
        for key in &keys {
            if let Some(name) = self.helper_for(key)
                && let Some(credential) = helper::load(name, &helper_key(key))?
            {
                return Ok(Some(credential));
            }
        }
        let auths = self.section("auths");
        for key in &keys {
            // An exact key goes before other ways to write it.
            let exact = auths.and_then(|auths| auths.get_key_value(key));
            let alike = || {
                let mut entries = auths.into_iter().flatten();
                entries.find(|(other, _)| normal_key(other) == *key)
            };
            if let Some((name, entry)) = exact.or_else(alike)
                && let Some(credential) = self.entry(name, entry)?
            {
                return Ok(Some(credential));
            }
        }
        Ok(None)
    }

    /// Keeps a credential for `registry` (a host, or a host and repository prefix): with the helper that the file names
    /// for it, else in the file. Blocks. Call [`DockerConfig::write`] afterwards.
    pub fn store(
        &mut self,
        registry: &str,
        credential: &Credential,
    ) -> Result<(), CredentialError> {
        let key = normal_key(registry);
        let entry = match self.helper_for(&key) {
            // Docker lists what its helper keeps by empty entries.
            Some(name) => {
                helper::store(name, &helper_key(&key), credential)?;
                Map::new()
            }
            None => file_entry(credential),
        };
        self.remove_entries(&key);
        let auths = self
            .document
            .entry("auths")
            .or_insert_with(|| Value::Object(Map::new()));
        let Value::Object(auths) = auths else {
            return Err(CredentialError::Malformed {
                path: self.path.clone(),
                reason: "`auths` is not an object".to_owned(),
            });
        };
        auths.insert(helper_key(&key), Value::Object(entry));
        Ok(())
    }

    /// Forgets the credential for `registry`, in the file and with its helper; answers whether the file had one. Blocks.
    /// Call [`DockerConfig::write`] afterwards.
    pub fn erase(&mut self, registry: &str) -> Result<bool, CredentialError> {
        let key = normal_key(registry);
        let mut found = false;
        if let Some(name) = self.helper_for(&key) {
            found = helper::load(name, &helper_key(&key))?.is_some();
            helper::erase(name, &helper_key(&key))?;
        }
        Ok(self.remove_entries(&key) || found)
    }

    /// Writes the file, readable by its owner only, in one step; missing directories are made.
    pub fn write(&self) -> Result<(), CredentialError> {
        self.write_file().map_err(|source| CredentialError::File {
            action: "write",
            path: self.path.clone(),
            source,
        })
    }

    fn write_file(&self) -> io::Result<()> {
        // A symlink stays one: what it points at is replaced.
        let path = match fs::canonicalize(&self.path) {
            Ok(path) => path,
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.path.clone(),
            Err(error) => return Err(error),
        };
        let directory = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        fs::create_dir_all(directory)?;
        let mut text = serde_json::to_vec_pretty(&self.document)?;
        text.push(b'\n');
        let aside = directory.join(format!(".longshore-auth.{}", std::process::id()));
        let written = (|| {
            let _ = fs::remove_file(&aside);
            let mut file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .open(&aside)?;
            file.write_all(&text)?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        })();
        if written.is_err() {
            let _ = fs::remove_file(&aside);
        }
        written
    }

    fn section(&self, name: &str) -> Option<&Map<String, Value>> {
        self.document.get(name).and_then(Value::as_object)
    }

    fn helper_for(&self, key: &str) -> Option<&str> {
        let own = self.section("credHelpers").and_then(|helpers| {
            let mut helpers = helpers.iter();
            helpers.find(|(other, _)| normal_key(other) == *key)
        });
        // The general helper is asked for hosts only, as docker does.
        let general = || {
            self.document
                .get("credsStore")
                .filter(|_| !key.contains('/'))
        };
        own.map(|(_, name)| name)
            .or_else(general)
            .and_then(Value::as_str)
            .filter(|name| !name.is_empty())
    }

    fn entry(&self, key: &str, entry: &Value) -> Result<Option<Credential>, CredentialError> {
        let text = |name: &str| {
            let value = entry.get(name).and_then(Value::as_str);
            value.filter(|value| !value.is_empty())
        };
        if let Some(token) = text("registrytoken") {
            return Ok(Some(Credential::RegistryToken(token.to_owned())));
        }
        if let Some(token) = text("identitytoken") {
            // Docker keeps the user with an empty password beside it.
            let beside = text("auth").and_then(decode);
            let beside = beside.as_ref().and_then(Credential::username);
            let username = text("username").or(beside.filter(|name| !name.is_empty()));
            return Ok(Some(Credential::IdentityToken {
                username: username.map(str::to_owned),
                token: token.to_owned(),
            }));
        }
        if let Some(auth) = text("auth") {
            let pair = decode(auth).ok_or_else(|| CredentialError::Malformed {
                path: self.path.clone(),
                reason: format!("`auth` of `{key}` is not base64 of user:password"),
            })?;
            return Ok(Some(pair));
        }
        let pair = text("username").zip(text("password"));
        Ok(pair.map(|(username, password)| Credential::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }))
    }

    fn remove_entries(&mut self, key: &str) -> bool {
        let Some(Value::Object(auths)) = self.document.get_mut("auths") else {
            return false;
        };
        let before = auths.len();
        auths.retain(|other, _| normal_key(other) != *key);
        auths.len() != before
    }
}

/// How a key is written to files and helpers.
fn helper_key(key: &str) -> String {
    match key {
        DOCKER_HUB => HUB_KEY.to_owned(),
        key => key.to_owned(),
    }
}

fn file_entry(credential: &Credential) -> Map<String, Value> {
    let pair = |username: &str, password: &str| STANDARD.encode(format!("{username}:{password}"));
    let fields = match credential {
        Credential::Basic { username, password } => vec![("auth", pair(username, password))],
        Credential::IdentityToken { username, token } => {
            let auth = username
                .as_ref()
                .map(|username| ("auth", pair(username, "")));
            let token = ("identitytoken", token.clone());
            auth.into_iter().chain([token]).collect()
        }
        Credential::RegistryToken(token) => vec![("registrytoken", token.clone())],
    };
    let fields = fields.into_iter();
    fields
        .map(|(name, value)| (name.to_owned(), Value::String(value)))
        .collect()
}

fn decode(auth: &str) -> Option<Credential> {
    let bytes = STANDARD.decode(auth.trim()).ok()?;
    let pair = String::from_utf8(bytes).ok()?;
    let (username, password) = pair.split_once(':')?;
    Some(Credential::Basic {
        username: username.to_owned(),
        // Old docker versions padded with NUL.
        password: password.trim_end_matches('\0').to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn basic(username: &str, password: &str) -> Credential {
        Credential::Basic {
            username: username.to_owned(),
            password: password.to_owned(),
        }
    }

    fn identity(username: Option<&str>, token: &str) -> Credential {
        Credential::IdentityToken {
            username: username.map(str::to_owned),
            token: token.to_owned(),
        }
    }

    fn parse(text: &str) -> DockerConfig {
        DockerConfig::parse(Path::new("config.json"), text.as_bytes()).unwrap()
    }

    #[test]
    fn entries() {
        let config = parse(
            r#"{"auths":{
                "https://index.docker.io/v1/":{"auth":"aHViOnB3"},
                "r.example":{"username":"u","password":"p:q"},
                "r.example/team":{"auth":"dGVhbTpwdw=="},
                "https://old.example/v2/":{"identitytoken":"idt","auth":"eDp5"},
                "bare.example":{"identitytoken":"idt","auth":"Og=="},
                "raw.example":{"registrytoken":"rt"},
                "empty.example":{},
                "nul.example":{"auth":"dTpwAAA="}
            }}"#,
        );
        let check = |registry: &str, repository: &str, expect: Option<Credential>| {
            let found = config.lookup(registry, repository).unwrap();
            assert!(found == expect, "{registry}/{repository}: {found:?}");
        };
        check("docker.io", "library/x", Some(basic("hub", "pw")));
        check("r.example", "x", Some(basic("u", "p:q")));
        check("r.example", "team/x", Some(basic("team", "pw")));
        check("old.example", "x", Some(identity(Some("x"), "idt")));
        check("bare.example", "x", Some(identity(None, "idt")));
        check(
            "raw.example",
            "x",
            Some(Credential::RegistryToken("rt".into())),
        );
        check("empty.example", "x", None);
        check("nul.example", "x", Some(basic("u", "p")));
        check("r.example:5000", "x", None);
    }

    #[test]
    fn broken_files_are_errors_without_secrets() {
        let check = |text: &str, expect: &str| {
            let config = DockerConfig::parse(Path::new("f"), text.as_bytes());
            let error = config
                .and_then(|config| config.lookup("r", "x"))
                .unwrap_err();
            assert_eq!(error.to_string(), expect);
        };
        check(
            "[\"hunter2\"]",
            "`f` is not a credential file: it is not a JSON object (line 1, column 0)",
        );
        check(
            r#"{"auths":{"r":{"auth":"hunter2"}}}"#,
            "`f` is not a credential file: `auth` of `r` is not base64 of user:password",
        );
        check(
            r#"{"credsStore":"../../bin/sh"}"#,
            "credential helper `docker-credential-../../bin/sh` failed to get: `../../bin/sh` is no helper's name",
        );
    }

    #[test]
    fn stores_and_erases() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("new/config.json");
        let mut config = DockerConfig::read(&path).unwrap();
        config.store("docker.io", &basic("me", "pw")).unwrap();
        config
            .store("r.example:5000", &basic("you", "w:p"))
            .unwrap();
        let kept = [identity(Some("me"), "idt"), identity(None, "idt")];
        config.store("named.example", &kept[0]).unwrap();
        config.store("bare.example", &kept[1]).unwrap();
        config.write().unwrap();
        assert_eq!(
            fs::metadata(&path).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert!(fs::read_to_string(&path).unwrap().contains(HUB_KEY));

        let mut config = DockerConfig::read(&path).unwrap();
        assert!(config.lookup("docker.io", "a/b").unwrap() == Some(basic("me", "pw")));
        assert!(config.lookup("r.example:5000", "x").unwrap() == Some(basic("you", "w:p")));
        for (registry, kept) in ["named.example", "bare.example"].into_iter().zip(kept) {
            assert!(config.lookup(registry, "x").unwrap() == Some(kept));
        }
        assert!(config.erase("index.docker.io").unwrap());
        assert!(!config.erase("docker.io").unwrap());
        config.write().unwrap();
        let config = DockerConfig::read(&path).unwrap();
        assert!(config.lookup("docker.io", "a/b").unwrap().is_none());
        assert!(config.lookup("r.example:5000", "x").unwrap().is_some());
    }

    #[test]
    fn foreign_fields_and_symlinks_stay() {
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().join("real.json");
        let link = directory.path().join("config.json");
        fs::write(&real, r#"{"zeta":1,"auths":{"https://r.example/v2/":{"auth":"eDp5"},"b":{}},"HttpHeaders":{"A":"b"}}"#).unwrap();
        std::os::unix::fs::symlink("real.json", &link).unwrap();
        let mut config = DockerConfig::read(&link).unwrap();
        config.store("r.example", &basic("u", "p")).unwrap();
        config.write().unwrap();
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let written: Value = serde_json::from_slice(&fs::read(&real).unwrap()).unwrap();
        let expect = serde_json::json!({"zeta":1,"auths":{"b":{},"r.example":{"auth":"dTpw"}},"HttpHeaders":{"A":"b"}});
        assert_eq!(written, expect);
    }

    #[test]
    fn mutations_do_no_harm() {
        let seed = r#"{"auths":{"https://index.docker.io/v1/":{"auth":"aHViOnB3"},"r/t":{"username":"u","password":"p"}},"credHelpers":{}}"#;
        let mut mutations = crate::mutate::Mutations::new(0x5eed_0003);
        for _ in 0..20_000 {
            let text = mutations.of(seed);
            if let Ok(config) = DockerConfig::parse(Path::new("f"), text.as_bytes()) {
                // Damage may not make it run a program either: it has no helper's name in it.
                let _ = config.lookup("docker.io", "r/t");
                let _ = config.lookup("r", "t");
            }
        }
    }
}
