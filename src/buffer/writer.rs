//! The buffer thread: the one owner of the write connection.
//!
//! ```text
//!        ┌──────────────── serve ────────────────┐          recover
//!  ──▶ wait ──▶ gather others ───▶ one commit ───┼─ failed ─▶ drop the connection, wait, open again,
//!        ▲                             │         │            write the log back, read the books:
//!        └──── measure, publish ◀──────┘         │            found on disk → acknowledge, else store again
//!                                                │                 │
//!                    all doors closed ─▶ close   └◀────────────────┘
//! ```
//! There is at most one commit at a time, and all that is queued goes into it. A failing disk is retried for ever
//! (custody rule 6: no memory fallback, nothing acknowledged meanwhile); only when all doors are closed does the
//! thread give up after a while, because what is left then was never acknowledged.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use tokio::sync::{Semaphore, watch};

use super::BufferStatus;
use super::books::Books;
use super::commit::{Batch, Scratch};
use super::copies::Tools;
use super::error::{CloseError, WriteError, is_full};
use super::identity::{self, Marks, Opened};
use super::inbox::Inbox;
use super::instances::{self, Entry};
use super::limits::{
    DELAY_BYTES, GATHER_BYTES, GATHER_LONGEST, GATHER_QUIET_STEPS, GATHER_QUIET_STEPS_KNOWN, GATHER_STEP, LONGEST_NAP,
    MARK_EVERY, STATUS_EVERY, TICK,
};
use super::pace::{self, Pace};
use super::schema::{Database, checkpoint};
use super::settle::{Part, Pending};
use super::settlement::Applied;
use super::space::Space;
use super::statements::Statements;
use super::tail_cache::TailCache;
use super::trouble::Trouble;
use crate::event::{RouteId, Sequence, Stored};
use crate::observe::pulse::Pulse;
use crate::retry::Backoff;

/// Everything the thread owns.
pub(super) struct Writer<R> {
    pub(super) data_dir: PathBuf,
    pub(super) database: Database,
    /// Held for its lock.
    pub(super) lock: File,
    pub(super) max_bytes: u64,
    pub(super) marks: Marks,
    pub(super) life: Entry,
    pub(super) books: Books,
    pub(super) route_names: BTreeMap<RouteId, Arc<str>>,
    pub(super) inbox: Inbox<R>,
    pub(super) tools: Tools,
    pub(super) outside: Outside,
    pub(super) pulse: Pulse,
    pub(super) space: Space,
    pub(super) counts: Counts,
    /// Number of the last transaction that is surely on disk.
    pub(super) durable: u64,
    pub(super) attempted: Attempted,
}

/// What the last transaction included.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Attempted {
    pub(super) batch: bool,
    pub(super) settlements: Option<Part>,
}

/// What others see of it.
pub(super) struct Outside {
    pub(super) tail: Arc<TailCache>,
    pub(super) applied: Arc<Applied>,
    pub(super) room: Arc<Semaphore>,
    pub(super) status: watch::Sender<Arc<BufferStatus>>,
}

impl Drop for Outside {
    /// However the thread ends, nobody waits for it in vain.
    fn drop(&mut self) {
        self.room.close();
        self.tail.close();
    }
}

/// What is counted and remembered from turn to turn.
pub(super) struct Counts {
    pub(super) scratch: Scratch,
    pub(super) pace: Pace,
    pub(super) backoff: Backoff,
    pub(super) trouble: Trouble,
    pub(super) commits: u64,
    pub(super) write_failures: u64,
    pub(super) commit_time: Duration,
    pub(super) commit_wait: Duration,
    pub(super) published: Option<Instant>,
    pub(super) publish_due: bool,
    pub(super) marked: Instant,
    /// Since when a disk fails that should be closed.
    pub(super) stuck_since: Option<Instant>,
}

