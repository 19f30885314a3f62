//! The queue of a parked topic: its readings wait in the buffer, in chunks and in order, and are sent a group of chunks at a
//! time.
//!
//! While a topic is tried, its inflow goes on to the end of the queue in small chunks, ten a second; so chunks are read and
//! sent in groups, as many as fit into a round trip, else a long link would never catch up. Each chunk is settled as a
//! whole, in order. When a try ends in the middle of a group, its proofs are kept, so that the next try sends only the rest.
//!
//! With transactions the queue has a watermark of its own (`queue/watermark.rs`).

pub(super) mod watermark;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use rdkafka::types::RDKafkaErrorCode as Code;

use super::custody::Custody;
use super::judge::Judged;
use super::next::Next;
use super::producer::{Failure, Producer};
use super::targets::{Generation, Turn};
use super::time::{Refusal, Times};
use super::verdict::{dead_letter_reason, park_reason};
use crate::buffer::{DeadLetter, LaneChunk, LaneId, ReadError};
use crate::delivered::{CommittedWatermark, DeclaredHole, Delivered};
use crate::event::{Sequence, Stored};
use crate::planted::{Bug, planted};
use crate::route::{Target, ValueFormat};

/// At most about so many events are read at a time; a chunk alone is at most 256 KiB.
const GROUP_EVENTS: usize = 2_000;

/// Payload and topics of a group, beside which the last chunk read may add 256 KiB.
const GROUP_BYTES: usize = 256 * 1024;

/// A group below this size has caught up with the inflow: holding the stream for the rest takes a round trip or two.
const CAUGHT_UP: usize = GROUP_EVENTS / 2;

/// See the documentation of the module.
pub(super) struct Queue {
    pub(super) topic: Arc<str>,
    /// How far it has been sent.
    pub(super) progress: QueueProgress,
    group: Option<Group>,
    /// Index of the next event of the group.
    next: usize,
    /// Damage that was met behind a group; said when it is its turn.
    damaged: Option<ReadError>,
    /// Its topic may be sent to, as far as brokers say.
    pub(super) is_open: bool,
    /// Its topic is closed still.
    refusal: Option<Refused>,
    /// What Kafka has of the queue and the buffer does not know.
    watermark: Option<Vouched>,
    /// The watermark that is being written or committed.
    written: Sequence,
}

/// What Kafka has of the queue, by its recovered watermark (`queue/watermark.rs`).
struct Vouched {
    watermark: CommittedWatermark,
    /// The chunk that holds the last delivered event.
    chunk: i64,
    holes: Vec<DeclaredHole>,
}

/// Chunks of a queue that are sent together, in order.
struct Group {
    lane: LaneId,
    /// Row id of each chunk, and where its events end.
    chunks: Vec<(i64, usize)>,
    events: Vec<Stored>,
}

/// How far a queue has been sent.
#[derive(Debug, Default)]
pub(super) struct QueueProgress {
    /// The last chunk that was settled.
    after: i64,
    /// The first chunk of the group in work, and what became of the group's events.
    first: i64,
    confirmed: Vec<Delivered>,
    dead: Vec<DeadLetter>,
    done: BTreeSet<Sequence>,
}

/// Kafka does not take it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Refused {
    /// The reason and what to do, if it is a new one.
    pub(super) reason: Option<(&'static str, &'static str)>,
    /// There were too few replicas in sync.
    pub(super) outnumbered: bool,
}

impl QueueProgress {
    /// There is something that the next try must know.
    pub(super) fn is_of_use(&self) -> bool {
        self.after > 0 || !self.done.is_empty()
    }
}

impl Queue {
    /// Of that topic, from there on.
    pub(super) fn new(topic: Arc<str>, progress: QueueProgress) -> Self {
        let (group, damaged, watermark, refusal) = (None, None, None, None);
        Self { topic, progress, group, next: 0, damaged, is_open: false, refusal, watermark, written: 0 }
    }

    /// A group is in work.
    pub(super) fn has_group(&self) -> bool {
        self.group.is_some()
    }

    /// Nothing of the group is in Kafka for certain: giving it up repeats nothing.
    pub(super) fn is_untouched(&self) -> bool {
        self.progress.done.is_empty()
    }

