//! Progress for programs: one JSON object per line, with the fields that buildx's `--progress rawjson` prints.
//!
//! ```text
//! {"vertexes":[{"digest","inputs","name","started","completed","cached","error"}],
//!  "statuses":[{"id","vertex","name","total","current","timestamp","started","completed"}],
//!  "logs":[{"vertex","stream","data","timestamp"}],
//!  "warnings":[{"vertex","level","short","detail","url","sourceInfo","range"}],
//!  "verdicts":[{"vertex","verdict","reasons","unchanged","saved"}]}
//! ```
//!
//! A field that is empty is left out; times are RFC 3339 in UTC, `data` and `short` are base64. `verdicts` are ours: why
//! a step ran, in the words of `longshore explain --format json`. So is the last line, which has none of these fields, so that programs which know only buildx's pass over it: `{"result":…}` or `{"error":…}`.
//! `docs/reference/progress.md` describes all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use builder::cache::explain::Reason;
use builder::checks::Rule;
use builder::dockerfile::{Diagnostic, Problems, Severity};
use builder::graph::{VertexDigest, VertexIndex};
use builder::history::Verdict;
use builder::solve::{OutputStream, PlannedVertex, ProgressEvent, TransferKind};
use serde::Serialize;
use store::oci::time::rfc3339;

use super::progress::Renderer;
use super::transfers::{Step as TransferStep, Transfers};
use crate::error::CliError;

/// The vertex of what is said about the Dockerfile itself, named as buildx names it.
const LOAD: &str = "[internal] load build definition from Dockerfile";

/// The vertex of bytes that move while no step's own vertex is known.
const TRANSFER: &str = "[internal] transfer layers";

/// How often it is told how far all that moves is together.
const TOTAL_EVERY: Duration = Duration::from_secs(1);

/// The renderer.
#[derive(Debug)]
pub struct RawJson {
    epoch: SystemTime,
    planned: Vec<PlannedVertex>,
    /// The vertices that have something to do: since when, and their labels.
    started: BTreeMap<VertexIndex, (Duration, String)>,
    /// Transfers under way: when each began.
    transfers: BTreeMap<(TransferKind, String), Duration>,
    /// Transfers whose end was told.
    transferred: BTreeSet<(TransferKind, String)>,
    /// What is known of steps that have not ended.
    verdicts: BTreeMap<VertexIndex, VertexVerdict>,
    /// Since when there is a [`TRANSFER`].
    transferring: Option<Duration>,
    /// The transfers once more, for what they are together.
    meters: Transfers,
    /// When that was last told.
    told_together: Option<Duration>,
    text: Vec<u8>,
}

#[derive(Default, Serialize)]
struct SolveStatus {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    vertexes: Vec<Vertex>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    statuses: Vec<VertexStatus>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    logs: Vec<VertexLog>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<VertexWarning>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    verdicts: Vec<VertexVerdict>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    totals: Vec<Total>,
}

/// All that comes or goes over the network.
#[derive(Serialize)]
struct Total {
    /// Transfers that have ended, of how many.
    completed: usize,
    count: usize,
    /// Bytes, of how many.
    current: u64,
    total: u64,
    /// Bytes a second.
    #[serde(skip_serializing_if = "Option::is_none")]
    rate: Option<u64>,
    /// Milliseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    left: Option<u64>,
    timestamp: String,
}

/// How it went with a step, and why.
#[derive(Clone, Debug, Serialize)]
struct VertexVerdict {
    vertex: String,
    verdict: Verdict,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    reasons: Vec<Reason>,
    #[serde(skip_serializing_if = "is_false")]
    unchanged: bool,
    /// Microseconds that it took when it ran.
    #[serde(skip_serializing_if = "Option::is_none")]
    saved: Option<u64>,
}

#[derive(Default, Serialize)]
struct Vertex {
    digest: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    inputs: Vec<String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    started: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
    #[serde(skip_serializing_if = "is_false")]
    cached: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    error: String,
}

#[derive(Serialize)]
struct VertexStatus {
    id: String,
    vertex: String,
    name: String,
    total: u64,
    current: u64,
    timestamp: String,
    started: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    completed: Option<String>,
}

