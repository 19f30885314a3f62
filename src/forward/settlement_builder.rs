//! What became of events, collected into settlements: one for many events, at most a short time old.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::buffer::{DeadLetter, LaneId, LaneMove, Parked, Settlement};
use crate::delivered::Delivered;
use crate::event::{RouteId, Sequence};
use crate::planted::{self, Bug};
use crate::watermark::Instance;

/// A settlement waits so long for more. What is not settled is sent again after a crash: at full rate that is some
/// thousand repeats. The buffer commits settlements with the next events or within 200 ms, so less gains nothing.
const LONGEST_WAIT: Duration = Duration::from_millis(50);

/// ... or for so many events: 64 KiB of proofs.
const FULL: usize = 4_096;

/// The settlement being made.
#[derive(Debug, Default)]
pub(super) struct SettlementBuilder {
    settlement: Settlement,
    events: usize,
    since: Option<Instant>,
}

impl SettlementBuilder {
    /// Kafka confirmed these.
    pub(super) fn delivered(&mut self, mut proofs: Vec<Delivered>, now: Instant) {
        #[cfg(feature = "planted")]
        if planted::planted(Bug::ReleaseBeforeDelivery) {
            return; // they were released when they were sent
        }
        if !proofs.is_empty() {
            self.note(proofs.len(), now);
            self.settlement.delivered.append(&mut proofs);
        }
    }

    /// Kafka will never take it.
    pub(super) fn dead(&mut self, letter: DeadLetter, now: Instant) {
        self.note(1, now);
        #[cfg(feature = "planted")]
        if planted::planted(Bug::DropDeadLetters) {
            self.settlement.delivered.push(Delivered::forged(letter.sequence, letter.route));
            return;
        }
        self.settlement.dead.push(letter);
    }

    /// It waits in the lane of its Kafka topic.
    #[cfg_attr(not(feature = "planted"), expect(unused_variables, reason = "only a planted bug books the route"))]
    pub(super) fn parked(&mut self, sequence: Sequence, route: RouteId, kafka_topic: Arc<str>, now: Instant) {
        self.note(1, now);
        #[cfg(feature = "planted")]
        if planted::planted(Bug::DropParked) {
            self.settlement.delivered.push(Delivered::forged(sequence, route));
            return;
        }
        self.settlement.parked.push(Parked { sequence, kafka_topic });
    }

    /// Events of a parked lane go elsewhere.
    pub(super) fn lane_move(&mut self, moved: LaneMove, now: Instant) {
        self.note(moved.parked.len() + moved.dead.len(), now);
        self.settlement.lane_moves.push(moved);
    }

    /// Kafka topics that were admitted; the buffer keeps their names.
    pub(super) fn admitted(&mut self, topics: Vec<Arc<str>>, now: Instant) {
        if !topics.is_empty() {
            self.note(0, now);
            self.settlement.admitted.extend(topics);
        }
    }

    /// The lanes are as the configuration with that mark wants them.
    pub(super) fn lanes_are_in_line(&mut self, mark: u64, now: Instant) {
        self.note(0, now);
        self.settlement.in_line_with = Some(mark);
    }

    /// Kafka has committed a watermark.
    pub(super) fn watermark(&mut self, through: Sequence, now: Instant) {
        self.note(0, now);
        self.settlement.watermark = Some(through);
    }

    /// Kafka's last watermark is of that start.
    pub(super) fn heard(&mut self, of: Instance, now: Instant) {
        self.note(0, now);
        self.settlement.heard = Some(of);
    }

    /// These cannot be read, and are passed by.
    pub(super) fn unread(&mut self, first: Sequence, last: Sequence, now: Instant) {
        self.note(0, now);
        if !planted::planted(Bug::UnreadIsDelivered) {
            self.settlement.unread.push((first, last));
        }
    }

    /// A chunk of a parked lane cannot be read: it goes to the end of the lane.
    pub(super) fn lane_unread(&mut self, lane: LaneId, chunk: i64, now: Instant) {
        self.note(0, now);
        if !planted::planted(Bug::UnreadIsDelivered) {
            self.settlement.lane_unread.push((lane, chunk));
        }
    }

    /// Holds a move that must be on disk before a watermark passes it, or the name of who wrote the one before.
    pub(super) fn has_moves(&self) -> bool {
        let Settlement { dead, parked, lane_chunks, unread, lane_unread, lane_moves, heard, .. } = &self.settlement;
        let of_lanes = lane_chunks.iter().any(|(_, _, _, dead)| !dead.is_empty());
        let passed_by = !unread.is_empty() || !lane_unread.is_empty();
        let moved = !lane_moves.is_empty() || passed_by;
        !dead.is_empty() || !parked.is_empty() || of_lanes || moved || heard.is_some()
    }

    /// A chunk of a parked lane is done with.
    pub(super) fn lane_chunk(
        &mut self,
        lane: LaneId,
        chunk: i64,
        delivered: Vec<Delivered>,
        dead: Vec<DeadLetter>,
        now: Instant,
    ) {
        self.note(delivered.len() + dead.len(), now);
        self.settlement.lane_chunks.push((lane, chunk, delivered, dead));
    }

    /// The planted bug: released as soon as librdkafka has it.
    #[cfg(feature = "planted")]
    pub(super) fn release_at_send(&mut self, sequence: Sequence, route: RouteId, now: Instant) {
        self.note(1, now);
        self.settlement.delivered.push(Delivered::forged(sequence, route));
    }

    /// When it shall be handed to the buffer; `None`: nothing to settle.
    pub(super) fn due(&self) -> Option<Instant> {
        let since = self.since?;
        Some(if self.events >= FULL { since } else { since.checked_add(LONGEST_WAIT).unwrap_or(since) })
    }

    /// What there is to settle, if anything.
    pub(super) fn take(&mut self) -> Option<Settlement> {
        self.since.take()?;
        self.events = 0;
        Some(std::mem::take(&mut self.settlement))
    }

    fn note(&mut self, events: usize, now: Instant) {
        self.events += events;
        self.since.get_or_insert(now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn letter(sequence: Sequence) -> DeadLetter {
        DeadLetter { sequence, route: RouteId(1), kafka_topic: Arc::from("t"), reason: "r".into() }
    }

    #[test]
    fn a_settlement_is_due_after_a_short_wait_or_when_it_is_full() {
        let (mut builder, now) = (SettlementBuilder::default(), Instant::now());
        assert_eq!((builder.due(), builder.take().is_none()), (None, true));
        builder.dead(letter(1), now);
        assert_eq!(builder.due(), Some(now + LONGEST_WAIT));
        for sequence in 2..=FULL as u64 {
            builder.dead(letter(sequence), now + LONGEST_WAIT);
        }
        assert_eq!(builder.due(), Some(now));
        assert_eq!(builder.take().map(|s| s.dead.len()), Some(FULL));
        assert_eq!(builder.due(), None);
    }
}
