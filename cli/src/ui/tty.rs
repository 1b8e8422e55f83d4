//! Progress redrawn in place: finished steps collapse to one line each and scroll away, below them stand the running
//! ones with their elapsed time and the last lines they wrote.
//!
//! ```text
//!  => CACHED [1/3] FROM docker.io/library/debian:bookworm
//!  => [2/3] RUN apt-get update                                      2.1s
//! [+] 3.4s
//!  => [3/3] RUN apt-get install -y nginx                            1.3s
//!  => => # Unpacking nginx (1.22.1-9) ...
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::{ProgressEvent, TransferKind};

use super::human;
use super::progress::{Lines, Log, Renderer};

/// Lines of output shown of each running step, where the screen has room for them.
const TAIL_LINES: usize = 6;

const RED: &str = "31";
const BLUE: &str = "34";

/// The renderer.
#[derive(Debug)]
pub struct Tty {
    columns: usize,
    rows: usize,
    colour: bool,
    running: BTreeMap<VertexIndex, Step>,
    transfers: BTreeMap<(TransferKind, String), Transfer>,
    /// Transfers whose end was told.
    transferred: BTreeSet<(TransferKind, String)>,
    /// What scrolls away with the next drawing.
    permanent: String,
    /// How many lines of the last drawing are to be drawn over.
    drawn: usize,
    steps: usize,
    cached: usize,
}

#[derive(Debug)]
struct Step {
    name: String,
    started: Duration,
    lines: Lines,
    log: Log,
}

#[derive(Debug)]
struct Transfer {
    label: String,
    done: u64,
    total: u64,
}

impl Tty {
    /// A renderer for a terminal of `(columns, rows)`.
    pub fn new(size: (usize, usize), colour: bool) -> Tty {
        Tty {
            columns: size.0,
            rows: size.1,
            colour,
            running: BTreeMap::new(),
            transfers: BTreeMap::new(),
            transferred: BTreeSet::new(),
            permanent: String::new(),
            drawn: 0,
            steps: 0,
            cached: 0,
        }
    }

    fn keep(&mut self, text: &str, right: &str, colour: &str) {
        let line = fit(text, right, self.columns);
        if self.colour && !colour.is_empty() {
            self.permanent
                .push_str(&format!("\x1b[{colour}m{line}\x1b[0m\n"));
        } else {
            self.permanent.push_str(&line);
            self.permanent.push('\n');
        }
    }

    fn output(&mut self, vertex: VertexIndex, bytes: &[u8]) {
        if let Some(step) = self.running.get_mut(&vertex) {
            for line in step.lines.push(bytes) {
                step.log.push(line);
            }
        }
    }

    fn failed(&mut self, at: Duration, vertex: VertexIndex, message: &str) {
        let Some(mut step) = self.running.remove(&vertex) else {
            return;
        };
        if let Some(rest) = step.lines.rest() {
            step.log.push(rest);
        }
        self.steps += 1;
        let right = seconds(at.saturating_sub(step.started));
        self.keep(&format!(" => ERROR {}", step.name), &right, RED);
        let report = step.log.report(&step.name);
        self.permanent.push_str(&String::from_utf8_lossy(&report));
        self.keep(&format!(" {message}"), "", RED);
    }

    /// Takes the live lines away.
    fn erase(&mut self) -> String {
        match std::mem::take(&mut self.drawn) {
            0 => String::new(),
            drawn => format!("\x1b[{drawn}A\r\x1b[J"),
        }
    }

    /// Draws over the last drawing: what has become permanent, then the live lines.
    fn draw(&mut self, at: Duration) -> Vec<u8> {
        let live = self.live_lines(at);
        let mut text = self.erase();
        text.push_str(&std::mem::take(&mut self.permanent));
        for line in &live {
            text.push_str(line);
            text.push('\n');
        }
        self.drawn = live.len();
        text.into_bytes()
    }

    fn live_lines(&self, at: Duration) -> Vec<String> {
        if self.running.is_empty() && self.transfers.is_empty() {
            return Vec::new();
        }
        let mut lines = vec![format!("[+] {}", seconds(at))];
        // The cursor's own line and one to spare: a live region taller than the screen cannot be drawn over.
        let room = self.rows.saturating_sub(lines.len() + 2);
        let shown = self.running.len() + self.transfers.len();
        let spare = room.saturating_sub(shown);
        let tail = TAIL_LINES.min(spare / self.running.len().max(1));
        for step in self.running.values() {
            let right = seconds(at.saturating_sub(step.started));
            lines.push(fit(&format!(" => {}", step.name), &right, self.columns));
            for line in step.log.tail(tail) {
                let text = format!(" => => # {}", printable(line));
                lines.push(fit(&text, "", self.columns));
            }
        }
        for transfer in self.transfers.values() {
            let right = format!(
                "{} / {}",
                human::size(transfer.done),
                human::size(transfer.total)
            );
            lines.push(fit(
                &format!(" => {}", transfer.label),
                &right,
                self.columns,
            ));
        }
        lines.truncate(room + 1);
        lines
    }
}

