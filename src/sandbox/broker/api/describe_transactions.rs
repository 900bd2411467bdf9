//! DescribeTransactions, version 0: what the coordinator knows of a transactional id.

use std::collections::BTreeMap;

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::describe_transactions_response::{TopicData, TransactionState};
use kafka_protocol::messages::{
    DescribeTransactionsRequest, DescribeTransactionsResponse, ProducerId, TopicName,
    TransactionalId,
};

use super::super::connection::Context;
use super::super::transactions::{Phase, Transaction};
use super::{Api, Reply, text};

impl Api for DescribeTransactionsRequest {
    const SERVED: (i16, i16) = (0, 0);

    fn layout(_: i16) -> &'static str {
        "[S]"
    }

    fn refuse(&self, code: ResponseError) -> DescribeTransactionsResponse {
        let ids = self.transactional_ids.iter();
        let refused = ids.map(|id| failed(id, code)).collect();
        DescribeTransactionsResponse::default().with_transaction_states(refused)
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<DescribeTransactionsResponse> {
        let state = context.shared.state();
        let described = self.transactional_ids.iter().map(|id| {
            if id.is_empty() {
                return failed(id, ResponseError::InvalidRequest);
            }
            match state.transactions.find(id) {
                Some(found) => describe(id, found),
                None => failed(id, ResponseError::TransactionalIdNotFound),
            }
        });
        let described = described.collect();
        Reply::Answer(DescribeTransactionsResponse::default().with_transaction_states(described))
    }
}

fn failed(id: &TransactionalId, code: ResponseError) -> TransactionState {
    TransactionState::default()
        .with_transactional_id(id.clone())
        .with_error_code(code.code())
}

fn describe(id: &TransactionalId, found: &Transaction) -> TransactionState {
    let mut topics: BTreeMap<&str, Vec<i32>> = BTreeMap::new();
    for (topic, index) in &found.partitions {
        topics.entry(topic).or_default().push(*index);
    }
    let topics = topics.into_iter().map(|(topic, partitions)| {
        TopicData::default()
            .with_topic(TopicName(text(topic)))
            .with_partitions(partitions)
    });
    let started = if found.phase == Phase::Ongoing {
        found.started_ms
    } else {
        -1
    };
    TransactionState::default()
        .with_transactional_id(id.clone())
        .with_transaction_state(text(found.phase.name()))
        .with_transaction_timeout_ms(i32::try_from(found.timeout.as_millis()).unwrap_or(i32::MAX))
        .with_transaction_start_time_ms(started)
        .with_producer_id(ProducerId(found.producer.id))
        .with_producer_epoch(found.producer.epoch)
        .with_topics(topics.collect())
}
