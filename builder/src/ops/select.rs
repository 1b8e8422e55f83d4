//! What a copy's source stands for: one path or a pattern of a tree, without what the ignore patterns exclude.
//!
//! A path without wildcards must exist; its links are followed, the last component's too. A pattern is split before its
//! first component with a wildcard: what stands before is followed like a path, the rest is matched component by
//! component with Go's `filepath.Match`, never entering a directory through a link; what matches is then followed. A
//! directory stands for its contents. No match at all is no error: so `COPY package-lock.json* .` works without one.

use std::sync::Arc;

use super::tree::{Kind, Listing, Place, Tree, TreeError, components, join, show};
use crate::dockerfile::ignore::{Glob, IgnoreMatcher, PatternError};
use crate::graph::CopySource;

/// Names offered for one that is missing, at most.
const NEAR_MAX: usize = 3;

/// Names compared with a missing one, at most: beyond it the hint is not worth the time.
const NEAR_CANDIDATES_MAX: usize = 10_000;

/// What a copy's source stands for, in the order of the names.
#[derive(Debug)]
pub struct Selected {
    pub(crate) matches: Vec<Match>,
}

/// One path that was named or matched.
#[derive(Debug)]
pub(crate) struct Match {
    /// Last component as it was written or matched, before links were followed.
    pub(crate) name: Vec<u8>,
    /// What it leads to.
    pub(crate) place: Place,
    /// If that is a directory: what is below it, directories before their contents, each sorted by name.
    pub(crate) items: Vec<Item>,
}

/// One entry below a directory that is copied.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Path below that directory.
    pub(crate) path: Vec<u8>,
    pub(crate) listing: Arc<Listing>,
    pub(crate) index: usize,
}

/// Why nothing can be selected.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SelectError {
    /// The tree could not be read.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// A path without wildcards leads nowhere.
    #[error("`{path}`: not found{}", hint(*.ignored, .near))]
    NotFound {
        /// The path, with a leading `/`.
        path: String,
        /// Whether it exists but `.dockerignore` excludes it.
        ignored: bool,
        /// Names beside it that are nearly the same.
        near: Vec<String>,
    },
    /// What was named or matched is a symbolic link to nowhere.
    #[error("`{path}`: a symbolic link whose target `{target}` does not exist")]
    Dangling {
        /// The link.
        path: String,
        /// What it says.
        target: String,
    },
    /// A pattern of `.dockerignore` is malformed.
    #[error(".dockerignore: {0}")]
    Ignore(#[from] PatternError),
}

fn hint(ignored: bool, near: &[String]) -> String {
    if ignored {
        return ": it exists, but `.dockerignore` excludes it".to_owned();
    }
    if near.is_empty() {
        return String::new();
    }
    let names: Vec<_> = near.iter().map(|name| format!("`{name}`")).collect();
    format!(", did you mean {}?", names.join(" or "))
}

impl Selected {
    /// How many paths were named or matched.
    pub fn matches(&self) -> usize {
        self.matches.len()
    }

    /// The paths that would be written, relative to the destination: a file by its own name, a directory's contents by
    /// theirs.
    pub fn paths(&self) -> impl Iterator<Item = &[u8]> {
        self.matches.iter().flat_map(|found| {
            let own = (!found.is_dir()).then_some(found.name.as_slice());
            own.into_iter()
                .chain(found.items.iter().map(|item| item.path.as_slice()))
        })
    }

    /// Every entry that a copy reads, directories themselves included.
    pub(crate) fn entries(&self) -> impl Iterator<Item = (&Arc<Listing>, usize)> {
        self.matches.iter().flat_map(|found| {
            let own = match &found.place {
                Place::Entry(listing, index) => Some((listing, *index)),
                Place::Root => None,
            };
            own.into_iter()
                .chain(found.items.iter().map(|item| (&item.listing, item.index)))
        })
    }
}

impl Match {
    pub(crate) fn is_dir(&self) -> bool {
        match &self.place {
            Place::Root => true,
            Place::Entry(listing, index) => listing.entries[*index].meta.kind == Kind::Dir,
        }
    }
}

