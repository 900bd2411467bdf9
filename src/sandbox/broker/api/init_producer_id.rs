//! InitProducerId, versions 0 to 4.
//!
//! Without a transactional id a fresh producer id in epoch 0; with one, the next epoch, which fences all older ones. A client that names
//! its present id and epoch goes on only as that producer (KIP-360).

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{InitProducerIdRequest, InitProducerIdResponse, ProducerId};

use super::super::connection::Context;
use super::super::state::State;
use super::super::transactions::ProducerEpoch;
use super::{Api, Reply};

/// From this version on a fenced producer is told so; before, that its epoch is invalid.
const FENCED_FROM: i16 = 4;

impl Api for InitProducerIdRequest {
    const SERVED: (i16, i16) = (0, 4);

    fn layout(version: i16) -> &'static str {
        match version {
            ..=2 => "S i",
            _ => "S i l s",
        }
    }

    fn refuse(&self, code: ResponseError) -> InitProducerIdResponse {
        InitProducerIdResponse::default()
            .with_error_code(code.code())
            .with_producer_id(ProducerId(-1))
            .with_producer_epoch(-1)
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<InitProducerIdResponse> {
        let given = context.shared.change(|state| init(state, &self));
        Reply::Answer(match given {
            Ok(given) => InitProducerIdResponse::default()
                .with_producer_id(ProducerId(given.id))
                .with_producer_epoch(given.epoch),
            Err(ResponseError::ProducerFenced) if version < FENCED_FROM => {
                self.refuse(ResponseError::InvalidProducerEpoch)
            }
            Err(code) => self.refuse(code),
        })
    }
}

fn init(
    state: &mut State,
    request: &InitProducerIdRequest,
) -> Result<ProducerEpoch, ResponseError> {
    let named = match (request.producer_id.0, request.producer_epoch) {
        (-1, -1) => None,
        (-1, _) | (_, -1) => return Err(ResponseError::InvalidRequest),
        (id, epoch) => Some(ProducerEpoch { id, epoch }),
    };
    match &request.transactional_id {
        None => Ok(ProducerEpoch {
            id: state.transactions.fresh_producer_id(),
            epoch: 0,
        }),
        Some(id) => state.init_producer(id, request.transaction_timeout_ms, named),
    }
}
