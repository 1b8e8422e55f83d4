//! Lists of images in YAML, as `skopeo sync --src yaml` reads them (skopeo-sync(1)).
//!
//! ```text
//! registry.example.com:
//!   images:                { REPO: [TAG | DIGEST, …] }    an empty list is all tags
//!   images-by-tag-regex:   { REPO: EXPRESSION }
//!   images-by-semver:      { REPO: BOUNDS }               such as `>=1.2 <2`, as in `[[sync]]`
//!   credentials:           { username: …, password: … }
//!   tls-verify:            false
//!   cert-dir:              DIR                        `*.crt`, `*.cert` with `*.key`, in place of those of `certs.d`
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use regex_lite::Regex;
use registry_client::{Credential, Options};
use registry_server::sync::choose::VersionRange;
use serde::Deserialize;
use store::oci::Reference;
use store::oci::pattern::selected;

use super::images::{Part, Tags};
use crate::args::SyncArgs;
use crate::error::{CliError, Kind};

/// Longest list that is read, in bytes.
const LIST_BYTES_MAX: u64 = 1024 * 1024;

/// What a list says of one registry.
#[derive(Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
struct Registry {
    #[serde(default)]
    images: BTreeMap<String, Option<Vec<String>>>,
    #[serde(default)]
    images_by_tag_regex: BTreeMap<String, String>,
    #[serde(default)]
    images_by_semver: BTreeMap<String, String>,
    credentials: Option<Login>,
    tls_verify: Option<bool>,
    cert_dir: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Login {
    username: String,
    password: String,
}

/// Images of several registries, and how those are reached.
pub struct List {
    registries: Vec<(String, Registry)>,
    repositories: Vec<(Reference, Tags)>,
}

/// Which tags are meant, where they are not named.
#[derive(Clone)]
pub enum Like {
    Expression(Arc<Regex>),
    Versions(VersionRange),
}

impl Like {
    pub fn takes(&self, tag: &str) -> bool {
        match self {
            Like::Expression(expression) => expression.is_match(tag),
            Like::Versions(range) => range.takes(tag),
        }
    }
}

impl List {
    /// Reads a list.
    pub fn read(path: &Path) -> Result<List, CliError> {
        let unread = |error: std::io::Error| {
            let message = format!("cannot read `{}`: {error}", path.display());
            CliError::new(Kind::Input, message)
        };
        let size = std::fs::metadata(path).map_err(unread)?.len();
        if size > LIST_BYTES_MAX {
            let message = format!("it has more than {LIST_BYTES_MAX} bytes");
            return Err(unread(std::io::Error::other(message)));
        }
        let text = std::fs::read_to_string(path).map_err(unread)?;
        List::parse(&text).map_err(|reason| {
            let message = format!("`{}`: {reason}", path.display());
            CliError::new(Kind::Input, message)
        })
    }

    fn parse(text: &str) -> Result<List, String> {
        // The parser bounds depth and aliases by itself.
        let read: BTreeMap<String, Registry> =
            serde_saphyr::from_str(text).map_err(|error| error.to_string())?;
        let mut repositories = Vec::new();
        for (host, registry) in &read {
            let mut add = |name: &str, tags: Tags| -> Result<(), String> {
                let whole = format!("{host}/{name}");
                let wrong = |reason: String| format!("`{host}`: `{name}`: {reason}");
                let reference: Reference = whole
                    .parse()
                    .map_err(|error: store::oci::ReferenceError| wrong(error.reason))?;
                if reference.tag() != Some("latest") || name.contains([':', '@']) {
                    return Err(wrong("expected a repository, without a tag".to_owned()));
                }
                repositories.push((reference, tags));
                Ok(())
            };
            for (name, tags) in &registry.images {
                let tags = tags.clone().unwrap_or_default();
                let tags = match tags.is_empty() {
                    true => Tags::All,
                    false => Tags::Named(tags),
                };
                add(name, tags)?;
            }
            for (name, text) in &registry.images_by_tag_regex {
                let expression = Regex::new(text).map_err(|error| {
                    format!("`{host}`: `{name}`: `{text}` is no regular expression: {error}")
                })?;
                add(name, Tags::Like(Like::Expression(Arc::new(expression))))?;
            }
            for (name, text) in &registry.images_by_semver {
                let wrong = |error| format!("`{host}`: `{name}`: {error}");
                let range: VersionRange = text.parse().map_err(wrong)?;
                add(name, Tags::Like(Like::Versions(range)))?;
            }
        }
        Ok(List {
            registries: read.into_iter().collect(),
            repositories,
        })
    }

