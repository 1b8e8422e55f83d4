//! One request to one answer: authentication, the route table, and what every answer carries.
//!
//! ```text
//! Request ─ auth ─► Route::parse ─► handler(Call) ─► Ok(Response) | Err(ApiError) ─► envelope
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use hyper::body::Incoming;

use crate::audit::{AuditLog, Event};
use crate::auth::{Gate, Need, Peer, Visitor, too_many};
use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::events::Events;
use crate::events::event::RegistryEvent;
use crate::immutable::ImmutableRule;
use crate::index::Index;
use crate::observe::{AccessLog, Observer, Watched};
use crate::pace::{Pace, Paced};
use crate::policy::Action;
use crate::proxy::Proxies;
use crate::pulls::Pulls;
use crate::quota::Quotas;
use crate::rate::RateLimit;
use crate::routes::{Query, RepositoryName, Route};
use crate::sendfile::SendQueue;
use crate::storage::{RegistryStorage, StorageResult, TagCondition, TagMatch};
use crate::sync::Mirror;
use crate::trace::{SpanKind, Tracer, step, within};
use crate::uploads::Sessions;
use crate::upstream::Upstreams;

/// `Docker-Content-Digest`
pub(crate) const CONTENT_DIGEST: HeaderName = HeaderName::from_static("docker-content-digest");

/// How much of a refused body is read, in bytes, before the connection is closed.
const DRAIN_BYTES_MAX: usize = 64 * 1024 * 1024;

/// And for how long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);

/// And how fast: the whole of it has an end.
const DRAIN_PACE: Pace = Pace {
    window: DRAIN_TIMEOUT,
    rate: 0,
};

/// What a handler returns.
pub(crate) type Answer = Result<Response<Body>, ApiError>;

/// Rules that handlers apply; see [`crate::Config`] for the meanings.
#[derive(Clone, Debug)]
pub(crate) struct Rules {
    pub(crate) delete: bool,
    pub(crate) read_only: bool,
    pub(crate) sparse: bool,
    pub(crate) blob_bytes_max: Option<u64>,
    /// Of bodies that clients send.
    pub(crate) pace: Pace,
    pub(crate) immutable: Arc<[ImmutableRule]>,
    /// Whether `/metrics` is served.
    pub(crate) metrics: bool,
    /// Whether there is a web page.
    pub(crate) page: bool,
}

/// A registry: storage, sessions, rules and who may do what. Another configuration makes another one, of the same storage and
/// sessions.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) storage: Arc<dyn RegistryStorage>,
    pub(crate) sessions: Arc<Sessions>,
    pub(crate) rules: Rules,
    pub(crate) gate: Arc<Gate>,
    pub(crate) upstreams: Upstreams,
    pub(crate) quotas: Arc<Quotas>,
    pub(crate) pulls: Arc<Pulls>,
    pub(crate) index: Arc<Index>,
    /// Of requests, by user or address.
    pub(crate) rates: Option<Arc<RateLimit>>,
    pub(crate) audit: Option<Arc<AuditLog>>,
    pub(crate) events: Events,
    pub(crate) syncs: Vec<Arc<Mirror>>,
    pub(crate) tracer: Option<Arc<Tracer>>,
    pub(crate) observer: Arc<Observer>,
    pub(crate) access_log: Option<Arc<dyn AccessLog>>,
    pub(crate) proxies: Proxies,
    /// A `Warning` for every answer.
    pub(crate) warning: Option<HeaderValue>,
}

/// A request after its route was parsed.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) method: Method,
    pub(crate) query: Query,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Incoming,
    /// Where blobs may go by `sendfile`; `None` on TLS and HTTP/2.
    pub(crate) queue: Option<SendQueue>,
    pub(crate) peer: Arc<Peer>,
    /// Who sent it; nobody until that was looked at.
    pub(crate) visitor: Visitor,
}

