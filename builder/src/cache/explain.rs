//! Why a step ran: what its key was made of, compared with what it was made of before.
//!
//! [`compare`] is a pure function from two sets of ingredients to [`Reason`]s; [`pair`] finds for each step of a build the one
//! that it was in an earlier build, though steps were added, removed or changed in between.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};

use super::ingredients::{FileList, FileLists, Ingredients, ListedFile, flags};

/// Files that are named one by one; beyond it, how many more there are.
const FILES_NAMED_MAX: usize = 10;

/// Steps of two stages that are compared each with each, at most: their product.
const PAIRS_MAX: usize = 1_000_000;

/// What of a step's key is another than before, or why there is nothing to compare with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Ingredient {
    /// A file that it copies: `name` is its path, `old` and `new` what differs.
    File,
    /// What it runs.
    Command,
    /// A build argument.
    Argument,
    /// An environment variable.
    Variable,
    /// `USER`.
    User,
    /// `WORKDIR`.
    Directory,
    /// The content of a secret that is part of the key; never told, neither old nor new.
    Secret,
    /// What a copy does, but for the files: its destination, owner or mode.
    Action,
    /// Mounts, network and other flags: `name` is the flag, with what it is of; absent where only that one differs is known.
    Options,
    /// A file or a repository elsewhere: `name` is its URL, `old` and `new` what its content was and is, by digest or commit.
    Remote,
    /// The image that it stands on.
    BaseImage,
    /// The step that it stands on has another result, or is another step.
    Parent,
    /// The step, image or folder that it copies from.
    Source,
    /// Nothing is known of an earlier run: the step is new, or was never built.
    NoRecord,
    /// The same was built before, but its record is gone.
    RecordRemoved,
    /// The record is there, but the layer that it names is not.
    LayerMissing,
    /// It did not succeed the last time.
    FailedBefore,
    /// Somebody asked for it to run.
    NoCache,
}

/// One difference.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reason {
    /// What differs.
    pub ingredient: Ingredient,
    /// Which one, where there are several: a path, a variable's name, an image's, a step's label, a build's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it was; absent where it was not there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub old: Option<String>,
    /// What it is; absent where it is not there any more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub new: Option<String>,
}

impl Reason {
    /// A reason that needs no more words.
    pub fn bare(ingredient: Ingredient) -> Reason {
        Reason {
            ingredient,
            name: None,
            old: None,
            new: None,
        }
    }

    /// A reason about something that has a name.
    pub fn about(ingredient: Ingredient, name: impl Into<String>) -> Reason {
        Reason {
            name: Some(name.into()),
            ..Reason::bare(ingredient)
        }
    }

    fn change(self, old: Option<&str>, new: Option<&str>) -> Reason {
        Reason {
            old: old.map(str::to_owned),
            new: new.map(str::to_owned),
            ..self
        }
    }
}

/// One run of a step, as its record tells it.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// What its key was made of.
    pub ingredients: Ingredients,
    /// The files that it copied, where they were listed.
    pub files: Option<FileLists>,
}

/// What differs between two runs, the most telling first: what the Dockerfile and the context say before what follows from
/// other steps. `arguments` are the names that the Dockerfile declares with ARG.
pub fn compare(old: &Known, new: &Known, arguments: &BTreeSet<String>) -> Vec<Reason> {
    let mut reasons = Vec::new();
    compare_sources(old, new, &mut reasons);
    for name in names(old, new, "document ") {
        let key = format!("document {name}");
        let reason = Reason::about(Ingredient::File, name);
        push_change(&mut reasons, reason, value(old, &key), value(new, &key));
    }
    for (name, ingredient) in [
        ("command", Ingredient::Command),
        ("user", Ingredient::User),
        ("directory", Ingredient::Directory),
    ] {
        push_change(
            &mut reasons,
            Reason::bare(ingredient),
            value(old, name),
            value(new, name),
        );
    }
    for name in names(old, new, "env ") {
        let key = format!("env {name}");
        let ingredient = if arguments.contains(name) {
            Ingredient::Argument
        } else {
            Ingredient::Variable
        };
        let reason = Reason::about(ingredient, name);
        push_change(&mut reasons, reason, value(old, &key), value(new, &key));
    }
    for name in names(old, new, "secret ") {
        if differs(old, new, &format!("secret {name}")) {
            reasons.push(Reason::about(Ingredient::Secret, name));
        }
    }
    for name in names(old, new, "action ") {
        let key = format!("action {name}");
        let reason = Reason::bare(Ingredient::Action);
        push_change(&mut reasons, reason, value(old, &key), value(new, &key));
    }
    compare_flags(old, new, &mut reasons);
    let told = reasons
        .iter()
        .any(|reason| matches!(reason.ingredient, Ingredient::Action | Ingredient::Options));
    // The digest of the options says nothing to people, and covers an action's flags too.
    if !told && differs(old, new, "options") {
        reasons.push(Reason::bare(Ingredient::Options));
    }
    if differs(old, new, "base") {
        reasons.push(base_change(old, new));
    }
    reasons
}

