//! Every version of every API that is advertised is really served: a request with something in every list gets a response that can be
//! read to its last byte, and so does a request that is refused by a fault.

use std::collections::BTreeMap;

use kafka_llm_processor::sandbox::broker::{ApiKey, Broker, ErrorCode};
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::create_topics_request::{
    CreatableReplicaAssignment, CreatableTopic, CreatableTopicConfig,
};
use kafka_protocol::messages::delete_records_request::{
    DeleteRecordsPartition, DeleteRecordsTopic,
};
use kafka_protocol::messages::delete_topics_request::DeleteTopicState;
use kafka_protocol::messages::describe_configs_request::DescribeConfigsResource;
use kafka_protocol::messages::describe_producers_request::TopicRequest;
use kafka_protocol::messages::fetch_request::ForgottenTopic;
use kafka_protocol::messages::incremental_alter_configs_request::{
    AlterConfigsResource, AlterableConfig,
};
use kafka_protocol::messages::join_group_request::JoinGroupRequestProtocol;
use kafka_protocol::messages::leave_group_request::MemberIdentity;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::metadata_request::MetadataRequestTopic;
use kafka_protocol::messages::offset_commit_request::{
    OffsetCommitRequestPartition, OffsetCommitRequestTopic,
};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopic, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::offset_for_leader_epoch_request::{
    OffsetForLeaderPartition, OffsetForLeaderTopic,
};
use kafka_protocol::messages::sync_group_request::SyncGroupRequestAssignment;
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, ApiVersionsRequest, BrokerId,
    CreateTopicsRequest, DeleteGroupsRequest, DeleteRecordsRequest, DeleteTopicsRequest,
    DescribeConfigsRequest, DescribeGroupsRequest, DescribeProducersRequest,
    DescribeTransactionsRequest, EndTxnRequest, FetchRequest, FindCoordinatorRequest, GroupId,
    HeartbeatRequest, IncrementalAlterConfigsRequest, InitProducerIdRequest, JoinGroupRequest,
    LeaveGroupRequest, ListGroupsRequest, ListOffsetsRequest, ListTransactionsRequest,
    MetadataRequest, OffsetCommitRequest, OffsetFetchRequest, OffsetForLeaderEpochRequest,
    ProduceRequest, SaslAuthenticateRequest, SaslHandshakeRequest, SyncGroupRequest,
    TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::{Request, StrBytes};

use crate::wire::{Wire, batch, broker, fetch, name, produce};

struct Sweep {
    broker: Broker,
    wire: Wire,
    /// What the broker advertises and no test has asked for yet.
    left: BTreeMap<i16, (i16, i16)>,
}

impl Sweep {
    /// Sends what `request` makes for each advertised version; each answer must be whole.
    async fn all<R: Request>(&mut self, request: impl Fn(i16) -> R) {
        let (min, max) = self
            .left
            .remove(&R::KEY)
            .expect("the API is advertised once");
        for version in min..=max {
            println!("key {} version {version}", R::KEY);
            self.wire.call(version, &request(version)).await;
            let api = ApiKey::try_from(R::KEY).unwrap();
            let fault = self.broker.faults().on(api);
            let fault = fault.answer(ErrorCode::UnknownServerError);
            self.wire.call(version, &request(version)).await;
            assert_eq!(fault.hits(), 1);
        }
    }
}

fn word(text: &'static str) -> StrBytes {
    StrBytes::from_static_str(text)
}

fn group() -> GroupId {
    GroupId(word("g"))
}

#[tokio::test]
async fn every_advertised_version_is_served() {
    let broker = broker().await;
    let mut wire = Wire::connect(&broker.bootstrap()).await;
    let versions = wire.call(0, &ApiVersionsRequest::default()).await.api_keys;
    let left = versions
        .iter()
        .map(|api| (api.api_key, (api.min_version, api.max_version)));
    let mut sweep = Sweep {
        left: left.collect(),
        broker,
        wire,
    };
    logs(&mut sweep).await;
    topics(&mut sweep).await;
    groups(&mut sweep).await;
    transactions(&mut sweep).await;
    memberships(&mut sweep).await;
    connections(&mut sweep).await;
    assert!(sweep.left.is_empty(), "not asked for: {:?}", sweep.left);
    sweep.broker.shutdown().await;
}

