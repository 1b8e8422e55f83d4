//! Containers: folders with an id and a name, each with a directory that its processes write to, on top of an image's layers.
//!
//! ```text
//! containers/lock          held alone while a container is made, renamed or removed
//! containers/names/NAME    a link to the id; it counts only if that container says the same
//! containers/ID/name       its name
//! containers/ID/config     what it is: the command line's own record, opaque here
//! containers/ID/image      the layers below, oldest first
//! containers/ID/fs, work/  overlayfs's upper and work directory
//! ```
//!
//! Everything else in the folder belongs to who runs the container (`docs/formats/container.md`). The lease
//! `container:ID` keeps the image and its layers for as long as the container is there; one without a container is what
//! a crash left, and goes with the next removal.

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use ring::rand::{SecureRandom, SystemRandom};

use crate::fs::{self, FsError, Shared, attempt};
use crate::images::ImageId;
use crate::index::{IndexError, Lease, LeaseItem};
use crate::layer::entry::is_opaque;
use crate::layer::walk::{open_directory, walk};
use crate::layer::{LayerId, LayerInfo};
use crate::snapshot::{SnapshotError, SnapshotMount, View};
use crate::{Store, StoreError};

/// The largest record of a container: as large as the command line that made it may be.
const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// The longest name, so that it is a file's.
const NAME_BYTES_MAX: usize = 200;
/// How a container's lease is called before its id.
const LEASE: &str = "container:";

/// Why a container could not be made or found.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ContainerError {
    /// There is none.
    #[error("no such container: `{text}`")]
    Unknown {
        /// What was looked for.
        text: String,
    },
    /// There are several.
    #[error("`{text}` is the beginning of several containers' ids")]
    Ambiguous {
        /// What was looked for.
        text: String,
    },
    /// Another one has the name.
    #[error(
        "the container name `{name}` is already in use by container {id}: remove or rename that one"
    )]
    NameTaken {
        /// The name.
        name: String,
        /// Who has it, shortened.
        id: String,
    },
    /// No name.
    #[error(
        "`{name}` is no container name: expected letters, digits, `_`, `.` and `-`, two at least, beginning with a letter or digit"
    )]
    BadName {
        /// The text.
        name: String,
    },
    /// No random numbers.
    #[error("cannot make an id: no random bytes to be had")]
    Random,
    /// A file of the folder makes no sense.
    #[error("`{}` of a container is damaged", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
    },
    /// A file fails.
    #[error(transparent)]
    Fs(#[from] FsError),
    /// The index fails.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its directory cannot be made or stacked.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// The store fails.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A container's id: 64 hexadecimal digits.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContainerId(String);

impl ContainerId {
    /// A new one.
    ///
    /// # Errors
    /// There are no random numbers to be had.
    pub fn random() -> Result<ContainerId, ContainerError> {
        let mut bytes = [0; 32];
        let filled = SystemRandom::new().fill(&mut bytes);
        filled.map_err(|_| ContainerError::Random)?;
        Ok(ContainerId(
            bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        ))
    }

    /// Its first twelve digits.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for ContainerId {
    type Err = ();

    fn from_str(text: &str) -> Result<ContainerId, ()> {
        let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
        match text.len() == 64 && text.bytes().all(is_hex) {
            true => Ok(ContainerId(text.to_owned())),
            false => Err(()),
        }
    }
}

/// A container to be made.
#[derive(Debug)]
pub struct NewContainer<'a> {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: &'a str,
    /// The image that it is made of.
    pub image: ImageId,
    /// That one's layers, oldest first.
    pub layers: &'a [LayerId],
    /// The command line's own record.
    pub config: &'a [u8],
}

/// A container.
#[derive(Clone, Debug)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its name.
    pub name: String,
    path: PathBuf,
}

impl Container {
    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What its processes wrote.
    pub fn upper(&self) -> PathBuf {
        self.path.join("fs")
    }

