//! Registries that are read through ours: the client of registries, as the server wants one.
//!
//! Such a client looks at nothing that is said about registries on this machine: where the machine's own mirror is this very
//! server, it would ask itself.

use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt as _;
use futures_util::future::BoxFuture;
use futures_util::stream;
use registry_client::hosts::{Host, Location, Pulls, Rule, split_location};
use registry_client::{
    Client, ClientError, Credential, ErrorKind, Hosts, HostsFiles, Keychain, RetryPolicy, Timeouts,
    with_headers,
};
use registry_server::PullThrough;
use registry_server::trace::outgoing;
use registry_server::upstream::{
    Upstream, UpstreamBlob, UpstreamError, UpstreamManifest, UpstreamResult,
};
use store::oci::{Descriptor, Digest, Reference};

use crate::config::serve::upstream::UpstreamConfig;
use crate::context::Context;
use crate::error::CliError;

use super::secret_in;

/// One upstream, ready to be served.
pub(super) fn pull_through(
    context: &Context,
    config: &UpstreamConfig,
) -> Result<PullThrough, CliError> {
    let remote = Remote::new(context, config)?;
    let mut through = PullThrough::new(config.prefix.clone(), Arc::new(remote));
    match &config.namespaces {
        Some(names) => through.namespaces.clone_from(names),
        None if !through.namespaces.contains(&config.url.host) => {
            through.namespaces.push(config.url.host.clone());
        }
        None => {}
    }
    through.tag_age = config.tag_age.unwrap_or(through.tag_age);
    through.absent_age = config.absent_age.unwrap_or(through.absent_age);
    through.down_age = config.down_age.unwrap_or(through.down_age);
    if let Some(fetches) = config.fetches {
        through.fetches_max = usize::try_from(fetches).unwrap_or(usize::MAX);
    }
    Ok(through)
}

/// A registry, by our client.
#[derive(Debug)]
pub(super) struct Remote {
    client: Client,
    /// What goes before a repository's name: `host[:port]/[path/]`.
    base: String,
}

impl Remote {
    pub(super) fn new(context: &Context, config: &UpstreamConfig) -> Result<Remote, CliError> {
        let mut options = context.client_options()?;
        let host = |name: &str| Host {
            name: name.to_owned(),
            plain: config.url.plain,
            insecure: config.insecure,
            ca: config.ca.clone(),
            ..Host::default()
        };
        let home = Location::as_said(host(&config.url.host));
        let mirror = |text: &String| {
            let (name, path) = split_location(text).unwrap_or((text, ""));
            Location {
                host: Arc::new(Host {
                    insecure: config.insecure,
                    ca: config.ca.clone(),
                    ..Host::named(name)
                }),
                path: path.to_owned(),
                pulls: Pulls::All,
            }
        };
        let rule = Rule {
            prefix: config.url.host.clone(),
            blocked: false,
            mirrors: config.mirrors.iter().map(mirror).collect(),
            push: home.clone(),
            home,
            file: "[[upstream]]".into(),
        };
        options.hosts = Hosts::new(vec![rule], HostsFiles::default());
        options.keychain = Keychain::files(config.credentials.clone());
        if let Some((username, file)) = &config.login {
            let password = secret_in(file)?;
            let credential = Credential::Basic {
                username: username.clone(),
                password,
            };
            options.keychain = options.keychain.with(&config.url.host, credential);
        }
        // Clients wait meanwhile, and try again by themselves.
        options.retry = RetryPolicy {
            attempts: 3,
            base: Duration::from_millis(200),
            max: Duration::from_secs(2),
            patience: Duration::from_secs(3),
        };
        options.timeouts = Timeouts {
            connect: Duration::from_secs(5),
            idle: Duration::from_secs(30),
            ..options.timeouts
        };
        options.segments = 1;
        let base = match config.url.path.as_str() {
            "" => format!("{}/", config.url.host),
            path => format!("{}/{path}/", config.url.host),
        };
        Ok(Remote {
            client: Client::new(options)?,
            base,
        })
    }

    /// `reference` is a tag or a digest.
    fn reference(&self, repository: &str, reference: &str) -> UpstreamResult<Reference> {
        let separator = if reference.contains(':') { '@' } else { ':' };
        let text = format!("{}{repository}{separator}{reference}", self.base);
        // What no reference can be, is not there.
        text.parse().map_err(|_| UpstreamError::NotFound)
    }

