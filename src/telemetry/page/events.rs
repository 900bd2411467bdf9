//! `/events`: how things stand, once a second, as server-sent events.
//!
//! A listener gets the whole hour with its first event and what is new with each one after. Nothing is made for a listener that does not
//! read: its next event is made when the last one is gone, and tells what was missed. The connection's own bound on time closes one that
//! reads nothing at all. An event each second is the heartbeat too.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::sse::{Event, Sse};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::view::{Seen, View};
use crate::telemetry::{Health, StatusBoard};

/// Listeners at a time: each is a connection, and the server has 64 for everybody.
pub(super) const LISTENERS_MAX: usize = 16;

const EVERY: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
pub(super) struct Events {
    health: Health,
    board: StatusBoard,
    listeners: Arc<Semaphore>,
    shutdown: CancellationToken,
}

/// One listener, and its place among those there may be.
struct Listener {
    events: Events,
    seen: Seen,
    ticks: Interval,
    _permit: OwnedSemaphorePermit,
}

pub(super) fn router(events: Events) -> Router {
    Router::new()
        .route("/events", get(listen))
        .with_state(events)
}

async fn listen(State(events): State<Events>) -> Response {
    let Some(views) = events.views() else {
        let text = format!(
            "{LISTENERS_MAX} pages listen to /events already: close one of them; /status tells the same\n"
        );
        let again = [(header::RETRY_AFTER, "5")];
        return (StatusCode::SERVICE_UNAVAILABLE, again, text).into_response();
    };
    let end = stream::once(async { Event::default().event("end").data("{}") });
    let events = views.map(|view| event(&view)).chain(end);
    let head = [
        (header::CACHE_CONTROL, "no-store"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (head, Sse::new(events.map(Ok::<_, Infallible>))).into_response()
}

fn event(view: &View) -> Event {
    match Event::default().event("state").json_data(view) {
        Ok(event) => event,
        Err(error) => {
            tracing::error!(%error, "the status cannot be encoded");
            Event::default().comment("the status cannot be encoded")
        }
    }
}

impl Events {
    /// They end with `shutdown`.
    pub(super) fn new(health: Health, board: StatusBoard, shutdown: CancellationToken) -> Self {
        Self {
            health,
            board,
            listeners: Arc::new(Semaphore::new(LISTENERS_MAX)),
            shutdown,
        }
    }

    /// What a new listener is told; nothing where there are enough of them.
    pub(super) fn views(self) -> Option<impl Stream<Item = View> + use<>> {
        let permit = Arc::clone(&self.listeners).try_acquire_owned().ok()?;
        let mut ticks = interval(EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let stop = self.shutdown.clone().cancelled_owned();
        let listener = Listener {
            events: self,
            seen: Seen::default(),
            ticks,
            _permit: permit,
        };
        let views = stream::unfold(listener, |mut listener| async {
            listener.ticks.tick().await;
            let Events { health, board, .. } = &listener.events;
            let (view, seen) = View::new(health, board, listener.seen);
            listener.seen = seen;
            Some((view, listener))
        });
        Some(views.take_until(stop))
    }
}
