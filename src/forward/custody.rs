//! Where readings are while they are held, and what becomes of them: which Kafka topics take them, what is on its way to the
//! disk about them, what is to be declared, what is counted. The stream and the queues of parked topics decide by it and
//! write into it; a sender knows nothing of it. All of it belongs to the one thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::admission::Admission;
use super::declarations::Declarations;
use super::moves::Moves;
use super::parking::{Gate, Opened, Parking, UNASKED};
use super::settlement_builder::SettlementBuilder;
use super::status::{ForwardStatus, Transactions};
use super::targets::Targets;
use super::verdict::park_reason;
use crate::buffer::{BufferReader, DeadLetter, OVERFLOW, Settler, Stopped};
use crate::clock;
use crate::event::{RouteId, Sequence};
use crate::log_throttle::LogThrottle;
use crate::route::Target;
use crate::watermark::{Instance, Record, Waiting};

/// See the documentation of the module.
pub(super) struct Custody {
    pub(super) reader: BufferReader,
    pub(super) settler: Settler,
    pub(super) targets: Targets,
    pub(super) parking: Parking,
    pub(super) admission: Admission,
    /// Lanes are being brought in line with the configuration: nothing is sent meanwhile.
    pub(super) is_on_hold: bool,
    pub(super) settlement: SettlementBuilder,
    /// Dead letters and parked events under way: no watermark passes these before they are on disk.
    pub(super) moves: Moves,
    /// What transactions have to say besides the watermark.
    pub(super) declarations: Declarations,
    /// With transactions: where each parked Kafka topic's lane stands, by a committed watermark. Not there while that is
    /// in doubt, so that nobody writes an old watermark over a new one.
    pub(super) lanes_delivered: HashMap<Arc<str>, Stand>,
    pub(super) status: ForwardStatus,
    /// The status differs from the one that was published.
    pub(super) changed: bool,
    dead_letters: LogThrottle,
    parked_lines: Crowd,
    opened_lines: Crowd,
}

/// How an event goes.
pub(super) enum Way {
    /// To its topic.
    Direct,
    /// Into that lane.
    Lane(Arc<str>),
    /// Not now: its lane is closing.
    Hold,
}

/// How far a lane is delivered.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Stand {
    /// Up to here.
    pub(super) delivered: Sequence,
    /// There are dead letters among its last events, and the buffer has not been told: only the watermark that the lane itself
    /// gave has their holes behind it.
    pub(super) has_holes: bool,
}

impl Custody {
    /// Between the buffer's doors; of what the buffer held at the start.
    pub(super) fn new(
        (reader, settler): (BufferReader, Settler),
        targets: Targets,
        (parking, admission, is_on_hold): (Parking, Admission, bool),
        declarations: Declarations,
        transactions: Option<Transactions>,
    ) -> Self {
        Self {
            reader,
            settler,
            targets,
            parking,
            admission,
            is_on_hold,
            settlement: SettlementBuilder::default(),
            moves: Moves::default(),
            declarations,
            lanes_delivered: HashMap::new(),
            status: ForwardStatus { producers: 1, transactions, ..ForwardStatus::default() },
            changed: true,
            dead_letters: LogThrottle::default(),
            parked_lines: Crowd::default(),
            opened_lines: Crowd::default(),
        }
    }

    /// Counts confirmations.
    pub(super) fn count_delivered(&mut self, events: usize) {
        if events > 0 {
            self.changed = true;
            add(&mut self.status.delivered, events);
            self.status.last_delivered_ms = Some(unix_ms());
        }
    }

    /// Counts a dead letter and says it; the same reason at most once a minute. `mqtt_topic` where it is at hand.
    pub(super) fn count_dead(&mut self, letter: &DeadLetter, mqtt_topic: &str, now: Instant) {
        self.changed = true;
        add(&mut self.status.dead_lettered, 1);
        if let Some(more) = self.dead_letters.again(&letter.reason, now) {
            tracing::warn!(
                sequence = letter.sequence,
                topic = &*letter.kafka_topic,
                mqtt_topic = shown(mqtt_topic),
                reason = letter.reason,
                more,
                "kafka: Kafka will never take this reading; it is kept as a dead letter"
            );
        }
    }

    /// An event of the main lane that Kafka will never take, and its size.
    pub(super) fn dead(&mut self, letter: DeadLetter, mqtt_topic: &str, bytes: usize, now: Instant) {
        self.count_dead(&letter, mqtt_topic, now);
        self.declare_dead(&letter);
        self.moves.add(bytes);
        self.settlement.dead(letter, now);
    }

