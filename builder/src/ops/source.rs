//! What files from elsewhere have in common, whether a step of the build fetches them or the build's own beginning: the
//! layer that they become, and the record by which they are found again.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::index::RecordRow;
use store::layer::{LayerId, LayerInfo, TreeDigest};
use store::snapshot::ActiveSnapshot;
use store::{Store, StoreError};

use crate::cache::explain::{Ingredient, Reason};
use crate::cache::hex;
use crate::cache::shared::source::{SharedSource, are_sound};
use crate::contexts::{FetchedLayer, FetchedTree};
use crate::error::StepError;
use crate::graph::op::Encoder;
use crate::remote::{Remote, Validators};
use crate::request::RunSettings;
use crate::solve::{ProgressEvent, ProgressSink, TransferKind};

/// Version of the keys below; what one means must never change under it.
const KEY_DOMAIN: &[u8] = b"longshore source 1";

/// Version of the records.
const RECORD_VERSION: u32 = 1;

/// What fetching works with.
#[derive(Clone, Copy)]
pub(crate) struct Fetching<'a> {
    pub(crate) store: &'a Arc<Store>,
    pub(crate) remote: &'a Remote,
    pub(crate) progress: &'a Arc<dyn ProgressSink>,
    /// Secrets and agents.
    pub(crate) settings: &'a RunSettings,
    /// Whether somebody wants the build to end.
    pub(crate) cancelled: &'a dyn Fn() -> bool,
    /// The time of the build, in seconds since 1970.
    pub(crate) now: i64,
}

/// What was fetched, now or by an earlier build (JSON; see `docs/formats/cache-record.md`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Found {
    version: u32,
    layer: Option<String>,
    tree: Option<String>,
    /// When it was fetched, in seconds since 1970.
    pub(crate) created: i64,
    /// Of a file: the digest of its bytes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) digest: Option<String>,
    /// Of a file: what its server said of its state.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) etag: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) last_modified: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) size: Option<u64>,
    /// When it was changed last: a file by its server, a repository by its commit; seconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) modified: Option<i64>,
    /// Of a repository: the whole name of the commit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) commit: Option<String>,
    /// Of a file that is an archive: what stands here is what was in it.
    #[serde(default)]
    pub(crate) unpacked: bool,
}

impl Found {
    /// What a layer that was just made is.
    pub(crate) fn new(info: &LayerInfo, now: i64) -> Result<Found, StepError> {
        let mut found = Found {
            version: RECORD_VERSION,
            created: now,
            ..Found::default()
        };
        if info.entries > 0 {
            let tree = info.tree.ok_or(StepError::NoKey)?;
            found.layer = Some(info.id.to_string());
            found.tree = Some(hex(&tree.0));
        }
        Ok(found)
    }

    /// The layer; none for a tree without a file. The outer `None` is a record that is damaged.
    fn parsed(&self) -> Option<Option<FetchedLayer>> {
        match (&self.layer, &self.tree) {
            (None, None) => Some(None),
            (Some(id), Some(tree)) => Some(Some(FetchedLayer {
                id: id.parse::<LayerId>().ok()?,
                tree: TreeDigest(*blake3::Hash::from_hex(tree).ok()?.as_bytes()),
            })),
            _ => None,
        }
    }

    /// The tree as the graph has it, under a name for people.
    pub(crate) fn tree(&self, name: &str) -> FetchedTree {
        FetchedTree {
            name: name.to_owned(),
            layer: self.parsed().flatten(),
        }
    }

    /// What other machines are told of it: under keys of what cannot change, and under one of its URL, where its server says
    /// of the file what tells one state from another.
    pub(crate) fn shared(&self, fixed: [u8; 32], url: Option<[u8; 32]>) -> Vec<SharedSource> {
        let Some(layer) = self.parsed() else {
            return Vec::new();
        };
        let of_content = SharedSource {
            key: fixed,
            tree: layer.map(|layer| layer.tree),
            validators: None,
        };
        let validators = Some(self.validators()).filter(are_sound);
        let of_url = url.zip(validators).map(|(key, validators)| SharedSource {
            key,
            validators: Some(validators),
            ..of_content.clone()
        });
        [of_content].into_iter().chain(of_url).collect()
    }

