#!/usr/bin/env python3
"""Reads what Tidegate delivers, each reading once.

    pip install confluent-kafka
    ./consume.py kafka-1:9092 sensors.north

With delivery = "exactly-once" read_committed is all it takes. With "at-least-once", or for a reader that cannot do
read_committed, the headers tell a repeat: within a partition the sequences of one MQTT topic only rise. Who stores
results keeps `last` and the offsets with them, in one transaction.
"""

import sys

from confluent_kafka import Consumer

brokers, topic = sys.argv[1:3]
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": "tidegate-example",
    "isolation.level": "read_committed",  # what is aborted, or not yet committed, is not seen
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe([topic])
last = {}  # of each buffer's MQTT topics the last sequence


def is_new(headers):
    """False for a reading that came before, under this id or under the one it had in a buffer that was cloned."""
    new = True
    for name in ("tidegate-id", "tidegate-was"):
        if name in headers:
            buffer, sequence = headers[name].decode().rsplit(":", 1)
            key = buffer, headers["mqtt-topic"]
            new = new and int(sequence) > last.get(key, 0)
            last[key] = max(int(sequence), last.get(key, 0))
    return new


while True:
    record = consumer.poll(1.0)
    if record is None:
        continue
    if record.error():
        print(record.error(), file=sys.stderr)
        continue
    headers = dict(reversed(record.headers() or []))  # of a repeated name the first
    if is_new(headers):
        print(headers.get("mqtt-topic", b"").decode(), (record.value() or b"").decode(errors="replace"), flush=True)
    consumer.commit(record, asynchronous=True)