impl Renderer for Tty {
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8> {
        match event {
            ProgressEvent::Started { vertex, name, .. } => {
                let step = Step {
                    name: name.clone(),
                    started: at,
                    lines: Lines::default(),
                    log: Log::default(),
                };
                self.running.insert(*vertex, step);
            }
            ProgressEvent::Output { vertex, bytes, .. } => {
                // Seen at the next tick: a chatty step must not make the screen flicker.
                self.output(*vertex, bytes);
                return Vec::new();
            }
            ProgressEvent::Cached { name, .. } => {
                self.steps += 1;
                self.cached += 1;
                self.keep(&format!(" => CACHED {name}"), "", BLUE);
            }
            ProgressEvent::Done { vertex, elapsed } => {
                self.steps += 1;
                if let Some(step) = self.running.remove(vertex) {
                    self.keep(&format!(" => {}", step.name), &seconds(*elapsed), BLUE);
                }
            }
            ProgressEvent::Failed { vertex, message } => self.failed(at, *vertex, message),
            ProgressEvent::Note { text, .. } => self.keep(&format!(" {text}"), "", ""),
            ProgressEvent::Transfer {
                kind,
                id,
                name,
                done,
                total,
                ..
            } => {
                let label = format!("{} {name}", kind.as_str());
                let id = (*kind, id.clone());
                if *total == Some(*done) {
                    self.transfers.remove(&id);
                    if self.transferred.insert(id) {
                        self.keep(&format!(" => {label}"), &human::size(*done), BLUE);
                    }
                } else {
                    let transfer = Transfer {
                        label,
                        done: *done,
                        total: total.unwrap_or(*done),
                    };
                    self.transfers.insert(id, transfer);
                    return Vec::new();
                }
            }
            _ => {}
        }
        self.draw(at)
    }

    fn pause(&mut self, at: Duration) -> Vec<u8> {
        let mut text = self.draw(at);
        text.extend_from_slice(self.erase().as_bytes());
        text
    }

    fn tick(&mut self, at: Duration) -> Vec<u8> {
        if self.running.is_empty() && self.transfers.is_empty() && self.permanent.is_empty() {
            return Vec::new();
        }
        self.draw(at)
    }

    fn finish(&mut self, at: Duration, succeeded: bool) -> Vec<u8> {
        self.running.clear();
        self.transfers.clear();
        if succeeded && self.steps > 0 {
            let (steps, cached) = (self.steps, self.cached);
            let text = format!("[+] {steps} steps, {cached} of them cached");
            self.keep(&text, &seconds(at), "");
        }
        self.draw(at)
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1}s", time.as_secs_f64())
}

/// Cuts `left` and pads it so that it ends with `right` in the last column but one.
fn fit(left: &str, right: &str, columns: usize) -> String {
    // The last column stays empty, for some terminals wrap when it is written.
    let room = columns.saturating_sub(right.len() + 2);
    let mut used = 0;
    let mut line = String::new();
    for c in left.chars() {
        let width = width(c);
        if used + width > room {
            break;
        }
        line.push(c);
        used += width;
    }
    if !right.is_empty() {
        line.extend(std::iter::repeat_n(' ', room - used + 1));
        line.push_str(right);
    }
    line
}

/// Columns that a character takes. Wide scripts and symbols begin at U+1100; an answer too large only cuts a line short.
fn width(c: char) -> usize {
    if u32::from(c) < 0x1100 { 1 } else { 2 }
}

/// A line without what would move the cursor: escape sequences, control characters, and what a carriage return overwrote.
fn printable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(line);
    let visible = text.rsplit('\r').next().unwrap_or_default();
    let mut clean = String::new();
    let mut characters = visible.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\x1b' if characters.next_if_eq(&'[').is_some() => {
                // A control sequence ends with a byte from `@` to `~`.
                while characters
                    .next()
                    .is_some_and(|parameter| !('@'..='~').contains(&parameter))
                {}
            }
            '\t' => clean.push_str("    "),
            c if c.is_control() => {}
            c => clean.push(c),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn running_steps_are_drawn_over_and_finished_ones_stay() {
        let mut tty = Tty::new((40, 10), false);
        let vertex = VertexIndex(1);
        let at = Duration::from_millis;
        let event = ProgressEvent::Started {
            vertex,
            name: "[2/2] RUN make".to_owned(),
            line: 2,
        };
        let text = String::from_utf8(tty.event(at(0), &event)).unwrap();
        assert_eq!(text, "[+] 0.0s\n => [2/2] RUN make                 0.0s\n");
        let event = ProgressEvent::Output {
            vertex,
            stream: builder::solve::OutputStream::Stdout,
            bytes: b"\x1b[32mok\x1b[0m\n".to_vec(),
        };
        assert!(tty.event(at(1), &event).is_empty());
        let text = String::from_utf8(tty.tick(at(1500))).unwrap();
        assert_eq!(
            text,
            "\x1b[2A\r\x1b[J[+] 1.5s\n => [2/2] RUN make                 1.5s\n => => # ok\n"
        );
        let event = ProgressEvent::Failed {
            vertex,
            message: "exit code 3".to_owned(),
        };
        let text = String::from_utf8(tty.event(at(2000), &event)).unwrap();
        assert!(
            text.starts_with("\x1b[3A\r\x1b[J => ERROR [2/2] RUN make"),
            "{text:?}"
        );
        assert!(text.contains("\n > [2/2] RUN make:\n\x1b[32mok\x1b[0m\n------\n exit code 3\n"));
        assert_eq!(tty.drawn, 0);
    }

    #[test]
    fn no_drawing_is_wider_or_taller_than_the_screen() {
        let mut tty = Tty::new((20, 6), false);
        for index in 0..9 {
            let event = ProgressEvent::Started {
                vertex: VertexIndex(index),
                name: "日本語 and more than fits".to_owned(),
                line: 0,
            };
            tty.event(Duration::ZERO, &event);
        }
        let lines = tty.live_lines(Duration::ZERO);
        assert!(lines.len() < 6);
        for line in lines {
            assert!(line.chars().map(width).sum::<usize>() < 20, "{line}");
        }
    }

    #[test]
    fn output_cannot_move_the_cursor() {
        assert_eq!(printable(b"50%\r100%"), "100%");
        assert_eq!(printable(b"\x1b[2J\x1b[1;31mred\x07\x1b[0m\tx"), "red    x");
        assert_eq!(printable(b"\x1b"), "");
    }
}
