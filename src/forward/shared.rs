//! What the main lane and the parked lanes work with in common. All of it belongs to the one thread.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use rdkafka::types::RDKafkaErrorCode as Code;

use super::declarations::Declarations;
use super::link::Repeats;
use super::outcome::Outcome;
use super::parking::Parking;
use super::producer::{MESSAGE_OVERHEAD_BYTES, Outgoing, Producer};
use super::record::Records;
use super::session::Terms;
use super::status::ForwardStatus;
use super::targets::{Generation, Targets};
use super::time::{Refusal, Times};
use super::verdict::park_reason;
use super::watermark_topic::Partitions;
use crate::buffer::{DeadLetter, Outlet, Settler, Stopped, Ticket};
use crate::event::{RouteId, Sequence, Stored};
use crate::route::Target;

/// See the module's words.
pub(super) struct Shared {
    pub(super) outlet: Outlet,
    pub(super) settler: Settler,
    pub(super) parking: Parking,
    pub(super) outcome: Outcome,
    pub(super) targets: Targets,
    pub(super) records: Records,
    /// What time records bear.
    pub(super) times: Times,
    pub(super) status: ForwardStatus,
    /// The status differs from the one that was published.
    pub(super) changed: bool,
    pub(super) dead_letters: Repeats,
    /// The last one that was given out.
    pub(super) generation: Generation,
    /// With transactions: what they have in common.
    pub(super) terms: Option<Arc<Terms>>,
    /// With transactions: what they have to say besides the watermark.
    pub(super) declarations: Declarations,
    /// With transactions: up to where each parked Kafka topic's lane is delivered, by a committed watermark. Not there
    /// while that is in doubt, so that nobody writes an old word over a new one.
    pub(super) lanes_delivered: HashMap<Arc<str>, Sequence>,
    /// With transactions: the main lane's watermark was read, and no twin wrote it. Before that no lane sends.
    pub(super) is_itself: bool,
    /// With transactions: of the watermark topic, once it was read.
    pub(super) partitions: Option<Partitions>,
    /// The newest settlement with dead letters or parked events: no watermark passes these before it is on disk.
    pub(super) fates: Ticket,
}

impl Shared {
    /// For a producer that begins.
    pub(super) fn next_generation(&mut self) -> Generation {
        self.generation = self.generation.saturating_add(1);
        self.generation
    }

    /// Makes the record of an event and hands it to a producer.
    pub(super) fn send(&mut self, producer: &Producer, stored: &Stored, target: &Target) -> Result<(), Code> {
        let sent_ms = self.times.sent_ms();
        let timestamp_ms = self.times.stamp(&stored.event, &target.topic);
        let (headers, value) = self.records.build(stored.sequence, &stored.event, target.value, sent_ms);
        producer.send(Outgoing {
            sequence: stored.sequence,
            route: stored.event.route,
            target,
            headers,
            value,
            timestamp_ms,
            cost_bytes: stored.event.cost_bytes().saturating_add(MESSAGE_OVERHEAD_BYTES),
        })
    }

    /// Counts confirmations.
    pub(super) fn count_delivered(&mut self, events: usize) {
        if events > 0 {
            self.changed = true;
            add(&mut self.status.delivered, events);
            self.status.last_delivered_ms = Some(unix_ms());
        }
    }

    /// Counts a dead letter and says it; the same reason at most once a minute.
    pub(super) fn count_dead(&mut self, letter: &DeadLetter, now: Instant) {
        self.changed = true;
        add(&mut self.status.dead_lettered, 1);
        if let Some(more) = self.dead_letters.again(&letter.reason, now) {
            tracing::warn!(
                sequence = letter.sequence,
                topic = &*letter.kafka_topic,
                reason = letter.reason,
                more,
                "kafka: put aside as a dead letter"
            );
        }
    }

    /// An event of the main lane that Kafka will never take.
    pub(super) fn dead(&mut self, letter: DeadLetter, now: Instant) {
        self.count_dead(&letter, now);
        self.declare_dead(&letter);
        self.outcome.dead(letter, now);
    }

    /// A hole that readers will see.
    pub(super) fn declare_dead(&mut self, letter: &DeadLetter) {
        if self.terms.is_some() {
            self.declarations.dead(letter.sequence, &letter.kafka_topic, &letter.reason, unix_ms());
        }
    }

    /// Kafka has refused the time of that topic's records. True when it is known what to do differently; otherwise the topic
    /// is parked.
    pub(super) fn mistimed(&mut self, topic: &Arc<str>, now: Instant) -> bool {
        let again = self.times.refused(topic) == Refusal::Again;
        if !again {
            self.park_topic(topic, Code::InvalidTimestamp, now);
        }
        again
    }

    /// Parks a Kafka topic, and says so once.
    pub(super) fn park_topic(&mut self, topic: &str, code: Code, now: Instant) {
        let (reason, remedy) = park_reason(code);
        if self.parking.park(topic, reason, now, unix_ms()) {
            // It was direct until now: nothing of its lane is in doubt.
            self.lanes_delivered.entry(Arc::from(topic)).or_default();
            self.changed = true;
            tracing::warn!(
                topic,
                reason,
                remedy,
                "kafka: topic is parked; its readings wait in order, all others flow"
            );
        }
    }

    /// An event of the main lane goes into the lane of its Kafka topic.
    pub(super) fn park_one(&mut self, sequence: Sequence, route: RouteId, topic: &Arc<str>, now: Instant) {
        self.parking.parked_one(topic);
        if self.terms.is_some() {
            self.declarations.lane(topic);
        }
        self.outcome.parked(sequence, route, Arc::clone(topic), now);
    }

    /// Hands over what there is to settle.
    pub(super) fn settle(&mut self) -> Result<(), Stopped> {
        let has_fates = self.outcome.has_fates();
        if let Some(settlement) = self.outcome.take() {
            let ticket = self.settler.settle(settlement)?;
            self.parking.handed_over(ticket);
            if has_fates {
                self.fates = ticket;
            }
        }
        Ok(())
    }

    /// Is every fate until now on disk? Hands over what is not yet.
    pub(super) fn fates_are_durable(&mut self) -> Result<bool, Stopped> {
        if self.outcome.has_fates() {
            self.settle()?;
        }
        Ok(self.settler.applied() >= self.fates)
    }
}

/// Adds to a counter.
pub(super) fn add(counter: &mut u64, n: usize) {
    *counter = counter.saturating_add(u64::try_from(n).unwrap_or(u64::MAX));
}

/// Wall clock, milliseconds since 1970.
pub(super) fn unix_ms() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
