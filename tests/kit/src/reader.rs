//! What Kafka holds: the oracle's eyes. Reads from the beginning, everything, without any help from the agent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Headers, Message};
use rdkafka::{Offset, TopicPartitionList};

use crate::{Outcome, PATIENCE, Trouble, trouble, wait_for};

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

/// Records one by one, from the beginning of each partition.
pub struct Feed {
    consumer: BaseConsumer,
    /// The next offset of each partition.
    next: Ends,
    isolation: Isolation,
}

/// An offset of each partition.
type Ends = BTreeMap<(String, i32), i64>;

impl Feed {
    /// Of all partitions of these topics, which must exist; with these properties of a consumer besides.
    pub fn open(brokers: &str, topics: &[&str], isolation: Isolation, properties: &[(&str, &str)]) -> Outcome<Self> {
        let level = if isolation == Isolation::Committed { "read_committed" } else { "read_uncommitted" };
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", brokers).set("isolation.level", level);
        for (name, value) in PROPERTIES.iter().chain(properties) {
            config.set(*name, *value);
        }
        let consumer: BaseConsumer = config.create()?;
        let mut next = Ends::new();
        let mut assignment = TopicPartitionList::new();
        for topic in topics {
            for partition in partitions(&consumer, topic)? {
                next.insert(((*topic).to_owned(), partition), 0);
                assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
            }
        }
        consumer.assign(&assignment)?;
        Ok(Self { consumer, next, isolation })
    }

    /// The next record, if one comes in time.
    pub fn next(&mut self, limit: Duration) -> Outcome<Option<Record>> {
        match self.consumer.poll(limit) {
            None => Ok(None),
            Some(Ok(message)) => {
                let record = copy(&message);
                self.next.insert((record.topic.clone(), record.partition), record.offset + 1);
                Ok(Some(record))
            }
            // With `auto.offset.reset=error` alone.
            Some(Err(KafkaError::MessageConsumption(RDKafkaErrorCode::AutoOffsetReset))) => {
                trouble!("Kafka forgot records before they were read: {:?} were the next ones", self.next)
            }
            // The broker is being restarted, or the like: the limits of the callers decide.
            Some(Err(_)) => {
                std::thread::sleep(Duration::from_millis(20));
                Ok(None)
            }
        }
    }

    /// Everything that the topics hold now.
    pub fn read_to_end(&mut self, mut see: impl FnMut(Record)) -> Outcome<()> {
        let ends = self.ends()?;
        let limit = Instant::now() + PATIENCE;
        let mut came = Instant::now();
        while ends.iter().any(|(partition, end)| self.next.get(partition).is_some_and(|next| next < end)) {
            if Instant::now() > limit {
                return trouble!("Kafka did not hand out what it holds: {:?} of {ends:?}", self.next);
            }
            if let Some(record) = self.next(Duration::from_millis(100))? {
                see(record);
                came = Instant::now();
            } else if self.isolation == Isolation::Committed && came.elapsed() > SILENCE {
                break;
            }
        }
        Ok(())
    }

    fn ends(&self) -> Outcome<Ends> {
        let mut ends = Ends::new();
        for (topic, partition) in self.next.keys() {
            // A broker that has just been killed is asked again, or the one that follows it.
            let ask = || self.consumer.fetch_watermarks(topic, *partition, Duration::from_secs(10)).ok();
            let (_, end) = wait_for("the end of a partition", PATIENCE, ask)?;
            ends.insert((topic.clone(), *partition), end);
        }
        Ok(ends)
    }
}

/// Of every consumer here: no group is joined, though the library asks for its name.
const PROPERTIES: [(&str, &str); 6] = [
    ("group.id", "oracle"),
    ("enable.auto.commit", "false"),
    ("auto.offset.reset", "earliest"),
    ("fetch.wait.max.ms", "20"),
    ("reconnect.backoff.max.ms", "500"),
    ("check.crcs", "true"),
];

/// Reads topics from their beginning, and keeps what it has read.
pub struct Reader {
    feed: Feed,
    records: Vec<Record>,
}

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
        Ok(Self { feed: Feed::open(brokers, topics, isolation, &[])?, records: Vec::new() })
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
        self.feed.read_to_end(|record| self.records.push(record))?;
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
            // Questions cost time: many records are read before the next one.
            let (most, mut limit) = (self.records.len() + 5_000, Duration::from_millis(50));
            while self.records.len() < most
                && let Some(record) = self.feed.next(limit)?
            {
                self.records.push(record);
                limit = Duration::ZERO;
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

/// Looks on in a thread of its own while something happens, and gives each record away. Dropped, it stops at once.
pub struct Onlooker<T> {
    orders: Arc<Orders>,
    thread: Option<JoinHandle<Outcome<T>>>,
}

#[derive(Default)]
struct Orders {
    /// Read what is there, and end.
    finish: AtomicBool,
    /// Nobody waits for it any more.
    abandon: AtomicBool,
}

impl<T: Send + 'static> Onlooker<T> {
    /// Shows each record to `see`, with what it has made of the earlier ones.
    pub fn start(mut feed: Feed, mut seen: T, mut see: impl FnMut(&mut T, Record) + Send + 'static) -> Self {
        let orders = Arc::<Orders>::default();
        let told = Arc::clone(&orders);
        let thread = std::thread::spawn(move || {
            while !told.finish.load(Ordering::Relaxed) && !told.abandon.load(Ordering::Relaxed) {
                if let Some(record) = feed.next(Duration::from_millis(50))? {
                    see(&mut seen, record);
                }
            }
            if !told.abandon.load(Ordering::Relaxed) {
                feed.read_to_end(|record| see(&mut seen, record))?;
            }
            Ok(seen)
        });
        Self { orders, thread: Some(thread) }
    }

    /// Shall read what is there and end; for who waits in a way of his own.
    pub fn finish(&self) {
        self.orders.finish.store(true, Ordering::Relaxed);
    }

    /// Has it ended?
    pub fn has_ended(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// Reads what is there; what was made of all records.
    pub fn end(mut self) -> Outcome<T> {
        self.finish();
        let thread = self.thread.take().ok_or_else(|| Trouble::new("the onlooker has ended"))?;
        thread.join().map_err(|_panicked| Trouble::new("the onlooker panicked"))?
    }
}

impl<T> Drop for Onlooker<T> {
    fn drop(&mut self) {
        self.orders.abandon.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // What it says no longer matters: nobody has asked it to finish.
            drop(thread.join());
        }
    }
}

/// The partitions of a topic, which must exist.
pub fn partitions(consumer: &BaseConsumer, topic: &str) -> Outcome<Vec<i32>> {
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