/// Selects what `source` names in `tree`.
///
/// # Errors
/// If a path without wildcards does not exist, a link leads nowhere, or the tree cannot be read.
pub fn select(tree: Tree<'_>, source: &CopySource) -> Result<Selected, SelectError> {
    let selector = Selector {
        tree,
        ignore: IgnoreMatcher::new(&source.ignore)?,
    };
    let names = clean(source.pattern.as_bytes());
    let literal = names.iter().take_while(|name| !has_wildcards(name)).count();
    let mut matches = Vec::new();
    if literal == names.len() {
        matches.push(selector.literal(&names)?);
    } else {
        for path in selector.expand(&names[..literal], &names[literal..])? {
            matches.push(selector.follow(&path)?);
        }
    }
    Ok(Selected { matches })
}

struct Selector<'a> {
    tree: Tree<'a>,
    ignore: IgnoreMatcher,
}

impl Selector<'_> {
    fn literal(&self, names: &[&[u8]]) -> Result<Match, SelectError> {
        let path = names.join(&b'/');
        if self.tree.resolve(&path)?.is_some() {
            return self.follow(&path);
        }
        // `a\*b` has no wildcard: it may also be meant as `a*b`.
        let unescaped = unescape(&path);
        if unescaped != path && self.tree.resolve(&unescaped)?.is_some() {
            return self.follow(&unescaped);
        }
        Err(self.not_found(&path)?)
    }

    /// Follows the links of `path`, and lists what is below it if it is a directory.
    fn follow(&self, path: &[u8]) -> Result<Match, SelectError> {
        let Some(place) = self.tree.resolve(path)? else {
            return Err(self.not_found(path)?);
        };
        let mut found = Match {
            name: components(path).next_back().unwrap_or_default().to_vec(),
            place,
            items: Vec::new(),
        };
        let canonical = match &found.place {
            Place::Root => Vec::new(),
            Place::Entry(listing, index) => listing.path_of(*index),
        };
        let ignored = !canonical.is_empty() && self.ignore.matches(&canonical);
        if found.is_dir() && (!ignored || !self.ignore.can_skip_dir(&canonical)) {
            self.collect(&canonical, b"", &mut found.items)?;
        }
        if ignored && found.items.is_empty() {
            return Err(SelectError::NotFound {
                path: show(path),
                ignored: true,
                near: Vec::new(),
            });
        }
        Ok(found)
    }

    /// Adds what is below the directory `dir`; `prefix` is its path below the directory that was selected.
    fn collect(&self, dir: &[u8], prefix: &[u8], items: &mut Vec<Item>) -> Result<(), TreeError> {
        let listing = self.tree.list(dir)?;
        for (index, entry) in listing.entries.iter().enumerate() {
            let is_dir = entry.meta.kind == Kind::Dir;
            let path = join(dir, &entry.name);
            let ignored = !self.ignore.is_empty() && self.ignore.matches(&path);
            if ignored && (!is_dir || self.ignore.can_skip_dir(&path)) {
                continue;
            }
            let below = join(prefix, &entry.name);
            let before = items.len();
            items.push(Item {
                path: below.clone(),
                listing: Arc::clone(&listing),
                index,
            });
            if is_dir {
                self.collect(&path, &below, items)?;
            }
            // An excluded directory counts only as the parent of what an exception brings back.
            if ignored && items.len() == before + 1 {
                items.pop();
            }
        }
        Ok(())
    }

    /// The paths that match `patterns` below the directory `literal`, sorted.
    fn expand(&self, literal: &[&[u8]], patterns: &[&[u8]]) -> Result<Vec<Vec<u8>>, TreeError> {
        let globs: Result<Vec<_>, _> = patterns
            .iter()
            .map(|pattern| Glob::new(&String::from_utf8_lossy(pattern)))
            .collect();
        // As BuildKit has it, a malformed pattern matches nothing.
        let Ok(globs) = globs else {
            return Ok(Vec::new());
        };
        let start = match self.tree.resolve(&literal.join(&b'/'))? {
            Some(Place::Root) => Vec::new(),
            Some(Place::Entry(listing, index)) if listing.entries[index].meta.kind == Kind::Dir => {
                listing.path_of(index)
            }
            _ => return Ok(Vec::new()),
        };
        let mut found = Vec::new();
        self.expand_in(&start, &globs, &mut found)?;
        Ok(found)
    }

    fn expand_in(
        &self,
        dir: &[u8],
        globs: &[Glob],
        found: &mut Vec<Vec<u8>>,
    ) -> Result<(), TreeError> {
        let Some((glob, rest)) = globs.split_first() else {
            return Ok(());
        };
        let listing = self.tree.list(dir)?;
        for entry in &listing.entries {
            let is_dir = entry.meta.kind == Kind::Dir;
            if !glob.matches(&entry.name) || (!rest.is_empty() && !is_dir) {
                continue;
            }
            let path = join(dir, &entry.name);
            if self.hidden(&path, is_dir)? {
                continue;
            }
            if rest.is_empty() {
                found.push(path);
            } else {
                self.expand_in(&path, rest, found)?;
            }
        }
        Ok(())
    }

    /// Whether `path` is excluded with all that is below it.
    fn hidden(&self, path: &[u8], is_dir: bool) -> Result<bool, TreeError> {
        if self.ignore.is_empty() || !self.ignore.matches(path) {
            return Ok(false);
        }
        if !is_dir || self.ignore.can_skip_dir(path) {
            return Ok(true);
        }
        let mut items = Vec::new();
        self.collect(path, b"", &mut items)?;
        Ok(items.is_empty())
    }

    /// The error for a path that leads nowhere: what is there instead.
    fn not_found(&self, path: &[u8]) -> Result<SelectError, TreeError> {
        let names: Vec<_> = components(path).collect();
        let Some((name, parents)) = names.split_last() else {
            return Ok(missing(path, Vec::new()));
        };
        let dir = match self.tree.resolve(&parents.join(&b'/'))? {
            Some(Place::Root) => Vec::new(),
            Some(Place::Entry(listing, index)) if listing.entries[index].meta.kind == Kind::Dir => {
                listing.path_of(index)
            }
            Some(Place::Entry(..)) => return Ok(missing(path, Vec::new())),
            // The parent is missing too: what is near it says more.
            None => {
                return Ok(match self.not_found(&parents.join(&b'/'))? {
                    SelectError::NotFound { near, .. } => missing(path, near),
                    other => other,
                });
            }
        };
        let listing = self.tree.list(&dir)?;
        if let Some(index) = listing.find(name)
            && listing.entries[index].meta.kind == Kind::Symlink
        {
            let target = self.tree.link_target(&listing, index)?;
            return Ok(SelectError::Dangling {
                path: show(path),
                target: String::from_utf8_lossy(&target).into_owned(),
            });
        }
        let mut near: Vec<_> = listing
            .entries
            .iter()
            .take(NEAR_CANDIDATES_MAX)
            .filter_map(|entry| Some((distance(name, &entry.name)?, entry)))
            .filter(|(_, entry)| !self.ignore.matches(&join(&dir, &entry.name)))
            .collect();
        near.sort_by_key(|(distance, _)| *distance);
        let near = near.iter().take(NEAR_MAX);
        let near = near.map(|(_, entry)| show(&join(&dir, &entry.name)));
        Ok(missing(path, near.collect()))
    }
}

