//! The listener: connections, TLS, limits, another configuration while it runs, and an end that lets running requests finish.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::time::Duration;

use http::{HeaderValue, Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use rustls::RootCertStore;
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;

use crate::audit::{AuditError, AuditLog, Event};
use crate::auth::certificate::{CertificateName, ClientCertificates, name_of};
use crate::auth::issuers::{FetchDocument, KeySource};
use crate::auth::{AuthConfig, AuthError, Gate, Peer};
use crate::body::Body;
use crate::collect::{CollectRules, collect_telling};
use crate::error::ErrorChain;
use crate::events::{Events, EventsError, Webhook, is_name};
use crate::immutable::ImmutableRule;
use crate::observe::{AccessLog, Observer};
use crate::pace::{Pace, Pulse};
use crate::proxy::Proxies;
use crate::quota::{QuotaRule, Quotas};
use crate::rate::{Rate, RateLimit};
use crate::registry::{Registry, Rules};
use crate::scrub::{ScrubRules, Scrubber};
use crate::sendfile::{Connection, SendQueue};
use crate::storage::collectable::Garbage;
use crate::storage::disk::DiskStorage;
use crate::storage::{RegistryStorage, StorageError, StorageResult};
use crate::sync::{self, Mirror};
use crate::trace::{TraceConfig, Tracer};
use crate::upstream::{PullThrough, Upstreams};

/// Most bytes of a request's line and headers; distribution-spec tokens fit many times.
const HEADER_BYTES_MAX: usize = 64 * 1024;

/// Most bytes of an HTTP/1.1 connection that are read at once, and so what one holds in memory; a head has to fit.
const READ_BYTES_MAX: usize = 2 * HEADER_BYTES_MAX;

/// Requests at once on one HTTP/2 connection.
const STREAMS_MAX: u32 = 128;

/// How long the listener rests after it could not accept (out of file descriptors).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Longest warning; distribution-spec lets an answer carry 4096 bytes of them, with what is around.
pub const WARNING_BYTES_MAX: usize = 4000;

/// How a registry is served.
#[derive(Clone, Debug)]
pub struct Config {
    /// The folder, in CNCF distribution's layout below `docker/registry/v2`; made if it is not there.
    pub root: PathBuf,
    /// Who may do what; everybody everything unless it says something.
    pub auth: AuthConfig,
    /// Certificate and key; plain HTTP where this is `None`.
    pub tls: Option<TlsFiles>,
    /// Whether blobs, manifests and tags may be deleted.
    pub delete: bool,
    /// Whether every change is refused.
    pub read_only: bool,
    /// Whether manifests are taken that refer to what the repository does not have: layers, or an index's images.
    pub sparse: bool,
    /// Whether to wait for the disk before a push is acknowledged.
    pub durable: bool,
    /// What clients are to show their users, as a `Warning` of every answer; at most [`WARNING_BYTES_MAX`] bytes.
    pub warning: Option<String>,
    /// How often garbage is collected and by which rules, where the storage can; `None` for never.
    pub collect: Option<(Duration, CollectRules)>,
    /// How everything is hashed again, if it is.
    pub scrub: Option<ScrubRules>,
    /// Other registries that are read through this one.
    pub upstreams: Vec<PullThrough>,
    /// A folder for blobs of upstreams while they come, where the storage is elsewhere: they go right there, and are read here
    /// meanwhile. Without, or without room in it, they are stored twice. Also for those that no quota has room for, which are
    /// passed on, and refused without.
    pub spool: Option<PathBuf>,
    /// Tags that stay on what they are on.
    pub immutable: Vec<ImmutableRule>,
    /// How much repositories may hold together.
    pub quotas: Vec<QuotaRule>,
    /// A file that gets a line for every change.
    pub audit: Option<PathBuf>,
    /// Endpoints that are told what happens.
    pub webhooks: Vec<Webhook>,
    /// What is mirrored from other registries.
    pub syncs: Vec<Mirror>,
    /// Where traces of requests go.
    pub traces: Option<TraceConfig>,
    /// Whether `/metrics` is served, to all who may log in.
    pub metrics: bool,
    /// Whether there is a web page, at `/`.
    pub page: bool,
    /// Where each request is told when it is over.
    pub access_log: Option<Arc<dyn AccessLog>>,
    /// What fetches the keys of issuers; without, they can be in files only.
    pub fetch: Option<Arc<dyn FetchDocument>>,
    /// What is in front of the server, and believed.
    pub proxies: Proxies,
    /// What is refused, and when the server gives up waiting.
    pub limits: Limits,
}

impl Config {
    /// An open registry in `root`, with deleting on.
    pub fn new(root: impl Into<PathBuf>) -> Config {
        Config {
            root: root.into(),
            auth: AuthConfig::default(),
            tls: None,
            delete: true,
            read_only: false,
            sparse: false,
            durable: true,
            warning: None,
            collect: None,
            scrub: None,
            upstreams: Vec::new(),
            spool: None,
            immutable: Vec::new(),
            quotas: Vec::new(),
            audit: None,
            webhooks: Vec::new(),
            syncs: Vec::new(),
            traces: None,
            metrics: false,
            page: true,
            access_log: None,
            fetch: None,
            proxies: Proxies::default(),
            limits: Limits::default(),
        }
    }

    /// The files that are read when a server is given this, and only then: who changes one has to give it again.
    pub fn files(&self) -> Vec<&Path> {
        let tls = self.tls.iter().flat_map(|tls| [&tls.cert, &tls.key]);
        let tokens = self.auth.tokens.iter();
        let tokens = tokens.flat_map(|tokens| tokens.key.iter().chain(&tokens.certificates));
        let issuers = self.auth.issuers.iter();
        let issuers = issuers.filter_map(|issuer| match &issuer.keys {
            KeySource::File(path) => Some(path),
            _ => None,
        });
        let clients = self.auth.certificates.iter().map(|clients| &clients.ca);
        let webhooks = self.webhooks.iter().flat_map(|webhook| &webhook.files);
        let all = tls.chain(tokens).chain(issuers).chain(clients);
        let all = all.chain(webhooks);
        all.map(PathBuf::as_path).collect()
    }
}

/// Where the certificate is; both files are PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, then its issuers.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Bounds of what one client can take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Connections at once; more wait in the kernel's queue.
    pub connections_max: usize,
    /// Connections at once from one address; more are closed. A flood leaves the rest to others.
    pub address_connections_max: usize,
    /// Requests of one user, or of one address of those who are not known; `None` takes any number.
    pub requests: Option<Rate>,
    /// Largest blob that is taken, in bytes; `None` takes any.
    pub blob_bytes_max: Option<u64>,
    /// How long a request's headers, a TLS handshake, or the next request on an open connection may take.
    pub header_timeout: Duration,
    /// How long a client may send or read nothing in the middle of a body.
    pub body_timeout: Duration,
    /// Least bytes per second that a client has to send or read of a body, on average of each [`Limits::body_timeout`] that it
    /// was waited for.
    pub body_rate_min: u64,
    /// How long running requests may go on once the server is to stop.
    pub drain_timeout: Duration,
    /// How long connections are still taken once the server is to stop, while `/readyz` says so: as long as a load balancer
    /// needs to look elsewhere.
    pub drain_delay: Duration,
    /// Upload sessions that got no byte for this long are dropped.
    pub upload_age_max: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        Limits {
            connections_max: 4096,
            address_connections_max: 1024,
            requests: None,
            blob_bytes_max: None,
            header_timeout: Duration::from_secs(60),
            body_timeout: Duration::from_secs(60),
            body_rate_min: 500,
            drain_timeout: Duration::from_secs(10),
            drain_delay: Duration::ZERO,
            // As long as distribution keeps them.
            upload_age_max: Duration::from_secs(7 * 24 * 60 * 60),
        }
    }
}

