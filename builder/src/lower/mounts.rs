//! `RUN --mount`: the flag's fields, and what they come to.
//!
//! The value is one line of CSV: `key=value` or a bare key, fields with commas in double quotes. Keys are read in order, so
//! `required` and `size` have to follow `type`. Variables are expanded in every value but that of `from`.

use std::collections::BTreeMap;

use super::copy::absolute;
use super::stages::{Base, StagePlan, Step};
use super::{Lowering, Outcome, StageState};
use crate::dockerfile::ast::Flag;
use crate::dockerfile::ignore::clean;
use crate::dockerfile::suggest::nearest;
use crate::dockerfile::{Diagnostic, Span};
use crate::graph::VertexIndex;
use crate::graph::exec::{BindMount, CacheMount, Mount, MountKind, SecretMount, Sharing, SshMount};
use crate::request::size;

const TYPES: [&str; 5] = ["bind", "cache", "tmpfs", "secret", "ssh"];
const SHARINGS: [&str; 3] = ["shared", "private", "locked"];
const KEYS: [&str; 19] = [
    "type",
    "from",
    "source",
    "src",
    "target",
    "dst",
    "destination",
    "readonly",
    "ro",
    "readwrite",
    "rw",
    "id",
    "sharing",
    "required",
    "size",
    "mode",
    "uid",
    "gid",
    "env",
];

/// Mode bits of an empty cache, a secret and an agent's socket, unless they are given.
const CACHE_MODE: u32 = 0o755;
const SECRET_MODE: u32 = 0o400;
const SSH_MODE: u32 = 0o600;

/// Where agents' sockets are, unless they have a target.
const SSH_TARGET: &str = "/run/buildkit/ssh_agent";

/// One `key=value`, or a key alone.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Field {
    /// As written, without quotes.
    text: String,
    /// In lower case.
    pub(crate) key: String,
    /// What follows the first `=`.
    pub(crate) value: Option<String>,
}

/// What `from` says, if the flag has it and can be read: the last one counts.
pub(super) fn from(flag: &Flag) -> Option<(String, Span)> {
    let fields = fields(flag.value.as_deref()?).ok()?;
    let field = fields.into_iter().rfind(|field| field.key == "from")?;
    Some((field.value?, flag.span))
}

/// Splits a line of CSV.
pub(crate) fn fields(text: &str) -> Result<Vec<Field>, &'static str> {
    let mut fields = Vec::new();
    let mut rest = text;
    loop {
        let (field, after) = match rest.strip_prefix('"') {
            Some(quoted) => quoted_field(quoted)?,
            None => {
                let end = rest.find(',').unwrap_or(rest.len());
                if rest[..end].contains('"') {
                    return Err("a quote stands in the middle of a field");
                }
                (rest[..end].to_owned(), &rest[end..])
            }
        };
        let (key, value) = match field.split_once('=') {
            Some((key, value)) => (key.to_lowercase(), Some(value.to_owned())),
            None => (field.to_lowercase(), None),
        };
        fields.push(Field {
            text: field,
            key,
            value,
        });
        match after.strip_prefix(',') {
            Some(more) => rest = more,
            None => return Ok(fields),
        }
    }
}

/// The field whose opening quote was read, and what follows its closing one: nothing or a comma.
fn quoted_field(text: &str) -> Result<(String, &str), &'static str> {
    let mut field = String::new();
    let mut rest = text;
    loop {
        let Some((before, after)) = rest.split_once('"') else {
            return Err("a quoted field does not end");
        };
        field.push_str(before);
        match after.strip_prefix('"') {
            Some(more) => {
                field.push('"');
                rest = more;
            }
            None if after.is_empty() || after.starts_with(',') => return Ok((field, after)),
            None => return Err("something follows the closing quote of a field"),
        }
    }
}

/// A flag's fields, taken together.
#[derive(Default)]
struct Draft {
    kind: Kind,
    source: Option<String>,
    target: String,
    read_only: Option<bool>,
    id: Option<String>,
    sharing: Option<Sharing>,
    required: bool,
    size: Option<u64>,
    mode: Option<u32>,
    uid: Option<u32>,
    gid: Option<u32>,
    env: Option<String>,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Bind,
    Cache,
    Tmpfs,
    Secret,
    Ssh,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bind => "bind",
            Kind::Cache => "cache",
            Kind::Tmpfs => "tmpfs",
            Kind::Secret => "secret",
            Kind::Ssh => "ssh",
        }
    }

    fn named(name: &str) -> Option<Kind> {
        let kinds = [
            Kind::Bind,
            Kind::Cache,
            Kind::Tmpfs,
            Kind::Secret,
            Kind::Ssh,
        ];
        kinds.into_iter().find(|kind| kind.name() == name)
    }
}

