//! A small S3 server in this process, with a front door that can be told to misbehave.
//!
//! `s3s-fs` looks at conditions and writes one after the other, but not as one: the front door lets requests that
//! change something in alone. It keeps a file for each object whose name is the object's in base64, so names are short.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use registry_client::BucketOptions;
use registry_server::storage::StorageError;
use registry_server::storage::objects::{ObjectStorage, Pace};
use registry_server::{Config, RunningServer};
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::{RwLock, watch};

use crate::client::Client;

/// What becomes of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It is answered.
    Pass,
    /// It is carried out, and half of the answer's body is sent as if it were all of it.
    Half,
    /// It is carried out, and the answer is lost: a 403, which nobody sends again.
    Lost,
    /// It is carried out, and the answer is one upon which everybody asks again.
    Busy,
    /// It is refused, with this status.
    Refused(u16),
    /// Nothing is answered until something else is decided.
    Silence,
}

type Decide = dyn Fn(&Method, &str) -> Fate + Send + Sync;

/// The front door: what it does with requests.
pub(crate) struct Door {
    conditions: bool,
    /// By method and path with query; asked for every request, one after the other.
    decide: Mutex<Box<Decide>>,
    /// Counts what was decided.
    decisions: watch::Sender<u64>,
    /// Objects in one answer to a list, where that is not the usual thousand.
    page: AtomicUsize,
    /// Every request that came, as `METHOD path?query`.
    log: Mutex<Vec<String>>,
}

impl Door {
    fn open() -> Door {
        Door {
            conditions: true,
            decide: Mutex::new(Box::new(|_, _| Fate::Pass)),
            decisions: watch::Sender::new(0),
            page: AtomicUsize::new(0),
            log: Mutex::default(),
        }
    }

    /// As stores do that do not know conditions.
    pub(crate) fn ignoring_conditions() -> Door {
        Door {
            conditions: false,
            ..Door::open()
        }
    }

    /// The request, for as many objects as are listed at once here.
    fn paged(&self, request: &mut Request<Incoming>) {
        let page = self.page.load(Ordering::SeqCst);
        let uri = request.uri().to_string();
        if page > 0 && uri.contains("list-type=2") {
            *request.uri_mut() = format!("{uri}&max-keys={page}").parse().unwrap();
        }
    }

    /// What becomes of a request, and what tells that something else was decided.
    fn fate(&self, request: &Request<Incoming>) -> (Fate, watch::Receiver<u64>) {
        let path = request
            .uri()
            .path_and_query()
            .map_or("", |path| path.as_str());
        let mut log = self.log.lock().unwrap_or_else(PoisonError::into_inner);
        log.push(format!("{} {path}", request.method()));
        let decide = self.decide.lock().unwrap_or_else(PoisonError::into_inner);
        let fate = decide(request.method(), path);
        (fate, self.decisions.subscribe())
    }
}

/// An S3 server on a folder, on loopback; ends with its runtime.
pub(crate) struct Bucket {
    pub(crate) runtime: Runtime,
    pub(crate) endpoint: String,
    door: Arc<Door>,
    /// How many clients are connected.
    connected: watch::Receiver<usize>,
    folder: tempfile::TempDir,
    keys: Option<(String, String, Option<String>)>,
}

impl Bucket {
    pub(crate) fn start() -> Bucket {
        Bucket::behind(Door::open())
    }

    pub(crate) fn behind(door: Door) -> Bucket {
        Bucket::launch(door, None)
    }

    /// One that wants every request signed.
    pub(crate) fn with_keys() -> Bucket {
        Bucket::launch(Door::open(), Some(("id", "secret")))
    }

