//! What runs right now: events of the libraries in, text on stderr out.
//!
//! A [`Display`] takes events from any thread, stamps them and hands them to one [`Renderer`], which is a plain state
//! machine from events to text: tests drive it with times of their own.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use builder::dockerfile::Problems;
use builder::solve::{ProgressEvent, ProgressSink};

use super::plain::Plain;
use super::quiet::Quiet;
use super::rawjson::RawJson;
use super::tty::Tty;
use super::{Ui, terminal_size};
use crate::args::Progress;

/// How often a live display is redrawn: often enough to look alive, seldom enough to cost nothing.
const REDRAW_EVERY: Duration = Duration::from_millis(100);

/// Most output of one step that is kept to be shown if the step fails; what is older is dropped, and that is said.
const LOG_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What the error of a step says that ended because another one failed, or because of Ctrl-C.
pub const CANCELLED: &str = "cancelled";

/// Turns events into text. Times count from the start of the display.
pub trait Renderer: Send {
    /// Takes one event and returns what is to be written.
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8>;

    /// Makes room for something else on the screen; what is drawn next is drawn below it.
    fn pause(&mut self, _at: Duration) -> Vec<u8> {
        Vec::new()
    }

    /// Redraws what changes with time alone.
    fn tick(&mut self, _at: Duration) -> Vec<u8> {
        Vec::new()
    }

    /// Ends the display: `succeeded` tells how.
    fn finish(&mut self, _at: Duration, _succeeded: bool) -> Vec<u8> {
        Vec::new()
    }
}

/// A progress display on stderr.
pub struct Display {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    started: Instant,
    state: Mutex<State>,
    ended: Condvar,
}

struct State {
    renderer: Box<dyn Renderer>,
    /// What is doubtful about the Dockerfile, kept until the end.
    warnings: Vec<Problems>,
    /// What happened since somebody else has the screen.
    held: Option<Held>,
    ended: bool,
}

/// Events that are shown later.
#[derive(Default)]
struct Held {
    events: Vec<(Duration, ProgressEvent)>,
    /// Bytes of output among them.
    bytes: usize,
    /// Bytes of output that are not.
    left_out: usize,
}

/// Gives the screen to somebody else.
#[derive(Clone)]
pub struct Screen {
    shared: Arc<Shared>,
}

impl Screen {
    /// Runs `work` while nothing else is written. Events that come meanwhile are shown afterwards.
    pub fn lend<T>(&self, work: impl FnOnce() -> T) -> T {
        let _held = Lent::begin(&self.shared);
        work()
    }
}

/// The screen, until this is dropped.
struct Lent<'a>(&'a Shared);

