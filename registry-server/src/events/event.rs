//! What happened, as requests and their answers tell it.

use std::time::{SystemTime, UNIX_EPOCH};

use http::{HeaderName, Method, Response, StatusCode, header};
use serde::{Deserialize, Serialize};

use crate::body::Body;
use crate::registry::{CONTENT_DIGEST, Call};
use crate::routes::{ManifestReference, Route, UploadId};

/// Longest text of a client that is told on.
const CLIENT_TEXT_CHARS_MAX: usize = 255;

/// What was done.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum EventAction {
    /// Something is there that was not, or a tag is on it.
    Push,
    /// Something was read.
    Pull,
    /// Something is not there any more.
    Delete,
    /// A repository has a blob of another one.
    Mount,
}

impl EventAction {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EventAction::Push => "push",
            EventAction::Pull => "pull",
            EventAction::Delete => "delete",
            EventAction::Mount => "mount",
        }
    }
}

/// To what.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventObject {
    /// A manifest, with the tags that were put on it.
    Manifest,
    /// A tag alone.
    Tag,
    /// A blob.
    Blob,
}

impl EventObject {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            EventObject::Manifest => "manifest",
            EventObject::Tag => "tag",
            EventObject::Blob => "blob",
        }
    }
}

/// One event, as queues keep it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RegistryEvent {
    /// The same however often it is sent.
    pub(crate) id: String,
    /// Milliseconds since 1970.
    pub(crate) millis: u64,
    pub(crate) action: EventAction,
    pub(crate) object: EventObject,
    pub(crate) repository: String,
    pub(crate) digest: Option<String>,
    /// Those that were set, pulled by or deleted.
    pub(crate) tags: Vec<String>,
    pub(crate) media_type: Option<String>,
    pub(crate) size: Option<u64>,
    /// The repository that a blob was mounted from, where the client said it.
    pub(crate) from: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) via: String,
    pub(crate) request: RequestFacts,
}

/// The request that did it; nothing where the server itself did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RequestFacts {
    pub(crate) addr: Option<String>,
    pub(crate) method: Option<String>,
    /// `http` or `https`, as the client sees it.
    pub(crate) scheme: Option<String>,
    pub(crate) host: Option<String>,
    pub(crate) agent: Option<String>,
}

/// What a handler knows of the content that an answer is about, and its headers do not say.
#[derive(Clone, Debug)]
pub(crate) struct Content {
    pub(crate) media_type: Option<String>,
    pub(crate) size: u64,
}

impl RegistryEvent {
    /// What somebody did now.
    pub(crate) fn new(
        action: EventAction,
        object: EventObject,
        repository: impl Into<String>,
    ) -> RegistryEvent {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        RegistryEvent {
            id: UploadId::random().as_str().to_owned(),
            millis: u64::try_from(since.unwrap_or_default().as_millis()).unwrap_or(u64::MAX),
            action,
            object,
            repository: repository.into(),
            digest: None,
            tags: Vec::new(),
            media_type: None,
            size: None,
            from: None,
            user: None,
            via: String::new(),
            request: RequestFacts::default(),
        }
    }

    /// What a request did; `None` if that is nothing that anybody is told of.
    pub(crate) fn of(
        route: &Route,
        call: &Call,
        response: &Response<Body>,
    ) -> Option<RegistryEvent> {
        let headers = response.headers();
        let text = |name: HeaderName| headers.get(name)?.to_str().ok();
        let (action, object) = action_of(route, call, response)?;
        let mut event = RegistryEvent::new(action, object, route.repository()?.as_str());
        event.digest = text(CONTENT_DIGEST).map(str::to_owned);
        match route {
            Route::Manifest(_, ManifestReference::Tag(tag)) => event.tags.push(tag.clone()),
            Route::Manifest(_, ManifestReference::Digest(digest)) => {
                event.digest = Some(digest.to_string());
                if action == EventAction::Push {
                    event.tags = call.query.all("tag").map(str::to_owned).collect();
                }
            }
            Route::Uploads(_) if action == EventAction::Mount => {
                event.from = call.query.first("from").map(str::to_owned);
            }
            _ => {}
        }
        if action == EventAction::Pull {
            event.media_type = text(header::CONTENT_TYPE).map(str::to_owned);
            let all = text(header::CONTENT_RANGE).and_then(|range| range.rsplit_once('/'));
            let size = all.map(|(_, size)| size).or(text(header::CONTENT_LENGTH));
            event.size = size.and_then(|size| size.parse().ok());
        }
        if let Some(content) = response.extensions().get::<Content>() {
            event.media_type.clone_from(&content.media_type);
            event.size = Some(content.size);
        }
        if object == EventObject::Blob && event.media_type.is_none() {
            event.media_type = Some("application/octet-stream".to_owned());
        }
        event.user.clone_from(&call.visitor.person.user);
        event.via = call.visitor.via.name().to_owned();
        event.request = RequestFacts::of(call);
        Some(event)
    }

    /// One line of JSON, without its end.
    pub(super) fn to_line(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("texts and numbers are JSON")
    }
}

impl RequestFacts {
    fn of(call: &Call) -> RequestFacts {
        let said = |name: HeaderName| {
            let text = call.header(name)?;
            Some(text.chars().take(CLIENT_TEXT_CHARS_MAX).collect::<String>())
        };
        RequestFacts {
            addr: Some(call.peer.addr.to_canonical().to_string()),
            method: Some(call.method.to_string()),
            scheme: Some(if call.peer.tls { "https" } else { "http" }.to_owned()),
            host: call.peer.host.clone().or_else(|| said(header::HOST)),
            agent: said(header::USER_AGENT),
        }
    }
}

fn action_of(
    route: &Route,
    call: &Call,
    response: &Response<Body>,
) -> Option<(EventAction, EventObject)> {
    let status = response.status();
    let created = status == StatusCode::CREATED;
    Some(match (route, &call.method) {
        (Route::Manifest(..), &Method::PUT) if created => {
            (EventAction::Push, EventObject::Manifest)
        }
        (Route::Manifest(_, reference), &Method::DELETE) if status.is_success() => {
            let object = match reference {
                ManifestReference::Digest(_) => EventObject::Manifest,
                _ => EventObject::Tag,
            };
            (EventAction::Delete, object)
        }
        (Route::Manifest(..), &Method::GET) if status == StatusCode::OK => {
            (EventAction::Pull, EventObject::Manifest)
        }
        (Route::Blob(..), &Method::DELETE) if status.is_success() => {
            (EventAction::Delete, EventObject::Blob)
        }
        (Route::Blob(..), &Method::GET) if status == StatusCode::OK => {
            (EventAction::Pull, EventObject::Blob)
        }
        // Of a blob that is fetched in pieces the first one tells.
        (Route::Blob(..), &Method::GET) if status == StatusCode::PARTIAL_CONTENT => {
            let range = response.headers().get(header::CONTENT_RANGE)?;
            let first = range.as_bytes().starts_with(b"bytes 0-");
            return first.then_some((EventAction::Pull, EventObject::Blob));
        }
        (Route::Uploads(_), &Method::POST) if created => match call.query.first("mount") {
            Some(_) => (EventAction::Mount, EventObject::Blob),
            None => (EventAction::Push, EventObject::Blob),
        },
        (Route::Upload(..), &Method::PUT) if created => (EventAction::Push, EventObject::Blob),
        _ => return None,
    })
}
