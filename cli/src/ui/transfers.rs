//! Bytes on their way: how far each transfer is and all of them together, how fast, for how long yet, and a bar of it.
//!
//! A layer that is pulled is unpacked while it arrives; both are one entry, which says what it still waits for.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use builder::graph::VertexIndex;
use builder::solve::{ProgressEvent, TransferKind};

use super::human;
use super::text::width;

/// A rate is taken over the last of this time.
const RATE_OVER: Duration = Duration::from_secs(3);

/// Columns of a bar, and the narrowest screen that has one.
const BAR_COLUMNS: usize = 20;
const BAR_SCREEN_MIN: usize = 90;

/// The narrowest screen that tells rates.
const RATE_SCREEN_MIN: usize = 60;

/// The shortest time left that is worth telling.
const LEFT_MIN: Duration = Duration::from_secs(1);

/// All transfers of a build or command, in the order in which they began.
#[derive(Debug, Default)]
pub struct Transfers {
    /// By what they are on their way for.
    rows: Vec<Row>,
    by_key: BTreeMap<(TransferKind, String), usize>,
    /// What comes or goes over the network, together.
    sum: Meter,
}

/// How many bytes of how many, and how fast.
#[derive(Debug, Default)]
pub struct Meter {
    done: u64,
    total: Option<u64>,
    /// How many bytes were done when.
    samples: VecDeque<(Duration, u64)>,
}

/// One blob's or file's way.
#[derive(Debug)]
pub struct Row {
    /// Who waits for it.
    pub vertex: Option<VertexIndex>,
    /// What it is, for people.
    pub name: String,
    /// Whether its end was told of.
    pub told: bool,
    began: Duration,
    stages: Vec<Stage>,
}

/// One thing that happens to its bytes.
#[derive(Debug)]
struct Stage {
    kind: TransferKind,
    meter: Meter,
    ended: Option<Duration>,
}

/// What an event says of a transfer.
#[derive(Debug)]
pub struct Step<'a> {
    /// Who waits for it.
    pub vertex: Option<VertexIndex>,
    /// What happens.
    pub kind: TransferKind,
    /// To what.
    pub id: &'a str,
    /// The same for people.
    pub name: &'a str,
    /// Bytes so far.
    pub done: u64,
    /// Bytes in all.
    pub total: Option<u64>,
}

impl<'a> Step<'a> {
    /// What an event says of a transfer, if it is about one.
    pub fn of(event: &'a ProgressEvent) -> Option<Step<'a>> {
        let ProgressEvent::Transfer {
            vertex,
            kind,
            id,
            name,
            done,
            total,
        } = event
        else {
            return None;
        };
        Some(Step {
            vertex: *vertex,
            kind: *kind,
            id,
            name,
            done: *done,
            total: *total,
        })
    }

    /// What happens to what, in a word or two: `push sha256:0123`. What is pulled is called by its digest alone.
    pub fn label(&self) -> String {
        match self.kind {
            TransferKind::Pull => self.id.to_owned(),
            TransferKind::Download => format!("{} {}", self.kind.as_str(), self.name),
            _ => format!("{} {}", self.kind.as_str(), self.id),
        }
    }
}

impl Transfers {
    /// Takes an event.
    pub fn take(&mut self, at: Duration, step: &Step<'_>) {
        let next = self.rows.len();
        let index = *self
            .by_key
            .entry((lane(step.kind), step.id.to_owned()))
            .or_insert(next);
        if index == next {
            self.rows.push(Row {
                vertex: step.vertex,
                name: step.name.to_owned(),
                told: false,
                began: at,
                stages: Vec::new(),
            });
        }
        let (before, after) = self.rows[index].take(at, step);
        let is_remote = matches!(
            step.kind,
            TransferKind::Pull | TransferKind::Push | TransferKind::Download
        );
        if is_remote {
            let done = self.sum.done.saturating_add(after.0);
            let done = done.saturating_sub(before.0);
            let total = self.sum.total.unwrap_or(0);
            let total = total.saturating_add(after.1.unwrap_or(0));
            let total = total.saturating_sub(before.1.unwrap_or(0));
            self.sum.take(at, done, Some(total));
        }
    }

