//! The part of the [schema](super::schema) that says where readings go.

use super::schema::{Default, Key, Kind, Table};

pub(super) const ROUTE: Table = Table {
    name: "route",
    many: true,
    why: "Where readings go; the first table whose from matches takes a reading. What no table matches is a dead letter.",
    keys: &[
        Key {
            name: "from",
            kind: Kind::Text(false),
            default: Default::Required("\"sensors/{site}/#\""),
            why: "An MQTT filter; {name} is a + that remembers what it matched.",
        },
        Key {
            name: "to",
            kind: Kind::Text(false),
            default: Default::Required("\"sensors.{site}\""),
            why: "Kafka topic, over the names of from, {rest} for what # matched and {topic} for the whole MQTT topic; \
                  {client} and {user} are the client id and the user of a sensor that publishes to a [[listen]]. \
                  Characters that Kafka forbids are written as _ and two hex digits, _ as __, / as a dot.",
        },
        Key {
            name: "key",
            kind: Kind::Text(true),
            default: Default::Is("\"{topic}\""),
            why: "Record key, over the same names, as they came. One key's readings keep their order.",
        },
        Key {
            name: "value",
            kind: Kind::Choice(&["payload", "cbor", "json"], &[]),
            default: Default::Is("\"payload\""),
            why: "payload as it came; cbor and json wrap it with topic, times, qos and id.",
        },
    ],
};

pub(super) const REDIRECT: Table = Table {
    name: "redirect",
    many: true,
    why: "A Kafka topic whose readings, those that wait for it included, shall go elsewhere or be given up: the way out of \
          a topic that stays missing or forbidden. Read at the next start.",
    keys: &[
        Key {
            name: "from",
            kind: Kind::Text(false),
            default: Default::Required("\"sensors.nroth\""),
            why: "The Kafka topic, as routes make it and tidegate status shows it.",
        },
        Key {
            name: "to",
            kind: Kind::Text(false),
            default: Default::Absent("\"sensors.north\""),
            why: "The Kafka topic that its readings go to instead.",
        },
        Key {
            name: "give_up",
            kind: Kind::Flag,
            default: Default::Is("false"),
            why: "true, in place of to: its readings become dead letters, counted and declared.",
        },
    ],
};
