//! What the stream's watermark says.
//!
//! The last sequence that the stream has passed: sent in this transaction or earlier, or settled otherwise. **Dead letters
//! and parked events that it passes are on disk before it is written**: so after a crash, all that is held up to the
//! watermark and not settled otherwise was delivered, by Kafka's own record, and is released with the proof from it. What could
//! not be read when its turn came is passed as well, and named as left out (`unread.rs`).

use super::unread::Unread;
use crate::delivered::{CommittedWatermark, Delivered};
use crate::event::{RouteId, Sequence};
use crate::watermark::{Instance, Record};

/// See the documentation of the module.
#[derive(Debug)]
pub(in crate::forward) struct StreamWatermark {
    /// Everything up to here was sent or is settled.
    passed: Sequence,
    /// Everything up to here is covered by a committed watermark.
    committed: Sequence,
    /// The one that is being written or committed.
    written: Sequence,
    /// What it passes without vouching for it.
    unread: Unread,
    /// Kafka's watermark about what was in doubt.
    watermark: Option<CommittedWatermark>,
}

impl StreamWatermark {
    /// Everything up to `released` is settled, and a watermark up to `committed` was.
    pub(in crate::forward) fn new(released: Sequence, committed: Sequence) -> Self {
        Self { passed: released, committed, written: 0, unread: Unread::default(), watermark: None }
    }

    /// Covered by a watermark that Kafka has committed.
    pub(in crate::forward) fn through(&self) -> Sequence {
        self.committed
    }

    /// The highest one that this start can have given.
    pub(in crate::forward) fn highest(&self) -> Sequence {
        self.written.max(self.committed)
    }

    /// The stream has dealt with that event.
    pub(in crate::forward) fn passed(&mut self, sequence: Sequence) {
        self.passed = sequence;
        self.unread.dealt_with(sequence);
    }

    /// Reading starts again behind that sequence.
    pub(in crate::forward) fn goes_back(&mut self, after: Sequence) {
        self.passed = after;
        self.unread.gone_back(after);
    }

    /// These cannot be read and are passed by. Which of them are news: what a committed watermark covers was delivered, or
    /// is on its list already.
    pub(in crate::forward) fn unread(&mut self, first: Sequence, last: Sequence) -> Option<(Sequence, Sequence)> {
        let first = first.max(self.committed.saturating_add(1));
        self.unread.add(first, last);
        (first <= last).then_some((first, last))
    }

    /// These cannot be read where they were to be copied: they are held.
    pub(in crate::forward) fn leaves_out(&mut self, spans: impl IntoIterator<Item = (Sequence, Sequence)>) {
        for (first, last) in spans {
            self.unread.add(first, last);
        }
    }

    /// The record for the open transaction. Never back: what a watermark has covered stays covered.
    pub(in crate::forward) fn record(&mut self, instance: Instance, commit: u64, at_ms: i64) -> Record {
        self.written = self.passed.max(self.committed);
        Record::Main { instance, delivered: self.written, commit, unread: self.unread.seal(), at_ms }
    }

    /// That transaction is committed.
    pub(in crate::forward) fn committed(&mut self) {
        self.committed = self.written;
        self.unread.committed();
    }

    /// Kafka's last watermark is known; `None`: this buffer has never committed anything.
    pub(in crate::forward) fn recovered(&mut self, watermark: Option<CommittedWatermark>) {
        if let Some(watermark) = &watermark {
            self.committed = self.committed.max(watermark.through());
            self.unread.watermarks_found(watermark.unread(), watermark.through() == self.written);
        }
        self.watermark = watermark;
    }

    /// The proof for an event that this process did not see committed, if Kafka's watermark reaches so far.
    pub(in crate::forward) fn vouches_for(&mut self, sequence: Sequence, route: RouteId) -> Option<Delivered> {
        let watermark = self.watermark.as_ref()?;
        let (proof, is_behind) = (watermark.delivered(sequence, route), sequence > watermark.through());
        if is_behind {
            self.watermark = None; // for good
        }
        proof
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn delivered(watermark: &mut StreamWatermark) -> Sequence {
        let record = watermark.record(Instance(1), 0, 0);
        let Record::Main { delivered, .. } = record else { panic!("{record:?}") };
        delivered
    }

    #[test]
    fn it_never_goes_back_behind_what_was_committed() {
        let mut watermark = StreamWatermark::new(3, 5);
        assert_eq!(delivered(&mut watermark), 5);
        watermark.passed(9);
        assert_eq!((delivered(&mut watermark), watermark.through()), (9, 5));
        watermark.committed();
        watermark.goes_back(4);
        assert_eq!((delivered(&mut watermark), watermark.highest()), (9, 9));
    }

    #[test]
    fn kafkas_word_gives_proofs_as_far_as_it_reaches_and_then_never_again() {
        let mut watermark = StreamWatermark::new(0, 0);
        watermark.recovered(Some(CommittedWatermark::forged(2, Instance(1))));
        let mut vouches = |sequence| watermark.vouches_for(sequence, RouteId(1)).map(|proof| proof.sequence());
        assert_eq!([vouches(1), vouches(2), vouches(3), vouches(1)], [Some(1), Some(2), None, None]);
    }

    #[test]
    fn only_what_no_committed_watermark_covers_is_news_when_it_cannot_be_read() {
        let mut watermark = StreamWatermark::new(0, 5);
        assert_eq!(watermark.unread(3, 8), Some((6, 8)));
        assert_eq!(watermark.unread(1, 5), None);
    }
}
