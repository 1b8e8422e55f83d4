//! Images: a config blob, the names it has, and the manifest it came with.
//!
//! An image is identified by the digest of its config, as Docker does. Its layers are the DiffIDs that the config lists;
//! they lie in the store as layer directories, as compressed blobs, or as both. The manifest is kept where there was one, so
//! that what was pulled can be pushed under the same digest.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, Transaction};

use crate::content::{Blobs, ContentError};
use crate::index::{Index, IndexError, epoch, parse};
use crate::oci::manifest::ParsedManifest;
use crate::oci::{Digest, DigestError, ImageConfig, ManifestError, RawManifest, Reference};

/// Largest image configuration that is read, in bytes.
pub const CONFIG_BYTES_MAX: usize = 8 * 1024 * 1024;

/// Fewest hex digits by which an image may be called.
const PREFIX_MIN: usize = 2;

/// Identifies an image: the digest of its config.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageId(pub Digest);

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for ImageId {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<ImageId, DigestError> {
        text.parse().map(ImageId)
    }
}

/// Why an image was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// The config is longer than [`CONFIG_BYTES_MAX`].
    #[error("image config has {size} bytes: at most {max} are taken")]
    ConfigTooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        max: usize,
    },
    /// The config is not JSON of the right shape.
    #[error("image config `{digest}` is not valid")]
    BadConfig {
        /// Its digest.
        digest: Digest,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// A manifest that is not of this image.
    #[error("manifest `{manifest}` does not belong to the image `{image}`: {reason}")]
    BadManifest {
        /// The image.
        image: ImageId,
        /// The manifest.
        manifest: Digest,
        /// What does not fit.
        reason: String,
    },
    /// Kept manifest bytes that are no manifest any more.
    #[error("manifest `{digest}` cannot be read")]
    Manifest {
        /// Which one.
        digest: Digest,
        /// What is wrong.
        source: ManifestError,
    },
    /// No image has this id.
    #[error("image `{id}` is not in the store")]
    Missing {
        /// The id.
        id: ImageId,
    },
    /// A prefix of more than one id.
    #[error(
        "image id `{text}` is ambiguous: {} begin with it: give more digits",
        list(ids)
    )]
    Ambiguous {
        /// The prefix.
        text: String,
        /// The ids it fits, sorted.
        ids: Vec<ImageId>,
    },
    /// An id given for removal that has names in several repositories.
    #[error(
        "cannot remove image `{}`: it is named in several repositories ({}): remove the names, or force it",
        id.0.short(),
        names.join(", ")
    )]
    SeveralNames {
        /// The image.
        id: ImageId,
        /// Its names.
        names: Vec<String>,
    },
    /// Blobs failed.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// The index failed.
    #[error(transparent)]
    Index(#[from] IndexError),
}

fn list(ids: &[ImageId]) -> String {
    let short: Vec<String> = ids.iter().map(|id| id.0.short()).collect();
    short.join(", ")
}

/// An image as listings show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageRow {
    /// Its id.
    pub id: ImageId,
    /// Its names, sorted; none for an image whose last name went to another.
    pub names: Vec<Reference>,
    /// When it was made, RFC 3339, as its config says.
    pub created: Option<String>,
    /// When it came into this store, in microseconds since 1970.
    pub added: i64,
    /// Sum of its layers' sizes, in bytes: of their files where they are unpacked, else of the blob.
    pub size: u64,
    /// Digest of the manifest it came with.
    pub manifest: Option<Digest>,
}

/// What removing a name or an image did, for the lines that `rmi` prints.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Removal {
    /// Names that are gone, sorted.
    pub untagged: Vec<Reference>,
    /// The image, if that was its last name. Its layers go with the next [`crate::Store::prune`].
    pub deleted: Option<ImageId>,
}

/// The images of a store. Cheap to clone, safe to share.
#[derive(Clone, Debug)]
pub struct Images {
    blobs: Blobs,
    index: Arc<Index>,
}

impl Images {
    pub(crate) fn new(blobs: Blobs, index: Arc<Index>) -> Images {
        Images { blobs, index }
    }

