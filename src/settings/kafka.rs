//! The way out: `[kafka]`.

use std::collections::BTreeMap;
use std::time::Duration;

use super::endpoint::host_port;
use super::problems::{Reported, quoted};
use super::reading::Section;
use super::secret::Secret;
use super::table::{Key, Table};
use super::values::{Value, Words, choice, count, list, options, table, text, time};
use crate::route::template::MAX_TOPIC_CHARS;

table! {
    /// The Kafka cluster.
    one("kafka") read as KafkaKeys, checked as Kafka {
        /// Some brokers of the cluster as host:port; the agent finds the others through them.
        brokers: Vec<String> = list().required("[\"localhost:9092\"]").read_by(brokers),

        /// exactly-once: consumers with isolation.level=read_committed see each reading once; it takes Kafka
        /// transactions, about 900 bytes on the wire each. at-least-once: after a crash a reading may come twice, with
        /// the same tidegate-id; for links that are paid by the byte.
        delivery: Delivery = choice().or("exactly-once"),

        /// For exactly-once: the compacted topic to which each gateway writes how far it has delivered; tidegate
        /// kafka-setup shows what it needs.
        watermark_topic: String = text().or("tidegate.watermarks").read_by(watermark_topic),

        /// The time of a record. delivery: when the agent sends it, so that Kafka keeps it for the whole retention of
        /// its topic. arrival: when the reading came; Kafka deletes a reading at once if it has waited here for longer
        /// than the retention. The header tidegate-arrived has the time of arrival in both cases.
        timestamp: Timestamp = choice().or("delivery"),

        /// The time between two batches: fewer and larger requests. A reading that comes after a pause is sent at once.
        linger: Duration = time(Duration::from_secs(60), "readings are delivered later by as much").or("500ms"),

        /// Compression of what the agent sends to Kafka. Every consumer can read gzip. zstd is smaller and costs the
        /// gateway less, but kafkajs, kafka-python and aiokafka cannot read it as they are installed; docs/kafka.md has
        /// a table.
        compression: Codec = choice().or("gzip"),

        /// Record headers. tidegate: id, MQTT topic, retain, and the MQTT 5 properties that a message has. all: also
        /// QoS, DUP, and client id and user of a sensor at a [[listen]]. confluent: QoS, retain and DUP under the names
        /// that Confluent's MQTT source connector uses.
        headers: HeaderNames = choice().or("tidegate"),

        /// Kafka topics that sensors may make between two starts, through names in "to" of a [[route]]; topics without
        /// names do not count. Readings for further topics wait until you raise this number.
        max_topics: usize = count(1, 10_000, "librdkafka needs 4 to 8 KiB of memory for each").or("1000"),

        /// Any property of librdkafka as text, for TLS, SASL and tuning; the agent checks them when it starts. It
        /// refuses those that could lose or repeat readings (acks, message.timeout.ms …). sasl.password,
        /// ssl.key.password and ssl.keystore.password can also come from a file: add _file to the name.
        options: BTreeMap<String, Secret> = options(),
    }
    follows {
        /// The largest record that a packet of the largest size can become, in bytes.
        largest_record_bytes: u64,
    }
}

/// An example for `[kafka.options]`, which has no keys of its own.
#[cfg(test)]
pub(crate) const OPTIONS_EXAMPLE: [(&str, &str); 4] = [
    ("security.protocol", "\"SASL_SSL\""),
    ("sasl.mechanism", "\"SCRAM-SHA-512\""),
    ("sasl.username", "\"tidegate\""),
    ("sasl.password_file", "\"$CREDENTIALS_DIRECTORY/kafka.pw\""),
];

/// Compression of what goes to Kafka: not every client reads each of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// Read by all.
    Gzip,
    /// The least work.
    Lz4,
    /// Like lz4.
    Snappy,
    /// The fewest bytes.
    Zstd,
    /// As it is.
    None,
}

impl Codec {
    /// As librdkafka calls it, and the configuration.
    #[must_use]
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Lz4 => "lz4",
            Self::Snappy => "snappy",
            Self::Zstd => "zstd",
            Self::None => "none",
        }
    }

    /// As librdkafka counts it, where its own choice is not the best for readings.
    #[must_use]
    pub(crate) fn level(self) -> Option<&'static str> {
        match self {
            // Measured with 100-byte readings: 10.1 bytes each in the log, against 10.8 with librdkafka's choice (3), and
            // faster.
            Self::Zstd => Some("1"),
            // Measured likewise: 24 bytes each on the wire and 1 to 4 µs, against 22 and 5 to 6 µs with the usual 6.
            Self::Gzip => Some("3"),
            Self::Lz4 | Self::Snappy | Self::None => None,
        }
    }
}

impl Words for Codec {
    const MEANINGS: &'static [(&'static str, Self)] = &[
        (Self::Gzip.name(), Self::Gzip),
        (Self::Lz4.name(), Self::Lz4),
        (Self::Snappy.name(), Self::Snappy),
        (Self::Zstd.name(), Self::Zstd),
        (Self::None.name(), Self::None),
    ];
}

/// What of a message travels as headers besides its id and topic, and under which names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeaderNames {
    /// What only some messages have.
    Tidegate,
    /// Also QoS, DUP, client id and user.
    All,
    /// As Confluent's MQTT source connector calls them.
    Confluent,
}

impl Words for HeaderNames {
    const MEANINGS: &'static [(&'static str, Self)] =
        &[("tidegate", Self::Tidegate), ("all", Self::All), ("confluent", Self::Confluent)];
}

/// What time records bear; the other stands in a header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Timestamp {
    /// When the reading is sent: no retention is shorter than its wait in the buffer.
    Delivery,
    /// When it arrived at the gateway.
    Arrival,
}

impl Words for Timestamp {
    const MEANINGS: &'static [(&'static str, Self)] = &[("delivery", Self::Delivery), ("arrival", Self::Arrival)];
}

/// Delivery guarantee of the Kafka hop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// Idempotent producer, acks=all.
    AtLeastOnce,
    /// A transaction a batch, and in it the watermark of this buffer.
    ExactlyOnce,
}

impl Words for Delivery {
    const MEANINGS: &'static [(&'static str, Self)] =
        &[("exactly-once", Self::ExactlyOnce), ("at-least-once", Self::AtLeastOnce)];
}

fn watermark_topic(section: &Section<'_, '_>, key: &Key) -> Result<String, Reported> {
    let name = section.text(key)?;
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > MAX_TOPIC_CHARS || name == "." || name == ".." || !name.chars().all(allowed) {
        let what = format!("found {}; allowed: 1 to {MAX_TOPIC_CHARS} of a-z A-Z 0-9 . _ -", quoted(&name));
        return Err(section.problem(key.name, what));
    }
    Ok(name)
}

fn brokers(section: &Section<'_, '_>, key: &Key) -> Result<Vec<String>, Reported> {
    let mut known = Vec::new();
    let mut problem = None;
    for (index, (text, span)) in section.list(key)?.into_iter().enumerate() {
        let item = format!("{}[{index}]", key.name);
        match host_port(&text, None) {
            Err(why) => problem = Some(section.problem_at(&span, &item, format!("{why}; allowed: host:port"))),
            Ok(_) if known.contains(&text) => {
                problem = Some(section.problem_at(&span, &item, format!("{text:?} appears twice")));
            }
            Ok(_) => known.push(text),
        }
    }
    problem.map_or(Ok(known), Err)
}
