//! The loops over many cases, and what the environment asks of them.

use super::case::{Case, Random};
use super::world::World;
use super::{run, shrink, verdict};

/// Cases that every test run looks at.
const CASES: u64 = 3_000;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().expect("a number of cases, or a seed"))
}

#[test]
fn agrees_with_the_naive_solvers() {
    let seeds = match number("SIMULATE_SEED") {
        Some(seed) => seed..=seed,
        None => 1..=number("SIMULATE_GRAPHS").unwrap_or(CASES),
    };
    for seed in seeds {
        let case = Case::of_seed(seed);
        if let Err(why) = verdict(&case) {
            let (case, smaller) = shrink(case);
            panic!("SIMULATE_SEED={seed}: {why}\nsmallest: {smaller}\n{case:#?}");
        }
    }
}

#[test]
fn a_build_may_end_at_every_point() {
    for seed in 1..=40 {
        let mut case = Case::of_seed(seed);
        case.without_accidents();
        let mut world = World::of(&case);
        let mut random = Random::new(case.schedule);
        let builds = run(&case, &mut world, &mut random).unwrap();
        let points = builds[0].events;
        for at in 1..=points {
            for accident in 0..3 {
                let mut ended = case.clone();
                let plan = &mut ended.builds[0];
                match accident {
                    0 => plan.fail_at = Some(at),
                    1 => plan.cancel_at = Some(at),
                    _ => plan.kill_at = Some(at),
                }
                if let Err(why) = verdict(&ended) {
                    let (case, smaller) = shrink(ended);
                    panic!("seed {seed}: {why}\nsmallest: {smaller}\n{case:#?}");
                }
            }
        }
    }
}