    /// A hole that readers will see.
    pub(super) fn declare_dead(&mut self, letter: &DeadLetter) {
        self.declarations.dead(letter.sequence, &letter.kafka_topic, &letter.reason, unix_ms());
    }

    /// How an event goes to its topic.
    pub(super) fn way(&mut self, target: &Target, now: Instant) -> Way {
        let topic = &target.topic;
        if !target.is_fixed && !self.admission.admits(topic) {
            return Way::Lane(self.park_beyond(topic, now));
        }
        match self.parking.gate(topic) {
            Gate::Hold => Way::Hold,
            Gate::Park => Way::Lane(Arc::clone(topic)),
            Gate::Direct if !target.is_fixed && self.admission.is_suspect(topic) => {
                self.park_quietly(topic, UNASKED, now);
                Way::Lane(Arc::clone(topic))
            }
            Gate::Direct => Way::Direct,
        }
    }

    /// May one more event be moved? Not while too many are on their way to the disk.
    pub(super) fn fates_have_room(&mut self) -> bool {
        self.moves.have_room(self.settler.applied())
    }

    /// Parks a Kafka topic, and says so once.
    pub(super) fn park_topic(&mut self, topic: &str, code: Code, now: Instant) {
        let (reason, remedy) = park_reason(code);
        if self.park_quietly(topic, reason, now) {
            self.say_parked(topic, reason, remedy, now);
        }
    }

    /// The same without a line; false when it was parked already.
    pub(super) fn park_quietly(&mut self, topic: &str, reason: &str, now: Instant) -> bool {
        let parked = self.parking.park(topic, reason, now, unix_ms());
        if parked {
            // It was direct until now: nothing of its lane is in doubt.
            self.lanes_delivered.entry(Arc::from(topic)).or_default();
            self.changed = true;
        }
        parked
    }

    /// A parked topic takes readings again.
    pub(super) fn say_opened(&mut self, topic: &str, opened: &Opened, now: Instant) {
        if let Some(more) = self.opened_lines.may_say(now) {
            tracing::info!(
                topic,
                parked_s = opened.parked_for.as_secs_f64(),
                events = opened.events,
                more,
                "kafka: the topic takes readings again; the agent sends those that waited"
            );
        }
    }

    /// A topic was found missing or forbidden.
    pub(super) fn say_parked(&mut self, topic: &str, reason: &str, remedy: &str, now: Instant) {
        self.admission.found_missing();
        if let Some(more) = self.parked_lines.may_say(now) {
            tracing::warn!(
                topic,
                reason,
                remedy,
                more,
                "kafka: the topic is parked; its readings wait in order, and the agent goes on with all others"
            );
        }
    }

    /// An event of the main lane has no topic that it may go to: there are too many.
    fn park_beyond(&mut self, topic: &str, now: Instant) -> Arc<str> {
        if self.parking.gate(OVERFLOW) == Gate::Direct {
            self.shut_overflow(now);
            tracing::warn!(
                topic,
                "kafka: sensors make more Kafka topics than [kafka] max_topics allows; readings for this one and any \
                 other new one wait until you raise it"
            );
        }
        Arc::from(OVERFLOW)
    }

    /// The lane of what is beyond the limit is in the status, and never tried.
    pub(super) fn shut_overflow(&mut self, now: Instant) {
        self.parking.shut(OVERFLOW, "more Kafka topics than [kafka] max_topics allows: raise it", now, unix_ms());
        // Nothing of it is ever sent.
        self.lanes_delivered.entry(Arc::from(OVERFLOW)).or_default();
        self.changed = true;
    }

    /// An event of the main lane goes into that lane, and its size.
    pub(super) fn park_one(
        &mut self,
        (sequence, route): (Sequence, RouteId),
        topic: &Arc<str>,
        bytes: usize,
        now: Instant,
    ) {
        self.parking.parked_one(topic);
        self.moves.add(bytes);
        self.settlement.admitted(self.admission.take_fresh(), now);
        self.declare_lane(topic);
        self.settlement.parked(sequence, route, Arc::clone(topic), now);
    }

    /// What waits for that topic has changed.
    pub(super) fn declare_lane(&mut self, topic: &Arc<str>) {
        self.declarations.lane(topic);
    }

    /// The counters of transactions.
    pub(super) fn transactions(&mut self) -> Option<&mut Transactions> {
        self.status.transactions.as_mut()
    }

