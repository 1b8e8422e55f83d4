//! Writing a build's journal while it goes on: a [`ProgressSink`] between the build and whoever shows it.
//!
//! What cannot be written is said once, in the log, and keeps no build from going on.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use store::Store;
use store::history::{BuildId, BuildRow, BuildStatus, History, Journal};
use store::layer::LayerId;
use store::oci::Digest;

use super::detail::Detail;
use super::line::{Line, Planned, VERSION};
use crate::cache::hex;
use crate::contexts::MainContext;
use crate::error::BuildError;
use crate::graph::op::Encoder;
use crate::graph::{Definition, Op, VertexIndex};
use crate::request::BuildRequest;
use crate::solve::{OutputStream, ProgressEvent, ProgressSink};

const SERIES_DOMAIN: &[u8] = b"longshore build series 1";

/// Longest line of an error that a listing keeps, in characters.
const ERROR_CHARS_MAX: usize = 400;

/// Takes a build's events, writes them down and hands them on.
pub(crate) struct Recorder {
    began: Instant,
    inner: Arc<dyn ProgressSink>,
    state: Mutex<Option<State>>,
}

struct State {
    history: History,
    journal: Journal,
    /// Lines that are not written yet: a build in which everything hits writes once.
    buffer: Vec<u8>,
    full: bool,
    /// Which vertices count as steps.
    steps: Vec<bool>,
    /// Names of what goes before the steps, and since when it runs.
    before: BTreeMap<VertexIndex, (u64, String)>,
    row: BuildRow,
}

/// A build's place in the history, from its first moment on: before it is known what exactly is built.
#[derive(Clone)]
pub struct Recording(pub(crate) Arc<Recorder>);

impl std::fmt::Debug for Recording {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Recording").finish_non_exhaustive()
    }
}

impl Recording {
    /// Begins a journal, unless the store keeps no history. Events go on to `inner`.
    pub fn begin(store: &Store, outline: Outline, inner: &Arc<dyn ProgressSink>) -> Recording {
        let subject = Subject {
            series: outline.series(),
            outline,
        };
        Recording(Recorder::begin(store, &subject, inner))
    }

    /// Where events go.
    pub fn sink(&self) -> Arc<dyn ProgressSink> {
        Arc::clone(&self.0) as Arc<dyn ProgressSink>
    }

    /// Ends it: the build was refused before it began.
    pub fn refused(&self, error: &BuildError) {
        self.0.end(Err(error));
    }

    /// The same for an error of somebody else's, with its causes, one line each.
    pub fn refused_for(&self, error: &str) {
        let brief = Some(one_line(error));
        self.0
            .end_with(BuildStatus::Failed, Some(error.to_owned()), brief, None);
    }
}

/// What is built, as far as it was said.
#[derive(Clone, Debug, Default)]
pub struct Outline {
    /// The context, as it was given.
    pub context: String,
    /// The Dockerfile, as messages call it.
    pub dockerfile: String,
    /// The stage that was asked for.
    pub target: Option<String>,
    /// What is built for.
    pub platform: String,
    /// The image's names.
    pub tags: Vec<String>,
}

impl Outline {
    /// The same for builds that were refused for the same thing.
    fn series(&self) -> [u8; 32] {
        let mut sink = Encoder::new(SERIES_DOMAIN);
        sink.text("outline");
        sink.text(&self.context);
        sink.text(&self.dockerfile);
        sink.text(self.target.as_deref().unwrap_or_default());
        sink.text(&self.platform);
        sink.finish()
    }
}

/// What is built, as the history names it.
#[derive(Clone, Debug)]
pub(crate) struct Subject {
    /// The same for builds that build the same thing: of one context, Dockerfile, target and platform.
    pub(crate) series: [u8; 32],
    pub(crate) outline: Outline,
}

impl Subject {
    pub(crate) fn of(request: &BuildRequest) -> Subject {
        let context = match &request.context {
            Some(MainContext::Folder(path)) => path.display().to_string(),
            Some(MainContext::Tree(tree)) => tree.name.clone(),
            None => String::new(),
        };
        let tags = request.tags.iter().map(store::oci::Reference::familiar);
        Subject {
            series: series(request),
            outline: Outline {
                context,
                dockerfile: request.dockerfile_name.clone(),
                target: request.target.clone(),
                platform: request.platform_list(),
                tags: tags.collect(),
            },
        }
    }
}

