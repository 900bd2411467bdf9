"""Transactional producers on strings: reads commands from standard input, answers each with `ok` once the broker has acknowledged it.

Arguments: bootstrap servers, topic, transaction timeout in milliseconds. Commands: `begin ID`, `send ID KEY VALUE`, `commit ID`,
`abort ID`, and `plain KEY VALUE` for a record outside any transaction. It ends, whatever is open, with its standard input.
"""
import sys

from confluent_kafka import Producer

BOOTSTRAP, TOPIC, TIMEOUT_MS = sys.argv[1], sys.argv[2], int(sys.argv[3])
WITHIN = 30
producers = {}


def transactional(name):
    if name not in producers:
        producer = Producer({
            "bootstrap.servers": BOOTSTRAP,
            "transactional.id": f"{TOPIC}-{name}",
            "transaction.timeout.ms": TIMEOUT_MS,
            "message.timeout.ms": TIMEOUT_MS,
            "linger.ms": 0,
        })
        producer.init_transactions(WITHIN)
        producers[name] = producer
    return producers[name]


def send(producer, key, value):
    producer.produce(TOPIC, key=key, value=value, partition=0)
    left = producer.flush(WITHIN)
    assert left == 0, f"{left} records are not acknowledged"


plain = Producer({"bootstrap.servers": BOOTSTRAP, "linger.ms": 0})
for line in sys.stdin:
    command, *words = line.split()
    if command == "begin":
        transactional(words[0]).begin_transaction()
    elif command == "send":
        send(producers[words[0]], words[1], words[2])
    elif command == "commit":
        producers[words[0]].commit_transaction(WITHIN)
    elif command == "abort":
        producers[words[0]].abort_transaction(WITHIN)
    elif command == "plain":
        send(plain, words[0], words[1])
    else:
        sys.exit(f"no such command: {command}")
    print("ok", flush=True)
