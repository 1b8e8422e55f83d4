//! Upload sessions: POST opens (or mounts, or takes a blob at once), PATCH adds, PUT closes, GET tells, DELETE
//! drops.
//!
//! A session's bytes lie in storage, its running hash here: so a restart costs hashing the bytes again, and
//! nothing else. Bytes are hashed and written on blocking threads, a batch at a time, while the next batch
//! arrives; a client that is slow holds memory for one batch and no thread.
//!
//! A body that is cut leaves what arrived: GET says how much, and the client goes on from there. A chunk that
//! is refused leaves nothing. A new request on a session ends an older one that still waits for bytes, because
//! the client has evidently given that connection up.

use std::collections::BTreeMap;
use std::io;
use std::num::NonZero;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::available_parallelism;

use bytes::Bytes;
use http::header::{self, HeaderName, HeaderValue};
use http::{Response, StatusCode};
use hyper::body::Incoming;
use store::oci::{Digest, DigestAlgorithm, Hasher};
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};
use tokio::task::JoinHandle;

use crate::body::Body;
use crate::error::{ApiError, ErrorCode};
use crate::events::event::Content;
use crate::pace::Paced;
use crate::range::{ByteRange, parse_content_range};
use crate::registry::{Answer, CONTENT_DIGEST, Call, Registry, answer, next_data, set};
use crate::routes::{RepositoryName, UploadId};
use crate::storage::{MountSource, UploadData, VerifiedUpload};

/// Bytes that are gathered before they are hashed and written; two such batches exist per upload at most.
const BATCH_BYTES: usize = 256 * 1024;

/// Batches that are hashed at once, for each processor. More would not be done sooner, and whoever asks for something small
/// would wait behind them all.
const HASHING_PER_PROCESSOR: usize = 2;

/// Sessions whose running hash is remembered; idle ones beyond are hashed again when they go on.
const REMEMBERED_MAX: usize = 4096;

/// The sessions that this process has seen.
#[derive(Debug)]
pub(crate) struct Sessions {
    seen: Mutex<BTreeMap<Key, Arc<Session>>>,
    hashing: Arc<Semaphore>,
}

type Key = (RepositoryName, UploadId);

#[derive(Debug)]
struct Session {
    /// Counts requests; a waiting older one sees the change and ends.
    turn: watch::Sender<u64>,
    running: Arc<tokio::sync::Mutex<Running>>,
}

/// The hash of the first `hashed` bytes.
#[derive(Clone, Debug)]
struct Running {
    hasher: Hasher,
    algorithm: DigestAlgorithm,
    hashed: u64,
}

impl Running {
    fn new(algorithm: DigestAlgorithm) -> Running {
        Running {
            hasher: Hasher::new(algorithm),
            algorithm,
            hashed: 0,
        }
    }
}

impl Default for Sessions {
    fn default() -> Sessions {
        let processors = available_parallelism().map_or(1, NonZero::get);
        Sessions {
            seen: Mutex::default(),
            hashing: Arc::new(Semaphore::new(processors * HASHING_PER_PROCESSOR)),
        }
    }
}

impl Sessions {
    fn seen(&self) -> MutexGuard<'_, BTreeMap<Key, Arc<Session>>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Those that a request holds.
    pub(crate) fn in_progress(&self) -> usize {
        let sessions = self.seen();
        let held = |session: &&Arc<Session>| Arc::strong_count(&session.running) > 1;
        sessions.values().filter(held).count()
    }

    fn session(&self, name: &RepositoryName, id: &UploadId) -> Arc<Session> {
        let mut sessions = self.seen();
        if sessions.len() >= REMEMBERED_MAX {
            // Idle: nobody but this map holds it.
            sessions.retain(|_, session| Arc::strong_count(session) > 1);
        }
        let session = sessions
            .entry((name.clone(), id.clone()))
            .or_insert_with(|| {
                Arc::new(Session {
                    turn: watch::Sender::new(0),
                    running: Arc::new(tokio::sync::Mutex::new(Running::new(
                        DigestAlgorithm::Sha256,
                    ))),
                })
            });
        Arc::clone(session)
    }

