//! A seeded simulation: random graphs, caches, completion orders, failures and cancellations, against a naive solver.

use std::collections::BTreeSet;

use super::*;

/// xorshift64*: small, seeded, the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).unwrap()
    }

    fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// A graph, and what the world would answer.
#[derive(Debug)]
struct World {
    shapes: Vec<VertexShape>,
    fast_hit: Vec<bool>,
    slow_hit: Vec<bool>,
    found: Vec<bool>,
}

fn random_world(random: &mut Random) -> World {
    let count = 1 + random.below(24);
    let hit_percent = [0, 30, 70, 100][random.below(4)];
    let lost_percent = [0, 0, 20][random.below(3)];
    let mut shapes = Vec::new();
    for vertex in 0..count {
        let mut inputs = Vec::new();
        for _ in 0..random.below(4) {
            if vertex > 0 {
                let input = random.below(vertex);
                if !inputs.contains(&input) {
                    inputs.push(input);
                }
            }
        }
        let bases = inputs.iter().copied().take(random.below(2)).collect();
        let digest_inputs = random.chance(50).then(|| {
            inputs
                .iter()
                .copied()
                .filter(|_| random.chance(60))
                .collect()
        });
        shapes.push(VertexShape {
            inputs,
            bases,
            digest_inputs,
        });
    }
    let mut flags = |percent| (0..count).map(|_| random.chance(percent)).collect();
    World {
        shapes,
        fast_hit: flags(hit_percent),
        slow_hit: flags(hit_percent),
        found: flags(100 - lost_percent),
    }
}

/// The naive solver: recursive, one thing after the other; yields the set of actions that have to happen.
struct Naive<'a> {
    world: &'a World,
    done: BTreeSet<Action>,
    complete: BTreeSet<usize>,
    missed: BTreeSet<usize>,
}

impl Naive<'_> {
    fn identity(&mut self, vertex: usize) {
        if !self.done.insert(Action::Identify(vertex)) {
            return;
        }
        let shape = &self.world.shapes[vertex];
        for &input in &shape.inputs {
            self.identity(input);
        }
        if self.world.fast_hit[vertex] {
            return;
        }
        if let Some(inputs) = &shape.digest_inputs {
            for &input in inputs {
                self.content(input);
            }
            self.done.insert(Action::Digest(vertex));
            if self.world.slow_hit[vertex] {
                return;
            }
        }
        self.execute(vertex);
    }

    fn execute(&mut self, vertex: usize) {
        self.missed.insert(vertex);
        for &input in &self.world.shapes[vertex].inputs {
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
        for &base in &self.world.shapes[vertex].bases {
            self.content(base);
        }
        self.done.insert(Action::Fetch(vertex));
        if self.world.found[vertex] {
            self.complete.insert(vertex);
        } else {
            self.execute(vertex);
        }
    }
}

/// What the driver would be allowed to assume when it performs `action`.
fn check_preconditions(world: &World, known: &[bool], complete: &[bool], action: Action) {
    let shape = &world.shapes[action.vertex()];
    let all = |set: &[bool], inputs: &[usize]| inputs.iter().all(|&input| set[input]);
    let holds = match action {
        Action::Identify(_) => all(known, &shape.inputs),
        Action::Digest(_) => all(complete, shape.digest_inputs.as_deref().unwrap()),
        Action::Fetch(v) => known[v] && all(complete, &shape.bases),
        Action::Execute(_) => all(complete, &shape.inputs),
    };
    assert!(holds, "{action:?} came too early");
}

struct Faults {
    fail_at: Option<usize>,
    cancel_at: Option<usize>,
}

fn simulate(
    world: &World,
    (targets, want): (&[usize], Want),
    random: &mut Random,
    faults: &Faults,
) -> (Progress, BTreeSet<Action>) {
    let count = world.shapes.len();
    let (mut scheduler, mut pending) = Scheduler::new(world.shapes.clone(), targets, want);
    let (mut known, mut complete) = (vec![false; count], vec![false; count]);
    let mut performed = BTreeSet::new();
    for action in &pending {
        check_preconditions(world, &known, &complete, *action);
    }
    let mut steps = 0;
    let mut stopped = false;
    while !pending.is_empty() {
        assert_ne!(
            scheduler.progress(),
            Progress::Stopped,
            "stopped with work under way"
        );
        steps += 1;
        if faults.cancel_at == Some(steps) {
            stopped = true;
            assert_eq!(scheduler.on_event(Event::Cancelled), []);
        }
        let action = pending.swap_remove(random.below(pending.len()));
        let vertex = action.vertex();
        assert!(performed.insert(action), "{action:?} twice");
        let event = if faults.fail_at == Some(steps) {
            stopped = true;
            Event::Failed { vertex }
        } else {
            match action {
                Action::Identify(_) => {
                    known[vertex] |= world.fast_hit[vertex];
                    Event::Identified {
                        vertex,
                        hit: world.fast_hit[vertex],
                    }
                }
                Action::Digest(_) => {
                    known[vertex] |= world.slow_hit[vertex];
                    Event::Digested {
                        vertex,
                        hit: world.slow_hit[vertex],
                    }
                }
                Action::Fetch(_) => {
                    complete[vertex] |= world.found[vertex];
                    Event::Fetched {
                        vertex,
                        found: world.found[vertex],
                    }
                }
                Action::Execute(_) => {
                    known[vertex] = true;
                    complete[vertex] = true;
                    Event::Executed { vertex }
                }
            }
        };
        let next = scheduler.on_event(event);
        if stopped {
            assert_eq!(next, [], "a stopping solve started something");
        }
        for action in next {
            check_preconditions(world, &known, &complete, action);
            pending.push(action);
        }
    }
    (scheduler.progress(), performed)
}