async fn logs(sweep: &mut Sweep) {
    sweep
        .all::<ProduceRequest>(|_| produce("t", 0, batch(&[(Some("k"), "v")], -1)))
        .await;
    sweep
        .all::<FetchRequest>(|version| {
            let request = fetch("t", 0, 0);
            if version < 7 {
                // Sessions came with version 7; their defaults say that there is none.
                return request;
            }
            let forgotten = ForgottenTopic::default()
                .with_topic(name("t"))
                .with_partitions(vec![1]);
            request.with_forgotten_topics_data(vec![forgotten])
        })
        .await;
    sweep
        .all::<ListOffsetsRequest>(|_| {
            let partition = ListOffsetsPartition::default().with_timestamp(-1);
            let topic = ListOffsetsTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![partition]);
            ListOffsetsRequest::default()
                .with_replica_id(BrokerId(-1))
                .with_topics(vec![topic])
        })
        .await;
    sweep
        .all::<OffsetForLeaderEpochRequest>(|version| {
            let partition = OffsetForLeaderPartition::default();
            let topic = OffsetForLeaderTopic::default()
                .with_topic(name("t"))
                .with_partitions(vec![partition]);
            let replica = if version < 3 { -2 } else { -1 };
            OffsetForLeaderEpochRequest::default()
                .with_replica_id(BrokerId(replica))
                .with_topics(vec![topic])
        })
        .await;
    sweep
        .all::<DeleteRecordsRequest>(|_| {
            let topic = DeleteRecordsTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![DeleteRecordsPartition::default()]);
            DeleteRecordsRequest::default().with_topics(vec![topic])
        })
        .await;
}

async fn topics(sweep: &mut Sweep) {
    sweep
        .all::<MetadataRequest>(|_| {
            let asked = ["t", "none"]
                .map(|topic| MetadataRequestTopic::default().with_name(Some(name(topic))));
            MetadataRequest::default().with_topics(Some(asked.into()))
        })
        .await;
    sweep
        .all::<CreateTopicsRequest>(|version| {
            let config = CreatableTopicConfig::default()
                .with_name(word("retention.ms"))
                .with_value(Some(word("1000")));
            let assignment = CreatableReplicaAssignment::default().with_broker_ids(vec![1.into()]);
            let topic = CreatableTopic::default()
                .with_name(name(&format!("made-{version}")))
                .with_num_partitions(-1)
                .with_replication_factor(-1)
                .with_assignments(vec![assignment])
                .with_configs(vec![config]);
            CreateTopicsRequest::default().with_topics(vec![topic])
        })
        .await;
    assert_eq!(
        sweep.broker.topics().len(),
        7,
        "each version has created its topic"
    );
    sweep
        .all::<DeleteTopicsRequest>(|version| {
            let wanted = name(&format!("made-{}", version + 1));
            if version < 6 {
                DeleteTopicsRequest::default().with_topic_names(vec![wanted])
            } else {
                let topic = DeleteTopicState::default().with_name(Some(wanted));
                DeleteTopicsRequest::default().with_topics(vec![topic])
            }
        })
        .await;
    assert_eq!(sweep.broker.topics(), ["t"]);
    sweep
        .all::<DescribeConfigsRequest>(|_| {
            let topic = DescribeConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(word("t"))
                .with_configuration_keys(Some(vec![word("retention.ms")]));
            let broker = DescribeConfigsResource::default()
                .with_resource_type(4)
                .with_resource_name(word("1"))
                .with_configuration_keys(None);
            DescribeConfigsRequest::default()
                .with_resources(vec![topic, broker])
                .with_include_synonyms(true)
        })
        .await;
    sweep
        .all::<IncrementalAlterConfigsRequest>(|_| {
            let config = AlterableConfig::default()
                .with_name(word("retention.ms"))
                .with_value(Some(word("1000")));
            let topic = AlterConfigsResource::default()
                .with_resource_type(2)
                .with_resource_name(word("t"))
                .with_configs(vec![config]);
            IncrementalAlterConfigsRequest::default().with_resources(vec![topic])
        })
        .await;
    assert_eq!(
        sweep.broker.topic_config("t", "retention.ms").unwrap(),
        "1000"
    );
}

