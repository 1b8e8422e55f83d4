//! What a container shares with others: `--network`, `--ipc`, `--pid` and `--uts` of `container:NAME`.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use runner::{EtcFiles, Namespace};
use rustix::fs::{Mode, OFlags, ResolveFlags};
use store::Store;

use super::Known;
use super::lifecycle::connect;
use super::record::Record;
use crate::error::{CliError, Kind};

/// More than any of these files needs.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// What a container shares with others.
#[derive(Default)]
pub struct Beside {
    /// Their folders.
    pub folders: Vec<PathBuf>,
    /// What of each.
    pub joined: Vec<Vec<Namespace>>,
    /// The files of the one whose network it is.
    pub etc: Option<EtcFiles>,
    /// That one's host name.
    pub hostname: Option<String>,
}

impl Beside {
    /// Looks the others up, which have to run.
    pub fn of(store: &Store, record: &Record) -> Result<Beside, CliError> {
        let mut by_container: BTreeMap<&String, Vec<Namespace>> = BTreeMap::new();
        for (namespace, id) in &record.joined {
            by_container.entry(id).or_default().push(*namespace);
        }
        let mut beside = Beside::default();
        for (id, namespaces) in by_container {
            let other = Known::find(store, id)?;
            let Some(client) = connect(&other.folder)? else {
                let message = format!(
                    "cannot join the {} of container `{}`, which does not run",
                    words(&namespaces),
                    other.container.name
                );
                return Err(CliError::new(Kind::Run, message));
            };
            if namespaces.contains(&Namespace::Network) {
                let root = client.root()?;
                let etc = EtcFiles {
                    hosts: text(root.as_fd(), "etc/hosts"),
                    resolv_conf: text(root.as_fd(), "etc/resolv.conf"),
                    hostname: text(root.as_fd(), "etc/hostname"),
                };
                let name = etc.hostname.as_deref().map(str::trim).map(str::to_owned);
                beside.hostname = name.filter(|name| !name.is_empty());
                beside.etc = Some(etc);
            }
            beside.folders.push(other.container.path().to_owned());
            beside.joined.push(namespaces);
        }
        Ok(beside)
    }
}

fn words(namespaces: &[Namespace]) -> String {
    let word = |namespace: &Namespace| match namespace {
        Namespace::Ipc => "IPC",
        Namespace::Network => "network",
        Namespace::Pid => "PID",
        Namespace::Uts => "UTS",
    };
    namespaces
        .iter()
        .map(word)
        .collect::<Vec<_>>()
        .join(" and ")
}

/// A file of a container, as it sees it; `None` if there is none that is text.
fn text(root: BorrowedFd<'_>, path: &str) -> Option<String> {
    // Whoever is in there may put anything in its place, but nothing that makes this wait.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(root, path, flags, Mode::empty(), resolve).ok()?;
    let file = File::from(found);
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}
