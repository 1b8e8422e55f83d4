//! `save` and `load`: images in archives.

use std::fs::File;
use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;

use store::Store;
use store::content::archive::{ArchiveFormat as Format, SavedImage};
use store::oci::Reference;

use super::transfer::complete;
use super::{find_image, short_name};
use crate::args::{ArchiveFormat, LoadArgs, SaveArgs};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};

/// `longshore save`. A file appears under its name when it is whole.
pub fn save(context: &Context, args: &SaveArgs) -> Result<ExitCode, CliError> {
    let store = Arc::new(context.store()?);
    let images = images(context, &store, &args.images)?;
    for image in &images {
        complete(context, &store, &image.id)?;
    }
    let format = match args.format {
        ArchiveFormat::Oci => Format::OCI,
        ArchiveFormat::Docker => Format::Docker,
    };
    let Some(path) = &args.output else {
        if context.ui.stdout_is_a_terminal() {
            let message = "an archive is nothing to look at on a terminal";
            return Err(CliError::new(Kind::Usage, message).hint("give a file with -o"));
        }
        context.ui.stream(|out| store.save(&images, format, out))?;
        return Ok(ExitCode::SUCCESS);
    };
    let mut aside = path.clone().into_os_string();
    aside.push(format!(".{}.partial", std::process::id()));
    let aside = PathBuf::from(aside);
    let saved = save_to(&store, &images, format, &aside)
        .and_then(|()| std::fs::rename(&aside, path).map_err(|error| cannot_write(path, &error)));
    if saved.is_err() {
        // Nothing half-written stays; what went wrong is told already.
        let _removed = std::fs::remove_file(&aside);
    }
    saved?;
    Ok(ExitCode::SUCCESS)
}

fn save_to(
    store: &Store,
    images: &[SavedImage],
    format: Format,
    path: &Path,
) -> Result<(), CliError> {
    let mut file = File::create(path).map_err(|error| cannot_write(path, &error))?;
    store.save(images, format, &mut file)?;
    file.flush().map_err(|error| cannot_write(path, &error))
}

fn cannot_write(path: &Path, error: &std::io::Error) -> CliError {
    let message = format!("cannot write `{}`: {error}", path.display());
    CliError::new(Kind::Environment, message)
}

/// What the command line names: each image once, under the names that it was called by. An ID gives it none.
fn images(context: &Context, store: &Store, texts: &[String]) -> Result<Vec<SavedImage>, CliError> {
    let mut images: Vec<SavedImage> = Vec::new();
    for text in texts {
        let row = find_image(context, store, text)?;
        let name: Option<Reference> = short_name::called(context, &row, text).ok();
        let name = name.filter(|name| row.names.contains(name));
        match images.iter_mut().find(|image| image.id == row.id) {
            Some(image) => image.names.extend(name),
            None => images.push(SavedImage {
                id: row.id,
                names: name.into_iter().collect(),
            }),
        }
    }
    Ok(images)
}

/// `longshore load`.
pub fn load(context: &Context, args: &LoadArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let loaded = match &args.input {
        Some(path) => {
            let file = File::open(path)
                .map_err(|error| format!("cannot read `{}`: {error}", path.display()))
                .blame(Kind::Input)?;
            store.load(file)?
        }
        None => {
            let stdin = std::io::stdin();
            if stdin.is_terminal() {
                let message = "no archive: stdin is a terminal";
                return Err(CliError::new(Kind::Usage, message).hint("give a file with -i"));
            }
            store.load(stdin.lock())?
        }
    };
    for image in &loaded {
        if args.quiet {
            context.ui.line(&image.id.to_string())?;
        } else if image.names.is_empty() {
            context.ui.line(&format!("Loaded image ID: {}", image.id))?;
        }
        for name in image.names.iter().filter(|_| !args.quiet) {
            context
                .ui
                .line(&format!("Loaded image: {}", name.familiar()))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
