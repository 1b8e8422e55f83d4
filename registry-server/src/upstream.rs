//! Other registries, read through this one: what is asked for and not here is fetched, sent on while it comes, and kept.
//!
//! ```text
//! /v2/docker.io/library/app/…    a prefix of names            ─┐
//! /v2/library/app/…?ns=docker.io  as containerd asks a mirror  ├─► Through ─► Upstream (an HTTP client, not ours)
//! /v2/library/app/…               the whole registry mirrors  ─┘      └─► RegistryStorage
//! ```
//!
//! | file | part |
//! |---|---|
//! | this | [`Upstream`], the trait that a client of registries implements; which names are whose |
//! | `upstream/answers` | the handlers of cached names |
//! | `upstream/tags` | manifests and tags are brought here; what is fresh enough |
//! | `upstream/flight` | a blob on its way: one fetch, any number of readers |
//! | `upstream/spool` | where a blob is read that goes on to a storage elsewhere, or is not kept |
//! | `upstream/joined` | one question for all who ask it at the same time |
//! | `upstream/traced` | spans of what it is asked |
//! | `upstream/memory` | what was found out, for a while |
//!
//! Invariants: what has a digest is asked for once and never again; nothing is kept before all of it was hashed; nobody
//! gets the last byte of what is not what was asked for.

mod answers;
mod flight;
mod joined;
mod memory;
mod spool;
mod tags;
mod traced;

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::stream::BoxStream;
use http::HeaderValue;
use store::oci::{Descriptor, Digest};

use crate::error::{ApiError, ErrorCode};
use crate::quota::Quotas;
use crate::routes::{RepositoryName, Route};
use crate::storage::RegistryStorage;

pub(crate) use joined::Tasks;
pub(crate) use tags::Through;
use traced::Traced;

/// Why an upstream did not give what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UpstreamError {
    /// It says that there is no such thing.
    #[error("it has none")]
    NotFound,
    /// It does not let us have it.
    #[error("it refuses: {reason}")]
    Refused {
        /// Its words.
        reason: String,
    },
    /// It has had enough of our requests.
    #[error("it limits requests")]
    Busy {
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// There is no answer, or one that speaks of a fault.
    #[error("it cannot be reached: {reason}")]
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// The answer is not what was asked for.
    #[error("its answer cannot be used: {reason}")]
    Wrong {
        /// What is wrong.
        reason: String,
    },
}

impl UpstreamError {
    /// Whether it says nothing about what was asked for: what was known before still stands.
    pub(crate) fn says_nothing(&self) -> bool {
        match self {
            UpstreamError::NotFound | UpstreamError::Refused { .. } => false,
            UpstreamError::Busy { .. }
            | UpstreamError::Unreachable { .. }
            | UpstreamError::Wrong { .. } => true,
        }
    }
}

/// A manifest as an upstream has it.
#[derive(Clone, Debug)]
pub struct UpstreamManifest {
    /// Its bytes.
    pub bytes: Bytes,
    /// What the upstream calls it.
    pub media_type: Option<String>,
    /// What the upstream says that its digest is, or what it is in SHA-256.
    pub digest: Digest,
}

/// A blob as it comes.
pub struct UpstreamBlob {
    /// Length in bytes.
    pub size: u64,
    /// Its bytes, not verified.
    pub bytes: BoxStream<'static, UpstreamResult<Bytes>>,
}

impl fmt::Debug for UpstreamBlob {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UpstreamBlob")
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

/// What an upstream answers.
pub type UpstreamResult<T> = Result<T, UpstreamError>;

/// A registry that is read from. Repositories are named as it names them.
pub trait Upstream: Send + Sync + fmt::Debug + 'static {
    /// A manifest by tag or digest.
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a str,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamManifest>>;

    /// What a tag is on now, without reading that; `None` if the upstream does not tell. `known` is what it was on.
    fn tag_now<'a>(
        &'a self,
        repository: &'a str,
        tag: &'a str,
        known: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Option<Digest>>>;

    /// The length of a blob, without reading it.
    fn blob_size<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<u64>>;

    /// A blob from its first byte on.
    fn blob<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamBlob>>;

    /// The tags of a repository, in any order.
    fn tags<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, UpstreamResult<Vec<String>>>;

    /// The repositories that there are, in any order, where it lists them.
    fn repositories(&self) -> BoxFuture<'_, UpstreamResult<Vec<String>>> {
        Box::pin(async {
            Err(UpstreamError::Refused {
                reason: "it lists no repositories".to_owned(),
            })
        })
    }

    /// What refers to a manifest, in any order.
    fn referrers<'a>(
        &'a self,
        repository: &'a str,
        subject: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Vec<Descriptor>>>;
}

