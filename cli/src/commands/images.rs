//! `images`, `tag` and `rmi`: images and their names.

use std::process::ExitCode;

use serde_json::{Value, json};
use store::Store;
use store::images::{ImageRow, Removal};
use store::oci::time::unix_time;
use store::oci::{Digest, Reference};

use super::{container, find_image, now, short_name};
use crate::args::{ImagesArgs, RmiArgs, TagArgs};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::template::Format;
use crate::ui::human;
use crate::ui::table::table;

/// What stands where there is nothing to show, in docker's word.
pub const NONE: &str = "<none>";

/// What columns of a template are called: docker's words.
const HEADINGS: [(&str, &str); 2] = [("ID", "IMAGE ID"), ("CreatedSince", "CREATED")];

/// One line of the listing: an image under one of its names.
struct Line<'a> {
    image: &'a ImageRow,
    repository: String,
    tag: String,
}

/// `longshore images`.
pub fn images(context: &Context, args: &ImagesArgs) -> Result<ExitCode, CliError> {
    let rows = context.store()?.images().images()?;
    let lines = match &args.name {
        None => rows
            .iter()
            .flat_map(|image| lines(image, |_| true))
            .collect(),
        Some(text) => {
            let wanted: Reference = text.parse()?;
            // A name without a tag means all tags, though elsewhere it means `latest`.
            let whole = text.ends_with(&format!(":{}", wanted.tag().unwrap_or_default()))
                || wanted.digest().is_some();
            let meant = short_name::meant(context, text, wanted)?;
            let is_wanted = |name: &Reference| match whole {
                true => meant.contains(name),
                false => meant.iter().any(|meant| name.name() == meant.name()),
            };
            let named = rows.iter().filter(|image| !image.names.is_empty());
            named
                .flat_map(|image| lines(image, is_wanted))
                .collect::<Vec<_>>()
        }
    };
    let id = |image: &ImageRow| match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.0.short(),
    };
    if args.quiet {
        let mut ids: Vec<String> = Vec::new();
        for line in &lines {
            // As docker: one line per image that is listed, names or not.
            let id = id(line.image);
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        return context
            .ui
            .data(ids.iter().map(|id| format!("{id}\n")).collect::<String>())
            .map(|()| ExitCode::SUCCESS);
    }
    let now = now();
    let digest = |image: &ImageRow| image.manifest.map_or(NONE.to_owned(), |d| d.to_string());
    let row = |line: &Line<'_>| {
        json!({
            "Repository": line.repository,
            "Tag": line.tag,
            "Digest": digest(line.image),
            "ID": id(line.image),
            "CreatedAt": line.image.created,
            "CreatedSince": created(line.image.created.as_deref(), now),
            "Size": human::size(line.image.size),
            "SizeBytes": line.image.size,
        })
    };
    let format = match args.json {
        true => &Format::Json,
        false => &args.format,
    };
    match format {
        Format::Json => lines
            .iter()
            .try_for_each(|line| context.ui.json_line(&row(line)))?,
        Format::Template(template) => {
            let rows: Vec<Value> = lines.iter().map(row).collect();
            let template = template.clone().called(&HEADINGS);
            context.ui.data(template.render(&rows)?)?;
        }
        Format::Table => {
            let mut headings = vec!["REPOSITORY", "TAG", "IMAGE ID", "CREATED", "SIZE"];
            if args.digests {
                headings.insert(2, "DIGEST");
            }
            let cells = |line: &Line<'_>| {
                let mut cells = vec![
                    line.repository.clone(),
                    line.tag.clone(),
                    id(line.image),
                    created(line.image.created.as_deref(), now),
                    human::size(line.image.size),
                ];
                if args.digests {
                    cells.insert(2, digest(line.image));
                }
                cells
            };
            let rows: Vec<Vec<String>> = lines.iter().map(cells).collect();
            context.ui.data(table(&headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The lines of an image: one for each tag, one for each repository that has it by digest alone, one if it has no name.
fn lines(image: &ImageRow, wanted: impl Fn(&Reference) -> bool) -> Vec<Line<'_>> {
    if image.names.is_empty() {
        return vec![Line {
            image,
            repository: NONE.to_owned(),
            tag: NONE.to_owned(),
        }];
    }
    let tagged = |name: &Reference| name.tag().is_some() && name.digest().is_none();
    let shown = image.names.iter().filter(|name| {
        let has_tag = |other: &Reference| tagged(other) && other.name() == name.name();
        tagged(name) || !image.names.iter().any(has_tag)
    });
    shown
        .filter(|name| wanted(name))
        .map(|name| Line {
            image,
            repository: name.familiar_name(),
            tag: name.tag().unwrap_or(NONE).to_owned(),
        })
        .collect()
}

/// How long ago a time of a configuration was.
pub fn created(time: Option<&str>, now: i64) -> String {
    match time.and_then(unix_time) {
        Some(seconds) => human::ago(now - seconds),
        None => "N/A".to_owned(),
    }
}

/// `longshore tag`.
pub fn tag(context: &Context, args: &TagArgs) -> Result<ExitCode, CliError> {
    let target: Reference = args.target.parse()?;
    if target.digest().is_some() {
        let message = format!(
            "cannot name an image `{}`: a digest is not given, it is what it is",
            args.target
        );
        return Err(CliError::new(Kind::Input, message));
    }
    let store = context.store()?;
    let image = find_image(context, &store, &args.source)?;
    store.images().tag(&target, &image.id)?;
    Ok(ExitCode::SUCCESS)
}

/// `longshore rmi`. What cannot be removed does not keep the rest from being removed.
pub fn rmi(context: &Context, args: &RmiArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let mut code = ExitCode::SUCCESS;
    for text in &args.images {
        match remove(context, &store, text, args.force) {
            Ok(Some(removal)) => print_removal(context, &removal)?,
            Ok(None) => {}
            Err(error) => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
        }
    }
    Ok(code)
}

fn remove(
    context: &Context,
    store: &Store,
    text: &str,
    force: bool,
) -> Result<Option<Removal>, CliError> {
    // A whole ID is no name, though `sha256:…` could be read as one.
    let name = match text.parse::<Digest>() {
        Ok(_) => None,
        Err(_) => text.parse::<Reference>().ok(),
    };
    if let Some(name) = name
        && let Some(image) = short_name::find(context, store, text)?
        && let Some(removal) = untag(
            store,
            &image,
            text,
            &short_name::called(context, &image, text).unwrap_or(name),
            force,
        )?
    {
        return Ok(Some(removal));
    }
    match find_image(context, store, text) {
        Ok(image) => {
            let id = image.id.0.short();
            match container::user_of(store, &image.id)? {
                Some(user) if user.runs => Err(conflict(format!(
                    "conflict: unable to delete {id} (cannot be forced) - image is being used by running container {}",
                    user.id
                ))),
                Some(user) if !force => Err(conflict(format!(
                    "conflict: unable to delete {id} (must be forced) - image is being used by stopped container {}",
                    user.id
                ))),
                _ => Ok(Some(store.images().remove(&image.id, force)?)),
            }
        }
        Err(error) if force && error.kind == Kind::Input => Ok(None),
        Err(error) => Err(error),
    }
}

/// Takes a name away. The last one of an image that a container uses goes by force alone, and the image itself stays if that
/// container runs. `None` if the image does not have the name.
fn untag(
    store: &Store,
    image: &ImageRow,
    text: &str,
    name: &Reference,
    force: bool,
) -> Result<Option<Removal>, CliError> {
    if !image.names.contains(name) {
        return Ok(None);
    }
    let goes_with_it = |other: &Reference| {
        other == name || (other.digest().is_some() && other.name() == name.name())
    };
    let is_last = image.names.iter().all(goes_with_it);
    let user = match is_last {
        true => container::user_of(store, &image.id)?,
        false => None,
    };
    match user {
        Some(user) if !force => Err(conflict(format!(
            "conflict: unable to remove repository reference \"{text}\" (must force) - container {} is using its referenced image {}",
            user.id,
            image.id.0.short()
        ))),
        Some(user) if user.runs => Ok(store.images().untag_only(name)?),
        _ => Ok(store.images().untag(name)?),
    }
}

/// In docker's words: scripts look for them.
fn conflict(message: String) -> CliError {
    CliError::new(Kind::Input, message).hint("`longshore rm` removes containers")
}

fn print_removal(context: &Context, removal: &Removal) -> Result<(), CliError> {
    for name in &removal.untagged {
        context.ui.line(&format!("Untagged: {}", name.familiar()))?;
    }
    match removal.deleted {
        Some(id) => context.ui.line(&format!("Deleted: {id}")),
        None => Ok(()),
    }
}