fn series(request: &BuildRequest) -> [u8; 32] {
    let mut sink = Encoder::new(SERIES_DOMAIN);
    match &request.context {
        Some(MainContext::Folder(path)) => {
            let path = path.canonicalize().unwrap_or_else(|_| path.clone());
            sink.text("folder");
            sink.bytes(path.as_os_str().as_encoded_bytes());
        }
        Some(MainContext::Tree(tree)) => {
            sink.text("tree");
            sink.text(&tree.name);
        }
        None => sink.text("none"),
    }
    let name = std::path::Path::new(&request.dockerfile_name);
    let name = name.canonicalize().unwrap_or_else(|_| name.to_owned());
    sink.bytes(name.as_os_str().as_encoded_bytes());
    sink.text(request.target.as_deref().unwrap_or_default());
    sink.text(&request.platform_list());
    sink.finish()
}

impl Recorder {
    /// Begins a journal, unless the store keeps no history. Events go on to `inner`.
    pub(crate) fn begin(
        store: &Store,
        subject: &Subject,
        inner: &Arc<dyn ProgressSink>,
    ) -> Arc<Recorder> {
        let history = store.history();
        let state = if history.keep().builds == 0 {
            None
        } else {
            match history.begin() {
                Ok(journal) => Some(State::new(history, journal, subject)),
                Err(error) => {
                    tracing::warn!(%error, "this build will not be in the history");
                    None
                }
            }
        };
        if let Some(state) = &state {
            let build = state.row.id.clone();
            inner.event(ProgressEvent::Begun { build });
        }
        let recorder = Recorder {
            began: Instant::now(),
            inner: Arc::clone(inner),
            state: Mutex::new(state),
        };
        recorder.write(|state, _| {
            state.begin(subject);
            // So that a build that is killed at once is known.
            state.flush();
        });
        Arc::new(recorder)
    }

    /// Writes down what is built, now that it is known.
    pub(crate) fn settle(&self, subject: &Subject) {
        self.write(|state, _| {
            let Outline {
                context,
                dockerfile,
                target,
                platform: _,
                tags,
            } = subject.outline.clone();
            state.row = BuildRow {
                series: subject.series,
                context,
                dockerfile,
                target,
                tags,
                ..state.row.clone()
            };
            state.begin(subject);
        });
    }

    /// The build's name, if it is written down.
    pub(crate) fn build(&self) -> Option<BuildId> {
        self.lock().as_ref().map(|state| state.row.id.clone())
    }

    /// Writes down what is going to be built; `folder` knows where contexts are.
    pub(crate) fn planned<'f>(
        &self,
        definition: &Definition,
        folder: impl Fn(&str) -> Option<&'f Path>,
    ) {
        self.write(|state, at| {
            let steps: Vec<Planned> = definition
                .vertices()
                .iter()
                .zip(Detail::of_all(definition, folder))
                .map(|(vertex, detail)| Planned {
                    detail: Some(detail),
                    name: vertex.meta.name.clone(),
                    kind: kind(&vertex.op).to_owned(),
                    line: vertex.meta.line,
                    inputs: vertex.inputs.iter().map(|input| input.0).collect(),
                })
                .collect();
            let counted = definition.vertices().iter();
            state.steps = counted.map(|vertex| is_step(&vertex.op)).collect();
            state.row.steps = state.steps.iter().filter(|counts| **counts).count() as u64;
            state.push(&Line::Steps { at, steps });
        });
    }

    /// Writes down which layers the steps made.
    pub(crate) fn layers(&self, known: &[Option<Option<LayerId>>]) {
        self.write(|state, at| {
            let text = |layer: &Option<LayerId>| layer.map(|id| id.to_string()).unwrap_or_default();
            let layers = known.iter().map(|known| known.as_ref().map(text));
            state.push(&Line::Layers {
                at,
                layers: layers.collect(),
            });
        });
    }

    /// Ends the journal. Nothing is written after it.
    pub(crate) fn end(&self, result: Result<Option<Digest>, &BuildError>) {
        let (status, error) = match result {
            Ok(_) => (BuildStatus::Done, None),
            Err(BuildError::Cancelled) => (BuildStatus::Cancelled, None),
            Err(error) => (BuildStatus::Failed, Some(chain(error))),
        };
        let brief = result
            .err()
            .and_then(mistake)
            .or(error.as_deref().map(one_line));
        self.end_with(status, error, brief, result.ok().flatten());
    }

    fn end_with(
        &self,
        status: BuildStatus,
        error: Option<String>,
        brief: Option<String>,
        image: Option<Digest>,
    ) {
        self.write(|state, at| {
            state.row.status = status;
            state.row.took = i64::try_from(at).unwrap_or(i64::MAX);
            state.row.error = brief;
            state.push(&Line::End {
                at,
                status: status.as_str().to_owned(),
                error,
                image: image.map(|image| image.to_string()),
            });
        });
        let Some(mut state) = self.lock().take() else {
            return;
        };
        let ended = match state.journal.append_last(&state.buffer) {
            Ok(()) => state.history.finish(state.journal, &state.row),
            Err(error) => Err(error.into()),
        };
        if let Err(error) = ended {
            tracing::warn!(%error, "this build is not in the history");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, write: impl FnOnce(&mut State, u64)) {
        let at = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(state) = &mut *self.lock() {
            write(state, at);
        }
    }
}

