//! A seeded simulation: random graphs, caches, builds side by side and accidents, driven through the real scheduler and its
//! queue, and compared with naive solvers.
//!
//! | file | part |
//! |---|---|
//! | this one | what must hold of a case |
//! | [`tests`] | the loops over many |
//! | [`case`] | a case as data: made from a seed, and made smaller when it fails |
//! | [`world`] | what is shared: steps, layers, records, locks |
//! | [`naive`] | the solvers that it is compared with: recursive, one thing after the other |
//! | [`build`] | one build: the real scheduler, with chance for a driver |
//!
//! A few thousand cases run with every `cargo test`. For more: `SIMULATE_GRAPHS=100000 cargo test --release -p builder --lib
//! simulation`. A failure says its seed, which `SIMULATE_SEED=…` runs alone, and the smallest case found that fails the same way.

mod build;
mod case;
mod naive;
mod tests;
mod world;

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind};

use build::{Build, End};
use case::{Case, Random};
use world::World;

use super::scheduler::{Action, Want};

/// Steps after which a simulation that has not ended never will.
const STEPS_MAX: usize = 200_000;

fn check(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    match holds {
        true => Ok(()),
        false => Err(what()),
    }
}

/// Runs the case's builds side by side, in an order that its seed chooses, until all have ended.
fn run(case: &Case, world: &mut World, random: &mut Random) -> Result<Vec<Build>, String> {
    let mut builds: Vec<Build> = Vec::new();
    for (id, plan) in case.builds.iter().enumerate() {
        builds.push(Build::begin(id, plan, case)?);
    }
    let mut steps = 0;
    loop {
        let running: Vec<usize> = (0..builds.len())
            .filter(|&id| builds[id].end.is_none())
            .collect();
        if running.is_empty() {
            return Ok(builds);
        }
        steps += 1;
        check(steps < STEPS_MAX, || "it never ends".to_owned())?;
        let id = running[random.below(running.len())];
        builds[id].step(world, random)?;
    }
}

/// What must hold, whatever happened.
fn judge(case: &Case) -> Result<(), String> {
    let mut world = World::of(case);
    let before = world.clone();
    let mut random = Random::new(case.schedule);
    let builds = run(case, &mut world, &mut random)?;
    check(world.locks.is_empty(), || {
        format!("locks are left: {:?}", world.locks)
    })?;
    for (build, plan) in builds.iter().zip(&case.builds) {
        let expected = match (plan.fail_at, plan.cancel_at, plan.kill_at) {
            (None, None, None) => Some(End::Finished),
            _ => None,
        };
        check(expected.is_none() || build.end == expected, || {
            format!("build {} ended as {:?}", build.id, build.end)
        })?;
        let performed = build.performed();
        if case.is_settled() {
            check(build.twice().is_none(), || {
                format!("build {} did {:?} twice", build.id, build.twice())
            })?;
            let needed = naive::needed(case, plan, &before);
            let alone = case.builds.len() == 1 && !case.has_twins() && !case.has_lost();
            let more = performed.difference(&needed);
            // What others did meanwhile may be fetched instead.
            let more: Vec<_> = more
                .filter(|action| alone || matches!(action, Action::Execute(_)))
                .collect();
            check(more.is_empty(), || {
                format!("build {} did what nobody needed: {more:?}", build.id)
            })?;
            if alone && build.end == Some(End::Finished) {
                check(performed == needed, || {
                    let less: Vec<_> = needed.difference(&performed).collect();
                    format!("build {} left out {less:?}", build.id)
                })?;
            }
        }
        if build.end == Some(End::Finished) {
            judge_results(case, build, &world)?;
        }
    }
    judge_runs(case, &world)?;
    judge_rerun(case, world, &builds, &mut random)
}

