//! SaslHandshake, versions 0 and 1.
//!
//! After version 0 the tokens are bare frames, after version 1 they come in SaslAuthenticate. An unknown mechanism is answered with 33
//! and the list, and the connection closes. On a connection that has no authentication ahead of it: 34.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{SaslHandshakeRequest, SaslHandshakeResponse};

use super::super::connection::Context;
use super::super::sasl::MECHANISMS;
use super::{Api, Reply, text};

impl Api for SaslHandshakeRequest {
    const SERVED: (i16, i16) = (0, 1);

    fn layout(_: i16) -> &'static str {
        "S"
    }

    fn refuse(&self, code: ResponseError) -> SaslHandshakeResponse {
        let mechanisms = MECHANISMS.iter().map(|name| text(*name)).collect();
        SaslHandshakeResponse::default()
            .with_error_code(code.code())
            .with_mechanisms(mechanisms)
    }

    async fn serve(self, context: &mut Context, version: i16) -> Reply<SaslHandshakeResponse> {
        match context.session.handshake(&self.mechanism, version) {
            Ok(()) => {
                let mechanisms = MECHANISMS.iter().map(|name| text(*name)).collect();
                Reply::Answer(SaslHandshakeResponse::default().with_mechanisms(mechanisms))
            }
            Err(code @ ResponseError::IllegalSaslState) => {
                Reply::Answer(SaslHandshakeResponse::default().with_error_code(code.code()))
            }
            Err(code) => Reply::AnswerAndClose(self.refuse(code)),
        }
    }
}
