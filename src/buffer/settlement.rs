//! What became of events, and forward's end of the queue that tells the buffer.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};

use super::LaneId;
use super::error::Stopped;
use crate::delivered::Delivered;
use crate::event::{RouteId, Sequence};
use crate::watermark::Instance;

/// What became of events.
///
/// A sequence that is settled already is ignored: after a rewind the same event may be reported twice.
#[derive(Debug, Default)]
pub(crate) struct Settlement {
    /// Main lane: confirmed by Kafka.
    pub delivered: Vec<Delivered>,
    /// Main lane: to the dead letters. The buffer itself copies the event out of its chunk.
    pub dead: Vec<DeadLetter>,
    /// Main lane: to the lane of their Kafka topic, in this order. The buffer itself copies the events.
    pub parked: Vec<Parked>,
    /// Chunks of a parked lane that are settled as a whole: lane, chunk id, its confirmed events, its dead letters.
    /// A chunk that these do not cover exactly stays where it is.
    pub lane_chunks: Vec<(LaneId, i64, Vec<Delivered>, Vec<DeadLetter>)>,
    /// Main lane: could not be read when their turn came, first and last of each span. They stay, and are looked at again
    /// when the buffer is opened.
    pub unread: Vec<(Sequence, Sequence)>,
    /// Chunks of parked lanes that could not be read: they go to the end of their lane, so that no watermark of the lane
    /// passes them.
    pub lane_unread: Vec<(LaneId, i64)>,
    /// Events of a parked lane that move elsewhere, by the operator's word: to another lane, or to the dead letters.
    pub lane_moves: Vec<LaneMove>,
    /// Kafka topics that readings may go to, beside those of earlier settlements: kept while a lane holds what may not.
    pub admitted: Vec<Arc<str>>,
    /// All lanes were brought in line with the configuration that has this mark.
    pub in_line_with: Option<u64>,
    /// Kafka has committed a watermark of the main lane up to here. Kept, so that a topic that has lost it is noticed.
    pub watermark: Option<Sequence>,
    /// Kafka's last watermark was found to be of this start, and the present one may write the next: neither is forgotten.
    pub heard: Option<Instance>,
}

/// An event that Kafka will never take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DeadLetter {
    /// Which.
    pub sequence: Sequence,
    /// Its ledger line.
    pub route: RouteId,
    /// The Kafka topic it was meant for; empty when no route matched.
    pub kafka_topic: Arc<str>,
    /// Why, in words for the operator.
    pub reason: String,
}

/// An event whose Kafka topic is missing or forbidden.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parked {
    /// Which.
    pub sequence: Sequence,
    /// Where it waits for.
    pub kafka_topic: Arc<str>,
}

/// Events that leave a chunk of a parked lane, because what the configuration says of them has changed. The others in it
/// stay where they are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LaneMove {
    /// Which lane.
    pub lane: LaneId,
    /// Which chunk.
    pub chunk: i64,
    /// Where they wait from now on.
    pub parked: Vec<Parked>,
    /// What is given up.
    pub dead: Vec<DeadLetter>,
}

/// Number of a settlement: it is on disk when [`Settler::applied`] has reached it.
pub(crate) type Ticket = u64;

/// Forward's end of the queue to the buffer thread.
#[derive(Debug)]
pub(crate) struct Settler {
    queue: Mutex<Queue>,
    applied: Arc<Applied>,
}

/// The number and the place in the queue are given in one step, so that tickets are applied in order.
#[derive(Debug)]
struct Queue {
    last: Ticket,
    sender: mpsc::Sender<(Ticket, Settlement)>,
}

/// What the buffer thread tells the settler after each commit.
#[derive(Debug, Default)]
pub(super) struct Applied {
    ticket: AtomicU64,
    /// The last commit that moved events aside.
    moves: AtomicU64,
    lanes: Mutex<HashMap<Arc<str>, LaneId>>,
    /// Should have been moved and could not be read.
    unread: Mutex<Vec<(Sequence, Sequence)>>,
}

impl Settler {
    pub(super) fn new(applied: Arc<Applied>) -> (Self, mpsc::Receiver<(Ticket, Settlement)>) {
        let (sender, receiver) = mpsc::channel();
        (Self { queue: Mutex::new(Queue { last: 0, sender }), applied }, receiver)
    }

    /// Queues a settlement; it is committed together with the next events, or within 200 ms.
    ///
    /// # Errors
    /// When the buffer has stopped; what was not applied will be sent again.
    pub(crate) fn settle(&self, settlement: Settlement) -> Result<Ticket, Stopped> {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        let ticket = queue.last + 1;
        queue.sender.send((ticket, settlement)).map_err(|mpsc::SendError(_)| Stopped)?;
        queue.last = ticket;
        Ok(ticket)
    }

    /// The newest ticket that is on disk, all older ones included.
    #[must_use]
    pub(crate) fn applied(&self) -> Ticket {
        self.applied.ticket.load(Ordering::Acquire)
    }

    /// The last commit of this start that put events aside, to the dead letters or into a lane: a watermark rests on it.
    #[must_use]
    pub(crate) fn rests_on(&self) -> u64 {
        self.applied.moves.load(Ordering::Acquire)
    }

    /// Dead letters and parked events of applied settlements that could not be read when they were to be moved, first and
    /// last of each span, since the last question: they are held as they were.
    #[must_use]
    pub(crate) fn take_unread(&self) -> Vec<(Sequence, Sequence)> {
        std::mem::take(&mut self.applied.unread.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The lane of that Kafka topic, once a settlement that parks to it was applied.
    #[must_use]
    pub(crate) fn lane(&self, kafka_topic: &str) -> Option<LaneId> {
        self.applied.lanes.lock().unwrap_or_else(PoisonError::into_inner).get(kafka_topic).copied()
    }
}

impl Applied {
    /// After COMMIT, before the ticket.
    pub(super) fn unread(&self, sequences: &BTreeSet<Sequence>) {
        if sequences.is_empty() {
            return;
        }
        let mut unread = self.unread.lock().unwrap_or_else(PoisonError::into_inner);
        for sequence in sequences {
            match unread.last_mut() {
                Some((_, last)) if last.checked_add(1) == Some(*sequence) => *last = *sequence,
                Some(_) | None => unread.push((*sequence, *sequence)),
            }
        }
    }

    /// After COMMIT.
    pub(super) fn reached(&self, ticket: Ticket) {
        self.ticket.fetch_max(ticket, Ordering::Release);
    }

    /// After a COMMIT that moved events aside: its number.
    pub(super) fn fates_are_in(&self, commit: u64) {
        self.moves.fetch_max(commit, Ordering::Release);
    }

    /// After a COMMIT that made or removed lanes.
    pub(super) fn set_lanes(&self, lanes: impl Iterator<Item = (Arc<str>, LaneId)>) {
        *self.lanes.lock().unwrap_or_else(PoisonError::into_inner) = lanes.collect();
    }
}
