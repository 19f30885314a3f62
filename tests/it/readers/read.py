"""Prints the value of each record of a topic, a line each, committed ones only: LIBRARY BROKERS TOPIC COUNT.

Ends when COUNT have come and no more came for two seconds, or after a minute without them.
"""

import asyncio
import sys
import time

library, brokers, topic, count = sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4])
QUIET, PATIENCE = 2, 60


def pages(poll):
    """Values, until there are enough and it is quiet."""
    seen, last = 0, time.monotonic()
    while time.monotonic() - last < (QUIET if seen >= count else PATIENCE):
        for value in poll():
            print(value.decode())
            seen, last = seen + 1, time.monotonic()


def confluent():
    from confluent_kafka import Consumer

    settings = {"bootstrap.servers": brokers, "group.id": topic + "-confluent", "auto.offset.reset": "earliest"}
    consumer = Consumer(settings | {"isolation.level": "read_committed"})
    consumer.subscribe([topic])

    def poll():
        for record in consumer.consume(100, 0.5):
            if record.error():
                sys.exit(str(record.error()))
            yield record.value()

    pages(poll)
    consumer.close()


def kafka_python():
    from kafka import KafkaConsumer

    consumer = KafkaConsumer(
        topic, bootstrap_servers=brokers, auto_offset_reset="earliest", group_id=None, isolation_level="read_committed"
    )
    pages(lambda: [record.value for records in consumer.poll(500).values() for record in records])


def aiokafka():
    from aiokafka import AIOKafkaConsumer

    async def read():
        consumer = AIOKafkaConsumer(
            topic, bootstrap_servers=brokers, auto_offset_reset="earliest", isolation_level="read_committed"
        )
        await consumer.start()
        seen, last = 0, time.monotonic()
        while time.monotonic() - last < (QUIET if seen >= count else PATIENCE):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                for record in records:
                    print(record.value.decode())
                    seen, last = seen + 1, time.monotonic()
        await consumer.stop()

    asyncio.run(read())


{"confluent": confluent, "kafka-python": kafka_python, "aiokafka": aiokafka}[library]()
