//! How forward reads the buffer: what is held, in order.
//!
//! Fresh events come from memory as the commit left them; older ones from disk, a few chunks at a time, each read a
//! transaction of its own that ends before the events are returned (a long one would let the write-ahead log grow).
//! Memory is used only where it continues the position exactly, so the order is strict and nothing is skipped:
//! whatever memory does not have is on disk. The sequences have gaps only where chunks are settled and gone, damaged
//! and reported, or where a lost tail of the database was reported at start.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, Statement};

use super::chunk::ChunkReader;
use super::error::{is_damage, is_unreadable, row_id, sequence};
use super::limits::{NEXT_BYTES, NEXT_CHUNKS};
use super::tail_cache::{Awaited, Place, TailCache};
use super::{DeadLetter, LaneId};
use crate::event::{RouteId, Sequence, Stored};

/// Reads held events in order.
pub(crate) struct BufferReader {
    connection: Connection,
    tail: Arc<TailCache>,
    position: Sequence,
    chunks: ChunkReader,
    /// Found after readable chunks of the same read: told on the next call.
    damaged: Option<ReadError>,
    /// Chunks of parked lanes that were reported as damaged, by lane and extent, because they move to its end; calls go on
    /// behind them.
    damaged_parked: BTreeSet<(LaneId, Sequence, Sequence)>,
}

/// Ends waits at the reader, from any thread.
#[derive(Debug, Clone)]
pub(crate) struct Waker(Arc<TailCache>);

impl Waker {
    /// Ends the present [`BufferReader::wait`], or the next one.
    pub(crate) fn wake(&self) {
        self.0.call();
    }
}

/// One chunk of a parked lane: it is settled as a whole.
#[derive(Debug)]
pub(crate) struct LaneChunk {
    /// Row id, rising in a lane.
    pub id: i64,
    /// In order.
    pub events: Vec<Stored>,
}

/// Reading what is held failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    /// A chunk is damaged: these sequences cannot be read. They stay in the file; the next call goes on behind them.
    #[error("buffer: chunk with events {first} to {last} is damaged: {cause}")]
    Damaged {
        /// First sequence in it.
        first: Sequence,
        /// Last sequence in it.
        last: Sequence,
        /// The chunk's row id, if it is one of a parked lane.
        parked: Option<i64>,
        /// What is wrong.
        cause: String,
    },
    /// The disk or SQLite failed for now: try again after a while.
    #[error("buffer: read: {0}")]
    Disk(#[from] rusqlite::Error),
    /// The buffer has stopped, and everything it held was returned.
    #[error("buffer: stopped")]
    Stopped,
}

impl fmt::Debug for BufferReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BufferReader").field("position", &self.position).finish_non_exhaustive()
    }
}

impl BufferReader {
    pub(super) fn new(connection: Connection, tail: Arc<TailCache>, position: Sequence) -> Self {
        let chunks = ChunkReader::default();
        Self { connection, tail, position, chunks, damaged: None, damaged_parked: BTreeSet::new() }
    }

    /// The next events of the main lane after the position, waiting up to `wait` for new ones; the position moves
    /// behind them. It starts at [`Recovered::released`](super::Recovered::released).
    /// An empty vector means nothing came in time. One call returns at most about 256 KiB.
    /// Events already settled are *not* filtered out here; the forwarder knows them.
    ///
    /// # Errors
    /// A damaged chunk or a failing disk; the error says what to do next.
    pub(crate) fn next(&mut self, wait: Duration) -> Result<Vec<Stored>, ReadError> {
        if let Some(damaged) = self.damaged.take() {
            return self.pass(damaged);
        }
        loop {
            match self.tail.after(self.position, wait) {
                Place::Memory(events) => return Ok(self.returned(events)),
                Place::Disk { committed } => {
                    let events = self.noted(Self::read_chunks)?;
                    if !events.is_empty() {
                        return Ok(self.returned(events));
                    }
                    if let Some(damaged) = self.damaged.take() {
                        return self.pass(damaged);
                    }
                    // What was between is settled and gone.
                    self.position = self.position.max(committed);
                }
                Place::Nowhere => return Ok(Vec::new()),
                Place::Closed => return Err(ReadError::Stopped),
            }
        }
    }

