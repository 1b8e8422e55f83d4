//! Patterns of repositories and tags: `*` and `?`, or a regular expression between slashes, which no name begins with.

use std::str::FromStr;

use regex_lite::{Regex, RegexBuilder};
use store::oci::pattern::matches;

/// Longest expression, in bytes.
const EXPRESSION_BYTES_MAX: usize = 1024;

/// Memory of a compiled one, which bounds the time that each name takes, too.
const COMPILED_BYTES_MAX: usize = 64 * 1024;

/// What names have to look like.
#[derive(Clone, Debug)]
pub struct NamePattern {
    /// As it was written.
    text: String,
    /// Of the whole name; `None` of a pattern of `*` and `?`.
    expression: Option<Regex>,
}

impl NamePattern {
    /// Whether the whole name fits.
    pub fn fits(&self, name: &str) -> bool {
        match &self.expression {
            Some(expression) => expression.is_match(name),
            None => matches(&self.text, name),
        }
    }

    /// The one name that fits, where it says that.
    pub fn name(&self) -> Option<&str> {
        let says_one = self.expression.is_none() && !self.text.contains(['*', '?']);
        says_one.then_some(self.text.as_str())
    }
}

impl PartialEq for NamePattern {
    fn eq(&self, other: &NamePattern) -> bool {
        self.text == other.text
    }
}

impl Eq for NamePattern {}

impl FromStr for NamePattern {
    type Err = String;

    fn from_str(text: &str) -> Result<NamePattern, String> {
        let expression = match text.strip_prefix('/') {
            Some(rest) => Some(compile(text, rest)?),
            None => None,
        };
        Ok(NamePattern {
            text: text.to_owned(),
            expression,
        })
    }
}

/// The expression of `rest`, what follows the first slash of `text`.
fn compile(text: &str, rest: &str) -> Result<Regex, String> {
    let inner = rest.strip_suffix('/').filter(|inner| !inner.is_empty());
    let inner = inner
        .ok_or_else(|| format!("`{text}` begins a regular expression: expected `/EXPRESSION/`"))?;
    if inner.len() > EXPRESSION_BYTES_MAX {
        let length = inner.len();
        return Err(format!(
            "a regular expression of {length} bytes: at most {EXPRESSION_BYTES_MAX} are taken"
        ));
    }
    let build = |text: &str| {
        RegexBuilder::new(text)
            .size_limit(COMPILED_BYTES_MAX)
            .build()
    };
    // Alone first: what closes a group that is not its own is no expression.
    let built = build(inner).and_then(|_| build(&format!("^(?:{inner})$")));
    built.map_err(|error| format!("`{text}` is no regular expression: {error}"))
}

/// Whether a name is among those that are wanted: it fits one of `include`, if there are any, and none of `exclude`.
pub(super) fn selected(name: &str, include: &[NamePattern], exclude: &[NamePattern]) -> bool {
    let fits = |patterns: &[NamePattern]| patterns.iter().any(|pattern| pattern.fits(name));
    (include.is_empty() || fits(include)) && !fits(exclude)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_whole_name_fits() {
        let check = |pattern: &str, fitting: &str, others: &str| {
            let pattern: NamePattern = pattern.parse().unwrap();
            for name in fitting.split_whitespace() {
                assert!(pattern.fits(name), "{name} fits {pattern:?}");
            }
            for name in others.split_whitespace() {
                assert!(!pattern.fits(name), "{name} does not fit {pattern:?}");
            }
        };
        check(r"/v\d+\.\d+/", "v1.2 v10.20", "v1.2.3 xv1.2 v1 v1.2-rc");
        check(r"/^v\d+$/", "v1", "v1.2 v");
        check("/a|ab/", "a ab", "b aba");
        check("/(?i)RC/", "rc RC", "rc1");
        check("/a$/", "a", "ab ba");
        check(
            "/team/[^/]+/app/",
            "team/x/app",
            "team/x/y/app team/x/app/z",
        );
        check("/.*/", "anything", "");
        check("v?.*", "v1.2", "v1");
        check("v1.2", "v1.2", "v1x2");
    }

    #[test]
    fn some_patterns_are_names() {
        let name = |text: &str| {
            let pattern: NamePattern = text.parse().unwrap();
            pattern.name().map(str::to_owned)
        };
        assert_eq!(name("library/alpine").as_deref(), Some("library/alpine"));
        assert_eq!(name("library/*"), None);
        assert_eq!(name("/library/"), None);
    }

    #[test]
    fn what_is_no_expression_is_told() {
        let check = |text: &str, expect: &str| {
            let error = text.parse::<NamePattern>().unwrap_err();
            assert_eq!(error, expect);
        };
        let half = "begins a regular expression: expected `/EXPRESSION/`";
        check("/", &format!("`/` {half}"));
        check("//", &format!("`//` {half}"));
        check("/v1", &format!("`/v1` {half}"));
        for text in [
            "/(/",
            "/)/",
            "/a)|(b/",
            "/[/",
            "/*/",
            r"/\p{Lu}/",
            "/(?x)a#/",
            "/a{9}{99}{99}/",
        ] {
            let error = text.parse::<NamePattern>().unwrap_err();
            let begin = format!("`{text}` is no regular expression: ");
            assert!(
                error.starts_with(&begin) && error.len() > begin.len(),
                "{error}"
            );
        }
        let long = format!("/{}/", "a".repeat(1025));
        check(
            &long,
            "a regular expression of 1025 bytes: at most 1024 are taken",
        );
    }
}
