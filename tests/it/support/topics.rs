//! Topics and what lies in them, as operators and strangers make them.

use std::time::Duration;

use rdkafka::ClientContext;
use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::BaseConsumer;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};

use super::reader::partitions;
use super::{Outcome, PATIENCE, Trouble, trouble};

/// Creates a topic and waits until its partitions have a leader.
pub fn create_topic(brokers: &str, topic: &str, partitions: i32, settings: &[(&str, &str)]) -> Outcome<()> {
    create_replicated_topic(brokers, topic, partitions, 1, settings)
}

/// The same with more than one replica.
pub fn create_replicated_topic(
    brokers: &str,
    topic: &str,
    partitions: i32,
    replicas: i32,
    settings: &[(&str, &str)],
) -> Outcome<()> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let mut new = NewTopic::new(topic, partitions, TopicReplication::Fixed(replicas));
    for (key, value) in settings {
        new = new.set(key, value);
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let results = runtime.block_on(admin.create_topics([&new], &AdminOptions::new()))?;
    for result in results {
        result.map_err(|(topic, code)| Trouble::new(format!("create {topic}: {code}")))?;
    }
    let has_leaders = || {
        let metadata = admin.inner().fetch_metadata(Some(topic), Duration::from_secs(5)).ok()?;
        let found = metadata.topics().first()?;
        let led = found.partitions().iter().filter(|partition| partition.leader() > 0).count();
        (found.error().is_none() && led as i32 == partitions).then_some(())
    };
    super::wait_for("leaders of a new topic", PATIENCE, has_leaders)
}

fn admin<T>(
    brokers: &str,
    work: impl AsyncFnOnce(&AdminClient<DefaultClientContext>) -> Result<T, rdkafka::error::KafkaError>,
) -> Outcome<T> {
    let admin: AdminClient<DefaultClientContext> = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    Ok(runtime.block_on(work(&admin))?)
}

/// Deletes a topic, and waits until nobody knows it any more.
pub fn delete_topic(brokers: &str, topic: &str) -> Outcome<()> {
    admin(brokers, async |admin| admin.delete_topics(&[topic], &AdminOptions::new()).await)?;
    let consumer: BaseConsumer = ClientConfig::new().set("bootstrap.servers", brokers).create()?;
    super::wait_until("the end of a topic", PATIENCE, || partitions(&consumer, topic).is_err())
}

/// The `cleanup.policy` of a topic.
pub fn policy(brokers: &str, topic: &str) -> Outcome<String> {
    let found = admin(brokers, async |admin| {
        admin.describe_configs(&[ResourceSpecifier::Topic(topic)], &AdminOptions::new()).await
    })?;
    let resource = found.into_iter().next().and_then(Result::ok);
    let value = resource.and_then(|resource| resource.get("cleanup.policy").and_then(|entry| entry.value.clone()));
    value.ok_or_else(|| Trouble::new(format!("{topic} has no cleanup.policy")))
}

/// Sets the `cleanup.policy` of a topic.
pub fn set_policy(brokers: &str, topic: &str, policy: &str) -> Outcome<()> {
    let change = AlterConfig::new(ResourceSpecifier::Topic(topic)).set("cleanup.policy", policy);
    admin(brokers, async |admin| admin.alter_configs(&[change], &AdminOptions::new()).await).map(|_results| ())
}

/// A transaction with a record in partition 0 of a topic, which stays open.
pub struct OpenTransaction(BaseProducer);

impl OpenTransaction {
    /// Opens it.
    pub fn begin(brokers: &str, topic: &str) -> Outcome<Self> {
        let producer: BaseProducer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("transactional.id", format!("other-{topic}"))
            .set("transaction.timeout.ms", "60000")
            .create()?;
        producer.init_transactions(PATIENCE)?;
        producer.begin_transaction()?;
        let record = BaseRecord::<str, str>::to(topic).partition(0).key("other").payload("{}");
        producer.send(record).map_err(|(error, _)| error)?;
        producer.flush(PATIENCE)?;
        Ok(Self(producer))
    }

    /// Ends it without a trace.
    pub fn abort(self) -> Outcome<()> {
        Ok(self.0.abort_transaction(PATIENCE)?)
    }
}

/// What became of the records that [`produce`] sent.
#[derive(Default)]
struct Reports(std::sync::Mutex<Vec<Result<(), String>>>);

impl ClientContext for Reports {}

impl ProducerContext for Reports {
    type DeliveryOpaque = ();

    fn delivery(&self, result: &DeliveryResult<'_>, (): ()) {
        let report = result.as_ref().map(|_| ()).map_err(|(error, _)| error.to_string());
        if let Ok(mut reports) = self.0.lock() {
            reports.push(report);
        }
    }
}

/// Puts records into a topic, as keys and payloads.
pub fn produce(brokers: &str, topic: &str, records: &[(&[u8], &[u8])]) -> Outcome<()> {
    produce_all(brokers, topic, records.iter().map(|(key, payload)| BaseRecord::to(topic).key(*key).payload(*payload)))
}

/// A record that bears that time.
pub fn produce_at(brokers: &str, topic: &str, at_ms: i64) -> Outcome<()> {
    produce_all(brokers, topic, std::iter::once(BaseRecord::to(topic).key(&b""[..]).payload(&b""[..]).timestamp(at_ms)))
}

fn produce_all<'a>(
    brokers: &str,
    topic: &str,
    records: impl ExactSizeIterator<Item = BaseRecord<'a, [u8], [u8]>>,
) -> Outcome<()> {
    let count = records.len();
    let producer: BaseProducer<Reports> = ClientConfig::new()
        .set("bootstrap.servers", brokers)
        .set("message.timeout.ms", "5000")
        .set("log_level", "0")
        .create_with_context(Reports::default())?;
    for record in records {
        producer.send(record).map_err(|(error, _)| error)?;
    }
    producer.flush(PATIENCE)?;
    let reports = producer.context().0.lock()?;
    match reports.iter().find_map(|report| report.as_ref().err()) {
        Some(error) => trouble!("{topic}: {error}"),
        None if reports.len() == count => Ok(()),
        None => trouble!("{} reports for {count} records", reports.len()),
    }
}
