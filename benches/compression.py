"""What a reading costs by compression and size of the batch: bytes on the wire and CPU. docs/kafka.md's table.

    benches/compression.py BROKERS      (with confluent-kafka: ~/.cache/tidegate-tests/python/bin/python)

Produce requests of librdkafka, whole, to a real Kafka; JSON readings of about 105 bytes from 20 sensors, with the key and the
two headers that each has. The least CPU of three runs; what Python itself takes is in all of them, so only the differences
to "none" count.
"""

import json
import random
import resource
import sys
import time

from confluent_kafka import Producer
from confluent_kafka.admin import AdminClient, NewTopic

BUFFER = "0b5b9f9e-6e0f-4c6e-b3a3-5a53b3c3a2a1"
CODECS = [("none", None), ("gzip", 1), ("gzip", 3), ("gzip", 6), ("lz4", None), ("snappy", None), ("zstd", 1), ("zstd", 3)]


def readings(count):
    """Key, value and id of each."""
    chance, temperatures = random.Random(1), [20.0] * 20
    for number in range(count):
        sensor = number % 20
        temperatures[sensor] += chance.uniform(-0.1, 0.1)
        value = (
            f'{{"sensor":"s{sensor:02d}","n":{number},"at":{1_700_000_000_000 + number * 50},'
            f'"temperature":{temperatures[sensor]:.2f},"humidity":{chance.uniform(40, 41):.1f},'
            f'"state":"running","unit":"C"}}'
        )
        yield f"bench/line7/s{sensor:02d}", value.encode(), f"{BUFFER}:{number + 1_000_000}".encode()


def cost(brokers, topic, codec, level, batch, count):
    """Bytes and microseconds a reading."""
    sent = {}

    def statistics(text):
        sent["bytes"] = sum(broker["txbytes"] for broker in json.loads(text)["brokers"].values())

    settings = {
        "bootstrap.servers": brokers,
        "compression.type": codec,
        "acks": "all",
        "enable.idempotence": True,
        "max.in.flight": 1,
        "linger.ms": 50 if batch > 1 else 0,
        "batch.size": 1_000_000,
        "statistics.interval.ms": 100,
        "stats_cb": statistics,
    }
    if level is not None:
        settings["compression.level"] = level
    producer = Producer(settings)

    def all_sent():
        time.sleep(0.4)
        for _ in range(5):
            producer.poll(0.1)
        return sent["bytes"]

    producer.produce(topic, b"warm")
    producer.flush()
    before, made = all_sent(), list(readings(count))
    start = resource.getrusage(resource.RUSAGE_SELF)
    for first in range(0, count, batch):
        for key, value, name in made[first : first + batch]:
            producer.produce(topic, value, key=key, headers=[("tidegate-id", name), ("mqtt-topic", key.encode())])
        producer.flush()
    end = resource.getrusage(resource.RUSAGE_SELF)
    cpu = end.ru_utime + end.ru_stime - start.ru_utime - start.ru_stime
    return (all_sent() - before) / count, cpu / count * 1e6


def main(brokers):
    topic = f"bench-compression-{random.randrange(1 << 30)}"
    AdminClient({"bootstrap.servers": brokers}).create_topics([NewTopic(topic, 1, 1)])[topic].result()
    print("batch codec level | bytes a reading | µs a reading")
    for batch, count in ((1, 400), (100, 20_000), (1_000, 100_000)):
        for codec, level in CODECS:
            runs = [cost(brokers, topic, codec, level, batch, count) for _ in range(3)]
            size, cpu = min(runs, key=lambda run: run[1])
            print(f"{batch} {codec} {level or ''} | {size:.1f} | {cpu:.2f}", flush=True)


main(sys.argv[1])
