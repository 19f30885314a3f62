//! Reading the watermark: what Kafka holds of it, after a start, a lost producer or an unknown outcome.
//!
//! It blocks for as long as a link or another gateway takes, so it has a thread of its own, which ends when it has an
//! answer or when nobody waits for it any more.
//!
//! # The stable read
//!
//! A `read_committed` reader sees only up to the last *stable* offset, and a transaction that another gateway holds open
//! keeps that offset down. Going on from what can be seen then repeats what was committed behind it (3 of 3 runs). So:
//!
//! 1. the producer has called `init_transactions`: what it had left open is over. Meanwhile the consumers connect, which
//!    takes as long as the rest;
//! 2. the end of our partition, by a `read_uncommitted` consumer;
//! 3. wait until the stable offset, by the `read_committed` one, has reached that end;
//! 4. read, newest block first (`backwards.rs`), until all that is asked for is known.
//!
//! # On a narrow link
//!
//! Reading is bounded by bytes: one small fetch at a time, and none ahead of what is heard. What was read stays read when a
//! try comes to nothing, and each try that does gives the next one twice the time. Silence is told by what arrives: a fetch
//! takes half a minute at 9,600 bit/s.

mod backwards;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use rdkafka::consumer::{BaseConsumer, Consumer as _};
use rdkafka::error::KafkaError;
use rdkafka::types::RDKafkaErrorCode as Code;
use rdkafka::{ClientConfig, Offset, TopicPartitionList};
use uuid::Uuid;

use self::backwards::Backwards;
pub(super) use self::backwards::FoundWatermarks;
use super::clients::{ClientSlot, Wake};
use super::watermark_topic::{self, Partitions, TopicError};
use crate::delivered::CommittedReader;
use crate::planted::{Bug, planted};
use crate::retry::Backoff;
use crate::watermark;

/// One question to a broker waits so long in the first try, twice as long in each that follows one that came to nothing, and
/// at most [`LONGEST_ASK`]. With a new connection it takes five round trips; one may take 2 s.
const ASK: Duration = Duration::from_secs(20);
const LONGEST_ASK: Duration = Duration::from_secs(60);

/// How often the stable offset is looked at while another gateway's transaction is open.
const LOOK: Duration = Duration::from_millis(200);

/// How often who is connected looks whether the producer is registered.
const GLANCE: Duration = Duration::from_millis(10);

/// Who has waited for that longer than this, or than it took to connect, begins anew: the link may have gone meanwhile, and
/// a client that comes back from its own back-off is later than a new one.
const FRESH: Duration = Duration::from_secs(5);

/// One fetch. What is read beyond a block is less than this.
const FETCH_BYTES: &str = "32768";

/// A read without any record or end for so long is begun again, where it was: twice what a fetch takes at 9,600 bit/s.
const SILENCE: Duration = Duration::from_secs(60);

/// What is asked for.
#[derive(Debug, Clone)]
pub(super) struct Question {
    /// For a consumer.
    pub(super) config: ClientConfig,
    /// The watermark topic.
    pub(super) topic: Arc<str>,
    /// Whose.
    pub(super) buffer_id: Uuid,
    /// Kafka topics whose lanes hold events.
    pub(super) lanes: Vec<Arc<str>>,
    /// The topic was found to be compacted before.
    pub(super) topic_is_right: Arc<AtomicBool>,
}

/// A read that is under way.
#[derive(Debug)]
pub(super) struct WatermarkReader {
    answer: mpsc::Receiver<FoundWatermarks>,
    line: Arc<Line>,
}

/// Between the thread and who waits for it.
#[derive(Debug, Default)]
struct Line {
    given_up: AtomicBool,
    /// The producer has called `init_transactions`.
    registered: AtomicBool,
    trouble: Mutex<Trouble>,
}

/// What is in the way of an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Trouble {
    /// In words; empty when nothing is.
    pub(super) why: String,
    /// Somebody must set the watermark topic right; waiting does not help.
    pub(super) topic_unusable: bool,
    /// It is another gateway's transaction.
    pub(super) another_gateway: bool,
}

impl WatermarkReader {
    /// Begins: connects, and reads when the producer is registered. When the system gives no thread, the answer never
    /// comes, and the trouble says so.
    pub(super) fn begin(question: Question, slot: ClientSlot, wake: Wake) -> Self {
        let (sender, answer) = mpsc::channel();
        let line = Arc::new(Line::default());
        let theirs = Arc::clone(&line);
        let thread = thread::Builder::new().name("watermark".to_owned()).spawn(move || {
            if let Some(found) = until_answered(&question, &theirs) {
                // Who does not wait any more does not need it.
                sender.send(found).unwrap_or_default();
                wake.wake();
            }
            // Its consumers are destroyed, however long that took.
            drop(slot);
        });
        if let Err(error) = thread {
            line.say(format!("a thread cannot be started: {error}"));
        }
        Self { answer, line }
    }

