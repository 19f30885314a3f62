//! What a gateway said of its buffer in the watermark topic.

use std::collections::BTreeMap;

use uuid::Uuid;

use crate::event::Sequence;
use crate::watermark::{Fate, Record, Waiting};

/// Of one buffer, the last word on each matter.
#[derive(Debug, Default)]
pub(super) struct Said {
    /// Everything up to here has met its fate; `None` when the topic says nothing.
    pub(super) delivered: Option<Sequence>,
    /// ... but these, which the gateway holds and cannot read.
    unread: Vec<(Sequence, Sequence)>,
    /// By Kafka topic what waits, of the topics that are parked.
    waiting: BTreeMap<Box<str>, Waiting>,
    holes: Vec<Hole>,
    /// Readings went, or should have gone, to a topic that is audited.
    pub(super) here: bool,
    /// And to one that is not: the first that was named.
    pub(super) elsewhere: Option<Box<str>>,
    /// Which buffer it was before.
    pub(super) was: Option<Uuid>,
    /// Records in words of a newer Tidegate.
    pub(super) newer: u64,
}

/// Sequences that will never come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Hole {
    pub(super) first: Sequence,
    pub(super) last: Sequence,
    pub(super) fate: Fate,
}

impl Said {
    /// The next record; true when it takes memory of its own (a hole that does not join the one before, a lane).
    pub(super) fn hear(&mut self, record: Record, audited: impl Fn(&str) -> bool) -> bool {
        self.place(&record, audited);
        match record {
            // The topic is read in its order, and the last word counts, also when it is lower than the one before.
            Record::Main { delivered, unread, .. } => {
                self.delivered = Some(delivered);
                self.unread = unread;
            }
            Record::Lane { kafka_topic, waiting: Some(waiting), .. } => {
                return self.waiting.insert(kafka_topic.into(), waiting).is_none();
            }
            Record::Lane { kafka_topic, waiting: None, .. } => drop(self.waiting.remove(&*kafka_topic)),
            Record::Hole { first, last, fate, .. } => return self.hole(Hole { first, last, fate }),
            Record::Identity { was, .. } => self.was = Some(was),
            Record::Topic { .. } => {}
        }
        false
    }

    /// Which topics the buffer has to do with.
    fn place(&mut self, record: &Record, audited: impl Fn(&str) -> bool) {
        // A dead letter is in no topic, and a lane that only waits has not written yet: neither excuses a gap.
        let (topic, wrote) = match record {
            Record::Topic { kafka_topic } => (kafka_topic, true),
            Record::Lane { kafka_topic, delivered, .. } => (kafka_topic, *delivered > 0),
            Record::Hole { kafka_topic: Some(kafka_topic), .. } => (kafka_topic, false),
            Record::Main { .. } | Record::Hole { kafka_topic: None, .. } | Record::Identity { .. } => return,
        };
        if audited(topic) {
            self.here = true;
        } else if wrote && self.elsewhere.is_none() {
            self.elsewhere = Some(topic.as_str().into());
        }
    }

    fn hole(&mut self, hole: Hole) -> bool {
        match self.holes.last_mut() {
            Some(before) if before.fate == hole.fate && before.last.checked_add(1) == Some(hole.first) => {
                before.last = hole.last;
                false
            }
            _ => {
                self.holes.push(hole);
                true
            }
        }
    }

    /// The holes in order, none over another; the earlier fate of what is declared twice.
    pub(super) fn holes(&self) -> Vec<Hole> {
        let mut sorted = self.holes.clone();
        sorted.sort_unstable();
        let mut next = 0;
        sorted.retain_mut(|hole| {
            hole.first = hole.first.max(next);
            let left = hole.first <= hole.last;
            next = next.max(hole.last.saturating_add(1));
            left
        });
        sorted
    }

    /// What the gateway holds and cannot read, in order.
    pub(super) fn unread(&self) -> Vec<(Sequence, Sequence)> {
        let mut unread = self.unread.clone();
        unread.sort_unstable();
        unread
    }

    /// First and last sequences between which parked events wait, in order, none over another.
    pub(super) fn waiting(&self) -> Vec<(Sequence, Sequence)> {
        let mut spans: Vec<_> = self.waiting.values().map(|waiting| (waiting.first, waiting.last)).collect();
        spans.sort_unstable();
        let mut joined: Vec<(Sequence, Sequence)> = Vec::with_capacity(spans.len());
        for (first, last) in spans {
            match joined.last_mut() {
                Some((_, end)) if first <= end.saturating_add(1) => *end = last.max(*end),
                Some(_) | None => joined.push((first, last)),
            }
        }
        joined
    }

    /// How many wait in all.
    pub(super) fn events_waiting(&self) -> u64 {
        self.waiting.values().fold(0, |sum, waiting| sum.saturating_add(waiting.events))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::watermark::Instance;

    fn hole(first: u64, last: u64, fate: Fate) -> Record {
        Record::Hole { first, last, fate, reason: String::new(), kafka_topic: None, at_ms: 0 }
    }

    #[test]
    fn dead_letters_in_a_row_are_one_hole_in_memory() {
        let mut said = Said::default();
        assert!(said.hear(hole(1, 1, Fate::DeadLettered), |_| true));
        assert!((2..1000).all(|sequence| !said.hear(hole(sequence, sequence, Fate::DeadLettered), |_| true)));
        assert!(said.hear(hole(1000, 1000, Fate::Dropped), |_| true));
        assert_eq!(said.holes().len(), 2);
    }

    #[test]
    fn holes_declared_twice_or_one_over_the_other_count_once() {
        let mut said = Said::default();
        for record in [hole(10, 20, Fate::Dropped), hole(5, 12, Fate::Purged), hole(10, 20, Fate::Dropped)] {
            said.hear(record, |_| true);
        }
        let holes: Vec<_> = said.holes().iter().map(|hole| (hole.first, hole.last, hole.fate)).collect();
        assert_eq!(holes, [(5, 12, Fate::Purged), (13, 20, Fate::Dropped)]);
    }

    #[test]
    fn the_last_word_on_a_lane_counts() {
        let mut said = Said::default();
        let lane = |topic: &str, waiting: Option<(u64, u64, u64)>| Record::Lane {
            kafka_topic: topic.into(),
            instance: Instance(1),
            delivered: 0,
            waiting: waiting.map(|(first, last, events)| Waiting { first, last, events }),
            holes: None,
            at_ms: 0,
        };
        said.hear(lane("a", Some((1, 9, 5))), |_| true);
        said.hear(lane("b", Some((8, 12, 2))), |_| true);
        assert_eq!((said.waiting(), said.events_waiting()), (vec![(1, 12)], 7));
        said.hear(lane("a", None), |_| true);
        assert_eq!((said.waiting(), said.events_waiting()), (vec![(8, 12)], 2));
    }
}
