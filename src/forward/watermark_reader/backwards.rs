//! What of a partition is read next, and what was heard of it: from its end backwards, each offset once.
//!
//! The newest watermark counts, and it is among the newest records unless the buffer has slept or shares its partition with
//! many. So a few offsets are read first, then four times as many before them, and so on, until all that is asked for is
//! known. What a try has read that came to nothing is not read again; what has come to the partition meanwhile is.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use crate::delivered::{CommittedRecord, CommittedWatermark, DeclaredHole};
use crate::forward::watermark_topic::Partitions;

/// Offsets that are read first. A transaction takes two, of about 150 bytes each.
const FIRST: i64 = 20;

/// Each block is so many times as large as the one before.
const GROWTH: i64 = 4;

/// Holes of lanes that are remembered, while a lane is looked after: what may be in doubt are those of the last group,
/// 2,000 events.
const MOST_HOLES: usize = 4_000;

/// What was found.
#[derive(Debug, Default)]
pub(in crate::forward) struct FoundWatermarks {
    /// About the main lane; `None`: this buffer has never committed anything.
    pub(in crate::forward) main: Option<CommittedWatermark>,
    /// About lanes, by Kafka topic.
    pub(in crate::forward) lanes: HashMap<String, CommittedWatermark>,
    /// Holes that were declared for these lanes' topics, as far as they may be unknown to the buffer.
    pub(in crate::forward) holes: VecDeque<DeclaredHole>,
    /// A newer Tidegate has written something about this buffer.
    pub(in crate::forward) newer: bool,
    /// Of the watermark topic.
    pub(in crate::forward) partitions: Partitions,
    /// How long a small question to a broker took that we were connected to: one round trip, or two.
    pub(in crate::forward) round_trip: Duration,
}

/// See the documentation of the module.
#[derive(Debug)]
pub(super) struct Backwards {
    /// Kafka topics whose lanes are asked for.
    lanes: Vec<Arc<str>>,
    /// All of this was read, besides what is open.
    span: Range<i64>,
    /// To be read; the newest last.
    open: Vec<Range<i64>>,
    block: i64,
    main: Option<(i64, CommittedWatermark)>,
    found: HashMap<String, Lane>,
    holes: BTreeMap<i64, DeclaredHole>,
    newer: bool,
}

#[derive(Debug)]
struct Lane {
    at: i64,
    watermark: CommittedWatermark,
    /// All its holes lie behind the record.
    is_whole: bool,
}

impl Backwards {
    /// Nothing was read.
    pub(super) fn new(lanes: Vec<Arc<str>>) -> Self {
        let (main, found, holes) = (None, HashMap::new(), BTreeMap::new());
        Self { lanes, span: 0..0, open: Vec::new(), block: FIRST, main, found, holes, newer: false }
    }

    /// The partition holds these offsets now.
    pub(super) fn holds(&mut self, low: i64, end: i64) {
        if end < self.span.end || low > self.span.end {
            // Another topic under the same name.
            *self = Self::new(std::mem::take(&mut self.lanes));
        }
        if self.span.is_empty() {
            self.span = end..end;
        } else if end > self.span.end {
            self.open.push(self.span.end..end);
            self.span.end = end;
        }
    }

    /// What to read next, of a partition that begins at `low`; `None`: all that is asked for is known, or is not there.
    pub(super) fn next(&mut self, low: i64) -> Option<Range<i64>> {
        if let Some(open) = self.open.last() {
            return Some(open.clone());
        }
        if self.is_complete() || self.span.start <= low {
            return None;
        }
        let from = self.span.start.saturating_sub(self.block).max(low);
        let block = from..self.span.start;
        self.block = self.block.saturating_mul(GROWTH);
        self.span.start = from;
        self.open.push(block.clone());
        Some(block)
    }

    /// A record of what is read now. True: that was the last of it.
    pub(super) fn takes(&mut self, at: i64, record: CommittedRecord) -> bool {
        let Some(open) = self.open.last_mut() else { return true };
        if at >= open.end {
            return true; // it is known
        }
        open.start = at.saturating_add(1);
        let is_last = open.is_empty();
        match record {
            CommittedRecord::Main(watermark) if self.main.as_ref().is_none_or(|(newest, _)| *newest < at) => {
                self.main = Some((at, watermark));
            }
            CommittedRecord::Lane { kafka_topic, watermark, is_whole } => {
                if self.found.get(&kafka_topic).is_none_or(|lane| lane.at < at) {
                    self.found.insert(kafka_topic, Lane { at, watermark, is_whole });
                } else if is_whole && let Some(lane) = self.found.get_mut(&kafka_topic) {
                    // The newest one said nothing of holes, so that this one's are those that count.
                    lane.is_whole = true;
                }
            }
            CommittedRecord::Hole(hole) if self.lanes.iter().any(|lane| hole.kafka_topic.as_deref() == Some(lane)) => {
                self.holes.insert(at, hole);
                if self.holes.len() > MOST_HOLES {
                    self.holes.pop_first();
                }
            }
            CommittedRecord::Newer => self.newer = true,
            CommittedRecord::Main(_) | CommittedRecord::Hole(_) | CommittedRecord::Nothing => {}
        }
        is_last
    }

    /// What was to be read is read to its end.
    pub(super) fn ended(&mut self) {
        self.open.pop();
    }

    /// What was found.
    pub(super) fn into_found(self) -> FoundWatermarks {
        FoundWatermarks {
            main: self.main.map(|(_, watermark)| watermark),
            lanes: self.found.into_iter().map(|(topic, lane)| (topic, lane.watermark)).collect(),
            holes: self.holes.into_values().collect(),
            newer: self.newer,
            ..FoundWatermarks::default()
        }
    }

