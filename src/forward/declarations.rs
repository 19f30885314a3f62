//! What the next transaction of the main lane says besides its watermark: holes that readers will see, which parked Kafka
//! topics have something new to wait for, and, once a start, to which Kafka topics readings go.
//!
//! Every hole is declared with or after the watermark that passes it, whoever made it, and kept here until the transaction
//! that declares it is committed. After a restart those that may not have been declared are declared again: their keys
//! are made of their sequences, so that twice is harmless.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use uuid::Uuid;

use crate::buffer;
use crate::event::Sequence;
use crate::watermark::{Fate, MORE_TOPICS, Record};

/// So many holes go into one transaction, about 150 bytes each; with more of them waiting it is closed.
const MOST: usize = 1_000;

/// Kafka topics that are named, about 100 bytes each in memory and in the watermark topic. A gateway has some dozens;
/// beyond, "further ones" is said.
const MOST_TOPICS: usize = 1_000;

/// So many of them go into one transaction.
const MOST_TOPICS_AT_ONCE: usize = 100;

/// So many lanes go into one transaction, 500 bytes each at most: together with the holes they fit into librdkafka's queue
/// of 1 MiB. Unbounded, 5,200 topics that were parked between two commits were a "queue full" for ever.
const MOST_LANES: usize = 500;

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Declarations {
    /// Without transactions nothing is declared, and nothing is kept for it.
    is_unheard: bool,
    holes: Vec<Hole>,
    /// So many of them are in the open transaction.
    sealed: usize,
    /// This buffer was another one.
    identity: Option<Record>,
    lanes: BTreeSet<Arc<str>>,
    sealed_lanes: BTreeSet<Arc<str>>,
    /// Kafka topics that readings went to, since the start.
    wrote: HashSet<Arc<str>>,
    /// The last of them: most readings go where the one before went.
    latest: Option<Arc<str>>,
    /// Those that are to be said.
    topics: BTreeSet<Arc<str>>,
    sealed_topics: BTreeSet<Arc<str>>,
}

#[derive(Debug)]
struct Hole {
    first: Sequence,
    last: Sequence,
    kafka_topic: Arc<str>,
    fate: Fate,
    reason: String,
    at_ms: i64,
}

impl Declarations {
    /// For delivery without transactions.
    pub(super) fn unheard() -> Self {
        Self { is_unheard: true, ..Self::default() }
    }

    /// A dead letter. Neighbours with one reason and one topic become one hole.
    pub(super) fn dead(&mut self, sequence: Sequence, kafka_topic: &Arc<str>, reason: &str, at_ms: i64) {
        if self.is_unheard {
            return;
        }
        if self.holes.len() > self.sealed
            && let Some(last) = self.holes.last_mut()
            && last.last.checked_add(1) == Some(sequence)
            && last.fate == Fate::DeadLettered
            && last.kafka_topic == *kafka_topic
            && last.reason == reason
        {
            last.last = sequence;
            return;
        }
        let (kafka_topic, fate, reason) = (Arc::clone(kafka_topic), Fate::DeadLettered, reason.to_owned());
        self.holes.push(Hole { first: sequence, last: sequence, kafka_topic, fate, reason, at_ms });
    }

    /// What damage to the file has taken; said once a start.
    pub(super) fn lost(&mut self, hole: &buffer::Hole) {
        let &buffer::Hole { first, last, ref reason, at_ms } = hole;
        let (kafka_topic, fate, reason) = (Arc::from(""), Fate::Lost, reason.clone());
        self.holes.push(Hole { first, last, kafka_topic, fate, reason, at_ms });
    }

    /// Events were parked for that topic, or its lane was sent.
    pub(super) fn lane(&mut self, kafka_topic: &Arc<str>) {
        if !self.is_unheard && !self.lanes.contains(kafka_topic) {
            self.lanes.insert(Arc::clone(kafka_topic));
        }
    }

