//! What the main lane has passed by because it could not be read.
//!
//! A chunk that cannot be read today may be readable tomorrow: the memory, the card, the version may have been to blame.
//! So no watermark vouches for it: each one names what it leaves out. The buffer has it written down as well, and when it
//! is opened again and can read it, gives it a new number behind all others; then the old one counts as settled and leaves
//! the list. The list travels in the watermark itself, so that it changes in the very transaction that deals with such an
//! event: also with one that could be read a moment after the buffer had tried in vain, and is sent under its old number.

use std::collections::BTreeSet;

use crate::event::Sequence;
use crate::planted::{Bug, planted};

/// Spans that a watermark names: 25 bytes each in every transaction. Of more, neighbours are joined; what lies between
/// them is on the books of the buffer as delivered, so that naming it as well harms nobody but after a crash in the same
/// moment, which may then repeat it.
const MOST: usize = 100;

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Unread {
    /// In order, neither over nor beside each other.
    spans: Vec<(Sequence, Sequence)>,
    /// Of these, what has found its way since the last committed watermark.
    late: BTreeSet<Sequence>,
    /// The watermark that is under way: what it names, and what was late until then.
    sealed: (Vec<(Sequence, Sequence)>, BTreeSet<Sequence>),
}

impl Unread {
    /// These could not be read.
    pub(super) fn add(&mut self, first: Sequence, last: Sequence) {
        if first <= last && !planted(Bug::UnreadIsDelivered) {
            self.spans.push((first, last));
            self.spans.sort_unstable();
            self.spans.dedup_by(|next, before| {
                let joins = next.0 <= before.1.saturating_add(1);
                if joins {
                    before.1 = before.1.max(next.1);
                }
                joins
            });
        }
    }

    /// Sent, or settled in another way.
    pub(super) fn dealt_with(&mut self, sequence: Sequence) {
        if self.spans.iter().any(|(first, last)| (*first..=*last).contains(&sequence)) {
            self.late.insert(sequence);
        }
    }

    /// What was sent behind that sequence is in doubt, and goes again.
    pub(super) fn gone_back(&mut self, after: Sequence) {
        self.late.split_off(&after.saturating_add(1));
    }

    /// For the watermark that is being sealed.
    pub(super) fn seal(&mut self) -> Vec<(Sequence, Sequence)> {
        self.sealed = (joined(without(&self.spans, &self.late)), self.late.clone());
        self.sealed.0.clone()
    }

    /// That watermark is committed.
    pub(super) fn committed(&mut self) {
        let (_, late) = std::mem::take(&mut self.sealed);
        self.spans = without(&self.spans, &late);
        self.late.retain(|sequence| !late.contains(sequence));
    }

    /// What the last committed watermark leaves out. `is_sealed`: it reaches as far as the one that was under way, which it
    /// may be.
    pub(super) fn watermarks_found(&mut self, unread: &[(Sequence, Sequence)], is_sealed: bool) {
        if is_sealed && unread == self.sealed.0 {
            self.committed();
        }
        for (first, last) in unread {
            self.add(*first, *last);
        }
    }
}

fn without(spans: &[(Sequence, Sequence)], gone: &BTreeSet<Sequence>) -> Vec<(Sequence, Sequence)> {
    let mut left = Vec::with_capacity(spans.len());
    for (first, last) in spans {
        let mut from = *first;
        for sequence in gone.range(first..=last) {
            if from < *sequence {
                left.push((from, sequence.saturating_sub(1)));
            }
            from = sequence.saturating_add(1);
        }
        if from <= *last {
            left.push((from, *last));
        }
    }
    left
}

/// At most [`MOST`]: those with the least between them become one.
fn joined(mut spans: Vec<(Sequence, Sequence)>) -> Vec<(Sequence, Sequence)> {
    while spans.len() > MOST {
        let between = |pair: &[(Sequence, Sequence)]| match pair {
            [(_, end), (start, _)] => start.saturating_sub(*end),
            _ => Sequence::MAX,
        };
        let nearest = spans.windows(2).enumerate().min_by_key(|(_, pair)| between(pair)).map_or(0, |(at, _)| at);
        let (_, last) = spans.remove(nearest + 1);
        if let Some(span) = spans.get_mut(nearest) {
            span.1 = last;
        }
    }
    spans
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unread(spans: &[(Sequence, Sequence)]) -> Unread {
        let mut unread = Unread::default();
        for (first, last) in spans {
            unread.add(*first, *last);
        }
        unread
    }

    #[test]
    fn what_is_sent_late_is_left_out_no_longer_once_it_is_committed() {
        let mut own = unread(&[(5, 9), (20, 20)]);
        for sequence in [5, 6, 7, 20, 30] {
            own.dealt_with(sequence);
        }
        assert_eq!(own.seal(), [(8, 9)]);
        own.committed();
        assert_eq!(own.seal(), [(8, 9)]);
        own.committed();
        own.dealt_with(8);
        own.dealt_with(9);
        assert_eq!(own.seal(), []);
    }

    #[test]
    fn a_transaction_that_came_to_nothing_leaves_them_unread() {
        let mut own = unread(&[(5, 9)]);
        for sequence in 5..=9 {
            own.dealt_with(sequence);
        }
        assert_eq!(own.seal(), []);
        own.gone_back(4);
        own.watermarks_found(&[(5, 9)], true);
        assert_eq!(own.seal(), [(5, 9)]);
    }

    #[test]
    fn a_transaction_in_doubt_that_happened_leaves_nothing() {
        let mut own = unread(&[(5, 9)]);
        for sequence in 5..=9 {
            own.dealt_with(sequence);
        }
        assert_eq!(own.seal(), []);
        own.gone_back(4);
        own.watermarks_found(&[], true);
        own.add(12, 12);
        assert_eq!(own.seal(), [(12, 12)]);
    }

    #[test]
    fn neighbours_are_one_and_the_list_is_bounded_without_leaving_anything_out() {
        assert_eq!(unread(&[(5, 9), (1, 2), (10, 12), (3, 3), (6, 7)]).seal(), [(1, 3), (5, 12)]);
        let many: Vec<_> = (0..1_000).map(|n: u64| (n * n, n * n)).collect();
        let sealed = unread(&many).seal();
        assert_eq!(sealed.len(), MOST);
        assert!(many.iter().all(|(n, _)| sealed.iter().any(|(first, last)| (*first..=*last).contains(n))));
    }
}
