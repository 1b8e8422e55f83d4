//! Blobs on their way out (distribution-spec end-4 to end-6, end-11, end-13).
//!
//! ```text
//! HEAD ─ there ────────────────────────────────► Existed
//!  └ POST ?mount&from ─ 201 ───────────────────► Mounted
//!     └ POST (or the session of a refused mount)
//!        └ PUT whole ─ 201 ────────────────────► Uploaded
//!           └ cut: GET session ─ offset ─ PATCH chunks from there ─ PUT ─► Uploaded
//!              └ session lost: HEAD, then a new one in chunks
//! ```
//!
//! A blob of more than a chunk has its session noted in the store, so that after a kill the next process begins at `GET session`.
//!
//! One PUT is the fewest round trips and what every registry takes. After a first cut the rest goes in chunks, so that a
//! bad line costs a chunk at most each time. On a slow line they become as small as what goes in two seconds ([`crate::pace`]).

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE};
use reqwest::{Method, StatusCode, Url};
use store::oci::{Descriptor, Digest, Reference};
use store::uploads::Upload;

use crate::Client;
use crate::auth::bearer::Scope;
use crate::blocking::blocking;
use crate::download::blob_size;
use crate::error::{ClientError, Refusal};
use crate::headers;
use crate::pace::Pace;
use crate::progress::{Progress, Silent};
use crate::registry::{Attempts, Registry};
use crate::transport::body::{BlobSource, Part};
use crate::transport::{Answer, Call, Payload};

/// After this much progress a cut counts as the first again.
const PROGRESS_BYTES: u64 = 1024 * 1024;

/// Largest chunk that a server may ask for; more would be no chunk.
const CHUNK_MIN_MAX: u64 = 1024 * 1024 * 1024;

/// How much smaller than those of the options chunks become on a slow line. Larger ones may be more than a proxy lets through.
const CHUNK_SHRINK: u64 = 16;

/// Most repositories that a mount is tried from.
const MOUNTS_MAX: usize = 3;

/// How a blob came to be in the repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Existed,
    /// The registry linked it from another repository.
    Mounted,
    /// Its bytes were sent.
    Uploaded,
}

impl Client {
    /// Sees to it that a repository has a blob: finds it there, mounts it from one of the repositories `mount_from` on
    /// the same registry, or sends it.
    pub async fn push_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: BlobSource,
        mount_from: &[String],
        progress: Arc<dyn Progress>,
    ) -> Result<Pushed, ClientError> {
        let push = self
            .blob_push(reference, descriptor, source, progress)
            .await?;
        push.progress.started(&descriptor.digest, descriptor.size);
        let pushed = push.run(mount_from).await?;
        push.progress.finished(&descriptor.digest);
        Ok(pushed)
    }

    /// Sees to it that a repository has a blob without sending it: finds it there or mounts it. `None` if neither can be.
    pub async fn link_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        mount_from: &[String],
    ) -> Result<Option<Pushed>, ClientError> {
        let nothing = BlobSource::Bytes(Bytes::new());
        let push = self
            .blob_push(reference, descriptor, nothing, Arc::new(Silent))
            .await?;
        let (found, session) = push.find(mount_from).await?;
        if let Some(unused) = session {
            push.cancel(&unused).await;
        }
        Ok(found)
    }

    /// Sends a blob that is known not to be there.
    pub async fn send_blob(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: BlobSource,
        progress: Arc<dyn Progress>,
    ) -> Result<(), ClientError> {
        let push = self
            .blob_push(reference, descriptor, source, progress)
            .await?;
        push.progress.started(&descriptor.digest, descriptor.size);
        push.source.check_len(descriptor.size).await?;
        push.upload(None).await?;
        push.progress.finished(&descriptor.digest);
        Ok(())
    }

    async fn blob_push(
        &self,
        reference: &Reference,
        descriptor: &Descriptor,
        source: BlobSource,
        progress: Arc<dyn Progress>,
    ) -> Result<BlobPush, ClientError> {
        let (registry, there) = self.home(reference, true).await?;
        Ok(BlobPush {
            registry,
            repository: there.repository().to_owned(),
            scopes: vec![Scope::push(there.repository())],
            descriptor: descriptor.clone(),
            source,
            progress,
        })
    }
}

struct BlobPush {
    registry: Arc<Registry>,
    repository: String,
    scopes: Vec<Scope>,
    descriptor: Descriptor,
    source: BlobSource,
    progress: Arc<dyn Progress>,
}