/// What is wrong with a field, and what would be right.
struct Wrong {
    message: String,
    near: Option<String>,
    help: Option<String>,
}

impl Wrong {
    fn new(message: impl Into<String>) -> Wrong {
        Wrong {
            message: message.into(),
            near: None,
            help: None,
        }
    }

    fn near(word: &str, known: &[&str], message: String) -> Wrong {
        let near = nearest(word, known.iter().copied()).map(str::to_owned);
        Wrong {
            help: Some(format!("one of `{}`", known.join("`, `"))),
            near,
            message,
        }
    }

    fn at(self, span: Span) -> Diagnostic {
        let diagnostic = Diagnostic::error(span, self.message);
        match (self.near, self.help) {
            (Some(near), _) => diagnostic.suggest(Some(&near)),
            (None, Some(help)) => diagnostic.help(help),
            (None, None) => diagnostic,
        }
    }
}

impl Draft {
    /// Takes one field in; `value` is expanded.
    fn take(&mut self, field: &Field, value: Option<&str>) -> Result<(), Wrong> {
        let key = field.key.as_str();
        if field.text.is_empty() {
            return Err(Wrong::new("a mount has an empty field: a comma too many"));
        }
        if !KEYS.contains(&key) {
            return Err(Wrong::near(
                key,
                &KEYS,
                format!("a mount has no key `{key}`: `{}`", field.text),
            ));
        }
        let bare = matches!(key, "ro" | "readonly" | "rw" | "readwrite" | "required");
        let value = match value {
            Some(value) => value,
            None if bare => "true",
            None => {
                let message = format!("the key `{key}` of a mount needs a value");
                return Err(Wrong::new(message));
            }
        };
        match key {
            "type" => {
                let name = value.to_lowercase();
                self.kind = Kind::named(&name).ok_or_else(|| {
                    Wrong::near(
                        &name,
                        &TYPES,
                        format!("there is no mount of type `{value}`"),
                    )
                })?;
            }
            "source" | "src" => self.source = Some(value.to_owned()),
            "target" | "dst" | "destination" => value.clone_into(&mut self.target),
            "ro" | "readonly" => self.read_only = Some(boolean(key, value)?),
            "rw" | "readwrite" => self.read_only = Some(!boolean(key, value)?),
            "id" => self.id = Some(value.to_owned()),
            "sharing" => {
                let name = value.to_lowercase();
                self.sharing = Some(match name.as_str() {
                    "shared" => Sharing::Shared,
                    "private" => Sharing::Private,
                    "locked" => Sharing::Locked,
                    _ => {
                        let message = format!("a cache cannot be shared as `{value}`");
                        return Err(Wrong::near(&name, &SHARINGS, message));
                    }
                });
            }
            "required" => {
                self.only(key, &[Kind::Secret, Kind::Ssh])?;
                self.required = boolean(key, value)?;
            }
            "size" => {
                self.only(key, &[Kind::Tmpfs])?;
                let size = size::bytes(value).ok_or_else(|| {
                    Wrong::new(format!("`{value}` is not a size: expected one like `64m`"))
                })?;
                // The kernel takes 0 for no limit.
                self.size = (size > 0).then_some(size);
            }
            "mode" => {
                let mode = u32::from_str_radix(value, 8).ok();
                let is_mode = |mode: &u32| *mode <= 0o7777 && !value.starts_with('+');
                self.mode = Some(mode.filter(is_mode).ok_or_else(|| {
                    Wrong::new(format!("`{value}` is not a mode: expected an octal number"))
                })?);
            }
            "uid" => self.uid = Some(number(key, value)?),
            "gid" => self.gid = Some(number(key, value)?),
            "env" => self.env = Some(value.to_owned()),
            // Resolved before.
            _ => {}
        }
        Ok(())
    }

