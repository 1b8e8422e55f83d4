//! Events: endpoints that are told what happened, by HTTP, as often as it takes.
//!
//! ```text
//! answer ─► RegistryEvent ─► queue of each webhook that wants it ─► worker ─ SendEvent (an HTTP client, not ours) ─► endpoint
//! ```
//!
//! | file | part |
//! |---|---|
//! | this | [`Webhook`], [`SendEvent`]; who is told of what |
//! | [`event`] | what happened |
//! | `events/envelope` | that as CloudEvents or as CNCF distribution tells it, and its signature; pure |
//! | `events/queue` | what waits: on disk, or in memory |
//! | `events/worker` | one endpoint: one event after the other, again until it was taken or is too old |
//!
//! Invariants: an event is in its queues before its request is answered; no request waits for an endpoint, and no endpoint for
//! another. `docs/reference/webhooks.md` is the users' page.

mod envelope;
pub mod event;
mod queue;
mod worker;

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use store::oci::pattern::matches;
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};

use self::event::{EventAction, EventObject, RegistryEvent};
use self::queue::Queue;
use crate::metrics::{Counter, Text};
use crate::storage::{RegistryStorage, StorageError};

/// Folder of the storage that queues are in.
const FOLDER: &str = "_webhooks";

/// How an endpoint wants its events.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum EventFormat {
    /// CloudEvents 1.0, in structured mode.
    #[default]
    CloudEvents,
    /// The envelope of CNCF distribution's notifications.
    Docker,
}

/// What events are signed with; never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// These bytes.
    pub fn new(bytes: impl Into<Vec<u8>>) -> Secret {
        Secret(bytes.into())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// An event as it is sent, to wherever the sender knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// `Content-Type` first.
    pub headers: Vec<(&'static str, String)>,
    /// JSON.
    pub body: Bytes,
}

/// Why an endpoint did not take an event.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// It answered with something else than 2xx.
    #[error("it answers {status}")]
    Refused {
        /// What it answered with.
        status: u16,
        /// When it wants to be asked again.
        retry_after: Option<Duration>,
    },
    /// It did not answer.
    #[error("it cannot be reached: {reason}")]
    Unreachable {
        /// What happened.
        reason: String,
    },
    /// It did not answer in time.
    #[error("no answer in {} ms", timeout.as_millis())]
    Late {
        /// How long it had.
        timeout: Duration,
    },
}

impl SendError {
    /// Whether the endpoint says that it is this event that it will never take.
    fn is_final(&self) -> bool {
        // Others may be a receiver that is being set up: no route yet, or another secret.
        matches!(
            self,
            SendError::Refused {
                status: 400 | 413 | 415 | 422,
                ..
            }
        )
    }
}

/// Sends to one endpoint. It follows no redirects, and reads no more of an answer than it has to.
pub trait SendEvent: Send + Sync + fmt::Debug {
    /// Sends once; `Ok` is a 2xx.
    fn send(&self, message: Message) -> BoxFuture<'_, Result<(), SendError>>;
}

/// An endpoint, and of what it is told how.
#[derive(Clone, Debug)]
pub struct Webhook {
    /// What it is called in logs, in metrics, and by its queue: letters, digits, `.`, `_` and `-`.
    pub name: String,
    /// What reaches it.
    pub sender: Arc<dyn SendEvent>,
    /// The form.
    pub format: EventFormat,
    /// What it is told of.
    pub actions: BTreeSet<EventAction>,
    /// Whether it is told of pushed, pulled and deleted blobs, too.
    pub blobs: bool,
    /// In which repositories, by pattern.
    pub repositories: Vec<String>,
    /// What its events are signed with.
    pub secret: Option<Secret>,
    /// What this registry is called there.
    pub source: String,
    /// How long one attempt may take.
    pub timeout: Duration,
    /// Wait after a failed attempt; it doubles from there.
    pub backoff: Duration,
    /// The longest wait.
    pub backoff_max: Duration,
    /// An event that was not taken is given up when it is older.
    pub give_up: Duration,
    /// Events that wait; more are left out.
    pub waiting_max: usize,
    /// Files that were read for this.
    pub files: Vec<PathBuf>,
}