    fn forget(&self, name: &RepositoryName, id: &UploadId) {
        let mut sessions = self.seen();
        sessions.remove(&(name.clone(), id.clone()));
    }
}

/// One request's exclusive hold on a session.
struct Hold {
    name: RepositoryName,
    id: UploadId,
    data: Arc<dyn UploadData>,
    running: OwnedMutexGuard<Running>,
    turn: watch::Receiver<u64>,
}

impl Registry {
    /// POST: mount, whole blob at once, or a new session.
    pub(crate) async fn start_upload(&self, name: RepositoryName, call: &mut Call) -> Answer {
        if let Some(mount) = call.query.first("mount") {
            let digest = parse_digest(mount)?;
            let from = call.query.first("from").map(RepositoryName::parse);
            // A source that cannot exist has no blobs: the client uploads then.
            if let Ok(from) = from.transpose() {
                let (target, gate) = (name.clone(), Arc::clone(&self.gate));
                let visitor = call.visitor.clone();
                let mounted = self
                    .blocking(move |storage| {
                        // Of what the client may not pull from it must not even learn whether it is there.
                        let may = |from: &RepositoryName| gate.may_mount_from(&visitor, from);
                        let from = match &from {
                            Some(from) if !may(from) => return Ok(false),
                            Some(from) => MountSource::Repository(from),
                            None => MountSource::Any(&may),
                        };
                        storage.mount_blob(&target, &digest, from)
                    })
                    .await?;
                if mounted {
                    self.count_mounted(&name, digest).await?;
                    return Ok(created(&name, &digest));
                }
            }
        }
        let algorithm = match call.query.first("digest-algorithm") {
            Some(text) => text
                .parse()
                .map_err(|error| ApiError::with(ErrorCode::DigestInvalid, format!("{error}")))?,
            None => DigestAlgorithm::Sha256,
        };
        let digest = match call.query.first("digest") {
            Some(text) if call.query.first("mount").is_none() => Some(parse_digest(text)?),
            _ => None,
        };
        let target = name.clone();
        let id = self
            .blocking(move |storage| storage.create_upload(&target))
            .await?;
        if digest.is_none() && algorithm == DigestAlgorithm::Sha256 {
            return Ok(session_answer(StatusCode::ACCEPTED, &name, &id, 0));
        }
        let mut hold = self.hold(name.clone(), id.clone()).await?;
        *hold.running = Running::new(digest.map_or(algorithm, |digest| digest.algorithm()));
        let Some(digest) = digest else {
            return Ok(session_answer(StatusCode::ACCEPTED, &name, &id, 0));
        };
        let stored = match self.receive(&mut hold, call, None).await {
            Ok(()) => self.finish(hold, digest).await,
            Err(error) => Err(error),
        };
        if stored.is_err() {
            // The client never learnt this session's name.
            self.drop_upload(name, id).await?;
        }
        stored
    }

    /// PATCH: more bytes, in order.
    pub(crate) async fn patch_upload(
        &self,
        name: RepositoryName,
        id: UploadId,
        call: &mut Call,
    ) -> Answer {
        let mut hold = self.hold(name, id).await?;
        let chunk = expected_chunk(&hold, call)?;
        let received = self.receive(&mut hold, call, chunk).await;
        self.flush(&hold).await?;
        received?;
        Ok(session_answer(
            StatusCode::ACCEPTED,
            &hold.name,
            &hold.id,
            hold.running.hashed,
        ))
    }

