//! What gateways would write to Kafka, planted: with gaps, repeats and breaks where a test wants them.

use std::time::Duration;

use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Header, OwnedHeaders};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{Outcome, PATIENCE, trouble};

/// A record of a gateway.
#[derive(Debug, Clone)]
pub struct Planted<'a> {
    pub topic: &'a str,
    pub partition: i32,
    /// `tidegate-id`; none when empty.
    pub id: String,
    /// `tidegate-instance`; none when empty.
    pub instance: &'a str,
    pub was: Option<String>,
    pub mqtt_topic: &'a str,
    pub at_ms: i64,
}

/// One gateway's hand.
pub struct Hand {
    producer: BaseProducer,
    transactional: bool,
}

impl Hand {
    /// Without transactions.
    pub fn plain(brokers: &str) -> Outcome<Self> {
        Self::new(brokers, &[])
    }

    /// With transactions.
    pub fn transactional(brokers: &str, id: &str) -> Outcome<Self> {
        Self::new(brokers, &[("transactional.id", id), ("transaction.timeout.ms", "20000")])
    }

    /// With these properties.
    pub fn new(brokers: &str, settings: &[(&str, &str)]) -> Outcome<Self> {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("linger.ms", "5").set("log_level", "0").set("acks", "all");
        config.set("enable.idempotence", "true").set("compression.type", "zstd").set("message.timeout.ms", "15000");
        config.set("topic.metadata.propagation.max.ms", "1000");
        for (name, value) in settings {
            config.set(*name, *value);
        }
        let hand = Self {
            producer: config.create()?,
            transactional: settings.iter().any(|(name, _)| *name == "transactional.id"),
        };
        if hand.transactional {
            hand.producer.init_transactions(PATIENCE)?;
        }
        Ok(hand)
    }

    pub fn begin(&self) -> Outcome<()> {
        Ok(self.producer.begin_transaction()?)
    }

    pub fn commit(&self) -> Outcome<()> {
        Ok(self.producer.commit_transaction(PATIENCE)?)
    }

    pub fn abort(&self) -> Outcome<()> {
        // Only a producer that is polled can abort, and what is to be aborted shall be in Kafka.
        self.flush()?;
        Ok(self.producer.abort_transaction(PATIENCE)?)
    }

    /// A reading of 100 bytes.
    pub fn event(&self, event: &Planted<'_>) -> Outcome<()> {
        let mut headers = OwnedHeaders::new();
        if !event.id.is_empty() {
            headers = headers.insert(Header { key: "tidegate-id", value: Some(&event.id) });
            headers = headers.insert(Header { key: "mqtt-topic", value: Some(event.mqtt_topic) });
        }
        if !event.instance.is_empty() {
            headers = headers.insert(Header { key: "tidegate-instance", value: Some(event.instance) });
        }
        if let Some(was) = &event.was {
            headers = headers.insert(Header { key: "tidegate-was", value: Some(was) });
        }
        let payload = format!("{:<100}", event.id.bytes().map(u32::from).sum::<u32>());
        loop {
            let record = BaseRecord::to(event.topic).partition(event.partition).key(event.mqtt_topic);
            let record = record.payload(&payload).headers(headers.clone()).timestamp(event.at_ms);
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull), _)) => {
                    self.producer.poll(Duration::from_millis(10));
                }
                Err((error, _)) => return trouble!("{}: {error}", event.topic),
            }
        }
    }

    /// A record of the watermark topic.
    pub fn say(&self, topic: &str, key: &str, value: &str) -> Outcome<()> {
        let record = BaseRecord::to(topic).partition(0).key(key).payload(value);
        self.producer.send(record).map_err(|(error, _)| error)?;
        Ok(())
    }

    /// Everything is in Kafka.
    pub fn flush(&self) -> Outcome<()> {
        Ok(self.producer.flush(PATIENCE)?)
    }
}

/// `{"v":1,"instance":…,"delivered":N,"at":…}`, written by hand: the test does not use Tidegate's code.
pub fn delivered(sequence: u64) -> String {
    format!(r#"{{"v":1,"instance":"{:032x}","delivered":{sequence},"at":1}}"#, 7)
}

/// A declared hole.
pub fn hole(first: u64, last: u64, fate: &str) -> String {
    format!(r#"{{"v":1,"first":{first},"last":{last},"fate":"{fate}","reason":"planted","at":1}}"#)
}

/// Lets Kafka remove the records of these partitions before an offset, as it does by age.
pub fn delete_before(brokers: &str, topic: &str, partitions: &[(i32, i64)]) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let mut offsets = TopicPartitionList::new();
    for (partition, offset) in partitions {
        offsets.add_partition_offset(topic, *partition, Offset::Offset(*offset))?;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let deleted = runtime.block_on(admin.delete_records(&offsets, &AdminOptions::new()))?;
    for partition in deleted.elements() {
        partition.error()?;
    }
    Ok(())
}
