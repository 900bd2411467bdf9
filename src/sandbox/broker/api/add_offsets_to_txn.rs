//! AddOffsetsToTxn, versions 0 to 3.
//!
//! Puts a consumer group into the transaction: its offsets may then be committed with it.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{AddOffsetsToTxnRequest, AddOffsetsToTxnResponse};

use super::super::connection::Context;
use super::super::transactions::ProducerEpoch;
use super::{Api, Reply, fenced_as_of};

impl Api for AddOffsetsToTxnRequest {
    const SERVED: (i16, i16) = (0, 3);

    fn layout(_: i16) -> &'static str {
        "S l s S"
    }

    fn refuse(&self, code: ResponseError) -> AddOffsetsToTxnResponse {
        AddOffsetsToTxnResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<AddOffsetsToTxnResponse> {
        let producer = ProducerEpoch {
            id: self.producer_id.0,
            epoch: self.producer_epoch,
        };
        let added = context.shared.change(|state| {
            let transactions = &mut state.transactions;
            transactions.add_group(&self.transactional_id, producer, &self.group_id)
        });
        Reply::Answer(match added {
            Ok(()) => AddOffsetsToTxnResponse::default(),
            Err(code) => self.refuse(fenced_as_of(version, code)),
        })
    }
}
