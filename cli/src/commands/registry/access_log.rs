//! The access log: one JSON object per request, in a file or on stdout.
//!
//! Requests never wait for it. A thread writes what they hand over; where it cannot keep up, lines are left out, and how many is told
//! in the next one.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{self, Receiver, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, UNIX_EPOCH};

use registry_server::observe::{AccessLog, AccessRecord};
use serde_json::{Value, json};
use store::oci::time;

use crate::error::{CliError, Kind};
use crate::ui::Ui;

/// Lines that may wait to be written.
const WAITING_MAX: usize = 8192;

/// The log; what was handed over is written when it is dropped.
#[derive(Debug)]
pub(super) struct JsonLog {
    lines: Mutex<Option<SyncSender<AccessRecord>>>,
    left_out: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl JsonLog {
    /// Appends to a file, or with `-` writes to stdout.
    pub(super) fn open(ui: &Ui, path: &Path) -> Result<JsonLog, CliError> {
        let file = match path == Path::new("-") {
            true => ui.stdout_file(),
            false => OpenOptions::new().create(true).append(true).open(path),
        };
        let out = file.map_err(|source| {
            let message = format!("cannot write the access log `{}`: {source}", path.display());
            CliError::new(Kind::Environment, message)
        })?;
        let (sender, receiver) = mpsc::sync_channel(WAITING_MAX);
        let left_out = Arc::<AtomicU64>::default();
        let missed = Arc::clone(&left_out);
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write(BufWriter::new(out), &receiver, &missed))
            .map_err(|source| CliError::new(Kind::Environment, source))?;
        Ok(JsonLog {
            lines: Mutex::new(Some(sender)),
            left_out,
            thread: Some(thread),
        })
    }
}

impl AccessLog for JsonLog {
    fn log(&self, record: AccessRecord) {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        let sent = lines
            .as_ref()
            .is_some_and(|lines| lines.try_send(record).is_ok());
        if !sent {
            self.left_out.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Drop for JsonLog {
    fn drop(&mut self) {
        let lines = self.lines.get_mut().unwrap_or_else(PoisonError::into_inner);
        drop(lines.take());
        if let Some(thread) = self.thread.take() {
            // A panic there was told already.
            let _ = thread.join();
        }
    }
}

fn write(mut out: impl Write, lines: &Receiver<AccessRecord>, left_out: &AtomicU64) {
    let mut broken = false;
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        let mut written = Ok(());
        while let Some(record) = next {
            let missed = left_out.swap(0, Ordering::Relaxed);
            written = written.and_then(|()| writeln!(out, "{}", line(&record, missed)));
            next = lines.try_recv().ok();
        }
        // Nobody reads it late because nothing else happens.
        written = written.and_then(|()| out.flush());
        if let Err(error) = written
            && !std::mem::replace(&mut broken, true)
        {
            tracing::error!(%error, "the access log cannot be written");
        }
    }
}

/// A line; `missed` were left out before it.
fn line(record: &AccessRecord, missed: u64) -> Value {
    let since = record.time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let millis = |time: Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    let mut line = json!({
        "time": time::rfc3339(seconds),
        "peer": record.peer,
        "method": record.method.as_str(),
        "path": record.path,
        "route": record.route,
        "status": record.status.as_u16(),
        "sent_bytes": record.sent_bytes,
        "complete": record.complete,
        "answered_ms": millis(record.answered_after),
        "ended_ms": millis(record.ended_after),
    });
    let texts = [
        ("user", &record.user),
        ("agent", &record.agent),
        ("trace", &record.trace),
    ];
    for (key, text) in texts {
        if let Some(text) = text {
            line[key] = json!(text);
        }
    }
    if missed > 0 {
        line["left_out"] = json!(missed);
    }
    line
}
