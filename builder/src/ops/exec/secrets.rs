//! Secrets: read when a step uses them, given as a file in memory or a variable, and kept nowhere.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use runner::MountKind as Point;
use store::Store;

use crate::error::StepError;
use crate::graph::exec::SecretMount;
use crate::request::{RunSettings, SecretSource, SecretText};

/// Largest secret, in bytes; as BuildKit has it.
pub const SECRET_BYTES_MAX: u64 = 500 * 1024;

/// Reads the secrets whose contents are part of keys: what is read here is what steps see, whatever happens to the files.
pub(crate) fn settle(store: &Store, settings: &mut RunSettings) -> Result<(), StepError> {
    for id in settings.secrets_in_key.clone() {
        let Some(content) = secret_content(settings, &id)? else {
            continue;
        };
        let digest = store.secret_digest(&content)?;
        settings.secret_digests.insert(id.clone(), digest);
        let text = SecretSource::Text(SecretText(content));
        settings.secrets.insert(id, text);
    }
    Ok(())
}

/// What `secret` comes to: a mount unless `target` is empty, and a variable if it has one.
pub(super) fn prepare(
    settings: &RunSettings,
    secret: &SecretMount,
    target: &str,
    env: &mut Vec<String>,
) -> Result<Option<Point>, StepError> {
    let content = secret_content(settings, &secret.id)?;
    if content.is_none() && secret.required {
        return Err(StepError::SecretMissing {
            id: secret.id.clone(),
        });
    }
    if let Some(name) = &secret.env {
        let value = content.clone().unwrap_or_default();
        let value = String::from_utf8(value).ok().filter(|v| !v.contains('\0'));
        let value = value.ok_or_else(|| StepError::SecretNotText {
            id: secret.id.clone(),
            name: name.clone(),
        })?;
        env.retain(|variable| variable.split('=').next() != Some(name));
        env.push(format!("{name}={value}"));
    }
    Ok(content
        .filter(|_| !target.is_empty())
        .map(|content| Point::File {
            content,
            mode: secret.mode,
            uid: secret.uid,
            gid: secret.gid,
            read_only: true,
        }))
}

/// What a secret says, if there is one of this id.
pub(crate) fn secret_content(
    settings: &RunSettings,
    id: &str,
) -> Result<Option<Vec<u8>>, StepError> {
    match settings.secrets.get(id) {
        Some(SecretSource::Text(text)) => Ok(Some(text.0.clone())),
        Some(SecretSource::File(path)) => read(id, path).map(Some),
        None => Ok(None),
    }
}

fn read(id: &str, path: &Path) -> Result<Vec<u8>, StepError> {
    let mut content = Vec::new();
    File::open(path)
        .and_then(|file| file.take(SECRET_BYTES_MAX + 1).read_to_end(&mut content))
        .map_err(|source| StepError::SecretRead {
            id: id.to_owned(),
            path: path.to_owned(),
            source,
        })?;
    if content.len() as u64 > SECRET_BYTES_MAX {
        return Err(StepError::SecretTooLarge { id: id.to_owned() });
    }
    Ok(content)
}
