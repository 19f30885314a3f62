//! Applying settlements: the only code that takes events out of the main lane or out of a parked one.
//!
//! custody rule 2. An event leaves the main lane in three ways, each in one transaction with its bookings: delivered
//! (for a [`Delivered`], Kafka's own word), dead (copied to `dead_letter` with its reason), parked (copied to the lane
//! of its Kafka topic, still held). Its sequence joins the settled set; the chunk row goes when all of it is settled.
//! An event leaves a parked lane together with its whole chunk, when confirmations and dead letters cover that chunk
//! exactly. An event whose chunk is damaged cannot be copied; it is not settled then and stays where it is, held.
//!
//! What waits to be applied is kept small whatever happens: confirmations become spans and counts at once, so a disk
//! that cannot be written does not let a queue grow while Kafka goes on confirming.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rusqlite::OptionalExtension;

use super::books::{Books, Lane};
use super::chunk::{ChunkReader, ChunkWriter, Extent};
use super::error::{WriteError, is_unreadable, row_id, sequence};
use super::limits::{SETTLE_DELAY, SWEEP_SEQUENCES};
use super::settlement::{DeadLetter, Parked, Settlement, Ticket};
use super::spans::Spans;
use super::statements::Statements;
use super::{LaneId, clock, life};
use crate::delivered::Delivered;
use crate::event::{RouteId, Sequence, Stored};
use crate::watermark::Instance;

/// Settlements that wait for the next transaction. Applying them changes nothing here, so that they can be applied
/// again when the transaction fails.
#[derive(Debug, Default)]
pub(super) struct Pending {
    /// The newest; 0 when there is none.
    ticket: Ticket,
    since: Option<Instant>,
    spans: Spans,
    delivered: BTreeMap<RouteId, u64>,
    dead: Vec<DeadLetter>,
    parked: Vec<Parked>,
    lane_chunks: Vec<LaneChunkSettled>,
    lane_unread: Vec<(LaneId, i64)>,
    /// QoS 0 events that found no room: not settled, for they were never held, but the books must say so.
    dropped: BTreeMap<RouteId, u64>,
    watermark: Sequence,
    heard: Option<Instance>,
}

#[derive(Debug)]
struct LaneChunkSettled {
    lane: LaneId,
    chunk: i64,
    delivered: Vec<Delivered>,
    dead: Vec<DeadLetter>,
}

impl Pending {
    /// Takes one in. `books` are those of the last commit, `doubtful` is in a transaction whose outcome is unknown.
    pub(super) fn add(&mut self, ticket: Ticket, settlement: Settlement, books: &Books, doubtful: Option<&Self>) {
        self.ticket = self.ticket.max(ticket);
        self.since.get_or_insert_with(Instant::now);
        let first = |spans: &mut Spans, sequence| first_time(spans, sequence, books, doubtful);
        let Settlement { delivered, dead, parked, lane_chunks, lane_unread, watermark, heard } = settlement;
        self.lane_unread.extend(lane_unread);
        self.watermark = self.watermark.max(watermark.unwrap_or(0));
        self.heard = heard.or(self.heard);
        for proof in delivered {
            if first(&mut self.spans, proof.sequence()) {
                let count = self.delivered.entry(proof.route()).or_default();
                *count = count.saturating_add(1);
            }
        }
        for letter in dead {
            if first(&mut self.spans, letter.sequence) {
                self.dead.push(letter);
            }
        }
        for parked in parked {
            if first(&mut self.spans, parked.sequence) {
                self.parked.push(parked);
            }
        }
        for (lane, chunk, delivered, dead) in lane_chunks {
            let waiting = self.lane_chunks.iter().chain(doubtful.iter().flat_map(|pending| &pending.lane_chunks));
            if waiting.into_iter().any(|known| known.chunk == chunk) {
                tracing::debug!(chunk, "settled twice: chunk of a parked lane");
            } else {
                self.lane_chunks.push(LaneChunkSettled { lane, chunk, delivered, dead });
            }
        }
    }

    /// Takes in what found no room.
    pub(super) fn drop_events(&mut self, dropped: impl Iterator<Item = (RouteId, u64)>) {
        for (route, events) in dropped {
            self.since.get_or_insert_with(Instant::now);
            let count = self.dropped.entry(route).or_default();
            *count = count.saturating_add(events);
        }
    }

