//! Writing a tree: to a registry, or to what lies here.
//!
//! A name comes last: whatever dies on the way leaves blobs that nothing names. What the target has is not moved, and what
//! another repository of the same registry has is mounted.

use std::collections::BTreeSet;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use reqwest::header::ACCEPT;
use reqwest::{Method, StatusCode};
use store::content::Blobs;
use store::oci::manifest::ParsedManifest;
use store::oci::{Descriptor, Digest, Hasher, RawManifest, Reference};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::tree::{Blob, leaves, subject};
use super::{CopyError, Tree, archive, layout};
use crate::auth::bearer::Scope;
use crate::blocking::blocking;
use crate::edit::Sent;
use crate::error::{ClientError, ErrorKind, causes};
use crate::progress::Progress;
use crate::transport::Call;
use crate::upload::Pushed;
use crate::{BlobReader, BlobSource, Client};

/// Manifests that are looked for, or written, at once.
const MANIFESTS_AT_ONCE: usize = 8;

/// Where a tree goes.
#[derive(Clone, Debug)]
pub enum Target {
    /// A repository.
    Registry {
        /// Who writes.
        client: Client,
        /// The repository, and the tag there; with a digest alone nothing is tagged.
        reference: Reference,
        /// Further tags.
        tags: Vec<String>,
        /// Whether blobs are looked for also where the manifest that names them is there.
        force: bool,
    },
    /// A directory that is, or becomes, an OCI layout. What it has stays.
    Layout {
        /// The directory.
        path: PathBuf,
        /// What the image is called there.
        name: Option<String>,
    },
    /// A tar, written anew.
    Archive {
        /// Where it is written.
        to: ArchiveOut,
        /// What the image is called there.
        names: Vec<String>,
        /// Whether it is what `docker load` reads, beside an OCI layout.
        docker: bool,
    },
    /// Blobs and manifests of a store, without a name.
    Blobs(Blobs),
}

/// Where an archive is written.
#[derive(Clone, Debug)]
pub enum ArchiveOut {
    /// A file, which appears when it is whole.
    File(PathBuf),
    /// A stream that is open.
    Stream(Arc<std::fs::File>),
}

/// What a copy did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyReport {
    /// Digest of what was copied.
    pub digest: Digest,
    /// Manifests that were written.
    pub manifests: usize,
    /// Blobs whose bytes moved.
    pub copied: usize,
    /// Blobs that the registry linked from another repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub existed: usize,
    /// Bytes of the blobs that moved.
    pub bytes: u64,
    /// Manifests that are about what was copied, and went with it.
    pub referrers: usize,
}

impl CopyReport {
    pub(crate) fn new(tree: &Tree) -> CopyReport {
        CopyReport {
            digest: tree.root,
            manifests: 0,
            copied: 0,
            mounted: 0,
            existed: 0,
            bytes: 0,
            referrers: tree.referrers.len(),
        }
    }

    fn count(&mut self, pushed: Pushed, size: u64) {
        match pushed {
            Pushed::Existed => self.existed += 1,
            Pushed::Mounted => self.mounted += 1,
            Pushed::Uploaded => {
                self.copied += 1;
                self.bytes += size;
            }
        }
    }
}

/// Writes a tree.
pub async fn write(
    tree: &Tree,
    target: &Target,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    write_rest(tree, target, &Sent::new(), progress).await
}

/// Writes a tree, of whose blobs a registry that is the target was `sent` some already.
pub async fn write_rest(
    tree: &Tree,
    target: &Target,
    sent: &Sent,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    match target {
        Target::Registry {
            client,
            reference,
            tags,
            force,
        } => {
            let registry = ToRegistry {
                tree,
                client,
                reference,
                force: *force,
                sent,
                progress,
            };
            registry.run(tags).await
        }
        Target::Layout { path, name } => layout::write(tree, path, name.as_deref(), progress).await,
        Target::Archive { to, names, docker } => {
            archive::write(tree, to, names, *docker, progress).await
        }
        Target::Blobs(blobs) => to_blobs(tree, blobs, progress).await,
    }
}

struct ToRegistry<'a> {
    tree: &'a Tree,
    client: &'a Client,
    reference: &'a Reference,
    force: bool,
    sent: &'a Sent,
    progress: Arc<dyn Progress>,
}

