"""paho-mqtt, told on standard input what to do and saying on standard output what came of it: tests/it/libraries/
has the words. All that is not asked for there is left as the library has it.
"""

import json
import sys
import threading
import time

import paho.mqtt.client as mqtt
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

clients, acked, lock = {}, {}, threading.Lock()


def say(name, **what):
    with lock:
        print(json.dumps({"client": name, **what}), flush=True)


def open_client(name, order):
    version_5 = order["version"] == 5
    client = mqtt.Client(
        mqtt.CallbackAPIVersion.VERSION2,
        client_id=name,
        protocol=mqtt.MQTTv5 if version_5 else mqtt.MQTTv311,
        clean_session=None if version_5 else not order["persistent"],
    )
    clients[name], acked[name] = client, 0
    if "user" in order:
        client.username_pw_set(order["user"], order["password"])
    if "will" in order:
        client.will_set(order["will"]["topic"], order["will"]["payload"], qos=1)
    client.reconnect_delay_set(1, 1)

    def on_connect(client, userdata, flags, reason, properties):
        if reason.is_failure:
            say(name, refused=str(reason))
            client.disconnect()
        else:
            say(name, connected=True)

    def on_publish(client, userdata, mid, reason, properties):
        if reason.is_failure:
            say(name, rejected=str(reason))
        else:
            acked[name] += 1
            say(name, acked=acked[name])

    client.on_connect = on_connect
    client.on_publish = on_publish
    client.on_disconnect = lambda client, userdata, flags, reason, properties: say(name, lost=str(reason))
    client.on_subscribe = lambda client, userdata, mid, codes, properties: say(name, granted=[c.value for c in codes])
    if version_5:
        properties = Properties(PacketTypes.CONNECT)
        if order["persistent"]:
            properties.SessionExpiryInterval = 3600
        client.connect_async(order["host"], order["port"], clean_start=not order["persistent"], properties=properties)
    else:
        client.connect_async(order["host"], order["port"])
    client.loop_start()


def publish(name, order):
    for payload in order["payloads"]:
        clients[name].publish(order["topic"], payload, qos=order["qos"], retain=order["retain"])
        time.sleep(order["pause_ms"] / 1000)


for line in sys.stdin:
    order = json.loads(line)
    name = order["client"]
    match order["do"]:
        case "open":
            open_client(name, order)
        case "publish":
            threading.Thread(target=publish, args=(name, order), daemon=True).start()
        case "subscribe":
            clients[name].subscribe([(filter, 1) for filter in order["filters"]])
        case "close":
            clients[name].disconnect()