    /// What the server said of the file's state.
    pub(crate) fn validators(&self) -> Validators {
        Validators {
            etag: self.etag.clone(),
            last_modified: self.last_modified.clone(),
            size: self.size,
        }
    }
}

/// The key of a source, of texts that say what it is.
pub(crate) fn key(parts: &[&str]) -> [u8; 32] {
    let mut sink = Encoder::new(KEY_DOMAIN);
    sink.list(parts.len());
    for part in parts {
        sink.text(part);
    }
    sink.finish()
}

/// Why something was fetched, now that it is known what it is. `old` is what was fetched last.
pub(crate) fn why(url: &str, old: Option<&Found>, new: &Found) -> Vec<Reason> {
    let Some(old) = old else {
        return vec![Reason::bare(Ingredient::NoRecord)];
    };
    let change = |name: &str, old: &Option<String>, new: &Option<String>| {
        let reason = Reason {
            old: old.clone(),
            new: new.clone(),
            ..Reason::about(Ingredient::Remote, name)
        };
        (old != new).then_some(reason)
    };
    let content = change(url, &old.digest, &new.digest).or(change(url, &old.commit, &new.commit));
    if let Some(reason) = content {
        return vec![reason];
    }
    // The same as before, though its server says otherwise.
    let headers = [
        change("ETag", &old.etag, &new.etag),
        change("Last-Modified", &old.last_modified, &new.last_modified),
    ];
    let said: Vec<Reason> = headers.into_iter().flatten().collect();
    match (said.is_empty(), &old.layer) {
        (false, _) => said,
        (true, Some(layer)) => vec![Reason::about(Ingredient::LayerMissing, layer)],
        (true, None) => vec![Reason::bare(Ingredient::RecordRemoved)],
    }
}

impl Fetching<'_> {
    /// What an earlier build fetched under this key, if that is still here.
    pub(crate) fn recall(&self, key: &[u8; 32]) -> Result<Option<Found>, StepError> {
        let row = self.store.index().record_hit(key);
        let Some(row) = row.map_err(StoreError::from)? else {
            return Ok(None);
        };
        let found: Option<Found> = serde_json::from_slice(&row.result).ok();
        let found = found.filter(|found| found.version == RECORD_VERSION);
        let Some((found, layer)) = found
            .and_then(|found| Some((found.parsed()?, found)).map(|(layer, found)| (found, layer)))
        else {
            let removed = self.store.index().record_remove(key);
            removed.map_err(StoreError::from)?;
            return Ok(None);
        };
        let is_here = layer.is_none_or(|layer| self.store.snapshots().has(&layer.id));
        Ok(is_here.then_some(found))
    }

    /// What was fetched last under this key, whether it is still here or not.
    pub(crate) fn last(&self, key: &[u8; 32]) -> Option<Found> {
        let row = self.store.index().record_peek(key).ok()??;
        serde_json::from_slice(&row.result).ok()
    }

    /// Keeps what was fetched for other builds.
    pub(crate) fn remember(&self, keys: &[[u8; 32]], found: &Found) -> Result<(), StepError> {
        let layer = found.parsed().flatten();
        for key in keys {
            let row = RecordRow {
                op: *key,
                result: serde_json::to_vec(found).expect("a record is plain text and numbers"),
                layers: layer.iter().map(|layer| layer.id).collect(),
                ingredients: b"{}".to_vec(),
                created: found.created,
            };
            let put = self.store.index().record_put(key, &row);
            put.map_err(StoreError::from)?;
        }
        Ok(())
    }

    /// Makes a layer of what `fill` puts into an empty directory.
    pub(crate) fn layer(
        &self,
        fill: impl FnOnce(&ActiveSnapshot) -> Result<(), StepError>,
    ) -> Result<Found, StepError> {
        let active = self.store.snapshots().prepare(&[])?;
        fill(&active)?;
        let info = self
            .store
            .publish_layer(|| active.commit().map_err(StepError::from))?;
        Found::new(&info, self.now)
    }

    /// Tells how far a download is.
    pub(crate) fn told(&self, id: &str, name: &str, done: u64, total: Option<u64>) {
        self.progress.event(ProgressEvent::Transfer {
            vertex: None,
            kind: TransferKind::Download,
            id: id.to_owned(),
            name: name.to_owned(),
            done,
            total,
        });
    }
}
