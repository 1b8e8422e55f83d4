//! Tags that stay on what they are on: rules, pure.

use store::oci::Digest;
use store::oci::pattern::matches;

use crate::error::{ApiError, ErrorCode};
use crate::routes::RepositoryName;

/// Once such a tag is set, it is neither moved nor removed, nor is what it is on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImmutableRule {
    /// In which repositories, by pattern.
    pub repositories: Vec<String>,
    /// Which tags, by pattern.
    pub tags: Vec<String>,
}

impl ImmutableRule {
    fn is_about(&self, name: &RepositoryName) -> bool {
        let mut patterns = self.repositories.iter();
        patterns.any(|pattern| matches(pattern, name.as_str()))
    }
}

/// Whether a repository may have such tags.
pub(crate) fn any(rules: &[ImmutableRule], name: &RepositoryName) -> bool {
    rules.iter().any(|rule| rule.is_about(name))
}

/// Whether a tag is one.
pub(crate) fn is_immutable(rules: &[ImmutableRule], name: &RepositoryName, tag: &str) -> bool {
    rules
        .iter()
        .any(|rule| rule.is_about(name) && rule.tags.iter().any(|pattern| matches(pattern, tag)))
}

/// That a tag stays where it is.
pub(crate) fn refusal(tag: &str, on: &Digest) -> ApiError {
    ApiError::with(
        ErrorCode::Denied,
        format!("the tag `{tag}` is immutable, and is on {on}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_about_repositories_and_tags() {
        let words = |text: &str| text.split(' ').map(str::to_owned).collect();
        let rules = [
            ImmutableRule {
                repositories: words("release/* vendor"),
                tags: words("*"),
            },
            ImmutableRule {
                repositories: words("*"),
                tags: words("v* stable"),
            },
        ];
        let check = |name: &str, tag: &str, expected: bool| {
            let name = RepositoryName::parse(name).unwrap();
            assert_eq!(is_immutable(&rules, &name, tag), expected, "{name}:{tag}");
        };
        check("release/a", "latest", true);
        check("vendor", "latest", true);
        check("vendors", "latest", false);
        check("a", "v1", true);
        check("a", "stable", true);
        check("a", "latest", false);
        assert!(!any(&rules[..1], &RepositoryName::parse("a").unwrap()));
        assert!(any(&rules, &RepositoryName::parse("a").unwrap()));
    }
}
