//! Sources of files as vertices: the main context, named contexts, stages and images.
//!
//! `stages` has found what each name stands for. A vertex is added when something reads it, so a context that nothing
//! reads does not exist.

use super::stages::{Base, StagePlan, Step};
use super::{Lowering, Outcome, StageState, full_name};
use crate::contexts::NamedContext;
use crate::contexts::git_url::{GitUrl, percent_decoded};
use crate::dockerfile::Diagnostic;
use crate::graph::{
    ContextOp, CopyAction, CopySource, FileAction, FileOp, GitOp, HttpOp, Op, OpMetadata,
    VertexIndex,
};

/// The name of a downloaded file whose URL has none.
const UNNAMED: &str = "__unnamed__";

impl Lowering<'_> {
    /// The vertex that a copy or a mount reads, and the patterns of what it may not see of it. No base is the main
    /// context.
    pub(super) fn source_vertex(
        &mut self,
        plan: &StagePlan<'_>,
        step: &Step<'_>,
        base: Option<&Base>,
    ) -> Outcome<(VertexIndex, Vec<String>)> {
        match base {
            None => Ok((self.main_context(), self.request.ignore.clone())),
            Some(Base::Context(key)) => {
                let meta = internal(format!("[context {key}] {}", self.context_place(key)));
                Ok(self.context_vertex(key, meta))
            }
            Some(Base::Stage(index)) => match self.roots[index] {
                Some(root) => Ok((root, Vec::new())),
                None => {
                    let span = step.instruction.flag("from").map(|flag| flag.span);
                    let span = step.at(span.unwrap_or(step.instruction.head));
                    let message = "there is nothing to copy: that stage has no files";
                    self.refuse(
                        Diagnostic::error(span, message).label(plan.from, "copied to this stage"),
                    )
                }
            },
            Some(Base::Image(request)) => {
                let Some(image) = self.request.images.get(request.as_ref()) else {
                    // Only a survey comes here: nothing is going to be copied.
                    return Ok((self.main_context(), Vec::new()));
                };
                let span = step.at(step.instruction.head);
                let meta = OpMetadata {
                    name: format!("FROM {}", full_name(image)),
                    line: self.request.source.line(span.start),
                    span: span.range(),
                    no_cache: false,
                };
                Ok((self.image(image, meta), Vec::new()))
            }
            Some(Base::Scratch) => {
                let span = step.at(step.instruction.head);
                self.refuse(Diagnostic::error(
                    span,
                    "there is nothing to copy in `scratch`",
                ))
            }
        }
    }

    fn main_context(&mut self) -> VertexIndex {
        let meta = internal("[internal] load build context".to_owned());
        let op = match &self.request.fetched {
            Some(tree) => Op::Tree(tree.clone()),
            None => Op::Context(ContextOp {
                name: "context".to_owned(),
            }),
        };
        self.definition.add(op, Vec::new(), meta)
    }

    /// A stage that begins with a named context: its files and nothing else.
    pub(super) fn context_base(&mut self, plan: &StagePlan<'_>, key: &str) -> StageState {
        let mut state = StageState::scratch(&plan.platform);
        let name = format!("FROM {key} ({})", self.context_place(key));
        let meta = self.metadata(plan.from, name, &mut state, Some(plan));
        let is_folder = matches!(self.request.contexts[key], NamedContext::Folder { .. });
        let vertex = if is_folder {
            let place = format!("[context {key}] {}", self.context_place(key));
            let (folder, ignore) = self.context_vertex(key, internal(place));
            let copy = CopyAction {
                sources: vec![CopySource {
                    input: 0,
                    pattern: "/".to_owned(),
                    ignore,
                    ..CopySource::default()
                }],
                dest: "/".to_owned(),
                ..CopyAction::default()
            };
            let op = Op::File(FileOp {
                on_base: false,
                actions: vec![FileAction::Copy(copy)],
            });
            self.definition.add(op, vec![folder], meta)
        } else {
            self.context_vertex(key, meta).0
        };
        state.root = Some(vertex);
        state.record(format!("FROM {key}"), Some(vertex));
        state
    }

    /// The vertex of a context that brings files of its own, and the patterns of its ignore file.
    fn context_vertex(&mut self, key: &str, meta: OpMetadata) -> (VertexIndex, Vec<String>) {
        let (op, ignore) = match &self.request.contexts[key] {
            NamedContext::Folder { ignore, .. } => (
                Op::Context(ContextOp {
                    name: key.to_owned(),
                }),
                ignore.clone(),
            ),
            NamedContext::Git(url) => (Op::Git(self.git_op(url.clone())), Vec::new()),
            NamedContext::Http(url) => {
                let op = HttpOp {
                    url: url.clone(),
                    name: file_name(url),
                    checksum: None,
                };
                (Op::Http(op), Vec::new())
            }
            NamedContext::Image(_)
            | NamedContext::Scratch
            | NamedContext::Layout(_)
            | NamedContext::Stage(_) => {
                unreachable!("`stages` makes images and stages of these")
            }
        };
        (self.definition.add(op, Vec::new(), meta), ignore)
    }

    /// A commit with all that its URL leaves open decided: a context keeps `.git` where the build asks for it.
    fn git_op(&self, url: GitUrl) -> GitOp {
        let asked = self.request.build_args.get(KEEP_GIT_DIR);
        GitOp {
            keep_git_dir: context_keeps_git_dir(&url, asked.map(String::as_str)),
            submodules: url.submodules.unwrap_or(true),
            url,
        }
    }

    fn context_place(&self, key: &str) -> String {
        match &self.request.contexts[key] {
            NamedContext::Folder { path, .. } => path.display().to_string(),
            NamedContext::Git(url) => url.to_string(),
            NamedContext::Http(url) => url.clone(),
            _ => String::new(),
        }
    }
}

/// The build argument that keeps `.git` in contexts that are repositories.
pub const KEEP_GIT_DIR: &str = "BUILDKIT_CONTEXT_KEEP_GIT_DIR";

/// Whether a context that is a repository keeps its `.git`: its URL decides, then the build argument.
pub(crate) fn context_keeps_git_dir(url: &GitUrl, asked: Option<&str>) -> bool {
    url.keep_git_dir.unwrap_or(asked.is_some_and(is_true))
}

/// Whether a build argument that is a switch is on.
pub(crate) fn is_true(value: &str) -> bool {
    matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True")
}

fn internal(name: String) -> OpMetadata {
    OpMetadata {
        name,
        ..OpMetadata::default()
    }
}

/// The last component of a URL's path.
pub(crate) fn file_name(url: &str) -> String {
    let path = url.split(['?', '#']).next().unwrap_or_default();
    let path = path.split_once("://").map_or(path, |(_, rest)| rest);
    let path = path.split_once('/').map_or("", |(_, path)| path);
    match percent_decoded(path).rsplit('/').next().unwrap_or_default() {
        "" | "." | ".." => UNNAMED.to_owned(),
        name => name.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_downloads() {
        let check = |url: &str, expect: &str| assert_eq!(file_name(url), expect, "{url}");
        check("http://h/a/b.tar.gz", "b.tar.gz");
        check("http://h/a/b?x=/y#z/w", "b");
        check("http://h/a/", "__unnamed__");
        check("http://h/", "__unnamed__");
        check("http://h", "__unnamed__");
        check("http://h/a/..", "__unnamed__");
        check("http://h/a%20b+c%2", "a b+c%2");
        check("http://h/a%2Fb", "b");
    }
}
