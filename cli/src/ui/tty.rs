//! Progress redrawn in place, as docker shows it: finished steps collapse to one line each and scroll away, below them
//! stand a header and what runs, with elapsed times, the last lines of output, and a bar for each layer on its way.
//!
//! ```text
//!  => CACHED [1/4] FROM docker.io/library/debian:bookworm
//!  => [2/4] COPY etc /etc                                           0.1s
//!  => => file etc/motd: 3783395b1ab39992 → 8ca4a3341326fc4c
//! [+] Building 3.4s (1/3)
//!  => [3/4] RUN apt-get install -y nginx                            1.3s
//!  => => # Unpacking nginx (1.22.1-9) ...
//! ```
//!
//! Nothing is drawn but at a tick: a chatty step makes no screen flicker. [`Region`] knows what is on the screen.

use std::collections::BTreeMap;
use std::time::Duration;

use builder::cache::explain::Reason;
use builder::graph::VertexIndex;
use builder::solve::ProgressEvent;

use super::colours::Colour;
use super::lines::Log;
use super::progress::{CANCELLED, Renderer, Work};
use super::region::Region;
use super::tally::Tally;
use super::text::{clip, fit, one_line, printable};
use super::transfers::{Step as TransferStep, Transfers};
use super::{Ui, human, verdict};

/// Lines of a failed step's output that are shown: more than that is read elsewhere.
const REPORT_LINES: usize = 500;

/// The renderer.
#[derive(Debug)]
pub struct Tty {
    work: Work,
    columns: usize,
    rows: usize,
    ui: Ui,
    /// The build's name in the history.
    build: Option<String>,
    tally: Tally,
    running: BTreeMap<VertexIndex, Step>,
    reasons: BTreeMap<VertexIndex, Vec<Reason>>,
    transfers: Transfers,
    /// Steps that failed, to be reported at the end.
    failed: Vec<Step>,
    /// What scrolls away with the next drawing.
    permanent: String,
    region: Region,
}

#[derive(Debug)]
struct Step {
    name: String,
    started: Duration,
    log: Log,
    /// Its files are those of an earlier run.
    unchanged: bool,
}

impl Tty {
    /// A renderer for a terminal of `(columns, rows)`.
    pub fn new(work: Work, size: (usize, usize), ui: Ui) -> Tty {
        Tty {
            work,
            columns: size.0,
            rows: size.1,
            ui,
            build: None,
            tally: Tally::default(),
            running: BTreeMap::new(),
            reasons: BTreeMap::new(),
            transfers: Transfers::default(),
            failed: Vec::new(),
            permanent: String::new(),
            region: Region::default(),
        }
    }

    fn keep(&mut self, left: &str, right: &str, colour: Option<Colour>) {
        let line = fit(left, right, self.columns);
        let line = match colour {
            Some(colour) => self.paint(colour, &line),
            None => line,
        };
        self.permanent.push_str(&line);
        self.permanent.push('\n');
    }

    /// A line below a step's own.
    fn keep_below(&mut self, text: &str) {
        let line = clip(&format!(" => => {text}"), self.columns.saturating_sub(1));
        let line = self.dim(&line);
        self.permanent.push_str(&line);
        self.permanent.push('\n');
    }