/// A registry that is read through this one, and how.
#[derive(Clone, Debug)]
pub struct PullThrough {
    /// Below which names it is found; `None` if all names that no other has are its.
    pub prefix: Option<RepositoryName>,
    /// What clients may call it in `?ns=`, as containerd and BuildKit do when they ask a mirror.
    pub namespaces: Vec<String>,
    /// The registry.
    pub upstream: Arc<dyn Upstream>,
    /// How long a tag is taken to be on what it was on; then it is asked about. Digests never are.
    pub tag_age: Duration,
    /// How long what the upstream does not have is not asked for again.
    pub absent_age: Duration,
    /// How long an upstream that cannot be reached is not asked about what there is an older answer to.
    pub down_age: Duration,
    /// Blobs that are fetched from it at once; more wait.
    pub fetches_max: usize,
}

impl PullThrough {
    /// A registry below `prefix`, with the usual patience.
    pub fn new(prefix: Option<RepositoryName>, upstream: Arc<dyn Upstream>) -> PullThrough {
        PullThrough {
            namespaces: prefix.iter().map(ToString::to_string).collect(),
            prefix,
            upstream,
            tag_age: Duration::from_secs(5 * 60),
            absent_age: Duration::from_secs(30),
            down_age: Duration::from_secs(10),
            fetches_max: 32,
        }
    }

    /// What the upstream calls a repository of ours.
    fn remote<'a>(&self, name: &'a RepositoryName) -> Option<&'a str> {
        match &self.prefix {
            None => Some(name.as_str()),
            Some(prefix) => name
                .as_str()
                .strip_prefix(prefix.as_str())?
                .strip_prefix('/'),
        }
    }
}

/// All registries that are read through.
#[derive(Debug)]
pub(crate) struct Upstreams {
    all: Vec<Arc<Through>>,
    /// What is being fetched, also for those that another configuration has left out.
    tasks: Arc<Tasks>,
}

impl Upstreams {
    pub(crate) fn new(
        mut all: Vec<PullThrough>,
        storage: &Arc<dyn RegistryStorage>,
        tasks: Arc<Tasks>,
        blob_bytes_max: Option<u64>,
        spool: Option<&PathBuf>,
        quotas: &Arc<Quotas>,
    ) -> Upstreams {
        // The longest prefix decides.
        for one in &mut all {
            one.upstream = Arc::new(Traced(Arc::clone(&one.upstream)));
        }
        all.sort_by_key(|one| std::cmp::Reverse(one.prefix.as_ref().map(|p| p.as_str().len())));
        let through = |one| {
            let (storage, tasks) = (Arc::clone(storage), Arc::clone(&tasks));
            let quotas = Arc::clone(quotas);
            Through::new(one, storage, tasks, blob_bytes_max, spool.cloned(), quotas)
        };
        Upstreams {
            all: all.into_iter().map(through).collect(),
            tasks,
        }
    }

    /// The upstream that a repository is one of, and what it is called there.
    pub(crate) fn of<'a>(&self, name: &'a RepositoryName) -> Option<(&Arc<Through>, &'a str)> {
        self.all
            .iter()
            .find_map(|through| Some((through, through.rules.remote(name)?)))
    }

    /// The route to what a mirror's client means: with `ns`, names are those of that registry. Also what to confirm.
    pub(crate) fn place(
        &self,
        route: Route,
        ns: Option<&str>,
    ) -> Result<(Route, Option<HeaderValue>), ApiError> {
        let (Some(ns), Some(name)) = (ns, route.repository()) else {
            return Ok((route, None));
        };
        let named = self
            .all
            .iter()
            .find(|through| through.rules.namespaces.iter().any(|known| known == ns));
        let unknown = |why: String| Err(ApiError::with(ErrorCode::NameUnknown, why));
        let Some(through) = named else {
            // Without this the names of one registry would be answered with what another has under them.
            let mirrors_all = self.of(name).is_some_and(|(t, _)| t.rules.prefix.is_none());
            return match mirrors_all {
                true => unknown(format!("this registry is no mirror of {ns}")),
                false => Ok((route, None)),
            };
        };
        let placed = match &through.rules.prefix {
            None => name.clone(),
            Some(prefix) => RepositoryName::parse(&format!("{prefix}/{name}"))
                .map_err(|detail| ApiError::with(ErrorCode::NameInvalid, detail))?,
        };
        // A longer prefix has that name.
        let is_its = |(other, _): (&Arc<Through>, _)| Arc::ptr_eq(other, through);
        if !self.of(&placed).is_some_and(is_its) {
            return unknown(format!("{name} of {ns} cannot be had here"));
        }
        let confirmed = HeaderValue::from_str(ns).ok();
        Ok((route.with_repository(placed), confirmed))
    }

    /// What is being fetched.
    pub(crate) fn tasks(&self) -> Arc<Tasks> {
        Arc::clone(&self.tasks)
    }
}