    fn is_complete(&self) -> bool {
        // Of a lane of which nothing is delivered, nothing is in doubt.
        let known = |lane: &Lane| lane.is_whole || lane.watermark.through() == 0;
        self.main.is_some() && self.lanes.iter().all(|topic| self.found.get(&**topic).is_some_and(known))
    }
}

#[cfg(test)]
#[expect(clippy::cast_sign_loss, reason = "small numbers in tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::watermark::Instance;

    fn main(through: i64) -> CommittedRecord {
        CommittedRecord::Main(CommittedWatermark::forged(through as u64, Instance(1)))
    }

    fn lane(through: u64, is_whole: bool) -> CommittedRecord {
        CommittedRecord::Lane {
            kafka_topic: "late".into(),
            watermark: CommittedWatermark::forged(through, Instance(1)),
            is_whole,
        }
    }

    fn hole(first: u64) -> CommittedRecord {
        CommittedRecord::Hole(DeclaredHole { first, last: first, reason: "r".into(), kafka_topic: Some("late".into()) })
    }

    /// Reads a partition whose records are made by `at`, as long as there is something to read; the offsets that were read.
    fn read(backwards: &mut Backwards, low: i64, at: impl Fn(i64) -> Option<CommittedRecord>) -> Vec<i64> {
        let mut offsets = Vec::new();
        while let Some(range) = backwards.next(low) {
            for offset in range {
                if let Some(said) = at(offset) {
                    offsets.push(offset);
                    if backwards.takes(offset, said) {
                        break;
                    }
                }
            }
            backwards.ended();
        }
        offsets
    }

    #[test]
    fn the_last_block_suffices_when_it_has_the_word_however_long_the_topic_is() {
        let mut backwards = Backwards::new(vec![]);
        backwards.holds(0, 1_000_000);
        let offsets = read(&mut backwards, 0, |offset| (offset % 2 == 0).then(|| main(offset)));
        assert!(offsets.len() <= 10 && offsets.iter().all(|offset| *offset >= 999_980), "{offsets:?}");
        assert_eq!(backwards.into_found().main.map(|watermark| watermark.through()), Some(999_998));
    }

    #[test]
    fn a_try_that_came_to_nothing_is_gone_on_from_and_what_came_meanwhile_is_read_first() {
        let mut backwards = Backwards::new(vec![]);
        backwards.holds(0, 100);
        assert_eq!(backwards.next(0), Some(80..100));
        backwards.takes(85, CommittedRecord::Nothing);
        backwards.holds(0, 104);
        assert_eq!(backwards.next(0), Some(100..104));
        assert!(backwards.takes(103, CommittedRecord::Nothing));
        backwards.ended();
        assert_eq!(backwards.next(0), Some(86..100));
        backwards.ended();
        assert_eq!(backwards.next(0), Some(0..80));
        backwards.holds(0, 50);
        assert_eq!(backwards.next(0), Some(30..50), "another topic");
    }

    #[test]
    fn a_lane_is_known_with_its_own_word_and_the_holes_behind_it() {
        let mut backwards = Backwards::new(vec!["late".into()]);
        backwards.holds(0, 10_000);
        let read = read(&mut backwards, 0, |offset| match offset {
            9_999 => Some(main(9_999)),
            9_000 => Some(lane(70, false)), // the main lane's, which knows no holes
            5_000 => Some(hole(69)),
            4_999 => Some(lane(70, true)),
            4_000 => Some(hole(3)),
            _ => Some(CommittedRecord::Nothing),
        });
        assert!(read.iter().all(|offset| *offset >= 3_000), "all was read");
        let found = backwards.into_found();
        assert_eq!(found.lanes.get("late").map(CommittedWatermark::through), Some(70));
        assert!(found.holes.iter().any(|hole| hole.first == 69));
    }

    #[test]
    fn a_lane_that_has_delivered_nothing_is_known_with_its_newest_word() {
        let mut backwards = Backwards::new(vec!["late".into()]);
        backwards.holds(0, 10_000);
        let newest = |offset| if offset == 9_990 { lane(0, false) } else { main(offset) };
        assert!(read(&mut backwards, 0, |offset| Some(newest(offset))).len() <= 20);
    }

    proptest! {
        /// Wherever tries break off and whatever comes meanwhile: the newest watermark is found, and no offset is read twice.
        #[test]
        fn the_newest_watermark_is_found_and_nothing_is_read_twice(
            watermarks in prop::collection::btree_set(0_i64..3_000, 0..4),
            tries in prop::collection::vec((1_usize..60, 0_i64..40), 1..30),
            low in 0_i64..100,
        ) {
            let mut backwards = Backwards::new(vec![]);
            let (mut end, mut offsets) = (2_000_i64, Vec::new());
            backwards.holds(low, end);
            for (reads, more) in tries {
                let mut left = reads;
                'a_try: while let Some(range) = backwards.next(low) {
                    for offset in range {
                        if left == 0 {
                            break 'a_try;
                        }
                        left -= 1;
                        offsets.push(offset);
                        let said = if watermarks.contains(&offset) { main(offset) } else { CommittedRecord::Nothing };
                        if backwards.takes(offset, said) {
                            break;
                        }
                    }
                    backwards.ended();
                }
                end += more;
                backwards.holds(low, end);
            }
            offsets.extend(read(&mut backwards, low, |offset| Some(if watermarks.contains(&offset) { main(offset) } else { CommittedRecord::Nothing })));
            let newest = watermarks.range(low..end).next_back().copied();
            prop_assert_eq!(backwards.into_found().main.map(|watermark| watermark.through()), newest.map(|at| at as u64));
            let count = offsets.len();
            offsets.sort_unstable();
            offsets.dedup();
            prop_assert_eq!(offsets.len(), count);
        }
    }
}
