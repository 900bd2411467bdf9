"""Consumer groups of confluent-kafka (librdkafka) against the broker named by the first argument; the topic has four partitions.

With three more arguments it is one member that prints its partitions whenever they change, until it is killed. Ends with `done`.
"""

import os
import subprocess
import sys
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient

WAIT = 30
SERVER, TOPIC = sys.argv[1:3]
ALL = {0, 1, 2, 3}


class Member:
    def __init__(self, group, strategy, instance=None):
        self.changes = 0
        settings = {
            "bootstrap.servers": SERVER,
            "group.id": group,
            "partition.assignment.strategy": strategy,
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            # A dynamic member that dies is to be missed soon; a static one is not to be missed while it restarts.
            "session.timeout.ms": 30000 if instance else 3000,
            "heartbeat.interval.ms": 200,
        }
        if instance:
            settings["group.instance.id"] = instance
        self.consumer = Consumer(settings)
        self.read = set()

        def changed(_consumer, partitions):
            # The incremental protocol also reports rebalances that move nothing.
            self.changes += bool(partitions)

        self.consumer.subscribe([TOPIC], on_assign=changed, on_revoke=changed, on_lost=changed)

    def poll(self):
        message = self.consumer.poll(0.05)
        if message is not None:
            assert message.error() is None, message.error()
            self.read.add(message.partition())

    def partitions(self):
        return {one.partition for one in self.consumer.assignment()}


def poll_until(what, condition, *members):
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, (what, [member.partitions() for member in members])
        for member in members:
            member.poll()


def shared(*members):
    """Every partition has one owner, and every member has as many as the others."""
    parts = [member.partitions() for member in members]
    even = all(len(part) == 4 // len(members) for part in parts)
    return even and set().union(*parts) == ALL


def produce(rounds):
    producer = Producer({"bootstrap.servers": SERVER, "enable.idempotence": False})
    for _ in range(rounds):
        for partition in sorted(ALL):
            producer.produce(TOPIC, b"v", b"k", partition)
    assert producer.flush(WAIT) == 0


def start_process(group, strategy, instance):
    arguments = [sys.executable, __file__, SERVER, TOPIC, group, strategy, instance]
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True)


def run_process(group, strategy, instance):
    member, last = Member(group, strategy, instance or None), None
    parent = os.getppid()
    while os.getppid() == parent:
        member.poll()
        now = sorted(member.partitions())
        if now != last:
            last = now
            print(now, flush=True)


def come_and_go(admin, strategy):
    group = f"g-{strategy}"
    first = Member(group, strategy)
    poll_until("one reads all", lambda: shared(first) and first.read == ALL, first)
    second = Member(group, strategy)
    poll_until("two share", lambda: shared(first, second), first, second)
    described = admin.describe_consumer_groups([group])[group].result(WAIT)
    assert described.state.name == "STABLE" and len(described.members) == 2
    assert described.partition_assignor == strategy
    told = [one.partition for member in described.members for one in member.assignment.topic_partitions]
    assert set(told) == ALL and len(told) == 4
    for member in (first, second):
        places = [TopicPartition(TOPIC, partition, 1) for partition in member.partitions()]
        member.consumer.commit(offsets=places, asynchronous=False)
    first.consumer.close()
    left = time.monotonic()
    poll_until("one is left", lambda: shared(second), second)
    assert time.monotonic() - left < 2.5, "a leave is quicker than a lost session"
    process = start_process(group, strategy, "")
    poll_until("two share again", lambda: len(second.partitions()) == 2, second)
    process.kill()
    process.wait(WAIT)
    poll_until("one is dead", lambda: shared(second), second)
    second.consumer.close()
    described = admin.describe_consumer_groups([group])[group].result(WAIT)
    assert described.state.name == "EMPTY" and not described.members


def static(strategy):
    group = f"s-{strategy}"
    stays = Member(group, strategy, "stays")
    poll_until("one has all", lambda: shared(stays), stays)
    process = start_process(group, strategy, "goes")
    poll_until("two share", lambda: len(stays.partitions()) == 2, stays)
    expected = sorted(ALL - stays.partitions())
    while process.stdout.readline().strip() != str(expected):
        stays.poll()
    changes = stays.changes
    process.kill()
    process.wait(WAIT)
    process = start_process(group, strategy, "goes")
    # Reading blocks, but the heartbeats of librdkafka have their own thread.
    while process.stdout.readline().strip() != str(expected):
        pass
    for _ in range(10):
        stays.poll()
    assert stays.changes == changes, "a restart of a static member causes no rebalance"
    # A second client with the same instance id fences the first.
    process.kill()
    process.wait(WAIT)
    twin = Member(group, strategy, "stays")
    poll_until("the twin takes over", lambda: len(twin.partitions()) == 2, twin)
    try:
        for _ in range(200):
            stays.poll()
    except (AssertionError, KafkaException) as error:
        assert "FENCED" in str(error).upper(), error
    else:
        raise AssertionError("the first is not fenced")
    twin.consumer.close()
    stays.consumer.close()


if len(sys.argv) > 3:
    sys.exit(run_process(*sys.argv[3:6]))
client = AdminClient({"bootstrap.servers": SERVER})
produce(5)
for name in ("range", "cooperative-sticky"):
    come_and_go(client, name)
    static(name)
print("done")
