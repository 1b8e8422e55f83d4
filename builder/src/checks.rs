//! Build checks: what is doubtful about a Dockerfile although it can be built.
//!
//! ```text
//! text ─ parse ─► blank lines ─────────┐
//! tree ─ examine ─► what it shows ─────┼─► settle: skipped ones dropped, in order ─► findings
//! tree ─ lower ─► what values show ────┘
//! ```
//!
//! | module | has |
//! |---|---|
//! | [`rules`] | the rules as data |
//! | [`settings`] | `# check=`, and comments that silence a rule |
//! | [`casing`], [`stages`], [`commands`], [`secrets`], [`images`] | rules that the tree alone decides |
//! | [`values`] | rules that lowering asks while it expands: variables, ports, sources |
//! | [`survey`] | `--check`: all stages, nothing built |
//! | [`descriptions`] | comments that describe stages and arguments |
//! | [`shell`], [`experimental`] | a reader of scripts, and the rules of longshore's own |

mod casing;
mod commands;
pub(crate) mod descriptions;
mod experimental;
mod images;
pub mod rules;
mod secrets;
pub mod settings;
mod shell;
mod stages;
pub mod survey;
pub(crate) mod values;

use std::collections::{BTreeMap, BTreeSet};

use crate::dockerfile::ast::{From, InstructionKind};
use crate::dockerfile::{Diagnostic, Dockerfile, Instruction, Problems, SourceFile};
pub use rules::Rule;
use settings::Settings;

/// What is looked at: a Dockerfile, and which of its stages matter.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The tree, parsed without errors.
    pub dockerfile: &'a Dockerfile,
    /// Its text.
    pub source: &'a SourceFile,
    /// The stages that count, by index.
    pub stages: &'a BTreeSet<usize>,
    /// `--build-arg`: values by name.
    pub build_args: &'a BTreeMap<String, String>,
}

impl<'a> Subject<'a> {
    /// The stages that count: index, the instruction `FROM`, its arguments.
    fn froms(&self) -> impl Iterator<Item = (usize, &'a Instruction, &'a From)> {
        let dockerfile = self.dockerfile;
        self.stages.iter().filter_map(move |&index| {
            let instruction = &dockerfile.instructions[dockerfile.stages.get(index)?.from];
            match &instruction.kind {
                InstructionKind::From(from) => Some((index, instruction, from)),
                _ => None,
            }
        })
    }

    /// The instructions of a stage, without its `FROM`.
    fn body(&self, stage: usize) -> &'a [Instruction] {
        &self.dockerfile.instructions[self.dockerfile.stages[stage].body.clone()]
    }

    /// The instructions of all stages that count, without their `FROM`.
    fn bodies(&self) -> impl Iterator<Item = &'a Instruction> {
        let subject = *self;
        let known = 0..self.dockerfile.stages.len();
        self.stages
            .iter()
            .filter(move |stage| known.contains(stage))
            .flat_map(move |&stage| subject.body(stage))
    }
}

/// What the checks say of a Dockerfile.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Violations of rules, in the order of the text.
    pub findings: Vec<Diagnostic>,
    /// Other warnings, in the order of the text.
    pub warnings: Vec<Diagnostic>,
    /// What is doubtful about the settings, which need not stand in the Dockerfile.
    pub remarks: Option<Problems>,
    /// A violation ends the build.
    pub error: bool,
}

impl Report {
    /// The names of the violated rules, each once, in alphabetical order.
    pub fn rules(&self) -> Vec<&'static str> {
        let rules = self.findings.iter().filter_map(|finding| finding.rule);
        rules
            .map(Rule::name)
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect()
    }

    /// Everything in the order in which people see it: remarks, warnings, violations. Nothing in it is empty.
    pub fn problems(&self, source: &SourceFile) -> Vec<Problems> {
        let said = self.warnings.iter().chain(&self.findings);
        let of_file = Problems::new(source, said.cloned().collect());
        let all = self.remarks.iter().cloned().chain([of_file]);
        all.filter(|problems| !problems.list().is_empty()).collect()
    }
}

/// Puts together what was said of a Dockerfile by parser and lowering and what its tree shows, and drops what the
/// Dockerfile's own settings, or the build argument that replaces them, do not want to hear.
///
/// Errors among `said` are left out.
///
/// # Errors
/// Settings that cannot be read.
pub fn report(subject: &Subject<'_>, said: Vec<Diagnostic>) -> Result<Report, Problems> {
    let Subject {
        dockerfile,
        source,
        build_args,
        ..
    } = *subject;
    let (settings, remarks) = settings::of_file(dockerfile, source, build_args)?;
    let (inline, mut warnings) = settings::inline(dockerfile, source);
    let mut findings = examine(subject);
    if settings.wants_experimental() {
        experimental::check(subject, &mut findings);
    }
    for diagnostic in said {
        match diagnostic.rule {
            _ if diagnostic.is_error() => {}
            Some(_) => findings.push(diagnostic),
            None => warnings.push(diagnostic),
        }
    }
    findings.retain(|finding| wanted(finding, dockerfile, &settings, &inline));
    for diagnostics in [&mut findings, &mut warnings] {
        diagnostics.sort_by(|a, b| {
            let key = |diagnostic: &Diagnostic| (diagnostic.span, diagnostic.rule);
            key(a).cmp(&key(b)).then_with(|| a.message.cmp(&b.message))
        });
        // A trigger is looked at in each stage that it fires in.
        diagnostics.dedup();
    }
    let error = settings.error && !findings.is_empty();
    Ok(Report {
        findings,
        warnings,
        remarks: Some(remarks),
        error,
    })
}

fn wanted(
    finding: &Diagnostic,
    dockerfile: &Dockerfile,
    settings: &Settings,
    inline: &BTreeMap<usize, Settings>,
) -> bool {
    let Some(rule) = finding.rule else {
        return true;
    };
    let instructions = &dockerfile.instructions;
    let after = instructions.partition_point(|other| other.span.start <= finding.span.start);
    let silenced = after
        .checked_sub(1)
        .and_then(|index| inline.get(&index))
        .is_some_and(|settings| settings.silences(rule));
    settings.wants(rule) && !silenced
}

/// What the tree alone shows, in no order.
fn examine(subject: &Subject<'_>) -> Vec<Diagnostic> {
    const CHECKS: [fn(&Subject<'_>, &mut Vec<Diagnostic>); 6] = [
        casing::check,
        stages::check,
        commands::check,
        secrets::check,
        images::check,
        descriptions::check,
    ];
    let mut found = Vec::new();
    for check in CHECKS {
        check(subject, &mut found);
    }
    found
}