#[derive(Serialize)]
struct VertexLog {
    vertex: String,
    stream: u8,
    data: String,
    timestamp: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct VertexWarning {
    vertex: String,
    level: u8,
    short: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    detail: Vec<String>,
    source_info: SourceInfo,
    range: Vec<Range>,
}

#[derive(Serialize)]
struct SourceInfo {
    filename: String,
    data: String,
    language: &'static str,
}

#[derive(Serialize)]
struct Range {
    start: Position,
    end: Position,
}

/// Lines count from 1 and characters from 0, as in BuildKit.
#[derive(Serialize)]
struct Position {
    line: usize,
    character: usize,
}

#[expect(
    clippy::trivially_copy_pass_by_ref,
    reason = "the form that serde calls"
)]
fn is_false(flag: &bool) -> bool {
    !flag
}

impl RawJson {
    /// A renderer for a display that started at `epoch`.
    pub fn new(epoch: SystemTime) -> RawJson {
        RawJson {
            epoch,
            planned: Vec::new(),
            started: BTreeMap::new(),
            transfers: BTreeMap::new(),
            transferred: BTreeSet::new(),
            verdicts: BTreeMap::new(),
            transferring: None,
            meters: Transfers::default(),
            told_together: None,
            text: Vec::new(),
        }
    }

    fn time(&self, at: Duration) -> String {
        timestamp(self.epoch + at)
    }

    fn line(&mut self, status: &SolveStatus) {
        serde_json::to_writer(&mut self.text, status).expect("our own types have text keys");
        self.text.push(b'\n');
    }

    fn vertex(&self, index: VertexIndex) -> Vertex {
        let started = self.started.get(&index);
        let Some(planned) = self.planned.get(index.0) else {
            // Of what goes before the plan: fetching the context, say.
            let name = started.map(|(_, name)| name.clone()).unwrap_or_default();
            return Vertex {
                digest: internal_digest(&name),
                name,
                started: started.map(|&(at, _)| self.time(at)),
                ..Vertex::default()
            };
        };
        let inputs = planned.inputs.iter();
        Vertex {
            digest: digest(&planned.digest),
            inputs: inputs
                .filter_map(|input| self.planned.get(input.0))
                .map(|input| digest(&input.digest))
                .collect(),
            name: planned.name.clone(),
            started: started.map(|&(at, _)| self.time(at)),
            ..Vertex::default()
        }
    }

    fn show_vertex(&mut self, vertex: Vertex) {
        self.line(&SolveStatus {
            vertexes: vec![vertex],
            ..SolveStatus::default()
        });
    }

    fn log(&mut self, at: Duration, vertex: String, stream: u8, data: &[u8]) {
        let log = VertexLog {
            vertex,
            stream,
            data: BASE64.encode(data),
            timestamp: self.time(at),
        };
        self.line(&SolveStatus {
            logs: vec![log],
            ..SolveStatus::default()
        });
    }

    /// A vertex that no graph has, from its start to its end or without one.
    fn internal(&self, name: &str, from: Duration, to: Option<Duration>) -> Vertex {
        Vertex {
            digest: internal_digest(name),
            name: name.to_owned(),
            started: Some(self.time(from)),
            completed: to.map(|to| self.time(to)),
            ..Vertex::default()
        }
    }

    /// What is known of a step's verdict.
    fn verdict(&mut self, vertex: VertexIndex) -> &mut VertexVerdict {
        let digest = self.vertex(vertex).digest;
        self.verdicts.entry(vertex).or_insert(VertexVerdict {
            vertex: digest,
            verdict: Verdict::Ran,
            reasons: Vec::new(),
            unchanged: false,
            saved: None,
        })
    }

    /// Tells a step's verdict, if there is any.
    fn tell_verdict(&mut self, vertex: VertexIndex, verdict: Verdict) {
        if let Some(told) = self.verdicts.remove(&vertex) {
            self.line(&SolveStatus {
                verdicts: vec![VertexVerdict { verdict, ..told }],
                ..SolveStatus::default()
            });
        }
    }

    fn transfer(&mut self, at: Duration, step: &TransferStep<'_>) {
        let (current, total) = (step.done, step.total);
        let key = (step.kind, step.id.to_owned());
        if self.transferred.contains(&key) {
            return;
        }
        let vertex = match step.vertex {
            Some(vertex) => self.vertex(vertex).digest,
            None => {
                if self.transferring.is_none() {
                    self.transferring = Some(at);
                    self.show_vertex(self.internal(TRANSFER, at, None));
                }
                internal_digest(TRANSFER)
            }
        };
        let completed = total == Some(current);
        let started = *self.transfers.entry(key.clone()).or_insert(at);
        if completed {
            self.transferred.insert(key);
        }
        let status = VertexStatus {
            id: step.label(),
            vertex,
            name: step.kind.as_str().to_owned(),
            total: total.unwrap_or(0),
            current,
            timestamp: self.time(at),
            started: self.time(started),
            completed: completed.then(|| self.time(at)),
        };
        self.line(&SolveStatus {
            statuses: vec![status],
            ..SolveStatus::default()
        });
    }

