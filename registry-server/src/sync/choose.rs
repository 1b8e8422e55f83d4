//! Which repositories and tags are mirrored.

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use store::oci::Digest;

use super::pattern::{NamePattern, selected};

/// What is taken of what a source has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Repositories, by name or pattern. Patterns need a source that lists what it has.
    pub repositories: Vec<NamePattern>,
    /// Patterns of repositories that are not taken.
    pub exclude_repositories: Vec<NamePattern>,
    /// Patterns of tags; none for all.
    pub tags: Vec<NamePattern>,
    /// Patterns of tags that are not taken.
    pub exclude_tags: Vec<NamePattern>,
    /// Tags that are versions in these bounds; others are not taken.
    pub versions: Option<VersionRange>,
    /// Of what is left so many, the newest by version; tags that are no versions come last.
    pub newest: Option<usize>,
}

impl Choice {
    /// The repositories whose names are said; `None` if the source has to list what it has.
    pub(super) fn named(&self) -> Option<Vec<String>> {
        let names = self.repositories.iter();
        names.map(|name| Some(name.name()?.to_owned())).collect()
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
        let version = |range: &VersionRange| range.takes(tag);
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
#[derive(Clone, Debug)]
struct Version {
    /// At least one.
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
        let numbers = numbers.split('.').map(parse).collect::<Option<_>>()?;
        Some(Version { numbers, suffix })
    }

    /// Without zeros at the end: `1.0` is `1`.
    fn numbers(&self) -> &[u64] {
        let end = self.numbers.iter().rposition(|number| *number != 0);
        &self.numbers[..end.map_or(0, |last| last + 1)]
    }

    /// The first version after all that begin with the same numbers up to this one.
    fn after(&self, index: usize) -> Option<Version> {
        let mut numbers = self.numbers.get(..=index)?.to_vec();
        let last = numbers.last_mut()?;
        *last = last.checked_add(1)?;
        let suffix = None;
        Some(Version { numbers, suffix })
    }
}

impl PartialEq for Version {
    fn eq(&self, other: &Version) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Version {}

impl Ord for Version {
    fn cmp(&self, other: &Version) -> Ordering {
        let suffixes = match (&self.suffix, &other.suffix) {
            (None, None) => Ordering::Equal,
            (None, Some(_)) => Ordering::Greater,
            (Some(_), None) => Ordering::Less,
            (Some(a), Some(b)) => a.cmp(b),
        };
        self.numbers().cmp(other.numbers()).then(suffixes)
    }
}

impl PartialOrd for Version {
    fn partial_cmp(&self, other: &Version) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Bounds that all have to hold, `>=1.2 <2`, or others instead, `^1.2 || ^3`. Versions with a suffix (`1.2-rc1`) are in none,
/// unless one of the bounds has one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VersionRange {
    /// At least one list, each with at least one bound.
    alternatives: Vec<Vec<(Bound, Version)>>,
    text: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bound {
    AtLeast,
    MoreThan,
    AtMost,
    LessThan,
    /// Less, and none that leads up to it.
    Before,
    Is,
    IsNot,
    /// This or a later one that promises to do what it does: `^1.2` is `>=1.2 <2`, `^0.2` is `>=0.2 <0.3`.
    Compatible,
    /// This or a later one of the same two numbers: `~1.2.3` is `>=1.2.3 <1.3`.
    Near,
}

const SIGNS: [(&str, Bound); 8] = [
    (">=", Bound::AtLeast),
    ("<=", Bound::AtMost),
    ("!=", Bound::IsNot),
    (">", Bound::MoreThan),
    ("<", Bound::LessThan),
    ("=", Bound::Is),
    ("^", Bound::Compatible),
    ("~", Bound::Near),
];

impl Bound {
    fn holds(self, version: &Version, than: &Version) -> bool {
        let order = version.cmp(than);
        match self {
            Bound::AtLeast | Bound::Compatible | Bound::Near => order != Ordering::Less,
            Bound::MoreThan => order == Ordering::Greater,
            Bound::AtMost => order != Ordering::Greater,
            Bound::LessThan => order == Ordering::Less,
            Bound::Before => version.numbers() < than.numbers(),
            Bound::Is => order == Ordering::Equal,
            Bound::IsNot => order != Ordering::Equal,
        }
    }

    /// The first version that is too late for it, where it has an end of its own.
    fn end(self, than: &Version) -> Option<Option<Version>> {
        let last = than.numbers.len() - 1;
        let first = than.numbers.iter().position(|number| *number != 0);
        match self {
            Bound::Compatible => Some(than.after(first.unwrap_or(last))),
            Bound::Near => Some(than.after(last.min(1))),
            _ => None,
        }
    }
}

impl VersionRange {
    /// Whether a tag is a version in these bounds.
    pub fn takes(&self, tag: &str) -> bool {
        Version::parse(tag).is_some_and(|version| self.holds(&version))
    }

