//! How much may fly at once. At full pace everything the window takes; after a batch was refused for something in it,
//! in groups that are judged one after the other, until the guilty record stands alone.
//!
//! Kafka refuses a whole batch for one bad record, and does not always say which. Twenty good records may also be too
//! large only together. So the refused span is sent again in groups half the size of what was refused, each group
//! waiting for its reports; a refused group is halved again; an accepted one lets the next be twice as large. A record
//! whose refusal came alone is guilty: a dead letter. A bad record among n costs about log2(n) refusals, and no good
//! record becomes a dead letter for its neighbour's sake.

use crate::event::Sequence;

/// See the module's words.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) enum Pace {
    /// As much as the window takes.
    #[default]
    Full,
    /// Group by group.
    Careful(Groups),
}

/// The careful pace.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Groups {
    /// Back to full pace behind this sequence.
    through: Sequence,
    /// Events in a group.
    size: usize,
    /// Events of the present group that were sent.
    sent: usize,
    /// A dead letter came out of it: then the batches as such are not too large.
    found_guilty: bool,
}

/// What a refusal says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// Not yet clear who: send again at the new pace.
    Unclear,
    /// It was alone.
    Guilty,
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

impl Pace {
    /// One event at first, twice as many after each success: for a topic that may still be closed.
    pub(super) fn probing() -> Self {
        Self::Careful(Groups { through: Sequence::MAX, size: 1, sent: 0, found_guilty: true })
    }

    /// May the event with that sequence go, with so many in flight?
    pub(super) fn permit(&mut self, sequence: Sequence, in_flight: usize) -> Permit {
        let Self::Careful(groups) = self else { return Permit::Go };
        if in_flight == 0 && groups.sent > 0 {
            groups.size = groups.size.saturating_mul(2);
            groups.sent = 0;
        }
        if groups.sent == 0 && sequence > groups.through {
            let smaller = !groups.found_guilty;
            *self = Self::Full;
            return if smaller { Permit::GoSmaller } else { Permit::Go };
        }
        if groups.sent < groups.size { Permit::Go } else { Permit::NotYet }
    }

    /// One more went out.
    pub(super) fn sent(&mut self) {
        if let Self::Careful(groups) = self {
            groups.sent = groups.sent.saturating_add(1);
        }
    }

    /// So many were refused for what they are, the newest of them with that sequence; nothing is in flight.
    pub(super) fn refused(&mut self, suspects: usize, newest: Sequence) -> Finding {
        let half = (suspects / 2).max(1);
        let guilty = suspects == 1;
        match self {
            Self::Full => {
                *self = Self::Careful(Groups { through: newest, size: half, sent: 0, found_guilty: guilty });
            }
            Self::Careful(groups) => {
                groups.through = groups.through.max(newest);
                groups.size = half.min(groups.size);
                groups.sent = 0;
                groups.found_guilty |= guilty;
            }
        }
        if guilty { Finding::Guilty } else { Finding::Unclear }
    }

    /// Sending starts again for another reason: the present group is void.
    pub(super) fn restart(&mut self) {
        if let Self::Careful(groups) = self {
            groups.sent = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Sends 1..=count through a topic that refuses any batch with a bad record and any batch over `most` records,
    /// with everything that is permitted at once in one batch. Returns delivered, dead, refusals.
    fn run(count: u64, bad: &[u64], most: usize) -> (Vec<u64>, Vec<u64>, usize) {
        let (mut pace, mut delivered, mut dead, mut refusals) = (Pace::Full, vec![], vec![], 0);
        let mut next = 1;
        while next <= count {
            let mut batch = vec![];
            while next <= count && pace.permit(next, batch.len()) != Permit::NotYet {
                if !dead.contains(&next) {
                    pace.sent();
                    batch.push(next);
                }
                next += 1;
            }
            if batch.len() > most || batch.iter().any(|s| bad.contains(s)) {
                refusals += 1;
                assert!(refusals < 10_000, "no progress");
                if pace.refused(batch.len(), *batch.last().unwrap()) == Finding::Guilty {
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
        assert!(refusals <= 30, "{refusals} refusals");
    }

    #[test]
    fn records_that_are_too_large_only_together_all_arrive_and_ask_for_smaller_batches() {
        let (delivered, dead, _) = run(20, &[], 10);
        assert_eq!((delivered.len(), dead.len()), (20, 0));
        let mut pace = Pace::Full;
        assert_eq!(pace.refused(20, 20), Finding::Unclear);
        assert_eq!(pace.permit(21, 0), Permit::GoSmaller);
        assert_eq!(pace, Pace::Full);
    }

    #[test]
    fn a_lone_refusal_is_guilty_at_once() {
        let mut pace = Pace::Full;
        assert_eq!(pace.refused(1, 5), Finding::Guilty);
        assert_eq!(pace.permit(6, 0), Permit::Go);
    }

    #[test]
    fn a_probe_is_one_event_and_grows_with_success() {
        let mut pace = Pace::probing();
        let mut groups = vec![];
        for _ in 0..4 {
            let mut group = 0;
            while pace.permit(1, group) == Permit::Go {
                pace.sent();
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
