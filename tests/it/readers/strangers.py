"""Writes what strangers may write into a data topic and a watermark topic: BROKERS TOPIC WATERMARK_TOPIC."""

import sys

from kafka import KafkaProducer


class Raw(str):
    """A header's name that is these bytes on the wire, UTF-8 or not."""

    def __new__(cls, raw):
        text = super().__new__(cls, raw.decode("latin-1"))
        text.raw = raw
        return text

    def encode(self, *_):
        return self.raw


brokers, topic, watermarks = sys.argv[1:]
producer = KafkaProducer(bootstrap_servers=brokers, retries=3)
for into in (topic, watermarks):
    sent = [
        producer.send(into, value=b"x", headers=[(Raw(b"\xff\xfe"), b"1")]),
        producer.send(into, value=b"x", headers=[(Raw(b"tidegate-id\xc3"), b"\x80"), (Raw(b""), b"")]),
        producer.send(into, key=b"\xff\x00", value=b"\xff", headers=[(Raw(b"a\x00b"), b"")]),
        producer.send(into, key=b"", value=b""),
        producer.send(into, key=b"11111111-1111-4111-8111-111111111111/topic/\xff", value=b"{"),
        producer.send(into, value=b"x" * 1000, headers=[(Raw(b"h" * 5000), b"v" * 5000)] * 50),
    ]
    for record in sent:
        record.get(timeout=30)