    /// A key that has a meaning for some types only, which have to stand before it.
    fn only(&self, key: &str, kinds: &[Kind]) -> Result<(), Wrong> {
        if kinds.contains(&self.kind) {
            return Ok(());
        }
        let kind = self.kind.name();
        let mut wrong = Wrong::new(format!("a mount of type `{kind}` has no key `{key}`"));
        let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
        let types = names.join("` or `type=");
        wrong.help = Some(format!("`{key}` has to follow `type={types}`"));
        Err(wrong)
    }

    /// What only all fields together tell.
    fn check(&self, has_from: bool) -> Result<(), Wrong> {
        let kind = self.kind.name();
        let has = |key: &str| {
            Err(Wrong::new(format!(
                "a mount of type `{kind}` has no `{key}`"
            )))
        };
        if !matches!(self.kind, Kind::Cache | Kind::Secret | Kind::Ssh) {
            let given = [
                ("mode", self.mode.is_some()),
                ("uid", self.uid.is_some()),
                ("gid", self.gid.is_some()),
            ];
            if let Some((key, _)) = given.iter().find(|(_, given)| *given) {
                return has(key);
            }
        }
        if self.sharing.is_some() && self.kind != Kind::Cache {
            return has("sharing");
        }
        if has_from && !matches!(self.kind, Kind::Bind | Kind::Cache) {
            return has("from");
        }
        if self.env.is_some() && self.kind != Kind::Secret {
            return has("env");
        }
        if self.env.as_deref().is_some_and(|env| !is_variable(env)) {
            let env = self.env.as_deref().unwrap_or_default();
            return Err(Wrong::new(format!("a variable cannot be called `{env}`")));
        }
        match self.kind {
            Kind::Ssh if self.source.is_some() => has("source"),
            Kind::Tmpfs if self.source.is_some() => has("source"),
            Kind::Secret if self.source.is_some() && self.id.is_some() => Err(Wrong::new(
                "a secret's `source` and `id` are the same: give one of them",
            )),
            Kind::Secret if self.secret_id().is_empty() => Err(Wrong::new(
                "a secret needs an `id`, or a `target` to take its name from",
            )),
            _ => Ok(()),
        }
    }

    fn secret_id(&self) -> &str {
        let id = self.source.as_deref().or(self.id.as_deref());
        let base = self.target.trim_end_matches('/');
        let base = base.rsplit('/').next().unwrap_or_default();
        id.filter(|id| !id.is_empty()).unwrap_or(base)
    }
}

fn boolean(key: &str, value: &str) -> Result<bool, Wrong> {
    match value {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(Wrong::new(format!(
            "the key `{key}` of a mount is `true` or `false`, not `{value}`"
        ))),
    }
}

fn number(key: &str, value: &str) -> Result<u32, Wrong> {
    value
        .parse()
        .ok()
        .filter(|number| *number != u32::MAX && !value.starts_with('+'))
        .ok_or_else(|| Wrong::new(format!("the {key} `{value}` is not a number")))
}

fn is_variable(name: &str) -> bool {
    !name.is_empty() && !name.contains(['=', '\0'])
}

