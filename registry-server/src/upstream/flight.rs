//! A blob on its way from an upstream: one fetch writes it into an upload session of the storage, and whoever asked for it
//! reads it from there as far as it has come.
//!
//! ```text
//! upstream ─► batch ─► session's bytes, hashed ─► last byte, verified ─► a blob of the repository
//!                          └► reader   └► reader (each at its own pace; nothing waits for one)
//! ```
//!
//! Where the storage is elsewhere, a session there would be written, read and written again. So a blob goes straight to its
//! place then, and is read from a file here meanwhile, if there is a folder with room for it (`upstream/spool`). From such a file alone
//! is read what no quota has room for: it is passed on, and not kept.
//!
//! A fetch holds two batches in memory, however many read. Its last byte is given out only after all of them were
//! verified and stored, so a client either has what it asked for, or sees its connection cut.

use std::fmt;
use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use store::oci::{Digest, Hasher};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

use super::spool::Spool;
use super::{Upstream, UpstreamBlob, UpstreamError};
use crate::error::{ApiError, ErrorCode};
use crate::handover::{Giver, Unwanted, handover};
use crate::quota::Quotas;
use crate::routes::{RepositoryName, UploadId};
use crate::storage::{
    BlobSource, RegistryStorage, RemoteBlob, RemoteStream, StorageResult, UploadData,
    VerifiedUpload,
};

/// Bytes that are gathered while those before are written.
const BATCH_BYTES: usize = 512 * 1024;

/// Bytes that a reader takes at once.
const READ_BYTES: u64 = 256 * 1024;

/// Why a fetch came to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// By the upstream.
    Upstream(UpstreamError),
    /// By the storage, which was logged.
    Storage(ErrorCode),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Upstream(error) => error.fmt(f),
            Failure::Storage(code) => f.write_str(code.row().2),
        }
    }
}

impl From<UpstreamError> for Failure {
    fn from(error: UpstreamError) -> Failure {
        Failure::Upstream(error)
    }
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Failure {
        Failure::Storage(error.code())
    }
}

/// Calls storage where blocking harms nobody.
pub(super) async fn on_storage<T, F>(
    storage: &Arc<dyn RegistryStorage>,
    call: F,
) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(&dyn RegistryStorage) -> StorageResult<T> + Send + 'static,
{
    let storage = Arc::clone(storage);
    let result = tokio::task::spawn_blocking(move || call(&*storage)).await;
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(ApiError::from(error).into()),
        Err(error) => {
            tracing::error!(%error, "a storage call panicked");
            Err(Failure::Storage(ErrorCode::Unknown))
        }
    }
}

/// How far a fetch has come.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Progress {
    /// The upstream has not answered.
    Asking,
    /// So many bytes can be read.
    Arriving(u64),
    /// All are here, and become a blob.
    Settling,
    /// It is a blob of the repository, or was passed on.
    Stored,
    /// It came to nothing.
    Failed(Failure),
}

/// One fetch.
#[derive(Debug)]
pub(super) struct Flight {
    name: RepositoryName,
    digest: Digest,
    storage: Arc<dyn RegistryStorage>,
    progress: watch::Sender<Progress>,
    size: OnceLock<u64>,
    data: OnceLock<Arc<dyn UploadData>>,
    /// Where all of it stays as long as somebody reads it.
    spooled: OnceLock<Arc<File>>,
}

/// What a fetch is made with.
pub(super) struct Fetch {
    pub(super) upstream: Arc<dyn Upstream>,
    /// What the upstream calls the repository.
    pub(super) remote: String,
    pub(super) slots: Arc<Semaphore>,
    pub(super) bytes_max: Option<u64>,
    /// For blobs whose storage is elsewhere, or that are not kept.
    pub(super) spool: Option<PathBuf>,
    /// What room there is.
    pub(super) quotas: Arc<Quotas>,
}

impl Flight {
    pub(super) fn new(
        storage: &Arc<dyn RegistryStorage>,
        name: &RepositoryName,
        digest: Digest,
    ) -> Flight {
        Flight {
            name: name.clone(),
            digest,
            storage: Arc::clone(storage),
            progress: watch::Sender::new(Progress::Asking),
            size: OnceLock::new(),
            data: OnceLock::new(),
            spooled: OnceLock::new(),
        }
    }

