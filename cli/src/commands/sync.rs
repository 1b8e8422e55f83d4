//! Making what a command published last through a crash of the machine, after the command itself is done.
//!
//! Writing a file system out can take seconds, and nothing that a person waits for needs it. So a command that published
//! something leaves a process behind that does only this, and ends.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode, Stdio};

use store::Store;

use crate::context::Context;
use crate::error::CliError;

/// `longshore store-sync`.
pub fn sync(context: &Context) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    // What the command was still removing when it ended.
    store.snapshots().sweep().map_err(store::StoreError::from)?;
    store.sync()?;
    Ok(ExitCode::SUCCESS)
}

/// Has the store written out in the background, if there is anything to write. What goes wrong is not worth an error:
/// until the next command that publishes something, a crash of the machine (and only that) may take the last results.
pub fn soon(store: &Store) {
    if !store.needs_sync().unwrap_or(false) {
        return;
    }
    let spawned = Command::new("/proc/self/exe")
        .arg("--root")
        .arg(store.root())
        .arg("store-sync")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .process_group(0)
        .spawn();
    if let Err(error) = spawned {
        tracing::debug!(%error, "cannot start the process that writes the store out");
    }
}
