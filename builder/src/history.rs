//! What builds did: journals written while they go on, read back later, and compared when a step runs again.
//!
//! | file | part |
//! |---|---|
//! | this one | a build read back: [`BuildHistory`], and the list of all that are kept |
//! | `detail` | what it takes to make a step's sandbox again |
//! | `line` | the lines of a journal |
//! | `record` | writing one |
//! | `replay` | one as the events that it was made of |
//!
//! Where journals lie, and how a killed build is told from one that runs, is [`store::history`]'s business.

pub(crate) mod detail;
mod line;
pub(crate) mod record;
mod replay;

use std::io::{BufRead, BufReader};
use std::time::Duration;

use serde::Serialize;
use store::history::{BuildId, BuildRow, BuildStatus};
use store::{Store, StoreError};

use crate::cache::CacheKey;
use crate::cache::explain::Reason;
use crate::graph::VertexIndex;
use crate::solve::{OutputStream, Used};
use detail::Detail;
use line::Line;

pub use record::{Outline, Recording};
pub use replay::replay;

/// Longest line of a journal that is read, in bytes: a damaged one may have no end.
const LINE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// A build, as far as its journal tells.
#[derive(Clone, Debug, Serialize)]
pub struct BuildHistory {
    /// Its name.
    pub id: String,
    /// How it ended: `done`, `failed`, `cancelled`, `killed`; or `running`.
    pub status: String,
    /// When it began, in microseconds since 1970.
    pub started: i64,
    /// How long it took, or has taken until the last that is known, in microseconds.
    pub took: u64,
    /// The context, as it was given.
    pub context: String,
    /// The Dockerfile, as messages call it.
    pub dockerfile: String,
    /// The stage that was asked for.
    pub target: Option<String>,
    /// What was built for.
    pub platform: String,
    /// The image's names.
    pub tags: Vec<String>,
    /// The image's id.
    pub image: Option<String>,
    /// What went wrong, with its causes, one line each.
    pub error: Option<String>,
    /// Warnings about the Dockerfile, rendered.
    pub warnings: Vec<String>,
    /// What is worth knowing of the build as a whole.
    pub notes: Vec<String>,
    /// Whether the journal became full, so that lines are missing.
    pub incomplete: bool,
    /// What was done before the steps were known: a context fetched, base images looked for.
    pub before: Vec<Before>,
    /// Images, contexts and steps, inputs before users.
    pub steps: Vec<StepHistory>,
    #[serde(skip)]
    series: [u8; 32],
    /// How each step is made.
    #[serde(skip)]
    pub(crate) details: Vec<Option<Detail>>,
    /// The layer that each step made, where that is known: empty for none.
    #[serde(skip)]
    pub(crate) layers: Vec<Option<String>>,
}

/// Something that was done before the steps were known. Times are microseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Before {
    /// Its label.
    pub name: String,
    /// When it began, since the build did.
    pub started: u64,
    /// How long it took.
    pub took: u64,
}

/// How it went with a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// Its result was known.
    Cached,
    /// Its result was known, and nothing asked for its files.
    Unneeded,
    /// It ran.
    Ran,
    /// It ran, and failed.
    Failed,
    /// It was running when the build ended.
    Unfinished,
    /// The build ended before it was its turn, or its turn is still to come.
    Waiting,
    /// There is nothing to do for it: a folder is read in place by the steps that copy from it.
    Nothing,
}

/// One step of a build.
#[derive(Clone, Debug, Serialize)]
pub struct StepHistory {
    /// Its number, from 1.
    pub number: usize,
    /// Its label.
    pub name: String,
    /// `image`, `context`, `tree`, `http`, `git`, `exec`, `file` or `merge`.
    pub kind: String,
    /// First line in the Dockerfile, from 1; 0 where there is none.
    pub line: usize,
    /// Numbers of the steps that it reads.
    pub inputs: Vec<usize>,
    /// How it went.
    pub verdict: Verdict,
    /// Why it ran.
    pub reasons: Vec<Reason>,
    /// It ran, and gave the same files as an earlier run: what reads them did not have to run again for it.
    pub unchanged: bool,
    /// When it began, in microseconds since the build did.
    pub started: Option<u64>,
    /// How long it took, in microseconds.
    pub took: Option<u64>,
    /// How long it took when it ran, if it did not now, in microseconds.
    pub saved: Option<u64>,
    /// Bytes of the files that it made.
    pub bytes: Option<u64>,
    /// Key of the record that its result is kept under, in hexadecimal.
    pub key: Option<String>,
    /// What went wrong.
    pub error: Option<String>,
    /// What is worth knowing.
    pub notes: Vec<String>,
    /// What its processes used, if it ran any.
    pub used: Option<Used>,
    /// Bytes that its process wrote.
    pub output_bytes: u64,
}