    /// The blob's length, once it is known.
    pub(super) async fn size(&self) -> Result<u64, Failure> {
        let mut progress = self.progress.subscribe();
        let now = progress.wait_for(|now| *now != Progress::Asking).await;
        match now.as_deref() {
            Ok(Progress::Failed(failure)) => Err(failure.clone()),
            Ok(_) => Ok(self.size.get().copied().unwrap_or_default()),
            // The sender is ours.
            Err(_) => Err(Failure::Storage(ErrorCode::Unknown)),
        }
    }

    /// Fetches the blob; `ended` is dropped before anybody is told.
    pub(super) async fn run(self: Arc<Flight>, fetch: Fetch, ended: impl Send) {
        // Also where the task is aborted or panics.
        let landing = Landing(Arc::clone(&self));
        let result = self.fetch(&fetch).await;
        drop(ended);
        if let Err(failure) = &result {
            tracing::warn!(repository = %self.name, digest = %self.digest, %failure, "a blob cannot be fetched");
        }
        self.progress.send_replace(match result {
            Ok(()) => Progress::Stored,
            Err(failure) => Progress::Failed(failure),
        });
        drop(landing);
    }

    async fn fetch(&self, fetch: &Fetch) -> Result<(), Failure> {
        let _slot = fetch.slots.acquire().await;
        let (name, digest) = (self.name.clone(), self.digest);
        // Another replica, or a fetch that has just ended.
        let there = on_storage(&self.storage, move |storage| {
            storage.blob_size(&name, &digest)
        });
        if let Some(size) = there.await? {
            self.size.get_or_init(|| size);
            return Ok(());
        }
        let blob = fetch.upstream.blob(&fetch.remote, self.digest).await?;
        let size = blob.size;
        if fetch.bytes_max.is_some_and(|max| size > max) {
            return Err(Failure::Storage(ErrorCode::TooLarge));
        }
        let fits = self.fits(&fetch.quotas, size).await?;
        let folder = fetch.spool.clone();
        let spool = match folder.filter(|_| self.storage.is_remote() || !fits) {
            Some(folder) => {
                let opened = tokio::task::spawn_blocking(move || Spool::open(&folder, size));
                opened.await.ok().and_then(Result::ok)
            }
            None => None,
        };
        let kept = match (fits, spool) {
            (true, Some(spool)) => self.spooled(blob, spool).await,
            (true, None) => self.through_session(blob).await,
            (false, Some(spool)) => return self.passed_on(blob, spool).await,
            (false, None) => return Err(Failure::Storage(ErrorCode::Denied)),
        };
        if kept.is_err() {
            self.give_back(&fetch.quotas).await?;
        }
        kept
    }

    /// Whether the repository may hold the blob; then it counts from now on.
    async fn fits(&self, quotas: &Arc<Quotas>, size: u64) -> Result<bool, Failure> {
        if !quotas.are_about(&self.name) {
            return Ok(true);
        }
        let (quotas, name, digest) = (Arc::clone(quotas), self.name.clone(), self.digest);
        let counted = on_storage(&self.storage, move |storage| {
            quotas.add(storage, &name, &digest, size)
        });
        let over = counted.await?.err();
        if let Some(over) = &over {
            tracing::warn!(repository = %self.name, digest = %self.digest, %over, "a blob is not kept");
        }
        Ok(over.is_none())
    }

    /// It does not count any more: it was not kept.
    async fn give_back(&self, quotas: &Arc<Quotas>) -> Result<(), Failure> {
        let (quotas, name, digest) = (Arc::clone(quotas), self.name.clone(), self.digest);
        on_storage(&self.storage, move |storage| {
            quotas.removed(storage, &name, Some(&digest))
        })
        .await
    }

