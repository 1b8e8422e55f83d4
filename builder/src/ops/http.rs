//! Files behind URLs: asked for their state, downloaded only if that is a new one.
//!
//! A file's layer is found by the URL, if the server says that nothing changed, and by its digest, if the Dockerfile
//! says it: then nobody is asked.

use std::cell::Cell;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, Timespec, Timestamps};
use store::StoreError;
use store::fs::TempFile;

use super::auth;
use super::source::{Fetching, Found, key};
use crate::cache::shared::import::SharedCache;
use crate::cache::shared::source::SharedSource;
use crate::error::StepError;
use crate::graph::HttpOp;
use crate::remote::{Downloaded, RemoteFile, Validators};

/// Mode of a file that was downloaded.
const FILE_MODE: u32 = 0o600;

/// Downloads are told of in steps of at least this many bytes.
const STEP_BYTES: u64 = 256 * 1024;

/// Longest name of a file, in bytes: the kernel's own bound.
const NAME_BYTES_MAX: usize = 255;

fn url_key(op: &HttpOp) -> [u8; 32] {
    key(&["http", &op.url, &op.name])
}

fn content_key(name: &str, digest: &str) -> [u8; 32] {
    key(&["http content", name, digest])
}

/// The file as an earlier build left it, if it is the right one still.
pub(crate) fn recall(fetching: &Fetching<'_>, op: &HttpOp) -> Result<Option<Found>, StepError> {
    if let Some(checksum) = &op.checksum {
        return fetching.recall(&content_key(&op.name, &checksum.to_string()));
    }
    let Some(found) = fetching.recall(&url_key(op))? else {
        return Ok(None);
    };
    let file = file(fetching, &op.url)?;
    match is_unchanged(fetching, &file, &found.validators())? {
        true => Ok(Some(found)),
        false => Ok(None),
    }
}

/// What other machines' builds found the file to be, if it is that still; with what is known of it under its keys.
pub(crate) fn recall_shared(
    fetching: &Fetching<'_>,
    shared: &SharedCache<'_>,
    op: &HttpOp,
) -> Result<Option<SharedSource>, StepError> {
    if let Some(checksum) = &op.checksum {
        let key = content_key(&op.name, &checksum.to_string());
        let mut found = shared.sources(&key).into_iter();
        return Ok(found.find(|found| found.validators.is_none()));
    }
    for found in shared.sources(&url_key(op)) {
        let Some(validators) = &found.validators else {
            continue;
        };
        let file = file(fetching, &op.url)?;
        if is_unchanged(fetching, &file, validators)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// What other machines are told of a file that is here.
pub(crate) fn to_share(op: &HttpOp, found: &Found) -> Vec<SharedSource> {
    match &found.digest {
        Some(digest) => found.shared(content_key(&op.name, digest), Some(url_key(op))),
        None => Vec::new(),
    }
}

/// What was downloaded last from there.
pub(crate) fn last(fetching: &Fetching<'_>, op: &HttpOp) -> Option<Found> {
    fetching.last(&url_key(op))
}

/// Asks a file's server whether it is as it was.
pub(crate) fn is_unchanged(
    fetching: &Fetching<'_>,
    file: &RemoteFile,
    known: &Validators,
) -> Result<bool, StepError> {
    let asked = fetching
        .remote
        .run(|client| async move { client.is_unchanged(file, known).await });
    Ok(asked?)
}

/// The file with the credentials that there are for its host.
pub(crate) fn file(fetching: &Fetching<'_>, url: &str) -> Result<RemoteFile, StepError> {
    let authorization = auth::for_file(fetching.settings, url)?;
    RemoteFile::new(url, authorization.as_deref()).map_err(|error| StepError::Remote(error.into()))
}

/// Downloads the file into a layer.
pub(crate) fn fetch(fetching: &Fetching<'_>, op: &HttpOp) -> Result<Found, StepError> {
    check_name(&op.name)?;
    let (temp, downloaded) = download(fetching, &op.url, &op.name)?;
    if let Some(expected) = op
        .checksum
        .filter(|expected| *expected != downloaded.digest)
    {
        return Err(StepError::Checksum {
            what: op.url.clone(),
            expected: expected.to_string(),
            actual: downloaded.digest.to_string(),
        });
    }
    let mut found = fetching.layer(|active| {
        let path = active.upper().join(&op.name);
        set_metadata(temp.path(), downloaded.modified.unwrap_or(0))?;
        temp.publish(&path).map_err(StoreError::from)?;
        Ok(())
    })?;
    describe(&mut found, &downloaded);
    let keys = [
        content_key(&op.name, &downloaded.digest.to_string()),
        url_key(op),
    ];
    fetching.remember(&keys, &found)?;
    Ok(found)
}

/// Notes in a record what file it is of.
pub(crate) fn describe(found: &mut Found, downloaded: &Downloaded) {
    found.digest = Some(downloaded.digest.to_string());
    found.etag.clone_from(&downloaded.validators.etag);
    found
        .last_modified
        .clone_from(&downloaded.validators.last_modified);
    found.size = Some(downloaded.size);
    found.modified = downloaded.modified;
}

/// Downloads a URL into a file without a name yet.
pub(crate) fn download(
    fetching: &Fetching<'_>,
    url: &str,
    name: &str,
) -> Result<(TempFile, Downloaded), StepError> {
    let file = file(fetching, url)?;
    let tmp = fetching.store.root().join("tmp");
    let temp = TempFile::create(&tmp).map_err(StoreError::from)?;
    let step = Cell::new(u64::MAX);
    let told = |done: u64, total: Option<u64>| {
        if step.replace(done / STEP_BYTES) != done / STEP_BYTES {
            // A part that is as long as the whole is not yet the end.
            fetching.told(url, name, done, total.filter(|total| done < *total));
        }
    };
    let downloaded = fetching
        .remote
        .download(&file, temp.file(), &told, fetching.cancelled)?;
    let Some(downloaded) = downloaded else {
        return Err(StepError::Cancelled);
    };
    let size = downloaded.size;
    fetching.told(url, name, size, Some(size));
    Ok((temp, downloaded))
}

/// A name comes from a URL: it must be one name, and one that a layer can have.
fn check_name(name: &str) -> Result<(), StepError> {
    let is_bad = matches!(name, "" | "." | "..")
        || name.len() > NAME_BYTES_MAX
        || name.contains('/')
        || name.starts_with(".wh.")
        || name.chars().any(char::is_control);
    match is_bad {
        true => Err(StepError::FileName {
            name: name.chars().take(80).collect(),
        }),
        false => Ok(()),
    }
}

fn set_metadata(path: &Path, modified: i64) -> Result<(), StepError> {
    let failed = |action: &'static str| {
        move |errno: rustix::io::Errno| StepError::SourceFile {
            action,
            path: path.to_owned(),
            source: errno.into(),
        }
    };
    let mode = Mode::from_raw_mode(FILE_MODE);
    rustix::fs::chmodat(CWD, path, mode, AtFlags::empty()).map_err(failed("set the mode of"))?;
    let time = Timespec {
        tv_sec: modified,
        tv_nsec: 0,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    rustix::fs::utimensat(CWD, path, &times, AtFlags::empty()).map_err(failed("set the time of"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_a_layer_can_have() {
        let check =
            |name: &str, expect: bool| assert_eq!(check_name(name).is_ok(), expect, "{name}");
        check("a.tar", true);
        check("a b", true);
        check("..", false);
        check("a/b", false);
        check(".wh.a", false);
        check("a\nb", false);
        check(&"x".repeat(256), false);
    }
}
