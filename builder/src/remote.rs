//! Registries, for code that does not wait: a client and its runtime, made when first needed.
//!
//! A build in which everything is here starts no runtime and reads no credentials.

use std::fmt;
use std::future::Future;
use std::io;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use registry_client::{Client, ClientError, Options};
pub use registry_client::{Downloaded, RemoteFile, Validators};

pub use crate::ops::git::GitSettings;
use crate::solve::cancel::Cancel;

/// How long it may take until a download notices that the build is to end.
const CANCEL_POLL: Duration = Duration::from_millis(50);

/// Makes the client's options: reads credentials and certificates.
pub type MakeOptions = Box<dyn Fn() -> Options + Send + Sync>;

/// A client that is made on first use.
pub struct Remote {
    make_options: MakeOptions,
    started: OnceLock<Started>,
    starting: Mutex<()>,
    git: GitSettings,
    cancel: Option<Cancel>,
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
    /// Somebody wanted the end of it.
    #[error("cancelled")]
    Cancelled,
}

impl Remote {
    /// A client whose options come from `make_options` when they are needed.
    pub fn new(make_options: MakeOptions) -> Remote {
        Remote {
            make_options,
            started: OnceLock::new(),
            starting: Mutex::new(()),
            git: GitSettings::default(),
            cancel: None,
        }
    }

    /// The same, ending whatever it does when `cancel` is set.
    pub fn with_cancel(self, cancel: &Cancel) -> Remote {
        Remote {
            cancel: Some(cancel.clone()),
            ..self
        }
    }

    /// The same, with what `git` may know of the caller's environment.
    pub fn with_git(self, git: GitSettings) -> Remote {
        Remote { git, ..self }
    }

    pub(crate) fn git(&self) -> &GitSettings {
        &self.git
    }

    /// Downloads a file into `out`; `None` if `cancelled` said so meanwhile. `told` is called with the bytes so far and
    /// in all.
    pub(crate) fn download(
        &self,
        file: &RemoteFile,
        out: &std::fs::File,
        told: &dyn Fn(u64, Option<u64>),
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Option<Downloaded>, RemoteError> {
        self.run(|client| async move {
            let cancelled = async {
                while !cancelled() {
                    tokio::time::sleep(CANCEL_POLL).await;
                }
            };
            tokio::select! {
                downloaded = client.download(file, out, told) => downloaded.map(Some),
                () = cancelled => Ok(None),
            }
        })
    }

    /// Runs `job` with the client to its end.
    pub fn run<T, F>(&self, job: impl FnOnce(Client) -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = Result<T, ClientError>>,
    {
        Ok(self.wait(job)??)
    }

    /// Runs `job` with the client, whatever comes of it, unless somebody wants the end of it before; it is dropped then.
    pub fn wait<T, F>(&self, job: impl FnOnce(Client) -> F) -> Result<T, RemoteError>
    where
        F: Future<Output = T>,
    {
        let started = self.started()?;
        let job = job(started.client.clone());
        started.runtime.block_on(async {
            tokio::select! {
                result = job => Ok(result),
                () = self.cancelled() => Err(RemoteError::Cancelled),
            }
        })
    }

    /// Waits until somebody wants the end of it.
    async fn cancelled(&self) {
        let Some(cancel) = &self.cancel else {
            return std::future::pending().await;
        };
        while !cancel.is_cancelled() {
            tokio::time::sleep(CANCEL_POLL).await;
        }
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
