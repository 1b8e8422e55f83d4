//! Where a build's files come from, as the command line says it.

use std::io::Read;
use std::path::Path;

use builder::contexts::{NamedContext, NamedContexts, RESERVED_NAMES, context_key};
use builder::dockerfile::ignore::read_patterns;

use crate::error::{Blame, CliError, Kind};

/// Largest Dockerfile or ignore file that is read, in bytes: a thousand times what people write.
const TEXT_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// `--build-context NAME=SOURCE`, each folder with its ignore file.
pub fn named_contexts(given: &[String]) -> Result<NamedContexts, CliError> {
    let mut contexts = NamedContexts::new();
    for text in given {
        let wrong = |reason: &str| {
            let message = format!("invalid build context `{text}`: {reason}");
            CliError::new(Kind::Usage, message)
        };
        let (name, value) = text
            .split_once('=')
            .ok_or_else(|| wrong("expected NAME=SOURCE"))?;
        let key = context_key(name)
            .ok_or_else(|| wrong("its name is none that an image or a stage could have"))?;
        let plain = key.split_once("::").map_or(&*key, |(name, _)| name);
        if RESERVED_NAMES.contains(&plain) {
            return Err(wrong(&format!("`{plain}` cannot stand for anything else")));
        }
        let mut context = NamedContext::parse(value).blame(Kind::Usage)?;
        if let NamedContext::Folder { path, ignore } = &mut context {
            *ignore = ignore_file(path)?.unwrap_or_default();
        }
        contexts.insert(key, context);
    }
    Ok(contexts)
}

/// The patterns of a folder's own ignore file.
fn ignore_file(folder: &Path) -> Result<Option<Vec<String>>, CliError> {
    for name in [".containerignore", ".dockerignore"] {
        if let Some(text) = read_optional(&folder.join(name))? {
            return Ok(Some(read_patterns(&text)));
        }
    }
    Ok(None)
}

/// Reads a text file, if it is there.
pub fn read_optional(path: &Path) -> Result<Option<String>, CliError> {
    match std::fs::File::open(path) {
        Ok(file) => read_text(file, path).map(Some),
        Err(error) if is_absent(&error) => Ok(None),
        Err(error) => Err(cannot("read", path, &error)),
    }
}

fn is_absent(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{NotADirectory, NotFound};
    matches!(error.kind(), NotFound | NotADirectory)
}

/// Reads a text, up to a limit.
pub fn read_text(file: impl Read, path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    file.take(TEXT_BYTES_MAX)
        .read_to_string(&mut text)
        .map_err(|source| cannot("read", path, &source))?;
    Ok(text)
}

fn cannot(what: &str, path: &Path, source: &std::io::Error) -> CliError {
    CliError::new(
        Kind::Input,
        format!("cannot {what} `{}`: {source}", path.display()),
    )
}
