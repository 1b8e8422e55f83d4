//! Leases: what must stay although no image names it, such as the layers under a stopped container.

use super::{Index, IndexError, parse};
use crate::layer::LayerId;
use crate::oci::Digest;

/// Something a lease keeps.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LeaseItem {
    /// A layer's directory.
    Layer(LayerId),
    /// A blob.
    Blob(Digest),
    /// An image with all it needs.
    Image(crate::images::ImageId),
}

/// A named set of things to keep.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lease {
    /// Its name, `kind:name`, such as `container:0a1b`.
    pub id: String,
    /// When it ends by itself, in seconds since 1970; never where absent.
    pub expires: Option<i64>,
    /// What it keeps, sorted.
    pub items: Vec<LeaseItem>,
}

impl Index {
    /// Keeps things until [`Index::lease_remove`]; a lease with the same name is replaced.
    pub fn lease_put(&self, lease: &Lease) -> Result<(), IndexError> {
        self.write(|t| {
            t.prepare_cached("DELETE FROM leases WHERE id = ?1")?
                .execute([&lease.id])?;
            t.prepare_cached("INSERT INTO leases (id, expires) VALUES (?1, ?2)")?
                .execute((&lease.id, lease.expires))?;
            let mut statement = t.prepare_cached(
                "INSERT OR IGNORE INTO lease_items (lease, kind, name) VALUES (?1, ?2, ?3)",
            )?;
            for item in &lease.items {
                let (kind, name) = match item {
                    LeaseItem::Layer(id) => ("layer", id.to_string()),
                    LeaseItem::Blob(digest) => ("blob", digest.to_string()),
                    LeaseItem::Image(id) => ("image", id.to_string()),
                };
                statement.execute((&lease.id, kind, name))?;
            }
            Ok(())
        })
    }

    /// Ends a lease; tells whether there was one.
    pub fn lease_remove(&self, id: &str) -> Result<bool, IndexError> {
        self.write(|t| {
            let removed = t
                .prepare_cached("DELETE FROM leases WHERE id = ?1")?
                .execute([id])?;
            Ok(removed > 0)
        })
    }

    /// The leases that have not ended, by name.
    pub fn leases(&self) -> Result<Vec<Lease>, IndexError> {
        let now = self.now_micros() / 1_000_000;
        self.read(|c| {
            let mut statement = c.prepare_cached(
                "SELECT id, expires FROM leases WHERE expires IS NULL OR expires > ?1 ORDER BY id",
            )?;
            let mut items = c.prepare_cached(
                "SELECT kind, name FROM lease_items WHERE lease = ?1 ORDER BY kind, name",
            )?;
            let mut rows = statement.query([now])?;
            let mut leases = Vec::new();
            while let Some(row) = rows.next()? {
                let id: String = row.get(0)?;
                let mut kept: Vec<LeaseItem> = items
                    .query_map([&id], |row| {
                        let (kind, name) = (row.get_ref(0)?.as_str()?, row.get_ref(1)?.as_str()?);
                        match kind {
                            "layer" => parse("lease_items.name", name).map(LeaseItem::Layer),
                            "blob" => parse("lease_items.name", name).map(LeaseItem::Blob),
                            "image" => parse("lease_items.name", name)
                                .map(|digest| LeaseItem::Image(crate::images::ImageId(digest))),
                            _ => Err(super::bad("lease_items.kind", kind)),
                        }
                    })?
                    .collect::<rusqlite::Result<_>>()?;
                kept.sort();
                leases.push(Lease {
                    id,
                    expires: row.get(1)?,
                    items: kept,
                });
            }
            Ok(leases)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_come_back_and_end() {
        let (_dir, store) = crate::tests::store();
        let index = store.index();
        let lease = Lease {
            id: "container:1".to_owned(),
            expires: None,
            items: vec![
                LeaseItem::Layer(LayerId::Built([1; 32])),
                LeaseItem::Blob(Digest::of(b"b")),
            ],
        };
        index.lease_put(&lease).unwrap();
        let over = Lease {
            id: "over".to_owned(),
            expires: Some(1),
            items: Vec::new(),
        };
        index.lease_put(&over).unwrap();
        assert_eq!(index.leases().unwrap(), [lease]);
        assert!(index.lease_remove("container:1").unwrap());
        assert!(index.leases().unwrap().is_empty());
    }
}