/// The results of a build that finished are what the steps give on what they read.
fn judge_results(case: &Case, build: &Build, world: &World) -> Result<(), String> {
    let (scratch, _) = naive::from_scratch(case);
    for vertex in build.needed() {
        check(build.is_current(vertex), || {
            format!("vertex {vertex} is what it was on other inputs")
        })?;
    }
    for (vertex, step) in case.steps.iter().enumerate() {
        if !build.is_known(vertex) {
            continue;
        }
        let stack = build.stack(vertex);
        if build.is_complete(vertex) {
            check(stack.iter().all(|layer| world.disk.contains(layer)), || {
                format!("vertex {vertex} is complete, but a layer of it is not here")
            })?;
        }
        if case.is_settled() {
            let expected = &scratch[vertex];
            check(stack == *expected, || {
                format!("vertex {vertex} is {stack:?}, from scratch it is {expected:?}")
            })?;
        } else if step.runs() && build.is_complete(vertex) {
            // Steps that never give the same twice: it must be something that they gave on these very inputs.
            let reads = world.reads(step, &build.inputs(vertex));
            let given = world.given.get(&(step.op(), reads));
            check(
                given.is_some_and(|given| given.contains(&build.own(vertex))),
                || format!("vertex {vertex} is what it never gave on its inputs"),
            )?;
        }
    }
    for &target in &build.plan.targets {
        let is_done = match build.plan.want {
            Want::Identity => build.is_known(target),
            Want::Content => build.is_complete(target),
        };
        check(is_done, || {
            format!("target {target} is not what was asked for")
        })?;
    }
    Ok(())
}

/// Nothing ran twice: not in one build, and not in two.
fn judge_runs(case: &Case, world: &World) -> Result<(), String> {
    if !case.is_settled() {
        return Ok(());
    }
    let mut keys = BTreeSet::new();
    for run in &world.runs {
        let is_asked_for = case.steps[run.vertex].no_cache;
        check(is_asked_for || keys.insert(run.key), || {
            format!("vertex {} ran, as its like had before", run.vertex)
        })?;
    }
    Ok(())
}

/// A build after all that does what is left, and one after that nothing.
fn judge_rerun(
    case: &Case,
    mut world: World,
    builds: &[Build],
    random: &mut Random,
) -> Result<(), String> {
    let again = case.once_more();
    let ran = world.runs.len();
    let rest = run(&again, &mut world, random)?;
    judge_results(&again, &rest[0], &world)?;
    judge_runs(case, &world)?;
    let asked = |world: &World, from: usize| {
        let runs = world.runs[from..].iter();
        runs.filter(|run| !case.steps[run.vertex].no_cache).count()
    };
    let all_finished = builds.iter().all(|build| build.end == Some(End::Finished));
    if all_finished && case.is_settled() {
        // All targets of all builds were done, so nothing is left.
        check(asked(&world, ran) == 0, || {
            "a second build runs what the first ones did".to_owned()
        })?;
    }
    let ran = world.runs.len();
    let last = run(&again, &mut world, random)?;
    if case.is_settled() {
        check(asked(&world, ran) == 0, || {
            "a third build runs what the second one did".to_owned()
        })?;
        let executes = |action: &Action| match action {
            Action::Execute(vertex) => !case.steps[*vertex].no_cache,
            _ => false,
        };
        check(!last[0].performed().iter().any(executes), || {
            "a third build executes".to_owned()
        })?;
    }
    Ok(())
}

/// Judges a case; what panics fails.
fn verdict(case: &Case) -> Result<(), String> {
    match catch_unwind(AssertUnwindSafe(|| judge(case))) {
        Ok(verdict) => verdict,
        Err(panic) => Err(panic
            .downcast_ref::<String>()
            .cloned()
            .or_else(|| panic.downcast_ref::<&str>().map(|&text| text.to_owned()))
            .unwrap_or_else(|| "panicked".to_owned())),
    }
}

/// Makes a failing case smaller for as long as it fails.
fn shrink(mut case: Case) -> (Case, String) {
    let quiet = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    let mut why = verdict(&case).expect_err("the case fails");
    'smaller: loop {
        for smaller in case.smaller() {
            if let Err(now) = verdict(&smaller) {
                (case, why) = (smaller, now);
                continue 'smaller;
            }
        }
        std::panic::set_hook(quiet);
        return (case, why);
    }
}
