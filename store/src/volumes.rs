//! Volumes: directories with a name that containers share and that outlive them.
//!
//! ```text
//! volumes/lock          held alone while a volume is made, filled or removed
//! volumes/NAME/about    what was said of it when it was made, as JSON
//! volumes/NAME/_data/   its content
//! ```
//!
//! A volume that was made for one container has no name of its own, but 64 hexadecimal digits. A new one is filled with
//! what the image has at the place where it is mounted first, aside, so that nobody sees half of it.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Gid, Mode, OFlags, ResolveFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use crate::containers::{ContainerError, ContainerId, is_name};
use crate::fs::{self, FsError, Shared, attempt};
use crate::layer::apply::{Form, UnpackOptions, unpack_into};
use crate::layer::tar::write_tree;
use crate::{Store, StoreError};

/// Labels are as long as a command line.
const ABOUT_BYTES_MAX: u64 = 16 << 20;

/// Why a volume could not be made or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VolumeError {
    /// There is none.
    #[error("no such volume: `{name}`")]
    Unknown {
        /// What was looked for.
        name: String,
    },
    /// No name.
    #[error(
        "`{name}` is no volume name: expected letters, digits, `_`, `.` and `-`, two at least, beginning with a letter or digit; a path begins with `/` or `.`"
    )]
    BadName {
        /// The text.
        name: String,
    },
    /// Its record makes no sense.
    #[error("the record of volume `{name}` is damaged")]
    Damaged {
        /// Its name.
        name: String,
        /// Why.
        source: serde_json::Error,
    },
    /// The image's content cannot be copied.
    #[error("cannot fill volume `{name}` from `{path}` of the image")]
    Fill {
        /// The volume.
        name: String,
        /// The path in the image.
        path: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A file fails.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// No random numbers.
    #[error(transparent)]
    Id(#[from] ContainerError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What was said of a volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumeAbout {
    /// When it was made, RFC 3339.
    pub created: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether it was made for one container, without a name.
    pub anonymous: bool,
}

/// A volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Its name.
    pub name: String,
    /// What was said of it.
    pub about: VolumeAbout,
    /// Its content.
    pub data: PathBuf,
}

/// What a new volume is filled with: a directory of an image.
#[derive(Clone, Copy, Debug)]
pub struct Filling<'a> {
    /// The image's root.
    pub root: BorrowedFd<'a>,
    /// Where in it.
    pub path: &'a str,
}

impl Store {
    fn volumes_path(&self) -> PathBuf {
        self.root().join("volumes")
    }

    /// The names of all volumes and where they are, damaged ones too.
    pub(crate) fn volume_folders(&self) -> Result<Vec<(String, PathBuf)>, FsError> {
        let path = self.volumes_path();
        let names = fs::list(&path)?.into_iter();
        Ok(names
            .filter(|name| is_name(name) && name != "lock")
            .map(|name| {
                let folder = path.join(&name);
                (name, folder)
            })
            .collect())
    }

    fn hold_volumes(&self) -> Result<Shared, VolumeError> {
        fs::create_dir(&self.volumes_path())?;
        Ok(Shared::lock_alone(&self.volumes_path().join("lock"))?)
    }

    /// A name for a volume that is made for one container.
    ///
    /// # Errors
    /// There are no random numbers to be had.
    pub fn anonymous_volume_name(&self) -> Result<String, VolumeError> {
        Ok(ContainerId::random()?.to_string())
    }

    /// A volume: the one that has the name, or a new one.
    ///
    /// # Errors
    /// It is no name, or the disk fails.
    pub fn ensure_volume(
        &self,
        name: &str,
        about: &VolumeAbout,
        filling: Option<Filling<'_>>,
    ) -> Result<Volume, VolumeError> {
        let bad = || VolumeError::BadName {
            name: name.to_owned(),
        };
        // `lock` would be the lock.
        if !is_name(name) || name == "lock" {
            return Err(bad());
        }
        let _held = self.hold_volumes()?;
        if let Some(volume) = self.volume(name)? {
            return Ok(volume);
        }
        let folder = self.temp_dir()?;
        let data = folder.path().join("_data");
        attempt("make", &data, || rustix::fs::mkdir(&data, Mode::RWXU))?;
        // The sandbox's users have to get in, whoever they are; what lies above is closed.
        attempt("open", &data, || {
            rustix::fs::chmod(&data, Mode::from_raw_mode(0o755))
        })?;
        if let Some(filling) = filling {
            fill(&data, filling).map_err(|source| VolumeError::Fill {
                name: name.to_owned(),
                path: filling.path.to_owned(),
                source,
            })?;
        }
        let bytes = serde_json::to_vec(about).expect("a struct of texts can be encoded");
        fs::write_atomic(
            &self.root().join("tmp"),
            &folder.path().join("about"),
            &bytes,
        )?;
        folder.publish(&self.volumes_path().join(name))?;
        self.volume(name)?.ok_or_else(|| VolumeError::Unknown {
            name: name.to_owned(),
        })
    }

