"""Transactions of confluent-kafka (librdkafka) against the broker named by the first argument. Ends with `done`."""

import sys

from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition

WAIT = 20
SERVER = sys.argv[1]
TOPIC = "t"
CODECS = ("none", "gzip", "snappy", "lz4", "zstd")


def producer(codec="none", **more):
    one = Producer({
        "bootstrap.servers": SERVER,
        "transactional.id": "confluent",
        "compression.type": codec,
        **more,
    })
    one.init_transactions(WAIT)
    return one


def read(isolation, count):
    """Values from the start; `count` of them, then nothing more."""
    consumer = Consumer({
        "bootstrap.servers": SERVER,
        "group.id": "readers",
        "isolation.level": isolation,
        "enable.auto.commit": False,
        "enable.partition.eof": True,
    })
    consumer.assign([TopicPartition(TOPIC, 0, 0)])
    values = []
    while True:
        message = consumer.poll(WAIT)
        assert message is not None, values
        if message.error():
            assert message.error().code() == KafkaError._PARTITION_EOF, message.error()
            break
        values.append(message.value().decode())
    consumer.close()
    assert len(values) == count, values
    return values


def write(one, values):
    delivered = []
    for value in values:
        one.produce(TOPIC, value, "k", 0, on_delivery=lambda error, _: delivered.append(error))
    assert one.flush(WAIT) == 0
    assert delivered == [None] * len(values), delivered


def idempotence():
    one = Producer({"bootstrap.servers": SERVER, "enable.idempotence": True})
    write(one, ["idempotent"])


def outcomes():
    expected = ["idempotent"]
    for codec in CODECS:
        one = producer(codec)
        one.begin_transaction()
        write(one, [f"{codec} committed"] * 2)
        one.commit_transaction(WAIT)
        one.begin_transaction()
        write(one, [f"{codec} aborted"])
        one.abort_transaction(WAIT)
        expected += [f"{codec} committed"] * 2
    assert read("read_committed", 11) == expected
    assert len(read("read_uncommitted", 16)) == 16


def offsets():
    consumer = Consumer({"bootstrap.servers": SERVER, "group.id": "g", "enable.auto.commit": False})
    place = TopicPartition(TOPIC, 0, 3)
    one = producer()
    for end in (one.abort_transaction, one.commit_transaction):
        one.begin_transaction()
        write(one, ["with offsets"])
        one.send_offsets_to_transaction([place], consumer.consumer_group_metadata(), WAIT)
        end(WAIT)
        committed = consumer.committed([TopicPartition(TOPIC, 0)], timeout=WAIT)[0].offset
        assert committed == (3 if end == one.commit_transaction else -1001), committed
    consumer.close()


def fencing():
    zombie = producer()
    zombie.begin_transaction()
    write(zombie, ["zombie"])
    heir = producer()
    heir.begin_transaction()
    write(heir, ["heir"])
    try:
        zombie.commit_transaction(WAIT)
        raise AssertionError("the zombie has committed")
    except KafkaException as error:
        assert error.args[0].fatal(), error
        assert error.args[0].code() in (KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH), error
    heir.commit_transaction(WAIT)
    values = read("read_committed", 13)
    assert values[-2:] == ["with offsets", "heir"], values


idempotence()
outcomes()
offsets()
fencing()
print("done")