    fn at(&self, repository: &str, digest: Digest) -> UpstreamResult<Reference> {
        self.reference(repository, &digest.to_string())
    }
}

impl Upstream for Remote {
    fn manifest<'a>(
        &'a self,
        repository: &'a str,
        reference: &'a str,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamManifest>> {
        in_trace(async move {
            let reference = self.reference(repository, reference)?;
            let found = self.client.raw_manifest(&reference).await.map_err(told)?;
            Ok(UpstreamManifest {
                bytes: found.bytes,
                media_type: found.media_type,
                digest: found.digest,
            })
        })
    }

    fn tag_now<'a>(
        &'a self,
        repository: &'a str,
        tag: &'a str,
        known: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Option<Digest>>> {
        in_trace(async move {
            let reference = self.reference(repository, tag)?;
            self.client.tag_now(&reference, known).await.map_err(told)
        })
    }

    fn blob_size<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<u64>> {
        in_trace(async move {
            let reference = self.at(repository, digest)?;
            let size = self.client.blob_size_to_read(&reference, digest).await;
            size.map_err(told)?.ok_or(UpstreamError::NotFound)
        })
    }

    fn blob<'a>(
        &'a self,
        repository: &'a str,
        digest: Digest,
    ) -> BoxFuture<'a, UpstreamResult<UpstreamBlob>> {
        in_trace(async move {
            let reference = self.at(repository, digest)?;
            let opened = self.client.open_blob_by_digest(&reference, digest).await;
            let (size, stream) = opened.map_err(told)?;
            let bytes = stream::unfold(Some(stream), |stream| async move {
                let mut stream = stream?;
                match stream.next().await {
                    Ok(Some(bytes)) => Some((Ok(bytes), Some(stream))),
                    Ok(None) => None,
                    Err(error) => Some((Err(told(error)), None)),
                }
            });
            Ok(UpstreamBlob {
                size,
                bytes: bytes.boxed(),
            })
        })
    }

    fn tags<'a>(&'a self, repository: &'a str) -> BoxFuture<'a, UpstreamResult<Vec<String>>> {
        in_trace(async move {
            let reference = self.reference(repository, "latest")?;
            self.client.tags(&reference).await.map_err(told)
        })
    }

    fn repositories(&self) -> BoxFuture<'_, UpstreamResult<Vec<String>>> {
        in_trace(async move {
            let (host, path) = self.base.split_once('/').unwrap_or((&self.base, ""));
            let listed = self.client.catalog(host).await.map_err(told)?;
            let below = |name: String| name.strip_prefix(path).map(str::to_owned);
            Ok(listed.into_iter().filter_map(below).collect())
        })
    }

    fn referrers<'a>(
        &'a self,
        repository: &'a str,
        subject: Digest,
    ) -> BoxFuture<'a, UpstreamResult<Vec<Descriptor>>> {
        in_trace(async move {
            let reference = self.at(repository, subject)?;
            let listed = self.client.referrers(&reference, &subject, None).await;
            listed.map_err(told)
        })
    }
}

/// Requests of the future carry the trace of the request that they are made for.
fn in_trace<'a, T>(
    question: impl Future<Output = UpstreamResult<T>> + Send + 'a,
) -> BoxFuture<'a, UpstreamResult<T>> {
    Box::pin(async move {
        match outgoing() {
            headers if headers.is_empty() => question.await,
            headers => with_headers(headers, question).await,
        }
    })
}

/// What an error of the client says of the registry.
#[expect(clippy::needless_pass_by_value, reason = "it is what `map_err` gives")]
fn told(error: ClientError) -> UpstreamError {
    let reason = error.to_string();
    match error.kind() {
        ErrorKind::NotFound => UpstreamError::NotFound,
        ErrorKind::Unauthorized | ErrorKind::Denied => UpstreamError::Refused { reason },
        ErrorKind::RateLimited => {
            let retry_after = match &error {
                ClientError::Refused { refusal, .. } => refusal.retry_after,
                _ => None,
            };
            UpstreamError::Busy { retry_after }
        }
        ErrorKind::Unreachable | ErrorKind::Tls | ErrorKind::ServerFault | ErrorKind::Local => {
            UpstreamError::Unreachable { reason }
        }
        _ => UpstreamError::Wrong { reason },
    }
}