    /// The command line's own record.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn config(&self) -> Result<Vec<u8>, ContainerError> {
        Ok(fs::read(&self.path.join("config"), CONFIG_BYTES_MAX)?)
    }

    /// The layers below, oldest first.
    ///
    /// # Errors
    /// The file cannot be read, or makes no sense.
    pub fn layers(&self) -> Result<Vec<LayerId>, ContainerError> {
        let path = self.path.join("image");
        let bytes = fs::read(&path, CONFIG_BYTES_MAX)?;
        let text = String::from_utf8(bytes).ok();
        let layers = text.and_then(|text| text.lines().map(|line| line.parse().ok()).collect());
        layers.ok_or(ContainerError::Damaged { path })
    }
}

/// Whether a text can be a container's name, or a volume's.
pub fn is_name(text: &str) -> bool {
    let mut bytes = text.bytes();
    let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte);
    let first = bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphanumeric());
    first && bytes.len() > 0 && text.len() <= NAME_BYTES_MAX && bytes.all(is_inner)
}

impl Store {
    fn containers_path(&self) -> PathBuf {
        self.root().join("containers")
    }

    /// The ids of all containers and where they are, damaged ones too.
    pub(crate) fn container_folders(&self) -> Result<Vec<(String, PathBuf)>, FsError> {
        let path = self.containers_path();
        let names = fs::list(&path)?.into_iter();
        let ids = names.filter(|name| name.parse::<ContainerId>().is_ok());
        Ok(ids
            .map(|id| {
                let folder = path.join(&id);
                (id, folder)
            })
            .collect())
    }

    fn container_names(&self) -> PathBuf {
        self.containers_path().join("names")
    }

    /// Keeps others from making, renaming or removing containers.
    fn hold_containers(&self) -> Result<Shared, ContainerError> {
        fs::create_dir(&self.container_names())?;
        Ok(Shared::lock_alone(&self.containers_path().join("lock"))?)
    }

    /// Makes a container: when its name appears, everything is there.
    ///
    /// # Errors
    /// The name is taken or none, a layer is not here, or the disk fails.
    pub fn create_container(&self, new: &NewContainer<'_>) -> Result<Container, ContainerError> {
        check_name(new.name)?;
        // What this process has looked at is safe from collections until the lease is there.
        let folder = self.temp_dir()?;
        self.snapshots().prepare_in(folder.path(), new.layers)?;
        let layers: String = new
            .layers
            .iter()
            .map(|layer| format!("{layer}\n"))
            .collect();
        let files = [
            ("name", new.name.as_bytes()),
            ("config", new.config),
            ("image", layers.as_bytes()),
        ];
        for (name, bytes) in files {
            self.write_in(folder.path(), name, bytes)?;
        }
        let _held = self.hold_containers()?;
        self.claim_name(new.name, &new.id)?;
        let layers = new.layers.iter().map(|layer| LeaseItem::Layer(*layer));
        let mut items: Vec<LeaseItem> = layers.chain([LeaseItem::Image(new.image)]).collect();
        items.sort();
        items.dedup();
        self.index().lease_put(&Lease {
            id: format!("{LEASE}{}", new.id),
            expires: None,
            items,
        })?;
        let path = self.containers_path().join(new.id.to_string());
        folder.publish(&path)?;
        Ok(Container {
            id: new.id.clone(),
            name: new.name.to_owned(),
            path,
        })
    }

    fn write_in(&self, folder: &Path, name: &str, bytes: &[u8]) -> Result<(), ContainerError> {
        let tmp = self.root().join("tmp");
        Ok(fs::write_atomic(&tmp, &folder.join(name), bytes)?)
    }

    /// Makes the link from a name, unless a container has it that says the same.
    fn claim_name(&self, name: &str, id: &ContainerId) -> Result<(), ContainerError> {
        if let Some(other) = self.container_named(name)? {
            return Err(ContainerError::NameTaken {
                name: name.to_owned(),
                id: other.id.short().to_owned(),
            });
        }
        let path = self.container_names().join(name);
        fs::remove_file(&path)?;
        Ok(attempt("make the link", &path, || {
            std::os::unix::fs::symlink(id.to_string(), &path)
        })?)
    }

