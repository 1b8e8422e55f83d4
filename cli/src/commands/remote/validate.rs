//! `validate`: whether an image is what it says.

use std::process::ExitCode;

use registry_client::copy::Place;
use registry_client::validate::{Checks, Finding, Validation};
use serde_json::{Value, json};

use super::{Session, place, tell};
use crate::args::ValidateArgs;
use crate::context::Context;
use crate::error::CliError;
use crate::ui::text::one_line;

/// Something is wrong with the image.
const WRONG: u8 = 1;

/// `longshore remote validate`.
pub fn validate(context: &Context, args: &ValidateArgs) -> Result<ExitCode, CliError> {
    let remote = args.remote.iter().map(|name| format!("docker://{name}"));
    let tarball = args.tarball.iter();
    let tarball = tarball.map(|path| format!("docker-archive:{}", path.display()));
    let mut given = args.image.iter().cloned().chain(remote).chain(tarball);
    let place = place(&given.next().expect("clap asks for one of them"))?;
    let session = Session::new(context, &args.common.reach, &[&place])?;
    let source = session.look(&place)?;
    let checks = Checks {
        platforms: args.platforms.platforms.clone(),
        fast: args.fast,
    };
    let (from, checked) = (&source, &checks);
    let validation =
        session.run(|_| async move { registry_client::validate::validate(from, checked).await })?;
    let how = &args.common.tell;
    tell(context, how, &as_json(&place, &validation), || {
        let findings = validation.findings.iter();
        findings
            .map(|finding| one_line(&finding.to_string()) + "\n")
            .collect()
    })?;
    if !how.json && how.format.is_none() {
        context.ui.note(&summary(&place, &validation, args.fast));
    }
    Ok(match validation.findings.is_empty() {
        true => ExitCode::SUCCESS,
        false => ExitCode::from(WRONG),
    })
}

fn summary(place: &Place, validation: &Validation, fast: bool) -> String {
    let Validation {
        digest,
        manifests,
        blobs,
        bytes,
        foreign,
        findings,
    } = validation;
    let looked = match fast {
        true => "looked for",
        false => "read",
    };
    let verdict = match findings.len() {
        0 => "is what it says".to_owned(),
        1 => "has one fault".to_owned(),
        count => format!("has {count} faults"),
    };
    let mut text = format!(
        "{place} ({digest}) {verdict}: {manifests} manifests and {blobs} blobs of {bytes} bytes {looked}"
    );
    if *foreign > 0 {
        text.push_str(&format!(", {foreign} layers that are held elsewhere not"));
    }
    text
}

fn as_json(place: &Place, validation: &Validation) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "digest": finding.digest,
            "problem": finding.problem.to_string(),
        })
    };
    json!({
        "name": place.to_string(),
        "digest": validation.digest,
        "valid": validation.findings.is_empty(),
        "manifests": validation.manifests,
        "blobs": validation.blobs,
        "bytes": validation.bytes,
        "foreign": validation.foreign,
        "findings": validation.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}