    /// Tells what all transfers are together, now and then and at their end.
    fn tell_together(&mut self, at: Duration) {
        let sum = self.meters.sum();
        let (current, Some(total)) = sum.amount() else {
            return;
        };
        let told = self.told_together;
        let is_due = told.is_none_or(|told| at.saturating_sub(told) >= TOTAL_EVERY);
        if total == 0 || sum.is_open() && !is_due {
            return;
        }
        self.told_together = Some(at);
        let (count, completed) = self.meters.counts();
        let left = sum.left(at).map(|left| left.as_millis());
        let together = Total {
            completed,
            count,
            current,
            total,
            rate: sum.rate(at),
            left: left.and_then(|left| u64::try_from(left).ok()),
            timestamp: self.time(at),
        };
        self.line(&SolveStatus {
            totals: vec![together],
            ..SolveStatus::default()
        });
    }

    fn warnings(&mut self, found: &Problems) {
        let file = found.file();
        let warnings = found.list().iter().map(|problem| VertexWarning {
            vertex: internal_digest(LOAD),
            level: 1,
            short: BASE64.encode(short(problem)),
            detail: problem
                .help
                .iter()
                .map(|help| BASE64.encode(help))
                .collect(),
            source_info: SourceInfo {
                filename: file.name().to_owned(),
                data: BASE64.encode(file.text()),
                language: "Dockerfile",
            },
            range: vec![range(found, problem)],
        });
        let status = SolveStatus {
            warnings: warnings.collect(),
            ..SolveStatus::default()
        };
        self.line(&status);
    }
}

impl Renderer for RawJson {
    fn event(&mut self, at: Duration, event: &ProgressEvent) -> Vec<u8> {
        match event {
            ProgressEvent::Planned { vertices } => {
                self.planned.clone_from(vertices);
                let load = self.internal(LOAD, Duration::ZERO, Some(at));
                let rest = (0..vertices.len()).map(|index| self.vertex(VertexIndex(index)));
                let vertexes = std::iter::once(load).chain(rest).collect();
                self.line(&SolveStatus {
                    vertexes,
                    ..SolveStatus::default()
                });
            }
            ProgressEvent::Warnings(found) => self.warnings(found),
            ProgressEvent::Started { vertex, name, .. } => {
                self.started.insert(*vertex, (at, name.clone()));
                self.show_vertex(self.vertex(*vertex));
            }
            ProgressEvent::Runs { vertex, reasons } => {
                self.verdict(*vertex).reasons.clone_from(reasons);
            }
            ProgressEvent::Recorded {
                vertex, unchanged, ..
            } => self.verdict(*vertex).unchanged = *unchanged,
            ProgressEvent::Known {
                vertex,
                took,
                unneeded,
                ..
            } => {
                let saved = took.and_then(|took| u64::try_from(took.as_micros()).ok());
                self.verdict(*vertex).saved = saved;
                let verdict = match unneeded {
                    true => Verdict::Unneeded,
                    false => Verdict::Cached,
                };
                self.tell_verdict(*vertex, verdict);
            }
            ProgressEvent::Cached { vertex, name } => {
                self.started.insert(*vertex, (at, name.clone()));
                self.show_vertex(Vertex {
                    completed: Some(self.time(at)),
                    cached: true,
                    ..self.vertex(*vertex)
                });
            }
            ProgressEvent::Done { vertex, .. } => {
                self.show_vertex(Vertex {
                    completed: Some(self.time(at)),
                    ..self.vertex(*vertex)
                });
                self.tell_verdict(*vertex, Verdict::Ran);
            }
            ProgressEvent::Failed { vertex, message } => {
                self.show_vertex(Vertex {
                    completed: Some(self.time(at)),
                    error: message.clone(),
                    ..self.vertex(*vertex)
                });
                self.tell_verdict(*vertex, Verdict::Failed);
            }
            ProgressEvent::Output {
                vertex,
                stream,
                bytes,
            } => {
                let stream = match stream {
                    OutputStream::Stdout => 1,
                    OutputStream::Stderr => 2,
                };
                self.log(at, self.vertex(*vertex).digest, stream, bytes);
            }
            ProgressEvent::Note { vertex, text } => {
                let vertex = match vertex {
                    Some(vertex) => self.vertex(*vertex).digest,
                    None => internal_digest(LOAD),
                };
                self.log(at, vertex, 2, format!("{text}\n").as_bytes());
            }
            _ => {
                if let Some(step) = TransferStep::of(event) {
                    self.meters.take(at, &step);
                    self.transfer(at, &step);
                    self.tell_together(at);
                }
            }
        }
        std::mem::take(&mut self.text)
    }

