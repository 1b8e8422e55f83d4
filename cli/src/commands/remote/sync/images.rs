//! Which images a sync is about, and what each is called at the target.
//!
//! ```text
//! HOST/REPO[:TAG|@DIGEST]      ─► HOST/REPO        the same tags there
//! HOST, HOST/PATTERN           ─► HOST[/PREFIX]    the same names below that
//! yaml:FILE                    ─► oci:DIR          in one layout: `REPO:TAG`, of one repository `TAG`
//! oci:DIR, an archive          ─►                  by the names that it has in there
//! ```

use std::path::PathBuf;

use registry_client::copy::{CopyError, Pick, Place, Source};
use registry_client::{Options, referrers};
use store::oci::pattern::selected;
use store::oci::{Digest, Reference};

use super::list::List;
use crate::args::{SyncArgs, SyncTransport};
use crate::commands::remote::{Session, list};
use crate::error::{CliError, Kind};

/// What is copied.
pub enum Origin {
    /// The repositories of a registry that fit a pattern.
    Registry {
        host: String,
        pattern: Option<String>,
    },
    /// All tags of a repository.
    Repository(Reference),
    /// One image.
    Image(Reference),
    /// All that has a name in a layout or archive.
    Local(Place),
    /// What a file lists.
    List(List),
}

/// A place of images that is looked into at once.
pub enum Part {
    /// A repository: all of its tags, or those that the list says.
    Repository { name: Reference, tags: Tags },
    /// A layout or archive.
    Local(Place),
}

/// Which tags of a repository.
#[derive(Clone)]
pub enum Tags {
    /// All that the command line lets through.
    All,
    /// These, and these digests.
    Named(Vec<String>),
    /// Those that a test of the list lets through.
    Like(super::list::Like),
}

/// One image, and where it goes.
pub struct Image {
    pub from: Place,
    pub to: ToPlace,
}

/// Where one image goes.
#[derive(Clone)]
pub enum ToPlace {
    Registry(Reference),
    Layout { path: PathBuf, name: Option<String> },
}

impl ToPlace {
    /// The same as a place to be read.
    pub fn place(&self) -> Place {
        match self.clone() {
            ToPlace::Registry(reference) => Place::Registry(reference),
            ToPlace::Layout { path, name } => {
                let pick = name.map_or(Pick::Only, Pick::Name);
                Place::Layout { path, pick }
            }
        }
    }
}

/// Where images go.
pub struct Goal {
    base: Base,
    naming: Naming,
}

enum Base {
    /// `host[:port][/prefix]`
    Registry(String),
    Layout(PathBuf),
}

/// What a repository is called below the target.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    /// As the target.
    Same,
    /// By its whole name.
    Whole,
    /// By the last word of its name, as with skopeo.
    Last,
    /// By its registry and its whole name.
    Scoped,
}

fn usage(message: impl Into<String>) -> CliError {
    CliError::new(Kind::Usage, message.into())
}

