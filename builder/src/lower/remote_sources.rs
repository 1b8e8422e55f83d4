//! `ADD` of URLs and git repositories: what is fetched, and what of it is copied.
//!
//! A file is copied under its own name or as the destination says, as a file of the context would be; of a repository,
//! the contents of its root (or of the folder that its URL names) are.

use store::oci::{Digest, DigestAlgorithm};

use super::copy::is_set;
use super::sources::file_name;
use super::stages::Step;
use super::{Lowering, Outcome};
use crate::contexts::git_url::{GitUrl, check_commit, is_git_url, is_http_url, without_password};
use crate::dockerfile::{Diagnostic, Span, Word};
use crate::graph::{GitOp, HttpOp, Op, OpMetadata, VertexIndex};

/// A source of `ADD` that has to be fetched.
pub(super) struct RemoteSource {
    pub(super) vertex: VertexIndex,
    /// What is copied of its result.
    pub(super) pattern: String,
    /// Whether it is a file, which may be an archive.
    pub(super) is_file: bool,
}

/// What a source is, if it is not a path.
pub(super) fn remote_kind(source: &str) -> Option<&'static str> {
    if is_git_url(source) {
        return Some("a git repository");
    }
    is_http_url(source).then_some("a URL")
}

impl Lowering<'_> {
    /// The vertex that fetches `url`, a source for which [`remote_kind`] says something. `checksum` is `--checksum`.
    pub(super) fn remote_source(
        &mut self,
        step: &Step<'_>,
        word: &Word,
        url: &str,
        checksum: Option<&str>,
    ) -> Outcome<RemoteSource> {
        let span = step.at(word.span);
        let flag = |name: &str| {
            let flag = step.instruction.flag(name);
            step.at(flag.map_or(step.instruction.head, |flag| flag.span))
        };
        if is_git_url(url) {
            let op = self.add_git(step, span, flag("checksum"), url, checksum)?;
            let vertex = self.add_remote(span, &op.url.to_string(), Op::Git(op));
            return Ok(RemoteSource {
                vertex,
                pattern: "/".to_owned(),
                is_file: false,
            });
        }
        let checksum = match checksum {
            Some(text) => Some(self.file_checksum(flag("checksum"), text)?),
            None => None,
        };
        let name = file_name(url);
        let pattern = format!("/{}", literal(&name));
        let op = HttpOp {
            url: url.to_owned(),
            name,
            checksum,
        };
        Ok(RemoteSource {
            vertex: self.add_remote(span, &without_password(url), Op::Http(op)),
            pattern,
            is_file: true,
        })
    }

    fn add_git(
        &mut self,
        step: &Step<'_>,
        span: Span,
        checksum_span: Span,
        url: &str,
        checksum: Option<&str>,
    ) -> Outcome<GitOp> {
        let mut url = match GitUrl::parse(url) {
            Ok(url) => url,
            Err(error) => return self.refuse(Diagnostic::error(span, error.to_string())),
        };
        if let Some(text) = checksum {
            if let Err(error) = check_commit(text) {
                return self.refuse(Diagnostic::error(checksum_span, error.to_string()));
            }
            if let Some(other) = url.checksum.as_ref().filter(|other| *other != text) {
                let message =
                    format!("the URL asks for the commit `{other}`, `--checksum` for `{text}`");
                return self.refuse(Diagnostic::error(checksum_span, message));
            }
            url.checksum = Some(text.to_owned());
        }
        let keep = is_set(step, "keep-git-dir");
        Ok(GitOp {
            keep_git_dir: keep.or(url.keep_git_dir).unwrap_or(false),
            submodules: url.submodules.unwrap_or(true),
            url,
        })
    }

    /// `--checksum` of a file: its SHA-256.
    fn file_checksum(&mut self, span: Span, text: &str) -> Outcome<Digest> {
        let example = "as in `--checksum=sha256:0123…`, 64 hexadecimal digits";
        let diagnostic = match text.parse::<Digest>() {
            Ok(digest) if digest.algorithm() == DigestAlgorithm::Sha256 => return Ok(digest),
            Ok(digest) => {
                let algorithm = digest.algorithm();
                let message =
                    format!("unsupported checksum algorithm `{algorithm}`: expected `sha256`");
                Diagnostic::error(span, message)
            }
            Err(_) if !text.contains(':') => {
                let message = format!("the checksum `{text}` names no algorithm");
                Diagnostic::error(span, message)
            }
            Err(error) => Diagnostic::error(span, format!("invalid checksum: {error}")),
        };
        self.refuse(diagnostic.help(example))
    }

    fn add_remote(&mut self, span: Span, name: &str, op: Op) -> VertexIndex {
        let meta = OpMetadata {
            name: format!("[internal] fetch {name}"),
            line: self.request.source.line(span.start),
            span: span.range(),
            no_cache: false,
        };
        self.definition.add(op, Vec::new(), meta)
    }
}

/// A name as a pattern that matches nothing else.
fn literal(name: &str) -> String {
    let mut pattern = String::with_capacity(name.len());
    for c in name.chars() {
        if matches!(c, '*' | '?' | '[' | '\\') {
            pattern.push('\\');
        }
        pattern.push(c);
    }
    pattern
}