    /// All that comes or goes over the network.
    pub fn sum(&self) -> &Meter {
        &self.sum
    }

    /// One of the things that happen to one's bytes.
    pub fn meter(&self, kind: TransferKind, id: &str) -> Option<&Meter> {
        let index = *self.by_key.get(&(lane(kind), id.to_owned()))?;
        let mut stages = self.rows[index].stages.iter();
        Some(&stages.find(|stage| stage.kind == kind)?.meter)
    }

    /// Those of a vertex, or those that belong to none.
    pub fn of(&self, vertex: Option<VertexIndex>) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(move |row| row.vertex == vertex)
    }

    /// Those that have ended and were not told of; they count as told from now on.
    pub fn untold(&mut self, vertex: Option<VertexIndex>) -> Vec<&Row> {
        let mut ended = Vec::new();
        for row in &mut self.rows {
            if row.vertex == vertex && !row.told && row.is_ended() {
                row.told = true;
                ended.push(&*row);
            }
        }
        ended
    }

    /// How many there are, and how many of them have ended.
    pub fn counts(&self) -> (usize, usize) {
        let ended = self.rows.iter().filter(|row| row.is_ended()).count();
        (self.rows.len(), ended)
    }
}

/// What is unpacked is what was pulled.
fn lane(kind: TransferKind) -> TransferKind {
    match kind {
        TransferKind::Extract => TransferKind::Pull,
        kind => kind,
    }
}

impl Row {
    /// What was done of what before, and is now.
    fn take(&mut self, at: Duration, step: &Step<'_>) -> (Amount, Amount) {
        self.vertex = self.vertex.or(step.vertex);
        let known = self.stages.iter().position(|stage| stage.kind == step.kind);
        let index = known.unwrap_or_else(|| {
            self.stages.push(Stage {
                kind: step.kind,
                meter: Meter::default(),
                ended: None,
            });
            self.stages.len() - 1
        });
        // It was announced, and begins now.
        if step.done == 0 && self.bytes() == 0 {
            self.began = at;
        }
        let stage = &mut self.stages[index];
        let before = stage.meter.amount();
        stage.meter.take(at, step.done, step.total);
        if stage.ended.is_none() && step.total == Some(step.done) {
            stage.ended = Some(at);
        }
        (before, stage.meter.amount())
    }

    /// Whether nothing more happens to its bytes, as far as that is known.
    pub fn is_ended(&self) -> bool {
        self.stages.iter().all(|stage| stage.ended.is_some())
    }

    /// Bytes that were moved.
    pub fn bytes(&self) -> u64 {
        self.stages.first().map_or(0, |stage| stage.meter.done)
    }

    /// What happens to it now, and to what: `pulling sha256:0123`.
    pub fn label(&self) -> String {
        match self.current() {
            Some(stage) => format!("{} {}", stage.kind.as_str(), self.name),
            None => self.name.clone(),
        }
    }

    /// What happened to it, of one that has ended.
    pub fn ended_label(&self) -> String {
        let done = match self.stages.first().map(|stage| stage.kind) {
            Some(TransferKind::Compress) => "compressed",
            Some(TransferKind::Push) => "pushed",
            Some(TransferKind::Extract) => "extracted",
            Some(TransferKind::Download) => "downloaded",
            _ => "pulled",
        };
        format!("{done} {}", self.name)
    }

    /// How long it took, of one that has ended.
    pub fn took(&self) -> Duration {
        let last = self.stages.iter().filter_map(|stage| stage.ended).max();
        last.unwrap_or(self.began).saturating_sub(self.began)
    }

    /// The stage that is waited for: the first that has not ended.
    fn current(&self) -> Option<&Stage> {
        let mut waiting = self.stages.iter().filter(|stage| stage.ended.is_none());
        waiting.next().or(self.stages.last())
    }