    /// Keeps an image: its config and, where it came with one, its manifest. Its layers should be in the store by now.
    pub fn put_image(
        &self,
        config: &[u8],
        manifest: Option<&RawManifest>,
    ) -> Result<ImageId, ImageError> {
        let digest = Digest::of(config);
        let id = ImageId(digest);
        let parsed = parse_config(&digest, config)?;
        let diff_ids = &parsed.rootfs.diff_ids;
        let layers = match manifest {
            Some(manifest) => check_manifest(id, diff_ids.len(), manifest)?,
            None => Vec::new(),
        };
        self.blobs.put(config)?;
        if let Some(manifest) = manifest {
            self.blobs.put(manifest.bytes())?;
        }
        let time = self.index.use_time()?;
        self.index.write(|t| {
            let epoch = epoch(t)?;
            t.prepare_cached(
                "INSERT INTO images (id, manifest, created, added, last_used, epoch)
                 VALUES (?1, ?2, ?3, ?4, ?4, ?5)
                 ON CONFLICT (id) DO UPDATE SET
                   manifest = coalesce(excluded.manifest, manifest),
                   last_used = max(last_used, excluded.last_used), epoch = excluded.epoch",
            )?
            .execute((
                id.to_string(),
                manifest.map(|m| m.digest().to_string()),
                &parsed.created,
                time.now,
                epoch,
            ))?;
            let mut insert = t.prepare_cached(
                "INSERT OR REPLACE INTO image_layers (image, position, diff_id) VALUES (?1, ?2, ?3)",
            )?;
            for (position, diff_id) in (0_i64..).zip(diff_ids) {
                insert.execute((id.to_string(), position, diff_id.to_string()))?;
            }
            let mut insert = t.prepare_cached(
                "INSERT OR IGNORE INTO image_blobs (image, digest) VALUES (?1, ?2)",
            )?;
            let manifest = manifest.map(RawManifest::digest);
            for digest in [digest].into_iter().chain(manifest).chain(layers) {
                insert.execute((id.to_string(), digest.to_string()))?;
            }
            Ok(())
        })?;
        Ok(id)
    }

    /// Gives an image a name. The image that had the name before, if any, loses it and is returned; it stays, nameless
    /// if that was its last one.
    pub fn tag(&self, name: &Reference, id: &ImageId) -> Result<Option<ImageId>, ImageError> {
        let now = self.index.now_micros();
        let tagged = self.index.write(|t| {
            let known = t
                .prepare_cached("SELECT 1 FROM images WHERE id = ?1")?
                .exists([id.to_string()])?;
            if !known {
                return Ok(None);
            }
            let previous = image_named(t, name)?;
            t.prepare_cached(
                "INSERT OR REPLACE INTO names (name, image, updated) VALUES (?1, ?2, ?3)",
            )?
            .execute((name.to_string(), id.to_string(), now))?;
            Ok(Some(previous.filter(|previous| previous != id)))
        })?;
        tagged.ok_or(ImageError::Missing { id: *id })
    }

    /// Takes a name away; with the last one, the image goes too. Names by digest in the same repository go with its last
    /// tag there, as `docker rmi` does. `None` if nothing has the name.
    pub fn untag(&self, name: &Reference) -> Result<Option<Removal>, ImageError> {
        Ok(self.index.write(|t| {
            let Some(id) = image_named(t, name)? else {
                return Ok(None);
            };
            let mut gone = vec![name.clone()];
            let others: Vec<Reference> = names_of(t, &id)?
                .into_iter()
                .filter(|other| other != name && other.name() == name.name())
                .collect();
            if name.digest().is_none() && others.iter().all(|other| other.digest().is_some()) {
                gone.extend(others);
            }
            remove_names(t, &id, gone).map(Some)
        })?)
    }

    /// Takes a name away, and leaves the image, nameless if that was its last one: for one that a container runs. `None` if
    /// nothing has the name.
    pub fn untag_only(&self, name: &Reference) -> Result<Option<Removal>, ImageError> {
        Ok(self.index.write(|t| {
            if image_named(t, name)?.is_none() {
                return Ok(None);
            }
            t.prepare_cached("DELETE FROM names WHERE name = ?1")?
                .execute([name.to_string()])?;
            Ok(Some(Removal {
                untagged: vec![name.clone()],
                deleted: None,
            }))
        })?)
    }

