//! What Kafka holds: the oracle's eyes. Reads from the beginning, everything, without any help from the agent.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::admin::{AdminClient, AdminOptions, AlterConfig, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::client::DefaultClientContext;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use rdkafka::{ClientContext, Offset, TopicPartitionList};

use super::{Outcome, PATIENCE, Trouble, trouble};

/// A record as it lies in Kafka.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub topic: String,
    pub partition: i32,
    pub offset: i64,
    pub timestamp_ms: Option<i64>,
    pub key: Option<Vec<u8>>,
    /// `None` is told apart from empty.
    pub has_payload: bool,
    pub payload: Vec<u8>,
    pub headers: Vec<(String, Vec<u8>)>,
}

impl Record {
    /// The first header of that name.
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(found, _)| found == name).map(|(_, value)| value.as_slice())
    }

    /// The header as text; empty when it is not there.
    pub fn text(&self, name: &str) -> String {
        String::from_utf8_lossy(self.header(name).unwrap_or_default()).into_owned()
    }

    /// Buffer id and sequence out of `tidegate-id`.
    pub fn id(&self) -> Option<(String, u64)> {
        let text = self.text("tidegate-id");
        let (buffer, sequence) = text.rsplit_once(':')?;
        Some((buffer.to_owned(), sequence.parse().ok()?))
    }

    /// The MQTT topic it was published to.
    pub fn mqtt_topic(&self) -> String {
        self.text("mqtt-topic")
    }
}

/// Reads topics from their beginning.
pub struct Reader {
    consumer: BaseConsumer,
    /// The next offset of each partition.
    next: BTreeMap<(String, i32), i64>,
    records: Vec<Record>,
    isolation: Isolation,
}

/// What a reader sees of transactions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Isolation {
    /// Everything.
    Uncommitted,
    /// What is committed. The markers of transactions take offsets that no reader sees, so the end of a partition is not
    /// a record: it is reached when nothing more comes.
    Committed,
}

/// Shall every scenario run with transactions?
pub fn transactions_are_asked_for() -> bool {
    std::env::var("TIDEGATE_DELIVERY").is_ok_and(|delivery| delivery == "exactly-once")
}

/// A reader of what is committed is at the end when nothing has come for so long.
const SILENCE: Duration = Duration::from_millis(700);

impl Reader {
    /// Of all partitions of these topics, which must exist.
    pub fn open(brokers: &str, topics: &[&str]) -> Outcome<Self> {
        let all = if transactions_are_asked_for() { Isolation::Committed } else { Isolation::Uncommitted };
        Self::with(brokers, topics, all)
    }

    /// The same, as a consumer with `isolation.level=read_committed` sees it.
    pub fn committed(brokers: &str, topics: &[&str]) -> Outcome<Self> {
        Self::with(brokers, topics, Isolation::Committed)
    }

    /// Everything, what is not committed as well.
    pub fn uncommitted(brokers: &str, topics: &[&str]) -> Outcome<Self> {
        Self::with(brokers, topics, Isolation::Uncommitted)
    }

