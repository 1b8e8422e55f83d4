//! One repository of the index, as it is read from the storage.

use std::collections::BTreeSet;
use std::time::{Duration, Instant, SystemTime};

use serde_json::Value;
use store::oci::Digest;

use super::details::read_config;
use crate::manifests::Outline;
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage, StorageResult};

/// Longest description that is kept, in bytes.
const DESCRIPTION_BYTES_MAX: usize = 500;

/// Clocks of file systems tick this coarsely at worst: within one tick two changes have one time.
const TICK: Duration = Duration::from_secs(2);

/// A tag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TagEntry {
    pub(crate) name: Box<str>,
    /// When it was put on what it is on, where the storage knows.
    pub(crate) made: Option<SystemTime>,
}

/// What a repository says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Description {
    /// In one line, at most [`DESCRIPTION_BYTES_MAX`] long.
    pub(crate) text: String,
    /// The manifest that says it.
    from: Option<Digest>,
}

/// One repository.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// In the order of their names; empty if they are not kept.
    pub(crate) tags: Vec<TagEntry>,
    /// How many there are.
    pub(crate) count: usize,
    /// Whether the tags are kept.
    pub(crate) whole: bool,
    pub(crate) description: Description,
    /// When a tag was last changed.
    pub(crate) changed: Option<SystemTime>,
    /// The last sweep that saw it.
    pub(crate) seen: u64,
    /// What the storage told before it was read; see [`RegistryStorage::tags_stamp`].
    stamp: Option<SystemTime>,
    began: SystemTime,
    read: Instant,
    took: Duration,
}

impl Entry {
    /// Reads a repository; `None` if it is not there.
    pub(crate) fn read(
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
    ) -> StorageResult<Option<Entry>> {
        let (began, read) = (SystemTime::now(), Instant::now());
        let stamp = storage.tags_stamp(name)?;
        let Some(listed) = storage.tags_made(name)? else {
            return Ok(None);
        };
        let tags = listed.into_iter().map(|tag| TagEntry {
            made: tag.made,
            name: tag.name.into(),
        });
        let tags: Vec<TagEntry> = tags.collect();
        let mut entry = Entry {
            count: tags.len(),
            tags,
            whole: true,
            description: Description::default(),
            changed: None,
            seen: 0,
            stamp,
            began,
            read,
            took: Duration::ZERO,
        };
        entry.describe(storage, name)?;
        entry.took = read.elapsed();
        Ok(Some(entry))
    }

    /// Looks at these tags again; false if the repository is gone.
    pub(crate) fn update(
        &mut self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
        tags: &BTreeSet<String>,
    ) -> StorageResult<bool> {
        for tag in tags {
            let place = self
                .tags
                .binary_search_by(|entry| (*entry.name).cmp(tag.as_str()));
            let there = storage.tag(name, tag)?.is_some();
            match (there, place) {
                (true, Ok(at)) => self.tags[at].made = made(storage, name, tag)?,
                (true, Err(at)) => self.tags.insert(
                    at,
                    TagEntry {
                        name: tag.as_str().into(),
                        made: made(storage, name, tag)?,
                    },
                ),
                (false, Ok(at)) => {
                    self.tags.remove(at);
                }
                (false, Err(_)) => {}
            }
        }
        self.count = self.tags.len();
        self.describe(storage, name)?;
        // Without tags it may be that nothing is left.
        Ok(self.count > 0 || storage.tags_after(name, None, 0)?.is_some())
    }

    /// Whether nothing was added or removed since it was read, as the storage tells.
    pub(crate) fn is_current(&self, stamp: Option<SystemTime>) -> bool {
        let settled =
            |stamp: SystemTime| self.began.duration_since(stamp).is_ok_and(|age| age > TICK);
        stamp.is_some() && stamp == self.stamp && stamp.is_some_and(settled)
    }