    /// PUT: the last bytes, if any, and the digest of all.
    pub(crate) async fn put_upload(
        &self,
        name: RepositoryName,
        id: UploadId,
        call: &mut Call,
    ) -> Answer {
        let digest = parse_digest(call.query.first("digest").unwrap_or_default())?;
        let mut hold = self.hold(name, id).await?;
        let chunk = expected_chunk(&hold, call)?;
        if let Err(error) = self.receive(&mut hold, call, chunk).await {
            match error.code() {
                // For lack of room: it is not kept for later, outside of what is counted.
                ErrorCode::Denied => drop(self.drop_upload(hold.name, hold.id).await?),
                _ => self.flush(&hold).await?,
            }
            return Err(error);
        }
        self.finish(hold, digest).await
    }

    /// What arrived is found by whoever opens the session next, also where the body was cut.
    async fn flush(&self, hold: &Hold) -> Result<(), ApiError> {
        let data = Arc::clone(&hold.data);
        let flushed = self.on_disk(move || data.flush()).await;
        if flushed.is_err() {
            // More was hashed than is kept.
            self.sessions.forget(&hold.name, &hold.id);
        }
        flushed
    }

    /// GET: how much has arrived.
    pub(crate) async fn upload_status(&self, name: RepositoryName, id: UploadId) -> Answer {
        let (target, session) = (name.clone(), id.clone());
        let data = self
            .blocking(move |storage| storage.upload(&target, &session))
            .await?
            .ok_or_else(|| unknown(&id))?;
        let size = self.on_disk(move || data.size()).await?;
        Ok(session_answer(StatusCode::NO_CONTENT, &name, &id, size))
    }

    /// DELETE: the session is dropped.
    pub(crate) async fn cancel_upload(&self, name: RepositoryName, id: UploadId) -> Answer {
        // Ends a request that still receives, and waits for it.
        let hold = self.hold(name.clone(), id.clone()).await?;
        let dropped = self.drop_upload(name, id.clone()).await;
        drop(hold);
        if !dropped? {
            return Err(unknown(&id));
        }
        Ok(answer(StatusCode::NO_CONTENT))
    }

    async fn drop_upload(&self, name: RepositoryName, id: UploadId) -> Result<bool, ApiError> {
        self.sessions.forget(&name, &id);
        self.blocking(move |storage| storage.cancel_upload(&name, &id))
            .await
    }

    /// Takes the session over, and brings its hash up to what is stored.
    async fn hold(&self, name: RepositoryName, id: UploadId) -> Result<Hold, ApiError> {
        let session = self.sessions.session(&name, &id);
        let mut mine = 0;
        session.turn.send_modify(|turn| {
            *turn += 1;
            mine = *turn;
        });
        let running = Arc::clone(&session.running).lock_owned().await;
        let turn = session.turn.subscribe();
        if *turn.borrow() != mine {
            return Err(taken_over());
        }
        let (target, wanted) = (name.clone(), id.clone());
        let Some(data) = self
            .blocking(move |storage| storage.upload(&target, &wanted))
            .await?
        else {
            self.sessions.forget(&name, &id);
            return Err(unknown(&id));
        };
        let mut hold = Hold {
            name,
            id,
            data,
            running,
            turn,
        };
        self.catch_up(&mut hold).await?;
        Ok(hold)
    }

    /// Hashes what is stored but was not hashed by this process.
    async fn catch_up(&self, hold: &mut Hold) -> Result<(), ApiError> {
        let data = Arc::clone(&hold.data);
        let size = self.on_disk(move || data.size()).await?;
        if hold.running.hashed > size {
            *hold.running = Running::new(hold.running.algorithm);
        }
        if hold.running.hashed < size {
            let (data, mut running) = (Arc::clone(&hold.data), hold.running.clone());
            *hold.running = self
                .on_disk(move || {
                    hash_stored(&*data, &mut running)?;
                    Ok(running)
                })
                .await?;
        }
        Ok(())
    }

