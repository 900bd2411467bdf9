//! The APIs that we speak: their names, and which of their versions we were made for.

use kafka_protocol::ResponseError;
use kafka_protocol::messages::{
    AddPartitionsToTxnRequest, ApiVersionsRequest, CreateTopicsRequest, DescribeConfigsRequest,
    DescribeGroupsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest, HeartbeatRequest,
    InitProducerIdRequest, JoinGroupRequest, LeaveGroupRequest, ListOffsetsRequest,
    MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, ProduceRequest,
    SaslAuthenticateRequest, SaslHandshakeRequest, SyncGroupRequest,
};
use kafka_protocol::protocol::{Request, StrBytes, VersionRange};

use crate::kafka::KafkaError;

/// A request that we send.
pub(super) trait Call: Request {
    /// Kafka's name of the API.
    const OPERATION: &'static str;
    /// The versions that our builders and checkers are made for, both ends inclusive.
    const OURS: VersionRange;
}

macro_rules! calls {
    ($($request:ty, $name:literal, $min:literal..=$max:literal;)*) => {
        $(impl Call for $request {
            const OPERATION: &'static str = $name;
            const OURS: VersionRange = VersionRange { min: $min, max: $max };
        })*

        /// All of them: key, name, and the versions that we speak.
        pub(super) const SPOKEN: &[(i16, &str, VersionRange)] = &[
            $((<$request>::KEY, $name, <$request>::OURS),)*
        ];
    };
}

/// The coordinator is still busy with the transaction before.
pub(super) const CONCURRENT_TRANSACTIONS: i16 = 51;

// The highest versions with topic names instead of topic ids, and with the classic group and transaction protocols. `InitProducerId` begins
// where it takes the epoch that is to be raised (KIP-360).
calls! {
    ApiVersionsRequest, "ApiVersions", 3..=3;
    SaslHandshakeRequest, "SaslHandshake", 1..=1;
    SaslAuthenticateRequest, "SaslAuthenticate", 0..=2;
    MetadataRequest, "Metadata", 4..=12;
    CreateTopicsRequest, "CreateTopics", 4..=7;
    DescribeConfigsRequest, "DescribeConfigs", 1..=4;
    FetchRequest, "Fetch", 4..=12;
    ListOffsetsRequest, "ListOffsets", 2..=7;
    FindCoordinatorRequest, "FindCoordinator", 1..=4;
    OffsetCommitRequest, "OffsetCommit", 2..=8;
    OffsetFetchRequest, "OffsetFetch", 2..=8;
    ProduceRequest, "Produce", 3..=9;
    InitProducerIdRequest, "InitProducerId", 3..=4;
    AddPartitionsToTxnRequest, "AddPartitionsToTxn", 0..=3;
    EndTxnRequest, "EndTxn", 0..=3;
    // From the first versions with a group instance id (KIP-345, Kafka 2.3).
    JoinGroupRequest, "JoinGroup", 5..=9;
    SyncGroupRequest, "SyncGroup", 3..=5;
    HeartbeatRequest, "Heartbeat", 3..=4;
    LeaveGroupRequest, "LeaveGroup", 3..=5;
    // From the first version that tells operations, to the last in which a group that nobody knows is no error.
    DescribeGroupsRequest, "DescribeGroups", 3..=5;
}

/// Whether the broker answers only when replicas have written what the request is about.
pub(super) fn waits_for_replicas<R: Call>() -> bool {
    [
        ProduceRequest::KEY,
        OffsetCommitRequest::KEY,
        InitProducerIdRequest::KEY,
        AddPartitionsToTxnRequest::KEY,
        EndTxnRequest::KEY,
    ]
    .contains(&R::KEY)
}

/// Turns an error code into an error; `operation` says what was asked, with its topic.
pub(super) fn check_code(
    operation: impl Into<String>,
    code: i16,
    detail: Option<&StrBytes>,
) -> Result<(), KafkaError> {
    match ResponseError::try_from_code(code) {
        None => Ok(()),
        Some(error) => Err(server_error(
            operation,
            error,
            code,
            detail.map(StrBytes::to_string),
        )),
    }
}

/// The broker's error as ours.
pub(super) fn server_error(
    operation: impl Into<String>,
    error: ResponseError,
    code: i16,
    detail: Option<String>,
) -> KafkaError {
    KafkaError::Server {
        operation: operation.into(),
        code,
        name: match error {
            ResponseError::Unknown(_) => "an unknown error".to_owned(),
            known => format!("{known:?}"),
        },
        detail,
    }
}

/// Finds the one entry that was asked for: brokers answer in any order, and an answer about something else is no answer.
pub(super) fn only<T>(
    operation: &'static str,
    what: &str,
    entries: Vec<T>,
    is_asked: impl Fn(&T) -> bool,
) -> Result<T, KafkaError> {
    let count = entries.len();
    let mut entries = entries.into_iter();
    match (entries.next(), count) {
        (Some(entry), 1) if is_asked(&entry) => Ok(entry),
        _ => Err(KafkaError::Protocol {
            operation,
            detail: format!("asked for {what}, it holds {count} entries or another one"),
        }),
    }
}