/// Something that a step's process wrote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoggedOutput {
    /// When, since the build began.
    pub at: Duration,
    /// The step.
    pub step: VertexIndex,
    /// Where to.
    pub stream: OutputStream,
    /// The bytes as they came.
    pub bytes: Vec<u8>,
}

impl StepHistory {
    fn new(number: usize, planned: line::Planned) -> StepHistory {
        let verdict = match planned.kind.as_str() {
            "context" | "tree" | "merge" => Verdict::Nothing,
            _ => Verdict::Waiting,
        };
        StepHistory {
            number,
            name: planned.name,
            kind: planned.kind,
            line: planned.line,
            inputs: planned.inputs.iter().map(|input| input + 1).collect(),
            verdict,
            reasons: Vec::new(),
            unchanged: false,
            started: None,
            took: None,
            saved: None,
            bytes: None,
            key: None,
            error: None,
            notes: Vec::new(),
            used: None,
            output_bytes: 0,
        }
    }

    /// Whether it counts as a step: images and folders do not.
    pub fn is_step(&self) -> bool {
        is_step(&self.kind)
    }

    /// The key of its record.
    pub(crate) fn cache_key(&self) -> Option<CacheKey> {
        let hash = blake3::Hash::from_hex(self.key.as_ref()?).ok()?;
        Some(CacheKey(*hash.as_bytes()))
    }
}

impl BuildHistory {
    /// A build of these steps of which nothing else is known: for whoever shows builds, to be tested with.
    pub fn of_steps(steps: Vec<StepHistory>) -> BuildHistory {
        let ends = steps
            .iter()
            .filter_map(|step| Some(step.started? + step.took?));
        BuildHistory {
            id: "00000000".to_owned(),
            status: BuildStatus::Done.as_str().to_owned(),
            started: 0,
            took: ends.max().unwrap_or(0),
            context: ".".to_owned(),
            dockerfile: "Dockerfile".to_owned(),
            target: None,
            platform: "linux/amd64".to_owned(),
            tags: Vec::new(),
            image: None,
            error: None,
            warnings: Vec::new(),
            notes: Vec::new(),
            incomplete: false,
            before: Vec::new(),
            steps,
            series: [0; 32],
            details: Vec::new(),
            layers: Vec::new(),
        }
    }

    /// Steps that ran, and steps whose result was known.
    pub fn counts(&self) -> (usize, usize) {
        let steps = || self.steps.iter().filter(|step| step.is_step());
        let of = |verdicts: &[Verdict]| steps().filter(|s| verdicts.contains(&s.verdict)).count();
        (
            of(&[Verdict::Ran, Verdict::Failed, Verdict::Unfinished]),
            of(&[Verdict::Cached, Verdict::Unneeded]),
        )
    }

    /// How long the steps whose result was known had taken when they ran.
    pub fn saved(&self) -> Duration {
        Duration::from_micros(self.steps.iter().filter_map(|step| step.saved).sum())
    }

    /// Reads a build back; none where nothing is kept of it. Lines that are damaged are left out.
    pub fn read(store: &Store, id: &BuildId) -> Result<Option<BuildHistory>, StoreError> {
        let Some(file) = store.history().open(id)? else {
            return Ok(None);
        };
        let mut build = None;
        for_each_line(BufReader::new(file), |line| match (&mut build, line) {
            (None, line) => build = BuildHistory::begin(id, line),
            (Some(build), line) => build.take(line),
        });
        let Some(mut build) = build else {
            return Ok(None);
        };
        if build.status.is_empty() {
            let running = store.history().is_running(id)?;
            build.status = if running { "running" } else { "killed" }.to_owned();
        }
        Ok(Some(build))
    }

