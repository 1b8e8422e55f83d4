//! Where files come from: the main context and the named ones, of every kind.
//!
//! | file | part |
//! |---|---|
//! | this | what a named context can be, and how its name is looked up |
//! | [`main_context`] | the main one: a folder, standard input, a URL, a repository |
//! | [`dockerfile`] | which file the Dockerfile is, and the ignore file that goes with it |
//! | `epoch` | `SOURCE_DATE_EPOCH`, which may be the time of a source |
//! | [`git_url`] | URLs of git repositories, with their `#ref:subdir` and query |
//!
//! A folder is read in place. An image, a repository or a URL is a source of the build graph like any other, fetched
//! when something reads it; what nothing reads is never looked at, so it cannot fail.

pub mod dockerfile;
pub(crate) mod epoch;
pub mod git_url;
pub mod main_context;

use std::collections::BTreeMap;
use std::path::PathBuf;

use store::content::archive::LayoutSelector;
use store::layer::{LayerId, TreeDigest};
use store::oci::{DigestError, Platform, Reference, ReferenceError};

use git_url::{GitUrl, GitUrlError};

/// What a name given with `--build-context` stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamedContext {
    /// A local folder, read in place.
    Folder {
        /// The folder.
        path: PathBuf,
        /// Patterns of its own `.dockerignore`, in order.
        ignore: Vec<String>,
    },
    /// An image of a registry or of the store: `docker-image://NAME`.
    Image(Reference),
    /// No files: `docker-image://scratch`.
    Scratch,
    /// An image of an OCI layout: `oci-layout://PATH[:TAG|@DIGEST]`.
    Layout(LayoutImage),
    /// A git repository.
    Git(GitUrl),
    /// A file behind an http(s) URL.
    Http(String),
    /// A stage of the same Dockerfile: `target:NAME`.
    Stage(String),
}

/// An image in an OCI layout on this disk.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct LayoutImage {
    /// The layout's folder.
    pub path: PathBuf,
    /// Which of its images; by its tag `latest`, or as the only one, where absent.
    pub selector: Option<LayoutSelector>,
}

/// Why the value of `--build-context` cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NamedContextError {
    /// The URL of a repository is wrong.
    #[error("invalid git URL `{url}`")]
    Git {
        /// As it is shown.
        url: String,
        /// What is wrong.
        source: GitUrlError,
    },
    /// The name of an image is wrong.
    #[error(transparent)]
    Image(#[from] ReferenceError),
    /// A digest is wrong.
    #[error(transparent)]
    Digest(#[from] DigestError),
    /// There is nothing behind the scheme.
    #[error("`{value}` names nothing: expected {expected}")]
    Empty {
        /// The value.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// A scheme that means nothing here.
    #[error(
        "unknown kind of build context `{scheme}://`: expected a folder, `docker-image://`, `oci-layout://`, `target:`, or the URL of a file or git repository"
    )]
    UnknownScheme {
        /// The scheme.
        scheme: String,
    },
}

impl NamedContext {
    /// Reads the value of `--build-context`. A folder's ignore patterns are left empty.
    ///
    /// # Errors
    /// The value has a scheme that is not known, or is not what its scheme says.
    pub fn parse(value: &str) -> Result<NamedContext, NamedContextError> {
        let expect = |text: &str, expected| match text {
            "" => Err(NamedContextError::Empty {
                value: value.to_owned(),
                expected,
            }),
            _ => Ok(()),
        };
        if let Some(name) = value.strip_prefix("docker-image://") {
            expect(name, "`docker-image://NAME`")?;
            return Ok(match name {
                "scratch" => NamedContext::Scratch,
                name => NamedContext::Image(name.parse()?),
            });
        }
        if let Some(text) = value.strip_prefix("oci-layout://") {
            expect(text, "`oci-layout://PATH[:TAG|@DIGEST]`")?;
            return Ok(NamedContext::Layout(LayoutImage::parse(text)?));
        }
        if let Some(stage) = value.strip_prefix("target:") {
            expect(stage, "`target:STAGE`")?;
            return Ok(NamedContext::Stage(stage.to_owned()));
        }
        if git_url::is_git_url(value) {
            let url = GitUrl::parse(value).map_err(|source| NamedContextError::Git {
                url: git_url::without_password(value),
                source,
            })?;
            return Ok(NamedContext::Git(url));
        }
        if git_url::is_http_url(value) {
            return Ok(NamedContext::Http(value.to_owned()));
        }
        match value.split_once("://") {
            Some((scheme, _))
                if scheme
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-') =>
            {
                Err(NamedContextError::UnknownScheme {
                    scheme: scheme.to_owned(),
                })
            }
            _ => {
                expect(value, "a folder")?;
                Ok(NamedContext::Folder {
                    path: PathBuf::from(value),
                    ignore: Vec::new(),
                })
            }
        }
    }
}

impl LayoutImage {
    /// Reads `PATH[:TAG|@DIGEST]`. A colon with a slash behind it belongs to the path.
    fn parse(text: &str) -> Result<LayoutImage, DigestError> {
        if let Some((path, digest)) = text.rsplit_once('@')
            && !digest.contains('/')
        {
            return Ok(LayoutImage {
                path: PathBuf::from(path),
                selector: Some(LayoutSelector::Digest(digest.parse()?)),
            });
        }
        Ok(match text.rsplit_once(':') {
            Some((path, tag)) if !tag.contains('/') && !path.is_empty() => LayoutImage {
                path: PathBuf::from(path),
                selector: Some(LayoutSelector::Tag(tag.to_owned())),
            },
            _ => LayoutImage {
                path: PathBuf::from(text),
                selector: None,
            },
        })
    }
}

