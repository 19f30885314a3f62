//! The stream: all readings in the order of their arrival, but for those whose Kafka topic is parked.
//!
//! What is read from the buffer waits here until it is sent, or settled in another way: it goes out as a dead letter, or into
//! the queue of a parked topic.

mod unread;
pub(super) mod watermark;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rdkafka::types::RDKafkaErrorCode as Code;

use self::watermark::StreamWatermark;
use super::custody::{Custody, Way, add};
use super::judge::Judged;
use super::next::{Hand, Next};
use super::outstanding::{Restart, Skips};
use super::producer::{Failure, MESSAGE_OVERHEAD_BYTES, Producer};
use super::targets::{Generation, Turn};
use super::time::{Refusal, Times};
use super::verdict::dead_letter_reason;
use crate::buffer::DeadLetter;
use crate::event::Stored;
use crate::route::Target;

/// A batch that waits for others is sent at once when it has so many events: 15.6 bytes each on the wire with 1,000, 15.3 with
/// more, and half a second of a line of 4,000 a second is one transaction.
const FULL_EVENTS: usize = 2_000;

/// ... or so many bytes, which is what the buffer keeps in memory for us: more would have to be read from the disk.
const FULL_BYTES: usize = 512 << 10;

/// See the documentation of the module.
pub(super) struct Stream {
    linger: Duration,
    pending: Pending,
    /// When the last batch left, and until when it would have waited.
    left: Option<Instant>,
    was_due: Option<Instant>,
    /// Settled already, and read again.
    skips: Skips,
    pub(super) watermark: StreamWatermark,
    /// A Kafka topic that took something, to ask brokers about.
    pub(super) known_topic: Option<Arc<str>>,
    /// Kafka topics whose queues Kafka is asked about together with the stream, once.
    pub(super) asks_about: Vec<Arc<str>>,
}

/// Read from the buffer and not sent yet.
#[derive(Debug, Default)]
struct Pending {
    events: VecDeque<Stored>,
    bytes: usize,
    /// They wait for others until then.
    gather_until: Option<Instant>,
}

impl Stream {
    /// Goes on where the last run left off.
    pub(super) fn new(linger: Duration, skips: Skips, watermark: StreamWatermark) -> Self {
        Self {
            linger,
            pending: Pending::default(),
            left: None,
            was_due: None,
            skips,
            watermark,
            known_topic: None,
            asks_about: Vec::new(),
        }
    }

    /// Takes what the reader gave.
    pub(super) fn take(&mut self, events: Vec<Stored>, now: Instant) {
        if events.is_empty() {
            return;
        }
        if self.pending.events.is_empty() {
            // `linger` behind the last batch; after a pause, at once.
            let due = self.left.and_then(|left| left.checked_add(self.linger));
            self.pending.gather_until = Some(due.map_or(now, |due| due.max(now)));
        }
        self.pending.bytes = events.iter().fold(self.pending.bytes, |sum, stored| sum + stored.event.cost_bytes());
        if self.pending.events.is_empty() {
            self.pending.events = events.into();
        } else {
            self.pending.events.extend(events);
        }
    }

    /// Nothing is in hand.
    pub(super) fn is_empty(&self) -> bool {
        self.pending.events.is_empty()
    }

