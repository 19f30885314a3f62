//! Any order of storing, settling, parking and reopening, against a model that fits on a page.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Step {
    Store(u64),
    /// Which of the held events of the main lane, and what becomes of them.
    Settle(Vec<(prop::sample::Index, Fate)>),
    /// The first chunk of that lane: every n-th event of it is a dead letter.
    SettleLane(prop::sample::Index, usize),
    Reopen,
    /// From a copy of the files, as after a kill.
    Crash,
}

#[derive(Debug, Clone, Copy)]
enum Fate {
    Delivered,
    Dead,
    Parked(u8),
}

fn any_step() -> impl Strategy<Value = Step> {
    let fate = prop_oneof![3 => Just(Fate::Delivered), 1 => Just(Fate::Dead), 2 => (0u8..2).prop_map(Fate::Parked)];
    prop_oneof![
        4 => (1u64..40).prop_map(Step::Store),
        4 => proptest::collection::vec((any::<prop::sample::Index>(), fate), 1..30).prop_map(Step::Settle),
        2 => (any::<prop::sample::Index>(), 1usize..6).prop_map(|(lane, nth)| Step::SettleLane(lane, nth)),
        1 => Just(Step::Reopen),
        1 => Just(Step::Crash),
    ]
}

/// What must be so.
#[derive(Debug, Default)]
struct Model {
    next: u64,
    main: BTreeSet<u64>,
    /// Each settlement makes a chunk.
    lanes: BTreeMap<String, Vec<Vec<u64>>>,
    delivered: u64,
    dead: u64,
}

impl Model {
    fn settle(&mut self, choices: &[(prop::sample::Index, Fate)]) -> Settlement {
        let mut settlement = Settlement::default();
        let held: Vec<u64> = self.main.iter().copied().collect();
        let mut parked: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for (choice, fate) in choices.iter().filter(|_| !held.is_empty()) {
            let sequence = held[choice.index(held.len())];
            if !self.main.remove(&sequence) {
                continue;
            }
            match fate {
                Fate::Delivered => {
                    self.delivered += 1;
                    settlement.delivered.extend(delivered([sequence]));
                }
                Fate::Dead => {
                    self.dead += 1;
                    settlement.dead.push(dead(sequence));
                }
                Fate::Parked(topic) => {
                    let topic = format!("topic-{topic}");
                    settlement.parked.push(Parked { sequence, kafka_topic: topic.as_str().into() });
                    parked.entry(topic).or_default().insert(sequence);
                }
            }
        }
        for (topic, sequences) in parked {
            self.lanes.entry(topic).or_default().push(sequences.into_iter().collect());
        }
        settlement
    }

    fn settle_lane(&mut self, bench: &mut Bench, lane: prop::sample::Index, nth: usize) {
        if self.lanes.is_empty() {
            return;
        }
        let topic = self.lanes.keys().nth(lane.index(self.lanes.len())).unwrap().clone();
        let id = bench.running.settler.lane(&topic).unwrap();
        let chunk = bench.running.reader.parked(id, 0).unwrap().unwrap();
        let chunks = self.lanes.get_mut(&topic).unwrap();
        assert_eq!(sequences(&chunk.events), chunks.remove(0));
        if chunks.is_empty() {
            self.lanes.remove(&topic);
        }
        let (mut fine, mut refused) = (Vec::new(), Vec::new());
        for (at, stored) in chunk.events.iter().enumerate() {
            if at % nth == nth - 1 {
                refused.push(dead(stored.sequence));
            } else {
                fine.extend(delivered([stored.sequence]));
            }
        }
        self.delivered += fine.len() as u64;
        self.dead += refused.len() as u64;
        bench.settle(Settlement { lane_chunks: vec![(id, chunk.id, fine, refused)], ..Settlement::default() });
    }

    /// A buffer that was just opened holds exactly what it should.
    fn check(&self, bench: &mut Bench) {
        let settled: BTreeSet<u64> = bench.recovered.settled.iter().cloned().flatten().collect();
        let read = bench.read_all();
        let held: Vec<u64> = sequences(&read).into_iter().filter(|s| !settled.contains(s)).collect();
        assert_eq!(held, self.main.iter().copied().collect::<Vec<_>>(), "the main lane, in order");
        for stored in &read {
            assert_eq!(stored.event, event(stored.sequence));
        }
        let topics: BTreeMap<String, LaneId> =
            bench.recovered.lanes.iter().map(|(id, topic)| (topic.to_string(), *id)).collect();
        assert!(topics.keys().eq(self.lanes.keys()), "{topics:?} {:?}", self.lanes);
        for (topic, chunks) in &self.lanes {
            let lane = bench.lane(topics[topic]);
            assert_eq!(&lane.iter().map(|chunk| sequences(&chunk.events)).collect::<Vec<_>>(), chunks);
        }
        let books = bench.totals(|status| status.next_sequence == self.next + 1);
        let parked: usize = self.lanes.values().flatten().map(Vec::len).sum();
        let held = (self.main.len() + parked) as u64;
        assert_eq!(
            (books.received, books.delivered, books.dead_lettered, books.held),
            (self.next, self.delivered, self.dead, held)
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]
    #[test]
    fn nothing_is_lost_or_reordered_and_the_books_balance(steps in proptest::collection::vec(any_step(), 1..25)) {
        let mut dir = tempfile::tempdir().unwrap();
        let mut model = Model::default();
        let mut bench = open(dir.path());
        for step in steps.into_iter().chain([Step::Crash, Step::Reopen]) {
            match step {
                Step::Store(n) => {
                    bench.store(model.next + 1..=model.next + n);
                    model.main.extend(model.next + 1..=model.next + n);
                    model.next += n;
                }
                Step::Settle(choices) => {
                    let settlement = model.settle(&choices);
                    bench.settle(settlement);
                }
                Step::SettleLane(lane, nth) => model.settle_lane(&mut bench, lane, nth),
                Step::Reopen => {
                    bench.close();
                    bench = open(dir.path());
                    model.check(&mut bench);
                }
                Step::Crash => {
                    let left = copy(dir.path());
                    bench.close();
                    dir = left;
                    bench = open(dir.path());
                    model.check(&mut bench);
                }
            }
        }
    }
}
