//! What stages stand on.

use std::collections::BTreeSet;

use super::super::{Rule, Subject};
use crate::dockerfile::Diagnostic;
use crate::dockerfile::ast::From;
use crate::lower::GlobalArgs;

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    let globals = GlobalArgs::new(subject.dockerfile, subject.build_args);
    let mut names = BTreeSet::new();
    for (_, _, from) in subject.froms() {
        let image = globals.expand(&from.image.text);
        found.extend(unpinned(from, &image, &names));
        let name = from.name.as_ref().map(|name| name.text.to_lowercase());
        names.extend(name);
    }
}

fn unpinned(from: &From, image: &str, stages: &BTreeSet<String>) -> Option<Diagnostic> {
    if image == "scratch" || image.is_empty() || stages.contains(image) || image.contains('@') {
        return None;
    }
    let last = image.rsplit('/').next().unwrap_or(image);
    let tag = last.split_once(':').map(|(_, tag)| tag);
    let message = match tag {
        None => format!("the image `{image}` has no tag: tomorrow it may be another one"),
        Some("latest") => format!("the image `{image}` may be another one tomorrow"),
        Some(_) => return None,
    };
    let finding = Rule::UnpinnedBaseImage.at(from.image.span, message);
    Some(finding.help("a version, as in `debian:13`, or a digest"))
}
