//! Which of the actions that could be done is done first, where there are more than hands to do them.
//!
//! The build takes as long as its longest path, so the action with the longest way still to go is the most urgent one. How
//! long steps take is known from earlier builds, and comes in as data: nothing here looks at a clock or a disk.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use super::scheduler::Action;

/// For each vertex, how long the longest path from its beginning to the end of all work is, given how long each vertex
/// takes. `inputs` are what each vertex reads, all before it.
pub fn remaining_paths(inputs: &[&[usize]], costs: &[Duration]) -> Vec<Duration> {
    // What follows the vertex; its own cost is added when it is come to, after all its users.
    let mut remaining = vec![Duration::ZERO; inputs.len()];
    for vertex in (0..inputs.len()).rev() {
        let cost = costs.get(vertex).copied().unwrap_or_default();
        let path = remaining[vertex].saturating_add(cost);
        remaining[vertex] = path;
        for &input in inputs[vertex] {
            remaining[input] = remaining[input].max(path);
        }
    }
    remaining
}

/// Actions that wait for a hand: the one with the longest path before it comes first, of equals the
/// one that stands first in the graph.
#[derive(Clone, Debug, Default)]
pub struct Ready {
    waiting: BinaryHeap<Entry>,
    /// By vertex; empty where nothing is known, so that all are equal.
    paths: Vec<Duration>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Entry {
    path: Duration,
    vertex: Reverse<usize>,
    action: Action,
}

impl Ready {
    /// Adds an action.
    pub fn push(&mut self, action: Action) {
        let entry = Entry {
            path: self.path(action),
            vertex: Reverse(action.vertex()),
            action,
        };
        self.waiting.push(entry);
    }

    /// Takes out the most urgent action.
    pub fn pop(&mut self) -> Option<Action> {
        self.waiting.pop().map(|entry| entry.action)
    }

    /// What waits, in no order.
    pub fn waiting(&self) -> impl Iterator<Item = Action> {
        self.waiting.iter().map(|entry| entry.action)
    }

    /// How many wait.
    pub fn len(&self) -> usize {
        self.waiting.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Goes by these paths from now on, also with what already waits; see [`remaining_paths`].
    pub fn set_paths(&mut self, paths: Vec<Duration>) {
        self.paths = paths;
        let mut waiting = std::mem::take(&mut self.waiting).into_vec();
        for entry in &mut waiting {
            entry.path = self.path(entry.action);
        }
        self.waiting = waiting.into();
    }

    fn path(&self, action: Action) -> Duration {
        self.paths.get(action.vertex()).copied().unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drain(mut ready: Ready) -> Vec<usize> {
        std::iter::from_fn(|| ready.pop().map(Action::vertex)).collect()
    }

    #[test]
    fn paths_are_the_longest_there_are() {
        // 0 ─► 2 ─► 4, 1 ─► 3 ─► 4, and 1 ─► 4.
        let inputs: [&[usize]; 5] = [&[], &[], &[0], &[1], &[2, 3, 1]];
        let seconds = [1, 2, 4, 8, 16];
        let costs: Vec<Duration> = seconds.map(Duration::from_secs).into();
        let paths = remaining_paths(&inputs, &costs);
        let seconds: Vec<u64> = paths.iter().map(Duration::as_secs).collect();
        assert_eq!(seconds, [21, 26, 20, 24, 16]);
    }

    #[test]
    fn the_longest_path_comes_first_and_equals_in_order() {
        let mut ready = Ready::default();
        for vertex in [3, 1, 0, 2] {
            ready.push(Action::Execute(vertex));
        }
        assert_eq!(drain(ready.clone()), [0, 1, 2, 3]);
        // What waits already is ordered anew.
        let paths = [5, 7, 5, 1].map(Duration::from_secs);
        ready.set_paths(paths.into());
        ready.push(Action::Digest(1));
        assert_eq!(ready.len(), 5);
        assert_eq!(drain(ready), [1, 1, 0, 2, 3]);
    }
}
