//! A bounded number of threads and the actions that wait for one of them.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::solve::ready::Ready;
use crate::solve::scheduler::Action;

/// Threads of one kind: what waits for them, and how many there are.
pub(super) struct Hands {
    most: usize,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    ready: Ready,
    ordered: bool,
    threads: usize,
    /// Actions that were pushed and are not answered.
    unanswered: usize,
    closed: bool,
}

impl Hands {
    /// At most `most` threads; none yet.
    pub(super) fn new(most: usize) -> Hands {
        Hands {
            most,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    /// Whether so many more actions can be taken up at once.
    pub(super) fn has_room_for(&self, more: usize) -> bool {
        self.lock().unanswered + more <= self.most
    }

    /// Has the actions taken by their paths from now on; these are asked for once.
    pub(super) fn order(&self, paths: impl FnOnce() -> Vec<Duration>) {
        if !std::mem::replace(&mut self.lock().ordered, true) {
            let paths = paths();
            self.lock().ready.set_paths(paths);
        }
    }

    /// Adds actions; tells how many threads are to be made for them, and counts these as made.
    pub(super) fn push(&self, actions: Vec<Action>) -> usize {
        if actions.is_empty() {
            return 0;
        }
        let mut state = self.lock();
        state.unanswered += actions.len();
        for action in actions {
            state.ready.push(action);
        }
        let wanted = state.unanswered.min(self.most);
        let more = wanted.saturating_sub(state.threads);
        state.threads += more;
        drop(state);
        self.changed.notify_all();
        more
    }

    /// A thread could not be made; tells how many there are.
    pub(super) fn lost_one(&self) -> usize {
        let mut state = self.lock();
        state.threads -= 1;
        state.threads
    }

    /// Waits for an action; none once the hands are closed.
    pub(super) fn take(&self) -> Option<Action> {
        let mut state = self.lock();
        loop {
            if state.closed {
                return None;
            }
            if let Some(action) = state.ready.pop() {
                return Some(action);
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes an action if one waits.
    pub(super) fn try_take(&self) -> Option<Action> {
        self.lock().ready.pop()
    }

    /// Notes that an action was answered.
    pub(super) fn answered(&self) {
        self.lock().unanswered -= 1;
    }

    /// Whether all that was pushed is answered.
    pub(super) fn are_idle(&self) -> bool {
        self.lock().unanswered == 0
    }

    /// Lets the threads end.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // What is in it is whole after every statement.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
