//! The driver: performs the scheduler's actions on a bounded number of threads and feeds the answers back.
//!
//! Quick actions (a look into the index) are done in place; only what may take long goes to a thread, and threads are
//! made when there is work for them. A build in which everything hits starts none. What only waits for an answer from
//! elsewhere has threads of its own, so that look-ups in a shared cache are all in flight together.

use std::collections::VecDeque;
use std::sync::mpsc;
use std::sync::{Condvar, Mutex, PoisonError};

use super::cancel::Cancel;
use super::scheduler::{Action, Event, Progress, Scheduler, VertexShape, Want};

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
    /// Runs it.
    fn execute(&self, vertex: usize) -> Result<(), Self::Error>;
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

/// Solves `targets` as far as is wanted, with at most `jobs` actions at a time. On a failure `abort` is set, which should
/// end whatever else is under way; `cancel` is the caller's own flag. Returns once nothing is under way any more.
pub fn solve<W: Work>(
    work: &W,
    shapes: Vec<VertexShape>,
    (targets, want): (&[usize], Want),
    jobs: usize,
    cancel: &Cancel,
    abort: &Cancel,
) -> Result<(), SolveError<W::Error>> {
    let (mut scheduler, first) = Scheduler::new(shapes, targets, want);
    let (working, waiting) = (Queue::default(), Queue::default());
    let (answers, inbox) = mpsc::channel();
    std::thread::scope(|scope| {
        let _close = [CloseOnDrop(&working), CloseOnDrop(&waiting)];
        let mut todo: VecDeque<Action> = first.into();
        let mut failure = None;
        let mut under_way = 0_usize;
        let (mut workers, mut waiters) = (0_usize, 0_usize);
        loop {
            // Slow work first, so that it runs while the quick work is done here.
            let (quick, slow): (Vec<_>, Vec<_>) = todo
                .drain(..)
                .partition(|&action| work.lane(action) == Lane::Here);
            for action in slow {
                under_way += 1;
                let (queue, threads, most) = match work.lane(action) {
                    Lane::Waiting => (&waiting, &mut waiters, WAITING_MAX),
                    Lane::Here | Lane::Working => (&working, &mut workers, jobs.max(1)),
                };
                let idle = queue.push(action);
                if !idle && *threads < most {
                    *threads += 1;
                    let sender = answers.clone();
                    let spawned = std::thread::Builder::new()
                        .name("solve".to_owned())
                        .spawn_scoped(scope, move || {
                            while let Some(action) = queue.pop() {
                                // The receiver lives as long as this scope.
                                let _sent = sender.send((action, perform(work, action)));
                            }
                        });
                    if spawned.is_err() {
                        // No thread to be had: with none at all, the work is done here.
                        *threads -= 1;
                        if *threads == 0
                            && let Some(action) = queue.try_pop()
                        {
                            let _sent = answers.send((action, perform(work, action)));
                        }
                    }
                }
            }
            let mut settled = Vec::new();
            for action in quick {
                settled.push((action, perform(work, action)));
            }
            if settled.is_empty() {
                match scheduler.progress() {
                    Progress::Finished if under_way == 0 => return Ok(()),
                    Progress::Stopped => {
                        return Err(failure.unwrap_or(SolveError::Cancelled));
                    }
                    Progress::Finished | Progress::Running => {}
                }
                let answer = inbox.recv().expect("this thread holds a sender");
                under_way -= 1;
                settled.push(answer);
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
                todo.extend(scheduler.on_event(Event::Cancelled));
            }
        }
    })
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
        Action::Execute(vertex) => {
            work.execute(vertex)?;
            Event::Executed { vertex }
        }
    })
}

/// Actions waiting for a thread.
#[derive(Default)]
struct Queue {
    inner: Mutex<QueueState>,
    changed: Condvar,
}

#[derive(Default)]
struct QueueState {
    actions: VecDeque<Action>,
    idle: usize,
    closed: bool,
}

impl Queue {
    /// Adds an action; tells whether an idle thread is there to take it.
    fn push(&self, action: Action) -> bool {
        let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        state.actions.push_back(action);
        self.changed.notify_one();
        state.idle >= state.actions.len()
    }

    fn pop(&self) -> Option<Action> {
        let mut state = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            if state.closed {
                return None;
            }
            if let Some(action) = state.actions.pop_front() {
                return Some(action);
            }
            state.idle += 1;
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn try_pop(&self) -> Option<Action> {
        self.inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .actions
            .pop_front()
    }
}

/// Lets the threads end when the scope is left, by whatever way.
struct CloseOnDrop<'a>(&'a Queue);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0
            .inner
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .closed = true;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Runs everything, failing at one vertex, and counts how much runs at once.
    struct Recorder {
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

        fn execute(&self, vertex: usize) -> Result<(), String> {
            let now = self.running.fetch_add(1, Ordering::SeqCst) + 1;
            self.most.fetch_max(now, Ordering::SeqCst);
            std::thread::yield_now();
            self.executed.lock().unwrap().push(vertex);
            self.running.fetch_sub(1, Ordering::SeqCst);
            if self.fails == Some(vertex) {
                Err(format!("vertex {vertex}"))
            } else {
                Ok(())
            }
        }

        fn lane(&self, action: Action) -> Lane {
            match action {
                Action::Identify(_) if self.asks.is_some() => Lane::Waiting,
                Action::Identify(_) => Lane::Here,
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
        run_with(fails, cancelled, None)
    }

    fn run_with(
        fails: Option<usize>,
        cancelled: bool,
        asks: Option<Barrier>,
    ) -> (Result<(), SolveError<String>>, Recorder) {
        let work = Recorder {
            fails,
            asks,
            running: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            executed: Mutex::default(),
        };
        let (cancel, abort) = (Cancel::new().unwrap(), Cancel::new().unwrap());
        if cancelled {
            cancel.cancel();
        }
        let result = solve(&work, fan(FAN), (&[FAN], Want::Content), 3, &cancel, &abort);
        assert_eq!(abort.is_cancelled(), fails.is_some() || cancelled);
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
        let (result, work) = run_with(None, false, Some(Barrier::new(FAN)));
        assert!(result.is_ok());
        assert!(work.most.into_inner() <= 3);
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
    fn cancelling_is_told_apart() {
        let (result, _) = run(None, true);
        assert!(matches!(result, Err(SolveError::Cancelled)));
    }
}
