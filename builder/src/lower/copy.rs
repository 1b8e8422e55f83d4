//! `COPY`, `ADD` and `WORKDIR`: changes to files.

use super::remote_sources::remote_kind;
use super::run::strip_tabs;
use super::stages::{StagePlan, Step};
use super::{Lowering, Outcome, StageState};
use crate::checks::values;
use crate::dockerfile::ast::{Copy, Heredoc};
use crate::dockerfile::ignore::{IgnoreMatcher, clean, read_pattern};
use crate::dockerfile::{Diagnostic, Span, Word, words};
use crate::graph::mode::{ModeChange, ModeError};
use crate::graph::{
    ChownSpec, CopyAction, CopySource, Document, FileAction, FileOp, MkdirAction, Op, OpMetadata,
    VertexIndex,
};
use crate::ops::file::names_accounts;

/// Mode of a directory that `WORKDIR` makes.
const WORKDIR_MODE: u32 = 0o755;

/// What the flags of a copy say, expanded.
struct Flags {
    chown: Option<String>,
    chmod: Option<String>,
    checksum: Option<String>,
    exclude: Vec<String>,
    link: bool,
    parents: bool,
    /// `--unpack`, if it is given.
    unpack: Option<bool>,
}

impl Lowering<'_> {
    pub(super) fn copy(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        copy: &Copy,
        is_add: bool,
    ) -> Outcome {
        let keyword = if is_add { "ADD" } else { "COPY" };
        let flags = self.copy_flags(state, step)?;
        let chmod = self.mode(step, flags.chmod.as_deref())?;
        let dest = self.expand(state, step, &copy.dest)?.text;
        let on_base = state.root.is_some() && !flags.link;
        let mut inputs = Inputs {
            below: usize::from(on_base),
            vertices: Vec::new(),
        };
        if flags.checksum.is_some() && copy.sources.len() > 1 {
            let message = "`--checksum` is for a single source";
            return self.refuse(Diagnostic::error(self.flag_span(step, "checksum"), message));
        }
        let mut shown = Vec::new();
        let mut sources = Vec::new();
        for word in &copy.sources {
            let path = self.expand(state, step, word)?.text;
            sources.push(self.source(plan, step, word, &path, is_add, &flags, &mut inputs)?);
            shown.push(path);
        }
        let documents = self.documents(state, step)?;
        shown.extend(
            documents
                .iter()
                .map(|document| format!("<<{}", document.name)),
        );
        let mut created_by = keyword.to_owned();
        if flags.parents {
            created_by += " --parents";
        }
        for (name, value) in [("chown", &flags.chown), ("chmod", &flags.chmod)] {
            if let Some(value) = value {
                created_by += &format!(" --{name}={value}");
            }
        }
        created_by += &format!(" {} {dest} # buildkit", shown.join(" "));
        let action = FileAction::Copy(CopyAction {
            sources,
            documents,
            dest: destination(state.cwd(), &dest),
            chown: flags.chown.map(|text| ChownSpec { text }),
            chmod,
        });
        let vertex = match flags.link {
            false => self.file(state, plan, step, action, inputs.vertices),
            true => self.link(state, plan, step, action, inputs.vertices),
        };
        state.record(created_by, Some(vertex));
        Ok(())
    }

    fn copy_flags(&mut self, state: &StageState, step: &Step<'_>) -> Outcome<Flags> {
        let link = is_set(step, "link") == Some(true);
        let chown = self.expand_flag(state, step, "chown")?;
        let chown = chown.filter(|text| !text.is_empty());
        if let Some(chown) = &chown
            && link
            && names_accounts(chown)
        {
            let message = format!(
                "`--link` cannot look up `{chown}`: its layer is made without the base image"
            );
            return self.refuse(
                Diagnostic::error(self.flag_span(step, "chown"), message)
                    .help("numbers need no looking up, as in `--chown=1000:1000`"),
            );
        }
        let mut exclude = Vec::new();
        for flag in step
            .instruction
            .flags
            .iter()
            .filter(|flag| flag.name == "exclude")
        {
            let pattern = flag.value.as_deref().unwrap_or_default();
            if let Err(error) = IgnoreMatcher::new(&[pattern]) {
                let message = format!("`--exclude`: {error}");
                return self.refuse(Diagnostic::error(step.at(flag.span), message));
            }
            exclude.push(read_pattern(pattern));
        }
        let chmod = self.expand_flag(state, step, "chmod")?;
        Ok(Flags {
            chown,
            chmod: chmod.filter(|text| !text.is_empty()),
            checksum: self.expand_flag(state, step, "checksum")?,
            exclude,
            link,
            parents: is_set(step, "parents") == Some(true),
            unpack: is_set(step, "unpack"),
        })
    }

    fn flag_span(&self, step: &Step<'_>, name: &str) -> Span {
        let span = step.instruction.flag(name).map(|flag| flag.span);
        step.at(span.unwrap_or(step.instruction.head))
    }

    fn mode(&mut self, step: &Step<'_>, chmod: Option<&str>) -> Outcome<Option<ModeChange>> {
        match chmod.map(str::parse).transpose() {
            Ok(mode) => Ok(mode),
            Err(error) => {
                let error: ModeError = error;
                let diagnostic =
                    Diagnostic::error(self.flag_span(step, "chmod"), error.to_string());
                self.refuse(diagnostic.help("as in `--chmod=755` or `--chmod=u=rwX,go=rX`"))
            }
        }
    }

    /// What one source word stands for; the vertex that it is read from joins `inputs`.
    #[expect(clippy::too_many_arguments, reason = "the parts of one instruction")]
    fn source(
        &mut self,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        word: &Word,
        path: &str,
        is_add: bool,
        flags: &Flags,
        inputs: &mut Inputs,
    ) -> Outcome<CopySource> {
        if let Some(kind) = remote_kind(path) {
            if is_add {
                let checksum = flags.checksum.as_deref();
                let remote = self.remote_source(step, word, path, checksum)?;
                return Ok(CopySource {
                    input: inputs.number(remote.vertex),
                    pattern: remote.pattern,
                    ignore: Vec::new(),
                    exclude: flags.exclude.clone(),
                    parents: flags.parents,
                    unpack: remote.is_file && flags.unpack == Some(true),
                });
            }
            let message = format!("`COPY` cannot copy {kind}: `{path}`");
            let diagnostic = Diagnostic::error(step.at(word.span), message);
            return self.refuse(diagnostic.help("`ADD` can"));
        }
        if flags.checksum.is_some() {
            let message =
                format!("`--checksum` is for a URL or a git repository, not for `{path}`");
            let diagnostic = Diagnostic::error(self.flag_span(step, "checksum"), message);
            return self
                .refuse(diagnostic.label(step.at(word.span), "a path of the build context"));
        }
        let (vertex, ignore) = self.source_vertex(plan, step, step.from.as_ref())?;
        if step.from.is_none() {
            let keyword = if is_add { "ADD" } else { "COPY" };
            let finding = values::ignored_source(keyword, path, &ignore, step.at(word.span));
            self.diagnostics.extend(finding);
        }
        Ok(CopySource {
            input: inputs.number(vertex),
            pattern: path.to_owned(),
            ignore,
            exclude: flags.exclude.clone(),
            parents: flags.parents,
            unpack: is_add && flags.unpack != Some(false),
        })
    }

    /// The here-documents of a copy.
    fn documents(&mut self, state: &StageState, step: &Step<'_>) -> Outcome<Vec<Document>> {
        let mut documents = Vec::new();
        for heredoc in &step.instruction.heredocs {
            let name = heredoc.name.strip_prefix('/').unwrap_or(&heredoc.name);
            if name.contains('/') || matches!(name, "" | "." | "..") {
                let message = format!("`{}` names a file, so it cannot be a path", heredoc.name);
                return self.refuse(Diagnostic::error(step.at(heredoc.word), message).help(
                    "a here-document is a file of the name that ends it; put folders into the destination",
                ));
            }
            let body = &step.text[heredoc.body.range()];
            let body = match heredoc.strip_tabs {
                true => strip_tabs(body),
                false => body.to_owned(),
            };
            let content = match heredoc.expand {
                true => self.expand_document(state, step, &body, heredoc)?,
                false => body,
            };
            documents.push(Document {
                name: name.to_owned(),
                content,
            });
        }
        Ok(documents)
    }

    fn expand_document(
        &mut self,
        state: &StageState,
        step: &Step<'_>,
        body: &str,
        heredoc: &Heredoc,
    ) -> Outcome<String> {
        let span = step.at(heredoc.word);
        match words::expand_document(body, &|name| state.scope.value(name)) {
            Ok(expanded) => {
                self.check_unset(&state.scope, &expanded, span);
                Ok(expanded.text)
            }
            Err(error) => {
                let name = &heredoc.name;
                let message = format!("cannot expand the here-document `{name}`: {error}");
                let quoted = format!("`<<'{name}'` leaves the text as it stands");
                self.refuse(Diagnostic::error(span, message).help(quoted))
            }
        }
    }

    pub(super) fn workdir(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        path: &Word,
    ) -> Outcome {
        let written = self.expand(state, step, path)?.text;
        if written.is_empty() {
            let message = format!(
                "the path `{}` is empty once its variables are expanded",
                path.text
            );
            return self.refuse(Diagnostic::error(step.at(path.span), message));
        }
        if !std::mem::replace(&mut state.workdir_set, true) {
            let span = step.at(path.span);
            self.diagnostics
                .extend(values::relative_workdir(&written, span));
        }
        let path = absolute(state.cwd(), &written);
        state.config.config.working_dir.clone_from(&path);
        let created_by = format!("WORKDIR {path}");
        if path == "/" {
            // There is no layer, but it was counted among the steps.
            state.step += 1;
            state.record(created_by, None);
            return Ok(());
        }
        let mkdir = FileAction::Mkdir(MkdirAction {
            path,
            mode: WORKDIR_MODE,
            owner: state.config.config.user.clone(),
        });
        let vertex = self.file(state, plan, step, mkdir, Vec::new());
        state.record(created_by, Some(vertex));
        Ok(())
    }

    /// Adds a vertex that changes the stage's files.
    fn file(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        action: FileAction,
        sources: Vec<VertexIndex>,
    ) -> VertexIndex {
        let op = Op::File(FileOp {
            on_base: state.root.is_some(),
            actions: vec![action],
        });
        let inputs = state.root.into_iter().chain(sources).collect();
        let meta = self.step_metadata(state, plan, step);
        let vertex = self.definition.add(op, inputs, meta);
        state.root = Some(vertex);
        vertex
    }

    /// Adds a vertex that knows nothing of the stage's files (`--link`), and puts its layer upon them.
    fn link(
        &mut self,
        state: &mut StageState,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        action: FileAction,
        sources: Vec<VertexIndex>,
    ) -> VertexIndex {
        let op = Op::File(FileOp {
            on_base: false,
            actions: vec![action],
        });
        let meta = self.step_metadata(state, plan, step);
        let keyword = step.instruction.keyword.text.to_uppercase();
        let merged = OpMetadata {
            name: meta.name.replacen(&keyword, &format!("LINK {keyword}"), 1),
            no_cache: false,
            ..meta.clone()
        };
        let layer = self.definition.add(op, sources, meta);
        state.root = Some(match state.root {
            Some(below) => self.definition.add(Op::Merge, vec![below, layer], merged),
            None => layer,
        });
        layer
    }
}