    fn paint(&self, colour: Colour, text: &str) -> String {
        match self.ui.colour {
            true => format!("\x1b[{colour}m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn dim(&self, text: &str) -> String {
        match self.ui.colour {
            true => format!("\x1b[2m{text}\x1b[0m"),
            false => text.to_owned(),
        }
    }

    fn start(&mut self, at: Duration, vertex: VertexIndex, name: &str) {
        let step = Step {
            name: one_line(name),
            started: at,
            log: Log::default(),
            unchanged: false,
        };
        self.running.insert(vertex, step);
    }

    fn cached(&mut self, vertex: VertexIndex, name: &str) {
        let name = one_line(name);
        let run = self.ui.colours.run;
        self.keep(&format!(" => CACHED {name}"), "", Some(run));
        self.end_transfers(Some(vertex));
    }

    fn done(&mut self, vertex: VertexIndex, elapsed: Duration) {
        let Some(step) = self.running.remove(&vertex) else {
            return;
        };
        let run = self.ui.colours.run;
        let took = seconds(elapsed);
        self.keep(&format!(" => {}", step.name), &took, Some(run));
        self.end_transfers(Some(vertex));
        let reasons = self.reasons.remove(&vertex).unwrap_or_default();
        for line in verdict::telling(&reasons) {
            self.keep_below(&line);
        }
        if step.unchanged {
            self.keep_below(verdict::UNCHANGED);
        }
    }

    fn failed(&mut self, at: Duration, vertex: VertexIndex, message: &str) {
        let Some(mut step) = self.running.remove(&vertex) else {
            return;
        };
        step.log.end();
        let took = seconds(at.saturating_sub(step.started));
        if message == CANCELLED {
            let cancel = self.ui.colours.cancel;
            self.keep(&format!(" => CANCELED {}", step.name), &took, Some(cancel));
            return;
        }
        let error = self.ui.colours.error;
        self.keep(&format!(" => ERROR {}", step.name), &took, Some(error));
        self.failed.push(step);
    }

    /// Tells of what has arrived: of a step's layers all in one line, else each in its own.
    fn end_transfers(&mut self, vertex: Option<VertexIndex>) {
        let ended = self.transfers.untold(vertex);
        let lines: Vec<(String, String)> = match vertex {
            None => ended
                .iter()
                .map(|row| {
                    let size = human::size(row.bytes());
                    (
                        format!(" => {}", row.ended_label()),
                        format!("{size} {}", seconds(row.took())),
                    )
                })
                .collect(),
            Some(_) => match ended.as_slice() {
                [] => Vec::new(),
                [only] => vec![(
                    format!(" => => {}", only.ended_label()),
                    human::size(only.bytes()),
                )],
                many => {
                    let bytes: u64 = many.iter().map(|row| row.bytes()).sum();
                    let text = format!(" => => pulled {} layers", many.len());
                    vec![(text, human::size(bytes))]
                }
            },
        };
        let run = vertex.is_none().then_some(self.ui.colours.run);
        for (left, right) in lines {
            self.keep(&left, &right, run);
        }
    }

    fn header(&self, at: Duration) -> String {
        let ended = match self.work {
            Work::Building => self.tally.ended(),
            Work::Pulling | Work::Pushing | Work::Copying => {
                let (all, done) = self.transfers.counts();
                (done, all)
            }
        };
        Tally::header(self.work.as_str(), at, ended)
    }

    /// How far all that moves is together, of a command that does nothing else.
    fn sum(&self, at: Duration) -> String {
        let sum = self.transfers.sum();
        if self.work == Work::Building || !sum.is_open() {
            return String::new();
        }
        format!(" {} {}", sum.amount_text(), sum.pace_text(at))
    }

    /// Draws over the last drawing: what has become permanent, then the live lines.
    fn draw(&mut self, live: Vec<String>) -> Vec<u8> {
        let permanent = std::mem::take(&mut self.permanent);
        let text = self.region.draw(&permanent, live, self.columns);
        text.into_bytes()
    }

    fn live_lines(&self, at: Duration) -> Vec<String> {
        let header = self.header(at) + &self.sum(at);
        let header = clip(header.trim_end(), self.columns.saturating_sub(1));
        // The header, and the cursor's own line: a live region taller than the screen cannot be drawn over.
        let room = self.rows.saturating_sub(2);
        let mut groups = vec![self.transfer_lines(at, None, " =>")];
        let tails: Vec<Vec<&[u8]>> = self.running.values().map(|step| self.tail(step)).collect();
        for (vertex, step) in &self.running {
            let right = seconds(at.saturating_sub(step.started));
            let mut lines = vec![fit(&format!(" => {}", step.name), &right, self.columns)];
            lines.extend(self.transfer_lines(at, Some(*vertex), " => =>"));
            groups.push(lines);
        }
        let needed: usize = groups.iter().map(Vec::len).sum();
        let mut spare = room.saturating_sub(needed);
        let mut lines = vec![header];
        let mut waiting = tails.iter().filter(|tail| !tail.is_empty()).count();
        for (index, group) in groups.into_iter().enumerate() {
            lines.extend(group);
            let Some(tail) = index.checked_sub(1).map(|at| &tails[at]) else {
                continue;
            };
            let share = tail.len().min(spare / waiting.max(1));
            waiting -= usize::from(!tail.is_empty());
            spare -= share;
            for line in &tail[tail.len() - share..] {
                let text = format!(" => => # {}", printable(line, false));
                let text = clip(&text, self.columns.saturating_sub(1));
                lines.push(self.dim(&text));
            }
        }
        if lines.len() > room + 1 {
            let hidden = lines.len() - room;
            lines.truncate(room);
            let more = format!(" => … and {hidden} more lines");
            lines.push(clip(&more, self.columns.saturating_sub(1)));
        }
        lines.truncate(self.rows.saturating_sub(1).max(1));
        lines
    }

    fn tail<'s>(&self, step: &'s Step) -> Vec<&'s [u8]> {
        step.log.tail(self.ui.log_lines)
    }

