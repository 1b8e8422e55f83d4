//! The scheduler: a value that turns events into actions, with no clock, file or thread in it.
//!
//! Each vertex goes through these states; an arrow is an event, a name in brackets the action that the state emits.
//!
//! ```text
//! Idle ─ identity wanted ─► AwaitIdentities ─► Identifying [Identify]
//!                                                │ hit            │ miss
//!                                                │                ├─ slow key ─► AwaitDigestInputs ─► Digesting [Digest]
//!                                                ▼                │                                    │ hit │ miss
//!   ┌──────────────────────────────────────── Known ◄─────────────┼────────────────────────────────────┘     │
//!   │ content wanted                                              ▼                                          │
//!   ▼                                                      AwaitInputs ◄─────────────────────────────────────┘
//! AwaitBase ─► Fetching [Fetch] ─ it is gone ─► AwaitInputs ─► Executing [Execute] ─► Complete
//!                  └────────────────────────────────────────────►│   ▲──────────────────►
//!                                            somebody else is at it ▼   │ he is done, or dead
//!                                                            Waiting [Await]
//! ```
//!
//! A vertex is *known* once its identity is, and *complete* once its layers are on this disk. Inputs are asked for the
//! weaker of the two that will do, so nothing is fetched, digested or run that nobody reads.
//!
//! A known result may turn out to be gone, and running the step again may give another one. Whatever was derived from the
//! old one is then derived again: it goes back to `AwaitIdentities`, from under an action once that is answered. Until all of
//! these are, nothing is identified, so that no action sees its inputs change.

use std::collections::VecDeque;
use std::time::Duration;

/// What the scheduler must know of a vertex.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VertexShape {
    /// Vertices read, each before this one.
    pub inputs: Vec<usize>,
    /// Inputs whose layers are part of this vertex's result: its base. A subset of `inputs`.
    pub bases: Vec<usize>,
    /// Inputs that must be complete before a slow key can be computed; `None` where there is only a fast key.
    pub digest_inputs: Option<Vec<usize>>,
}

/// Something that has happened to a vertex.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// [`Action::Identify`] is done: whether the identity is known by it.
    Identified {
        /// The vertex.
        vertex: usize,
        /// Whether the cache had its result.
        hit: bool,
    },
    /// [`Action::Digest`] is done: whether the identity is known by it.
    Digested {
        /// The vertex.
        vertex: usize,
        /// Whether the cache had its result.
        hit: bool,
    },
    /// [`Action::Fetch`] is done: whether the layers are here now.
    Fetched {
        /// The vertex.
        vertex: usize,
        /// False if the recorded result exists nowhere any more.
        found: bool,
    },
    /// [`Action::Execute`] is done.
    Executed {
        /// The vertex.
        vertex: usize,
        /// Whether its identity was known, and is another one now.
        changed: bool,
    },
    /// [`Action::Execute`] could not begin: somebody else does the same.
    Busy {
        /// The vertex.
        vertex: usize,
    },
    /// [`Action::Await`] is done: nobody else is at it any more.
    Freed {
        /// The vertex.
        vertex: usize,
    },
    /// The action of a vertex failed.
    Failed {
        /// The vertex.
        vertex: usize,
    },
    /// Nobody wants the result any more.
    Cancelled,
}

/// Something for the driver to do; each is answered by exactly one event.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Derive the fast key and look it up. The inputs are known.
    Identify(usize),
    /// Derive the slow key and look it up. The digest inputs are complete.
    Digest(usize),
    /// Bring the recorded result's layers to this disk. The bases are complete.
    Fetch(usize),
    /// Run it. The inputs are complete.
    Execute(usize),
    /// Wait until nobody else runs the same.
    Await(usize),
}

impl Action {
    /// The vertex it is about.
    pub fn vertex(self) -> usize {
        match self {
            Action::Identify(v)
            | Action::Digest(v)
            | Action::Fetch(v)
            | Action::Execute(v)
            | Action::Await(v) => v,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Idle,
    AwaitIdentities,
    Identifying,
    AwaitDigestInputs,
    Digesting,
    AwaitInputs,
    Executing,
    AwaitTurn,
    Waiting,
    Known,
    AwaitBase,
    Fetching,
    Complete,
}

impl State {
    fn is_under_way(self) -> bool {
        matches!(
            self,
            State::Identifying
                | State::Digesting
                | State::Fetching
                | State::Executing
                | State::Waiting
        )
    }

    fn is_known(self) -> bool {
        matches!(
            self,
            State::Known | State::AwaitBase | State::Fetching | State::Complete
        )
    }
}

#[derive(Clone, Debug)]
struct Node {
    shape: VertexShape,
    users: Vec<usize>,
    state: State,
    content_wanted: bool,
    /// What its action goes by holds no longer: the answer counts for nothing.
    stale: bool,
}

impl Node {
    fn is_known(&self) -> bool {
        self.state.is_known() && !self.stale
    }
}

/// What is asked of the targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Their identities: what a cache has of them may stay where it is.
    Identity,
    /// Their layers, on this disk.
    Content,
}

/// How a solve stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There are answers to wait for.
    Running,
    /// Every target is what was asked of it.
    Finished,
    /// A vertex failed (or the solve was cancelled), and nothing is under way any more.
    Stopped,
}

