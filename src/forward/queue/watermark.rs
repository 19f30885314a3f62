//! What the watermark of a parked topic's queue says, and what a recovered one means.
//!
//! All queues share one transactional id, because one is sent at a time. Each has its own watermark record. It says up to
//! which event *in the queue's order* it is delivered, and what still waits. After a restart that event is looked for in the
//! queue: if it is there, it and all before it were delivered, and only the buffer did not hear of it; if it is not, the
//! buffer did. Dead letters among them are told by their holes, which every transaction of a group declares again until the
//! group is settled.

use std::sync::Arc;

use super::{Group, Queue, Vouched, dead_letter};
use crate::delivered::CommittedWatermark;
use crate::event::Sequence;
use crate::forward::custody::{Custody, Stand, unix_ms};
use crate::forward::session::TransactionContext;
use crate::forward::watermark_reader::FoundWatermarks;
use crate::watermark::{Fate, Instance, Record, Waiting};

impl Queue {
    /// Kafka's last watermark of this queue is known. False: it cannot be gone on with now.
    pub(in crate::forward) fn recovered(
        &mut self,
        mut found: FoundWatermarks,
        context: &TransactionContext,
        custody: &mut Custody,
    ) -> bool {
        let watermark = found.lanes.remove(&*self.topic);
        let through = watermark.as_ref().map_or(0, CommittedWatermark::through);
        // What a duplicate identity says is not true of this queue. The stream will find it out as well, and end this life.
        let watermarks = [found.main.as_ref(), watermark.as_ref()];
        if watermarks.into_iter().flatten().any(|watermark| !context.is_ours(watermark, Sequence::MAX)) {
            return false;
        }
        let stand = Stand { delivered: through, has_holes: !found.holes.is_empty() };
        custody.lanes_delivered.insert(Arc::clone(&self.topic), stand);
        let Some((watermark, lane)) = watermark.zip(custody.settler.lane(&self.topic)) else { return true };
        match custody.reader.parked_at(lane, through) {
            Ok(Some(chunk)) => {
                let holes = found.holes.into();
                self.watermark = Some(Vouched { watermark, chunk, holes });
                self.vouch();
                true
            }
            Ok(None) => true,
            Err(error) => {
                tracing::warn!(%error, topic = &*self.topic, "kafka: the buffer cannot read the readings of a parked \
                     topic; the agent tries again");
                custody.lanes_delivered.remove(&self.topic);
                false
            }
        }
    }

    /// What the watermark vouches for of the group that was just read counts as sent.
    pub(super) fn vouch(&mut self) {
        let (Some(Vouched { watermark, chunk: last, holes }), Some(group)) = (&self.watermark, &self.group) else {
            return;
        };
        let mut from = 0_usize;
        let mut beyond = false;
        for (chunk, end) in &group.chunks {
            beyond |= chunk > last;
            let events = group.events.get(from..*end).unwrap_or_default();
            from = *end;
            for stored in events.iter().filter(|_| chunk <= last) {
                let hole = holes.iter().find(|hole| (hole.first..=hole.last).contains(&stored.sequence));
                let Some(proof) = watermark.delivered(stored.sequence, stored.event.route) else { continue };
                if !self.progress.done.insert(stored.sequence) {
                    continue;
                }
                match hole {
                    Some(hole) => self.progress.dead.push(dead_letter(&self.topic, stored, hole.reason.clone())),
                    None => self.progress.confirmed.push(proof),
                }
            }
        }
        if beyond {
            self.watermark = None;
        }
    }

    /// The watermark for the open transaction, which has `uncommitted` events, and the holes behind it. `None`: nothing of the
    /// group was sent.
    pub(in crate::forward) fn watermark(
        &mut self,
        instance: Instance,
        uncommitted: usize,
        custody: &mut Custody,
    ) -> Option<Vec<Record>> {
        let group = self.group.as_ref()?;
        let last = self.next.checked_sub(1).and_then(|at| group.events.get(at))?;
        let (delivered, at_ms) = (last.sequence, unix_ms());
        let waiting = waiting(group, self.next, self.progress.done.len() + uncommitted, custody);
        let (kafka_topic, holes) = (self.topic.to_string(), u64::try_from(self.progress.dead.len()).ok());
        let mut records = vec![Record::Lane { kafka_topic, instance, delivered, waiting, holes, at_ms }];
        records.extend(self.progress.dead.iter().map(|letter| Record::Hole {
            first: letter.sequence,
            last: letter.sequence,
            fate: Fate::DeadLettered,
            reason: letter.reason.clone(),
            kafka_topic: Some(letter.kafka_topic.to_string()),
            at_ms,
        }));
        self.written = delivered;
        // Until it is committed nobody knows where the queue stands.
        custody.lanes_delivered.remove(&self.topic);
        Some(records)
    }

