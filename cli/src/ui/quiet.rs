//! No progress at all; but the output of a step that fails is shown, in full.

use std::collections::BTreeMap;
use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::ProgressEvent;

use super::progress::{Lines, Log, Renderer};

/// The renderer.
#[derive(Debug, Default)]
pub struct Quiet {
    running: BTreeMap<VertexIndex, (String, Lines, Log)>,
}

impl Renderer for Quiet {
    fn event(&mut self, _at: Duration, event: &ProgressEvent) -> Vec<u8> {
        match event {
            ProgressEvent::Started { vertex, name, .. } => {
                let step = (name.clone(), Lines::default(), Log::default());
                self.running.insert(*vertex, step);
            }
            ProgressEvent::Output { vertex, bytes, .. } => {
                if let Some((_, lines, log)) = self.running.get_mut(vertex) {
                    for line in lines.push(bytes) {
                        log.push(line);
                    }
                }
            }
            ProgressEvent::Done { vertex, .. } => {
                self.running.remove(vertex);
            }
            ProgressEvent::Failed { vertex, .. } => {
                if let Some((name, mut lines, mut log)) = self.running.remove(vertex) {
                    if let Some(rest) = lines.rest() {
                        log.push(rest);
                    }
                    return log.report(&name);
                }
            }
            _ => {}
        }
        Vec::new()
    }
}
