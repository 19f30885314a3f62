//! The central Kafka on stage: librdkafka's in-process mock cluster, and a reader that takes down what it holds.
//!
//! The cluster has one broker in this process, on a loopback port of its own, and speaks Kafka's real protocol to the
//! relay, which is another process. It keeps 5 MiB or 100,000 batches a partition, so it is read while it runs, and a
//! reader that falls behind that is an error and not a silent gap. It knows neither isolation nor fencing: the demo
//! runs at-least-once on it and proves nothing about exactly-once.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use rdkafka::{Offset, TopicPartitionList};

use super::books::{Record, event_id};
use super::reading::{Fleet, SITES};

/// Partitions a topic: enough that order by key is worth proving.
const PARTITIONS: i32 = 3;

/// All brokers of the mock cluster.
const ALL: i32 = -1;

/// How long the reader may take for the rest, once the relay has stopped.
const LAST_PAGES: Duration = Duration::from_secs(15);

/// Kafka topics of the demo.
fn topics() -> [String; 2] {
    SITES.map(|site| format!("sensors.{site}"))
}

/// What Kafka held.
#[derive(Debug, Default)]
pub(super) struct Haul {
    /// In the order of their partitions.
    pub(super) records: Vec<Record>,
    /// Records that no sensor sent, or without their headers.
    pub(super) foreign: u64,
}

/// The stage's own trouble with its Kafka.
#[derive(Debug, thiserror::Error)]
pub(super) enum CentralError {
    /// librdkafka's.
    #[error("the demo's own Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The reader missed something or found no end.
    #[error("the demo's own Kafka could not be read to its end: {0}")]
    Unread(String),
}

/// What the reader and the stage tell each other.
#[derive(Debug, Default)]
struct Signals {
    readings: AtomicU64,
    finish: AtomicBool,
    abandon: AtomicBool,
}

/// The cluster and its reader. Not `Send`, because the cluster is a C pointer: it stays with the stage.
pub(super) struct Central {
    cluster: MockCluster<'static, DefaultProducerContext>,
    signals: Arc<Signals>,
    reader: Option<JoinHandle<Result<Haul, CentralError>>>,
}

impl Central {
    pub(super) fn start(fleet: &Arc<Fleet>) -> Result<Self, CentralError> {
        let cluster = MockCluster::new(1)?;
        for topic in topics() {
            cluster.create_topic(&topic, PARTITIONS, 1)?;
        }
        let signals = Arc::new(Signals::default());
        let reader = Reader::new(&cluster.bootstrap_servers(), Arc::clone(fleet), Arc::clone(&signals))?;
        let thread = std::thread::Builder::new()
            .name("demo-reader".to_owned())
            .spawn(move || reader.run())
            .map_err(|error| CentralError::Unread(error.to_string()))?;
        Ok(Self { cluster, signals, reader: Some(thread) })
    }

    /// `host:port`.
    pub(super) fn address(&self) -> String {
        self.cluster.bootstrap_servers()
    }

    /// Disconnects everybody and refuses connections, the demo's own reader's too.
    pub(super) fn go_away(&self) -> Result<(), CentralError> {
        Ok(self.cluster.broker_down(ALL)?)
    }

    pub(super) fn come_back(&self) -> Result<(), CentralError> {
        Ok(self.cluster.broker_up(ALL)?)
    }

    /// Different readings seen so far.
    pub(super) fn readings(&self) -> u64 {
        self.signals.readings.load(Ordering::Relaxed)
    }

    /// Reads what is left and hands over everything. Nobody writes any more.
    pub(super) async fn finish(mut self) -> Result<Haul, CentralError> {
        self.signals.finish.store(true, Ordering::Relaxed);
        while self.reader.as_ref().is_some_and(|reader| !reader.is_finished()) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let Some(reader) = self.reader.take() else { return Ok(Haul::default()) };
        reader.join().unwrap_or_else(|_| Err(CentralError::Unread("the thread that reads it has ended".to_owned())))
    }
}

impl Drop for Central {
    /// The reader's connections must be gone before the cluster is.
    fn drop(&mut self) {
        self.signals.abandon.store(true, Ordering::Relaxed);
        if let Some(reader) = self.reader.take() {
            // What it says no longer matters: nobody asked it to finish.
            drop(reader.join());
        }
    }
}

struct Reader {
    consumer: BaseConsumer,
    fleet: Arc<Fleet>,
    signals: Arc<Signals>,
    seen: Vec<Vec<bool>>,
    haul: Haul,
}

