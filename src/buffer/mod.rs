//! The buffer: where an event becomes durable, and where it stays until Kafka has it. This page is its specification:
//! enough to write another reader of its files, and to know what they hold after any failure.
//!
//! # What it is for
//!
//! A gateway may be cut off from Kafka for seconds or for weeks, and loses power without warning. From the
//! acknowledgement on nobody else has the reading. So:
//!
//! * what is acknowledged is on disk: written, and synced (with `sync = "normal"`, written);
//! * the order of arrival is kept, and each event has a number of its own for ever;
//! * an SD card wears out by the byte: an ordinary commit changes two pages (the last leaf of `chunk`, the leaf of `state`), and a
//!   payload byte costs 0.4 to 0.8 bytes written;
//! * a device has 256 MB: the intake takes 2 MiB of memory, a chunk 256 KiB, SQLite's cache 512 KiB a connection ([`limits`]);
//! * the disk is bounded by `max_bytes`, and the intake stops there;
//! * no failure of the disk makes it guess.
//!
//! ```text
//!  ingest                          buffer thread                             forward
//!  Intake ── Arrivals ──▶ inbox ──▶ one transaction ──▶ tail cache ──▶ BufferReader ──▶
//!    ▲                      ▲          │   (commit.rs)                        ▲ read-only connection
//!    └────── Durable ───────┼──────────┘        SQLite: chunks ───────────────┘
//!                           └────────────── Settlement ─────────────────── Settler
//! ```
//!
//! # The files
//!
//! `data_dir` belongs to the agent alone (mode 0700, its files 0600; [`directory`]).
//!
//! | file | what |
//! |---|---|
//! | `buffer.db` | an SQLite 3 database: pages of 4096 bytes, no auto-vacuum, `application_id` 0x54644774 (`TdGt`), `user_version` 4 |
//! | `buffer.db-wal`, `buffer.db-shm` | SQLite's write-ahead log, which belongs to the database, and its index |
//! | `identity` | the side file: what was given out, told outside of the database |
//! | `lock` | empty; the agent holds an exclusive `flock` on it |
//! | `buffer.db.damaged` | text: damage was met at work, the next start rebuilds the database ([`salvage`]) |
//! | `buffer.db.new`, `buffer.db.salvaged` | the rebuilt database, unfinished and finished |
//! | `….set-aside-<ms>` | a file that could not be used, for people; nothing reads it again |
//!
//! # The tables
//!
//! All are STRICT. A *sequence* is an event's number: from 1, without a gap in the order of arrival, never used twice;
//! `buffer_id:sequence` is its id in Kafka. Times are milliseconds since 1970 by the wall clock, which may lie. A *blob* is an
//! envelope (below). The number behind a column is the `user_version` that brought it; an older file is brought to the
//! present version when it is opened, and a newer one is refused ([`schema`]).
//!
//! | table | columns | a row is |
//! |---|---|---|
//! | `identity` | `id` = 1, `buffer_id` 16 bytes, `created_ms` | the only one: whose sequences these are |
//! | `state` | `id` = 1, `body` blob | the only one: the books, rewritten by every commit |
//! | `chunk` | `first`, `last`, `oldest_ms`, `body` blob | events of the main lane, `first` to `last` without a gap; `oldest_ms` is the earliest arrival |
//! | `lane` | `id`, `kafka_topic`, `held` | a blocked Kafka topic, and how many events wait for it; `(beyond max_topics)` for those whose topic was not admitted |
//! | `lane_chunk` | `id`, `lane`, `first`, `last`, `oldest_ms`, `body` blob | events that wait for that topic, in the order of `id`; sequences rise within a row, with gaps |
//! | `dead_letter` | `sequence`, `last`⁴, `at_ms`, `kafka_topic`, `route`, `reason`, `body` blob | events that Kafka will never take, with one reason, from `sequence` to `last` with gaps; `last` = 0: one event |
//! | `session` | `name`, `used_ms`, `expiry_s`, `packet_ids` blob | a persistent MQTT session: `broker:<name>`, `listen:<name>:<client id>`, `filter:…`; `expiry_s` 4294967295 = never |
//! | `route` | `id`, `name`, `kafka_topic`⁴, `record_key`⁴, `value`⁴ | a line of the ledger, and what its `[[route]]` says or said; `id` 0, `name` empty: events without a route |
//! | `life`² | `id`, `instance` 16 bytes, `started_ms`, `first`⁴, `last`, `ended_by`⁴, `word`⁴ | a start of the agent: the number it drew, the sequences it could give out (`last` is NULL until the next start), its last commit, and whether Kafka's last watermark may be its ([`instances`]) |
//! | `former`² | `id`, `buffer_id` 16 bytes, `last`, `ended_ms` | an identity that this buffer had before, and the last sequence given out under it |
//! | `hole`⁴ | `first`, `last`, `reason`, `at_ms` | sequences that will never come and that no other table speaks of |
//! | `unread`⁴ | `first`, `last` | events of the main lane that could not be read when their turn came, and are still in `chunk` |
//! | `admitted`⁴ | `kafka_topic` | a Kafka topic that a template made and that readings may go to |
//! | `in_line`⁴ | `id` = 1, `mark` | the only one: a digest of the configuration that the lanes were last brought in line with |
//!
//! 16-byte numbers are big-endian.
//!
//! # The envelope
//!
//! SQLite does not notice a flipped bit in a blob. So each has a head, and the checksum is looked at before anything else is
//! believed ([`envelope`]).
//!
//! ```text
//! offset  bytes  field
//! 0       1      version: 1
//! 1       1      codec: 0 none, 1 zstd
//! 2       4      raw length, little-endian; at most 272 MiB
//! 6       4      CRC-32C (Castagnoli) of bytes 0 to 5 and of all from 10 on, little-endian
//! 10      …      the raw bytes, or one zstd frame of them
//! ```
//! The raw bytes are CBOR (RFC 8949), definite lengths, integers as short as they go.
//!
//! # A chunk
//!
//! A CBOR sequence (RFC 8742): one array an event, until the bytes end ([`chunk`]). A commit writes one chunk, or one for each
//! 256 KiB.
//!
//! ```text
//! [sequence, arrived_ms, flags, route, topic, payload, headers, facts]
//!
//! flags     bits 0 and 1 the QoS, bit 2 retain, bit 3 dup (since version 3); the others are 0
//! route     `route.id`
//! topic     text: the MQTT topic
//! payload   bytes
//! headers   null, or [content_type text or null, correlation_data bytes or null, [[name, value], …] user properties]
//! facts     null, or a map of what only some events have; absent before version 3
//!           "c" client id   "u" user   "r" response topic   "f" payload format   "e" expiry in seconds
//!           "x" why it can only be a dead letter
//!           "t" [boot, booted_ms, synchronised]: the clock that told its arrival, where it is another one than that of
//!               the event before in this chunk; before the first it is [0, 0, false]
//! ```
//! The sequences rise, and the first and the last are those of the row.
//!
//! # The other blobs
//!
//! ```text
//! state.body          [transaction, next, released, spans, ledger, watermark]
//!   transaction       number of the commit that wrote it
//!   next              the next sequence to be given out
//!   released          all sequences up to here are settled
//!   spans             [[gap, length], …] settled above it: first = end of the one before (or released) + gap, last = first + length
//!   ledger            [[route, received, delivered, dead_lettered, dropped, purged, held, lost⁴], …]
//!   watermark²        Kafka has committed a watermark up to here; 0: none is known
//!
//! session.packet_ids  [plain, digested, digests]; before there were digests, plain alone
//!   plain, digested   [[first, more], …] runs of QoS 2 packet ids, without and with a digest of their message
//!   digests           bytes: four for each id of `digested`, in order, little-endian
//! ```
//!
//! # The side file
//!
//! A truncated database opens as an empty one, and a damaged log loses its end without a word. This file is the second
//! witness. It is text, replaced as a whole (temporary file, sync, rename, sync of the directory; [`identity`]):
//!
//! ```text
//! tidegate-identity 2
//! buffer 0b5b9f9e-6e0f-4c6e-b3a3-5a53b3c3a2a1
//! reserved 20000
//! committed 4711
//! instance 0d9a3bb0c2a14f0f8a0a5b1d7f3e2c11
//! state open
//! boot 5c3a91d0
//! sync full
//! place machine=1a2b3c4d board=- file=99aabbcc
//! crc32c 1a2b3c4d
//! ```
//! `reserved`: sequences up to here may have been given out; on disk *before* the first one above the old mark is used, also with
//! `sync = "normal"`. `committed`: up to here was on disk once; 30 s old at most, exact after a clean stop. `instance`: the last
//! start that gave out sequences. `state`: `open` from before that start's first sequence, `closed` after a clean stop. `boot`: digest
//! of the system's boot. `sync`: the setting. `place`: digests of what a copy does not share. The last line is the CRC-32C of all
//! bytes before it, in hexadecimal digits; `-` stands for what is not known. Version 1 had `buffer`, `reserved` and `committed` only.
//!
//! # What always holds
//!
//! After each commit, and so after any crash:
//!
//! 1. An event of the main lane is *held* while a chunk has it and neither `released` nor a span covers it. What lies in a
//!    `lane_chunk` is held as well, and counts as settled in the main lane.
//! 2. For each line of the ledger: `received = delivered + dead_lettered + dropped + purged + lost + held` (custody rule 7).
//! 3. `next` is above every sequence in any table. None below `next` is given out again, nor one up to `reserved` after an end
//!    of the log that was lost.
//! 4. A sequence of the main lane is settled in four ways, each in one transaction with its booking: delivered, copied to
//!    `dead_letter`, copied to `lane_chunk`, or declared in `hole`, because it is lost or has got a new number (custody rule 2;
//!    [`settle`], [`copies`]). A chunk's row goes when all of it is settled.
//! 5. The `life` row of a start is on disk before its first event or watermark is.
//!
//! # A commit
//!
//! One thread owns the only write connection; there is one commit at a time, and all that is queued goes into it ([`writer`],
//! [`commit`]). Commits are a budget, four a second: on a busy line one waits up to 250 ms for more events, unless a sender in it
//! stands still ([`pace`]):
//!
//! 1. where the batch goes beyond `reserved`, the side file is replaced;
//! 2. `BEGIN IMMEDIATE`; settlements first, because they free pages; then the chunks, the sessions, and the state row with
//!    `transaction` + 1;
//! 3. `COMMIT`. With `synchronous=FULL` it returns when the log is synced;
//! 4. then, and only then, each receipt becomes a [`Durable`], and the events go to the reader in memory ([`tail_cache`]).
//!
//! Forward reads through its own read-only connection what it could not take from memory ([`reader`]), and says what became of
//! it ([`settlement`]). Confirmations are applied a second later, without a watermark after 300 ms, and what forward waits for after
//! 100 ms. The log is written back at 4,000 pages and never shrunk.
//!
//! # What is true after a failure
//!
//! | what happens | what is on disk | what the buffer does |
//! |---|---|---|
//! | the process is killed | all that was committed: the log is in the system's memory | the next start finds the log's end where the index says it is ([`wal_tail`]), and repeats what was in flight |
//! | power is cut | all that was committed, if the disk keeps a sync | the same; if frames behind a bad one, or an index that knows more, tell of a lost end, that is said, and sequences go on behind `reserved` |
//! | ... with `sync = "normal"` | all but the last commits | each such start leaves out the sequences up to `reserved` |
//! | `max_bytes` is reached | all of it, and a headroom of 8 MiB and 1/32 above that | the intake stops; see below |
//! | ENOSPC, EDQUOT, `SQLITE_FULL` | see below | see below |
//! | EIO, EROFS, or any other error of a write or a sync | the last commit or not: nobody knows | acknowledges nothing; see below |
//! | EIO at a read | all of it | forward tries again; nothing is given up |
//! | a bit flips, a page is garbage | all but that | a row that can be made anew is ([`mend`]); else the file is rebuilt beside itself ([`salvage`]), and what is lost is booked and declared. [`open`] has the table |
//! | the files are an older copy of themselves | what the copy held | the side file, if it is newer, says so: sequences go on behind `reserved`. If it was copied as well, `place` tells, or the watermark in Kafka does, and the buffer takes a new identity ([`instances`]) |
//! | EACCES, ENOTDIR, a newer `user_version` | what was there | the start fails and changes nothing; [`OpenError::next_step`] says whether to try again |
//!
//! ## The disk is full
//!
//! There are three bounds, and the first is meant to be met ([`space`]).
//!
//! * **`max_bytes`**: pages in use and the log are measured after each commit. At the limit the intake stops: events wait
//!   unacknowledged in memory, at most 2 MiB of them, sockets are not read, and QoS 0 that finds no room is dropped and booked.
//!   Settlements go on, in transactions of their own. Below 95 % it opens again.
//! * **`SQLITE_FULL` before COMMIT**: the file has reached `max_page_count` (`max_bytes` and the headroom), or the file system said ENOSPC
//!   while pages were spilled. The transaction is rolled back; nothing is in doubt. Settlements are tried alone and first, those that
//!   only free room before those that copy; the batch waits and is tried again each second.
//! * **ENOSPC in COMMIT**: the log could not grow. It is handled like EIO: nothing is acknowledged until the database was opened
//!   again and its log written back. That wants room itself, for each page that the database does not have yet, and until it
//!   has worked no settlement is applied either: a file system that others, or the log, have filled does not become free by what
//!   Kafka confirms (seen on a tmpfs of 6 MiB). A person must make room; then it goes on by itself and nothing was lost. So
//!   `max_bytes`, its headroom and the log (16 MiB, or a quarter of `max_bytes`) had better fit on the disk. `/readyz` says 503 and
//!   `failing` is set meanwhile.
//!
//! Without room the side file cannot be replaced, so no sequence above `reserved` is given out. A start without room for its `life` row
//! runs, and stores and sends nothing until it has some. A start that cannot open the database at all, or not rebuild it, ends with code
//! 1 and deletes nothing.
//!
//! ## A commit in doubt
//!
//! After EIO, EROFS (what ext4 does to itself after an error of the card), ENOSPC in COMMIT, or a failed sync, the kernel may have dropped
//! the pages and told so once (custody rule 6; [`recover`]): the connection is given up; after 250 ms, and up to 30 s in later tries, the
//! database is opened again, its log is written back and synced, and the state row is read. Its `transaction` is the attempted one: the batch
//! is durable, and is acknowledged. It is the one before: the batch is stored again. It is another one: somebody exchanged the file,
//! and nothing more is written. This goes on for ever, unless the agent stops; what is not stored 5 s later was never acknowledged.

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
mod instances;
mod limits;
mod tail_cache;
mod mend;
mod open;
mod reader;
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
mod wal_tail;
#[cfg(test)]
mod tests;
mod trouble;
mod writer;

