//! Which stages can be built.

use serde::Serialize;

use super::Location;
use crate::checks::descriptions::Comments;
use crate::dockerfile::{Dockerfile, InstructionKind, SourceFile};

/// The answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct List {
    /// The stages, in order.
    pub targets: Vec<Target>,
    /// The Dockerfile, in base64.
    pub sources: Vec<String>,
}

/// A stage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Target {
    /// Its name in lower case; empty if it has none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Whether it is built if none is asked for.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub default: bool,
    /// What the comment above it says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// What it stands on, as it is written.
    pub base: String,
    /// Its `--platform`, as it is written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub platform: Option<String>,
    /// Its `FROM`.
    pub location: Location,
}

/// Lists the stages of a Dockerfile that was parsed without errors.
pub fn targets(dockerfile: &Dockerfile, source: &SourceFile) -> List {
    let comments = Comments::new(dockerfile, source);
    let last = dockerfile.stages.len().saturating_sub(1);
    let target = |(index, stage): (usize, &crate::dockerfile::Stage)| {
        let instruction = &dockerfile.instructions[stage.from];
        let InstructionKind::From(from) = &instruction.kind else {
            return None;
        };
        let name = from.name.as_ref().map(|name| name.text.to_lowercase());
        Some(Target {
            description: name
                .as_deref()
                .and_then(|name| comments.description(stage.from, name)),
            name: name.unwrap_or_default(),
            default: index == last,
            base: from.image.text.clone(),
            platform: instruction
                .flag("platform")
                .and_then(|flag| flag.value.clone()),
            location: Location::new(source, instruction.head),
        })
    };
    List {
        targets: dockerfile
            .stages
            .iter()
            .enumerate()
            .filter_map(target)
            .collect(),
        sources: vec![super::encoded(source)],
    }
}