/// The state of one solve. The same events give the same actions.
#[derive(Clone, Debug)]
pub struct Scheduler {
    nodes: Vec<Node>,
    targets: Vec<usize>,
    want: Want,
    /// Vertices whose state may be able to move.
    ready: VecDeque<usize>,
    under_way: usize,
    /// Actions under way whose answers count for nothing.
    stale: usize,
    /// What would be identified, but for those.
    held: Vec<usize>,
    stopping: bool,
}

impl Scheduler {
    /// A solve of `targets`, of which `want` is asked.
    ///
    /// # Panics
    /// If an input does not stand before its user: a `Definition` cannot hold such a graph.
    pub fn new(
        shapes: Vec<VertexShape>,
        targets: &[usize],
        want: Want,
    ) -> (Scheduler, Vec<Action>) {
        let mut nodes: Vec<Node> = shapes
            .into_iter()
            .map(|shape| Node {
                shape,
                users: Vec::new(),
                state: State::Idle,
                content_wanted: false,
                stale: false,
            })
            .collect();
        for user in 0..nodes.len() {
            for input in nodes[user].shape.inputs.clone() {
                assert!(
                    input < user,
                    "vertex {user} reads {input}, which does not stand before it"
                );
                if nodes[input].users.last() != Some(&user) {
                    nodes[input].users.push(user);
                }
            }
        }
        let mut scheduler = Scheduler {
            nodes,
            targets: targets.to_vec(),
            want,
            ready: VecDeque::new(),
            under_way: 0,
            stale: 0,
            held: Vec::new(),
            stopping: false,
        };
        for &target in targets {
            match want {
                Want::Identity => scheduler.want_identity(target),
                Want::Content => scheduler.want_content(target),
            }
        }
        let actions = scheduler.settle();
        (scheduler, actions)
    }

    /// Takes an event in and says what to do next.
    ///
    /// # Panics
    /// If the event answers no action: the driver owes exactly one answer for each.
    pub fn on_event(&mut self, event: Event) -> Vec<Action> {
        match event {
            Event::Cancelled => self.stopping = true,
            Event::Failed { vertex } => {
                let state = self.nodes[vertex].state;
                assert!(
                    state.is_under_way(),
                    "vertex {vertex} failed in state {state:?}, in which nothing was under way"
                );
                self.under_way -= 1;
                self.stopping = true;
            }
            Event::Identified { vertex, hit } => {
                let next = if hit {
                    State::Known
                } else if self.nodes[vertex].shape.digest_inputs.is_some() {
                    State::AwaitDigestInputs
                } else {
                    State::AwaitInputs
                };
                self.answer(vertex, State::Identifying, next);
            }
            Event::Digested { vertex, hit } => {
                let next = if hit {
                    State::Known
                } else {
                    State::AwaitInputs
                };
                self.answer(vertex, State::Digesting, next);
            }
            Event::Fetched { vertex, found } => {
                let next = if found {
                    State::Complete
                } else {
                    State::AwaitInputs
                };
                self.answer(vertex, State::Fetching, next);
            }
            Event::Executed { vertex, changed } => {
                if changed {
                    self.doubt_users(vertex);
                }
                self.answer(vertex, State::Executing, State::Complete);
            }
            Event::Busy { vertex } => self.answer(vertex, State::Executing, State::AwaitTurn),
            Event::Freed { vertex } => self.answer(vertex, State::Waiting, State::AwaitInputs),
        }
        self.settle()
    }

    /// How long the longest path from each vertex is; see [`remaining_paths`](super::ready::remaining_paths).
    pub fn remaining_paths(&self, costs: &[Duration]) -> Vec<Duration> {
        let inputs: Vec<&[usize]> = self.nodes.iter().map(|n| &n.shape.inputs[..]).collect();
        super::ready::remaining_paths(&inputs, costs)
    }

    /// How the solve stands.
    pub fn progress(&self) -> Progress {
        let is_done = |&target: &usize| match self.want {
            Want::Identity => self.nodes[target].is_known(),
            Want::Content => self.nodes[target].state == State::Complete,
        };
        if self.targets.iter().all(is_done) {
            Progress::Finished
        } else if self.stopping && self.under_way == 0 {
            Progress::Stopped
        } else {
            Progress::Running
        }
    }

