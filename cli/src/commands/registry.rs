//! `registry serve`, and what else is done to registries.

mod access_log;
mod bucket;
mod collection;
mod htpasswd;
mod keys;
mod migrate;
mod serve;
mod sync;
mod traces;
mod upstream;
mod webhook;

use std::io::Read as _;
use std::path::Path;

use crate::error::{CliError, Kind};

pub use collection::{gc, stats, verify};
pub use htpasswd::htpasswd;
pub use migrate::migrate;
pub use serve::serve;
pub use sync::sync;

/// Largest file with a secret that is read, in bytes.
const SECRET_BYTES_MAX: u64 = 64 * 1024;

/// The first line of a file: a password, a token or a key.
fn secret_in(path: &Path) -> Result<String, CliError> {
    let mut text = String::new();
    let read = std::fs::File::open(path)
        .and_then(|file| file.take(SECRET_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|source| {
        let message = format!("cannot read the secret in `{}`: {source}", path.display());
        CliError::new(Kind::Usage, message)
    })?;
    Ok(text.lines().next().unwrap_or_default().to_owned())
}