impl Counts {
    pub(super) fn new(pace: Pace) -> Self {
        Self {
            scratch: Scratch::default(),
            pace,
            backoff: Backoff::new(),
            trouble: Trouble::default(),
            commits: 0,
            write_failures: 0,
            commit_time: Duration::ZERO,
            commit_wait: Duration::ZERO,
            published: None,
            publish_due: true,
            marked: Instant::now(),
            stuck_since: None,
        }
    }
}

impl<R> Writer<R> {
    /// Runs until all doors are closed and everything is committed.
    pub(super) fn run(mut self, connection: Connection) -> Result<(), CloseError> {
        let mut connection = connection;
        loop {
            let served =
                Statements::prepare(&connection).map_err(WriteError::from).and_then(|mut tx| self.serve(&mut tx));
            match served {
                Ok(()) => return self.close(connection),
                Err(error) => {
                    drop(connection);
                    connection = self.recover(&error)?;
                }
            }
        }
    }

    /// Turns until there is nothing more to come.
    fn serve(&mut self, tx: &mut Statements<'_>) -> Result<(), WriteError> {
        self.space.measure(tx)?;
        loop {
            self.pulse.beat();
            if let Some(damage) = self.outside.tail.damage() {
                return Err(WriteError::Damaged(damage));
            }
            let quiet = self.wait();
            if !self.space.is_full() && !self.inbox.batch.is_empty() {
                self.gather();
            }
            let now = Instant::now();
            let settle = self.inbox.pending.is_due(self.urgent()) && self.space.until_retry(now).is_zero();
            // Without room settlements go alone: together with events that do not fit they would be undone.
            let alone = settle && self.space.is_full();
            let store = !self.inbox.batch.is_empty() && self.space.may_store(now) && !alone;
            if store || settle {
                if settle && self.space.is_full() && self.inbox.pending.has_both() {
                    // What is moved within the file wants room first; what frees some does not wait for that.
                    self.transact(false, Some(Part::Releases), tx)?;
                }
                self.transact(store, settle.then_some(Part::All), tx)?;
            } else if quiet {
                self.rest(tx)?;
            }
            self.publish(quiet, tx)?;
            let idle = self.inbox.pending.is_empty() && (self.inbox.batch.is_empty() || self.space.is_full());
            if idle && self.inbox.closed() {
                if self.inbox.batch.is_empty() {
                    return Ok(());
                }
                self.inbox.give_up_events();
                // Once: if the disk has no room even for this, it stays as it is.
                self.transact(true, None, tx)?;
            }
        }
    }

    /// Settlements do not wait for each other.
    fn urgent(&self) -> bool {
        self.space.is_full() || self.inbox.ingest_gone()
    }

    /// Waits until something can be done, but not longer than [`TICK`]. True when nothing came.
    fn wait(&mut self) -> bool {
        // What waits for room is looked at often, and what was not published yet is.
        let soon = self.space.is_full() || self.counts.publish_due;
        let longest = if soon { STATUS_EVERY } else { TICK };
        let wait = if self.inbox.pending.is_empty() {
            longest
        } else if self.urgent() {
            self.space.until_retry(Instant::now()).min(longest)
        } else {
            self.inbox.pending.left().min(longest)
        };
        self.inbox.wait(wait, self.space.is_full(), &self.books)
    }

    /// Waits for others where that pays ([`pace`](super::pace)).
    fn gather(&mut self) {
        let start = Instant::now();
        let delay = self.counts.pace.delay(start);
        // What the configuration says goes for all.
        let fixed = self.counts.pace.is_fixed();
        if !delay.is_zero() && (fixed || !self.inbox.batch.waits()) {
            let enough = if fixed { DELAY_BYTES } else { GATHER_BYTES };
            let mut joined = 0;
            loop {
                let left = pace::left(start, delay, Instant::now());
                joined += self.inbox.gather(left.min(LONGEST_NAP), enough, fixed, &self.books);
                self.pulse.beat();
                if left <= LONGEST_NAP || self.inbox.ends_a_wait(enough, fixed) {
                    break;
                }
            }
            self.counts.pace.waited(joined == 0 && !self.inbox.batch.waits());
        }
        if self.inbox.batch.raw_bytes() < GATHER_BYTES && self.counts.pace.is_under_load(start) {
            self.gather_in_steps(start);
        }
        let now = Instant::now();
        self.counts.commit_wait += now.saturating_duration_since(start);
        self.counts.pace.commits(now, self.inbox.batch.events());
    }