    fn container_named(&self, name: &str) -> Result<Option<Container>, ContainerError> {
        let Ok(target) = std::fs::read_link(self.container_names().join(name)) else {
            return Ok(None);
        };
        let id = target.to_str().and_then(|text| text.parse().ok());
        let Some(id) = id else {
            return Ok(None);
        };
        Ok(self
            .container(id)?
            .filter(|container| container.name == name))
    }

    fn container(&self, id: ContainerId) -> Result<Option<Container>, ContainerError> {
        let path = self.containers_path().join(id.to_string());
        let name = fs::optional(fs::read(&path.join("name"), NAME_BYTES_MAX as u64))?;
        let Some(name) = name else {
            return Ok(None);
        };
        let name = String::from_utf8(name).map_err(|_| ContainerError::Damaged {
            path: path.join("name"),
        })?;
        Ok(Some(Container { id, name, path }))
    }

    /// The container that a text names: by its name, its id, or the beginning of that.
    ///
    /// # Errors
    /// There is none, or several.
    pub fn find_container(&self, text: &str) -> Result<Container, ContainerError> {
        let unknown = || ContainerError::Unknown {
            text: text.to_owned(),
        };
        if let Ok(id) = text.parse::<ContainerId>() {
            return self.container(id)?.ok_or_else(unknown);
        }
        // As in docker.
        let name = text.strip_prefix('/').unwrap_or(text);
        if is_name(name)
            && let Some(container) = self.container_named(name)?
        {
            return Ok(container);
        }
        let names = fs::list(&self.containers_path())?;
        let mut ids = names
            .iter()
            .filter(|id| !text.is_empty() && id.starts_with(text))
            .filter_map(|id| id.parse::<ContainerId>().ok());
        match (ids.next(), ids.next()) {
            (Some(id), None) => self.container(id)?.ok_or_else(unknown),
            (Some(_), Some(_)) => Err(ContainerError::Ambiguous {
                text: text.to_owned(),
            }),
            (None, _) => Err(unknown()),
        }
    }

    /// All containers, by id.
    ///
    /// # Errors
    /// A folder cannot be read.
    pub fn containers(&self) -> Result<Vec<Container>, ContainerError> {
        let names = fs::list(&self.containers_path())?;
        let ids = names.iter().filter_map(|name| name.parse().ok());
        let found = ids.map(|id| self.container(id));
        found.filter_map(Result::transpose).collect()
    }

    /// Whether a container may be made with this name.
    ///
    /// # Errors
    /// It is taken, or none.
    pub fn check_free(&self, name: &str) -> Result<(), ContainerError> {
        check_name(name)?;
        match self.container_named(name)? {
            Some(other) => Err(ContainerError::NameTaken {
                name: name.to_owned(),
                id: other.id.short().to_owned(),
            }),
            None => Ok(()),
        }
    }

