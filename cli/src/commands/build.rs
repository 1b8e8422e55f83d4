//! `build`.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

use builder::BuildEnvironment;
use builder::contexts::main_context::{PreparedContext, prepare};
use builder::error::BuildError;
use builder::history::{Outline, Recording};
use builder::request::cache::CacheSpecError;
use builder::request::{BuildRequest, CacheExport, CacheImport, Destination, Output, RunSettings};
use builder::solve::cancel::Cancel;
use store::layer::compress::CompressionChoice;
use store::oci::{Platform, Reference};

use super::interrupt::Watch;
use super::outcome::{self, Failure};
use super::sources;
use super::transfer::remote;
use crate::args::{BuildArgs, Call, Method, OutputKind, Progress};
use crate::context::Context;
use crate::error::{Blame, CliError, Kind};
use crate::ui::progress::{Display, Work};

/// One time for everything in the image.
const EPOCH: &str = "SOURCE_DATE_EPOCH";

/// `longshore build`.
pub fn build(context: &Context, args: &BuildArgs) -> Result<ExitCode, CliError> {
    let how = match args.quiet {
        true => Progress::Quiet,
        false => outcome::progress(context, args.progress)?,
    };
    let built = run(context, args, how);
    built.map_err(|failure| failure.shown(context, how))
}

fn run(context: &Context, args: &BuildArgs, how: Progress) -> Result<ExitCode, Failure> {
    super::debug::check_terminal(args)?;
    let cancel = Cancel::new().blame(Kind::Environment)?;
    let watch = Watch::start(&cancel)?;
    let store = Arc::new(context.store()?);
    let remote = remote(context)?.with_cancel(&cancel);
    let environment = BuildEnvironment {
        store: &store,
        remote: &remote,
        cancel: &cancel,
    };
    let mut build_args = build_args(context, &args.build_args)?;
    // As buildx: the variable counts where no argument says otherwise.
    if let Some(epoch) = context.text_variable(EPOCH) {
        build_args.entry(EPOCH.to_owned()).or_insert(epoch);
    }
    let display = Display::new(context.ui, how, Work::Building);
    let (named, sink) = super::explain::Named::before(display.sink());
    let mut run = super::steps::settings(context, &args.steps)?;
    run.on_failure = super::debug::on_failure(context, args, &display, &cancel);
    let main = sources::main_request(args, &build_args, run);
    let mut stdin = sources::Input::new(&cancel);
    let asked = args.call.or(args.check.then_some(Call::CHECK));
    if let Some(asked) = asked.filter(|asked| asked.method != Method::Build) {
        let prepared = prepare(environment, &main, &mut stdin, &sink)?;
        let request = request(context, args, build_args, main.run, prepared)?;
        display.finish(true);
        let answered = super::call::call(context, environment, &request, asked);
        watch.stop();
        return answered;
    }
    let recording = Recording::begin(&store, outline(args), &sink);
    let prepared = prepare(environment, &main, &mut stdin, &recording.sink());
    let prepared = prepared.inspect_err(|error| recording.refused(error))?;
    let request = request(context, args, build_args, main.run, prepared);
    let request = request.inspect_err(|error| recording.refused_for(&error.chain().join("\n")))?;
    let built = builder::build_recording(environment, &request, &recording);
    let warnings = display.finish(built.is_ok());
    watch.stop();
    super::collect::if_due(context, &store);
    super::sync::soon(&store);
    if built.is_err() {
        outcome::warn(context, how, &warnings);
    }
    if args.explain {
        named.explain(context, &store)?;
    }
    let outcome = built.map_err(|error| {
        let hint = match error {
            BuildError::Step { ref source, .. } if source.is_the_commands() => {
                named.read(&store).ok().flatten()
            }
            _ => None,
        };
        let hint = hint.as_ref().and_then(super::debug::suggestion);
        Failure::from(error).suggest(hint)
    })?;
    if let (Some(image), Some(file)) = (&outcome.image, &args.iidfile) {
        std::fs::write(file, image.to_string()).map_err(|source| cannot("write", file, &source))?;
    }
    outcome::tell(context, &store, args, how, &request, &outcome)?;
    Ok(ExitCode::SUCCESS)
}

/// What is built, as far as the command line says it.
fn outline(args: &BuildArgs) -> Outline {
    let dockerfile = match &args.file {
        Some(file) => file.clone(),
        None => Path::new("Dockerfile").to_owned(),
    };
    let platforms = platforms(&args.platforms);
    let platforms: Vec<String> = platforms.iter().map(Platform::to_string).collect();
    let tags = args.tags.iter().map(|tag| match tag.parse::<Reference>() {
        Ok(reference) => reference.familiar(),
        Err(_) => tag.clone(),
    });
    Outline {
        context: args.context.display().to_string(),
        dockerfile: dockerfile.display().to_string(),
        target: args.target.clone(),
        platform: platforms.join(","),
        tags: tags.collect(),
    }
}