impl ToRegistry<'_> {
    async fn run(&self, tags: &[String]) -> Result<CopyReport, CopyError> {
        let tree = self.tree;
        if let Some(digest) = self.reference.digest()
            && digest != tree.root
        {
            return Err(CopyError::Unfit {
                place: self.reference.familiar(),
                reason: format!("what is copied has digest {}", tree.root),
            });
        }
        let tagged: Vec<Reference> = self
            .reference
            .tag()
            .into_iter()
            .chain(tags.iter().map(String::as_str))
            .map(|tag| self.reference.with_tag(tag))
            .collect::<Result<_, _>>()?;
        let mut report = CopyReport::new(tree);
        let all = || tree.manifests.iter().chain(&tree.referrers);
        let looked: Vec<(Digest, bool)> =
            futures_util::stream::iter(all().map(|(digest, _)| *digest))
                .map(|digest| async move {
                    let there = !self.force && self.has_manifest(&digest).await?;
                    Ok::<_, ClientError>((digest, there))
                })
                .buffered(MANIFESTS_AT_ONCE)
                .try_collect()
                .await?;
        let there: BTreeSet<Digest> = looked
            .into_iter()
            .filter_map(|(digest, there)| there.then_some(digest))
            .collect();
        let absent: Vec<&(Digest, RawManifest)> = all()
            .filter(|(digest, _)| !there.contains(digest))
            .collect();
        let mut needed: Vec<&Blob> = Vec::new();
        let mut seen = BTreeSet::new();
        for (_, raw) in &absent {
            for leaf in leaves(raw, true) {
                if let Some(blob) = tree.blobs.get(&leaf.digest)
                    && !self.sent.contains_key(&leaf.digest)
                    && seen.insert(leaf.digest)
                {
                    needed.push(blob);
                }
            }
        }
        let sent = self.sent.iter();
        let sent = sent.filter(|(digest, _)| tree.blobs.contains_key(digest));
        report.existed += tree.blobs.len() - needed.len();
        for (pushed, size) in sent.map(|(_, sent)| *sent) {
            report.existed -= 1;
            report.count(pushed, size);
        }
        self.push_blobs(&needed, &mut report).await?;
        self.put(&absent, &mut report).await?;
        let root = tree.root_manifest();
        for tagged in &tagged {
            self.client.put_manifest(tagged, root).await?;
        }
        self.keep_fallback_lists().await?;
        Ok(report)
    }

    async fn push_blobs(&self, needed: &[&Blob], report: &mut CopyReport) -> Result<(), CopyError> {
        let slots = Arc::new(Semaphore::new(self.client.options().parallel.max(1)));
        let mut tasks = JoinSet::new();
        for blob in needed {
            let mount_from = match &blob.source {
                BlobSource::Remote(remote)
                    if remote.reference.registry() == self.reference.registry() =>
                {
                    vec![remote.reference.repository().to_owned()]
                }
                _ => Vec::new(),
            };
            let (client, reference) = (self.client.clone(), self.reference.clone());
            let (blob, slots) = ((*blob).clone(), Arc::clone(&slots));
            let progress = Arc::clone(&self.progress);
            tasks.spawn(async move {
                let _slot = slots.acquire().await.expect("it is never closed");
                let Blob { descriptor, source } = blob;
                let pushed = client
                    .push_blob(&reference, &descriptor, source, &mount_from, progress)
                    .await?;
                Ok::<_, ClientError>((pushed, descriptor.size))
            });
        }
        // Dropping the set on an error ends the other transfers.
        while let Some(joined) = tasks.join_next().await {
            let (pushed, size) = match joined {
                Ok(result) => result?,
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            report.count(pushed, size);
        }
        Ok(())
    }

    /// Images side by side, then the indexes of them one after the other.
    async fn put(
        &self,
        absent: &[&(Digest, RawManifest)],
        report: &mut CopyReport,
    ) -> Result<(), CopyError> {
        let (images, indexes): (Vec<_>, Vec<_>) = absent
            .iter()
            .copied()
            .partition(|(_, raw)| matches!(raw.parsed(), ParsedManifest::Image(_)));
        let puts = images.iter().map(|(digest, raw)| async move {
            let reference = self.reference.with_digest(*digest);
            self.client.put_manifest(&reference, raw).await
        });
        let put: Vec<Digest> = futures_util::stream::iter(puts)
            .buffered(MANIFESTS_AT_ONCE)
            .try_collect()
            .await?;
        report.manifests += put.len();
        for (digest, raw) in indexes {
            let reference = self.reference.with_digest(*digest);
            self.client.put_manifest(&reference, raw).await?;
            report.manifests += 1;
        }
        Ok(())
    }

    /// Writes the lists of referrers where the registry does not.
    async fn keep_fallback_lists(&self) -> Result<(), CopyError> {
        let all = self.tree.manifests.iter().chain(&self.tree.referrers);
        let mut about = std::collections::BTreeMap::<Digest, Vec<Descriptor>>::new();
        for (_, raw) in all {
            if let Some(subject) = subject(raw) {
                let listed = crate::referrers::descriptor_of(raw);
                about.entry(subject).or_default().push(listed);
            }
        }
        if about.is_empty() || self.client.lists_referrers(self.reference).await? {
            return Ok(());
        }
        for (subject, referrers) in &about {
            self.client
                .add_fallback_referrers(self.reference, subject, referrers)
                .await?;
        }
        Ok(())
    }

    async fn has_manifest(&self, digest: &Digest) -> Result<bool, ClientError> {
        has_manifest(self.client, self.reference, digest).await
    }
}

