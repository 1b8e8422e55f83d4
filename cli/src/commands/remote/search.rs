//! `search`: repositories by a part of their name, or by whatever else their registry finds them by.

use std::process::ExitCode;

use registry_client::search::Found;
use serde_json::{Value, json};
use store::oci::reference::DOCKER_HUB;

use super::list::registry;
use super::{Session, repository};
use crate::args::SearchArgs;
use crate::commands::reach::Named;
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::template::Format;
use crate::ui::table::table;
use crate::ui::text::{clip, one_line};

/// Most columns of a description that the table shows: docker's number.
const DESCRIPTION_COLUMNS: usize = 45;

/// `longshore search`.
pub fn search(context: &Context, args: &SearchArgs) -> Result<ExitCode, CliError> {
    let format = Format::parse(&args.format)?;
    let filters = args.filters.iter().map(|text| Test::read(text));
    let tests: Vec<Test> = filters.collect::<Result<_, _>>()?;
    if args.list_tags {
        return list_tags(context, args, &format);
    }
    let (host, term) = match args.term.split_once('/') {
        Some((host, term)) if registry(host).is_some() => (host, term),
        _ => (DOCKER_HUB, args.term.as_str()),
    };
    if term.is_empty() {
        let message = format!("nothing to look for: `{}`", args.term);
        return Err(CliError::new(Kind::Usage, message).hint("`longshore remote ls` lists all"));
    }
    let session = Session::with(context, &args.reach, &[Named::registry(host)])?;
    let mut found =
        session.run(|client| async move { client.search(host, term, args.limit).await })?;
    found.retain(|one| tests.iter().all(|test| test.admits(one)));
    if args.json {
        for one in &found {
            context.ui.json_line(&json!({
                "name": one.name,
                "description": one.description,
                "stars": one.stars,
                "official": one.official,
            }))?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    let cut = |text: &str| match args.no_trunc {
        true => one_line(text),
        false => clip(&one_line(text), DESCRIPTION_COLUMNS),
    };
    let rows: Vec<Value> = found
        .iter()
        .map(|one| row(host, one, &cut(&one.description)))
        .collect();
    let columns = [
        ("NAME", "Name"),
        ("DESCRIPTION", "Description"),
        ("STARS", "StarCount"),
        ("OFFICIAL", "Official"),
    ];
    show(context, &format, &columns, &rows)
}

/// What is told of a repository, by docker's names and podman's.
fn row(host: &str, one: &Found, description: &str) -> Value {
    let official = if one.official { "[OK]" } else { "" };
    json!({
        "Index": host,
        "Name": one.name,
        "Description": description,
        "StarCount": one.stars.to_string(),
        "Stars": one.stars,
        "IsOfficial": one.official.to_string(),
        "Official": official,
        "IsAutomated": "false",
        "Automated": "",
    })
}

/// `--list-tags`.
fn list_tags(context: &Context, args: &SearchArgs, format: &Format) -> Result<ExitCode, CliError> {
    let name = repository(&args.term)?;
    let session = Session::with(context, &args.reach, &[Named::from(&name)])?;
    let asked = &name;
    let mut tags = session.run(|client| async move { client.tags(asked).await })?;
    tags.truncate(args.limit);
    if args.json {
        let value = json!({ "name": name.familiar_name(), "tags": tags });
        context.ui.json_line(&value)?;
        return Ok(ExitCode::SUCCESS);
    }
    let row = |tag: &String| json!({ "Name": name.familiar_name(), "Tag": tag });
    let rows: Vec<Value> = tags.iter().map(row).collect();
    show(context, format, &[("NAME", "Name"), ("TAG", "Tag")], &rows)
}

/// Prints rows with these headings and fields.
fn show(
    context: &Context,
    format: &Format,
    columns: &[(&str, &str)],
    rows: &[Value],
) -> Result<ExitCode, CliError> {
    match format {
        Format::Json => rows.iter().try_for_each(|row| context.ui.json_line(row))?,
        Format::Template(template) => context.ui.data(template.render(rows)?)?,
        Format::Table => {
            let headings: Vec<&str> = columns.iter().map(|(heading, _)| *heading).collect();
            let cell = |row: &Value, field| row[field].as_str().unwrap_or_default().to_owned();
            let cells = |row| columns.iter().map(|(_, field)| cell(row, field)).collect();
            let rows: Vec<Vec<String>> = rows.iter().map(cells).collect();
            context.ui.data(table(&headings, &rows))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// One `--filter`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Test {
    /// At least so many.
    Stars(u64),
    Official(bool),
}

impl Test {
    fn read(text: &str) -> Result<Test, CliError> {
        let (key, value) = text.split_once('=').unwrap_or((text, ""));
        let wrong = |expected: &str| {
            let message = format!("--filter `{text}`: expected {expected}");
            Err(CliError::new(Kind::Usage, message))
        };
        match (key, value) {
            ("stars", value) => match value.parse() {
                Ok(count) => Ok(Test::Stars(count)),
                Err(_) => wrong("a number, as in stars=10"),
            },
            // podman takes it without a value.
            ("is-official", "" | "true" | "1") => Ok(Test::Official(true)),
            ("is-official", "false" | "0") => Ok(Test::Official(false)),
            ("is-official", _) => wrong("is-official=true or is-official=false"),
            _ => wrong("stars=COUNT or is-official=true|false"),
        }
    }

    fn admits(self, one: &Found) -> bool {
        match self {
            Test::Stars(least) => one.stars >= least,
            Test::Official(wanted) => one.official == wanted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_docker_s() {
        let check = |text: &str, expect: Option<Test>| {
            assert_eq!(Test::read(text).ok(), expect, "{text}");
        };
        check("stars=3", Some(Test::Stars(3)));
        check("stars=x", None);
        check("is-official", Some(Test::Official(true)));
        check("is-official=false", Some(Test::Official(false)));
        check("is-official=maybe", None);
        check("is-automated=true", None);
    }
}