    /// The registries that it names.
    pub fn hosts(&self) -> Vec<String> {
        self.registries
            .iter()
            .map(|(host, _)| host.clone())
            .collect()
    }

    /// Adds its credentials and certificates, and the registries whose certificates it does not want looked at.
    pub fn add_to(&self, options: &mut Options) {
        for (host, registry) in &self.registries {
            if let Some(Login { username, password }) = &registry.credentials {
                let (username, password) = (username.clone(), password.clone());
                let credential = Credential::Basic { username, password };
                options.keychain = options.keychain.clone().with(host, credential);
            }
            if registry.tls_verify == Some(false) {
                options.insecure.push(host.clone());
            }
            if let Some(folder) = &registry.cert_dir {
                options.certs_of.insert(host.clone(), folder.clone());
            }
        }
    }

    /// Its repositories, as far as the command line wants them.
    pub fn parts(&self, args: &SyncArgs) -> Vec<Part> {
        let wanted = self.repositories.iter().filter(|(name, _)| {
            selected(
                name.repository(),
                &args.repositories,
                &args.exclude_repositories,
            )
        });
        wanted
            .map(|(name, tags)| Part::Repository {
                name: name.clone(),
                tags: tags.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manuals_example() {
        let text = r#"
registry.example.com:
    images:
        busybox: []
        redis:
            - "1.0"
            - "sha256:0000000000000000000000000000000011111111111111111111111111111111"
    images-by-tag-regex:
        nginx: ^1\.13\.[12]-alpine-perl$
    images-by-semver:
        alpine: ">= 3.12.0"
    credentials:
        username: john
        password: this is a secret
    tls-verify: true
    cert-dir: /home/user/certs
quay.io:
    tls-verify: false
    images:
        coreos/etcd:
            - latest
"#;
        let list = List::parse(text).unwrap();
        let shown: Vec<String> = list
            .repositories
            .iter()
            .map(|(name, tags)| match tags {
                Tags::All => format!("{} *", name.name()),
                Tags::Named(tags) => format!("{} {}", name.name(), tags.len()),
                Tags::Like(like) => {
                    let known = ["1.13.1-alpine-perl", "1.13.3-alpine-perl", "3.12", "3.1"];
                    let taken = known.iter().filter(|tag| like.takes(tag)).copied();
                    format!("{} {}", name.name(), taken.collect::<Vec<_>>().join(","))
                }
            })
            .collect();
        assert_eq!(
            shown,
            [
                "quay.io/coreos/etcd 1",
                "registry.example.com/busybox *",
                "registry.example.com/redis 2",
                "registry.example.com/nginx 1.13.1-alpine-perl",
                "registry.example.com/alpine 3.12",
            ]
        );
        let mut options = Options::default();
        list.add_to(&mut options);
        assert_eq!(options.insecure, ["quay.io"]);
        let folder = options.certs_of.get("registry.example.com");
        assert_eq!(
            folder.map(PathBuf::as_path),
            Some(Path::new("/home/user/certs"))
        );
    }

    #[test]
    fn mistakes() {
        let check = |text: &str, expect: &str| {
            let error = List::parse(text).err().expect("it is wrong");
            assert!(error.contains(expect), "{error}");
        };
        check("r.lan:\n  image: {}\n", "image");
        check("r.lan:\n  images:\n    'x:1': []\n", "without a tag");
        check("r.lan:\n  images:\n    X: []\n", "`r.lan`: `X`: ");
        check(
            "r.lan:\n  images-by-tag-regex:\n    x: '('\n",
            "`(` is no regular expression",
        );
        check(
            "r.lan:\n  images-by-semver:\n    x: '1.2.x'\n",
            "`1.2.x` is no bound of versions",
        );
        check("- a\n", "");
    }
}