    /// Gives the blob to who asked for it, and keeps nothing.
    async fn passed_on(&self, blob: UpstreamBlob, spool: Spool) -> Result<(), Failure> {
        self.spooled.get_or_init(|| spool.file());
        let data: Arc<dyn UploadData> = Arc::new(spool);
        self.begun(blob.size, &data);
        let computed = self.receive(blob, &data, None).await?;
        match computed == self.digest {
            true => Ok(()),
            false => Err(self.wrong_content(computed)),
        }
    }

    /// Keeps the blob as it comes; who asked for it reads the spool.
    async fn spooled(&self, blob: UpstreamBlob, spool: Spool) -> Result<(), Failure> {
        let size = blob.size;
        self.spooled.get_or_init(|| spool.file());
        let data: Arc<dyn UploadData> = Arc::new(spool);
        self.begun(size, &data);
        let (giver, mut taker) = handover();
        let (name, digest) = (self.name.clone(), self.digest);
        let keeping = on_storage(&self.storage, move |storage| {
            let kept = storage.keep_blob(&name, &digest, size, &mut taker);
            if taker.was_cut() {
                return Ok(false);
            }
            let kept = kept?;
            // Where it was there already, readers wait for the rest all the same.
            taker.by_ref().for_each(drop);
            Ok(kept && !taker.was_cut())
        });
        let (computed, kept) = tokio::join!(self.receive(blob, &data, Some(giver)), keeping);
        // If the storage takes no more, that is why no more came.
        let (kept, computed) = (kept?, computed?);
        match kept && computed == digest {
            true => Ok(()),
            false => Err(self.wrong_content(computed)),
        }
    }

    /// Bytes can be read from here on.
    fn begun(&self, size: u64, data: &Arc<dyn UploadData>) {
        self.size.get_or_init(|| size);
        self.data.get_or_init(|| Arc::clone(data));
        self.progress.send_replace(Progress::Arriving(0));
    }

    fn wrong_content(&self, computed: Digest) -> Failure {
        let reason = format!("the content of {} is {computed}", self.digest);
        UpstreamError::Wrong { reason }.into()
    }

    /// Keeps the blob in a session of the storage until it is whole; who asked for it reads that.
    async fn through_session(&self, blob: UpstreamBlob) -> Result<(), Failure> {
        let size = blob.size;
        let name = self.name.clone();
        let (id, data) = on_storage(&self.storage, move |storage| {
            let id = storage.create_upload(&name)?;
            let data = storage.upload(&name, &id)?;
            Ok((id, data))
        })
        .await?;
        let Some(data) = data else {
            return Err(Failure::Storage(ErrorCode::Unknown));
        };
        self.begun(size, &data);
        let stored = match self.receive(blob, &data, None).await {
            Ok(computed) => self.settle(&id, &data, size, computed).await,
            Err(failure) => Err(failure),
        };
        if stored.is_err() {
            let (name, id) = (self.name.clone(), id);
            // What cannot be removed now is purged with other uploads that nobody goes on with.
            let _ = on_storage(&self.storage, move |storage| {
                storage.cancel_upload(&name, &id)
            })
            .await;
        }
        stored
    }

    /// Writes what comes, hashes it, and hands it over to `onward`. Bytes wait for no other ones, but for those that are
    /// being written.
    async fn receive(
        &self,
        mut blob: UpstreamBlob,
        data: &Arc<dyn UploadData>,
        onward: Option<Giver>,
    ) -> Result<Digest, Failure> {
        let wrong = |reason: String| Failure::Upstream(UpstreamError::Wrong { reason });
        let mut hasher = Some(Hasher::new(self.digest.algorithm()));
        let (mut batch, mut batch_bytes) = (Vec::new(), 0);
        let (mut received, mut written) = (0u64, 0u64);
        let mut writing: Option<JoinHandle<io::Result<(Hasher, u64)>>> = None;
        let mut ended = Ok(false);
        loop {
            if !batch.is_empty()
                && let Some(hasher) = hasher.take()
            {
                let pieces = std::mem::take(&mut batch);
                batch_bytes = 0;
                writing = Some(write(
                    Arc::clone(data),
                    onward.clone(),
                    pieces,
                    hasher,
                    written,
                ));
            }
            let going_on = matches!(ended, Ok(false));
            if !going_on && writing.is_none() {
                break;
            }
            tokio::select! {
                next = blob.bytes.next(), if going_on && batch_bytes < BATCH_BYTES => match next {
                    None => ended = Ok(true),
                    Some(Err(error)) => ended = Err(error.into()),
                    Some(Ok(piece)) => {
                        received += piece.len() as u64;
                        if received > blob.size {
                            ended = Err(wrong(format!("more than {} bytes came", blob.size)));
                        } else if !piece.is_empty() {
                            batch_bytes += piece.len();
                            batch.push(piece);
                        }
                    }
                },
                done = finished(&mut writing) => {
                    writing = None;
                    let (hashed, end) = done.map_err(ApiError::from)?;
                    (hasher, written) = (Some(hashed), end);
                    // The last byte is held back until all are verified.
                    let told = written.min(blob.size.saturating_sub(1));
                    self.progress.send_replace(Progress::Arriving(told));
                }
            }
        }
        ended?;
        if written != blob.size {
            return Err(wrong(format!("{written} of {} bytes came", blob.size)));
        }
        if let Some(onward) = onward {
            let _ = onward.finish().await;
        }
        let hasher = hasher.expect("nothing is being written");
        Ok(hasher.finish())
    }

