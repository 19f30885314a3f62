//! Which Kafka topic and key an MQTT topic becomes.

use std::sync::Arc;

/// The `[[route]]` tables, checked; first match wins.
#[derive(Debug, Clone, Default)]
pub struct Routes {}

/// How the Kafka record's value is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueFormat {
    /// The payload as it came.
    Payload,
    /// A CBOR envelope: topic, times, qos, id, payload.
    Cbor,
    /// The same as JSON.
    Json,
}

/// Where an event goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Kafka topic.
    pub topic: Arc<str>,
    /// Record key.
    pub key: Arc<str>,
    /// How the value is made.
    pub value: ValueFormat,
}

/// Why an event has no target; it goes to the dead letters with these words.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NoTarget {
    /// No `from` matches.
    #[error("no [[route]] matches MQTT topic {0:?}")]
    NoRoute(String),
    /// The Kafka topic that the template makes is not a legal one.
    #[error("MQTT topic {mqtt:?} makes no legal Kafka topic: {why}")]
    IllegalTopic {
        /// The MQTT topic.
        mqtt: String,
        /// Too long, empty, `.` or `..`.
        why: String,
    },
}

impl Routes {
    /// The names of the ledger lines, one a route, in the order of the tables: the route's `from`.
    #[must_use]
    pub fn names(&self) -> Vec<Arc<str>> {
        unimplemented!()
    }

    /// Index of the first route whose `from` matches.
    #[must_use]
    pub fn find(&self, _mqtt_topic: &str) -> Option<usize> {
        unimplemented!()
    }

    /// Kafka topic, key and value format for an MQTT topic.
    ///
    /// # Errors
    /// When no route matches or the topic made is not legal.
    pub fn target(&self, _mqtt_topic: &str) -> Result<Target, NoTarget> {
        unimplemented!()
    }
}