    /// Replaces the command line's own record. Whoever calls this holds the container.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_container_config(
        &self,
        container: &Container,
        config: &[u8],
    ) -> Result<(), ContainerError> {
        self.write_in(&container.path, "config", config)
    }

    /// Gives a container another name.
    ///
    /// # Errors
    /// It is taken, or none.
    pub fn rename_container(
        &self,
        container: &Container,
        name: &str,
    ) -> Result<(), ContainerError> {
        check_name(name)?;
        let _held = self.hold_containers()?;
        self.claim_name(name, &container.id)?;
        self.write_in(&container.path, "name", name.as_bytes())?;
        fs::remove_file(&self.container_names().join(&container.name))?;
        Ok(())
    }

    /// Removes a container: it is gone at once, then its files go. Nobody may be running it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn remove_container(&self, container: &Container) -> Result<(), ContainerError> {
        let held = self.hold_containers()?;
        let scratch = self.temp_dir()?;
        fs::optional(fs::rename(&container.path, &scratch.path().join("removed")))?;
        let link = self.container_names().join(&container.name);
        let is_its_own = std::fs::read_link(&link)
            .is_ok_and(|target| target.as_os_str() == container.id.to_string().as_str());
        if is_its_own {
            fs::remove_file(&link)?;
        }
        self.end_leases()?;
        drop(held);
        drop(scratch);
        Ok(())
    }

    /// Ends the leases of containers that are gone.
    fn end_leases(&self) -> Result<(), ContainerError> {
        for lease in self.index().leases()? {
            let id = lease.id.strip_prefix(LEASE);
            let Some(id) = id.and_then(|id| id.parse::<ContainerId>().ok()) else {
                continue;
            };
            if !fs::is_dir(&self.containers_path().join(id.to_string()))? {
                self.index().lease_remove(&lease.id)?;
            }
        }
        Ok(())
    }

    /// What overlayfs needs to show a container its root, with a work directory that nothing was written in. Nobody may be
    /// running it.
    ///
    /// # Errors
    /// A layer is not here, or the disk fails.
    pub fn mount_container(&self, container: &Container) -> Result<SnapshotMount, ContainerError> {
        Ok(self
            .snapshots()
            .writable(&container.path, &container.layers()?)?)
    }

    /// The root of a container that nobody runs, to read and to write: it ends with the handle.
    ///
    /// # Errors
    /// As for [`Store::mount_container`], and overlayfs may refuse.
    pub fn open_container(&self, container: &Container) -> Result<OwnedFd, ContainerError> {
        let mount = self.mount_container(container)?;
        Ok(self.snapshots().open_writable(&mount)?)
    }

    /// The root of the image that a container was made of, to read.
    ///
    /// # Errors
    /// A layer is not here, or overlayfs refuses.
    pub fn container_image(&self, container: &Container) -> Result<View, ContainerError> {
        Ok(self.snapshots().view(&container.layers()?)?)
    }

    /// What a container's processes changed of its image: paths with a leading slash, sorted.
    ///
    /// # Errors
    /// It cannot be read, or changes meanwhile.
    pub fn container_changes(
        &self,
        container: &Container,
    ) -> Result<Vec<(ChangeKind, Vec<u8>)>, ContainerError> {
        let view = self.container_image(container)?;
        let path = container.upper();
        let upper = fs::open_dir(&path)?;
        let changes = attempt("read", &path, || changes(upper.as_fd(), view.as_fd()))?;
        Ok(changes)
    }

    /// A layer of what a container's processes wrote, which stays as it is.
    ///
    /// # Errors
    /// It cannot be read, or changes meanwhile.
    pub fn commit_container(&self, container: &Container) -> Result<LayerInfo, ContainerError> {
        let layers = container.layers()?;
        let info = self.publish_layer(|| -> Result<LayerInfo, StoreError> {
            Ok(self.snapshots().commit_copy(&layers, &container.upper())?)
        })?;
        Ok(info)
    }
}

/// What became of a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ChangeKind {
    /// It is new.
    Added,
    /// It, or something beneath it, is different.
    Changed,
    /// It is gone.
    Deleted,
}

fn changes(
    upper: BorrowedFd<'_>,
    image: BorrowedFd<'_>,
) -> std::io::Result<Vec<(ChangeKind, Vec<u8>)>> {
    let shown = |path: &[u8]| [b"/", path].concat();
    let mut changes = Vec::new();
    for found in walk(upper).map_err(|error| std::io::Error::from(error.errno))? {
        let below = stat_beneath(image, &found.path)?;
        if found.is_whiteout() {
            if below.is_some() {
                changes.push((ChangeKind::Deleted, shown(&found.path)));
            }
            continue;
        }
        let is_directory =
            |stat: &Stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        let kind = match below {
            Some(_) => ChangeKind::Changed,
            None => ChangeKind::Added,
        };
        changes.push((kind, shown(&found.path)));
        // Of a directory that was removed and made again, what was in it is gone but for what was made again, too.
        if is_directory(&found.stat) && below.as_ref().is_some_and(is_directory) {
            let own = open_directory(upper, &found.path)?;
            if !is_opaque(&own)? {
                continue;
            }
            let old = open_directory(image, &found.path)?;
            for entry in rustix::fs::Dir::read_from(&old)? {
                let name = entry?.file_name().to_bytes().to_vec();
                if matches!(&name[..], b"." | b"..") || stat_beneath(own.as_fd(), &name)?.is_some()
                {
                    continue;
                }
                let path = [&found.path[..], b"/", &name].concat();
                changes.push((ChangeKind::Deleted, shown(&path)));
            }
        }
    }
    changes.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(changes)
}