    fn launch(door: Door, keys: Option<(&str, &str)>) -> Bucket {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("images")).unwrap();
        let files = s3s_fs::FileSystem::new(folder.path()).unwrap();
        let mut builder = S3ServiceBuilder::new(files);
        if let Some((id, secret)) = keys {
            builder.set_auth(s3s::auth::SimpleAuth::from_single(id, secret));
        }
        let service = builder.build();
        let runtime = Runtime::new().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let door = Arc::new(door);
        let (count, connected) = watch::channel(0);
        runtime.spawn(serve(listener, service, Arc::clone(&door), count));
        Bucket {
            runtime,
            endpoint,
            door,
            connected,
            folder,
            keys: keys.map(|(id, secret)| (id.to_owned(), secret.to_owned(), None)),
        }
    }

    /// Decides what becomes of requests from now on.
    pub(crate) fn decide(&self, decide: impl Fn(&Method, &str) -> Fate + Send + Sync + 'static) {
        let mut decided = self.door.decide.lock().unwrap();
        *decided = Box::new(decide);
        self.door.decisions.send_modify(|count| *count += 1);
    }

    /// Lists come in pages of so many objects from now on.
    pub(crate) fn lists_in_pages_of(&self, count: usize) {
        self.door.page.store(count, Ordering::SeqCst);
    }

    /// Forgets, and returns, the requests that came so far.
    pub(crate) fn requests(&self) -> Vec<String> {
        std::mem::take(&mut self.door.log.lock().unwrap())
    }

    pub(crate) fn storage(&self) -> Result<ObjectStorage, StorageError> {
        self.open().map(|(storage, _)| storage)
    }

    /// A registry that sends clients here for blobs.
    pub(crate) fn redirecting_replica(&self) -> RunningServer {
        let (storage, bucket) = self.open().unwrap();
        let storage = Arc::new(storage.redirecting(bucket.signer()));
        RunningServer::start_on(Config::new(""), storage).unwrap()
    }

    /// Returns when every connection that anybody has begun so far is closed, and what came over it is done with.
    pub(crate) fn until_nobody_is_connected(&self) {
        // Connections are taken in order: once this one was, all before it are counted.
        let addr = self.endpoint.trim_start_matches("http://").parse().unwrap();
        drop(Client::new(addr).head_of("/"));
        let mut connected = self.connected.clone();
        let none = connected.wait_for(|count| *count == 0);
        drop(self.runtime.block_on(none).unwrap());
    }

    fn open(&self) -> Result<(ObjectStorage, registry_client::Bucket), StorageError> {
        self.open_with(registry_client::Options::default())
    }

    /// A registry that waits no longer than this for the bucket.
    pub(crate) fn impatient_replica(&self, patience: Duration) -> RunningServer {
        let mut options = registry_client::Options::default();
        options.timeouts.idle = patience;
        let (storage, _) = self.open_with(options).unwrap();
        RunningServer::start_on(Config::new(""), Arc::new(storage)).unwrap()
    }

    fn open_with(
        &self,
        options: registry_client::Options,
    ) -> Result<(ObjectStorage, registry_client::Bucket), StorageError> {
        let client = registry_client::Client::new(options).unwrap();
        let options = BucketOptions {
            bucket: "images".to_owned(),
            region: None,
            endpoint: Some(self.endpoint.clone()),
            credentials: self.keys.clone(),
            path_style: true,
        };
        let bucket = self.runtime.block_on(client.bucket(&options)).unwrap();
        let opened = ObjectStorage::open(bucket.store(), "", self.runtime.handle().clone());
        opened.map(|storage| (storage, bucket))
    }

    /// A registry of its own on the bucket.
    pub(crate) fn replica(&self) -> RunningServer {
        let storage = Arc::new(self.storage().unwrap());
        RunningServer::start_on(Config::new(""), storage).unwrap()
    }

    /// The same with other times.
    pub(crate) fn paced_replica(&self, pace: Pace) -> RunningServer {
        let storage = Arc::new(self.storage().unwrap().paced(pace));
        RunningServer::start_on(Config::new(""), storage).unwrap()
    }

    /// Where its objects are.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    pub(crate) fn file(&self, key: &str) -> PathBuf {
        self.root().join("docker/registry/v2").join(Path::new(key))
    }
}

async fn serve(
    listener: TcpListener,
    service: S3Service,
    door: Arc<Door>,
    connected: watch::Sender<usize>,
) {
    let alone = Arc::new(RwLock::new(()));
    loop {
        let Ok((stream, _)) = listener.accept().await else {
            return;
        };
        let (service, door, alone) = (service.clone(), Arc::clone(&door), Arc::clone(&alone));
        let handle = service_fn(move |mut request: Request<Incoming>| {
            let (service, door, alone) = (service.clone(), Arc::clone(&door), Arc::clone(&alone));
            async move {
                if !door.conditions {
                    forget_conditions(request.headers_mut());
                }
                let (fate, mut decisions) = door.fate(&request);
                door.paged(&mut request);
                match fate {
                    Fate::Refused(status) => return Ok(refusal(status)),
                    Fate::Silence => {
                        // The end of the bucket is one, too.
                        let _ = decisions.changed().await;
                        return Ok(refusal(403));
                    }
                    Fate::Pass | Fate::Half | Fate::Lost | Fate::Busy => {}
                }
                let request = request.map(s3s::Body::from);
                let answer = if matches!(*request.method(), Method::GET | Method::HEAD) {
                    let _shared = alone.read().await;
                    service.call(request).await
                } else {
                    let _alone = alone.write().await;
                    service.call(request).await
                };
                let answer = answer.expect("s3s answers whatever it is asked");
                Ok::<_, Infallible>(match fate {
                    Fate::Half => half(answer).await,
                    Fate::Lost => refusal(403),
                    Fate::Busy => refusal(503),
                    _ => answer,
                })
            }
        });
        connected.send_modify(|count| *count += 1);
        let connected = connected.clone();
        tokio::spawn(async move {
            let connections = auto::Builder::new(TokioExecutor::new());
            // A client that hangs up is no concern of a server.
            let _ = connections
                .serve_connection(TokioIo::new(stream), handle)
                .await;
            connected.send_modify(|count| *count -= 1);
        });
    }
}

fn refusal(status: u16) -> Response<s3s::Body> {
    let mut answer = Response::new(s3s::Body::empty());
    *answer.status_mut() = StatusCode::from_u16(status).unwrap();
    answer
}

async fn half(answer: Response<s3s::Body>) -> Response<s3s::Body> {
    let (mut head, body) = answer.into_parts();
    let bytes: Bytes = body.collect().await.unwrap().to_bytes();
    let bytes = bytes.slice(..bytes.len() / 2);
    head.headers.remove(header::TRANSFER_ENCODING);
    head.headers
        .insert(header::CONTENT_LENGTH, bytes.len().into());
    let body = s3s::Body::http_body(Full::new(bytes).map_err(|never: Infallible| match never {}));
    Response::from_parts(head, body)
}

fn forget_conditions(headers: &mut HeaderMap) {
    headers.remove(header::IF_MATCH);
    headers.remove(header::IF_NONE_MATCH);
}
