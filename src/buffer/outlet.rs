//! The door for forward: reads what is held, and settles what became of it.

use std::sync::Arc;
use std::time::Duration;

use super::{LaneId, Stopped};
use crate::delivered::Delivered;
use crate::event::{RouteId, Sequence, Stored};

/// Reads held events in order. Fresh events come from memory as the commit left them; older ones from disk, in pieces.
#[derive(Debug)]
pub struct Outlet {}

impl Outlet {
    /// The next events of the main lane after the position, waiting up to `wait` for new ones; the position moves behind them.
    /// An empty vector means nothing came in time. One call returns at most about 256 KiB.
    /// Events already settled are *not* filtered out here; the forwarder knows them.
    ///
    /// # Errors
    /// A damaged chunk or a failing disk; the error says what to do next.
    pub fn next(&mut self, _wait: Duration) -> Result<Vec<Stored>, ReadError> {
        unimplemented!()
    }

    /// Continues after that sequence, from disk.
    pub fn rewind(&mut self, _after: Sequence) {
        unimplemented!()
    }

    /// The first chunk of a parked lane whose id is greater than `after` (0 = the first), if any. Reads committed state only.
    ///
    /// # Errors
    /// As [`Outlet::next`].
    pub fn parked(&mut self, _lane: LaneId, _after: i64) -> Result<Option<LaneChunk>, ReadError> {
        unimplemented!()
    }
}

/// One chunk of a parked lane: it is settled as a whole.
#[derive(Debug)]
pub struct LaneChunk {
    /// Row id, rising in a lane.
    pub id: i64,
    /// In order.
    pub events: Vec<Stored>,
}

/// What became of events.
#[derive(Debug, Default)]
pub struct Settlement {
    /// Main lane: confirmed by Kafka.
    pub delivered: Vec<Delivered>,
    /// Main lane: to the dead letters. The buffer itself copies the event out of its chunk.
    pub dead: Vec<DeadLetter>,
    /// Main lane: to the lane of their Kafka topic, in this order. The buffer itself copies the events.
    pub parked: Vec<Parked>,
    /// Chunks of a parked lane that are settled as a whole: lane, chunk id, its confirmed events, its dead letters.
    pub lane_chunks: Vec<(LaneId, i64, Vec<Delivered>, Vec<DeadLetter>)>,
}

/// An event that Kafka will never take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeadLetter {
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
pub struct Parked {
    /// Which.
    pub sequence: Sequence,
    /// Where it waits for.
    pub kafka_topic: Arc<str>,
}

/// Number of a settlement: it is on disk when [`Settler::applied`] has reached it.
pub type Ticket = u64;

/// Forward's end of the queue to the buffer thread.
#[derive(Debug)]
pub struct Settler {}

impl Settler {
    /// Queues a settlement; it is committed together with the next events, or within 200 ms.
    ///
    /// # Errors
    /// When the buffer has stopped; what was not applied will be sent again.
    pub fn settle(&self, _settlement: Settlement) -> Result<Ticket, Stopped> {
        unimplemented!()
    }

    /// The newest ticket that is on disk, all older ones included.
    #[must_use]
    pub fn applied(&self) -> Ticket {
        unimplemented!()
    }

    /// The lane of that Kafka topic, once a settlement that parks to it was applied.
    #[must_use]
    pub fn lane(&self, _kafka_topic: &str) -> Option<LaneId> {
        unimplemented!()
    }
}

/// Reading what is held failed.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// A chunk is damaged: these sequences cannot be read. They stay in the file; the forwarder goes on behind them.
    #[error("buffer: chunk with events {first} to {last} is damaged: {cause}")]
    Damaged {
        /// First sequence in it.
        first: Sequence,
        /// Last sequence in it.
        last: Sequence,
        /// What is wrong.
        cause: String,
    },
    /// The disk or SQLite failed for now.
    #[error("buffer: read: {0}")]
    Disk(#[from] rusqlite::Error),
    /// The buffer has stopped.
    #[error("buffer: stopped")]
    Stopped,
}
