//! “Did you mean”: the nearest of the words that would have been right.

/// The candidate nearest to `word`, ignoring case, if it is near enough to be a slip: one edit in three characters.
pub fn nearest<'a>(word: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_lowercase();
    let length = word.chars().count();
    // A long word is no slip of the keys, and the distance takes quadratic time.
    if length > 64 {
        return None;
    }
    candidates
        .into_iter()
        .map(|candidate| (distance(&word, &candidate.to_lowercase()), candidate))
        .filter(|&(edits, candidate)| {
            edits > 0 && edits <= (length.max(candidate.chars().count()) / 3).max(1)
        })
        .min_by_key(|&(edits, _)| edits)
        .map(|(_, candidate)| candidate)
}

/// Insertions, deletions, replacements and swaps of neighbours that turn one text into the other.
fn distance(from: &str, to: &str) -> usize {
    let from: Vec<char> = from.chars().collect();
    let to: Vec<char> = to.chars().collect();
    let mut before = vec![0; to.len() + 1];
    let mut last: Vec<usize> = (0..=to.len()).collect();
    for (row, &a) in from.iter().enumerate() {
        let mut current = vec![row + 1; to.len() + 1];
        for (column, &b) in to.iter().enumerate() {
            let mut edits = (last[column] + usize::from(a != b))
                .min(last[column + 1] + 1)
                .min(current[column] + 1);
            if row > 0 && column > 0 && a == to[column - 1] && from[row - 1] == b {
                edits = edits.min(before[column - 1] + 1);
            }
            current[column + 1] = edits;
        }
        before = std::mem::replace(&mut last, current);
    }
    last[to.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_slips_and_nothing_else() {
        let check = |word: &str, expect: Option<&str>| {
            let names = ["RUN", "COPY", "FROM", "ENTRYPOINT", "ENV", "mount"];
            assert_eq!(nearest(word, names), expect, "{word}");
        };
        check("RUNN", Some("RUN"));
        check("FORM", Some("FROM"));
        check("entrypont", Some("ENTRYPOINT"));
        check("mont", Some("mount"));
        check("INCLUDE", None);
        check("x", None);
        check("run", None);
    }
}
