//! Solvers that anybody can check by reading: recursive, one thing after the other, with no state but what is known.

use std::collections::BTreeSet;

use super::case::{BuildPlan, Case, Kind, Left, Step};
use super::world::{Input, Layer, World};
use crate::solve::scheduler::{Action, Want};

/// What each vertex is, where no cache helps: its whole stack. The world is of these results alone.
pub(super) fn from_scratch(case: &Case) -> (Vec<Vec<Layer>>, World) {
    let mut world = World::default();
    let mut known = Vec::new();
    for vertex in 0..case.steps.len() {
        let stack = evaluate(&case.steps, vertex, &known, &mut world);
        known.push(stack);
    }
    (known, world)
}

/// The result of one vertex, those before it being known.
fn evaluate(steps: &[Step], vertex: usize, known: &[Vec<Layer>], world: &mut World) -> Vec<Layer> {
    let step = &steps[vertex];
    let inputs = inputs(steps, vertex, known);
    let mut stack = match inputs.first() {
        Some(Input::Stack(layers)) if step.on_base => layers.clone(),
        _ => Vec::new(),
    };
    match step.kind {
        Kind::Context => {}
        Kind::Image => stack.push(world.layer(step.source())),
        Kind::Merge => stack.extend(&known[step.inputs[1]]),
        Kind::Exec | Kind::Copy => stack.extend(world.give(step, &inputs)),
    }
    stack
}

fn inputs(steps: &[Step], vertex: usize, known: &[Vec<Layer>]) -> Vec<Input> {
    let inputs = steps[vertex].inputs.iter();
    inputs
        .map(|input| match steps[*input].kind {
            Kind::Context => Input::Folder(steps[*input].source()),
            _ => Input::Stack(known[*input].clone()),
        })
        .collect()
}

/// Leaves what an earlier build of nearly the same steps left.
pub(super) fn earlier(case: &Case, left: &[Left], world: &mut World) {
    let mut steps = case.steps.clone();
    for (step, left) in steps.iter_mut().zip(left) {
        // A step that is not to be cached was run anew, and its record is of another time.
        step.salt = left.salt;
    }
    let mut known = Vec::new();
    for vertex in 0..steps.len() {
        let stack = evaluate(&steps, vertex, &known, world);
        known.push(stack);
    }
    for (vertex, left) in left.iter().enumerate() {
        let step = &steps[vertex];
        if !step.runs() {
            continue;
        }
        let inputs = inputs(&steps, vertex, &known);
        let base = match inputs.first() {
            Some(Input::Stack(layers)) if step.on_base => layers.len(),
            _ => 0,
        };
        let own = known[vertex].get(base).copied();
        if left.record {
            for key in world.keys(step, &inputs) {
                // A volatile step's record stays what it was.
                world.records.entry(key).or_insert(own);
            }
        }
    }
    for (vertex, left) in left.iter().enumerate() {
        if !left.layer
            && steps[vertex].runs()
            && let Some(layer) = known[vertex].last()
        {
            world.disk.remove(layer);
        }
    }
}

/// What a build has to do at least, where steps give the same whenever they run and nobody else does anything: a recursion
/// over identities and contents.
pub(super) fn needed(case: &Case, plan: &BuildPlan, before: &World) -> BTreeSet<Action> {
    let (known, scratch) = from_scratch(case);
    let mut world = before.clone();
    world.content.extend(scratch.content);
    let mut solver = Needed {
        case,
        world,
        known,
        identified: BTreeSet::new(),
        complete: BTreeSet::new(),
        done: BTreeSet::new(),
    };
    for &target in &plan.targets {
        match plan.want {
            Want::Identity => solver.identity(target),
            Want::Content => solver.content(target),
        }
    }
    solver.done
}

struct Needed<'a> {
    case: &'a Case,
    world: World,
    /// From scratch.
    known: Vec<Vec<Layer>>,
    identified: BTreeSet<usize>,
    complete: BTreeSet<usize>,
    done: BTreeSet<Action>,
}

impl Needed<'_> {
    fn identity(&mut self, vertex: usize) {
        if !self.identified.insert(vertex) {
            return;
        }
        let step = &self.case.steps[vertex];
        for &input in &step.inputs {
            self.identity(input);
        }
        self.done.insert(Action::Identify(vertex));
        if !step.runs() {
            return;
        }
        let inputs = inputs(&self.case.steps, vertex, &self.known);
        let hits = |key| self.world.records.contains_key(&key) && !step.no_cache;
        if step.fast_key(&inputs).is_some_and(hits) {
            return;
        }
        if !step.selects.is_empty() {
            for (at, _) in &step.selects {
                self.content(step.inputs[*at]);
            }
            self.done.insert(Action::Digest(vertex));
            let slow = self.world.keys(step, &inputs)[0];
            if self.world.records.contains_key(&slow) && !step.no_cache {
                return;
            }
        }
        self.execute(vertex);
    }

    fn execute(&mut self, vertex: usize) {
        for &input in &self.case.steps[vertex].inputs {
            self.content(input);
        }
        self.done.insert(Action::Execute(vertex));
        self.complete.insert(vertex);
    }

    fn content(&mut self, vertex: usize) {
        self.identity(vertex);
        if self.complete.contains(&vertex) {
            return;
        }
        let step = &self.case.steps[vertex];
        let bases = match (step.kind, step.on_base) {
            (Kind::Merge, _) => &step.inputs[..],
            (_, true) => &step.inputs[..1],
            (_, false) => &[],
        };
        for &base in bases {
            self.content(base);
        }
        self.done.insert(Action::Fetch(vertex));
        let base = bases.first().map_or(0, |base| self.known[*base].len());
        let own = &self.known[vertex][base..];
        let is_here = own.iter().all(|layer| self.world.disk.contains(layer));
        match step.runs() && !is_here {
            true => self.execute(vertex),
            false => {
                self.complete.insert(vertex);
            }
        }
    }
}
