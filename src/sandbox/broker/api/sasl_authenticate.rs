//! SaslAuthenticate, versions 0 to 2.
//!
//! One step of PLAIN, SCRAM or OAUTHBEARER. Wrong credentials are answered with 58, and the connection closes. Sessions do not expire. Kafka delays
//! the failure by 100 ms (`connection.failed.authentication.delay.ms`); the sandbox does not.

use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{SaslAuthenticateRequest, SaslAuthenticateResponse};

use super::super::connection::Context;
use super::{Api, Outcome, Reply, text};
use bytes::Bytes;

impl Api for SaslAuthenticateRequest {
    const SERVED: (i16, i16) = (0, 2);

    fn layout(_: i16) -> &'static str {
        "B"
    }

    fn refuse(&self, code: ResponseError) -> SaslAuthenticateResponse {
        SaslAuthenticateResponse::default()
            .with_error_code(code.code())
            .with_error_message(Some(text(code.to_string())))
    }

    async fn serve(self, context: &mut Context, _: i16) -> Reply<SaslAuthenticateResponse> {
        let users = context.shared.config.sasl.clone().unwrap_or_default();
        match context.session.authenticate(&users, &self.auth_bytes) {
            Ok(challenge) => {
                Reply::Answer(SaslAuthenticateResponse::default().with_auth_bytes(challenge))
            }
            Err(refusal) => {
                let response = SaslAuthenticateResponse::default()
                    .with_error_code(refusal.code.code())
                    .with_error_message(Some(text(refusal.message)));
                if refusal.code == ResponseError::IllegalSaslState {
                    Reply::Answer(response)
                } else {
                    Reply::AnswerAndClose(response)
                }
            }
        }
    }
}

/// One step after a handshake of version 0: the answer is bare too, and a failure has none.
pub(super) fn bare_token(context: &mut Context, token: &Bytes) -> Outcome {
    let users = context.shared.config.sasl.clone().unwrap_or_default();
    match context.session.authenticate(&users, token) {
        Ok(challenge) => Outcome::Reply(challenge),
        Err(_) => Outcome::Close,
    }
}