pub use commit::Durable;
pub(crate) use commit::{Arrivals, Room};
pub(crate) use error::{CloseError, NextStep, OpenError, Stopped};
pub(crate) use instances::take_new_identity;
pub(crate) use intake::Intake;
pub(crate) use open::Buffer;
pub(crate) use reader::{BufferReader, LaneChunk, ReadError, Waker};
pub(crate) use sessions::{IdChange, SessionChange};
pub(crate) use settlement::{DeadLetter, LaneMove, Parked, Settlement, Settler, Ticket};
pub(crate) use start::BufferThread;
pub(crate) use tail_cache::Awaited;

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
    pub instances: Instances,
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
pub(crate) struct Instances {
    /// This start's number.
    pub present: Instance,
    /// The first sequence that this start can give out.
    pub first: Sequence,
    /// Earlier starts, oldest first.
    pub earlier: Vec<PastInstance>,
    /// The last watermark that Kafka has committed, as far as this buffer knows; 0 when it knows of none.
    pub watermark: Sequence,
    /// Identities that this buffer had before, oldest first, each with the last sequence given out under it.
    pub former: Vec<(uuid::Uuid, Sequence)>,
    is_written: Arc<AtomicBool>,
}

/// An earlier start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PastInstance {
    /// Its number.
    pub instance: Instance,
    /// The first sequence that it could give out.
    pub first: Sequence,
    /// The last sequence that it can have sent.
    pub last: Sequence,
    /// Its last commit that is on disk.
    pub commit: u64,
}

impl Instances {
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
    pub(crate) fn invented(present: Instance, first: Sequence, earlier: Vec<PastInstance>) -> Self {
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
    /// ... and waited for more events before.
    pub commit_wait_seconds: f64,
}
