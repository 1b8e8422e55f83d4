//! Which repositories and tags are mirrored.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use store::oci::Digest;
use store::oci::pattern::selected;

/// What is taken of what a source has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Repositories, by name or pattern. Patterns need a source that lists what it has.
    pub repositories: Vec<String>,
    /// Patterns of repositories that are not taken.
    pub exclude_repositories: Vec<String>,
    /// Patterns of tags; none for all.
    pub tags: Vec<String>,
    /// Patterns of tags that are not taken.
    pub exclude_tags: Vec<String>,
    /// Tags that are versions in these bounds; others are not taken.
    pub versions: Option<VersionRange>,
    /// Of what is left so many, the newest by version; tags that are no versions come last.
    pub newest: Option<usize>,
}

impl Choice {
    /// The repositories whose names are said; `None` if the source has to list what it has.
    pub(super) fn named(&self) -> Option<Vec<String>> {
        let is_pattern = |name: &String| name.contains(['*', '?']);
        (!self.repositories.iter().any(is_pattern)).then(|| self.repositories.clone())
    }

    /// Those of a list.
    pub(super) fn repositories(&self, mut listed: Vec<String>) -> Vec<String> {
        listed.retain(|name| selected(name, &self.repositories, &self.exclude_repositories));
        listed.sort_unstable();
        listed.dedup();
        listed
    }

    /// Whether a tag would be taken, wherever it is among the newest.
    pub(super) fn wants(&self, tag: &str) -> bool {
        let version = |range: &VersionRange| Version::parse(tag).is_some_and(|v| range.holds(&v));
        // Such lists are made here of what is in them.
        !is_fallback_tag(tag)
            && selected(tag, &self.tags, &self.exclude_tags)
            && self.versions.as_ref().is_none_or(version)
    }

    /// The tags of a list, in order.
    pub(super) fn tags(&self, listed: &[String]) -> Vec<String> {
        let mut tags: Vec<String> = listed.iter().filter(|t| self.wants(t)).cloned().collect();
        tags.sort_unstable();
        tags.dedup();
        if let Some(newest) = self.newest {
            // `None` is less than any version.
            tags.sort_by_cached_key(|tag| std::cmp::Reverse(Version::parse(tag)));
            tags.truncate(newest);
            tags.sort_unstable();
        }
        tags
    }
}

/// Whether a tag is the list of what refers to a manifest, where a registry keeps none: `sha256-<hex>`.
pub(super) fn is_fallback_tag(tag: &str) -> bool {
    tag.contains('-') && tag.replacen('-', ":", 1).parse::<Digest>().is_ok()
}

/// A tag that is a version: `v1.2.3`, `1.2`, `20.04`, `1.2.3-rc1`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Version {
    /// Without zeros at the end: `1.0` is `1`.
    numbers: Vec<u64>,
    /// What follows `-`: such a version comes before the one without.
    suffix: Option<String>,
}

impl Version {
    fn parse(text: &str) -> Option<Version> {
        let text = text.strip_prefix(['v', 'V']).unwrap_or(text);
        let (numbers, suffix) = match text.split_once('-') {
            Some((numbers, suffix)) => (numbers, Some(suffix.to_owned())),
            None => (text, None),
        };
        let parse = |part: &str| {
            let digits = !part.is_empty() && part.bytes().all(|b| b.is_ascii_digit());
            digits.then(|| part.parse().ok())?
        };
        let mut numbers: Vec<u64> = numbers.split('.').map(parse).collect::<Option<_>>()?;
        while numbers.last() == Some(&0) {
            numbers.pop();
        }
        Some(Version { numbers, suffix })
    }
}

impl Ord for Version {
    fn cmp(&self, other: &Version) -> Ordering {
        let suffixes = match (&self.suffix, &other.suffix) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => a.cmp(b),
        };
        self.numbers.cmp(&other.numbers).then(suffixes)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Version) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Bounds that all have to hold: `>=1.2 <2`. Versions with a suffix (`1.2-rc1`) are in none, unless a bound has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRange {
    bounds: Vec<(Bound, Version)>,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtLeast,
    MoreThan,
    AtMost,
    LessThan,
    Is,
}