impl Call {
    /// A header's text; `None` if it is absent or not text.
    pub(crate) fn header(&self, name: HeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Whether `If-None-Match` names this entity tag.
    pub(crate) fn has_already(&self, etag: &str) -> bool {
        self.header(header::IF_NONE_MATCH).is_some_and(|tags| {
            tags.split(',')
                .map(|tag| tag.trim().trim_start_matches("W/"))
                .any(|tag| tag == "*" || tag == etag)
        })
    }

    /// What `If-Match` and `If-None-Match` ask of a manifest that is to be changed.
    pub(crate) fn condition(&self) -> TagCondition {
        let matched = |name| {
            let mut values = self.headers.get_all(name).iter().peekable();
            values.peek()?;
            let text: Vec<&str> = values.filter_map(|value| value.to_str().ok()).collect();
            let tags = text.join(",");
            if tags.trim() == "*" {
                return Some(TagMatch::Anything);
            }
            // A weak tag, or one that is no digest, is none of ours: it matches nothing.
            let digests = tags
                .split(',')
                .filter_map(|tag| tag.trim().trim_matches('"').parse().ok());
            Some(TagMatch::Of(digests.collect()))
        };
        TagCondition {
            on: matched(header::IF_MATCH),
            not_on: matched(header::IF_NONE_MATCH),
        }
    }

    /// `Content-Length`, if there is one.
    pub(crate) fn content_length(&self) -> Option<u64> {
        self.header(header::CONTENT_LENGTH)?.parse().ok()
    }

    /// Reads what is left of a refused request's body, within bounds: closing a connection on which bytes are
    /// still arriving would reset it, and the client would never see the refusal.
    async fn drain(&mut self) {
        // This client sends no body before it is told to, and need not be.
        if self.headers.contains_key(header::EXPECT) {
            return;
        }
        let mut drained = 0;
        let all = async {
            let mut paced = DRAIN_PACE.start();
            while let Ok(Some(data)) = next_data(&mut self.body, &mut paced).await {
                drained += data.len();
                if drained > DRAIN_BYTES_MAX {
                    break;
                }
            }
        };
        // At the end of either bound the connection is closed all the same.
        let _ = tokio::time::timeout(DRAIN_TIMEOUT, all).await;
    }

    /// The whole body, at most `bytes_max` long.
    pub(crate) async fn collect(
        &mut self,
        bytes_max: usize,
        pace: Pace,
    ) -> Result<Bytes, ApiError> {
        let too_large = || {
            ApiError::with(
                ErrorCode::TooLarge,
                format!("at most {bytes_max} bytes are taken"),
            )
        };
        if self.content_length().is_some_and(|n| n > bytes_max as u64) {
            return Err(too_large());
        }
        let mut bytes = BytesMut::new();
        let mut paced = pace.start();
        while let Some(data) = next_data(&mut self.body, &mut paced).await? {
            if bytes.len() + data.len() > bytes_max {
                return Err(too_large());
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes.freeze())
    }
}

/// The next bytes of a body; `None` at its end. A cut body or a client that is silent or too slow is an error.
pub(crate) async fn next_data(
    body: &mut Incoming,
    paced: &mut Paced,
) -> Result<Option<Bytes>, ApiError> {
    let slow = || ApiError::new(ErrorCode::Timeout);
    loop {
        let asked = Instant::now();
        let frame = tokio::time::timeout(paced.patience(), body.frame())
            .await
            .map_err(|_| slow())?;
        match frame {
            None => return Ok(None),
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                paced
                    .moved(data.len(), asked.elapsed())
                    .map_err(|_| slow())?;
                if !data.is_empty() {
                    return Ok(Some(data));
                }
            }
            Some(Err(error)) => {
                return Err(ApiError::with(
                    ErrorCode::BlobUploadInvalid,
                    format!("the body was cut: {error}"),
                ));
            }
        }
    }
}

impl Registry {
    /// Answers one request. Work that changes the registry goes on to its end even if the connection dies.
    pub(crate) async fn handle(
        self: &Arc<Self>,
        mut request: Request<Incoming>,
        queue: Option<SendQueue>,
        peer: Arc<Peer>,
    ) -> Response<Body> {
        // HTTP/2 has it in the URL.
        if let Some(host) = request.uri().authority()
            && let Ok(host) = HeaderValue::from_str(host.as_str())
        {
            request.headers_mut().insert(header::HOST, host);
        }
        let peer = self.proxies.client(peer, request.headers());
        let reads = matches!(*request.method(), Method::GET | Method::HEAD);
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let watched = Watched::begin(self, &method, &path, request.headers(), &peer);
        let waiting = self.observer.metrics.in_flight.one();
        let context = watched.context();
        let (mut response, user) = if reads {
            within(context, self.answer(request, queue, peer)).await
        } else {
            let registry = Arc::clone(self);
            let task = tokio::spawn(async move {
                within(context, registry.answer(request, queue, peer)).await
            });
            task.await.unwrap_or_else(|error| {
                tracing::error!(%error, "a handler panicked");
                (ApiError::new(ErrorCode::Unknown).into_response(), None)
            })
        };
        response.headers_mut().insert(
            HeaderName::from_static("docker-distribution-api-version"),
            HeaderValue::from_static("registry/2.0"),
        );
        response.headers_mut().insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if let Some(warning) = &self.warning {
            let headers = response.headers_mut();
            headers.append(header::WARNING, warning.clone());
        }
        tracing::info!(target: "registry::access", %method, path, status = response.status().as_u16());
        drop(waiting);
        watched.answered(&mut response, user);
        response
    }

