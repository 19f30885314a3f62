//! What is right only together in `[kafka]`: the options with the delivery, and how large records get.

use super::options;
use crate::settings::kafka::KafkaKeys;
use crate::settings::problems::Reported;
use crate::settings::reading::Document;
use crate::settings::{Delivery, Kafka};

pub(super) fn kafka(document: &Document<'_, '_>, largest_record_bytes: u64) -> Result<Kafka, Reported> {
    let section = document.one(KafkaKeys::TABLE);
    let mut kafka = KafkaKeys::read(&section);
    // Without a valid one its own problem is told, and the options are looked at as they are.
    let delivery = kafka.delivery.unwrap_or(Delivery::AtLeastOnce);
    kafka.options = options::options(&section, delivery, largest_record_bytes);
    kafka.complete(largest_record_bytes)
}

/// An MQTT topic stands in a packet once, and in a record up to three times: key, header, envelope.
const MQTT_TOPIC_BYTES: u64 = 65_535;

/// What is in a record beside what was in the packet: the id, the names of headers, their lengths.
const HEADERS_BYTES: u64 = 16 << 10;

/// JSON writes a control character with six.
const JSON_FACTOR: u64 = 6;

/// What a packet of that size can become: our own limit on records never refuses what an acknowledgement was given for.
pub(super) fn largest_record_bytes(packet: u32, json: bool) -> u64 {
    let factor = if json { JSON_FACTOR } else { 1 };
    u64::from(packet) * factor + 2 * MQTT_TOPIC_BYTES + HEADERS_BYTES
}