    /// Each transfer that a vertex waits for, and how many of them have ended.
    fn transfer_lines(
        &self,
        at: Duration,
        vertex: Option<VertexIndex>,
        prefix: &str,
    ) -> Vec<String> {
        let rows = || self.transfers.of(vertex);
        let mut lines: Vec<String> = rows()
            .filter(|row| !row.is_ended())
            .map(|row| {
                let state = row.state(at, self.columns);
                fit(&format!("{prefix} {}", row.label()), &state, self.columns)
            })
            .collect();
        let ended = rows().filter(|row| row.is_ended()).count();
        if vertex.is_some() && ended > 0 {
            let bytes: u64 = rows()
                .filter(|row| row.is_ended())
                .map(super::transfers::Row::bytes)
                .sum();
            let text = format!("{prefix} {ended} of {} done", rows().count());
            lines.push(fit(&text, &human::size(bytes), self.columns));
        }
        lines
    }

    /// What the failed steps wrote.
    fn report(&mut self) {
        let whole = self
            .build
            .as_ref()
            .map(|build| format!("`longshore history logs {build}` has them"));
        let colour = self.ui.colour;
        let spoke = std::mem::take(&mut self.failed).into_iter();
        for step in spoke.filter(|step| !step.log.is_empty()) {
            let shown = |line: &[u8]| printable(line, colour).into_bytes();
            let report = step
                .log
                .report(&step.name, REPORT_LINES, whole.as_deref(), shown);
            self.permanent.push_str(&String::from_utf8_lossy(&report));
        }
    }
}

impl Renderer for Tty {
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8> {
        self.tally.take(event);
        match event {
            ProgressEvent::Begun { build } => self.build = Some(build.to_string()),
            ProgressEvent::Started { vertex, name, .. } => self.start(at, *vertex, name),
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => {
                if let Some(step) = self.running.get_mut(vertex) {
                    step.log.push(*stream, bytes);
                }
            }
            ProgressEvent::Runs { vertex, reasons } => {
                self.reasons.insert(*vertex, reasons.clone());
            }
            ProgressEvent::Recorded {
                vertex, unchanged, ..
            } => {
                if let Some(step) = self.running.get_mut(vertex) {
                    step.unchanged = *unchanged;
                }
            }
            ProgressEvent::Cached { vertex, name } => self.cached(*vertex, name),
            ProgressEvent::Done { vertex, elapsed } => self.done(*vertex, *elapsed),
            ProgressEvent::Failed { vertex, message } => self.failed(at, *vertex, message),
            ProgressEvent::Note { text, .. } => {
                let text = format!(" => {}", one_line(text));
                self.keep(&text, "", None);
            }
            _ => {
                if let Some(step) = TransferStep::of(event) {
                    self.transfers.take(at, &step);
                }
            }
        }
        Vec::new()
    }

    fn logged(&mut self, line: &[u8]) -> Vec<u8> {
        let shown = printable(line.trim_ascii_end(), self.ui.colour);
        self.permanent.push_str(&shown);
        self.permanent.push('\n');
        Vec::new()
    }

    fn resize(&mut self, size: (usize, usize)) {
        (self.columns, self.rows) = size;
    }

    fn pause(&mut self, _at: Duration) -> Vec<u8> {
        // Whoever takes the screen wants to see what went wrong.
        self.report();
        self.draw(Vec::new())
    }

    fn tick(&mut self, at: Duration) -> Vec<u8> {
        self.end_transfers(None);
        let live = self.live_lines(at);
        self.draw(live)
    }

    fn finish(&mut self, at: Duration, succeeded: bool) -> Vec<u8> {
        self.end_transfers(None);
        self.running.clear();
        self.report();
        let moved = self.transfers.counts().0;
        // A command that had nothing to move, or a question that was answered, needs no last word.
        if self.tally.is_planned() || moved > 0 {
            let summary = self.header(at) + &self.tally.ending(succeeded);
            self.keep(&summary, "", None);
        }
        self.draw(Vec::new())
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

#[cfg(test)]
mod tests;
