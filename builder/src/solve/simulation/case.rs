//! A case: the graph, what earlier builds left, the builds that run now, and what befalls them.

use std::collections::BTreeSet;

use crate::solve::scheduler::Want;

/// Where all chance comes from: xorshift64*, small, seeded, the same everywhere.
pub(super) struct Random(u64);

impl Random {
    pub(super) fn new(seed: u64) -> Random {
        // The zero state would stay zero.
        Random(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    pub(super) fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.next() % bound as u64).expect("less than a usize")
    }

    pub(super) fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }
}

/// What a step does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// An image: its identity is known at once.
    Image,
    /// A folder: it has no identity, only what is selected of it.
    Context,
    /// A process: anything may come of what it reads.
    Exec,
    /// What is selected comes out.
    Copy,
    /// All of the second input on top of the first.
    Merge,
}

/// Paths are small numbers.
pub(super) type Paths = BTreeSet<u8>;

/// A vertex.
#[derive(Clone, Debug)]
pub(super) struct Step {
    pub(super) kind: Kind,
    /// Vertices before this one, none twice.
    pub(super) inputs: Vec<usize>,
    /// Whether the first input is what it stands on.
    pub(super) on_base: bool,
    /// What is selected of the inputs, by position; empty where there is no slow key.
    pub(super) selects: Vec<(usize, Paths)>,
    /// What a process looks at of its base; everything where absent.
    pub(super) reads: Option<Paths>,
    /// Tells operations apart.
    pub(super) salt: u64,
    /// How many different results there are: where few, other inputs give the same.
    pub(super) variety: u64,
    /// Never the same twice.
    pub(super) volatile: bool,
    /// Runs though cached.
    pub(super) no_cache: bool,
}

/// What an earlier build left of a vertex.
#[derive(Clone, Copy, Debug)]
pub(super) struct Left {
    /// The operation was this one then.
    pub(super) salt: u64,
    /// Whether its record is still there.
    pub(super) record: bool,
    /// Whether its layer is.
    pub(super) layer: bool,
}

/// One build.
#[derive(Clone, Debug)]
pub(super) struct BuildPlan {
    pub(super) targets: Vec<usize>,
    pub(super) want: Want,
    pub(super) jobs: usize,
    /// How readily, in per cent, it goes on with what is quick, with what is under way, and begins more.
    pub(super) haste: [usize; 3],
    /// What the vertices are thought to take.
    pub(super) costs: Vec<u64>,
    /// Counted in events: the action fails that is done then, somebody cancels, the process dies.
    pub(super) fail_at: Option<usize>,
    pub(super) cancel_at: Option<usize>,
    pub(super) kill_at: Option<usize>,
}

/// All of it.
#[derive(Clone, Debug)]
pub(super) struct Case {
    pub(super) steps: Vec<Step>,
    /// Of each earlier build, by vertex.
    pub(super) left: Vec<Vec<Left>>,
    pub(super) builds: Vec<BuildPlan>,
    /// Seed of the order of things.
    pub(super) schedule: u64,
}

const PATHS: usize = 4;

fn paths(random: &mut Random) -> Paths {
    let count = random.below(PATHS);
    let paths = (0..count).map(|_| u8::try_from(random.below(PATHS)).expect("small"));
    paths.collect()
}

fn step(vertex: usize, random: &mut Random, twins: bool, volatile: usize) -> Step {
    let wanted = random.below(4).min(vertex);
    let mut inputs = Vec::new();
    for _ in 0..wanted {
        // Near ones make chains, far ones diamonds.
        let reach = match random.chance(50) {
            true => vertex.min(2),
            false => vertex,
        };
        let input = vertex - 1 - random.below(reach);
        if !inputs.contains(&input) {
            inputs.push(input);
        }
    }
    let kind = match (inputs.len(), random.below(10)) {
        (0, 0..5) => Kind::Context,
        (0, _) => Kind::Image,
        (2, 0) => Kind::Merge,
        (_, 0..5) => Kind::Copy,
        _ => Kind::Exec,
    };
    let on_base = kind == Kind::Merge || (!inputs.is_empty() && random.chance(70));
    let sources = usize::from(on_base)..inputs.len();
    let selects = match kind {
        Kind::Exec | Kind::Copy => sources.map(|at| (at, paths(random))).collect(),
        _ => Vec::new(),
    };
    Step {
        kind,
        inputs,
        on_base,
        selects,
        reads: random.chance(40).then(|| paths(random)),
        salt: match twins && random.chance(50) {
            true => random.below(2) as u64,
            false => 10 + vertex as u64,
        },
        variety: [1, 2, 3, 1_000_000][random.below(4)],
        volatile: kind == Kind::Exec && random.chance(volatile),
        no_cache: false,
    }
}

impl Step {
    /// Whether it can be executed.
    pub(super) fn runs(&self) -> bool {
        matches!(self.kind, Kind::Exec | Kind::Copy)
    }
}

