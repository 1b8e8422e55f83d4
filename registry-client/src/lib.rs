//! Pulls from and pushes to any OCI registry.
//!
//! | module | part |
//! |---|---|
//! | [`Client`] | the façade: cheap to clone, everything takes `&self` |
//! | [`auth`] | credentials, docker's and containers' files, tokens |
//! | [`options`] | what a client trusts and how patient it is |
//! | [`hosts`] | where registries really are: mirrors, other locations, blocked names |
//! | `registry` | one registry: scheme, credentials, attempts |
//! | `transport` | HTTP, the only place that sends |
//! | `manifest`, `download`, `upload`, `list` | the endpoints |
//! | [`pull`], [`push`] | whole images |
//! | [`copy`] | images from anywhere to anywhere: registries, layouts, archives |
//! | [`edit`] | images changed without moving their layers |
//! | [`compare`] | what there is to compare of an image |
//! | [`validate`] | whether an image is what it says |
//! | [`search`] | repositories by a part of their name |
//! | [`referrers`] | what is about a manifest, where the registry keeps no list of it |
//! | [`through`] | what a cache in front of a registry asks |
//! | [`fetch`], `document`, [`post`] | plain files behind URLs; documents sent to one |
//! | [`bucket`] | objects in S3-compatible stores |
//! | [`progress`] | who is told how far transfers are |
//! | [`error`] | what can go wrong |
//!
//! Nothing here prints or reads the environment. Nothing that came from a registry is given out before it is checked
//! against its digest, except by [`BlobStream`] and [`BlobReader`], whose consumer hashes as it reads.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::StatusCode;
use tokio::sync::Semaphore;

pub mod auth;
mod blobs;
mod blocking;
pub mod bucket;
pub mod compare;
pub mod copy;
mod document;
mod download;
pub mod edit;
pub mod error;
pub mod fetch;
#[doc(hidden)]
pub mod fuzzing;
mod headers;
pub mod hosts;
mod list;
mod manifest;
#[cfg(test)]
mod mutate;
pub mod options;
mod pace;
pub mod post;
pub mod progress;
pub mod pull;
pub mod push;
pub mod referrers;
mod registry;
pub mod search;
pub mod through;
mod transport;
mod upload;
pub mod validate;

pub use auth::{Credential, CredentialError, DockerConfig, Keychain};
pub use bucket::{Bucket, BucketError, BucketOptions};
pub use download::{BlobReader, BlobStream};
pub use error::{ClientError, ErrorKind};
pub use fetch::{Downloaded, RemoteFile, Validators};
pub use headers::RateLimit;
pub use hosts::{Hosts, HostsError, HostsFiles};
pub use manifest::RemoteImage;
pub use options::{Options, Proxies, Timeouts};
pub use progress::{Progress, Silent};
pub use pull::{PullError, pull_layers};
pub use push::{PushImage, PushReport, PushedBlobs, ReadyBlob, push_blobs, push_image};
pub use transport::body::{BlobSource, RemoteBlob};
pub use transport::retry::{Clock, RetryPolicy, SystemClock};
pub use transport::{Warning, with_headers};
pub use upload::Pushed;

use hosts::Host;
use registry::Registry;
use store::oci::Reference;
use transport::{Call, Transport};

/// Talks to registries. Clones share connections and tokens.
#[derive(Clone, Debug)]
pub struct Client {
    shared: Arc<Shared>,
}

/// By how a server is spoken to, and whether it is a mirror.
type Registries = BTreeMap<(Arc<Host>, bool), Arc<Registry>>;

#[derive(Debug)]
struct Shared {
    transport: Arc<Transport>,
    registries: Mutex<Registries>,
    /// Segments that may be read ahead.
    segments: Arc<Semaphore>,
}

impl Client {
    /// A client that has not connected to anything yet.
    pub fn new(options: Options) -> Result<Client, ClientError> {
        if options
            .user_agent
            .bytes()
            .any(|byte| byte.is_ascii_control())
        {
            return Err(ClientError::Setup {
                what: options.user_agent,
                reason: "a user agent has no control characters".to_owned(),
            });
        }
        Ok(Client {
            shared: Arc::new(Shared {
                transport: Arc::new(Transport::new(Arc::new(options))),
                registries: Mutex::default(),
                segments: Arc::new(Semaphore::new(options::SEGMENTS_AHEAD_MAX)),
            }),
        })
    }