impl Lowering<'_> {
    /// The mounts of a `RUN`; what they read is added to `inputs`.
    pub(super) fn mounts(
        &mut self,
        state: &StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        inputs: &mut Vec<VertexIndex>,
    ) -> Outcome<Vec<Mount>> {
        let flags = step.instruction.flags.iter();
        let flags = flags.filter(|flag| flag.name == "mount");
        let mut mounts = Vec::new();
        let mut outcome = Ok(());
        for (position, flag) in flags.enumerate() {
            let base = step.mounts.get(position).and_then(Option::as_ref);
            match self.mount(state, (plan, step), flag, base, &mounts, inputs) {
                Ok(mount) => mounts.push(mount),
                Err(refused) => outcome = Err(refused),
            }
        }
        outcome.map(|()| mounts)
    }

    fn mount(
        &mut self,
        state: &StageState,
        at: (&StagePlan<'_>, &Step<'_>),
        flag: &Flag,
        base: Option<&Base>,
        before: &[Mount],
        inputs: &mut Vec<VertexIndex>,
    ) -> Outcome<Mount> {
        let (_, step) = at;
        let text = flag.value.as_deref().unwrap_or_default();
        let span = step.at(flag.span);
        let fields = match fields(text) {
            Ok(fields) => fields,
            Err(why) => {
                let message = format!("the mount `{text}` cannot be read: {why}");
                return self.refuse(Diagnostic::error(span, message));
            }
        };
        let mut draft = Draft::default();
        let mut has_from = false;
        for field in &fields {
            let place = step.at(self.field_span(step, flag, field));
            let value = match &field.value {
                Some(value) if field.key != "from" && KEYS.contains(&field.key.as_str()) => {
                    Some(self.expand_text(state, step, value, place)?.text)
                }
                value => value.clone(),
            };
            has_from |= field.key == "from" && value.as_deref() != Some("");
            if let Err(wrong) = draft.take(field, value.as_deref()) {
                return self.refuse(wrong.at(place));
            }
        }
        if let Err(wrong) = draft.check(has_from) {
            return self.refuse(wrong.at(span));
        }
        let target = absolute(state.cwd(), &draft.target);
        let is_file = draft.kind != Kind::Ssh && draft.kind != Kind::Secret;
        if is_file && target == "/" {
            let message = match draft.target.as_str() {
                "" => "a mount needs a target".to_owned(),
                written => format!("nothing can be mounted on `/`: the target is `{written}`"),
            };
            return self.refuse(Diagnostic::error(span, message));
        }
        Ok(match draft.kind {
            Kind::Bind => self.bind(at, &draft, target, base, inputs)?,
            Kind::Cache => self.cache(at, &draft, target, base, inputs)?,
            Kind::Tmpfs => Mount {
                target,
                kind: MountKind::Tmpfs {
                    size: draft.size,
                    read_only: draft.read_only == Some(true),
                },
            },
            Kind::Secret => secret(&draft, &target, &self.request.run.secret_digests),
            Kind::Ssh => ssh(&draft, target, before),
        })
    }

    fn bind(
        &mut self,
        at: (&StagePlan<'_>, &Step<'_>),
        draft: &Draft,
        target: String,
        base: Option<&Base>,
        inputs: &mut Vec<VertexIndex>,
    ) -> Outcome<Mount> {
        let (vertex, ignore) = self.mounted(at, base)?;
        let kind = MountKind::Bind(BindMount {
            input: vertex.map(|vertex| input(inputs, vertex)),
            source: beneath(draft.source.as_deref()),
            ignore,
            read_only: draft.read_only != Some(false),
        });
        Ok(Mount { target, kind })
    }

    fn cache(
        &mut self,
        at: (&StagePlan<'_>, &Step<'_>),
        draft: &Draft,
        target: String,
        base: Option<&Base>,
        inputs: &mut Vec<VertexIndex>,
    ) -> Outcome<Mount> {
        let vertex = match base {
            None => None,
            base => self.mounted(at, base)?.0,
        };
        let id = match draft.id.as_ref().filter(|id| !id.is_empty()) {
            Some(id) => id.clone(),
            None => clean(&draft.target),
        };
        let namespace = self.request.build_args.get("BUILDKIT_CACHE_MOUNT_NS");
        let namespace = namespace.map(String::as_str).unwrap_or_default();
        let kind = MountKind::Cache(CacheMount {
            id: format!("{namespace}/{id}"),
            input: vertex.map(|vertex| input(inputs, vertex)),
            source: beneath(draft.source.as_deref()),
            sharing: draft.sharing.unwrap_or_default(),
            mode: draft.mode.unwrap_or(CACHE_MODE),
            uid: draft.uid.unwrap_or(0),
            gid: draft.gid.unwrap_or(0),
            read_only: draft.read_only == Some(true),
        });
        Ok(Mount { target, kind })
    }

    /// The vertex that `from` names, and what may not be seen of it; none for a stage without files.
    fn mounted(
        &mut self,
        (plan, step): (&StagePlan<'_>, &Step<'_>),
        base: Option<&Base>,
    ) -> Outcome<(Option<VertexIndex>, Vec<String>)> {
        match base {
            Some(Base::Scratch) => Ok((None, Vec::new())),
            Some(Base::Stage(index)) if self.roots[index].is_none() => Ok((None, Vec::new())),
            base => {
                let (vertex, ignore) = self.source_vertex(plan, step, base)?;
                Ok((Some(vertex), ignore))
            }
        }
    }

    /// Where a field stands, if it is written as it is read; else where its flag does.
    fn field_span(&self, step: &Step<'_>, flag: &Flag, field: &Field) -> Span {
        let written = step.text.get(flag.span.range()).unwrap_or_default();
        match written.find(&field.text) {
            Some(at) if !field.text.is_empty() => {
                let start = flag.span.start + at;
                Span::new(start, start + field.text.len())
            }
            _ => flag.span,
        }
    }
}