    /// That transaction is committed.
    pub(in crate::forward) fn committed(&self, custody: &mut Custody) {
        let stand = Stand { delivered: self.written, has_holes: !self.progress.dead.is_empty() };
        custody.lanes_delivered.insert(Arc::clone(&self.topic), stand);
    }
}

/// What is still held of the queue when the first `next` events of the group, `gone` in all, are delivered.
fn waiting(group: &Group, next: usize, gone: usize, custody: &Custody) -> Option<Waiting> {
    let before = group.chunks.first().map_or(0, |(id, _)| id.saturating_sub(1));
    let behind = group.chunks.last().map_or(0, |(id, _)| *id);
    let (_, last, held) = custody.reader.waiting(group.lane, before).ok().flatten()?;
    let events = held.saturating_sub(u64::try_from(gone).unwrap_or(u64::MAX));
    let first = match group.events.get(next) {
        Some(stored) => stored.sequence,
        None => custody.reader.waiting(group.lane, behind).ok().flatten()?.0,
    };
    (events > 0).then_some(Waiting { first, last, events })
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::buffer::LaneId;
    use crate::clock::Clock;
    use crate::delivered::DeclaredHole;
    use crate::event::{Event, Qos, RouteId, Stored};
    use crate::forward::queue::QueueProgress;

    fn stored(sequence: Sequence) -> Stored {
        let event = Event {
            topic: "m".into(),
            payload: Bytes::new(),
            qos: Qos::AtLeastOnce,
            retain: false,
            dup: false,
            arrived_ms: 1,
            clock: Clock::default(),
            route: RouteId(1),
            sender: None,
            properties: None,
        };
        Stored { sequence, event }
    }

    /// A lane whose chunks hold these events, with Kafka's watermark that one of the events is the last delivered.
    fn vouched(
        chunks: &[(i64, &[Sequence])],
        last: (Sequence, i64),
        holes: &[Sequence],
        progress: QueueProgress,
    ) -> Queue {
        let hole = |sequence: &Sequence| DeclaredHole {
            first: *sequence,
            last: *sequence,
            reason: "too large".to_owned(),
            kafka_topic: Some("late".to_owned()),
        };
        let (through, chunk) = last;
        let watermark = CommittedWatermark::forged(through, Instance(1));
        let mut own = Queue::new(Arc::from("late"), progress);
        own.watermark = Some(Vouched { watermark, chunk, holes: holes.iter().map(hole).collect() });
        let mut group = Group { lane: LaneId(1), chunks: Vec::new(), events: Vec::new() };
        for (chunk, sequences) in chunks {
            group.events.extend(sequences.iter().copied().map(stored));
            group.chunks.push((*chunk, group.events.len()));
        }
        own.group = Some(group);
        own.vouch();
        own
    }

    /// Delivered, dead, and whether the watermark is still of use.
    fn fates(own: &Queue) -> (Vec<Sequence>, Vec<Sequence>, bool) {
        let confirmed = own.progress.confirmed.iter().map(crate::delivered::Delivered::sequence).collect();
        let dead = own.progress.dead.iter().map(|letter| letter.sequence).collect();
        (confirmed, dead, own.watermark.is_some())
    }

    #[test]
    fn what_kafka_has_of_a_lane_is_not_sent_again_up_to_its_last_event() {
        let own = vouched(&[(10, &[3, 7]), (11, &[9, 12])], (9, 11), &[], QueueProgress::default());
        assert_eq!(fates(&own), (vec![3, 7, 9], vec![], true));
        assert_eq!(own.progress.done.into_iter().collect::<Vec<_>>(), [3, 7, 9]);
    }

    #[test]
    fn a_word_ends_with_its_chunk_whatever_sequences_stand_behind() {
        // Parked again after a try: a lower sequence behind a higher one.
        let own = vouched(&[(10, &[3, 9]), (11, &[4, 5])], (9, 10), &[], QueueProgress::default());
        assert_eq!(fates(&own), (vec![3, 9], vec![], false));
    }

    #[test]
    fn declared_holes_among_them_are_dead_letters_with_their_reason() {
        let own = vouched(&[(10, &[3, 7, 9])], (9, 10), &[7], QueueProgress::default());
        assert_eq!(fates(&own), (vec![3, 9], vec![7], true));
        assert_eq!(own.progress.dead.first().map(|letter| letter.reason.as_str()), Some("too large"));
    }

    #[test]
    fn what_was_settled_before_is_settled_once() {
        let progress = QueueProgress { done: [3, 7].into(), ..QueueProgress::default() };
        let mut own = vouched(&[(10, &[3, 7, 9])], (9, 10), &[], progress);
        own.vouch();
        assert_eq!(fates(&own), (vec![9], vec![], true));
    }
}