/// The flags of processes, one by one. A record that is older than they are says nothing of them.
fn compare_flags(old: &Known, new: &Known, reasons: &mut Vec<Reason>) {
    if value(old, flags::ALWAYS).is_none() || value(new, flags::ALWAYS).is_none() {
        return;
    }
    for name in names(old, new, flags::PREFIX) {
        let key = format!("{}{name}", flags::PREFIX);
        let reason = Reason::about(Ingredient::Options, name);
        push_change(reasons, reason, value(old, &key), value(new, &key));
    }
}

fn value<'a>(known: &'a Known, name: &str) -> Option<&'a str> {
    known.ingredients.get(name).map(String::as_str)
}

/// Enough of a digest for people to tell it from another.
fn short(digits: &str) -> &str {
    digits.get(..16).unwrap_or(digits)
}

fn differs(old: &Known, new: &Known, name: &str) -> bool {
    value(old, name) != value(new, name)
}

fn push_change(reasons: &mut Vec<Reason>, reason: Reason, old: Option<&str>, new: Option<&str>) {
    if old != new {
        reasons.push(reason.change(old.map(plain), new.map(plain)));
    }
}

/// A variable's value without the mark that it is one.
fn plain(text: &str) -> &str {
    text.strip_prefix('=').unwrap_or(text)
}

/// What follows `prefix` in the names of either, sorted.
fn names<'a>(old: &'a Known, new: &'a Known, prefix: &str) -> BTreeSet<&'a str> {
    let both = old.ingredients.keys().chain(new.ingredients.keys());
    both.filter_map(|name| name.strip_prefix(prefix)).collect()
}

/// An image or a step that something comes from: `image NAME DIGEST`, `step LABEL`.
enum Origin<'a> {
    Image(&'a str, &'a str),
    Step(&'a str),
    Other(&'a str),
}

fn origin(text: &str) -> Origin<'_> {
    match text.split_once(' ') {
        Some(("image", rest)) => {
            let (name, digest) = rest.split_once(' ').unwrap_or((rest, ""));
            Origin::Image(name, digest)
        }
        Some(("step", label)) => Origin::Step(label),
        _ => Origin::Other(text),
    }
}

fn base_change(old: &Known, new: &Known) -> Reason {
    let old_text = value(old, "base name").unwrap_or_default();
    let new_text = value(new, "base name").unwrap_or_default();
    match (origin(old_text), origin(new_text)) {
        (Origin::Image(old_name, old_digest), Origin::Image(name, digest)) => {
            let reason = Reason::about(Ingredient::BaseImage, name);
            if old_name == name && old_digest == digest {
                // The same image in another form: its files count, and what they are called by has changed.
                return reason.change(value(old, "base").map(short), value(new, "base").map(short));
            }
            if old_name == name {
                return reason.change(Some(old_digest), Some(digest));
            }
            let full = |name: &str, digest: &str| format!("{name} {digest}");
            reason.change(
                Some(full(old_name, old_digest).trim_end()),
                Some(full(name, digest).trim_end()),
            )
        }
        (_, Origin::Image(name, digest)) => {
            Reason::about(Ingredient::BaseImage, name).change(label(old_text), Some(digest))
        }
        (Origin::Step(old_label), Origin::Step(step)) if same_step(old_label, step) => {
            Reason::about(Ingredient::Parent, step)
                .change(value(old, "base").map(short), value(new, "base").map(short))
        }
        (_, Origin::Step(step)) => {
            Reason::about(Ingredient::Parent, step).change(label(old_text), Some(step))
        }
        (_, Origin::Other(_)) => {
            Reason::bare(Ingredient::Parent).change(label(old_text), label(new_text))
        }
    }
}

