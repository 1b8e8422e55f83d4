//! The driver: performs the scheduler's actions on a bounded number of threads and feeds the answers back.
//!
//! Quick actions (a look into the index) are done in place; only what may take long goes to a thread, and threads are
//! made when there is work for them. A build in which everything hits starts none. What only waits for an answer from
//! elsewhere has threads of its own, so that look-ups in a shared cache are all in flight together, and a step that somebody
//! else is running keeps no other from running.

mod hands;

use std::sync::mpsc;
use std::time::Duration;

use super::cancel::Cancel;
use super::scheduler::{Action, Event, Progress, Scheduler, VertexShape, Want};
use hands::Hands;

/// Most actions that wait for answers at a time.
const WAITING_MAX: usize = 64;

/// Where an action is done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// At once, by the driver itself: it is so quick that a thread would cost more.
    Here,
    /// On a thread that mostly waits for somebody's answer: as many as there are, within reason.
    Waiting,
    /// On one of the threads that do the work: at most as many as there are jobs.
    Working,
}

/// How running a vertex went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Executed {
    /// It is complete.
    Done {
        /// Whether its identity was known, and is another one now.
        changed: bool,
    },
    /// Somebody else is at it.
    Busy,
}

/// Does what the scheduler asks for.
pub trait Work: Sync {
    /// What can go wrong.
    type Error: Send;

    /// Derives the fast key and looks it up; true on a hit.
    fn identify(&self, vertex: usize) -> Result<bool, Self::Error>;
    /// Derives the slow key and looks it up; true on a hit.
    fn digest(&self, vertex: usize) -> Result<bool, Self::Error>;
    /// Brings a known result's layers here; false if they exist nowhere.
    fn fetch(&self, vertex: usize) -> Result<bool, Self::Error>;
    /// Runs it, unless somebody else does.
    fn execute(&self, vertex: usize) -> Result<Executed, Self::Error>;
    /// Waits until nobody else runs it.
    fn wait(&self, vertex: usize) -> Result<(), Self::Error>;
    /// How long each vertex takes, by what is known of earlier builds. Asked for at most once, and only when more is to
    /// run than there are jobs.
    fn costs(&self) -> Vec<Duration>;
    /// Many quick actions may follow, one after the other, on the driver's thread.
    fn begin_hurry(&self) {}
    /// That is over: the driver is going to wait, or is done.
    fn end_hurry(&self) {}
    /// Where the action is done.
    fn lane(&self, action: Action) -> Lane;
}

/// How a solve that did not finish ended.
#[derive(Debug)]
pub enum SolveError<E> {
    /// A vertex failed; the first that did.
    Failed {
        /// The vertex.
        vertex: usize,
        /// Why.
        error: E,
    },
    /// [`Cancel`] was set.
    Cancelled,
}

