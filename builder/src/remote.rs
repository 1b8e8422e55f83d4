//! Registries, for code that does not wait: a client and its runtime, made when first needed.
//!
//! A build in which everything is here starts no runtime and reads no credentials.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};

use registry_client::{Client, ClientError, Options};

/// Makes the client's options: reads credentials and certificates.
pub type MakeOptions = Box<dyn Fn() -> Options + Send + Sync>;

/// A client that is made on first use.
pub struct Remote {
    make_options: MakeOptions,
    started: OnceLock<Started>,
    starting: Mutex<()>,
}

struct Started {
    runtime: tokio::runtime::Runtime,
    client: Client,
}

/// Why no request could be made, or how one failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RemoteError {
    /// No threads or descriptors for the runtime.
    #[error("cannot start the network runtime")]
    Runtime(#[source] io::Error),
    /// The registry, or the way there.
    #[error(transparent)]
    Client(#[from] ClientError),
}

impl Remote {
    /// A client whose options come from `make_options` when they are needed.
    pub fn new(make_options: MakeOptions) -> Remote {
        Remote {
            make_options,
            started: OnceLock::new(),
            starting: Mutex::new(()),
        }
    }

    /// Runs `job` with the client to its end.
    pub fn run<T, F>(&self, job: impl FnOnce(Client) -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        let started = self.started()?;
        Ok(started.runtime.block_on(job(started.client.clone()))?)
    }

    /// The client and a handle to its runtime, for code that bridges streams to threads.
    pub fn client(&self) -> Result<(Client, tokio::runtime::Handle), RemoteError> {
        let started = self.started()?;
        Ok((started.client.clone(), started.runtime.handle().clone()))
    }

    fn started(&self) -> Result<&Started, RemoteError> {
        if let Some(started) = self.started.get() {
            return Ok(started);
        }
        let _one = self.starting.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(started) = self.started.get() {
            return Ok(started);
        }
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("network")
            .enable_all()
            .build()
            .map_err(RemoteError::Runtime)?;
        let client = Client::new((self.make_options)())?;
        Ok(self.started.get_or_init(|| Started { runtime, client }))
    }
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Remote")
            .field("started", &self.started.get().is_some())
            .finish_non_exhaustive()
    }
}