/// Whether a repository that is written to has a manifest. Asked with the rights to write, which a token is needed for anyway.
pub(crate) async fn has_manifest(
    client: &Client,
    reference: &Reference,
    digest: &Digest,
) -> Result<bool, ClientError> {
    let (registry, there) = client.home(reference, true).await?;
    let scopes = [Scope::push(there.repository())];
    let path = format!("{}/manifests/{digest}", there.repository());
    let mut attempts = registry.attempts();
    loop {
        let asking = async {
            let url = registry.url(&path).await?;
            let types = crate::manifest::MANIFEST_TYPES.join(", ");
            let call = Call::new(Method::HEAD, url).header(ACCEPT, &types);
            let answer = registry.send(&scopes, &call).await?;
            match answer.status() {
                StatusCode::OK => Ok(true),
                status if status.is_server_error() || status.as_u16() == 429 => {
                    Err(answer.refused().await)
                }
                // Whatever is wrong shows again, and better, when something is written.
                _ => Ok(false),
            }
        };
        match asking.await {
            Err(error) if attempts.again(&error).await => {}
            result => return result,
        }
    }
}

/// A blob as a blocking reader that fails at the end if the bytes were wrong. To be called within the runtime.
pub(crate) fn open(blob: &Blob, progress: &Arc<dyn Progress>) -> Result<Verifying, CopyError> {
    use std::io::{Seek as _, SeekFrom};
    let progress = Arc::clone(progress);
    let part = |path: &PathBuf, offset: u64, len: u64| {
        let opened = std::fs::File::open(path).and_then(|mut file| {
            file.seek(SeekFrom::Start(offset))?;
            Ok(file.take(len))
        });
        opened.map_err(CopyError::file("read", path))
    };
    let size = blob.descriptor.size;
    let (reader, told): (Box<dyn Read + Send>, _) = match &blob.source {
        BlobSource::Bytes(bytes) => (Box::new(io::Cursor::new(bytes.clone())), Some(progress)),
        BlobSource::File(path) => (Box::new(part(path, 0, u64::MAX)?), Some(progress)),
        BlobSource::Range { path, offset, len } => {
            (Box::new(part(path, *offset, *len)?), Some(progress))
        }
        BlobSource::Remote(remote) => {
            let reader: BlobReader =
                remote
                    .client
                    .read_blob(&remote.reference, &remote.descriptor, progress);
            (Box::new(reader), None)
        }
    };
    if let Some(progress) = &told {
        progress.started(&blob.descriptor.digest, size);
    }
    Ok(Verifying {
        reader,
        digest: blob.descriptor.digest,
        is_remote: matches!(blob.source, BlobSource::Remote(_)),
        left: size,
        hasher: Some(Hasher::new(blob.descriptor.digest.algorithm())),
        told,
    })
}

/// A blob of a source, for reading: exactly its bytes, or an error at the end. To be called within the runtime.
pub fn open_blob(
    source: &super::Source,
    descriptor: &Descriptor,
) -> Result<Box<dyn Read + Send>, CopyError> {
    let blob = Blob {
        descriptor: descriptor.clone(),
        source: source.blob(descriptor)?,
    };
    let nobody: Arc<dyn Progress> = Arc::new(crate::Silent);
    Ok(Box::new(open(&blob, &nobody)?))
}

/// A reader that gives exactly a blob's bytes, or an error.
pub(crate) struct Verifying {
    reader: Box<dyn Read + Send>,
    digest: Digest,
    is_remote: bool,
    left: u64,
    hasher: Option<Hasher>,
    told: Option<Arc<dyn Progress>>,
}

