//! Single solves, written out. Random ones are in `solve/simulation.rs`.

use std::collections::BTreeSet;

use super::*;

/// Answers every action as it comes, with what the world has, until there are no more; what was done, in order.
fn solve(
    shapes: Vec<VertexShape>,
    target: usize,
    want: Want,
    mut answer: impl FnMut(Action) -> Event,
) -> Vec<Action> {
    let (mut scheduler, first) = Scheduler::new(shapes, &[target], want);
    let mut todo: VecDeque<Action> = first.into();
    let mut done = Vec::new();
    while let Some(action) = todo.pop_front() {
        done.push(action);
        todo.extend(scheduler.on_event(answer(action)));
    }
    assert_eq!(scheduler.progress(), Progress::Finished);
    done
}

/// Everything is known by its fast key, but vertices of which only the slow key is; nothing is lost.
fn all_hits(action: Action, slow: &[usize]) -> Event {
    match action {
        Action::Identify(vertex) => Event::Identified {
            vertex,
            hit: !slow.contains(&vertex),
        },
        Action::Digest(vertex) => Event::Digested { vertex, hit: true },
        Action::Fetch(vertex) => Event::Fetched {
            vertex,
            found: true,
        },
        Action::Execute(_) | Action::Await(_) => panic!("{action:?} though all is cached"),
    }
}

/// 0 image, 1 context, 2 exec on 0, 3 copy from 1 on 2.
fn small() -> Vec<VertexShape> {
    vec![
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
    ]
}

#[test]
fn a_cached_target_fetches_only_its_chain() {
    let done = solve(small(), 3, Want::Content, |action| all_hits(action, &[3]));
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
    assert_eq!(done.len(), expected.len());
    let done: BTreeSet<Action> = done.into_iter().collect();
    assert_eq!(done, expected.into_iter().collect());
}

#[test]
fn who_wants_to_know_what_it_is_needs_no_more_than_the_context() {
    let done = solve(small(), 3, Want::Identity, |action| all_hits(action, &[3]));
    let fetched = |action: &&Action| matches!(action, Action::Fetch(_));
    assert_eq!(
        done.iter().filter(fetched).collect::<Vec<_>>(),
        [&Action::Fetch(1)]
    );
}

#[test]
fn what_went_by_a_result_that_is_another_now_is_derived_again() {
    // 3 is a hit by what 2 was; 2 is gone, and comes out different.
    let mut identified = Vec::new();
    let done = solve(small(), 3, Want::Content, |action| match action {
        Action::Identify(3) => {
            identified.push(3);
            Event::Identified {
                vertex: 3,
                hit: true,
            }
        }
        Action::Fetch(2) => Event::Fetched {
            vertex: 2,
            found: false,
        },
        Action::Execute(2) => Event::Executed {
            vertex: 2,
            changed: true,
        },
        action => all_hits(action, &[]),
    });
    assert_eq!(identified, [3, 3]);
    let place = |wanted: Action| done.iter().rposition(|&action| action == wanted);
    assert!(place(Action::Identify(3)) > place(Action::Execute(2)));
    assert_eq!(done.last(), Some(&Action::Fetch(3)));
}

#[test]
fn a_step_that_somebody_else_runs_is_waited_for_and_tried_again() {
    let mut busy = true;
    let done = solve(small(), 2, Want::Content, |action| match action {
        Action::Identify(2) => Event::Identified {
            vertex: 2,
            hit: false,
        },
        Action::Execute(2) if busy => Event::Busy { vertex: 2 },
        Action::Execute(2) => Event::Executed {
            vertex: 2,
            changed: false,
        },
        Action::Await(2) => {
            busy = false;
            Event::Freed { vertex: 2 }
        }
        action => all_hits(action, &[]),
    });
    let expected = [Action::Execute(2), Action::Await(2), Action::Execute(2)];
    assert_eq!(done[done.len() - 3..], expected);
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
        .collect();
    let done = solve(shapes, 9_999, Want::Content, |action| all_hits(action, &[]));
    assert_eq!(done.len(), 20_000);
}

#[test]
fn nothing_is_identified_anew_under_a_step_that_reads_it() {
    let on = |base: usize| VertexShape {
        inputs: vec![base],
        bases: vec![base],
        digest_inputs: None,
    };
    // 2 copies from 1, 3 runs on the copy, 4 on what was copied from; 1 is known, gone, and comes out different.
    let copy = VertexShape {
        inputs: vec![1],
        bases: Vec::new(),
        digest_inputs: Some(vec![1]),
    };
    let shapes = vec![VertexShape::default(), on(0), copy, on(2), on(1)];
    let (mut scheduler, mut todo) = Scheduler::new(shapes, &[3, 4], Want::Content);
    let mut running = Vec::new();
    while let Some(action) = todo.pop() {
        let vertex = action.vertex();
        todo.extend(match action {
            Action::Identify(3 | 4) => scheduler.on_event(Event::Identified { vertex, hit: false }),
            Action::Fetch(1) => scheduler.on_event(Event::Fetched {
                vertex,
                found: false,
            }),
            Action::Execute(_) => {
                running.push(vertex);
                continue;
            }
            action => scheduler.on_event(all_hits(action, &[])),
        });
    }
    running.sort_unstable();
    assert_eq!(running, [1, 3]);
    let executed = |vertex, changed| Event::Executed { vertex, changed };
    // 2 is to be derived again, but 3 is reading it.
    assert_eq!(scheduler.on_event(executed(1, true)), []);
    let mut next = scheduler.on_event(executed(3, false));
    next.sort_unstable();
    assert_eq!(next, [Action::Identify(2), Action::Identify(4)]);
}