    /// Waits for what is awaited, for a [`Waker`], or for so long.
    pub(crate) fn wait(&self, awaited: Awaited, longest: Duration) {
        self.tail.wait(self.position, awaited, longest);
    }

    /// For who has something to tell to who waits here.
    pub(crate) fn waker(&self) -> Waker {
        Waker(Arc::clone(&self.tail))
    }

    /// Continues after that sequence, from disk.
    pub(crate) fn rewind(&mut self, after: Sequence) {
        self.position = after;
        self.damaged = None;
    }

    /// Is anything committed behind the position?
    #[must_use]
    pub(crate) fn has_more(&self) -> bool {
        self.tail.committed() > self.position
    }

    /// The first chunk of a parked lane whose id is greater than `after` (0 = the first), if any. Reads committed
    /// state only. A damaged chunk is reported once; the next call goes on behind it.
    ///
    /// # Errors
    /// As [`BufferReader::next`].
    pub(crate) fn parked(&mut self, lane: LaneId, after: i64) -> Result<Option<LaneChunk>, ReadError> {
        self.noted(|reader| reader.find_parked(lane, after))
    }

    fn find_parked(&mut self, lane: LaneId, after: i64) -> Result<Option<LaneChunk>, ReadError> {
        let mut after = after;
        loop {
            let mut find = self.connection.prepare(
                "SELECT id, first, last, body FROM lane_chunk WHERE lane = ?1 AND id > ?2 ORDER BY id LIMIT 1",
            )?;
            let row = find.query_row((lane.0, after), |row| {
                Ok((row.get::<_, i64>(0)?, sequence(row.get(1)?), sequence(row.get(2)?), row.get::<_, Vec<u8>>(3)?))
            });
            let Some((id, first, last, body)) = row.optional()? else { return Ok(None) };
            if self.damaged_parked.contains(&(lane, first, last)) {
                after = id;
                continue;
            }
            return match self.chunks.read(&body, first, last) {
                Ok(events) => Ok(Some(LaneChunk { id, events })),
                Err(damage) => {
                    self.damaged_parked.insert((lane, first, last));
                    Err(ReadError::Damaged { first, last, parked: Some(id), cause: damage.to_string() })
                }
            };
        }
    }

    /// The chunk of a parked lane that holds the event with that sequence, if one does.
    ///
    /// # Errors
    /// As [`BufferReader::next`]; a damaged chunk holds nothing.
    pub(crate) fn parked_at(&mut self, lane: LaneId, wanted: Sequence) -> Result<Option<i64>, ReadError> {
        self.noted(|reader| reader.find_parked_at(lane, wanted))
    }

    fn find_parked_at(&mut self, lane: LaneId, wanted: Sequence) -> Result<Option<i64>, ReadError> {
        let mut find = self.connection.prepare(
            "SELECT id, first, last, body FROM lane_chunk WHERE lane = ?1 AND first <= ?2 AND last >= ?2 ORDER BY id",
        )?;
        let mut rows = find.query((lane.0, row_id(wanted)))?;
        while let Some(row) = rows.next()? {
            let (id, first, last) = (row.get(0)?, sequence(row.get(1)?), sequence(row.get(2)?));
            let body = row.get_ref(3)?.as_blob().map_err(rusqlite::Error::from)?;
            let events = self.chunks.read(body, first, last).unwrap_or_default();
            if events.iter().any(|stored| stored.sequence == wanted) {
                return Ok(Some(id));
            }
        }
        Ok(None)
    }

