//! How many calls may run at once: a fixed number of permits, handed out in the order in which they are asked for.

use std::sync::Arc;

use tokio::sync::Semaphore;

use super::Slot;

/// The bound on calls that run at once.
#[derive(Debug)]
pub(super) struct Limiter {
    permits: Arc<Semaphore>,
    limit: usize,
}

impl Limiter {
    /// `limit` permits, at least one.
    pub(super) fn new(limit: usize) -> Self {
        let limit = limit.clamp(1, Semaphore::MAX_PERMITS);
        Self {
            permits: Arc::new(Semaphore::new(limit)),
            limit,
        }
    }

    /// Waits for a permit.
    ///
    /// # Cancel safety
    /// Safe: a waiter that is dropped loses its place.
    pub(super) async fn acquire(&self) -> Slot {
        Arc::clone(&self.permits)
            .acquire_owned()
            .await
            // The semaphore is never closed: were it, an unbounded slot is better than a document that waits for ever.
            .map_or_else(|_closed| Slot::unbounded(), Slot::new)
    }

    /// Calls that may run at once.
    pub(super) const fn limit(&self) -> usize {
        self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[tokio::test]
    async fn waiters_are_served_in_the_order_they_came() {
        let limiter = Limiter::new(1);
        let slot = limiter.acquire().await;
        let mut first = Box::pin(limiter.acquire());
        let mut second = Box::pin(limiter.acquire());
        assert!((&mut first).now_or_never().is_none());
        assert!((&mut second).now_or_never().is_none());
        drop(slot);
        assert!((&mut second).now_or_never().is_none());
        let slot = (&mut first).now_or_never().unwrap();
        drop(slot);
        assert!((&mut second).now_or_never().is_some());
    }
}