    /// Adds a body to the session. On a cut body the bytes that arrived stay; on a refused one none do.
    async fn receive(
        &self,
        hold: &mut Hold,
        call: &mut Call,
        chunk: Option<ByteRange>,
    ) -> Result<(), ApiError> {
        let before = hold.running.clone();
        let length = call.content_length();
        let size_max = self.rules.blob_bytes_max.unwrap_or(u64::MAX);
        let mut refusal = None;
        if length.is_some_and(|length| before.hashed.saturating_add(length) > size_max) {
            return Err(too_large(size_max));
        }
        // Whether it fits is asked again at the end; this spares sending what will not.
        let digest = call
            .query
            .first("digest")
            .and_then(|text| text.parse().ok());
        let bytes = before.hashed.saturating_add(length.unwrap_or(0));
        self.check_quota(&hold.name, digest, bytes).await?;
        let hashing = Arc::clone(&self.sessions.hashing);
        let mut writer = Writer::new(Arc::clone(&hold.data), before.clone(), hashing);
        let mut received = before.hashed;
        let mut paced = self.rules.pace.start();
        let ended = loop {
            match next_batch(hold, &mut call.body, &mut paced).await {
                Ok(None) => break Ok(()),
                Ok(Some(data)) => {
                    received = received.saturating_add(data.len() as u64);
                    if received > size_max {
                        refusal = Some(too_large(size_max));
                    } else if chunk.is_some_and(|chunk| received > chunk.end) {
                        refusal = Some(wrong_size("more"));
                    }
                    if refusal.is_some() {
                        break Ok(());
                    }
                    writer.add(data).await?;
                }
                Err(error) => break Err(error),
            }
        };
        *hold.running = writer.finish().await?;
        let added = hold.running.hashed - before.hashed;
        self.observer.metrics.received_bytes.add(added);
        if ended.is_ok() && refusal.is_none() && chunk.is_some_and(|chunk| received < chunk.end) {
            refusal = Some(wrong_size("fewer"));
        }
        match refusal {
            None => ended,
            Some(error) => {
                let (data, size) = (Arc::clone(&hold.data), before.hashed);
                self.on_disk(move || data.truncate(size)).await?;
                *hold.running = before;
                Err(error)
            }
        }
    }

    /// Refuses what is known not to fit.
    pub(crate) async fn check_quota(
        &self,
        name: &RepositoryName,
        digest: Option<Digest>,
        bytes: u64,
    ) -> Result<(), ApiError> {
        if !self.quotas.are_about(name) {
            return Ok(());
        }
        let (quotas, name) = (Arc::clone(&self.quotas), name.clone());
        let fits = self.blocking(move |storage| quotas.check(storage, &name, digest, bytes));
        Ok(fits.await??)
    }

    /// Counts a blob that was mounted; takes it away again if it does not fit.
    pub(crate) async fn count_mounted(
        &self,
        name: &RepositoryName,
        digest: Digest,
    ) -> Result<(), ApiError> {
        if !self.quotas.are_about(name) {
            return Ok(());
        }
        let (quotas, name) = (Arc::clone(&self.quotas), name.clone());
        let counted = self
            .blocking(move |storage| {
                let bytes = storage.blob_size(&name, &digest)?.unwrap_or(0);
                let counted = quotas.add(storage, &name, &digest, bytes)?;
                if counted.is_err() {
                    storage.remove_blob(&name, &digest)?;
                }
                Ok(counted)
            })
            .await?;
        Ok(counted?)
    }