/// Solves `targets` as far as is wanted, with at most `jobs` actions at a time; of more, those with the longest way to go
/// are done first. On a failure `abort` is set, which should end whatever else is under way; `cancel` is the caller's own
/// flag. Returns once nothing is under way any more.
pub fn solve<W: Work>(
    work: &W,
    shapes: Vec<VertexShape>,
    (targets, want): (&[usize], Want),
    jobs: usize,
    cancel: &Cancel,
    abort: &Cancel,
) -> Result<(), SolveError<W::Error>> {
    let (mut scheduler, first) = Scheduler::new(shapes, targets, want);
    let (working, waiting) = (Hands::new(jobs.max(1)), Hands::new(WAITING_MAX));
    let (answers, inbox) = mpsc::channel::<Answer<'_, W>>();
    std::thread::scope(|scope| {
        let _close = [CloseOnDrop(&working), CloseOnDrop(&waiting)];
        let mut todo = first;
        let mut failure = None;
        let mut hurrying = false;
        loop {
            let [quick, to_work, to_wait] = by_lane(work, std::mem::take(&mut todo));
            let is_run = |action: &Action| matches!(action, Action::Execute(_));
            if to_work.iter().any(is_run) && !working.has_room_for(to_work.len()) {
                working.order(|| scheduler.remaining_paths(&work.costs()));
            }
            // Slow work first, so that it runs while the quick work is done here.
            for (hands, actions) in [(&working, to_work), (&waiting, to_wait)] {
                for _ in 0..hands.push(actions) {
                    let sender = answers.clone();
                    let spawned = std::thread::Builder::new()
                        .name("solve".to_owned())
                        .spawn_scoped(scope, move || {
                            while let Some(action) = hands.take() {
                                // The receiver lives as long as this scope.
                                let _sent = sender.send((hands, action, perform(work, action)));
                            }
                        });
                    // No thread to be had: with none at all, the work is done here.
                    if spawned.is_err() && hands.lost_one() == 0 {
                        while let Some(action) = hands.try_take() {
                            let _sent = answers.send((hands, action, perform(work, action)));
                        }
                    }
                }
            }
            let mut settled = Vec::new();
            if !quick.is_empty() && !std::mem::replace(&mut hurrying, true) {
                work.begin_hurry();
            }
            for action in quick {
                settled.push((action, perform(work, action)));
            }
            if settled.is_empty() {
                if std::mem::take(&mut hurrying) {
                    work.end_hurry();
                }
                match scheduler.progress() {
                    Progress::Finished if working.are_idle() && waiting.are_idle() => {
                        return Ok(());
                    }
                    Progress::Stopped => {
                        return Err(failure.unwrap_or(SolveError::Cancelled));
                    }
                    Progress::Finished | Progress::Running => {}
                }
                let (hands, action, result) = inbox.recv().expect("this thread holds a sender");
                hands.answered();
                settled.push((action, result));
            }
            for (action, result) in settled {
                let vertex = action.vertex();
                let event = match result {
                    Ok(event) => event,
                    Err(error) => {
                        abort.cancel();
                        if failure.is_none() && !cancel.is_cancelled() {
                            failure = Some(SolveError::Failed { vertex, error });
                        }
                        Event::Failed { vertex }
                    }
                };
                todo.extend(scheduler.on_event(event));
            }
            if cancel.is_cancelled() {
                abort.cancel();
                scheduler.on_event(Event::Cancelled);
            }
            if abort.is_cancelled() {
                // Nothing more begins: neither what was just said to be next, nor what waits for a hand.
                for action in todo.drain(..) {
                    let vertex = action.vertex();
                    scheduler.on_event(Event::Failed { vertex });
                }
                for hands in [&working, &waiting] {
                    while let Some(action) = hands.try_take() {
                        hands.answered();
                        let vertex = action.vertex();
                        scheduler.on_event(Event::Failed { vertex });
                    }
                }
            }
        }
    })
}

/// An action that a thread has done, and of which hands it was one.
type Answer<'h, W> = (&'h Hands, Action, Result<Event, <W as Work>::Error>);

/// Sorts actions by [`Lane`]: here, working, waiting.
fn by_lane<W: Work>(work: &W, actions: Vec<Action>) -> [Vec<Action>; 3] {
    let mut lanes = [const { Vec::new() }; 3];
    for action in actions {
        let lane = match work.lane(action) {
            Lane::Here => 0,
            Lane::Working => 1,
            Lane::Waiting => 2,
        };
        lanes[lane].push(action);
    }
    lanes
}

fn perform<W: Work>(work: &W, action: Action) -> Result<Event, W::Error> {
    Ok(match action {
        Action::Identify(vertex) => Event::Identified {
            vertex,
            hit: work.identify(vertex)?,
        },
        Action::Digest(vertex) => Event::Digested {
            vertex,
            hit: work.digest(vertex)?,
        },
        Action::Fetch(vertex) => Event::Fetched {
            vertex,
            found: work.fetch(vertex)?,
        },
        Action::Execute(vertex) => match work.execute(vertex)? {
            Executed::Done { changed } => Event::Executed { vertex, changed },
            Executed::Busy => Event::Busy { vertex },
        },
        Action::Await(vertex) => {
            work.wait(vertex)?;
            Event::Freed { vertex }
        }
    })
}

