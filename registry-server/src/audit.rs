//! The audit log: one line of JSON for every change, made or refused, and for every token with which some can be made.
//!
//! A line is written whole, in one call, before the answer is sent. `docs/reference/registry-access.md` says what the fields
//! are. Passwords, tokens and headers are in none.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use http::{HeaderName, Method, Response, StatusCode};
use serde::Serialize;
use store::oci::Digest;
use store::oci::time::rfc3339;

use crate::auth::{Peer, Visitor};
use crate::body::Body;
use crate::events::event::RegistryEvent;
use crate::registry::{CONTENT_DIGEST, Call};
use crate::routes::{ManifestReference, Route};
use crate::storage::collectable::Garbage;

/// Why there is no audit log.
#[derive(Debug, thiserror::Error)]
#[error("cannot write the audit log `{}`", path.display())]
pub struct AuditError {
    /// The file.
    path: PathBuf,
    /// Why.
    source: io::Error,
}

/// The log, open for writing at its end.
#[derive(Debug)]
pub(crate) struct AuditLog {
    file: Arc<File>,
}

/// One line.
#[derive(Debug, Serialize)]
pub(crate) struct Event {
    time: String,
    action: &'static str,
    /// `None` of somebody who did not say.
    user: Option<String>,
    via: &'static str,
    addr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    repository: Option<String>,
    /// A tag or digest as it was given.
    #[serde(skip_serializing_if = "Option::is_none")]
    reference: Option<String>,
    /// What the answer says the content is.
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    tags: Vec<String>,
    /// What a token gives.
    #[serde(skip_serializing_if = "Option::is_none")]
    scope: Option<String>,
    status: u16,
}

impl Event {
    /// Something that a visitor did.
    pub(crate) fn new(action: &'static str, visitor: &Visitor, peer: &Peer) -> Event {
        Event {
            time: rfc3339(crate::storage::now_seconds()),
            action,
            user: visitor.person.user.clone(),
            via: visitor.via.name(),
            addr: peer.addr.to_canonical().to_string(),
            repository: None,
            reference: None,
            digest: None,
            tags: Vec::new(),
            scope: None,
            status: 200,
        }
    }

    /// Data that was found not to be what its digest says; nobody did that here.
    pub(crate) fn damaged(digest: &Digest) -> Event {
        Event {
            time: rfc3339(crate::storage::now_seconds()),
            action: "find-damage",
            user: None,
            via: "scrub",
            addr: String::new(),
            repository: None,
            reference: None,
            digest: Some(digest.to_string()),
            tags: Vec::new(),
            scope: None,
            status: 500,
        }
    }

    /// A tag or manifest that a collection removed; `None` of what nobody sees.
    pub(crate) fn collected(garbage: &Garbage) -> Option<Event> {
        let (action, repository, reference, digest) = match garbage {
            Garbage::Tag(repository, tag, digest) => {
                ("delete-tag", repository, tag.clone(), digest.as_ref())
            }
            Garbage::Manifest(repository, digest, _) => {
                let reference = digest.to_string();
                ("delete-manifest", repository, reference, Some(digest))
            }
            Garbage::Link(..) | Garbage::Data(_) => return None,
        };
        Some(Event {
            time: rfc3339(crate::storage::now_seconds()),
            action,
            user: None,
            via: "gc",
            addr: String::new(),
            repository: Some(repository.to_string()),
            reference: Some(reference),
            digest: digest.map(Digest::to_string),
            tags: Vec::new(),
            scope: None,
            status: 200,
        })
    }

    /// The same as this one, of a token that gives that.
    pub(crate) fn with_scope(mut self, scope: String) -> Event {
        self.scope = Some(scope);
        self
    }

