//! What was handed to librdkafka and is not settled yet: a ring from slot numbers to events.
//!
//! A slot number travels through librdkafka as the message's opaque pointer, so it has 32 bits (armv7) and wraps.
//! Slots are given out in order of sending, which is the order of sequences; the ring holds the events from the
//! oldest unsettled one on. Each producer has a ring of its own, so the report of an older producer cannot be taken
//! for one of the present producer.
//!
//! The ring also remembers events behind the oldest unsettled one that are settled already, in whatever way:
//! when sending starts again from the oldest unsettled event, these must not go a second time.

use std::collections::VecDeque;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::event::{RouteId, Sequence};

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Outstanding {
    /// The time at which librdkafka was polled last.
    now: Option<Instant>,
    entries: VecDeque<Entry>,
    first_slot: u32,
    in_flight: usize,
    in_flight_bytes: usize,
    acked: usize,
}

#[derive(Debug)]
struct Entry {
    sequence: Sequence,
    route: RouteId,
    bytes: u32,
    state: State,
    /// The Kafka topic, and since when librdkafka has it.
    topic: Arc<str>,
    at: Option<Instant>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// librdkafka has it.
    InFlight,
    /// Came back without confirmation; to be sent again or judged.
    Failed,
    /// Kafka has it in a transaction that is not committed yet. If that comes to nothing it goes again.
    Acked,
    /// Confirmed, dead letter or parked.
    Settled,
}

/// What a report says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Confirmed for good.
    Confirmed,
    /// Confirmed inside a transaction.
    Acked,
    /// Not confirmed.
    Failed,
}

/// Where sending starts again.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Restart {
    /// Read on after this sequence; `None`: everything was settled, just read on.
    pub(super) after: Option<Sequence>,
    /// Settled already although they come later; rising.
    pub(super) settled: Vec<RangeInclusive<Sequence>>,
}

impl Outstanding {
    /// Enters an event that is about to be sent, of that cost in memory; the slot is its number for librdkafka.
    pub(super) fn enter(&mut self, sequence: Sequence, route: RouteId, topic: &Arc<str>, bytes: usize) -> u32 {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let offset = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        let (topic, at) = (Arc::clone(topic), self.now);
        self.entries.push_back(Entry { sequence, route, bytes, state: State::InFlight, topic, at });
        self.in_flight += 1;
        self.in_flight_bytes += width(bytes);
        self.first_slot.wrapping_add(offset)
    }

    /// Time has come to that.
    pub(super) fn tick(&mut self, now: Instant) {
        self.now = Some(now);
    }

    /// The Kafka topic of the event that librdkafka has had longest, and for how long.
    pub(super) fn oldest(&self, now: Instant) -> Option<(Duration, &Arc<str>)> {
        let oldest = self.entries.iter().find(|entry| entry.state == State::InFlight)?;
        Some((now.saturating_duration_since(oldest.at.unwrap_or(now)), &oldest.topic))
    }