    /// The answer, and the name of who asked.
    async fn answer(
        &self,
        request: Request<Incoming>,
        queue: Option<SendQueue>,
        peer: Arc<Peer>,
    ) -> (Response<Body>, Option<String>) {
        let (head, body) = request.into_parts();
        let mut call = Call {
            method: head.method,
            query: Query::parse(head.uri.query()),
            headers: head.headers,
            body,
            queue,
            peer,
            visitor: Visitor::default(),
        };
        let answer = self.dispatch(head.uri.path(), &mut call).await;
        let failed = answer.is_err();
        let answer = answer.unwrap_or_else(ApiError::into_response);
        if let Some(audit) = &self.audit
            && let Ok(route) = Route::parse(head.uri.path())
            && let Some(event) = Event::of(&route, &call, &answer)
        {
            audit.write(&event).await;
        }
        if self.events.are_wanted()
            && let Ok(route) = Route::parse(head.uri.path())
            && let Some(event) = RegistryEvent::of(&route, &call, &answer)
        {
            self.events.tell(&event).await;
        }
        if failed {
            call.drain().await;
        }
        (answer, call.visitor.person.user.clone())
    }

    /// Takes the request out of its sender's bucket.
    fn count(&self, visitor: Option<&Visitor>, peer: &Peer) -> Result<(), ApiError> {
        let Some(rates) = &self.rates else {
            return Ok(());
        };
        let user = visitor.and_then(|visitor| visitor.person.user.as_deref());
        let bucket = user.map_or_else(|| peer.bucket(), |user| format!("user {user}"));
        let taken = rates.take(&bucket, std::time::Instant::now());
        taken.map_err(|wait| too_many("more requests than are allowed in a time", wait))
    }

    async fn dispatch(&self, path: &str, call: &mut Call) -> Answer {
        if let Some(answer) = self.observing(path, call).await {
            return answer;
        }
        if self.rules.page
            && let Some(answer) = crate::page::file(path, call)
        {
            return answer;
        }
        match path {
            "/token" => {
                self.count(None, &call.peer)?;
                return self.token(call).await;
            }
            "/.well-known/jwks.json" => return self.published_keys(),
            "/v1/_ping" => return self.docker_ping(),
            "/v2/_longshore/about" => {
                self.count(None, &call.peer)?;
                return self.about(call).await;
            }
            _ => {}
        }
        let placed = Route::parse(path)
            .and_then(|route| self.upstreams.place(route, call.query.first("ns")));
        // Strangers do not even learn which paths there are.
        let need = placed
            .as_ref()
            .map_or(Need::Login, |(route, _)| need(route, call));
        let visitor = self.gate.visitor(&call.headers, &call.peer, &need).await;
        self.count(visitor.as_ref().ok(), &call.peer)?;
        call.visitor = visitor?;
        self.gate
            .admit(&call.visitor, &call.headers, &call.peer, &need)?;
        let (route, namespace) = placed?;
        let mut answered = self.answer_route(route, call).await;
        if let (Ok(response), Some(namespace)) = (&mut answered, namespace) {
            let name = HeaderName::from_static("oci-namespace");
            response.headers_mut().insert(name, namespace);
        }
        answered
    }

