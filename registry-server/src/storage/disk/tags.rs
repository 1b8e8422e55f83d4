//! The tags of a repository, listed: one short look at each that is told, and none at those that were all there before.
//!
//! The names in a large folder are remembered for as long as its time of change says that none was added or removed: so a page of
//! a list costs what is in the page. A tag that moves changes no name, and ours come and go with all their files at once.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, Stat};
use store::oci::Digest;

use super::{DiskStorage, entries, failed, is_absent, is_repository};
use crate::routes::RepositoryName;
use crate::storage::{ListedTag, StorageResult};

/// Smaller folders are read each time; of tests, all but the smallest are remembered.
const REMEMBERED_FROM: usize = if cfg!(test) { 12 } else { 1000 };

/// About how many bytes of names are remembered.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// Clocks of file systems tick this coarsely at worst: within one tick two changes have one time.
const TICK: Duration = Duration::from_secs(2);

/// The names of tags in large folders.
#[derive(Debug, Default)]
pub(super) struct TagNames(Mutex<BTreeMap<RepositoryName, Arc<Names>>>);

/// What is in a folder.
#[derive(Debug)]
struct Names {
    /// When that changed last.
    stamp: SystemTime,
    /// In order.
    names: Vec<Box<str>>,
    /// Whether all of them were tags, once that is known: none that is being made or removed.
    whole: AtomicBool,
}

impl Names {
    fn bytes(&self) -> usize {
        let each = size_of::<Box<str>>() + 16;
        self.names.iter().map(|name| name.len() + each).sum()
    }
}

impl TagNames {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<RepositoryName, Arc<Names>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recall(&self, repository: &RepositoryName, stamp: SystemTime) -> Option<Arc<Names>> {
        let all = self.lock();
        let names = all.get(repository)?;
        (names.stamp == stamp).then(|| Arc::clone(names))
    }

    fn remember(&self, repository: &RepositoryName, names: Arc<Names>) {
        let mut all = self.lock();
        all.remove(repository);
        let others: usize = all.values().map(|names| names.bytes()).sum();
        if others + names.bytes() > BYTES_MAX {
            all.clear();
        }
        if names.bytes() <= BYTES_MAX {
            all.insert(repository.clone(), names);
        }
    }
}

impl DiskStorage {
    /// The folder of a repository's tags, and when what is in it changed; the outer `None` if there is no such repository.
    fn tags_folder(
        &self,
        repository: &RepositoryName,
    ) -> StorageResult<Option<Option<(PathBuf, SystemTime)>>> {
        let folder = self.repository(repository);
        if !is_repository(&folder)? {
            return Ok(None);
        }
        let folder = folder.join("_manifests/tags");
        match fs::metadata(&folder).and_then(|metadata| metadata.modified()) {
            Err(error) if is_absent(&error) => Ok(Some(None)),
            stamp => {
                let stamp = stamp.map_err(failed("examine", &folder))?;
                Ok(Some(Some((folder, stamp))))
            }
        }
    }

