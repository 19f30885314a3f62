//! Reads spans of Kafka partitions, each to an end that was taken at the start.
//!
//! The ends are what all replicas have, whatever the isolation. A `read-committed` reader gets there only when no
//! transaction is open below: it waits, and after [`PATIENCE`] without any progress it stops and says where.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rdkafka::client::ClientContext;
use rdkafka::config::{ClientConfig, RDKafkaLogLevel};
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{BorrowedMessage, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};

/// A transaction ends after its `transaction.timeout.ms` (15 s) and Kafka's look at it (10 s); a broker is back after
/// a minute.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// One question to the cluster.
const QUESTION: Duration = Duration::from_secs(30);

/// How long a poll waits; after so much silence the positions are looked at.
const SILENCE: Duration = Duration::from_millis(100);

/// Records between two looks at the clock: a third of a millisecond.
const LOOK_EVERY: u32 = 256;

/// How much is read ahead. librdkafka needs about 600 bytes beside each small record, and looks at the length of its
/// queue before each fetch; one fetch may bring 384 KiB, compressed, which was 27 MB for readings that differ and 35 MB
/// for readings that are all alike.
const SETTINGS: &[(&str, &str)] = &[
    // Needed to consume; nothing is ever committed to it.
    ("group.id", "tidegate-audit"),
    ("enable.auto.commit", "false"),
    ("enable.auto.offset.store", "false"),
    ("auto.offset.reset", "earliest"),
    ("check.crcs", "true"),
    ("queued.min.messages", "10000"),
    ("queued.max.messages.kbytes", "4096"),
    ("fetch.message.max.bytes", FETCH_BYTES),
    ("fetch.max.bytes", ALL_FETCH_BYTES),
    // librdkafka wants the first of these not above fetch.max.bytes, and the second well above.
    ("message.max.bytes", ALL_FETCH_BYTES),
    ("receive.message.max.bytes", "100000000"),
    ("fetch.wait.max.ms", "100"),
    // librdkafka's own choice is a second, in which nothing is fetched for a partition whose queue was full once.
    ("fetch.queue.backoff.ms", "2"),
];

/// From one partition.
const FETCH_BYTES: &str = "131072";
/// From all of a broker.
const ALL_FETCH_BYTES: &str = "393216";

/// Other names of some of these, under which `[kafka.options]` could contradict.
const ALIASES: &[&str] = &["max.partition.fetch.bytes", "auto.commit.enable"];

/// What is visible.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Isolation {
    /// What was committed.
    Committed,
    /// Everything.
    Uncommitted,
}

/// Why it could not be looked.
#[derive(Debug, thiserror::Error)]
pub(super) enum LookError {
    /// Kafka could not be asked.
    #[error("Kafka could not be asked for {what}: {error}{}", .heard.as_ref().map(|heard| format!(" ({heard})")).unwrap_or_default())]
    Ask { what: String, error: KafkaError, heard: Option<String> },
    /// Kafka said no.
    #[error("this client may not read topic {topic} (Read): {error}")]
    Refused { topic: String, error: KafkaError },
    /// A client could not be made.
    #[error("the Kafka client cannot be created: {0}")]
    Client(KafkaError),
    /// Reading ended early.
    #[error("Kafka cannot be read any more: {0}")]
    Read(KafkaError),
}

/// A part of a partition, from `start` to before `end`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) topic: String,
    pub(super) partition: i32,
    pub(super) start: i64,
    pub(super) end: i64,
    /// The first offset that Kafka still holds.
    pub(super) earliest: i64,
}

/// Whether the rest of a span is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flow {
    GoOn,
    Enough,
}

/// How far it is.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Far {
    pub(super) records: u64,
    pub(super) done_offsets: u64,
    pub(super) all_offsets: u64,
}

/// A connection to the cluster.
pub(super) struct Reader {
    consumer: BaseConsumer<Ears>,
}

/// librdkafka says the reason of a failure (a wrong password) only to this callback.
#[derive(Default)]
struct Ears {
    last: Mutex<Option<String>>,
}

impl ClientContext for Ears {
    fn log(&self, _level: RDKafkaLogLevel, _facility: &str, _message: &str) {}