fn request(
    context: &Context,
    args: &BuildArgs,
    build_args: BTreeMap<String, String>,
    run: RunSettings,
    prepared: PreparedContext,
) -> Result<BuildRequest, CliError> {
    let tags = args
        .tags
        .iter()
        .map(|tag| tag.parse())
        .collect::<Result<Vec<Reference>, _>>()?;
    let processors = || std::thread::available_parallelism().ok();
    let jobs = args.jobs.or_else(processors);
    let labels = args.labels.iter().map(|label| {
        let (key, value) = label.split_once('=').unwrap_or((label, ""));
        match key {
            "" => Err(no_key(label)),
            key => Ok((key.to_owned(), value.to_owned())),
        }
    });
    let variables = |name: &str| context.text_variable(name);
    Ok(BuildRequest {
        dockerfile_name: prepared.dockerfile_name,
        dockerfile: prepared.dockerfile,
        context: prepared.context,
        ignore: prepared.ignore,
        contexts: sources::named_contexts(&args.build_contexts)?,
        build_args,
        labels: labels.collect::<Result<_, _>>()?,
        target: args.target.clone(),
        platforms: platforms(&args.platforms),
        tags,
        no_cache: args.no_cache,
        pull: args.pull,
        outputs: vec![output(args)?],
        jobs: jobs.map_or(1, std::num::NonZero::get),
        epoch: None,
        run,
        cache_from: parse_all(&args.cache_from, |text| {
            CacheImport::parse(text, &variables)
        })?,
        cache_to: parse_all(&args.cache_to, |text| CacheExport::parse(text, &variables))?,
        made: prepared.made,
    })
}

/// The platforms that were asked for, each once; this machine's where none was.
fn platforms(given: &[Platform]) -> Vec<Platform> {
    let mut platforms: Vec<Platform> = Vec::new();
    for platform in given {
        if !platforms.contains(platform) {
            platforms.push(platform.clone());
        }
    }
    if platforms.is_empty() {
        platforms.push(Platform::host());
    }
    platforms
}

fn parse_all<T>(
    texts: &[String],
    parse: impl Fn(&str) -> Result<T, CacheSpecError>,
) -> Result<Vec<T>, CliError> {
    let parsed = texts.iter().map(|text| parse(text));
    parsed
        .collect::<Result<_, _>>()
        .map_err(|error| CliError::new(Kind::Usage, error))
}

fn no_key(label: &str) -> CliError {
    CliError::new(
        Kind::Usage,
        format!("the label `{label}` has no key: expected `--label KEY=VALUE`"),
    )
}

fn cannot(what: &str, path: &Path, source: &std::io::Error) -> CliError {
    CliError::new(
        Kind::Input,
        format!("cannot {what} `{}`: {source}", path.display()),
    )
}

/// `NAME=VALUE`, or `NAME` for what the environment has; one that it does not have is left out, as docker does.
fn build_args(context: &Context, given: &[String]) -> Result<BTreeMap<String, String>, CliError> {
    let mut found = BTreeMap::new();
    for text in given {
        let (name, value) = match text.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (text.as_str(), context.text_variable(text)),
        };
        if name.is_empty() {
            let message = format!("invalid build argument `{text}`: expected NAME=VALUE");
            return Err(CliError::new(Kind::Usage, message));
        }
        if let Some(value) = value {
            found.insert(name.to_owned(), value);
        }
    }
    Ok(found)
}

fn output(args: &BuildArgs) -> Result<Output, CliError> {
    let Some(output) = &args.output else {
        return Ok(Output::Image {
            push: args.push,
            layers: CompressionChoice::AS_THEY_ARE,
        });
    };
    if args.push && output.kind != OutputKind::Image {
        let message = "--push needs the image itself: it does not go with this --output";
        return Err(CliError::new(Kind::Usage, message));
    }
    if output.kind == OutputKind::Image && output.layers.is_some() && !args.push {
        let message = "`compression` has no meaning with type=image unless the image is pushed: layers are compressed when they leave the store";
        return Err(
            CliError::new(Kind::Usage, message).hint("add --push, or give it to `longshore push`")
        );
    }
    let layers = output.layers.unwrap_or_default();
    let path = || output.dest.clone().unwrap_or_default();
    let dest = || match path() {
        path if path == Path::new("-") => Destination::Stdout,
        path => Destination::File(path),
    };
    Ok(match output.kind {
        OutputKind::Image => Output::Image {
            push: args.push,
            layers,
        },
        OutputKind::Oci => Output::Oci {
            dest: dest(),
            layers,
        },
        OutputKind::Docker => Output::Docker { dest: dest() },
        OutputKind::Tar => Output::Tar { dest: dest() },
        OutputKind::Local => Output::Local { dest: path() },
    })
}
