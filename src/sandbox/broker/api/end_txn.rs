//! EndTxn, versions 0 to 3.
//!
//! Commits or aborts. The markers are written before the answer, where Kafka writes them after it. Asking again for the same is well,
//! asking for the other or without a transaction is 48. Version 5 is of another protocol (KIP-890), which is not served.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{EndTxnRequest, EndTxnResponse};

use super::super::connection::Context;
use super::super::transactions::ProducerEpoch;
use super::{Api, Reply, fenced_as_of};

impl Api for EndTxnRequest {
    const SERVED: (i16, i16) = (0, 3);

    fn layout(_: i16) -> &'static str {
        "S l s b"
    }

    fn refuse(&self, code: ResponseError) -> EndTxnResponse {
        EndTxnResponse::default().with_error_code(code.code())
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<EndTxnResponse> {
        let producer = ProducerEpoch {
            id: self.producer_id.0,
            epoch: self.producer_epoch,
        };
        let ended = context.shared.change(|state| {
            state.end_transaction(&self.transactional_id, producer, self.committed)
        });
        Reply::Answer(match ended {
            Ok(()) => EndTxnResponse::default(),
            Err(code) => self.refuse(fenced_as_of(version, code)),
        })
    }
}
