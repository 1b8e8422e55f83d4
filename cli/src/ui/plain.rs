//! Progress line by line, for logs: `#N [stage 2/5] RUN …`, `#N 0.123 output`, `#N DONE 0.1s`, as buildctl prints it.
//!
//! Each line tells its step by number: the one that the history calls it by. Of several steps that run at once, one speaks; what the others have to say waits
//! until that one has ended or has had its turn, so that their lines are not shuffled. Nothing is cut: whoever reads a log
//! has no other place to look. The last lines of a step that failed are repeated at the end.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use builder::cache::explain::Reason;
use builder::graph::VertexIndex;
use builder::solve::{OutputStream, ProgressEvent, TransferKind};

use super::lines::Streams;
use super::progress::{CANCELLED, Renderer, Work};
use super::tally::Tally;
use super::text::one_line;
use super::transfers::{Step as TransferStep, Transfers};
use super::{human, verdict};

/// Lines of a failed step that are repeated at the end: as many as buildctl repeats.
const TAIL_LINES: usize = 10;

/// How long a step keeps the word while another one has something to say: as long as in buildctl.
const TURN: Duration = Duration::from_secs(5);

/// Most bytes that wait for their turn.
const WAITING_BYTES_MAX: usize = 1024 * 1024;

/// How often it is told how far a transfer is.
const TRANSFER_EVERY: Duration = Duration::from_secs(5);

/// The renderer.
#[derive(Debug, Default)]
pub struct Plain {
    steps: BTreeMap<VertexIndex, Step>,
    reasons: BTreeMap<VertexIndex, Vec<Reason>>,
    tally: Tally,
    transfers: BTreeMap<(TransferKind, String), Transfer>,
    /// The same, and together those of no step.
    meters: Transfers,
    /// When those of no step were last told of together.
    told_together: Duration,
    /// The step that speaks.
    current: Option<VertexIndex>,
    /// Steps that failed, in that order.
    failed: Vec<VertexIndex>,
    /// Whether a heading was printed: a blank line goes before each other.
    begun: bool,
    text: Vec<u8>,
}

#[derive(Debug)]
struct Step {
    number: usize,
    name: String,
    started: Duration,
    streams: Streams,
    tail: VecDeque<Vec<u8>>,
    /// What it has to say and could not say yet; since when.
    waiting: Vec<u8>,
    waits_since: Option<Duration>,
}

#[derive(Debug)]
struct Transfer {
    began: Duration,
    told: Duration,
    ended: bool,
}

impl Renderer for Plain {
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8> {
        self.tally.take(event);
        match event {
            ProgressEvent::Runs { vertex, reasons } => {
                self.reasons.insert(*vertex, reasons.clone());
                if self.steps.contains_key(vertex) {
                    self.tell_reasons(at, *vertex);
                }
            }
            ProgressEvent::Started { vertex, name, .. } => {
                self.add(*vertex, name, at);
                self.say(at, *vertex, b"");
                self.tell_reasons(at, *vertex);
            }
            ProgressEvent::Cached { vertex, name } => {
                self.add(*vertex, name, at);
                self.end(at, *vertex, "CACHED");
            }
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => self.output(at, *vertex, *stream, bytes),
            ProgressEvent::Recorded {
                vertex,
                unchanged: true,
                ..
            } => {
                self.rest(at, *vertex);
                self.note(at, *vertex, verdict::UNCHANGED);
            }
            ProgressEvent::Done { vertex, elapsed } => {
                self.rest(at, *vertex);
                let how = format!("DONE {:.1}s", elapsed.as_secs_f64());
                self.end(at, *vertex, &how);
            }
            ProgressEvent::Failed { vertex, message } => {
                self.rest(at, *vertex);
                if message == CANCELLED {
                    self.end(at, *vertex, "CANCELED");
                } else {
                    self.end(at, *vertex, &format!("ERROR: {message}"));
                    self.failed.push(*vertex);
                }
            }
            ProgressEvent::Note {
                vertex: Some(vertex),
                text,
            } if self.steps.contains_key(vertex) => self.note(at, *vertex, text),
            ProgressEvent::Note { text, .. } => self.line(text),
            _ => {
                if let Some(step) = TransferStep::of(event) {
                    self.meters.take(at, &step);
                    if let Some(line) = self.transfer(at, &step) {
                        match step.vertex.filter(|vertex| self.steps.contains_key(vertex)) {
                            Some(vertex) => self.note(at, vertex, &line),
                            None => self.line(&line),
                        }
                    }
                    if step.vertex.is_none() {
                        self.tell_together(at);
                    }
                }
            }
        }
        std::mem::take(&mut self.text)
    }

