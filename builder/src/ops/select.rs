//! What a copy's source stands for: one path or a pattern of a tree, without what the ignore patterns exclude.
//!
//! A path without wildcards must exist; its links are followed, the last component's too. A pattern is split before its
//! first component with a wildcard: what stands before is followed like a path, the rest is matched component by
//! component with Go's `filepath.Match`, never entering a directory through a link; what matches is then followed. A
//! directory stands for its contents. No match at all is no error: so `COPY package-lock.json* .` works without one.
//!
//! With `--parents` what is selected is a directory, the root or what stands before `/./`, and of its contents what the
//! pattern covers, as `.dockerignore` would, with the directories above. No link in the pattern is followed then.

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

use super::tree::{Entry, Kind, Listing, Place, Tree, TreeError, components, join, show};
use crate::dockerfile::ignore::{Glob, IgnoreMatcher, PatternError};
use crate::graph::CopySource;

/// Names offered for one that is missing, at most.
const NEAR_MAX: usize = 3;

/// Names listed in place of one that nothing is near to, at most.
const LISTED_MAX: usize = 5;

/// Directories searched for a name that is missing where it was looked for, at most.
const SEARCHED_MAX: usize = 1_000;

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
    #[error("`{path}`: not found{hint}")]
    NotFound {
        /// The path, with a leading `/`.
        path: String,
        /// What there is instead.
        hint: Hint,
    },
    /// `--parents` came upon a link where the path goes on.
    #[error("`{path}`: `--parents` does not follow the symbolic link `{link}`")]
    LinkedParent {
        /// The path.
        path: String,
        /// The link.
        link: String,
    },
    /// `--parents` with `/./` behind something that is no directory.
    #[error("`{path}`: not a directory, so it cannot be what `--parents` keeps the paths below")]
    PivotNotADirectory {
        /// What stands before `/./`.
        path: String,
    },
    /// The pattern of a copy with `--parents` is malformed.
    #[error(transparent)]
    Pattern(PatternError),
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

/// What is said about a path that is missing.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Hint {
    /// There is nothing to say.
    None,
    /// It exists, but this pattern of `.dockerignore` excludes it.
    Ignored(String),
    /// Paths that are nearly the same.
    Near(Vec<String>),
    /// What the directory that should hold it has instead.
    Has {
        /// The directory.
        directory: String,
        /// The first of its names.
        names: Vec<String>,
        /// How many more it has.
        more: usize,
    },
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quoted = |names: &[String]| -> Vec<String> {
            names.iter().map(|name| format!("`{name}`")).collect()
        };
        match self {
            Hint::None => Ok(()),
            Hint::Ignored(pattern) => {
                write!(
                    f,
                    ": it exists, but `{pattern}` in `.dockerignore` excludes it"
                )
            }
            Hint::Near(names) => write!(f, ", did you mean {}?", quoted(names).join(" or ")),
            Hint::Has {
                directory, names, ..
            } if names.is_empty() => write!(f, ": `{directory}` is empty"),
            Hint::Has {
                directory,
                names,
                more,
            } => {
                write!(f, ": `{directory}` has {}", quoted(names).join(", "))?;
                match more {
                    0 => Ok(()),
                    more => write!(f, " and {more} more"),
                }
            }
        }
    }
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
        exclude: IgnoreMatcher::new(&source.exclude).map_err(SelectError::Pattern)?,
    };
    let pattern = source.pattern.as_bytes();
    let mut matches = Vec::new();
    if source.parents {
        let (pivot, wanted) = split_at_pivot(pattern);
        let wanted = Wanted::new(&clean(wanted))?;
        for path in selector.paths(&clean(pivot))? {
            matches.extend(selector.below(&path, &wanted)?);
        }
    } else {
        for path in selector.paths(&clean(pattern))? {
            matches.extend(selector.follow(&path, None)?);
        }
    }
    Ok(Selected { matches })
}

struct Selector<'a> {
    tree: Tree<'a>,
    ignore: IgnoreMatcher,
    exclude: IgnoreMatcher,
}

/// What `--parents` selects below a directory.
struct Wanted {
    names: Vec<Vec<u8>>,
    /// None for everything.
    glob: Option<Glob>,
    /// Without wildcards: it must exist.
    required: bool,
}

impl Wanted {
    fn new(names: &[&[u8]]) -> Result<Wanted, SelectError> {
        let glob = match names {
            [] => None,
            names => {
                let pattern = names.join(&b'/');
                let glob = Glob::recursive(&String::from_utf8_lossy(&pattern));
                Some(glob.map_err(SelectError::Pattern)?)
            }
        };
        Ok(Wanted {
            names: names.iter().map(|name| unescape(name)).collect(),
            glob,
            required: !names.iter().any(|name| has_wildcards(name)),
        })
    }
}

