//! What a build says at its end: what came out, warnings, or why nothing did.

use builder::dockerfile::{Problems, Severity};
use builder::error::BuildError;
use builder::request::{BuildOutcome, BuildRequest};
use clap::ValueEnum;
use store::Store;
use store::images::ImageId;
use store::oci::Reference;

use crate::args::{BuildArgs, OutputKind, Progress};
use crate::context::Context;
use crate::error::{CliError, Kind};
use crate::ui::{human, rawjson};

/// An error, with the lines of the Dockerfile that it is about.
pub(super) struct Failure {
    error: CliError,
    problems: Vec<Problems>,
}

impl From<CliError> for Failure {
    fn from(error: CliError) -> Failure {
        let problems = Vec::new();
        Failure { error, problems }
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Failure {
        let problems = error.problems();
        let error = error.into();
        Failure { error, problems }
    }
}

impl Failure {
    /// The same, with what to do about it where nothing nearer is said.
    pub(super) fn suggest(mut self, hint: Option<String>) -> Failure {
        if let Some(hint) = hint.filter(|_| self.error.hint_text().is_none()) {
            self.error = self.error.hint(hint);
        }
        self
    }

    /// Decides how it is shown: for programs, with lines of the Dockerfile, or as any other error.
    pub(super) fn shown(self, context: &Context, how: Progress) -> CliError {
        let Failure { error, problems } = self;
        if how == Progress::Rawjson {
            let line = rawjson::failure(&error, &problems);
            return error.rendered(line);
        }
        if problems.is_empty() {
            return error;
        }
        let mut text = render(&problems, colour(context, how));
        if !problems.iter().any(Problems::has_error) {
            text.push_str(&format!("\n\nerror: {}", error.chain()[0]));
        }
        let mut said = problems.iter().flat_map(Problems::list);
        let helped = said.any(|problem| problem.help.is_some());
        // What was said of the Dockerfile itself is nearer to the mistake.
        if let Some(hint) = error.hint_text().filter(|_| !helped) {
            text.push_str(&format!("\nhint: {hint}"));
        }
        error.rendered(text)
    }
}

/// How progress is shown: as a flag says, or else the variable that docker and buildctl look at.
pub(super) fn progress(context: &Context, given: Option<Progress>) -> Result<Progress, CliError> {
    const VARIABLE: &str = "BUILDKIT_PROGRESS";
    let variable = || {
        context
            .text_variable(VARIABLE)
            .filter(|text| !text.is_empty())
    };
    match given.map_or_else(variable, |_| None) {
        Some(text) => Progress::from_str(&text, true).map_err(|_| {
            let message =
                format!("{VARIABLE} is `{text}`: expected auto, plain, tty, quiet or rawjson");
            CliError::new(Kind::Usage, message)
        }),
        None => Ok(given.unwrap_or(Progress::Auto)),
    }
}

/// Tells of a build that succeeded.
pub(super) fn tell(
    context: &Context,
    store: &Store,
    args: &BuildArgs,
    how: Progress,
    request: &BuildRequest,
    outcome: &BuildOutcome,
) -> Result<(), CliError> {
    let image = outcome.image.as_ref().map(ToString::to_string);
    let names = request.tags.iter().map(Reference::familiar);
    let pushed = outcome.pushed.iter();
    let pushed = pushed.map(|(name, digest)| (name.familiar(), digest.to_string()));
    if how == Progress::Rawjson {
        let (names, pushed) = (Vec::from_iter(names), Vec::from_iter(pushed));
        let line = rawjson::result(image.as_deref(), &names, &pushed);
        context.ui.note(&line);
        return Ok(());
    }
    warn(context, how, &outcome.warnings);
    if how == Progress::Quiet {
        let output = args.output.as_ref();
        let kept = output.is_none_or(|output| output.kind == OutputKind::Image);
        return match image {
            Some(image) if kept => context.ui.line(&image),
            _ => Ok(()),
        };
    }
    if let Some(id) = &outcome.image {
        let row = store.images().image(&ImageId(*id))?;
        let size = row.map_or(String::new(), |row| format!(" {}", human::size(row.size)));
        context.ui.note(&format!("image {id}{size}"));
    }
    for name in names {
        context.ui.note(&format!("named {name}"));
    }
    for (name, digest) in pushed {
        context.ui.note(&format!("pushed {name} {digest}"));
    }
    Ok(())
}

/// Shows what is doubtful about a Dockerfile, and how much that is; where only errors are to be shown, nothing.
pub(super) fn warn(context: &Context, how: Progress, problems: &[Problems]) {
    if problems.is_empty() || matches!(how, Progress::Quiet | Progress::Rawjson) {
        return;
    }
    let all = problems.iter().flat_map(Problems::list);
    let count = match all
        .filter(|said| said.severity == Severity::Warning)
        .count()
    {
        0 => String::new(),
        1 => "\n1 warning found\n".to_owned(),
        many => format!("\n{many} warnings found\n"),
    };
    let text = render(problems, colour(context, how));
    context.ui.note(&format!("\n{text}\n{count}"));
}

/// Whether lines of the Dockerfile are shown in colours: a log is to stay plain.
fn colour(context: &Context, how: Progress) -> bool {
    context.ui.colour && how != Progress::Plain
}

fn render(problems: &[Problems], colour: bool) -> String {
    let texts: Vec<String> = problems.iter().map(|some| some.render(colour)).collect();
    texts.join("\n\n")
}