impl Read for Verifying {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(hasher) = &mut self.hasher else {
            return Ok(0);
        };
        let want = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        let count = match want {
            0 if self.left > 0 => return Ok(0),
            0 => 0,
            want => self.reader.read(&mut buffer[..want])?,
        };
        if count == 0 && self.left > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        hasher.update(&buffer[..count]);
        self.left -= count as u64;
        if let Some(told) = &self.told {
            told.advanced(&self.digest, count as u64);
        }
        if self.left > 0 {
            return Ok(count);
        }
        let actual = self.hasher.take().map(Hasher::finish);
        if let Some(actual) = actual.filter(|actual| *actual != self.digest) {
            let wrong = WrongContent {
                expected: self.digest,
                actual,
                is_remote: self.is_remote,
            };
            return Err(io::Error::new(io::ErrorKind::InvalidData, wrong));
        }
        if let Some(told) = &self.told {
            told.finished(&self.digest);
        }
        Ok(count)
    }
}

/// A blob is not what its name says.
#[derive(Debug, thiserror::Error)]
#[error("the content of {expected} has digest {actual}")]
struct WrongContent {
    expected: Digest,
    actual: Digest,
    /// Whether it is a registry that has it so.
    is_remote: bool,
}

/// A reader's error: the registry's where it comes from one, else the file's.
pub(crate) fn read_error(error: io::Error, blob: &Descriptor, place: &str) -> CopyError {
    let wrong = causes(&error).find_map(|cause| cause.downcast_ref::<WrongContent>());
    match wrong {
        Some(wrong) if wrong.is_remote => {
            return CopyError::Client(ClientError::Relayed {
                meaning: ErrorKind::Corrupt,
                reason: format!("`{place}`: {wrong}"),
            });
        }
        Some(wrong) => {
            return CopyError::Corrupt {
                expected: Box::new(wrong.expected),
                actual: Box::new(wrong.actual),
                place: place.to_owned(),
            };
        }
        None => {}
    }
    let client = causes(&error).find_map(|cause| cause.downcast_ref::<ClientError>());
    let relayed = client.map(|client| ClientError::Relayed {
        meaning: client.kind(),
        reason: client.to_string(),
    });
    match relayed {
        Some(relayed) => CopyError::Client(relayed),
        None => CopyError::File {
            action: "read",
            path: PathBuf::from(format!("{place}@{}", blob.digest)),
            source: error,
        },
    }
}

/// Runs `each` on every blob, some at once, on threads that may block; the sum of what it says it moved.
pub(crate) async fn each_blob<F>(
    tree: &Tree,
    parallel: usize,
    report: &mut CopyReport,
    each: F,
) -> Result<(), CopyError>
where
    F: Fn(&Blob) -> Result<bool, CopyError> + Send + Sync + 'static,
{
    let each = Arc::new(each);
    let works = tree.blobs.values().cloned().map(|blob| {
        let each = Arc::clone(&each);
        blocking(move || {
            let size = blob.descriptor.size;
            each(&blob).map(|moved| (moved, size))
        })
    });
    let done: Vec<(bool, u64)> = futures_util::stream::iter(works)
        .buffer_unordered(parallel)
        .try_collect()
        .await?;
    for (moved, size) in done {
        let pushed = if moved {
            Pushed::Uploaded
        } else {
            Pushed::Existed
        };
        report.count(pushed, size);
    }
    Ok(())
}

/// Blobs that are moved at once where the target is on this machine.
pub(crate) const BLOBS_AT_ONCE: usize = 4;

async fn to_blobs(
    tree: &Tree,
    blobs: &Blobs,
    progress: Arc<dyn Progress>,
) -> Result<CopyReport, CopyError> {
    let mut report = CopyReport::new(tree);
    let (into, name) = (blobs.clone(), tree.name.clone());
    each_blob(tree, BLOBS_AT_ONCE, &mut report, move |blob| {
        let wanted = &blob.descriptor;
        if into.has(&wanted.digest)? == Some(wanted.size) {
            return Ok(false);
        }
        let mut reader = open(blob, &progress)?;
        let mut ingest = into.ingest_as(wanted.digest.algorithm())?;
        let mut buffer = vec![0; 256 * 1024];
        loop {
            let count = reader
                .read(&mut buffer)
                .map_err(|error| read_error(error, wanted, &name))?;
            if count == 0 {
                break;
            }
            ingest.append(&buffer[..count])?;
        }
        ingest.commit(Some((wanted.digest, Some(wanted.size))))?;
        Ok(true)
    })
    .await?;
    for (digest, raw) in tree.manifests.iter().chain(&tree.referrers) {
        let mut ingest = blobs.ingest_as(digest.algorithm())?;
        ingest.append(raw.bytes())?;
        ingest.commit(Some((*digest, None)))?;
        report.manifests += 1;
    }
    Ok(report)
}