    /// The volume that has this name.
    ///
    /// # Errors
    /// Its record cannot be read.
    pub fn volume(&self, name: &str) -> Result<Option<Volume>, VolumeError> {
        if !is_name(name) || name == "lock" {
            return Ok(None);
        }
        let folder = self.volumes_path().join(name);
        let bytes = fs::optional(fs::read(&folder.join("about"), ABOUT_BYTES_MAX))?;
        let Some(bytes) = bytes else {
            return Ok(None);
        };
        let about = serde_json::from_slice(&bytes);
        Ok(Some(Volume {
            name: name.to_owned(),
            about: about.map_err(|source| VolumeError::Damaged {
                name: name.to_owned(),
                source,
            })?,
            data: folder.join("_data"),
        }))
    }

    /// All volumes, by name.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn volumes(&self) -> Result<Vec<Volume>, VolumeError> {
        let names = fs::list(&self.volumes_path())?;
        let found = names.iter().map(|name| self.volume(name));
        found.filter_map(Result::transpose).collect()
    }

    /// Removes a volume: it is gone at once, then its files go. Tells whether there was one.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_volume(&self, name: &str) -> Result<bool, VolumeError> {
        if !is_name(name) || name == "lock" {
            return Ok(false);
        }
        let held = self.hold_volumes()?;
        let scratch = self.temp_dir()?;
        let path = self.volumes_path().join(name);
        let removed = fs::optional(fs::rename(&path, &scratch.path().join("removed")))?;
        drop(held);
        Ok(removed.is_some())
    }
}

/// Copies what the image has there, if that is a directory; the volume's own directory becomes like that one.
fn fill(data: &Path, filling: Filling<'_>) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let opened = rustix::fs::openat2(filling.root, filling.path, flags, Mode::empty(), resolve);
    let source = match opened {
        Ok(source) => source,
        Err(Errno::NOENT | Errno::NOTDIR) => return Ok(()),
        Err(errno) => return Err(errno.into()),
    };
    let target = rustix::fs::open(data, flags, Mode::empty())?;
    let about = rustix::fs::fstat(&source)?;
    let mut options = UnpackOptions::new(Form::Tree);
    options.keep_own_if_unmapped = true;
    options.keep_root = true;
    let (reading, mut writing) = io::pipe()?;
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || write_tree(source.as_fd(), &mut writing));
        let unpacked = unpack_into(&target, io::BufReader::new(reading), &options);
        writer.join().expect("writing a tar does not panic")?;
        unpacked?;
        Ok::<(), Box<dyn std::error::Error + Send + Sync>>(())
    })?;
    let owner = (Uid::from_raw(about.st_uid), Gid::from_raw(about.st_gid));
    match rustix::fs::fchown(&target, Some(owner.0), Some(owner.1)) {
        Ok(()) | Err(Errno::INVAL | Errno::PERM) => {}
        Err(errno) => return Err(errno.into()),
    }
    rustix::fs::fchmod(&target, Mode::from_raw_mode(about.st_mode & 0o7777))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_made_once_and_removed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let about = VolumeAbout {
            created: "then".to_owned(),
            ..VolumeAbout::default()
        };
        let image = dir.path().join("image");
        std::fs::create_dir_all(image.join("data/deep")).unwrap();
        std::fs::write(image.join("data/deep/file"), "of the image").unwrap();
        let root = fs::open_dir(&image).unwrap();
        let filling = Filling {
            root: root.as_fd(),
            path: "/data",
        };
        let volume = store.ensure_volume("one", &about, Some(filling)).unwrap();
        let file = volume.data.join("deep/file");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "of the image");
        std::fs::write(&file, "changed").unwrap();
        let again = store.ensure_volume("one", &about, Some(filling)).unwrap();
        assert_eq!(again, volume);
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "changed");
        let empty = Filling {
            root: root.as_fd(),
            path: "/nowhere",
        };
        store.ensure_volume("two", &about, Some(empty)).unwrap();
        let names: Vec<String> = store
            .volumes()
            .unwrap()
            .into_iter()
            .map(|v| v.name)
            .collect();
        assert_eq!(names, ["one", "two"]);
        assert!(store.remove_volume("one").unwrap());
        assert!(!store.remove_volume("one").unwrap());
        assert!(store.volume("one").unwrap().is_none());
        for bad in ["", "a", "../x", "lock", "a/b"] {
            assert!(store.ensure_volume(bad, &about, None).is_err(), "{bad}");
            assert!(!store.remove_volume(bad).unwrap(), "{bad}");
        }
    }
}
