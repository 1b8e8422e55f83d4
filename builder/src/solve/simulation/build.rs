//! One build: the real scheduler and the real order of what waits, with chance in the place of threads.

use std::collections::BTreeSet;
use std::time::Duration;

use super::case::{BuildPlan, Case, Kind, Random, Step};
use super::check;
use super::world::{Input, Key, Layer, Run, World};
use crate::solve::ready::Ready;
use crate::solve::scheduler::{Action, Event, Progress, Scheduler, VertexShape};

/// How a build ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Finished,
    Stopped,
    Killed,
}

/// What is known of a vertex.
#[derive(Clone, Debug)]
struct Outcome {
    /// What it adds to its base.
    own: Vec<Layer>,
    /// Its inputs as they were when this was found.
    derived_from: Vec<Option<Vec<Layer>>>,
}

/// An action that is being done.
#[derive(Clone, Debug)]
struct Running {
    action: Action,
    /// The keys of what is run, the first being locked.
    keys: Vec<Key>,
}

pub(super) struct Build {
    pub(super) id: usize,
    pub(super) plan: BuildPlan,
    pub(super) end: Option<End>,
    /// Answers so far.
    pub(super) events: usize,
    steps: Vec<Step>,
    scheduler: Scheduler,
    paths: Vec<Duration>,
    /// Done at once, one after the other.
    here: Vec<Action>,
    ready: Ready,
    running: Vec<Running>,
    waiting: Vec<usize>,
    outcomes: Vec<Option<Outcome>>,
    complete: Vec<bool>,
    performed: BTreeSet<Action>,
    twice: Option<Action>,
    stopping: bool,
}

fn shape(step: &Step) -> VertexShape {
    let bases = match (step.kind, step.on_base) {
        (Kind::Merge, _) => step.inputs.clone(),
        (_, true) => vec![step.inputs[0]],
        (_, false) => Vec::new(),
    };
    let selected = step.selects.iter().map(|(at, _)| step.inputs[*at]);
    VertexShape {
        inputs: step.inputs.clone(),
        bases,
        digest_inputs: (!step.selects.is_empty()).then(|| selected.collect()),
    }
}

impl Build {
    pub(super) fn begin(id: usize, plan: &BuildPlan, case: &Case) -> Result<Build, String> {
        let shapes = case.steps.iter().map(shape).collect();
        let (scheduler, first) = Scheduler::new(shapes, &plan.targets, plan.want);
        let costs: Vec<Duration> = plan.costs.iter().map(|&s| Duration::from_secs(s)).collect();
        let paths = scheduler.remaining_paths(&costs);
        let mut ready = Ready::default();
        ready.set_paths(paths.clone());
        let mut build = Build {
            id,
            plan: plan.clone(),
            end: None,
            events: 0,
            steps: case.steps.clone(),
            scheduler,
            paths,
            here: Vec::new(),
            ready,
            running: Vec::new(),
            waiting: Vec::new(),
            outcomes: vec![None; case.steps.len()],
            complete: vec![false; case.steps.len()],
            performed: BTreeSet::new(),
            twice: None,
            stopping: false,
        };
        build.take(first)?;
        Ok(build)
    }

    /// All that was done, but for waiting.
    pub(super) fn performed(&self) -> BTreeSet<Action> {
        self.performed.clone()
    }

    /// Something that was done a second time.
    pub(super) fn twice(&self) -> Option<Action> {
        self.twice
    }

    pub(super) fn is_known(&self, vertex: usize) -> bool {
        self.outcomes[vertex].is_some()
    }

    pub(super) fn is_complete(&self, vertex: usize) -> bool {
        self.complete[vertex]
    }

    /// All that the targets are made of, themselves included.
    pub(super) fn needed(&self) -> BTreeSet<usize> {
        let mut needed: BTreeSet<usize> = self.plan.targets.iter().copied().collect();
        for vertex in (0..self.steps.len()).rev() {
            if needed.contains(&vertex) {
                needed.extend(&self.steps[vertex].inputs);
            }
        }
        needed
    }

    /// Whether what is known was found on the inputs as they are.
    pub(super) fn is_current(&self, vertex: usize) -> bool {
        let outcome = self.outcomes[vertex].as_ref();
        outcome.is_some_and(|outcome| outcome.derived_from == self.stacks(vertex))
    }

    pub(super) fn own(&self, vertex: usize) -> Option<Layer> {
        self.outcomes[vertex].as_ref()?.own.first().copied()
    }

    /// The layers of a vertex's whole result, oldest first.
    pub(super) fn stack(&self, vertex: usize) -> Vec<Layer> {
        let step = &self.steps[vertex];
        let mut stack = match step.on_base {
            true => self.stack(step.inputs[0]),
            false => Vec::new(),
        };
        if let Some(outcome) = &self.outcomes[vertex] {
            stack.extend(&outcome.own);
        }
        stack
    }

