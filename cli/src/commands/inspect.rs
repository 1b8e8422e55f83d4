//! `inspect` and `history`: what is known of an image, and of all else that has a name.

use std::process::ExitCode;

use serde_json::{Value, json};
use store::Store;
use store::containers::ContainerError;
use store::images::ImageRow;
use store::oci::{DiffId, History, Reference};

use super::container::{look, volume};
use super::images::created;
use super::{find_image, now};
use crate::args::{ImageHistoryArgs, InspectArgs, InspectKind, ListFormat};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::template::Format;
use crate::ui::human;
use crate::ui::table::table;

/// Most characters of a step that a listing shows: docker's number.
const STEP_CHARS_MAX: usize = 45;

/// `longshore inspect`. What is not found does not keep the rest from being shown.
pub fn inspect(context: &Context, args: &InspectArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let describe = |text: &str| match args.kind {
        None => describe_any(context, &store, text, args.size),
        Some(InspectKind::Container) => look::describe(&store, text, args.size),
        Some(InspectKind::Image) => describe(context, &store, text),
        Some(InspectKind::Volume) => volume::describe(&store, text),
    };
    show(context, &args.names, args.format.as_deref(), describe)
}

/// Prints what `describe` makes of each name: by a template where there is one, else in one JSON array. What is not found does
/// not keep the rest from being shown.
pub(super) fn show(
    context: &Context,
    names: &[String],
    format: Option<&str>,
    describe: impl Fn(&str) -> Result<Value, CliError>,
) -> Result<ExitCode, CliError> {
    let template = match format.map(Format::parse).transpose()? {
        None | Some(Format::Table) => return all(context, names, describe),
        Some(Format::Json) => None,
        Some(Format::Template(template)) => Some(template),
    };
    let mut code = ExitCode::SUCCESS;
    for name in names {
        let printed = describe(name).and_then(|value| match &template {
            None => context.ui.json_line(&value),
            Some(template) => context.ui.data(template.render(&[value])?),
        });
        if let Err(error) = printed {
            context.ui.error(&error);
            code = ExitCode::from(&error);
        }
    }
    Ok(code)
}

fn all(
    context: &Context,
    names: &[String],
    describe: impl Fn(&str) -> Result<Value, CliError>,
) -> Result<ExitCode, CliError> {
    let (mut found, mut code) = (Vec::new(), ExitCode::SUCCESS);
    for name in names {
        match describe(name) {
            Ok(value) => found.push(value),
            Err(error) => {
                context.ui.error(&error);
                code = ExitCode::from(&error);
            }
        }
    }
    context.ui.json_document(&found)?;
    Ok(code)
}

/// As docker: a container if there is one, else an image, else a volume.
fn describe_any(
    context: &Context,
    store: &Store,
    text: &str,
    size: bool,
) -> Result<Value, CliError> {
    match store.find_container(text) {
        Err(ContainerError::Unknown { .. }) => {}
        _ => return look::describe(store, text, size),
    }
    match describe(context, store, text) {
        Err(error) if error.kind == Kind::Input => volume::describe(store, text).map_err(|_| error),
        described => described,
    }
}

/// An image in the shape of `docker inspect`.
fn describe(context: &Context, store: &Store, text: &str) -> Result<Value, CliError> {
    let image = find_image(context, store, text)?;
    let config = store.images().config(&image.id)?;
    let (digests, tags): (Vec<&Reference>, Vec<&Reference>) =
        image.names.iter().partition(|name| name.digest().is_some());
    let familiar = |names: Vec<&Reference>| -> Vec<String> {
        names.into_iter().map(Reference::familiar).collect()
    };
    let mut value = json!({
        "Id": image.id.to_string(),
        "RepoTags": familiar(tags),
        "RepoDigests": familiar(digests),
        "Created": config.created,
        "Author": config.author.unwrap_or_default(),
        "Architecture": config.architecture,
        "Os": config.os,
        "Size": image.size,
        "Config": config.config,
        "RootFS": { "Type": config.rootfs.kind, "Layers": config.rootfs.diff_ids },
    });
    if let Some(variant) = config.variant {
        value["Variant"] = Value::from(variant);
    }
    Ok(value)
}