    /// Dead letters that the watermark topic may not know: those above that sequence, and those made since that time,
    /// with what was written together with them; about the oldest `most` of them, each with its time.
    ///
    /// # Errors
    /// How SQLite finds them.
    #[cfg(test)]
    pub(super) fn plan_of_dead_letters(&self) -> String {
        let mut plan = self.connection.prepare(&format!("EXPLAIN QUERY PLAN {DEAD_LETTERS}")).unwrap();
        let steps = plan.query_map((0, 0, 10), |row| row.get::<_, String>(3)).unwrap();
        steps.collect::<rusqlite::Result<Vec<_>>>().unwrap().join("; ")
    }

    /// As [`BufferReader::next`]; what is damaged is left out.
    pub(crate) fn dead_letters(
        &mut self,
        after: Sequence,
        since_ms: i64,
        most: u32,
    ) -> Result<Vec<(DeadLetter, i64)>, ReadError> {
        let mut find = self.connection.prepare(DEAD_LETTERS)?;
        let mut body = self.connection.prepare("SELECT body FROM dead_letter WHERE sequence = ?1")?;
        let mut rows = find.query((row_id(after), since_ms, most))?;
        let mut letters = Vec::new();
        while let Some(row) = rows.next()? {
            let (first, last, route) = (sequence(row.get(0)?), sequence(row.get(1)?), RouteId(row.get(2)?));
            let (kafka_topic, reason): (Arc<str>, String) = (row.get::<_, String>(3)?.into(), row.get(4)?);
            let at_ms = row.get(5)?;
            let mut add = |sequence| {
                let (kafka_topic, reason) = (Arc::clone(&kafka_topic), reason.clone());
                letters.push((DeadLetter { sequence, route, kafka_topic, reason }, at_ms));
            };
            // Which sequences a row of several holds stands in its body alone.
            if last <= first {
                add(first);
            } else {
                let body: Vec<u8> = body.query_row([row_id(first)], |row| row.get(0))?;
                self.chunks.read(&body, first, last).unwrap_or_default().iter().for_each(|event| add(event.sequence));
            }
            if letters.len() >= usize::try_from(most).unwrap_or(usize::MAX) {
                break;
            }
        }
        Ok(letters)
    }

