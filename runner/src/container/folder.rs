//! A container's folder: its files, its locks, and who holds it.
//!
//! ```text
//! plan.json   what the supervisor is to do        written by who starts it
//! state.json  how the container is                written by the supervisor
//! log.json    what it printed, log.json.1 …       written by the supervisor
//! socket      where the supervisor listens
//! lock        held while a command changes the container (start, rm, rename …)
//! alive       held by the supervisor for as long as it lives
//! ```

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rustix::fs::{FlockOperation, Mode, OFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::plan::Plan;
use super::state::{State, boot_id};
use super::time::rfc3339;
use crate::spec::SPEC_BYTES_MAX;

/// A file of a container's folder fails.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} `{}`", path.display())]
#[non_exhaustive]
pub struct FolderError {
    /// What was tried.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// Why it failed.
    pub source: io::Error,
}

/// The folder of a container.
#[derive(Debug)]
pub struct Folder {
    directory: OwnedFd,
    path: PathBuf,
}

/// A container that nobody else changes, starts or removes.
#[derive(Debug)]
pub struct Held {
    _lock: File,
}

impl Folder {
    /// Opens the folder.
    ///
    /// # Errors
    /// It is not there, or no folder.
    pub fn open(path: &Path) -> Result<Folder, FolderError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let directory = rustix::fs::open(path, flags, Mode::empty());
        Ok(Folder {
            directory: directory.map_err(|errno| failed("open", path, errno.into()))?,
            path: path.to_owned(),
        })
    }

    /// The supervisor's: from a descriptor, in which it stands.
    pub(super) fn standing_in(directory: OwnedFd) -> Folder {
        Folder {
            directory,
            path: PathBuf::from("."),
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Waits until nobody else changes the container.
    ///
    /// # Errors
    /// The container is removed meanwhile, or the lock fails.
    pub fn hold(&self) -> Result<Held, FolderError> {
        let path = self.path.join("lock");
        let file = self.open_lock("lock")?;
        flock(&file, FlockOperation::LockExclusive).map_err(|e| failed("lock", &path, e))?;
        // A removed container's lock is one that nobody else can find.
        let is_there = std::fs::metadata(&path).and_then(|named| {
            let own = file.metadata()?;
            Ok((named.dev(), named.ino()) == (own.dev(), own.ino()))
        });
        match is_there {
            Ok(true) => Ok(Held { _lock: file }),
            Ok(false) => Err(failed("find", &path, io::ErrorKind::NotFound.into())),
            Err(error) => Err(failed("find", &path, error)),
        }
    }

    /// Whether a supervisor holds the container.
    ///
    /// # Errors
    /// The lock fails.
    pub fn is_alive(&self) -> Result<bool, FolderError> {
        let path = self.path.join("alive");
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(failed("open", &path, error)),
        };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
            Err(error) => Err(failed("lock", &path, error)),
        }
    }

    /// The lock that a supervisor is given. Waits for those who only look whether somebody has it; who calls this holds
    /// the container and knows that it does not run.
    pub(super) fn take_alive(&self, _held: &Held) -> Result<File, FolderError> {
        let file = self.open_lock("alive")?;
        flock(&file, FlockOperation::LockExclusive)
            .map_err(|error| failed("lock", &self.path.join("alive"), error))?;
        Ok(file)
    }

    fn open_lock(&self, name: &str) -> Result<File, FolderError> {
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC;
        rustix::fs::openat(&self.directory, name, flags, Mode::RUSR | Mode::WUSR)
            .map(File::from)
            .map_err(|errno| failed("open", &self.path.join(name), errno.into()))
    }

    /// How the container is. What was written by a supervisor that is gone is put right.
    ///
    /// # Errors
    /// The file cannot be read, or makes no sense.
    pub fn state(&self) -> Result<State, FolderError> {
        let read = || self.read::<State>("state.json", STATE_BYTES_MAX);
        let Some((state, _)) = read()? else {
            return Ok(State::default());
        };
        if !state.status.is_live() || self.is_alive()? {
            return Ok(state);
        }
        // Its last word may have come between the two looks.
        let Some((state, written)) = read()? else {
            return Ok(State::default());
        };
        Ok(state.without_supervisor(&boot_id(), written))
    }

    /// The container's process 1, if it runs.
    ///
    /// # Errors
    /// The state cannot be read.
    pub(super) fn process_1(&self) -> Result<Option<OwnedFd>, FolderError> {
        let pid = self.state()?.pid;
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw);
        let Some(raw) = raw else { return Ok(None) };
        let Ok(process) = pidfd_open(raw, PidfdFlags::empty()) else {
            return Ok(None);
        };
        // If it is its process now that it is held, it is the one that was meant.
        Ok((self.state()?.pid == pid).then_some(process))
    }

    pub(super) fn write_state(&self, state: &State) -> Result<(), FolderError> {
        self.write("state.json", state)
    }

    /// Writes what a supervisor is to do.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_plan(&self, plan: &Plan) -> Result<(), FolderError> {
        self.write("plan.json", plan)
    }

    pub(super) fn plan(&self) -> Result<Option<Plan>, FolderError> {
        let read = self.read("plan.json", SPEC_BYTES_MAX as u64)?;
        Ok(read.map(|(plan, _)| plan))
    }

    /// A file's content and when it was written; `None` if there is none.
    fn read<T: DeserializeOwned>(
        &self,
        name: &str,
        bytes_max: u64,
    ) -> Result<Option<(T, String)>, FolderError> {
        let fail = |error| failed("read", &self.path.join(name), error);
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = match rustix::fs::openat(&self.directory, name, flags, Mode::empty()) {
            Ok(file) => File::from(file),
            Err(rustix::io::Errno::NOENT) => return Ok(None),
            Err(errno) => return Err(fail(errno.into())),
        };
        let metadata = file.metadata().map_err(fail)?;
        let nanos = u32::try_from(metadata.mtime_nsec()).unwrap_or(0);
        let seconds = u64::try_from(metadata.mtime()).unwrap_or(0);
        let written = rfc3339(UNIX_EPOCH + Duration::new(seconds, nanos));
        let mut bytes = Vec::new();
        file.take(bytes_max).read_to_end(&mut bytes).map_err(fail)?;
        let value = serde_json::from_slice(&bytes).map_err(|error| fail(error.into()))?;
        Ok(Some((value, written)))
    }

    /// Writes aside, then renames: at any moment there is a whole file.
    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), FolderError> {
        let fail = |error| failed("write", &self.path.join(name), error);
        let aside = format!("{name}.new");
        let bytes = serde_json::to_vec(value).map_err(|error| fail(error.into()))?;
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let file = rustix::fs::openat(&self.directory, &aside, flags, mode);
        let mut file = File::from(file.map_err(|errno| fail(errno.into()))?);
        file.write_all(&bytes).map_err(fail)?;
        rustix::fs::renameat(&self.directory, &aside, &self.directory, name)
            .map_err(|errno| fail(errno.into()))
    }
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }
}

