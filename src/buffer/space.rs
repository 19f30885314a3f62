//! The limit on disk: measured after each commit, announced once when it is reached and once when it is over.
//!
//! ```text
//!            used ≥ max_bytes                      SQLite or the disk has no room
//!   Open ─────────────────────▶ Limit     Open ─────────────────────────────────▶ NoSpace
//!     ▲                           │         ▲                                        │
//!     └── used < 95 % ────────────┘         └── tried again each second, or after ───┘
//!                                               a settlement, and it worked
//! ```
//! While it is not open, events wait unacknowledged in their queue and keep their room, so ingest stops reading its
//! sockets (custody rule 5: no bound is silent). Settlements go on: they are the way out. The whole story of a full disk stands in
//! the [specification](super).

use std::path::PathBuf;
use std::time::{Duration, Instant};

use super::limits::{NO_SPACE_RETRY, PAGE_BYTES, RESUME_PERCENT};
use super::schema;
use super::statements::Statements;

/// What is used, and whether events may be stored.
pub(super) struct Space {
    wal: PathBuf,
    max_bytes: u64,
    used: u64,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    Limit,
    NoSpace { retry: Instant },
}

impl Space {
    pub(super) fn new(wal: PathBuf, max_bytes: u64) -> Self {
        Self { wal, max_bytes, used: 0, state: State::Open }
    }

    pub(super) fn used(&self) -> u64 {
        self.used
    }

    pub(super) fn is_full(&self) -> bool {
        self.state != State::Open
    }

    /// May events be stored now?
    pub(super) fn may_store(&self, now: Instant) -> bool {
        match self.state {
            State::Open => true,
            State::Limit => false,
            State::NoSpace { .. } => self.until_retry(now).is_zero(),
        }
    }

    /// How long to leave a disk without room alone.
    pub(super) fn until_retry(&self, now: Instant) -> Duration {
        match self.state {
            State::NoSpace { retry } => retry.saturating_duration_since(now),
            State::Open | State::Limit => Duration::ZERO,
        }
    }

    /// When quiet: measures and decides.
    pub(super) fn measure(&mut self, tx: &mut Statements<'_>) -> rusqlite::Result<()> {
        let pages = pages_in_use(tx)?;
        self.measured(pages, tx)
    }

    /// After a commit, in which so many pages were in use: decides.
    pub(super) fn measured(&mut self, pages: u64, tx: &mut Statements<'_>) -> rusqlite::Result<()> {
        let (mut pages, mut log) = (pages * PAGE_BYTES, self.log_bytes());
        let resume = self.resume();
        if pages.saturating_add(log) >= self.mark() && pages < resume && log > 0 {
            // The log alone keeps us above: write it back and begin a new one. Only at the brim, and it keeps the
            // intake open for as long as there really is room.
            schema::checkpoint(tx.connection)?;
            (pages, log) = (pages_in_use(tx)? * PAGE_BYTES, self.log_bytes());
        }
        self.used = pages.saturating_add(log);
        let (used, limit) = (self.used, self.max_bytes);
        match self.state {
            State::Open if used >= limit => {
                self.state = State::Limit;
                tracing::warn!(
                    used,
                    limit,
                    "buffer: it is full ([buffer] max_bytes); the agent takes no readings until Kafka has taken some"
                );
            }
            State::Limit if used < resume => self.opens(),
            State::Open | State::Limit | State::NoSpace { .. } => {}
        }
        Ok(())
    }

    /// A transaction found no room although the limit is not reached.
    pub(super) fn no_space(&mut self, error: &rusqlite::Error, now: Instant) {
        if self.state == State::Open {
            tracing::warn!(%error, used = self.used, "buffer: the disk has no room; the agent takes no readings \
                 until it has: free some");
        }
        self.state = State::NoSpace { retry: now.checked_add(NO_SPACE_RETRY).unwrap_or(now) };
    }

    /// A transaction was committed; `stored` when no events wait any more.
    pub(super) fn worked(&mut self, stored: bool, now: Instant) {
        match self.state {
            State::NoSpace { .. } if stored => self.opens(),
            // It freed something: try at once.
            State::NoSpace { .. } => self.state = State::NoSpace { retry: now },
            State::Open | State::Limit => {}
        }
    }

    fn opens(&mut self) {
        self.state = State::Open;
        tracing::info!(
            used = self.used,
            limit = self.max_bytes,
            "buffer: there is room again; the agent takes readings"
        );
    }

    /// Where the state would change.
    fn mark(&self) -> u64 {
        if self.state == State::Open { self.max_bytes } else { self.resume() }
    }

    fn resume(&self) -> u64 {
        self.max_bytes / 100 * RESUME_PERCENT
    }

    fn log_bytes(&self) -> u64 {
        std::fs::metadata(&self.wal).map_or(0, |metadata| metadata.len())
    }
}

/// Pages of the database that hold something.
pub(super) fn pages_in_use(tx: &mut Statements<'_>) -> rusqlite::Result<u64> {
    let pages: i64 = tx.page_count.query_row([], |row| row.get(0))?;
    let free: i64 = tx.free_pages.query_row([], |row| row.get(0))?;
    Ok(u64::try_from(pages - free).unwrap_or(0))
}