/// The words of an origin, for people.
fn label(text: &str) -> Option<&str> {
    (!text.is_empty()).then(|| text.strip_prefix("step ").unwrap_or(text))
}

/// Whether two labels are of one instruction, wherever it stands in its stage.
fn same_step(a: &str, b: &str) -> bool {
    Label::of(a).text == Label::of(b).text
}

/// The sources of copies: which files differ, or that they come from elsewhere.
fn compare_sources(old: &Known, new: &Known, reasons: &mut Vec<Reason>) {
    let mut files = Vec::new();
    let mut more = 0;
    for number in names(old, new, "selected ") {
        let selected = format!("selected {number}");
        if !differs(old, new, &selected) {
            continue;
        }
        let pattern = format!("source {number}");
        let (old_pattern, new_pattern) = (value(old, &pattern), value(new, &pattern));
        let lists = number.parse::<usize>().ok().and_then(|number| {
            let list = |known: &'_ Known| known.files.as_ref()?.sources.get(number).cloned();
            Some((list(old)?, list(new)?))
        });
        let changed = lists
            .map(|(old, new)| changed_files(&old, &new))
            .unwrap_or_default();
        if changed.is_empty() || old_pattern.is_none() || new_pattern.is_none() {
            let name = new_pattern.or(old_pattern).unwrap_or_default();
            let digest = |known| value(known, &selected).map(short);
            reasons.push(Reason::about(Ingredient::File, name).change(digest(old), digest(new)));
        }
        more += changed
            .len()
            .saturating_sub(FILES_NAMED_MAX.saturating_sub(files.len()));
        let room = FILES_NAMED_MAX.saturating_sub(files.len());
        files.extend(changed.into_iter().take(room));
        let from = format!("from {number}");
        push_change(
            reasons,
            Reason::about(Ingredient::Source, new_pattern.unwrap_or_default()),
            value(old, &from).and_then(moved),
            value(new, &from).and_then(moved),
        );
    }
    reasons.extend(files);
    if more > 0 {
        reasons.push(Reason::about(Ingredient::File, format!("{more} more")));
    }
}

/// What of an origin counts as another one: an image's digest and a step's place may differ.
fn moved(text: &str) -> Option<&str> {
    match origin(text) {
        Origin::Image(name, _) => Some(name),
        Origin::Step(step) => Some(Label::of(step).text),
        Origin::Other(other) => Some(other),
    }
}

/// The files that two lists do not agree on.
fn changed_files(old: &FileList, new: &FileList) -> Vec<Reason> {
    // Lists of different depths are compared at the lesser one.
    let depth = match (old.depth, new.depth) {
        (0, depth) | (depth, 0) => depth,
        (a, b) => a.min(b),
    };
    let (old, new) = (old.cut(depth), new.cut(depth));
    let by_path = |list: &FileList| -> BTreeMap<Vec<u8>, ListedFile> {
        let entries = list.entries.iter();
        entries
            .map(|entry| (entry.path.clone(), entry.clone()))
            .collect()
    };
    let (old, new) = (by_path(&old), by_path(&new));
    let paths: BTreeSet<&Vec<u8>> = old.keys().chain(new.keys()).collect();
    let mut reasons = Vec::new();
    for path in paths {
        let (before, after) = (old.get(path), new.get(path));
        if before == after {
            continue;
        }
        let reason = Reason::about(Ingredient::File, String::from_utf8_lossy(path));
        let (before, after) = match (before, after) {
            (Some(before), Some(after)) if before.digest == after.digest => {
                (Some(mode_text(before.mode)), Some(mode_text(after.mode)))
            }
            (before, after) => (before.map(digest_text), after.map(digest_text)),
        };
        reasons.push(reason.change(before.as_deref(), after.as_deref()));
    }
    reasons
}

fn digest_text(file: &ListedFile) -> String {
    format!("{:016x}", u64::from_be_bytes(file.digest))
}

/// `mode 0644`, with the kind where it is no regular file.
fn mode_text(mode: u16) -> String {
    let kind = match mode >> 12 {
        2 => "directory ",
        3 => "link ",
        4 => "character device ",
        5 => "block device ",
        6 => "fifo ",
        7 => "socket ",
        _ => "",
    };
    format!("{kind}mode {:04o}", mode & 0o7777)
}

