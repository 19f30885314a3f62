#!/usr/bin/env python3
"""Reads what Tidegate delivers, each reading once.

    pip install confluent-kafka
    ./consume.py kafka-1:9092 sensors.north [group]

With delivery = "exactly-once" read_committed is all it takes, but for what a clone or a restored buffer sends again. With
"at-least-once", or for a reader that cannot do read_committed, the headers tell a repeat: the start of the agent that
stored a reading (tidegate-instance) and the sequence in tidegate-id are the reading's own, whoever sends it, in whatever
order. The id alone is not enough: two copies of a buffer may have used one number for two readings. Who stores results
makes the two their key, or keeps `seen` and the offsets with them, in one transaction.
"""

import sys

from confluent_kafka import Consumer

BLOCK = 4096  # sequences: one bit each
MOST_BLOCKS = 100_000  # 75 MB, up to 400 million readings; what was forgotten is taken for new, never for a repeat

brokers, topic, group = (sys.argv[1:] + ["tidegate-example"])[:3]
consumer = Consumer({
    "bootstrap.servers": brokers,
    "group.id": group,
    "isolation.level": "read_committed",  # what is aborted, or not yet committed, is not seen
    "auto.offset.reset": "earliest",
    "enable.auto.commit": False,
})
consumer.subscribe([topic])
seen = {}  # of each start of an agent, by blocks, which sequences came


def is_new(headers):
    """False for a reading that came before, under this id or under another one."""
    if "tidegate-id" not in headers:
        return True  # somebody else's record
    buffer, sequence = headers["tidegate-id"].decode().rsplit(":", 1)
    block, place = divmod(int(sequence), BLOCK)
    bits = seen.setdefault((headers.get("tidegate-instance", buffer), block), bytearray(BLOCK // 8))
    if len(seen) > MOST_BLOCKS:
        del seen[next(iter(seen))]
    bit = 1 << place % 8
    new = not bits[place // 8] & bit
    bits[place // 8] |= bit
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
