//! Progress line by line, for logs: `#N [stage 2/5] RUN …`, `#N 0.123 output`, `#N DONE 0.1s`, as buildctl prints it.
//!
//! Each line tells its step by number. When another step speaks up in between, its heading is repeated. Nothing is cut:
//! whoever reads a log has no other place to look. The last lines of a step that failed are repeated at the end.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::{OutputStream, ProgressEvent, TransferKind};

use super::human;
use super::progress::{CANCELLED, Lines, Renderer};

/// Lines of a failed step that are repeated at the end: as many as buildctl repeats.
const TAIL_LINES: usize = 10;

/// The renderer.
#[derive(Debug, Default)]
pub struct Plain {
    steps: BTreeMap<VertexIndex, Step>,
    /// The step whose lines are being printed.
    current: Option<VertexIndex>,
    /// Transfers whose end was told.
    transferred: BTreeSet<(TransferKind, String)>,
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
    stdout: Lines,
    stderr: Lines,
    tail: VecDeque<Vec<u8>>,
}

impl Renderer for Plain {
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8> {
        match event {
            ProgressEvent::Started { vertex, name, .. } => {
                self.add(*vertex, name, at);
                self.switch_to(*vertex);
            }
            ProgressEvent::Cached { vertex, name } => {
                self.add(*vertex, name, at);
                self.end(*vertex, "CACHED");
            }
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => self.output(at, *vertex, *stream, bytes),
            ProgressEvent::Done { vertex, elapsed } => {
                self.flush(at, *vertex);
                self.end(*vertex, &format!("DONE {:.1}s", elapsed.as_secs_f64()));
            }
            ProgressEvent::Failed { vertex, message } => {
                self.flush(at, *vertex);
                if message == CANCELLED {
                    self.end(*vertex, "CANCELED");
                } else {
                    self.end(*vertex, &format!("ERROR: {message}"));
                    self.failed.push(*vertex);
                }
            }
            ProgressEvent::Note {
                vertex: Some(vertex),
                text,
            } if self.steps.contains_key(vertex) => {
                self.switch_to(*vertex);
                let number = self.steps[vertex].number;
                self.line(&format!("#{number} {text}"));
            }
            ProgressEvent::Note { text, .. } => self.line(text),
            ProgressEvent::Transfer {
                kind,
                id,
                name,
                done,
                total,
                ..
                // One line per blob: a log has no use for a moving number.
            } if *total == Some(*done) && self.transferred.insert((*kind, id.clone())) => {
                let verb = kind.as_str();
                self.line(&format!("{verb} {name} {} done", human::size(*done)));
            }
            _ => {}
        }
        std::mem::take(&mut self.text)
    }

    fn finish(&mut self, _at: Duration, _succeeded: bool) -> Vec<u8> {
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
        std::mem::take(&mut self.text)
    }
}

impl Plain {
    fn line(&mut self, text: &str) {
        self.text.extend_from_slice(text.as_bytes());
        self.text.push(b'\n');
    }

    fn add(&mut self, vertex: VertexIndex, name: &str, at: Duration) {
        let number = self.steps.len() + 1;
        self.steps.entry(vertex).or_insert_with(|| Step {
            number,
            name: name.to_owned(),
            started: at,
            stdout: Lines::default(),
            stderr: Lines::default(),
            tail: VecDeque::new(),
        });
    }

    /// Makes a step the one that is being printed, with its heading.
    fn switch_to(&mut self, vertex: VertexIndex) {
        if self.current == Some(vertex) {
            return;
        }
        if let Some(interrupted) = self.current.and_then(|current| self.steps.get(&current)) {
            let text = format!("#{} ...", interrupted.number);
            self.line(&text);
        }
        if std::mem::replace(&mut self.begun, true) {
            self.line("");
        }
        let Some(step) = self.steps.get(&vertex) else {
            return;
        };
        let heading = format!("#{} {}", step.number, step.name);
        self.line(&heading);
        self.current = Some(vertex);
    }

