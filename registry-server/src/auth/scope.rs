//! Scopes of bearer tokens, as docker's token specification has them, pure: `repository:team/app:pull,push`.

use std::collections::BTreeSet;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::policy::Action;
use crate::routes::RepositoryName;

/// Most scopes that one request for a token may have; a push that mounts from everywhere has a handful.
pub const SCOPES_MAX: usize = 64;

/// The name of the one resource of type `registry`.
const CATALOG: &str = "catalog";

/// What a token gives, or is to give: one entry of its `access` claim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// `repository` or `registry`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The repository's name, or `catalog`.
    pub name: String,
    /// What may be done to it; `*` is everything.
    pub actions: BTreeSet<String>,
}

impl Grant {
    /// Actions on a repository.
    pub fn repository(name: &RepositoryName, actions: impl IntoIterator<Item = Action>) -> Grant {
        Grant {
            kind: "repository".to_owned(),
            name: name.to_string(),
            actions: actions
                .into_iter()
                .map(|action| action.name().to_owned())
                .collect(),
        }
    }

    /// Listing the repositories.
    pub fn catalog() -> Grant {
        Grant {
            kind: "registry".to_owned(),
            name: CATALOG.to_owned(),
            actions: ["*".to_owned()].into(),
        }
    }

    /// The repository that it is about, if it is about one.
    pub fn target(&self) -> Option<RepositoryName> {
        // `repository(plugin)` is docker's word for those of its plugins.
        let kind = self.kind.split('(').next();
        (kind == Some("repository"))
            .then(|| RepositoryName::parse(&self.name).ok())
            .flatten()
    }

    /// Whether it is about listing the repositories.
    pub fn is_catalog(&self) -> bool {
        self.kind == "registry" && self.name == CATALOG
    }

    /// Whether this action is in it.
    pub fn has(&self, action: Action) -> bool {
        self.actions.contains(action.name()) || self.actions.contains("*")
    }
}

impl fmt::Display for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Pull before push, which clients have always been told.
        let mut actions: Vec<&str> = self.actions.iter().map(String::as_str).collect();
        let place = |name: &str| Action::ALL.iter().position(|action| action.name() == name);
        actions.sort_by_key(|name| place(name).unwrap_or(Action::ALL.len()));
        write!(f, "{}:{}:{}", self.kind, self.name, actions.join(","))
    }
}

/// Reads scopes, each of which may be several, set apart by spaces. What makes no sense gives nothing, and is left out; names
/// may hold colons, as those of ports do.
pub fn parse_scopes<'a>(texts: impl Iterator<Item = &'a str>) -> Vec<Grant> {
    let words = texts.flat_map(str::split_ascii_whitespace);
    let parsed = words.filter_map(|word| {
        let (kind, rest) = word.split_once(':')?;
        let (name, actions) = rest.rsplit_once(':')?;
        let actions = actions.split(',').filter(|action| !action.is_empty());
        Some(Grant {
            kind: kind.to_owned(),
            name: name.to_owned(),
            actions: actions.map(str::to_owned).collect(),
        })
    });
    parsed.take(SCOPES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(texts: &[&str], expected: &[&str]) {
        let parsed = parse_scopes(texts.iter().copied());
        let shown: Vec<String> = parsed.iter().map(Grant::to_string).collect();
        assert_eq!(shown, expected, "{texts:?}");
    }

    #[test]
    fn reads_scopes() {
        check(&["repository:a/b:pull"], &["repository:a/b:pull"]);
        check(
            &[
                "repository:a:push,pull repository:b:pull",
                "registry:catalog:*",
            ],
            &[
                "repository:a:pull,push",
                "repository:b:pull",
                "registry:catalog:*",
            ],
        );
        check(&["repository:h:5000/a:pull"], &["repository:h:5000/a:pull"]);
        check(&["", "x", "repository:a", "   "], &[]);
        check(&["repository:a:"], &["repository:a:"]);
        let many = "repository:a:pull ".repeat(SCOPES_MAX + 9);
        assert_eq!(parse_scopes([many.as_str()].into_iter()).len(), SCOPES_MAX);
    }

    #[test]
    fn tells_what_it_is_about() {
        let of = |text: &str| parse_scopes([text].into_iter()).remove(0);
        let name = RepositoryName::parse("a/b").unwrap();
        assert_eq!(of("repository:a/b:pull").target(), Some(name.clone()));
        assert_eq!(of("repository(plugin):a/b:pull").target(), Some(name));
        assert_eq!(of("repository:A:pull").target(), None);
        assert_eq!(of("registry:a:pull").target(), None);
        assert!(of("registry:catalog:*").is_catalog());
        assert!(of("repository:a:*").has(Action::Delete));
        assert!(!of("repository:a:pull").has(Action::Push));
    }
}