/// What lies at a path; nothing where something on the way is missing, or is no directory.
fn stat_beneath(root: BorrowedFd<'_>, path: &[u8]) -> std::io::Result<Option<Stat>> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    match rustix::fs::openat2(root, path, flags, Mode::empty(), resolve) {
        Ok(found) => Ok(Some(rustix::fs::fstat(&found)?)),
        // A link itself can be opened no other way than by its name.
        Err(Errno::LOOP) => {
            match rustix::fs::statat(root, path, rustix::fs::AtFlags::SYMLINK_NOFOLLOW) {
                Ok(stat) => Ok(Some(stat)),
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
                Err(errno) => Err(errno.into()),
            }
        }
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
        Err(errno) => Err(errno.into()),
    }
}

fn check_name(name: &str) -> Result<(), ContainerError> {
    match is_name(name) {
        true => Ok(()),
        false => Err(ContainerError::BadName {
            name: name.to_owned(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Digest;

    fn store() -> (tempfile::TempDir, Store) {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        (dir, store)
    }

    fn create(store: &Store, name: &str) -> Result<Container, ContainerError> {
        store.create_container(&NewContainer {
            id: ContainerId::random().unwrap(),
            name,
            image: ImageId(Digest::of(b"image")),
            layers: &[],
            config: b"config",
        })
    }

    #[test]
    fn names_and_ids_find_containers() {
        let (_dir, store) = store();
        let one = create(&store, "one").unwrap();
        let two = create(&store, "two").unwrap();
        let check = |text: &str, expected: &Container| {
            assert_eq!(
                store.find_container(text).unwrap().id,
                expected.id,
                "{text}"
            );
        };
        check("one", &one);
        check("/two", &two);
        check(&one.id.to_string(), &one);
        check(two.id.short(), &two);
        for text in ["", "three", "../names", "zz"] {
            let error = store.find_container(text).unwrap_err();
            assert!(matches!(error, ContainerError::Unknown { .. }), "{error}");
        }
        assert_eq!(store.containers().unwrap().len(), 2);
        assert_eq!(one.config().unwrap(), b"config");
        assert_eq!(one.layers().unwrap(), []);
    }

    #[test]
    fn names_are_taken_once() {
        let (_dir, store) = store();
        let one = create(&store, "one").unwrap();
        let taken = create(&store, "one").unwrap_err().to_string();
        assert!(taken.contains("already in use"), "{taken}");
        assert!(taken.contains(one.id.short()), "{taken}");
        let two = create(&store, "two").unwrap();
        assert!(store.rename_container(&two, "one").is_err());
        store.rename_container(&two, "three").unwrap();
        assert_eq!(store.find_container("three").unwrap().id, two.id);
        assert!(store.find_container("two").is_err());
        create(&store, "two").unwrap();
        store.remove_container(&one).unwrap();
        create(&store, "one").unwrap();
        for bad in ["", "a", "-a", "a/b", "a b", "ä1", &"x".repeat(300)] {
            let error = create(&store, bad).unwrap_err();
            assert!(matches!(error, ContainerError::BadName { .. }), "{bad}");
        }
    }

    #[test]
    fn a_name_without_its_container_is_free() {
        let (dir, store) = store();
        let link = dir.path().join("containers/names/one");
        create(&store, "two").unwrap();
        let gone = ContainerId::random().unwrap().to_string();
        std::os::unix::fs::symlink(gone, &link).unwrap();
        assert!(store.find_container("one").is_err());
        create(&store, "one").unwrap();
    }

    #[test]
    fn a_container_keeps_its_image_until_it_is_removed() {
        let (_dir, store) = store();
        let one = create(&store, "one").unwrap();
        let lease = format!("{LEASE}{}", one.id);
        let leases = || -> Vec<String> {
            let leases = store.index().leases().unwrap();
            leases.into_iter().map(|lease| lease.id).collect()
        };
        assert_eq!(leases(), [lease]);
        store.remove_container(&one).unwrap();
        assert!(leases().is_empty());
        assert!(!one.path().exists());
        store.remove_container(&one).unwrap();
    }
}