/// Named contexts, by [`context_name`], with `::os/architecture` behind it for one that is meant for a platform.
pub type NamedContexts = BTreeMap<String, NamedContext>;

/// Names that always mean what they mean, and cannot be given to a context.
pub const RESERVED_NAMES: [&str; 2] = ["scratch", "context"];

/// A context's name as it is looked up: normalised like an image's, so that `alpine` is `docker.io/library/alpine:latest`.
/// `None` if it is no image's name, and so can be no context's.
pub fn context_name(name: &str) -> Option<String> {
    let reference: Reference = name.to_lowercase().parse().ok()?;
    let familiar = reference.familiar();
    Some(match familiar.strip_suffix(":latest") {
        Some(short) => short.to_owned(),
        None => familiar,
    })
}

/// The key of a `NAME` or `NAME::PLATFORM` as `--build-context` has it.
pub fn context_key(text: &str) -> Option<String> {
    match text.split_once("::") {
        Some((name, platform)) => Some(format!("{}::{}", context_name(name)?, platform)),
        None => context_name(text),
    }
}

/// Finds the context for a name that `FROM` or `--from` says: one for the platform goes before one for all.
pub fn find<'a>(
    contexts: &'a NamedContexts,
    name: &str,
    platform: &Platform,
) -> Option<(&'a str, &'a NamedContext)> {
    if contexts.is_empty() || RESERVED_NAMES.contains(&name) {
        return None;
    }
    let name = context_name(name)?;
    let (key, context) = contexts
        .get_key_value(&format!("{name}::{platform}"))
        .or_else(|| contexts.get_key_value(&name))?;
    Some((key, context))
}

/// The main context of a build.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MainContext {
    /// A local folder, read in place.
    Folder(PathBuf),
    /// A tree that was fetched before its Dockerfile could be read: an archive, a repository.
    Tree(FetchedTree),
}

/// A tree that is in the store, as one layer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FetchedTree {
    /// Where it comes from, for people.
    pub name: String,
    /// Its layer; none for a tree without a file.
    pub layer: Option<FetchedLayer>,
}

/// The layer of a [`FetchedTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FetchedLayer {
    /// Its directory.
    pub id: LayerId,
    /// What it is.
    pub tree: TreeDigest,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_images() {
        let check = |name: &str, expect: Option<&str>| {
            assert_eq!(context_key(name).as_deref(), expect, "{name}");
        };
        check("alpine", Some("alpine"));
        check("Alpine", Some("alpine"));
        check("alpine:latest", Some("alpine"));
        check("docker.io/library/alpine:latest", Some("alpine"));
        check("docker.io/library/alpine:3.20", Some("alpine:3.20"));
        check("r.example:5000/a/b", Some("r.example:5000/a/b"));
        check("src", Some("src"));
        check("src::linux/amd64", Some("src::linux/amd64"));
        check("", None);
        check("a b", None);
        check("-x", None);
    }

    #[test]
    fn values() {
        let check = |value: &str, expect: &str| {
            let found = match NamedContext::parse(value) {
                Err(error) => format!("error: {error}"),
                Ok(context) => match context {
                    NamedContext::Folder { path, .. } => format!("folder {}", path.display()),
                    NamedContext::Image(name) => format!("image {name}"),
                    NamedContext::Scratch => "scratch".to_owned(),
                    NamedContext::Layout(layout) => {
                        format!("layout {} {:?}", layout.path.display(), layout.selector)
                    }
                    NamedContext::Git(url) => format!("git {url}"),
                    NamedContext::Http(url) => format!("http {url}"),
                    NamedContext::Stage(name) => format!("stage {name}"),
                },
            };
            assert_eq!(found, expect, "{value}");
        };
        check("../x", "folder ../x");
        check("a:b", "folder a:b");
        check(
            "docker-image://alpine",
            "image docker.io/library/alpine:latest",
        );
        check("docker-image://scratch", "scratch");
        check(
            "docker-image://",
            "error: `docker-image://` names nothing: expected `docker-image://NAME`",
        );
        check("oci-layout://a/b", "layout a/b None");
        check("oci-layout:///a:1/b", "layout /a:1/b None");
        check("oci-layout://a/b:v1", "layout a/b Some(Tag(\"v1\"))");
        check("target:base", "stage base");
        check("https://h/x.git#v1", "git https://h/x.git#v1");
        check("https://h/x.tar", "http https://h/x.tar");
        check(
            "ftp://h/x",
            "error: unknown kind of build context `ftp://`: expected a folder, `docker-image://`, `oci-layout://`, \
             `target:`, or the URL of a file or git repository",
        );
        check(
            "https://h/x.git?a=b",
            "error: invalid git URL `https://h/x.git?a=b`",
        );
        assert!(NamedContext::parse("oci-layout://a@sha256:12").is_err());
    }

    #[test]
    fn a_platforms_own_goes_first() {
        let contexts = NamedContexts::from([
            ("a".to_owned(), NamedContext::Scratch),
            (
                "a::linux/amd64".to_owned(),
                NamedContext::Stage("x".to_owned()),
            ),
            ("scratch".to_owned(), NamedContext::Stage("x".to_owned())),
        ]);
        let check = |name: &str, architecture: &str, expect: Option<&str>| {
            let platform = Platform {
                architecture: architecture.to_owned(),
                os: "linux".to_owned(),
                os_version: None,
                os_features: Vec::new(),
                variant: None,
            };
            let found = find(&contexts, name, &platform).map(|(key, _)| key);
            assert_eq!(found, expect, "{name} {architecture}");
        };
        check("docker.io/library/a", "amd64", Some("a::linux/amd64"));
        check("a", "arm64", Some("a"));
        check("b", "amd64", None);
        check("scratch", "amd64", None);
        check("not a name", "amd64", None);
    }
}
