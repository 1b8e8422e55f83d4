//! Which repositories a term means, and in which order; pure.

use std::collections::BTreeMap;
use std::time::SystemTime;

use super::entry::Entry;
use crate::routes::RepositoryName;

/// Tags that are told of one repository.
const TAGS_TOLD: usize = 3;

/// Words that are looked for; further ones are not.
const WORDS_MAX: usize = 8;

/// What is looked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    /// In lower case.
    words: Vec<String>,
}

impl Terms {
    /// Words between blanks, all of which have to be found; none finds everything.
    pub(crate) fn parse(text: &str) -> Terms {
        let words = text.split_whitespace().take(WORDS_MAX);
        Terms {
            words: words.map(str::to_lowercase).collect(),
        }
    }
}

/// A repository that was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) name: RepositoryName,
    pub(crate) description: String,
    /// How many tags it has.
    pub(crate) tags: usize,
    /// Some that it was found by.
    pub(crate) found_tags: Vec<String>,
    /// When a tag was last changed.
    pub(crate) changed: Option<SystemTime>,
}

/// The repositories that have all words and that `may` admits, those first that are most likely meant.
pub(crate) fn search(
    entries: &BTreeMap<RepositoryName, Entry>,
    terms: &Terms,
    may: &dyn Fn(&RepositoryName) -> bool,
) -> Vec<Found> {
    let mut found = Vec::new();
    for (name, entry) in entries {
        let mut tags = Vec::new();
        let mut ranks = terms
            .words
            .iter()
            .map(|word| rank(name.as_str(), entry, word, &mut tags));
        let rank = ranks.try_fold(0, |sum, rank| rank.map(|rank| sum + rank));
        if let Some(rank) = rank
            && may(name)
        {
            tags.truncate(TAGS_TOLD);
            found.push((rank, name, entry, tags));
        }
    }
    // They come in the order of their names, which stays among equals.
    found.sort_by_key(|(rank, ..)| *rank);
    let told = found.into_iter().map(|(_, name, entry, found_tags)| Found {
        name: name.clone(),
        description: entry.description.text.clone(),
        tags: entry.count,
        found_tags,
        changed: entry.changed,
    });
    told.collect()
}

/// How far a repository is from being what a word means; `None` if it is not meant.
fn rank(name: &str, entry: &Entry, word: &str, tags: &mut Vec<String>) -> Option<u32> {
    let last = name.rsplit('/').next().unwrap_or(name);
    if name == word {
        return Some(0);
    }
    if last == word {
        return Some(1);
    }
    if last.starts_with(word) || name.starts_with(word) {
        return Some(2);
    }
    if name.contains(word) {
        return Some(3);
    }
    // As images are named.
    if let Some((repository, tag)) = word.rsplit_once(':') {
        let named = name == repository || name.ends_with(&format!("/{repository}"));
        return (named && find_tags(entry, tags, |text| starts_with(text, tag))).then_some(0);
    }
    if find_tags(entry, tags, |text| text.eq_ignore_ascii_case(word)) {
        return Some(4);
    }
    if entry.description.text.to_lowercase().contains(word) {
        return Some(5);
    }
    find_tags(entry, tags, |text| contains(text, word)).then_some(6)
}

/// Whether there are tags that fit; some of them are added to `tags`.
fn find_tags(entry: &Entry, tags: &mut Vec<String>, fits: impl Fn(&str) -> bool) -> bool {
    let before = tags.len();
    let fitting = entry.tags.iter().filter(|tag| fits(&tag.name));
    tags.extend(fitting.take(TAGS_TOLD).map(|tag| tag.name.to_string()));
    tags.len() > before
}

fn starts_with(text: &str, start: &str) -> bool {
    let head = text.as_bytes().get(..start.len());
    head.is_some_and(|head| head.eq_ignore_ascii_case(start.as_bytes()))
}

/// Whether `text` has `part` in it, whatever the case of its letters; tags are ASCII.
pub(crate) fn contains(text: &str, part: &str) -> bool {
    if part.is_empty() {
        return true;
    }
    let mut windows = text.as_bytes().windows(part.len());
    windows.any(|window| window.eq_ignore_ascii_case(part.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_found_in_any_case() {
        let check = |text: &str, part: &str, expect: bool| {
            assert_eq!(contains(text, part), expect, "{text} {part}");
        };
        check("RC-1", "rc", true);
        check("rc-1", "1", true);
        check("rc", "rc1", false);
        check("x", "", true);
        check("1.2-Alpine", "alpine", true);
        assert!(starts_with("V1", "v"));
        assert!(!starts_with("v", "v1"));
    }

    #[test]
    fn words_are_few_and_in_lower_case() {
        assert_eq!(Terms::parse("  Web  SHOP ").words, ["web", "shop"]);
        assert!(Terms::parse(" \n").words.is_empty());
        assert_eq!(Terms::parse(&"x ".repeat(100)).words.len(), WORDS_MAX);
    }
}