async fn groups(sweep: &mut Sweep) {
    sweep
        .all::<FindCoordinatorRequest>(|version| {
            if version < 4 {
                FindCoordinatorRequest::default().with_key(word("g"))
            } else {
                FindCoordinatorRequest::default().with_coordinator_keys(vec![word("g")])
            }
        })
        .await;
    sweep
        .all::<OffsetCommitRequest>(|version| {
            let partition = OffsetCommitRequestPartition::default()
                .with_committed_offset(version.into())
                .with_committed_metadata(Some(word("m")));
            let topic = OffsetCommitRequestTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![partition]);
            OffsetCommitRequest::default()
                .with_group_id(group())
                .with_topics(vec![topic])
        })
        .await;
    assert_eq!(sweep.broker.committed_offset("g", "t", 0), Some(8));
    sweep
        .all::<OffsetFetchRequest>(|version| {
            if version < 8 {
                let topic = OffsetFetchRequestTopic::default()
                    .with_name(name("t"))
                    .with_partition_indexes(vec![0, 1]);
                return OffsetFetchRequest::default()
                    .with_group_id(group())
                    .with_topics(Some(vec![topic]));
            }
            let topic = OffsetFetchRequestTopics::default()
                .with_name(name("t"))
                .with_partition_indexes(vec![0, 1]);
            let one = OffsetFetchRequestGroup::default()
                .with_group_id(group())
                .with_topics(Some(vec![topic]));
            let all = one.clone().with_topics(None);
            OffsetFetchRequest::default().with_groups(vec![one, all])
        })
        .await;
    sweep
        .all::<ListGroupsRequest>(|version| {
            let states = if version < 4 {
                vec![]
            } else {
                vec![word("Empty")]
            };
            ListGroupsRequest::default().with_states_filter(states)
        })
        .await;
    sweep
        .all::<DescribeGroupsRequest>(|_| {
            DescribeGroupsRequest::default().with_groups(vec![group(), GroupId(word("none"))])
        })
        .await;
    sweep
        .all::<DeleteGroupsRequest>(|_| {
            DeleteGroupsRequest::default().with_groups_names(vec![group()])
        })
        .await;
    assert_eq!(sweep.broker.committed_offset("g", "t", 0), None);
}

