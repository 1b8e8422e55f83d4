//! Where the steps of a graph stand: a column per stage, a row per distance from the sources.

use std::collections::{BTreeMap, BTreeSet};

use builder::history::{BuildHistory, StepHistory};

/// Size of a step's box, and the room between boxes, in pixels.
pub(super) const BOX_WIDTH: i64 = 250;
pub(super) const BOX_HEIGHT: i64 = 44;
const GAP_X: i64 = 26;
const GAP_Y: i64 = 30;
/// Room for the lines around boxes.
const MARGIN: i64 = 2;
/// Room for the names of the stages.
const TOP: i64 = 28;

/// Where a box's upper left corner is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) x: i64,
    pub(super) y: i64,
}

/// A stage's columns.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Lane {
    pub(super) name: String,
    pub(super) x: i64,
}

#[derive(Debug)]
pub(super) struct Layout {
    pub(super) width: i64,
    pub(super) height: i64,
    pub(super) lanes: Vec<Lane>,
    /// One per step, in their order.
    pub(super) boxes: Vec<Place>,
}

impl Layout {
    /// Inputs stand above what reads them; no two boxes overlap.
    pub(super) fn of(build: &BuildHistory) -> Layout {
        let rows = rows(&build.steps);
        let mut lanes: Vec<(String, Vec<usize>)> = Vec::new();
        let mut known: BTreeMap<String, usize> = BTreeMap::new();
        for (at, step) in build.steps.iter().enumerate() {
            let name = stage(&step.name);
            let lane = *known.entry(name.clone()).or_insert_with(|| {
                lanes.push((name, Vec::new()));
                lanes.len() - 1
            });
            lanes[lane].1.push(at);
        }
        let mut boxes = vec![Place { x: 0, y: 0 }; build.steps.len()];
        let mut placed = Vec::new();
        let mut x = MARGIN;
        for (name, members) in lanes {
            placed.push(Lane { name, x });
            let mut taken = BTreeSet::new();
            let mut columns = 1;
            for at in members {
                let mut column = 0;
                while !taken.insert((rows[at], column)) {
                    column += 1;
                }
                columns = columns.max(column + 1);
                boxes[at] = Place {
                    x: x + column * (BOX_WIDTH + GAP_X),
                    y: TOP + rows[at] * (BOX_HEIGHT + GAP_Y),
                };
            }
            x += columns * (BOX_WIDTH + GAP_X);
        }
        let last = rows.iter().max().copied().unwrap_or(0);
        Layout {
            width: x - GAP_X + MARGIN,
            height: TOP + (last + 1) * (BOX_HEIGHT + GAP_Y) - GAP_Y + 2,
            lanes: placed,
            boxes,
        }
    }
}

/// How far each step is from the sources: one more than the farthest of its inputs.
fn rows(steps: &[StepHistory]) -> Vec<i64> {
    let mut rows: Vec<i64> = Vec::with_capacity(steps.len());
    for step in steps {
        let inputs = step.inputs.iter();
        let above = inputs.filter_map(|&input| rows.get(input.checked_sub(1)?));
        rows.push(above.max().map_or(0, |row| row + 1));
    }
    rows
}

/// The name of the stage in a label: `[build 2/5] RUN make`.
fn stage(label: &str) -> String {
    let Some((inside, _)) = label
        .strip_prefix('[')
        .and_then(|rest| rest.split_once("] "))
    else {
        return String::new();
    };
    let is_place =
        |word: &str| word.contains('/') && word.bytes().all(|b| b == b'/' || b.is_ascii_digit());
    let words = inside.split_whitespace().filter(|word| !is_place(word));
    words.collect::<Vec<_>>().join(" ")
}
