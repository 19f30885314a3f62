//! The search for a bad record: how much may be in flight at once. Without a search everything that the window takes; after
//! a batch was refused for something in it, groups that are judged one after the other, until the bad record stands alone.
//!
//! Kafka refuses a whole batch for one bad record, and does not always say which. Twenty good records may also be too
//! large only together. So the refused span is sent again in groups of a sixteenth, each waiting for its reports; a
//! refused group becomes a span of its own with smaller groups again; behind a span, the group size around it holds.
//! A record that was refused alone is bad: a dead letter. No good record becomes one for its neighbour's sake.
//!
//! A refusal costs a new producer (0.5 s, librdkafka asks for its producer id by a timer), a group a round trip. Among
//! n records one bad one is found with log16(n) + 1 refusals and at most 16 groups for each.

use crate::event::Sequence;
use crate::planted::{Bug, planted};

/// A refused span is sent again in so many groups.
const GROUPS: usize = 16;

/// See the documentation of the module.
#[derive(Debug, Default)]
pub(super) struct Bisection {
    /// Spans within spans, the innermost last. None: full bisection.
    spans: Vec<Span>,
    /// Events of the present group that were sent.
    sent: usize,
    /// A dead letter came out of it: then it was not the size of the batches.
    found_bad_record: bool,
}

#[derive(Debug)]
struct Span {
    /// It ends behind this sequence.
    through: Sequence,
    /// Events in a group.
    size: usize,
    /// Each group is twice as large as the one before.
    grows: bool,
}

/// What a refusal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Not yet clear who: send again at the new bisection.
    Unclear,
    /// It was alone.
    BadRecord,
}

/// What a permission brings along.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    /// Send it.
    Go,
    /// Not before the group's reports are there.
    NotYet,
    /// Send it: the span is behind us, and all of it was accepted in smaller groups. The batches were too large.
    GoSmaller,
}

impl Bisection {
    /// One event at first, twice as many after each success: for a topic that may still be closed.
    pub(super) fn probing() -> Self {
        let span = Span { through: Sequence::MAX, size: 1, grows: true };
        Self { spans: vec![span], ..Self::default() }
    }

    /// May the event with that sequence go, with so many in flight?
    pub(super) fn permit(&mut self, sequence: Sequence, in_flight: usize) -> Permit {
        let Some(span) = self.spans.last_mut() else { return Permit::Go };
        if in_flight == 0 && self.sent > 0 {
            self.sent = 0;
            if span.grows {
                // As often as all goes well, for ever: at its end it is "as many as there are".
                span.size = span.size.saturating_mul(2);
            }
        }
        if self.sent == 0 {
            while self.spans.pop_if(|span| span.through < sequence).is_some() {}
        }
        match self.spans.last() {
            None if std::mem::take(&mut self.found_bad_record) => Permit::Go,
            None => Permit::GoSmaller,
            // A group does not reach beyond its span.
            Some(span) if self.sent < span.size && sequence <= span.through => Permit::Go,
            Some(_) => Permit::NotYet,
        }
    }

    /// One more went out.
    pub(super) fn sent(&mut self) {
        self.sent = self.sent.saturating_add(1); // without a search nobody begins it anew
    }

    /// So many were refused for what they are, the newest of them with that sequence; nothing is in flight.
    pub(super) fn refused(&mut self, suspects: usize, newest: Sequence) -> Finding {
        self.sent = 0;
        if suspects == 1 || planted(Bug::BlameTheBatch) {
            // Without a search nothing remains to be watched.
            self.found_bad_record = !self.spans.is_empty();
            return Finding::BadRecord;
        }
        // Suspects come from one group, so sizes fall from span to span: a handful of spans at most.
        let size = (suspects / GROUPS).max(1);
        self.spans.push(Span { through: newest, size, grows: false });
        Finding::Unclear
    }

    /// Sending starts again for another reason: the present group is void.
    pub(super) fn restart(&mut self) {
        self.sent = 0;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends 1..=count through a topic that refuses any batch with a bad record and any batch over `most` records,
    /// with everything that is permitted at once in one batch. Returns delivered, dead, refusals.
    fn run(count: u64, bad: &[u64], most: usize) -> (Vec<u64>, Vec<u64>, usize) {
        let (mut bisection, mut delivered, mut dead, mut refusals) = (Bisection::default(), vec![], vec![], 0);
        let mut next = 1;
        while next <= count {
            let mut batch = vec![];
            while next <= count && bisection.permit(next, batch.len()) != Permit::NotYet {
                if !dead.contains(&next) {
                    bisection.sent();
                    batch.push(next);
                }
                next += 1;
            }
            if batch.len() > most || batch.iter().any(|s| bad.contains(s)) {
                refusals += 1;
                assert!(refusals < 10_000, "no progress");
                if bisection.refused(batch.len(), *batch.last().unwrap()) == Finding::BadRecord {
                    dead.push(batch[0]);
                }
                next = batch[0];
            } else {
                delivered.extend(batch);
            }
        }
        (delivered, dead, refusals)
    }

    #[test]
    fn one_bad_record_among_thousands_is_found_in_few_steps() {
        let (delivered, dead, refusals) = run(10_000, &[7_777], usize::MAX);
        assert_eq!(dead, [7_777]);
        assert_eq!(delivered.len(), 9_999);
        assert!(refusals <= 6, "{refusals} refusals");
    }

    #[test]
    fn records_that_are_too_large_only_together_all_arrive_and_ask_for_smaller_batches() {
        let (delivered, dead, _) = run(20, &[], 10);
        assert_eq!((delivered.len(), dead.len()), (20, 0));
        let mut bisection = Bisection::default();
        assert_eq!(bisection.refused(20, 20), Finding::Unclear);
        assert_eq!(bisection.permit(21, 0), Permit::GoSmaller);
        assert_eq!(bisection.permit(22, 20), Permit::Go);
    }

    #[test]
    fn a_lone_refusal_is_guilty_at_once() {
        let mut bisection = Bisection::default();
        assert_eq!(bisection.refused(1, 5), Finding::BadRecord);
        assert_eq!(bisection.permit(6, 0), Permit::Go);
    }

    #[test]
    fn a_probe_is_one_event_and_grows_with_success() {
        let mut bisection = Bisection::probing();
        let mut groups = vec![];
        for _ in 0..4 {
            let mut group = 0;
            while bisection.permit(1, group) == Permit::Go {
                bisection.sent();
                group += 1;
            }
            groups.push(group);
        }
        assert_eq!(groups, [1, 2, 4, 8]);
    }

    proptest! {
        #[test]
        fn only_bad_records_die_and_order_is_kept(
            count in 1_u64..300,
            bad in prop::collection::btree_set(1_u64..300, 0..6),
            most in 1_usize..400,
        ) {
            let bad: Vec<u64> = bad.into_iter().filter(|s| *s <= count).collect();
            let (delivered, mut dead, _) = run(count, &bad, most);
            dead.sort_unstable();
            prop_assert_eq!(&dead, &bad);
            let good: Vec<u64> = (1..=count).filter(|s| !bad.contains(s)).collect();
            prop_assert_eq!(delivered, good);
        }
    }
}
