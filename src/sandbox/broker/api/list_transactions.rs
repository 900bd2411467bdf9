//! ListTransactions, versions 0 and 1: all transactional ids, or those in some states, of some producers, open for some time.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::list_transactions_response::TransactionState;
use kafka_protocol::messages::{
    ListTransactionsRequest, ListTransactionsResponse, ProducerId, TransactionalId,
};

use super::super::clock::now_ms;
use super::super::connection::Context;
use super::super::transactions::{Phase, Transaction};
use super::{Api, Reply, text};

/// Kafka's states; those that never come up here are known all the same.
const STATES: [&str; 8] = [
    "Ongoing",
    "PrepareCommit",
    "PrepareAbort",
    "CompleteCommit",
    "CompleteAbort",
    "Empty",
    "PrepareEpochFence",
    "Dead",
];

impl Api for ListTransactionsRequest {
    const SERVED: (i16, i16) = (0, 1);

    fn layout(version: i16) -> &'static str {
        match version {
            0 => "[S] [l]",
            _ => "[S] [l] l",
        }
    }

    fn refuse(&self, code: ResponseError) -> ListTransactionsResponse {
        ListTransactionsResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<ListTransactionsResponse> {
        let state = context.shared.state();
        let now = now_ms();
        let listed = state
            .transactions
            .iter()
            .filter(|(_, found)| is_wanted(&self, found, now))
            .map(|(id, found)| {
                TransactionState::default()
                    .with_transactional_id(TransactionalId(text(id)))
                    .with_producer_id(ProducerId(found.producer.id))
                    .with_transaction_state(text(found.phase.name()))
            });
        let listed = listed.collect();
        let unknown = self
            .state_filters
            .iter()
            .filter(|state| !STATES.contains(&state.as_str()));
        let unknown = unknown.cloned().collect();
        Reply::Answer(
            ListTransactionsResponse::default()
                .with_transaction_states(listed)
                .with_unknown_state_filters(unknown),
        )
    }
}

fn is_wanted(request: &ListTransactionsRequest, found: &Transaction, now: i64) -> bool {
    let states = &request.state_filters;
    let producers = &request.producer_id_filters;
    let in_state = |state: &str| state == found.phase.name();
    let is_long = found.phase == Phase::Ongoing
        && now.saturating_sub(found.started_ms) > request.duration_filter;
    (states.is_empty() || states.iter().any(|state| in_state(state)))
        && (producers.is_empty() || producers.contains(&ProducerId(found.producer.id)))
        && (request.duration_filter < 0 || is_long)
}
