//! Variables: which are set where, and to what.
//!
//! A stage has one list of variables. `ENV` and `ARG` both set them, the later one wins; what `RUN` gets is the whole
//! list. Only `ENV` also goes into the image's configuration. Global `ARG`s are seen by `FROM`, and by a stage that
//! declares them again.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use store::oci::{Platform, Reference};

use super::LowerRequest;
use crate::dockerfile::ast::{ArgDeclaration, InstructionKind};
use crate::dockerfile::words::{self, WordError};
use crate::dockerfile::{Diagnostic, Dockerfile, Span};

/// `ARG`s that say which stages a scanner looks at; steps do not see them.
const SCANNER_ARGS: [&str; 2] = ["BUILDKIT_SBOM_SCAN_CONTEXT", "BUILDKIT_SBOM_SCAN_STAGE"];

/// Build arguments that need no declaration, reach `RUN` and are no part of any cache key.
const PROXY_NAMES: [&str; 5] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "FTP_PROXY",
    "NO_PROXY",
    "ALL_PROXY",
];

/// The variables of a stage.
#[derive(Clone, Debug, Default)]
pub(super) struct Scope {
    /// `NAME=value`, in order of first appearance. Every `RUN` gets them all, so they are shared.
    variables: Vec<Arc<str>>,
    positions: BTreeMap<String, usize>,
    /// Names that `ARG` declared, in order of first appearance, with the variable that has each: every `RUN` has them in its history.
    declared: Vec<(String, Option<usize>)>,
    /// Where each of them stands.
    is_declared: BTreeMap<String, usize>,
    /// Length of all variables together, in bytes.
    bytes: usize,
    /// The base image is not known, and may set anything.
    open: bool,
}

impl Scope {
    /// The variables of an image's configuration.
    pub(super) fn new(env: &[String]) -> Scope {
        let mut scope = Scope::default();
        for variable in env {
            let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
            scope.set(name, value);
        }
        scope
    }

    /// Notes that there may be more variables than are known.
    pub(super) fn leave_open(&mut self) {
        self.open = true;
    }

    /// Whether the base image is not known.
    pub(super) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether a variable without a value is surely not set, and should be.
    pub(super) fn misses(&self, name: &str) -> bool {
        let declared = self.is_declared.contains_key(name);
        !self.open && is_name(name) && !is_proxy(name) && !is_automatic(name) && !declared
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        let &position = self.positions.get(name)?;
        Some(&self.variables[position][name.len() + 1..])
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.positions.keys().map(String::as_str)
    }

    pub(super) fn set(&mut self, name: &str, value: &str) {
        let variable: Arc<str> = format!("{name}={value}").into();
        self.bytes += variable.len();
        match self.positions.get(name) {
            Some(&position) => {
                self.bytes -= self.variables[position].len();
                self.variables[position] = variable;
            }
            None => {
                let position = self.variables.len();
                self.positions.insert(name.to_owned(), position);
                self.variables.push(variable);
                if let Some(&declared) = self.is_declared.get(name) {
                    self.declared[declared].1 = Some(position);
                }
            }
        }
    }

    /// Notes that `ARG` declared a name, with or without a value.
    pub(super) fn declare(&mut self, name: &str, value: Option<&str>) {
        if !self.is_declared.contains_key(name) {
            let position = self.positions.get(name).copied();
            self.is_declared
                .insert(name.to_owned(), self.declared.len());
            self.declared.push((name.to_owned(), position));
        }
        if let Some(value) = value {
            self.set(name, value);
        }
    }

    /// How long the variables are together, in bytes.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// `NAME=value` for `RUN`, without what only tells a scanner what to look at.
    pub(super) fn environment(&self) -> Vec<Arc<str>> {
        let mut variables = self.variables.clone();
        if SCANNER_ARGS
            .iter()
            .any(|name| self.is_declared.contains_key(*name))
        {
            let is_for_scanners = |variable: &str| {
                let name = variable.split('=').next().unwrap_or_default();
                self.is_declared.contains_key(name) && SCANNER_ARGS.contains(&name)
            };
            variables.retain(|variable| !is_for_scanners(variable));
        }
        variables
    }