/// The registry, where a text names one and no repository in it; `oci:DIR` is none, though it looks like one with a port.
fn host(text: &str) -> Result<Option<&str>, CliError> {
    match text.parse::<Place>() {
        Ok(Place::Registry(_)) | Err(CopyError::Reference(_)) => Ok(list::registry(text)),
        Ok(_) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

fn with_transport(text: &str, transport: Option<SyncTransport>) -> String {
    let word = match transport {
        None => return text.to_owned(),
        Some(SyncTransport::Docker) => "docker://",
        Some(SyncTransport::Oci) => "oci:",
        Some(SyncTransport::OciArchive) => "oci-archive:",
        Some(SyncTransport::DockerArchive) => "docker-archive:",
        Some(SyncTransport::Yaml) => "yaml:",
    };
    match text.starts_with(word) {
        true => text.to_owned(),
        false => format!("{word}{text}"),
    }
}

impl Origin {
    /// What the command line names.
    pub fn read(args: &SyncArgs) -> Result<Origin, CliError> {
        let text = with_transport(&args.source, args.src);
        if let Some(path) = text.strip_prefix("yaml:") {
            return Ok(Origin::List(List::read(path.as_ref())?));
        }
        let bare = text.strip_prefix("docker://").unwrap_or(&text);
        if let Some(host) = host(&text)? {
            return Ok(Origin::Registry {
                host: host.to_owned(),
                pattern: None,
            });
        }
        if bare.contains(['*', '?']) {
            let (host, pattern) = bare.split_once('/').unwrap_or(("", bare));
            let Some(host) = list::registry(host) else {
                return Err(usage(format!(
                    "`{bare}` has a pattern and no registry: expected HOST/PATTERN"
                )));
            };
            return Ok(Origin::Registry {
                host: host.to_owned(),
                pattern: Some(pattern.to_owned()),
            });
        }
        match text.parse::<Place>()? {
            Place::Registry(reference) => {
                let last = bare.rsplit('/').next().unwrap_or_default();
                Ok(match last.contains([':', '@']) {
                    true => Origin::Image(reference),
                    false => Origin::Repository(reference),
                })
            }
            Place::Store(_) => Err(usage(
                "the store is synchronised with nothing: copy its images with `copy store:NAME`",
            )),
            place => Ok(Origin::Local(place)),
        }
    }

    /// Whether all of it has the name of one repository.
    pub fn is_one_repository(&self) -> bool {
        matches!(self, Origin::Repository(_) | Origin::Image(_))
    }

    /// The registries that it is in.
    pub fn hosts(&self) -> Vec<String> {
        match self {
            Origin::Registry { host, .. } => vec![host.clone()],
            Origin::Repository(name) | Origin::Image(name) => vec![name.registry().to_owned()],
            Origin::Local(_) => Vec::new(),
            Origin::List(list) => list.hosts(),
        }
    }

    /// Adds what a list says of how registries are reached.
    pub fn add_to(&self, options: &mut Options) {
        if let Origin::List(list) = self {
            list.add_to(options);
        }
    }

    /// The repositories, layouts and archives that it is about, in order.
    pub fn parts(&self, session: &Session<'_>, args: &SyncArgs) -> Result<Vec<Part>, CliError> {
        let whole = |name: Reference| Part::Repository {
            name,
            tags: Tags::All,
        };
        Ok(match self {
            Origin::Registry { host, pattern } => {
                let mut names = session.run(|client| async move { client.catalog(host).await })?;
                let pattern: Vec<String> = pattern.iter().cloned().collect();
                names.retain(|name| {
                    selected(name, &pattern, &[])
                        && selected(name, &args.repositories, &args.exclude_repositories)
                });
                let mut parts = Vec::new();
                for name in names {
                    parts.push(whole(format!("{host}/{name}").parse()?));
                }
                parts
            }
            Origin::Repository(name) => vec![whole(name.clone())],
            Origin::Image(name) => vec![Part::Repository {
                name: name.clone(),
                tags: Tags::Named(vec![match name.digest() {
                    Some(digest) => digest.to_string(),
                    None => name.tag().unwrap_or_default().to_owned(),
                }]),
            }],
            Origin::Local(place) => vec![Part::Local(place.clone())],
            Origin::List(list) => list.parts(args),
        })
    }
}

impl Part {
    /// Its images that are wanted.
    pub fn images(
        &self,
        session: &Session<'_>,
        args: &SyncArgs,
        to: &Goal,
    ) -> Result<Vec<Image>, CliError> {
        let is_wanted = |tag: &String| {
            // Lists of referrers are written by whoever copies what is in them.
            !referrers::is_fallback_tag(tag) && selected(tag, &args.include, &args.exclude)
        };
        match self {
            Part::Repository { name, tags } => {
                let mut chosen = match tags {
                    Tags::Named(tags) => tags.clone(),
                    Tags::All | Tags::Like(_) => {
                        session.run(|client| async move { client.tags(name).await })?
                    }
                };
                if let Tags::Like(like) = tags {
                    chosen.retain(|tag| like.takes(tag));
                }
                let chosen = chosen.iter().filter(|tag| is_wanted(tag));
                chosen
                    .map(|tag| {
                        Ok(Image {
                            from: Place::Registry(at(name, tag)?),
                            to: to.of(name.registry(), name.repository(), tag)?,
                        })
                    })
                    .collect()
            }
            Part::Local(place) => {
                let opened =
                    session.run(|client| async move { Source::open(&client, place).await });
                let Source::Local { local, .. } = opened? else {
                    return Err(usage(format!("`{place}` is no layout or archive")));
                };
                let mut images = Vec::new();
                let only = match pick(place) {
                    Pick::Only => None,
                    Pick::Name(name) => Some(name),
                    Pick::Digest(_) => {
                        let message = format!("`{place}`: a sync goes by names, not by digests");
                        return Err(usage(message).hint("`copy` takes one image by its digest"));
                    }
                };
                for name in local.names() {
                    let (repository, tag) = split(&name);
                    let tag = tag.to_owned();
                    if only.as_ref().is_some_and(|only| *only != name) || !is_wanted(&tag) {
                        continue;
                    }
                    let (registry, repository) = match repository.split_once('/') {
                        Some((first, rest)) if list::registry(first).is_some() => (first, rest),
                        _ => ("", repository),
                    };
                    let is_other = !repository.is_empty()
                        && !selected(repository, &args.repositories, &args.exclude_repositories);
                    if !is_other {
                        images.push(Image {
                            from: with_pick(place, &name),
                            to: to.of(registry, repository, &tag)?,
                        });
                    }
                }
                Ok(images)
            }
        }
    }
}

/// A repository's image by its tag or digest.
fn at(name: &Reference, tag: &str) -> Result<Reference, CliError> {
    match tag.parse::<Digest>() {
        Ok(digest) => Ok(name.with_digest(digest)),
        Err(_) => Ok(name.with_tag(tag)?),
    }
}

fn pick(place: &Place) -> Pick {
    match place {
        Place::Layout { pick, .. }
        | Place::OciArchive { pick, .. }
        | Place::DockerArchive { pick, .. } => pick.clone(),
        Place::Registry(_) | Place::Store(_) => Pick::Only,
    }
}

fn with_pick(place: &Place, name: &str) -> Place {
    let pick = Pick::Name(name.to_owned());
    match place.clone() {
        Place::Layout { path, .. } => Place::Layout { path, pick },
        Place::OciArchive { path, .. } => Place::OciArchive { path, pick },
        Place::DockerArchive { path, .. } => Place::DockerArchive { path, pick },
        other => other,
    }
}

/// A name in a layout: the repository, which may be empty, and the tag.
fn split(name: &str) -> (&str, &str) {
    if let Some(by_digest) = name.split_once('@') {
        return by_digest;
    }
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    match name[last..].rfind(':') {
        Some(colon) => (&name[..last + colon], &name[last + colon + 1..]),
        None if last > 0 => (name, "latest"),
        None => ("", name),
    }
}

impl Goal {
    /// Where the command line says; `one` is whether all that comes is of one repository.
    pub fn read(args: &SyncArgs, one: bool) -> Result<Goal, CliError> {
        let text = with_transport(&args.target, args.dest);
        if text.starts_with("yaml:") {
            return Err(usage("images are not copied to a list"));
        }
        let is_host = host(&text)?.is_some();
        let naming = match (args.scoped, args.dest, one && !is_host) {
            (true, _, _) => Naming::Scoped,
            (false, Some(_), _) => Naming::Last,
            (false, None, true) => Naming::Same,
            (false, None, false) => Naming::Whole,
        };
        let bare = text.strip_prefix("docker://").unwrap_or(&text);
        let bare = bare.trim_end_matches('/');
        if is_host {
            let base = Base::Registry(bare.to_owned());
            return Ok(Goal { base, naming });
        }
        let base = match text.trim_end_matches('/').parse::<Place>()? {
            Place::Registry(name) => {
                let last = bare.rsplit('/').next().unwrap_or_default();
                if last.contains([':', '@']) {
                    return Err(usage(format!(
                        "`{bare}` has a tag or a digest: a sync keeps those that there are"
                    )));
                }
                Base::Registry(name.name())
            }
            Place::Layout {
                path,
                pick: Pick::Only,
            } => Base::Layout(path),
            other => {
                let message = format!("`{other}` is no target of a sync");
                return Err(usage(message).hint("give a repository, HOST[/PREFIX] or oci:DIR"));
            }
        };
        Ok(Goal { base, naming })
    }

    /// The registry that it is in.
    pub fn host(&self) -> Option<String> {
        match &self.base {
            Base::Registry(name) => name.split('/').next().map(str::to_owned),
            Base::Layout(_) => None,
        }
    }

    /// Where the image of a repository goes; the registry is empty where none is known, and the repository too where an image has
    /// nothing but a tag.
    fn of(&self, registry: &str, repository: &str, tag: &str) -> Result<ToPlace, CliError> {
        let below = match self.naming {
            Naming::Same => String::new(),
            Naming::Whole => repository.to_owned(),
            Naming::Last => repository.rsplit('/').next().unwrap_or_default().to_owned(),
            Naming::Scoped if registry.is_empty() => repository.to_owned(),
            // A port's colon has no place in a path.
            Naming::Scoped => format!("{}/{repository}", registry.replace(':', "-")),
        };
        let digest = tag.parse::<Digest>().ok();
        match &self.base {
            Base::Registry(base) => {
                let name = match below.as_str() {
                    "" => base.clone(),
                    below => format!("{base}/{below}"),
                };
                if !name.contains('/') {
                    return Err(usage(format!(
                        "what is called `{tag}` alone needs a repository to go to: expected {name}/REPOSITORY"
                    )));
                }
                Ok(ToPlace::Registry(at(&name.parse()?, tag)?))
            }
            Base::Layout(path) => {
                let name = match (below.as_str(), digest) {
                    ("", None) => Some(tag.to_owned()),
                    (below, None) => Some(format!("{below}:{tag}")),
                    ("", Some(digest)) => Some(digest.to_string()),
                    (below, Some(digest)) => Some(format!("{below}@{digest}")),
                };
                let path = path.clone();
                Ok(ToPlace::Layout { path, name })
            }
        }
    }
}
