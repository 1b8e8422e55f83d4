//! What a target can be given: build arguments, secrets, SSH agents, caches.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::Location;
use crate::checks::descriptions::Comments;
use crate::dockerfile::ast::ArgDeclaration;
use crate::dockerfile::{Diagnostic, Dockerfile, Instruction, InstructionKind, SourceFile, Span};
use crate::lower::{self, GlobalArgs, LowerRequest};

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Outline {
    /// The target's name; absent if it has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What the comment above it says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Arguments, in the order of the text.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<Arg>,
    /// Secrets, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Agents, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ssh: Vec<Secret>,
    /// Caches, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cache: Vec<CacheMount>,
    /// The Dockerfile, in base64.
    pub sources: Vec<String>,
}

/// A build argument.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Arg {
    /// Its name.
    pub name: String,
    /// What the comment above it says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it is: what was given, else its default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Where it is declared first.
    pub location: Location,
}

/// A secret or an agent that steps use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Secret {
    /// Its name.
    pub name: String,
    /// Whether a step fails without it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub required: bool,
    /// The first step that uses it.
    pub location: Location,
}

/// A cache that steps use.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CacheMount {
    /// Its name.
    #[serde(rename = "ID")]
    pub id: String,
    /// The first step that uses it.
    pub location: Location,
}

/// Outlines the target of a request. No image has to be known.
///
/// # Errors
/// If there is no such target, or what it stands on cannot be told.
pub fn outline(request: &LowerRequest<'_>) -> Result<Outline, Vec<Diagnostic>> {
    let LowerRequest {
        dockerfile,
        source,
        build_args,
        ..
    } = request;
    let (index, stages) = lower::reachable(request)?;
    let comments = Comments::new(dockerfile, source);
    let globals = GlobalArgs::new(dockerfile, build_args);
    let stage = &dockerfile.stages[index];
    let name = match &dockerfile.instructions[stage.from].kind {
        InstructionKind::From(from) => from.name.as_ref().map(|name| name.text.to_lowercase()),
        _ => None,
    };
    let mut collector = Collector {
        source,
        comments: &comments,
        globals: &globals,
        build_args,
        args: BTreeMap::new(),
        secrets: BTreeMap::new(),
        ssh: BTreeMap::new(),
        cache: BTreeMap::new(),
    };
    collector.globals(dockerfile, &stages);
    for &stage in &stages {
        for index in dockerfile.stages[stage].body.clone() {
            collector.instruction(index, &dockerfile.instructions[index]);
        }
    }
    let Collector {
        args,
        secrets,
        ssh,
        cache,
        ..
    } = collector;
    let mut args: Vec<(Span, Arg)> = args.into_values().collect();
    args.sort_by_key(|(span, _)| *span);
    let located = |uses: BTreeMap<String, (bool, Span)>| {
        uses.into_iter().map(|(name, (required, span))| Secret {
            name,
            required,
            location: Location::new(source, span),
        })
    };
    Ok(Outline {
        description: name
            .as_deref()
            .and_then(|name| comments.description(stage.from, name)),
        name,
        args: args.into_iter().map(|(_, arg)| arg).collect(),
        secrets: located(secrets).collect(),
        ssh: located(ssh).collect(),
        cache: located(cache)
            .map(|Secret { name, location, .. }| CacheMount { id: name, location })
            .collect(),
        sources: vec![super::encoded(source)],
    })
}

/// By name: whether it is required, and where it is used first.
type Uses = BTreeMap<String, (bool, Span)>;

struct Collector<'a> {
    source: &'a SourceFile,
    comments: &'a Comments,
    globals: &'a GlobalArgs<'a>,
    build_args: &'a BTreeMap<String, String>,
    args: BTreeMap<String, (Span, Arg)>,
    secrets: Uses,
    ssh: Uses,
    cache: Uses,
}

impl Collector<'_> {
    /// The arguments before the first `FROM` that a `FROM` of these stages uses; the others come with the stages that
    /// declare them again.
    fn globals(&mut self, dockerfile: &Dockerfile, stages: &BTreeSet<usize>) {
        let used: BTreeSet<String> = stages
            .iter()
            .flat_map(|&stage| {
                let from = &dockerfile.instructions[dockerfile.stages[stage].from];
                self.globals.used(&from.line)
            })
            .collect();
        for (index, instruction) in dockerfile.globals().iter().enumerate() {
            if let InstructionKind::Arg(declarations) = &instruction.kind {
                for declaration in declarations {
                    if used.contains(&declaration.name.text) {
                        self.arg(index, instruction, declaration);
                    }
                }
            }
        }
    }

    fn instruction(&mut self, index: usize, instruction: &Instruction) {
        match &instruction.kind {
            InstructionKind::Arg(declarations) => {
                for declaration in declarations {
                    self.arg(index, instruction, declaration);
                }
            }
            InstructionKind::Run(_) => {
                for flag in &instruction.flags {
                    if flag.name == "mount" {
                        self.mount(flag.value.as_deref().unwrap_or_default(), instruction.head);
                    }
                }
            }
            _ => {}
        }
    }

    fn arg(&mut self, index: usize, instruction: &Instruction, declaration: &ArgDeclaration) {
        let name = &declaration.name.text;
        let given = self.build_args.get(name).cloned();
        let own = declaration
            .default
            .as_ref()
            .map(|word| self.globals.expand(&word.text));
        let value = given.or(own).or_else(|| self.globals.value(name));
        let description = self.comments.description(index, name);
        let (_, known) = self.args.entry(name.clone()).or_insert_with(|| {
            let arg = Arg {
                name: name.clone(),
                description: None,
                value: None,
                location: Location::new(self.source, instruction.head),
            };
            (instruction.head, arg)
        });
        known.description = known.description.take().or(description);
        known.value = known.value.take().or(value);
    }

    fn mount(&mut self, text: &str, span: Span) {
        let options: BTreeMap<&str, &str> = text
            .split(',')
            .map(|option| option.split_once('=').unwrap_or((option, "")))
            .collect();
        let option = |names: &[&str]| {
            let found = names.iter().find_map(|&name| options.get(name).copied());
            found.filter(|value| !value.is_empty()).map(str::to_owned)
        };
        let target = || option(&["target", "dst", "destination"]);
        let base = |path: String| path.rsplit('/').next().map(str::to_owned);
        let (uses, name) = match options.get("type").copied() {
            Some("secret") => {
                let name = option(&["id"]).or_else(|| base(option(&["source", "src"])?));
                (&mut self.secrets, name.or_else(|| base(target()?)))
            }
            Some("ssh") => {
                let name = option(&["id"]).unwrap_or_else(|| "default".to_owned());
                (&mut self.ssh, Some(name))
            }
            Some("cache") => (&mut self.cache, option(&["id"]).or_else(target)),
            _ => return,
        };
        let required = options
            .get("required")
            .is_some_and(|value| value.is_empty() || lower::is_true(value));
        if let Some(name) = name {
            uses.entry(name).or_insert((false, span)).0 |= required;
        }
    }
}