    /// `|N NAME=value… ` as the history of a `RUN` begins, where `ARG`s are declared.
    pub(super) fn history_prefix(&self) -> String {
        if self.declared.is_empty() {
            return String::new();
        }
        let mut prefix = format!("|{} ", self.declared.len());
        for (name, position) in &self.declared {
            match *position {
                Some(position) => prefix.push_str(&self.variables[position]),
                None => {
                    prefix.push_str(name);
                    prefix.push('=');
                }
            }
            prefix.push(' ');
        }
        prefix
    }

    /// The proxy arguments that were given, in both cases of their names, but for those that are variables anyway.
    pub(super) fn proxies(&self, build_args: &BTreeMap<String, String>) -> Vec<String> {
        let mut proxies = BTreeMap::new();
        for (name, value) in build_args {
            if is_proxy(name) {
                proxies.insert(name.to_uppercase(), value);
                proxies.insert(name.to_lowercase(), value);
            }
        }
        proxies
            .into_iter()
            .filter(|(name, _)| self.value(name).is_none())
            .map(|(name, value)| format!("{name}={value}"))
            .collect()
    }
}

fn is_proxy(name: &str) -> bool {
    PROXY_NAMES
        .iter()
        .any(|proxy| name == *proxy || name == proxy.to_lowercase())
}

/// The arguments that say what is built, for what and on what.
fn is_automatic(name: &str) -> bool {
    let platform =
        |name: &str| matches!(name, "PLATFORM" | "OS" | "OSVERSION" | "ARCH" | "VARIANT");
    name == "TARGETSTAGE"
        || name.strip_prefix("TARGET").is_some_and(platform)
        || name.strip_prefix("BUILD").is_some_and(platform)
}

/// Whether a variable has a name that can be set, unlike `$1` and `$@`.
pub(super) fn is_name(name: &str) -> bool {
    name.chars()
        .next()
        .is_some_and(|first| first.is_alphabetic() || first == '_')
}

/// The error about a text that cannot be expanded.
pub(super) fn cannot_expand(text: &str, error: &WordError, span: Span) -> Diagnostic {
    let diagnostic = Diagnostic::error(span, format!("cannot expand `{text}`: {error}"));
    match error {
        WordError::UnclosedQuote { quote } => diagnostic.help(format!(
            "end the text with `{quote}`, or write `\\{quote}` for the character itself"
        )),
        WordError::UnclosedBrace => diagnostic.help("`${NAME}`, or `\\$` for the character itself"),
        WordError::UnknownModifier { name, modifier } if modifier == ":=" || modifier == "=" => {
            diagnostic.help(format!(
                "`${{{name}:-…}}` gives a value where there is none, `ENV` keeps it"
            ))
        }
        WordError::Required { name, .. } => diagnostic.help(format!(
            "`ARG {name}` declares it, `--build-arg {name}=…` or `ENV {name}=…` gives it a value"
        )),
        _ => diagnostic,
    }
}

/// The variables that `FROM` sees.
#[derive(Clone, Debug, Default)]
pub(super) struct Globals {
    values: BTreeMap<String, String>,
    /// Declared, with a value or without.
    declared: BTreeSet<String>,
}

impl Globals {
    /// Evaluates the `ARG`s before the first `FROM`, after the automatic ones.
    pub(super) fn new(
        request: &LowerRequest<'_>,
        target_stage: &str,
        diagnostics: &mut Vec<Diagnostic>,
    ) -> Globals {
        let mut globals = Globals::default();
        globals.set_platform("BUILD", &request.build_platform);
        globals.set_platform("TARGET", &request.platform);
        globals.set("TARGETSTAGE", target_stage);
        let automatic: Vec<String> = globals.values.keys().cloned().collect();
        for name in automatic {
            if let Some(value) = request.build_args.get(&name) {
                globals.set(&name, value);
            }
        }
        for instruction in request.dockerfile.globals() {
            let InstructionKind::Arg(declarations) = &instruction.kind else {
                continue;
            };
            for declaration in declarations {
                let declared =
                    globals.declare(&request.build_args, request.dockerfile, declaration);
                if let Err(diagnostic) = declared {
                    diagnostics.push(*diagnostic);
                }
            }
        }
        globals
    }

    fn set(&mut self, name: &str, value: &str) {
        self.values.insert(name.to_owned(), value.to_owned());
        self.declared.insert(name.to_owned());
    }