    /// Removes an image with all its names. Unless `force`d, names in more than one repository are an error.
    pub fn remove(&self, id: &ImageId, force: bool) -> Result<Removal, ImageError> {
        self.index.write(|t| {
            let known = t
                .prepare_cached("SELECT 1 FROM images WHERE id = ?1")?
                .exists([id.to_string()])?;
            if !known {
                return Ok(Err(ImageError::Missing { id: *id }));
            }
            let names = names_of(t, id)?;
            let mut repositories: Vec<String> = names.iter().map(Reference::name).collect();
            repositories.dedup();
            if repositories.len() > 1 && !force {
                return Ok(Err(ImageError::SeveralNames {
                    id: *id,
                    names: names.iter().map(Reference::familiar).collect(),
                }));
            }
            remove_names(t, id, names).map(Ok)
        })?
    }

    /// All images, latest added first.
    pub fn images(&self) -> Result<Vec<ImageRow>, ImageError> {
        Ok(self.index.read(|c| {
            let mut statement =
                c.prepare_cached("SELECT id FROM images ORDER BY added DESC, id")?;
            let ids: Vec<ImageId> = statement
                .query_map([], |row| parse("images.id", row.get_ref(0)?.as_str()?))?
                .collect::<rusqlite::Result<_>>()?;
            let rows: Vec<Option<ImageRow>> = ids
                .iter()
                .map(|id| image_row(c, id))
                .collect::<Result<_, _>>()?;
            Ok(rows.into_iter().flatten().collect())
        })?)
    }

    /// The image that a text means: a full id, a name with or without tag or digest, or the first digits of an id (at
    /// least two, with or without `sha256:`). A name wins over a prefix. `None` if there is none.
    ///
    /// What was found is protected from garbage collection while this store is open.
    pub fn resolve(&self, text: &str) -> Result<Option<ImageRow>, ImageError> {
        let found = self.index.read(|c| {
            if let Ok(id) = text.parse::<ImageId>() {
                return image_row(c, &id).map(Ok);
            }
            if let Ok(name) = text.parse::<Reference>()
                && let Some(id) = image_by_reference(c, &name)?
            {
                return image_row(c, &id).map(Ok);
            }
            let ids = ids_with_prefix(c, text)?;
            match ids.as_slice() {
                [] => Ok(Ok(None)),
                [id] => image_row(c, id).map(Ok),
                _ => Ok(Err(ImageError::Ambiguous {
                    text: text.to_owned(),
                    ids,
                })),
            }
        })?;
        match found? {
            Some(row) if self.use_image(&row.id)? => Ok(Some(row)),
            _ => Ok(None),
        }
    }

    /// An image by its id; protected as by [`Images::resolve`].
    pub fn image(&self, id: &ImageId) -> Result<Option<ImageRow>, ImageError> {
        if !self.use_image(id)? {
            return Ok(None);
        }
        Ok(self.index.read(|c| image_row(c, id))?)
    }

    /// The config of an image, parsed.
    pub fn config(&self, id: &ImageId) -> Result<ImageConfig, ImageError> {
        parse_config(&id.0, &self.config_bytes(id)?)
    }

    /// The config of an image, byte for byte.
    pub fn config_bytes(&self, id: &ImageId) -> Result<Vec<u8>, ImageError> {
        match self.blobs.read(&id.0, CONFIG_BYTES_MAX as u64) {
            Err(ContentError::Missing { .. }) => Err(ImageError::Missing { id: *id }),
            other => Ok(other?),
        }
    }

    /// The manifest an image came with, byte for byte; `None` for one built here and not yet pushed or saved.
    pub fn manifest(&self, id: &ImageId) -> Result<Option<RawManifest>, ImageError> {
        let row = self.image(id)?.ok_or(ImageError::Missing { id: *id })?;
        let Some(digest) = row.manifest else {
            return Ok(None);
        };
        let bytes = self.blobs.read(&digest, crate::MANIFEST_BYTES_MAX as u64)?;
        let manifest = RawManifest::parse(bytes, None)
            .map_err(|source| ImageError::Manifest { digest, source })?;
        Ok(Some(manifest))
    }