    /// The Kafka topics of which librdkafka has had an event for so long; at most so many.
    pub(super) fn overdue(&self, limit: Duration, most: usize, now: Instant) -> Vec<Arc<str>> {
        let mut found: Vec<Arc<str>> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.state == State::InFlight) {
            let age = now.saturating_duration_since(entry.at.unwrap_or(now));
            if age < limit || found.len() >= most {
                break; // what comes behind is younger
            }
            if !found.contains(&entry.topic) {
                found.push(Arc::clone(&entry.topic));
            }
        }
        found
    }

    /// Counts what is in flight to that topic as failed. What its reports say later is not heard.
    pub(super) fn fail(&mut self, topic: &str) -> Option<(Sequence, RouteId)> {
        let mut first = None;
        let (mut landed, mut bytes) = (0_usize, 0_usize);
        for entry in self.entries.iter_mut().filter(|entry| entry.state == State::InFlight && &*entry.topic == topic) {
            first.get_or_insert((entry.sequence, entry.route));
            entry.state = State::Failed;
            landed += 1;
            bytes += width(entry.bytes);
        }
        self.in_flight -= landed;
        self.in_flight_bytes -= bytes;
        first
    }

    /// Takes back the newest entry: librdkafka did not take it.
    pub(super) fn withdraw(&mut self) {
        if let Some(entry) = self.entries.pop_back() {
            self.landed(entry.state, entry.bytes);
        }
    }

    /// Enters an event that is settled without being sent.
    pub(super) fn enter_settled(&mut self, sequence: Sequence, route: RouteId) {
        // With nothing unsettled before it, sending can never start again before it.
        if !self.entries.is_empty() {
            let (topic, at) = (Arc::from(""), None);
            self.entries.push_back(Entry { sequence, route, bytes: 0, state: State::Settled, topic, at });
        }
    }

    /// The event in flight in that slot.
    pub(super) fn event(&self, slot: u32) -> Option<(Sequence, RouteId)> {
        let entry = self.entries.get(self.index(slot))?;
        (entry.state == State::InFlight).then_some((entry.sequence, entry.route))
    }

    /// A report for that slot.
    pub(super) fn report(&mut self, slot: u32, verdict: Verdict) {
        let index = self.index(slot);
        let Some(entry) = self.entries.get_mut(index) else { return };
        let (before, bytes) = (entry.state, entry.bytes);
        entry.state = match verdict {
            Verdict::Confirmed => State::Settled,
            Verdict::Acked => State::Acked,
            Verdict::Failed => State::Failed,
        };
        if verdict == Verdict::Acked {
            self.acked += 1;
        }
        self.landed(before, bytes);
        self.forget_settled();
    }

    /// The transaction is committed, with all that was acknowledged in it.
    pub(super) fn committed(&mut self) {
        for entry in self.entries.iter_mut().filter(|entry| entry.state == State::Acked) {
            entry.state = State::Settled;
        }
        self.acked = 0;
        self.forget_settled();
    }

    /// A failed event got its fate: dead letter.
    pub(super) fn settle_failed(&mut self, sequence: Sequence) {
        let failed = |entry: &&mut Entry| entry.sequence == sequence && entry.state == State::Failed;
        if let Some(entry) = self.entries.iter_mut().find(failed) {
            entry.state = State::Settled;
            self.forget_settled();
        }
    }

    /// Has that event of this producer come back well, or got its fate? Events before the oldest unsettled one have.
    pub(super) fn has_come_back(&self, sequence: Sequence) -> bool {
        let index = self.entries.partition_point(|entry| entry.sequence < sequence);
        self.entries
            .get(index)
            .is_none_or(|entry| entry.sequence != sequence || matches!(entry.state, State::Settled | State::Acked))
    }

    /// Events of the open transaction: in flight or acknowledged.
    pub(super) fn uncommitted(&self) -> usize {
        self.in_flight + self.acked
    }

    /// Events from the oldest unsettled one on.
    pub(super) fn remembered(&self) -> usize {
        self.entries.len()
    }

    /// Events that librdkafka has.
    pub(super) fn in_flight(&self) -> usize {
        self.in_flight
    }

    /// Their memory, as it was entered.
    pub(super) fn in_flight_bytes(&self) -> usize {
        self.in_flight_bytes
    }

    /// Gives up everything that is not settled: empties the ring and says where sending starts again.
    pub(super) fn give_up(&mut self) -> Restart {
        let after = self.entries.front().map(|oldest| oldest.sequence.saturating_sub(1));
        let mut settled: Vec<RangeInclusive<Sequence>> = Vec::new();
        for entry in self.entries.iter().filter(|entry| entry.state == State::Settled) {
            match settled.last_mut() {
                Some(last) if last.end() + 1 == entry.sequence => {
                    *last = *last.start()..=entry.sequence;
                }
                Some(_) | None => settled.push(entry.sequence..=entry.sequence),
            }
        }
        let given_out = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.first_slot = self.first_slot.wrapping_add(given_out);
        self.entries.clear();
        self.entries.shrink_to(0);
        self.in_flight = 0;
        self.in_flight_bytes = 0;
        self.acked = 0;
        Restart { after, settled }
    }

    fn index(&self, slot: u32) -> usize {
        width(slot.wrapping_sub(self.first_slot))
    }

    fn landed(&mut self, before: State, bytes: u32) {
        if before == State::InFlight {
            self.in_flight -= 1;
            self.in_flight_bytes -= width(bytes);
        }
    }

    fn forget_settled(&mut self) {
        while self.entries.front().is_some_and(|oldest| oldest.state == State::Settled) {
            self.entries.pop_front();
            self.first_slot = self.first_slot.wrapping_add(1);
        }
    }
}

