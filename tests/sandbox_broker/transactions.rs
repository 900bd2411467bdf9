//! Idempotent and transactional producers, and who is refused what: one table of steps, run against the sandbox always and against a real
//! broker when `REAL_KAFKA` names one. What a real broker answers after it has waited for its own markers is asked again until it does.

use std::time::Duration;

use bytes::BytesMut;
use kafka_protocol::messages::add_partitions_to_txn_request::AddPartitionsToTxnTopic;
use kafka_protocol::messages::fetch_response::PartitionData;
use kafka_protocol::messages::list_offsets_request::{ListOffsetsPartition, ListOffsetsTopic};
use kafka_protocol::messages::offset_fetch_request::{
    OffsetFetchRequestGroup, OffsetFetchRequestTopics,
};
use kafka_protocol::messages::txn_offset_commit_request::{
    TxnOffsetCommitRequestPartition, TxnOffsetCommitRequestTopic,
};
use kafka_protocol::messages::{
    AddOffsetsToTxnRequest, AddPartitionsToTxnRequest, BrokerId, CreateTopicsRequest,
    EndTxnRequest, FindCoordinatorRequest, GroupId, InitProducerIdRequest, ListOffsetsRequest,
    OffsetFetchRequest, ProducerId, TransactionalId, TxnOffsetCommitRequest,
};
use kafka_protocol::protocol::StrBytes;
use tokio::time::sleep;
use uuid::Uuid;

use crate::wire::{Wire, batch, broker, fetch, name, patch, produce};

/// The broker is busy with the markers of the last transaction, or with loading what it coordinates.
const BUSY: [i16; 4] = [14, 15, 16, 51];

/// (what is asked, the expected code or number, what came).
type Found = Vec<(&'static str, i64, i64)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Producer {
    id: i64,
    epoch: i16,
}

const NOBODY: Producer = Producer { id: -1, epoch: -1 };

/// A connection and the names that only this run uses.
struct World {
    wire: Wire,
    topic: String,
    id: String,
    group: String,
    found: Found,
}

fn word(text: &str) -> StrBytes {
    StrBytes::from_string(text.to_owned())
}

impl World {
    async fn new(address: &str) -> Self {
        let run = Uuid::new_v4().simple().to_string();
        let mut world = Self {
            wire: Wire::connect(address).await,
            topic: format!("transactions-{run}"),
            id: format!("id-{run}"),
            group: format!("group-{run}"),
            found: Vec::new(),
        };
        let topic = kafka_protocol::messages::create_topics_request::CreatableTopic::default()
            .with_name(name(&world.topic))
            .with_num_partitions(4)
            .with_replication_factor(1);
        let request = CreateTopicsRequest::default()
            .with_topics(vec![topic])
            .with_timeout_ms(10_000);
        let created = world.wire.call(7, &request).await;
        assert_eq!(created.topics[0].error_code, 0);
        world.await_coordinator(1, &world.id.clone()).await;
        world.await_coordinator(0, &world.group.clone()).await;
        world
    }

    async fn await_coordinator(&mut self, kind: i8, key: &str) {
        let find = FindCoordinatorRequest::default()
            .with_key_type(kind)
            .with_coordinator_keys(vec![word(key)]);
        for _ in 0..200 {
            let answer = self.wire.call(4, &find).await;
            if answer.coordinators[0].error_code == 0 {
                return;
            }
            sleep(Duration::from_millis(100)).await;
        }
        panic!("no coordinator");
    }

    fn note(&mut self, what: &'static str, expected: impl Into<i64>, got: impl Into<i64>) {
        self.found.push((what, expected.into(), got.into()));
    }

    async fn init_once(
        &mut self,
        version: i16,
        id: Option<&str>,
        timeout_ms: i32,
        named: Producer,
    ) -> (i16, Producer) {
        let mut request = InitProducerIdRequest::default()
            .with_transactional_id(id.map(|id| TransactionalId(word(id))))
            .with_transaction_timeout_ms(timeout_ms);
        if version >= 3 {
            request = request
                .with_producer_id(ProducerId(named.id))
                .with_producer_epoch(named.epoch);
        }
        let answer = self.wire.call(version, &request).await;
        let producer = Producer {
            id: answer.producer_id.0,
            epoch: answer.producer_epoch,
        };
        (answer.error_code, producer)
    }