impl<'a> Lent<'a> {
    fn begin(shared: &'a Shared) -> Lent<'a> {
        let mut state = shared.lock();
        let text = state.renderer.pause(shared.started.elapsed());
        write(&text);
        state.held.get_or_insert_default();
        Lent(shared)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        let mut held = state.held.take().unwrap_or_default();
        if held.left_out > 0 {
            let text = format!(
                "{} bytes of output are left out: `longshore history show --logs` has them",
                held.left_out
            );
            let note = ProgressEvent::Note { vertex: None, text };
            held.events.push((self.0.started.elapsed(), note));
        }
        for (at, event) in held.events {
            let text = state.renderer.event(at, &event);
            write(&text);
        }
    }
}

impl Display {
    /// A display as the command line asks for it.
    pub fn new(ui: Ui, how: Progress) -> Display {
        let live = match how {
            Progress::Tty => true,
            Progress::Auto => ui.live,
            Progress::Plain | Progress::Quiet | Progress::Rawjson => false,
        };
        let renderer: Box<dyn Renderer> = match how {
            Progress::Quiet => Box::new(Quiet::default()),
            Progress::Rawjson => Box::new(RawJson::new(SystemTime::now())),
            _ if live => Box::new(Tty::new(terminal_size(), ui.colour)),
            _ => Box::new(Plain::default()),
        };
        let shared = Arc::new(Shared {
            started: Instant::now(),
            state: Mutex::new(State {
                renderer,
                warnings: Vec::new(),
                held: None,
                ended: false,
            }),
            ended: Condvar::new(),
        });
        let ticker = live.then(|| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.redraw_until_ended())
        });
        Display { shared, ticker }
    }

    /// Where events go.
    pub fn sink(&self) -> Arc<dyn ProgressSink> {
        Arc::clone(&self.shared) as Arc<dyn ProgressSink>
    }

    /// A way to have the screen for a while.
    pub fn screen(&self) -> Screen {
        Screen {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Ends the display and leaves the cursor on a line of its own. Returns the warnings that came.
    pub fn finish(mut self, succeeded: bool) -> Vec<Problems> {
        self.end(succeeded);
        std::mem::take(&mut self.shared.lock().warnings)
    }

    fn end(&mut self, succeeded: bool) {
        let mut state = self.shared.lock();
        if !state.ended {
            state.ended = true;
            let text = state
                .renderer
                .finish(self.shared.started.elapsed(), succeeded);
            write(&text);
        }
        drop(state);
        self.shared.ended.notify_all();
        if let Some(ticker) = self.ticker.take() {
            ticker.join().expect("the ticker does not panic");
        }
    }
}

impl Drop for Display {
    fn drop(&mut self) {
        self.end(false);
    }
}

impl ProgressSink for Shared {
    fn event(&self, event: ProgressEvent) {
        let mut state = self.lock();
        if let ProgressEvent::Warnings(problems) = &event {
            state.warnings.push(problems.clone());
        }
        let at = self.started.elapsed();
        if let Some(held) = &mut state.held {
            held.push(at, event);
            return;
        }
        // After the end nothing may scribble below the command's last words.
        if !state.ended {
            let text = state.renderer.event(at, &event);
            write(&text);
        }
    }
}

impl Held {
    /// Keeps an event. Of output only so much: the whole of it is in the build's history.
    fn push(&mut self, at: Duration, event: ProgressEvent) {
        if let ProgressEvent::Output { bytes, .. } = &event {
            if self.bytes + bytes.len() > LOG_BYTES_MAX {
                self.left_out += bytes.len();
                return;
            }
            self.bytes += bytes.len();
        }
        self.events.push((at, event));
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A renderer that panicked on another thread must not hide that panic behind one of ours.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn redraw_until_ended(&self) {
        let mut state = self.lock();
        while !state.ended {
            if state.held.is_none() {
                let text = state.renderer.tick(self.started.elapsed());
                write(&text);
            }
            state = self
                .ended
                .wait_timeout(state, REDRAW_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

/// Writes to stderr. Where that fails there is nobody left to tell.
fn write(text: &[u8]) {
    if !text.is_empty() {
        let _ = io::stderr().lock().write_all(text);
    }
}

/// Cuts a stream of bytes into lines.
#[derive(Debug, Default)]
pub struct Lines {
    partial: Vec<u8>,
}

impl Lines {
    /// Adds bytes and returns the lines that are complete with them, without their newlines.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut lines = Vec::new();
        let mut rest = bytes;
        while let Some(end) = rest.iter().position(|&byte| byte == b'\n') {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(&rest[..end]);
            if line.last() == Some(&b'\r') {
                line.pop();
            }
            lines.push(line);
            rest = &rest[end + 1..];
        }
        self.partial.extend_from_slice(rest);
        lines
    }

    /// The last line, where it came without a newline.
    pub fn rest(&mut self) -> Option<Vec<u8>> {
        (!self.partial.is_empty()).then(|| std::mem::take(&mut self.partial))
    }
}

/// The lines that a step wrote, kept to be shown if it fails.
#[derive(Debug, Default)]
pub struct Log {
    lines: VecDeque<Vec<u8>>,
    bytes: usize,
    dropped: usize,
}

impl Log {
    /// Adds a line.
    pub fn push(&mut self, line: Vec<u8>) {
        self.bytes += line.len() + 1;
        self.lines.push_back(line);
        while self.bytes > LOG_BYTES_MAX
            && let Some(oldest) = self.lines.pop_front()
        {
            self.bytes -= oldest.len() + 1;
            self.dropped += 1;
        }
    }

    /// The newest lines, oldest first.
    pub fn tail(&self, count: usize) -> impl Iterator<Item = &[u8]> {
        let skipped = self.lines.len().saturating_sub(count);
        self.lines.range(skipped..).map(Vec::as_slice)
    }

    /// Everything, between two rules and below the step's name, as buildctl shows the output of a failed step.
    pub fn report(&self, name: &str) -> Vec<u8> {
        let mut text = format!("------\n > {name}:\n").into_bytes();
        if self.dropped > 0 {
            let note = format!("[the first {} lines are left out]\n", self.dropped);
            text.extend_from_slice(note.as_bytes());
        }
        for line in &self.lines {
            text.extend_from_slice(line);
            text.push(b'\n');
        }
        text.extend_from_slice(b"------\n");
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_become_lines() {
        let mut lines = Lines::default();
        assert_eq!(lines.push(b"a\nb"), [b"a"]);
        assert!(lines.push(b"c").is_empty());
        assert_eq!(lines.push(b"\r\n\n"), [b"bc".to_vec(), Vec::new()]);
        assert_eq!(lines.rest(), None);
        lines.push(b"end");
        assert_eq!(lines.rest(), Some(b"end".to_vec()));
    }

    #[test]
    fn logs_are_bounded_and_say_so() {
        let mut log = Log::default();
        for _ in 0..5 {
            log.push(vec![b'x'; LOG_BYTES_MAX / 4]);
        }
        assert!(log.bytes <= LOG_BYTES_MAX);
        let report = log.report("[1/1] RUN x");
        assert!(report.starts_with(b"------\n > [1/1] RUN x:\n[the first 2 lines are left out]\n"));
    }
}
