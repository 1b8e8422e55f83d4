//! Which tags go: rules by repository and tag, each saying what of its tags to keep.

use std::collections::{BTreeMap, BTreeSet};
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use store::oci::Digest;
use store::oci::pattern::matches;

use crate::routes::RepositoryName;
use crate::storage::collectable::FoundTag;

/// A rule: of the tags it is about, those stay that one of its `keep`s keeps. Tags that no rule is about stay.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retention {
    /// Repositories it is about; `*` stands for any characters, `?` for one.
    pub repositories: String,
    /// Tags it is about, in the same way.
    pub tags: String,
    /// What stays; at least one.
    pub keep: Vec<Keep>,
}

/// What a rule keeps of its tags.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keep {
    /// This many, of each repository, that were put last.
    Last(usize),
    /// What was put so recently.
    Within(Duration),
    /// What was pulled, or put, so recently.
    Pulled(Duration),
}

/// Why a text is no rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RetentionError {
    /// It has a part that means nothing.
    #[error(
        "`{part}` is not part of a retention rule: expected repository=, tag=, last=, within= or pulled="
    )]
    Unknown {
        /// The part.
        part: String,
    },
    /// A number or time cannot be read.
    #[error("`{value}` is not {expected}")]
    Value {
        /// What was given.
        value: String,
        /// What would be right.
        expected: &'static str,
    },
    /// It would remove every tag it is about.
    #[error("the rule keeps nothing: give last=, within= or pulled=")]
    KeepsNothing,
}

impl FromStr for Retention {
    type Err = RetentionError;

    /// `repository=team/*,tag=pr-*,last=10,within=30d,pulled=14d`; repository and tag are `*` if not given, and times are
    /// in `s`, `m`, `h`, `d` or `w`.
    fn from_str(text: &str) -> Result<Retention, RetentionError> {
        let mut rule = Retention {
            repositories: "*".to_owned(),
            tags: "*".to_owned(),
            keep: Vec::new(),
        };
        for part in text.split(',') {
            match part.split_once('=') {
                Some(("repository", pattern)) => pattern.clone_into(&mut rule.repositories),
                Some(("tag", pattern)) => pattern.clone_into(&mut rule.tags),
                Some(("last", count)) => rule.keep.push(Keep::Last(number(count)?)),
                Some(("within", time)) => rule.keep.push(Keep::Within(duration(time)?)),
                Some(("pulled", time)) => rule.keep.push(Keep::Pulled(duration(time)?)),
                _ => {
                    return Err(RetentionError::Unknown {
                        part: part.to_owned(),
                    });
                }
            }
        }
        if rule.keep.is_empty() {
            return Err(RetentionError::KeepsNothing);
        }
        Ok(rule)
    }
}

fn number(text: &str) -> Result<usize, RetentionError> {
    text.parse().map_err(|_| RetentionError::Value {
        value: text.to_owned(),
        expected: "a number of tags",
    })
}

fn duration(text: &str) -> Result<Duration, RetentionError> {
    let wrong = || RetentionError::Value {
        value: text.to_owned(),
        expected: "a time, such as 30d or 12h",
    };
    let split = text.find(|c: char| !c.is_ascii_digit()).ok_or_else(wrong)?;
    let (count, unit) = text.split_at(split);
    let seconds: u64 = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 24 * 3600,
        "w" => 7 * 24 * 3600,
        _ => return Err(wrong()),
    };
    let count: u64 = count.parse().map_err(|_| wrong())?;
    Ok(Duration::from_secs(
        count.checked_mul(seconds).ok_or_else(wrong)?,
    ))
}

