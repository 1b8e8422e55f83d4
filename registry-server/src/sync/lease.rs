//! Of several servers on one bucket one runs a sync at a time; and it runs as often as it says, not that often on each.
//!
//! Notes of the topic `sync-<name>`:
//!
//! ```text
//! run.<id>.<beat>    a server runs it; the beat goes up while it lives
//! end.<seconds>      a run that began then, by its server's clock, is through
//! ```
//!
//! Who wants to run it looks, leaves its note, and looks again; whoever then sees another takes its own away. Of two that left theirs before
//! they looked again, both see the other; so two never both go on. It needs no conditions, which some buckets ignore, and
//! ages are measured by the clock of who waits. Clocks that disagree make a run early or late, never double.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::schedule::part;
use crate::routes::UploadId;
use crate::storage::{RegistryStorage, StorageError, StorageResult, now_seconds};

/// How often it is tried where others always come at the same moment.
const TRIES: usize = 16;

/// How long others wait for what this one gives up after.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pace {
    /// Who runs it shows that this often.
    pub(super) heartbeat: Duration,
    /// Who could not for so long stops.
    pub(super) fence: Duration,
    /// Who did not for so long has ended: more than two heartbeats and `fence`.
    pub(super) dead: Duration,
}

impl Default for Pace {
    fn default() -> Pace {
        Pace {
            heartbeat: Duration::from_secs(10),
            fence: Duration::from_secs(30),
            dead: Duration::from_secs(60),
        }
    }
}

/// What became of wanting to run it.
#[derive(Debug)]
pub(super) enum Taken {
    /// It may be run.
    Ours(Lease),
    /// Another server runs it.
    Others,
    /// Another has run it: it is due in so long. With when that run began.
    NotDue(Duration, i64),
}

/// When a run is due.
#[derive(Clone, Copy, Debug)]
pub(super) struct Due {
    /// How often.
    pub(super) every: Duration,
    /// The run that the server saw last; if that is the last one still, it is due whatever clocks say.
    pub(super) seen: Option<i64>,
}

/// The notes, as they were.
#[derive(Debug, Default, PartialEq, Eq)]
struct Board {
    /// The beats of those that run it.
    running: BTreeMap<String, u64>,
    /// When the last run began that is through.
    ended: Option<i64>,
}

impl Board {
    fn read(notes: &[String]) -> Board {
        let mut board = Board::default();
        for note in notes {
            let mut words = note.split('.');
            match (words.next(), words.next(), words.next(), words.next()) {
                (Some("run"), Some(id), Some(beat), None) => {
                    let Ok(beat) = beat.parse() else { continue };
                    let last = board.running.entry(id.to_owned()).or_insert(beat);
                    *last = beat.max(*last);
                }
                (Some("end"), Some(seconds), None, None) => {
                    board.ended = board.ended.max(seconds.parse().ok());
                }
                _ => {}
            }
        }
        board
    }

    /// How long it is not due yet, and since which run.
    fn not_due(&self, due: Option<Due>) -> Option<(Duration, i64)> {
        let (due, ended) = (due?, self.ended?);
        if due.seen == Some(ended) {
            return None;
        }
        let age = u64::try_from(now_seconds() - ended).unwrap_or(0);
        let left = due.every.saturating_sub(Duration::from_secs(age));
        // A fifth early is not early: replicas choose their moments at random.
        (left > due.every / 5).then_some((left, ended))
    }
}

/// The right to run a sync, until it is released.
pub(super) struct Lease {
    notes: Notes,
    id: String,
    began: i64,
    beating: JoinHandle<()>,
    lost: watch::Receiver<bool>,
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Lease").field(&self.id).finish()
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.beating.abort();
    }
}

impl Lease {
    /// When it was taken, by this machine's clock: what its end is noted as.
    pub(super) fn began(&self) -> i64 {
        self.began
    }

    /// Returns when it cannot be shown any longer that it is held.
    pub(super) async fn lost(&mut self) {
        if self.lost.wait_for(|lost| *lost).await.is_err() {
            // The heart ended without having said so: it panicked.
            tracing::error!("nobody shows that a sync runs");
        }
    }

    /// Ends it. With `done` it is not due again for a while, wherever.
    pub(super) async fn release(self, done: bool) {
        self.beating.abort();
        let (id, began) = (self.id.clone(), self.began);
        let released = self.notes.with(move |storage, topic| {
            let notes = storage.notes(topic, "")?;
            let own = run_of(&id);
            if done {
                storage.leave_note(topic, &end_note(began))?;
            }
            for note in notes {
                let is_old = done && note.starts_with("end.") && note != end_note(began);
                if is_old || note.starts_with(&own) {
                    storage.drop_note(topic, &note)?;
                }
            }
            Ok(())
        });
        if let Err(error) = released.await {
            tracing::warn!(%error, "others find out later that a sync has ended");
        }
    }
}

