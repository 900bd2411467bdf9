//! The APIs: the table of what is served, and the way of one request through it.

use std::future::Future;

use bytes::{Buf, Bytes, BytesMut};
use futures::future::BoxFuture;
use kafka_protocol::error::ResponseError;
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiKey, ApiVersionsRequest,
    CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, DescribeProducersRequest,
    DescribeTransactionsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest,
    HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest, ListTransactionsRequest,
    MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    ProduceRequest, RequestHeader, ResponseHeader, SaslAuthenticateRequest, SaslHandshakeRequest,
    SyncGroupRequest, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Decodable, Encodable, HeaderVersion, Request, StrBytes};
use tokio::time::sleep;

use super::connection::{ConnectionError, Context};
use super::faults::{Action, SeenRequest};
use super::layout;

mod add_offsets_to_txn;
mod add_partitions_to_txn;
mod api_versions;
mod create_topics;
mod delete_groups;
mod delete_records;
mod delete_topics;
mod describe_configs;
mod describe_groups;
mod describe_producers;
mod describe_transactions;
mod end_txn;
mod fetch;
mod find_coordinator;
mod heartbeat;
mod incremental_alter_configs;
mod init_producer_id;
mod join_group;
mod leave_group;
mod list_groups;
mod list_offsets;
mod list_transactions;
mod metadata;
mod offset_commit;
mod offset_fetch;
mod offset_for_leader_epoch;
mod produce;
mod sasl_authenticate;
mod sasl_handshake;
mod sync_group;
mod txn_offset_commit;

/// The request header of versions with tagged fields.
const FLEXIBLE_HEADER: i16 = 2;

/// What is served and therefore advertised: one line per API.
static TABLE: &[Entry] = &[
    entry::<ProduceRequest>(),
    entry::<FetchRequest>(),
    entry::<ListOffsetsRequest>(),
    entry::<MetadataRequest>(),
    entry::<OffsetCommitRequest>(),
    entry::<OffsetFetchRequest>(),
    entry::<FindCoordinatorRequest>(),
    entry::<JoinGroupRequest>(),
    entry::<HeartbeatRequest>(),
    entry::<LeaveGroupRequest>(),
    entry::<SyncGroupRequest>(),
    entry::<DescribeGroupsRequest>(),
    entry::<ListGroupsRequest>(),
    entry::<SaslHandshakeRequest>(),
    entry::<ApiVersionsRequest>(),
    entry::<CreateTopicsRequest>(),
    entry::<DeleteTopicsRequest>(),
    entry::<DeleteRecordsRequest>(),
    entry::<InitProducerIdRequest>(),
    entry::<OffsetForLeaderEpochRequest>(),
    entry::<AddPartitionsToTxnRequest>(),
    entry::<AddOffsetsToTxnRequest>(),
    entry::<EndTxnRequest>(),
    entry::<TxnOffsetCommitRequest>(),
    entry::<DescribeConfigsRequest>(),
    entry::<SaslAuthenticateRequest>(),
    entry::<DeleteGroupsRequest>(),
    entry::<IncrementalAlterConfigsRequest>(),
    entry::<DescribeProducersRequest>(),
    entry::<DescribeTransactionsRequest>(),
    entry::<ListTransactionsRequest>(),
];

/// One API as the broker serves it.
trait Api: Request + Send + Sync + 'static
where
    Self::Response: Send,
{
    /// Lowest and highest version that is served.
    const SERVED: (i16, i16);

    /// The fields of a request, in the words of [`layout`].
    fn layout(version: i16) -> &'static str;

    /// Topics that the request names, for the fault hooks.
    fn topics(&self) -> Vec<String> {
        Vec::new()
    }

    /// The transactional id that the request names, for the fault hooks.
    fn transactional_id(&self) -> Option<&str> {
        None
    }

    /// Whether the client waits for a response.
    fn expects_answer(&self) -> bool {
        true
    }

    /// The response that carries `code` at every place where it has one.
    fn refuse(&self, code: ResponseError) -> Self::Response;

    /// Does what is asked.
    fn serve(
        self,
        context: &mut Context,
        version: i16,
    ) -> impl Future<Output = Reply<Self::Response>> + Send;
}

/// What a handler wants done.
enum Reply<R> {
    /// Send this.
    Answer(R),
    /// Send this, then close.
    AnswerAndClose(R),
    /// Send nothing: the client expects nothing.
    Nothing,
    /// Close the connection.
    Close,
}

/// What the connection does after a request.
#[derive(Debug)]
pub(super) enum Outcome {
    Reply(Bytes),
    ReplyAndClose(Bytes),
    CutReply(Bytes),
    NoReply,
    Close,
    Silence,
}

impl Outcome {
    /// What is sent, as far as it is a whole answer.
    pub(super) fn body(&self) -> Option<&Bytes> {
        match self {
            Self::Reply(body) | Self::ReplyAndClose(body) => Some(body),
            Self::CutReply(_) | Self::NoReply | Self::Close | Self::Silence => None,
        }
    }
}

/// A request with its header taken off.
struct Call {
    version: i16,
    correlation_id: i32,
    body: Bytes,
}

type Serve = for<'a> fn(&'a mut Context, Call) -> BoxFuture<'a, Result<Outcome, ConnectionError>>;

/// A line of the table.
struct Entry {
    key: i16,
    min: i16,
    max: i16,
    request_header_version: fn(i16) -> i16,
    serve: Serve,
}