    /// A ticket counts as well: an empty settlement must come to an end.
    pub(super) fn is_empty(&self) -> bool {
        self.ticket == 0 && self.dropped.is_empty()
    }

    /// Have they waited long enough for each other?
    pub(super) fn is_due(&self, urgent: bool) -> bool {
        !self.is_empty() && (urgent || self.left().is_zero())
    }

    /// Until then.
    pub(super) fn left(&self) -> Duration {
        self.since.map_or(Duration::ZERO, |since| SETTLE_DELAY.saturating_sub(since.elapsed()))
    }

    pub(super) fn ticket(&self) -> Ticket {
        self.ticket
    }

    /// Does it make or remove lanes?
    pub(super) fn touches_lanes(&self) -> bool {
        !self.parked.is_empty() || !self.lane_chunks.is_empty()
    }

    /// The transaction that `self` was in did not happen: `later` goes into the next one with it.
    pub(super) fn absorb(&mut self, later: Self) {
        self.ticket = self.ticket.max(later.ticket);
        for (first, last) in later.spans.iter() {
            self.spans.insert_span(first, last);
        }
        for (route, events) in later.delivered {
            let count = self.delivered.entry(route).or_default();
            *count = count.saturating_add(events);
        }
        self.drop_events(later.dropped.into_iter());
        self.dead.extend(later.dead);
        self.parked.extend(later.parked);
        self.lane_chunks.extend(later.lane_chunks);
        self.lane_unread.extend(later.lane_unread);
        self.watermark = self.watermark.max(later.watermark);
        self.heard = later.heard.or(self.heard);
    }

    /// Does it put events aside? A watermark that passes these rests on it.
    pub(super) fn has_fates(&self) -> bool {
        let dead_in_lanes = self.lane_chunks.iter().any(|chunk| !chunk.dead.is_empty());
        !self.dead.is_empty() || !self.parked.is_empty() || dead_in_lanes
    }

    /// Must a power cut not take it, also where it may take others? What Kafka is told next goes from it.
    pub(super) fn must_stay(&self) -> bool {
        self.has_fates() || self.heard.is_some()
    }

    /// Writes all of it inside the running transaction. Events that move to the dead letters or to a lane are copied
    /// before their chunk goes: the headroom above the limit is there for that.
    pub(super) fn apply(
        &self,
        tx: &mut Statements<'_>,
        books: &mut Books,
        tools: &mut Tools,
    ) -> Result<(), WriteError> {
        let mut chunks = Chunks::default();
        self.write_dead(tx, books, tools, &mut chunks)?;
        self.write_parked(tx, books, tools, &mut chunks)?;
        for (route, events) in &self.delivered {
            books.ledger.delivered(*route, *events);
        }
        for (route, events) in &self.dropped {
            books.ledger.dropped(*route, *events);
        }
        books.watermark = books.watermark.max(self.watermark);
        if let Some(of) = self.heard {
            life::heard(tx.connection, of)?;
        }
        self.release(tx, books, &chunks.unread)?;
        tools.unread.append(&mut chunks.unread);
        for settled in &self.lane_chunks {
            settled.apply(tx, books, tools)?;
        }
        for (lane, chunk) in &self.lane_unread {
            if tx.copy_lane_chunk.execute((*chunk, lane.0))? > 0 {
                tx.delete_lane_chunk.execute([*chunk])?;
            }
        }
        Ok(())
    }

    fn write_dead(
        &self,
        tx: &mut Statements<'_>,
        books: &mut Books,
        tools: &mut Tools,
        chunks: &mut Chunks,
    ) -> Result<(), WriteError> {
        for letter in &self.dead {
            if let Some(event) = chunks.event(letter.sequence, tx, tools)? {
                insert_dead_letter(letter, event, tx, tools)?;
                books.ledger.dead_lettered(letter.route);
            }
        }
        Ok(())
    }

    fn write_parked(
        &self,
        tx: &mut Statements<'_>,
        books: &mut Books,
        tools: &mut Tools,
        chunks: &mut Chunks,
    ) -> Result<(), WriteError> {
        let mut by_topic: BTreeMap<&Arc<str>, BTreeSet<Sequence>> = BTreeMap::new();
        for parked in &self.parked {
            by_topic.entry(&parked.kafka_topic).or_default().insert(parked.sequence);
        }
        for (topic, sequences) in by_topic {
            let lane = lane_of(topic, tx, books)?;
            let mut moved = 0_u64;
            tools.writer.discard();
            for sequence in sequences {
                let Some(event) = chunks.event(sequence, tx, tools)? else { continue };
                moved = moved.saturating_add(1);
                if tools.writer.push(event)? {
                    insert_lane_chunk(lane, tx, tools)?;
                }
            }
            insert_lane_chunk(lane, tx, tools)?;
            let held = books.lanes.get(&lane).map_or(0, |lane| lane.held).saturating_add(moved);
            set_lane_held(lane, held, tx, books)?;
        }
        Ok(())
    }

