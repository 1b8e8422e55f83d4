//! A journal read back as the events that it was made of, for whoever shows builds.

use std::io::BufReader;
use std::time::Duration;

use store::history::BuildId;
use store::{Store, StoreError};

use super::line::Line;
use super::{bytes_of, for_each_line};
use crate::cache::CacheKey;
use crate::graph::{VertexDigest, VertexIndex};
use crate::solve::{OutputStream, PlannedVertex, ProgressEvent};

/// Calls `take` with all that a build told while it ran, in order, each with its time since the build began; tells whether
/// the build is known. Warnings are texts in a journal: they come as notes. Of transfers only the end is known: those come
/// as notes, too.
pub fn replay(
    store: &Store,
    id: &BuildId,
    mut take: impl FnMut(Duration, ProgressEvent),
) -> Result<bool, StoreError> {
    let Some(file) = store.history().open(id)? else {
        return Ok(false);
    };
    let mut replay = Replay::default();
    for_each_line(BufReader::new(file), |line| {
        replay.line(line, &mut take);
    });
    Ok(true)
}

/// What lines leave out because an earlier one said it.
#[derive(Default)]
struct Replay {
    /// Names and lines of the steps.
    steps: Vec<(String, usize)>,
    started: Vec<u64>,
}

impl Replay {
    fn name(&self, step: usize) -> String {
        let named = self.steps.get(step);
        named.map_or_else(String::new, |(name, _)| name.clone())
    }

    fn since(&self, step: usize, at: u64) -> Duration {
        let started = self.started.get(step).copied().unwrap_or(at);
        Duration::from_micros(at.saturating_sub(started))
    }

    fn line(&mut self, line: Line, take: &mut impl FnMut(Duration, ProgressEvent)) {
        let micros = Duration::from_micros;
        match line {
            Line::Steps { at, steps } => {
                self.started = vec![at; steps.len()];
                self.steps = steps
                    .iter()
                    .map(|step| (step.name.clone(), step.line))
                    .collect();
                let vertices = steps.into_iter().enumerate().map(|(index, step)| {
                    let own = format!("step {index}");
                    PlannedVertex {
                        digest: VertexDigest(*blake3::hash(own.as_bytes()).as_bytes()),
                        inputs: step.inputs.into_iter().map(VertexIndex).collect(),
                        name: step.name,
                        is_step: super::is_step(&step.kind),
                    }
                });
                let vertices = vertices.collect();
                take(micros(at), ProgressEvent::Planned { vertices });
            }
            Line::Cached {
                at,
                step,
                key,
                took,
                bytes,
                unneeded,
            } => {
                let vertex = VertexIndex(step);
                let key = key.and_then(|key| blake3::Hash::from_hex(key).ok());
                let known = ProgressEvent::Known {
                    vertex,
                    key: key.map(|key| CacheKey(*key.as_bytes())),
                    took: took.map(Duration::from_micros),
                    bytes,
                    unneeded,
                };
                take(micros(at), known);
                if !unneeded {
                    let name = self.name(step);
                    take(micros(at), ProgressEvent::Cached { vertex, name });
                }
            }
            Line::Runs { at, step, reasons } => {
                let vertex = VertexIndex(step);
                take(micros(at), ProgressEvent::Runs { vertex, reasons });
            }
            Line::Started { at, step } => {
                if let Some(started) = self.started.get_mut(step) {
                    *started = at;
                }
                let started = ProgressEvent::Started {
                    vertex: VertexIndex(step),
                    name: self.name(step),
                    line: self.steps.get(step).map_or(0, |(_, line)| *line),
                };
                take(micros(at), started);
            }
            Line::Output {
                at,
                step,
                stderr,
                text,
                hex,
            } => {
                let output = ProgressEvent::Output {
                    vertex: VertexIndex(step),
                    stream: match stderr {
                        true => OutputStream::Stderr,
                        false => OutputStream::Stdout,
                    },
                    bytes: bytes_of(text, hex),
                };
                take(micros(at), output);
            }
            Line::Used { at, step, used } => {
                let vertex = VertexIndex(step);
                take(micros(at), ProgressEvent::Used { vertex, used });
            }
            Line::Recorded {
                at,
                step,
                key,
                bytes,
                unchanged,
            } => {
                if let Ok(key) = blake3::Hash::from_hex(key) {
                    let recorded = ProgressEvent::Recorded {
                        vertex: VertexIndex(step),
                        key: CacheKey(*key.as_bytes()),
                        bytes,
                        unchanged,
                    };
                    take(micros(at), recorded);
                }
            }
            Line::Done { at, step } => {
                let done = ProgressEvent::Done {
                    vertex: VertexIndex(step),
                    elapsed: self.since(step, at),
                };
                take(micros(at), done);
            }
            Line::Failed { at, step, message } => {
                let vertex = VertexIndex(step);
                take(micros(at), ProgressEvent::Failed { vertex, message });
            }
            Line::Note { at, step, text } => {
                let vertex = step.map(VertexIndex);
                take(micros(at), ProgressEvent::Note { vertex, text });
            }
            Line::Warning { at, text } => {
                let vertex = None;
                take(micros(at), ProgressEvent::Note { vertex, text });
            }
            Line::Moved {
                at,
                step,
                label,
                bytes,
            } => {
                let text = format!("{label} {bytes} bytes");
                let vertex = step.map(VertexIndex);
                take(micros(at), ProgressEvent::Note { vertex, text });
            }
            Line::Before { at, name, took } => {
                let text = format!("{name} {:.1}s", micros(took).as_secs_f64());
                let vertex = None;
                take(micros(at), ProgressEvent::Note { vertex, text });
            }
            Line::Build { .. } | Line::Layers { .. } | Line::Full { .. } | Line::End { .. } => {}
        }
    }
}
