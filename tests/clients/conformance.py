"""Eclipse's conformance tests (github.com/eclipse/paho.mqtt.testing) against Tidegate's listener, for tests/it/conformance.rs.

    python3 conformance.py FOLDER SUITE PORT REFUSING_PORT

FOLDER is `interoperability` of a copy of that repository, SUITE client_test (MQTT 3.1.1) or client_test5 (MQTT 5). The listener
at PORT must say `max_keepalive = "60s"`, the one at REFUSING_PORT `subscriptions = "refuse"`. Runs every test that is not left
out below; prints a line of JSON for each, run or not.
"""

import importlib
import json
import os
import sys
import unittest

NOTHING_SENT = "waits for a message that it has subscribed to: Tidegate sends nothing to sensors"
TAKEN = "wants to be thrown out (147) for more at once than the receive maximum: Tidegate takes it, as paho and mqtt.js need it"
WANTS_0X80 = "wants 0x80 for the refused filter: Tidegate says 0x87, not authorized, as MQTT 5 has it"

LEFT_OUT = {
    "client_test": {
        "testBasic": NOTHING_SENT,
        "test_keepalive": NOTHING_SENT,
        "test_offline_message_queueing": NOTHING_SENT,
        "test_overlapping_subscriptions": NOTHING_SENT,
        "test_redelivery_on_reconnect": NOTHING_SENT,
        "test_retained_messages": NOTHING_SENT,
        "test_unsubscribe": NOTHING_SENT,
    },
    "client_test5": {
        "test_basic": NOTHING_SENT,
        "test_flow_control1": NOTHING_SENT,
        "test_flow_control2": TAKEN,
        "test_keepalive": NOTHING_SENT,
        "test_maximum_packet_size": NOTHING_SENT,
        "test_offline_message_queueing": NOTHING_SENT,
        "test_overlapping_subscriptions": NOTHING_SENT,
        "test_payload_format": NOTHING_SENT,
        "test_publication_expiry": NOTHING_SENT,
        "test_redelivery_on_reconnect": NOTHING_SENT,
        "test_request_response": NOTHING_SENT,
        "test_retained_message": NOTHING_SENT,
        "test_server_topic_alias": NOTHING_SENT,
        "test_shared_subscriptions": NOTHING_SENT,
        "test_subscribe_failure": WANTS_0X80,
        "test_subscribe_identifiers": NOTHING_SENT,
        "test_subscribe_options": NOTHING_SENT,
        "test_unsubscribe": NOTHING_SENT,
        "test_user_properties": NOTHING_SENT,
        "test_will_delay": NOTHING_SENT,
        "test_will_message": NOTHING_SENT,
    },
}

# These are about a filter that is refused.
REFUSED = {"test_subscribe_failure"}

# Their clients wait half a second for an answer, which a machine that is busy with other tests may miss.
TRIES = 3

# What the suites' own main sets, which is not run: it takes the port for a test's name.
NAMES = {
    "topics": ("TopicA", "TopicA/B", "Topic/C", "TopicA/C", "/TopicA"),
    "wildtopics": ("TopicA/+", "+/C", "#", "/#", "/+", "+/+", "TopicA/#"),
    "nosubscribe_topics": ("test/nosubscribe",),
    "host": "127.0.0.1",
}


def say(**line):
    print(json.dumps(line), flush=True)


def run(test):
    # They print as they go; standard output is for our lines.
    stdout, sys.stdout = sys.stdout, sys.stderr
    result = unittest.TestResult()
    unittest.TestSuite([test]).run(result)
    sys.stdout = stdout
    return result.failures + result.errors


def main():
    folder, name, port, refusing_port = sys.argv[1:]
    sys.path.insert(0, folder)
    suite = importlib.import_module(name)
    vars(suite).update(NAMES)
    left_out = LEFT_OUT[name]
    tests = unittest.defaultTestLoader.getTestCaseNames(suite.Test)
    for test in sorted(set(left_out) - set(tests)):
        say(test=test, outcome="stale", why="is left out and not in the suite")
    for test in tests:
        if test in left_out:
            say(test=test, outcome="left out", why=left_out[test])
            continue
        suite.port = int(refusing_port if test in REFUSED else port)
        for _ in range(TRIES):
            wrong = run(suite.Test(test))
            if not wrong:
                break
        say(test=test, outcome="failed" if wrong else "passed", why=wrong[0][1] if wrong else "")
    # Threads of the suites' clients may still wait for a packet.
    os._exit(0)


main()