impl ProgressSink for Recorder {
    fn event(&self, event: ProgressEvent) {
        self.write(|state, at| state.take(at, &event));
        self.inner.event(event);
    }
}

impl State {
    fn new(history: History, journal: Journal, subject: &Subject) -> State {
        let row = BuildRow {
            id: journal.id().clone(),
            series: subject.series,
            started: journal.started(),
            took: 0,
            status: BuildStatus::Killed,
            context: subject.outline.context.clone(),
            dockerfile: subject.outline.dockerfile.clone(),
            target: subject.outline.target.clone(),
            tags: subject.outline.tags.clone(),
            error: None,
            steps: 0,
            ran: 0,
            cached: 0,
            saved: 0,
            warnings: 0,
        };
        State {
            history,
            journal,
            buffer: Vec::new(),
            full: false,
            steps: Vec::new(),
            before: BTreeMap::new(),
            row,
        }
    }

    fn begin(&mut self, subject: &Subject) {
        let outline = subject.outline.clone();
        let line = Line::Build {
            version: VERSION,
            started: self.row.started,
            series: hex(&subject.series),
            context: outline.context,
            dockerfile: outline.dockerfile,
            target: outline.target,
            platform: outline.platform,
            tags: outline.tags,
        };
        self.push(&line);
    }

    fn push(&mut self, line: &Line) {
        serde_json::to_writer(&mut self.buffer, line).expect("lines are texts and numbers");
        self.buffer.push(b'\n');
    }

    fn flush(&mut self) {
        let written = match self.full {
            true => Ok(true),
            false => self.journal.append(&self.buffer),
        };
        self.buffer.clear();
        match written {
            Ok(true) => return,
            Ok(false) => {
                let at = 0;
                self.push(&Line::Full { at });
            }
            // As full as can be.
            Err(error) => tracing::warn!(%error, "the journal of this build ends early"),
        }
        self.full = true;
    }

    /// Whether it is none of the steps: the fetching of a context, say.
    fn is_before(&self, vertex: VertexIndex) -> bool {
        vertex.0 >= self.steps.len()
    }

    fn counts(&self, vertex: VertexIndex) -> bool {
        self.steps.get(vertex.0).is_some_and(|counts| *counts)
    }