    /// A reading goes to that Kafka topic.
    pub(super) fn wrote(&mut self, kafka_topic: &Arc<str>) {
        if self.is_unheard || self.latest.as_ref().is_some_and(|latest| Arc::ptr_eq(latest, kafka_topic)) {
            return;
        }
        self.latest = Some(Arc::clone(kafka_topic));
        if self.wrote.contains(kafka_topic) {
            return;
        }
        let named = if self.wrote.len() < MOST_TOPICS { Arc::clone(kafka_topic) } else { Arc::from(MORE_TOPICS) };
        if self.wrote.insert(Arc::clone(&named)) {
            self.topics.insert(named);
        }
    }

    /// This buffer was another one; said once a start.
    pub(super) fn was(&mut self, was: Uuid, last: Sequence, at_ms: i64) {
        self.identity = Some(Record::Identity { was, last, at_ms });
    }

    /// There is something to say.
    pub(super) fn any(&self) -> bool {
        !self.holes.is_empty() || !self.lanes.is_empty() || !self.topics.is_empty() || self.identity.is_some()
    }

    /// As much as one transaction takes.
    pub(super) fn is_full(&self) -> bool {
        self.holes.len() >= MOST || self.lanes.len() >= MOST_LANES
    }

    /// The identity, topics and the holes for the transaction that is being sealed.
    pub(super) fn seal(&mut self) -> impl Iterator<Item = Record> {
        self.sealed = self.holes.len().min(MOST);
        while self.sealed_topics.len() < MOST_TOPICS_AT_ONCE
            && let Some(topic) = self.topics.pop_first()
        {
            self.sealed_topics.insert(topic);
        }
        let topics = self.sealed_topics.iter().map(|topic| Record::Topic { kafka_topic: topic.to_string() });
        self.identity.iter().cloned().chain(topics).chain(self.holes.iter().take(self.sealed).map(|hole| {
            Record::Hole {
                first: hole.first,
                last: hole.last,
                fate: hole.fate,
                reason: hole.reason.clone(),
                kafka_topic: (!hole.kafka_topic.is_empty()).then(|| hole.kafka_topic.to_string()),
                at_ms: hole.at_ms,
            }
        }))
    }

    /// The lanes for the transaction that is being sealed.
    pub(super) fn seal_lanes(&mut self) -> Vec<Arc<str>> {
        self.sealed_lanes = std::mem::take(&mut self.lanes);
        if let Some(next) = self.sealed_lanes.iter().nth(MOST_LANES).cloned() {
            self.lanes = self.sealed_lanes.split_off(&next);
        }
        self.sealed_lanes.iter().cloned().collect()
    }

    /// What the stream says of that lane is on its way. The record has the same key as the lane's own watermark, and the later
    /// one is what a start finds: whoever writes the lane's own before this one is committed may have it covered by the older
    /// word, and after a crash send again what is delivered.
    pub(super) fn is_under_way(&self, kafka_topic: &str) -> bool {
        self.sealed_lanes.contains(kafka_topic)
    }

    /// That transaction is committed.
    pub(super) fn committed(&mut self) {
        self.holes.drain(..self.sealed.min(self.holes.len()));
        self.sealed = 0;
        self.identity = None;
        self.sealed_lanes.clear();
        self.sealed_topics.clear();
    }

