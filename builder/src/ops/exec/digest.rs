//! The digests of what mounts show, which a step's slow key is made of.

use std::os::fd::AsFd;

use super::super::tree::{Meta, Place};
use super::super::{Operations, Tree};
use crate::cache::content_hash::selected_digest;
use crate::error::StepError;
use crate::graph::op::Encoder;
use crate::graph::{CopySource, ExecOp, Op};

/// Version of the encoding; a change of meaning gets a new one.
const DOMAIN: &[u8] = b"longshore mounted content 1";

/// Digests what each mount of `exec` shows of an input, in order of the mounts.
pub(crate) fn digest_mounted(
    operations: &Operations<'_>,
    vertex: usize,
    exec: &ExecOp,
) -> Result<Vec<[u8; 32]>, StepError> {
    let inputs = &operations.vertex(vertex).inputs;
    let mut lists = Vec::new();
    let digests = exec
        .selections()
        .map(|(input, path, ignore)| {
            let source = CopySource {
                input,
                pattern: literal(path),
                ignore: ignore.to_vec(),
                ..CopySource::default()
            };
            let input = inputs[input].0;
            if let Op::Context(context) = &operations.vertex(input).op {
                let tree = Tree::Context(&operations.contexts[&context.name]);
                let (content, list) = selected_digest(tree, &source, operations.abort.flag())?;
                lists.push(list);
                return Ok(content);
            }
            let view = operations.view(input)?;
            let tree = Tree::Layers(view.as_fd(), &operations.layer_hashes);
            let (content, list) = selected_digest(tree, &source, operations.abort.flag())?;
            lists.push(list);
            with_top(tree, path, content)
        })
        .collect::<Result<_, StepError>>()?;
    operations.keep_lists(vertex, lists);
    Ok(digests)
}

/// Adds the mode and owner of what is mounted itself, which a copy would not show.
fn with_top(tree: Tree<'_>, path: &str, content: [u8; 32]) -> Result<[u8; 32], StepError> {
    let file_error = |error| StepError::from(crate::ops::FileOpError::from(error));
    let meta = match tree.resolve(path.as_bytes()).map_err(file_error)? {
        Some(Place::Entry(listing, index)) => Some(listing.entries[index].meta),
        Some(Place::Root) => Meta::of_file(&tree.root()).ok(),
        None => None,
    };
    let mut sink = Encoder::new(DOMAIN);
    sink.bytes(&content);
    if let Some(meta) = meta {
        sink.number(u64::from(meta.mode));
        sink.number(u64::from(meta.uid));
        sink.number(u64::from(meta.gid));
    }
    Ok(sink.finish())
}

/// A pattern that stands for exactly this path.
pub(super) fn literal(path: &str) -> String {
    let mut pattern = String::with_capacity(path.len());
    for char in path.chars() {
        if matches!(char, '*' | '?' | '[' | '\\') {
            pattern.push('\\');
        }
        pattern.push(char);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn literals() {
        assert_eq!(literal("/a/b"), "/a/b");
        assert_eq!(literal("/a*?[b]\\"), "/a\\*\\?\\[b]\\\\");
    }
}