    /// What an earlier producer had left open is over: now the watermark may be read.
    pub(super) fn registered(&self) {
        self.line.registered.store(true, Ordering::Release);
    }

    /// The answer, once it is there.
    pub(super) fn answer(&self) -> Option<FoundWatermarks> {
        self.answer.try_recv().ok()
    }

    /// What is in the way.
    pub(super) fn trouble(&self) -> Trouble {
        self.line.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for WatermarkReader {
    fn drop(&mut self) {
        self.line.given_up.store(true, Ordering::Relaxed);
    }
}

impl Line {
    fn say(&self, why: String) {
        self.tell(Trouble { why, ..Trouble::default() });
    }

    fn tell(&self, trouble: Trouble) {
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }

    fn given_up(&self) -> bool {
        self.given_up.load(Ordering::Relaxed)
    }

    /// Waits until the producer is registered; false when nobody waits any more.
    fn until_registered(&self) -> bool {
        while !self.registered.load(Ordering::Acquire) {
            if self.given_up() {
                return false;
            }
            thread::sleep(GLANCE);
        }
        !self.given_up()
    }

    /// Sleeps in short steps; false when nobody waits any more.
    fn sleep(&self, time: Duration) -> bool {
        let end = Instant::now().checked_add(time);
        while end.is_some_and(|end| Instant::now() < end) {
            if self.given_up() {
                return false;
            }
            thread::sleep(LOOK.min(time));
        }
        !self.given_up()
    }
}

fn until_answered(question: &Question, line: &Line) -> Option<FoundWatermarks> {
    let (mut backoff, mut ask) = (Backoff::new(), ASK);
    let mut backwards = Backwards::new(question.lanes.clone());
    loop {
        match read(question, &mut backwards, ask, line) {
            Ok(found) => return Some(found),
            Err(ReadError::GivenUp) => return None,
            Err(ReadError::Stale) => continue,
            Err(ReadError::Topic(TopicError::Kafka(error))) => {
                line.say(format!("Kafka does not answer about the watermark topic: {error}"));
            }
            Err(ReadError::Topic(error)) => {
                // A partition gets its leader back without a person, as a rule.
                let topic_unusable = !matches!(error, TopicError::Leaderless { .. });
                line.tell(Trouble { why: error.to_string(), topic_unusable, another_gateway: false });
            }
            Err(ReadError::Kafka(error)) => line.say(format!("the watermark cannot be read: {error}")),
            Err(ReadError::Silence) => line.say("the watermark cannot be read: no answer".to_owned()),
            Err(ReadError::System(error)) => line.say(format!("the watermark cannot be read: {error}")),
        }
        ask = (ask * 2).min(LONGEST_ASK);
        if !line.sleep(backoff.next_wait()) {
            return None;
        }
    }
}

#[derive(Debug)]
enum ReadError {
    GivenUp,
    /// The consumers are too old.
    Stale,
    Silence,
    Topic(TopicError),
    Kafka(KafkaError),
    /// No thread.
    System(std::io::Error),
}

impl From<std::io::Error> for ReadError {
    fn from(error: std::io::Error) -> Self {
        Self::System(error)
    }
}

impl From<KafkaError> for ReadError {
    fn from(error: KafkaError) -> Self {
        Self::Kafka(error)
    }
}

impl From<TopicError> for ReadError {
    fn from(error: TopicError) -> Self {
        Self::Topic(error)
    }
}

fn read(
    question: &Question,
    backwards: &mut Backwards,
    ask: Duration,
    line: &Line,
) -> Result<FoundWatermarks, ReadError> {
    let began = Instant::now();
    let mut config = question.config.clone();
    // Only assigned partitions are read: the group is a name that librdkafka wants, and never joins.
    config.set("group.id", format!("tidegate-{}", question.buffer_id));
    config.set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
    config.set("enable.partition.eof", "true").set("auto.offset.reset", "error");
    // What is there is wanted at once.
    config.set("fetch.wait.max.ms", "50");
    // What is fetched and not needed still goes over the link: little at a time, and nothing ahead.
    config.set("max.partition.fetch.bytes", FETCH_BYTES).set("queued.min.messages", "1");
    config.set("fetch.queue.backoff.ms", "5");

    let committed_reader = CommittedReader::new(config.clone())?;
    let everyone: BaseConsumer = config.set("isolation.level", "read_uncommitted").create()?;
    let (partitions, partition) = thread::scope(|scope| {
        let spawn = |name: &str| thread::Builder::new().name(name.to_owned());
        let place = spawn("watermark end").spawn_scoped(scope, || find_place(question, &everyone, ask, line))?;
        let policy = spawn("watermark topic").spawn_scoped(scope, || check_once(question, ask))?;
        // Only to be connected when the others are there: on a long link that takes as long as all the rest.
        drop(committed_reader.consumer().fetch_metadata(Some(&question.topic), ask));
        policy.join().map_err(|_panicked| ReadError::Silence)??;
        place.join().map_err(|_panicked| ReadError::Silence)?
    })?;
    let (waits_since, connecting) = (Instant::now(), began.elapsed());
    if !line.until_registered() {
        return Err(ReadError::GivenUp);
    }
    if waits_since.elapsed() > FRESH.max(connecting) {
        return Err(ReadError::Stale);
    }
    let asked = Instant::now();
    let (low, end) = everyone.fetch_watermarks(&question.topic, partition, ask)?;
    let round_trip = asked.elapsed();
    loop {
        if line.given_up() {
            return Err(ReadError::GivenUp);
        }
        let (_, stable) = committed_reader.consumer().fetch_watermarks(&question.topic, partition, ask)?;
        if stable >= end || planted(Bug::NoReadCommitted) || planted(Bug::NoStableRead) {
            break;
        }
        line.tell(Trouble {
            why: "another gateway's transaction is open in this gateway's partition of the watermark topic".to_owned(),
            topic_unusable: false,
            another_gateway: true,
        });
        thread::sleep(LOOK);
    }
    line.say(String::new());
    backwards.holds(low, end);
    while let Some(range) = backwards.next(low) {
        scan(question, &committed_reader, partition, range.start, backwards, line)?;
        backwards.ended();
    }
    let found = std::mem::replace(backwards, Backwards::new(Vec::new()));
    Ok(FoundWatermarks { partitions, round_trip, ..found.into_found() })
}

/// Where the records of a buffer are.
fn find_place(
    question: &Question,
    everyone: &BaseConsumer,
    ask: Duration,
    line: &Line,
) -> Result<(Partitions, i32), ReadError> {
    let own = |count| watermark::partition(question.buffer_id, count);
    let partitions = watermark_topic::ensure(&question.config, everyone.client(), &question.topic, own, ask)?;
    let partition = own(partitions.count);
    if !line.registered.load(Ordering::Acquire) {
        // The ends may yet change; but to ask for them connects to who leads the partition.
        drop(everyone.fetch_watermarks(&question.topic, partition, ask));
    }
    Ok((partitions, partition))
}

/// Once a start: who changes the topic later changes it under all gateways.
fn check_once(question: &Question, ask: Duration) -> Result<(), ReadError> {
    if !question.topic_is_right.load(Ordering::Relaxed) {
        let is_right = watermark_topic::check_policy(&question.config, &question.topic, ask)?;
        question.topic_is_right.store(is_right, Ordering::Relaxed);
    }
    Ok(())
}

/// Reads from that offset on, as far as is to be read now.
fn scan(
    question: &Question,
    committed_reader: &CommittedReader,
    partition: i32,
    from: i64,
    backwards: &mut Backwards,
    line: &Line,
) -> Result<(), ReadError> {
    let mut place = TopicPartitionList::new();
    place.add_partition_offset(&question.topic, partition, Offset::Offset(from))?;
    committed_reader.consumer().assign(&place)?;
    let mut found_last = Instant::now();
    while found_last.elapsed() < SILENCE {
        if line.given_up() {
            return Err(ReadError::GivenUp);
        }
        let found = match committed_reader.next(question.buffer_id, LOOK) {
            None => continue,
            Some(Ok(found)) => found,
            Some(Err(KafkaError::PartitionEOF(_))) => return Ok(()),
            // The group is not ours to join; the records come all the same.
            Some(Err(error)) if is_about_the_group(&error) => continue,
            Some(Err(error)) => return Err(error.into()),
        };
        found_last = Instant::now();
        if backwards.takes(found.offset, found.record) {
            return Ok(());
        }
    }
    Err(ReadError::Silence)
}

fn is_about_the_group(error: &KafkaError) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::GroupAuthorizationFailed
                | Code::CoordinatorNotAvailable
                | Code::NotCoordinator
                | Code::CoordinatorLoadInProgress
                | Code::BrokerTransportFailure
                | Code::AllBrokersDown
                | Code::Resolve
        )
    )
}

#[cfg(test)]
mod tests {
    use rdkafka::mocking::MockCluster;

    use super::*;
    use crate::forward::clients::Clients;

    #[test]
    fn nothing_is_read_before_the_producer_is_registered() {
        let mock = MockCluster::new(1).unwrap();
        mock.create_topic("watermarks", 1, 1).unwrap();
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", mock.bootstrap_servers());
        let slot = Clients::new(Wake::default()).unwrap().slot().unwrap();
        let watermark_reader = WatermarkReader::begin(
            Question {
                config,
                topic: Arc::from("watermarks"),
                buffer_id: Uuid::nil(),
                lanes: Vec::new(),
                // The mock cannot be asked.
                topic_is_right: Arc::new(AtomicBool::new(true)),
            },
            slot,
            Wake::default(),
        );
        thread::sleep(Duration::from_secs(1));
        assert!(watermark_reader.answer().is_none(), "what an earlier producer had left open may have been read");
        watermark_reader.registered();
        let answer = watermark_reader.answer.recv_timeout(Duration::from_secs(60)).unwrap();
        assert_eq!((answer.main.is_none(), answer.partitions.count), (true, 1));
    }
}