/// Seeds per run; `LONGSHORE_SIM_GRAPHS` in the long run (docs/testing.md) sets more.
const GRAPHS: u64 = 4_000;

#[test]
fn agrees_with_the_naive_solver() {
    let graphs = option_env!("LONGSHORE_SIM_GRAPHS")
        .and_then(|n| n.parse().ok())
        .unwrap_or(GRAPHS);
    for seed in 1..=graphs {
        let mut random = Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let world = random_world(&mut random);
        let count = world.shapes.len();
        let targets = vec![count - 1, random.below(count)];
        let mut naive = Naive {
            world: &world,
            done: BTreeSet::new(),
            complete: BTreeSet::new(),
            missed: BTreeSet::new(),
        };
        let want = match random.chance(30) {
            true => Want::Identity,
            false => Want::Content,
        };
        for &target in &targets {
            match want {
                Want::Identity => naive.identity(target),
                Want::Content => naive.content(target),
            }
        }
        let asked = (&targets[..], want);
        let none = Faults {
            fail_at: None,
            cancel_at: None,
        };
        let (progress, performed) = simulate(&world, asked, &mut random, &none);
        assert_eq!(progress, Progress::Finished, "seed {seed}: {world:?}");
        assert_eq!(performed, naive.done, "seed {seed}: {world:?}");

        let steps = performed.len();
        let faults = Faults {
            fail_at: random.chance(60).then(|| 1 + random.below(steps)),
            cancel_at: random.chance(60).then(|| 1 + random.below(steps)),
        };
        let (progress, performed) = simulate(&world, asked, &mut random, &faults);
        assert!(
            performed.is_subset(&naive.done),
            "seed {seed}: did what nobody needed"
        );
        if faults.fail_at.is_some() {
            assert_eq!(progress, Progress::Stopped, "seed {seed}: {world:?}");
        } else if faults.cancel_at.is_none() {
            assert_eq!(progress, Progress::Finished, "seed {seed}: {world:?}");
        }
    }
}

#[test]
fn a_cached_target_fetches_only_its_chain() {
    // 0 image, 1 context, 2 exec on 0, 3 copy from 1 on 2: everything hits.
    let shapes = vec![
        VertexShape::default(),
        VertexShape::default(),
        VertexShape {
            inputs: vec![0],
            bases: vec![0],
            digest_inputs: None,
        },
        VertexShape {
            inputs: vec![2, 1],
            bases: vec![2],
            digest_inputs: Some(vec![1]),
        },
    ];
    let world = World {
        shapes,
        fast_hit: vec![true, true, true, false],
        slow_hit: vec![true; 4],
        found: vec![true; 4],
    };
    let none = Faults {
        fail_at: None,
        cancel_at: None,
    };
    let (progress, performed) = simulate(&world, (&[3], Want::Content), &mut Random(7), &none);
    assert_eq!(progress, Progress::Finished);
    let expected = [
        Action::Identify(0),
        Action::Identify(1),
        Action::Identify(2),
        Action::Identify(3),
        Action::Digest(3),
        Action::Fetch(0),
        Action::Fetch(1),
        Action::Fetch(2),
        Action::Fetch(3),
    ];
    assert_eq!(performed, expected.into_iter().collect());

    // Who only wants to know what it is, needs no more than the context.
    let (progress, performed) = simulate(&world, (&[3], Want::Identity), &mut Random(7), &none);
    assert_eq!(progress, Progress::Finished);
    assert!(!performed.contains(&Action::Fetch(0)));
    assert!(!performed.contains(&Action::Fetch(2)));
    assert!(!performed.contains(&Action::Fetch(3)));
}

#[test]
fn ten_thousand_vertices_in_a_row() {
    let shapes = (0..10_000)
        .map(|v: usize| {
            let inputs: Vec<usize> = v.checked_sub(1).into_iter().collect();
            VertexShape {
                bases: inputs.clone(),
                inputs,
                digest_inputs: None,
            }
        })
        .collect::<Vec<_>>();
    let world = World {
        fast_hit: vec![true; shapes.len()],
        slow_hit: vec![true; shapes.len()],
        found: vec![true; shapes.len()],
        shapes,
    };
    let none = Faults {
        fail_at: None,
        cancel_at: None,
    };
    let (progress, performed) = simulate(&world, (&[9_999], Want::Content), &mut Random(7), &none);
    assert_eq!(progress, Progress::Finished);
    assert_eq!(performed.len(), 20_000);
}