    /// Reads the next chunks; false when there are none.
    pub(super) fn load(&mut self, custody: &mut Custody) -> Result<bool, ReadError> {
        if let Some(damaged) = self.damaged.take() {
            return Err(damaged);
        }
        let now = Instant::now();
        // Asked each time: a queue that was empty for a moment comes back under another id.
        let Some(lane) = custody.settler.lane(&self.topic) else { return Ok(false) };
        let mut group = Group { lane, chunks: Vec::new(), events: Vec::new() };
        let (mut after, mut bytes) = (self.progress.after, 0_usize);
        while group.events.len() < GROUP_EVENTS && bytes < GROUP_BYTES {
            match custody.reader.parked(lane, after) {
                Ok(Some(LaneChunk { id, events })) => {
                    after = id;
                    bytes += events.iter().map(|stored| stored.event.cost_bytes()).sum::<usize>();
                    group.events.extend(events);
                    group.chunks.push((id, group.events.len()));
                }
                Ok(None) => break,
                Err(error) => {
                    if let ReadError::Damaged { parked: Some(chunk), .. } = &error {
                        // Durable before the queue's next watermark, whatever that passes.
                        custody.settlement.lane_unread(lane, *chunk, now);
                    }
                    if group.chunks.is_empty() {
                        return Err(error);
                    }
                    self.damaged = Some(error);
                    break;
                }
            }
        }
        let Some((first, _)) = group.chunks.first() else { return Ok(false) };
        if self.progress.first != *first {
            self.progress = QueueProgress { after: self.progress.after, first: *first, ..QueueProgress::default() };
        }
        if group.events.len() < CAUGHT_UP {
            custody.parking.caught_up(&self.topic);
        }
        self.next = 0;
        self.group = Some(group);
        self.vouch();
        Ok(true)
    }

    /// A batch is to be sent now.
    pub(super) fn is_ready(&self) -> bool {
        self.is_open && self.front().is_some()
    }

    pub(super) fn front(&self) -> Option<&Stored> {
        self.group.as_ref()?.events.get(self.next)
    }

    /// What to do with the one in front.
    pub(super) fn next(&mut self, producer: &Producer, generation: Generation, custody: &mut Custody) -> Next {
        let Some(stored) = self.front() else { return Next::Nothing };
        if self.progress.done.contains(&stored.sequence) {
            self.next += 1;
            return Next::Settled;
        }
        let (target, turn) = self.target(stored, producer, generation, custody);
        Next::Send(target, turn)
    }

    /// Its own topic: whatever the configuration wants elsewhere has left the queue before (`relocation.rs`).
    fn target(
        &self,
        stored: &Stored,
        producer: &Producer,
        generation: Generation,
        custody: &mut Custody,
    ) -> (Arc<Target>, Turn) {
        let topic = Arc::clone(&self.topic);
        match custody.targets.find(&stored.event) {
            Ok(known) => {
                let turn = known.turn(generation, |first| producer.has_come_back(first));
                let target = Arc::clone(&known.target);
                let target =
                    if target.topic == topic { target } else { Arc::new(Target { topic, ..(*target).clone() }) };
                (target, turn)
            }
            Err(_no_route_any_more) => {
                let key = Arc::clone(&stored.event.topic);
                (Arc::new(Target { topic, key, value: ValueFormat::Payload, is_fixed: true }), Turn::Go)
            }
        }
    }

    /// The one in front was handed to librdkafka.
    pub(super) fn sent(&mut self) {
        self.next += 1;
    }

    /// The one in front becomes a dead letter.
    pub(super) fn put_aside(&mut self, reason: String, custody: &mut Custody, now: Instant) {
        let Some(stored) = self.front() else { return };
        let letter = dead_letter(&self.topic, stored, reason);
        let mqtt_topic = Arc::clone(&stored.event.topic);
        self.dead(letter, &mqtt_topic, custody, now);
    }

    fn dead(&mut self, letter: DeadLetter, mqtt_topic: &str, custody: &mut Custody, now: Instant) {
        custody.count_dead(&letter, mqtt_topic, now);
        custody.declare_dead(&letter);
        self.progress.done.insert(letter.sequence);
        self.progress.dead.push(letter);
    }