    /// Stamps an image as used; tells whether it is still there.
    fn use_image(&self, id: &ImageId) -> Result<bool, ImageError> {
        let time = self.index.use_time()?;
        let fresh = self.index.read(|c| {
            c.prepare_cached("SELECT 1 FROM images WHERE id = ?1 AND last_used >= ?2")?
                .exists((id.to_string(), time.fresh_since))
        })?;
        if fresh {
            return Ok(true);
        }
        Ok(self.index.write(|t| {
            let changed = t
                .prepare_cached("UPDATE images SET last_used = max(last_used, ?2) WHERE id = ?1")?
                .execute((id.to_string(), time.now))?;
            Ok(changed > 0)
        })?)
    }
}

fn parse_config(digest: &Digest, bytes: &[u8]) -> Result<ImageConfig, ImageError> {
    if bytes.len() > CONFIG_BYTES_MAX {
        return Err(ImageError::ConfigTooLarge {
            size: bytes.len(),
            max: CONFIG_BYTES_MAX,
        });
    }
    serde_json::from_slice(bytes).map_err(|source| ImageError::BadConfig {
        digest: *digest,
        source,
    })
}

/// Checks that a manifest is of the image, and returns its layers' digests.
fn check_manifest(
    image: ImageId,
    layers: usize,
    manifest: &RawManifest,
) -> Result<Vec<Digest>, ImageError> {
    let bad = |reason: String| ImageError::BadManifest {
        image,
        manifest: manifest.digest(),
        reason,
    };
    match manifest.parsed() {
        ParsedManifest::Index(_) => Err(bad("it is an index".to_owned())),
        ParsedManifest::Image(parsed) if parsed.config.digest != image.0 => {
            Err(bad(format!("its config is `{}`", parsed.config.digest)))
        }
        ParsedManifest::Image(parsed) if parsed.layers.len() != layers => Err(bad(format!(
            "it has {} layers, the config {layers}",
            parsed.layers.len()
        ))),
        ParsedManifest::Image(parsed) => Ok(parsed.layers.iter().map(|l| l.digest).collect()),
    }
}

fn image_named(c: &Connection, name: &Reference) -> rusqlite::Result<Option<ImageId>> {
    c.prepare_cached("SELECT image FROM names WHERE name = ?1")?
        .query_row([name.to_string()], |row| {
            parse("names.image", row.get_ref(0)?.as_str()?)
        })
        .optional()
}

fn image_by_reference(c: &Connection, name: &Reference) -> rusqlite::Result<Option<ImageId>> {
    if let Some(id) = image_named(c, name)? {
        return Ok(Some(id));
    }
    let Some(digest) = name.digest() else {
        return Ok(None);
    };
    // `name:tag@digest` means the digest; it fits an image of that repository with that manifest.
    if let Some(id) = image_named(c, &name.with_digest(digest))? {
        return Ok(Some(id));
    }
    let mut statement = c.prepare_cached(
        "SELECT images.id, names.name FROM images JOIN names ON names.image = images.id
         WHERE images.manifest = ?1 ORDER BY names.name",
    )?;
    let mut rows = statement.query([digest.to_string()])?;
    while let Some(row) = rows.next()? {
        let named: Reference = parse("names.name", row.get_ref(1)?.as_str()?)?;
        if named.name() == name.name() {
            return parse("images.id", row.get_ref(0)?.as_str()?).map(Some);
        }
    }
    Ok(None)
}

fn ids_with_prefix(c: &Connection, text: &str) -> rusqlite::Result<Vec<ImageId>> {
    let digits = text.strip_prefix("sha256:").unwrap_or(text);
    let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    if digits.len() < PREFIX_MIN || digits.len() > 64 || !digits.bytes().all(hex) {
        return Ok(Vec::new());
    }
    let prefix = format!("sha256:{digits}");
    // Texts that begin with the prefix: from it to it followed by a letter past every digit.
    let mut statement =
        c.prepare_cached("SELECT id FROM images WHERE id >= ?1 AND id < ?1 || 'g' ORDER BY id")?;
    let rows = statement.query_map([prefix], |row| {
        parse("images.id", row.get_ref(0)?.as_str()?)
    })?;
    rows.collect()
}