    /// Whether it was read so lately that reading it again would take too much of the time.
    pub(crate) fn is_resting(&self, rest: u32) -> bool {
        self.read.elapsed() < self.took.saturating_mul(rest)
    }

    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        // What the allocator takes beside is a guess.
        let of_tag = |tag: &TagEntry| size_of::<TagEntry>() + tag.name.len() + 8;
        let tags: usize = self.tags.iter().map(of_tag).sum();
        size_of::<Entry>() + tags + self.description.text.len() + 128
    }

    /// Keeps how many tags there are, but not which.
    pub(crate) fn forget_tags(&mut self) {
        self.tags = Vec::new();
        self.whole = false;
    }

    /// Reads what the repository says of itself: what is `latest` does, else what was tagged last.
    fn describe(
        &mut self,
        storage: &dyn RegistryStorage,
        name: &RepositoryName,
    ) -> StorageResult<()> {
        self.changed = self.tags.iter().filter_map(|tag| tag.made).max();
        let latest = self.tags.iter().find(|tag| &*tag.name == "latest");
        let newest = || self.tags.iter().max_by_key(|tag| tag.made);
        let Some(tag) = latest.or_else(newest) else {
            self.description = Description::default();
            return Ok(());
        };
        let on = storage.tag(name, &tag.name)?;
        if on.is_none() || on != self.description.from {
            let text = match &on {
                Some(digest) => said(storage, name, digest)?,
                None => String::new(),
            };
            self.description = Description { text, from: on };
        }
        Ok(())
    }
}

/// When a tag was put on what it is on, where the storage knows.
pub(crate) fn made(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    tag: &str,
) -> StorageResult<Option<SystemTime>> {
    match storage.collectable() {
        Some(storage) => storage.tag_made(name, tag),
        None => Ok(None),
    }
}

/// What a manifest says of what it is: its annotations, its configuration's labels, or the first of those it lists.
fn said(
    storage: &dyn RegistryStorage,
    name: &RepositoryName,
    digest: &Digest,
) -> StorageResult<String> {
    let mut next = Some(*digest);
    // An index, and the image in it.
    for _ in 0..2 {
        let Some(digest) = next.take() else { break };
        let Some(manifest) = storage.manifest(name, &digest)? else {
            break;
        };
        let Ok(outline) = Outline::read(manifest.bytes(), false) else {
            break;
        };
        let annotations = outline.annotations.unwrap_or_default();
        let annotated = described(|key| annotations.get(key).map(String::as_str));
        if !annotated.is_empty() {
            return Ok(annotated);
        }
        if let Some(config) = &outline.config
            && let Ok(digest) = config.digest.parse::<Digest>()
            && let Some(config) = read_config(storage, name, &digest)?
        {
            let labels = &config["config"]["Labels"];
            let labelled = described(|key| labels.get(key).and_then(Value::as_str));
            return Ok(labelled);
        }
        let listed = outline.manifests.unwrap_or_default();
        next = listed.first().and_then(|link| link.digest.parse().ok());
    }
    Ok(String::new())
}

/// The description, or the title, in one line.
fn described<'a>(said: impl Fn(&str) -> Option<&'a str>) -> String {
    let keys = [
        "org.opencontainers.image.description",
        "org.opencontainers.image.title",
    ];
    let text = keys.into_iter().find_map(said).unwrap_or_default();
    let mut line = String::new();
    for word in text.split(|c: char| c.is_whitespace() || c.is_control()) {
        if word.is_empty() {
            continue;
        }
        let room = DESCRIPTION_BYTES_MAX.saturating_sub(line.len() + 1);
        if word.len() > room {
            break;
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptions_are_one_short_line() {
        let check = |text: &str, expect: &str| {
            assert_eq!(
                described(|key| key.ends_with("title").then_some(text)),
                expect
            );
        };
        check("a shop", "a shop");
        check(" a\n\tshop\u{7} ", "a shop");
        check("", "");
        let long = "word ".repeat(1000);
        let cut = described(|_| Some(&long));
        assert!(cut.len() <= DESCRIPTION_BYTES_MAX && cut.len() > DESCRIPTION_BYTES_MAX - 10);
        let word = "x".repeat(501);
        assert_eq!(described(|_| Some(&word)), "");
    }
}