/// 32 bits fit in every `usize` this is built for.
fn width(n: u32) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

/// Sequences that are settled and come along again when the buffer is read: rising ranges, used up in order.
#[derive(Debug, Default)]
pub(super) struct Skips(VecDeque<RangeInclusive<Sequence>>);

impl Skips {
    /// From ranges in any order.
    pub(super) fn new(mut ranges: Vec<RangeInclusive<Sequence>>) -> Self {
        ranges.sort_unstable_by_key(|range| *range.start());
        Self(ranges.into())
    }

    /// Sending starts again: the settled ones of `restart` join those that were not reached yet.
    pub(super) fn restart(&mut self, settled: Vec<RangeInclusive<Sequence>>) {
        let mut all: Vec<_> = std::mem::take(&mut self.0).into();
        all.extend(settled);
        *self = Self::new(all);
    }

    /// Is this one settled? Asked with rising sequences.
    pub(super) fn take(&mut self, sequence: Sequence) -> bool {
        while let Some(first) = self.0.front() {
            if *first.end() < sequence {
                self.0.pop_front();
            } else {
                return first.contains(&sequence);
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn topic() -> Arc<str> {
        Arc::from("t")
    }

    const ROUTE: RouteId = RouteId(3);

    fn said(confirmed: bool) -> Verdict {
        if confirmed { Verdict::Confirmed } else { Verdict::Failed }
    }

    #[test]
    fn a_topic_that_does_not_come_back_is_found_by_its_age_and_given_up_alone() {
        let start = Instant::now();
        let at = |second| start + Duration::from_secs(second);
        let (slow, quick) = (Arc::<str>::from("slow"), Arc::<str>::from("quick"));
        let mut ring = Outstanding::default();
        ring.tick(start);
        ring.enter(1, ROUTE, &slow, 1);
        let second = ring.enter(2, ROUTE, &quick, 1);
        let limit = Duration::from_secs(5);
        assert_eq!(ring.overdue(limit, 9, at(4)), Vec::<Arc<str>>::new());
        assert_eq!(ring.overdue(limit, 9, at(5)), [Arc::clone(&slow), Arc::clone(&quick)]);
        ring.report(second, Verdict::Confirmed);
        ring.tick(at(3));
        let third = ring.enter(3, ROUTE, &slow, 1);
        assert_eq!(ring.overdue(limit, 9, at(6)), [Arc::clone(&slow)]);
        assert_eq!(ring.oldest(at(6)), Some((Duration::from_secs(6), &slow)));
        assert_eq!(ring.fail("slow"), Some((1, ROUTE)));
        assert_eq!((ring.in_flight(), ring.in_flight_bytes(), ring.event(third)), (0, 0, None));
        assert_eq!(ring.fail("slow"), None);
        assert_eq!(ring.give_up(), Restart { after: Some(0), settled: vec![2..=2] });
    }

    #[test]
    fn what_was_acknowledged_and_not_committed_goes_again_and_what_was_committed_does_not() {
        let mut ring = Outstanding::default();
        let slots: Vec<u32> = (1..=4).map(|sequence| ring.enter(sequence, ROUTE, &topic(), 1)).collect();
        ring.report(slots[0], Verdict::Acked);
        ring.report(slots[1], Verdict::Acked);
        assert_eq!((ring.uncommitted(), ring.in_flight()), (4, 2));
        assert!(ring.has_come_back(2) && !ring.has_come_back(3));
        ring.committed();
        assert_eq!(ring.uncommitted(), 2);
        ring.report(slots[2], Verdict::Acked);
        ring.report(slots[3], Verdict::Acked);
        assert_eq!(ring.give_up(), Restart { after: Some(2), settled: vec![] });
        assert_eq!(ring.uncommitted(), 0);
    }

    #[test]
    fn a_report_finds_its_event_after_the_slots_have_wrapped() {
        let mut ring = Outstanding { first_slot: u32::MAX - 1, ..Outstanding::default() };
        let slots: Vec<u32> = (1..=5).map(|sequence| ring.enter(sequence, ROUTE, &topic(), 10)).collect();
        assert_eq!(slots, [u32::MAX - 1, u32::MAX, 0, 1, 2]);
        ring.report(slots[0], Verdict::Confirmed);
        ring.report(slots[1], Verdict::Confirmed);
        assert_eq!(ring.event(slots[3]), Some((4, ROUTE)));
        assert_eq!((ring.in_flight(), ring.in_flight_bytes()), (3, 30));
    }

    #[test]
    fn an_event_is_settled_when_its_own_report_has_come() {
        let mut ring = Outstanding::default();
        let slots: Vec<u32> = [5, 6, 9].into_iter().map(|sequence| ring.enter(sequence, ROUTE, &topic(), 1)).collect();
        ring.report(slots[1], Verdict::Confirmed);
        assert_eq!([5, 6, 9].map(|sequence| ring.has_come_back(sequence)), [false, true, false]);
        ring.report(slots[0], Verdict::Confirmed);
        ring.report(slots[2], Verdict::Failed);
        assert_eq!([5, 6, 9].map(|sequence| ring.has_come_back(sequence)), [true, true, false]);
    }

    #[test]
    fn a_slot_of_the_past_is_nobody() {
        let mut ring = Outstanding::default();
        let old = ring.enter(7, ROUTE, &topic(), 1);
        ring.report(old, Verdict::Confirmed);
        assert_eq!(ring.event(old), None);
        ring.report(old, Verdict::Confirmed);
        assert_eq!(ring.in_flight(), 0);
    }

    #[test]
    fn sending_starts_again_at_the_oldest_unsettled_and_leaves_out_what_is_settled() {
        let mut ring = Outstanding::default();
        let slots: Vec<u32> = (10..=16).map(|sequence| ring.enter(sequence, ROUTE, &topic(), 1)).collect();
        ring.enter_settled(17, ROUTE);
        ring.report(slots[0], Verdict::Confirmed); // 10
        ring.report(slots[2], Verdict::Confirmed); // 12
        ring.report(slots[3], Verdict::Confirmed); // 13
        ring.report(slots[4], Verdict::Failed); // 14
        assert_eq!(ring.give_up(), Restart { after: Some(10), settled: vec![12..=13, 17..=17] });
        assert_eq!(ring.event(slots[1]), None);
        assert_eq!(ring.give_up(), Restart { after: None, settled: vec![] });
    }

    #[test]
    fn a_failed_event_that_became_a_dead_letter_does_not_hold_the_others_back() {
        let mut ring = Outstanding::default();
        let slots: Vec<u32> = (1..=3).map(|sequence| ring.enter(sequence, ROUTE, &topic(), 1)).collect();
        for (slot, confirmed) in slots.iter().zip([false, true, true]) {
            ring.report(*slot, said(confirmed));
        }
        ring.settle_failed(1);
        assert_eq!(ring.give_up(), Restart { after: None, settled: vec![] });
    }

    #[test]
    fn skips_answer_for_rising_sequences() {
        let mut skips = Skips::new(vec![8..=9, 3..=4]);
        let skipped: Vec<u64> = (1..=10).filter(|sequence| skips.take(*sequence)).collect();
        assert_eq!(skipped, [3, 4, 8, 9]);
    }

    proptest! {
        /// Whatever is confirmed and whatever fails: a restart sends each unsettled event, and no settled one.
        #[test]
        fn a_restart_sends_exactly_what_is_not_settled(reports in prop::collection::vec(any::<Option<bool>>(), 1..60)) {
            let mut ring = Outstanding::default();
            let events: Vec<(u64, Option<bool>)> = (1..).zip(reports).collect();
            let slots: Vec<u32> = events.iter().map(|(sequence, _)| ring.enter(*sequence, ROUTE, &topic(), 1)).collect();
            for (slot, (_, report)) in slots.iter().zip(&events) {
                if let Some(confirmed) = report {
                    ring.report(*slot, said(*confirmed));
                }
            }
            let restart = ring.give_up();
            let mut skips = Skips::default();
            skips.restart(restart.settled);
            let again = |after| events.iter().map(|(sequence, _)| *sequence).filter(move |sequence| *sequence > after);
            let sent: Vec<u64> =
                restart.after.map_or(vec![], |after| again(after).filter(|sequence| !skips.take(*sequence)).collect());
            let unsettled: Vec<u64> =
                events.iter().filter(|(_, report)| *report != Some(true)).map(|(sequence, _)| *sequence).collect();
            prop_assert_eq!(sent, unsettled);
        }
    }
}