    fn error(&self, _error: KafkaError, reason: &str) {
        if let Ok(mut last) = self.last.lock() {
            *last = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Ears {}

impl Reader {
    /// Connects when it is first asked.
    pub(super) fn new(way: &ClientConfig, isolation: Isolation) -> Result<Self, LookError> {
        let mut config = way.clone();
        for alias in ALIASES {
            config.remove(alias);
        }
        for (name, value) in SETTINGS {
            config.set(*name, *value);
        }
        config.set(
            "isolation.level",
            match isolation {
                Isolation::Committed => "read_committed",
                Isolation::Uncommitted => "read_uncommitted",
            },
        );
        config.set_log_level(RDKafkaLogLevel::Emerg);
        config.create_with_context(Ears::default()).map(|consumer| Self { consumer }).map_err(LookError::Client)
    }

    /// The topics that Kafka has and that we may see, with the number of their partitions.
    pub(super) fn topics(&self) -> Result<BTreeMap<String, i32>, LookError> {
        let metadata = self.consumer.fetch_metadata(None, QUESTION).map_err(|error| self.ask("its topics", error))?;
        Ok(metadata
            .topics()
            .iter()
            .filter(|topic| topic.error().is_none())
            .map(|topic| (topic.name().to_owned(), i32::try_from(topic.partitions().len()).unwrap_or(i32::MAX)))
            .collect())
    }

    /// All of these topics, as they are now. With a time, from the first record on that is not older.
    ///
    /// Of a `read-committed` reader the ends would be those of what is stable: ask an uncommitted one.
    pub(super) fn spans(&self, topics: &[(String, i32)], from_ms: Option<i64>) -> Result<Vec<Span>, LookError> {
        let earliest = self.offsets(topics, Offset::Beginning)?;
        let ends = self.offsets(topics, Offset::End)?;
        let starts = match from_ms {
            Some(from) => self.offsets(topics, Offset::Offset(from.max(0)))?,
            None => earliest.clone(),
        };
        let spans = ends.into_iter().map(|((topic, partition), end)| {
            let at = (topic, partition);
            let end = end.unwrap_or(0);
            let earliest = earliest.get(&at).copied().flatten().unwrap_or(0);
            // No record is so young: nothing to read.
            let start = starts.get(&at).copied().flatten().unwrap_or(end);
            Span { topic: at.0, partition, start, end, earliest }
        });
        Ok(spans.collect())
    }

    fn offsets(
        &self,
        topics: &[(String, i32)],
        when: Offset,
    ) -> Result<BTreeMap<(String, i32), Option<i64>>, LookError> {
        let mut asked = TopicPartitionList::new();
        for (topic, partitions) in topics {
            for partition in 0..*partitions {
                asked.add_partition_offset(topic, partition, when).map_err(LookError::Client)?;
            }
        }
        let answer = self.consumer.offsets_for_times(asked, QUESTION).map_err(|error| self.ask("offsets", error))?;
        let mut offsets = BTreeMap::new();
        for element in answer.elements() {
            element.error().map_err(|error| LookError::Refused { topic: element.topic().to_owned(), error })?;
            let offset = match element.offset() {
                Offset::Offset(offset) => Some(offset),
                Offset::Beginning | Offset::End | Offset::Stored | Offset::Invalid | Offset::OffsetTail(_) => None,
            };
            offsets.insert((element.topic().to_owned(), element.partition()), offset);
        }
        Ok(offsets)
    }

    /// Reads the spans; `heard` gets each record with the index of its span, `far` is called some times a second.
    /// Returns the spans that could not be read to their end, with the offset where it stopped.
    pub(super) fn read(
        &self,
        spans: &[Span],
        mut heard: impl FnMut(usize, &BorrowedMessage<'_>) -> Flow,
        mut far: impl FnMut(Far),
    ) -> Result<Vec<(usize, i64)>, LookError> {
        let mut reading = Reading::of(spans);
        self.consumer.assign(&reading.assignment()?).map_err(LookError::Read)?;
        let mut until_look = LOOK_EVERY;
        while reading.open > 0 {
            let polled = self.consumer.poll(SILENCE);
            let silence = polled.is_none();
            match polled {
                None => {}
                Some(Err(error)) => self.judge(error)?,
                Some(Ok(message)) => {
                    if let Some(index) = reading.index(&message)
                        && reading.take(index, message.offset(), |index| heard(index, &message))
                    {
                        self.pause(spans, index)?;
                    }
                }
            }
            until_look -= 1;
            if silence || until_look == 0 {
                until_look = LOOK_EVERY;
                if silence {
                    self.positions(&mut reading, spans)?;
                }
                if reading.look() {
                    far(reading.far());
                }
                if reading.stuck() {
                    break;
                }
            }
        }
        far(reading.far());
        self.consumer.unassign().map_err(LookError::Read)?;
        Ok(reading.left())
    }

    /// Behind the last record of a span may be marks of transactions, which no consumer is given.
    fn positions(&self, reading: &mut Reading<'_>, spans: &[Span]) -> Result<(), LookError> {
        let positions = self.consumer.position().map_err(LookError::Read)?;
        for element in positions.elements() {
            if let Offset::Offset(offset) = element.offset()
                && let Some(index) = reading.find(element.topic(), element.partition())
                && reading.reached(index, offset)
            {
                self.pause(spans, index)?;
            }
        }
        Ok(())
    }

    /// What is behind the end is not wanted.
    fn pause(&self, spans: &[Span], index: usize) -> Result<(), LookError> {
        let Some(span) = spans.get(index) else { return Ok(()) };
        let mut list = TopicPartitionList::new();
        list.add_partition(&span.topic, span.partition);
        self.consumer.pause(&list).map_err(LookError::Read)
    }

    /// Which errors end the reading. All others pass, or the patience ends.
    #[expect(clippy::wildcard_enum_match_arm, reason = "librdkafka goes on by itself after all others")]
    fn judge(&self, error: KafkaError) -> Result<(), LookError> {
        match &error {
            KafkaError::MessageConsumptionFatal(_) => Err(LookError::Read(error)),
            KafkaError::MessageConsumption(
                RDKafkaErrorCode::TopicAuthorizationFailed
                | RDKafkaErrorCode::UnknownTopicOrPartition
                | RDKafkaErrorCode::UnknownTopic
                | RDKafkaErrorCode::UnknownPartition
                | RDKafkaErrorCode::OffsetOutOfRange
                | RDKafkaErrorCode::Authentication
                | RDKafkaErrorCode::BadMessage,
            ) => Err(self.ask("records", error)),
            _ => Ok(()),
        }
    }

    fn ask(&self, what: &str, error: KafkaError) -> LookError {
        let heard = self.consumer.context().last.lock().ok().and_then(|last| last.clone());
        LookError::Ask { what: what.to_owned(), error, heard }
    }
}

/// How far each span is.
struct Reading<'s> {
    spans: &'s [Span],
    /// Of each span the next offset; `None` when it is done.
    next: Vec<Option<i64>>,
    by_name: BTreeMap<&'s str, BTreeMap<i32, usize>>,
    /// Spans that are not done.
    open: usize,
    /// Where the record before was, and its span: most come from the same.
    latest: Option<(usize, i32, usize)>,
    records: u64,
    done: i64,
    all: i64,
    looked: Instant,
    /// When there was progress last, and how far it was then.
    moved: (Instant, u64, i64),
}

impl<'s> Reading<'s> {
    fn of(spans: &'s [Span]) -> Self {
        let mut by_name: BTreeMap<&str, BTreeMap<i32, usize>> = BTreeMap::new();
        for (index, span) in spans.iter().enumerate() {
            by_name.entry(&span.topic).or_default().insert(span.partition, index);
        }
        let next: Vec<_> = spans.iter().map(|span| (span.start < span.end).then_some(span.start)).collect();
        let now = Instant::now();
        Self {
            spans,
            open: next.iter().flatten().count(),
            next,
            by_name,
            latest: None,
            records: 0,
            done: 0,
            all: spans.iter().map(|span| span.end.saturating_sub(span.start).max(0)).fold(0, i64::saturating_add),
            looked: now,
            moved: (now, 0, 0),
        }
    }

    fn assignment(&self) -> Result<TopicPartitionList, LookError> {
        let mut list = TopicPartitionList::new();
        for (span, next) in self.spans.iter().zip(&self.next) {
            if let Some(next) = next {
                list.add_partition_offset(&span.topic, span.partition, Offset::Offset(*next))
                    .map_err(LookError::Read)?;
            }
        }
        Ok(list)
    }

    /// Which span a record is of. The topic's handle is compared, not its name: it stays while the consumer lives.
    fn index(&mut self, message: &BorrowedMessage<'_>) -> Option<usize> {
        let (topic, partition) = (message.topic_ptr().addr(), message.partition());
        if let Some((_, _, index)) = self.latest.filter(|latest| (latest.0, latest.1) == (topic, partition)) {
            return Some(index);
        }
        let index = self.find(message.topic(), partition)?;
        self.latest = Some((topic, partition, index));
        Some(index)
    }

    fn find(&self, topic: &str, partition: i32) -> Option<usize> {
        self.by_name.get(topic)?.get(&partition).copied()
    }

    /// A record came; true when its span is done with it.
    fn take(&mut self, index: usize, offset: i64, heard: impl FnOnce(usize) -> Flow) -> bool {
        let (Some(span), Some(Some(next))) = (self.spans.get(index), self.next.get(index).copied()) else {
            return false;
        };
        if offset < next {
            return false;
        }
        if offset < span.end {
            self.records += 1;
            if heard(index) == Flow::Enough {
                return self.reached(index, span.end);
            }
        }
        self.reached(index, offset.saturating_add(1))
    }

    /// Everything before this offset was read; true when the span is done with it.
    fn reached(&mut self, index: usize, offset: i64) -> bool {
        let (Some(span), Some(slot)) = (self.spans.get(index), self.next.get_mut(index)) else { return false };
        let Some(next) = *slot else { return false };
        let offset = offset.clamp(next, span.end);
        self.done = self.done.saturating_add(offset.saturating_sub(next));
        let done = offset >= span.end;
        *slot = (!done).then_some(offset);
        if done {
            self.open = self.open.saturating_sub(1);
        }
        done
    }

    /// True ten times a second.
    fn look(&mut self) -> bool {
        let now = Instant::now();
        if (self.moved.1, self.moved.2) != (self.records, self.done) {
            self.moved = (now, self.records, self.done);
        }
        let due = now.duration_since(self.looked) >= SILENCE;
        if due {
            self.looked = now;
        }
        due
    }

    fn stuck(&self) -> bool {
        self.moved.0.elapsed() >= PATIENCE
    }

    fn far(&self) -> Far {
        let number = |offsets: i64| u64::try_from(offsets).unwrap_or(0);
        Far { records: self.records, done_offsets: number(self.done), all_offsets: number(self.all) }
    }

    fn left(&self) -> Vec<(usize, i64)> {
        self.next.iter().enumerate().filter_map(|(index, next)| Some((index, (*next)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn span(partition: i32, start: i64, end: i64) -> Span {
        Span { topic: "t".into(), partition, start, end, earliest: 0 }
    }

    #[test]
    fn a_span_is_done_at_its_last_record_or_when_marks_of_transactions_fill_its_end() {
        let spans = [span(0, 0, 3), span(1, 5, 9), span(2, 4, 4)];
        let mut reading = Reading::of(&spans);
        assert_eq!(reading.open, 2);
        assert!(!reading.take(0, 0, |_| Flow::GoOn));
        assert!(reading.take(0, 2, |_| Flow::GoOn));
        assert!(!reading.take(1, 5, |_| Flow::GoOn));
        assert!(!reading.reached(1, 6));
        assert_eq!(reading.left(), [(1, 6)]);
        assert!(reading.reached(1, 20));
        assert_eq!((reading.open, reading.far().done_offsets, reading.far().all_offsets), (0, 7, 7));
    }

    #[test]
    fn what_is_behind_the_end_or_comes_again_is_not_heard() {
        let spans = [span(0, 0, 3)];
        let mut reading = Reading::of(&spans);
        let mut heard = Vec::new();
        for offset in [0, 1, 0, 1, 7] {
            reading.take(0, offset, |_| {
                heard.push(offset);
                Flow::GoOn
            });
        }
        assert_eq!(heard, [0, 1]);
        assert_eq!(reading.open, 0);
    }

    #[test]
    fn enough_of_a_span_is_its_end() {
        let spans = [span(0, 0, 1000)];
        let mut reading = Reading::of(&spans);
        assert!(reading.take(0, 0, |_| Flow::Enough));
        assert_eq!((reading.open, reading.left()), (0, vec![]));
    }
}
