use std::sync::Arc;

use super::record::{Recorder, Subject};
use super::*;
use crate::dockerfile::Problems;
use crate::error::BuildError;
use crate::solve::{NoProgress, ProgressEvent, ProgressSink};

fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(dir.path()).unwrap();
    (dir, store)
}

fn outline(dockerfile: &str) -> Outline {
    Outline {
        context: ".".to_owned(),
        dockerfile: dockerfile.to_owned(),
        target: None,
        platform: "linux/amd64".to_owned(),
        tags: vec!["app".to_owned()],
    }
}

fn recorder(store: &Store) -> Arc<Recorder> {
    let subject = Subject {
        series: [1; 32],
        outline: outline("Dockerfile"),
    };
    let nobody: Arc<dyn ProgressSink> = Arc::new(NoProgress);
    Recorder::begin(store, &subject, &nobody)
}

fn definition() -> crate::graph::Definition {
    use crate::graph::{Definition, ExecOp, Op, OpMetadata};
    let mut definition = Definition::new();
    for name in ["[1/2] RUN a", "[2/2] RUN b"] {
        let op = ExecOp {
            argv: vec![name.to_owned()],
            ..ExecOp::default()
        };
        let meta = OpMetadata {
            name: name.to_owned(),
            line: 1,
            ..OpMetadata::default()
        };
        definition.add(Op::Exec(op), Vec::new(), meta);
    }
    definition
}

fn output(vertex: usize, bytes: &[u8]) -> ProgressEvent {
    ProgressEvent::Output {
        vertex: VertexIndex(vertex),
        stream: OutputStream::Stderr,
        bytes: bytes.to_vec(),
    }
}

fn run(recorder: &Recorder, fails: bool) {
    recorder.planned(&definition(), |_| None);
    let first = VertexIndex(0);
    recorder.event(ProgressEvent::Known {
        vertex: first,
        key: Some(CacheKey([7; 32])),
        took: Some(Duration::from_secs(3)),
        bytes: Some(5),
        unneeded: false,
    });
    let vertex = VertexIndex(1);
    let reasons = vec![Reason::bare(crate::cache::explain::Ingredient::NoRecord)];
    recorder.event(ProgressEvent::Runs { vertex, reasons });
    recorder.event(ProgressEvent::Started {
        vertex,
        name: String::new(),
        line: 0,
    });
    recorder.event(output(1, b"text\n"));
    recorder.event(output(1, b"\xff\x00"));
    if fails {
        let message = "exit code 1".to_owned();
        recorder.event(ProgressEvent::Failed { vertex, message });
    }
}

fn only(store: &Store) -> ListedBuild {
    let mut builds = list(store).unwrap();
    assert_eq!(builds.len(), 1);
    builds.remove(0)
}

#[test]
fn a_build_reads_back() {
    let (_dir, store) = store();
    let recorder = recorder(&store);
    run(&recorder, false);
    let vertex = VertexIndex(1);
    let elapsed = Duration::ZERO;
    recorder.event(ProgressEvent::Done { vertex, elapsed });
    let key = CacheKey([9; 32]);
    let bytes = 12;
    let unchanged = true;
    recorder.event(ProgressEvent::Recorded {
        vertex,
        key,
        bytes,
        unchanged,
    });
    let file = crate::dockerfile::SourceFile::new("Dockerfile", "FROM scratch");
    let odd = crate::dockerfile::Diagnostic::warning(crate::dockerfile::Span::new(0, 4), "odd");
    recorder.event(ProgressEvent::Warnings(Problems::new(&file, vec![odd])));
    recorder.end(Ok(None));
    let listed = only(&store);
    let row = &listed.row;
    assert!(!listed.running);
    assert_eq!((row.steps, row.ran, row.cached, row.warnings), (2, 1, 1, 1));
    assert_eq!((row.saved, row.status), (3_000_000, BuildStatus::Done));
    let build = BuildHistory::read(&store, &row.id).unwrap().unwrap();
    assert_eq!((build.status.as_str(), build.counts()), ("done", (1, 1)));
    assert_eq!(build.tags, ["app"]);
    assert_eq!(build.saved(), Duration::from_secs(3));
    let verdicts: Vec<Verdict> = build.steps.iter().map(|step| step.verdict).collect();
    assert_eq!(verdicts, [Verdict::Cached, Verdict::Ran]);
    assert_eq!(build.steps[1].bytes, Some(12));
    assert!(build.steps[1].unchanged);
    assert_eq!(build.steps[1].cache_key(), Some(key));
    assert_eq!(build.steps[1].output_bytes, 7);
    let mut logged = Vec::new();
    for_each_output(&store, &row.id, |output| {
        assert_eq!(
            (output.step, output.stream),
            (VertexIndex(1), OutputStream::Stderr)
        );
        logged.extend(output.bytes);
    })
    .unwrap();
    assert_eq!(logged, b"text\n\xff\x00");
}

