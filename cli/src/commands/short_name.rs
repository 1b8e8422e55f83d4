//! Names without a registry: what they stand for where containers' `registries.conf` says so, and docker's rule elsewhere.

use registry_client::hosts::ShortName;
use store::Store;
use store::images::ImageRow;
use store::oci::Reference;

use crate::context::Context;
use crate::error::{CliError, Kind};

/// The image of the store that a text names: as docker reads it, else under a name that it stands for.
pub fn find(context: &Context, store: &Store, text: &str) -> Result<Option<ImageRow>, CliError> {
    let found = store.images().resolve(text)?;
    if found.is_some() {
        return Ok(found);
    }
    // What is wrong with other tools' files is told where something is pulled.
    let Ok(Some(short)) = context.hosts()?.short_name(text) else {
        return Ok(None);
    };
    for name in short.stands_for {
        let found = store.images().resolve(&name.to_string())?;
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

/// What to pull where a text is given, the first to be tried first; at least one name.
pub fn candidates(context: &Context, text: &str) -> Result<Vec<Reference>, CliError> {
    let short = context.hosts()?.short_name(text);
    let short = short.map_err(|error| CliError::new(Kind::Environment, error))?;
    let Some(ShortName {
        stands_for,
        must_choose,
    }) = short
    else {
        return Ok(vec![text.parse()?]);
    };
    let Some(file) = must_choose else {
        return Ok(stands_for);
    };
    let names: Vec<String> = stands_for.iter().map(|name| format!("`{name}`")).collect();
    let message = format!(
        "`{text}` may be {}, and `{}` has `short-name-mode = \"enforcing\"`",
        names.join(" or "),
        file.display()
    );
    Err(CliError::new(Kind::Input, message).hint("give one of these names, or add an alias for it"))
}

/// Which of its names an image was called by: the one that docker reads, else the one that a short name stands for.
pub fn called(context: &Context, image: &ImageRow, text: &str) -> Result<Reference, CliError> {
    let plain: Reference = text.parse()?;
    let meant = meant(context, text, plain.clone())?;
    let mut held = meant.into_iter().filter(|name| image.names.contains(name));
    Ok(held.next().unwrap_or(plain))
}

/// All that a text may mean: what docker reads, and what a short name stands for.
pub fn meant(context: &Context, text: &str, plain: Reference) -> Result<Vec<Reference>, CliError> {
    // As in `find`.
    let short = context.hosts()?.short_name(text).ok().flatten();
    let further = short.into_iter().flat_map(|short| short.stands_for);
    Ok(std::iter::once(plain).chain(further).collect())
}