/// Whether an entry below a directory is copied.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Verdict {
    /// Yes.
    Copied,
    /// A directory that is only copied if something below it is.
    IfParent,
    /// No, nor anything below it.
    Left,
}

impl Selector<'_> {
    /// The path that `names` is, or those that it matches.
    fn paths(&self, names: &[&[u8]]) -> Result<Vec<Vec<u8>>, SelectError> {
        let literal = names.iter().take_while(|name| !has_wildcards(name)).count();
        if literal == names.len() {
            return Ok(vec![self.literal(names)?]);
        }
        Ok(self.expand(&names[..literal], &names[literal..])?)
    }

    fn literal(&self, names: &[&[u8]]) -> Result<Vec<u8>, SelectError> {
        let path = names.join(&b'/');
        if self.tree.resolve(&path)?.is_some() {
            return Ok(path);
        }
        // `a\*b` has no wildcard: it may also be meant as `a*b`.
        let unescaped = unescape(&path);
        if unescaped != path && self.tree.resolve(&unescaped)?.is_some() {
            return Ok(unescaped);
        }
        Err(self.not_found(&path)?)
    }

    /// Follows the links of `path`, and lists what is below it if it is a directory; `None` for a file that is excluded.
    fn follow(&self, path: &[u8], wanted: Option<&Glob>) -> Result<Option<Match>, SelectError> {
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
        let ignored = match canonical.as_slice() {
            b"" => None,
            path => self.ignore.excluded_by(path),
        };
        if found.is_dir() && (ignored.is_none() || !self.ignore.can_skip_dir(&canonical)) {
            self.collect(&canonical, b"", wanted, &mut found.items)?;
        }
        if let Some(pattern) = ignored
            && found.items.is_empty()
        {
            return Err(missing(path, Hint::Ignored(pattern.to_owned())));
        }
        let excluded = !found.is_dir() && self.exclude.matches(&found.name);
        Ok((!excluded).then_some(found))
    }

    /// What `--parents` selects below the directory at `path`.
    fn below(&self, path: &[u8], wanted: &Wanted) -> Result<Option<Match>, SelectError> {
        let found = self.follow(path, wanted.glob.as_ref())?;
        let dir = match found.as_ref().map(|found| &found.place) {
            Some(Place::Root) => Vec::new(),
            Some(Place::Entry(listing, index))
                if listing.entries[*index].meta.kind == Kind::Dir =>
            {
                listing.path_of(*index)
            }
            _ => return Err(SelectError::PivotNotADirectory { path: show(path) }),
        };
        if wanted.required {
            self.require(&dir, &wanted.names)?;
        }
        Ok(found)
    }

    /// Sees to it that there is something at `names` below the directory `dir`.
    fn require(&self, dir: &[u8], names: &[Vec<u8>]) -> Result<(), SelectError> {
        let mut at = dir.to_vec();
        for (depth, name) in names.iter().enumerate() {
            let whole = || join(dir, &names.join(&b'/'));
            let listing = self.tree.list(&at)?;
            let kind = listing
                .find(name)
                .map(|index| listing.entries[index].meta.kind);
            at = join(&at, name);
            match kind {
                Some(Kind::Dir) => {}
                Some(_) if depth + 1 == names.len() => {}
                Some(Kind::Symlink) => {
                    return Err(SelectError::LinkedParent {
                        path: show(&whole()),
                        link: show(&at),
                    });
                }
                _ => return Err(self.not_found(&whole())?),
            }
        }
        let Some(pattern) = self.ignore.excluded_by(&at) else {
            return Ok(());
        };
        let is_dir = self.tree.resolve(&at)?.is_some_and(|place| match place {
            Place::Root => true,
            Place::Entry(listing, index) => listing.entries[index].meta.kind == Kind::Dir,
        });
        match self.hidden(&at, is_dir)? {
            true => Err(missing(&at, Hint::Ignored(pattern.to_owned()))),
            false => Ok(()),
        }
    }

    /// Adds what is below the directory `dir`; `prefix` is its path below the directory that was selected.
    fn collect(
        &self,
        dir: &[u8],
        prefix: &[u8],
        wanted: Option<&Glob>,
        items: &mut Vec<Item>,
    ) -> Result<(), TreeError> {
        let listing = self.tree.list(dir)?;
        for (index, entry) in listing.entries.iter().enumerate() {
            let is_dir = entry.meta.kind == Kind::Dir;
            let path = join(dir, &entry.name);
            let below = join(prefix, &entry.name);
            let verdict = verdict(&self.ignore, &path, is_dir)
                .max(verdict(&self.exclude, &below, is_dir))
                .max(wanted.map_or(Verdict::Copied, |wanted| covered(wanted, &below, is_dir)));
            if verdict == Verdict::Left {
                continue;
            }
            let before = items.len();
            items.push(Item {
                path: below.clone(),
                listing: Arc::clone(&listing),
                index,
            });
            if is_dir {
                self.collect(&path, &below, wanted, items)?;
            }
            if verdict == Verdict::IfParent && items.len() == before + 1 {
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
        self.collect(path, b"", None, &mut items)?;
        Ok(items.is_empty())
    }

    /// The error for a path that leads nowhere: what is there instead.
    fn not_found(&self, path: &[u8]) -> Result<SelectError, TreeError> {
        let names: Vec<_> = components(path).collect();
        let Some((name, parents)) = names.split_last() else {
            return Ok(missing(path, Hint::None));
        };
        let dir = match self.tree.resolve(&parents.join(&b'/'))? {
            Some(Place::Root) => Vec::new(),
            Some(Place::Entry(listing, index)) if listing.entries[index].meta.kind == Kind::Dir => {
                listing.path_of(index)
            }
            Some(Place::Entry(..)) => return Ok(missing(path, Hint::None)),
            // The parent is missing too: what is near it says more.
            None => {
                return Ok(match self.not_found(&parents.join(&b'/'))? {
                    SelectError::NotFound { hint, .. } => missing(path, hint),
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
        Ok(missing(path, self.hint(&dir, &listing, name)))
    }

    /// What the directory `dir` has instead of `name`.
    fn hint(&self, dir: &[u8], listing: &Listing, name: &[u8]) -> Hint {
        let shown = |entry: &&Entry| !self.ignore.matches(&join(dir, &entry.name));
        let candidates = listing.entries.iter().take(NEAR_CANDIDATES_MAX);
        let mut near: Vec<_> = candidates
            .filter_map(|entry| Some((distance(name, &entry.name)?, entry)))
            .filter(|(_, entry)| shown(entry))
            .collect();
        near.sort_by_key(|(distance, _)| *distance);
        let mut near: Vec<_> = near
            .iter()
            .take(NEAR_MAX)
            .map(|(_, entry)| show(&join(dir, &entry.name)))
            .collect();
        if near.is_empty() {
            near = self.elsewhere(name);
        }
        if !near.is_empty() {
            return Hint::Near(near);
        }
        let entries = listing
            .entries
            .iter()
            .take(NEAR_CANDIDATES_MAX)
            .filter(shown);
        let names: Vec<_> = entries
            .map(|entry| String::from_utf8_lossy(&entry.name).into_owned())
            .collect();
        Hint::Has {
            directory: show(dir),
            more: names.len().saturating_sub(LISTED_MAX),
            names: names.into_iter().take(LISTED_MAX).collect(),
        }
    }
}

impl Selector<'_> {
    /// Where in the tree there is something called `name`, the nearest to the root first.
    fn elsewhere(&self, name: &[u8]) -> Vec<String> {
        let mut found = Vec::new();
        let mut dirs = VecDeque::from([Vec::new()]);
        for _ in 0..SEARCHED_MAX {
            let Some(dir) = dirs.pop_front() else {
                break;
            };
            // What cannot be read gives no hint.
            let Ok(listing) = self.tree.list(&dir) else {
                continue;
            };
            for entry in &listing.entries {
                let path = join(&dir, &entry.name);
                let is_dir = entry.meta.kind == Kind::Dir;
                match verdict(&self.ignore, &path, is_dir) {
                    Verdict::Left => continue,
                    Verdict::Copied if entry.name == name => found.push(show(&path)),
                    _ => {}
                }
                if found.len() == NEAR_MAX {
                    return found;
                }
                if is_dir && dirs.len() < SEARCHED_MAX {
                    dirs.push_back(path);
                }
            }
        }
        found
    }
}

fn missing(path: &[u8], hint: Hint) -> SelectError {
    SelectError::NotFound {
        path: show(path),
        hint,
    }
}

/// What ignore patterns say of a path.
fn verdict(ignore: &IgnoreMatcher, path: &[u8], is_dir: bool) -> Verdict {
    if ignore.is_empty() || !ignore.matches(path) {
        return Verdict::Copied;
    }
    match is_dir && !ignore.can_skip_dir(path) {
        true => Verdict::IfParent,
        false => Verdict::Left,
    }
}

/// What a pattern of `--parents` says of a path.
fn covered(wanted: &Glob, path: &[u8], is_dir: bool) -> Verdict {
    if wanted.covers(path) {
        return Verdict::Copied;
    }
    match is_dir && wanted.reaches_below(path) {
        true => Verdict::IfParent,
        false => Verdict::Left,
    }
}

/// What stands before the first `/./`, and the rest.
fn split_at_pivot(pattern: &[u8]) -> (&[u8], &[u8]) {
    match pattern.windows(3).position(|window| window == b"/./") {
        Some(at) => (&pattern[..at], &pattern[at + 3..]),
        None => (b"", pattern),
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
