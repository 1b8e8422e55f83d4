//! `build --check` and `build --call`: questions about a Dockerfile, answered on stdout.

use std::process::ExitCode;

use builder::BuildEnvironment;
use builder::checks::survey::{Survey, survey};
use builder::dockerfile::Problems;
use builder::request::BuildRequest;
use builder::subrequests::{self, lint, outline::Outline, targets::List};
use serde::Serialize;

use super::outcome::Failure;
use crate::args::{Call, Format, Method};
use crate::context::Context;
use crate::error::CliError;
use crate::ui::table::table;

/// What checks that found something exit with: as a Dockerfile that cannot be built does.
const FOUND: u8 = 1;

/// Answers a question about a Dockerfile.
pub fn call(
    context: &Context,
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    call: Call,
) -> Result<ExitCode, Failure> {
    match call.method {
        // No question: there is nothing to say.
        Method::Build => {}
        Method::Check => return check(context, environment, request, call),
        Method::Outline => {
            let outline = subrequests::outline(request)?;
            answer(context, call.format, &outline, || outline_text(&outline))?;
        }
        Method::Targets => {
            let list = subrequests::targets(request)?;
            answer(context, call.format, &list, || targets_text(&list))?;
        }
        Method::Describe => {
            let all = subrequests::describe();
            answer(context, call.format, &all, || {
                let row = |one: &subrequests::Description| {
                    [one.name, one.version, one.description]
                        .map(str::to_owned)
                        .to_vec()
                };
                let rows: Vec<_> = all.iter().map(row).collect();
                table(&["NAME", "VERSION", "DESCRIPTION"], &rows)
            })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(
    context: &Context,
    format: Format,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), CliError> {
    match format {
        Format::Json => context.ui.json_document(value),
        Format::Text => context.ui.data(text()),
    }
}

fn check(
    context: &Context,
    environment: BuildEnvironment<'_>,
    request: &BuildRequest,
    call: Call,
) -> Result<ExitCode, Failure> {
    let survey = survey(environment, request)?;
    answer(context, call.format, &lint::Results::new(&survey), || {
        check_text(
            &survey,
            context.ui.colour && context.ui.stdout_is_a_terminal(),
        )
    })?;
    if let Some(remarks) = survey
        .report
        .remarks
        .as_ref()
        .filter(|remarks| !remarks.list().is_empty())
    {
        context.ui.note(&remarks.render(context.ui.colour));
    }
    for unknown in &survey.unknown {
        context.ui.warning(&format!(
            "the base image {unknown}: which variables it sets is not known"
        ));
    }
    match survey.is_clean() || call.ignore_status {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(ExitCode::from(FOUND)),
    }
}

fn check_text(survey: &Survey, colour: bool) -> String {
    let Survey {
        source,
        report,
        errors,
        ..
    } = survey;
    let mut text = match report.findings.len() {
        0 => "Check complete, no warnings found.\n".to_owned(),
        1 => "Check complete, 1 warning has been found!\n".to_owned(),
        many => format!("Check complete, {many} warnings have been found!\n"),
    };
    let said = report.warnings.iter().chain(&report.findings).chain(errors);
    let problems = Problems::new(source, said.cloned().collect());
    if !problems.list().is_empty() {
        text.push_str(&format!("\n{}\n", problems.render(colour)));
    }
    text
}

fn outline_text(outline: &Outline) -> String {
    let mut text = String::new();
    let name = outline.name.as_deref().map(|name| ("TARGET:", name));
    let description = outline.description.as_deref();
    let description = description.map(|description| ("DESCRIPTION:", description));
    for (label, value) in [name, description].into_iter().flatten() {
        text.push_str(&format!("{label:<13}{value}\n"));
    }
    let mut section = |headings: &[&str], rows: Vec<Vec<String>>| {
        if rows.is_empty() {
            return;
        }
        if !text.is_empty() {
            text.push('\n');
        }
        text.push_str(&table(headings, &rows));
    };
    let arg = |arg: &subrequests::outline::Arg| {
        let value = arg.value.clone().unwrap_or_default();
        let description = arg.description.clone().unwrap_or_default();
        vec![arg.name.clone(), value, description]
    };
    let secret = |secret: &subrequests::outline::Secret| {
        let required = if secret.required { "true" } else { "" };
        vec![secret.name.clone(), required.to_owned()]
    };
    section(
        &["BUILD ARG", "VALUE", "DESCRIPTION"],
        outline.args.iter().map(arg).collect(),
    );
    section(
        &["SECRET", "REQUIRED"],
        outline.secrets.iter().map(secret).collect(),
    );
    section(
        &["SSH", "REQUIRED"],
        outline.ssh.iter().map(secret).collect(),
    );
    let caches = outline.cache.iter().map(|cache| vec![cache.id.clone()]);
    section(&["CACHE MOUNT"], caches.collect());
    text
}

/// A stage without a name is shown by its number, by which `--target` knows it.
fn targets_text(list: &List) -> String {
    let row = |(index, target): (usize, &subrequests::targets::Target)| {
        let mut name = match target.name.as_str() {
            "" => index.to_string(),
            name => name.to_owned(),
        };
        if target.default {
            name.push_str(" (default)");
        }
        vec![name, target.description.clone().unwrap_or_default()]
    };
    let rows: Vec<_> = list.targets.iter().enumerate().map(row).collect();
    table(&["TARGET", "DESCRIPTION"], &rows)
}
