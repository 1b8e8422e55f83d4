//! Rules about the names of stages.

use std::collections::BTreeMap;

use super::{Rule, Subject};
use crate::dockerfile::Diagnostic;

/// Names that `FROM` and `--from` take for something else.
const RESERVED: [&str; 2] = ["scratch", "context"];

pub(super) fn check(subject: &Subject<'_>, found: &mut Vec<Diagnostic>) {
    let every = (0..subject.dockerfile.stages.len()).collect();
    let whole = Subject {
        stages: &every,
        ..*subject
    };
    let mut first = BTreeMap::new();
    for (index, _, from) in whole.froms() {
        let Some(name) = &from.name else { continue };
        let lower = name.text.to_lowercase();
        let earlier = *first.entry(lower.clone()).or_insert(name.span);
        if !subject.stages.contains(&index) {
            continue;
        }
        if earlier != name.span {
            let message = format!("there are several stages named `{lower}`");
            let finding = Rule::DuplicateStageName.at(name.span, message);
            found.push(finding.label(earlier, "the first one"));
        }
        if RESERVED.contains(&lower.as_str()) {
            let message = format!("the name `{lower}` is reserved: it cannot be referred to");
            found.push(Rule::ReservedStageName.at(name.span, message));
        }
    }
}