    /// How far it is: `[=====>    ] 1.05MB / 2.2MB 3.1MB/s`, as much of that as a screen of that width has room for.
    pub fn state(&self, at: Duration, columns: usize) -> String {
        let Some(stage) = self.current() else {
            return String::new();
        };
        let meter = &stage.meter;
        let mut text = meter.amount_text();
        if columns >= RATE_SCREEN_MIN
            && let Some(rate) = meter.rate(at)
        {
            let rate = format!("{}/s", human::size(rate));
            let padding = 9_usize.saturating_sub(width(&rate));
            text.push_str(&format!(" {:padding$}{rate}", ""));
        }
        if columns >= BAR_SCREEN_MIN {
            if let Some(left) = meter.left(at).filter(|left| *left >= LEFT_MIN) {
                text.push_str(&format!(" {} left", human::duration(left)));
            }
            if let Some(bar) = meter.bar() {
                text = format!("{bar} {text}");
            }
        }
        text
    }
}

/// Bytes that are done, and all of them.
type Amount = (u64, Option<u64>);

impl Meter {
    fn take(&mut self, at: Duration, done: u64, total: Option<u64>) {
        self.done = done;
        self.total = total.or(self.total);
        self.samples.push_back((at, done));
        while self.samples.len() > 2 && self.samples[1].0 + RATE_OVER < at {
            self.samples.pop_front();
        }
    }

    /// Bytes that are done, and all of them where that is known.
    pub fn amount(&self) -> Amount {
        (self.done, self.total)
    }

    /// Whether it is known that there are bytes, and some of them are not done.
    pub fn is_open(&self) -> bool {
        self.total.is_some_and(|total| self.done < total)
    }

    /// `1.05MB / 2.2MB`
    pub fn amount_text(&self) -> String {
        let done = human::size(self.done);
        match self.total {
            Some(total) => format!("{done} / {}", human::size(total)),
            None => done,
        }
    }

    /// `3.1MB/s, 2.5s left`, as much of that as is known.
    pub fn pace_text(&self, at: Duration) -> String {
        let rate = self.rate(at).map(|rate| format!("{}/s", human::size(rate)));
        let left = self.left(at).filter(|left| *left >= LEFT_MIN);
        let left = left.map(|left| format!("{} left", human::duration(left)));
        let parts: Vec<String> = [rate, left].into_iter().flatten().collect();
        parts.join(", ")
    }

    /// How long it takes yet, if it goes on as it went lately.
    pub fn left(&self, at: Duration) -> Option<Duration> {
        let rate = self.rate(at).filter(|rate| *rate > 0)?;
        let bytes = self
            .total?
            .checked_sub(self.done)
            .filter(|left| *left > 0)?;
        let millis = u128::from(bytes) * 1000 / u128::from(rate);
        Some(Duration::from_millis(u64::try_from(millis).ok()?))
    }

    /// Bytes a second, lately.
    pub fn rate(&self, at: Duration) -> Option<u64> {
        let (since, before) = *self.samples.front()?;
        let nanos = at.checked_sub(since)?.as_nanos();
        let bytes = u128::from(self.done.saturating_sub(before));
        let rate = (bytes * 1_000_000_000).checked_div(nanos)?;
        u64::try_from(rate).ok()
    }