    /// Compares the digest and makes the session a blob.
    async fn finish(&self, hold: Hold, digest: Digest) -> Answer {
        let computed = if hold.running.algorithm == digest.algorithm() {
            hold.running.hasher.clone().finish()
        } else {
            let data = Arc::clone(&hold.data);
            self.on_disk(move || {
                let mut running = Running::new(digest.algorithm());
                hash_stored(&*data, &mut running)?;
                Ok(running.hasher.finish())
            })
            .await?
        };
        let (name, id) = (hold.name.clone(), hold.id.clone());
        match VerifiedUpload::check(id.clone(), hold.running.hashed, computed, digest) {
            Some(upload) => {
                let upload = upload.with_tail(hold.data.take_tail());
                if let Err(error) = self.commit(name, upload).await {
                    if error.code() == ErrorCode::Denied {
                        self.drop_upload(hold.name, id).await?;
                    }
                    return Err(error);
                }
                self.sessions.forget(&hold.name, &id);
                let mut response = created(&hold.name, &digest);
                response.extensions_mut().insert(Content {
                    media_type: None,
                    size: hold.running.hashed,
                });
                Ok(response)
            }
            None => {
                self.drop_upload(name, id).await?;
                Err(ApiError::with(
                    ErrorCode::DigestInvalid,
                    format!("the content is {computed}, not {digest}"),
                ))
            }
        }
    }

    /// Makes a session a blob, if there is room for it; `DENIED` otherwise.
    pub(crate) async fn commit(
        &self,
        name: RepositoryName,
        upload: VerifiedUpload,
    ) -> Result<(), ApiError> {
        let quotas = Arc::clone(&self.quotas);
        let committed = self.blocking(move |storage| {
            let counted = quotas.add(storage, &name, upload.digest(), upload.size())?;
            if counted.is_ok() {
                storage.commit_upload(&name, &upload)?;
            }
            Ok(counted)
        });
        Ok(committed.await??)
    }

    async fn on_disk<T: Send + 'static>(
        &self,
        call: impl FnOnce() -> io::Result<T> + Send + 'static,
    ) -> Result<T, ApiError> {
        joined(tokio::task::spawn_blocking(call)).await
    }
}

/// What arrives next, unless a newer request takes the session over.
async fn next_batch(
    hold: &mut Hold,
    body: &mut Incoming,
    paced: &mut Paced,
) -> Result<Option<Bytes>, ApiError> {
    tokio::select! {
        biased;
        _ = hold.turn.changed() => Err(taken_over()),
        data = next_data(body, paced) => data,
    }
}

/// What `Content-Range` announces, after checking that it begins where the session ends.
fn expected_chunk(hold: &Hold, call: &Call) -> Result<Option<ByteRange>, ApiError> {
    let Some(value) = call.headers.get(header::CONTENT_RANGE) else {
        return Ok(None);
    };
    let size = hold.running.hashed;
    let Some(chunk) = value.to_str().ok().and_then(parse_content_range) else {
        return Err(ApiError::with(
            ErrorCode::BlobUploadInvalid,
            "Content-Range is not `first-last`",
        ));
    };
    if chunk.start != size {
        let mut error = ApiError::with(
            ErrorCode::RangeInvalid,
            format!("the chunk begins at {}: expected {size}", chunk.start),
        );
        let told = session_answer(StatusCode::ACCEPTED, &hold.name, &hold.id, size);
        for (name, value) in told.headers() {
            error = error.header(name.clone(), value.clone());
        }
        return Err(error);
    }
    match call.content_length() {
        Some(length) if length != chunk.size() => Err(ApiError::with(
            ErrorCode::SizeInvalid,
            format!(
                "Content-Range is of {} bytes but Content-Length is {length}",
                chunk.size()
            ),
        )),
        _ => Ok(Some(chunk)),
    }
}

/// Hashes and writes batches, one in flight while the next is gathered.
struct Writer {
    data: Arc<dyn UploadData>,
    batch: Vec<Bytes>,
    batch_bytes: usize,
    /// `None` while a batch is in flight.
    running: Option<Running>,
    in_flight: Option<JoinHandle<io::Result<Running>>>,
    hashing: Arc<Semaphore>,
}

impl Writer {
    fn new(data: Arc<dyn UploadData>, running: Running, hashing: Arc<Semaphore>) -> Writer {
        Writer {
            data,
            batch: Vec::new(),
            batch_bytes: 0,
            running: Some(running),
            in_flight: None,
            hashing,
        }
    }

