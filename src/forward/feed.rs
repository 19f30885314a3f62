//! Where a sender's next readings come from, and who hears what became of them: the stream of all topics, or the queue of
//! one blocked topic. What differs between the two is data: the sender and its loop are the same.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::judge::Judged;
use super::outstanding::Restart;
use super::producer::Producer;
use super::queue::Queue;
use super::shared::Shared;
use super::stream::Stream;
use super::targets::{Generation, Turn};
use crate::delivered::Delivered;
use crate::event::Stored;
use crate::route::Target;

/// See the module's words.
pub(super) enum Feed<'a> {
    Stream(&'a mut Stream),
    Queue(&'a mut Queue),
}

/// What is next.
pub(super) enum Next {
    /// The one in front is to be sent there. `turn`: whether the order of its MQTT topic is safe yet.
    Send(Arc<Target>, Turn),
    /// The one in front was settled without being sent: ask again.
    Settled,
    /// Nothing, or nothing now.
    Nothing,
}

/// What is in hand after sending, as far as a transaction's end depends on it.
#[derive(Debug, Clone, Copy)]
#[expect(clippy::struct_excessive_bools, reason = "four questions, each asked in its own place")]
pub(super) struct Hand {
    /// Readings are in hand.
    pub(super) any: bool,
    /// ... and wait for company.
    pub(super) gathers: bool,
    /// For so long a transaction stays open for more, whatever else.
    pub(super) linger: Duration,
    /// There is something to say without any reading.
    pub(super) declares: bool,
    /// ... so much that one transaction takes no more.
    pub(super) is_full: bool,
}

impl Feed<'_> {
    /// A batch is to be sent now.
    pub(super) fn is_ready(&self, now: Instant) -> bool {
        match self {
            Self::Stream(stream) => stream.is_ready(now),
            Self::Queue(queue) => queue.is_ready(),
        }
    }

    /// It is being sent: the rest of it waits for room, not for company.
    pub(super) fn begins_to_send(&mut self) {
        match self {
            Self::Stream(stream) => stream.begins_to_send(),
            Self::Queue(_) => {}
        }
    }

    /// Since when the first one is in hand.
    pub(super) fn since(&self) -> Option<Instant> {
        match self {
            Self::Stream(stream) => stream.since(),
            Self::Queue(_) => None,
        }
    }

    /// The one in front.
    pub(super) fn front(&self) -> Option<&Stored> {
        match self {
            Self::Stream(stream) => stream.front(),
            Self::Queue(queue) => queue.front(),
        }
    }

    /// What to do with the one in front.
    pub(super) fn next(
        &mut self,
        producer: &Producer,
        generation: Generation,
        shared: &mut Shared,
        now: Instant,
    ) -> Next {
        match self {
            Self::Stream(stream) => stream.next(producer, generation, shared, now),
            Self::Queue(queue) => queue.next(producer, generation, shared),
        }
    }

    /// The one in front was handed to librdkafka.
    pub(super) fn sent(&mut self, target: &Target, turn: Turn, generation: Generation, shared: &mut Shared) {
        let Some(stored) = self.front() else { return };
        if turn == Turn::First {
            shared.targets.sent(&stored.event, generation, stored.sequence);
        }
        match self {
            Self::Stream(stream) => stream.sent(target, turn, shared),
            Self::Queue(queue) => queue.sent(),
        }
    }

    /// The one in front becomes a dead letter.
    pub(super) fn put_aside(
        &mut self,
        producer: &Producer,
        kafka_topic: &Arc<str>,
        reason: String,
        shared: &mut Shared,
        now: Instant,
    ) {
        match self {
            Self::Stream(stream) => stream.put_aside(producer, Arc::clone(kafka_topic), reason, shared, now),
            Self::Queue(queue) => queue.put_aside(reason, shared, now),
        }
    }

    /// Kafka has these, for good.
    pub(super) fn confirmed(&mut self, proofs: Vec<Delivered>, shared: &mut Shared, now: Instant) {
        match self {
            Self::Stream(_) => {
                shared.count_delivered(proofs.len());
                shared.outcome.delivered(proofs, now);
            }
            Self::Queue(queue) => queue.confirmed(proofs, shared),
        }
    }

    /// Failures were judged; nothing of them is in flight.
    pub(super) fn judged(&mut self, judged: Judged, producer: &Producer, shared: &mut Shared, now: Instant) {
        match self {
            Self::Stream(_) => Stream::judged(judged, producer, shared, now),
            Self::Queue(queue) => queue.judged(judged, shared, now),
        }
    }

    /// A transaction was aborted.
    pub(super) fn aborted(&self, shared: &mut Shared) {
        match self {
            Self::Stream(_) => shared.note_aborted(),
            Self::Queue(_) => {}
        }
    }

    /// What was sent and is not settled goes again.
    pub(super) fn goes_back(&mut self, restart: Restart, shared: &mut Shared) {
        match self {
            Self::Stream(stream) => stream.goes_back(restart, shared),
            Self::Queue(queue) => queue.goes_back(),
        }
    }

    /// See [`Hand`].
    pub(super) fn hand(&self, shared: &Shared) -> Hand {
        match self {
            Self::Stream(stream) => stream.hand(shared),
            Self::Queue(queue) => {
                let linger = Duration::ZERO;
                Hand { any: queue.front().is_some(), gathers: false, linger, declares: false, is_full: false }
            }
        }
    }

    /// Kafka topics whose queues Kafka is asked about when the watermark is recovered.
    pub(super) fn asks_about(&self) -> Vec<Arc<str>> {
        match self {
            Self::Stream(stream) => stream.asks_about(),
            Self::Queue(queue) => vec![Arc::clone(&queue.topic)],
        }
    }
}