    fn take(&mut self, at: u64, event: &ProgressEvent) {
        let line = match event {
            ProgressEvent::Known {
                vertex,
                key,
                took,
                bytes,
                unneeded,
            } => {
                if self.counts(*vertex) {
                    self.row.cached += 1;
                    let took = took.map_or(0, |took| took.as_micros());
                    self.row.saved += i64::try_from(took).unwrap_or(0);
                }
                Line::Cached {
                    at,
                    step: vertex.0,
                    key: key.map(|key| hex(&key.0)),
                    took: took.map(|took| u64::try_from(took.as_micros()).unwrap_or(u64::MAX)),
                    bytes: *bytes,
                    unneeded: *unneeded,
                }
            }
            ProgressEvent::Runs { vertex, reasons } => Line::Runs {
                at,
                step: vertex.0,
                reasons: reasons.clone(),
            },
            ProgressEvent::Warnings(problems) => {
                for problem in problems.list() {
                    self.row.warnings += 1;
                    let text = problem.render(problems.file(), false);
                    self.push(&Line::Warning { at, text });
                }
                return;
            }
            ProgressEvent::Used { vertex, used } => Line::Used {
                at,
                step: vertex.0,
                used: *used,
            },
            ProgressEvent::Recorded {
                vertex,
                key,
                bytes,
                unchanged,
            } => Line::Recorded {
                at,
                step: vertex.0,
                key: hex(&key.0),
                bytes: *bytes,
                unchanged: *unchanged,
            },
            ProgressEvent::Started { vertex, name, .. } if self.is_before(*vertex) => {
                self.before.insert(*vertex, (at, name.clone()));
                return;
            }
            ProgressEvent::Done { vertex, .. } | ProgressEvent::Failed { vertex, .. }
                if self.is_before(*vertex) =>
            {
                let Some((since, name)) = self.before.remove(vertex) else {
                    return;
                };
                let took = at.saturating_sub(since);
                Line::Before { at, name, took }
            }
            ProgressEvent::Started { vertex, .. } => {
                self.row.ran += u64::from(self.counts(*vertex));
                Line::Started { at, step: vertex.0 }
            }
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => {
                let text = std::str::from_utf8(bytes).ok();
                Line::Output {
                    at,
                    step: vertex.0,
                    stderr: *stream == OutputStream::Stderr,
                    text: text.map(str::to_owned),
                    hex: text.is_none().then(|| to_hex(bytes)),
                }
            }
            ProgressEvent::Done { vertex, .. } => Line::Done { at, step: vertex.0 },
            ProgressEvent::Failed { vertex, message } => Line::Failed {
                at,
                step: vertex.0,
                message: message.clone(),
            },
            ProgressEvent::Note { vertex, text } => Line::Note {
                at,
                step: vertex.map(|vertex| vertex.0),
                text: text.clone(),
            },
            ProgressEvent::Transfer {
                vertex,
                kind,
                name,
                done,
                total,
                ..
            } if *total == Some(*done) => Line::Moved {
                at,
                step: vertex
                    .filter(|vertex| !self.is_before(*vertex))
                    .map(|vertex| vertex.0),
                label: format!("{} {name}", kind.as_str()),
                bytes: *done,
            },
            _ => return,
        };
        self.push(&line);
        // Hits follow one another in no time, and are not worth a write each.
        if !matches!(line, Line::Cached { .. }) {
            self.flush();
        }
    }
}

/// Whether a vertex counts as a step: images and folders do not.
pub(crate) fn is_step(op: &Op) -> bool {
    super::is_step(kind(op))
}

fn kind(op: &Op) -> &'static str {
    match op {
        Op::Image(_) => "image",
        Op::Context(_) => "context",
        Op::Tree(_) => "tree",
        Op::Http(_) => "http",
        Op::Git(_) => "git",
        Op::Exec(_) => "exec",
        Op::File(_) => "file",
        Op::Merge => "merge",
    }
}

/// An error with its causes, one line each.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let line = cause.to_string();
        // Transparent errors say the same as their cause.
        if !text.ends_with(&line) {
            text.push('\n');
            text.push_str(&line);
        }
        next = cause.source();
    }
    text
}

/// The first mistake in a Dockerfile, where it is one that an error is about: `Dockerfile:2: unknown instruction`.
fn mistake(error: &BuildError) -> Option<String> {
    let BuildError::Dockerfile(problems) = error else {
        return None;
    };
    let first = problems.list().iter().find(|said| said.is_error())?;
    let (line, _) = problems.file().position(first.span.start);
    let text = format!("{}:{line}: {}", problems.file().name(), first.message);
    Some(one_line(&text))
}

fn one_line(text: &str) -> String {
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let joined = lines.join(": ");
    joined.chars().take(ERROR_CHARS_MAX).collect()
}

fn to_hex(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .map(|digit| char::from(DIGITS[usize::from(digit)]));
    digits.collect()
}