fn missing(path: &[u8], near: Vec<String>) -> SelectError {
    SelectError::NotFound {
        path: show(path),
        ignored: false,
        near,
    }
}

/// The components of a path, `..` resolved in the text and confined to the root, as BuildKit does before it looks.
pub(crate) fn clean(path: &[u8]) -> Vec<&[u8]> {
    let mut names = Vec::new();
    for name in components(path) {
        if name == b".." {
            names.pop();
        } else {
            names.push(name);
        }
    }
    names
}

/// Whether a component has an unescaped wildcard.
fn has_wildcards(name: &[u8]) -> bool {
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        match byte {
            b'\\' => drop(bytes.next()),
            b'*' | b'?' | b'[' => return true,
            _ => {}
        }
    }
    false
}

fn unescape(path: &[u8]) -> Vec<u8> {
    let mut bytes = path.iter();
    let mut plain = Vec::with_capacity(path.len());
    while let Some(&byte) = bytes.next() {
        match byte {
            b'\\' => plain.extend(bytes.next()),
            _ => plain.push(byte),
        }
    }
    plain
}

/// How far two names are apart, in edits; `None` if too far for one to be meant for the other. Case does not count.
fn distance(a: &[u8], b: &[u8]) -> Option<usize> {
    let (a, b) = (a.to_ascii_lowercase(), b.to_ascii_lowercase());
    let limit = (a.len() / 3).clamp(1, 3);
    if a.len().abs_diff(b.len()) > limit {
        return None;
    }
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.iter().enumerate() {
        let mut diagonal = row[0];
        row[0] = i + 1;
        for (j, y) in b.iter().enumerate() {
            let above = row[j + 1];
            row[j + 1] = (above + 1)
                .min(row[j] + 1)
                .min(diagonal + usize::from(x != y));
            diagonal = above;
        }
    }
    row.last().copied().filter(|edits| *edits <= limit)
}