    fn holds(&self, version: &Version) -> bool {
        self.alternatives.iter().any(|bounds| {
            let named = bounds.iter().any(|(_, than)| than.suffix.is_some());
            let mut bounds = bounds.iter();
            (version.suffix.is_none() || named)
                && bounds.all(|(bound, than)| bound.holds(version, than))
        })
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
        let alternatives = text.split("||").map(bounds).collect::<Result<_, _>>()?;
        let text = text.to_owned();
        Ok(VersionRange { alternatives, text })
    }
}

/// Bounds between blanks or commas; there may be blanks behind a sign.
fn bounds(text: &str) -> Result<Vec<(Bound, Version)>, String> {
    let mut bounds = Vec::new();
    let mut words = text.split([' ', ',']).filter(|word| !word.is_empty());
    while let Some(word) = words.next() {
        let wrong = || {
            format!(
                "`{word}` is no bound of versions: expected one such as `>=1.2`, `<2` or `^1.2`"
            )
        };
        let sign = SIGNS.into_iter().find(|(sign, _)| word.starts_with(sign));
        let (sign, bound) = sign.ok_or_else(wrong)?;
        let version = match &word[sign.len()..] {
            "" => words.next().unwrap_or_default(),
            version => version,
        };
        let version = Version::parse(version).ok_or_else(wrong)?;
        if let Some(end) = bound.end(&version) {
            bounds.push((Bound::Before, end.ok_or_else(wrong)?));
        }
        bounds.push((bound, version));
    }
    if bounds.is_empty() {
        return Err("there is no bound: expected some such as `>=1.2 <2`".to_owned());
    }
    Ok(bounds)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    fn patterns(text: &str) -> Vec<NamePattern> {
        let words = text.split_whitespace();
        words.map(|word| word.parse().unwrap()).collect()
    }

    #[test]
    fn repositories_are_named_or_listed() {
        let choice = |repositories: &str, exclude: &str| Choice {
            repositories: patterns(repositories),
            exclude_repositories: patterns(exclude),
            ..Choice::default()
        };
        assert_eq!(choice("a b/c", "").named(), Some(words("a b/c")));
        assert_eq!(choice("a b/*", "").named(), None);
        let listed = || words("b/x a b/tmp c a");
        assert_eq!(
            choice("a b/*", "*/tmp").repositories(listed()),
            words("a b/x")
        );
        assert_eq!(choice("a /b/", "").named(), None);
        assert_eq!(
            choice("c /b/.*/", "/.*/t.p/").repositories(listed()),
            words("b/x c")
        );
    }

    #[test]
    fn tags_are_chosen_by_pattern_version_and_age() {
        let listed = words("latest v1.9 v1.10 v1.10.1 v2.0-rc1 v2.0 v2 nightly-1 1.8.0");
        let check = |tags: &str, exclude: &str, versions: &str, newest, expect: &str| {
            let choice = Choice {
                tags: patterns(tags),
                exclude_tags: patterns(exclude),
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
        check("/v1.[0-9]+/ latest", "", "", None, "latest v1.9 v1.10");
        check("v*", "/.*-rc[0-9]+/", ">=2", None, "v2 v2.0");
        check("", "", ">=1.10 <2", None, "v1.10 v1.10.1");
        check("", "", ">1.10, <=2", None, "v1.10.1 v2 v2.0");
        check("", "", ">=2.0-rc1", None, "v2.0-rc1 v2 v2.0");
        check("", "", "=1.8", None, "1.8.0");
        check("", "", "", Some(3), "v2 v2.0 v2.0-rc1");
        check("", "", "<2", Some(1), "v1.10.1");
        check("latest nightly*", "", "", Some(9), "latest nightly-1");
        check("", "", "^1.9", None, "v1.9 v1.10 v1.10.1");
        check("", "", "~1.10", None, "v1.10 v1.10.1");
        check("", "", "~ 1.9.0 || >= 2, != 3", None, "v1.9 v2 v2.0");
    }

    #[test]
    fn versions_are_in_ranges() {
        let check = |range: &str, inside: &str, outside: &str| {
            let range: VersionRange = range.parse().unwrap();
            let holds = |text: &str| range.holds(&Version::parse(text).unwrap());
            for text in inside.split_whitespace() {
                assert!(holds(text), "{text} in {range}");
            }
            for text in outside.split_whitespace() {
                assert!(!holds(text), "{text} not in {range}");
            }
        };
        check("^1.2", "1.2 1.2.0 v1.99.3", "1.1.9 2 2.0.0 1.3-rc1");
        check("^0.2.3", "0.2.3 0.2.9", "0.2.2 0.3 1");
        check("^0.0.3", "0.0.3", "0.0.2 0.0.4 0.1");
        check("^0", "0 0.9", "1");
        check("^1.2-rc1", "1.2-rc1 1.2-rc2 1.3", "1.2-a 2.0-rc1 2");
        check("~1", "1 1.9", "2 0.9");
        check("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3");
        check("!=1.2", "1.1 1.3 1.2.1", "1.2 1.2.0");
        check("<1 || =3", "0.9 3 3.0", "1 2 4");
        check(">= 1.0 , < 2.0", "1 1.5", "2 0.9");
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
        let largest = format!("^{}", u64::MAX);
        for text in ["", "1.2", ">=x", ">=", "~", "=>1", "<1 ||", "~>1", &largest] {
            assert!(text.parse::<VersionRange>().is_err(), "{text}");
        }
        let read: VersionRange = ">=1 <2".parse().unwrap();
        assert_eq!(read.to_string(), ">=1 <2");
    }
}
