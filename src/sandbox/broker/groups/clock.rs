//! The clock of the groups: one task per listener that ends sessions, join phases and waits for assignments when they are due.

use std::sync::Arc;

use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use super::super::shared::Shared;

/// Runs until it is stopped.
pub(in super::super) async fn run(shared: Arc<Shared>, stop: CancellationToken) {
    let mut changes = shared.group_changes();
    shared.change_groups(super::Groups::renew_sessions);
    loop {
        // Changes up to here are seen by the look at the deadlines below.
        changes.mark_unchanged();
        let next = shared.state().groups.next_deadline();
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            () = stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
            () = due => expire(&shared),
        }
    }
}

fn expire(shared: &Shared) {
    shared.change_groups(|groups, now: Instant| groups.expire(now));
}