    fn begin(id: &BuildId, line: Line) -> Option<BuildHistory> {
        let Line::Build {
            version: line::VERSION,
            started,
            series,
            context,
            dockerfile,
            target,
            platform,
            tags,
        } = line
        else {
            return None;
        };
        Some(BuildHistory {
            id: id.to_string(),
            status: String::new(),
            started,
            took: 0,
            context,
            dockerfile,
            target,
            platform,
            tags,
            image: None,
            error: None,
            warnings: Vec::new(),
            notes: Vec::new(),
            incomplete: false,
            before: Vec::new(),
            steps: Vec::new(),
            details: Vec::new(),
            layers: Vec::new(),
            series: *blake3::Hash::from_hex(series).ok()?.as_bytes(),
        })
    }

    fn take(&mut self, line: Line) {
        match line {
            Line::Build {
                series,
                context,
                dockerfile,
                target,
                platform,
                tags,
                ..
            } => {
                if let Ok(series) = blake3::Hash::from_hex(series) {
                    self.series = *series.as_bytes();
                }
                self.context = context;
                self.dockerfile = dockerfile;
                self.target = target;
                self.platform = platform;
                self.tags = tags;
            }
            Line::Before { at, name, took } => {
                self.took = self.took.max(at);
                let started = at.saturating_sub(took);
                self.before.push(Before {
                    name,
                    started,
                    took,
                });
            }
            Line::Steps { at, mut steps } => {
                self.took = self.took.max(at);
                let details = steps.iter_mut().map(|step| step.detail.take());
                self.details = details.collect();
                let numbered = (1..).zip(steps);
                self.steps = numbered
                    .map(|(n, step)| StepHistory::new(n, step))
                    .collect();
            }
            Line::Cached {
                at,
                step,
                key,
                took,
                bytes,
                unneeded,
            } => self.step(at, step, |step| {
                step.verdict = match unneeded {
                    true => Verdict::Unneeded,
                    false => Verdict::Cached,
                };
                step.key = key;
                step.saved = took;
                step.bytes = bytes;
            }),
            Line::Runs { at, step, reasons } => self.step(at, step, |step| {
                step.verdict = Verdict::Unfinished;
                step.reasons = reasons;
            }),
            Line::Started { at, step } => self.step(at, step, |step| {
                step.verdict = Verdict::Unfinished;
                step.started = Some(at);
            }),
            Line::Output {
                at,
                step,
                text,
                hex,
                ..
            } => self.step(at, step, |step| {
                let text = text.map_or(0, |text| text.len());
                let bytes = hex.map_or(text, |hex| hex.len() / 2);
                step.output_bytes += bytes as u64;
            }),
            Line::Used { at, step, used } => self.step(at, step, |step| step.used = Some(used)),
            Line::Done { at, step } => self.step(at, step, |step| {
                step.verdict = Verdict::Ran;
                step.took = step.started.map(|started| at.saturating_sub(started));
            }),
            Line::Recorded {
                at,
                step,
                key,
                bytes,
                unchanged,
            } => self.step(at, step, |step| {
                step.key = Some(key);
                step.bytes = Some(bytes);
                step.unchanged = unchanged;
            }),
            Line::Failed { at, step, message } => self.step(at, step, |step| {
                step.verdict = Verdict::Failed;
                step.took = step.started.map(|started| at.saturating_sub(started));
                step.error = Some(message);
            }),
            Line::Note { at, step, text } => match step {
                Some(step) => self.step(at, step, |step| step.notes.push(text)),
                None => self.notes.push(text),
            },
            Line::Warning { at, text } => {
                self.took = self.took.max(at);
                self.warnings.push(text);
            }
            Line::Layers { at, layers } => {
                self.took = self.took.max(at);
                self.layers = layers;
            }
            Line::Moved { at, .. } => self.took = self.took.max(at),
            Line::Full { .. } => self.incomplete = true,
            Line::End {
                at,
                status,
                error,
                image,
            } => {
                self.took = at;
                self.status = status;
                self.error = error;
                self.image = image;
            }
        }
    }

    fn step(&mut self, at: u64, step: usize, change: impl FnOnce(&mut StepHistory)) {
        self.took = self.took.max(at);
        if let Some(step) = self.steps.get_mut(step) {
            change(step);
        }
    }

