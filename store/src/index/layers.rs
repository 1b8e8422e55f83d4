//! Layers and their compressed forms.

use rusqlite::{OptionalExtension, Row};

use super::{Index, IndexError, epoch, parse};
use crate::layer::{LayerId, LayerInfo, TreeDigest};
use crate::oci::{Descriptor, DiffId, Digest};

const COLUMNS: &str = "id, tree, diff_id, bytes, entries";

impl Index {
    /// Notes a layer whose directory stands, or notes it again; a tree digest or DiffID already known is kept.
    ///
    /// Whoever publishes a layer's directory must look once more that it is there *after* this call: until the row
    /// stands, a garbage collection may still move the directory away.
    pub fn put_layer(&self, info: &LayerInfo) -> Result<(), IndexError> {
        let time = self.use_time()?;
        self.write(|t| {
            let epoch = epoch(t)?;
            t.prepare_cached(
                "INSERT INTO layers (id, tree, diff_id, bytes, entries, last_used, epoch)
                 VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7)
                 ON CONFLICT (id) DO UPDATE SET
                   tree = coalesce(excluded.tree, tree),
                   diff_id = coalesce(excluded.diff_id, diff_id),
                   bytes = excluded.bytes,
                   entries = excluded.entries,
                   last_used = max(last_used, excluded.last_used)",
            )?
            .execute((
                info.id.to_string(),
                info.tree.map(|tree| tree.0),
                info.diff_id.map(|id| id.to_string()),
                info.bytes.cast_signed(),
                info.entries.cast_signed(),
                time.now,
                epoch,
            ))?;
            Ok(())
        })
    }

    /// A layer by its name; from now on, and for as long as this store is open, no garbage collection removes it.
    pub fn layer(&self, id: &LayerId) -> Result<Option<LayerInfo>, IndexError> {
        let found = self.layers_where("id = ?1", &id.to_string())?;
        self.used(found).map(|found| found.into_iter().next())
    }

    /// A layer by the digest of its tar; protected as by [`Index::layer`]. Of several, one that came as that tar.
    pub fn layer_by_diff_id(&self, diff_id: &DiffId) -> Result<Option<LayerInfo>, IndexError> {
        let found = self.layers_where("diff_id = ?1", &diff_id.to_string())?;
        // `sha256-…` sorts after `b3-…`.
        self.used(found).map(|found| found.into_iter().next_back())
    }

    /// The layers with this tree, in order of their names; protected as by [`Index::layer`].
    pub fn layers_by_tree(&self, tree: &TreeDigest) -> Result<Vec<LayerInfo>, IndexError> {
        let found = self.layers_where("tree = ?1", &tree.0)?;
        self.used(found)
    }

    /// All layers, in order of their names. Protects none.
    pub fn layers(&self) -> Result<Vec<LayerInfo>, IndexError> {
        let found = self.layers_where("?1", &true)?;
        Ok(found.into_iter().map(|(info, _)| info).collect())
    }

    /// Notes the digest of a layer's canonical tar; nothing happens if the layer is not known.
    pub fn set_diff_id(&self, id: &LayerId, diff_id: &DiffId) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached("UPDATE layers SET diff_id = ?2 WHERE id = ?1")?
                .execute((id.to_string(), diff_id.to_string()))?;
            Ok(())
        })
    }

    /// Notes a blob that decompresses to the tar with this DiffID. The blob need not be in the store: a digest that a
    /// registry has is worth knowing too. `compression` is
    /// `none`, `gzip`, `zstd` or `zstd:chunked`.
    pub fn remember(
        &self,
        diff_id: &DiffId,
        compression: &str,
        descriptor: &Descriptor,
    ) -> Result<(), IndexError> {
        let json = serde_json::to_string(descriptor).expect("a descriptor has only text keys");
        self.write(|t| {
            t.prepare_cached(
                "INSERT OR REPLACE INTO compressed (diff_id, digest, compression, descriptor)
                 VALUES (?1, ?2, ?3, ?4)",
            )?
            .execute((
                diff_id.to_string(),
                descriptor.digest.to_string(),
                compression,
                json,
            ))?;
            Ok(())
        })
    }

    /// The blobs noted for a DiffID, each with its compression, in order of their digests. Look whether they are there.
    pub fn compressed(&self, diff_id: &DiffId) -> Result<Vec<(String, Descriptor)>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT compression, descriptor FROM compressed WHERE diff_id = ?1 ORDER BY digest",
            )?;
            let mut rows = statement.query([diff_id.to_string()])?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let json: String = row.get(1)?;
                let descriptor = serde_json::from_str(&json)
                    .map_err(|_| super::bad("compressed.descriptor", &json))?;
                found.push((row.get(0)?, descriptor));
            }
            Ok(found)
        })
    }

    /// Notes that a compression made the layer `made` of another one.
    pub fn note_rewritten(
        &self,
        diff_id: &DiffId,
        compression: &str,
        made: &DiffId,
    ) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached(
                "INSERT OR REPLACE INTO rewritten (diff_id, compression, made) VALUES (?1, ?2, ?3)",
            )?
            .execute((diff_id.to_string(), compression, made.to_string()))?;
            Ok(())
        })
    }

    /// The layer that a compression made of another one, where that is known.
    pub fn rewritten(
        &self,
        diff_id: &DiffId,
        compression: &str,
    ) -> Result<Option<DiffId>, IndexError> {
        self.read(|c| {
            c.prepare_cached("SELECT made FROM rewritten WHERE diff_id = ?1 AND compression = ?2")?
                .query_row((diff_id.to_string(), compression), |row| {
                    parse("rewritten.made", row.get_ref(0)?.as_str()?).map(DiffId)
                })
                .optional()
        })
    }

    /// At most `limit` blobs noted in a compression, in no order of meaning. Look whether they are there.
    pub fn blobs_in(&self, compression: &str, limit: u32) -> Result<Vec<Descriptor>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT descriptor FROM compressed WHERE compression = ?1 LIMIT ?2",
            )?;
            let mut rows = statement.query((compression, limit))?;
            let mut found = Vec::new();
            while let Some(row) = rows.next()? {
                let json: String = row.get(0)?;
                let descriptor = serde_json::from_str(&json)
                    .map_err(|_| super::bad("compressed.descriptor", &json))?;
                found.push(descriptor);
            }
            Ok(found)
        })
    }

    /// The DiffID of what a blob decompresses to, where that is known.
    pub fn diff_id_of_blob(&self, digest: &Digest) -> Result<Option<DiffId>, IndexError> {
        self.read(|c| {
            c.prepare_cached("SELECT diff_id FROM compressed WHERE digest = ?1 LIMIT 1")?
                .query_row([digest.to_string()], |row| {
                    parse("compressed.diff_id", row.get_ref(0)?.as_str()?).map(DiffId)
                })
                .optional()
        })
    }

    fn layers_where(
        &self,
        condition: &str,
        value: &dyn rusqlite::ToSql,
    ) -> Result<Vec<(LayerInfo, i64)>, IndexError> {
        self.read(|c| {
            let mut statement = c.prepare_cached(&format!(
                "SELECT {COLUMNS}, last_used FROM layers WHERE {condition} ORDER BY id"
            ))?;
            let rows = statement.query_map([value], |row| Ok((layer_info(row)?, row.get(5)?)))?;
            rows.collect()
        })
    }

    /// Stamps layers as used, and drops those that were removed before the stamp could protect them.
    fn used(&self, found: Vec<(LayerInfo, i64)>) -> Result<Vec<LayerInfo>, IndexError> {
        if found.is_empty() {
            return Ok(Vec::new());
        }
        let time = self.use_time()?;
        if found
            .iter()
            .all(|(_, last_used)| *last_used >= time.fresh_since)
        {
            return Ok(found.into_iter().map(|(info, _)| info).collect());
        }
        self.write(|t| {
            let mut statement =
                t.prepare_cached("UPDATE layers SET last_used = max(last_used, ?2) WHERE id = ?1")?;
            let mut kept = Vec::with_capacity(found.len());
            for (info, _) in found {
                if statement.execute((info.id.to_string(), time.now))? > 0 {
                    kept.push(info);
                }
            }
            Ok(kept)
        })
    }
}

