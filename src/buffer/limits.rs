//! Every number of the buffer, with its unit and its reason.

use std::time::Duration;

use crate::event::Sequence;

/// Memory for events that wait for their commit. A commit on an SD card takes up to 50 ms and 30,000 events/s of 260
/// bytes (100 payload, 160 structs) fill 390 KB meanwhile; 2 MiB is five such commits, and a tenth of the agent's 20 MB.
pub(super) const INTAKE_BYTES: usize = 2 * 1024 * 1024;

/// Memory for events that are on disk and that the forwarder has not taken yet. 2,000 events of 260 bytes: at 30,000
/// events/s the forwarder may fall 65 ms behind before it has to read the disk.
pub(super) const TAIL_CACHE_BYTES: usize = 512 * 1024;

/// Raw size at which a chunk is closed. A reader holds one chunk at a time, and zstd gains nothing beyond this size.
pub(super) const CHUNK_RAW_BYTES: usize = 256 * 1024;

/// One call of `BufferReader::next` returns about this much.
pub(super) const NEXT_BYTES: usize = 256 * 1024;

/// Chunks that one read looks at: with a lone event in each chunk this keeps a read transaction below a millisecond.
pub(super) const NEXT_CHUNKS: u32 = 64;

/// Largest raw length that a body may announce: one MQTT packet (256 MiB) and the frame around it. Larger is damage.
pub(super) const MAX_RAW_BYTES: usize = 272 * 1024 * 1024;

/// Topics and names of senders that a reader remembers, so that equal ones share memory: 256 KiB are 1,600 of 100 bytes.
pub(super) const NAMES_KEPT_BYTES: usize = 256 * 1024;

/// Charged for each beside its name: its place in the set, and the counters of what shares it.
pub(super) const NAME_OVERHEAD_BYTES: usize = 64;

/// Longer ones are not remembered: one of 64 KiB would push hundreds of ordinary ones out.
pub(super) const LONGEST_NAME_KEPT: usize = 512;

/// Longest sleep of the buffer thread: the pulse needs one beat a second.
pub(super) const TICK: Duration = Duration::from_secs(1);

/// ... and while a commit waits for others.
pub(super) const LONGEST_NAP: Duration = Duration::from_millis(500);

/// Confirmations wait this long for each other, and then for the next commit of events, if one is due: deleting chunks one by one
/// would change three more pages in every commit. Kafka has the watermark meanwhile, so that a crash repeats nothing.
pub(super) const SETTLE_DELAY: Duration = Duration::from_secs(1);

/// ... without a watermark: a crash repeats what was confirmed meanwhile. A busy line commits every 250 ms.
pub(super) const SETTLE_BEFORE_REPEATS: Duration = Duration::from_millis(300);

/// ... and what forward waits for.
pub(super) const SETTLE_SOON: Duration = Duration::from_millis(100);

/// Between two commits of a busy line. A commit of 25 readings (100 a second) writes 8 to 10 KiB: at four a second 3 GB a day, and
/// an acknowledgement takes a quarter of a second at most.
pub(super) const COMMIT_INTERVAL: Duration = Duration::from_millis(250);

/// So many commits may follow each other at once after a pause: a few sensors that report together.
pub(super) const COMMIT_BURST: u32 = 4;

/// A commit is waited for no longer than the `linger`th part of this number: the rest is Kafka's.
pub(super) const LINGER_SHARE: u32 = 2;

/// Charged bytes in the intake at which nothing is gained by waiting: 450 events of 100 bytes, 8 to 10 KiB compressed, so that
/// the pages that every commit writes (leaf, state, head) are a small part of it.
pub(super) const ENOUGH_BYTES: usize = 128 * 1024;

/// Under load the thread looks for more in steps of this length. A step is one wake-up of this thread instead of one an
/// arrival.
pub(super) const GATHER_STEP: Duration = Duration::from_micros(500);

/// Steps without an arrival that end the wait: publishers stand still, most likely because they wait for us.
pub(super) const GATHER_QUIET_STEPS: u32 = 5;

/// ... where one is known to stand still: the others had the same answer to go on from.
pub(super) const GATHER_QUIET_STEPS_KNOWN: u32 = 1;

/// Under load a commit waits no longer than this for more: 450 events at 30,000/s, and 15 ms of a publisher's
/// patience, half of what one sync of an SD card takes.
pub(super) const GATHER_LONGEST: Duration = Duration::from_millis(15);

