//! The tags of a repository by the bucket's lists: a page costs what is in it, however many there are.
//!
//! Keys are listed in the order of their bytes, and a tag's begin with its name and `/`. `-` and `.` come before `/`, so `1.0-rc1`
//! and `1.0.1` are listed before `1.0`. What comes late that way is a beginning of what was listed, and asked for by name.

use std::collections::{BTreeMap, BTreeSet};

use futures_util::TryStreamExt as _;
use object_store::path::Path as Key;
use store::oci::Digest;
use store::oci::reference::check_tag;

use super::{ObjectStorage, keys};
use crate::routes::RepositoryName;
use crate::storage::{RegistryStorage as _, StorageResult};

/// What a list says of a tag.
#[derive(Debug, Default)]
struct Seen {
    /// It is on something.
    is_there: bool,
    /// It was ever on what is looked for; `None` if it has no history.
    named: Option<bool>,
}

impl ObjectStorage {
    /// Up to `limit` tags after `last`, in ASCII order.
    pub(super) fn page_of_tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Vec<String>> {
        let folder = self.tags_folder(repository);
        let mut listed = match last.and_then(|last| begin(&folder, last)) {
            Some(begin) => self.store.list_with_offset(Some(&folder), &begin),
            None => self.store.list(Some(&folder)),
        };
        let is_after = |tag: &str| last.is_none_or(|last| tag > last);
        let (mut page, mut before) = (BTreeSet::new(), None);
        while let Some(object) = self.wait("list", &folder, listed.try_next())? {
            // Not every store has them in order: then only all of them tell which are first.
            if before.is_some_and(|before| before > object.location) {
                return self.page_of_all_tags(repository, last, limit);
            }
            if let Some(tag) = keys::tag(&object.location, &folder)
                // Empty is what a removed one leaves; and not every store begins where it is asked to.
                && object.size > 0
                && is_after(tag)
            {
                page.insert(tag.to_owned());
                if page.len() >= limit {
                    let late = listed_late(tag);
                    let late = late.filter(|tag| is_after(tag) && !page.contains(*tag));
                    for tag in late.map(str::to_owned).collect::<Vec<_>>() {
                        let size = self.size(&self.tag_link(repository, &tag))?;
                        if size.is_some_and(|size| size > 0) {
                            page.insert(tag);
                        }
                    }
                    break;
                }
            }
            before = Some(object.location);
        }
        Ok(page.into_iter().take(limit).collect())
    }

    fn page_of_all_tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Vec<String>> {
        let tags = self.tags_made(repository)?.unwrap_or_default();
        let names = tags.into_iter().map(|tag| tag.name);
        let rest = names.filter(|name| last.is_none_or(|last| name.as_str() > last));
        Ok(rest.take(limit).collect())
    }

    /// The tags that may be on a manifest: those that were ever put on it, and those of which nobody wrote down what they were on.
    pub(super) fn tags_that_named(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Vec<String>> {
        let folder = self.tags_folder(repository);
        let mut seen: BTreeMap<String, Seen> = BTreeMap::new();
        let mut listed = self.store.list(Some(&folder));
        while let Some(object) = self.wait("list", &folder, listed.try_next())? {
            if let Some(tag) = keys::tag(&object.location, &folder) {
                seen.entry(tag.to_owned()).or_default().is_there = object.size > 0;
            } else if let Some((tag, was)) = keys::history(&object.location, &folder) {
                let named = &mut seen.entry(tag.to_owned()).or_default().named;
                *named = Some(was == *digest || named.unwrap_or(false));
            }
        }
        let may_be = |seen: &Seen| seen.is_there && seen.named.unwrap_or(true);
        let tags = seen.into_iter().filter(|(_, seen)| may_be(seen));
        Ok(tags.map(|(tag, _)| tag).collect())
    }
}

/// The key after which everything is listed that comes after `last`; `None` for the first one.
fn begin(folder: &Key, last: &str) -> Option<Key> {
    // It may be anything. What a tag can begin with comes before what it cannot go on with.
    let end = last.find(|c: char| !(c.is_ascii_alphanumeric() || "_-.".contains(c)));
    let last = &last[..end.unwrap_or(last.len())];
    check_tag(last).is_ok().then(|| folder.clone().join(last))
}

/// The tags that may be listed after this one and are before it in order.
fn listed_late(tag: &str) -> impl Iterator<Item = &str> {
    let ends = tag.char_indices();
    let ends = ends.filter(|(at, c)| *at > 0 && matches!(c, '-' | '.'));
    ends.map(|(at, _)| &tag[..at])
        .filter(|tag| check_tag(tag).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_begin_before_what_follows() {
        let folder = Key::from("tags");
        let check = |last: &str, expect: Option<&str>| {
            let begun = begin(&folder, last);
            assert_eq!(begun.as_ref().map(Key::as_ref), expect, "{last:?}");
        };
        check("1.0", Some("tags/1.0"));
        check("a/b", Some("tags/a"));
        check("a\u{e9}", Some("tags/a"));
        check("..", None);
        check("-x", None);
        check("/x", None);
        check("", None);
        check(&"x".repeat(129), None);
    }

    #[test]
    fn beginnings_are_listed_late() {
        let late = |tag| listed_late(tag).collect::<Vec<_>>();
        assert_eq!(late("1.0-rc.2"), ["1", "1.0", "1.0-rc"]);
        assert_eq!(late("latest"), [""; 0]);
        assert_eq!(late("_-"), ["_"]);
        assert_eq!(late("a--b"), ["a", "a-"]);
    }
}