fn run_of(id: &str) -> String {
    format!("run.{id}.")
}

fn run_note(id: &str, beat: u64) -> String {
    format!("run.{id}.{beat:06}")
}

fn end_note(seconds: i64) -> String {
    format!("end.{seconds:012}")
}

/// The notes of one sync.
#[derive(Clone)]
struct Notes {
    storage: Arc<dyn RegistryStorage>,
    topic: Arc<str>,
}

impl Notes {
    /// Does something with them, where blocking is allowed.
    async fn with<T: Send + 'static>(
        &self,
        step: impl FnOnce(&dyn RegistryStorage, &str) -> StorageResult<T> + Send + 'static,
    ) -> StorageResult<T> {
        let (storage, topic) = (Arc::clone(&self.storage), Arc::clone(&self.topic));
        let done = tokio::task::spawn_blocking(move || step(&*storage, &topic));
        done.await.unwrap_or_else(|panicked| {
            Err(StorageError::Io {
                action: "look at",
                path: self.topic.to_string().into(),
                source: io::Error::other(panicked),
            })
        })
    }

    async fn look(&self) -> StorageResult<Board> {
        self.with(|storage, topic| Ok(Board::read(&storage.notes(topic, "")?)))
            .await
    }

    async fn leave(&self, note: String) -> StorageResult<()> {
        self.with(move |storage, topic| storage.leave_note(topic, &note))
            .await
    }

    async fn drop(&self, note: String) -> StorageResult<()> {
        self.with(move |storage, topic| storage.drop_note(topic, &note))
            .await
    }

    /// Whether any of those that ran it lives; the others' notes are taken away.
    async fn others_live(&self, before: Board, pace: Pace) -> StorageResult<bool> {
        let began = Instant::now();
        let mut left = before.running.clone();
        while !left.is_empty() {
            tokio::time::sleep(pace.heartbeat / 4).await;
            let now = self.look().await?;
            let lives = |(id, beat): (&String, &u64)| before.running.get(id) != Some(beat);
            if now.running.iter().any(lives) {
                return Ok(true);
            }
            left = now.running;
            if began.elapsed() >= pace.dead {
                for (id, beat) in std::mem::take(&mut left) {
                    tracing::warn!(
                        topic = &*self.topic,
                        id,
                        "a server ended while it ran a sync"
                    );
                    self.drop(run_note(&id, beat)).await?;
                }
            }
        }
        Ok(false)
    }
}

/// Takes the right to run a sync; with `due` only if it is.
pub(super) async fn take(
    storage: &Arc<dyn RegistryStorage>,
    name: &str,
    due: Option<Due>,
    pace: Pace,
) -> StorageResult<Taken> {
    let notes = Notes {
        storage: Arc::clone(storage),
        topic: format!("sync-{name}").into(),
    };
    let id = UploadId::random().to_string();
    for _ in 0..TRIES {
        let board = notes.look().await?;
        if let Some((wait, ended)) = board.not_due(due) {
            return Ok(Taken::NotDue(wait, ended));
        }
        if !board.running.is_empty() && notes.others_live(board, pace).await? {
            return Ok(Taken::Others);
        }
        let began = now_seconds();
        notes.leave(run_note(&id, 0)).await?;
        let mut board = notes.look().await?;
        board.running.remove(&id);
        if !board.running.is_empty() {
            notes.drop(run_note(&id, 0)).await?;
            tokio::time::sleep(part(pace.heartbeat / 4)).await;
            continue;
        }
        // Another may have come and gone between the looks.
        if let Some((wait, ended)) = board.not_due(due) {
            notes.drop(run_note(&id, 0)).await?;
            return Ok(Taken::NotDue(wait, ended));
        }
        let (tell, lost) = watch::channel(false);
        let beating = beat(notes.clone(), id.clone(), pace, tell);
        return Ok(Taken::Ours(Lease {
            notes,
            id,
            began,
            beating: tokio::spawn(beating),
            lost,
        }));
    }
    Ok(Taken::Others)
}

