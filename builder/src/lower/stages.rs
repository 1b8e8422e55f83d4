//! Which stages a target needs, in order, and what each stands on.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

use store::oci::{Platform, Reference};

use super::platform::{self, PlatformError};
use super::scope::{self, Globals};
use super::{ImageRequest, LowerRequest, NeededImage, mounts};
use crate::checks::values;
use crate::contexts::{self, LayoutImage, NamedContext};
use crate::dockerfile::ast::{From, InstructionKind};
use crate::dockerfile::suggest::nearest;
use crate::dockerfile::{Diagnostic, Escape, Instruction, Span, Word, parse_trigger, words};

/// The stages that a target needs.
pub(super) struct Stages<'a> {
    /// By index in the Dockerfile; a stage needs only stages before it.
    pub(super) plans: BTreeMap<usize, StagePlan<'a>>,
    /// Index of the target.
    pub(super) target: usize,
    /// The variables of `FROM`, which `ARG` in a stage may import.
    pub(super) globals: Globals,
    pub(super) warnings: Vec<Diagnostic>,
}

/// One stage, before its instructions are lowered.
pub(super) struct StagePlan<'a> {
    /// What its steps are labelled with; empty if it is the only stage, has no name, and there is one platform.
    pub(super) label: String,
    pub(super) base: Base,
    pub(super) platform: Platform,
    /// Its `FROM`.
    pub(super) from: Span,
    /// What `FROM` triggers, and then its own instructions.
    pub(super) steps: Vec<Step<'a>>,
    /// How many of these people are told of, `FROM` of an image included.
    pub(super) total: usize,
}

/// What a stage, a copy or a mount takes its files from.
pub(super) enum Base {
    Scratch,
    Stage(usize),
    Image(Box<ImageRequest>),
    /// A folder, repository or URL given with `--build-context`: its key in [`LowerRequest::contexts`].
    Context(String),
}

/// Who names a source of files: only its errors differ, and that a copy may count stages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SourceUser {
    /// `COPY --from`.
    Copy,
    /// `RUN --mount=from=`.
    Mount,
}

/// An instruction and the text that its spans are of.
pub(super) struct Step<'a> {
    pub(super) instruction: Cow<'a, Instruction>,
    pub(super) text: Cow<'a, str>,
    pub(super) escape: Escape,
    /// Where to point if the text is not the Dockerfile's: the `FROM` of the image that it was read from.
    pub(super) origin: Option<Span>,
    /// What `--from` names.
    pub(super) from: Option<Base>,
    /// What the `from` of each `--mount` names, in order of the flags.
    pub(super) mounts: Vec<Option<Base>>,
}

impl Step<'_> {
    /// The place in the Dockerfile to point at.
    pub(super) fn at(&self, span: Span) -> Span {
        self.origin.unwrap_or(span)
    }
}

pub(super) enum Resolved<'a> {
    NeedImages(Vec<NeededImage>),
    Stages(Stages<'a>),
}

/// Finds the stages that the target needs, and the images that those need.
pub(super) fn resolve<'a>(request: &LowerRequest<'a>) -> Result<Resolved<'a>, Vec<Diagnostic>> {
    let (mut resolver, target) = Resolver::new(request).map_err(|problem| vec![*problem])?;
    if request.survey.is_some() {
        resolver.wanted = (0..request.dockerfile.stages.len()).collect();
    }
    let plans = resolver.plans()?;
    if !resolver.needed.is_empty() {
        resolver.needed.sort_by_key(|needed| needed.span);
        return Ok(Resolved::NeedImages(resolver.needed));
    }
    Ok(Resolved::Stages(Stages {
        plans,
        target,
        globals: resolver.globals,
        warnings: resolver.diagnostics,
    }))
}

/// The target and the stages that it needs, itself among them, by index; no image has to be known, so what their
/// triggers need is left out.
pub(crate) fn reachable(
    request: &LowerRequest<'_>,
) -> Result<(usize, BTreeSet<usize>), Vec<Diagnostic>> {
    let (mut resolver, target) = Resolver::new(request).map_err(|problem| vec![*problem])?;
    let plans = resolver.plans()?;
    Ok((target, plans.into_keys().collect()))
}

