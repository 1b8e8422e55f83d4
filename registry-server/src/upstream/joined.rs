//! One question for all who ask it at the same time. It is asked to its end, whoever goes away meanwhile.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::trace::carried;

/// Tasks that end with their owner.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<JoinSet<()>>);

impl Tasks {
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let mut tasks = self.tasks();
        while let Some(ended) = tasks.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a fetch panicked");
            }
        }
        // What it does is done for whoever asked first.
        tasks.spawn(carried(task));
    }

    /// Ends them all.
    pub(crate) fn stop(&self) {
        self.tasks().abort_all();
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Questions that are being asked.
pub(super) struct Joined<K, V>(Mutex<BTreeMap<K, watch::Receiver<Option<V>>>>);

impl<K, V> Default for Joined<K, V> {
    fn default() -> Joined<K, V> {
        Joined(Mutex::default())
    }
}

impl<K, V> fmt::Debug for Joined<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Joined").finish_non_exhaustive()
    }
}

impl<K, V> Joined<K, V>
where
    K: Ord + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to a question, asked by `ask` unless somebody does; `None` if whoever asked it broke off.
    pub(super) async fn ask<F>(
        self: &Arc<Self>,
        tasks: &Tasks,
        key: K,
        ask: impl FnOnce() -> F,
    ) -> Option<V>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut answer = {
            let mut running = self.running();
            match running.get(&key) {
                Some(answer) => answer.clone(),
                None => {
                    let (sender, answer) = watch::channel(None);
                    running.insert(key.clone(), answer.clone());
                    let ended = Ended(Arc::clone(self), key);
                    let asking = ask();
                    tasks.spawn(async move {
                        let found = asking.await;
                        // Who asks from here on asks anew.
                        drop(ended);
                        sender.send_replace(Some(found));
                    });
                    answer
                }
            }
        };
        let found = answer.wait_for(Option::is_some).await.ok()?;
        found.clone()
    }

    fn running(&self) -> MutexGuard<'_, BTreeMap<K, watch::Receiver<Option<V>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets a question when it is dropped, also by a panic.
struct Ended<K: Ord + Clone + Send + 'static, V: Clone + Send + Sync + 'static>(
    Arc<Joined<K, V>>,
    K,
);

impl<K: Ord + Clone + Send + 'static, V: Clone + Send + Sync + 'static> Drop for Ended<K, V> {
    fn drop(&mut self) {
        self.0.running().remove(&self.1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn one_asks_for_all_and_those_after_ask_anew() {
        let (joined, tasks) = (Arc::new(Joined::<u8, u32>::default()), Tasks::default());
        let asked = Arc::new(AtomicU32::new(0));
        let (go, gate) = oneshot::channel::<()>();
        let first = {
            let asked = Arc::clone(&asked);
            joined.ask(&tasks, 7, move || async move {
                gate.await.unwrap();
                asked.fetch_add(1, Ordering::Relaxed)
            })
        };
        let second = joined.ask(&tasks, 7, || async { 99 });
        let third = async {
            // The first two are polled before this one, in this order.
            go.send(()).unwrap();
        };
        let (first, second, ()) = tokio::join!(first, second, third);
        assert_eq!((first, second), (Some(0), Some(0)));
        assert_eq!(joined.ask(&tasks, 7, || async { 5 }).await, Some(5));
        assert_eq!(asked.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn who_goes_away_stops_nobody_and_a_panic_is_no_answer() {
        let (joined, tasks) = (Arc::new(Joined::<u8, u32>::default()), Tasks::default());
        let (go, gate) = oneshot::channel::<()>();
        let mut gone = Box::pin(joined.ask(&tasks, 1, move || async move {
            gate.await.unwrap();
            3
        }));
        assert!(futures_util::poll!(gone.as_mut()).is_pending());
        drop(gone);
        go.send(()).unwrap();
        assert_eq!(joined.ask(&tasks, 1, || async { 4 }).await, Some(3));
        let broken = joined.ask(&tasks, 2, || async { panic!("on purpose") });
        assert_eq!(broken.await, None);
        assert_eq!(joined.ask(&tasks, 2, || async { 6 }).await, Some(6));
    }
}