fn layer_info(row: &Row<'_>) -> rusqlite::Result<LayerInfo> {
    let diff_id: Option<String> = row.get(2)?;
    Ok(LayerInfo {
        id: parse("layers.id", row.get_ref(0)?.as_str()?)?,
        tree: row.get::<_, Option<[u8; 32]>>(1)?.map(TreeDigest),
        diff_id: diff_id
            .map(|text| parse("layers.diff_id", &text).map(DiffId))
            .transpose()?,
        bytes: row.get::<_, i64>(3)?.cast_unsigned(),
        entries: row.get::<_, i64>(4)?.cast_unsigned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::MediaType;

    #[test]
    fn layers_are_found_by_each_name() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let diff_id = DiffId(Digest::of(b"tar"));
        let built = LayerInfo {
            id: LayerId::Built([1; 32]),
            tree: Some(TreeDigest([2; 32])),
            diff_id: None,
            bytes: 3,
            entries: 4,
        };
        index.put_layer(&built).unwrap();
        assert_eq!(index.layer(&built.id).unwrap(), Some(built.clone()));
        assert_eq!(index.layer_by_diff_id(&diff_id).unwrap(), None);
        index.set_diff_id(&built.id, &diff_id).unwrap();
        let named = LayerInfo {
            diff_id: Some(diff_id),
            ..built
        };
        assert_eq!(
            index.layer_by_diff_id(&diff_id).unwrap(),
            Some(named.clone())
        );
        // Put again without what is known meanwhile.
        index.put_layer(&built).unwrap();
        let by_tree = index.layers_by_tree(&TreeDigest([2; 32])).unwrap();
        assert_eq!(by_tree, std::slice::from_ref(&named));
        let unpacked = LayerInfo {
            id: LayerId::Unpacked(diff_id),
            tree: None,
            ..named
        };
        index.put_layer(&unpacked).unwrap();
        assert_eq!(index.layer_by_diff_id(&diff_id).unwrap(), Some(unpacked));
        assert_eq!(index.layers().unwrap().len(), 2);
    }

    #[test]
    fn what_a_compression_made_is_known() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let [tar, made, other] = [b"1", b"2", b"3"].map(|text| DiffId(Digest::of(text)));
        assert_eq!(index.rewritten(&tar, "estargz").unwrap(), None);
        index.note_rewritten(&tar, "estargz", &other).unwrap();
        index.note_rewritten(&tar, "estargz", &made).unwrap();
        assert_eq!(index.rewritten(&tar, "estargz").unwrap(), Some(made));
        assert_eq!(index.rewritten(&tar, "gzip").unwrap(), None);
    }

    #[test]
    fn compressed_forms_are_found_both_ways() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let diff_id = DiffId(Digest::of(b"tar"));
        let blob = Descriptor::of(MediaType::OCI_LAYER_GZIP, b"gz");
        index.remember(&diff_id, "gzip", &blob).unwrap();
        index.remember(&diff_id, "gzip", &blob).unwrap();
        let found = index.compressed(&diff_id).unwrap();
        assert_eq!(found, [("gzip".to_owned(), blob.clone())]);
        assert_eq!(index.diff_id_of_blob(&blob.digest).unwrap(), Some(diff_id));
        assert_eq!(index.diff_id_of_blob(&Digest::of(b"?")).unwrap(), None);
    }
}
