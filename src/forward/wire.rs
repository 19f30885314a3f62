//! What a sender needs to make producers and records: librdkafka's clients, how long Kafka may take over this link, the parts
//! of a record, and the time that it bears.

use rdkafka::types::RDKafkaErrorCode as Code;

use super::clients::Clients;
use super::producer::{MESSAGE_OVERHEAD_BYTES, Outgoing, Producer};
use super::record::Records;
use super::targets::Generation;
use super::time::Times;
use super::timeouts::Timeouts;
use super::watermark_topic::Partitions;
use crate::event::Stored;
use crate::route::Target;

/// See the documentation of the module.
pub(super) struct Wire {
    /// Of this process.
    pub(super) clients: Clients,
    /// How long Kafka may take.
    pub(super) timeouts: Timeouts,
    /// What time records bear.
    pub(super) times: Times,
    /// Of the watermark topic, once the stream's watermark was read and no duplicate identity had written it. Before that no queue sends.
    pub(super) partitions: Option<Partitions>,
    records: Records,
    /// The last one that was given out.
    generation: Generation,
}

impl Wire {
    /// No producer yet.
    pub(super) fn new(clients: Clients, timeouts: Timeouts, records: Records, times: Times) -> Self {
        Self { clients, timeouts, times, partitions: None, records, generation: 0 }
    }

    /// For a producer that begins.
    pub(super) fn next_generation(&mut self) -> Generation {
        self.generation += 1;
        self.generation
    }

    /// Makes the record of an event and hands it to a producer.
    pub(super) fn send(&mut self, producer: &Producer, stored: &Stored, target: &Target) -> Result<(), Code> {
        let sent_ms = self.times.sent_ms();
        let timestamp_ms = self.times.stamp(&stored.event, &target.topic);
        let (headers, value) = self.records.build(stored.sequence, &stored.event, target.value, sent_ms);
        producer.send(Outgoing {
            sequence: stored.sequence,
            route: stored.event.route,
            target,
            headers,
            value,
            timestamp_ms,
            // The MQTT topic is in a record twice: as a header and, mostly, as the key.
            cost_bytes: stored.event.cost_bytes()
                + stored.event.topic.len()
                + target.key.len()
                + MESSAGE_OVERHEAD_BYTES,
        })
    }
}