async fn transactions(sweep: &mut Sweep) {
    let id = || TransactionalId(word("tx"));
    sweep
        .all::<InitProducerIdRequest>(|_| {
            InitProducerIdRequest::default()
                .with_transactional_id(Some(id()))
                .with_transaction_timeout_ms(60_000)
        })
        .await;
    let init = InitProducerIdRequest::default()
        .with_transactional_id(Some(id()))
        .with_transaction_timeout_ms(60_000);
    let producer = sweep.wire.call(4, &init).await;
    assert_eq!(producer.producer_epoch, 5, "each version has raised it");
    let (pid, epoch) = (producer.producer_id, producer.producer_epoch);
    sweep
        .all::<AddPartitionsToTxnRequest>(|_| {
            let topic = AddPartitionsToTxnTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![0, 1]);
            AddPartitionsToTxnRequest::default()
                .with_v3_and_below_transactional_id(id())
                .with_v3_and_below_producer_id(pid)
                .with_v3_and_below_producer_epoch(epoch)
                .with_v3_and_below_topics(vec![topic])
        })
        .await;
    sweep
        .all::<AddOffsetsToTxnRequest>(|_| {
            AddOffsetsToTxnRequest::default()
                .with_transactional_id(id())
                .with_producer_id(pid)
                .with_producer_epoch(epoch)
                .with_group_id(group())
        })
        .await;
    sweep
        .all::<TxnOffsetCommitRequest>(|version| {
            let partition = TxnOffsetCommitRequestPartition::default()
                .with_committed_offset(version.into())
                .with_committed_metadata(Some(word("m")));
            let topic = TxnOffsetCommitRequestTopic::default()
                .with_name(name("t"))
                .with_partitions(vec![partition]);
            TxnOffsetCommitRequest::default()
                .with_transactional_id(id())
                .with_group_id(group())
                .with_producer_id(pid)
                .with_producer_epoch(epoch)
                .with_topics(vec![topic])
        })
        .await;
    assert_eq!(sweep.broker.open_transactions().len(), 1);
    assert_eq!(sweep.broker.committed_offset("g", "t", 0), None);
    sweep
        .all::<ListTransactionsRequest>(|version| {
            let duration = if version < 1 { -1 } else { 5 };
            ListTransactionsRequest::default()
                .with_state_filters(vec![word("Ongoing"), word("Odd")])
                .with_producer_id_filters(vec![pid])
                .with_duration_filter(duration)
        })
        .await;
    sweep
        .all::<DescribeTransactionsRequest>(|_| {
            let unknown = TransactionalId(word("none"));
            DescribeTransactionsRequest::default().with_transactional_ids(vec![id(), unknown])
        })
        .await;
    sweep
        .all::<DescribeProducersRequest>(|_| {
            let topic = TopicRequest::default()
                .with_name(name("t"))
                .with_partition_indexes(vec![0, 9]);
            DescribeProducersRequest::default().with_topics(vec![topic])
        })
        .await;
    sweep
        .all::<EndTxnRequest>(|_| {
            EndTxnRequest::default()
                .with_transactional_id(id())
                .with_producer_id(pid)
                .with_producer_epoch(epoch)
                .with_committed(true)
        })
        .await;
    assert_eq!(sweep.broker.committed_offset("g", "t", 0), Some(3));
}

async fn memberships(sweep: &mut Sweep) {
    sweep
        .all::<JoinGroupRequest>(|version| {
            let protocol = JoinGroupRequestProtocol::default()
                .with_name(word("range"))
                .with_metadata("m".into());
            JoinGroupRequest::default()
                .with_group_id(group())
                .with_session_timeout_ms(10_000)
                .with_rebalance_timeout_ms(100)
                .with_protocol_type(word("consumer"))
                .with_group_instance_id((version >= 5).then(|| word("i")))
                .with_protocols(vec![protocol])
        })
        .await;
    sweep
        .all::<SyncGroupRequest>(|version| {
            let assignment = SyncGroupRequestAssignment::default()
                .with_member_id(word("m"))
                .with_assignment("a".into());
            SyncGroupRequest::default()
                .with_group_id(group())
                .with_member_id(word("m"))
                .with_group_instance_id((version >= 3).then(|| word("i")))
                .with_protocol_type((version >= 5).then(|| word("consumer")))
                .with_protocol_name((version >= 5).then(|| word("range")))
                .with_assignments(vec![assignment])
        })
        .await;
    sweep
        .all::<HeartbeatRequest>(|version| {
            HeartbeatRequest::default()
                .with_group_id(group())
                .with_member_id(word("m"))
                .with_group_instance_id((version >= 3).then(|| word("i")))
        })
        .await;
    sweep
        .all::<LeaveGroupRequest>(|version| {
            let request = LeaveGroupRequest::default().with_group_id(group());
            if version < 3 {
                return request.with_member_id(word("m"));
            }
            let member = MemberIdentity::default().with_group_instance_id(Some(word("i")));
            request.with_members(vec![member])
        })
        .await;
}

async fn connections(sweep: &mut Sweep) {
    sweep
        .all::<ApiVersionsRequest>(|version| {
            if version < 3 {
                return ApiVersionsRequest::default();
            }
            ApiVersionsRequest::default()
                .with_client_software_name(word("wire"))
                .with_client_software_version(word("1"))
        })
        .await;
    sweep
        .all::<SaslHandshakeRequest>(|_| {
            SaslHandshakeRequest::default().with_mechanism(word("PLAIN"))
        })
        .await;
    sweep
        .all::<SaslAuthenticateRequest>(|_| {
            SaslAuthenticateRequest::default().with_auth_bytes("token".into())
        })
        .await;
}