    async fn settle(
        &self,
        id: &UploadId,
        data: &Arc<dyn UploadData>,
        size: u64,
        computed: Digest,
    ) -> Result<(), Failure> {
        let verified = VerifiedUpload::check(id.clone(), size, computed, self.digest);
        let Some(upload) = verified else {
            return Err(self.wrong_content(computed));
        };
        self.progress.send_replace(Progress::Settling);
        let (name, data) = (self.name.clone(), Arc::clone(data));
        on_storage(&self.storage, move |storage| {
            storage.commit_upload(&name, &upload.with_tail(data.take_tail()))
        })
        .await
    }
}

/// Says that a fetch came to nothing if nobody has said how it ended.
struct Landing(Arc<Flight>);

impl Drop for Landing {
    fn drop(&mut self) {
        self.0.progress.send_if_modified(|progress| {
            let over = matches!(progress, Progress::Stored | Progress::Failed(_));
            if !over {
                *progress = Progress::Failed(Failure::Storage(ErrorCode::Unavailable));
            }
            !over
        });
    }
}

fn write(
    data: Arc<dyn UploadData>,
    onward: Option<Giver>,
    pieces: Vec<Bytes>,
    mut hasher: Hasher,
    mut offset: u64,
) -> JoinHandle<io::Result<(Hasher, u64)>> {
    tokio::task::spawn_blocking(move || {
        for piece in pieces {
            data.write_at(&piece, offset)?;
            hasher.update(&piece);
            offset += piece.len() as u64;
            if let Some(onward) = &onward {
                // Nobody takes it any more: they say why.
                let handed = onward.give_blocking(piece);
                handed.map_err(|Unwanted| io::Error::from(io::ErrorKind::BrokenPipe))?;
            }
        }
        Ok((hasher, offset))
    })
}

/// Pending while nothing is being written.
async fn finished<T>(writing: &mut Option<JoinHandle<io::Result<T>>>) -> io::Result<T> {
    match writing {
        Some(task) => task
            .await
            .unwrap_or_else(|error| Err(io::Error::other(error))),
        None => std::future::pending().await,
    }
}

/// A blob that is read while it comes.
#[derive(Clone)]
pub(super) struct Arriving(pub(super) Arc<Flight>);

impl fmt::Debug for Arriving {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Arriving").field(&self.0.digest).finish()
    }
}

impl RemoteBlob for Arriving {
    fn stream(&self, range: Range<u64>) -> RemoteStream {
        let reader = Reader {
            flight: Arc::clone(&self.0),
            progress: self.0.progress.subscribe(),
            at: range.start,
            end: range.end,
            stored: None,
        };
        Box::pin(stream::try_unfold(reader, |mut reader| async move {
            let next = reader.next().await?;
            Ok(next.map(|bytes| (bytes, reader)))
        }))
    }
}

struct Reader {
    flight: Arc<Flight>,
    progress: watch::Receiver<Progress>,
    at: u64,
    end: u64,
    /// The blob, once it is one and this reader is not at its end.
    stored: Option<Stored>,
}