/// The tags of a repository that go, of these with their times and when what they are on was pulled.
pub(super) fn not_kept(
    rules: &[Retention],
    repository: &RepositoryName,
    tags: &[FoundTag],
    pulled: &BTreeMap<Digest, SystemTime>,
    now: SystemTime,
) -> BTreeSet<String> {
    let (mut about, mut kept) = (BTreeSet::new(), BTreeSet::new());
    for rule in rules {
        if !matches(&rule.repositories, repository.as_str()) {
            continue;
        }
        let mut mine: Vec<(&FoundTag, Digest)> = tags
            .iter()
            .filter_map(|tag| Some((tag, tag.digest?)))
            .filter(|(tag, _)| matches(&rule.tags, &tag.tag))
            .collect();
        // Newest first; of equal ones the name decides, so that it is always the same ones.
        mine.sort_by(|(a, _), (b, _)| b.made.cmp(&a.made).then_with(|| b.tag.cmp(&a.tag)));
        for (index, (tag, digest)) in mine.into_iter().enumerate() {
            about.insert(tag.tag.clone());
            let since = |time: SystemTime| now.duration_since(time).unwrap_or_default();
            let age = since(tag.made);
            let idle = pulled
                .get(&digest)
                .map_or(age, |time| age.min(since(*time)));
            let stays = rule.keep.iter().any(|keep| match keep {
                Keep::Last(count) => index < *count,
                Keep::Within(time) => age <= *time,
                Keep::Pulled(time) => idle <= *time,
            });
            if stays {
                kept.insert(tag.tag.clone());
            }
        }
    }
    about.retain(|tag| !kept.contains(tag));
    about
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_rules() {
        let check = |text: &str, expected: Result<(&str, &str, Vec<Keep>), &str>| {
            let found = text.parse::<Retention>();
            match (found, expected) {
                (Ok(rule), Ok((repositories, tags, keep))) => {
                    assert_eq!(
                        (rule.repositories.as_str(), rule.tags.as_str()),
                        (repositories, tags)
                    );
                    assert_eq!(rule.keep, keep);
                }
                (Err(error), Err(expected)) => assert_eq!(error.to_string(), expected),
                (found, expected) => panic!("{text}: {found:?}, expected {expected:?}"),
            }
        };
        check("last=3", Ok(("*", "*", vec![Keep::Last(3)])));
        check(
            "repository=a/*,tag=pr-*,within=2d,last=1",
            Ok((
                "a/*",
                "pr-*",
                vec![Keep::Within(Duration::from_secs(172_800)), Keep::Last(1)],
            )),
        );
        check(
            "tag=x",
            Err("the rule keeps nothing: give last=, within= or pulled="),
        );
        check("last=-1", Err("`-1` is not a number of tags"));
        let day = Duration::from_secs(86_400);
        check("pulled=1d", Ok(("*", "*", vec![Keep::Pulled(day)])));
        for time in ["", "3", "d", "3x", "99999999999999999999w", "-1d"] {
            check(
                &format!("within={time}"),
                Err(&format!("`{time}` is not a time, such as 30d or 12h")),
            );
        }
        for part in ["", "x=1", "last"] {
            let expected = format!(
                "`{part}` is not part of a retention rule: expected repository=, tag=, last=, within= or pulled="
            );
            check(part, Err(&expected));
        }
    }

    #[test]
    fn keeps_what_rules_say() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
        // Tags with their ages in hours.
        let tags: Vec<_> = [
            ("v1", 100),
            ("v2", 50),
            ("pr-1", 30),
            ("pr-2", 20),
            ("pr-3", 1),
        ]
        .into_iter()
        .map(|(tag, hours)| {
            let made = now - Duration::from_secs(hours * 3600);
            FoundTag {
                tag: tag.to_owned(),
                digest: Some(Digest::of(tag.as_bytes())),
                made,
                mark: None,
            }
        })
        .collect();
        // Twelve hours ago.
        let pulled = BTreeMap::from([(Digest::of(b"v1"), now - Duration::from_secs(12 * 3600))]);
        let name = RepositoryName::parse("team/app").unwrap();
        let check = |rules: &[&str], expected: &[&str]| {
            let rules: Vec<Retention> = rules.iter().map(|rule| rule.parse().unwrap()).collect();
            let gone: Vec<String> = not_kept(&rules, &name, &tags, &pulled, now)
                .into_iter()
                .collect();
            assert_eq!(gone, expected, "{rules:?}");
        };
        check(&[], &[]);
        check(&["last=0"], &["pr-1", "pr-2", "pr-3", "v1", "v2"]);
        check(&["last=2"], &["pr-1", "v1", "v2"]);
        check(&["tag=pr-*,last=1"], &["pr-1", "pr-2"]);
        check(&["tag=pr-*,within=24h"], &["pr-1"]);
        check(&["tag=pr-*,last=0", "tag=*-3,last=5"], &["pr-1", "pr-2"]);
        check(&["repository=other/*,last=0"], &[]);
        check(&["last=1,within=60h"], &["v1"]);
        check(&["pulled=13h"], &["pr-1", "pr-2", "v2"]);
        check(&["pulled=11h"], &["pr-1", "pr-2", "v1", "v2"]);
    }
}
