//! One look for all who wait for it: a thousand partitions that are taken over at once ask for the same few things.
//!
//! # Invariants
//! 1. An answer was asked for after the question was put.
//! 2. Whoever is dropped while asking takes nothing from the others: the next one asks what is left.
//! 3. What failed is told to all it was asked for, once; nobody waits for another one's tries.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::task::yield_now;

use super::pool::lock;

/// Looks for values by key. It keeps the last answer for each key that was ever asked for: topics, or partitions.
pub(super) struct Looks<K, V> {
    /// Counts questions.
    asked: AtomicU64,
    /// Keys to ask for, each with the number of the last question.
    waiting: Mutex<HashMap<K, u64>>,
    /// Each with the number below which it answers questions. Held while asking, on purpose: others wait for what comes of it.
    answers: tokio::sync::Mutex<HashMap<K, (u64, Option<V>)>>,
}

impl<K, V> Default for Looks<K, V> {
    fn default() -> Self {
        Self {
            asked: AtomicU64::new(0),
            waiting: Mutex::default(),
            answers: tokio::sync::Mutex::default(),
        }
    }
}

impl<K, V> fmt::Debug for Looks<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Looks").finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash, V: Clone> Looks<K, V> {
    /// What a look finds that began after this was called; `None` when it brought nothing for the key. `look` is asked for all keys that are
    /// waited for.
    ///
    /// # Cancel safety
    /// Safe, when `look` is.
    pub(super) async fn ask(
        &self,
        key: K,
        look: impl AsyncFnOnce(Vec<K>) -> HashMap<K, V>,
    ) -> Option<V> {
        let question = self.asked.fetch_add(1, Ordering::Relaxed);
        lock(&self.waiting)
            .entry(key.clone())
            .and_modify(|last| *last = question.max(*last))
            .or_insert(question);
        let mut answers = self.answers.lock().await;
        if let Some((until, answer)) = answers.get(&key)
            && *until > question
        {
            return answer.clone();
        }
        // Whoever asks at the same time is served by this look too.
        yield_now().await;
        let until = self.asked.load(Ordering::Relaxed);
        let mut keys: Vec<_> = lock(&self.waiting).keys().cloned().collect();
        if !keys.contains(&key) {
            keys.push(key.clone());
        }
        let mut found = look(keys.clone()).await;
        for key in keys {
            let value = found.remove(&key);
            answers.insert(key, (until, value));
        }
        lock(&self.waiting).retain(|_, last| *last >= until);
        answers.get(&key).and_then(|(_, answer)| answer.clone())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use futures::future::join_all;
    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn those_who_ask_together_share_one_look() {
        let looks = Looks::default();
        let asked = Mutex::new(Vec::new());
        let look = async |keys: Vec<usize>| {
            let mut asked = lock(&asked);
            asked.push(keys.len());
            let look = asked.len();
            keys.into_iter()
                .filter(|key| *key != 7)
                .map(|key| (key, look))
                .collect()
        };
        let found = join_all((0..100).map(|key| looks.ask(key, look))).await;
        for (key, found) in found.into_iter().enumerate() {
            assert_eq!(found, (key != 7).then_some(1), "{key}");
        }
        assert_eq!(
            looks.ask(3, look).await,
            Some(2),
            "a later question has a look of its own"
        );
        assert_eq!(*lock(&asked), [100, 1]);
    }

    #[tokio::test]
    async fn a_look_that_began_before_the_question_does_not_answer_it() {
        let looks = Arc::new(Looks::<u8, u8>::default());
        let (began, go_on) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let first = tokio::spawn({
            let (looks, began, go_on) =
                (Arc::clone(&looks), Arc::clone(&began), Arc::clone(&go_on));
            async move {
                let look = async |_| {
                    began.notify_one();
                    go_on.notified().await;
                    HashMap::from([(1, 1)])
                };
                looks.ask(1, look).await
            }
        });
        began.notified().await;
        let second = looks.ask(1, async |_| HashMap::from([(1, 2)]));
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        go_on.notify_one();
        assert_eq!(second.await, Some(2));
        assert_eq!(first.await.unwrap(), Some(1));
    }

    #[tokio::test]
    async fn one_that_gives_up_leaves_the_others_their_answer() {
        let looks = Arc::new(Looks::<u8, u8>::default());
        let began = Arc::new(Notify::new());
        let first = tokio::spawn({
            let (looks, began) = (Arc::clone(&looks), Arc::clone(&began));
            async move {
                let look = async |_| {
                    began.notify_one();
                    std::future::pending().await
                };
                looks.ask(1, look).await
            }
        });
        began.notified().await;
        let second = looks.ask(2, async |keys: Vec<u8>| {
            keys.into_iter().map(|key| (key, key)).collect()
        });
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        first.abort();
        assert_eq!(second.await, Some(2));
    }
}