    fn tick(&mut self, at: Duration) -> Vec<u8> {
        let waiting = self.steps.iter();
        let waiting = waiting.filter_map(|(vertex, step)| Some((step.waits_since?, *vertex)));
        if let Some((since, vertex)) = waiting.min()
            && at.saturating_sub(since) >= TURN
        {
            self.switch_to(vertex);
        }
        std::mem::take(&mut self.text)
    }

    fn finish(&mut self, at: Duration, succeeded: bool) -> Vec<u8> {
        for vertex in Vec::from_iter(self.steps.keys().copied()) {
            self.rest(at, vertex);
        }
        let steps = self.steps.iter();
        let waiting = steps.filter(|(_, step)| step.waits_since.is_some());
        let waiting: Vec<VertexIndex> = waiting.map(|(vertex, _)| *vertex).collect();
        for vertex in waiting {
            self.switch_to(vertex);
        }
        for vertex in std::mem::take(&mut self.failed) {
            let step = &self.steps[&vertex];
            if step.tail.is_empty() {
                continue;
            }
            let heading = format!("------\n > {}:\n", step.name);
            self.text.extend_from_slice(heading.as_bytes());
            for line in &step.tail {
                self.text.extend_from_slice(line);
                self.text.push(b'\n');
            }
            self.text.extend_from_slice(b"------\n");
        }
        if succeeded && self.tally.is_planned() {
            let header = Tally::header(Work::Building.as_str(), at, self.tally.ended());
            self.line(&format!("\n{header}{}", self.tally.ending(succeeded)));
        }
        std::mem::take(&mut self.text)
    }
}

impl Plain {
    fn line(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(b'\n');
    }

    fn add(&mut self, vertex: VertexIndex, name: &str, at: Duration) {
        // The number that the step has in the history, too; what goes before all steps has none.
        let number = match vertex.0 < usize::MAX / 2 {
            true => vertex.0 + 1,
            false => 0,
        };
        self.steps.entry(vertex).or_insert_with(|| Step {
            number,
            name: one_line(name),
            started: at,
            streams: Streams::default(),
            tail: VecDeque::new(),
            waiting: Vec::new(),
            waits_since: None,
        });
    }

    /// Gives a step the word, with its heading, and says what it could not say before.
    fn switch_to(&mut self, vertex: VertexIndex) {
        if self.current == Some(vertex) {
            return;
        }
        if let Some(interrupted) = self.current.and_then(|current| self.steps.get(&current)) {
            let text = format!("#{} ...", interrupted.number);
            self.line(&text);
        }
        let Some(step) = self.steps.get_mut(&vertex) else {
            return;
        };
        if std::mem::replace(&mut self.begun, true) {
            self.text.push(b'\n');
        }
        let heading = format!("#{} {}\n", step.number, step.name);
        self.text.extend_from_slice(heading.as_bytes());
        self.text.append(&mut step.waiting);
        step.waits_since = None;
        self.current = Some(vertex);
    }

    /// Says whole lines of a step, now or when it is its turn.
    fn say(&mut self, at: Duration, vertex: VertexIndex, lines: &[u8]) {
        if self.current.is_none() {
            self.switch_to(vertex);
        }
        if self.current == Some(vertex) {
            self.text.extend_from_slice(lines);
            return;
        }
        if let Some(step) = self.steps.get_mut(&vertex) {
            step.waiting.extend_from_slice(lines);
            step.waits_since.get_or_insert(at);
        }
        let waiting: usize = self.steps.values().map(|step| step.waiting.len()).sum();
        if waiting > WAITING_BYTES_MAX {
            self.switch_to(vertex);
        }
    }

    /// Says something about a step.
    fn note(&mut self, at: Duration, vertex: VertexIndex, text: &str) {
        if let Some(step) = self.steps.get(&vertex) {
            let line = format!("#{} {text}\n", step.number);
            self.say(at, vertex, line.as_bytes());
        }
    }