    fn finish(&mut self, at: Duration, _succeeded: bool) -> Vec<u8> {
        if let Some(started) = self.transferring.take() {
            self.show_vertex(self.internal(TRANSFER, started, Some(at)));
        }
        std::mem::take(&mut self.text)
    }
}

fn digest(digest: &VertexDigest) -> String {
    format!("blake3:{digest:?}")
}

fn internal_digest(name: &str) -> String {
    store::oci::Digest::of(name.as_bytes()).to_string()
}

/// RFC 3339 with nanoseconds, in UTC.
fn timestamp(time: SystemTime) -> String {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    let text = rfc3339(seconds);
    let whole = text.trim_end_matches('Z');
    format!("{whole}.{:09}Z", since.subsec_nanos())
}

fn range(found: &Problems, problem: &Diagnostic) -> Range {
    let position = |offset| {
        let (line, column) = found.file().position(offset);
        Position {
            line,
            character: column - 1,
        }
    };
    Range {
        start: position(problem.span.start),
        end: position(problem.span.end),
    }
}

/// `Rule: message`, as BuildKit words the violation of a rule.
fn short(problem: &Diagnostic) -> String {
    match problem.rule {
        Some(rule) => format!("{}: {}", rule.name(), problem.message),
        None => problem.message.clone(),
    }
}

/// The last line of a build that gave an image.
pub fn result(image: Option<&str>, names: &[String], pushed: &[(String, String)]) -> String {
    #[derive(Serialize)]
    struct Pushed<'a> {
        name: &'a str,
        digest: &'a str,
    }
    #[derive(Serialize)]
    struct Outcome<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        image: Option<&'a str>,
        names: &'a [String],
        pushed: Vec<Pushed<'a>>,
    }
    let outcome = Outcome {
        image,
        names,
        pushed: pushed
            .iter()
            .map(|(name, digest)| Pushed { name, digest })
            .collect(),
    };
    one_key("result", &outcome)
}

/// The last line of a build that gave none.
pub fn failure(error: &CliError, found: &[Problems]) -> String {
    #[derive(Serialize)]
    struct Problem<'a> {
        severity: &'static str,
        #[serde(skip_serializing_if = "Option::is_none")]
        rule: Option<&'static str>,
        message: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        help: Option<&'a str>,
        #[serde(skip_serializing_if = "<[String]>::is_empty")]
        notes: &'a [String],
        file: &'a str,
        range: Range,
    }
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Failure<'a> {
        message: String,
        causes: Vec<String>,
        #[serde(skip_serializing_if = "Option::is_none")]
        hint: Option<&'a str>,
        exit_code: u8,
        problems: Vec<Problem<'a>>,
    }
    let problems = found.iter().flat_map(|found| {
        found.list().iter().map(|problem| Problem {
            severity: match problem.severity {
                Severity::Error => "error",
                Severity::Warning => "warning",
                Severity::Note => "note",
            },
            rule: problem.rule.map(Rule::name),
            message: &problem.message,
            help: problem.help.as_deref(),
            notes: &problem.notes,
            file: found.file().name(),
            range: range(found, problem),
        })
    });
    let problems: Vec<Problem<'_>> = problems.collect();
    let mut chain = error.chain();
    let causes = chain.split_off(1);
    let message = match problems.iter().find(|problem| problem.severity == "error") {
        Some(first) => first.message.to_owned(),
        None => chain.swap_remove(0),
    };
    let failure = Failure {
        message,
        causes,
        hint: error.hint_text(),
        exit_code: error.kind.exit_code(),
        problems,
    };
    one_key("error", &failure)
}