    /// See [`RegistryStorage::tags_after`](crate::storage::RegistryStorage::tags_after).
    pub(super) fn list_tags(
        &self,
        repository: &RepositoryName,
        last: Option<&str>,
        limit: usize,
    ) -> StorageResult<Option<Vec<String>>> {
        let Some(found) = self.tags_folder(repository)? else {
            return Ok(None);
        };
        let (Some((folder, stamp)), 1..) = (found, limit) else {
            return Ok(Some(Vec::new()));
        };
        let began = SystemTime::now();
        let names = match self.tag_names.recall(repository, stamp) {
            Some(names) => names,
            None => {
                let names = Arc::new(Names {
                    stamp,
                    names: sorted(&folder)?,
                    whole: AtomicBool::new(false),
                });
                // What changes within the tick that it changed in has the same time.
                let settled = began.duration_since(stamp).is_ok_and(|age| age > TICK);
                if settled && names.names.len() >= REMEMBERED_FROM {
                    self.tag_names.remember(repository, Arc::clone(&names));
                }
                names
            }
        };
        let first = names
            .names
            .partition_point(|name| last.is_some_and(|last| **name <= *last));
        let rest = &names.names[first..];
        if names.whole.load(Ordering::Relaxed) {
            return Ok(Some(
                rest.iter().take(limit).map(|n| n.to_string()).collect(),
            ));
        }
        let opened = File::open(&folder).map_err(failed("list", &folder))?;
        let mut tags = Vec::new();
        for name in rest {
            if modified_in(&opened, &folder, name)?.is_some() {
                tags.push(name.to_string());
                if tags.len() == limit {
                    break;
                }
            }
        }
        if tags.len() == names.names.len() {
            names.whole.store(true, Ordering::Relaxed);
        }
        Ok(Some(tags))
    }

    /// See [`RegistryStorage::tags_made`](crate::storage::RegistryStorage::tags_made).
    pub(super) fn list_tags_made(
        &self,
        repository: &RepositoryName,
    ) -> StorageResult<Option<Vec<ListedTag>>> {
        let Some(found) = self.tags_folder(repository)? else {
            return Ok(None);
        };
        let mut tags = Vec::new();
        let Some((folder, _)) = found else {
            return Ok(Some(tags));
        };
        let opened = File::open(&folder).map_err(failed("list", &folder))?;
        for name in sorted(&folder)? {
            if let Some(made) = modified_in(&opened, &folder, &name)? {
                tags.push(ListedTag {
                    name: name.into_string(),
                    made: Some(made),
                });
            }
        }
        Ok(Some(tags))
    }

    /// The tags that may be on a manifest: those that were ever put on it, which every writer of this layout notes first, and those
    /// of which nobody noted anything. Looked for by name, so no tag's link is opened that is on something else.
    pub(super) fn tags_that_named(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
    ) -> StorageResult<Vec<String>> {
        let Some(Some((folder, _))) = self.tags_folder(repository)? else {
            return Ok(Vec::new());
        };
        let opened = File::open(&folder).map_err(failed("list", &folder))?;
        let mut tags = Vec::new();
        for tag in sorted(&folder)? {
            let history = format!("{tag}/index");
            let named = format!("{history}/{}/{}/link", digest.algorithm(), digest.hex());
            if status_of(&opened, &folder, &named)?.is_some()
                || status_of(&opened, &folder, &history)?.is_none()
            {
                tags.push(tag.into_string());
            }
        }
        Ok(tags)
    }
}

/// The names of a folder's entries, in order.
fn sorted(folder: &Path) -> StorageResult<Vec<Box<str>>> {
    let names = entries(folder)?.into_iter();
    let names = names.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<Box<str>> = names.map(String::into_boxed_str).collect();
    names.sort_unstable();
    Ok(names)
}

/// When a tag was put on what it is on. One that is being made or removed has a folder, but is on nothing: `None`.
fn modified_in(opened: &File, folder: &Path, tag: &str) -> StorageResult<Option<SystemTime>> {
    let Some(found) = status_of(opened, folder, &format!("{tag}/current/link"))? else {
        return Ok(None);
    };
    let nanoseconds = u32::try_from(found.st_mtime_nsec).unwrap_or(0);
    // What is older than 1970 is as old as that.
    let since = Duration::new(u64::try_from(found.st_mtime).unwrap_or(0), nanoseconds);
    Ok(Some(UNIX_EPOCH + since))
}