    async fn add(&mut self, data: Bytes) -> Result<(), ApiError> {
        self.batch_bytes += data.len();
        self.batch.push(data);
        if self.batch_bytes >= BATCH_BYTES {
            self.flush().await?;
        }
        Ok(())
    }

    /// Waits for the batch in flight and sends the next one off.
    async fn flush(&mut self) -> Result<(), ApiError> {
        let mut running = self.settle().await?;
        let batch = std::mem::take(&mut self.batch);
        self.batch_bytes = 0;
        let data = Arc::clone(&self.data);
        let turn = Arc::clone(&self.hashing).acquire_owned().await;
        self.in_flight = Some(tokio::task::spawn_blocking(move || {
            for bytes in &batch {
                running.hasher.update(bytes);
            }
            // Writing may wait for a network.
            drop(turn);
            for bytes in batch {
                data.write_at(&bytes, running.hashed)?;
                running.hashed += bytes.len() as u64;
            }
            Ok(running)
        }));
        Ok(())
    }

    async fn settle(&mut self) -> Result<Running, ApiError> {
        match self.in_flight.take() {
            Some(task) => joined(task).await,
            None => Ok(self
                .running
                .take()
                .expect("set unless a batch is in flight")),
        }
    }

    /// Everything is written; what was hashed.
    async fn finish(mut self) -> Result<Running, ApiError> {
        if !self.batch.is_empty() {
            self.flush().await?;
        }
        self.settle().await
    }
}

fn hash_stored(data: &dyn UploadData, running: &mut Running) -> io::Result<()> {
    let mut buffer = vec![0; BATCH_BYTES];
    loop {
        let count = data.read_at(&mut buffer, running.hashed)?;
        if count == 0 {
            return Ok(());
        }
        running.hasher.update(&buffer[..count]);
        running.hashed += count as u64;
    }
}

async fn joined<T>(task: JoinHandle<io::Result<T>>) -> Result<T, ApiError> {
    let result = task
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)));
    Ok(result?)
}

fn parse_digest(text: &str) -> Result<Digest, ApiError> {
    text.parse()
        .map_err(|error| ApiError::with(ErrorCode::DigestInvalid, format!("{error}")))
}

fn unknown(id: &UploadId) -> ApiError {
    ApiError::with(ErrorCode::BlobUploadUnknown, id.to_string())
}

fn taken_over() -> ApiError {
    ApiError::with(
        ErrorCode::BlobUploadInvalid,
        "a newer request took this upload over",
    )
}

fn too_large(size_max: u64) -> ApiError {
    ApiError::with(
        ErrorCode::TooLarge,
        format!("blobs of at most {size_max} bytes are taken"),
    )
}

fn wrong_size(how: &str) -> ApiError {
    ApiError::with(
        ErrorCode::SizeInvalid,
        format!("the body has {how} bytes than Content-Range announces"),
    )
}

/// 201 with the blob's place.
fn created(name: &RepositoryName, digest: &Digest) -> Response<Body> {
    let mut response = answer(StatusCode::CREATED);
    let location = format!("/v2/{name}/blobs/{digest}");
    set(&mut response, header::LOCATION, &location);
    set(&mut response, CONTENT_DIGEST, &digest.to_string());
    response
}

/// Where the session is and how much of it there is. No bytes at all are told as `0-0`, which is what every
/// client expects of a new session.
fn session_answer(
    status: StatusCode,
    name: &RepositoryName,
    id: &UploadId,
    size: u64,
) -> Response<Body> {
    let mut response = answer(status);
    let location = format!("/v2/{name}/blobs/uploads/{id}");
    set(&mut response, header::LOCATION, &location);
    set(
        &mut response,
        header::RANGE,
        &format!("0-{}", size.saturating_sub(1)),
    );
    set(
        &mut response,
        HeaderName::from_static("docker-upload-uuid"),
        id.as_str(),
    );
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
