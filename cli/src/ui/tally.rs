//! How many of a build's steps have ended, and how: the numbers of a header and of a summary.

use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::ProgressEvent;

use super::human;

/// The numbers.
#[derive(Debug, Default)]
pub struct Tally {
    /// Which vertices count as steps.
    counted: Vec<bool>,
    ran: usize,
    cached: usize,
    saved: Duration,
}

impl Tally {
    /// Takes an event.
    pub fn take(&mut self, event: &ProgressEvent) {
        match event {
            ProgressEvent::Planned { vertices } => {
                self.counted = vertices.iter().map(|vertex| vertex.is_step).collect();
            }
            ProgressEvent::Known { vertex, took, .. } if self.counts(*vertex) => {
                self.cached += 1;
                self.saved += took.unwrap_or_default();
            }
            ProgressEvent::Done { vertex, .. } if self.counts(*vertex) => self.ran += 1,
            ProgressEvent::Failed { vertex, message } if self.counts(*vertex) => {
                self.ran += usize::from(message != super::progress::CANCELLED);
            }
            _ => {}
        }
    }

    fn counts(&self, vertex: VertexIndex) -> bool {
        self.counted.get(vertex.0).is_some_and(|counted| *counted)
    }

    /// Steps that have ended, of how many.
    pub fn ended(&self) -> (usize, usize) {
        let all = self.counted.iter().filter(|counted| **counted).count();
        (self.ran + self.cached, all)
    }

    /// Whether it is known what the steps are.
    pub fn is_planned(&self) -> bool {
        !self.counted.is_empty()
    }

    /// `[+] Building 3.4s (5/9)`.
    pub fn header(work: &str, at: Duration, (done, all): (usize, usize)) -> String {
        format!("[+] {work} {:.1}s ({done}/{all})", at.as_secs_f64())
    }

    /// What is added to the header at the end: ` FINISHED: 2 ran, 3 cached, 34.2s saved`.
    pub fn ending(&self, succeeded: bool) -> String {
        let mut text = match succeeded {
            true => " FINISHED".to_owned(),
            false => " FAILED".to_owned(),
        };
        if self.ran + self.cached > 0 {
            text.push_str(&format!(": {} ran, {} cached", self.ran, self.cached));
        }
        if !self.saved.is_zero() {
            text.push_str(&format!(", {} saved", human::duration(self.saved)));
        }
        text
    }
}
