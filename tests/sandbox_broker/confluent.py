"""confluent-kafka (librdkafka) against the broker named by the first argument; SASL against the second. Ends with `done`."""

import sys

from confluent_kafka import Consumer, ConsumerGroupTopicPartitions, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic

WAIT = 20
SERVER, SECURE = sys.argv[1:3]
TOPIC = "confluent"


def error_code(future):
    try:
        future.result(WAIT)
        return 0
    except KafkaException as error:
        return error.args[0].code()


def topics(admin):
    new = NewTopic(TOPIC, 2, 1, config={"max.message.bytes": "2000"})
    assert error_code(admin.create_topics([new])[TOPIC]) == 0
    assert error_code(admin.create_topics([new])[TOPIC]) == 36
    assert admin.list_topics(timeout=WAIT).topics[TOPIC].partitions.keys() == {0, 1}
    resource = ConfigResource(ConfigResource.Type.TOPIC, TOPIC)
    entry = admin.describe_configs([resource])[resource].result(WAIT)["max.message.bytes"]
    assert (entry.value, entry.source) == ("2000", 1)


def produce(acks):
    delivered = []
    producer = Producer({"bootstrap.servers": SERVER, "enable.idempotence": False, "acks": acks})

    def report(error, message):
        delivered.append((error.code() if error else 0, message.offset()))

    for size in (100, 5000):
        producer.produce(TOPIC, b"x" * size, b"k", 0, on_delivery=report, headers=[("h", b"1"), ("h", b"2")])
        assert producer.flush(WAIT) == 0
    return delivered


def consume(admin):
    consumer = Consumer({"bootstrap.servers": SERVER, "group.id": "g", "enable.auto.commit": False})
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    message = consumer.poll(WAIT)
    assert message.error() is None and message.offset() == 0
    assert message.headers() == [("h", b"1"), ("h", b"2")]
    consumer.commit(offsets=[TopicPartition(TOPIC, 0, 1)], asynchronous=False)
    committed = consumer.committed([TopicPartition(TOPIC, 0), TopicPartition(TOPIC, 1)], timeout=WAIT)
    assert [one.offset for one in committed] == [1, -1001]
    assert consumer.get_watermark_offsets(TopicPartition(TOPIC, 0), timeout=WAIT) == (0, 2)
    timestamp = message.timestamp()[1]
    found = consumer.offsets_for_times([TopicPartition(TOPIC, 0, timestamp)], timeout=WAIT)
    assert found[0].offset == 0
    consumer.close()
    groups = admin.list_consumer_groups().result(WAIT).valid
    assert [group.group_id for group in groups] == ["g"]
    group = admin.describe_consumer_groups(["g"])["g"].result(WAIT)
    assert group.state.name == "EMPTY" and not group.members
    offsets = admin.list_consumer_group_offsets([ConsumerGroupTopicPartitions("g")])["g"].result(WAIT)
    assert [one.offset for one in offsets.topic_partitions] == [1]


def delete(admin):
    place = TopicPartition(TOPIC, 0, 1)
    assert admin.delete_records([place])[place].result(WAIT).low_watermark == 1
    deleted = admin.delete_topics([TOPIC, "no-such-topic"])
    assert [error_code(future) for future in deleted.values()] == [0, 3]


def authenticate():
    for mechanism in ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"):
        admin = AdminClient({
            "bootstrap.servers": SECURE,
            "security.protocol": "SASL_PLAINTEXT",
            "sasl.mechanism": mechanism,
            "sasl.username": "alice",
            "sasl.password": "secret",
        })
        assert len(admin.list_topics(timeout=WAIT).brokers) == 1, mechanism


client = AdminClient({"bootstrap.servers": SERVER})
topics(client)
assert produce("all") == [(0, 0), (10, None)], "acks=all"
assert produce("1")[0] == (0, 1), "acks=1"
consume(client)
delete(client)
authenticate()
print("done")