impl Limits {
    fn pace(&self) -> Pace {
        Pace {
            window: self.body_timeout,
            rate: self.body_rate_min,
        }
    }
}

/// Why a registry cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServeError {
    /// The folder cannot be used.
    #[error("cannot open the registry's storage")]
    Storage(#[from] StorageError),
    /// Nobody can be let in.
    #[error("cannot tell who may do what")]
    Auth(#[from] AuthError),
    /// Changes cannot be told.
    #[error(transparent)]
    Audit(#[from] AuditError),
    /// Endpoints cannot be told.
    #[error(transparent)]
    Events(#[from] EventsError),
    /// The address cannot be listened on.
    #[error("cannot listen on `{addr}`")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// The refusal.
        source: std::io::Error,
    },
    /// Registries cannot be read through this one as is said.
    #[error("cannot read other registries through this one: {reason}")]
    Upstreams {
        /// Why not.
        reason: String,
    },
    /// Repositories cannot be mirrored as is said.
    #[error("cannot mirror: {reason}")]
    Syncs {
        /// Why not.
        reason: String,
    },
    /// The warning cannot be a header.
    #[error("the warning is no header text of at most {WARNING_BYTES_MAX} bytes")]
    Warning,
    /// A PEM file cannot be used.
    #[error("cannot read `{}` as PEM", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// Nobody can show a certificate.
    #[error("certificates of clients need TLS: give a certificate and a key of the server, too")]
    CertificatesWithoutTls,
    /// What clients' certificates are checked against cannot be used.
    #[error("the certificates in `{}` cannot be used to check those of clients", path.display())]
    ClientRoots {
        /// The file.
        path: PathBuf,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// Certificate and key do not work together.
    #[error("certificate `{}` and key `{}` cannot be used", cert.display(), key.display())]
    Tls {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// How long a scrubbing that failed waits.
const SCRUB_PAUSE: Duration = Duration::from_secs(5 * 60);

/// What one configuration makes of a server. Connections and requests that begin take the one that is there then.
struct Live {
    registry: Arc<Registry>,
    tls: Option<TlsAcceptor>,
    /// Which name of a client's certificate is the user's.
    client_name: Option<CertificateName>,
    limits: Limits,
}

impl Live {
    /// Reads every file that the configuration names. Blocks.
    fn make(
        config: &Config,
        storage: Arc<dyn RegistryStorage>,
        before: Option<&Registry>,
    ) -> Result<Live, ServeError> {
        check_upstreams(config)?;
        check_syncs(config)?;
        let clients = config.auth.certificates.as_ref();
        let tls = config.tls.as_ref();
        let tls = tls.map(|files| acceptor(files, clients)).transpose()?;
        if clients.is_some() && tls.is_none() {
            return Err(ServeError::CertificatesWithoutTls);
        }
        let warning = config.warning.as_deref().map(warning).transpose()?;
        let gate = Gate::open(
            &config.auth,
            &*storage,
            config.fetch.as_ref(),
            before.map(|before| &*before.gate),
        )?;
        let rules = Rules {
            delete: config.delete,
            read_only: config.read_only,
            sparse: config.sparse,
            blob_bytes_max: config.limits.blob_bytes_max,
            pace: config.limits.pace(),
            immutable: config.immutable.clone().into(),
            metrics: config.metrics,
            page: config.page,
        };
        let audit = config.audit.as_deref().map(AuditLog::open).transpose()?;
        // What was counted so far counts on, where the rules are the same.
        let quotas = before.map(|before| Arc::clone(&before.quotas));
        let quotas = quotas
            .filter(|quotas| quotas.rules().eq(&config.quotas))
            .unwrap_or_else(|| Arc::new(Quotas::new(&config.quotas)));
        let rates = config.limits.requests.map(|rate| {
            let rates = before.and_then(|before| before.rates.clone());
            let rates = rates.filter(|rates| rates.rate() == rate);
            rates.unwrap_or_else(|| Arc::new(RateLimit::new(rate)))
        });
        let observer: Arc<Observer> =
            before.map_or_else(Arc::default, |before| Arc::clone(&before.observer));
        let tracer = config.traces.as_ref();
        let tracer = tracer.map(|traces| Tracer::new(traces, &observer.traces));
        let told = before.map(|before| &before.events);
        let events = Events::open(&config.webhooks, &*storage, told)?;
        let registry = Registry {
            upstreams: Upstreams::new(
                config.upstreams.clone(),
                &storage,
                before.map_or_else(Arc::default, |before| before.upstreams.tasks()),
                rules.blob_bytes_max,
                config.spool.as_ref(),
                &quotas,
            ),
            storage,
            sessions: before.map_or_else(Arc::default, |before| Arc::clone(&before.sessions)),
            rules,
            gate: Arc::new(gate),
            index: before.map_or_else(Arc::default, |before| Arc::clone(&before.index)),
            quotas,
            pulls: before.map_or_else(Arc::default, |before| Arc::clone(&before.pulls)),
            rates,
            audit: audit.map(Arc::new),
            events,
            syncs: config.syncs.iter().cloned().map(Arc::new).collect(),
            tracer,
            observer,
            access_log: config.access_log.clone(),
            proxies: config.proxies.clone(),
            warning,
        };
        Ok(Live {
            registry: Arc::new(registry),
            tls,
            client_name: clients.map(|clients| clients.user),
            limits: config.limits.clone(),
        })
    }
}

/// Where connections find the configuration of the moment.
struct Current(RwLock<Arc<Live>>);

impl Current {
    fn get(&self) -> Arc<Live> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn registry(&self) -> Arc<Registry> {
        Arc::clone(&self.get().registry)
    }
}

/// Gives a server that runs another configuration.
#[derive(Clone)]
pub struct Reloader(Arc<Current>);

impl std::fmt::Debug for Reloader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reloader").finish_non_exhaustive()
    }
}

impl Reloader {
    /// Uses `config` from now on: for connections that begin its certificate and timeouts, for requests that begin everything
    /// else. No connection is closed. One that cannot be used changes nothing. `root`, `durable`, `collect`, the number of
    /// connections and the age of uploads stay what they were.
    pub async fn apply(&self, config: Config) -> Result<(), ServeError> {
        let registry = self.0.registry();
        let live = blocking(move || {
            let storage = Arc::clone(&registry.storage);
            Live::make(&config, storage, Some(&registry))
        })
        .await?;
        live.registry.start();
        let mut current = self.0.0.write().unwrap_or_else(PoisonError::into_inner);
        *current = Arc::new(live);
        current.registry.observer.syncs_changed.notify_one();
        Ok(())
    }
}

/// A registry that listens.
pub struct Server {
    listener: TcpListener,
    addr: SocketAddr,
    current: Arc<Current>,
    collect: Option<(Duration, CollectRules)>,
    scrub: Option<ScrubRules>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("addr", &self.addr)
            .field("tls", &self.current.get().tls.is_some())
            .finish_non_exhaustive()
    }
}

impl Server {
    /// Opens the storage in `config.root` and listens on `addr` (port 0 lets the kernel choose).
    pub async fn bind(addr: SocketAddr, config: Config) -> Result<Server, ServeError> {
        let storage = DiskStorage::open(&config.root)?.durable(config.durable);
        Server::bind_with(addr, config, Arc::new(storage)).await
    }

    /// The same on any storage; `config.root` and `config.durable` are not looked at.
    pub async fn bind_with(
        addr: SocketAddr,
        config: Config,
        storage: Arc<dyn RegistryStorage>,
    ) -> Result<Server, ServeError> {
        let collect = config.collect.clone().filter(|_| !config.read_only);
        let scrub = config.scrub.clone().filter(|_| !config.read_only);
        let live = blocking(move || Live::make(&config, storage, None)).await?;
        let failed = |source| ServeError::Listen { addr, source };
        let listener = TcpListener::bind(addr).await.map_err(failed)?;
        let addr = listener.local_addr().map_err(failed)?;
        Ok(Server {
            listener,
            addr,
            current: Arc::new(Current(RwLock::new(Arc::new(live)))),
            collect,
            scrub,
        })
    }

    /// Where it listens.
    pub fn local_addr(&self) -> SocketAddr {
        self.addr
    }

    /// What gives it another configuration while it runs.
    pub fn reloader(&self) -> Reloader {
        Reloader(Arc::clone(&self.current))
    }

    /// Serves until `shutdown` is ready, then takes no more connections, lets running requests finish for
    /// [`Limits::drain_timeout`], and cuts those that have not.
    pub async fn run(self, shutdown: impl Future<Output = ()>) -> Result<(), ServeError> {
        let graceful = GracefulShutdown::new();
        self.current.registry().start();
        let limits = self.current.get().limits.clone();
        let slots = Arc::new(Semaphore::new(limits.connections_max));
        let addresses = Arc::new(Addresses::default());
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(purge(Arc::clone(&self.current), limits.upload_age_max));
        let current = Arc::clone(&self.current);
        tasks.spawn(sync::schedule::run(move || current.registry()));
        if let Some((every, mut rules)) = self.collect {
            rules.upload_age_max = limits.upload_age_max;
            tasks.spawn(collect_often(Arc::clone(&self.current), every, rules));
        }
        if let Some(rules) = self.scrub {
            tasks.spawn(scrub_often(Arc::clone(&self.current), rules));
        }
        let observer = Arc::clone(&self.current.registry().observer);
        let mut shutdown = pin!(async {
            shutdown.await;
            observer.drain();
            let delay = self.current.get().limits.drain_delay;
            tokio::time::sleep(delay).await;
        });
        loop {
            let (stream, addr, slot) = tokio::select! {
                () = &mut shutdown => break,
                accepted = accept(&self.listener, &slots) => accepted,
            };
            let live = self.current.get();
            let most = live.limits.address_connections_max;
            // One of a proxy's is anybody's.
            let counts = !live.registry.proxies.trusts(addr.ip());
            let counted = counts.then(|| addresses.enter(addr.ip(), most));
            if counted.as_ref().is_some_and(Option::is_none) {
                tracing::debug!(%addr, "too many connections from one address");
                continue;
            }
            let connection = Client {
                live,
                current: Arc::clone(&self.current),
                addr: addr.ip(),
                watcher: graceful.watcher(),
            };
            tasks.spawn(async move {
                connection.serve(stream).await;
                drop((slot, counted));
            });
            while tasks.try_join_next().is_some() {}
        }
        drop(self.listener);
        let patience = self.current.get().limits.drain_timeout;
        if tokio::time::timeout(patience, graceful.shutdown())
            .await
            .is_err()
        {
            tracing::warn!("requests that were still running are cut");
        }
        self.current.registry().upstreams.tasks().stop();
        tasks.shutdown().await;
        let registry = self.current.registry();
        registry.events.finish(patience).await;
        if let Some(tracer) = &registry.tracer {
            tracer.finish(patience).await;
        }
        Ok(())
    }
}

/// A registry that is not served.
pub(crate) async fn prepare(
    config: Config,
    storage: Arc<dyn RegistryStorage>,
) -> Result<Arc<Registry>, ServeError> {
    let live = blocking(move || Live::make(&config, storage, None)).await?;
    Ok(live.registry)
}

/// Runs what blocks on a thread where it harms nobody.
async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> Result<T, ServeError> + Send + 'static,
) -> Result<T, ServeError> {
    let joined = tokio::task::spawn_blocking(call).await;
    joined.unwrap_or_else(|error| std::panic::resume_unwind(error.into_panic()))
}

/// The next connection, once there is room for it.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> (TcpStream, SocketAddr, OwnedSemaphorePermit) {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .expect("the semaphore is never closed");
    loop {
        match listener.accept().await {
            Ok((stream, addr)) => return (stream, addr, slot),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// How many connections each address has.
#[derive(Default)]
struct Addresses(Mutex<BTreeMap<IpAddr, usize>>);

/// One of them, while it lasts.
struct Counted {
    addresses: Arc<Addresses>,
    addr: IpAddr,
}

impl Addresses {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts one more, unless there are `most`.
    fn enter(self: &Arc<Self>, addr: IpAddr, most: usize) -> Option<Counted> {
        let mut counts = self.lock();
        let count = counts.entry(addr).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Counted {
            addresses: Arc::clone(self),
            addr,
        })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.addresses.lock();
        let left = counts.get(&self.addr).map_or(0, |count| count - 1);
        match left {
            0 => counts.remove(&self.addr),
            _ => counts.insert(self.addr, left),
        };
    }
}

/// Drops abandoned uploads, at the start and then daily.
async fn purge(current: Arc<Current>, age: Duration) {
    let mut daily = tokio::time::interval(Duration::from_secs(24 * 60 * 60));
    loop {
        daily.tick().await;
        let registry = current.registry();
        if registry.rules.read_only {
            continue;
        }
        match registry
            .blocking(move |storage| storage.purge_uploads(age))
            .await
        {
            Ok(0) | Err(_) => {}
            Ok(count) => tracing::info!(count, "dropped abandoned uploads"),
        }
    }
}

/// Collects garbage, for the first time after `every`: a server that is restarted often has better things to do.
async fn collect_often(current: Arc<Current>, every: Duration, rules: CollectRules) {
    loop {
        tokio::time::sleep(every).await;
        let registry = current.registry();
        if registry.rules.read_only {
            continue;
        }
        let (watched, mut rules) = (Arc::clone(&registry), rules.clone());
        rules.immutable = Arc::clone(&registry.rules.immutable);
        let began = std::time::Instant::now();
        let collected = tokio::task::spawn_blocking(move || {
            let mut tell = |garbage: &Garbage| {
                if let (Some(audit), Some(event)) = (&watched.audit, Event::collected(garbage)) {
                    audit.write_now(&event);
                }
            };
            let storage = watched.storage.collectable();
            storage.map(|storage| collect_telling(storage, &rules, &mut tell))
        });
        let collected = collected.await;
        let done = match &collected {
            Ok(Some(Ok(collected))) => Some(collected),
            _ => None,
        };
        registry.observer.metrics.collected(done, began.elapsed());
        match collected {
            Ok(Some(Ok(collected))) => {
                registry.quotas.collected();
                tracing::info!(?collected, "collected garbage");
            }
            Ok(Some(Err(error))) => {
                tracing::error!(error = %ErrorChain(&error), "cannot collect garbage");
            }
            Ok(None) => return,
            Err(error) => tracing::error!(%error, "the collection panicked"),
        }
    }
}

/// Says that something is to stop, when it is dropped.
struct Stop(Arc<AtomicBool>);

impl Drop for Stop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Hashes everything again, as long as the server runs.
async fn scrub_often(current: Arc<Current>, rules: ScrubRules) {
    let stop = Stop(Arc::default());
    let scrubber = Arc::new(Scrubber::new(rules, Arc::clone(&stop.0)));
    loop {
        let registry = current.registry();
        let (storage, scrubber) = (Arc::clone(&registry.storage), Arc::clone(&scrubber));
        let watched = Arc::clone(&registry);
        let part = tokio::task::spawn_blocking(move || {
            let Some(storage) = storage.collectable() else {
                return Ok(None);
            };
            let wait = scrubber.wait(storage)?;
            if !wait.is_zero() {
                return Ok(Some((wait, None)));
            }
            let scrubbed = scrubber.pass(storage, &mut |digest| {
                tracing::error!(%digest, "data is damaged");
                if let Some(audit) = &watched.audit {
                    audit.write_now(&Event::damaged(digest));
                }
            })?;
            StorageResult::Ok(Some((Duration::ZERO, Some(scrubbed))))
        });
        let wait = match part.await {
            Ok(Ok(None)) => return,
            Ok(Ok(Some((wait, scrubbed)))) => {
                if let Some(scrubbed) = scrubbed {
                    registry.observer.metrics.scrubbed(&scrubbed);
                    tracing::info!(
                        blobs = scrubbed.blobs,
                        damaged = scrubbed.damaged.len(),
                        "scrubbed"
                    );
                }
                wait
            }
            Ok(Err(error)) => {
                tracing::error!(error = %ErrorChain(&error), "cannot scrub");
                SCRUB_PAUSE
            }
            Err(error) => {
                tracing::error!(%error, "the scrubbing panicked");
                SCRUB_PAUSE
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// What one connection's task needs.
struct Client {
    /// The configuration of the moment it began.
    live: Arc<Live>,
    current: Arc<Current>,
    addr: IpAddr,
    watcher: Watcher,
}

impl Client {
    async fn serve(self, stream: TcpStream) {
        let observer = Arc::clone(&self.live.registry.observer);
        let _open = observer.metrics.connections.one();
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%error, "cannot set TCP_NODELAY");
        }
        let limits = &self.live.limits;
        let header_timeout = limits.header_timeout;
        let connection = Connection::new(stream, limits.pace(), header_timeout);
        match self.live.tls.clone() {
            None => {
                let queue = connection.queue();
                let builder = auto::Builder::new(TokioExecutor::new());
                self.talk(connection, builder, Some(queue), None).await;
            }
            Some(tls) => {
                let handshake = tls.accept(connection);
                match tokio::time::timeout(header_timeout, handshake).await {
                    Ok(Ok(stream)) => {
                        let builder = auto::Builder::new(TokioExecutor::new());
                        // The client has said what it speaks: nothing to wait and guess for.
                        let builder = match stream.get_ref().1.alpn_protocol() {
                            Some(b"h2") => builder.http2_only(),
                            _ => builder.http1_only(),
                        };
                        let shown = stream.get_ref().1.peer_certificates();
                        let shown = shown.and_then(|chain| chain.first());
                        let user = self.live.client_name.zip(shown);
                        let user = user.and_then(|(wanted, shown)| name_of(shown, wanted));
                        self.talk(stream, builder, None, user).await;
                    }
                    Ok(Err(error)) => tracing::debug!(%error, "the TLS handshake failed"),
                    Err(_) => tracing::debug!("the TLS handshake took too long"),
                }
            }
        }
    }

    async fn talk<S>(
        self,
        stream: S,
        mut builder: auto::Builder<TokioExecutor>,
        queue: Option<SendQueue>,
        user: Option<String>,
    ) where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (live, current) = (self.live, self.current);
        let limits = &live.limits;
        let peer = Arc::new(Peer {
            addr: self.addr,
            tls: live.tls.is_some(),
            host: None,
            user,
        });
        let pulse = Arc::new(Pulse::default());
        let beats = Arc::clone(&pulse);
        let service = service_fn(move |request: Request<Incoming>| {
            let (registry, peer) = (current.registry(), Arc::clone(&peer));
            // HTTP/2 interleaves its streams, so placeholders would not come in the queue's order. And its streams can stand
            // still while the connection does not.
            let interleaved = request.version() > http::Version::HTTP_11;
            let queue = queue.clone().filter(|_| !interleaved);
            let pulse = interleaved.then(|| Arc::clone(&beats));
            async move {
                let response = registry.handle(request, queue, peer).await;
                let response = response.map(|body| body.beating(pulse));
                Ok::<Response<Body>, std::convert::Infallible>(response)
            }
        });
        builder
            .http1()
            .timer(TokioTimer::new())
            .max_buf_size(READ_BYTES_MAX)
            .writev(true)
            .header_read_timeout(limits.header_timeout);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(u32::try_from(HEADER_BYTES_MAX).unwrap_or(u32::MAX))
            .keep_alive_interval(limits.header_timeout)
            .keep_alive_timeout(limits.header_timeout);
        let serving = builder.serve_connection(TokioIo::new(stream), service);
        tokio::select! {
            served = self.watcher.watch(serving.into_owned()) => if let Err(error) = served {
                tracing::debug!(%error, "a connection ended early");
            },
            () = pulse.until_stuck(limits.pace()) => {
                tracing::debug!("a connection ended: none of its streams was read");
            }
        }
    }
}

/// The header's value: warn-code 299, no agent, and the text as a quoted string.
fn warning(text: &str) -> Result<HeaderValue, ServeError> {
    let quoted = text.replace('\\', "\\\\").replace('"', "\\\"");
    if quoted.len() > WARNING_BYTES_MAX {
        return Err(ServeError::Warning);
    }
    HeaderValue::from_str(&format!("299 - \"{quoted}\"")).map_err(|_| ServeError::Warning)
}

/// Refuses what cannot be meant.
fn check_upstreams(config: &Config) -> Result<(), ServeError> {
    let wrong = |reason: String| Err(ServeError::Upstreams { reason });
    let all = &config.upstreams;
    if config.read_only && !all.is_empty() {
        return wrong("one that is read-only keeps nothing of them".to_owned());
    }
    for (index, one) in all.iter().enumerate() {
        let before = &all[..index];
        if before.iter().any(|other| other.prefix == one.prefix) {
            return match &one.prefix {
                Some(prefix) => wrong(format!("`{prefix}` is the prefix of two")),
                None => wrong("two have no prefix".to_owned()),
            };
        }
        let twice = one.namespaces.iter().find(|name| {
            let mut others = before.iter().flat_map(|other| &other.namespaces);
            others.any(|other| other == *name)
        });
        if let Some(name) = twice {
            return wrong(format!("`{name}` is the namespace of two"));
        }
    }
    Ok(())
}

/// Refuses what cannot be meant.
fn check_syncs(config: &Config) -> Result<(), ServeError> {
    let wrong = |reason: String| Err(ServeError::Syncs { reason });
    if config.read_only && !config.syncs.is_empty() {
        return wrong("a registry that is read-only takes nothing".to_owned());
    }
    for (index, sync) in config.syncs.iter().enumerate() {
        let name = &sync.name;
        if config.syncs[..index]
            .iter()
            .any(|other| other.name == *name)
        {
            return wrong(format!("`{name}` is the name of two"));
        }
        if !is_name(name) {
            return wrong(format!(
                "`{name}` cannot be its name: give letters, digits, `.`, `_` and `-`, at most 64"
            ));
        }
    }
    Ok(())
}

/// What checks certificates of clients.
fn client_verifier(
    clients: &ClientCertificates,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, ServeError> {
    let failed = |source| ServeError::ClientRoots {
        path: clients.ca.clone(),
        source,
    };
    let mut roots = RootCertStore::empty();
    let found = CertificateDer::pem_file_iter(&clients.ca)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(|source| failed(source.into()))?;
    for certificate in found {
        roots
            .add(certificate)
            .map_err(|source| failed(source.into()))?;
    }
    let builder =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match clients.required {
        true => builder,
        false => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|source| failed(source.into()))
}

fn acceptor(
    files: &TlsFiles,
    clients: Option<&ClientCertificates>,
) -> Result<TlsAcceptor, ServeError> {
    let pem = |path: &Path| {
        let path = path.to_owned();
        move |source| ServeError::Pem { path, source }
    };
    let certificates = CertificateDer::pem_file_iter(&files.cert)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .map_err(pem(&files.cert))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(pem(&files.key))?;
    // Explicit: with a second provider anywhere in the program rustls would refuse to choose, by a panic.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = clients.map(|clients| client_verifier(clients, &provider));
    let verifier = verifier.transpose()?;
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .and_then(|builder| {
            let builder = match verifier {
                Some(verifier) => builder.with_client_cert_verifier(verifier),
                None => builder.with_no_client_auth(),
            };
            builder.with_single_cert(certificates, key)
        });
    let mut config = config.map_err(|source| ServeError::Tls {
        cert: files.cert.clone(),
        key: files.key.clone(),
        source,
    })?;
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}