    /// Joins the settled set and deletes the chunks that are settled as a whole.
    fn release(
        &self,
        tx: &mut Statements<'_>,
        books: &mut Books,
        unread: &BTreeSet<Sequence>,
    ) -> Result<(), WriteError> {
        for (mut first, last) in self.spans.iter() {
            for hole in unread.range(first..=last) {
                books.settled.insert_span(first, hole.saturating_sub(1));
                first = hole.saturating_add(1);
            }
            books.settled.insert_span(first, last);
        }
        let Some((least, _)) = self.spans.iter().next() else { return Ok(()) };
        let released = books.settled.released();
        if least <= released {
            tx.delete_chunks.execute((0_i64, row_id(released)))?;
        }
        let mut swept = released;
        for (first, _) in self.spans.iter().filter(|(_, last)| *last > released) {
            if first > swept
                && let Some((start, end)) = books.settled.span_of(first)
                && end.saturating_sub(start) >= SWEEP_SEQUENCES
            {
                // A cursor that cannot move (a damaged chunk) must not keep everything behind it on disk.
                tx.delete_chunks.execute((row_id(start), row_id(end)))?;
                swept = end;
            }
        }
        Ok(())
    }
}

/// Only what is held can be settled, and only once.
fn first_time(spans: &mut Spans, sequence: Sequence, books: &Books, doubtful: Option<&Pending>) -> bool {
    if sequence == 0 || sequence >= books.next {
        tracing::error!(sequence, next = books.next, "ignored: settlement of an event that the buffer never had");
        return false;
    }
    let before = books.settled.contains(sequence) || doubtful.is_some_and(|pending| pending.spans.contains(sequence));
    let first = !before && spans.insert(sequence);
    if !first {
        tracing::debug!(sequence, "ignored: settled before");
    }
    first
}

/// What transactions need beside the database; kept, because its memory is used again.
pub(super) struct Tools {
    pub(super) writer: ChunkWriter,
    pub(super) reader: ChunkReader,
    /// What should have been copied and could not be read: it is held, and forward is told once that is on disk.
    pub(super) unread: BTreeSet<Sequence>,
}

/// Chunks of the main lane, for copying events out of them.
#[derive(Default)]
struct Chunks {
    /// The last one: neighbours are settled together.
    last: Option<ReadChunk>,
    /// What could not be read.
    unread: BTreeSet<Sequence>,
}

struct ReadChunk {
    first: Sequence,
    last: Sequence,
    /// Empty when it is damaged.
    events: Vec<Stored>,
}

impl Chunks {
    /// The event with that sequence; `None` when its chunk is damaged.
    fn event(
        &mut self,
        wanted: Sequence,
        tx: &mut Statements<'_>,
        tools: &mut Tools,
    ) -> Result<Option<&Stored>, WriteError> {
        let chunk = match self.last.take().filter(|chunk| chunk.first <= wanted && wanted <= chunk.last) {
            Some(chunk) => chunk,
            None => ReadChunk::read(tx, tools, wanted)?,
        };
        let events = &self.last.insert(chunk).events;
        let event = events.binary_search_by_key(&wanted, |event| event.sequence).ok().and_then(|at| events.get(at));
        if event.is_none() {
            self.unread.insert(wanted);
        }
        Ok(event)
    }
}

