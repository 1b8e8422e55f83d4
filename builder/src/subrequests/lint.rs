//! What the checks find.

use serde::Serialize;

use super::Location;
use crate::checks::survey::Survey;
use crate::dockerfile::Diagnostic;

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Results {
    /// Violations, in the order of the text.
    pub warnings: Vec<Warning>,
    /// The Dockerfile.
    pub sources: Vec<Source>,
    /// Why the Dockerfile cannot be built, if it cannot.
    #[serde(rename = "buildError", skip_serializing_if = "Option::is_none")]
    pub error: Option<Error>,
}

/// A violation of a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Warning {
    /// The rule.
    pub rule_name: &'static str,
    /// What the rule asks for.
    pub description: &'static str,
    /// The page about the rule.
    pub url: String,
    /// What is wrong here, and perhaps what would be right.
    pub detail: String,
    /// Where.
    pub location: Location,
}

/// A text that locations refer to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Source {
    /// Its name.
    pub filename: String,
    /// The language it is in.
    pub language: &'static str,
    /// The text, in base64.
    pub data: String,
}

/// Why the Dockerfile cannot be built.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Error {
    /// One line.
    pub message: String,
    /// Where.
    pub location: Location,
}

impl Results {
    /// The answer that a survey gives.
    pub fn new(survey: &Survey) -> Results {
        let Survey {
            source,
            report,
            errors,
            ..
        } = survey;
        let warnings = report.findings.iter().filter_map(|finding| {
            let rule = finding.rule?;
            Some(Warning {
                rule_name: rule.name(),
                description: rule.description(),
                url: rule.page(),
                detail: detail(finding),
                location: Location::new(source, finding.span),
            })
        });
        Results {
            warnings: warnings.collect(),
            sources: vec![Source {
                filename: source.name().to_owned(),
                language: "Dockerfile",
                data: super::encoded(source),
            }],
            error: errors.first().map(|error| Error {
                message: detail(error),
                location: Location::new(source, error.span),
            }),
        }
    }
}

fn detail(diagnostic: &Diagnostic) -> String {
    match &diagnostic.help {
        Some(help) => format!("{}: {help}", diagnostic.message),
        None => diagnostic.message.clone(),
    }
}