impl Case {
    pub(super) fn of_seed(seed: u64) -> Case {
        let mut random = Random::new(seed);
        let random = &mut random;
        let size = [4, 10, 30][random.below(3)];
        let count = 1 + random.below(size);
        let twins = random.chance(30);
        let volatile = [0, 0, 0, 60][random.below(4)];
        let mut steps = Vec::new();
        for vertex in 0..count {
            let mut step = step(vertex, random, twins, volatile);
            step.no_cache = step.runs() && random.chance(3);
            steps.push(step);
        }
        // A base may not be a folder: it has no layers to stand on.
        for vertex in 0..count {
            let base = steps[vertex].inputs.first().copied();
            if steps[vertex].on_base && base.is_some_and(|b| steps[b].kind == Kind::Context) {
                steps[base.expect("there is one")].kind = Kind::Image;
            }
            if steps[vertex].kind == Kind::Merge {
                let upper = steps[vertex].inputs[1];
                if steps[upper].kind == Kind::Context {
                    steps[upper].kind = Kind::Image;
                }
            }
        }
        let kept = [0, 60, 100][random.below(3)];
        // Steps that never give the same are told apart only where what they gave is gone.
        let here = match volatile {
            0 => [100, 100, 60][random.below(3)],
            _ => 50,
        };
        let same = [50, 90, 100][random.below(3)];
        let left = (0..random.below(3)).map(|_| {
            let steps = steps.iter();
            let of = |step: &Step| Left {
                salt: match random.chance(same) {
                    true => step.salt,
                    false => step.salt + 1_000,
                },
                record: random.chance(kept),
                layer: random.chance(here),
            };
            steps.map(of).collect()
        });
        let left = left.collect();
        let plan = |random: &mut Random| BuildPlan {
            targets: (0..=random.below(3)).map(|_| random.below(count)).collect(),
            want: match random.chance(25) {
                true => Want::Identity,
                false => Want::Content,
            },
            jobs: 1 + random.below(4),
            haste: [(); 3].map(|()| [100, 100, 5][random.below(3)]),
            costs: (0..count).map(|_| random.below(20) as u64).collect(),
            fail_at: random.chance(15).then(|| 1 + random.below(3 * count)),
            cancel_at: random.chance(15).then(|| 1 + random.below(3 * count)),
            kill_at: random.chance(10).then(|| 1 + random.below(3 * count)),
        };
        let builds = (0..[1, 1, 2, 3][random.below(4)]).map(|_| plan(random));
        let builds = builds.collect();
        Case {
            steps,
            left,
            builds,
            schedule: random.next(),
        }
    }

    /// Whether steps give the same whenever they run.
    pub(super) fn is_settled(&self) -> bool {
        !self.steps.iter().any(|step| step.volatile)
    }

    /// Whether two vertices may turn out to do the same.
    pub(super) fn has_twins(&self) -> bool {
        let salts: BTreeSet<_> = self
            .steps
            .iter()
            .map(|step| (step.kind, step.salt))
            .collect();
        salts.len() < self.steps.len()
    }

    /// Whether a record may name a layer that is not here.
    pub(super) fn has_lost(&self) -> bool {
        self.left.iter().flatten().any(|left| !left.layer)
    }

    pub(super) fn without_accidents(&mut self) {
        for plan in &mut self.builds {
            (plan.fail_at, plan.cancel_at, plan.kill_at) = (None, None, None);
        }
    }

    /// One build of all that these want, that nothing befalls.
    pub(super) fn once_more(&self) -> Case {
        let mut plan = self.builds[0].clone();
        plan.targets = self.builds.iter().flat_map(|p| p.targets.clone()).collect();
        let content = |plan: &BuildPlan| plan.want == Want::Content;
        plan.want = match self.builds.iter().all(content) {
            true => Want::Content,
            false => Want::Identity,
        };
        let mut case = Case {
            builds: vec![plan],
            ..self.clone()
        };
        case.without_accidents();
        case
    }

    /// This case with one thing less, each thing in turn.
    pub(super) fn smaller(&self) -> Vec<Case> {
        let mut all = Vec::new();
        let mut without = |change: &dyn Fn(&mut Case)| {
            let mut case = self.clone();
            change(&mut case);
            all.push(case);
        };
        if self.builds.len() > 1 {
            for build in 0..self.builds.len() {
                without(&|case| drop(case.builds.remove(build)));
            }
        }
        for earlier in 0..self.left.len() {
            without(&|case| drop(case.left.remove(earlier)));
        }
        for vertex in 0..self.steps.len() {
            if self.steps.iter().any(|step| step.inputs.contains(&vertex)) {
                continue;
            }
            if self
                .builds
                .iter()
                .any(|plan| plan.targets.contains(&vertex))
            {
                continue;
            }
            without(&|case| case.remove(vertex));
        }
        for build in 0..self.builds.len() {
            let plan = &self.builds[build];
            if plan.targets.len() > 1 {
                for target in 0..plan.targets.len() {
                    without(&|case| {
                        case.builds[build].targets.remove(target);
                    });
                }
            }
            if plan.fail_at.or(plan.cancel_at).or(plan.kill_at).is_some() {
                without(&|case| {
                    let plan = &mut case.builds[build];
                    (plan.fail_at, plan.cancel_at, plan.kill_at) = (None, None, None);
                });
            }
        }
        all
    }

    fn remove(&mut self, vertex: usize) {
        let moved = |other: &mut usize| *other -= usize::from(*other > vertex);
        self.steps.remove(vertex);
        for step in &mut self.steps {
            step.inputs.iter_mut().for_each(moved);
        }
        for left in &mut self.left {
            left.remove(vertex);
        }
        for plan in &mut self.builds {
            plan.targets.iter_mut().for_each(moved);
            plan.costs.remove(vertex);
        }
    }
}