/// Raw bytes that need no more: see [`ENOUGH_BYTES`].
pub(super) const GATHER_BYTES: usize = 64 * 1024;

/// Commits with fewer events than this never make the next one wait in steps: nothing is gained by joining a handful.
pub(super) const GATHER_EVENTS: usize = 8;

/// Load is high while events are at most this far apart (4,000 events/s).
pub(super) const GATHER_SPACING: Duration = Duration::from_micros(250);

/// After waits in vain, 2, 4, … up to 2^6 commits do not wait: who waits for each acknowledgement stays fast.
pub(super) const GATHER_FUTILE: u32 = 6;

/// With `commit_delay`, a commit waits for others up to this size; above, half of the intake is used and ingest would stall.
pub(super) const DELAY_BYTES: usize = INTAKE_BYTES / 2;

/// SQLite's page. Smaller pages write more per large chunk, larger ones more per small commit (measured: 4 KiB is best).
pub(super) const PAGE_BYTES: u64 = 4096;

/// Pages in the write-ahead log at which SQLite writes them back: 16 MiB of disk, 32 KiB of shared memory. Pages that
/// change often are written back once in that span; from 4,000 on the gain is small (measured).
pub(super) const WAL_PAGES: u64 = 4000;

/// Small buffers keep the log below a quarter of their size, but not below this many pages.
pub(super) const WAL_PAGES_LEAST: u64 = 64;

/// SQLite's page cache, KiB a connection. The tree above a gigabyte of chunks is about 100 pages; the rest is read once.
pub(super) const CACHE_KIB: i64 = 512;

/// Room above `max_bytes` that only SQLite's own limit guards: one full intake (2 MiB) that was admitted just below the
/// limit, in the log and in the database, and the pages that settlements need to move events to a parked lane or to the
/// dead letters.
pub(super) const HEADROOM_BYTES: u64 = 8 * 1024 * 1024;

/// … and this part of `max_bytes`, because what moves grows with what is held.
pub(super) const HEADROOM_DIVISOR: u64 = 32;

/// Once full, the intake opens again below this many hundredths of `max_bytes`, so that it does not flutter.
pub(super) const RESUME_PERCENT: u64 = 95;

/// When SQLite or the disk has no room although the limit is not reached, storing is tried again this often.
pub(super) const NO_SPACE_RETRY: Duration = Duration::from_secs(1);

/// How long SQLite waits for a lock. Only a checkpoint against a reader, or a person with a shell, can hold one.
pub(super) const BUSY_WAIT: Duration = Duration::from_secs(5);

/// No count of events in the ledger is larger: a million a second for 285 years. A larger one on disk is damage, so
/// that arithmetic on those in memory is plain: it cannot overflow.
pub(super) const MAX_COUNT: u64 = 1 << 53;

/// Likewise for sequences: beyond SQLite's last row id and what is reserved behind it, far below the end of 64 bits.
pub(super) const MAX_SEQUENCE: Sequence = 3 << 62;

/// Sequences that the side file reserves at a time: twice what came until its last mark, so that the marks reserve and
/// no write of its own is needed. A gateway of 300 events/s reserves no more than these, and leaves out no more after a loss.
pub(super) const RESERVE_LEAST: u64 = 10_000;

/// ... and no more than these: at 300,000 events/s one rename and two syncs in 3 s.
pub(super) const RESERVE_MOST: u64 = 1_000_000;

/// The side file's mark of what is committed is at most this old. It bounds what can vanish unnoticed.
pub(super) const MARK_EVERY: Duration = Duration::from_secs(30);

/// Status is published at most this often.
pub(super) const STATUS_EVERY: Duration = Duration::from_millis(100);

/// A settled span above the cursor is swept for whole chunks from this length on. Shorter ones are the ordinary
/// disorder of delivery reports, which the cursor passes a moment later.
pub(super) const SWEEP_SEQUENCES: u64 = 1024;

/// A disk that fails while the agent stops gets this long; what is left then was never acknowledged.
pub(super) const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// How long a start waits for the process before it to let go of the directory: a killed one needs milliseconds,
/// more if it is in the middle of a sync.
pub(super) const LOCK_WAIT: Duration = Duration::from_secs(2);

/// … looking this often.
pub(super) const LOCK_STEP: Duration = Duration::from_millis(20);
