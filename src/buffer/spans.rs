//! Sets of sequences that are mostly contiguous.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use crate::event::Sequence;

/// A set of sequences as spans that neither overlap nor touch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Spans(BTreeMap<Sequence, Sequence>);

impl FromIterator<Sequence> for Spans {
    fn from_iter<T: IntoIterator<Item = Sequence>>(sequences: T) -> Self {
        let mut spans = Self::default();
        for sequence in sequences {
            spans.insert(sequence);
        }
        spans
    }
}

impl Spans {
    /// Adds one; false when it was there.
    pub(super) fn insert(&mut self, sequence: Sequence) -> bool {
        match self.0.range_mut(..=sequence).next_back() {
            Some((_, last)) if *last >= sequence => return false,
            // In order is the ordinary case: the span before grows.
            Some((_, last)) if last.checked_add(1) == Some(sequence) => {
                *last = sequence;
                self.join_next(sequence);
            }
            _ => {
                let last = sequence.checked_add(1).and_then(|next| self.0.remove(&next)).unwrap_or(sequence);
                self.0.insert(sequence, last);
            }
        }
        true
    }

    /// Adds all from `first` to `last`. Spans of a damaged file may end where numbers do, so one more saturates.
    pub(super) fn insert_span(&mut self, mut first: Sequence, mut last: Sequence) {
        if first > last {
            return;
        }
        if let Some((&start, &end)) = self.0.range(..=first).next_back()
            && end.saturating_add(1) >= first
        {
            first = start;
            last = last.max(end);
        }
        while let Some((&start, &end)) = self.0.range(first..=last.saturating_add(1)).next() {
            self.0.remove(&start);
            last = last.max(end);
        }
        self.0.insert(first, last);
    }

    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        self.span_of(sequence).is_some()
    }

    /// The span that holds it.
    pub(super) fn span_of(&self, sequence: Sequence) -> Option<(Sequence, Sequence)> {
        let (&first, &last) = self.0.range(..=sequence).next_back()?;
        (last >= sequence).then_some((first, last))
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (Sequence, Sequence)> {
        self.0.iter().map(|(first, last)| (*first, *last))
    }

    /// `sequence` ends a span: the next one may touch it now.
    fn join_next(&mut self, sequence: Sequence) {
        let Some(end) = sequence.checked_add(1).and_then(|next| self.0.remove(&next)) else { return };
        if let Some((_, last)) = self.0.range_mut(..=sequence).next_back() {
            *last = end;
        }
    }
}

/// The settled sequences of the main lane: delivered, dead or parked. A cursor, and spans above it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Settled {
    released: Sequence,
    above: Spans,
}

impl Settled {
    /// As read from disk.
    pub(super) fn new(released: Sequence, spans: impl IntoIterator<Item = (Sequence, Sequence)>) -> Self {
        let mut settled = Self { released, above: Spans::default() };
        for (first, last) in spans {
            settled.insert_span(first, last);
        }
        settled
    }

    /// Everything up to here is settled.
    pub(super) fn released(&self) -> Sequence {
        self.released
    }

    pub(super) fn contains(&self, sequence: Sequence) -> bool {
        sequence <= self.released || self.above.contains(sequence)
    }

    /// The span above the cursor that holds it.
    pub(super) fn span_of(&self, sequence: Sequence) -> Option<(Sequence, Sequence)> {
        self.above.span_of(sequence)
    }

    pub(super) fn insert_span(&mut self, first: Sequence, last: Sequence) {
        self.above.insert_span(first.max(self.released.saturating_add(1)), last);
        while let Some((&first, &last)) = self.above.0.first_key_value()
            && first <= self.released.saturating_add(1)
        {
            self.above.0.remove(&first);
            self.released = self.released.max(last);
        }
    }

    /// The spans above the cursor, in order.
    pub(super) fn above(&self) -> impl Iterator<Item = (Sequence, Sequence)> {
        self.above.iter()
    }

    /// The same as ranges.
    pub(super) fn ranges(&self) -> Vec<RangeInclusive<Sequence>> {
        self.above().map(|(first, last)| first..=last).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn spans_are_the_set_of_what_was_inserted(steps in proptest::collection::vec((1u64..60, 0u64..6), 0..60)) {
            let (mut spans, mut settled, mut model) = (Spans::default(), Settled::default(), BTreeSet::new());
            for (first, more) in steps {
                if more == 0 {
                    prop_assert_eq!(spans.insert(first), !model.contains(&first));
                } else {
                    spans.insert_span(first, first + more);
                }
                settled.insert_span(first, first + more);
                model.extend(first..=first + more);
                let held: Vec<u64> = spans.iter().flat_map(|(a, b)| a..=b).collect();
                prop_assert_eq!(&held, &model.iter().copied().collect::<Vec<_>>());
                let mut ends = spans.iter().zip(spans.iter().skip(1));
                prop_assert!(ends.all(|(a, b)| a.1 + 1 < b.0), "spans touch: {:?}", spans);
                let cursor = (0..100).take_while(|s| *s == 0 || model.contains(s)).last().unwrap();
                prop_assert_eq!(settled.released(), cursor);
                for s in 1..80 {
                    prop_assert_eq!(settled.contains(s), model.contains(&s));
                }
                let again = Settled::new(settled.released(), settled.above());
                prop_assert_eq!(&again, &settled);
            }
        }
    }

    #[test]
    fn the_end_of_the_number_range_does_not_overflow() {
        let mut spans = Spans::default();
        assert!(spans.insert(u64::MAX));
        assert!(!spans.insert(u64::MAX));
        assert!(spans.insert(u64::MAX - 1));
        spans.insert_span(u64::MAX - 5, u64::MAX);
        assert_eq!(spans.iter().collect::<Vec<_>>(), [(u64::MAX - 5, u64::MAX)]);
    }
}