impl Webhook {
    /// One that is told of all that is pushed and deleted, with the usual patience.
    pub fn new(name: impl Into<String>, sender: Arc<dyn SendEvent>) -> Webhook {
        Webhook {
            name: name.into(),
            sender,
            format: EventFormat::default(),
            actions: [EventAction::Push, EventAction::Delete].into(),
            blobs: false,
            repositories: vec!["*".to_owned()],
            secret: None,
            source: "longshore-registry".to_owned(),
            timeout: Duration::from_secs(10),
            backoff: Duration::from_secs(1),
            backoff_max: Duration::from_secs(5 * 60),
            give_up: Duration::from_secs(24 * 60 * 60),
            waiting_max: 10_000,
            files: Vec::new(),
        }
    }

    fn wants(&self, event: &RegistryEvent) -> bool {
        let mut patterns = self.repositories.iter();
        // Who asks for mounts asks for blobs.
        let object =
            self.blobs || event.object != EventObject::Blob || event.action == EventAction::Mount;
        object
            && self.actions.contains(&event.action)
            && patterns.any(|pattern| matches(pattern, &event.repository))
    }
}

/// Why no events can be told.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EventsError {
    /// Queues are found by their names.
    #[error("`{name}` is the name of two webhooks")]
    Twice {
        /// The name.
        name: String,
    },
    /// A name that is no file's.
    #[error(
        "`{name}` cannot be a webhook's name: give letters, digits, `.`, `_` and `-`, at most 64"
    )]
    Name {
        /// The name.
        name: String,
    },
    /// The queue cannot be kept.
    #[error("cannot keep the events of webhook `{name}`")]
    Queue {
        /// The webhook.
        name: String,
        /// Why.
        source: StorageError,
    },
}

/// One endpoint while the server runs; another configuration changes what is in it.
#[derive(Debug)]
struct Endpoint {
    name: String,
    settings: watch::Sender<Arc<Webhook>>,
    queue: Queue,
    /// Whether the server is about to end.
    ending: watch::Sender<bool>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Counts {
    delivered: Counter,
    given_up: Counter,
    left_out: Counter,
    failed_attempts: Counter,
}

/// Workers, by the names of their webhooks.
#[derive(Debug, Default)]
struct Workers {
    tasks: JoinSet<()>,
    running: Vec<(Arc<Endpoint>, AbortHandle)>,
}

/// All endpoints of a configuration.
#[derive(Debug, Default)]
pub(crate) struct Events {
    endpoints: Vec<(Arc<Endpoint>, Arc<Webhook>)>,
    /// Shared with the configurations before.
    workers: Arc<Mutex<Workers>>,
}

impl Events {
    /// Opens the queues; those that are open already go on. Nothing is sent before [`Events::start`]. Blocks.
    pub(crate) fn open(
        webhooks: &[Webhook],
        storage: &dyn RegistryStorage,
        before: Option<&Events>,
    ) -> Result<Events, EventsError> {
        let folder = storage.local_folder(FOLDER);
        let mut endpoints: Vec<(Arc<Endpoint>, Arc<Webhook>)> = Vec::new();
        for webhook in webhooks {
            let name = || webhook.name.clone();
            if endpoints
                .iter()
                .any(|(known, _)| known.name == webhook.name)
            {
                return Err(EventsError::Twice { name: name() });
            }
            if !is_name(&webhook.name) {
                return Err(EventsError::Name { name: name() });
            }
            let known = before.iter().flat_map(|before| &before.endpoints);
            let mut known = known.map(|(endpoint, _)| endpoint);
            let endpoint = match known.find(|known| known.name == webhook.name) {
                Some(known) => Arc::clone(known),
                None => {
                    let folder = folder.as_ref().map(|folder| folder.join(&webhook.name));
                    let queue = Queue::open(folder).map_err(|source| EventsError::Queue {
                        name: name(),
                        source,
                    })?;
                    Arc::new(Endpoint {
                        name: name(),
                        settings: watch::Sender::new(Arc::new(webhook.clone())),
                        queue,
                        ending: watch::Sender::new(false),
                        counts: Counts::default(),
                    })
                }
            };
            endpoints.push((endpoint, Arc::new(webhook.clone())));
        }
        Ok(Events {
            endpoints,
            workers: before.map_or_else(Arc::default, |before| Arc::clone(&before.workers)),
        })
    }

