//! A set of sequences that is small however it is filled.
//!
//! Several partitions are read at once and one is ahead of the other, so that for a while every tenth sequence is there
//! and nine are to come. Therefore sequences stand as bits in blocks of 512; a block that is full becomes part of a
//! range of blocks, and a stream without gaps is one range.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::event::Sequence;

/// Sequences of a block: its bits fill one cache line.
const BLOCK: u64 = 512;

/// The highest sequence that a buffer can give: SQLite's integers end there.
pub(super) const MOST: Sequence = i64::MAX.cast_unsigned();

/// One bit a sequence, the first in the lowest bit of the first word.
type Bits = [u64; 8];

const FULL: Bits = [u64::MAX; 8];

/// Which sequences have been seen.
#[derive(Debug, Default)]
pub(super) struct Sequences {
    /// First and last block of what is complete.
    full: BTreeMap<u64, u64>,
    /// Blocks of which some are there.
    partial: BTreeMap<u64, Bits>,
    count: u64,
    first: Option<Sequence>,
    last: Option<Sequence>,
}

impl Sequences {
    /// Puts a sequence, of 1 to [`MOST`], into the set; false when it is there already.
    pub(super) fn insert(&mut self, sequence: Sequence) -> bool {
        let (block, word, bit) = place(sequence);
        if let Some(bits) = self.partial.get_mut(&block) {
            let Some(word) = bits.get_mut(word) else { return false };
            if *word & bit != 0 {
                return false;
            }
            *word |= bit;
            if *bits == FULL {
                self.partial.remove(&block);
                self.complete(block);
            }
        } else if self.is_full(block) {
            return false;
        } else {
            let mut bits = Bits::default();
            if let Some(word) = bits.get_mut(word) {
                *word = bit;
            }
            self.partial.insert(block, bits);
        }
        self.count += 1;
        self.first = Some(self.first.map_or(sequence, |first| first.min(sequence)));
        self.last = self.last.max(Some(sequence));
        true
    }

    /// Is it there?
    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        let (block, word, bit) = place(sequence);
        match self.partial.get(&block) {
            Some(bits) => bits.get(word).is_some_and(|word| word & bit != 0),
            None => self.is_full(block),
        }
    }

    /// How many.
    pub(super) fn count(&self) -> u64 {
        self.count
    }

    /// The lowest.
    pub(super) fn first(&self) -> Option<Sequence> {
        self.first
    }

    /// The highest.
    pub(super) fn last(&self) -> Option<Sequence> {
        self.last
    }

    /// Entries that take memory: about 130 bytes each.
    pub(super) fn entries(&self) -> usize {
        self.full.len() + self.partial.len()
    }

    /// Forgets the lower half of what takes memory; the highest sequence that is not known any more, 0 when none.
    pub(super) fn forget_half(&mut self) -> Sequence {
        let half = self.entries() / 2;
        let mut blocks: Vec<u64> = self.partial.keys().copied().chain(self.full.values().copied()).collect();
        blocks.sort_unstable();
        let Some(floor) = blocks.get(half).copied() else { return 0 };
        self.partial = self.partial.split_off(&(floor + 1));
        self.full.retain(|_, last| *last > floor);
        last_of(floor)
    }

    /// Forgets the blocks up to this sequence, the end of one.
    pub(super) fn forget_up_to(&mut self, floor: Sequence) {
        let (block, _, _) = place(floor);
        self.partial = self.partial.split_off(&(block + 1));
        self.full.retain(|_, last| *last > block);
    }

    /// What is missing between these two, in order, as first and last of each gap.
    pub(super) fn gaps(&self, within: RangeInclusive<Sequence>, mut found: impl FnMut(Sequence, Sequence)) {
        let (mut next, end) = within.into_inner();
        self.runs(next, |first, last| {
            if first > next && next <= end {
                found(next, first.saturating_sub(1).min(end));
            }
            next = next.max(last.saturating_add(1));
        });
        if next <= end {
            found(next, end);
        }
    }

    /// What is there, in order, from the block of `from` on; neighbouring runs may touch.
    fn runs(&self, from: Sequence, mut run: impl FnMut(Sequence, Sequence)) {
        let (from, _, _) = place(from);
        let before = self.full.range(..from).next_back().filter(|(_, last)| **last >= from);
        let mut full = before.into_iter().chain(self.full.range(from..)).peekable();
        let mut partial = self.partial.range(from..).peekable();
        loop {
            match (full.peek(), partial.peek()) {
                (Some((first, last)), other) if other.is_none_or(|(block, _)| first < block) => {
                    run(first_of(**first), last_of(**last));
                    full.next();
                }
                (_, Some((block, bits))) => {
                    runs_of(first_of(**block), bits, &mut run);
                    partial.next();
                }
                (_, None) => return,
            }
        }
    }

    fn is_full(&self, block: u64) -> bool {
        self.full.range(..=block).next_back().is_some_and(|(_, last)| block <= *last)
    }

    /// Makes a block part of a range, together with the ranges beside it.
    fn complete(&mut self, block: u64) {
        let (mut first, mut last) = (block, block);
        if let Some(after) = self.full.remove(&(block + 1)) {
            last = after;
        }
        if let Some((before, end)) = self.full.range(..block).next_back().map(|(before, end)| (*before, *end))
            && end + 1 == block
        {
            first = before;
        }
        self.full.insert(first, last);
    }
}