    /// Asks until the broker is not busy.
    async fn init_as(&mut self, named: Producer) -> (i16, Producer) {
        let id = self.id.clone();
        for _ in 0..200 {
            let (code, producer) = self.init_once(4, Some(&id), 60_000, named).await;
            if !BUSY.contains(&code) {
                return (code, producer);
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    /// A producer without a transactional id; a young broker has to fetch ids first.
    async fn fresh(&mut self) -> (i16, Producer) {
        for _ in 0..200 {
            let (code, producer) = self.init_once(4, None, 60_000, NOBODY).await;
            if !BUSY.contains(&code) {
                return (code, producer);
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    async fn init(&mut self) -> Producer {
        let (code, producer) = self.init_as(NOBODY).await;
        assert_eq!(code, 0);
        producer
    }

    async fn add_at(
        &mut self,
        version: i16,
        producer: Producer,
        topic: &str,
        partitions: &[i32],
    ) -> Vec<i16> {
        let topic = AddPartitionsToTxnTopic::default()
            .with_name(name(topic))
            .with_partitions(partitions.to_vec());
        let request = AddPartitionsToTxnRequest::default()
            .with_v3_and_below_transactional_id(TransactionalId(word(&self.id)))
            .with_v3_and_below_producer_id(ProducerId(producer.id))
            .with_v3_and_below_producer_epoch(producer.epoch)
            .with_v3_and_below_topics(vec![topic]);
        for _ in 0..200 {
            let answer = self.wire.call(version, &request).await;
            let results = &answer.results_by_topic_v3_and_below[0].results_by_partition;
            let mut results: Vec<_> = results.iter().collect();
            results.sort_by_key(|result| result.partition_index);
            let codes: Vec<_> = results.iter().map(|one| one.partition_error_code).collect();
            if !BUSY.contains(&codes[0]) {
                return codes;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    async fn add(&mut self, producer: Producer, partition: i32) -> i16 {
        let topic = self.topic.clone();
        self.add_at(3, producer, &topic, &[partition]).await[0]
    }

    async fn add_group(&mut self, version: i16, producer: Producer) -> i16 {
        let request = AddOffsetsToTxnRequest::default()
            .with_transactional_id(TransactionalId(word(&self.id)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_group_id(GroupId(word(&self.group)));
        for _ in 0..200 {
            let code = self.wire.call(version, &request).await.error_code;
            if !BUSY.contains(&code) {
                return code;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    async fn commit_offset(
        &mut self,
        producer: Producer,
        topic: &str,
        generation: i32,
        offset: i64,
    ) -> i16 {
        let partition = TxnOffsetCommitRequestPartition::default().with_committed_offset(offset);
        let topic = TxnOffsetCommitRequestTopic::default()
            .with_name(name(topic))
            .with_partitions(vec![partition]);
        let request = TxnOffsetCommitRequest::default()
            .with_transactional_id(TransactionalId(word(&self.id)))
            .with_group_id(GroupId(word(&self.group)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_generation_id(generation)
            .with_member_id(word(if generation < 0 { "" } else { "m" }))
            .with_topics(vec![topic]);
        for _ in 0..200 {
            let answer = self.wire.call(3, &request).await;
            let code = answer.topics[0].partitions[0].error_code;
            if !BUSY.contains(&code) {
                return code;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    /// The group's offset for partition 0 and the code beside it.
    async fn committed(&mut self, stable: bool) -> (i16, i64) {
        let topic = OffsetFetchRequestTopics::default()
            .with_name(name(&self.topic))
            .with_partition_indexes(vec![0]);
        let group = OffsetFetchRequestGroup::default()
            .with_group_id(GroupId(word(&self.group)))
            .with_topics(Some(vec![topic]));
        let request = OffsetFetchRequest::default()
            .with_groups(vec![group])
            .with_require_stable(stable);
        let answer = self.wire.call(8, &request).await;
        let partition = &answer.groups[0].topics[0].partitions[0];
        (partition.error_code, partition.committed_offset)
    }

    /// The group's offset once no transaction holds it.
    async fn committed_stable(&mut self) -> i64 {
        for _ in 0..200 {
            let (code, offset) = self.committed(true).await;
            if code == 0 {
                return offset;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("the offset stays unstable");
    }

    async fn end_at(&mut self, version: i16, id: &str, producer: Producer, commit: bool) -> i16 {
        let request = EndTxnRequest::default()
            .with_transactional_id(TransactionalId(word(id)))
            .with_producer_id(ProducerId(producer.id))
            .with_producer_epoch(producer.epoch)
            .with_committed(commit);
        for _ in 0..200 {
            let code = self.wire.call(version, &request).await.error_code;
            if !BUSY.contains(&code) {
                return code;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    async fn end(&mut self, producer: Producer, commit: bool) -> i16 {
        let id = self.id.clone();
        self.end_at(3, &id, producer, commit).await
    }

    /// (code, base offset) of a produced batch; with a transactional id when the batch is transactional.
    async fn send(&mut self, partition: i32, records: BytesMut) -> (i16, i64) {
        let is_transactional = records[22] & 16 != 0;
        let id = is_transactional.then(|| TransactionalId(word(&self.id)));
        let request = produce(&self.topic, partition, records).with_transactional_id(id);
        for _ in 0..200 {
            let answer = self.wire.call(9, &request).await;
            let answer = &answer.responses[0].partition_responses[0];
            if !BUSY.contains(&answer.error_code) {
                return (answer.error_code, answer.base_offset);
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("busy for too long");
    }

    async fn read(&mut self, partition: i32, offset: i64, committed: bool) -> PartitionData {
        let request =
            fetch(&self.topic, partition, offset).with_isolation_level(i8::from(committed));
        let mut answer = self.wire.call(12, &request).await;
        answer.responses.remove(0).partitions.remove(0)
    }

    /// The high watermark once the last stable offset has reached it: the markers are written.
    async fn settled_end(&mut self, partition: i32) -> i64 {
        for _ in 0..200 {
            let data = self.read(partition, 0, true).await;
            if data.last_stable_offset == data.high_watermark {
                return data.high_watermark;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("a transaction stays open");
    }

    async fn latest(&mut self, partition: i32, committed: bool) -> i64 {
        let wanted = ListOffsetsPartition::default()
            .with_partition_index(partition)
            .with_timestamp(-1);
        let topic = ListOffsetsTopic::default()
            .with_name(name(&self.topic))
            .with_partitions(vec![wanted]);
        let request = ListOffsetsRequest::default()
            .with_replica_id(BrokerId(-1))
            .with_isolation_level(i8::from(committed))
            .with_topics(vec![topic]);
        self.wire.call(7, &request).await.topics[0].partitions[0].offset
    }
}

/// A batch of `count` records from this producer.
fn sequenced(producer: Producer, sequence: i32, count: usize, transactional: bool) -> BytesMut {
    let records = vec![(Some("k"), "v"); count];
    let mut records = batch(&records, -1);
    records[22] |= u8::from(transactional) << 4;
    records = patch(records, 43, &producer.id.to_be_bytes());
    records = patch(records, 51, &producer.epoch.to_be_bytes());
    patch(records, 53, &sequence.to_be_bytes())
}

fn plain(producer: Producer, sequence: i32) -> BytesMut {
    sequenced(producer, sequence, 1, false)
}

fn in_transaction(producer: Producer, sequence: i32) -> BytesMut {
    sequenced(producer, sequence, 1, true)
}

#[tokio::test]
async fn the_sandbox_guards_transactions_as_kafka_does() {
    let broker = broker().await;
    everything(&broker.bootstrap()).await;
    broker.shutdown().await;
}

#[tokio::test]
async fn kafka_guards_transactions_as_the_sandbox_does() {
    let Ok(address) = std::env::var("REAL_KAFKA") else {
        println!("skipped: REAL_KAFKA names no broker");
        return;
    };
    everything(&address).await;
}

async fn everything(address: &str) {
    let mut world = World::new(address).await;
    initialisation(&mut world).await;
    idempotence(&mut world).await;
    transactions(&mut world).await;
    reading(&mut world).await;
    groups(&mut world).await;
    fencing(&mut world).await;
    let wrong: Vec<_> = world
        .found
        .iter()
        .filter(|(_, expected, got)| expected != got)
        .collect();
    assert!(wrong.is_empty(), "(step, expected, got): {wrong:#?}");
}

async fn initialisation(world: &mut World) {
    let (code, first) = world.fresh().await;
    world.note("init: no id", 0, code);
    world.note("init: no id, epoch", 0, first.epoch);
    let (_, second) = world.fresh().await;
    world.note("init: no id, another", true, first.id != second.id);
    let (code, _) = world.init_once(4, Some(""), 60_000, NOBODY).await;
    world.note("init: empty id", 42, code);
    let id = world.id.clone();
    for (what, timeout) in [
        ("init: timeout 0", 0),
        ("init: timeout negative", -1),
        ("init: timeout too long", 900_001),
    ] {
        let (code, _) = world.init_once(4, Some(&id), timeout, NOBODY).await;
        world.note(what, 50, code);
    }
    for (what, named) in [
        ("init: an epoch without id", Producer { id: -1, epoch: 3 }),
        ("init: an id without epoch", Producer { id: 3, epoch: -1 }),
    ] {
        let (code, _) = world.init_once(4, Some(&id), 60_000, named).await;
        world.note(what, 42, code);
    }
    let first = world.init().await;
    world.note("init: first epoch", 0, first.epoch);
    let second = world.init().await;
    world.note("init: same id", first.id, second.id);
    world.note("init: next epoch", 1, second.epoch);
    // KIP-360: who names its epoch goes on only when it is the present one, or repeats the request.
    let (code, third) = world.init_as(second).await;
    world.note("init: present epoch named", 0, code);
    world.note("init: present epoch named, epoch", 2, third.epoch);
    let (code, repeated) = world.init_as(second).await;
    world.note("init: the same again", 0, code);
    world.note("init: the same again, epoch", 2, repeated.epoch);
    let (code, _) = world.init_as(first).await;
    world.note("init: old epoch named", 90, code);
    let (code, _) = world.init_once(3, Some(&id), 60_000, first).await;
    world.note("init: old epoch named, version 3", 47, code);
    let stranger = Producer {
        id: first.id + 1_000_000,
        epoch: 0,
    };
    let (code, _) = world.init_as(stranger).await;
    world.note("init: another id named", 90, code);
}

async fn idempotence(world: &mut World) {
    let (_, producer) = world.fresh().await;
    let mut offsets = Vec::new();
    for sequence in 0..6 {
        let (code, offset) = world.send(0, plain(producer, sequence)).await;
        world.note("sequence: in order", 0, code);
        offsets.push(offset);
    }
    for back in 1..=5 {
        let (code, offset) = world.send(0, plain(producer, 6 - back)).await;
        world.note("sequence: repeated", 0, code);
        let original = offsets[usize::try_from(6 - back).unwrap()];
        world.note("sequence: repeated, offset", original, offset);
    }
    let (code, _) = world.send(0, plain(producer, 0)).await;
    world.note("sequence: six batches back", 45, code);
    let (code, _) = world.send(0, plain(producer, 8)).await;
    world.note("sequence: gap", 45, code);
    let (code, _) = world.send(0, sequenced(producer, 5, 2, false)).await;
    world.note("sequence: overlap", 45, code);
    let (code, _) = world.send(0, plain(producer, -1)).await;
    world.note("sequence: none", 87, code);
    let (code, _) = world.send(1, plain(producer, 7)).await;
    world.note("sequence: first in a partition", 0, code);
    let next = Producer {
        epoch: 1,
        ..producer
    };
    let (code, _) = world.send(0, plain(next, 3)).await;
    world.note("sequence: new epoch in the middle", 45, code);
    let (code, _) = world.send(0, plain(next, 0)).await;
    world.note("sequence: new epoch", 0, code);
    let (code, _) = world.send(0, plain(producer, 6)).await;
    world.note("sequence: old epoch", 47, code);
    let (code, _) = world.send(0, plain(producer, 5)).await;
    world.note("sequence: old epoch, repeated", 47, code);
    // Sequences begin again at 0 behind the largest.
    let (_, other) = world.fresh().await;
    let (code, _) = world.send(1, sequenced(other, i32::MAX, 2, false)).await;
    world.note("sequence: over the largest", 0, code);
    let (code, _) = world.send(1, plain(other, 1)).await;
    world.note("sequence: behind the largest", 0, code);
    let unknown = Producer {
        id: 4_000_000_000,
        epoch: 7,
    };
    let (code, _) = world.send(1, plain(unknown, 4)).await;
    world.note("producer: never given out", 0, code);
}

async fn transactions(world: &mut World) {
    let producer = world.init().await;
    let topic = world.topic.clone();
    let (code, _) = world.send(2, in_transaction(producer, 0)).await;
    world.note("produce: no transaction", 48, code);
    let code = world.end(producer, true).await;
    world.note("end: no transaction", 48, code);
    let codes = world.add_at(3, producer, &topic, &[2, 9]).await;
    world.note("add: one is missing", 55, codes[0]);
    world.note("add: missing", 3, codes[1]);
    let code = world.add(producer, 2).await;
    world.note("add: good", 0, code);
    let code = world.add(producer, 2).await;
    world.note("add: again", 0, code);
    let (code, _) = world.send(3, in_transaction(producer, 0)).await;
    world.note("produce: partition not added", 48, code);
    let request = produce(&topic, 2, in_transaction(producer, 0));
    let answer = world.wire.call(9, &request).await;
    let code = answer.responses[0].partition_responses[0].error_code;
    world.note("produce: transactional without id", 53, code);
    let (code, offset) = world.send(2, in_transaction(producer, 0)).await;
    world.note("produce: good", 0, code);
    let (code, again) = world.send(2, in_transaction(producer, 0)).await;
    world.note("produce: repeated", 0, code);
    world.note("produce: repeated, offset", offset, again);
    let (code, _) = world.send(2, in_transaction(producer, 2)).await;
    world.note("produce: gap", 45, code);
    let (code, _) = world.send(2, plain(producer, 1)).await;
    world.note("produce: plain inside a transaction", 48, code);
    let id = world.id.clone();
    let code = world.end_at(3, "no-such-id", producer, true).await;
    world.note("end: unknown id", 49, code);
    let code = world.end_at(3, "", producer, true).await;
    world.note("end: empty id", 42, code);
    let stranger = Producer {
        id: producer.id + 1,
        ..producer
    };
    let code = world.end_at(3, &id, stranger, true).await;
    world.note("end: wrong producer id", 49, code);
    let code = world.add(stranger, 2).await;
    world.note("add: wrong producer id", 49, code);
    let ahead = Producer {
        epoch: producer.epoch + 1,
        ..producer
    };
    let code = world.end(ahead, true).await;
    world.note("end: epoch of the future", 90, code);
    let code = world.add(ahead, 2).await;
    world.note("add: epoch of the future", 90, code);
    let (code, _) = world.send(3, in_transaction(ahead, 0)).await;
    world.note("produce: epoch of the future", 47, code);
    let (code, _) = world.send(3, in_transaction(stranger, 0)).await;
    world.note("produce: wrong producer id", 49, code);
    let code = world.end(producer, true).await;
    world.note("end: commit", 0, code);
    let code = world.end(producer, true).await;
    world.note("end: commit again", 0, code);
    let code = world.end(producer, false).await;
    world.note("end: abort after commit", 48, code);
    let end = world.settled_end(2).await;
    world.note("end: the marker takes an offset", offset + 2, end);
    let (code, _) = world.send(2, in_transaction(producer, 0)).await;
    world.note("produce: repeated after the commit", 48, code);
    // An empty transaction leaves a marker too.
    world.add(producer, 3).await;
    let code = world.end(producer, false).await;
    world.note("end: abort", 0, code);
    let code = world.end(producer, false).await;
    world.note("end: abort again", 0, code);
    let code = world.end(producer, true).await;
    world.note("end: commit after abort", 48, code);
}

async fn reading(world: &mut World) {
    let producer = world.init().await;
    let start = world.settled_end(2).await;
    world.add(producer, 2).await;
    let (code, first) = world.send(2, in_transaction(producer, 0)).await;
    world.note("read: first", 0, code);
    world.note("read: first, offset", start, first);
    // Another's record behind it is not stable either.
    world.send(2, batch(&[(Some("k"), "v")], -1)).await;
    let open = world.read(2, start, true).await;
    world.note("read: open, code", 0, open.error_code);
    world.note("read: open, last stable", start, open.last_stable_offset);
    world.note("read: open, high watermark", start + 2, open.high_watermark);
    let is_empty = open.records.is_none_or(|records| records.is_empty());
    world.note("read: open, nothing committed", true, is_empty);
    let uncommitted = world.read(2, start, false).await;
    let has_records = uncommitted
        .records
        .is_some_and(|records| !records.is_empty());
    world.note("read: open, uncommitted", true, has_records);
    let beyond = world.read(2, start + 1, true).await;
    world.note("read: behind the last stable", 0, beyond.error_code);
    let latest = world.latest(2, true).await;
    world.note("offsets: last stable", start, latest);
    let latest = world.latest(2, false).await;
    world.note("offsets: high watermark", start + 2, latest);
    let code = world.end(producer, false).await;
    world.note("read: abort", 0, code);
    let end = world.settled_end(2).await;
    world.note("read: ended", start + 3, end);
    let aborted = world.read(2, start, true).await;
    let aborted = aborted.aborted_transactions.unwrap_or_default();
    world.note(
        "read: aborted transactions",
        1,
        i64::try_from(aborted.len()).unwrap(),
    );
    world.note(
        "read: aborted producer",
        producer.id,
        aborted[0].producer_id.0,
    );
    world.note("read: aborted from", first, aborted[0].first_offset);
    let behind = world.read(2, end, true).await;
    let none = behind
        .aborted_transactions
        .is_none_or(|aborted| aborted.is_empty());
    world.note("read: none behind", true, none);
}

async fn groups(world: &mut World) {
    let producer = world.init().await;
    let topic = world.topic.clone();
    let code = world.commit_offset(producer, &topic, -1, 5).await;
    world.note("offsets: group not added", 48, code);
    let code = world.add_group(3, producer).await;
    world.note("offsets: group", 0, code);
    let code = world.commit_offset(producer, "no-such-topic", -1, 5).await;
    world.note("offsets: unknown topic", 3, code);
    let code = world.commit_offset(producer, &topic, 3, 5).await;
    world.note("offsets: generation of an unknown group", 22, code);
    let code = world.commit_offset(producer, &topic, -1, 5).await;
    world.note("offsets: good", 0, code);
    let (code, _) = world.committed(true).await;
    world.note("offsets: unstable", 88, code);
    let (code, offset) = world.committed(false).await;
    world.note("offsets: not yet, code", 0, code);
    world.note("offsets: not yet", -1, offset);
    world.end(producer, true).await;
    let offset = world.committed_stable().await;
    world.note("offsets: committed", 5, offset);
    world.add_group(3, producer).await;
    world.commit_offset(producer, &topic, -1, 9).await;
    world.end(producer, false).await;
    let offset = world.committed_stable().await;
    world.note("offsets: aborted", 5, offset);
    let code = world.commit_offset(producer, &topic, -1, 9).await;
    world.note("offsets: after the end", 48, code);
}

async fn fencing(world: &mut World) {
    let zombie = world.init().await;
    let topic = world.topic.clone();
    let id = world.id.clone();
    world.add(zombie, 3).await;
    world.add_group(3, zombie).await;
    let (code, _) = world.send(3, in_transaction(zombie, 0)).await;
    world.note("fence: before", 0, code);
    // The first request only begins the abort.
    let (code, _) = world.init_once(4, Some(&id), 60_000, NOBODY).await;
    world.note("fence: aborting", 51, code);
    let heir = world.init().await;
    world.note("fence: two epochs on", zombie.epoch + 2, heir.epoch);
    world.settled_end(3).await;
    let (code, _) = world.send(3, in_transaction(zombie, 1)).await;
    world.note("zombie: produce", 47, code);
    let (code, _) = world.send(3, plain(zombie, 1)).await;
    world.note("zombie: produce plain", 47, code);
    let code = world.add(zombie, 3).await;
    world.note("zombie: add", 90, code);
    let code = world.add_at(1, zombie, &topic, &[3]).await[0];
    world.note("zombie: add, version 1", 47, code);
    let code = world.add_group(3, zombie).await;
    world.note("zombie: add group", 90, code);
    let code = world.add_group(1, zombie).await;
    world.note("zombie: add group, version 1", 47, code);
    let code = world.commit_offset(zombie, &topic, -1, 7).await;
    world.note("zombie: offsets", 47, code);
    let code = world.end(zombie, true).await;
    world.note("zombie: end", 90, code);
    let code = world.end_at(1, &id, zombie, true).await;
    world.note("zombie: end, version 1", 47, code);
    let (code, _) = world.init_as(zombie).await;
    world.note("zombie: init", 90, code);
    let code = world.add(heir, 3).await;
    world.note("heir: add", 0, code);
    let (code, _) = world.send(3, in_transaction(heir, 1)).await;
    world.note("heir: not from the start", 45, code);
    let (code, _) = world.send(3, in_transaction(heir, 0)).await;
    world.note("heir: produce", 0, code);
    let code = world.end(heir, true).await;
    world.note("heir: end", 0, code);
}
