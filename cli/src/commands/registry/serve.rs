//! `registry serve`: flags and the configuration file put together, served, and read again when they change.

use std::convert::Infallible;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use registry_server::scrub::ScrubRules;
use registry_server::{Config, Reloader, ServeError, Server, TlsFiles};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::keys::KeyFetcher;
use super::{access_log, bucket, collection, sync, traces, upstream, webhook};
use crate::args::ServeArgs;
use crate::config::serve::{ServeConfig, usual_scrub};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Where the registry listens unless it is told.
const USUAL_ADDR: &str = "127.0.0.1:5000";

/// How often the files of a configuration are looked at.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// How long what still blocks is waited for at the end.
const PATIENCE_AT_THE_END: Duration = Duration::from_secs(2);

/// What flags and file say together.
pub(super) struct Settings {
    addr: String,
    pub(super) place: Place,
    /// Whether clients are sent to the bucket for blobs.
    redirect: bool,
    pub(super) config: Config,
}

/// Where a registry's data is.
#[derive(PartialEq, Eq)]
pub(super) enum Place {
    Folder(PathBuf),
    /// As `--s3` has it.
    Bucket(String),
}

impl Settings {
    /// Reads the file and lets flags go before it. `context` is longshore's own, whose folder is the usual place.
    pub(super) fn read(context: &Context, args: &ServeArgs) -> Result<Settings, CliError> {
        let file = match &args.file {
            Some(path) => ServeConfig::read(path)?,
            None => ServeConfig::default(),
        };
        let place = match (&args.folder, &args.s3, file.root, file.s3) {
            (Some(folder), ..) => Place::Folder(folder.clone()),
            (_, Some(bucket), ..) => Place::Bucket(bucket.clone()),
            (.., Some(folder), _) => Place::Folder(folder),
            (.., Some(bucket)) => Place::Bucket(bucket),
            _ => Place::Folder(context.root()?.join("registry")),
        };
        let mut config = file.server;
        if let Place::Folder(folder) = &place {
            config.root.clone_from(folder);
        }
        config.spool = Some(context.spool_dir());
        config.read_only |= args.read_only;
        config.collect = match args.gc_every {
            Some(every) => Some((every, collection::rules(&args.collect, false))),
            None => file.collect,
        };
        config.scrub = match args.scrub_every {
            Some(every) => Some(ScrubRules {
                every,
                ..file.scrub.unwrap_or_else(usual_scrub)
            }),
            None => file.scrub,
        };
        let redirect = args.redirect || file.redirect;
        if redirect && !matches!(place, Place::Bucket(_)) {
            let message = "clients can be sent to a bucket for blobs, not to a folder";
            return Err(
                CliError::new(Kind::Usage, message).hint("leave redirect out, or give --s3")
            );
        }
        if args.htpasswd.is_some() {
            config.auth.htpasswd.clone_from(&args.htpasswd);
        }
        if args.warning.is_some() {
            config.warning.clone_from(&args.warning);
        }
        if let (Some(cert), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) {
            config.tls = Some(TlsFiles { cert, key });
        }
        config.metrics |= args.metrics;
        config.page = args.page.unwrap_or(config.page);
        if let Some(path) = args.access_log.as_ref().or(file.access_log.as_ref()) {
            let log = access_log::JsonLog::open(&context.ui, path)?;
            config.access_log = Some(Arc::new(log));
        }
        if !config.auth.issuers.is_empty() {
            config.fetch = Some(Arc::new(KeyFetcher::new(context)?));
        }
        config.syncs = sync::syncs(context, &file.syncs)?;
        config.traces = traces::traces(context, file.traces.as_ref())?;
        config.webhooks = webhook::webhooks(context, &file.webhooks)?;
        for said in file.upstreams.iter().chain(&args.upstreams) {
            let through = upstream::pull_through(context, said)?;
            config.upstreams.push(through);
        }
        let addr = args.addr.clone().or(file.addr);
        Ok(Settings {
            addr: addr.unwrap_or_else(|| USUAL_ADDR.to_owned()),
            place,
            redirect,
            config,
        })
    }
}