    fn bar(&self) -> Option<String> {
        let total = self.total.filter(|total| *total > 0)?;
        let part = u128::from(self.done.min(total)) * BAR_COLUMNS as u128 / u128::from(total);
        let full = usize::try_from(part).ok()?;
        let mut bar: String = std::iter::repeat_n('=', full).collect();
        if full < BAR_COLUMNS {
            bar.push('>');
        }
        bar.truncate(BAR_COLUMNS);
        Some(format!("[{bar:<BAR_COLUMNS$}]"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(kind: TransferKind, done: u64, total: u64) -> Step<'static> {
        Step {
            vertex: None,
            kind,
            id: "sha256:aa",
            name: "aa",
            done,
            total: Some(total),
        }
    }

    #[test]
    fn a_layer_is_pulled_and_then_unpacked() {
        let mut transfers = Transfers::default();
        let at = Duration::from_millis;
        let mut take = |millis, kind, done, total| {
            transfers.take(at(millis), &step(kind, done, total));
            let row = transfers.of(None).next().unwrap();
            (row.label(), row.state(at(millis), 100), row.is_ended())
        };
        let state = |label: &str, state: &str, ended| (label.to_owned(), state.to_owned(), ended);
        assert_eq!(
            take(0, TransferKind::Pull, 0, 4_000_000),
            state("pulling aa", "[>                   ] 0B / 4MB", false)
        );
        assert_eq!(
            take(500, TransferKind::Pull, 1_000_000, 4_000_000),
            state(
                "pulling aa",
                "[=====>              ] 1MB / 4MB     2MB/s 1.5s left",
                false
            )
        );
        take(600, TransferKind::Extract, 900_000, 4_000_000);
        let (label, _, ended) = take(1000, TransferKind::Pull, 4_000_000, 4_000_000);
        assert_eq!((label.as_str(), ended), ("extracting aa", false));
        let (.., ended) = take(1500, TransferKind::Extract, 4_000_000, 4_000_000);
        assert!(ended);
        assert_eq!(transfers.counts(), (1, 1));
        let told = transfers.untold(None);
        assert_eq!(told[0].ended_label(), "pulled aa");
        assert_eq!(told[0].took(), at(1500));
        assert!(transfers.untold(None).is_empty());
    }

    #[test]
    fn rates_are_those_of_late_and_narrow_screens_tell_less() {
        let mut transfers = Transfers::default();
        for second in 0..10 {
            let done = if second < 5 {
                0
            } else {
                (second - 5) * 1_000_000
            };
            let step = step(TransferKind::Push, done, 100_000_000);
            transfers.take(Duration::from_secs(second), &step);
        }
        let row = transfers.of(None).next().unwrap();
        let state = |columns| row.state(Duration::from_secs(9), columns);
        assert_eq!(state(80), "4MB / 100MB     1MB/s");
        assert_eq!(state(40), "4MB / 100MB");
    }

    #[test]
    fn all_together_have_an_amount_a_rate_and_an_end() {
        let mut transfers = Transfers::default();
        let mut take = |seconds, kind, id, done, total| {
            let step = Step {
                id,
                ..step(kind, done, total)
            };
            transfers.take(Duration::from_secs(seconds), &step);
            let (at, sum) = (Duration::from_secs(seconds), transfers.sum());
            (sum.amount_text(), sum.pace_text(at), sum.is_open())
        };
        let check = |told: (String, String, bool), amount: &str, pace: &str, open| {
            assert_eq!(
                (told.0.as_str(), told.1.as_str(), told.2),
                (amount, pace, open)
            );
        };
        // Both are announced before the first begins.
        take(0, TransferKind::Pull, "a", 0, 10_000_000);
        let told = take(0, TransferKind::Pull, "b", 0, 90_000_000);
        check(told, "0B / 100MB", "", true);
        let told = take(1, TransferKind::Pull, "a", 4_000_000, 10_000_000);
        check(told, "4MB / 100MB", "4MB/s, 24.0s left", true);
        // What is unpacked has come already.
        let told = take(1, TransferKind::Extract, "a", 4_000_000, 10_000_000);
        check(told, "4MB / 100MB", "4MB/s, 24.0s left", true);
        // One that begins anew has less than before.
        let told = take(2, TransferKind::Pull, "a", 1_000_000, 10_000_000);
        check(told, "1MB / 100MB", "500kB/s, 3m18s left", true);
        take(3, TransferKind::Pull, "a", 10_000_000, 10_000_000);
        let told = take(4, TransferKind::Pull, "b", 90_000_000, 90_000_000);
        assert_eq!((told.0.as_str(), told.2), ("100MB / 100MB", false));
        assert!(!told.1.contains("left"), "{}", told.1);
    }
}
