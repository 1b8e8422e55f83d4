//! `ps`: what containers there are.

use std::process::ExitCode;

use runner::container::Status;
use serde_json::{Value, json};
use store::Store;
use store::oci::time::unix_time;

use super::lifecycle::has_label;
use super::look::sizes;
use super::record::MountSource;
use super::{Known, ports};
use crate::args::PsArgs;
use crate::commands::now;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::template::Format;
use crate::ui::human;
use crate::ui::table::table;

/// Most characters of a command that the table shows: docker's number.
const COMMAND_CHARS_MAX: usize = 20;

/// `longshore ps`.
pub fn ps(context: &Context, args: &PsArgs) -> Result<ExitCode, CliError> {
    let format = Format::parse(&args.format)?;
    let store = context.store()?;
    let all = Known::all(&store)?;
    let filter = Filter::read(&store, &args.filters, &all)?;
    let limit = args.last.or(args.latest.then_some(1));
    // As docker: asking for a state or for the newest is asking for those that do not run.
    let shows_all = args.all || limit.is_some() || filter.asks_for_state();
    let shown: Vec<&Known> = all
        .iter()
        .filter(|known| shows_all || known.state.status.is_live())
        .filter(|known| filter.matches(known))
        .take(limit.unwrap_or(usize::MAX))
        .collect();
    let id = |known: &Known| match args.no_trunc {
        true => known.container.id.to_string(),
        false => known.container.id.short().to_owned(),
    };
    if args.quiet {
        let ids = shown.iter().map(|known| format!("{}\n", id(known)));
        context.ui.data(ids.collect::<String>())?;
        return Ok(ExitCode::SUCCESS);
    }
    let rows: Vec<Value> = shown
        .iter()
        .map(|known| row(&store, known, &id(known), args))
        .collect::<Result<_, _>>()?;
    match format {
        Format::Json => {
            for row in &rows {
                context.ui.json_line(row)?;
            }
        }
        Format::Template(template) => context.ui.data(template.render(&rows)?)?,
        Format::Table => {
            let mut headings = vec![
                "CONTAINER ID",
                "IMAGE",
                "COMMAND",
                "CREATED",
                "STATUS",
                "PORTS",
                "NAMES",
            ];
            let mut fields = vec![
                "ID",
                "Image",
                "Command",
                "RunningFor",
                "Status",
                "Ports",
                "Names",
            ];
            if args.size {
                headings.push("SIZE");
                fields.push("Size");
            }
            let cell =
                |row: &Value, field: &str| row[field].as_str().unwrap_or_default().to_owned();
            let cells = |row: &Value| fields.iter().map(|field| cell(row, field)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
            context.ui.data(table(&headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// What is told of a container, by docker's names.
fn row(store: &Store, known: &Known, id: &str, args: &PsArgs) -> Result<Value, CliError> {
    let record = &known.record;
    let created = unix_time(&record.created).unwrap_or(0);
    let argv = record.argv();
    let words: Vec<String> = argv.iter().map(|word| quoted(word)).collect();
    let mut command = words.join(" ");
    if !args.no_trunc && command.chars().count() > COMMAND_CHARS_MAX {
        command = command
            .chars()
            .take(COMMAND_CHARS_MAX - 1)
            .chain(['…'])
            .collect();
    }
    let labels = record
        .labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"));
    let mounts = record.mounts.iter().map(|mount| match &mount.source {
        MountSource::Bind(path) => path.display().to_string(),
        MountSource::Volume { name, .. } => name.clone(),
        MountSource::Tmpfs { .. } => String::new(),
    });
    let size = match args.size {
        true => {
            let (written, whole) = sizes(store, known)?;
            format!("{} (virtual {})", human::size(written), human::size(whole))
        }
        false => "N/A".to_owned(),
    };
    Ok(json!({
        "ID": id,
        "Image": record.image_name,
        "Command": format!("\"{command}\""),
        "CreatedAt": record.created,
        "RunningFor": human::ago(now() - created),
        "Status": status(known),
        "State": known.state.status.word(),
        "Ports": ports::column(known),
        "Names": known.container.name,
        "Labels": labels.collect::<Vec<_>>().join(","),
        "Mounts": mounts.filter(|name| !name.is_empty()).collect::<Vec<_>>().join(","),
        "Networks": record.network,
        "Size": size,
    }))
}

/// A word of a command as docker shows it: in quotes if it has spaces or quotes itself.
fn quoted(word: &str) -> String {
    match word.contains([' ', '\'']) {
        true => format!("'{}'", word.replace('\'', r"'\''")),
        false => word.to_owned(),
    }
}

/// `Up 3 minutes (healthy)`, in docker's words.
fn status(known: &Known) -> String {
    let state = &known.state;
    let since = |time: &str| unix_time(time).map_or(0, |time| now() - time);
    let ago = human::ago(since(&state.finished_at));
    let up = human::ago(since(&state.started_at));
    let up = up.strip_suffix(" ago").unwrap_or(&up).to_owned();
    let health = match &state.health {
        Some(health) if health.status == "starting" => " (health: starting)".to_owned(),
        Some(health) => format!(" ({})", health.status),
        None => String::new(),
    };
    match state.status {
        Status::Created => "Created".to_owned(),
        Status::Running => format!("Up {up}{health}"),
        Status::Paused => format!("Up {up} (Paused)"),
        Status::Restarting => format!("Restarting ({}) {ago}", state.exit_code),
        Status::Exited => format!("Exited ({}) {ago}", state.exit_code),
    }
}

/// `--filter`: the values of one key are alternatives, but those of labels.
struct Filter {
    tests: Vec<(String, Vec<String>)>,
    created_before: Option<String>,
    created_since: Option<String>,
}

const KEYS: [&str; 10] = [
    "ancestor", "before", "exited", "health", "id", "label", "name", "since", "status", "volume",
];

impl Filter {
    fn read(store: &Store, texts: &[String], all: &[Known]) -> Result<Filter, CliError> {
        let mut filter = Filter {
            tests: Vec::new(),
            created_before: None,
            created_since: None,
        };
        for text in texts {
            let known_key = text.split_once('=').filter(|(key, _)| KEYS.contains(key));
            let (key, value) = known_key.ok_or_else(|| {
                let message = format!("the filter `{text}` is not supported");
                CliError::new(Kind::Usage, message)
                    .hint(format!("the keys are {}", KEYS.join(", ")))
            })?;
            let created = || -> Result<Option<String>, CliError> {
                let id = store.find_container(value)?.id;
                let found = all.iter().find(|known| known.container.id == id);
                Ok(found.map(|known| known.record.created.clone()))
            };
            match key {
                "before" => filter.created_before = created()?,
                "since" => filter.created_since = created()?,
                key => match filter.tests.iter_mut().find(|(known, _)| known == key) {
                    Some((_, values)) => values.push(value.to_owned()),
                    None => filter.tests.push((key.to_owned(), vec![value.to_owned()])),
                },
            }
        }
        Ok(filter)
    }

    fn asks_for_state(&self) -> bool {
        self.tests
            .iter()
            .any(|(key, _)| matches!(key.as_str(), "status" | "exited"))
    }

    fn matches(&self, known: &Known) -> bool {
        let created = &known.record.created;
        self.created_before
            .as_ref()
            .is_none_or(|before| created < before)
            && self
                .created_since
                .as_ref()
                .is_none_or(|since| created > since)
            && self.tests.iter().all(|(key, values)| match key.as_str() {
                "label" => values.iter().all(|value| has_label(known, value)),
                key => values.iter().any(|value| test(known, key, value)),
            })
    }
}

fn test(known: &Known, key: &str, value: &str) -> bool {
    let record = &known.record;
    match key {
        "name" => known
            .container
            .name
            .contains(value.trim_start_matches(['/', '^']).trim_end_matches('$')),
        "id" => known.container.id.to_string().starts_with(value),
        "status" => known.state.status.word() == value,
        "exited" => {
            known.state.status == Status::Exited && known.state.exit_code.to_string() == value
        }
        "health" => match &known.state.health {
            Some(health) => health.status == value,
            None => value == "none",
        },
        "ancestor" => {
            let id = record
                .image
                .strip_prefix("sha256:")
                .unwrap_or(&record.image);
            let tagged = |name: &str| match name.rsplit_once(':') {
                Some((_, tag)) if !tag.contains('/') => name.to_owned(),
                _ => format!("{name}:latest"),
            };
            tagged(&record.image_name) == tagged(value)
                || record.image == value
                || (value.len() >= 12 && id.starts_with(value))
        }
        "volume" => record.mounts.iter().any(|mount| {
            mount.target == value
                || match &mount.source {
                    MountSource::Volume { name, .. } => name == value,
                    MountSource::Bind(path) => path.to_str() == Some(value),
                    MountSource::Tmpfs { .. } => false,
                }
        }),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_of_commands() {
        let check = |word: &str, expected: &str| assert_eq!(quoted(word), expected);
        check("sh", "sh");
        check("echo a", "'echo a'");
        check("it's", r"'it'\''s'");
    }
}