fn names_of(c: &Connection, id: &ImageId) -> rusqlite::Result<Vec<Reference>> {
    let mut statement =
        c.prepare_cached("SELECT name FROM names WHERE image = ?1 ORDER BY name")?;
    let rows = statement.query_map([id.to_string()], |row| {
        parse("names.name", row.get_ref(0)?.as_str()?)
    })?;
    rows.collect()
}

fn image_row(c: &Connection, id: &ImageId) -> rusqlite::Result<Option<ImageRow>> {
    let text = id.to_string();
    let found = c
        .prepare_cached("SELECT manifest, created, added FROM images WHERE id = ?1")?
        .query_row([&text], |row| {
            let manifest: Option<String> = row.get(0)?;
            Ok((manifest, row.get(1)?, row.get(2)?))
        })
        .optional()?;
    let Some((manifest, created, added)) = found else {
        return Ok(None);
    };
    let size: i64 = c
        .prepare_cached(
            "SELECT coalesce(sum(coalesce(
               (SELECT max(bytes) FROM layers WHERE layers.diff_id = image_layers.diff_id),
               (SELECT min(blobs.size) FROM compressed JOIN blobs USING (digest)
                WHERE compressed.diff_id = image_layers.diff_id),
               0)), 0)
             FROM image_layers WHERE image = ?1",
        )?
        .query_row([&text], |row| row.get(0))?;
    Ok(Some(ImageRow {
        id: *id,
        names: names_of(c, id)?,
        created,
        added,
        size: size.cast_unsigned(),
        manifest: manifest
            .map(|text| parse("images.manifest", &text))
            .transpose()?,
    }))
}

