//! Where a sender's next readings come from, and who hears what became of them: the stream of all topics, or the queue of
//! one parked topic. What differs between the two is data: the sender and its loop are the same.

use std::sync::Arc;
use std::time::Instant;

use super::custody::Custody;
use super::judge::Judged;
use super::next::{Hand, Next};
use super::outstanding::Restart;
use super::producer::Producer;
use super::queue::Queue;
use super::stream::Stream;
use super::targets::{Generation, Turn};
use super::time::Times;
use crate::delivered::Delivered;
use crate::event::Stored;
#[cfg(feature = "planted")]
use crate::planted::{Bug, planted};
use crate::route::Target;

/// See the documentation of the module.
pub(super) struct Feed<'a> {
    source: Source<'a>,
    custody: &'a mut Custody,
}

enum Source<'a> {
    Stream(&'a mut Stream),
    Queue(&'a mut Queue),
}

impl<'a> Feed<'a> {
    /// The stream's readings.
    pub(super) fn stream(stream: &'a mut Stream, custody: &'a mut Custody) -> Self {
        Self { source: Source::Stream(stream), custody }
    }

    /// Those of a parked topic.
    pub(super) fn queue(queue: &'a mut Queue, custody: &'a mut Custody) -> Self {
        Self { source: Source::Queue(queue), custody }
    }

    /// A batch is to be sent now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        match &self.source {
            Source::Stream(stream) => stream.is_ready(now),
            Source::Queue(queue) => queue.is_ready(),
        }
    }

    /// It is being sent: the rest of it waits for room, not for others.
    pub(super) fn begins_to_send(&mut self, now: Instant) {
        match &mut self.source {
            Source::Stream(stream) => stream.begins_to_send(now),
            Source::Queue(_) => {}
        }
    }

    /// Until when the batch that is being sent would have waited for others.
    pub(super) fn was_due(&self) -> Option<Instant> {
        match &self.source {
            Source::Stream(stream) => stream.was_due(),
            Source::Queue(_) => None,
        }
    }

    /// The one in front.
    pub(super) fn front(&self) -> Option<&Stored> {
        match &self.source {
            Source::Stream(stream) => stream.front(),
            Source::Queue(queue) => queue.front(),
        }
    }

    /// What to do with the one in front.
    pub(super) fn next(&mut self, producer: &Producer, generation: Generation, now: Instant) -> Next {
        match &mut self.source {
            Source::Stream(stream) => stream.next(producer, generation, self.custody, now),
            Source::Queue(queue) => queue.next(producer, generation, self.custody),
        }
    }

    /// The one in front was handed to librdkafka.
    pub(super) fn sent(&mut self, target: &Target, turn: Turn, generation: Generation) {
        let stored = match &self.source {
            Source::Stream(stream) => stream.front(),
            Source::Queue(queue) => queue.front(),
        };
        let Some(stored) = stored else { return };
        self.custody.declarations.wrote(&target.topic);
        if turn == Turn::First {
            self.custody.targets.sent(&stored.event, generation, stored.sequence);
        }
        #[cfg(feature = "planted")]
        if planted(Bug::ReleaseBeforeDelivery) && matches!(self.source, Source::Stream(_)) {
            self.custody.settlement.release_at_send(stored.sequence, stored.event.route, Instant::now());
        }
        match &mut self.source {
            Source::Stream(stream) => stream.sent(target, turn, self.custody),
            Source::Queue(queue) => queue.sent(),
        }
    }

    /// The one in front becomes a dead letter.
    pub(super) fn put_aside(&mut self, producer: &Producer, kafka_topic: &Arc<str>, reason: String, now: Instant) {
        match &mut self.source {
            Source::Stream(stream) => {
                stream.put_aside(producer, Arc::clone(kafka_topic), reason, self.custody, now);
            }
            Source::Queue(queue) => queue.put_aside(reason, self.custody, now),
        }
    }

    /// Kafka has these, for good.
    pub(super) fn confirmed(&mut self, proofs: Vec<Delivered>, now: Instant) {
        match &mut self.source {
            Source::Stream(_) => {
                self.custody.count_delivered(proofs.len());
                self.custody.settlement.delivered(proofs, now);
            }
            Source::Queue(queue) => queue.confirmed(proofs, self.custody),
        }
    }

    /// Failures were judged; nothing of them is in flight.
    pub(super) fn judged(&mut self, judged: Judged, producer: &Producer, times: &mut Times, now: Instant) {
        match &mut self.source {
            Source::Stream(_) => Stream::judged(judged, producer, self.custody, times, now),
            Source::Queue(queue) => queue.judged(judged, self.custody, times, now),
        }
    }

    /// A transaction was aborted.
    pub(super) fn aborted(&mut self) {
        match &self.source {
            Source::Stream(_) => self.custody.note_aborted(),
            Source::Queue(_) => {}
        }
    }

    /// The end of a transaction was asked for twice.
    pub(super) fn retried(&mut self) {
        self.custody.note_retried();
    }

    /// What was sent and is not settled goes again.
    pub(super) fn goes_back(&mut self, restart: Restart) {
        match &mut self.source {
            Source::Stream(stream) => stream.goes_back(restart, self.custody),
            Source::Queue(queue) => queue.goes_back(),
        }
    }

    /// See [`Hand`].
    pub(super) fn hand(&self) -> Hand {
        match &self.source {
            Source::Stream(stream) => stream.hand(self.custody),
            Source::Queue(queue) => {
                Hand { any: queue.front().is_some(), gathers: false, declares: false, is_full: false }
            }
        }
    }

    /// Kafka topics whose queues Kafka is asked about when the watermark is recovered.
    pub(super) fn asks_about(&self) -> Vec<Arc<str>> {
        match &self.source {
            Source::Stream(stream) => stream.asks_about(),
            Source::Queue(queue) => vec![Arc::clone(&queue.topic)],
        }
    }
}