/// One step of an image, and the size of what it added.
struct Step<'a> {
    entry: &'a History,
    bytes: u64,
}

/// `longshore history IMAGE`.
pub fn history(context: &Context, args: &ImageHistoryArgs) -> Result<ExitCode, CliError> {
    let store = context.store()?;
    let name = args.image.as_deref().unwrap_or_default();
    let image = find_image(context, &store, name)?;
    let config = store.images().config(&image.id)?;
    let mut layers = config.rootfs.diff_ids.iter();
    let mut steps = Vec::new();
    for entry in &config.history {
        let layer = if entry.empty_layer {
            None
        } else {
            layers.next()
        };
        let bytes = layer.map_or(Ok(0), |layer| layer_bytes(&store, layer))?;
        steps.push(Step { entry, bytes });
    }
    // Images need not say how they came about; their layers are there all the same.
    let unknown = History::default();
    for layer in layers {
        let bytes = layer_bytes(&store, layer)?;
        let entry = &unknown;
        steps.push(Step { entry, bytes });
    }
    print_history(context, args, &image, &steps)?;
    Ok(ExitCode::SUCCESS)
}

fn print_history(
    context: &Context,
    args: &ImageHistoryArgs,
    image: &ImageRow,
    steps: &[Step<'_>],
) -> Result<(), CliError> {
    let now = now();
    let id = match args.no_trunc {
        true => image.id.to_string(),
        false => image.id.0.short(),
    };
    // Only the image as a whole has an ID; the steps below it never were images.
    let ids = std::iter::once(id.as_str()).chain(std::iter::repeat("<missing>"));
    let newest_first = ids.zip(steps.iter().rev());
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    if args.quiet {
        let lines = newest_first.map(|(id, _)| format!("{id}\n"));
        return context.ui.data(lines.collect::<String>());
    }
    match args.list.format() {
        ListFormat::Json => newest_first.into_iter().try_for_each(|(id, step)| {
            context.ui.json_line(&json!({
                "ID": id,
                "CreatedAt": step.entry.created,
                "CreatedSince": created(step.entry.created.as_deref(), now),
                "CreatedBy": text(&step.entry.created_by),
                "Size": human::size(step.bytes),
                "SizeBytes": step.bytes,
                "Comment": text(&step.entry.comment),
            }))
        }),
        ListFormat::Table => {
            let rows: Vec<Vec<String>> = newest_first
                .map(|(id, step)| {
                    let by = text(&step.entry.created_by);
                    vec![
                        id.to_owned(),
                        created(step.entry.created.as_deref(), now),
                        if args.no_trunc { by } else { shorten(&by) },
                        human::size(step.bytes),
                        text(&step.entry.comment),
                    ]
                })
                .collect();
            let headings = ["IMAGE", "CREATED", "CREATED BY", "SIZE", "COMMENT"];
            context.ui.data(table(&headings, &rows))
        }
    }
}

/// Size of a layer's files, or of its blob where it is not unpacked.
fn layer_bytes(store: &Store, layer: &DiffId) -> Result<u64, CliError> {
    let index = store.index();
    if let Some(info) = index
        .layer_by_diff_id(layer)
        .map_err(store::StoreError::from)?
    {
        return Ok(info.bytes);
    }
    let blobs = index.compressed(layer).map_err(store::StoreError::from)?;
    Ok(blobs.first().map_or(0, |(_, blob)| blob.size))
}

/// One line of at most [`STEP_CHARS_MAX`] characters.
fn shorten(text: &str) -> String {
    let line = text.replace(['\n', '\t'], " ");
    if line.chars().count() <= STEP_CHARS_MAX {
        return line;
    }
    let start: String = line.chars().take(STEP_CHARS_MAX - 1).collect();
    format!("{start}…")
}
