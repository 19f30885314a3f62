//! The buffer: where an event becomes durable, and where it stays until Kafka has it.
//!
//! ```text
//!  ingest                          buffer thread                             forward
//!  Intake ── Arrivals ──▶ inbox ──▶ one transaction ──▶ live window ──▶ Outlet ──▶
//!    ▲                      ▲          │   (commit.rs)                     ▲ read-only connection
//!    └────── Durable ───────┼──────────┘        SQLite: chunks ────────────┘
//!                           └────────────── Settlement ──────────────── Settler
//! ```
//! * One OS thread owns the only write connection ([`writer`]). Everything queued goes into one transaction, at most
//!   one at a time; after its synced COMMIT, and only then, a [`Durable`] is made ([`commit`]).
//! * An event is a part of a chunk: one blob a commit, CBOR in zstd under a CRC ([`chunk`], [`envelope`]). What is not
//!   an event is in the books, one blob that changes in the same transaction ([`books`], [`ledger`], [`spans`]).
//! * Forward reads through its own read-only connection or, when it keeps up, from memory ([`outlet`], [`live`]), and
//!   says what became of the events ([`settlement`], [`settle`], [`copies`]).
//! * After a failed write nothing is acknowledged until the disk has been read again ([`recover`]). What is wrong with
//!   the files at start is decided in [`open`], with the side file as second witness ([`identity`]) and a look at the log
//!   before SQLite sees it ([`tail`]). Which start stored what, and whose watermark is whose, is in [`life`]. Rows that can
//!   be made anew are ([`mend`]); what SQLite cannot read any more is taken out of the file without it ([`salvage`]).
//! * All numbers stand in [`limits`], the tables and SQLite's settings in [`schema`].

mod books;
mod chunk;
mod clock;
mod commit;
mod copies;
mod directory;
mod envelope;
mod error;
mod identity;
mod inbox;
mod intake;
mod late;
mod ledger;
mod life;
mod limits;
mod live;
mod mend;
mod open;
mod outlet;
mod pace;
mod recover;
mod salvage;
mod schema;
mod sessions;
mod settle;
mod settlement;
mod space;
mod spans;
mod start;
mod statements;
mod status;
mod tail;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

pub use commit::Durable;
pub(crate) use commit::{Arrivals, Room};
pub(crate) use error::{CloseError, NextStep, OpenError, Stopped};
pub(crate) use intake::Intake;
pub(crate) use life::take_new_identity;
pub(crate) use live::Awaited;
pub(crate) use open::Buffer;
pub(crate) use outlet::{LaneChunk, Outlet, ReadError, Waker};
pub(crate) use sessions::{IdChange, SessionChange};
pub(crate) use settlement::{DeadLetter, LaneMove, Parked, Settlement, Settler, Ticket};
pub(crate) use start::BufferThread;

use std::collections::{BTreeMap, HashMap};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::event::{RouteId, Sequence};
use crate::route::Definition;
use crate::watermark::Instance;

/// A Kafka topic that is parked: its events wait in a lane of their own, in order, while all others flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct LaneId(pub i64);

/// The lane of events whose Kafka topic was not admitted. No Kafka topic has such a name.
pub(crate) const OVERFLOW: &str = "(beyond max_topics)";

/// What was on the disk when the buffer was opened.
#[derive(Debug)]
pub(crate) struct Recovered {
    /// Identity of this buffer.
    pub buffer_id: uuid::Uuid,
    /// The ledger line of each route given to `open`, in the same order.
    pub routes: Vec<RouteId>,
    /// Routes of earlier starts that were not given, as they were written, by their ledger line.
    pub gone: BTreeMap<RouteId, Definition>,
    /// QoS 2 state by session key.
    pub sessions: HashMap<Arc<str>, StoredSession>,
    /// Sequences of the main lane above `released` that are already settled and must not be sent again.
    pub settled: Vec<RangeInclusive<Sequence>>,
    /// Everything up to here is settled.
    pub released: Sequence,
    /// Sequences that will never come and that no dead letter speaks of.
    pub holes: Vec<Hole>,
    /// Lanes that hold events, with their Kafka topic.
    pub lanes: Vec<(LaneId, Arc<str>)>,
    /// Kafka topics that were admitted, while [`OVERFLOW`] holds what was not.
    pub admitted: Vec<Arc<str>>,
    /// The mark of the configuration that the lanes were last brought in line with.
    pub in_line_with: Option<u64>,
    /// Who has stored readings and written watermarks for this buffer, and who will.
    pub lives: Lives,
    /// What tells that the buffer is not where it was: a clone, a copy that was restored, or another machine.
    pub moved: Option<&'static str>,
    /// It holds no reading.
    pub is_empty: bool,
}

/// Sequences that will never come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Hole {
    /// The first.
    pub first: Sequence,
    /// The last.
    pub last: Sequence,
    /// Why, for a person.
    pub reason: String,
    /// Since when, milliseconds since 1970.
    pub at_ms: i64,
}