    /// How this client behaves.
    pub fn options(&self) -> &Options {
        &self.shared.transport.options
    }

    /// What registries wanted their users to know, each text once.
    pub fn warnings(&self) -> Vec<Warning> {
        self.shared.transport.warnings()
    }

    /// Checks that a registry takes a credential; nothing is stored. The credential that is to be kept for it: if it is a password and a
    /// token server gave an identity token for it, that.
    pub async fn check_login(
        &self,
        registry: &str,
        credential: &Credential,
    ) -> Result<Credential, ClientError> {
        // A client of its own, so that no token of somebody else's proves anything.
        let mut options = self.options().clone();
        let lasting = auth::Lasting::default();
        options.keychain = Keychain::anonymous()
            .with(registry, credential.clone())
            .asking_for(auth::Lasting::clone(&lasting));
        Client::new(options)?.ping(registry).await?;
        Ok(lasting.get().unwrap_or(credential).clone())
    }

    /// Checks that a registry answers, with the credentials that there are for it.
    pub async fn ping(&self, registry: &str) -> Result<(), ClientError> {
        let host = self.options().hosts.server(registry);
        let registry = self.registry(&host?, false);
        let mut attempts = registry.attempts();
        loop {
            let result = ping_once(&registry).await;
            match result {
                Err(error) if attempts.again(&error).await => {}
                result => return result,
            }
        }
    }

    fn registry(&self, host: &Arc<Host>, is_mirror: bool) -> Arc<Registry> {
        let registries = self.shared.registries.lock();
        let mut registries = registries.unwrap_or_else(PoisonError::into_inner);
        let transport = &self.shared.transport;
        let new = || Arc::new(Registry::new(host, is_mirror, Arc::clone(transport)));
        let key = (Arc::clone(host), is_mirror);
        Arc::clone(registries.entry(key).or_insert_with(new))
    }

    /// Where what a reference names is read, its home last, with the name that it has there.
    pub(crate) async fn to_read(
        &self,
        reference: &Reference,
    ) -> Result<Vec<(Arc<Registry>, Reference)>, ClientError> {
        let (hosts, wanted) = (self.options().hosts.clone(), reference.clone());
        let places = blocking::blocking(move || hosts.to_read(&wanted)).await?;
        let last = places.len() - 1;
        let places = places.into_iter().enumerate();
        let found =
            places.map(|(at, place)| (self.registry(&place.host, at < last), place.reference));
        Ok(found.collect())
    }

    /// The home of a reference's repository, to list it or to write to it, and the name that it has there.
    pub(crate) async fn home(
        &self,
        reference: &Reference,
        writes: bool,
    ) -> Result<(Arc<Registry>, Reference), ClientError> {
        let (hosts, wanted) = (self.options().hosts.clone(), reference.clone());
        let place = blocking::blocking(move || hosts.home(&wanted, writes)).await?;
        Ok((self.registry(&place.host, false), place.reference))
    }

    /// Asks each place of a reference in turn, until one has an answer; if none has, the home's failure is the result.
    pub(crate) async fn first<T, F>(
        &self,
        reference: &Reference,
        ask: impl Fn(Arc<Registry>, Reference) -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let mut places = self.to_read(reference).await?.into_iter().peekable();
        while let Some((registry, there)) = places.next() {
            if places.peek().is_none() {
                return ask(registry, there).await;
            }
            if registry.is_down() {
                continue;
            }
            match ask(Arc::clone(&registry), there).await {
                Ok(answer) => return Ok(answer),
                Err(error) => registry.passed_over(&error),
            }
        }
        unreachable!("every reference has a home")
    }
}

async fn ping_once(registry: &Registry) -> Result<(), ClientError> {
    let call = Call::get(registry.url("").await?);
    let answer = registry.send(&[], &call).await?;
    answer.expect(&[StatusCode::OK]).await.map(drop)
}