    fn stacks(&self, vertex: usize) -> Vec<Option<Vec<Layer>>> {
        let inputs = self.steps[vertex].inputs.iter();
        let known = |input: &usize| self.is_known(*input).then(|| self.stack(*input));
        inputs.map(known).collect()
    }

    pub(super) fn inputs(&self, vertex: usize) -> Vec<Input> {
        let inputs = self.steps[vertex].inputs.iter();
        inputs
            .map(|&input| match self.steps[input].kind {
                Kind::Context => Input::Folder(self.steps[input].source()),
                _ => Input::Stack(self.stack(input)),
            })
            .collect()
    }

    /// Does one thing that could come next.
    pub(super) fn step(&mut self, world: &mut World, random: &mut Random) -> Result<(), String> {
        if self.plan.kill_at == Some(self.events) {
            world.locks.retain(|_, holder| *holder != self.id);
            self.end = Some(End::Killed);
            return Ok(());
        }
        if self.plan.cancel_at == Some(self.events) && !self.stopping {
            self.stop()?;
            let actions = self.scheduler.on_event(Event::Cancelled);
            return self.take(actions);
        }
        let free = self.plan.jobs.saturating_sub(self.running.len());
        let mut choices = [
            self.here.len(),
            self.running.len(),
            self.ready.len().min(free),
            self.waiting.len(),
        ];
        let mut all: usize = choices.iter().sum();
        for (choice, haste) in choices.iter_mut().zip(self.plan.haste) {
            if *choice < all && !random.chance(haste) {
                all -= std::mem::take(choice);
            }
        }
        if all == 0 {
            self.end = match self.scheduler.progress() {
                Progress::Finished => Some(End::Finished),
                Progress::Stopped => Some(End::Stopped),
                Progress::Running => return Err(format!("build {} is stuck", self.id)),
            };
            return Ok(());
        }
        let mut at = random.below(all);
        let mut lane = 0;
        while at >= choices[lane] {
            at -= choices[lane];
            choices[lane] = 0;
            lane += 1;
        }
        match lane {
            0 => {
                let action = self.here.swap_remove(at);
                self.check_inputs(action, world)?;
                self.finish(action, &[], world, random)
            }
            1 => {
                let done = self.running.swap_remove(at);
                self.finish(done.action, &done.keys, world, random)
            }
            2 => self.start(world),
            _ => {
                let vertex = self.waiting[at];
                let keys = world.keys(&self.steps[vertex], &self.inputs(vertex));
                if !world.locks.contains_key(&keys[0]) || self.stopping {
                    self.waiting.swap_remove(at);
                    return self.answer(Event::Freed { vertex });
                }
                Ok(())
            }
        }
    }

    /// A free hand takes what is most urgent.
    fn start(&mut self, world: &mut World) -> Result<(), String> {
        let path = |action: Action| self.paths[action.vertex()];
        let most = self.ready.waiting().map(path).max();
        let action = self.ready.pop().expect("something waits");
        check(most == Some(path(action)), || {
            format!("{action:?} was not the most urgent")
        })?;
        self.check_inputs(action, world)?;
        let Action::Execute(vertex) = action else {
            let keys = Vec::new();
            self.running.push(Running { action, keys });
            return Ok(());
        };
        let step = self.steps[vertex].clone();
        let keys = world.keys(&step, &self.inputs(vertex));
        if world.locks.contains_key(&keys[0]) {
            return self.answer(Event::Busy { vertex });
        }
        if let (Some(&own), false) = (world.records.get(&keys[0]), step.no_cache)
            && own.is_none_or(|layer| world.disk.contains(&layer))
        {
            let changed = self.set(vertex, own.into_iter().collect());
            return self.done(action, Event::Executed { vertex, changed });
        }
        world.locks.insert(keys[0], self.id);
        self.running.push(Running { action, keys });
        Ok(())
    }

    /// What the driver may rely on when it begins an action.
    fn check_inputs(&self, action: Action, world: &World) -> Result<(), String> {
        let vertex = action.vertex();
        let step = &self.steps[vertex];
        let shape = shape(step);
        let inputs = match action {
            Action::Identify(_) => &[][..],
            Action::Digest(_) => shape.digest_inputs.as_deref().unwrap_or_default(),
            Action::Fetch(_) => &shape.bases,
            Action::Execute(_) | Action::Await(_) => &shape.inputs,
        };
        let is_here = |&input: &usize| {
            self.is_known(input) && self.stack(input).iter().all(|l| world.disk.contains(l))
        };
        let known = shape.inputs.iter().all(|&input| self.is_known(input));
        check(known && inputs.iter().all(is_here), || {
            format!("{action:?} came before its inputs")
        })
    }