    fn answer(&mut self, vertex: usize, from: State, to: State) {
        let node = &mut self.nodes[vertex];
        assert_eq!(
            node.state, from,
            "an answer for vertex {vertex} that nobody asked for"
        );
        let mut to = to;
        if std::mem::take(&mut node.stale) {
            to = State::AwaitIdentities;
            self.stale -= 1;
        }
        node.state = to;
        self.under_way -= 1;
        self.ready.push_back(vertex);
        if self.stale == 0 {
            self.ready.extend(self.held.drain(..));
        }
        if to.is_known() {
            for index in 0..self.nodes[vertex].users.len() {
                self.ready.push_back(self.nodes[vertex].users[index]);
            }
        }
    }

    /// Sends all that goes by `vertex`'s former identity back to where identities are awaited.
    fn doubt_users(&mut self, vertex: usize) {
        let mut stack = self.nodes[vertex].users.clone();
        while let Some(user) = stack.pop() {
            let node = &mut self.nodes[user];
            // Neither they nor their users can have gone by it.
            if node.stale || matches!(node.state, State::Idle | State::AwaitIdentities) {
                continue;
            }
            if node.state.is_under_way() {
                node.stale = true;
                self.stale += 1;
            } else {
                node.state = State::AwaitIdentities;
                self.ready.push_back(user);
            }
            stack.extend(&node.users);
        }
    }

    fn want_identity(&mut self, vertex: usize) {
        // Iterative: a chain of 10,000 vertices must not overflow the stack.
        let mut stack = vec![vertex];
        while let Some(vertex) = stack.pop() {
            let node = &mut self.nodes[vertex];
            if node.state == State::Idle {
                node.state = State::AwaitIdentities;
                stack.extend(node.shape.inputs.iter().rev().copied());
                self.ready.push_back(vertex);
            }
        }
    }

    fn want_content(&mut self, vertex: usize) {
        self.want_identity(vertex);
        if !self.nodes[vertex].content_wanted {
            self.nodes[vertex].content_wanted = true;
            self.ready.push_back(vertex);
        }
    }

    /// Moves every vertex that can move; a stopping solve starts nothing more.
    fn settle(&mut self) -> Vec<Action> {
        let mut actions = Vec::new();
        while let Some(vertex) = self.ready.pop_front() {
            if self.stopping {
                continue;
            }
            if let Some(action) = self.advance(vertex) {
                self.under_way += 1;
                actions.push(action);
            }
        }
        actions
    }

    fn advance(&mut self, vertex: usize) -> Option<Action> {
        let state = self.nodes[vertex].state;
        match state {
            State::AwaitIdentities => {
                let known = |&input: &usize| self.nodes[input].is_known();
                if !self.nodes[vertex].shape.inputs.iter().all(known) {
                    return None;
                }
                if self.stale > 0 {
                    self.held.push(vertex);
                    return None;
                }
                self.nodes[vertex].state = State::Identifying;
                Some(Action::Identify(vertex))
            }
            State::AwaitDigestInputs => {
                let inputs = self.nodes[vertex]
                    .shape
                    .digest_inputs
                    .clone()
                    .unwrap_or_default();
                if !self.all_complete(&inputs) {
                    return None;
                }
                self.nodes[vertex].state = State::Digesting;
                Some(Action::Digest(vertex))
            }
            State::AwaitTurn => {
                self.nodes[vertex].state = State::Waiting;
                Some(Action::Await(vertex))
            }
            State::AwaitInputs => {
                let inputs = self.nodes[vertex].shape.inputs.clone();
                if !self.all_complete(&inputs) {
                    return None;
                }
                self.nodes[vertex].state = State::Executing;
                Some(Action::Execute(vertex))
            }
            State::Known | State::AwaitBase => {
                if !self.nodes[vertex].content_wanted {
                    return None;
                }
                self.nodes[vertex].state = State::AwaitBase;
                let bases = self.nodes[vertex].shape.bases.clone();
                if !self.all_complete(&bases) {
                    return None;
                }
                self.nodes[vertex].state = State::Fetching;
                Some(Action::Fetch(vertex))
            }
            State::Idle
            | State::Identifying
            | State::Digesting
            | State::Fetching
            | State::Executing
            | State::Waiting
            | State::Complete => None,
        }
    }

    /// Asks for the content of `inputs`, and tells whether all of it is here.
    fn all_complete(&mut self, inputs: &[usize]) -> bool {
        let mut all = true;
        for &input in inputs {
            if self.nodes[input].state != State::Complete {
                self.want_content(input);
                all = false;
            }
        }
        all
    }
}

#[cfg(test)]
mod tests;