/// More than a state with five health checks of 4 KiB each, escaped.
const STATE_BYTES_MAX: u64 = 1 << 20;

fn flock(file: &File, operation: FlockOperation) -> io::Result<()> {
    rustix::io::retry_on_intr(|| rustix::fs::flock(file, operation)).map_err(io::Error::from)
}

pub(super) fn failed(action: &'static str, path: &Path, source: io::Error) -> FolderError {
    FolderError {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::Status;

    fn folder() -> (tempfile::TempDir, Folder) {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path()).unwrap();
        (dir, folder)
    }

    #[test]
    fn states_are_true_only_while_somebody_is_alive() {
        let (_dir, folder) = folder();
        assert_eq!(folder.state().unwrap(), State::default());
        let running = State {
            status: Status::Running,
            boot_id: boot_id(),
            ..State::default()
        };
        folder.write_state(&running).unwrap();
        let held = folder.hold().unwrap();
        let alive = folder.take_alive(&held).unwrap();
        assert_eq!(folder.state().unwrap(), running);
        drop(alive);
        let after = folder.state().unwrap();
        assert_eq!((after.status, after.exit_code), (Status::Exited, 137));
        assert!(after.finished_at.starts_with("20"), "{after:?}");
    }

    #[test]
    fn a_machine_that_was_restarted_is_noticed() {
        let (_dir, folder) = folder();
        let stale = State {
            status: Status::Running,
            boot_id: "another".to_owned(),
            ..State::default()
        };
        folder.write_state(&stale).unwrap();
        let state = folder.state().unwrap();
        assert_eq!((state.status, state.exit_code), (Status::Exited, 255));
        assert!(state.error.contains("restarted"), "{state:?}");
    }

    #[test]
    fn nonsense_is_an_error() {
        let (dir, folder) = folder();
        std::fs::write(dir.path().join("state.json"), "{").unwrap();
        let error = folder.state().unwrap_err().to_string();
        assert!(error.contains("state.json"), "{error}");
    }

    #[test]
    fn a_removed_container_cannot_be_held() {
        let (dir, folder) = folder();
        drop(folder.hold().unwrap());
        std::fs::remove_dir_all(dir.path()).unwrap();
        assert!(folder.hold().is_err());
    }
}