    /// What the server did by itself, such as mirroring; nobody asked for it, from nowhere.
    pub(crate) fn by_server(action: &'static str, event: &RegistryEvent) -> Event {
        Event {
            time: rfc3339(crate::storage::now_seconds()),
            action,
            user: event.user.clone(),
            via: "sync",
            addr: String::new(),
            repository: Some(event.repository.clone()),
            reference: event.digest.clone().or_else(|| event.tags.first().cloned()),
            digest: event.digest.clone(),
            tags: event.tags.clone(),
            scope: None,
            status: 200,
        }
    }

    /// What a request changed, or would have; `None` if it would have changed nothing that anybody sees.
    pub(crate) fn of(route: &Route, call: &Call, response: &Response<Body>) -> Option<Event> {
        let status = response.status();
        let mounts = call.query.first("mount").is_some();
        let (action, name, reference) = match (route, &call.method) {
            (Route::Manifest(name, reference), &Method::PUT) => {
                ("put-manifest", name, Some(shown(reference)))
            }
            (Route::Manifest(name, reference), &Method::DELETE) => {
                let action = match reference {
                    ManifestReference::Digest(_) => "delete-manifest",
                    _ => "delete-tag",
                };
                (action, name, Some(shown(reference)))
            }
            (Route::Blob(name, digest), &Method::DELETE) => {
                ("delete-blob", name, Some(digest.to_string()))
            }
            (Route::Uploads(name), &Method::POST) => {
                let action = if mounts { "mount-blob" } else { "put-blob" };
                let digest = call.query.first("mount").or(call.query.first("digest"));
                (action, name, digest.map(str::to_owned))
            }
            (Route::Upload(name, _), &Method::PUT) => {
                let digest = call.query.first("digest");
                ("put-blob", name, digest.map(str::to_owned))
            }
            (Route::Upload(name, _), &Method::DELETE) => ("cancel-upload", name, None),
            (Route::Upload(name, _), &Method::PATCH) => ("put-blob", name, None),
            _ => return None,
        };
        // A session that was opened or went on, and a challenge that every client begins with.
        let halfway = matches!(route, Route::Uploads(_) | Route::Upload(..))
            && status == StatusCode::ACCEPTED;
        let stranger = status == StatusCode::UNAUTHORIZED && call.visitor.person.user.is_none();
        if halfway || stranger {
            return None;
        }
        let header = |name: HeaderName| {
            let value = response.headers().get(name)?;
            value.to_str().ok().map(str::to_owned)
        };
        Some(Event {
            repository: Some(name.to_string()),
            reference,
            digest: header(CONTENT_DIGEST),
            tags: call.query.all("tag").map(str::to_owned).collect(),
            status: status.as_u16(),
            ..Event::new(action, &call.visitor, &call.peer)
        })
    }
}

fn shown(reference: &ManifestReference) -> String {
    match reference {
        ManifestReference::Tag(text) | ManifestReference::Impossible(text) => text.clone(),
        ManifestReference::Digest(digest) => digest.to_string(),
    }
}

impl AuditLog {
    /// Opens the file, made if it is not there, for its owner to read.
    pub(crate) fn open(path: &Path) -> Result<AuditLog, AuditError> {
        use std::os::unix::fs::OpenOptionsExt;
        let mut options = File::options();
        let opened = options.append(true).create(true).mode(0o600).open(path);
        let file = opened.map_err(|source| AuditError {
            path: path.to_owned(),
            source,
        })?;
        Ok(AuditLog {
            file: Arc::new(file),
        })
    }

    /// Writes a line, on a thread that may block.
    pub(crate) fn write_now(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("texts and numbers are JSON");
        line.push(b'\n');
        if let Err(error) = (&*self.file).write_all(&line) {
            tracing::error!(%error, "cannot write the audit log");
        }
    }

    /// Writes a line. A log that cannot be written is told in the other log, and keeps nobody from working.
    pub(crate) async fn write(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("texts and numbers are JSON");
        line.push(b'\n');
        let file = Arc::clone(&self.file);
        let written = tokio::task::spawn_blocking(move || (&*file).write_all(&line)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "cannot write the audit log"),
            Err(error) => tracing::error!(%error, "writing the audit log panicked"),
        }
    }
}