    /// Sends from now on, by these settings. Those that are no endpoints any more are told nothing from here on.
    pub(crate) fn start(&self) {
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        let workers = &mut *workers;
        workers.running.retain(|(running, task)| {
            let mut endpoints = self.endpoints.iter();
            let stays = endpoints.any(|(endpoint, _)| Arc::ptr_eq(endpoint, running));
            if !stays {
                task.abort();
            }
            stays
        });
        for (endpoint, settings) in &self.endpoints {
            endpoint.settings.send_replace(Arc::clone(settings));
            let mut running = workers.running.iter();
            if !running.any(|(running, _)| Arc::ptr_eq(running, endpoint)) {
                let task = workers.tasks.spawn(worker::run(Arc::clone(endpoint)));
                workers.running.push((Arc::clone(endpoint), task));
            }
        }
        while workers.tasks.try_join_next().is_some() {}
    }

    /// Lets workers send what waits until something fails, for so long, and ends them.
    pub(crate) async fn finish(&self, patience: Duration) {
        let mut tasks = {
            let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
            for (endpoint, _) in workers.running.drain(..) {
                endpoint.ending.send_replace(true);
            }
            std::mem::take(&mut workers.tasks)
        };
        let all = async { while tasks.join_next().await.is_some() {} };
        if tokio::time::timeout(patience, all).await.is_err() {
            tracing::debug!("webhooks were cut");
        }
        tasks.shutdown().await;
        for (endpoint, _) in &self.endpoints {
            let (left, lasts) = (endpoint.queue.len(), endpoint.queue.lasts());
            if left > 0 && !lasts {
                tracing::error!(webhook = endpoint.name, left, "events are lost");
            }
        }
    }

    /// Whether anybody would be told of what happens.
    pub(crate) fn are_wanted(&self) -> bool {
        !self.endpoints.is_empty()
    }

    /// Puts an event into the queues of those who want it.
    pub(crate) async fn tell(&self, event: &RegistryEvent) {
        for (endpoint, settings) in &self.endpoints {
            if !settings.wants(event) {
                continue;
            }
            let line = event.to_line();
            let (queue, most) = (Arc::clone(endpoint), settings.waiting_max);
            let put = tokio::task::spawn_blocking(move || queue.queue.put(&line, most)).await;
            let problem = match put {
                Ok(Ok(true)) => continue,
                Ok(Ok(false)) => "its queue is full".to_owned(),
                Ok(Err(error)) => crate::error::ErrorChain(&error).to_string(),
                Err(error) => error.to_string(),
            };
            endpoint.counts.left_out.add(1);
            tracing::error!(
                webhook = endpoint.name,
                event = event.id,
                problem,
                "an event is left out"
            );
        }
    }

    /// What is counted, for Prometheus.
    pub(crate) fn write_metrics(&self, text: &mut Text) {
        if self.endpoints.is_empty() {
            return;
        }
        let name = "webhook_events_total";
        text.head(
            name,
            "counter",
            "events for a webhook, by what became of them",
        );
        for (endpoint, _) in &self.endpoints {
            let counts = &endpoint.counts;
            for (result, count) in [
                ("delivered", &counts.delivered),
                ("given_up", &counts.given_up),
                ("left_out", &counts.left_out),
            ] {
                let labels = format!("{{webhook=\"{}\",result=\"{result}\"}}", endpoint.name);
                text.line(name, &labels, &count.get());
            }
        }
        let name = "webhook_failed_attempts_total";
        text.head(
            name,
            "counter",
            "times that a webhook did not take an event",
        );
        for (endpoint, _) in &self.endpoints {
            let labels = format!("{{webhook=\"{}\"}}", endpoint.name);
            text.line(name, &labels, &endpoint.counts.failed_attempts.get());
        }
        let name = "webhook_waiting";
        text.head(name, "gauge", "events that wait for a webhook");
        for (endpoint, _) in &self.endpoints {
            let labels = format!("{{webhook=\"{}\"}}", endpoint.name);
            text.line(name, &labels, &endpoint.queue.len());
        }
    }
}

/// Whether it can be the name of a webhook or a sync.
pub(crate) fn is_name(text: &str) -> bool {
    let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
    (1..=64).contains(&text.len()) && !text.starts_with('.') && text.bytes().all(legal)
}