/// Lets the threads end when the scope is left, by whatever way.
struct CloseOnDrop<'a>(&'a Hands);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Barrier, Mutex};

    /// Runs everything, failing at one vertex, and counts how much runs at once.
    #[derive(Default)]
    struct Recorder {
        costs: Vec<Duration>,
        /// One that somebody else runs until it is waited for.
        busy: Option<usize>,
        waited: AtomicUsize,
        fails: Option<usize>,
        /// Whether identities are asked for elsewhere: the first answer comes when all were asked for.
        asks: Option<Barrier>,
        running: AtomicUsize,
        most: AtomicUsize,
        executed: Mutex<Vec<usize>>,
    }

    impl Work for Recorder {
        type Error = String;

        fn identify(&self, vertex: usize) -> Result<bool, String> {
            if let Some(barrier) = &self.asks
                && vertex < FAN
            {
                barrier.wait();
            }
            Ok(false)
        }

        fn digest(&self, _vertex: usize) -> Result<bool, String> {
            Ok(false)
        }

        fn fetch(&self, _vertex: usize) -> Result<bool, String> {
            Ok(true)
        }

        fn execute(&self, vertex: usize) -> Result<Executed, String> {
            if self.busy == Some(vertex) && self.waited.load(Ordering::SeqCst) == 0 {
                return Ok(Executed::Busy);
            }
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::yield_now();
            self.executed.lock().unwrap().push(vertex);
            self.running.fetch_sub(1, Ordering::SeqCst);
            if self.fails == Some(vertex) {
                Err(format!("vertex {vertex}"))
            } else {
                Ok(Executed::Done { changed: false })
            }
        }

        fn wait(&self, vertex: usize) -> Result<(), String> {
            assert_eq!(self.busy, Some(vertex));
            self.waited.fetch_add(1, Ordering::SeqCst);
            Ok(())
        }

        fn costs(&self) -> Vec<Duration> {
            self.costs.clone()
        }

        fn lane(&self, action: Action) -> Lane {
            match action {
                Action::Identify(_) if self.asks.is_some() => Lane::Waiting,
                Action::Identify(_) => Lane::Here,
                Action::Await(_) => Lane::Waiting,
                _ => Lane::Working,
            }
        }
    }

    fn fan(width: usize) -> Vec<VertexShape> {
        let mut shapes = vec![VertexShape::default(); width];
        shapes.push(VertexShape {
            inputs: (0..width).collect(),
            ..VertexShape::default()
        });
        shapes
    }

    const FAN: usize = 40;

    fn run(fails: Option<usize>, cancelled: bool) -> (Result<(), SolveError<String>>, Recorder) {
        let work = Recorder {
            fails,
            ..Recorder::default()
        };
        run_with(work, 3, cancelled)
    }

    fn run_with(
        work: Recorder,
        jobs: usize,
        cancelled: bool,
    ) -> (Result<(), SolveError<String>>, Recorder) {
        let (cancel, abort) = (Cancel::new().unwrap(), Cancel::new().unwrap());
        if cancelled {
            cancel.cancel();
        }
        let asked = (&[FAN][..], Want::Content);
        let result = solve(&work, fan(FAN), asked, jobs, &cancel, &abort);
        assert_eq!(abort.is_cancelled(), work.fails.is_some() || cancelled);
        (result, work)
    }

    #[test]
    fn runs_all_within_the_bound() {
        let (result, work) = run(None, false);
        assert!(result.is_ok());
        assert!(work.most.into_inner() <= 3);
        let executed = work.executed.into_inner().unwrap();
        assert_eq!(executed.len(), 41);
        assert_eq!(executed.last(), Some(&40));
    }

    #[test]
    fn all_that_waits_for_answers_is_in_flight_together() {
        // Each look-up waits for all the others: with fewer in flight this would never end.
        let asks = Recorder {
            asks: Some(Barrier::new(FAN)),
            ..Recorder::default()
        };
        let (result, work) = run_with(asks, 3, false);
        assert!(result.is_ok());
        assert!(work.most.into_inner() <= 3);
    }

    #[test]
    fn the_longest_path_begins_first() {
        let work = Recorder {
            costs: (0..FAN as u64).map(Duration::from_secs).collect(),
            ..Recorder::default()
        };
        let (result, work) = run_with(work, 1, false);
        assert!(result.is_ok());
        let expected: Vec<usize> = (0..FAN).rev().chain([FAN]).collect();
        assert_eq!(work.executed.into_inner().unwrap(), expected);
    }

    #[test]
    fn what_somebody_else_runs_takes_no_job() {
        let work = Recorder {
            busy: Some(0),
            ..Recorder::default()
        };
        let (result, work) = run_with(work, 1, false);
        assert!(result.is_ok());
        assert_eq!(work.waited.into_inner(), 1);
        let executed = work.executed.into_inner().unwrap();
        assert_eq!(executed.len(), FAN + 1);
        assert_eq!(executed[0], 1, "the others went on");
    }

    #[test]
    fn a_failure_ends_the_solve_and_names_the_vertex() {
        let (result, work) = run(Some(5), false);
        match result {
            Err(SolveError::Failed { vertex: 5, error }) => assert_eq!(error, "vertex 5"),
            other => panic!("{other:?}"),
        }
        assert!(!work.executed.into_inner().unwrap().contains(&40));
    }

    #[test]
    fn cancelling_is_told_apart_and_begins_nothing() {
        let (result, work) = run(None, true);
        assert!(matches!(result, Err(SolveError::Cancelled)));
        assert!(work.executed.into_inner().unwrap().is_empty());
    }
}