/// What is known of a path in a folder, if it is there.
fn status_of(opened: &File, folder: &Path, path: &str) -> StorageResult<Option<Stat>> {
    let found = rustix::fs::statat(opened, Path::new(path), AtFlags::empty());
    match found.map_err(io::Error::from) {
        Err(error) if is_absent(&error) => Ok(None),
        found => found
            .map(Some)
            .map_err(failed("examine", &folder.join(path))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::below;
    use super::*;
    use crate::storage::{RegistryStorage as _, TagCondition};

    /// Whoever wrote them.
    #[test]
    fn tags_tell_what_they_were_on() {
        let root = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(root.path()).unwrap().durable(false);
        let name = RepositoryName::parse("a/b").unwrap();
        let (one, two) = (Digest::of(b"1"), Digest::of(b"2"));
        let always = TagCondition::default();
        let named = |digest| storage.tags_that_named(&name, digest).unwrap();
        assert_eq!(named(&one), [""; 0]);
        for (tag, digest) in [("x", &one), ("moved", &one), ("moved", &two), ("y", &two)] {
            assert!(storage.set_tag(&name, tag, digest, &always).unwrap());
        }
        let bare = storage.tag_folder(&name, "bare").join("current");
        fs::create_dir_all(&bare).unwrap();
        fs::write(bare.join("link"), one.to_string()).unwrap();
        assert_eq!(named(&one), ["bare", "moved", "x"]);
        assert_eq!(named(&two), ["bare", "moved", "y"]);
        storage.remove_tag(&name, "x", &always).unwrap();
        assert_eq!(named(&one), ["bare", "moved"]);
    }

    /// What is remembered is what is there, whoever changes it.
    #[test]
    fn names_are_remembered_until_the_folder_changes() {
        let root = tempfile::tempdir().unwrap();
        let storage = DiskStorage::open(root.path()).unwrap().durable(false);
        let name = RepositoryName::parse("a/b").unwrap();
        let digest = store::oci::Digest::of(b"x");
        let always = TagCondition::default();
        let folder = storage.repository(&name).join("_manifests/tags");
        assert_eq!(storage.tags_after(&name, None, 1).unwrap(), None);
        for number in 0..REMEMBERED_FROM {
            let tag = format!("t{number}");
            assert!(storage.set_tag(&name, &tag, &digest, &always).unwrap());
        }
        let count = || storage.tags(&name).unwrap().unwrap().len();
        let is_remembered = || {
            let all = storage.tag_names.lock();
            all.get(&name)
                .map(|names| names.whole.load(Ordering::Relaxed))
        };
        let old = |seconds: u64| {
            let time = UNIX_EPOCH + Duration::from_secs(seconds);
            File::open(&folder).unwrap().set_modified(time).unwrap();
        };
        // It changed a moment ago.
        assert_eq!((count(), is_remembered()), (REMEMBERED_FROM, None));
        old(1);
        let page = storage.tags_after(&name, Some("t1"), 2).unwrap().unwrap();
        assert_eq!(
            (page, is_remembered()),
            (vec!["t10".to_owned(), "t11".to_owned()], Some(false))
        );
        assert_eq!((count(), is_remembered()), (REMEMBERED_FROM, Some(true)));
        let page = storage.tags_after(&name, Some("t1"), 2).unwrap().unwrap();
        assert_eq!(page, ["t10", "t11"]);
        assert_eq!(
            storage.tags_after(&name, Some("u"), 2).unwrap().unwrap(),
            [""; 0]
        );
        storage.remove_tag(&name, "t1", &always).unwrap();
        assert_eq!(count(), REMEMBERED_FROM - 1);
        // A folder of nothing, which somebody is about to make a tag.
        fs::create_dir(folder.join("half")).unwrap();
        old(2);
        assert_eq!(
            (count(), is_remembered()),
            (REMEMBERED_FROM - 1, Some(false))
        );
        let current = folder.join("half/current");
        fs::create_dir(&current).unwrap();
        fs::write(current.join("link"), digest.to_string()).unwrap();
        assert_eq!((count(), is_remembered()), (REMEMBERED_FROM, Some(true)));
        let place = below(folder.join("half/index"), &digest);
        assert!(!place.exists());
    }
}