fn secret(draft: &Draft, target: &str, digests: &BTreeMap<String, [u8; 32]>) -> Mount {
    let id = draft.secret_id().to_owned();
    let content = digests.get(&id).copied();
    let target = match (&draft.env, draft.target.as_str()) {
        (Some(_), "") => String::new(),
        (None, "") => {
            let base = id.trim_end_matches('/');
            let base = base.rsplit('/').next().unwrap_or_default();
            format!("/run/secrets/{base}")
        }
        _ => target.to_owned(),
    };
    let kind = MountKind::Secret(SecretMount {
        id,
        env: draft.env.clone(),
        required: draft.required,
        mode: draft.mode.unwrap_or(SECRET_MODE),
        uid: draft.uid.unwrap_or(0),
        gid: draft.gid.unwrap_or(0),
        content,
    });
    Mount { target, kind }
}

fn ssh(draft: &Draft, target: String, before: &[Mount]) -> Mount {
    let agents = before.iter();
    let agents = agents.filter(|mount| matches!(mount.kind, MountKind::Ssh(_)));
    let target = match draft.target.as_str() {
        "" => format!("{SSH_TARGET}.{}", agents.count()),
        _ => target,
    };
    let id = draft.id.clone().filter(|id| !id.is_empty());
    let kind = MountKind::Ssh(SshMount {
        id: id.unwrap_or_else(|| "default".to_owned()),
        required: draft.required,
        mode: draft.mode.unwrap_or(SSH_MODE),
        uid: draft.uid.unwrap_or(0),
        gid: draft.gid.unwrap_or(0),
    });
    Mount { target, kind }
}

/// A path below a root, cleaned; `/` for all of it.
fn beneath(source: Option<&str>) -> String {
    absolute("/", source.unwrap_or_default())
}

/// The position of `vertex` among the inputs, where it is added if it is not one yet.
fn input(inputs: &mut Vec<VertexIndex>, vertex: VertexIndex) -> usize {
    inputs
        .iter()
        .position(|&known| known == vertex)
        .unwrap_or_else(|| {
            inputs.push(vertex);
            inputs.len() - 1
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_csv() {
        let check = |text: &str, expect: Result<&[&str], &str>| {
            let found = fields(text);
            let found = found.map(|f| f.into_iter().map(|f| f.text).collect::<Vec<_>>());
            let expect = expect.map(|f| f.iter().map(|&f| f.to_owned()).collect::<Vec<_>>());
            assert_eq!(found, expect, "{text}");
        };
        check("type=bind,target=/a", Ok(&["type=bind", "target=/a"]));
        check(
            r#"type=bind,"source=a,b",target=/a"#,
            Ok(&["type=bind", "source=a,b", "target=/a"]),
        );
        check(r#""id=say ""hi""""#, Ok(&[r#"id=say "hi""#]));
        check("", Ok(&[""]));
        check("a,", Ok(&["a", ""]));
        check(r#"id="x""#, Err("a quote stands in the middle of a field"));
        check(r#""id=x"#, Err("a quoted field does not end"));
        check(
            r#""id=x"y"#,
            Err("something follows the closing quote of a field"),
        );
    }

    #[test]
    fn a_secret_is_called_by_what_names_it() {
        let check = |source: Option<&str>, id: Option<&str>, target: &str, expect: &str| {
            let draft = Draft {
                source: source.map(str::to_owned),
                id: id.map(str::to_owned),
                target: target.to_owned(),
                ..Draft::default()
            };
            assert_eq!(draft.secret_id(), expect);
        };
        check(None, Some("a"), "/x/b", "a");
        check(Some("a"), None, "", "a");
        check(None, None, "/x/b", "b");
        check(None, None, "/x/b/", "b");
        check(None, None, "", "");
    }
}