    /// It is not, or nobody knows: all of it is to be said again.
    pub(super) fn undone(&mut self) {
        self.sealed = 0;
        self.lanes.append(&mut self.sealed_lanes);
        self.topics.append(&mut self.sealed_topics);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn first_and_last(declarations: &mut Declarations) -> Vec<(Sequence, Sequence)> {
        let holes = declarations.seal();
        holes
            .filter_map(|r| if let Record::Hole { first, last, .. } = r { Some((first, last)) } else { None })
            .collect()
    }

    fn topics(declarations: &mut Declarations) -> Vec<String> {
        let records = declarations.seal();
        records.filter_map(|r| if let Record::Topic { kafka_topic } = r { Some(kafka_topic) } else { None }).collect()
    }

    #[test]
    fn without_transactions_nothing_is_kept() {
        let mut declarations = Declarations::unheard();
        let topic = Arc::from("t");
        for sequence in [1, 3, 5] {
            declarations.dead(sequence, &topic, "too large", 0);
        }
        declarations.lane(&topic);
        declarations.wrote(&topic);
        assert!(!declarations.any());
    }

    #[test]
    fn each_topic_is_said_once_and_again_when_that_was_not_committed() {
        let mut declarations = Declarations::default();
        let (a, b): (Arc<str>, Arc<str>) = (Arc::from("a"), Arc::from("b"));
        for topic in [&a, &a, &b, &a] {
            declarations.wrote(topic);
        }
        assert_eq!(topics(&mut declarations), ["a", "b"]);
        declarations.undone();
        assert!(declarations.any());
        assert_eq!(topics(&mut declarations), ["a", "b"]);
        declarations.committed();
        declarations.wrote(&b);
        assert!(!declarations.any());
    }

    #[test]
    fn a_lane_is_under_way_until_it_is_known_what_became_of_its_transaction() {
        let mut declarations = Declarations::default();
        let lane: Arc<str> = Arc::from("a");
        for end in [Declarations::committed, Declarations::undone] {
            declarations.lane(&lane);
            assert!(!declarations.is_under_way("a"));
            assert_eq!(declarations.seal_lanes(), [Arc::clone(&lane)]);
            assert!(declarations.is_under_way("a") && !declarations.is_under_way("b"));
            end(&mut declarations);
            assert!(!declarations.is_under_way("a"));
        }
    }

    #[test]
    fn topics_beyond_the_bound_are_said_together_and_no_transaction_is_long() {
        let mut declarations = Declarations::default();
        for number in 0..MOST_TOPICS + 50 {
            declarations.wrote(&Arc::from(format!("t{number:05}")));
        }
        let mut said = Vec::new();
        while declarations.any() {
            let some = topics(&mut declarations);
            assert!(some.len() <= MOST_TOPICS_AT_ONCE);
            said.extend(some);
            declarations.committed();
        }
        assert_eq!(said.len(), MOST_TOPICS + 1);
        assert_eq!(said[0], MORE_TOPICS);
    }

    #[test]
    fn one_transaction_declares_a_bounded_number_of_lanes_and_the_next_ones_the_rest() {
        let mut declarations = Declarations::default();
        let topics: Vec<Arc<str>> = (0..=MOST_LANES * 2).map(|n| format!("t{n}").into()).collect();
        for topic in &topics {
            declarations.lane(topic);
        }
        assert!(declarations.is_full());
        assert_eq!(declarations.seal_lanes().len(), MOST_LANES);
        declarations.undone();
        let mut said = BTreeSet::new();
        for lanes in [MOST_LANES, MOST_LANES, 1] {
            let sealed = declarations.seal_lanes();
            assert_eq!(sealed.len(), lanes);
            said.extend(sealed);
            declarations.committed();
        }
        assert_eq!(said.len(), topics.len());
        assert!(!declarations.any());
    }

    #[test]
    fn neighbours_are_one_hole_and_what_was_not_committed_is_declared_again() {
        let (mut declarations, topic) = (Declarations::default(), Arc::from("t"));
        for sequence in [3, 4, 5, 7] {
            declarations.dead(sequence, &topic, "too large", 0);
        }
        declarations.dead(8, &topic, "other", 0);
        assert_eq!(first_and_last(&mut declarations), [(3, 5), (7, 7), (8, 8)]);
        declarations.undone();
        assert_eq!(first_and_last(&mut declarations), [(3, 5), (7, 7), (8, 8)]);
        // A hole that was made while they were on their way is not lost with them.
        declarations.dead(9, &topic, "other", 0);
        declarations.lane(&topic);
        declarations.committed();
        assert_eq!(first_and_last(&mut declarations), [(9, 9)]);
        assert_eq!(declarations.seal_lanes(), [Arc::clone(&topic)]);
        declarations.undone();
        assert!(declarations.any());
        assert_eq!((declarations.seal_lanes().len(), first_and_last(&mut declarations).len()), (1, 1));
        declarations.committed();
        assert!(!declarations.any());
    }
}