    async fn answer_route(&self, route: Route, call: &mut Call) -> Answer {
        let method = call.method.clone();
        let allowed: &'static str = match &route {
            Route::Base
            | Route::Catalog
            | Route::Search
            | Route::DockerSearch
            | Route::TagTable(_)
            | Route::Extensions(_)
            | Route::Tags(_)
            | Route::Referrers(..) => "GET, HEAD",
            Route::Blob(..) => "GET, HEAD, DELETE",
            Route::Manifest(..) => "GET, HEAD, PUT, DELETE",
            Route::Uploads(_) => "POST",
            Route::Upload(..) => "GET, PATCH, PUT, DELETE",
        };
        if !allowed.split(", ").any(|name| name == method.as_str()) {
            return Err(ApiError::new(ErrorCode::Unsupported)
                .header(header::ALLOW, HeaderValue::from_static(allowed)));
        }
        let deletes = method == Method::DELETE && !matches!(route, Route::Upload(..));
        if self.rules.read_only && !matches!(method, Method::GET | Method::HEAD) {
            return Err(ApiError::with(
                ErrorCode::Unsupported,
                "this registry is read-only",
            ));
        }
        if deletes && !self.rules.delete {
            return Err(ApiError::with(
                ErrorCode::Unsupported,
                "deleting is switched off in this registry",
            ));
        }
        if let Some(name) = route.repository().cloned()
            // What is here of another registry's.
            && !matches!(route, Route::TagTable(_))
            && let Some((through, remote)) = self.upstreams.of(&name)
        {
            return self.pull_through(through, remote, route, call).await;
        }
        match (route, method.as_str()) {
            (Route::Base, _) => Ok(json_answer("{}".to_owned())),
            (Route::Catalog, _) => self.catalog(call).await,
            (Route::Search, _) => self.search(call).await,
            (Route::DockerSearch, _) => self.docker_search(call).await,
            (Route::TagTable(name), _) => self.tag_table(name, call).await,
            (Route::Extensions(name), _) => self.extensions(name).await,
            (Route::Tags(name), _) => self.list_tags(name, call).await,
            (Route::Referrers(name, subject), _) => self.list_referrers(name, subject, call).await,
            (Route::Blob(name, digest), "DELETE") => self.delete_blob(name, digest).await,
            (Route::Blob(name, digest), _) => self.blob(name, digest, call).await,
            (Route::Manifest(name, reference), "PUT") => {
                self.put_manifest(name, reference, call).await
            }
            (Route::Manifest(name, reference), "DELETE") => {
                self.delete_manifest(name, reference, call).await
            }
            (Route::Manifest(name, reference), _) => self.manifest(name, reference, call).await,
            (Route::Uploads(name), _) => self.start_upload(name, call).await,
            (Route::Upload(name, id), "PATCH") => self.patch_upload(name, id, call).await,
            (Route::Upload(name, id), "PUT") => self.put_upload(name, id, call).await,
            (Route::Upload(name, id), "DELETE") => self.cancel_upload(name, id).await,
            (Route::Upload(name, id), _) => self.upload_status(name, id).await,
        }
    }

    /// What it does beside answering begins.
    pub(crate) fn start(&self) {
        self.events.start();
        if let Some(tracer) = &self.tracer {
            tracer.start();
        }
    }

    /// Calls storage on a thread where blocking harms nobody.
    pub(crate) async fn blocking<T, F>(&self, call: F) -> Result<T, ApiError>
    where
        T: Send + 'static,
        F: FnOnce(&dyn RegistryStorage) -> StorageResult<T> + Send + 'static,
    {
        let storage = Arc::clone(&self.storage);
        let working = async {
            match tokio::task::spawn_blocking(move || call(&*storage)).await {
                Ok(result) => Ok(result?),
                Err(error) => {
                    tracing::error!(%error, "a storage call panicked");
                    Err(ApiError::new(ErrorCode::Unknown))
                }
            }
        };
        let what = || (format!("storage {}", handler::<F>()), Vec::new());
        let failed = |result: &Result<T, ApiError>| result.as_ref().err().map(ToString::to_string);
        step(SpanKind::Internal, what, failed, working).await
    }
}

/// The function that a closure is in.
fn handler<F>() -> &'static str {
    let path = std::any::type_name::<F>();
    let path = path.trim_end_matches("::{{closure}}");
    path.rsplit("::").next().unwrap_or(path)
}

/// What has to be allowed for a request to be answered.
fn need(route: &Route, call: &Call) -> Need {
    let looks = matches!(call.method, Method::GET | Method::HEAD);
    let action = match call.method {
        Method::DELETE => Action::Delete,
        _ if looks => Action::Pull,
        _ => Action::Push,
    };
    match route {
        Route::Base | Route::Extensions(None) => Need::Login,
        Route::Catalog | Route::Search | Route::DockerSearch => Need::Catalog,
        Route::Extensions(Some(name))
        | Route::Blob(name, _)
        | Route::Manifest(name, _)
        | Route::Tags(name)
        | Route::TagTable(name)
        | Route::Referrers(name, _) => Need::Repository(name.clone(), action, None),
        Route::Uploads(name) => {
            let from = call
                .query
                .first("from")
                .filter(|_| call.query.first("mount").is_some());
            let from = from.and_then(|from| RepositoryName::parse(from).ok());
            Need::Repository(name.clone(), Action::Push, from)
        }
        // Also to look at one, and to drop it: it is the uploader's.
        Route::Upload(name, _) => Need::Repository(name.clone(), Action::Push, None),
    }
}

/// An empty answer.
pub(crate) fn answer(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

/// A 200 with JSON.
pub(crate) fn json_answer(text: String) -> Response<Body> {
    let mut response = Response::new(Body::full(Bytes::from(text)));
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("application/json"),
    );
    response
}

/// Sets a header whose value was made from parsed names, digests and numbers.
pub(crate) fn set(response: &mut Response<Body>, name: HeaderName, value: &str) {
    let value = HeaderValue::from_str(value).expect("names, digests and numbers are header text");
    response.headers_mut().insert(name, value);
}