/// The stage that `--target` names, by name or number; the last one if it names none.
fn find_target(
    request: &LowerRequest<'_>,
    names: &[Option<String>],
) -> Result<usize, Box<Diagnostic>> {
    let everything = Span::default();
    let Some(last) = names.len().checked_sub(1) else {
        let message = "the Dockerfile has no stage: `FROM` is missing";
        return Err(Box::new(Diagnostic::error(everything, message)));
    };
    let Some(target) = &request.target else {
        return Ok(last);
    };
    if let Some(index) = find_name(names, target) {
        return Ok(index);
    }
    if let Ok(index) = target.parse::<usize>()
        && index <= last
    {
        return Ok(index);
    }
    let message = format!("there is no stage `{target}` to build");
    let near = nearest(target, names.iter().flatten().map(String::as_str));
    // The stage that was meant, or the one that would be built without a target.
    let shown = near.and_then(|near| find_name(names, near)).unwrap_or(last);
    let from = &request.dockerfile.instructions[request.dockerfile.stages[shown].from];
    let diagnostic = Diagnostic::error(from.head, message);
    Err(Box::new(match near {
        Some(near) => diagnostic.suggest(Some(near)),
        None => {
            let names: Vec<&str> = names.iter().flatten().map(String::as_str).collect();
            match names.as_slice() {
                [] => diagnostic.help(format!(
                    "no stage has a name; their numbers are 0 to {last}"
                )),
                names => diagnostic.help(format!("the stages are `{}`", names.join("`, `"))),
            }
        }
    }))
}

/// The last stage of a name, whatever its case.
fn find_name(names: &[Option<String>], name: &str) -> Option<usize> {
    let name = name.to_lowercase();
    names
        .iter()
        .rposition(|known| known.as_ref() == Some(&name))
}

/// The stages of each name, in order.
struct StagesByName(BTreeMap<String, Vec<usize>>);

impl StagesByName {
    fn new(names: &[Option<String>]) -> StagesByName {
        let mut by_name: BTreeMap<String, Vec<usize>> = BTreeMap::new();
        for (index, name) in names.iter().enumerate() {
            if let Some(name) = name {
                by_name.entry(name.clone()).or_default().push(index);
            }
        }
        StagesByName(by_name)
    }

    /// The last stage of a name in lower case that stands before another one.
    fn before(&self, name: &str, index: usize) -> Option<usize> {
        let stages = self.0.get(name)?;
        let earlier = stages.partition_point(|&stage| stage < index);
        Some(stages[earlier.checked_sub(1)?])
    }
}

struct Resolver<'r, 'a> {
    request: &'r LowerRequest<'a>,
    /// The stages' names in lower case.
    names: Vec<Option<String>>,
    by_name: StagesByName,
    globals: Globals,
    diagnostics: Vec<Diagnostic>,
    needed: Vec<NeededImage>,
    /// Stages that the target needs.
    wanted: BTreeSet<usize>,
    /// Platforms of stages that others stand on.
    platforms: BTreeMap<usize, Platform>,
}

impl<'r, 'a> Resolver<'r, 'a> {
    /// Finds the target; the only stage that is wanted so far.
    fn new(request: &'r LowerRequest<'a>) -> Result<(Resolver<'r, 'a>, usize), Box<Diagnostic>> {
        let name = |stage: &crate::dockerfile::Stage| match &request.dockerfile.instructions
            [stage.from]
            .kind
        {
            InstructionKind::From(from) => from.name.as_ref().map(|name| name.text.to_lowercase()),
            _ => None,
        };
        let names: Vec<Option<String>> = request.dockerfile.stages.iter().map(name).collect();
        let target = find_target(request, &names)?;
        let target_stage = names[target].as_deref().unwrap_or("default");
        let mut diagnostics = Vec::new();
        let globals = Globals::new(request, target_stage, &mut diagnostics);
        let resolver = Resolver {
            request,
            by_name: StagesByName::new(&names),
            names,
            globals,
            diagnostics,
            needed: Vec::new(),
            wanted: BTreeSet::from([target]),
            platforms: BTreeMap::new(),
        };
        Ok((resolver, target))
    }