    fn tell_reasons(&mut self, at: Duration, vertex: VertexIndex) {
        for reason in self.reasons.remove(&vertex).unwrap_or_default() {
            for line in verdict::reason(&reason) {
                self.note(at, vertex, &format!("runs: {line}"));
            }
        }
    }

    fn output(&mut self, at: Duration, vertex: VertexIndex, stream: OutputStream, bytes: &[u8]) {
        if let Some(step) = self.steps.get_mut(&vertex) {
            let lines = step.streams.push(stream, bytes);
            self.lines(at, vertex, lines);
        }
    }

    /// Says what a step's streams end with, if that is no whole line.
    fn rest(&mut self, at: Duration, vertex: VertexIndex) {
        if let Some(step) = self.steps.get_mut(&vertex) {
            let lines = step.streams.rest();
            self.lines(at, vertex, lines);
        }
    }

    fn lines(&mut self, at: Duration, vertex: VertexIndex, lines: Vec<Vec<u8>>) {
        if lines.is_empty() {
            return;
        }
        let Some(step) = self.steps.get_mut(&vertex) else {
            return;
        };
        let prefix = output_prefix(at.saturating_sub(step.started));
        let number = format!("#{} ", step.number);
        let mut text = Vec::new();
        for line in lines {
            let line = [prefix.as_bytes(), &line].concat();
            text.extend_from_slice(number.as_bytes());
            text.extend_from_slice(&line);
            text.push(b'\n');
            if step.tail.len() == TAIL_LINES {
                step.tail.pop_front();
            }
            step.tail.push_back(line);
        }
        self.say(at, vertex, &text);
    }

    /// Ends a step: all that it had to say is said now, and whoever comes next has the word.
    fn end(&mut self, at: Duration, vertex: VertexIndex, how: &str) {
        self.switch_to(vertex);
        self.note(at, vertex, how);
        self.current = None;
    }

    /// How far a transfer is, where that is worth a line: `sha256:… 1.05MB / 2.2MB 5.1s`.
    fn transfer(&mut self, at: Duration, step: &TransferStep<'_>) -> Option<String> {
        let TransferStep { done, total, .. } = *step;
        let key = (step.kind, step.id.to_owned());
        let transfer = self.transfers.entry(key).or_insert(Transfer {
            began: at,
            told: at,
            ended: false,
        });
        if done == 0 {
            // It was announced, and begins now.
            (transfer.began, transfer.told) = (at, at);
        }
        let ends = total == Some(done);
        let is_due = at.saturating_sub(transfer.told) >= TRANSFER_EVERY;
        if transfer.ended || !(ends || is_due) {
            return None;
        }
        transfer.told = at;
        transfer.ended = ends;
        let meter = self.meters.meter(step.kind, step.id);
        let pace = meter.map(|meter| meter.pace_text(at));
        let mut line = step.label();
        line.push_str(&format!(" {}", human::size(done)));
        if let Some(total) = total {
            line.push_str(&format!(" / {}", human::size(total)));
        }
        let took = at.saturating_sub(transfer.began).as_secs_f64();
        line.push_str(&format!(" {took:.1}s"));
        match pace.filter(|pace| !pace.is_empty()) {
            _ if ends => line.push_str(" done"),
            Some(pace) => line.push_str(&format!(" ({pace})")),
            None => {}
        }
        Some(line)
    }

    /// Now and then, how far those are together that belong to no step, if they are several.
    fn tell_together(&mut self, at: Duration) {
        let (sum, (all, ended)) = (self.meters.sum(), self.meters.counts());
        let is_due = at.saturating_sub(self.told_together) >= TRANSFER_EVERY;
        if all < 2 || !sum.is_open() || !is_due {
            return;
        }
        self.told_together = at;
        let (amount, pace) = (sum.amount_text(), sum.pace_text(at));
        self.line(&format!("{ended} of {all} done, {amount} ({pace})"));
    }
}

/// The time before a line of output: three digits of it, as buildctl prints it, and a space.
pub fn output_prefix(since: Duration) -> String {
    let seconds = since.as_secs_f64();
    let digits = match seconds {
        ..10.0 => 3,
        ..100.0 => 2,
        _ => 1,
    };
    format!("{seconds:.digits$} ")
}

#[cfg(test)]
mod tests;