/// The starts of the agent on this buffer, as far as readings and watermarks tell of them.
#[derive(Debug, Clone)]
pub(crate) struct Lives {
    /// This start's number.
    pub present: Instance,
    /// The first sequence that this start can give out.
    pub first: Sequence,
    /// Earlier starts, oldest first.
    pub earlier: Vec<Life>,
    /// The last watermark that Kafka has committed, as far as this buffer knows; 0 when it knows of none.
    pub watermark: Sequence,
    /// Identities that this buffer had before, oldest first, each with the last sequence given out under it.
    pub former: Vec<(uuid::Uuid, Sequence)>,
    is_written: Arc<AtomicBool>,
}

/// An earlier start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Life {
    /// Its number.
    pub instance: Instance,
    /// The first sequence that it could give out.
    pub first: Sequence,
    /// The last sequence that it can have sent.
    pub last: Sequence,
    /// Its last commit that is on disk.
    pub commit: u64,
}

impl Lives {
    /// This start's number is on disk: a watermark may bear it.
    #[must_use]
    pub(crate) fn is_written(&self) -> bool {
        self.is_written.load(Ordering::Acquire)
    }

    /// The start that stored the event with that sequence, and the sequences that it has given out; `None` where a version
    /// stored it that did not write that down.
    #[must_use]
    pub(crate) fn of(&self, sequence: Sequence) -> Option<(Instance, RangeInclusive<Sequence>)> {
        if sequence >= self.first {
            return Some((self.present, self.first..=Sequence::MAX));
        }
        // A start that gave out nothing shares its first sequence with the next one, which follows it.
        let behind = self.earlier.partition_point(|life| life.first <= sequence);
        let life = self.earlier.get(behind.checked_sub(1)?)?;
        (sequence <= life.last).then_some((life.instance, life.first..=life.last))
    }

    /// Of a buffer that exists in a test only.
    #[cfg(test)]
    pub(crate) fn invented(present: Instance, first: Sequence, earlier: Vec<Life>) -> Self {
        let is_written = Arc::new(AtomicBool::new(true));
        Self { present, first, earlier, watermark: 0, former: Vec::new(), is_written }
    }
}

/// QoS 2 packet ids, each with a digest of the message that came under it; `None` where an older version wrote it.
pub(crate) type PacketIds = BTreeMap<u16, Option<u32>>;

/// A persistent MQTT session as the buffer keeps it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct StoredSession {
    /// QoS 2 packet ids that arrived and were not released yet.
    pub packet_ids: PacketIds,
    /// When it was last used, milliseconds since 1970.
    pub used_ms: i64,
    /// Session expiry in seconds, `u32::MAX` = never.
    pub expiry_s: u32,
}

/// The books of one route. `received = delivered + dead_lettered + dropped + purged + lost + held`,
/// always.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LedgerLine {
    /// The route's `from`, or `""` for events without one.
    pub route: Arc<str>,
    /// Events taken in (QoS 0 dropped at the memory bound included).
    pub received: u64,
    /// Confirmed by Kafka.
    pub delivered: u64,
    /// Moved to the dead letters.
    pub dead_lettered: u64,
    /// Dropped by a declared policy.
    pub dropped: u64,
    /// Purged by an operator.
    pub purged: u64,
    /// Gone with a part of the file that could not be read any more.
    pub lost: u64,
    /// Still here.
    pub held: u64,
}

/// What the buffer looks like from outside; published after commits, at most ten times a second, and when idle.
#[derive(Debug, Clone, Default)]
pub(crate) struct BufferStatus {
    /// The books, by route, `RouteId` order.
    pub ledger: Vec<(RouteId, LedgerLine)>,
    /// The next sequence to be given out.
    pub next_sequence: Sequence,
    /// Everything up to here is settled.
    pub released: Sequence,
    /// Arrival time of the oldest held event, milliseconds since 1970.
    pub oldest_ms: Option<i64>,
    /// Bytes of the database that are in use (pages without the free ones, plus the write-ahead log).
    pub used_bytes: u64,
    /// The limit in force.
    pub max_bytes: u64,
    /// True while the limit stops the intake.
    pub full: bool,
    /// Parked lanes: Kafka topic and events in each.
    pub lanes: Vec<(LaneId, Arc<str>, u64)>,
    /// Commits since start.
    pub commits: u64,
    /// The last write failed and none has succeeded since: nothing is acknowledged.
    pub failing: bool,
    /// Failed writes since start, each followed by a reopen.
    pub write_failures: u64,
    /// Seconds the commits since start took, all together.
    pub commit_seconds: f64,
}

/// A long piece of work at start tells systemd now and then that it goes on.
fn life_signs() {
    crate::observe::systemd::still_starting();
}

/// Writes the whole write-ahead log back into the database, syncs it and begins a new log. False when a reader or
/// another process is in the way.
fn checkpoint(connection: &rusqlite::Connection) -> rusqlite::Result<bool> {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get::<_, i64>(0)).map(|busy| busy == 0)
}
