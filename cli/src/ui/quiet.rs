//! No progress at all; but the output of a step that fails is shown, in full.

use std::collections::BTreeMap;
use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::ProgressEvent;

use super::lines::Log;
use super::progress::{CANCELLED, Renderer};

/// The renderer.
#[derive(Debug, Default)]
pub struct Quiet {
    build: Option<String>,
    running: BTreeMap<VertexIndex, (String, Log)>,
}

impl Renderer for Quiet {
    fn event(&mut self, _at: Duration, event: &ProgressEvent) -> Vec<u8> {
        match event {
            ProgressEvent::Begun { build } => self.build = Some(build.to_string()),
            ProgressEvent::Started { vertex, name, .. } => {
                self.running.insert(*vertex, (name.clone(), Log::default()));
            }
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => {
                if let Some((_, log)) = self.running.get_mut(vertex) {
                    log.push(*stream, bytes);
                }
            }
            ProgressEvent::Done { vertex, .. } => {
                self.running.remove(vertex);
            }
            ProgressEvent::Failed { vertex, message } => {
                if let Some((name, mut log)) = self.running.remove(vertex)
                    && message != CANCELLED
                {
                    log.end();
                    let whole = self.whole();
                    return log.report(&name, usize::MAX, whole.as_deref(), <[u8]>::to_vec);
                }
            }
            _ => {}
        }
        Vec::new()
    }
}

impl Quiet {
    /// Where all of a step's output is, if it was too much to be kept.
    fn whole(&self) -> Option<String> {
        let build = self.build.as_ref()?;
        Some(format!("`longshore history logs {build}` has them"))
    }
}