    fn set_platform(&mut self, prefix: &str, platform: &Platform) {
        let variant = platform.variant.as_deref().unwrap_or_default();
        let version = platform.os_version.as_deref().unwrap_or_default();
        self.set(&format!("{prefix}PLATFORM"), &platform.to_string());
        self.set(&format!("{prefix}OS"), &platform.os);
        self.set(&format!("{prefix}OSVERSION"), version);
        self.set(&format!("{prefix}ARCH"), &platform.architecture);
        self.set(&format!("{prefix}VARIANT"), variant);
    }

    fn declare(
        &mut self,
        build_args: &BTreeMap<String, String>,
        dockerfile: &Dockerfile,
        declaration: &ArgDeclaration,
    ) -> Result<(), Box<Diagnostic>> {
        let expand = |word: &crate::dockerfile::Word| {
            let lookup = |name: &str| self.value(name);
            words::expand(&word.text, dockerfile.escape, &lookup)
                .map_err(|error| Box::new(cannot_expand(&word.text, &error, word.span)))
        };
        let name = expand(&declaration.name)?.text;
        let default = declaration.default.as_ref().map(expand).transpose()?;
        let value = match build_args.get(&name) {
            Some(value) => Some(value.clone()),
            None => default.map(|expanded| expanded.text),
        };
        self.declared.insert(name.clone());
        if let Some(value) = value {
            self.values.insert(name, value);
        }
        Ok(())
    }

    pub(super) fn value(&self, name: &str) -> Option<&str> {
        self.values.get(name).map(String::as_str)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.declared.iter().map(String::as_str)
    }

    pub(super) fn is_declared(&self, name: &str) -> bool {
        self.declared.contains(name) || is_proxy(name)
    }
}

/// The variables of `FROM` for those who only look at a Dockerfile, on a machine like this one.
pub(crate) struct GlobalArgs<'a> {
    dockerfile: &'a Dockerfile,
    globals: Globals,
}

impl GlobalArgs<'_> {
    pub(crate) fn new<'a>(
        dockerfile: &'a Dockerfile,
        build_args: &BTreeMap<String, String>,
    ) -> GlobalArgs<'a> {
        let host = Platform::host();
        let mut globals = Globals::default();
        globals.set_platform("BUILD", &host);
        globals.set_platform("TARGET", &host);
        for instruction in dockerfile.globals() {
            let InstructionKind::Arg(declarations) = &instruction.kind else {
                continue;
            };
            for declaration in declarations {
                // What cannot be expanded is an error of lowering's.
                let _ = globals.declare(build_args, dockerfile, declaration);
            }
        }
        GlobalArgs {
            dockerfile,
            globals,
        }
    }

    /// The value of a variable, if it has one.
    pub(crate) fn value(&self, name: &str) -> Option<String> {
        self.globals.value(name).map(str::to_owned)
    }

    /// A word with its variables replaced; as it is if that cannot be done.
    pub(crate) fn expand(&self, text: &str) -> String {
        let lookup = |name: &str| self.globals.value(name);
        let expanded = words::expand(text, self.dockerfile.escape, &lookup);
        expanded.map_or_else(|_| text.to_owned(), |expanded| expanded.text)
    }

    /// The variables that a text uses.
    pub(crate) fn used(&self, text: &str) -> BTreeSet<String> {
        let used = RefCell::new(BTreeSet::new());
        let lookup = |name: &str| {
            used.borrow_mut().insert(name.to_owned());
            self.globals.value(name)
        };
        // What was used up to an error counts.
        let _ = words::expand(text, self.dockerfile.escape, &lookup);
        used.into_inner()
    }

    /// Why a name of an image names none: `is …`. Nothing where its variables are not to blame.
    pub(crate) fn refuses(&self, image: &str) -> Option<String> {
        if !image.contains('$') {
            return None;
        }
        let lookup = |name: &str| self.globals.value(name);
        let expanded = words::expand(image, self.dockerfile.escape, &lookup).ok()?;
        let name = expanded.text;
        if name.is_empty() {
            return Some("is empty".to_owned());
        }
        name.parse::<Reference>()
            .is_err()
            .then(|| format!("is `{name}`, which names no image"))
    }
}
