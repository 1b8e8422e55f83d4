//! `COPY`, `ADD` and `WORKDIR`: changes to files.

use super::stages::{StagePlan, Step};
use super::{Lowering, Outcome, StageState};
use crate::dockerfile::ast::{Copy, Flag};
use crate::dockerfile::ignore::clean;
use crate::dockerfile::{Diagnostic, Word};
use crate::graph::{
    ChownSpec, CopyAction, CopySource, FileAction, FileOp, MkdirAction, Op, VertexIndex,
};

/// Mode of a directory that `WORKDIR` makes.
const WORKDIR_MODE: u32 = 0o755;

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
        self.check_copy_flags(step, keyword)?;
        let chown = self.expand_flag(state, step, "chown")?;
        let chmod = self.expand_flag(state, step, "chmod")?;
        let mode = self.mode(step, chmod.as_deref())?;
        let dest = self.expand(state, step, &copy.dest)?.text;
        let mut paths = Vec::new();
        for source in &copy.sources {
            let path = self.expand(state, step, source)?.text;
            self.check_source(step, source, &path, is_add)?;
            paths.push(path);
        }
        let (input, ignore) = self.source_vertex(plan, step, step.from.as_ref())?;
        let on_base = state.root.is_some();
        let action = CopyAction {
            sources: paths
                .iter()
                .map(|pattern| CopySource {
                    input: usize::from(on_base),
                    pattern: pattern.clone(),
                    ignore: ignore.clone(),
                })
                .collect(),
            dest: destination(state.cwd(), &dest),
            chown: chown.clone().map(|text| ChownSpec { text }),
            chmod: mode,
            unpack: is_add && !step.instruction.flag("unpack").is_some_and(is_false),
        };
        let mut created_by = keyword.to_owned();
        if let Some(chown) = &chown {
            created_by += &format!(" --chown={chown}");
        }
        if let Some(chmod) = &chmod {
            created_by += &format!(" --chmod={chmod}");
        }
        created_by += &format!(" {} {dest} # buildkit", paths.join(" "));
        let vertex = self.file(state, plan, step, FileAction::Copy(action), vec![input]);
        state.record(created_by, Some(vertex));
        Ok(())
    }

    fn check_copy_flags(&mut self, step: &Step<'_>, keyword: &str) -> Outcome {
        if let Some(heredoc) = step.instruction.heredocs.first() {
            let message = format!("a here-document in `{keyword}` is not supported yet");
            return self.refuse(Diagnostic::error(step.at(heredoc.word), message));
        }
        for flag in &step.instruction.flags {
            let supported = match flag.name.as_str() {
                "from" | "chown" | "chmod" | "unpack" => true,
                "link" | "parents" | "keep-git-dir" => is_false(flag),
                _ => false,
            };
            if !supported {
                let message = format!("`{keyword} --{}` is not supported yet", flag.name);
                return self.refuse(Diagnostic::error(step.at(flag.span), message));
            }
        }
        Ok(())
    }

    fn mode(&mut self, step: &Step<'_>, chmod: Option<&str>) -> Outcome<Option<u32>> {
        let Some(text) = chmod else {
            return Ok(None);
        };
        let digits =
            |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        let mode = u32::from_str_radix(text, 8)
            .ok()
            .filter(|&mode| mode <= 0o7777);
        let span = step.instruction.flag("chmod").map(|flag| flag.span);
        let span = step.at(span.unwrap_or(step.instruction.head));
        match mode {
            Some(mode) if digits(text) => Ok(Some(mode)),
            None if digits(text) => {
                let message = format!("the mode `{text}` is not an octal number from 0 to 07777");
                self.refuse(Diagnostic::error(span, message))
            }
            _ => {
                let message = format!(
                    "the mode `{text}` is not a number: symbolic modes are not supported yet"
                );
                self.refuse(
                    Diagnostic::error(span, message).help("an octal number, as in `--chmod=755`"),
                )
            }
        }
    }

    fn check_source(&mut self, step: &Step<'_>, word: &Word, path: &str, is_add: bool) -> Outcome {
        let Some(kind) = remote_kind(path) else {
            return Ok(());
        };
        let diagnostic = match is_add {
            true => {
                let message = format!("`ADD` of {kind} is not supported yet: `{path}`");
                Diagnostic::error(step.at(word.span), message)
            }
            false => {
                let message = format!("`COPY` cannot copy {kind}: `{path}`");
                Diagnostic::error(step.at(word.span), message).help("`ADD` can")
            }
        };
        self.refuse(diagnostic)
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
}

fn is_false(flag: &Flag) -> bool {
    flag.value
        .as_deref()
        .is_some_and(|value| value.eq_ignore_ascii_case("false"))
}

/// What a source is, if it is not a path.
fn remote_kind(source: &str) -> Option<&'static str> {
    let lower = source.to_ascii_lowercase();
    let is_http = lower.starts_with("http://") || lower.starts_with("https://");
    let path = lower.split(['#', '?']).next().unwrap_or_default();
    let is_git = lower.starts_with("git://")
        || lower.starts_with("ssh://")
        || lower.starts_with("git@")
        || (is_http && path.ends_with(".git"));
    match (is_git, is_http) {
        (true, _) => Some("a git repository"),
        (false, true) => Some("a URL"),
        (false, false) => None,
    }
}

/// A path made absolute by the working directory, and cleaned.
fn absolute(cwd: &str, path: &str) -> String {
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

    #[test]
    fn remote_sources() {
        let check = |source: &str, expect: Option<&str>| {
            assert_eq!(remote_kind(source), expect, "{source}");
        };
        check("a/b.git", None);
        check("https://e.example/x.tar", Some("a URL"));
        check("https://e.example/x.git#v1", Some("a git repository"));
        check("git@e.example:x", Some("a git repository"));
        check("ssh://git@e.example/x", Some("a git repository"));
    }
}
