//! A push sends what is compressed while it compresses the rest.

use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use builder::remote::Remote;
use builder::solve::{ProgressEvent, ProgressSink, TransferKind};
use builder::transfer::push;
use registry_server::RunningServer;
use store::images::ImageId;
use store::layer::compress::CompressionChoice;
use store::oci::Reference;

use crate::build::Bench;

/// Until a push that sends nothing before all is compressed is given up: it would wait for ever.
const PATIENCE: Duration = Duration::from_secs(300);

/// Holds the compression of the second layer that is begun, until bytes of another are on their way; notes what happened.
#[derive(Default)]
struct Gate {
    seen: Mutex<Seen>,
    changed: Condvar,
}

#[derive(Default)]
struct Seen {
    /// Layers whose compression was begun.
    begun: Vec<String>,
    /// Of how many of them it has ended.
    ended: usize,
    /// How many had ended when the first bytes of one were sent.
    sent_after: Option<usize>,
}

impl ProgressSink for Gate {
    fn event(&self, event: ProgressEvent) {
        let ProgressEvent::Transfer {
            kind,
            id,
            done,
            total,
            ..
        } = event
        else {
            return;
        };
        let mut seen = self.seen.lock().unwrap();
        match kind {
            TransferKind::Push if done > 0 => {
                let ended = seen.ended;
                seen.sent_after.get_or_insert(ended);
                self.changed.notify_all();
            }
            TransferKind::Compress if total == Some(done) => seen.ended += 1,
            TransferKind::Compress if !seen.begun.contains(&id) => {
                seen.begun.push(id);
                if seen.begun.len() == 2 {
                    let is_held = |seen: &mut Seen| seen.sent_after.is_none();
                    let held = self.changed.wait_timeout_while(seen, PATIENCE, is_held);
                    assert!(!held.unwrap().1.timed_out(), "nothing is sent meanwhile");
                }
            }
            _ => {}
        }
    }
}

#[test]
fn layers_are_sent_while_others_are_compressed() {
    let files = [("a", "1"), ("b", "2"), ("c", "3")];
    let bench = Bench::new("FROM scratch\nCOPY a /a\nCOPY b /b\nCOPY c /c\n", &files);
    let outcome = bench.build_telling(&bench.request(), &(Arc::new(Gate::default()) as _));
    let id = outcome.unwrap().image.unwrap();
    let server = RunningServer::start_in_memory().unwrap();
    let reference: Reference = format!("{}/x:1", server.host()).parse().unwrap();
    let remote = Remote::new(Box::new(registry_client::Options::default));
    let gate = Arc::new(Gate::default());
    let sink: Arc<dyn ProgressSink> = Arc::clone(&gate) as _;
    let choice = CompressionChoice::AS_THEY_ARE;
    let report = push(
        &bench.store,
        &remote,
        &ImageId(id),
        &reference,
        choice,
        &sink,
    )
    .unwrap();
    // Three layers and the configuration.
    assert_eq!(report.uploaded, 4);
    let seen = gate.seen.lock().unwrap();
    assert_eq!((seen.begun.len(), seen.ended), (3, 3));
    assert!(
        matches!(seen.sent_after, Some(1 | 2)),
        "{:?}",
        seen.sent_after
    );
}