    /// Kafka has these, for good.
    pub(super) fn confirmed(&mut self, proofs: Vec<Delivered>, custody: &mut Custody) {
        if proofs.is_empty() {
            return;
        }
        self.progress.done.extend(proofs.iter().map(Delivered::sequence));
        self.progress.confirmed.extend(proofs);
        custody.parking.accepted(&self.topic);
        if planted(Bug::ParkedOutOfOrder) {
            custody.parking.open_at_once(&self.topic);
        }
    }

    /// Records came back without confirmation, and were judged.
    pub(super) fn judged(&mut self, judged: Judged, custody: &mut Custody, times: &mut Times, now: Instant) {
        if judged.distrusted().is_some() {
            self.refused(None);
        }
        for (_, code) in &judged.closed {
            self.refused(Some(*code));
        }
        if !judged.mistimed.is_empty() {
            // Where Kafka's time is to be asked for, the stream does it; the next try has it.
            let again = times.refused(&self.topic) == Refusal::Again;
            self.refused((!again).then_some(Code::InvalidTimestamp));
        }
        for Failure { sequence, route, code, .. } in judged.dead {
            let (kafka_topic, reason) = (Arc::clone(&self.topic), dead_letter_reason(code));
            self.dead(DeadLetter { sequence, route, kafka_topic, reason }, "", custody, now);
        }
    }

    /// Kafka does not take it now; for that reason, if it is a new one.
    pub(super) fn refused(&mut self, code: Option<Code>) {
        let outnumbered = code == Some(Code::NotEnoughReplicas);
        self.refusal = Some(Refused { reason: code.map(park_reason), outnumbered });
    }

    /// The same for what was found out before, and is so still.
    pub(super) fn refused_again(&mut self, code: Code) {
        self.refusal = Some(Refused { reason: Some(park_reason(code)), outnumbered: false });
    }

    /// It was refused since that was asked last.
    pub(super) fn is_refused(&self) -> bool {
        self.refusal.is_some()
    }

    /// What was refused since this was asked last.
    pub(super) fn take_refusal(&mut self) -> Option<Refused> {
        self.refusal.take()
    }

    /// What is not done is sent again, from the group's beginning.
    pub(super) fn goes_back(&mut self) {
        self.next = 0;
    }

    /// Settles the group's chunks, one by one, when all its events are done with.
    pub(super) fn settle_group(&mut self, custody: &mut Custody, now: Instant) {
        let all_done = |group: &mut Group| group.events.iter().all(|s| self.progress.done.contains(&s.sequence));
        let Some(group) = self.group.take_if(all_done) else { return };
        let QueueProgress { confirmed, dead, done, .. } = std::mem::take(&mut self.progress);
        custody.count_delivered(confirmed.len());
        let mut confirmed: BTreeMap<Sequence, Delivered> =
            confirmed.into_iter().map(|proof| (proof.sequence(), proof)).collect();
        let mut dead: BTreeMap<Sequence, DeadLetter> =
            dead.into_iter().map(|letter| (letter.sequence, letter)).collect();
        let mut events = group.events.iter();
        let mut from = 0_usize;
        for (id, end) in group.chunks {
            let of_chunk = events.by_ref().take(end - from).map(|stored| stored.sequence);
            let (mut proofs, mut letters) = (Vec::new(), Vec::new());
            for sequence in of_chunk {
                proofs.extend(confirmed.remove(&sequence));
                letters.extend(dead.remove(&sequence));
            }
            custody.settlement.lane_chunk(group.lane, id, proofs, letters, now);
            self.progress.after = id;
            from = end;
        }
        if let Some(stand) = custody.lanes_delivered.get_mut(&self.topic) {
            stand.has_holes = false; // no watermark is written before that is on disk
        }
        custody.parking.lane_settled(&self.topic, u64::try_from(done.len()).unwrap_or(u64::MAX));
    }
}

fn dead_letter(topic: &Arc<str>, stored: &Stored, reason: String) -> DeadLetter {
    DeadLetter { sequence: stored.sequence, route: stored.event.route, kafka_topic: Arc::clone(topic), reason }
}