/// Block, word in it, bit in that.
fn place(sequence: Sequence) -> (u64, usize, u64) {
    let index = sequence.saturating_sub(1);
    let in_block = index % BLOCK;
    (index / BLOCK, usize::try_from(in_block / 64).unwrap_or_default(), 1_u64.rotate_left(low_bits(in_block)))
}

fn low_bits(in_block: u64) -> u32 {
    u32::try_from(in_block % 64).unwrap_or_default()
}

fn first_of(block: u64) -> Sequence {
    block.saturating_mul(BLOCK).saturating_add(1)
}

fn last_of(block: u64) -> Sequence {
    block.saturating_add(1).saturating_mul(BLOCK)
}

fn runs_of(first: Sequence, bits: &Bits, run: &mut impl FnMut(Sequence, Sequence)) {
    let mut start = first;
    for word in bits {
        let (mut left, mut at) = (*word, start);
        while left != 0 {
            let zeros = left.trailing_zeros();
            left >>= zeros;
            let ones = left.trailing_ones();
            at = at.saturating_add(zeros.into());
            run(at, at.saturating_add(ones.into()).saturating_sub(1));
            at = at.saturating_add(ones.into());
            left = left.checked_shr(ones).unwrap_or(0);
        }
        start = start.saturating_add(64);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    fn gaps(set: &Sequences, within: RangeInclusive<u64>) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        set.gaps(within, |first, last| gaps.push((first, last)));
        gaps
    }

    #[test]
    fn a_stream_without_gaps_is_one_entry() {
        let mut set = Sequences::default();
        for sequence in 1..=BLOCK * 100 {
            assert!(set.insert(sequence));
        }
        assert_eq!(set.entries(), 1);
        assert_eq!(gaps(&set, 1..=BLOCK * 100), []);
        assert_eq!(gaps(&set, 1..=BLOCK * 100 + 5), [(BLOCK * 100 + 1, BLOCK * 100 + 5)]);
        assert!(!set.insert(77));
    }

    #[test]
    fn partitions_read_one_after_the_other_join_to_one_entry() {
        let mut set = Sequences::default();
        for partition in 1..=7 {
            for round in 0..BLOCK {
                assert!(set.insert(round * 7 + partition));
            }
        }
        assert_eq!(set.entries(), 1);
        assert_eq!(gaps(&set, 1..=7 * BLOCK), []);
    }

    #[test]
    fn the_ends_of_the_numbers_are_held_too() {
        let mut set = Sequences::default();
        for sequence in [MOST, MOST - 1, 1] {
            assert!(set.insert(sequence));
            assert!(!set.insert(sequence));
        }
        assert_eq!(gaps(&set, 1..=u64::MAX), [(2, MOST - 2), (MOST + 1, u64::MAX)]);
    }

    #[test]
    fn what_is_forgotten_is_the_lower_half() {
        let mut set = Sequences::default();
        for sequence in (1..=100 * BLOCK).step_by(2) {
            set.insert(sequence);
        }
        let floor = set.forget_half();
        assert_eq!(floor, 51 * BLOCK);
        assert_eq!(set.entries(), 49);
        assert!(set.contains(floor + 1) && !set.contains(floor - 1));
    }

    proptest! {
        #[test]
        fn it_is_a_set(
            inserts in prop::collection::vec(prop_oneof![1..40_u64, 480..1100_u64, 1..200_000_u64], 0..400),
            dense in prop::collection::vec((0..8_u64, 1..4_u64), 0..3),
            from in 1..3000_u64, len in 0..3000_u64,
        ) {
            let (mut set, mut model) = (Sequences::default(), BTreeSet::new());
            let dense = dense.iter().flat_map(|(block, blocks)| block * BLOCK + 1..=(block + blocks) * BLOCK);
            for sequence in inserts.into_iter().chain(dense) {
                prop_assert_eq!(set.contains(sequence), model.contains(&sequence));
                prop_assert_eq!(set.insert(sequence), model.insert(sequence));
            }
            prop_assert_eq!(set.count(), model.len() as u64);
            prop_assert_eq!(set.first(), model.first().copied());
            prop_assert_eq!(set.last(), model.last().copied());
            let missing: Vec<u64> = (from..=from + len).filter(|s| !model.contains(s)).collect();
            let gaps = gaps(&set, from..=from + len);
            let listed: Vec<u64> = gaps.iter().flat_map(|(first, last)| *first..=*last).collect();
            prop_assert_eq!(listed, missing);
            // Gaps are whole: between two of them is something.
            prop_assert!(gaps.windows(2).all(|two| two[0].1 + 1 < two[1].0));
        }
    }
}
