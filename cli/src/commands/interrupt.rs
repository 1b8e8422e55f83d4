//! Ctrl-C and SIGTERM while a build runs: the first ends it in good order, a second one at once.

use std::io::{PipeReader, PipeWriter};
use std::sync::Arc;
use std::thread::JoinHandle;

use builder::solve::cancel::Cancel;
use runner::terminal::Signals;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::Signal;

use crate::error::{Blame, CliError, Kind};

/// A thread that waits for signals, until it is stopped.
#[derive(Debug)]
pub struct Watch {
    thread: JoinHandle<()>,
    /// What is blocked for it is let through again where this one goes, on the thread that began it.
    signals: Arc<Signals>,
    /// Its end is how the thread learns that nobody waits for it any more.
    done: PipeWriter,
}

impl Watch {
    /// Starts to watch. To be called before there are other threads, which would take the signals themselves.
    pub fn start(cancel: &Cancel) -> Result<Watch, CliError> {
        let signals = Signals::collect_all_but_resizes().blame(Kind::Environment)?;
        let signals = Arc::new(signals);
        let (stopped, done) = std::io::pipe().blame(Kind::Environment)?;
        let (cancel, watched) = (cancel.clone(), Arc::clone(&signals));
        let thread = std::thread::Builder::new()
            .name("signals".to_owned())
            .spawn(move || watch(&watched, &stopped, &cancel))
            .blame(Kind::Environment)?;
        Ok(Watch {
            thread,
            signals,
            done,
        })
    }

    /// Ends the thread.
    pub fn stop(self) {
        drop(self.done);
        self.thread.join().expect("the watch does not panic");
        drop(self.signals);
    }
}

fn watch(signals: &Signals, stopped: &PipeReader, cancel: &Cancel) {
    loop {
        let mut fds = [
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(stopped, PollFlags::IN),
        ];
        let polled = poll(&mut fds, None);
        if polled.is_err() || !fds[1].revents().is_empty() {
            return;
        }
        while let Ok(Some(signal)) = signals.take() {
            let ends = [Signal::HUP, Signal::INT, Signal::QUIT, Signal::TERM];
            if !ends.iter().any(|end| end.as_raw() == signal) {
                continue;
            }
            if cancel.is_cancelled() {
                #[expect(
                    clippy::exit,
                    reason = "asked for twice: nobody waits for order any more"
                )]
                std::process::exit(Kind::Interrupted.exit_code().into());
            }
            cancel.cancel();
        }
    }
}