/// An upload session as the server last told of it.
struct Session {
    /// The newest `Location`; older ones may be stale.
    location: Url,
    /// Bytes that the server has.
    offset: u64,
    /// Least bytes of a chunk.
    chunk_min: u64,
}

impl Session {
    fn at(location: Url) -> Session {
        Session {
            location,
            offset: 0,
            chunk_min: 0,
        }
    }

    /// Some bytes into a file that is open: not worth a thread.
    fn note(&self, note: Option<&Upload>) {
        if let Some(note) = note
            && let Err(error) = note.note(self.location.as_str())
        {
            tracing::debug!(%error, "an upload is not noted");
        }
    }
}

impl BlobPush {
    async fn run(&self, mount_from: &[String]) -> Result<Pushed, ClientError> {
        let (found, session) = self.find(mount_from).await?;
        if let Some(found) = found {
            return Ok(found);
        }
        self.source.check_len(self.descriptor.size).await?;
        self.upload(session).await?;
        Ok(Pushed::Uploaded)
    }

    /// Looks whether the blob is there or can be mounted; if not, an upload session may have come of it.
    async fn find(
        &self,
        mount_from: &[String],
    ) -> Result<(Option<Pushed>, Option<Session>), ClientError> {
        if self.exists().await? {
            return Ok((Some(Pushed::Existed), None));
        }
        let mut session = None;
        let others = mount_from.iter().filter(|from| **from != self.repository);
        for from in others.take(MOUNTS_MAX) {
            if let Some(unused) = session.take() {
                self.cancel(&unused).await;
            }
            match self.mount(from).await {
                Mount::Done => return Ok((Some(Pushed::Mounted), None)),
                Mount::Session(opened) => session = Some(opened),
                Mount::Refused => {}
            }
        }
        Ok((None, session))
    }

    async fn exists(&self) -> Result<bool, ClientError> {
        let digest = &self.descriptor.digest;
        let found = blob_size(&self.registry, &self.scopes, &self.repository, digest).await;
        match found {
            // One of another size is not it, whatever the server says; none is what proxies make of a HEAD's length.
            Ok(size) => Ok(size.is_some_and(|size| size == 0 || size == self.descriptor.size)),
            // What a server does not say on HEAD, it may say on POST.
            Err(ClientError::Refused { refusal, .. }) if !refusal.status.is_server_error() => {
                Ok(false)
            }
            Err(ClientError::BadAnswer { .. }) => Ok(false),
            Err(error) => Err(error),
        }
    }

    async fn mount(&self, from: &str) -> Mount {
        let scopes = [&[Scope::pull(from)], &self.scopes[..]].concat();
        let result = async {
            let mut url = self.uploads_url().await?;
            url.query_pairs_mut()
                .append_pair("mount", &self.descriptor.digest.to_string())
                .append_pair("from", from);
            let answer = self
                .registry
                .send(&scopes, &Call::new(Method::POST, url))
                .await?;
            match answer.status() {
                StatusCode::CREATED => Ok(None),
                StatusCode::ACCEPTED => self.session(&answer).await.map(Some),
                _ => Err(answer.refused().await),
            }
        };
        // A mount saves time; whatever is wrong with it shows again, and better, in the upload.
        match result.await {
            Ok(None) => Mount::Done,
            Ok(Some(session)) => Mount::Session(session),
            Err(error) => {
                tracing::debug!(%error, from, "cannot mount");
                Mount::Refused
            }
        }
    }

    async fn upload(&self, session: Option<Session>) -> Result<(), ClientError> {
        let note = self.note().await;
        let earlier = match (&session, &note) {
            (None, Some(note)) => self.earlier(note).await,
            _ => None,
        };
        let is_resumed = earlier.is_some();
        let mut sent = self.send(session.or(earlier), note.as_ref()).await;
        if is_resumed && matches!(&sent, Err(error) if !error.is_transient()) {
            // What the registry had of it may be what is wrong.
            self.progress.rewound(&self.descriptor.digest, 0);
            sent = self.send(None, note.as_ref()).await;
        }
        // What failed may be gone on with, unless the bytes themselves are wrong.
        let is_over = !matches!(&sent, Err(error) if error.is_transient());
        if let Some(note) = note.filter(|_| is_over) {
            blocking(move || note.end()).await;
        }
        sent
    }

    /// Where it is noted how far the upload comes, if that is worth it. That it cannot be noted is no reason to fail.
    async fn note(&self) -> Option<Upload> {
        let options = self.registry.options();
        let uploads = options.uploads.clone()?;
        if self.descriptor.size <= options.chunk_bytes {
            return None;
        }
        let (registry, repository) = (self.registry.name().to_owned(), self.repository.clone());
        let digest = self.descriptor.digest;
        blocking(move || uploads.hold(&registry, &repository, &digest))
            .await
            .unwrap_or_else(|error| {
                tracing::debug!(%error, "an upload is not noted");
                None
            })
    }