    /// Publishers who were answered together are heard together.
    fn gather_in_steps(&mut self, start: Instant) {
        let mut silent_steps = 0_u32;
        let quiet = |batch: &Batch<R>| if batch.waits() { GATHER_QUIET_STEPS_KNOWN } else { GATHER_QUIET_STEPS };
        while self.inbox.batch.raw_bytes() < GATHER_BYTES
            && silent_steps < quiet(&self.inbox.batch)
            && !pace::left(start, GATHER_LONGEST, Instant::now()).is_zero()
        {
            std::thread::sleep(GATHER_STEP);
            let came = self.inbox.take_arrivals(&self.books);
            silent_steps = if came == 0 { silent_steps + 1 } else { 0 };
        }
        self.counts.pace.waited(silent_steps >= GATHER_QUIET_STEPS);
    }

    /// One transaction: with `store` all arrivals, with `settle` that part of the settlements.
    fn transact(&mut self, store: bool, settle: Option<Part>, tx: &mut Statements<'_>) -> Result<(), WriteError> {
        if !self.life.is_written() {
            self.enter(tx.connection)?;
            // Settlements may make the room.
            if !self.life.is_written() && store && settle.is_none() {
                return Ok(());
            }
        }
        let store = store && self.life.is_written();
        if store && let Some(last) = self.inbox.batch.last() {
            self.reserve(last)?;
        }
        let started = Instant::now();
        self.attempted = Attempted { batch: store, settlements: settle };
        let mut no_batch = Batch::new();
        let batch = if store { &mut self.inbox.batch } else { &mut no_batch };
        let pending = settle.map(|part| (&self.inbox.pending, part));
        let Counts { scratch, .. } = &mut self.counts;
        // custody rule 3: a watermark follows.
        let must_stay = self.database.is_lazy() && pending.is_some_and(|(pending, _)| pending.must_stay());
        if must_stay {
            instances::sync_commits(tx.connection, true)?;
        }
        let done = batch.commit(pending, &mut self.books, tx, &mut self.tools, scratch);
        if must_stay {
            instances::sync_commits(tx.connection, false)?;
        }
        match done {
            Ok(events) => {
                self.counts.commit_time += started.elapsed();
                match settle {
                    Some(Part::All) => {
                        let pending = std::mem::take(&mut self.inbox.pending);
                        self.committed(events, &pending);
                    }
                    Some(Part::Releases) => {
                        self.inbox.pending.forget_releases();
                        self.released(events);
                    }
                    None => self.committed(events, &Pending::default()),
                }
                self.space.worked(store || self.inbox.batch.is_empty(), Instant::now());
                self.space.measured(self.counts.scratch.pages, tx)?;
                if self.counts.marked.elapsed() >= MARK_EVERY {
                    self.mark();
                }
                Ok(())
            }
            Err(WriteError::Full(error)) => {
                // Rolled back: the books in memory are ahead of the disk.
                (self.books, _) = Books::load(tx.connection)?;
                self.space.no_space(&error, Instant::now());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Only [`Part::Releases`] of the settlements is on disk: nobody who waits for one has it yet, but lanes may be gone.
    pub(super) fn released(&mut self, events: Vec<Stored>) {
        self.committed(events, &Pending::default());
        self.tell_lanes();
    }

    fn tell_lanes(&self) {
        let lanes = self.books.lanes.iter().map(|(id, lane)| (Arc::clone(&lane.kafka_topic), *id));
        self.outside.applied.set_lanes(lanes);
    }

    /// Tells everyone who waits for it. The acknowledgements have left already.
    pub(super) fn committed(&mut self, events: Vec<Stored>, pending: &Pending) {
        self.durable = self.books.transaction;
        self.counts.commits += 1;
        self.counts.publish_due = true;
        self.counts.stuck_since = None;
        self.counts.backoff.reset();
        self.counts.trouble.over();
        self.outside.tail.offer(events);
        if pending.has_fates() {
            self.outside.applied.fates_are_in(self.durable);
        }
        if pending.touches_lanes() {
            self.tell_lanes();
        }
        let unread = std::mem::take(&mut self.tools.unread);
        self.outside.applied.unread(&unread);
        self.outside.applied.reached(pending.ticket());
        self.outside.tail.settled();
    }

    /// Nothing to do.
    fn rest(&mut self, tx: &mut Statements<'_>) -> Result<(), WriteError> {
        if self.space.is_full() {
            self.space.measure(tx)?;
        }
        if !self.life.is_written() && self.space.until_retry(Instant::now()).is_zero() {
            self.enter(tx.connection)?;
        }
        if self.counts.marked.elapsed() >= MARK_EVERY && self.marks.committed != self.committed_sequence() {
            self.mark();
        }
        Ok(())
    }

    /// Writes this start down, if there is room for it now.
    fn enter(&mut self, connection: &Connection) -> Result<(), WriteError> {
        match self.life.write(connection) {
            Ok(()) => {
                tracing::info!("buffer: this start is written down; going on");
                self.space.worked(self.inbox.batch.is_empty(), Instant::now());
                Ok(())
            }
            Err(error) if is_full(&error) => {
                self.space.no_space(&error, Instant::now());
                Ok(())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// No sequence is given out before the side file says so.
    fn reserve(&mut self, last: Sequence) -> Result<(), WriteError> {
        if last <= self.marks.reserved && !self.marks.closed {
            return Ok(());
        }
        let marks = self.marks_for(last);
        marks.write(&self.data_dir).map_err(WriteError::SideFile)?;
        self.marked(marks);
        Ok(())
    }

    /// Brings the side file up to date; what will be needed soon is reserved with it.
    fn mark(&mut self) {
        // A start that gives out nothing leaves it as it is.
        let marks = if self.marks.closed { self.marks } else { self.marks_for(self.committed_sequence()) };
        self.write_marks(marks);
    }

    fn write_marks(&mut self, marks: Marks) {
        match marks.write(&self.data_dir) {
            Ok(()) => self.marked(marks),
            Err(error) => tracing::warn!(%error, "buffer: the side file could not be brought up to date"),
        }
        self.counts.marked = Instant::now();
    }

    fn marks_for(&self, last: Sequence) -> Marks {
        let (lately, since) = (last.saturating_sub(self.marks.committed), self.counts.marked.elapsed());
        let opened = Opened { instance: self.life.instance, boot: identity::boot(), lazy: self.database.is_lazy() };
        let committed = self.committed_sequence();
        Marks { committed, opened: Some(opened), closed: false, ..self.marks }.reserving(last, lately, since)
    }

    fn marked(&mut self, marks: Marks) {
        self.marks = marks;
        self.counts.marked = Instant::now();
    }

    fn committed_sequence(&self) -> Sequence {
        self.books.next - 1
    }

    /// Everything is committed: leaves a short log and an exact side file. The next start can do without both.
    fn close(mut self, connection: Connection) -> Result<(), CloseError> {
        let untidy = |error: String| CloseError::Untidy(error);
        checkpoint(&connection).map_err(|error| untidy(error.to_string()))?;
        connection.close().map_err(|(_, error)| untidy(error.to_string()))?;
        // Only now nothing can be lost any more.
        self.write_marks(Marks { committed: self.committed_sequence(), closed: true, ..self.marks });
        drop(self.lock);
        Ok(())
    }
}
