//! Ends what a step leaves behind, beside the steps that follow.
//!
//! Unmounting waits for every processor to pass a quiet point, and removing a directory waits for the disk: milliseconds each,
//! several times what the step itself costs, and nobody needs the outcome. So one thread of the process does it, started with
//! the first piece of work. When the process ends first, the kernel unmounts and the next
//! [`sweep`](super::Snapshots::sweep) removes: the same as after a kill.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::OnceLock;
use std::sync::mpsc::{Sender, channel};

use crate::fs::TempDir;

/// What is to end.
pub(super) enum Remains {
    /// A detached mount: it ends when this is closed.
    Mount(OwnedFd),
    /// A folder: it is removed when this is dropped.
    Folder(TempDir),
    /// Nothing: answers once all before it has ended.
    Question(Sender<()>),
}

/// Hands remains to the thread.
#[derive(Default)]
pub(super) struct Reaper {
    sender: OnceLock<Option<Sender<Remains>>>,
}

impl Reaper {
    /// Ends `remains` soon; at once where there is no thread to be had.
    pub(super) fn take(&self, remains: Remains) {
        let sender = self.sender.get_or_init(|| {
            let (sender, receiver) = channel();
            let thread = std::thread::Builder::new().name("reaper".to_owned());
            let work = move || {
                for remains in receiver {
                    match remains {
                        Remains::Mount(root) => drop(root),
                        Remains::Folder(folder) => drop(folder),
                        // Who asked may have gone.
                        Remains::Question(asker) => drop(asker.send(())),
                    }
                }
            };
            thread.spawn(work).ok().map(|_| sender)
        });
        if let Some(sender) = sender {
            // A thread that is gone gives the remains back, and dropping them ends them here.
            drop(sender.send(remains));
        }
    }
}

impl Reaper {
    /// Waits until everything taken so far has ended.
    pub(super) fn settle(&self) {
        let (asker, answer) = channel();
        self.take(Remains::Question(asker));
        // Without a thread the question is dropped, and everything ended at once.
        let _answered = answer.recv();
    }
}

impl fmt::Debug for Reaper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reaper").finish_non_exhaustive()
    }
}