enum Stored {
    File(Arc<File>),
    Bytes(Bytes),
    Stream(RemoteStream),
}

impl Reader {
    async fn next(&mut self) -> io::Result<Option<Bytes>> {
        let bytes = loop {
            if self.at >= self.end {
                return Ok(None);
            }
            if self.stored.is_some() {
                break self.read_stored().await?;
            }
            let at = self.at;
            let now = self
                .progress
                .wait_for(|now| match now {
                    Progress::Asking | Progress::Settling => false,
                    Progress::Arriving(readable) => *readable > at,
                    Progress::Stored | Progress::Failed(_) => true,
                })
                .await
                .map(|now| now.clone())
                .map_err(io::Error::other)?;
            match now {
                Progress::Arriving(readable) => {
                    let end = self.end.min(readable);
                    if let Some(bytes) = self.read_session(end).await? {
                        break bytes;
                    }
                }
                Progress::Stored => self.stored = Some(self.open().await?),
                Progress::Failed(failure) => {
                    return Err(io::Error::other(format!("the fetch failed: {failure}")));
                }
                Progress::Asking | Progress::Settling => {}
            }
        };
        if bytes.is_empty() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += bytes.len() as u64;
        Ok(Some(bytes))
    }

    /// What the session has from here on; `None` if it has just ended, and its bytes are elsewhere now.
    async fn read_session(&mut self, end: u64) -> io::Result<Option<Bytes>> {
        let Some(data) = self.flight.data.get().cloned() else {
            return Err(io::ErrorKind::UnexpectedEof.into());
        };
        let (at, count) = (self.at, (end - self.at).min(READ_BYTES));
        let read = blocking(move || {
            let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
            let count = data.read_at(&mut bytes, at)?;
            bytes.truncate(count);
            Ok(Bytes::from(bytes))
        })
        .await;
        match read {
            Ok(bytes) if !bytes.is_empty() => Ok(Some(bytes)),
            failed => {
                // Not the same state as before the read, then: the next look tells what to do.
                let arriving = matches!(&*self.progress.borrow(), Progress::Arriving(_));
                match (arriving, failed) {
                    (false, _) => Ok(None),
                    (true, Err(error)) => Err(error),
                    (true, Ok(_)) => Err(io::ErrorKind::UnexpectedEof.into()),
                }
            }
        }
    }

    async fn open(&mut self) -> io::Result<Stored> {
        let flight = Arc::clone(&self.flight);
        if let Some(file) = flight.spooled.get() {
            return Ok(Stored::File(Arc::clone(file)));
        }
        let (name, digest) = (flight.name.clone(), flight.digest);
        let found = on_storage(&flight.storage, move |storage| storage.blob(&name, &digest));
        let blob = found
            .await
            .map_err(|failure| io::Error::other(failure.to_string()))?;
        let blob = blob.ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        Ok(match blob.source {
            BlobSource::File(file) => Stored::File(file),
            BlobSource::Bytes(bytes) => Stored::Bytes(bytes),
            BlobSource::Remote(blob) => Stored::Stream(blob.stream(self.at..self.end)),
        })
    }

    async fn read_stored(&mut self) -> io::Result<Bytes> {
        let (at, count) = (self.at, (self.end - self.at).min(READ_BYTES));
        match &mut self.stored {
            Some(Stored::File(file)) => {
                let file = Arc::clone(file);
                blocking(move || {
                    let mut bytes = vec![0; usize::try_from(count).unwrap_or(usize::MAX)];
                    file.read_exact_at(&mut bytes, at)?;
                    Ok(Bytes::from(bytes))
                })
                .await
            }
            Some(Stored::Bytes(bytes)) => {
                let index = |at: u64| usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                Ok(bytes.slice(index(at)..index(at + count)))
            }
            Some(Stored::Stream(stream)) => stream.next().await.unwrap_or_else(|| Ok(Bytes::new())),
            None => Ok(Bytes::new()),
        }
    }
}

async fn blocking<T: Send + 'static>(
    call: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(call)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}