    /// The row of a build that was killed.
    fn killed_row(&self, id: BuildId) -> BuildRow {
        let (ran, cached) = self.counts();
        let steps = self.steps.iter().filter(|step| step.is_step()).count();
        BuildRow {
            id,
            series: self.series,
            started: self.started,
            took: i64::try_from(self.took).unwrap_or(i64::MAX),
            // One that has an end was killed in the instant between its journal and its row.
            status: self.status.parse().unwrap_or(BuildStatus::Killed),
            context: self.context.clone(),
            dockerfile: self.dockerfile.clone(),
            target: self.target.clone(),
            tags: self.tags.clone(),
            error: self.error.clone(),
            steps: steps as u64,
            ran: ran as u64,
            cached: cached as u64,
            saved: i64::try_from(self.saved().as_micros()).unwrap_or(i64::MAX),
            warnings: self.warnings.len() as u64,
        }
    }
}

/// A build in the list of all.
#[derive(Clone, Debug)]
pub struct ListedBuild {
    /// What is known of it; `status` says killed while it runs.
    pub row: BuildRow,
    /// Whether it still runs.
    pub running: bool,
}

/// All builds that are kept, latest first. Those that were killed get their rows now.
pub fn list(store: &Store) -> Result<Vec<ListedBuild>, StoreError> {
    let history = store.history();
    let mut builds = Vec::new();
    for unlisted in history.unlisted()? {
        let Some(build) = BuildHistory::read(store, &unlisted.id)? else {
            // Killed before it wrote its first line, or damaged so that it says nothing.
            history.discard(&unlisted.id)?;
            continue;
        };
        let row = build.killed_row(unlisted.id);
        if unlisted.running {
            let running = true;
            builds.push(ListedBuild { row, running });
        } else {
            history.put(&row)?;
        }
    }
    let running = false;
    let ended = history.rows()?.into_iter();
    builds.extend(ended.map(|row| ListedBuild { row, running }));
    builds.sort_by(|a, b| (b.row.started, &a.row.id).cmp(&(a.row.started, &b.row.id)));
    Ok(builds)
}

/// Calls `take` with everything that a build's processes wrote, in order; tells whether the build is known.
pub fn for_each_output(
    store: &Store,
    id: &BuildId,
    mut take: impl FnMut(LoggedOutput),
) -> Result<bool, StoreError> {
    let Some(file) = store.history().open(id)? else {
        return Ok(false);
    };
    for_each_line(BufReader::new(file), |line| {
        if let Line::Output {
            at,
            step,
            stderr,
            text,
            hex,
        } = line
        {
            let bytes = bytes_of(text, hex);
            take(LoggedOutput {
                at: Duration::from_micros(at),
                step: VertexIndex(step),
                stream: match stderr {
                    true => OutputStream::Stderr,
                    false => OutputStream::Stdout,
                },
                bytes,
            });
        }
    });
    Ok(true)
}

/// Whether a kind of vertex counts as a step: images and folders do not.
fn is_step(kind: &str) -> bool {
    !matches!(kind, "image" | "context" | "tree" | "merge")
}

/// What a process wrote.
fn bytes_of(text: Option<String>, hex: Option<String>) -> Vec<u8> {
    match text {
        Some(text) => text.into_bytes(),
        None => from_hex(&hex.unwrap_or_default()),
    }
}

/// Reads line by line until the end, or until the file can be read no further: a journal may be torn.
fn for_each_line(mut file: impl BufRead, mut take: impl FnMut(Line)) {
    let mut text = Vec::new();
    loop {
        text.clear();
        let read = std::io::Read::take(&mut file, LINE_BYTES_MAX).read_until(b'\n', &mut text);
        match read {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        if let Ok(line) = serde_json::from_slice(&text) {
            take(line);
        }
    }
}

fn from_hex(text: &str) -> Vec<u8> {
    let digit = |byte: u8| char::from(byte).to_digit(16).unwrap_or(0);
    let pairs = text.as_bytes().chunks_exact(2);
    pairs
        .map(|pair| u8::try_from(digit(pair[0]) << 4 | digit(pair[1])).unwrap_or(0))
        .collect()
}

#[cfg(test)]
mod tests;