    /// What waits in a parked lane: lowest and highest sequence behind that chunk (0 = all of it), and the events in the
    /// whole lane. `None` when nothing is behind it.
    ///
    /// # Errors
    /// As [`BufferReader::next`].
    pub(crate) fn waiting(&self, lane: LaneId, after: i64) -> Result<Option<(Sequence, Sequence, u64)>, ReadError> {
        let mut find = self.connection.prepare(
            "SELECT min(first), max(last), (SELECT held FROM lane WHERE id = ?1) \
             FROM lane_chunk WHERE lane = ?1 AND id > ?2",
        )?;
        let (first, last, held): (Option<i64>, Option<i64>, Option<i64>) =
            find.query_row((lane.0, after), |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
        let extent = first.zip(last).map(|(first, last)| (sequence(first), sequence(last)));
        Ok(extent.map(|(first, last)| (first, last, held.map_or(0, sequence))))
    }

    /// What SQLite cannot get past is reported: the file is rebuilt then, and all is read again.
    fn noted<T>(&mut self, read: impl FnOnce(&mut Self) -> Result<T, ReadError>) -> Result<T, ReadError> {
        let read = read(self);
        if let Err(ReadError::Disk(error)) = &read
            && is_damage(error)
        {
            self.tail.report_damage(error.to_string());
        }
        read
    }

    /// Events behind the position from disk. Stops at a damaged chunk and remembers it.
    fn read_chunks(&mut self) -> Result<Vec<Stored>, ReadError> {
        let position = self.position;
        let mut chunks = self.connection.prepare(READ_CHUNKS)?;
        let mut events = Vec::new();
        let mut bytes = 0_usize;
        let mut last_seen = position;
        let mut rows = chunks.query((row_id(position), row_id(position.saturating_add(1)), NEXT_CHUNKS))?;
        loop {
            let row = match rows.next() {
                Ok(Some(row)) => row,
                Ok(None) => return Ok(events),
                Err(error) if is_unreadable(&error) => {
                    drop(rows);
                    drop(chunks);
                    self.damaged = Some(extent_after(&self.connection, last_seen, &error)?);
                    return Ok(events);
                }
                Err(error) => return Err(error.into()),
            };
            let (first, last) = (sequence(row.get(0)?), sequence(row.get(1)?));
            if last <= position {
                continue;
            }
            let body = row.get_ref(2)?.as_blob().map_err(rusqlite::Error::from)?;
            match self.chunks.read(body, first, last) {
                Ok(mut read) => {
                    read.retain(|event| event.sequence > position);
                    bytes += read.iter().map(|event| event.event.cost_bytes()).sum::<usize>();
                    last_seen = last;
                    append(&mut events, read);
                }
                Err(damage) => {
                    drop(rows);
                    drop(chunks);
                    let last = self.reach(first, last)?;
                    let cause = damage.to_string();
                    self.damaged = Some(ReadError::Damaged { first, last, parked: None, cause });
                    return Ok(events);
                }
            }
            if bytes >= NEXT_BYTES {
                return Ok(events);
            }
        }
    }

    /// Where a damaged chunk ends at most: its row may be what is damaged, and the next one is not to be passed by.
    fn reach(&self, first: Sequence, last: Sequence) -> Result<Sequence, ReadError> {
        let mut next = self.connection.prepare("SELECT min(first) FROM chunk WHERE first > ?1")?;
        let next: Option<i64> = next.query_row([row_id(first)], |row| row.get(0))?;
        let most = next.map_or(self.tail.committed(), |next| sequence(next).saturating_sub(1));
        Ok(last.min(most).max(first))
    }

    fn returned(&mut self, events: Vec<Stored>) -> Vec<Stored> {
        if let Some(last) = events.last() {
            self.position = last.sequence;
        }
        events
    }

    /// Goes behind what is damaged.
    fn pass(&mut self, damaged: ReadError) -> Result<Vec<Stored>, ReadError> {
        if let ReadError::Damaged { last, .. } = &damaged {
            self.position = self.position.max(*last);
        }
        Err(damaged)
    }
}

/// Each part goes by an index and ends after so many rows, however many dead letters there are: this runs in the
/// forwarder's thread, and its watchdog waits.
const DEAD_LETTERS: &str = "SELECT sequence, last, route, kafka_topic, reason, at_ms FROM dead_letter WHERE sequence IN ( \
    SELECT sequence FROM (SELECT sequence FROM dead_letter WHERE sequence > ?1 ORDER BY sequence LIMIT ?3) \
    UNION SELECT sequence FROM (SELECT sequence FROM dead_letter WHERE last > ?1 ORDER BY last LIMIT ?3) \
    UNION SELECT sequence FROM (SELECT sequence FROM dead_letter WHERE at_ms >= ?2 ORDER BY at_ms LIMIT ?3) \
    ) ORDER BY sequence LIMIT ?3";

/// From the chunk that holds the first sequence behind the position.
const READ_CHUNKS: &str = "SELECT first, last, body FROM chunk WHERE first >= \
    coalesce((SELECT max(first) FROM chunk WHERE first <= ?2), ?1) ORDER BY first LIMIT ?3";

/// Which chunk it was whose body SQLite could not read.
fn extent_after(connection: &Connection, after: Sequence, error: &rusqlite::Error) -> Result<ReadError, ReadError> {
    let mut find: Statement<'_> = connection.prepare(
        "SELECT first, last FROM chunk WHERE last > ?1 AND first >= \
            coalesce((SELECT max(first) FROM chunk WHERE first <= ?1), ?1) ORDER BY first LIMIT 1",
    )?;
    let extent = find.query_row([row_id(after)], |row| Ok((sequence(row.get(0)?), sequence(row.get(1)?))));
    let (first, last) = extent?;
    Ok(ReadError::Damaged { first, last, parked: None, cause: error.to_string() })
}

/// The first piece is moved, not copied.
fn append(events: &mut Vec<Stored>, mut more: Vec<Stored>) {
    if events.is_empty() {
        *events = more;
    } else {
        events.append(&mut more);
    }
}