    /// Ends an action, well or not.
    fn finish(
        &mut self,
        action: Action,
        keys: &[Key],
        world: &mut World,
        random: &mut Random,
    ) -> Result<(), String> {
        let vertex = action.vertex();
        if let Some(key) = keys.first() {
            world.locks.remove(key);
        }
        // Somebody who stops ends what is under way, or comes too late.
        if self.plan.fail_at == Some(self.events + 1) || (self.stopping && random.chance(50)) {
            self.stop()?;
            return self.answer(Event::Failed { vertex });
        }
        let step = self.steps[vertex].clone();
        let event = match action {
            Action::Identify(_) => {
                let hit = self.identify(vertex, &step, world);
                Event::Identified { vertex, hit }
            }
            Action::Digest(_) => {
                let key = world.keys(&step, &self.inputs(vertex))[0];
                let found = world.records.get(&key).filter(|_| !step.no_cache).copied();
                if let Some(own) = found {
                    self.set(vertex, own.into_iter().collect());
                }
                let hit = found.is_some();
                Event::Digested { vertex, hit }
            }
            Action::Fetch(_) => {
                let found = self.fetch(vertex, &step, world);
                Event::Fetched { vertex, found }
            }
            Action::Execute(_) => {
                let inputs = self.inputs(vertex);
                check(world.keys(&step, &inputs) == keys, || {
                    format!("the inputs of vertex {vertex} changed while it ran")
                })?;
                let own = world.give(&step, &inputs);
                for &key in keys {
                    world.records.insert(key, own);
                }
                let key = keys[0];
                world.runs.push(Run { vertex, key });
                let changed = self.set(vertex, own.into_iter().collect());
                Event::Executed { vertex, changed }
            }
            Action::Await(_) => unreachable!("who waits is in no hand"),
        };
        self.done(action, event)
    }

    fn identify(&mut self, vertex: usize, step: &Step, world: &mut World) -> bool {
        match step.kind {
            Kind::Context => {
                self.set(vertex, Vec::new());
            }
            Kind::Image => {
                let layer = world.layer(step.source());
                self.set(vertex, vec![layer]);
            }
            Kind::Merge => {
                let upper = self.stack(step.inputs[1]);
                self.set(vertex, upper);
            }
            Kind::Exec | Kind::Copy => {
                let key = step.fast_key(&self.inputs(vertex));
                let found = key.and_then(|key| world.records.get(&key));
                let Some(&own) = found.filter(|_| !step.no_cache) else {
                    return false;
                };
                self.set(vertex, own.into_iter().collect());
            }
        }
        true
    }

    fn fetch(&mut self, vertex: usize, step: &Step, world: &mut World) -> bool {
        let own = self.outcomes[vertex].as_ref().map(|outcome| &outcome.own);
        let own = own.cloned().unwrap_or_default();
        match step.kind {
            // Its registry has it.
            Kind::Image => world.disk.extend(own),
            Kind::Merge => {
                let upper = self.stack(step.inputs[1]);
                self.set(vertex, upper);
            }
            Kind::Context => {}
            Kind::Exec | Kind::Copy => {
                return own.iter().all(|layer| world.disk.contains(layer));
            }
        }
        true
    }

    /// Sets what is known of a vertex; whether that is a change.
    fn set(&mut self, vertex: usize, own: Vec<Layer>) -> bool {
        let before = self.is_known(vertex).then(|| self.stack(vertex));
        self.outcomes[vertex] = Some(Outcome {
            own,
            derived_from: self.stacks(vertex),
        });
        before.is_some_and(|before| before != self.stack(vertex))
    }

    fn done(&mut self, action: Action, event: Event) -> Result<(), String> {
        if !self.performed.insert(action) {
            self.twice = Some(action);
        }
        let vertex = action.vertex();
        self.complete[vertex] = match event {
            Event::Executed { .. } => true,
            Event::Fetched { found, .. } => found,
            _ => false,
        };
        self.answer(event)
    }

    fn answer(&mut self, event: Event) -> Result<(), String> {
        self.events += 1;
        let actions = self.scheduler.on_event(event);
        self.take(actions)
    }

    /// As the driver does: what has not begun never will.
    fn stop(&mut self) -> Result<(), String> {
        self.stopping = true;
        let mut never = std::mem::take(&mut self.here);
        never.extend(std::iter::from_fn(|| self.ready.pop()));
        // The first of these tells the scheduler, unless somebody did.
        for action in never {
            let vertex = action.vertex();
            let more = self.scheduler.on_event(Event::Failed { vertex });
            check(more.is_empty(), || {
                "a stopping solve began something".to_owned()
            })?;
        }
        Ok(())
    }

    fn take(&mut self, actions: Vec<Action>) -> Result<(), String> {
        check(actions.is_empty() || !self.stopping, || {
            format!("a stopping solve began {actions:?}")
        })?;
        for action in actions {
            let vertex = action.vertex();
            match action {
                Action::Await(_) => self.waiting.push(vertex),
                Action::Identify(_) => self.here.push(action),
                Action::Fetch(_) if self.steps[vertex].kind != Kind::Image => {
                    self.here.push(action);
                }
                _ => self.ready.push(action),
            }
        }
        Ok(())
    }
}