    /// The session of an earlier process, if the registry still knows it.
    async fn earlier(&self, note: &Upload) -> Option<Session> {
        let location = Url::parse(&note.location().ok()??).ok()?;
        let session = self.status(Session::at(location)).await?;
        self.progress
            .rewound(&self.descriptor.digest, session.offset);
        Some(session)
    }

    async fn send(
        &self,
        mut session: Option<Session>,
        note: Option<&Upload>,
    ) -> Result<(), ClientError> {
        let mut attempts = Attempts::new(self.registry.options());
        let mut chunked = false;
        let mut counted_from = 0;
        let usual = self.registry.options().chunk_bytes;
        let mut pace = Pace::new(usual, usual / CHUNK_SHRINK, usual);
        loop {
            let tried = self
                .try_upload(&mut session, chunked, &mut pace, note)
                .await;
            let error = match tried {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let lost = is_lost(&error);
            let too_large = matches!(&error, ClientError::Refused { refusal, .. }
                if refusal.status == StatusCode::PAYLOAD_TOO_LARGE);
            if too_large && !chunked {
                chunked = true;
                session = None;
                self.progress.rewound(&self.descriptor.digest, 0);
                continue;
            }
            let again = match lost {
                // The request was sound, the server's state was not what we thought: that is as good as a cut.
                true => attempts.again(&stale(&error)).await,
                false => attempts.again(&error).await,
            };
            if !again {
                return Err(error);
            }
            chunked = true;
            session = match session {
                Some(session) => self.status(session).await,
                None => None,
            };
            let offset = session.as_ref().map_or(0, |session| session.offset);
            self.progress.rewound(&self.descriptor.digest, offset);
            if offset >= counted_from + PROGRESS_BYTES {
                counted_from = offset;
                attempts.reset();
            }
            // The answer to a PUT that succeeded may be what was lost.
            if session.is_none() && self.exists().await? {
                return Ok(());
            }
        }
    }

    /// One attempt, from wherever the session stands. The session is kept up to date also where it fails.
    async fn try_upload(
        &self,
        session: &mut Option<Session>,
        chunked: bool,
        pace: &mut Pace,
        note: Option<&Upload>,
    ) -> Result<(), ClientError> {
        let session = match session {
            Some(session) => session,
            None => session.insert(self.start().await?),
        };
        session.note(note);
        let size = self.descriptor.size;
        if session.offset == 0 && !chunked {
            return self.put(session, self.part(0, size)).await;
        }
        while session.offset < size {
            let chunk = pace.bytes().max(session.chunk_min);
            let length = chunk.min(size - session.offset);
            let started = Instant::now();
            self.patch(session, length).await?;
            pace.took(length, started.elapsed());
            session.note(note);
        }
        self.put(session, Payload::Empty).await
    }

    async fn start(&self) -> Result<Session, ClientError> {
        let call = Call::new(Method::POST, self.uploads_url().await?);
        let answer = self.registry.send(&self.scopes, &call).await?;
        self.session(&answer.expect(&[StatusCode::ACCEPTED]).await?)
            .await
    }

    async fn session(&self, answer: &Answer) -> Result<Session, ClientError> {
        let chunk_min = answer.header("oci-chunk-min-length");
        let chunk_min = chunk_min.and_then(|text| text.trim().parse().ok());
        Ok(Session {
            chunk_min: chunk_min.unwrap_or(0).min(CHUNK_MIN_MAX),
            ..Session::at(self.registry.location(answer).await?)
        })
    }

    /// The end of a session: the whole blob, or nothing after its chunks.
    async fn put(&self, session: &Session, body: Payload) -> Result<(), ClientError> {
        let mut url = session.location.clone();
        url.query_pairs_mut()
            .append_pair("digest", &self.descriptor.digest.to_string());
        let call = Call::new(Method::PUT, url)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(body);
        let answer = self.registry.send(&self.scopes, &call).await?;
        let done = [StatusCode::CREATED, StatusCode::OK, StatusCode::NO_CONTENT];
        let answer = answer.expect(&done).await?;
        let said = answer.header("docker-content-digest");
        match said.and_then(|text| text.parse::<Digest>().ok()) {
            Some(actual)
                if actual.algorithm() == self.descriptor.digest.algorithm()
                    && actual != self.descriptor.digest =>
            {
                Err(ClientError::mismatch(
                    &answer.line,
                    self.descriptor.digest,
                    actual,
                ))
            }
            _ if answer.status() == StatusCode::CREATED || self.exists().await? => Ok(()),
            // Not in the protocol's words: whoever stands between may have answered.
            _ => Err(ClientError::Cut {
                request: answer.line.clone(),
                reason: format!("the answer was {}, and nothing came of it", answer.status()),
            }),
        }
    }

    async fn patch(&self, session: &mut Session, length: u64) -> Result<(), ClientError> {
        let (first, last) = (session.offset, session.offset + length - 1);
        let call = Call::new(Method::PATCH, session.location.clone())
            .header(CONTENT_TYPE, "application/octet-stream")
            .header(CONTENT_RANGE, &format!("{first}-{last}"))
            .body(self.part(first, length));
        let answer = self.registry.send(&self.scopes, &call).await?;
        let taken = [
            StatusCode::ACCEPTED,
            StatusCode::NO_CONTENT,
            StatusCode::CREATED,
        ];
        let answer = answer.expect(&taken).await?;
        session.location = self.registry.location(&answer).await?;
        // One byte reads as none (see `upload_offset`); a whole chunk acknowledged without a Range is believed.
        let offset = answer.header("range").and_then(headers::upload_offset);
        session.offset = match offset {
            Some(0) if last == 0 => 1,
            Some(offset) if offset <= last + 1 && offset >= first => offset,
            None => last + 1,
            Some(offset) => {
                return Err(ClientError::bad_answer(
                    &answer.line,
                    format!(
                        "the server claims {offset} bytes after {} were sent",
                        last + 1
                    ),
                ));
            }
        };
        if session.offset == first {
            return Err(ClientError::Cut {
                request: answer.line,
                reason: "the server kept nothing of the chunk".to_owned(),
            });
        }
        if session.offset <= last {
            self.progress
                .rewound(&self.descriptor.digest, session.offset);
        }
        Ok(())
    }

    /// Asks where a session stands; `None` where it is lost.
    async fn status(&self, session: Session) -> Option<Session> {
        let call = Call::get(session.location.clone());
        let answer = self.registry.send(&self.scopes, &call).await.ok()?;
        if !matches!(answer.status(), StatusCode::NO_CONTENT | StatusCode::OK) {
            return None;
        }
        let offset = headers::upload_offset(answer.header("range")?)?;
        Some(Session {
            offset: (offset <= self.descriptor.size).then_some(offset)?,
            location: match answer.header("location") {
                Some(_) => self.registry.location(&answer).await.ok()?,
                None => session.location,
            },
            chunk_min: session.chunk_min,
        })
    }

    /// Gives up a session that is not needed; the server forgets it in time if it will not listen.
    async fn cancel(&self, session: &Session) {
        let call = Call::new(Method::DELETE, session.location.clone());
        if let Err(error) = self.registry.send(&self.scopes, &call).await {
            tracing::debug!(%error, "cannot cancel an upload");
        }
    }

    fn part(&self, offset: u64, len: u64) -> Payload {
        Payload::Part(Part {
            source: self.source.clone(),
            offset,
            len,
            digest: self.descriptor.digest,
            progress: Arc::clone(&self.progress),
        })
    }

    async fn uploads_url(&self) -> Result<Url, ClientError> {
        let path = format!("{}/blobs/uploads/", self.repository);
        self.registry.url(&path).await
    }
}

enum Mount {
    Done,
    Session(Session),
    Refused,
}

/// Whether an answer means that the session is gone or stands elsewhere, which a fresh look mends.
fn is_lost(error: &ClientError) -> bool {
    let ClientError::Refused { refusal, .. } = error else {
        return false;
    };
    match refusal.status {
        StatusCode::NOT_FOUND => !refusal.has("NAME_UNKNOWN") && !refusal.has("NAME_INVALID"),
        StatusCode::RANGE_NOT_SATISFIABLE => true,
        StatusCode::BAD_REQUEST => [
            "BLOB_UPLOAD_INVALID",
            "BLOB_UPLOAD_UNKNOWN",
            "RANGE_INVALID",
        ]
        .iter()
        .any(|code| refusal.has(code)),
        _ => false,
    }
}

/// A lost session as the cut that it amounts to.
fn stale(error: &ClientError) -> ClientError {
    match error {
        ClientError::Refused {
            request,
            refusal: Refusal { status, .. },
        } => ClientError::Cut {
            request: request.clone(),
            reason: format!("the upload session was lost ({status})"),
        },
        _ => unreachable!("only refusals tell of lost sessions"),
    }
}