    fn with(brokers: &str, topics: &[&str], isolation: Isolation) -> Outcome<Self> {
        let level = if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
        let consumer: BaseConsumer = ClientConfig::new()
            .set("bootstrap.servers", brokers)
            .set("group.id", "oracle")
            .set("enable.auto.commit", "false")
            .set("auto.offset.reset", "earliest")
            .set("isolation.level", level)
            .set("fetch.wait.max.ms", "20")
            .set("reconnect.backoff.max.ms", "500")
            .set("check.crcs", "true")
            .create()?;
        let mut next = BTreeMap::new();
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            for partition in partitions(&consumer, topic)? {
                next.insert(((*topic).to_owned(), partition), 0);
                assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, next, records: Vec::new(), isolation })
    }

    /// Does a broker answer, with itself in its answer?
    pub fn probe(brokers: &str, limit: Duration) -> Outcome<()> {
        if Self::brokers(brokers, limit)? == 0 { trouble!("no broker in the metadata") } else { Ok(()) }
    }

    /// How many brokers this one knows.
    pub fn brokers(brokers: &str, limit: Duration) -> Outcome<usize> {
        let consumer: BaseConsumer =
            ClientConfig::new().set("bootstrap.servers", brokers).set("log_level", "0").create()?;
        Ok(consumer.fetch_metadata(None, limit)?.brokers().len())
    }

    /// Everything that the topics hold now.
    pub fn read_all(&mut self) -> Outcome<&[Record]> {
        let mut ends = BTreeMap::new();
        for (topic, partition) in self.next.keys() {
            // A broker that has just been killed is asked again, or the one that follows it.
            let ask = || self.consumer.fetch_watermarks(topic, *partition, Duration::from_secs(10)).ok();
            let (_, end) = super::wait_for("the end of a partition", PATIENCE, ask)?;
            ends.insert((topic.clone(), *partition), end);
        }
        let limit = Instant::now() + PATIENCE;
        let mut came = Instant::now();
        while ends.iter().any(|(partition, end)| self.next.get(partition).is_some_and(|next| next < end)) {
            if Instant::now() > limit {
                return trouble!("Kafka did not hand out what it holds: {:?} of {ends:?}", self.next);
            }
            let before = self.records.len();
            self.poll(Duration::from_millis(100));
            if self.records.len() > before {
                came = Instant::now();
            } else if self.isolation == Isolation::Committed && came.elapsed() > SILENCE {
                break;
            }
        }
        Ok(&self.records)
    }

    /// Reads until the question is answered with yes; then goes on to the end of what is there.
    pub fn read_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut enough: impl FnMut(&[Record]) -> bool,
    ) -> Outcome<&[Record]> {
        let end = Instant::now() + limit;
        while !enough(&self.records) {
            if Instant::now() > end {
                return trouble!("waited {limit:?} in vain for: {what} ({} records came)", self.records.len());
            }
            let before = self.records.len();
            self.poll(Duration::from_millis(50));
            // Questions cost time: many records are read before the next one.
            while self.records.len() > before && self.records.len() < before + 5_000 {
                let count = self.records.len();
                self.poll(Duration::ZERO);
                if self.records.len() == count {
                    break;
                }
            }
        }
        self.read_all()
    }

    /// Reads until there are that many records.
    pub fn read_count(&mut self, count: usize, limit: Duration) -> Outcome<&[Record]> {
        self.read_until(&format!("{count} records"), limit, |records| records.len() >= count)
    }

    /// What was read until now.
    pub fn records(&self) -> &[Record] {
        &self.records
    }

    fn poll(&mut self, limit: Duration) {
        match self.consumer.poll(limit) {
            None => {}
            Some(Ok(message)) => {
                let record = copy(&message);
                self.next.insert((record.topic.clone(), record.partition), record.offset + 1);
                self.records.push(record);
            }
            // The broker is being restarted, or the like: the limits of the callers decide.
            Some(Err(_)) => std::thread::sleep(Duration::from_millis(20)),
        }
    }
}

fn partitions(consumer: &BaseConsumer, topic: &str) -> Outcome<Vec<i32>> {
    let metadata = consumer.fetch_metadata(Some(topic), PATIENCE)?;
    let found = metadata.topics().iter().find(|found| found.name() == topic && found.error().is_none());
    match found {
        Some(found) => Ok(found.partitions().iter().map(rdkafka::metadata::MetadataPartition::id).collect()),
        None => trouble!("no topic {topic}"),
    }
}

fn copy(message: &BorrowedMessage<'_>) -> Record {
    let headers = message.headers().map_or_else(Vec::new, |headers| {
        headers.iter().map(|h| (h.key.to_owned(), h.value.unwrap_or_default().to_vec())).collect()
    });
    Record {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        timestamp_ms: message.timestamp().to_millis(),
        key: message.key().map(<[u8]>::to_vec),
        has_payload: message.payload().is_some(),
        payload: message.payload().unwrap_or_default().to_vec(),
        headers,
    }
}

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