async fn beat(notes: Notes, id: String, pace: Pace, tell: watch::Sender<bool>) {
    let mut shown = Instant::now();
    let mut last = run_note(&id, 0);
    for count in 1_u64.. {
        tokio::time::sleep(pace.heartbeat).await;
        let (began, next) = (Instant::now(), run_note(&id, count));
        let show = async {
            notes.leave(next.clone()).await?;
            notes.drop(last.clone()).await
        };
        match tokio::time::timeout(pace.fence, show).await {
            Ok(Ok(())) => (shown, last) = (began, next),
            Ok(Err(error)) => tracing::warn!(%error, "a sync cannot show that it runs"),
            Err(_) => tracing::warn!("a sync cannot show that it runs: no answer"),
        }
        if shown.elapsed() >= pace.fence {
            tell.send_replace(true);
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::memory::MemoryStorage;

    /// Others are given up soon; who lives shows it by far in time, on a machine that is busy, too.
    const QUICK: Pace = Pace {
        heartbeat: Duration::from_millis(200),
        fence: Duration::from_secs(60),
        dead: Duration::from_millis(400),
    };
    const PATIENT: Pace = Pace {
        heartbeat: Duration::from_millis(20),
        fence: Duration::from_secs(60),
        dead: Duration::from_secs(600),
    };

    fn storage() -> Arc<dyn RegistryStorage> {
        Arc::new(MemoryStorage::default())
    }

    fn notes(storage: &Arc<dyn RegistryStorage>) -> Vec<String> {
        storage.notes("sync-s", "").unwrap()
    }

    async fn ours(storage: &Arc<dyn RegistryStorage>, due: Option<Due>, pace: Pace) -> Lease {
        match take(storage, "s", due, pace).await.unwrap() {
            Taken::Ours(lease) => lease,
            taken => panic!("{taken:?}"),
        }
    }

    #[test]
    fn notes_of_any_kind_are_read() {
        let check = |notes: &[&str], running: &[(&str, u64)], ended| {
            let notes: Vec<String> = notes.iter().map(|&note| note.to_owned()).collect();
            let running = running.iter().map(|(id, beat)| ((*id).to_owned(), *beat));
            let running = running.collect();
            assert_eq!(Board::read(&notes), Board { running, ended });
        };
        check(&[], &[], None);
        check(
            &["run.a.000001", "run.a.000002", "run.b.000000"],
            &[("a", 2), ("b", 0)],
            None,
        );
        check(&["end.000000000007", "end.5"], &[], Some(7));
        check(
            &["run.a", "run.a.x", "run.a.1.2", "end.", "end.x", "x", ""],
            &[],
            None,
        );
    }

    #[tokio::test]
    async fn one_runs_it_and_others_see_that() {
        let storage = storage();
        let lease = ours(&storage, None, PATIENT).await;
        let other = take(&storage, "s", None, PATIENT).await.unwrap();
        assert!(matches!(other, Taken::Others), "{other:?}");
        // Of another name there is another.
        let elsewhere = take(&storage, "t", None, PATIENT).await.unwrap();
        assert!(matches!(elsewhere, Taken::Ours(_)));
        lease.release(false).await;
        assert_eq!(notes(&storage), [""; 0]);
        ours(&storage, None, PATIENT).await.release(true).await;
        assert_eq!(notes(&storage).len(), 1);
    }

    #[tokio::test]
    async fn what_another_ran_is_not_due() {
        let storage = storage();
        let every = Duration::from_secs(600);
        let due = |seen| Some(Due { every, seen });
        let lease = ours(&storage, due(None), PATIENT).await;
        let began = lease.began();
        lease.release(true).await;
        let again = take(&storage, "s", due(None), PATIENT).await.unwrap();
        let Taken::NotDue(wait, ended) = again else {
            panic!("{again:?}");
        };
        assert!(wait <= every && wait > every / 5 && ended == began);
        // By hand at any time; and when nobody has since it was seen.
        ours(&storage, None, PATIENT).await.release(false).await;
        ours(&storage, due(Some(began)), PATIENT)
            .await
            .release(false)
            .await;
        // Somebody's clock is far ahead: it is waited for once.
        storage.leave_note("sync-s", "end.999999999999").unwrap();
        let ahead = take(&storage, "s", due(Some(began)), PATIENT)
            .await
            .unwrap();
        assert!(matches!(ahead, Taken::NotDue(wait, 999_999_999_999) if wait == every));
        let lease = ours(&storage, due(Some(999_999_999_999)), PATIENT).await;
        // Which ends that.
        lease.release(true).await;
        assert_eq!(notes(&storage).len(), 1);
    }

    #[tokio::test]
    async fn who_ends_without_a_word_is_waited_for_and_cleared_away() {
        let storage = storage();
        drop(ours(&storage, None, QUICK).await);
        assert_eq!(notes(&storage).len(), 1);
        let lease = ours(&storage, None, QUICK).await;
        lease.release(false).await;
        assert_eq!(notes(&storage), [""; 0]);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn never_two_at_once() {
        let storage = storage();
        let (inside, runs) = (Arc::new(tokio::sync::Mutex::new(())), 12);
        let mut all = tokio::task::JoinSet::new();
        for _ in 0..4 {
            let (storage, inside) = (Arc::clone(&storage), Arc::clone(&inside));
            all.spawn(async move {
                let mut done = 0;
                while done < runs / 4 {
                    if let Taken::Ours(lease) = take(&storage, "s", None, PATIENT).await.unwrap() {
                        let alone = inside.try_lock().expect("another runs it");
                        tokio::task::yield_now().await;
                        drop(alone);
                        lease.release(true).await;
                        done += 1;
                    }
                }
            });
        }
        while let Some(ended) = all.join_next().await {
            ended.unwrap();
        }
    }
}