const fn entry<A: Api>() -> Entry
where
    A::Response: Send,
{
    Entry {
        key: A::KEY,
        min: A::SERVED.0,
        max: A::SERVED.1,
        request_header_version: A::header_version,
        serve: |context, call| Box::pin(serve::<A>(context, call)),
    }
}

/// Handles one frame.
pub(super) async fn dispatch(
    context: &mut Context,
    mut frame: Bytes,
) -> Result<Outcome, ConnectionError> {
    if context.session.awaits_bare_token() {
        return Ok(sasl_authenticate::bare_token(context, &frame));
    }
    let mut peek = frame.clone();
    let (Ok(key), Ok(version)) = (peek.try_get_i16(), peek.try_get_i16()) else {
        return Err(ConnectionError::Header);
    };
    let entry = TABLE
        .iter()
        .find(|entry| entry.key == key)
        .ok_or(ConnectionError::NotServed { key, version })?;
    let is_served = (entry.min..=entry.max).contains(&version);
    if !is_served {
        if key == ApiVersionsRequest::KEY {
            return api_versions::refuse_version(peek);
        }
        return Err(ConnectionError::NotServed { key, version });
    }
    if !context.session.allows(key) {
        return Err(ConnectionError::Unauthenticated(key));
    }
    let Ok(header) = RequestHeader::decode(&mut frame, (entry.request_header_version)(version))
    else {
        return Err(ConnectionError::Header);
    };
    context.client_id = header.client_id.as_deref().map(str::to_owned);
    let call = Call {
        version,
        correlation_id: header.correlation_id,
        body: frame,
    };
    (entry.serve)(context, call).await
}

async fn serve<A: Api>(context: &mut Context, call: Call) -> Result<Outcome, ConnectionError>
where
    A::Response: Send,
{
    let Call {
        version,
        correlation_id,
        mut body,
    } = call;
    let malformed = |why: String| ConnectionError::Malformed {
        key: A::KEY,
        version,
        why,
    };
    let flexible = A::header_version(version) >= FLEXIBLE_HEADER;
    if !layout::is_sound(A::layout(version), flexible, &body) {
        return Err(malformed("it announces more than it has".to_owned()));
    }
    let request = A::decode(&mut body, version).map_err(|error| malformed(error.to_string()))?;
    if body.has_remaining() {
        // Kafka reads over what follows a request, and librdkafka 2.16 relies on it: its Metadata v12 ends with fields of v10.
        tracing::trace!(
            key = A::KEY,
            version,
            bytes = body.len(),
            "a request had bytes left over"
        );
    }
    let action = meet_faults(context, &request, version).await;
    let encode = |response: &A::Response| encode(correlation_id, version, response);
    match action {
        // A response that is not expected would be taken for that of the next request.
        Some(Action::Answer(_)) if !request.expects_answer() => return Ok(Outcome::Close),
        Some(Action::Answer(code)) => {
            return encode(&request.refuse(code)).map(Outcome::Reply);
        }
        Some(Action::HangUpBefore) => return Ok(Outcome::Close),
        Some(Action::SilentBefore) => return Ok(Outcome::Silence),
        _ => {}
    }
    let outcome = match request.serve(context, version).await {
        Reply::Answer(response) => Outcome::Reply(encode(&response)?),
        Reply::AnswerAndClose(response) => Outcome::ReplyAndClose(encode(&response)?),
        Reply::Nothing => Outcome::NoReply,
        Reply::Close => Outcome::Close,
    };
    Ok(match (action, outcome) {
        (Some(Action::HangUpAfter), _) => Outcome::Close,
        (Some(Action::SilentAfter), _) => Outcome::Silence,
        (Some(Action::CutMidFrame), Outcome::Reply(body) | Outcome::ReplyAndClose(body)) => {
            Outcome::CutReply(body)
        }
        (Some(Action::CutMidFrame), _) => Outcome::Close,
        (_, outcome) => outcome,
    })
}

/// Shows the request to the hooks; waits out delays and holds.
async fn meet_faults<A: Api>(context: &Context, request: &A, version: i16) -> Option<Action>
where
    A::Response: Send,
{
    let api = ApiKey::try_from(A::KEY).ok()?;
    let seen = SeenRequest {
        version,
        client_id: context.client_id.clone(),
        topics: request.topics(),
        transactional_id: request.transactional_id().map(str::to_owned),
    };
    let met = context.shared.faults.meet(api, &seen)?;
    match met.action {
        Action::Delay(time) => sleep(time).await,
        Action::Hold => met.released.cancelled().await,
        _ => {}
    }
    Some(met.action)
}

fn encode<R: Encodable + HeaderVersion>(
    correlation_id: i32,
    version: i16,
    response: &R,
) -> Result<Bytes, ConnectionError> {
    let mut out = BytesMut::new();
    ResponseHeader::default()
        .with_correlation_id(correlation_id)
        .encode(&mut out, R::header_version(version))
        .and_then(|()| response.encode(&mut out, version))
        .map_err(|error| ConnectionError::Response {
            key: -1,
            version,
            why: error.to_string(),
        })?;
    Ok(out.freeze())
}

/// From this version on the requests of a transaction tell a fenced producer that it is; before, that its epoch is invalid.
const FENCED_FROM: i16 = 2;

fn fenced_as_of(version: i16, code: ResponseError) -> ResponseError {
    match code {
        ResponseError::ProducerFenced if version < FENCED_FROM => {
            ResponseError::InvalidProducerEpoch
        }
        other => other,
    }
}

/// Text for a response.
fn text(text: impl Into<String>) -> StrBytes {
    StrBytes::from_string(text.into())
}