    fn output(&mut self, at: Duration, vertex: VertexIndex, stream: OutputStream, bytes: &[u8]) {
        let Some(step) = self.steps.get_mut(&vertex) else {
            return;
        };
        let lines = match stream {
            OutputStream::Stdout => step.stdout.push(bytes),
            OutputStream::Stderr => step.stderr.push(bytes),
        };
        self.lines(at, vertex, lines);
    }

    fn flush(&mut self, at: Duration, vertex: VertexIndex) {
        let Some(step) = self.steps.get_mut(&vertex) else {
            return;
        };
        let lines = [step.stdout.rest(), step.stderr.rest()];
        self.lines(at, vertex, lines.into_iter().flatten().collect());
    }

    fn lines(&mut self, at: Duration, vertex: VertexIndex, lines: Vec<Vec<u8>>) {
        if lines.is_empty() {
            return;
        }
        self.switch_to(vertex);
        let Some(step) = self.steps.get_mut(&vertex) else {
            return;
        };
        let elapsed = at.saturating_sub(step.started).as_secs_f64();
        let digits = match elapsed {
            ..10.0 => 3,
            ..100.0 => 2,
            _ => 1,
        };
        let prefix = format!("{elapsed:.digits$} ");
        let number = format!("#{} ", step.number);
        for line in lines {
            let line = [prefix.as_bytes(), &line].concat();
            self.text.extend_from_slice(number.as_bytes());
            self.text.extend_from_slice(&line);
            self.text.push(b'\n');
            if step.tail.len() == TAIL_LINES {
                step.tail.pop_front();
            }
            step.tail.push_back(line);
        }
    }

    fn end(&mut self, vertex: VertexIndex, how: &str) {
        self.switch_to(vertex);
        if let Some(step) = self.steps.get(&vertex) {
            let text = format!("#{} {how}", step.number);
            self.line(&text);
        }
        self.current = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_that_overlap_stay_readable() {
        let mut plain = Plain::default();
        let mut text = Vec::new();
        let started = |vertex, name: &str| ProgressEvent::Started {
            vertex: VertexIndex(vertex),
            name: name.to_owned(),
            line: 0,
        };
        let output = |vertex, bytes: &[u8]| ProgressEvent::Output {
            vertex: VertexIndex(vertex),
            stream: OutputStream::Stdout,
            bytes: bytes.to_vec(),
        };
        let events = [
            ProgressEvent::Cached {
                vertex: VertexIndex(0),
                name: "[a 1/2] FROM x".to_owned(),
            },
            started(1, "[a 2/2] RUN one"),
            output(1, b"first\nsec"),
            started(2, "[b 2/2] RUN two"),
            output(2, b"other\n"),
            output(1, b"ond"),
            ProgressEvent::Done {
                vertex: VertexIndex(1),
                elapsed: Duration::from_millis(1250),
            },
            ProgressEvent::Failed {
                vertex: VertexIndex(2),
                message: "exit code 3".to_owned(),
            },
        ];
        for (index, event) in events.iter().enumerate() {
            let at = Duration::from_millis(100 * index as u64);
            text.extend(plain.event(at, event));
        }
        text.extend(plain.finish(Duration::from_secs(1), false));
        expect_test::expect![[r#"
            #1 [a 1/2] FROM x
            #1 CACHED

            #2 [a 2/2] RUN one
            #2 0.100 first
            #2 ...

            #3 [b 2/2] RUN two
            #3 0.100 other
            #3 ...

            #2 [a 2/2] RUN one
            #2 0.500 second
            #2 DONE 1.2s

            #3 [b 2/2] RUN two
            #3 ERROR: exit code 3
            ------
             > [b 2/2] RUN two:
            0.100 other
            ------
        "#]]
        .assert_eq(std::str::from_utf8(&text).unwrap());
    }
}