impl VersionRange {
    fn holds(&self, version: &Version) -> bool {
        let named = self.bounds.iter().any(|(_, bound)| bound.suffix.is_some());
        let holds = |(bound, than): &(Bound, Version)| match (bound, version.cmp(than)) {
            (Bound::AtLeast, order) => order != Ordering::Less,
            (Bound::MoreThan, order) => order == Ordering::Greater,
            (Bound::AtMost, order) => order != Ordering::Greater,
            (Bound::LessThan, order) => order == Ordering::Less,
            (Bound::Is, order) => order == Ordering::Equal,
        };
        (version.suffix.is_none() || named) && self.bounds.iter().all(holds)
    }
}

impl fmt::Display for VersionRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl FromStr for VersionRange {
    type Err = String;

    fn from_str(text: &str) -> Result<VersionRange, String> {
        let mut bounds = Vec::new();
        for word in text.split([' ', ',']).filter(|word| !word.is_empty()) {
            let known = [
                (">=", Bound::AtLeast),
                ("<=", Bound::AtMost),
                (">", Bound::MoreThan),
                ("<", Bound::LessThan),
                ("=", Bound::Is),
            ];
            let mut known = known.into_iter();
            let found = known.find_map(|(sign, bound)| Some((bound, word.strip_prefix(sign)?)));
            let read = found.and_then(|(bound, rest)| Some((bound, Version::parse(rest)?)));
            let read = read.ok_or_else(|| {
                format!("`{word}` is no bound of versions: expected one such as `>=1.2` or `<2`")
            })?;
            bounds.push(read);
        }
        if bounds.is_empty() {
            return Err("there is no bound: expected some such as `>=1.2 <2`".to_owned());
        }
        let text = text.to_owned();
        Ok(VersionRange { bounds, text })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn repositories_are_named_or_listed() {
        let choice = |repositories: &str, exclude: &str| Choice {
            repositories: words(repositories),
            exclude_repositories: words(exclude),
            ..Choice::default()
        };
        assert_eq!(choice("a b/c", "").named(), Some(words("a b/c")));
        assert_eq!(choice("a b/*", "").named(), None);
        let listed = || words("b/x a b/tmp c a");
        assert_eq!(
            choice("a b/*", "*/tmp").repositories(listed()),
            words("a b/x")
        );
    }

    #[test]
    fn tags_are_chosen_by_pattern_version_and_age() {
        let listed = words("latest v1.9 v1.10 v1.10.1 v2.0-rc1 v2.0 v2 nightly-1 1.8.0");
        let check = |tags: &str, exclude: &str, versions: &str, newest, expect: &str| {
            let choice = Choice {
                tags: words(tags),
                exclude_tags: words(exclude),
                versions: (!versions.is_empty()).then(|| versions.parse().unwrap()),
                newest,
                ..Choice::default()
            };
            let mut expect = words(expect);
            expect.sort_unstable();
            assert_eq!(choice.tags(&listed), expect, "{tags} {versions}");
        };
        check("v1.*", "", "", None, "v1.9 v1.10 v1.10.1");
        check(
            "",
            "*-*",
            "",
            None,
            "latest v1.9 v1.10 v1.10.1 v2.0 v2 1.8.0",
        );
        check("", "", ">=1.10 <2", None, "v1.10 v1.10.1");
        check("", "", ">1.10, <=2", None, "v1.10.1 v2 v2.0");
        check("", "", ">=2.0-rc1", None, "v2.0-rc1 v2 v2.0");
        check("", "", "=1.8", None, "1.8.0");
        check("", "", "", Some(3), "v2 v2.0 v2.0-rc1");
        check("", "", "<2", Some(1), "v1.10.1");
        check("latest nightly*", "", "", Some(9), "latest nightly-1");
    }

    #[test]
    fn lists_of_referrers_are_no_tags() {
        let tag = Digest::of(b"x").to_string().replace(':', "-");
        let listed = vec![tag.clone(), format!("{tag}.sig"), "sha256-1".to_owned()];
        assert_eq!(
            Choice::default().tags(&listed),
            [&*listed[2], &*listed[1]].map(str::to_owned)
        );
    }

    #[test]
    fn bounds_that_are_none_are_told() {
        for text in ["", "1.2", ">=x", ">= 1", "~1.2"] {
            assert!(text.parse::<VersionRange>().is_err(), "{text}");
        }
        let read: VersionRange = ">=1 <2".parse().unwrap();
        assert_eq!(read.to_string(), ">=1 <2");
    }
}