#[test]
fn a_failure_keeps_its_cause() {
    let (_dir, store) = store();
    let recorder = recorder(&store);
    run(&recorder, true);
    recorder.end(Err(&BuildError::NoContext));
    let row = only(&store).row;
    assert_eq!(row.status, BuildStatus::Failed);
    assert!(row.error.unwrap().contains("without one"));
    let build = BuildHistory::read(&store, &row.id).unwrap().unwrap();
    assert_eq!(build.steps[1].verdict, Verdict::Failed);
    assert_eq!(build.steps[1].error.as_deref(), Some("exit code 1"));
}

#[test]
fn a_build_that_runs_is_listed_and_a_killed_one_is_called_so() {
    let (_dir, store) = store();
    let recorder = recorder(&store);
    run(&recorder, false);
    let listed = only(&store);
    assert!(listed.running);
    let read = || BuildHistory::read(&store, &listed.row.id).unwrap().unwrap();
    assert_eq!(read().status, "running");
    // As a killed process leaves it: nothing is said any more, and the lock is gone.
    drop(recorder);
    let listed = only(&store);
    assert!(!listed.running);
    assert_eq!(listed.row.status, BuildStatus::Killed);
    assert_eq!((listed.row.ran, listed.row.cached), (1, 1));
    assert_eq!(read().status, "killed");
    assert_eq!(read().steps[1].verdict, Verdict::Unfinished);
    assert!(store.history().unlisted().unwrap().is_empty());
}

#[test]
fn a_build_that_was_refused_at_once_is_kept() {
    let (_dir, store) = store();
    let nobody: Arc<dyn ProgressSink> = Arc::new(NoProgress);
    let recording = Recording::begin(&store, outline("guess"), &nobody);
    let vertex = VertexIndex(usize::MAX);
    let sink = recording.sink();
    sink.event(ProgressEvent::Started {
        vertex,
        name: "[internal] load build context".to_owned(),
        line: 0,
    });
    let message = "no route".to_owned();
    sink.event(ProgressEvent::Failed { vertex, message });
    let settled = Subject {
        series: [9; 32],
        outline: outline("Dockerfile"),
    };
    recording.0.settle(&settled);
    recording.refused(&BuildError::NoContext);
    recording.refused_for("said twice");
    let row = only(&store).row;
    assert_eq!((row.status, row.series), (BuildStatus::Failed, [9; 32]));
    assert_eq!(row.dockerfile, "Dockerfile");
    let build = BuildHistory::read(&store, &row.id).unwrap().unwrap();
    assert_eq!(build.dockerfile, "Dockerfile");
    assert_eq!(build.before[0].name, "[internal] load build context");
    assert!(build.error.unwrap().contains("without one"));
    let mut told = Vec::new();
    replay(&store, &row.id, |_, event| told.push(event)).unwrap();
    let [ProgressEvent::Note { text, .. }] = told.as_slice() else {
        panic!("{told:?}");
    };
    assert!(text.starts_with("[internal] load build context "), "{text}");
}

#[test]
fn torn_journals_are_read_as_far_as_they_go() {
    let (dir, store) = store();
    let recorder = recorder(&store);
    run(&recorder, false);
    let id = only(&store).row.id;
    drop(recorder);
    let path = dir.path().join("builds").join(id.as_str());
    let whole = std::fs::read(&path).unwrap();
    let first = whole.iter().position(|&byte| byte == b'\n').unwrap();
    for end in (0..whole.len()).step_by(7) {
        std::fs::write(&path, &whole[..end]).unwrap();
        let build = BuildHistory::read(&store, &id).unwrap();
        assert_eq!(build.is_some(), end >= first, "{end}");
    }
    let mut odd = whole;
    odd.splice(
        first + 1..first + 1,
        *b"\xff{\"is\":\"cached\",\"at\":1,\"step\":99}\n{}\n",
    );
    std::fs::write(&path, &odd).unwrap();
    assert!(BuildHistory::read(&store, &id).unwrap().is_some());
    // One that says nothing is swept away.
    std::fs::write(&path, "").unwrap();
    assert!(list(&store).unwrap().is_empty());
    assert!(!path.exists());
}

#[test]
fn nothing_is_written_where_nothing_is_kept() {
    let dir = tempfile::tempdir().unwrap();
    let keep = store::history::Keep {
        builds: 0,
        ..store::history::Keep::default()
    };
    let options = store::OpenOptions {
        history: keep,
        ..store::OpenOptions::default()
    };
    let store = Store::open_with(dir.path(), &options).unwrap();
    let recorder = recorder(&store);
    run(&recorder, false);
    recorder.end(Ok(None));
    assert!(!dir.path().join("builds").exists());
    assert!(list(&store).unwrap().is_empty());
}