fn one_key(key: &str, value: &impl Serialize) -> String {
    let value = serde_json::to_value(value).expect("our own types have text keys");
    serde_json::Value::Object([(key.to_owned(), value)].into_iter().collect()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_build_as_buildx_prints_it() {
        let mut raw = RawJson::new(UNIX_EPOCH + Duration::from_secs(86_400));
        let vertex = |byte, inputs, name: &str| PlannedVertex {
            digest: VertexDigest([byte; 32]),
            inputs,
            name: name.to_owned(),
            is_step: true,
        };
        let vertices = vec![
            vertex(0xaa, Vec::new(), "[1/2] FROM x"),
            vertex(0xbb, vec![VertexIndex(0)], "[2/2] RUN y"),
        ];
        let (base, run) = (VertexIndex(0), VertexIndex(1));
        let events = [
            ProgressEvent::Planned { vertices },
            ProgressEvent::Cached {
                vertex: base,
                name: "[1/2] FROM x".to_owned(),
            },
            ProgressEvent::Started {
                vertex: run,
                name: "[2/2] RUN y".to_owned(),
                line: 2,
            },
            ProgressEvent::Runs {
                vertex: run,
                reasons: vec![Reason::bare(builder::cache::explain::Ingredient::NoRecord)],
            },
            ProgressEvent::Output {
                vertex: run,
                stream: OutputStream::Stderr,
                bytes: b"oh\n".to_vec(),
            },
            ProgressEvent::Failed {
                vertex: run,
                message: "exit code: 3".to_owned(),
            },
        ];
        let mut text = Vec::new();
        for (index, event) in events.iter().enumerate() {
            text.extend(raw.event(Duration::from_millis(250 * index as u64), event));
        }
        let text = String::from_utf8(text).unwrap();
        let text = text
            .replace(&"aa".repeat(32), "AA")
            .replace(&"bb".repeat(32), "BB");
        let text = text.replace(&internal_digest(LOAD), "LOAD");
        expect_test::expect![[r#"
            {"vertexes":[{"digest":"LOAD","name":"[internal] load build definition from Dockerfile","started":"1970-01-02T00:00:00.000000000Z","completed":"1970-01-02T00:00:00.000000000Z"},{"digest":"blake3:AA","name":"[1/2] FROM x"},{"digest":"blake3:BB","inputs":["blake3:AA"],"name":"[2/2] RUN y"}]}
            {"vertexes":[{"digest":"blake3:AA","name":"[1/2] FROM x","started":"1970-01-02T00:00:00.250000000Z","completed":"1970-01-02T00:00:00.250000000Z","cached":true}]}
            {"vertexes":[{"digest":"blake3:BB","inputs":["blake3:AA"],"name":"[2/2] RUN y","started":"1970-01-02T00:00:00.500000000Z"}]}
            {"logs":[{"vertex":"blake3:BB","stream":2,"data":"b2gK","timestamp":"1970-01-02T00:00:01.000000000Z"}]}
            {"vertexes":[{"digest":"blake3:BB","inputs":["blake3:AA"],"name":"[2/2] RUN y","started":"1970-01-02T00:00:00.500000000Z","completed":"1970-01-02T00:00:01.250000000Z","error":"exit code: 3"}]}
            {"verdicts":[{"vertex":"blake3:BB","verdict":"failed","reasons":[{"ingredient":"no-record"}]}]}
        "#]].assert_eq(&text);
    }

    #[test]
    fn what_moves_is_told_of_together() {
        let mut raw = RawJson::new(UNIX_EPOCH);
        let mut take = |millis, id: &str, done, total| {
            let event = ProgressEvent::Transfer {
                vertex: None,
                kind: TransferKind::Pull,
                id: id.to_owned(),
                name: id.to_owned(),
                done,
                total: Some(total),
            };
            let text = raw.event(Duration::from_millis(millis), &event);
            let text = String::from_utf8(text).unwrap();
            let totals = text.lines().filter(|line| line.contains("totals"));
            totals.map(str::to_owned).collect::<String>()
        };
        let all = [
            take(0, "a", 0, 1000),
            take(0, "b", 0, 3000),
            take(500, "a", 500, 1000),
            take(1000, "a", 1000, 1000),
            take(3000, "b", 3000, 3000),
        ];
        expect_test::expect![[r#"
            {"totals":[{"completed":0,"count":1,"current":0,"total":1000,"timestamp":"1970-01-01T00:00:00.000000000Z"}]}


            {"totals":[{"completed":1,"count":2,"current":1000,"total":4000,"rate":1000,"left":3000,"timestamp":"1970-01-01T00:00:01.000000000Z"}]}
            {"totals":[{"completed":2,"count":2,"current":4000,"total":4000,"rate":1333,"timestamp":"1970-01-01T00:00:03.000000000Z"}]}"#]].assert_eq(&all.join("\n"));
    }
}