fn remove_names(
    t: &Transaction<'_>,
    id: &ImageId,
    mut names: Vec<Reference>,
) -> rusqlite::Result<Removal> {
    names.sort();
    for name in &names {
        t.prepare_cached("DELETE FROM names WHERE name = ?1")?
            .execute([name.to_string()])?;
    }
    let last = names_of(t, id)?.is_empty();
    if last {
        t.prepare_cached("DELETE FROM images WHERE id = ?1")?
            .execute([id.to_string()])?;
    }
    Ok(Removal {
        untagged: names,
        deleted: last.then_some(*id),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Descriptor, Manifest, MediaType};

    fn config(text: &str) -> Vec<u8> {
        format!(
            r#"{{"architecture":"amd64","os":"linux","author":"{text}","created":"2026-01-02T03:04:05Z","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
            Digest::of(b"layer")
        )
        .into_bytes()
    }

    fn name(text: &str) -> Reference {
        text.parse().unwrap()
    }

    #[test]
    fn images_are_named_listed_and_removed() {
        let (_dir, store) = crate::tests::store();
        let images = store.images();
        let first = images.put_image(&config("1"), None).unwrap();
        let second = images.put_image(&config("2"), None).unwrap();
        assert_eq!(images.tag(&name("app"), &first).unwrap(), None);
        assert_eq!(images.tag(&name("app"), &first).unwrap(), None);
        assert_eq!(images.tag(&name("r.example/app:1"), &first).unwrap(), None);
        assert_eq!(images.tag(&name("app"), &second).unwrap(), Some(first));
        let listed = images.images().unwrap();
        assert_eq!(listed.len(), 2);
        let row = images.resolve("app").unwrap().unwrap();
        assert_eq!(row.id, second);
        assert_eq!(row.names, [name("app")]);
        assert_eq!(row.created.as_deref(), Some("2026-01-02T03:04:05Z"));
        assert_eq!(images.config(&second).unwrap().author.as_deref(), Some("2"));
        assert!(images.manifest(&second).unwrap().is_none());
        assert_eq!(
            images.untag(&name("app")).unwrap(),
            Some(Removal {
                untagged: vec![name("app")],
                deleted: Some(second),
            })
        );
        assert_eq!(images.untag(&name("app")).unwrap(), None);
        assert!(images.resolve("app").unwrap().is_none());
        assert_eq!(images.images().unwrap().len(), 1);
        let error = images.tag(&name("x"), &second).unwrap_err();
        assert!(matches!(error, ImageError::Missing { .. }));
    }

    #[test]
    fn removal_by_id_minds_repositories() {
        let (_dir, store) = crate::tests::store();
        let images = store.images();
        let id = images.put_image(&config("1"), None).unwrap();
        for text in ["a:1", "a:2", "b"] {
            images.tag(&name(text), &id).unwrap();
        }
        let error = images.remove(&id, false).unwrap_err();
        assert!(matches!(error, ImageError::SeveralNames { .. }), "{error}");
        assert_eq!(images.untag(&name("b")).unwrap().unwrap().deleted, None);
        let removal = images.remove(&id, false).unwrap();
        assert_eq!(removal.untagged, [name("a:1"), name("a:2")]);
        assert_eq!(removal.deleted, Some(id));
        assert!(images.remove(&id, true).is_err());
    }

    #[test]
    fn digests_go_with_the_last_tag() {
        let (_dir, store) = crate::tests::store();
        let images = store.images();
        let bytes = config("1");
        let layer = Descriptor::of(MediaType::OCI_LAYER_GZIP, b"gz");
        let described = Descriptor::of(MediaType::OCI_CONFIG, &bytes);
        let manifest = RawManifest::from(Manifest::image(described, vec![layer]));
        let id = images.put_image(&bytes, Some(&manifest)).unwrap();
        let by_digest = name(&format!("a@{}", manifest.digest()));
        for name in [&name("a:1"), &name("a:2"), &by_digest] {
            images.tag(name, &id).unwrap();
        }
        for text in [
            format!("a@{}", manifest.digest()),
            format!("a:9@{}", manifest.digest()),
        ] {
            assert_eq!(images.resolve(&text).unwrap().unwrap().id, id, "{text}");
        }
        let other = format!("b@{}", manifest.digest());
        assert!(images.resolve(&other).unwrap().is_none());
        let kept = images.manifest(&id).unwrap().unwrap();
        assert_eq!(kept.bytes(), manifest.bytes());
        assert_eq!(
            images.untag(&name("a:1")).unwrap().unwrap().untagged,
            [name("a:1")]
        );
        let removal = images.untag(&name("a:2")).unwrap().unwrap();
        assert_eq!(removal.untagged.len(), 2);
        assert_eq!(removal.deleted, Some(id));
    }

    #[test]
    fn foreign_manifests_are_refused() {
        let (_dir, store) = crate::tests::store();
        let bytes = config("1");
        for (config, layers) in [(b"{}".to_vec(), 1), (bytes.clone(), 2)] {
            let layer = Descriptor::of(MediaType::OCI_LAYER_GZIP, b"gz");
            let described = Descriptor::of(MediaType::OCI_CONFIG, &config);
            let manifest = RawManifest::from(Manifest::image(described, vec![layer; layers]));
            let error = store.images().put_image(&bytes, Some(&manifest));
            assert!(matches!(error, Err(ImageError::BadManifest { .. })));
        }
        let error = store.images().put_image(b"no json", None);
        assert!(matches!(error, Err(ImageError::BadConfig { .. })));
    }

    #[test]
    fn prefixes_must_be_unique() {
        let (_dir, store) = crate::tests::store();
        let images = store.images();
        let ids: Vec<ImageId> = (0..300)
            .map(|n| images.put_image(&config(&n.to_string()), None).unwrap())
            .collect();
        let hex = ids[0].0.hex();
        let found = images.resolve(&hex[..40]).unwrap().unwrap();
        assert_eq!(found.id, ids[0]);
        let prefixed = format!("sha256:{}", &hex[..40]);
        assert_eq!(images.resolve(&prefixed).unwrap().unwrap().id, ids[0]);
        assert_eq!(
            images.resolve(&ids[0].to_string()).unwrap().unwrap().id,
            ids[0]
        );
        // Among 300 ids two share their first two digits: there are only 256 pairs.
        let shared = ids.iter().find_map(|a| {
            let others = ids.iter().filter(|b| b.0.hex()[..2] == a.0.hex()[..2]);
            (others.count() > 1).then(|| a.0.hex()[..2].to_owned())
        });
        let error = images.resolve(&shared.unwrap()).unwrap_err();
        assert!(matches!(error, ImageError::Ambiguous { .. }), "{error}");
        assert!(images.resolve(&hex[..1]).unwrap().is_none());
        // A name wins.
        images.tag(&name(&hex[..12]), &ids[1]).unwrap();
        assert_eq!(images.resolve(&hex[..12]).unwrap().unwrap().id, ids[1]);
    }
}
