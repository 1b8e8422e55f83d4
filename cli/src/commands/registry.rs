//! `registry serve`, and what else is done to registries.

mod bucket;
mod collection;

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use registry_server::{Config, ServeError, Server, TlsFiles};
use tokio::signal::unix::{SignalKind, signal};

use crate::args::ServeArgs;
pub use collection::{gc, stats, verify};

use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// Serves until SIGINT or SIGTERM, then lets running requests finish.
pub fn serve(context: &Context, args: &ServeArgs) -> Result<ExitCode, CliError> {
    let addr = address(&args.addr)?;
    let folder = match &args.folder {
        Some(folder) => folder.clone(),
        // Not looked at.
        None if args.s3.is_some() => PathBuf::new(),
        None => context.root()?.join("registry"),
    };
    let mut config = Config::new(folder);
    config.htpasswd.clone_from(&args.htpasswd);
    config.read_only = args.read_only;
    config.warning.clone_from(&args.warning);
    if args.gc_every.is_some() && args.s3.is_some() {
        return Err(
            CliError::new(Kind::Usage, "garbage in a bucket cannot be collected yet")
                .hint("leave --gc-every out"),
        );
    }
    config.collect = args
        .gc_every
        .map(|every| (every, collection::rules(&args.collect, false)));
    if let (Some(cert), Some(key)) = (args.tls_cert.clone(), args.tls_key.clone()) {
        config.tls = Some(TlsFiles { cert, key });
    }
    let scheme = if config.tls.is_some() {
        "https"
    } else {
        "http"
    };
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .blame(Kind::Environment)?;
    let bucket = match &args.s3 {
        Some(text) => Some(bucket::open(context, &runtime, text)?),
        None => None,
    };
    runtime.block_on(async {
        let mut interrupt = signal(SignalKind::interrupt()).blame(Kind::Environment)?;
        let mut terminate = signal(SignalKind::terminate()).blame(Kind::Environment)?;
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
        server.run(stop).await?;
        Ok(ExitCode::SUCCESS)
    })
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
