//! What runs right now: events of the libraries in, text on stderr out.
//!
//! A [`Display`] takes events from any thread, stamps them and hands them to one [`Renderer`], which is a plain state
//! machine from events to text: tests drive it with times of their own. What is logged meanwhile goes through it too.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
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

/// Most bytes of output that are kept while somebody else has the screen.
const HELD_BYTES_MAX: usize = 16 * 1024 * 1024;

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

    /// Takes a line that was logged, with its newline, and returns what is to be written.
    fn logged(&mut self, line: &[u8]) -> Vec<u8> {
        line.to_vec()
    }

    /// Says how many columns and rows the terminal has now.
    fn resize(&mut self, _size: (usize, usize)) {}

    /// Shows what changes with time alone.
    fn tick(&mut self, _at: Duration) -> Vec<u8> {
        Vec::new()
    }

    /// Ends the display: `succeeded` tells how.
    fn finish(&mut self, _at: Duration, _succeeded: bool) -> Vec<u8> {
        Vec::new()
    }
}

/// What is shown the progress of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Work {
    /// A build.
    Building,
    /// An image on its way here.
    Pulling,
    /// An image on its way elsewhere.
    Pushing,
    /// An image on its way between two other places.
    Copying,
}

impl Work {
    /// One word.
    pub fn as_str(self) -> &'static str {
        match self {
            Work::Building => "Building",
            Work::Pulling => "Pulling",
            Work::Pushing => "Pushing",
            Work::Copying => "Copying",
        }
    }
}

/// A progress display on stderr.
pub struct Display {
    shared: Arc<Shared>,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    started: Instant,
    /// Whether the size of the terminal matters.
    live: bool,
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
        let mut state = lock(&shared.state);
        let text = state.renderer.pause(shared.started.elapsed());
        write(&text);
        state.held.get_or_insert_default();
        Lent(shared)
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        let mut held = state.held.take().unwrap_or_default();
        if held.left_out > 0 {
            let text = format!(
                "{} bytes of output are left out: `longshore history logs` has them",
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

/// The display that there is, for what is logged.
static CURRENT: Mutex<Weak<Shared>> = Mutex::new(Weak::new());

impl Display {
    /// A display as the command line asks for it.
    pub fn new(ui: Ui, how: Progress, work: Work) -> Display {
        let live = match how {
            Progress::Tty => true,
            Progress::Auto => ui.live,
            Progress::Plain | Progress::Quiet | Progress::Rawjson => false,
        };
        let renderer: Box<dyn Renderer> = match how {
            Progress::Quiet => Box::new(Quiet::default()),
            Progress::Rawjson => Box::new(RawJson::new(SystemTime::now())),
            _ if live => Box::new(Tty::new(work, terminal_size(), ui)),
            _ => Box::new(Plain::default()),
        };
        let ticks = matches!(how, Progress::Plain | Progress::Tty | Progress::Auto);
        let shared = Arc::new(Shared {
            started: Instant::now(),
            live,
            state: Mutex::new(State {
                renderer,
                warnings: Vec::new(),
                held: None,
                ended: false,
            }),
            ended: Condvar::new(),
        });
        *lock(&CURRENT) = Arc::downgrade(&shared);
        let ticker = ticks.then(|| {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || shared.tick_until_ended())
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
        std::mem::take(&mut lock(&self.shared.state).warnings)
    }

    fn end(&mut self, succeeded: bool) {
        let mut state = lock(&self.shared.state);
        if !state.ended {
            state.ended = true;
            self.shared.measure(&mut state);
            let at = self.shared.started.elapsed();
            let text = state.renderer.finish(at, succeeded);
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
        let mut state = lock(&self.state);
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
            if self.bytes + bytes.len() > HELD_BYTES_MAX {
                self.left_out += bytes.len();
                return;
            }
            self.bytes += bytes.len();
        }
        self.events.push((at, event));
    }
}

impl Shared {
    fn tick_until_ended(&self) {
        let mut state = lock(&self.state);
        loop {
            // First to wait: what is done at once is shown once.
            state = self
                .ended
                .wait_timeout(state, REDRAW_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
            if state.ended {
                return;
            }
            if state.held.is_some() {
                continue;
            }
            self.measure(&mut state);
            let text = state.renderer.tick(self.started.elapsed());
            write(&text);
        }
    }

    fn measure(&self, state: &mut State) {
        if self.live {
            state.renderer.resize(terminal_size());
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A renderer that panicked on another thread must not hide that panic behind one of ours.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes to stderr. Where that fails there is nobody left to tell.
fn write(text: &[u8]) {
    if !text.is_empty() {
        let _ = io::stderr().lock().write_all(text);
    }
}

/// Stderr for what is logged: while there is a display, it is asked where the line goes.
#[derive(Debug)]
pub struct LogWriter;

impl Write for LogWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let display = lock(&CURRENT).upgrade();
        match display {
            Some(display) => {
                let mut state = lock(&display.state);
                match state.ended {
                    true => write(bytes),
                    false => write(&state.renderer.logged(bytes)),
                }
            }
            None => write(bytes),
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