impl Reader {
    fn new(brokers: &str, fleet: Arc<Fleet>, signals: Arc<Signals>) -> Result<Self, CentralError> {
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "tidegate-demo") // asked for by the library; no group is joined
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "error") // a record that is gone unread must be an error
            .set("fetch.wait.max.ms", "50")
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "250")
            .create()?;
        let mut all = TopicPartitionList::new();
        for topic in topics() {
            for partition in 0..PARTITIONS {
                all.add_partition_offset(&topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&all)?;
        let seen = vec![Vec::new(); fleet.sensors().len()];
        Ok(Self { consumer, fleet, signals, seen, haul: Haul::default() })
    }

    fn run(mut self) -> Result<Haul, CentralError> {
        while !self.signals.finish.load(Ordering::Relaxed) {
            if self.signals.abandon.load(Ordering::Relaxed) {
                return Ok(self.haul);
            }
            self.read_on()?;
        }
        let begun = Instant::now();
        let ends = self.ends()?;
        while !self.reached(&ends)? {
            if begun.elapsed() > LAST_PAGES {
                return Err(CentralError::Unread(format!("its end was not reached after {} s", LAST_PAGES.as_secs())));
            }
            self.read_on()?;
        }
        Ok(self.haul)
    }

    /// What is there now, or what comes within a moment.
    fn read_on(&mut self) -> Result<(), CentralError> {
        let mut patience = Duration::from_millis(50);
        loop {
            let record = match self.consumer.poll(patience) {
                Some(Ok(message)) => record(&self.fleet, &message),
                Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                    return Err(CentralError::Unread("it removed records before they were read".to_owned()));
                }
                // The broker is away; the library comes back by itself.
                Some(Err(_)) | None => return Ok(()),
            };
            self.take_down(record);
            patience = Duration::ZERO;
        }
    }

    fn take_down(&mut self, record: Option<Record>) {
        let Some(record) = record else {
            self.haul.foreign += 1;
            return;
        };
        if let (Some(seen), Ok(n)) = (self.seen.get_mut(record.sensor), usize::try_from(record.n)) {
            if seen.len() <= n {
                seen.resize(n.saturating_add(1), false);
            }
            if let Some(slot) = seen.get_mut(n)
                && !std::mem::replace(slot, true)
            {
                self.signals.readings.fetch_add(1, Ordering::Relaxed);
            }
        }
        self.haul.records.push(record);
    }

    fn ends(&self) -> Result<Vec<(String, i32, i64)>, CentralError> {
        let mut ends = Vec::new();
        for topic in topics() {
            for partition in 0..PARTITIONS {
                let (_low, high) = self.consumer.fetch_watermarks(&topic, partition, Duration::from_secs(5))?;
                ends.push((topic.clone(), partition, high));
            }
        }
        Ok(ends)
    }

    fn reached(&self, ends: &[(String, i32, i64)]) -> Result<bool, CentralError> {
        let position = self.consumer.position()?;
        Ok(ends.iter().all(|(topic, partition, end)| {
            let next = position.find_partition(topic, *partition).and_then(|element| element.offset().to_raw());
            *end == 0 || next.is_some_and(|next| next >= *end)
        }))
    }
}

/// The record as the books want it; `None` when it is not one of ours.
fn record(fleet: &Fleet, message: &BorrowedMessage<'_>) -> Option<Record> {
    let headers = message.headers()?;
    let header = |name: &str| headers.iter().find(|header| header.key == name).and_then(|header| header.value);
    let id = event_id(header("tidegate-id")?)?;
    let topic = std::str::from_utf8(header("mqtt-topic")?).ok()?;
    let (sensor, n) = fleet.recognise(topic, message.payload()?)?;
    let site = topics().iter().position(|topic| topic == message.topic())?;
    let partition =
        u32::try_from(site).ok()?.checked_mul(1000)?.checked_add(u32::try_from(message.partition()).ok()?)?;
    Some(Record { sensor, n, id, partition })
}

#[cfg(test)]
mod tests {
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use uuid::Uuid;

    use super::*;

    fn produce(producer: &BaseProducer, topic: &str, id: &str, mqtt_topic: &str, payload: &str) {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "tidegate-id", value: Some(id) })
            .insert(Header { key: "mqtt-topic", value: Some(mqtt_topic) });
        let record = BaseRecord::to(topic).key(mqtt_topic).payload(payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    fn finish(central: Central) -> Haul {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(central.finish()).unwrap()
    }

    fn producer(central: &Central) -> BaseProducer {
        ClientConfig::new()
            .set("bootstrap.servers", central.address())
            .set("enable.idempotence", "true")
            .set("reconnect.backoff.max.ms", "250")
            .create()
            .unwrap()
    }

    #[test]
    fn what_is_written_is_read_to_its_end_through_an_outage() {
        let fleet = Arc::new(Fleet::new(2));
        let sensor = fleet.sensors()[1].clone();
        let central = Central::start(&fleet).unwrap();
        let producer = producer(&central);
        let buffer = Uuid::from_u128(1);
        for n in 1..=50 {
            produce(&producer, "sensors.north", &format!("{buffer}:{n}"), &sensor.topic, &sensor.payload(n));
        }
        producer.flush(Duration::from_secs(20)).unwrap();
        central.go_away().unwrap();
        for n in 51..=100 {
            produce(&producer, "sensors.north", &format!("{buffer}:{n}"), &sensor.topic, &sensor.payload(n));
        }
        central.come_back().unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
        let haul = finish(central);
        let mut counters: Vec<u64> = haul.records.iter().map(|record| record.n).collect();
        counters.dedup();
        assert_eq!(counters, (1..=100).collect::<Vec<u64>>());
        assert_eq!(haul.foreign, 0);
    }

    #[test]
    fn a_record_without_headers_or_with_another_payload_is_foreign() {
        let fleet = Arc::new(Fleet::new(1));
        let sensor = fleet.sensors()[0].clone();
        let central = Central::start(&fleet).unwrap();
        let producer = producer(&central);
        produce(&producer, "sensors.north", "no id", &sensor.topic, &sensor.payload(1));
        produce(&producer, "sensors.north", &format!("{}:1", Uuid::nil()), &sensor.topic, "{}");
        producer.send(BaseRecord::<(), _>::to("sensors.south").payload("bare")).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
        let haul = finish(central);
        assert_eq!((haul.foreign, haul.records.len()), (3, 0));
    }
}