    /// The plans of the wanted stages and of those that they need.
    fn plans(&mut self) -> Result<BTreeMap<usize, StagePlan<'a>>, Vec<Diagnostic>> {
        let mut plans = BTreeMap::new();
        // A stage needs only stages before it, so one pass backwards finds all.
        for index in (0..self.names.len()).rev() {
            if self.wanted.contains(&index)
                && let Some(plan) = self.stage(index)
            {
                plans.insert(index, plan);
            }
        }
        if self.diagnostics.iter().any(Diagnostic::is_error) {
            self.diagnostics
                .sort_by_key(|diagnostic| diagnostic.span.start);
            return Err(std::mem::take(&mut self.diagnostics));
        }
        Ok(plans)
    }

    fn stage(&mut self, index: usize) -> Option<StagePlan<'a>> {
        let dockerfile = self.request.dockerfile;
        let stage = &dockerfile.stages[index];
        let instruction = &dockerfile.instructions[stage.from];
        let InstructionKind::From(from) = &instruction.kind else {
            return None;
        };
        let platform = self.platform(instruction)?;
        // A context of the stage's name stands in for all that it does.
        let name = from.name.as_ref().map(|name| name.text.as_str());
        let replaced =
            name.and_then(|name| self.replaced(index, name, instruction.head, &platform));
        let is_replaced = replaced.is_some();
        let base = match replaced {
            Some(base) => base?,
            None => self.base(index, from, &platform)?,
        };
        let platform = match base {
            Base::Stage(parent) if instruction.flag("platform").is_none() => {
                self.platform_of(parent)
            }
            _ => platform,
        };
        let (body, mut steps) = match is_replaced {
            true => (0..0, Vec::new()),
            false => (stage.body.clone(), self.triggers(&base, instruction.head)),
        };
        for instruction in &dockerfile.instructions[body] {
            steps.push(Step {
                instruction: Cow::Borrowed(instruction),
                text: Cow::Borrowed(self.request.source.text()),
                escape: dockerfile.escape,
                origin: None,
                from: None,
                mounts: Vec::new(),
            });
        }
        for step in &mut steps {
            step.from = self.copy_source(index, step, &platform);
            step.mounts = self.mount_sources(index, step, &platform);
        }
        let counted = |step: &&Step<'_>| {
            matches!(
                step.instruction.kind,
                InstructionKind::Run(_)
                    | InstructionKind::Copy(_)
                    | InstructionKind::Add(_)
                    | InstructionKind::Workdir(_)
            )
        };
        let total = steps.iter().filter(counted).count()
            + usize::from(matches!(base, Base::Image(_) | Base::Context(_)));
        Some(StagePlan {
            label: self.label(index, &platform),
            base,
            platform,
            from: instruction.head,
            steps,
            total,
        })
    }

    /// What the steps of a stage are labelled with, in the field's form.
    fn label(&self, index: usize, platform: &Platform) -> String {
        let mut words = Vec::new();
        let target = &self.request.platform;
        match (self.request.label_platforms, platform == target) {
            (false, _) => {}
            (true, true) => words.push(platform.to_string()),
            (true, false) => words.push(format!("{platform}->{target}")),
        }
        match &self.names[index] {
            Some(name) => words.push(name.clone()),
            None if self.names.len() > 1 => words.push(format!("stage-{index}")),
            None => {}
        }
        words.join(" ")
    }

    fn error<T>(&mut self, diagnostic: Diagnostic) -> Option<T> {
        self.diagnostics.push(diagnostic);
        None
    }

    /// Expands a text of `FROM`.
    fn expand(&mut self, text: &str, span: Span) -> Option<String> {
        let lookup = |name: &str| self.globals.value(name);
        match words::expand(text, self.request.dockerfile.escape, &lookup) {
            Ok(expanded) => {
                for name in &expanded.unset {
                    if scope::is_name(name) && !self.globals.is_declared(name) {
                        let names = self.globals.names();
                        self.diagnostics
                            .push(values::undefined_in_from(name, span, names));
                    }
                }
                Some(expanded.text)
            }
            Err(error) => self.error(scope::cannot_expand(text, &error, span)),
        }
    }

    /// The platform of a stage: `--platform`, or the target's.
    fn platform(&mut self, instruction: &Instruction) -> Option<Platform> {
        let Some(flag) = instruction.flag("platform") else {
            return Some(self.request.platform.clone());
        };
        let text = self.expand(flag.value.as_deref().unwrap_or_default(), flag.span)?;
        let platform = match platform::parse_on(&text, &self.request.platform) {
            Ok(platform) => platform,
            Err(PlatformError::Form { .. }) => {
                let message = format!("`{text}` is not a platform");
                return self.error(
                    Diagnostic::error(flag.span, message).help("`linux/amd64`, `linux/arm64`"),
                );
            }
            Err(PlatformError::Architecture { name }) => {
                let message = format!("there is no architecture `{name}`");
                let near = nearest(&name, platform::ARCHITECTURES);
                let diagnostic = Diagnostic::error(flag.span, message);
                return self.error(match near {
                    Some(near) => diagnostic.suggest(Some(near)),
                    None => diagnostic.help(format!(
                        "known are `{}`",
                        platform::ARCHITECTURES.join("`, `")
                    )),
                });
            }
        };
        Some(platform)
    }

    /// The platform of a stage that another one stands on: its own, or that of the stage below it, and so on. What is wrong
    /// with a `--platform` is said where its stage is looked at.
    fn platform_of(&mut self, stage: usize) -> Platform {
        let dockerfile = self.request.dockerfile;
        let mut heirs = Vec::new();
        let mut at = stage;
        let found = loop {
            if let Some(known) = self.platforms.get(&at) {
                break Some(known.clone());
            }
            heirs.push(at);
            let instruction = &dockerfile.instructions[dockerfile.stages[at].from];
            let lookup = |name: &str| self.globals.value(name);
            let expand = |text: &str| words::expand(text, dockerfile.escape, &lookup).ok();
            if let Some(flag) = instruction.flag("platform") {
                let text = expand(flag.value.as_deref().unwrap_or_default());
                let parsed =
                    text.map(|text| platform::parse_on(&text.text, &self.request.platform));
                break parsed.and_then(Result::ok);
            }
            let InstructionKind::From(from) = &instruction.kind else {
                break None;
            };
            let below =
                expand(&from.image.text).and_then(|image| self.by_name.before(&image.text, at));
            match below {
                Some(below) => at = below,
                None => break None,
            }
        };
        let found = found.unwrap_or_else(|| self.request.platform.clone());
        for heir in heirs {
            self.platforms.insert(heir, found.clone());
        }
        found
    }

    fn base(&mut self, index: usize, from: &From, platform: &Platform) -> Option<Base> {
        let Word { text, span } = &from.image;
        let image = self.expand(text, *span)?;
        if image.is_empty() {
            let message = format!("the image `{text}` is empty once its variables are expanded");
            return self.error(Diagnostic::error(*span, message).help(
                "`ARG NAME=image` before the first `FROM` gives one, or `--build-arg NAME=image`",
            ));
        }
        if image == "scratch" {
            return Some(Base::Scratch);
        }
        if let Some(replaced) = self.replaced(index, &image, *span, platform) {
            return replaced;
        }
        // As it is written: names are in lower case, so one with capitals is an image.
        if let Some(stage) = self.by_name.before(&image, index) {
            self.wanted.insert(stage);
            return Some(Base::Stage(stage));
        }
        self.image(&image, *span, platform)
    }

    /// An image by name, which is asked for if it is not known.
    fn image(&mut self, name: &str, span: Span, platform: &Platform) -> Option<Base> {
        let reference: Reference = match name.parse() {
            Ok(reference) => reference,
            Err(error) => {
                let mut error = Diagnostic::error(span, error.to_string());
                if self.request.source.slice(span).contains('$') {
                    error = error.note(format!(
                        "`{}` expands to `{name}`; `FROM` sees only an `ARG` before the first `FROM`",
                        self.request.source.slice(span)
                    ));
                }
                let stages = self.names.iter().flatten().map(String::as_str);
                let lower = name.to_lowercase();
                return self.error(match find_name(&self.names, name) {
                    Some(_) => error.help(format!("`FROM` knows the stage as `{lower}`")),
                    None => match nearest(name, stages) {
                        None if lower.parse::<Reference>().is_ok() => error.suggest(Some(&lower)),
                        near => error.suggest(near),
                    },
                });
            }
        };
        Some(self.known_image(reference, None, span, platform))
    }

    fn known_image(
        &mut self,
        reference: Reference,
        layout: Option<LayoutImage>,
        span: Span,
        platform: &Platform,
    ) -> Base {
        let request = ImageRequest {
            reference,
            platform: platform.clone(),
            layout,
        };
        let known = self.request.images.contains_key(&request)
            || self
                .request
                .survey
                .is_some_and(|unknown| unknown.contains(&request))
            || self.needed.iter().any(|needed| needed.request == request);
        if !known {
            self.needed.push(NeededImage {
                request: request.clone(),
                span,
            });
        }
        Base::Image(Box::new(request))
    }

    /// What a named context puts in the place of `name`; the outer `None` if there is no such context.
    fn replaced(
        &mut self,
        index: usize,
        name: &str,
        span: Span,
        platform: &Platform,
    ) -> Option<Option<Base>> {
        let (key, context) = contexts::find(&self.request.contexts, name, platform)?;
        Some(match context {
            NamedContext::Folder { .. } | NamedContext::Git(_) | NamedContext::Http(_) => {
                Some(Base::Context(key.to_owned()))
            }
            NamedContext::Scratch => Some(Base::Scratch),
            NamedContext::Image(reference) => {
                Some(self.known_image(reference.clone(), None, span, platform))
            }
            NamedContext::Layout(layout) => {
                let name = key.split_once("::").map_or(key, |(name, _)| name);
                let reference = name.parse().expect("a context's key is an image's name");
                Some(self.known_image(reference, Some(layout.clone()), span, platform))
            }
            NamedContext::Stage(stage) => match find_name(&self.names, stage) {
                Some(found) if found < index => {
                    self.wanted.insert(found);
                    Some(Base::Stage(found))
                }
                found => {
                    let message = match found {
                        Some(_) => format!(
                            "the stage `{stage}`, which the build context `{name}` stands for, is not above this one"
                        ),
                        None => format!(
                            "there is no stage `{stage}`, which the build context `{name}` stands for"
                        ),
                    };
                    let stages = self.names.iter().flatten().map(String::as_str);
                    let near = nearest(stage, stages);
                    self.error(Diagnostic::error(span, message).suggest(near))
                }
            },
        })
    }

    /// The instructions that the base left for whoever builds upon it.
    fn triggers(&mut self, base: &Base, from: Span) -> Vec<Step<'a>> {
        let dockerfile = self.request.dockerfile;
        match base {
            Base::Scratch | Base::Context(_) => Vec::new(),
            Base::Stage(stage) => dockerfile.instructions[dockerfile.stages[*stage].body.clone()]
                .iter()
                .filter_map(|instruction| match &instruction.kind {
                    InstructionKind::Onbuild(trigger) => Some(Step {
                        instruction: Cow::Borrowed(trigger.as_ref()),
                        text: Cow::Borrowed(self.request.source.text()),
                        escape: dockerfile.escape,
                        origin: None,
                        from: None,
                        mounts: Vec::new(),
                    }),
                    _ => None,
                })
                .collect(),
            Base::Image(request) => {
                let image = self.request.images.get(request.as_ref());
                let texts = image.and_then(|image| image.config.config.on_build.clone());
                let texts = texts.unwrap_or_default();
                texts
                    .into_iter()
                    .filter_map(|text| self.image_trigger(text, from))
                    .collect()
            }
        }
    }

    fn image_trigger(&mut self, text: String, from: Span) -> Option<Step<'a>> {
        let (instruction, problems) = parse_trigger(&text);
        let problem = problems.into_iter().find(Diagnostic::is_error);
        let forbidden = matches!(
            instruction.as_ref().map(|instruction| &instruction.kind),
            Some(
                InstructionKind::From(_)
                    | InstructionKind::Onbuild(_)
                    | InstructionKind::Maintainer(_)
            )
        );
        let why = match (&instruction, problem) {
            (_, Some(problem)) => Some(problem.message),
            (None, None) => Some("there is nothing in it".to_owned()),
            (Some(_), None) if forbidden => Some("it may not be triggered".to_owned()),
            _ => None,
        };
        if let Some(why) = why {
            let message = format!("the base image's trigger `ONBUILD {text}` is invalid: {why}");
            return self.error(Diagnostic::error(from, message));
        }
        Some(Step {
            instruction: Cow::Owned(instruction?),
            text: Cow::Owned(text),
            escape: Escape::default(),
            origin: Some(from),
            from: None,
            mounts: Vec::new(),
        })
    }

    /// What `--from` of a copy names: a stage by number or name, else an image.
    fn copy_source(&mut self, index: usize, step: &Step<'_>, platform: &Platform) -> Option<Base> {
        if !matches!(step.instruction.kind, InstructionKind::Copy(_)) {
            return None;
        }
        let flag = step.instruction.flag("from")?;
        let name = flag.value.as_deref().unwrap_or_default();
        self.source(SourceUser::Copy, index, name, step.at(flag.span), platform)
    }

    /// What the mounts of a `RUN` are taken from.
    fn mount_sources(
        &mut self,
        index: usize,
        step: &Step<'_>,
        platform: &Platform,
    ) -> Vec<Option<Base>> {
        if !matches!(step.instruction.kind, InstructionKind::Run(_)) {
            return Vec::new();
        }
        let flags = step.instruction.flags.iter();
        let flags = flags.filter(|flag| flag.name == "mount");
        let names = flags.map(mounts::from);
        names
            .map(|from| {
                let (name, span) = from.filter(|(name, _)| !name.is_empty())?;
                match name.as_str() {
                    "scratch" => Some(Base::Scratch),
                    name => self.source(SourceUser::Mount, index, name, step.at(span), platform),
                }
            })
            .collect()
    }

    /// What `name` stands for where the stage `index` takes files from it: a named context, a stage above, else an image.
    pub(super) fn source(
        &mut self,
        user: SourceUser,
        index: usize,
        name: &str,
        span: Span,
        platform: &Platform,
    ) -> Option<Base> {
        let (written, example) = match user {
            SourceUser::Copy => (format!("--from={name}"), "COPY --from=source"),
            SourceUser::Mount => (format!("from={name}"), "RUN --mount=from=source"),
        };
        if name.contains('$') {
            let message = format!("variables are not expanded in `{written}`");
            return self.error(Diagnostic::error(span, message).help(format!(
                "name a stage: `FROM {name} AS source` and `{example}`"
            )));
        }
        if name.is_empty() {
            let message = format!("`{written}` needs a stage or an image");
            return self.error(Diagnostic::error(span, message.replace("=`", "`")));
        }
        let stage = match name.parse::<usize>() {
            Ok(number) if user == SourceUser::Copy && number >= self.names.len() => {
                let message = format!("there is no stage {number}");
                let last = self.names.len() - 1;
                let help = format!("stages are counted from 0: the last one is {last}");
                return self.error(Diagnostic::error(span, message).help(help));
            }
            Ok(number) if user == SourceUser::Copy => Some(number),
            _ => {
                let lower = name.to_lowercase();
                let before = self.by_name.before(&lower, index);
                before.or_else(|| self.by_name.before(&lower, usize::MAX))
            }
        };
        // Of a stage that a context replaces, nothing is built: what is read is read from the context.
        let stage_name = stage.and_then(|stage| self.names[stage].clone());
        let replaceable = stage_name.as_deref().unwrap_or(name);
        if let Some(replaced) = self.replaced(index, replaceable, span, platform) {
            return replaced;
        }
        match stage {
            Some(stage) if stage == index => {
                let message = match user {
                    SourceUser::Copy => format!("a stage cannot copy from itself: `{written}`"),
                    SourceUser::Mount => format!("a stage cannot mount itself: `{written}`"),
                };
                self.error(Diagnostic::error(span, message))
            }
            Some(stage) if stage > index => {
                let dockerfile = self.request.dockerfile;
                let from = &dockerfile.instructions[dockerfile.stages[stage].from];
                let (does, can) = match user {
                    SourceUser::Copy => ("copies from", "copy only from"),
                    SourceUser::Mount => ("mounts", "mount only"),
                };
                let message = format!("the stage `{name}` stands after the one that {does} it");
                self.error(
                    Diagnostic::error(span, message)
                        .label(from.head, format!("a stage can {can} stages above it")),
                )
            }
            Some(stage) => {
                self.wanted.insert(stage);
                Some(Base::Stage(stage))
            }
            None => self.image(name, span, platform),
        }
    }
}