/// Serves until SIGINT or SIGTERM, then lets running requests finish.
pub fn serve(context: &Context, args: &ServeArgs) -> Result<ExitCode, CliError> {
    // What `--config` names is the server's.
    let context = &context.with_usual_config();
    let settings = Settings::read(context, args)?;
    let config = settings.config.clone();
    let addr = address(&settings.addr)?;
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .blame(Kind::Environment)?;
    let bucket = match &settings.place {
        Place::Bucket(text) => Some(bucket::open(context, &runtime, text, settings.redirect)?),
        Place::Folder(_) => None,
    };
    let ended = runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).blame(Kind::Environment)?;
        let mut terminate = signal(SignalKind::terminate()).blame(Kind::Environment)?;
        let hangup = signal(SignalKind::hangup()).blame(Kind::Environment)?;
        let server = match bucket {
            Some(bucket) => Server::bind_with(addr, config, Arc::new(bucket)).await?,
            None => Server::bind(addr, config).await?,
        };
        // Data, not a remark: with port 0 this line is how a script learns where to push to.
        let addr = server.local_addr();
        context
            .ui
            .line(&format!("listening on {scheme}://{addr}"))?;
        let stop = async move {
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        };
        let reloader = server.reloader();
        tokio::select! {
            ended = server.run(stop) => ended?,
            never = reload_often(context, args, settings, &reloader, hangup) => match never {},
        }
        Ok(ExitCode::SUCCESS)
    });
    // A collection may end anywhere: nobody waits for one.
    runtime.shutdown_timeout(PATIENCE_AT_THE_END);
    ended
}

/// Gives the server its configuration again on SIGHUP, and when one of the files that say it changed. One that cannot be
/// used is told, and nothing else.
async fn reload_often(
    context: &Context,
    args: &ServeArgs,
    first: Settings,
    reloader: &Reloader,
    mut hangup: Signal,
) -> Infallible {
    let mut files = files(args, &first.config);
    let mut seen = stamps(&files);
    loop {
        tokio::select! {
            _ = hangup.recv() => {}
            () = tokio::time::sleep(LOOK_EVERY) => {
                if stamps(&files) == seen {
                    continue;
                }
            }
        }
        // Taken before the files are read: a change meanwhile is another one.
        seen = stamps(&files);
        let applied = match Settings::read(context, args) {
            Ok(settings) => {
                if settings.addr != first.addr || settings.place != first.place {
                    context.ui.warning(
                        "the registry listens where it did and stores where it did until it is started again",
                    );
                }
                files = self::files(args, &settings.config);
                let read = seen.first().copied();
                seen = stamps(&files);
                if let (Some(read), Some(_)) = (read, &args.file) {
                    seen[0] = read;
                }
                let applied = reloader.apply(settings.config).await;
                applied.map_err(CliError::from)
            }
            Err(error) => Err(error),
        };
        match applied {
            Ok(()) => tracing::info!("the configuration was read again"),
            Err(error) => {
                context
                    .ui
                    .warning("the configuration is not used, and the one before still is:");
                context.ui.error(&error);
            }
        }
    }
}

/// The files that say how to serve, the configuration itself first.
fn files(args: &ServeArgs, config: &Config) -> Vec<PathBuf> {
    let named = config.files().into_iter().map(Path::to_owned);
    args.file.clone().into_iter().chain(named).collect()
}

/// What tells whether a file is still the same: its place, size and times.
type Stamp = (u64, u64, u64, i64, i64, i64);

fn stamps(files: &[PathBuf]) -> Vec<Option<Stamp>> {
    let stamp = |path: &PathBuf| {
        let file = std::fs::metadata(path).ok()?;
        let changed = (file.ctime(), file.ctime_nsec());
        Some((
            file.dev(),
            file.ino(),
            file.len(),
            file.mtime_nsec(),
            changed.0,
            changed.1,
        ))
    };
    files.iter().map(stamp).collect()
}

/// `host:port`, or docker's `:port` for every address of this machine.
fn address(text: &str) -> Result<SocketAddr, CliError> {
    let full = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    let mut found = full.to_socket_addrs().map_err(|source| {
        CliError::new(Kind::Usage, format!("cannot listen on `{text}`: {source}"))
            .hint("give an address and a port, such as 127.0.0.1:5000")
    })?;
    found
        .next()
        .ok_or_else(|| CliError::new(Kind::Usage, format!("`{text}` is no address")))
}

impl From<ServeError> for CliError {
    fn from(error: ServeError) -> CliError {
        let hint = match &error {
            ServeError::Listen { source, .. } if source.kind() == std::io::ErrorKind::AddrInUse => {
                Some("another server listens there: choose a port with --addr, or 0 for a free one")
            }
            _ => None,
        };
        let error = CliError::new(Kind::Environment, error);
        match hint {
            Some(hint) => error.hint(hint),
            None => error,
        }
    }
}