    /// A transaction is committed; it took so long from the last record's being sent.
    pub(super) fn note_committed(&mut self, ending: Duration) {
        if let Some(status) = self.transactions() {
            add(&mut status.committed, 1);
            status.commits.note(ending);
        }
    }

    /// A transaction of the stream was aborted.
    pub(super) fn note_aborted(&mut self) {
        if let Some(status) = self.transactions() {
            add(&mut status.aborted, 1);
        }
    }

    /// `EndTxn` was sent twice.
    pub(super) fn note_retried(&mut self) {
        if let Some(status) = self.transactions() {
            add(&mut status.end_txn_retried, 1);
        }
    }

    /// Dead letters of earlier starts that the watermark topic may not know; at most so many.
    pub(super) fn declare_again(&mut self, after: Sequence, since_ms: i64, most: u32) {
        match self.reader.dead_letters(after, since_ms, most) {
            Ok(letters) => {
                for (letter, at_ms) in letters {
                    self.declarations.dead(letter.sequence, &letter.kafka_topic, &letter.reason, at_ms);
                }
            }
            Err(error) => tracing::warn!(%error, "kafka: the dead letters of earlier starts cannot be read, so the \
                 agent does not declare them again"),
        }
    }

    /// What is to be said about parked topics. All that was parked until now is on disk.
    pub(super) fn lane_records(&mut self, instance: Instance, at_ms: i64) -> Vec<Record> {
        let topics = self.declarations.seal_lanes();
        let mut records = Vec::new();
        for topic in topics {
            let waiting = self.settler.lane(&topic).and_then(|lane| self.reader.waiting(lane, 0).ok().flatten());
            let Some(stand) = self.lanes_delivered.get(&topic).copied() else { continue };
            let (delivered, holes) = (stand.delivered, (!stand.has_holes).then_some(0));
            let waiting = waiting.map(|(first, last, events)| Waiting { first, last, events });
            records.push(Record::Lane { kafka_topic: topic.to_string(), instance, delivered, waiting, holes, at_ms });
        }
        records
    }

    /// Hands over what there is to settle.
    pub(super) fn settle(&mut self) -> Result<(), Stopped> {
        if let Some(settlement) = self.settlement.take() {
            let ticket = self.settler.settle(settlement)?;
            self.parking.handed_over(ticket);
            self.moves.handed_over(ticket);
        }
        Ok(())
    }

    /// Is every move until now on disk? Hands over what is not yet.
    pub(super) fn moves_are_durable(&mut self) -> Result<bool, Stopped> {
        if self.settlement.has_moves() {
            self.settle()?;
        }
        Ok(self.moves.newest().is_none_or(|newest| self.settler.applied() >= newest))
    }
}

/// So many of one kind of line are written in a minute; the others are counted.
const LINES: u64 = 10;
const LINES_IN: Duration = Duration::from_secs(60);

/// Lines of which each is news, and 25,000 of them are not.
#[derive(Debug, Default)]
pub(super) struct Crowd {
    since: Option<Instant>,
    said: u64,
    unsaid: u64,
}

impl Crowd {
    /// Shall it be said now? With the number of those that were not.
    pub(super) fn may_say(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.saturating_duration_since(since) >= LINES_IN) {
            self.since = Some(now);
            self.said = 0;
        }
        if self.said >= LINES {
            self.unsaid += 1;
            return None;
        }
        self.said += 1;
        Some(std::mem::take(&mut self.unsaid))
    }
}

/// What stands of an MQTT topic in a line of the log: it may have 65,535 bytes.
fn shown(topic: &str) -> &str {
    topic.char_indices().nth(200).map_or(topic, |(end, _)| topic.get(..end).unwrap_or_default())
}

/// Adds to a counter.
pub(super) fn add(counter: &mut u64, n: usize) {
    *counter += u64::try_from(n).unwrap_or(u64::MAX);
}

/// Wall clock, milliseconds since 1970.
pub(super) fn unix_ms() -> i64 {
    clock::wall_ms().max(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ten_lines_a_minute_are_written_and_the_others_counted() {
        let (mut crowd, start) = (Crowd::default(), Instant::now());
        let said: Vec<u64> = (0..25_000).filter_map(|_| crowd.may_say(start)).collect();
        assert_eq!(said, [0; 10]);
        assert_eq!(crowd.may_say(start + LINES_IN), Some(24_990));
    }

    #[test]
    fn a_long_topic_is_shown_in_part() {
        assert_eq!(shown("a/b"), "a/b");
        assert_eq!(shown(&"ü".repeat(60_000)).chars().count(), 200);
    }
}
