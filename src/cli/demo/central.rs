//! The central Kafka on stage: librdkafka's in-process mock cluster, and a reader that takes down what it holds.
//!
//! The cluster has one broker in this process, on a loopback port of its own, and speaks Kafka's real protocol to the
//! relay, which is another process. It keeps 5 MiB or 100,000 batches a partition, so it is read while it runs, and a
//! reader that falls behind that is an error and not a silent gap. It knows neither isolation nor fencing: the demo
//! runs at-least-once on it and proves nothing about exactly-once.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rdkafka::error::KafkaError;
use rdkafka::mocking::MockCluster;
use rdkafka::producer::DefaultProducerContext;
use test_kit::Trouble;
use test_kit::books::Ledger;
use test_kit::publisher::Plan;
use test_kit::reader::{Feed, Isolation, Onlooker};

use super::fleet::topics;

/// Partitions a topic: enough that order by key is worth proving.
const PARTITIONS: i32 = 3;

/// All brokers of the mock cluster.
const ALL: i32 = -1;

/// The reader is back at once when the cluster is, and a record that is gone unread must be an error.
const READER: [(&str, &str); 4] = [
    ("auto.offset.reset", "error"),
    ("fetch.wait.max.ms", "50"),
    ("reconnect.backoff.ms", "50"),
    ("reconnect.backoff.max.ms", "250"),
];

/// The stage's own trouble with its Kafka.
#[derive(Debug, thiserror::Error)]
pub(super) enum CentralError {
    /// librdkafka's.
    #[error("the demo's own Kafka: {0}")]
    Kafka(#[from] KafkaError),
    /// The reader missed something or found no end.
    #[error("the demo's own Kafka could not be read to its end: {0}")]
    Unread(Trouble),
}

/// The cluster and its reader. Not `Send`, because the cluster is a C pointer: it stays with the stage.
pub(super) struct Central {
    /// Above the cluster: dropped before it, with its connections.
    reader: Onlooker<Ledger>,
    cluster: MockCluster<'static, DefaultProducerContext>,
    readings: Arc<AtomicU64>,
}

impl Central {
    /// Whatever sensors with these plans publish is known.
    pub(super) fn start(plans: &[Plan]) -> Result<Self, CentralError> {
        let cluster = MockCluster::new(1)?;
        let topics = topics();
        for topic in &topics {
            cluster.create_topic(topic, PARTITIONS, 1)?;
        }
        let topics: Vec<&str> = topics.iter().map(String::as_str).collect();
        let feed = Feed::open(&cluster.bootstrap_servers(), &topics, Isolation::Uncommitted, &READER)
            .map_err(CentralError::Unread)?;
        let readings = Arc::<AtomicU64>::default();
        let seen = Arc::clone(&readings);
        let reader = Onlooker::start(feed, Ledger::new(plans.to_vec()), move |ledger, record| {
            ledger.enter(&record);
            seen.store(ledger.readings(), Ordering::Relaxed);
        });
        Ok(Self { reader, cluster, readings })
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
        self.readings.load(Ordering::Relaxed)
    }

    /// Reads what is left and hands over everything. Nobody writes any more.
    pub(super) async fn finish(self) -> Result<Ledger, CentralError> {
        self.reader.finish();
        while !self.reader.has_ended() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        self.reader.end().map_err(CentralError::Unread)
    }
}

#[cfg(test)]
mod tests {
    use rdkafka::config::ClientConfig;
    use rdkafka::message::{Header, OwnedHeaders};
    use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
    use test_kit::books::Books;
    use test_kit::publisher::Log;
    use uuid::Uuid;

    use super::super::fleet::plans;
    use super::*;

    fn produce(producer: &BaseProducer, id: &str, plan: &Plan, payload: &[u8]) {
        let headers = OwnedHeaders::new()
            .insert(Header { key: "tidegate-id", value: Some(id) })
            .insert(Header { key: "mqtt-topic", value: Some(plan.topic(0)) });
        let record = BaseRecord::to("sensors.north").key(plan.topic(0)).payload(payload).headers(headers);
        producer.send(record).map_err(|(error, _)| error).unwrap();
    }

    fn finish(central: Central, logs: &[Log]) -> Books {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
        runtime.block_on(central.finish()).unwrap().close(logs)
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
        let plans = plans(2, 1);
        let plan = &plans[1];
        let central = Central::start(&plans).unwrap();
        let producer = producer(&central);
        let buffer = Uuid::from_u128(1);
        for n in 0..50 {
            produce(&producer, &format!("{buffer}:{}", n + 1), plan, &plan.payload(n));
        }
        producer.flush(Duration::from_secs(20)).unwrap();
        central.go_away().unwrap();
        for n in 50..100 {
            produce(&producer, &format!("{buffer}:{}", n + 1), plan, &plan.payload(n));
        }
        central.come_back().unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
        let log = Log::all_acknowledged(plan.clone(), 100);
        finish(central, &[log]).at_least_once().unwrap();
    }

    #[test]
    fn a_record_without_headers_or_with_another_payload_is_foreign() {
        let plans = plans(1, 1);
        let plan = &plans[0];
        let central = Central::start(&plans).unwrap();
        let producer = producer(&central);
        produce(&producer, "no id", plan, &plan.payload(1));
        produce(&producer, &format!("{}:1", Uuid::nil()), plan, b"{}");
        producer.send(BaseRecord::<(), _>::to("sensors.south").payload("bare")).map_err(|(error, _)| error).unwrap();
        producer.flush(Duration::from_secs(20)).unwrap();
        let books = finish(central, &[Log::all_acknowledged(plan.clone(), 2)]);
        assert_eq!((books.foreign, books.bad_ids, books.delivered), (2, 1, 0));
    }
}