/// A step's label, taken apart: `[stage 2/5] RUN make`.
struct Label<'a> {
    /// Whatever stands before the number in the brackets.
    stage: &'a str,
    /// What follows the brackets.
    text: &'a str,
}

impl<'a> Label<'a> {
    fn of(name: &'a str) -> Label<'a> {
        let Some((inside, text)) = name
            .strip_prefix('[')
            .and_then(|rest| rest.split_once("] "))
        else {
            return Label {
                stage: "",
                text: name,
            };
        };
        let is_place = |word: &str| {
            word.split_once('/').is_some_and(|(a, b)| {
                let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
                number(a) && number(b)
            })
        };
        let stage = match inside.rsplit_once(' ') {
            Some((stage, place)) if is_place(place) => stage.trim_end(),
            None if is_place(inside) => "",
            _ => inside,
        };
        Label { stage, text }
    }

    fn keyword(&self) -> &'a str {
        self.text.split(' ').next().unwrap_or_default()
    }
}

/// For each label of `new`, the position in `old` of the step that it was: first those of one stage with the same text, in
/// the same order; then, in each gap between those, steps with the same keyword one after the other.
pub fn pair(old: &[&str], new: &[&str]) -> Vec<Option<usize>> {
    let mut pairs = vec![None; new.len()];
    let (old_stages, new_stages) = (by_stage(old), by_stage(new));
    for (stage, new_steps) in &new_stages {
        if let Some(old_steps) = old_stages.get(stage) {
            pair_stage(old_steps, new_steps, &mut pairs);
        }
    }
    pairs
}

/// A step of a stage: its position, and its label.
type Placed<'a> = (usize, Label<'a>);

fn by_stage<'a>(names: &[&'a str]) -> BTreeMap<&'a str, Vec<Placed<'a>>> {
    let mut stages: BTreeMap<&str, Vec<Placed<'a>>> = BTreeMap::new();
    for (position, name) in names.iter().enumerate() {
        let label = Label::of(name);
        stages
            .entry(label.stage)
            .or_default()
            .push((position, label));
    }
    stages
}

fn pair_stage(old: &[Placed<'_>], new: &[Placed<'_>], pairs: &mut [Option<usize>]) {
    let mut common = common_steps(old, new);
    common.push((old.len(), new.len()));
    let (mut from_old, mut from_new) = (0, 0);
    for (at_old, at_new) in common {
        let mut candidates = old[from_old..at_old].iter().peekable();
        for (position, label) in &new[from_new..at_new] {
            let mut rest = candidates.clone();
            if let Some((was, _)) = rest.find(|(_, old)| old.keyword() == label.keyword()) {
                pairs[*position] = Some(*was);
                candidates = rest;
            }
        }
        if let (Some(was), Some(is)) = (old.get(at_old), new.get(at_new)) {
            pairs[is.0] = Some(was.0);
        }
        (from_old, from_new) = (at_old + 1, at_new + 1);
    }
}

/// The longest common subsequence of the labels' texts, as pairs of positions in the stage.
fn common_steps(old: &[Placed<'_>], new: &[Placed<'_>]) -> Vec<(usize, usize)> {
    if old.len().saturating_mul(new.len()) > PAIRS_MAX {
        // Too many for a table: what stands at the same place counts.
        let same = old.iter().zip(new).enumerate();
        let same = same.filter(|(_, (a, b))| a.1.text == b.1.text);
        return same.map(|(at, _)| (at, at)).collect();
    }
    // best[i][j]: length of the longest common subsequence of old[i..] and new[j..].
    let width = new.len() + 1;
    let mut best = vec![0_u32; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            best[i * width + j] = if old[i].1.text == new[j].1.text {
                best[(i + 1) * width + j + 1] + 1
            } else {
                best[(i + 1) * width + j].max(best[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut common = Vec::new();
    while i < old.len() && j < new.len() {
        if old[i].1.text == new[j].1.text {
            common.push((i, j));
            (i, j) = (i + 1, j + 1);
        } else if best[(i + 1) * width + j] >= best[i * width + j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    common
}

#[cfg(test)]
mod tests;