/// The vertices that a copy reads, each once, behind the root file system that it changes.
struct Inputs {
    /// How many inputs stand before them.
    below: usize,
    vertices: Vec<VertexIndex>,
}

impl Inputs {
    /// The number of `vertex` among the inputs.
    fn number(&mut self, vertex: VertexIndex) -> usize {
        let known = self.vertices.iter().position(|known| *known == vertex);
        self.below
            + known.unwrap_or_else(|| {
                self.vertices.push(vertex);
                self.vertices.len() - 1
            })
    }
}

/// What a flag that is on or off says, if it is given.
pub(super) fn is_set(step: &Step<'_>, name: &str) -> Option<bool> {
    let value = step.instruction.flag(name)?.value.as_deref();
    Some(!value.is_some_and(|value| value.eq_ignore_ascii_case("false")))
}

/// A path made absolute by the working directory, and cleaned.
pub(super) fn absolute(cwd: &str, path: &str) -> String {
    match path.starts_with('/') {
        true => clean(path),
        false => clean(&format!("/{cwd}/{path}")),
    }
}

/// The destination of a copy, absolute; ends with `/` if it was written as a directory.
fn destination(cwd: &str, dest: &str) -> String {
    let path = absolute(cwd, dest);
    let is_directory = matches!(dest, "" | "." | "..")
        || dest.ends_with('/')
        || dest.ends_with("/.")
        || dest.ends_with("/..");
    match is_directory && path != "/" {
        true => path + "/",
        false => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        let check =
            |dest: &str, expect: &str| assert_eq!(destination("/w", dest), expect, "{dest}");
        check("/a", "/a");
        check("/a/", "/a/");
        check("/a/.", "/a/");
        check("a", "/w/a");
        check(".", "/w/");
        check("", "/w/");
        check("./", "/w/");
        check("../", "/");
        check("../../x", "/x");
        check("/", "/");
    }
}