impl ReadChunk {
    fn read(tx: &mut Statements<'_>, tools: &mut Tools, wanted: Sequence) -> Result<Self, WriteError> {
        let missing = Self { first: wanted, last: wanted, events: Vec::new() };
        let row = tx.find_chunk.query_row([row_id(wanted)], |row| {
            Ok((sequence(row.get(0)?), sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
        });
        match row.optional() {
            Ok(Some((first, last, body))) if last >= wanted => {
                let events = tools.reader.read(&body, first, last).unwrap_or_else(|damage| {
                    tracing::error!(first, last, %damage, "buffer: chunk is damaged, events cannot be copied");
                    Vec::new()
                });
                Ok(Self { first, last, events })
            }
            Ok(_) => {
                tracing::error!(sequence = wanted, "buffer: an event that should be held is in no chunk");
                Ok(missing)
            }
            Err(error) if is_unreadable(&error) => {
                tracing::error!(sequence = wanted, %error, "buffer: chunk cannot be read, event cannot be copied");
                Ok(missing)
            }
            Err(error) => Err(error.into()),
        }
    }
}

impl LaneChunkSettled {
    fn apply(&self, tx: &mut Statements<'_>, books: &mut Books, tools: &mut Tools) -> Result<(), WriteError> {
        let row = tx.find_lane_chunk.query_row((self.chunk, self.lane.0), |row| {
            Ok((sequence(row.get(0)?), sequence(row.get(1)?), row.get::<_, Vec<u8>>(2)?))
        });
        let Some((first, last, body)) = row.optional()? else {
            tracing::debug!(lane = self.lane.0, chunk = self.chunk, "ignored: chunk of a parked lane settled before");
            return Ok(());
        };
        let events = match tools.reader.read(&body, first, last) {
            Ok(events) => events,
            Err(damage) => {
                tracing::error!(chunk = self.chunk, %damage, "buffer: chunk of a parked lane is damaged, it stays");
                return Ok(());
            }
        };
        // custody rule 2: only what is accounted for, one by one, goes.
        let settled: BTreeSet<Sequence> =
            self.delivered.iter().map(Delivered::sequence).chain(self.dead.iter().map(|d| d.sequence)).collect();
        let reports = self.delivered.len().saturating_add(self.dead.len());
        if reports != events.len() || !events.iter().all(|event| settled.contains(&event.sequence)) {
            let held = events.len();
            tracing::error!(chunk = self.chunk, held, reports, "ignored: settlement does not cover its chunk");
            return Ok(());
        }
        tx.delete_lane_chunk.execute([self.chunk])?;
        for letter in &self.dead {
            if let Some(event) = events.iter().find(|event| event.sequence == letter.sequence) {
                insert_dead_letter(letter, event, tx, tools)?;
                books.ledger.dead_lettered(letter.route);
            }
        }
        for proof in &self.delivered {
            books.ledger.delivered(proof.route(), 1);
        }
        let gone = u64::try_from(events.len()).unwrap_or(u64::MAX);
        let held = books.lanes.get(&self.lane).map_or(0, |lane| lane.held).saturating_sub(gone);
        set_lane_held(self.lane, held, tx, books)
    }
}

fn insert_dead_letter(
    letter: &DeadLetter,
    event: &Stored,
    tx: &mut Statements<'_>,
    tools: &mut Tools,
) -> Result<(), WriteError> {
    tools.writer.discard();
    tools.writer.push(event)?;
    let DeadLetter { sequence, route, kafka_topic, reason } = letter;
    if let Some((_, body)) = tools.writer.take()? {
        tx.insert_dead_letter.execute((row_id(*sequence), clock::now_ms(), &**kafka_topic, route.0, reason, body))?;
    }
    Ok(())
}

fn lane_of(topic: &Arc<str>, tx: &mut Statements<'_>, books: &mut Books) -> Result<LaneId, WriteError> {
    if let Some((id, _)) = books.lanes.iter().find(|(_, lane)| lane.kafka_topic == *topic) {
        return Ok(*id);
    }
    let id = LaneId(tx.insert_lane.insert([&**topic])?);
    books.lanes.insert(id, Lane { kafka_topic: Arc::clone(topic), held: 0 });
    Ok(id)
}

/// A lane without events goes.
fn set_lane_held(id: LaneId, held: u64, tx: &mut Statements<'_>, books: &mut Books) -> Result<(), WriteError> {
    if held == 0 {
        books.lanes.remove(&id);
        tx.delete_lane.execute([id.0])?;
    } else {
        if let Some(lane) = books.lanes.get_mut(&id) {
            lane.held = held;
        }
        tx.update_lane.execute((id.0, row_id(held)))?;
    }
    Ok(())
}

fn insert_lane_chunk(lane: LaneId, tx: &mut Statements<'_>, tools: &mut Tools) -> Result<(), WriteError> {
    if let Some((Extent { first, last, oldest_ms, .. }, body)) = tools.writer.take()? {
        tx.insert_lane_chunk.execute((lane.0, row_id(first), row_id(last), oldest_ms, body))?;
    }
    Ok(())
}
