//! A registry for tests of other crates: runs on its own thread, stops when it is dropped.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::serve::{Config, Reloader, ServeError, Server};
use crate::storage::RegistryStorage;
use crate::storage::memory::MemoryStorage;

/// A registry that runs, on loopback and a port that the kernel chose.
#[derive(Debug)]
pub struct RunningServer {
    /// Where it listens.
    pub addr: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    reloader: Reloader,
    runtime: Handle,
}

impl RunningServer {
    /// A registry in a folder, which need not exist and is not removed at the end. For tests: a machine that
    /// crashes may lose what was pushed.
    pub fn start(root: &Path) -> Result<RunningServer, ServeError> {
        let mut config = Config::new(root);
        config.durable = false;
        RunningServer::start_with(config)
    }

    /// A registry in memory.
    pub fn start_in_memory() -> Result<RunningServer, ServeError> {
        RunningServer::launch(Config::new(""), Some(Arc::new(MemoryStorage::default())))
    }

    /// A registry with this configuration.
    pub fn start_with(config: Config) -> Result<RunningServer, ServeError> {
        RunningServer::launch(config, None)
    }

    /// A registry on this storage; `config.root` and `config.durable` are not looked at.
    pub fn start_on(
        config: Config,
        storage: Arc<dyn RegistryStorage>,
    ) -> Result<RunningServer, ServeError> {
        RunningServer::launch(config, Some(storage))
    }

    /// `host:port`
    pub fn host(&self) -> String {
        self.addr.to_string()
    }

    /// Gives it another configuration, as [`Reloader::apply`] does.
    pub fn reload(&self, config: Config) -> Result<(), ServeError> {
        self.runtime.block_on(self.reloader.apply(config))
    }

    fn launch(
        config: Config,
        storage: Option<Arc<dyn RegistryStorage>>,
    ) -> Result<RunningServer, ServeError> {
        let (started, has_started) = mpsc::channel();
        let (stop, stopped) = oneshot::channel::<()>();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .expect("a thread can be started");
            runtime.block_on(async move {
                let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
                let server = match storage {
                    Some(storage) => Server::bind_with(addr, config, storage).await,
                    None => Server::bind(addr, config).await,
                };
                match server {
                    Ok(server) => {
                        // The caller waits for exactly this message.
                        let runtime = Handle::current();
                        let parts = (server.local_addr(), server.reloader(), runtime);
                        let _ = started.send(Ok(parts));
                        let ended = server
                            .run(async {
                                // An error means that the fixture is gone, which ends the server as well.
                                let _ = stopped.await;
                            })
                            .await;
                        if let Err(error) = ended {
                            tracing::error!(%error, "the registry ended");
                        }
                    }
                    Err(error) => {
                        let _ = started.send(Err(error));
                    }
                }
            });
        });
        let (addr, reloader, runtime) = has_started
            .recv()
            .expect("the thread answers before it ends")?;
        Ok(RunningServer {
            addr,
            stop: Some(stop),
            thread: Some(thread),
            reloader,
            runtime,
        })
    }
}

impl Drop for RunningServer {
    fn drop(&mut self) {
        if let Some(stop) = self.stop.take() {
            // It may have ended by itself.
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