    /// A batch is to be sent now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        let pending = &self.pending;
        !pending.events.is_empty()
            && (pending.gather_until.is_none_or(|until| until <= now)
                || pending.events.len() >= FULL_EVENTS
                || pending.bytes >= FULL_BYTES)
    }

    /// When what waits for others goes, whatever comes.
    pub(super) fn gathers_until(&self) -> Option<Instant> {
        self.pending.gather_until
    }

    /// The rest of a batch that does not fit into the window waits for room, not for others.
    pub(super) fn begins_to_send(&mut self, now: Instant) {
        if let Some(due) = self.pending.gather_until.take() {
            self.left = Some(now);
            self.was_due = Some(due);
        }
    }

    /// Until when the batch that is being sent would have waited for others.
    pub(super) fn was_due(&self) -> Option<Instant> {
        self.was_due
    }

    pub(super) fn front(&self) -> Option<&Stored> {
        self.pending.events.front()
    }

    pub(super) fn hand(&self, custody: &Custody) -> Hand {
        Hand {
            any: !self.pending.events.is_empty(),
            gathers: self.pending.gather_until.is_some(),
            declares: custody.declarations.any(),
            is_full: custody.declarations.is_full(),
        }
    }

    pub(super) fn asks_about(&self) -> Vec<Arc<str>> {
        self.asks_about.clone()
    }

    /// What to do with the one in front.
    pub(super) fn next(
        &mut self,
        producer: &Producer,
        generation: Generation,
        custody: &mut Custody,
        now: Instant,
    ) -> Next {
        let Some(stored) = self.pending.events.front() else { return Next::Nothing };
        if custody.is_on_hold {
            return Next::Nothing;
        }
        let (sequence, route) = (stored.sequence, stored.event.route);
        if self.skips.take(sequence) {
            self.pass(producer);
            return Next::Settled;
        }
        if let Some(proof) = self.watermark.vouches_for(sequence, route) {
            custody.count_delivered(1);
            custody.settlement.delivered(vec![proof], now);
            self.pass(producer);
            return Next::Settled;
        }
        // Whatever becomes of this one, it is remembered until the oldest one in flight has come back.
        if !custody.fates_have_room() || producer.remembers_too_much() {
            return Next::Nothing;
        }
        if let Some(reason) = stored.event.flaw().map(str::to_owned) {
            self.put_aside(producer, Arc::from(""), reason, custody, now);
            return Next::Settled;
        }
        let known = match custody.targets.find(&stored.event) {
            Ok(known) => known,
            Err(no_target) => {
                self.put_aside(producer, Arc::from(""), no_target.to_string(), custody, now);
                return Next::Settled;
            }
        };
        // custody rule 4, see `targets.rs`.
        let turn = known.turn(generation, |first| producer.has_come_back(first));
        let target = Arc::clone(&known.target);
        match custody.way(&target, now) {
            Way::Direct => Next::Send(target, turn),
            Way::Hold => Next::Nothing,
            Way::Lane(lane) => {
                custody.park_one((sequence, route), &lane, stored.event.cost_bytes(), now);
                self.pass(producer);
                Next::Settled
            }
        }
    }

    /// The first one was handed to librdkafka.
    pub(super) fn sent(&mut self, target: &Target, turn: Turn, custody: &mut Custody) {
        if turn == Turn::First {
            custody.admission.is_direct(&target.topic);
        }
        if !self.known_topic.as_ref().is_some_and(|known| Arc::ptr_eq(known, &target.topic)) {
            self.known_topic = Some(Arc::clone(&target.topic));
        }
        if let Some(stored) = self.pending.pop() {
            self.watermark.passed(stored.sequence);
        }
    }

    /// The first one becomes a dead letter.
    pub(super) fn put_aside(
        &mut self,
        producer: &Producer,
        kafka_topic: Arc<str>,
        reason: String,
        custody: &mut Custody,
        now: Instant,
    ) {
        let Some(Stored { sequence, event }) = self.pending.events.front() else { return };
        let letter = DeadLetter { sequence: *sequence, route: event.route, kafka_topic, reason };
        custody.dead(letter, &event.topic, event.cost_bytes(), now);
        self.pass(producer);
    }

    /// The first one is settled without being sent.
    fn pass(&mut self, producer: &Producer) {
        if let Some(stored) = self.pending.pop() {
            self.watermark.passed(stored.sequence);
            producer.pass(stored.sequence, stored.event.route);
        }
    }

    /// Records came back without confirmation, and were judged.
    pub(super) fn judged(judged: Judged, producer: &Producer, custody: &mut Custody, times: &mut Times, now: Instant) {
        add(&mut custody.status.retried, judged.failures);
        custody.changed = true;
        for (topic, code) in judged.closed {
            custody.park_topic(&topic, code, now);
        }
        for topic in judged.mistimed {
            if times.refused(&topic) == Refusal::Hopeless {
                custody.park_topic(&topic, Code::InvalidTimestamp, now);
            }
        }
        for failure in judged.dead {
            bury(failure, producer, custody, now);
        }
    }

    /// Reads again from the oldest unsettled event.
    pub(super) fn goes_back(&mut self, restart: Restart, custody: &mut Custody) {
        if let Some(after) = restart.after {
            self.pending = Pending::default();
            custody.reader.rewind(after);
            self.skips.restart(restart.settled);
            self.watermark.goes_back(after);
        }
        custody.declarations.undone();
    }
}

impl Pending {
    fn pop(&mut self) -> Option<Stored> {
        let first = self.events.pop_front();
        if self.events.is_empty() {
            *self = Self::default(); // gives the memory of a large reading back
        }
        first
    }
}

/// A failed record that is bad by itself.
fn bury(failure: Failure, producer: &Producer, custody: &mut Custody, now: Instant) {
    producer.settle_failed(failure.sequence);
    let letter = dead_letter(failure);
    // It was in flight alone or among few: the bound on these is far above it.
    custody.dead(letter, "", MESSAGE_OVERHEAD_BYTES, now);
}

fn dead_letter(failure: Failure) -> DeadLetter {
    let Failure { sequence, route, topic, code } = failure;
    DeadLetter { sequence, route, kafka_topic: Arc::from(topic), reason: dead_letter_reason(code) }
}
